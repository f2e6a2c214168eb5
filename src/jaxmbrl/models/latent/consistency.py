"""A deterministic latent model of one observation: its code, and the code and the reward that follow an action.

    z_0 = g(o_0),    z_{t+1} = f(z_t, a_t)
    loss = sum_t decay^t ( ||z_{t+1} - sg g(o_{t+1})||^2 + (h(z_t, a_t) - r_t)^2 + ||D(z_t) - o_t||^2 ) / sum_t decay^t

with a further cross-entropy of the continuation at z_{t+1}. Each group of entries of z is a softmax (SimNorm, Hansen et
al., TD-MPC2, arXiv 2310.16828). A bounded code, a fixed scale of the error and a constant target are necessary: a learned
likelihood of codes without bounds grows without limit as the codes shrink, while D undoes the shrinking. The belief forgets
the past, so an observation must be a state; frames can be stacked (`envs.stacked`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt, Le
from flax import linen as nn
from jaxtyping import Array, Float, Shaped

from jaxmbrl.core.spaces import Space, encode, encoded_size
from jaxmbrl.core.types import Average, Key, Metrics, Observation, PyTree, Transition, World
from jaxmbrl.models.latent import coders
from jaxmbrl.models.latent.coders import Coder, CoderConfig
from jaxmbrl.models.latent.interface import Belief, LatentModel, Window
from jaxmbrl.models.latent.rssm import continuation_loss
from jaxmbrl.nn.networks import MLP

sg = jax.lax.stop_gradient


@dataclass(frozen=True)
class ConsistencyConfig:
    """Settings of the model."""

    size: Annotated[int, Ge(1)] = 32
    """Entries of the code z."""
    group: Annotated[int, Ge(2)] = 8
    """Entries of each softmax; a divisor of `size`."""
    units: Annotated[int, Ge(1)] = 64
    """Units of each hidden layer."""
    layers: Annotated[int, Ge(1)] = 2
    """Hidden layers of each network but those of `coder`."""
    coder: CoderConfig = field(default_factory=lambda: CoderConfig(layers=2, symlog=False))
    """Encoder and decoder."""
    decay: Annotated[float, Gt(0), Le(1)] = 0.5
    """Weight of a step relative to the one before."""
    consistency_scale: Annotated[float, Gt(0)] = 1.0
    """Weight of the codes' error."""
    reward_scale: Annotated[float, Gt(0)] = 1.0
    """Weight of the rewards' error."""
    decoder_scale: Annotated[float, Ge(0)] = 1.0
    """Weight of the observations' error."""
    learn_continuation: bool = True
    """Whether the model learns when episodes end; otherwise they never end in imagination."""

    def problem(self) -> tuple[str, str] | None:
        """(field, message) of the first violated rule that involves several fields, or None."""
        if self.size % self.group:
            return "group", f"must divide size ({self.size}), got {self.group}"
        return None


class Parts(NamedTuple):
    """The parts of the model as functions of all its parameters."""

    init: Callable[[Key], PyTree]
    code: Callable[[PyTree, Observation], Float[Array, "*n Z"]]
    """g: (params, observation) -> z."""
    step: Callable[[PyTree, Float[Array, "*n Z"], Float[Array, "*n A"]], Float[Array, "*n Z"]]
    """f: (params, z, action) -> the next z."""
    reward: Callable[[PyTree, Float[Array, "*n Z"], Float[Array, "*n A"]], Float[Array, "*n"]]
    """h: (params, z, action) -> the reward."""
    goes_on: Callable[[PyTree, Float[Array, "*n Z"]], Float[Array, "*n"]] | None
    """(params, z) -> the logit of the continuation; None if episodes never end."""
    coder: Coder
    action: Space


def make(config: ConsistencyConfig, observation: Space, action: Space) -> LatentModel:
    """The model for observations that are vectors or images, and for any actions. Raises UserError for others."""
    return assemble(config, parts(config, observation, action))


def assemble(config: ConsistencyConfig, parts: Parts) -> LatentModel:
    """The model of given parts."""
    actions = encoded_size(parts.action)

    def observe(params: PyTree, belief: Belief, observation: Observation, key: Key) -> Belief:
        return belief._replace(stoch=parts.code(params, observation))

    return LatentModel(
        init=parts.init,
        initial=lambda: Belief(jnp.zeros(0), jnp.zeros(config.size), jnp.zeros(actions)),
        observe=observe,
        acted=lambda belief, taken: belief._replace(action=encode(parts.action, taken)),
        features=lambda belief: belief.stoch,
        feature_size=config.size,
        loss=partial(window_loss, config, parts),
        world=partial(learned_world, parts),
        decode=lambda params, features: parts.coder.decode(params["decoder"], features),
    )


def window_loss(
    config: ConsistencyConfig, parts: Parts, params: PyTree, window: Window, key: Key
) -> tuple[Float[Array, ""], tuple[Belief, Metrics]]:
    """(loss, (the belief at each position [B, T], metrics)) of a window, as in the docstring of the module. Steps after the
    end of an episode have no weight."""
    codes = parts.code(params, window.observation)
    taken = window.action[:, 1:]

    def step(z: Array, action: Array) -> tuple[Array, Array]:
        after = parts.step(params, z, action)
        return after, after

    _, later = jax.lax.scan(step, codes[:, 0], jnp.swapaxes(taken, 0, 1))
    z = jnp.concatenate([codes[:, :1], jnp.swapaxes(later, 0, 1)], axis=1)
    weight = weights(config, window)

    def mean(error: Float[Array, "B K"]) -> Float[Array, ""]:
        return jnp.sum(weight * error) / jnp.sum(weight)

    decoded = parts.coder.loss(params["decoder"], z[:, :-1], window.observation[:, :-1])
    losses = {
        "consistency": config.consistency_scale * mean(jnp.sum((z[:, 1:] - sg(codes[:, 1:])) ** 2, axis=-1)),
        "reward": config.reward_scale * mean((parts.reward(params, z[:, :-1], taken) - window.reward[:, 1:]) ** 2),
        "decoder": config.decoder_scale * mean(decoded),
    }
    if parts.goes_on is not None:
        losses["continuation"] = mean(continuation_loss(parts.goes_on(params, z[:, 1:]), window.terminated[:, 1:]))
    found = {f"model/{name}": Average.of(value) for name, value in losses.items()}
    deter = jnp.zeros((*window.reward.shape, 0))
    return sum(losses.values(), start=jnp.zeros(())), (Belief(deter, codes, window.action), found)


def weights(config: ConsistencyConfig, window: Window) -> Float[Array, "B K"]:
    """The weight of each step of a window: 0 after the first end of an episode."""
    before = jnp.cumsum(window.last[:, :-1], axis=1)
    return (before == 0) * config.decay ** jnp.arange(before.shape[1])


def learned_world(parts: Parts, params: PyTree) -> World:
    """The World that steps beliefs [N]."""

    def reset(key: Key) -> Belief:
        raise NotImplementedError("a latent model has no initial states: call start with beliefs [N]")

    def step(belief: Belief, action: Shaped[Array, "..."], key: Key) -> tuple[Belief, Transition]:
        action = jnp.broadcast_to(action, (belief.stoch.shape[0], *parts.action.shape))
        entered = encode(parts.action, action)
        z = parts.step(params, belief.stoch, entered)
        ended = jnp.zeros(z.shape[:1], z.dtype) if parts.goes_on is None else jax.nn.sigmoid(-parts.goes_on(params, z))
        return Belief(belief.deter, z, entered), Transition(
            observation=belief.stoch,
            action=action,
            reward=parts.reward(params, belief.stoch, entered),
            next_observation=z,
            terminated=ended,
            truncated=jnp.zeros(ended.shape, bool),
        )

    return World(reset=reset, start=lambda origin, key: origin, observe=lambda belief: belief.stoch, step=step)


def simnorm(x: Float[Array, "*n Z"], group: int) -> Float[Array, "*n Z"]:
    """Softmax of each group of entries (arXiv 2310.16828, equation 5).

    >>> from jaxmbrl.models.latent.consistency import simnorm
    >>> [round(float(entry), 6) for entry in simnorm(jnp.array([1.0, 0, 0, 0, 0, 0, 0, 0]), 8)[:2]]
    [0.279708, 0.102899]
    """
    return jax.nn.softmax(x.reshape(*x.shape[:-1], -1, group), axis=-1).reshape(x.shape)


def parts(config: ConsistencyConfig, observation: Space, action: Space) -> Parts:
    """The networks that the settings choose. Raises UserError for observations that are neither vectors nor images."""
    actions, hidden = encoded_size(action), (config.units,) * config.layers
    coder = coders.make(config.coder, observation)
    network = partial(MLP, activation=nn.silu, rms_norm=True)
    networks: dict[str, tuple[Any, int]] = {
        "code": (nn.Dense(config.size, param_dtype=jnp.result_type(float)), coder.size),
        "step": (network(hidden, config.size), config.size + actions),
        "reward": (network(hidden, 1), config.size + actions),
        "continuation": (network(hidden, 1), config.size),
    }
    if not config.learn_continuation:
        del networks["continuation"]

    def init(key: Key) -> PyTree:
        encoder_key, decoder_key, *keys = jax.random.split(key, 2 + len(networks))
        drawn = zip(networks.items(), keys, strict=True)
        found = {name: network.init(key, jnp.zeros(inputs)) for (name, (network, inputs)), key in drawn}
        return found | {
            "encoder": coder.init_encoder(encoder_key),
            "decoder": coder.init_decoder(decoder_key, config.size),
        }

    def apply(name: str, params: PyTree, *given: Array) -> Array:
        return networks[name][0].apply(params[name], jnp.concatenate(given, axis=-1))

    def code(params: PyTree, observation: Observation) -> Float[Array, "*n Z"]:
        return simnorm(apply("code", params, coder.encode(params["encoder"], observation)), config.group)

    return Parts(
        init,
        code=code,
        step=lambda params, z, action: simnorm(apply("step", params, z, action), config.group),
        reward=lambda params, z, action: apply("reward", params, z, action)[..., 0],
        goes_on=(lambda params, z: apply("continuation", params, z)[..., 0]) if config.learn_continuation else None,
        coder=coder,
        action=action,
    )
