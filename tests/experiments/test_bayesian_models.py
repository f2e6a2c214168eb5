"""The study of dynamics models: its data, the parts of its numbers by hand, and that it runs."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXPERIMENTS)
        yield importlib.import_module("bayesian_models")


def test_rows_of_the_curve_are_in_their_regions_with_the_noise(script):
    for region, intervals in script.REGIONS.items():
        rows = script.points(region, 2000, 0)
        x, y = np.asarray(rows.observation)[:, 0], np.asarray(rows.next_observation)[:, 0]
        inside = [(low <= x) & (x <= high) for low, high in intervals]
        assert np.any(inside, axis=0).all() and all(part.mean() > 0.45 for part in inside)
        assert np.std(y - np.sin(1.5 * x)) == pytest.approx(0.1, rel=0.05)


def test_the_ratio_and_the_table_are_means_over_seeds(script):
    names = ("error", "aleatoric", "nll", "miscalibration")
    rows = [dict.fromkeys(names, 0.0) | {"epistemic": value} for value in (1.0, 3.0, 6.0, 10.0)]
    found = {"a model": {"data": rows[:2], "beyond": rows[2:]}}
    assert script.ratio(found["a model"]) == pytest.approx(4.0)
    lines = script.table(found, ("data", "beyond")).splitlines()
    assert [line.split()[-3] for line in lines] == ["epistemic", "2.000", "8.000"]


@pytest.mark.slow
def test_it_runs(script, tmp_path):
    script.main(["--quick", "--returns", "--out", str(tmp_path)])
    told = json.loads((tmp_path / "bayesian-models.json").read_text())
    assert list(told["ratios"]) == list(script.MODELS) == list(told["swingup"])
    # The Gaussian process needs no epochs.
    assert told["ratios"]["Gaussian process"] > script.GOAL
    assert told["curve"]["Gaussian process"]["data"][0]["aleatoric"] == pytest.approx(0.1, rel=0.2)
    assert all(np.shape(of["returns"]) == (1, 6) for of in told["returns"].values())
    assert (tmp_path / "bayesian-models.png").stat().st_size > 10_000
