"""Soft actor-critic for discrete actions against its transcription in float64 NumPy, and its identities."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl import agents
from jaxmbrl.agents.actor_critic import discrete_sac, sac
from jaxmbrl.agents.actor_critic.sac import SACConfig
from jaxmbrl.agents.actor_critic.td3 import TD3Config
from jaxmbrl.core.config import UserError
from jaxmbrl.core.spaces import Discrete
from jaxmbrl.core.types import Transition

from . import discrete_sac_in_numpy as reference
from .sac_in_numpy import forward
from .test_sac import assert_gradient, critics_of, layers_of, member

O, N, B = 3, 4, 16  # noqa: E741
TINY = SACConfig(hidden=(9, 7), polyak=0.25, discount=0.9, initial_temperature=0.3)
REDQ = dataclasses.replace(TINY, critics=5, actor_value="mean")


def batch_of(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "observation": rng.normal(size=(B, O)),
        "action": rng.integers(0, N, B).astype(np.int32),
        "reward": rng.normal(size=B),
        "next_observation": rng.normal(size=(B, O)),
        "terminated": rng.random(B) < 0.3,
        "truncated": rng.random(B) < 0.3,
    }


@functools.cache
def compiled(config):
    agent = agents.make(config, O, Discrete(N))
    return agent._replace(init=jax.jit(agent.init), update=jax.jit(agent.update))


def agent_and_state(config=TINY):
    """A state with random networks, whose target critics differ from its critics."""
    rng, agent = np.random.default_rng(0), compiled(config)
    state = agent.init(jax.random.key(0), {})

    def filled(params):
        return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) / np.sqrt(x.shape[-1])), params)

    critic = state.critic._replace(params=filled(state.critic.params), target=filled(state.critic.params))
    return agent, state._replace(critic=critic, actor=state.actor._replace(params=filled(state.actor.params)))


def test_the_soft_value_by_hand():
    """pi (.25, .75), Q (1, 2), temperature .5: .25 (1 + .5 log 4) + .75 (2 + .5 log 4/3)."""
    log_p = jnp.log(jnp.array([0.25, 0.75]))
    assert float(discrete_sac.soft_value(log_p, jnp.array([1.0, 2.0]), 0.5)) == pytest.approx(2.0311676, abs=2e-7)
    assert float(discrete_sac.mean_log_probability(log_p)) == pytest.approx(-0.5623351, abs=1e-7)


@pytest.mark.parametrize(("pool", "expected"), [("min", -(1.75 + 0.5) / 2), ("mean", -(2.25 + 1.0) / 2)])
def test_the_actor_loss_by_hand(pool, expected):
    """Two rows, uniform policies over two choices; at temperature 1 the entropy, log 2, is added to the value."""
    log_p = jnp.full((2, 2), -math.log(2))
    values = jnp.array([[[1.0, 2.5], [0.0, 2.0]], [[2.0, 3.5], [1.0, 1.0]]])
    assert float(discrete_sac.actor_loss(log_p, values, 0.0, pool)) == pytest.approx(expected)
    assert float(discrete_sac.actor_loss(log_p, values, 1.0, pool)) == pytest.approx(expected - math.log(2), rel=1e-6)


def test_the_boltzmann_policy_is_the_optimum():
    """At logits Q / alpha, V = alpha log sum_a exp(Q / alpha), and the loss has no slope."""
    values, alpha = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32), 0.7

    @jax.jit
    def at(logits):
        loss = lambda x: discrete_sac.actor_loss(jax.nn.log_softmax(x), jnp.asarray(values)[None], alpha)  # noqa: E731
        return jax.value_and_grad(loss)(logits)

    loss, slope = at(values / alpha)
    assert float(loss) == pytest.approx(-np.mean(alpha * np.log(np.exp(values / alpha).sum(axis=1))), rel=1e-6)
    np.testing.assert_allclose(slope, np.zeros((6, 5)), atol=1e-7)
    assert float(at(values / alpha + np.eye(6, 5, dtype=np.float32))[0]) > float(loss) + 0.01


@pytest.mark.parametrize("config", [TINY, REDQ], ids=["sac", "redq"])
def test_one_update_in_numpy(x64, config):
    """Targets, losses, gradients of critics, actor and temperature, and the moved targets."""
    (agent, state), batch, key = agent_and_state(config), batch_of(), jax.random.key(7)
    rows = Transition(**batch)
    after, found, error = agent.update(state, rows, key)
    actor, alpha = layers_of(state.actor.params), 0.3
    critics, targets = critics_of(state.critic.params), critics_of(state.critic.target)
    subset = range(2)
    if config.critics > 2:
        # The keys of the update: critic and actor; of the critic: action, subset, units, units of the values.
        subset = np.asarray(jax.random.choice(jax.random.split(jax.random.split(key)[0], 4)[1], 5, (2,), replace=False))
        assert set(subset) != {0, 1}
    y = reference.critic_target(actor, targets, alpha, 0.9, batch, subset)
    loss, gradients = reference.critic_loss(critics, batch, y, np.ones(B))
    assert float(found["agent/critic_loss"].total) == pytest.approx(loss, rel=1e-10)
    for i, gradient in enumerate(gradients):
        one = after.critic._replace(moments=member(after.critic.moments, i))
        assert_gradient(one, gradient)
    chosen = reference.values(critics, batch["observation"])[:, np.arange(B), batch["action"]]
    np.testing.assert_allclose(error, np.abs(chosen - y).mean(axis=0), rtol=1e-9)
    jax.tree.map(
        lambda new, old, params: np.testing.assert_allclose(new, 0.75 * old + 0.25 * params, rtol=1e-9, atol=1e-12),
        *(after.critic.target, state.critic.target, after.critic.params),
    )
    # The actor uses the critics after their update.
    pool = np.min if config.actor_value == "min" else np.mean
    moved = critics_of(after.critic.params)
    loss, gradient, log_p = reference.actor_loss(actor, moved, alpha, batch["observation"], pool)
    assert float(found["agent/actor_loss"].total) == pytest.approx(loss, rel=1e-10)
    assert float(found["agent/entropy"].total) == pytest.approx(-log_p, rel=1e-10)
    assert_gradient(after.actor, gradient)
    slope = -(log_p + 0.89 * np.log(N))
    assert float(10 * after.log_temperature.moments.mu) == pytest.approx(slope, rel=1e-9)


def test_values_of_a_state_are_sums_over_actions_by_each_critic():
    (agent, state), batch = agent_and_state(REDQ), batch_of()
    observation = jnp.asarray(batch["next_observation"], float)
    by_each, combined = jax.jit(
        lambda: (
            agent.target_values(state, observation, jax.random.key(1)),
            agent.target_value(state, observation, jax.random.key(1)),
        )
    )()
    log_p = reference.log_probability(forward(layers_of(state.actor.params), np.asarray(observation))[0])
    each = reference.values(critics_of(state.critic.target), np.asarray(observation))
    expected = [reference.soft_value(log_p, values, 0.3) for values in each]
    np.testing.assert_allclose(by_each, expected, rtol=2e-5, atol=2e-6)
    # The minimum is over the critics of each action, before the sum.
    lowest = reference.soft_value(log_p, each.min(axis=0), 0.3)
    assert np.all(np.asarray(combined) >= lowest - 1e-5) and np.all(lowest <= np.min(expected, axis=0))
    value = jax.jit(agent.action_value)(state, observation, jnp.asarray(batch["action"]), jax.random.key(1))
    own = reference.values(critics_of(state.critic.params), np.asarray(observation))[:, np.arange(B), batch["action"]]
    np.testing.assert_allclose(value, own.mean(axis=0), rtol=2e-5, atol=2e-6)


def test_a_single_choice_has_neither_entropy_nor_gradient():
    agent = agents.make(dataclasses.replace(TINY, hidden=(4,)), O, Discrete(1))
    batch = Transition(**(batch_of() | {"action": np.zeros(B, np.int32)}))
    state = jax.jit(agent.init)(jax.random.key(0), {})
    after, found, _ = jax.jit(agent.update)(
        state, jax.tree.map(lambda x: x.astype(jnp.result_type(x)), batch), jax.random.key(3)
    )
    assert float(found["agent/entropy"].total) == 0.0
    jax.tree.map(np.testing.assert_array_equal, after.actor.params, state.actor.params)
    assert float(after.log_temperature.params) == float(state.log_temperature.params)


def test_policies_act_on_one_observation_and_on_a_block():
    agent, state = agent_and_state()
    block = np.random.default_rng(1).normal(size=(4000, O)).astype(np.float32)
    block[:] = block[0]

    @jax.jit
    def act(observation, key):
        found = [agent.policy(state, explore).act((), observation, key)[0] for explore in (False, True)]
        return *found, *agent.policy_with_entropy(state).act((), observation, key)[:2]

    greedy, sampled, again, bonus = act(block, jax.random.key(0))
    log_p = reference.log_probability(forward(layers_of(state.actor.params), block[:1])[0])[0]
    assert greedy.dtype == sampled.dtype == jnp.int32 and set(greedy.tolist()) == {int(log_p.argmax())}
    share = np.bincount(sampled, minlength=N) / 4000
    assert np.abs(share - np.exp(log_p)).max() < 4 * np.sqrt(0.25 / 4000)
    np.testing.assert_array_equal(again, sampled)
    np.testing.assert_allclose(bonus, -0.3 * log_p[np.asarray(sampled)], rtol=1e-5)
    one, drawn, _, alone = act(block[0], jax.random.key(1))
    assert one.shape == drawn.shape == alone.shape == () and int(one) == int(log_p.argmax())


@pytest.mark.parametrize(("given", "n", "expected"), [(None, 4, 0.89 * math.log(4)), (None, 2, 0.6169), (0.3, 4, 0.3)])
def test_the_temperature_moves_the_entropy_to_its_target(given, n, expected):
    """At an entropy above the target the temperature falls; it is at the target where it does not move."""
    config = dataclasses.replace(TINY, hidden=(4,), target_entropy=given, learning_rate=1e-3)
    agent = agents.make(config, O, Discrete(n))

    @jax.jit
    def slope(density):
        state = agent.init(jax.random.key(0), {})
        bonus = -jnp.exp(state.log_temperature.params) * density
        gradient = jax.tree.map(jnp.zeros_like, state.actor.params)
        return agent.apply_actor_gradient(state, jnp.zeros(()), gradient, bonus)[0].log_temperature.moments.mu

    assert float(slope(-expected)) == pytest.approx(0.0, abs=2e-5)
    assert float(slope(-expected - 0.1)) > 0.005 and float(slope(-expected + 0.1)) < -0.005


def test_what_cannot_be_is_refused():
    for target in (1.0, -1.0):
        with pytest.raises(UserError, match=rf"target_entropy must be from 0 to log 2 = 0.693, got {target:g}"):
            agents.make(dataclasses.replace(TINY, target_entropy=target), O, Discrete(2))
    with pytest.raises(UserError, match="td3 needs continuous actions, got 2 choices: use sac, which takes both"):
        agents.make(TD3Config(), O, Discrete(2))


def test_it_learns_the_choice_that_pays():
    """Four states in turn; action 3 - s pays 1 in state s. The policy keeps its target entropy."""
    config = dataclasses.replace(TINY, hidden=(16,), learning_rate=3e-3, polyak=0.05, target_entropy=0.5)
    agent = agents.make(config, 4, Discrete(4))

    def batch(key):
        state_key, action_key = jax.random.split(key)
        place = jax.random.randint(state_key, (32,), 0, 4)
        action = jax.random.randint(action_key, (32,), 0, 4, jnp.int32)
        no = jnp.zeros(32, bool)
        pays = (action == 3 - place).astype(float)
        return Transition(jax.nn.one_hot(place, 4), action, pays, jax.nn.one_hot((place + 1) % 4, 4), no, no)

    @jax.jit
    def learned():
        def update(state, key):
            state, found, _ = agent.update(state, batch(key), key)
            return state, found["agent/entropy"].total

        state, entropy = jax.lax.scan(update, agent.init(jax.random.key(0), {}), jax.random.split(jax.random.key(1), 1500))
        return agent.policy(state, False).act((), jnp.eye(4), jax.random.key(0))[0], entropy[-200:].mean()

    action, entropy = learned()
    assert action.tolist() == [3, 2, 1, 0]
    assert float(entropy) == pytest.approx(0.5, abs=0.1)


def test_dropout_is_drawn_once_for_all_choices():
    """Of a critic with dropout, the values of two choices come from the same units: their difference repeats by key."""
    config = dataclasses.replace(TINY, hidden=(30,), dropout=0.5)
    q = jax.jit(discrete_sac.functions(config, N).q)
    state = jax.jit(agents.make(config, O, Discrete(N)).init)(jax.random.key(0), {})
    observation = jnp.ones((5, O))
    both = [q(state.critic.params, observation, jnp.full(5, a, jnp.int32), jax.random.key(1)) for a in (0, 0, 1)]
    np.testing.assert_array_equal(both[0], both[1])
    assert np.ptp(both[0], axis=1).min() > 1e-4, "each row has its own units"
    assert isinstance(state, sac.SACState)
