"""Adam against its transcription, the gate that a fault closes, the target copy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmbrl.nn import optimizer

LEARNING_RATE = 0.05
PARAMS = {"kernel": np.array([[0.5, -1.0, 2.0], [0.0, 3.0, -0.25]]), "bias": np.array([1e-3, -40.0])}


def gradients(steps, seed=0):
    """Gradients of very different sizes, as each entry's own scale should not matter."""
    rng = np.random.default_rng(seed)
    scale = {"kernel": np.array([[1e-6, 1.0, 1e4]]), "bias": np.array([1e-2, 1e2])}
    return [{name: scale[name] * rng.normal(size=x.shape) for name, x in PARAMS.items()} for _ in range(steps)]


def adam(params, gradients, learning_rate, decay=0.9, decay_of_squares=0.999, epsilon=1e-8):
    """Algorithm 1 of arXiv 1412.6980, in float64."""
    params = {name: x.astype(np.float64) for name, x in params.items()}
    first = {name: np.zeros_like(x) for name, x in params.items()}
    second = {name: np.zeros_like(x) for name, x in params.items()}
    for t, gradient in enumerate(gradients, start=1):
        for name, g in gradient.items():
            first[name] = decay * first[name] + (1 - decay) * g
            second[name] = decay_of_squares * second[name] + (1 - decay_of_squares) * g**2
            unbiased = first[name] / (1 - decay**t), second[name] / (1 - decay_of_squares**t)
            params[name] = params[name] - learning_rate * unbiased[0] / (np.sqrt(unbiased[1]) + epsilon)
    return params, first, second


def bits(tree):
    """Every leaf's bytes, so that -0.0 and 0.0 differ."""
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def default(tree):
    return jax.tree.map(lambda x: np.asarray(x, jnp.result_type(float)), tree)


init = jax.jit(optimizer.init, static_argnames=("with_target", "chain"))
step = jax.jit(optimizer.step, static_argnames="chain")
move_target = jax.jit(optimizer.move_target, static_argnums=1)
reset_moments = jax.jit(optimizer.reset_moments)


@pytest.mark.parametrize(("double", "rtol"), [(True, 1e-12), (False, 2e-4)])
def test_adam_is_the_papers(double, rtol):
    with jax.enable_x64(double):
        trainable = init(default(PARAMS), LEARNING_RATE)
        for gradient in gradients(25):
            trainable, norm = step(trainable, default(gradient))
            expected_norm = np.sqrt(sum(np.sum(g**2) for g in gradient.values()))
            assert float(norm) == pytest.approx(expected_norm, rel=1e-6)
        params, first, second = adam(PARAMS, gradients(25), LEARNING_RATE)
        for name in PARAMS:
            assert trainable.params[name].dtype == (np.float64 if double else np.float32)
            np.testing.assert_allclose(trainable.params[name], params[name], rtol=rtol)
            np.testing.assert_allclose(trainable.moments.mu[name], first[name], rtol=rtol)
            np.testing.assert_allclose(trainable.moments.nu[name], second[name], rtol=rtol)
        assert int(trainable.moments.count) == 25
        assert bool(trainable.active)


def test_a_minimum_is_found():
    trainable = init({"x": np.array([3.0, -2.0])}, 0.01)
    descend = jax.jit(lambda t: optimizer.step(t, jax.grad(lambda p: jnp.sum((p["x"] - 1.0) ** 2))(t.params))[0])
    for _ in range(1500):
        trainable = descend(trainable)
    np.testing.assert_allclose(trainable.params["x"], 1.0, atol=1e-3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_gradient_that_is_not_finite_closes_the_gate_for_good(bad):
    trainable = init(default(PARAMS), LEARNING_RATE, with_target=True)
    for gradient in gradients(3):
        trainable = move_target(step(trainable, default(gradient))[0], 0.3)
    # A weight of minus zero must keep its sign.
    held = trainable._replace(target=jax.tree.map(lambda x: -np.zeros_like(x), trainable.target))
    before = bits((held.params, held.target, held.moments, held.learning_rate))
    broken = default(gradients(1)[0])
    broken["kernel"][1, 2] = bad
    held, norm = step(held, broken)
    assert not np.isfinite(float(norm))
    assert not bool(held.active)
    for gradient in gradients(2, seed=5):
        held = move_target(held, 0.3)
        assert bits((held.params, held.target, held.moments, held.learning_rate)) == before
        held, norm = step(held, default(gradient))
        assert np.isfinite(float(norm))
        assert not bool(held.active)
        assert bits((held.params, held.target, held.moments, held.learning_rate)) == before


def test_a_closed_gate_holds_the_target_even_where_the_parameters_are_not_finite():
    trainable = init({"x": np.array([1.0, 2.0])}, LEARNING_RATE, with_target=True)
    trainable = trainable._replace(params={"x": np.array([np.nan, np.inf], np.float32)}, active=np.zeros((), bool))
    np.testing.assert_array_equal(move_target(trainable, 0.5).target["x"], [1.0, 2.0])


def test_each_seed_has_its_own_learning_rate_and_its_own_gate():
    rates = np.array([0.1, 0.01, 0.001], np.float32)
    params = {"x": np.array([1.0, -1.0], np.float32)}

    @jax.jit
    @jax.vmap
    def train(rate, gradient):
        trainable = optimizer.init(jax.tree.map(jnp.asarray, params), rate)
        return optimizer.step(optimizer.step(trainable, {"x": gradient})[0], {"x": gradient})[0]

    ones = np.ones((3, 2), np.float32)
    found = train(rates, ones)
    # A constant gradient moves each parameter by the learning rate at each step.
    np.testing.assert_allclose(found.params["x"], params["x"] - 2 * rates[:, None], rtol=1e-5)
    ones[1, 0] = np.nan
    again = jax.device_get(train(rates / 2, ones))
    assert train._cache_size() == 1
    np.testing.assert_array_equal(again.active, [True, False, True])
    np.testing.assert_array_equal(again.params["x"][1], params["x"])
    np.testing.assert_allclose(again.params["x"][2], params["x"] - rates[2], rtol=1e-5)


def test_target():
    trainable = init(default(PARAMS), LEARNING_RATE, with_target=True)
    assert bits(trainable.target) == bits(trainable.params)
    moved, _ = step(trainable, default(gradients(1)[0]))
    assert bits(moved.target) == bits(trainable.target)
    later = move_target(moved, 0.25)
    for name in PARAMS:
        expected = 0.75 * np.asarray(moved.target[name], np.float64) + 0.25 * np.asarray(moved.params[name], np.float64)
        np.testing.assert_allclose(later.target[name], expected, rtol=1e-6)
    assert bits(later.params) == bits(moved.params)
    whole = move_target(moved, 1.0)
    for name in PARAMS:
        np.testing.assert_allclose(whole.target[name], moved.params[name], rtol=1e-6)
    assert init(default(PARAMS), LEARNING_RATE).target == ()


def test_what_forgot_its_moments_steps_as_at_the_start():
    first, second = gradients(2)
    moved, _ = step(init(default(PARAMS), LEARNING_RATE, with_target=True), default(first))
    again, _ = step(reset_moments(moved), default(second))
    fresh, _ = step(init(moved.params, LEARNING_RATE), default(second))
    jax.tree.map(np.testing.assert_array_equal, again.params, fresh.params)
    jax.tree.map(np.testing.assert_array_equal, again.target, moved.target)
    closed = moved._replace(active=np.zeros((), bool))
    jax.tree.map(np.testing.assert_array_equal, reset_moments(closed), closed)


def schedule(count):
    return 0.5 + 0.25 * count


CHAINS = {
    "adam, clipped, with weight decay": optax.chain(
        optax.clip_by_global_norm(1.0), optax.scale_by_adam(), optax.add_decayed_weights(0.1)
    ),
    "rmsprop": optax.scale_by_rms(decay=0.9),
    "momentum with a schedule": optax.chain(optax.trace(0.9), optax.scale_by_schedule(schedule)),
    "laprop, clipped by the parameters' norm": optax.chain(optimizer.clip_by_parameter_norm(), optimizer.scale_by_laprop()),
}


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_a_chain_steps_as_optax_applies_it(x64, chain):
    whole = optax.chain(chain, optax.scale(-LEARNING_RATE))

    @jax.jit
    def applied(gradient, state, params):
        updates, state = whole.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    params, state = default(PARAMS), jax.jit(whole.init)(default(PARAMS))
    trainable = init(default(PARAMS), LEARNING_RATE, chain=chain)
    for gradient in gradients(5):
        params, state = applied(default(gradient), state, params)
        trainable, norm = step(trainable, default(gradient), chain=chain)
        assert float(norm) == pytest.approx(np.sqrt(sum(np.sum(g**2) for g in gradient.values())), rel=1e-12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15), trainable.params, params)
    assert bool(trainable.active)


@pytest.mark.parametrize("chain", [None, *CHAINS.values()], ids=["adam", *CHAINS])
def test_a_gradient_that_is_not_finite_closes_any_chain(chain):
    first, second = (default(g) for g in gradients(2))
    moved, _ = step(init(default(PARAMS), LEARNING_RATE, chain=chain), first, chain=chain)
    broken = second | {"kernel": second["kernel"].copy()}
    broken["kernel"][0, 0] = np.nan
    after, _ = step(moved, broken, chain=chain)
    assert bits(after._replace(active=())) == bits(moved._replace(active=()))
    assert not bool(after.active)
    later, _ = step(after, second, chain=chain)
    assert bits(later) == bits(after)


def test_the_scale_multiplies_the_learning_rate(x64):
    chain, gradient = optax.scale_by_rms(), default(gradients(1)[0])
    for given in (None, chain):
        start = init(default(PARAMS), LEARNING_RATE, chain=given)
        half, _ = step(start, gradient, 0.5, chain=given)
        slow, _ = step(init(default(PARAMS), LEARNING_RATE / 2, chain=given), gradient, chain=given)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), half.params, slow.params)


def test_laprop_normalises_before_it_averages(x64):
    """Gradients 1, 10, 1 by hand: Adam's directions are 1, 0.807088, 0.684096."""
    laprop, adam_ = optimizer.scale_by_laprop(0.9, 0.999, 1e-20), optax.scale_by_adam(0.9, 0.999, 1e-20)
    for transform, expected in ((laprop, [1, 1.214132, 0.829396]), (adam_, [1, 0.807088, 0.684096])):
        state, found, update = transform.init(np.zeros(())), [], jax.jit(transform.update)
        for gradient in (1.0, 10.0, 1.0):
            direction, state = update(gradient, state)
            found.append(float(direction))
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_gradients_are_clipped_by_the_norm_of_each_tensor(x64):
    clip = optimizer.clip_by_parameter_norm(0.3, 1e-3)
    gradient = {"a": np.array([30.0, 40.0]), "b": np.array([30.0, 40.0]), "c": np.array([0.3, 0.4])}
    params = {"a": np.array([3.0, 4.0]), "b": np.zeros(2), "c": np.array([30.0, 40.0])}
    found, _ = jax.jit(clip.update)(gradient, clip.init(params), params)
    np.testing.assert_allclose(found["a"], [0.9, 1.2], rtol=1e-12)
    np.testing.assert_allclose(found["b"], [1.8e-4, 2.4e-4], rtol=1e-12)
    np.testing.assert_allclose(found["c"], gradient["c"], rtol=1e-12)


def test_a_target_that_moves_all_the_way_is_a_copy():
    moved, _ = step(init(default(PARAMS), LEARNING_RATE, with_target=True), default(gradients(1)[0]))
    assert bits(move_target(moved, 1.0).target) == bits(moved.params)


def test_the_gate_of_a_frozen_seed_closes_it():
    old = init(default(PARAMS), LEARNING_RATE)
    new, _ = step(old, default(gradients(1)[0]))
    gated = jax.jit(optimizer.Trainable.gate)
    assert [bool(gated(new, healthy, old).active) for healthy in (True, False)] == [True, False]
