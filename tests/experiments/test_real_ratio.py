"""The study of the real ratio: its cases differ in the ratio alone, its comparison by hand, and that it runs."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from jaxmbrl.algorithms import shared
from jaxmbrl.core.types import Clock
from jaxmbrl.training import programs

SCRIPT = Path(__file__).parents[2] / "experiments" / "real_ratio.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("real_ratio", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("task", ["pendulum", "InvertedPendulum-v5"])
def test_the_cases_differ_in_the_ratio_alone(script, task):
    fixed, linear = (
        programs.configure("mbpo", task, "small", script.settings_of(case, task, 1200)).settings for case in script.CASES
    )

    def ratios(config):
        clocks = (Clock(np.asarray(200 + steps, np.int32)) for steps in (0, 500, 1000))
        return [float(shared.current(config, clock, np.float32(config.real_ratio))[0].real_ratio) for clock in clocks]

    np.testing.assert_allclose(ratios(fixed), [0.05] * 3, rtol=1e-6)
    np.testing.assert_allclose(ratios(linear), [0.05, 0.275, 0.5], rtol=1e-6)
    assert str(linear).replace(str(linear.schedule), "") == str(fixed).replace(str(fixed.schedule), "")


def test_the_comparison_is_of_the_last_evaluation_and_of_all(script):
    found = script.compared({"fixed": {"returns": [[0, 2], [4, 6]]}, "linear": {"returns": [[9, 1], [5, 5]]}})
    assert found["end"]["fixed"]["per_seed"] == [4, 6] and found["end"]["linear"]["per_seed"] == [5, 5]
    assert found["over the run"]["fixed"]["per_seed"] == [2, 4] and found["over the run"]["linear"]["per_seed"] == [7, 3]
    assert found["end"]["improvement"] == 0.5 and found["over the run"]["improvement"] == 0.75
    assert found["over the run"]["linear"]["mean"] == 5


@pytest.mark.slow
def test_it_runs_and_draws_and_does_not_run_again(script, tmp_path, capsys):
    words = ["--quick", "--seeds", "2", "--tasks", "pendulum", "--out", str(tmp_path), "--runs", str(tmp_path)]
    script.main(words)
    numbers = json.loads((tmp_path / "real-ratio.json").read_text())
    assert (tmp_path / "real-ratio.png").stat().st_size > 10_000
    assert np.shape(numbers["tasks"]["pendulum"]["runs"]["linear"]["returns"]) == (2, 2)
    assert "probability of improvement" in capsys.readouterr().out
    again = script.main(words)["tasks"]["pendulum"]
    assert again["runs"] == numbers["tasks"]["pendulum"]["runs"]
