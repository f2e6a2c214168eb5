"""The pessimistic decision process of MOReL (Kidambi et al., arXiv 2005.05951), with its practical detector of unknowns.

A state-action pair is unknown where two members of the ensemble disagree by more than a threshold about the next
observation:

    disc(s, a) = max over pairs of members i, j of || mean_i(s, a) - mean_j(s, a) ||

An unknown pair leads to HALT, an absorbing state with the reward -kappa at every step. So its action value is

    r(s, a) + gamma (-kappa) / (1 - gamma)

which is that of a step that terminates with this reward, and an imagined branch ends there.

The released code takes `threshold` as a multiple of the largest disc(s, a) on the logged rows, and gives a penalty once.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from jaxmbrl.core.types import DynamicsModel, Key, PyTree, Transition, World
from jaxmbrl.data import replay
from jaxmbrl.data.replay import Replay
from jaxmbrl.models.disagreement import largest_difference


def discrepancy(
    model: DynamicsModel, state: PyTree, observation: Float[Array, "N O"], action: Shaped[Array, "N *A"]
) -> Float[Array, "N"]:
    """disc(s, a) of rows, in the units of the observation. A learned reward does not count."""
    mean, _ = model.predict(state, observation, action)
    return largest_difference(mean[..., : observation.shape[-1]])


def largest_discrepancy(model: DynamicsModel, state: PyTree, rows: Replay, block: int = 10_000) -> Float[Array, ""]:
    """The largest disc(s, a) of all rows of a buffer of transitions, computed for `block` rows at a time. The size of the
    buffer must not be batched over seeds (`replay.with_size`)."""
    block = min(block, rows.data.reward.shape[0])

    def larger(i: Int[Array, ""], largest: Float[Array, ""]) -> Float[Array, ""]:
        # The last block is filled with the newest row.
        of_block = replay.of_age(rows, jnp.minimum(i * block + jnp.arange(block), rows.size - 1))
        return jnp.maximum(largest, jnp.max(discrepancy(model, state, of_block.observation, of_block.action)))

    return jax.lax.fori_loop(0, (rows.size + block - 1) // block, larger, jnp.zeros(()))


def smallest_reward(rows: Replay) -> Float[Array, ""]:
    """The smallest reward of all rows of a buffer of transitions."""
    reward = rows.data.reward
    return jnp.min(reward, where=jnp.arange(len(reward)) < rows.size, initial=jnp.inf)


def halt_value(reward: Float[Array, ""] | float, discount: Float[Array, ""] | float) -> Float[Array, ""]:
    """gamma r / (1 - gamma): the discounted value, at the step before, of HALT with the reward r at every step. `discount`
    must be below 1 unless r is 0.

    >>> from jaxmbrl.models.pessimistic import halt_value
    >>> round(float(halt_value(-2.0, 0.9)), 4)
    -18.0
    """
    return jnp.where(jnp.asarray(reward) == 0, 0.0, discount * jnp.asarray(reward) / (1 - jnp.asarray(discount)))


def pessimistic(
    world: World,
    model: DynamicsModel,
    state: PyTree,
    threshold: Float[Array, ""] | float,
    halted: Float[Array, ""] | float,
) -> World:
    """The `world` that `model` imagines in `state`, whose steps terminate at unknown pairs and get `halted` (`halt_value`)
    added to their rewards there. With an infinite threshold it is `world`."""

    def step(
        observation: Float[Array, "N O"], action: Shaped[Array, "..."], key: Key
    ) -> tuple[Float[Array, "N O"], Transition]:
        following, row = world.step(observation, action, key)
        unknown = discrepancy(model, state, row.observation, row.action) > threshold
        ended = row.terminated | unknown if row.terminated.dtype == bool else jnp.where(unknown, 1.0, row.terminated)
        return following, row._replace(reward=jnp.where(unknown, row.reward + halted, row.reward), terminated=ended)

    return world._replace(step=step)
