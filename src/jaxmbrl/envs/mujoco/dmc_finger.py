"""DeepMind Control's finger (code: google-deepmind/dm_control, suite/finger.py and finger.xml): a finger with two motors
turns a free body, to spin it or to bring its tip to a target.

What differs: dm_control's observation of the target is a position of its model, which it changes at each start. Here the
state has the target's angle, and pictures do not show the target.

Accuracy: one step from each of 1,000 states that dm_control reaches differs from C MuJoCo's solution by 2e-7 in
float64, and in float32 by 5e-7 in half of the states and up to 4e-3. In float64 it is beyond 1e-8 in 3 states, in which
both joints rest at their limits under full torques; more iterations do not change it. With 6 solver iterations and 12
line-search steps, 2 of 3,000 states are wrong, by up to 0.01. The task uses 8 and 16.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxmbrl.core.types import Key, Task
from jaxmbrl.envs.base import State, make_task, never
from jaxmbrl.envs.dmc.rewards import tolerance
from jaxmbrl.envs.mujoco.dmc_env import DmcEnv
from jaxmbrl.envs.mujoco.mjx_env import Data, Simulation
from jaxmbrl.envs.mujoco.scenes import Camera

RADIUS = 0.13  # m, of the tip and the target around the hinge
SPIN = 15.0  # rad/s, of the body, clockwise in pictures
SPIN_DAMPING = 0.03  # N m s / rad, of the hinge in the task to spin; the model file has 0.5
EASY, HARD = 0.07, 0.03  # m, radius of the target


class Finger(DmcEnv):
    """Observation [proximal and distal joint (rad), x, z of the body's tip from its hinge (m), velocities of proximal,
    distal and hinge (rad/s), log(1 + force / 1 N) of the contacts at the upper and the lower side of the fingertip]; action
    [torque / (30, 15 N m) of the proximal and the distal joint]."""

    xml = "dmc/finger.xml"
    frame_skip = 2
    iterations = 8
    line_search_iterations = 16
    camera = Camera(width=1.0, centre=(0.0, 0.0, 0.35))
    sensors = True

    def adjust(self, model: Any) -> None:
        """Keep the places of the touch sensors, and hide the sites of target and tip, as dm_control does in the task to
        spin: the model's target is not that of a state."""
        super().adjust(model)
        for site in ("target", "tip"):
            model.site(site).rgba[3] = 0.0
        self._touch = np.array([model.sensor(name).adr[0] for name in ("touchtop", "touchbottom")])

    def initial(self, rng: Key) -> tuple[Float[Array, "3"], Float[Array, "3"]]:
        """At rest, the finger's joints uniform within their limits, the hinge uniform over the circle, where the finger
        does not touch the body."""
        sample = super().initial
        return self.apart(lambda key: sample(key)[0], rng), jnp.zeros(3)

    def observe(self, data: Data) -> Float[Array, "9"]:
        """Joints, tip, velocities and touch."""
        turned = data.qpos[2]
        tip = RADIUS * jnp.stack([-jnp.sin(turned), jnp.cos(turned)])
        return jnp.concatenate([data.qpos[:2], tip, data.qvel, jnp.log1p(data.sensordata[self._touch])])


class Spin(Finger):
    """The finger, for the task to spin the body."""

    def __init__(self) -> None:
        super().__init__()
        self.reward = spin_reward

    def adjust(self, model: Any) -> None:
        """Let the hinge turn easily."""
        super().adjust(model)
        model.dof_damping[model.joint("hinge").dofadr[0]] = SPIN_DAMPING


class Turn(Finger):
    """The finger, for the task to turn the body to a target. The observation ends with x, z of the target from the hinge
    (m) and the distance of the tip from the target's surface (m, negative inside)."""

    def __init__(self, target: float) -> None:
        super().__init__()
        self.reward, self._target = turn_reward, target
        self.observation_size += 3

    def reset(self, rng: Key) -> State:
        """The finger and the body as in `initial`, the target uniform over the circle."""
        body_key, target_key = jax.random.split(rng)
        return self.state_at(*self.initial(body_key), jax.random.uniform(target_key, minval=-jnp.pi, maxval=jnp.pi))

    def state_at(self, qpos: Float[Array, "3"], qvel: Float[Array, "3"], target: Float[Array, ""] | float = 0.0) -> State:
        """The first state of an episode with the given positions (rad) and velocities (rad/s), and the target at an angle
        in rad, 0 above the hinge."""
        state = super().state_at(qpos, qvel)
        return self._with_target(state.replace(info={"target": jnp.asarray(target, float)}))

    def outcome(
        self, before: Simulation, control: Float[Array, "2"], after: Data
    ) -> tuple[dict[str, Float[Array, ""]], Bool[Array, ""]]:
        """No reward, which `step` adds because it depends on the target; never terminated."""
        return {"reward_task": jnp.zeros(())}, jnp.zeros((), bool)

    def step(self, state: State, action: Float[Array, "2"]) -> State:
        """One control step. The reward is 1 while the tip is in the target after it."""
        after = self._with_target(super().step(state, action))
        earned = self.reward(state.obs, action, after.obs)
        return after.replace(reward=earned, metrics={**after.metrics, "reward_task": earned})

    def _with_target(self, state: State) -> State:
        angle = state.info["target"]
        target = RADIUS * jnp.stack([jnp.sin(angle), jnp.cos(angle)])
        distance = jnp.linalg.norm(target - state.obs[2:4]) - self._target
        return state.replace(obs=jnp.concatenate([state.obs, target, distance[None]]))


def spin_reward(
    observation: Float[Array, "*n 9"], action: Float[Array, "*n 2"], next_observation: Float[Array, "*n 9"]
) -> Float[Array, "*n"]:
    """1 while the body turns at 15 rad/s or more in the negative direction, otherwise 0."""
    return tolerance(next_observation[..., 6], (-math.inf, -SPIN))


def turn_reward(
    observation: Float[Array, "*n 12"], action: Float[Array, "*n 2"], next_observation: Float[Array, "*n 12"]
) -> Float[Array, "*n"]:
    """1 while the tip is in the target, otherwise 0."""
    return tolerance(next_observation[..., 11], (-math.inf, 0.0))


def spin() -> Task:
    """`dmc/finger-spin`: 1,000 steps."""
    return make_task("dmc/finger-spin", Spin(), 1000, spin_reward, never)


def turn_easy() -> Task:
    """`dmc/finger-turn-easy`: 1,000 steps, a target of 7 cm radius."""
    return make_task("dmc/finger-turn-easy", Turn(EASY), 1000, turn_reward, never)


def turn_hard() -> Task:
    """`dmc/finger-turn-hard`: 1,000 steps, a target of 3 cm radius."""
    return make_task("dmc/finger-turn-hard", Turn(HARD), 1000, turn_reward, never)
