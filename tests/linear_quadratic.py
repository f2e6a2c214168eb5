"""A linear task with quadratic costs, on which values and their gradients are known in closed form:

    s' = 0.9 s + 0.5 u + 0.1 noise,    u = k s + 0.2 noise,    r = -(s^2 + 0.1 u^2) / 2,    discount 0.95

`World` and `ActorCritic` are made of it by hand, for tests of what is put together from them.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmbrl.core.types import ActorCritic, Average, DynamicsModel, Policy, Transition, World

A, B, COST, DISCOUNT, GAIN = 0.9, 0.5, 0.1, 0.95, -0.4
STATE_NOISE, ACTION_NOISE = 0.1, 0.2


class State(NamedTuple):
    """What an agent of the task holds: the gain k is all that its actor learns."""

    actor: Any
    discount: Any


class Actor(NamedTuple):
    """As `optimizer.Trainable`, of which methods replace the parameters."""

    params: Any


def state_of(gain=GAIN):
    return State(Actor(jnp.asarray(gain, float)), jnp.asarray(DISCOUNT, float))


def curvature(gain=GAIN):
    """P of the value -P s^2 / 2 of the noise-free loop."""
    return (1 + COST * gain**2) / (1 - DISCOUNT * (A + B * gain) ** 2)


def value(s, gain=GAIN):
    """The noise-free loop's value of a state."""
    return -curvature(gain) * s**2 / 2


def action_value(s, u, gain=GAIN):
    """The noise-free loop's value of an action."""
    return -(s**2 + COST * u**2) / 2 + DISCOUNT * value(A * s + B * u, gain)


def world(noise=0.0, ends=lambda following: jnp.zeros(following.shape[0], bool)):
    """The task as a learned world over rows [N, 1]."""

    def step(observation, action, key):
        drawn = jax.random.normal(key, observation.shape, observation.dtype)
        following = A * observation + B * action + noise * drawn
        reward = -(observation[:, 0] ** 2 + COST * action[:, 0] ** 2) / 2
        ended = ends(following)
        none = jnp.zeros(ended.shape, bool)
        return following, Transition(observation, action, reward, following, ended, none)

    return World(reset=None, start=lambda origin, key: origin, observe=lambda rows: rows, step=step)


def model(*, noise=0.0):
    """The task as a model that needs no fit."""

    def predict(state, observation, action):
        reward = -(observation[:, 0] ** 2 + COST * action[:, 0] ** 2) / 2
        mean = jnp.stack([(A * observation + B * action)[:, 0], reward], axis=1)
        return mean[None], jnp.broadcast_to(jnp.array([noise**2, 0.0]), mean.shape)[None]

    return DynamicsModel(init=None, fit=None, predict=predict, world=lambda state: world(noise))


def agent(*, noise=0.0, bonus=0.0, value=value, by_action=action_value):
    """An agent whose critics are exact: `value` and `by_action` tell the values of states and of actions, and do not follow
    the gain that learns. Its actor's update tells the loss and its slope, and moves nothing."""

    def actor(state):
        def act(memory, observation, key):
            drawn = jax.random.normal(key, observation.shape, observation.dtype)
            action = state.actor.params * observation + noise * drawn
            return action, jnp.full(observation.shape[0], bonus), memory

        return Policy(init=lambda key: (), act=act)

    def frozen_value(state, observation, key):
        return value(observation[:, 0])

    def exact(state, observation, action, key):
        return by_action(observation[:, 0], action[:, 0])

    def update_actor(state, batch, key, *, loss=None):
        (told, bonus), slope = jax.value_and_grad(loss, has_aux=True)(state.actor.params, state, batch, key)
        told = {"agent/actor_loss": told, "agent/bonus": bonus, "agent/slope": slope}
        return state, {name: Average.of(value) for name, value in told.items()}

    def apply_actor_gradient(state, loss, gradient, bonus):
        found = {"agent/actor_loss": loss, "agent/bonus": bonus, "agent/slope": gradient}
        return state, {name: Average.of(value) for name, value in found.items()}

    return ActorCritic(
        init=None,
        policy=None,
        policy_with_entropy=actor,
        target_value=frozen_value,
        target_values=lambda state, observation, key: frozen_value(state, observation, key)[None],
        action_value=exact,
        update_critic=lambda state, batch, key, **more: (state, {}, jnp.zeros(batch.reward.shape)),
        update_actor=update_actor,
        apply_actor_gradient=apply_actor_gradient,
        update=None,
    )


def rows(seed=0, count=5, ends=False):
    """Real transitions of the noise-free loop under other actions."""
    rng = np.random.default_rng(seed)
    s, u = rng.normal(size=(count, 1)), rng.uniform(-1, 1, (count, 1))
    ended = rng.random(count) < 0.4 if ends else np.zeros(count, bool)
    reward = -(s[:, 0] ** 2 + COST * u[:, 0] ** 2) / 2
    none = np.zeros(count, bool)
    return Transition(*map(jnp.asarray, (s, u, reward, A * s + B * u, ended, none)))
