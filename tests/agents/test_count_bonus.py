"""The count bonus: counts and codes by hand, the angles that SimHash distinguishes, and what critics learn with it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl.agents import count_bonus, naf
from jaxmbrl.agents.count_bonus import CountBonusConfig
from jaxmbrl.agents.naf import NAFConfig
from jaxmbrl.core.config import UserError
from jaxmbrl.core.spaces import Box, Discrete

from .test_sac import A, O, assert_same, batch_of, on_device

VECTOR = Box((2,))


def test_states_of_a_table_by_hand():
    config, cells, key = CountBonusConfig(weight=0.5), Discrete(3), jax.random.key(0)
    counts = count_bonus.add(count_bonus.init(config, cells, key), cells, jnp.array([0, 0, 2, 0, 0]))
    np.testing.assert_array_equal(counts.visits, [4, 0, 1])
    found = count_bonus.bonus(counts, config, cells, jnp.array([0, 1, 2]))
    np.testing.assert_allclose(found, [0.25, 0.5, 0.5])
    # A frozen seed counts no more.
    frozen = count_bonus.add(counts.gate(jnp.zeros((), bool), counts), cells, jnp.array([1]))
    np.testing.assert_array_equal(frozen.visits, [4, 0, 1])


def test_codes_of_vectors_by_hand():
    """G = [[1, 0], [0, 1], [1, -1]]: bits 1, 2 and 4."""
    config = CountBonusConfig(weight=1.0, bits=3)
    counts = count_bonus.init(config, VECTOR, jax.random.key(0))
    counts = counts._replace(projection=jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, -1.0]]))
    seen = jnp.array([[2.0, 1.0], [1.0, 2.0], [-1.0, -2.0], [-2.0, 1.0], [4.0, 2.0]])
    np.testing.assert_array_equal(count_bonus.code(counts, VECTOR, seen), [7, 3, 4, 2, 7])
    counts = count_bonus.add(counts, VECTOR, seen)
    np.testing.assert_array_equal(counts.visits, [0, 0, 1, 1, 1, 0, 0, 2])
    assert float(count_bonus.bonus(counts, config, VECTOR, seen[0])) == pytest.approx(0.5**0.5)


def test_bits_agree_by_the_angle():
    """A bit of two states at the angle theta is equal with probability 1 - theta / pi (Charikar 2002)."""
    config, theta = CountBonusConfig(weight=1.0, bits=24), np.array([0.1, 1.0, 2.0])
    others = jnp.asarray(np.stack([np.cos(theta), np.sin(theta)], axis=1), float)

    def codes(key):
        counts = count_bonus.init(config, VECTOR, key)
        return count_bonus.code(counts, VECTOR, jnp.concatenate([jnp.array([[1.0, 0.0]]), others]))

    found = np.asarray(jax.jit(jax.vmap(codes))(jax.random.split(jax.random.key(0), 1000)))
    bits = (found[..., None] >> np.arange(24)) & 1
    equal = np.mean(bits[:, 1:] == bits[:, :1], axis=(0, 2))
    np.testing.assert_allclose(equal, 1 - theta / np.pi, atol=0.015)


def test_scales_divide_the_numbers_of_an_observation():
    plain, scaled = (CountBonusConfig(weight=1.0, scales=scales) for scales in ((), (1.0, 8.0)))
    key, x = jax.random.key(0), jnp.asarray(np.random.default_rng(0).normal(size=(50, 2)), float)
    found = count_bonus.code(count_bonus.init(scaled, VECTOR, key), VECTOR, x * jnp.array([1.0, 8.0]))
    np.testing.assert_array_equal(found, count_bonus.code(count_bonus.init(plain, VECTOR, key), VECTOR, x))
    with pytest.raises(UserError, match=r"count_bonus.scales must have 2 numbers, as an observation has, got 1"):
        count_bonus.init(CountBonusConfig(weight=1.0, scales=(1.0,)), VECTOR, key)


def test_observations_that_cannot_be_hashed_so_are_refused():
    key = jax.random.key(0)
    with pytest.raises(UserError, match=r"^count_bonus.scales must be empty for discrete observations"):
        count_bonus.init(CountBonusConfig(weight=1.0, scales=(1.0,)), Discrete(3), key)
    image = Box((8, 8, 1), 0, 255, "uint8")
    with pytest.raises(UserError, match=r"^count_bonus.weight must be 0 for images"):
        count_bonus.init(CountBonusConfig(weight=1.0), image, key)
    assert count_bonus.init(CountBonusConfig(), image, key) is None


def test_critics_learn_the_reward_with_the_bonus(x64):
    agent, space = naf.make(NAFConfig(hidden=(5,)), O, A), Box((O,))
    config, key, batch = CountBonusConfig(weight=2.0, bits=4), jax.random.key(0), on_device(batch_of())

    @jax.jit
    def found():
        state = agent.init(key, {})
        counts = count_bonus.add(count_bonus.init(config, space, key), space, batch.observation)
        added = count_bonus.bonus(counts, config, space, batch.observation)
        by_hand = agent.update(state, batch._replace(reward=batch.reward + added), key)
        return count_bonus.rewarded(agent, counts, config, space).update(state, batch, key), by_hand, added

    (state, metrics, error), (expected, _, expected_error), added = found()
    assert_same((state, error), (expected, expected_error))
    assert float(metrics["agent/bonus"].total) == pytest.approx(np.mean(added)) and len(np.unique(added)) > 1
    none = CountBonusConfig()
    assert count_bonus.init(none, space, key) is None and count_bonus.add(None, space, batch.observation) is None
    assert count_bonus.rewarded(agent, None, none, space) is agent
