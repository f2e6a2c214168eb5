"""A count-based exploration bonus for methods that learn from a replay buffer (Tang et al., arXiv 1611.04717).

    r + weight / sqrt(n(s)),    n(s): number of visited states with the hash code of s

The code of a vector is SimHash, sign(G s), with a fixed matrix G [bits, D] of standard normal numbers (arXiv 1611.04717,
equation 2; Charikar, STOC 2002): states at a small angle share a code. A choice of a discrete space is its own code, so
that n counts the visits of each state of a table.

The bonus is computed at an update, and not when a transition is stored: it shrinks for rows of any age. A state that was
not counted has n = 1. The bonus does not enter the stored rewards or the returns. Rows of n steps have that of their first
state.

Differs from the paper, which is on-policy: the count is that of the state in which the action was taken, and vectors are
divided by fixed scales instead of being encoded by a network. Without one, images are refused: their numbers are positive
and most of them alike, so that the angles between them are small.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt, Le
from jaxtyping import Array, Bool, Float, Int

from jaxmbrl.agents.actor_critic.updates import with_updates
from jaxmbrl.core.config import UserError
from jaxmbrl.core.spaces import Box, Discrete, Space, encode, encoded_size
from jaxmbrl.core.types import ActorCritic, Average, Key, Metrics, Observation, Transition
from jaxmbrl.data.n_step import NStep


@dataclass(frozen=True)
class CountBonusConfig:
    """Settings of the bonus."""

    weight: Annotated[float, Ge(0)] = 0.0
    """Bonus of a state at its first visit, in units of the reward; 0 for none."""
    bits: Annotated[int, Ge(1), Le(24)] = 16
    """Bits of the code of a vector; there are 2^bits counts. More bits distinguish states at smaller angles."""
    scales: tuple[Annotated[float, Gt(0)], ...] = ()
    """Divisors of the numbers of an observation before they are hashed, one for each; () for 1. Not for discrete
    observations."""


class Counts(NamedTuple):
    """Visits by code."""

    visits: Int[Array, "codes"]
    projection: Float[Array, "bits D"]
    """G; empty for a discrete space."""
    counting: Bool[Array, ""]
    """Whether visits are counted."""

    def gate(self, healthy: Bool[Array, ""], old: Counts) -> Counts:
        """These counts, which do not change any more unless `healthy`."""
        return self._replace(counting=self.counting & healthy)


def init(config: CountBonusConfig, space: Space, key: Key) -> Counts | None:
    """No visits of the observations in `space`; None without a bonus. Raises UserError for images, and if the number of
    scales is wrong."""
    if config.weight == 0:
        return None
    if isinstance(space, Box) and space.is_image:
        raise UserError("count_bonus.weight must be 0 for images, which are at so small angles that most share a code")
    if isinstance(space, Discrete) and config.scales:
        raise UserError("count_bonus.scales must be empty for discrete observations, which are counted without a code")
    counting = jnp.ones((), bool)
    if isinstance(space, Discrete):
        return Counts(jnp.zeros(space.n, jnp.int32), jnp.zeros((0, 0)), counting)
    size = encoded_size(space)
    if config.scales and len(config.scales) != size:
        raise UserError(f"count_bonus.scales must have {size} numbers, as an observation has, got {len(config.scales)}")
    projection = jax.random.normal(key, (config.bits, size)) / jnp.asarray(config.scales or 1.0)
    return Counts(jnp.zeros(2**config.bits, jnp.int32), projection, counting)


def code(counts: Counts, space: Space, observation: Observation) -> Int[Array, "*n"]:
    """The index of the count of each observation: bit i is 1 where (G s)_i > 0."""
    if isinstance(space, Discrete):
        return observation
    bits = encode(space, observation) @ counts.projection.T > 0
    return jnp.sum(bits * 2 ** jnp.arange(bits.shape[-1]), axis=-1, dtype=jnp.int32)


def add(counts: Counts | None, space: Space, observation: Observation) -> Counts | None:
    """The counts after visits of the observations [N, ...]."""
    if counts is None:
        return None
    visits = counts.visits.at[code(counts, space, observation)].add(counts.counting.astype(jnp.int32))
    return counts._replace(visits=visits)


def bonus(counts: Counts, config: CountBonusConfig, space: Space, observation: Observation) -> Float[Array, "*n"]:
    """weight / sqrt(n(s)) of each observation."""
    visits = counts.visits[code(counts, space, observation)]
    return config.weight / jnp.sqrt(jnp.maximum(visits, 1).astype(float))


def rewarded(agent: ActorCritic, counts: Counts | None, config: CountBonusConfig, space: Space) -> ActorCritic:
    """`agent`, whose critics learn rewards with the bonus; `agent` itself without a bonus."""
    if counts is None:
        return agent

    def update_critic(
        state: Any, batch: Transition | NStep, key: Key, **given: Any
    ) -> tuple[Any, Metrics, Float[Array, "B"]]:
        added = bonus(counts, config, space, batch.observation)
        state, found, error = agent.update_critic(state, batch._replace(reward=batch.reward + added), key, **given)
        return state, found | {"agent/bonus": Average.of(jnp.mean(added))}, error

    return with_updates(agent, critic=update_critic)
