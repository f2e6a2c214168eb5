"""The small method of the tests with a model beside it: three linear members, which learn the reward too.

Of a soft kind: its critic's policy earns a bonus.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import small_method

from jaxmbrl import algorithms
from jaxmbrl.algorithms import Method, Preset
from jaxmbrl.core import metrics
from jaxmbrl.core.types import Algorithm, Average, Clock, DynamicsModel, Key, ModelView, Policy, Transition
from jaxmbrl.data import replay
from jaxmbrl.models import uncertainty
from jaxmbrl.nn import optimizer
from jaxmbrl.nn.optimizer import Trainable

NAME = "linear-model"
MEMBERS = 3
VARIANCE = 0.01
BONUS = 0.1


class State(NamedTuple):
    linear: small_method.State
    model: Trainable
    """Parameters: weights [member, 1 + observation + action, observation + 1] of changes and rewards."""
    key: Key


def predict(model: Trainable, observation: Any, action: Any) -> Any:
    inputs = jnp.concatenate([jnp.ones_like(observation[:, :1]), observation, action], axis=1)
    change = inputs @ model.params
    mean = change + jnp.pad(observation, ((0, 0), (0, 1)))
    return mean, jnp.full_like(mean, VARIANCE)


MODEL = DynamicsModel(init=None, fit=None, predict=predict, world=None)


def loss(params: Any, model: Trainable, rows: Transition) -> Any:
    mean, variance = predict(model._replace(params=params), rows.observation, rows.action)
    error = jnp.mean((mean - jnp.concatenate([rows.next_observation, rows.reward[:, None]], axis=1)) ** 2)
    return error, (error, *(jnp.mean(part) for part in uncertainty(mean, variance)))


def make(config: small_method.Config, task: Any) -> Algorithm:
    linear = small_method.make(config, task)
    size, inputs = task.observation.shape[0] + 1, 1 + task.observation.shape[0] + task.action.shape[0]

    def init(key: Key, hyper: Any, data: Transition | None = None) -> State:
        linear_key, model_key, key = jax.random.split(key, 3)
        weights = 0.1 * jax.random.normal(model_key, (MEMBERS, inputs, size))
        return State(linear.init(linear_key, hyper, data), optimizer.init(weights, 1e-2), key)

    def policy(state: State, clock: Clock, explore: bool) -> Policy:
        return linear.policy(state.linear, clock, explore)

    def learn(clock: Clock, state: State, transitions: Transition) -> Any:
        learned, found = linear.learn(clock, state.linear, transitions)
        key, row_key = jax.random.split(state.key)

        def fit(model: Trainable) -> Any:
            rows = replay.sample(learned.replay, row_key, config.batch_size)
            gradient, parts = jax.grad(loss, has_aux=True)(model.params, model, rows)
            names = ("model/holdout_error", "model/aleatoric", "model/epistemic", "imagine/rollout_length")
            told = {name: Average.of(value) for name, value in zip(names, (*parts, 1.0), strict=True)}
            return optimizer.step(model, gradient)[0], told

        model, fitted = metrics.cond_update(clock.env_steps >= config.warmup_steps, fit, state.model)
        return State(learned, model, key), found | fitted

    def views(state: State) -> Any:
        plain = linear.views(state.linear)

        def act(memory: Any, observation: Any, key: Key) -> Any:
            action, bonus, memory = plain.critic.policy.act(memory, observation, key)
            return action, bonus + BONUS, memory

        critic = plain.critic._replace(policy=plain.critic.policy._replace(act=act))
        return plain._replace(model=ModelView(MODEL, state.model, fitted=True), critic=critic)

    return Algorithm(init, policy, learn, period=1, views=views)


METHOD = Method(make, small_method.Config, {"default": Preset(small_method.Config(), "none", 1000)}, summary="linear")


@contextlib.contextmanager
def registered() -> Iterator[None]:
    """The method is known, as a user's is."""
    algorithms.register(NAME, METHOD)
    try:
        yield
    finally:
        del algorithms.METHODS[NAME]
