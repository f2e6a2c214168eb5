"""Distributions over weights: numbers computed by hand, the exact posterior of a linear model, and identities."""

import dataclasses
import functools
import itertools

import hand_made
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl.core.config import UserError, from_dict
from jaxmbrl.core.spaces import Box
from jaxmbrl.core.types import Transition
from jaxmbrl.data.replay import of_rows
from jaxmbrl.models import EnsembleConfig, adaptation, bayesian, ensemble
from jaxmbrl.models.adaptation import AdaptationConfig
from jaxmbrl.models.bayesian import BayesianConfig
from jaxmbrl.models.ensemble import Layout, Parameters
from jaxmbrl.models.ensemble.loss import Batch, fit_loss, variational_loss

KINDS = ("bayes-by-backprop", "dropout", "concrete-dropout")


@pytest.fixture(autouse=True)
def in_float64(x64):
    pass


def network_of(*layers):
    """Variables [1, ...] of a network with these (kernel, bias)."""
    named = {f"Dense_{i}": {"kernel": np.asarray(k)[None], "bias": np.asarray(b)[None]} for i, (k, b) in enumerate(layers)}
    return jax.tree.map(jnp.asarray, {"params": named})


def random_network(rng, *sizes):
    return network_of(*((rng.normal(size=pair), rng.normal(size=pair[1])) for pair in itertools.pairwise(sizes)))


def test_the_divergence_of_two_gaussians_and_the_inverse_of_softplus():
    assert float(bayesian.gaussian_divergence(jnp.asarray(0.2), jnp.asarray(0.1), 0.5)) == pytest.approx(
        1.2094379, abs=1e-7
    )
    for std in (0.1, 1e-6, 3.0):
        assert np.log1p(np.exp(bayesian.inverse_softplus(std))) == pytest.approx(std, rel=1e-9)
    # Of a network, the sum over kernels and biases.
    posterior = bayesian.make("bayes-by-backprop", BayesianConfig(initial_std=0.1))
    parameters = posterior.init(network_of(([[0.2, 0.2]], [0.2, 0.2]), ([[0.2], [0.2]], [0.2])))
    assert float(posterior.divergence(parameters)) == pytest.approx(7 * 1.2094379, abs=1e-6)
    assert float(posterior.describe(parameters)["weight_std"]) == pytest.approx(0.1)


# The linear model y = w1 + w2 x + noise: rows (1, x), noise variance 0.04, prior N(0, 1).
X, Y, NOISE = np.arange(4.0), np.array([0.1, 0.9, 2.1, 2.9]), 0.04
LINEAR = EnsembleConfig(
    kind="bayes-by-backprop", hidden=(), noise="constant", holdout_fraction=0.0, bayesian=BayesianConfig(prior_std=1.0)
)


def exact_posterior():
    """(mean, covariance, log-evidence) in NumPy."""
    rows = np.stack([np.ones(4), X], axis=1)
    precision = rows.T @ rows / NOISE + np.eye(2)
    marginal = NOISE * np.eye(4) + rows @ rows.T
    evidence = -0.5 * (Y @ np.linalg.solve(marginal, Y) + np.linalg.slogdet(marginal)[1] + 4 * np.log(2 * np.pi))
    return np.linalg.solve(precision, rows.T @ Y / NOISE), np.linalg.inv(precision), evidence


def test_the_evidence_bound_of_a_linear_model_and_its_maximum():
    mean, covariance, evidence = exact_posterior()
    std = 1 / np.sqrt(np.diag(np.linalg.inv(covariance)))
    np.testing.assert_allclose(mean, [0.0694927, 0.9532083], atol=1e-7)
    np.testing.assert_allclose(np.sqrt(np.diag(covariance)), [0.1646273, 0.0883098], atol=1e-7)
    np.testing.assert_allclose(std, [0.0995037, 0.0533761], atol=1e-7)
    assert evidence == pytest.approx(-2.8320914, abs=1e-7)

    draws = 100_000
    config = dataclasses.replace(LINEAR, bayesian=BayesianConfig(prior_std=1.0, draws=draws))
    layout = Layout(config, Box((1,)), Box((0,)), learns_reward=False, learns_termination=False)
    network = network_of(([[mean[1]]], [mean[0]])) | {"log_variance": jnp.full((1, 1), np.log(NOISE))}
    rho = {"Dense_0": {"kernel": std[1], "bias": std[0]}}
    rho = jax.tree.map(lambda s, leaf: jnp.full(leaf.shape, bayesian.inverse_softplus(s)), rho, network["params"])
    batch = Batch(
        jnp.asarray(X[None, :, None]), jnp.asarray(Y[None, :, None]), jnp.zeros((1, 4, 1)), jnp.zeros((1, 4), bool)
    )

    def bound(network):
        parameters = Parameters(network, (), (), ())
        loss = variational_loss(layout, parameters, batch, jnp.ones(4, bool), 4, jax.random.key(0))
        return -2 * (loss + np.log(2 * np.pi))

    value, slope = jax.jit(jax.value_and_grad(bound))(network | {"rho": rho})
    # Within four standard errors of the mean of the draws. The curvature by the mean is 101 and 351.
    assert float(value) == pytest.approx(-3.3355806, abs=0.02) and value < evidence
    for part in ("params", "rho"):
        np.testing.assert_allclose(
            [slope[part]["Dense_0"]["bias"][0, 0], slope[part]["Dense_0"]["kernel"][0, 0, 0]], 0, atol=0.5
        )


def test_a_fit_of_a_linear_model_finds_the_mean_field_posterior_and_draws_from_it():
    """With inputs of mean 0 and variance 1 the posterior factorises. The noise is learned: a fixed point in NumPy."""
    rng, rows, prior = np.random.default_rng(0), 16, 0.7
    x = rng.normal(size=rows)
    y = 0.8 * x + 0.4 * rng.normal(size=rows)
    x, y = ((v - v.mean()) / v.std() for v in (x, y))
    noise = 1.0
    for _ in range(1000):
        variance = 1 / (rows / noise + 1 / prior**2)
        slope = variance * (x @ y) / noise
        noise = np.mean((y - slope * x) ** 2) + 2 * variance
    config = dataclasses.replace(
        LINEAR,
        members=3000,
        elites=3000,
        absolute=(0,),
        batch_size=rows,
        max_epochs=4000,
        learning_rate=0.05,
        annealing=True,
        bayesian=BayesianConfig(prior_std=prior, draws=16),
    )
    model = ensemble.make(config, 1, 0, hand_made.nothing, hand_made.alive)
    never = np.zeros(rows, bool)
    data = Transition(x[:, None], np.zeros((rows, 0)), np.zeros(rows), y[:, None], never, never)

    @jax.jit
    def fitted(key):
        init_key, fit_key = jax.random.split(key)
        first = model.init(init_key, {})
        state, found = model.fit(first, of_rows(data), fit_key)
        return (
            first.posterior.params.network["log_variance"][0, 0],
            state,
            found,
            model.predict(state, jnp.array([[0.0], [2.0]]), jnp.zeros((2, 0))),
        )

    first, state, found, (mean, spread) = jax.device_get(fitted(jax.random.key(0)))
    assert first == pytest.approx(2 * np.log(0.1))
    params, rho = (state.posterior.params.network[name]["Dense_0"] for name in ("params", "rho"))
    np.testing.assert_allclose([params["kernel"].item(), params["bias"].item()], [slope, 0], atol=0.02)
    stds = np.log1p(np.exp([rho["kernel"].item(), rho["bias"].item()]))
    np.testing.assert_allclose(stds, np.sqrt(variance), rtol=0.04)
    np.testing.assert_allclose(spread, noise, rtol=0.04)
    assert found["model/weight_std"].total == pytest.approx(stds.mean(), rel=1e-9)
    # The members' functions: b and b + 2 w.
    np.testing.assert_allclose(mean.mean(axis=0)[:, 0], [0, 2 * slope], atol=0.03)
    np.testing.assert_allclose(mean.var(axis=0)[:, 0], np.array([1, 5]) * variance, rtol=0.12)


def test_dropped_units_before_a_linear_unit_have_the_variance_of_the_formula():
    """sum w^2 x^2 p / (1 - p) = 0.5833333 for w = (0.5, -1, 2), x = (1, 2, 0.5), p = 0.1."""
    w, x, number = np.array([0.5, -1.0, 2.0]), np.array([1.0, 2.0, 0.5]), 200_000
    network = network_of((np.zeros((1, 3)), np.zeros(3)), (w[:, None], np.zeros(1)))
    for kind in ("dropout", "concrete-dropout"):
        posterior = bayesian.make(kind, BayesianConfig(rate=0.1))
        parameters = posterior.init(network)

        @jax.jit
        def outputs(parameters, key, posterior=posterior):
            draw_key, sample_key = jax.random.split(key)
            drawn = posterior.draw(parameters, draw_key, number)["params"]["Dense_1"]["kernel"]
            same, (mask,) = posterior.sample(parameters, sample_key, 2, number // 2)
            return jnp.einsum("i,eio->e", x, drawn), jnp.einsum(
                "i,eio,ebi->eb", x, same["params"]["Dense_1"]["kernel"], mask
            )

        drawn, sampled = outputs(parameters, jax.random.key(0))
        assert float(jnp.var(drawn)) == pytest.approx(0.5833333, rel=0.02)
        assert float(jnp.mean(drawn)) == pytest.approx(w @ x, abs=0.01)
        if kind == "dropout":
            assert float(jnp.var(sampled)) == pytest.approx(0.5833333, rel=0.02)
            assert np.unique(np.round(drawn, 9)).size == 2**3


def test_relaxed_units_are_dropped_with_the_rate_and_give_it_a_gradient():
    """P(share dropped > 1/2) is the rate at any temperature, and in the limit of 0 there is nothing in between."""
    network = network_of((np.zeros((1, 1)), np.zeros(1)), (np.ones((1, 1)), np.zeros(1)))
    for temperature in (0.1, 1e-4):
        posterior = bayesian.make("concrete-dropout", BayesianConfig(rate=0.3, temperature=temperature))
        parameters = posterior.init(network)

        @jax.jit
        def kept(parameters, key, posterior=posterior):
            return posterior.sample(parameters, key, 1, 50_000)[1][0] * (1 - 0.3)

        share = np.asarray(kept(parameters, jax.random.key(0)))
        assert np.mean(share < 0.5) == pytest.approx(0.3, abs=0.01)
        assert np.mean((share > 0.01) & (share < 0.99)) < (0.01 if temperature < 0.1 else 0.3)
        assert np.mean((share > 0.01) & (share < 0.99)) > 0 or temperature < 0.1

    # The relaxed factor of logit r is sigmoid(-(r + noise) / T) (1 + exp(r)), with derivatives by hand.
    r, t, key = -0.8, 0.5, jax.random.key(3)
    noise = np.asarray(jax.random.logistic(key, (4,)))
    value, slope = jax.vmap(jax.value_and_grad(lambda r, i: bayesian._relaxed(r, t, key, (4,))[i]), (None, 0))(
        r, jnp.arange(4)
    )
    sigmoid = 1 / (1 + np.exp((r + noise) / t))
    np.testing.assert_allclose(value, sigmoid * (1 + np.exp(r)), rtol=1e-12)
    np.testing.assert_allclose(
        slope, sigmoid * np.exp(r) - sigmoid * (1 - sigmoid) / t * (1 + np.exp(r)), rtol=1e-9, atol=1e-12
    )


def test_the_divergence_of_dropped_units_is_that_of_the_papers():
    """2/N times it: l^2/N |W|^2 / (1 - p) + 2/N K (p log p + (1 - p) log(1 - p)); inputs are not dropped."""
    rng, scale, rows = np.random.default_rng(0), 0.3, 50
    network = random_network(rng, 2, 4, 3, 1)
    kernels = [np.asarray(network["params"][f"Dense_{i}"]["kernel"]) for i in range(3)]
    squares = [np.sum(k**2) for k in kernels]
    dropout, concrete = (bayesian.make(kind, BayesianConfig(rate=0.2, length_scale=scale)) for kind in KINDS[1:])
    fixed = scale**2 / rows * (squares[0] + (squares[1] + squares[2]) / 0.8)
    assert 2 / rows * float(dropout.divergence(dropout.init(network))) == pytest.approx(fixed, rel=1e-12)
    # Of the kernels M = W / (1 - p) that are multiplied with units that are not rescaled: l^2 (1 - p) |M|^2 / N.
    unscaled = scale**2 / rows * (squares[0] + 0.8 * (squares[1] + squares[2]) / 0.8**2)
    assert unscaled == pytest.approx(fixed)
    parameters = concrete.init(network)
    np.testing.assert_allclose(jax.nn.sigmoid(parameters["logit"]), [[0.2, 0.2]])
    rates = np.array([0.1, 0.35])
    parameters["logit"] = jnp.asarray(np.log(rates / (1 - rates)))[None]
    due = scale**2 / rows * (squares[0] + squares[1] / (1 - rates[0]) + squares[2] / (1 - rates[1]))
    for units, p in zip((4, 3), rates, strict=True):
        due += 2 / rows * units * (p * np.log(p) + (1 - p) * np.log(1 - p))
    assert 2 / rows * float(concrete.divergence(parameters)) == pytest.approx(due, rel=1e-12)
    assert float(concrete.describe(parameters)["dropout_rate"]) == pytest.approx(rates.mean())
    assert dropout.describe(network) == {}


def test_without_variance_or_dropped_units_all_draws_are_the_one_network():
    network = random_network(np.random.default_rng(0), 2, 4, 1) | {"log_variance": jnp.ones((1, 1))}
    for kind in KINDS[:2]:
        posterior = bayesian.make(kind, BayesianConfig(rate=0.0))
        parameters = posterior.init(network)
        if kind == "bayes-by-backprop":
            parameters["rho"] = jax.tree.map(lambda leaf: jnp.full_like(leaf, -jnp.inf), parameters["rho"])
        key, due = jax.random.key(0), jax.tree.map(lambda leaf: np.repeat(leaf, 3, axis=0), network)
        drawn, (sampled, masks) = jax.jit(lambda p, p_=posterior, k=key: (p_.draw(p, k, 3), p_.sample(p, k, 3, 5)))(
            parameters
        )
        jax.tree.map(np.testing.assert_array_equal, drawn, due)
        jax.tree.map(np.testing.assert_array_equal, sampled, due)
        for mask in masks:
            np.testing.assert_array_equal(mask, np.ones(mask.shape))


def test_at_rate_0_the_loss_and_its_gradient_are_those_of_one_member():
    """Bit for bit, without a prior."""
    plain = EnsembleConfig(members=1, elites=1, hidden=(4, 3), termination_hidden=(3,))
    dropped = dataclasses.replace(plain, kind="dropout", bayesian=BayesianConfig(draws=1, rate=0.0, length_scale=0.0))
    rng = np.random.default_rng(0)
    _, state = hand_made.ready(plain)
    shapes = (1, 5, 3), (1, 5, 3), (1, 5, 2)
    batch = Batch(*(jnp.asarray(rng.normal(size=shape)) for shape in shapes), jnp.asarray(rng.uniform(size=(1, 5)) < 0.4))
    valid = jnp.array([True, True, False, True, True])
    layouts = [Layout(config, Box((2,)), Box((1,)), True, True) for config in (plain, dropped)]

    def of_member(parameters):
        return fit_loss(layouts[0], parameters, batch, valid, 2.0)

    def of_dropout(parameters):
        return variational_loss(layouts[1], parameters, batch, valid, 5, jax.random.key(0), 2.0)

    found = [jax.jit(jax.value_and_grad(loss))(state.members.params) for loss in (of_member, of_dropout)]
    jax.tree.map(np.testing.assert_array_equal, *found)


def _fit_twice(model, rows, key):
    """(first state, fitted state, metrics, state after a fit to rows with a NaN, an imagined step)."""
    init_key, fit_key, again_key, step_key = jax.random.split(key, 4)
    first = model.init(init_key, {})
    broken = rows._replace(reward=rows.reward.at[3].set(jnp.nan))

    def fit(state, item):
        rows, key = item
        state, found = model.fit(state, of_rows(rows), key)
        return state, (state, found)

    both = jax.tree.map(lambda *x: jnp.stack(x), rows, broken)
    _, (states, found) = jax.lax.scan(fit, first, (both, jnp.stack([fit_key, again_key])))
    fitted, frozen = (jax.tree.map(lambda leaf, i=i: leaf[i], states) for i in range(2))
    step = model.world(fitted).step(rows.observation, rows.action, step_key)[1]
    prediction = model.predict(fitted, rows.observation, rows.action)
    return first, fitted, jax.tree.map(lambda x: x[0], found), frozen, step, prediction


def test_members_are_draws_of_the_fitted_distribution_and_are_kept():
    config = EnsembleConfig(
        kind="concrete-dropout",
        hidden=(6, 5),
        members=4,
        elites=4,
        batch_size=8,
        max_epochs=40,
        learning_rate=0.02,
        termination_hidden=(3,),
        bayesian=BayesianConfig(rate=0.4),
    )
    run = jax.jit(functools.partial(_fit_twice, ensemble.make(config, 2, 1)))
    rows = jax.tree.map(jnp.asarray, hand_made.table(np.random.default_rng(0), 60))
    first, fitted, found, frozen, step, (mean, variance) = jax.device_get(run(rows, jax.random.key(0)))
    assert mean.shape == variance.shape == (4, 60, 3)
    assert step.next_observation.shape == (60, 2) and np.isfinite(step.next_observation).all()
    layers, network = fitted.posterior.params.network["params"], fitted.members.params.network
    assert set(network) == {"params"}
    np.testing.assert_allclose(
        first.posterior.params.network["params"]["Dense_2"]["bias"][0], [0, 0, 0] + [2 * np.log(0.1)] * 3
    )
    rates = 1 / (1 + np.exp(-fitted.posterior.params.network["logit"][0]))
    assert not np.allclose(rates, 0.4, atol=0.01)
    assert found["model/dropout_rate"].total == pytest.approx(rates.mean())
    np.testing.assert_array_equal(network["params"]["Dense_0"]["kernel"], np.repeat(layers["Dense_0"]["kernel"], 4, axis=0))
    for i, rate in enumerate(rates):
        drawn, centre = network["params"][f"Dense_{i + 1}"]["kernel"], layers[f"Dense_{i + 1}"]["kernel"]
        dropped = (drawn == 0).all(axis=2)
        assert dropped.any() and not dropped.all()
        np.testing.assert_allclose(drawn, np.where(dropped[..., None], 0, centre / (1 - rate)), rtol=1e-12)
    # A row that is not finite freezes the distribution and the draws.
    assert fitted.posterior.active and not frozen.posterior.active and not frozen.members.active
    jax.tree.map(np.testing.assert_array_equal, frozen.members.params, fitted.members.params)
    changed = jax.tree.map(lambda a, b: np.any(a != b), first.members.params.network, fitted.members.params.network)
    assert all(jax.tree.leaves(changed))


def test_settings_that_contradict_each_other_are_told():
    for changes, text in (
        ({"elites": 3}, "elites must be members"),
        ({"probabilistic": False}, "probabilistic must be true for dropout"),
        ({"weight_decay": (0.1, 0.1)}, "weight_decay must be empty for dropout"),
        ({"beta_nll": 0.5}, "beta_nll must be 0 for dropout"),
        ({"bayesian": {"rate": 1.0}}, "bayesian.rate must be below 1"),
        ({"kind": "concrete-dropout", "bayesian": {"rate": 0.0}}, "bayesian.rate must be above 0"),
        ({"kind": "laplace"}, "kind must be 'bootstrap' or 'bayes-by-backprop'"),
    ):
        with pytest.raises(UserError, match=text):
            from_dict(EnsembleConfig, {"kind": "dropout", "hidden": (8,)} | changes)
    config = EnsembleConfig(kind="dropout", hidden=(8,))
    state = jax.eval_shape(ensemble.make(config, 2, 1).init, jax.random.key(0), {})
    with pytest.raises(UserError, match=r"ensemble\.kind must be bootstrap for an adaptation"):
        adaptation.init(AdaptationConfig(), ensemble.layout_of(config, 2, 1), state, jax.random.key(0))
