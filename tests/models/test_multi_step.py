"""The model of several steps: its loss by hand, which windows count, and what a fit learns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl.core.types import Transition
from jaxmbrl.data import replay
from jaxmbrl.models import multi_step
from jaxmbrl.models.multi_step import MultiStepConfig, multi_step_loss, whole

ONE = jnp.ones(1)


def window(*states):
    """(observation, action, next observation) [1, H, O] of one window."""
    states = jnp.asarray(states, float).reshape(len(states), -1)
    return states[None, :-1], jnp.zeros((1, len(states) - 1, 1)), states[None, 1:]


def doubled(observation, action):
    """f(s) = 2 s + 1 as a change of the first dimension; the others do not change."""
    return observation.at[:, 0].add(1.0) * jnp.eye(observation.shape[1])[0]


def test_the_loss_by_hand():
    """From 0 the model is right, and one step later it predicts 3 where the data have 2: losses 0 and 1, mean .5; .353553
    where a second dimension is exact."""
    loss = float(multi_step_loss(doubled, *window(0, 1, 2), ONE, ONE))
    assert loss == pytest.approx(0.5, abs=1e-6)
    loss = float(multi_step_loss(doubled, *window((0, 7), (1, 7), (2, 7)), jnp.ones(2), ONE))
    assert loss == pytest.approx(0.353553, abs=2e-6)
    # In units of the changes' standard deviation.
    assert float(multi_step_loss(doubled, *window(0, 1, 2), 2 * ONE, ONE)) == pytest.approx(0.25, abs=1e-6)


def test_a_squared_window_of_one_step_is_the_regression_on_changes(x64):
    """H = 1: the square of a window's loss and its gradient are those of the mean squared error of the standardised
    change, by NumPy, for a linear model."""
    rng = np.random.default_rng(0)
    states, actions, following = rng.normal(size=(3, 1, 1, 2))
    weights, std = rng.normal(size=(4, 2)), np.array([0.5, 2.0])
    inputs = np.concatenate([states, actions], axis=-1)[0]
    error = (inputs @ weights - (following - states)[0]) / std

    def squared(weights):
        def change(s, a):
            return jnp.concatenate([s, a], axis=-1) @ weights

        return multi_step_loss(change, *map(jnp.asarray, (states, actions, following, std)), jnp.ones(1)) ** 2

    loss, slope = jax.value_and_grad(squared)(jnp.asarray(weights))
    assert float(loss) == pytest.approx(np.mean(error**2), rel=1e-9)
    np.testing.assert_allclose(slope, inputs.T @ (2 * error / std) / 2, rtol=1e-9)


def test_an_exact_model_has_a_finite_gradient():
    def loss(slope):
        return multi_step_loss(lambda s, a: slope * s + 1, *window(0, 1, 2), ONE, ONE)

    assert np.isfinite(jax.grad(loss)(0.0))
    # Through the first prediction: the second error is (1 + slope) (s_1 + ...) - 1, so the slope is 1 / 2 in all.
    assert float(jax.grad(loss)(0.5)) == pytest.approx(0.5, rel=1e-4)


def test_a_constant_error_costs_the_same_at_every_step():
    for horizon in (1, 3):
        found = multi_step_loss(lambda s, a: jnp.ones_like(s) * 1.5, *window(*range(horizon + 1)), ONE, ONE)
        assert float(found) == pytest.approx(0.5, abs=1e-6)


def test_gradients_flow_through_predicted_states():
    """Two steps of change w from 0, where the data change by 1: with h_1 = w, the second step g(h_1) = w h_1 has the error
    w^2 - 1, whose derivative 2 w has a part through h_1."""

    def change(weight, s, a):
        return jnp.where(s == 0, weight, weight * s)

    def loss(weight):
        return multi_step_loss(functools.partial(change, weight), *window(0, 1, 2), ONE, ONE)

    # (|w - 1| + |w^2 - 1|) / 2 at w = 2: (1 + 4) / 2.
    assert float(jax.grad(loss)(2.0)) == pytest.approx(2.5, rel=1e-5)


def rows(count, stride=1):
    """Steps of `stride` walks in turn, 1, 2, ... apart from each other by 1000, with an end in the fourth step of each."""
    step, walk = np.divmod(np.arange(count), stride)
    state = (1000.0 * walk + step)[:, None].astype(np.float32)
    none = np.zeros(count, bool)
    return Transition(*map(jnp.asarray, (state, 0 * state, none.astype(np.float32), state + 1, none, step == 3)))


def test_windows_cross_no_end_and_no_seam():
    buffer = replay.add(replay.init(jax.tree.map(lambda x: x[0], rows(1)), 14), rows(20, 2))
    slots = jnp.arange(14)
    found, valid = replay.windows(buffer, slots, 3, 2)
    complete = np.asarray(whole(found, valid))
    for i in range(14):
        first = found.observation[i, 0, 0] % 1000
        # Steps 3 to 9 are in the buffer. A window must not begin with the truncated step 3, nor continue beyond step 9.
        assert complete[i] == (4 <= first <= 7), (i, first)
    assert complete.sum() == 8
    # With the wrong stride rows are of different walks.
    found, valid = replay.windows(buffer, slots, 3, 1)
    assert not whole(found, valid).any()


def test_a_fit_learns_a_linear_system():
    """Errors below 2 % of the standard deviation of the changes, also after ten imagined steps; the reward and the
    termination are the functions given."""
    rng = np.random.default_rng(0)
    s, states, actions = np.zeros(2), [], rng.uniform(-1, 1, (600, 1))
    for a in actions:
        states.append(s)
        s = np.array([s[0] + 0.1 * s[1], 0.95 * s[1] + 0.2 * a[0]])
    states = np.array([*states, s], np.float32)
    none = np.zeros(600, bool)
    data = Transition(states[:-1], actions.astype(np.float32), np.zeros(600, np.float32), states[1:], none, none)
    config = MultiStepConfig(hidden=(32,), fit_steps=1500, batch_size=64)
    model = multi_step.make(config, 2, 1, lambda s, a, n: n[:, 0] + a[:, 0], lambda n: n[:, 1] > 1e6)

    @jax.jit
    def fitted(key):
        state, found = model.fit(model.init(key, {}), replay.of_rows(jax.tree.map(jnp.asarray, data)), key)
        world = model.world(state)
        at, made = world.start(jnp.asarray(states[100:110]), key), None
        for i in range(10):
            at, made = world.step(at, jnp.asarray(actions[100 + i : 110 + i], float), key)
        return found, at, made

    found, at, made = fitted(jax.random.key(0))
    deviation = np.std(states[1:] - states[:-1], axis=0)
    assert float(found["model/loss"].weight) == 1500
    assert np.abs((at - states[110:120]) / deviation).max() < 0.2
    np.testing.assert_allclose(made.reward, at[:, 0] + actions[109:119, 0], rtol=1e-5)
    assert not made.terminated.any() and made.terminated.dtype == bool
