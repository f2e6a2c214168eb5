"""A mass on a line that a force moves to the origin: the linear-quadratic problem of textbooks, whose optimum is known.

    position' = position + dt velocity + dt^2 / 2 force,    velocity' = velocity + dt force,    dt = 0.1
    cost = (position^2 + velocity^2) / 2 of the state after the step + force^2 / 20

From position 1 at rest, the least cost of 50 steps is 6.1581332; that of a state x is the value of the finite-horizon LQR
with Q = I, R = 0.1 and the final cost I, less the cost x'x / 2 of the first state (`planning.lqr`).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from jaxmbrl.core.types import Key, Task
from jaxmbrl.envs.base import State, initial_state, make_task, never
from jaxmbrl.envs.drawing.canvas import BODY, GOAL, TRACK, Canvas
from jaxmbrl.envs.drawing.scene import Scene, disc, rod

FORCE = 10.0  # N at action 1, of a mass of 1 kg; the optimal force from any start is below 6.1 N
DT = 0.1  # s
FORCE_COST = 0.1


class DoubleIntegrator:
    """State and observation [position (m), velocity (m/s)]; action [force / 10 N]."""

    actuator_range = (-FORCE, FORCE)  # N
    observation_size = 2
    observation_names = ("position", "velocity")
    action_size = 1
    dt = DT

    def state_at(self, coordinates: Float[Array, "2"]) -> State:
        """The state with the given position and velocity."""
        return initial_state(coordinates, coordinates)

    def reset(self, rng: Key) -> State:
        """Position and velocity uniform in [-1, 1]."""
        return self.state_at(jax.random.uniform(rng, (2,), minval=-1.0, maxval=1.0))

    def step(self, state: State, action: Float[Array, "1"]) -> State:
        """One step of 0.1 s under a constant force, which is exact."""
        position, velocity = state.pipeline_state
        force = FORCE * jnp.clip(action[0], -1.0, 1.0)
        after = jnp.stack([position + DT * velocity + DT**2 / 2 * force, velocity + DT * force])
        return state.replace(pipeline_state=after, obs=after, reward=reward(state.obs, action, after))

    def draw(self, state: State, action: Float[np.ndarray, "1"] | None) -> UInt8[np.ndarray, "H W 3"]:
        """The mass on its line, a ring around the origin, and the force as an arrow."""
        position = float(state.pipeline_state[0])
        canvas = Canvas(width=4.0, size=(480, 160))
        canvas.line([(-2.0, -0.12), (2.0, -0.12)], TRACK)
        canvas.ring((0.0, 0.0), 0.2, GOAL, 3.0)
        canvas.box((position, 0.0), (0.24, 0.24), BODY)
        if action is not None:
            canvas.arrow((position, 0.0), (position + float(np.clip(action[0], -1, 1)), 0.0))
        return canvas.picture()

    def scene(self, state: State) -> Scene:
        """The mass as a disc on its line, and the origin."""
        line = rod((-2.0, 0.0), (2.0, 0.0), 0.08, TRACK)
        return Scene((line, disc((0.0, 0.0), 0.2, GOAL), disc((state.pipeline_state[0], 0.0), 0.16, BODY)), width=4.0)


def reward(
    observation: Float[Array, "*n 2"], action: Float[Array, "*n 1"], next_observation: Float[Array, "*n 2"]
) -> Float[Array, "*n"]:
    """Minus half of the squared norm of the next state, minus 1/20 of the squared force in N."""
    force = FORCE * jnp.clip(action[..., 0], -1.0, 1.0)
    return -(jnp.sum(next_observation**2, axis=-1) + FORCE_COST * force**2) / 2


def double_integrator() -> Task:
    """`double-integrator`: 50 steps."""
    return make_task("double-integrator", DoubleIntegrator(), 50, reward, never)
