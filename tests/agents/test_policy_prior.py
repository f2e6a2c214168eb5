"""The policy prior of TD-MPC2 and its Q-functions: targets, losses and the scale of values, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl.agents import policy_prior
from jaxmbrl.agents.policy_prior import PriorConfig
from jaxmbrl.core.config import UserError, check
from jaxmbrl.distributions import ScalarHead

A, Z = 2, 3
CONFIG = PriorConfig(units=4, layers=1, critics=3, bins=0, dropout=0.0, entropy=0.1)
STILL = 1e-15
"""A standard deviation that changes no digit."""


def by_hand(std=0.5):
    """A prior whose mean is its parameter, and Q-functions c_i + the sum of the action, with parameters c."""
    made = policy_prior.make(CONFIG, Z, A)

    def gaussian(params, z):
        mean = params * jnp.ones((*z.shape[:-1], A))
        return mean, jnp.full(mean.shape, np.log(std))

    def outputs(params, z, action, key):
        return (params.reshape(-1, *[1] * (z.ndim - 1)) + jnp.sum(action, axis=-1))[..., None]

    return made._replace(gaussian=gaussian, outputs=outputs, number=ScalarHead())


def test_the_target_is_the_least_of_two_random_values_and_nothing_after_a_termination(x64):
    """Of values 0, 2 and 5, two of three pairs contain 0, and one has the minimum 2."""
    prior, critics = by_hand(STILL), jnp.array([0.0, 2.0, 5.0])

    @jax.jit
    def targets(keys):
        def of(mean, key):
            reward, ends = jnp.array([1.0, 3.0]), jnp.array([False, True])
            return policy_prior.target(prior, mean, critics, 0.9, reward, ends, jnp.zeros((2, Z)), key)

        return jax.vmap(of, (None, 0))(jnp.asarray(0.5), keys), jax.jacobian(lambda mean: of(mean, keys[0]))(0.5)

    found, slope = jax.device_get(targets(jax.random.split(jax.random.key(0), 1500)))
    least = (found[:, 0] - 1) / 0.9 - 2 * np.tanh(0.5)
    np.testing.assert_allclose(np.unique(np.round(least, 9)), [0, 2], atol=1e-8)
    assert np.mean(least < 1) == pytest.approx(2 / 3, abs=0.04)
    assert (found[:, 1] == 3.0).all() and not slope.any()


def test_the_entropy_is_that_before_tanh_times_the_number_of_action_entries(x64):
    prior = by_hand()

    @jax.jit
    def looked(keys):
        sample = jax.vmap(lambda mean, key: prior.sample(mean, jnp.zeros(Z), key), (None, 0))
        slope = jax.grad(lambda mean: jnp.sum(sample(mean, keys)[1]))
        return *sample(0.3, keys), slope(0.3), prior.mode(0.3, jnp.zeros(Z))

    action, entropy, slope, mode = jax.device_get(looked(jax.random.split(jax.random.key(1), 4000)))
    u = np.arctanh(action)
    due = -A * np.sum(-0.5 * ((u - 0.3) / 0.5) ** 2 - np.log(0.5) - 0.5 * np.log(2 * np.pi), axis=-1)
    np.testing.assert_allclose(entropy, due, rtol=1e-9)
    # Its mean is A times the entropy of the Gaussian, and the mean of the Gaussian has no effect on it.
    np.testing.assert_allclose(np.mean(entropy), A * A * (np.log(0.5) + 0.5 * np.log(2 * np.pi * np.e)), atol=0.1)
    assert slope == 0.0
    np.testing.assert_allclose(mode, np.tanh(0.3), rtol=1e-12)


def test_the_standard_deviation_is_bounded(x64):
    prior = policy_prior.make(CONFIG, Z, A)

    @jax.jit
    def log_std(key):
        params = prior.init_actor(key)
        scaled = [jax.tree.map(lambda x, s=s: s * x, params) for s in (0.0, 1e3, -1e3)]
        return jnp.stack([prior.gaussian(x, jnp.ones(Z))[1] for x in scaled])

    found = np.asarray(log_std(jax.random.key(0)))
    assert found[0].tolist() == [-4.0] * A and found.min() >= -10 and found.max() <= 2


def test_the_scale_by_hand(x64):
    """Of values 0 .. 100 the percentiles are 5 and 95: from 1 the scale becomes 1 + .01 (90 - 1). It falls towards 1."""
    moved = jax.jit(lambda scale, values: policy_prior.moved_scale(scale, values, 0.01))
    assert float(moved(1.0, np.arange(101.0))) == pytest.approx(1.89)
    assert float(moved(3.0, np.zeros(8))) == pytest.approx(2.98)


def test_the_actors_loss_by_hand(x64):
    """Two rows of three positions, of which the last of the second row does not count."""
    prior, critics = by_hand(STILL), jnp.array([1.0, 1.0, 1.0])
    prior = prior._replace(config=PriorConfig(entropy=0.0, target_rate=0.5))
    valid = jnp.array([[True, True, True], [True, True, False]])

    def loss(mean, scale, key):
        found, (after, _) = policy_prior.actor_loss(prior, 0.5, mean, critics, scale, jnp.zeros((2, 3, Z)), valid, key)
        return found, after

    (found, scale), slope = jax.jit(jax.value_and_grad(loss, has_aux=True))(0.4, jnp.asarray(3.0), jax.random.key(2))
    # All values are equal, so the scale moves half of the way to 1.
    q, weight = 1 + 2 * np.tanh(0.4), (1 + 0.5 + 0.25 + 1 + 0.5) / 5
    assert float(scale) == 2.0
    np.testing.assert_allclose([found, slope], [-weight * q / 2, -weight * 2 * (1 - np.tanh(0.4) ** 2) / 2], rtol=1e-12)


def test_the_values_loss_is_the_mean_over_the_q_functions(x64):
    prior, critics = by_hand(), jnp.array([0.0, 2.0, 5.0])
    action = jnp.array([[0.1, 0.2], [0.0, 0.0]])
    target = jnp.array([1.3, 2.0])
    found = jax.jit(lambda key: policy_prior.value_loss(prior, critics, jnp.zeros((2, Z)), action, target, key))(
        jax.random.key(0)
    )
    np.testing.assert_allclose(found, [(1 + 1 + 16) / 3, (4 + 0 + 9) / 3], rtol=1e-12)


def test_networks_start_at_a_value_of_zero_and_drop_units_with_a_key_only():
    config = PriorConfig(units=16, layers=2, critics=2, bins=5, dropout=0.3)
    prior = policy_prior.make(config, Z, A)

    @jax.jit
    def looked(keys):
        critics, z, action = prior.init_critics(keys[0]), jnp.ones((4, Z)), jnp.zeros((4, A))
        moved = jax.tree.map(lambda x: x + 0.1, critics)
        outputs = [prior.outputs(moved, z, action, key) for key in (None, *keys)]
        return prior.values(critics, z, action), outputs

    start, (plain, one, two) = jax.device_get(looked(jax.random.split(jax.random.key(0))))
    assert start.shape == (2, 4) and not start.any()
    assert plain.shape == (2, 4, 5) and (plain[:, 0] == plain[:, 1]).all()
    assert (one != plain).any() and (one != two).any()
    with pytest.raises(UserError, match=r"^bins must be 0, or odd and at least 3, got 4$"):
        check(PriorConfig(bins=4))
