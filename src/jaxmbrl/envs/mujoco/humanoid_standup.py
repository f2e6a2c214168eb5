"""Gymnasium's HumanoidStandup-v5: a body with 17 joints gets up from lying on its back.

The task never terminates. The observation contains the height of the torso and the contact forces, so it determines the
reward.

Solver: as for `Humanoid`, but a body that lies on the ground needs more iterations. Of 1,000 states that random and
scripted policies reach, 14 are wrong with 6 iterations and 12 line-search steps, by up to 0.011; with 8 and 16, none. The
task uses 8 and 16.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxmbrl.core.types import PyTree, Task
from jaxmbrl.envs.base import make_task, never
from jaxmbrl.envs.mujoco.humanoid import Humanoid
from jaxmbrl.envs.mujoco.mjx_env import Data, Simulation
from jaxmbrl.envs.mujoco.scenes import oblique

TIMESTEP = 0.003  # s
MAX_CONTROL = 0.4
MAX_IMPACT_COST = 10.0
CONTROL_COST, IMPACT_COST = 0.1, 0.5e-6
FORCES = 78
"""Number of contact torques and forces, the last part of the observation."""


class HumanoidStandup(Humanoid):
    """Observation and action as in `Humanoid`."""

    gymnasium_id = "HumanoidStandup-v5"
    xml = "humanoidstandup.xml"
    camera = oblique(2.8, (0.0, 0.0, 0.6), 110.0, 15.0, follows=(0, 1))
    iterations = 8
    line_search_iterations = 16
    reward_terms = ("reward_linup", "reward_quadctrl", "reward_impact", "reward_survive")

    def mark(self, data: Data) -> PyTree:
        """Empty: the outcome compares nothing."""
        return ()

    def outcome(
        self, before: Simulation, control: Float[Array, "17"], after: Data
    ) -> tuple[dict[str, Float[Array, ""]], Bool[Array, ""]]:
        """The height of the torso divided by the simulator's time step in m/s, plus 1, minus 0.1 times the squared control,
        minus the cost of contacts; never terminated."""
        return _terms(control, self.observe(after)), jnp.zeros((), bool)


def _terms(control: Float[Array, "*n 17"], next_observation: Float[Array, "*n 348"]) -> dict[str, Float[Array, "*n"]]:
    impact = IMPACT_COST * jnp.sum(next_observation[..., -FORCES:] ** 2, axis=-1)
    height = next_observation[..., 0]
    return {
        "reward_linup": height / TIMESTEP,
        "reward_quadctrl": -CONTROL_COST * jnp.sum(control**2, axis=-1),
        "reward_impact": -jnp.minimum(impact, MAX_IMPACT_COST),
        "reward_survive": jnp.ones_like(height),
    }


def reward(
    observation: Float[Array, "*n 348"], action: Float[Array, "*n 17"], next_observation: Float[Array, "*n 348"]
) -> Float[Array, "*n"]:
    """The height of the torso divided by the simulator's time step in m/s, plus 1, minus 0.1 times the squared control,
    minus the cost of contacts."""
    return sum(_terms(MAX_CONTROL * action, next_observation).values(), jnp.zeros(()))


def humanoid_standup() -> Task:
    """`HumanoidStandup-v5`: 1,000 steps."""
    return make_task("HumanoidStandup-v5", HumanoidStandup(), 1000, reward, never)
