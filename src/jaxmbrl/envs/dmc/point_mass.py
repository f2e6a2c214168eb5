"""DeepMind Control's point mass (Tassa et al., arXiv 1801.00690; code: google-deepmind/dm_control, suite/point_mass.py and
point_mass.xml): two motors bring a ball to the middle of a square. In the hard task each motor pushes in a direction that
is random in each episode and not observed.

A step of 0.02 s is MuJoCo's semi-implicit Euler step with implicit damping. Soft limits are at 0.29 m.

Accuracy: in float64 a step differs from dm_control's by less than 1e-12, limits included.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from jaxmbrl.core.types import Key, Task
from jaxmbrl.envs.base import State, initial_state, make_task, never
from jaxmbrl.envs.dmc.joints import Limit
from jaxmbrl.envs.dmc.rewards import tolerance
from jaxmbrl.envs.drawing.canvas import BODY, GOAL, TRACK, Canvas
from jaxmbrl.envs.drawing.scene import Scene, disc, path

FORCE = 0.1  # N at action 1
MASS, RADIUS = 0.3, 0.01  # kg, m
FRICTION = 1.0  # N s / m
DT = 0.02  # s
TARGET = 0.015  # m, radius of the target
SIDE = Limit(bound=0.29, time_constant=2 * DT, inverse_inertia=1 / MASS)
PARALLEL = 0.9
"""The largest cosine, without sign, of the angle between the directions of the motors."""


class PointMass:
    """State [x, y (m), their velocities (m/s), x, y of the first motor's direction, x, y of the second's]; observation [x,
    y, velocities]; action [forces / 0.1 N]."""

    actuator_range = (-FORCE, FORCE)  # N
    observation_size = 4
    observation_names = ("x", "y", "velocity x", "velocity y")
    action_size = 2
    dt = DT

    def __init__(self, random_directions: bool) -> None:
        self._random_directions = random_directions

    def state_at(self, coordinates: Float[Array, "8"]) -> State:
        """The state with the given coordinates."""
        return initial_state(coordinates, coordinates[:4])

    def reset(self, rng: Key) -> State:
        """At rest, uniform over the square. In the hard task the first motor's direction is uniform over the circle, the
        second's over the part of it that is not nearly parallel."""
        place_key, directions_key = jax.random.split(rng)
        place = jax.random.uniform(place_key, (2,), minval=-SIDE.bound, maxval=SIDE.bound)
        directions = _directions(directions_key) if self._random_directions else jnp.eye(2).ravel()
        return self.state_at(jnp.concatenate([place, jnp.zeros(2), directions]))

    def step(self, state: State, action: Float[Array, "2"]) -> State:
        """One step of 0.02 s under constant forces. The reward is that of the state after it."""
        place, velocity, first, second = jnp.split(state.pipeline_state, 4)
        pushes = FORCE * jnp.clip(action, -1.0, 1.0)
        force = pushes[0] * first + pushes[1] * second - FRICTION * velocity
        limit = jax.vmap(lambda x, v, a: SIDE.force(x, v, a, jnp.asarray(1 / MASS, a.dtype)))
        force = force + limit(place, velocity, force / MASS)
        velocity = velocity + DT * force / (MASS + DT * FRICTION)
        coordinates = jnp.concatenate([place + DT * velocity, velocity, first, second])
        observation = coordinates[:4]
        earned = reward(state.obs, action, observation)
        return state.replace(pipeline_state=coordinates, obs=observation, reward=earned)

    def draw(self, state: State, action: Float[np.ndarray, "2"] | None) -> UInt8[np.ndarray, "H W 3"]:
        """The ball, its target, the sides of the square, and the forces as arrows."""
        place, _, *directions = np.split(np.asarray(state.pipeline_state, float), 4)
        canvas = Canvas(width=0.66, size=(360, 360))
        corners = [(x * SIDE.bound, y * SIDE.bound) for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1), (-1, -1))]
        canvas.line(corners, TRACK)
        canvas.disc((0.0, 0.0), TARGET, GOAL)
        canvas.disc(place, RADIUS, BODY)
        for direction, push in zip(directions, () if action is None else np.clip(action, -1, 1), strict=False):
            canvas.arrow(place, place + 0.1 * push * direction)
        return canvas.picture()

    def scene(self, state: State) -> Scene:
        """The ball, its target, and the sides of the square."""
        place = state.pipeline_state[:2]
        corners = tuple((x * SIDE.bound, y * SIDE.bound) for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1), (-1, -1)))
        shapes = (path(corners, 0.015, TRACK), disc((0.0, 0.0), 1.5 * TARGET, GOAL), disc(place, 2 * RADIUS, BODY))
        return Scene(shapes, width=0.66)


def _directions(key: Key) -> Float[Array, "4"]:
    """Of the first motor and the second, each x and y."""
    first_key, between_key, side_key = jax.random.split(key, 3)
    first = jax.random.uniform(first_key, maxval=2 * math.pi)
    least = math.acos(PARALLEL)
    between = jax.random.uniform(between_key, minval=least, maxval=math.pi - least)
    second = first + between * jax.random.rademacher(side_key, (), between.dtype)
    return jnp.stack([jnp.cos(first), jnp.sin(first), jnp.cos(second), jnp.sin(second)])


def reward(
    observation: Float[Array, "*n 4"], action: Float[Array, "*n 2"], next_observation: Float[Array, "*n 4"]
) -> Float[Array, "*n"]:
    """1 in the target and less outside, times a term for small forces; in [0, 1]."""
    distance = jnp.linalg.norm(next_observation[..., :2], axis=-1)
    small_forces = jnp.mean(tolerance(action, margin=1.0, shape="quadratic", at_margin=0.0), axis=-1)
    return tolerance(distance, (0.0, TARGET), margin=TARGET) * (small_forces + 4) / 5


def easy() -> Task:
    """`dmc/point_mass-easy`: 1,000 steps."""
    return make_task("dmc/point_mass-easy", PointMass(random_directions=False), 1000, reward, never)


def hard() -> Task:
    """`dmc/point_mass-hard`: 1,000 steps."""
    return make_task("dmc/point_mass-hard", PointMass(random_directions=True), 1000, reward, never)
