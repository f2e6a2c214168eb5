"""The study of bimodal noise: the parts of its numbers by hand, and that it runs."""

import importlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from jaxmbrl.core.types import Transition

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXPERIMENTS)
        yield importlib.import_module("bimodal_noise")


def test_the_energy_score_by_hand(script):
    """Samples 0 and 4 of the value 1: mean distances 2 from the value and 4 from each other."""
    found = script.energy_score(jnp.array([[[0.0]], [[4.0]]]), jnp.array([[1.0]]))
    assert float(found) == pytest.approx((1 + 3) / 2 - 4 / 2)


def test_the_true_density_is_that_of_the_simulator(script):
    """It has a mass of 1, and the simulator's samples have its mean and its deviation."""
    one = np.array([[np.cos(2.0), np.sin(2.0), 0.3]]), np.array([[0.2]])
    after = np.zeros((4001, 3))
    after[:, 2] = np.linspace(0.3, 1.7, 4001)
    no = np.zeros(4001, bool)
    rows = Transition(*(np.repeat(x, 4001, axis=0) for x in one), np.zeros(4001), after, no, no)
    density = np.exp(script.true_density(rows))
    assert integrate.trapezoid(density, after[:, 2]) == pytest.approx(1.0, abs=1e-3)
    mean = integrate.trapezoid(after[:, 2] * density, after[:, 2])
    variance = integrate.trapezoid((after[:, 2] - mean) ** 2 * density, after[:, 2])
    few = jax.tree.map(lambda leaf: jnp.asarray(leaf[:50]), rows)
    drawn = np.asarray(script.true_samples(few, 100, jax.random.key(0)))[..., 2]
    assert drawn.mean() == pytest.approx(mean, abs=0.01) and drawn.std() == pytest.approx(np.sqrt(variance), rel=0.03)


@pytest.mark.slow
def test_it_runs(script, tmp_path):
    script.main(["--quick", "--returns", "--out", str(tmp_path)])
    told = json.loads((tmp_path / "bimodal-noise.json").read_text())
    assert set(told["returns"]) == set(script.MODELS)
    truth = told["truth"][0]
    assert all(truth["nll"] < told[name][0]["nll"] for name in script.MODELS)
    assert (tmp_path / "bimodal-noise.png").stat().st_size > 10_000
