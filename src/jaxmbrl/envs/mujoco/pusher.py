"""Gymnasium's Pusher-v5: an arm with seven joints pushes a cylinder over a table to a goal.

The task never terminates. The observation contains the positions of fingertip, cylinder and goal, so it determines the
reward.

Accuracy: a contact of hand and cylinder is the same as in C MuJoCo while they overlap by less than 2 cm (`contacts`). One
step from each of 1,000 states that random policies and a pushing policy reach differs from C MuJoCo's solution by 1e-13 in
float64. Gymnasium differs from that solution by up to 3e-5 in 27 of the states, where C's search for that contact stopped
at its tolerance of 1e-6. 4 solver iterations with 8 line-search steps are enough.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxmbrl.core.types import Key, Task
from jaxmbrl.envs.base import make_task, never
from jaxmbrl.envs.mujoco.mjx_env import Data, MujocoEnv, Simulation
from jaxmbrl.envs.mujoco.scenes import oblique

MIN_DISTANCE = 0.17  # m, of the cylinder from the goal at the start
SPEED_NOISE = 5e-3  # rad/s
MAX_TORQUE = 2.0  # N m
NEAR_COST, CONTROL_COST = 0.5, 0.1


class Pusher(MujocoEnv):
    """Observation [the seven joints (rad) and their velocities (rad/s), then the positions of fingertip, cylinder and goal,
    each x, y, z (m)]; action [torque / 2 N m of the seven joints]."""

    gymnasium_id = "Pusher-v5"
    xml = "pusher_v5.xml"
    camera = oblique(1.8, (0.3, -0.2, -0.1), 90.0, 45.0)
    frame_skip = 5
    iterations = 4
    line_search_iterations = 8
    reward_terms = ("reward_dist", "reward_ctrl", "reward_near")

    def initial(self, rng: Key) -> tuple[Float[Array, "11"], Float[Array, "11"]]:
        """The arm in the position of the model file, with up to 0.005 rad/s at each joint. The cylinder is at rest, at a
        random position in a box of 0.3 by 0.4 m beside the goal and more than 0.17 m from it."""
        place_key, speed_key = jax.random.split(rng)

        def draw(drawn: tuple[Key, Float[Array, "2"]]) -> tuple[Key, Float[Array, "2"]]:
            key, drawing = jax.random.split(drawn[0])
            return key, jax.random.uniform(drawing, (2,), minval=jnp.asarray([-0.3, -0.2]), maxval=jnp.asarray([0.0, 0.2]))

        def too_near(drawn: tuple[Key, Float[Array, "2"]]) -> Bool[Array, ""]:
            return jnp.linalg.norm(drawn[1]) <= MIN_DISTANCE

        cylinder = jax.lax.while_loop(too_near, draw, draw((place_key, jnp.zeros(2))))[1]
        speed = jax.random.uniform(speed_key, (7,), minval=-SPEED_NOISE, maxval=SPEED_NOISE)
        qpos = jnp.concatenate([self._data.qpos[:7], cylinder, jnp.zeros(2)])
        return qpos, jnp.concatenate([speed, jnp.zeros(4)])

    def settle(self, data: Data) -> Data:
        """Add the bodies' positions."""
        return self._mjx.kinematics(self._model, data)

    def observe(self, data: Data) -> Float[Array, "23"]:
        """The joints and their velocities, and the positions of fingertip, cylinder and goal."""
        places = [data.xpos[self.mj_model.body(name).id] for name in ("tips_arm", "object", "goal")]
        return jnp.concatenate([data.qpos[:7], data.qvel[:7], *places])

    def outcome(
        self, before: Simulation, control: Float[Array, "7"], after: Data
    ) -> tuple[dict[str, Float[Array, ""]], Bool[Array, ""]]:
        """Minus the distance of cylinder and goal in m, minus 0.5 times the distance of fingertip and cylinder, minus 0.1
        times the squared torques; never terminated."""
        return _terms(control, self.observe(after)), jnp.zeros((), bool)


def _terms(control: Float[Array, "*n 7"], next_observation: Float[Array, "*n 23"]) -> dict[str, Float[Array, "*n"]]:
    fingertip, cylinder, goal = (next_observation[..., i : i + 3] for i in (14, 17, 20))
    return {
        "reward_dist": -jnp.linalg.norm(cylinder - goal, axis=-1),
        "reward_ctrl": -CONTROL_COST * jnp.sum(control**2, axis=-1),
        "reward_near": -NEAR_COST * jnp.linalg.norm(cylinder - fingertip, axis=-1),
    }


def reward(
    observation: Float[Array, "*n 23"], action: Float[Array, "*n 7"], next_observation: Float[Array, "*n 23"]
) -> Float[Array, "*n"]:
    """Minus the distance of cylinder and goal in m, minus 0.5 times the distance of fingertip and cylinder, minus 0.1 times
    the squared torques."""
    terms = _terms(MAX_TORQUE * action, next_observation)
    return terms["reward_dist"] + terms["reward_ctrl"] + terms["reward_near"]


def pusher() -> Task:
    """`Pusher-v5`: 100 steps."""
    return make_task("Pusher-v5", Pusher(), 100, reward, never)
