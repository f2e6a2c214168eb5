"""The study of AutoMBPO: that it runs, draws, and continues."""

import importlib.util
import json
from pathlib import Path

import pytest

from jaxmbrl.algorithms import schedules

SCRIPT = Path(__file__).parents[2] / "experiments" / "auto_mbpo.py"


@pytest.mark.slow
def test_it_runs_and_draws_and_does_not_run_again(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("auto_mbpo_study", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.main(["--quick", "--out", str(tmp_path)])
    numbers = json.loads((tmp_path / "auto-mbpo.json").read_text())
    assert (tmp_path / "auto-mbpo.png").stat().st_size > 10_000
    assert len(numbers["returns"]) == 2 and len(numbers["returns"][0]) == 2 and len(numbers["steps"]) == 4
    table = schedules.load(tmp_path / "schedule.json")
    assert list(table.real_ratio[:4]) == numbers["best controller"]["real_ratio"]
    assert "stage 1: mean return" in capsys.readouterr().out
    again = script.main(["--quick", "--out", str(tmp_path)])
    assert again["returns"] == numbers["returns"] and again["best controller"] == numbers["best controller"]
