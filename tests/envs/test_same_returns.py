"""One fixed stochastic policy earns the same in Gymnasium as on MJX: whole episodes, each side with its own randomness."""

import gymnasium_steps as gs
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxmbrl import envs
from jaxmbrl.core.types import Policy
from jaxmbrl.rollout import Return, episode_return, rollout

EPISODES = 50
NAMES = ["InvertedPendulum-v5", "InvertedDoublePendulum-v5", "Reacher-v5", "Pusher-v5", "Swimmer-v5", "Hopper-v5"]
NAMES += ["Walker2d-v5", "HalfCheetah-v5", "Ant-v5"]


def gains(name: str) -> np.ndarray:
    """[A, O] of the policy tanh(gains @ observation + noise)."""
    env = gs.plain(name)
    size = (env.action_space.shape[0], env.observation_space.shape[0])
    return np.random.default_rng(7).normal(0.0, 0.5 / np.sqrt(size[1]), size)


def gymnasiums(name: str) -> np.ndarray:
    env, weight, rng = gs.plain(name), gains(name), np.random.default_rng(0)
    scale, returns = env.action_space.high, []
    for episode in range(EPISODES):
        observation, total, over = env.reset(seed=episode)[0], 0.0, False
        while not over:
            action = np.tanh(weight @ observation + rng.normal(0.0, 0.5, len(weight)))
            observation, reward, terminated, truncated, _ = env.step(scale * action)
            total, over = total + reward, terminated or truncated
        returns.append(total)
    return np.array(returns)


def ours(name: str) -> np.ndarray:
    task, weight = envs.make(name), jnp.asarray(gains(name), float)

    def act(memory, observation, key):
        return jnp.tanh(weight @ observation + 0.5 * jax.random.normal(key, weight.shape[:1])), (), memory

    def episode(key):
        start_key, key = jax.random.split(key)
        start = (task.world.reset(start_key), ())
        policy = Policy(lambda key: (), act)
        return rollout(task.world, policy, start, key, task.episode_length, episode_return, Return.zero())[1].total

    return np.asarray(jax.jit(jax.vmap(episode))(jax.random.split(jax.random.key(0), EPISODES)), np.float64)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_stochastic_policy_earns_the_same(name):
    jax.clear_caches()
    mine, theirs = ours(name), gymnasiums(name)
    error = np.sqrt(mine.var(ddof=1) / EPISODES + theirs.var(ddof=1) / EPISODES)
    print(
        f"{name}: MJX {mine.mean():.2f} (deviation {mine.std(ddof=1):.2f}), Gymnasium {theirs.mean():.2f} "
        f"({theirs.std(ddof=1):.2f}), apart by {abs(mine.mean() - theirs.mean()) / error:.2f} standard errors"
    )
    assert abs(mine.mean() - theirs.mean()) < 2 * error
    # Spreads of 50 returns with a long tail differ by chance alone (the ant's by more than 2); whole distributions do not.
    assert scipy.stats.ks_2samp(mine, theirs).pvalue > 0.01
