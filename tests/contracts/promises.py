"""What the loop promises, as checks of one compiled program for two seeds: `test_promises.py` makes them of registered
methods, `test_loop.py` of methods with tables, memories and images."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmbrl.core.types import Algorithm, Clock, Policy, Transition, flatten, row_like
from jaxmbrl.data import replay
from jaxmbrl.data.replay import Replay
from jaxmbrl.data.sequences import Sequences
from jaxmbrl.models.gaussian_process.fit import GaussianProcessState
from jaxmbrl.nn.optimizer import Trainable
from jaxmbrl.training import checkpoint, loop, programs
from jaxmbrl.training.loop import LoopState

from .cases import SEEDS


class Compiled(NamedTuple):
    """An algorithm's loop on a task, compiled once for two seeds."""

    case: str
    program: programs.Program
    jaxpr: str
    text: str
    init: Any
    run: Any
    shared: dict[int, tuple[Any, Any]]
    """Of `undisturbed`."""

    def start(self, seeds: Any = (0, 1), **hyper: Any) -> tuple[Any, Any]:
        """Clock and state of the given seeds."""
        traced = {"learning_rate": jnp.full(SEEDS, 1e-3, float)} | {k: jnp.asarray(v, float) for k, v in hyper.items()}
        return loop.clock_at(0), self.init(jnp.array(seeds), traced)

    def epochs(self, state: tuple[Any, Any], calls: list[int]) -> tuple[Any, Any]:
        """Run the compiled program once for each entry of `calls`."""
        for number in calls:
            state = self.run(*state, jnp.asarray(number, jnp.int32))
        return state

    def undisturbed(self, epochs: int) -> tuple[Any, Any]:
        """Clock and state of seeds 0 and 1 after 1, 2 or 3 epochs, on the host. The checks share this run."""
        if not self.shared:
            state = self.start()
            for number in (1, 2, 3):
                state = self.epochs(state, [self.calls])
                self.shared[number] = on_host(state)
        return self.shared[epochs]

    @property
    def epoch(self) -> int:
        """Environment steps of an epoch."""
        return self.program.epoch_steps

    @property
    def calls(self) -> int:
        """Calls of `learn` in an epoch."""
        return self.epoch // self.program.loop.steps_per_call


class Recorded(NamedTuple):
    """The state of a method, and all rows that it was given."""

    own: Any
    rows: Replay


def recorded(algorithm: Algorithm, task: Any, capacity: int) -> Algorithm:
    """`algorithm`, with every row that it learns from in a replay buffer."""

    def init(key: Any, hyper: Any, data: Any) -> Recorded:
        return Recorded(algorithm.init(key, hyper, data), replay.init(row_like(task), capacity))

    def policy(state: Recorded, clock: Clock, explore: bool) -> Policy:
        return algorithm.policy(state.own, clock, explore)

    def learn(clock: Clock, state: Recorded, transitions: Transition) -> Any:
        rows = replay.add(state.rows, flatten(transitions))
        own, found = algorithm.learn(clock, state.own, transitions)
        return Recorded(own, rows), found

    return Algorithm(init, policy, learn, algorithm.period, start_states=algorithm.start_states)


def on_host(state: Any) -> Any:
    """A copy in NumPy, but for keys, which stays when the state is donated."""

    def copy(leaf: Any) -> Any:
        return leaf.copy() if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else np.array(leaf)

    return jax.tree.map(copy, state)


def compile_loop(case: str, program: programs.Program) -> Compiled:
    """The loop of `program`, whose method has a traced `learning_rate`."""
    init = jax.jit(program.loop.init)
    arguments = (
        loop.clock_at(0),
        init(jnp.arange(SEEDS), {"learning_rate": jnp.full(SEEDS, 1e-3, float)}),
        jnp.ones((), jnp.int32),
    )
    traced = jax.jit(program.loop.run, donate_argnums=1).trace(*arguments)
    run = traced.lower().compile()
    return Compiled(case, program, str(traced.jaxpr), run.as_text(), init, run, {})


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
    """A copy of the state of seed k on the host, keys as their data; it stays when the state is donated."""

    def part(leaf: Any) -> np.ndarray:
        return np.array(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)[k]

    return jax.tree.map(part, state)


def of_type(state: Any, *kinds: type) -> list[Any]:
    """The parts of a state that are of these types."""

    def found(x: Any) -> bool:
        return isinstance(x, kinds)

    return [x for x in jax.tree.leaves(state, is_leaf=found) if found(x)]


def still(state: Any) -> Any:
    """What must not change in a frozen seed: all but an epoch's metrics, and rows of the buffers that do not count."""

    def is_buffer(x: Any) -> bool:
        return isinstance(x, Replay | Sequences)

    def without_rows(x: Any) -> Any:
        if isinstance(x, Replay):
            return x.position, x.size
        return (x.position, x.size, x.next_number) if is_buffer(x) else x

    state = state._replace(metrics=()) if isinstance(state, LoopState) else state
    return jax.tree.map(without_rows, state, is_leaf=is_buffer)


def buffer_of(state: Any) -> Any:
    """The replay buffer in a state, or its buffer of sequences if there is none."""
    return (of_type(state, Replay) or of_type(state, Sequences))[0]


def rows_of(compiled: Compiled, state: Any, k: int) -> Any:
    """What seed k stored in its replay buffer in three epochs, [steps, num_envs, ...]."""
    buffer, number = buffer_of(state.algorithm), 3 * compiled.epoch
    num_envs = compiled.program.config.settings.num_envs
    if isinstance(buffer, Sequences):
        return rows_of_sequences(jax.device_get(of_seed(buffer, k)), number // num_envs)
    assert buffer.size.tolist() == [number] * SEEDS
    return jax.tree.map(lambda x: np.asarray(x[k, :number]).reshape(-1, num_envs, *x.shape[2:]), buffer.data)


def rows_of_sequences(buffer: Sequences, steps: int) -> Any:
    """The first rows of one seed's buffer, [steps, num_envs, ...], with their observations."""
    assert int(buffer.size) == steps

    def observed(number: Any) -> Any:
        return jax.tree.map(lambda x: x[np.arange(len(x))[:, None], number % x.shape[1]], buffer.observations)

    number = buffer.number[:, :steps]
    rows = jax.tree.map(lambda x: x[:, :steps], buffer.rows)
    rows = rows._replace(observation=observed(number), next_observation=observed(number + 1))
    return jax.tree.map(lambda x: np.swapaxes(x, 0, 1), rows)


def check_that_nothing_leaves_the_device(compiled: Compiled) -> None:
    assert "callback" not in compiled.jaxpr
    assert "infeed" not in compiled.text and "outfeed" not in compiled.text
    state = compiled.epochs(compiled.start(), [1])
    calls = jnp.asarray(compiled.calls, jnp.int32)
    with jax.transfer_guard("disallow"):
        clock, _ = compiled.run(*state, calls)
        clock.env_steps.block_until_ready()


def check_that_the_state_fits_in_again(compiled: Compiled) -> None:
    before = compiled.start()
    after = jax.eval_shape(compiled.program.loop.run, *before, jnp.ones((), jnp.int32))

    def signature(tree: Any) -> list[Any]:
        return [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in jax.tree.leaves(tree)]

    assert signature(jax.eval_shape(lambda x: x, before)) == signature(after)


def check_that_buffers_are_updated_in_place(compiled: Compiled) -> None:
    buffers = of_type(compiled.start(), Replay, Sequences)
    assert buffers, "the algorithm has no buffer: is this check still about something?"
    names = {"float32": "f32", "float64": "f64", "bool": "pred", "int32": "s32", "uint8": "u8"}
    parts = [x.data if isinstance(x, Replay) else (x.rows, x.observations, x.number) for x in buffers]
    stored = jax.tree.leaves(parts)
    shapes = {f"{names[leaf.dtype.name]}[{','.join(map(str, leaf.shape))}]" for leaf in stored}
    assert all(shape in compiled.text for shape in shapes)
    # What is copied from a broadcast is a new array, such as the mask of the rows of a fit, and no buffer.
    made = re.findall(r"= (\w+\[[\d,]+\])\S* (copy|copy-start|fusion)\((?!(?:\S+ )?%?broadcast)", compiled.text)
    assert len(made) > 10, "the compiled program is not written as expected"
    copied = [shape for shape, operation in made if shape in shapes and operation != "fusion"]
    assert not copied, copied


def check_that_chunks_change_no_bit(compiled: Compiled) -> None:
    cut = compiled.epochs(compiled.start(), [1, 2 * compiled.calls, 1, compiled.calls - 2])
    assert_equal(compiled.undisturbed(3), cut)


def check_that_it_goes_on_from_a_checkpoint(compiled: Compiled, folder: Path) -> None:
    clock, half = compiled.undisturbed(1)
    checkpoint.save(folder, int(clock.env_steps), half, {})
    like = jax.eval_shape(lambda: compiled.start()[1])
    restored = checkpoint.restore(folder, like)
    assert_equal(compiled.undisturbed(2), compiled.epochs((loop.clock_at(restored.step), restored.state), [compiled.calls]))


def check_that_the_same_seeds_give_the_same_run(compiled: Compiled) -> None:
    assert_equal(compiled.undisturbed(2), compiled.epochs(compiled.start(), [2 * compiled.calls]))


def check_that_seed_k_starts_the_same_whatever_the_others(compiled: Compiled) -> None:
    """In either place, beside either of two others."""
    state = {pair: compiled.start(pair)[1] for pair in ((0, 1), (1, 2), (2, 0))}
    assert_equal(of_seed(state[0, 1], 0), of_seed(state[2, 0], 1))
    assert_equal(of_seed(state[1, 2], 0), of_seed(state[0, 1], 1))
    assert_equal(of_seed(state[2, 0], 0), of_seed(state[1, 2], 1))
    assert len({of_seed(state[pair], 0).key.tobytes() for pair in state}) == 3


def check_that_seed_k_starts_the_same_among_more(compiled: Compiled) -> None:
    init = jax.jit(compiled.program.loop.init)
    four = init(jnp.arange(4), {"learning_rate": jnp.full(4, 1e-3, float)})
    for pair in ((0, 1), (2, 3)):
        state = compiled.start(pair)[1]
        for place, k in enumerate(pair):
            assert_equal(of_seed(four, k), of_seed(state, place))


def check_that_seeds_do_not_touch_each_other(compiled: Compiled) -> None:
    _, a = compiled.undisturbed(2)
    _, b = compiled.epochs(compiled.start((0, 5)), [2 * compiled.calls])
    assert_equal(of_seed(a, 0), of_seed(b, 0))
    buffers = [buffer_of(state.algorithm) for state in (a, b)]
    rewards = [np.asarray((x.data if isinstance(x, Replay) else x.rows).reward[1]) for x in buffers]
    assert (rewards[0] != rewards[1]).any()


def check_that_a_non_finite_seed_is_frozen_alone(compiled: Compiled, earliest: int) -> Any:
    """Named at `earliest` steps or later; returns the frozen seed's state. Its learning rate is NaN, or the last
    hyperparameters of its Gaussian processes if nothing in the state has a learning rate."""
    calls = 2 * compiled.calls
    _, healthy = compiled.undisturbed(2)
    _, start = compiled.start()
    if of_type(start, GaussianProcessState) and not of_type(start, Trainable):
        faulty_start = loop.clock_at(0), jax.tree.map(with_broken_process, start, is_leaf=is_process)
    else:
        faulty_start = compiled.start(learning_rate=[1e-3, np.nan])
    clock, faulty = compiled.epochs(faulty_start, [calls])
    assert_equal(of_seed(healthy, 0)._replace(metrics=()), of_seed(faulty, 0)._replace(metrics=()))
    assert_equal(of_seed(healthy, 0).metrics, of_seed(faulty, 0).metrics)
    assert int(healthy.fault.what[1]) == int(faulty.fault.what[0]) == -1
    assert int(faulty.fault.what[1]) >= 0, "the second seed goes on"
    what = compiled.program.loop.checked[int(faulty.fault.what[1])]
    assert "gradient" in what or "Gaussian process" in what or "/" in what
    assert earliest <= int(faulty.fault.env_steps[1]) < 2 * compiled.epoch
    # Nothing of it moves any more: another epoch leaves what learns, the data that count and the environments alone.
    frozen = of_seed(faulty, 1)
    _, later = compiled.epochs((clock, faulty), [compiled.calls])
    assert_equal(still(frozen), still(of_seed(later, 1)))
    return frozen


def is_process(x: Any) -> bool:
    return isinstance(x, GaussianProcessState)


def with_broken_process(part: Any) -> Any:
    """The state of fitted Gaussian processes whose last fit has hyperparameters NaN for the second seed."""
    if not is_process(part):
        return part
    hyper = jax.tree.map(lambda x: x.at[1].set(jnp.nan), part.posterior.hyper)
    return part._replace(posterior=part.posterior._replace(hyper=hyper), fits=part.fits.at[1].set(1))


def check_that_metrics_count_the_episodes(compiled: Compiled) -> None:
    by_epoch = [compiled.undisturbed(number)[1].metrics for number in (1, 2, 3)]
    state = compiled.undisturbed(3)
    for k in range(SEEDS):
        rows = rows_of(compiled, state[1], k)
        length, num_envs = rows.reward.shape
        # (step at its end, length, return) of every episode that ended.
        episodes = []
        for n in range(num_envs):
            ends = np.flatnonzero(rows.terminated[:, n] | rows.truncated[:, n])
            returns = [part.sum() for part in np.split(rows.reward[:, n], ends + 1)[: len(ends)]]
            episodes += zip(ends, np.diff(ends, prepend=-1), returns, strict=True)
        # An epoch starts its metrics anew.
        for epoch, found in enumerate(by_epoch):
            here = [(steps, total) for end, steps, total in episodes if 3 * end // length == epoch]
            assert found["train/episode_length"].weight[k] == found["train/return"].weight[k] == len(here) > 0
            assert found["train/episode_length"].total[k] == sum(steps for steps, _ in here)
            np.testing.assert_allclose(found["train/return"].total[k], sum(total for _, total in here), rtol=1e-4)


def check_that_every_part_learns(compiled: Compiled) -> None:
    """Every set of parameters moves in training, so that no part is wired to nothing, and so does every posterior of
    Gaussian processes. Of a method without either it is the first field of its state: a table of values, or weights."""

    def learned(state: Any) -> list[dict[str, np.ndarray]]:
        parts = [leaves(x.params) for x in of_type(state, Trainable)]
        parts += [leaves(x.posterior) for x in of_type(state, GaussianProcessState)]
        return parts or [{"values": np.array(state.algorithm.own[0])}]

    first, last = learned(compiled.start()[1]), learned(compiled.undisturbed(3)[1])
    assert len(first) == len(last) > 0
    for a, b in zip(first, last, strict=True):
        assert all((a[name] != b[name]).any() for name in a)
