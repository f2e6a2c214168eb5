"""Published methods, one file each, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxmbrl.algorithms import bptt, dhmbpo, maac, mbpo, mve, pets, sac, steve, svg, td3
from jaxmbrl.config import UserError, closest
from jaxmbrl.presets import Preset, default_for
from jaxmbrl.types import Algorithm, Task


class Method(NamedTuple):
    """What is registered of a published method."""

    make: Callable[[Any, Task], Algorithm]
    config: type
    presets: Mapping[str, Preset]
    hyper: tuple[str, ...]
    """The traced numbers that may differ from seed to seed."""
    summary: str


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


def preset(name: str, task: str, wanted: str | None = None) -> tuple[str, Any]:
    """(name, config) of the preset `wanted`, or of the default one for `task`. Raises UserError where there is none."""
    presets = get(name).presets
    wanted = wanted or default_for(presets, task)
    if wanted not in presets:
        raise UserError(f"unknown preset '{wanted}' of {name}; {closest(wanted, presets)}")
    return wanted, presets[wanted].config
