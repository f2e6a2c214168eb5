"""Dyna-Q and Dyna-Q+: their updates against NumPy, and the identities between them and with Q-learning."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl import envs
from jaxmbrl.algorithms.tabular import dyna_q, dyna_q_plus, q_learning
from jaxmbrl.training import loop
from jaxmbrl.training.loop import clock_at

from .tables_in_numpy import ACTIONS, Table, learned, planning_numbers, transitions, walked

T, N, BONUS = 400, 4, 0.02


@pytest.fixture(scope="module")
def made():
    """Results of a random walk, on the host; all in one program."""
    task, rows = envs.make("dyna-maze"), transitions(walked(T, 1))
    dyna = dyna_q.make(dyna_q.Config(learning_rate=0.5, planning_updates=N), task)
    plus = dyna_q_plus.make(dyna_q_plus.Config(learning_rate=0.5, planning_updates=N, bonus=BONUS), task)
    bare = dyna_q_plus.make(dyna_q_plus.Config(learning_rate=0.5, planning_updates=N, bonus=0.0, untried=False), task)
    one = dyna_q.make(dyna_q.Config(learning_rate=1.0, planning_updates=7), task)

    def run(key):
        first = dyna.init(key, {}, None)
        goal = jax.tree.map(lambda x: x[:1], transitions([(17, 0, 1.0, 8, True, False)]))
        return {
            "dyna": learned(dyna, first, rows),
            "plus": learned(plus, plus.init(key, {}, None), rows),
            "bare": learned(bare, bare.init(key, {}, None), rows),
            "one": learned(one, one.init(key, {}, None), goal)[0].q,
            "numbers": planning_numbers(first.key, T, (N, 2)),
        }

    found = jax.jit(run)(jax.random.key(3))
    return jax.tree.map(lambda x: x if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else np.asarray(x), found)


def in_numpy(numbers, bonus=0.0, untried=False):
    """The table after each step, and how often each pair was planned with."""
    table, model, order = Table(0.5), {}, []
    for t, (state, action, reward, following, ended, _) in enumerate(walked(T, 1), start=1):
        table.update(state, action, reward, following, ended)
        if state not in order:
            order.append(state)
        model[state, action] = (reward, following, ended, t)
        for number in numbers[t - 1].astype(np.float32):
            at = order[int(number[0] * np.float32(len(order)))]
            choices = [a for a in range(ACTIONS) if untried or (at, a) in model]
            chosen = choices[int(number[1] * np.float32(len(choices)))]
            r, s, d, last = model.get((at, chosen), (0.0, at, False, 1))
            table.update(at, chosen, r + bonus * np.sqrt(t - last), s, d)
        yield table.q.copy()


def test_dyna_q_is_that_of_the_book(made):
    for seen, expected in zip(made["dyna"][1], in_numpy(made["numbers"]), strict=True):
        np.testing.assert_allclose(seen, expected, atol=1e-5)
    assert expected.max() > 0.8


def test_dyna_q_plus_is_that_of_the_book(made):
    for seen, expected in zip(made["plus"][1], in_numpy(made["numbers"], BONUS, untried=True), strict=True):
        np.testing.assert_allclose(seen, expected, atol=1e-4)
    assert np.abs(made["plus"][1][-1] - made["dyna"][1][-1]).max() > 0.1, "the bonus has an effect"


def test_without_bonus_and_untried_actions_dyna_q_plus_is_dyna_q(made):
    (dyna, of_dyna), (bare, of_bare) = made["dyna"], made["bare"]
    assert of_dyna.tobytes() == of_bare.tobytes()
    for a, b in zip(jax.tree.leaves(dyna.model), jax.tree.leaves(bare.model), strict=True):
        assert a.tobytes() == b.tobytes()


def test_the_model_has_no_bonus(made):
    model, dyna = made["plus"][0].model, made["dyna"][0].model
    assert model.reward.tobytes() == dyna.reward.tobytes()
    assert set(np.unique(model.reward)) == {0.0, 1.0}


def test_planning_with_one_known_pair_and_alpha_1_changes_nothing(made):
    expected = np.zeros_like(made["one"])
    expected[17, 0] = 1.0
    np.testing.assert_array_equal(made["one"], expected)


def test_updates_are_counted(made):
    assert made["dyna"][0].updates == made["plus"][0].updates == T * (1 + N)


def test_without_planning_a_run_of_dyna_q_is_one_of_q_learning_bit_for_bit():
    task, steps = envs.make("dyna-maze"), 400

    def run(method, config):
        made = loop.make(method.make(config, task), task, config)
        return made.run(clock_at(0), made.init(jnp.arange(2), {}), jnp.int32(steps))[1]

    both = jax.jit(lambda: (run(dyna_q, dyna_q.Config(planning_updates=0)), run(q_learning, q_learning.Config())))
    dyna, plain = both()
    assert np.asarray(dyna.algorithm.q).tobytes() == np.asarray(plain.algorithm.q).tobytes()
    cells = [np.asarray(state.carry.carry[0].pipeline_state) for state in (dyna, plain)]
    assert cells[0].tobytes() == cells[1].tobytes()
    assert np.asarray(dyna.algorithm.updates).tolist() == [steps] * 2
