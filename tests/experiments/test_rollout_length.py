"""The study of rollout lengths: its cases differ as they are said to, its numbers are those of the rows, and it runs."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from jaxmbrl.training import programs

SCRIPT = Path(__file__).parents[2] / "experiments" / "rollout_length.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("rollout_length", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_cases_differ_in_their_branches_alone(script):
    settings = [
        programs.configure("mbpo", script.TASK, "small", {**script.COMMON, **changes}).settings
        for changes in script.lengths(1600).values()
    ]
    # At the start, halfway through what the fourth grows over, and after it.
    found = [[int(s.rollout_length.at(steps)) for steps in (0, 400, 800, 1200)] for s in settings]
    assert found == [[1] * 4, [5] * 4, [15] * 4, [1, 8, 15, 15]]
    assert len({str(s).replace(str(s.rollout_length), "") for s in settings}) == 1
    assert script.shares() == ("5% real, k = 1", "50% real, k = 1", "100% real: SAC")


def test_a_runs_seeds_are_shared_out_to_its_cases_in_turn(script):
    rows = [{"seed": seed, "env_steps": at, "eval/return": 10.0 * seed + at} for at in (2, 1) for seed in range(4)]
    first, second = script.returns_of(rows, 2)
    assert first.steps == second.steps == [1, 2]
    np.testing.assert_array_equal(first.returns, [[1, 2], [11, 12]])
    np.testing.assert_array_equal(second.returns, [[21, 22], [31, 32]])


def test_the_summary_is_of_the_last_two_evaluations_and_of_all(script):
    returns = np.array([[0.0, 2, 4], [3, 5, 7], [0, 6, 6], [0, 100, 200]])
    found = script.summary(script.Curves([1, 2, 3], returns))
    assert found["end"]["per_seed"] == [3, 6, 6, 150] and found["over the run"]["per_seed"] == [2, 5, 4, 100]
    # Without the lowest and the highest.
    assert found["end"]["mean"] == 41.25 and found["end"]["iqm"] == 6 and found["over the run"]["iqm"] == 4.5
    low, high = found["end"]["interval"]
    assert low == 3 and 6 < high <= 150


@pytest.mark.slow
def test_it_runs_and_draws_and_does_not_run_again(script, tmp_path, capsys):
    script.main(["--quick", "--out", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    numbers = json.loads((tmp_path / "rollout-length.json").read_text())
    assert (tmp_path / "rollout-length.png").stat().st_size > 10_000
    assert [len(numbers[kind]) for kind in ("branch length", "real share")] == [4, 3]
    assert numbers["branch length"]["k = 1"] == numbers["real share"]["5% real, k = 1"]
    assert all(np.shape(case["returns"]) == (2, 4) for case in numbers["branch length"].values())
    assert any(line.startswith("  k from 1 to 15") for line in lines)
    script.main(["--quick", "--out", str(tmp_path)])
    again = json.loads((tmp_path / "rollout-length.json").read_text())
    assert again["branch length"] == numbers["branch length"] and again["real share"] == numbers["real share"]
