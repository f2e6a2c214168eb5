"""AMPO: without adaptation MBPO bit for bit, and its published settings."""

import jax
import numpy as np
import pytest

from jaxmbrl import algorithms, envs
from jaxmbrl.agents.actor_critic.sac import SACConfig
from jaxmbrl.algorithms.dyna import ampo, mbpo
from jaxmbrl.algorithms.shared import RolloutLength
from jaxmbrl.core.types import Clock, Transition
from jaxmbrl.models.adaptation import AdaptationConfig
from jaxmbrl.models.ensemble import EnsembleConfig

COMMON = {
    "agent": SACConfig(hidden=(4,)),
    "ensemble": EnsembleConfig(members=2, elites=2, hidden=(4,), batch_size=4, max_epochs=1),
    "rollout_length": RolloutLength(1, 1),
    "rollout_rows": 6,
    "retain_steps": 2,
    "refit_every": 2,
    "batch_size": 4,
    "updates_per_step": 1,
    "warmup_steps": 4,
    "replay_capacity": 60,
    "num_envs": 2,
}


def rows(seed):
    rng = np.random.default_rng(seed)
    numbers = {name: rng.normal(size=(1, 2, 3)).astype(np.float32) for name in ("observation", "next_observation")}
    action, reward, none = rng.uniform(-1, 1, (1, 2, 1)), rng.normal(size=(1, 2)), np.zeros((1, 2), bool)
    return Transition(
        action=action.astype(np.float32), reward=reward.astype(np.float32), terminated=none, truncated=none, **numbers
    )


def test_without_adaptation_it_is_mbpo_bit_for_bit():
    task = envs.make("pendulum")
    reduced = ampo.make(ampo.Config(**COMMON, adaptation=AdaptationConfig(steps=0)), task)
    plain = mbpo.make(mbpo.Config(**COMMON), task)
    states = []
    for algorithm in (reduced, plain):
        learn = jax.jit(lambda *given, a=algorithm: a.learn(*given)[0])
        state = jax.jit(algorithm.init)(jax.random.key(0), {})
        for call in (1, 2, 3, 4):
            state = learn(Clock(np.asarray(2 * call, np.int32)), state, rows(call))
        states.append(state._replace(key=jax.random.key_data(state.key)))
    for name in ("agent", "model", "replay", "imagined", "key"):
        jax.tree.map(np.testing.assert_array_equal, *(getattr(state, name) for state in states))
    assert int(states[0].model.fits) == 3 and states[0].adaptation == ()


@pytest.mark.parametrize(
    ("name", "steps", "until", "length", "updates"),
    [
        # n, the steps until which it adapts, k, G: RockySJ/ampo, config.
        ("paper-hopper", 400, 40_000, (1, 20, 5000, 45_000), 20),
        ("paper-walker2d", 1000, 80_000, (1, 1), 20),
        ("paper-halfcheetah", 1000, 30_000, (1, 5, 1000, 30_000), 40),
        ("paper-ant", 3000, 60_000, (1, 20, 10_000, 50_000), 20),
        ("mmd-hopper", 1000, 45_000, (1, 15, 5000, 45_000), 20),
        ("mmd-walker2d", 1000, 60_000, (1, 1), 20),
    ],
)
def test_published_settings(name, steps, until, length, updates):
    config = algorithms.get("ampo").presets[name].config
    k = config.rollout_length
    assert (config.adaptation.steps, config.adapts_until, config.updates_per_step) == (steps, until, updates)
    assert (k.first, k.last, k.begins, k.ends)[: len(length)] == length
    assert (config.adaptation.critic_steps, config.adaptation.hidden, config.adaptation.batch_size) == (5, (200, 100), 256)
    assert (config.adaptation.learning_rate, config.adaptation.weight_decay) == (1e-4, 1e-5)
    assert config.adaptation.distance == ("mmd" if "mmd" in name else "wasserstein")
