"""A model's single steps judged, against SciPy and numbers that are written out once more."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from jaxmbrl.core.config import UserError
from jaxmbrl.core.types import DynamicsModel, Transition
from jaxmbrl.diagnostics import Predictor, calibration, evaluate_model, predicting

MEMBERS, ROWS, SIZE = 3, 40, 2


def recorded(rows=ROWS, size=SIZE, actions=1, seed=0):
    rng = np.random.default_rng(seed)
    numbers = (rng.normal(size=(rows, n)) for n in (size, actions, size))
    seen, action, following = numbers
    return Transition(seen, action, rng.normal(size=rows), following, np.zeros(rows, bool), np.zeros(rows, bool))


def told(state, observation, action):
    """Means and deviations [E, N, O + 1] that differ by member, row and dimension: of `state` as NumPy or JAX."""
    both = jnp.concatenate([observation, action], axis=1)
    shift = jnp.arange(MEMBERS)[:, None, None] - 1.0
    mean = both + 0.3 * shift * jnp.sin(both) + state
    return mean, 0.5 + 0.2 * shift * jnp.tanh(both) + 0.1 * both**2


def predict(state, observation, action):
    mean, deviation = told(state, observation, action)
    return mean, deviation**2


def test_all_numbers_as_scipy_has_them():
    rows = recorded()
    with jax.enable_x64(True):
        found = evaluate_model(Predictor(predict), 0.1, rows)
        mean, deviation = jax.device_get(jax.jit(told)(0.1, rows.observation, rows.action))
    target = np.column_stack([rows.next_observation, rows.reward])
    before = np.column_stack([rows.observation, np.zeros(ROWS)])
    squared = ((mean.mean(axis=0) - target) ** 2).mean(axis=0)
    np.testing.assert_allclose(found.error, np.sqrt(squared), rtol=1e-12)
    np.testing.assert_allclose(found.unexplained, squared / (target - before).var(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.aleatoric, np.sqrt((deviation**2).mean(axis=(0, 1))), rtol=1e-12)
    np.testing.assert_allclose(found.epistemic, np.sqrt(mean.var(axis=0).mean(axis=0)), rtol=1e-12)
    density = stats.norm.logpdf(target, mean, deviation)
    np.testing.assert_allclose(found.member_nll, -density.mean(axis=1), rtol=1e-12)
    mixture = special.logsumexp(density, b=1 / MEMBERS, axis=0)
    np.testing.assert_allclose(found.mixture_nll, -mixture.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.predicted, mean.mean(axis=0) - before, atol=1e-12)
    np.testing.assert_allclose(found.observed, target - before, atol=1e-12)
    assert found.learns_reward


def test_a_known_density_by_hand():
    """A standard normal at its mean: log sqrt(2 pi) nats; at a distance of 2, half of 2 squared more."""
    rows = recorded(6, 1)._replace(next_observation=np.full((6, 1), 2.0))
    rows = rows._replace(next_observation=np.array([[0.0]] * 3 + [[2.0]] * 3))

    def standard(state, observation, action):
        return jnp.zeros((2, len(observation), 1)), jnp.ones((2, len(observation), 1))

    found = evaluate_model(Predictor(standard), (), rows)
    by_hand = 0.5 * np.log(2 * np.pi) + 0.5 * 2.0**2 / 2
    np.testing.assert_allclose(found.member_nll, [[by_hand], [by_hand]], rtol=1e-6)
    np.testing.assert_allclose(found.mixture_nll, [by_hand], rtol=1e-6)
    assert not found.learns_reward


def test_without_variance_there_is_no_density():
    """Nor of a mixture that one such member is in; the other dimensions and members keep theirs."""

    def certain(state, observation, action):
        mean, variance = predict(state, observation, action)
        return mean, variance.at[0, :, 1].set(0.0)

    found = evaluate_model(Predictor(certain), 0.0, recorded())
    assert np.isnan(found.member_nll).tolist() == [[False, True, False], [False] * 3, [False] * 3]
    assert np.isnan(found.mixture_nll).tolist() == [False, True, False]
    assert np.isfinite(found.error).all() and np.isfinite(np.asarray(found.calibration.error)).all()


def test_a_perfect_model_has_nothing_left():
    rows = recorded()

    def perfect(state, observation, action):
        return state[None], jnp.zeros((1, *state.shape))

    found = evaluate_model(Predictor(perfect), jnp.asarray(rows.next_observation), rows)
    np.testing.assert_array_equal(found.unexplained, 0.0)
    np.testing.assert_array_equal([found.error, found.epistemic, found.aleatoric], 0.0)
    np.testing.assert_allclose(found.calibration.error, 0.0, atol=1e-6)


def test_rows_go_some_at_a_time(monkeypatch):
    """Each of 40 rows once, in order, also where the last part is smaller; calibration alone agrees."""
    whole = evaluate_model(Predictor(predict), 0.1, recorded())
    seen = []

    def watched(state, observation, action):
        seen.append(observation.shape[0])
        return predict(state, observation, action)

    monkeypatch.setattr(predicting, "ROWS_AT_ONCE", 17)
    parts = evaluate_model(Predictor(watched), 0.1, recorded())
    # Once for the shapes of all, then compiled for each size.
    assert seen == [40, 17, 6]
    for a, b in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)
    alone = calibration(Predictor(predict), 0.1, recorded())
    np.testing.assert_allclose(alone.shares, whole.calibration.shares, atol=1e-6)


def test_a_dynamics_model_will_do_and_compiles_once_for_all_states():
    compiled = []

    def counted(state, observation, action):
        compiled.append(observation.shape)
        return predict(state, observation, action)

    model = DynamicsModel(init=None, fit=None, predict=counted, world=None)
    first = evaluate_model(model, jnp.array(0.0), recorded())
    traced = len(compiled)
    second = evaluate_model(model, jnp.array(1.0), recorded())
    assert len(compiled) == traced
    np.testing.assert_allclose(second.predicted - first.predicted, 1.0, atol=1e-5)


def test_discrete_actions_are_numbers():
    """A model of numbered actions is evaluated as that of the same actions one-hot."""
    numbers = np.random.default_rng(3).integers(0, 2, ROWS)
    by_vector = recorded()._replace(action=np.eye(2)[numbers][:, :1])

    def of_numbers(state, observation, action):
        assert action.shape == observation.shape[:1] and action.dtype == jnp.int32
        return predict(state, observation, (1.0 - action)[:, None])

    found = evaluate_model(Predictor(of_numbers), 0.1, recorded()._replace(action=numbers.astype(np.int32)))
    expected = evaluate_model(Predictor(predict), 0.1, by_vector)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            recorded()._replace(action=np.zeros((40, 1), np.int32)),
            "rows: action must be \\[N\\] of integers with N = 40, got shape \\(40, 1\\)",
        ),
        (
            recorded()._replace(reward=np.zeros(0)),
            "rows must be .* N at least 1, got a reward of shape \\(0,\\)",
        ),
        (recorded()._replace(reward=np.zeros((40, 1))), "rows must be .* got a reward of shape \\(40, 1\\)"),
        (recorded()._replace(action=np.zeros(40)), "rows: action must be \\[N, size\\] with N = 40, got shape \\(40,\\)"),
        (recorded()._replace(observation=np.zeros((39, 2))), "rows: observation must be .* N = 40, got shape \\(39, 2\\)"),
        (
            recorded()._replace(next_observation=np.zeros((40, 3))),
            "next_observation must have 2 numbers, as observation, got 3",
        ),
        (recorded(actions=3), "predict must give mean and variance, each \\[members, 40, 2 or 3\\], got .*\\(3, 40, 5\\)"),
    ],
)
def test_what_does_not_fit_is_refused(rows, message):
    with pytest.raises(UserError, match=message) as error:
        evaluate_model(Predictor(predict), 0.0, rows)
    assert "\n" not in str(error.value)
