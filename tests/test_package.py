"""What importing the package does to the process."""

import os
import subprocess
import sys


def python(code, **more):
    environment = {name: value for name, value in os.environ.items() if name != "PJRT_NPROC"} | more
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout.strip()


LIGHT = """
import contextlib, io, json, os, sys
before = dict(os.environ)
import jaxmbrl, jaxmbrl.algorithms, jaxmbrl.envs
from jaxmbrl import cli
with contextlib.redirect_stdout(io.StringIO()) as out:
    assert cli.main(["list", "--json"]) == 0 and cli.main(["train", "--help"]) == 0
methods = {f"jaxmbrl.algorithms.{place.partition(':')[0]}" for place in jaxmbrl.algorithms.registry.MODULES.values()}
heavy = {"jax", "numpy", "mujoco", "flax", "optax", "matplotlib", "orbax", "tyro", "rich", "jaxmbrl.training"}
print(sorted((methods | heavy) & set(sys.modules)), "mbpo" in out.getvalue())
"""


def test_importing_the_package_and_listing_import_no_method_and_no_jax():
    assert python(LIGHT) == "[] True"


ON_ONE_CORE = """
import os
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
before = dict(os.environ)
import jaxmbrl, jaxmbrl.training.runner
assert dict(os.environ) == before
from jax._src import xla_bridge
from jaxmbrl.core.config import UserError
for function in (jaxmbrl.load, jaxmbrl.evaluate, jaxmbrl.resume, lambda run: jaxmbrl.train(run, "pendulum")):
    os.environ.pop("PJRT_NPROC", None)
    os.environ.update(before)
    assert not xla_bridge.backends_are_initialized()
    try:
        function("nowhere")
    except UserError:
        print(os.environ.get("PJRT_NPROC"), end=" ")
"""


def test_only_the_functions_that_compute_give_xla_its_threads():
    assert python(ON_ONE_CORE) == "2 2 2 2"
    assert python(ON_ONE_CORE, PJRT_NPROC="3") == "3 3 3 3", "a number that the user has chosen is kept"
