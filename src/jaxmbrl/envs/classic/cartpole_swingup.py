"""PILCO's cart-pole swing-up: swing up a pendulum by moving the cart it hangs from, and balance it over the middle of the
track.

The numbers are those of PILCO's toolbox, version 0.9 (folder scenarios/cartPole):

- `dynamics_cp` has the masses, the length of the pendulum (0.5 m; an earlier description of the task by Rasmussen has
  0.6 m), the friction and gravity. The equations of motion are derived in Deisenroth, Efficient Reinforcement Learning
  using Gaussian Processes (2010), appendix C.2.
- `settings_cp` has the control at 10 Hz with zero-order hold, the duration of 4 s, the force of 10 N, the distribution of
  start states and the width of the cost.
- `loss_cp` has the saturating cost of Deisenroth and Rasmussen, PILCO: A Model-Based and Data-Efficient Approach to Policy
  Search (ICML 2011). It depends on the distance of the pendulum's tip from the upright position over the middle:

    cost = 1 - exp(-distance^2 / (2 * 0.25^2)),  distance^2 = (x + l sin(angle))^2 + (l + l cos(angle))^2.

What differs: the reward is 1 - cost, in [0, 1], of the state after the step, so a return is 40 minus the sum of costs. The
observation is exact; the toolbox adds noise with a standard deviation of 0.01 to each coordinate. The force is clipped to
10 N; the toolbox's policies squash it. The observation of `cartpole-swingup` has sine and cosine of the angle, that of
`cartpole-swingup/angle` the angle itself, as in the toolbox.

Accuracy: one step from each of 2,000 states with speeds up to 5 m/s and 15 rad/s differs from the exact solution by at most
1.1e-5 in any coordinate (float64).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from jaxmbrl.core.types import Key, SaturatingReward, Task
from jaxmbrl.envs.base import State, angle_features, initial_state, make_task, never
from jaxmbrl.envs.classic.integration import runge_kutta
from jaxmbrl.envs.classic.pictures import cart_scene, cart_with_pole
from jaxmbrl.envs.drawing.canvas import GOAL, INK, TRACK, Canvas
from jaxmbrl.envs.drawing.scene import Dots, Scene, disc

FORCE = 10.0  # N at action 1
GRAVITY = 9.82  # m / s^2
CART_MASS = 0.5  # kg
PENDULUM_MASS = 0.5  # kg, a uniform rod
LENGTH = 0.5  # m
FRICTION = 0.1  # N s / m, between cart and track
DT = 0.1  # s
SUBSTEPS = 20
START_DEVIATION = 0.1  # m, m/s, rad/s, rad
COST_WIDTH = 0.25  # m

FEATURES = angle_features(4, (3,))
"""[position, velocity, angular velocity, sin, cos] of [position, velocity, angular velocity, angle]."""
REWARD = SaturatingReward(
    matrix=np.array([[1.0, 0.0, 0.0, LENGTH, 0.0], [0.0, 0.0, 0.0, 0.0, LENGTH]]) / COST_WIDTH,
    target=np.array([0.0, 0.0, 0.0, 0.0, -1.0]),
)


def _derivative(coordinates: Float[Array, "4"], force: Float[Array, ""]) -> Float[Array, "4"]:
    _, velocity, spin, angle = coordinates
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    push = force - FRICTION * velocity + PENDULUM_MASS * LENGTH / 2 * spin**2 * sin
    pull = 3 / 4 * PENDULUM_MASS * GRAVITY * sin * cos
    linear = (push + pull) / (CART_MASS + PENDULUM_MASS - 3 / 4 * PENDULUM_MASS * cos**2)
    angular = -3 / (2 * LENGTH) * (linear * cos + GRAVITY * sin)
    return jnp.stack([velocity, linear, angular, spin])


class CartPoleSwingUp:
    """State [position (m), velocity (m/s), angular velocity (rad/s), angle (rad, 0 hanging down, growing as the tip moves
    forward)]; observation [position, velocity, angular velocity, sin, cos]; action [force / 10 N]."""

    actuator_range = (-FORCE, FORCE)  # N
    observation_size = 5
    observation_names: tuple[str, ...] = ("position", "velocity", "angular velocity", "sin", "cos")
    action_size = 1
    dt = DT

    def state_at(self, coordinates: Float[Array, "4"]) -> State:
        """The state with the given coordinates."""
        return initial_state(coordinates, self._observe(coordinates))

    def reset(self, rng: Key) -> State:
        """Normal around hanging at rest in the middle, each coordinate with standard deviation 0.1."""
        return self.state_at(START_DEVIATION * jax.random.normal(rng, (4,)))

    def step(self, state: State, action: Float[Array, "1"]) -> State:
        """One step of 0.1 s under a constant force; the reward is that of the state after it."""
        force = FORCE * jnp.clip(action[0], -1.0, 1.0)
        coordinates = runge_kutta(lambda y: _derivative(y, force), state.pipeline_state, DT, SUBSTEPS)
        after = FEATURES.encode(coordinates)
        earned = reward(after, action, after)
        return state.replace(pipeline_state=coordinates, obs=self._observe(coordinates), reward=earned)

    def _observe(self, coordinates: Float[Array, "4"]) -> Float[Array, "*o"]:
        return FEATURES.encode(coordinates)

    def draw(self, state: State, action: Float[np.ndarray, "1"] | None) -> UInt8[np.ndarray, "H W 3"]:
        """The cart with its pendulum, a ring around the goal of the tip, and the force as an arrow. The picture follows a
        cart that leaves the middle; marks on the track are half a metre apart."""
        position, _, _, angle = map(float, state.pipeline_state)
        middle = position - min(max(position, -0.9), 0.9)
        canvas = Canvas(width=3.0, centre=(middle, 0.05), size=(480, 240))
        for mark in range(math.floor(2 * middle) - 4, math.ceil(2 * middle) + 5):
            canvas.line([(mark / 2, -0.105), (mark / 2, -0.15)], TRACK)
        canvas.ring((0.0, LENGTH), 0.09, GOAL, 3.0)
        tip = (position + LENGTH * math.sin(angle), -LENGTH * math.cos(angle))
        push = 0.0 if action is None else 0.4 * float(np.clip(action[0], -1, 1))
        cart_with_pole(canvas, position, tip, 0.25, push)
        return canvas.picture()

    def scene(self, state: State) -> Scene:
        """The cart with its pendulum, and the goal of the tip. The picture follows a cart that leaves the middle; marks on
        the track are half a metre apart."""
        position, _, _, angle = state.pipeline_state
        middle = position - jnp.clip(position, -0.9, 0.9)
        marks = Dots((0.0, -0.2), ((0.5, 0.0),), 0.03, INK)
        tip = (position + LENGTH * jnp.sin(angle), -LENGTH * jnp.cos(angle))
        goal = disc((0.0, LENGTH), 0.1, GOAL)
        return Scene((marks, goal, *cart_scene(position, tip, 0.3)), width=3.0, centre=(middle, 0.0))


def reward(
    observation: Float[Array, "*n 5"], action: Float[Array, "*n 1"], next_observation: Float[Array, "*n 5"]
) -> Float[Array, "*n"]:
    """exp(-distance^2 / (2 * 0.25^2)) of the pendulum's tip, in [0, 1]; [sin, cos] need not lie on the circle."""
    position, sin, cos = next_observation[..., 0], next_observation[..., 3], next_observation[..., 4]
    squared = (position + LENGTH * sin) ** 2 + (LENGTH + LENGTH * cos) ** 2
    return jnp.exp(-squared / (2 * COST_WIDTH**2))


class CartPoleSwingUpAngle(CartPoleSwingUp):
    """The same with the observation [position, velocity, angular velocity, angle], which is the state."""

    observation_size = 4
    observation_names = ("position", "velocity", "angular velocity", "angle")

    def _observe(self, coordinates: Float[Array, "4"]) -> Float[Array, "4"]:
        return coordinates


def reward_of_angle(
    observation: Float[Array, "*n 4"], action: Float[Array, "*n 1"], next_observation: Float[Array, "*n 4"]
) -> Float[Array, "*n"]:
    """The same reward of observations with the angle."""
    return reward(FEATURES.encode(observation), action, FEATURES.encode(next_observation))


def cartpole_swingup() -> Task:
    """`cartpole-swingup`: 40 steps; the return is at most 40."""
    return make_task("cartpole-swingup", CartPoleSwingUp(), 40, reward, never, saturating=REWARD)


def cartpole_swingup_angle() -> Task:
    """`cartpole-swingup/angle`: the same with the angle in the observation."""
    return make_task(
        "cartpole-swingup/angle",
        CartPoleSwingUpAngle(),
        40,
        reward_of_angle,
        never,
        features=FEATURES,
        saturating=REWARD,
    )
