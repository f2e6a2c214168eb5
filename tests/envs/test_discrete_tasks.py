"""Tasks of few actions, step by step against Gymnasium in float64: CartPole-v1, MountainCar-v0, Acrobot-v1."""

import functools

import gymnasium
import jax
import numpy as np
import pytest

from jaxmbrl import envs
from jaxmbrl.core.spaces import Box, Discrete

STEPS = 1000
RANDOM = None


def balance(observation):
    """Keeps the pole of CartPole-v1 upright."""
    return int(observation @ [1.0, 1.5, 15.0, 3.0] > 0)


def rock(observation):
    """Drives MountainCar-v0 in the direction in which it moves, which reaches the goal."""
    return 2 if observation[1] >= 0 else 0


def pump(observation):
    """Turns the second link of Acrobot-v1 in the direction in which the first one swings, which lifts the tip."""
    return 0 if observation[4] > 0 else 2


CASES = [
    ("CartPole-v1", RANDOM),
    ("CartPole-v1", balance),
    ("MountainCar-v0", RANDOM),
    ("MountainCar-v0", rock),
    ("Acrobot-v1", RANDOM),
    ("Acrobot-v1", pump),
]


@functools.cache
def played(name, policy):
    """Gymnasium's steps, with resets at ends: (states, actions, next states, rewards, terminated, lengths of episodes)."""
    env = gymnasium.make(name).unwrapped
    rng = np.random.default_rng(0)
    rows, lengths = [], [0]
    env.reset(seed=0)
    for i in range(STEPS):
        # Gymnasium shows float32, and some of its first states are float32; the state itself is stepped in float64.
        before = np.array(env.state, np.float64)
        env.state = before.copy() if name == "Acrobot-v1" else tuple(before)
        action = int(rng.integers(env.action_space.n)) if policy is RANDOM else policy(observed(name, before))
        _, reward, terminated, _, _ = env.step(action)
        rows.append((before, action, np.array(env.state, np.float64), reward, terminated))
        lengths[-1] += 1
        if terminated or lengths[-1] == gymnasium.spec(name).max_episode_steps:
            env.reset(seed=i)
            lengths.append(0)
    return *(np.array(column) for column in zip(*rows, strict=True)), lengths


def observed(name, state):
    if name != "Acrobot-v1":
        return state
    angle, bend = state[..., 0], state[..., 1]
    return np.stack([np.cos(angle), np.sin(angle), np.cos(bend), np.sin(bend), state[..., 2], state[..., 3]], axis=-1)


@functools.cache
def stepper(name):
    task = envs.make(name)

    def step(state, action):
        carry = task.world.start(task.env.state_at(state), jax.random.key(0))
        (after, _), row = task.world.step(carry, action, jax.random.key(1))
        known = (task.reward(row.observation, action, row.next_observation), task.terminated(row.next_observation))
        return after.pipeline_state, row, known

    return jax.jit(jax.vmap(step))


@pytest.mark.parametrize(("name", "policy"), CASES)
def test_steps_are_gymnasiums(x64, name, policy):
    states, actions, after, rewards, terminated, _ = played(name, policy)
    ours, row, known = jax.device_get(stepper(name)(states, actions.astype(np.int32)))
    np.testing.assert_allclose(ours, after, rtol=0, atol=1e-10)
    np.testing.assert_allclose(row.observation, observed(name, states), rtol=0, atol=1e-12)
    np.testing.assert_allclose(row.next_observation, observed(name, after), rtol=0, atol=1e-10)
    np.testing.assert_array_equal(row.reward, rewards)
    np.testing.assert_array_equal(row.terminated, terminated)
    np.testing.assert_array_equal(known[0], rewards)
    np.testing.assert_array_equal(known[1], terminated)
    assert ours.dtype == row.reward.dtype == np.float64 and row.action.dtype == np.int32


@pytest.mark.parametrize(("name", "policy"), CASES)
def test_the_steps_compared_end_as_they_should(name, policy):
    """Random cars and links never arrive, random poles fall; the controllers do better."""
    _, actions, *_, terminated, lengths = played(name, policy)
    if policy is RANDOM:
        assert set(actions) == set(range(gymnasium.make(name).action_space.n))
    if (name, policy) in (("CartPole-v1", RANDOM), ("MountainCar-v0", rock), ("Acrobot-v1", pump)):
        assert terminated.sum() >= 3
    elif (name, policy) == ("CartPole-v1", balance):
        assert lengths[0] == 500
    else:
        assert not terminated.any()


@pytest.mark.parametrize("name", ["CartPole-v1", "MountainCar-v0", "Acrobot-v1"])
def test_an_episode_stays_with_gymnasium(x64, name):
    """40 steps from one start, without setting the state in between."""
    theirs, task = gymnasium.make(name).unwrapped, envs.make(name)
    theirs.reset(seed=1)
    start = np.array(theirs.state, np.float64)
    theirs.state = start.copy() if name == "Acrobot-v1" else tuple(start)
    actions = np.random.default_rng(1).integers(task.action.n, size=40).astype(np.int32)
    due = []
    for action in actions:
        theirs.step(int(action))
        due.append(np.array(theirs.state))
        theirs.steps_beyond_terminated = None

    def play(start, actions):
        def step(state, action):
            after = task.env.step(state, action)
            return after, after.pipeline_state

        return jax.lax.scan(step, task.env.state_at(start), actions)[1]

    np.testing.assert_allclose(jax.jit(play)(start, actions), due, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["CartPole-v1", "MountainCar-v0", "Acrobot-v1"])
def test_spaces_and_lengths_are_gymnasiums(name):
    theirs, task = gymnasium.make(name), envs.make(name)
    assert task.episode_length == theirs.spec.max_episode_steps
    assert task.observation == Box(theirs.observation_space.shape)
    assert task.action == Discrete(theirs.action_space.n)
    assert task.name == name and not hasattr(task.env, "actuator_range")


@pytest.mark.parametrize("name", ["CartPole-v1", "MountainCar-v0", "Acrobot-v1"])
def test_resets_are_in_gymnasiums_range(name):
    """Uniform numbers in the range of Gymnasium's resets."""
    env = envs.make(name).env
    ours = np.asarray(jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), 2000)).pipeline_state)
    theirs = gymnasium.make(name).unwrapped
    seen = np.array([(theirs.reset(seed=i), theirs.state)[1] for i in range(500)], np.float64)
    spread = np.ptp(seen, axis=0)
    np.testing.assert_allclose(ours.min(axis=0), seen.min(axis=0), atol=0.02 * max(spread))
    np.testing.assert_allclose(ours.max(axis=0), seen.max(axis=0), atol=0.02 * max(spread))
    np.testing.assert_allclose(ours.std(axis=0), spread / np.sqrt(12), rtol=0.05)
