"""Q-planning: its updates against NumPy, and the number of updates until its values are those of value iteration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl import envs
from jaxmbrl.algorithms.tabular import q_planning
from jaxmbrl.core.config import UserError
from jaxmbrl.training.loop import clock_at

from .tables_in_numpy import FREE, Table, learned, optimal_values, planning_numbers, transitions, walked

T, N = 300, 3


def slipping(steps):
    """A random walk in the Dyna maze in which an action is replaced by a random one in a third of all steps."""
    random, rows = np.random.default_rng(5), []
    for state, action, *outcome in walked(steps, 4):
        named = action if random.random() < 2 / 3 else int(random.integers(4))
        rows.append((state, named, *outcome))
    return rows


def test_updates_sample_the_counted_outcomes():
    algorithm = q_planning.make(q_planning.Config(learning_rate=0.3, planning_updates=N), envs.make("dyna-maze"))
    rows = slipping(T)

    def run(key):
        first = algorithm.init(key, {}, None)
        return learned(algorithm, first, transitions(rows)), planning_numbers(first.key, T, (N, 3))

    (state, seen), numbers = jax.jit(run)(jax.random.key(1))
    table, counts, order = Table(0.3), {}, []
    for t, (at, action, *outcome, _) in enumerate(rows):
        if at not in order:
            order.append(at)
        of_pair = counts.setdefault((at, action), {})
        of_pair[tuple(outcome)] = of_pair.get(tuple(outcome), 0) + 1
        for number in np.asarray(numbers[t]):
            s = order[int(number[0] * np.float32(len(order)))]
            tried = [a for a in range(4) if (s, a) in counts]
            a = tried[int(number[1] * np.float32(len(tried)))]
            known = counts[s, a]
            below = np.cumsum(list(known.values()))
            table.update(s, a, *list(known)[int(np.argmax(below > number[2] * np.float32(below[-1])))])
        np.testing.assert_allclose(seen[t], table.q, atol=1e-5)
    assert max(len(known) for known in counts.values()) > 2 and table.q.max() > 0.1
    assert int(state.updates) == T * N and int(state.model.dropped) == 0


def test_updates_until_the_values_are_optimal():
    """With the true model: the medians of 20 seeds, in steps of 200 updates, that another implementation, with other random
    numbers, needed until max |V - V*| < 1e-3: 2,300 updates at alpha = 1 and 9,200 at 0.5."""
    config = q_planning.Config(model="true", planning_updates=200)
    algorithm = q_planning.make(config, envs.make("dyna-maze"))
    values, free = jnp.asarray(optimal_values()[0], float), jnp.asarray(FREE)
    row = transitions(walked(1, 0))

    def run(seed, rate):
        state = algorithm.init(jax.random.key(seed), {"learning_rate": rate}, None)

        def call(state, _):
            state, _ = algorithm.learn(clock_at(1), state, jax.tree.map(lambda x: x[0], row))
            return state, jnp.max(jnp.abs(jnp.max(state.q, axis=1) - values)[free])

        return jax.lax.scan(call, state, None, 70)[1]

    errors = np.asarray(jax.jit(jax.vmap(jax.vmap(run, (0, None)), (None, 0)))(jnp.arange(20), jnp.array([1.0, 0.5])))
    assert (errors[..., -1] < 1e-3).all()
    one, half = 200 * (1 + np.median(np.argmax(errors < 1e-3, axis=-1), axis=1))
    assert 0.8 * 2300 <= one <= 1.2 * 2300
    assert 0.8 * 9200 <= half <= 1.2 * 9200


def test_the_true_model_needs_a_table():
    with pytest.raises(UserError, match="model must be learned: the environment of task 'blocking-maze' has no table"):
        q_planning.make(q_planning.Config(model="true"), envs.make("blocking-maze"))
