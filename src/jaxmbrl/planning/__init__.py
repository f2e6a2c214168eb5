"""Planners: optimisers of action sequences. A planner and a World together make a policy: model-predictive control (MPC).

    problem = make_problem(world, origin, action space)
    planner = make(PlannerConfig(method="icem"), action space)
    actions, plan state, statistics = planner.plan(problem, planner.init(), key)
    policy = planning_policy(planner, world, origin of an observation, action space)

Every planner's `plan(problem, state, key, proposals=None)` returns actions [H, A] within the bounds of the space, or int32
[H] for a discrete one, which `cem`, `mppi` and `random-shooting` can search, and the statistic `nonfinite`: the number of
candidates of this plan whose return was not finite. `proposals` [P, H, ...] are further candidates, clipped to the bounds.
In `cem` and `mppi` they are added to the population of every iteration, as the policy's sequences are in TD-MPC2 (Hansen et
al., arXiv 2310.16828, where they replace as many samples). In `icem` they are added to the first iteration only, because
good ones remain among its kept elites; if no elites are kept, they are added to every iteration. In `ilqr` and `gradient`,
which differentiate the World, they are further starts. Proposals do not change the random numbers that a planner draws.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from jaxmbrl.core.spaces import Space
from jaxmbrl.core.types import Planner
from jaxmbrl.planning import cem, gradient, icem, ilqr, ilqr_planner, lqr, mppi, policy_shooting, random_shooting
from jaxmbrl.planning.cem import CEMConfig
from jaxmbrl.planning.committed import open_loop_policy
from jaxmbrl.planning.gradient import GradientConfig
from jaxmbrl.planning.icem import ICEMConfig
from jaxmbrl.planning.ilqr_planner import ILQRConfig
from jaxmbrl.planning.mppi import MPPIConfig
from jaxmbrl.planning.policy import planning_policy, proposals_of
from jaxmbrl.planning.problem import RiskConfig, make_problem, play, problem_of_score, unit_box
from jaxmbrl.planning.random_shooting import RandomShootingConfig

__all__ = [
    "PLANNERS",
    "CEMConfig",
    "GradientConfig",
    "ICEMConfig",
    "ILQRConfig",
    "MPPIConfig",
    "PlannerConfig",
    "RandomShootingConfig",
    "RiskConfig",
    "cem",
    "gradient",
    "icem",
    "ilqr",
    "ilqr_planner",
    "lqr",
    "make",
    "make_problem",
    "mppi",
    "open_loop_policy",
    "planning_policy",
    "play",
    "policy_shooting",
    "problem_of_score",
    "proposals_of",
    "random_shooting",
    "unit_box",
]

PLANNERS: dict[str, Callable[[Any, Space], Planner]] = {
    "cem": cem.make,
    "gradient": gradient.make,
    "icem": icem.make,
    "ilqr": ilqr_planner.make,
    "mppi": mppi.make,
    "random-shooting": random_shooting.make,
}
"""Constructor of each planner, from its config and the space of one action."""


@dataclass(frozen=True)
class PlannerConfig:
    """Choice of a planner, with the settings of each."""

    method: Literal["cem", "gradient", "icem", "ilqr", "mppi", "random-shooting"] = "cem"
    """The planner. The settings of the others have no effect."""
    cem: CEMConfig = field(default_factory=CEMConfig)
    """The cross-entropy method."""
    icem: ICEMConfig = field(default_factory=ICEMConfig)
    """The cross-entropy method with coloured noise, kept elites and fewer samples."""
    ilqr: ILQRConfig = field(default_factory=ILQRConfig)
    """Iterative LQR, by derivatives of the model's steps."""
    gradient: GradientConfig = field(default_factory=GradientConfig)
    """Gradient ascent through the model."""
    mppi: MPPIConfig = field(default_factory=MPPIConfig)
    """Model predictive path integral control."""
    random_shooting: RandomShootingConfig = field(default_factory=RandomShootingConfig)
    """The best of many random action sequences."""

    @property
    def chosen(self) -> CEMConfig | GradientConfig | ICEMConfig | ILQRConfig | MPPIConfig | RandomShootingConfig:
        """The settings of `method`."""
        return getattr(self, self.method.replace("-", "_"))

    @property
    def horizon(self) -> int:
        """Planning horizon H of `method`, in steps."""
        return self.chosen.horizon


def make(config: PlannerConfig, action: Space) -> Planner:
    """The planner selected by `config`, for actions in the space `action`, such as `task.action`, or `unit_box(size)` for
    vectors in [-1, 1]. Raises UserError if the planner cannot search the space."""
    return PLANNERS[config.method](config.chosen, action)
