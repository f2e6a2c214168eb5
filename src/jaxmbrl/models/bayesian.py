"""Distributions over the weights of a network, for Bayesian neural-network dynamics: Bayes by backprop, MC dropout and
concrete dropout.

Variational inference approximates the posterior of the weights w, given a prior p and N rows of data, by a distribution q
whose parameters minimise

    KL(q || p) - E_{w ~ q} log p(data | w)

which is minus the evidence lower bound (ELBO). A gradient step estimates the expectation by `draws` samples of the weights
and a minibatch; the divergence counts once for the whole data set.

- Bayes by backprop (Blundell et al., arXiv 1505.05424): q is N(mean, softplus(rho)^2) for each weight and bias, and p is
  N(0, prior_std^2).
- MC dropout (Gal and Ghahramani, arXiv 1506.02142): each unit of a hidden layer is dropped with probability `rate`, and the
  others are divided by 1 - rate. With the prior N(0, 1 / length_scale^2) the divergence is, up to a constant, the sum over
  layers of length_scale^2 ||kernel||^2 / (2 (1 - rate)), where rate is that of the units that enter the layer.
- Concrete dropout (Gal, Hron and Kendall, arXiv 1705.07832): each hidden layer learns its rate r. The divergence of the
  kernel that follows its K units has the term K (r log r + (1 - r) log(1 - r)), and a gradient step samples the relaxed
  share of a unit that is dropped, sigmoid((logit r + logit u) / temperature) with u uniform in (0, 1).

After a fit, the weights of E members are drawn once and stored, as an ensemble of E networks: a plan or a branch is then
imagined with functions of the posterior. With new weights or masks at every step, the uncertainty about the function would
act as noise, which averages out along a trajectory. Zeroed units are contained in the kernel of the following layer, so
that a member of any kind is a plain network.

Differences from the papers: inputs are not dropped; biases have no divergence under dropout; members are drawn with units
that are dropped entirely, also under concrete dropout.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt, Lt
from jaxtyping import Array, Float

from jaxmbrl.core.types import Key, PyTree
from jaxmbrl.nn.networks import bernoulli

Kind: TypeAlias = Literal["bootstrap", "bayes-by-backprop", "dropout", "concrete-dropout"]
"""How the weights of the members of an ensemble are found: fitted independently, each to its own bootstrap of the data
(bootstrap), or drawn from one fitted distribution over weights."""


@dataclass(frozen=True)
class BayesianConfig:
    """Settings of distributions over weights. Defaults: the prior of Bayes by backprop is VIME's (arXiv 1605.09674), scale
    and temperature those of the code of concrete dropout."""

    draws: Annotated[int, Ge(1)] = 2
    """Samples of the weights in each gradient step. Dropout samples for each row of the batch."""
    prior_std: Annotated[float, Gt(0)] = 0.5
    """Bayes by backprop: standard deviation of the prior of each weight and bias."""
    initial_std: Annotated[float, Gt(0)] = 0.02
    """Bayes by backprop: standard deviation of each weight and bias before the first fit."""
    initial_noise: Annotated[float, Gt(0)] = 0.1
    """Predicted standard deviation of the noise before the first fit, in units of the normalised targets. With large noise
    the prior outweighs the data, so that Bayes by backprop may explain all as noise and stay at the prior."""
    rate: Annotated[float, Ge(0), Lt(1)] = 0.1
    """Probability with which a unit is dropped; the first one under concrete dropout, where it must be above 0."""
    length_scale: Annotated[float, Ge(0)] = 1e-4
    """Dropout: the prior of each weight has a standard deviation of 1 / `length_scale`."""
    temperature: Annotated[float, Gt(0)] = 0.1
    """Concrete dropout: temperature of the relaxed samples."""


class WeightPosterior(NamedTuple):
    """A distribution over the weights of a network.

    A network is a dict with the variables `params` of `nn.networks.MLP`, and possibly further entries that are no weights.
    All leaves have a leading axis: 1 for the parameters of the distribution, S for samples. The entry `params` of the
    distribution's parameters is its centre: the means, or the network without dropout.
    """

    init: Callable[[PyTree], PyTree]
    """network [1, ...] -> parameters of the distribution around it."""
    sample: Callable[[PyTree, Key, int, int], tuple[PyTree, tuple[Float[Array, "S B _"], ...]]]
    """(parameters, key, S, B) -> (S networks, factors of the units of each hidden layer for B rows; `()` for none), for a
    gradient step."""
    draw: Callable[[PyTree, Key, int], PyTree]
    """(parameters, key, E) -> E networks: the members."""
    divergence: Callable[[PyTree], Float[Array, ""]]
    """Divergence from the prior in nats, up to a constant under dropout."""
    describe: Callable[[PyTree], dict[str, Float[Array, ""]]]
    """Metrics of the distribution."""


def make(kind: Kind, config: BayesianConfig) -> WeightPosterior | None:
    """The distribution over weights of this kind; None for `bootstrap`."""
    if kind == "bootstrap":
        return None
    return _gaussian(config) if kind == "bayes-by-backprop" else _dropout(config, learned=kind == "concrete-dropout")


def repeated(values: PyTree, number: int) -> PyTree:
    """Leaves [1, ...] repeated to [number, ...]."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (number, *leaf.shape[1:])), values)


def inverse_softplus(value: float) -> float:
    """The number whose softplus is `value`.

    >>> from jaxmbrl.models.bayesian import inverse_softplus
    >>> round(inverse_softplus(0.1), 7)
    -2.2521685
    """
    return value + math.log(-math.expm1(-value))


def gaussian_divergence(mean: Float[Array, "*n"], std: Float[Array, "*n"], prior_std: float) -> Float[Array, "*n"]:
    """KL(N(mean, std^2) || N(0, prior_std^2)) of each entry, in nats."""
    return jnp.log(prior_std / std) + (std**2 + mean**2) / (2 * prior_std**2) - 0.5


def _gaussian(config: BayesianConfig) -> WeightPosterior:
    def deviations(parameters: PyTree) -> PyTree:
        return jax.tree.map(jax.nn.softplus, parameters["rho"])

    def init(network: PyTree) -> PyTree:
        first = inverse_softplus(config.initial_std)
        return network | {"rho": jax.tree.map(lambda leaf: jnp.full_like(leaf, first), network["params"])}

    def draw(parameters: PyTree, key: Key, number: int) -> PyTree:
        means, structure = jax.tree.flatten(parameters["params"])
        keys = jax.random.split(key, len(means))
        drawn = [
            mean + std * jax.random.normal(k, (number, *mean.shape[1:]), mean.dtype)
            for mean, std, k in zip(means, jax.tree.leaves(deviations(parameters)), keys, strict=True)
        ]
        return _with_weights(parameters, jax.tree.unflatten(structure, drawn), number)

    def sample(parameters: PyTree, key: Key, number: int, rows: int) -> tuple[PyTree, tuple[()]]:
        return draw(parameters, key, number), ()

    def divergence(parameters: PyTree) -> Float[Array, ""]:
        parts = jax.tree.map(
            lambda mean, std: jnp.sum(gaussian_divergence(mean, std, config.prior_std)),
            parameters["params"],
            deviations(parameters),
        )
        return jax.tree.reduce(jnp.add, parts)

    def describe(parameters: PyTree) -> dict[str, Float[Array, ""]]:
        stds = jax.tree.leaves(deviations(parameters))
        return {"weight_std": sum(jnp.sum(std) for std in stds) / sum(std.size for std in stds)}

    return WeightPosterior(init, sample, draw, divergence, describe)


def _dropout(config: BayesianConfig, learned: bool) -> WeightPosterior:
    def kernels(parameters: PyTree) -> list[Float[Array, "1 i o"]]:
        layers = parameters["params"]
        return [layers[f"Dense_{i}"]["kernel"] for i in range(len(layers))]

    def rates(parameters: PyTree) -> list[Float[Array, ""] | float]:
        """The rate of each hidden layer."""
        hidden = len(parameters["params"]) - 1
        if not learned:
            return [config.rate] * hidden
        return [jax.nn.sigmoid(parameters["logit"][0, i]) for i in range(hidden)]

    def init(network: PyTree) -> PyTree:
        if not learned:
            return network
        logit = math.log(config.rate) - math.log1p(-config.rate)
        return network | {"logit": jnp.full((1, len(network["params"]) - 1), logit, float)}

    def units(parameters: PyTree) -> list[int]:
        """Units of each hidden layer."""
        return [kernel.shape[1] for kernel in kernels(parameters)[1:]]

    def sample(parameters: PyTree, key: Key, number: int, rows: int) -> tuple[PyTree, tuple[Float[Array, "S B _"], ...]]:
        masks = []
        for i, (size, rate) in enumerate(zip(units(parameters), rates(parameters), strict=True)):
            shape, mask_key = (number, rows, size), jax.random.fold_in(key, i)
            if learned:
                masks.append(_relaxed(parameters["logit"][0, i], config.temperature, mask_key, shape))
            else:
                masks.append(_kept(rate, mask_key, shape))
        return _with_weights(parameters, repeated(parameters["params"], number), number), tuple(masks)

    def draw(parameters: PyTree, key: Key, number: int) -> PyTree:
        layers = repeated(parameters["params"], number)
        for i, (size, rate) in enumerate(zip(units(parameters), rates(parameters), strict=True)):
            after = f"Dense_{i + 1}"
            mask = _kept(rate, jax.random.fold_in(key, i), (number, size))
            layers = layers | {after: layers[after] | {"kernel": mask[:, :, None] * layers[after]["kernel"]}}
        return _with_weights(parameters, layers, number)

    def divergence(parameters: PyTree) -> Float[Array, ""]:
        first, *others = kernels(parameters)
        total = 0.5 * config.length_scale**2 * jnp.sum(first**2)
        for kernel, rate in zip(others, rates(parameters), strict=True):
            total += 0.5 * config.length_scale**2 * jnp.sum(kernel**2) / (1 - rate)
            if learned:
                total += kernel.shape[1] * _negative_entropy(rate)
        return total

    def describe(parameters: PyTree) -> dict[str, Float[Array, ""]]:
        found = rates(parameters)
        return {"dropout_rate": jnp.mean(jnp.asarray(found))} if learned and found else {}

    return WeightPosterior(init, sample, draw, divergence, describe)


def _negative_entropy(rate: Float[Array, ""] | float) -> Float[Array, ""]:
    return jax.scipy.special.xlogy(rate, rate) + jax.scipy.special.xlogy(1 - rate, 1 - rate)


def _kept(rate: Float[Array, ""] | float, key: Key, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Factors of units: 0 with probability `rate`, else 1 / (1 - rate)."""
    dropped = bernoulli(key, rate, shape) if isinstance(rate, float) else jax.random.bernoulli(key, rate, shape)
    return jnp.where(dropped, 0.0, 1 / (1 - rate))


def _relaxed(logit: Float[Array, ""], temperature: float, key: Key, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """The same factors, relaxed so that they are differentiable in the logit of the rate."""
    kept = jax.nn.sigmoid(-(logit + jax.random.logistic(key, shape)) / temperature)
    return kept / jax.nn.sigmoid(-logit)


def _with_weights(parameters: PyTree, weights: PyTree, number: int) -> PyTree:
    """A network of `number` samples of the weights, with the entries of `parameters` that are no weights."""
    others = {name: value for name, value in parameters.items() if name not in ("params", "rho", "logit")}
    return {"params": weights} | repeated(others, number)
