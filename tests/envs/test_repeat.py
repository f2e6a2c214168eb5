"""Action repeat: a task repeated is the task stepped by hand, also where an episode ends in the middle of a repeat."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl import envs
from jaxmbrl.core.config import UserError
from jaxmbrl.core.spaces import Discrete
from jaxmbrl.envs.action_repeat import RepeatedEnv, times_in
from jaxmbrl.rollout import open_loop, rollout

KEY = jax.random.key(5)


def played(task, actions, key=KEY):
    """Transitions of `actions` [T, A] from a reset, by the rollout that everything uses."""
    wide = np.float64 if jax.config.jax_enable_x64 else np.float32

    @jax.jit
    def run(actions, key):
        policy = open_loop(actions)
        return rollout(task.world, policy, (task.world.reset(key), policy.init(key)), key, len(actions))[1]

    return jax.device_get(run(np.asarray(actions, wide), key))


@functools.cache
def compiled(name):
    """(reset, step) of a task's plain environment."""
    env = envs.make(name).env
    return jax.jit(env.reset), jax.jit(env.step)


def by_hand(name, actions, times, limit, key=KEY):
    """(observations, rewards, terminated, truncated) of the plain environment stepped in a Python loop."""
    reset, step = compiled(name)
    state = reset(key)
    found, taken = [], 0
    for action in actions:
        total, over = np.zeros((), np.float32), False
        for _ in range(times):
            if over or taken == limit:
                break
            state = step(state, np.asarray(action, state.obs.dtype))
            total, taken, over = total + np.asarray(state.reward), taken + 1, bool(state.done)
        found.append((np.asarray(state.obs), total, over, taken == limit and not over))
        if over or taken == limit:
            break
    return [np.stack(column) for column in zip(*found, strict=True)]


def compare(rows, found):
    successor, reward, terminated, truncated = found
    n = len(reward)
    np.testing.assert_allclose(rows.next_observation[:n], successor, rtol=0, atol=1e-6)
    np.testing.assert_allclose(rows.reward[:n], reward, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(rows.terminated[:n], terminated)
    np.testing.assert_array_equal(rows.truncated[:n], truncated)
    np.testing.assert_array_equal(rows.observation[1:n], rows.next_observation[: n - 1])
    return n


def uniform(task, steps, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (steps, task.action.shape[0])).astype(np.float32)


def test_once_is_the_very_task():
    base = envs.make("pendulum")
    assert envs.repeat(base, 1) is base
    again = envs.make("pendulum", action_repeat=1)
    assert (again.episode_length, again.action_repeat, again.reward) == (200, 1, base.reward)
    actions = uniform(base, 30)
    for a, b in zip(jax.tree.leaves(played(base, actions)), jax.tree.leaves(played(again, actions)), strict=True):
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("times", [2, 3, 7, 200])
def test_a_repeat_is_a_loop_by_hand_to_the_time_limit(times):
    """Of 3 and 7 the limit of 200 is no multiple: the last step is shorter. In float64, as a swing of 200 steps multiplies
    the rounding in which two programs differ."""
    with jax.enable_x64(True):
        check_the_loop_by_hand(times)


def check_the_loop_by_hand(times):
    base, task = envs.make("pendulum"), envs.make("pendulum", action_repeat=times)
    steps = {2: 100, 3: 67, 7: 29, 200: 1}[times]
    assert (task.episode_length, task.action_repeat, task.name) == (steps, times, "pendulum")
    actions = uniform(base, steps)
    found = by_hand(base.name, actions, times, 200)
    assert compare(played(task, actions), found) == steps
    assert found[3].tolist() == [False] * (steps - 1) + [True]


def test_the_reward_of_a_short_last_step_is_of_its_steps_alone():
    """A limit of 5 and a repeat of 2: 2, 2 and 1 for a task that pays 1 a step; beyond the limit steps are whole again."""
    base = envs.make("cartpole-continuous")
    task = envs.repeat(envs.make_task("short", base.env, 5), 2)
    rows = played(task, np.zeros((5, 1)))
    assert rows.reward.tolist() == [2, 2, 1, 2, 2]
    assert rows.truncated.tolist() == [False, False, True, True, True] and not rows.terminated.any()


def test_an_episode_ends_in_the_middle_of_a_repeat():
    """A cart-pole that is pushed falls at a step that is no multiple of the repeat; what follows earns nothing."""
    task = envs.make("cartpole-continuous", action_repeat=4)
    alone = by_hand(task.name, np.ones((50, 1)), 1, 200)
    fell = len(alone[1])
    assert fell % 4, "choose another key"
    rows = played(task, np.ones((13, 1)))
    n = compare(rows, by_hand(task.name, np.ones((13, 1)), 4, 200))
    assert n == -(-fell // 4) and rows.terminated[:n].tolist() == [False] * (n - 1) + [True]
    assert rows.reward[:n].tolist() == [4] * (n - 1) + [fell % 4]
    np.testing.assert_allclose(rows.next_observation[n - 1], alone[0][-1], atol=1e-6)


def test_a_termination_at_the_time_limit_is_a_termination():
    base = envs.make("cartpole-continuous")
    fell = len(by_hand(base.name, np.ones((50, 1)), 1, 200)[1])
    task = envs.repeat(envs.make_task("short", base.env, fell), 3)
    rows = played(task, np.ones((task.episode_length, 1)))
    assert rows.terminated[-1] and not rows.truncated.any()


def test_what_is_known_of_a_repeat():
    """Termination is told by the state that is seen; the reward is a sum over states that are not."""
    task = envs.make("cartpole-continuous", action_repeat=3)
    assert task.reward is None and task.terminated is envs.make("cartpole-continuous").terminated
    rows = played(task, np.ones((10, 1)))
    np.testing.assert_array_equal(jax.jit(task.terminated)(rows.next_observation), rows.terminated)


@pytest.mark.parametrize(
    "name",
    [
        "cartpole-continuous",
        *(pytest.param(name, marks=pytest.mark.promises) for name in ("pendulum", "Acrobot-v1", "FrozenLake")),
    ],
)
def test_a_repeated_task_is_sound(name):
    task = envs.make(name, action_repeat=3)
    assert envs.check(task._replace(terminated=jax.jit(task.terminated))) is None


def test_the_environment_repeats_as_its_world_does():
    base, task = envs.make("cartpole-continuous"), envs.make("cartpole-continuous", action_repeat=4)
    assert (task.env.observation_size, task.env.action_size) == (4, 1) and task.env.env.__class__ is base.env.__class__
    rows = played(task, np.ones((10, 1)))
    step, state = jax.jit(task.env.step), jax.jit(task.env.reset)(KEY)
    for i in range(int(rows.terminated.argmax()) + 1):
        before = state
        state = step(state, np.ones(1, np.float32))
        np.testing.assert_allclose(state.obs, rows.next_observation[i], atol=1e-6)
        assert (float(state.reward), bool(state.done)) == (rows.reward[i], rows.terminated[i])
        assert jax.tree.structure(state) == jax.tree.structure(before)
    assert bool(state.done)


class Counter:
    """In Brax's manner: Python numbers in a state, and dictionaries that a step writes to."""

    observation_size, action_size = 1, 1

    def reset(self, rng):
        return envs.State((), jnp.zeros(1), 0.0, 0.0, {"last": 0.0}, {"count": 0})

    def step(self, state, action):
        state.info["count"] += 1
        state.metrics["last"] = action[0]
        return state.replace(
            obs=state.obs + action, reward=1.0 * state.info["count"], done=jnp.where(state.obs[0] > 2, 1.0, 0.0)
        )


def test_environments_that_write_to_their_dictionaries():
    env = RepeatedEnv(Counter(), 3)
    first = env.reset(KEY)
    second = env.step(first, jnp.ones(1))
    assert (first.info, first.metrics) == ({"count": 0}, {"last": 0.0})
    assert (float(second.reward), int(second.info["count"]), second.obs.tolist()) == (1 + 2 + 3, 3, [3.0])
    assert (float(env.step(second, jnp.ones(1)).reward), float(env.step(second, jnp.ones(1)).done)) == (4, 1)


def test_rewards_can_be_differentiated_through_a_repeat():
    """Against finite differences of the loop by hand in float64."""
    with jax.enable_x64(True):
        task = envs.repeat(envs.make("pendulum"), 3)
        reset, step = compiled("pendulum")

        @jax.jit
        @jax.grad
        def gradient(action):
            return task.world.step(task.world.reset(KEY), action[None], KEY)[1].reward

        def earned(action):
            state, total = reset(KEY), 0.0
            for _ in range(3):
                state = step(state, np.array([action]))
                total += float(state.reward)
            return total

        assert float(gradient(0.3)) == pytest.approx((earned(0.3 + 1e-5) - earned(0.3 - 1e-5)) / 2e-5, rel=1e-6)


def test_discrete_actions_repeat():
    base = envs.make("cartpole-continuous")

    class Pushed:
        observation_size, action_size, reset = 4, 1, base.env.reset

        def step(self, state, action):
            return base.env.step(state, action[None] - 1.0)

    task = envs.repeat(envs.make_task("pushed", Pushed(), 20, action=Discrete(3)), 4)
    assert envs.check(task) is None and task.action == Discrete(3)


@pytest.mark.parametrize("times", [0, -1, True, 201])
def test_what_is_no_repeat(times):
    with pytest.raises(UserError) as told:
        envs.make("pendulum", action_repeat=times)
    assert str(told.value) == (
        "action_repeat must be a whole number between 1 and the 200 steps of an episode of pendulum, got " + repr(times)
    )


def test_repeated_by_name():
    task = envs.make("stacked/3/masked/repeated/4/pendulum")
    expected = envs.stacked(envs.masked(envs.repeat(envs.make("pendulum"), 4)), 3)
    assert (task.name, task.action_repeat) == ("stacked/3/masked/repeated/4/pendulum", 4)
    assert task.episode_length == 50 and task.observation == expected.observation
    actions = np.linspace(-1.0, 1.0, 9)[:, None]
    rows, by_hand = played(task, actions), played(expected, actions)
    for name in ("observation", "reward", "next_observation", "truncated"):
        np.testing.assert_array_equal(getattr(rows, name), getattr(by_hand, name))
    assert envs.make("repeated/2/pendulum", action_repeat=5).action_repeat == 10


@pytest.mark.parametrize("name", ["repeated/pendulum", "repeated/2", "repeated/2/", "repeated/-2/pendulum"])
def test_what_is_no_name_of_a_repeated_task(name):
    with pytest.raises(UserError, match="a task with repeated actions is named repeated/TIMES/TASK") as told:
        envs.make(name)
    assert str(told.value).endswith(f"got '{name}'")


@pytest.mark.parametrize(
    ("name", "times"),
    [("pendulum", 1), ("repeated/2/pendulum", 2), ("stacked/3/repeated/2/repeated/3/pendulum", 6), ("unrepeated/2/x", 1)],
)
def test_the_repetitions_in_a_name(name, times):
    assert times_in(name) == times
