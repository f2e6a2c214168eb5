"""The comparison with other packages: what is measured, and how it is compared. The other package is a short program."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from jaxmbrl import algorithms, envs

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path[:0] = [str(BENCHMARKS), str(BENCHMARKS / "peers")]
import ours  # noqa: E402
import peers  # noqa: E402

DREAMER = [name for name, case in peers.CASES.items() if case.peer == "dreamerv3"]
LATENT = [name for name, case in peers.CASES.items() if case.peer in ("dreamerv3", "tdmpc2")]


class Enough(Exception):
    """Raised by `answers` in place of waiting for another request."""


def answers(measure, settings, number):
    """The first `number` answers of a worker's case."""
    found = []

    def answer(figures):
        found.append(dict(figures))
        if len(found) == number:
            raise Enough

    with pytest.raises(Enough):
        measure(settings, answer)
    return found


def layers(inputs, units, number, outputs):
    """Parameters of a perceptron whose hidden layers have a kernel, a bias and a scale."""
    total = 0
    for _ in range(number):
        total, inputs = total + inputs * units + 2 * units, units
    return total + (inputs + 1) * outputs


def sizes(of):
    """Parameters of Dreamer with one-hot latents and a gated recurrent unit."""
    stoch, features = of["groups"] * of["classes"], of["deter"] + of["groups"] * of["classes"]
    encoder = layers(of["observation"], of["coder_units"], of["coder_layers"], 0)
    unit = (of["hidden"] + of["deter"]) * 3 * of["deter"] + 4 * of["deter"]
    enter = layers(stoch + of["action"], of["hidden"], 1, 0)
    prior = layers(of["deter"], of["hidden"], 1, stoch)
    posterior = layers(of["deter"] + of["coder_units"], of["hidden"], 1, stoch)
    decoder = layers(features, of["coder_units"], of["coder_layers"], of["observation"])
    heads = sum(layers(features, of["units"], of["head_layers"], outputs) for outputs in (of["bins"], 1))
    outputs = 2 * of["action"], of["bins"]
    agent = sum(layers(features, of["agent_units"], of["agent_layers"], number) for number in outputs)
    return encoder + unit + enter + prior + posterior + decoder + heads + agent


def test_an_update_of_dreamer_has_the_networks_of_the_settings():
    settings = peers.DREAMER_SMALL | peers.TINY_DREAMER
    begun, *measured = answers(ours.dreamer, settings, 3)
    assert begun == {"parameters": sizes(settings)}
    for figures in measured:
        assert figures["updates a second"] == settings["updates"] / figures["seconds"]
        assert figures["CPU ms for each update"] == 1000 * figures["CPU seconds"] / settings["updates"]


def test_the_published_sizes_are_those_of_the_preset():
    _, preset = algorithms.preset("dreamer", peers.DREAMER["task"], "v3-2023")
    measured = {"sequence_length": 63, "num_envs": 1, "updates": 1, "replay_capacity": peers.DREAMER["rows"]}
    # Encoder and decoder are smaller than published, on both sides.
    measured["model"] = replace(preset.model, coder=replace(preset.model.coder, units=512, layers=2))
    assert ours.dreamer_config(peers.DREAMER) == replace(preset, **measured)


@pytest.mark.parametrize(("settings", "name"), [(peers.DREAMER_SMALL, "small"), (peers.DREAMER_1M, "size1m")])
def test_the_widths_of_other_cases_are_those_of_their_presets(settings, name):
    _, preset = algorithms.preset("dreamer", settings["task"], name)
    found = ours.dreamer_config(settings)
    kept = ("deter", "hidden", "groups", "classes", "units", "head_layers", "bins")
    assert found.model == replace(found.model, **{field: getattr(preset.model, field) for field in kept})
    assert (found.model.coder.units, found.model.coder.layers) == (preset.model.coder.units, preset.model.coder.layers)
    kept = ("units", "layers", "bins", "horizon", "discount")
    assert found.agent == replace(found.agent, **{field: getattr(preset.agent, field) for field in kept})
    assert found.batch_size == preset.batch_size


@pytest.mark.parametrize("name", LATENT)
def test_the_task_has_the_spaces_that_the_other_side_is_given(name):
    settings = peers.CASES[name].settings
    task = envs.make(settings["task"])
    assert (task.observation.shape, task.action.shape) == ((settings["observation"],), (settings["action"],))


@pytest.mark.slow
def test_actions_with_a_belief_are_measured_one_by_one_and_in_a_loop():
    settings = peers.DREAMER_SMALL | peers.TINY_DREAMER
    _, figures = answers(ours.dreamer_act, settings, 2)
    assert figures["CPU ms in a compiled loop"] < figures["CPU ms for each environment step"]


def of_td_mpc2(of):
    """Parameters of TD-MPC2. Hidden layers have a kernel, a bias and layer norm; so has the last layer of codes."""

    def layers(inputs, hidden, outputs, normed=False):
        total = 0
        for units in hidden:
            total, inputs = total + (inputs + 3) * units, units
        return total + (inputs + (3 if normed else 1)) * outputs

    pair, hidden = of["size"] + of["action"], (of["units"], of["units"])
    code = layers(of["observation"], (of["coder_units"],), of["size"], normed=True)
    step, reward = layers(pair, hidden, of["size"], normed=True), layers(pair, hidden, of["bins"])
    return code + step + (1 + of["critics"]) * reward + layers(of["size"], hidden, 2 * of["action"])


def test_plans_of_td_mpc2_have_the_networks_of_the_settings():
    settings = peers.TD_MPC2_SMALL | peers.TINY_TD_MPC2
    begun, figures = answers(ours.td_mpc2_plan, settings, 2)
    assert begun == {"parameters": of_td_mpc2(settings)}
    assert figures["CPU ms for each plan"] == 1000 * figures["CPU seconds"] / settings["plans"]
    assert figures["CPU ms in a compiled loop"] > 0


@pytest.mark.parametrize(("settings", "name"), [(peers.TD_MPC2_SMALL, "small"), (peers.TD_MPC2, "size5m")])
def test_the_sizes_of_td_mpc2_are_those_of_its_presets(settings, name):
    _, preset = algorithms.preset("td-mpc2", settings["task"], name)
    found = ours.td_mpc2_config(settings)
    assert found.model == replace(preset.model, learn_continuation=False)
    assert (found.agent, found.planner, found.proposals) == (preset.agent, preset.planner, preset.proposals)
    assert (found.batch_size, found.sequence_length) == (preset.batch_size, preset.sequence_length)
    assert envs.make(settings["task"]).episode_length == settings["episode_length"]


def test_cases_of_td_mpc2_need_its_code(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["peers.py", "--cases", "td-mpc2"])
    with pytest.raises(SystemExit):
        peers.main()
    assert "td-mpc2 needs --tdmpc2" in capsys.readouterr().err


PEER = """
from conversation import converse

def update(settings, answer):
    answer({"versions": {"it": settings["deter"]}, "parameters": 5})
    for seconds in (9.0, 1.0, 3.0):
        answer({"seconds": seconds, "CPU seconds": seconds / 2})

converse({"dreamer": update})
"""


def test_pairs_are_compared_without_the_first_call(tmp_path, monkeypatch):
    program = tmp_path / "peer.py"
    program.write_text(f"import sys\nsys.path.append({str(BENCHMARKS / 'peers')!r})\n{PEER}")
    our = tmp_path / "ours.py"
    our.write_text(program.read_text().replace("(9.0, 1.0, 3.0)", "(7.0, 2.0, 2.0)"))
    monkeypatch.setattr(peers, "HERE", tmp_path)
    monkeypatch.setitem(peers.WORKERS, "dreamerv3", ("peer.py", "dreamer_python"))
    args = argparse.Namespace(tiny=True, full=False, dreamer_python=Path(sys.executable))
    found = peers.compare(peers.CASES["dreamer-small"], args)
    assert found["peer"] == {"name": "dreamerv3", "versions": {"it": peers.TINY_DREAMER["deter"]}}
    medians = {"parameters": 5, "seconds": 2.0, "CPU seconds": 1.0}
    assert found["dreamerv3"] == medians | {"seconds of the first call": 9.0}
    assert found["jaxmbrl"]["seconds of the first call"] == 7.0
    assert found["times as fast"] == {"median": 1.0, "least": 0.5, "most": 1.5}


def test_a_peer_that_is_not_installed_is_named(tmp_path):
    args = argparse.Namespace(tiny=True, full=False, dreamer_python=tmp_path / "python")
    with pytest.raises(SystemExit, match="make bench-peers makes it"):
        peers.Worker("dreamerv3", [str(args.dreamer_python)], tmp_path / "errors.txt")


@pytest.mark.parametrize("name", LATENT)
def test_tiny_settings_replace_others(name):
    case = peers.CASES[name]
    assert set(case.tiny) <= set(case.settings)


@pytest.mark.parametrize("name", DREAMER)
def test_the_horizon_of_dreamerv3_gives_the_discount_factor(name):
    discount = peers.CASES[name].settings["discount"]
    assert 1 - 1 / round(1 / (1 - discount)) == pytest.approx(discount, abs=1e-5)
