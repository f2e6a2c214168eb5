"""The study of MPO's duals: what it reads from a run, and that it runs."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "experiments" / "mpo_duals.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("mpo_duals", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_metric_by_seed_at_the_steps_that_all_seeds_have(script):
    rows = [{"env_steps": 100 * i, "seed": s, "agent/std": float(i + 10 * s)} for i in range(1, 4) for s in range(2)]
    rows += [{"env_steps": 0, "seed": 0}, {"env_steps": 400, "seed": 1, "agent/std": 0.0}]
    steps, values = script.series(rows, "std")
    np.testing.assert_array_equal(steps, [100, 200, 300])
    np.testing.assert_array_equal(values, [[1, 2, 3], [11, 12, 13]])


@pytest.mark.slow
def test_it_runs_and_does_not_run_twice(script, tmp_path):
    first = script.main(["--quick", "--out", str(tmp_path)])
    assert first["bounds"] == {"epsilon": 0.1, "epsilon_mean": 0.01, "epsilon_std": 1e-4}
    assert first["temperature"]["steps"] and len(first["temperature"]["values"]) == 2
    made = (tmp_path / "run" / "metrics.jsonl").stat().st_mtime
    assert script.main(["--quick", "--out", str(tmp_path)])["alpha_std"] == first["alpha_std"]
    assert (tmp_path / "run" / "metrics.jsonl").stat().st_mtime == made
    assert (tmp_path / "mpo-duals.png").stat().st_size > 10_000
