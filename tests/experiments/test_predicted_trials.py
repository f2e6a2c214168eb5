"""The study of PILCO's predicted trials: what is measured of a trial, and that it runs."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "experiments" / "predicted_trials.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("predicted_trials", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    jax.config.update("jax_enable_x64", False)


def test_costs_and_the_share_within_two_deviations_by_hand(script):
    """A trial of 4 steps of half a second: the last second is the last two. Deviations are 0.5 and 1."""
    task = SimpleNamespace(env=SimpleNamespace(dt=0.5))
    observation = np.array([[0.9, 0.0], [1.1, 0.0], [0.0, 1.9], [0.0, -2.1]])
    belief = SimpleNamespace(mean=np.zeros((4, 2)), covariance=np.tile(np.diag([0.25, 1.0]), (4, 1, 1)))
    predicted = SimpleNamespace(belief=belief, reward=np.array([0.1, 0.2, 0.3, 0.4]))
    trials = [script.Trial(observation, np.array([0.0, 0.5, 0.9, 0.7]), of) for of in (None, predicted)]
    first, second = script.numbers_of(task, trials)
    assert first == pytest.approx({"cost": 1.9, "last_second": 0.2})
    assert second == pytest.approx({"cost": 1.9, "last_second": 0.2, "predicted_cost": 3.0, "within_two": 6 / 8})


@pytest.mark.slow
def test_it_runs(script, tmp_path):
    found = script.main(["--quick", "--seeds", "1", "--trials", "1", "--out", str(tmp_path)])
    assert json.loads((tmp_path / "predicted-trials-pilco-pendulum.json").read_text()) == found
    assert len(found["trials"]["0"]) == 2 and (tmp_path / "predicted-trials-pilco-pendulum-0.png").stat().st_size > 1000
