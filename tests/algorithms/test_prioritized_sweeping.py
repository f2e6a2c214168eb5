"""Prioritized sweeping: its updates against NumPy, and the values of the known part of a task when the queue is empty."""

import jax
import numpy as np
import pytest

from jaxmbrl import envs
from jaxmbrl.algorithms.shared import TabularSettings
from jaxmbrl.algorithms.tabular import prioritized_sweeping
from jaxmbrl.core.config import UserError, check
from jaxmbrl.training.loop import clock_at

from .tables_in_numpy import ACTIONS, DISCOUNT, STATES, Table, learned, transitions, walked

T, N, THRESHOLD = 300, 3, 1e-3
DRAIN = 250
"""Updates a step that empty the queue."""


def made_by(task, rows, **settings):
    algorithm = prioritized_sweeping.make(prioritized_sweeping.Config(**settings), task)
    state = algorithm.init(jax.random.key(0), {}, None)
    return learned(algorithm, state, rows, lambda state: (state.q, state.updates))


@pytest.fixture(scope="module")
def made():
    """Results of a random walk, on the host; all in one program, in float64, so that priorities are told apart."""
    task = envs.make("dyna-maze")
    with jax.enable_x64(True):
        rows = transitions(walked(T, 2))

        def run():
            return {
                "few": made_by(task, rows, threshold=THRESHOLD, planning_updates=N),
                "last": made_by(task, rows, threshold=0.0, learning_rate=1.0, planning_updates=DRAIN),
                "counts": made_by(
                    task, rows, threshold=1e-12, learning_rate=1.0, planning_updates=DRAIN, model="counts", outcomes=2
                ),
            }

        return jax.device_get(jax.jit(run)())


def test_updates_are_those_of_the_box(made):
    table, model, queue, updates = Table(0.5), {}, np.zeros((STATES, ACTIONS)), 0
    for t, (state, action, *outcome, _) in enumerate(walked(T, 2)):
        model[state, action] = outcome
        size = abs(table.error(state, action, *outcome))
        if size > THRESHOLD:
            queue[state, action] = max(queue[state, action], size)
        for _ in range(N):
            if queue.max() == 0:
                break
            at = np.unravel_index(queue.argmax(), queue.shape)
            queue[at] = 0.0
            table.update(*at, *model[tuple(at)])
            updates += 1
            for pair, (r, following, ended) in model.items():
                if following == at[0] and not ended:
                    size = abs(table.error(*pair, r, following, ended))
                    if size > THRESHOLD:
                        queue[pair] = max(queue[pair], size)
        np.testing.assert_allclose(made["few"][1][0][t], table.q, atol=1e-9)
        assert made["few"][1][1][t] == updates
    assert 0 < updates < N * T and table.q.max() > 0.5


@pytest.mark.parametrize("model", ["last", "counts"])
def test_an_empty_queue_leaves_the_optimal_values_of_the_known_pairs(made, model):
    """Counts of a deterministic task are its last outcomes."""
    state, _ = made[model]
    known = {(s, a): (r, following, ended) for s, a, r, following, ended, _ in walked(T, 2)}
    best = np.zeros((STATES, ACTIONS))
    for _ in range(100):
        values = best.max(axis=1)
        for pair, (r, following, ended) in known.items():
            best[pair] = r + (0.0 if ended else DISCOUNT * values[following])
    assert state.queue.priority.max() == 0
    np.testing.assert_allclose(state.q, best, rtol=0, atol=1e-9 if model == "counts" else 1e-15)
    assert 0.9 < best.max() <= 1.0 and state.updates < T * DRAIN


def test_counts_give_the_values_of_the_empirical_model_of_a_stochastic_task():
    """On FrozenLake, where each action has three outcomes, by value iteration on the frequencies of a random walk."""
    task, random = envs.make("FrozenLake"), np.random.default_rng(0)
    mdp, state, rows = task.env.mdp, 0, []
    for _ in range(600):
        action = random.integers(4)
        k = random.choice(mdp.probabilities.shape[2], p=mdp.probabilities[state, action])
        at = (state, action, k)
        following, ended = int(mdp.successors[at]), bool(mdp.terminated[at])
        rows.append((state, int(action), float(mdp.rewards[at]), following, ended, False))
        state = int(random.choice([0, 6, 9, 14])) if ended else following
    frequency = np.zeros((16, 4, 16))
    reward, end = np.zeros((16, 4, 16)), np.zeros((16, 4, 16), bool)
    for s, a, r, following, ended, _ in rows:
        frequency[s, a, following] += 1
        reward[s, a, following], end[s, a, following] = r, ended
    known = frequency.sum(-1) > 0
    frequency /= np.maximum(frequency.sum(-1, keepdims=True), 1)
    best = np.zeros((16, 4))
    for _ in range(500):
        best = np.sum(frequency * (reward + 0.9 * np.where(end, 0.0, best.max(axis=1))), axis=-1)
    settings = {"threshold": 1e-8, "learning_rate": 1.0, "discount": 0.9, "planning_updates": 150, "model": "counts"}
    found, _ = jax.device_get(jax.jit(lambda: made_by(task, transitions(rows), **settings))())
    assert known.sum() == 44 and best.max() > 0.5  # 11 states in which an action is chosen
    np.testing.assert_allclose(found.q, best, atol=1e-5)
    assert found.model.dropped == 0


def test_few_places_drop_outcomes_and_say_so():
    task = envs.make("FrozenLake")
    algorithm = prioritized_sweeping.make(prioritized_sweeping.Config(model="counts", outcomes=1), task)
    rows = [(0, 0, 0.0, 0, False, False), (0, 0, 0.0, 4, False, False), (0, 0, 0.0, 0, False, False)]

    def run():
        state, _ = learned(algorithm, algorithm.init(jax.random.key(0), {}, None), transitions(rows))
        _, found = algorithm.learn(clock_at(4), state, jax.tree.map(lambda x: x[1], transitions(rows)))
        return state, found

    state, found = jax.jit(run)()
    assert int(state.model.dropped) == 1 and float(found["model/dropped"].total) == 2
    assert np.asarray(state.model.counts[0, 0]).tolist() == [2.0]


@pytest.mark.parametrize(("rate", "bound"), [(0.0, "above 0"), (5.0, "at most 1")])
def test_learning_rates_have_the_bounds_of_the_other_tabular_methods(rate, bound):
    for config in (prioritized_sweeping.Config, TabularSettings):
        with pytest.raises(UserError, match=rf"^learning_rate must be {bound}, got {rate}$"):
            check(config(learning_rate=rate))
