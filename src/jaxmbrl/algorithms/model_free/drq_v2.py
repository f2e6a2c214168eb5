"""DrQ-v2 (Yarats et al., arXiv 2107.09645): continuous control from images without a model. A deterministic policy gradient
with n-step returns on randomly shifted images, and exploration noise that falls.

Target     y = sum_{i < m} discount^i r_i + discount^m (1 - terminated) min Q'(f(s_m), a'),  m <= n
           a' = clip(pi(f(s_m)) + clip(N(0, sigma_t), -noise_clip, noise_clip), -1, 1)
Critics    minimise  sum over critics of mean (Q(f(s), a) - y)^2, which trains the encoder f too
Actor      minimise  -mean min Q(f(s), a),  a of pi(f(s)) as a' above; no gradient reaches f
Acting     clip(pi(f(s)) + N(0, sigma_t), -1, 1), and uniformly at random for the first `warmup_steps`

    for each environment step t:
        act and store the transition
        at every `train_every`-th step: sample rows of n steps, shift s and s_m by up to `shift_pixels` pixels each,
            update encoder and critics, the actor, and the target critics Q'
        sigma_t falls linearly from `noise_first` to `noise_last` within `noise_steps` steps

f are convolutions (`nn.encoder`). Actor and critics each have a trunk behind it, a dense layer with layer norm and tanh,
which all critics share. There is neither a target actor nor a target encoder. The gradient of the actor's loss passes the
outer clip, of values in [-1, 1], as if it were not there.

On vectors, which are their own features, with one step, no trunk and no noise it is DDPG without a target actor.

Differs from the code of the authors: the actor's update uses the encoder after its own update; initial weights are LeCun's;
an action is clipped at 1, not at 1 - 1e-6.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt, Le
from jaxtyping import Array, Float

from jaxmbrl.agents.actor_critic.critics import critic_loss, next_discount, td_target
from jaxmbrl.agents.actor_critic.td3 import smoothed
from jaxmbrl.agents.actor_critic.updates import actor_critic
from jaxmbrl.agents.exploration import with_gaussian_noise
from jaxmbrl.algorithms.registry import TINY_RUN, Goal, Method
from jaxmbrl.algorithms.shared import ReplaySettings, collector, critic_view, learn_from_experience, new_experience
from jaxmbrl.core.config import Traced
from jaxmbrl.core.extremes import smallest
from jaxmbrl.core.schedules import linear
from jaxmbrl.core.spaces import Space
from jaxmbrl.core.types import (
    Action,
    ActorCritic,
    Algorithm,
    Average,
    Clock,
    Hyper,
    Key,
    Memory,
    Metrics,
    Observation,
    Policy,
    PyTree,
    Task,
    Transition,
    Views,
)
from jaxmbrl.data.experience import Experience
from jaxmbrl.data.n_step import NStep
from jaxmbrl.envs.base import action_vector
from jaxmbrl.nn import encoder, optimizer
from jaxmbrl.nn.encoder import DRQ, Encoder
from jaxmbrl.nn.networks import MLP, ConvLayer, Precision
from jaxmbrl.nn.optimizer import Trainable


@dataclass(frozen=True)
class AgentConfig:
    """Settings of the agent."""

    convolutions: tuple[ConvLayer, ...] = DRQ
    """(units, kernel size, stride) of each convolution of the encoder, for images."""
    trunk: Annotated[int, Ge(1)] | None = 50
    """Units of the two trunks; None for none, where the hidden layers receive the encoder's features."""
    hidden: tuple[Annotated[int, Ge(1)], ...] = (1024, 1024)
    """Units of each hidden layer of actor and critics, behind the trunk."""
    precision: Precision = "default"
    """Precision of the products between hidden layers: JAX's default, or bfloat16 for devices with matrix units for it."""
    critics: Annotated[int, Ge(1)] = 2
    """Number of critics N, of which targets and the actor use the minimum."""
    learning_rate: Annotated[float, Gt(0), Traced] = 1e-4
    """Adam learning rate of encoder, actor and critics."""
    discount: Annotated[float, Ge(0), Le(1), Traced] = 0.99
    """Discount factor per step."""
    polyak: Annotated[float, Gt(0), Le(1)] = 0.01
    """Polyak factor: the share by which the target critics move at each update."""
    noise_clip: Annotated[float, Ge(0)] = 0.3
    """Bound to which the noise of actions is clipped in the losses."""


@dataclass(frozen=True)
class Config(ReplaySettings):
    """Settings of a run of DrQ-v2."""

    agent: AgentConfig = field(default_factory=AgentConfig)
    """Networks and their updates."""
    noise_first: Annotated[float, Ge(0)] = 1.0
    """Standard deviation of the noise of actions at the start, in units of the action."""
    noise_last: Annotated[float, Ge(0)] = 0.1
    """The same at the end."""
    noise_steps: Annotated[int, Ge(1)] = 500_000
    """Environment steps within which it falls, linearly."""
    train_every: Annotated[int, Ge(1)] = 2
    """Steps of each environment between updates; there are `updates_per_step` updates then."""
    n_step: Annotated[int, Ge(1)] = 3
    """Steps of the target's return before it bootstraps. It ends earlier with the episode, and bootstraps at a time
    limit."""
    augment: Literal["none", "shift"] = "shift"
    """Whether the images of each batch are moved at random by up to `shift_pixels`."""
    warmup_steps: Annotated[int, Ge(0)] = 2000
    """Environment steps of uniformly random actions, without updates, at the start."""


class Critics(NamedTuple):
    """Parameters of the critics."""

    trunk: PyTree
    """`()` if there is none."""
    heads: PyTree
    """Leaves have the leading axis [critics]."""


class AgentState(NamedTuple):
    """Parameters and optimiser states of the agent."""

    actor: Trainable
    critic: Trainable
    """Its parameters are `Critics`, and its `target` are the target critics."""
    encoder: Trainable
    discount: Float[Array, ""]


class State(NamedTuple):
    """The whole state of a run."""

    agent: AgentState
    experience: Experience
    key: Key


class _Agent(NamedTuple):
    """The functions of the agent at one time, whose noise has the standard deviation `deviation`."""

    config: AgentConfig
    encoder: Encoder
    actor: MLP
    trunk: MLP | None
    critic: MLP
    action_size: int
    deviation: Float[Array, ""] | float

    def init(self, key: Key, hyper: Hyper) -> AgentState:
        config = self.config
        actor_key, critic_key, trunk_key, encoder_key = jax.random.split(key, 4)
        features = jnp.zeros(self.encoder.size)
        trunk = () if self.trunk is None else self.trunk.init(trunk_key, features)
        pair = jnp.zeros((config.trunk or self.encoder.size) + self.action_size)
        heads = jax.vmap(lambda k: self.critic.init(k, pair))(jax.random.split(critic_key, config.critics))
        learning_rate = hyper.get("learning_rate", config.learning_rate)
        return AgentState(
            actor=optimizer.init(self.actor.init(actor_key, features), learning_rate),
            critic=optimizer.init(Critics(trunk, heads), learning_rate, with_target=True),
            encoder=optimizer.init(self.encoder.init(encoder_key), learning_rate),
            discount=jnp.asarray(hyper.get("discount", config.discount), float),
        )

    def features(self, state: AgentState, observation: Observation) -> Float[Array, "*n F"]:
        """f(s), through which no gradient flows."""
        return jax.lax.stop_gradient(self.encoder.apply(state.encoder.params, observation))

    def action_of(self, params: PyTree, features: Float[Array, "*n F"]) -> Float[Array, "*n A"]:
        """pi(f(s)) = tanh of the actor network."""
        return jnp.tanh(self.actor.apply(params, features))

    def values(self, params: Critics, features: Float[Array, "*n F"], action: Action) -> Float[Array, "L *n"]:
        """The value by each critic."""
        seen = features if self.trunk is None else self.trunk.apply(params.trunk, features)
        pair = jnp.concatenate([seen, action], axis=-1)
        return jax.vmap(lambda head: self.critic.apply(head, pair)[..., 0])(params.heads)

    def noisy(self, action: Float[Array, "*n A"], key: Key) -> Float[Array, "*n A"]:
        """The action with clipped noise, within [-1, 1]."""
        return smoothed(action, key, self.deviation, self.config.noise_clip)

    def policy(self, state: AgentState, explore: bool) -> Policy:
        def act(memory: Memory, observation: Observation, key: Key) -> tuple[Action, PyTree, Memory]:
            return self.action_of(state.actor.params, self.features(state, observation)), (), memory

        policy = Policy(init=lambda key: (), act=act)
        return with_gaussian_noise(policy, self.deviation) if explore else policy

    def policy_with_entropy(self, state: AgentState) -> Policy:
        def act(memory: Memory, observation: Observation, key: Key) -> tuple[Action, PyTree, Memory]:
            action = self.action_of(state.actor.params, self.features(state, observation))
            return action, jnp.zeros(action.shape[:-1], action.dtype), memory

        return Policy(init=lambda key: (), act=act)

    def target_value(self, state: AgentState, observation: Observation, key: Key) -> Float[Array, "N"]:
        return self.target_values(state, observation, key).min(axis=0)

    def target_values(self, state: AgentState, observation: Observation, key: Key) -> Float[Array, "L N"]:
        features = self.features(state, observation)
        action = self.noisy(self.action_of(state.actor.params, features), key)
        return self.values(state.critic.target, features, action)

    def action_value(self, state: AgentState, observation: Observation, action: Action, key: Key) -> Float[Array, "N"]:
        return self.values(state.critic.params, self.features(state, observation), action).min(axis=0)

    def update_critic(
        self,
        state: AgentState,
        batch: Transition | NStep,
        key: Key,
        *,
        target: Float[Array, "B"] | None = None,
        weight: Float[Array, "B"] | None = None,
    ) -> tuple[AgentState, Metrics, Float[Array, "B"]]:
        """One step of critics and encoder, after which the target critics move."""
        if target is None:
            next_value = self.target_value(state, batch.next_observation, key)
            target = td_target(batch.reward, next_discount(batch, state.discount), batch.terminated, next_value)
        target = jax.lax.stop_gradient(target)

        def loss_of(params: tuple[PyTree, Critics]) -> tuple[Float[Array, ""], Float[Array, "L B"]]:
            of_encoder, critics = params
            found = self.values(critics, self.encoder.apply(of_encoder, batch.observation), batch.action)
            return critic_loss(found, target, weight), found

        parts = state.encoder, state.critic
        (value, found), gradients = jax.value_and_grad(loss_of, has_aux=True)(tuple(part.params for part in parts))
        (seeing, of_encoder), (critic, of_critic) = map(optimizer.step, parts, gradients)
        measured = {
            "agent/critic_loss": Average.of(value),
            "agent/q": Average.of(jnp.mean(found)),
            "agent/critic_gradient_norm": Average.of(of_critic),
            "agent/encoder_gradient_norm": Average.of(of_encoder),
            "agent/noise": Average.of(jnp.asarray(self.deviation, float)),
        }
        moved = optimizer.move_target(critic, self.config.polyak)
        return state._replace(critic=moved, encoder=seeing), measured, jnp.mean(jnp.abs(found - target), axis=0)

    def update_actor(
        self, state: AgentState, batch: Transition | NStep, key: Key, *, loss: Any = None
    ) -> tuple[AgentState, Metrics]:
        features = self.features(state, batch.observation)

        def own_loss(params: PyTree, *_: Any) -> tuple[Float[Array, ""], Float[Array, ""]]:
            action = self.action_of(params, features)
            # The noise is a constant, and so is what the outer clip takes away.
            action += jax.lax.stop_gradient(self.noisy(action, key) - action)
            return -jnp.mean(smallest(self.values(state.critic.params, features, action))), jnp.zeros(())

        gradient_of = jax.value_and_grad(own_loss if loss is None else loss, has_aux=True)
        (value, bonus), gradient = gradient_of(state.actor.params, state, batch, key)
        return self.apply_actor_gradient(state, value, gradient, bonus)

    def apply_actor_gradient(
        self, state: AgentState, value: Float[Array, ""], gradient: PyTree, bonus: Float[Array, ""]
    ) -> tuple[AgentState, Metrics]:
        trained, norm = optimizer.step(state.actor, gradient)
        return state._replace(actor=trained), {
            "agent/actor_loss": Average.of(value),
            "agent/actor_gradient_norm": Average.of(norm),
        }


def agent_for(
    config: AgentConfig, observation: Space, action_size: int, deviation: Float[Array, ""] | float
) -> ActorCritic:
    """The agent for images or vectors in the space `observation` and actions [A] in [-1, 1], whose noise has the standard
    deviation `deviation`, traced or not. Its state is an `AgentState`; `hyper` may hold `learning_rate` and `discount`,
    traced."""
    trunk = None if config.trunk is None else MLP((config.trunk,), None, first_norm=True)
    layers = config.hidden if config.trunk is None else (config.trunk, *config.hidden)
    actor = MLP(layers, action_size, precision=config.precision, first_norm=config.trunk is not None)
    critic = MLP(config.hidden, 1, precision=config.precision)
    seen = encoder.make(observation, config.convolutions)
    return actor_critic(_Agent(config, seen, actor, trunk, critic, action_size, deviation))


def make(config: Config, task: Task) -> Algorithm:
    """DrQ-v2 on `task`, whose observations are images or vectors."""
    spaces = task.observation, action_vector(task, "drq-v2")
    calm = agent_for(config.agent, *spaces, 0.0)

    def agent_at(clock: Clock) -> ActorCritic:
        return agent_for(
            config.agent, *spaces, linear(config.noise_first, config.noise_last, config.noise_steps, clock.env_steps)
        )

    def init(key: Key, hyper: Hyper, data: Transition | None = None) -> State:
        agent_key, key = jax.random.split(key)
        return State(calm.init(agent_key, hyper), new_experience(config, task, data), key)

    def policy(state: State, clock: Clock, explore: bool) -> Policy:
        acting = agent_at(clock).policy(state.agent, explore)
        return collector(acting, task, config, clock) if explore else acting

    def learn(clock: Clock, state: State, transitions: Transition) -> tuple[State, Metrics]:
        key, update_key = jax.random.split(state.key)
        agent_state, experience, found = learn_from_experience(
            config, agent_at(clock), state.agent, state.experience, clock, transitions, update_key
        )
        return State(agent_state, experience, key), found

    def views(state: State) -> Views:
        return Views(state.experience.own, critic=critic_view(calm, state.agent))

    return Algorithm(init, policy, learn, period=config.train_every, views=views)


METHOD = Method(
    make,
    Config,
    family="model_free",
    paper="2107.09645",
    summary="a deterministic policy gradient from images: n-step returns, random shifts, noise that falls",
    takes=("continuous actions", "images"),
    tiny={**TINY_RUN, "augment": "none", "agent.trunk": 8, "agent.hidden": (16, 16), "noise_steps": 200},
    goals=(
        Goal(
            "drq-v2-pixels-pendulum",
            "stacked/3/pixels/32,grey/pendulum",
            10_000,
            -250.0,
            seeds_at_goal=3,
            about="images of 32 x 32 pixels, the last three, shifted by up to 2 pixels",
        ),
        Goal(
            "drq-v2-pixels-pendulum-no-shift",
            "stacked/3/pixels/32,grey/pendulum",
            10_000,
            -250.0,
            seeds_at_goal=0,
            settings={"augment": "none"},
            about="images of 32 x 32 pixels, the last three, without shifts",
        ),
        Goal(
            "drq-v2-pixels-dmc-cartpole",
            "stacked/3/pixels/32,grey/repeated/4/dmc/cartpole-swingup",
            20_000,
            600.0,
            seeds_at_goal=0,
            episodes=30,
            preset="small",
            settings={"noise_steps": 10_000},
            about="small preset, images of 32 x 32 pixels, action repeat 4: 80,000 frames",
        ),
        Goal(
            "drq-v2-pixels-dmc-cartpole-no-shift",
            "stacked/3/pixels/32,grey/repeated/4/dmc/cartpole-swingup",
            20_000,
            600.0,
            seeds_at_goal=0,
            episodes=30,
            preset="small",
            settings={"noise_steps": 10_000, "augment": "none"},
            about="the same, without shifts",
        ),
    ),
)
