"""Soft Actor-Critic (Haarnoja et al., arXiv 1812.05905), with N critics and learned temperature.

Critic target   y = r + discount (1 - terminated) (min Q'(s', a') - alpha log pi(a'|s')), a' ~ pi
Critic loss     sum over critics of mean (Q(s, a) - y)^2
Actor loss      mean (alpha log pi(a|s) - min Q(s, a)), a ~ pi reparameterised
Temperature     minimise -log alpha (log pi + target entropy)

REDQ (Chen et al., arXiv 2101.05982): the target's minimum is over a random subset of the critics, the same for the whole
batch, and the actor maximises the mean of all. DroQ (Hiraoka et al., arXiv 2110.02034): two critics with dropout and layer
norm instead of many; units are dropped wherever a loss is computed, in the targets and in the actor's loss too.

Differs from the papers: losses carry no factor 1/2. Updates are sequential: the actor sees the critic just updated, as in
REDQ's algorithm 1; its code takes the critic before that. The log standard deviation is clipped to [-20, 2].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt, Le, Lt
from jaxtyping import Array, Float

from jaxmbrl.agents.actor_critic.critics import regress
from jaxmbrl.agents.actor_critic.updates import in_turn
from jaxmbrl.core.config import Traced
from jaxmbrl.core.types import Action, Agent, Average, Hyper, Key, Memory, Metrics, Observation, Policy, PyTree, Transition
from jaxmbrl.distributions import sample_squashed
from jaxmbrl.nn import optimizer
from jaxmbrl.nn.networks import MLP, Precision
from jaxmbrl.nn.optimizer import Trainable

MIN_LOG_STD, MAX_LOG_STD = -20.0, 2.0


@dataclass(frozen=True)
class SACConfig:
    """Settings of the agent."""

    hidden: tuple[Annotated[int, Ge(1)], ...] = (256, 256)
    """Units of each hidden layer of actor and critics."""
    precision: Precision = "default"
    """Of the products between hidden layers: JAX's default, or bfloat16, faster where a device has matrix units for it."""
    layer_norm: bool = False
    """Whether the critics' hidden layers are normalised (layer norm) before their activation."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Share of the critics' hidden units that is dropped in every loss and target."""
    critics: Annotated[int, Ge(1)] = 2
    """Number of critics N."""
    critic_subset: Annotated[int, Ge(1)] = 2
    """Critics drawn for each target's minimum."""
    actor_value: Literal["min", "mean"] = "min"
    """What the actor maximises: the critics' minimum (SAC), or their mean (REDQ, DroQ)."""
    learning_rate: Annotated[float, Gt(0), Traced] = 3e-4
    """Adam's, for actor, critics and temperature."""
    discount: Annotated[float, Ge(0), Le(1), Traced] = 0.99
    """Discount a step."""
    polyak: Annotated[float, Gt(0), Le(1)] = 0.005
    """Share by which the target critics move at each update."""
    initial_temperature: Annotated[float, Gt(0), Traced] = 1.0
    """Temperature alpha at the start."""
    target_entropy: float | None = None
    """Entropy in nats that the temperature is learned for; minus the action's size where not given."""

    def problem(self) -> tuple[str, str] | None:
        """A rule between fields that is broken."""
        if self.critic_subset > self.critics:
            return "critic_subset", f"must be at most critics ({self.critics}), got {self.critic_subset}"
        return None


class SACState(NamedTuple):
    """Everything that learns."""

    actor: Trainable
    critic: Trainable
    """Leaves lead with [critics]; its target copy is the target critics."""
    log_temperature: Trainable
    discount: Float[Array, ""]


ActorLoss = Callable[[PyTree, SACState, Transition, Key], tuple[Float[Array, ""], Float[Array, ""]]]
"""(actor parameters, state, batch, key) -> (what the actor descends, mean entropy bonus of actions that it drew)."""


class SACFunctions(NamedTuple):
    """The agent's own functions: what `assemble` makes an agent of, and what other targets and losses are made from."""

    init_actor: Callable[[Key, Observation], PyTree]
    """(key, observation like one) -> parameters of the actor."""
    init_critic: Callable[[Key, Float[Array, "O+A"]], PyTree]
    """(key, observation and action like ones) -> parameters of one critic."""
    gaussian: Callable[[PyTree, Observation], tuple[Float[Array, "*n A"], Float[Array, "*n A"]]]
    """(actor parameters, observation) -> (mean, log standard deviation) of the action before tanh."""
    sample: Callable[[PyTree, Observation, Key], tuple[Float[Array, "*n A"], Float[Array, "*n"]]]
    """(actor parameters, observation, key) -> (action, log-density), reparameterised."""
    q: Callable[..., Float[Array, "N *n"]]
    """(critic parameters, observation, action, key=None) -> each critic's value. With a key each critic drops units of its
    own, as losses and targets want it; without one none."""
    target_q: Callable[..., Float[Array, "N *n"]]
    """The same, for the value of a target."""


def functions(config: SACConfig, action_size: int) -> SACFunctions:
    """The agent's functions, pure in their parameters."""
    network = partial(MLP, config.hidden, precision=config.precision)
    actor, critic = network(2 * action_size), network(1, layer_norm=config.layer_norm, dropout=config.dropout)

    def gaussian(params: PyTree, observation: Observation) -> tuple[Array, Array]:
        mean, log_std = jnp.split(actor.apply(params, observation), 2, axis=-1)
        return mean, jnp.clip(log_std, MIN_LOG_STD, MAX_LOG_STD)

    def sample(params: PyTree, observation: Observation, key: Key) -> tuple[Array, Array]:
        return sample_squashed(key, *gaussian(params, observation))

    q = each_critic(critic)
    return SACFunctions(actor.init, critic.init, gaussian, sample, q, target_q=q)


def each_critic(critic: MLP) -> Callable[..., Float[Array, "N *n"]]:
    """`SACFunctions.q` of critics that are such networks."""

    def q(params: PyTree, observation: Observation, action: Action, key: Key | None = None) -> Array:
        x = jnp.concatenate([observation, action], axis=-1)
        if key is None:
            return jax.vmap(lambda member: critic.apply(member, x)[..., 0])(params)
        keys = jax.random.split(key, jax.tree.leaves(params)[0].shape[0])
        return jax.vmap(lambda member, key: critic.apply(member, x, key)[..., 0])(params, keys)

    return q


def _policy(parts: SACFunctions, state: SACState, explore: bool) -> Policy:
    def act(memory: Memory, observation: Observation, key: Key) -> tuple[Action, PyTree, Memory]:
        if explore:
            return parts.sample(state.actor.params, observation, key)[0], (), memory
        mean, _ = parts.gaussian(state.actor.params, observation)
        return jnp.tanh(mean), (), memory

    return Policy(init=lambda key: (), act=act)


def _judged_policy(parts: SACFunctions, state: SACState) -> Policy:
    def act(memory: Memory, observation: Observation, key: Key) -> tuple[Action, PyTree, Memory]:
        action, log_density = parts.sample(state.actor.params, observation, key)
        return action, -jnp.exp(state.log_temperature.params) * log_density, memory

    return Policy(init=lambda key: (), act=act)


def make(config: SACConfig, observation_size: int, action_size: int) -> Agent:
    """The agent for flat observations [O] and actions [A] in [-1, 1].

    `hyper` may hold `learning_rate`, `discount` and `initial_temperature`, traced.
    """
    return assemble(config, functions(config, action_size), observation_size, action_size)


def assemble(config: SACConfig, parts: SACFunctions, observation_size: int, action_size: int) -> Agent:
    """The agent of other functions, with the settings of `config` but those of the networks."""
    sample, q = parts.sample, parts.q
    target_entropy = -float(action_size) if config.target_entropy is None else config.target_entropy

    def init(key: Key, hyper: Hyper) -> SACState:
        actor_key, critic_key = jax.random.split(key)
        observation, pair = jnp.zeros(observation_size), jnp.zeros(observation_size + action_size)
        critic_params = jax.vmap(lambda k: parts.init_critic(k, pair))(jax.random.split(critic_key, config.critics))
        learning_rate = hyper.get("learning_rate", config.learning_rate)
        log_temperature = jnp.log(jnp.asarray(hyper.get("initial_temperature", config.initial_temperature), float))
        return SACState(
            actor=optimizer.init(parts.init_actor(actor_key, observation), learning_rate),
            critic=optimizer.init(critic_params, learning_rate, with_target=True),
            log_temperature=optimizer.init(log_temperature, learning_rate),
            discount=jnp.asarray(hyper.get("discount", config.discount), float),
        )

    def target_value(state: SACState, observation: Observation, key: Key) -> Float[Array, "N"]:
        return value_by(state, observation, jax.random.split(key, 3))

    def value_by(state: SACState, observation: Observation, keys: Key) -> Float[Array, "N"]:
        critics, subset_key = state.critic.target, keys[1]
        if config.critic_subset < config.critics:
            drawn = jax.random.choice(subset_key, config.critics, (config.critic_subset,), replace=False)
            critics = jax.tree.map(lambda p: p[drawn], critics)
        return values_by(critics, state, observation, keys).min(axis=0)

    def target_values(state: SACState, observation: Observation, key: Key) -> Float[Array, "L N"]:
        return values_by(state.critic.target, state, observation, jax.random.split(key, 3))

    def values_by(critics: PyTree, state: SACState, observation: Observation, keys: Key) -> Float[Array, "L N"]:
        action_key, _, unit_key = keys
        action, log_density = sample(state.actor.params, observation, action_key)
        return parts.target_q(critics, observation, action, unit_key) - jnp.exp(state.log_temperature.params) * log_density

    def critic_target(state: SACState, batch: Transition, key: Key) -> Float[Array, "B"]:
        return target_by(state, batch, jax.random.split(key, 3))

    def target_by(state: SACState, batch: Transition, keys: Key) -> Float[Array, "B"]:
        soft_value = value_by(state, batch.next_observation, keys)
        return batch.reward + state.discount * jnp.where(batch.terminated, 0.0, soft_value)

    def update_critic(
        state: SACState,
        batch: Transition,
        key: Key,
        *,
        target: Float[Array, "B"] | None = None,
        weight: Float[Array, "B"] | None = None,
    ) -> tuple[SACState, Metrics]:
        keys = jax.random.split(key, 4)
        y = target_by(state, batch, keys[:3]) if target is None else target
        trained, found = regress(
            state.critic, lambda params: q(params, batch.observation, batch.action, keys[3]), y, weight
        )
        return state._replace(critic=optimizer.move_target(trained, config.polyak)), found

    def judged(
        params: PyTree, state: SACState, observation: Observation, key: Key
    ) -> tuple[Float[Array, "N"], Float[Array, "N"]]:
        """What the actor maximises, and the log-density of the actions that it drew."""
        action_key, value_key = jax.random.split(key) if config.dropout else (key, key)
        action, log_density = sample(params, observation, action_key)
        value = action_value(state, observation, action, value_key)
        return value - jnp.exp(state.log_temperature.params) * log_density, log_density

    def action_value(state: SACState, observation: Observation, action: Action, key: Key) -> Float[Array, "N"]:
        values = q(state.critic.params, observation, action, key if config.dropout else None)
        return values.min(axis=0) if config.actor_value == "min" else values.mean(axis=0)

    def actor_loss(params: PyTree, state: SACState, batch: Transition, key: Key) -> tuple[Array, Array]:
        values, log_density = judged(params, state, batch.observation, key)
        return -jnp.mean(values), jnp.mean(log_density)

    def update_actor(
        state: SACState, batch: Transition, key: Key, *, loss: ActorLoss | None = None
    ) -> tuple[SACState, Metrics]:
        gradient_of = jax.value_and_grad(actor_loss if loss is None else loss, has_aux=True)
        (value, told), gradient = gradient_of(state.actor.params, state, batch, key)
        log_density = told if loss is None else -told / jnp.exp(state.log_temperature.params)
        trained, norm = optimizer.step(state.actor, gradient)
        # The gradient of -log alpha (log pi + target entropy) with respect to log alpha.
        temperature, _ = optimizer.step(state.log_temperature, -(log_density + target_entropy))
        return state._replace(actor=trained, log_temperature=temperature), {
            "agent/actor_loss": Average.of(value),
            "agent/entropy": Average.of(-log_density),
            "agent/temperature": Average.of(jnp.exp(temperature.params)),
            "agent/actor_gradient_norm": Average.of(norm),
        }

    return Agent(
        init=init,
        policy=partial(_policy, parts),
        actor=partial(_judged_policy, parts),
        target_value=target_value,
        target_values=target_values,
        action_value=action_value,
        critic_target=critic_target,
        update_critic=update_critic,
        update_actor=update_actor,
        update=in_turn(update_critic, update_actor),
    )
