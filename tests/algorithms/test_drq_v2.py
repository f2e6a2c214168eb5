"""DrQ-v2 as a whole: images that are not shifted, its noise, and its presets."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl import algorithms, envs
from jaxmbrl.algorithms.model_free import drq_v2
from jaxmbrl.algorithms.model_free.drq_v2 import AgentConfig
from jaxmbrl.core.config import UserError, check
from jaxmbrl.core.spaces import Box
from jaxmbrl.core.types import Transition

from .test_sac import clock

TINY = drq_v2.Config(
    agent=AgentConfig(convolutions=((2, 4, 4),), trunk=3, hidden=(4,)),
    batch_size=4,
    warmup_steps=4,
    replay_capacity=100,
    n_step=2,
    noise_first=1.0,
    noise_last=0.5,
    noise_steps=10,
)


@pytest.fixture(scope="module")
def after():
    """States after one call of `learn` on images with noise of 0.8: without shifts, with shifts of 0 pixels and of 4; the
    first is that before; and the actions of the policy with noise, without, and the noise."""
    task = envs.make("stacked/2/pixels/8,grey/pendulum")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 1, 8, 8, 2)).astype(np.uint8)
    none = np.zeros((4, 1), bool)
    action, reward = (rng.uniform(-1, 1, shape).astype(np.float32) for shape in ((4, 1, 1), (4, 1)))
    rows = Transition(images[:-1], action, reward, images[1:], none, none)
    settings = [{"augment": "none"}, {"shift_pixels": 0}, {"shift_pixels": 4}]

    @jax.jit
    def learned(clock, rows, key):
        made = [drq_v2.make(dataclasses.replace(TINY, train_every=4, **changes), task) for changes in settings]
        state = made[0].init(key, {})
        found = [algorithm.learn(clock, state, rows) for algorithm in made]
        policies = [made[0].policy(state, clock, explore) for explore in (True, False)]
        noise = jax.random.normal(key, (1,))
        actions = [policy.act(policy.init(key), rows.observation[0, 0], key)[0] for policy in policies]
        return state.agent, [(state.agent, metrics) for state, metrics in found], (*actions, noise)

    return jax.device_get(learned(clock(4), rows, jax.random.key(0)))


def test_a_shift_of_no_pixels_is_no_augmentation_bit_for_bit(after):
    before, ((without, _), (with_none, _), (shifted, _)), _ = after
    jax.tree.map(np.testing.assert_array_equal, without, with_none)
    kernels = [agent.encoder.params["params"]["ConvTorso_0"]["Conv_0"]["kernel"] for agent in (before, without, shifted)]
    # The encoder learns, and from shifted images something else.
    assert (kernels[0] != kernels[1]).any() and (kernels[1] != kernels[2]).any()


def test_the_noise_falls_with_the_environment_steps(after):
    """After 4 of 10 steps from 1 to 0.5: 0.8. The policy's noise is not clipped, but its action is."""
    _, ((_, metrics), *_), (noisy, calm, noise) = after
    assert float(metrics["agent/noise"].total) == pytest.approx(0.8)
    np.testing.assert_allclose(noisy, np.clip(calm + 0.8 * noise, -1, 1), rtol=1e-5)


def test_published_settings():
    """facebookresearch/drqv2: drqv2.py, cfgs/config.yaml, cfgs/task."""
    config = check(algorithms.get("drq-v2").presets["medium"].config)
    assert config.agent == AgentConfig(
        convolutions=((32, 3, 2), (32, 3, 1), (32, 3, 1), (32, 3, 1)),
        trunk=50,
        hidden=(1024, 1024),
        critics=2,
        learning_rate=1e-4,
        discount=0.99,
        polyak=0.01,
        noise_clip=0.3,
    )
    assert (config.batch_size, config.n_step, config.train_every, config.warmup_steps) == (256, 3, 2, 2000)
    assert (config.augment, config.shift_pixels, config.replay_capacity) == ("shift", 4, 1_000_000)
    assert (config.noise_first, config.noise_last, config.noise_steps) == (1.0, 0.1, 500_000)
    steps = {name: algorithms.get("drq-v2").presets[name].config.noise_steps for name in ("easy", "hard")}
    assert steps == {"easy": 100_000, "hard": 2_000_000}
    # 84 pixels: (84 - 3) / 2 + 1 = 41, then 39, 37, 35.
    image = jax.ShapeDtypeStruct((84, 84, 9), jnp.uint8)
    agent = drq_v2.agent_for(config.agent, Box((84, 84, 9), 0, 255, "uint8"), 6, 0.1)
    state = jax.eval_shape(lambda key: agent.init(key, {}), jax.random.key(0))
    assert state.actor.params["params"]["Dense_0"]["kernel"].shape == (32 * 35 * 35, 50)
    assert state.critic.params.heads["params"]["Dense_0"]["kernel"].shape == (2, 56, 1024)
    acted = jax.eval_shape(lambda s, x, key: agent.policy(s, False).act((), x, key)[0], state, image, jax.random.key(0))
    assert acted.shape == (6,)


def test_vectors_are_not_shifted():
    algorithm = drq_v2.make(dataclasses.replace(TINY, augment="shift"), envs.make("pendulum"))
    with pytest.raises(UserError, match=r"^augment shift needs images, and observations are "):
        jax.eval_shape(lambda key: algorithm.init(key, {}), jax.random.key(0))
