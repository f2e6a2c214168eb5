"""The buffer of sequences against plain lists, its bytes by counting, and its compiled form against copies."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loops import copies
from scipy import stats

from jaxmbrl.core.types import Transition
from jaxmbrl.data import sequences

init = jax.jit(sequences.init, static_argnums=(1, 2, 3))
add = jax.jit(sequences.add)
sample = jax.jit(sequences.sample, static_argnums=(2, 3))


def prototype(extras=(), shape=(2,)):
    seen, number, flag = np.zeros(shape, np.float32), np.zeros((), np.float32), np.zeros((), bool)
    return Transition(seen, number, number, seen, flag, flag, extras)


NUMBERED = prototype({"step": np.zeros((), np.int32)})


def shapes(row, *sizes):
    return jax.eval_shape(lambda row: sequences.init(row, *sizes), row)


class Player:
    """Environments whose observation is (environment, number of the observation); a reset is numbered too."""

    def __init__(self, num_envs, seed=0, chance=0.25):
        self.rng, self.chance = np.random.default_rng(seed), chance
        self.now, self.lists = np.zeros(num_envs, int), [[] for _ in range(num_envs)]

    def play(self, period, ends=None):
        """Transitions [period, num_envs], which the lists keep too; `ends` marks ends of episodes."""
        num_envs = len(self.now)
        ended = self.rng.random((period, num_envs)) < self.chance if ends is None else np.asarray(ends)
        terminated = ended & (self.rng.random((period, num_envs)) < 0.5)
        seen, successor = np.zeros((2, period, num_envs), int)
        for t in range(period):
            seen[t], successor[t] = self.now, self.now + 1
            self.now = self.now + 1 + ended[t]
            for e in range(num_envs):
                self.lists[e].append((seen[t, e], successor[t, e], terminated[t, e], ended[t, e]))
        env = np.broadcast_to(np.arange(num_envs), seen.shape)
        return Transition(
            observation=np.stack([env, seen], -1).astype(np.float32),
            action=(10 * seen + env).astype(np.float32),
            reward=-seen.astype(np.float32),
            next_observation=np.stack([env, successor], -1).astype(np.float32),
            terminated=terminated,
            truncated=ended & ~terminated,
            extras={"step": seen.astype(np.int32)},
        )


def fits(rows, room):
    """Whether the observations of an environment's last rows fit: one a row, one for each end, one for the newest."""
    ends = sum(ended for *_, ended in rows)
    return len(rows) + ends + (not rows[-1][3]) <= room


def whole(lists, length, room):
    """How many of the newest rows are complete in all environments."""
    return max(n for n in range(1, min(length, len(lists[0])) + 1) if all(fits(rows[-n:], room) for rows in lists))


def check_windows(buffer, player, size, length, key, batch=48):
    """Each window is a slice of one environment's newest `size` rows; returns where the windows begin."""
    rows, is_first, valid = jax.device_get(sample(buffer, key, batch, length))
    known = min(length, size)
    np.testing.assert_array_equal(valid, np.tile(np.arange(length) < size, (batch, 1)))
    newest = np.array([rows_of_one[-size:] for rows_of_one in player.lists])
    env, first = rows.observation[:, 0].astype(int).T
    begins_here = newest[env, :, 0] == first[:, None]
    assert begins_here.any(axis=1).all()
    at = begins_here.argmax(axis=1)
    assert (at + known <= newest.shape[1]).all()
    seen, successor, terminated, ended = np.moveaxis(newest[env[:, None], at[:, None] + np.arange(known)], -1, 0)
    own = np.broadcast_to(env[:, None], seen.shape)
    rows, is_first = jax.tree.map(lambda x: x[:, :known], (rows, is_first))
    np.testing.assert_array_equal(rows.observation, np.stack([own, seen], -1))
    np.testing.assert_array_equal(rows.next_observation, np.stack([own, successor], -1))
    np.testing.assert_array_equal(rows.action, 10 * seen + own)
    np.testing.assert_array_equal(rows.reward, -seen)
    np.testing.assert_array_equal(rows.terminated, terminated)
    np.testing.assert_array_equal(rows.truncated, (ended == 1) & (terminated == 0))
    np.testing.assert_array_equal(rows.extras["step"], seen)
    np.testing.assert_array_equal(is_first, np.c_[np.ones(batch), ended[:, :-1]])
    return list(zip(env.tolist(), at.tolist(), strict=True))


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.sampled_from([1, 4, 12]), min_size=1, max_size=8),
    st.sampled_from([0.0, 0.2, 1.0]),
    st.integers(0, 99),
)
def test_against_lists(periods, chance, seed):
    """Of any mixture of short and long blocks, some longer than the buffer, and of any episodes."""
    num_envs, length, ends = 3, 7, 2
    player = Player(num_envs, seed, chance)
    buffer = init(NUMBERED, num_envs, length, ends)
    for i, period in enumerate(periods):
        buffer = add(buffer, player.play(period))
        size = whole(player.lists, length, length + ends + 1)
        assert int(buffer.size) == size
        assert buffer.next_number.tolist() == player.now.tolist()
        check_windows(buffer, player, size, 3, jax.random.key(i), batch=12)


@pytest.mark.parametrize("steps", [5, 30, 47])
def test_windows_are_drawn_uniformly_and_never_run_over_the_write_position(steps):
    player = Player(3, chance=0.1)
    buffer = init(NUMBERED, 3, 20, 20)
    for _ in range(steps):
        buffer = add(buffer, player.play(1))
    size = min(steps, 20)
    begins = check_windows(buffer, player, size, 4, jax.random.key(0), batch=3000)
    counts = [begins.count((env, at)) for env in range(3) for at in range(size - 3)]
    assert sum(counts) == 3000 and stats.chisquare(counts).pvalue > 1e-3


def test_an_episode_by_hand():
    """Rows 0, 1 and 2, of which 1 ends an episode at observation 2: the next one begins at 3."""
    player = Player(1)
    buffer = init(prototype(), 1, 4, 2)
    buffer = add(buffer, player.play(3, [[False], [True], [False]]))
    rows, is_first, valid = jax.device_get(sample(buffer, jax.random.key(0), 1, 3))
    assert rows.observation[0, :, 1].tolist() == [0, 1, 3] and rows.next_observation[0, :, 1].tolist() == [1, 2, 4]
    assert is_first.tolist() == [[True, False, True]] and valid.all()
    # The successor of the newest row is the observation that comes next, where the episode goes on.
    buffer = jax.device_get(buffer)
    assert buffer.observations[0, :5, 1].tolist() == [0, 1, 2, 3, 4] and buffer.next_number.tolist() == [4]


def test_rows_with_which_episodes_begin_are_sampled_uniformly():
    """Of environment 0 the rows 1, 2 and 4 are stored, of environment 1 the same; the oldest counts as a beginning."""
    player = Player(2)
    ends = [[False, False], [True, False], [False, True], [False, True], [False, False]]
    buffer = add(add(init(prototype(), 2, 4, 4), player.play(2, ends[:2])), player.play(3, ends[2:]))
    slots = jax.jit(sequences.sample_starts, static_argnums=2)(buffer, jax.random.key(0), 2000)
    found, counts = np.unique(sequences.take(buffer, slots).observation, axis=0, return_counts=True)
    # Environment 0: rows 1 (the oldest) and 2, at observation 3. Environment 1: the oldest, and rows 3 and 4.
    assert found.tolist() == [[0, 1], [0, 3], [1, 1], [1, 4], [1, 6]] and stats.chisquare(counts).pvalue > 1e-3


def test_more_ends_than_there_is_room_for_leave_fewer_rows():
    """Episodes of one step take two observations a row: of 7 + 1 + 1 places, the newest four rows."""
    player = Player(2, chance=1.0)
    buffer = init(NUMBERED, 2, 7, 1)
    for size in (1, 2, 3, 4, 4, 4, 4, 4, 4):
        buffer = add(buffer, player.play(1))
        assert int(buffer.size) == size
    check_windows(buffer, player, 4, 2, jax.random.key(0))
    # And once episodes are long again, more and more of them.
    for size in (4, 5, 5, 6, 6, 7, 7):
        buffer = add(buffer, player.play(1, [[False, False]]))
        assert int(buffer.size) == size == whole(player.lists, 7, 9)


@pytest.mark.parametrize("length", [1, 2, 3, 6])
def test_columns_for_windows_that_are_whole_even_if_each_row_ends(length):
    columns = sequences.columns_for(length)
    for size, enough in ((columns, True), (columns - 1, False)):
        if size < 1:
            continue
        player, buffer = Player(2, chance=1.0), init(NUMBERED, 2, size)
        for added in range(1, 2 * columns + 3):
            buffer = add(buffer, player.play(1))
            if added >= length + 2:
                assert (int(buffer.size) >= length) is enough
        if enough:
            check_windows(buffer, player, int(buffer.size), length, jax.random.key(0))


def test_an_image_is_stored_once():
    """In bytes: 32 x 32 x 1 of 4 environments and 1,000 steps, with all that goes with them."""
    image = np.zeros((32, 32, 1), np.uint8)
    row = prototype({"log_prob": np.zeros((), np.float32)})._replace(observation=image, next_observation=image)
    buffer = shapes(row, 4, 1000)
    stored = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(buffer))
    images = sum(leaf.size for leaf in jax.tree.leaves(buffer) if leaf.dtype == jnp.uint8)
    assert images == 4 * 1016 * 1024
    # An action, a reward, a log-probability and a number of 4 bytes each, and two flags; the rest is per environment.
    assert stored == images + 4 * 1000 * 18 + 8 + 16
    assert stored / (4 * 1000 * 1024) < 1.04


def test_images_keep_their_bytes():
    frames = np.random.default_rng(0).integers(0, 256, (9, 2, 5, 4, 1)).astype(np.uint8)
    row = prototype()._replace(observation=frames[0, 0], next_observation=frames[0, 0])
    given = jax.tree.map(lambda x: np.zeros((8, 2, *x.shape), x.dtype), row)
    given = given._replace(observation=frames[:8], next_observation=frames[1:])
    rows, _, _ = jax.device_get(sample(add(init(row, 2, 8), given), jax.random.key(0), 16, 8))
    assert rows.observation.dtype == jnp.uint8
    for b in range(16):
        env = int((rows.observation[b, 0] != frames[0, 0]).any())
        np.testing.assert_array_equal(rows.observation[b], frames[:8, env])
        np.testing.assert_array_equal(rows.next_observation[b], frames[1:, env])


def test_extras_are_kept_where_the_prototype_has_them():
    given = Player(2).play(3)
    added = jax.eval_shape(sequences.add, shapes(prototype(), 2, 4), given)
    drawn = jax.eval_shape(lambda buffer: sequences.sample(buffer, jax.random.key(0), 2, 2)[0], added)
    assert added.rows.extras == drawn.extras == ()
    other = shapes(prototype({"log_prob": np.zeros((), np.float32)}), 2, 4)
    with pytest.raises(ValueError, match="log_prob"):
        jax.eval_shape(sequences.add, other, given)


def test_rows_of_another_kind_are_refused():
    buffer, given = shapes(prototype(), 2, 4), Player(2).play(3)
    for changes in ({"reward": given.reward.astype(np.int32)}, {"observation": given.observation[..., :1]}):
        with pytest.raises(AssertionError):
            jax.eval_shape(sequences.add, buffer, given._replace(**changes))
    with pytest.raises(AssertionError):
        jax.eval_shape(sequences.add, buffer, Player(1).play(3)._replace(extras=()))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [((0, 4), "num_envs must be"), ((2, 0), "length must"), ((2, 4, 0), "ends must be at least 1, got 0")],
)
def test_sizes_below_one_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        sequences.init(prototype(), *sizes)


def test_an_empty_buffer_has_no_valid_row():
    rows, is_first, valid = jax.device_get(sample(init(NUMBERED, 3, 7, 2), jax.random.key(0), 12, 3))
    assert not valid.any() and not rows.observation.any() and is_first[:, 0].all()


def test_a_frozen_seed_samples_what_it_had():
    player = Player(2, chance=0.3)
    buffer = init(NUMBERED, 2, 20)
    buffer = add(buffer, player.play(9))
    new = add(buffer, jax.tree.map(lambda x: np.full(x.shape, 1, x.dtype), player.play(3)))
    gated = jax.jit(sequences.Sequences.gate)
    jax.tree.map(np.testing.assert_array_equal, gated(new, True, buffer), new)
    frozen = gated(new, False, buffer)
    before, after = (jax.device_get(sample(x, jax.random.key(5), 64, 3)) for x in (buffer, frozen))
    ended = before[0].terminated | before[0].truncated
    # Only the newest row's successor, where no end keeps it, was where the next observation goes.
    newest = before[0].extras["step"] == np.asarray(buffer.next_number)[before[0].observation[..., 0].astype(int)] - 1
    jax.tree.map(
        np.testing.assert_array_equal, before[0]._replace(next_observation=()), after[0]._replace(next_observation=())
    )
    same = ~newest | ended
    np.testing.assert_array_equal(before[0].next_observation[same], after[0].next_observation[same])
    assert newest.any() and same.sum() > 100


def test_rows_after_an_interruption_do_not_continue_those_before():
    """Environment 0 is cut off in the middle of an episode; environment 1 has just ended one."""
    player = Player(2, chance=0.0)
    ends = np.zeros((3, 2), bool)
    ends[-1, 1] = True
    interrupted = jax.jit(lambda buffer: buffer.interrupted(2))
    empty = init(NUMBERED, 2, 20)
    buffer = interrupted(add(empty, player.play(3, ends)))
    # New episodes begin, with an observation of a number of its own.
    player.now[0] += 1
    row = player.lists[0][-1]
    player.lists[0][-1] = (*row[:3], True)
    buffer = add(buffer, player.play(3, np.zeros((3, 2), bool)))
    check_windows(buffer, player, 6, 3, jax.random.key(0), batch=64)
    rows, is_first, _ = jax.device_get(sample(buffer, jax.random.key(1), 64, 6))
    np.testing.assert_array_equal(is_first, np.tile([True, False, False, True, False, False], (64, 1)))
    assert not rows.terminated[rows.observation[:, 0, 0] == 0].any()
    # Where nothing has been added, nothing was cut off.
    jax.tree.map(np.testing.assert_array_equal, empty, interrupted(empty))


def test_vmap_over_seeds_equals_each_seed_alone():
    players = [Player(2, seed) for seed in range(2)]
    given = [player.play(9) for player in players]

    def one(rows, seed):
        buffer = sequences.add(sequences.init(prototype(), 2, 6), rows._replace(extras=()))
        return buffer, sequences.sample(buffer, jax.random.key(seed), 5, 3)

    seeds, alone = np.arange(2), jax.jit(one)
    together = jax.device_get(jax.jit(jax.vmap(one))(jax.tree.map(lambda *x: np.stack(x), *given), seeds))
    for i in range(2):
        jax.tree.map(lambda a, b, i=i: np.testing.assert_array_equal(a[i], b), together, alone(given[i], seeds[i]))


def test_sizes_are_kept_also_in_float64():
    with jax.enable_x64(True):
        row = jax.tree.map(lambda x: x.astype(float) if x.dtype == np.float32 else x, prototype())
        given = jax.tree.map(lambda x: np.zeros((3, 2, *x.shape), x.dtype), row)
        buffer = shapes(row, 2, 4)
        kinds = partial(jax.tree.map, lambda x: (x.shape, x.dtype))
        assert kinds(jax.eval_shape(sequences.add, buffer, given)) == kinds(buffer)
        assert buffer.rows.reward.dtype == jnp.float64 and buffer.position.dtype == jnp.int32


@pytest.mark.parametrize("seeds", [None, 2])
def test_add_then_sample_in_a_scan_copies_no_buffer(seeds):
    row = prototype()
    given = jax.tree.map(lambda x: np.zeros((2, 3, *x.shape), x.dtype), row)

    def body(rows, buffer, key):
        buffer = sequences.add(buffer, rows)
        batch, _, _ = sequences.sample(buffer, key, 8, 4)
        return buffer, batch.observation.sum() + batch.next_observation.sum() + batch.reward.sum()

    def loop(buffer, rows, key):
        return jax.lax.scan(partial(body, rows), buffer, jax.random.split(key, 10))

    buffer = jax.device_get(init(row, 3, 4096))
    if seeds:
        loop = jax.vmap(loop, in_axes=(0, None, None))
        buffer = jax.tree.map(lambda x: np.stack([x] * seeds), buffer)
    assert copies(loop, buffer, given, sizes=(4096, 4161)) == []
