"""The loop that every agent learns in: which of all updates are the actor's, across steps and environments."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl import envs
from jaxmbrl.algorithms import shared
from jaxmbrl.algorithms.shared import OffPolicySettings, update_agent
from jaxmbrl.core.types import ActorCritic, Average, Clock, Transition
from jaxmbrl.data import sequences


def update_critic(state, batch, key):
    return state | {"critic": state["critic"] + 1}, {"critic": Average.of(jnp.zeros(()))}, jnp.zeros(2)


def update_actor(state, batch, key):
    return state | {"actor": state["actor"] + 1}, {"actor": Average.of(jnp.zeros(()))}


def update(state, batch, key):
    state, of_critic, error = update_critic(state, batch, key)
    state, of_actor = update_actor(state, batch, key)
    return state, of_critic | of_actor, error


COUNTING = ActorCritic(*[None] * 6, update_critic, update_actor, None, update)
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
    config, nothing = OffPolicySettings(batch_size=2, replay_capacity=50, **settings), lambda key: jnp.zeros(2)

    @jax.jit
    def learn(clock, state):
        return update_agent(config, COUNTING, state, clock, nothing, jax.random.key(0))

    def at(env_steps):
        return Clock(jnp.asarray(env_steps, jnp.int32))

    state = {"critic": jnp.zeros((), jnp.int32), "actor": jnp.zeros((), jnp.int32)}
    if first > config.num_envs:
        state, metrics = learn(at(first - config.num_envs), state)
        assert int(state["critic"]) == 0 and float(metrics["critic"].weight) == 0
    for call, expected in enumerate(actors):
        state, metrics = learn(at(first + call * config.num_envs), state)
        assert int(state["critic"]) == (call + 1) * config.updates_per_step * config.num_envs
        assert int(state["actor"]) == expected
        assert float(metrics["actor"].weight) == expected - (actors[call - 1] if call else 0)
    assert learn._cache_size() == 1


def test_a_buffer_of_sequences_keeps_the_successors_of_rows_that_do_not_continue():
    """Nine recorded steps, of which the fourth was left out."""
    seen = np.cumsum(np.random.default_rng(0).normal(size=(10, 3)), axis=0).astype(np.float32)
    kept = np.delete(np.arange(9), 3)
    task, never = envs.make("pendulum"), jnp.zeros(8, bool)
    actions = jnp.zeros((8, 1))
    rows = Transition(jnp.asarray(seen[kept]), actions, jnp.zeros(8), jnp.asarray(seen[kept + 1]), never, never, ())
    config = SimpleNamespace(num_envs=1, replay_capacity=16)
    held = sequences.take(shared.new_sequences(config, task, rows), jnp.arange(8))
    np.testing.assert_array_equal(held.next_observation, rows.next_observation)
    assert held.truncated.tolist() == [False, False, True, False, False, False, False, True]
