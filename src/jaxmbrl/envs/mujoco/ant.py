"""Gymnasium's Ant-v5: a torso on four legs with two joints each runs forward.

`Ant-v5/truncated` has the same dynamics, but its observation has no contact forces. It has the 27 numbers that MBPO and
later methods use (Janner et al., arXiv 1906.08253, appendix).

The reward is not a function of the observation: it depends on the distance moved along x, and x is not observed.

Accuracy: one step from each of 1,000 states that random and scripted policies reach differs from C MuJoCo's solution by
3e-13 in float64, contact forces included. The difference from Gymnasium is the same in all but 2 states, where C's solver
stopped early. In float32 coordinates differ by up to 4.7e-4; the clipped contact forces differ by more than 1e-3 in 7
states, by up to 0.05.

Solver iterations: with 4 iterations and 8 line-search steps, 79 of those states are wrong, by up to 0.44; with 6 and 12,
none. A step in a batch of 1,000 takes 1.7 and 2.8 ms of CPU time in float32. The task uses 6 and 12.
"""

from __future__ import annotations

from types import MappingProxyType

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxmbrl.core.types import Task
from jaxmbrl.envs.base import make_task
from jaxmbrl.envs.mujoco.mjx_env import Data, MujocoEnv, Simulation
from jaxmbrl.envs.mujoco.scenes import oblique

MIN_HEIGHT, MAX_HEIGHT = 0.2, 1.0  # m
MAX_CONTACT_FORCE = 1.0  # N, N m
CONTROL_COST, CONTACT_COST = 0.5, 5e-4
COORDINATES = 27
"""Length of the part of the observation before the contact forces."""


class Ant(MujocoEnv):
    """Observation [height of the torso (m), its orientation (quaternion), the eight joints (rad), the torso's velocity
    (m/s, world frame) and rotation (rad/s, own frame), velocities of the joints (rad/s), then torque and force of contacts
    on each of the 13 bodies (N m, N), clipped to +-1]; action [torque / 150 N m of the eight joints]."""

    gymnasium_id = "Ant-v5"
    xml = "ant.xml"
    camera = oblique(3.6, (0.0, 0.0, 0.4), 90.0, 45.0, follows=(0, 1))
    frame_skip = 5
    reset_noise = 0.1
    normal_velocities = True
    iterations = 6
    line_search_iterations = 12
    reward_terms = ("reward_forward", "reward_ctrl", "reward_contact", "reward_survive")

    def finish(self, data: Data) -> Data:
        """Add the contact forces on each body."""
        return self._mjx.rne_postconstraint(self._model, data)

    def mark(self, data: Data) -> Float[Array, ""]:
        """x of the torso (m)."""
        return data.xpos[1, 0]

    def settle(self, data: Data) -> Data:
        """Add the bodies' positions; contact forces are zero after a reset."""
        return self._mjx.kinematics(self._model, data)

    def observe(self, data: Data) -> Float[Array, "O"]:
        """All coordinates except x and y, and the contact forces."""
        return jnp.concatenate([data.qpos[2:], data.qvel, _contact_forces(data)[1:].ravel()])

    def outcome(
        self, before: Simulation, control: Float[Array, "8"], after: Data
    ) -> tuple[dict[str, Float[Array, ""]], Bool[Array, ""]]:
        """Mean speed along x over the step in m/s, plus 1 if healthy after it, minus 0.5 times the squared action, minus
        0.0005 times the squared contact forces."""
        ended = ~(_healthy(after.qpos[2]) & jnp.all(jnp.isfinite(jnp.concatenate([after.qpos, after.qvel]))))
        terms = {
            "reward_forward": (self.mark(after) - before.mark) / self.dt,
            "reward_ctrl": -CONTROL_COST * jnp.sum(control**2),
            "reward_contact": -CONTACT_COST * jnp.sum(_contact_forces(after) ** 2),
            "reward_survive": (~ended).astype(float),
        }
        return terms, ended


class TruncatedAnt(Ant):
    """Like `Ant`, but without contact forces in the observation."""

    gymnasium_options = MappingProxyType({"include_cfrc_ext_in_observation": False})

    def observe(self, data: Data) -> Float[Array, "27"]:
        """All coordinates except x and y."""
        return jnp.concatenate([data.qpos[2:], data.qvel])


def _contact_forces(data: Data) -> Float[Array, "14 6"]:
    return jnp.clip(data._impl.cfrc_ext, -MAX_CONTACT_FORCE, MAX_CONTACT_FORCE)


def _healthy(height: Float[Array, "*n"]) -> Bool[Array, "*n"]:
    return (height >= MIN_HEIGHT) & (height <= MAX_HEIGHT)


def terminated(next_observation: Float[Array, "*n O"]) -> Bool[Array, "*n"]:
    """Whether the height of the torso is not between 0.2 and 1 m, or a coordinate is not finite."""
    finite = jnp.all(jnp.isfinite(next_observation[..., :COORDINATES]), axis=-1)
    return ~(_healthy(next_observation[..., 0]) & finite)


def ant() -> Task:
    """`Ant-v5`: 1,000 steps."""
    return make_task("Ant-v5", Ant(), 1000, terminated=terminated)


def ant_truncated() -> Task:
    """`Ant-v5/truncated`: 1,000 steps."""
    return make_task("Ant-v5/truncated", TruncatedAnt(), 1000, terminated=terminated)
