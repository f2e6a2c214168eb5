"""AMPO's adaptation: both distances by hand, the features as the network's last hidden layer, and that it lowers them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl.core.config import UserError, check
from jaxmbrl.core.types import Transition
from jaxmbrl.data import replay
from jaxmbrl.models import EnsembleConfig, adaptation, ensemble
from jaxmbrl.models.adaptation import AdaptationConfig
from jaxmbrl.models.ensemble import network

TINY = EnsembleConfig(members=2, elites=2, hidden=(6, 5))
CONFIG = AdaptationConfig(steps=40, critic_steps=5, hidden=(16,), batch_size=64, learning_rate=3e-3)
LAYOUT = ensemble.layout_of(TINY, 2, 1)


def test_mmd_by_hand():
    x, y = jnp.array([[0.0], [1.0]]), jnp.array([[1.0], [3.0]])
    assert float(adaptation.squared_mmd(x, y, (1.0,))) == pytest.approx(-0.134622, abs=1e-6)
    assert float(adaptation.squared_mmd(x, y, (1.0,), biased=True)) == pytest.approx(0.494446, abs=1e-6)
    assert float(adaptation.squared_mmd(x, x, (1.0,))) == pytest.approx(-0.393469, abs=1e-6)
    assert float(adaptation.squared_mmd(x, x, (1.0,), biased=True)) == 0
    both = sum(adaptation.squared_mmd(x, y, (sigma,)) for sigma in (0.5, 2.0))
    assert float(adaptation.squared_mmd(x, y, (0.5, 2.0))) == pytest.approx(float(both), rel=1e-5)


@pytest.mark.parametrize(("apart", "length", "value"), [((1.0,), 1.05, 1.025), ((3.0, 4.0), 1.25, 5.625)])
def test_the_best_linear_critic_by_hand(apart, length, value):
    """Its slope has the length 1 + d / 20 and the direction of the means' difference d: 1.05 d - 10 (.05)^2 for d = 1."""
    config = dataclasses.replace(CONFIG, hidden=(), weight_decay=0.0)
    rng = np.random.default_rng(0)
    imagined = jnp.asarray(rng.normal(size=(8, len(apart))), jnp.float32)
    real = imagined[::-1] + jnp.array(apart)
    slope = length * np.array(apart) / np.linalg.norm(apart)
    params = {"params": {"kernel": jnp.asarray(slope[:, None], jnp.float32)}}
    loss = lambda params: adaptation.critic_loss(config, params, real, imagined, jnp.linspace(0, 1, 8))[0]  # noqa: E731
    found, gradient = jax.value_and_grad(loss)(params)
    assert float(found) == pytest.approx(-value, rel=1e-5)
    assert all(float(jnp.abs(leaf).max()) < 1e-4 for leaf in jax.tree.leaves(gradient))


def rows(shift, count=200):
    rng = np.random.default_rng(1)
    observation = jnp.asarray(rng.normal(size=(count, 2)) + shift, jnp.float32)
    action, none = jnp.asarray(rng.uniform(-1, 1, (count, 1)), jnp.float32), jnp.zeros(count, bool)
    return replay.of_rows(Transition(observation, action, jnp.zeros(count), observation, none, none))


@functools.cache
def adapting(distance):
    """The program of an adaptation: (real, imagined) -> (model, states before and after, metrics)."""
    config = dataclasses.replace(CONFIG, distance=distance)

    @jax.jit
    def run(real, imagined):
        model = network.init_state(LAYOUT, jax.random.key(0), {})
        first = adaptation.init(config, LAYOUT, model, jax.random.key(1))
        state, found = adaptation.adapt(config, LAYOUT, first, model, real, imagined, jax.random.key(2))
        return model, first, state, found

    return run


@functools.cache
def adapted(distance, shift):
    """(model, state after the adaptation, metrics)."""
    model, _, state, found = adapting(distance)(rows(0.0), rows(shift))
    return model, state, {name: value.total for name, value in found.items()}


@pytest.mark.parametrize("distance", ["wasserstein", "mmd"])
def test_it_lowers_the_distance(distance):
    model, state, found = adapted(distance, 1.5)
    assert found["adapt/distance_last"] < 0.7 * found["adapt/distance_first"]
    moved = [float(jnp.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, state.features.params), strict=True)]
    assert min(moved) > 0
    # Only the next fit starts from it.
    start = adaptation.with_start(LAYOUT, state, model)
    jax.tree.map(np.testing.assert_array_equal, adaptation.layers_of(LAYOUT, start), state.features.params[1])
    last = [m.members.params.network["params"]["Dense_2"] for m in (model, start)]
    jax.tree.map(np.testing.assert_array_equal, *last)


@pytest.mark.parametrize("distance", ["wasserstein", "mmd"])
def test_without_imagined_rows_nothing_is_adapted(distance):
    _, first, state, found = adapting(distance)(rows(0.0), replay.empty(rows(1.5)))
    jax.tree.map(np.testing.assert_array_equal, state, first)
    assert [float(value.weight) for value in found.values()] == [0.0, 0.0]


def test_rows_of_the_same_distribution_change_nothing_by_mmd():
    """The unbiased estimate is around 0, and its root has no gradient below the clamp."""
    real = adaptation.features(LAYOUT, jax.tree.map(lambda leaf: leaf[0], layers()), jnp.ones((4, 3)))
    assert float(adaptation.squared_mmd(real, real, CONFIG.bandwidths)) == pytest.approx(0.0, abs=1e-5)
    drawn = jnp.asarray(np.random.default_rng(3).normal(size=(6, 3)), jnp.float32)

    def root(layers):
        found = adaptation.features(LAYOUT, layers, drawn)
        return jnp.sqrt(jnp.maximum(adaptation.squared_mmd(found, found, CONFIG.bandwidths), adaptation.LEAST_SQUARE))

    gradient = jax.grad(root)(jax.tree.map(lambda leaf: leaf[0], layers()))
    assert all(not leaf.any() for leaf in jax.tree.leaves(gradient))


def layers():
    return adaptation.layers_of(LAYOUT, network.init_state(LAYOUT, jax.random.key(0), {}))


def test_features_are_the_last_hidden_layer():
    model, x = network.init_state(LAYOUT, jax.random.key(0), {}), jnp.ones((2, 4, 3))
    output = network.forward(LAYOUT, model.members.params, x)
    found = jax.vmap(lambda layers, x: adaptation.features(LAYOUT, layers, x))(layers(), x)
    assert found.shape == (2, 4, 5)
    last = model.members.params.network["params"]["Dense_2"]
    mean = jnp.einsum("ebf,efd->ebd", found, last["kernel"])[..., :4] + last["bias"][:, None, :4]
    # Reward and termination are learned: D = 3 of observation and reward, the first half of the outputs.
    np.testing.assert_allclose(mean[..., : output.mean.shape[-1]], output.mean, rtol=1e-5, atol=1e-6)


def test_norms_are_refused():
    layout = ensemble.layout_of(dataclasses.replace(TINY, norms=(1e-5, 1e-5)), 2, 1)
    with pytest.raises(UserError, match=r"ensemble\.norms must be empty"):
        adaptation.init(CONFIG, layout, network.init_state(layout, jax.random.key(0), {}), jax.random.key(1))


def test_what_cannot_be_adapted_is_refused():
    layout = ensemble.layout_of(dataclasses.replace(TINY, hidden=(), weight_decay=()), 2, 1)
    with pytest.raises(UserError, match=r"ensemble\.hidden must not be empty"):
        adaptation.init(CONFIG, layout, network.init_state(layout, jax.random.key(0), {}), jax.random.key(1))
    with pytest.raises(UserError, match="batch_size must be at least 2 for mmd"):
        check(dataclasses.replace(CONFIG, distance="mmd", batch_size=1))
