"""Our tasks under Brax's training wrappers and its own PPO, which see nothing but `task.env`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl import envs


@pytest.fixture
def brax(monkeypatch):
    """Brax 0.14.2, whose trainers call a function that JAX 0.10 has removed."""
    package = pytest.importorskip("brax")

    def replicated(tree, devices):
        return jax.tree.map(lambda leaf: jnp.stack([leaf] * len(devices)), tree)

    monkeypatch.setattr(jax, "device_put_replicated", replicated, raising=False)
    return package


def train(task, steps):
    """(steps and metrics of each evaluation, the parameters that it began and ended with)."""
    from brax.training.agents.ppo import networks
    from brax.training.agents.ppo import train as ppo

    small = {"policy_hidden_layer_sizes": (8,), "value_hidden_layer_sizes": (8,)}
    seen, params = [], []
    ppo.train(
        environment=task.env,
        num_timesteps=steps,
        episode_length=task.episode_length,
        num_envs=4,
        batch_size=4,
        num_minibatches=2,
        unroll_length=5,
        num_updates_per_batch=2,
        num_evals=2,
        num_eval_envs=8,
        normalize_observations=True,
        network_factory=functools.partial(networks.make_ppo_networks, **small),
        progress_fn=lambda step, metrics: seen.append((step, metrics)),
        policy_params_fn=lambda step, make_policy, now: params.append(now),
        seed=1,
    )
    return seen, params


def check_trained(seen, params, steps):
    assert [step for step, _ in seen] == [0, steps]
    for _, metrics in seen:
        assert all(np.isfinite(value).all() for value in metrics.values())
    moved = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), params[0][1], params[-1][1])
    assert all(distance > 0 for distance in jax.tree.leaves(moved)), "the policy has been updated"


@pytest.mark.promises
def test_ppo_trains_on_pendulum(brax):
    """No episode terminates, and each earns between 0 and -16.3 a step."""
    seen, params = train(envs.make("pendulum"), 320)
    check_trained(seen, params, 320)
    for _, metrics in seen:
        assert metrics["eval/avg_episode_length"] == 200
        assert -200 * 16.3 < metrics["eval/episode_reward"] < 0


@pytest.mark.promises
def test_ppo_trains_on_cartpole(brax):
    """Each step earns 1 until the pole falls, so the return is the length."""
    seen, params = train(envs.make("cartpole-continuous"), 320)
    check_trained(seen, params, 320)
    for _, metrics in seen:
        assert 5 < metrics["eval/avg_episode_length"] < 100
        assert metrics["eval/episode_reward"] == pytest.approx(metrics["eval/avg_episode_length"])


@pytest.mark.slow
def test_ppo_trains_on_a_robot(brax):
    """The reward's terms are averaged by their names."""
    task = envs.make("InvertedPendulum-v5")
    seen, params = train(task, 160)
    check_trained(seen, params, 160)
    (term,) = task.env.reward_terms
    for _, metrics in seen:
        assert metrics[f"eval/episode_{term}"] == pytest.approx(metrics["eval/episode_reward"])


@pytest.mark.parametrize(("name", "length"), [("pendulum", 6), ("cartpole-continuous", 12)])
def test_braxs_wrappers_play_the_tasks_world(brax, name, length):
    """Steps, ends and time limits, up to the end of an episode; after it the wrapper resets by itself."""
    from brax.envs.wrappers import training

    made = envs.make(name)
    task = envs.make_task(name, made.env, length, made.reward, made.terminated)
    wrapped = training.wrap(task.env, episode_length=length)
    key = jax.random.key(3)
    # Brax reads how many there are off keys of the old kind.
    state, carry = jax.jit(wrapped.reset)(jax.random.key_data(key)[None]), task.world.reset(key)
    first, step, world_step = state.obs, jax.jit(wrapped.step), jax.jit(task.world.step)
    for i in range(length):
        action = jnp.ones(1)
        state = step(state, action[None])
        carry, row = world_step(carry, action, jax.random.key(i))
        ended = row.terminated | row.truncated
        np.testing.assert_allclose(state.obs, first if ended else row.next_observation[None], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(state.reward[0], row.reward, rtol=1e-5)
        assert (state.done[0], state.info["truncation"][0]) == (float(ended), float(row.truncated))
        if ended:
            break
    assert ended and bool(row.truncated) == (name == "pendulum")
