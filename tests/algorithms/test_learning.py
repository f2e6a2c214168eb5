"""Learning tier: every method reaches the first goal of its record, by the script that measures the goals."""

import subprocess
import sys
from pathlib import Path

import pytest

from jaxmbrl import algorithms
from jaxmbrl.training.run_folder import RunFolder

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "learning.py"


@pytest.mark.slow
@pytest.mark.parametrize("name", algorithms.METHODS)
def test_it_reaches_the_first_goal_of_its_record(name, tmp_path):
    case = algorithms.get(name).goals[0].name
    folders = ["--out", tmp_path / "results", "--runs", tmp_path / "runs"]
    done = subprocess.run([sys.executable, SCRIPT, case, *folders], check=False)
    assert done.returncode == 0, "fewer seeds reach the goal than it requires"
    assert not any(row.get("frozen", False) for row in RunFolder.open(tmp_path / "runs" / case).read_metrics())
