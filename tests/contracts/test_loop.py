"""Loop tier: promises of the loop for any pure `learn`, on three methods that the package does not have: with a table,
on-policy with a memory, and with images in a buffer of sequences. Each is compiled once; the rows that it learns from are
recorded beside its own state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl.data import sequences
from jaxmbrl.data.sequences import Sequences
from jaxmbrl.nn.optimizer import Trainable
from jaxmbrl.training import loop, memory, programs

from . import promises
from .cases import SEEDS
from .promises import Compiled, assert_equal, compile_loop, of_seed, of_type, on_host, recorded, rows_of, still
from .toys import TOYS, ImageConfig, make_image, registered

CHANGES: dict[str, dict[str, Any]] = {"toy-image": {"replay_capacity": 202}}
"""So that the buffer of 101 columns is overwritten within three epochs."""


def is_trainable(x: Any) -> bool:
    return isinstance(x, Trainable)


def unless_trainable(x: Any) -> Any:
    """`x`, or nothing where it is parameters: updates before the fault was seen are not undone, later ones are not made."""
    return () if is_trainable(x) else x


def with_rate(state: Any, change: Callable[[Any], Any]) -> Any:
    """`state` with every learning rate changed."""
    name = jax.tree_util.GetAttrKey("learning_rate")
    return jax.tree_util.tree_map_with_path(lambda path, leaf: change(leaf) if path[-1] == name else leaf, state)


@pytest.fixture(scope="module", params=list(TOYS))
def compiled(request: pytest.FixtureRequest) -> Any:
    with registered():
        settings = CHANGES.get(request.param, {})
        program = programs.build(programs.configure(request.param, request.param, settings=settings, seeds=SEEDS))
        of = program.config.settings
        algorithm = recorded(program.algorithm, program.task, 3 * of.epoch_steps + 5)
        made = loop.make(algorithm, program.task, of)
        yield compile_loop(request.param, program._replace(algorithm=algorithm, loop=made))


def test_nothing_leaves_the_device_inside_a_chunk(compiled: Compiled) -> None:
    promises.check_that_nothing_leaves_the_device(compiled)


def test_the_state_that_comes_out_fits_in_again(compiled: Compiled) -> None:
    promises.check_that_the_state_fits_in_again(compiled)


def test_buffers_are_updated_in_place(compiled: Compiled) -> None:
    promises.check_that_buffers_are_updated_in_place(compiled)


def test_how_a_run_is_cut_into_chunks_changes_no_bit(compiled: Compiled) -> None:
    promises.check_that_chunks_change_no_bit(compiled)


def test_a_run_goes_on_from_a_checkpoint_bit_for_bit(compiled: Compiled, tmp_path: Any) -> None:
    """With the memory of a policy in the middle of an episode, and a buffer of sequences that has been overwritten."""
    promises.check_that_it_goes_on_from_a_checkpoint(compiled, tmp_path)


def test_the_same_seeds_give_the_same_run(compiled: Compiled) -> None:
    promises.check_that_the_same_seeds_give_the_same_run(compiled)


def test_seed_k_starts_the_same_whatever_the_other_seeds(compiled: Compiled) -> None:
    promises.check_that_seed_k_starts_the_same_whatever_the_others(compiled)
    promises.check_that_seed_k_starts_the_same_among_more(compiled)


def test_seeds_do_not_touch_each_other(compiled: Compiled) -> None:
    promises.check_that_seeds_do_not_touch_each_other(compiled)


def test_a_seed_that_goes_non_finite_is_named_and_frozen_and_leaves_the_others(compiled: Compiled) -> None:
    """The first update makes its parameters NaN; what follows from them is undone, and nothing is added any more."""
    frozen = promises.check_that_a_non_finite_seed_is_frozen_alone(compiled, earliest=1)
    per_call = compiled.program.loop.steps_per_call
    noticed = int(frozen.fault.env_steps) - per_call
    assert noticed <= per_call
    assert int(frozen.algorithm.rows.size) == noticed, "rows of the call that was undone do not count"
    for buffer in of_type(frozen.algorithm, Sequences):
        assert int(buffer.size) == noticed // compiled.program.config.settings.num_envs
    for part in of_type(frozen.algorithm, Trainable):
        assert not part.active


def test_a_seed_that_breaks_later_keeps_what_it_had(compiled: Compiled) -> None:
    """The call with the fault is undone: the table and the rows that count are those before it, and the others go on."""
    _, healthy = compiled.undisturbed(2)
    clock, state = compiled.epochs(compiled.start(), [compiled.calls])
    before = of_seed(on_host(state), 1)
    faulty = with_rate(state, lambda rate: rate.at[1].set(jnp.nan))
    _, after = compiled.epochs((clock, faulty), [compiled.calls])
    assert_equal(of_seed(healthy, 0), of_seed(after, 0))
    frozen = of_seed(after, 1)
    assert int(frozen.fault.env_steps) == compiled.epoch + compiled.program.loop.steps_per_call
    assert_equal((before.carry, before.memory, before.key), (frozen.carry, frozen.memory, frozen.key))
    then, now = (with_rate(of.algorithm, np.zeros_like) for of in (before, frozen))
    assert_equal(*(still(jax.tree.map(unless_trainable, of, is_leaf=is_trainable)) for of in (then, now)))
    assert_equal(*(jax.tree.map(lambda x: x[: compiled.epoch], of.rows.data) for of in (then, now)))
    sample = jax.jit(lambda buffer: sequences.sample(buffer, jax.random.key(0), 64, 8))
    for a, b in zip(of_type(then, Sequences), of_type(now, Sequences), strict=True):
        assert_equal(sample(a), sample(b))


def test_metrics_count_the_episodes(compiled: Compiled) -> None:
    promises.check_that_metrics_count_the_episodes(compiled)


def test_it_learns_something_in_every_part(compiled: Compiled) -> None:
    promises.check_that_every_part_learns(compiled)


def test_no_row_is_a_reset_and_no_time_limit_a_termination(compiled: Compiled) -> None:
    """The rows of every environment are whole episodes of the task, played again in NumPy, one after the other."""
    toy, limit = TOYS[compiled.case], compiled.program.task.episode_length
    _, state = compiled.undisturbed(3)
    counts = np.zeros(2, int)
    for k in range(SEEDS):
        rows = rows_of(compiled, state, k)
        length, num_envs = rows.reward.shape
        for n in range(num_envs):
            of = jax.tree.map(lambda x, n=n: x[:, n], rows)
            ends = np.flatnonzero(of.terminated | of.truncated)
            for first, end in zip([0, *(ends + 1)], [*(ends + 1), length], strict=True):
                if first == length:
                    continue
                episode = jax.tree.map(lambda x, first=first, end=end: x[first:end], of)
                assert toy.is_start(episode.observation[0]) and end - first <= limit
                successors, rewards, terminated = toy.played(episode.observation[0], episode.action)
                np.testing.assert_array_equal(episode.next_observation, successors)
                np.testing.assert_array_equal(episode.observation[1:], successors[:-1])
                np.testing.assert_array_equal(episode.reward, rewards)
                np.testing.assert_array_equal(episode.terminated, terminated)
                timed_out = np.arange(first, end) - first + 1 == limit
                np.testing.assert_array_equal(episode.truncated, timed_out & ~terminated)
            counts += [of.terminated.sum(), of.truncated.sum()]
    assert np.all(counts >= 2), f"ends by the task, by the time limit: {counts}"


@pytest.mark.parametrize("compiled", ["toy-image"], indirect=True)
def test_the_buffer_of_sequences_has_the_newest_rows(compiled: Compiled) -> None:
    """Each column is a row as it was collected, its successor too, also where the ring has begun anew."""
    _, state = compiled.undisturbed(3)
    for k in range(SEEDS):
        buffer, rows = of_seed(state.algorithm.own.sequences, k), rows_of(compiled, state, k)
        num_envs, columns = buffer.number.shape
        size, position, room = int(buffer.size), int(buffer.position), buffer.observations.shape[1]
        assert columns - 6 < size <= columns < len(rows.reward)
        at = (position - size + np.arange(size)) % columns
        for n in range(num_envs):
            newest = jax.tree.map(lambda x, n=n, size=size: x[-size:, n], rows)
            number = np.asarray(buffer.number)[n, at]
            np.testing.assert_array_equal(np.asarray(buffer.rows.action)[n, at], newest.action)
            np.testing.assert_array_equal(np.asarray(buffer.observations)[n, number % room], newest.observation)
            np.testing.assert_array_equal(np.asarray(buffer.observations)[n, (number + 1) % room], newest.next_observation)


def test_an_image_is_stored_once_and_in_bytes() -> None:
    """Each transition more takes 1,024 bytes for its image and a sixteenth for successors at ends of episodes, 4 each for
    action, reward and the number of the image, and 2 for its ends."""
    task = TOYS["toy-image"].task()

    def size(capacity: int) -> int:
        algorithm = make_image(ImageConfig(replay_capacity=capacity), task)
        return memory.bytes_of(jax.eval_shape(lambda: algorithm.init(jax.random.key(0), {}, None)))

    assert size(64_000) - size(32_000) == 32_000 * (1024 + 1024 // 16 + 3 * 4 + 2)


@pytest.mark.parametrize("compiled", ["toy-recurrent"], indirect=True)
def test_a_memory_begins_anew_with_each_episode_and_goes_on_across_calls(compiled: Compiled) -> None:
    """Log-probabilities computed again from the rows of a call, with the memory that its first row was given, are those
    that the policy left: the loop's memory is that of the unrolled network."""
    _, state = compiled.undisturbed(1)
    recomputed = state.metrics["recurrent/recomputed"]
    assert recomputed.weight.tolist() == [compiled.calls] * SEEDS
    assert np.all(np.asarray(recomputed.total) < 1e-5 * compiled.calls)
    assert np.abs(np.asarray(state.memory)).max() > 0.01
