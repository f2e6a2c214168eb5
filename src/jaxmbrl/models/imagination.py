"""Steps that a learned model imagines in a row, to be told apart, summed and differentiated."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxmbrl import returns
from jaxmbrl.core.types import Key, Policy, PyTree, Transition, World
from jaxmbrl.rollout import rollout


class Trajectory(NamedTuple):
    """T successive steps of each of B rows."""

    observation: Float[Array, "T B O"]
    action: Float[Array, "T B A"]
    reward: Float[Array, "T B"]
    bonus: Float[Array, "T B"]
    """What the action earned besides the reward: an entropy bonus."""
    terminated: Bool[Array, "T B"] | Float[Array, "T B"]
    next_observation: Float[Array, "T B O"]
    """Next observations."""

    @property
    def alive(self) -> Float[Array, "T B"]:
        """The probability that no step before ended the episode."""
        return jax.vmap(returns.alive_before, in_axes=1, out_axes=1)(self.terminated)

    def n_step_returns(self, last: Float[Array, "B"], discount: Float[Array, ""]) -> Float[Array, "S B"]:
        """`returns.n_step_returns` of the rewards with their bonus, S = T + 1."""
        by_row = jax.vmap(returns.n_step_returns, in_axes=(1, 1, 0, None), out_axes=1)
        return by_row(self.reward + self.bonus, self.terminated, last, discount)


@jax.named_scope("imagine")
def imagine(world: World, policy: Policy, origin: PyTree, key: Key, length: int, rematerialize: bool = False) -> Trajectory:
    """`length` steps of a learned `world` from rows `origin` [B, O], or whatever B rows it starts from, under a policy
    whose extras are the bonus (`Agent.actor`).

    Noise and actions are reparameterised: it can be differentiated in the policy's parameters and in `origin`. With
    `rematerialize` the backward pass computes each step again and holds of the forward one the states alone.
    """
    if rematerialize:
        world = world._replace(step=jax.checkpoint(world.step))
        policy = policy._replace(act=jax.checkpoint(policy.act))
    start_key, rollout_key = jax.random.split(key)
    _, rows = rollout(world, policy, (world.start(origin, start_key), ()), rollout_key, length)
    return Trajectory(rows.observation, rows.action, rows.reward, rows.extras, rows.terminated, rows.next_observation)


def after(batch: Transition, imagined: Trajectory) -> Trajectory:
    """The real steps of a `batch` [B], which earn no bonus, and the `imagined` ones that go on from them."""
    first = (batch.observation, batch.action, batch.reward, jnp.zeros_like(batch.reward), batch.terminated)
    real = Trajectory(*first, batch.next_observation)
    return jax.tree.map(lambda step, steps: jnp.concatenate([step[None], steps]), real, imagined)
