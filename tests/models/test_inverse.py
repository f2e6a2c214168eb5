"""The inverse model: its likelihoods by hand, the formulas that it must find, and which actions cannot be found."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxmbrl import envs
from jaxmbrl.core.spaces import Box, Discrete
from jaxmbrl.core.types import Features, Transition
from jaxmbrl.data import replay
from jaxmbrl.distributions import Categorical, Gaussian
from jaxmbrl.models import inverse
from jaxmbrl.models.inverse import InverseConfig

A, B = np.array([[0.9, 0.2], [-0.1, 0.8]]), np.array([[0.5], [0.3]])


def rows(observation, action, next_observation):
    none = jnp.zeros(len(observation), bool)
    reward = jnp.zeros(len(observation))
    return Transition(*map(jnp.asarray, (observation, action, reward, next_observation, none, none)))


def fitted(config, data, action, features=None):
    model = inverse.make(config, data.observation.shape[1], action, features)

    @jax.jit
    def run(data):
        return model.fit(model.init(jax.random.key(0), {}), replay.of_rows(data), jax.random.key(1))

    state, found = run(data)
    return model, state, found


def test_the_losses_are_those_of_scipy():
    rng = np.random.default_rng(0)
    mean, log_std, action = rng.normal(size=(3, 4, 2))
    expected = -stats.norm.logpdf(action, mean, np.exp(log_std)).sum(axis=1).mean()
    found = inverse.negative_log_likelihood(Gaussian(jnp.asarray(mean), jnp.asarray(log_std)), jnp.asarray(action))
    assert float(found) == pytest.approx(expected, rel=1e-5)
    logits, chosen = rng.normal(size=(4, 3)), np.array([0, 2, 1, 1], np.int32)
    expected = -np.log(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True))[np.arange(4), chosen].mean()
    found = inverse.negative_log_likelihood(Categorical(jnp.asarray(logits)), jnp.asarray(chosen))
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_of_a_linear_system_it_is_the_pseudo_inverse():
    """a = B+ (s' - A s); g(s, f(s, a)) = a."""
    rng = np.random.default_rng(1)
    observation, action = rng.normal(size=(500, 2)), rng.uniform(-1, 1, (500, 1))
    following = observation @ A.T + action @ B.T
    by_formula = (following - observation @ A.T) @ np.linalg.pinv(B).T
    np.testing.assert_allclose(by_formula, action, atol=1e-12)
    data = rows(*(x.astype(np.float32) for x in (observation, action, following)))
    model, state, _ = fitted(InverseConfig(hidden=(), fit_steps=1500, learning_rate=1e-2), data, Box((1,), -1, 1))
    found = model.predict(state, data.observation, data.next_observation)
    np.testing.assert_allclose(found.mean, by_formula, atol=0.02)
    assert float(jnp.max(found.log_std)) < -3.0 and int(state.fits) == 1


def test_the_formula_of_the_pendulum():
    """a = ((w' - w) / .05 - 15 sin(angle)) / 6 for every row whose speed is not clipped."""
    task = envs.make("pendulum")

    @jax.jit
    @jax.vmap
    def step(key):
        at, force = jax.random.split(key)
        carry, action = task.world.reset(at), jax.random.uniform(force, (1,), minval=-1.0, maxval=1.0)
        return task.world.step(carry, action, at)[1]

    taken = jax.device_get(step(jax.random.split(jax.random.key(2), 200)))
    before, after = np.asarray(taken.observation, np.float64), np.asarray(taken.next_observation, np.float64)
    by_formula = ((after[:, 2] - before[:, 2]) / 0.05 - 15 * before[:, 1]) / 6
    np.testing.assert_allclose(by_formula, taken.action[:, 0], atol=2e-5)


def test_choices_are_found_and_rows_without_actions_are_relabelled():
    """A choice of -1, 0 or 1 is added to an observation that a feature halves; the recorded actions are not read."""
    rng = np.random.default_rng(3)
    observation, action = rng.normal(size=(300, 1)).astype(np.float32), rng.integers(0, 3, 300).astype(np.int32)
    data = rows(observation, action, observation + action[:, None] - 1.0)
    config = InverseConfig(hidden=(16,), fit_steps=200, learning_rate=1e-2)
    features = Features(encode=lambda observation: observation / 2)
    model, state, found = fitted(config, data, Discrete(3), features)
    assert float(found["inverse/last_loss"].total) < 0.1
    blind = data._replace(action=jnp.zeros_like(data.action))
    np.testing.assert_array_equal(inverse.relabelled(model, state, blind).action, action)


def test_an_action_without_effect_has_the_variance_of_the_data():
    """Of two uniform actions, only the first has an effect: the second has the variance 1/3."""
    rng = np.random.default_rng(4)
    observation, action = rng.normal(size=(1000, 1)), rng.uniform(-1, 1, (1000, 2))
    data = rows(*(x.astype(np.float32) for x in (observation, action, observation + action[:, :1])))
    model, state, _ = fitted(InverseConfig(hidden=(), fit_steps=1000, learning_rate=1e-2), data, Box((2,), -1, 1))
    found = model.predict(state, data.observation, data.next_observation)
    std = np.exp(np.asarray(found.log_std)).mean(axis=0)
    assert std[0] < 0.05 and std[1] == pytest.approx(3**-0.5, rel=0.05)
