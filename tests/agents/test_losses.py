"""The losses of actor-critics on four rows, not jitted, against numbers computed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl.agents.actor_critic import sac, td3
from jaxmbrl.agents.actor_critic.critics import critic_loss, next_discount, regress, td_target
from jaxmbrl.core.types import Transition
from jaxmbrl.data.n_step import NStep
from jaxmbrl.nn import optimizer

VALUES = jnp.array([[1.0, 2.0, 3.0, 4.0], [2.0, 1.0, 5.0, 4.0]])
"""Of two critics."""
TARGET = jnp.array([1.0, 1.0, 4.0, 2.0])


def test_one_step_target():
    ended = jnp.array([False, True, False, True])
    found = td_target(jnp.array([1.0, 2.0, -1.0, 0.5]), 0.9, ended, jnp.array([10.0, jnp.nan, -20.0, jnp.inf]))
    np.testing.assert_allclose(found, [10.0, 2.0, -19.0, 0.5], rtol=1e-6)


def test_rows_of_several_steps_have_a_discount_of_their_own():
    row, discount = Transition(*np.zeros((6, 2), np.float32)), jnp.asarray(0.9)
    assert next_discount(row, discount) is discount
    own = jnp.array([0.9, 0.81])
    assert next_discount(NStep(*row, discount=own), discount) is own


ONE_SAC = sac.SACConfig(hidden=(), critics=1, critic_subset=1)
ONE_TD3 = td3.TD3Config(hidden=(), critics=1)


@pytest.mark.parametrize("agent", [sac.make(ONE_SAC, 2, 1), td3.make(ONE_TD3, 2, 1)])
def test_actor_critics_learn_from_rows_of_several_steps(agent):
    """An update with rows of discount g is that of an agent with the discount g."""
    random, key = np.random.default_rng(0), jax.random.key(1)
    row = Transition(
        *(jnp.asarray(random.normal(size=shape), jnp.float32) for shape in ((4, 2), (4, 1), (4,), (4, 2))),
        terminated=jnp.array([False, True, False, False]),
        truncated=jnp.zeros(4, bool),
    )

    @jax.jit
    def errors(row):
        state = agent.init(jax.random.key(0), {})
        several = NStep(*row, discount=jnp.full(4, 0.5))
        other = state._replace(discount=jnp.asarray(0.5))
        return [agent.update_critic(*given, key)[2] for given in ((state, several), (other, row), (state, row))]

    several, other, one = jax.device_get(errors(row))
    np.testing.assert_allclose(several, other, rtol=1e-6)
    assert (np.abs(several - one) > 1e-4).tolist() == [True, False, True, True]


def test_critic_loss():
    # Errors 0, 1, -1, 2 and 1, 0, 1, 2: means of squares 6/4 and 6/4.
    assert float(critic_loss(VALUES, TARGET)) == 3.0
    # Weights of 1 change nothing, bit for bit.
    assert float(critic_loss(VALUES / 3, TARGET, jnp.ones(4))) == float(critic_loss(VALUES / 3, TARGET))
    weight = jnp.array([1.0, 0.0, 2.0, 0.5])
    # (0 + 0 + 2 + 2) / 4 and (1 + 0 + 2 + 2) / 4.
    assert float(critic_loss(VALUES, TARGET, weight)) == 1.0 + 1.25
    slope = jax.grad(critic_loss)(VALUES, TARGET)
    np.testing.assert_allclose(slope, 2 * (VALUES - TARGET) / 4)


def test_the_error_of_a_row_is_its_mean_absolute_error():
    critic = optimizer.init(VALUES, 1e-3)
    _, found, error = regress(critic, lambda params: params, TARGET)
    np.testing.assert_allclose(error, [0.5, 0.5, 1.0, 2.0])
    assert float(found["agent/critic_loss"].total) == 3.0 and float(found["agent/q"].total) == 22 / 8


def test_no_gradient_flows_into_the_target():
    def loss(scale):
        critic = optimizer.init(VALUES, 1e-3)
        return regress(critic, lambda params: params, scale * TARGET)[1]["agent/critic_loss"].total

    assert float(jax.grad(loss)(1.0)) == 0.0


@pytest.mark.parametrize(("value", "expected"), [("min", -8.0 / 4 + 0.5), ("mean", -11.0 / 4 + 0.5)])
def test_actor_loss(value, expected):
    # Minima 1, 1, 3, 3, in all 8; means 1.5, 1.5, 4, 4, in all 11. Log-densities sum to 4, at temperature 0.5.
    log_density = jnp.array([1.0, 2.0, -1.0, 2.0])
    values = VALUES.at[:, 3].set(jnp.array([3.0, 5.0]))
    assert float(sac.actor_loss(values, log_density, 0.5, value)) == pytest.approx(expected)
    assert float(sac.actor_loss(values, log_density, 0.0, value)) == pytest.approx(expected - 0.5)


def test_temperature_loss():
    """alpha rises while the policy's entropy is below its target."""
    log_temperature, log_density = jnp.log(0.2), jnp.asarray(1.5)
    assert float(sac.temperature_loss(log_temperature, log_density, -1.0)) == pytest.approx(-np.log(0.2) * 0.5, rel=1e-6)
    slope = jax.grad(sac.temperature_loss, (0, 1))(log_temperature, log_density, -1.0)
    # Entropy -1.5 below -1: descending raises log alpha; the policy's own density is a constant.
    assert [float(x) for x in slope] == [-0.5, 0.0]


def test_deterministic_actor_loss():
    assert float(td3.actor_loss(jnp.array([1.0, -2.0, 4.0, 5.0]))) == -2.0


def test_target_policy_smoothing_is_clipped_twice():
    action, key = jnp.array([[-0.95], [0.0], [0.3], [1.0]]), jax.random.key(0)
    noise = np.clip(0.2 * np.asarray(jax.random.normal(key, action.shape)), -0.1, 0.1)
    found = td3.smoothed(action, key, 0.2, 0.1)
    np.testing.assert_allclose(found, np.clip(action + noise, -1, 1), rtol=1e-6)
    assert np.abs(found).max() <= 1
