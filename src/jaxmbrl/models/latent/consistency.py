"""A deterministic latent model of one observation: its code, and the code and the reward that follow an action.

    z_0 = g(o_0),    z_{t+1} = f(z_t, a_t)
    loss = sum_t decay^t ( ||z_{t+1} - sg g(o_{t+1})||^2 + (h(z_t, a_t) - r_t)^2 + ||D(z_t) - o_t||^2 ) / sum_t decay^t

with a further cross-entropy of the continuation at z_{t+1}. Each group of entries of z is a softmax (SimNorm, Hansen et
al., TD-MPC2, arXiv 2310.16828). A bounded code, a fixed scale of the error and a constant target are necessary: a learned
likelihood of codes without bounds grows without limit as the codes shrink, while D undoes the shrinking. The belief forgets
the past, so an observation must be a state; frames can be stacked (`envs.stacked`).

TD-MPC2 has the same model without D (`decoder_scale` 0), with the reward as two-hot logits, and trains it together with its
Q-functions, from the `errors` of each step (`algorithms.latent.td_mpc2`).
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
from jaxmbrl.distributions import ScalarHead, SymlogHead
from jaxmbrl.models.latent import coders
from jaxmbrl.models.latent.coders import Activation, Coder, CoderConfig
from jaxmbrl.models.latent.interface import Belief, LatentModel, Window
from jaxmbrl.models.latent.rssm import continuation_loss
from jaxmbrl.models.latent.windows import step_weights

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
    """Weight of the observations' error; 0 for a model without a decoder."""
    bins: Annotated[int, Ge(0)] = 0
    """Bins of the reward's head, evenly spaced in its symlog from -10 to 10; 0 for a plain number with squared error."""
    learn_continuation: bool = True
    """Whether the model learns when episodes end; otherwise they never end in imagination."""
    activation: Activation = "silu"
    """Activation of all hidden layers."""
    norm: Literal["rms", "layer"] = "rms"
    """Norm of hidden layers: of their root mean square, or layer norm, which then also precedes the softmax of codes."""

    def problem(self) -> tuple[str, str] | None:
        """(field, message) of the first violated rule that involves several fields, or None."""
        if self.size % self.group:
            return "group", f"must divide size ({self.size}), got {self.group}"
        if self.bins and (self.bins < 3 or self.bins % 2 == 0):
            return "bins", f"must be 0, or odd and at least 3, got {self.bins}"
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
    reward_loss: Callable[[PyTree, Float[Array, "*n Z"], Float[Array, "*n A"], Float[Array, "*n"]], Float[Array, "*n"]]
    """(params, z, action, reward) -> the loss of h."""
    goes_on: Callable[[PyTree, Float[Array, "*n Z"]], Float[Array, "*n"]] | None
    """(params, z) -> the logit of the continuation; None if episodes never end."""
    coder: Coder
    has_decoder: bool
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
        decode=partial(decoded, parts),
    )


def decoded(parts: Parts, params: PyTree, features: Float[Array, "*n Z"]) -> Observation:
    """D. Raises ValueError if the model has no decoder."""
    if not parts.has_decoder:
        raise ValueError("this model has no decoder: give it a decoder_scale above 0")
    return parts.coder.decode(params["decoder"], features)


def window_loss(
    config: ConsistencyConfig, parts: Parts, params: PyTree, window: Window, key: Key
) -> tuple[Float[Array, ""], tuple[Belief, Metrics]]:
    """(loss, (the belief at each position [B, T], metrics)) of a window, as in the docstring of the module. Steps after the
    end of an episode have no weight."""
    z, codes = rolled(parts, params, window)
    weight, scale = step_weights(window, config.decay), scales(config)
    by_step = errors(parts, params, z, codes, window)
    losses = {name: scale[name] * jnp.sum(weight * error) / jnp.sum(weight) for name, error in by_step.items()}
    found = {f"model/{name}": Average.of(value) for name, value in losses.items()}
    deter = jnp.zeros((*window.reward.shape, 0))
    return sum(losses.values(), start=jnp.zeros(())), (Belief(deter, codes, window.action), found)


def rolled(parts: Parts, params: PyTree, window: Window) -> tuple[Float[Array, "B T Z"], Float[Array, "B T Z"]]:
    """(z_t: the code of the first observation, then the codes that the model predicts from it; g(o_t))."""
    codes = parts.code(params, window.observation)

    def step(z: Array, action: Array) -> tuple[Array, Array]:
        after = parts.step(params, z, action)
        return after, after

    _, later = jax.lax.scan(step, codes[:, 0], jnp.swapaxes(window.action[:, 1:], 0, 1))
    return jnp.concatenate([codes[:, :1], jnp.swapaxes(later, 0, 1)], axis=1), codes


def errors(
    parts: Parts, params: PyTree, z: Float[Array, "B T Z"], codes: Float[Array, "B T Z"], window: Window
) -> dict[str, Float[Array, "B K"]]:
    """The errors of each step of a window, before their weights. `z` and `codes` are those of `rolled`."""
    before, after, taken = z[:, :-1], z[:, 1:], window.action[:, 1:]
    found = {
        "consistency": jnp.sum((after - sg(codes[:, 1:])) ** 2, axis=-1),
        "reward": parts.reward_loss(params, before, taken, window.reward[:, 1:]),
    }
    if parts.has_decoder:
        found["decoder"] = parts.coder.loss(params["decoder"], before, window.observation[:, :-1])
    if parts.goes_on is not None:
        found["continuation"] = continuation_loss(parts.goes_on(params, after), window.terminated[:, 1:])
    return found


def scales(config: ConsistencyConfig) -> dict[str, float]:
    """The weights of the `errors`."""
    return {
        "consistency": config.consistency_scale,
        "reward": config.reward_scale,
        "decoder": config.decoder_scale,
        "continuation": 1.0,
    }


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


class CodeNetwork(nn.Module):
    """Hidden layers, a linear layer and a softmax of each group, with layer norm before it if the hidden layers have it."""

    hidden: tuple[int, ...]
    size: int
    group: int
    activation: Activation
    norm: Literal["rms", "layer"]

    @nn.compact
    def __call__(self, x: Float[Array, "*n i"]) -> Float[Array, "*n Z"]:
        """The code."""
        x = coders.layers(self.hidden, self.size, self.activation, self.norm)(x)
        if self.norm == "layer":
            x = nn.LayerNorm(param_dtype=jnp.result_type(float))(x)
        return simnorm(x, self.group)


def parts(config: ConsistencyConfig, observation: Space, action: Space) -> Parts:
    """The networks that the settings choose. Raises UserError for observations that are neither vectors nor images."""
    actions, hidden = encoded_size(action), (config.units,) * config.layers
    coder, has_decoder = coders.make(config.coder, observation, config.activation, config.norm), config.decoder_scale > 0
    network = partial(coders.layers, activation=config.activation, norm=config.norm)
    codes = partial(CodeNetwork, size=config.size, group=config.group, activation=config.activation, norm=config.norm)
    number = SymlogHead(config.bins) if config.bins else ScalarHead()
    last = nn.initializers.zeros_init() if config.bins else None
    networks: dict[str, tuple[Any, int]] = {
        "code": (codes(()), coder.size),
        "step": (codes(hidden), config.size + actions),
        "reward": (network(hidden, number.size, last_init=last), config.size + actions),
        "continuation": (network(hidden, 1), config.size),
    }
    if not config.learn_continuation:
        del networks["continuation"]

    def init(key: Key) -> PyTree:
        encoder_key, decoder_key, *keys = jax.random.split(key, 2 + len(networks))
        drawn = zip(networks.items(), keys, strict=True)
        found = {name: network.init(key, jnp.zeros(inputs)) for (name, (network, inputs)), key in drawn}
        found["encoder"] = coder.init_encoder(encoder_key)
        return found | ({"decoder": coder.init_decoder(decoder_key, config.size)} if has_decoder else {})

    def apply(name: str, params: PyTree, *given: Array) -> Array:
        return networks[name][0].apply(params[name], jnp.concatenate(given, axis=-1))

    return Parts(
        init,
        code=lambda params, observation: apply("code", params, coder.encode(params["encoder"], observation)),
        step=partial(apply, "step"),
        reward=lambda params, z, action: number.mean(apply("reward", params, z, action)),
        reward_loss=lambda params, z, action, reward: number.loss(apply("reward", params, z, action), reward),
        goes_on=(lambda params, z: apply("continuation", params, z)[..., 0]) if config.learn_continuation else None,
        coder=coder,
        has_decoder=has_decoder,
        action=action,
    )
