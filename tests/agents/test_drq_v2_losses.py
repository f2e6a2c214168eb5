"""DrQ-v2's losses against float64 NumPy, and its identity with DDPG and TD3."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxmbrl.agents.actor_critic import td3
from jaxmbrl.agents.actor_critic.td3 import TD3Config
from jaxmbrl.algorithms.model_free import drq_v2
from jaxmbrl.algorithms.model_free.drq_v2 import AgentConfig, Critics
from jaxmbrl.core.spaces import Box
from jaxmbrl.core.types import Transition
from jaxmbrl.nn import optimizer

from . import sac_in_numpy as networks
from .test_sac import A, B, O, assert_close, assert_gradient, batch_of, critics_of, layers_of

PLAIN = AgentConfig(trunk=None, hidden=(9,), discount=0.9, polyak=0.25, noise_clip=0.4)
"""Without trunks; on vectors the encoder does nothing either."""
DEVIATION = 0.6


def rows():
    return Transition(**batch_of())


def behind_trunk(params):
    """The layers behind the first."""
    return {"params": {name: layer for name, layer in params["params"].items() if name not in ("Dense_0", "LayerNorm_0")}}


@functools.cache
def agent_with(config, deviation=DEVIATION):
    agent = drq_v2.agent_for(config, Box((O,)), A, deviation)
    return agent._replace(update_critic=jax.jit(agent.update_critic), update_actor=jax.jit(agent.update_actor))


@functools.partial(jax.jit, static_argnums=0)
def with_optimizers(config, actor, critic, target):
    return drq_v2.AgentState(
        actor=optimizer.init(actor, config.learning_rate),
        critic=optimizer.init(critic, config.learning_rate, with_target=True)._replace(target=target),
        encoder=optimizer.init((), config.learning_rate),
        discount=jnp.asarray(config.discount, float),
    )


def state_of(config):
    """A state with random networks, whose target critics differ from its critics."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(agent_with(config).init, jax.random.key(0), {})

    def filled(params):
        return jax.tree.map(lambda x: rng.normal(size=x.shape) / np.sqrt(x.shape[-1]), params)

    return with_optimizers(config, *map(filled, (shapes.actor.params, shapes.critic.params, shapes.critic.params)))


@functools.partial(jax.jit, static_argnums=1)
def clipped_noise(key, scale=DEVIATION):
    return jnp.clip(scale * jax.random.normal(key, (B, A)), -PLAIN.noise_clip, PLAIN.noise_clip)


def acted(output, noise):
    """(action with noise, slope of the actor's tanh)."""
    mean = np.tanh(output)
    return np.clip(mean + noise, -1, 1), 1 - mean**2


def test_critics_and_actor_by_hand(x64):
    """One update of each. The action of the target is that of the current actor, with clipped noise and within [-1, 1]; the
    actor's gradient passes where that bound acts."""
    agent, state, batch = agent_with(PLAIN), state_of(PLAIN), rows()
    critic_key, actor_key = jax.random.split(jax.random.key(3))
    actor, critics, targets = (
        layers_of(state.actor.params),
        *(critics_of(heads) for heads in (state.critic.params.heads, state.critic.target.heads)),
    )
    action, _ = acted(networks.forward(actor, batch.next_observation)[0], np.asarray(clipped_noise(critic_key)))
    y = batch.reward + 0.9 * (1.0 - batch.terminated) * networks.values(targets, batch.next_observation, action).min(axis=0)
    loss, gradients = networks.critic_loss(critics, batch_of(), y, np.ones(B))
    trained, found, error = agent.update_critic(state, batch, critic_key)
    np.testing.assert_allclose(found["agent/critic_loss"].total, loss, rtol=1e-9)
    every = networks.values(critics, batch.observation, batch.action)
    np.testing.assert_allclose(error, np.abs(every - y).mean(axis=0), rtol=1e-9)
    for seen, expected in zip(critics_of(trained.critic.moments.mu.heads), gradients, strict=True):
        assert_close([(10 * k, 10 * b) for k, b in seen], expected)
    expected = jax.tree.map(lambda t, p: 0.75 * t + 0.25 * p, *jax.device_get((state.critic.target, trained.critic.params)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), trained.critic.target, expected)

    output, inputs = networks.forward(actor, batch.observation)
    action, slope = acted(output, np.asarray(clipped_noise(actor_key)))
    assert 0 < np.mean(np.abs(action) == 1) < 1
    value, by_pair = networks.least(critics, np.concatenate([batch.observation, action], axis=1))
    trained, found = agent.update_actor(state, batch, actor_key)
    np.testing.assert_allclose(found["agent/actor_loss"].total, -np.mean(value), rtol=1e-9)
    assert_gradient(trained.actor, networks.backward(actor, inputs, -by_pair[:, O:] * slope / B)[0])
    np.testing.assert_array_equal(
        trained.critic.params.heads["params"]["Dense_0"]["kernel"], state.critic.params.heads["params"]["Dense_0"]["kernel"]
    )


def test_the_trunks_are_dense_layers_with_layer_norm_and_tanh_by_hand(x64):
    """The critics share one, the actor has its own."""
    config = dataclasses.replace(PLAIN, trunk=4)
    agent, state, batch, key = agent_with(config, 0.0), state_of(config), rows(), jax.random.key(3)

    def trunk(params, x):
        named = jax.device_get(params)["params"]
        y = x @ named["Dense_0"]["kernel"] + named["Dense_0"]["bias"]
        y = (y - y.mean(1, keepdims=True)) / np.sqrt(y.var(1, keepdims=True) + 1e-6)
        return np.tanh(y * named["LayerNorm_0"]["scale"] + named["LayerNorm_0"]["bias"])

    @jax.jit
    def values(state, batch):
        action = agent.policy(state, False).act((), batch.observation, key)[0]
        return action, agent.action_value(state, batch.observation, batch.action, key)

    action, value = values(state, batch)
    expected = np.tanh(
        networks.forward(layers_of(behind_trunk(state.actor.params)), trunk(state.actor.params, batch.observation))[0]
    )
    np.testing.assert_allclose(action, expected, rtol=1e-9)
    seen = trunk(state.critic.params.trunk, batch.observation)
    expected = networks.values(critics_of(state.critic.params.heads), seen, batch.action).min(axis=0)
    np.testing.assert_allclose(value, expected, rtol=1e-9)


def test_on_vectors_its_updates_are_those_of_td3_and_ddpg_bit_for_bit():
    """Without trunk: the critics' update is TD3's whose target actor is its actor, with any noise; without noise and with
    one critic the actor's is DDPG's."""
    batch, key = rows(), jax.random.key(1)

    def td3_of(config, deviation):
        settings = {name: getattr(config, name) for name in ("hidden", "critics", "learning_rate", "discount", "polyak")}
        return td3.make(TD3Config(**settings, target_noise=deviation, target_noise_clip=config.noise_clip), O, A)

    @jax.jit
    def both(key, batch):
        found = []
        for critics, deviation in ((2, DEVIATION), (1, 0.0)):
            config = dataclasses.replace(PLAIN, critics=critics)
            agent, reference = drq_v2.agent_for(config, Box((O,)), A, deviation), td3_of(config, deviation)
            other = reference.init(key, {})
            heads = jax.tree.map(lambda x: x + 0.1, other.critic.params)
            other = other._replace(critic=other.critic._replace(target=heads))
            state = agent.init(key, {})
            state = state._replace(
                actor=state.actor._replace(params=other.actor.params),
                critic=state.critic._replace(
                    params=Critics((), other.critic.params), target=Critics((), other.critic.target)
                ),
            )
            # TD3's targets wait for an update of its actor.
            for i in range(1 if critics == 2 else 2):
                keys = jax.random.split(jax.random.fold_in(key, i))
                state, *_ = agent.update_critic(state, batch, keys[0])
                other, *_ = reference.update_critic(other, batch, keys[0])
                if critics == 1:
                    state, other = (
                        agent.update_actor(state, batch, keys[1])[0],
                        reference.update_actor(other, batch, keys[1])[0],
                    )
                    # DrQ-v2 has no target actor.
                    other = other._replace(actor=other.actor._replace(target=other.actor.params))
            targets = (state.critic.target.heads, other.critic.target) if critics == 1 else ()
            found.append((state.critic.params.heads, other.critic.params, state.actor.params, other.actor.params, targets))
        return found

    for mine, theirs, actor, other, targets in jax.device_get(both(key, batch)):
        jax.tree.map(np.testing.assert_array_equal, mine, theirs)
        jax.tree.map(np.testing.assert_array_equal, actor, other)
        if targets:
            jax.tree.map(np.testing.assert_array_equal, *targets)


def test_the_trunks_of_actor_and_critics_start_from_different_numbers():
    config = dataclasses.replace(PLAIN, trunk=8, hidden=(8,))
    state = jax.jit(lambda key: agent_with(config).init(key, {}))(jax.random.key(0))
    first, second = (x["params"]["Dense_0"]["kernel"] for x in (state.actor.params, state.critic.params.trunk))
    assert first.shape == second.shape
    assert abs(np.corrcoef(np.ravel(first), np.ravel(second))[0, 1]) < 0.8
