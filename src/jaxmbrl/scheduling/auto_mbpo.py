"""AutoMBPO: a controller that schedules the hyperparameters of MBPO (Lai et al., On effective scheduling of model-based
reinforcement learning, arXiv 2111.08550, algorithm 1).

    Objective: the return of MBPO's policy, summed over the epochs of a run, of which each run is one episode:

    for each stage:
        `runs` times: train MBPO from the start; every tau = `refit_every` steps the controller sees
            s = progress, holdout error of the model, loss of the critics, shift of the policy, last return, settings
        and decides: whether the model is fitted now; the real ratio, times 1.2^-1, 1 or 1.2; updates per step -1, 0 or +1;
            at the start of an epoch, the rollout length -1, 0 or +1
        reward: -0.05 if the model is fitted, else +0.05; at the end of an epoch also (return - return of MBPO) / 300
        improve the controller on the decisions of the stage (`scheduling.controller`)
    keep the controller of the stage with the best mean return

All seeds of a run share its decisions, as they share the clock: the state is the mean over the seeds, and so is the return.
With a decision for each seed, every branch of the program would be a selection, and the models of all seeds would be fitted
at every step. This is also why AutoMBPO is no method of the training loop, in which the result of a seed does not depend on
other seeds. It calls MBPO's training program, sets the schedule of its clock between two calls (`Clock.schedule`), and
begins anew for each run. The program is compiled once.

The result is a table of hyperparameters over environment steps, which any run of MBPO can follow (`algorithms.schedules`):
the most probable decisions of the best controller, in a run of its own. A run that is longer than those of the search keeps
the last values after the end of the table, and fits its model every tau steps there.

With a folder, every run is saved when it ends, and the rest is computed from these files. An interrupted search continues
with the run in which it was, and gives the same result.

Differs from the paper's code: the shift of the policy is the mean distance between its actions now and at the start of the
last epoch, at states of the last five epochs, and not that of the densities of the stored actions; one controller makes all
decisions; the model is fitted at the end of the warm-up, whatever the first decision is. The loss of the critics is the
mean over the batches since the start of the epoch.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge, Gt, MinLen
from jaxtyping import Array, Float

from jaxmbrl.algorithms import schedules
from jaxmbrl.algorithms.dyna import mbpo
from jaxmbrl.algorithms.schedules import Schedule, ScheduleConfig
from jaxmbrl.core.config import UserError, check, from_dict, to_dict
from jaxmbrl.core.places import expanded
from jaxmbrl.core.types import Average, PyTree
from jaxmbrl.scheduling.controller import Controller, ControllerConfig, Decisions
from jaxmbrl.training import evaluation, programs
from jaxmbrl.training.loop import LoopState
from jaxmbrl.training.programs import Program

Head = Literal["refit_every", "real_ratio", "updates_per_step", "rollout_length"]
"""What a head decides on, by the name of the column of the schedule."""
CHOICES: Mapping[str, int] = {"refit_every": 2, "real_ratio": 3, "updates_per_step": 3, "rollout_length": 3}
"""Number of choices of each head. The first of `refit_every` is to fit the model; the others lower, keep or raise."""
POLICY_ROWS = 256
"""States at which the shift of the policy is measured."""
SHIFT_EPOCHS = 5
"""Newest epochs from which these states are."""


@dataclass(frozen=True)
class Scales:
    """What the entries of the controller's state are divided by, before they are clipped to [-1, 1]."""

    model_error: Annotated[float, Gt(0)] = 0.01
    critic_loss: Annotated[float, Gt(0)] = 100.0
    policy_shift: Annotated[float, Gt(0)] = 2.0
    """The largest distance of two actions in one dimension."""
    episode_return: Annotated[float, Gt(0)] = 3000.0


@dataclass(frozen=True)
class SearchConfig:
    """Settings of a search for a schedule."""

    decides: Annotated[tuple[Head, ...], MinLen(1)] = ("refit_every", "real_ratio")
    """What the controller decides on. The paper's controllers of Gym tasks decide on fits and the real ratio."""
    stages: Annotated[int, Ge(1)] = 10
    """Stages, each of which ends with an update of the controller."""
    runs: Annotated[int, Ge(1)] = 10
    """Runs of MBPO in each stage."""
    seeds: Annotated[int, Ge(1)] = 1
    """Seeds of each run, which share its decisions."""
    baseline_runs: Annotated[int, Ge(1)] = 2
    """Runs of MBPO with its own settings, before the first stage, with whose returns others are compared."""
    eval_episodes: Annotated[int, Ge(1)] = 10
    """Episodes of the evaluation of each seed at the end of an epoch."""
    ratio_factor: Annotated[float, Gt(1)] = 1.2
    """Factor by which a decision changes the real ratio, which is at most 1."""
    most_updates: Annotated[int, Ge(1)] = 20
    """Largest number of updates per step."""
    longest: Annotated[int, Ge(1)] = 5
    """Largest rollout length, if it is decided on."""
    fit_price: Annotated[float, Ge(0)] = 0.1
    """Difference of the rewards of a decision without and with a fit."""
    return_scale: Annotated[float, Gt(0)] = 300.0
    """What the difference between the returns is divided by."""
    scales: Scales = field(default_factory=Scales)
    """Scales of the controller's state."""
    controller: ControllerConfig = field(default_factory=ControllerConfig)
    """The controller."""

    def problem(self) -> tuple[str, str] | None:
        """(field, message) of the first violated rule that involves several fields, or None."""
        if len(set(self.decides)) < len(self.decides):
            return "decides", f"must name each hyperparameter once, got {' '.join(self.decides)}"
        return None


class Values(NamedTuple):
    """The present hyperparameters of a run."""

    real_ratio: float
    updates_per_step: int
    rollout_length: int
    fits: bool
    """Whether the model is fitted now."""


class Run(NamedTuple):
    """One run of MBPO under a controller."""

    decisions: Decisions
    """[T]."""
    table: Float[np.ndarray, "T 4"]
    """The hyperparameters after each decision, in the order of `schedules.COLUMNS`; 0 for an interval means no fit."""
    returns: Float[np.ndarray, "E"]
    """Mean return over the seeds at the end of each epoch."""


class Stage(NamedTuple):
    """The runs of a stage."""

    decisions: Decisions
    """[R, T]."""
    tables: Float[np.ndarray, "R T 4"]
    returns: Float[np.ndarray, "R E"]


class Found(NamedTuple):
    """The result of a search."""

    schedule: ScheduleConfig
    """The table of the best controller's most probable decisions."""
    stages: list[Stage]
    baseline: Float[np.ndarray, "E"]
    """Mean returns of MBPO with its own settings, at the end of each epoch."""
    best: int
    """The stage with the best mean return."""
    deployed: Run
    """The run of the best controller's most probable decisions."""


def changed(config: SearchConfig, now: Values, choice: Mapping[str, int], starts_epoch: bool) -> Values:
    """The hyperparameters after a decision, by the head's names."""
    by = {name: choice[name] - 1 if name in choice else 0 for name in CHOICES}
    ratio = min(1.0, now.real_ratio * config.ratio_factor ** by["real_ratio"])
    updates, length = now.updates_per_step, now.rollout_length
    if "updates_per_step" in choice:
        updates = min(max(updates + by["updates_per_step"], 1), config.most_updates)
    if "rollout_length" in choice and starts_epoch:
        length = min(max(length + by["rollout_length"], 1), config.longest)
    return Values(ratio, updates, length, choice.get("refit_every", 0) == 0)


class Search:
    """A search for a schedule of `mbpo` on one task."""

    def __init__(self, program: Program, config: SearchConfig, seed: int = 0) -> None:
        settings = program.config.settings
        self.config, self.seed, self.settings = config, seed, settings
        self.program = program
        self.tau, self.warmup = settings.refit_every, settings.warmup_steps
        self.epoch_decisions = settings.epoch_steps // self.tau
        self.epochs = (program.total_steps - self.warmup) // settings.epoch_steps
        self.length = self.epochs * self.epoch_decisions
        """T: decisions of a run."""
        self.controller = Controller(config.controller, tuple(CHOICES[name] for name in config.decides), self.state_size)
        self.baseline = np.zeros(self.epochs)
        algorithm, task = program.algorithm, program.task
        self._run = jax.jit(program.loop.run, donate_argnums=1)
        self._init = jax.jit(program.loop.init)
        self._decide = jax.jit(self.controller.decide, static_argnames="greedy")
        self._update = jax.jit(self.controller.update)
        self._evaluate = jax.jit(
            lambda clock, states: evaluation.evaluate(algorithm, task, states, config.eval_episodes, clock)
        )
        self._actions = jax.jit(jax.vmap(self._greedy_actions))

    @property
    def state_size(self) -> int:
        """Entries of the controller's state: five measures, and the settings that it changes."""
        return 5 + len([name for name in self.config.decides if name != "refit_every"])

    def first_values(self) -> Values:
        """The hyperparameters of the settings."""
        config = self.settings
        return Values(config.real_ratio, config.updates_per_step, int(config.rollout_length.at(0)), True)

    def play(self, decide: Callable[[Float[np.ndarray, "S"], int], tuple[Any, Any]], seed: int) -> Run:
        """One run of MBPO from `seed` on. `decide(state, number)` returns the choices of a decision and their
        log-probabilities, each [H]."""
        steps_per_call = self.program.loop.steps_per_call
        seeds = jnp.arange(self.config.seeds) + seed
        clock, states = self.program.clock_at(0), self._init(seeds, {})
        now = self.first_values()
        seen = _Seen(0.0, 0.0, 0.0)
        rows: list[tuple[Any, ...]] = []
        table: list[list[float]] = []
        returns: list[float] = []
        rewards = np.zeros(self.length)
        # Branches are imagined in the call that reaches a multiple of tau after the warm-up: decide before it.
        clock, states = self._run(clock, states, jnp.asarray(self.warmup // steps_per_call - 1, jnp.int32))
        last_return, older = float(np.mean(self._evaluate(clock, states.algorithm))), None
        for t in range(self.length):
            starts_epoch = t % self.epoch_decisions == 0
            seen = seen.updated(states)
            if starts_epoch:
                shown = self._recent_states(states)
                shift = 0.0 if older is None else self._distance(older, states, shown)
                seen = seen._replace(policy_shift=shift)
                older = jax.tree.map(jnp.copy, states.algorithm.agent)
            state = self.state_of(t / self.length, seen, last_return, now)
            choice, log_probability = (np.asarray(x) for x in decide(state, t))
            by_name = {str(name): int(x) for name, x in zip(self.config.decides, choice, strict=True)}
            now = changed(self.config, now, by_name, starts_epoch)
            if "refit_every" in by_name:
                rewards[t] += self.config.fit_price * (by_name["refit_every"] - 0.5)
            weight = [float(self.has_effect(name, t)) for name in self.config.decides]
            rows.append((state, choice, log_probability, weight))
            table.append([now.real_ratio, self.tau if now.fits else 0, now.updates_per_step, now.rollout_length])
            clock = clock._replace(schedule=self.schedule_of(now))
            clock, states = self._run(clock, states, jnp.asarray(self.tau // steps_per_call, jnp.int32))
            if (t + 1) % self.epoch_decisions == 0:
                last_return = float(np.mean(self._evaluate(clock, states.algorithm)))
                rewards[t] += (last_return - self.baseline[len(returns)]) / self.config.return_scale
                returns.append(last_return)
        columns, kinds = [*zip(*rows, strict=True), rewards], (np.float32, np.int32, np.float32, np.float32, np.float32)
        made = Decisions(*(jnp.asarray(np.array(x, kind)) for x, kind in zip(columns, kinds, strict=True)))
        return Run(made, np.array(table, float), np.array(returns))

    def has_effect(self, name: str, t: int) -> bool:
        """Whether decision `t` of the head `name` changes anything."""
        return {"refit_every": t > 0, "rollout_length": t % self.epoch_decisions == 0}.get(name, True)

    def state_of(self, progress: float, seen: _Seen, last_return: float, now: Values) -> Float[np.ndarray, "S"]:
        """The controller's state."""
        scales, config = self.config.scales, self.config
        entries = [
            progress,
            seen.model_error / scales.model_error,
            seen.critic_loss / scales.critic_loss,
            seen.policy_shift / scales.policy_shift,
            last_return / scales.episode_return,
        ]
        settings = {
            "real_ratio": now.real_ratio,
            "updates_per_step": now.updates_per_step / config.most_updates,
            "rollout_length": now.rollout_length / config.longest,
        }
        entries += [settings[name] for name in config.decides if name in settings]
        return np.clip(np.array(entries, np.float32), -1, 1)

    def schedule_of(self, now: Values) -> Schedule:
        """The present hyperparameters as a table of one row, for the clock."""
        table = ScheduleConfig(
            (0,), "previous", (now.real_ratio,), (self.tau if now.fits else 0,), *((x,) for x in now[1:3])
        )
        made = schedules.arrays(table, self.tau)
        assert isinstance(made, Schedule)
        return made

    def _greedy_actions(self, agent: PyTree, states: PyTree, observation: Float[Array, "N O"]) -> Float[Array, "N A"]:
        """The deterministic actions of a seed whose agent is replaced by `agent`."""
        policy = self.program.algorithm.policy(states._replace(agent=agent), self.program.clock_at(0), False)
        return policy.act((), observation, jax.random.key(0))[0]

    def _recent_states(self, states: LoopState) -> Float[Array, "K N O"]:
        """Real states of the last epochs, evenly spaced, for each seed."""
        buffer = states.algorithm.replay
        size = int(buffer.size[0])
        newest = min(size, SHIFT_EPOCHS * self.settings.epoch_steps)
        age = np.linspace(size - newest, size - 1, POLICY_ROWS).astype(int)
        slots = (int(buffer.position[0]) - size + age) % buffer.data.reward.shape[1]
        return jnp.asarray(buffer.data.observation[:, slots])

    def _distance(self, older: PyTree, states: LoopState, shown: Float[Array, "K N O"]) -> float:
        now, then = (self._actions(agent, states.algorithm, shown) for agent in (states.algorithm.agent, older))
        return float(jnp.mean(jnp.abs(now - then)))

    def search(self, out: str | Path | None = None, say: Callable[[str], None] = lambda text: None) -> Found:
        """Search all stages. Finished runs are read from the folder `out` if there is one, and written to it."""
        folder = None if out is None else _folder(out, self.description())
        key = jax.random.key(self.seed)
        own_runs = range(self.config.baseline_runs)
        of_mbpo = [self._kept(folder, f"baseline-{i:02}", self._constant, self._seed_of(i)) for i in own_runs]
        self.baseline = np.mean([run.returns for run in of_mbpo], axis=0)
        say(f"MBPO: mean return {self.baseline.mean():.1f}, at the end {self.baseline[-1]:.1f}")
        trainable = self.controller.init(jax.random.fold_in(key, 0))
        stages: list[Stage] = []
        best, best_params = 0, trainable.params
        for number in range(self.config.stages):
            own = jax.random.fold_in(key, number + 1)
            runs = []
            for i in range(self.config.runs):
                decide = self.deciding(trainable.params, jax.random.fold_in(own, i), greedy=False)
                seed = self._seed_of(self.config.baseline_runs + 1 + number * self.config.runs + i)
                runs.append(self._kept(folder, f"stage-{number:03}-run-{i:02}", decide, seed))
            stage = Stage(*jax.tree.map(lambda *x: np.stack(x), *runs))
            stages.append(stage)
            if stage.returns.mean() > stages[best].returns.mean() or number == 0:
                best, best_params = number, trainable.params
            say(
                f"stage {number}: mean return {stage.returns.mean():.1f}, at the end {stage.returns[:, -1].mean():.1f}, "
                f"real ratio at the end {np.exp(np.log(stage.tables[:, -1, 0]).mean()):.3f}, "
                f"fits {(stage.tables[..., 1] > 0).mean():.2f}"
            )
            trainable = self._update(trainable, stage.decisions, jax.random.fold_in(own, self.config.runs))
        decide = self.deciding(best_params, key, greedy=True)
        deployed = self._kept(folder, f"best-of-stage-{best:03}", decide, self._seed_of(self.config.baseline_runs))
        schedule = self.table_of(deployed)
        if folder is not None:
            schedules.save(schedule, folder / "schedule.json")
            _write(folder / "controller.npz", dict(_named(best_params)))
        return Found(schedule, stages, self.baseline, best, deployed)

    def deciding(self, params: PyTree, key: Any, greedy: bool) -> Callable[[Any, int], tuple[Any, Any]]:
        """The decisions of a controller for `play`."""
        return lambda state, t: self._decide(params, state, jax.random.fold_in(key, t), greedy=greedy)

    def _constant(self, state: Any, t: int) -> tuple[Any, Any]:
        """The decision that changes nothing and fits the model: MBPO's own."""
        choice = [0 if name == "refit_every" else 1 for name in self.config.decides]
        return choice, np.zeros(len(choice))

    def _seed_of(self, run: int) -> int:
        """The first seed of a run: first those of the baseline, then that of the best controller, then all others."""
        return self.seed + run * self.config.seeds

    def table_of(self, run: Run) -> ScheduleConfig:
        """The hyperparameters of a run that the controller decides on, as a table for other runs of MBPO. A longer run has
        the last values, but fits the model as MBPO does: a decision not to fit is about one time only."""
        decided = [name for name in schedules.COLUMNS if name in self.config.decides]
        table = run.table
        if "refit_every" in decided and table[-1, schedules.COLUMNS.index("refit_every")] == 0:
            table = np.concatenate([table, table[-1:]])
            table[-1, schedules.COLUMNS.index("refit_every")] = self.tau
        columns = {name: table[:, schedules.COLUMNS.index(name)].tolist() for name in decided}
        return from_dict(ScheduleConfig, {"steps": [t * self.tau for t in range(len(table))], **columns})

    def description(self) -> dict[str, Any]:
        """What determines the results, as plain values."""
        return {"run": to_dict(self.program.config), "search": to_dict(self.config), "seed": self.seed}

    def _kept(self, folder: Path | None, name: str, decide: Callable[..., Any], seed: int) -> Run:
        """A run from its file, or played and written to it."""
        file = None if folder is None else folder / f"{name}.npz"
        if file is not None and file.exists():
            with np.load(file) as arrays:
                made = Decisions(*(arrays[entry] for entry in Decisions._fields))
                return Run(made, arrays["table"], arrays["returns"])
        run = self.play(decide, seed)
        if file is not None:
            _write(file, {**run.decisions._asdict(), "table": run.table, "returns": run.returns})
        return run


class _Seen(NamedTuple):
    """The newest known measures of a run, means over its seeds."""

    model_error: float
    critic_loss: float
    policy_shift: float

    def updated(self, states: LoopState) -> _Seen:
        """With the metrics of the epoch so far, where there are any."""

        def newest(name: str, before: float) -> float:
            found = states.metrics.get(name, Average.empty())
            total, weight = np.asarray(found.total, float), np.asarray(found.weight, float)
            return float(np.mean(total / weight)) if np.all(weight > 0) else before

        return self._replace(
            model_error=newest("model/holdout_error", self.model_error),
            critic_loss=newest("agent/critic_loss", self.critic_loss),
        )


def make(env: str, config: SearchConfig | None = None, seed: int = 0, **run: Any) -> Search:
    """A search for a schedule of `mbpo` on the task `env`. `run` are `preset`, `settings` and `steps` as those of
    `jaxmbrl.train`; the settings are also the values that the controller begins with.

    Raises UserError for settings that are unknown or that do not fit a search.
    """
    config = check(config or SearchConfig())
    base = programs.configure("mbpo", env, **run)
    settings = base.settings
    assert isinstance(settings, mbpo.Config)
    if settings.schedule.columns():
        raise UserError("schedule must be empty: a search finds it")
    if settings.epoch_steps % settings.refit_every:
        raise UserError(
            f"epoch_steps must be a multiple of refit_every ({settings.refit_every}), got {settings.epoch_steps}"
        )
    if settings.rollout_length.first != settings.rollout_length.last:
        raise UserError("rollout_length.last must be rollout_length.first: a search changes the length itself")
    if base.total_steps < settings.warmup_steps + settings.epoch_steps:
        raise UserError(f"steps must be at least warmup_steps and an epoch, got {base.total_steps}")
    longest = config.longest if "rollout_length" in config.decides else settings.rollout_length.first
    # The table gives the imagined buffer its size; the clock's is used in its place.
    table = ScheduleConfig(
        (0,), "previous", (settings.real_ratio,), (settings.refit_every,), (settings.updates_per_step,), (longest,)
    )
    chosen = check(dataclasses.replace(settings, schedule=table))
    made = dataclasses.replace(base, settings=chosen, seeds=config.seeds, seed=seed)
    return Search(programs.build(made), config, seed)


def _folder(out: str | Path, description: dict[str, Any]) -> Path:
    """The folder of a search. Raises UserError if it has one with other settings."""
    folder = expanded(out)
    folder.mkdir(parents=True, exist_ok=True)
    file, text = folder / "search.json", json.dumps(description, indent=1) + "\n"
    if not file.exists():
        file.write_text(text, encoding="utf-8")
        return folder
    saved = json.loads(file.read_text(encoding="utf-8"))
    # Settings that this version has added have their defaults.
    run, search = programs.parse(saved["run"]), from_dict(SearchConfig, saved["search"])
    saved |= {"run": to_dict(run), "search": to_dict(search)}
    then, now = (programs.leaves(json.loads(x)) for x in (json.dumps(saved), text))
    for name in now:
        # More stages continue a search.
        if name != "search.stages" and then.get(name) != now[name]:
            raise UserError(
                f"{folder} has a search with another {name} ({then.get(name)!r}, not {now[name]!r}): name another"
            )
    return folder


def _named(params: PyTree) -> list[tuple[str, np.ndarray]]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return [(jax.tree_util.keystr(path, simple=True, separator="."), np.asarray(leaf)) for path, leaf in leaves]


def _write(file: Path, arrays: dict[str, Any]) -> None:
    """Write an npz file that is never incomplete."""
    partial = file.with_name(f".partial-{file.name}")
    with partial.open("wb") as handle:
        np.savez(handle, **arrays)
        handle.flush()
        os.fsync(handle.fileno())
    partial.rename(file)
