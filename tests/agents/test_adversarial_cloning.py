"""Adversarial cloning: the value of the game in SciPy, gradients by hand, and actions that no Gaussian has."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.spatial.distance import jensenshannon

from jaxmbrl.agents import adversarial_cloning as cloning
from jaxmbrl.agents import behaviour_cloning
from jaxmbrl.agents.adversarial_cloning import AdversarialConfig
from jaxmbrl.agents.behaviour_cloning import CloningConfig
from jaxmbrl.core.types import Transition


def test_the_best_discriminator_measures_the_jensen_shannon_divergence():
    """Of p = (.5, .5) and q = (.9, .1) on two points D = p / (p + q), its value is 2 JSD - log 4, and it is a maximum."""
    logits = jnp.log(jnp.array([0.5 / 0.9, 0.5 / 0.1]))

    def loss(logits):
        return cloning.discriminator_loss(logits[jnp.array([0, 1])], logits[jnp.array([0] * 9 + [1])])

    found, gradient = jax.value_and_grad(loss)(logits)
    divergence = jensenshannon([0.5, 0.5], [0.9, 0.1]) ** 2
    assert float(found) == pytest.approx(np.log(4) - 2 * divergence, rel=1e-5)
    np.testing.assert_allclose(gradient, np.zeros(2), atol=1e-6)


def test_gradients_by_hand():
    """With respect to the logits l: -(1 - D) for recorded actions, D for generated ones, and -D for the policy."""
    real, generated = jnp.array([0.0, 1.0]), jnp.array([-1.0, 2.0])
    d = lambda x: 1 / (1 + np.exp(-np.asarray(x)))  # noqa: E731
    of_real, of_generated = jax.grad(cloning.discriminator_loss, argnums=(0, 1))(real, generated)
    np.testing.assert_allclose(of_real, -(1 - d(real)) / 2, rtol=1e-5)
    np.testing.assert_allclose(of_generated, d(generated) / 2, rtol=1e-5)
    np.testing.assert_allclose(jax.grad(cloning.policy_loss)(generated), -d(generated) / 2, rtol=1e-5)
    # Both have the same part of V = E[log D] + E[log(1 - D)], with opposite signs.
    value = cloning.policy_loss(generated) + cloning.discriminator_loss(real, generated)
    assert float(value) == pytest.approx(-np.mean(np.log(d(real))), rel=1e-5)


def rows(observation, action):
    none = jnp.zeros(len(observation), bool)
    return Transition(jnp.asarray(observation), jnp.asarray(action), jnp.zeros(len(observation)), None, none, none)


def test_a_blind_discriminator_does_not_move_the_policy():
    """D without parameters other than 0 is 1/2 everywhere. With the learning rate 0 of D, the policy stays bit for bit."""
    learner = cloning.make(AdversarialConfig(hidden=(4,), noise=2), 2, 1)
    data = rows(np.ones((3, 2), np.float32), np.zeros((3, 1), np.float32))

    @jax.jit
    def run():
        state = learner.init(jax.random.key(0), {})
        blind = state.discriminator._replace(
            params=jax.tree.map(jnp.zeros_like, state.discriminator.params), learning_rate=jnp.zeros(())
        )
        state = state._replace(discriminator=blind)
        return state, *learner.update(state, data, jax.random.key(1))

    old, new, found, error = run()
    jax.tree.map(np.testing.assert_array_equal, old.policy.params, new.policy.params)
    assert float(found["adversarial/discriminator_loss"].total) == pytest.approx(np.log(4), rel=1e-6)
    assert float(found["adversarial/loss"].total) == pytest.approx(np.log(0.5), rel=1e-6)
    greedy = learner.policy(old, False).act((), data.observation, jax.random.key(2))[0]
    np.testing.assert_allclose(error, np.abs(greedy[:, 0]), rtol=1e-6)


def test_it_learns_a_conditional_distribution_that_no_gaussian_has():
    """Actions near +(.5 + .3 s) or -(.5 + .3 s): Wasserstein-1 distances of samples at three states, beside those of the
    Gaussian of maximum likelihood."""
    rng = np.random.default_rng(0)
    observation = rng.uniform(-1, 1, (4000, 1)).astype(np.float32)

    def action(observation, rng):
        sides = rng.choice([-1.0, 1.0], observation.shape)
        return (sides * (0.5 + 0.3 * observation) + 0.05 * rng.normal(size=observation.shape)).astype(np.float32)

    data, at = rows(observation, action(observation, rng)), np.repeat([-0.8, 0.0, 0.8], 2000)[:, None].astype(np.float32)

    @jax.jit
    def samples(data):
        def fitted(learner, steps):
            def step(state, key):
                row_key, key = jax.random.split(key)
                index = jax.random.randint(row_key, (256,), 0, len(observation))
                batch = data._replace(observation=data.observation[index], action=data.action[index])
                return learner.update(state, batch, key)[0], None

            state, _ = jax.lax.scan(step, learner.init(jax.random.key(0), {}), jax.random.split(jax.random.key(1), steps))
            return learner.policy(state, True).act((), jnp.asarray(at), jax.random.key(2))[0]

        gan = cloning.make(AdversarialConfig(hidden=(32, 32), learning_rate=1e-3), 1, 1)
        gaussian = behaviour_cloning.make(CloningConfig(hidden=(32, 32), learning_rate=3e-3), 1, 1)
        return fitted(gan, 1500), fitted(gaussian, 500)

    wanted = action(at, np.random.default_rng(1))
    by_gan, by_gaussian = (
        [stats.wasserstein_distance(x[part, 0], wanted[part, 0]) for part in np.split(np.arange(len(at)), 3)]
        for x in map(np.asarray, samples(data))
    )
    assert max(by_gan) < 0.12
    assert all(a < 0.5 * b for a, b in zip(by_gan, by_gaussian, strict=True))
