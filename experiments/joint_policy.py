"""Three ways to plan for two agents in the same learned model of both.

On `spread-2` two agents share out two landmarks; the reward is the team's. An ensemble is fitted to 4,000 steps in which
both act at random: a joint model p(o' | o, a_1, a_2). The agents then plan in it at every step, by the cross-entropy method
over 10 steps:

    joint        one search over the actions of both
    in turn, R   best responses: each agent searches its own actions with the last plan of the other fixed, in R sweeps
    independent  each searches its own actions while the other is assumed to do nothing

A search has 100 candidates and 4 iterations, so R sweeps evaluate 2 R times as many candidates as the joint search. The
joint search is therefore also made with as many candidates as three sweeps have. `simulator` is the joint search in the
true simulator, `random` no plan at all.

    python experiments/joint_policy.py [--out FOLDER] [--models 2] [--episodes 20] [--quick]

The three ways are those in which the joint sequence of several agents can be sampled from a joint model; what is measured
is this task and this search only. Writes `joint-policy.png`, the paths of both agents in one episode, and
`joint-policy.json` with command, commit, versions and machine.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmbrl import envs
from jaxmbrl.agents.exploration import uniform
from jaxmbrl.core.spaces import Box
from jaxmbrl.core.types import Algorithm, DynamicsModel, Key, Planner, Policy, PyTree, Task, Transition
from jaxmbrl.data import replay
from jaxmbrl.envs.classic.spread import parts
from jaxmbrl.models import EnsembleConfig, ensemble
from jaxmbrl.planning import CEMConfig, best_response, cem, planning_policy
from jaxmbrl.rollout import rollout, with_full_state
from jaxmbrl.training import evaluation
from jaxmbrl.training.collecting import collect
from jaxmbrl.training.run_folder import environment, new_figure, write_figure

TASK, ROWS, HORIZON, PARTICLES = "spread-2", 4000, 10, 5
SIZES = (2, 2)
SEARCH = CEMConfig(horizon=HORIZON, population=100, elites=10, iterations=4)
WIDE = CEMConfig(horizon=HORIZON, population=600, elites=60, iterations=4)
MODEL = EnsembleConfig(
    members=5,
    elites=5,
    hidden=(64, 64, 64),
    weight_decay=(),
    learning_rate=1e-3,
    batch_size=64,
    max_epochs=40,
    propagation="tsinf",
)
QUICK = EnsembleConfig(members=5, elites=5, hidden=(8,), max_epochs=2, propagation="tsinf")
SHOWN = ("joint", "in turn, 3", "independent")
COLORS = ("#0b3d91", "#c1440e")


def planner_of(config: CEMConfig) -> Any:
    """Space -> the search of one agent or of all."""
    return lambda space: cem.make(config, space)


def planners(action: Box, search: CEMConfig, wide: CEMConfig) -> dict[str, Planner]:
    """The ways to plan, by name."""
    turns = {
        f"in turn, {sweeps}": best_response.make(planner_of(search), SIZES, search.horizon, sweeps) for sweeps in (1, 2, 3)
    }
    alone = best_response.make(planner_of(search), SIZES, search.horizon, independent=True)
    return {"joint": cem.make(search, action), "joint, 6 x": cem.make(wide, action), **turns, "independent": alone}


def algorithm_of(policy: Any, full_state: bool = False) -> Algorithm:
    """A method without learning, for `evaluation`: `policy(state)` is the policy of a state of the model."""
    return Algorithm(
        init=lambda key, hyper, data: (),
        policy=lambda state, clock, explore: policy(state),
        learn=lambda clock, state, rows: (state, {}),
        period=1,
        observes_full_state=full_state,
    )


def in_model(planner: Planner, model: DynamicsModel, task: Task) -> Algorithm:
    """Model-predictive control by a planner in the learned model."""

    def policy(state: PyTree) -> Policy:
        origin = lambda seen: jnp.broadcast_to(seen, (PARTICLES, *seen.shape))  # noqa: E731
        return planning_policy(planner, model.world(state), origin, task.action)

    return algorithm_of(policy)


def in_simulator(planner: Planner, task: Task) -> Algorithm:
    """The same in the true simulator."""
    world = with_full_state(task.world)
    return algorithm_of(lambda state: planning_policy(planner, world, lambda carry: carry, task.action), True)


def fitted(model: DynamicsModel, rows: Transition, models: int) -> PyTree:
    """States [models, ...] of the model, fitted to the same rows with different keys."""

    def fit(key: Key) -> PyTree:
        init_key, fit_key = jax.random.split(key)
        return model.fit(model.init(init_key, {}), replay.of_rows(rows), fit_key)[0]

    states = [jax.jit(fit)(jax.random.key(i)) for i in range(models)]
    return jax.tree.map(lambda *x: jnp.stack(x), *states)


def paths(algorithm: Algorithm, task: Task, state: PyTree, episode: int) -> list[list[list[float]]]:
    """The positions [steps, agents, 2] of an episode, and the landmarks as its last entry."""
    world, policy, start, key = evaluation.begin(algorithm, task, state, jnp.asarray(episode))
    rows = jax.jit(lambda: rollout(world, policy, start, key, task.episode_length)[1])()
    positions, _, landmarks = parts(rows.next_observation)
    return np.concatenate([positions, landmarks[-1:]]).tolist()


def draw(found: dict[str, Any], file: Path) -> None:
    """Draw the paths of both agents, with the landmarks as circles."""
    figure = new_figure(9.0, 3.2)
    for axes, name in zip(figure.subplots(1, len(SHOWN)), SHOWN, strict=True):
        *path, landmarks = np.array(found[name]["path"])
        for agent, color in enumerate(COLORS):
            axes.plot(*np.array(path)[:, agent].T, color=color, marker=".", markersize=3, linewidth=1)
            axes.plot(*path[0][agent], color=color, marker="o")
        axes.scatter(*landmarks.T, s=260, facecolors="none", edgecolors="#46a060", linewidths=2)
        axes.set_aspect("equal")
        axes.set_title(f"{name}: {found[name]['shown']:.1f}", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    write_figure(file, figure)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Fit the models, plan, print the returns, and write the picture and the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="by default runs/joint-policy, with --quick runs/joint-policy-quick")
    parser.add_argument("--models", type=int, default=2)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="tiny models and few episodes (smoke test)")
    args = parser.parse_args(arguments)
    args.out = args.out or Path("runs/joint-policy-quick" if args.quick else "runs/joint-policy")
    args.out.mkdir(parents=True, exist_ok=True)
    models, episodes, search, wide = args.models, args.episodes, SEARCH, WIDE
    if args.quick:
        models, episodes = 1, 2
        search = wide = CEMConfig(horizon=2, population=4, elites=2, iterations=1)
    task = envs.make(TASK)
    assert isinstance(task.action, Box)
    config = QUICK if args.quick else MODEL
    model = ensemble.make(config, task.observation, task.action, task.reward, task.terminated, features=task.features)
    states = fitted(model, collect(task, uniform(task.action), 200 if args.quick else ROWS), models)
    ways = planners(task.action, search, wide)
    cases = {name: (in_model(planner, model, task), states) for name, planner in ways.items()}
    nothing = jnp.zeros(1)
    cases["simulator"] = in_simulator(cem.make(search, task.action), task), nothing
    cases["random"] = algorithm_of(lambda state: uniform(task.action)), nothing
    found: dict[str, Any] = {}
    print(f"{'':<14}{'return':>9}   of each model")
    for name, (algorithm, of) in cases.items():
        evaluate = jax.jit(lambda state, a=algorithm: evaluation.evaluate(a, task, state, episodes))
        returns = np.concatenate(
            [evaluate(jax.tree.map(lambda x, i=i: x[i : i + 1], of)) for i in range(len(jax.tree.leaves(of)[0]))]
        )
        per_model = returns.mean(axis=1).tolist()
        found[name] = {"mean": float(returns.mean()), "per_model": per_model, "returns": returns.tolist()}
        print(f"{name:<14}{returns.mean():>9.2f}   {', '.join(f'{x:.2f}' for x in per_model)}", flush=True)
    # The episode in which the independent agents lose most.
    episode = int(np.argmax(np.array(found["joint"]["returns"])[0] - np.array(found["independent"]["returns"])[0]))
    for name in SHOWN:
        algorithm, of = cases[name]
        found[name]["path"] = paths(algorithm, task, jax.tree.map(lambda x: x[0], of), episode)
        found[name]["shown"] = found[name]["returns"][0][episode]
    draw(found, args.out / "joint-policy.png")
    command = f"python experiments/joint_policy.py --models {models} --episodes {episodes}"
    saved = {"episode": episode, "cases": found, "environment": environment(command)}
    (args.out / "joint-policy.json").write_text(json.dumps(saved, indent=1) + "\n")
    return found


if __name__ == "__main__":
    main()
