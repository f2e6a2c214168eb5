"""AMPO: without adaptation MBPO bit for bit, what is adapted and where it is used, and its published settings."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl import algorithms, envs
from jaxmbrl.agents.actor_critic.sac import SACConfig
from jaxmbrl.algorithms.dyna import ampo, mbpo
from jaxmbrl.algorithms.shared import RolloutLength
from jaxmbrl.core.types import Average, Clock, Transition, World
from jaxmbrl.models import adaptation
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


def doubling(made):
    """An ensemble whose fit doubles all layers, and whose world's reward is a weight of the first layer."""

    def fit(state, buffer, key):
        params = jax.tree.map(lambda x: 2 * x, state.members.params)
        return state._replace(members=state.members._replace(params=params)), {}

    def world(state):
        weight = state.members.params.network["params"]["Dense_0"]["kernel"][0, 0, 0]

        def step(observation, action, key):
            none = jnp.zeros(len(observation), bool)
            reward = jnp.full(len(observation), weight)
            return observation, Transition(observation, action, reward, observation, none, none)

        return World(reset=None, start=lambda origin, key: origin, observe=lambda x: x, step=step)

    return made._replace(fit=fit, world=world)


def shifting(config, layout, state, model, real, imagined, key):
    """An adaptation that makes layers + 1 for imagined rows, and tells the numbers and the means of both buffers' rows."""
    layers = adaptation.layers_of(layout, model)
    moved = tuple(jax.tree.map(lambda x, by=by: x + by, layers) for by in (-1, 1))
    known = jnp.arange(imagined.data.reward.shape[0]) < imagined.size
    seen = jnp.sum(jnp.where(known, imagined.data.reward, 0)) / jnp.maximum(jnp.sum(known), 1)
    found = {"adapt/real": real.size, "adapt/imagined": imagined.size, "adapt/reward": seen}
    features = state.features._replace(params=moved)
    return state._replace(features=features), {name: Average.of(x) for name, x in found.items()}


def test_a_fit_starts_from_the_adapted_layers_which_never_imagine(monkeypatch):
    """The adaptation is that of the fitted layers to the rows that they have just imagined, until `adapts_until`. The last
    layer stays that of the fit."""
    made = ampo.shared.ensemble_for
    monkeypatch.setattr(ampo.shared, "ensemble_for", lambda *given: doubling(made(*given)))
    monkeypatch.setattr(adaptation, "adapt", shifting)
    config = ampo.Config(**COMMON, adaptation=AdaptationConfig(steps=1), adapts_until=3)
    algorithm = ampo.make(config, envs.make("pendulum"))

    @jax.jit
    def learn(call, state, given):
        after, found = algorithm.learn(Clock(2 * call), state, given)
        # The agent does not matter here, and stays as it is.
        return after._replace(agent=state.agent), {name: x for name, x in found.items() if "adapt/" in name}

    state = jax.jit(algorithm.init)(jax.random.key(0), {})

    def network(state):
        layers = dict(jax.device_get(state.model.members.params.network["params"]))
        return layers.pop("Dense_1"), layers

    last, layers = network(state)
    same = functools.partial(jax.tree.map, functools.partial(np.testing.assert_allclose, rtol=1e-6))
    state, _ = learn(1, state, rows(1))
    for call in (2, 3, 4):
        state, found = jax.device_get(learn(call, state, rows(call)))
        last, layers = jax.tree.map(lambda x: 2 * x, (last, layers))
        same(network(state), (last, layers))
        weight = layers["Dense_0"]["kernel"][0, 0, 0]
        np.testing.assert_allclose(state.imagined.buffer.data.reward, np.full(6, weight), rtol=1e-6)
        if call == 4:
            same(state.adaptation.features.params, (layers, layers))
            assert float(found["adapt/real"].weight) == 0
        else:
            before, layers = (jax.tree.map(lambda x, by=by: x + by, layers) for by in (-1, 1))
            same(state.adaptation.features.params, (before, layers))
            told = {name: float(found[f"adapt/{name}"].total) for name in ("real", "imagined", "reward")}
            assert told == pytest.approx({"real": 2 * call, "imagined": 6, "reward": weight}, rel=1e-6)


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
