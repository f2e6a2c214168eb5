"""Pictures: every dimension is drawn from the numbers given, and every axis says what it shows."""

import io
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from jaxmbrl.core.config import UserError
from jaxmbrl.diagnostics import (
    CompoundingError,
    ImaginedVsReal,
    ModelEvaluation,
    plot_calibration,
    plot_compounding_error,
    plot_imagined_vs_real,
    plot_model_evaluation,
    plot_scatter,
    plot_value_bias,
    value_bias,
)
from jaxmbrl.diagnostics.calibrating import calibrate
from jaxmbrl.diagnostics.plotting import dimension_names

RNG = np.random.default_rng(0)


compiled = jax.jit(calibrate)


def calibrated(size=2, rows=300):
    mean, deviation = RNG.normal(size=(3, rows, size)), RNG.uniform(0.2, 1.5, (3, rows, size))
    return compiled(mean, deviation**2, mean[0] + deviation[0] * RNG.normal(size=(rows, size)))


def evaluated(size=3, reward=True, rows=50):
    count = size + reward
    observed = RNG.normal(size=(rows, count))
    values = {
        name: RNG.uniform(0.01, 1, count) for name in ("error", "unexplained", "aleatoric", "epistemic", "mixture_nll")
    }
    return ModelEvaluation(
        **values,
        member_nll=RNG.normal(size=(4, count)),
        calibration=calibrated(count),
        predicted=observed + 0.1,
        observed=observed,
        learns_reward=reward,
    )


def compounded(size=5, horizon=7, members=3):
    numbers = RNG.uniform(0.1, 3, (2 * members + 4, horizon, size))
    return CompoundingError(
        members=numbers[:members],
        mean=numbers[-1],
        persistence=numbers[-2],
        scaled_members=numbers[members : 2 * members, :, 0],
        scaled_mean=numbers[-3, :, 0],
        scaled_persistence=numbers[-4, :, 0],
        scale=np.ones(size),
        starts=np.arange(11),
    )


def imagined(size=5, horizon=7, reward=True):
    def draw(*lanes):
        return RNG.normal(size=(*lanes, horizon + 1, size))

    def rewards(*lanes):
        return RNG.normal(size=(*lanes, horizon)) if reward else None

    return ImaginedVsReal(draw(), draw(), draw(3), draw(4), RNG.normal(size=horizon), rewards(), rewards(3), rewards(4))


def looked_at(figure):
    """Render it; every axes with data has names on both axes, and the picture shows something."""
    assert type(figure) is Figure
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=50)
    with Image.open(picture) as image:
        assert np.asarray(image.convert("L"), float).std() > 10
    return figure.axes


def data(line):
    return np.asarray(line.get_ydata(), float)


def holds(axes, values):
    """Whether some line of the axes has exactly these values."""
    return any(np.array_equal(data(line), values, equal_nan=True) for line in axes.get_lines())


def test_a_scatter_has_a_panel_for_every_dimension():
    found = evaluated()
    panels = looked_at(plot_scatter(found, ["x", "speed", "angle"]))
    assert len(panels) == 4
    for d, (axes, name) in enumerate(zip(panels, ("x", "speed", "angle", "reward"), strict=True)):
        points = axes.get_lines()[1]
        np.testing.assert_array_equal(points.get_xdata(), found.observed[:, d])
        np.testing.assert_array_equal(points.get_ydata(), found.predicted[:, d])
        change = "" if d == 3 else " change"
        assert (axes.get_xlabel(), axes.get_ylabel()) == (f"observed{change}", f"predicted{change}")
        assert axes.get_title(loc="left") == name
        ends = [found.observed[:, d].min(), found.observed[:, d].max()]
        np.testing.assert_array_equal(axes.get_lines()[0].get_data(), [ends, ends])


def test_what_never_varied_is_said_to():
    found = evaluated(1, False)
    panels = looked_at(plot_scatter(found._replace(unexplained=np.array([np.nan]))))
    assert panels[0].texts[0].get_text() == "never varied" and panels[0].get_xlabel() == "observed change"


def test_an_evaluation_has_a_line_for_every_dimension():
    found = evaluated()
    errors, unexplained, likelihood, quantiles = looked_at(plot_model_evaluation(found))
    told = [text.get_text() for text in errors.get_yticklabels()]
    assert told == ["observation 0", "observation 1", "observation 2", "reward"]
    for axes, values in (
        (errors, [found.error, found.aleatoric, found.epistemic]),
        (unexplained, [found.unexplained]),
        (likelihood, [found.mixture_nll]),
        (quantiles, [np.asarray(found.calibration.error)]),
    ):
        drawn = [np.asarray(line.get_xdata()) for line in axes.get_lines()]
        assert all(any(np.array_equal(line, value) for line in drawn) for value in values)
        assert axes.get_xlabel() and axes.get_title()
    bands = likelihood.collections[0].get_segments()
    spans = [[*segment[:, 0]] for segment in bands]
    np.testing.assert_allclose(spans, np.stack([found.member_nll.min(axis=0), found.member_nll.max(axis=0)], axis=1))
    assert errors.get_xscale() == "log"


def test_an_evaluation_without_density_or_error_is_drawn():
    """A perfect deterministic model: zeros have no logarithm, and a likelihood is not there."""
    found = evaluated(1, False)
    nothing, unknown = np.zeros(1), np.full(1, np.nan)
    found = found._replace(error=nothing, unexplained=unknown, aleatoric=nothing, epistemic=nothing)
    panels = looked_at(plot_model_evaluation(found._replace(mixture_nll=unknown, member_nll=np.full((2, 1), np.nan))))
    assert [axes.get_xscale() for axes in panels] == ["linear"] * 4


def test_calibrations_by_their_names():
    good = calibrated()
    bad = good._replace(shares=jnp.asarray(np.asarray(good.shares) ** 3), error=jnp.array([0.2, 0.3]))
    (axes,) = looked_at(plot_calibration({"in": good, "out": bad}))
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["perfect", f"in: error {float(good.error.mean()):.3f}", "out: error 0.250"]
    # The diagonal, then two dimensions and their mean for each.
    lines = axes.get_lines()
    assert len(lines) == 1 + 2 * 3
    for d in range(2):
        np.testing.assert_allclose(data(lines[4 + d]), np.asarray(bad.shares)[:, d])
    np.testing.assert_allclose(data(lines[6]), np.asarray(bad.shares).mean(axis=1))
    assert axes.get_xlabel() and axes.get_ylabel()
    (alone,) = looked_at(plot_calibration(good))
    assert alone.get_legend().get_texts()[1].get_text().startswith("observed: error ")


def test_compounding_errors_of_every_dimension():
    found = compounded()
    whole, *panels = looked_at(plot_compounding_error(found, list("abcde")))
    assert (whole.get_xlabel(), whole.get_ylabel()) == ("imagined steps", "error in standard\ndeviations of the data")
    assert "11 starts" in whole.get_title(loc="left")
    for line in (*found.scaled_members, found.scaled_mean, found.scaled_persistence):
        assert holds(whole, line)
    assert [axes.get_title(loc="left") for axes in panels] == list("abcde")
    for d, axes in enumerate(panels):
        for line in (*found.members[:, :, d], found.mean[:, d], found.persistence[:, d]):
            assert holds(axes, line)
        np.testing.assert_array_equal(axes.get_lines()[0].get_xdata(), np.arange(1, 8))
        assert axes.get_xlabel() == "imagined steps" and (axes.get_ylabel() or d % 4)


@pytest.mark.parametrize("horizon", [1, 5])
def test_errors_of_nothing_or_beyond_all_bounds_are_drawn(horizon):
    found = compounded(2, horizon, 1)
    found.members[:, 0] = 0.0
    found.mean[-1] = np.inf
    panels = looked_at(plot_compounding_error(found))
    assert len(panels) == 1 + found.mean.shape[1]
    assert all(np.isfinite(axes.get_ylim()).all() for axes in panels)


def test_imagined_trajectories_of_every_dimension():
    found = imagined()
    panels = looked_at(plot_imagined_vs_real(found, list("abcde")))
    assert [axes.get_ylabel() for axes in panels] == [*"abcde", "reward of the step"]
    for d, axes in enumerate(panels[:5]):
        for line in (found.real, found.mean, *found.members, *found.particles):
            assert holds(axes, line[:, d])
        assert axes.get_xlabel() == "steps from the start"
        np.testing.assert_array_equal(axes.get_lines()[0].get_xdata(), np.arange(8))
    for line in (found.real_reward, found.mean_reward, *found.members_reward, *found.particles_reward):
        assert holds(panels[5], line)
    np.testing.assert_array_equal(panels[5].get_lines()[0].get_xdata(), np.arange(1, 8))


def test_a_reward_that_nobody_knows_has_no_panel():
    assert len(looked_at(plot_imagined_vs_real(imagined(reward=False)))) == 5


def test_what_is_imagined_far_off_does_not_hide_the_real():
    found = imagined(1, 5, False)
    found.particles[0, -1] = 1e9
    found.particles[1, -1] = np.inf
    (axes,) = looked_at(plot_imagined_vs_real(found))
    low, high = axes.get_ylim()
    room = np.ptp(found.real)
    assert low < found.real.min() and found.real.max() < high
    assert high - low < 6 * room


def test_values_beside_returns():
    found = value_bias(np.array([1.0, 2.0, 3.0]), np.array([0.0, 2.0, 5.0]))
    scatter, differences = looked_at(plot_value_bias(found))
    np.testing.assert_array_equal(scatter.get_lines()[1].get_data(), [found.returns, found.q])
    assert (scatter.get_xlabel(), scatter.get_ylabel()) == ("discounted return that followed", "value Q")
    assert (differences.get_xlabel(), differences.get_ylabel()) == ("Q - return", "rows")
    assert sum(bar.get_height() for bar in differences.patches) == 3
    assert f"bias {found.bias:.3g}" in differences.get_title(loc="left")
    np.testing.assert_allclose(differences.get_lines()[1].get_xdata(), found.bias)


def test_names_are_of_the_observation():
    assert dimension_names(3, True, ["a", "b"]) == ["a", "b", "reward"]
    with pytest.raises(UserError, match="names must be 2, one for each observation dimension, got 3"):
        dimension_names(3, True, ["a", "b", "reward"])


def test_matplotlib_waits_for_the_first_picture():
    code = "import sys, jaxmbrl.diagnostics; assert 'matplotlib' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
