"""iLQR and DDP (`planning.ilqr`) as a planner over a World: model-predictive control by derivatives.

    start from the last plan, shifted by one step, and `samples` random sequences around it
    improve all by iLQR in parallel; return the one of the largest score

The derivatives are those of the World's steps with respect to the floating-point numbers of its carry that affect later
steps or the terminal value (`planning.sensitivity`): the coordinates of a simulator, or the rows of a learned World. The
last action is repeated at the end of the shifted plan.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt
from jaxtyping import Array, Float, Int, Shaped

from jaxmbrl.core.config import UserError
from jaxmbrl.core.spaces import Box, Space
from jaxmbrl.core.types import Carry, Key, Planner, Problem, PyTree, Stages
from jaxmbrl.planning import search
from jaxmbrl.planning.icem import coloured_noise
from jaxmbrl.planning.ilqr import DescentConfig, System, ilqr
from jaxmbrl.planning.sensitivity import coordinates_of

FIRST = 1e-3
"""Actions of the first plan of an episode, in half action ranges. At rest at the lowest point of a pendulum, no derivative
leads away from 0."""
INSIDE = 1e-6
"""Share by which actions are moved to the middle of the bounds. At a bound, the derivative of an environment that clips its
action would be half of that inside."""


@dataclass(frozen=True)
class ILQRConfig:
    """Settings of the planner."""

    horizon: Annotated[int, Ge(1)] = 20
    """Planning horizon in steps."""
    iterations: Annotated[int, Ge(1)] = 5
    """Largest number of iterations of a plan that starts from the last one."""
    first_iterations: Annotated[int, Ge(1)] = 50
    """The same for the first plan of an episode."""
    samples: Annotated[int, Ge(0)] = 3
    """Random sequences from which the optimisation starts, too, in parallel; the best result is the plan."""
    deviation: Annotated[float, Gt(0)] = 0.5
    """Standard deviation of their noise, in units of half the action range."""
    noise_beta: Annotated[float, Ge(0)] = 2.0
    """Exponent of the noise: its power decreases with frequency f as f^-noise_beta; 0 is white noise."""
    second_order: bool = False
    """Whether second derivatives of the dynamics are used (DDP)."""
    damped: Literal["action", "state"] = "action"
    """What the damping is added to: the second derivative of the cost-to-go by the action, or by the next state."""
    damping: Annotated[float, Ge(0)] = 1.0
    """Damping of the first iteration."""
    project: bool = True
    """Whether second derivatives of the cost are projected to the nearest positive semidefinite matrix."""

    @property
    def descent(self) -> DescentConfig:
        """The settings of `ilqr`."""
        return DescentConfig(self.first_iterations, self.second_order, self.damped, self.damping, self.project)


class PlanState(NamedTuple):
    """State that one plan passes to the next."""

    actions: Float[Array, "H A"]
    """First sequence of the next plan: the last plan, one step later, with its last action repeated."""
    iterations: Int[Array, ""]
    """Largest number of iterations of the next plan."""


def make(config: ILQRConfig, action: Space) -> Planner:
    """iLQR, or DDP, over sequences [H, A] of actions in a bounded box. Its statistics: `nonfinite`, the number of starts of
    this plan whose result has no finite score. If none has one, the plan is the last one.

    Proposals are further starts. Raises UserError for another space. `plan` raises UserError if the problem has no World,
    or a measure of risk.
    """
    box = search.bounded_box(action, "ilqr")
    unit = search.half_range(box)

    def init() -> PlanState:
        actions = search.default_plan(config.horizon, box) + FIRST * unit
        return PlanState(actions, jnp.full((), config.first_iterations, jnp.int32))

    def plan(
        problem: Problem, state: PlanState, key: Key, proposals: Shaped[Array, "P H ..."] | None = None
    ) -> tuple[Float[Array, "H A"], PlanState, PyTree]:
        search.check_space(problem, action)
        offered = search.admit(proposals, config.horizon, action)
        if problem.stages is None:
            raise UserError("ilqr needs the steps of a World: make the problem with make_problem, or use another planner")
        noise_key, objective_key = jax.random.split(key)
        starts = state.actions[None]
        if config.samples:
            shape = (config.samples, config.horizon, box.shape[0])
            noise = coloured_noise(noise_key, shape, config.noise_beta, state.actions.dtype)
            starts = jnp.concatenate([starts, search.clip(state.actions + config.deviation * unit * noise, box)])
        if offered is not None:
            starts = jnp.concatenate([starts, offered.actions])
        system, start = system_of(problem.stages(objective_key), config.horizon, box)

        def descend(actions: Float[Array, "H A"]) -> tuple[Float[Array, "H A"], Float[Array, ""]]:
            found = ilqr(system, start, actions, box.low, box.high, config.descent, state.iterations)
            return found.actions, problem.score(found.actions, objective_key)

        found, scores = jax.vmap(descend)(starts)
        best = search.best_or(state.actions, *search.best(found, scores, 1))
        later = PlanState(search.shift(best, best[-1]), jnp.full((), config.iterations, jnp.int32))
        return best, later, {"nonfinite": jnp.sum(~jnp.isfinite(scores), dtype=jnp.int32)}

    return Planner(init, plan, config.horizon)


def system_of(stages: Stages, horizon: int, box: Box) -> tuple[System, Carry]:
    """(the system of a problem's steps, its start). The cost is minus the score."""
    middle, first = search.middle(box), jnp.zeros((), jnp.int32)

    def step(carry: Carry, u: Float[Array, "A"], t: Int[Array, ""]) -> tuple[Carry, Float[Array, ""]]:
        inside = middle + (1 - INSIDE) * (u - middle)
        carry, reward = stages.step(carry, inside, t)
        return carry, -reward

    def last(carry: Carry) -> Float[Array, ""]:
        return -stages.last(carry, horizon)

    def both(carry: Carry, u: Float[Array, "A"]) -> tuple[Carry, tuple[Array, Array]]:
        following, cost = step(carry, u, first)
        return following, (cost, last(carry))

    return System(step, last, *coordinates_of(both, stages.start, box.zeros())), stages.start
