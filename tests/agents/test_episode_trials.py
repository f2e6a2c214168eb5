"""Trials of a generation in the task: which episodes count for which point, and who plays an episode."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl import envs
from jaxmbrl.agents import episode_trials
from jaxmbrl.agents.episode_trials import Tried
from jaxmbrl.core.config import UserError
from jaxmbrl.core.types import Policy, Transition


def test_episodes_count_for_the_point_that_played_them():
    """Two environments: an episode of an earlier generation, then two of this one."""
    ended = np.array([[0, 0], [1, 0], [0, 1], [1, 0]], bool)
    reward = np.array([[1, 10], [2, 20], [3, 30], [4, 40]], float)
    points = np.array([[0, 2], [0, 2], [3, 2], [3, 2]], np.int32)
    numbers = np.array([[0, 1], [0, 1], [1, 1], [1, 1]], np.int32)
    rows = Transition((), (), reward, (), ended, np.zeros_like(ended), Tried(points, numbers))
    rows = jax.tree.map(jnp.asarray, rows)
    trials = episode_trials.init(jnp.zeros((4, 3)), num_envs=2)
    assert episode_trials.score(trials, rows).episodes.tolist() == [0, 0, 0, 0]  # Generation 0 never counts.
    found = episode_trials.score(episode_trials.following(trials, jnp.ones((4, 3))), rows)
    assert found.total.tolist() == [0, 0, 60, 7] and found.episodes.tolist() == [0, 0, 1, 1]
    assert found.running.tolist() == [0, 40]
    np.testing.assert_array_equal(episode_trials.mean_returns(found), [np.nan, np.nan, 60, 7])
    after = episode_trials.following(found, jnp.zeros((4, 3)))
    assert (int(after.number), after.episodes.tolist(), after.running.tolist()) == (2, [0, 0, 0, 0], [0, 40])


@pytest.mark.parametrize("longest", [1, 2, 5])
def test_a_generation_has_a_whole_episode_of_each_environment(longest):
    """The least number of steps by trial: episodes of equal length, one of which is at any of its steps when it begins."""

    def whole(length, taken, steps):
        first = (length - taken) % length
        return first + length <= steps

    def always(steps):
        lengths = range(1, longest + 1)
        return all(whole(length, taken, steps) for length in lengths for taken in range(length))

    least, task = next(n for n in range(100) if always(n)), envs.make("pendulum")._replace(episode_length=longest)
    episode_trials.check_length(task, 3, 3 * least)
    with pytest.raises(UserError, match=rf"^generation_steps must be at least {3 * least}, .* lower num_envs$"):
        episode_trials.check_length(task, 3, 3 * least - 3)


def test_an_episode_is_played_by_one_point_and_points_are_drawn_evenly():
    """The policy of a point adds its numbers to the observation."""
    trials = episode_trials.following(episode_trials.init(jnp.zeros((4, 1)), 1), jnp.arange(4.0)[:, None])
    policy = episode_trials.playing(
        trials, lambda point: Policy(lambda key: (), lambda memory, seen, key: (seen + point, (), memory))
    )
    keys = jax.random.split(jax.random.key(0), 400)
    tried = jax.vmap(policy.init)(keys)
    assert np.bincount(tried.point, minlength=4).min() > 70 and set(tried.generation.tolist()) == {1}
    action, extras, memory = policy.act(jax.tree.map(lambda x: x[0], tried), jnp.full(1, 10.0), keys[0])
    assert action.tolist() == [10.0 + tried.point[0]] and extras == memory
    np.testing.assert_array_equal(memory.point, tried.point[0])
