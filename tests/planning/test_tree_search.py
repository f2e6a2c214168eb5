"""PUCT and Gumbel MuZero through the wrapper of mctx: numbers by hand, mctx's own trees, ends of episodes, two players."""

import importlib.resources
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl.core.config import UserError, check
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


def puct_score(q, prior, visits, total, config):
    """PUCT in float64, from the formula; `q` is normalised, `total` the node's visits with its own evaluation."""
    return q + np.sqrt(total) * prior / (1 + visits) * (config.c_init + np.log((total + config.c_base + 1) / config.c_base))


def test_puct_visits_the_arms_of_the_largest_scores():
    """With 9 visits, the second term has the weight 1.250509; prior .3, 3 visits, q .4: .681364. A small c2 makes the
    weight grow within the 40 simulations."""
    config = PUCTConfig()
    np.testing.assert_allclose(puct_score(0.0, 1.0, 2.0, 9, config), 1.250509, atol=1e-6)
    np.testing.assert_allclose(puct_score(0.4, 0.3, 3, 9, config), 0.681364, atol=1e-6)
    rewards, logits, config = np.array([0.3, 0.9, 0.5]), np.array([0.7, -0.6, 0.2]), PUCTConfig(1.1, 9.0)
    visits, prior = np.zeros(3), np.exp(logits) / np.exp(logits).sum()
    for total in range(1, 41):
        # Values are normalised to [0, 1] among those of the node and of visited actions; the others have the smallest.
        value = (visits @ rewards) / total
        low, high = min([value, *rewards[visits > 0]]), max([value, *rewards[visits > 0]])
        q = (np.where(visits > 0, rewards, low) - low) / max(high - low, 1e-8)
        visits[np.argmax(puct_score(q, prior, visits, total, config))] += 1
    result = found(SearchConfig("puct", 40, puct=config), bandit(rewards, logits=logits), jnp.zeros(()))
    assert result.statistics.visits.tolist() == visits.tolist() and len(set(visits)) == 3


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


def random_model(actions, discount, zero_reward):
    """The model of mctx's golden trees: keys as states, random predictions."""

    def predicted(key):
        policy_key, value_key, reward_key = jax.random.split(key, 3)
        value = jax.random.uniform(value_key, minval=-1.0, maxval=1.0)
        reward = 0.0 if zero_reward else jax.random.uniform(reward_key, minval=-1.0, maxval=1.0)
        return jax.random.normal(policy_key, [actions]), value, jnp.asarray(reward)

    def step(key, action, unused):
        key = jax.random.split(key, actions)[action]
        return Step(predicted(key)[2], jnp.asarray(discount), key)

    return SearchModel(step, lambda node, unused: predicted(node.state)[:2])


@pytest.mark.parametrize(
    "name", ["gumbel_muzero_reward_tree", "gumbel_muzero_tree", "muzero_qtransform_tree", "muzero_tree"]
)
def test_golden_trees_of_mctx(name):
    """Every node of the trees that mctx stores beside its own tests: visits, values, rewards and priors."""
    golden = json.loads((importlib.resources.files("mctx") / f"_src/tests/test_data/{name}.json").read_text())
    of, root = golden["algorithm_config"], golden["tree"]
    simulations = root["visit"] - 1
    if golden["algorithm"] == "gumbel_muzero":
        scaling = of["qtransform_kwargs"]
        gumbel = GumbelConfig(
            of["max_num_considered_actions"],
            scaling["value_scale"],
            scaling["maxvisit_init"],
            scaling["rescale_values"],
        )
        config = SearchConfig("gumbel", simulations, gumbel)
    else:
        scaling = of["qtransform_kwargs"]
        bounds = (scaling["min_value"], scaling["max_value"]) if scaling else None
        due = "qtransform_by_parent_and_siblings" if bounds is None else "qtransform_by_min_max"
        assert of["qtransform"] == due
        puct = PUCTConfig(of["pb_c_init"], float(of["pb_c_base"]), noise_share=0.0, value_range=bounds)
        config = SearchConfig("puct", simulations, puct=puct)
    with jax.threefry_partitionable(False):
        model = random_model(len(root["child_stats"]), **golden["env_config"])
        tree = jax.tree.map(lambda x: x[0], found(config, model, jax.random.PRNGKey(0)).tree)
    priors = np.exp(tree.children_prior_logits - np.logaddexp.reduce(tree.children_prior_logits, axis=1, keepdims=True))

    def compare(node, index):
        assert (tree.node_visits[index], index) == (node["visit"], node["evaluation_index"])
        np.testing.assert_allclose(
            [tree.node_values[index], tree.raw_values[index]], [node["value_view"], node["raw_value_view"]], atol=1e-3
        )
        np.testing.assert_allclose(priors[index], [child["prior"] for child in node["child_stats"]], atol=1e-3)
        visited = {child["action"]: child for child in node["child_stats"] if "visit" in child}
        assert visited.keys() == set(np.flatnonzero(tree.children_index[index] >= 0).tolist())
        for action, child in visited.items():
            np.testing.assert_allclose(tree.children_rewards[index, action], child["reward"], atol=1e-3)
            compare(child, tree.children_index[index, action])

    compare(root, 0)


def test_a_range_of_values_must_be_one():
    with pytest.raises(UserError, match="value_range must be a smaller and a larger number"):
        check(PUCTConfig(value_range=(1.0, 1.0)))


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
