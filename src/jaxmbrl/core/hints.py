"""Hints for names that a run does not know: settings in the place of fields of the run, and words of other libraries.

`CALLED` is the only table of such words. `jaxmbrl.train`, `envs.make_task` and `envs.from_gymnasium`, the file of a sweep
and the options of a command share it.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

from jaxmbrl.core.config import UserError, closest

P = ParamSpec("P")
R = TypeVar("R")

CALLED: Mapping[str, tuple[str, ...]] = {
    "algorithm": ("algo", "method"),
    "env": ("task", "env_id", "env_name", "environment", "gym_id"),
    "steps": ("total_timesteps", "num_timesteps", "total_steps", "num_steps", "max_steps", "env_steps", "timesteps"),
    "seeds": ("num_seeds", "n_seeds"),
    "seed": ("random_seed",),
    "log": ("tensorboard_log", "logger", "loggers", "use_wandb", "track"),
    "out": (
        *("output_dir", "out_dir", "log_dir", "logdir", "save_dir", "save_path", "run_dir", "folder", "root_dir"),
        *("run_name", "exp_name", "path", "file", "filename"),
    ),
    "run": ("folder", "run_dir", "model_path", "path", "checkpoint_path"),
    "settings": ("config", "policy_kwargs", "hyperparameters", "kwargs"),
    "episodes": ("n_eval_episodes", "num_eval_episodes", "eval_episodes", "n_episodes", "num_episodes"),
    "eval_episodes": ("n_eval_episodes", "num_eval_episodes", "num_eval_envs"),
    "eval_every": ("eval_freq", "eval_interval", "num_evals"),
    "epoch_steps": ("epoch_length", "log_every", "log_interval"),
    "action_repeat": ("frame_skip",),
    "progress": ("verbose", "progress_bar"),
    "video": ("capture_video", "render", "record_video"),
    "to": ("format", "export_format"),
    "stop_at_return": ("reward_threshold",),
    "num_envs": ("n_envs", "num_environments"),
    "discount": ("gamma", "discounting", "discount_factor", "sac_gamma"),
    "learning_rate": ("lr", "actor_lr", "critic_lr", "policy_lr", "q_lr", "sac_lr", "model_lr", "step_size"),
    "batch_size": ("minibatch_size", "model_batch_size"),
    "replay_capacity": ("buffer_size", "replay_size", "max_replay_size"),
    "n_step": ("multi_step", "nstep", "n_step_return", "n_steps"),
    "kind": ("prioritized_replay", "use_per", "per"),
    "alpha": ("per_alpha", "prioritized_replay_alpha", "priority_exponent"),
    "beta": ("per_beta", "prioritized_replay_beta0", "importance_sampling_exponent"),
    "beta_steps": ("prioritized_replay_beta_iters",),
    "demonstrations": ("expert_data", "demo_file", "demo_path", "demos", "offline_data"),
    "demonstration_share": ("demo_ratio", "offline_ratio", "expert_ratio"),
    "epsilon_first": ("exploration_initial_eps", "epsilon_start", "eps_start", "start_e"),
    "agent.epsilon": ("exploration_final_eps", "epsilon_end", "epsilon_final", "eps_end", "end_e"),
    "epsilon_steps": ("exploration_fraction", "epsilon_decay", "epsilon_decay_steps", "eps_decay"),
    "copy_every": ("target_update_interval", "target_update_freq", "target_update_period", "target_network_frequency"),
    "train_every": ("train_freq", "train_frequency", "update_freq"),
    "collect_steps": ("n_steps", "unroll_length", "rollout_steps"),
    "gae_lambda": ("lam", "lambda", "lambda_"),
    "clip": ("clip_range", "clip_coef", "clip_eps", "clip_param", "clip_ratio", "clipping_epsilon"),
    "epochs": ("n_epochs", "num_epochs", "update_epochs", "num_updates_per_batch"),
    "minibatches": ("num_minibatches", "n_minibatches", "nminibatches"),
    "entropy_weight": ("ent_coef", "entropy_coef", "entropy_cost"),
    "value_weight": ("vf_coef", "value_coef", "vf_loss_coef"),
    "max_gradient_norm": ("max_grad_norm",),
    "normalize_advantages": ("normalize_advantage", "norm_adv"),
    "target_divergence": ("target_kl",),
    "first_log_std": ("log_std_init",),
    "warmup_steps": ("learning_starts", "start_steps", "min_replay_size", "initial_exploration_steps"),
    "updates_per_step": (
        *("gradient_steps", "utd", "utd_ratio", "replay_ratio", "grad_updates_per_step", "train_ratio", "train_freq"),
        "num_sac_updates_per_step",
    ),
    "actor_delay": ("policy_delay", "policy_frequency"),
    "polyak": ("tau", "sac_tau"),
    "initial_temperature": ("ent_coef", "alpha", "sac_alpha"),
    "target_entropy": ("sac_target_entropy",),
    "exploration_noise": ("action_noise",),
    "target_noise": ("target_policy_noise",),
    "hidden": ("net_arch", "hidden_sizes", "hidden_layer_sizes", "hidden_size", "sac_hidden_size", "hid_size"),
    "critics": ("n_critics",),
    "members": ("ensemble_size", "num_members"),
    "elites": ("num_elites",),
    "refit_every": ("freq_train_model",),
    "rollout_rows": ("effective_model_rollouts_per_step",),
    "real_ratio": ("real_data_ratio",),
    "retain_steps": ("num_epochs_to_retain_sac_buffer",),
    "horizon": ("planning_horizon", "imag_length"),
    "population": ("cem_population_size",),
    "iterations": ("cem_num_iters",),
    "particles": ("num_particles",),
    "episode_length": ("max_episode_steps", "episode_steps", "max_episode_length", "time_limit", "trial_length"),
    "reward": ("reward_fn", "reward_function"),
    "terminated": ("term_fn", "termination_fn", "done_fn", "terminal_fn", "done"),
    "observation": ("observation_space", "obs_space"),
    "action": ("action_space", "act_space"),
    "features": ("obs_process_fn",),
    "make_env": ("env_fn", "make_env_fn", "entry_point"),
    "name": ("id", "env_id", "env_name"),
}
"""Name of an argument, of a field of a run or of a setting, which may have that of its part before it (`agent.epsilon`) ->
what other libraries call it."""

CONTROL_SUITE = "dmc/"
"""First letters of the names of DeepMind Control's tasks, `dmc/domain-task`."""

CONTROL_SHORT: Mapping[str, str] = {"ballincup": "ballincupcatch", "cupcatch": "ballincupcatch"}
"""Letters of shorter names of DeepMind Control's tasks in other libraries -> those of the whole name."""

CONTROL_ABSENT: Mapping[str, str] = {
    **dict.fromkeys(("dog", "fish", "swimmer"), "MJX has no contacts of ellipsoids and boxes, which its model has"),
    **dict.fromkeys(("humanoid_CMU", "lqr", "manipulator", "quadruped", "stacker"), "it has not been added"),
}
"""Domain of DeepMind Control that is not here -> why."""

NEEDLESS: Mapping[str, str] = {
    "policy": "each algorithm has its own policy; its layers are among the settings (hidden)",
    "device": "JAX chooses the device",
    "cuda": "JAX chooses the device",
    "deterministic": "an evaluation always uses the deterministic policy",
    "episode_length": "the length of an episode is an argument of envs.make_task and envs.from_gymnasium",
    "reward": "the step of an environment returns the reward; the argument reward of envs.make_task is its known function",
    "terminated": "the step of an environment returns it; the argument terminated of envs.make_task is its known function",
}
"""Name that a function does not take -> why."""

PLACES: Mapping[str, str] = {"algorithm": "the algorithm is the first argument", "env": "the task is the second argument"}
"""Argument of `jaxmbrl.train` without a default -> its place."""

SCHEDULES: Mapping[str, str] = {
    "annealing": "a cosine schedule of the learning rate over each fit",
    "rollout_length": "a linear schedule of its own",
    "schedule": "a table of real_ratio, refit_every, updates_per_step and rollout_length over environment steps",
}
"""Name of a setting that makes something change during a run -> what it is."""

ARGUMENTS = ("out", "hyper", "progress", "stopping")
"""Arguments of `jaxmbrl.train` that are not fields of a run."""

_ACTS = "policy, state, task = jaxmbrl.load(RUN), and act of policy(state of one seed) takes (memory, observation, key)"
_SAVES = "jaxmbrl.train(..., out='runs/x') saves a run, and jaxmbrl.export(RUN, to='numpy', out='x.npz') its policy"
_CONTINUES = "jaxmbrl.resume(RUN, steps=N) continues a run in a folder"
_ROWS = "the metrics are in rows, one for each epoch and seed"

ATTRIBUTES: Mapping[str, str] = {
    **dict.fromkeys(("predict", "act", "get_action", "compute_action", "get_actions"), _ACTS),
    **dict.fromkeys(("save", "save_model", "to_file"), _SAVES),
    **dict.fromkeys(("learn", "train", "fit", "resume"), _CONTINUES),
    **dict.fromkeys(("metrics", "history", "logs", "losses", "returns", "rewards"), _ROWS),
    **dict.fromkeys(("params", "parameters"), "the parameters are in state, which has a leading axis of seeds"),
    "load": "jaxmbrl.load(RUN) is a function",
    "evaluate": "jaxmbrl.evaluate(RUN) is a function",
    "export": "jaxmbrl.export(RUN, to='numpy', out='x.npz') is a function",
    **dict.fromkeys(("report", "plot"), "the command 'jaxmbrl report RUN' draws the curves of a run in a folder"),
}
"""Attribute of other libraries' models -> what to write here; RUN is a `Result` or a folder."""

SHOWN = "progress=jaxmbrl.training.console.Progress(steps, seeds) shows a run"

NEAR = 0.8
"""Least similarity of a misspelt name to one of another level of the settings, or to an option."""


def checked_arguments(function: Callable[P, R]) -> Callable[P, R]:
    """The function, which raises UserError instead of TypeError if it is called with other arguments than its own, and
    says what an unknown one is called here."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def called(*given: P.args, **named: P.kwargs) -> R:
        try:
            signature.bind(*given, **named)
        except TypeError as error:
            raise _wrong_arguments(function.__name__, signature, len(given), named, str(error)) from None
        return function(*given, **named)

    return called


def _wrong_arguments(
    call: str, signature: inspect.Signature, given: int, named: Mapping[str, Any], problem: str
) -> UserError:
    parameters = [known for known in signature.parameters.values() if known.kind is not known.VAR_KEYWORD]
    names = [known.name for known in parameters]
    by_place = [known.name for known in parameters if known.kind is not known.KEYWORD_ONLY]
    for name in named:
        ours = ours_of(name, names)
        if name not in names and ours in names:
            return UserError(f"unknown argument '{name}' of {call}: it is called '{ours}' here")
    for name in named:
        if name not in names and "unexpected" in problem:
            why = _needless(name)
            return UserError(f"unknown argument '{name}' of {call}" + (f": {why}" if why else f"; {closest(name, names)}"))
    if given > len(by_place):
        others = ", ".join(f"{name}=..." for name in names if name not in by_place)
        by_name = f"; give the others by name: {others}" if others else ""
        return UserError(f"{call} takes {', '.join(by_place)} by position, got {given} values{by_name}")
    return UserError(f"{call}: {problem}; it takes {', '.join(names)}")


def unknown_field(name: str, value: Any, fields: Iterable[str], settings: Mapping[str, Any]) -> UserError:
    """The error for a field `name` that a run does not have. It says what to give in its place: one of `fields`, of
    `ARGUMENTS`, or of the nested `settings` of the run."""
    fields = sorted({*fields, *ARGUMENTS})
    ours, unknown = ours_of(name, [*fields, *_names(settings)]), f"unknown field '{name}'"
    if _needless(name):
        return UserError(f"{unknown}: {_needless(name)}")
    if ours == "progress":
        return UserError(f"{unknown}: {SHOWN}")
    if ours in PLACES:
        return UserError(f"{unknown}: {PLACES[ours]}")
    if ours == "settings" and isinstance(value, Mapping):
        return UserError(f"{unknown}: write settings={translated(value, settings)!r:.200}")
    if ours in fields:
        return UserError(f"{unknown}: it is called '{ours}' here")
    paths = paths_of(ours, settings)
    if paths:
        others = f" (or {', '.join(repr(path) for path in paths[1:])})" if paths[1:] else ""
        return UserError(f"{unknown}: it is one of the settings, settings={{'{paths[0]}': {value!r:.40}}}{others}")
    return UserError(f"{unknown}; {closest(name, fields)}")


def translated(given: Mapping[Any, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that another library calls as in `given`, by dotted path; those that are not found keep their names."""
    ours = {str(name): ours_of(str(name), _names(settings)) for name in given}
    return {next(iter(paths_of(ours[str(name)], settings)), str(name)): value for name, value in given.items()}


def unknown_setting(
    name: str, value: Any, known: Mapping[str, Any], fields: Iterable[str], call: str = "", prefix: str = ""
) -> UserError:
    """The error for a setting `name` that the nested `known` does not have at this level, called `prefix`. It says what to
    give in its place: a setting of a level below, the nearest setting, or one of the `fields` of a run, which are arguments
    of the function `call`, if the settings are those of `train` or `resume`, and fields beside the settings in the file of
    a `sweep`."""
    arguments = {*fields, *ARGUMENTS} if call == "train" else {*fields} if call else set()
    unknown, ours = f"unknown field '{prefix}{name}'", ours_of(name, [*_names(known), *arguments])
    paths = paths_of(ours, known) or paths_near(ours, known)
    if paths:
        return UserError(f"{unknown}; did you mean {' or '.join(repr(prefix + path) for path in paths)}?")
    if ours in arguments and call == "sweep":
        return UserError(f"{unknown}: it is the field '{ours}' of the run: move it out of settings")
    if ours in arguments:
        what = f"an argument of {call}" if ours == name else f"the argument '{ours}' of {call}"
        given = SHOWN if ours == "progress" else f"write {ours}={value!r:.40} beside settings"
        return UserError(f"{unknown}: it is {what}, not a setting: {given}")
    if _needless(name):
        return UserError(f"{unknown}: {_needless(name)}")
    return UserError(f"{unknown}; {closest(name, known, prefix)}")


def unknown_on_resume(
    name: str, value: Any, fields: Iterable[str], settings: Mapping[str, Any], may_change: Collection[str]
) -> UserError:
    """The error for a field `name` that `resume` does not take, for a run with `fields` and nested `settings`. Only those
    in `may_change` are free, the settings among them after `settings.`."""
    paths = paths_of(ours_of(name, _names(settings)), settings)
    if name in ARGUMENTS:
        return UserError(f"unknown argument '{name}' of resume: a run that is resumed keeps its own")
    if not paths:
        return unknown_field(name, value, fields, settings)
    if f"settings.{paths[0]}" in may_change:
        return UserError(f"unknown field '{name}': it is one of the settings, settings={{'{paths[0]}': {value!r:.40}}}")
    return UserError(
        f"{paths[0]} cannot change when a run is resumed, because learning depends on it ({', '.join(may_change)} can): "
        f"train another run with settings={{'{paths[0]}': {value!r:.40}}}"
    )


def unknown_in_sweep(path: str, shown: str, fields: Iterable[str], settings: Mapping[str, Any]) -> UserError:
    """The error for a field `path` of a sweep, which is `shown` with its place in the file. A run has the `fields`, and the
    nested `settings` if its algorithm is known."""
    fields, last = [*fields], path.replace("-", "_").rsplit(".", 1)[-1]
    ours = ours_of(last, [*fields, *_names(settings)])
    if _needless(path):
        return UserError(f"unknown field '{shown}': {_needless(path)}")
    if "." not in path and ours in fields:
        return UserError(f"unknown field '{shown}': it is called '{ours}' here")
    paths = paths_of(ours, settings) or paths_near(last, settings)
    if paths:
        found = " or ".join(f"'settings.{found}'" for found in paths)
        return UserError(f"unknown field '{shown}'; did you mean {found}?")
    near = difflib.get_close_matches(path, fields, n=1, cutoff=0.7)
    hint = f"did you mean '{near[0]}'?" if near else f"a field of the algorithm's config is written settings.{path}"
    return UserError(f"unknown field '{shown}'; {hint}")


def unknown_option(word: str, options: Iterable[str]) -> str:
    """The message for a `word` that is none of the `options` of a command, which begin with `--`."""
    option, options = word.partition("=")[0], list(options)
    name = option.lstrip("-").replace("-", "_")
    last = {known: known.lstrip("-").replace("-", "_").rsplit(".", 1)[-1] for known in options}
    ours = ours_of(name.rsplit(".", 1)[-1], last.values())
    found = [known for known in options if is_called(known.lstrip("-").replace("-", "_"), ours)]
    why = {
        "progress": ": a command shows its progress without it",
        "settings": ": each setting is an option of its own",
        "algorithm": ": the algorithm is the first word after train",
    }
    if not found and (_needless(name) or ours in why):
        return f"unknown option '{word}'" + (f": {_needless(name)}" if _needless(name) else why[ours])
    found = found or difflib.get_close_matches(option.replace("_", "-"), options, n=1, cutoff=0.7)
    return f"unknown option '{word}'" + (f"; did you mean {' or '.join(map(repr, found))}?" if found else "")


def several_seeds(given: Sequence[Any], form: str) -> str:
    """The message for a list of seeds in the place of their number. `form` takes the first seed and their number."""
    seeds = [int(seed) for seed in given if str(seed).isdecimal()]
    right = form.format(min(seeds, default=0), max(len(given), 1))
    return f"seeds must be the number of seeds, got {' '.join(map(str, given))!r:.40}: write {right}, which are consecutive"


def hinted_attributes(of: type[R]) -> type[R]:
    """The class, whose AttributeError for a method of another library's model says what to write in its place."""

    def absent(self: Any, name: str) -> Any:
        instead = ATTRIBUTES.get(name)
        raise AttributeError(f"a {of.__name__} has no '{name}'" + (f": {instead}" if instead else ""))

    # A method of the class would let type checkers accept every attribute.
    of.__getattr__ = absent  # type: ignore[attr-defined]
    return of


def check_constant(settings: Mapping[str, Any]) -> None:
    """Raise UserError for a function among the nested `settings`, such as a schedule of optax. It names the settings that
    are schedules."""
    for path, value in _leaves(settings):
        if callable(value):
            schedules = [(found, what) for name, what in SCHEDULES.items() for found in paths_of(name, settings)]
            kinds = [f"{found} is {what}" for found, what in schedules if not found.startswith("schedule.")]
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


def ours_of(name: str, known: Iterable[str] = ()) -> str:
    """What `name` is called here: itself if it is `known`, also with hyphens, or else by the table of other libraries'
    words, of whose meanings a known one comes first."""
    known, plain = set(known), name.replace("-", "_")
    if plain in known:
        return plain
    meanings = [ours for ours, theirs in CALLED.items() if plain in theirs]
    last = {ours: ours.rsplit(".", 1)[-1] for ours in meanings}
    return next((ours for ours in meanings if last[ours] in known), meanings[0] if meanings else plain)


def is_called(path: str, name: str) -> bool:
    """Whether the dotted `path` ends with `name`, which may have several parts."""
    return f".{path}".endswith(f".{name}")


def control_task(name: str, tasks: Iterable[str]) -> str | None:
    """The one of `tasks` that is DeepMind Control's task which other libraries call `name`, such as `cartpole_swingup`,
    `CartpoleSwingup`, `dmc_cartpole_swingup` or `dm_control/cartpole-swingup-v0`; None if there is none.

    >>> from jaxmbrl.core.hints import control_task
    >>> control_task("dm_control/walker-walk-v0", ["dmc/walker-run", "dmc/walker-walk"])
    'dmc/walker-walk'
    """
    ours = {_letters(task.removeprefix(CONTROL_SUITE)): task for task in tasks if task.startswith(CONTROL_SUITE)}
    asked = _letters(_within_suite(name))
    return ours.get(CONTROL_SHORT.get(asked, asked))


def no_control_task(name: str) -> str | None:
    """Why there is no task `name`, if it names a domain of DeepMind Control that is not here; else None."""
    asked = _letters(_within_suite(name))
    why = [(domain, why) for domain, why in CONTROL_ABSENT.items() if asked.startswith(_letters(domain))]
    if not why or _within_suite(name) == name:
        return None
    domain, reason = max(why, key=lambda found: len(found[0]))
    return f"DeepMind Control's {domain} is not among the tasks, because {reason}"


def _within_suite(name: str) -> str:
    """A name of a task of DeepMind Control without that of the suite and the version."""
    return re.sub(r"-v\d+$", "", re.sub(r"^(dm_control|dmc|dm)[/_:-]", "", name))


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _needless(name: str) -> str | None:
    """Why a function does not take `name`, also in the words of other libraries; None if that is not known."""
    return NEEDLESS.get(name) or NEEDLESS.get(ours_of(name))


def _names(values: Mapping[str, Any]) -> Iterator[str]:
    """Names of all fields, at each level."""
    for name, value in values.items():
        yield str(name)
        if isinstance(value, Mapping):
            yield from _names(value)


def paths_near(name: str, values: Mapping[str, Any]) -> list[str]:
    """Dotted paths of the fields whose name is nearest to a misspelt `name`, below this level; [] if none is near."""
    here = set(map(str, values))
    near = difflib.get_close_matches(name, set(_names(values)), n=1, cutoff=NEAR)
    return [] if not near or near[0] in here else paths_of(near[0], values)


def paths_of(name: str, values: Mapping[str, Any]) -> list[str]:
    """Dotted paths of all fields called `name`, which may have that of its part before it, outer ones first."""
    last = name.rsplit(".", 1)[-1]
    found = [last] if last in values else []
    for key, value in values.items():
        if isinstance(value, Mapping):
            found += [f"{key}.{path}" for path in paths_of(last, value)]
    return [path for path in found if is_called(path, name)]
