"""Published methods, one file each, by name: `algorithms.METHODS`, `algorithms.get`. Your own: `algorithms.register`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxmbrl.algorithms.dyna import mbpo
from jaxmbrl.algorithms.model_free import sac, td3
from jaxmbrl.algorithms.presets import Preset, default_for
from jaxmbrl.algorithms.shooting import pets
from jaxmbrl.algorithms.value_expansion import mve, steve
from jaxmbrl.algorithms.value_gradients import bptt, dhmbpo, maac, svg
from jaxmbrl.core.config import UserError, closest
from jaxmbrl.core.types import Algorithm, Task


class Method(NamedTuple):
    """What is registered of a method."""

    make: Callable[[Any, Task], Algorithm]
    """(config, task) -> the algorithm."""
    config: type
    """Class of its settings, a frozen dataclass with the fields of `LOOP` besides its own."""
    presets: Mapping[str, Preset]
    """Its settings by name; a task that none of them lists gets the first."""
    hyper: tuple[str, ...]
    """The traced numbers that may differ from seed to seed."""
    summary: str
    """A line of `jaxmbrl list`."""


LOOP = ("num_envs", "warmup_steps", "epoch_steps", "eval_every")
"""Settings that the training loop reads of every method (`agents.off_policy.OffPolicyConfig` says what they are)."""


_SAC_HYPER = ("learning_rate", "discount", "initial_temperature")
_TD3_HYPER = ("learning_rate", "discount")
_BRANCHED_HYPER = (*_SAC_HYPER, "real_ratio")

METHODS: dict[str, Method] = {
    "bptt": Method(
        bptt.make,
        bptt.Config,
        bptt.PRESETS,
        ("learning_rate", "discount"),
        "policy by back-propagation through time, through a probabilistic ensemble or the true simulator, without a critic",
    ),
    "ddpg": Method(
        td3.make,
        td3.Config,
        td3.DDPG_PRESETS,
        _TD3_HYPER,
        "deep deterministic policy gradient: one critic and a deterministic actor",
    ),
    "dhmbpo": Method(
        dhmbpo.make,
        dhmbpo.Config,
        dhmbpo.PRESETS,
        _SAC_HYPER,
        "soft actor-critic by short differentiated rollouts from the states of long imagined ones",
    ),
    "droq": Method(
        sac.make,
        sac.Config,
        sac.DROQ_PRESETS,
        _SAC_HYPER,
        "soft actor-critic with many updates a step, of critics with dropout and layer norm",
    ),
    "maac": Method(
        maac.make,
        maac.Config,
        maac.PRESETS,
        _BRANCHED_HYPER,
        "soft actor-critic whose actor climbs what some imagined steps earn, through the ensemble's derivatives",
    ),
    "mbpo": Method(
        mbpo.make,
        mbpo.Config,
        mbpo.PRESETS,
        _BRANCHED_HYPER,
        "soft actor-critic on short branches imagined by a probabilistic ensemble",
    ),
    "mve": Method(
        mve.make,
        mve.Config,
        mve.PRESETS,
        _TD3_HYPER,
        "soft actor-critic or TD3 whose critics' targets look some steps ahead through a probabilistic ensemble",
    ),
    "pets": Method(
        pets.make,
        pets.Config,
        pets.PRESETS,
        ("learning_rate",),
        "plan through a probabilistic ensemble, by CEM or another planner",
    ),
    "redq": Method(
        sac.make,
        sac.Config,
        sac.REDQ_PRESETS,
        _SAC_HYPER,
        "soft actor-critic with many updates a step, of an ensemble of critics",
    ),
    "sac": Method(
        sac.make,
        sac.Config,
        sac.PRESETS,
        _SAC_HYPER,
        "soft actor-critic, the model-free baseline",
    ),
    "steve": Method(
        steve.make,
        steve.Config,
        steve.PRESETS,
        _TD3_HYPER,
        "soft actor-critic or TD3 whose critics' targets look through an ensemble as far as its members agree",
    ),
    "svg": Method(
        svg.make,
        svg.Config,
        svg.PRESETS,
        _SAC_HYPER,
        "soft actor-critic whose actor follows stochastic value gradients: through imagined steps, or real ones re-created",
    ),
    "td3": Method(
        td3.make,
        td3.Config,
        td3.PRESETS,
        _TD3_HYPER,
        "deterministic policy gradient with twin critics, a delayed actor and smoothed targets",
    ),
}


def get(name: str) -> Method:
    """The method called `name`. Raises UserError with the nearest name where there is none."""
    if name not in METHODS:
        raise UserError(f"unknown algorithm '{name}'; {closest(name, METHODS)}")
    return METHODS[name]


def register(name: str, method: Any) -> None:
    """Make `method`, a `Method`, known as `name` in this process: to `jaxmbrl.train`, and to the command where it is called
    from there, `jaxmbrl.cli.main()`.

        algorithms.register("mine", Method(make, Config, {"default": Preset(Config(), "mine", 5000)}, (), "what it does"))

    Raises UserError where the name is taken, or is not made of letters, digits, `-` and `_` after a first letter, and where
    config, presets and traced numbers do not fit each other.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name):
        raise UserError(f"a method's name must be a letter, then letters, digits, '-' or '_', got '{name}'")
    if name in METHODS:
        raise UserError(f"there is a method '{name}' already: choose another name")
    if not isinstance(method, Method):
        raise UserError(f"method '{name}' must be an algorithms.Method, got {type(method).__name__}")
    config = method.config
    parameters = getattr(config, "__dataclass_params__", None) if isinstance(config, type) else None
    if parameters is None or not parameters.frozen:
        raise UserError(f"the config of method '{name}' must be a frozen dataclass, got {config!r:.60}")
    missing = [field for field in LOOP if field not in _names(config)]
    if missing:
        raise UserError(f"{config.__name__} of method '{name}' lacks {', '.join(missing)}, which the training loop reads")
    if not method.presets:
        raise UserError(f"method '{name}' needs a preset, such as {{'default': Preset({config.__name__}(), 'mine', 5000)}}")
    for called, of in method.presets.items():
        if not isinstance(of, Preset) or not isinstance(of.config, config):
            raise UserError(f"preset '{called}' of method '{name}' must be a Preset that holds a {config.__name__}")
    METHODS[name] = method


def _names(config: type) -> set[str]:
    return {field.name for field in dataclasses.fields(config)}


def preset(name: str, task: str, wanted: str | None = None) -> tuple[str, Any]:
    """(name, config) of the preset `wanted`, or of the default one for `task`. Raises UserError where there is none."""
    presets = get(name).presets
    wanted = wanted or default_for(presets, task)
    if wanted not in presets:
        raise UserError(f"unknown preset '{wanted}' of {name}; {closest(wanted, presets)}")
    return wanted, presets[wanted].config


__all__ = ["LOOP", "METHODS", "Method", "Preset", "get", "preset", "register"]
