"""The iterations of guided policy search: costs of policy and controllers, divergence, multiplier and standard deviations.

    p           the controllers of the C-step, which are optimal in the local models within the bound of the divergence
    pi          the network that the S-step regresses onto them
    p alone     the controllers without a network: trajectory optimisation (`--policy local`)

After each iteration, both are run once without noise in the task itself.

    python experiments/guided_policy_search.py [--env pendulum-reach] [--out FOLDER] [--seeds 4] [--iterations 10] [--quick]

Writes `guided-policy-search-ENV.png` and `.json`, with command, commit, versions and machine.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmbrl.algorithms.trajectory import gps
from jaxmbrl.core import metrics
from jaxmbrl.core.types import Algorithm, Task
from jaxmbrl.rollout import rollout
from jaxmbrl.training import programs
from jaxmbrl.training.evaluation import begin
from jaxmbrl.training.loop import clock_at
from jaxmbrl.training.run_folder import environment

OPTIMA = {"pendulum-reach": 17.344}
"""Least cost of an episode, without noise."""
NETWORK, LOCAL = "network", "local"
BLUE, RED, GREY = "#0b3d91", "#c1440e", "0.45"


def acted(algorithm: Algorithm, task: Task, state: Any) -> tuple[jax.Array, jax.Array]:
    """(cost, observations [T, n]) of an episode without noise."""
    world, policy, start, key = begin(algorithm, task, state, jnp.zeros((), jnp.int32))
    rows = rollout(world, policy, start, key, task.episode_length)[1]
    return -jnp.sum(rows.reward), rows.observation


def iterate(env: str, policy: str, seeds: int, iterations: int, settings: dict[str, Any]) -> dict[str, np.ndarray]:
    """What each iteration of each seed gives, [iterations, seeds, ...]."""
    settings, task = settings | {"policy": policy}, programs.checked_task(env, 1)
    steps = task.episode_length * programs.configure("gps", env, settings=settings).settings.num_envs
    # An epoch of metrics is one iteration.
    program = programs.build(programs.configure("gps", env, settings=settings | {"epoch_steps": steps}, seeds=seeds))
    task, algorithm = program.task, program.algorithm
    by_controllers = gps.make(gps.Config(policy=LOCAL), task)

    def judged(state: Any) -> dict[str, Any]:
        cost, observations = acted(algorithm, task, state)
        std = jnp.sqrt(jnp.diagonal(state.local.covariance[0], axis1=-2, axis2=-1))
        of_controllers = acted(by_controllers, task, state)[0]
        return {"cost": cost, "cost of p": of_controllers, "observations": observations, "std": jnp.mean(std, axis=-1)}

    state = jax.jit(program.loop.init)(jnp.arange(seeds), {})
    clock, run, judge = clock_at(0), jax.jit(program.loop.run), jax.jit(jax.vmap(judged))
    first = judge(state.algorithm)
    found = []
    for _ in range(iterations):
        clock, state = run(clock, state, jnp.ones((), jnp.int32))
        of_seeds = [metrics.known(jax.tree.map(lambda x, s=s: x[s], state.metrics)) for s in range(seeds)]
        measured = {name: np.array([of[name] for of in of_seeds]) for name in of_seeds[0] if name.startswith("gps/")}
        found.append(measured | jax.device_get(judge(state.algorithm)))
    by_name = {name: np.stack([of[name] for of in found]) for name in found[0]}
    return by_name | {"first cost": np.asarray(first["cost"]), "env_steps": steps * np.arange(1, iterations + 1)}


def band(axes: Any, x: np.ndarray, values: np.ndarray, color: str, label: str | None = None, style: str = "-") -> None:
    """The mean over seeds [iterations, seeds] as a line, their range as a band."""
    axes.fill_between(x, values.min(axis=1), values.max(axis=1), color=color, alpha=0.15, linewidth=0)
    axes.plot(x, values.mean(axis=1), color=color, linewidth=2, marker=".", label=label, linestyle=style)


def draw(found: dict[str, dict[str, np.ndarray]], env: str, names: tuple[str, ...], path: Path) -> None:
    """Write the picture."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    of, alone = found[NETWORK], found[LOCAL]
    steps, iterations = of["env_steps"], len(of["env_steps"])
    figure = Figure(figsize=(14, 7), dpi=120, layout="constrained")
    (costs, divergence, multiplier), (std, state, model) = figure.subplots(2, 3)
    before = np.concatenate([[0], steps])
    for values, color, label, style in (
        (of["cost"], BLUE, "pi, the network", "-"),
        (of["cost of p"], RED, "p, in the same run", "-"),
        (alone["cost"], GREY, "p alone", "--"),
    ):
        band(costs, before, np.concatenate([of["first cost"][None], values]), color, label, style)
    if env in OPTIMA:
        costs.axhline(OPTIMA[env], color="0.3", linestyle=":", linewidth=1.2, label="optimum")
    costs.set_title("cost of an episode in the task, without noise", loc="left", fontsize=11)
    costs.set_yscale("log")
    band(divergence, steps, of["gps/divergence"], BLUE, "KL(p | pi) of a step")
    band(divergence, steps, of["gps/step_size"], RED, "bound: factor s", "--")
    divergence.set_title("divergence, nats a step", loc="left", fontsize=11)
    band(multiplier, steps, 10.0 ** of["gps/log10_multiplier"], BLUE)
    multiplier.set_title("multiplier eta of the bound", loc="left", fontsize=11)
    multiplier.set_yscale("log")
    shades = colormaps["viridis"](np.linspace(0.0, 0.9, iterations))
    for i in range(iterations):
        label = f"iteration {i + 1}" if i in (0, iterations - 1) else None
        std.plot(of["std"][i, 0], color=shades[i], linewidth=1.5, label=label)
        state.plot(of["observations"][i, 0, :, 0], color=shades[i], linewidth=1.5)
    std.set_title("standard deviation of p, first seed", loc="left", fontsize=11)
    state.set_title(f"{names[0]} under pi, first seed", loc="left", fontsize=11)
    band(model, steps, of["gps/cost"], BLUE, "pi, with its noise")
    band(model, steps, of["gps/local_cost"], RED, "p, with its noise")
    model.set_title("expected cost in the local models", loc="left", fontsize=11)
    model.set_yscale("log")
    for axes in (costs, divergence, std, model):
        axes.legend(frameon=False, fontsize=9)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.92", linewidth=0.6)
        axes.set_xlabel("step of the episode" if axes in (std, state) else "environment steps")
    figure.savefig(path)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run both variants, and write picture and numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="pendulum-reach")
    parser.add_argument(
        "--out", type=Path, help="by default runs/guided_policy_search, with --quick runs/guided_policy_search-quick"
    )
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="a tiny network, two seeds and two iterations (smoke test)")
    args = parser.parse_args(arguments)
    args.out = args.out or Path("runs/guided_policy_search-quick" if args.quick else "runs/guided_policy_search")
    seeds, iterations, settings = args.seeds, args.iterations, {}
    if args.quick:
        seeds, iterations, settings = 2, 2, {"agent.hidden": [8], "agent.updates": 10, "model.iterations": 2}
    found = {policy: iterate(args.env, policy, seeds, iterations, settings) for policy in (NETWORK, LOCAL)}
    args.out.mkdir(parents=True, exist_ok=True)
    name = f"guided-policy-search-{args.env}"
    picture, numbers = args.out / f"{name}.png", args.out / f"{name}.json"
    task = programs.checked_task(args.env, 1)
    names = getattr(task.env, "observation_names", ("first entry of the observation",))
    draw(found, args.env, names, picture)
    command = f"python experiments/guided_policy_search.py --env {args.env} --seeds {seeds} --iterations {iterations}"
    kept = {
        policy: {key: np.round(values, 5).tolist() for key, values in of.items() if values.ndim <= 2}
        for policy, of in found.items()
    }
    written = {"task": args.env, "seeds": seeds, "iterations": iterations, **kept, "environment": environment(command)}
    numbers.write_text(json.dumps(written, indent=1) + "\n")
    for policy, of in found.items():
        last = ", ".join(f"{value:.2f}" for value in of["cost"][-1])
        print(f"{policy:8} cost of each seed after {of['env_steps'][-1]:,} steps: {last}")
    print(f"picture  {picture}\nnumbers  {numbers}")
    return written


if __name__ == "__main__":
    main()
