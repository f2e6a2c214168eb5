"""Configs: what is taken, what is refused, and in which words."""

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import annotated_types
import numpy as np
import pytest
import yaml
from annotated_types import Ge, Gt, Interval, Le, Lt, MaxLen, MinLen
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmbrl.core.config import Traced, UserError, check, closest, from_dict, merged, to_dict, traced


@dataclass(frozen=True)
class Network:
    hidden: Annotated[tuple[Annotated[int, Ge(1)], ...], MinLen(1)] = (200, 200)
    dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.0


@dataclass(frozen=True)
class Twin:
    critics: int = 2
    network: Network = Network()


@dataclass(frozen=True)
class Single:
    noise: float = 0.1
    network: Network = Network()


@dataclass(frozen=True)
class Model:
    network: Network = Network()
    members: Annotated[int, Ge(1)] = 7
    elites: Annotated[int, Ge(1)] = 5
    learning_rate: Annotated[float, Gt(0)] = 1e-3
    propagation: Literal["ts1", "tsinf", "expectation"] = "ts1"

    def problem(self) -> tuple[str, str] | None:
        if self.elites > self.members:
            return "elites", f"must be at most members ({self.members}), got {self.elites}"
        return None


@dataclass(frozen=True)
class Run:
    env: str
    model: Model = Model()
    learner: Twin | Single = Twin()
    seeds: Annotated[int, Ge(1), Le(1024)] = 1
    discount: Annotated[float, Gt(0), Lt(1)] = 0.99
    resume: bool = False
    clip: float | None = None
    entropy: float | Literal["auto"] = "auto"
    span: tuple[int, float] = (1, 0.5)
    tags: Annotated[tuple[str, ...], MaxLen(2)] = ()
    hyper: dict[str, float] = field(default_factory=dict)


def run(**values: Any) -> Run:
    return from_dict(Run, {"env": "pendulum", **values})


def refusal(**values: Any) -> str:
    with pytest.raises(UserError) as caught:
        run(**values)
    return str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seeds": "abc"}, "seeds must be a whole number, got 'abc'"),
        ({"seeds": 3.5}, "seeds must be a whole number, got 3.5"),
        ({"seeds": True}, "seeds must be a whole number, got True"),
        ({"seeds": None}, "seeds must be a whole number, got None"),
        ({"seeds": "3"}, "seeds must be a whole number, got '3'"),
        ({"seeds": "1e-1"}, "seeds must be a whole number, got '1e-1'"),
        ({"seeds": float("inf")}, "seeds must be a whole number, got inf"),
        ({"seeds": [1]}, "seeds must be a whole number, got [1]"),
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        ({"seeds": 1025}, "seeds must be at most 1024, got 1025"),
        ({"discount": 1}, "discount must be below 1, got 1.0"),
        ({"discount": 0.0}, "discount must be above 0, got 0.0"),
        ({"discount": float("nan")}, "discount must be a finite number, got nan"),
        ({"discount": float("-inf")}, "discount must be a finite number, got -inf"),
        ({"discount": 1e39}, "discount must be a finite number, got 1e+39"),
        ({"discount": 10**400}, f"discount must be a finite number, got {10**400}"),
        ({"discount": "1e999"}, "discount must be a finite number, got '1e999'"),
        ({"discount": True}, "discount must be a finite number, got True"),
        ({"discount": "high"}, "discount must be a finite number, got 'high'"),
        ({"resume": 1}, "resume must be true or false, got 1"),
        ({"resume": "true"}, "resume must be true or false, got 'true'"),
        ({"resume": "y"}, "resume must be true or false, got 'y'"),
        ({"env": 3}, "env must be text, got 3"),
        ({"clip": "no"}, "clip must be a finite number, got 'no'"),
        ({"entropy": "aut"}, "entropy must be a finite number or 'auto', got 'aut'"),
        ({"tags": "a"}, "tags must be a list, got 'a'"),
        ({"tags": ["a", 1]}, "tags[1] must be text, got 1"),
        ({"tags": ["a", "b", "c"]}, "tags must be a list of at most 2 entries, got ('a', 'b', 'c')"),
        ({"span": [1]}, "span must be a list of 2 entries, got [1]"),
        ({"span": [1.5, 1]}, "span[0] must be a whole number, got 1.5"),
        ({"hyper": {"tau": "x"}}, "hyper.tau must be a finite number, got 'x'"),
        ({"hyper": [1]}, "hyper must be a mapping, got [1]"),
        ({"model": 3}, "model must be a mapping from fields to values, got 3"),
        ({"model": {"members": 0}}, "model.members must be at least 1, got 0"),
        ({"model": {"network": {"hidden": 200}}}, "model.network.hidden must be a list, got 200"),
        ({"model": {"network": {"hidden": [200, 0]}}}, "model.network.hidden[1] must be at least 1, got 0"),
        ({"model": {"network": {"hidden": []}}}, "model.network.hidden must be a list of at least 1 entries, got ()"),
        ({"model": {"network": {"dropout": 1.0}}}, "model.network.dropout must be below 1, got 1.0"),
        (
            {"model": {"propagation": "ts"}},
            "model.propagation must be 'ts1' or 'tsinf' or 'expectation', got 'ts'",
        ),
        ({"model": {"elites": 9}}, "model.elites must be at most members (7), got 9"),
        ({"model": {"learnin_rate": 1}}, "unknown field 'model.learnin_rate'; did you mean 'model.learning_rate'?"),
        ({"model": {"network": {"zzz": 1}}}, "unknown field 'model.network.zzz'; there is: dropout, hidden"),
        ({"seed": 1}, "unknown field 'seed'; did you mean 'seeds'?"),
        ({7: 1}, "unknown field '7'"),
        ({"learner": {"nois": 0.1}}, "unknown field 'learner.nois'; did you mean 'learner.noise'?"),
        ({"learner": {"noise": "x"}}, "learner.noise must be a finite number, got 'x'"),
        ({"learner": {"network": {"dropout": 2}}}, "learner.network.dropout must be below 1, got 2.0"),
    ],
)
def test_refusals_name_the_field_and_say_what_to_do(values, message):
    values = {"env": "pendulum", **values}
    with pytest.raises(UserError) as caught:
        from_dict(Run, values)
    told = str(caught.value)
    assert told.startswith(message) if message.endswith("'7'") else told == message
    assert "\n" not in told
    assert caught.value.__cause__ is None


def test_names_of_two_configs_do_not_mix():
    told = refusal(learner={"noise": 0.1, "critics": 3})
    assert told == "unknown field 'learner.noise'; there is: critics, network"


def test_missing_field_and_prefix():
    with pytest.raises(UserError, match=r"^env is missing: give it a value$"):
        from_dict(Run, {})
    with pytest.raises(UserError, match=r"^run\.model\.members must be at least 1, got 0$"):
        from_dict(Run, {"env": "x", "model": {"members": 0}}, "run.")
    with pytest.raises(UserError, match=r"^run\.elites must be at most members \(2\), got 5$"):
        from_dict(Model, {"members": 2}, "run.")
    with pytest.raises(UserError, match=r"^the config must be a mapping from fields to values, got None$"):
        from_dict(Run, yaml.safe_load(""))


def test_what_yaml_writes_is_read():
    text = """
    env: Hopper-v5
    seeds: 1e1
    discount: 99e-2
    resume: yes
    clip: 10
    entropy: -3
    span: [1.0e+1, 2]
    tags: [a]
    hyper: {tau: 5e-3, rate: 1E-4}
    learner: {noise: 1e-1}
    model: {members: 5, learning_rate: 3e-4, network: {hidden: [400, 400, 400]}}
    """
    config = from_dict(Run, yaml.safe_load(text))
    assert config == Run(
        env="Hopper-v5",
        seeds=10,
        discount=0.99,
        resume=True,
        clip=10.0,
        entropy=-3.0,
        span=(10, 2.0),
        tags=("a",),
        hyper={"tau": 5e-3, "rate": 1e-4},
        learner=Single(noise=0.1),
        model=Model(members=5, learning_rate=3e-4, network=Network(hidden=(400, 400, 400))),
    )
    kinds = [type(x) for x in (config.seeds, config.discount, config.clip, config.entropy, *config.span)]
    assert kinds == [int, float, float, float, int, float]
    assert run(clip=None).clip is None


def test_the_words_of_yaml_for_true_and_false_are_read():
    words = {"yes": True, "On": True, "NO": False, "off": False}
    assert [run(resume=word).resume for word in words] == list(words.values())


def test_numpy_numbers_become_plain_ones():
    config = run(seeds=np.int64(3), discount=np.float32(0.5))
    assert (type(config.seeds), type(config.discount)) == (int, float)
    assert (config.seeds, config.discount) == (3, 0.5)


words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=8)
numbers = st.floats(allow_nan=False, allow_infinity=False, width=32)
networks = st.builds(
    Network,
    hidden=st.lists(st.integers(1, 10**9), min_size=1, max_size=4).map(tuple),
    dropout=st.floats(0, 1, exclude_max=True),
)
runs = st.builds(
    Run,
    env=words,
    model=st.builds(
        Model,
        network=networks,
        members=st.integers(5, 9),
        elites=st.integers(1, 5),
        learning_rate=st.floats(0, 1e38, exclude_min=True),
        propagation=st.sampled_from(["ts1", "tsinf", "expectation"]),
    ),
    learner=st.builds(Twin, critics=st.integers()) | st.builds(Single, noise=numbers, network=networks),
    seeds=st.integers(1, 1024),
    discount=st.floats(0, 1, exclude_min=True, exclude_max=True),
    resume=st.booleans(),
    clip=st.none() | numbers,
    entropy=numbers | st.just("auto"),
    span=st.tuples(st.integers(-(10**15), 10**15), numbers),
    tags=st.lists(words, max_size=2).map(tuple),
    hyper=st.dictionaries(words, numbers, max_size=2),
)


@settings(max_examples=50, deadline=None)
@given(runs)
def test_round_trip_through_yaml(config):
    text = yaml.safe_dump(to_dict(config), allow_unicode=True)
    assert from_dict(Run, yaml.safe_load(text)) == config
    assert check(config) == config


def test_to_dict_holds_plain_values_and_shares_nothing():
    config = run(hyper={"tau": 1.0})
    plain = to_dict(config)
    assert plain["model"]["network"]["hidden"] == [200, 200]
    assert plain["span"] == [1, 0.5]
    plain["hyper"]["tau"] = 2.0
    assert config.hyper == {"tau": 1.0}


def test_check_finds_what_a_constructor_lets_through():
    config = run()
    assert check(config) == config
    with pytest.raises(UserError, match=r"^model\.members must be at least 1, got -1$"):
        check(dataclasses.replace(config, model=Model(members=-1)))
    with pytest.raises(UserError, match=r"^learner\.noise must be a finite number, got nan$"):
        check(dataclasses.replace(config, learner=Single(noise=float("nan"))))
    with pytest.raises(UserError, match=r"^model must be a mapping from fields to values, got None$"):
        check(dataclasses.replace(config, model=None))


@dataclass(frozen=True)
class Odd:
    thing: complex = 0j


@dataclass(frozen=True)
class OddRange:
    thing: Annotated[int, annotated_types.MultipleOf(2)] = 0


def test_unsupported_annotations_are_the_programmers_mistake():
    with pytest.raises(TypeError, match="annotation"):
        from_dict(Odd, {"thing": 1})
    with pytest.raises(TypeError, match="constraint"):
        from_dict(OddRange, {"thing": 1})


def test_closest():
    assert closest("pendlum", ["pendulum", "cartpole"]) == "did you mean 'pendulum'?"
    assert closest("zzz", ["b", "a"]) == "there is: a, b"


@dataclass(frozen=True)
class Critic:
    rate: Annotated[float, Gt(0), Traced] = 1e-3
    temperature: Annotated[float, Traced] = 1.0
    layers: int = 2


@dataclass(frozen=True)
class Actor:
    rate: Annotated[float, Gt(0), Traced] = 1e-3
    noise: Annotated[float, Gt(0)] = 0.1


@dataclass(frozen=True)
class Either:
    method: Literal["critic", "actor"] = "critic"
    critic: Critic = Critic()
    actor: Actor = Actor()


@dataclass(frozen=True)
class Both:
    critic: Annotated[Critic, "a comment"] = Critic()
    actor: Actor = Actor()
    share: Annotated[float, Ge(0), Traced] = 0.5
    method: Literal["one", "other"] = "one"


def test_traced_settings_are_found_in_nested_configs():
    assert traced(Both) == ("rate", "temperature", "share")
    assert traced(Either) == ("rate",), "of those that exclude each other, what all have"
    assert traced(Run) == ()


def test_a_mark_is_no_range():
    assert from_dict(Critic, {"rate": "1e-2"}) == Critic(rate=0.01)
    with pytest.raises(UserError, match=r"^rate must be above 0, got 0\.0$"):
        from_dict(Critic, {"rate": 0})


def test_merged_leaves_what_it_is_given_alone():
    values = {"a": {"b": 1, "c": [1, 2]}, "d": 3}
    assert merged(values, {"a": {"c": [9]}, "d": {"e": 4}, "f": 5}) == {"a": {"b": 1, "c": [9]}, "d": {"e": 4}, "f": 5}
    assert values == {"a": {"b": 1, "c": [1, 2]}, "d": 3}
