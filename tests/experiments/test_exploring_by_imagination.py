"""The study of exploration by imagination: first visits of the goal, and that it runs."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "experiments" / "exploring_by_imagination.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("exploring_by_imagination", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_first_visits_and_their_share_of_the_seeds(script):
    visits = script.first_visits(np.array([[0, 0, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0]]))
    assert visits == [3, None, 1]
    np.testing.assert_allclose(script.share_of_seeds(visits, np.array([0, 1, 2, 3, 9])), [0, 1 / 3, 1 / 3, 2 / 3, 2 / 3])


def test_the_table_counts_steps_of_the_task_and_names_seeds_that_never_arrive(script):
    of_run = {"first_visit": [3, None], "final": [90.04, -1.0]}
    lines = script.table(
        {"action_repeat": 4, "plan2explore": of_run, "dreamer": of_run, "uniform": {"first_visit": [5, 7]}}
    ).splitlines()
    assert lines[2] == "| `plan2explore` | 12, never | never | 90.0, -1.0 |"
    assert lines[4] == "| `uniform` | 20, 28 | 24 | - |"


@pytest.mark.slow
def test_it_runs_and_does_not_run_twice(script, tmp_path):
    first = script.main(["--quick", "--out", str(tmp_path)])
    for method in script.METHODS:
        assert np.shape(first[method]["returns"]) == (2, 4) and len(first[method]["first_visit"]) == 2
    made = (tmp_path / "dreamer" / "metrics.jsonl").stat().st_mtime
    assert script.main(["--quick", "--out", str(tmp_path)])["dreamer"] == first["dreamer"]
    assert (tmp_path / "dreamer" / "metrics.jsonl").stat().st_mtime == made
    assert (tmp_path / "exploring-by-imagination.png").stat().st_size > 10_000
