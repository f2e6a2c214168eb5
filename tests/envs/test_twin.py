"""A task's twin in Gymnasium: the same start, the same steps, and the same returns as on MJX."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl import envs
from jaxmbrl.algorithms.shooting import pets
from jaxmbrl.core.config import UserError, from_dict
from jaxmbrl.core.types import Algorithm, Policy
from jaxmbrl.envs.bridges.twin import Twin, carry_of, check_twin, versions
from jaxmbrl.training import devices, evaluation, loop

GAINS = jnp.array([0.3, 6.0, 0.5, 1.2])
"""A linear policy on [x, angle, their speeds] that keeps InvertedPendulum-v5 upright: force / 300 N."""


def linear(observes_full_state=False):
    """action = gain * GAINS . observation, plus its memory, which fades, and noise of the keys."""

    def policy(state, clock, explore):
        assert explore is False

        def act(memory, seen, key):
            observation = seen[0].obs if observes_full_state else seen
            if observes_full_state:
                # What is planned from: positions and velocities, and the steps since the start.
                simulation = seen[0].pipeline_state
                observation = jnp.concatenate([simulation.qpos, simulation.qvel]) + 0.0 * seen[1]
            noise = 1e-3 * jax.random.normal(key)
            return jnp.clip(state * (GAINS @ observation) + memory + noise, -1, 1)[None], (), memory * 0.9

        return Policy(lambda key: 1e-2 * jax.random.normal(key), act)

    return Algorithm(None, policy, None, 1, observes_full_state=observes_full_state)


def plain(what, function, *arguments):
    return function


def returns(algorithm, task, states, episodes, in_gymnasium, update=None):
    with contextlib.ExitStack() as closing:
        clock = loop.clock_at(0)
        made = evaluation.evaluator(
            algorithm, task, episodes, plain, closing, clock, states, devices.single_device(1), in_gymnasium
        )
        if update is not None:
            made.update = update
        return np.asarray(made(clock, states))


@pytest.fixture(scope="module")
def pole():
    return envs.make("InvertedPendulum-v5")._replace(episode_length=60)


STATES = jnp.array([1.0, 0.0, -0.2])
"""Of three seeds: one stands, one falls in its own time, one is pushed over."""


UPDATES: list[tuple[float, float]] = []


@pytest.fixture(scope="module")
def played(pole):
    return returns(linear(), pole, STATES, 5, in_gymnasium=True, update=lambda *steps: UPDATES.append(steps))


def test_the_progress_is_told_step_by_step(played):
    assert [(i, 60) for i in range(1, 61)] == UPDATES


def test_some_poles_stand_and_some_fall(played):
    assert (played[0] == 60).all()
    assert (played[1:] < 60).all() and len(np.unique(played[1])) > 1


@pytest.mark.slow
def test_returns_are_those_of_mjx(pole, played):
    np.testing.assert_array_equal(played, returns(linear(), pole, STATES, 5, in_gymnasium=False))


def test_a_policy_that_sees_the_simulators_state_sees_the_twins(pole, played):
    found = returns(linear(observes_full_state=True), pole, STATES, 5, in_gymnasium=True)
    np.testing.assert_array_equal(found, played)


def test_more_episodes_than_environments_wait_for_their_turn(pole, played, monkeypatch):
    monkeypatch.setattr("jaxmbrl.training.hosted.SIDE_BY_SIDE", 6)
    found = returns(linear(), pole, STATES, 5, in_gymnasium=True)
    np.testing.assert_array_equal(found, played)


def follow(name, steps):
    """(twin's, task's own) observations and rewards, and the carries after the last step."""
    task = envs.make(name)
    carry = jax.jit(task.world.reset)(jax.random.key(2))
    simulation = carry[0].pipeline_state
    twin, step = Twin(task), jax.jit(task.world.step)
    seen = twin.start(np.asarray(simulation.qpos), np.asarray(simulation.qvel))
    np.testing.assert_allclose(seen.observation, carry[0].obs, atol=1e-6)
    carries, rng = carry_of(task), np.random.default_rng(0)
    rows = []
    for _ in range(steps):
        action = rng.uniform(-0.5, 0.5, task.action.shape).astype(np.float32)
        carry, row = step(carry, action, jax.random.key(0))
        told = twin.step(action)
        seen = told.observation
        rows.append([(seen.observation, told.reward), (row.next_observation, row.reward)])
        assert (told.terminated, told.truncated) == (bool(row.terminated), bool(row.truncated))
    twin.close()
    return rows, carries(seen), carry


def test_a_twins_carry_is_of_the_worlds_kind(pole):
    """So it can be planned from; the numbers are compared below."""
    twin = Twin(pole)
    twin.start(np.zeros(2), np.array([0.1, 0.2]))
    seen = twin.step(np.array([0.5])).observation
    carry, own = carry_of(pole)(seen), jax.jit(pole.world.reset)(jax.random.key(0))
    assert jax.tree.structure(carry) == jax.tree.structure(own)
    assert [(x.shape, x.dtype) for x in jax.tree.leaves(carry)] == [(x.shape, x.dtype) for x in jax.tree.leaves(own)]
    simulation, data = carry[0].pipeline_state, twin._inner.data
    for name in ("qpos", "qvel", "qacc_warmstart"):
        np.testing.assert_allclose(getattr(simulation, name), getattr(data, name), rtol=1e-6)
    assert np.abs(simulation.qacc_warmstart).max() > 0 and int(carry[1]) == 1
    np.testing.assert_array_equal(carry[0].obs, seen.observation)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "steps", "tolerance"),
    [("InvertedPendulum-v5", 6, 1e-4), ("Hopper-v5", 10, 1e-2), ("HalfCheetah-v5", 10, 2e-2)],
)
def test_a_twin_steps_alike_and_its_carry_is_the_worlds(name, steps, tolerance):
    rows, theirs, mine = follow(name, steps)
    for (observation, reward), (own, earned) in rows:
        np.testing.assert_allclose(observation, own, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(reward, earned, rtol=tolerance, atol=tolerance)
    assert jax.tree.structure(theirs) == jax.tree.structure(mine)
    kinds = [[(x.shape, x.dtype) for x in jax.tree.leaves(tree)] for tree in (theirs, mine)]
    assert kinds[0] == kinds[1]
    assert int(theirs[1]) == int(mine[1]) == steps
    for field in ("qpos", "qvel"):
        a, b = (np.asarray(getattr(tree[0].pipeline_state, field)) for tree in (theirs, mine))
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
    assert np.abs(theirs[0].pipeline_state.qacc_warmstart).max() > 0


def test_the_time_limit_is_the_tasks():
    twin = Twin(envs.make("InvertedPendulum-v5")._replace(episode_length=3))
    twin.start(np.zeros(2), np.zeros(2))
    assert [twin.step(np.zeros(1)).truncated for _ in range(3)] == [False, False, True]
    seen = twin.start(np.array([0.1, 0.02]), np.array([0.3, 0.4]))
    np.testing.assert_allclose(seen.observation, [0.1, 0.02, 0.3, 0.4], rtol=1e-6)
    assert not seen.qacc_warmstart.any() and seen.elapsed == 0
    assert not twin.step(np.zeros(1)).truncated


def test_a_task_without_a_twin_says_so():
    with pytest.raises(UserError, match=r"^task 'pendulum' has no twin in Gymnasium"):
        returns(linear(), envs.make("pendulum"), jnp.zeros(1), 2, in_gymnasium=True)
    assert check_twin(envs.make("InvertedPendulum-v5")) == "InvertedPendulum-v5"
    assert versions(physics=False) == versions().split(" (C MuJoCo 3.")[0]


def test_options_go_to_gymnasium():
    task = envs.make("HalfCheetah-v5")
    task.env.gymnasium_options = {"exclude_current_positions_from_observation": False}
    simulation = jax.jit(task.world.reset)(jax.random.key(0))[0].pipeline_state
    seen = Twin(task).start(np.asarray(simulation.qpos), np.asarray(simulation.qvel))
    assert seen.observation.shape == (18,)
    del task.env.gymnasium_options
    assert Twin(task).start(np.asarray(simulation.qpos), np.asarray(simulation.qvel)).observation.shape == (17,)


@pytest.mark.slow
def test_a_planner_in_the_true_simulator_plans_from_the_twins_state(pole):
    """Plans of 8 steps from the simulator's own state, with the same candidates on both backends, keep the pole up."""
    ensemble = {"members": 1, "elites": 1, "hidden": (8,)}
    cem = {"horizon": 8, "population": 40, "elites": 8, "iterations": 2}
    settings = {"ensemble": ensemble, "planner": {"cem": cem}, "particles": 1}
    task = pole._replace(episode_length=25)
    algorithm = pets.make(from_dict(pets.Config, settings | {"model": "true"}), task)
    assert algorithm.observes_full_state
    states = jax.vmap(lambda key: algorithm.init(key, {}))(jax.random.split(jax.random.key(0), 1))
    found = [returns(algorithm, task, states, 2, in_gymnasium) for in_gymnasium in (False, True)]
    np.testing.assert_array_equal(found[0], found[1])
    assert (found[0] == 25).all(), found[0]


def test_a_repeated_task_has_a_twin_that_repeats():
    once, thrice = envs.make("InvertedPendulum-v5"), envs.make("InvertedPendulum-v5", action_repeat=3)
    assert check_twin(thrice) == "InvertedPendulum-v5"
    ones, threes = Twin(once), Twin(thrice)
    start = (np.array([0.1, 0.02]), np.array([0.3, 0.4]))
    for twin in (ones, threes):
        twin.start(*start)
    action, told, earned = np.array([0.2]), None, []
    for _ in range(12):
        told = ones.step(action)
        earned.append(told.reward)
        if told.terminated:
            break
    assert told.terminated and len(earned) % 3, "the pole must fall in the middle of a repeat"
    together = [threes.step(action) for _ in range(-(-len(earned) // 3))]
    assert [step.terminated for step in together] == [False] * (len(together) - 1) + [True]
    np.testing.assert_array_equal(
        [step.reward for step in together], [sum(earned[i : i + 3]) for i in range(0, len(earned), 3)]
    )
    np.testing.assert_array_equal(together[-1].observation.observation, told.observation.observation)
    carry, own = carry_of(thrice)(together[0].observation), jax.eval_shape(thrice.world.reset, jax.random.key(0))
    assert jax.tree.structure(carry) == jax.tree.structure(own)
    assert (int(carry[0][1]), int(carry[1])) == (3, 1)
    twice = envs.repeat(thrice, 2)
    carry, own = carry_of(twice)(together[0].observation), jax.eval_shape(twice.world.reset, jax.random.key(0))
    assert jax.tree.structure(carry) == jax.tree.structure(own)
    assert (int(carry[0][0][1]), int(carry[0][1]), int(carry[1])) == (6, 2, 1)
    for twin in (ones, threes):
        twin.close()
