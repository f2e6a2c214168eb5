"""The ladder: its rungs are settings of one algorithm that differ as they are said to, and the study runs."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from jaxmbrl.training import programs

SCRIPT = Path(__file__).parents[2] / "experiments" / "model_based_ladder.py"


@pytest.fixture(scope="module")
def ladder():
    spec = importlib.util.spec_from_file_location("model_based_ladder", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_rung_adds_what_it_says(ladder):
    rungs = [
        programs.configure("pets", ladder.TASK, settings={**ladder.COMMON, **changes}).settings
        for changes in (*ladder.RUNGS.values(), *ladder.TRUE.values())
    ]
    assert [(c.refit, c.open_loop, c.ensemble.members, c.ensemble.probabilistic, c.model) for c in rungs] == [
        (False, True, 1, False, "learned"),
        (True, True, 1, False, "learned"),
        (True, False, 1, False, "learned"),
        (True, False, 5, True, "learned"),
        (True, True, 5, True, "true"),
        (True, False, 5, True, "true"),
    ]
    blind = [c.planner.cem for c in rungs if c.open_loop]
    assert {search.horizon for search in blind} == {40} and len(set(blind)) == 1
    assert len({c.planner.cem for c in rungs if not c.open_loop}) == 1
    assert {(c.warmup_steps, c.refit_every) for c in rungs} == {(200, 40)}


def test_the_end_is_the_mean_of_the_last_two_epochs(ladder):
    rows = [{"epoch": epoch, "seed": seed, "train/return": 10.0 * epoch + seed} for epoch in (1, 2, 3) for seed in (4, 5)]
    assert ladder.returns_at_end(rows) == [29.0, 30.0]


@pytest.mark.slow
def test_it_runs_and_draws_and_does_not_run_again(tmp_path):
    command = [sys.executable, str(SCRIPT), "--quick", "--seeds", "2", "--out", str(tmp_path / "ladder")]
    first = subprocess.run(command, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr
    assert (tmp_path / "ladder" / "ladder.png").stat().st_size > 10_000
    numbers = json.loads((tmp_path / "ladder" / "ladder.json").read_text())
    assert len(numbers["rungs"]) == 4 and len(numbers["true"]) == 2
    assert all(len(rung["per_seed"]) == 2 for rung in numbers["rungs"].values())
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "ladder" / "ladder.json").read_text())["rungs"] == numbers["rungs"]
