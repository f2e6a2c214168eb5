"""Agents that share out landmarks among themselves in the plane: the simple spread task of the multi-agent particle
environments (Lowe et al., arXiv 1706.02275), with all agents as one environment.

An agent is a disc of 0.15 m and 1 kg with a force of its own. A step of 0.1 s, for all agents at once:

    p' = p + 0.1 v,    v' = 0.75 v + 0.1 (5 a + contact forces)

Two agents whose distance d is less than 0.3 m push each other away with 100 m softplus((0.3 - d) / m) N, m = 0.001. The
positions move with the old velocities, as in JaxMARL (Rutherford et al., arXiv 2311.10090); in the original code they move
with the new ones, which `new_velocity` selects.

The reward is that of the team: minus the distance of each landmark to the nearest agent, minus 1 for each pair of agents
that touch. Differs from the original: each agent there has a reward of its own, in which it also collides with itself;
JaxMARL weighs the parts by one half each. Actions are forces in [-1, 1] along x and y, not five numbers in [0, 1].
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from jaxmbrl.core.extremes import smallest
from jaxmbrl.core.roots import root
from jaxmbrl.core.types import Features, Key, Task
from jaxmbrl.envs.base import State, initial_state, make_task, never
from jaxmbrl.envs.drawing.canvas import BODY, GOAL, INK, ROD, Canvas
from jaxmbrl.envs.drawing.scene import Scene, disc

DT = 0.1  # s
DAMPING = 0.25  # share of the velocity that is lost in a step
FORCE = 5.0  # N at action 1
RADIUS = 0.15  # m
CONTACT = 100.0  # N / m
MARGIN = 1e-3  # m
EXTENT = 1.0  # m: agents and landmarks start in [-1, 1]


def parts(observation: Float[Array, "*n O"]) -> tuple[Array, Array, Array]:
    """(positions, velocities, landmarks) of an observation, each [*n, agents, 2]."""
    shape = (*observation.shape[:-1], 3, observation.shape[-1] // 6, 2)
    positions, velocities, landmarks = jnp.moveaxis(observation.reshape(shape), -3, 0)
    return positions, velocities, landmarks


def between(points: Float[Array, "*n k 2"], others: Float[Array, "*n l 2"]) -> Float[Array, "*n k l"]:
    """The distance of each of the `points` to each of the `others`."""
    return root(jnp.sum((points[..., :, None, :] - others[..., None, :, :]) ** 2, axis=-1))


def contact_forces(positions: Float[Array, "agents 2"]) -> Float[Array, "agents 2"]:
    """The sum of the forces in N with which the other agents push each agent away."""
    apart = positions[:, None] - positions[None]
    distance = root(jnp.sum(apart**2, axis=-1))
    # At the distance 0, as of an agent from itself, there is no direction.
    size = jnp.where(distance > 0, CONTACT * MARGIN * jax.nn.softplus((2 * RADIUS - distance) / MARGIN), 0.0)
    return jnp.sum(size[..., None] * apart / jnp.where(distance > 0, distance, 1.0)[..., None], axis=1)


class Spread:
    """State and observation: positions (m), velocities (m/s) and landmarks (m) of all agents, [x, y] of each; action [force
    / 5 N, x and y of each agent]."""

    dt = DT

    def __init__(self, agents: int = 2, new_velocity: bool = False) -> None:
        self.agents = agents
        self.observation_size, self.action_size = 6 * agents, 2 * agents
        self.observation_names = tuple(
            f"{what} {axis} {i + 1}" for what in ("p", "v", "landmark") for i in range(agents) for axis in ("x", "y")
        )
        self._new_velocity = new_velocity

    def state_at(self, coordinates: Float[Array, "O"]) -> State:
        """The state with the given coordinates."""
        return initial_state(coordinates, coordinates)

    def reset(self, rng: Key) -> State:
        """At rest, agents and landmarks uniform in a square of 2 m."""
        places = jax.random.uniform(rng, (2, 2 * self.agents), minval=-EXTENT, maxval=EXTENT)
        return self.state_at(jnp.concatenate([places[0], jnp.zeros(2 * self.agents), places[1]]))

    def step(self, state: State, action: Float[Array, "A"]) -> State:
        """One step of 0.1 s. The reward is that of the state after the step."""
        positions, velocities, landmarks = parts(state.pipeline_state)
        forces = FORCE * jnp.clip(action, -1.0, 1.0).reshape(self.agents, 2) + contact_forces(positions)
        faster = (1 - DAMPING) * velocities + DT * forces
        positions = positions + DT * (faster if self._new_velocity else velocities)
        coordinates = jnp.concatenate([positions.ravel(), faster.ravel(), landmarks.ravel()])
        return state.replace(pipeline_state=coordinates, obs=coordinates, reward=reward(state.obs, action, coordinates))

    def draw(self, state: State, action: Float[np.ndarray, "A"] | None) -> UInt8[np.ndarray, "H W 3"]:
        """The agents as discs in two colours, the landmarks as rings, and the forces as arrows."""
        positions, _, landmarks = (np.asarray(part) for part in parts(state.pipeline_state))
        canvas = Canvas(width=3.2, size=(360, 360))
        for place in landmarks:
            canvas.ring(place, RADIUS, GOAL, 4.0)
        for i, place in enumerate(positions):
            canvas.disc(place, RADIUS, BODY if i % 2 == 0 else ROD)
            canvas.disc(place, 0.03, INK)
            if action is not None:
                canvas.arrow(place, place + 0.4 * np.clip(action[2 * i : 2 * i + 2], -1, 1))
        return canvas.picture()

    def scene(self, state: State) -> Scene:
        """The agents as discs in two colours, and the landmarks as smaller ones."""
        positions, _, landmarks = parts(state.pipeline_state)
        agents = [disc(positions[first::2], RADIUS, color) for first, color in ((0, BODY), (1, ROD)) if first < self.agents]
        return Scene((*agents, disc(landmarks, 0.08, GOAL)), width=3.2)


def reward(
    observation: Float[Array, "*n O"], action: Float[Array, "*n A"], next_observation: Float[Array, "*n O"]
) -> Float[Array, "*n"]:
    """The team's reward of the state after the step."""
    positions, _, landmarks = parts(next_observation)
    nearest = smallest(between(landmarks, positions), -1)
    touching = between(positions, positions) < 2 * RADIUS
    # Each pair is counted twice, and each agent touches itself.
    pairs = (jnp.sum(touching, axis=(-2, -1)) - positions.shape[-2]) / 2
    return -jnp.sum(nearest, axis=-1) - pairs


def relative(observation: Float[Array, "*n O"]) -> Float[Array, "*n F"]:
    """What the motion depends on: the velocities, and the other agents' positions relative to the first."""
    positions, velocities, _ = parts(observation)
    apart = positions[..., 1:, :] - positions[..., :1, :]
    return jnp.concatenate([part.reshape(*observation.shape[:-1], -1) for part in (velocities, apart)], axis=-1)


def make_spread(name: str, agents: int) -> Task:
    """The task of `agents` agents and as many landmarks: 25 steps. A dynamics model need not learn the landmarks, which are
    constant in an episode."""
    features = Features(relative, constant=tuple(range(4 * agents, 6 * agents)))
    return make_task(name, Spread(agents), 25, reward, never, features=features)


def spread_2() -> Task:
    """`spread-2`: two agents."""
    return make_spread("spread-2", 2)
