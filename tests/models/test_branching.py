"""Branched rollouts, through worlds simple enough to know every row."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hand_made import TINY, alive, ready
from in_order import in_order

from jaxmbrl.core import metrics
from jaxmbrl.core.types import Policy, Transition, World
from jaxmbrl.models import disagreement as trust
from jaxmbrl.models.branching import branch, init, with_disagreement
from jaxmbrl.models.disagreement import TrustConfig

ROWS, CAPACITY = 6, 40
ALWAYS = TrustConfig()
ORIGIN = np.arange(1.0, ROWS + 1, dtype=np.float32)[:, None]
ROW = Transition(*(np.zeros(shape, np.float32) for shape in (1, 1, (), 1)), np.zeros((), bool), np.zeros((), bool))


def counting(ends_above=np.inf, chance=None, spoiled=np.nan):
    """A world in which each row grows by its action: reward is ten times the number of the step."""

    def step(carry, action, key):
        observation, i = carry
        following = observation + action
        ended = following[:, 0] > ends_above
        reward = jnp.where(observation[:, 0] == spoiled, jnp.nan, 10.0 * i)
        row = Transition(
            observation,
            action,
            reward,
            following,
            ended if chance is None else jnp.full(len(observation), chance),
            jnp.zeros(len(observation), bool),
        )
        return (following, i + 1), row

    return World(reset=lambda key: None, start=lambda origin, key: (origin, 0), observe=lambda carry: carry[0], step=step)


def policy(disagreement=None):
    """Adds 100 to a row; its extras are `disagreement(observation)`."""

    def act(memory, observation, key):
        return jnp.full(observation.shape, 100.0), () if disagreement is None else disagreement(observation[:, 0]), memory

    return Policy(lambda key: (), act)


def run(length, config=ALWAYS, disagreement=None, key=0, ends_above=np.inf, chance=None, spoiled=np.nan):
    """(rows stored, oldest first; metrics) of branches through a `counting` world."""
    rows, size, found = compiled(length, config, disagreement)(jax.random.key(key), ends_above, chance, spoiled)
    return jax.tree.map(lambda x: np.asarray(x)[: int(size)], rows), metrics.known(found)


@functools.cache
def compiled(length, config, disagreement):
    @jax.jit
    def go(key, *given):
        empty, origin = init(ROW, CAPACITY, 2, config), jnp.asarray(ORIGIN)
        made, found = branch(counting(*given), policy(disagreement), trust.make(config), empty, origin, key, length)
        return in_order(made.buffer), made.buffer.size, found

    return go


def test_every_step_of_every_branch_is_stored_in_turn():
    rows, found = run(3)
    expected = np.concatenate([np.arange(1.0, 7) + 100 * h for h in range(3)])
    np.testing.assert_array_equal(rows.observation[:, 0], expected)
    np.testing.assert_array_equal(rows.next_observation[:, 0], expected + 100)
    np.testing.assert_array_equal(rows.reward, np.repeat([0.0, 10.0, 20.0], ROWS))
    assert not rows.terminated.any() and not rows.truncated.any()
    assert found == {
        "imagine/rollout_length": 3,
        "imagine/branch_length": 3,
        "imagine/rows": 3 * ROWS,
        "imagine/nonfinite": 0,
    }


def test_a_termination_is_stored_and_ends_its_branch():
    rows, found = run(3, ends_above=104.5)
    # Rows 5 and 6 end at their first step, the others at their second.
    np.testing.assert_array_equal(rows.observation[:, 0], [1, 2, 3, 4, 5, 6, 101, 102, 103, 104])
    assert rows.terminated.tolist() == [False] * 4 + [True] * 6
    assert found["imagine/rows"] == 10
    assert found["imagine/branch_length"] == pytest.approx(10 / 6)


def test_a_chance_of_termination_is_drawn_once_and_stored_as_what_came():
    sure, _ = run(3, chance=1.0)
    assert sure.terminated.all() and len(sure.reward) == ROWS
    never, _ = run(3, chance=0.0)
    assert not never.terminated.any() and len(never.reward) == 3 * ROWS
    ends = []
    for key in range(30):
        rows, _ = run(3, key=key, chance=0.4)
        assert rows.terminated.dtype == bool
        for start in range(1, ROWS + 1):
            own = rows.terminated[rows.observation[:, 0] % 100 == start]
            assert not own[:-1].any() and (own[-1] or len(own) == 3)
        ends.append(rows.terminated[:ROWS].mean())
    # 180 draws at 0.4: five standard deviations are 0.18.
    assert abs(np.mean(ends) - 0.4) < 0.18


def test_a_row_that_is_not_finite_is_left_out_counted_and_ends_its_branch():
    rows, found = run(3, spoiled=103.0)
    assert np.isfinite(rows.reward).all()
    assert [x for x in rows.observation[:, 0] if x % 100 == 3] == [3.0]
    assert found["imagine/nonfinite"] == 1
    assert found["imagine/rows"] == 3 * ROWS - 2


@pytest.mark.parametrize("rule", ["macura", "m2ac"])
def test_so_is_a_row_whose_disagreement_is_not_finite(rule):
    """Row 3 at its first step, and row 4 at its second. The largest finite disagreement is MACURA's threshold, the 2 of row
    6; M2AC keeps a third of the 6 rows, those of 0.5 and the first of those of 1, and then none of 5."""

    def disagreement(x):
        spoiled = (x == 3) | (x == 104)
        return jnp.where(spoiled, jnp.nan, jnp.where(x % 100 == 6, 2.0, jnp.where(x == 1, 0.5, 1.0)))

    rows, found = run(2, TrustConfig(rule, percentile=100.0), disagreement)
    expected = {"macura": [1, 2, 4, 5, 101, 102, 105], "m2ac": [1, 2]}[rule]
    np.testing.assert_array_equal(rows.observation[:, 0], expected)
    assert found["imagine/nonfinite"] == 2 and found["imagine/rows"] == len(expected)
    assert np.isfinite(found["imagine/disagreement"])


def test_a_shorter_length_is_a_prefix_without_compiling_again():

    @jax.jit
    def go(origin, length):
        empty = init(ROW, 50, 1, ALWAYS)
        return branch(counting(), policy(), trust.make(ALWAYS), empty, origin, jax.random.key(0), length)[0].buffer

    short, long = (jax.device_get(go(ORIGIN, length)) for length in (2, 5))
    assert go._cache_size() == 1
    assert (short.size, long.size) == (12, 30)
    np.testing.assert_array_equal(short.data.observation[:12], long.data.observation[:12])


def test_macura_cuts_a_branch_for_good():
    config = TrustConfig("macura", percentile=100.0)
    # The first step's disagreement is 1 for all but row 6 (2, the threshold); row 2 has 2 at its second step alone.
    disagreement = lambda x: jnp.where(x == 6, 2.0, jnp.where(x == 102, 2.0, 1.0))  # noqa: E731
    rows, found = run(3, config, disagreement)
    np.testing.assert_array_equal(rows.observation[:, 0], [1, 2, 3, 4, 5, 101, 103, 104, 105, 201, 203, 204, 205])
    assert found["imagine/threshold"] == 2.0
    # 6 + 5 + 4 steps before the ends, of which two with a disagreement of 2.
    assert found["imagine/disagreement"] == pytest.approx(17 / 15)
    assert found["imagine/branch_length"] == pytest.approx(15 / 6)


@pytest.mark.parametrize(("rule", "sizes"), [("macura", [6, 12, 12, 12]), ("always", [6, 12, 18, 20])])
def test_what_macura_keeps_expires_and_mbpos_rows_go_when_there_is_no_room(rule, sizes):
    config = TrustConfig(rule, scale=1e30)
    imagined = jax.jit(lambda: init(ROW, 20, 2, config))()

    @jax.jit
    def go(imagined, round):
        origin, key = ORIGIN + 10 * round, jax.random.key(round)
        made, _ = branch(counting(), policy(lambda x: x), trust.make(config), imagined, origin, key, 1)
        return made, in_order(made.buffer)

    for round, size in enumerate(sizes):
        imagined, rows = go(imagined, round)
        assert int(imagined.buffer.size) == size
        stored = np.asarray(rows.observation)[:size, 0]
        # The newest rows stay: six from 10 times the number of the round on.
        assert stored.tolist() == [10 * r + x for r in range(round + 1) for x in range(1, 7)][-size:]


def test_m2ac_stores_the_surest_rows_at_a_price_and_goes_on():
    config = TrustConfig("m2ac", penalty=0.5)

    def disagreement(x):
        return x % 100

    rows, _ = run(2, config, disagreement)
    # K = 2: 2/6 of six rows at the first step, 1/6 at the second.
    np.testing.assert_array_equal(rows.observation[:, 0], [1, 2, 101])
    np.testing.assert_allclose(rows.reward, [-0.5, -1.0, 10 - 0.5])
    everything, _ = run(3)
    free, _ = run(2, dataclasses.replace(config, penalty=0.0), disagreement)
    places = [list(everything.observation[:, 0]).index(x) for x in free.observation[:, 0]]
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[places]), free, everything)


def test_disagreement_is_of_what_the_policys_own_actions_lead_to():
    model, state = ready(dataclasses.replace(TINY, elites=3), terminated=alive)
    bare = Policy(lambda key: (), lambda memory, x, key: (jax.random.uniform(key, (len(x), 1)), (), memory))
    rule = trust.make(TrustConfig("macura"))

    @jax.jit
    def both(state, observation, key):
        own = bare.act((), observation, key)[0]
        action, disagreement, _ = with_disagreement(bare, rule, model, state).act((), observation, key)
        return (action, disagreement), (own, trust.pairwise(*model.predict(state, observation, own)))

    observation = np.random.default_rng(1).normal(size=(5, 2))
    (action, disagreement), (own, expected) = both(state, observation, jax.random.key(3))
    np.testing.assert_array_equal(action, own)
    np.testing.assert_array_equal(disagreement, expected)
    assert disagreement.shape == (5,) and float(disagreement.min()) > 0
    assert with_disagreement(bare, trust.make(TrustConfig()), model, state) is bare
