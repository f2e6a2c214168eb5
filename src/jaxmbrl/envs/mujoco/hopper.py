"""Gymnasium's Hopper-v5: a leg with three joints hops forward.

The reward is not a function of the observation: it depends on the distance moved along x, and x is not observed. In
practice, termination is a function of the observation. The one exception: the task also ends at velocities beyond 100, and
the observation clips them at 10. Random and extreme policies stay below 20.

Accuracy: one step from each of 3,000 states that random policies reach differs from C MuJoCo's solution by 2e-15 in
float64. The difference from Gymnasium is the same in all but 4 states; there it is up to 2e-7, because C's solver stopped
early at its tolerance of 1e-8. In float32 the difference is up to 1.5e-5.

Solver iterations: on those states, 4 iterations with 8 line-search steps and 6 with 12 are equally exact. A step in a batch
of 1,024 takes 0.51 ms of CPU time with 4 and 8, and 0.65 ms with 6 and 12. On states drawn at random over the joints'
ranges, mostly inside the floor, neither is right everywhere, and 4 and 8 are wrong in 0.7% more of the states, which could
affect a planner that goes beyond the states that policies reach. The task uses 4 and 8.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxmbrl.core.types import Task
from jaxmbrl.envs.base import make_task
from jaxmbrl.envs.mujoco.mjx_env import Data, MujocoEnv, Simulation

MIN_HEIGHT = 0.7  # m
MAX_ANGLE = 0.2  # rad
MAX_STATE = 100.0  # any angle (rad) or velocity (m/s, rad/s)
MAX_OBSERVED_SPEED = 10.0  # m/s, rad/s
CONTROL_COST = 1e-3


class Hopper(MujocoEnv):
    """Observation [height (m), torso angle, thigh, leg and foot joint (rad), then the velocities of x, height and the four
    angles (m/s, rad/s), clipped to +-10]; action [thigh, leg, foot torque / 200 N m]."""

    gymnasium_id = "Hopper-v5"
    xml = "hopper.xml"
    frame_skip = 4
    reset_noise = 5e-3
    iterations = 4
    line_search_iterations = 8
    reward_terms = ("reward_forward", "reward_ctrl", "reward_survive")

    def observe(self, data: Data) -> Float[Array, "11"]:
        """All coordinates except x."""
        return jnp.concatenate([data.qpos[1:], jnp.clip(data.qvel, -MAX_OBSERVED_SPEED, MAX_OBSERVED_SPEED)])

    def outcome(
        self, before: Simulation, control: Float[Array, "3"], after: Data
    ) -> tuple[dict[str, Float[Array, ""]], Bool[Array, ""]]:
        """Mean speed over the step in m/s, plus 1 if healthy after it, minus 0.001 times the squared action."""
        ended = terminated(jnp.concatenate([after.qpos[1:], after.qvel]))
        terms = {
            "reward_forward": (after.qpos[0] - before.qpos[0]) / self.dt,
            "reward_ctrl": -CONTROL_COST * jnp.sum(control**2),
            "reward_survive": (~ended).astype(float),
        }
        return terms, ended


def terminated(next_observation: Float[Array, "*n 11"]) -> Bool[Array, "*n"]:
    """Whether the torso is at 0.7 m or below, leans by 0.2 rad or more, or a number is beyond +-100 or not finite."""
    height, rest = next_observation[..., 0], next_observation[..., 1:]
    healthy = (height > MIN_HEIGHT) & (height < jnp.inf) & (jnp.abs(rest[..., 0]) < MAX_ANGLE)
    return ~(healthy & jnp.all(jnp.abs(rest) < MAX_STATE, axis=-1))


def hopper() -> Task:
    """`Hopper-v5`: 1,000 steps."""
    return make_task("Hopper-v5", Hopper(), 1000, terminated=terminated)
