"""PPO as a whole: the first minibatch, the early end of an update, the learning rate, and its settings."""

import dataclasses
import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl import algorithms, envs
from jaxmbrl.agents.on_policy import PPOConfig
from jaxmbrl.algorithms.on_policy import ppo
from jaxmbrl.core.config import UserError, check
from jaxmbrl.core.types import Transition, row_like
from jaxmbrl.models.normalizer import Normalizer, RunningNormalizer
from jaxmbrl.training import loop

from .test_sac import clock

TINY = ppo.Config(agent=PPOConfig(hidden=(8, 8), epochs=2, minibatches=4), num_envs=2, collect_steps=32, epoch_steps=64)


@functools.cache
def compiled(config=TINY, task="pendulum"):
    algorithm = ppo.make(config, envs.make(task))
    made = loop.make(algorithm, envs.make(task), config)
    return jax.jit(made.init), jax.jit(made.run)


def run(calls, config=TINY, task="pendulum", **hyper):
    init, run = compiled(config, task)
    state = init(jnp.arange(1), {name: jnp.full(1, value) for name, value in hyper.items()})
    return run(clock(0), state, jnp.asarray(calls, jnp.int32))


@pytest.mark.parametrize("task", ["pendulum", "CartPole-v1"])
def test_the_ratio_is_exactly_one_until_the_first_step(task):
    """With a learning rate of 0 each minibatch is a first one, also after the statistics of observations have changed: all
    divergences, and so all distances of the ratio from 1, are exactly 0. Otherwise they are not."""
    _, state = run(3, task=task, learning_rate=0.0)
    assert float(state.algorithm.agent.observations.rows[0]) == 192
    for name in ("agent/divergence", "agent/clip_fraction"):
        assert float(state.metrics[name].total[0]) == 0.0 and float(state.metrics[name].weight[0]) == 8
    if task == "pendulum":
        _, state = run(3, learning_rate=3e-3)
        assert float(state.metrics["agent/divergence"].total[0]) > 0


def test_an_update_ends_at_the_target_divergence():
    """No later minibatch of the update changes a parameter."""
    config = dataclasses.replace(TINY, agent=dataclasses.replace(TINY.agent, target_divergence=1e-12))
    _, state = run(1, config, learning_rate=1e-3)
    # The first step is taken, from the policy that acted, and none after it.
    assert float(state.metrics["agent/stopped"].total[0]) == 7
    assert int(state.algorithm.agent.actor.moments.count[0]) == 1


def test_the_learning_rate_falls_to_zero():
    config = dataclasses.replace(TINY, anneal_steps=256)
    assert [float(config.learning_scale(clock(steps))) for steps in (64, 128, 256, 320, 900)] == [1.0, 0.75, 0.25, 0.0, 0.0]
    assert TINY.learning_scale(clock(64)) == 1.0


def test_minibatches_must_divide_the_rows():
    with pytest.raises(UserError, match=r"agent.minibatches must divide num_envs x collect_steps \(64\), got 5"):
        check(dataclasses.replace(TINY, agent=PPOConfig(minibatches=5)))


def test_published_settings():
    """vwxyzjn/cleanrl: ppo_continuous_action.py, and luchris429/purejaxrl: ppo_continuous_action.py."""
    published, many = (algorithms.get("ppo").presets[name].config for name in ("mujoco", "many-environments"))
    assert published.agent == PPOConfig(
        hidden=(64, 64),
        first_log_std=0.0,
        learning_rate=3e-4,
        discount=0.99,
        gae_lambda=0.95,
        entropy_weight=0.0,
        value_weight=0.5,
        max_gradient_norm=0.5,
        epochs=10,
        minibatches=32,
        clip=0.2,
        target_divergence=None,
    )
    assert (published.num_envs, published.collect_steps, published.anneal_steps) == (1, 2048, 488 * 2048)
    assert (many.num_envs, many.collect_steps, many.agent.minibatches, many.agent.epochs) == (2048, 10, 32, 4)
    assert many.agent.hidden == (256, 256)


@pytest.mark.parametrize("method", ["ppo", "trpo", "reinforce"])
def test_an_update_sees_observations_as_the_policy_that_collected_them(method, x64):
    """How far a batch would move the running statistics has no influence on what its update learns: only afterwards do they
    contain it. (A2C has a transcription.)"""
    module = importlib.import_module(f"jaxmbrl.algorithms.on_policy.{method}")
    config = module.Config(num_envs=2, collect_steps=6)
    small = {"minibatches": 2, "epochs": 1, "value_epochs": 1, "value_batch_size": 6, "cg_iterations": 2}
    known = {field.name for field in dataclasses.fields(config.agent)}
    agent = dataclasses.replace(config.agent, hidden=(), **{k: v for k, v in small.items() if k in known})
    algorithm = module.make(dataclasses.replace(config, agent=agent), envs.make("pendulum"))
    rng = np.random.default_rng(0)
    seen, raw = rng.normal(3.0, 2.0, (2, 6, 2, 3)), rng.normal(size=(6, 2, 1))
    never = np.zeros((6, 2), bool)
    rows = Transition(seen[0], np.clip(raw, -1, 1), rng.normal(size=(6, 2)), seen[1], never, never, raw)

    @jax.jit
    def learned(key, count, rows):
        state = algorithm.init(key, {})
        mean, std = jnp.array([1.0, -1.0, 0.5]), jnp.array([2.0, 1.0, 0.5])
        before = RunningNormalizer(Normalizer(mean, std, mean - 10 * std, mean + 10 * std), count)
        return algorithm.learn(clock(12), state._replace(agent=state.agent._replace(observations=before)), rows)[0].agent

    few, many = jax.device_get([learned(jax.random.key(0), np.asarray(count), rows) for count in (0.0, 1e6)])
    jax.tree.map(np.testing.assert_array_equal, (few.actor, few.critic), (many.actor, many.critic))
    np.testing.assert_allclose(few.observations.normalizer.mean, seen[0].mean((0, 1)), rtol=1e-9)
    np.testing.assert_allclose(many.observations.normalizer.mean, [1.0, -1.0, 0.5], rtol=1e-4)


@pytest.mark.parametrize("method", ["ppo", "trpo", "a2c", "reinforce", "me-trpo", "slbo"])
def test_initial_transitions_are_refused(method):
    """A file of them is named as the other way where it is one: not to methods that refuse it too."""
    task = envs.make("pendulum")
    algorithm = algorithms.get(method).make(algorithms.preset(method, "pendulum")[1], task)
    with pytest.raises(UserError, match=f"{method} does not accept initial transitions or demonstrations; ") as refused:
        algorithm.init(jax.random.key(0), {}, row_like(task))
    assert ("--data FILE" in str(refused.value)) == (method in ("me-trpo", "slbo")) != algorithm.on_policy
