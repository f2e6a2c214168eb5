"""What a task says about its observation, in the ensemble: angles as sine and cosine, absolute and constant entries."""

import dataclasses

import ensemble_in_numpy as reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hand_made import TINY, alive, blank, floats, layers_of, nothing, ready, table, unlimited

from jaxmbrl.core.config import UserError
from jaxmbrl.core.types import Features, Transition
from jaxmbrl.data.replay import of_rows
from jaxmbrl.envs.mujoco.pets_half_cheetah import encode as cheetahs_features
from jaxmbrl.models import EnsembleConfig, ensemble


def encode(observation):
    """[speed, angle, place] without the speed, and the angle by sine and cosine."""
    angle = observation[..., 1:2]
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle), observation[..., 2:]], axis=-1)


SWING = Features(encode, absolute=(0,), constant=(2,))


def random_state(model, seed=0):
    """Every weight, bias, bound, mean and scale random, so that none of them is special."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0), {})
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.4, leaf.shape).astype(leaf.dtype), state.members.params)
    params = params._replace(low=params.low - 10, high=params.high + 0.5)

    def normaliser(of):
        mean, std = floats(rng.normal(size=of.mean.shape)), floats(rng.uniform(0.5, 2, of.std.shape))
        return unlimited(of)._replace(mean=mean, std=std)

    return state._replace(
        members=state.members._replace(params=params),
        inputs=normaliser(state.inputs),
        targets=normaliser(state.targets),
        termination_weight=floats(3.0),
        elites=np.array([2, 0], np.int32),
    )


def rows(seed, count):
    rng = np.random.default_rng(seed)
    return floats(rng.normal(0, 2, (count, 3))), floats(rng.uniform(-1, 1, (count, 1)))


def test_predictions_and_imagined_steps_as_transcribed():
    with jax.enable_x64(True):
        model = ensemble.make(dataclasses.replace(TINY, propagation="tsinf"), 3, 1, features=SWING)
        state = random_state(model)
        assert state.inputs.mean.shape == (4,) and state.targets.mean.shape == (4,)
        observation, action = rows(1, 5)
        mean, variance = jax.device_get(jax.jit(model.predict)(state, observation, action))
        members, low, high, ends = layers_of(state.members.params)
        _, angle, place = np.asarray(observation).T
        shown = np.stack([np.sin(angle), np.cos(angle), place, np.asarray(action)[:, 0]], axis=1)
        x = (shown - np.asarray(state.inputs.mean)) / np.asarray(state.inputs.std)
        still = np.zeros(5)
        for e, layers in enumerate(members):
            out, log_variance = reference.forward(layers, low, high, x)
            out = out * np.asarray(state.targets.std) + np.asarray(state.targets.mean)
            expected = np.stack([out[:, 0], angle + out[:, 1], place, out[:, 3]], axis=1)
            np.testing.assert_allclose(mean[e], expected, rtol=1e-10)
            spread = np.exp(log_variance) * np.asarray(state.targets.std) ** 2
            np.testing.assert_allclose(variance[e], np.stack([*spread[:, :2].T, still, spread[:, 3]], axis=1), rtol=1e-10)

        @jax.jit
        def step(state, observation, action, key):
            world = model.world(state)
            return jax.vmap(lambda key: world.step(observation, action, key)[1])(jax.random.split(key, 2000))

        drawn = jax.device_get(step(state, observation, action, jax.random.key(1)))
        np.testing.assert_array_equal(drawn.next_observation[..., 2], np.broadcast_to(place, (2000, 5)))
        owner = [2, 0, 2, 0, 2]
        for n, e in enumerate(owner):
            seen = np.concatenate([drawn.next_observation[:, n, :2], drawn.reward[:, n, None]], axis=1)
            due, noise = np.delete(mean[e, n], 2), np.sqrt(np.delete(variance[e, n], 2))
            assert np.abs((seen - due) / noise).max() < 6
            assert np.abs(((seen - due) / noise).mean(axis=0)).max() < 4.5 / np.sqrt(2000)
            after = np.asarray(drawn.next_observation[:, n])
            following = np.stack([np.sin(after[:, 1]), np.cos(after[:, 1]), after[:, 2]], axis=1)
            following = (following - np.asarray(state.inputs.mean)[:3]) / np.asarray(state.inputs.std)[:3]
            odds = np.exp(reference.termination_logit(ends[e], following)) / 3
            np.testing.assert_allclose(drawn.terminated[:, n], odds / (1 + odds), rtol=1e-9)


def test_a_dropped_entry_is_not_seen_and_full_turns_change_nothing():
    with jax.enable_x64(True):
        model = ensemble.make(TINY, 3, 1, features=SWING)
        state = random_state(model)
        observation, action = rows(2, 6)
        predict = jax.jit(model.predict)
        mean, variance = jax.device_get(predict(state, observation, action))
        other = np.concatenate([np.arange(6.0)[:, None] * 100, observation[:, 1:]], axis=1)
        angle = np.array([0.0, 1.0, 0.0])
        for seen, expected in zip(predict(state, other, action), (mean, variance), strict=True):
            np.testing.assert_array_equal(seen, expected)
        turned = jax.device_get(predict(state, observation + 2 * np.pi * angle, action))
        np.testing.assert_allclose(turned[0] - np.array([0, 2 * np.pi, 0, 0]), mean, rtol=0, atol=1e-12)
        np.testing.assert_allclose(turned[1], variance, rtol=1e-12)
        # Which is not so of half a turn, and of the angle as it is.
        half = jax.device_get(predict(state, observation + np.pi * angle, action))
        assert np.abs(half[0] - np.array([0, np.pi, 0, 0]) - mean).max() > 0.01
        plain = ensemble.make(TINY, 3, 1)
        known = random_state(plain)
        of_angles = jax.jit(plain.predict)
        apart = [np.asarray(of_angles(known, observation + turn * angle, action)[0]) for turn in (0, 2 * np.pi)]
        assert np.abs(apart[1] - apart[0] - np.array([0, 2 * np.pi, 0, 0])).max() > 0.01


@pytest.mark.parametrize("propagation", ["ts1", "expectation", "distribution", "moment_matching"])
def test_constant_entries_stay_under_every_propagation(propagation):
    model = ensemble.make(dataclasses.replace(TINY, propagation=propagation), 3, 1, nothing, alive, SWING)
    state = random_state(model)
    observation, action = rows(3, 4)
    same = np.broadcast_to(observation[0], observation.shape)
    step = jax.jit(lambda state, *rest: model.world(state).step(*rest)[1].next_observation)
    after = np.asarray(step(state, same, action, jax.random.key(0)))
    np.testing.assert_array_equal(after[:, 2], same[:, 2])
    assert np.abs(after[:, :2] - same[:, :2]).min() > 1e-4


def test_no_uncertainty_of_a_constant_entry_halts_a_row():
    config = dataclasses.replace(TINY, propagation="expectation", halt_above=0.5)
    told = {}
    for name, features in (("constant", Features(constant=(2,))), ("unknown", None)):
        model, state = blank(config, (3, 1), nothing, alive)
        model = ensemble.make(config, 3, 1, nothing, alive, features)
        bias = np.zeros((3, 6), np.float32)
        bias[:, 2], bias[:, 3:] = [-3.0, 0.0, 3.0], -20.0
        state.members.params.network["params"]["Dense_2"]["bias"] = bias
        params = state.members.params._replace(low=floats([-90.0] * 3), high=floats([90.0] * 3))
        state = state._replace(members=state.members._replace(params=params))
        step = jax.jit(lambda state, *rest, m=model: m.world(state).step(*rest)[1].terminated)
        told[name] = step(state, np.ones((2, 3), np.float32), np.zeros((2, 1), np.float32), jax.random.key(0))
    np.testing.assert_array_equal(told["constant"], [False, False])
    np.testing.assert_array_equal(told["unknown"], [True, True])


@pytest.mark.promises
def test_without_features_the_model_is_the_same_bit_for_bit():
    model, state = ready(TINY)
    given = state, of_rows(table(np.random.default_rng(0), 24), 20), jax.random.key(0)
    plain = jax.jit(model.fit)(*given)
    unused = Features(lambda observation: observation[..., :1], absolute=(1,), constant=(0,))
    for config, features in ((TINY, Features()), (dataclasses.replace(TINY, features=False), unused)):
        found = jax.jit(ensemble.make(config, 2, 1, features=features).fit)(*given)
        jax.tree.map(np.testing.assert_array_equal, found, plain)


@pytest.mark.promises
def test_a_linear_system_is_learned_with_its_speed_absolute():
    """place' = place + speed', speed' = 0.8 push: the old speed enters nothing, and is not shown."""
    rng = np.random.default_rng(0)
    before, push = rng.normal(0, 1, (600, 2)) * [3.0, 1.0], rng.uniform(-1, 1, (600, 1))
    speed = 0.8 * push[:, 0]
    after = np.stack([speed, before[:, 1] + speed], axis=1)
    none = np.zeros(600, bool)
    data = Transition(*(floats(x) for x in (before, push, speed, after)), none, none)
    config = EnsembleConfig(
        members=2, elites=2, hidden=(16,), learning_rate=1e-2, batch_size=64, max_epochs=60, holdout_fraction=0.0
    )
    model = ensemble.make(config, 2, 1, features=Features(lambda x: x[..., 1:], absolute=(0,)))
    fit = jax.jit(lambda key, data: model.fit(model.init(key, {}), of_rows(data, 500), key)[0])
    state = fit(jax.random.key(0), data)
    observed = after[500:]
    mean = np.asarray(jax.jit(model.predict)(state, data.observation[500:], data.action[500:])[0])[..., :2]
    assert np.abs(mean - observed).max() < 0.1
    # The target is the speed itself: by its change, the old speed would have to be seen.
    np.testing.assert_allclose(state.targets.mean[:2], [speed[:500].mean(), speed[:500].mean()], atol=1e-5)
    np.testing.assert_allclose(state.targets.std[:2], [speed[:500].std(), speed[:500].std()], rtol=1e-4)


@pytest.mark.parametrize(
    ("config", "features", "told"),
    [
        ({}, Features(absolute=(3,)), "absolute must name observation dimensions below 3, got 3"),
        ({}, Features(constant=(-1,)), "constant must name observation dimensions below 3, got -1"),
        ({"absolute": (2,)}, Features(constant=(1, 2)), "absolute must not name a dimension that is constant .*, got 2"),
        ({}, Features(absolute=(1,), constant=(1,)), "absolute must not name a dimension that is constant .*, got 1"),
        ({}, Features(lambda x: x[..., 0]), r"encode must map observations \[N, O\] to \[N, F\], got \(3,\)"),
    ],
)
def test_wrong_features_are_refused(config, features, told):
    with pytest.raises(UserError, match=told):
        ensemble.make(EnsembleConfig(**config), 3, 1, features=features)
    ensemble.make(EnsembleConfig(**config, features=False), 3, 1, features=features)


def test_the_cheetahs_features():
    observation = np.random.default_rng(0).normal(0, 2, (2, 5, 18))
    with jax.enable_x64(True):
        seen = np.asarray(cheetahs_features(jnp.asarray(observation)))
    height, pitch = observation[..., 1], observation[..., 2]
    np.testing.assert_allclose(seen[..., :3], np.stack([height, np.sin(pitch), np.cos(pitch)], axis=-1), rtol=1e-15)
    np.testing.assert_array_equal(seen[..., 3:], observation[..., 3:])
