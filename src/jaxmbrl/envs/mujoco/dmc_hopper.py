"""DeepMind Control's hopper (code: google-deepmind/dm_control, suite/hopper.py and hopper.xml): a planar leg with four
motors stands or hops forward.

Accuracy: one step from each of 1,000 states that dm_control reaches differs from C MuJoCo's solution by 8e-14 in
float64, and in float32 by 1e-6 in half of the states and up to 4e-4. With 4 solver iterations and 8 line-search steps,
43 of 3,000 states are wrong, by up to 0.3. The task uses 6 and 12.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmbrl.core.types import Task
from jaxmbrl.envs.base import make_task, never
from jaxmbrl.envs.dmc.rewards import tolerance
from jaxmbrl.envs.mujoco.dmc_env import DmcEnv
from jaxmbrl.envs.mujoco.mjx_env import Data
from jaxmbrl.envs.mujoco.planar import Planar, planar

HEIGHT, HIGHEST = 0.6, 2.0  # m, of the torso above the foot
SPEED = 2.0  # m/s


class Hopper(DmcEnv):
    """Observation [height of the torso from its start (m), its angle, waist, hip, knee and ankle (rad), then the velocities
    of x, height and the five angles (m/s, rad/s), then log(1 + force / 1 N) of the contacts at toe and heel]; action
    [torque / (30, 40, 30, 10 N m) of waist, hip, knee and ankle]."""

    xml = "dmc/hopper.xml"
    frame_skip = 4
    iterations = 6
    line_search_iterations = 12
    sensors = True

    def __init__(self, hop: bool) -> None:
        super().__init__()
        model = self.mj_model
        torso, foot = (model.body(name).id - 1 for name in ("torso", "foot"))
        self.reward = _reward(planar(model), torso, foot, hop)

    def settle(self, data: Data) -> Data:
        """Add the contact forces."""
        return self._mjx.forward(self._model, data)

    def observe(self, data: Data) -> Float[Array, "15"]:
        """All coordinates except x, and the touch sensors, which follow three numbers of another."""
        return jnp.concatenate([data.qpos[1:], data.qvel, jnp.log1p(data.sensordata[3:])])


def _reward(body: Planar, torso: int, foot: int, hop: bool) -> Callable[..., Float[Array, "*n"]]:
    def reward(
        observation: Float[Array, "*n 15"], action: Float[Array, "*n 4"], next_observation: Float[Array, "*n 15"]
    ) -> Float[Array, "*n"]:
        """1 while the torso is 0.6 to 2 m above the foot, times a term for the speed of the centre of mass or, to stand,
        for small controls; in [0, 1]."""
        # The position along x, which is not observed, does not matter.
        position = jnp.concatenate([jnp.zeros_like(next_observation[..., :1]), next_observation[..., :6]], axis=-1)
        velocity = next_observation[..., 6:13]
        direction = body.directions(position)
        cos, sin = jnp.cos(direction), jnp.sin(direction)
        standing = tolerance(body.height_above(torso, foot, cos, sin), (HEIGHT, HIGHEST))
        if hop:
            speed = body.speed(velocity[..., 0], cos, sin, body.directions(velocity))
            return standing * tolerance(speed, (SPEED, jnp.inf), margin=SPEED / 2, shape="linear", at_margin=0.5)
        small = tolerance(action, margin=1.0, shape="quadratic", at_margin=0.0)
        return standing * (jnp.mean(small, axis=-1) + 4) / 5

    return reward


def _task(name: str, hop: bool) -> Task:
    env = Hopper(hop)
    return make_task(name, env, 1000, env.reward, never)


def stand() -> Task:
    """`dmc/hopper-stand`: 1,000 steps."""
    return _task("dmc/hopper-stand", False)


def hop() -> Task:
    """`dmc/hopper-hop`: 1,000 steps."""
    return _task("dmc/hopper-hop", True)
