"""Overestimation of Q-learning, and its reduction by double Q-learning, in a small decision process and with networks.

The maximum over estimated values of actions is above the largest value, on average, even if each estimate is unbiased. Two
measurements:

    tables    Two states (Sutton and Barto, Reinforcement Learning, 2nd edition, example 6.7). In A, right ends the episode
              with reward 0; left leads to B with reward 0. In B, each of ten actions ends the episode with a reward from a
              normal distribution with mean -0.1 and standard deviation 1. Left is never worth it, and an epsilon-greedy
              policy with epsilon 0.1 that knows this takes it in 5% of the episodes. Shown is how often it is taken, by
              Q-learning and by double Q-learning (van Hasselt, NeurIPS 2010). Step size 0.1, discount 1.
    networks  DQN and double DQN on CartPole-v1. The estimate max_a Q(s, a) is compared with the discounted return of the
              greedy policy in the simulator, without a time limit, from states of the newest 1,000 steps. No return can
              exceed 1 / (1 - discount) = 100.

    python experiments/overestimation.py [--out FOLDER] [--runs 4000] [--seeds 8] [--steps 30000] [--quick]

Writes `overestimation.png` and `overestimation.json`, with command, commit, versions and machine.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxmbrl.agents import q_learning
from jaxmbrl.agents.greedy import QState
from jaxmbrl.core.types import Key, Observation
from jaxmbrl.data import replay
from jaxmbrl.envs.base import number_of_actions
from jaxmbrl.rollout import Return, planned_return, rollout
from jaxmbrl.training import loop, programs
from jaxmbrl.training.evaluation import bootstrap_interval, interquartile_mean
from jaxmbrl.training.run_folder import environment

EPISODES, CHOICES = 300, 10
STEP_SIZE, EPSILON = 0.1, 0.1
MEAN_REWARD = -0.1
LEFT = 1
TASK = "CartPole-v1"
RECENT = 1000
"""Newest rows of the replay buffer, from which the judged states are sampled."""
COLORS = {False: "#c1440e", True: "#0b3d91"}
NAMES = {False: ("Q-learning", "DQN"), True: ("double Q-learning", "double DQN")}


class Tables(NamedTuple):
    """Estimated values in T tables: one for Q-learning, two for double Q-learning."""

    a: Float[Array, "T 2"]
    """Of right and left in A."""
    b: Float[Array, "T choices"]


def best(values: Float[Array, "n"], key: Key) -> Int[Array, ""]:
    """An action with the largest value; of several, a random one."""
    return jnp.argmax(jnp.where(values == jnp.max(values), jax.random.uniform(key, values.shape), -1.0))


def chosen(values: Float[Array, "n"], key: Key) -> Int[Array, ""]:
    """The epsilon-greedy action."""
    random_key, choice_key, best_key = jax.random.split(key, 3)
    explores = jax.random.uniform(random_key) < EPSILON
    return jnp.where(explores, jax.random.randint(choice_key, (), 0, values.shape[0]), best(values, best_key))


def episode(tables: Tables, key: Key) -> tuple[Tables, Bool[Array, ""]]:
    """(tables after one episode, whether it went left). Double Q-learning acts by the sum of its tables; a random one of
    them is updated at each step, with its own best action and the other's value of it."""
    keys = jax.random.split(key, 6)
    number = tables.a.shape[0]
    updated, in_b = jax.random.randint(keys[0], (2,), 0, number)
    other = number - 1 - updated
    action = chosen(jnp.sum(tables.a, axis=0), keys[1])
    left = action == LEFT
    target = jnp.where(left, tables.b[other, best(tables.b[updated], keys[2])], 0.0)
    a = tables.a.at[updated, action].add(STEP_SIZE * (target - tables.a[updated, action]))
    choice = chosen(jnp.sum(tables.b, axis=0), keys[3])
    reward = MEAN_REWARD + jax.random.normal(keys[4])
    b = tables.b.at[in_b, choice].add(jnp.where(left, STEP_SIZE * (reward - tables.b[in_b, choice]), 0.0))
    return Tables(a, b), left


@partial(jax.jit, static_argnums=(0, 1))
def share_left(double: bool, runs: int, key: Key) -> Float[Array, "episodes"]:
    """The share of `runs` runs that go left in each episode, in percent."""
    number = 2 if double else 1
    first = Tables(jnp.zeros((number, 2)), jnp.zeros((number, CHOICES)))

    def run(key: Key) -> Bool[Array, "episodes"]:
        return jax.lax.scan(episode, first, jax.random.split(key, EPISODES))[1]

    return 100 * jnp.mean(jax.vmap(run)(jax.random.split(key, runs)), axis=0)


class Sizes(NamedTuple):
    """Sizes of the measurement with networks."""

    points: int = 15
    """Number of measurements, evenly spaced."""
    states: int = 64
    """States of each seed."""
    horizon: int = 700
    """Steps of a return; rewards after them are neglected, at most 0.1."""


class Judged(NamedTuple):
    """Means over the states, of each seed [K]."""

    estimate: Float[Array, "K"]
    truth: Float[Array, "K"]


class Study:
    """DQN or double DQN, trained in parts and judged after each."""

    def __init__(self, double: bool, steps: int, seeds: int, sizes: Sizes, changes: dict[str, Any]) -> None:
        settings = {"agent.double": double, "n_step": 1, "batch_size": 32, "eval_every": 0, **changes}
        self.program = programs.build(programs.configure("dqn", TASK, None, settings, steps, seeds=seeds))
        task, self.config = self.program.task, self.program.config.settings
        self.agent = q_learning.make(self.config.agent, task.observation, number_of_actions(task, "dqn"))
        self.seeds, self.sizes = seeds, sizes

    def greedy_return(self, state: QState, observation: Observation, key: Key) -> Float[Array, ""]:
        """The discounted return of the greedy policy from `observation`."""
        task, policy = self.program.task, self.agent.policy(state, False)
        start_key, key = jax.random.split(key)
        carry = task.world.start(task.env.state_at(observation), start_key)  # type: ignore[attr-defined]

        def earned(acc: Return, transition: Any, i: Int[Array, ""]) -> Return:
            return planned_return(acc, transition._replace(reward=state.discount**i * transition.reward), i)

        return rollout(task.world, policy, (carry, ()), key, self.sizes.horizon, earned, Return.zero())[1].total

    def judge(self, state: Any, key: Key) -> Judged:
        """One seed: the mean estimate and the mean return."""
        row_key, return_key, value_key = jax.random.split(key, 3)
        own = state.experience.own
        newest = replay.with_size(own, jnp.minimum(own.size, RECENT))
        seen = replay.sample(newest, row_key, self.sizes.states).observation
        action, _, _ = self.agent.policy(state.agent, False).act((), seen, value_key)
        estimate = self.agent.action_value(state.agent, seen, action, value_key)
        keys = jax.random.split(return_key, self.sizes.states)
        truth = jax.vmap(self.greedy_return, (None, 0, 0))(state.agent, seen, keys)
        return Judged(jnp.mean(estimate), jnp.mean(truth))

    def run(self) -> dict[str, Any]:
        """Environment steps of each measurement, and the estimates and returns [points, seeds]."""
        part = self.program.total_steps // self.program.loop.steps_per_call // self.sizes.points
        run, judge = jax.jit(self.program.loop.run), jax.jit(jax.vmap(self.judge))
        clock, states = loop.clock_at(0), jax.jit(self.program.loop.init)(jnp.arange(self.seeds), {})
        steps, found = [], []
        for point in range(self.sizes.points):
            clock, states = run(clock, states, jnp.asarray(part, jnp.int32))
            keys = jax.random.split(jax.random.fold_in(jax.random.key(1), point), self.seeds)
            steps.append(int(clock.env_steps))
            found.append(jax.device_get(judge(states.algorithm, keys)))
        return {
            "steps": steps,
            "estimate": [judged.estimate.tolist() for judged in found],
            "truth": [judged.truth.tolist() for judged in found],
        }


def summary_of_tables(left: Sequence[float]) -> dict[str, float]:
    """Where the share of left is largest, what it is then, around episode 100, and in the last ten episodes."""
    share = np.asarray(left)
    return {
        "peak": float(share.max()),
        "peak_episode": int(share.argmax()) + 1,
        "around_100": float(share[95:105].mean()),
        "last_10": float(share[-10:].mean()),
    }


def overestimation(case: dict[str, Any]) -> Float[np.ndarray, "seeds"]:
    """Mean of estimate - return over the second half of the measurements, of each seed."""
    error = np.asarray(case["estimate"]) - np.asarray(case["truth"])
    return error[len(error) // 2 :].mean(axis=0)


def table(tables: dict[str, Any], networks: dict[str, Any]) -> str:
    """The results as text."""
    lines = [f"{'':<20}{'peak':>14}{'around 100':>13}{'last 10':>10}   (% left)"]
    for name, left in tables.items():
        told = summary_of_tables(left)
        peak = f"{told['peak']:.1f} at {told['peak_episode']}"
        lines.append(f"{name:<20}{peak:>14}{told['around_100']:>13.1f}{told['last_10']:>10.1f}")
    lines.append(f"{'':<20}{'estimate':>14}{'return':>13}{'estimate - return':>20}   (second half)")
    for name, case in networks.items():
        half = len(case["steps"]) // 2
        estimate, truth = (
            interquartile_mean(np.mean(case[what][half:], axis=0).tolist()) for what in ("estimate", "truth")
        )
        error = overestimation(case).tolist()
        low, high = bootstrap_interval(error)
        lines.append(f"{name:<20}{estimate:>14.1f}{truth:>13.1f}{interquartile_mean(error):>8.1f} [{low:.1f}, {high:.1f}]")
    return "\n".join(lines)


def draw(tables: dict[str, Any], networks: dict[str, Any], path: Path) -> None:
    """Write the picture: the share of left by episode, estimates and returns by environment step."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.6), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    for color, (name, share) in zip(COLORS.values(), tables.items(), strict=True):
        left.plot(np.arange(1, len(share) + 1), share, color=color, linewidth=2, label=name)
    left.axhline(100 * EPSILON / 2, color="0.4", linewidth=1.2, linestyle="--", label="optimal, with exploration")
    left.set(title="two states, tables", xlabel="episode", ylabel="left actions, %", ylim=(0, 100))
    for color, (name, case) in zip(COLORS.values(), networks.items(), strict=True):
        for what, style, label in (("estimate", "-", "max Q"), ("truth", "--", "return")):
            by_seed = np.asarray(case[what]).T
            middle = [interquartile_mean(x) for x in by_seed.T.tolist()]
            right.plot(case["steps"], middle, style, color=color, linewidth=2.2, label=f"{name}, {label}")
            if what == "estimate":
                right.plot(case["steps"], by_seed.T, color=color, linewidth=0.6, alpha=0.3)
    right.axhline(100, color="0.4", linewidth=1.2, linestyle=":", label="largest possible return")
    right.set(title=f"{TASK}, networks", xlabel="environment steps", ylabel="discounted return", ylim=(0, None))
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.92", linewidth=0.6)
        axes.set_axisbelow(True)
    figure.savefig(path)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print the table, and write the picture and the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="by default runs/overestimation, with --quick runs/overestimation-quick")
    parser.add_argument("--runs", type=int, default=4000, help="runs with tables")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=30_000)
    parser.add_argument("--quick", action="store_true", help="few runs, two seeds and tiny networks (smoke test)")
    args = parser.parse_args(arguments)
    args.out = args.out or Path("runs/overestimation-quick" if args.quick else "runs/overestimation")
    args.out.mkdir(parents=True, exist_ok=True)
    runs, steps, seeds, sizes, changes = args.runs, args.steps, args.seeds, Sizes(), {}
    if args.quick:
        runs, steps, seeds, sizes = 50, 1000, 2, Sizes(2, 4, 20)
        changes = {"agent.hidden": [8], "batch_size": 8, "warmup_steps": 100}
    tables, networks = {}, {}
    for double, (tabular, deep) in NAMES.items():
        tables[tabular] = share_left(double, runs, jax.random.key(0)).tolist()
        networks[deep] = Study(double, steps, seeds, sizes, changes).run()
        print(f"{tabular} and {deep} are done", flush=True)
    print(table(tables, networks))
    picture, numbers = args.out / "overestimation.png", args.out / "overestimation.json"
    draw(tables, networks, picture)
    command = f"python experiments/overestimation.py --runs {runs} --seeds {seeds} --steps {steps}"
    written = {
        "task": TASK,
        "runs": runs,
        "steps": steps,
        "seeds": seeds,
        "tables": {name: summary_of_tables(left) | {"left": left} for name, left in tables.items()},
        "networks": networks,
        "environment": environment(command),
    }
    numbers.write_text(json.dumps(written, indent=1) + "\n")
    print(f"picture  {picture}\nnumbers  {numbers}")
    return written


if __name__ == "__main__":
    main()
