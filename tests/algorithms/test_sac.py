"""SAC, REDQ and DroQ as a whole: when they update, what they store, their presets, and that they learn."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from in_order import in_order

from jaxmbrl import algorithms, envs
from jaxmbrl.agents.actor_critic.sac import SACConfig
from jaxmbrl.algorithms.model_free import sac
from jaxmbrl.core.config import check
from jaxmbrl.core.types import Clock, Transition
from jaxmbrl.training import loop

TINY = sac.Config(
    agent=SACConfig(hidden=(8,)),
    batch_size=4,
    updates_per_step=3,
    actor_delay=3,
    warmup_steps=10,
    replay_capacity=500,
    num_envs=2,
)


def clock(steps):
    return Clock(np.asarray(steps, np.int32))


def rows(start, count):
    """Transitions [1, count] that all differ."""
    rng = np.random.default_rng(start)
    return Transition(
        observation=rng.normal(size=(1, count, 3)).astype(np.float32),
        action=rng.uniform(-1, 1, (1, count, 1)).astype(np.float32),
        reward=rng.normal(size=(1, count)).astype(np.float32),
        next_observation=rng.normal(size=(1, count, 3)).astype(np.float32),
        terminated=rng.random((1, count)) < 0.3,
        truncated=rng.random((1, count)) < 0.3,
    )


@functools.cache
def compiled():
    """(SAC with TINY settings, its `init`, its `learn`)."""
    algorithm = sac.make(TINY, envs.make("pendulum"))
    return algorithm, jax.jit(algorithm.init), jax.jit(algorithm.learn)


def started(discount=0.99, learning_rate=3e-4):
    hyper = {"discount": np.float32(discount), "learning_rate": np.float32(learning_rate)}
    return compiled()[1](jax.random.key(0), hyper)


def test_updates_begin_after_the_warmup_and_the_buffer_holds_what_came():
    algorithm, _, learn = compiled()
    assert algorithm.period == 1
    state, given, keys = started(), [], set()
    for call in range(9):
        seen, before = jax.random.key_data(state.key), jax.device_get(state.agent)
        keys.add(tuple(np.asarray(seen).tolist()))
        if call == 8:
            break
        steps, transitions = 2 * (call + 1), rows(call, 2)
        given.append(transitions)
        state, metrics = learn(clock(steps), state, transitions)
        updates = 0 if steps < 10 else (call - 3) * 3 * 2
        agent = jax.device_get(state.agent)
        counts = [int(part.moments.count) for part in (agent.critic, agent.actor, agent.log_temperature)]
        assert counts == [updates, updates // 3, updates // 3]
        assert float(metrics["agent/critic_loss"].weight) == (0 if steps < 10 else 6)
        if steps < 10:
            jax.tree.map(np.testing.assert_array_equal, before, agent)
    assert learn._cache_size() == 1
    assert len(keys) == 9
    held = jax.tree.map(lambda x: np.asarray(x)[:16], jax.jit(in_order)(state.experience.own))
    expected = jax.tree.map(lambda *xs: np.concatenate([x[0] for x in xs]), *given)
    jax.tree.map(np.testing.assert_array_equal, held, expected)
    assert int(state.experience.own.size) == 16


def test_the_actor_and_the_temperature_move_once_while_critics_and_targets_move_each_time():
    """Three updates for each of two environments, by two calls of `learn`; the actor's delay is three."""
    learn, state = compiled()[2], started()
    for call in (1, 2):
        before = state.agent
        state, metrics = learn(clock(8 + 2 * call), state, rows(call, 2))
        counts = [int(part.moments.count) for part in (state.agent.critic, state.agent.actor, state.agent.log_temperature)]
        assert counts == [6 * call, 2 * call, 2 * call]
        assert float(metrics["agent/actor_loss"].weight) == 2
        # Adam moves a number by little more than the learning rate an update, so the temperature was moved twice only.
        moved = abs(float(state.agent.log_temperature.params) - float(before.log_temperature.params))
        assert 1.5 * 3e-4 < moved < 2.5 * 3e-4
    # Critics that stay where they are, and targets that begin at zero, count the moves of the targets.
    critic = state.agent.critic
    params = jax.device_get(critic.params)
    critic = critic._replace(learning_rate=np.zeros((), np.float32), target=jax.tree.map(np.zeros_like, params))
    state, _ = learn(clock(14), state._replace(agent=state.agent._replace(critic=critic)), rows(3, 2))
    jax.tree.map(
        lambda a, p: np.testing.assert_allclose(a, (1 - 0.995**6) * p, rtol=1e-4), state.agent.critic.target, params
    )


@pytest.mark.promises
def test_time_limits_are_stored_as_such_with_the_true_successor():
    """Random actions through the loop: the pendulum's episodes end by the clock alone, after 200 steps."""
    task = envs.make("pendulum")
    config = sac.Config(agent=SACConfig(hidden=()), batch_size=1, warmup_steps=450, replay_capacity=450)
    program = loop.make(sac.make(config, task), task, config)
    steps = jnp.asarray(420, jnp.int32)
    _, state = jax.jit(lambda seeds: program.run(loop.clock_at(0), program.init(seeds, {}), steps))(np.arange(1))
    held = jax.tree.map(lambda x: np.asarray(x)[0], state.algorithm.experience.own)
    assert held.size == 420
    data = jax.tree.map(lambda x: x[:420], held.data)
    assert np.flatnonzero(data.truncated).tolist() == [199, 399]
    assert not data.terminated.any()
    continued = np.all(data.next_observation[:-1] == data.observation[1:], axis=1)
    assert np.flatnonzero(~continued).tolist() == [199, 399]
    # The step from each stored state by each stored action leads to the stored successor.
    angle = np.arctan2(data.observation[:, 1], data.observation[:, 0])

    @jax.jit
    @jax.vmap
    def stepped(state, action):
        return task.env.step(task.env.state_at(state), action)

    after = stepped(np.stack([angle, data.observation[:, 2]], axis=1), data.action)
    np.testing.assert_allclose(after.obs, data.next_observation, atol=1e-5)
    np.testing.assert_allclose(after.reward, data.reward, atol=1e-4)
    # No update before the warm-up is over, and uniform actions until then.
    assert int(state.algorithm.agent.critic.moments.count[0]) == 0
    assert abs(np.mean(data.action**2) - 1 / 3) < 0.06


def test_the_agents_policy_is_the_algorithms():
    algorithm, state = compiled()[0], started(discount=0.5, learning_rate=0.1)
    assert float(state.agent.discount) == 0.5
    assert float(state.agent.actor.learning_rate) == pytest.approx(0.1)

    @jax.jit
    def actions(key):
        observation = jnp.array([1.0, 0.0, 0.2])
        time = loop.clock_at(10_000)
        return [algorithm.policy(state, time, explore).act((), observation, key)[0] for explore in (False, True)]

    (calm, bold), (again, other) = (actions(jax.random.key(k)) for k in range(2))
    np.testing.assert_array_equal(calm, again)
    assert float(bold[0]) != float(other[0])


def test_published_settings():
    """Haarnoja et al., arXiv 1812.05905, table 1; random steps at the start as MBPO's code has them."""
    published = algorithms.get("sac").presets["default"].config
    assert published.agent == SACConfig(
        hidden=(256, 256),
        critics=2,
        critic_subset=2,
        learning_rate=3e-4,
        discount=0.99,
        polyak=0.005,
        initial_temperature=1.0,
        target_entropy=None,
    )
    assert (published.batch_size, published.updates_per_step, published.replay_capacity) == (256, 1, 1_000_000)
    assert (published.warmup_steps, published.num_envs) == (5000, 1)


def test_redq_and_droq_differ_from_sac_in_their_papers_settings_only():
    """REDQ with two of two critics, one update and the actor on the minimum is SAC; DroQ without dropout and layer norm is
    SAC with 20 updates a step and an actor that takes the mean."""
    plain = algorithms.get("sac").presets["default"].config
    redq, droq = algorithms.get("redq").presets["default"].config, algorithms.get("droq").presets["default"].config
    agent = dataclasses.replace(redq.agent, critics=2, actor_value="min")
    assert dataclasses.replace(redq, agent=agent, updates_per_step=1, actor_delay=1) == plain
    agent = dataclasses.replace(droq.agent, dropout=0.0, layer_norm=False)
    mean = dataclasses.replace(plain.agent, actor_value="mean")
    assert dataclasses.replace(droq, agent=agent) == dataclasses.replace(
        plain, agent=mean, updates_per_step=20, actor_delay=20
    )
    assert (redq.agent.critics, redq.agent.critic_subset, redq.updates_per_step, redq.actor_delay) == (10, 2, 20, 20)
    assert (droq.agent.critics, droq.agent.critic_subset, droq.agent.actor_value) == (2, 2, "mean")


@pytest.mark.parametrize(
    ("name", "entropy", "dropout", "steps"),
    [
        ("Hopper-v5", -1, 0.0001, 125_000),
        ("HalfCheetah-v5", -3, 0.01, 400_000),
        ("Walker2d-v5", -3, 0.005, 300_000),
        ("Ant-v5", -4, 0.01, 300_000),
        ("Humanoid-v5", -2, 0.1, 300_000),
    ],
)
def test_published_settings_of_redq_and_droq(name, entropy, dropout, steps):
    """watchernyu/REDQ: redq/algos/core.py; the table in the README of DroQ's code, for its variant of REDQ's."""
    for method in ("redq", "droq"):
        preset, config = algorithms.preset(method, name)
        assert algorithms.get(method).presets[preset].steps == steps
        assert (config.agent.target_entropy, config.warmup_steps, config.updates_per_step) == (entropy, 5000, 20)
        assert config.agent.initial_temperature == 1.0
        assert config.agent.dropout == (dropout if method == "droq" else 0.0)
        assert config.agent.layer_norm == (method == "droq")


@pytest.mark.parametrize(
    ("method", "name"), [(m, name) for m in ("sac", "redq", "droq") for name in algorithms.get(m).presets]
)
def test_presets_are_sound(method, name):
    preset = algorithms.get(method).presets[name]
    config = check(preset.config)
    assert preset.steps > config.warmup_steps
    assert preset.source
    for task in preset.tasks:
        envs.check_name(task)
        assert algorithms.preset(method, task)[0] == name
    jax.eval_shape(sac.make(config, envs.make("pendulum")).init, jax.random.key(0), {})
