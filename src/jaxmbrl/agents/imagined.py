"""An actor-critic that learns in imagination only, from trajectories of a latent world model (Dreamer V1, V2 and V3, Hafner
et al., arXiv 1912.01603, 2010.02193 and 2301.04104).

    from each root belief imagine H steps:  f_0, a_0, r_1, c_1, f_1, ..., f_H
    R_t      = r_{t+1} + gamma c_{t+1} ((1 - lambda) v(f_{t+1}) + lambda R_{t+1}),    R_H = v(f_H)
    w_t      = c_root prod_{1 <= j <= t} gamma c_j
    S        = max(1, high - low), moving averages of the 95th and the 5th percentile of R
    actor    -mean w_t (log pi(a_t | f_t) sg((R_t - v(f_t)) / S) + eta entropy)              (reinforce)
             -mean w_t (R_t / S + eta entropy), differentiated through the model's steps      (pathwise;
                                with `baseline` R_t - v(f_t) in place of R_t)
    critic   mean w_t (loss(v(f_t), sg R_t) + loss(v(f_t), value of the target critic))
    replay   the same critic loss on the real window, whose R bootstrap with the imagined R_0 of each position

v in R and in the advantage is the critic, or in DreamerV2 the target critic, which then is no second target.

The action a_t, its advantage and its weight belong to the state that is acted from. A root that is terminal has weight 0.
The replay loss also trains the features.

Differs from the papers: a root's weight is its real continuation, not the predicted one; with subsampled roots fewer
trajectories are imagined than there are positions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from annotated_types import Ge, Gt, Le
from flax import linen as nn
from jaxtyping import Array, Float, Int, Shaped

from jaxmbrl import returns
from jaxmbrl.core import tree
from jaxmbrl.core.config import Traced, UserError
from jaxmbrl.core.spaces import Discrete, Space
from jaxmbrl.core.types import Action, Average, Hyper, Key, Memory, Metrics, Observation, Policy, PyTree, World
from jaxmbrl.distributions import Categorical, Gaussian, ScalarHead, SymexpHead, TruncatedNormal
from jaxmbrl.models.imagination import Trajectory, imagine
from jaxmbrl.models.latent import Window, rows_of
from jaxmbrl.models.latent.coders import Activation
from jaxmbrl.models.latent.rssm import number_head
from jaxmbrl.nn import optimizer
from jaxmbrl.nn.networks import MLP
from jaxmbrl.nn.optimizer import Trainable

sg = jax.lax.stop_gradient

SCALE_RATE = 0.01
"""Rate of the moving averages of the return's percentiles."""


@dataclass(frozen=True)
class ImaginedConfig:
    """Settings of the agent."""

    horizon: Annotated[int, Ge(1)] = 15
    """H: steps of an imagined trajectory."""
    roots: Annotated[int, Ge(1)] | None = None
    """Positions of a batch from which trajectories are imagined, sampled anew in each update; None for all."""
    gradient: Literal["reinforce", "pathwise", "auto"] = "reinforce"
    """The actor's gradient: by log-probabilities, or through the model's steps, for continuous actions. `auto` is pathwise
    for continuous and reinforce for discrete actions (DreamerV2)."""
    baseline: bool = False
    """Whether the pathwise gradient is that of R_t - v(f_t), whose value is differentiated through the states, too (the
    code of DreamerV3 of 2023), instead of that of R_t (V1 and V2). The other gradient always has the baseline."""
    policy: Literal["normal", "truncated-normal", "tanh-normal"] = "normal"
    """Distribution of continuous actions: a Gaussian with bounded mean and deviation, which the task clips (V3), one that
    is truncated (V2), or a Gaussian under tanh, without an entropy bonus and for pathwise gradients (V1)."""
    discount: Annotated[float, Ge(0), Le(1), Traced] = 0.997
    """Discount factor gamma."""
    mix: Annotated[float, Ge(0), Le(1)] = 0.95
    """lambda of the returns: 0 for one step, 1 for the whole horizon."""
    entropy: Annotated[float, Ge(0)] = 3e-4
    """eta: weight of the entropy bonus."""
    normalize_returns: bool = True
    """Whether the actor's returns are divided by S."""
    units: Annotated[int, Ge(1)] = 64
    """Units of each hidden layer."""
    layers: Annotated[int, Ge(1)] = 3
    """Hidden layers of the actor, and of the critic."""
    activation: Activation = "silu"
    """Activation of all hidden layers."""
    rms_norm: bool = True
    """Whether hidden layers are normalised by their root mean square."""
    bins: Annotated[int, Ge(0)] = 255
    """Bins of the critic's output; 0 for a plain number with squared error."""
    target: Literal["regularizer", "bootstrap", "none"] = "regularizer"
    """Use of a slowly moving critic: its value is a second target (V3), returns bootstrap from it (V2), or it is absent."""
    target_rate: Annotated[float, Gt(0), Le(1)] = 0.02
    """Share by which it moves towards the critic; 1 copies it."""
    target_every: Annotated[int, Ge(1)] = 1
    """Updates between two moves."""
    replay_value: Annotated[float, Ge(0)] = 0.3
    """Weight of the critic's loss on the real window; it needs trajectories from all positions."""
    learning_rate_scale: Annotated[float, Gt(0)] = 1.0
    """Learning rate of actor and critic, as a multiple of the model's."""

    def problem(self) -> tuple[str, str] | None:
        """(field, message) of the first violated rule that involves several fields, or None."""
        if self.bins and (self.bins < 3 or self.bins % 2 == 0):
            return "bins", f"must be 0, or odd and at least 3, got {self.bins}"
        if self.replay_value > 0 and self.roots is not None:
            return "replay_value", f"must be 0 with a number of roots ({self.roots}), got {self.replay_value}"
        if self.policy == "tanh-normal" and (self.gradient == "reinforce" or self.entropy > 0):
            return "policy", "must be normal unless gradient is pathwise and entropy 0"
        return None

    def pathwise(self, action: Space) -> bool:
        """Whether the gradient for actions in the space is pathwise."""
        return self.gradient == "pathwise" or (self.gradient == "auto" and not isinstance(action, Discrete))


class Head(NamedTuple):
    """A distribution of actions as functions of a network's output."""

    size: int
    """Length of the output."""
    sample: Callable[[Float[Array, "*n K"], Key], Shaped[Array, "..."]]
    """Differentiable in the output if actions are continuous. Its bounds are not those of the task."""
    mode: Callable[[Float[Array, "*n K"]], Shaped[Array, "..."]]
    log_probability: Callable[[Float[Array, "*n K"], Shaped[Array, "..."]], Float[Array, "*n"]]
    entropy: Callable[[Float[Array, "*n K"]], Float[Array, "*n"]]


class ImaginedState(NamedTuple):
    """State of the agent."""

    actor: Trainable
    critic: Trainable
    low: Float[Array, ""]
    """Moving average of the 5th percentile of the returns, from 0."""
    high: Float[Array, ""]
    """The same of the 95th."""
    discount: Float[Array, ""]
    updates: Int[Array, ""]
    """Updates so far, modulo `target_every`."""


class Dreams(NamedTuple):
    """What one loss found beside its value."""

    low: Float[Array, ""]
    high: Float[Array, ""]
    first_return: Float[Array, "N"]
    """R_0 of each root."""
    metrics: Metrics


class Imagined(NamedTuple):
    """The agent, on features [F]."""

    init: Callable[[Key, Hyper, Any], ImaginedState]
    """(key, hyper, the model's learning rate) -> state. `hyper` may hold `discount`, traced."""
    policy: Callable[[ImaginedState, bool], Policy]
    """(state, explore) -> policy of features; without exploration the action is the mode."""
    loss: Callable[..., tuple[Float[Array, ""], Dreams]]
    """`dream_loss` but for its first argument."""
    replay_loss: Callable[..., Float[Array, ""]]
    """`replay_loss` but for its first argument."""
    apply: Callable[[ImaginedState, PyTree, PyTree, Dreams], tuple[ImaginedState, Metrics]]
    """(state, the actor's gradient, the critic's, found) -> (state after the update, metrics)."""


class Functions(NamedTuple):
    """Actor and critic as functions of their parameters."""

    config: ImaginedConfig
    pathwise: bool
    """Whether the actor's gradient is pathwise."""
    head: Head
    actor: Callable[[PyTree, Float[Array, "*n F"]], Float[Array, "*n K"]]
    """(parameters, features) -> the output of `head`."""
    critic: Callable[[PyTree, Float[Array, "*n F"]], Float[Array, "*n S"]]
    """(parameters, features) -> the output of `number`."""
    number: ScalarHead | SymexpHead

    def value(self, params: PyTree, features: Float[Array, "*n F"]) -> Float[Array, "*n"]:
        """The value of features by a critic with these parameters."""
        return self.number.mean(self.critic(params, features))


def make(config: ImaginedConfig, size: int, action: Space, chain: optax.GradientTransformation) -> Imagined:
    """The agent for features of length `size`; `chain` is the optimiser's. Raises UserError for pathwise gradients of
    discrete actions."""
    head, number = head_of(config, action), number_head(config.bins)
    network = partial(
        MLP, (config.units,) * config.layers, activation=getattr(jax.nn, config.activation), rms_norm=config.rms_norm
    )
    small = nn.initializers.variance_scaling(1e-4, "fan_in", "truncated_normal")
    actor = network(head.size, last_init=small)
    critic = network(number.size, last_init=nn.initializers.zeros_init() if config.bins else None)
    functions = Functions(config, config.pathwise(action), head, actor.apply, critic.apply, number)

    def init(key: Key, hyper: Hyper, learning_rate: Any) -> ImaginedState:
        actor_key, critic_key = jax.random.split(key)
        rate, example = config.learning_rate_scale * learning_rate, jnp.zeros(size)
        return ImaginedState(
            optimizer.init(actor.init(actor_key, example), rate, chain=chain),
            optimizer.init(critic.init(critic_key, example), rate, config.target != "none", chain),
            low=jnp.zeros(()),
            high=jnp.zeros(()),
            discount=jnp.asarray(hyper.get("discount", config.discount), float),
            updates=jnp.zeros((), jnp.int32),
        )

    def policy(state: ImaginedState, explore: bool) -> Policy:
        def act(memory: Memory, features: Observation, key: Key) -> tuple[Action, PyTree, Memory]:
            output = actor.apply(state.actor.params, features)
            chosen = head.sample(output, key) if explore else head.mode(output)
            return chosen if isinstance(action, Discrete) else jnp.clip(chosen, -1.0, 1.0), (), memory

        return Policy(lambda key: (), act)

    def apply(state: ImaginedState, of_actor: PyTree, of_critic: PyTree, found: Dreams) -> tuple[ImaginedState, Metrics]:
        actor_state, actor_norm = optimizer.step(state.actor, of_actor, chain=chain)
        critic_state, critic_norm = optimizer.step(state.critic, of_critic, chain=chain)
        updates = (state.updates + 1) % config.target_every
        if config.target != "none":
            moved = optimizer.move_target(critic_state, config.target_rate).target
            critic_state = critic_state._replace(target=tree.where(updates == 0, moved, critic_state.target))
        norms = {"agent/actor_gradient": Average.of(actor_norm), "agent/critic_gradient": Average.of(critic_norm)}
        after = ImaginedState(actor_state, critic_state, found.low, found.high, state.discount, updates)
        return after, found.metrics | norms

    return Imagined(init, policy, partial(dream_loss, functions), partial(replay_loss, functions), apply)


def dream_loss(
    functions: Functions,
    actor_params: PyTree,
    critic_params: PyTree,
    state: ImaginedState,
    world: World,
    origin: Any,
    weight: Float[Array, "N"],
    key: Key,
) -> tuple[Float[Array, ""], Dreams]:
    """(the actor's loss + the critic's on trajectories that are imagined in `world` from `origin` [N], found). `weight` is
    that of each root. Of the loss only `actor_params` and `critic_params` receive a gradient, if origin and world have no
    parameters that are differentiated."""
    config, head = functions.config, functions.head
    acting = actor_params if functions.pathwise else sg(actor_params)

    def act(memory: Memory, features: Observation, key: Key) -> tuple[Action, PyTree, Memory]:
        return head.sample(functions.actor(acting, sg(features)), key), (), memory

    path = imagine(world, Policy(lambda key: (), act), origin, key, config.horizon)
    features = jnp.concatenate([path.observation, path.next_observation[-1:]])
    slow = config.target == "bootstrap"
    values = functions.value(state.critic.target if slow else sg(critic_params), features)
    target = lambda_returns(path, values[1:], state.discount, config.mix)
    low, high = (moved(old, target, share) for old, share in ((state.low, 0.05), (state.high, 0.95)))
    scale = jnp.maximum(1.0, high - low) if config.normalize_returns else jnp.ones(())
    output = functions.actor(actor_params, sg(features[:-1]))
    entropy = head.entropy(output)
    if functions.pathwise:
        objective = (target - values[:-1] if config.baseline else target) / scale
    else:
        objective = head.log_probability(output, sg(path.action)) * sg((target - values[:-1]) / scale)
    weights = sg(weights_of(path, weight, state.discount))
    of_actor = -jnp.mean(weights * (objective + config.entropy * entropy))
    of_critic = jnp.mean(weights * value_loss(functions, critic_params, state, sg(features[:-1]), target))
    found = {"actor": of_actor, "critic": of_critic, "return": jnp.mean(target), "scale": scale}
    found["entropy"] = jnp.mean(entropy)
    named = {f"agent/{name}": Average.of(sg(x)) for name, x in found.items()}
    return of_actor + of_critic, Dreams(low, high, sg(target[0]), named)


def replay_loss(
    functions: Functions,
    critic_params: PyTree,
    state: ImaginedState,
    features: Float[Array, "B T F"],
    window: Window,
    first_return: Float[Array, "B T"],
) -> Float[Array, ""]:
    """The critic's loss on the real window, given the imagined R_0 of each position. It is differentiable in the features,
    too."""
    target = replay_returns(window, first_return, state.discount, functions.config.mix)
    weight = 1.0 - window.last[:, :-1]
    return jnp.mean(weight * value_loss(functions, critic_params, state, features[:, :-1], target))


def value_loss(
    functions: Functions,
    params: PyTree,
    state: ImaginedState,
    features: Float[Array, "*n F"],
    target: Float[Array, "*n"],
) -> Float[Array, "*n"]:
    """The critic's loss of each row for the return `target`, and if the settings say so for the value of the target
    critic."""
    output = functions.critic(params, features)
    loss = functions.number.loss(output, sg(target))
    if functions.config.target != "regularizer":
        return loss
    return loss + functions.number.loss(output, sg(functions.value(state.critic.target, features)))


def roots(config: ImaginedConfig, beliefs: Any, window: Window, key: Key) -> tuple[Any, Float[Array, "N"]]:
    """(beliefs [N] from which trajectories are imagined, their weights): all positions of a window, or some, sampled
    without replacement. A terminal position has weight 0."""
    origin, weight = rows_of(sg((beliefs, 1.0 - window.terminated)))
    if config.roots is None or config.roots >= weight.shape[0]:
        return origin, weight
    chosen = jax.random.choice(key, weight.shape[0], (config.roots,), replace=False)
    return jax.tree.map(lambda x: x[chosen], (origin, weight))


def head_of(config: ImaginedConfig, action: Space) -> Head:
    """The distribution of actions in the space. Raises UserError for pathwise gradients of discrete actions."""
    if isinstance(action, Discrete):
        if config.pathwise(action):
            raise UserError("agent.gradient must be reinforce or auto for discrete actions, got pathwise")
        return Head(
            action.n,
            sample=lambda output, key: Categorical(output).sample(key),
            mode=lambda output: Categorical(output).mode(),
            log_probability=lambda output, chosen: Categorical(output).log_probability(chosen),
            entropy=lambda output: Categorical(output).entropy(),
        )
    kinds: dict[str, Any] = {"normal": normal, "truncated-normal": truncated_normal, "tanh-normal": before_tanh}
    of = kinds[config.policy]

    def squash(x: Array) -> Array:
        return jnp.tanh(x) if config.policy == "tanh-normal" else x

    return Head(
        2 * action.shape[0],
        sample=lambda output, key: squash(of(output).sample(key)),
        mode=lambda output: squash(of(output).mode()),
        log_probability=lambda output, chosen: of(output).log_probability(chosen),
        entropy=lambda output: of(output).entropy(),
    )


def normal(output: Float[Array, "*n K"]) -> Gaussian:
    """DreamerV3's distribution of actions: mean tanh(m), standard deviation 0.1 + 0.9 sigmoid(s + 2)."""
    mean, raw = jnp.split(output, 2, axis=-1)
    return Gaussian(jnp.tanh(mean), jnp.log(0.1 + 0.9 * jax.nn.sigmoid(raw + 2)))


def truncated_normal(output: Float[Array, "*n K"]) -> TruncatedNormal:
    """DreamerV2's distribution of actions: mean tanh(m), standard deviation 2 sigmoid(s / 2) + 0.1, before truncation."""
    mean, raw = jnp.split(output, 2, axis=-1)
    return TruncatedNormal(jnp.tanh(mean), jnp.log(2 * jax.nn.sigmoid(raw / 2) + 0.1))


def before_tanh(output: Float[Array, "*n K"]) -> Gaussian:
    """Dreamer V1's distribution before tanh: mean 5 tanh(m / 5), standard deviation softplus(s + 5) + 1e-4."""
    mean, raw = jnp.split(output, 2, axis=-1)
    return Gaussian(5 * jnp.tanh(mean / 5), jnp.log(jax.nn.softplus(raw + 5) + 1e-4))


def lambda_returns(path: Trajectory, values: Float[Array, "H N"], discount: Any, mix: float) -> Float[Array, "H N"]:
    """`returns.lambda_returns` of each trajectory, with the values of the states that its steps lead to."""
    by_row = jax.vmap(returns.lambda_returns, in_axes=(1, 1, 1, None, None), out_axes=1)
    return by_row(path.reward, path.terminated, values, discount, mix)


def weights_of(path: Trajectory, weight: Float[Array, "N"], discount: Any) -> Float[Array, "H N"]:
    """w_t of the states that are acted from: `weight` of the root, discounted, times the probability that the episode has
    not ended before."""
    powers = jnp.asarray(discount) ** jnp.arange(path.reward.shape[0])
    return weight * powers[:, None] * path.alive


def replay_returns(window: Window, first_return: Float[Array, "B T"], discount: Any, mix: float) -> Float[Array, "B T-1"]:
    """The lambda returns of all positions of a window but the last, with its real rewards and ends, bootstrapped with the
    imagined return of each position. At the last position of an episode nothing follows: lambda is 0 there."""
    shares = mix * (1.0 - window.last[:, 1:])
    by_row = jax.vmap(returns.lambda_returns, in_axes=(0, 0, 0, None, 0))
    return by_row(window.reward[:, 1:], window.terminated[:, 1:], first_return[:, 1:], discount, shares)


def moved(old: Float[Array, ""], returns: Float[Array, "H N"], share: float) -> Float[Array, ""]:
    """The moving average `old` after one more quantile of the returns."""
    return (1 - SCALE_RATE) * old + SCALE_RATE * jnp.quantile(sg(returns), share)
