"""Update rules from settings: the order of their parts, and the rise of the learning rate."""

import jax
import numpy as np
import optax
import pytest

from jaxmbrl.nn import optimizer, rules
from jaxmbrl.nn.rules import RuleConfig

PARAMS, GRADIENT = {"a": np.array([3.0, 4.0]), "b": np.zeros(2)}, {"a": np.array([30.0, 40.0]), "b": np.array([0.3, 0.4])}


def updates(config, number):
    """The directions of the first updates with the same gradient."""
    chain = rules.chain(config)
    state, found, update = chain.init(PARAMS), [], jax.jit(chain.update)
    for _ in range(number):
        direction, state = update(GRADIENT, state, PARAMS)
        found.append(direction)
    return found


def test_the_default_clips_each_tensor_and_rises_from_zero(x64):
    first, second, third = updates(RuleConfig(warmup=2), 3)
    assert not any(x.any() for x in first.values()), "the first update changes nothing"
    plain = optax.chain(optimizer.clip_by_parameter_norm(0.3), optimizer.scale_by_laprop(0.9, 0.999, 1e-20))
    state, update = plain.init(PARAMS), jax.jit(plain.update)
    for found, share in ((first, 0.0), (second, 0.5), (third, 1.0)):
        due, state = update(GRADIENT, state, PARAMS)
        jax.tree.map(lambda x, y, share=share: np.testing.assert_allclose(x, share * y, rtol=1e-12), found, due)


def test_adam_with_the_norm_of_the_whole_gradient(x64):
    config = RuleConfig(rule="adam", epsilon=1e-4, parameter_clip=0.0, norm_clip=1.0, warmup=0)
    (found,) = updates(config, 1)
    norm = np.sqrt(50**2 + 0.5**2)
    for name, gradient in GRADIENT.items():
        np.testing.assert_allclose(found[name], gradient / norm / (np.abs(gradient) / norm + 1e-4), rtol=1e-6)


def test_parts_with_another_learning_rate_and_gradients_that_are_limited_together(x64):
    chain = optax.chain(optax.identity(), rules.scaled({"a": 0.3}))
    found, _ = chain.update(GRADIENT, chain.init(PARAMS), PARAMS)
    np.testing.assert_allclose(found["a"], [9.0, 12.0], rtol=1e-12)
    assert found["b"] is GRADIENT["b"]
    for bound, share in ((20.0, 20 / np.sqrt(50**2 + 0.5**2)), (60.0, 1.0), (0.0, 1.0)):
        found, norm = rules.limited(GRADIENT, bound)
        assert norm == pytest.approx(np.sqrt(50**2 + 0.5**2))
        for name, gradient in GRADIENT.items():
            np.testing.assert_allclose(found[name], share * gradient, rtol=1e-12)


@pytest.mark.parametrize("config", [RuleConfig(warmup=3), RuleConfig(rule="adam", warmup=0)])
def test_a_trainable_steps_by_a_rule(config):
    chain = rules.chain(config)

    @jax.jit
    def stepped(params, gradient):
        return optimizer.step(optimizer.init(params, 1e-2, chain=chain), gradient, chain=chain)[0].params

    after, moves = stepped(PARAMS, GRADIENT), config.warmup == 0
    assert all(np.any(np.asarray(after[name]) != PARAMS[name]) == moves for name in PARAMS)
