"""Pendulum and cartpole against Gymnasium, in float64."""

import functools

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxmbrl import envs
from jaxmbrl.core.config import UserError
from jaxmbrl.core.spaces import Box, Discrete
from jaxmbrl.core.types import Env
from jaxmbrl.envs.base import State

N = 3000
NAMES = ["cartpole-continuous", "pendulum"]
ANALYTIC = [*NAMES, "car-parking", "cartpole-swingup", "double-integrator", "mountain-car-continuous", "reacher-2d"]


@functools.cache
def stepper(name):
    """Of the task: (coordinates, actions) -> transitions of one step from each of the states."""
    task = envs.make(name)

    def step(coordinates, action):
        carry = task.world.start(task.env.state_at(coordinates), jax.random.key(0))
        return task.world.step(carry, action, jax.random.key(1))[1]

    return jax.jit(jax.vmap(step))


def one_step(name, coordinates, actions):
    return jax.device_get(stepper(name)(coordinates, actions))


def known_of(task, rows):
    """The task's (reward, terminated) of transitions."""
    reward = task.reward(rows.observation, rows.action, rows.next_observation)
    return reward, task.terminated(rows.next_observation)


def pendulum_cases():
    rng = np.random.default_rng(0)
    states = np.stack([rng.uniform(-12, 12, N), rng.uniform(-8, 8, N)], -1)
    return states, rng.uniform(-1.6, 1.6, (N, 1))  # beyond [-1, 1]: both clip


def cartpole_cases():
    rng = np.random.default_rng(1)
    states = rng.uniform(-1, 1, (N, 4)) * [2.6, 4, 0.25, 4]
    return states, rng.choice([-1.0, 1.0], (N, 1))


def test_pendulum_is_gymnasiums(x64):
    states, actions = pendulum_cases()
    rows = one_step("pendulum", states, actions)
    theirs = gymnasium.make("Pendulum-v1").unwrapped
    theirs.reset(seed=0)
    after, rewards = np.zeros((N, 2)), np.zeros(N)
    for i in range(N):
        theirs.state = states[i]
        _, rewards[i], terminated, _, _ = theirs.step(2 * actions[i])
        after[i] = theirs.state
        assert not terminated
    # their observation is rounded to float32, their state is not
    observe = lambda s: np.stack([np.cos(s[:, 0]), np.sin(s[:, 0]), s[:, 1]], -1)  # noqa: E731
    np.testing.assert_allclose(rows.observation, observe(states), rtol=0, atol=1e-12)
    np.testing.assert_allclose(rows.next_observation, observe(after), rtol=0, atol=1e-12)
    np.testing.assert_allclose(rows.reward, rewards, rtol=0, atol=1e-12)
    assert not rows.terminated.any()
    assert (np.abs(after[:, 1]) == 8).any(), "no case reaches the speed limit"
    np.testing.assert_array_equal(rows.action, actions)


def test_cartpole_is_gymnasiums_at_full_force(x64):
    states, actions = cartpole_cases()
    rows = one_step("cartpole-continuous", states, actions)
    theirs = gymnasium.make("CartPole-v1").unwrapped
    theirs.reset(seed=0)
    after, rewards, terminated = np.zeros((N, 4)), np.zeros(N), np.zeros(N, bool)
    for i in range(N):
        theirs.state, theirs.steps_beyond_terminated = tuple(states[i]), None
        _, rewards[i], terminated[i], _, _ = theirs.step(int(actions[i, 0] > 0))
        after[i] = theirs.state
    np.testing.assert_allclose(rows.next_observation, after, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(rows.reward, rewards)
    np.testing.assert_array_equal(rows.terminated, terminated)
    assert 0.1 < terminated.mean() < 0.9


def test_cartpole_between_full_forces_is_gymnasiums_with_that_force(x64):
    states, _ = cartpole_cases()
    actions = np.random.default_rng(2).uniform(-1.5, 1.5, (N, 1))
    rows = one_step("cartpole-continuous", states, actions)
    theirs = gymnasium.make("CartPole-v1").unwrapped
    theirs.reset(seed=0)
    after = np.zeros((N, 4))
    for i in range(N):
        theirs.state, theirs.steps_beyond_terminated = tuple(states[i]), None
        theirs.force_mag = 10 * np.clip(actions[i, 0], -1, 1)
        theirs.step(1)
        after[i] = theirs.state
    np.testing.assert_allclose(rows.next_observation, after, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_a_trajectory_in_float32_stays_with_gymnasium(name):
    task = envs.make(name)
    theirs = gymnasium.make({"pendulum": "Pendulum-v1", "cartpole-continuous": "CartPole-v1"}[name]).unwrapped
    theirs.reset(seed=3)
    start = np.asarray(theirs.state, np.float64)
    actions = np.random.default_rng(0).choice([-1.0, 1.0], (8, 1))
    key = jax.random.key(0)
    carry = jax.jit(lambda start: task.world.start(task.env.state_at(start), key))(start.astype(np.float32))
    step = jax.jit(task.world.step)
    for action in actions:
        carry, row = step(carry, action.astype(np.float32), key)
        observation, reward, *_ = theirs.step(2 * action if name == "pendulum" else int(action[0] > 0))
        np.testing.assert_allclose(row.next_observation, observation, atol=2e-5)
        np.testing.assert_allclose(row.reward, reward, atol=2e-4)
    assert row.next_observation.dtype == row.reward.dtype == jnp.float32


@pytest.mark.parametrize(("name", "cases"), [("pendulum", pendulum_cases), ("cartpole-continuous", cartpole_cases)])
def test_known_reward_and_termination_agree_with_steps(x64, name, cases):
    task, rows = envs.make(name), one_step(name, *cases())
    known = functools.partial(known_of, task)
    reward, terminated = jax.jit(known)(rows)
    np.testing.assert_allclose(reward, rows.reward, rtol=0, atol=1e-11)
    np.testing.assert_array_equal(terminated, rows.terminated)
    stacked = jax.eval_shape(known, jax.tree.map(lambda x: x[None], rows))
    assert stacked[0].shape == stacked[1].shape == (1, N)


@pytest.mark.parametrize("name", ANALYTIC)
def test_known_reward_and_termination_agree_with_rollouts(x64, name):
    """32 rollouts of random actions, some of them beyond [-1, 1]."""
    task = envs.make(name)

    def play(key, actions):
        step = lambda carry, action: task.world.step(carry, action, key)  # noqa: E731
        return jax.lax.scan(step, task.world.reset(key), actions)[1]

    @jax.jit
    def look(keys, actions):
        rows = jax.vmap(play)(keys, actions)
        return rows, known_of(task, rows)

    actions = np.random.default_rng(0).uniform(-1.3, 1.3, (32, 120, *task.action.shape))
    rows, (reward, terminated) = jax.device_get(look(jax.random.split(jax.random.key(0), 32), actions))
    np.testing.assert_allclose(reward, rows.reward, rtol=0, atol=1e-10)
    np.testing.assert_array_equal(terminated, rows.terminated)
    assert reward.shape == (32, 120) and (np.std(reward) > 1e-3 or name == "cartpole-continuous")
    assert rows.terminated.any() == (name == "cartpole-continuous")


def test_pendulum_reward_of_an_observation_off_the_circle(x64):
    on = np.array([np.cos(2.0), np.sin(2.0), 3.0])
    got = jax.jit(envs.make("pendulum").reward)(on * np.array([0.5, 0.5, 1.0]), np.array([0.5]), on)
    assert float(got) == pytest.approx(-(2.0**2 + 0.1 * 3.0**2 + 0.001 * 1.0**2), abs=1e-12)


@pytest.mark.parametrize(
    ("coordinates", "fallen"),
    [
        ([2.4, 0, 0, 0], False),
        ([2.4001, 0, 0, 0], True),
        ([-2.4001, 0, 0, 0], True),
        ([0, 9, np.pi / 15, 9], False),
        ([0, 0, np.pi / 15 + 1e-6, 0], True),
        ([0, 0, -np.pi / 15 - 1e-6, 0], True),
    ],
)
def test_cartpole_bounds(x64, coordinates, fallen):
    terminated = jax.jit(envs.make("cartpole-continuous").terminated)
    assert bool(terminated(np.array(coordinates, float))) == fallen


def play(task, coordinates, policy, length):
    """Transitions of `length` steps without any reset."""

    def step(carry, _):
        action = policy(task.world.observe(carry))
        return task.world.step(carry, action, jax.random.key(0))

    @jax.jit
    def run(coordinates):
        carry = task.world.start(task.env.state_at(coordinates), jax.random.key(0))
        return jax.lax.scan(step, carry, None, length)[1]

    return jax.device_get(run(np.asarray(coordinates, np.float32)))


def balance(observation):
    return jnp.clip(observation @ jnp.array([1.0, 1.5, 15.0, 3.0]), -1, 1)[None]


def test_time_limits_truncate():
    for name, start, policy in (
        ("pendulum", [3.0, 0.0], lambda observation: jnp.zeros(1)),
        ("cartpole-continuous", [0.01, 0.0, 0.01, 0.0], balance),
    ):
        task = envs.make(name)
        assert task.episode_length == 200
        rows = play(task, start, policy, 200)
        assert not rows.terminated.any()
        np.testing.assert_array_equal(rows.truncated, [False] * 199 + [True])
        if name == "cartpole-continuous":
            assert float(rows.reward.sum()) == 200


def test_a_fall_on_the_last_step_terminates_and_does_not_truncate():
    base = envs.make("cartpole-continuous")
    start = [0.0, 0.0, 0.05, 0.0]
    rows = play(base, start, lambda observation: jnp.ones(1), 60)
    fall = int(np.argmax(rows.terminated))
    assert 3 < fall < 59
    for limit, truncated in ((fall, True), (fall + 1, False), (fall + 2, False)):
        task = envs.make_task("short", base.env, limit, base.reward, base.terminated)
        last = jax.tree.map(lambda x, limit=limit: x[limit - 1], play(task, start, lambda observation: jnp.ones(1), limit))
        assert (bool(last.truncated), bool(last.terminated)) == (truncated, limit > fall)
        assert float(last.reward) == 1.0


def resets(name, n=4000):
    reset = jax.jit(jax.vmap(envs.make(name).env.reset))
    return np.asarray(reset(jax.random.split(jax.random.key(0), n)).pipeline_state)


def test_resets_are_gymnasiums_in_distribution():
    coordinates = resets("pendulum")
    for i, high in enumerate((np.pi, 1.0)):
        assert stats.kstest(coordinates[:, i], stats.uniform(-high, 2 * high).cdf).pvalue > 1e-3
    coordinates = resets("cartpole-continuous")
    for i in range(4):
        assert stats.kstest(coordinates[:, i], stats.uniform(-0.05, 0.1).cdf).pvalue > 1e-3
    assert np.abs(np.corrcoef(coordinates.T) - np.eye(4)).max() < 0.07


@pytest.mark.parametrize("name", ANALYTIC)
@pytest.mark.parametrize("double", [False, True])
def test_states_have_the_fields_and_dtypes_of_the_interface(name, double):
    with jax.enable_x64(double):
        task = envs.make(name)
        assert isinstance(task.env, Env)
        assert task.name == name
        assert task.observation == Box((task.env.observation_size,))
        assert task.action == Box((task.env.action_size,), -1.0, 1.0)
        state = jax.eval_shape(task.env.reset, jax.random.key(0))
        assert isinstance(state, State)
        after = jax.eval_shape(task.env.step, state, task.action.zeros())

        @jax.jit
        def play(key):
            carry = task.world.reset(key)
            stepped, row = task.world.step(carry, task.action.zeros(), key)
            return carry, stepped, row, task.world.observe(stepped)

        carry, stepped, row, observed = play(jax.random.key(0))
        kinds = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)  # noqa: E731
        assert kinds(state) == kinds(after) and kinds(carry) == kinds(stepped)
        assert not any(leaf.weak_type for leaf in jax.tree.leaves((state, carry)))
        float_type = jnp.float64 if double else jnp.float32
        assert state.obs.dtype == state.reward.dtype == state.done.dtype == float_type
        assert state.obs.shape == task.observation.shape
        assert row.terminated.dtype == row.truncated.dtype == bool
        np.testing.assert_array_equal(observed, row.next_observation)


def test_states_stand_in_tree_functions():
    task = envs.make("pendulum")
    shapes = jax.eval_shape(task.env.reset, jax.random.key(0))
    assert shapes.obs.shape == (3,)
    states = jax.eval_shape(jax.vmap(task.env.reset), jax.random.split(jax.random.key(0), 2))
    axes = jax.tree.map(lambda _: 0, states)
    stepped = jax.eval_shape(jax.vmap(task.env.step, in_axes=(axes, None)), states, np.zeros(1))
    assert stepped.obs.shape == (2, 3)


def test_a_task_may_have_discrete_actions():
    base = envs.make("cartpole-continuous")
    assert envs.make_task("d", base.env, 5, action=Discrete(3)).action == Discrete(3)


def test_unknown_name_is_told_the_nearest():
    with pytest.raises(UserError) as caught:
        envs.make("pendlum")
    assert str(caught.value) == "unknown task 'pendlum'; did you mean 'pendulum'?"
    assert set(NAMES) <= set(envs.names())
    assert envs.names() == sorted(envs.names())
