"""TD3 and DDPG as a whole: when the actor and the targets move, their exploration bonus, which is also SAC's, and their
presets."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxmbrl import algorithms, envs
from jaxmbrl.agents.actor_critic.sac import SACConfig
from jaxmbrl.agents.actor_critic.td3 import TD3Config
from jaxmbrl.agents.count_bonus import CountBonusConfig
from jaxmbrl.algorithms.model_free import sac, td3
from jaxmbrl.core.config import check

from .test_sac import clock, rows

TINY = td3.Config(agent=TD3Config(hidden=(8,)), batch_size=4, warmup_steps=10, replay_capacity=500)


def test_the_actor_and_all_targets_move_at_every_second_step():
    algorithm = td3.make(TINY, envs.make("pendulum"))
    learn, state = jax.jit(algorithm.learn), jax.jit(algorithm.init)(jax.random.key(0), {})
    for call in range(4):
        before = jax.device_get(state.agent)
        state, _ = learn(clock(10 + call), state, rows(call, 1))
        agent = jax.device_get(state.agent)
        counts = [int(part.moments.count) for part in (agent.critic, agent.actor)]
        assert counts == [call + 1, (call + 1) // 2]
        for part, old in ((agent.actor, before.actor), (agent.critic, before.critic)):
            changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), part.target, old.target)
            assert set(jax.tree.leaves(changed)) == {call % 2 == 1}


@pytest.mark.parametrize("module", [sac, td3], ids=["sac", "td3"])
def test_the_bonus_of_unvisited_states_is_a_larger_reward(module):
    """Each state is visited for the first time, so that the bonus is the weight: learning with it is, bit for bit, learning
    from rewards that contain it. With the weight 0 there are no counts, and nothing changes."""
    agent = SACConfig(hidden=(8,)) if module is sac else TD3Config(hidden=(8,))
    plain = module.Config(agent=agent, batch_size=4, warmup_steps=0, replay_capacity=500)
    task, key = envs.make("pendulum"), jax.random.key(0)
    none, some = (
        dataclasses.replace(plain, count_bonus=CountBonusConfig(weight=weight, bits=24)) for weight in (0.0, 0.25)
    )
    one, dearer = rows(1, 1), rows(1, 1)
    dearer = dearer._replace(reward=dearer.reward + np.float32(0.25))

    @jax.jit
    def learned(clock, one, dearer):
        def after(config, rows):
            algorithm = module.make(config, task)
            return algorithm.learn(clock, algorithm.init(key, {}), rows)[0]

        return after(plain, one), after(none, one), after(some, one), after(plain, dearer)

    without, zero, bonus, expected = jax.device_get(learned(clock(1), one, dearer))
    assert zero.counts is None and bonus.counts.visits.sum() == 1
    jax.tree.map(np.testing.assert_array_equal, zero._replace(key=()), without._replace(key=()))
    jax.tree.map(np.testing.assert_array_equal, bonus.agent, expected.agent)
    np.testing.assert_array_equal(bonus.experience.own.data.reward[0], one.reward[0, 0])
    leaves = zip(*(jax.tree.leaves(state.agent.critic.params) for state in (without, bonus)), strict=True)
    assert int(bonus.agent.critic.moments.count) == 1 and any((a != b).any() for a, b in leaves)


def test_published_settings():
    """sfujim/TD3: main.py, TD3.py and OurDDPG.py. DDPG differs by its critic, its target's noise and its delay alone."""
    published = algorithms.get("td3").presets["default"].config
    assert published.agent == TD3Config(
        hidden=(256, 256),
        critics=2,
        learning_rate=3e-4,
        discount=0.99,
        polyak=0.005,
        exploration_noise=0.1,
        target_noise=0.2,
        target_noise_clip=0.5,
    )
    assert (published.batch_size, published.updates_per_step, published.actor_delay) == (256, 1, 2)
    assert (published.warmup_steps, published.replay_capacity, published.num_envs) == (25_000, 1_000_000, 1)
    ddpg = algorithms.get("ddpg").presets["default"].config
    agent = dataclasses.replace(published.agent, critics=1, target_noise=0.0)
    assert ddpg == dataclasses.replace(published, agent=agent, actor_delay=1)


@pytest.mark.parametrize(("method", "name"), [(m, name) for m in ("td3", "ddpg") for name in algorithms.get(m).presets])
def test_presets_are_sound(method, name):
    preset = algorithms.get(method).presets[name]
    config = check(preset.config)
    assert preset.steps > config.warmup_steps
    assert preset.source
    for task in preset.tasks:
        envs.check_name(task)
        assert algorithms.preset(method, task)[0] == name
    jax.eval_shape(td3.make(config, envs.make("pendulum")).init, jax.random.key(0), {})
