"""Dreams of a latent model whose belief is the state itself: with the true dynamics the dream is the task."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import call
from PIL import Image

import jaxmbrl
from jaxmbrl import algorithms, envs
from jaxmbrl.core.config import UserError
from jaxmbrl.core.spaces import Box
from jaxmbrl.core.types import Algorithm, Policy, Transition, Views, World
from jaxmbrl.diagnostics.dream import GAP, HEIGHT, dream, film, pictures
from jaxmbrl.envs.base import initial_state, make_task
from jaxmbrl.models.latent import Belief, LatentModel, LatentView

SIDE, LENGTH = 6, 20
IMAGE = Box((SIDE, SIDE, 1), 0.0, 255.0, "uint8")


def picture(column):
    """A bright column, [..., SIDE, SIDE, 1]."""
    lit = jnp.arange(SIDE) == jnp.round(column)[..., None]
    return jnp.broadcast_to(200.0 * lit[..., None, :, None], (*jnp.shape(column), SIDE, SIDE, 1))


class Columns:
    """The action -1 .. 1 moves the bright column; the reward is the column, and an episode ends beyond the right edge."""

    action_size = 1
    dt = 0.1

    def reset(self, rng):
        column = jnp.floor(jax.random.uniform(rng, (), maxval=2.0))
        return initial_state(column, picture(column).astype(jnp.uint8))

    def step(self, state, action):
        column = jnp.maximum(state.pipeline_state + jnp.round(action[0]), 0.0)
        done = (column >= SIDE).astype(float)
        obs = picture(column).astype(jnp.uint8)
        return state.replace(pipeline_state=column, obs=obs, reward=column, done=done)


def policy():
    """To the right, but to the left at the first sight of column 3. Its memory is whether it has seen it."""

    def act(memory, image, key):
        column = jnp.argmax(image[0, :, 0])
        back = (column == 3) & (memory == 0)
        return jnp.where(back, -1.0, 1.0)[None], (), jnp.where(back, 1, memory)

    return Policy(lambda key: jnp.zeros((), jnp.int32), act)


def latent(slip=0.0):
    """The true dynamics, or with a `slip` that is added to each step; its belief is the column."""

    def observe(params, belief, image, key):
        return belief._replace(deter=jnp.argmax(image[0, :, 0]).astype(float)[None])

    def step(belief, action, key):
        column = jnp.maximum(belief.deter + jnp.round(action) + slip, 0.0)
        ends = (column[:, 0] >= SIDE) * 1.0
        return belief._replace(deter=column), Transition(belief.deter, action, column[:, 0], column, ends, 0 * ends)

    return LatentModel(
        init=None,
        initial=lambda: Belief(jnp.zeros(1), jnp.zeros(1), jnp.zeros(1)),
        observe=observe,
        acted=lambda belief, action: belief._replace(action=action),
        features=lambda belief: belief.deter,
        feature_size=1,
        loss=None,
        world=lambda params: World(None, lambda origin, key: origin, lambda belief: belief.deter, step),
        decode=lambda params, features: picture(features[..., 0]),
    )


def method(model=None):
    view = None if model is None else LatentView(model, {}, Box((1,)))
    return Algorithm(None, lambda state, clock, explore: policy(), None, 1, views=lambda state: Views(latent=view))


@pytest.fixture(scope="module")
def columns():
    return make_task("columns", Columns(), LENGTH, observation=IMAGE)


@pytest.mark.parametrize("context", [1, 3])
def test_a_true_model_dreams_the_task(columns, context):
    """Also the policy's memory goes on in the dream: it turns back once."""
    found = dream(method(latent()), columns, jnp.zeros(()), context)
    np.testing.assert_array_equal(found.observed, found.imagined)
    path = found.observed[:-1, 0, :, 0].argmax(axis=1)
    assert list(path).count(3) == 2 and path[-1] == SIDE - 1 and not found.observed[-1].any()
    rewards = np.append(path[1:], SIDE)
    assert found.earned == found.expected == rewards[context - 1 :].sum()


def test_a_wrong_model_is_seen_after_the_context(columns):
    found = dream(method(latent(slip=1.0)), columns, jnp.zeros(()), 2)
    np.testing.assert_array_equal(found.observed[:2], found.imagined[:2])
    assert len(found.imagined) < len(found.observed) and (found.observed[2] != found.imagined[2]).any()


def test_pictures_hold_the_last_image_and_mark_the_context(columns):
    found = dream(method(latent(slip=1.0)), columns, jnp.zeros(()), 2)
    made = pictures(found, np.arange(len(found.observed)))
    height, side = HEIGHT, HEIGHT
    assert all(image.shape == (height, 2 * side + GAP, 3) for image in made)
    lines = [int(image[0, side]) if image.ndim == 2 else int(image[0, side, 0]) for image in made]
    assert lines == [255, 255] + [0] * (len(made) - 2)
    np.testing.assert_array_equal(made[0][:, :side], made[0][:, side + GAP :])
    np.testing.assert_array_equal(made[-1][:, side + GAP :], made[len(found.imagined) - 1][:, side + GAP :])


def test_what_cannot_be_dreamt(columns):
    for algorithm, task, context, message in (
        (method(), columns, 5, "a method with a latent model and a decoder, such as dreamer or world-models"),
        (method(latent()), columns, 0, "context must be from 1 to 19, got 0"),
        (method(latent()), columns, 15, "the episode has [78] steps, and the context 15: give a smaller context"),
        (method(latent()), envs.make("pendulum"), 5, "observations of pendulum are"),
    ):
        with pytest.raises(UserError, match=message):
            dream(algorithm, task, jnp.zeros(()), context)


@pytest.mark.slow
def test_a_run_is_filmed(tmp_path):
    run, tiny = tmp_path / "run", algorithms.get("world-models").tiny
    jaxmbrl.train("world-models", "pixels/16,grey/pendulum", settings=tiny, steps=200, seeds=2, out=run)
    code, out, err = call("evaluate", str(run), "--episodes", "1", "--dream")
    assert code == 0 and not err
    assert "on the left the task" in out
    with Image.open(run / "dream.gif") as made:
        assert made.n_frames > 3 and made.size == (2 * HEIGHT + GAP, HEIGHT)
    with pytest.raises(UserError, match="a video is written as a GIF: name it here"):
        film(run, tmp_path / "here.mp4")
