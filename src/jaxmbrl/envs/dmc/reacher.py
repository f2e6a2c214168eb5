"""DeepMind Control's reacher (Tassa et al., arXiv 1801.00690; code: google-deepmind/dm_control, suite/reacher.py and
reacher.xml): an arm of two links, without gravity, brings its finger to a target in the plane.

Links are capsules of water's density; a ball is at the finger. A step of 0.02 s is MuJoCo's semi-implicit Euler step with
implicit damping. The wrist has a soft limit at 160 degrees; the shoulder has none.

Accuracy: in float64 a step differs from dm_control's by less than 1e-12 of the largest velocity, limit included.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from jaxmbrl.core.types import Key, Task
from jaxmbrl.envs.base import State, initial_state, make_task, never
from jaxmbrl.envs.dmc.joints import DENSITY, Limit, capsule_inertia, capsule_mass
from jaxmbrl.envs.dmc.rewards import tolerance
from jaxmbrl.envs.dmc.two_links import TwoLinks
from jaxmbrl.envs.drawing.canvas import BODY, GOAL, INK, ROD, TRACK, Canvas
from jaxmbrl.envs.drawing.scene import Scene, disc, rod

TORQUE = 0.05  # N m at action 1
FRICTION = 0.01  # N m s / rad, at each joint
DT = 0.02  # s
LENGTH = 0.12  # m, from joint to joint, and from the wrist to the finger
ARM, HAND, RADIUS = 0.12, 0.1, 0.01  # m: lengths of the capsules, radius of the capsules and of the finger
EASY, HARD = 0.05, 0.015  # m, radius of the target


def _links() -> TwoLinks:
    arm, hand, finger = capsule_mass(RADIUS, ARM), capsule_mass(RADIUS, HAND), DENSITY * 4 / 3 * math.pi * RADIUS**3
    second = capsule_inertia(hand, RADIUS, HAND) + hand * (HAND / 2) ** 2 + finger * (LENGTH**2 + 2 / 5 * RADIUS**2)
    first = capsule_inertia(arm, RADIUS, ARM) + arm * (ARM / 2) ** 2 + (hand + finger) * LENGTH**2
    return TwoLinks(first, second, LENGTH * (hand * HAND / 2 + finger * LENGTH))


LINKS = _links()
_FROM_SHOULDER = LINKS.first + LINKS.second + 2 * LINKS.coupling
WRIST = Limit(
    bound=math.radians(160.0),
    time_constant=2 * DT,  # MuJoCo's default of 0.02 s, raised to two steps
    inverse_inertia=_FROM_SHOULDER / (_FROM_SHOULDER * LINKS.second - (LINKS.second + LINKS.coupling) ** 2),
)


class Reacher:
    """State [shoulder, wrist angle (rad, 0 stretched along x), their velocities (rad/s), target x, y (m)]; observation
    [shoulder, wrist angle, target minus finger x, y (m), velocities]; action [torques / 0.05 N m]."""

    actuator_range = (-TORQUE, TORQUE)  # N m
    observation_size = 6
    observation_names = ("angle 1", "angle 2", "x", "y", "angular velocity 1", "angular velocity 2")
    action_size = 2
    dt = DT

    def __init__(self, target: float) -> None:
        self._target, self.reward = target, _reward(target)

    def state_at(self, coordinates: Float[Array, "6"]) -> State:
        """The state with the given coordinates."""
        return initial_state(coordinates, self._observe(coordinates))

    def reset(self, rng: Key) -> State:
        """At rest; the shoulder uniform over the circle, the wrist within its limits; the target at a uniform distance of 5
        to 20 cm in a uniform direction."""
        angles_key, distance_key, direction_key = jax.random.split(rng, 3)
        high = jnp.array([jnp.pi, WRIST.bound])
        angles = jax.random.uniform(angles_key, (2,), minval=-high, maxval=high)
        distance = jax.random.uniform(distance_key, minval=0.05, maxval=0.2)
        direction = jax.random.uniform(direction_key, maxval=2 * jnp.pi)
        target = distance * jnp.stack([jnp.sin(direction), jnp.cos(direction)])
        return self.state_at(jnp.concatenate([angles, jnp.zeros(2), target]))

    def step(self, state: State, action: Float[Array, "2"]) -> State:
        """One step of 0.02 s under constant torques. The reward is that of the state after it."""
        angles, rates, target = jnp.split(state.pipeline_state, 3)
        wrist = angles[1]
        torque = TORQUE * jnp.clip(action, -1.0, 1.0) - FRICTION * rates - LINKS.centrifugal(wrist, rates)
        m11, _, _, determinant = LINKS.mass(wrist)
        limit = WRIST.force(wrist, rates[1], LINKS.accelerations(wrist, torque)[1], m11 / determinant)
        torque = torque.at[1].add(limit)
        rates = rates + DT * LINKS.accelerations(wrist, torque, DT * FRICTION)
        coordinates = jnp.concatenate([angles + DT * rates, rates, target])
        observation = self._observe(coordinates)
        earned = self.reward(state.obs, action, observation)
        return state.replace(pipeline_state=coordinates, obs=observation, reward=earned)

    def _observe(self, coordinates: Float[Array, "6"]) -> Float[Array, "6"]:
        angles, rates, target = jnp.split(coordinates, 3)
        directions = jnp.cumsum(angles)
        finger = LENGTH * jnp.stack([jnp.sum(jnp.cos(directions)), jnp.sum(jnp.sin(directions))])
        return jnp.concatenate([angles, target - finger, rates])

    def draw(self, state: State, action: Float[np.ndarray, "2"] | None) -> UInt8[np.ndarray, "H W 3"]:
        """The arm, its target as a disc within the circle of its reach, and the torques as arrows."""
        shoulder, wrist, _, _, *target = map(float, state.pipeline_state)
        canvas = Canvas(width=0.62, size=(360, 360))
        canvas.ring((0.0, 0.0), 2 * LENGTH, TRACK)
        canvas.disc(target, self._target, GOAL)
        joint = (LENGTH * math.cos(shoulder), LENGTH * math.sin(shoulder))
        tip = (joint[0] + LENGTH * math.cos(shoulder + wrist), joint[1] + LENGTH * math.sin(shoulder + wrist))
        canvas.rod((0.0, 0.0), joint, 2 * RADIUS, BODY)
        canvas.rod(joint, tip, 1.6 * RADIUS, ROD)
        for at in ((0.0, 0.0), joint, tip):
            canvas.disc(at, 0.7 * RADIUS, INK)
        if action is not None:
            turned = 1.2 * np.clip(action, -1, 1)
            canvas.turn((0.0, 0.0), 0.055, shoulder, float(turned[0]))
            canvas.turn(joint, 0.045, shoulder + wrist, float(turned[1]))
        return canvas.picture()

    def scene(self, state: State) -> Scene:
        """The arm and its target."""
        shoulder, wrist, _, _, *target = state.pipeline_state
        joint = (LENGTH * jnp.cos(shoulder), LENGTH * jnp.sin(shoulder))
        tip = (joint[0] + LENGTH * jnp.cos(shoulder + wrist), joint[1] + LENGTH * jnp.sin(shoulder + wrist))
        shapes = (
            disc(tuple(target), self._target, GOAL),
            rod((0.0, 0.0), joint, 3 * RADIUS, BODY),
            rod(joint, tip, 2.4 * RADIUS, ROD),
        )
        return Scene(shapes, width=0.6)


def _reward(target: float) -> Callable[..., Float[Array, "*n"]]:
    def reward(
        observation: Float[Array, "*n 6"], action: Float[Array, "*n 2"], next_observation: Float[Array, "*n 6"]
    ) -> Float[Array, "*n"]:
        """1 while the finger touches the target, otherwise 0."""
        return tolerance(jnp.linalg.norm(next_observation[..., 2:4], axis=-1), (0.0, target + RADIUS))

    return reward


def _task(name: str, target: float) -> Task:
    env = Reacher(target)
    return make_task(name, env, 1000, env.reward, never)


def easy() -> Task:
    """`dmc/reacher-easy`: 1,000 steps, a target of 5 cm radius."""
    return _task("dmc/reacher-easy", EASY)


def hard() -> Task:
    """`dmc/reacher-hard`: 1,000 steps, a target of 1.5 cm radius."""
    return _task("dmc/reacher-hard", HARD)
