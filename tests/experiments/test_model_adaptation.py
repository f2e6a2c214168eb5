"""The study of AMPO's adaptation: the distance by assignment by hand, the order of its numbers, and that the study runs."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXPERIMENTS)
        yield importlib.import_module("model_adaptation")


def test_the_distance_by_assignment(script):
    x = np.array([[0.0, 0.0], [1.0, 0.0]])
    # Matched in order, the second row would move by sqrt(2) and the first by 1.
    assert script.earth_mover(x, x[::-1] + np.array([0.0, 1.0])) == pytest.approx(1.0)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(50, 1)), rng.normal(1.0, 2.0, size=(50, 1))
    assert script.earth_mover(a, b) == pytest.approx(stats.wasserstein_distance(a[:, 0], b[:, 0]))


def test_values_by_seed_and_fit(script):
    rows = [{"seed": s, "env_steps": t, **({"x": 10 * s + t} if t > 1 else {})} for t in (1, 3, 2) for s in (1, 0)]
    steps, values = script.by_fit(rows, "x")
    assert steps == [2, 3]
    np.testing.assert_array_equal(values, [[2, 3], [12, 13]])


@pytest.mark.slow
def test_it_runs(script, tmp_path):
    script.main(["--quick", "--seeds", "2", "--steps", "600", "--out", str(tmp_path)])
    told = json.loads((tmp_path / "model-adaptation.json").read_text())
    assert np.shape(told["adaptation"]["first"]) == np.shape(told["holdout"]["mbpo"]) == (2, 5)
    assert len(told["after the run"]["W1 before"]) == 2
    assert all(np.shape(values) == (2, script.HORIZON) for values in told["compounding"].values())
    assert told["compared"]["600"]["mbpo"]["improvement"] == 0.5
    assert (tmp_path / "model-adaptation.png").stat().st_size > 10_000
