"""Gymnasium's HalfCheetah-v5: a planar robot with two legs and six motors runs forward.

The reward is not a function of the observation: it depends on the distance moved along x, and x is not observed. The task
never terminates.

Accuracy: one step from each of 3,000 states that random policies reach differs from C MuJoCo's solution by 2e-12 in
float64. The difference from Gymnasium is the same in all but 2 states; there it is up to 1.1e-6, because C's solver stopped
early at its tolerance of 1e-8. In float32 the difference is up to 5.9e-3.

Solver iterations: with 4 iterations and 8 line-search steps, 2 of those states are wrong, by up to 0.33, and 12% of states
drawn at random over the joints' ranges, many of them inside the floor. With 6 and 12, none and 2% are wrong. In float32 a
step in a batch of 1,024 takes 0.30 ms of CPU time with 4 and 8, and 0.46 ms with 6 and 12. The task uses 6 and 12.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxmbrl.core.types import Task
from jaxmbrl.envs.base import make_task, never
from jaxmbrl.envs.mujoco.mjx_env import Data, MujocoEnv, Simulation
from jaxmbrl.envs.mujoco.scenes import Camera

CONTROL_COST = 0.1


class HalfCheetah(MujocoEnv):
    """Observation [height (m), torso angle, back thigh, shin and foot joint, front thigh, shin and foot joint (rad), then
    the velocities of x, height and the seven angles (m/s, rad/s)]; action [torque / (120, 90, 60, 120, 60, 30 N m) of the
    back thigh, shin and foot, front thigh, shin and foot]."""

    gymnasium_id = "HalfCheetah-v5"
    xml = "half_cheetah.xml"
    camera = Camera(width=2.4, centre=(0.0, 0.0, 0.6), follows=(0,))
    frame_skip = 5
    reset_noise = 0.1
    normal_velocities = True
    iterations = 6
    line_search_iterations = 12
    reward_terms = ("reward_forward", "reward_ctrl")

    def observe(self, data: Data) -> Float[Array, "17"]:
        """All coordinates except x."""
        return jnp.concatenate([data.qpos[1:], data.qvel])

    def outcome(
        self, before: Simulation, control: Float[Array, "6"], after: Data
    ) -> tuple[dict[str, Float[Array, ""]], Bool[Array, ""]]:
        """Mean speed over the step in m/s, minus 0.1 times the squared action; never terminated."""
        terms = {
            "reward_forward": (after.qpos[0] - before.qpos[0]) / self.dt,
            "reward_ctrl": -CONTROL_COST * jnp.sum(control**2),
        }
        return terms, jnp.zeros((), bool)


def half_cheetah() -> Task:
    """`HalfCheetah-v5`: 1,000 steps."""
    return make_task("HalfCheetah-v5", HalfCheetah(), 1000, terminated=never)
