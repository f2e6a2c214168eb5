"""Disagreement of one-step predictions: its size by hand, its loss by a loop, and the reward of a World."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxmbrl.core.spaces import Box
from jaxmbrl.core.types import Transition
from jaxmbrl.models.latent import CoderConfig, OneStepConfig, RSSMConfig, by_successor, one_step, rssm

BOX = Box((2,), -1.0, 1.0)
MODEL = rssm.make(
    RSSMConfig(deter=4, blocks=2, hidden=5, groups=2, classes=3, units=5, bins=5, coder=CoderConfig(units=5)),
    Box((3,)),
    BOX,
)
CONFIG = OneStepConfig(heads=3, units=4, layers=1)
B, L = 2, 3


def test_predictions_1_2_and_4():
    """Population variance 1.555556, standard deviation 1.247219; equal predictions give exactly 0, and finite gradients."""
    predictions = jnp.array([[1.0, 0.1], [2.0, 0.1], [4.0, 0.1]])
    for measure, due in (("variance", 1.555556), ("deviation", 1.247219)):
        found, slope = jax.value_and_grad(one_step.spread)(predictions, measure)
        np.testing.assert_allclose(found, due / 2, atol=5e-7)
        assert np.isfinite(slope).all() and not slope[:, 1].any()
        same = jnp.full((3, 5, 2), 0.1).at[:, 1].set(0.7)
        assert one_step.spread(same, measure).tolist() == [0.0] * 5


def window():
    rng = np.random.default_rng(0)
    ends, is_first = np.zeros((B, L), bool), np.zeros((B, L), bool)
    ends[0, 0] = is_first[:, 0] = is_first[0, 1] = True
    shown = rng.normal(size=(2, B, L, 3))
    rows = Transition(shown[0], rng.uniform(-1, 1, (B, L, 2)), rng.normal(size=(B, L)), shown[1], ends, ends & False)
    return jax.jit(lambda given: by_successor(*given, BOX))((rows, is_first))


def test_the_loss_leaves_out_steps_between_episodes_and_the_bonus_replaces_the_reward(x64):
    networks, given = one_step.make(CONFIG, MODEL, BOX), window()

    @jax.jit
    def looked(key):
        params, members = MODEL.init(key), networks.init(key)
        _, (beliefs, _) = MODEL.loss(params, given, key)

        def loss(members, beliefs):
            return networks.loss(members, beliefs, given)

        value, (slope, of_beliefs) = jax.value_and_grad(loss, argnums=(0, 1))(members, beliefs)
        errors = []
        for k in range(CONFIG.heads):
            alone = jax.tree.map(lambda x, k=k: jnp.stack([x[k]] * 2), members)
            pair = one_step.make(dataclasses.replace(CONFIG, heads=2), MODEL, BOX)
            errors.append(pair.loss(alone, beliefs, given) / 2)
        # The action before a first position leads to nothing; that of the other window does.
        changed = [networks.loss(members, beliefs, given._replace(action=given.action.at[b, 2].add(1.0))) for b in range(B)]
        world, action = MODEL.world(params), jnp.array([0.2, -0.4])
        origin = jax.tree.map(lambda x: x[:, 0], beliefs)
        curious = one_step.curious(world, networks, members, BOX, 2.0, 0.5)
        own, made = world.step(origin, action, key)[1], curious.step(origin, action, key)[1]
        bonus = networks.disagreement(members, MODEL.features(origin), jnp.stack([action] * B))
        equal = jax.tree.map(lambda x: jnp.stack([x[0]] * CONFIG.heads), members)
        nothing = one_step.curious(world, networks, equal, BOX, 2.0, 0.0).step(origin, action, key)[1].reward

        def paid(actions):
            found = networks.disagreement(members, jnp.stack([MODEL.features(origin)[0]] * 3), actions)
            return jnp.sum(found), found

        # At the bounds, and beyond them in both directions.
        at = jax.grad(paid, has_aux=True)(jnp.array([[1.0, -1.0], [4.0, -1.0], [1.0, -2.0]]))
        return value, slope, of_beliefs, errors, own, made, bonus, nothing, given.first, changed, at

    *found, (slopes, paid) = jax.device_get(looked(jax.random.key(0)))
    value, slope, of_beliefs, errors, own, made, bonus, nothing, first, changed = found
    np.testing.assert_allclose(value, np.sum(errors), rtol=1e-9)
    assert first[0].tolist() == [True, False, True, False]
    assert changed[0] == value != changed[1]
    assert all(np.any(x) for x in jax.tree.leaves(slope)) and not any(np.any(x) for x in jax.tree.leaves(of_beliefs))
    np.testing.assert_allclose(made.reward, 2.0 * bonus + 0.5 * own.reward, rtol=1e-12)
    assert (bonus > 0).all() and nothing.tolist() == [0.0] * B
    np.testing.assert_array_equal(made.next_observation, own.next_observation)
    # An action beyond the bounds is paid as the one at the bound; its gradient is divided by its size, and is not 0.
    np.testing.assert_allclose(paid, [paid[0]] * 3, rtol=1e-12)
    np.testing.assert_allclose(slopes, slopes[0] / [[1, 1], [4, 1], [1, 2]], rtol=1e-9)
    assert slopes.all()
