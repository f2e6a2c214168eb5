"""Gymnasium's Ant-v5: a torso on four legs of two joints each runs forward.

`Ant-v5/truncated` is the same but for the observation, which has no contact forces: the 27 numbers on which MBPO and its
successors report (Janner et al., arXiv 1906.08253, appendix).

The reward is not a function of the observation: it pays for the distance moved over the step, and x is not observed.

One step from 1,000 states that random and scripted policies reach differs in float64 from C MuJoCo's solution by 3e-13,
contact forces included, and from Gymnasium by as much in all but 2 of them, where C's solver stopped early. In float32
coordinates differ by up to 4.7e-4, and the clipped contact forces by more than 1e-3 in 7 states, by up to 0.05.

Solver iterations: on those states 4 with 8 line-search steps are wrong in 79, by up to 0.44, 6 with 12 in none; a step in
a batch of 1,000 takes 1.7 and 2.8 ms of CPU time in float32. The task takes 6 and 12.
"""

from __future__ import annotations

from types import MappingProxyType

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxmbrl.core.types import Task
from jaxmbrl.envs.base import make_task
from jaxmbrl.envs.mujoco.mjx_env import Data, MujocoEnv, Simulation

MIN_HEIGHT, MAX_HEIGHT = 0.2, 1.0  # m
MAX_CONTACT_FORCE = 1.0  # N, N m
CONTROL_COST, CONTACT_COST = 0.5, 5e-4
COORDINATES = 27
"""Numbers of the observation before the contact forces."""


class Ant(MujocoEnv):
    """Observation [height of the torso (m), its orientation (quaternion), the eight joints (rad), the torso's velocity
    (m/s, world frame) and rotation (rad/s, own frame), velocities of the joints (rad/s), then torque and force of contacts
    on each of the 13 bodies (N m, N), clipped to +-1]; action [torque / 150 N m of the eight joints]."""

    gymnasium_id = "Ant-v5"
    xml = "ant.xml"
    frame_skip = 5
    reset_noise = 0.1
    normal_velocities = True
    iterations = 6
    line_search_iterations = 12
    reward_terms = ("reward_forward", "reward_ctrl", "reward_contact", "reward_survive")

    def finish(self, data: Data) -> Data:
        """With the contact forces on each body."""
        return self._mjx.rne_postconstraint(self._model, data)

    def mark(self, data: Data) -> Float[Array, ""]:
        """x of the torso (m)."""
        return data.xpos[1, 0]

    def settle(self, data: Data) -> Data:
        """With the bodies' positions; contact forces are zero after a reset."""
        return self._mjx.kinematics(self._model, data)

    def observe(self, data: Data) -> Float[Array, "O"]:
        """All coordinates but x and y, and the contact forces."""
        return jnp.concatenate([data.qpos[2:], data.qvel, _contact_forces(data)[1:].ravel()])

    def outcome(
        self, before: Simulation, control: Float[Array, "8"], after: Data
    ) -> tuple[dict[str, Float[Array, ""]], Bool[Array, ""]]:
        """Speed along x over the step in m/s, 1 if healthy after it, less 0.5 times the squared action and 0.0005 times the
        squared contact forces."""
        ended = ~(_healthy(after.qpos[2]) & jnp.all(jnp.isfinite(jnp.concatenate([after.qpos, after.qvel]))))
        terms = {
            "reward_forward": (self.mark(after) - before.mark) / self.dt,
            "reward_ctrl": -CONTROL_COST * jnp.sum(control**2),
            "reward_contact": -CONTACT_COST * jnp.sum(_contact_forces(after) ** 2),
            "reward_survive": (~ended).astype(float),
        }
        return terms, ended


class TruncatedAnt(Ant):
    """As `Ant`, but its observation has no contact forces."""

    gymnasium_options = MappingProxyType({"include_cfrc_ext_in_observation": False})

    def observe(self, data: Data) -> Float[Array, "27"]:
        """All coordinates but x and y."""
        return jnp.concatenate([data.qpos[2:], data.qvel])


def _contact_forces(data: Data) -> Float[Array, "14 6"]:
    return jnp.clip(data._impl.cfrc_ext, -MAX_CONTACT_FORCE, MAX_CONTACT_FORCE)


def _healthy(height: Float[Array, "*n"]) -> Bool[Array, "*n"]:
    return (height >= MIN_HEIGHT) & (height <= MAX_HEIGHT)


def terminated(next_observation: Float[Array, "*n O"]) -> Bool[Array, "*n"]:
    """The torso is not between 0.2 and 1 m high, or a coordinate is not finite."""
    finite = jnp.all(jnp.isfinite(next_observation[..., :COORDINATES]), axis=-1)
    return ~(_healthy(next_observation[..., 0]) & finite)


def ant() -> Task:
    """`Ant-v5`: 1,000 steps."""
    return make_task("Ant-v5", Ant(), 1000, terminated=terminated)


def ant_truncated() -> Task:
    """`Ant-v5/truncated`: 1,000 steps."""
    return make_task("Ant-v5/truncated", TruncatedAnt(), 1000, terminated=terminated)
