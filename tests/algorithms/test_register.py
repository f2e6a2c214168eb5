"""The registry: records of the published methods, and methods of one's own."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import pytest

import jaxmbrl
from jaxmbrl import algorithms, cli
from jaxmbrl.algorithms import LOOP, METHODS, Method, Preset, registry
from jaxmbrl.core.config import UserError
from jaxmbrl.core.types import Algorithm, Average, Policy
from jaxmbrl.training import programs


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
    return Algorithm(lambda key, hyper, data: Count(jnp.zeros(())), lambda state, clock, explore: policy, learn, period=1)


def steady(**changed):
    fields = {"make": make, "config": Config, "presets": {"default": Preset(Config(), "ours", 200)}}
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
    assert "  user\n    steady                pushes steadily\n" in capsys.readouterr().out
    assert cli.main(["list", "steady"]) == 0
    assert "    steady --preset default  (200 steps)\n        ours\n" in capsys.readouterr().out
    assert cli.main(["train", "steady", "--env", "pendulum", "--pus", "1"]) == 2
    assert "unknown option '--pus'; did you mean '--push'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "method", "told"),
    [
        ("sac", steady(), "a method 'sac' exists already: choose another name"),
        ("my method", steady(), "a method's name must be a letter, then letters, digits, '-' or '_', got 'my method'"),
        ("", steady(), "a method's name must be a letter, then letters, digits, '-' or '_', got ''"),
        ("mine", make, "method 'mine' must be an algorithms.Method, got function"),
        ("mine", steady(config=dict), "the config of method 'mine' must be a frozen dataclass, got <class 'dict'>"),
        ("mine", steady(config=Config()), "the config of method 'mine' must be a frozen dataclass, got Config(push=0.5"),
        ("mine", steady(config=Thawed), "the config of method 'mine' must be a frozen dataclass"),
        (
            "mine",
            steady(config=Short),
            "Short of method 'mine' lacks eval_every, which the training loop reads",
        ),
        (
            "mine",
            steady(presets={}),
            "method 'mine' needs presets, such as {'default': Preset(Config(), 'my own', 5000)}, or a file mine.yaml",
        ),
        ("mine", steady(presets={"a": Config()}), "preset 'a' of method 'mine' must be a Preset with a Config"),
        (
            "mine",
            steady(presets={"a": Preset(Short(), "", 200)}),
            "preset 'a' of method 'mine' must be a Preset with a Config",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(name, method, told):
    before = dict(METHODS)
    with pytest.raises(UserError) as error:
        algorithms.register(name, method)
    assert told in str(error.value) and "\n" not in str(error.value)
    assert before == METHODS


def test_a_method_that_is_registered_again_is_replaced_with_a_warning(known):
    again = steady(summary="pushes more steadily")
    with pytest.warns(UserWarning, match="the method 'steady' was registered before and is replaced") as heard:
        algorithms.register("steady", again)
    assert len(heard) == 1
    assert algorithms.get("steady") is again


def test_a_method_is_unregistered():
    algorithms.register("steady", steady())
    with pytest.raises(UserError, match=r"no method 'stead' was registered; did you mean 'steady'\?"):
        algorithms.unregister("stead")
    algorithms.unregister("steady")
    assert "steady" not in METHODS
    with pytest.raises(UserError, match="no method 'steady' was registered; nor was any other"):
        algorithms.unregister("steady")
    with pytest.raises(UserError, match="'sac' is a method of jaxmbrl: only methods that were registered can be"):
        algorithms.unregister("sac")


def test_every_published_method_could_have_been_registered(monkeypatch):
    for name, method in list(METHODS.items()):
        monkeypatch.delitem(METHODS, name)
        algorithms.register(name, method)
        assert METHODS[name] is method and set(LOOP) <= set(method.config.__dataclass_fields__)


def test_presets_of_ones_own_may_lie_in_a_file(tmp_path, monkeypatch):
    """In `quick.yaml`, beside the module of the config."""
    (tmp_path / "own_method.py").write_text(
        "from dataclasses import dataclass\n"
        "@dataclass(frozen=True)\n"
        "class Config:\n    push: float = 0.5\n    num_envs: int = 1\n    warmup_steps: int = 0\n"
        "    epoch_steps: int = 200\n    eval_every: int = 1\n"
    )
    (tmp_path / "quick.yaml").write_text("soft: {source: ours, steps: 400, settings: {push: 0.25}}\n")
    monkeypatch.syspath_prepend(tmp_path)
    import own_method

    algorithms.register("quick", Method(make, own_method.Config))
    try:
        assert algorithms.get("quick").presets == {"soft": Preset(own_method.Config(push=0.25), "ours", 400)}
    finally:
        del METHODS["quick"]


def test_presets_from_a_file_are_added_to_a_method(known, tmp_path):
    (tmp_path / "hard.yaml").write_text("{extends: default, settings: {push: 1}}\n")
    assert list(algorithms.add_presets("steady", tmp_path / "hard.yaml")) == ["hard"]
    assert algorithms.preset("steady", "pendulum") == ("default", Config())
    assert algorithms.preset("steady", "pendulum", "hard") == ("hard", Config(push=1.0))
    assert programs.configure("steady", "pendulum", "hard").steps == 200


FOLDER = Path(registry.__file__).parent


@pytest.mark.parametrize("name", registry.MODULES)
def test_a_card_says_what_the_record_says(name):
    """It is read from the source, so the record must be written with literals there."""
    unread = registry.Methods(registry.MODULES)
    card, method = unread.card(name), METHODS[name]
    assert unread._entries == registry.MODULES
    for field in ("family", "paper", "summary", "goals", "takes", "requires"):
        assert getattr(card, field) == getattr(method, field)
    assert card.presets == {key: registry.Outline(*preset[1:]) for key, preset in method.presets.items()}
    assert card == METHODS.card(name)


def test_a_record_that_is_not_there_is_an_error():
    with pytest.raises(LookupError, match=r"sac\.py has no record NONE"):
        registry.Methods({"sac": "model_free.sac:NONE"}).card("sac")


@pytest.mark.parametrize("name", registry.MODULES)
def test_every_record_is_complete(name):
    method = METHODS[name]
    assert method.family == registry.MODULES[name].partition(".")[0]
    # arXiv's numbers had four digits after the point until 2014. Some methods are older than arXiv or have no paper.
    without = method.family in ("tabular", "search") or name in ("bc", "reinforce", "latent-mpc")
    assert re.fullmatch(r"\d{4}\.\d{4,5}", method.paper) or (without and method.paper == "")
    assert method.summary and len(method.summary) < 100 and method.goals
    assert method.config() == method.config()


@pytest.mark.parametrize("name", registry.MODULES)
def test_every_goal_can_be_trained(name):
    for goal in METHODS[name].goals:
        run = programs.configure(name, goal.task, goal.preset, goal.settings, goal.steps, seeds=goal.seeds)
        assert 0 <= goal.seeds_at_goal <= run.seeds and goal.steps % run.settings.epoch_steps == 0


def test_goals_and_families_are_in_order():
    names = [goal.name for method in METHODS.values() for goal in method.goals]
    assert len(names) == len(set(names)) > 30
    families = [METHODS[name].family for name in registry.MODULES]
    assert len(list(dict.fromkeys(families))) == sum(a != b for a, b in zip(families, [None, *families[:-1]], strict=True))


@pytest.mark.parametrize(
    ("name", "traced"),
    [
        ("pets", {"learning_rate"}),
        ("bptt", {"learning_rate", "discount"}),
        ("sac", {"learning_rate", "discount", "initial_temperature"}),
        ("dhmbpo", {"learning_rate", "discount", "initial_temperature"}),
        ("ddpg", {"learning_rate", "discount"}),
        ("mbpo", {"learning_rate", "discount", "initial_temperature", "real_ratio"}),
        # On TD3 a temperature has no meaning.
        ("steve", {"learning_rate", "discount"}),
    ],
)
def test_the_traced_settings_are_those_marked(name, traced):
    assert set(METHODS[name].hyper) == traced
    with pytest.raises(UserError, match=f"unknown hyper 'batch_size' of {name}"):
        programs.hyper_of({"batch_size": 3}, programs.configure(name, "pendulum"))


@pytest.mark.parametrize(
    "name", ["ppo", "trpo", "dqn", "A2C", "MuZero", "dreamer", "DreamerV3", "TD-MPC2", "tdmpc", "pilco"]
)
def test_a_well_known_method_that_is_not_here_gets_no_similar_name(name, monkeypatch):
    monkeypatch.setattr(registry, "METHODS", registry.Methods({"mbpo": "dyna.mbpo", "sac": "model_free.sac"}))
    with pytest.raises(UserError) as error:
        registry.get(name)
    assert str(error.value) == f"algorithm '{name}' is not available; 'jaxmbrl list' shows the methods"
    # Where it is registered, also in another version or with other letters, its own name is the nearest.
    registry.METHODS["tdmpc2"], registry.METHODS["dreamerv3"] = METHODS["sac"], METHODS["sac"]
    nearest = "tdmpc2" if name.lower().startswith("td") else "dreamerv3" if "ream" in name else None
    if nearest is None:
        assert "not available" in str(registry.unknown(name))
    else:
        assert str(registry.unknown(name)) == f"unknown algorithm '{name}'; did you mean '{nearest}'?"
