"""Cloning a policy from its states alone: an inverse dynamics model supplies the actions.

1. A random policy takes 2,000 steps, of which the actions are known. The inverse model is fitted to them, and tested on as
   many new ones: its error is the root mean square over rows whose speed is not clipped, as a share of the actions' range.
2. Five episodes of SAC, its preset `small` after 15,000 steps, are recorded. A network is cloned from their actions, and
   another one from the actions that the inverse model finds between their states (behavioural cloning from observation:
   Torabi et al., arXiv 1805.01954).
3. Both are evaluated on 100 start states.

    python experiments/cloning_from_states.py [--out FOLDER] [--seeds 4] [--expert RUN] [--quick]

on `pendulum`. Without `--expert` SAC is trained first, in the folder of the study; a finished run is not repeated, and an
interrupted one is resumed. Writes `cloning-from-states.json` with command, commit, versions and machine.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxmbrl
from jaxmbrl import envs
from jaxmbrl.agents import behaviour_cloning
from jaxmbrl.agents.behaviour_cloning import CloningConfig
from jaxmbrl.agents.exploration import uniform
from jaxmbrl.core.types import Algorithm, Key, Policy, PyTree, Task, Transition
from jaxmbrl.data import replay
from jaxmbrl.envs.classic.pendulum import MAX_SPEED
from jaxmbrl.models import inverse
from jaxmbrl.models.inverse import InverseConfig
from jaxmbrl.training import evaluation
from jaxmbrl.training.collecting import collect
from jaxmbrl.training.console import Progress
from jaxmbrl.training.run_folder import environment

TASK, ROWS, EPISODES, EVALUATED = "pendulum", 2000, 5, 100
BATCH = 128


def identifiable(rows: Transition) -> np.ndarray:
    """The rows whose speed is not clipped, so that their action can be found."""
    return np.abs(np.asarray(rows.next_observation)[:, 2]) < MAX_SPEED


def error(model: inverse.InverseModel, state: Any, rows: Transition) -> dict[str, float]:
    """The error of the inverse model on identifiable rows, and on all, as shares of the range of actions."""
    found = np.asarray(inverse.relabelled(model, state, rows).action)
    squares, kept = (found - np.asarray(rows.action)) ** 2, identifiable(rows)
    return {
        "error": float(np.sqrt(squares[kept].mean()) / 2),
        "error of all rows": float(np.sqrt(squares.mean()) / 2),
        "clipped rows": int((~kept).sum()),
    }


def cloned(rows: Transition, updates: int, key: Key) -> tuple[Any, PyTree]:
    """(learner, state) of a policy cloned from the rows' actions."""
    learner = behaviour_cloning.make(CloningConfig(hidden=(64, 64), learning_rate=1e-3), rows.observation.shape[1], 1)
    buffer = replay.of_rows(rows)

    @jax.jit
    def fit(key: Key) -> PyTree:
        init_key, fit_key = jax.random.split(key)

        def update(state: PyTree, key: Key) -> tuple[PyTree, None]:
            batch_key, update_key = jax.random.split(key)
            return learner.update(state, replay.sample(buffer, batch_key, BATCH), update_key)[0], None

        return jax.lax.scan(update, learner.init(init_key, {}), jax.random.split(fit_key, updates))[0]

    return learner, fit(key)


def returns(task: Task, policy: Policy, episodes: int) -> float:
    """Mean return of a policy."""
    algorithm = Algorithm(
        init=lambda key, hyper, data: (), policy=lambda *_: policy, learn=lambda clock, state, rows: (state, {}), period=1
    )
    found = jax.jit(lambda: evaluation.evaluate(algorithm, task, jnp.zeros(1), episodes))()
    return float(np.mean(np.asarray(found, np.float64)))


def run(expert: Path, seed: int, quick: bool) -> dict[str, Any]:
    """One seed of the study."""
    task, steps = envs.make(TASK), 50 if quick else 5000
    episodes = 2 if quick else EVALUATED
    known, unseen = (collect(task, uniform(task.action), ROWS, seed=2 * seed + i) for i in range(2))
    model = inverse.make(InverseConfig(fit_steps=steps), task.observation.shape[0], task.action, task.features)

    @jax.jit
    def fit(key: Key) -> Any:
        init_key, fit_key = jax.random.split(key)
        return model.fit(model.init(init_key, {}), replay.of_rows(known), fit_key)[0]

    state = fit(jax.random.key(seed))
    policy, states, _ = jaxmbrl.load(expert)
    acting = policy(jax.tree.map(lambda leaf: leaf[seed], states))
    shown = collect(task, acting, EPISODES * task.episode_length, seed=seed)
    found: dict[str, Any] = {
        "inverse": error(model, state, unseen),
        "inverse on the expert's rows": error(model, state, shown),
        "expert": returns(task, acting, episodes),
    }
    # Without the actions: they are replaced before the policy is cloned.
    blind = shown._replace(action=jnp.zeros_like(shown.action))
    for name, rows in (("from actions", shown), ("from states", inverse.relabelled(model, state, blind))):
        learner, cloning = cloned(rows, steps, jax.random.key(100 + seed))
        found[name] = returns(task, learner.policy(cloning, False), episodes)
    return found


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Run all seeds, print them, and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, help="by default runs/cloning-from-states, with --quick runs/cloning-from-states-quick"
    )
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--expert", type=Path, help="a run of SAC on pendulum with at least as many seeds")
    parser.add_argument("--quick", action="store_true", help="few steps (smoke test)")
    args = parser.parse_args(arguments)
    args.out = args.out or Path("runs/cloning-from-states-quick" if args.quick else "runs/cloning-from-states")
    args.out.mkdir(parents=True, exist_ok=True)
    expert = args.expert or args.out / "expert"
    if args.expert is None:
        settings = {"agent.hidden": [8], "warmup_steps": 50, "epoch_steps": 100, "eval_every": 0} if args.quick else {}
        steps = 100 if args.quick else 15_000
        progress = Progress(steps, args.seeds)
        progress.say("SAC, the expert")
        if expert.exists():
            jaxmbrl.resume(expert, progress=progress)
        else:
            chosen = {"preset": "small", "seeds": args.seeds, "steps": steps, "settings": settings}
            jaxmbrl.train("sac", TASK, **chosen, out=expert, progress=progress)
    found = []
    for seed in range(args.seeds):
        print(f"cloning, seed {seed} ...", flush=True)
        found.append(run(expert, seed, args.quick))
    print(f"{'seed':<6}{'error':>8}{'on expert':>11}{'expert':>10}{'from actions':>14}{'from states':>13}")
    for seed, of in enumerate(found):
        errors = of["inverse"]["error"], of["inverse on the expert's rows"]["error"]
        print(
            f"{seed:<6}{errors[0]:>8.4f}{errors[1]:>11.4f}{of['expert']:>10.1f}{of['from actions']:>14.1f}"
            f"{of['from states']:>13.1f}",
            flush=True,
        )
    saved = {"seeds": found, "environment": environment(f"python experiments/cloning_from_states.py --seeds {args.seeds}")}
    (args.out / "cloning-from-states.json").write_text(json.dumps(saved, indent=1) + "\n")
    return found


if __name__ == "__main__":
    main()
