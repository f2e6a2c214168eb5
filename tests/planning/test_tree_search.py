"""PUCT and Gumbel MuZero through the wrapper of mctx: numbers by hand, mctx's own trees, ends of episodes, two players."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl.core.config import UserError
from jaxmbrl.core.types import Transition, World
from jaxmbrl.planning import tree_search
from jaxmbrl.planning.tree_search import GumbelConfig, Played, PUCTConfig, SearchConfig, SearchModel, Step
from jaxmbrl.planning.tree_search.model import expand, first_node, only_legal
from jaxmbrl.planning.tree_search.search import gumbel_values

REWARDS = np.array([1.0, 0.5])


def bandit(rewards, logits=None, after=0.0):
    """Arms whose pull ends the episode. After its end the model returns `after` everywhere."""
    rewards = jnp.asarray(rewards)
    logits = jnp.zeros(len(rewards)) if logits is None else jnp.asarray(logits)

    def step(pulled, arm, key):
        first = pulled == 0
        return Step(jnp.where(first, rewards[arm], after), jnp.where(first, 0.0, after), jnp.where(first, 1.0, after))

    def evaluate(node, key):
        first = node.state == 0
        return jnp.where(first, logits, after), jnp.where(first, 0.0, after)

    return SearchModel(step, evaluate)


def found(config, model, state, seed=0, explore=False):
    search = tree_search.make(config)
    return jax.device_get(jax.jit(lambda key: search(model, state, key, explore))(jax.random.key(seed)))


def test_puct_of_two_arms():
    """The first arm is visited first, because its prior is a little larger."""
    result = found(SearchConfig("puct", 16), bandit(REWARDS, logits=[1e-4, 0.0]), jnp.zeros(()))
    assert result.statistics.visits.tolist() == [14, 2] and result.action == 0
    np.testing.assert_allclose(result.statistics.value, 15 / 17, rtol=1e-6)
    np.testing.assert_allclose(result.statistics.weights, [14 / 16, 2 / 16])


def test_gumbel_of_two_arms_although_the_model_is_nan_after_its_end():
    result = found(SearchConfig("gumbel", 8), bandit(REWARDS, after=np.nan), jnp.zeros(()))
    assert result.statistics.visits.tolist() == [4, 4] and result.action == 0
    np.testing.assert_allclose(result.statistics.weights, [0.995504, 0.004496], atol=1e-6)
    np.testing.assert_allclose(result.statistics.value, 2 / 3, rtol=1e-6)
    assert np.isfinite(result.tree.node_values).all() and np.isfinite(result.tree.children_values).all()


def test_sequential_halving_of_four_arms():
    """16 simulations: two visits of each of four arms, then four more of each of the best two."""
    result = found(SearchConfig("gumbel", 16, GumbelConfig(considered=4)), bandit([0.1, 0.9, 0.5, 0.7]), jnp.zeros(()))
    assert result.statistics.visits.tolist() == [2, 6, 2, 6] and result.action == 1


def test_one_simulation_of_one_action_takes_the_action_of_the_prior():
    config = SearchConfig("gumbel", 1, GumbelConfig(considered=1))
    result = found(config, bandit([1.0, 0.0, 0.5], logits=[0.1, 0.3, 0.2]), jnp.zeros(()))
    assert result.action == 1 and result.statistics.visits.tolist() == [0, 1, 0]


def test_completed_action_values():
    """p (.2, .5, .3), q (.2, .8, none), visits (2, 5, 0), value .5: the mixed value is
    (.5 + 7 (.04 + .4) / .7) / 8 = .6125."""
    import mctx

    one = np.ones((1, 1, 3), np.float32)
    q, visits = np.array([[[0.2, 0.8, 0.0]]], np.float32), np.array([[[2, 5, 0]]], np.int32)
    prior = np.log([[[0.2, 0.5, 0.3]]]).astype(np.float32)
    tree = mctx.Tree(
        node_visits=visits.sum(-1) + 1,
        raw_values=np.full((1, 1), 0.5, np.float32),
        node_values=np.full((1, 1), 0.5, np.float32),
        parents=-np.ones((1, 1), np.int32),
        action_from_parent=-np.ones((1, 1), np.int32),
        children_index=-np.ones((1, 1, 3), np.int32),
        children_prior_logits=prior,
        children_values=0 * q,
        children_visits=visits,
        children_rewards=q,
        children_discounts=one,
        embeddings=(),
        root_invalid_actions=0 * one[0],
        extra_data=(),
    )
    tree = jax.tree.map(lambda x: jnp.asarray(x)[0], tree)
    completed = np.asarray(gumbel_values(GumbelConfig())(tree, 0))
    np.testing.assert_allclose(completed, 5.5 * (np.array([0.2, 0.8, 0.6125]) - 0.2) / 0.6, rtol=1e-5)
    policy = np.exp(prior[0, 0] + completed)
    np.testing.assert_allclose(policy / policy.sum(), [0.001474, 0.901544, 0.096983], atol=1e-6)


def random_model(actions, discount):
    """The model of mctx's golden trees (mctx/_src/tests/tree_test.py): keys as states, random predictions."""

    def predicted(key):
        policy_key, value_key, reward_key = jax.random.split(key, 3)
        value = jax.random.uniform(value_key, minval=-1.0, maxval=1.0)
        reward = jax.random.uniform(reward_key, minval=-1.0, maxval=1.0)
        return jax.random.normal(policy_key, [actions]), value, reward

    def step(key, action, unused):
        key = jax.random.split(key, actions)[action]
        return Step(predicted(key)[2], jnp.asarray(discount), key)

    return SearchModel(step, lambda node, unused: predicted(node.state)[:2])


GOLDEN = {
    "gumbel_muzero_reward_tree": (
        SearchConfig("gumbel", 50, GumbelConfig(considered=8, value_scale=0.1, visit_offset=20.0, rescale=False)),
        {1: (15, 0.34063357), 5: (6, -0.20625414), 7: (2, -0.52361155), 8: (2, -0.19005489), 10: (15, 1.1015078)}
        | {12: (2, 0.022486538), 14: (2, -0.31532437), 17: (6, 0.54301184)},
        0.63751233,
    ),
    "muzero_qtransform_tree": (
        SearchConfig("puct", 50, puct=PUCTConfig(noise_share=0.0)),
        {7: (2, -0.52361155), 14: (48, 3.1178679)},
        2.9902523,
    ),
}
"""Name of a tree of mctx -> (search, visits and value of each visited child of the root, value of the root), as in
google-deepmind/mctx: mctx/_src/tests/test_data."""


@pytest.mark.parametrize(
    "name", ["gumbel_muzero_reward_tree", pytest.param("muzero_qtransform_tree", marks=pytest.mark.promises)]
)
def test_golden_trees_of_mctx(name):
    config, children, value = GOLDEN[name]
    with jax.threefry_partitionable(False):
        result = found(config, random_model(18, 0.997), jax.random.PRNGKey(0))
    assert {a: n for a, n in enumerate(result.statistics.visits.tolist()) if n} == {a: n for a, (n, _) in children.items()}
    means = {a: result.tree.children_values[0, 0, a] for a in children}
    np.testing.assert_allclose(list(means.values()), [v for _, v in children.values()], atol=1e-3)
    np.testing.assert_allclose(result.statistics.value, value, atol=1e-3)


def test_a_search_in_networks_that_are_the_simulator_is_that_in_the_simulator():
    """Without ends, MuZero's search with g = the true step is AlphaZero's."""
    rewards = jnp.array([[0.1, 0.7], [0.3, 0.4], [0.6, 0.0]])

    def moved(cell, action):
        return (cell + 2 * action + 1) % 3

    def evaluate(cell):
        return jnp.sin(jnp.array([1.0, 2.0]) * cell), jnp.cos(1.0 * cell)

    def world_step(cell, action, key):
        ends = jnp.zeros((), bool)
        return moved(cell, action), Transition(cell, action, rewards[cell, action], moved(cell, action), ends, ends)

    world = World(lambda key: jnp.int32(0), lambda cell, key: cell, lambda cell: cell, world_step)
    alphazero = tree_search.in_world(world, lambda node, key: evaluate(node.state.carry), 0.9)
    muzero = SearchModel(
        lambda cell, action, key: Step(rewards[cell, action], jnp.asarray(0.9), moved(cell, action)),
        lambda node, key: evaluate(node.state),
    )
    search = tree_search.make(SearchConfig("gumbel", 12))

    def both(key):
        cell = jnp.int32(1)
        first = search(alphazero, tree_search.begin(world, cell, key), jax.random.key(3), True)
        return first, search(muzero, cell, jax.random.key(3), True)

    one, other = jax.device_get(jax.jit(both)(jax.random.key(0)))
    assert one.action == other.action
    jax.tree.map(np.testing.assert_array_equal, one.statistics, other.statistics)
    np.testing.assert_array_equal(one.tree.children_index, other.tree.children_index)
    assert one.statistics.visits.min() > 0


def test_the_result_of_rows_is_expected_over_those_that_go_on():
    """Three rows, of which the last has ended before; then the second ends with probability 1/2."""

    def step(rows, action, key):
        ends = jnp.array([0.0, 0.5, 0.0])
        return rows + 1, Transition(rows, action, jnp.array([1.0, 4.0, jnp.nan]), rows + 1, ends, ends > 2)

    world = World(lambda key: jnp.zeros(3), lambda rows, key: rows, lambda rows: rows, step)
    model = tree_search.in_world(world, lambda node, key: (jnp.zeros(2), jnp.zeros(())), 0.5)
    made = model.step(Played(jnp.zeros(3), jnp.array([1.0, 1.0, 0.0])), jnp.int32(0), jax.random.key(0))
    assert (float(made.reward), float(made.discount)) == (2.5, 0.375)
    assert made.state.weight.tolist() == [1.0, 0.5, 0.0]
    none = model.step(Played(jnp.zeros(3), jnp.zeros(3)), jnp.int32(0), jax.random.key(0))
    assert (float(none.reward), float(none.discount)) == (0.0, 0.0)


def test_after_the_end_nothing_is_earned_and_the_state_stays():
    model, key = bandit(REWARDS, after=np.nan), jax.random.key(0)
    step, successor, _, value = expand(model, first_node(jnp.zeros(())), jnp.int32(1), key)
    assert (float(step.reward), float(step.discount), float(value), bool(successor.over)) == (0.5, 0, 0, True)
    again, last, logits, value = expand(model, successor, jnp.int32(0), key)
    assert (float(again.reward), float(again.discount), float(value), logits.tolist()) == (0, 0, 0, [0, 0])
    assert float(last.state) == float(successor.state) == 1 and bool(last.over)


@pytest.mark.parametrize("method", ["gumbel", pytest.param("puct", marks=pytest.mark.promises)])
def test_illegal_actions_are_never_visited(method):
    """They have the largest values and logits. Inside the tree only the logits keep the search from them."""

    def step(depth, action, key):
        return Step(jnp.where(action == 2, 10.0, 0.1 * action), jnp.asarray(1.0), depth + 1)

    model = SearchModel(
        step, lambda node, key: (jnp.array([0.0, 0.0, 9.0, 9.0]), jnp.zeros(())), lambda depth: jnp.array([1, 1, 0, 0]) > 0
    )

    result = found(SearchConfig(method, 12), model, jnp.zeros(()), explore=True)
    assert result.statistics.visits[2:].tolist() == [0, 0] and result.statistics.visits.sum() == 12
    assert not result.tree.children_visits[..., 2:].any() and result.tree.children_visits[0, 1:].any()
    np.testing.assert_allclose(result.statistics.weights[2:], 0, atol=1e-30)
    logits = only_legal(jnp.array([5.0, 3.0, 9.0]), jnp.array([True, True, False]))
    assert logits.tolist() == [0.0, -2.0, float(np.finfo(np.float32).min)]


def test_a_missing_mctx_is_told_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "mctx", None)
    with pytest.raises(UserError, match=r"^tree search needs mctx, which is missing: pip install 'jaxmbrl\[search\]'$"):
        tree_search.make(SearchConfig())
