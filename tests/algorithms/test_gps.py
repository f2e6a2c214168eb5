"""GPS: the step size, what an S-step learns, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl import envs
from jaxmbrl.algorithms.trajectory import gps
from jaxmbrl.core.config import UserError, check
from jaxmbrl.planning.lqr import LinearPolicy

PLAIN = gps.Config()


@pytest.fixture(scope="module", autouse=True)
def double():
    """In float64."""
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize(
    ("predicted", "actual", "factor"),
    [(10.0, 5.0, 1.0), (10.0, 8.0, 2.5), (10.0, 0.0, 0.5), (10.0, 10.0, 3.0), (10.0, 12.0, 3.0), (10.0, -90.0, 0.5)],
)
def test_the_step_size(predicted, actual, factor):
    """Twice the shortfall is the prediction: the same step again. It grows at most to 3 and falls at most to 0.5."""
    found = gps.adjusted_step_size(PLAIN, jnp.ones(()), jnp.asarray(predicted), jnp.asarray(actual))
    assert float(found) == pytest.approx(factor)


def test_one_step_size_changes_at_most_fivefold():
    wide = dataclasses.replace(PLAIN, least_step=1e-3, largest_step=1e3)
    grown, fallen = (
        float(gps.adjusted_step_size(wide, jnp.asarray(2.0), jnp.asarray(10.0), jnp.asarray(x))) for x in (10.0, -1e6)
    )
    assert (grown, fallen) == pytest.approx((10.0, 0.2))


def test_an_s_step_learns_the_controllers_commands():
    """At the sampled states, by numbers computed by hand: K_t x + k_t, and C_t^-1."""
    x = jnp.arange(1.0, 9.0).reshape(2, 2, 2, 1)
    local = LinearPolicy(
        jnp.array([[[[1.0]], [[2.0]]], [[[3.0]], [[4.0]]]]),
        jnp.array([[[0.1], [0.2]], [[0.3], [0.4]]]),
        jnp.array([[[[1.0]], [[2.0]]], [[[4.0]], [[5.0]]]]),
    )
    states, target, precision = gps.supervision(x, local)
    np.testing.assert_array_equal(states[:, 0], np.arange(1.0, 9.0))
    np.testing.assert_allclose(target[:, 0], [1.1, 4.2, 3.1, 8.2, 15.3, 24.4, 21.3, 32.4])
    np.testing.assert_allclose(precision[:, 0, 0], [1, 0.5, 1, 0.5, 0.25, 0.2, 0.25, 0.2])


def test_what_is_refused():
    for task, problem in (
        (envs.make("cartpole-continuous"), "may terminate"),
        (envs.make("pendulum", action_repeat=2), "has no reward function"),
        (envs.make("CliffWalking"), "gps takes vectors"),
    ):
        with pytest.raises(UserError, match=problem):
            gps.make(gps.Config(), task)
    for changes, problem in (
        ({"start_states": 2, "num_envs": 5}, "num_envs must be a multiple, at least 2, of start_states"),
        ({"start_states": 4, "num_envs": 4}, "num_envs must be a multiple, at least 2, of start_states"),
        ({"policy": "local", "start_states": 2, "num_envs": 4}, "start_states must be 1 with policy local"),
        ({"least_step": 4.0}, "largest_step must be at least least_step"),
    ):
        with pytest.raises(UserError, match=problem):
            check(dataclasses.replace(gps.Config(), **changes))
