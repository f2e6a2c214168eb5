"""Preset files: every published one, and what the format accepts, inherits and refuses."""

import re
from dataclasses import dataclass, field
from typing import Annotated

import pytest
from annotated_types import Ge, Gt

from jaxmbrl import envs
from jaxmbrl.algorithms import METHODS, Preset, presets, registry
from jaxmbrl.core.config import UserError, check


@dataclass(frozen=True)
class Agent:
    hidden: tuple[int, ...] = (256, 256)
    learning_rate: Annotated[float, Gt(0)] = 3e-4


@dataclass(frozen=True)
class Config:
    agent: Agent = field(default_factory=lambda: Agent(learning_rate=1e-2))
    num_envs: Annotated[int, Ge(1)] = 1
    epoch_steps: int = 1000


PAIRS = [(name, preset) for name in registry.MODULES for preset in METHODS[name].presets]


@pytest.mark.parametrize(("name", "preset"), PAIRS)
def test_every_published_preset_is_right(name, preset):
    config, source, steps, tasks = METHODS[name].presets[preset]
    assert check(config) == config and type(config) is METHODS[name].config
    assert len(source) > 10 and not source.endswith(".yaml")
    assert steps % config.epoch_steps == 0
    assert {re.sub(r"(masked|stacked|pixels|repeated)/([\d,grey]+/)?", "", task) for task in tasks} <= set(envs.TASKS)
    assert not [other for other, of in METHODS[name].presets.items() if other != preset and set(of.tasks) & set(tasks)]


def test_every_file_belongs_to_a_method():
    folder = registry.Path(registry.__file__).parent
    assert {file.stem for file in folder.rglob("*.yaml")} == set(registry.MODULES)


def write(folder, text, name="mine.yaml"):
    (folder / name).write_text(text)
    return folder / name


def test_what_a_preset_changes_and_inherits(tmp_path):
    file = write(
        tmp_path,
        """
        last: {extends: middle, tasks: [pendulum], settings: {agent: {hidden: [8]}}}
        middle: {extends: first, source: ours, settings: {num_envs: 2, agent: {learning_rate: 1e-3}}}
        first: {source: theirs, steps: 2_000, tasks: [Ant-v5], settings: {epoch_steps: 500}}
        own: {source: ours, extends: known, steps: 7}
        """,
    )
    known = {"known": Preset(Config(num_envs=9), "another's", 3)}
    found = presets.load(file, Config, known)
    assert found == {
        "last": Preset(Config(Agent((8,), 1e-3), 2, 500), "ours", 2000, ("pendulum",)),
        "middle": Preset(Config(Agent((256, 256), 1e-3), 2, 500), "ours", 2000),
        # What a nested config leaves out is the default of the method, 1e-2, and not that of the nested class.
        "first": Preset(Config(Agent((256, 256), 1e-2), 1, 500), "theirs", 2000, ("Ant-v5",)),
        "own": Preset(Config(num_envs=9), "ours", 7),
    }
    assert presets.default_for(found, "pendulum") == "last" == presets.default_for(found, "Walker2d-v5")
    assert presets.default_for(found, "Ant-v5") == "first"
    assert {name: (of.source, of.steps) for name, of in presets.read(file, known).items()} == {
        name: (of.source, of.steps) for name, of in found.items()
    }


def test_a_single_preset_is_called_as_its_file(tmp_path):
    found = presets.load(write(tmp_path, "steps: 500\nsettings: {num_envs: 3}"), Config)
    assert found == {"mine": Preset(Config(num_envs=3), str(tmp_path / "mine.yaml"), 500)}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "must be a mapping from names of presets to their fields"),
        ("[1]", "must be a mapping from names of presets to their fields"),
        ("a: [", "is not valid YAML (line "),
        ("steps: 3\nsettings: 4", "preset 'mine': settings must be a mapping from fields to values, got 4"),
        ("steps: 0", "preset 'mine': steps must be at least 1, got 0"),
        ("a: {steps: 3}\nb: {stps: 3}", "preset 'b': unknown field 'stps'; did you mean 'steps'?"),
        ("a: {settings: {num_envs: 2}}", "preset 'a': steps is missing: give it a value"),
        ("a: {extends: b, steps: 3}\nb: {extends: a}", "preset 'a' extends itself, by way of a and b"),
        ("a: {extends: smal}\nsmall: {steps: 3}", "preset 'a' extends an unknown preset 'smal'; did you mean 'small'?"),
        ("a: {steps: 3, tasks: pendulum}", "preset 'a': tasks must be a list, got 'pendulum'"),
        (
            "a: {steps: 3, settings: {agent: {hiden: [3]}}}",
            "preset 'a': unknown field 'settings.agent.hiden'; did you mean 'settings.agent.hidden'?",
        ),
        (
            "a: {steps: 3, settings: {tasks: [x]}}",
            "preset 'a': unknown field 'settings.tasks': it is a field of the preset: move it out of settings",
        ),
        (
            "a: {steps: 3, settings: {agent: {learning_rate: 0}}}",
            "preset 'a': settings.agent.learning_rate must be above 0, got 0.0",
        ),
        (
            "a: {steps: 3, settings: {agent: 3}}",
            "preset 'a': settings.agent must be a mapping",
        ),
    ],
)
def test_a_mistake_is_named_with_file_preset_and_field(tmp_path, text, told):
    file = write(tmp_path, text)
    with pytest.raises(UserError) as error:
        presets.load(file, Config)
    assert str(error.value).startswith(str(file)) and told in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.yaml cannot be read \(No such file or directory\)"):
        presets.load(tmp_path / "nowhere.yaml", Config)
