"""Gymnasium's MountainCarContinuous-v0: a car too weak for the hill swings back and forth to gain speed.

What differs: Gymnasium rounds positions and velocities to float32 after each step; here they keep JAX's default float.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxmbrl.core.types import Key, Task
from jaxmbrl.envs.base import State, initial_state, make_task

POWER = 0.0015  # change of velocity in a step at action 1
GRAVITY = 0.0025  # change of velocity in a step on the steepest slope
MIN_POSITION, MAX_POSITION = -1.2, 0.6
MAX_SPEED = 0.07
GOAL = 0.45
GOAL_REWARD = 100.0
CONTROL_COST = 0.1


class MountainCar:
    """State and observation [position, velocity (positions per step)]; action [engine power, 1 is full power forward]."""

    actuator_range = (-1.0, 1.0)  # share of the engine's power
    observation_size = 2
    action_size = 1

    def state_at(self, coordinates: Float[Array, "2"]) -> State:
        """The state with the given position and velocity."""
        return initial_state(coordinates, coordinates)

    def reset(self, rng: Key) -> State:
        """At rest, position uniform in [-0.6, -0.4]."""
        return self.state_at(jnp.stack([jax.random.uniform(rng, minval=-0.6, maxval=-0.4), jnp.zeros(())]))

    def step(self, state: State, action: Float[Array, "1"]) -> State:
        """One step. The walls at -1.2 and 0.6 bound the position, but only the left wall sets the velocity to 0."""
        position, velocity = state.pipeline_state
        force = jnp.clip(action[0], -1.0, 1.0)
        velocity = velocity + force * POWER - GRAVITY * jnp.cos(3 * position)
        velocity = jnp.clip(velocity, -MAX_SPEED, MAX_SPEED)
        position = jnp.clip(position + velocity, MIN_POSITION, MAX_POSITION)
        velocity = jnp.where(position <= MIN_POSITION, jnp.maximum(velocity, 0.0), velocity)
        coordinates = jnp.stack([position, velocity])
        return state.replace(
            pipeline_state=coordinates,
            obs=coordinates,
            reward=reward(state.obs, action, coordinates),
            done=terminated(coordinates).astype(state.done.dtype),
        )


def reward(
    observation: Float[Array, "*n 2"], action: Float[Array, "*n 1"], next_observation: Float[Array, "*n 2"]
) -> Float[Array, "*n"]:
    """100 on reaching the goal, minus 0.1 times the squared action before clipping."""
    return GOAL_REWARD * terminated(next_observation) - CONTROL_COST * action[..., 0] ** 2


def terminated(next_observation: Float[Array, "*n 2"]) -> Bool[Array, "*n"]:
    """Whether the car is at 0.45 or beyond, with a velocity of at least 0."""
    return (next_observation[..., 0] >= GOAL) & (next_observation[..., 1] >= 0.0)


def mountain_car_continuous() -> Task:
    """`mountain-car-continuous`: 999 steps, as in Gymnasium."""
    return make_task("mountain-car-continuous", MountainCar(), 999, reward, terminated)
