"""The parts of the ensemble's loss on a few rows, by hand."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl.models.ensemble.loss import gaussian_loss, termination_loss

MEAN = np.array([[1.0], [0.0], [-1.0], [2.0]])
TARGET = np.array([[1.0], [2.0], [-3.0], [5.0]])
LOG_VARIANCE = np.log([[1.0], [4.0], [2.0], [1.0]])


@functools.partial(jax.jit, static_argnums=1)
def loss_and_slope(log_variance, beta):
    """Each row's loss, and the gradient of their sum by the log-variance."""

    def summed(log_variance):
        loss = gaussian_loss(jnp.asarray(MEAN), log_variance, jnp.asarray(TARGET), beta)
        return jnp.sum(loss), loss

    slope, loss = jax.grad(summed, has_aux=True)(log_variance)
    return loss[:, 0], slope[:, 0]


def test_gaussian_loss_of_four_rows():
    expected = [0.0, 4 / 4 + math.log(4), 4 / 2 + math.log(2), 9.0]
    np.testing.assert_allclose(loss_and_slope(LOG_VARIANCE, 0.0)[0], expected, rtol=1e-6)
    weighted = np.array(expected) * [1, math.sqrt(4), math.sqrt(2), 1]
    np.testing.assert_allclose(loss_and_slope(LOG_VARIANCE, 0.5)[0], weighted, rtol=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_no_gradient_flows_through_the_weights_of_beta(beta):
    """d/dl of exp(beta l) [(m - y)^2 exp(-l) + l] with the weight constant."""
    _, slope = loss_and_slope(LOG_VARIANCE, beta)
    weight = np.array([1.0, 4.0, 2.0, 1.0]) ** beta
    np.testing.assert_allclose(slope, weight * [1.0, 1 - 1, 1 - 2, 1 - 9], rtol=1e-6, atol=1e-6)


def test_termination_loss_of_four_rows():
    """At a probability of 3/4 a terminated row costs log(4/3) and another log(4); the third is not valid."""
    logit = np.full((2, 4), math.log(3.0))
    terminated = np.array([[True, False, True, False], [False, False, False, False]])
    valid = np.array([True, True, False, True])
    found = jax.jit(termination_loss)(logit, terminated, valid, 5.0)
    expected = ((5 * math.log(4 / 3) + 2 * math.log(4)) + 3 * math.log(4)) / (2 * 3)
    assert float(found) == pytest.approx(expected, rel=1e-6)
