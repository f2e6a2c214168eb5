"""The study of demonstrations: its drivers, and that it runs."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from jaxmbrl import envs

SCRIPT = Path(__file__).parents[2] / "experiments" / "demonstrations.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("demonstrations", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def in_python(position):
    """The steps and the positions of the scripted driver on MountainCar-v0, in float64."""
    velocity, seen = 0.0, [position]
    while position < 0.5:
        push = 0.001 if velocity >= 0 else -0.001
        velocity = np.clip(velocity + push - 0.0025 * np.cos(3 * position), -0.07, 0.07)
        position = np.clip(position + velocity, -1.2, 0.6)
        velocity = 0.0 if position <= -1.2 and velocity < 0 else velocity
        seen.append(position)
    return seen


def test_the_scripted_driver_reaches_the_goal(script):
    rows = script.episodes(envs.make("MountainCar-v0"), "scripted", 3)
    ends = np.flatnonzero(rows.terminated)
    assert len(ends) == 3 and ends[-1] == len(rows.reward) - 1 and not rows.truncated.any()
    returns = script.returns(rows)
    for start, end, total in zip([0, *ends[:-1] + 1], ends, returns, strict=True):
        positions = in_python(float(rows.observation[start, 0]))
        assert -total == end - start + 1 == len(positions) - 1
        np.testing.assert_allclose(rows.next_observation[start : end + 1, 0], positions[1:], atol=1e-4)


@pytest.mark.slow
def test_it_runs(script, tmp_path):
    given = ["--quick", "--seeds", "2", "--out", str(tmp_path), "--only", "sac-demonstrations", "dqfd-demonstrations"]
    found = script.main(given)
    told = json.loads((tmp_path / "demonstrations.json").read_text())
    assert told["cases"].keys() == found.keys() == {"sac-demonstrations", "dqfd-demonstrations"}
    for case in told["cases"].values():
        assert len(case["per_seed"]) == 2 and len(case["demonstrated"]) == 10
    assert (tmp_path / "scripted-MountainCar-v0.npz").exists()
