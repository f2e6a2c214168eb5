"""Value expansion with MVE and STEVE, with good and bad models: the effect of the horizon.

A policy is trained on the pendulum, and then fixed. New critics learn its value function from the data of the run, with
targets that look n steps ahead with a model. They are compared with returns in the true simulator. Only the targets differ:

    MVE     the target of the longest horizon, T_n (Feinberg et al., arXiv 1803.00101), without training on imagined states
    STEVE   the targets T_0 .. T_n of all horizons, weighted by the agreement of the ensemble members (Buckman et al., arXiv
            1807.01675)

Both use the mean of the target critics as the value of a state, so they are equal at n = 0. The models are

    fitted  the ensemble, fitted to the data of the run
    jumps   the same, but each step goes to a random state of the data with probability 0.1; members have independent errors
    biased  the same, but the speed of every next state is 0.5 rad/s too high; all members have the same error

The error is that of the mean of the critics on states and actions of the data: the root mean square difference to the
discounted soft return, divided by the standard deviation of these returns. A critic with an error of 1 is no better than
the mean return.

    python experiments/value_expansion.py [--out FOLDER] [--seeds 4] [--steps 3000] [--updates 3000] [--quick]

Writes `value-expansion.png` and `value-expansion.json`, with command, commit, versions and machine.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxmbrl.agents.actor_critic import sac
from jaxmbrl.agents.actor_critic.updates import updates
from jaxmbrl.algorithms import shared
from jaxmbrl.algorithms.value_expansion import mve, steve
from jaxmbrl.algorithms.value_expansion.steve import State
from jaxmbrl.core.types import Action, ActorCritic, Carry, DynamicsModel, Key, Metrics, PyTree, Task, Transition, World
from jaxmbrl.data import replay
from jaxmbrl.rollout import Return, planned_return, rollout
from jaxmbrl.training import loop, programs
from jaxmbrl.training.evaluation import bootstrap_interval, interquartile_mean
from jaxmbrl.training.run_folder import environment

TASK = "pendulum"
PARTS = 10
"""Parts of the training of policies, after each of which its steps are printed."""
HORIZONS = (1, 3, 5)
"""Horizons in addition to 0."""
QUICK = {"agent.sac.hidden": [8, 8], "ensemble.hidden": [8, 8], "ensemble.max_epochs": 2, "updates_per_step": 1}
COLORS = {"MVE": "#c1440e", "STEVE": "#0b3d91"}


class Sizes(NamedTuple):
    """Sizes of the measurements."""

    points: int = 12
    """Number of evaluations of the critics, evenly spaced."""
    pairs: int = 256
    """Number of states and actions on which they are evaluated."""
    repeats: int = 8
    """Number of returns that are averaged for each."""
    horizon: int = 500
    """Steps of a return; rewards after them are neglected."""


SMALL = Sizes(points=2, pairs=8, repeats=2, horizon=10)


class Fault(NamedTuple):
    """The fault of a model."""

    jumps: Float[Array, "*m"]
    """Probability that a step goes to another state of the data."""
    bias: Float[Array, "*m O"]
    """Added to every next observation."""


FAULTS = {"fitted": (0.0, (0.0, 0.0, 0.0)), "jumps": (0.1, (0.0, 0.0, 0.0)), "biased": (0.0, (0.0, 0.0, 0.5))}


class Judged(NamedTuple):
    """Results of one method, horizon, model and seed."""

    error: Float[Array, "*n points"]
    """Root mean square error in standard deviations of the returns."""
    offset: Float[Array, "*n points"]
    """Mean error in standard deviations of the returns."""
    weights: Float[Array, "*n T"]
    """STEVE's mean weight of each horizon over the last updates; empty for MVE."""


def faulty(model: DynamicsModel, fault: Fault, rows: PyTree, count: Any) -> DynamicsModel:
    """`model` with a faulty world. It jumps to states of the first `count` of `rows`."""

    def world(fitted: PyTree) -> World:
        right = model.world(fitted)

        def step(carry: Carry, action: Action, key: Key) -> tuple[Carry, Transition]:
            step_key, chance_key, where_key = jax.random.split(key, 3)
            following, row = right.step(carry, action, step_key)
            jumps = jax.random.uniform(chance_key, row.reward.shape) < fault.jumps
            elsewhere = rows[jax.random.randint(where_key, row.reward.shape, 0, count)]
            following = jnp.where(jumps[:, None], elsewhere, following + fault.bias)
            return following, row._replace(next_observation=following)

        return right._replace(step=step)

    return model._replace(world=world)


def soft_returns(
    task: Task, agent: ActorCritic, state: PyTree, rows: Transition, key: Key, horizon: int, repeats: int
) -> Float[Array, "N"]:
    """Mean discounted return in the true simulator, with entropy bonus, from the state and action of each row."""
    policy, discounts = agent.policy_with_entropy(state), state.discount ** jnp.arange(1, horizon + 1)

    def earned(acc: Return, transition: Transition, i: Any) -> Return:
        soft = discounts[i] * (transition.reward + transition.extras)
        return planned_return(acc, transition._replace(reward=soft), i)

    def one(observation: Float[Array, "O"], action: Float[Array, "A"], key: Key) -> Float[Array, ""]:
        first_key, start_key, key = jax.random.split(key, 3)
        angle = jnp.arctan2(observation[1], observation[0])
        origin = task.env.state_at(jnp.stack([angle, observation[2]]))  # type: ignore[attr-defined]
        carry, first = task.world.step(task.world.start(origin, start_key), action, first_key)
        later = rollout(task.world, policy, (carry, ()), key, horizon, earned, Return.zero())[1]
        return first.reward + later.total

    keys = jax.random.split(key, (repeats, rows.reward.shape[0]))
    by_row = jax.vmap(one, (0, 0, 0))
    return jnp.mean(jax.vmap(by_row, (None, None, 0))(rows.observation, rows.action, keys), axis=0)


class Study:
    """The trained seeds, and new critics that learn from their data."""

    def __init__(self, steps: int, seeds: int, updates: int, sizes: Sizes, changes: dict[str, Any]) -> None:
        # Without model steps, STEVE is SAC with the mean of its critics; its model is fitted but not used.
        settings = {"eval_every": 0, "horizon": 0, **changes}
        program = programs.build(programs.configure("steve", TASK, "small", settings, steps, seeds=seeds))
        self.task, self.config = program.task, program.config.settings
        self.model = shared.ensemble_for(self.config, self.task)
        agent = sac.make(self.config.agent.sac, *self.sizes_of_task())
        self.agent = agent._replace(target_value=lambda *args: jnp.mean(agent.target_values(*args), axis=0))
        self.q = sac.functions(self.config.agent.sac, self.sizes_of_task()[1]).q
        self.updates, self.sizes, self.seeds = updates, sizes, seeds
        calls = program.total_steps // program.loop.steps_per_call
        state, run = jax.jit(program.loop.init)(jnp.arange(seeds), {}), jax.jit(program.loop.run)
        clock = loop.clock_at(0)
        for share in np.diff(np.linspace(0, calls, PARTS + 1).astype(np.int32)):
            clock, state = run(clock, state, jnp.asarray(share))
            print(f"policies: {int(clock.env_steps):,} of {program.total_steps:,} steps", flush=True)
        self.count, self.trained = clock.env_steps, state.algorithm
        self.keys = jax.random.split(jax.random.key(0), seeds)
        self.pairs, self.truth = jax.jit(jax.vmap(self.judges))(self.trained, self.keys)

    def sizes_of_task(self) -> tuple[int, int]:
        """(length of an observation, length of an action)."""
        return self.task.observation.shape[0], self.task.action.shape[0]

    def judges(self, trained: State, key: Key) -> tuple[Transition, Float[Array, "N"]]:
        """(rows on which the critics are evaluated, their returns)."""
        row_key, return_key = jax.random.split(jax.random.fold_in(key, 1))
        rows, sizes = replay.sample(trained.replay, row_key, self.sizes.pairs), self.sizes
        return rows, soft_returns(self.task, self.agent, trained.agent, rows, return_key, sizes.horizon, sizes.repeats)

    def learner(self, name: str, horizon: int, model: DynamicsModel, fitted: PyTree) -> ActorCritic:
        """An agent with critics that learn from the method's targets. Its actor does not learn."""
        if name == "MVE":
            changed = mve.with_mve_target(self.agent, model.world(fitted), horizon, td_k=False)
        else:
            changed = steve.with_steve_target(self.agent, model, fitted, horizon, self.config.ensemble.members)
        return changed._replace(update=changed.update_critic)

    def learn(
        self, name: str, horizon: int, trained: State, pairs: Transition, truth: Float[Array, "N"], key: Key, fault: Fault
    ) -> Judged:
        """Train new critics of one seed and evaluate them at intervals."""
        points, spread = self.sizes.points, jnp.std(truth)
        model = faulty(self.model, fault, trained.replay.data.observation, self.count)
        agent = self.learner(name, horizon, model, trained.model)
        new_key, key = jax.random.split(jax.random.fold_in(key, 2))
        start = trained.agent._replace(critic=self.agent.init(new_key, {}).critic)

        def draw(key: Key) -> Transition:
            return replay.sample(trained.replay, key, self.config.batch_size)

        def trajectory(state: PyTree, key: Key) -> tuple[PyTree, tuple[Array, Array, Metrics]]:
            state, found = updates(agent, state, draw, key, self.updates // points)
            error = jnp.mean(self.q(state.critic.params, pairs.observation, pairs.action), axis=0) - truth
            return state, (jnp.sqrt(jnp.mean(error**2)) / spread, jnp.mean(error) / spread, found)

        _, (error, offset, found) = jax.lax.scan(trajectory, start, jax.random.split(key, points))
        weights = [x.total[-1] / x.weight[-1] for metric, x in found.items() if metric.startswith("steve/weight_")]
        return Judged(error, offset, jnp.array(weights))

    def case(self, name: str, horizon: int) -> Judged:
        """The results for all models and seeds: leaves [models, seeds, ...]."""

        def of_model(fault: Fault) -> Judged:
            of_seed = jax.vmap(lambda *of: self.learn(name, horizon, *of, fault))
            return of_seed(self.trained, self.pairs, self.truth, self.keys)

        faults = Fault(*(jnp.array(x) for x in zip(*FAULTS.values(), strict=True)))
        return jax.tree.map(np.asarray, jax.jit(lambda faults: jax.lax.map(of_model, faults))(faults))


def summary(study: Study) -> dict[str, dict[str, dict[str, Any]]]:
    """By model, method and horizon: error and offset [seeds, points] and weights [seeds, T]."""
    # Without model steps, both methods and all models are the same.
    single = study.case("STEVE", 0)
    found: dict[str, dict[str, dict[str, Any]]] = {model: {name: {} for name in COLORS} for model in FAULTS}
    for name in COLORS:
        for horizon in (0, *HORIZONS):
            case = study.case(name, horizon) if horizon else single
            for i, model in enumerate(FAULTS):
                found[model][name][str(horizon)] = {k: x[i].tolist() for k, x in case._asdict().items()}
            print(f"{name}, n = {horizon}: " + ", ".join(f"{x:.3f}" for x in case.error[..., -1].mean(axis=1)), flush=True)
    return found


def at_end(case: dict[str, Any]) -> tuple[float, tuple[float, float]]:
    """(interquartile mean over seeds of the last error, its interval)."""
    last = [errors[-1] for errors in case["error"]]
    return interquartile_mean(last), bootstrap_interval(last)


def table(found: dict[str, Any]) -> str:
    """The last errors as text, a line for each model and method."""
    horizons = [str(n) for n in (0, *HORIZONS)]
    lines = ["".join(f"{name:>20}" for name in ("", *(f"n = {n}" for n in horizons)))]
    for model, by_name in found.items():
        for name, by_horizon in by_name.items():
            line = f"  {model + ', ' + name:<18}"
            for n in horizons:
                middle, (low, high) = at_end(by_horizon[n])
                line += f"{middle:>6.3f} [{low:>5.3f}, {high:>5.3f}]".rjust(23)
            lines.append(line)
    return "\n".join(lines)


def draw(found: dict[str, Any], updates: int, path: Path) -> None:
    """Write the picture, with a column for each model: the last errors against the horizon, the errors against updates, and
    the weights."""
    from matplotlib.figure import Figure

    horizons, longest = (0, *HORIZONS), str(HORIZONS[-1])
    figure = Figure(figsize=(12, 10), dpi=120, layout="constrained")
    grid = figure.subplots(3, len(found), sharey="row")
    for (model, by_name), (ends, curves, trust) in zip(found.items(), grid.T, strict=True):
        for name, color in COLORS.items():
            middle, intervals = zip(*(at_end(by_name[name][str(n)]) for n in horizons), strict=True)
            ends.fill_between(horizons, *np.array(intervals).T, color=color, alpha=0.15, linewidth=0)
            ends.plot(horizons, middle, color=color, linewidth=2.2, marker="o", label=name)
        for name, n, color in (("n = 0", "0", "0.45"), *((name, longest, color) for name, color in COLORS.items())):
            errors = np.array(by_name["STEVE" if n == "0" else name][n]["error"])
            at = np.arange(1, errors.shape[1] + 1) * (updates // errors.shape[1])
            curves.plot(at, errors.T, color=color, linewidth=0.7, alpha=0.4)
            label = name if n == "0" else f"{name}, n = {n}"
            curves.plot(at, [interquartile_mean(x) for x in errors.T.tolist()], color=color, linewidth=2.2, label=label)
        trust.bar(range(HORIZONS[-1] + 1), np.mean(by_name["STEVE"][longest]["weights"], axis=0), color=COLORS["STEVE"])
        ends.set(title=f"model: {model}", xlabel="horizon n", xticks=horizons, yscale="log")
        curves.set(xlabel="updates of the critics", yscale="log")
        trust.set(xlabel="horizon i", ylim=(0, 1))
    for axes, label in zip(grid[:, 0], ("error at the end", "error", f"STEVE's weights, n = {longest}"), strict=True):
        axes.set_ylabel(label)
    for axes in grid[:2, 0]:
        axes.legend(frameon=False, fontsize=9)
    for axes in grid.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.92", linewidth=0.6)
        axes.set_axisbelow(True)
    figure.savefig(path)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Train the policy and the critics, print the table, and write the picture and the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="by default runs/value_expansion, with --quick runs/value_expansion-quick")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--updates", type=int, default=3000)
    parser.add_argument("--quick", action="store_true", help="tiny networks, two seeds and few updates (smoke test)")
    args = parser.parse_args(arguments)
    args.out = args.out or Path("runs/value_expansion-quick" if args.quick else "runs/value_expansion")
    args.out.mkdir(parents=True, exist_ok=True)
    full = (args.steps, args.seeds, args.updates, Sizes(), {})
    steps, seeds, updates, sizes, changes = (400, 2, 20, SMALL, QUICK) if args.quick else full
    study = Study(steps, seeds, updates, sizes, changes)
    found = summary(study)
    print(f"error at the end, in standard deviations of the returns: interquartile mean of {seeds} seeds [95% interval]")
    print(table(found))
    picture, numbers = args.out / "value-expansion.png", args.out / "value-expansion.json"
    draw(found, updates, picture)
    command = f"python experiments/value_expansion.py --seeds {seeds} --steps {steps} --updates {updates}"
    written = {
        "task": TASK,
        "steps": steps,
        "seeds": seeds,
        "updates": updates,
        "spread_of_the_returns": np.std(np.asarray(study.truth), axis=1).tolist(),
        "models": found,
        "environment": environment(command),
    }
    numbers.write_text(json.dumps(written, indent=1) + "\n")
    print(f"picture  {picture}\nnumbers  {numbers}")
    return written


if __name__ == "__main__":
    main()
