"""Gymnasium's environments as tasks: spaces, bounds, limits, and rows against Gymnasium stepped by hand."""

import functools
import sys
from types import SimpleNamespace

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl import envs
from jaxmbrl.agents.exploration import uniform
from jaxmbrl.core.config import UserError
from jaxmbrl.core.spaces import Box, Discrete
from jaxmbrl.core.types import HostEnv
from jaxmbrl.envs.bridges import gymnasium_spaces
from jaxmbrl.training.collecting import collect
from jaxmbrl.training.hosted import host_seed

Space = gymnasium.spaces.Box


class Toy(gymnasium.Env):
    """Observes [2, 3] numbers, all the last action's sum; ends as it is told."""

    def __init__(self, action=None, observation=None, ends=lambda step: (False, False)):
        self.action_space = action or Space(np.array([[-1.0, 0.0]], "f"), np.array([[3.0, 0.1]], "f"))
        self.observation_space = observation or Space(-np.inf, np.inf, (2, 3))
        self.ends, self.given, self.count = ends, [], 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return np.zeros((2, 3), "f"), {}

    def step(self, action):
        self.given.append(action)
        self.count += 1
        return np.full((2, 3), np.sum(action), "f"), 1.0, *self.ends(self.count), {}


def host(env, **fields):
    """The environment behind the host's interface, and its task."""
    task = envs.from_gymnasium(lambda: env, "toy", **fields)
    return task, task.host()


def test_boxes_are_flattened_and_actions_mapped_onto_the_bounds():
    env = Toy()
    task, outside = host(env)
    assert isinstance(outside, HostEnv)
    assert (task.observation, task.action) == (Box((6,)), Box((2,), -1.0, 1.0))
    assert (task.env.observation_size, task.env.action_size) == (6, 2)
    assert outside.reset(3).shape == (6,)
    for action in ([-1.0, 1.0], [1.0, -1.0], [0.5, 0.0], [1.5, 0.0]):
        outside.step(np.array(action, np.float32))
    # -1 + 4 (a + 1) / 2 and 0.1 (a + 1) / 2, clipped.
    expected = [[[-1.0, 0.1]], [[3.0, 0.0]], [[2.0, 0.05]], [[3.0, 0.05]]]
    np.testing.assert_allclose(env.given, np.array(expected, "f"), rtol=1e-6)
    assert all(action.dtype == np.float32 and action.shape == (1, 2) for action in env.given)
    assert all(env.action_space.contains(action) for action in env.given)


def test_bounds_are_met_to_the_bit():
    low, high = np.array([-0.1, 1e-3, -7.3]), np.array([0.3, 1e3, 0.7])
    np.testing.assert_array_equal(gymnasium_spaces.rescale(-np.ones(3), low, high), low)
    np.testing.assert_array_equal(gymnasium_spaces.rescale(np.ones(3), low, high), high)


def test_choices_are_numbered_as_the_space_does():
    env = Toy(gymnasium.spaces.Discrete(3, start=-1))
    task, outside = host(env)
    assert task.action == Discrete(3)
    outside.reset(0)
    for action in range(3):
        outside.step(np.asarray(action, np.int32))
    assert env.given == [-1, 0, 1]


@pytest.mark.parametrize(
    ("ends", "told"),
    [((False, False), (False, False)), ((True, False), (True, False)), ((False, True), (False, True)),
     ((True, True), (True, False))],
)  # fmt: skip
def test_a_time_limit_on_a_termination_is_none(ends, told):
    _, outside = host(Toy(ends=lambda step: ends), episode_length=2)
    outside.reset(0)
    step = outside.step(np.zeros(2))
    assert (step.terminated, step.truncated) == told
    assert outside.step(np.zeros(2))[2:] == ((True, False) if told[0] else (False, True))
    outside.reset(0)
    assert outside.step(np.zeros(2))[2:] == told


def test_the_limit_is_the_callers_or_the_specs_or_a_thousand():
    assert host(Toy(), episode_length=7)[0].episode_length == 7
    assert host(Toy(), episode_length=np.int64(7))[0].episode_length == 7
    assert envs.make("gymnasium/Pendulum-v1").episode_length == 200
    assert host(Toy())[0].episode_length == 1000
    for wrong in (0, -1):
        with pytest.raises(UserError, match="episode_length must be a whole number"):
            host(Toy(), episode_length=wrong)


def test_rows_are_gymnasiums():
    """Two episodes of the cart-pole and more, with the same seeds and actions by Gymnasium itself."""
    task = envs.make("gymnasium/CartPole-v1")
    assert (task.name, task.action, task.episode_length) == ("gymnasium/CartPole-v1", Discrete(2), 500)
    rows = jax.tree.map(np.asarray, collect(task, uniform(task.action), 60, seed=4))
    assert rows.terminated.sum() >= 2 and not rows.truncated.any()
    assert rows.action.dtype == np.int32 and rows.observation.dtype == np.float32
    assert set(rows.action) == {0, 1}
    theirs = gymnasium.make("CartPole-v1")
    start_key, _, key = jax.random.split(jax.random.key(4), 3)
    seen, _ = theirs.reset(seed=int(host_seed(start_key)))
    for i in range(60):
        np.testing.assert_array_equal(rows.observation[i], seen)
        seen, reward, terminated, _, _ = theirs.step(rows.action[i])
        np.testing.assert_array_equal(rows.next_observation[i], seen)
        assert (rows.reward[i], rows.terminated[i]) == (reward, terminated)
        if terminated:
            step_key = jax.random.split(jax.random.fold_in(key, i))[1]
            seen, _ = theirs.reset(seed=int(host_seed(jax.random.split(step_key)[1])))
    again = collect(task, uniform(task.action), 60, seed=4)
    jax.tree.map(np.testing.assert_array_equal, rows, again)
    assert not np.array_equal(collect(task, uniform(task.action), 3, seed=5).observation, rows.observation[:3])


def test_a_grid_of_gymnasiums_is_ours():
    """300 steps on the host, by random actions, against the tables of our own task."""
    task, mdp = envs.make("gymnasium/CliffWalking-v1"), envs.make("CliffWalking").env.mdp
    assert (task.observation, task.action) == (Discrete(48), Discrete(4))
    rows = jax.tree.map(np.asarray, collect(task, uniform(task.action), 300, seed=0))
    assert rows.observation.dtype == rows.next_observation.dtype == rows.action.dtype == np.int32
    at = (rows.observation, rows.action, 0)
    np.testing.assert_array_equal(rows.next_observation, mdp.successors[at])
    np.testing.assert_array_equal(rows.reward, mdp.rewards[at])
    np.testing.assert_array_equal(rows.terminated, mdp.terminated[at])
    assert set(rows.action) == {0, 1, 2, 3} and (rows.reward == -100).any()


def test_a_compiled_program_cannot_step_it_and_says_so():
    task = host(Toy())[0]
    key, action = jax.random.key(0), jnp.zeros(2)
    for what, call in {
        "reset": lambda: task.world.reset(key),
        "started": lambda: task.world.start(None, key),
        "stepped": lambda: jax.jit(task.world.step)(None, action, key),
        "be stepped": lambda: task.env.step(None, action),
        "be reset": lambda: task.env.reset(key),
    }.items():
        with pytest.raises(UserError, match=f"'toy' runs on the host and cannot .*{what} inside a compiled"):
            call()
    np.testing.assert_array_equal(task.world.observe(jnp.arange(6.0)), jnp.arange(6.0))
    with pytest.raises(
        UserError, match=r"runs on the host, and envs.check tests tasks in JAX: gymnasium.utils.env_checker"
    ):
        envs.check(task)


@pytest.mark.parametrize(
    ("env", "told"),
    [
        (Toy(Space(-np.inf, 1.0, (2,))), "its actions must have finite bounds"),
        (Toy(Space(0.0, 0.0, (2,))), "its actions leave no choice, low is high everywhere"),
        (Toy(gymnasium.spaces.MultiDiscrete([2, 3])), "its actions must be a Box or Discrete, got MultiDiscrete"),
        (
            Toy(observation=gymnasium.spaces.MultiBinary(4)),
            r"its observations must be a Box or Discrete, got MultiBinary\(4\)",
        ),
        (
            SimpleNamespace(observation_space=Space),
            "its observations must be a Box or Discrete, got .*; give a space, such",
        ),
        (SimpleNamespace(), "its observations must be a Box or Discrete, got None"),
        (SimpleNamespace(observation_space=Toy().observation_space, num_envs=2), "give a single environment"),
    ],
)
def test_what_does_not_fit_is_told_in_a_line(env, told):
    with pytest.raises(UserError, match=f"^task 'toy': {told}") as error:
        envs.from_gymnasium(lambda: env, "toy")
    assert "\n" not in str(error.value)


class Showing(Toy):
    """Observes what it is told to, one after another."""

    def __init__(self, space, shown):
        super().__init__(gymnasium.spaces.Discrete(2), space)
        self.shown = iter(shown)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return next(self.shown), {}

    def step(self, action):
        return next(self.shown), *super().step(action)[1:]


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 3), (2, 5, 4, 3)])
def test_images_stay_bytes(shape):
    """A grey image gets an axis of channels."""
    pictures = np.random.default_rng(0).integers(0, 256, (4, *shape)).astype(np.uint8)
    task, outside = host(Showing(Space(0, 255, shape, np.uint8), pictures))
    expected = Box(shape if len(shape) > 2 else (*shape, 1), 0.0, 255.0, "uint8")
    assert task.observation == expected
    for picture in (outside.reset(0), *(outside.step(np.asarray(1, np.int32)).observation for _ in range(3))):
        assert picture.shape == expected.shape and picture.dtype == np.uint8
    np.testing.assert_array_equal(picture.reshape(shape), pictures[-1])


def test_bytes_without_two_axes_are_flattened_to_floats():
    task, outside = host(Showing(Space(0, 255, (3,), np.uint8), [np.array([0, 7, 255], np.uint8)]))
    assert task.observation == Box((3,))
    assert outside.reset(0).tolist() == [0.0, 7.0, 255.0]


def test_discrete_observations_are_numbered_from_zero():
    task, outside = host(Showing(gymnasium.spaces.Discrete(3, start=5), [6, np.int64(5), 7]))
    assert task.observation == Discrete(3)
    action = np.asarray(0, np.int32)
    seen = [outside.reset(0), outside.step(action).observation, outside.step(action).observation]
    assert [int(x) for x in seen] == [1, 0, 2] and all(x.dtype == np.int32 and x.shape == () for x in seen)


@pytest.mark.parametrize(
    ("space", "shown", "told"),
    [
        (gymnasium.spaces.Discrete(3, start=5), 8, r"an element of Discrete\(3, start=5\), got 8"),
        (gymnasium.spaces.Discrete(3), 1.5, r"an element of Discrete\(3\), got 1.5"),
        (
            Space(0, 255, (2, 2), np.uint8),
            np.zeros((2, 3), np.uint8),
            r"uint8 \(2, 2, 1\), as its space says, got uint8 \(2, 3\)",
        ),
        (Space(0, 255, (2, 2), np.uint8), np.zeros((2, 2)), r"uint8 \(2, 2, 1\), as its space says, got float64 \(2, 2\)"),
    ],
)
def test_an_observation_outside_of_its_space_is_named(space, shown, told):
    _, outside = host(Showing(space, [shown]))
    with pytest.raises(UserError, match=f"^task 'toy': an observation must be {told}$"):
        outside.reset(0)


@pytest.mark.parametrize("kind", ["choices", "images"])
def test_rows_of_choices_and_images_are_the_environments(kind):
    """Collected in episodes of three steps, in the dtypes of the spaces."""
    space, shown = {
        "choices": (gymnasium.spaces.Discrete(40), list(range(40))),
        "images": (Space(0, 255, (2, 2, 1), np.uint8), list(np.arange(160).reshape(40, 2, 2, 1).astype(np.uint8))),
    }[kind]
    env = Showing(space, shown)
    task = envs.from_gymnasium(lambda: env, "toy", episode_length=3)
    rows = jax.tree.map(np.asarray, collect(task, uniform(task.action), 7))
    # Each episode shows one more observation than it has steps.
    before = np.array([0, 1, 2, 4, 5, 6, 8])
    np.testing.assert_array_equal(rows.observation, np.asarray(shown)[before].astype(rows.observation.dtype), strict=True)
    np.testing.assert_array_equal(rows.next_observation, np.asarray(shown)[before + 1].astype(rows.observation.dtype))
    assert rows.observation.dtype == (np.int32 if kind == "choices" else np.uint8)
    np.testing.assert_array_equal(rows.truncated, [False, False, True, False, False, True, False])


def test_an_environment_of_ones_own_must_show_what_its_space_says():
    """Not through Gymnasium: floats are not cut down to bytes."""
    made = host(Toy(gymnasium.spaces.Discrete(2), Space(0, 255, (2, 3), np.uint8)))[0]

    class Own:
        def reset(self, seed):
            return np.full((2, 3, 1), 0.5)

        def step(self, action):
            raise NotImplementedError

        def close(self):
            pass

    task = made._replace(host=Own)
    with pytest.raises(UserError, match=r"an observation must be uint8 \(2, 3, 1\), as its space says, got float64"):
        collect(task, uniform(task.action), 1)


def test_what_an_environment_raises_names_it():
    def broken():
        raise OSError("no such\nport")

    with pytest.raises(
        UserError, match=r"^task 'arm': making the environment fails with OSError: no such port \(test_bridge.py:\d+\)$"
    ):
        envs.from_gymnasium(broken, "arm")
    _, outside = host(Toy())
    outside._env.step = lambda action: (np.zeros(5), 0.0, False, False, {})
    with pytest.raises(UserError, match="'toy': an observation must be 6 numbers, as its space says, got 5"):
        outside.step(np.zeros(2))


def test_one_environment_is_not_used_twice_at_a_time():
    env = Toy()
    task, outside = host(env)
    with pytest.raises(
        UserError, match=r"^task 'toy': the function that makes the environment returned one that is in use"
    ):
        task.host()
    with pytest.raises(UserError, match="returned one that is in use"):
        envs.from_gymnasium(lambda: gymnasium.wrappers.TimeLimit(env, 5), "other").host()
    outside.close()
    task.host()


def test_what_a_step_may_return_beside_pythons_own_types():
    """As environments do: lists, arrays of one number, NumPy's and JAX's numbers, no info."""
    for reward, flag, info in (
        (np.float32(0.5), np.bool_(True), None),
        (np.array(0.5), np.array([True]), {}),
        ([0.5], 1, {1: 2}),
        (jnp.asarray(0.5), jnp.asarray(True), {}),
    ):
        _, outside = host(Toy())
        outside._env.step = lambda action, found=(reward, flag, info): ([0] * 6, found[0], found[1], False, found[2])
        outside.reset(0)
        step = outside.step(np.zeros(2))
        assert (step.reward, step.terminated, step.truncated) == (0.5, True, False)
        assert step.observation.tolist() == [0.0] * 6


def test_names_that_gymnasium_does_not_know_and_a_missing_gymnasium(monkeypatch):
    with pytest.raises(UserError, match=r"Gymnasium cannot make 'Pendulum-v9': .*v9"):
        envs.make("gymnasium/Pendulum-v9")
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(UserError, match=r"^Gymnasium is missing: pip install 'jaxmbrl\[gym\]'$"):
        envs.make("gymnasium/Pendulum-v1")
    assert envs.from_gymnasium(Toy, "toy").observation == Box((6,))


def test_the_time_limit_of_a_wrapper_is_that_of_the_task():
    def pendulum(*limits):
        env = gymnasium.make("Pendulum-v1").unwrapped
        for limit in limits:
            env = gymnasium.wrappers.TimeLimit(env, limit)
        return gymnasium.wrappers.RecordEpisodeStatistics(env)

    for limits, length in (((70,), 70), ((70, 50), 50), ((50, 70), 50), ((), 1000)):
        assert envs.from_gymnasium(functools.partial(pendulum, *limits), "mine").episode_length == length


def test_making_one_writes_no_log_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task = envs.make("gymnasium/HalfCheetah-v5")
    assert (task.observation, task.action, task.episode_length) == (Box((17,)), Box((6,), -1.0, 1.0), 1000)
    assert list(tmp_path.iterdir()) == []


def test_an_action_is_repeated_on_the_host():
    plain, repeated = (envs.make("gymnasium/MountainCarContinuous-v0", action_repeat=times) for times in (1, 4))
    assert repeated.episode_length == -(-plain.episode_length // 4) and repeated.reward is None
    ones, fours = plain.host(), repeated.host()
    np.testing.assert_array_equal(ones.reset(3), fours.reset(3))
    rng = np.random.default_rng(0)
    for turn in range(repeated.episode_length):
        action = rng.uniform(-0.2, 0.2, 1)
        single = [ones.step(action) for _ in range(min(4, plain.episode_length - 4 * turn))]
        together = fours.step(action)
        np.testing.assert_array_equal(together.observation, single[-1].observation)
        assert together.reward == sum(step.reward for step in single)
        assert together.truncated == single[-1].truncated == (turn == repeated.episode_length - 1)
    ones.close()
    fours.close()


def test_a_repeat_on_the_host_ends_with_the_episode():
    task = envs.repeat(envs.make("gymnasium/CartPole-v1"), 7)
    once, sevens = envs.make("gymnasium/CartPole-v1").host(), task.host()
    once.reset(0), sevens.reset(0)
    steps, told = 0, None
    while told is None or not told.terminated:
        told, steps = once.step(np.asarray(1, np.int32)), steps + 1
    rewards, ended = [], False
    while not ended:
        step = sevens.step(np.asarray(1, np.int32))
        rewards.append(step.reward)
        ended = step.terminated
    assert steps % 7 and sum(rewards) == steps and len(rewards) == -(-steps // 7)
    np.testing.assert_array_equal(step.observation, told.observation)
