"""The study of the true simulator's gradients: its numbers by hand, and that it runs."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "experiments" / "gradients_of_contacts.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("gradients_of_contacts", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_slopes_and_chords_by_hand(script):
    """A parabola, whose chords are its slopes, and a staircase of flat steps, whose slopes tell nothing."""
    at = np.linspace(-1, 1, 9)
    parabola, stairs = np.stack([at**2] * 5, axis=1), np.stack([np.floor(2 * at)] * 5, axis=1)
    smooth = script.summary(at, script.Scan(parabola, 2 * np.stack([at] * 5, axis=1)))
    assert set(smooth) == {"5"}
    # Squared slopes at the seven inner points: 2.25, 1 and 0.25 twice, and 0, which are 1 on average.
    assert smooth["5"]["slopes"] == pytest.approx(1) == smooth["5"]["chords"]
    assert smooth["5"]["same sign"] == 1
    assert smooth["5"]["largest slope"] == 1.5
    steps = script.summary(at, script.Scan(stairs, 0.1 + 0 * stairs))
    # Between the neighbours of every inner point, 0.5 apart, lies one jump of 1.
    assert steps["5"]["chords"] == pytest.approx(2)
    assert steps["5"]["slopes"] == pytest.approx(0.1)


@pytest.mark.slow
def test_it_runs(script, tmp_path):
    told = script.main(["--quick", "--out", str(tmp_path)])["tasks"]["pendulum"]
    for by_horizon in told.values():
        assert by_horizon["slopes"] == pytest.approx(by_horizon["chords"], rel=0.01)
    assert (tmp_path / "gradients-of-contacts.png").stat().st_size > 10_000
