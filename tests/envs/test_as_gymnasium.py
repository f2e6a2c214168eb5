"""Our tasks as Gymnasium's environments: by Gymnasium's own checks, against the task's steps, a vector against singles."""

import functools
import os
import sys
import warnings

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from jaxmbrl import envs
from jaxmbrl.core.config import UserError
from jaxmbrl.core.spaces import Box, Discrete
from jaxmbrl.envs.base import initial_state
from jaxmbrl.envs.drawing import NoPicture

UNBOUNDED = r".*A Box observation space (minimum|maximum) value is -?infin.*"
"""What Gymnasium's check says of its own robots too: our observations have no bounds."""


class Counter:
    """Counts up by the action, from a start of 0 to 4; terminates at 7 and beyond. The reward terms are as they say."""

    observation_size = 1
    action_size = 1

    def reset(self, rng):
        start = jax.random.randint(rng, (), 0, 5).astype(float)
        return initial_state(start, start[None], {"twice": jnp.zeros(()), "both": jnp.zeros(2)})

    def step(self, state, action):
        count = state.pipeline_state + action[0]
        terms = {"twice": 2 * count, "both": jnp.stack([count, -count])}
        done = (count >= 7).astype(float)
        return state.replace(pipeline_state=count, obs=count[None], reward=count / 4, done=done, metrics=terms)


COUNTER = envs.make_task("counter", Counter(), 4)


class Switch:
    """Three choices; the observation is the last one."""

    observation_size = action_size = 1

    def reset(self, rng):
        return initial_state((), jnp.zeros((), jnp.int32))

    def step(self, state, action):
        return state.replace(obs=action, reward=action.astype(float))


SWITCH = envs.make_task("switch", Switch(), 5, action=Discrete(3), observation=Discrete(3))


IMAGE = Box((8, 8, 3), 0, 255, "uint8")


class Painter:
    """Paints a random row in the brightness of the action."""

    observation_size, action_size = 192, 3

    def reset(self, rng):
        return initial_state(rng, jnp.zeros(IMAGE.shape, jnp.uint8))

    def step(self, state, action):
        key, row_key = jax.random.split(state.pipeline_state)
        row = jax.random.randint(row_key, (), 0, 8)
        color = (127 * (action + 1)).astype(jnp.uint8)
        return state.replace(pipeline_state=key, obs=state.obs.at[row].set(color), reward=action[0])


PAINTER = envs.make_task("painter", Painter(), 6, action=Box((3,), -1.0, 1.0), observation=IMAGE)


@functools.cache
def made(name):
    """The same task in every test, whose programs are compiled once."""
    return envs.make(name)


@pytest.fixture
def registered():
    """Names in Gymnasium's registry, for the time of a test."""
    names = []

    def register(task, **more):
        names.append(f"jaxmbrl-test-{len(names)}-v0")
        gymnasium.register(names[-1], "jaxmbrl.envs:as_gymnasium", kwargs={"task": task}, **more)
        return names[-1]

    yield register
    for name in names:
        del gymnasium.registry[name]


ONE_OF_A_KIND = ("pendulum", "CartPole-v1", "FrozenLake", "InvertedPendulum-v5")
OURS = [pytest.param(name, marks=() if name in ONE_OF_A_KIND else pytest.mark.promises) for name in envs.names()]


@pytest.mark.parametrize("task", [*OURS, SWITCH, PAINTER], ids=lambda task: getattr(task, "name", task))
def test_gymnasiums_check_has_nothing_to_say(task, registered):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", UNBOUNDED)
        env = gymnasium.make(registered(task)).unwrapped
        check_env(env)
    assert env.spec is not None and env.render() is None
    # The drawings are tested in test_drawing.py and test_rendering.py.
    assert env.metadata["render_modes"] == (["rgb_array"] if isinstance(task, str) else [])


def test_the_spaces_are_the_tasks():
    env = envs.as_gymnasium("pendulum")
    assert env.action_space == gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
    assert env.observation_space == gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    vector = envs.as_gymnasium_vector(SWITCH, 2)
    assert vector.single_action_space == vector.single_observation_space == gymnasium.spaces.Discrete(3)
    assert vector.action_space == gymnasium.spaces.MultiDiscrete([3, 3])
    assert envs.as_gymnasium(PAINTER).observation_space == gymnasium.spaces.Box(0, 255, (8, 8, 3), np.uint8)


def test_images_and_choices_there_and_back():
    """A task as Gymnasium's environment as a task has the same spaces, and shows the same."""
    for task in (SWITCH, PAINTER):
        env = envs.as_gymnasium(task)
        back = envs.from_gymnasium(lambda env=env: env, task.name, task.episode_length)
        assert (back.observation, back.action) == (task.observation, task.action)
        host, zeros = back.host(), task.observation.zeros()
        seen = [host.reset(3), host.step(np.asarray(task.action.sample(jax.random.key(0)))).observation]
        assert all(x.dtype == zeros.dtype and x.shape == zeros.shape for x in seen)
        assert (seen[0] != seen[1]).any() and not seen[0].any()


@pytest.mark.parametrize("name", ["pendulum", "cartpole-continuous"])
def test_steps_are_those_of_the_tasks_environment(name):
    """Whose own steps are tested against independent ones."""
    task = made(name)
    env, step = envs.as_gymnasium(task), jax.jit(task.env.step)
    observation, info = env.reset(seed=5)
    assert info == {} and observation.dtype == np.float32
    state = env._carry[0]
    np.testing.assert_array_equal(observation, state.obs)
    for _ in range(8):
        action = env.action_space.sample()
        state = step(state, action)
        observation, reward, terminated, truncated, info = env.step(action)
        np.testing.assert_allclose(observation, state.obs, rtol=1e-6)
        assert reward == pytest.approx(float(state.reward), rel=1e-6) and type(reward) is float
        assert (terminated, truncated, info) == (bool(state.done), False, {})


def test_ends_terms_and_actions_beyond_the_bounds_come_as_they_are():
    env = envs.as_gymnasium(COUNTER)
    start = env.reset(seed=0)[0][0]
    # 0.5, then 9 at once: the counter adds what it is given.
    observation, reward, terminated, truncated, info = env.step([0.5])
    assert (observation[0], reward, terminated, truncated) == (start + 0.5, (start + 0.5) / 4, False, False)
    assert info["twice"] == 2 * start + 1 and type(info["twice"]) is float
    np.testing.assert_array_equal(info["both"], [start + 0.5, -start - 0.5])
    assert env.step([9.0])[2:4] == (True, False)
    # The time limit is the task's.
    env.reset()
    assert [env.step([0.0])[2:4] for _ in range(4)] == [(False, False)] * 3 + [(False, True)]


def test_a_seed_determines_all_that_follows():
    task = made("pendulum")

    def play(env, seed):
        starts = [env.reset(seed=seed)[0]]
        starts.append(env.step([0.5])[0])
        starts += [env.reset()[0], env.reset()[0]]
        return np.stack(starts)

    one, other = envs.as_gymnasium(task), envs.as_gymnasium(task)
    first = play(one, 3)
    np.testing.assert_array_equal(play(one, 3), first)
    np.testing.assert_array_equal(play(other, 3), first)
    assert len(np.unique(first[:, 0])) == 4, "a reset without a seed goes on"
    assert not np.array_equal(play(one, 4), first)
    assert not np.array_equal(envs.as_gymnasium(task).reset()[0], envs.as_gymnasium(task).reset()[0])
    # Seeds that share their lower 32 bits.
    assert not np.array_equal(play(one, 3 + 2**32), first)


def test_what_is_returned_is_the_callers():
    env = envs.as_gymnasium(made("pendulum"))
    observation, _ = env.reset(seed=0)
    before = observation.copy()
    observation[:] = 7.0
    env.step([0.0])
    env.reset(seed=0)
    np.testing.assert_array_equal(env.reset(seed=0)[0], before)


def test_gymnasiums_wrappers_work(registered):
    env = gymnasium.wrappers.RecordEpisodeStatistics(gymnasium.make(registered(COUNTER)))
    env.reset(seed=1)
    total = 0.0
    for _ in range(4):
        _, reward, terminated, truncated, info = env.step(np.zeros(1, np.float32))
        total += reward
    assert truncated and not terminated
    assert info["episode"]["r"] == pytest.approx(total) and info["episode"]["l"] == 4


SINES_DIFFER_IN_BATCHES = "--xla_cpu_use_fusion_emitters=false" in os.environ.get("XLA_FLAGS", "")
"""Whether XLA compiles as in `make test`, which is faster and rounds the sines of a batch otherwise than single ones."""


def assert_same_within_rounding(mine, due):
    """Types are the same, and numbers to the rounding of sines."""
    assert jax.tree.structure(mine) == jax.tree.structure(due)
    for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(due), strict=True):
        assert (type(a), a.dtype) == (type(b), b.dtype)
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "task",
    [made("pendulum"), made("cartpole-continuous"), COUNTER, SWITCH, PAINTER],
    ids=lambda task: task.name,
)
def test_a_vector_is_gymnasiums_own_of_single_environments(task):
    """By Gymnasium's comparison, of types too: observations, rewards, ends and infos, also where episodes begin anew."""
    ours = envs.as_gymnasium_vector(task, 3)
    theirs = SyncVectorEnv([lambda: envs.as_gymnasium(task)] * 3)
    for space in ("observation_space", "action_space", "single_observation_space", "single_action_space"):
        assert getattr(ours, space) == getattr(theirs, space)
    assert ours.metadata["autoreset_mode"] is theirs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert data_equivalence(ours.reset(seed=11), theirs.reset(seed=11))
    ours.action_space.seed(2)
    ended = 0
    for _ in range(60):
        actions = ours.action_space.sample()
        mine, due = ours.step(actions), theirs.step(actions)
        if task.name == "pendulum" and SINES_DIFFER_IN_BATCHES:
            assert_same_within_rounding(mine, due)
        else:
            assert data_equivalence(mine, due), (mine, due)
        ended += np.sum(mine[2] | mine[3])
    assert ended >= 3 or task.name == "pendulum"
    # Without a seed both go on.
    assert data_equivalence(ours.reset(), theirs.reset())


def test_a_vector_resets_what_has_ended_in_the_next_step():
    env = envs.as_gymnasium_vector(COUNTER, 2)
    start, info = env.reset(seed=[8, 9])
    assert info == {} and start.shape == (2, 1) and start.dtype == np.float32
    # The first ends at once, by 9 more; the second by the clock after four steps.
    observation, reward, terminated, truncated, info = env.step([[9.0], [0.0]])
    np.testing.assert_array_equal(observation - start, [[9.0], [0.0]])
    np.testing.assert_array_equal(reward, observation[:, 0] / 4)
    assert reward.dtype == np.float64
    np.testing.assert_array_equal([terminated, truncated], [[True, False], [False, False]])
    np.testing.assert_array_equal(info["twice"], 2 * observation[:, 0])
    np.testing.assert_array_equal(info["_twice"], [True, True])
    observation, reward, terminated, truncated, info = env.step([[100.0], [1.0]])
    assert 0 <= observation[0, 0] <= 4 and observation[1, 0] == start[1, 0] + 1
    assert reward[0] == 0 and not terminated.any() and not truncated.any()
    np.testing.assert_array_equal(info["_twice"], [False, True])
    assert info["twice"][0] == 0
    for _ in range(2):
        *_, truncated, info = env.step(np.zeros((2, 1)))
    np.testing.assert_array_equal(truncated, [False, True])


def test_a_vectors_seeds():
    task = made("pendulum")
    env, single = envs.as_gymnasium_vector(task, 3), envs.as_gymnasium(task)
    first = env.reset(seed=20)[0]
    by_number = np.stack([single.reset(seed=20 + i)[0] for i in range(3)])
    np.testing.assert_allclose(first, by_number, rtol=1e-6)
    went_on = env.reset()[0]
    assert not np.array_equal(went_on, first)
    np.testing.assert_array_equal(env.reset(seed=np.int64(20))[0], first)
    np.testing.assert_array_equal(env.reset(seed=np.array([20, 21, 22]))[0], first)
    env.reset(seed=20)
    again = env.reset(seed=[None, 7, None])[0]
    np.testing.assert_array_equal(again[[0, 2]], went_on[[0, 2]])
    np.testing.assert_allclose(again[1], single.reset(seed=7)[0], rtol=1e-6)
    assert len(np.unique(envs.as_gymnasium_vector(task, 50).reset()[0][:, 2])) == 50


def test_make_vec_makes_ours(registered):
    name = registered(made("pendulum"), vector_entry_point="jaxmbrl.envs:as_gymnasium_vector")
    env = gymnasium.make_vec(name, num_envs=3, vectorization_mode="vector_entry_point")
    env = gymnasium.wrappers.vector.RecordEpisodeStatistics(env)
    env.reset(seed=0)
    for _ in range(200):
        *_, truncated, info = env.step(env.action_space.sample())
    assert truncated.all()
    np.testing.assert_array_equal(info["episode"]["l"], [200] * 3)


MISTAKES = {
    "unknown task": (lambda: envs.as_gymnasium("pendulumm"), "unknown task 'pendulumm'"),
    "no drawing": (lambda: envs.as_gymnasium(SWITCH, "rgb_array"), "no picture of switch: its environment has neither"),
    "unknown mode": (
        lambda: envs.as_gymnasium("pendulum", "human"),
        "render_mode must be 'rgb_array' or None, got 'human'",
    ),
    "no environments": (lambda: envs.as_gymnasium_vector("pendulum", 0), "num_envs must be at least 1, got 0"),
    "seeds": (lambda: envs.as_gymnasium_vector("pendulum", 2).reset(seed=[1]), "seed must be one number or 2"),
    "a seed between": (lambda: envs.as_gymnasium_vector("pendulum", 2).reset(seed=1.5), "seed must be a whole number or"),
    "Gymnasium's own": (lambda: envs.as_gymnasium("gymnasium/CliffWalking-v1"), "make its environment with gymnasium.make"),
    "mask": (
        lambda: envs.as_gymnasium_vector("pendulum", 2).reset(options={"reset_mask": np.ones(2, bool)}),
        "leave it out",
    ),
}


@pytest.mark.parametrize(("mistake", "told"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told(mistake, told):
    with pytest.raises(UserError, match=told) as caught:
        mistake()
    assert isinstance(caught.value, NoPicture) == ("picture" in told)


def test_wrong_actions_are_told():
    env, vector = envs.as_gymnasium(made("pendulum")), envs.as_gymnasium_vector(made("pendulum"), 3)
    for unready in (env, vector):
        with pytest.raises(gymnasium.error.ResetNeeded):
            unready.step(np.zeros(1))
        unready.reset(seed=0)
    with pytest.raises(UserError, match=r"actions must be of shape \(1,\), got \(2,\)"):
        env.step(np.zeros(2))
    with pytest.raises(UserError, match=r"actions must be numbers of shape \(1,\), got 'up'"):
        env.step("up")
    with pytest.raises(UserError, match=r"actions must be of shape \(3, 1\), got \(3,\)"):
        vector.step(np.zeros(3))
    choices = envs.as_gymnasium(SWITCH)
    choices.reset(seed=0)
    with pytest.raises(UserError, match=r"actions must be whole numbers, got 1\.5"):
        choices.step(1.5)


def test_gymnasium_missing_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    for convert in (lambda: envs.as_gymnasium("pendulum"), lambda: envs.as_gymnasium_vector("pendulum", 2)):
        with pytest.raises(UserError, match=r"pip install 'jaxmbrl\[gym\]'"):
            convert()


def test_a_maze_that_changes_counts_the_steps_of_all_episodes():
    """The wall of `blocking-maze` moves after 1,000 steps, of whichever episodes, here and where training resets it."""
    task = envs.make("blocking-maze")
    alone, several = envs.as_gymnasium(task), envs.as_gymnasium_vector(task, 2)
    counts = []
    for env, action in ((alone, 1), (several, np.ones(2, int))):
        env.reset(seed=0)
        for _ in range(30):
            env.step(action)
        env.reset()
        counts.append(jax.tree.leaves(env.unwrapped._carry if env is alone else env._carries))
    first = jax.tree.leaves(task.world.reset(jax.random.key(0)))
    assert any(np.any(np.asarray(a) == 30) for a in counts[0]), "the carry counts 30 steps"
    assert not any(np.any(np.asarray(a) == 30) for a in first)
    several.reset(seed=[5, None])
    of_each = [np.asarray(a) for a in jax.tree.leaves(several._carries)]
    assert any((a == [0, 30]).all() for a in of_each if a.shape == (2,)), "a new seed begins anew, None goes on"
