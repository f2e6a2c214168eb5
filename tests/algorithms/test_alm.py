"""ALM: its losses on scalar codes against loops in NumPy, with gradients by differences, and the classifier's bonus."""

from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmbrl.agents import noisy_actor
from jaxmbrl.agents.noisy_actor import NoisyActor
from jaxmbrl.algorithms import registry
from jaxmbrl.algorithms.latent import alm
from jaxmbrl.core.config import UserError
from jaxmbrl.core.spaces import Box
from jaxmbrl.core.types import Transition
from jaxmbrl.distributions import Gaussian
from jaxmbrl.models.latent import CoderConfig, Window, aligned
from jaxmbrl.models.latent.aligned import AlignedConfig, Parts
from jaxmbrl.nn import optimizer
from jaxmbrl.rollout import step_keys
from jaxmbrl.training import programs


class Still(Gaussian):
    """A Gaussian whose samples are its mean."""

    def sample(self, key):
        return self.mean


def encode(params, seen):
    return Still(params * seen, jnp.zeros(()))


def predict(params, z, action):
    return Still(z + params * action, jnp.log(2.0))


# Codes, observations and actions have one entry. Q(z, a) = c z + 7 a.
PARTS = Parts(
    *[None] * 3,
    encode,
    predict,
    reward=lambda params, z, action: params["reward"] * z[..., 0] * action[..., 0] ** 2,
    realness=lambda params, z, action, after: params["classifier"] * after[..., 0],
)
AGENT = NoisyActor(
    actor=SimpleNamespace(apply=lambda params, z: params * z),
    critic=SimpleNamespace(apply=lambda params, x: (params * x[..., 0] + 7 * x[..., 1])[..., None]),
    noise_clip=0.3,
)
CRITICS = np.array([0.5, 1.5])
EPSILON = 1e-6


def test_the_divergence_and_the_bounds_of_codes(x64):
    """KL(N(0, 1) || N(1, 2^2)) = .443147. Means are within 30, standard deviations within .1 and 10."""

    @jax.jit
    def looked(output):
        divergence = Gaussian(jnp.zeros(1), jnp.zeros(1)).divergence(Gaussian(jnp.ones(1), jnp.full(1, jnp.log(2.0))))
        return divergence, aligned.bounded(output)

    divergence, found = jax.device_get(looked(np.array([0.0, 3.0, 1e4, 1.0, -1e4, 1e4])))
    assert divergence == pytest.approx(0.443147, abs=5e-7)
    below = 10 - np.log1p(np.exp(10 - 1.0))
    np.testing.assert_allclose(found.mean, [0, 30 * np.tanh(0.1), 30], rtol=1e-9)
    np.testing.assert_allclose(np.exp(found.log_std), [0.1 + np.log1p(np.exp(below - 0.1)), 0.1, 10], rtol=1e-4)


def window():
    """Three steps of two windows; the first's episode terminates with its second step."""
    rng = np.random.default_rng(0)
    ends = np.zeros((2, 4), bool)
    ends[0, 2] = True
    shown = rng.normal(size=(2, 4, 1)), rng.uniform(-1, 1, (2, 4, 1)), rng.normal(size=(2, 4))
    return Window(*shown, ends, ends, ends, np.ones((2, 4)))


def representation(params, given, reward, values_action):
    """The loss by a loop; the action at which the values are computed is given."""
    encoder, model = params
    total = 0.0
    for b, steps in ((0, 2), (1, 3)):
        z = encoder * given.observation[b, 0, 0]
        for t in range(steps):
            action, slow = given.action[b, t + 1, 0], 0.8 * given.observation[b, t + 1, 0]
            total -= reward * z * action**2
            z = z + model * action
            total += -np.log(2) + (4 + (z - slow) ** 2) / 2 - 0.5
        if b == 1:
            total -= min(CRITICS * z) + 7 * values_action
    return total / 2


def test_the_representations_loss_is_that_of_a_loop(x64):
    """Steps after the end of an episode have no weight, nothing is bootstrapped from a terminal state, and the action at
    the last code is a constant."""
    given, reward, actor = window(), 0.6, 0.4
    parts = (0.9, 1.3, {"reward": reward, "classifier": 0.0}, CRITICS, actor)
    held = [SimpleNamespace(params=part, target=0.8) for part in parts]
    learned = SimpleNamespace(**dict(zip(alm.Learned._fields, held, strict=False)))

    def loss(params):
        found, _ = alm.representation_loss.__wrapped__(
            PARTS, AGENT, params, learned, given, jnp.zeros(()), jax.random.key(0)
        )
        return found

    params = (0.9, 1.3)
    last = 0.9 * given.observation[1, 0, 0] + 1.3 * given.action[1, 1:, 0].sum()
    action = np.tanh(actor * last)
    found, slopes = jax.jit(jax.value_and_grad(loss))(params)
    np.testing.assert_allclose(found, representation(params, given, reward, action), rtol=1e-9)
    for i, slope in enumerate(slopes):
        up, down = (representation(np.add(params, s * np.eye(2)[i]), given, reward, action) for s in (EPSILON, -EPSILON))
        np.testing.assert_allclose(slope, (up - down) / (2 * EPSILON), rtol=1e-6)


class Dream(NamedTuple):
    """What the actor's objective is computed from."""

    z: np.ndarray = np.array([0.7, -0.4])
    reward: float = 0.6
    classifier: float = 2.0
    critics: np.ndarray = CRITICS
    noise: np.ndarray = np.zeros((4, 1))


def returns_by_hand(actor, held=None, dream=Dream()):  # noqa: B008
    """(the actor's objective in the model z' = z + 1.3 a, the actions at which values are computed, codes after each step).
    `held` fixes the last two where they are constants."""
    z, gamma, mix, horizon = dream.z, 0.9, 0.95, 3
    rewards, codes, actions = [], [], []
    code = z
    for t in range(horizon):
        # The actor sees a constant code.
        action = np.tanh(actor * (code if held is None else held[2][t])) + dream.noise[t]
        after = code + 1.3 * action
        bonus = 0.1 * dream.classifier * (after if held is None else held[1][t])
        rewards.append(dream.reward * code * action**2 + bonus)
        actions.append(action)
        codes.append(after)
        code = after
    actions.append(np.tanh(actor * code) + dream.noise[horizon])
    values = [np.min(dream.critics[:, None] * code, axis=0) for code in codes]
    values = [value + 7 * action for value, action in zip(values, actions[1:] if held is None else held[0], strict=True)]
    after, total = values[-1], 0.0
    for t in reversed(range(horizon)):
        after = rewards[t] + gamma * ((1 - mix) * values[t] + mix * after)
        total += gamma**t * np.mean(after) / horizon
    return total, (actions[1:], codes, [z, *codes[:-1]])


def test_the_actors_loss_is_that_of_a_loop(x64):
    """Its gradient goes through rewards and codes, not through the actions of values, the codes that the actor sees, or the
    next code in the bonus."""
    heads, actor = {"reward": 0.6, "classifier": 2.0}, 0.5
    dream = aligned.world(PARTS, 1.3, heads, 0.1)

    def loss(actor):
        z, key = jnp.array([[0.7], [-0.4]]), jax.random.key(0)
        critics, discount = jnp.asarray(CRITICS), jnp.asarray(0.9)
        return noisy_actor.actor_loss(AGENT, 3, 0.95, actor, critics, dream, z, jnp.zeros(()), discount, key)[0]

    found, slope = jax.jit(jax.value_and_grad(loss))(jnp.asarray(actor))
    total, held = returns_by_hand(actor)
    np.testing.assert_allclose(found, -total, rtol=1e-9)
    up, down = (returns_by_hand(actor + s, held)[0] for s in (EPSILON, -EPSILON))
    np.testing.assert_allclose(slope, -(up - down) / (2 * EPSILON), rtol=1e-6)


@jax.jit
def drawn(key):
    """Of an update on six rows: who is shown the predicted code, the noise in the target, and the noise of the actor."""
    _, _, _, head_key, noise_key, actor_key = jax.random.split(key, 6)
    dream_key, last_key = jax.random.split(actor_key)
    acting = [step_keys(jax.random.split(dream_key)[1], t)[0] for t in range(3)]
    noise = jnp.stack([jax.random.normal(key, (6, 1))[:, 0] for key in (noise_key, *acting, last_key)])
    return jax.random.permutation(head_key, jnp.arange(6) < 3), noise


def test_one_update_of_heads_critics_and_actor_by_hand(x64):
    """By plain gradient descent. Codes are those of the slow encoder, the target that of the slow critics, and the actor
    learns of heads and critics after their step."""
    rng, rate, std = np.random.default_rng(1), 0.01, 0.2
    seen, following, taken = rng.normal(size=(6, 1)), rng.normal(size=(6, 1)), rng.uniform(-1, 1, (6, 1))
    reward, ended = rng.normal(size=6), np.array([False, True, False, False, True, False])
    rows, chain = Transition(seen, taken, reward, following, ended, ~ended), optax.identity()

    def part(params, target=()):
        found = optimizer.init(jax.tree.map(jnp.asarray, params), rate, chain=chain)
        return found._replace(target=jax.tree.map(jnp.asarray, target))

    @jax.jit
    def updated(rows, key):
        heads, critics = part({"reward": 0.6, "classifier": 2.0}), part(CRITICS, np.array([0.8, -0.3]))
        learned = alm.Learned(part(0.9, 0.8), part(1.3), heads, critics, part(0.2), jnp.asarray(0.9))
        config = alm.Config(critics=2, bonus=0.1, horizon=3, mix=0.95)
        return learned, *alm.improved(config, PARTS, AGENT, chain, learned, rows, jnp.asarray(std), key)

    key = jax.random.key(4)
    (before, after, found), (fake, noise) = jax.device_get((updated(rows, key), drawn(key)))
    noise = np.clip(std * noise, -0.3, 0.3)
    z, code, a = 0.8 * seen[:, 0], 0.8 * following[:, 0], taken[:, 0]

    # Reward w z a^2; logit c times the code that is shown.
    by_reward = np.mean(2 * (0.6 * z * a**2 - reward) * z * a**2)
    shown, sign = np.where(fake, z + 1.3 * a, code), np.where(fake, 1.0, -1.0)
    by_classifier = np.mean(sign * shown / (1 + np.exp(-sign * 2.0 * shown)))
    heads = 0.6 - rate * by_reward, 2.0 - rate * by_classifier

    then = np.tanh(0.2 * code) + noise[0]
    target = reward + 0.9 * ~ended * np.minimum(0.8 * code + 7 * then, -0.3 * code + 7 * then)
    error = CRITICS[:, None] * z + 7 * a - target
    critics = CRITICS - rate * np.mean(2 * error * z, axis=1) / 2

    dream = Dream(z, *heads, critics, noise[1:])
    total, held = returns_by_hand(0.2, dream=dream)
    assert max(np.abs(then).max(), *(np.abs(action).max() for action in held[0])) < 1, "no action is at a bound"
    up, down = (returns_by_hand(0.2 + s, held, dream)[0] for s in (EPSILON, -EPSILON))
    np.testing.assert_allclose(found["agent/actor"].total, -total, rtol=1e-9)
    np.testing.assert_allclose([after.heads.params[name] for name in ("reward", "classifier")], heads, rtol=1e-9)
    np.testing.assert_allclose(after.critics.params, critics, rtol=1e-9)
    np.testing.assert_allclose(after.actor.params, 0.2 + rate * (up - down) / (2 * EPSILON), rtol=1e-9)
    for name in ("encoder", "model"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, name), getattr(before, name))
    np.testing.assert_array_equal(after.critics.target, before.critics.target)


def test_noise_is_clipped_and_the_gradient_ignores_the_bounds(x64):
    @jax.jit
    def sampled(mean, keys):
        act = jax.vmap(lambda key: AGENT.sample(mean, jnp.ones(1), jnp.asarray(50.0), key)[0])
        first = jax.grad(lambda mean: AGENT.sample(mean, jnp.ones(1), jnp.asarray(50.0), keys[0])[0])
        return act(keys), first(mean)

    mean = jnp.arctanh(0.9)
    found, slope = jax.device_get(sampled(mean, jax.random.split(jax.random.key(1), 200)))
    # Noise so wide is nearly always at its bounds: .9 - .3 or .9 + .3, which is cut to 1.
    assert np.mean(np.isclose(found, 0.6) | (found == 1.0)) > 0.95 and found.max() == 1.0
    np.testing.assert_allclose(slope, 1 - 0.9**2, rtol=1e-9)


def test_the_classifier_is_trained_by_one_half_of_each_and_a_constant_one_is_no_bonus(x64):
    """A logit of 5 for real codes and -5 for predicted ones has the loss log(1 + exp(-5)), whichever half is shown."""
    rows = 8
    z, action = jnp.ones((rows, 1)), jnp.linspace(-1, 1, rows)[:, None]

    @jax.jit
    def looked(key):
        heads = {"reward": 0.6, "classifier": 5.0}
        loss, found = alm.heads_loss(PARTS, heads, z, action, jnp.ones(rows), z, -z, key)
        same = {"reward": 0.6, "classifier": 0.0}
        step = [aligned.world(PARTS, 1.3, same, bonus).step(z, action, key)[1].reward for bonus in (0.0, 0.1)]
        bonus = aligned.world(PARTS, 1.3, {"reward": 0.0, "classifier": 2.0}, 0.1)
        slope = jax.grad(lambda action: jnp.sum(bonus.step(z, action, key)[1].reward))(action)
        return loss, found["model/classifier"].total, *step, slope

    loss, classifier, without, constant, slope = jax.device_get(looked(jax.random.key(0)))
    np.testing.assert_allclose(classifier, np.log1p(np.exp(-5)), rtol=1e-9)
    np.testing.assert_allclose(loss - classifier, np.mean((0.6 * np.asarray(action)[:, 0] ** 2 - 1) ** 2), rtol=1e-9)
    np.testing.assert_array_equal(without, constant)
    assert not slope.any()


@pytest.mark.parametrize("rows", [2, 3, 5])
def test_a_classifier_that_sees_no_difference_has_logit_0_in_small_and_odd_batches(x64, rows):
    """Its logit w is its parameter, and its loss (log(1 + exp(-w)) + log(1 + exp(w))) / 2, whose minimum is at 0."""
    parts = PARTS._replace(realness=lambda heads, z, action, after: jnp.full(rows, heads["classifier"]))
    z = jnp.ones((rows, 1))

    @jax.jit
    def looked(classifier, key):
        def loss(classifier):
            heads = {"reward": 1.0, "classifier": classifier}
            return alm.heads_loss(parts, heads, z, z, jnp.ones(rows), z, z, key)[0]

        return jax.value_and_grad(loss)(classifier)

    for w in (0.0, 0.7):
        value, slope = looked(w, jax.random.key(2))
        np.testing.assert_allclose(value, (np.log1p(np.exp(-w)) + np.log1p(np.exp(w))) / 2, rtol=1e-12)
        np.testing.assert_allclose(slope, np.tanh(w / 2) / 2, rtol=1e-12, atol=1e-15)


def test_shapes_of_the_networks_and_what_is_refused():
    config = AlignedConfig(size=3, coder=CoderConfig(units=4), model_units=4, head_units=4)
    for space in (Box((2,)), Box((8, 8, 1), 0, 255, "uint8")):
        parts = aligned.make(config, space, 2)

        def looked(key, parts=parts, space=space):
            z = parts.encode(parts.init_encoder(key), jnp.stack([space.zeros()] * 5)).mean
            action, heads = jnp.zeros((5, 2)), parts.init_heads(key)
            after = parts.predict(parts.init_model(key), z, action).sample(key)
            return after, parts.reward(heads, z, action), parts.realness(heads, z, action, after)

        assert [x.shape for x in jax.eval_shape(looked, jax.random.key(0))] == [(5, 3), (5,), (5,)]
    with pytest.raises(UserError, match=r"^alm takes continuous actions, and the actions of task"):
        programs.build(programs.configure("alm", "CartPole-v1"))
    with pytest.raises(UserError, match="batch_size"):
        programs.configure("alm", "pendulum", settings={"batch_size": 1})
    assert registry.METHODS["alm"].config().noise.at(50_000) == pytest.approx(0.55)
