"""Score function or path derivative: bias and variance of two estimators of a policy's gradient against the horizon.

    J_H = E sum_{t<H} discount^t r_t,    a_t ~ N(theta . features(s_t), sigma^2)

    score function             sum_t grad log pi(a_t|s_t) sum_{t<=t'<H} discount^t' r_t'       (REINFORCE, rewards to go)
      ... with a baseline      the same, with the mean over all other trajectories subtracted from the rewards to go
    pathwise derivative        the derivative of sum_t discount^t r_t along a trajectory with the noise held fixed

All are unbiased for the model that makes the trajectories. The score function needs values of the model only, the path its
derivatives. Each is computed in the true model and in learned ones: an ensemble that was fitted to few transitions, and the
same with early stopping by the squared error of a holdout, which ends before the predicted variance is right. There the
error of the mean is that of the model. The tasks are

    linear      s' = 0.9 s + 0.5 a + 0.1 noise, r = -(s^2 + 0.1 a^2) / 2, with a gain for which the loop is stable
                (s contracts by 0.7 in a step); its gradient is known exactly
    unstable    the same with a gain for which s grows by 1.1 in a step
    pendulum    the task `pendulum`, under a linear policy that pumps energy into it; its gradient is estimated in the true
                model by other trajectories, eight times as many

    python experiments/score_or_path.py [--out FOLDER] [--rows 32768] [--seed 0] [--quick]

Writes `score-or-path.png` and `score-or-path.json`, with command, commit, versions and machine.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxmbrl import envs
from jaxmbrl.agents.exploration import uniform
from jaxmbrl.algorithms.value_gradients import bptt
from jaxmbrl.core.types import Key, Policy, Transition, World
from jaxmbrl.data import replay
from jaxmbrl.models import ensemble
from jaxmbrl.models.ensemble import EnsembleConfig
from jaxmbrl.models.imagination import Trajectory, imagine
from jaxmbrl.training.collecting import collect
from jaxmbrl.training.run_folder import environment

A, B, COST, STATE_NOISE = 0.9, 0.5, 0.1, 0.1
"""The linear task."""
DISCOUNT = 0.95
BLOCK = 4096
"""Trajectories that are made at once."""
HORIZONS = (2, 3, 5, 10, 20, 30, 50, 75, 100)
MODEL = EnsembleConfig(members=5, elites=5, hidden=(64, 64), batch_size=64, max_epochs=300, holdout_fraction=0.0)
LEARNED, STOPPED = "learned", "learned, stopped early"
SCORE, BASELINE, PATH = "score function", "score function, baseline", "pathwise derivative"
COLORS = {SCORE: "#999999", BASELINE: "#c1440e", PATH: "#0b3d91"}


class Case(NamedTuple):
    """A task with the policy whose gradient is estimated, and one of its models."""

    world: World
    origins: Callable[[Key, int], Any]
    """(key, n) -> n start states, which `world.start` accepts."""
    theta: tuple[float, ...]
    """The policy's weights of the observation."""
    sigma: float


def one_step(noise: Float[np.ndarray, "n"], mu: float = 0.3, sigma: float = 0.2) -> dict[str, Float[np.ndarray, "n"]]:
    """Each estimate of d/dmu E Q(a) for Q(a) = -(a - 1)^2 and a = mu + sigma noise. The baseline is E Q(a).

    Mean and variance are exact: 1.4 for all, and 13.4625, 4.32 and 0.16.
    """
    action = mu + sigma * noise
    value, mean_value = -((action - 1) ** 2), -((mu - 1) ** 2) - sigma**2
    return {SCORE: value * noise / sigma, BASELINE: (value - mean_value) * noise / sigma, PATH: -2 * (action - 1)}


def exact_gradient(gain: float, sigma: float, horizon: int, second_moment: float = 1.0) -> float:
    """dJ_H / dgain of the linear task under a = gain s + sigma noise, from E s_0^2 = `second_moment`.

    With m_t = E s_t^2: m_{t+1} = (A + B gain)^2 m_t + B^2 sigma^2 + 0.1^2, and E r_t = -(m_t + COST (gain^2 m_t +
    sigma^2)) / 2.
    """
    loop, m, slope, total = A + B * gain, second_moment, 0.0, 0.0
    for t in range(horizon):
        total -= DISCOUNT**t * (slope + COST * (2 * gain * m + gain**2 * slope)) / 2
        m, slope = loop**2 * m + (B * sigma) ** 2 + STATE_NOISE**2, 2 * loop * B * m + loop**2 * slope
    return total


def linear_reward(s: Float[Array, "*n 1"], a: Float[Array, "*n 1"], s2: Float[Array, "*n 1"]) -> Float[Array, "*n"]:
    """The reward of the linear task."""
    return -(s[..., 0] ** 2 + COST * a[..., 0] ** 2) / 2


def linear_world() -> World:
    """The linear task over rows of states."""

    def step(s: Float[Array, "N 1"], action: Float[Array, "N 1"], key: Key) -> tuple[Float[Array, "N 1"], Transition]:
        s2 = A * s + B * action + STATE_NOISE * jax.random.normal(key, s.shape)
        none = jnp.zeros(s.shape[0], bool)
        return s2, Transition(s, action, linear_reward(s, action, s2), s2, none, none)

    return World(reset=lambda key: None, start=lambda origin, key: origin, observe=lambda s: s, step=step)


def clipped(world: World) -> World:
    """`world` with actions clipped to [-1, 1]; its transitions have the actions before."""

    def step(carry: Any, action: Float[Array, "N A"], key: Key) -> tuple[Any, Transition]:
        carry, made = world.step(carry, jnp.clip(action, -1.0, 1.0), key)
        return carry, made._replace(action=action)

    return world._replace(step=step)


def never(next_observation: Float[Array, "*n O"]) -> Any:
    """No termination."""
    return jnp.zeros(next_observation.shape[:-1], bool)


def fitted(rows: Transition, reward: Any, key: Key, config: EnsembleConfig) -> World:
    """The World of an ensemble fitted to `rows`; the reward is known."""
    model = ensemble.make(config, rows.observation.shape[-1], rows.action.shape[-1], reward=reward, terminated=never)
    buffer = replay.add(replay.init(jax.tree.map(lambda x: x[0], rows), rows.reward.shape[0]), rows)
    init_key, fit_key = jax.random.split(key)
    state, _ = jax.jit(model.fit)(model.init(init_key, {}), buffer, fit_key)
    return model.world(state)


def cases(seed: int, transitions: int, config: EnsembleConfig) -> dict[str, dict[str, Case]]:
    """Task -> model -> case. The learned models are fitted to `transitions` under random actions."""
    data_key, fit_key = jax.random.split(jax.random.key(seed))
    keys = jax.random.split(data_key, 3)
    true = linear_world()
    s, action = 1.5 * jax.random.normal(keys[0], (transitions, 1)), jax.random.normal(keys[1], (transitions, 1))
    of_linear = true.step(s, action, keys[2])[1]

    def starts(key: Key, n: int) -> Float[Array, "n 1"]:
        return jax.random.normal(key, (n, 1))

    task = envs.make("pendulum")
    rows = collect(task, uniform(task.action), 4 * transitions, seed=seed)

    def carries(key: Key, n: int) -> Any:
        return jax.vmap(task.world.reset)(jax.random.split(key, n))

    def observations(key: Key, n: int) -> Float[Array, "n 3"]:
        return jax.vmap(task.world.observe)(carries(key, n))

    found = {
        "linear": {"true": Case(true, starts, (-0.4,), 0.2)},
        "unstable": {"true": Case(true, starts, (0.4,), 0.2)},
        "pendulum": {"true": Case(clipped(bptt.simulated(task.world)), carries, (0.0, 0.0, 0.2), 0.2)},
    }
    for name, settings in ((LEARNED, config), (STOPPED, replace(config, holdout_fraction=0.2))):
        linear = fitted(of_linear, linear_reward, fit_key, settings)
        found["linear"][name] = found["linear"]["true"]._replace(world=linear)
        found["unstable"][name] = found["unstable"]["true"]._replace(world=linear)
        swinging = clipped(fitted(rows, task.reward, fit_key, settings))
        found["pendulum"][name] = found["pendulum"]["true"]._replace(world=swinging, origins=observations)
    return found


def derivatives(case: Case, rows: int, horizon: int, key: Key) -> tuple[Float[Array, "T N"], ...]:
    """(rewards [T, N], their derivatives along the path [P, T, N], grad log pi [P, T, N]) of N = `rows` trajectories."""
    start_key, key = jax.random.split(key)
    origins = case.origins(start_key, rows)

    def trajectory(theta: Float[Array, "P"]) -> Trajectory:
        def act(memory: Any, observation: Float[Array, "N P"], key: Key) -> tuple[Array, Array, Any]:
            mean = observation @ theta
            action = mean + case.sigma * jax.random.normal(key, mean.shape)
            return action[:, None], jnp.zeros(rows), memory

        return imagine(case.world, Policy(lambda key: (), act), origins, key, horizon)

    theta = jnp.asarray(case.theta)
    made = trajectory(theta)
    slopes = jax.vmap(lambda to: jax.jvp(lambda p: trajectory(p).reward, (theta,), (to,))[1])(jnp.eye(len(case.theta)))
    noise = (made.action[..., 0] - made.observation @ theta) / case.sigma
    scores = jnp.moveaxis(noise[..., None] * made.observation / case.sigma, -1, 0)
    return made.reward, slopes, scores


def estimates(
    rewards: Float[np.ndarray, "T N"], slopes: Float[np.ndarray, "P T N"], scores: Float[np.ndarray, "P T N"], horizon: int
) -> dict[str, Float[np.ndarray, "P N"]]:
    """Each estimate of dJ_H / dtheta by each of the N trajectories."""
    powers = DISCOUNT ** np.arange(horizon)[:, None]
    rewards, slopes, scores = powers * rewards[:horizon], powers * slopes[:, :horizon], scores[:, :horizon]
    to_go = np.cumsum(rewards[::-1], axis=0)[::-1]
    number = rewards.shape[1]
    of_others = (to_go.sum(axis=1, keepdims=True) - to_go) / (number - 1)
    return {
        SCORE: np.sum(scores * to_go, axis=1),
        BASELINE: np.sum(scores * (to_go - of_others), axis=1),
        PATH: np.sum(slopes, axis=1),
    }


def measured(found: Float[np.ndarray, "P N"]) -> dict[str, Any]:
    """Mean, its standard error, and the root of the total variance of one trajectory's estimate."""
    variances = found.var(axis=1, ddof=1)
    return {
        "mean": found.mean(axis=1).tolist(),
        "error": np.sqrt(variances / found.shape[1]).tolist(),
        "deviation": float(np.sqrt(variances.sum())),
    }


def study(by_model: dict[str, Case], rows: int, horizons: tuple[int, ...], seed: int) -> dict[str, Any]:
    """Model -> estimator -> horizon -> measures. All models have the same start states and noise of the policy."""
    found: dict[str, Any] = {}
    for model, case in by_model.items():
        run = jax.jit(lambda key, case=case: derivatives(case, min(rows, BLOCK), max(horizons), key))
        blocks = [run(jax.random.key(1000 + seed + block)) for block in range(max(1, rows // BLOCK))]
        whole = [np.concatenate([np.asarray(x, np.float64) for x in parts], axis=-1) for parts in zip(*blocks, strict=True)]
        found[model] = {name: {} for name in COLORS}
        for horizon in horizons:
            for name, each in estimates(*whole, horizon).items():
                found[model][name][str(horizon)] = measured(each)
    return found


def references(task: str, case: Case, rows: int, horizons: tuple[int, ...], seed: int) -> dict[str, Any]:
    """Horizon -> the gradient in the true model, `mean` with its standard `error`: exact on the linear task; else by the
    estimator with the smaller variance, on eight times `rows` other trajectories."""
    if task != "pendulum":
        return {str(h): {"mean": [exact_gradient(case.theta[0], case.sigma, h)], "error": [0.0]} for h in horizons}
    found = study({"true": case}, 8 * rows, horizons, seed + 1_000_000)["true"]
    best = {h: min(found, key=lambda name: found[name][str(h)]["deviation"]) for h in horizons}
    return {str(h): found[name][str(h)] | {"estimator": name} for h, name in best.items()}


def relative(of: dict[str, Any], reference: dict[str, Any], horizon: int) -> tuple[float, float, float]:
    """(deviation of one trajectory, error of the mean, its standard error), all divided by the norm of the gradient."""
    true, at = reference[str(horizon)], of[str(horizon)]
    scale = np.linalg.norm(true["mean"])
    bias = np.linalg.norm(np.asarray(at["mean"]) - np.asarray(true["mean"]))
    return at["deviation"] / scale, bias / scale, np.linalg.norm([*at["error"], *true["error"]]) / scale


def table(found: dict[str, Any], horizons: tuple[int, ...]) -> str:
    """Deviations and errors as text, a line for each task, model and estimator."""
    shown = [h for h in (2, 5, 20, 50, 100) if h in horizons]
    lines = ["deviation of one trajectory's estimate / error of the mean (+- standard error), over the gradient's norm"]
    lines.append(f"  {'':<58}" + "".join(f"{f'H = {h}':>25}" for h in shown))
    for task, by_model in found.items():
        for model in ("true", LEARNED, STOPPED):
            for name in COLORS:
                numbers = [relative(by_model[model][name], by_model["gradient"], h) for h in shown]
                line = "".join(f"{d:>10.3g} /{b:>6.1%} +-{e:>5.1%}" for d, b, e in numbers)
                lines.append(f"  {task + ', ' + model + ', ' + name:<58}{line}")
    return "\n".join(lines)


def draw(found: dict[str, Any], horizons: tuple[int, ...], path: Path) -> None:
    """Write the picture: deviations above, errors of the mean below, a column for each task."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter

    figure = Figure(figsize=(14, 7.6), dpi=120, layout="constrained")
    grid = figure.subplots(2, len(found), squeeze=False, sharex=True)
    titles = {"linear": "linear, stable loop", "unstable": "linear, unstable loop", "pendulum": "pendulum"}
    styles = {"true": "-", LEARNED: "--", STOPPED: ":"}
    for (task, by_model), (above, below) in zip(found.items(), grid.T, strict=True):
        for model, style in styles.items():
            for name, color in COLORS.items():
                numbers = np.array([relative(by_model[model][name], by_model["gradient"], h) for h in horizons])
                look = {"color": color, "linestyle": style, "linewidth": 2, "marker": "o", "markersize": 4}
                if model != STOPPED:
                    above.plot(horizons, numbers[:, 0], **look)
                if name == PATH and model != "true":
                    below.errorbar(horizons, 100 * numbers[:, 1], 100 * numbers[:, 2], capsize=3, **look)
        above.set_title(titles[task], loc="left", fontsize=11)
        below.set(xlabel="horizon H")
        for axes in (above, below):
            axes.set_yscale("log")
            axes.set_xscale("log")
            axes.set_xticks([2, 5, 10, 20, 50, 100], ["2", "5", "10", "20", "50", "100"])
            axes.minorticks_off()
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(color="0.92", linewidth=0.6)
        below.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:g}%"))
    grid[0, 0].set_ylabel("standard deviation of one trajectory's\nestimate / norm of the gradient")
    grid[1, 0].set_ylabel("error of the mean pathwise derivative\nin learned models, of the gradient")
    handles = [Line2D([], [], color=color, linewidth=2, label=name) for name, color in COLORS.items()]
    handles += [Line2D([], [], color="0.3", linestyle=s, linewidth=2, label=f"{m} model") for m, s in styles.items()]
    handles[-1].set_label("learned model, stopped early")
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)
    figure.savefig(path)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Fit the models, estimate, print the table, and write picture and numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="by default runs/score_or_path, with --quick runs/score_or_path-quick")
    parser.add_argument("--rows", type=int, default=32768, help="trajectories")
    parser.add_argument("--transitions", type=int, default=500, help="data of a model; four times as many of the pendulum")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="few trajectories, short and in small models (smoke test)")
    args = parser.parse_args(arguments)
    args.out = args.out or Path("runs/score_or_path-quick" if args.quick else "runs/score_or_path")
    rows, horizons, config = args.rows, HORIZONS, MODEL
    if args.quick:
        rows, horizons = 256, (2, 5)
        config = EnsembleConfig(members=2, elites=2, hidden=(8,), batch_size=64, max_epochs=2)
    args.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}
    print("fitting the models ...", flush=True)
    for task, by_model in cases(args.seed, args.transitions, config).items():
        print(f"estimating gradients on {task} ...", flush=True)
        found[task] = study(by_model, rows, horizons, args.seed)
        found[task]["gradient"] = references(task, by_model["true"], rows, horizons, args.seed)
    print(table(found, horizons))
    picture, numbers = args.out / "score-or-path.png", args.out / "score-or-path.json"
    draw(found, horizons, picture)
    command = f"python experiments/score_or_path.py --rows {rows} --transitions {args.transitions} --seed {args.seed}"
    settings = {"horizons": list(horizons), "rows": rows, "transitions": args.transitions, "discount": DISCOUNT}
    written = settings | found | {"environment": environment(command)}
    numbers.write_text(json.dumps(written, indent=1) + "\n")
    print(f"picture  {picture}\nnumbers  {numbers}")
    return written


if __name__ == "__main__":
    main()
