"""Latent models: windows by successor, floors of the divergence, coders, and the recurrent state-space model against loops
over its parts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl import planning
from jaxmbrl.agents.exploration import uniform, with_warmup
from jaxmbrl.core.config import UserError
from jaxmbrl.core.spaces import Box, Discrete
from jaxmbrl.core.types import Policy, Transition
from jaxmbrl.models.imagination import imagine
from jaxmbrl.models.latent import (
    Belief,
    CoderConfig,
    RSSMConfig,
    believing,
    by_successor,
    coders,
    floored,
    latents,
    on_features,
    repeated,
    rssm,
)
from jaxmbrl.models.latent.coders import _patches, _unpatched

VECTORS, BOX, IMAGES = Box((3,)), Box((2,), -1.0, 1.0), Box((16, 8, 3), 0, 255, "uint8")
TINY = RSSMConfig(deter=4, blocks=2, hidden=5, groups=2, classes=3, units=5, bins=5, coder=CoderConfig(units=5))
B, L = 2, 4


def rows(action=BOX):
    """Windows of four rows: an episode of the first terminates at row 1, one of the second reaches its limit at row 2."""
    rng = np.random.default_rng(0)
    terminated, truncated = np.zeros((B, L), bool), np.zeros((B, L), bool)
    terminated[0, 1] = truncated[1, 2] = True
    taken = rng.uniform(-1, 1, (B, L, 2)) if action is BOX else rng.integers(0, 3, (B, L)).astype(np.int32)
    observation, successor, reward = rng.normal(size=(B, L, 3)), rng.normal(size=(B, L, 3)), rng.normal(size=(B, L))
    is_first = np.zeros((B, L), bool)
    is_first[:, 0] = is_first[0, 2] = is_first[1, 3] = True
    return Transition(observation, taken, reward, successor, terminated, truncated), is_first


def window_of(action=BOX):
    return jax.jit(lambda given: by_successor(*given, action))(rows(action))


def test_windows_keep_every_terminal_state_and_leave_out_inner_first_observations(x64):
    (given, _), window = rows(), jax.device_get(window_of())
    np.testing.assert_array_equal(window.observation[:, 0], given.observation[:, 0])
    for name, of in (("observation", "next_observation"), ("action", "action"), ("reward", "reward")):
        np.testing.assert_array_equal(getattr(window, name)[:, 1:], getattr(given, of))
    np.testing.assert_array_equal(window.terminated[:, 1:], given.terminated)
    assert not window.action[:, 0].any() and not window.reward[:, 0].any()
    assert window.known.tolist() == [[0, 1, 1, 1, 1]] * B
    # The row after the end at position 2 (of the first) leads to the first known position of the next episode.
    assert window.first.tolist() == [[True, False, False, True, False], [True, False, False, False, True]]
    assert window.last.tolist() == [[False, False, True, False, False], [False, False, False, True, False]]
    assert window.terminated.tolist() == [[False, False, True, False, False], [False] * 5]


def test_discrete_actions_enter_as_one_hot_vectors(x64):
    (given, _), window = rows(Discrete(3)), window_of(Discrete(3))
    np.testing.assert_array_equal(np.argmax(window.action[:, 1:], -1), given.action)
    np.testing.assert_array_equal(np.sum(window.action, -1), [[0, 1, 1, 1, 1]] * B)


def test_floors_of_the_divergence(x64):
    """Divergences .5 and 5: PlaNet mean max(0, KL - 3) = 1, V1 max(mean, 3) = 3, V2 with 1 free 2.75, V3 mean max(KL, 1)
    = 3."""
    found = [floored(jnp.array([0.5, 5.0]), *how) for how in ((3.0, "each"), (3.0, "mean"), (1.0, "mean"), (1.0, "each"))]
    np.testing.assert_allclose(found, [4, 3, 2.75, 3])
    assert float(jnp.mean(jnp.maximum(0, jnp.array([0.5, 5.0]) - 3))) == float(found[0]) - 3 == 1
    # No gradient below the floor: of each, or of the mean.
    slope = jax.grad(lambda x, how: floored(x, 1.0, how))
    np.testing.assert_allclose(slope(jnp.array([0.5, 5.0]), "each"), [0, 0.5])
    np.testing.assert_allclose(slope(jnp.array([0.5, 5.0]), "mean"), [0.5, 0.5])


def test_divergences_of_latents_are_sums(x64):
    rng = np.random.default_rng(1)
    q, p = rng.normal(size=(2, 4, 6))
    gaussian, one_hot = latents.gaussian(3), latents.categorical(2, 3, 0.01)
    found = jax.jit(lambda q, p: (gaussian.divergence(q, p), one_hot.divergence(q, p)))(q, p)
    (mean, std), (other, wide) = ((x[:, :3], np.log1p(np.exp(x[:, 3:])) + 0.1) for x in (q, p))
    due = np.log(wide / std) + (std**2 + (mean - other) ** 2) / (2 * wide**2) - 0.5
    np.testing.assert_allclose(found[0], due.sum(-1), rtol=1e-12)
    shares = [
        0.99 * np.exp(x) / np.exp(x).sum(-1, keepdims=True) + 0.01 / 3 for x in (q.reshape(4, 2, 3), p.reshape(4, 2, 3))
    ]
    np.testing.assert_allclose(found[1], (shares[0] * np.log(shares[0] / shares[1])).sum((-1, -2)), rtol=1e-12)
    # Far apart, each group adds at most the divergence of opposite choices.
    far = np.array([[1e3, 0, 0, 1e3, 0, 0], [0, 1e3, 0, 0, 1e3, 0.0]])
    most = (0.99 + 0.01 / 3 - 0.01 / 3) * np.log((0.99 + 0.01 / 3) / (0.01 / 3))
    np.testing.assert_allclose(jax.jit(one_hot.divergence)(far[0], far[1]), 2 * most, rtol=1e-9)


def test_vectors_are_compressed_on_the_way_in_and_as_the_target(x64):
    coder = coders.make(CoderConfig(units=4), VECTORS)
    observation = np.array([[0.0, 2.0, -1e3], [1.0, 0.5, 0.1]])

    @jax.jit
    def looked(key):
        encoder, decoder = coder.init_encoder(key), coder.init_decoder(key, 5)
        x, features = jnp.asarray(observation), jnp.ones((2, 5))
        return coder.encode(encoder, x), coder.loss(decoder, features, x), coder.decode(decoder, features), decoder

    code, loss, decoded, _ = jax.device_get(looked(jax.random.key(0)))
    logs = np.sign(observation) * np.log1p(np.abs(observation))
    np.testing.assert_allclose(loss, ((np.sign(decoded) * np.log1p(np.abs(decoded)) - logs) ** 2).sum(-1), rtol=1e-9)
    assert code.shape == (2, 4) and coder.size == 4


@pytest.mark.parametrize("images", ["dense", "patches"])
def test_images_with_any_leading_axes(images):
    coder = coders.make(CoderConfig(units=6, images=images, depth=2), IMAGES)
    image = np.random.default_rng(3).integers(0, 256, (2, 3, 16, 8, 3), dtype=np.uint8)
    features = jnp.asarray(np.random.default_rng(4).normal(size=(2, 3, 5)), float)

    @jax.jit
    def looked(key, image):
        encoder, decoder = coder.init_encoder(key), coder.init_decoder(key, 5)
        return coder.encode(encoder, image), coder.loss(decoder, features, image), coder.decode(decoder, features)

    code, loss, decoded = jax.device_get(looked(jax.random.key(0), image))
    assert code.shape == (2, 3, coder.size) and decoded.shape == image.shape
    assert decoded.min() > 0 and decoded.max() < 255
    np.testing.assert_allclose(loss, (((decoded - image) / 255) ** 2).sum((-3, -2, -1)), rtol=1e-4)
    assert (np.std(code, axis=(0, 1)) > 0).any()


def test_patches_are_squares_of_pixels_and_have_an_inverse():
    image = jnp.arange(2 * 4 * 6 * 3.0).reshape(2, 4, 6, 3)
    found = _patches(image)
    np.testing.assert_array_equal(found[1, 1, 2], np.asarray(image)[1, 2:4, 4:6].reshape(-1))
    np.testing.assert_array_equal(_unpatched(found), image)


@pytest.mark.parametrize("space", [Discrete(4), Box((4, 4)), Box((8, 8, 1), 0.0, 1.0)])
def test_other_observations_are_refused(space):
    with pytest.raises(UserError, match="takes vectors and images as observations, and these are"):
        rssm.make(TINY, space, BOX)


def test_images_that_cannot_be_halved_are_refused():
    with pytest.raises(UserError, match="got 18 x 18 pixels: take dense"):
        coders.make(CoderConfig(images="patches"), Box((18, 18, 1), 0, 255, "uint8"))


def without_noise(config=TINY, action=BOX):
    """(model whose latents are the network's own outputs, its parts): nothing is random."""
    parts = rssm.networks(config, VECTORS, action)
    parts = parts._replace(latent=parts.latent._replace(sample=lambda key, outputs: outputs))
    return rssm.assemble(config, parts), parts


@pytest.mark.parametrize("core", ["blocks", "gru"])
def test_windows_are_filtered_as_a_policy_filters_step_by_step(x64, core):
    """Beliefs of a window are those of the acting policy that saw the same observations, and begin anew with each episode,
    where h does not depend on the observation."""
    config = dataclasses.replace(TINY, core=core)
    model, parts = without_noise(config)
    window = window_of()

    @jax.jit
    def both(key, window):
        params = model.init(key)
        beliefs, _ = rssm.filtered(parts, params, window, key)
        # The action that each step takes is the window's next one.
        scripted = Policy(lambda key: jnp.zeros((), int), lambda i, belief, key: (window.action[0, i + 1], (), i + 1))
        policy = believing(model, params, scripted)

        def step(memory, given):
            observation, first = given
            memory = jax.tree.map(lambda new, old: jnp.where(first, new, old), policy.init(key), memory)._replace(
                inner=memory.inner
            )
            _, _, after = policy.act(memory, observation, key)
            return after, after.belief

        _, seen = jax.lax.scan(step, policy.init(key), (window.observation[0], window.first[0]))
        other, _ = rssm.filtered(parts, params, window._replace(observation=window.observation + 1.0), key)
        return beliefs, seen, other

    beliefs, seen, other = jax.device_get(both(jax.random.key(0), window))
    np.testing.assert_allclose(beliefs.deter[0], seen.deter, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(beliefs.stoch[0], seen.stoch, rtol=1e-9, atol=1e-12)
    same = (beliefs.deter == other.deter).all(-1)
    np.testing.assert_array_equal(same, window.first)
    assert np.ptp(beliefs.deter[np.asarray(window.first)], axis=0).max() == 0
    assert (beliefs.stoch != other.stoch).any(-1).all()


def test_the_world_reads_reward_and_end_where_it_arrives(x64):
    """And a planner's score is the sum of the rewards along its steps, weighted by the probability of being alive."""
    model, parts = without_noise(dataclasses.replace(TINY, bins=0))
    rng = np.random.default_rng(5)
    actions = rng.uniform(-1, 1, (3, 2))

    @jax.jit
    def looked(key):
        params = model.init(key)
        world, belief = model.world(params), Belief(jnp.ones(4), jnp.ones(6), jnp.zeros(2))
        origin = repeated(belief, 3)
        score = planning.make_problem(world, origin, BOX).score(jnp.asarray(actions), key)
        found, carry = [], world.start(origin, key)
        for action in jnp.asarray(actions):
            before, (carry, made) = carry, world.step(carry, action, key)
            f = model.features(carry)
            heads = parts.reward(params, f)[:, 0], jax.nn.sigmoid(-parts.goes_on(params, f))
            found.append((made, model.features(before), f, heads))
        unclipped = world.step(origin, 3 * jnp.ones(2), key)[0].deter, world.step(origin, jnp.ones(2), key)[0].deter
        return found, score, unclipped

    found, score, unclipped = jax.device_get(looked(jax.random.key(1)))
    alive, total = np.ones(3), np.zeros(3)
    for made, before, after, (reward, ended) in found:
        np.testing.assert_array_equal(made.observation, before)
        np.testing.assert_array_equal(made.next_observation, after)
        np.testing.assert_allclose(made.reward, reward, rtol=1e-12)
        np.testing.assert_allclose(made.terminated, ended, rtol=1e-9)
        total, alive = total + alive * made.reward, alive * (1 - made.terminated)
    np.testing.assert_allclose(score, total.mean(), rtol=1e-9)
    np.testing.assert_array_equal(*unclipped)


def test_losses_and_imagination_with_discrete_actions():
    """Every part receives a gradient; imagined rewards are exactly 0 at first; latents are one-hot."""
    action = Discrete(3)
    model, window = rssm.make(dataclasses.replace(TINY, free_nats=0.0), VECTORS, action), window_of(action)

    @jax.jit
    def looked(key, window):
        params = model.init(key)
        slope, (beliefs, found) = jax.grad(model.loss, has_aux=True)(params, window, key)
        random = on_features(model, uniform(action))
        origin = jax.tree.map(lambda x: x[:, -1], beliefs)
        blind = Policy(random.init, lambda memory, seen, key: (jnp.stack([action.sample(key)] * B), (), memory))
        return slope, found, imagine(model.world(params), blind, origin, key, 3), beliefs

    slope, found, path, beliefs = jax.device_get(looked(jax.random.key(2), window))
    assert not path.reward.any() and path.reward.shape == (3, B)
    assert path.next_observation.shape == (3, B, model.feature_size)
    # The last layer of the reward's head is 0, so its other layers have no gradient yet.
    moved = {name: any(np.any(x) for x in jax.tree.leaves(part)) for name, part in slope.items()}
    assert all(moved.values()), moved
    np.testing.assert_allclose(found["model/reward"].total, 0.8 * np.log(5), rtol=1e-5)
    stoch = beliefs.stoch.reshape(B, L + 1, 2, 3)
    assert set(np.unique(stoch)) <= {0.0, 1.0} and (stoch.sum(-1) == 1).all()


def test_random_actions_of_a_warm_up_enter_the_belief():
    """Warm-up inside of the policy or around it: the beliefs are those of a policy that chooses these actions itself."""
    model, _ = without_noise()

    @jax.jit
    def acted(warm, key):
        params = model.init(key)
        still = Policy(lambda key: (), lambda memory, belief, key: (jnp.zeros(2), (), memory))
        scripted = Policy(lambda key: 0, lambda i, belief, key: (played[i], (), i + 1))
        inside = believing(model, params, with_warmup(still, uniform(BOX), warm))
        around = with_warmup(believing(model, params, still), uniform(BOX), warm)
        results = []
        for policy in (inside, around):
            played = []
            for of in (policy, believing(model, params, scripted)):
                memory, found = of.init(key), []
                for i in range(2):
                    action, _, memory = of.act(memory, jnp.full(3, i + 1.0), jax.random.fold_in(key, i))
                    found.append((action, memory.belief))
                played = [action for action, _ in found]
                results.append(found)
        return results

    results = jax.device_get(acted(True, jax.random.key(3)))
    for found, expected in (results[:2], results[2:]):
        (first, before), (second, after) = found
        np.testing.assert_array_equal(before.action, first)
        np.testing.assert_array_equal(after.action, second)
        assert first.any() and (first != second).any() and (before.deter != after.deter).any()
        jax.tree.map(np.testing.assert_array_equal, found, expected)
