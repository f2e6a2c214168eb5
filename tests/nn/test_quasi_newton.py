"""L-BFGS against SciPy's, on functions with known minima, beside other seeds, and where values are not finite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from jaxmbrl.nn.quasi_newton import minimize


def rosenbrock(x):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


STARTS = np.array([[-1.2, 1.0, 0.5], [0.0, 0.0, 0.0], [2.0, -1.0, 1.5]])


@pytest.fixture(scope="module")
def found():
    """Minima of Rosenbrock's function from several starts, found together and one by one."""
    with jax.enable_x64(True):
        search = jax.jit(lambda start: minimize(rosenbrock, start, 200))
        together = jax.jit(jax.vmap(lambda start: minimize(rosenbrock, start, 200)))(STARTS)
        return jax.device_get((together, [search(start) for start in STARTS]))


def test_it_finds_the_minimum_of_rosenbrocks_function(found):
    together, _ = found
    np.testing.assert_allclose(together.point, np.ones((3, 3)), atol=1e-7)
    assert (together.value < 1e-14).all() and (together.evaluations < 120).all()
    # One evaluation of most searches is of the full step, which is accepted.
    assert (together.steps <= together.evaluations).all() and (together.steps > 0.5 * together.evaluations).all()


def test_seeds_beside_others_find_what_they_find_alone(found):
    together, alone = found
    for k, one in enumerate(alone):
        np.testing.assert_allclose(one.point, together.point[k], atol=1e-10)
        assert (one.steps, one.evaluations) == (together.steps[k], together.evaluations[k])


def test_it_needs_about_as_many_evaluations_as_scipy(found):
    of_scipy = optimize.minimize(
        lambda x: np.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2), STARTS[0], method="L-BFGS-B", tol=1e-12
    )
    assert (
        found[1][0].evaluations < 2 * of_scipy.nfev / 4
    )  # its gradients are differences, with three more evaluations each


def test_steps_into_a_region_that_is_not_finite_are_shortened(x64):
    """x - log x is not a number below 0, where the first steps lead; its minimum is at 1. Pytrees are accepted."""
    start = {"x": jnp.array([0.01, 30.0]), "y": jnp.array(2.0)}

    def function(point):
        return jnp.sum(point["x"] - jnp.log(point["x"])) + (point["y"] - 3) ** 4

    found = jax.jit(lambda start: minimize(function, start, 100))(start)
    np.testing.assert_allclose(found.point["x"], [1, 1], atol=1e-6)
    np.testing.assert_allclose(found.point["y"], 3, atol=0.01)


def test_it_stops_where_nothing_is_left_to_gain_or_to_compare(x64):
    flat = jax.jit(lambda start: minimize(lambda x: jnp.sum(x**2), start, 50))(jnp.zeros(2))
    assert int(flat.evaluations) == int(flat.steps) == 0
    nowhere = jax.jit(lambda start: minimize(lambda x: jnp.sum(jnp.log(x)), start, 50))(-jnp.ones(2))
    np.testing.assert_array_equal(nowhere.point, -np.ones(2))
    assert not np.isfinite(nowhere.value) and int(nowhere.steps) == 0
    some = jax.jit(lambda start: minimize(rosenbrock, start, 7))(STARTS[0])
    assert int(some.evaluations) == 7 and float(some.value) < float(rosenbrock(STARTS[0]))


def test_a_decrease_counts_when_the_trials_or_the_evaluations_end(x64):
    """Far from the minimum of a bell, 20 trials do not reach a point where the slope is less steep. Far from that of a flat
    parabola, each trial doubles the step, which is 1 at first: 8 evaluations reach 1, 2, 4, ..., 128 along the diagonal."""
    bell = jax.jit(lambda start: minimize(lambda x: -jnp.exp(-0.5 * jnp.sum((x - 5.5) ** 2)), start, 150))(jnp.zeros(1))
    np.testing.assert_allclose(bell.point, [5.5], atol=1e-6)
    parabola = jax.jit(lambda start: minimize(lambda x: 1e-3 * jnp.sum((x - 1000) ** 2), start, 8))(jnp.zeros(2))
    np.testing.assert_allclose(parabola.point, np.full(2, 128 / np.sqrt(2)), rtol=1e-12)
    np.testing.assert_allclose(parabola.value, 2e-3 * (1000 - 128 / np.sqrt(2)) ** 2, rtol=1e-12)
    assert (int(parabola.steps), int(parabola.evaluations)) == (1, 8)
