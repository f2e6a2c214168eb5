"""MPO as a whole: when it updates and copies, the rows that it learns from, and its presets."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from jaxmbrl import algorithms, envs
from jaxmbrl.agents.actor_critic import mpo as agents_mpo
from jaxmbrl.agents.actor_critic.mpo import MPOConfig
from jaxmbrl.algorithms.model_free import mpo
from jaxmbrl.core.config import check
from jaxmbrl.core.types import Transition
from jaxmbrl.data import n_step, replay

from .test_sac import clock

TINY = mpo.Config(
    agent=MPOConfig(hidden=(), samples=3, copy_every=4, layer_norm=False),
    batch_size=4,
    n_step=2,
    train_every=3,
    updates_per_step=1,
    warmup_steps=10,
    replay_capacity=500,
    num_envs=2,
)
"""6 environment steps in each call of `learn`, and 2 updates."""


@functools.cache
def compiled(config=TINY):
    algorithm = mpo.make(config, envs.make("pendulum"))
    return algorithm, jax.jit(algorithm.init), jax.jit(algorithm.learn)


def rows(seed, shape=(3, 2)):
    random = np.random.default_rng(seed)
    return Transition(
        observation=random.normal(size=(*shape, 3)).astype(np.float32),
        action=random.uniform(-1, 1, (*shape, 1)).astype(np.float32),
        reward=random.normal(size=shape).astype(np.float32),
        next_observation=random.normal(size=(*shape, 3)).astype(np.float32),
        terminated=random.random(shape) < 0.3,
        truncated=random.random(shape) < 0.3,
    )


def test_updates_begin_after_the_warmup_and_targets_are_copied_by_the_number_of_updates():
    algorithm, init, learn = compiled()
    assert algorithm.period == 3
    state = init(jax.random.key(0), {})
    for call in range(1, 7):
        before = jax.device_get(state.agent)
        state, metrics = learn(clock(6 * call), state, rows(call))
        agent, updates = jax.device_get(state.agent), 2 * (call - 1)
        for part, old in ((agent.actor, before.actor), (agent.critic, before.critic)):
            assert int(part.moments[1].count) == updates
            # Every second call ends with the fourth update since the last copy; the others copy nothing.
            expected = part.params if updates % 4 == 0 and updates else old.target
            jax.tree.map(np.testing.assert_array_equal, part.target, expected)
        assert float(metrics["agent/critic_loss"].weight) == (0 if call == 1 else 2)
    assert learn._cache_size() == 1


def test_an_update_learns_from_rows_of_n_steps_of_one_environment():
    """The call of `learn` is an update of the agent with the rows of `n_step.begun_at` for its key."""
    config = dataclasses.replace(TINY, warmup_steps=0, train_every=1)
    _, init, learn = compiled(config)
    state = init(jax.random.key(0), {})
    for call in range(1, 5):
        given = state
        state, _ = learn(clock(2 * call), state, rows(call, (1, 2)))
    agent = agents_mpo.make(config.agent, 3, 1)

    @jax.jit
    def expected(agent_state, buffer, key):
        _, update_key = jax.random.split(key)
        for key in jax.random.split(update_key, 2):
            sample_key, agent_key = jax.random.split(key)
            batch = n_step.begun_at(buffer, replay.sample_slots(buffer, sample_key, 4), 2, 0.99, stride=2)
            agent_state = agent.update(agent_state, batch, agent_key)[0]
        return agent_state, batch.discount

    found, discount = expected(given.agent, state.experience.own, given.key)
    assert {round(float(power), 4) for power in discount} == {0.99, 0.9801}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, state.agent)


def test_published_settings():
    """google-deepmind/acme: acme/agents/jax/mpo and examples/baselines/rl_continuous/run_mpo.py."""
    published = algorithms.get("mpo").presets["default"].config
    assert published.agent == MPOConfig(
        hidden=(256, 256, 256),
        critic_hidden=(512, 512, 256),
        layer_norm=True,
        critics=1,
        samples=20,
        learning_rate=1e-4,
        dual_learning_rate=1e-2,
        gradient_norm=40.0,
        discount=0.99,
        copy_every=100,
        initial_std=0.7,
        epsilon=0.1,
        epsilon_mean=0.0025,
        epsilon_std=1e-6,
        penalty=True,
        epsilon_penalty=1e-3,
        initial_temperature=10.0,
        initial_alpha_mean=10.0,
        initial_alpha_std=1000.0,
    )
    assert (published.batch_size, published.n_step, published.train_every) == (256, 5, 8)
    run = algorithms.get("mpo").presets["run-mpo"].config
    changed = dataclasses.replace(
        published.agent, critic_hidden=(256, 256, 256), learning_rate=3e-4, epsilon_mean=0.01, initial_std=0.5
    )
    assert run == dataclasses.replace(published, agent=changed, n_step=4, train_every=4)


@pytest.mark.parametrize("name", algorithms.get("mpo").presets)
def test_presets_are_sound(name):
    preset = algorithms.get("mpo").presets[name]
    config = check(preset.config)
    assert preset.steps > config.warmup_steps and preset.source
    for task in preset.tasks:
        envs.check_name(task)
        assert algorithms.preset("mpo", task)[0] == name
    jax.eval_shape(mpo.make(config, envs.make("pendulum")).init, jax.random.key(0), {})
