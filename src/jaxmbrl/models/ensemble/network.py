"""The ensemble's networks, their parameters and the state of a fitted ensemble."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from jaxmbrl.core import tree
from jaxmbrl.core.types import Hyper, Key, PyTree
from jaxmbrl.distributions import GaussianMixture, soft_clamp
from jaxmbrl.models.bayesian import repeated
from jaxmbrl.models.ensemble.layout import Layout
from jaxmbrl.models.normalizer import Normalizer, identity
from jaxmbrl.nn import optimizer
from jaxmbrl.nn.networks import MLP, pets_kernel_init
from jaxmbrl.nn.optimizer import Trainable

FIRST_HIGH = 0.5
FIRST_LOW = -10.0
LEAST_LOG_VARIANCE = 2 * math.log(1e-3)
"""Lower bound of constant noise: a standard deviation of 0.001 in units of the fitted targets (4kubo/erl_lib)."""


class Parameters(NamedTuple):
    """Parameters of E members, or of the one network (E = 1) whose weights have a distribution."""

    network: PyTree
    """Leaves [E, ...]. With constant noise they include "log_variance" [E, D], or [E, K D] of a mixture. Those of a
    distribution over weights are the parameters of `models.bayesian`."""
    low: PyTree
    """Lower bound [D] of the log-variance, shared by the members and the components of a mixture; `()` if the log-variance
    does not depend on the input."""
    high: PyTree
    """Upper bound, likewise."""
    termination: PyTree
    """Leaves [E, ...]; `()` if the termination is known."""


class EnsembleState(NamedTuple):
    """State of an ensemble: parameters, optimiser state, normalisers, elites."""

    members: Trainable
    """`Parameters` with Adam's moments and the learning rate. Draws from a posterior have no moments."""
    inputs: Normalizer
    """Normaliser of [the observation's features, action], over the last fit's training rows."""
    targets: Normalizer
    """Normaliser of [observation change, reward], likewise."""
    termination_weight: Float[Array, ""]
    """Ratio of rows without termination to terminated rows in the last fit's training rows; at least 1."""
    elites: Int[Array, "elites"]
    """Indices of the elite members, the best first."""
    fits: Int[Array, ""]
    """Fits so far."""
    steps: Int[Array, ""]
    """Gradient steps so far."""
    posterior: Any = ()
    """`Parameters` of the distribution over weights of which the members are draws, with Adam's moments; `()` for
    independent members."""


class Output(NamedTuple):
    """Every member's prediction for its rows, in the space of the fitted targets."""

    mean: Float[Array, "E B *K D"]
    """Of the Gaussian, or of each Gaussian of a mixture."""
    log_variance: Float[Array, "E B *K D"]
    """Likewise. Minus infinity for deterministic members."""
    logits: Float[Array, "E B K"] | None = None
    """Unnormalised log-weights of a mixture, the first 0; None for one Gaussian."""

    def mixture(self) -> GaussianMixture:
        """The mixture, whose components are drawn for all D numbers of a row together."""
        assert self.logits is not None, "a mixture"
        return GaussianMixture(self.logits[..., None], self.mean, 0.5 * self.log_variance)

    def moments(self) -> tuple[Float[Array, "E B D"], Float[Array, "E B D"]]:
        """(mean, variance) of the Gaussian or the mixture."""
        return (self.mean, jnp.exp(self.log_variance)) if self.logits is None else self.mixture().moments()


def dynamics_network(layout: Layout) -> nn.Module:
    """One member: the means, the log-variances if they depend on the input, and of a mixture the logits but the first."""
    size = (1 + layout.input_noise) * layout.moment_size + (layout.components or 1) - 1
    config = layout.config
    return MLP(config.hidden, size, nn.swish, pets_kernel_init, norms=config.norms, precision=config.precision)


def termination_network(layout: Layout) -> nn.Module:
    """One member's logit of termination."""
    return MLP(layout.config.termination_hidden, 1, nn.swish, pets_kernel_init)


def init_state(layout: Layout, key: Key, hyper: Hyper) -> EnsembleState:
    """An ensemble before its first fit. `hyper["learning_rate"]` may be traced; the config's is the default."""
    network_key, termination_key = jax.random.split(key)
    posterior, number = layout.posterior, layout.fitted_networks
    if posterior is not None:
        network_key, draw_key = jax.random.split(network_key)

    def networks(key: Key, network: nn.Module, inputs: int) -> PyTree:
        keys = jax.random.split(key, number)
        return jax.vmap(lambda k: network.init(k, jnp.zeros(inputs)))(keys)

    network = networks(network_key, dynamics_network(layout), layout.input_size)
    if layout.constant_noise:
        network |= {"log_variance": jnp.zeros((number, layout.moment_size))}
    low: PyTree = jnp.full(layout.target_size, FIRST_LOW, float) if layout.input_noise else ()
    high: PyTree = jnp.full(layout.target_size, FIRST_HIGH, float) if layout.input_noise else ()
    termination: PyTree = ()
    if layout.learns_termination:
        termination = networks(termination_key, termination_network(layout), layout.feature_size)
    rate = hyper.get("learning_rate", layout.config.learning_rate)
    if posterior is None:
        fitted = members = optimizer.init(Parameters(network, low, high, termination), rate)
    else:
        network = _with_noise(layout, network, 2 * math.log(layout.config.bayesian.initial_noise))
        fitted = optimizer.init(Parameters(posterior.init(network), low, high, termination), rate)
        members = fitted._replace(params=draw(layout, fitted.params, draw_key), moments=())
    return EnsembleState(
        members=members,
        inputs=identity(layout.input_size),
        targets=identity(layout.target_size),
        termination_weight=jnp.ones(()),
        elites=jnp.arange(layout.config.elites, dtype=jnp.int32),
        fits=jnp.zeros((), jnp.int32),
        steps=jnp.zeros((), jnp.int32),
        posterior=() if posterior is None else fitted,
    )


def _with_noise(layout: Layout, network: PyTree, log_variance: float) -> PyTree:
    """The network [M, ...] of which the log-variance is about `log_variance` instead of 0."""
    if layout.constant_noise:
        return network | {"log_variance": network["log_variance"] + log_variance}
    layers, last = network["params"], f"Dense_{len(layout.config.hidden)}"
    bias = layers[last]["bias"].at[:, layout.moment_size : 2 * layout.moment_size].add(log_variance)
    return network | {"params": layers | {last: layers[last] | {"bias": bias}}}


def draw(layout: Layout, parameters: Parameters, key: Key) -> Parameters:
    """The parameters of E members, drawn from a distribution over weights with these `parameters`."""
    assert layout.posterior is not None, "a distribution over weights"
    number = layout.config.members
    network = layout.posterior.draw(parameters.network, key, number)
    return parameters._replace(network=network, termination=repeated(parameters.termination, number))


def with_draws(layout: Layout, state: EnsembleState, fitted: Trainable, key: Key) -> EnsembleState:
    """`state` with the `fitted` distribution over weights and new members that are drawn from it."""
    params = tree.where(fitted.active, draw(layout, fitted.params, key), state.members.params)
    return state._replace(members=state.members._replace(params=params, active=fitted.active), posterior=fitted)


def of_member(state: EnsembleState, member: Int[Array, ""]) -> EnsembleState:
    """The ensemble whose imagined rows are all those of one member."""
    return state._replace(elites=jnp.full_like(state.elites, member))


def forward(
    layout: Layout,
    parameters: Parameters,
    inputs: Float[Array, "E B I"],
    masks: tuple[Float[Array, "E B _"], ...] = (),
) -> Output:
    """Every member's prediction for its own rows of normalised inputs. `masks` are factors of the units of each hidden
    layer; none if empty."""
    network = dynamics_network(layout)
    raw = jax.vmap(lambda variables, x, masks: network.apply(variables, x, masks=masks))(
        {"params": parameters.network["params"]}, inputs, masks
    )
    if not layout.config.probabilistic:
        return Output(raw, jnp.full_like(raw, -jnp.inf))
    size = layout.moment_size
    mean, rest = raw[..., :size], raw[..., size:]
    if layout.input_noise:
        log_variance, rest = rest[..., :size], rest[..., size:]
    else:
        log_variance = jnp.maximum(parameters.network["log_variance"], LEAST_LOG_VARIANCE)
        log_variance = jnp.broadcast_to(log_variance[:, None], mean.shape)
    if layout.components is not None:
        shape = (*raw.shape[:-1], layout.components, layout.target_size)
        mean, log_variance = mean.reshape(shape), log_variance.reshape(shape)
    if layout.input_noise:
        log_variance = soft_clamp(log_variance, parameters.low, parameters.high)
    if layout.components is None:
        return Output(mean, log_variance)
    return Output(mean, log_variance, jnp.pad(rest, ((0, 0), (0, 0), (1, 0))))


def termination_logit(layout: Layout, parameters: Parameters, next_features: Float[Array, "E B F"]) -> Float[Array, "E B"]:
    """Every member's logit of termination for its own rows of normalised features of next observations."""
    return jax.vmap(termination_network(layout).apply)(parameters.termination, next_features)[..., 0]
