"""Parking a car at the origin, facing along x: the example of Tassa, Mansard and Todorov (Control-limited differential
dynamic programming, ICRA 2014), with the numbers of its code (iLQG, demo_car.m).

The car has two axles at a distance d = 2. The state is the position of the rear axle's centre, the heading and the speed of
the front wheels. In a step of h = 0.03 s these roll by f = h speed in the direction of the steering angle w:

    rear axle   rolls by  b = d + f cos w - sqrt(d^2 - f^2 sin^2 w)  along the heading
    heading     turns by  asin(f sin w / d);    speed changes by  h acceleration

    cost of a step = 0.01 w^2 + 0.0001 a^2 + 0.001 (l(x, 0.1) + l(y, 0.1)) of the state before it
    at the end     + 0.1 l(x, 0.01) + 0.1 l(y, 0.01) + l(heading, 0.01) + 0.3 l(speed, 1),    l(z, p) = sqrt(z^2 + p^2) - p

The heading is not wrapped: the car must turn back by 3/2 pi from where it starts. The reward of the last step contains the
cost at the end, so the observation contains the time.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from jaxmbrl.core.types import Key, Task
from jaxmbrl.envs.base import State, initial_state, make_task, never
from jaxmbrl.envs.drawing.canvas import BODY, GOAL, INK, ROD, Canvas
from jaxmbrl.envs.drawing.scene import Scene, disc, rod

AXLES = 2.0  # m
DT = 0.03  # s
STEERING = 0.5  # rad at action 1
ACCELERATION = 2.0  # m / s^2 at action 1
STEPS = 500
START = (1.0, 1.0, 1.5 * math.pi, 0.0)


def _length(z: Float[Array, "*n"], width: float) -> Float[Array, "*n"]:
    """|z|, smooth within `width` of 0."""
    return jnp.sqrt(z**2 + width**2) - width


class CarParking:
    """State [x, y of the rear axle (m), heading (rad), speed (m/s), number of past steps]; the observation is the same,
    with the share of the 500 steps that are past; action [steering angle / 0.5 rad, acceleration / 2 m/s^2]."""

    actuator_range = ((-STEERING, -ACCELERATION), (STEERING, ACCELERATION))  # rad, m / s^2
    observation_size = 5
    observation_names = ("x", "y", "heading", "speed", "time")
    action_size = 2
    dt = DT

    def state_at(self, coordinates: Float[Array, "5"]) -> State:
        """The state with the given coordinates."""
        return initial_state(coordinates, self._observe(coordinates))

    def reset(self, rng: Key) -> State:
        """At rest at (1, 1) with the heading 3/2 pi, always."""
        return self.state_at(jnp.array([*START, 0.0], float))

    def step(self, state: State, action: Float[Array, "2"]) -> State:
        """One step of 0.03 s."""
        x, y, heading, speed, past = state.pipeline_state
        steering, acceleration = jnp.array([STEERING, ACCELERATION], action.dtype) * jnp.clip(action, -1.0, 1.0)
        rolled = DT * speed
        along, across = rolled * jnp.cos(steering), rolled * jnp.sin(steering)
        rear = AXLES + along - jnp.sqrt(AXLES**2 - across**2)
        after = jnp.stack(
            [
                x + rear * jnp.cos(heading),
                y + rear * jnp.sin(heading),
                heading + jnp.arcsin(across / AXLES),
                speed + DT * acceleration,
                past + 1,
            ]
        )
        observation = self._observe(after)
        return state.replace(pipeline_state=after, obs=observation, reward=reward(state.obs, action, observation))

    def _observe(self, coordinates: Float[Array, "5"]) -> Float[Array, "5"]:
        return coordinates.at[4].divide(STEPS)

    def draw(self, state: State, action: Float[np.ndarray, "2"] | None) -> UInt8[np.ndarray, "H W 3"]:
        """The car, with its front wheels turned, and a ring around the goal of the rear axle."""
        x, y, heading = map(float, state.pipeline_state[:3])
        steering = 0.0 if action is None else STEERING * float(np.clip(action[0], -1, 1))
        canvas = Canvas(width=8.0, size=(360, 360))
        canvas.ring((0.0, 0.0), 0.3, GOAL, 3.0)
        ahead = np.array([math.cos(heading), math.sin(heading)])
        aside = np.array([-ahead[1], ahead[0]])
        front = np.array([x, y]) + AXLES * ahead
        canvas.box(tuple((np.array([x, y]) + front) / 2), (2.8, 1.2), BODY, heading)
        for axle, angle in ((np.array([x, y]), heading), (front, heading + steering)):
            for side in (-0.55, 0.55):
                canvas.box(tuple(axle + side * aside), (0.5, 0.18), INK, angle)
        canvas.rod((x, y), tuple(front), 0.12, ROD)
        return canvas.picture()

    def scene(self, state: State) -> Scene:
        """The car from above, its front in another colour, and the goal of the rear axle."""
        x, y, heading, *_ = state.pipeline_state
        front = (x + AXLES * jnp.cos(heading), y + AXLES * jnp.sin(heading))
        shapes = (
            disc((0.0, 0.0), 0.4, GOAL),
            rod((x, y), front, 1.2, BODY),
            disc(front, 0.4, ROD),
            disc((x, y), 0.25, INK),
        )
        return Scene(shapes, width=8.0)


def reward(
    observation: Float[Array, "*n 5"], action: Float[Array, "*n 2"], next_observation: Float[Array, "*n 5"]
) -> Float[Array, "*n"]:
    """Minus the cost of the step, and of the end after the last step."""
    steering, acceleration = jnp.moveaxis(jnp.clip(action, -1.0, 1.0), -1, 0)
    x, y = observation[..., 0], observation[..., 1]
    cost = 0.01 * (STEERING * steering) ** 2 + 1e-4 * (ACCELERATION * acceleration) ** 2
    cost = cost + 1e-3 * (_length(x, 0.1) + _length(y, 0.1))
    x, y, heading, speed, time = jnp.moveaxis(next_observation, -1, 0)
    end = 0.1 * (_length(x, 0.01) + _length(y, 0.01)) + _length(heading, 0.01) + 0.3 * _length(speed, 1.0)
    return -cost - jnp.where(time > 1 - 0.5 / STEPS, end, 0.0)


def car_parking() -> Task:
    """`car-parking`: 500 steps, always from the same state."""
    return make_task("car-parking", CarParking(), STEPS, reward, never)
