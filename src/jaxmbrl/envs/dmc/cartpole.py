"""DeepMind Control's cartpole (Tassa et al., arXiv 1801.00690; code: google-deepmind/dm_control, suite/cartpole.py and
cartpole.xml): a cart on a rail of 3.6 m balances a pole, or swings it up.

The pole is a capsule with centre of mass at c from its joint. With the angle 0 upright,

    [ m + M        m c cos(angle) ] [cart's acceleration   ]   [ F + m c rate^2 sin(angle) - friction * velocity ]
    [ m c cos(angle)      J       ] [angular acceleration  ] = [ m g c sin(angle) - pole friction * rate         ]

Beyond 1.8 m a soft limit pushes the cart back. One classical Runge-Kutta step of order 4 integrates 0.01 s, as MuJoCo does.

Accuracy: in float64 a step differs from dm_control's by less than 1e-12, limit included.
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
from jaxmbrl.envs.classic.pictures import cart_scene, cart_with_pole
from jaxmbrl.envs.dmc.joints import Limit, capsule_inertia
from jaxmbrl.envs.dmc.rewards import tolerance
from jaxmbrl.envs.drawing.canvas import GOAL, TRACK, Canvas
from jaxmbrl.envs.drawing.scene import Scene, disc, rod

FORCE = 10.0  # N at action 1
CART_MASS, POLE_MASS = 1.0, 0.1  # kg
CENTRE = 0.5  # m, from the pole's joint to its centre of mass
POLE = 1.0  # m
FRICTION, POLE_FRICTION = 5e-4, 2e-6  # N s / m, N m s / rad
GRAVITY = 9.81  # m / s^2
DT = 0.01  # s
MASS = CART_MASS + POLE_MASS
MOMENT = POLE_MASS * CENTRE
INERTIA = POLE_MASS * CENTRE**2 + capsule_inertia(POLE_MASS, 0.045, POLE)  # kg m^2, about the joint
RAIL = Limit(bound=1.8, time_constant=0.08, inverse_inertia=INERTIA / (MASS * INERTIA - MOMENT**2))

BALANCED_POSITION, BALANCED_COSINE = 0.25, 0.995  # m; of the sparse reward


def _derivative(coordinates: Float[Array, "4"], force: Float[Array, ""]) -> Float[Array, "4"]:
    position, angle, velocity, rate = coordinates
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    push = force + MOMENT * rate**2 * sin - FRICTION * velocity
    turn = MOMENT * GRAVITY * sin - POLE_FRICTION * rate
    coupling = MOMENT * cos
    determinant = MASS * INERTIA - coupling**2
    free = (INERTIA * push - coupling * turn) / determinant
    push = push + RAIL.force(position, velocity, free, INERTIA / determinant)
    linear = (INERTIA * push - coupling * turn) / determinant
    angular = (MASS * turn - coupling * push) / determinant
    return jnp.stack([velocity, rate, linear, angular])


class CartPole:
    """State [position (m), angle (rad, 0 upright, growing as the tip moves forward), velocity (m/s), angular velocity
    (rad/s)]; observation [position, cos, sin, velocity, angular velocity]; action [force / 10 N]."""

    actuator_range = (-FORCE, FORCE)  # N
    observation_size = 5
    observation_names = ("position", "cos", "sin", "velocity", "angular velocity")
    action_size = 1
    dt = DT

    def __init__(self, swing_up: bool, sparse: bool) -> None:
        self._swing_up, self._reward = swing_up, sparse_reward if sparse else reward

    def state_at(self, coordinates: Float[Array, "4"]) -> State:
        """The state with the given coordinates."""
        return initial_state(coordinates, self._observe(coordinates))

    def reset(self, rng: Key) -> State:
        """To swing up: hanging, position and angle normal with a standard deviation of 0.01 m and rad. To balance: position
        within 0.1 m, angle within 0.034 rad. Velocities are normal with a standard deviation of 0.01 m/s and rad/s."""
        place_key, speed_key = jax.random.split(rng)
        if self._swing_up:
            place = jnp.array([0.0, math.pi]) + 0.01 * jax.random.normal(place_key, (2,))
        else:
            place = jnp.array([0.1, 0.034]) * jax.random.uniform(place_key, (2,), minval=-1.0)
        return self.state_at(jnp.concatenate([place, 0.01 * jax.random.normal(speed_key, (2,))]))

    def step(self, state: State, action: Float[Array, "1"]) -> State:
        """One step of 0.01 s under a constant force. The reward is that of the state after it."""
        force = FORCE * jnp.clip(action[0], -1.0, 1.0)
        coordinates = runge_kutta(lambda y: _derivative(y, force), state.pipeline_state, DT, 1)
        observation = self._observe(coordinates)
        earned = self._reward(state.obs, action, observation)
        return state.replace(pipeline_state=coordinates, obs=observation, reward=earned)

    def _observe(self, coordinates: Float[Array, "4"]) -> Float[Array, "5"]:
        position, angle, velocity, rate = coordinates
        return jnp.stack([position, jnp.cos(angle), jnp.sin(angle), velocity, rate])

    def draw(self, state: State, action: Float[np.ndarray, "1"] | None) -> UInt8[np.ndarray, "H W 3"]:
        """The cart on its rail with the pole, a ring around the goal of the tip, and the force as an arrow."""
        position, angle, _, _ = map(float, state.pipeline_state)
        canvas = Canvas(width=4.8, centre=(0.0, 0.1), size=(480, 270))
        for side in (-RAIL.bound, RAIL.bound):
            canvas.line([(side, -0.3), (side, -0.1)], TRACK, 4.0)
        canvas.ring((0.0, POLE), 0.12, GOAL, 3.0)
        tip = (position + POLE * math.sin(angle), POLE * math.cos(angle))
        push = 0.0 if action is None else 0.6 * float(np.clip(action[0], -1, 1))
        cart_with_pole(canvas, position, tip, 0.4, push)
        return canvas.picture()

    def scene(self, state: State) -> Scene:
        """The cart on its rail with the pole, the ends of the rail, and the goal of the tip."""
        position, angle, _, _ = state.pipeline_state
        ends = [rod((side, -0.4), (side, -0.1), 0.1, TRACK) for side in (-RAIL.bound, RAIL.bound)]
        tip = (position + POLE * jnp.sin(angle), POLE * jnp.cos(angle))
        return Scene((*ends, disc((0.0, POLE), 0.14, GOAL), *cart_scene(position, tip, 0.5)), width=4.4)


def reward(
    observation: Float[Array, "*n 5"], action: Float[Array, "*n 1"], next_observation: Float[Array, "*n 5"]
) -> Float[Array, "*n"]:
    """The product of (1 + cos) / 2 and of terms for a cart near the middle, a small force and a small angular velocity; in
    [0, 1]."""
    position, cos, _, _, rate = (next_observation[..., i] for i in range(5))
    centred = (1 + tolerance(position, margin=2.0)) / 2
    small_force = (4 + tolerance(action[..., 0], margin=1.0, shape="quadratic", at_margin=0.0)) / 5
    slow = (1 + tolerance(rate, margin=5.0)) / 2
    return (cos + 1) / 2 * small_force * slow * centred


def sparse_reward(
    observation: Float[Array, "*n 5"], action: Float[Array, "*n 1"], next_observation: Float[Array, "*n 5"]
) -> Float[Array, "*n"]:
    """1 while the cart is within 0.25 m of the middle and the cosine of the angle at least 0.995, otherwise 0."""
    near = tolerance(next_observation[..., 0], (-BALANCED_POSITION, BALANCED_POSITION))
    # Without an upper bound, because a predicted cosine may be beyond 1.
    return near * tolerance(next_observation[..., 1], (BALANCED_COSINE, math.inf))


def _task(name: str, swing_up: bool, sparse: bool) -> Task:
    return make_task(name, CartPole(swing_up, sparse), 1000, sparse_reward if sparse else reward, never)


def balance() -> Task:
    """`dmc/cartpole-balance`: 1,000 steps."""
    return _task("dmc/cartpole-balance", False, False)


def balance_sparse() -> Task:
    """`dmc/cartpole-balance-sparse`: 1,000 steps."""
    return _task("dmc/cartpole-balance-sparse", False, True)


def swingup() -> Task:
    """`dmc/cartpole-swingup`: 1,000 steps."""
    return _task("dmc/cartpole-swingup", True, False)


def swingup_sparse() -> Task:
    """`dmc/cartpole-swingup-sparse`: 1,000 steps."""
    return _task("dmc/cartpole-swingup-sparse", True, True)
