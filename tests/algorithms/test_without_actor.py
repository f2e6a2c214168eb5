"""QT-Opt and NAF as methods: when they update, how they explore, their presets."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl import algorithms, envs
from jaxmbrl.agents.naf import NAFConfig
from jaxmbrl.agents.qt_opt import QTOptConfig
from jaxmbrl.algorithms.model_free import naf, qt_opt
from jaxmbrl.core.config import UserError, check

from .test_sac import clock, rows

SIZES = {"batch_size": 4, "updates_per_step": 3, "warmup_steps": 10, "replay_capacity": 500, "num_envs": 2}
TINY = {
    "qt-opt": (qt_opt, qt_opt.Config(agent=QTOptConfig(hidden=(8,), samples=4, elites=2, polyak=0.5), **SIZES)),
    "naf": (naf, naf.Config(agent=NAFConfig(hidden=(8,), polyak=0.5), **SIZES)),
}


@pytest.mark.parametrize("name", TINY)
def test_updates_begin_after_the_warmup_and_the_target_moves_at_each(name):
    module, config = TINY[name]
    algorithm = module.make(config, envs.make("pendulum"))
    learn, state = jax.jit(algorithm.learn), jax.jit(algorithm.init)(jax.random.key(0), {})
    for call in range(1, 7):
        if call == 6:
            assert learn._cache_size() == 1
            # A critic that stays where it is, and a target that begins at zero, count the moves of the target.
            critic = state.agent.critic
            params = jax.device_get(critic.params)
            still = critic._replace(learning_rate=np.zeros((), np.float32), target=jax.tree.map(np.zeros_like, params))
            state = state._replace(agent=state.agent._replace(critic=still))
        state, metrics = learn(clock(2 * call), state, rows(call, 2))
        assert int(state.agent.critic.moments.count) == (0 if call < 5 else 6 * (call - 4))
        assert float(metrics["agent/critic_loss"].weight) == (0 if call < 5 else 6)
    assert int(state.experience.own.size) == 12
    jax.tree.map(lambda t, p: np.testing.assert_allclose(t, (1 - 0.5**6) * p, rtol=1e-5), state.agent.critic.target, params)


@pytest.mark.parametrize("name", TINY)
def test_random_actions_in_the_warmup_then_noise(name):
    module, config = TINY[name]
    algorithm = module.make(dataclasses.replace(config, warmup_steps=11), envs.make("pendulum"))
    state = algorithm.init(jax.random.key(0), {})

    @jax.jit
    def acted(clock):
        observation = jnp.ones(3)
        policies = [algorithm.policy(state, clock, explore) for explore in (False, True)]
        keys = jax.random.split(jax.random.key(1), 1000)
        return [jax.vmap(lambda key, p=policy: p.act((), observation, key)[0])(keys) for policy in policies]

    greedy, warm = acted(clock(10))
    _, noisy = acted(clock(11))
    assert np.ptp(greedy) == 0
    # Of a uniform sample of [-1, 1]; of noise with standard deviation 0.2 about one action.
    assert np.std(warm) == pytest.approx(1 / np.sqrt(3), abs=0.05)
    assert np.std(noisy) < 0.45


@pytest.mark.parametrize(("method", "name"), [(m, name) for m in TINY for name in algorithms.get(m).presets])
def test_presets_are_sound(method, name):
    preset = algorithms.get(method).presets[name]
    config = check(preset.config)
    assert preset.steps > config.warmup_steps and preset.source
    for task in preset.tasks:
        envs.check_name(task)
        assert algorithms.preset(method, task)[0] == name
    jax.eval_shape(TINY[method][0].make(config, envs.make("pendulum")).init, jax.random.key(0), {})


def test_published_settings():
    """QT-Opt's search, of arXiv 1806.10293 and google-research/tensor2robot; NAF's numbers, of arXiv 1603.00748."""
    search = algorithms.get("qt-opt").presets["default"].config.agent
    assert (search.samples, search.iterations, search.elites, search.critics) == (64, 2, 6, 2)
    config = algorithms.get("naf").presets["default"].config
    assert (config.agent.hidden, config.updates_per_step) == ((200, 200), 5)
    assert config.agent.learning_rate in (1e-4, 1e-3, 1e-2) and config.agent.exploration_noise in (0.1, 0.3, 1.0)


@pytest.mark.parametrize("name", TINY)
def test_discrete_actions_are_refused(name):
    module, config = TINY[name]
    with pytest.raises(UserError, match=f"{name} takes vectors, and the actions of"):
        module.make(config, envs.make("CartPole-v1"))
