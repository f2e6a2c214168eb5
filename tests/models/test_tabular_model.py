"""Tabular models: what they remember and count, how pairs and outcomes are drawn, and value iteration with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl.core.types import Transition
from jaxmbrl.envs.tabular.mazes import DYNA, maze_mdp
from jaxmbrl.envs.tabular.tables import TabularMDP
from jaxmbrl.models import tabular

SEEN = [(2, 1, 0.5, 3, False), (2, 0, 1.0, 2, False), (4, 1, -1.0, 0, True), (2, 1, 1.5, 3, False), (2, 1, 0.0, 4, True)]
"""(state, action, reward, next state, terminated), at the steps 10, 11, ..."""


def after(model, write):
    rows = [np.array(column) for column in zip(*SEEN, strict=True)]
    fields = [jnp.asarray(x, t) for x, t in zip(rows, (jnp.int32, jnp.int32, float, jnp.int32, bool), strict=True)]
    stacked = Transition(*fields, jnp.zeros(len(SEEN), bool))

    def step(model, given):
        row, time = given
        return write(model, row, time), None

    return jax.lax.scan(step, model, (stacked, 10 + jnp.arange(len(SEEN), dtype=jnp.int32)))[0]


@pytest.fixture(scope="module")
def models():
    """(that of the last outcomes, that of counts with three places, with two)."""

    def run():
        return [after(tabular.init(5, 2), tabular.remember)] + [
            after(tabular.init(5, 2, places), tabular.count) for places in (3, 2)
        ]

    return jax.device_get(jax.jit(run)())


def test_the_last_outcome_is_remembered(models):
    last = models[0]
    assert last.successor[2, 1] == 4 and last.terminated[2, 1] and last.reward[2, 1] == 0.0
    assert last.successor[2, 0] == 2 and last.reward[2, 0] == 1.0 and not last.terminated[2, 0]
    assert last.last_visit.tolist() == [[1, 1], [1, 1], [11, 14], [1, 1], [1, 12]]
    assert (last.visited, last.states[:2].tolist(), last.dropped) == (2, [2, 4], 0)
    assert last.successor[3].ravel().tolist() == [3, 3], "an untried action leads back"


def test_outcomes_are_counted_and_their_rewards_averaged(models):
    counted = models[1]
    assert counted.counts[2, 1].tolist() == [2.0, 1.0, 0.0] and counted.successor[2, 1, :2].tolist() == [3, 4]
    assert counted.reward[2, 1, :2].tolist() == [1.0, 0.0] and counted.terminated[2, 1, :2].tolist() == [False, True]
    assert counted.dropped == models[2].dropped == 0


def test_an_outcome_that_has_no_place_is_dropped():
    full = jax.jit(lambda: after(tabular.init(5, 2, 1), tabular.count))()
    assert int(full.dropped) == 1 and np.asarray(full.counts[2, 1]).tolist() == [2.0]
    assert np.asarray(full.successor[2, 1]).tolist() == [3] and float(full.reward[2, 1, 0]) == 1.0
    assert int(full.last_visit[2, 1]) == 14


def test_a_model_with_several_outcomes_does_not_remember_the_last():
    with pytest.raises(ValueError, match="only a model with one outcome remembers the last one, got 2"):
        after(tabular.init(5, 2, 2), tabular.remember)


def test_pairs_are_drawn_by_state_then_by_action(models):
    """State 2 was visited four times and state 4 once: each is drawn half the time."""
    numbers = (np.stack(np.meshgrid(np.arange(8), np.arange(8), indexing="ij"), -1).reshape(-1, 2) + 0.5) / 8
    draw = jax.jit(jax.vmap(tabular.draw_pair, (None, 0, None)), static_argnums=2)
    for untried, actions in ((False, [32, 0, 16, 16]), (True, [16, 16, 16, 16])):
        state, action = map(np.asarray, draw(models[0], jnp.asarray(numbers, float), untried))
        counts = [np.sum((state == s) & (action == a)) for s, a in ((4, 1), (4, 0), (2, 0), (2, 1))]
        assert counts == actions


def test_outcomes_are_drawn_in_proportion_to_their_counts(models):
    numbers = jnp.array([0.0, 0.3, 0.66, 0.67, 0.9999999])
    draw = jax.jit(jax.vmap(tabular.draw_outcome, (None, None, None, 0)))
    found = draw(models[1], jnp.int32(2), jnp.int32(1), numbers)
    assert np.asarray(found.next_observation).tolist() == [3, 3, 3, 4, 4]
    assert np.asarray(found.terminated).tolist() == [False, False, False, True, True]
    unseen = draw(models[1], jnp.int32(3), jnp.int32(0), numbers)
    assert np.asarray(unseen.next_observation).tolist() == [3] * 5 and not np.asarray(unseen.terminated).any()


def test_targets_are_expectations(models):
    values = np.array([10.0, 20.0, 30.0, 40.0, 50.0])
    last, counted = (np.asarray(jax.jit(tabular.targets)(m, jnp.asarray(values, float), 0.5)) for m in models[:2])
    expected = np.zeros((5, 2))
    expected[2, 0], expected[4, 1] = 1.0 + 0.5 * 30, -1.0
    expected[2, 1] = 0.0
    np.testing.assert_allclose(last, expected)
    expected[2, 1] = (2 * (1.0 + 0.5 * 40) + 0.0) / 3
    np.testing.assert_allclose(counted, expected, rtol=1e-6)
    q = jnp.asarray(np.stack([values, values - 1], axis=1), float)
    one = jax.jit(tabular.target)(models[1], q, 0.5, jnp.int32(2), jnp.int32(1))
    np.testing.assert_allclose(one, expected[2, 1], rtol=1e-6)


def test_predecessors_are_pairs_that_lead_on(models):
    into = jax.jit(tabular.predecessors)
    assert np.argwhere(np.asarray(into(models[1], jnp.int32(3)))).tolist() == [[2, 1]]
    assert not np.asarray(into(models[1], jnp.int32(4))).any(), "that outcome ended the episode"
    assert not np.asarray(into(models[0], jnp.int32(3))).any(), "another outcome came later; untried pairs do not count"
    assert np.argwhere(np.asarray(into(models[0], jnp.int32(2)))).tolist() == [[2, 0]]


def test_fifteen_sweeps_with_the_known_maze_are_value_iteration():
    """The values of the Dyna maze: 0.95^13 at the start, and their sum over the free cells."""
    model = tabular.known(maze_mdp(DYNA))
    assert int(model.visited) == 46
    with jax.enable_x64(True):
        exact = jax.tree.map(lambda x: x.astype(float) if x.dtype == jnp.float32 else x, model)

        def sweep(values, _):
            after = jnp.max(tabular.targets(exact, values, 0.95), axis=1)
            return after, jnp.abs(after - values).max()

        values, changes = jax.jit(lambda: jax.lax.scan(sweep, jnp.zeros(54), None, 16))()
    changes = np.asarray(changes)
    assert changes[14] > 0 and changes[15] == 0
    assert np.isclose(values[18], 0.95**13, rtol=1e-12) and np.isclose(values[18], 0.5133420832795, rtol=1e-12)
    assert np.isclose(np.asarray(values)[np.asarray(model.states)[:46]].sum(), 31.3349364, atol=1e-7)


def test_known_outcomes_are_sorted_by_probability_and_unreachable_states_left_out():
    process = TabularMDP(
        successors=np.array([[[0, 1]], [[1, 1]], [[0, 2]]]),
        probabilities=np.array([[[0.25, 0.75]], [[0.0, 1.0]], [[0.5, 0.5]]]),
        rewards=np.array([[[1.0, 2.0]], [[9.0, 3.0]], [[0.0, 0.0]]]),
        terminated=np.array([[[False, False]], [[False, True]], [[False, False]]]),
        initial=np.array([1.0, 0.0, 0.0]),
    )
    model = jax.device_get(tabular.known(process))
    assert model.visited == 2 and model.states[:2].tolist() == [0, 1]
    assert model.counts[:, 0].tolist() == [[0.75, 0.25], [1.0, 0.0], [0.0, 0.0]]
    assert model.reward[1, 0, 0] == 3.0 and model.terminated[1, 0, 0] and model.successor[0, 0].tolist() == [1, 0]
