"""A method of one's own, made known by name."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import pytest

import jaxmbrl
from jaxmbrl import algorithms, cli
from jaxmbrl.algorithms import LOOP, METHODS, Method, Preset
from jaxmbrl.core.config import UserError
from jaxmbrl.core.types import Algorithm, Average, Policy


@dataclass(frozen=True)
class Config:
    push: float = 0.5
    num_envs: int = 1
    warmup_steps: int = 0
    epoch_steps: int = 200
    eval_every: int = 1


@dataclass
class Thawed:
    push: float = 0.5


@dataclass(frozen=True)
class Short:
    num_envs: int = 1
    epoch_steps: int = 200


class Count(NamedTuple):
    count: Any


def make(config, task):
    """It counts its steps, and always pushes alike."""

    def learn(clock, state, transitions):
        state = state._replace(count=state.count + transitions.reward.size)
        return state, {"steady/count": Average.of(state.count)}

    def act(memory, observation, key):
        return jnp.full(1, config.push), (), memory

    policy = Policy(lambda key: (), act)
    return Algorithm(lambda key, hyper: Count(jnp.zeros(())), lambda state, explore: policy, learn, period=1)


def steady(**changed):
    fields = {"make": make, "config": Config, "presets": {"default": Preset(Config(), "ours", 200)}, "hyper": ()}
    return Method(**(fields | {"summary": "pushes steadily"} | changed))


@pytest.fixture
def known():
    algorithms.register("steady", steady())
    yield
    del METHODS["steady"]


def test_it_is_trained_by_the_ordinary_loop(known, tmp_path):
    result = jaxmbrl.train("steady", "pendulum", seeds=2, settings={"push": 0.25}, out=tmp_path / "run")
    assert [row["steady/count"] for row in result.rows if row["env_steps"] == 200] == [100.5, 100.5]
    assert jaxmbrl.evaluate(tmp_path / "run", episodes=2).returns.shape == (2, 2)


def test_the_command_knows_it(known, capsys):
    assert cli.main(["list"]) == 0
    assert "steady                  pushes steadily" in capsys.readouterr().out
    assert cli.main(["train", "steady", "--env", "pendulum", "--pus", "1"]) == 2
    assert "unknown option '--pus'; did you mean '--push'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "method", "told"),
    [
        ("sac", steady(), "there is a method 'sac' already: choose another name"),
        ("my method", steady(), "a method's name must be a letter, then letters, digits, '-' or '_', got 'my method'"),
        ("", steady(), "a method's name must be a letter, then letters, digits, '-' or '_', got ''"),
        ("mine", make, "method 'mine' must be an algorithms.Method, got function"),
        ("mine", steady(config=dict), "the config of method 'mine' must be a frozen dataclass, got <class 'dict'>"),
        ("mine", steady(config=Config()), "the config of method 'mine' must be a frozen dataclass, got Config(push=0.5"),
        ("mine", steady(config=Thawed), "the config of method 'mine' must be a frozen dataclass"),
        (
            "mine",
            steady(config=Short),
            "Short of method 'mine' lacks warmup_steps, eval_every, which the training",
        ),
        ("mine", steady(presets={}), "method 'mine' needs a preset, such as {'default': Preset(Config(), 'mine', 5000)}"),
        ("mine", steady(presets={"a": Config()}), "preset 'a' of method 'mine' must be a Preset that holds a Config"),
        (
            "mine",
            steady(presets={"a": Preset(Short(), "", 200)}),
            "preset 'a' of method 'mine' must be a Preset that holds a Config",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(name, method, told):
    before = dict(METHODS)
    with pytest.raises(UserError) as error:
        algorithms.register(name, method)
    assert told in str(error.value) and "\n" not in str(error.value)
    assert before == METHODS


def test_every_published_method_could_have_been_registered(monkeypatch):
    for name, method in list(METHODS.items()):
        monkeypatch.delitem(METHODS, name)
        algorithms.register(name, method)
        assert METHODS[name] is method and set(LOOP) <= set(method.config.__dataclass_fields__)
