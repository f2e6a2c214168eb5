"""Gymnasium's Reacher-v5: an arm with two joints brings its fingertip to a target in the plane.

The task never terminates. The observation contains the vector from target to fingertip, so it determines the reward.

Accuracy: only the limit of one joint constrains this model, so 4 solver iterations with 8 line-search steps are enough. One
step from each of 1,000 states that random and scripted policies reach differs from C MuJoCo's solution by 4e-14 in float64.
The difference from Gymnasium is the same in all but 1 state; there it is 4.6e-7, because C's solver stopped early. In
float32 the difference is up to 3.7e-3, with velocities up to 126 rad/s.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxmbrl.core.types import Key, Task
from jaxmbrl.envs.base import make_task, never
from jaxmbrl.envs.mujoco.mjx_env import Data, MujocoEnv, Simulation
from jaxmbrl.envs.mujoco.scenes import ABOVE, Camera

MAX_DISTANCE = 0.2  # m, of the target from the shoulder
ARM_NOISE = 0.1  # rad
SPEED_NOISE = 5e-3  # rad/s


class Reacher(MujocoEnv):
    """Observation [cosine of both joints, sine of both, target x and y (m), velocities of both joints (rad/s), fingertip
    minus target in x and y (m)]; action [torque / 200 N m of both joints]."""

    gymnasium_id = "Reacher-v5"
    xml = "reacher.xml"
    camera = Camera(width=0.5, centre=(0.0, 0.0, 0.0), up=ABOVE)
    frame_skip = 2
    iterations = 4
    line_search_iterations = 8
    reward_terms = ("reward_dist", "reward_ctrl")

    def initial(self, rng: Key) -> tuple[Float[Array, "4"], Float[Array, "4"]]:
        """Joints up to 0.1 rad from straight, with up to 0.005 rad/s. The target is at rest, at a random position within
        0.2 m of the shoulder."""
        arm_key, speed_key, distance_key, angle_key = jax.random.split(rng, 4)
        arm = self._data.qpos[:2] + jax.random.uniform(arm_key, (2,), minval=-ARM_NOISE, maxval=ARM_NOISE)
        speed = jax.random.uniform(speed_key, (2,), minval=-SPEED_NOISE, maxval=SPEED_NOISE)
        distance = MAX_DISTANCE * jnp.sqrt(jax.random.uniform(distance_key))
        angle = jax.random.uniform(angle_key, maxval=2 * jnp.pi)
        target = distance * jnp.stack([jnp.cos(angle), jnp.sin(angle)])
        return jnp.concatenate([arm, target]), jnp.concatenate([speed, jnp.zeros(2)])

    def settle(self, data: Data) -> Data:
        """Add the bodies' positions."""
        return self._mjx.kinematics(self._model, data)

    def observe(self, data: Data) -> Float[Array, "10"]:
        """Joints, target, velocities, and the vector from target to fingertip."""
        arm = data.qpos[:2]
        way = data.xpos[self.mj_model.body("fingertip").id] - data.xpos[self.mj_model.body("target").id]
        return jnp.concatenate([jnp.cos(arm), jnp.sin(arm), data.qpos[2:], data.qvel[:2], way[:2]])

    def outcome(
        self, before: Simulation, control: Float[Array, "2"], after: Data
    ) -> tuple[dict[str, Float[Array, ""]], Bool[Array, ""]]:
        """Minus the distance from target to fingertip in m, minus the squared action; never terminated."""
        return _terms(control, self.observe(after)), jnp.zeros((), bool)


def _terms(control: Float[Array, "*n 2"], next_observation: Float[Array, "*n 10"]) -> dict[str, Float[Array, "*n"]]:
    return {
        "reward_dist": -jnp.linalg.norm(next_observation[..., 8:10], axis=-1),
        "reward_ctrl": -jnp.sum(control**2, axis=-1),
    }


def reward(
    observation: Float[Array, "*n 10"], action: Float[Array, "*n 2"], next_observation: Float[Array, "*n 10"]
) -> Float[Array, "*n"]:
    """Minus the distance from target to fingertip in m, minus the squared action."""
    terms = _terms(action, next_observation)
    return terms["reward_dist"] + terms["reward_ctrl"]


def reacher() -> Task:
    """`Reacher-v5`: 50 steps."""
    return make_task("Reacher-v5", Reacher(), 50, reward, never)
