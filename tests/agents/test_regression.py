"""The regressed policy: its loss by hand, and a linear policy that finds its teacher."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxmbrl.agents import regression
from jaxmbrl.agents.regression import RegressionConfig


def test_the_loss_computed_by_hand():
    weight = jnp.array([[[2.0, 1.0], [1.0, 3.0]], [[1.0, 0.0], [0.0, 1.0]]])
    mean, target = jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.array([[0.0, 1.0], [0.0, 0.0]])
    # d = (1, -1): 2 - 2 + 3 = 3; d = (0, 2): 4; half the mean of both.
    assert float(regression.regression_loss(mean, target, weight)) == 1.75


def test_a_linear_policy_finds_a_linear_teacher(x64):
    """And its precision is the mean of the weights. Before, its mean is 0."""
    config = RegressionConfig(hidden=(), updates=2000, batch_size=20, learning_rate=0.03, initial_std=0.5)
    agent, rng = regression.make(config, 2, 2), np.random.default_rng(3)
    x = jnp.asarray(rng.normal(size=(40, 2)) * [1.0, 30.0] + 3)
    K, k = jnp.array([[0.5, -0.02], [2.0, 0.1]]), jnp.array([0.3, -1.0])
    precision = jnp.where(jnp.arange(40)[:, None, None] < 10, jnp.array([[8.0, 2.0], [2.0, 4.0]]), jnp.eye(2))

    @jax.jit
    def run(key):
        first = agent.init(key, {})
        return first, *agent.fit(first, x, x @ K.T + k, precision, jax.random.fold_in(key, 1))

    first, found, metrics = run(jax.random.key(0))
    np.testing.assert_array_equal(agent.mean(first, x), 0.0)
    np.testing.assert_array_equal(first.std, 0.5)
    np.testing.assert_allclose(agent.mean(found, x), x @ K.T + k, atol=1e-3)
    np.testing.assert_allclose(found.std**-2.0, [2.75, 1.75], rtol=1e-12)
    assert float(metrics["policy/regression_loss"].weight) == 2000


def test_commands_are_kept_before_they_are_clipped():
    agent = regression.make(RegressionConfig(initial_std=3.0, hidden=(4,)), 2, 1)
    state, x = agent.init(jax.random.key(0), {}), jnp.array([1.0, -2.0])
    exploring, acting = (agent.policy(state, explore) for explore in (True, False))
    action, extras, _ = jax.vmap(lambda key: exploring.act((), x, key))(jax.random.split(jax.random.key(1), 400))
    np.testing.assert_array_equal(action, np.clip(extras["command"], -1, 1))
    assert abs(float(jnp.std(extras["command"])) - 3.0) < 0.4
    np.testing.assert_array_equal(acting.act((), x, jax.random.key(2))[0], 0.0)
