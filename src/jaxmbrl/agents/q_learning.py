"""Deep Q-learning for discrete actions: DQN (Mnih et al., Nature 518, 2015), double DQN (van Hasselt et al., arXiv
1509.06461) and the dueling network (Wang et al., arXiv 1511.06581).

Target      y = r + discount (1 - terminated) V(s')
    DQN     V(s') = max_a Q'(s', a), with the target network Q'
    double  V(s') = Q'(s', argmax_a Q(s', a))
Loss        mean of Huber(Q(s, a) - y): half the square up to the threshold, linear beyond
Dueling     Q(s, a) = V(s) + A(s, a) - mean over a' of A(s, a')
Imitation   mean of max_a (Q(s, a) + margin 1(a != a_E)) - Q(s, a_E), of demonstrated actions a_E (DQfD: Hester et al.,
            arXiv 1704.03732, equation 2): the other actions are at least the margin below, also those without data
Policy      argmax_a Q(s, a); of equal values, the first

No gradient flows through y or through the choice of its action. Rows of several steps (`data.n_step`) have the n-step
target. The Huber loss with threshold 1 is DQN's clipped error. The target network moves by Polyak averaging at each update;
with `polyak = 1` it is a copy, and a method may copy it at intervals instead (`copy_target`).

The agent is an `ActorCritic` whose actor is the greedy policy (`agents.greedy`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from annotated_types import Ge, Gt, Le, Lt
from flax import linen as nn
from jaxtyping import Array, Float, Int

from jaxmbrl.agents.actor_critic.critics import regress
from jaxmbrl.agents.exploration import with_epsilon
from jaxmbrl.agents.greedy import QState, target_of, without_actor
from jaxmbrl.core.config import Traced
from jaxmbrl.core.extremes import largest
from jaxmbrl.core.spaces import Discrete, Space, encode
from jaxmbrl.core.types import (
    Action,
    ActorCritic,
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
from jaxmbrl.models.normalizer import Normalizer, normalize
from jaxmbrl.nn import encoder, optimizer
from jaxmbrl.nn.networks import MLP, NATURE, ConvLayer, ConvTorso, Precision


@dataclass(frozen=True)
class QLearningConfig:
    """Settings of the agent."""

    hidden: tuple[Annotated[int, Ge(1)], ...] = (256, 256)
    """Units of each hidden layer; after the convolutions, for images."""
    convolutions: tuple[ConvLayer, ...] = NATURE
    """(units, kernel size, stride) of each convolution, for images [H, W, C]. Other observations are encoded as vectors."""
    precision: Precision = "default"
    """Precision of the products between hidden layers: JAX's default, or bfloat16 for devices with matrix units for it."""
    double: bool = True
    """Whether the network chooses the action of the target and the target network gives its value (double DQN)."""
    dueling: bool = False
    """Whether the network has two streams, of the state's value and of the advantages. Each has the last hidden layer."""
    optimizer: Literal["adam", "rmsprop"] = "adam"
    """Adam, or the centred RMSProp of DQN."""
    learning_rate: Annotated[float, Gt(0), Traced] = 3e-4
    """Learning rate."""
    rmsprop_decay: Annotated[float, Ge(0), Lt(1)] = 0.95
    """Decay of RMSProp's moving averages."""
    rmsprop_epsilon: Annotated[float, Gt(0)] = 0.01 / 32**2
    """Added to RMSProp's variance, inside the square root."""
    discount: Annotated[float, Ge(0), Le(1), Traced] = 0.99
    """Discount factor per step."""
    huber: Annotated[float, Gt(0)] | None = 1.0
    """Threshold of the Huber loss: larger errors count linearly. None for half the squared error."""
    polyak: Annotated[float, Gt(0), Le(1)] = 0.005
    """Polyak factor: the share by which the target network moves at each update."""
    epsilon: Annotated[float, Ge(0), Le(1)] = 0.05
    """Probability of a uniformly random action in exploration."""
    margin: Annotated[float, Ge(0)] = 0.8
    """Margin of the imitation loss, in units of return; with `normalize_rewards`, in running standard deviations of it."""
    weight_decay: Annotated[float, Ge(0)] = 0.0
    """Coefficient of the squared norm of the parameters in the loss."""


class QNetwork(nn.Module):
    """The values of all actions, [n], of an image [H, W, C] or of a vector."""

    actions: int
    hidden: tuple[int, ...]
    convolutions: tuple[ConvLayer, ...] = ()
    dueling: bool = False
    precision: Precision = "default"

    @nn.compact
    def __call__(self, x: Array) -> Float[Array, "*n actions"]:
        """The values. Convolutions, if there are any, take images."""
        mlp = partial(MLP, precision=self.precision)
        if self.convolutions:
            x = ConvTorso(self.convolutions)(x)
        if not self.dueling:
            return mlp(self.hidden, self.actions)(x)
        shared, own = self.hidden[:-1], self.hidden[-1:]
        if shared:
            x = nn.relu(mlp(shared[:-1], shared[-1])(x))
        return dueling(mlp(own, 1)(x)[..., 0], mlp(own, self.actions)(x))


def dueling(value: Float[Array, "*n"], advantages: Float[Array, "*n actions"]) -> Float[Array, "*n actions"]:
    """V + A - mean A (arXiv 1511.06581, equation 9)."""
    return value[..., None] + advantages - jnp.mean(advantages, axis=-1, keepdims=True)


def bootstrap_value(target: Float[Array, "actions"], choosing: Float[Array, "actions"] | None = None) -> Float[Array, ""]:
    """The value of a state from the target network's values of its actions: the largest (DQN), or that of the action with
    the largest of the values `choosing` (double DQN)."""
    if choosing is None:
        return jnp.max(target)
    return target[jnp.argmax(jax.lax.stop_gradient(choosing))]


def q_loss(
    values: Float[Array, "B"],
    target: Float[Array, "B"],
    weight: Float[Array, "B"] | None = None,
    huber: float | None = 1.0,
) -> Float[Array, ""]:
    """mean_b weight_b Huber(values_b - target_b): e^2 / 2 for |e| <= huber, else huber (|e| - huber / 2). Without a
    threshold, half the square."""
    error = values - target
    each = error**2 / 2 if huber is None else optax.huber_loss(error, delta=huber)
    return jnp.mean(each if weight is None else weight * each)


def margin_loss(values: Float[Array, "actions"], action: Int[Array, ""], margin: float = 0.8) -> Float[Array, ""]:
    """max_a (values_a + margin 1(a != action)) - values_action: 0 if the action is the best one by at least the margin."""
    others = jnp.arange(values.shape[0]) != action
    return largest(values + margin * others) - values[action]


def make(config: QLearningConfig, observation: Space, actions: int, normalizer: Normalizer | None = None) -> ActorCritic:
    """The agent for `actions` discrete actions and observations of any space: images [H, W, C] are the input of
    convolutions, all others are encoded as vectors (`core.spaces.encode`). Its state is a `QState`. With a `normalizer` the
    network receives normalised vectors; the arguments of the agent's functions are always in the task's units.

    `hyper` may hold `learning_rate` and `discount`, traced. Raises UserError if an image is too small for the convolutions.
    """
    layers = config.convolutions if encoder.is_image(observation) else ()
    if layers:
        encoder.check_size(observation, layers)
    network = QNetwork(actions, config.hidden, layers, config.dueling, config.precision)
    return without_actor(_QLearning(config, network, observation, normalizer), config.polyak, Discrete(actions))


def copy_target(state: QState) -> QState:
    """`state` with a target network that is a copy of the network."""
    return state._replace(critic=optimizer.move_target(state.critic, 1.0))


class _QLearning(NamedTuple):
    """The functions of the agent; each takes observations in the task's units."""

    config: QLearningConfig
    network: QNetwork
    observation: Space
    normalizer: Normalizer | None

    def init(self, key: Key, hyper: Hyper) -> QState:
        config = self.config
        params = self.network.init(key, self.inputs(self.observation.zeros()))
        learning_rate = hyper.get("learning_rate", config.learning_rate)
        return QState(
            critic=optimizer.init(params, learning_rate, with_target=True, chain=self.chain),
            discount=jnp.asarray(hyper.get("discount", config.discount), float),
        )

    @property
    def chain(self) -> optax.GradientTransformation | None:
        """The optimiser; None for plain Adam."""
        config = self.config
        if config.optimizer == "adam" and config.weight_decay == 0:
            return None
        adam = config.optimizer == "adam"
        step = optax.scale_by_adam() if adam else optax.scale_by_stddev(config.rmsprop_decay, config.rmsprop_epsilon)
        return optax.chain(optax.add_decayed_weights(2 * config.weight_decay), step) if config.weight_decay else step

    def inputs(self, observation: Observation) -> Array:
        """The network's input: images as they are, others encoded and normalised."""
        if self.network.convolutions:
            return observation
        encoded = encode(self.observation, observation)
        return encoded if self.normalizer is None else normalize(self.normalizer, encoded)

    def values(self, params: PyTree, observation: Observation) -> Float[Array, "*n actions"]:
        """The values of all actions."""
        return self.network.apply(params, self.inputs(observation))

    def policy(self, state: QState, explore: bool) -> Policy:
        def act(memory: Memory, observation: Observation, key: Key) -> tuple[Action, PyTree, Memory]:
            return self.greedy(state, observation), (), memory

        policy = Policy(init=lambda key: (), act=act)
        return with_epsilon(policy, Discrete(self.network.actions), self.config.epsilon) if explore else policy

    def greedy(self, state: QState, observation: Observation) -> Int[Array, "*n"]:
        """The actions with the largest values."""
        return jnp.argmax(self.values(state.critic.params, observation), axis=-1).astype(jnp.int32)

    def target_value(self, state: QState, observation: Observation, key: Key) -> Float[Array, "N"]:
        target = self.values(state.critic.target, observation)
        if not self.config.double:
            return jax.vmap(bootstrap_value)(target)
        return jax.vmap(bootstrap_value)(target, self.values(state.critic.params, observation))

    def target_values(self, state: QState, observation: Observation, key: Key) -> Float[Array, "1 N"]:
        return self.target_value(state, observation, key)[None]

    def action_value(self, state: QState, observation: Observation, action: Int[Array, "N"], key: Key) -> Float[Array, "N"]:
        return self.chosen(state.critic.params, observation, action)

    def chosen(self, params: PyTree, observation: Observation, action: Int[Array, "*n"]) -> Float[Array, "*n"]:
        """The value of one action of each row."""
        values = self.values(params, observation)
        return jnp.take_along_axis(values, action[..., None], axis=-1)[..., 0]

    def update_critic(
        self,
        state: QState,
        batch: Transition | NStep,
        key: Key,
        *,
        target: Float[Array, "B"] | None = None,
        weight: Float[Array, "B"] | None = None,
        imitation: Float[Array, "B"] | None = None,
    ) -> tuple[QState, Metrics, Float[Array, "B"]]:
        """As `ActorCritic.update_critic`; `imitation` are weights of the imitation loss, 0 for rows whose actions are no
        demonstrations."""

        def penalty(params: PyTree) -> Float[Array, ""]:
            values = self.values(params, batch.observation)
            losses = jax.vmap(partial(margin_loss, margin=self.config.margin))(values, batch.action)
            return jnp.mean(jnp.asarray(imitation) * losses)

        if target is None:
            target = target_of(self, state, batch, key)
        trained, found, error = regress(
            state.critic,
            lambda params: self.chosen(params, batch.observation, batch.action)[None],
            target,
            weight,
            loss=lambda values, target, weight: q_loss(values[0], target, weight, self.config.huber),
            chain=self.chain,
            penalty=None if imitation is None else penalty,
        )
        return state._replace(critic=trained), found, error
