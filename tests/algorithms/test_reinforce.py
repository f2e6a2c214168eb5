"""REINFORCE: its gradient against the sum of the definition in float64, with and without the entropy in the return."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl import envs
from jaxmbrl.agents import on_policy
from jaxmbrl.algorithms.on_policy import reinforce
from jaxmbrl.core.spaces import Discrete
from jaxmbrl.core.types import Transition
from jaxmbrl.training.loop import clock_at

DISCOUNT, BONUS = 0.9, 0.3


def log_policy(weights, observation):
    logits = observation @ weights
    return logits - np.log(np.exp(logits).sum())


def entropy_of(weights, observation):
    return -np.sum(np.exp(log_policy(weights, observation)) * log_policy(weights, observation))


def slope(function, weights):
    found = np.zeros_like(weights)
    for place in np.ndindex(weights.shape):
        step = np.zeros_like(weights)
        step[place] = 1e-6
        found[place] = (function(weights + step) - function(weights - step)) / 2e-6
    return found


@pytest.mark.parametrize("in_return", [False, True])
def test_the_gradient_is_the_sum_over_steps_of_its_definition(in_return, x64):
    """sum_t grad log pi_t sum_{t' >= t} discount^{t' - t} (r_t' [+ alpha H_t']) + alpha grad H_t, for a linear policy over
    three choices, along an episode of four steps that ends, by numerical derivatives."""
    rng = np.random.default_rng(0)
    weights, observations = rng.normal(size=(2, 3)), rng.normal(size=(5, 2))
    actions, rewards = np.array([0, 2, 1, 1], np.int32), rng.normal(size=4)
    settings = reinforce.ReinforceConfig(
        hidden=(),
        discount=DISCOUNT,
        entropy_weight=BONUS,
        entropy_in_return=in_return,
        normalize_advantages=False,
        normalize_observations=False,
        normalize_rewards=False,
    )
    entropies = np.array([entropy_of(weights, x) for x in observations[:4]])
    earned = rewards + BONUS * entropies * in_return
    expected = np.zeros_like(weights)
    for t in range(4):
        total = sum(DISCOUNT ** (j - t) * earned[j] for j in range(t, 4))
        expected += total * slope(lambda w, t=t: log_policy(w, observations[t])[actions[t]], weights)
        expected += BONUS * slope(lambda w, t=t: entropy_of(w, observations[t]), weights)

    agent = on_policy.make(settings, 2, Discrete(3), on_policy.adam())

    @jax.jit
    def gradient(key):
        state = agent.init(key, {})
        params = state.actor.params.network["params"]["Dense_0"] | {"kernel": jnp.asarray(weights)}
        params = state.actor.params._replace(network={"params": {"Dense_0": params}})
        # A value function of 0.
        critic = state.critic._replace(params=jax.tree.map(jnp.zeros_like, state.critic.params))
        state = state._replace(actor=state.actor._replace(params=params), critic=critic)
        ended = jnp.array([False, False, False, True])[:, None]
        given = (observations[:4], actions, rewards, observations[1:])
        rows = Transition(*(jnp.asarray(x)[:, None] for x in given), ended, ended & False, jnp.asarray(actions)[:, None])
        rows = agent.estimate(state, reinforce.with_entropy(agent, state, rows, settings))
        return jax.grad(reinforce.policy_loss, 2, has_aux=True)(agent, settings, params, rows)[0]

    found = jax.tree.map(np.asarray, gradient(jax.random.key(0))).network["params"]["Dense_0"]["kernel"]
    np.testing.assert_allclose(-4 * found, expected, rtol=1e-6, atol=1e-8)


def test_standardised_advantages_keep_the_direction_of_the_maximum_entropy_gradient(x64):
    """A bandit of the rewards 2 and 0, with the two actions weighted by their probabilities p. The gradient of p r + c H
    with respect to the logits is p (r - c log p - its mean), which is 0 at the optimum, softmax(r / c); the standard
    deviation of the advantages is that of the rewards. Without the entropy in the return only the first term is divided."""
    rewards, weights = np.array([2.0, 0.0]), (0.7, 1.0)

    def gradients(logits):
        shares = jax.nn.softmax(logits)

        def of(in_return, weight):
            settings = reinforce.ReinforceConfig(
                hidden=(), entropy_weight=weight, entropy_in_return=in_return, normalize_rewards=False
            )
            agent = on_policy.make(settings, 1, Discrete(2), on_policy.adam())
            state = jax.tree.map(jnp.zeros_like, jax.eval_shape(lambda: agent.init(jax.random.key(0), {})))
            layer = {"bias": logits, "kernel": jnp.zeros((1, 2))}
            params = state.actor.params._replace(network={"params": {"Dense_0": layer}})
            state = state._replace(actor=state.actor._replace(params=params))
            seen, ended, actions = jnp.zeros((1, 2, 1)), jnp.ones((1, 2), bool), jnp.arange(2, dtype=jnp.int32)[None]
            rows = Transition(seen, actions, jnp.asarray(rewards)[None], seen, ended, ~ended, actions)
            rows = agent.estimate(state, reinforce.with_entropy(agent, state, rows, settings), shares[None])
            found = jax.grad(reinforce.policy_loss, 2, has_aux=True)(agent, settings, params, rows)[0]
            return -found.network["params"]["Dense_0"]["bias"]

        return jnp.stack([jnp.stack([of(in_return, weight) for weight in weights]) for in_return in (True, False)])

    logits = np.array([[2.0, 0.0], [-0.4, 0.3]])
    for found, z in zip(np.asarray(jax.jit(jax.vmap(gradients))(logits)), logits, strict=True):
        p = np.exp(z) / np.exp(z).sum()
        spread = np.sqrt(p @ rewards**2 - (p @ rewards) ** 2)
        first, second = (p * (x - p @ x) for x in (rewards, -np.log(p)))
        for i, c in enumerate(weights):
            np.testing.assert_allclose(found[0, i], (first + c * second) / spread, rtol=1e-6, atol=1e-12)
            np.testing.assert_allclose(found[1, i], first / spread + c * second, rtol=1e-6)
        if z[0] == 2:
            np.testing.assert_allclose(found[0, 1], 0, atol=1e-12)


def test_a_value_function_of_zero_explains_no_variance_of_the_returns():
    """Also with advantages that are standardised: the metric is that of the estimated ones."""
    rng = np.random.default_rng(1)
    task = envs.make("cartpole-continuous")
    settings = reinforce.ReinforceConfig(hidden=(), normalize_rewards=False)
    algorithm = reinforce.make(reinforce.Config(agent=settings), task)
    given = (rng.normal(size=(64, 1, 4)), rng.normal(size=(64, 1, 1)), 30 * rng.normal(size=(64, 1)))
    seen, actions, rewards = (jnp.asarray(x, jnp.float32) for x in given)
    never = jnp.zeros((64, 1), bool)

    @jax.jit
    def explained(key):
        state = algorithm.init(key, {})
        critic = state.agent.critic
        zero = critic._replace(params=jax.tree.map(jnp.zeros_like, critic.params))
        state = state._replace(agent=state.agent._replace(critic=zero))
        rows = Transition(seen, actions, rewards, seen, never, never.at[-1].set(True), actions)
        return algorithm.learn(clock_at(64), state, rows)[1]["agent/explained_variance"].total

    assert settings.normalize_advantages
    assert float(explained(jax.random.key(0))) == pytest.approx(0.0, abs=1e-5)


def test_the_entropy_in_the_return_has_the_unit_of_normalised_rewards():
    """As in the loss, where c_H times the entropy is added to advantages in this unit."""
    settings = reinforce.ReinforceConfig(hidden=(), entropy_weight=BONUS, entropy_in_return=True)
    agent = on_policy.make(settings, 2, Discrete(3), on_policy.adam())
    never = jnp.zeros((4, 1), bool)
    seen = jnp.asarray(np.random.default_rng(2).normal(size=(4, 1, 2)), jnp.float32)
    actions = jnp.zeros((4, 1), jnp.int32)

    @jax.jit
    def bonus(key):
        state = agent.init(key, {})
        known = state.returns.normalizer._replace(std=jnp.array([20.0]))
        state = state._replace(returns=state.returns._replace(normalizer=known))
        rows = Transition(seen, actions, jnp.zeros((4, 1)), seen, ~never, never, actions)
        entropy = agent.distribution(state.actor.params, agent.inputs(state, seen)).entropy()
        return agent.estimate(state, reinforce.with_entropy(agent, state, rows, settings)).target, entropy

    target, entropy = bonus(jax.random.key(0))
    assert settings.normalize_rewards
    np.testing.assert_allclose(target, BONUS * np.ravel(entropy), rtol=1e-5)
