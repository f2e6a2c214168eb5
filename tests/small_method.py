"""A method that compiles quickly, for tests of what surrounds methods: a linear actor-critic with a replay buffer.

`registered()` makes it known in this process. As a script this file is the `jaxmbrl` command with the method known to it.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt

from jaxmbrl import algorithms
from jaxmbrl.algorithms import Method, Preset
from jaxmbrl.algorithms.shared import LoopSettings, collector, new_replay
from jaxmbrl.core import metrics
from jaxmbrl.core.config import Traced
from jaxmbrl.core.types import Algorithm, Average, Clock, CriticView, Key, Policy, Transition, Views, flatten, row_like
from jaxmbrl.data import replay
from jaxmbrl.data.replay import Replay
from jaxmbrl.nn import optimizer
from jaxmbrl.nn.optimizer import Trainable

NAME = "linear"
NOISE = 0.1
"""Standard deviation of the exploration noise."""


@dataclass(frozen=True)
class Config(LoopSettings):
    """Of the linear actor-critic."""

    warmup_steps: Annotated[int, Ge(0)] = 100
    epoch_steps: Annotated[int, Ge(1)] = 100
    eval_every: Annotated[int, Ge(0)] = 5
    batch_size: Annotated[int, Ge(1)] = 16
    updates_per_step: Annotated[int, Ge(1)] = 2
    replay_capacity: Annotated[int, Ge(1)] = 1000
    discount: Annotated[float, Gt(0), Traced] = 0.9
    learning_rate: Annotated[float, Gt(0), Traced] = 1e-3


class State(NamedTuple):
    learner: Trainable
    """Parameters `gain` [observation, action] of the actor and `weights` of the critic."""
    discount: Any
    replay: Replay
    key: Key


def make(config: Config, task: Any) -> Algorithm:
    """a = tanh(s K), Q(s, a) = w (1, s, a, s a, a^2), by one gradient of both losses."""
    sizes = task.observation.shape[0], task.action.shape[0]

    def action(params: Any, observation: Any) -> Any:
        return jnp.tanh(observation @ params["gain"])

    def action_value(params: Any, observation: Any, action: Any) -> Any:
        products = observation[..., :, None] * action[..., None, :]
        parts = (observation, action, products.reshape(*products.shape[:-2], -1), action**2)
        return jnp.concatenate([jnp.ones_like(action[..., :1]), *parts], axis=-1) @ params["weights"]

    def init(key: Key, hyper: Any, data: Transition | None = None) -> State:
        gain_key, key = jax.random.split(key)
        weights = jnp.zeros(1 + sum(sizes) + sizes[0] * sizes[1] + sizes[1])
        params = {"gain": 0.1 * jax.random.normal(gain_key, sizes), "weights": weights}
        learner = optimizer.init(params, hyper.get("learning_rate", config.learning_rate))
        buffer = new_replay(row_like(task), config.replay_capacity, data)
        return State(learner, jnp.asarray(hyper.get("discount", config.discount), float), buffer, key)

    def policy(state: State, clock: Clock, explore: bool) -> Policy:
        def act(memory: Any, observation: Any, key: Key) -> Any:
            mean = action(state.learner.params, observation)
            noise = NOISE * jax.random.normal(key, mean.shape) if explore else 0.0
            return jnp.clip(mean + noise, -1, 1), (), memory

        acting = Policy(lambda key: (), act)
        return collector(acting, task, config, clock) if explore else acting

    def loss(params: Any, discount: Any, rows: Transition) -> Any:
        fixed = jax.lax.stop_gradient(params)
        after = action_value(fixed, rows.next_observation, action(fixed, rows.next_observation))
        target = rows.reward + discount * jnp.where(rows.terminated, 0.0, after)
        error = action_value(params, rows.observation, rows.action) - target
        gain = action_value(fixed, rows.observation, action(params, rows.observation))
        return jnp.mean(error**2) - jnp.mean(gain), jnp.mean(error**2)

    def learn(clock: Clock, state: State, transitions: Transition) -> Any:
        buffer = replay.add(state.replay, flatten(transitions))
        key, update_key = jax.random.split(state.key)

        def update(learner: Trainable, key: Key) -> Any:
            rows = replay.sample(buffer, key, config.batch_size)
            gradient, error = jax.grad(loss, has_aux=True)(learner.params, state.discount, rows)
            learner, norm = optimizer.step(learner, gradient)
            return learner, {"agent/critic_loss": Average.of(error), "agent/gradient_norm": Average.of(norm)}

        def updates(learner: Trainable) -> Any:
            return metrics.repeat(jnp.asarray(config.updates_per_step), update, learner, update_key)

        learner, found = metrics.cond_update(clock.env_steps >= config.warmup_steps, updates, state.learner)
        return State(learner, state.discount, buffer, key), found

    def views(state: State) -> Views:
        params = state.learner.params

        def act(memory: Any, observation: Any, key: Key) -> Any:
            return action(params, observation), jnp.zeros(observation.shape[:-1]), memory

        critic = CriticView(
            policy=Policy(lambda key: (), act),
            action_value=lambda observation, action, key: action_value(params, observation, action),
            value=lambda observation, key: action_value(params, observation, action(params, observation)),
            discount=state.discount,
        )
        return Views(replay=state.replay, critic=critic)

    return Algorithm(init, policy, learn, period=1, views=views)


METHOD = Method(make, Config, {"default": Preset(Config(), "none", 1000)}, summary="a linear actor-critic")


@contextlib.contextmanager
def registered() -> Iterator[None]:
    """The method is known, as a user's is."""
    algorithms.register(NAME, METHOD)
    try:
        yield
    finally:
        del algorithms.METHODS[NAME]


if __name__ == "__main__":
    from jaxmbrl.cli import main

    with registered():
        sys.exit(main())
