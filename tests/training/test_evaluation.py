"""Evaluation by fixed start states and the deterministic policy; the interquartile mean against SciPy's."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxmbrl import envs, planning
from jaxmbrl.core.spaces import Box
from jaxmbrl.core.types import Algorithm, Clock, Policy, Task, Transition, World
from jaxmbrl.rollout import Return, episode_return, rollout, with_full_state
from jaxmbrl.training import evaluation, waves

LENGTH = 6


def counting_task(end):
    """Each step earns the number of the step times ten, plus the action; terminates after step `end` and goes on earning.

    An episode's observation is the number that its start was drawn with.
    """

    def step(carry, action, key):
        mark, i = carry
        ended = i + 1 >= end
        earned = jnp.where(i >= end, jnp.nan, 10.0 * (i + 1) + action[0])
        row = Transition(mark[None], action, earned, mark[None], ended, (i + 1 >= LENGTH) & ~ended)
        return (mark, i + 1), row

    world = World(
        reset=lambda key: (jax.random.uniform(key), jnp.zeros((), jnp.int32)),
        start=lambda origin, key: (origin, jnp.zeros((), jnp.int32)),
        observe=lambda carry: carry[0][None],
        step=step,
    )
    return Task("counting", None, world, Box((1,)), Box((1,), -1.0, 1.0), LENGTH)


def algorithm_of(act):
    """`act(state, explore, memory, observation)` gives the action; memory counts from 0."""

    def policy(state, clock, explore):
        def step(memory, observation, key):
            return act(state, explore, memory, observation), (), memory + 1.0

        return Policy(init=lambda key: jnp.zeros(()), act=step)

    return Algorithm(init=None, policy=policy, learn=None, period=1)


still = algorithm_of(lambda state, explore, memory, observation: jnp.zeros(1))


@pytest.mark.parametrize(("end", "expected"), [(1, 10), (3, 60), (LENGTH, 210), (100, 210)])
def test_the_last_reward_counts_and_nothing_after_it(end, expected):
    found = evaluation.evaluate(still, counting_task(end), jnp.zeros(2), 3)
    np.testing.assert_array_equal(found, np.full((2, 3), expected))


def test_the_policy_is_the_one_that_does_not_explore_and_has_a_memory_of_its_own():
    def act(state, explore, memory, observation):
        assert explore is False
        return (state + memory)[None]

    found = evaluation.evaluate(algorithm_of(act), counting_task(100), jnp.array([0.0, 0.5]), 2)
    # Memory goes 0, 1, ..., 5 within each episode.
    np.testing.assert_allclose(found, [[225.0, 225.0], [228.0, 228.0]])


def test_start_states_follow_from_the_episodes_number():
    seen = algorithm_of(lambda state, explore, memory, observation: observation)
    task = counting_task(100)
    few, many = (evaluation.evaluate(seen, task, jnp.zeros(2), n) for n in (3, 5))
    np.testing.assert_array_equal(many[:, :3], few)
    np.testing.assert_array_equal(many[0], many[1])
    assert len(np.unique(np.asarray(many[0]))) == 5
    by_index = [whole_episode(seen, task, jnp.zeros(()), jnp.int32(i)) for i in range(5)]
    np.testing.assert_allclose(many[0], by_index, rtol=1e-6)


def whole_episode(algorithm, task, state, index):
    """The return of all steps of an episode in one rollout."""
    world, policy, start, key = evaluation.begin(algorithm, task, state, index)
    return rollout(world, policy, start, key, task.episode_length, episode_return, Return.zero())[1].total


@pytest.mark.parametrize("part", [1, 4, 5, 6, 100])
def test_an_evaluation_of_several_parts_is_that_of_the_whole_episode(part, monkeypatch):
    """Of an episode with 5 steps the last part has more than are left."""
    monkeypatch.setattr(evaluation, "PART_STEPS", part)
    acting = algorithm_of(lambda state, explore, memory, observation: (state + memory)[None] + 0.1 * observation)
    for end, length in ((100, LENGTH), (3, LENGTH), (100, LENGTH - 1)):
        task = counting_task(end)._replace(episode_length=length)
        found = jax.jit(lambda states, task=task: evaluation.evaluate(acting, task, states, 4))(jnp.array([0.0, 0.5]))
        expected = [[whole_episode(acting, task, state, jnp.int32(i)) for i in range(4)] for state in (0.0, 0.5)]
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_no_part_begins_after_the_end_of_all_episodes(monkeypatch):
    """The task counts how often it is stepped."""
    taken = []
    inner = counting_task(3)._replace(episode_length=1_000_000)

    def step(carry, action, key):
        jax.debug.callback(lambda: taken.append(1))
        return inner.world.step(carry, action, key)

    monkeypatch.setattr(evaluation, "PART_STEPS", 5)
    task = inner._replace(world=inner.world._replace(step=step))
    found = jax.jit(lambda: evaluation.evaluate(still, task, jnp.zeros(2), 3))()
    jax.effects_barrier()
    np.testing.assert_array_equal(found, np.full((2, 3), 60))
    assert len(taken) == 5, "all episodes are stepped together"


def compile(what, function, *arguments):
    return function.lower(*arguments).compile()


def together(monkeypatch, episodes):
    """Lets so many episodes of each seed run at once."""
    monkeypatch.setattr(waves, "side_by_side", lambda step, shared, arguments, seeds, of: min(of, episodes))


@pytest.mark.parametrize(("end", "expected"), [(100, [225.0, 228.0]), (3, [63.0, 64.5])])
def test_an_evaluation_in_parts_gives_the_same_returns_and_tells_its_progress(end, expected, monkeypatch):
    # Parts of one step each.
    monkeypatch.setattr(evaluation, "PART_SECONDS", 0.0)
    acting = algorithm_of(lambda state, explore, memory, observation: (state + memory)[None])
    states, clock, told = jnp.array([0.0, 0.5]), Clock(jnp.int32(0)), []

    def update(*done):
        told.append(done)

    found = evaluation.in_parts(acting, counting_task(end), 2, compile, clock, states, update)
    # Memory goes 0, 1, ... within each episode, whatever the parts are.
    np.testing.assert_allclose(found, np.repeat(np.array(expected)[:, None], 2, axis=1))
    ends = range(LENGTH + 1) if end > LENGTH else [0, 1, 2, LENGTH]
    assert told == [(done, LENGTH) for done in ends], "all episodes have ended after step `end`"
    told.clear()
    together(monkeypatch, 2)
    seen = algorithm_of(lambda state, explore, memory, observation: observation)
    given = (seen, counting_task(end), 5)
    np.testing.assert_array_equal(
        evaluation.in_parts(*given, compile, clock, states, update), evaluation.evaluate(*given[:2], states, 5)
    )
    assert told == [(0, 3 * LENGTH), *((wave * LENGTH + done, 3 * LENGTH) for wave in range(3) for done in ends[1:])]


def test_a_planner_has_the_same_returns_in_waves(monkeypatch):
    """CEM, whose number of iterations differs between episodes."""
    task = envs.make("pendulum")._replace(episode_length=10)
    planner = planning.make(
        planning.PlannerConfig(cem=planning.CEMConfig(horizon=3, population=8, elites=2, min_variance=0.2)), task.action
    )

    def policy(state, clock, explore):
        return planning.planning_policy(planner, with_full_state(task.world), lambda carry: carry, task.action)

    algorithm = Algorithm(init=None, policy=policy, learn=None, period=1, observes_full_state=True)
    given = (algorithm, task, 4, compile, Clock(jnp.int32(0)), jnp.zeros(2), lambda *done: None)
    together(monkeypatch, 4)
    at_once = evaluation.in_parts(*given)
    together(monkeypatch, 1)
    np.testing.assert_array_equal(evaluation.in_parts(*given), at_once)
    assert len(np.unique(np.asarray(at_once))) == 4


def test_the_size_of_a_wave_is_that_of_the_arrays_that_differ_between_episodes(monkeypatch):
    """A loop with weights [8, 8] that are scaled inside, 64 numbers, for rows of which an episode has 3."""

    def step(weights, rows):
        def onwards(rows, _):
            return jnp.tanh(rows @ (2 * weights)), jnp.sum(rows)

        rows, sums = jax.lax.scan(onwards, rows, None, length=5)
        return jax.lax.cond(sums[0] > 0, lambda: rows, lambda: -rows)

    shapes = jax.ShapeDtypeStruct((8, 8), jnp.float32), jax.ShapeDtypeStruct((3, 8), jnp.float32)
    assert waves.largest_array(step, 1, shapes) == 4 * 3 * 8
    assert waves.largest_array(step, 0, shapes) == 4 * 8 * 8
    size = "CPU_BYTES" if jax.default_backend() == "cpu" else "DEVICE_BYTES"
    for bound, due in ((4 * 24 * 2 * 3, 3), (4 * 24 * 2 * 7, 5), (4 * 24 * 2 * 9, 5), (4 * 24 * 2 * 99, 10), (1, 1)):
        monkeypatch.setattr(waves, size, bound)
        # Seven at once would need two waves, as five do.
        assert waves.side_by_side(step, 1, shapes, 2, 10) == due, bound


def test_a_falling_pole_earns_the_steps_that_it_stood():
    """Full force to the right: the return is the number of steps, the one that fell included."""
    task = envs.make("cartpole-continuous")
    push = algorithm_of(lambda state, explore, memory, observation: jnp.ones(1))
    found = jax.jit(lambda: evaluation.evaluate(push, task, jnp.zeros(1), 4))()
    step = jax.jit(task.env.step)
    for i in range(4):
        start_key = jax.random.split(jax.random.fold_in(jax.random.key(evaluation._STREAM), i), 3)[0]
        state, steps = task.env.reset(start_key), 0
        while not state.done:
            state, steps = step(state, jnp.ones(1)), steps + 1
        assert float(found[0, i]) == steps
        assert 5 < steps < 20


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 10, 100])
def test_interquartile_mean(count):
    values = np.random.default_rng(count).standard_cauchy(count)
    assert evaluation.interquartile_mean(values.tolist()) == pytest.approx(stats.trim_mean(values, 0.25), rel=1e-12)


@pytest.mark.parametrize(
    ("trim", "statistic"), [(0.25, lambda x: np.sort(x)[:, 1:3].mean(axis=1)), (0.0, lambda x: x.mean(axis=1))]
)
def test_the_bootstrap_interval_is_that_of_all_resamplings(trim, statistic):
    """Of four values there are 256 resamplings; each quantile of 50,000 drawn ones lies among those just around it."""
    values = np.array([1.0, 2.0, 4.0, 16.0])
    every = np.sort(statistic(values[np.indices((4,) * 4).reshape(4, -1).T]))
    found = evaluation.bootstrap_interval(values.tolist(), trim=trim)
    for value, level in zip(found, (0.025, 0.975), strict=True):
        low, high = np.quantile(every, [level - 0.003, level + 0.003], method="nearest")
        assert low <= value <= high


def test_the_bootstrap_interval_by_hand():
    # Means of two drawn from 0 and 1: 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4.
    assert evaluation.bootstrap_interval([0.0, 1.0]) == (0.0, 1.0)
    assert evaluation.bootstrap_interval([0.0, 1.0], confidence=0.4) == (0.5, 0.5)
    assert evaluation.bootstrap_interval([3.0]) == (3.0, 3.0)


def test_strata_are_resampled_within_themselves():
    assert evaluation.bootstrap_interval([0.0, 0.0], [1.0, 1.0]) == (0.5, 0.5)
    low, high = evaluation.bootstrap_interval([0.0, 0.0, 1.0, 1.0])
    assert low == 0.0 and high == 1.0
    assert evaluation.bootstrap_interval([0.0, 1.0, 2.0], [7.0], trim=0.0) == (7 / 4, 13 / 4)


def test_the_interval_of_many_values_has_fewer_resamplings(monkeypatch):
    """Of 1,000 standard normal values the mean has the deviation 1 / sqrt(1000)."""
    values = stats.norm.ppf((np.arange(1000) + 0.5) / 1000)
    low, high = evaluation.bootstrap_interval(values, trim=0.0)
    np.testing.assert_allclose([low, high], np.array([-1.96, 1.96]) / np.sqrt(1000), rtol=0.1)
    by_step = evaluation.bootstrap_bands(values[None], trim=0.0)
    np.testing.assert_allclose(np.ravel(by_step), np.array([-1.96, 1.96]) / np.sqrt(1000), rtol=0.3)
    monkeypatch.setattr(evaluation, "MOST_DRAWN", 4 * 200)
    few = evaluation.bootstrap_interval([1.0, 2.0, 4.0, 16.0])
    assert few == evaluation.bootstrap_interval([1.0, 2.0, 4.0, 16.0], repetitions=200)


def test_bands_are_the_interval_of_each_step():
    """Seed 2 ends early and seed 1 has a gap: a band is of those that have a value."""
    values = np.array([[1.0, 2.0, 4.0, 8.0], [3.0, np.nan, 5.0, 1.0], [2.0, 7.0, np.nan, 2.5], [np.nan] * 4])
    low, high = evaluation.bootstrap_bands(values, repetitions=3000)
    for at, row in enumerate(values[:3]):
        known = row[~np.isnan(row)].tolist()
        assert (low[at], high[at]) == evaluation.bootstrap_interval(known, repetitions=3000)
    assert np.isnan([low[3], high[3]]).all()


def test_the_band_of_one_seed_is_its_curve():
    values = np.array([[1.0], [5.0], [2.0]])
    np.testing.assert_array_equal(evaluation.bootstrap_bands(values), (values[:, 0], values[:, 0]))


def test_the_probability_of_improvement_is_mann_whitneys():
    random = np.random.default_rng(3)
    ours, theirs = random.normal(size=9).round(), random.normal(0.3, size=6).round()
    assert np.isin(ours, theirs).any(), "there are ties"
    due = stats.mannwhitneyu(ours, theirs).statistic / (9 * 6)
    assert evaluation.probability_of_improvement((ours.tolist(), theirs.tolist())) == pytest.approx(due, rel=1e-12)
    assert evaluation.probability_of_improvement(([1.0, 3.0], [2.0]), ([1.0], [0.0, 0.5])) == 0.75, (
        "the mean over two tasks"
    )


def test_the_interval_of_an_improvement_is_that_of_all_resamplings():
    """Two runs against two: 16 resamplings, alike in probability."""
    ours, theirs = [0.0, 2.0], [1.0, 3.0]
    found = []
    for x in itertools.product(ours, repeat=2):
        for y in itertools.product(theirs, repeat=2):
            found.append(np.mean([[a > b for a in x] for b in y]))
    for confidence in (0.95, 0.8, 0.5):
        tails = [(1 - confidence) / 2, (1 + confidence) / 2]
        due = np.quantile(np.repeat(found, 1000), tails)
        assert evaluation.improvement_interval((ours, theirs), confidence=confidence) == pytest.approx(due, abs=1e-12)
    assert evaluation.improvement_interval(([1.0], [0.0])) == (1.0, 1.0)
    assert evaluation.improvement_interval(([1.0], [1.0])) == (0.5, 0.5)


def test_a_performance_profile_by_hand():
    """Shares above each threshold of three runs; a run at the threshold is not above it."""
    profile = evaluation.performance_profile(np.array([-1.0, 0.0, 1.5, 3.0]), [0.0, 1.0, 3.0])
    np.testing.assert_allclose(profile.share, [1, 2 / 3, 1 / 3, 0], rtol=1e-12)
    assert profile.low[0] == profile.high[0] == 1 and profile.low[3] == profile.high[3] == 0
    # Of three drawn none is above with probability 8/27, and all are with 1/27, more than the 2.5% of a tail.
    assert (profile.low[2], profile.high[2]) == (0, 1)
    two = evaluation.performance_profile(np.array([0.5]), [0.0, 1.0, 3.0], [1.0])
    np.testing.assert_allclose(two.share, [(2 / 3 + 1) / 2], rtol=1e-12)
