"""DHMBPO's agent: its networks against a transcription, its scale, and how the scale follows what is earned."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from layers_in_numpy import transcribed

from jaxmbrl.agents.actor_critic import scaled_sac
from jaxmbrl.agents.actor_critic.scaled_sac import ScaledSACConfig
from jaxmbrl.core.config import UserError, check
from jaxmbrl.core.types import Transition

O, A, B = 3, 2, 16  # noqa: E741
TINY = ScaledSACConfig(hidden=(7, 6), critics=3, critic_subset=3, dropout=0.0, discount=0.9, polyak=0.25)
KEY = jax.random.key(3)


@jax.jit
def initial():
    return scaled_sac.make(TINY, O, A).init(jax.random.key(0), {})


def initial_state():
    return jax.device_get(initial())


@functools.cache
def agent_and_state(config=TINY):
    """The agent, with its functions compiled, and a state whose last layers are not zero."""
    agent = scaled_sac.make(config, O, A)
    state = initial_state()
    network, rng = state.critic.params["network"]["params"], np.random.default_rng(9)
    last = f"Dense_{len(config.hidden)}"
    moved = jax.tree.map(lambda x: (x + 0.3 * rng.normal(size=x.shape)).astype(x.dtype), network[last])
    params = {"network": {"params": {**network, last: moved}}, "bounds": np.tile(np.array([-2.0, 6.0]), (3, 1))}
    target = jax.tree.map(lambda x: x * 1.1, params) | {"bounds": params["bounds"]}
    state = state._replace(critic=state.critic._replace(params=params, target=target))
    return agent._replace(
        target_value=jax.jit(agent.target_value),
        update_critic=jax.jit(agent.update_critic),
        update=jax.jit(agent.update),
    ), state


def rows(seed=0):
    rng, none = np.random.default_rng(seed), np.zeros(B, bool)
    observation, action = rng.normal(size=(B, O)), rng.uniform(-1, 1, (B, A))
    return Transition(observation, action, rng.normal(size=B), rng.normal(size=(B, O)), none, none)


q = jax.jit(scaled_sac.functions(TINY, A).q)
update_bounds = jax.jit(scaled_sac.update_bounds, static_argnums=0)


def critics_of(params, pair):
    return np.stack([transcribed(jax.tree.map(lambda x, i=i: x[i], params["network"]), pair, True)[:, 0] for i in range(3)])


def test_a_critic_is_its_network_between_the_bounds(x64):
    _, state = agent_and_state()
    batch = rows()
    found = q(state.critic.params, batch.observation, batch.action)
    pair = np.concatenate([batch.observation, batch.action], axis=1)
    np.testing.assert_allclose(found, 4 * critics_of(state.critic.params, pair) + 2, rtol=1e-10)


def test_at_first_all_critics_are_the_middle_of_the_bounds(x64):
    state = initial_state()
    state = update_bounds(TINY, state, np.linspace(-1.0, 3.0, 101))
    low, high = np.asarray(state.critic.params["bounds"])[0]
    found = q(state.critic.params, np.ones((B, O)), np.ones((B, A)))
    np.testing.assert_allclose(found, np.full((3, B), (low + high) / 2), rtol=1e-6)


def test_the_targets_value_is_the_least_critic_within_the_bounds_and_the_entropy(x64):
    agent, state = agent_and_state()
    batch = rows()
    observation = np.asarray(batch.observation)
    output = transcribed(state.actor.params, observation, False)
    mean, std = output[:, :A], np.log1p(np.exp(output[:, A:])) + 1e-5
    noise = np.asarray(jax.jit(lambda key: jax.random.normal(jax.random.split(key, 3)[0], (B, A)))(KEY))
    raw = mean + std * noise
    density = np.sum(-0.5 * noise**2 - np.log(std) - 0.5 * np.log(2 * np.pi) - np.log(1 - np.tanh(raw) ** 2), axis=1)
    narrow = state.critic.target | {"bounds": np.tile([1.0, 1.8], (3, 1))}
    pair = np.concatenate([observation, np.tanh(raw)], axis=1)
    values = (0.4 * critics_of(narrow, pair) + 1.4).min(axis=0)
    assert (values < 1.0).any() and (values > 1.0).any()
    clipped = np.clip(values, 1.0, 1.8)
    found = agent.target_value(state._replace(critic=state.critic._replace(target=narrow)), batch.observation, KEY)
    np.testing.assert_allclose(found, clipped - 0.1 * density, rtol=1e-7)


def test_targets_drop_no_units_and_losses_do(x64):
    dropping = dataclasses.replace(TINY, dropout=0.5)
    _, state = agent_and_state()
    batch = rows()
    dropped = scaled_sac.functions(dropping, A)
    pair = batch.observation, batch.action
    target, plain = (np.asarray(q(params, *pair)) for params in (state.critic.target, state.critic.params))
    np.testing.assert_array_equal(jax.jit(dropped.target_q)(state.critic.target, *pair, KEY), np.clip(target, -2.0, 6.0))
    assert np.all(np.asarray(jax.jit(dropped.q)(state.critic.params, *pair, KEY)) != plain)


def test_the_bounds_begin_at_the_quantiles_and_then_follow_them(x64):
    state = initial_state()
    earned = np.random.default_rng(1).permutation(np.arange(101.0))
    first = update_bounds(TINY, state, earned)
    np.testing.assert_allclose(first.critic.params["bounds"], np.tile([10.0, 990.0], (3, 1)), rtol=1e-12)
    second = update_bounds(TINY, first, earned - 50)
    expected = np.array([10.0, 990.0]) + 3e-4 * (np.array([-490.0, 490.0]) - np.array([10.0, 990.0]))
    np.testing.assert_allclose(second.critic.params["bounds"], np.tile(expected, (3, 1)), rtol=1e-12)
    jax.tree.map(np.testing.assert_array_equal, second.critic.params["bounds"], second.critic.target["bounds"])


def test_what_the_dead_earn_does_not_count(x64):
    state = initial_state()
    earned = np.concatenate([np.arange(101.0), np.full(30, np.nan)])
    found = update_bounds(TINY, state, earned).critic.params["bounds"]
    np.testing.assert_allclose(np.asarray(found)[0], [10.0, 990.0])


def test_nothing_follows_in_a_seed_that_is_closed(x64):
    _, state = agent_and_state()
    closed = state._replace(critic=state.critic._replace(active=np.zeros((), bool)))
    after = update_bounds(TINY, closed, np.arange(101.0))
    jax.tree.map(np.testing.assert_array_equal, after, closed)


def test_learning_does_not_move_the_bounds(x64):
    agent, state = agent_and_state()
    after = jax.device_get(agent.update(state, rows(), KEY)[0])
    for part in (after.critic.params, after.critic.target):
        np.testing.assert_array_equal(part["bounds"], np.tile([-2.0, 6.0], (3, 1)))
    before, moved = state.critic.params["network"], after.critic.params["network"]
    assert all(np.any(a != b) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(moved), strict=True))


def test_settings_are_checked():
    with pytest.raises(UserError, match="critic_subset must be at most critics"):
        check(dataclasses.replace(TINY, critics=2))
