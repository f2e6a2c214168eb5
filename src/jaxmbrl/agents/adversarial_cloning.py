"""A policy fitted to recorded actions by a conditional generative adversarial network.

    min_g max_D  E_{(s, a)}[log D(s, a)] + E_s[log(1 - D(s, g(s, z)))],    z ~ N(0, I)

The generator g is the policy: a = tanh of a network's output for a state and a noise vector z. The discriminator D is the
sigmoid of another network's output (Goodfellow et al., arXiv 1406.2661; conditional: Mirza and Osindero, arXiv 1411.1784).
With equal capacity D is 1/2 everywhere exactly when the policy has the distribution of the recorded actions, which need not
be Gaussian as that of `behaviour_cloning`. It is the second form of BMPO's backward policy (Lai et al., arXiv 2007.01995).

Each update first moves D and then g, on the same batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from annotated_types import Ge, Gt
from jaxtyping import Array, Float

from jaxmbrl.core.types import (
    Action,
    Average,
    Hyper,
    Key,
    Learner,
    Memory,
    Metrics,
    Observation,
    Policy,
    PyTree,
    Transition,
)
from jaxmbrl.nn import optimizer
from jaxmbrl.nn.networks import MLP
from jaxmbrl.nn.optimizer import Trainable


@dataclass(frozen=True)
class AdversarialConfig:
    """Settings of the policy and its discriminator."""

    hidden: tuple[Annotated[int, Ge(1)], ...] = (256, 256)
    """Units of each hidden layer of both networks (ReLU)."""
    learning_rate: Annotated[float, Gt(0)] = 3e-4
    """Adam learning rate of both networks. The first moment has a decay of 0.5."""
    noise: Annotated[int, Ge(1)] = 4
    """Size of the noise vector z."""


class AdversarialState(NamedTuple):
    """Both networks with their optimiser states."""

    policy: Trainable
    discriminator: Trainable


def discriminator_loss(real: Float[Array, "N"], generated: Float[Array, "M"]) -> Float[Array, ""]:
    """-mean log D(recorded) - mean log(1 - D(generated)) in nats, by the logits of D."""
    return jnp.mean(jax.nn.softplus(-real)) + jnp.mean(jax.nn.softplus(generated))


def policy_loss(generated: Float[Array, "B"]) -> Float[Array, ""]:
    """mean log(1 - D(generated)) in nats, by the logits of D."""
    return -jnp.mean(jax.nn.softplus(generated))


def make(config: AdversarialConfig, observation_size: int, action_size: int) -> Learner:
    """The policy as a `Learner` for observations [O] and actions [A] in [-1, 1]. Without exploration z is 0. `update` reads
    only the rows' observations and actions; its error is the distance of each action from that for z = 0."""
    generator, discriminator = MLP(config.hidden, action_size), MLP(config.hidden, 1)
    chain = optax.scale_by_adam(b1=0.5)

    def act_by(params: PyTree, observation: Observation, noise: Float[Array, "*n Z"]) -> Action:
        return jnp.tanh(generator.apply(params, jnp.concatenate([observation, noise], axis=-1)))

    def logits(params: PyTree, observation: Observation, action: Action) -> Float[Array, "*n"]:
        return discriminator.apply(params, jnp.concatenate([observation, action], axis=-1))[..., 0]

    def init(key: Key, hyper: Hyper) -> AdversarialState:
        keys = jax.random.split(key)
        sizes = observation_size + config.noise, observation_size + action_size
        networks = zip((generator, discriminator), keys, sizes, strict=True)
        params = (network.init(k, jnp.zeros(size)) for network, k, size in networks)
        return AdversarialState(*(optimizer.init(p, config.learning_rate, chain=chain) for p in params))

    def policy(state: AdversarialState, explore: bool) -> Policy:
        def act(memory: Memory, observation: Observation, key: Key) -> tuple[Action, PyTree, Memory]:
            shape = (*observation.shape[:-1], config.noise)
            noise = jax.random.normal(key, shape, observation.dtype) if explore else jnp.zeros(shape, observation.dtype)
            return act_by(state.policy.params, observation, noise), (), memory

        return Policy(lambda key: (), act)

    def update(
        state: AdversarialState, batch: Transition, key: Key, weight: Any = None
    ) -> tuple[AdversarialState, Metrics, Float[Array, "B"]]:
        observation, action = batch.observation, batch.action
        noise = jax.random.normal(key, (*observation.shape[:-1], config.noise), observation.dtype)
        generated = act_by(state.policy.params, observation, noise)

        def of_discriminator(params: PyTree) -> Float[Array, ""]:
            return discriminator_loss(logits(params, observation, action), logits(params, observation, generated))

        told, gradient = jax.value_and_grad(of_discriminator)(state.discriminator.params)
        judge, _ = optimizer.step(state.discriminator, gradient, chain=chain)

        def of_policy(params: PyTree) -> Float[Array, ""]:
            return policy_loss(logits(judge.params, observation, act_by(params, observation, noise)))

        value, gradient = jax.value_and_grad(of_policy)(state.policy.params)
        moved, _ = optimizer.step(state.policy, gradient, chain=chain)
        error = jnp.linalg.norm(action - act_by(state.policy.params, observation, jnp.zeros_like(noise)), axis=-1)
        found = {"adversarial/loss": Average.of(value), "adversarial/discriminator_loss": Average.of(told)}
        return AdversarialState(moved, judge), found, error

    return Learner(init, policy, update)
