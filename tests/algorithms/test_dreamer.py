"""Methods with a latent model: the windows that they learn from, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl import algorithms, envs
from jaxmbrl.algorithms import latent_settings
from jaxmbrl.core.config import UserError
from jaxmbrl.core.types import Transition, row_like
from jaxmbrl.data import sequences
from jaxmbrl.training import loop, programs

TASK, STEPS = "pendulum", 12


def config(name="dreamer", **changes):
    tiny = dict(algorithms.get(name).tiny) | {"warmup_steps": STEPS, "replay_capacity": 40} | changes
    return programs.configure(name, TASK, settings=tiny).settings


def transitions(seed=0):
    """Steps [12, 1] that are told apart by their rewards; the eighth ends an episode."""
    rng = np.random.default_rng(seed)
    observation, never = rng.normal(size=(STEPS + 1, 1, 3)).astype(np.float32), np.zeros((STEPS, 1), bool)
    ends = never | (np.arange(STEPS)[:, None] == 7)
    action = rng.uniform(-1, 1, (STEPS, 1, 1)).astype(np.float32)
    reward = np.arange(STEPS, dtype=np.float32)[:, None]
    return jax.tree.map(jnp.asarray, Transition(observation[:-1], action, reward, observation[1:], ends, never))


def test_windows_are_drawn_as_positions():
    """Rewards are those of consecutive steps, and the position after the end begins anew."""
    given, task = config(), envs.make(TASK)
    buffer = sequences.add(sequences.init(row_like(task), 1, 40), transitions())
    window = jax.device_get(latent_settings.draw(given, buffer, task.action, jax.random.key(1)))
    assert window.reward.shape == (given.batch_size, given.sequence_length + 1)
    np.testing.assert_array_equal(window.reward[:, 1:], window.reward[:, 1:2] + np.arange(given.sequence_length))
    np.testing.assert_array_equal(window.terminated[:, 1:], window.reward[:, 1:] == 7)
    np.testing.assert_array_equal(window.first[:, 2:], window.reward[:, 2:] == 8)


@pytest.mark.parametrize("name", ["dreamer", "planet", "latent-mpc"])
def test_what_it_refuses(name):
    length = config(name).sequence_length
    with pytest.raises(UserError, match=rf"^warmup_steps must be at least {length}, so that each of 1 environments has"):
        config(name, warmup_steps=length - 1)
    least = 2 * length - 2
    with pytest.raises(UserError, match=rf"^replay_capacity must be at least {least}, so .* short, got {least - 1}$"):
        config(name, replay_capacity=least - 1)
    with pytest.raises(
        UserError, match=r"^a latent model takes vectors and images as observations, and these are Discrete"
    ):
        programs.build(programs.configure(name, "FrozenLake"))
    given = config(name, num_envs=2, warmup_steps=200, epoch_steps=200)
    with pytest.raises(UserError, match=r"^num_envs must be 1 with initial transitions"):
        algorithms.get(name).make(given, envs.make(TASK)).init(jax.random.key(0), {}, transitions())


def test_models_that_do_not_fit_together_are_refused():
    for changes, message in (
        ({"model.blocks": 3}, r"^model.blocks must divide deter \(8\), got 3$"),
        ({"model.bins": 4}, "^model.bins must be 0, or odd and at least 3, got 4$"),
        ({"agent.gradient": "reinforce", "agent.policy": "tanh-normal"}, "^agent.policy must be normal unless"),
    ):
        with pytest.raises(UserError, match=message):
            config(**changes)
    with pytest.raises(UserError, match=r"^model.group must divide size \(8\), got 3$"):
        config("latent-mpc", **{"model.group": 3})


def test_published_settings_of_dreamer_v2():
    """danijar/dreamerv2, configs.yaml: defaults and dmc_proprio."""
    found = algorithms.get("dreamer").presets["v2"].config
    model, agent = found.model, found.agent
    assert (model.core, model.deter, model.hidden, model.groups, model.classes) == ("gru", 200, 200, 32, 32)
    assert (model.mixing, model.free_nats, model.floor, model.dyn_scale, model.rep_scale) == (0, 1.0, "mean", 0.8, 0.2)
    assert (model.units, model.head_layers, model.coder.units, model.coder.layers) == (400, 4, 400, 4)
    assert not model.learn_continuation and model.activation == agent.activation == "elu"
    assert not model.rms_norm and not agent.rms_norm and not model.coder.symlog
    assert (agent.units, agent.layers, agent.horizon, agent.discount, agent.mix) == (400, 4, 15, 0.99, 0.95)
    assert (agent.gradient, agent.policy, agent.entropy, agent.baseline) == ("pathwise", "truncated-normal", 1e-4, False)
    assert (agent.target, agent.target_rate, agent.target_every, agent.replay_value) == ("bootstrap", 1.0, 100, 0.0)
    rates = found.learning_rate, agent.learning_rate_scale * found.learning_rate
    assert rates == pytest.approx((3e-4, 8e-5), rel=1e-3)
    assert (found.optimizer.rule, found.optimizer.epsilon, found.optimizer.norm_clip) == ("adam", 1e-5, 100.0)
    assert (found.batch_size, found.sequence_length, found.train_every, found.updates) == (16, 50, 5, 1)
    assert (found.warmup_steps, found.num_envs, found.noise) == (1000, 1, 0.0)


def test_published_settings_of_dreamer_v3_of_2023():
    """danijar/dreamerv3, commit 423291a, dreamerv3/configs.yaml: defaults and dmc_proprio. The pattern for layers and units
    there does not match those of encoder and decoder."""
    found = algorithms.get("dreamer").presets["v3-2023"].config
    model, agent = found.model, found.agent
    assert (model.core, model.deter, model.hidden, model.groups, model.classes) == ("gru", 512, 512, 32, 32)
    assert (model.mixing, model.free_nats, model.floor, model.dyn_scale, model.rep_scale) == (0.01, 1.0, "each", 0.5, 0.1)
    assert (model.units, model.head_layers, model.coder.units, model.coder.layers) == (512, 2, 1024, 5)
    assert (agent.units, agent.layers, agent.horizon, agent.discount, agent.mix) == (512, 2, 15, 0.997, 0.95)
    assert (agent.gradient, agent.baseline, agent.policy, agent.entropy) == ("pathwise", True, "normal", 3e-4)
    assert (agent.target, agent.target_rate, agent.target_every, agent.replay_value) == ("regularizer", 0.02, 1, 0.0)
    rates = found.learning_rate, agent.learning_rate_scale * found.learning_rate
    assert rates == pytest.approx((1e-4, 3e-5))
    assert (found.optimizer.rule, found.optimizer.epsilon, found.optimizer.norm_clip) == ("adam", 1e-8, 1000.0)
    ratio = found.updates * found.batch_size * found.sequence_length / (found.train_every * found.num_envs)
    assert (ratio, found.batch_size, found.sequence_length, found.num_envs) == (512, 16, 64, 4)


WITHOUT_BONUS = {"updates": 1, "optimizer.warmup": 0, "agent.gradient": "pathwise"}


def pair():
    """Dreamer, and Plan2Explore whose explorer has the task's reward and no bonus."""
    task, of_explorer = envs.make(TASK), {"intrinsic": 0.0, "extrinsic": 1.0}
    dreamer = algorithms.get("dreamer").make(config(**WITHOUT_BONUS), task)
    return dreamer, algorithms.get("plan2explore").make(config("plan2explore", **WITHOUT_BONUS, **of_explorer), task)


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_an_explorer_begins_and_acts_as_dreamer():
    """With the same random numbers, bit for bit; the task agent begins differently."""

    @jax.jit
    def both(key):
        found = []
        for algorithm in pair():
            state = algorithm.init(key, {})
            policy = algorithm.policy(state, loop.clock_at(STEPS), True)
            found.append((state.learned, policy.act(policy.init(key), jnp.ones(3), key)))
        return found

    (dreamer, acted), (explorer, acted_by) = jax.device_get(both(jax.random.key(1)))
    assert_same((dreamer.model, dreamer.agent, acted), (explorer.model, explorer.explorer, acted_by))
    weights = (of.actor.params["params"]["Dense_0"]["kernel"] for of in (explorer.explorer, explorer.agent))
    assert np.all(np.not_equal(*weights))


@pytest.mark.promises
def test_an_explorer_without_a_bonus_learns_as_dreamer():
    """After one update model, actor, critic and metrics are the same, bit for bit: the networks and the task agent change
    nothing. Later updates of the two programs round differently."""
    found = []
    for algorithm in pair():
        before = jax.jit(algorithm.init)(jax.random.key(1), {})
        after, metrics = jax.jit(algorithm.learn)(loop.clock_at(STEPS), before, transitions())
        found.append(jax.device_get((before.learned, after.learned, metrics)))
    (before, dreamer, metrics), (_, explorer, of_explorer) = found
    assert_same((dreamer.model, dreamer.agent), (explorer.model, explorer.explorer))
    assert_same(metrics, {name: of_explorer[name.replace("agent/", "explorer/")] for name in metrics})
    for part in ("actor", "critic"):
        then, now = (getattr(of.agent, part).params for of in (before, dreamer))
        assert any(jax.tree.leaves(jax.tree.map(lambda a, b: np.any(a != b), then, now)))
