"""The interface of latent world models, and the policy that acts on their belief."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from jaxmbrl.core.spaces import Space
from jaxmbrl.core.types import Action, Key, Memory, Metrics, Observation, Policy, PyTree, World


class Belief(NamedTuple):
    """What a latent model knows of the state, of one row or of rows [*n]."""

    deter: Float[Array, "*n D"]
    """h: the deterministic, recurrent part."""
    stoch: Float[Array, "*n Z"]
    """z: a sample of the stochastic part, in one row."""
    action: Float[Array, "*n A"]
    """The action that was taken last, as a vector; zeros at the start of an episode."""


class Window(NamedTuple):
    """B windows of T successive positions. The position of an observation has what led to it: the action before it, and the
    reward and the end of that step."""

    observation: Shaped[Array, "B T ..."]
    action: Float[Array, "B T A"]
    """The action before, as a vector; zeros at the first position."""
    reward: Float[Array, "B T"]
    terminated: Bool[Array, "B T"]
    """Whether the step terminated the episode: this observation is terminal."""
    first: Bool[Array, "B T"]
    """Whether nothing is known of what came before: the belief begins anew."""
    last: Bool[Array, "B T"]
    """Whether the episode ended here, by termination or time limit."""
    known: Float[Array, "B T"]
    """1 where the reward is known, 0 at the first position."""


class LatentModel(NamedTuple):
    """A world model whose state is a belief. `params` are its parameters. Functions take one row, or rows [*n]."""

    init: Callable[[Key], PyTree]
    """key -> params."""
    initial: Callable[[], Belief]
    """The belief before the first observation of an episode, of one row: zeros."""
    observe: Callable[[PyTree, Belief, Observation, Key], Belief]
    """(params, belief before, observation, key) -> the belief after the belief's action led to the observation."""
    acted: Callable[[Belief, Action], Belief]
    """(belief, action) -> the belief with this as its last action."""
    features: Callable[[Belief], Float[Array, "*n F"]]
    """What policies and values are functions of: deterministic and stochastic part in one row."""
    feature_size: int
    """F."""
    loss: Callable[[PyTree, Window, Key], tuple[Float[Array, ""], tuple[Belief, Metrics]]]
    """(params, window, key) -> (loss, (the belief at each position [B, T], metrics))."""
    world: Callable[[PyTree], World]
    """params -> the World of imagination. Its carry and its origin are beliefs [N], its observation their features [N, F].
    The reward of a step is that of the belief it leads to, and `terminated` is a probability."""
    decode: Callable[[PyTree, Float[Array, "*n F"]], Observation]
    """(params, features) -> the observation that the model expects."""


class LatentView(NamedTuple):
    """A trained latent model, for reports and diagnostics (`core.types.Views`)."""

    model: LatentModel
    params: PyTree
    action: Space
    """Of the task."""


class Remembered(NamedTuple):
    """Memory of a policy that acts on beliefs."""

    belief: Belief
    inner: Memory


def believing(model: LatentModel, params: PyTree, inner: Policy) -> Policy:
    """The policy whose memory is the belief: it takes the next observation into the belief, and `inner` acts on the
    `Belief`. The belief has the action that was taken, whether `inner` is wrapped in warm-up and noise or this policy is
    (`agents.exploration`, `Policy.remember`)."""

    def init(key: Key) -> Remembered:
        return Remembered(model.initial(), inner.init(key))

    def act(memory: Remembered, observation: Observation, key: Key) -> tuple[Action, PyTree, Remembered]:
        observe_key, act_key = jax.random.split(key)
        belief = model.observe(params, memory.belief, observation, observe_key)
        action, extras, after = inner.act(memory.inner, belief, act_key)
        return action, extras, Remembered(model.acted(belief, action), after)

    def remember(memory: Remembered, observation: Observation, action: Action, key: Key) -> Remembered:
        observe_key, act_key = jax.random.split(key)
        belief, after = model.observe(params, memory.belief, observation, observe_key), memory.inner
        if inner.remember is not None:
            after = inner.remember(after, belief, action, act_key)
        return Remembered(model.acted(belief, action), after)

    return Policy(init, act, remember=remember)


def on_features(model: LatentModel, policy: Policy) -> Policy:
    """A policy on beliefs that acts as `policy` does on their features, for `believing`."""

    def act(memory: Memory, belief: Observation, key: Key) -> tuple[Action, PyTree, Memory]:
        return policy.act(memory, model.features(belief), key)

    return Policy(policy.init, act)


def limited(action: Float[Array, "*n A"]) -> Float[Array, "*n A"]:
    """Actions as vectors, within [-1, 1]: what the environment clips, the model sees clipped. The gradient with respect to
    an action does not become 0."""
    return action / jax.lax.stop_gradient(jnp.maximum(1.0, jnp.abs(action)))


def rows_of(beliefs: Any) -> Any:
    """Beliefs [B, T] of windows, or any arrays [B, T, ...], as rows [B T, ...]."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), beliefs)


def repeated(belief: Belief, number: int) -> Belief:
    """One belief as `number` equal rows, the origin of a plan."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (number, *x.shape)), belief)
