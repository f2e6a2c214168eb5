"""The study of score function and pathwise derivative: its numbers in closed form and by hand, and that it runs."""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "experiments" / "score_or_path.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("score_or_path", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_one_step_in_closed_form(script):
    """By Gauss-Hermite quadrature, which is exact for these polynomials of the noise, of degree 6 at most."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(8)
    weights /= weights.sum()
    found = script.one_step(nodes)
    for name, variance in ((script.SCORE, 13.4625), (script.BASELINE, 4.32), (script.PATH, 0.16)):
        mean = weights @ found[name]
        assert mean == pytest.approx(1.4)
        assert weights @ (found[name] - mean) ** 2 == pytest.approx(variance)


def value(gain, sigma, horizon, m):
    """J_H of the linear task from E s_0^2 = m."""
    total = 0.0
    for t in range(horizon):
        total -= 0.95**t * (m + 0.1 * (gain**2 * m + sigma**2)) / 2
        m = (0.9 + 0.5 * gain) ** 2 * m + (0.5 * sigma) ** 2 + 0.1**2
    return total


@pytest.mark.parametrize(("gain", "horizon"), [(-0.4, 1), (-0.4, 7), (0.4, 50)])
def test_the_exact_gradient_is_the_slope_of_the_value(script, gain, horizon):
    around = [value(gain + change, 0.2, horizon, 1.0) for change in (1e-6, -1e-6)]
    assert script.exact_gradient(gain, 0.2, horizon) == pytest.approx((around[0] - around[1]) / 2e-6, rel=1e-7)


def test_the_exact_gradient_of_many_steps(script):
    assert script.exact_gradient(-0.4, 0.2, 1000) == pytest.approx(-1.5285, abs=1e-4)


def test_estimates_of_two_trajectories_by_hand(script, monkeypatch):
    monkeypatch.setattr(script, "DISCOUNT", 0.5)
    rewards = np.array([[1.0, 2.0], [4.0, -2.0], [100.0, 100.0]])
    scores, slopes = np.array([[[3.0, 1.0], [2.0, 1.0], [9.0, 9.0]]]), np.array([[[1.0, 0.0], [2.0, 6.0], [9.0, 9.0]]])
    found = script.estimates(rewards, slopes, scores, 2)
    # Rewards to go 1 + 2 = 3 and 2 for the first trajectory, 2 - 1 = 1 and -1 for the second.
    np.testing.assert_allclose(found[script.SCORE], [[3 * 3 + 2 * 2, 1 * 1 - 1 * 1]])
    # The baseline of a trajectory is the other's.
    np.testing.assert_allclose(found[script.BASELINE], [[3 * (3 - 1) + 2 * (2 + 1), 1 * (1 - 3) + 1 * (-1 - 2)]])
    np.testing.assert_allclose(found[script.PATH], [[1 + 0.5 * 2, 0.5 * 6]])
    told = script.measured(found[script.PATH])
    assert told["mean"] == [2.5] and told["deviation"] == pytest.approx(np.sqrt(0.5))
    assert told["error"] == [pytest.approx(0.5)]


def test_estimators_are_unbiased_on_the_linear_task(script):
    """Within four standard errors, and the path's derivative has the smaller ones."""
    case = script.Case(script.linear_world(), lambda key, n: jax.random.normal(key, (n, 1)), (-0.4,), 0.2)
    run = jax.jit(lambda key: script.derivatives(case, 4000, 5, key))
    of_rows = [np.asarray(x, np.float64) for x in run(jax.random.key(0))]
    found = {name: script.measured(of) for name, of in script.estimates(*of_rows, 5).items()}
    exact = script.exact_gradient(-0.4, 0.2, 5)
    for of in found.values():
        assert abs(of["mean"][0] - exact) < 4 * of["error"][0]
    assert found[script.PATH]["error"][0] < 0.03 * abs(exact)
    assert found[script.PATH]["deviation"] < found[script.BASELINE]["deviation"] < found[script.SCORE]["deviation"]


@pytest.mark.slow
def test_it_runs(script, tmp_path):
    told = script.main(["--quick", "--out", str(tmp_path)])
    for task in ("linear", "unstable", "pendulum"):
        true, learned = (told[task][model][script.SCORE]["2"] for model in ("true", "learned"))
        assert true["deviation"] > 0 and learned["deviation"] > 0
    assert (tmp_path / "score-or-path.png").stat().st_size > 10_000
