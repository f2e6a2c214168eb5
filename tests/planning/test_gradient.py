"""Gradient ascent on action sequences: concave scores, by hand, from the elites of CEM, and scores that are not finite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl.core.config import UserError, check
from jaxmbrl.planning import GradientConfig, PlannerConfig, make, problem_of_score, unit_box

SPACE = unit_box(2)
BEST = jnp.array([[0.3, -0.6], [2.0, 0.1], [-0.2, -3.0]])
INSIDE = np.clip(np.asarray(BEST), -1, 1)


def concave(actions, key):
    """With its maximum in the box where BEST is clipped to the bounds."""
    return 5.0 - jnp.sum(jnp.array([1.0, 4.0]) * (actions - BEST) ** 2)


def planned(score, state=None, proposals=None, **settings):
    planner = make(check(PlannerConfig("gradient", gradient=GradientConfig(horizon=3, **settings))), SPACE)

    @jax.jit
    def plan(state, proposals):
        return planner.plan(problem_of_score(score, SPACE), state, jax.random.key(0), proposals)

    return jax.device_get(plan(planner.init() if state is None else state, proposals))


@pytest.mark.parametrize("settings", [{"iterations": 100}, {"optimizer": "lbfgs", "iterations": 20}])
def test_the_maximum_of_a_concave_score(settings):
    actions, after, statistics = planned(concave, **settings)
    np.testing.assert_allclose(actions, INSIDE, atol=0.01)
    assert np.abs(actions).max() <= 1
    np.testing.assert_array_equal(after.mean, np.concatenate([actions[1:], actions[-1:]]))
    assert statistics == {"nonfinite": 0}


def test_steps_of_adam():
    """The first has the length of the learning rate along each action; the plan is the best of all sequences on the way."""
    actions, after, _ = planned(concave, iterations=1, learning_rate=0.25)
    np.testing.assert_allclose(actions, 0.25 * np.sign(BEST), rtol=1e-5)
    kept, _, _ = planned(concave, state=after._replace(mean=jnp.asarray(INSIDE)), iterations=5, learning_rate=1.0)
    np.testing.assert_array_equal(kept, INSIDE)


def test_starts_from_the_elites_of_cem():
    """Of a score with many maxima, which is largest at 0.75; a gradient from 0 finds the one there."""

    def score(actions, key):
        return jnp.sum(jnp.cos(8 * jnp.pi * actions) - (actions - 0.75) ** 2)

    alone, _, _ = planned(score, iterations=50, learning_rate=0.01)
    np.testing.assert_allclose(alone, 0.0, atol=0.05)
    sampled, _, _ = planned(score, iterations=50, learning_rate=0.01, cem_iterations=6, population=200)
    assert score(sampled, None) > 5 > score(alone, None) + 2
    np.testing.assert_allclose(4 * sampled, np.round(4 * sampled), atol=0.05)
    offered, _, _ = planned(score, proposals=jnp.full((1, 3, 2), 0.77), iterations=50, learning_rate=0.01)
    np.testing.assert_allclose(offered, 0.75, atol=0.01)


def test_what_is_not_finite_is_counted_and_leaves_the_last_plan():
    actions, _, statistics = planned(lambda actions, key: jnp.nan * jnp.sum(actions), cem_iterations=2, population=20)
    np.testing.assert_array_equal(actions, np.zeros((3, 2)))
    assert statistics == {"nonfinite": 2 * 20 + 11}
    # A gradient that is not finite, at 0, where the value is.
    actions, _, statistics = planned(lambda actions, key: -jnp.sqrt(jnp.sum(actions**2)))
    np.testing.assert_array_equal(actions, np.zeros((3, 2)))
    assert statistics == {"nonfinite": 0}


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(UserError) as refused:
        planned(concave, elites=101)
    assert str(refused.value) == "gradient.elites must be at most population (100), got 101"
