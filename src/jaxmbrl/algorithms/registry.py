"""The registry of methods. Each method's record, a `Method`, is at the end of its own module; this file lists the modules.

A module is imported when its record is first used. `cards` reads the records from source, without importing any module.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxmbrl.algorithms import presets as preset_files
from jaxmbrl.algorithms.presets import Preset
from jaxmbrl.core.config import UserError, closest, traced

if TYPE_CHECKING:
    from jaxmbrl.core.types import Algorithm, Task, Transition

MODULES = {
    "pets": "shooting.pets",
    "mbpo": "dyna.mbpo",
    "bmpo": "dyna.bmpo",
    "ampo": "dyna.ampo",
    "mopo": "dyna.mopo",
    "dhmbpo": "value_gradients.dhmbpo",
    "maac": "value_gradients.maac",
    "svg": "value_gradients.svg",
    "bptt": "value_gradients.bptt",
    "pilco": "value_gradients.pilco",
    "mve": "value_expansion.mve",
    "steve": "value_expansion.steve",
    "redq": "model_free.sac:REDQ",
    "droq": "model_free.sac:DROQ",
    "sac": "model_free.sac",
    "recurrent-sac": "model_free.recurrent_sac",
    "td3": "model_free.td3",
    "ddpg": "model_free.td3:DDPG",
    "mpo": "model_free.mpo",
    "drq-v2": "model_free.drq_v2",
    "dqn": "model_free.dqn",
    "qt-opt": "model_free.qt_opt",
    "naf": "model_free.naf",
    "bc": "model_free.bc",
    "ppo": "on_policy.ppo",
    "trpo": "on_policy.trpo",
    "a2c": "on_policy.a2c",
    "reinforce": "on_policy.reinforce",
    "me-trpo": "on_policy.metrpo",
    "slbo": "on_policy.slbo",
    "gps": "trajectory.gps",
    "dreamer": "latent.dreamer",
    "plan2explore": "latent.plan2explore",
    "world-models": "latent.world_models",
    "planet": "latent.planet",
    "td-mpc2": "latent.td_mpc2",
    "alm": "latent.alm",
    "latent-mpc": "latent.latent_mpc",
    "muzero": "search.muzero",
    "alphazero": "search.alphazero",
    "uct": "search.uct",
    "distillation": "imitation.distillation",
    "q-learning": "tabular.q_learning",
    "q-planning": "tabular.q_planning",
    "dyna-q": "tabular.dyna_q",
    "dyna-q-plus": "tabular.dyna_q_plus",
    "prioritized-sweeping": "tabular.prioritized_sweeping",
    "linear-dyna": "tabular.linear_dyna",
}
"""Method -> its module, and the name of its record there unless that is `METHOD`. Tables and lists keep this order."""

_KNOWN = """
a2c a3c acktr alphazero awac awr bc bcq c51 cql cmaes crossq crr curl ddqn dqn dreamer drq drqv2 efficientzero es fqi gail
gps gumbelmuzero her i2a impala iql iqn iris mbmf metrpo mopo morel mpo muzero pilco planet poplin ppo qlearning qrdqn
rainbow reinforce sarsa simple slac slbo spr storm tdmpc td3bc tqc trpo vmpo vpg vpn worldmodels
"""
ELSEWHERE = frozenset(_KNOWN.split())
"""Names of well-known methods, in small letters and digits, without a version at the end. Those that are not registered are
not taken for misspelt names of others."""

KINDS = ("continuous actions", "discrete actions", "tables", "continuous actions in episodes of one length", "images")
"""Kinds of task: vector observations with continuous or discrete actions; discrete observations and actions; vector
observations with continuous actions, and no termination; images as observations."""

LOOP = ("num_envs", "epoch_steps", "eval_every")
"""Settings of every method that the training loop reads (`algorithms.shared.EpochSettings` describes them)."""

TINY_RUN: Mapping[str, Any] = {"batch_size": 32, "warmup_steps": 100, "epoch_steps": 100, "replay_capacity": 997}
"""The common part of most methods' `tiny` settings. 997 rows is a size that no array but a replay buffer has."""
TINY_ENSEMBLE: Mapping[str, Any] = {
    "ensemble.members": 3,
    "ensemble.elites": 2,
    "ensemble.hidden": (16,),
    "ensemble.max_epochs": 3,
}
"""The same for an ensemble."""
TINY_BRANCHES: Mapping[str, Any] = {
    "refit_every": 50,
    "rollout_length.last": 3,
    "rollout_length.begins": 0,
    "rollout_length.ends": 100,
    "rollout_rows": 83,
    "retain_steps": 100,
    "updates_per_step": 2,
}
"""The same for branches that grow within the first steps."""


class Goal(NamedTuple):
    """A learning goal: a case to train and the return that it must reach. `benchmarks/learning.py` checks it."""

    name: str
    """Name of the case and of its file in `benchmarks/results`."""
    task: str
    steps: int
    """Environment steps of each seed."""
    at_least: float | None
    """Mean return that the deterministic policy of a seed must reach. None: 90% of the way from a random policy's return to
    that of the same planner in the true simulator, on the same start states."""
    seeds: int = 4
    seeds_at_goal: int = 4
    """Number of seeds that must reach it; 0 for a case that is measured without a goal."""
    episodes: int = 100
    """Number of evaluation episodes, each with its own start state."""
    preset: str | None = None
    """Name of the preset; None for the task's default."""
    settings: Mapping[str, Any] = MappingProxyType({})
    """Changes to the preset, by dotted field names."""
    about: str = "its preset"
    """Description of the case in the tables of returns."""
    data: int = 0
    """Transitions to learn from, instead of collecting; 0 for none."""
    behaviour: str = ""
    """The method whose deterministic policy, trained with its default preset, acts in these transitions; empty for
    uniformly random actions."""
    float64: bool = False
    """Whether the case is trained in float64 although its method does not need it."""
    expert: str = ""
    """Name of the case whose policies are imitated; it is trained first."""
    action_repeat: int = 1
    """How often each action is applied. `steps` counts the actions."""
    best: bool = False
    """Whether the best evaluation during training must reach the return, instead of the last policy: for methods whose
    policy gets worse again."""


class Method(NamedTuple):
    """The record of a method."""

    make: Callable[[Any, Task], Algorithm]
    """(config, task) -> the algorithm."""
    config: type
    """Class of its settings, a frozen dataclass with the fields of `LOOP` besides its own."""
    presets: Mapping[str, Preset] = MappingProxyType({})
    """Presets by name; the first is the default of tasks that no preset lists. If empty, they are read from the YAML file
    with the method's name beside the module of its config (`algorithms.presets` describes the format)."""
    family: str = "user"
    """The folder of its module: methods of one kind."""
    paper: str = ""
    """arXiv number of its paper; empty if it is not on arXiv."""
    summary: str = ""
    """One-line description."""
    tiny: Mapping[str, Any] = MappingProxyType({})
    """Changes to the default preset, by dotted field names, that make it small enough for the tests of all methods."""
    goals: tuple[Goal, ...] = ()
    """Learning goals; `make learning NAME=method` checks the first."""
    takes: tuple[str, ...] = ("continuous actions",)
    """The kinds of task that it takes, of `KINDS`. Its contract tests use a task of the first."""
    requires: tuple[str, ...] = ()
    """Requirements besides these, in words."""
    offline: Callable[[Any, Task, Transition], Algorithm] | None = None
    """(config, task, rows [N, ...]) -> the algorithm that learns from the rows of a file, all of them from its first call
    on. With None, a run from a file passes the rows to `learn` in turn, as if they were collected."""
    needs_data: bool = False
    """Whether a run needs a file of transitions, because the method imitates its actions."""
    imitates: Callable[[Any, Task, Any], Algorithm] | None = None
    """(config, task, `agents.distillation.Expert`) -> the algorithm that imitates the policy of another run. With None the
    method has no use for an expert."""

    @property
    def hyper(self) -> tuple[str, ...]:
        """Names of the traced settings, which may differ between seeds: those marked `Traced` in the config."""
        return traced(self.config)

    @property
    def needs_float64(self) -> bool:
        """Whether `requires` names float64."""
        return any("float64" in words for words in self.requires)


class Outline(NamedTuple):
    """A preset without its settings."""

    source: str
    steps: int
    tasks: tuple[str, ...]


class Card(NamedTuple):
    """The descriptive part of a method's record, as plain data."""

    family: str
    paper: str
    summary: str
    goals: tuple[Goal, ...]
    takes: tuple[str, ...]
    requires: tuple[str, ...]
    presets: dict[str, Outline]


class Methods(MutableMapping[str, Method]):
    """Records by name. The module of a record is imported when the record is first looked up."""

    def __init__(self, modules: Mapping[str, str]) -> None:
        self._entries: dict[str, str | Method] = dict(modules)

    def __getitem__(self, name: str) -> Method:
        entry = self._entries[name]
        if isinstance(entry, str):
            module, attribute = _place(entry)
            record = getattr(importlib.import_module(f"{__package__}.{module}"), attribute)
            entry = self._entries[name] = complete(name, record)
        return entry

    def __setitem__(self, name: str, method: Method) -> None:
        self._entries[name] = method

    def __delitem__(self, name: str) -> None:
        del self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def card(self, name: str) -> Card:
        """The card of the method `name`, read from its source if its module has not been imported."""
        entry = self._entries[name]
        if isinstance(entry, str):
            module, attribute = _place(entry)
            file = Path(__file__).parent.joinpath(*module.split(".")).with_suffix(".py")
            values = _literals(file, attribute)
            entries: Mapping[str, Any] = preset_files.read(file.with_name(f"{name}.yaml"))
        else:
            values = {key: getattr(entry, key) for key in Card._fields}
            entries = entry.presets
        outlines = {key: Outline(preset.source, preset.steps, preset.tasks) for key, preset in entries.items()}
        return Card(**{key: values[key] for key in Card._fields if key != "presets"}, presets=outlines)


METHODS = Methods(MODULES)
"""All methods that are registered in this process."""


def cards() -> dict[str, Card]:
    """The cards of all methods, in order, without importing any of their modules."""
    return {name: METHODS.card(name) for name in METHODS}


def get(name: str) -> Method:
    """The method called `name`. Raises UserError as `unknown` describes if there is none."""
    if name not in METHODS:
        raise unknown(name)
    return METHODS[name]


def unknown(name: str, what: str = "algorithm", names: Iterable[str] | None = None) -> UserError:
    """The error for a `name` that is not among `names`, by default those of all methods. It has the nearest of them, unless
    the name is that of another well-known method."""
    names = [*(METHODS if names is None else names)]
    bare = _bare(name)
    if bare in ELSEWHERE and bare not in map(_bare, names):
        return UserError(f"{what} '{name}' is not available; 'jaxmbrl list' shows the methods")
    return UserError(f"unknown {what} '{name}'; {closest(name, names)}")


def _bare(name: str) -> str:
    """A method's name in small letters and digits, without a version at the end."""
    plain = re.sub("[^a-z0-9]", "", name.lower())
    return plain if plain in ELSEWHERE else re.sub(r"v?[0-9]+$", "", plain)


def preset(name: str, task: str, wanted: str | None = None) -> tuple[str, Any]:
    """(name, config) of the preset `wanted`, or of the default preset of `task`. Raises UserError if there is none."""
    presets = get(name).presets
    wanted = wanted or preset_files.default_for(presets, task)
    if wanted not in presets:
        raise UserError(f"unknown preset '{wanted}' of {name}; {closest(wanted, presets)}")
    return wanted, presets[wanted].config


def add_presets(name: str, file: str | Path) -> dict[str, Preset]:
    """Add the presets in a YAML file to the method `name`, in this process, and return them. They replace presets with the
    same name. Raises UserError as `presets.load` does."""
    method = get(name)
    added = preset_files.load(file, method.config, method.presets)
    METHODS[name] = method._replace(presets={**method.presets, **added})
    return added


def register(name: str, method: Any) -> None:
    """Register `method`, a `Method`, as `name` in this process, for `jaxmbrl.train` and for `jaxmbrl.cli.main()`, the
    command called from Python.

        algorithms.register("mine", Method(make, Config, presets={"default": Preset(Config(), "my own", 5000)}))

    A method of one's own that has this name already, as when a notebook's cell is run again, is replaced with a warning.
    Raises UserError if the name is that of a published method or is not a letter followed by letters, digits, `-` and `_`,
    or if a preset is not of the method's config class.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name):
        raise UserError(f"a method's name must be a letter, then letters, digits, '-' or '_', got '{name}'")
    if name in METHODS and name in MODULES:
        raise UserError(f"a method '{name}' exists already: choose another name")
    if not isinstance(method, Method):
        raise UserError(f"method '{name}' must be an algorithms.Method, got {type(method).__name__}")
    config = method.config
    parameters = getattr(config, "__dataclass_params__", None) if isinstance(config, type) else None
    if parameters is None or not parameters.frozen:
        raise UserError(f"the config of method '{name}' must be a frozen dataclass, got {config!r:.60}")
    missing = [setting for setting in LOOP if setting not in {known.name for known in dataclasses.fields(config)}]
    if missing:
        raise UserError(f"{config.__name__} of method '{name}' lacks {', '.join(missing)}, which the training loop reads")
    method = complete(name, method)
    for called, of in method.presets.items():
        if not isinstance(of, Preset) or not isinstance(of.config, config):
            raise UserError(f"preset '{called}' of method '{name}' must be a Preset with a {config.__name__}")
    if name in METHODS:
        warnings.warn(f"the method '{name}' was registered before and is replaced", stacklevel=2)
    METHODS[name] = method


def unregister(name: str) -> None:
    """Forget the method that was registered as `name`. Raises UserError if there is none, or if it is a published one."""
    if name in MODULES:
        raise UserError(f"'{name}' is a method of jaxmbrl: only methods that were registered can be unregistered")
    if name not in METHODS:
        known = set(METHODS) - set(MODULES)
        raise UserError(f"no method '{name}' was registered; {closest(name, known) if known else 'nor was any other'}")
    del METHODS[name]


def complete(name: str, method: Method) -> Method:
    """The record `method` with presets: its own, or those of the YAML file beside its config's module. Raises UserError if
    there are none."""
    if method.presets:
        return method
    module = getattr(sys.modules.get(method.config.__module__), "__file__", None)
    file = Path(module or "").with_name(f"{name}.yaml") if module else None
    if file is None or not file.is_file():
        example = f"{{'default': Preset({method.config.__name__}(), 'my own', 5000)}}"
        raise UserError(f"method '{name}' needs presets, such as {example}, or a file {name}.yaml beside its module")
    return method._replace(presets=preset_files.load(file, method.config))


def _place(entry: str) -> tuple[str, str]:
    """(module, name of the record) of an entry of `MODULES`."""
    module, _, attribute = entry.partition(":")
    return module, attribute or "METHOD"


def _literals(file: Path, attribute: str) -> dict[str, Any]:
    """The fields of a `Card`, from the record `attribute` in a module's source. They must be written as literals."""
    found: dict[str, Any] = {key: value for key, value in Method._field_defaults.items() if key in Card._fields}
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and [getattr(target, "id", "") for target in node.targets] == [attribute]:
            assert isinstance(node.value, ast.Call), f"{file}: {attribute} must be written as Method(...)"
            given = {keyword.arg: keyword.value for keyword in node.value.keywords}
            return found | {name: _literal(given[name]) for name in found if name in given}
    raise LookupError(f"{file} has no record {attribute}")


def _literal(node: ast.expr) -> Any:
    """The value of a literal, which may contain `Goal(...)`."""
    if isinstance(node, ast.Tuple):
        return tuple(_literal(element) for element in node.elts)
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Goal":
        named = {keyword.arg: _literal(keyword.value) for keyword in node.keywords if keyword.arg}
        return Goal(*map(_literal, node.args), **named)
    return ast.literal_eval(node)
