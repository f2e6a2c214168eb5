"""Adaptation of an ensemble's features to imagined inputs, without labels (Shen et al., AMPO, arXiv 2010.09546).

With h(s, a) the last hidden layer of a member, p the inputs in the real data and q those of imagined rows, each member gets
two copies of its layers up to h, one for either kind of row, and both are trained to lower a distance of h(p) and h(q):

    wasserstein   max_f  mean_p f(h) - mean_q f(h) - 10 mean (||grad f(h^)|| - 1)^2,    h^ a uniform mixture of two rows
    mmd           sqrt(max(sum over members of MMD^2(h(p), h(q)), 1e-6))

f is a network for each member, trained for `critic_steps` before each step of the features (Gulrajani et al., arXiv
1704.00028). MMD^2 is the unbiased estimate with the kernel sum_sigma exp(-||x - y||^2 / (2 sigma^2)) (Gretton et al.,
Journal of Machine Learning Research 13, 2012).

The adapted features never imagine: the copy for imagined rows is where the next fit of the ensemble starts, and the state
of the ensemble itself is not changed before. The moments of all optimisers live on from round to round.

Difference from the code: the norm of the gradient of f is over the features of a row, not over the rows of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from annotated_types import Ge, Gt
from flax import linen as nn
from jaxtyping import Array, Float

from jaxmbrl.core import tree
from jaxmbrl.core.config import UserError
from jaxmbrl.core.types import Average, Key, Metrics, PyTree, Transition
from jaxmbrl.data import replay
from jaxmbrl.data.replay import Replay
from jaxmbrl.models.ensemble import EnsembleState, Layout
from jaxmbrl.models.ensemble.layout import inputs_of
from jaxmbrl.models.normalizer import normalize
from jaxmbrl.nn import optimizer
from jaxmbrl.nn.networks import MLP, pets_kernel_init
from jaxmbrl.nn.optimizer import Trainable

LEAST_SQUARE = 1e-6
"""Smallest squared MMD, summed over members, whose root has a gradient."""


@dataclass(frozen=True)
class AdaptationConfig:
    """Settings of the adaptation."""

    distance: Literal["wasserstein", "mmd"] = "wasserstein"
    """The distance of the features that is lowered: Wasserstein-1, by a critic, or the maximum mean discrepancy."""
    steps: Annotated[int, Ge(0)] = 20
    """Steps of the features after each fit; 0 for no adaptation."""
    critic_steps: Annotated[int, Ge(1)] = 5
    """Steps of the critics before each step of the features."""
    hidden: tuple[Annotated[int, Ge(1)], ...] = (200, 100)
    """Units of each hidden layer of a critic (ReLU)."""
    gradient_penalty: Annotated[float, Ge(0)] = 10.0
    """Weight of the gradient penalty."""
    weight_decay: Annotated[float, Ge(0)] = 1e-5
    """Weight of half the squared parameters of the critics in their loss."""
    bandwidths: tuple[Annotated[float, Gt(0)], ...] = (1e-3, 5e-3, 1e-2, 5e-2, 0.1, 1.0, 5.0, 10.0)
    """sigma of each kernel of the MMD."""
    learning_rate: Annotated[float, Gt(0)] = 1e-4
    """Adam learning rate of critics and features; with `mmd` the first moment has a decay of 0.5."""
    batch_size: Annotated[int, Ge(1)] = 256
    """Rows of either kind in each step."""

    def problem(self) -> tuple[str, str] | None:
        """(field, message) of the first violated rule that involves several fields, or None."""
        if self.distance == "mmd" and self.batch_size < 2:
            return "batch_size", f"must be at least 2 for mmd, which compares different rows, got {self.batch_size}"
        return None


class Adaptation(NamedTuple):
    """State of the adaptation."""

    critic: Trainable
    """Leaves [E, ...]."""
    features: Trainable
    """(layers for real rows, layers for imagined rows), each with leaves [E, ...]."""


def init(config: AdaptationConfig, layout: Layout, model: EnsembleState, key: Key) -> Adaptation:
    """The state before the first adaptation of `model`. Raises UserError if it has no hidden layers, if its layers are
    normalised (`norms`), or if its members are drawn from a distribution over weights, which is what the next fit starts
    from."""
    if not layout.config.hidden:
        raise UserError("ensemble.hidden must not be empty for an adaptation, which changes hidden layers")
    if layout.config.norms:
        raise UserError(f"ensemble.norms must be empty for an adaptation, got {list(layout.config.norms)}")
    if layout.posterior is not None:
        raise UserError(f"ensemble.kind must be bootstrap for an adaptation, got {layout.config.kind}")
    keys = jax.random.split(key, layout.config.members)
    critics = jax.vmap(lambda k: critic_network(config).init(k, jnp.zeros(layout.config.hidden[-1])))(keys)
    layers = layers_of(layout, model)
    return Adaptation(
        critic=optimizer.init(critics, config.learning_rate),
        features=optimizer.init((layers, layers), config.learning_rate, chain=_chain(config)),
    )


def critic_network(config: AdaptationConfig) -> nn.Module:
    """The network f of one member. Its last layer has no bias, which would cancel in the distance."""
    last = nn.Dense(1, use_bias=False, param_dtype=jnp.result_type(float))
    return nn.Sequential([MLP(config.hidden[:-1], config.hidden[-1]), nn.relu, last]) if config.hidden else last


def layers_of(layout: Layout, model: EnsembleState) -> PyTree:
    """The parameters of all layers but the last, leaves [E, ...]."""
    layers = model.members.params.network["params"]
    return {name: layers[name] for name in _names(layout)}


def with_start(layout: Layout, state: Adaptation, model: EnsembleState) -> EnsembleState:
    """`model` with the adapted layers, from which the next fit starts."""
    network = model.members.params.network
    network = network | {"params": network["params"] | state.features.params[1]}
    params = model.members.params._replace(network=network)
    return model._replace(members=model.members._replace(params=params))


def from_fit(layout: Layout, state: Adaptation, model: EnsembleState) -> Adaptation:
    """The state whose layers are those of the fitted `model`, for either kind of row."""
    layers = layers_of(layout, model)
    return state._replace(features=state.features._replace(params=(layers, layers)))


def features(layout: Layout, layers: PyTree, inputs: Float[Array, "B I"]) -> Float[Array, "B F"]:
    """The last hidden layer of one member with the parameters `layers`, for normalised inputs."""
    config = layout.config
    network = MLP(config.hidden[:-1], config.hidden[-1], nn.swish, pets_kernel_init, precision=config.precision)
    return nn.swish(network.apply({"params": layers}, inputs))


def critic_loss(
    config: AdaptationConfig,
    params: PyTree,
    real: Float[Array, "B F"],
    imagined: Float[Array, "B F"],
    mixture: Float[Array, "B"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(loss, mean f(real) - mean f(imagined)) of one member's critic. The penalty is at the points that the shares
    `mixture` in [0, 1] place between both rows."""

    def f(x: Float[Array, "F"]) -> Float[Array, ""]:
        return critic_network(config).apply(params, x)[0]

    between = mixture[:, None] * real + (1 - mixture[:, None]) * imagined
    slope = jnp.sqrt(jnp.sum(jax.vmap(jax.grad(f))(between) ** 2, axis=-1) + 1e-12)
    apart = jnp.mean(jax.vmap(f)(real)) - jnp.mean(jax.vmap(f)(imagined))
    decay = 0.5 * config.weight_decay * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
    return -apart + config.gradient_penalty * jnp.mean((slope - 1) ** 2) + decay, apart


def squared_mmd(
    x: Float[Array, "n F"], y: Float[Array, "m F"], bandwidths: tuple[float, ...], biased: bool = False
) -> Float[Array, ""]:
    """The squared maximum mean discrepancy of two samples: the unbiased estimate, which may be negative, or the biased."""

    def kernel(a: Float[Array, "p F"], b: Float[Array, "q F"]) -> Float[Array, "p q"]:
        squares = jnp.sum((a[:, None] - b[None]) ** 2, axis=-1)
        return sum((jnp.exp(-squares / (2 * sigma**2)) for sigma in bandwidths), jnp.zeros_like(squares))

    def within(a: Float[Array, "p F"]) -> Float[Array, ""]:
        found, count = kernel(a, a), a.shape[0]
        if biased:
            return jnp.mean(found)
        return (jnp.sum(found) - jnp.trace(found)) / (count * (count - 1))

    return within(x) + within(y) - 2 * jnp.mean(kernel(x, y))


@jax.named_scope("adapt")
def adapt(
    config: AdaptationConfig,
    layout: Layout,
    state: Adaptation,
    model: EnsembleState,
    real: Replay,
    imagined: Replay,
    key: Key,
) -> tuple[Adaptation, Metrics]:
    """Adapt the features of the fitted `model` to the rows of the buffer `imagined`: (state, metrics). The model itself
    stays as it is (`with_start`). The metrics are the distance before the first and the last step, for `wasserstein` the
    critics' estimate of it, as a mean over members. Without any imagined row the state has the layers of `model`, and the
    metrics have no weight."""
    first = state = from_fit(layout, state, model)

    def rows(key: Key) -> tuple[Float[Array, "B I"], Float[Array, "B I"]]:
        keys = jax.random.split(key)
        drawn = [replay.sample(buffer, k, config.batch_size) for buffer, k in zip((real, imagined), keys, strict=True)]
        return inputs(drawn[0]), inputs(drawn[1])

    def inputs(drawn: Transition) -> Float[Array, "B I"]:
        return normalize(model.inputs, inputs_of(layout, drawn.observation, drawn.action))

    def both(params: tuple[PyTree, PyTree], drawn: Any) -> tuple[Float[Array, "E B F"], Float[Array, "E B F"]]:
        of_real, of_imagined = (
            jax.vmap(lambda layers, x=x: features(layout, layers, x))(layers)
            for layers, x in zip(params, drawn, strict=True)
        )
        return of_real, of_imagined

    def critic_step(critic: Trainable, of_real: Array, of_imagined: Array, key: Key) -> tuple[Trainable, Float[Array, ""]]:
        mixture = jax.random.uniform(key, of_real.shape[:2])

        def loss(params: PyTree) -> tuple[Float[Array, ""], Float[Array, ""]]:
            losses, apart = jax.vmap(lambda *given: critic_loss(config, *given))(params, of_real, of_imagined, mixture)
            return jnp.sum(losses), jnp.mean(apart)

        gradient, apart = jax.grad(loss, has_aux=True)(critic.params)
        return optimizer.step(critic, gradient)[0], apart

    def step(state: Adaptation, key: Key) -> tuple[Adaptation, Float[Array, ""]]:
        critic_key, rows_key = jax.random.split(key)
        critic = state.critic

        def once(critic: Trainable, key: Key) -> tuple[Trainable, None]:
            batch_key, mixture_key = jax.random.split(key)
            return critic_step(critic, *both(state.features.params, rows(batch_key)), mixture_key)[0], None

        if config.distance == "wasserstein":
            critic, _ = jax.lax.scan(once, critic, jax.random.split(critic_key, config.critic_steps))
        drawn = rows(rows_key)

        def distance(params: tuple[PyTree, PyTree]) -> tuple[Float[Array, ""], Float[Array, ""]]:
            of_real, of_imagined = both(params, drawn)
            if config.distance == "mmd":
                squares = jax.vmap(lambda x, y: squared_mmd(x, y, config.bandwidths))(of_real, of_imagined)
                total = jnp.sqrt(jnp.maximum(jnp.sum(squares), LEAST_SQUARE))
                return total, total
            value = jax.vmap(critic_network(config).apply)
            apart = value(critic.params, of_real)[..., 0] - value(critic.params, of_imagined)[..., 0]
            return jnp.sum(jnp.mean(apart, axis=1)), jnp.mean(apart)

        gradient, found = jax.grad(distance, has_aux=True)(state.features.params)
        moved, _ = optimizer.step(state.features, gradient, chain=_chain(config))
        return Adaptation(critic, moved), found

    state, found = jax.lax.scan(step, state, jax.random.split(key, config.steps))
    some = imagined.size > 0
    distances = {"adapt/distance_first": Average.of(found[0], some), "adapt/distance_last": Average.of(found[-1], some)}
    return tree.where(some, state, first), distances


def _names(layout: Layout) -> list[str]:
    return [f"Dense_{i}" for i in range(len(layout.config.hidden))]


def _chain(config: AdaptationConfig) -> optax.GradientTransformation | None:
    return optax.scale_by_adam(b1=0.5) if config.distance == "mmd" else None
