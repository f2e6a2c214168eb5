"""Planners: an optimiser of action sequences over a World is a Policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxmbrl.core.types import Action, Key, Memory, Objective, Observation, Planner, Policy, PyTree, Transition, World
from jaxmbrl.planning import cem, icem, mppi, random_shooting
from jaxmbrl.planning.cem import CEMConfig
from jaxmbrl.planning.icem import ICEMConfig
from jaxmbrl.planning.mppi import MPPIConfig
from jaxmbrl.planning.random_shooting import RandomShootingConfig
from jaxmbrl.rollout import Return, open_loop, planned_return, rollout

PLANNERS: dict[str, Callable[[Any, int], Planner]] = {
    "cem": cem.make,
    "icem": icem.make,
    "mppi": mppi.make,
    "random-shooting": random_shooting.make,
}
"""What makes each planner of its config and the size of the action."""


@dataclass(frozen=True)
class PlannerConfig:
    """Which planner, and the settings of each."""

    method: Literal["cem", "icem", "mppi", "random-shooting"] = "cem"
    """The planner that plans; the settings of the others do nothing."""
    cem: CEMConfig = field(default_factory=CEMConfig)
    """The cross-entropy method."""
    icem: ICEMConfig = field(default_factory=ICEMConfig)
    """The cross-entropy method with coloured noise, kept elites and fewer samples."""
    mppi: MPPIConfig = field(default_factory=MPPIConfig)
    """Model predictive path integral control."""
    random_shooting: RandomShootingConfig = field(default_factory=RandomShootingConfig)
    """The best of many random action sequences."""

    @property
    def chosen(self) -> CEMConfig | ICEMConfig | MPPIConfig | RandomShootingConfig:
        """The settings of `method`."""
        return getattr(self, self.method.replace("-", "_"))

    @property
    def horizon(self) -> int:
        """Steps that `method` plans ahead."""
        return self.chosen.horizon


def make(config: PlannerConfig, action_size: int) -> Planner:
    """The planner that `config` names."""
    return PLANNERS[config.method](config.chosen, action_size)


def return_of(world: World, origin: Any) -> Objective:
    """Objective of an action sequence: the mean return of playing it open loop in `world` from `origin`.

    The mean is over the rows of a learned World; a real one has a single return. Rewards after termination don't count.
    One row whose return or observation, while it lives, is not finite makes the objective -inf: a candidate must not win
    by an average over the others, nor by a known reward that does not look.
    """

    def objective(actions: Float[Array, "H A"], key: Key) -> Float[Array, ""]:
        start_key, rollout_key = jax.random.split(key)
        carry = world.start(origin, start_key)
        policy = open_loop(actions)
        step = jax.eval_shape(world.step, carry, actions[0], rollout_key)[1]
        state = (carry, jnp.zeros((), jnp.int32))
        rows = step.reward.shape
        start = Plan(Return.zero(rows), jnp.ones(rows, bool))
        end = rollout(world, policy, state, rollout_key, actions.shape[0], _follow, start)[1]
        healthy = jnp.all(end.finite & jnp.isfinite(end.earned.total))
        return jnp.where(healthy, jnp.mean(end.earned.total), -jnp.inf)

    return objective


class Plan(NamedTuple):
    """What becomes of an action sequence, row by row."""

    earned: Return
    finite: Bool[Array, "*n"]
    """No observation was anything else while the row lived."""


def _follow(plan: Plan, transition: Transition, i: Int[Array, ""]) -> Plan:
    rows = transition.reward.ndim
    leaves = jax.tree.leaves(transition.next_observation)
    finite = [jnp.all(jnp.isfinite(leaf), axis=tuple(range(rows, leaf.ndim))) for leaf in leaves]
    alive = plan.earned.alive
    return Plan(
        planned_return(plan.earned, transition, i), plan.finite & ((alive == 0) | jnp.all(jnp.stack(finite), axis=0))
    )


def planning_policy(planner: Planner, world: World, origin: Callable[[Observation], Any]) -> Policy:
    """Model-predictive control: plan from each observation, play the plan's first action. Its memory is the plan's state.

    `origin(observation)` is what `world.start` takes: the rows of a learned World, or a simulator's state.
    All candidates of an iteration see the same noise and the same draw of members (common random numbers).
    """

    @jax.named_scope("plan")
    def act(memory: Memory, observation: Observation, key: Key) -> tuple[Action, PyTree, Memory]:
        actions, memory, statistics = planner.plan(return_of(world, origin(observation)), memory, key)
        return actions[0], statistics, memory

    return Policy(init=lambda key: planner.init(), act=act)
