"""What importing the package does to the process."""

import os
import subprocess
import sys

import pytest

MANY_CHOLESKYS = """
import os
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
import jaxmbrl
import jax
import jax.numpy as jnp

def factor(matrices):
    factors = [jnp.linalg.cholesky(matrix) for matrix in matrices]
    return [matrix + 1e-6 * factor @ factor.mT for matrix, factor in zip(matrices, factors)]

matrices = [jnp.tile(2.0 * jnp.eye(9), (1000, 1, 1)) for _ in range(4)]
print(float(jax.jit(lambda xs: jax.lax.fori_loop(0, 200, lambda i, xs: factor(xs), xs))(matrices)[0][0, 0, 0]))
"""


def python(code, **more):
    environment = {name: value for name, value in os.environ.items() if name != "PJRT_NPROC"} | more
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout.strip()


def test_batched_factorizations_side_by_side_come_to_an_end():
    """On two cores they never return with a pool of two threads; 2 + 200 times a millionth of itself."""
    assert float(python(MANY_CHOLESKYS)) == pytest.approx(2.0 * (1 + 1e-6) ** 200, rel=1e-4)


def test_who_chose_a_number_of_threads_keeps_it():
    assert python("import jaxmbrl, os; print(os.environ['PJRT_NPROC'])", PJRT_NPROC="3") == "3"
