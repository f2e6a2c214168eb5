"""Exact moments: the numbers of PILCO's formulas computed apart in NumPy, quadrature, and the limit of a belief that is a
point."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl.core.types import SaturatingReward
from jaxmbrl.envs.base import angle_features, saturating_reward
from jaxmbrl.models import moments
from jaxmbrl.models.gaussian_process import Hyperparameters, Posterior, regression
from jaxmbrl.models.moments import Gaussian

X = np.array([[0.0, 0.0], [1.0, 0.5], [-0.5, 1.0]])
Y = np.array([[0.0, 1.0], [0.8, 0.2], [-0.4, 0.5]])
SCALE = np.array([[1.0, 1.5], [0.8, 2.0]])
SIGNAL, NOISE = np.array([1.0, 0.5]), np.array([0.01, 0.02])
MEAN, COVARIANCE = np.array([0.3, 0.2]), np.array([[0.2, 0.05], [0.05, 0.1]])


@pytest.fixture(autouse=True)
def in_float64(x64):
    pass


def by_hand(padding=0):
    """The process of two outputs and three rows, with `padding` rows that are no data."""
    hyper = (np.log(SCALE), 0.5 * np.log(SIGNAL), 0.5 * np.log(NOISE))
    inputs, targets = (np.concatenate([part, np.full((padding, 2), 7.0)]) for part in (X, Y))
    return fitted(Hyperparameters(*hyper), inputs, targets, np.arange(3 + padding) < 3)


@jax.jit
def fitted(hyper, inputs, targets, mask):
    weights, precision = jax.vmap(regression.exact, in_axes=(0, None, 1, None))(hyper, inputs, targets, mask)
    return Posterior(inputs, hyper, weights, precision, jnp.zeros(targets.shape[1]))


through_process = jax.jit(moments.through_process)
through_basis_functions = jax.jit(moments.through_basis_functions)
with_angles = jax.jit(moments.with_angles, static_argnums=1)
squashed = jax.jit(moments.squashed)


def quadrature(function, mean, covariance, nodes=24):
    """(mean, covariance, cov(x, f)) of a NumPy function of rows, by Gauss-Hermite quadrature."""
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    weights = weights / weights.sum()
    size = len(mean)
    grid = np.array([*itertools.product(points, repeat=size)])
    weight = np.prod(np.array([*itertools.product(weights, repeat=size)]), axis=1)
    rows = mean + grid @ np.linalg.cholesky(covariance).T
    values = function(rows)
    first = weight @ values
    return (
        first,
        (values - first).T @ (weight[:, None] * (values - first)),
        (rows - mean).T @ (weight[:, None] * (values - first)),
    )


@pytest.mark.parametrize("padding", [0, 4])
def test_a_process_has_the_moments_that_were_computed_apart(padding):
    """Rows of padding count nowhere, neither in the mean nor in the trace of the variance."""
    belief = Gaussian(jnp.asarray(MEAN), jnp.asarray(COVARIANCE))
    found = through_process(belief, by_hand(padding))
    np.testing.assert_allclose(found.mean, [0.2571160, 0.6957036], atol=1e-7)
    np.testing.assert_allclose(found.covariance, [[0.1670420, -0.0572836], [-0.0572836, 0.1027121]], atol=1e-7)
    np.testing.assert_allclose(COVARIANCE @ found.gain, [[0.1451527, -0.0767594], [0.0349006, -0.0294652]], atol=1e-7)
    np.testing.assert_allclose(jax.jit(moments.mean_of_process)(belief, by_hand(padding)), found.mean, atol=1e-14)


def test_a_process_agrees_with_quadrature():
    """Of the mean function; the variance of the function itself is added to the variance."""
    process = by_hand()
    predict = jax.jit(lambda rows: regression.predict(process, rows))
    mean, covariance, crossed = quadrature(lambda rows: np.asarray(predict(rows)[0]), MEAN, COVARIANCE)
    own, *_ = quadrature(lambda rows: np.asarray(predict(rows)[1]), MEAN, COVARIANCE)
    belief = Gaussian(jnp.asarray(MEAN), jnp.asarray(COVARIANCE))
    for of, extra in ((through_process, own), (through_basis_functions, np.zeros(2))):
        found = of(belief, process)
        np.testing.assert_allclose(found.mean, mean, atol=1e-10)
        np.testing.assert_allclose(found.covariance, covariance + np.diag(extra), atol=1e-8)
        np.testing.assert_allclose(COVARIANCE @ found.gain, crossed, atol=1e-8)


def test_of_a_point_the_moments_are_the_prediction_and_its_slope():
    process, point = by_hand(), jnp.asarray(MEAN)
    found = through_process(Gaussian(point, jnp.zeros((2, 2))), process)
    np.testing.assert_allclose(found.mean, [0.2685987, 0.8364302], atol=1e-7)
    np.testing.assert_allclose(np.diag(found.covariance), [0.0344401, 0.0392085], atol=1e-7)
    mean, variance = jax.jit(regression.predict)(process, point[None])
    np.testing.assert_allclose(found.mean, mean[0], atol=1e-14)
    np.testing.assert_allclose(found.covariance, np.diag(variance[0]), atol=1e-14)
    slope = jax.jit(jax.jacobian(lambda x: regression.predict_mean(process, x[None])[0]))(point)
    np.testing.assert_allclose(found.gain.T, slope, atol=1e-13)


def test_an_offset_moves_the_mean_alone():
    process, belief = by_hand(), Gaussian(jnp.asarray(MEAN), jnp.asarray(COVARIANCE))
    plain = through_process(belief, process)
    moved = through_process(belief, process._replace(offset=jnp.array([3.0, -1.0])))
    np.testing.assert_allclose(moved.mean, plain.mean + np.array([3.0, -1.0]), atol=1e-14)
    np.testing.assert_allclose(moved.covariance, plain.covariance, atol=1e-13)


def test_sine_and_cosine():
    found = with_angles(Gaussian(jnp.array([0.3]), jnp.array([[0.5]])), (0,))
    np.testing.assert_allclose(found.mean, [0.2301514, 0.7440168], atol=1e-7)
    np.testing.assert_allclose(found.covariance, [[0.2952183, -0.0673763], [-0.0673763, 0.0982510]], atol=1e-7)
    np.testing.assert_allclose(found.gain, [[0.7440168, -0.2301514]], atol=1e-7)


@pytest.mark.parametrize("angles", [(), (1,), (2, 0)])
def test_features_of_angles_agree_with_quadrature(angles):
    mean = np.array([0.4, -1.1, 2.0])
    factor = np.array([[0.5, 0, 0], [0.2, 0.6, 0], [-0.3, 0.1, 0.4]])
    covariance = factor @ factor.T
    encode = jax.jit(angle_features(3, angles).encode)
    expected = quadrature(lambda rows: np.asarray(encode(rows)), mean, covariance)
    found = with_angles(Gaussian(jnp.asarray(mean), jnp.asarray(covariance)), angles)
    for part, due in zip((found.mean, found.covariance, covariance @ found.gain), expected, strict=True):
        np.testing.assert_allclose(part, due, atol=1e-9)


def test_the_squashed_action():
    found = squashed(Gaussian(jnp.array([0.3]), jnp.array([[0.5]])))
    numbers = [float(part.squeeze()) for part in found]
    np.testing.assert_allclose(numbers, [0.2692405, 0.4177615, 0.8615879], atol=1e-7)
    mean, covariance = np.array([0.3, -0.8]), np.array([[0.3, 0.1], [0.1, 0.2]])
    expected = quadrature(lambda rows: (9 * np.sin(rows) + np.sin(3 * rows)) / 8, mean, covariance, 40)
    found = squashed(Gaussian(jnp.asarray(mean), jnp.asarray(covariance)))
    for part, due in zip((found.mean, found.covariance, covariance @ found.gain), expected, strict=True):
        np.testing.assert_allclose(part, due, atol=1e-9)
    np.testing.assert_allclose(moments.squash(jnp.array([np.pi / 2, -np.pi / 2, 0.1])), [1, -1, 0.1492], atol=1e-3)


@pytest.mark.parametrize("variance", [0.0, 1e-9, 30.0, 400.0, 1e5])
def test_the_squashed_action_of_any_variance(variance):
    """The variance and its derivative by the argument's, in closed form: sines of two arguments, of the variances v and 9 v
    and the covariance 3 v. For large v, sines are uniform and independent: (9^2 + 1) / 8^2 / 2."""
    mean, weights, sizes = 0.3, np.array([9, 1]) / 8, np.array([1.0, 3.0])
    between, average = np.outer(sizes, sizes), 0.5 * np.add.outer(sizes**2, sizes**2)
    minus, plus = np.cos(mean * np.subtract.outer(sizes, sizes)), np.cos(mean * np.add.outer(sizes, sizes))
    up, down, none = (np.exp(variance * (exponent - average)) for exponent in (between, -between, 0.0))
    slopes = (between - average) * up - none * -average, (-between - average) * down - none * -average
    due = 0.5 * weights @ ((up - none) * minus - (down - none) * plus) @ weights
    slope = 0.5 * weights @ (slopes[0] * minus - slopes[1] * plus) @ weights
    found, gradient = jax.jit(
        jax.value_and_grad(lambda v: squashed(Gaussian(jnp.array([mean]), v.reshape(1, 1))).covariance[0, 0])
    )(jnp.array(variance))
    np.testing.assert_allclose([found, gradient], [due, slope], atol=1e-14)
    np.testing.assert_allclose(found, {0.0: 0.0, 1e-9: slope * 1e-9}.get(variance, 82 / 128), rtol=1e-6)


def test_the_saturating_reward():
    reward = SaturatingReward(np.diag([2.0, 1.0]), np.zeros(2))
    mean, variance = moments.saturating(Gaussian(jnp.asarray(MEAN), jnp.asarray(COVARIANCE)), reward)
    assert 1 - float(mean) == pytest.approx(0.3634594, abs=1e-7)
    assert float(variance) == pytest.approx(0.0811274, abs=1e-7)
    # A distance of fewer numbers than features, from another target.
    reward = SaturatingReward(np.array([[1.5, -0.5]]), np.array([0.2, 1.0]))
    first, second, _ = quadrature(
        lambda rows: np.asarray(saturating_reward(reward, jnp.asarray(rows)))[:, None], MEAN, COVARIANCE
    )
    mean, variance = moments.saturating(Gaussian(jnp.asarray(MEAN), jnp.asarray(COVARIANCE)), reward)
    np.testing.assert_allclose([mean, variance], [first[0], second[0, 0]], atol=1e-10)
    point, certain = moments.saturating(Gaussian(jnp.asarray(MEAN), jnp.zeros((2, 2))), reward)
    np.testing.assert_allclose(point, saturating_reward(reward, jnp.asarray(MEAN)), atol=1e-15)
    assert abs(float(certain)) < 1e-15


def test_linear_functions_in_turn_are_their_product():
    """x -> [A x, B A x] and x + C [A x, B A x], which are linear: by hand."""
    random = np.random.default_rng(0)
    a, b, c = random.normal(size=(2, 2)), random.normal(size=(1, 2)), random.normal(size=(2, 3))
    belief = Gaussian(jnp.asarray(MEAN), jnp.asarray(COVARIANCE))
    first = moments.linear(belief, jnp.asarray(a), jnp.zeros(2))
    second = moments.linear(first.belief, jnp.asarray(b), jnp.ones(1))
    inputs = moments.joined(belief, first, second)
    whole = np.concatenate([a, b @ a])
    np.testing.assert_allclose(inputs.mean, whole @ MEAN + [0, 0, 1], atol=1e-14)
    np.testing.assert_allclose(inputs.covariance, whole @ COVARIANCE @ whole.T, atol=1e-14)
    np.testing.assert_allclose(inputs.gain, whole.T, atol=1e-14)
    change = moments.linear(inputs.belief, jnp.asarray(c), jnp.zeros(2))
    after = moments.changed(belief, inputs, change)
    matrix = np.eye(2) + c @ whole
    np.testing.assert_allclose(after.mean, matrix @ MEAN + c @ [0, 0, 1], atol=1e-14)
    np.testing.assert_allclose(after.covariance, matrix @ COVARIANCE @ matrix.T, atol=1e-14)


def test_variances_are_nowhere_negative_in_float64_and_wrong_in_float32():
    """120 rows of smooth data at a signal-to-noise ratio of 300: the reason for asking for float64."""
    random = np.random.default_rng(0)
    angle = random.uniform(-np.pi, np.pi, 120)
    inputs = np.column_stack([random.normal(0, 4, 120), np.sin(angle), np.cos(angle), random.uniform(-2.5, 2.5, 120)])
    target = 0.1 * (3 * inputs[:, 3] - 14.7 * inputs[:, 1] - 0.03 * inputs[:, 0])
    target = target + 0.01 * np.random.default_rng(1).normal(size=120)

    def variance(kind):
        log = [np.log([[8.0, 2.0, 2.0, 5.0]]), 0.5 * np.log([4 * np.var(target)])]
        hyper = Hyperparameters(*(np.asarray(x, kind) for x in (*log, log[1] - np.log(300.0))))
        process = fitted(hyper, inputs.astype(kind), target[:, None].astype(kind), np.ones(120, bool))
        belief = Gaussian(np.array([1.0, 0.3, 0.9, 0.5], kind), np.diag([0.3, 0.02, 0.01, 0.2]).astype(kind))
        found = through_process(belief, process).covariance
        assert found.dtype == kind
        return float(found[0, 0])

    exact = variance(np.float64)
    with jax.enable_x64(False):
        rounded = variance(np.float32)
    assert exact > 0 and not abs(rounded - exact) < 0.5 * exact
