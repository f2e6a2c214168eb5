"""Batches of collected rows and demonstrations: by numbers computed by hand, and equal to plain replay where due."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl.core.types import Transition
from jaxmbrl.data import experience, replay
from jaxmbrl.data.experience import Experience, ReplayConfig

PRIORITIZED = ReplayConfig(kind="prioritized", alpha=0.6, epsilon=1e-12)
CAPACITY, BATCH = 7, 8


def rows(start, stop, *, demonstration=False, ended=()):
    """One environment's rows, whose observation is their number, negative for demonstrations."""
    number = np.arange(start, stop, dtype=np.float32) * (-1 if demonstration else 1)
    after = number + (-1 if demonstration else 1)
    return Transition(
        observation=number[:, None],
        action=np.zeros(stop - start, np.int32),
        reward=number,
        next_observation=after[:, None],
        terminated=np.isin(number, ended),
        truncated=np.zeros(stop - start, bool),
    )


ROW = jax.tree.map(lambda x: x[0], rows(0, 1))
init = jax.jit(lambda config, demonstrations: experience.init(ROW, CAPACITY, config, demonstrations), static_argnums=0)
add, settle = jax.jit(experience.add), jax.jit(experience.settle)


def filled(config, demonstrations=None, number=5):
    return add(init(config, demonstrations), rows(1, 1 + number))


@functools.cache
def compiled(share):
    @jax.jit
    def drawn(held, key, beta):
        batch = experience.sample(held, key, BATCH, share, beta)
        return batch, experience.rows_at(held, batch, share=share), experience.rows_at(held, batch, 3, 0.5, 1, share)

    return drawn


def with_priorities(held, own, demonstrations):
    """The experience with the priorities of its first rows."""
    batch = experience.Batch(jnp.array([0, 1, 0, 1]), None, jnp.array([False, False, True, True]))
    return settle(held, batch, jnp.asarray([*own, *demonstrations]))


def test_together_they_are_sampled_as_from_one_buffer():
    """Four priorities, two in each buffer: probabilities to 0.5 / 64 by stratification, and the weights."""
    held = with_priorities(filled(PRIORITIZED, rows(1, 3, demonstration=True), 2), [0.5, 1.0], [2.0, 0.1])

    @jax.jit
    def draw(held, key):
        batch = experience.sample(held, key, 256, None, 0.4)
        return batch, experience.rows_at(held, batch, share=None)

    batch, taken = jax.device_get(draw(held, jax.random.key(0)))
    which = 2 * batch.is_demonstration + batch.slots
    share = np.bincount(which, minlength=4) / 256
    np.testing.assert_allclose(share, [0.192536, 0.291829, 0.442331, 0.073304], atol=2 / 256)
    np.testing.assert_allclose(batch.weight, np.array([0.67959, 0.57544, 0.487251, 1])[which], rtol=1e-5)
    np.testing.assert_array_equal(taken.reward, np.array([1, 2, -1, -2])[which])


def test_demonstrations_have_their_share_and_are_never_overwritten():
    held = filled(ReplayConfig(), rows(1, 4, demonstration=True))
    for start in range(6, 60, 5):
        held = add(held, rows(start, start + 5))
    batch, one, _ = jax.device_get(compiled(0.4)(held, jax.random.key(0), 1.0))
    assert batch.weight is None
    # 0.4 of 8 rows, rounded down.
    assert batch.is_demonstration.tolist() == [False] * 5 + [True] * 3
    assert (one.reward[:5] >= 54).all() and (one.reward[5:] < 0).all()
    seen = {float(x) for seed in range(9) for x in compiled(0.4)(held, jax.random.key(seed), 1.0)[1].reward[5:]}
    assert seen == {-1.0, -2.0, -3.0}


@pytest.mark.parametrize(
    ("config", "share", "demonstrated"),
    [
        (ReplayConfig(), 0.5, False),
        (ReplayConfig(), 0.0, True),
        (ReplayConfig(kind="prioritized", alpha=0.0), 0.5, False),
    ],
    ids=["no demonstrations", "share 0", "alpha 0"],
)
def test_these_are_plain_replay_bit_for_bit(config, share, demonstrated):
    held = filled(config, rows(1, 4, demonstration=True) if demonstrated else None)
    batch, one, _ = compiled(share)(held, jax.random.key(3), 0.4)
    assert batch.weight is None and isinstance(held.own, replay.Replay)
    expected = jax.jit(replay.sample, static_argnums=2)(held.own, jax.random.key(3), BATCH)
    jax.tree.map(np.testing.assert_array_equal, one, expected)
    before = held
    jax.tree.map(np.testing.assert_array_equal, settle(held, batch, jnp.ones(BATCH)), before)


def test_the_bonus_is_that_of_demonstrations_from_the_start():
    """Rows without an error have the priority 1, demonstrations 1 + the bonus; then |error| + epsilon, and the bonus."""
    config = ReplayConfig(kind="prioritized", alpha=1.0, epsilon=0.25, demonstration_bonus=0.5)
    held = filled(config, rows(1, 4, demonstration=True), 3)

    def leaves(buffer):
        return np.asarray(buffer.tree)[len(buffer.tree) // 2 :].tolist()

    assert (leaves(held.own), leaves(held.demonstrations)) == ([1, 1, 1, *[0] * 5], [1.5, 1.5, 1.5, 0])
    held = with_priorities(held, [3.0, 4.0], [1.0, 2.0])
    assert (leaves(held.own), leaves(held.demonstrations)) == ([3.25, 4.25, 1, *[0] * 5], [1.75, 2.75, 1.5, 0])
    # The next collected row has the largest priority of collected rows.
    assert leaves(add(held, rows(9, 10)).own)[3] == 4.25


def test_windows_of_demonstrations_end_where_the_rows_do_not_continue():
    """Rewards -1, -2 | -11, -12 (terminated), of two episodes of which the first has no mark of its end; discount 0.5."""
    parts = rows(1, 3, demonstration=True), rows(11, 13, demonstration=True, ended=[-12])
    held = filled(ReplayConfig(), jax.tree.map(lambda *x: np.concatenate(x), *parts))
    batch = experience.Batch(jnp.array([0, 1, 2, 3, 0, 1, 2, 3]), None, jnp.arange(8) >= 4)
    found = jax.device_get(jax.jit(lambda held, batch: experience.rows_at(held, batch, 3, 0.5, 1, 0.5))(held, batch))
    # The rows 1, 2, ... 5 were collected: the newest ends the windows of the last one here.
    np.testing.assert_allclose(found.reward[:4], [1 + 1 + 0.75, 2 + 1.5 + 1, 3 + 2 + 1.25, 4 + 2.5])
    np.testing.assert_allclose(found.reward[4:], [-1 - 1, -2, -11 - 6, -12])
    np.testing.assert_allclose(found.discount, [0.125, 0.125, 0.125, 0.25, 0.25, 0.5, 0.25, 0.5])
    assert found.terminated.tolist() == [False] * 6 + [True] * 2
    assert found.next_observation[:, 0].tolist() == [4, 5, 6, 6, -3, -3, -13, -13]


def test_one_step_is_the_row_itself_and_priorities_pass_without_rows():
    held = filled(PRIORITIZED, rows(1, 4, demonstration=True))
    batch, one, three = jax.device_get(compiled(0.5)(held, jax.random.key(1), 1.0))
    np.testing.assert_array_equal(one.observation, three.observation)
    np.testing.assert_array_equal(batch.weight, 1.0)
    held = settle(held, batch, jnp.arange(8.0))
    again = experience.with_rows(held, experience.without_rows(held))
    jax.tree.map(np.testing.assert_array_equal, again, held)
    assert not any(np.shape(x) == (CAPACITY, 1) for x in jax.tree.leaves(experience.without_rows(held)))
    assert isinstance(again, Experience)


def test_without_a_share_demonstrations_need_priorities():
    with pytest.raises(ValueError, match="need priorities"):
        experience.sample(filled(ReplayConfig(), rows(1, 4, demonstration=True)), jax.random.key(0), 4, None)


ENVS = 2
IMAGE_ROW = Transition(
    np.zeros((2, 1, 1), np.uint8), np.int32(0), np.float32(0), np.zeros((2, 1, 1), np.uint8), np.False_, np.False_
)


def episodes(steps):
    """Rows [steps, ENVS] of images that are their number and environment; episodes end after 13 steps, in turn by a
    termination and by a time limit, and the next one begins with another image."""
    t, env = np.meshgrid(np.arange(steps), np.arange(ENVS), indexing="ij")
    ended = t % 13 == 12

    def image(number):
        return np.stack([number, env], axis=-1).astype(np.uint8)[..., None, None]

    return Transition(
        observation=image(t),
        action=t.astype(np.int32),
        reward=t.astype(np.float32),
        next_observation=image(np.where(ended, 200, t + 1)),
        terminated=ended & (t % 2 == 0),
        truncated=ended & (t % 2 == 1),
    )


def test_images_stored_once_give_the_same_batches():
    """With the same keys, the rows of one step and of three that a buffer of whole rows gives, while it fills and after the
    ring began anew. The buffer takes half the bytes."""
    once = experience.init(IMAGE_ROW, ENVS * 12, ReplayConfig(), num_envs=ENVS)
    whole = Experience(replay.init(IMAGE_ROW, ENVS * 12), None)

    @jax.jit
    def both(once, whole, key):
        batches = [experience.sample(held, key, BATCH) for held in (once, whole)]
        pairs = zip((once, whole), batches, strict=True)
        return [(batch, [experience.rows_at(held, batch, n, 0.5, ENVS) for n in (1, 3)]) for held, batch in pairs]

    ends = 0
    step, played = jax.jit(lambda *held, rows: [experience.add(one, rows) for one in held]), episodes(40)
    for t in range(0, 40, 2):
        rows = jax.tree.map(lambda x, t=t: x[t : t + 2].reshape(2 * ENVS, *x.shape[2:]), played)
        once, whole = step(once, whole, rows=rows)
        found, expected = jax.device_get(both(once, whole, jax.random.key(t)))
        jax.tree.map(np.testing.assert_array_equal, found, expected)
        ends += np.sum(found[1][1].next_observation == 200)
        assert int(once.own.size) * ENVS == int(whole.own.size) == min(t + 2, 12) * ENVS
    assert ends > 0, "no window ended with an episode"

    def stored(capacity, config):
        row = IMAGE_ROW._replace(**dict.fromkeys(("observation", "next_observation"), np.zeros((64, 64, 3), np.uint8)))
        shapes = jax.eval_shape(lambda: experience.init(row, capacity, config))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes.own))

    # Of 100,000 images with 64 x 64 x 3 bytes, once and a 64th, and twice where they are sampled by priority.
    assert 1.248e9 < stored(100_000, ReplayConfig()) < 1.251e9
    assert 2.458e9 < stored(100_000, PRIORITIZED) < 2.463e9


def test_vectors_and_other_images_are_stored_as_rows():
    for observation in (np.zeros(3, np.float32), np.int32(0), np.zeros((2, 2), np.uint8), np.zeros((2, 2, 1), np.float32)):
        row = IMAGE_ROW._replace(observation=observation, next_observation=observation)
        assert isinstance(jax.eval_shape(lambda row=row: experience.init(row, 8)).own, replay.Replay)


def test_seams_are_marked():
    """Recorded images of which the third does not follow the second."""
    recorded = jax.tree.map(lambda x: jnp.asarray(x[:, 0]), episodes(5))
    recorded = jax.tree.map(lambda x: jnp.delete(x, 2, axis=0), recorded)
    assert experience.with_seams(recorded).truncated.tolist() == [False, True, False, False]


def marked(rows):
    return experience.with_seams(jax.tree.map(jnp.asarray, rows)).truncated.tolist()


def test_seams_of_vectors_are_marked_and_rounding_is_none():
    """The second row's successor differs from the third row by rounding, and the fourth row begins elsewhere."""
    seen = np.cumsum(np.random.default_rng(0).normal(size=(8, 3)), axis=0).astype(np.float32) + 100
    rows = jax.tree.map(lambda x: np.zeros(7, np.asarray(x).dtype), IMAGE_ROW)
    rows = rows._replace(observation=seen[:-1], next_observation=seen[1:].copy(), truncated=np.zeros(7, bool))
    rows.next_observation[1] += 1e-5
    rows.next_observation[2, 1] += 0.3
    assert marked(rows._replace(terminated=np.arange(7) == 4)) == [False, False, True, False, False, False, False]
    rows.next_observation[5] = np.nan
    assert marked(rows) == [False, False, True, False, False, True, False]
