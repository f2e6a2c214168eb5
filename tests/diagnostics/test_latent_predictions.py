"""Open-loop predictions of latent models, with a model whose belief is the observation itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl.core.config import UserError
from jaxmbrl.core.spaces import Box
from jaxmbrl.core.types import Transition, World
from jaxmbrl.diagnostics import latent_predictions, prediction_strip
from jaxmbrl.models.latent import Belief, LatentModel, LatentView

LENGTH = 8


def walk(growth=1.0, shape=(1,)):
    """The model x' = growth x + a of observations x, and episodes of the task x' = x + a with reward x'."""

    def loss(params, window, key):
        deter = window.observation.astype(float).reshape(*window.reward.shape, -1)
        return jnp.zeros(()), (Belief(deter, jnp.stack([0 * deter[..., 0], deter[..., 0]], -1), window.action), {})

    def step(belief, action, key):
        after = belief._replace(deter=params_of["growth"] * belief.deter + action, action=action)
        zeros = jnp.zeros(len(action))
        return after, Transition(belief.deter, action, after.deter[:, 0], after.deter, zeros, zeros)

    params_of = {"growth": growth}
    world = World(reset=None, start=lambda origin, key: origin, observe=lambda belief: belief.deter, step=step)
    model = LatentModel(
        init=None,
        initial=None,
        observe=None,
        acted=None,
        features=lambda belief: belief.deter,
        feature_size=1,
        loss=loss,
        world=lambda params: world,
        decode=lambda params, features: features.reshape(*features.shape[:-1], *shape),
    )
    action = np.random.default_rng(0).normal(size=(4 * LENGTH, 1)).astype(np.float32)
    steps = np.cumsum(action.reshape(4, LENGTH, 1), axis=1)
    before = np.concatenate([np.zeros((4, 1, 1), np.float32), steps[:, :-1]], axis=1)
    ends = np.arange(4 * LENGTH) % LENGTH == LENGTH - 1
    observation, after = before.reshape(-1, 1), steps.reshape(-1, 1)
    rows = Transition(observation, action, after[:, 0], after, np.zeros_like(ends), ends)
    return LatentView(model, {}, Box((1,))), rows


def test_a_perfect_model_predicts_what_was_observed():
    view, rows = walk()
    found = latent_predictions(view, rows, jax.random.key(0), context=3, length=LENGTH, windows=9)
    np.testing.assert_array_equal(found.starts, [0, 8, 16, 24])
    assert found.observed.shape == found.reconstructed.shape == (4, LENGTH + 1, 1)
    np.testing.assert_array_equal(found.observed[:, 0], rows.observation[found.starts])
    np.testing.assert_array_equal(found.observed[:, 1:, 0], rows.next_observation.reshape(4, LENGTH))
    np.testing.assert_array_equal(found.reconstructed, found.observed)
    np.testing.assert_allclose(found.predicted, found.observed[:, 3:], atol=1e-5)
    np.testing.assert_allclose(found.predicted_reward, found.reward, atol=1e-5)
    np.testing.assert_array_equal(found.reward, rows.reward.reshape(4, LENGTH)[:, 2:])
    np.testing.assert_allclose(found.spread, [found.observed.std(), 0], rtol=1e-5)
    assert found.active() == 1


def test_predictions_see_the_actions_alone_after_the_context():
    view, rows = walk(growth=2.0)
    found = latent_predictions(view, rows, jax.random.key(0), context=2, length=4, windows=1)
    x, expected = found.observed[0, 1, 0], []
    for action in rows.action[found.starts[0] + 1 : found.starts[0] + 4, 0]:
        x = 2 * x + action
        expected.append(x)
    np.testing.assert_allclose(found.predicted[0, :, 0], expected, rtol=1e-5)
    np.testing.assert_array_equal(found.reconstructed, found.observed)


def test_a_strip_has_three_rows_of_images():
    view, rows = walk(shape=(1, 1, 1))
    images = rows._replace(
        observation=np.full((4 * LENGTH, 1, 1, 1), 100, np.uint8),
        next_observation=np.full((4 * LENGTH, 1, 1, 1), 100, np.uint8),
    )
    found = latent_predictions(view, images._replace(action=0 * rows.action), jax.random.key(0), context=3)
    strip = prediction_strip(found._replace(predicted=found.predicted + 300))
    assert strip.shape == (3 * 64 + 2 * 4, 9 * 64 + 8 * 4, 3) and strip.dtype == np.uint8
    assert (strip[:64, :64] == 100).all() and (strip[-64:, :64] == 100).all() and (strip[-64:, -64:] == 255).all()
    assert (strip[:64, 3 * 68 - 4 : 3 * 68] == 0).all() and (strip[:64, 64:68] == 255).all()
    with pytest.raises(UserError, match="observations must be images"):
        prediction_strip(latent_predictions(*walk(), jax.random.key(0)))


def test_episodes_that_are_shorter_than_the_context_are_refused():
    view, rows = walk()
    with pytest.raises(UserError, match="context must be at most 8, the longest recorded sequence, got 9"):
        latent_predictions(view, rows, jax.random.key(0), context=9)
    with pytest.raises(UserError, match="at least 1, got 0, 50 and 4"):
        latent_predictions(view, rows, jax.random.key(0), context=0)
