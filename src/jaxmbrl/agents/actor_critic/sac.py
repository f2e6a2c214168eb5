"""Soft Actor-Critic (Haarnoja et al., arXiv 1812.05905), with N critics and a learned temperature.

Critic target   y = r + discount (1 - terminated) (min Q'(s', a') - alpha log pi(a'|s')), a' ~ pi
Critic loss     sum over critics of mean (Q(s, a) - y)^2
Actor loss      mean (alpha log pi(a|s) - min Q(s, a)), a ~ pi reparameterised
Temperature     minimise -log alpha (log pi + target entropy)

REDQ (Chen et al., arXiv 2101.05982): the target's minimum is over a random subset of the critics, the same for the whole
batch, and the actor maximises the mean of all critics. DroQ (Hiraoka et al., arXiv 2110.02034): two critics with dropout
and layer norm instead of many; units are dropped in all losses, including targets and the actor's loss.

Differs from the papers: losses have no factor 1/2. Updates are sequential: the actor uses the critics after their update,
as in REDQ's algorithm 1; REDQ's code uses the critics before it. The log standard deviation is clipped to [-20, 2].

For discrete actions, `discrete_sac` has other networks and replaces the expectations over actions by sums.

From images, actor and critics share one encoder (`nn.encoder`), and their networks receive its codes. As in SAC-AE (Yarats
et al., arXiv 1910.01741), which has a decoder besides, the critics' loss alone trains it: no gradient of the actor's loss
reaches it. The target critics have an encoder of their own, which follows as they do; the actor has the current one, also
in the target.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt, Le, Lt
from jaxtyping import Array, Float

from jaxmbrl.agents.actor_critic.critics import next_discount, regress, td_target
from jaxmbrl.agents.actor_critic.updates import actor_critic
from jaxmbrl.core.config import Traced
from jaxmbrl.core.extremes import smallest
from jaxmbrl.core.keys import beside
from jaxmbrl.core.types import (
    Action,
    ActorCritic,
    Average,
    Hyper,
    Key,
    Memory,
    Metrics,
    Observation,
    Policy,
    PyTree,
    Transition,
)
from jaxmbrl.data.n_step import NStep
from jaxmbrl.distributions import sample_squashed
from jaxmbrl.models.normalizer import Normalizer, normalize
from jaxmbrl.nn import optimizer
from jaxmbrl.nn.encoder import Encoder
from jaxmbrl.nn.networks import MLP, Precision
from jaxmbrl.nn.optimizer import Trainable

MIN_LOG_STD, MAX_LOG_STD = -20.0, 2.0
Pool = Literal["min", "mean"]
"""How the values of several critics are combined."""


@dataclass(frozen=True)
class SACConfig:
    """Settings of the agent."""

    hidden: tuple[Annotated[int, Ge(1)], ...] = (256, 256)
    """Units of each hidden layer of actor and critics."""
    precision: Precision = "default"
    """Precision of the products between hidden layers: JAX's default, or bfloat16 for devices with matrix units for it."""
    layer_norm: bool = False
    """Whether the critics' hidden layers are normalised (layer norm) before their activation."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Dropout rate of the critics' hidden units in losses and targets."""
    critics: Annotated[int, Ge(1)] = 2
    """Number of critics N."""
    critic_subset: Annotated[int, Ge(1)] = 2
    """Number of randomly chosen critics whose minimum a target uses."""
    actor_value: Pool = "min"
    """What the actor maximises: the critics' minimum (SAC), or their mean (REDQ, DroQ)."""
    learning_rate: Annotated[float, Gt(0), Traced] = 3e-4
    """Adam learning rate of actor, critics and temperature."""
    discount: Annotated[float, Ge(0), Le(1), Traced] = 0.99
    """Discount factor per step."""
    polyak: Annotated[float, Gt(0), Le(1)] = 0.005
    """Polyak factor: the share by which the target critics move at each update."""
    initial_temperature: Annotated[float, Gt(0), Traced] = 1.0
    """Temperature alpha at the start."""
    target_entropy: float | None = None
    """Target entropy in nats; None for minus the action's size, or for n discrete actions, 0.89 log n."""

    def problem(self) -> tuple[str, str] | None:
        """(field, message) of the first violated rule that involves several fields, or None."""
        if self.critic_subset > self.critics:
            return "critic_subset", f"must be at most critics ({self.critics}), got {self.critic_subset}"
        return None


class SACState(NamedTuple):
    """Parameters and optimiser states of the agent."""

    actor: Trainable
    critic: Trainable
    """Leaves have the leading axis [critics], but with an encoder the parameters are a `WithEncoder`. Its `target` are the
    target critics."""
    log_temperature: Trainable
    discount: Float[Array, ""]


class WithEncoder(NamedTuple):
    """Parameters of critics that receive the codes of one encoder."""

    encoder: PyTree
    heads: PyTree
    """Leaves have the leading axis [critics]."""


ActorLoss = Callable[[PyTree, SACState, Transition, Key], tuple[Float[Array, ""], Float[Array, ""]]]
"""(actor parameters, state, batch, key) -> (loss, mean entropy bonus of the sampled actions)."""


Values = Callable[[Action], Float[Array, "*n"]]
"""Action of each row -> its values, with further leading axes if there are several critics."""


class Actor(NamedTuple):
    """The actor as functions of its parameters."""

    init: Callable[[Key, Observation], PyTree]
    """(key, example observation) -> parameters."""
    distribution: Callable[[PyTree, Observation], Any]
    """(parameters, observation) -> parameters of the action's distribution: (mean, log standard deviation) before tanh,
    both [*n, A], or the log-probabilities [*n, n] of discrete actions."""
    greedy: Callable[[PyTree, Observation], Action]
    """(parameters, observation) -> the action without exploration."""
    sample: Callable[[PyTree, Observation, Key], tuple[Action, Float[Array, "*n"]]]
    """(parameters, observation, key) -> (action, its log-density), reparameterised if it is continuous."""
    soft_values: Callable[[PyTree, Observation, Values, Any, Key], Float[Array, "*n"]]
    """(parameters, observation, values, temperature, key) -> mean over actions of values(a) - temperature log pi(a|s), by
    one sample if actions are continuous."""
    loss: Callable[[PyTree, Observation, Values, Any, Pool, Key], tuple[Float[Array, ""], Float[Array, ""]]]
    """(parameters, observation, values of each critic, temperature, pool, key) -> (loss, mean log-density)."""


class SACFunctions(NamedTuple):
    """The networks of the agent as functions of their parameters; `assemble` builds an agent from them."""

    actor: Actor
    init_critic: Callable[[Key, Float[Array, "O+A"]], PyTree]
    """(key, example observation and action, concatenated) -> parameters of one critic."""
    q: Callable[..., Float[Array, "N *n"]]
    """(critic parameters, observation, action, key=None) -> the value by each critic. With a key, units are dropped,
    independently for each critic, as in losses and targets."""
    target_q: Callable[..., Float[Array, "N *n"]]
    """The same, for values in targets."""


def functions(config: SACConfig, action_size: int) -> SACFunctions:
    """The networks as pure functions."""
    network = partial(MLP, config.hidden, precision=config.precision)
    actor, critic = network(2 * action_size), network(1, layer_norm=config.layer_norm, dropout=config.dropout)

    def gaussian(params: PyTree, observation: Observation) -> tuple[Array, Array]:
        mean, log_std = jnp.split(actor.apply(params, observation), 2, axis=-1)
        return mean, jnp.clip(log_std, MIN_LOG_STD, MAX_LOG_STD)

    q = each_critic(critic)
    return SACFunctions(squashed(actor.init, gaussian), critic.init, q, target_q=q)


def squashed(
    init: Callable[[Key, Observation], PyTree], gaussian: Callable[[PyTree, Observation], tuple[Array, Array]]
) -> Actor:
    """The actor whose actions are tanh of a Gaussian; `gaussian` is its `distribution`."""

    def greedy(params: PyTree, observation: Observation) -> Action:
        mean, _ = gaussian(params, observation)
        return jnp.tanh(mean)

    def sample(params: PyTree, observation: Observation, key: Key) -> tuple[Action, Array]:
        return sample_squashed(key, *gaussian(params, observation))

    def soft_values(params: PyTree, observation: Observation, values: Values, temperature: Any, key: Key) -> Array:
        action, log_density = sample(params, observation, key)
        return values(action) - temperature * log_density

    def loss(
        params: PyTree, observation: Observation, values: Values, temperature: Any, pool: Pool, key: Key
    ) -> tuple[Array, Array]:
        action, log_density = sample(params, observation, key)
        return actor_loss(values(action), log_density, temperature, pool), jnp.mean(log_density)

    return Actor(init, gaussian, greedy, sample, soft_values, loss)


def each_critic(critic: MLP) -> Callable[..., Float[Array, "N *n"]]:
    """`SACFunctions.q` for critics with the network `critic`."""

    def q(params: PyTree, observation: Observation, action: Action, key: Key | None = None) -> Array:
        x = jnp.concatenate([observation, action], axis=-1)
        if key is None:
            return jax.vmap(lambda member: critic.apply(member, x)[..., 0])(params)
        keys = jax.random.split(key, jax.tree.leaves(params)[0].shape[0])
        return jax.vmap(lambda member, key: critic.apply(member, x, key)[..., 0])(params, keys)

    return q


def pooled(values: Float[Array, "N *n"], pool: Pool) -> Float[Array, "*n"]:
    """The minimum or the mean of the N critics' values."""
    return smallest(values) if pool == "min" else values.mean(axis=0)


def actor_loss(
    values: Float[Array, "N B"], log_density: Float[Array, "B"], temperature: Any, pool: Pool = "min"
) -> Float[Array, ""]:
    """mean_b (temperature log pi_b - Q_b) at actions sampled from the actor, where Q is the minimum or the mean of the N
    critics' values."""
    return -jnp.mean(pooled(values, pool) - temperature * log_density)


def temperature_loss(
    log_temperature: Float[Array, ""], log_density: Float[Array, ""], target_entropy: float
) -> Float[Array, ""]:
    """-log alpha (log pi + target entropy) with the batch's mean log pi, in nats. Minimising it moves the policy's entropy
    to the target."""
    return -log_temperature * (jax.lax.stop_gradient(log_density) + target_entropy)


def make(
    config: SACConfig,
    observation_size: int,
    action_size: int,
    normalizer: Normalizer | None = None,
    encoder: Encoder | None = None,
) -> ActorCritic:
    """The agent for flat observations [O] and actions [A] in [-1, 1]; its state is a `SACState`. With a `normalizer` the
    networks receive normalised observations; the arguments of the agent's functions are always in the task's units. With an
    `encoder` observations are what it takes, such as images, and O is the length of its codes.

    `hyper` may hold `learning_rate`, `discount` and `initial_temperature`, traced.
    """
    return assemble(config, functions(config, action_size), observation_size, action_size, normalizer, encoder)


def assemble(
    config: SACConfig,
    parts: SACFunctions,
    observation_size: int,
    action_size: int,
    normalizer: Normalizer | None = None,
    encoder: Encoder | None = None,
) -> ActorCritic:
    """An agent with the networks `parts`. Of `config`, the settings of networks are ignored. `action_size` is the number of
    a critic's inputs for the action; with 0 the target entropy must be given."""
    target_entropy = -float(action_size) if config.target_entropy is None else config.target_entropy
    return actor_critic(_SAC(config, parts, observation_size, action_size, target_entropy, normalizer, encoder))


class _SAC(NamedTuple):
    """The functions of the agent; each takes observations in the task's units."""

    config: SACConfig
    parts: SACFunctions
    observation_size: int
    action_size: int
    target_entropy: float
    normalizer: Normalizer | None
    encoder: Encoder | None

    def init(self, key: Key, hyper: Hyper) -> SACState:
        config, parts = self.config, self.parts
        actor_key, critic_key = jax.random.split(key)
        observation, pair = jnp.zeros(self.observation_size), jnp.zeros(self.observation_size + self.action_size)
        critic_params = jax.vmap(lambda k: parts.init_critic(k, pair))(jax.random.split(critic_key, config.critics))
        if self.encoder is not None:
            critic_params = WithEncoder(self.encoder.init(beside(key, 1)), critic_params)
        learning_rate = hyper.get("learning_rate", config.learning_rate)
        log_temperature = jnp.log(jnp.asarray(hyper.get("initial_temperature", config.initial_temperature), float))
        return SACState(
            actor=optimizer.init(parts.actor.init(actor_key, observation), learning_rate),
            critic=optimizer.init(critic_params, learning_rate, with_target=True),
            log_temperature=optimizer.init(log_temperature, learning_rate),
            discount=jnp.asarray(hyper.get("discount", config.discount), float),
        )

    def inputs(self, critics: PyTree, observation: Observation) -> Observation:
        """What the networks receive: the code by the encoder in the parameters `critics`, or the observation, normalised if
        there is a normaliser."""
        if self.encoder is not None:
            return self.encoder.apply(critics.encoder, observation)
        return observation if self.normalizer is None else normalize(self.normalizer, observation)

    def actor_inputs(self, state: SACState, observation: Observation) -> Observation:
        """The same for the actor, whose loss does not train the encoder."""
        inputs = self.inputs(state.critic.params, observation)
        return inputs if self.encoder is None else jax.lax.stop_gradient(inputs)

    def heads(self, critics: PyTree) -> PyTree:
        """The parameters of the critics behind the encoder, if there is one."""
        return critics if self.encoder is None else critics.heads

    def policy(self, state: SACState, explore: bool) -> Policy:
        def act(memory: Memory, observation: Observation, key: Key) -> tuple[Action, PyTree, Memory]:
            inputs = self.actor_inputs(state, observation)
            if explore:
                return self.parts.actor.sample(state.actor.params, inputs, key)[0], (), memory
            return self.parts.actor.greedy(state.actor.params, inputs), (), memory

        return Policy(init=lambda key: (), act=act)

    def policy_with_entropy(self, state: SACState) -> Policy:
        def act(memory: Memory, observation: Observation, key: Key) -> tuple[Action, PyTree, Memory]:
            inputs = self.actor_inputs(state, observation)
            action, log_density = self.parts.actor.sample(state.actor.params, inputs, key)
            return action, -jnp.exp(state.log_temperature.params) * log_density, memory

        return Policy(init=lambda key: (), act=act)

    def target_value(self, state: SACState, observation: Observation, key: Key) -> Float[Array, "N"]:
        return self.target_value_by(state, observation, jax.random.split(key, 3))

    def target_value_by(self, state: SACState, observation: Observation, keys: Key) -> Float[Array, "N"]:
        """`target_value` with three keys: for the action, the subset of critics and dropout."""
        config, critics = self.config, state.critic.target
        if config.critic_subset < config.critics:
            drawn = jax.random.choice(keys[1], config.critics, (config.critic_subset,), replace=False)
            some = jax.tree.map(lambda p: p[drawn], self.heads(critics))
            critics = some if self.encoder is None else critics._replace(heads=some)
        return self.soft_values(state, observation, lambda values: values.min(axis=0), critics, keys)

    def target_values(self, state: SACState, observation: Observation, key: Key) -> Float[Array, "L N"]:
        keys = jax.random.split(key, 3)
        return self.soft_values(state, observation, lambda values: values, state.critic.target, keys)

    def soft_values(
        self,
        state: SACState,
        observation: Observation,
        combine: Callable[[Float[Array, "L N"]], Float[Array, "... N"]],
        critics: PyTree,
        keys: Key,
    ) -> Float[Array, "... N"]:
        """The soft value, the mean over a ~ pi of Q'(s, a) - alpha log pi(a|s), where Q' are the values by each of
        `critics`, combined."""
        inputs = self.inputs(critics, observation)

        def values(action: Action) -> Array:
            return combine(self.parts.target_q(self.heads(critics), inputs, action, keys[2]))

        seen = inputs if self.encoder is None else self.actor_inputs(state, observation)
        temperature = jnp.exp(state.log_temperature.params)
        return self.parts.actor.soft_values(state.actor.params, seen, values, temperature, keys[0])

    def action_values(self, state: SACState, observation: Observation, action: Action, key: Key) -> Float[Array, "L N"]:
        """The value by each critic, for the actor's objective."""
        critics, unit_key = state.critic.params, key if self.config.dropout else None
        return self.parts.q(self.heads(critics), self.inputs(critics, observation), action, unit_key)

    def action_value(self, state: SACState, observation: Observation, action: Action, key: Key) -> Float[Array, "N"]:
        return pooled(self.action_values(state, observation, action, key), self.config.actor_value)

    def update_critic(
        self,
        state: SACState,
        batch: Transition | NStep,
        key: Key,
        *,
        target: Float[Array, "B"] | None = None,
        weight: Float[Array, "B"] | None = None,
    ) -> tuple[SACState, Metrics, Float[Array, "B"]]:
        keys = jax.random.split(key, 4)
        if target is None:
            next_value = self.target_value_by(state, batch.next_observation, keys[:3])
            target = td_target(batch.reward, next_discount(batch, state.discount), batch.terminated, next_value)

        def values(params: PyTree) -> Float[Array, "N B"]:
            return self.parts.q(self.heads(params), self.inputs(params, batch.observation), batch.action, keys[3])

        trained, found, error = regress(state.critic, values, target, weight)
        return state._replace(critic=optimizer.move_target(trained, self.config.polyak)), found, error

    def update_actor(
        self, state: SACState, batch: Transition | NStep, key: Key, *, loss: ActorLoss | None = None
    ) -> tuple[SACState, Metrics]:
        if loss is not None:
            (value, bonus), gradient = jax.value_and_grad(loss, has_aux=True)(state.actor.params, state, batch, key)
            return self.apply_actor_gradient(state, value, gradient, bonus)

        def own_loss(params: PyTree) -> tuple[Float[Array, ""], Float[Array, ""]]:
            action_key, value_key = jax.random.split(key) if self.config.dropout else (key, key)

            def values(action: Action) -> Array:
                return self.action_values(state, batch.observation, action, value_key)

            inputs, temperature = self.actor_inputs(state, batch.observation), jnp.exp(state.log_temperature.params)
            return self.parts.actor.loss(params, inputs, values, temperature, self.config.actor_value, action_key)

        (value, log_density), gradient = jax.value_and_grad(own_loss, has_aux=True)(state.actor.params)
        return self.step(state, value, gradient, log_density)

    def apply_actor_gradient(
        self, state: SACState, value: Float[Array, ""], gradient: PyTree, bonus: Float[Array, ""]
    ) -> tuple[SACState, Metrics]:
        # The entropy bonus is -alpha log pi.
        return self.step(state, value, gradient, -bonus / jnp.exp(state.log_temperature.params))

    def step(
        self, state: SACState, value: Float[Array, ""], gradient: PyTree, log_density: Float[Array, ""]
    ) -> tuple[SACState, Metrics]:
        """One step of the actor along `gradient`, and one of the temperature with the mean `log_density`, in nats."""
        trained, norm = optimizer.step(state.actor, gradient)
        slope = jax.grad(temperature_loss)(state.log_temperature.params, log_density, self.target_entropy)
        temperature, _ = optimizer.step(state.log_temperature, slope)
        return state._replace(actor=trained, log_temperature=temperature), {
            "agent/actor_loss": Average.of(value),
            "agent/entropy": Average.of(-log_density),
            "agent/temperature": Average.of(jnp.exp(temperature.params)),
            "agent/actor_gradient_norm": Average.of(norm),
        }
