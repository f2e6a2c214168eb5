"""Behaviour cloning: the likelihood by hand and in SciPy, and the fit of a linear-Gaussian policy's backward regression."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from jaxmbrl.agents import behaviour_cloning as cloning
from jaxmbrl.agents.behaviour_cloning import CloningConfig
from jaxmbrl.core.config import UserError, check
from jaxmbrl.core.spaces import Discrete
from jaxmbrl.core.types import Transition
from jaxmbrl.nn.networks import MLP


def rows(observation, action):
    none = jnp.zeros(len(observation), bool)
    return Transition(observation, action, jnp.zeros(len(observation)), observation, none, none)


def test_the_loss_is_the_mean_log_density():
    rng = np.random.default_rng(0)
    mean, log_variance, action = (jnp.asarray(x) for x in rng.normal(size=(3, 4, 2)).astype(np.float32))
    density = stats.norm.logpdf(action, mean, np.exp(0.5 * np.asarray(log_variance)))
    found = cloning.negative_log_likelihood(mean, log_variance, action)
    assert float(found) == pytest.approx(-density.sum(axis=1).mean(), rel=1e-5)


def test_it_recovers_the_policy_that_acted():
    """Actions .5 tanh(s) + .1 noise: the fitted mean and the variance .01, and samples within two deviations of it."""
    config = CloningConfig(hidden=(32,), learning_rate=3e-3)
    learner = cloning.make(config, 1, 1)
    rng = np.random.default_rng(1)
    observation = rng.normal(size=(2000, 1)).astype(np.float32)
    action = (0.5 * np.tanh(observation) + 0.1 * rng.normal(size=observation.shape)).astype(np.float32)

    @jax.jit
    def fitted(data):
        state = learner.init(jax.random.key(0), {})
        step = lambda state, i: (learner.update(state, data, jax.random.key(0))[0], None)  # noqa: E731
        state, _ = jax.lax.scan(step, state, jnp.arange(600))
        at = jnp.linspace(-2.0, 2.0, 9)[:, None]
        many = jnp.tile(at[4:5], (4000, 1))
        sampled = learner.policy(state, True).act((), many, jax.random.key(2))[0]
        return learner.policy(state, False).act((), at, jax.random.key(1))[0], sampled, at

    mean, sampled, at = fitted(rows(observation, action))
    np.testing.assert_allclose(mean, 0.5 * np.tanh(at), atol=0.03)
    spread = np.asarray(sampled) - np.asarray(mean)[4]
    # A standard normal within two deviations has the variance .7737.
    assert np.var(spread) == pytest.approx(0.7737 * 0.01, rel=0.15)
    assert np.abs(spread).max() < 0.23


def test_a_fixed_variance_is_that_of_samples_and_actions_are_clipped():
    learner = cloning.make(CloningConfig(hidden=(4,), sample_variance=0.0), 2, 1)
    state = jax.jit(lambda: learner.init(jax.random.key(0), {}))()
    at = jnp.ones((5, 2))
    mean, sampled = (learner.policy(state, explore).act((), at, jax.random.key(1))[0] for explore in (False, True))
    np.testing.assert_array_equal(mean, sampled)
    wide = cloning.make(CloningConfig(hidden=(4,), sample_variance=9.0), 2, 1)
    found = wide.policy(state, True).act((), jnp.ones((200, 2)), jax.random.key(1))[0]
    assert float(jnp.abs(found).max()) == 1.0
    with pytest.raises(UserError, match="high must be above low"):
        check(CloningConfig(low=1.0, high=1.0))


def test_choices_are_fitted_by_cross_entropy_and_sampled_by_their_frequencies():
    """In two situations choices with the shares (.7, .2, .1) and (0, .25, .75)."""
    learner = cloning.make(CloningConfig(hidden=(8,), learning_rate=0.03), 2, Discrete(3))
    choices = np.repeat([0, 1, 2, 1, 2], [14, 4, 2, 5, 15]).astype(np.int32)
    situations = np.eye(2, dtype=np.float32)[np.repeat([0, 1], 20)]

    @jax.jit
    def fitted(data):
        first = learner.init(jax.random.key(0), {})
        _, found, error = learner.update(first, data, jax.random.key(0))
        step = lambda state, i: (learner.update(state, data, jax.random.key(0))[0], None)  # noqa: E731
        state, _ = jax.lax.scan(step, first, jnp.arange(400))
        sampled = learner.policy(state, True).act((), jnp.repeat(jnp.eye(2), 4000, axis=0), jax.random.key(1))[0]
        best = learner.policy(state, False).act((), jnp.eye(2), jax.random.key(1))[0]
        return first.params, found["cloning/loss"].total, error, sampled, best

    params, loss, error, sampled, best = fitted(rows(jnp.asarray(situations), jnp.asarray(choices)))
    log_probability = special.log_softmax(
        np.asarray(MLP((8,), 3).apply(params, jnp.asarray(situations)), np.float64), axis=1
    )
    expected = log_probability[np.arange(40), choices]
    assert float(loss) == pytest.approx(-expected.mean(), rel=1e-5)
    np.testing.assert_allclose(error, 1 - np.exp(expected), rtol=1e-4)
    shares = [np.bincount(of, minlength=3) / 4000 for of in np.asarray(sampled).reshape(2, 4000)]
    np.testing.assert_allclose(shares, [[0.7, 0.2, 0.1], [0, 0.25, 0.75]], atol=0.03)
    assert best.tolist() == [0, 2] and best.dtype == sampled.dtype == jnp.int32
