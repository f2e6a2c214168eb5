"""Steps of Gymnasium's own MuJoCo tasks, and the same steps of ours."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from jaxmbrl import envs

STEPS = 1000
LONGEST = {"Ant-v5": 100, "Ant-v5/truncated": 100, "Swimmer-v5": 100, "HalfCheetah-v5": 100, "HumanoidStandup-v5": 60}
"""Steps after which a recorded episode that did not end is left for another."""


class Outcome(NamedTuple):
    """What a step told, and where it led."""

    observation: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    qpos: np.ndarray
    qvel: np.ndarray
    terms: np.ndarray
    """In the order of the names in `terms`."""


class Recorded(NamedTuple):
    """Gymnasium's steps, one a row, each from the state in which the running simulation was."""

    qpos: np.ndarray
    qvel: np.ndarray
    warmstart: np.ndarray
    mark: np.ndarray
    action: np.ndarray
    observation: np.ndarray
    contacts: np.ndarray
    theirs: Outcome
    """As Gymnasium has it."""
    solved: Outcome
    """The same with C MuJoCo's solver running to its end, instead of stopping at its tolerance."""


@functools.cache
def ours(name: str):
    """The environment of the task, for what it is named by."""
    return envs.make(name).env


def make_gymnasium(name: str, cone: int | None = None) -> gymnasium.Env:
    """Gymnasium's task under Newton's solver, with another friction cone if given."""
    env = ours(name)
    heard = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda message: None)  # else it goes to a log file in the working folder
    try:
        made = gymnasium.make(env.gymnasium_id, disable_env_checker=True, **env.gymnasium_options)
    finally:
        mujoco.set_mju_user_warning(heard)
    made.unwrapped.model.opt.solver = mujoco.mjtSolver.mjSOL_NEWTON
    if cone is not None:
        made.unwrapped.model.opt.cone = cone
    return made


def terms_of(name: str, info: dict) -> list[float]:
    return [info[term] for term in ours(name).reward_terms if term in info]


def mark_of(name: str, data: mujoco.MjData, model: mujoco.MjModel) -> float:
    """What the reward of the next step measures the way from, where positions do not tell it."""
    if name.startswith("Ant"):
        return data.xpos[1, 0]
    return (model.body_mass * data.xipos[:, 0]).sum() / model.body_mass.sum() if name.startswith("Humanoid-") else 0.0


def actions(kind: int, size: int, reach: float, rng: np.random.Generator):
    """One policy's actions in turn: small noise, uniform, extremes held for seven steps, a gait of sines."""
    phase, period = rng.uniform(0, 2 * np.pi, size), rng.uniform(8, 30)
    held = np.zeros(size)
    for i in range(10**9):
        if i % 7 == 0:
            held = reach * rng.choice([-1.0, 1.0], size)
        yield (
            rng.normal(0.0, 0.3, size),
            rng.uniform(-reach, reach, size),
            held,
            reach * np.sin(2 * np.pi * i / period + phase),
        )[kind]


def reaching(model: mujoco.MjModel, data: mujoco.MjData, rng: np.random.Generator) -> np.ndarray:
    """Of the pusher: torques that pull the fingertip through the cylinder, with noise."""
    slope = np.zeros((3, model.nv))
    mujoco.mj_jacBody(model, data, slope, None, model.body("tips_arm").id)
    way = data.body("object").xpos - data.body("tips_arm").xpos
    torque = slope[:, :7].T @ (10.0 * way) - 0.5 * data.qvel[:7]
    return np.clip(torque / 2 + rng.normal(0.0, 0.2, 7), -1.0, 1.0)


@functools.cache
def recorded(name: str, reach: float = 1.0, cone: int | None = None) -> Recorded:
    """Steps of random and of scripted policies, an episode each in turn."""
    running, patient = make_gymnasium(name, cone), make_gymnasium(name, cone)
    model, data, ideal = running.unwrapped.model, running.unwrapped.data, patient.unwrapped
    ideal.model.opt.tolerance, ideal.model.opt.ls_tolerance, ideal.model.opt.iterations = 0.0, 1e-10, 100
    ideal.model.opt.ccd_tolerance, ideal.model.opt.ccd_iterations = 1e-14, 500
    patient.reset(seed=0)
    rng = np.random.default_rng(0)
    rows, episode, elapsed = [], 0, 0
    observation = running.reset(seed=0)[0]
    policy = actions(0, model.nu, reach, rng)
    while len(rows) < STEPS:
        action = reaching(model, data, rng) if name == "Pusher-v5" and episode % 4 > 1 else next(policy)
        control = action * model.actuator_ctrlrange[:, 1]
        mark = mark_of(name, data, model)
        before = (data.qpos.copy(), data.qvel.copy(), data.qacc_warmstart.copy(), mark, action, observation)
        mujoco.mj_copyData(ideal.data, ideal.model, data)
        observation, reward, terminated, truncated, info = running.step(control)
        theirs = Outcome(observation, reward, terminated, data.qpos.copy(), data.qvel.copy(), terms_of(name, info))
        told = ideal.step(control)
        found = ideal.data
        solved = Outcome(*told[:3], found.qpos.copy(), found.qvel.copy(), terms_of(name, told[-1]))
        rows.append((*before, data.ncon, theirs, solved))
        elapsed += 1
        if terminated or truncated or elapsed == LONGEST.get(name):
            episode, elapsed = episode + 1, 0
            observation = running.reset(seed=episode)[0]
            policy = actions(episode % 4, model.nu, reach, rng)
    assert episode >= 4
    columns = list(zip(*rows, strict=True))
    outcomes = [Outcome(*(np.array(part) for part in zip(*column, strict=True))) for column in columns[-2:]]
    return Recorded(*(np.array(column) for column in columns[:-2]), *outcomes)


class Case:
    """A task at one float width, with its step compiled for a batch and for one."""

    def __init__(self, name: str, x64: bool, cone: int | None = None, iterations: tuple[int, int] | None = None) -> None:
        self.x64 = x64
        with jax.enable_x64(x64):
            self.task = envs.make(name)
            self.env = self.task.env
            if iterations or cone is not None:
                opt = self.env.mj_model.opt
                opt.iterations, opt.ls_iterations = iterations or (opt.iterations, opt.ls_iterations)
                opt.cone = opt.cone if cone is None else cone
                self.env._put_model()
        self.batch = jax.jit(jax.vmap(self._one))
        self.single = jax.jit(self._one)

    def _one(self, qpos, qvel, warmstart, mark, action):
        state = self.env.state_at(qpos, qvel)
        simulation = state.pipeline_state.replace(qacc_warmstart=warmstart)
        if not isinstance(simulation.mark, tuple):
            simulation = simulation.replace(mark=mark)
        state = state.replace(
            pipeline_state=simulation, info={"theirs": qpos[0]}, metrics={**state.metrics, "theirs": qvel[0]}
        )
        return self.env.step(state, action)

    def arguments(self, rows: Recorded) -> list:
        with jax.enable_x64(self.x64):
            return [jnp.asarray(x, float) for x in rows[:5]]

    def step(self, rows: Recorded, batch: bool = True) -> SimpleNamespace:
        with jax.enable_x64(self.x64):
            return as_numpy((self.batch if batch else self.single)(*self.arguments(rows)))


def as_numpy(state) -> SimpleNamespace:
    fields = {name: getattr(state, name) for name in ("obs", "reward", "done", "metrics", "info")}
    fields |= {name: getattr(state.pipeline_state, name) for name in ("qpos", "qvel", "qacc_warmstart")}
    return SimpleNamespace(**jax.tree.map(np.asarray, fields))
