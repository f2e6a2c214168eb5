"""Rows of n steps: the formula by hand, and windows from the ring buffer against the history of each environment."""

import functools

import jax
import numpy as np
import pytest

from jaxmbrl.core.types import Transition
from jaxmbrl.data import n_step, replay

DISCOUNT = 0.9


@jax.jit
def ends(rewards, ended):
    return jax.vmap(n_step.until_end, in_axes=(0, 0, None))(rewards, ended, DISCOUNT)


def test_targets_by_hand():
    """Rewards 1, 2, 3 and the value 10: 1 + 1.8 + 2.43 + 7.29; terminated after 2: 1 + 1.8; truncated: + 8.1."""
    rewards = np.float32([[1, 2, 3]] * 3)
    ended = np.array([[False, False, False], [False, True, False], [False, True, False]])
    reward, steps, power = jax.device_get(ends(rewards, ended))
    assert steps.tolist() == [3, 2, 2]
    terminated = np.array([False, True, False])
    np.testing.assert_allclose(reward + power * np.where(terminated, 0.0, 10.0), [12.52, 2.8, 10.9], rtol=1e-6)


def test_what_follows_an_end_is_ignored():
    rewards = np.float32([[1, np.nan, np.inf], [1, 2, np.nan], [4, 5, 6]])
    ended = np.array([[True, True, False], [False, True, True], [True, False, True]])
    reward, steps, power = jax.device_get(ends(rewards, ended))
    np.testing.assert_allclose(reward, [1, 2.8, 4], rtol=1e-6)
    assert steps.tolist() == [1, 2, 1]
    np.testing.assert_allclose(power, [0.9, 0.81, 0.9], rtol=1e-6)


ENVS, CAPACITY, N = 2, 13, 3


@functools.cache
def compiled():
    """(add, begun_at for N steps of ENVS environments, begun_at for one step)."""
    return (
        jax.jit(replay.add),
        jax.jit(lambda buffer, slot: n_step.begun_at(buffer, slot, N, DISCOUNT, ENVS)),
        jax.jit(
            lambda buffer, key: (
                n_step.begun_at(buffer, replay.sample_slots(buffer, key, 32), 1, DISCOUNT, ENVS),
                replay.sample(buffer, key, 32),
            )
        ),
    )


def history(steps, seed=0):
    """Transitions [steps, ENVS] whose observations are (environment, step); episodes end at random."""
    random = np.random.default_rng(seed)
    t, env = np.meshgrid(np.arange(steps), np.arange(ENVS), indexing="ij")
    terminated = random.random((steps, ENVS)) < 0.2
    return Transition(
        observation=np.stack([env, t], -1).astype(np.float32),
        action=random.integers(0, 4, (steps, ENVS)).astype(np.int32),
        reward=random.normal(size=(steps, ENVS)).astype(np.float32),
        # Not the next observation: the true successor of the row, wherever the window ends.
        next_observation=np.stack([env, t + 0.5], -1).astype(np.float32),
        terminated=terminated,
        truncated=(random.random((steps, ENVS)) < 0.2) & ~terminated,
    )


def row_of():
    return jax.tree.map(lambda x: x[0, 0], history(1))


def filled(rows, interrupted_at=None):
    """The buffer after one call for each step, in which the oldest rows were overwritten."""
    buffer = replay.init(row_of(), CAPACITY)
    for t in range(len(rows.reward)):
        if t == interrupted_at:
            buffer = buffer.interrupted(ENVS)
        buffer = compiled()[0](buffer, jax.tree.map(lambda x, t=t: x[t], rows))
    return buffer


def expected_row(rows, env, t, cut=None):
    """The row of up to N steps from step `t`, in float64; no window goes on from step `cut - 1` to `cut`."""
    total = 0.0
    for i in range(N):
        total += 0.9**i * float(rows.reward[t + i, env])
        ended = rows.terminated[t + i, env] or rows.truncated[t + i, env]
        if ended or t + i + 1 in (len(rows.reward), cut):
            break
    return total, rows.next_observation[t + i, env], bool(rows.terminated[t + i, env]), 0.9 ** (i + 1)


@pytest.mark.parametrize(("steps", "seed", "cut"), [(5, 0, None), (20, 1, None), (23, 2, None), (20, 3, 17), (20, 4, 18)])
def test_windows_cross_no_seam(steps, seed, cut):
    """Of episodes, environments, the ring, the newest row, or a run that was resumed with new episodes."""
    rows = history(steps, seed)
    found = jax.device_get(compiled()[1](filled(rows, cut), np.arange(CAPACITY)))
    size, position = min(ENVS * steps, CAPACITY), ENVS * steps % CAPACITY
    lengths = set()
    for age in range(size):
        number = ENVS * steps - size + age
        slot, t, env = (position - size + age) % CAPACITY, number // ENVS, number % ENVS
        reward, successor, terminated, power = expected_row(rows, env, t, cut)
        np.testing.assert_array_equal(found.observation[slot], [env, t])
        assert found.action[slot] == rows.action[t, env]
        np.testing.assert_allclose(found.reward[slot], reward, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(found.next_observation[slot], successor)
        assert found.terminated[slot] == terminated
        np.testing.assert_allclose(found.discount[slot], power, rtol=1e-6)
        lengths.add(round(float(np.log(power) / np.log(0.9))))
    assert lengths == {1, 2, 3}, "windows of every length occur"


def test_one_step_is_the_row_itself():
    """Exactly, and with the same key the same rows."""
    rows, drawn = jax.device_get(compiled()[2](filled(history(20)), jax.random.key(3)))
    np.testing.assert_array_equal(rows.discount, np.full(32, np.float32(DISCOUNT)))
    assert len(np.unique(drawn.observation[:, 1])) > 3
    for field in Transition._fields:
        jax.tree.map(np.testing.assert_array_equal, getattr(rows, field), getattr(drawn, field))
