"""The loss of a fit: likelihood or squared error, cross-entropy of the termination, and regularisation or divergence."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxmbrl.core.types import Key
from jaxmbrl.models.bayesian import repeated
from jaxmbrl.models.ensemble.layout import Layout
from jaxmbrl.models.ensemble.network import Output, Parameters, forward, termination_logit


class Batch(NamedTuple):
    """Rows for each member, normalised."""

    inputs: Float[Array, "E B I"]
    targets: Float[Array, "E B D"]
    next_features: Float[Array, "E B F"]
    """Features of the next observation, normalised like those in the inputs."""
    terminated: Bool[Array, "E B"]


def gaussian_loss(
    mean: Float[Array, "*n D"], log_variance: Float[Array, "*n D"], target: Float[Array, "*#n D"], beta: float = 0.0
) -> Float[Array, "*n D"]:
    """(m - y)^2 exp(-l) + l of each row and dimension: twice the Gaussian's negative log-likelihood, up to a constant.

    With `beta` each is weighted by exp(beta l), through which no gradient flows (Seitzer et al., arXiv 2203.09168,
    equation 5).
    """
    loss = (mean - target) ** 2 * jnp.exp(-log_variance) + log_variance
    return loss * jax.lax.stop_gradient(jnp.exp(beta * log_variance)) if beta > 0 else loss


def mixture_loss(
    logits: Float[Array, "*n K"],
    mean: Float[Array, "*n K D"],
    log_variance: Float[Array, "*n K D"],
    target: Float[Array, "*n D"],
) -> Float[Array, "*n"]:
    """-2 log sum_k w_k exp(-1/2 sum_d [(m_kd - y_d)^2 exp(-l_kd) + l_kd]) / D of each row, with the weights w =
    softmax(logits): twice the mixture's negative log-likelihood for each dimension, up to a constant.

    With K = 1 it is the mean over dimensions of `gaussian_loss`, bit for bit.
    """
    each = jnp.sum(gaussian_loss(mean, log_variance, target[..., None, :]), axis=-1)
    return -2 * jax.nn.logsumexp(jax.nn.log_softmax(logits) - 0.5 * each, axis=-1) / target.shape[-1]


def row_loss(layout: Layout, output: Output, target: Float[Array, "E B D"]) -> Float[Array, "E B"]:
    """Of each row twice the negative log-likelihood for each dimension up to a constant, or the mean squared error of
    deterministic members."""
    if output.logits is not None:
        return mixture_loss(output.logits, output.mean, output.log_variance, target)
    if layout.config.probabilistic:
        return jnp.mean(gaussian_loss(output.mean, output.log_variance, target, layout.config.beta_nll), axis=-1)
    return jnp.mean((output.mean - target) ** 2, axis=-1)


def termination_loss(
    logit: Float[Array, "E B"],
    terminated: Bool[Array, "E B"],
    valid: Bool[Array, "B"],
    termination_weight: Float[Array, ""] | float,
) -> Float[Array, ""]:
    """Half the binary cross-entropy of the `valid` rows, summed over members and averaged over rows.

    Terminated rows have the weight `termination_weight`, because they are rare and would otherwise be learned last. The
    logit is then that of equally frequent classes; subtracting log `termination_weight` gives that of the data (King and
    Zeng, Logistic regression in rare events data, 2001).
    """
    entropy = jax.nn.softplus(logit) - jnp.where(terminated, logit, 0.0)
    weight = jnp.where(terminated, termination_weight, 1.0) * valid
    # Divided by twice the rows, since 2 is nearly the mean weight over the training data. Dividing by the summed weights of
    # this minibatch would limit a rare row to the weight of all others together.
    return jnp.sum(weight * entropy) / (2 * jnp.sum(valid))


def regularizer(layout: Layout, parameters: Parameters) -> Float[Array, ""]:
    """The part of the loss that does not depend on data: the distance of the bounds, and the weight decay of kernels (not
    of biases or bounds) unless it is decoupled."""
    total = jnp.zeros(())
    if layout.input_noise:
        total += layout.config.bounds_weight * (jnp.sum(parameters.high) - jnp.sum(parameters.low))
    for i, decay in enumerate(() if layout.config.decoupled_decay else layout.config.weight_decay):
        total += 0.5 * decay * jnp.sum(parameters.network["params"][f"Dense_{i}"]["kernel"] ** 2)
    return total


def decoupled_decay(layout: Layout, parameters: Parameters) -> Parameters | None:
    """The decay of each leaf of `parameters` that is no part of the loss, as `nn.optimizer.step` takes it, or None if there
    is none. That of bounds and of the termination is 0. Members are fitted independently."""
    config, decay = layout.config, jax.tree.map(lambda leaf: 0.0, parameters)
    if config.decoupled_decay:
        for i, number in enumerate(config.weight_decay):
            decay.network["params"][f"Dense_{i}"] = {"kernel": number, "bias": number}
    if layout.constant_noise:
        decay.network["log_variance"] = config.noise_decay
    return decay if any(jax.tree.leaves(decay)) else None


def fit_loss(
    layout: Layout,
    parameters: Parameters,
    batch: Batch,
    valid: Bool[Array, "B"],
    termination_weight: Float[Array, ""] | float = 1.0,
) -> Float[Array, ""]:
    """The loss of a fit of independent members (see `models.ensemble`), over the rows that are `valid`."""
    return data_loss(layout, parameters, batch, valid, termination_weight) + regularizer(layout, parameters)


def data_loss(
    layout: Layout,
    parameters: Parameters,
    batch: Batch,
    valid: Bool[Array, "B"],
    termination_weight: Float[Array, ""] | float = 1.0,
    masks: tuple[Float[Array, "E B _"], ...] = (),
) -> Float[Array, ""]:
    """The part of the loss that depends on data. `masks` are factors of the units of each hidden layer; none if empty.

    The termination has its own parameters: in shared layers the likelihood of precise dynamics would dominate it.
    """
    output = forward(layout, parameters, batch.inputs, masks)
    data = jnp.sum(jnp.where(valid, row_loss(layout, output, batch.targets), 0.0)) / jnp.sum(valid)
    if layout.learns_termination:
        logit = termination_logit(layout, parameters, batch.next_features)
        data += termination_loss(logit, batch.terminated, valid, termination_weight)
    return data


def variational_loss(
    layout: Layout,
    parameters: Parameters,
    batch: Batch,
    valid: Bool[Array, "B"],
    rows: Int[Array, ""] | int,
    key: Key,
    termination_weight: Float[Array, ""] | float = 1.0,
) -> Float[Array, ""]:
    """The loss of a fit of a distribution over weights, on a batch [1, B, ...] of the N = `rows` rows of data: an unbiased
    estimate of

        2 / (N D) (KL(q || p) - E_{w ~ q} log p(data | w))

    up to a constant, and the other parts of `fit_loss`. The factor is that of the loss of a member, which is twice the
    negative log-likelihood of a row and dimension.
    """
    posterior, number = layout.posterior, layout.config.bayesian.draws
    assert posterior is not None, "a distribution over weights"
    network, masks = posterior.sample(parameters.network, key, number, batch.inputs.shape[1])
    sampled = parameters._replace(network=network, termination=repeated(parameters.termination, number))
    data = data_loss(layout, sampled, repeated(batch, number), valid, termination_weight, masks) / number
    divergence = posterior.divergence(parameters.network)
    return data + 2 * divergence / (rows * layout.target_size) + regularizer(layout, parameters)
