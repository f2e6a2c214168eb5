"""Hints for names that a run does not know: settings in the place of fields of the run, and words of other libraries."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jaxmbrl.core.config import UserError, closest

CALLED: Mapping[str, tuple[str, ...]] = {
    "steps": ("total_timesteps", "num_timesteps", "total_steps", "num_steps", "max_steps", "env_steps", "timesteps"),
    "seeds": ("num_seeds", "n_seeds"),
    "seed": ("random_seed",),
    "log": ("tensorboard_log", "logger", "loggers", "use_wandb"),
    "out": ("output_dir", "out_dir", "log_dir", "logdir", "save_dir", "save_path", "run_dir", "folder"),
    "settings": ("config", "policy_kwargs", "hyperparameters", "kwargs"),
    "eval_episodes": ("n_eval_episodes", "num_eval_episodes"),
    "eval_every": ("eval_freq", "eval_interval"),
    "action_repeat": ("frame_skip",),
    "progress": ("verbose", "progress_bar"),
    "num_envs": ("n_envs", "num_environments"),
    "discount": ("gamma", "discounting", "discount_factor"),
    "learning_rate": ("lr",),
    "replay_capacity": ("buffer_size", "replay_size", "max_replay_size"),
    "warmup_steps": ("learning_starts", "start_steps", "min_replay_size"),
    "updates_per_step": ("gradient_steps", "utd", "utd_ratio", "replay_ratio", "grad_updates_per_step"),
    "polyak": ("tau",),
    "initial_temperature": ("ent_coef", "alpha"),
    "hidden": ("net_arch", "hidden_sizes", "hidden_layer_sizes"),
    "members": ("ensemble_size", "num_members"),
}
"""Name of a field of a run or of a setting -> what other libraries call it."""

NEEDLESS: Mapping[str, str] = {
    "policy": "each algorithm has its own policy; its layers are among the settings (hidden)",
    "device": "JAX chooses the device",
    "env_id": "the task is the second argument",
    "environment": "the task is the second argument",
    "task": "the task is the second argument",
    "algo": "the algorithm is the first argument",
}
"""Name that a run does not need -> why."""

SCHEDULES: Mapping[str, str] = {
    "annealing": "a cosine schedule of the learning rate over each fit",
    "rollout_length": "a linear schedule of its own",
}
"""Name of a setting that makes something change during a run -> what it is."""

ARGUMENTS = ("out", "hyper", "progress", "stopping")
"""Arguments of `jaxmbrl.train` that are not fields of a run."""

SHOWN = "progress=jaxmbrl.training.console.Progress(steps, seeds) shows a run"


def unknown_field(name: str, value: Any, fields: Iterable[str], settings: Mapping[str, Any]) -> UserError:
    """The error for a field `name` that a run does not have. It says what to give in its place: one of `fields`, of
    `ARGUMENTS`, or of the nested `settings` of the run."""
    fields = sorted({*fields, *ARGUMENTS})
    ours = _ours(name)
    if name in NEEDLESS:
        return UserError(f"unknown field '{name}': {NEEDLESS[name]}")
    if ours == "progress":
        return UserError(f"unknown field '{name}': {SHOWN}")
    if ours in fields:
        return UserError(f"unknown field '{name}': it is called '{ours}' here")
    paths = paths_of(ours, settings)
    if paths:
        others = f" (or {', '.join(repr(path) for path in paths[1:])})" if paths[1:] else ""
        return UserError(
            f"unknown field '{name}': it is one of the settings, settings={{'{paths[0]}': {value!r:.40}}}{others}"
        )
    return UserError(f"unknown field '{name}'; {closest(name, fields)}")


def unknown_setting(
    name: str, value: Any, known: Mapping[str, Any], fields: Iterable[str], call: str = "", prefix: str = ""
) -> UserError:
    """The error for a setting `name` that the nested `known` does not have at this level, called `prefix`. It says what to
    give in its place: a setting of a level below, the nearest setting, or one of the `fields` of a run, which are arguments
    of the function `call`, if the settings are those of `train` or `resume`."""
    arguments = {*fields, *ARGUMENTS} if call == "train" else {*fields} if call else set()
    unknown, ours = f"unknown field '{prefix}{name}'", _ours(name)
    paths = paths_of(ours, known)
    if paths:
        return UserError(f"{unknown}; did you mean {' or '.join(repr(prefix + path) for path in paths)}?")
    if ours in arguments:
        what = f"an argument of {call}" if ours == name else f"the argument '{ours}' of {call}"
        given = SHOWN if ours == "progress" else f"write {ours}={value!r:.40} beside settings"
        return UserError(f"{unknown}: it is {what}, not a setting: {given}")
    if name in NEEDLESS:
        return UserError(f"{unknown}: {NEEDLESS[name]}")
    return UserError(f"{unknown}; {closest(name, known)}")


def check_constant(settings: Mapping[str, Any]) -> None:
    """Raise UserError for a function among the nested `settings`, such as a schedule of optax. It names the settings that
    are schedules."""
    for path, value in _leaves(settings):
        if callable(value):
            kinds = [f"{found} is {what}" for name, what in SCHEDULES.items() for found in paths_of(name, settings)]
            raise UserError(
                f"{path} must be a constant, got a function: no setting takes one as its schedule"
                + (f" ({'; '.join(kinds)})" if kinds else "")
                + "; a method of your own can have a schedule in its optax chain (nn.optimizer)"
            )


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of all fields."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + str(name), value


def _ours(name: str) -> str:
    return next((ours for ours, theirs in CALLED.items() if name in theirs), name)


def paths_of(name: str, values: Mapping[str, Any]) -> list[str]:
    """Dotted paths of all fields called `name`, outer ones first."""
    found = [name] if name in values else []
    for key, value in values.items():
        if isinstance(value, Mapping):
            found += [f"{key}.{path}" for path in paths_of(name, value)]
    return found
