"""On-policy learning: a stochastic policy and a value function, improved on the trajectories of the policy itself.

    advantage    A_t, by generalised advantage estimation (`returns.advantages`), and the value target y_t = A_t + V(s_t)
    gradient     -mean w log pi(a|s) A                                  (REINFORCE, A2C)
    clipped      -mean w min(rho A, clip(rho, 1 - c, 1 + c) A)          (PPO, Schulman et al., arXiv 1707.06347, equation 7)
    value        1/2 mean w (V(s) - y)^2

with rho = pi(a|s) / pi_old(a|s), and w = 0 for rows of an imagined trajectory after its termination, else 1. Means are over
the rows with weight. No gradient flows through A and y.

The policy for vectors is a Gaussian, u ~ N(mean(s), exp(2 log_std)), with a free vector log_std that does not depend on the
state; the task receives clip(u, -1, 1), and probabilities are those of u. For discrete actions it is categorical. The value
function has its own network.

Observations may be normalised by their running mean and standard deviation. These statistics change after an update only,
so that the first minibatch of an update sees the policy that acted: rho is exactly 1 there. Rewards may be divided by the
running standard deviation of the discounted return, whose statistics are those up to the rewards themselves.

A trajectory is a `Transition` [T, N] of N environments or imagined rows, whose extras are the actions u before clipping.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from annotated_types import Ge, Gt, Le
from flax import linen as nn
from jaxtyping import Array, Float, Shaped

from jaxmbrl import returns
from jaxmbrl.agents.normalization import LIMIT, with_returns
from jaxmbrl.core import metrics, tree
from jaxmbrl.core.config import Traced
from jaxmbrl.core.extremes import lesser
from jaxmbrl.core.spaces import Discrete, Space, encoded_size
from jaxmbrl.core.types import (
    Action,
    Average,
    Hyper,
    Key,
    Memory,
    Metrics,
    Observation,
    Policy,
    PyTree,
    Transition,
    Views,
    flatten,
)
from jaxmbrl.data.shuffling import draw_shuffles, shuffled
from jaxmbrl.distributions import Categorical, Gaussian
from jaxmbrl.models.normalizer import RunningNormalizer, merge, normalize, running
from jaxmbrl.nn import optimizer
from jaxmbrl.nn.networks import MLP, orthogonal
from jaxmbrl.nn.optimizer import Trainable

LEAST_LOG_STD = -5.0
"""Lower bound of the policy's log standard deviation. Without one it underflows once the policy is nearly deterministic."""

Loss = Callable[[Any, Any, "Batch"], tuple[Float[Array, ""], Metrics]]
"""(actor's parameters, critic's parameters, rows) -> (loss, metrics)."""
S = TypeVar("S")


@dataclass(frozen=True)
class OnPolicyConfig:
    """Settings of all on-policy agents."""

    hidden: tuple[Annotated[int, Ge(1)], ...] = (64, 64)
    """Units of each hidden layer (tanh) of the policy, and of the value function."""
    first_log_std: Annotated[float, Ge(LEAST_LOG_STD)] = 0.0
    """Log standard deviation of the actions at the start, for continuous actions."""
    learning_rate: Annotated[float, Gt(0), Traced] = 3e-4
    """Learning rate."""
    discount: Annotated[float, Ge(0), Le(1), Traced] = 0.99
    """Discount factor per step."""
    gae_lambda: Annotated[float, Ge(0), Le(1)] = 0.95
    """Lambda of the advantages: 0 for TD errors, 1 for returns minus values."""
    entropy_weight: Annotated[float, Ge(0)] = 0.0
    """Weight of the policy's entropy in the objective."""
    normalize_observations: bool = True
    """Whether observations are normalised by their running mean and standard deviation, and clipped to [-10, 10]."""
    normalize_rewards: bool = True
    """Whether rewards are divided by the running standard deviation of the discounted return, and clipped to [-10, 10]."""


@dataclass(frozen=True)
class DescentConfig(OnPolicyConfig):
    """Settings of agents that descend the losses of policy and value function together."""

    value_weight: Annotated[float, Ge(0)] = 0.5
    """Weight of the value function's loss, half the mean squared error."""
    max_gradient_norm: Annotated[float, Gt(0)] = 0.5
    """Norm to which the gradient of policy and value function together is clipped."""


@dataclass(frozen=True)
class PPOConfig(DescentConfig):
    """Settings of proximal policy optimisation."""

    epochs: Annotated[int, Ge(1)] = 10
    """K: passes over the rows of an update."""
    minibatches: Annotated[int, Ge(1)] = 32
    """M: minibatches, and so gradient steps, of each pass."""
    clip: Annotated[float, Gt(0)] = 0.2
    """c: where the probability ratio is clipped."""
    normalize_advantages: bool = True
    """Whether advantages are standardised in each minibatch."""
    target_divergence: Annotated[float, Gt(0)] | None = None
    """An update ends before the first minibatch in which the estimated KL divergence from the old policy, the mean of
    (rho - 1) - log rho, is above this. None: never."""


class ActorParameters(NamedTuple):
    """Parameters of the policy."""

    network: PyTree
    log_std: Float[Array, "A"] | tuple[()]
    """`()` for discrete actions."""


class OnPolicyState(NamedTuple):
    """Parameters, optimiser states and running statistics of an agent."""

    actor: Trainable
    """Of `ActorParameters`."""
    critic: Trainable
    discount: Float[Array, ""]
    observations: RunningNormalizer
    returns: RunningNormalizer
    """Of the discounted returns so far, one column."""
    running_return: Float[Array, "num_envs"]
    """Discounted return so far of the episode in progress in each environment."""

    def interrupted(self, num_envs: int) -> OnPolicyState:
        """The same where the rows that come next do not continue the newest ones."""
        return self._replace(running_return=jnp.zeros_like(self.running_return))


class Batch(NamedTuple):
    """Rows of trajectories with what the losses need."""

    inputs: Float[Array, "*n O"]
    """Observations, normalised by the statistics that the policy acted with."""
    raw: Shaped[Array, "..."]
    """Actions before clipping."""
    log_probability: Float[Array, "*n"]
    """Of the actions under the policy that acted."""
    advantage: Float[Array, "*n"]
    target: Float[Array, "*n"]
    """Value targets."""
    weight: Float[Array, "*n"]


def weighted_mean(values: Float[Array, "*n"], weight: Float[Array, "*n"]) -> Float[Array, ""]:
    """sum w x / sum w; 0 without any weight."""
    return jnp.sum(weight * values) / jnp.maximum(jnp.sum(weight), jnp.finfo(values.dtype).tiny)


def deviation(values: Float[Array, "B"], weight: Float[Array, "B"]) -> Float[Array, ""]:
    """The weighted standard deviation of values plus 1e-8."""
    return jnp.sqrt(weighted_mean((values - weighted_mean(values, weight)) ** 2, weight)) + 1e-8


def standardized(values: Float[Array, "B"], weight: Float[Array, "B"]) -> Float[Array, "B"]:
    """Values minus their weighted mean, divided by their `deviation`."""
    return (values - weighted_mean(values, weight)) / deviation(values, weight)


def policy_gradient_loss(
    log_probability: Float[Array, "B"], advantage: Float[Array, "B"], weight: Float[Array, "B"]
) -> Float[Array, ""]:
    """-mean w log pi(a|s) A: its gradient is the policy gradient with baseline."""
    return -weighted_mean(log_probability * jax.lax.stop_gradient(advantage), weight)


def clipped_loss(
    ratio: Float[Array, "B"], advantage: Float[Array, "B"], weight: Float[Array, "B"], clip: float
) -> Float[Array, ""]:
    """-mean w min(rho A, clip(rho, 1 - c, 1 + c) A) (arXiv 1707.06347, equation 7)."""
    return -weighted_mean(lesser(ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage), weight)


def value_loss(value: Float[Array, "B"], target: Float[Array, "B"], weight: Float[Array, "B"]) -> Float[Array, ""]:
    """1/2 mean w (V - y)^2."""
    return 0.5 * weighted_mean((value - target) ** 2, weight)


class OnPolicy(NamedTuple):
    """The functions of an on-policy agent."""

    config: OnPolicyConfig
    observation_size: int
    action: Space
    actor: MLP
    critic: MLP
    actor_chain: optax.GradientTransformation
    critic_chain: optax.GradientTransformation

    def init(self, key: Key, hyper: Hyper, num_envs: int = 1) -> OnPolicyState:
        """The initial state. `hyper` may hold `learning_rate` and `discount`, traced."""
        actor_key, critic_key = jax.random.split(key)
        config, zeros = self.config, jnp.zeros(self.observation_size)
        rate = hyper.get("learning_rate", config.learning_rate)
        actor = ActorParameters(self.actor.init(actor_key, zeros), self.first_log_std())
        return OnPolicyState(
            actor=optimizer.init(actor, rate, chain=self.actor_chain),
            critic=optimizer.init(self.critic.init(critic_key, zeros), rate, chain=self.critic_chain),
            discount=jnp.asarray(hyper.get("discount", config.discount), float),
            observations=running(self.observation_size),
            returns=running(1),
            running_return=jnp.zeros(num_envs),
        )

    def first_log_std(self) -> Any:
        """The log standard deviation at the start; `()` for discrete actions."""
        discrete = isinstance(self.action, Discrete)
        return () if discrete else jnp.full(encoded_size(self.action), self.config.first_log_std, float)

    def with_first_log_std(self, state: OnPolicyState) -> OnPolicyState:
        """The state with a policy of the first log standard deviation."""
        actor = state.actor
        reset = tree.where(actor.active, self.first_log_std(), actor.params.log_std)
        return state._replace(actor=actor._replace(params=actor.params._replace(log_std=reset)))

    def inputs(self, state: OnPolicyState, observation: Float[Array, "*n O"]) -> Float[Array, "*n O"]:
        """The networks' inputs."""
        return normalize(state.observations.normalizer, observation) if self.config.normalize_observations else observation

    def distribution(self, params: ActorParameters, inputs: Float[Array, "*n O"]) -> Gaussian | Categorical:
        """The policy's distribution of actions before clipping."""
        output = self.actor.apply(params.network, inputs)
        return Categorical(output) if isinstance(params.log_std, tuple) else Gaussian(output, params.log_std)

    def value(self, params: PyTree, inputs: Float[Array, "*n O"]) -> Float[Array, "*n"]:
        """The value function."""
        return self.critic.apply(params, inputs)[..., 0]

    def clipped(self, raw: Shaped[Array, "..."]) -> Action:
        """The action that the task receives."""
        return raw if isinstance(self.action, Discrete) else jnp.clip(raw, -1.0, 1.0)

    def policy(self, state: OnPolicyState, explore: bool) -> Policy:
        """The policy, whose extras are the action before clipping; without exploration its mode."""

        def act(memory: Memory, observation: Observation, key: Key) -> tuple[Action, PyTree, Memory]:
            distribution = self.distribution(state.actor.params, self.inputs(state, observation))
            raw = distribution.sample(key) if explore else distribution.mode()
            return self.clipped(raw), raw, memory

        return Policy(init=lambda key: (), act=act)

    def views(self, state: OnPolicyState) -> Views:
        """The logits of a policy for discrete actions."""
        if not isinstance(self.action, Discrete):
            return Views()

        def logits(observation: Observation) -> Float[Array, "n"]:
            return self.actor.apply(state.actor.params.network, self.inputs(state, observation))

        return Views(logits=logits)

    def estimate(self, state: OnPolicyState, trajectory: Transition, weight: Float[Array, "T N"] | None = None) -> Batch:
        """The rows [T * N] of a `trajectory` [T, N] with advantages and value targets. Rows of weight 0, after the
        termination of an imagined trajectory, are ignored, even if they are not finite."""
        weight = jnp.ones(trajectory.reward.shape) if weight is None else weight
        alive = weight > 0
        trajectory = jax.tree.map(
            lambda x: jnp.where(alive.reshape(*alive.shape, *[1] * (x.ndim - 2)), x, jnp.zeros_like(x)), trajectory
        )
        inputs, rewards = self.inputs(state, trajectory.observation), trajectory.reward
        if self.config.normalize_rewards:
            rewards = jnp.clip(rewards / state.returns.normalizer.std[0], -LIMIT, LIMIT)
        values = self.value(state.critic.params, inputs)
        next_values = self.value(state.critic.params, self.inputs(state, trajectory.next_observation))
        along = jax.vmap(returns.advantages, in_axes=(1, 1, 1, 1, 1, None, None), out_axes=1)
        ends = (trajectory.terminated, trajectory.truncated)
        advantage = along(rewards, *ends, values, next_values, state.discount, self.config.gae_lambda)
        distribution = self.distribution(state.actor.params, inputs)
        log_probability = distribution.log_probability(trajectory.extras)
        rows = Batch(inputs, trajectory.extras, log_probability, advantage, advantage + values, weight)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)

    def measure_returns(self, state: OnPolicyState, trajectory: Transition) -> OnPolicyState:
        """The state with the discounted returns of a real trajectory [T, num_envs] in its statistics. Call it before the
        update: the first rewards would otherwise not be scaled at all, and the value function learns of their size."""
        return with_returns(state, trajectory) if self.config.normalize_rewards else state

    def measure_observations(self, state: OnPolicyState, trajectory: Transition) -> OnPolicyState:
        """The state with the observations of a real trajectory [T, num_envs] in its statistics. Call it after the update,
        whose rows must be normalised as they were for the policy that acted."""
        if not self.config.normalize_observations:
            return state
        return state._replace(observations=merge(state.observations, flatten(trajectory).observation, LIMIT))

    @staticmethod
    def bounded(params: ActorParameters) -> ActorParameters:
        """The parameters with the lower bound of the log standard deviation."""
        return params._replace(log_std=jax.tree.map(lambda x: jnp.maximum(x, LEAST_LOG_STD), params.log_std))

    def descend(
        self, state: OnPolicyState, rows: Batch, loss: Loss, max_gradient_norm: float, scale: Any = 1.0
    ) -> tuple[OnPolicyState, Metrics]:
        """One step of the optimisers along the gradient of `loss` with respect to actor and critic, clipped by its global
        norm, with `scale` times the learning rate."""
        params = (state.actor.params, state.critic.params)
        gradient, found = jax.grad(lambda both: loss(both[0], both[1], rows), has_aux=True)(params)
        norm = optax.tree.norm(gradient)
        # A gradient that is not finite must stay so: the optimisers refuse it.
        shrunk = jnp.minimum(1.0, max_gradient_norm / jnp.maximum(norm, jnp.finfo(norm.dtype).tiny))
        of_actor, of_critic = jax.tree.map(lambda leaf: shrunk * leaf, gradient)
        actor, _ = optimizer.step(state.actor, of_actor, scale, chain=self.actor_chain)
        critic, _ = optimizer.step(state.critic, of_critic, scale, chain=self.critic_chain)
        actor = actor._replace(params=self.bounded(actor.params))
        return state._replace(actor=actor, critic=critic), found | {"agent/gradient_norm": Average.of(norm)}

    def fit_critic(
        self, critic: Trainable, rows: Batch, key: Key, epochs: int, batch_size: int
    ) -> tuple[Trainable, Metrics]:
        """`epochs` passes of minibatches of `batch_size` rows over the value function's loss."""

        def step(critic: Trainable, rows: Batch) -> tuple[Trainable, Metrics]:
            def loss(params: PyTree) -> Float[Array, ""]:
                return value_loss(self.value(params, rows.inputs), rows.target, rows.weight)

            value, gradient = jax.value_and_grad(loss)(critic.params)
            critic, norm = optimizer.step(critic, gradient, chain=self.critic_chain)
            return critic, {"agent/critic_loss": Average.of(value), "agent/critic_gradient_norm": Average.of(norm)}

        return in_minibatches(step, critic, rows, key, epochs, batch_size)


def make(
    config: OnPolicyConfig,
    observation_size: int,
    action: Space,
    actor_chain: optax.GradientTransformation,
    critic_chain: optax.GradientTransformation | None = None,
) -> OnPolicy:
    """The agent for observations [O] and actions of a `Box` of vectors or a `Discrete` space. The chains are the
    optimisers of actor and critic; one serves both. Weights are orthogonal with the gain sqrt(2); 0.01 in the policy's last
    layer, so that it starts near mean 0, and 1 in the value function's."""

    def network(out: int, gain: float) -> MLP:
        return MLP(config.hidden, out, nn.tanh, orthogonal(2**0.5), last_init=orthogonal(gain))

    return OnPolicy(
        config,
        observation_size,
        action,
        actor=network(encoded_size(action), 0.01),
        critic=network(1, 1.0),
        actor_chain=actor_chain,
        critic_chain=critic_chain or actor_chain,
    )


def adam() -> optax.GradientTransformation:
    """Adam with the epsilon 1e-5 of the published on-policy methods."""
    return optax.scale_by_adam(eps=1e-5)


def in_minibatches(
    step: Callable[[S, Any], tuple[S, Metrics]], state: S, rows: Any, key: Key, epochs: int, batch_size: int
) -> tuple[S, Metrics]:
    """`step(state, minibatch)` on each minibatch of `epochs` shuffled passes over `rows` [B, ...]. If `batch_size` does not
    divide B, the remaining rows of a pass are left out."""
    size = jax.tree.leaves(rows)[0].shape[0]
    batch_size = min(batch_size, size)
    number = size // batch_size

    def epoch(state: S, key: Key) -> tuple[S, Metrics]:
        if number == 1 and batch_size == size:
            return step(state, rows)
        (table,) = draw_shuffles(key, 1, size, jnp.asarray(size, jnp.int32))
        order = shuffled(table, jnp.arange(number * batch_size, dtype=jnp.int32), jnp.asarray(size, jnp.int32))
        order = order.reshape(number, batch_size)
        state, found = jax.lax.scan(lambda state, index: step(state, jax.tree.map(lambda x: x[index], rows)), state, order)
        return state, metrics.total(found)

    state, found = jax.lax.scan(epoch, state, jax.random.split(key, epochs))
    return state, metrics.total(found)


def descent_loss(
    agent: OnPolicy, config: DescentConfig, policy_loss: Callable[[Any, Batch], tuple[Float[Array, ""], Metrics]]
) -> Loss:
    """The loss of actor and critic together: `policy_loss(distribution, rows)` - entropy_weight mean w H + value_weight
    times the value function's loss."""

    def loss(actor: ActorParameters, critic: PyTree, rows: Batch) -> tuple[Float[Array, ""], Metrics]:
        distribution = agent.distribution(actor, rows.inputs)
        of_policy, found = policy_loss(distribution, rows)
        entropy = weighted_mean(distribution.entropy(), rows.weight)
        of_value = value_loss(agent.value(critic, rows.inputs), rows.target, rows.weight)
        found |= {
            "agent/actor_loss": Average.of(of_policy),
            "agent/critic_loss": Average.of(of_value),
            "agent/entropy": Average.of(entropy),
        }
        return of_policy - config.entropy_weight * entropy + config.value_weight * of_value, found

    return loss


def update(
    agent: OnPolicy,
    config: PPOConfig,
    state: OnPolicyState,
    trajectory: Transition,
    key: Key,
    weight: Float[Array, "T N"] | None = None,
    scale: Any = 1.0,
) -> tuple[OnPolicyState, Metrics]:
    """PPO's update on a real or an imagined `trajectory` [T, N]: K epochs of M minibatches of the clipped loss, with
    `scale` times the learning rate. Raises ValueError if M does not divide T x N."""
    size, remainder = divmod(trajectory.reward.size, config.minibatches)
    if remainder:
        raise ValueError(f"minibatches ({config.minibatches}) must divide the rows of an update ({trajectory.reward.size})")
    rows = agent.estimate(state, trajectory, weight)

    def policy_loss(distribution: Any, rows: Batch) -> tuple[Float[Array, ""], Metrics]:
        advantage = standardized(rows.advantage, rows.weight) if config.normalize_advantages else rows.advantage
        log_ratio = distribution.log_probability(rows.raw) - rows.log_probability
        ratio = jnp.exp(log_ratio)
        beyond = jnp.abs(jax.lax.stop_gradient(ratio) - 1) > config.clip
        found = {
            "agent/divergence": Average.of(weighted_mean(jax.lax.stop_gradient(ratio - 1 - log_ratio), rows.weight)),
            "agent/clip_fraction": Average.of(weighted_mean(beyond.astype(ratio.dtype), rows.weight)),
        }
        return clipped_loss(ratio, advantage, rows.weight, config.clip), found

    loss = descent_loss(agent, config, policy_loss)

    def step(carry: tuple[OnPolicyState, Any], rows: Batch) -> tuple[tuple[OnPolicyState, Any], Metrics]:
        state, stopped = carry
        stepped, found = agent.descend(state, rows, loss, config.max_gradient_norm, scale)
        if config.target_divergence is None:
            return (stepped, stopped), found
        stopped |= found["agent/divergence"].total > config.target_divergence
        return (tree.where(stopped, state, stepped), stopped), found | {"agent/stopped": Average.of(stopped)}

    (state, _), found = in_minibatches(step, (state, jnp.zeros((), bool)), rows, key, config.epochs, size)
    return state, found | explained(rows) | spread(state)


def explained(rows: Batch) -> Metrics:
    """1 - Var(A) / Var(y): the share of the value targets' variance that the value function explained before the update."""
    targets, errors = (
        weighted_mean((x - weighted_mean(x, rows.weight)) ** 2, rows.weight) for x in (rows.target, rows.advantage)
    )
    return {"agent/explained_variance": Average.of(1 - errors / jnp.where(targets > 0, targets, 1.0), targets > 0)}


def spread(state: OnPolicyState) -> Metrics:
    """The mean standard deviation of a Gaussian policy."""
    log_std = state.actor.params.log_std
    return {} if isinstance(log_std, tuple) else {"agent/std": Average.of(jnp.mean(jnp.exp(log_std)))}
