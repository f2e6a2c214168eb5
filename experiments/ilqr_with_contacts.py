"""iLQR on a body with contacts: model-predictive control of HalfCheetah-v5 in the true simulator, beside CEM.

The reward is the forward speed, minus 0.1 times the squared action. Each contact that opens or closes bends the return of a
plan on a small scale (`gradients_of_contacts.py`). Does a planner that follows derivatives still climb?

    CEM       60 candidates, 15 steps, 3 iterations: 2,700 control steps a plan
    iLQR      15 steps, 3 iterations, each of 48 x 15 perturbed steps and 11 x 15 of the line search: 2,655 a plan
    starts    iLQR from the last plan and from three random sequences, as the planner `ilqr` does; the best is the plan
    longer    iLQR with 30 steps and 5 iterations
    refined   CEM with 2 iterations, then 1 iteration of iLQR from its plan

Each plays the same episodes, on C MuJoCo's batch rollout, whose steps equal MJX's. The derivatives of a step by positions,
velocities and controls are central differences. They equal those of differentiating MJX (`tests/envs/test_constraints.py`),
which is slow to compile and to run on a CPU. The cost is linear in the state, so the only second derivatives are those of
the actions, and without curvature in the state the gains of iLQR are 0: it is gradient descent with a line search.

    python experiments/ilqr_with_contacts.py [--out FOLDER] [--steps 200] [--seeds 1] [--only iLQR ...]

Writes `ilqr-with-contacts.json` with command, commit, versions and machine; results of other planners in it are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import mujoco.rollout
import numpy as np
from jaxtyping import Float

from jaxmbrl import envs, planning
from jaxmbrl.planning import cem, ilqr
from jaxmbrl.planning.cem import CEMConfig
from jaxmbrl.planning.icem import coloured_noise
from jaxmbrl.training.run_folder import environment

CONTROL_COST = 0.1
STEP = 1e-5
"""Perturbation of a finite difference."""
ALPHAS = np.array(ilqr.STEP_SIZES)


class Planner(NamedTuple):
    """Settings of a planner."""

    horizon: int = 15
    sampled: int = 0
    """Iterations of CEM."""
    iterations: int = 0
    """Iterations of iLQR."""
    starts: int = 0
    """Random sequences from which iLQR starts, too."""


PLANNERS = {
    "CEM": Planner(sampled=3),
    "iLQR": Planner(iterations=3),
    "starts": Planner(iterations=3, starts=3),
    "longer": Planner(horizon=30, iterations=5),
    "refined": Planner(sampled=2, iterations=1),
}


class Simulator:
    """C MuJoCo's HalfCheetah. A state is [time, positions, velocities]."""

    def __init__(self) -> None:
        self.env: Any = envs.make("HalfCheetah-v5").env
        self.model, self.skip, self.dt = self.env.mj_model, self.env.frame_skip, self.env.dt
        self.data = [mujoco.MjData(self.model) for _ in range(os.cpu_count() or 1)]
        self.size, self.actions = self.model.nq + self.model.nv, self.model.nu

    def start(self, seed: int) -> Float[np.ndarray, "S"]:
        """A start state of the task."""
        state = self.env.reset(jax.random.key(seed)).pipeline_state
        return np.concatenate([[0.0], state.qpos, state.qvel]).astype(np.float64)

    def play(
        self, states: Float[np.ndarray, "B S"], actions: Float[np.ndarray, "B H A"]
    ) -> tuple[Float[np.ndarray, "B H+1 S"], Float[np.ndarray, "B H"]]:
        """(states, rewards) of action sequences."""
        control = np.repeat(np.asarray(actions, np.float64), self.skip, axis=1)
        found, _ = mujoco.rollout.rollout(self.model, self.data, np.ascontiguousarray(states), control)
        along = np.concatenate([states[:, None], found[:, self.skip - 1 :: self.skip]], axis=1)
        rewards = np.diff(along[:, :, 1], axis=1) / self.dt - CONTROL_COST * np.sum(np.asarray(actions) ** 2, axis=2)
        return along, rewards

    def derivative(
        self, states: Float[np.ndarray, "H S"], actions: Float[np.ndarray, "H A"]
    ) -> Float[np.ndarray, "H n nm"]:
        """The derivatives of each step's next positions and velocities."""
        z = np.concatenate([states[:, 1:], actions], axis=1)
        moved = z[:, None] + STEP * np.concatenate([np.eye(z.shape[1]), -np.eye(z.shape[1])])
        rows = moved.reshape(-1, z.shape[1])
        before = np.concatenate([np.zeros((len(rows), 1)), rows[:, : self.size]], axis=1)
        after = self.play(before, rows[:, None, self.size :])[0][:, 1, 1:].reshape(len(z), 2, z.shape[1], self.size)
        return np.moveaxis(after[:, 0] - after[:, 1], 1, 2) / (2 * STEP)


@jax.jit
def backward(carries: Any, actions: Any, F: Any, c: Any, damping: Any) -> ilqr.Change:
    """The backward pass, for the second derivatives of the control cost."""
    n, m = F.shape[1], actions.shape[1]
    C = jnp.zeros((len(F), n + m, n + m)).at[:, n:, n:].set(2 * CONTROL_COST * jnp.eye(m))
    zero = jnp.zeros(())
    no = jnp.zeros((), bool)
    at = ilqr.Trajectory(carries, actions, zero, F[:, :m], actions, damping, zero, no, no, no)
    expansion = ilqr.Expansion(F, C, c, jnp.zeros((n, n)), jnp.zeros(n))
    return ilqr.backward(ilqr.System(lambda *_: _, lambda _: zero), at, expansion, damping, -1.0, 1.0, ilqr.DescentConfig())


def descend(
    simulator: Simulator, start: Float[np.ndarray, "S"], actions: Float[np.ndarray, "H A"], iterations: int
) -> tuple[Float[np.ndarray, "H A"], float]:
    """(actions, return) after some iterations of iLQR."""
    damping, rate = 1.0, 1.0
    states, rewards = (x[0] for x in simulator.play(start[None], actions[None]))
    for _ in range(iterations):
        F = simulator.derivative(states[:-1], actions)
        c = np.concatenate([np.zeros((len(F), simulator.size)), 2 * CONTROL_COST * actions], axis=1)
        c -= F[:, 0] / simulator.dt
        c[:, 0] += 1 / simulator.dt
        change = backward(states, actions, F, c, damping)
        tried = np.clip(actions + ALPHAS[:, None, None] * np.asarray(change.k), -1, 1)
        paths, earned = simulator.play(np.tile(start, (len(ALPHAS), 1)), tried)
        best = int(np.argmax(earned.sum(axis=1)))
        if earned[best].sum() > rewards.sum():
            actions, states, rewards = tried[best], paths[best], earned[best]
            damping, rate = (float(x) for x in ilqr.lowered(jnp.asarray(damping), jnp.asarray(rate)))
        else:
            damping, rate = (float(x) for x in ilqr.raised(jnp.asarray(damping), jnp.asarray(rate)))
    return actions, float(rewards.sum())


def plan(
    planner: Planner, simulator: Simulator, state: Float[np.ndarray, "S"], last: Float[np.ndarray, "H A"], key: Any
) -> Float[np.ndarray, "H A"]:
    """A plan from `state`, warm-started from `last`."""
    box, actions = planning.unit_box(simulator.actions), last
    if planner.sampled:
        config = CEMConfig(planner.horizon, 60, 6, planner.sampled, momentum=0.1, min_variance=0.0)
        fitted = cem.gaussian(config, box)
        parameters = fitted.start(cem.PlanState(jnp.asarray(last, float)))
        for i in range(planner.sampled):
            population = fitted.sample(jax.random.fold_in(key, i), parameters)
            returns = simulator.play(np.tile(state, (60, 1)), np.asarray(population))[1].sum(axis=1)
            parameters = fitted.refit(parameters, population, jnp.asarray(returns, float))
        actions = np.asarray(fitted.plan(parameters)[0], np.float64)
    if not planner.iterations:
        return actions
    noise = coloured_noise(key, (planner.starts, *actions.shape), 2.0, jnp.float32) if planner.starts else ()
    starts = [actions, *(np.clip(actions + 0.5 * np.asarray(each), -1, 1) for each in noise)]
    found = [descend(simulator, state, each, planner.iterations) for each in starts]
    return max(found, key=lambda pair: pair[1])[0]


def episode(planner: Planner, simulator: Simulator, seed: int, steps: int) -> tuple[float, float]:
    """(reward a step, median seconds a plan)."""
    state, last = simulator.start(seed), np.full((planner.horizon, simulator.actions), 1e-3)
    earned, times = 0.0, []
    for i in range(steps):
        began = time.perf_counter()
        actions = plan(planner, simulator, state, last, jax.random.fold_in(jax.random.key(seed), i))
        times.append(time.perf_counter() - began)
        path, rewards = simulator.play(state[None], actions[None, :1])
        state, earned = path[0, 1], earned + float(rewards[0, 0])
        # CEM samples little near a bound, so that its mean continues with 0, as in `planning.cem`.
        last = np.concatenate([actions[1:], 0 * actions[-1:] if planner.sampled else actions[-1:]])
    return earned / steps, float(np.median(times[1:]))


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/ilqr-with-contacts"))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=PLANNERS, default=list(PLANNERS))
    args = parser.parse_args(argv)
    simulator, at = Simulator(), args.out / "ilqr-with-contacts.json"
    results = json.loads(at.read_text())["results"] if at.exists() else {}
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.only:
        planner = PLANNERS[name]
        played = [episode(planner, simulator, seed, args.steps) for seed in range(args.seeds)]
        seconds = float(np.median([t for _, t in played]))
        results[name] = {"reward a step": [x for x, _ in played], "seconds a plan": seconds}
        rewards = ", ".join(f"{x:.2f}" for x, _ in played)
        print(f"  {name:<10}reward a step {rewards:<24}{seconds:>8.3f} s a plan", flush=True)
        command = f"python experiments/ilqr_with_contacts.py --steps {args.steps}"
        found = {"results": results, "environment": environment(command)}
        at.write_text(json.dumps(found, indent=1) + "\n")
    return found


if __name__ == "__main__":
    main()
