"""BMPO: without its additions MBPO bit for bit; start states, what is imagined backward, and the planned action."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from in_order import in_order

from jaxmbrl import algorithms, envs
from jaxmbrl.agents.actor_critic.sac import SACConfig
from jaxmbrl.agents.adversarial_cloning import AdversarialState
from jaxmbrl.agents.behaviour_cloning import CloningConfig
from jaxmbrl.algorithms.dyna import bmpo, mbpo
from jaxmbrl.algorithms.dyna.bmpo import BackwardLength, InverseTemperature
from jaxmbrl.algorithms.shared import RolloutLength
from jaxmbrl.core.config import UserError, check
from jaxmbrl.core.keys import beside
from jaxmbrl.core.types import Clock, DynamicsModel, Transition, World
from jaxmbrl.data import replay
from jaxmbrl.models.disagreement import TrustConfig

WARM, EVERY, CALLS = 4, 2, 4
COMMON = {
    "agent": SACConfig(hidden=(8,)),
    "rollout_length": RolloutLength(2, 2),
    "rollout_rows": 6,
    "retain_steps": 2 * EVERY,
    "refit_every": EVERY,
    "batch_size": 4,
    "updates_per_step": 1,
    "warmup_steps": WARM,
    "replay_capacity": 60,
    "num_envs": 2,
}
NONE = InverseTemperature(0.0, 0.0)
PENDULUM = envs.make("pendulum")


def rows(seed, count=2):
    rng = np.random.default_rng(seed)
    return Transition(
        observation=rng.normal(size=(1, count, 3)).astype(np.float32),
        action=rng.uniform(-1, 1, (1, count, 1)).astype(np.float32),
        reward=rng.normal(size=(1, count)).astype(np.float32),
        next_observation=rng.normal(size=(1, count, 3)).astype(np.float32),
        terminated=np.zeros((1, count), bool),
        truncated=np.zeros((1, count), bool),
    )


def late():
    """A clock after the warm-up."""
    return Clock(jnp.asarray(99, jnp.int32))


def model(sign):
    """A model in which each step adds `sign`; its state counts the fits, and its reward is `sign`."""

    def world(state):
        def step(observation, action, key):
            following, none = observation + sign, jnp.zeros(len(observation), bool)
            ends = (following, observation) if sign < 0 else (observation, following)
            return following, Transition(ends[0], action, jnp.full(len(observation), float(sign)), ends[1], none, none)

        return World(reset=lambda key: None, start=lambda origin, key: origin, observe=lambda x: x, step=step)

    return DynamicsModel(lambda key, hyper: jnp.zeros(()), lambda state, buffer, key: (state + 1, {}), None, world)


MODELS = model(1), model(-1)


def config(**changes):
    return bmpo.Config(**COMMON, backward_policy=CloningConfig(hidden=(4,)), candidates=5, **changes)


def run(algorithm):
    """States after each call of `learn`, the last one of JAX's arrays."""
    learn, state = jax.jit(lambda *given: algorithm.learn(*given)[0]), jax.jit(algorithm.init)(jax.random.key(0), {})
    states = []
    for call in range(1, WARM // 2 + CALLS):
        state = learn(Clock(np.asarray(2 * call, np.int32)), state, rows(call))
        states.append(state)
    return states


@functools.cache
def bidirectional():
    algorithm = bmpo.make(config(backward_length=BackwardLength(1, 1), horizon=2), PENDULUM, MODELS)
    return algorithm, run(algorithm)


def test_without_its_additions_it_is_mbpo_bit_for_bit():
    """k1 = 0 with the backward parts in place, which begin to be used later; beta = 0; H = 0."""
    later = BackwardLength(0, 1, begins=100, ends=200)
    reduced = bmpo.make(config(backward_length=later, beta=NONE, horizon=0), PENDULUM, MODELS)
    plain = mbpo.make(mbpo.Config(**COMMON), PENDULUM, MODELS[0])
    for state, other in zip(run(reduced), run(plain), strict=True):
        jax.tree.map(np.testing.assert_array_equal, state.agent, other.agent)
        np.testing.assert_array_equal(jax.random.key_data(state.key), jax.random.key_data(other.key))
        kept = [jax.device_get(in_order(s.imagined.buffer)) for s in (state, other)]
        size = int(other.imagined.buffer.size)
        assert int(state.imagined.buffer.size) == size
        jax.tree.map(lambda a, b, n=size: np.testing.assert_array_equal(a[:n], b[:n]), *kept)
    assert int(other.agent.critic.moments.count) == 2 * CALLS and size == 24
    acting = reduced.policy(state, late(), True), plain.policy(other, late(), True)
    np.testing.assert_array_equal(*(p.act((), jnp.ones(3), jax.random.key(1))[0] for p in acting))


def test_start_states_by_the_boltzmann_distribution():
    value = jnp.array([0.0, 1.0, 2.0])
    np.testing.assert_allclose(bmpo.start_probabilities(value, 1.0), [0.0900, 0.2447, 0.6652], atol=1e-4)
    np.testing.assert_allclose(bmpo.start_probabilities(value, 0.0), np.full(3, 1 / 3), rtol=1e-6)
    # At most 10 between the exponents of any two: 5 (V - max) here.
    expected = np.exp(5 * np.array([-2.0, -1.0, 0.0]))
    np.testing.assert_allclose(bmpo.start_probabilities(value, 1e6), expected / expected.sum(), rtol=1e-4)
    assert np.isfinite(bmpo.start_probabilities(jnp.full(3, 7.0), 1.0)).all()
    many = bmpo.boltzmann(jnp.tile(value, 1000), 1.0, jax.random.key(0))
    np.testing.assert_allclose(np.bincount(np.asarray(many) % 3) / 3000, [0.0900, 0.2447, 0.6652], atol=0.03)
    schedule = InverseTemperature(0.004, 0.003, begins=20_000, ends=30_000)
    np.testing.assert_allclose([float(schedule.at(x)) for x in (0, 20_000, 25_000, 90_000)], [0.004, 0.004, 0.0035, 0.003])


def forward(network, x):
    """The output of a network with one hidden layer."""
    first, last = (network["params"][name] for name in ("Dense_0", "Dense_1"))
    return np.maximum(x @ first["kernel"] + first["bias"], 0) @ last["kernel"] + last["bias"]


def test_the_value_of_start_states_is_the_sum_of_the_critics(x64):
    """At the policy's actions, without their bonus. By their minimum, their mean or one of them Boltzmann's distribution
    would choose others of the real states that are sampled."""
    sizes = {"agent": SACConfig(hidden=(8,), critics=3), "rollout_length": RolloutLength(1, 1), "rollout_rows": 40}
    plain = config(backward_length=BackwardLength(0, 0), beta=InverseTemperature(0.7, 0.7), horizon=0)
    algorithm = bmpo.make(dataclasses.replace(plain, **sizes), PENDULUM, MODELS)
    given = jax.tree.map(lambda x: x.astype(float) if x.dtype == np.float32 else x, rows(3, 40))

    @jax.jit
    def learned(key, given):
        state = algorithm.init(key, {})
        # Critics that differ much.
        critic, factors = state.agent.critic, jnp.array([1.0, -2.0, 3.0])
        apart = jax.tree.map(lambda x: factors.reshape(3, *[1] * (x.ndim - 1)) * x, critic.params)
        state = state._replace(agent=state.agent._replace(critic=critic._replace(params=apart)))
        after = algorithm.learn(Clock(jnp.asarray(WARM, jnp.int32)), state, given)[0]
        # The keys of the real states, of the actions there and of the choice.
        start_key = jax.random.split(jax.random.split(jax.random.split(state.key, 3)[2])[1])[0]
        act_key, _, choice_key = jax.random.split(beside(start_key), 3)
        sampled = replay.sample(after.replay, start_key, 40).observation
        noise = jax.random.normal(act_key, (40, 1))
        return state.agent, after.imagined.buffer.data.observation[:40], sampled, noise, choice_key

    *found, key = learned(jax.random.key(0), given)
    agent, starts, sampled, noise = jax.device_get(found)
    mean, log_std = np.split(forward(agent.actor.params, sampled), 2, axis=1)
    pair = np.concatenate([sampled, np.tanh(mean + np.exp(log_std) * noise)], axis=1)
    critics = [jax.tree.map(lambda x, i=i: x[i], agent.critic.params) for i in range(3)]
    values = np.stack([forward(critic, pair)[:, 0] for critic in critics])

    def chosen(value):
        weight = np.exp(min(0.7, 10 / np.ptp(value)) * value)
        return sampled[np.asarray(jax.random.choice(key, 40, (40,), p=jnp.asarray(weight / weight.sum())))]

    np.testing.assert_array_equal(starts, chosen(values.sum(axis=0)))
    for other in (values.min(axis=0), values.mean(axis=0), *values, 3 * values.min(axis=0)):
        assert np.any(starts != chosen(other))


def test_what_is_imagined_leads_to_and_away_from_the_same_states():
    _, states = bidirectional()
    state = states[WARM // 2 - 1]
    assert (int(state.model), int(state.backward_model)) == (1, 1)
    stored = jax.device_get(in_order(state.imagined.buffer))
    assert int(state.imagined.buffer.size) == 18, "six backward steps and twelve forward ones"
    back, forth = (jax.tree.map(lambda x, part=part: x[part], stored) for part in (slice(6), slice(6, 12)))
    np.testing.assert_array_equal(back.reward, np.full(6, -1.0))
    np.testing.assert_array_equal(forth.reward, np.ones(6))
    np.testing.assert_array_equal(back.next_observation, forth.observation)
    np.testing.assert_allclose(back.observation, back.next_observation - 1, rtol=1e-6)
    real = np.concatenate([rows(call).observation[0] for call in (1, 2)])
    assert all((real == start).all(axis=1).any() for start in forth.observation)
    assert int(states[0].backward_policy.moments.count) == 1, "the backward policy learns from the first step on"


def test_the_environment_gets_the_first_action_of_the_best_trajectory():
    """All rewards are 1, so the best is the one whose end has the largest mean of the critics, at the mean action."""
    algorithm, states = bidirectional()
    state, observation, key = states[-1], jnp.array([0.3, -0.2, 0.5]), jax.random.key(5)
    action, told, _ = algorithm.policy(state, late(), True).act((), observation, key)
    assert int(told["nonfinite"]) == 0 and action.shape == (1,)
    # The actions as the rollout samples them; the world ignores them, so every end is the same and the first one wins.
    keys = jax.random.split(jax.random.fold_in(jax.random.split(key)[1], 0))
    sampled = bmpo.agents.make(COMMON["agent"], 3, 1).policy(state.agent, True)
    firsts = sampled.act((), jnp.broadcast_to(observation, (5, 3)), keys[0])[0]
    np.testing.assert_allclose(action, firsts[0], rtol=1e-6)
    bare = algorithm.policy(state, late(), False).act((), observation, key)[0]
    assert not np.allclose(bare, action), "the policy that is evaluated does not plan"


def test_the_backward_policy_by_a_gan():
    algorithm = bmpo.make(config(backward_length=BackwardLength(1, 1), backward_learner="gan"), PENDULUM, MODELS)
    state = jax.eval_shape(lambda: algorithm.init(jax.random.key(0), {}))
    assert isinstance(state.backward_policy, AdversarialState)
    learned, found = jax.eval_shape(lambda state, rows: algorithm.learn(late(), state, rows), state, rows(1))
    assert learned == state
    assert {"backward/policy_loss", "backward/policy_discriminator_loss"} <= set(found)


def test_published_settings_and_mistakes():
    presets = algorithms.get("bmpo").presets
    found = {name.removeprefix("paper-"): preset.config for name, preset in presets.items() if "paper" in name}
    # (k1, k2 at the end, beta at the start and the end, H): hanglai/bmpo, config.
    assert {
        name: (c.backward_length.last, c.rollout_length.last, c.beta.first, c.beta.last, c.horizon)
        for name, c in found.items()
    } == {
        "pendulum": (5, 5, 0.01, 0.0, 6),
        "hopper": (15, 15, 0.004, 0.003, 6),
        "walker2d": (1, 1, 0.01, 0.0, 1),
        "ant": (1, 25, 0.003, 0.003, 0),
    }
    for c in found.values():
        assert (c.candidates, c.backward_policy.hidden, c.backward_policy.learning_rate) == (1000, (256, 256), 3e-4)
    assert (
        found["hopper"].backward_policy.sample_variance == 0.01
        and found["pendulum"].backward_policy.sample_variance is None
    )
    with pytest.raises(UserError, match=r"trust\.rule must be always"):
        check(dataclasses.replace(config(), trust=TrustConfig("m2ac")))
    with pytest.raises(UserError, match=r"beta\.ends must be above begins"):
        check(dataclasses.replace(config(), beta=InverseTemperature(begins=2, ends=2)))
    assert config(backward_length=BackwardLength(1, 3)).imagined_capacity == 6 * 2 * (2 + 3)
