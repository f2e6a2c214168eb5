"""Running normalisation: its statistics against NumPy, and the agent as the plain one on rows that are normalised by
hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl import envs
from jaxmbrl.agents import q_learning
from jaxmbrl.agents.actor_critic import sac
from jaxmbrl.agents.actor_critic.sac import SACConfig
from jaxmbrl.agents.normalization import NormalizationSettings, NormalizedState, inside, normalized
from jaxmbrl.agents.q_learning import QLearningConfig
from jaxmbrl.algorithms.model_free import dqn as dqn_method
from jaxmbrl.algorithms.model_free import sac as sac_method
from jaxmbrl.algorithms.model_free import td3 as td3_method
from jaxmbrl.core.config import UserError, from_dict
from jaxmbrl.core.spaces import Box, Discrete
from jaxmbrl.core.types import Clock, Transition, flatten, row_like

O, A, T, N = 3, 1, 8, 2  # noqa: E741
CONFIG = sac_method.Config(
    agent=SACConfig(hidden=(5,), discount=0.9),
    num_envs=N,
    batch_size=4,
    warmup_steps=0,
    replay_capacity=50,
    normalize_observations=True,
    normalize_rewards=True,
)


def transitions(seed, dtype=np.float64):
    """[T, N], far from mean 0 and deviation 1; some episodes end."""
    rng = np.random.default_rng(seed)
    found = Transition(
        observation=rng.normal([1.0, -50.0, 1e3], [2.0, 5.0, 30.0], (T, N, O)),
        action=rng.uniform(-1, 1, (T, N, A)),
        reward=rng.normal(-4.0, 20.0, (T, N)),
        next_observation=rng.normal([1.0, -50.0, 1e3], [2.0, 5.0, 30.0], (T, N, O)),
        terminated=rng.random((T, N)) < 0.2,
        truncated=rng.random((T, N)) < 0.2,
    )
    return jax.tree.map(lambda x: x if x.dtype == bool else x.astype(dtype), found)


def made(settings=CONFIG):
    return normalized(settings, N, Box((O,)), lambda normalizer: sac.make(settings.agent, O, A, normalizer))


def returns_by_hand(collected):
    """The discounted return so far after each step of each environment, in turn of `collected`."""
    so_far, found = np.zeros(N), []
    for rows in collected:
        for t in range(T):
            so_far = 0.9 * so_far + rows.reward[t]
            found += so_far.tolist()
            so_far = np.where(rows.terminated[t] | rows.truncated[t], 0.0, so_far)
    return np.array(found)


def test_statistics_and_update_are_those_by_hand(x64):
    collected = [transitions(seed) for seed in range(3)]
    assert all((rows.terminated | rows.truncated).any() for rows in collected)
    agent, earned, seen = made()
    batch = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), transitions(9))
    observed = np.concatenate([rows.observation.reshape(-1, O) for rows in collected])
    mean, std, scale = observed.mean(axis=0), observed.std(axis=0), returns_by_hand(collected).std()

    def by_hand(observation):
        return np.clip((observation - mean) / std, -10, 10)

    rows = batch._replace(
        observation=by_hand(batch.observation),
        next_observation=by_hand(batch.next_observation),
        reward=batch.reward / scale,
    )
    plain = sac.make(CONFIG.agent, O, A)

    @jax.jit
    def run(collected, batch, rows):
        state = agent.init(jax.random.key(0), {})
        for part in collected:
            state = seen(earned(state, part), part)
        key, one = jax.random.key(1), batch.observation[0]
        bonus = agent.policy_with_entropy(state).act((), batch.observation, key)[1]
        values = agent.action_value(state, batch.observation, batch.action, key), bonus
        bonus = plain.policy_with_entropy(state.agent).act((), rows.observation, key)[1]
        expected = plain.action_value(state.agent, rows.observation, rows.action, key), bonus
        own, other = agent.policy(state, False), plain.policy(state.agent, False)
        acted = own.act((), one, key)[0], other.act((), rows.observation[0], key)[0]
        return state, agent.update(state, batch, key), plain.update(state.agent, rows, key), values, expected, acted

    state, own, due, values, expected, acted = jax.device_get(run(collected, batch, rows))
    np.testing.assert_allclose(state.observations.normalizer.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(state.observations.normalizer.std, std, rtol=1e-8)
    np.testing.assert_allclose(state.returns.normalizer.std, [scale], rtol=1e-9)
    # The variance has a floor of 1e-8.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8), own[0].agent, due[0])
    np.testing.assert_allclose(own[2], scale * due[2], rtol=1e-7)
    np.testing.assert_allclose(values, scale * np.asarray(expected), rtol=1e-7)
    np.testing.assert_allclose(*acted, rtol=1e-7)
    jax.tree.map(np.testing.assert_array_equal, own[0]._replace(agent=()), state._replace(agent=()))


def test_an_update_does_not_depend_on_the_newest_observations_statistics():
    """The first update, before there are statistics, is that of the plain method, bit for bit; the statistics follow it."""
    settings = dataclasses.replace(CONFIG, normalize_rewards=False)
    plain = dataclasses.replace(settings, normalize_observations=False)
    task = envs.make("pendulum")
    both = [sac_method.make(config, task) for config in (settings, plain)]
    rows = jax.tree.map(lambda x: x[:1], transitions(0, np.float32))

    @jax.jit
    def learned(rows):
        states = [method.init(jax.random.key(0), {}, None) for method in both]
        return [method.learn(Clock(jnp.asarray(2, jnp.int32)), s, rows)[0] for method, s in zip(both, states, strict=True)]

    found, expected = jax.device_get(learned(rows))
    assert isinstance(found.agent, NormalizedState) and not isinstance(expected.agent, NormalizedState)
    jax.tree.map(np.testing.assert_array_equal, found.agent.agent, expected.agent)
    jax.tree.map(np.testing.assert_array_equal, found.experience, expected.experience)
    np.testing.assert_allclose(found.agent.observations.normalizer.mean, rows.observation[0].mean(axis=0), rtol=1e-6)
    np.testing.assert_array_equal(found.experience.own.data.observation[:N], flatten(rows).observation)


@pytest.mark.parametrize("method", [sac_method, td3_method, dqn_method], ids=["sac", "td3", "dqn"])
def test_the_first_reward_of_a_task_that_paid_nothing_is_measured_before_it_is_learned_from(method):
    """After 31 rows of 0 a reward of 1 in the last of 32 is divided by the deviation of these returns, sqrt(31) / 32, and
    not by that of zeros, 1e-4."""
    task = envs.make("CartPole-v1" if method is dqn_method else "pendulum")
    sizes = {"agent": {"hidden": (5,)}, "batch_size": 4, "warmup_steps": 0, "replay_capacity": 50}
    made = method.make(from_dict(method.Config, sizes | {"normalize_rewards": True}), task)
    blank = jax.tree.map(lambda x: jnp.zeros((32, 1, *x.shape), x.dtype), row_like(task))
    rows = blank._replace(reward=blank.reward.at[-1].set(1.0), terminated=jnp.ones((32, 1), bool))

    @jax.jit
    def learned(rows):
        state = made.init(jax.random.key(0), {}, None)
        return made.learn(Clock(jnp.asarray(32, jnp.int32)), state, rows)

    state, found = jax.device_get(learned(rows))
    np.testing.assert_allclose(state.agent.returns.normalizer.std, [np.sqrt(31) / 32], rtol=1e-5)
    assert found["agent/critic_loss"].total < 100 * found["agent/critic_loss"].weight


def test_the_target_network_inside_is_copied():
    config, space = QLearningConfig(hidden=(3,)), Discrete(4)
    settings = NormalizationSettings(normalize_observations=True)
    agent, _, _ = normalized(settings, 1, space, lambda normalizer: q_learning.make(config, space, 2, normalizer))

    @jax.jit
    def copied(key):
        state = agent.init(key, {})
        other = state.critic._replace(target=jax.tree.map(jnp.zeros_like, state.critic.target))
        return inside(q_learning.copy_target, state._replace(agent=state.agent._replace(critic=other)))

    state = jax.device_get(copied(jax.random.key(0)))
    jax.tree.map(np.testing.assert_array_equal, state.critic.target, state.critic.params)
    assert state.observations.normalizer.mean.shape == (4,)


def test_images_are_not_normalised():
    with pytest.raises(UserError, match="normalize_observations needs vectors"):
        normalized(CONFIG, N, Box((8, 8, 3), 0, 255, "uint8"), lambda normalizer: sac.make(CONFIG.agent, O, A, normalizer))
