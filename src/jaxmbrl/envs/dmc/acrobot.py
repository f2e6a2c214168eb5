"""DeepMind Control's acrobot (Tassa et al., arXiv 1801.00690; code: google-deepmind/dm_control, suite/acrobot.py and
acrobot.xml): swing a double pendulum up and balance it, by a motor at the joint between its links.

Links are capsules of 1 kg with cylinders of 1 m. One classical Runge-Kutta step of order 4 integrates 0.01 s, as MuJoCo
does.

Accuracy: in float64 a step differs from dm_control's by less than 1e-12.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from jaxmbrl.core.types import Key, Task
from jaxmbrl.envs.base import State, initial_state, make_task, never
from jaxmbrl.envs.classic.integration import runge_kutta
from jaxmbrl.envs.dmc.joints import capsule_inertia
from jaxmbrl.envs.dmc.rewards import tolerance
from jaxmbrl.envs.dmc.two_links import TwoLinks
from jaxmbrl.envs.drawing.canvas import BODY, GOAL, INK, ROD, Canvas
from jaxmbrl.envs.drawing.scene import Scene, disc, rod

TORQUE = 2.0  # N m at action 1
MASS, LENGTH, CENTRE = 1.0, 1.0, 0.5  # kg, m, m: of each link, the last from its joint to its centre of mass
UPPER_RADIUS, LOWER_RADIUS = 0.05, 0.049  # m
FRICTION = 0.05  # N m s / rad, at each joint
GRAVITY = 9.81  # m / s^2
DT = 0.01  # s
TARGET = 0.2  # m, radius of the target, whose centre is where the tip is upright

LINKS = TwoLinks(
    first=capsule_inertia(MASS, UPPER_RADIUS, LENGTH) + MASS * (CENTRE**2 + LENGTH**2),
    second=capsule_inertia(MASS, LOWER_RADIUS, LENGTH) + MASS * CENTRE**2,
    coupling=MASS * LENGTH * CENTRE,
)


def _derivative(coordinates: Float[Array, "4"], torque: Float[Array, ""]) -> Float[Array, "4"]:
    angles, rates = coordinates[:2], coordinates[2:]
    upper = MASS * GRAVITY * (CENTRE + LENGTH) * jnp.sin(angles[0])
    lower = MASS * GRAVITY * CENTRE * jnp.sin(angles[0] + angles[1])
    torques = jnp.stack([upper + lower, lower + torque]) - FRICTION * rates - LINKS.centrifugal(angles[1], rates)
    return jnp.concatenate([rates, LINKS.accelerations(angles[1], torques)])


class Acrobot:
    """State [shoulder's angle (rad, 0 upright), elbow's angle (rad, 0 stretched), their velocities (rad/s)]; observation
    [sin of the upper and of the lower link's direction, cos of both, velocities of the joints]; action [torque / 2 N m]."""

    actuator_range = (-TORQUE, TORQUE)  # N m
    observation_size = 6
    observation_names = ("sin 1", "sin 2", "cos 1", "cos 2", "angular velocity 1", "angular velocity 2")
    action_size = 1
    dt = DT

    def __init__(self, sparse: bool) -> None:
        self._reward = sparse_reward if sparse else reward

    def state_at(self, coordinates: Float[Array, "4"]) -> State:
        """The state with the given coordinates."""
        return initial_state(coordinates, self._observe(coordinates))

    def reset(self, rng: Key) -> State:
        """At rest, both angles uniform over the circle."""
        angles = jax.random.uniform(rng, (2,), minval=-jnp.pi, maxval=jnp.pi)
        return self.state_at(jnp.concatenate([angles, jnp.zeros(2)]))

    def step(self, state: State, action: Float[Array, "1"]) -> State:
        """One step of 0.01 s under a constant torque. The reward is that of the state after it."""
        torque = TORQUE * jnp.clip(action[0], -1.0, 1.0)
        coordinates = runge_kutta(lambda y: _derivative(y, torque), state.pipeline_state, DT, 1)
        observation = self._observe(coordinates)
        earned = self._reward(state.obs, action, observation)
        return state.replace(pipeline_state=coordinates, obs=observation, reward=earned)

    def _observe(self, coordinates: Float[Array, "4"]) -> Float[Array, "6"]:
        directions = jnp.cumsum(coordinates[:2])
        return jnp.concatenate([jnp.sin(directions), jnp.cos(directions), coordinates[2:]])

    def draw(self, state: State, action: Float[np.ndarray, "1"] | None) -> UInt8[np.ndarray, "H W 3"]:
        """The links, the target as a disc, and the torque as an arrow around the joint between the links."""
        angle, bend, _, _ = map(float, state.pipeline_state)
        canvas = Canvas(width=4.6, size=(360, 360))
        canvas.disc((0.0, 2 * LENGTH), TARGET, GOAL)
        joint = (LENGTH * math.sin(angle), LENGTH * math.cos(angle))
        tip = (joint[0] + LENGTH * math.sin(angle + bend), joint[1] + LENGTH * math.cos(angle + bend))
        canvas.rod((0.0, 0.0), joint, 0.18, BODY)
        canvas.rod(joint, tip, 0.14, ROD)
        for at, radius in (((0.0, 0.0), 0.06), (joint, 0.05), (tip, 0.04)):
            canvas.disc(at, radius, INK)
        if action is not None:
            canvas.turn(joint, 0.35, math.pi / 2 - angle - bend, -1.6 * float(np.clip(action[0], -1, 1)))
        return canvas.picture()

    def scene(self, state: State) -> Scene:
        """The links and the target."""
        angle, bend, _, _ = state.pipeline_state
        joint = (LENGTH * jnp.sin(angle), LENGTH * jnp.cos(angle))
        tip = (joint[0] + LENGTH * jnp.sin(angle + bend), joint[1] + LENGTH * jnp.cos(angle + bend))
        shapes = (disc((0.0, 2 * LENGTH), TARGET, GOAL), rod((0.0, 0.0), joint, 0.25, BODY), rod(joint, tip, 0.2, ROD))
        return Scene(shapes, width=4.6)


def _distance(observation: Float[Array, "*n 6"]) -> Float[Array, "*n"]:
    """Of the tip from the target's centre, in m."""
    across = LENGTH * (observation[..., 0] + observation[..., 1])
    up = LENGTH * (observation[..., 2] + observation[..., 3] - 2)
    return jnp.sqrt(across**2 + up**2)


def reward(
    observation: Float[Array, "*n 6"], action: Float[Array, "*n 1"], next_observation: Float[Array, "*n 6"]
) -> Float[Array, "*n"]:
    """1 while the tip is in the target; outside, it falls to 0.1 within a metre."""
    return tolerance(_distance(next_observation), (0.0, TARGET), margin=1.0)


def sparse_reward(
    observation: Float[Array, "*n 6"], action: Float[Array, "*n 1"], next_observation: Float[Array, "*n 6"]
) -> Float[Array, "*n"]:
    """1 while the tip is in the target, otherwise 0."""
    return tolerance(_distance(next_observation), (0.0, TARGET))


def swingup() -> Task:
    """`dmc/acrobot-swingup`: 1,000 steps."""
    return make_task("dmc/acrobot-swingup", Acrobot(sparse=False), 1000, reward, never)


def swingup_sparse() -> Task:
    """`dmc/acrobot-swingup-sparse`: 1,000 steps."""
    return make_task("dmc/acrobot-swingup-sparse", Acrobot(sparse=True), 1000, sparse_reward, never)
