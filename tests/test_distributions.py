"""Densities against scipy and closed forms in float64, also where tanh saturates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from jaxmbrl import distributions as d

gaussian_log_density, squashed_log_density = jax.jit(d.gaussian_log_density), jax.jit(d.squashed_log_density)
tanh_log_det, sample_squashed, soft_clamp = jax.jit(d.tanh_log_det), jax.jit(d.sample_squashed), jax.jit(d.soft_clamp)


def exact_tanh_log_det(u):
    """log(1 - tanh(u)^2) = log 4 - 2|u| - 2 log(1 + exp(-2|u|)), in float64."""
    u = np.abs(np.asarray(u, np.float64))
    return np.log(4.0) - 2 * u - 2 * np.log1p(np.exp(-2 * u))


def test_gaussian_against_scipy(x64):
    rng = np.random.default_rng(0)
    x, mean, log_std = rng.normal(size=(3, 50, 4))
    expected = stats.norm.logpdf(x, mean, np.exp(log_std)).sum(-1)
    got = gaussian_log_density(x, mean, log_std)
    assert got.shape == (50,)
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def two_components(shared):
    """pi = (.25, .75), mu = (0, 2), sigma = (1, .5) in the first entry; in the second mu = (-1, 5) and sigma = (2, 1),
    with the same weights or its own, (.5, .5)."""
    weights = np.array([[0.25], [0.75]] if shared else [[0.25, 0.5], [0.75, 0.5]])
    mean, std = [[0.0, -1.0], [2.0, 5.0]], np.array([[1.0, 2.0], [0.5, 1.0]])
    return d.GaussianMixture(jnp.log(weights), jnp.array(mean), jnp.log(std))


def test_mixture_numbers_by_hand(x64):
    one = jax.tree.map(lambda leaf: leaf[:, :1], two_components(shared=True))
    assert -float(one.log_probability(jnp.ones(1))) == pytest.approx(1.955603, abs=5e-7)
    for temperature, weights in ((0.5, (0.1, 0.9)), (1.15, (0.277817, 0.722183)), (2.0, (0.366025, 0.633975))):
        cooler = one.tempered(temperature)
        np.testing.assert_allclose(np.exp(cooler.log_weight())[:, 0], weights, atol=5e-7)
        np.testing.assert_allclose(np.exp(2 * cooler.log_std)[:, 0], [temperature, 0.25 * temperature], rtol=1e-12)
    # 0.25 (1 + 1.5^2) + 0.75 (0.25 + 0.5^2)
    np.testing.assert_allclose(np.concatenate(one.moments()), [1.5, 1.1875], rtol=1e-12)


@pytest.mark.parametrize("shared", [True, False])
def test_mixture_density_and_moments_against_scipy(shared, x64):
    rng = np.random.default_rng(0)
    logits, mean, log_std = rng.normal(size=(5, 3, 1 if shared else 2)), *rng.normal(size=(2, 5, 3, 2))
    x, found = rng.normal(size=(5, 2)), d.GaussianMixture(*map(jnp.asarray, (logits, mean, log_std)))
    weights = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    density = stats.norm.pdf(x[:, None], mean, np.exp(log_std))
    if shared:
        expected = np.log((weights[..., 0] * density.prod(axis=2)).sum(axis=1))
    else:
        expected = np.log((weights * density).sum(axis=1)).sum(axis=1)
    np.testing.assert_allclose(found.log_probability(jnp.asarray(x)), expected, rtol=1e-12)
    middle, variance = found.moments()
    np.testing.assert_allclose(middle, (weights * mean).sum(axis=1), rtol=1e-12)
    second = (weights * (np.exp(2 * log_std) + mean**2)).sum(axis=1)
    np.testing.assert_allclose(variance, second - np.asarray(middle) ** 2, rtol=1e-10)


def test_degenerate_mixtures_are_the_gaussian(x64):
    rng = np.random.default_rng(1)
    x, mean, log_std = map(jnp.asarray, rng.normal(size=(3, 6, 4)))
    plain, key = d.Gaussian(mean, log_std), jax.random.key(0)
    density = jax.device_get(plain.log_probability(x))
    for width in (1, 4):
        single = d.GaussianMixture(jnp.full((6, 1, width), 0.3), mean[:, None], log_std[:, None])
        jax.tree.map(np.testing.assert_array_equal, single.component(key), plain)
        jax.tree.map(np.testing.assert_array_equal, single.moments(), (mean, jnp.exp(2 * log_std)))
        np.testing.assert_allclose(single.log_probability(x), density, rtol=0 if width == 1 else 1e-13)
        # Equal components, of any weights.
        logits = jnp.asarray(rng.normal(size=(6, 3, width)))
        equal = d.GaussianMixture(logits, *(jnp.repeat(part[:, None], 3, axis=1) for part in plain))
        for same in (equal, equal.tempered(1.0)):
            np.testing.assert_allclose(same.log_probability(x), density, rtol=1e-12)


@pytest.mark.parametrize("shared", [True, False])
def test_samples_of_a_mixture_have_its_moments_and_its_dependence(shared):
    """The covariance of both entries is that of their components' means, .25 .75 (2 - 0) (5 + 1), or 0."""
    mixture, rows = two_components(shared), 20_000
    many = jax.tree.map(lambda leaf: np.broadcast_to(leaf, (rows, *leaf.shape)), jax.device_get(mixture))
    drawn, (mean, variance) = jax.device_get(jax.jit(lambda m: (m.sample(jax.random.key(0)), m.moments()))(many))
    np.testing.assert_allclose(drawn.mean(axis=0), mean[0], atol=0.1)
    np.testing.assert_allclose(drawn.var(axis=0), variance[0], rtol=0.05)
    assert np.cov(drawn.T)[0, 1] == pytest.approx(0.25 * 0.75 * 2 * 6 if shared else 0.0, abs=0.1)


def test_squashed_number_by_hand(x64):
    zero = np.zeros(1)
    assert float(squashed_log_density(np.full(1, 0.5), zero, zero)) == pytest.approx(-0.8037095, abs=1e-7)


def test_tanh_log_det_in_the_middle_against_the_plain_formula(x64):
    u = np.linspace(-5, 5, 101)
    expected = np.log(1 - np.tanh(u) ** 2)
    np.testing.assert_allclose(tanh_log_det(u[:, None]), expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("u", [-1000.0, -50.0, -20.0, -9.5, -1.0, 0.0, 1e-3, 0.5, 9.5, 20.0, 50.0, 1000.0])
def test_saturation_is_exact(u):
    for dtype, rtol in ((np.float32, 1e-6), (np.float64, 1e-14)):
        with jax.enable_x64(dtype == np.float64):
            got = tanh_log_det(np.array([u], dtype))
            assert got.dtype == dtype
            np.testing.assert_allclose(got, exact_tanh_log_det(u), rtol=rtol, atol=4 * np.finfo(dtype).eps)
            zero = np.zeros(1, dtype)
            expected = stats.norm.logpdf(u) - exact_tanh_log_det(u)
            np.testing.assert_allclose(squashed_log_density(np.array([u], dtype), zero, zero), expected, rtol=2 * rtol)


slope_of_log_det = jax.jit(jax.grad(lambda u: d.tanh_log_det(u[None])))
slopes_of_density = jax.jit(jax.grad(lambda u, m, s: d.squashed_log_density(u[None], m[None], s[None]), argnums=(0, 1, 2)))


@pytest.mark.parametrize("u", [-50.0, -20.0, 0.0, 0.5, 20.0, 50.0])
def test_gradients_are_those_of_the_closed_form(u):
    # d log(1 - tanh^2) / du = -2 tanh(u)
    got = slope_of_log_det(np.float32(u))
    np.testing.assert_allclose(got, -2 * np.tanh(u), rtol=1e-6, atol=1e-7)
    grads = slopes_of_density(np.float32(u), np.float32(0.3), np.float32(-0.5))
    z = (u - 0.3) / np.exp(-0.5)
    expected = [-z / np.exp(-0.5) + 2 * np.tanh(u), z / np.exp(-0.5), z**2 - 1]
    np.testing.assert_allclose(np.asarray(grads), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("mean", "log_std"), [(0.0, 0.0), (1.5, -1.0), (-0.7, 0.5)])
def test_density_of_the_action_integrates_to_one(x64, mean, log_std):
    def density(action):
        u = np.arctanh(action)
        return np.exp(float(squashed_log_density(np.array([u]), np.array([mean]), np.array([log_std]))))

    total, _ = integrate.quad(density, -1, 1, epsabs=1e-8, limit=200)
    assert total == pytest.approx(1, abs=1e-6)


def test_samples_follow_the_density_that_comes_with_them():
    n, mean, log_std = 200_000, 0.4, -0.3
    whole = np.full((n, 1), mean, np.float32), np.full((n, 1), log_std, np.float32)
    action, log_density = jax.device_get(sample_squashed(jax.random.key(0), *whole))
    assert action.shape == (n, 1) and log_density.shape == (n,)
    action = action.astype(np.float64)[:, 0]
    edges = np.linspace(-1, 1, 21)
    counts, _ = np.histogram(action, edges)
    with np.errstate(divide="ignore"):
        expected = n * np.diff(stats.norm.cdf(np.arctanh(edges), mean, np.exp(log_std)))
    assert stats.chisquare(counts, expected).pvalue > 1e-3
    # change of variables, written out for the action
    u = np.arctanh(action)
    by_hand = stats.norm.logpdf(u, mean, np.exp(log_std)) - np.log1p(-(action**2))
    central = np.abs(action) < 0.99
    np.testing.assert_allclose(log_density[central], by_hand[central], rtol=1e-4, atol=1e-4)


def test_samples_are_reparameterised():
    def action(mean, log_std):
        return d.sample_squashed(jax.random.key(3), mean[None], log_std[None])[0][0]

    drawn, got = jax.jit(jax.value_and_grad(action, argnums=(0, 1)))(np.float32(0.2), np.float32(-0.4))
    noise = (np.arctanh(np.float64(drawn)) - 0.2) / np.exp(-0.4)
    slope = 1 - np.float64(drawn) ** 2
    np.testing.assert_allclose(np.asarray(got), [slope, slope * noise * np.exp(-0.4)], rtol=1e-4)


def test_saturated_samples_are_finite_with_finite_gradients():
    def loss(mean, log_std):
        action, log_density = d.sample_squashed(jax.random.key(0), mean, log_std)
        return action.sum() + log_density.sum(), (action, log_density)

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
    for mean in (-50.0, 50.0):
        found = gradients(np.full((64, 3), mean, np.float32), np.full((64, 3), 2.0, np.float32))
        grads, (action, log_density) = jax.device_get(found)
        assert np.abs(action).max() <= 1
        assert np.isfinite(log_density).all()
        assert all(np.isfinite(g).all() for g in grads)


def test_soft_clamp_numbers(x64):
    got = np.asarray(soft_clamp(np.array([[0.0], [5.0], [-20.0]]), np.array([-10.0]), np.array([0.5])))[:, 0]
    below = [0.5 - np.log1p(np.exp(0.5 - v)) for v in (0.0, 5.0, -20.0)]
    np.testing.assert_allclose(got, [-10 + np.log1p(np.exp(b + 10)) for b in below], rtol=1e-12)
    np.testing.assert_allclose(got, [-0.47400, 0.48898, -9.99995], atol=6e-6)


def test_soft_clamp_is_increasing_near_its_bounds_and_trains_them(x64):
    low, high = np.array([-10.0]), np.array([0.5])
    value = np.linspace(-30, 30, 301)[:, None]
    out = np.asarray(soft_clamp(value, low, high))[:, 0]
    assert (np.diff(out) >= 0).all()
    assert (np.diff(out[50:250]) > 0).all()
    np.testing.assert_allclose(out[[0, -1]], [-10, 0.5], atol=1e-4)
    gradients = jax.jit(jax.grad(lambda *args: d.soft_clamp(*args).sum(), argnums=(0, 1, 2)))
    grads = jax.device_get(gradients(np.array([[3.0]]), low, high))
    assert float(grads[0][0, 0]) == pytest.approx(1 / (1 + np.exp(2.5)), rel=1e-3)
    assert 0 < float(grads[1][0]) < 1e-3
    assert float(grads[2][0]) == pytest.approx(1 - 1 / (1 + np.exp(2.5)), rel=1e-3)


compress, expand, two_hot = jax.jit(d.compress), jax.jit(d.expand), jax.jit(d.two_hot)


def test_the_value_transform_by_hand_and_its_inverse(x64):
    numbers = np.array([1.0, 10.0, 100.0, 500.0])
    scaled = np.array([0.415214, 2.326625, 9.149876, 21.883029])
    np.testing.assert_allclose(compress(numbers), scaled, atol=1e-6)
    np.testing.assert_allclose(compress(-numbers), -scaled, atol=1e-6)
    both = np.concatenate([-numbers, np.array([0.0, 1e-6, 1e5]), numbers])
    np.testing.assert_allclose(expand(compress(both)), both, rtol=1e-11, atol=1e-12)


def test_the_inverse_of_the_transform_keeps_digits_of_small_numbers():
    """In float32 the plain form of the inverse is off by 6e-5 at 0."""
    small = np.array([0.0, 1e-4, -1e-3, 0.01], np.float32)
    np.testing.assert_allclose(expand(compress(small)), small, atol=3e-7)


def test_two_hot_by_hand(x64):
    support = np.arange(-10.0, 11.0)
    weights = np.asarray(two_hot(compress(np.array(10.0)), support))
    np.testing.assert_allclose(weights[[12, 13]], [0.673375, 0.326625], atol=1e-6)
    assert weights.sum() == pytest.approx(1) and np.count_nonzero(weights) == 2
    uneven = np.array([-3.0, -1.0, 4.0])
    x = np.array([-5.0, -3.0, -2.5, -1.0, 1.5, 4.0, 9.0])
    weights = np.asarray(two_hot(x, uneven))
    np.testing.assert_allclose(weights @ uneven, np.clip(x, -3, 4), atol=1e-12)
    assert weights[3].tolist() == [0, 1, 0] and weights[-1].tolist() == [0, 0, 1] and (weights >= 0).all()


def test_a_head_of_logits_and_a_plain_one(x64):
    rng = np.random.default_rng(0)
    head, plain = d.ScalarHead(5), d.ScalarHead()
    output, target = rng.normal(size=(4, 11)), np.array([0.0, 3.0, -8.0, 1e4])
    assert (head.size, plain.size) == (11, 1)
    shares = np.exp(output) / np.exp(output).sum(1, keepdims=True)
    mean = shares @ np.arange(-5, 6)
    loss, found = jax.jit(lambda o, t: (head.loss(o, t), head.mean(o)))(output, target)
    np.testing.assert_allclose(compress(found), mean, rtol=1e-9)
    y = np.clip(np.sign(target) * (np.sqrt(np.abs(target) + 1) - 1) + 0.001 * target, -5, 5)
    low = np.minimum(np.floor(y), 4).astype(int)
    logs, row = np.log(shares), np.arange(4)
    due = -(1 - (y - low)) * logs[row, low + 5] - (y - low) * logs[row, low + 6]
    np.testing.assert_allclose(loss, due, rtol=1e-9)
    loss, found = jax.jit(lambda o, t: (plain.loss(o, t), plain.mean(o)))(output[:, :1], target)
    assert found.tolist() == output[:, 0].tolist()
    np.testing.assert_allclose(loss, (output[:, 0] - target) ** 2)


def test_a_gaussian_against_scipy(x64):
    rng = np.random.default_rng(1)
    mean, other = rng.normal(size=(2, 5, 3))
    log_std = rng.normal(size=3) / 2
    found = jax.jit(lambda p: (p.entropy(), p.log_probability(jnp.asarray(other)), p.mode()))(
        d.Gaussian(*map(jnp.asarray, (mean, log_std)))
    )
    np.testing.assert_allclose(found[0], np.full(5, stats.norm.entropy(0, np.exp(log_std)).sum()), rtol=1e-12)
    np.testing.assert_allclose(found[1], stats.norm.logpdf(other, mean, np.exp(log_std)).sum(-1), rtol=1e-12)
    np.testing.assert_array_equal(found[2], mean)


def test_divergences_by_hand(x64):
    """KL(N(0, 1) || N(.5, 2^2)) and its reverse; of choices, against scipy."""
    narrow, wide = d.Gaussian(jnp.zeros(1), jnp.zeros(1)), d.Gaussian(jnp.full(1, 0.5), jnp.log(jnp.full(1, 2.0)))
    assert float(narrow.divergence(wide)) == pytest.approx(0.349397, abs=5e-7)
    assert float(wide.divergence(narrow)) == pytest.approx(0.931853, abs=5e-7)
    assert float(narrow.divergence(narrow)) == 0.0
    logits, others = np.random.default_rng(2).normal(size=(2, 4, 3))
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (logits, others))
    one = d.Categorical(jnp.asarray(logits))
    np.testing.assert_allclose(one.divergence(d.Categorical(jnp.asarray(others))), stats.entropy(p, q, axis=-1), rtol=1e-12)
    np.testing.assert_allclose(one.entropy(), stats.entropy(p, axis=-1), rtol=1e-12)
    choice = np.array([0, 2, 1, 1], np.int32)
    np.testing.assert_allclose(one.log_probability(jnp.asarray(choice)), np.log(p[np.arange(4), choice]), rtol=1e-12)
    np.testing.assert_array_equal(one.mode(), p.argmax(-1))


def test_samples_have_the_distribution():
    keys = jax.random.split(jax.random.key(0), 20_000)
    gaussian, choices = (
        d.Gaussian(np.array([0.5, -1.0]), np.log(np.array([0.3, 2.0]))),
        d.Categorical(np.log([0.2, 0.5, 0.3])),
    )
    vectors, numbers = jax.jit(jax.vmap(lambda key: (gaussian.sample(key), choices.sample(key))))(keys)
    np.testing.assert_allclose(np.mean(vectors, axis=0), [0.5, -1.0], atol=0.05)
    np.testing.assert_allclose(np.std(vectors, axis=0), [0.3, 2.0], rtol=0.03)
    np.testing.assert_allclose(np.bincount(numbers) / 20_000, [0.2, 0.5, 0.3], atol=0.015)


def test_mixed_probabilities_and_the_divergence_of_opposite_choices(x64):
    """K = 8 and 4: at most 6.609065 and 5.924097 nats, because no probability is below .01 / K."""
    for classes, most in ((8, 6.609065), (4, 5.924097)):
        certain = 1e3 * np.eye(classes)[:2]
        logs = jax.jit(lambda x: d.mixed(x, 0.01))(certain)
        share = 0.01 / classes
        np.testing.assert_allclose(np.exp(logs[0]), [0.99 + share, *[share] * (classes - 1)], rtol=1e-12)
        np.testing.assert_allclose(d.Categorical(logs[0]).divergence(d.Categorical(logs[1])), most, atol=5e-7)


def test_unmixed_probabilities_are_those_of_the_logits_and_have_finite_gradients():
    """In float32, where the probability of the second class is 0."""
    logits = np.array([1e3, 0.0], np.float32)
    logs, slope = jax.value_and_grad(lambda x: d.mixed(x, 0.0)[1])(logits)
    assert float(logs) == -1000
    np.testing.assert_array_equal(slope, [-1.0, 1.0])


def test_straight_through_samples_are_one_hot_and_have_the_gradient_of_the_probabilities():
    logits, weights = np.array([0.3, -1.0, 0.5], np.float32), np.array([1.0, -2.0, 3.0], np.float32)

    def chosen(logits, key):
        return d.straight_through(key, d.mixed(logits, 0.01))

    keys = jax.random.split(jax.random.key(0), 4000)
    samples = np.asarray(jax.jit(jax.vmap(chosen, (None, 0)))(logits, keys))
    assert set(np.unique(samples)) == {0.0, 1.0} and (samples.sum(-1) == 1).all()
    p = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(samples.mean(0), 0.99 * p + 0.01 / 3, atol=0.03)
    slope = jax.jit(jax.grad(lambda x: chosen(x, keys[0]) @ weights))(logits)
    np.testing.assert_allclose(slope, 0.99 * p * (weights - p @ weights), atol=1e-6)


symexp_head = d.SymexpHead()
symexp_loss, symexp_mean = jax.jit(symexp_head.loss), jax.jit(symexp_head.mean)


def test_bins_and_weights_of_a_symexp_head(x64):
    """b_127 = 0, b_128 = .170558, b_254 = 4.8517e8; 1 lies between b_131 and b_132, 10 above b_142."""
    output = np.zeros(255)
    bins = np.asarray(jax.jit(symexp_head.bins)(output))
    assert bins[127] == 0 and bins[128] == pytest.approx(0.170558, abs=5e-7)
    assert bins[254] == pytest.approx(4.8517e8, rel=1e-5)
    assert bins.tolist() == (-bins[::-1]).tolist() and (np.diff(bins) > 0).all()
    for x, at, low in ((1.0, 131, 0.617329), (10.0, 142, 0.786963)):
        weights = np.asarray(two_hot(np.array(x), bins))
        assert np.flatnonzero(weights).tolist() == [at, at + 1]
        assert weights[at] == pytest.approx(low, abs=5e-7) and weights[at + 1] == pytest.approx(1 - low, abs=5e-7)
    assert float(symexp_loss(output, np.array(3.3))) == pytest.approx(5.541264, abs=5e-7)
    x = np.array([-7.5, 0.0, 1e-3, 2.0])
    logs, same = jax.jit(lambda x: (d.symlog(x), d.symexp(d.symlog(x))))(x)
    np.testing.assert_allclose(same, x, rtol=1e-12)
    np.testing.assert_allclose(logs[3], np.log(3), rtol=1e-12)


def test_a_symexp_head_takes_the_mean_of_the_bins_themselves(x64):
    """Equal logits give exactly 0, in float32 too. Half of the mass on -1 and half on 3 is 1: the mean of the logarithms
    would be symexp(log(2) / 2) = .4142."""
    for dtype in (np.float32, np.float64):
        assert float(symexp_mean(np.full(255, 0.3, dtype))) == 0.0
    bins = np.asarray(jax.jit(symexp_head.bins)(np.zeros(255)))
    half = sum(np.asarray(two_hot(np.array(x), bins)) for x in (-1.0, 3.0)) / 2
    assert float(symexp_mean(np.log(half + 1e-300))) == pytest.approx(1.0, abs=1e-9)
    assert float(d.symexp((d.symlog(jnp.asarray(-1.0)) + d.symlog(jnp.asarray(3.0))) / 2)) == pytest.approx(
        0.4142, abs=5e-5
    )


def test_the_loss_of_a_symexp_head_is_least_at_its_target():
    output = np.random.default_rng(0).normal(size=255).astype(np.float32)
    due = np.asarray(two_hot(np.float32(4.0), np.asarray(symexp_head.bins(jnp.asarray(output)))))
    slope = jax.jit(jax.grad(symexp_head.loss))(output, np.float32(4.0))
    p = np.exp(output) / np.exp(output).sum()
    np.testing.assert_allclose(slope, p - due, atol=1e-6)
    assert float(jax.jit(jax.grad(symexp_head.loss, argnums=1))(output, np.float32(4.0))) == 0.0


def test_a_symlog_head_by_hand(x64):
    """symlog 1 = .693147 lies between bins 53 and 54 of 101. Half of the mass on -1 and half on 3 is symexp(log(2) / 2)."""
    head, targets = d.SymlogHead(), np.array([1.0, 1e9, -1e9])

    @jax.jit
    def looked(output, target):
        weights, pair = (d.two_hot(d.symlog(x), head.bins(output)) for x in (target, jnp.array([-1.0, 3.0])))
        means = [head.mean(x) for x in (jnp.log(weights), jnp.log(jnp.mean(pair, axis=0)), output[0])]
        return head.bins(output), weights, *means, head.loss(output, target)

    bins, weights, mean, both, equal, loss = jax.device_get(looked(np.zeros((3, 101)), targets))
    np.testing.assert_allclose(bins, np.linspace(-10, 10, 101), atol=1e-14)
    assert np.flatnonzero(weights[0]).tolist() == [53, 54]
    np.testing.assert_allclose(weights[0, 53:55], [0.534264, 0.465736], atol=5e-7)
    # Numbers beyond the last bin are on it, and nothing is on the first.
    assert weights[1].tolist() == [0.0] * 100 + [1.0] and weights[2].tolist() == [1.0] + [0.0] * 100
    np.testing.assert_allclose(mean, [1.0, np.expm1(10), -np.expm1(10)], rtol=1e-9)
    assert both == pytest.approx(0.414214, abs=5e-7) and equal == 0.0
    np.testing.assert_allclose(loss, np.log(101), rtol=1e-12)


def test_a_truncated_normal_against_scipy(x64):
    rng = np.random.default_rng(4)
    mean, log_std = rng.uniform(-1, 1, (5, 3)), np.log(rng.uniform(0.1, 2.0, (5, 3)))
    x, std = rng.uniform(-1, 1, (5, 3)), np.exp(log_std)
    due = stats.truncnorm((-1 - mean) / std, (1 - mean) / std, mean, std)

    def found(mean, log_std):
        given = d.TruncatedNormal(mean, log_std)
        return given.entropy(), given.log_probability(jnp.asarray(x)), given.mode()

    entropy, logs, mode = jax.jit(found)(mean, log_std)
    np.testing.assert_allclose(entropy, due.entropy().sum(-1), rtol=1e-9)
    np.testing.assert_allclose(logs, due.logpdf(x).sum(-1), rtol=1e-9)
    np.testing.assert_array_equal(mode, mean)

    def sample(mean, log_std, key):
        return d.TruncatedNormal(mean, log_std).sample(key)

    keys = jax.random.split(jax.random.key(0), 20_000)
    samples = np.asarray(jax.jit(jax.vmap(sample, (None, None, 0)))(mean, log_std, keys))
    np.testing.assert_allclose(samples.mean(0), due.mean(), atol=0.02)
    np.testing.assert_allclose(samples.std(0), due.std(), atol=0.02)
    # At a fixed quantile: the derivative of the quantile function.
    slope = jax.jit(jax.grad(lambda m: sample(m, log_std, keys[0]).sum()))(mean)
    quantile, step = due.cdf(samples[0]), 1e-5
    near = [stats.truncnorm((-1 - m) / std, (1 - m) / std, m, std).ppf(quantile) for m in (mean - step, mean + step)]
    np.testing.assert_allclose(slope, (near[1] - near[0]) / (2 * step), rtol=1e-4)


def test_gradients_of_a_saturated_truncated_normal_are_finite_in_float32():
    """The keys are such that one of the numbers is the smallest one, whose quantile without a bound is minus infinity."""

    @jax.jit
    def slope(key):
        def total(mean):
            at = jnp.full(2**20, mean, jnp.float32)
            return jnp.sum(d.TruncatedNormal(at, jnp.full_like(at, np.log(0.1))).sample(key))

        return jax.grad(total)(jnp.float32(0.9))

    assert np.isfinite([float(slope(jax.random.key(seed))) for seed in (4, 7, 23)]).all()
