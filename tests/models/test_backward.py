"""The backward model: the ensemble on exchanged rows, the regression of a linear system by hand, impossible rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hand_made import TINY, table
from in_order import in_order

from jaxmbrl.core.types import Policy, Transition, World
from jaxmbrl.data import replay
from jaxmbrl.models import EnsembleConfig, backward, branching, disagreement, ensemble
from jaxmbrl.models.disagreement import TrustConfig

A, B, NOISE = 0.9, 0.5, 0.1


def linear_system(noise, count=4000):
    """s' = .9 s + .5 u + w with u ~ N(0, 1), stationary; the reward is s u."""
    rng = np.random.default_rng(0)
    s = rng.normal(0.0, np.sqrt((B**2 + noise**2) / (1 - A**2)), (count, 1))
    u = rng.normal(size=(count, 1))
    after = A * s + B * u + noise * rng.normal(size=(count, 1))
    none = np.zeros(count, bool)
    rows = Transition(s, u, (s * u)[:, 0], after, none, none)
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32) if x.dtype == float else jnp.asarray(x), rows)


@pytest.mark.parametrize(
    ("noise", "weights", "variance"), [(0.1, (1.101176, -0.550588), 0.012235), (0.0, (1 / A, -B / A), 0.0)]
)
def test_the_regression_of_the_predecessor_by_hand(noise, weights, variance):
    """In exact moments: s given (s', u), where var s = (B^2 + noise^2) / (1 - A^2)."""
    s = (B**2 + noise**2) / (1 - A**2)
    moments, cross = np.array([[s, B], [B, 1.0]]), np.array([A * s, 0.0])
    found = np.linalg.solve(moments, cross)
    np.testing.assert_allclose(found, weights, atol=1e-6)
    assert s - cross @ found == pytest.approx(variance, abs=1e-6)


def test_it_learns_that_regression():
    config = EnsembleConfig(members=2, elites=2, hidden=(16,), batch_size=64, max_epochs=8, learning_rate=3e-3)
    model = backward.make(config, 1, 1, terminated=backward.never)
    after, action = jnp.array([[0.5], [-1.0], [0.3]]), jnp.array([[0.2], [-0.5], [1.0]])

    @jax.jit
    def fitted(rows):
        state, _ = model.fit(model.init(jax.random.key(0), {}), replay.of_rows(rows), jax.random.key(1))
        return model.predict(state, after, action)

    mean, variance = (np.asarray(x) for x in fitted(linear_system(NOISE)))
    expected = 1.101176 * after[:, 0] - 0.550588 * action[:, 0]
    np.testing.assert_allclose(mean[:, :, 0].mean(axis=0), expected, atol=0.06)
    np.testing.assert_allclose(variance[:, :, 0].mean(), 0.012235, rtol=0.5)


@functools.cache
def fitted_to_a_table():
    """(forward state on exchanged rows, backward state, both models) after a fit with the same keys."""
    rows = jax.tree.map(jnp.asarray, table(np.random.default_rng(0), 60))
    known = lambda before, action, after: before[:, 0] + 100 * after[:, 0]  # noqa: E731
    model = backward.make(TINY, 2, 1, reward=known, terminated=lambda observation: observation[:, 0] > 1.0)
    plain = ensemble.make(TINY, 2, 1, reward=known, terminated=lambda observation: observation[:, 0] > 1.0)

    @jax.jit
    def fit(rows):
        state = model.init(jax.random.key(0), {})
        swapped = rows._replace(observation=rows.next_observation, next_observation=rows.observation)
        by_hand = plain.fit(state, replay.of_rows(swapped), jax.random.key(1))[0]
        back = model.fit(state, replay.of_rows(rows), jax.random.key(1))[0]
        world, reference = model.world(back), plain.world(back)
        after, action = rows.next_observation[:6], rows.action[:6]
        one = world.step(after, action, jax.random.key(2))
        return by_hand, back, one, reference.step(after, action, jax.random.key(2))

    return rows, *fit(rows)


def test_it_is_the_ensemble_on_exchanged_rows_whose_steps_are_in_the_order_of_time():
    rows, by_hand, back, (carry, row), (reached, _) = fitted_to_a_table()
    jax.tree.map(np.testing.assert_array_equal, by_hand.members, back.members)
    np.testing.assert_array_equal(row.next_observation, rows.next_observation[:6])
    np.testing.assert_array_equal(row.observation, carry)
    np.testing.assert_array_equal(carry, reached)
    # The known reward is that of the transition in time, the termination that of the predecessor.
    np.testing.assert_allclose(row.reward, row.observation[:, 0] + 100 * row.next_observation[:, 0], rtol=1e-6)
    np.testing.assert_array_equal(row.terminated, row.observation[:, 0] > 1.0)
    assert 0 < int(row.terminated.sum()) < 6
    assert rows.terminated.any() and back.members.params.termination == (), "no termination is learned"


def test_an_impossible_predecessor_is_dropped_and_ends_its_branch():
    """A world that goes back by one: from 3.5, 2.5 and 1.5, where predecessors above 2 are terminal."""

    def step(carry, action, key):
        before = carry - 1
        row = Transition(before, action, before[:, 0], carry, before[:, 0] > 2, jnp.zeros(len(carry), bool))
        return before, row

    world = World(lambda key: None, lambda origin, key: origin, lambda carry: carry, step)
    acting = Policy(lambda key: (), lambda memory, x, key: (jnp.zeros_like(x), (), memory))
    prototype = jax.tree.map(lambda leaf: leaf[0], step(jnp.ones((1, 1)), jnp.zeros((1, 1)), None)[1])

    @jax.jit
    def go(origin):
        empty = branching.init(prototype, 20, 1, TrustConfig())
        rule = disagreement.make(TrustConfig())
        made, _ = branching.branch(world, acting, rule, empty, origin, jax.random.key(0), 2, backward=True)
        return in_order(made.buffer), made.buffer.size

    rows, size = go(jnp.array([[3.5], [2.5], [1.5]]))
    stored = jax.tree.map(lambda leaf: np.asarray(leaf)[: int(size)], rows)
    np.testing.assert_array_equal(stored.observation[:, 0], [1.5, 0.5, 0.5, -0.5])
    np.testing.assert_array_equal(stored.next_observation[:, 0], [2.5, 1.5, 1.5, 0.5])
    assert not stored.terminated.any()
