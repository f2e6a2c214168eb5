"""The loop that every agent learns in: which of all updates are the actor's, across steps and environments."""

import jax
import jax.numpy as jnp
import pytest

from jaxmbrl import envs
from jaxmbrl.algorithms import off_policy
from jaxmbrl.algorithms.off_policy import OffPolicyConfig
from jaxmbrl.core.types import Agent, Average, Clock, Transition


def update_critic(state, batch, key):
    return state | {"critic": state["critic"] + 1}, {"critic": Average.of(jnp.zeros(()))}


def update_actor(state, batch, key):
    return state | {"actor": state["actor"] + 1}, {"actor": Average.of(jnp.zeros(()))}


def update(state, batch, key):
    state, of_critic = update_critic(state, batch, key)
    state, of_actor = update_actor(state, batch, key)
    return state, of_critic | of_actor


def zeros(key, hyper):
    return {"critic": jnp.zeros((), jnp.int32), "actor": jnp.zeros((), jnp.int32)}


COUNTING = Agent(zeros, *[None] * 6, update_critic, update_actor, update)
"""Its state is how often each part was updated."""


@pytest.mark.parametrize(
    ("settings", "first", "actors"),
    [
        ({"actor_delay": 3, "warmup_steps": 10}, 10, [0, 0, 1, 1, 1, 2]),
        ({"actor_delay": 3, "warmup_steps": 10, "updates_per_step": 2}, 10, [0, 1, 2, 2, 3, 4]),
        ({"actor_delay": 3, "warmup_steps": 9, "num_envs": 2}, 10, [0, 1, 2, 2, 3, 4]),
        ({"actor_delay": 3, "warmup_steps": 0, "num_envs": 2}, 2, [0, 1, 2, 2, 3, 4]),
        ({"actor_delay": 2, "warmup_steps": 0, "updates_per_step": 4}, 1, [2, 4, 6]),
        ({"actor_delay": 1, "warmup_steps": 10}, 10, [1, 2, 3, 4, 5, 6]),
    ],
)
def test_the_delay_counts_updates_across_steps(settings, first, actors):
    """`first` is the first step that updates, `actors` how often the actor has been updated after each call from there."""
    config = OffPolicyConfig(agent=None, batch_size=2, replay_capacity=50, **settings)
    algorithm = off_policy.learner(config, COUNTING, envs.make("pendulum"))
    learn, state = jax.jit(algorithm.learn), algorithm.init(jax.random.key(0), {})
    none = jnp.zeros((1, config.num_envs), bool)
    rows = Transition(*(jnp.zeros((*none.shape, n)) for n in (3, 1)), none * 1.0, jnp.zeros((*none.shape, 3)), none, none)
    if first > config.num_envs:
        state, metrics = learn(Clock(jnp.asarray(first - config.num_envs, jnp.int32)), state, rows)
        assert int(state.agent["critic"]) == 0 and float(metrics["critic"].weight) == 0
    for call, expected in enumerate(actors):
        state, metrics = learn(Clock(jnp.asarray(first + call * config.num_envs, jnp.int32)), state, rows)
        assert int(state.agent["critic"]) == (call + 1) * config.updates_per_step * config.num_envs
        assert int(state.agent["actor"]) == expected
        assert float(metrics["actor"].weight) == expected - (actors[call - 1] if call else 0)
    assert learn._cache_size() == 1
