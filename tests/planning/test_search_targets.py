"""Targets of MuZero and AlphaZero: by hand, and against a plain transcription in float64 on random rows."""

import jax
import numpy as np
import pytest

from jaxmbrl.core.types import Transition
from jaxmbrl.planning.tree_search import Statistics, targets

UNROLL, STEPS, WINDOW = 3, 2, 6
compute = jax.jit(targets, static_argnums=(2, 3))


def window(terminated=(), truncated=(), valid=WINDOW, values=(10, 20, 30, 40, 50, 60)):
    """Rewards 1, 2, ..., 6 and the given values; ends at the given rows."""
    at = np.arange(WINDOW)
    weights = np.stack([at, 10 - at], axis=1) / 10
    found = Statistics(weights, np.zeros((WINDOW, 2), np.int32), np.array(values, float))
    ends = (np.isin(at, terminated), np.isin(at, truncated))
    rows = Transition(np.zeros((WINDOW, 1)), np.zeros(WINDOW, np.int32), at + 1.0, np.zeros((WINDOW, 1)), *ends, found)
    return rows, at < valid


def of(discount=0.5, **changes):
    return jax.tree.map(np.asarray, compute(*window(**changes), UNROLL, STEPS, discount))


def test_values_bootstrap_from_the_search(x64):
    found = of()
    np.testing.assert_allclose(found.value, [1 + 1 + 7.5, 2 + 1.5 + 10, 3 + 2 + 12.5, 4 + 2.5 + 15])
    np.testing.assert_allclose(found.reward, [1, 2, 3])
    np.testing.assert_allclose(found.policy[:, 0], [0, 0.1, 0.2, 0.3])
    assert found.known.tolist() == [1] * 4 and found.reward_known.tolist() == [1] * 3


def test_after_a_termination_the_state_is_absorbing(x64):
    found = of(terminated=[1])
    np.testing.assert_allclose(found.value, [1 + 1, 2, 0, 0])
    np.testing.assert_allclose(found.reward, [1, 2, 0])
    np.testing.assert_allclose(found.policy, [[0, 1], [0.1, 0.9], [0.5, 0.5], [0.5, 0.5]])
    assert found.known.tolist() == [1] * 4 and found.reward_known.tolist() == [1] * 3


def test_a_termination_at_the_last_of_the_n_steps_ends_the_return(x64):
    """Of state 0 it is after both rewards. State 1 has its own row only."""
    np.testing.assert_allclose(of(terminated=[1]).value[0], 2)
    np.testing.assert_allclose(of(terminated=[2]).value[:3], [1 + 1 + 7.5, 2 + 1.5, 3])


def test_no_return_continues_over_a_time_limit_and_nothing_is_known_after_it(x64):
    """The return ends with the value of the last state that was searched; that of the limit's successor is unknown."""
    found = of(truncated=[1])
    np.testing.assert_allclose(found.value[:2], [1 + 10, 20])
    np.testing.assert_allclose(found.reward[:2], [1, 2])
    assert found.known.tolist() == [1, 1, 0, 0] and found.reward_known.tolist() == [1, 1, 0]


def test_a_later_end_does_not_change_what_the_first_one_was(x64):
    found = of(truncated=[1], terminated=[2])
    assert found.known.tolist() == [1, 1, 0, 0]
    found = of(terminated=[0], truncated=[1])
    assert found.known.tolist() == [1] * 4 and found.value.tolist() == [1, 0, 0, 0]


def test_rows_after_the_newest_are_not_used(x64):
    found = of(valid=3)
    np.testing.assert_allclose(found.value[:3], [1 + 1 + 7.5, 2 + 15, 30])
    assert found.known.tolist() == [1, 1, 1, 0] and found.reward_known.tolist() == [1, 1, 1]
    # In a full ring the rows after the newest are the oldest ones, which may have ended an episode.
    assert of(valid=1, terminated=[1]).known.tolist() == [1, 0, 0, 0]
    changed = window(valid=3, values=(10, 20, 30, np.nan, np.nan, np.nan))
    np.testing.assert_allclose(np.asarray(compute(*changed, UNROLL, STEPS, 0.5).value)[:3], found.value[:3])


def plain(rows, valid, unroll, steps, discount):
    """(value, known) of each state, step by step."""
    out = []
    for k in range(unroll + 1):
        before = [j for j in range(k) if valid[j] and (rows.terminated[j] or rows.truncated[j])]
        if before and not rows.terminated[before[0]]:
            out.append((0.0, 0.0))
        elif before:
            out.append((0.0, 1.0))
        elif not valid[k]:
            out.append((0.0, 0.0))
        else:
            total, j = 0.0, k
            while True:
                last = j - k == steps or rows.truncated[j] or j + 1 == len(valid) or not valid[j + 1]
                if j - k < steps and rows.terminated[j]:
                    total += discount ** (j - k) * rows.reward[j]
                    break
                if last:
                    total += discount ** (j - k) * rows.extras.value[j]
                    break
                total += discount ** (j - k) * rows.reward[j]
                j += 1
            out.append((total, 1.0))
    return np.array(out)


def test_random_rows_against_a_plain_transcription(x64):
    rng = np.random.default_rng(0)
    counts = np.zeros(3, int)
    for _ in range(300):
        ends = rng.random(WINDOW) < 0.3
        terminated = ends & (rng.random(WINDOW) < 0.5)
        rows, _ = window(values=rng.normal(size=WINDOW))
        rows = rows._replace(terminated=terminated, truncated=ends & ~terminated, reward=rng.normal(size=WINDOW))
        valid = np.arange(WINDOW) < rng.integers(1, WINDOW + 1)
        found, due = compute(rows, valid, UNROLL, STEPS, 0.9), plain(rows, valid, UNROLL, STEPS, 0.9)
        known = due[:, 1] == 1
        np.testing.assert_array_equal(found.known, due[:, 1])
        np.testing.assert_allclose(np.asarray(found.value)[known], due[known, 0], atol=1e-12)
        counts += [terminated.any(), (ends & ~terminated).any(), not valid.all()]
    assert counts.min() > 100


def test_one_state_is_the_return_of_alphazero(x64):
    """Without unrolling and with as many steps as the episode has, the value is the outcome."""
    rows, valid = window(terminated=[4])
    found = compute(rows, valid, 0, 5, 1.0)
    assert found.value.tolist() == [15.0] and found.reward.shape == (0,)
    assert found.policy.shape == (1, 2) and pytest.approx(1.0) == float(found.policy.sum())
