"""The deadly triad: the course of both examples in closed form and against plain Python, and that the study runs."""

import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "experiments" / "deadly_triad.py"


@pytest.fixture(scope="module")
def triad():
    spec = importlib.util.spec_from_file_location("deadly_triad", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sizes(triad, example, case, updates, period=20):
    rule, first = triad.cases(example, period)[case]
    return np.array(triad.course(example, rule, first, updates))


@pytest.mark.parametrize("gamma", [0.3, 0.5, 0.51, 0.9])
def test_two_states_in_closed_form(triad, gamma):
    """Per update, TD has the factor 1 + alpha (2 gamma - 1), Monte Carlo 1 - alpha; with both states updated equally often
    it is 1 + alpha (2 gamma - 5) / 2. The target network changes how fast values grow, and not whether."""
    alpha, k = 0.1, np.arange(41)
    example = triad.two_states(gamma, alpha)
    start = math.sqrt(2.5)
    for case, factor in {
        "TD": 1 + alpha * (2 * gamma - 1),
        "Monte Carlo": 1 - alpha,
        "on-policy": 1 + alpha * (2 * gamma - 5) / 2,
    }.items():
        np.testing.assert_allclose(sizes(triad, example, case, 40), start * factor**k, rtol=1e-12)
    of_period = 2 * gamma + (1 - 2 * gamma) * (1 - alpha) ** 20
    copies = sizes(triad, example, "target network", 40)[::20]
    np.testing.assert_allclose(copies, start * of_period ** np.arange(3), rtol=1e-12)
    assert triad.growth(example, 20) == pytest.approx(of_period, rel=1e-12)
    assert (of_period > 1) == (gamma > 0.5)
    # Of weights 1 + d and 1 - d: the mean grows as with TD, the difference has the factor 1 - alpha (1 + 2 gamma).
    both = (1 + alpha * (2 * gamma - 1)) ** k + 0.5 * (1 - alpha * (1 + 2 * gamma)) ** k
    np.testing.assert_allclose(sizes(triad, example, "double", 40), start * np.abs(both), rtol=1e-12)


def test_bairds_counterexample_in_plain_python(triad):
    w, gamma, alpha = [1.0] * 6 + [10.0, 1.0], 0.99, 0.01

    def value(i):
        return 2 * w[i] + w[7] if i < 6 else w[6] + 2 * w[7]

    found = []
    for _ in range(51):
        found.append(math.sqrt(sum(value(i) ** 2 for i in range(7)) / 7))
        errors = [gamma * value(6) - value(i) for i in range(7)]
        change = [0.0] * 8
        for i in range(6):
            change[i] += 2 * errors[i] / 7
            change[7] += errors[i] / 7
        change[6] += errors[6] / 7
        change[7] += 2 * errors[6] / 7
        w = [old + alpha * d for old, d in zip(w, change, strict=True)]
    np.testing.assert_allclose(sizes(triad, triad.baird(), "TD", 50), found, rtol=1e-12)


def test_what_stops_bairds_counterexample(triad):
    """The eigenvalues of the weights' own map, and courses that agree with them."""
    example = triad.baird()
    weighted = example.features.T / 7
    ours = np.eye(8) + 0.01 * weighted @ (0.99 * example.next @ example.features - example.features)
    # Weights without effect on any value do not change: a factor of 1.
    assert np.abs(np.linalg.eigvals(ours)).max() == pytest.approx(triad.growth(example, 1), rel=1e-12)
    assert triad.growth(example, 1) == pytest.approx(1.0023925, abs=1e-7)
    assert triad.growth(example, 50) > 1 > triad.growth(example, 150)
    # With a target network that is copied when the fit is complete, this is value iteration: the factor is gamma.
    assert triad.growth(example, 5000) == pytest.approx(0.99, abs=1e-5)
    td = sizes(triad, example, "TD", 3000)
    assert td[-1] / td[-2] == pytest.approx(triad.growth(example, 1), rel=1e-5)
    still = sizes(triad, example, "target network", 6000, 150)
    assert still[-1] < still[3000] < still.max() < 50
    assert sizes(triad, example, "learned features, penalty 1", 3000)[-1] < 1e-3
    assert sizes(triad, example, "learned features, penalty 0", 3000)[-1] > 1e9
    double = sizes(triad, example, "double", 3000)
    assert double[-1] / double[-2] == pytest.approx(triad.growth(example, 1), rel=1e-5)


def test_the_penalty_needs_its_critical_size(triad):
    """With two states and u = f = 1 at first it is e (2 gamma - 1) / 4 for small steps: 0.54 at gamma 0.9."""
    example = triad.two_states(0.9, 0.01)
    assert triad.critical_penalty(0.9) == pytest.approx(0.5436564)
    for c, bounded in ((0.0, False), (0.5, False), (0.6, True)):
        rule, first = triad.penalised(example, c)
        found = triad.course(example, rule, first, 2000)
        assert (found[-1] < 1e-3) == bounded and (found[-1] > 1e9) == (not bounded)


def test_the_gradient_of_the_penalty(triad):
    """Without a TD error, u = 0, an update changes F by -alpha times the gradient, here by finite differences."""
    example, c, random = triad.baird(), 2.0, np.random.default_rng(0)
    matrix = random.normal(size=(8, 8))

    def penalty(matrix):
        phi = np.maximum(example.features @ matrix.T, 0)
        return c * np.mean(np.sum(phi * phi[6], axis=1))

    rule, _ = triad.penalised(example, c)
    _, after = rule((np.zeros(8), matrix), 0)
    for i, j in ((0, 0), (3, 7), (5, 6), (7, 7)):
        step = np.zeros((8, 8))
        step[i, j] = 1e-6
        slope = (penalty(matrix + step) - penalty(matrix - step)) / 2e-6
        assert (after - matrix)[i, j] == pytest.approx(-0.01 * slope, rel=1e-5, abs=1e-9)


def test_the_study_runs(triad, tmp_path):
    triad.main(["--out", str(tmp_path)])
    written = json.loads((tmp_path / "deadly-triad.json").read_text())
    assert set(written) == {"root_mean_square_values", "growth_by_period", "environment"}
    assert (tmp_path / "deadly-triad.png").stat().st_size > 10_000
