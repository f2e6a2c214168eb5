"""Score matching: by hand, targets whose denoiser is known, and a fit."""

import dataclasses

import hand_made
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl.core.config import UserError, from_dict
from jaxmbrl.core.spaces import Box
from jaxmbrl.core.types import Transition
from jaxmbrl.data.replay import of_rows
from jaxmbrl.models import score_matching
from jaxmbrl.models.layout import Layout
from jaxmbrl.models.score_matching import ScoreConfig

CONFIG = ScoreConfig(hidden=(16,), levels=4, draws=8)
LAYOUT = Layout(CONFIG, Box((2,)), Box((1,)), False, False)


def test_a_network_of_zeros_denoises_a_standard_normal():
    """F = 0: D = v / (1 + s^2), whose score is that of N(0, 1 + s^2), and a sample is its noise times known factors."""
    with jax.enable_x64(True):
        params = score_matching.network(LAYOUT).init(jax.random.key(0), jnp.zeros(6))
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), params)
        rng = np.random.default_rng(0)
        inputs, noisy, targets = (jnp.asarray(rng.normal(size=(5, n))) for n in (3, 2, 2))
        level = jnp.array([0.01, 0.1, 1.0, 3.0, 10.0])
        square = 1 + np.asarray(level)[:, None] ** 2
        clean = np.asarray(score_matching.denoised(LAYOUT, params, inputs, noisy, level))
        np.testing.assert_allclose(clean, noisy / square, rtol=1e-12)
        score = (clean - noisy) / (square - 1)
        np.testing.assert_allclose(score, -np.asarray(noisy) / square, rtol=1e-10)
        loss = score_matching.matching_loss(LAYOUT, params, inputs, targets, noisy, level)
        s = np.asarray(level)[:, None]
        # (1 + s^2) / s^2 ((y + s z) / (1 + s^2) - y)^2 = (z - s y)^2 / (1 + s^2)
        np.testing.assert_allclose(loss, np.mean((np.asarray(noisy) - s * targets) ** 2 / square), rtol=1e-12)
        drawn = score_matching.sampled(LAYOUT, params, inputs, noisy)
        levels = np.geomspace(10, 0.01, 4)
        factor = np.sqrt(101)
        for now, following in zip(levels, [*levels[1:], 0.0], strict=True):
            factor *= (1 + following * now) / (1 + now**2)
        np.testing.assert_allclose(drawn, factor * noisy, rtol=1e-12)


@pytest.mark.parametrize(("std", "levels"), [(0.0, 2), (0.1, 40)])
def test_samples_of_known_denoisers(std, levels, monkeypatch):
    """Of a point mass each sample is the point, from any noise and with any levels; of two narrow Gaussians at -1 and 1 the
    noise is mapped to them in order, with their deviation."""

    def exact(layout, params, inputs, noisy, level):
        level = level[..., None]
        total = std**2 + level**2
        at = jnp.full_like(noisy, 0.7) if std == 0 else jnp.tanh(noisy / total)
        return (level**2 * at + std**2 * noisy) / total

    monkeypatch.setattr(score_matching, "denoised", exact)
    layout = dataclasses.replace(LAYOUT, config=dataclasses.replace(CONFIG, levels=levels))
    noise = np.random.default_rng(0).normal(size=(4000, 2)).astype(np.float32)
    drawn = np.asarray(score_matching.sampled(layout, {}, jnp.zeros((4000, 3)), jnp.asarray(noise)))
    if std == 0:
        np.testing.assert_allclose(drawn, 0.7, atol=1e-6)
        return
    np.testing.assert_array_equal(np.sign(drawn), np.sign(noise))
    assert np.abs(drawn).mean() == pytest.approx(1.0, abs=0.02)
    assert (np.abs(drawn) - 1).std() == pytest.approx(std, rel=0.2)


def test_the_most_likely_width_of_kernels():
    """Around samples of N(0, 0.01^2) targets of N(0, 0.2^2) ask for a width of about 0.2; those on it for the least."""
    rng = np.random.default_rng(0)
    drawn = np.zeros((50, 200, 2), np.float32)
    drawn[..., 0] = 0.01 * rng.normal(size=(50, 200))
    targets = np.stack([0.2 * rng.normal(size=200), np.zeros(200)], axis=1).astype(np.float32)
    width = np.asarray(score_matching.best_width(jnp.asarray(drawn), jnp.asarray(targets)))
    assert width[0] == pytest.approx(0.2, rel=0.3) and width[1] == pytest.approx(0.003)


def test_a_fit_finds_both_modes_of_a_coin():
    """Change = 0.5 a + s + 0.1 n: imagined rows, means, variances and kernel densities."""
    rng, rows = np.random.default_rng(0), 1500
    before, action = rng.normal(size=(rows, 1)), rng.uniform(-1, 1, (rows, 1))
    after = before + 0.5 * action + rng.choice([-1.0, 1.0], size=(rows, 1)) + 0.1 * rng.normal(size=(rows, 1))
    none = np.zeros(rows, bool)
    data = Transition(*map(hand_made.floats, (before, action, np.zeros(rows), after)), none, none)
    config = ScoreConfig(hidden=(32, 32), fit_steps=1500, batch_size=64, learning_rate=5e-3, draws=200)
    model = score_matching.make(config, 1, 1, hand_made.nothing, hand_made.alive)

    @jax.jit
    def run(data, key):
        state, found = model.fit(model.init(key, {}), of_rows(data), key)
        observation, action = jnp.zeros((1000, 1)), jnp.full((1000, 1), 0.6)
        step = model.world(state).step(observation, action, key)[1]
        return (
            found,
            step,
            model.predict(state, observation[:2], action[:2]),
            model.mixtures(state, observation[:2], action[:2]),
        )

    found, step, (mean, variance), mixtures = jax.device_get(run(data, jax.random.key(0)))
    assert found["model/loss"].weight == 1500 and mean.shape == variance.shape == (1, 2, 1)
    drawn = step.next_observation[:, 0] - 0.3
    assert np.mean(drawn > 0) == pytest.approx(0.5, abs=0.1)
    # Of the Gaussian with the same moments the share would be 0.39.
    assert np.mean(np.abs(np.abs(drawn) - 1) < 0.4) > 0.9
    np.testing.assert_allclose(mean, 0.3, atol=0.25)
    np.testing.assert_allclose(variance, 1.01, rtol=0.2)
    x = jnp.array([[[-0.7], [0.3], [1.3]]])
    densities = jax.vmap(lambda v: jax.tree.map(lambda leaf: leaf[0, 0], mixtures).log_probability(v))(x[0])
    assert min(densities[0], densities[2]) > densities[1] + 2


def test_what_it_cannot_do_is_told():
    with pytest.raises(UserError, match="does not predict terminations"):
        score_matching.make(CONFIG, 2, 1)
    with pytest.raises(UserError, match=r"largest must be above least \(1\), got 1"):
        from_dict(ScoreConfig, {"least": 1.0, "largest": 1.0})
