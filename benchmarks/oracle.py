"""Planning in the true simulator on HalfCheetah-v5: the same planner on MJX and on C MuJoCo's batch rollout.

    python benchmarks/oracle.py [--steps 200] [--population 60] [--horizon 15] [--iterations 3] [--out results.json]

Both start from the same state. Reported for each are the return over the steps, the reward per step, and the median time of
a plan, without the first plan, which compiles. The C version uses all cores through threads, and C MuJoCo steps it.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import mujoco.rollout
import numpy as np
from measure import report, seconds

from jaxmbrl import envs
from jaxmbrl.core.types import Objective, Planner
from jaxmbrl.planning import cem, make_problem, problem_of_score
from jaxmbrl.planning.cem import CEMConfig

CONTROL_COST = 0.1


def on_mjx(env: Any, planner: Planner) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """(plan, step) on MJX: plan(state, memory, key) -> (actions, memory, _); step(state, action) -> (state, reward)."""
    task = envs.make("HalfCheetah-v5")
    plan = jax.jit(lambda state, memory, key: planner.plan(make_problem(task.world, state, task.action), memory, key))
    advance = jax.jit(env.step)

    def step(state: Any, action: Any) -> tuple[Any, float]:
        state = advance(state, action)
        return state, float(state.reward)

    return plan, step


def on_c(env: Any, planner: Planner) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """(plan, step) on C MuJoCo with the task's own model. The state is [time, qpos, qvel, warm start]."""
    model = env.mj_model
    skip, nq, dt = env.frame_skip, model.nq, env.dt
    data = [mujoco.MjData(model) for _ in range(os.cpu_count() or 1)]
    physics = 1 + nq + model.nv

    def simulate(state: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rewards [P, H] and the states [P, H, physics + nv] after each control step of sequences [P, H, A]."""
        population = len(actions)
        control = np.repeat(np.clip(actions, -1, 1), skip, axis=1).astype(np.float64)
        start = np.tile(state[:physics], (population, 1))
        warm = np.tile(state[physics:], (population, 1))
        found, _ = mujoco.rollout.rollout(model, data, start, control, initial_warmstart=warm)
        after = found[:, skip - 1 :: skip]
        x = np.concatenate([start[:, None, 1], after[:, :, 1]], axis=1)
        return np.diff(x, axis=1) / dt - CONTROL_COST * np.sum(actions**2, axis=-1), after

    def objective(state: jax.Array) -> Objective:
        def returns(state: Any, actions: Any) -> np.ndarray:
            rows = np.asarray(actions)
            summed = simulate(np.asarray(state, np.float64).reshape(-1, state.shape[-1])[0], rows)[0].sum(axis=1)
            return summed.astype(np.float32)

        def one(actions: jax.Array, key: jax.Array) -> jax.Array:
            shape = jax.ShapeDtypeStruct((), jnp.float32)
            return jax.pure_callback(returns, shape, state, actions, vmap_method="expand_dims")

        return one

    space = envs.make("HalfCheetah-v5").action
    plan = jax.jit(lambda state, memory, key: planner.plan(problem_of_score(objective(state), space), memory, key))
    actor = mujoco.MjData(model)

    def step(state: np.ndarray, action: Any) -> tuple[np.ndarray, float]:
        actor.qpos[:], actor.qvel[:] = state[1 : 1 + nq], state[1 + nq : physics]
        actor.qacc_warmstart[:], actor.ctrl[:] = state[physics:], action
        mujoco.mj_step(model, actor, skip)
        reward = (actor.qpos[0] - state[1]) / dt - CONTROL_COST * float(np.sum(np.asarray(action) ** 2))
        return np.concatenate([[actor.time], actor.qpos, actor.qvel, actor.qacc_warmstart]), reward

    return plan, step


def episode(
    plan: Callable[..., Any], step: Callable[..., Any], state: Any, planner: Planner, steps: int
) -> dict[str, float]:
    """Results of one episode of model-predictive control (MPC)."""
    memory, rewards, times = planner.init(), [], []
    for i in range(steps):
        key, made = jax.random.key(i), []
        times.append(seconds(lambda s=state, m=memory, k=key, made=made: made.append(plan(s, m, k)) or made[0]))
        actions, memory, _ = made[0]
        state, reward = step(state, actions[0])
        rewards.append(reward)
    return {
        "return": sum(rewards),
        "reward a step": statistics.mean(rewards),
        "seconds a plan": statistics.median(times[1:]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--population", type=int, default=60)
    parser.add_argument("--horizon", type=int, default=15)
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    config = CEMConfig(
        args.horizon, args.population, max(1, args.population // 10), args.iterations, momentum=0.1, min_variance=0.0
    )
    task = envs.make("HalfCheetah-v5")
    env: Any = task.env
    planner = cem.make(config, task.action)
    start = env.reset(jax.random.key(0))
    qpos, qvel = (np.asarray(x, np.float64) for x in (start.pipeline_state.qpos, start.pipeline_state.qvel))
    physical = np.concatenate([[0.0], qpos, qvel, np.zeros(env.mj_model.nv)])
    tables = {
        "MJX": episode(*on_mjx(env, planner), start, planner, args.steps),
        "C MuJoCo": episode(*on_c(env, planner), physical, planner, args.steps),
    }
    rollouts = args.population * args.horizon * args.iterations
    for table in tables.values():
        table["control steps a second"] = rollouts / table["seconds a plan"]
    report(tables, args.out)


if __name__ == "__main__":
    main()
