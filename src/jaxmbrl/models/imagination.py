"""Imagined trajectories of a learned model: differentiable, with n-step returns; or as those that an on-policy agent
collects."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from jaxmbrl import returns
from jaxmbrl.core.types import Key, Policy, PyTree, Transition, World
from jaxmbrl.rollout import rollout


class Trajectory(NamedTuple):
    """T successive steps of each of B rows. A discrete action has no axis A."""

    observation: Float[Array, "T B O"]
    action: Shaped[Array, "T B *A"]
    reward: Float[Array, "T B"]
    entropy_bonus: Float[Array, "T B"]
    """The policy's extras, such as -alpha log pi(a|s) of a soft policy; it is added to the reward."""
    terminated: Bool[Array, "T B"] | Float[Array, "T B"]
    next_observation: Float[Array, "T B O"]

    @property
    def alive(self) -> Float[Array, "T B"]:
        """The probability that no earlier step terminated."""
        return jax.vmap(returns.alive_before, in_axes=1, out_axes=1)(self.terminated)

    def n_step_returns(self, last: Float[Array, "B"], discount: Float[Array, ""]) -> Float[Array, "S B"]:
        """`returns.n_step_returns` of rewards with entropy bonus, and the value `last` after T steps; S = T + 1."""
        by_row = jax.vmap(returns.n_step_returns, in_axes=(1, 1, 0, None), out_axes=1)
        return by_row(self.reward + self.entropy_bonus, self.terminated, last, discount)


@jax.named_scope("imagine")
def imagine(world: World, policy: Policy, origin: PyTree, key: Key, length: int, rematerialize: bool = False) -> Trajectory:
    """`length` steps of a learned `world` from rows `origin`, [B, O] or B rows of another type that its `start` accepts.
    The policy must have no memory; its extras [B] are the entropy bonus (`ActorCritic.policy_with_entropy`).

    Noise and actions are reparameterised, so the trajectory is differentiable in the policy's parameters and in `origin`.
    With `rematerialize` only the states of the forward pass are stored, and the backward pass recomputes each step.
    """
    if rematerialize:
        world = world._replace(step=jax.checkpoint(world.step))
        policy = policy._replace(act=jax.checkpoint(policy.act))
    start_key, rollout_key = jax.random.split(key)
    _, rows = rollout(world, policy, (world.start(origin, start_key), ()), rollout_key, length)
    return Trajectory(rows.observation, rows.action, rows.reward, rows.extras, rows.terminated, rows.next_observation)


@jax.named_scope("imagine")
def collect(world: World, policy: Policy, origin: PyTree, key: Key, length: int) -> tuple[Transition, Float[Array, "T B"]]:
    """(`length` steps of a learned `world` from rows `origin`, as a policy without memory would collect them; the weight of
    each: 0 after a termination, else 1). A termination that is a probability is sampled."""
    start_key, rollout_key, end_key = jax.random.split(key, 3)
    _, rows = rollout(world, policy, (world.start(origin, start_key), ()), rollout_key, length)
    if rows.terminated.dtype != bool:
        rows = rows._replace(terminated=jax.random.bernoulli(end_key, rows.terminated))
    return rows, jax.vmap(returns.alive_before, in_axes=1, out_axes=1)(rows.terminated)


def after(batch: Transition, imagined: Trajectory) -> Trajectory:
    """The real steps of a `batch` [B], with an entropy bonus of 0, then the `imagined` steps from their successors."""
    first = (batch.observation, batch.action, batch.reward, jnp.zeros_like(batch.reward), batch.terminated)
    real = Trajectory(*first, batch.next_observation)
    return jax.tree.map(lambda step, steps: jnp.concatenate([step[None], steps]), real, imagined)
