"""Measures of the members' disagreement about a step, and rules that filter imagined rows by it.

- `always`: all rows are kept until their branch terminates, as in MBPO.
- `macura`: a branch ends at the first step whose disagreement is not below a threshold, and that step is not kept
  (Frauenknecht et al., Trust the model where it trusts itself, arXiv 2405.19014). The disagreement is the mean over pairs
  of members of the geometric Jensen-Shannon divergence of their Gaussians, the threshold `scale` times the `percentile`
  of the first step's disagreement over the start rows, averaged over the last `rounds` refits, the present one included.
  Start rows whose disagreement is not finite do not count. Since the rule may keep few rows, rows are dropped after some
  refits even if the buffer is not full.
- `m2ac`: at step h of K, the share (K - h) / (2 (K + 1)) of the rows that have not terminated is kept, those with the least
  disagreement, or half of them if K is 1; `penalty` times its disagreement is subtracted from each reward, and the rule
  ends no branch (Pan et al., arXiv 2010.04893). The disagreement is the Kullback-Leibler divergence of a member's Gaussian
  from the Gaussian with the moments of the mixture of all others.
- `explore`: all rows are kept, and `bonus` times the disagreement is added to each reward, so that the policy seeks what
  the members do not agree on (Shyam et al., MAX, arXiv 1810.12162; Pathak et al., arXiv 1906.04161). The disagreement is
  the information that the outcome gives about which member is right, of Gaussians and their mixture's moments.
- `mopo`: all rows are kept, and `penalty` times the largest member's `largest_deviation` is subtracted from each reward (Yu
  et al., MOPO, arXiv 2005.13239, section 4.3). With penalty 0 the rows are those of `always`.

Differences: M2AC takes the divergence of the one member that the row was sampled from; here it is the mean over all
members, each of which may be sampled; and only rows that have not terminated are ranked, whereas its code ranks all. MAX
takes the Jensen-Renyi divergence instead of the information, and Pathak et al. the variance of the means, whose size
depends on the units. MOPO's measure is a length in the units of the predicted numbers, and the others do not depend on
these.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge, Le
from jaxtyping import Array, Bool, Float, Int

from jaxmbrl.core import tree


@dataclass(frozen=True)
class TrustConfig:
    """Settings of the rule that filters imagined rows."""

    rule: Literal["always", "macura", "m2ac", "explore", "mopo"] = "always"
    """Keep all rows (always), those before the disagreement first reaches a threshold (macura), those with the least
    disagreement (m2ac), all rows with a bonus for disagreement (explore), or all with a lower reward (mopo)."""
    scale: Annotated[float, Ge(0)] = 1.0
    """MACURA's xi: the threshold as a multiple of the percentile."""
    percentile: Annotated[float, Ge(0), Le(100)] = 95.0
    """MACURA's zeta: the percentile of the first step's disagreement, in percent."""
    rounds: Annotated[int, Ge(1)] = 2000
    """Refits over which MACURA's threshold is averaged, the present one included."""
    penalty: Annotated[float, Ge(0)] = 1e-3
    """M2AC's penalty, subtracted from the reward for each nat of disagreement, or MOPO's lambda, for each unit of the
    standard deviation."""
    bonus: Annotated[float, Ge(0)] = 0.1
    """Bonus of the rule `explore`, added to the reward for each nat of disagreement."""


class Thresholds(NamedTuple):
    """MACURA's thresholds of the last refits."""

    latest: Float[Array, "rounds"]
    refits: Int[Array, ""]
    """Refits so far."""


class Filter(NamedTuple):
    """A rule's decision about the rows of one imagined step."""

    kept: Bool[Array, "N"]
    """Rows to store."""
    continues: Bool[Array, "N"]
    """Rows whose branch continues."""
    penalty: Float[Array, "N"] | float
    """Subtracted from the reward."""
    thresholds: Thresholds


class Trust(NamedTuple):
    """A rule that filters imagined rows."""

    disagreement: Callable[[Float[Array, "E N D"], Float[Array, "E N D"]], Float[Array, "N"]] | None
    """(means, variances) of the members -> disagreement, in nats or in the units of the means; None if the rule does not
    use it."""
    apply: Callable[[Thresholds, Float[Array, "N"], Bool[Array, "N"], Int[Array, ""], Int[Array, ""] | int], Filter]
    """(thresholds, disagreement, alive, index of the step, length of the branches) -> Filter."""
    expires: bool = False
    """Whether old rows are dropped even if the buffer is not full."""


def init(config: TrustConfig) -> Thresholds:
    """Thresholds before the first refit."""
    return Thresholds(jnp.zeros(config.rounds), jnp.zeros((), jnp.int32))


def make(config: TrustConfig, penalty: Float[Array, ""] | float | None = None) -> Trust:
    """The rule selected by `config`. A `penalty`, which may be traced, replaces the config's."""
    cost = config.penalty if penalty is None else penalty

    def always(thresholds: Thresholds, disagreement: Array, alive: Array, i: Array, length: Array | int) -> Filter:
        return Filter(alive, alive, 0.0, thresholds)

    def macura(thresholds: Thresholds, disagreement: Array, alive: Array, i: Array, length: Array | int) -> Filter:
        thresholds = jax.lax.cond(i == 0, lambda: _observe(config, thresholds, disagreement), lambda: thresholds)
        certain = alive & (disagreement < threshold(thresholds))
        return Filter(certain, certain, 0.0, thresholds)

    def m2ac(thresholds: Thresholds, disagreement: Array, alive: Array, i: Array, length: Array | int) -> Filter:
        share = jnp.where(length == 1, 0.5, (length - i) / (2 * (length + 1)))
        rank = jnp.argsort(jnp.argsort(jnp.where(alive, disagreement, jnp.inf)))
        certain = alive & (rank < jnp.floor(share * jnp.sum(alive)))
        return Filter(certain, alive, cost * disagreement, thresholds)

    def explore(thresholds: Thresholds, disagreement: Array, alive: Array, i: Array, length: Array | int) -> Filter:
        return Filter(alive, alive, -config.bonus * disagreement, thresholds)

    def mopo(thresholds: Thresholds, disagreement: Array, alive: Array, i: Array, length: Array | int) -> Filter:
        return Filter(alive, alive, cost * disagreement, thresholds)

    rules = {
        "always": Trust(None, always),
        "macura": Trust(pairwise, macura, True),
        "m2ac": Trust(one_against_rest, m2ac),
        "explore": Trust(information_gain, explore),
        "mopo": Trust(largest_deviation, mopo),
    }
    return rules[config.rule]


def threshold(thresholds: Thresholds) -> Float[Array, ""]:
    """The mean of the refits' thresholds; 0 before the first."""
    known = jnp.arange(thresholds.latest.size) < thresholds.refits
    return jnp.sum(jnp.where(known, thresholds.latest, 0.0)) / jnp.maximum(jnp.sum(known), 1)


def _observe(config: TrustConfig, thresholds: Thresholds, disagreement: Float[Array, "N"]) -> Thresholds:
    finite = jnp.isfinite(disagreement)
    now = config.scale * jnp.nanpercentile(jnp.where(finite, disagreement, jnp.nan), config.percentile)
    place = thresholds.refits % config.rounds
    observed = Thresholds(thresholds.latest.at[place].set(now), thresholds.refits + 1)
    return tree.where(jnp.any(finite), observed, thresholds)


def pairwise(mean: Float[Array, "E N D"], variance: Float[Array, "E N D"]) -> Float[Array, "N"]:
    """The mean over unordered pairs of the members' `geometric_jensen_shannon` divergences, in nats."""
    pairs = jnp.array(list(combinations(range(mean.shape[0]), 2)))

    # One pair at a time, to save memory: seven members have 21 pairs.
    def add(i: Int[Array, ""], total: Float[Array, "N"]) -> Float[Array, "N"]:
        a, b = pairs[i]
        return total + geometric_jensen_shannon(mean[a], variance[a], mean[b], variance[b])

    return jax.lax.fori_loop(0, len(pairs), add, jnp.zeros(mean.shape[1])) / len(pairs)


def geometric_jensen_shannon(
    mean: Float[Array, "*n D"],
    variance: Float[Array, "*n D"],
    other_mean: Float[Array, "*n D"],
    other: Float[Array, "*n D"],
) -> Float[Array, "*n"]:
    """The geometric Jensen-Shannon divergence of two diagonal Gaussians, in nats (MACURA, arXiv 2405.19014).

    It is the mean Kullback-Leibler divergence of their normalised geometric mean from each, the dual form of Deasy et al.
    (arXiv 2006.10599), written without terms that cancel: half the sum over dimensions of

        (difference of means)^2 / (2 (v + w)) + log((v + w) / (2 sqrt(v w)))

    A dimension with variance 0 in both contributes nothing.
    """
    still = (variance == 0) & (other == 0)
    v, w = jnp.where(still, 1.0, variance), jnp.where(still, 1.0, other)
    # The logarithm of (v + w) / (2 sqrt(v w)), so that it is exactly 0 for equal variances.
    spread = jnp.log1p((v - w) / v * ((v - w) / w) / 4) / 2
    apart = (mean - other_mean) ** 2 / (2 * (v + w)) + spread
    return 0.5 * jnp.sum(jnp.where(still, 0.0, apart), axis=-1)


def one_against_rest(mean: Float[Array, "E N D"], variance: Float[Array, "E N D"]) -> Float[Array, "N"]:
    """The mean over members of the Kullback-Leibler divergence of the member's Gaussian from the Gaussian with the mean and
    the variance of the mixture of all others, in nats (M2AC, arXiv 2010.04893, section 4.2)."""
    others = mean.shape[0] - 1

    def divergence(e: Int[Array, ""]) -> Float[Array, "N"]:
        # Relative to the member's own mean, so that a common offset of the means cancels exactly.
        apart = mean - mean[e]
        rest = jnp.sum(apart, axis=0) / others
        spread = (jnp.sum(variance, axis=0) - variance[e] + jnp.sum((apart - rest) ** 2, axis=0) - rest**2) / others
        still = (variance[e] == 0) & (spread == 0)
        v, w = jnp.where(still, 1.0, variance[e]), jnp.where(still, 1.0, spread)
        return 0.5 * jnp.sum(jnp.where(still, 0.0, jnp.log(w / v) - 1 + v / w + rest**2 / w), axis=-1)

    return jnp.mean(jax.lax.map(divergence, jnp.arange(mean.shape[0])), axis=0)


def information_gain(mean: Float[Array, "E N D"], variance: Float[Array, "E N D"]) -> Float[Array, "N"]:
    """The entropy of the Gaussian with the moments of the mixture of all members, minus the mean entropy of the members, in
    nats: an upper bound of the information that the outcome gives about the member, and 0 where all members agree.

    It is the sum over dimensions of (log(mean of v + variance of the means) - mean of log v) / 2. A dimension in which no
    member has a variance contributes nothing.
    """
    still = jnp.all(variance == 0, axis=0)
    v = jnp.where(still, 1.0, variance)
    # Relative to the first member, so that equal means have a variance of exactly 0.
    spread = jnp.where(still, 0.0, jnp.var(mean - mean[0], axis=0))
    # Relative to the first variance, so that equal variances have a logarithm of exactly 0.
    ratio = v / v[0]
    gain = jnp.log(jnp.mean(ratio, axis=0) + spread / v[0]) - jnp.mean(jnp.log(ratio), axis=0)
    return 0.5 * jnp.sum(gain, axis=-1)


def largest_deviation(mean: Float[Array, "E N D"], variance: Float[Array, "E N D"]) -> Float[Array, "N"]:
    """The largest over members of the norm of the predicted standard deviations, in the units of the means (MOPO, arXiv
    2005.13239, section 4.3). Its square is the largest trace of a member's covariance."""
    return jnp.sqrt(jnp.max(jnp.sum(variance, axis=-1), axis=0))


def largest_difference(mean: Float[Array, "E N D"]) -> Float[Array, "N"]:
    """The largest distance of two members' means, in their units (MOReL, arXiv 2005.05951, section 4.2)."""

    # One member at a time, to save memory.
    def from_member(e: Int[Array, ""]) -> Float[Array, "N"]:
        return jnp.max(jnp.sum((mean - mean[e]) ** 2, axis=-1), axis=0)

    return jnp.sqrt(jnp.max(jax.lax.map(from_member, jnp.arange(mean.shape[0])), axis=0))
