"""Planning with tabular models in mazes, as in Sutton and Barto's book, and linear Dyna (Sutton et al., arXiv 1206.3285).

    maze        steps of an episode of Dyna-Q in the Dyna maze, with n = 0 (Q-learning), 5 and 50 planning updates a step
    blocking    cumulative reward of Dyna-Q and Dyna-Q+ in a maze whose short path is blocked after 1,000 steps
    shortcut    the same in a maze in which a shorter path opens after 3,000 steps
    sweeping    updates of Dyna-Q and prioritized sweeping until a greedy path is at most 1.2 times the shortest, in mazes
                of 54, 216 and 486 cells
    linear      error of linear Dyna's values on the Boyan chain, by the choice of features in planning

    python experiments/dyna_maze.py [--out FOLDER] [--quick]

Curves of the Dyna maze are means of 300 seeds, of the changing mazes of 100, all others of 20; the book has 30 and 20. With
30 seeds the first episode with a mean of at most 20 steps varies between 25 and 31 for n = 0. All seeds of a curve run in
one program. Writes `dyna-maze.png` and `dyna-maze.json`, with command, commit, versions and machine.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmbrl import algorithms, envs
from jaxmbrl.core.spaces import Discrete
from jaxmbrl.core.types import Task
from jaxmbrl.envs.base import State, initial_state, make_task
from jaxmbrl.envs.tabular import tables
from jaxmbrl.training import loop, programs
from jaxmbrl.training.run_folder import environment

COLORS = ("#c1440e", "#0b3d91", "#2c7a4b", "#7a4b9a")


class Run(NamedTuple):
    """What happened at each environment step of each seed, [steps, K]."""

    ended: np.ndarray
    """Whether an episode ended."""
    seen: Any
    """What `look(state)` returned."""


def by_step(
    method: str,
    task: Task,
    settings: dict[str, Any],
    seeds: int,
    steps: int,
    look: Callable[[Any], Any] = lambda state: (),
    until: Callable[[Run], bool] | None = None,
) -> Run:
    """Train all seeds in one environment each and look at the algorithm's state after each step, which `jaxmbrl.train` does
    once an epoch. With `until`, train in parts of `steps` steps until it is true of all steps so far."""
    config = programs.configure(method, task, "default", settings).settings
    made = loop.make(algorithms.get(method).make(config, task), task, config)

    def step(at: Any, _: None) -> tuple[Any, Run]:
        clock, states = made.run(*at, jnp.asarray(1, jnp.int32))
        # An episode has ended if none is in progress.
        return (clock, states), Run(states.running_length[:, 0] == 0, jax.vmap(look)(states.algorithm))

    part = jax.jit(lambda at: jax.lax.scan(step, at, None, steps))
    at, run = part((loop.clock_at(0), jax.jit(made.init)(jnp.arange(seeds), {})))
    run = jax.device_get(run)
    while until is not None and not until(run):
        at, more = part(at)
        run = jax.tree.map(lambda a, b: np.concatenate([a, b]), run, jax.device_get(more))
    return run


def lengths(ended: np.ndarray, episodes: int) -> np.ndarray:
    """Steps of the first episodes, [K, episodes], from whether an episode ended at each step, [steps, K]."""
    ends = [np.flatnonzero(of_seed)[:episodes] for of_seed in ended.T]
    return np.array([np.diff(of_seed, prepend=-1) for of_seed in ends])


def maze(seeds: int, episodes: int, planning: tuple[int, ...] = (0, 5, 50)) -> dict[str, Any]:
    """Mean steps of each episode, by the number of planning updates."""
    task, found = envs.make("dyna-maze"), {}
    for n in planning:

        def enough(run: Run) -> bool:
            return bool((run.ended.sum(axis=0) >= episodes).all())

        run = by_step("dyna-q", task, {"planning_updates": n}, seeds, 2000, until=enough)
        by_episode = lengths(run.ended, episodes)
        mean = by_episode.mean(axis=0)
        short = np.flatnonzero(mean <= 20)
        found[str(n)] = {
            "steps": mean.tolist(),
            "deviation": by_episode.std(axis=0).tolist(),
            "first episode of at most 20 steps": int(short[0]) + 1 if len(short) else None,
            "steps of all episodes": float(by_episode.sum(axis=1).mean()),
        }
    return found


CHANGING: dict[str, tuple[int, dict[str, Any]]] = {
    "blocking-maze": (3000, {"learning_rate": 1.0, "planning_updates": 10}),
    "shortcut-maze": (6000, {"learning_rate": 1.0, "planning_updates": 50}),
}
"""Environment steps, and settings of both methods."""
BONUS = {"blocking-maze": 1e-4, "shortcut-maze": 1e-3}


def changing(name: str, seeds: int, share: float = 1.0) -> dict[str, Any]:
    """Mean cumulative reward at every 50th step: an episode earns 1 at its end."""
    task, (steps, settings), found = envs.make(name), CHANGING[name], {}
    for method, more in {"dyna-q": {}, "dyna-q-plus": {"bonus": BONUS[name]}}.items():
        run = by_step(method, task, settings | more, seeds, int(share * steps))
        earned = np.cumsum(run.ended, axis=0)[49::50]
        found[method] = {"reward": earned.mean(axis=1).tolist(), "deviation": earned.std(axis=1).tolist()}
    return found


SIZES = {"dyna-maze": 54, "dyna-maze-216": 216, "dyna-maze-486": 486}
SWEEPING = {"learning_rate": 0.5, "planning_updates": 5}


def sweeping(seeds: int, sizes: dict[str, int]) -> dict[str, Any]:
    """Updates and environment steps of each seed until, at the end of an episode, the greedy path has at most 1.2 times the
    steps of the shortest one."""
    found: dict[str, Any] = {}
    for name, cells in sizes.items():
        task = envs.make(name)
        mdp: Any = getattr(task.env, "mdp", None)
        start = int(np.argmax(mdp.initial))
        shortest = 1 + round(float(np.log(tables.optimal_values(mdp, 0.95)[start]) / np.log(0.95)))
        successors, ended = jnp.asarray(mdp.successors[..., 0]), jnp.asarray(mdp.terminated[..., 0])

        def look(
            state: Any, limit: int = int(1.2 * shortest), start: int = start, succ: Any = successors, end: Any = ended
        ):
            best = jnp.argmax(state.q, axis=1)

            def walk(i: Any, at: Any) -> Any:
                cell, there = at
                there = there | end[cell, best[cell]]
                return jnp.where(there, cell, succ[cell, best[cell]]), there

            return jax.lax.fori_loop(0, limit, walk, (jnp.int32(start), jnp.zeros((), bool)))[1], state.updates

        def good(run: Run) -> np.ndarray:
            return run.ended & run.seen[0]

        found[str(cells)] = {"shortest path": shortest}
        for method in ("dyna-q", "prioritized-sweeping"):
            part = 2000 if cells < 100 else 10_000
            run = by_step(method, task, SWEEPING, seeds, part, look, lambda run: bool(good(run).any(axis=0).all()))
            first = np.argmax(good(run), axis=0)
            updates = run.seen[1][first, np.arange(seeds)]
            found[str(cells)][method] = {"updates": updates.tolist(), "steps": (first + 1).tolist()}
    return found


class BoyanChain:
    """Boyan's chain of 13 states, from 12 down to 0: a step leads one or two states down, with equal probability, and costs
    3; from state 1 it leads to 0 and costs 2; from 0 the episode ends. Its values -2 s are linear in four features, which
    interpolate between the states 12, 8, 4 and 0."""

    def observed(self, state: Any) -> Any:
        """The features [4] of a state."""
        return jnp.clip(1 - jnp.abs(jnp.array([12.0, 8.0, 4.0, 0.0]) - state) / 4, 0.0, 1.0)

    def reset(self, rng: Any) -> State:
        """In state 12. The state of the environment is (state, key of the next step)."""
        state = jnp.float32(12)
        return initial_state((state, rng), self.observed(state))

    def step(self, state: State, action: Any) -> State:
        """One step down the chain; the action has no effect."""
        at, key = state.pipeline_state
        key, jump_key = jax.random.split(key)
        down = jnp.where(at >= 2, 1.0 + jax.random.bernoulli(jump_key), 1.0)
        after = jnp.maximum(at - down, 0.0)
        reward = jnp.where(at >= 2, -3.0, jnp.where(at == 1, -2.0, 0.0))
        return state.replace(
            pipeline_state=(after, key), obs=self.observed(after), reward=reward, done=(at == 0).astype(state.done.dtype)
        )


def boyan_chain() -> Task:
    """The chain as a task with one action."""
    env = BoyanChain()
    env.observation_size = 4  # type: ignore[attr-defined]
    return make_task("boyan-chain", env, 100, action=Discrete(1))  # type: ignore[arg-type]


LINEAR: dict[str, dict[str, Any]] = {
    "TD": {"planning_updates": 0, "sweep": "random"},
    "random": {"planning_updates": 3, "sweep": "random"},
    "PWMA": {"planning_updates": 3, "sweep": "pwma"},
    "MG": {"planning_updates": 3, "sweep": "mg"},
}


def linear(seeds: int, episodes: int) -> dict[str, Any]:
    """Root mean square error over the 13 states after each episode, mean over seeds."""
    task, found = boyan_chain(), {}
    states = np.arange(13)
    features = np.clip(1 - np.abs(np.array([12, 8, 4, 0]) - states[:, None]) / 4, 0, 1)
    base = {"learning_rate": 0.1, "model_learning_rate": 0.1, "decay": 100.0, "discount": 1.0}
    for name, settings in LINEAR.items():
        run = by_step(
            "linear-dyna",
            task,
            base | settings,
            seeds,
            # An episode has at most 13 steps.
            13 * episodes,
            lambda state: state.theta,
        )
        error = np.sqrt(np.mean((run.seen @ features.T + 2 * states) ** 2, axis=-1))
        ends = [np.flatnonzero(of_seed)[:episodes] for of_seed in run.ended.T]
        by_episode = np.array([error[at, k] for k, at in enumerate(ends)])
        found[name] = {"error": by_episode.mean(axis=0).tolist()}
    return found


def checks(found: dict[str, Any]) -> dict[str, bool]:
    """Whether what the curves must show is so."""
    first = {n: case["first episode of at most 20 steps"] for n, case in found["maze"].items()}
    reward = {method: case["reward"][-1] for method, case in found["blocking-maze"].items()}
    at_20 = [case["error"][19] for case in found["linear"].values()]
    shown = {
        "first episode with a mean of at most 20 steps within one of 28, 7, 3": all(
            abs(first[n] - due) <= 1 for n, due in (("0", 28), ("5", 7), ("50", 3))
        ),
        "Dyna-Q+ above 1.3 times Dyna-Q at 3,000 steps of the blocking maze": bool(
            reward["dyna-q-plus"] > 1.3 * reward["dyna-q"]
        ),
        "error of MG below PWMA below random below TD after 20 episodes": at_20 == sorted(at_20, reverse=True),
    }
    for cells, case in found["sweeping"].items():
        dyna, swept = (np.median(case[method]["updates"]) for method in ("dyna-q", "prioritized-sweeping"))
        shown[f"prioritized sweeping: at most half of Dyna-Q's updates at {cells} cells"] = bool(dyna >= 2 * swept)
    return shown


def table(found: dict[str, Any]) -> str:
    """The numbers as text."""
    lines = []
    for n, case in found["maze"].items():
        steps = ", ".join(f"{x:.1f}" for x in case["steps"][:3])
        first, total = case["first episode of at most 20 steps"], case["steps of all episodes"]
        lines.append(f"  Dyna maze, n = {n:<3} episodes 1 to 3: {steps}; at most 20 from {first} on; all: {total:,.0f}")
    for name in CHANGING:
        for method, case in found[name].items():
            marks = ", ".join(f"{50 * (i + 1):,}: {case['reward'][i]:.1f}" for i in range(19, len(case["reward"]), 20))
            lines.append(f"  {name}, {method:<12} cumulative reward at {marks}")
    for cells, case in found["sweeping"].items():
        for method in ("dyna-q", "prioritized-sweeping"):
            updates, steps = (np.median(case[method][what]) for what in ("updates", "steps"))
            lines.append(f"  {cells:>3} cells, {method:<21} median of {updates:>9,.0f} updates, {steps:>9,.0f} steps")
    for name, case in found["linear"].items():
        marks = [i for i in (5, 20, 50, 100) if i <= len(case["error"])]
        values = ", ".join(f"{i}: {case['error'][i - 1]:.2f}" for i in marks)
        lines.append(f"  Boyan chain, {name:<7} error after {values}")
    return "\n".join(lines)


def draw(found: dict[str, Any], path: Path) -> None:
    """Write the picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 8.4), dpi=110, layout="constrained")
    (learned, blocking, shortcut), (swept, ratio, errors) = figure.subplots(2, 3)
    for (n, case), color in zip(found["maze"].items(), COLORS, strict=False):
        episodes = np.arange(1, len(case["steps"]) + 1)
        label = f"n = {n}" + (" (Q-learning)" if n == "0" else "")
        learned.plot(episodes, case["steps"], color=color, linewidth=2, label=label)
    learned.set(xlabel="episode", ylabel="steps", yscale="log", title="Dyna-Q in the Dyna maze: steps of an episode")
    learned.axhline(14, color="0.6", linestyle=":", linewidth=1)
    for axes, name, change, title in (
        (blocking, "blocking-maze", 1000, "Blocking maze: cumulative reward"),
        (shortcut, "shortcut-maze", 3000, "Shortcut maze: cumulative reward"),
    ):
        for case, color, label in zip(found[name].values(), COLORS, ("Dyna-Q", "Dyna-Q+"), strict=False):
            at = 50 * np.arange(1, len(case["reward"]) + 1)
            mean, around = np.array(case["reward"]), np.array(case["deviation"])
            axes.fill_between(at, mean - around, mean + around, color=color, alpha=0.15, linewidth=0)
            axes.plot(at, mean, color=color, linewidth=2, label=label)
        axes.axvline(change, color="0.6", linestyle=":", linewidth=1)
        axes.set(xlabel="environment steps", ylabel="cumulative reward", title=title)
    for axes, what in ((swept, "updates"), (ratio, "steps")):
        for method, color, label in zip(
            ("dyna-q", "prioritized-sweeping"), COLORS, ("Dyna-Q", "prioritized"), strict=False
        ):
            cells = [int(x) for x in found["sweeping"]]
            values = [case[method][what] for case in found["sweeping"].values()]
            axes.plot(cells, [np.median(x) for x in values], color=color, linewidth=2, marker="o", label=label)
            for x, of_seeds in zip(cells, values, strict=True):
                axes.plot([x] * len(of_seeds), of_seeds, ".", color=color, alpha=0.35, markersize=5)
        axes.set(xlabel="cells of the maze", ylabel=what, xscale="log", yscale="log")
        axes.set_xticks(cells, [str(x) for x in cells])
        axes.minorticks_off()
    swept.set_title("Updates to a path of 1.2 times the shortest")
    ratio.set_title("Environment steps to the same path")
    for (name, case), color in zip(found["linear"].items(), COLORS, strict=True):
        label = name if name == "TD" else f"{name} sweeps"
        errors.plot(np.arange(1, len(case["error"]) + 1), case["error"], color=color, linewidth=2, label=label)
    errors.set(xlabel="episode", ylabel="root mean square error", yscale="log", title="Linear Dyna on the Boyan chain")
    for axes in figure.axes:
        axes.title.set_fontsize(11)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.92", linewidth=0.6)
        axes.legend(frameon=False, fontsize=9)
    figure.savefig(path)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run everything, print the table and the checks, and write the picture and the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="by default runs/dyna_maze, with --quick runs/dyna_maze-quick")
    parser.add_argument("--quick", action="store_true", help="two seeds and few steps (smoke test)")
    args = parser.parse_args(arguments)
    args.out = args.out or Path("runs/dyna_maze-quick" if args.quick else "runs/dyna_maze")
    quick = args.quick
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "maze": lambda: maze(2, 3, (5,)) if quick else maze(300, 50),
        **{name: partial(changing, name, 2 if quick else 100, 0.1 if quick else 1.0) for name in CHANGING},
        "sweeping": lambda: sweeping(2, {"dyna-maze": 54}) if quick else sweeping(20, SIZES),
        "linear": lambda: linear(2 if quick else 20, 20 if quick else 100),
    }
    found: dict[str, Any] = {}
    for i, (name, measure) in enumerate(parts.items()):
        print(f"part {i + 1} of {len(parts)}: {name} ...", flush=True)
        found[name] = measure()
    print(table(found))
    if not quick:
        found["checks"] = checks(found)
        for name, holds in found["checks"].items():
            print(f"  {'yes' if holds else 'NO ':<4}{name}")
    args.out.mkdir(parents=True, exist_ok=True)
    picture, numbers = args.out / "dyna-maze.png", args.out / "dyna-maze.json"
    draw(found, picture)
    where = environment("python experiments/dyna_maze.py")
    numbers.write_text(json.dumps({**found, "environment": where}, indent=1) + "\n")
    print(f"picture  {picture}\nnumbers  {numbers}")
    return found


if __name__ == "__main__":
    main()
