"""Diagonal Gaussian and mixtures of it, tanh-squashed and truncated Gaussian, categorical distribution and its
straight-through samples, soft bounds on a log-variance, and real numbers as a network's output. Sizes are on the last
axis."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxmbrl.core.types import Key


def gaussian_log_density(
    x: Float[Array, "*n d"], mean: Float[Array, "*n d"], log_std: Float[Array, "*#n d"]
) -> Float[Array, "*n"]:
    """Log-density of a diagonal Gaussian, in nats.

    >>> from jaxmbrl.distributions import gaussian_log_density
    >>> round(float(gaussian_log_density(jnp.zeros(2), jnp.zeros(2), jnp.zeros(2))), 4)  # -log(2 pi)
    -1.8379
    """
    standard = (x - mean) * jnp.exp(-log_std)
    return jnp.sum(-0.5 * standard**2 - log_std - 0.5 * math.log(2 * math.pi), axis=-1)


class Gaussian(NamedTuple):
    """A diagonal Gaussian over vectors."""

    mean: Float[Array, "*n d"]
    log_std: Float[Array, "*m d"]
    """Log standard deviation, of each row or of all."""

    def sample(self, key: Key) -> Float[Array, "*n d"]:
        """A sample of each row."""
        return self.mean + jnp.exp(self.log_std) * jax.random.normal(key, self.mean.shape, self.mean.dtype)

    def mode(self) -> Float[Array, "*n d"]:
        """The mean."""
        return self.mean

    def log_probability(self, x: Float[Array, "*n d"]) -> Float[Array, "*n"]:
        """Log-density, in nats."""
        return gaussian_log_density(x, self.mean, self.log_std)

    def entropy(self) -> Float[Array, "*n"]:
        """Differential entropy, in nats."""
        each = jnp.broadcast_to(self.log_std, self.mean.shape) + 0.5 * math.log(2 * math.pi * math.e)
        return jnp.sum(each, axis=-1)

    def divergence(self, other: Gaussian) -> Float[Array, "*n"]:
        """Kullback-Leibler divergence KL(self || other), in nats.

        >>> from jaxmbrl.distributions import Gaussian
        >>> near, wide = Gaussian(jnp.zeros(1), jnp.zeros(1)), Gaussian(jnp.array([0.5]), jnp.log(jnp.array([2.0])))
        >>> round(float(near.divergence(wide)), 4), round(float(wide.divergence(near)), 4)
        (0.3494, 0.9319)
        """
        squares = jnp.exp(2 * (self.log_std - other.log_std)) + ((self.mean - other.mean) * jnp.exp(-other.log_std)) ** 2
        return jnp.sum(other.log_std - self.log_std + 0.5 * (squares - 1), axis=-1)


class GaussianMixture(NamedTuple):
    """Mixtures of K diagonal Gaussians over vectors, the output of a mixture density network (Bishop, Mixture density
    networks, Aston University, 1994).

    With logits [K, 1] one component is drawn for the whole vector, whose entries then depend on each other. With logits
    [K, d] each entry has its own mixture and is independent of the others, as in World Models (arXiv 1803.10122).
    """

    logits: Float[Array, "*n k w"]
    """Unnormalised log-weights of the components; w is 1 or d."""
    mean: Float[Array, "*n k d"]
    log_std: Float[Array, "*n k d"]

    def log_weight(self) -> Float[Array, "*n k w"]:
        """Log-probabilities of the components."""
        return jax.nn.log_softmax(self.logits, axis=-2)

    def component(self, key: Key) -> Gaussian:
        """A component of each row, or of each of its entries, drawn by its weight."""
        choice = jax.random.categorical(key, self.logits, axis=-2)[..., None, :]
        mean, log_std = (jnp.take_along_axis(part, choice, axis=-2)[..., 0, :] for part in (self.mean, self.log_std))
        return Gaussian(mean, log_std)

    def sample(self, key: Key) -> Float[Array, "*n d"]:
        """A sample of each row, differentiable in mean and deviation of its component, but not in the weights."""
        choice_key, noise_key = jax.random.split(key)
        return self.component(choice_key).sample(noise_key)

    def moments(self) -> tuple[Float[Array, "*n d"], Float[Array, "*n d"]]:
        """(mean, variance) of each entry.

        >>> from jaxmbrl.distributions import GaussianMixture
        >>> both = GaussianMixture(jnp.log(jnp.array([[0.25], [0.75]])), jnp.array([[0.0], [2.0]]), jnp.zeros((2, 1)))
        >>> [round(float(x[0]), 4) for x in both.moments()]
        [1.5, 1.75]
        """
        weight = jnp.exp(self.log_weight())
        mean = jnp.sum(weight * self.mean, axis=-2)
        spread = jnp.exp(2 * self.log_std) + (self.mean - mean[..., None, :]) ** 2
        return mean, jnp.sum(weight * spread, axis=-2)

    def log_probability(self, x: Float[Array, "*n d"]) -> Float[Array, "*n"]:
        """Log-density, in nats."""
        standard = (x[..., None, :] - self.mean) * jnp.exp(-self.log_std)
        density = -0.5 * standard**2 - self.log_std - 0.5 * math.log(2 * math.pi)
        if self.logits.shape[-1] == 1:
            density = jnp.sum(density, axis=-1, keepdims=True)
        return jnp.sum(jax.nn.logsumexp(self.log_weight() + density, axis=-2), axis=-1)

    def tempered(self, temperature: Float[Array, ""] | float) -> GaussianMixture:
        """The mixture at a temperature above 0, as in World Models (arXiv 1803.10122) and sketch-rnn (arXiv 1704.03477):
        weights in proportion to their power 1 / temperature, and variances times the temperature.

        >>> from jaxmbrl.distributions import GaussianMixture
        >>> both = GaussianMixture(jnp.log(jnp.array([[0.25], [0.75]])), jnp.zeros((2, 1)), jnp.zeros((2, 1)))
        >>> [round(float(x), 4) for x in jnp.exp(both.tempered(0.5).log_weight())[:, 0]]
        [0.1, 0.9]
        """
        return GaussianMixture(self.logits / temperature, self.mean, self.log_std + 0.5 * jnp.log(temperature))


FARTHEST = 5.0
"""Standard deviations beyond which a `TruncatedNormal` is not sampled; the probability of it is below 6e-7."""


class TruncatedNormal(NamedTuple):
    """Independent normal distributions truncated to [-1, 1], of the policy of DreamerV2 (arXiv 2010.02193, its code)."""

    mean: Float[Array, "*n d"]
    """Of the normal distributions before truncation."""
    log_std: Float[Array, "*n d"]
    """The same of their standard deviations."""

    def sample(self, key: Key) -> Float[Array, "*n d"]:
        """A sample of each row, differentiable in mean and deviation."""
        # Beyond 5 deviations, in float32, the quantile of the smallest uniform number has no finite derivative.
        low, high = (jnp.clip(bound, -FARTHEST, FARTHEST) for bound in self._bounds())
        standard = jax.random.truncated_normal(key, low, high, self.mean.shape, self.mean.dtype)
        return jnp.clip(self.mean + jnp.exp(self.log_std) * standard, -1.0, 1.0)

    def mode(self) -> Float[Array, "*n d"]:
        """The most probable vector."""
        return jnp.clip(self.mean, -1.0, 1.0)

    def log_probability(self, x: Float[Array, "*n d"]) -> Float[Array, "*n"]:
        """Log-density of vectors in [-1, 1], in nats."""
        return gaussian_log_density(x, self.mean, self.log_std) - jnp.sum(jnp.log(self._mass()), axis=-1)

    def entropy(self) -> Float[Array, "*n"]:
        """Differential entropy, in nats."""
        low, high = self._bounds()
        density = jax.scipy.stats.norm.pdf
        shift = (low * density(low) - high * density(high)) / (2 * self._mass())
        return jnp.sum(self.log_std + 0.5 * math.log(2 * math.pi * math.e) + jnp.log(self._mass()) + shift, axis=-1)

    def _bounds(self) -> tuple[Float[Array, "*n d"], Float[Array, "*n d"]]:
        """The bounds in standard deviations from the mean."""
        return (-1.0 - self.mean) * jnp.exp(-self.log_std), (1.0 - self.mean) * jnp.exp(-self.log_std)

    def _mass(self) -> Float[Array, "*n d"]:
        """The probability of [-1, 1] before truncation."""
        low, high = self._bounds()
        return jax.scipy.stats.norm.cdf(high) - jax.scipy.stats.norm.cdf(low)


class Categorical(NamedTuple):
    """A distribution over the choices 0 .. d - 1."""

    logits: Float[Array, "*n d"]

    def sample(self, key: Key) -> Int[Array, "*n"]:
        """A sample of each row."""
        return jax.random.categorical(key, self.logits).astype(jnp.int32)

    def mode(self) -> Int[Array, "*n"]:
        """The most probable choice; of equal ones, the first."""
        return jnp.argmax(self.logits, axis=-1).astype(jnp.int32)

    def log_probability(self, x: Int[Array, "*n"]) -> Float[Array, "*n"]:
        """Log-probability, in nats."""
        return jnp.take_along_axis(jax.nn.log_softmax(self.logits), x[..., None], axis=-1)[..., 0]

    def entropy(self) -> Float[Array, "*n"]:
        """Entropy, in nats."""
        return -jnp.sum(jax.nn.softmax(self.logits) * jax.nn.log_softmax(self.logits), axis=-1)

    def divergence(self, other: Categorical) -> Float[Array, "*n"]:
        """Kullback-Leibler divergence KL(self || other), in nats."""
        log_ratio = jax.nn.log_softmax(self.logits) - jax.nn.log_softmax(other.logits)
        return jnp.sum(jax.nn.softmax(self.logits) * log_ratio, axis=-1)


def mixed(logits: Float[Array, "*n d"], share: float) -> Float[Array, "*n d"]:
    """Log-probabilities of the mixture of the distribution with `logits` and, with the weight `share`, the uniform one
    (DreamerV3, arXiv 2301.04104: 0.01). No probability is below share / d, so divergences are bounded. Without a share
    they are the log-probabilities of the logits, computed without taking the logarithm of a probability that may be 0.

    >>> from jaxmbrl.distributions import mixed
    >>> [round(float(p), 4) for p in jnp.exp(mixed(jnp.array([100.0, 0.0]), 0.01))]
    [0.995, 0.005]
    """
    if share == 0:
        return jax.nn.log_softmax(logits)
    return jnp.log((1 - share) * jax.nn.softmax(logits) + share / logits.shape[-1])


def straight_through(key: Key, log_probability: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
    """One-hot samples of each row whose gradient is that of the probabilities (Bengio et al., arXiv 1308.3432)."""
    probability = jnp.exp(log_probability)
    choice = jax.random.categorical(key, log_probability)
    one_hot = jax.nn.one_hot(choice, log_probability.shape[-1], dtype=probability.dtype)
    # The last term is exactly 0.
    return one_hot + (probability - jax.lax.stop_gradient(probability))


def tanh_log_det(pre_tanh: Float[Array, "*n d"]) -> Float[Array, "*n"]:
    """Log-determinant of the Jacobian of tanh, the sum of log(1 - tanh(u)^2). It is accurate even where tanh saturates.

    Soft Actor-Critic (arXiv 1812.05905), appendix C, in the form 2 (log 2 - u - softplus(-2u)).
    """
    return jnp.sum(2 * (math.log(2) - pre_tanh - jax.nn.softplus(-2 * pre_tanh)), axis=-1)


def squashed_log_density(
    pre_tanh: Float[Array, "*n d"], mean: Float[Array, "*n d"], log_std: Float[Array, "*n d"]
) -> Float[Array, "*n"]:
    """Log-density of a = tanh(u) for Gaussian u, given u, because a does not determine u where tanh saturates."""
    return gaussian_log_density(pre_tanh, mean, log_std) - tanh_log_det(pre_tanh)


def sample_squashed(
    key: Key, mean: Float[Array, "*n d"], log_std: Float[Array, "*n d"]
) -> tuple[Float[Array, "*n d"], Float[Array, "*n"]]:
    """(action, log-density): a reparameterised action in (-1, 1), or equal to -1 or 1 by rounding."""
    pre_tanh = mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape, mean.dtype)
    return jnp.tanh(pre_tanh), squashed_log_density(pre_tanh, mean, log_std)


def soft_clamp(value: Float[Array, "*n d"], low: Float[Array, "d"], high: Float[Array, "d"]) -> Float[Array, "*n d"]:
    """`value` clamped smoothly, first below `high`, then above `low`, so that value and bounds both receive gradients.

    PETS clamps log-variances in this order (arXiv 1805.12114, appendix A.1).
    """
    below = high - jax.nn.softplus(high - value)
    return low + jax.nn.softplus(below - low)


SLOPE = 0.001
"""The slope that `compress` has at large numbers."""


def compress(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """MuZero's value transform (Pohlen et al., arXiv 1805.11593, proposition A.2): sign(x) (sqrt(|x| + 1) - 1) + 0.001 x.

    >>> from jaxmbrl.distributions import compress
    >>> round(float(compress(jnp.asarray(100.0))), 5)
    9.14988
    """
    return jnp.sign(x) * (jnp.sqrt(jnp.abs(x) + 1) - 1) + SLOPE * x


def expand(y: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """The inverse of `compress`, written without the differences that lose digits near 0."""
    shifted = jnp.abs(y) + 1 + SLOPE
    root = jnp.sqrt(1 + 4 * SLOPE * shifted)
    # t = (root - 1) / (2 slope), and the inverse is t^2 - 1.
    t = 2 * shifted / (root + 1)
    return jnp.sign(y) * (2 * shifted - root - 1) / (root + 1) * (t + 1)


def two_hot(x: Float[Array, "*n"], support: Float[Array, "S"]) -> Float[Array, "*n S"]:
    """Weights on the two neighbours of `x` in the ascending `support`, with mean `x`; all on an end for numbers outside.

    >>> from jaxmbrl.distributions import two_hot
    >>> two_hot(jnp.asarray(0.25), jnp.arange(-1.0, 2.0)).tolist()
    [0.0, 0.75, 0.25]
    """
    x = jnp.clip(x, support[0], support[-1])
    above = jnp.clip(jnp.searchsorted(support, x, side="right"), 1, support.shape[0] - 1)
    low, high = support[above - 1], support[above]
    share = ((x - low) / (high - low))[..., None]
    at_low, at_high = (jax.nn.one_hot(i, support.shape[0], dtype=x.dtype) for i in (above - 1, above))
    return (1 - share) * at_low + share * at_high


class ScalarHead(NamedTuple):
    """How a network's output represents a real number: as itself, with the squared error as loss; or, if `largest` > 0, as
    logits over the integers from -`largest` to `largest`, the support of `compress`ed numbers, with the cross-entropy of
    the `two_hot` weights as loss (arXiv 1911.08265, appendix F). Numbers whose transform is outside are clipped."""

    largest: int = 0

    @property
    def size(self) -> int:
        """Length of the output."""
        return 2 * self.largest + 1

    def mean(self, output: Float[Array, "*n S"]) -> Float[Array, "*n"]:
        """The number that the output represents."""
        if self.largest == 0:
            return output[..., 0]
        return expand(jnp.sum(jax.nn.softmax(output) * self._support(output), axis=-1))

    def loss(self, output: Float[Array, "*n S"], target: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """The loss of each output for the number `target`."""
        if self.largest == 0:
            return (output[..., 0] - target) ** 2
        weights = two_hot(compress(target), self._support(output))
        return -jnp.sum(weights * jax.nn.log_softmax(output), axis=-1)

    def _support(self, output: Float[Array, "*n S"]) -> Float[Array, "S"]:
        return jnp.arange(-self.largest, self.largest + 1, dtype=output.dtype)


def symlog(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """sign(x) log(1 + |x|) (DreamerV3, arXiv 2301.04104, equation 9)."""
    return jnp.sign(x) * jnp.log1p(jnp.abs(x))


def symexp(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """sign(x) (exp |x| - 1), the inverse of `symlog`."""
    return jnp.sign(x) * jnp.expm1(jnp.abs(x))


class SymexpHead(NamedTuple):
    """Real numbers as logits over `size` bins that are spaced by `symexp` from -symexp(20) to symexp(20), with the
    cross-entropy of the `two_hot` weights as loss (DreamerV3, arXiv 2301.04104, equations 10 and 11). It has the functions
    of `ScalarHead`. The mean is taken of the bins themselves, not of their logarithms."""

    size: int = 255
    """Number of bins, odd and at least 3."""

    def mean(self, output: Float[Array, "*n S"]) -> Float[Array, "*n"]:
        """The mean of the bins. It is summed in pairs of opposite bins, so that equal logits give exactly 0."""
        probability = jax.nn.softmax(output)
        low, high = probability[..., : self.size // 2], probability[..., self.size // 2 + 1 :]
        return jnp.sum((high - low[..., ::-1]) * self.bins(output)[self.size // 2 + 1 :], axis=-1)

    def loss(self, output: Float[Array, "*n S"], target: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """The loss of each output for the number `target`. No gradient flows through the target."""
        weights = two_hot(jax.lax.stop_gradient(target), self.bins(output))
        return -jnp.sum(weights * jax.nn.log_softmax(output), axis=-1)

    def bins(self, output: Float[Array, "*n S"]) -> Float[Array, "S"]:
        """The bins, ascending, in the dtype of `output`."""
        half = np.expm1(np.linspace(0.0, LARGEST_SYMLOG, self.size // 2 + 1))
        return jnp.asarray(np.concatenate([-half[:0:-1], half]), output.dtype)


LARGEST_SYMLOG = 20.0
"""`symlog` of the largest bin of `SymexpHead`."""


class SymlogHead(NamedTuple):
    """Real numbers as logits over `size` bins that are evenly spaced in their `symlog`, from -`largest` to `largest`, with
    the cross-entropy of the `two_hot` weights as loss (TD-MPC2, arXiv 2310.16828, section 3.2). It has the functions of
    `ScalarHead`.

    The mean is taken of the logarithms, as in TD-MPC2: half of the mass on -1 and half on 3 is 0.4142, not 1. For
    probabilities on neighbouring bins, as those of targets are, the difference is small.
    """

    size: int = 101
    """Number of bins, odd and at least 3."""
    largest: float = 10.0
    """`symlog` of the largest bin."""

    def mean(self, output: Float[Array, "*n S"]) -> Float[Array, "*n"]:
        """The number that the output represents: exactly 0 for equal logits."""
        probability = jax.nn.softmax(output)
        low, high = probability[..., : self.size // 2], probability[..., self.size // 2 + 1 :]
        return symexp(jnp.sum((high - low[..., ::-1]) * self.bins(output)[self.size // 2 + 1 :], axis=-1))

    def loss(self, output: Float[Array, "*n S"], target: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """The loss of each output for the number `target`. No gradient flows through the target."""
        weights = two_hot(symlog(jax.lax.stop_gradient(target)), self.bins(output))
        return -jnp.sum(weights * jax.nn.log_softmax(output), axis=-1)

    def bins(self, output: Float[Array, "*n S"]) -> Float[Array, "S"]:
        """The `symlog` of the bins, ascending, in the dtype of `output`."""
        half = np.linspace(0.0, self.largest, self.size // 2 + 1)
        return jnp.asarray(np.concatenate([-half[:0:-1], half]), output.dtype)
