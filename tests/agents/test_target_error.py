"""Weights by the error of targets: by hand, equal to the plain agent where all are 1, and the recursion of the errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl.agents.actor_critic import discrete_sac, sac, target_error
from jaxmbrl.agents.actor_critic.sac import SACConfig
from jaxmbrl.agents.actor_critic.target_error import with_target_error
from jaxmbrl.core.spaces import Discrete
from jaxmbrl.core.types import Transition

O, A, B = 2, 1, 4  # noqa: E741
CONFIG = SACConfig(hidden=(), critics=1, critic_subset=1)


def test_weights_by_hand():
    """Errors 0, tau log 2, tau log 4: shares 4/7, 2/7, 1/7 of the total weight of 3. Equal errors: all 1."""
    found = target_error.weights(jnp.array([0.0, np.log(2.0), np.log(4.0)]) * 5, 5.0)
    np.testing.assert_allclose(found, np.array([12, 6, 3]) / 7, rtol=1e-6)
    np.testing.assert_array_equal(target_error.weights(jnp.full(4, 0.3), 0.1), np.ones(4))


def batch_of(seed=0):
    random = np.random.default_rng(seed)
    shapes = ((B, O), (B, A), (B,), (B, O))
    return Transition(
        *(random.normal(size=shape).astype(np.float32) for shape in shapes),
        terminated=np.arange(B) == 1,
        truncated=np.arange(B) == 2,
    )


@functools.cache
def compiled():
    """(state, plain update, update with weights, values of D)."""
    plain = sac.make(CONFIG, O, A)
    agent = with_target_error(plain, O, A, hidden=(), learning_rate=1e-2, polyak=0.25)
    return jax.jit(lambda key: agent.init(key, {}))(jax.random.key(0)), jax.jit(plain.update), jax.jit(agent.update)


def test_with_an_infinite_temperature_it_is_the_plain_agent():
    """All weights are 1: the agent's state is the same bit for bit."""
    state, plain, update = compiled()
    inner, _, error = plain(state.agent, batch_of(), jax.random.key(1))
    after, metrics, same = update(state._replace(temperature=np.float32(np.inf)), batch_of(), jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, (after.agent, same), (inner, error))
    assert float(metrics["agent/largest_weight"].total) == 1.0


def linear(params, observation, action):
    layer = params["params"]["Dense_0"]
    return np.concatenate([observation, action], axis=-1) @ np.float64(layer["kernel"])[:, 0] + float(layer["bias"][0])


def test_the_network_of_errors_does_not_start_as_a_copy_of_the_actor():
    agent = with_target_error(sac.make(SACConfig(hidden=(8, 8)), O, A), O, A, hidden=(8, 8))
    state = jax.jit(lambda key: agent.init(key, {}))(jax.random.key(0))
    kernels = [x for x in jax.tree.leaves((state.agent.actor.params, state.agent.critic.params)) if x.ndim > 1]
    own = state.error.params["params"]["Dense_1"]["kernel"]
    near = [x for x in kernels if x.shape[-2:] == own.shape]
    assert len(near) >= 2
    assert all(abs(np.corrcoef(np.ravel(own), np.ravel(x.reshape(-1, 8, 8)[0]))[0, 1]) < 0.5 for x in near)


def test_the_recursion_of_errors_and_their_temperature():
    """D moves towards |Q - y| + discount (1 - terminated) max(D', 0): Adam's first moment is a tenth of the gradient."""
    state, _, update = compiled()
    batch, key = batch_of(), jax.random.key(1)
    after, metrics, error = jax.device_get(update(state, batch, key))
    critic_key, _ = jax.random.split(key)
    params = jax.device_get(state.error.params)
    policy = sac.make(CONFIG, O, A).policy_with_entropy(state.agent)
    action = policy.act((), jnp.asarray(batch.next_observation), jax.random.fold_in(critic_key, 0))[0]
    later = 0.99 * np.where(batch.terminated, 0, np.maximum(linear(params, batch.next_observation, action), 0))
    assert (later > 0.01).any() and later[1] == 0
    now = linear(params, batch.observation, batch.action)
    gradient = np.mean(2 * (now - error - later)[:, None] * np.concatenate([batch.observation, batch.action], 1), axis=0)
    moment = after.error.moments.mu["params"]["Dense_0"]["kernel"][:, 0]
    np.testing.assert_allclose(10 * moment, gradient, rtol=1e-4, atol=1e-6)
    assert float(after.temperature) == pytest.approx(10 + 0.25 * (max(now.mean(), 0) - 10), rel=1e-5)
    assert float(metrics["agent/largest_weight"].total) == pytest.approx(
        (4 * np.exp(-later / 10) / np.exp(-later / 10).sum()).max(), rel=1e-5
    )


def test_discrete_actions_and_given_weights():
    plain = discrete_sac.make(CONFIG, O, 3)
    agent = with_target_error(plain, O, Discrete(3), hidden=())
    batch = jax.tree.map(jnp.asarray, batch_of()._replace(action=np.array([0, 2, 1, 0], np.int32)))

    @jax.jit
    def errors(key):
        state = agent.init(key, {})
        after = agent.update_critic(state, batch, key, weight=jnp.zeros(B))[0]
        return state.agent.critic.params, after.agent.critic.params

    before, after = errors(jax.random.key(0))
    # With weights of 0 the critics do not move.
    jax.tree.map(np.testing.assert_array_equal, after, before)
