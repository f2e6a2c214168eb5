"""Compiled tier: promises of every method on its compiled program, at a tiny size.

One method of each family is compiled on every run of the tests; `make promises` compiles all of them, and variants.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl import algorithms
from jaxmbrl.data.replay import Replay
from jaxmbrl.nn.optimizer import Trainable
from jaxmbrl.training import checkpoint, loop, programs

from .cases import CAPACITY, CASES, EPOCH, FAST, LIMIT, SEEDS, TASK, TINY, VARIANTS, Spinning, configured

REPRESENTATIVES = {
    "dyna": "mbpo",
    "model_free": "sac",
    "shooting": "pets",
    "value_expansion": "mve",
    "value_gradients": "svg",
}
"""The method of each family that is compiled on every run."""


class Compiled(NamedTuple):
    """An algorithm's loop on a pendulum whose episodes end by time and before it, compiled once for two seeds."""

    case: str
    program: programs.Program
    jaxpr: str
    text: str
    init: Any
    run: Any

    def start(self, seeds: Any = (0, 1), **hyper: Any) -> tuple[Any, Any]:
        """Clock and state of the given seeds."""
        traced = {"learning_rate": jnp.full(SEEDS, 1e-3, float)} | {k: jnp.asarray(v, float) for k, v in hyper.items()}
        return loop.clock_at(0), self.init(jnp.array(seeds), traced)

    def epochs(self, state: tuple[Any, Any], calls: list[int]) -> tuple[Any, Any]:
        """Run the compiled program once for each entry of `calls`."""
        for number in calls:
            state = self.run(*state, jnp.asarray(number, jnp.int32))
        return state

    @property
    def calls(self) -> int:
        """Calls of `learn` in an epoch."""
        return EPOCH // self.program.loop.steps_per_call


@pytest.fixture(
    scope="module",
    params=[pytest.param(case, marks=[] if case in REPRESENTATIVES.values() else [pytest.mark.promises]) for case in CASES],
)
def compiled(request: pytest.FixtureRequest, spinning: None) -> Compiled:
    program = programs.build(configured(request.param, TASK, steps=3 * EPOCH, seeds=SEEDS))
    init = jax.jit(program.loop.init)
    arguments = (
        loop.clock_at(0),
        init(jnp.arange(SEEDS), {"learning_rate": jnp.full(SEEDS, 1e-3, float)}),
        jnp.ones((), jnp.int32),
    )
    traced = jax.jit(program.loop.run, donate_argnums=1).trace(*arguments)
    run = traced.lower().compile()
    return Compiled(request.param, program, str(traced.jaxpr), run.as_text(), init, run)


def leaves(state: Any) -> dict[str, np.ndarray]:
    """Every leaf by its path, keys as their data."""

    def plain(leaf: Any) -> np.ndarray:
        return np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)

    return {jax.tree_util.keystr(path): plain(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def assert_equal(a: Any, b: Any) -> None:
    """Bit for bit, NaN equal to NaN."""
    a, b = leaves(a), leaves(b)
    assert a.keys() == b.keys()
    different = [name for name in a if a[name].tobytes() != b[name].tobytes()]
    assert not different, different


def of_seed(state: Any, k: int) -> Any:
    return jax.tree.map(lambda x: x[k], state)


def test_nothing_leaves_the_device_inside_a_chunk(compiled: Compiled) -> None:
    assert "callback" not in compiled.jaxpr
    assert "infeed" not in compiled.text and "outfeed" not in compiled.text
    state = compiled.epochs(compiled.start(), [1])
    calls = jnp.asarray(compiled.calls, jnp.int32)
    with jax.transfer_guard("disallow"):
        clock, _ = compiled.run(*state, calls)
        clock.env_steps.block_until_ready()


def test_the_state_that_comes_out_fits_in_again(compiled: Compiled) -> None:
    """No recompilation: shapes, dtypes and weak types of the state are a fixed point of the program."""
    before = compiled.start()
    after = jax.eval_shape(compiled.program.loop.run, *before, jnp.ones((), jnp.int32))

    def signature(tree: Any) -> list[Any]:
        return [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in jax.tree.leaves(tree)]

    assert signature(jax.eval_shape(lambda x: x, before)) == signature(after)


def test_buffers_are_updated_in_place(compiled: Compiled) -> None:
    replays = [x for x in jax.tree.leaves(compiled.start(), is_leaf=is_replay) if is_replay(x)]
    assert replays, "the algorithm keeps no replay buffer: is this test still about something?"
    names = {"float32": "f32", "bool": "pred", "int32": "s32"}
    leaves = [leaf for replay in replays for leaf in jax.tree.leaves(replay.data)]
    shapes = {f"{names[leaf.dtype.name]}[{','.join(map(str, leaf.shape))}]" for leaf in leaves}
    made = re.findall(r"= (\w+\[[\d,]+\])\S* (copy|copy-start|fusion)\(", compiled.text)
    assert len(made) > 10, "the compiled program is not written as expected"
    assert not [shape for shape, operation in made if shape in shapes and operation != "fusion"]


def is_replay(x: Any) -> bool:
    return isinstance(x, Replay)


def test_how_a_run_is_cut_into_chunks_changes_no_bit(compiled: Compiled) -> None:
    whole = compiled.epochs(compiled.start(), [3 * compiled.calls])
    cut = compiled.epochs(compiled.start(), [1, compiled.calls, 1, 2 * compiled.calls - 2])
    assert_equal(whole, cut)


def test_a_run_goes_on_from_a_checkpoint_bit_for_bit(compiled: Compiled, tmp_path: Any) -> None:
    straight = compiled.epochs(compiled.start(), [compiled.calls, 2 * compiled.calls])
    clock, half = compiled.epochs(compiled.start(), [compiled.calls])
    checkpoint.save(tmp_path, int(clock.env_steps), half, {})
    like = jax.eval_shape(lambda: compiled.start()[1])
    restored = checkpoint.restore(tmp_path, like)
    assert_equal(straight, compiled.epochs((loop.clock_at(restored.step), restored.state), [2 * compiled.calls]))


def test_the_same_seeds_give_the_same_run(compiled: Compiled) -> None:
    assert_equal(
        compiled.epochs(compiled.start(), [2 * compiled.calls]), compiled.epochs(compiled.start(), [2 * compiled.calls])
    )


def test_seed_k_starts_the_same_whatever_the_other_seeds(compiled: Compiled) -> None:
    init = jax.jit(compiled.program.loop.init)
    four = init(jnp.arange(4), {"learning_rate": jnp.full(4, 1e-3, float)})
    for k in range(4):
        assert_equal(of_seed(four, k), of_seed(compiled.start((k, 9))[1], 0))
    keys = jax.random.key_data(four.key)
    assert len({key.tobytes() for key in np.asarray(keys)}) == 4


def test_seeds_do_not_touch_each_other(compiled: Compiled) -> None:
    _, a = compiled.epochs(compiled.start((0, 1)), [2 * compiled.calls])
    _, b = compiled.epochs(compiled.start((0, 5)), [2 * compiled.calls])
    assert_equal(of_seed(a, 0), of_seed(b, 0))
    assert a.metrics["train/return"].total[1] != b.metrics["train/return"].total[1]


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [4, 8])
def test_two_four_and_eight_seeds_agree_on_seed_0_to_the_bit(compiled: Compiled, seeds: int) -> None:
    if compiled.case in {"bptt", "ddpg", "maac", "steve", "svg", "td3", *VARIANTS}:
        pytest.skip("how XLA sums depends on the shapes: a fact about each algorithm's own settings, not a promise")
    program = programs.build(configured(compiled.case, TASK, seeds=seeds))
    state = jax.jit(program.loop.init)(jnp.arange(seeds), {"learning_rate": jnp.full(seeds, 1e-3, float)})
    _, more = jax.jit(program.loop.run)(loop.clock_at(0), state, jnp.asarray(2 * compiled.calls, jnp.int32))
    _, two = compiled.epochs(compiled.start(), [2 * compiled.calls])
    assert_equal(of_seed(more, 0), of_seed(two, 0))


def test_a_seed_that_goes_non_finite_is_named_and_frozen_and_leaves_the_others(compiled: Compiled) -> None:
    calls = 3 * compiled.calls
    _, healthy = compiled.epochs(compiled.start(), [calls])
    faulty_start = compiled.start(learning_rate=[1e-3, np.nan])
    _, faulty = compiled.epochs(faulty_start, [calls])
    assert_equal(of_seed(healthy, 0)._replace(metrics=()), of_seed(faulty, 0)._replace(metrics=()))
    assert_equal(of_seed(healthy, 0).metrics, of_seed(faulty, 0).metrics)
    assert int(healthy.fault.what[1]) == int(faulty.fault.what[0]) == -1
    what = compiled.program.loop.checked[int(faulty.fault.what[1])]
    assert "gradient" in what or "/" in what
    seen_at = int(faulty.fault.env_steps[1])
    assert EPOCH <= seen_at <= 3 * EPOCH
    # Nothing of it moves any more: two more epochs leave what learns, the data that count and the environments alone.
    frozen = of_seed(faulty, 1)
    _, later = compiled.epochs((loop.clock_at(3 * EPOCH), faulty), [2 * compiled.calls])
    assert_equal(still(frozen), still(of_seed(later, 1)))


def test_a_simulator_that_breaks_is_named_at_once(compiled: Compiled) -> None:
    _, healthy = compiled.epochs(compiled.start(), [2 * compiled.calls])
    clock, start = compiled.start()

    def broken(leaf: Any) -> Any:
        return leaf.at[1].set(jnp.nan) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    clock, faulty = compiled.epochs((clock, start._replace(carry=jax.tree.map(broken, start.carry))), [2 * compiled.calls])
    assert compiled.program.loop.checked[int(faulty.fault.what[1])] == "transition/observation"
    assert int(faulty.fault.env_steps[1]) == compiled.program.loop.steps_per_call
    assert_equal(of_seed(healthy, 0), of_seed(faulty, 0))
    buffer = next(x for x in jax.tree.leaves(faulty.algorithm, is_leaf=is_replay) if is_replay(x))
    assert buffer.size.tolist() == [2 * EPOCH, 0], "nothing that is not finite counts as data"


def still(state: Any) -> Any:
    """What must not change in a frozen seed: all but rows of the buffers that do not count, and an epoch's metrics."""

    def without_rows(x: Any) -> Any:
        return (x.position, x.size) if is_replay(x) else x

    return jax.tree.map(without_rows, state._replace(metrics=()), is_leaf=is_replay)


def rows_of(state: Any, k: int) -> Any:
    """What seed k stored in three epochs, in order."""
    buffer = next(x for x in jax.tree.leaves(state.algorithm, is_leaf=is_replay) if is_replay(x))
    assert buffer.size.tolist() == [3 * EPOCH] * SEEDS
    return jax.tree.map(lambda x: np.asarray(x[k, : 3 * EPOCH]), buffer.data)


def test_no_row_is_a_reset_and_no_time_limit_a_termination(compiled: Compiled) -> None:
    """Every stored row is a step of the task: its successor is the simulator's, across episode ends too."""
    _, state = compiled.epochs(compiled.start(), [3 * compiled.calls])
    step = jax.jit(jax.vmap(lambda coordinates, action: Spinning().step(Spinning().state_at(coordinates), action)))
    counts = np.zeros(2, int)
    for k in range(SEEDS):
        rows = rows_of(state, k)
        angle = np.arctan2(rows.observation[:, 1], rows.observation[:, 0])
        successor = step(jnp.stack([angle, rows.observation[:, 2]], axis=1), rows.action)
        np.testing.assert_allclose(rows.next_observation, successor.obs, atol=2e-5)
        np.testing.assert_allclose(rows.reward, successor.reward, atol=2e-4, rtol=1e-4)
        np.testing.assert_array_equal(rows.terminated, np.abs(rows.next_observation[:, 2]) > FAST)
        timed_out, elapsed = np.zeros(3 * EPOCH, bool), 0
        for i, ended in enumerate(rows.terminated):
            elapsed += 1
            timed_out[i] = elapsed == LIMIT and not ended
            elapsed = 0 if ended or timed_out[i] else elapsed
        np.testing.assert_array_equal(rows.truncated, timed_out)
        # Within an episode one row's successor is the next row's observation; over its end it is a fresh start.
        ends = np.flatnonzero(rows.terminated | rows.truncated)
        joined = np.isclose(rows.next_observation[:-1], rows.observation[1:], atol=1e-6).all(axis=1)
        np.testing.assert_array_equal(np.flatnonzero(~joined), ends[ends < 3 * EPOCH - 1])
        assert np.abs(rows.observation[ends[ends < 3 * EPOCH - 1] + 1, 2]).max() <= 1
        counts += [rows.terminated.sum(), rows.truncated.sum()]
    assert np.all(counts >= 2), f"ends by the task, by the clock: {counts}"


def test_metrics_count_the_episodes(compiled: Compiled) -> None:
    state, told = compiled.start(), []
    for _ in range(3):
        state = compiled.epochs(state, [compiled.calls])
        told.append(jax.tree.map(np.array, state[1].metrics))  # a copy, since the state is donated
    for k in range(SEEDS):
        rows = rows_of(state[1], k)
        ends = np.flatnonzero(rows.terminated | rows.truncated)
        lengths = np.diff(ends, prepend=-1)
        returns = np.array([part.sum() for part in np.split(rows.reward, ends + 1)[: len(ends)]])
        # An epoch starts its metrics anew.
        for epoch, found in enumerate(told):
            here = ends // EPOCH == epoch
            assert found["train/episode_length"].weight[k] == found["train/return"].weight[k] == here.sum() > 0
            assert found["train/episode_length"].total[k] == lengths[here].sum()
            np.testing.assert_allclose(found["train/return"].total[k], returns[here].sum(), rtol=1e-4)


def test_it_learns_something_in_every_part(compiled: Compiled) -> None:
    """Every set of parameters moves in training, so that no part is wired to nothing."""
    clock, start = compiled.start()
    first = [leaves(x.params) for x in jax.tree.leaves(start, is_leaf=is_trainable) if is_trainable(x)]
    _, end = compiled.epochs((clock, start), [3 * compiled.calls])
    last = [leaves(x.params) for x in jax.tree.leaves(end, is_leaf=is_trainable) if is_trainable(x)]
    assert len(first) == len(last) > 0
    for a, b in zip(first, last, strict=True):
        assert all((a[name] != b[name]).any() for name in a)


def is_trainable(x: Any) -> bool:
    return isinstance(x, Trainable)


@pytest.mark.gpu
def test_it_trains_on_a_gpu(compiled: Compiled) -> None:
    assert jax.default_backend() == "gpu", "this test needs a GPU"
    _, state = compiled.epochs(compiled.start(), [3 * compiled.calls])
    assert {device.platform for leaf in jax.tree.leaves(state) for device in leaf.devices()} == {"gpu"}
    assert state.fault.what.tolist() == [-1] * SEEDS


@pytest.mark.parametrize("name", algorithms.METHODS)
def test_every_method_has_small_settings(name: str) -> None:
    program = programs.configure(name, "pendulum", settings=TINY[name])
    assert program.settings.epoch_steps == EPOCH and program.settings.replay_capacity == CAPACITY


def test_every_family_is_compiled() -> None:
    families = {name: method.family for name, method in algorithms.METHODS.items()}
    assert {family: families[name] for family, name in REPRESENTATIVES.items()} == {f: f for f in families.values()}
