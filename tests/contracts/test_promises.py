"""Compiled tier: promises of every method on its compiled program, at a tiny size.

One method of each family is compiled on every run of the tests; `make promises` compiles all of them, and variants.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import float_types
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl import algorithms
from jaxmbrl.core.config import traced
from jaxmbrl.data.replay import Replay
from jaxmbrl.data.sequences import Sequences
from jaxmbrl.training import loop, programs

from . import promises
from .cases import (
    CAPACITY,
    CASES,
    CELLS,
    EPOCH,
    FAST,
    LIMITS,
    SEEDS,
    TINY,
    VARIANTS,
    configured,
    has_replay,
    takes_tables,
    task_of,
)
from .promises import Compiled, assert_equal, compile_loop, of_seed, of_type, recorded, rows_of

REPRESENTATIVES = {
    "dyna": "mbpo",
    "imitation": "distillation",
    "latent": "dreamer",
    "model_free": "sac",
    "on_policy": "ppo",
    "search": "muzero",
    "shooting": "pets",
    "tabular": "dyna-q",
    "trajectory": "gps",
    "value_expansion": "mve",
    "value_gradients": "bptt",
}
"""The method of each family that is compiled on every run."""


@pytest.fixture(
    scope="module",
    params=[pytest.param(case, marks=[] if case in REPRESENTATIVES.values() else [pytest.mark.promises]) for case in CASES],
)
def compiled(request: pytest.FixtureRequest, spinning: None) -> Iterator[Compiled]:
    with float_types.of_method(*CASES[request.param][:2]):
        yield compile_loop(request.param, built(request.param, SEEDS))


def built(case: str, seeds: int) -> programs.Program:
    """The program of a case. The rows of a method without a replay buffer are recorded beside its state."""
    program = programs.build(configured(case, steps=3 * EPOCH, seeds=seeds))
    if has_replay(program):
        return program
    algorithm = recorded(program.algorithm, program.task, CAPACITY)
    made = loop.make(algorithm, program.task, program.config.settings)
    return program._replace(algorithm=algorithm, loop=made)


def test_nothing_leaves_the_device_inside_a_chunk(compiled: Compiled) -> None:
    promises.check_that_nothing_leaves_the_device(compiled)


def test_the_state_that_comes_out_fits_in_again(compiled: Compiled) -> None:
    """No recompilation: shapes, dtypes and weak types of the state are a fixed point of the program."""
    promises.check_that_the_state_fits_in_again(compiled)


def test_buffers_are_updated_in_place(compiled: Compiled) -> None:
    promises.check_that_buffers_are_updated_in_place(compiled)


def test_how_a_run_is_cut_into_chunks_changes_no_bit(compiled: Compiled) -> None:
    promises.check_that_chunks_change_no_bit(compiled)


def test_a_run_goes_on_from_a_checkpoint_bit_for_bit(compiled: Compiled, tmp_path: Any) -> None:
    promises.check_that_it_goes_on_from_a_checkpoint(compiled, tmp_path)


def test_the_same_seeds_give_the_same_run(compiled: Compiled) -> None:
    promises.check_that_the_same_seeds_give_the_same_run(compiled)


def test_seed_k_starts_the_same_whatever_the_other_seeds(compiled: Compiled) -> None:
    promises.check_that_seed_k_starts_the_same_whatever_the_others(compiled)


def test_seeds_do_not_touch_each_other(compiled: Compiled) -> None:
    promises.check_that_seeds_do_not_touch_each_other(compiled)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [4, 8])
def test_two_four_and_eight_seeds_agree_on_seed_0_to_the_bit(compiled: Compiled, seeds: int) -> None:
    rounding = {
        "ampo",
        "bc",
        "bmpo",
        "bptt",
        "ddpg",
        "dhmbpo",
        "maac",
        "me-trpo",
        "mpo",
        "naf",
        "qt-opt",
        "slbo",
        "steve",
        "svg",
        "td3",
    }
    if compiled.case in {*rounding, *VARIANTS}:
        pytest.skip("how XLA sums depends on the shapes: a fact about each algorithm's own settings, not a promise")
    program = built(compiled.case, seeds)
    state = jax.jit(program.loop.init)(jnp.arange(seeds), {"learning_rate": jnp.full(seeds, 1e-3, float)})
    _, more = jax.jit(program.loop.run)(loop.clock_at(0), state, jnp.asarray(2 * compiled.calls, jnp.int32))
    _, two = compiled.undisturbed(2)
    assert_equal(of_seed(more, 0), of_seed(two, 0))


def test_a_seed_that_goes_non_finite_is_named_and_frozen_and_leaves_the_others(compiled: Compiled) -> None:
    if not any(name.endswith("learning_rate") for name in traced(type(compiled.program.config.settings))):
        pytest.skip("the method has no learning rate, which this check sets to NaN")
    # Methods without a warm-up are updated from the first steps on.
    earliest = EPOCH if hasattr(compiled.program.config.settings, "warmup_steps") else 1
    promises.check_that_a_non_finite_seed_is_frozen_alone(compiled, earliest=earliest)


def test_a_simulator_that_breaks_is_named_at_once(compiled: Compiled) -> None:
    _, healthy = compiled.undisturbed(2)
    clock, start = compiled.start()

    def broken(leaf: Any) -> Any:
        return leaf.at[1].set(jnp.nan) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    clock, faulty = compiled.epochs((clock, start._replace(carry=jax.tree.map(broken, start.carry))), [2 * compiled.calls])
    integers = takes_tables(compiled.program) or observes_images(compiled)
    broken_part = "transition/reward" if integers else "transition/observation"
    assert compiled.program.loop.checked[int(faulty.fault.what[1])] == broken_part
    assert int(faulty.fault.env_steps[1]) == compiled.program.loop.steps_per_call
    assert_equal(of_seed(healthy, 0), of_seed(faulty, 0))
    buffer = of_type(faulty.algorithm, Replay, Sequences)[0]
    assert buffer.size.tolist() == [2 * EPOCH, 0], "nothing that is not finite counts as data"


def observes_images(compiled: Compiled) -> bool:
    return "pixels/" in task_of(compiled.case)


def are_steps_of_the_pendulum(compiled: Compiled, rows: Any) -> None:
    """Successors, rewards and terminations are the simulator's."""
    env = compiled.program.task.env
    step = jax.jit(jax.vmap(lambda coordinates, action: env.step(env.state_at(coordinates), action)))
    angle = np.arctan2(rows.observation[:, 1], rows.observation[:, 0])
    successor = step(jnp.stack([angle, rows.observation[:, 2]], axis=1), rows.action)
    np.testing.assert_allclose(rows.next_observation, successor.obs, atol=2e-5)
    np.testing.assert_allclose(rows.reward, successor.reward, atol=2e-4, rtol=1e-4)
    np.testing.assert_array_equal(rows.terminated, may_terminate(compiled) & (np.abs(rows.next_observation[:, 2]) > FAST))


def may_terminate(compiled: Compiled) -> bool:
    return task_of(compiled.case) != "swinging-pendulum"


def are_steps_of_the_corridor(rows: Any) -> None:
    """The same, played again in NumPy."""
    successor = np.clip(rows.observation + np.where(rows.action == 1, 1, -1), 0, CELLS - 1)
    np.testing.assert_array_equal(rows.next_observation, successor)
    np.testing.assert_array_equal(rows.terminated, successor == CELLS - 1)
    np.testing.assert_array_equal(rows.reward, successor == CELLS - 1)


def test_no_row_is_a_reset_and_no_time_limit_a_termination(compiled: Compiled) -> None:
    """Every stored row is a step of the task: its successor is the simulator's, across episode ends too."""
    if observes_images(compiled):
        pytest.skip("an image does not show the speed; tests/envs/test_images.py and the toy with images show the same")
    _, state = compiled.undisturbed(3)
    tables = takes_tables(compiled.program)
    limit = LIMITS[task_of(compiled.case)]
    counts = np.zeros(2, int)
    for k in range(SEEDS):
        rows = jax.tree.map(lambda x: x[:, 0], rows_of(compiled, state, k))
        if tables:
            are_steps_of_the_corridor(rows)
        else:
            are_steps_of_the_pendulum(compiled, rows)
        timed_out, elapsed = np.zeros(len(rows.reward), bool), 0
        for i, ended in enumerate(rows.terminated):
            elapsed += 1
            timed_out[i] = elapsed == limit and not ended
            elapsed = 0 if ended or timed_out[i] else elapsed
        np.testing.assert_array_equal(rows.truncated, timed_out)
        # Within an episode one row's successor is the next row's observation; over its end it is a fresh start.
        ends = np.flatnonzero(rows.terminated | rows.truncated)
        inner = ends[ends < len(rows.reward) - 1]
        joined = np.isclose(rows.next_observation[:-1], rows.observation[1:], atol=1e-6)
        joined = joined.reshape(len(joined), -1).all(axis=1)
        starts = rows.observation[inner + 1]
        if tables:
            # A fresh start may be the cell in which the time limit was reached.
            assert joined[np.setdiff1d(np.arange(len(joined)), inner)].all()
            assert starts.max() <= 1
        else:
            np.testing.assert_array_equal(np.flatnonzero(~joined), inner)
            assert np.abs(starts[:, 2]).max() <= 1
        counts += [rows.terminated.sum(), rows.truncated.sum()]
    by_task, by_clock = counts
    assert by_task >= 2 or not may_terminate(compiled), f"ends by the task, by the clock: {counts}"
    assert by_clock >= 2, f"ends by the task, by the clock: {counts}"


def test_metrics_count_the_episodes(compiled: Compiled) -> None:
    promises.check_that_metrics_count_the_episodes(compiled)


def test_it_learns_something_in_every_part(compiled: Compiled) -> None:
    promises.check_that_every_part_learns(compiled)


@pytest.mark.gpu
def test_it_trains_on_a_gpu(compiled: Compiled) -> None:
    assert jax.default_backend() == "gpu", "this test needs a GPU"
    _, state = compiled.epochs(compiled.start(), [3 * compiled.calls])
    assert {device.platform for leaf in jax.tree.leaves(state) for device in leaf.devices()} == {"gpu"}
    assert state.fault.what.tolist() == [-1] * SEEDS


@pytest.mark.parametrize("name", algorithms.METHODS)
def test_every_method_has_small_settings(name: str) -> None:
    program = programs.configure(name, "pendulum", settings=TINY[name])
    assert program.settings.epoch_steps == EPOCH
    assert getattr(program.settings, "replay_capacity", CAPACITY) == CAPACITY


def test_every_family_is_compiled() -> None:
    families = {name: method.family for name, method in algorithms.METHODS.items()}
    assert {family: families[name] for family, name in REPRESENTATIVES.items()} == {f: f for f in families.values()}
