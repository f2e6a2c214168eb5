"""The ring buffer against a Python deque, and its compiled form against copies."""

from collections import deque
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from in_order import in_order
from loops import copies
from scipy import stats

from jaxmbrl.core.types import Transition
from jaxmbrl.data import replay

PROTOTYPE = {"id": np.zeros((), np.int32), "x": np.zeros(2, np.float32), "flag": np.zeros((), bool)}
SIZES = (0, 1, 3, 8)  # numbers of rows in one add; few, so that few programs are compiled
PHYSICAL = 5
init = jax.jit(replay.init, static_argnums=1)
add = jax.jit(replay.add)
ordered = jax.jit(in_order)
resize = jax.jit(replay.resize)
sample = jax.jit(replay.sample, static_argnums=2)


def rows_of(ids):
    ids = np.asarray(ids, np.int32)
    return {"id": ids, "x": np.stack([ids, -ids], -1).reshape(-1, 2).astype(np.float32), "flag": ids % 3 == 0}


def held(buffer):
    """The ids held, oldest first, after checking that the leaves of each row belong together."""
    rows = jax.device_get(ordered(buffer))
    ids = rows["id"][: int(buffer.size)]
    np.testing.assert_array_equal(rows["x"][: len(ids)], np.stack([ids, -ids], -1))
    np.testing.assert_array_equal(rows["flag"][: len(ids)], ids % 3 == 0)
    return ids.tolist()


adds = st.sampled_from(SIZES).flatmap(lambda n: st.lists(st.booleans(), min_size=n, max_size=n))
resizes = st.integers(1, PHYSICAL)


@settings(max_examples=120, deadline=None)
@given(st.lists(adds | resizes, max_size=12))
def test_against_a_deque(steps):
    key = jax.random.key(0)
    buffer, expected, following = init(PROTOTYPE, PHYSICAL), deque(maxlen=PHYSICAL), 1
    for step in steps:
        if isinstance(step, int):
            buffer = resize(buffer, np.int32(step))
            expected = deque(expected, maxlen=step)
        else:
            ids = np.arange(following, following + len(step))
            following += len(step)
            buffer = add(buffer, rows_of(ids), np.asarray(step, bool))
            expected.extend(ids[np.asarray(step, bool)].tolist())
        assert held(buffer) == list(expected)
        assert (int(buffer.size), int(buffer.capacity)) == (len(expected), expected.maxlen)
        assert 0 <= int(buffer.position) < PHYSICAL
        if expected:
            assert set(np.asarray(sample(buffer, key, 64)["id"]).tolist()) <= set(expected)


@pytest.mark.parametrize("capacity", [3, 5])
def test_no_slot_is_written_twice(capacity):
    # which of two writes to one slot wins is up to the backend
    state = replay.Replay({"id": np.zeros(5, np.int32)}, np.int32(1), np.int32(3), np.int32(capacity))
    slots = np.asarray(jax.jit(replay.slots_to_write)(state, np.arange(12) % 4 != 1))
    # The last three or five of nine rows, from slot 1 on.
    assert slots[slots < 5].tolist() == [(1 + rank) % 5 for rank in range(9 - capacity, 9)]
    assert (slots >= 0).all() and (slots <= 5).all()


def test_add_without_a_mask_adds_all_and_resize_goes_up_to_the_arrays():
    buffer = add(init(PROTOTYPE, 4), rows_of([1, 2, 3]))
    assert held(buffer) == [1, 2, 3]
    assert held(add(buffer, rows_of([4, 5]))) == [2, 3, 4, 5]
    assert held(add(buffer, rows_of(range(10, 30)))) == [26, 27, 28, 29]
    assert int(resize(buffer, np.int32(100)).capacity) == 4
    assert int(resize(buffer, np.int32(-3)).capacity) == 1


def test_dtypes_and_shapes_are_kept_also_in_float64():
    def used(rows):
        buffer = replay.init(jax.tree.map(lambda leaf: leaf[0], rows), 4)
        added = replay.add(buffer, rows)
        return buffer, added, replay.sample(added, jax.random.key(0), 2), replay.resize(added, jnp.int32(2))

    for x64 in (False, True):
        with jax.enable_x64(x64):
            rows = {"id": np.ones(3, np.int32), "x": np.ones((3, 2, 3)), "flag": np.ones(3, bool)}
            buffer, added, drawn, resized = jax.eval_shape(used, rows)
            assert jax.tree.map(lambda x: (x.shape, x.dtype), added) == jax.tree.map(lambda x: (x.shape, x.dtype), buffer)
            kinds = {name: leaf.dtype for name, leaf in drawn.items()}
            assert kinds == {"id": jnp.int32, "x": jnp.float64 if x64 else jnp.float32, "flag": jnp.bool_}
            assert resized.capacity.dtype == jnp.int32


def test_capacity_must_be_positive():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        replay.init(PROTOTYPE, 0)


def test_ragged_rows_are_refused():
    rows = rows_of([1, 2, 3]) | {"x": np.zeros((2, 2), np.float32)}
    with pytest.raises(AssertionError):
        add(init(PROTOTYPE, 4), rows)
    # One number a row where there are two would fill both.
    with pytest.raises(AssertionError):
        add(init(PROTOTYPE, 4), rows | {"x": np.zeros((3, 1), np.float32)})


def test_a_row_of_another_dtype_is_refused():
    """A probability of termination, above all, is not a termination."""
    rows = rows_of([1, 2])
    with pytest.raises(AssertionError, match="type"):
        add(init(PROTOTYPE, 4), rows | {"flag": np.array([0.2, 0.0], np.float32)})


def test_resizing_and_growing_compile_once():
    traces = []

    @jax.jit
    def step(buffer, rows, mask, capacity):
        traces.append(None)
        return replay.resize(replay.add(buffer, rows, mask), capacity)

    buffer = init(PROTOTYPE, 6)
    expected = [[1, 2, 3], [4, 6], [8, 9], [12], [15]]
    for i, (capacity, ids) in enumerate(zip((6, 2, 4, 1, 6), expected, strict=True)):
        mask = np.array([True, i % 2 == 0, True])
        buffer = step(buffer, rows_of([3 * i + 1, 3 * i + 2, 3 * i + 3]), mask, np.int32(capacity))
        assert held(buffer) == ids
    assert len(traces) == 1


@pytest.mark.parametrize(("filled", "capacity"), [(7, 10), (25, 10), (25, 6)])
def test_samples_are_uniform_over_the_valid_rows(filled, capacity):
    buffer = add(init(PROTOTYPE, 10), rows_of(range(1, 26)), np.arange(25) < filled)
    buffer = resize(buffer, np.int32(capacity))
    ids = held(buffer)
    drawn = np.asarray(sample(buffer, jax.random.key(1), 20_000)["id"])
    assert set(drawn.tolist()) == set(ids)
    assert stats.chisquare([np.sum(drawn == i) for i in ids]).pvalue > 1e-3


@pytest.mark.parametrize(("newest", "ids"), [(3, [9, 10, 11]), (100, range(4, 12))])
def test_samples_of_the_newest_rows_alone(newest, ids):
    """Of eleven rows in a ring of eight, of which the oldest are overwritten."""
    buffer = add(init(PROTOTYPE, 8), rows_of(range(1, 12)))
    drawn = np.asarray(replay.sample_recent(buffer, jax.random.key(1), 4000, newest)["id"])
    assert sorted(set(drawn.tolist())) == list(ids)
    assert stats.chisquare([np.sum(drawn == i) for i in ids]).pvalue > 1e-3


def test_samples_are_drawn_independently():
    buffer = add(init(PROTOTYPE, 4), rows_of([0, 1, 2, 3]))
    drawn = np.asarray(sample(buffer, jax.random.key(2), 40_000)["id"]).reshape(-1, 2)
    pairs = np.bincount(drawn[:, 0] * 4 + drawn[:, 1], minlength=16)
    assert stats.chisquare(pairs).pvalue > 1e-3


def test_vmap_over_seeds_equals_each_seed_alone():
    masks = np.random.default_rng(0).random((3, 8)) < 0.5
    seeds, capacities = np.arange(3), np.array([5, 3, 2], np.int32)

    def one(mask, seed, capacity):
        rows = jax.tree.map(jnp.asarray, rows_of(range(1, 9)))
        buffer = replay.resize(replay.add(replay.init(PROTOTYPE, PHYSICAL), rows, mask), capacity)
        return buffer, replay.sample(buffer, jax.random.key(seed), 16)

    together, alone = jax.device_get(jax.jit(jax.vmap(one))(masks, seeds, capacities)), jax.jit(one)
    for i in range(3):
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_array_equal(a[i], b), together, alone(masks[i], seeds[i], capacities[i])
        )


# sequences


def transitions(env, time, ended):
    """Rows of `Transition` whose observation is (environment, time)."""
    env, time, ended = (np.asarray(x) for x in (env, time, ended))
    zeros = np.zeros(env.shape, np.float32)
    return Transition(
        observation=np.stack([env, time], -1).astype(np.float32),
        action=zeros[..., None],
        reward=zeros,
        next_observation=np.stack([env, time + 1], -1).astype(np.float32),
        terminated=ended & (time % 2 == 0),
        truncated=ended & (time % 2 == 1),
    )


MOST = 150
"""Rows in one add; as many for all numbers of environments and steps, so that one program is compiled."""


def filled(num_envs, steps, capacity, ends):
    """`steps` steps of `num_envs` environments, added in turn; `ends[env, time]` marks an episode's last step."""
    env, time = np.arange(MOST) % num_envs, np.arange(MOST) // num_envs
    rows = transitions(env, time, ends[env, np.minimum(time, ends.shape[1] - 1)])
    buffer = init(jax.tree.map(lambda x: x[0], rows), capacity)
    return add(buffer, rows, np.arange(MOST) < num_envs * steps)


sample_sequences = jax.jit(replay.sample_sequences, static_argnums=(2, 3, 4))


@pytest.mark.parametrize(
    ("num_envs", "steps", "capacity", "length"),
    [(1, 5, 20, 3), (1, 50, 20, 6), (2, 33, 20, 4), (3, 40, 20, 5), (4, 3, 20, 3), (3, 50, 20, 1), (5, 4, 20, 4)],
)
def test_windows_are_contiguous_in_one_environment(num_envs, steps, capacity, length):
    ends = np.random.default_rng(0).random((num_envs, steps)) < 0.25
    buffer = filled(num_envs, steps, capacity, ends)
    rows, start, valid = sample_sequences(buffer, jax.random.key(0), 2000, length, num_envs)
    env, time = np.moveaxis(np.asarray(rows.observation, int), -1, 0)
    assert np.asarray(valid).all()
    assert (env == env[:, :1]).all()
    assert (np.diff(time, axis=1) == 1).all()
    expected = np.ones((2000, length), bool)
    expected[:, 1:] = ends[env[:, 1:], time[:, 1:] - 1]
    np.testing.assert_array_equal(start, expected)
    # every window that is held whole is drawn equally often
    held_rows = [(t, e) for t in range(steps) for e in range(num_envs)][-capacity:]
    firsts = [row for row in held_rows if (row[0] + length - 1, row[1]) in held_rows]
    counts = [np.sum((time[:, 0] == t) & (env[:, 0] == e)) for t, e in firsts]
    assert sum(counts) == 2000
    if len(firsts) > 1:
        assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize(("steps", "length", "stride"), [(3, 5, 1), (2, 5, 2), (0, 3, 1)])
def test_windows_longer_than_what_is_held_are_marked(steps, length, stride):
    buffer = filled(stride, steps, 20, np.zeros((stride, max(steps, 1)), bool))
    rows, start, valid = sample_sequences(buffer, jax.random.key(0), 8, length, stride)
    expected = np.tile(np.arange(length) < steps, (8, 1))
    np.testing.assert_array_equal(valid, expected)
    np.testing.assert_array_equal(
        np.asarray(rows.observation)[..., 1][expected].reshape(8, steps), np.tile(range(steps), (8, 1))
    )
    assert np.asarray(start)[:, 0].all()


def test_short_windows_of_several_environments_come_from_all_of_them():
    buffer = filled(3, 2, 20, np.zeros((3, 2), bool))
    rows, _, valid = sample_sequences(buffer, jax.random.key(0), 300, 4, 3)
    env, time = np.moveaxis(np.asarray(rows.observation, int), -1, 0)
    valid = np.asarray(valid)
    assert set(env[:, 0]) == {0, 1, 2}
    np.testing.assert_array_equal(valid, np.tile([True, True, False, False], (300, 1)))
    assert (env[valid] == np.repeat(env[:, 0], 2)).all() and (time[:, :2] == [0, 1]).all()


@pytest.mark.parametrize("capacity", [20, 6])
def test_no_window_of_rows_crosses_an_interruption(capacity):
    """Environment 0 is cut off in the middle of an episode; environment 1 has just ended one. The ring may be full."""
    ends = np.zeros((2, 3), bool)
    ends[1, 2] = True
    before = filled(2, 3, capacity, ends)
    interrupted = jax.jit(lambda buffer: buffer.interrupted(2))
    buffer = interrupted(before)
    after = filled(2, 3, capacity, np.zeros((2, 3), bool))
    buffer = add(buffer, jax.tree.map(lambda x: x[: 4 if capacity == 20 else 2], jax.device_get(after.data)))
    rows, start, valid = sample_sequences(buffer, jax.random.key(0), 200, 2, 2)
    (env, time), start = np.moveaxis(np.asarray(rows.observation, int), -1, 0), np.asarray(start)
    assert np.asarray(valid).all() and (time[:, 0] == 2).any()
    np.testing.assert_array_equal(start[:, 1], time[:, 0] == 2)
    assert not np.asarray(rows.terminated)[env == 0].any(), "an interruption is no termination"
    # Where nothing has been added, nothing that is valid changes, and rows of other kinds have no ends.
    assert int(interrupted(filled(2, 0, capacity, ends)).size) == 0
    other = init(np.zeros(3, np.float32), 4)
    assert other.interrupted(2) is other


def test_sequences_after_a_resize():
    buffer = resize(filled(1, 30, 20, np.zeros((1, 30), bool)), np.int32(7))
    rows, _, valid = sample_sequences(buffer, jax.random.key(0), 500, 3, 1)
    time = np.asarray(rows.observation, int)[..., 1]
    assert np.asarray(valid).all() and (np.diff(time, axis=1) == 1).all()
    assert (time.min(), time.max()) == (23, 29)


# the compiled form


def scan_of(body, buffer, rows, key):
    return jax.lax.scan(partial(body, rows), buffer, jax.random.split(key, 10))


def add_then_sample(rows, buffer, key):
    buffer = replay.add(buffer, rows, jnp.arange(4) < 3)
    return buffer, replay.sample(buffer, key, 8)["x"].sum()


@pytest.mark.parametrize("seeds", [None, 2])
def test_add_then_sample_in_a_scan_copies_no_buffer(seeds):
    buffer, rows = jax.device_get(init(PROTOTYPE, 4096)), rows_of([1, 2, 3, 4])
    loop = partial(scan_of, add_then_sample)
    if seeds:
        loop = jax.vmap(loop, in_axes=(0, None, None))
        buffer = jax.tree.map(lambda x: np.stack([x] * seeds), buffer)
    assert copies(loop, buffer, rows) == []


def test_the_search_for_copies_finds_one():
    def body(rows, buffer, key):
        before = buffer
        buffer = replay.add(buffer, rows)
        return buffer, replay.sample(before, key, 8)["x"].sum() + replay.sample(buffer, key, 8)["x"].sum()

    assert copies(partial(scan_of, body), init(PROTOTYPE, 4096), rows_of([1, 2, 3, 4]))


def test_an_emptied_buffer_fills_anew():
    emptied = jax.jit(replay.empty)(add(init(PROTOTYPE, 4), rows_of([1, 2, 3])))
    assert int(emptied.size) == 0 and int(emptied.capacity) == 4
    again = add(emptied, rows_of([7, 8]))
    assert set(np.asarray(sample(again, jax.random.key(0), 50)["id"]).tolist()) == {7, 8}


def test_windows_begin_at_the_given_slots_and_end_with_the_newest_row():
    """Of two environments in turn, in a ring that has been overwritten; the rows of a window are two apart."""
    buffer = init(PROTOTYPE, PHYSICAL)
    for ids in ([1, 2, 3, 4], [5, 6, 7, 8]):
        buffer = add(buffer, rows_of(ids), np.ones(4, bool))
    stored = np.asarray(buffer.data["id"])
    assert sorted(stored) == [4, 5, 6, 7, 8]
    rows, valid = jax.jit(replay.windows, static_argnums=(2, 3))(buffer, np.arange(PHYSICAL), 3, 2)
    due = stored[:, None] + 2 * np.arange(3)
    np.testing.assert_array_equal(valid, due <= 8)
    np.testing.assert_array_equal(np.asarray(rows["id"])[valid], due[due <= 8])
    slots = np.asarray(jax.jit(replay.sample_slots, static_argnums=2)(buffer, jax.random.key(0), 500))
    assert np.bincount(slots, minlength=PHYSICAL).min() > 60
