"""NAF: its formulas by hand, one update against float64 NumPy, and a linear task with quadratic costs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl.agents import naf
from jaxmbrl.agents.naf import NAFConfig, Quadratic, action_value, advantage, lower_triangular
from jaxmbrl.core.config import UserError, from_dict
from jaxmbrl.core.types import Transition
from jaxmbrl.data.n_step import NStep
from jaxmbrl.models.normalizer import Normalizer
from jaxmbrl.nn.networks import MLP

from . import sac_in_numpy as networks
from .test_sac import A, B, O, assert_gradient, assert_same, batch_of, layers_of, on_device

TINY = NAFConfig(hidden=(9, 7), discount=0.9, polyak=0.25, value_scale=4.0, exploration_noise=0.5)

# A linear task with quadratic costs: s' = 0.9 s + 0.5 u, r = -(s^2 + 0.1 u^2) / 2, discount 0.95.
GAIN, CURVATURE, VALUE, LOG_L = -1.3442662, 0.3949674, -0.6209840, -0.4644760


def test_the_advantage_by_hand():
    """L = [[1, 0], [0.5, exp(-0.2)]], a - mu = (1, -1): -0.460160. With L^T L in place of L L^T it would be -0.550795."""
    lower = lower_triangular(jnp.array([0.0, 0.5, -0.2]), 2)
    np.testing.assert_allclose(lower, [[1.0, 0.0], [0.5, np.exp(-0.2)]], rtol=1e-6)
    assert float(advantage(lower, jnp.array([1.0, -1.0]))) == pytest.approx(-0.460160, abs=1e-6)
    assert float(advantage(lower.T, jnp.array([1.0, -1.0]))) == pytest.approx(-0.550795, abs=1e-6)


def test_the_entries_of_the_triangle():
    """Row by row, the logarithms of the diagonal clipped to [-5, 5]."""
    found = lower_triangular(jnp.array([[100.0, 1.0, -100.0, 2.0, 3.0, 0.0]]), 3)
    expected = [[np.exp(5.0), 0, 0], [1.0, np.exp(-5.0), 0], [2.0, 3.0, 1.0]]
    np.testing.assert_allclose(found, [expected], rtol=1e-6)


def test_the_linear_task_by_hand():
    """Q of the optimal policy is such a quadratic: V(1) = -0.6209840, Q(1, 0.3) = -1.1549031, and L = exp(-0.4644760)."""
    riccati = 1.0
    for _ in range(200):
        by_action, both, by_state = 0.1 + 0.95 * 0.25 * riccati, 0.95 * 0.45 * riccati, 1 + 0.95 * 0.81 * riccati
        riccati = by_state - both**2 / by_action
    numbers = by_action, -both / by_action, -riccati / 2, np.log(by_action) / 2
    np.testing.assert_allclose(numbers, (CURVATURE, GAIN, VALUE, LOG_L), rtol=2e-7)
    s, u = jnp.meshgrid(jnp.linspace(-1, 1, 5), jnp.linspace(-2, 2, 5))
    lower = jnp.full((*s.shape, 1, 1), np.exp(LOG_L))
    found = action_value(Quadratic(VALUE * s**2, GAIN * s[..., None], lower), u[..., None])
    expected = -(s**2 + 0.1 * u**2) / 2 + 0.95 * VALUE * (0.9 * s + 0.5 * u) ** 2
    np.testing.assert_allclose(found, expected, atol=1e-6)
    one = Quadratic(jnp.asarray(VALUE), jnp.array([GAIN]), jnp.exp(jnp.array([[LOG_L]])))
    assert float(action_value(one, jnp.array([0.3]))) == pytest.approx(-1.1549031, abs=1e-6)


@functools.cache
def compiled(config):
    agent = naf.make(config, O, A)
    return agent._replace(
        init=jax.jit(agent.init), update_critic=jax.jit(agent.update_critic), update=jax.jit(agent.update)
    )


def agent_and_state(config=TINY):
    """A state with random networks; the target network differs from the network."""
    random = np.random.default_rng(0)
    state = compiled(config).init(jax.random.key(0), {})

    def filled():
        return jax.tree.map(
            lambda x: random.normal(size=x.shape).astype(x.dtype) / np.sqrt(x.shape[-1]), state.critic.params
        )

    return compiled(config), state._replace(critic=state.critic._replace(params=filled(), target=filled()))


def quadratic_of(params, observation, scale=4.0):
    """(V, mu, L, inputs of the layers, output) of each row, in NumPy."""
    output, inputs = networks.forward(layers_of(jax.device_get(params)), observation)
    lower = np.zeros((len(output), A, A))
    for row, (_, _, _, first, off, second) in zip(lower, output, strict=True):
        row[0, 0], row[1, 0], row[1, 1] = np.exp(np.clip(first, -5, 5)), off, np.exp(np.clip(second, -5, 5))
    return scale * output[:, 0], np.tanh(output[:, 1:3]), np.sqrt(scale) * lower, inputs, output


def q_of(params, observation, action, scale=4.0):
    value, mean, lower, *_ = quadratic_of(params, observation, scale)
    apart = action - mean
    return value - np.einsum("bi,bik,bjk,bj->b", apart, lower, lower, apart) / 2


def target_in_numpy(state, batch):
    following = quadratic_of(state.critic.target, batch["next_observation"])[0]
    return batch["reward"] + 0.9 * np.where(batch["terminated"], 0.0, following)


def test_one_update_in_numpy(x64):
    agent, state = agent_and_state()
    batch = batch_of()
    y = target_in_numpy(state, batch)
    _, mean, lower, inputs, output = quadratic_of(state.critic.params, batch["observation"])
    apart = batch["action"] - mean
    error = q_of(state.critic.params, batch["observation"], batch["action"]) - y
    curved = np.einsum("bik,bjk,bj->bi", lower, lower, apart)
    by_lower = -np.einsum("bi,bj,bjk->bik", apart, apart, lower)
    inside = np.abs(output[:, [3, 5]]) < 5
    by_entries = np.stack(
        [
            by_lower[:, 0, 0] * lower[:, 0, 0] * inside[:, 0],
            by_lower[:, 1, 0] * 2.0,
            by_lower[:, 1, 1] * lower[:, 1, 1] * inside[:, 1],
        ],
        axis=1,
    )
    by_output = np.concatenate([np.full((B, 1), 4.0), curved * (1 - mean**2), by_entries], axis=1)
    layers = layers_of(jax.device_get(state.critic.params))
    gradients, _ = networks.backward(layers, inputs, (2 * error / B)[:, None] * by_output)

    after, metrics, absolute = agent.update(state, on_device(batch), jax.random.key(0))
    np.testing.assert_allclose(absolute, np.abs(error), rtol=1e-9)
    assert float(metrics["agent/critic_loss"].total) == pytest.approx(np.mean(error**2), rel=1e-9)
    assert_gradient(after.critic, gradients)
    old, new, moved = jax.device_get((state.critic.target, after.critic.params, after.critic.target))
    jax.tree.map(lambda t, p, m: np.testing.assert_allclose(m, 0.75 * t + 0.25 * p, rtol=1e-9), old, new, moved)


def test_a_given_target_weights_and_rows_of_several_steps(x64):
    agent, state = agent_and_state()
    batch, key = on_device(batch_of()), jax.random.key(0)
    y, weight = np.random.default_rng(1).normal(size=B), np.random.default_rng(2).choice([0.0, 0.5, 2.0], B)
    after, metrics, _ = agent.update_critic(state, batch, key, target=y, weight=weight)
    error = q_of(state.critic.params, np.asarray(batch.observation), np.asarray(batch.action)) - y
    assert float(metrics["agent/critic_loss"].total) == pytest.approx(np.mean(weight * error**2), rel=1e-9)
    assert_same(after.critic.target, state.critic.target)
    rows = NStep(*batch, discount=np.full(B, float(state.discount)))
    assert_same(agent.update(state, batch, key), agent.update(state, rows, key))


def test_terminated_masks_the_value_and_truncated_does_not(x64):
    agent, state = agent_and_state()
    batch, key, yes, no = on_device(batch_of()), jax.random.key(0), np.ones(B, bool), np.zeros(B, bool)

    def error(**fields):
        return np.asarray(agent.update_critic(state, batch._replace(**fields), key)[2])

    ended = error(terminated=yes, next_observation=jnp.full((B, O), jnp.nan))
    taken = q_of(state.critic.params, np.asarray(batch.observation), np.asarray(batch.action))
    np.testing.assert_allclose(ended, np.abs(taken - batch.reward), rtol=1e-9)
    np.testing.assert_array_equal(error(terminated=no, truncated=yes), error(terminated=no, truncated=no))


def test_the_largest_value_is_that_of_the_policy(x64):
    """Q(s, mu(s)) = V(s), bit for bit, and no other action is better."""
    agent, state = agent_and_state()
    state = state._replace(critic=state.critic._replace(target=state.critic.params))
    observation, key = jnp.asarray(batch_of()["observation"]), jax.random.key(0)
    others = np.random.default_rng(0).uniform(-1, 1, (B, A))

    @jax.jit
    def found(state, observation, others):
        actions = [policy.act((), observation, key) for policy in (agent.policy(state, False), agent.policy(state, True))]
        judged, bonus, _ = agent.policy_with_entropy(state).act((), observation, key)
        value, each = (of(state, observation, key) for of in (agent.target_value, agent.target_values))
        at = [agent.action_value(state, observation, action, key) for action in (actions[0][0], others)]
        return actions, judged, bonus, value, each, at

    ((action, extras, memory), (noisy, _, _)), judged, bonus, value, each, (best, other) = found(state, observation, others)
    expected = quadratic_of(state.critic.params, np.asarray(observation))
    np.testing.assert_allclose(action, expected[1], rtol=1e-9)
    np.testing.assert_array_equal(best, value)
    np.testing.assert_array_equal(each, value[None])
    assert np.all(other < best) and extras == memory == ()
    np.testing.assert_allclose(other, q_of(state.critic.params, np.asarray(observation), others), rtol=1e-9)
    np.testing.assert_array_equal(judged, action)
    np.testing.assert_array_equal(bonus, np.zeros(B))
    noise = 0.5 * np.asarray(jax.random.normal(key, (B, A)))
    np.testing.assert_allclose(noisy, np.clip(expected[1] + noise, -1, 1), rtol=1e-9)


def test_rewards_divided_by_the_scale_give_the_same_policy(x64):
    """A scale k and rewards r are, for Adam, a scale 1 and rewards r / k, up to Adam's epsilon."""
    agent, state = agent_and_state()
    plain, batch, key = compiled(dataclasses.replace(TINY, value_scale=1.0)), on_device(batch_of()), jax.random.key(0)
    scaled, _, error = agent.update(state, batch, key)
    unscaled, _, divided = plain.update(state, batch._replace(reward=batch.reward / 4), key)
    np.testing.assert_allclose(error, 4 * divided, rtol=1e-9)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7),
        *jax.device_get((scaled.critic.params, unscaled.critic.params)),
    )


def test_observations_are_normalised():
    mean, std = np.float32([1, 2, 3]), np.float32([2, 1, 4])
    shifting = Normalizer(mean, std, np.full(O, -np.inf, np.float32), np.full(O, np.inf, np.float32))
    agents = [naf.make(NAFConfig(hidden=()), O, A, of) for of in (shifting, None)]
    state, x = agents[0].init(jax.random.key(0), {}), np.random.default_rng(0).normal(size=(2, O)).astype(np.float32)
    found, expected = (
        jax.jit(agent.target_value)(state, given, jax.random.key(0))
        for agent, given in zip(agents, (x, (x - mean) / std), strict=True)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_linear_task_is_learned_to_two_percent():
    """From uniform states and successors, by 4,000 updates. An action of 1 is u = 4."""
    config = NAFConfig(hidden=(32, 32), discount=0.95, polyak=0.05)
    agent, steps, rows, rate = naf.make(config, 1, 1), 4000, 128, 1e-2

    @jax.jit
    def learned(key):
        def update(state, step):
            i, key = step
            s_key, next_key, key = jax.random.split(key, 3)
            s, following = (jax.random.uniform(of, (rows, 1), minval=-1, maxval=1) for of in (s_key, next_key))
            u = (following - 0.9 * s) / 0.5
            no = jnp.zeros(rows, bool)
            batch = Transition(s, u / 4, -(s**2 + 0.1 * u**2)[:, 0] / 2, following, no, no)
            critic = state.critic._replace(learning_rate=rate * (1 - i / steps))
            return agent.update(state._replace(critic=critic), batch, key)[0], None

        init_key, key = jax.random.split(key)
        xs = jnp.arange(steps, dtype=float), jax.random.split(key, steps)
        return jax.lax.scan(update, agent.init(init_key, {}), xs)[0]

    state, s = learned(jax.random.key(0)), np.linspace(-0.9, 0.9, 10, dtype=np.float32)[:, None]
    output = np.asarray(MLP((32, 32), 3).apply(state.critic.params, jnp.asarray(s)))
    mean, curvature = 4 * np.tanh(output[:, 1]), np.exp(2 * output[:, 2]) / 16
    np.testing.assert_allclose(curvature, CURVATURE, rtol=0.02)
    np.testing.assert_allclose(mean, GAIN * s[:, 0], atol=0.02 * abs(GAIN))
    np.testing.assert_allclose(output[:, 0], VALUE * s[:, 0] ** 2, atol=0.02 * abs(VALUE))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"value_scale": 0}, "value_scale must be above 0, got 0.0"),
        ({"exploration_noise": -0.1}, "exploration_noise must be at least 0, got -0.1"),
        ({"critics": 2}, "unknown field 'critics'"),
    ],
)
def test_settings_that_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        from_dict(NAFConfig, given)


def test_a_greedy_policy_has_no_loss_of_its_own():
    agent, state = agent_and_state()
    with pytest.raises(TypeError, match="a greedy policy has no parameters of its own"):
        agent.update_actor(state, on_device(batch_of()), jax.random.key(0), loss=lambda *inputs: 0.0)
    with pytest.raises(TypeError, match="a greedy policy has no parameters of its own"):
        agent.apply_actor_gradient(state, jnp.zeros(()), state.critic.params, jnp.zeros(()))
