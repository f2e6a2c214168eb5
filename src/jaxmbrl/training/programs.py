"""Programs: the parts of a run, built from its settings and checked before anything is compiled."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge, Lt
from jaxtyping import Array

from jaxmbrl import algorithms, envs
from jaxmbrl.agents.distillation import Expert
from jaxmbrl.core import calling, hints, surroundings, xla
from jaxmbrl.core.config import UserError, check, closest, from_dict, to_dict
from jaxmbrl.core.places import expanded
from jaxmbrl.core.spaces import Box
from jaxmbrl.core.types import Algorithm, Clock, Hyper, Key, Task, Transition, row_like
from jaxmbrl.data import dataset, experience
from jaxmbrl.data.dataset import Dataset
from jaxmbrl.envs.observed import shows
from jaxmbrl.envs.shapes import check_shapes
from jaxmbrl.training import bridged, devices, known_functions, logs, loop, memory, probing
from jaxmbrl.training.devices import OF_SEEDS, SeedSharding
from jaxmbrl.training.hosts import newest_step
from jaxmbrl.training.loop import Loop, LoopState
from jaxmbrl.training.run_folder import CONFIG, RunFolder

WHOLE = 2**31
"""Integers of a compiled program are below this."""


@runtime_checkable
class ChoosesModel(Protocol):
    """Config of a method that can use the true simulator instead of the learned model."""

    def uses_true_model(self) -> bool:
        """Whether the model is the true simulator."""

    def with_model(self, model: str) -> Any:
        """The same settings with the model "learned" or "true". The caller checks the result (`config.check`)."""


@runtime_checkable
class ChainsRows(Protocol):
    """Config of a method that may learn from rows that follow one another, such as windows or returns of several steps."""

    def chains_rows(self) -> bool:
        """Whether it does. If rows of a file then do not continue one another, although no end of an episode is marked,
        they are truncated."""


@dataclass(frozen=True)
class CheckpointConfig:
    """Which checkpoints are written and kept."""

    every: Annotated[int, Ge(1)] | None = None
    """Epochs between two checkpoints; None for as many as keep their cost below 5% of the time."""
    keep: Annotated[int, Ge(1)] = 3
    """Number of newest checkpoints that are kept. The one with the best evaluation is kept as well."""
    model_buffer: bool = True
    """Save imagined transitions too. Without them checkpoints are smaller, but a resume may not be exact."""
    grace: Annotated[float, Ge(0)] = 10.0
    """Minutes for which training continues while the run's folder cannot be written to."""


@dataclass(frozen=True)
class RunConfig:
    """The full configuration of a run."""

    algorithm: str
    env: str
    preset: str
    """Name of the preset that `settings` started from."""
    settings: Any
    """The algorithm's config."""
    steps: Annotated[int, Ge(1)]
    """Environment steps of each seed, rounded up to whole epochs."""
    seeds: Annotated[int, Ge(1)] = 1
    """Number of random seeds, trained in parallel in one program."""
    seed: Annotated[int, Ge(0), Lt(2**31)] = 0
    """The first random seed; the others follow it."""
    eval_episodes: Annotated[int, Ge(1)] = 10
    """Episodes of each evaluation."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Which checkpoints are written and kept."""
    action_repeat: Annotated[int, Ge(1)] = 1
    """Number of times that each action is applied. Steps and episodes count the agent's actions (`envs.repeat`)."""
    data: str | None = None
    """File of transitions to learn from instead of collecting (`data.dataset`): in the order of its rows or, for an offline
    method, all at once."""
    data_digest: str | None = None
    """SHA-256 of that file."""
    demonstrations: str | None = None
    """File of transitions of the same task (`data.dataset`) that the method samples besides those that it collects."""
    demonstrations_digest: str | None = None
    """SHA-256 of that file."""
    demonstrations_rows: Annotated[int, Ge(0)] = 0
    """Number of its rows."""
    expert: str | None = None
    """Folder of a run whose policy the method imitates. Seed s imitates seed number s of that run, counted from 0, modulo
    their number."""
    expert_steps: Annotated[int, Ge(0)] = 0
    """Environment steps for which that policy was trained."""
    expert_seeds: Annotated[int, Ge(1)] = 1
    """Number of seeds of that run."""
    log: tuple[logs.Name, ...] = ()
    """Loggers that also receive the metrics: `tensorboard`, `wandb`."""
    stop_at_return: float | None = None
    """Return at which training ends: the mean over seeds of the newest evaluation, or of training episodes without
    evaluations."""

    @property
    def total_steps(self) -> int:
        """The steps rounded to whole epochs: up, or down with `data`."""
        epoch = self.settings.epoch_steps
        return (self.steps // epoch if self.data else -(-self.steps // epoch)) * epoch

    @property
    def evaluates(self) -> bool:
        """Whether the run has evaluations."""
        every = self.settings.eval_every
        return 0 < every * self.settings.epoch_steps <= self.total_steps

    def problem(self) -> tuple[str, str] | None:
        """(field, message) of the first violated rule that involves several fields, or None."""
        if self.seed + self.seeds > WHOLE:
            return "seeds", f"must be at most {WHOLE - self.seed} from seed {self.seed} on, got {self.seeds}"
        if len(set(self.log)) < len(self.log):
            return "log", f"must name each logger once, got {' '.join(self.log)}"
        if self.expert is not None and self.data is not None:
            return "expert", "must be left out with data, whose actions are the labels"
        return None


def learns_offline(config: RunConfig) -> bool:
    """Whether a run learns from all rows of a file at once (`algorithms.Method.offline`)."""
    return config.data is not None and algorithms.get(config.algorithm).offline is not None


def unlearned(config: RunConfig, env_steps: int, over: bool = False) -> str | None:
    """What to tell the user if no update, or only one, is made in the first `env_steps` steps of a run, because its warm-up
    is not shorter; None otherwise, for a planner in the true simulator, which needs no update, and for an offline method,
    which has no warm-up. `over` tells it of a run that has ended."""
    settings = config.settings
    if learns_offline(config):
        return None
    warmup = getattr(settings, "warmup_steps", 0)
    planner = isinstance(settings, ChoosesModel) and settings.uses_true_model()
    if not isinstance(warmup, int) or env_steps > warmup or warmup < 1 or planner:
        return None
    much = "at its last step only" if env_steps == warmup else "nothing"
    learns = f"the run has learned {much}: it took" if over else f"the run learns {much}: it takes"
    unit, advice = ("rows of the data", "") if config.data else ("steps", " or raise steps")
    return f"{learns} {env_steps:,} {unit}, and updates begin after warmup_steps ({warmup:,}): lower warmup_steps{advice}"


def check_taught(config: RunConfig) -> None:
    """Raise UserError for a method that only imitates if there is nothing to imitate: neither an expert nor data."""
    method = algorithms.get(config.algorithm)
    if config.expert is not None or config.data is not None:
        return
    if method.imitates is not None:
        raise UserError(
            f"{config.algorithm} has no policy to imitate: name a run, 'jaxmbrl distill RUN', or a file of transitions, "
            "--data FILE"
        )
    if method.needs_data:
        raise UserError(
            f"{config.algorithm} has no actions to imitate: name a file of transitions, --data FILE; "
            f"'jaxmbrl collect --env {config.env} --policy RUN --out FILE' writes those of a run's policy"
        )


class Program(NamedTuple):
    """A run's parts, built from its config and checked."""

    config: RunConfig
    task: Task
    algorithm: Algorithm
    loop: Loop

    @property
    def epoch_steps(self) -> int:
        """Environment steps of an epoch."""
        return self.config.settings.epoch_steps

    @property
    def total_steps(self) -> int:
        """Environment steps of the run, in whole epochs."""
        return self.config.total_steps

    def clock_at(self, env_steps: int) -> Clock:
        """The clock of the run after `env_steps` steps of each seed's environments."""
        return loop.clock_at(env_steps)._replace(schedule=self.algorithm.schedule)

    def compile(self, what: str, function: Any, *arguments: Any) -> Any:
        """A `Compile` with the compiler options of this run's algorithm."""
        return function.lower(*arguments).compile(compiler_options=dict(self.algorithm.compiler_options))


def configure(
    algorithm: str,
    env: str | Task,
    preset: str | None = None,
    settings: Any = None,
    steps: int | None = None,
    data: str | Path | None = None,
    call: str = "train",
    demonstrations: str | Path | None = None,
    expert: str | Path | None = None,
    **fields: Any,
) -> RunConfig:
    """A checked `RunConfig`. `settings` is the algorithm's config, or a mapping from dotted field names to values that
    replace the preset's. With a file of `data` the default of steps is the number of its rows, unless the method learns
    from all of them at once. A `Task` need not be known by its name. `call` is `sweep` for a run of a sweep's file, for the
    hints in errors. Raises UserError for names that are unknown and values that are out of range."""
    if isinstance(fields.get("log"), str):
        fields["log"] = [fields["log"]]
    method = algorithms.get(algorithm)
    if isinstance(env, Task):
        env = env.name
    else:
        envs.check_name(env)
    if isinstance(fields.get("seeds"), list | tuple):
        raise UserError(hints.several_seeds(fields["seeds"], "seed={}, seeds={}"))
    name, config = algorithms.preset(algorithm, env, preset)
    if isinstance(settings, Mapping):
        values = _replaced(to_dict(config), settings, "settings." if call == "sweep" else "", call)
        hints.check_constant(values)
        config = from_dict(method.config, values)
    elif isinstance(settings, method.config):
        config = settings
    elif settings is not None:
        raise UserError(
            f"settings must be the config of {algorithm} or a mapping such as {{'epoch_steps': 500}}, got {settings!r:.60}"
        )
    for field_name, value in fields.items():
        if field_name not in FIELDS:
            raise hints.unknown_field(field_name, value, FIELDS, to_dict(config))
    if data is not None:
        loaded = dataset.load(data)
        steps = len(loaded.rows.reward) if steps is None and method.offline is None else steps
        fields |= {"data": str(expanded(data).resolve()), "data_digest": loaded.digest}
    if demonstrations is not None:
        loaded = dataset.load(demonstrations)
        fields |= {
            "demonstrations": str(expanded(demonstrations).resolve()),
            "demonstrations_digest": loaded.digest,
            "demonstrations_rows": len(loaded.rows.reward),
        }
    if expert is not None:
        fields |= _of_expert(expert, env)
    steps = method.presets[name].steps if steps is None else steps
    given = dict(algorithm=algorithm, env=env, preset=name, steps=steps, settings=check(config), **fields)
    return from_dict(RunConfig, given)


def _of_expert(run: str | Path, env: str) -> dict[str, Any]:
    """The fields of a run on the task `env` that its expert, the run in folder `run`, determines. Raises UserError if that
    is of another task, apart from its observation, or has no checkpoint."""
    folder = RunFolder.open(run)
    of = read(folder)
    if not shows(env, of.env):
        raise UserError(f"the expert in {folder.path} is of {of.env}, not of {env}")
    steps, _ = newest_step(folder, None)
    if steps < 0:
        raise UserError(f"the expert in {folder.path} has no checkpoint yet: resume that run")
    return {"expert": str(folder.path.resolve()), "expert_steps": steps, "expert_seeds": of.seeds}


FIELDS = tuple(known.name for known in dataclasses.fields(RunConfig))
"""Names of the fields of a run."""

MAY_CHANGE = (
    "steps",
    "eval_episodes",
    "checkpoint",
    "data",
    "demonstrations",
    "expert",
    "log",
    "stop_at_return",
    "settings.eval_every",
)
"""Fields of a run that may change when it is resumed: learning does not depend on them."""


def changed(config: RunConfig, settings: Mapping[str, Any], fields: Mapping[str, Any]) -> RunConfig:
    """`config` with changed `settings` and `fields`, named as in `configure`. Raises UserError for names that are unknown
    and values that are out of range."""
    for name, value in fields.items():
        if name not in FIELDS:
            raise hints.unknown_on_resume(name, value, FIELDS, to_dict(config.settings), MAY_CHANGE)
    # A run may be resumed from any folder.
    places = {name: fields[name] for name in ("data", "demonstrations", "expert") if fields.get(name) is not None}
    values = _replaced(to_dict(config), {**fields, **{name: str(expanded(of).resolve()) for name, of in places.items()}})
    changes = _replaced(values["settings"], settings, call="resume")
    return parse(values | {"settings": changes})


def drift(started: Mapping[str, Any], asked: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(field, then, now) for the fields that differ between two configs (from `to_dict`) but must not."""
    found = []
    then, now = leaves(started), leaves(asked)
    for name in [*then, *(name for name in now if name not in then)]:
        free = any(name == field or name.startswith(f"{field}.") for field in MAY_CHANGE)
        if not free and then.get(name) != now.get(name):
            found.append((name.removeprefix("settings."), then.get(name), now.get(name)))
    return found


def leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Fields by dotted path."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        nested = isinstance(value, Mapping) and value
        found |= leaves(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return found


def parse(values: Any) -> RunConfig:
    """The `RunConfig` with the values of a config.yaml. Raises UserError, naming the field, if one is wrong."""
    config = from_dict(RunConfig, values)
    method = algorithms.get(config.algorithm)
    envs.check_name(config.env)
    of_method = {known.name for known in dataclasses.fields(method.config)}
    for name in config.settings if isinstance(config.settings, Mapping) else ():
        if name in FIELDS and name not in of_method:
            raise UserError(f"unknown field 'settings.{name}': it is a field of the run: move it out of settings")
    return dataclasses.replace(config, settings=from_dict(method.config, config.settings, "settings."))


def read(folder: RunFolder) -> RunConfig:
    """The config of the run in `folder`. Raises UserError, naming file and field, if one is wrong. If another program has
    registered the run's task or algorithm, it names that program."""
    values = folder.read_config()
    try:
        return parse(values)
    except UserError as error:
        what, known = _unknown(values), folder.read_environment()
        if values.get("algorithm") not in algorithms.METHODS:
            # The program that registers the method may not know the task either.
            known.pop("registration", None)
        advice = calling.elsewhere(known)
        if what is None or advice is None:
            raise UserError(f"{folder.path / CONFIG}: {error}") from None
        raise UserError(f"{folder.path} is a run of {what}, which is not registered in this program: {advice}") from None


def _unknown(values: Mapping[str, Any]) -> str | None:
    """The algorithm or the task of a config.yaml that is not known, in words; None if both are."""
    algorithm, env = values.get("algorithm"), values.get("env")
    if isinstance(algorithm, str) and algorithm not in algorithms.METHODS:
        return f"the algorithm '{algorithm}'"
    try:
        envs.check_name(str(env))
    except UserError:
        return f"the task '{env}'"
    return None


def build(config: RunConfig, learns: bool = True, task: Task | None = None, expert: Expert | None = None) -> Program:
    """The parts of a run. Raises UserError if they are not compatible with each other or with the machine.

    With `learns` false, for a run that is only evaluated, the files of data, the expert and the packages of loggers are not
    needed. `task` is used instead of the task with the name `config.env`. `expert` is that of a run that learns and has one
    (`training.experts.build`).
    """
    surroundings.check()
    method, settings = algorithms.get(config.algorithm), config.settings
    check_whole(to_dict(config))
    task = checked_task(config.env if task is None else task, config.action_repeat)
    algorithm = None
    if config.expert is not None and learns:
        algorithm = _imitation(config, task, expert)
    elif not learns_offline(config):
        algorithm = method.make(settings, task)
    if algorithm is not None and config.data is not None and algorithm.on_policy:
        raise UserError(f"{config.algorithm} learns from transitions of its own policy: it cannot be trained from data")
    data = None
    if config.data is not None:
        data = _data(config, task) if learns else jax.tree.map(lambda leaf: leaf[None], row_like(task))
    if algorithm is None:
        assert data is not None and method.offline is not None
        algorithm = method.offline(settings, task, data)
    if config.demonstrations is not None:
        algorithm = _with_demonstrations(algorithm, _demonstrations(config, task, learns))
    algorithm = _traced_once(algorithm)
    if learns:
        logs.check(config.log)
        if config.stop_at_return is not None and config.data is not None and not config.evaluates:
            raise UserError("stop_at_return needs evaluations when learning from data: set eval_every, or leave it out")
    steps_per_call = algorithm.period * settings.num_envs
    if settings.epoch_steps % steps_per_call:
        raise UserError(
            f"epoch_steps must be a multiple of {steps_per_call}, the environment steps between two calls of learn, "
            f"got {settings.epoch_steps}"
        )
    if task.host is None or data is not None:
        made = loop.make(algorithm, task, settings, data)
    else:
        made = bridged.make(algorithm, task, settings)
    program = Program(config, task, algorithm, made)
    if program.total_steps >= WHOLE:
        raise UserError(f"steps must be below {WHOLE} in whole epochs, got {config.steps}")
    state = initial_shapes(program)
    probing.check(algorithm, state)
    memory.check(state, "the state of the run", "lower seeds, replay_capacity or the networks' sizes")
    return program


def checked_task(task: str | Task, action_repeat: int) -> Task:
    """The task, or the one of that name, with each action applied `action_repeat` times. Its shapes and dtypes are checked
    (`envs.shapes`). Its world keeps the traces of that check, and the programs that are compiled afterwards use them.

    Raises UserError if there is no such task, or a check fails.
    """
    made = envs.make(task) if isinstance(task, str) else task
    if made.host is None:
        reset, step = (jax.jit(function, inline=True) for function in (made.world.reset, made.world.step))
        made = made._replace(world=made.world._replace(reset=reset, step=step))
    check_shapes(made)
    return envs.repeat(made, action_repeat)


def _imitation(config: RunConfig, task: Task, expert: Expert | None) -> Algorithm:
    """The algorithm that imitates an expert. Raises UserError if the method imitates none."""
    method = algorithms.get(config.algorithm)
    if method.imitates is None:
        raise UserError(f"{config.algorithm} imitates no expert: leave expert out, or train distillation")
    assert expert is not None, "experts.build restores the expert of a run"
    return method.imitates(config.settings, task, expert)


def _traced_once(algorithm: Algorithm) -> Algorithm:
    """The algorithm with functions that keep their traces. Building a program traces them for the shapes of the state and
    the names of the metrics; the programs that are compiled afterwards use the same traces."""
    return algorithm._replace(
        init=jax.jit(algorithm.init, inline=True),
        learn=jax.jit(algorithm.learn, inline=True),
    )


def _with_demonstrations(algorithm: Algorithm, rows: Transition) -> Algorithm:
    """The algorithm with the demonstrations `rows` in its first state."""

    def init(key: Key, hyper: Hyper, data: Transition | None = None) -> Any:
        return algorithm.init(key, hyper, rows)

    return algorithm._replace(init=init)


def _demonstrations(config: RunConfig, task: Task, learns: bool) -> Transition:
    """The demonstrations of a run; for one that does not learn, as many rows of zeros, whose place a checkpoint fills."""
    if not learns:
        return jax.tree.map(lambda leaf: jnp.zeros((config.demonstrations_rows, *leaf.shape), leaf.dtype), row_like(task))
    assert config.demonstrations is not None
    data = _loaded(config.demonstrations, config.demonstrations_digest, task)
    problem = known_functions.of_another_task(task, data.rows)
    if problem is not None:
        raise UserError(f"{config.demonstrations}: {problem}; record demonstrations of this task in its units")
    return _on_device(data.rows)


def _on_device(rows: Transition) -> Transition:
    """The rows of a file as arrays of JAX, floats in the type of all others."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, float if leaf.dtype.kind == "f" else None), rows)


def _loaded(path: str, digest: str | None, task: Task) -> Dataset:
    """The content of a file of a run. Raises UserError if it does not fit the task, or if the file has changed."""
    data = dataset.load(path)
    if digest not in (None, data.digest):
        raise UserError(f"{path} is not the file that the run started with; restore that file")
    if data.env not in (None, task.name):
        raise UserError(f"{path} holds transitions of {data.env}, not of {task.name}")
    dataset.check_fits(data, task)
    data.warn()
    return data


def _data(config: RunConfig, task: Task) -> Transition:
    """The rows from which a run learns. Raises UserError if they do not fit the run, or if the file has changed."""
    assert config.data is not None
    data = _loaded(config.data, config.data_digest, task)
    rows, settings = len(data.rows.reward), config.settings
    if settings.num_envs != 1:
        raise UserError(f"num_envs must be 1 with data, got {settings.num_envs}")
    in_turn = not learns_offline(config)
    if in_turn and settings.epoch_steps > rows:
        warmup = getattr(settings, "warmup_steps", 0)
        also = f" and warmup_steps, which is {warmup}, to {rows // 2}, or nothing is learned" if warmup >= rows else ""
        few = f"epoch_steps must be at most the data's {rows} rows, got {settings.epoch_steps}"
        raise UserError(f"{few}: set epoch_steps to {rows}{also}")
    if in_turn and not settings.epoch_steps <= config.steps <= rows:
        raise UserError(
            f"steps must be between an epoch ({settings.epoch_steps}) and the data's {rows} rows, got {config.steps}"
        )
    if config.steps < settings.epoch_steps:
        raise UserError(f"steps must be at least an epoch ({settings.epoch_steps}), got {config.steps}")
    if isinstance(settings, ChoosesModel) and settings.uses_true_model():
        raise UserError("model must be 'learned' with data: with the true simulator there is nothing to learn")
    # Images are stored without their successors, which are taken from the next row.
    of_images = isinstance(task.observation, Box) and task.observation.is_image
    chained = of_images or (isinstance(settings, ChainsRows) and settings.chains_rows())
    return _on_device(experience.with_seams(data.rows) if chained else data.rows)


def initial(program: Program, hyper: dict[str, Array], sharding: SeedSharding | None = None) -> LoopState:
    """The initial state of all seeds, distributed by `sharding` (by default on one device); `hyper` is from `hyper_of`."""
    init, arguments = _initializing(program, hyper, sharding)
    return jax.jit(init, compiler_options=dict(xla.for_one_call()))(*arguments)


def initial_shapes(program: Program) -> LoopState:
    """Shapes and dtypes of the initial state of all seeds."""
    init, arguments = _initializing(program, hyper_of({}, program.config), None)
    return jax.eval_shape(init, *arguments)


def _initializing(
    program: Program, hyper: dict[str, Array], sharding: SeedSharding | None
) -> tuple[Callable[..., LoopState], tuple[Any, Any]]:
    """The function that makes the initial state of all seeds, and its arguments."""
    config = program.config
    if config.expert is not None:
        hyper = hyper | {"expert_seed": (config.seed + jnp.arange(config.seeds)) % config.expert_seeds}
    sharding = sharding or devices.single_device(config.seeds)
    init = sharding.over(program.loop.init, OF_SEEDS, OF_SEEDS, result=OF_SEEDS)
    return init, (devices.rows_of(sharding, config.seed), sharding.place(hyper))


def check_whole(values: Any, name: str = "") -> None:
    """Raise UserError for an integer that is too large for a compiled program."""
    if isinstance(values, dict):
        for key, value in values.items():
            check_whole(value, f"{name}.{key}".removeprefix(".").removeprefix("settings."))
    elif isinstance(values, list):
        for i, value in enumerate(values):
            check_whole(value, f"{name}[{i}]")
    elif isinstance(values, int) and abs(values) >= WHOLE:
        raise UserError(f"{name} must be below {WHOLE}, got {values}")


def hyper_of(given: Mapping[str, Any], config: RunConfig) -> dict[str, Array]:
    """Arrays [seeds] of the traced hyperparameters. Raises UserError if one is unknown or out of range."""
    method, values = algorithms.get(config.algorithm), to_dict(config.settings)
    found = {}
    for name, value in given.items():
        if name not in method.hyper:
            near = closest(hints.ours_of(str(name).rsplit(".", 1)[-1], method.hyper), method.hyper)
            raise UserError(f"unknown hyper '{name}' of {config.algorithm}; {near}")
        try:
            found[name] = np.broadcast_to(np.asarray(value, float), (config.seeds,))
        except (TypeError, ValueError):
            raise UserError(
                f"hyper '{name}' must be a number or one per seed ({config.seeds}), got {value!r:.60}"
            ) from None
        for number in found[name]:
            from_dict(method.config, _replaced(copy.deepcopy(values), {_path(values, name): float(number)}))
    return {name: jnp.asarray(array, float) for name, array in found.items()}


def settings_by_seed(config: RunConfig, hyper: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """For each seed, all settings by dotted path, those of the algorithm without `settings.`. `hyper` are values of traced
    hyperparameters, one for each seed, which replace those of the config."""
    found: dict[int, dict[str, Any]] = {}
    for k in range(config.seeds):
        values = to_dict(config)
        paths = {f"settings.{_path(values['settings'], name)}": numbers[k] for name, numbers in hyper.items()}
        flat = leaves(_replaced(values, {**paths, "seed": config.seed + k}))
        found[config.seed + k] = {name.removeprefix("settings."): value for name, value in flat.items()}
    return found


def _path(values: Mapping[str, Any], name: str) -> str:
    """Dotted path of the first field called `name`."""
    if name in values:
        return name
    inner = ((key, _path(value, name)) for key, value in values.items() if isinstance(value, Mapping))
    return next((f"{key}.{path}" for key, path in inner if path), "")


def _replaced(values: dict[str, Any], changes: Mapping[Any, Any], prefix: str = "", call: str = "") -> dict[str, Any]:
    """`values` with dotted fields replaced. `call` is the function that has the changes as its argument `settings`; for an
    argument of that function among them the error says so."""
    for path, value in changes.items():
        at, *rest = str(path).split(".", 1)
        if at not in values:
            raise hints.unknown_setting(at, value, values, FIELDS, call, prefix)
        if rest and not isinstance(values[at], dict):
            raise UserError(f"unknown field '{prefix}{path}': {prefix}{at} has no fields")
        nested = {rest[0]: value} if rest else value
        merges = isinstance(nested, Mapping) and isinstance(values[at], dict)
        values[at] = _replaced(values[at], nested, f"{prefix}{at}.", call) if merges else value
    return values
