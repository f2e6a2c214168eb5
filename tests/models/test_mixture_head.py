"""The ensemble whose members predict mixtures of Gaussians: by hand, against SciPy, and its identities."""

import dataclasses

import hand_made
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hand_made import TINY, alive, nothing, table
from scipy import special, stats

from jaxmbrl.core.config import UserError, from_dict
from jaxmbrl.core.spaces import Box
from jaxmbrl.core.types import Transition
from jaxmbrl.data.replay import of_rows
from jaxmbrl.diagnostics import calibration, evaluate_model
from jaxmbrl.models import EnsembleConfig, ensemble
from jaxmbrl.models.ensemble import Layout
from jaxmbrl.models.ensemble.loss import Batch, data_loss, mixture_loss
from jaxmbrl.models.ensemble.network import forward

MIXED = dataclasses.replace(TINY, head="mixture", components=2)


@jax.jit
def loss_of_row(logits, mean, log_variance, target):
    return mixture_loss(logits, mean, log_variance, target)


def test_loss_by_hand(x64):
    """pi = (.25, .75), mu = (0, 2), sigma = (1, .5), y = 1: half the loss and half log 2 pi are 1.955603 nats."""
    found = loss_of_row(np.log([0.25, 0.75]), np.array([[0.0], [2.0]]), 2 * np.log([[1.0], [0.5]]), np.ones(1))
    assert 0.5 * float(found) + 0.5 * np.log(2 * np.pi) == pytest.approx(1.955603, abs=5e-7)


def test_loss_of_a_batch_against_scipy(x64):
    """The network's outputs are means, log-variances and logits; the first logit is 0, and the bounds are shared."""
    rng = np.random.default_rng(0)
    _, state = hand_made.ready(MIXED, nothing, alive)
    layout, parameters = Layout(MIXED, Box((2,)), Box((1,)), False, False), state.members.params
    batch = Batch(
        jnp.asarray(rng.normal(size=(3, 4, 3))),
        jnp.asarray(rng.normal(size=(3, 4, 2))),
        jnp.zeros((3, 4, 2)),
        jnp.zeros((3, 4), bool),
    )
    valid = jnp.array([True, True, False, True])
    output, loss = jax.jit(
        lambda p: (forward(layout, p, batch.inputs), data_loss(layout, p, batch, valid)),
    )(parameters)
    raw = parameters.network["params"]["Dense_2"]["kernel"]
    assert raw.shape == (3, 5, 2 * 2 * 2 + 1) and output.mean.shape == output.log_variance.shape == (3, 4, 2, 2)
    low, high = np.asarray(parameters.low), np.asarray(parameters.high)
    assert np.all(np.asarray(output.logits)[..., 0] == 0) and np.all(np.asarray(output.logits)[..., 1] != 0)
    assert np.all(output.log_variance > low) and np.all(output.log_variance < high + 0.1)
    weight = special.log_softmax(np.asarray(output.logits), axis=-1)
    density = stats.norm.logpdf(
        np.asarray(batch.targets)[:, :, None], output.mean, np.exp(0.5 * np.asarray(output.log_variance))
    )
    by_row = special.logsumexp(weight + density.sum(axis=-1), axis=-1)
    expected = -2 * by_row[:, np.asarray(valid)].sum() / 3 / 2 - 3 * np.log(2 * np.pi)
    assert float(loss) == pytest.approx(expected, rel=1e-12)


def test_one_component_is_the_gaussian_ensemble_bit_for_bit():
    """Initial state, fit without holdout, predictions and imagined steps."""
    plain = dataclasses.replace(TINY, max_epochs=2, holdout_fraction=0.0, elites=3)
    single = dataclasses.replace(plain, head="mixture", components=1)
    rows = jax.tree.map(jnp.asarray, table(np.random.default_rng(0), 20))

    @jax.jit
    def run(rows, key):
        found = []
        for config in (plain, single):
            model = ensemble.make(config, 2, 1)
            first = model.init(key, {})
            state, metrics = model.fit(first, of_rows(rows), key)
            metrics.pop("model/holdout_likelihood")
            stepped = model.world(state).step(rows.observation, rows.action, key)
            found.append((first, state, metrics, model.predict(state, rows.observation, rows.action), stepped))
        return found

    found = run(rows, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, *found)
    assert np.any(found[0][0].members.params.network["params"]["Dense_0"]["kernel"] != 0)


def two_modes(config, weights, means, log_variance=-10.0):
    """A model whose members predict everywhere components with these weights [K], changes [K, 2] and one log-variance."""
    config = dataclasses.replace(config, components=len(weights))
    model, state = hand_made.blank(config, (2, 1), nothing, alive)
    params = state.members.params
    ratios = np.log(np.asarray(weights))
    bias = np.concatenate([np.ravel(means), np.full(np.size(means), log_variance), ratios[1:] - ratios[0]])
    params.network["params"]["Dense_2"]["bias"] = hand_made.floats(np.broadcast_to(bias, (config.members, bias.size)))
    params = params._replace(low=hand_made.floats(np.full(2, -90.0)), high=hand_made.floats(np.full(2, 90.0)))
    return model, state._replace(members=state.members._replace(params=jax.device_put(params)))


def test_imagined_rows_are_from_one_component_in_all_dimensions(x64):
    """Under ts1 and tsinf. Under the others the mean and the variance of the mixture are used."""
    weights, means, rows = np.array([0.2, 0.8]), np.array([[-1.0, 3.0], [1.0, -2.0]]), 4000
    observation, action, key = jnp.ones((rows, 2)), jnp.zeros((rows, 1)), jax.random.key(1)
    rules, drawn = ("ts1", "tsinf", "distribution", "expectation"), {}
    for rule in rules:
        model, state = two_modes(dataclasses.replace(MIXED, propagation=rule), weights, means)
        drawn[rule] = model.world(state).step
    steps, (mean, variance) = jax.device_get(
        jax.jit(
            lambda: (
                {rule: step(observation, action, key)[0] for rule, step in drawn.items()},
                model.predict(state, observation[:3], action[:3]),
            )
        )()
    )
    moments = weights @ means, weights @ means**2 - (weights @ means) ** 2 + np.exp(-10)
    np.testing.assert_allclose(mean, np.broadcast_to(1 + moments[0], (3, 3, 2)), rtol=1e-6)
    np.testing.assert_allclose(variance, np.broadcast_to(moments[1], (3, 3, 2)), rtol=1e-6)
    for rule in ("ts1", "tsinf"):
        nearest = np.argmin(np.abs(steps[rule][:, None] - 1 - means), axis=1)
        np.testing.assert_array_equal(nearest[:, 0], nearest[:, 1])
        assert nearest[:, 0].mean() == pytest.approx(0.8, abs=0.03)
        np.testing.assert_allclose(steps[rule], 1 + means[nearest[:, 0]], atol=5 * np.exp(-5))
    np.testing.assert_allclose(steps["distribution"].mean(axis=0), 1 + moments[0], atol=0.1)
    np.testing.assert_allclose(steps["distribution"].var(axis=0), moments[1], rtol=0.1)
    np.testing.assert_allclose(steps["expectation"], np.broadcast_to(1 + moments[0], (rows, 2)), rtol=1e-6)


def test_evaluation_and_calibration_are_those_of_the_mixture(x64):
    """Against SciPy, with targets in other units, and not those of the Gaussian with its moments."""
    rng = np.random.default_rng(3)
    weights, means = np.array([0.3, 0.7]), np.array([[-1.0, 1.0], [1.0, -2.0]])
    model, state = two_modes(MIXED, weights, means, log_variance=np.log(0.04))
    scale, shift = np.array([2.0, 0.5]), np.array([0.1, -0.3])
    state = state._replace(targets=state.targets._replace(mean=shift, std=scale))
    before, which = rng.normal(size=(400, 2)), rng.choice(2, 400, p=weights)
    change = shift + scale * (means[which] + 0.2 * rng.normal(size=(400, 2)))
    none = np.zeros(400, bool)
    rows = Transition(before, np.zeros((400, 1)), np.zeros(400), before + change, none, none)
    found, calibrated = evaluate_model(model, state, rows), calibration(model, state, rows)
    density = stats.norm.pdf(change[:, None], shift + scale * means, 0.2 * scale)
    expected = -np.log(np.einsum("k,nkd->nd", weights, density)).mean(axis=0)
    np.testing.assert_allclose(found.mixture_nll, expected, rtol=1e-9)
    np.testing.assert_allclose(found.member_nll, np.broadcast_to(expected, (3, 2)), rtol=1e-9)
    function = np.einsum("k,nkd->nd", weights, stats.norm.cdf(change[:, None], shift + scale * means, 0.2 * scale))
    shares = (function[None] <= np.asarray(calibrated.levels)[:, None, None]).mean(axis=1)
    np.testing.assert_allclose(calibrated.shares, shares, atol=1e-12)
    assert np.all(calibrated.error < 0.05)
    np.testing.assert_array_equal(found.calibration.shares, calibrated.shares)
    _, variance = model.predict(state, jnp.asarray(before[:1]), jnp.zeros((1, 1)))
    assert np.all(found.mixture_nll < 0.5 * np.log(2 * np.pi * np.e * np.asarray(variance)[0, 0]) - 0.5)


def test_modes_are_learned_and_stop_early_by_the_likelihood():
    """A coin's sign is added to the observation: the mixture's log-likelihood is above the best Gaussian's, -log sqrt(2
    pi e) = -1.4189 nats for each normalised dimension."""
    rng = np.random.default_rng(0)
    before = rng.normal(size=(600, 1))
    after = before + rng.choice([-1.0, 1.0], size=(600, 1)) + 0.1 * rng.normal(size=(600, 1))
    none = np.zeros(600, bool)
    rows = Transition(*map(hand_made.floats, (before, np.zeros((600, 1)), np.zeros(600), after)), none, none)
    config = EnsembleConfig(
        members=2, elites=1, hidden=(8,), head="mixture", components=2, batch_size=32, max_epochs=40, learning_rate=0.02
    )
    model, first = hand_made.ready(config, nothing, alive, size=(1, 1))
    _, metrics = jax.jit(model.fit)(first, of_rows(rows), jax.random.key(0))
    likelihood = metrics["model/holdout_likelihood"]
    assert float(likelihood.total / likelihood.weight) > -1.4189 + 0.5
    # Its mean is that of both modes: an error of one normalised variance.
    assert float(metrics["model/holdout_error"].total) == pytest.approx(1.0, abs=0.2)


def test_a_distribution_over_weights_may_predict_a_mixture():
    config = dataclasses.replace(MIXED, kind="bayes-by-backprop", elites=3, weight_decay=())
    model = ensemble.make(config, 2, 1)
    state = jax.eval_shape(model.init, jax.random.key(0), {})
    after, _ = jax.eval_shape(model.fit, state, of_rows(table(np.random.default_rng(0), 20)), jax.random.key(0))
    before, after = (jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree) for tree in (state, after))
    assert before == after


def test_settings_that_contradict_each_other_are_told():
    for changes, text in (
        ({"probabilistic": False}, "head must be gaussian for deterministic members"),
        ({"beta_nll": 0.5}, "beta_nll must be 0 for a mixture"),
        ({"components": 0}, "components must be at least 1"),
    ):
        with pytest.raises(UserError, match=text):
            from_dict(EnsembleConfig, {"head": "mixture"} | changes)
