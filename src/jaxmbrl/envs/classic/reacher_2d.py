"""A planar arm with two links reaches for a random target. It has a motor at each joint; there is no gravity.

This is our own task, similar to Gymnasium's Reacher but with analytic dynamics. The links are uniform rods. The equations
of motion are those of Spong, Hutchinson and Vidyasagar, Robot Modeling and Control (2006), section 7.4, with friction at
the joints.

Accuracy: one step from each of 2,000 states with speeds up to 10 rad/s differs from the exact solution by at most 1.4e-5 in
any coordinate (float64).
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
from jaxmbrl.envs.drawing.canvas import BODY, GOAL, INK, ROD, TRACK, Canvas
from jaxmbrl.envs.drawing.scene import Scene, disc, rod

LENGTH = 0.5  # m, of each link
MASS = 1.0  # kg, of each link
FRICTION = 0.2  # N m s / rad, at each joint
TORQUE = (2.0, 1.0)  # N m at action 1
DT = 0.05  # s
SUBSTEPS = 20
REACH = 0.95  # m, of the farthest target; the arm's is 1 m
CONTROL_COST = 0.01


def _derivative(motion: Float[Array, "4"], torque: Float[Array, "2"]) -> Float[Array, "4"]:
    _, elbow, spin, elbow_spin = motion
    inertia = MASS * LENGTH**2
    cos, sin = jnp.cos(elbow), jnp.sin(elbow)
    m11, m12, m22 = inertia * (5 / 3 + cos), inertia * (1 / 3 + cos / 2), inertia / 3
    centrifugal = inertia / 2 * sin * jnp.stack([-elbow_spin * (2 * spin + elbow_spin), spin**2])
    t1, t2 = torque - FRICTION * motion[2:] - centrifugal
    determinant = m11 * m22 - m12**2
    return jnp.stack([spin, elbow_spin, (m22 * t1 - m12 * t2) / determinant, (m11 * t2 - m12 * t1) / determinant])


class Reacher2D:
    """State [shoulder, elbow angle (rad, 0 stretched along x), their velocities (rad/s), target x, y (m)]; observation
    [cos, sin of the shoulder, cos, sin of the elbow, velocities, target minus tip x, y (m)]; action [shoulder's torque
    / 2 N m, elbow's torque / 1 N m]."""

    actuator_range = ((-2.0, -1.0), TORQUE)  # N m
    observation_size = 8
    observation_names = ("cos 1", "sin 1", "cos 2", "sin 2", "angular velocity 1", "angular velocity 2", "x", "y")
    action_size = 2
    dt = DT

    def state_at(self, coordinates: Float[Array, "6"]) -> State:
        """The state with the given coordinates."""
        return initial_state(coordinates, self._observe(coordinates))

    def reset(self, rng: Key) -> State:
        """At rest, angles uniform over the circle, the target uniform over a disc of 0.95 m around the shoulder."""
        angle_key, radius_key, direction_key = jax.random.split(rng, 3)
        angles = jax.random.uniform(angle_key, (2,), minval=-jnp.pi, maxval=jnp.pi)
        radius = REACH * jnp.sqrt(jax.random.uniform(radius_key))
        direction = jax.random.uniform(direction_key, minval=-jnp.pi, maxval=jnp.pi)
        target = radius * jnp.stack([jnp.cos(direction), jnp.sin(direction)])
        return self.state_at(jnp.concatenate([angles, jnp.zeros(2), target]))

    def step(self, state: State, action: Float[Array, "2"]) -> State:
        """One step of 0.05 s under constant torques. The reward is that of the state after the step."""
        torque = jnp.asarray(TORQUE, action.dtype) * jnp.clip(action, -1.0, 1.0)
        motion = runge_kutta(lambda y: _derivative(y, torque), state.pipeline_state[:4], DT, SUBSTEPS)
        coordinates = jnp.concatenate([motion, state.pipeline_state[4:]])
        observation = self._observe(coordinates)
        return state.replace(pipeline_state=coordinates, obs=observation, reward=reward(state.obs, action, observation))

    def _observe(self, coordinates: Float[Array, "6"]) -> Float[Array, "8"]:
        shoulder, elbow = coordinates[:2]
        tip = LENGTH * jnp.stack(
            [jnp.cos(shoulder) + jnp.cos(shoulder + elbow), jnp.sin(shoulder) + jnp.sin(shoulder + elbow)]
        )
        joints = jnp.stack([jnp.cos(shoulder), jnp.sin(shoulder), jnp.cos(elbow), jnp.sin(elbow)])
        return jnp.concatenate([joints, coordinates[2:4], coordinates[4:] - tip])

    def draw(self, state: State, action: Float[np.ndarray, "2"] | None) -> UInt8[np.ndarray, "H W 3"]:
        """The arm, its target as a disc within the circle of its reach, and the torques as arrows."""
        shoulder, elbow, _, _, *target = map(float, state.pipeline_state)
        canvas = Canvas(width=2.3, size=(360, 360))
        canvas.ring((0.0, 0.0), 2 * LENGTH, TRACK)
        canvas.disc(target, 0.05, GOAL)
        joint = (LENGTH * math.cos(shoulder), LENGTH * math.sin(shoulder))
        tip = (joint[0] + LENGTH * math.cos(shoulder + elbow), joint[1] + LENGTH * math.sin(shoulder + elbow))
        canvas.rod((0.0, 0.0), joint, 0.09, BODY)
        canvas.rod(joint, tip, 0.07, ROD)
        for at, radius in (((0.0, 0.0), 0.03), (joint, 0.025), (tip, 0.02)):
            canvas.disc(at, radius, INK)
        if action is not None:
            turned = 1.2 * np.clip(action, -1, 1)
            canvas.turn((0.0, 0.0), 0.22, shoulder, float(turned[0]))
            canvas.turn(joint, 0.18, shoulder + elbow, float(turned[1]))
        return canvas.picture()

    def scene(self, state: State) -> Scene:
        """The arm, and its target as a disc."""
        shoulder, elbow, _, _, *target = state.pipeline_state
        joint = (LENGTH * jnp.cos(shoulder), LENGTH * jnp.sin(shoulder))
        tip = (joint[0] + LENGTH * jnp.cos(shoulder + elbow), joint[1] + LENGTH * jnp.sin(shoulder + elbow))
        arm = (rod((0.0, 0.0), joint, 0.12, BODY), rod(joint, tip, 0.1, ROD), disc(tip, 0.03, INK))
        return Scene((disc(target, 0.08, GOAL), *arm), width=2.2)


def reward(
    observation: Float[Array, "*n 8"], action: Float[Array, "*n 2"], next_observation: Float[Array, "*n 8"]
) -> Float[Array, "*n"]:
    """Minus the distance between tip and target in m, minus 0.01 times the squared action, clipped to [-1, 1]."""
    distance = jnp.linalg.norm(next_observation[..., 6:], axis=-1)
    return -distance - CONTROL_COST * jnp.sum(jnp.clip(action, -1.0, 1.0) ** 2, axis=-1)


def reacher_2d() -> Task:
    """`reacher-2d`: 100 steps."""
    return make_task("reacher-2d", Reacher2D(), 100, reward, never)
