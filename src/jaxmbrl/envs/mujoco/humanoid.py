"""Gymnasium's Humanoid-v5: a body with 17 joints walks forward.

`Humanoid-v5/truncated` has the same dynamics, but its observation has only coordinates. It has the 45 numbers that MBPO and
later methods use (Janner et al., arXiv 1906.08253, appendix).

The reward is not a function of the observation: it depends on the distance that the centre of mass moved over the step.

Accuracy: Gymnasium's model uses the PGS solver, which MJX does not have. This task uses the Newton solver, and is compared
with C MuJoCo with the Newton solver. One step from each of 1,000 states that random and scripted policies reach, with limbs
that touch each other and the ground, differs by 4e-13 in float64; large observations differ by 2e-12 of their size. In
float32 coordinates differ by up to 1.8e-4, and contact forces by up to 1.5e-3 of their size.

Solver iterations: with 4 iterations and 8 line-search steps, 7 of those states are wrong, by up to 0.028; with 6 and 12,
none. A step in a batch of 1,000 takes 8.4 and 10.6 ms of CPU time in float64. The task uses 6 and 12.
"""

from __future__ import annotations

from types import MappingProxyType

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxmbrl.core.types import Task
from jaxmbrl.envs.base import make_task
from jaxmbrl.envs.mujoco.mjx_env import Data, MujocoEnv, Simulation
from jaxmbrl.envs.mujoco.scenes import oblique

MIN_HEIGHT, MAX_HEIGHT = 1.0, 2.0  # m
MAX_CONTACT_COST = 10.0
FORWARD, ALIVE, CONTROL_COST, CONTACT_COST = 1.25, 5.0, 0.1, 5e-7


class Humanoid(MujocoEnv):
    """Observation [height of the torso (m), its orientation (quaternion), the 17 joints (rad), the torso's velocity (m/s,
    world frame) and rotation (rad/s, own frame), velocities of the joints (rad/s); then of the 13 bodies inertia and mass
    (10 numbers each; kg m^2, kg m, kg), velocities (6; rad/s, m/s); actuator torques on the 17 joints (N m); and torque and
    force of contacts on the 13 bodies (6 each; N m, N)]; action [control / 0.4 of the 17 joints]."""

    gymnasium_id = "Humanoid-v5"
    xml = "humanoid.xml"
    camera = oblique(2.4, (0.0, 0.0, 1.0), 110.0, 15.0, follows=(0, 1))
    frame_skip = 5
    reset_noise = 0.01
    iterations = 6
    line_search_iterations = 12
    reward_terms = ("reward_survive", "reward_forward", "reward_ctrl", "reward_contact")

    def settle(self, data: Data) -> Data:
        """Add the bodies' positions, inertias and velocities; forces are zero after a reset."""
        for compute in (self._mjx.kinematics, self._mjx.com_pos, self._mjx.com_vel):
            data = compute(self._model, data)
        return data

    def finish(self, data: Data) -> Data:
        """Add the contact forces on each body."""
        return self._mjx.rne_postconstraint(self._model, data)

    def mark(self, data: Data) -> Float[Array, ""]:
        """x of the centre of mass (m)."""
        mass = jnp.asarray(self.mj_model.body_mass, float)
        return jnp.sum(mass * data.xipos[:, 0]) / jnp.sum(mass)

    def observe(self, data: Data) -> Float[Array, "O"]:
        """All coordinates except x and y, then inertias, velocities and forces of the bodies."""
        bodies = (data._impl.cinert[1:], data.cvel[1:], data.qfrc_actuator[6:], data._impl.cfrc_ext[1:])
        return jnp.concatenate([data.qpos[2:], data.qvel, *(part.ravel() for part in bodies)])

    def outcome(
        self, before: Simulation, control: Float[Array, "17"], after: Data
    ) -> tuple[dict[str, Float[Array, ""]], Bool[Array, ""]]:
        """1.25 times the mean speed along x over the step in m/s, plus 5 if healthy after it, minus 0.1 times the squared
        control, minus the cost of contacts."""
        ended = _ended(after.qpos[2])
        contact_cost = CONTACT_COST * jnp.sum(after._impl.cfrc_ext**2)
        terms = {
            "reward_survive": ALIVE * (~ended).astype(float),
            "reward_forward": FORWARD * (self.mark(after) - before.mark) / self.dt,
            "reward_ctrl": -CONTROL_COST * jnp.sum(control**2),
            "reward_contact": -jnp.minimum(contact_cost, MAX_CONTACT_COST),
        }
        return terms, ended


class TruncatedHumanoid(Humanoid):
    """Like `Humanoid`, but with only coordinates in the observation."""

    gymnasium_options = MappingProxyType(
        {f"include_{part}_in_observation": False for part in ("cinert", "cvel", "qfrc_actuator", "cfrc_ext")}
    )

    def observe(self, data: Data) -> Float[Array, "45"]:
        """All coordinates except x and y."""
        return jnp.concatenate([data.qpos[2:], data.qvel])


def _ended(height: Float[Array, "*n"]) -> Bool[Array, "*n"]:
    return ~((height > MIN_HEIGHT) & (height < MAX_HEIGHT))


def terminated(next_observation: Float[Array, "*n O"]) -> Bool[Array, "*n"]:
    """Whether the height of the torso is not between 1 and 2 m."""
    return _ended(next_observation[..., 0])


def humanoid() -> Task:
    """`Humanoid-v5`: 1,000 steps."""
    return make_task("Humanoid-v5", Humanoid(), 1000, terminated=terminated)


def humanoid_truncated() -> Task:
    """`Humanoid-v5/truncated`: 1,000 steps."""
    return make_task("Humanoid-v5/truncated", TruncatedHumanoid(), 1000, terminated=terminated)
