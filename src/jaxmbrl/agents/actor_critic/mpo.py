"""MPO: maximum a posteriori policy optimisation (Abdolmaleki et al., arXiv 1806.06920, with the decoupled constraints of
arXiv 1812.02256).

Samples        a_1 .. a_M ~ pi'(.|s), the target policy, with mean mu' and standard deviation sigma'
Critic target  y = r + discount (1 - terminated) mean_i Q'(s', a_i)
E-step         w_i = softmax over i of Q'(s, a_i) / eta
Temperature    minimise eta epsilon + eta mean_s log (1/M) sum_i exp(Q'(s, a_i) / eta): KL(w | uniform) goes to epsilon
M-step         minimise -mean_s sum_i w_i [log N(a_i; mu, sigma') + log N(a_i; mu', sigma)]
                        + alpha_mu KL(pi' | N(mu, sigma')) + alpha_sigma KL(pi' | N(mu', sigma))
Multipliers    minimise alpha (epsilon - KL), for each KL and each dimension of the action

The policy is fitted to weighted samples, as in supervised learning: no gradient of a critic is used. Mean and standard
deviation have their own likelihood and their own KL bound, so that the standard deviation cannot collapse as fast as the
mean moves. Temperatures and multipliers, the duals, are softplus of their parameters.

The policy is not squashed. Critics and the environment receive actions clipped to [-1, 1]; a second softmax over
-|a_i - clip(a_i)| / eta_penalty, with its own temperature and bound, is added to the weights, which then sum to 2. The
policy that acts is the target policy. Target networks are copies made at every `copy_every`-th update, or move by Polyak
averaging.

Differs from google-deepmind/acme: one update is of the critics, then of the actor and duals, and the actor is fitted at the
batch's states instead of their successors. The critics may be several, of which the minimum counts; there is no
distributional critic. Weights of the networks are initialised as in all agents here. The bound of a dual's parameter from
below is applied to all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from annotated_types import Ge, Gt, Le
from flax import linen as nn
from jaxtyping import Array, Float

from jaxmbrl.agents.actor_critic.critics import next_discount, regress, td_target
from jaxmbrl.agents.actor_critic.sac import each_critic
from jaxmbrl.agents.actor_critic.updates import actor_critic
from jaxmbrl.core.config import Traced, UserError
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
from jaxmbrl.distributions import gaussian_log_density
from jaxmbrl.models.normalizer import Normalizer, normalize
from jaxmbrl.nn import optimizer
from jaxmbrl.nn.networks import MLP, Precision
from jaxmbrl.nn.optimizer import Trainable

LEAST_STD = 1e-6
LEAST_DUAL = 1e-8
"""Added to the softplus of a dual's parameter."""
LEAST_PARAMETER = -18.0
"""Lower bound of a dual's parameter: its softplus, 1.5e-8, is about the precision of float32."""


@dataclass(frozen=True)
class MPOConfig:
    """Settings of the agent."""

    hidden: tuple[Annotated[int, Ge(1)], ...] = (256, 256, 256)
    """Units of each hidden layer of the actor."""
    critic_hidden: tuple[Annotated[int, Ge(1)], ...] | None = None
    """Units of each hidden layer of the critics; None for those of the actor."""
    layer_norm: bool = True
    """Whether the first hidden layer of each network has layer norm and tanh. All others have ELU."""
    precision: Precision = "default"
    """Precision of the products between hidden layers: JAX's default, or bfloat16 for devices with matrix units for it."""
    critics: Annotated[int, Ge(1)] = 1
    """Number of critics. Their minimum is the value of an action."""
    samples: Annotated[int, Ge(2)] = 20
    """Sampled actions M of each state, in the weights and in the critic's target."""
    learning_rate: Annotated[float, Gt(0), Traced] = 1e-4
    """Adam learning rate of actor and critics."""
    dual_learning_rate: Annotated[float, Gt(0)] = 1e-2
    """Adam learning rate of temperatures and multipliers."""
    gradient_norm: Annotated[float, Gt(0)] | None = 40.0
    """Bound to which the global norm of each gradient is clipped; None for no clipping."""
    discount: Annotated[float, Ge(0), Le(1), Traced] = 0.99
    """Discount factor per step."""
    copy_every: Annotated[int, Ge(0)] = 100
    """Updates between two copies of a network to its target; `polyak` has no effect then. 0 for Polyak averaging."""
    polyak: Annotated[float, Gt(0), Le(1)] = 0.005
    """Polyak factor: the share by which the targets of actor and critics move at each update, if `copy_every` is 0."""
    initial_std: Annotated[float, Gt(0)] = 0.7
    """Standard deviation of the policy at the start, in units of the action."""
    epsilon: Annotated[float, Gt(0)] = 0.1
    """Bound of KL(weights | uniform), in nats."""
    epsilon_mean: Annotated[float, Gt(0)] = 0.0025
    """Bound of the KL divergence by the change of the mean, in nats, for each dimension of the action."""
    epsilon_std: Annotated[float, Gt(0)] = 1e-6
    """Bound of the KL divergence by the change of the standard deviation, in nats, for each dimension of the action."""
    penalty: bool = True
    """Whether actions outside of [-1, 1] are penalised."""
    epsilon_penalty: Annotated[float, Gt(0)] = 1e-3
    """Bound of KL(weights of the penalty | uniform), in nats."""
    initial_temperature: Annotated[float, Gt(0)] = 10.0
    """Both temperatures eta at the start, that of the values in units of return."""
    initial_alpha_mean: Annotated[float, Gt(0)] = 10.0
    """Multiplier alpha_mu at the start."""
    initial_alpha_std: Annotated[float, Gt(0)] = 1000.0
    """Multiplier alpha_sigma at the start."""


class Duals(NamedTuple):
    """Temperatures and multipliers, or their parameters."""

    temperature: Float[Array, ""]
    """eta."""
    penalty_temperature: Float[Array, ""]
    """eta of the penalty."""
    alpha_mean: Float[Array, "A"]
    alpha_std: Float[Array, "A"]


class MPOState(NamedTuple):
    """Parameters and optimiser states of the agent."""

    actor: Trainable
    """Its `target` is the target policy."""
    critic: Trainable
    """Leaves have the leading axis [critics]. Its `target` are the target critics."""
    duals: Trainable
    """Parameters are `Duals`, before the softplus."""
    discount: Float[Array, ""]


Gaussian = tuple[Float[Array, "*n A"], Float[Array, "*n A"]]
"""(mean, standard deviation)."""


def sample_weights(values: Float[Array, "M *n"], temperature: Any) -> Float[Array, "M *n"]:
    """softmax over the M samples of values / temperature (arXiv 1806.06920, equation 4).

    >>> from jaxmbrl.agents.actor_critic import mpo
    >>> [round(float(weight), 6) for weight in mpo.sample_weights(jnp.array([1.0, 2.0, 4.0]), 2.0)]
    [0.140244, 0.231224, 0.628532]
    """
    return jax.nn.softmax(values / temperature, axis=0)


def temperature_loss(values: Float[Array, "M *n"], temperature: Any, epsilon: float) -> Float[Array, ""]:
    """The dual of the E-step, eta (epsilon + mean log (1/M) sum_i exp(values_i / eta)) (arXiv 1806.06920, equation 9). Its
    derivative is epsilon - KL(weights | uniform), averaged over states."""
    log_mean = jax.scipy.special.logsumexp(values / temperature, axis=0) - jnp.log(values.shape[0])
    return temperature * (epsilon + jnp.mean(log_mean))


def weights_kl(weights: Float[Array, "M *n"]) -> Float[Array, ""]:
    """KL(weights | uniform) over the M samples, in nats, averaged over states."""
    number = weights.shape[0]
    return jnp.mean(jnp.sum(jax.scipy.special.xlogy(weights, number * weights), axis=0))


def bounds_value(action: Float[Array, "*n A"]) -> Float[Array, "*n"]:
    """The value of an action in the penalty: minus its distance from [-1, 1]."""
    return -jnp.linalg.norm(action - jnp.clip(action, -1.0, 1.0), axis=-1)


def likelihood_loss(
    weights: Float[Array, "M B"], actions: Float[Array, "M B A"], policy: Gaussian, old: Gaussian
) -> Float[Array, ""]:
    """-mean_s sum_i w_i [log N(a_i; mu, sigma') + log N(a_i; mu', sigma)] (arXiv 1812.02256, section 4.2.1)."""
    (mean, std), (old_mean, old_std) = policy, old
    log_density = jax.vmap(gaussian_log_density, in_axes=(0, None, None))
    of_mean, of_std = log_density(actions, mean, jnp.log(old_std)), log_density(actions, old_mean, jnp.log(std))
    return -jnp.mean(jnp.sum(weights * (of_mean + of_std), axis=0))


def decoupled_kl(policy: Gaussian, old: Gaussian) -> tuple[Float[Array, "*n A"], Float[Array, "*n A"]]:
    """KL(pi' | N(mu, sigma')) and KL(pi' | N(mu', sigma)) of each dimension, in nats.

    >>> from jaxmbrl.agents.actor_critic import mpo
    >>> found = mpo.decoupled_kl((jnp.array([0.3]), jnp.array([2.0])), (jnp.array([0.0]), jnp.array([1.0])))
    >>> [round(float(kl[0]), 6) for kl in found]
    [0.045, 0.318147]
    """
    (mean, std), (old_mean, old_std) = policy, old
    of_mean = ((mean - old_mean) / old_std) ** 2 / 2
    of_std = jnp.log(std / old_std) + (old_std / std) ** 2 / 2 - 0.5
    return of_mean, of_std


def multiplier_loss(alpha: Float[Array, "A"], kl: Float[Array, "A"], epsilon: float) -> Float[Array, ""]:
    """sum over dimensions of alpha (epsilon - KL), with the KL divergence as a constant: alpha rises while it is too
    large."""
    return jnp.sum(alpha * (epsilon - jax.lax.stop_gradient(kl)))


def make(config: MPOConfig, observation_size: int, action_size: int, normalizer: Normalizer | None = None) -> ActorCritic:
    """The agent for flat observations [O] and actions [A] in [-1, 1]; its state is an `MPOState`. With a `normalizer` the
    networks receive normalised observations; the arguments of the agent's functions are always in the task's units.

    `hyper` may hold `learning_rate` and `discount`, traced. Its actor is not trained by a gradient of values: methods that
    replace the actor's loss raise UserError.
    """
    network = partial(MLP, activation=nn.elu, first_norm=config.layer_norm, precision=config.precision)
    small = nn.initializers.variance_scaling(1e-4, "fan_in", "truncated_normal")
    actor = network(config.hidden, 2 * action_size, last_init=small)
    critic = network(config.hidden if config.critic_hidden is None else config.critic_hidden, 1)
    return actor_critic(_MPO(config, actor, critic, observation_size, action_size, normalizer))


def _softplus_inverse(value: float) -> Float[Array, ""]:
    return jnp.asarray(value + jnp.log(-jnp.expm1(-value)), float)


class _MPO(NamedTuple):
    """The functions of the agent; each takes observations in the task's units."""

    config: MPOConfig
    actor: MLP
    critic: MLP
    observation_size: int
    action_size: int
    normalizer: Normalizer | None

    @property
    def chain(self) -> optax.GradientTransformation | None:
        """The optimiser; None for Adam without clipping."""
        if self.config.gradient_norm is None:
            return None
        return optax.chain(optax.clip_by_global_norm(self.config.gradient_norm), optax.scale_by_adam())

    def init(self, key: Key, hyper: Hyper) -> MPOState:
        config = self.config
        actor_key, critic_key = jax.random.split(key)
        observation, pair = jnp.zeros(self.observation_size), jnp.zeros(self.observation_size + self.action_size)
        critic_params = jax.vmap(lambda k: self.critic.init(k, pair))(jax.random.split(critic_key, config.critics))
        learning_rate = hyper.get("learning_rate", config.learning_rate)
        temperature = _softplus_inverse(config.initial_temperature)
        duals = Duals(
            temperature=temperature,
            penalty_temperature=temperature,
            alpha_mean=jnp.full(self.action_size, _softplus_inverse(config.initial_alpha_mean)),
            alpha_std=jnp.full(self.action_size, _softplus_inverse(config.initial_alpha_std)),
        )
        init = partial(optimizer.init, chain=self.chain)
        return MPOState(
            actor=init(self.actor.init(actor_key, observation), learning_rate, with_target=True),
            critic=init(critic_params, learning_rate, with_target=True),
            duals=init(duals, config.dual_learning_rate),
            discount=jnp.asarray(hyper.get("discount", config.discount), float),
        )

    def normalized(self, observation: Observation) -> Observation:
        """The observation in the networks' input, normalised if there is a normaliser."""
        return observation if self.normalizer is None else normalize(self.normalizer, observation)

    def gaussian(self, params: PyTree, observation: Observation) -> Gaussian:
        """The policy's distribution."""
        mean, raw = jnp.split(self.actor.apply(params, self.normalized(observation)), 2, axis=-1)
        std = jax.nn.softplus(raw) * (self.config.initial_std / jnp.log(2.0)) + LEAST_STD
        return mean, std

    def sample(self, state: MPOState, observation: Observation, key: Key) -> tuple[Float[Array, "M *n A"], Gaussian]:
        """(M actions of the target policy, not clipped; its distribution)."""
        mean, std = old = self.gaussian(state.actor.target, observation)
        noise = jax.random.normal(key, (self.config.samples, *mean.shape), mean.dtype)
        return mean + std * noise, old

    def every_q(self, params: PyTree, observation: Observation, action: Float[Array, "*n A"]) -> Float[Array, "L *n"]:
        """The value by each critic of the action clipped to [-1, 1]."""
        return each_critic(self.critic)(params, self.normalized(observation), jnp.clip(action, -1.0, 1.0))

    def values_of_samples(
        self, state: MPOState, observation: Observation, actions: Float[Array, "M *n A"]
    ) -> Float[Array, "L M *n"]:
        """The value of sampled actions by each target critic."""
        repeated = jnp.broadcast_to(observation, (*actions.shape[:-1], observation.shape[-1]))
        return self.every_q(state.critic.target, repeated, actions)

    def policy(self, state: MPOState, explore: bool) -> Policy:
        def act(memory: Memory, observation: Observation, key: Key) -> tuple[Action, PyTree, Memory]:
            mean, std = self.gaussian(state.actor.target, observation)
            action = mean + std * jax.random.normal(key, mean.shape, mean.dtype) if explore else mean
            return jnp.clip(action, -1.0, 1.0), (), memory

        return Policy(init=lambda key: (), act=act)

    def policy_with_entropy(self, state: MPOState) -> Policy:
        target = self.policy(state, True)

        def act(memory: Memory, observation: Observation, key: Key) -> tuple[Action, PyTree, Memory]:
            action, _, memory = target.act(memory, observation, key)
            return action, jnp.zeros(action.shape[:-1], action.dtype), memory

        return Policy(init=lambda key: (), act=act)

    def target_value(self, state: MPOState, observation: Observation, key: Key) -> Float[Array, "N"]:
        actions, _ = self.sample(state, observation, key)
        return self.values_of_samples(state, observation, actions).min(axis=0).mean(axis=0)

    def target_values(self, state: MPOState, observation: Observation, key: Key) -> Float[Array, "L N"]:
        actions, _ = self.sample(state, observation, key)
        return self.values_of_samples(state, observation, actions).mean(axis=1)

    def action_value(self, state: MPOState, observation: Observation, action: Action, key: Key) -> Float[Array, "N"]:
        return self.every_q(state.critic.target, observation, action).min(axis=0)

    def moved(self, trained: Trainable) -> Trainable:
        """`trained` with its target after an update."""
        if self.config.copy_every == 0:
            return optimizer.move_target(trained, self.config.polyak)
        return optimizer.copy_target_every(trained, self.config.copy_every)

    def update_critic(
        self,
        state: MPOState,
        batch: Transition | NStep,
        key: Key,
        *,
        target: Float[Array, "B"] | None = None,
        weight: Float[Array, "B"] | None = None,
    ) -> tuple[MPOState, Metrics, Float[Array, "B"]]:
        if target is None:
            next_value = self.target_value(state, batch.next_observation, key)
            target = td_target(batch.reward, next_discount(batch, state.discount), batch.terminated, next_value)
        trained, found, error = regress(
            state.critic,
            lambda params: self.every_q(params, batch.observation, batch.action),
            target,
            weight,
            chain=self.chain,
        )
        return state._replace(critic=self.moved(trained)), found, error

    def losses(
        self,
        params: PyTree,
        parameters: Duals,
        observation: Observation,
        actions: Float[Array, "M B A"],
        values: Float[Array, "M B"],
        old: Gaussian,
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """(sum of the losses of actor and duals, measures)."""
        config = self.config
        duals = duals_of(parameters)
        fixed = jax.lax.stop_gradient(duals)
        weights = sample_weights(values, fixed.temperature)
        measured = {"temperature": duals.temperature, "weights_kl": weights_kl(weights)}
        dual_loss = temperature_loss(values, duals.temperature, config.epsilon)
        if config.penalty:
            outside = bounds_value(actions)
            weights = weights + sample_weights(outside, fixed.penalty_temperature)
            dual_loss = dual_loss + temperature_loss(outside, duals.penalty_temperature, config.epsilon_penalty)
            measured["penalty_temperature"] = duals.penalty_temperature
        policy = self.gaussian(params, observation)
        of_mean, of_std = (jnp.mean(kl, axis=0) for kl in decoupled_kl(policy, old))
        actor_loss = likelihood_loss(weights, actions, policy, old)
        actor_loss += jnp.sum(fixed.alpha_mean * of_mean) + jnp.sum(fixed.alpha_std * of_std)
        dual_loss += multiplier_loss(duals.alpha_mean, of_mean, config.epsilon_mean)
        dual_loss += multiplier_loss(duals.alpha_std, of_std, config.epsilon_std)
        measured |= {
            "actor_loss": actor_loss,
            "dual_loss": dual_loss,
            "alpha_mean": jnp.mean(duals.alpha_mean),
            "alpha_std": jnp.mean(duals.alpha_std),
            "kl_mean": jnp.mean(of_mean),
            "kl_std": jnp.mean(of_std),
            "std": jnp.mean(policy[1]),
        }
        return actor_loss + dual_loss, measured

    def update_actor(
        self, state: MPOState, batch: Transition | NStep, key: Key, *, loss: Any = None
    ) -> tuple[MPOState, Metrics]:
        if loss is not None:
            raise UserError(REFUSED)
        observation = batch.observation
        actions, old = self.sample(state, observation, key)
        values = self.values_of_samples(state, observation, actions).min(axis=0)
        gradient_of = jax.grad(self.losses, argnums=(0, 1), has_aux=True)
        (of_actor, of_duals), measured = gradient_of(
            state.actor.params, state.duals.params, observation, actions, values, old
        )
        actor, norm = optimizer.step(state.actor, of_actor, chain=self.chain)
        duals, _ = optimizer.step(state.duals, of_duals, chain=self.chain)
        bounded = jax.tree.map(lambda parameter: jnp.maximum(parameter, LEAST_PARAMETER), duals.params)
        found = {f"agent/{name}": Average.of(value) for name, value in measured.items()}
        state = state._replace(actor=self.moved(actor), duals=duals._replace(params=bounded))
        return state, found | {"agent/actor_gradient_norm": Average.of(norm)}

    def apply_actor_gradient(
        self, state: MPOState, value: Float[Array, ""], gradient: PyTree, bonus: Float[Array, ""]
    ) -> tuple[MPOState, Metrics]:
        raise UserError(REFUSED)


REFUSED = "mpo fits its policy to weighted actions and has no other actor loss: choose sac or td3 for value gradients"


def duals_of(parameters: Duals) -> Duals:
    """Temperatures and multipliers from their parameters: the softplus, plus 1e-8."""
    return jax.tree.map(lambda parameter: jax.nn.softplus(parameter) + LEAST_DUAL, parameters)
