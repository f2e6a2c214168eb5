"""DQN as a whole: when it updates and copies, how it explores, the rows that it learns from, its presets."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl import algorithms, envs
from jaxmbrl.agents.q_learning import QLearningConfig
from jaxmbrl.algorithms import shared
from jaxmbrl.algorithms.model_free import dqn
from jaxmbrl.core.config import UserError, check
from jaxmbrl.core.spaces import Box, Discrete
from jaxmbrl.core.types import Task, Transition
from jaxmbrl.data import n_step
from jaxmbrl.data.experience import ReplayConfig
from jaxmbrl.training.loop import clock_at

from .test_sac import clock

TINY = dqn.Config(
    agent=QLearningConfig(hidden=(), epsilon=0.2),
    batch_size=4,
    n_step=2,
    train_every=3,
    copy_every=20,
    updates_per_step=2,
    warmup_steps=10,
    replay_capacity=500,
    num_envs=2,
    epsilon_first=0.6,
    epsilon_steps=100,
)
"""6 environment steps in each call of `learn`, and 4 updates."""


@functools.cache
def compiled(config=TINY):
    algorithm = dqn.make(config, envs.make("CartPole-v1"))
    return algorithm, jax.jit(algorithm.init), jax.jit(algorithm.learn)


def rows(seed, shape=(3, 2)):
    random = np.random.default_rng(seed)
    return Transition(
        observation=random.normal(size=(*shape, 4)).astype(np.float32),
        action=random.integers(0, 2, shape).astype(np.int32),
        reward=random.normal(size=shape).astype(np.float32),
        next_observation=random.normal(size=(*shape, 4)).astype(np.float32),
        terminated=random.random(shape) < 0.3,
        truncated=random.random(shape) < 0.3,
    )


def test_updates_begin_after_the_warmup_and_the_target_is_copied_by_the_clock():
    algorithm, init, learn = compiled()
    assert algorithm.period == 3
    state = init(jax.random.key(0), {})
    for call in range(1, 9):
        steps, before = 6 * call, jax.device_get(state.agent.critic)
        state, metrics = learn(clock(steps), state, rows(call))
        critic = jax.device_get(state.agent.critic)
        assert int(critic.moments.count) == (0 if steps < 10 else 4 * (call - 1))
        assert float(metrics["agent/critic_loss"].weight) == (0 if steps < 10 else 4)
        # Steps 24 and 42 are the first at which 20 and 40 have been reached.
        expected = critic.params if steps in (24, 42) else before.target
        jax.tree.map(np.testing.assert_array_equal, critic.target, expected)
    assert learn._cache_size() == 1
    assert int(state.experience.own.size) == 48


def test_without_copies_the_target_moves_at_each_update():
    _, init, learn = compiled(dataclasses.replace(TINY, copy_every=0, agent=QLearningConfig(hidden=(), polyak=0.5)))
    state = init(jax.random.key(0), {})
    critic = state.agent.critic
    params = jax.device_get(critic.params)
    still = critic._replace(learning_rate=np.zeros((), np.float32), target=jax.tree.map(np.zeros_like, params))
    state, _ = learn(clock(12), state._replace(agent=state.agent._replace(critic=still)), rows(0))
    jax.tree.map(lambda t, p: np.testing.assert_allclose(t, (1 - 0.5**4) * p, rtol=1e-6), state.agent.critic.target, params)


def test_epsilon_falls_from_its_first_value_to_that_of_the_agent():
    algorithm, init, _ = compiled()
    state = init(jax.random.key(0), {})

    @jax.jit
    def acted(clock, explore_keys):
        observation = jnp.ones(4)
        greedy = algorithm.policy(state, clock, False).act((), observation, explore_keys[0])[0]
        policy = algorithm.policy(state, clock, True)
        return jnp.mean(jax.vmap(lambda key: policy.act((), observation, key)[0] != greedy)(explore_keys))

    keys = jax.random.split(jax.random.key(1), 6000)
    for steps, epsilon in ((0, 1.0), (9, 1.0), (10, 0.56), (50, 0.4), (100, 0.2), (1000, 0.2)):
        # One of the two actions is the greedy one.
        assert float(acted(clock(steps), keys)) == pytest.approx(epsilon / 2, abs=0.025)


def test_batches_are_rows_of_n_steps_of_each_environment(monkeypatch):
    drawn = []

    def begun_at(buffer, slots, n, discount, stride):
        drawn.append((slots.shape[0], n, stride))
        return original(buffer, slots, n, discount, stride)

    original = n_step.begun_at
    monkeypatch.setattr(n_step, "begun_at", begun_at)
    algorithm = dqn.make(TINY, envs.make("CartPole-v1"))
    state = jax.eval_shape(lambda key: algorithm.init(key, {"discount": jnp.asarray(0.5)}), jax.random.key(0))
    jax.eval_shape(algorithm.learn, clock(12), state, rows(0))
    assert set(drawn) == {(4, 2, 2)}


def test_one_step_windows_learn_as_rows_do():
    """`n_step` = 1 with the agent's one-step target on the same rows, bit for bit."""
    config = dataclasses.replace(
        TINY, n_step=1, train_every=1, num_envs=1, updates_per_step=1, copy_every=0, warmup_steps=1
    )
    algorithm = dqn.make(config, envs.make("CartPole-v1"))

    @jax.jit
    def learned(clock, state, transitions):
        return algorithm.learn(clock, state, transitions)[0].agent

    state = jax.jit(algorithm.init)(jax.random.key(0), {})
    given = rows(0, (1, 1))
    by_method = learned(clock(1), state, given)
    one = jax.tree.map(lambda x: np.repeat(x[0], 4, axis=0), given)
    agent = dqn.q_learning.make(config.agent, Box((4,)), 2)
    expected = jax.jit(agent.update)(state.agent, one, jax.random.key(0))[0]
    jax.tree.map(np.testing.assert_array_equal, by_method, expected)


def test_demonstrations_priorities_and_imitation_where_they_must_not_matter():
    """Share 0, alpha 0 and no demonstrations to imitate: each is plain DQN, bit for bit."""
    task = envs.make("CartPole-v1")
    plain = dataclasses.replace(TINY, n_step=1, copy_every=0, warmup_steps=1, updates_per_step=1)
    given = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows(5))
    prioritized = ReplayConfig(kind="prioritized", demonstrations="priorities")
    cases = {
        "plain": ({}, None),
        "share 0": ({"demonstration_share": 0.0, "margin_weight": 1.0}, given),
        "alpha 0": ({"replay": ReplayConfig(kind="prioritized", alpha=0.0)}, None),
        "no imitation": ({"margin_weight": 1.0}, None),
        "all": ({"margin_weight": 1.0, "replay": prioritized}, given),
    }

    @jax.jit
    def learned(key, transitions):
        def one(changes, demonstrations):
            algorithm = dqn.make(dataclasses.replace(plain, **changes), task)
            state = algorithm.init(key, {}, demonstrations)
            return algorithm.learn(clock_at(6), state, transitions)[0].agent.critic.params

        return {name: one(*case) for name, case in cases.items()}

    found = jax.device_get(learned(jax.random.key(0), rows(0)))
    for name in ("share 0", "alpha 0", "no imitation"):
        jax.tree.map(np.testing.assert_array_equal, found[name], found["plain"])
    assert any((a != b).any() for a, b in zip(*(jax.tree.leaves(found[name]) for name in ("all", "plain")), strict=True))


def test_priorities_are_the_errors_before_the_update():
    """One collected row and one demonstration: each has |Q(s, a) - y| + epsilon of the last update, with its bonus."""
    task, config = (
        envs.make("CartPole-v1"),
        dataclasses.replace(
            TINY,
            n_step=1,
            train_every=1,
            num_envs=1,
            updates_per_step=1,
            copy_every=0,
            warmup_steps=1,
            replay=ReplayConfig(kind="prioritized", alpha=1.0, epsilon=0.25, demonstration_bonus=0.5),
        ),
    )
    algorithm = dqn.make(config, task)
    row, demonstration = (jax.tree.map(lambda x: x[0], rows(seed, (1, 1))) for seed in (0, 1))

    @jax.jit
    def learned(key):
        state = algorithm.init(key, {}, demonstration)
        after, metrics = algorithm.learn(clock_at(1), state, jax.tree.map(lambda x: jnp.asarray(x)[None], row))
        return state.agent.critic.params, after, metrics

    params, after, metrics = jax.device_get(learned(jax.random.key(0)))
    kernel, bias = (np.float64(params["params"]["MLP_0"]["Dense_0"][name]) for name in ("kernel", "bias"))
    own, demonstrations = after.experience
    for part, bonus, buffer in ((row, 0.0, own), (demonstration, 0.5, demonstrations)):
        values, successor = (np.float64(x[0]) @ kernel + bias for x in (part.observation, part.next_observation))
        target = part.reward[0] + 0.99 * (0.0 if part.terminated[0] else successor.max())
        priority = abs(values[part.action[0]] - target) + 0.25 + bonus
        np.testing.assert_allclose(buffer.tree[len(buffer.tree) // 2], priority, rtol=1e-5)
    assert float(metrics["replay/demonstrations"].total) == 0.5


def test_the_one_step_loss_is_added():
    """Rows of three steps with targets 1, 2, those of one step 5, 4, and values 0: 0.5 + 2 and 0.5 of 12.5 + 8, halved."""
    two = jax.tree.map(lambda x: jnp.asarray(x[0]), rows(0, (1, 2)))
    several = n_step.NStep(*two._replace(reward=jnp.array([1.0, 2.0])), discount=jnp.array([0.5, 0.25]))
    one = two._replace(reward=jnp.array([5.0, 4.0]))
    given = {"weight": jnp.array([1.0, 3.0]), "imitation": jnp.array([0.0, 1.0])}
    both, given = shared.with_one_step(several, one, given, jnp.asarray(0.9), 0.5)
    np.testing.assert_allclose(both.discount, [0.5, 0.25, 0.9, 0.9])
    loss = dqn.q_learning.q_loss(jnp.zeros(4), both.reward, given["weight"], huber=None)
    assert float(loss) == pytest.approx((0.5 + 3 * 2) / 2 + 0.5 * (12.5 + 3 * 8) / 2)
    # Mean over all four rows: the imitation loss counts once.
    assert given["imitation"].tolist() == [0, 2, 0, 0]
    assert shared.with_one_step(several, one, {}, jnp.asarray(0.9), 0.5)[1]["weight"].tolist() == [2, 2, 1, 1]


def of_spaces(observation):
    task = envs.make("CartPole-v1")
    return Task(**task._asdict() | {"observation": observation, "action": Discrete(5)})


@pytest.mark.parametrize("name", algorithms.get("dqn").presets)
@pytest.mark.parametrize(
    "space", [Discrete(16), Box((84, 84, 4), 0, 255, "uint8"), Box((8,))], ids=["table", "image", "vector"]
)
def test_presets_are_sound_on_every_kind_of_observation(name, space):
    preset = algorithms.get("dqn").presets[name]
    config = check(preset.config)
    assert preset.steps > max(config.warmup_steps, config.epsilon_steps) and preset.source
    for task in preset.tasks:
        envs.check_name(task)
        assert algorithms.preset("dqn", task)[0] == name
    algorithm = dqn.make(config, of_spaces(space))
    state = jax.eval_shape(lambda key: algorithm.init(key, {}), jax.random.key(0))
    action = jax.eval_shape(
        lambda state, clock, key: algorithm.policy(state, clock, True).act((), space.zeros(), key)[0],
        *(state, clock_at(0), jax.random.key(0)),
    )
    assert (action.shape, action.dtype) == ((), jnp.int32)


def test_published_settings():
    """vwxyzjn/cleanrl: dqn_jax.py, and google-deepmind/dqn_zoo: run_atari.py, whose steps are counted without the frames
    that repeat an action."""
    classic, atari = (algorithms.get("dqn").presets[name].config for name in ("classic", "atari-like"))
    assert classic.agent == QLearningConfig(
        hidden=(120, 84), double=False, huber=None, learning_rate=2.5e-4, discount=0.99, epsilon=0.05
    )
    assert (classic.batch_size, classic.train_every, classic.copy_every) == (128, 10, 500)
    assert (classic.replay_capacity, classic.warmup_steps, classic.epsilon_steps) == (10_000, 10_000, 250_000)
    assert atari.agent == QLearningConfig(
        hidden=(512,), double=False, optimizer="rmsprop", learning_rate=2.5e-4, discount=0.99, epsilon=0.1
    )
    assert (atari.agent.rmsprop_decay, atari.agent.rmsprop_epsilon) == (0.95, 0.01 / 32**2)
    assert (atari.batch_size, atari.train_every, atari.copy_every) == (32, 4, 10_000)
    assert (atari.replay_capacity, atari.warmup_steps, atari.epsilon_steps) == (1_000_000, 50_000, 1_000_000)


def test_continuous_actions_are_refused():
    with pytest.raises(UserError, match="dqn takes discrete actions"):
        dqn.make(TINY, envs.make("pendulum"))
