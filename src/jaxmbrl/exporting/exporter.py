"""Exporting the deterministic policy of a run to a file that is used without this package."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmbrl import algorithms
from jaxmbrl.core import hints, xla
from jaxmbrl.core.config import UserError, closest, converted
from jaxmbrl.core.places import expanded
from jaxmbrl.core.spaces import Discrete, Space
from jaxmbrl.core.types import Task
from jaxmbrl.data import dataset
from jaxmbrl.envs.observed import plain
from jaxmbrl.exporting import loaders, onnx_graph
from jaxmbrl.exporting.formats import FORMATS, RANDOM, translated_calls
from jaxmbrl.exporting.policies import Exportable, batched, deterministic
from jaxmbrl.exporting.program import Untranslated
from jaxmbrl.training import programs, runner
from jaxmbrl.training.loop import clock_at
from jaxmbrl.training.programs import RunConfig
from jaxmbrl.training.run_folder import RunFolder, versions, write_file
from jaxmbrl.training.runner import Trained
from jaxmbrl.training.session import Result

TOLERANCE = 1e-3
"""Largest difference of actions that rounding may cause."""


class PolicyFile(NamedTuple):
    """An exported policy."""

    path: Path
    size: int
    """Bytes."""
    about: dict[str, Any]
    """The metadata in the file: task, algorithm, seed, steps, versions, observation, action, memory, and notes."""
    loader: str
    """A Python program that loads the file and defines `act`. It does not need this package."""
    difference: float | None
    """Largest difference to the policy's own actions, on random observations; None if it was not measured."""


@hints.checked_arguments
def export(
    run: str | Path | Result, to: str, out: str | Path | None = None, seed: int | None = None, batch: int | None = None
) -> PolicyFile:
    """Write the deterministic policy of the run in folder `run`, or of a result in memory, to a file that is used without
    this package.

    `to` is the format: `stablehlo` (any policy, also planners; loaded with JAX), `onnx` (loaded with ONNX Runtime) or
    `numpy` (loaded with NumPy). `out` names a new file; the default is `policy` in the run's folder, with the suffix of the
    format, which is overwritten. A result without a folder needs `out`. `seed` is one of the run's seeds, by default the
    first.

    The file takes one observation in the task's units and returns the action that `evaluate` passes to the task, except for
    rounding. A policy with a memory, such as a planner, also takes and returns the memory; the file has the initial one.
    With a `batch` of N it takes N observations [N, ...] at once and returns N actions, each with a memory of its own.

    Raises UserError for an unknown format, a batch below 1, a seed that is frozen or not in the run, a file that cannot be
    written, a policy that the format cannot represent, and if the package `onnx` is missing.
    """
    xla.prepare()
    if to not in FORMATS:
        raise UserError(f"unknown format '{to}' of an exported policy; {closest(str(to), FORMATS)}")
    if batch is not None and (isinstance(batch, bool) or not isinstance(batch, int) or batch < 1):
        raise UserError(f"batch must be a whole number of at least 1, got {batch!r}")
    if to == "onnx":
        onnx_graph.import_onnx()
    given: Any = run
    config = run.config if isinstance(run, Result) else programs.read(RunFolder.open(run))
    if isinstance(run, Result):
        if out is None and run.path is None:
            raise UserError("a result in memory has no folder to write into: give out, the name of a new file")
        run = run.path or "memory"
    k = _index(run, config, seed)
    path = _place(run, out, FORMATS[to].suffix)
    made, states, env_steps, frozen = runner.trained(given)
    _check_healthy(run, config, k, list(frozen))
    if made.algorithm.observes_full_state:
        raise UserError(
            f"the run in {run} plans in the true simulator: its policy takes the simulator's state, not an observation; "
            "export a run that learned its model"
        )
    own = jax.tree.map(lambda leaf: leaf[k], states)
    policy = deterministic(made.algorithm, made.task, own, clock_at(env_steps))
    policy = policy if batch is None else batched(policy, batch)
    about = describe(config, made.task, policy, config.seed + k, env_steps)
    try:
        written = FORMATS[to].write(policy, about, made.task.observation)
    except Untranslated as used:
        what = f"{used}{_why_random(config) if str(used) == RANDOM else ''}"
        raise UserError(
            f"the policy of {run} uses {what}, which cannot be exported to {to}: export it with --to stablehlo"
        ) from None
    if written.difference is not None and not written.difference <= TOLERANCE:
        raise UserError(
            f"actions of the policy of {run}, exported to {to}, differ by {written.difference:.2g} from its own: export it "
            "with --to stablehlo"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, written.content)
    text = loaders.loader(FORMATS[to].loader, path, written.about)
    return PolicyFile(path, len(written.content), written.about, text, written.difference)


def format_of(found: Trained) -> str | None:
    """The format to propose for the policy of the first seed: `numpy`, else `stablehlo` if NumPy cannot express it; None if
    no format takes it, because it plans in the true simulator."""
    if found.program.algorithm.observes_full_state:
        return None
    own = jax.tree.map(lambda leaf: leaf[0], found.states)
    policy = deterministic(found.program.algorithm, found.program.task, own, clock_at(found.env_steps))
    try:
        translated_calls(policy, onnx=False)
    except Untranslated:
        return "stablehlo"
    return "numpy"


def _why_random(config: RunConfig) -> str:
    """What a deterministic policy uses random numbers for, by its family."""
    family = algorithms.get(config.algorithm).family
    why = {"shooting": " for its plans", "search": " for its search", "tabular": " to choose among equally good actions"}
    return why.get(family, "")


def describe(config: RunConfig, task: Task, policy: Exportable, seed: int, env_steps: int) -> dict[str, Any]:
    """The metadata of a policy, as plain values."""
    memory = [
        {"name": name, "shape": list(value.shape), "dtype": value.dtype.name, "initial": value.tolist()}
        for name, value in policy.memory.items()
    ]
    return {
        "task": config.env,
        "algorithm": config.algorithm,
        "preset": config.preset,
        "seed": seed,
        "env_steps": env_steps,
        "action_repeat": task.action_repeat,
        "batch": policy.batch,
        "observation": _space(task.observation, policy.observation),
        "action": _space(task.action, policy.action) | actuator_range(task),
        "memory": memory,
        "random": policy.random,
        "notes": notes(task, policy),
        "versions": versions(),
    }


def actuator_range(task: Task) -> dict[str, Any]:
    """The range of the task's actuators in their units, onto which it maps actions from [-1, 1]: `actuator_low` and
    `actuator_high`, [A]. They are the environment's `actuator_range`, (low, high), each a number or [A]; empty without."""
    found = getattr(plain(task.env), "actuator_range", None)
    if found is None or isinstance(task.action, Discrete):
        return {}
    low, high = (np.broadcast_to(np.asarray(bound, float), task.action.shape).tolist() for bound in found)
    return {"actuator_low": low, "actuator_high": high}


def notes(task: Task, policy: Exportable) -> list[str]:
    """What the caller of an exported policy has to know, in sentences."""
    found = ["The observation is the task's own, in its units: normalisation and features are computed inside."]
    if policy.batch is not None:
        what = "observation, action and memory" if policy.memory else "observation and action"
        found.append(f"The first axis of {what} is a batch of {policy.batch}, whose entries do not depend on each other.")
    if task.host is not None:
        if isinstance(task.observation, Discrete):
            found.append("Observations are numbered from 0, whatever the start of the environment's space.")
        elif task.observation.is_vector:
            found.append("The observation is the environment's, flattened in the order of numpy.ravel.")
        else:
            found.append("The image is the environment's; one without channels, [H, W], has the shape [H, W, 1].")
    if isinstance(task.action, Discrete):
        start = "" if task.host is None else ", to which the environment adds the start of its space"
        found.append(f"The action is a choice from 0 to {task.action.n - 1}{start}.")
    elif actuator_range(task):
        found.append("The actuators' value is low + (high - low) (action + 1) / 2, with actuator_low and actuator_high.")
    elif (task.action.low, task.action.high) == (-1.0, 1.0):
        found.append("The action is in [-1, 1]; map it onto the range of the actuators as the task does.")
    if task.action_repeat > 1:
        found.append(f"Each action is applied {task.action_repeat} times: call the policy once in that many control steps.")
    if policy.memory:
        found.append("Begin each episode with the initial memory, and pass the returned memory to the next step.")
    if policy.random:
        found.append("Random numbers come from 'key' in the memory: another key of two numbers gives other ones.")
    return found


def _space(space: Space, like: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"shape": list(like.shape), "dtype": np.dtype(like.dtype).name}
    if isinstance(space, Discrete):
        return found | {"choices": space.n}
    bounds = {"low": space.low, "high": space.high}
    return found | {name: bound if math.isfinite(bound) else None for name, bound in bounds.items()}


def _index(run: str | Path, config: RunConfig, seed: int | None) -> int:
    """Index of the seed in the run. Raises UserError if it is not one of the run's."""
    if seed is None:
        return 0
    seed = int(converted(int, seed, "seed"))
    if not config.seed <= seed < config.seed + config.seeds:
        last = config.seed + config.seeds - 1
        raise UserError(f"the run in {run} has seeds {config.seed} to {last}, not {seed}")
    return seed - config.seed


def _check_healthy(run: str | Path, config: RunConfig, k: int, frozen: list[int]) -> None:
    """Raise UserError if the seed with index `k` is frozen."""
    if config.seed + k in frozen:
        healthy = [seed for seed in range(config.seed, config.seed + config.seeds) if seed not in frozen]
        advice = f"export another with --seed {healthy[0]}" if healthy else "train again"
        raise UserError(f"seed {config.seed + k} of {run} was frozen when a value was not finite; {advice}")


def _place(run: str | Path, out: str | Path | None, suffix: str) -> Path:
    """The file to write. Raises UserError if that is not possible."""
    if out is not None:
        return dataset.new_file("out", out, suffix)
    path = expanded(run) / f"policy{suffix}"
    try:
        dataset.try_writing(path.parent)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); name another file with --out") from None
    return path
