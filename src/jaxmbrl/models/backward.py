"""A backward model: the ensemble that predicts the observation before a transition, and its reward.

    q(s, r | s', a),  fitted by maximum likelihood to the same rows as the forward model p(s', r | s, a)

It is the ensemble of `models.ensemble` on rows of which observation and next observation are exchanged (Lai et al., BMPO,
arXiv 2007.01995, section 4.1). It depends on the distribution of the states in the data: fit it to all of them, again when
rows are added.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool

from jaxmbrl.core.spaces import Space
from jaxmbrl.core.types import Action, Carry, DynamicsModel, Features, Key, Metrics, Observation, Transition, World
from jaxmbrl.data.replay import Replay
from jaxmbrl.models import ensemble
from jaxmbrl.models.ensemble import EnsembleConfig


def make(
    config: EnsembleConfig,
    observation: Space | int,
    action: Space | int,
    reward: Callable[..., Any] | None = None,
    terminated: Callable[..., Any] | None = None,
    features: Features | None = None,
) -> DynamicsModel:
    """The backward model. The arguments are those of `ensemble.make`: reward and termination are the task's.

    - fit(state, replay, key): fits the buffer's rows, which are in the order of time.
    - predict(state, next observation, action): mean and variance [E, N, D] of [observation, reward].
    - world(state): steps backward: the carry is the observation [N, O], and a step leads to the one before it. Its
      transitions are in the order of time. Their `terminated` says that the predecessor itself terminates, by the task's
      function, so that the transition is impossible; it is false if the function is not given.
    """
    # With a known function the ensemble learns no termination.
    ends = never if terminated is None else terminated
    known = None if reward is None else lambda after, action, before: reward(before, action, after)
    swapped = ensemble.make(config, observation, action, reward=known, terminated=ends, features=features)

    def fit(state: Any, replay: Replay, key: Key) -> tuple[Any, Metrics]:
        return swapped.fit(state, replay._replace(data=exchanged(replay.data)), key)

    def world(state: Any) -> World:
        backward = swapped.world(state)

        def step(carry: Carry, action: Action, key: Key) -> tuple[Carry, Transition]:
            carry, row = backward.step(carry, action, key)
            return carry, row._replace(observation=row.next_observation, next_observation=row.observation)

        return backward._replace(step=step)

    return DynamicsModel(swapped.init, fit, swapped.predict, world)


def exchanged(rows: Transition) -> Transition:
    """Rows with observation and next observation exchanged. Their terminations remain those of the rows, about the
    exchanged observation: a model that learned them would learn those of the wrong state."""
    return rows._replace(observation=rows.next_observation, next_observation=rows.observation)


def never(observation: Observation) -> Bool[Array, "*n"]:
    """The termination of a task without any."""
    return jnp.zeros(observation.shape[:-1], bool)
