"""Discrete actions in the ensemble are one-hot rows to its networks; what it cannot predict is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hand_made import TINY, alive, ready, table

from jaxmbrl.core.config import UserError
from jaxmbrl.core.spaces import Box, Discrete
from jaxmbrl.core.types import Policy
from jaxmbrl.data.replay import of_rows
from jaxmbrl.models import branching, disagreement, ensemble

SMALL = dataclasses.replace(TINY, members=2, hidden=(4,), weight_decay=(), max_epochs=1)


def reward(observation, action, next_observation):
    """Known, of numbered actions [N]."""
    assert action.shape == observation.shape[:1] and action.dtype == jnp.int32
    return observation[:, 0] + 10 * action


def one_hot_reward(observation, action, next_observation):
    return reward(observation, jnp.argmax(action, axis=-1).astype(jnp.int32), next_observation)


def test_a_fit_to_discrete_actions_is_that_to_one_hot_vectors():
    rows, numbers = table(np.random.default_rng(0), 20), np.random.default_rng(1).integers(0, 3, 20)
    ours, (plain, first) = ensemble.make(SMALL, 2, Discrete(3), terminated=alive), ready(SMALL, None, alive, size=(2, 3))
    key = jax.random.key(1)
    by_number = rows._replace(action=numbers.astype(np.int32))
    by_vector = rows._replace(action=np.eye(3)[numbers])
    state, found = jax.jit(ours.fit)(first, of_rows(by_number), key)
    expected, refound = jax.jit(plain.fit)(first, of_rows(by_vector), key)
    assert state.inputs.mean.shape == (5,) and not np.array_equal(state.inputs.std[2:], np.ones(3))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), (state, found), (expected, refound))


@pytest.mark.parametrize("known", [False, True])
def test_predictions_and_imagined_steps_of_discrete_actions_are_those_of_one_hot_vectors(known):
    ours = ensemble.make(SMALL, Box((2,)), Discrete(3), reward if known else None, alive)
    plain, first = ready(SMALL, one_hot_reward if known else None, alive, size=(2, 3))
    rows, numbers = table(np.random.default_rng(0), 6), np.array([0, 2, 1, 1, 2, 0], np.int32)

    @jax.jit
    def results(state, observation, numbers, key):
        worlds = ours.world(state), plain.world(state)
        vectors = jnp.eye(3)[numbers]
        return [
            (ours.predict(state, observation, numbers), worlds[0].step(observation, numbers, key)),
            (plain.predict(state, observation, vectors), worlds[1].step(observation, vectors, key)),
            (worlds[0].step(observation, numbers[1], key), worlds[0].step(observation, jnp.full(6, 2, jnp.int32), key)),
        ]

    (predicted, (carry, imagined)), (expected, (again, same)), one = results(
        first, rows.observation, numbers, jax.random.key(1)
    )
    np.testing.assert_array_equal(imagined.action, numbers)
    assert imagined.action.dtype == jnp.int32
    ours_found, expected_found = (
        (predicted, carry, imagined._replace(action=())),
        (expected, again, same._replace(action=())),
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), ours_found, expected_found)
    # One action without an axis is taken by all rows.
    jax.tree.map(np.testing.assert_array_equal, *one)
    assert one[0][1].action.tolist() == [2] * 6


def test_branches_store_discrete_actions():
    model, state = ready(SMALL, None, alive, size=(2, Discrete(3)))
    rows = table(np.random.default_rng(0), 4)
    row = jax.tree.map(lambda x: x[0], rows)._replace(action=np.zeros((), np.int32))
    config = disagreement.TrustConfig("macura", scale=1e30)
    rule = disagreement.make(config)
    policy = Policy(
        lambda key: (), lambda memory, x, key: (jax.random.randint(key, (len(x),), 0, 3, jnp.int32), (), memory)
    )

    @jax.jit
    def branch(state, origin, key):
        judged = branching.with_disagreement(policy, rule, model, state)
        empty = branching.init(row, 20, 1, config)
        return branching.branch(model.world(state), judged, rule, empty, origin, key, 3)[0].buffer

    buffer = jax.device_get(branch(state, rows.observation, jax.random.key(1)))
    assert buffer.size == 12
    assert set(buffer.data.action[:12].tolist()) == {0, 1, 2}


@pytest.mark.parametrize(
    ("observation", "action", "message"),
    [
        (Discrete(5), 1, r"an ensemble cannot predict a discrete observation, got Discrete\(n=5\)"),
        (Box((8, 8, 3), 0, 255, "uint8"), 1, r"an ensemble's observation must be a vector of real numbers, got Box\("),
        (2, Box((2, 2)), r"an ensemble's action must be a vector of real numbers, got Box\(shape=\(2, 2\)"),
        (2, Box((2,), 0, 3, "int32"), r"an ensemble's action must be a vector of real numbers, got Box\("),
    ],
)
def test_other_spaces_are_refused(observation, action, message):
    with pytest.raises(UserError, match=message):
        ensemble.make(SMALL, observation, action)
