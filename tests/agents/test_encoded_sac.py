"""SAC with an encoder that actor and critics share, against float64 NumPy, and its identity with SAC on vectors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl.agents.actor_critic import sac
from jaxmbrl.core.config import UserError
from jaxmbrl.core.spaces import Box
from jaxmbrl.nn import encoder
from jaxmbrl.nn.encoder import Encoder, EncoderConfig

from . import sac_in_numpy as reference
from .test_sac import SMALL, A, B, O, assert_close, assert_same, batch_of, critics_of, layers_of, noise_of, on_device, split
from .test_sac import compiled as of_vectors
from .test_sac import state_of as vector_state_of

LINEAR = Encoder(O, lambda key: jax.random.normal(key, (O, O)), lambda matrix, observation: observation @ matrix)
"""s -> s M."""
NOTHING = Encoder(O, lambda key: (), lambda params, observation: observation)


@functools.cache
def agent_with(coder):
    agent = sac.make(SMALL, O, A, encoder=coder)
    return agent._replace(update_critic=jax.jit(agent.update_critic), update_actor=jax.jit(agent.update_actor))


def encoded(state, params, target, moments):
    """The state of an agent on vectors with parameters of an encoder in its critics, and in the target critics."""
    critic = state.critic
    both = [sac.WithEncoder(*pair) for pair in ((params, critic.params), (target, critic.target))]
    mu, nu = (sac.WithEncoder(moments, moment) for moment in (critic.moments.mu, critic.moments.nu))
    moved = critic.moments._replace(mu=mu, nu=nu)
    return state._replace(critic=critic._replace(params=both[0], target=both[1], moments=moved))


def matrices():
    return np.random.default_rng(5).normal(size=(2, O, O))


def test_the_critics_train_the_encoder_by_hand(x64):
    """The successor's action is that of the current encoder, its value that of the target encoder; the gradient of the
    matrix is the sum over critics of s^T dQ/ds."""
    current, slow = matrices()
    state, batch, key = encoded(vector_state_of(SMALL), current, slow, np.zeros((O, O))), batch_of(), jax.random.key(3)
    keys = split(key, 4)
    actor, critics = layers_of(state.actor.params), critics_of(state.critic.params.heads)
    targets = critics_of(state.critic.target.heads)
    after = batch["next_observation"]
    action, density = reference.sample(actor, after @ current, noise_of(keys[0]))
    value = reference.values(targets, after @ slow, action).min(axis=0) - 0.3 * density
    y = batch["reward"] + 0.9 * (1.0 - batch["terminated"]) * value
    seen = batch | {"observation": batch["observation"] @ current}
    loss, gradients = reference.critic_loss(critics, seen, y, np.ones(B))
    pair, by_code = np.concatenate([seen["observation"], batch["action"]], axis=1), np.zeros((B, O))
    for critic in critics:
        output, inputs = reference.forward(critic, pair)
        by_code += reference.backward(critic, inputs, 2 * (output - y[:, None]) / B)[1][:, :O]

    trained, found, _ = agent_with(LINEAR).update_critic(state, on_device(batch), key)
    np.testing.assert_allclose(found["agent/critic_loss"].total, loss, rtol=1e-9)
    mean = trained.critic.moments.mu
    np.testing.assert_allclose(10 * mean.encoder, batch["observation"].T @ by_code, rtol=1e-8)
    for i, layers in enumerate(gradients):
        assert_close([(10 * k, 10 * b) for k, b in critics_of(mean.heads)[i]], layers, rtol=1e-8)
    moved = 0.75 * slow + 0.25 * np.asarray(trained.critic.params.encoder)
    np.testing.assert_allclose(trained.critic.target.encoder, moved, rtol=1e-12)


def test_the_actor_learns_on_codes_and_does_not_train_the_encoder(x64):
    current, slow = matrices()
    state, batch, key = encoded(vector_state_of(SMALL), current, slow, np.zeros((O, O))), batch_of(), jax.random.key(3)
    actor, critics = layers_of(state.actor.params), critics_of(state.critic.params.heads)
    loss, gradient, _ = reference.actor_loss(actor, critics, 0.3, batch["observation"] @ current, noise_of(key))
    trained, found = agent_with(LINEAR).update_actor(state, on_device(batch), key)
    np.testing.assert_allclose(found["agent/actor_loss"].total, loss, rtol=1e-9)
    assert_close([(10 * k, 10 * b) for k, b in layers_of(trained.actor.moments.mu)], gradient, rtol=1e-8)
    assert_same(trained.critic, state.critic)

    @jax.jit
    @jax.grad
    def slope(critic):
        policy = agent_with(LINEAR).policy_with_entropy(state._replace(critic=critic._replace(moments=())))
        action, bonus, _ = policy.act((), batch["observation"], key)
        return jnp.sum(action) + jnp.sum(bonus)

    floats = state.critic._replace(moments=(), active=jnp.ones(()))
    np.testing.assert_array_equal(slope(floats).params.encoder, np.zeros((O, O)))


def test_an_encoder_that_does_nothing_is_sac_on_vectors_bit_for_bit():
    plain, state, batch = of_vectors(SMALL), vector_state_of(SMALL), on_device(batch_of())
    with_nothing, agent = encoded(state, (), (), ()), agent_with(NOTHING)
    for i in range(2):
        keys = jax.random.split(jax.random.key(i))
        state, _, error = plain.update_critic(state, batch, keys[0])
        with_nothing, _, same = agent.update_critic(with_nothing, batch, keys[0])
        np.testing.assert_array_equal(error, same)
        state, with_nothing = (
            plain.update_actor(state, batch, keys[1])[0],
            agent.update_actor(with_nothing, batch, keys[1])[0],
        )
    assert_same(with_nothing.critic.params.heads, state.critic.params)
    assert_same(with_nothing.critic.target.heads, state.critic.target)
    assert_same(with_nothing.actor, state.actor)


def test_the_encoder_of_images_by_hand():
    """Pixels 0 and 255 enter as -1/2 and 1/2; a patch of ones times its sum; layer norm and tanh of the dense layer."""
    space = Box((4, 4, 1), 0, 255, "uint8")
    image = np.zeros((1, 4, 4, 1), np.uint8)
    image[0, :2, :2] = 255
    coder = encoder.make(space, ((1, 2, 2),), units=2)
    assert coder.size == 2 and encoder.make(space, ((3, 2, 2),)).size == 12 and encoder.make(space, ()).size == 16

    def filled(path, leaf):
        name = jax.tree_util.keystr(path)
        if "Conv_0" in name:
            return np.ones(leaf.shape, np.float32) if "kernel" in name else np.zeros(leaf.shape, np.float32)
        if "Dense" in name and "kernel" in name:
            return np.float32([[1, 0]] * 4)
        return np.float32([0.0, 1.0] if "Dense" in name else [1.0, 1.0] if "scale" in name else [0.0, 0.0])

    shapes = jax.eval_shape(coder.init, jax.random.key(0))
    found = jax.jit(coder.apply)(jax.tree_util.tree_map_with_path(filled, shapes), image)
    # The patches have the sums 2, -2, -2, -2, of which the ReLU leaves 2, and the dense layer has the outputs 2 and 1.
    np.testing.assert_allclose(found, np.tanh([[1.0, -1.0]]), atol=1e-5)
    pixels = jax.jit(encoder.make(space, ()).apply)({}, image)
    np.testing.assert_allclose(pixels, image.reshape(1, -1) / 255 - 0.5, atol=1e-7)


def test_vectors_need_no_encoder_and_small_images_are_refused():
    assert encoder.of_images(EncoderConfig(), Box((3,))) is None
    with pytest.raises(UserError, match=r"^convolutions need images of at least 15 x 15 pixels, got 8 x 9"):
        encoder.of_images(EncoderConfig(), Box((8, 9, 3), 0, 255, "uint8"))
