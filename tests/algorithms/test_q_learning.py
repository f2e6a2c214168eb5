"""Q-learning: its update against NumPy, its choice of actions, and whole runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmbrl
from jaxmbrl import algorithms, envs
from jaxmbrl.agents import tables
from jaxmbrl.algorithms.tabular import q_learning
from jaxmbrl.core.config import UserError
from jaxmbrl.core.types import Policy
from jaxmbrl.training.loop import clock_at

from .tables_in_numpy import ACTIONS, STATES, Table, learned, moved, optimal_values, transitions, walked

T = 500


@pytest.fixture(scope="module")
def made():
    """(table after each step, final state, state with a discount of 0) of a random walk."""
    algorithm = q_learning.make(q_learning.Config(learning_rate=0.4), envs.make("dyna-maze"))
    rows = transitions(walked(T, 0))

    def both(key):
        first = algorithm.init(key, {}, None)
        state, seen = learned(algorithm, first, rows)
        greedy = learned(algorithm, first._replace(discount=jnp.zeros(()), learning_rate=jnp.ones(())), rows)[0]
        return seen, state, greedy, algorithm.probes(state)

    return jax.device_get(jax.jit(both)(jax.random.key(0)))


def test_updates_are_those_of_the_book(made):
    seen, _, _, _ = made
    table = Table(0.4)
    for t, (state, action, reward, following, ended, _) in enumerate(walked(T, 0)):
        table.update(state, action, reward, following, ended)
        np.testing.assert_allclose(seen[t], table.q, atol=1e-5)
    assert table.q.max() > 0.5


def test_a_time_limit_bootstraps_and_the_goal_does_not():
    table = np.full((STATES, ACTIONS), 2.0, np.float32)

    def error(ended):
        outcome = jaxmbrl.core.types.Transition(0, 0, jnp.float32(1.0), jnp.int32(1), jnp.asarray(ended), jnp.asarray(True))
        return float(tables.td_error(jnp.asarray(table), 0.5, 0, 0, outcome))

    assert error(False) == 1.0 + 0.5 * 2.0 - 2.0
    assert error(True) == 1.0 - 2.0


def test_without_discount_a_visit_makes_the_value_the_reward(made):
    _, _, greedy, _ = made
    visited = {(state, action): moved(state, action)[1] for state, action, *_ in walked(T, 0)}
    for state in range(STATES):
        for action in range(ACTIONS):
            assert greedy.q[state, action] == visited.get((state, action), 0.0)
    assert sum(visited.values()) > 0


def test_updates_are_counted_and_judged(made):
    _, state, _, probes = made
    assert state.updates == T and probes["table/updates"].total == T
    values = optimal_values()[0]
    reached = values > 0  # every free state of this maze has a value
    expected = np.abs(state.q.max(axis=1) - values)[reached].max()
    np.testing.assert_allclose(probes["table/value_error"].total, expected, atol=1e-5)


def test_a_hole_is_no_goal_and_an_end_of_unknown_meaning_has_another_name():
    """Down from the start of the frozen lake is a hole after 3 steps, and the path around it takes 6. The walk along the
    cliff ends after 13 with a reward of -1. A cart that is always pushed to the left drops its pole within 8 to 10."""

    def to_goal(name, actions, default):
        task = envs.make(name)
        table = np.zeros((task.observation.n, 4), np.float32)
        table[:, default] = 0.5
        for state, action in actions.items():
            table[state, action] = 1.0
        return tables.steps_to_goal("table", task, tables.greedy(jnp.asarray(table)))

    def found():
        lake, left, down, right = "FrozenLake/deterministic", 0, 1, 2
        push = Policy(lambda key: (), lambda memory, seen, key: (jnp.int32(left), (), memory))
        return (
            to_goal(lake, {}, down),
            to_goal(lake, dict.fromkeys((8, 13, 14), right), down),
            # The actions of this task are up, right, down, left.
            to_goal("CliffWalking", {36: 0, 35: 2}, 1),
            tables.steps_to_goal("table", envs.make("CartPole-v1"), push),
        )

    hole, goal, cliff, pole = (jax.tree.map(float, x) for x in jax.device_get(jax.jit(found)()))
    assert hole["table/steps_to_goal"].weight == 0
    assert goal == {"table/steps_to_goal": (6.0, 1.0)} and cliff == {"table/steps_to_goal": (13.0, 1.0)}
    assert pole.keys() == {"table/steps_to_end"} and pole["table/steps_to_end"].weight == 1
    assert 8 <= pole["table/steps_to_end"].total <= 10
    on_host = envs.make("CliffWalking")._replace(host=lambda: None)
    assert tables.steps_to_goal("table", on_host, Policy(lambda key: (), lambda *_: (), None)) == {}


def test_ties_are_broken_at_random_and_epsilon_explores():
    algorithm = q_learning.make(q_learning.Config(epsilon=0.5), envs.make("dyna-maze"))

    @jax.jit
    def acted(q):
        state = algorithm.init(jax.random.key(0), {}, None)._replace(q=q)
        keys = jax.random.split(jax.random.key(1), 4000)
        policies = [algorithm.policy(state, clock_at(0), explore) for explore in (True, False)]
        return [jax.vmap(lambda key, p=policy: p.act((), jnp.int32(3), key)[0])(keys) for policy in policies]

    tied = np.zeros((STATES, ACTIONS), np.float32)
    tied[3] = [1.0, 0.0, 1.0, 0.5]
    explored, greedy = (np.bincount(actions, minlength=4) / 4000 for actions in jax.device_get(acted(tied)))
    # 4,000 samples: a standard deviation of at most 0.008.
    np.testing.assert_allclose(greedy, [0.5, 0.0, 0.5, 0.0], atol=0.032)
    np.testing.assert_allclose(explored, [0.375, 0.125, 0.375, 0.125], atol=0.032)
    assert greedy[[1, 3]].tolist() == [0.0, 0.0]


def test_a_task_without_tables_is_refused():
    with pytest.raises(UserError, match="q-learning takes discrete observations and actions"):
        q_learning.make(q_learning.Config(), envs.make("pendulum"))


def test_initial_data_are_refused():
    algorithm = q_learning.make(q_learning.Config(), envs.make("dyna-maze"))
    with pytest.raises(UserError, match="q-learning does not accept initial transitions"):
        algorithm.init(jax.random.key(0), {}, transitions(walked(2, 0)))


def test_the_preset_of_cliff_walking_is_that_of_the_book():
    assert algorithms.preset("q-learning", "CliffWalking")[1].learning_rate == 0.5
    assert algorithms.preset("q-learning", "dyna-maze")[1].learning_rate == 0.1


@pytest.mark.slow
def test_it_finds_the_path_along_the_cliff():
    found = jaxmbrl.train("q-learning", "CliffWalking", steps=20_000, seeds=4, settings={"eval_every": 0})
    judged = [row for row in found.rows if "eval/return" in row]
    assert judged == []
    probes = jaxmbrl.train(
        "q-learning", "CliffWalking", steps=20_000, seeds=4, settings={"epoch_steps": 10_000, "eval_every": 2}
    )
    assert [row["eval/return"] for row in probes.rows[-4:]] == [-13.0] * 4
