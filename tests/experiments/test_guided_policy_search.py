"""The study of guided policy search runs, and its controllers are those of the run."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "experiments" / "guided_policy_search.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("guided_policy_search", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_it_runs(script, tmp_path):
    found = script.main(["--quick", "--out", str(tmp_path)])
    network, local = found["network"], found["local"]
    assert np.shape(network["cost"]) == np.shape(local["cost"]) == (2, 2)
    np.testing.assert_allclose(network["first cost"], 98.696, atol=1e-3)  # no torque: 40 (pi / 2)^2
    # Without a network the policy is the controller; both improve.
    assert local["cost"] == local["cost of p"]
    assert np.all(np.array(local["cost"][-1]) < 70) and np.all(np.array(network["cost of p"][0]) < 70)
    assert (tmp_path / "guided-policy-search-pendulum-reach.png").stat().st_size > 10_000
