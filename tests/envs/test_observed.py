"""Masked and stacked tasks are the plain task, step by step, but for what is observed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl import envs
from jaxmbrl.core.config import UserError
from jaxmbrl.core.spaces import Box
from jaxmbrl.core.types import HostStep
from jaxmbrl.envs import observed
from jaxmbrl.envs.base import initial_state
from jaxmbrl.exporting.exporter import actuator_range
from jaxmbrl.rollout import auto_reset, open_loop, rollout, with_full_state

KEY = jax.random.key(3)
LIMIT = 4


class Counter:
    """Counts the steps of all episodes: state and observation [count, 10 count, velocity = -count]; terminates at 7."""

    observation_size, action_size, dt = 3, 1, 0.1
    observation_names = ("count", "tens", "velocity")
    actuator_range = (-2.0, 2.0)

    def observe(self, count):
        return jnp.stack([count, 10 * count, -count])

    def reset(self, rng):
        return initial_state(jnp.zeros(()), self.observe(jnp.zeros(())))

    def next_episode(self, state, rng):
        return initial_state(state.pipeline_state, self.observe(state.pipeline_state))

    def step(self, state, action):
        count = state.pipeline_state + 1
        done = (count == 7).astype(float)
        return state.replace(pipeline_state=count, obs=self.observe(count), reward=state.obs[0], done=done)

    def draw(self, state, action):
        return np.full((8, 8, 3), int(state.pipeline_state), np.uint8)


def counting():
    known = {"reward": lambda o, a, n: o[..., 0], "terminated": lambda n: n[..., 0] == 7}
    return envs.make_task("counter", Counter(), LIMIT, **known)


def collected(task, steps, with_reset=True):
    """Transitions of zero actions, from a reset, with the next episode after an end."""
    world, policy = task.world, open_loop(jnp.zeros((steps, 1)))
    if with_reset:
        world, policy = auto_reset(world, policy._replace(act=lambda i, o, key: (jnp.zeros(1), (), i)))
    start = (world.reset(KEY), jnp.zeros((), jnp.int32))
    return jax.device_get(rollout(world, policy, start, KEY, steps)[1])


def assert_same_but_for_the_observation(found, plain):
    for name in ("action", "reward", "terminated", "truncated"):
        np.testing.assert_array_equal(getattr(found, name), getattr(plain, name))


def test_masked_pendulum_is_the_pendulum_without_its_velocity():
    plain, task = envs.make("pendulum"), envs.masked("pendulum", drop="velocities")
    assert (task.name, task.observation, task.episode_length) == ("masked/pendulum", Box((2,)), 200)
    assert task.reward is None and task.terminated is None
    actions = jax.random.uniform(KEY, (20, 1), minval=-1.0)

    @jax.jit
    def both(actions):
        return [rollout(t.world, open_loop(actions), (t.world.reset(KEY), 0), KEY, 20) for t in (plain, task)]

    ((carry, _), whole), ((masked_carry, _), rows) = jax.device_get(both(actions))
    assert_same_but_for_the_observation(rows, whole)
    np.testing.assert_array_equal(rows.observation, whole.observation[:, :2])
    np.testing.assert_array_equal(rows.next_observation, whole.next_observation[:, :2])
    # The full state is in the carry, which a planner in the true simulator observes.
    oracle = with_full_state(task.world)
    jax.tree.map(np.testing.assert_array_equal, oracle.observe(masked_carry)[0], carry)


def test_stack_repeats_the_first_observation_and_keeps_true_successors():
    """A stack of 3 of a task that continues across episodes: it ends by its limit at 4, and terminates at 7."""
    plain, task = counting(), envs.stacked(counting(), 3)
    rows, whole = collected(task, 9), collected(plain, 9)
    assert_same_but_for_the_observation(rows, whole)
    assert rows.truncated.tolist() == [False] * 3 + [True] + [False] * 4 + [False]
    assert rows.terminated.tolist() == [False] * 6 + [True] + [False] * 2
    counts = rows.observation[:, ::3].astype(int).tolist()
    assert counts == [[0, 0, 0], [0, 0, 1], [0, 1, 2], [1, 2, 3], [4, 4, 4], [4, 4, 5], [4, 5, 6], [7, 7, 7], [7, 7, 8]]
    successors = rows.next_observation[:, ::3].astype(int).tolist()
    assert successors[:7] == [[0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4], [4, 4, 5], [4, 5, 6], [5, 6, 7]]
    np.testing.assert_array_equal(rows.observation[:, -3:], whole.observation)
    np.testing.assert_array_equal(task.reward(rows.observation, rows.action, rows.next_observation), rows.reward)
    np.testing.assert_array_equal(task.terminated(rows.next_observation), rows.terminated)
    # No name, no stack of one, and images along their channels.
    assert envs.stacked(plain, 1) is plain
    image = plain._replace(observation=Box((8, 8, 3), 0, 255, "uint8"))
    assert envs.stacked(image, 4).observation == Box((8, 8, 12), 0, 255, "uint8")


def test_both_by_name_and_their_environments():
    task = envs.make("stacked/2/masked/0,2/pendulum")
    assert (task.name, task.observation) == ("stacked/2/masked/0,2/pendulum", Box((2,)))
    assert envs.masked(counting(), ["tens", 2]).name == "masked/1,2/counter"
    task = envs.stacked(envs.masked(counting(), [1]), 2)
    rows, state = collected(task, 3, with_reset=False), task.env.reset(KEY)
    assert task.env.observation_size == 4 and rows.observation[0].tolist() == state.obs.tolist()
    for successor in rows.next_observation:
        state = task.env.step(state, jnp.zeros(1))
        assert state.obs.tolist() == successor.tolist()
    # An origin of the world is a state of its environment.
    carry = task.world.start(state, KEY)
    assert task.world.observe(carry).tolist() == [2.0, -2.0, 3.0, -3.0]
    assert task.world.step(carry, jnp.zeros(1), KEY)[1].next_observation.tolist() == [3.0, -3.0, 4.0, -4.0]
    assert actuator_range(task) == {"actuator_low": [-2.0], "actuator_high": [2.0]}


@pytest.mark.parametrize("task", [envs.masked(counting()), envs.repeat(envs.stacked(counting(), 2), 2)])
def test_they_are_sound_tasks(task):
    assert envs.check(task) is None


class Host:
    """Counts on the host."""

    def reset(self, seed):
        self.count = 0
        return np.array([0.0, 1.0], np.float32)

    def step(self, action):
        self.count += 1
        return HostStep(np.array([self.count, 1.0], np.float32), 1.0, self.count == 2, False)

    def close(self):
        pass


def test_tasks_on_the_host_are_observed_there():
    plain = counting()._replace(observation=Box((2,)), host=Host)
    env = envs.stacked(envs.masked(plain, [1]), 3).host()
    first = env.reset(0)
    assert isinstance(first, np.ndarray) and first.tolist() == [0, 0, 0]
    results = [env.step(np.zeros(1)) for _ in range(2)]
    assert [result.observation.tolist() for result in results] == [[0, 0, 1], [0, 1, 2]]
    assert [result.terminated for result in results] == [False, True]
    assert env.reset(0).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: envs.make("masked/pendulm"), "unknown task 'pendulm'; did you mean 'pendulum'?"),
        (lambda: envs.masked("pendulum", "velocity"), "no entry 'velocity'; did you mean 'velocities'?"),
        (lambda: envs.masked("pendulum", [3]), "drop must be entries from 0 to 2 of pendulum's observation, got 3"),
        (lambda: envs.masked("pendulum", []), "drop must name some of the 3 entries of pendulum's observation"),
        (lambda: envs.masked("pendulum", range(3)), "and not all"),
        (lambda: envs.masked(counting()._replace(observation=Box((8, 8, 3)))), "masked needs vector"),
        (lambda: envs.masked(counting()._replace(observation=Box((5,)))), "have no names: give drop as indices"),
        (lambda: envs.masked("CliffWalking"), "masked needs vectors or images"),
        (lambda: envs.stacked("pendulum", 0), "frames must be a whole number of at least 1, got 0"),
        (lambda: envs.make("stacked/pendulum"), "such as stacked/3/pendulum, got 'stacked/pendulum'"),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(UserError) as error:
        make()
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("times", [(1, 1), (2, 1), (2, 2)])
def test_the_carry_beneath_other_observations_is_the_plain_one(times):
    """Of a stack of masked observations, and of the mask alone, with actions that are repeated once or twice, too."""
    plain = counting()
    mask = envs.masked(plain)
    tasks = [envs.repeat(envs.repeat(task, times[0]), times[1]) for task in (envs.stacked(mask, 3), mask, plain)]
    inside = [observed.beneath(tasks[0], of) for of in tasks]

    @jax.jit
    def carries(key):
        found = [task.world.step(task.world.reset(key), jnp.zeros(1), key)[0] for task in tasks]
        return [(within(found[0]), carry) for within, carry in zip(inside, found, strict=True)]

    for within, carry in carries(KEY):
        assert jax.tree.structure(within) == jax.tree.structure(carry)
        jax.tree.map(np.testing.assert_array_equal, within, carry)
    on_host = plain._replace(host=lambda: None)
    with pytest.raises(UserError, match=r"^task 'counter' runs on the host, where"):
        observed.beneath(on_host, plain)


def test_which_names_show_a_task():
    shown = {
        name: observed.shows(name, "pendulum")
        for name in (
            "pendulum",
            "stacked/3/pixels/32,grey/pendulum",
            "masked/pendulum",
            "pilco-pendulum",
            "pixels/dmc/pendulum",
        )
    }
    assert list(shown.values()) == [True, True, True, False, False]
    assert not observed.shows("pendulum", "masked/pendulum") and observed.shows("pixels/dmc/cup", "dmc/cup")
