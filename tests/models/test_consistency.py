"""The deterministic latent model against a loop over its parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl.core.spaces import Box
from jaxmbrl.models.latent import CoderConfig, ConsistencyConfig, Window, consistency, repeated

OBSERVED, BOX, B, T = Box((3,)), Box((2,), -1.0, 1.0), 2, 4
TINY = ConsistencyConfig(size=4, group=2, units=5, layers=1, coder=CoderConfig(units=5, symlog=False), decay=0.5)


def window():
    """Three steps of each of two windows; the first's episode ends with its second step."""
    rng = np.random.default_rng(0)
    ends = np.zeros((B, T), bool)
    ends[0, 2] = True
    first = np.zeros((B, T), bool)
    first[:, 0] = first[0, 3] = True
    shown = rng.normal(size=(B, T, 3)), rng.uniform(-1, 1, (B, T, 2)), rng.normal(size=(B, T))
    return jax.tree.map(jnp.asarray, Window(*shown, ends, first, ends, np.ones((B, T))))


def test_the_loss_is_that_of_a_loop_and_stops_at_the_end_of_an_episode(x64):
    model, parts = consistency.make(TINY, OBSERVED, BOX), consistency.parts(TINY, OBSERVED, BOX)
    given = window()

    @jax.jit
    def looked(key):
        params = model.init(key)
        loss, (beliefs, found) = model.loss(params, given, key)
        errors = []
        for b in range(B):
            z = parts.code(params, given.observation[b, 0])
            for t in range(T - 1):
                action, at = given.action[b, t + 1], given.observation[b, t]
                after, target = parts.step(params, z, action), parts.code(params, given.observation[b, t + 1])
                logit = parts.goes_on(params, after)
                errors.append(
                    (
                        jnp.sum((after - target) ** 2),
                        (parts.reward(params, z, action) - given.reward[b, t + 1]) ** 2,
                        jnp.sum((parts.coder.decode(params["decoder"], z) - at) ** 2),
                        jnp.logaddexp(0.0, jnp.where(given.terminated[b, t + 1], logit, -logit)),
                    )
                )
                z = after
        return loss, beliefs, found, jnp.array(errors).reshape(B, T - 1, 4)

    loss, beliefs, found, errors = jax.device_get(looked(jax.random.key(0)))
    weights = np.array([[1, 0.5, 0], [1, 0.5, 0.25]])
    due = (weights[..., None] * errors).sum((0, 1)) / weights.sum()
    names = ("consistency", "reward", "decoder", "continuation")
    np.testing.assert_allclose([found[f"model/{name}"].total for name in names], due, rtol=1e-9)
    np.testing.assert_allclose(loss, due.sum(), rtol=1e-9)
    # Each group of a code sums to 1, so it cannot shrink.
    np.testing.assert_allclose(beliefs.stoch.reshape(B, T, 2, 2).sum(-1), 1, rtol=1e-12)
    assert beliefs.deter.shape == (B, T, 0)


def test_the_world_takes_the_same_steps(x64):
    model, parts = consistency.make(TINY, OBSERVED, BOX), consistency.parts(TINY, OBSERVED, BOX)
    observation, action = jnp.ones(3), jnp.array([0.3, -0.6])

    @jax.jit
    def looked(key):
        params = model.init(key)
        world = model.world(params)
        belief = model.observe(params, model.initial(), observation, key)
        carry, made = world.step(world.start(repeated(belief, 3), key), action, key)
        z = parts.code(params, observation)
        after = parts.step(params, z, action)
        return made, carry, z, after, parts.reward(params, z, action), jax.nn.sigmoid(-parts.goes_on(params, after))

    made, carry, z, after, reward, ended = jax.device_get(looked(jax.random.key(1)))
    for found, due in (
        (made.observation, z),
        (made.next_observation, after),
        (made.reward, reward),
        (made.terminated, ended),
    ):
        np.testing.assert_allclose(found, np.stack([due] * 3), rtol=1e-9)
    np.testing.assert_array_equal(carry.action, [[0.3, -0.6]] * 3)


@pytest.mark.parametrize(("x", "expected"), [((1.0, *[0.0] * 7), (0.279708, *[0.102899] * 7))])
def test_simnorm_by_hand(x, expected):
    np.testing.assert_allclose(consistency.simnorm(jnp.array(x), 8), expected, atol=5e-7)
