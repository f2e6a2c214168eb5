"""Steps and resets of DeepMind Control's own tasks."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from typing import Any, NamedTuple
from unittest import mock

import jax
import mujoco
import numpy as np

from jaxmbrl import envs

# Without rendering, which would need a display. MuJoCo, imported before, does not see it. Warnings that it would write to a
# file in the working folder are not written.
mujoco.set_mju_user_warning(lambda message: None)
with mock.patch.dict(os.environ, MUJOCO_GL="disabled"):
    from dm_control import suite
    from dm_control.rl import control


class Steps(NamedTuple):
    """Steps of dm_control, one a row."""

    observation: np.ndarray
    """Before the step."""
    action: np.ndarray
    reward: np.ndarray
    next_observation: np.ndarray


def load(name: str, seed: int = 0) -> control.Environment:
    """dm_control's task of our task `name`, `dmc/domain-task`."""
    domain, _, task = name.removeprefix("dmc/").partition("-")
    return suite.load(domain, task.replace("-", "_"), task_kwargs={"random": seed})


def flat(observation: dict) -> np.ndarray:
    return np.concatenate([np.ravel(part) for part in observation.values()])


def place(env: control.Environment, qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
    """The observation of the state with these coordinates, where the next step starts."""
    with env.physics.reset_context():
        env.physics.data.qpos[:], env.physics.data.qvel[:] = qpos, qvel
    return flat(env.task.get_observation(env.physics))


def steps(name: str, states: np.ndarray, actions: np.ndarray, prepare=None) -> Steps:
    """One step from each of the states [n, nq + nv]; `prepare(physics, row)` is called before each."""
    env = load(name)
    env.reset()
    rows = []
    for i, (state, action) in enumerate(zip(states, actions, strict=True)):
        if prepare is not None:
            prepare(env.physics, i)
        before = place(env, *np.split(state, [env.physics.model.nq]))
        env._step_count = 0
        after = env.step(action)
        rows.append((before, action, after.reward, flat(after.observation)))
    return Steps(*(np.array(column) for column in zip(*rows, strict=True)))


def ours(name: str, coordinates: np.ndarray, actions: np.ndarray):
    """Transitions of our task, one step from each of the states with these coordinates."""
    task = envs.make(name)

    @jax.jit
    @jax.vmap
    def step(coordinates, action):
        carry = task.world.start(task.env.state_at(coordinates), jax.random.key(0))
        return task.world.step(carry, action, jax.random.key(1))[1]

    return jax.device_get(step(coordinates, actions))


def resets(name: str, number: int) -> tuple[np.ndarray, np.ndarray]:
    """(positions, velocities and, of the point mass, the directions of its motors; observations) of resets."""
    env, rows = load(name), []
    for _ in range(number):
        observation = env.reset().observation
        directions = env.physics.model.wrap_prm if "point_mass" in name else []
        rows.append((np.concatenate([env.physics.data.qpos, env.physics.data.qvel, directions]), flat(observation)))
    states, observations = zip(*rows, strict=True)
    return np.array(states), np.array(observations)


class Recorded(NamedTuple):
    """Steps of dm_control, one a row, each from the state in which the running simulation was."""

    qpos: np.ndarray
    qvel: np.ndarray
    warmstart: np.ndarray
    target: np.ndarray
    """The angle of the finger's target, 0 in other domains."""
    action: np.ndarray
    contacts: np.ndarray
    """Number of contacts before the step."""
    theirs: Outcome
    """As dm_control has it."""
    solved: Outcome
    """The same with C MuJoCo's solver running to its end, instead of stopping at its tolerance."""


class Outcome(NamedTuple):
    """Where a step led, and what it earned."""

    qpos: np.ndarray
    qvel: np.ndarray
    observation: np.ndarray
    reward: np.ndarray


EPISODE = 50
"""Steps of an episode that is recorded."""


def actions(kind: int, size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """One policy's actions in turn: extremes held for 25 steps, uniform, extremes held for seven steps, a gait of sines."""
    phase, period, held = rng.uniform(0, 2 * np.pi, size), rng.uniform(8, 30), np.zeros(size)
    for i in itertools.count():
        held = rng.choice([-1.0, 1.0], size) if i % (25 if kind == 0 else 7) == 0 else held
        yield (held, rng.uniform(-1, 1, size), held, np.sin(2 * np.pi * i / period + phase))[kind]


def angle_of_target(name: str, physics: Any) -> float:
    if not name.startswith("dmc/finger-turn"):
        return 0.0
    x, z = physics.target_position()
    return float(np.arctan2(x, z))


def recorded(name: str, number: int = 1000) -> Recorded:
    """Steps of random and of scripted policies, an episode each in turn."""
    running, patient, rng, rows = load(name), load(name), np.random.default_rng(0), []
    own, model, option = running.physics, patient.physics.model, patient.physics.model.opt
    option.tolerance, option.ls_tolerance, option.iterations = 0.0, 1e-10, 100
    for episode in itertools.count():
        running.reset()
        patient.reset()
        model.site_pos[:], model.site_size[:] = own.model.site_pos, own.model.site_size
        target = angle_of_target(name, own)
        for action in itertools.islice(actions(episode % 4, own.model.nu, rng), EPISODE):
            data = own.data
            before = (data.qpos.copy(), data.qvel.copy(), data.qacc_warmstart.copy(), target, action, data.ncon)
            mujoco.mj_copyData(patient.physics.data.ptr, model.ptr, data.ptr)
            outcomes = []
            for env in (running, patient):
                told = env.step(action)
                found = env.physics.data
                outcomes.append(Outcome(found.qpos.copy(), found.qvel.copy(), flat(told.observation), told.reward))
            rows.append((*before, *outcomes))
            if len(rows) == number:
                columns = list(zip(*rows, strict=True))
                pair = [Outcome(*(np.array(part) for part in zip(*column, strict=True))) for column in columns[-2:]]
                return Recorded(*(np.array(column) for column in columns[:-2]), *pair)


def simulated(name: str, rows: Recorded, iterations: tuple[int, int] | None = None) -> Outcome:
    """Where one step of our task on MJX leads from each of the recorded states, with so many solver iterations and
    line-search steps if given."""
    env = envs.make(name).env
    if iterations is not None:
        env.mj_model.opt.iterations, env.mj_model.opt.ls_iterations = iterations
        env._put_model()

    @jax.jit
    @jax.vmap
    def step(qpos, qvel, warmstart, target, action):
        state = env.state_at(qpos, qvel, target) if "finger-turn" in name else env.state_at(qpos, qvel)
        state = state.replace(pipeline_state=state.pipeline_state.replace(qacc_warmstart=warmstart))
        after = env.step(state, action)
        return after.pipeline_state.qpos, after.pipeline_state.qvel, after.obs, after.reward

    width = jax.dtypes.canonicalize_dtype(float)
    return Outcome(*map(np.asarray, step(*(np.asarray(column, width) for column in rows[:5]))))
