"""Updates in a row: which parts move when, on which batch, by which key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl.agents.actor_critic.updates import updates
from jaxmbrl.core.types import ActorCritic, Average

NUMBER = 6


def number_of(key):
    """A number that tells keys apart."""
    return jax.random.key_data(key)[1]


def draw(key):
    """A batch that is its key."""
    return number_of(key)


def append(log, *entry):
    rows, count = log
    return rows.at[count].set(jnp.stack([jnp.asarray(x, jnp.uint32) for x in entry])), count + 1


def update_critic(state, batch, key):
    critic, actor = state
    critic = append(critic, batch, number_of(key), actor[1])
    return (critic, actor), {"agent/critic_loss": Average.of(jnp.asarray(2.0))}, jnp.zeros(1)


def update_actor(state, batch, key):
    critic, actor = state
    return (critic, append(actor, batch, number_of(key), critic[1])), {"agent/actor_loss": Average.of(jnp.asarray(3.0))}


def update(state, batch, key):
    critic_key, actor_key = jax.random.split(key)
    state, of_critic, error = update_critic(state, batch, critic_key)
    state, of_actor = update_actor(state, batch, actor_key)
    return state, of_critic | of_actor, error


AGENT = ActorCritic(*[None] * 6, update_critic, update_actor, None, update)
"""Writes down, for each update of a part: batch, key, and how often the other part was updated before."""


def empty_log():
    log = (jnp.zeros((NUMBER, 3), jnp.uint32), jnp.zeros((), jnp.uint32))
    return log, log


def expected(key, delay, before=0):
    """The logs of critic and actor, in plain Python, after `before` updates that are not in them."""
    critic, actor = [], []
    for i, own in enumerate(jax.random.split(key, NUMBER)):
        sample_key, agent_key = jax.random.split(own)
        critic_key, actor_key = jax.random.split(agent_key)
        batch = int(number_of(sample_key))
        critic.append((batch, int(number_of(critic_key)), len(actor)))
        if (before + i + 1) % delay == 0:
            actor.append((batch, int(number_of(actor_key)), len(critic)))
    return critic, actor


@pytest.mark.parametrize("delay", [1, 2, 3, 6])
def test_the_actor_moves_at_every_so_manieth_update_on_the_critics_batch_and_after_it(delay):
    key = jax.random.key(5)
    logs, metrics = jax.jit(lambda key: updates(AGENT, empty_log(), draw, key, NUMBER, delay))(key)
    for (rows, count), wanted in zip(logs, expected(key, delay), strict=True):
        assert [tuple(row) for row in np.asarray(rows[: int(count)]).tolist()] == wanted
    assert len(expected(key, delay)[1]) == NUMBER // delay
    assert [float(x) for x in metrics["agent/critic_loss"]] == [2.0 * NUMBER, NUMBER]
    assert [float(x) for x in metrics["agent/actor_loss"]] == [3.0 * NUMBER / delay, NUMBER / delay]
    used = [int(x) for rows, count in logs for x in np.asarray(rows[: int(count), 1])]
    batches = np.asarray(logs[0][0][:, 0]).tolist()
    assert len({*used, *batches}) == len(used) + NUMBER, "every key is used once"


def test_a_rest_that_fills_no_delay_moves_the_critic_only():
    logs, _ = updates(AGENT, empty_log(), draw, jax.random.key(5), 5, 2)
    assert [int(count) for _, count in logs] == [5, 2]


@pytest.mark.parametrize("before", [1, 4, 5])
def test_the_delay_counts_the_updates_that_were_before(before):
    """As after four, where the next but one is the actor's: the third of each three."""
    key = jax.random.key(5)
    logs, _ = jax.jit(lambda key, before: updates(AGENT, empty_log(), draw, key, NUMBER, 3, before))(key, before)
    for (rows, count), wanted in zip(logs, expected(key, 3, before), strict=True):
        assert [tuple(row) for row in np.asarray(rows[: int(count)]).tolist()] == wanted


def test_only_one_side_runs_whatever_the_number_of_seeds():
    """A condition that is batched over seeds becomes a select, and then the actor's update costs its time every time."""
    seeds = jax.vmap(lambda key: updates(AGENT, empty_log(), draw, key, NUMBER, 3))
    text = str(jax.make_jaxpr(seeds)(jax.random.split(jax.random.key(0), 2)))
    assert text.count("cond[") == 1
