"""Which imagined rows are kept: the two measures of disagreement by hand and against integrals, the rules row by row."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from jaxmbrl.models import disagreement as trust
from jaxmbrl.models.disagreement import Filter, TrustConfig

geometric_jensen_shannon = jax.jit(trust.geometric_jensen_shannon)
MEASURES = {name: jax.jit(getattr(trust, name)) for name in ("pairwise", "one_against_rest", "information_gain")}


def opinions(seed, members=4, rows=6, size=3):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(members, rows, size)), rng.uniform(0.1, 2.0, (members, rows, size))


def divergence(mean, variance, other_mean, other):
    """KL(N(mean, variance) || N(other_mean, other)) over one dimension, by integration."""

    def log_density(x, mean, variance):
        return -0.5 * ((x - mean) ** 2 / variance + math.log(2 * math.pi * variance))

    def integrand(x):
        p = log_density(x, mean, variance)
        return math.exp(p) * (p - log_density(x, other_mean, other))

    wide = 12 * math.sqrt(variance)
    return integrate.quad(integrand, mean - wide, mean + wide)[0]


def geometric(mean, variance, other_mean, other):
    """Its definition: the mean divergence of the normalised geometric mean of both densities from each."""
    middle = 1 / (0.5 / variance + 0.5 / other)
    centre = middle * (0.5 * mean / variance + 0.5 * other_mean / other)
    return 0.5 * divergence(centre, middle, mean, variance) + 0.5 * divergence(centre, middle, other_mean, other)


def test_geometric_jensen_shannon_by_hand():
    zero, one, four = np.zeros(1), np.ones(1), np.full(1, 4.0)
    assert float(geometric_jensen_shannon(zero, one, zero, four)) == pytest.approx(0.111572, abs=1e-6)
    # Of equal variances: the squared distance over 8 variances.
    assert float(geometric_jensen_shannon(zero, four, 3 * one, four)) == pytest.approx(9 / 32)
    assert float(geometric_jensen_shannon(one, four, one, four)) == 0


def test_geometric_jensen_shannon_is_its_definition(x64):
    mean, variance = opinions(0, members=2, rows=3, size=2)
    found = geometric_jensen_shannon(mean[0], variance[0], mean[1], variance[1])
    for n in range(3):
        summed = sum(geometric(mean[0, n, d], variance[0, n, d], mean[1, n, d], variance[1, n, d]) for d in range(2))
        assert float(found[n]) == pytest.approx(summed, rel=1e-8)


def test_pairwise_is_the_mean_over_pairs(x64):
    mean, variance = opinions(1)
    pairs = list(itertools.combinations(range(4), 2))
    summed = sum(np.asarray(geometric_jensen_shannon(mean[a], variance[a], mean[b], variance[b])) for a, b in pairs)
    np.testing.assert_allclose(MEASURES["pairwise"](mean, variance), summed / 6, rtol=1e-12)


def test_one_against_rest_is_its_definition(x64):
    mean, variance = opinions(2, members=3, rows=2, size=2)
    found = MEASURES["one_against_rest"](mean, variance)
    for n in range(2):
        total = 0.0
        for e in range(3):
            others = [i for i in range(3) if i != e]
            for d in range(2):
                first = np.mean([mean[i, n, d] for i in others])
                second = np.mean([variance[i, n, d] + mean[i, n, d] ** 2 for i in others])
                total += divergence(mean[e, n, d], variance[e, n, d], first, second - first**2)
        assert float(found[n]) == pytest.approx(total / 3, rel=1e-8)


def test_information_gain_by_hand():
    """Means 0 and 2, variances 1: log(1 + 1) / 2. Variances 1 and 4: (log 2.5 - log 2) / 2. Both: (log 3.5 - log 2) / 2."""
    mean = np.array([[[0.0], [0.0], [0.0]], [[2.0], [0.0], [2.0]]], np.float32)
    variance = np.array([[[1.0], [1.0], [1.0]], [[1.0], [4.0], [4.0]]], np.float32)
    expected = [np.log(2) / 2, np.log(1.25) / 2, np.log(1.75) / 2]
    np.testing.assert_allclose(MEASURES["information_gain"](mean, variance), expected, rtol=1e-6)


def test_explore_keeps_all_rows_with_a_bonus():
    decided = applied(TrustConfig("explore", bonus=0.1), DISAGREEMENT, [True, True, False, True, True])
    np.testing.assert_array_equal(decided.kept, [True, True, False, True, True])
    np.testing.assert_array_equal(decided.continues, decided.kept)
    np.testing.assert_allclose(decided.penalty, -0.1 * np.array(DISAGREEMENT), rtol=1e-6)
    none = applied(TrustConfig("explore", bonus=0.0), DISAGREEMENT)
    assert not none.penalty.any() and none.kept.all(), "without a bonus this is the rule always"


@pytest.mark.parametrize("name", MEASURES)
def test_identical_members_do_not_disagree_and_units_do_not_matter(x64, name):
    measure, (mean, variance) = MEASURES[name], opinions(3)
    same = np.broadcast_to(mean[:1], mean.shape), np.broadcast_to(variance[:1], variance.shape)
    np.testing.assert_allclose(measure(*same), 0.0, atol=1e-15)
    units = np.array([1e-3, 1.0, 50.0])
    np.testing.assert_allclose(measure(7 + mean * units, variance * units**2), measure(mean, variance), rtol=1e-9)
    # The order of the members does not matter either.
    np.testing.assert_allclose(measure(mean[::-1], variance[::-1]), measure(mean, variance), rtol=1e-12)
    assert np.min(measure(mean, variance)) > 0.01


@pytest.mark.parametrize("name", MEASURES)
def test_a_dimension_in_which_no_member_varies_contributes_nothing(x64, name):
    measure, (mean, variance) = MEASURES[name], opinions(4)
    still = np.zeros((4, 6, 1))
    found = measure(np.concatenate([mean, still + 1], axis=-1), np.concatenate([variance, still], axis=-1))
    np.testing.assert_allclose(found, measure(mean, variance), rtol=1e-12)


def applied(config, disagreement, alive=None, i=0, length=10, thresholds=None) -> Filter:
    alive = np.ones(len(disagreement), bool) if alive is None else np.asarray(alive)
    rows = np.asarray(disagreement, np.float32), alive
    return jax.device_get(filtering(config)(thresholds, rows, np.int32(i), np.int32(length)))


@functools.cache
def filtering(config):
    """The compiled decision of a rule, from its first thresholds where none are given."""

    @jax.jit
    def decide(thresholds, rows, i, length):
        return trust.make(config).apply(trust.init(config) if thresholds is None else thresholds, *rows, i, length)

    return decide


threshold = jax.jit(trust.threshold)


DISAGREEMENT = [1.0, 5.0, 2.0, 4.0, 3.0]


def test_always_keeps_branches_until_they_terminate():
    decided = applied(TrustConfig(), DISAGREEMENT, [True, False, True, True, False])
    assert decided.kept.tolist() == decided.continues.tolist() == [True, False, True, True, False]
    assert float(decided.penalty) == 0
    assert trust.make(TrustConfig()).disagreement is None


def test_macura_ends_branches_at_the_threshold_of_this_very_refit():
    config = TrustConfig("macura", scale=0.5, percentile=75.0)
    # NumPy's percentile of the first step: 4. Half of it is the threshold, and 2 is not below it.
    decided = applied(config, DISAGREEMENT)
    assert float(threshold(decided.thresholds)) == 2.0 == 0.5 * np.percentile(DISAGREEMENT, 75)
    assert decided.kept.tolist() == decided.continues.tolist() == [True, False, False, False, False]
    # Later steps of a rollout leave the threshold alone, and an ended branch stays ended.
    later = applied(config, [9.0, 0.0, 0.0, 9.0, 1.9], [True, False, True, True, True], 1, thresholds=decided.thresholds)
    assert float(threshold(later.thresholds)) == 2.0
    assert later.kept.tolist() == later.continues.tolist() == [False, False, True, False, True]
    assert int(later.thresholds.refits) == 1


def test_macura_keeps_rows_whose_members_agree_exactly():
    """Two members in float32. Their measure is exactly 0 where they are equal, else the squared distance over 8 variances:
    1/32 and 9/32. The median of the five rows, 1/32, is the threshold."""
    variance = np.array([[0.3, 1.7], [1e-6, 77.7], [4.0, 0.1], [4.0, 2.9], [4.0, 1e5]], np.float32)
    mean = np.array([[0.1, -3.7], [9.9, 1e-3], [5.0, 0.6], [5.0, 0.7], [5.0, 0.8]], np.float32)
    other = mean + np.array([[0, 0], [0, 0], [1, 0], [3, 0], [-3, 0]], np.float32)
    rule = trust.make(TrustConfig("macura", percentile=50.0))
    found = jax.jit(rule.disagreement)(np.stack([mean, other]), np.stack([variance, variance]))
    assert found.tolist() == [0, 0, 1 / 32, 9 / 32, 9 / 32]
    decided = applied(TrustConfig("macura", percentile=50.0), found)
    assert float(threshold(decided.thresholds)) == 1 / 32
    assert decided.kept.tolist() == decided.continues.tolist() == [True, True, False, False, False]
    many = np.random.default_rng(0).uniform(0.01, 3, (1, 1000, 1)).astype(np.float32).repeat(2, axis=0)
    assert not jax.jit(rule.disagreement)(many, many).any(), "no rounding error either"


def test_macuras_threshold_is_the_mean_over_the_last_refits():
    config = TrustConfig("macura", percentile=100.0, rounds=3)
    thresholds, seen = jax.device_get(jax.jit(lambda: trust.init(config))()), []
    assert float(threshold(thresholds)) == 0.0
    for refit in range(5):
        thresholds = applied(config, np.array(DISAGREEMENT) * 10**refit, thresholds=thresholds).thresholds
        seen.append(5.0 * 10**refit)
        assert float(threshold(thresholds)) == pytest.approx(np.mean(seen[-3:]))


def test_a_disagreement_that_is_not_finite_is_left_out_of_macuras_threshold():
    """The quartile of the finite numbers is 3.5. A refit without any finite number changes nothing."""
    config = TrustConfig("macura", percentile=75.0, rounds=3)
    spoiled = [1.0, np.nan, 2.0, 5.0, np.inf, 3.0]
    decided = applied(config, spoiled)
    assert float(threshold(decided.thresholds)) == 3.5 == np.percentile([1.0, 2.0, 5.0, 3.0], 75)
    assert decided.kept.tolist() == decided.continues.tolist() == [True, False, True, False, False, True]
    none = applied(config, [np.nan] * 6, thresholds=decided.thresholds)
    jax.tree.map(np.testing.assert_array_equal, none.thresholds, decided.thresholds)
    assert not none.kept.any()
    later = applied(config, [1.5] * 6, thresholds=none.thresholds)
    assert float(threshold(later.thresholds)) == 2.5 and later.kept.all()


def test_macura_without_bound_is_mbpo_and_with_none_keeps_nothing():
    everything = applied(TrustConfig("macura", scale=1e30), DISAGREEMENT)
    assert everything.kept.all() and everything.continues.all()
    nothing = applied(TrustConfig("macura", scale=0.0), DISAGREEMENT)
    assert not nothing.kept.any() and not nothing.continues.any()
    # Members that agree everywhere end no branch, as long as there is a threshold.
    assert applied(TrustConfig("macura"), [0.0, 0.0, 1.0], i=0).kept.tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("i", "length", "kept"),
    [
        # (K - h) / (2 (K + 1)) of five rows, rounded down: 10/22, 5/22, 1/22; half of them where K = 1.
        (0, 10, [0, 2]),
        (5, 10, [0]),
        (9, 10, []),
        (0, 1, [0, 2]),
        (0, 1000, [0, 2]),
    ],
)
def test_m2ac_keeps_the_rows_with_least_disagreement_and_ends_no_branch(i, length, kept):
    decided = applied(TrustConfig("m2ac", penalty=0.1), DISAGREEMENT, i=i, length=length)
    assert np.flatnonzero(decided.kept).tolist() == kept
    assert decided.continues.all()
    np.testing.assert_allclose(decided.penalty, 0.1 * np.array(DISAGREEMENT), rtol=1e-6)


def test_m2ac_ranks_only_rows_that_have_not_terminated():
    decided = applied(TrustConfig("m2ac"), DISAGREEMENT, [False, True, False, True, True], length=1)
    assert np.flatnonzero(decided.kept).tolist() == [4]
    assert decided.continues.tolist() == [False, True, False, True, True]


def test_mopos_penalty_is_the_norm_of_the_largest_members_standard_deviations():
    """Of two rows: norms 5 and 2, and 3 and 13."""
    variance = jnp.array([[[9.0, 16.0], [4.0, 5.0]], [[0.0, 4.0], [25.0, 144.0]]])
    mean = jnp.zeros_like(variance)
    np.testing.assert_allclose(trust.largest_deviation(mean, variance), [5.0, 13.0], rtol=1e-6)
    decided = applied(TrustConfig("mopo", penalty=0.5), [5.0, 13.0, 2.0], [True, False, True])
    assert decided.kept.tolist() == decided.continues.tolist() == [True, False, True]
    np.testing.assert_array_equal(decided.penalty, [2.5, 6.5, 1.0])
