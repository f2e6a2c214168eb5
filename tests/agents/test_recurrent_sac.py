"""Recurrent SAC: its features against a loop over the steps of episodes, and plain SAC as its degenerate case."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl.agents.actor_critic import recurrent_sac, sac
from jaxmbrl.agents.actor_critic.recurrent_sac import RecurrentSACConfig
from jaxmbrl.agents.actor_critic.sac import SACConfig
from jaxmbrl.agents.exploration import uniform, with_warmup
from jaxmbrl.algorithms.model_free.recurrent_sac import Config
from jaxmbrl.core.config import UserError, check
from jaxmbrl.core.spaces import Box
from jaxmbrl.core.types import Transition
from jaxmbrl.nn import recurrent

O, A, B, L, BURN_IN = 2, 1, 3, 7, 2  # noqa: E741
TINY = RecurrentSACConfig(hidden=(5,), units=3, burn_in=BURN_IN)


def windows(length=L, seed=0):
    """(windows, is_first) in which the first ends by termination after step 3, the second by its limit after step 1."""
    rng = np.random.default_rng(seed)
    shape = (B, length)
    terminated, truncated = np.zeros(shape, bool), np.zeros(shape, bool)
    if length > 4:
        terminated[0, 3] = truncated[1, 1] = True
    observation, action = rng.normal(size=(*shape, O)), rng.uniform(-1, 1, (*shape, A))
    successor = rng.normal(size=(*shape, O))
    ended = terminated | truncated
    # Within an episode the next row's observation is the successor.
    observation[:, 1:] = np.where(ended[:, :-1, None], observation[:, 1:], successor[:, :-1])
    is_first = np.concatenate([np.ones((B, 1), bool), ended[:, :-1]], axis=1)
    return Transition(observation, action, rng.normal(size=shape), successor, terminated, truncated), is_first


def by_hand(encoder, rows, is_first):
    """(features, features of the successors), [B, L - burn-in, F], by a loop over each window's steps."""
    step = jax.jit(recurrent.step)
    found = np.zeros((2, B, L, O + TINY.units))
    for b in range(B):
        hidden, before = np.zeros(TINY.units), np.zeros(A)
        for t in range(L):
            if is_first[b, t]:
                hidden, before = np.zeros(TINY.units), np.zeros(A)
            hidden = step(encoder, hidden, np.concatenate([rows.observation[b, t], before]))
            before = rows.action[b, t]
            after = step(encoder, hidden, np.concatenate([rows.next_observation[b, t], before]))
            found[0, b, t] = np.concatenate([rows.observation[b, t], hidden])
            found[1, b, t] = np.concatenate([rows.next_observation[b, t], after])
    return found[:, :, BURN_IN:].reshape(2, -1, O + TINY.units)


def test_features_are_of_the_episode_so_far(x64):
    rows, is_first = windows()
    encoder = jax.jit(lambda key: recurrent.init(key, O + A, TINY.units))(jax.random.key(1))
    rng = np.random.default_rng(2)
    encoder = jax.tree.map(lambda x: rng.normal(size=x.shape), encoder)

    @jax.jit
    def looked(encoder, rows, is_first):
        batch = recurrent_sac.batch_of(TINY, rows, is_first)
        seen = batch.observation, batch.next_observation
        return batch, [recurrent_sac.features(TINY, encoder, given) for given in seen]

    batch, found = looked(encoder, rows, is_first)
    np.testing.assert_allclose(found, by_hand(encoder, rows, is_first), rtol=1e-10)
    np.testing.assert_array_equal(batch.reward, rows.reward[:, BURN_IN:].reshape(-1))
    np.testing.assert_array_equal(batch.action, rows.action[:, BURN_IN:].reshape(-1, A))
    np.testing.assert_array_equal(batch.terminated, rows.terminated[:, BURN_IN:].reshape(-1))
    # Where no episode ends, a successor is the next step.
    now, after = (x.reshape(B, L - BURN_IN, -1) for x in found)
    np.testing.assert_allclose(after[2, :-1], now[2, 1:], rtol=1e-12)


def test_burn_in_has_no_gradient(x64):
    """None flows to the observations of the burn-in, some to each of the rest."""
    rows, is_first = windows()
    encoder = jax.jit(lambda key: recurrent.init(key, O + A, TINY.units))(jax.random.key(1))

    @jax.jit
    @jax.grad
    def slope(observation, rows, is_first):
        batch = recurrent_sac.batch_of(TINY, rows._replace(observation=observation), is_first)
        return jnp.sum(recurrent_sac.features(TINY, encoder, batch.observation) ** 2)

    found = np.abs(np.asarray(slope(rows.observation, rows, is_first))).sum(axis=-1)
    assert not found[:, :BURN_IN].any() and (found[:, BURN_IN:] > 0).all()


def test_policy_remembers_what_the_windows_hold(x64):
    """Acting step by step is the actor on a window from the episode's start, sampled with the same keys. So it is after a
    warm-up of three steps, whose random actions are part of the history."""
    config = dataclasses.replace(TINY, burn_in=0)
    agent, parts = recurrent_sac.make(config, O, A), recurrent_sac.functions(config, O, A)
    rng = np.random.default_rng(3)
    observations = rng.normal(size=(L, O))

    @jax.jit
    def act_and_look(observations):
        state = agent.init(jax.random.key(0), {})
        acting = agent.policy(state, False)

        def step(memory, given):
            t, warm_steps, observation = given
            policy = with_warmup(acting, uniform(Box((A,), -1.0, 1.0)), t < warm_steps)
            action, _, memory = policy.act(memory, observation, jax.random.fold_in(jax.random.key(0), t))
            return memory, action

        found = []
        for warm_steps in (0, 3):
            given = jnp.arange(L), jnp.full(L, warm_steps), observations
            _, actions = jax.lax.scan(step, acting.init(jax.random.key(0)), given)
            before = jnp.concatenate([jnp.zeros((1, A)), actions[:-1]])
            history = recurrent_sac.Histories(observations[None], before[None], (jnp.arange(L) == 0)[None])
            found.append((actions, parts.actor.greedy(state.actor.params, history)))
        return found

    (actions, seen), (warmed, seen_after) = act_and_look(observations)
    np.testing.assert_allclose(actions, seen, rtol=1e-12)
    assert len(np.unique(np.asarray(actions))) == L
    np.testing.assert_allclose(warmed[3:], seen_after[3:], rtol=1e-12)
    assert (np.abs(warmed[:3] - seen_after[:3]) > 1e-3).all() and (warmed[3:] != actions[3:]).all()


@pytest.mark.parametrize("dropout", [0.0, pytest.param(0.1, marks=pytest.mark.promises)])
def test_windows_of_one_row_without_memory_are_sac(dropout):
    """Parameters, update and metrics are the same, bit for bit."""
    config = RecurrentSACConfig(hidden=(5,), memory="none", dropout=dropout)
    plain = SACConfig(hidden=(5,), dropout=dropout)
    rows, is_first = windows(length=1)
    rows = jax.tree.map(lambda x: x if x.dtype == bool else x.astype(np.float32), rows)
    flat = jax.tree.map(lambda x: x[:, 0], rows)

    @jax.jit
    def both(key, rows, is_first, flat):
        own, other = recurrent_sac.make(config, O, A), sac.make(plain, O, A)
        state, expected = own.init(key, {}), other.init(key, {})
        return (
            own.update(state, recurrent_sac.batch_of(config, rows, is_first), jax.random.key(1)),
            other.update(expected, flat, jax.random.key(1)),
        )

    (state, found, error), (expected, metrics, other) = jax.device_get(both(jax.random.key(0), rows, is_first, flat))
    for part in ("actor", "critic"):
        for name in ("params", "target"):
            own = getattr(getattr(state, part), name)
            jax.tree.map(np.testing.assert_array_equal, own and own["head"], getattr(getattr(expected, part), name))
    np.testing.assert_array_equal(state.log_temperature.params, expected.log_temperature.params)
    jax.tree.map(np.testing.assert_array_equal, (found, error), (metrics, other))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"sequence_length": 4, "agent": dataclasses.replace(TINY, burn_in=4)},
            "burn_in must be below sequence_length",
        ),
        ({"sequence_length": 64, "num_envs": 4, "warmup_steps": 255}, "warmup_steps must be at least 256"),
        ({"sequence_length": 64, "num_envs": 2, "replay_capacity": 251}, "replay_capacity must be at least 252, so"),
    ],
)
def test_settings_that_leave_no_window(settings, message):
    with pytest.raises(UserError) as error:
        check(Config(**settings))
    assert message in str(error.value)
