"""Settings of XLA: compiler options and threads."""

import os

import chex
import jax
import jax.numpy as jnp
import pytest

from jaxmbrl.core import xla
from jaxmbrl.training import programs


def products(options):
    """Whether the compiled product of members is an operation of its own, as Eigen's are, or in a fusion, as YNNPACK's."""
    lowered = jax.jit(lambda x, w: x @ w).lower(jnp.ones((7, 256, 200)), jnp.ones((7, 200, 200)))
    return " dot(" in lowered.compile(compiler_options=dict(options)).as_text()


@pytest.fixture
def on_a_cpu():
    if jax.default_backend() != "cpu":
        pytest.skip("options for a CPU")


def test_ensembles_have_eigens_products(on_a_cpu):
    assert xla.for_ensembles() == xla.EIGEN
    assert products(xla.EIGEN)
    assert xla.for_ensembles("bfloat16") == xla.NOTHING, "Eigen has no matrix units"


@pytest.mark.parametrize(("name", "options"), [("EIGEN", xla.for_ensembles), ("UNOPTIMIZED", xla.for_one_call)])
def test_an_option_that_xla_does_not_know_is_left_out(name, options, monkeypatch, on_a_cpu):
    known = options()
    assert known and known.items() <= getattr(xla, name).items()
    monkeypatch.setattr(xla, name, {**known, "xla_cpu_of_another_version": "1"})
    assert options() == known


def test_the_initial_state_is_that_of_an_optimized_program(on_a_cpu):
    program = programs.build(programs.configure("ppo", "pendulum", seeds=2))
    ours, optimized = programs.initial(program, {}), jax.jit(program.loop.init)(jnp.arange(2), {})

    def numbers(leaf):
        return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf

    chex.assert_trees_all_close(*(jax.tree.map(numbers, state) for state in (ours, optimized)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("algorithm", "settings", "own"),
    [("pets", {}, True), ("pets", {"ensemble.precision": "bfloat16"}, False), ("sac", {}, False)],
)
def test_a_run_compiles_with_its_algorithms_options(algorithm, settings, own):
    program = programs.build(programs.configure(algorithm, "pendulum", settings=settings))
    options = program.algorithm.compiler_options
    assert options == (xla.for_ensembles() if own else {})
    seen = []

    class Function:
        def lower(self, *arguments):
            assert arguments == (1.0, 2.0)
            return self

        def compile(self, compiler_options):
            seen.append(compiler_options)
            return "compiled"

    assert program.compile("training", Function(), 1.0, 2.0) == "compiled"
    assert seen == [dict(options)]


@pytest.mark.parametrize(("cores", "chosen", "due"), [(1, None, "2"), (1, "5", "5"), (2, None, None), (2, "1", "1")])
def test_a_single_core_gets_two_threads(cores, chosen, due, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    monkeypatch.delenv("PJRT_NPROC", raising=False)
    if chosen is not None:
        monkeypatch.setenv("PJRT_NPROC", chosen)
    else:
        # So that what is set is taken back after the test.
        monkeypatch.setenv("PJRT_NPROC", "")
        monkeypatch.delenv("PJRT_NPROC")
    xla.ensure_threads()
    assert os.environ.get("PJRT_NPROC") == due
