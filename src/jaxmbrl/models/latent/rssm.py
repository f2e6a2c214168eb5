"""The recurrent state-space model (RSSM) of PlaNet (Hafner et al., arXiv 1811.04551) and Dreamer V1, V2 and V3 (arXiv
1912.01603, 2010.02193, 2301.04104).

    recurrence     h_t = f(h_{t-1}, z_{t-1}, a_{t-1})
    prior          z_t ~ p(z | h_t)                  in imagination
    posterior      z_t ~ q(z | h_t, e(o_t))          given the observation
    features       f_t = [h_t, z_t]
    heads          observation, reward r_{t-1}, continuation c_t = 1 - terminated

    loss = mean over positions of  decoder + reward + continuation
           + dyn_scale floor(KL(sg q || p)) + rep_scale floor(KL(q || sg p))

The reward's head reads the state that the step led to. At the first position of an episode h, z and the action before are
zeros, and the recurrence runs as usual, so h does not depend on the observation there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt, Le
from flax import linen as nn
from jaxtyping import Array, Float, Shaped

from jaxmbrl.core.spaces import Space, encode, encoded_size
from jaxmbrl.core.types import Average, Key, Metrics, Observation, PyTree, Transition, World
from jaxmbrl.distributions import ScalarHead, SymexpHead
from jaxmbrl.models.latent import coders, latents
from jaxmbrl.models.latent.coders import Activation, Coder, CoderConfig
from jaxmbrl.models.latent.interface import Belief, LatentModel, Window, limited
from jaxmbrl.models.latent.latents import Latent, floored
from jaxmbrl.nn import recurrent
from jaxmbrl.nn.networks import MLP

sg = jax.lax.stop_gradient


@dataclass(frozen=True)
class RSSMConfig:
    """Settings of the model."""

    deter: Annotated[int, Ge(1)] = 64
    """Numbers of the recurrent state h."""
    core: Literal["blocks", "gru"] = "blocks"
    """The recurrent unit: DreamerV3's block unit, or a gated recurrent unit behind one layer of [z, a]."""
    blocks: Annotated[int, Ge(1)] = 4
    """Blocks of the block unit."""
    hidden: Annotated[int, Ge(1)] = 32
    """Units of the layers before the recurrent unit, of the prior and of the posterior."""
    latent: Literal["categorical", "gaussian"] = "categorical"
    """The stochastic state z: one-hot vectors, or Gaussian numbers."""
    groups: Annotated[int, Ge(1)] = 8
    """Number of one-hot vectors, or of Gaussian numbers."""
    classes: Annotated[int, Ge(2)] = 16
    """Length of a one-hot vector."""
    mixing: Annotated[float, Ge(0), Le(1)] = 0.01
    """Weight of the uniform distribution in categorical latents; 0 for none (DreamerV2)."""
    prior_layers: Annotated[int, Ge(1)] = 2
    """Hidden layers of the prior."""
    posterior_layers: Annotated[int, Ge(1)] = 1
    """Hidden layers of the posterior."""
    units: Annotated[int, Ge(1)] = 64
    """Units of the hidden layers of the heads of reward and continuation."""
    head_layers: Annotated[int, Ge(1)] = 1
    """Hidden layers of these heads."""
    bins: Annotated[int, Ge(0)] = 255
    """Bins of the reward's head; 0 for a plain number with squared error."""
    reward_gradient: bool = True
    """Whether the reward's loss also trains the belief."""
    learn_continuation: bool = True
    """Whether the model learns when episodes end; otherwise they never end in imagination."""
    activation: Activation = "silu"
    """Activation of all hidden layers."""
    rms_norm: bool = True
    """Whether hidden layers are normalised by their root mean square."""
    coder: CoderConfig = field(default_factory=CoderConfig)
    """Encoder and decoder."""
    free_nats: Annotated[float, Ge(0)] = 1.0
    """Divergence below which neither prior nor posterior is trained."""
    floor: Literal["each", "mean"] = "each"
    """Whether that is the divergence of each position or their mean."""
    dyn_scale: Annotated[float, Ge(0)] = 1.0
    """Weight of the divergence that trains the prior."""
    rep_scale: Annotated[float, Ge(0)] = 0.1
    """Weight of the divergence that trains the posterior."""
    decoder_scale: Annotated[float, Gt(0)] = 1.0
    """Weight of the decoder's loss."""
    reward_scale: Annotated[float, Gt(0)] = 1.0
    """Weight of the reward's loss."""

    def problem(self) -> tuple[str, str] | None:
        """(field, message) of the first violated rule that involves several fields, or None."""
        if self.core == "blocks" and self.deter % self.blocks:
            return "blocks", f"must divide deter ({self.deter}), got {self.blocks}"
        if self.bins and (self.bins < 3 or self.bins % 2 == 0):
            return "bins", f"must be 0, or odd and at least 3, got {self.bins}"
        return None


class Recurrence(NamedTuple):
    """The recurrent unit f."""

    init: Callable[[Key], PyTree]
    step: Callable[[PyTree, Float[Array, "*n D"], Float[Array, "*n Z"], Float[Array, "*n A"]], Float[Array, "*n D"]]
    """(parameters, h, z, action) -> the next h."""


class Networks(NamedTuple):
    """The parts of the model as functions of all its parameters."""

    init: Callable[[Key], PyTree]
    sizes: tuple[int, int, int]
    """Lengths of h, z and an action's vector."""
    recur: Callable[[PyTree, Float[Array, "*n D"], Float[Array, "*n Z"], Float[Array, "*n A"]], Float[Array, "*n D"]]
    """(params, h, z, action) -> the next h."""
    latent: Latent
    prior: Callable[[PyTree, Float[Array, "*n D"]], Float[Array, "*n K"]]
    """(params, h) -> outputs of the latent."""
    posterior: Callable[[PyTree, Float[Array, "*n D"], Float[Array, "*n E"]], Float[Array, "*n K"]]
    """(params, h, code of the observation) -> outputs of the latent."""
    coder: Coder
    reward: Callable[[PyTree, Float[Array, "*n F"]], Float[Array, "*n S"]]
    """(params, features) -> the output of the reward's head."""
    number: ScalarHead | SymexpHead
    """How that output represents a number."""
    goes_on: Callable[[PyTree, Float[Array, "*n F"]], Float[Array, "*n"]] | None
    """(params, features) -> the logit of the continuation; None if episodes never end."""
    action: Space


def make(config: RSSMConfig, observation: Space, action: Space) -> LatentModel:
    """The model for observations that are vectors or images, and for any actions. Those in a box are limited to [-1, 1] in
    the model. Raises UserError for other observations."""
    return assemble(config, networks(config, observation, action))


def assemble(config: RSSMConfig, parts: Networks) -> LatentModel:
    """The model of given parts."""

    def observe(params: PyTree, belief: Belief, observation: Observation, key: Key) -> Belief:
        deter = parts.recur(params, belief.deter, belief.stoch, belief.action)
        found = parts.posterior(params, deter, parts.coder.encode(params["encoder"], observation))
        return Belief(deter, parts.latent.sample(key, found), belief.action)

    return LatentModel(
        init=parts.init,
        initial=lambda: Belief(*map(jnp.zeros, parts.sizes)),
        observe=observe,
        acted=lambda belief, taken: belief._replace(action=encode(parts.action, taken)),
        features=features,
        feature_size=sum(parts.sizes[:2]),
        loss=partial(window_loss, config, parts),
        world=partial(learned_world, parts),
        decode=lambda params, features: parts.coder.decode(params["decoder"], features),
    )


def features(belief: Belief) -> Float[Array, "*n F"]:
    """[h, z]."""
    return jnp.concatenate([belief.deter, belief.stoch], axis=-1)


def window_loss(
    config: RSSMConfig, parts: Networks, params: PyTree, window: Window, key: Key
) -> tuple[Float[Array, ""], tuple[Belief, Metrics]]:
    """(loss, (the belief at each position [B, T], metrics)) of a window, as in the docstring of the module."""
    beliefs, outputs = filtered(parts, params, window, key)
    expected, f = parts.prior(params, beliefs.deter), features(beliefs)
    reward_output = parts.reward(params, f if config.reward_gradient else sg(f))
    reward = window.known * parts.number.loss(reward_output, window.reward)
    dyn, rep = parts.latent.divergence(sg(outputs), expected), parts.latent.divergence(outputs, sg(expected))
    losses = {
        "decoder": config.decoder_scale * jnp.mean(parts.coder.loss(params["decoder"], f, window.observation)),
        "reward": config.reward_scale * jnp.mean(reward),
        "dyn": config.dyn_scale * floored(dyn, config.free_nats, config.floor),
        "rep": config.rep_scale * floored(rep, config.free_nats, config.floor),
    }
    if parts.goes_on is not None:
        losses["continuation"] = jnp.mean(continuation_loss(parts.goes_on(params, f), window.terminated))
    found = {f"model/{name}": Average.of(value) for name, value in losses.items()}
    found["model/divergence"] = Average.of(jnp.mean(dyn))
    return sum(losses.values(), start=jnp.zeros(())), (beliefs, found)


@jax.named_scope("filter")
def filtered(parts: Networks, params: PyTree, window: Window, key: Key) -> tuple[Belief, Float[Array, "B T K"]]:
    """(the belief at each position of a window, the outputs of its posterior)."""

    def step(before: tuple[Array, ...], given: tuple[Array, ...]) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        code, action, first, key = given
        deter, stoch, action = (jnp.where(first[:, None], 0.0, x) for x in (*before, action))
        deter = parts.recur(params, deter, stoch, action)
        found = parts.posterior(params, deter, code)
        stoch = parts.latent.sample(key, found)
        return (deter, stoch), (deter, stoch, found)

    batch, length = window.reward.shape
    codes = parts.coder.encode(params["encoder"], window.observation)
    by_time = (jnp.swapaxes(x, 0, 1) for x in (codes, window.action, window.first))
    start = tuple(jnp.zeros((batch, size), codes.dtype) for size in parts.sizes[:2])
    _, found = jax.lax.scan(step, start, (*by_time, jax.random.split(key, length)))
    deter, stoch, outputs = (jnp.swapaxes(x, 0, 1) for x in found)
    return Belief(deter, stoch, window.action), outputs


def continuation_loss(logit: Float[Array, "*n"], terminated: Shaped[Array, "*n"]) -> Float[Array, "*n"]:
    """The cross-entropy of a continuation with this logit."""
    return jnp.where(terminated, jax.nn.softplus(logit), jax.nn.softplus(-logit))


def learned_world(parts: Networks, params: PyTree) -> World:
    """The World that steps beliefs [N] by the prior."""

    def reset(key: Key) -> Belief:
        raise NotImplementedError("a latent model has no initial states: call start with beliefs [N]")

    def step(belief: Belief, action: Shaped[Array, "..."], key: Key) -> tuple[Belief, Transition]:
        action = jnp.broadcast_to(action, (belief.deter.shape[0], *parts.action.shape))
        entered = encode(parts.action, action)
        deter = parts.recur(params, belief.deter, belief.stoch, entered)
        after = Belief(deter, parts.latent.sample(key, parts.prior(params, deter)), entered)
        f = features(after)
        ended = jnp.zeros(f.shape[:1], f.dtype) if parts.goes_on is None else jax.nn.sigmoid(-parts.goes_on(params, f))
        return after, Transition(
            observation=features(belief),
            action=action,
            reward=parts.number.mean(parts.reward(params, f)),
            next_observation=f,
            terminated=ended,
            truncated=jnp.zeros(ended.shape, bool),
        )

    return World(reset=reset, start=lambda origin, key: origin, observe=features, step=step)


def networks(config: RSSMConfig, observation: Space, action: Space) -> Networks:
    """The networks that the settings choose. Raises UserError for observations that are neither vectors nor images."""
    latent, actions = latent_of(config), encoded_size(action)
    unit = recurrence(config, actions)
    coder = coders.make(config.coder, observation, config.activation, "rms" if config.rms_norm else "none")
    number, size = number_head(config.bins), config.deter + latent.size
    network = partial(MLP, activation=getattr(jax.nn, config.activation), rms_norm=config.rms_norm)
    last = nn.initializers.zeros_init() if config.bins else None
    head = (config.units,) * config.head_layers
    parts = {
        "prior": (network((config.hidden,) * config.prior_layers, latent.outputs), config.deter),
        "posterior": (network((config.hidden,) * config.posterior_layers, latent.outputs), config.deter + coder.size),
        "reward": (network(head, number.size, last_init=last), size),
        "continuation": (network(head, 1), size),
    }
    if not config.learn_continuation:
        del parts["continuation"]

    def init(key: Key) -> PyTree:
        unit_key, encoder_key, decoder_key, *keys = jax.random.split(key, 3 + len(parts))
        drawn = zip(parts.items(), keys, strict=True)
        found = {name: network.init(key, jnp.zeros(inputs)) for (name, (network, inputs)), key in drawn}
        coders = {"encoder": coder.init_encoder(encoder_key), "decoder": coder.init_decoder(decoder_key, size)}
        return {"core": unit.init(unit_key), **coders, **found}

    def apply(name: str, params: PyTree, *given: Array) -> Array:
        return parts[name][0].apply(params[name], jnp.concatenate(given, axis=-1))

    return Networks(
        init,
        sizes=(config.deter, latent.size, actions),
        recur=lambda params, deter, stoch, action: unit.step(params["core"], deter, stoch, action),
        latent=latent,
        prior=partial(apply, "prior"),
        posterior=partial(apply, "posterior"),
        coder=coder,
        reward=partial(apply, "reward"),
        number=number,
        goes_on=(lambda params, f: apply("continuation", params, f)[..., 0]) if config.learn_continuation else None,
        action=action,
    )


def number_head(bins: int) -> ScalarHead | SymexpHead:
    """How an output represents a real number: by `bins`, or with 0 as itself."""
    return SymexpHead(bins) if bins else ScalarHead()


def latent_of(config: RSSMConfig) -> Latent:
    """The stochastic part that the settings choose."""
    if config.latent == "gaussian":
        return latents.gaussian(config.groups)
    return latents.categorical(config.groups, config.classes, config.mixing)


def recurrence(config: RSSMConfig, actions: int) -> Recurrence:
    """The recurrent unit that the settings choose, for action vectors of length `actions`."""
    stoch = latent_of(config).size
    layer = MLP((config.hidden,), None, activation=getattr(jax.nn, config.activation), rms_norm=config.rms_norm)

    def init(key: Key) -> PyTree:
        *keys, unit_key = jax.random.split(key, 4)
        if config.core == "gru":
            enter = layer.init(keys[0], jnp.zeros(stoch + actions))
            return {"enter": enter, "unit": recurrent.init(unit_key, config.hidden, config.deter)}
        sizes = {"deter": config.deter, "stoch": stoch, "action": actions}
        enter = {name: layer.init(key, jnp.zeros(size)) for (name, size), key in zip(sizes.items(), keys, strict=True)}
        unit = recurrent.init_blocks(unit_key, 3 * config.hidden, config.deter, config.blocks)
        return {"enter": enter, "unit": unit}

    def step(
        params: PyTree, deter: Float[Array, "*n D"], stoch: Float[Array, "*n Z"], action: Float[Array, "*n A"]
    ) -> Float[Array, "*n D"]:
        enter: Any = params["enter"]
        action = limited(action)
        if config.core == "gru":
            x = layer.apply(enter, jnp.concatenate([stoch, action], axis=-1))
            return recurrent.step(params["unit"], deter, x)
        given = {"deter": deter, "stoch": stoch, "action": action}
        x = jnp.concatenate([layer.apply(enter[name], part) for name, part in given.items()], axis=-1)
        return recurrent.step_blocks(params["unit"], deter, x)

    return Recurrence(init, step)
