"""SVG: stochastic value gradients (Heess et al., Learning continuous control policies by stochastic value gradients, arXiv
1510.09142), with the soft critics of SAC-SVG (Amos et al., On the model-based stochastic value gradient for continuous
reinforcement learning, arXiv 2008.12775).

With a_t = pi(s_t, eta_t) and s_{t+1} = f(s_t, a_t, xi_t), functions of their noise, the actor maximises

    J = sum_{t<n} discount^t m_t (r_t - alpha log pi(a_t|s_t)) + discount^n m_n (min Q(s_n, a_n) - alpha log pi(a_n|s_n))

by gradients through policy and model, where m_t is the probability that no step before t ended the episode. The critics are
SAC's, on real transitions.

    SVG(0)          n = 0: the model is not used; this is SAC
    SVG(k)          n = k steps imagined from replayed states, with newly sampled noise (SAC-SVG)
    SVG(1)          n = 1, noise inferred: one real step is reconstructed, with the noise that gives it under the current
                    policy and model; its weight is min(pi(a|s) / mu(a|s), 5), where mu is the density with which the action
                    was sampled; for n steps the ratios are multiplied
    SVG(infinity)   the same with n as long as an episode (`reconstruct_rollout`)

With inferred noise, values are real and derivatives the model's: a reconstructed state equals the real state for any model.

Differs from the papers: the last state is valued by the critics at a newly sampled action, and the gradient also flows
through that action, whereas SVG(infinity) has no value at its end; the model of a reconstructed step is the Gaussian with
the mean and variance of all members; the model of SAC-SVG is a recurrent network fitted to sequences, ours is an ensemble.
The critics need no importance weight, because they evaluate actions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt
from jaxtyping import Array, Float

from jaxmbrl.agents.actor_critic import sac
from jaxmbrl.agents.actor_critic.sac import SACConfig, SACFunctions, SACState
from jaxmbrl.agents.actor_critic.updates import with_updates
from jaxmbrl.agents.actor_critic.value_gradients import ValueGradientConfig, with_value_gradient
from jaxmbrl.algorithms import shared
from jaxmbrl.algorithms.registry import TINY_ENSEMBLE, TINY_RUN, Goal, Method
from jaxmbrl.algorithms.shared import DynamicsChoice, ModelBasedSettings
from jaxmbrl.core import metrics
from jaxmbrl.core.types import (
    Action,
    ActorCritic,
    Algorithm,
    Average,
    Clock,
    DynamicsModel,
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
    flatten,
    row_like,
)
from jaxmbrl.data import replay
from jaxmbrl.data.replay import Replay
from jaxmbrl.distributions import squashed_log_density
from jaxmbrl.envs.base import vector_sizes
from jaxmbrl.models import propagation
from jaxmbrl.models.imagination import Trajectory


@dataclass(frozen=True)
class Config(DynamicsChoice, ModelBasedSettings):
    """Settings of a run of SVG."""

    agent: SACConfig = field(default_factory=SACConfig)
    """The policy learner."""
    horizon: Annotated[int, Ge(0)] = 3
    """Model steps n through which the actor's gradient flows."""
    noise: Literal["drawn", "inferred"] = "drawn"
    """Noise of the actor's steps: newly drawn, or inferred from the same number of consecutive real steps."""
    weight_cap: Annotated[float, Gt(0)] = 5.0
    """Largest importance weight of reconstructed steps."""
    rematerialize: bool = False
    """Whether the actor's backward pass recomputes each imagined step, so that only the n states are stored."""

    def problem(self) -> tuple[str, str] | None:
        """(field, message) of the first violated rule that involves several fields, or None."""
        if self.noise == "inferred" and self.horizon < 1:
            return "horizon", "must be at least 1 if noise is inferred, got 0"
        return super().problem()


class State(NamedTuple):
    """The whole state of a run."""

    agent: PyTree
    model: PyTree
    """`EnsembleState`, or the state of another model."""
    replay: Replay
    """Real transitions."""
    key: Key


class BehaviorAction(NamedTuple):
    """How an action was sampled."""

    pre_tanh: Float[Array, "*n A"]
    log_density: Float[Array, "*n"]
    """Log-density of the action, in nats."""


def make(config: Config, task: Task, model: DynamicsModel | None = None) -> Algorithm:
    """SVG on `task`; `model` overrides the default ensemble."""
    observation_size, action_size = vector_sizes(task, "svg")
    agent = sac.make(config.agent, observation_size, action_size)
    model = model or shared.model_for(config, task)
    inferred, parts = config.noise == "inferred", sac.functions(config.agent, action_size)
    gradient = ValueGradientConfig(config.horizon, entropy_at_every_step=True, rematerialize=config.rematerialize)

    def init(key: Key, hyper: Hyper, data: Transition | None = None) -> State:
        shared.no_data(data, "svg")
        agent_key, key, model_key = jax.random.split(key, 3)
        extras = BehaviorAction(jnp.zeros(action_size), jnp.zeros(())) if inferred else ()
        return State(
            agent=agent.init(agent_key, hyper),
            model=model.init(model_key, {}),
            replay=replay.init(row_like(task)._replace(extras=extras), config.replay_capacity),
            key=key,
        )

    def policy(state: State, clock: Clock, explore: bool) -> Policy:
        if explore and inferred:
            return shared.collector(explorer(parts, state.agent), task, config, clock, uniform_behavior)
        acting = agent.policy(state.agent, explore)
        return shared.collector(acting, task, config, clock) if explore else acting

    def learn(clock: Clock, state: State, transitions: Transition) -> tuple[State, Metrics]:
        key, update_key, refit_key = jax.random.split(state.key, 3)
        real = replay.add(state.replay, with_behavior(transitions) if inferred else flatten(transitions))

        def fit(model_state: PyTree) -> tuple[PyTree, Metrics]:
            fit_key, _ = jax.random.split(refit_key)  # the second key is for methods that also imagine here
            return model.fit(model_state, shared.rows_to_fit(real, clock, config.replay_capacity), fit_key)

        model_state, fitted = metrics.cond_update(shared.refit_due(config, clock), fit, state.model)

        def draw(key: Key) -> Any:
            return windows(config, real, key) if inferred else replay.sample(real, key, config.batch_size)

        if inferred:
            predict, reward = partial(model.predict, model_state), shared.known_reward(config, task)
            through_model = with_inferred_noise(agent, parts, predict, reward, config.weight_cap)
        else:
            through_model = with_value_gradient(agent, model.world(model_state), gradient)
        agent_state, updated = shared.update_agent(config, through_model, state.agent, clock, draw, update_key)
        return State(agent_state, model_state, real, key), fitted | updated

    def views(state: State) -> Views:
        return Views(
            replay=state.replay,
            model=shared.model_view(config, task, model, state.model),
            critic=shared.critic_view(agent, state.agent),
        )

    return Algorithm(init, policy, learn, period=1, views=views)


def explorer(parts: SACFunctions, state: SACState) -> Policy:
    """The stochastic policy with `BehaviorAction` as extras."""

    def act(memory: Memory, observation: Observation, key: Key) -> tuple[Action, BehaviorAction, Memory]:
        mean, log_std = parts.actor.distribution(state.actor.params, observation)
        pre_tanh = mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape, mean.dtype)
        return jnp.tanh(pre_tanh), BehaviorAction(pre_tanh, squashed_log_density(pre_tanh, mean, log_std)), memory

    return Policy(init=lambda key: (), act=act)


def uniform_behavior(action: Float[Array, "*n A"]) -> BehaviorAction:
    """The `BehaviorAction` of an action that was sampled uniformly from [-1, 1]."""
    inside = jnp.clip(action, -1 + 1e-6, 1 - 1e-6)
    return BehaviorAction(jnp.arctanh(inside), jnp.full(action.shape[:-1], -action.shape[-1] * math.log(2), action.dtype))


def with_behavior(transitions: Transition) -> Transition:
    """Rows with `BehaviorAction` as extras. The density of actions from a file is unknown; they are treated as sampled
    uniformly."""
    extras = transitions.extras or uniform_behavior(transitions.action)
    return flatten(transitions)._replace(extras=jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), extras))


class Windows(NamedTuple):
    """B windows of T consecutive real steps."""

    rows: Transition
    """[T, B], with `BehaviorAction` as extras."""
    counts: Float[Array, "T B"]
    """1 if no earlier step of the window ended the episode, else 0: the row belongs to another episode."""
    whole: Float[Array, "B"]
    """1 if all rows that count are in the buffer and consecutive; 0 if a time limit or the buffer's end lies between."""


def windows(config: Config, buffer: Replay, key: Key) -> Windows:
    """`config.batch_size` windows of `config.horizon` steps."""
    drawn = replay.sample_sequences(buffer, key, config.batch_size, config.horizon, config.num_envs)
    rows, start, valid = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), drawn)
    over = jnp.cumsum(rows.terminated, axis=0) > rows.terminated
    whole = jnp.all(over | (valid & ~start.at[0].set(False)), axis=0)
    return Windows(rows, 1.0 - over, whole.astype(float))


Predict = Callable[[Float[Array, "N O"], Float[Array, "N A"]], tuple[Float[Array, "E N D"], Float[Array, "E N D"]]]
"""`DynamicsModel.predict` of a fitted model."""
NoiseConditionedPolicy = Callable[[Float[Array, "B O"], Transition], tuple[Float[Array, "B A"], Float[Array, "B"]]]
"""(observations, real step) -> (actions of a policy with the noise of the real actions, their entropy bonus)."""


def with_inferred_noise(
    agent: ActorCritic, parts: SACFunctions, predict: Predict, reward: Callable[..., Any] | None, weight_cap: float
) -> ActorCritic:
    """SAC's `agent` for batches of `Windows`: its actor maximises J along the reconstructed steps, its critics learn on the
    first step of each window."""

    def update_actor(state: SACState, batch: Windows, key: Key) -> tuple[SACState, Metrics]:
        _, act_key, value_key = jax.random.split(key, 3)  # the first key is the model's noise, which is inferred here
        weight = importance(parts, state, batch, weight_cap)
        share = weight * batch.whole / jnp.maximum(jnp.sum(batch.whole), 1.0)

        def loss(params: PyTree, *_: Any) -> tuple[Float[Array, ""], Float[Array, ""]]:
            moved = state._replace(actor=state.actor._replace(params=params))
            trajectory = reconstruct_rollout(partial(act_again, parts, moved), predict, reward, batch.rows)
            last = trajectory.next_observation[-1]
            action, bonus, _ = agent.policy_with_entropy(moved).act((), last, act_key)
            value = agent.action_value(state, last, action, value_key) + bonus
            # The temperature learns from newly sampled actions: the stored ones are from earlier policies.
            return -jnp.sum(share * trajectory.n_step_returns(value, state.discount)[0]), jnp.mean(bonus)

        state, found = agent.update_actor(state, _first(batch), key, loss=loss)
        return state, found | {
            "svg/weight": Average.of(jnp.mean(weight)),
            "svg/weights_capped": Average.of(jnp.mean(weight >= weight_cap)),
            "svg/whole": Average.of(jnp.mean(batch.whole)),
        }

    def update_critic(state: SACState, batch: Windows, key: Key) -> tuple[SACState, Metrics, Float[Array, "B"]]:
        return agent.update_critic(state, _first(batch), key)

    return with_updates(agent, critic=update_critic, actor=update_actor)


def _first(batch: Windows) -> Transition:
    return jax.tree.map(lambda x: x[0], batch.rows)


def importance(parts: SACFunctions, state: SACState, batch: Windows, cap: float) -> Float[Array, "B"]:
    """min(pi / mu, cap) for each window: pi / mu is the product over the actions that count of their density under the
    current policy over that with which they were sampled."""
    rows = batch.rows
    now = squashed_log_density(rows.extras.pre_tanh, *parts.actor.distribution(state.actor.params, rows.observation))
    ratio = jnp.sum(jnp.where(batch.counts > 0, now - rows.extras.log_density, 0.0), axis=0)
    return jnp.minimum(jnp.exp(ratio), cap)


def act_again(
    parts: SACFunctions, state: SACState, observation: Float[Array, "B O"], row: Transition
) -> tuple[Float[Array, "B A"], Float[Array, "B"]]:
    """`NoiseConditionedPolicy` of SAC's policy, for rows with `BehaviorAction` as extras."""
    mean, log_std = parts.actor.distribution(state.actor.params, observation)
    pre_tanh = reparameterize_given(row.extras.pre_tanh, mean, jnp.exp(log_std))
    bonus = -jnp.exp(state.log_temperature.params) * squashed_log_density(pre_tanh, mean, log_std)
    return jnp.tanh(pre_tanh), bonus


def reconstruct_rollout(
    again: NoiseConditionedPolicy, predict: Predict, reward: Callable[..., Any] | None, rows: Transition
) -> Trajectory:
    """The consecutive real steps `rows` [T, B] as a function of the policy's parameters: all values are the real ones, with
    the derivatives of policy and model (arXiv 1510.09142, algorithm 1). If the model does not predict the reward, `reward`
    is the task's known function on rows. Steps after an episode's end are not meaningful."""

    def step(state: Float[Array, "B O"], row: Transition) -> tuple[Float[Array, "B O"], Trajectory]:
        action, bonus = again(state, row)
        middle, std = propagation.gaussian("distribution", *predict(state, action))
        real = jnp.concatenate([row.next_observation, row.reward[:, None]], axis=-1)
        made = reparameterize_given(real[:, : middle.shape[-1]], middle, std)
        next_observation = made[:, : state.shape[-1]]
        earned = made[:, -1]
        if reward is not None:
            earned = reparameterize_given(row.reward, reward(state, action, next_observation), jnp.zeros_like(row.reward))
        return next_observation, Trajectory(state, action, earned, bonus, row.terminated, next_observation)

    return jax.lax.scan(step, rows.observation[0], rows)[1]


def reparameterize_given(
    value: Float[Array, "*n"], mean: Float[Array, "*n"], std: Float[Array, "*#n"]
) -> Float[Array, "*n"]:
    """`value` as mean + std * noise, with the noise inferred and held constant: the derivatives are those of `mean` and
    `std`. Where `std` is 0, the remainder value - mean is a constant."""
    none = std == 0
    noise = jax.lax.stop_gradient(jnp.where(none, 0.0, (value - mean) / jnp.where(none, 1.0, std)))
    made = mean + std * noise
    return made + jax.lax.stop_gradient(value - made)


METHOD = Method(
    make,
    Config,
    family="value_gradients",
    paper="1510.09142",
    summary="soft actor-critic whose actor follows stochastic value gradients of imagined or real steps",
    tiny={
        **TINY_RUN,
        **TINY_ENSEMBLE,
        "agent.hidden": (16, 16),
        "refit_every": 50,
        "horizon": 2,
        "learn_termination": True,
    },
    goals=(
        Goal(
            "svg1-pendulum",
            "pendulum",
            5000,
            -200.0,
            settings={"horizon": 1, "noise": "inferred"},
            about="of one real step re-created: SVG(1)",
        ),
        Goal(
            "svg3-pendulum",
            "pendulum",
            5000,
            -200.0,
            settings={"horizon": 3},
            about="of 3 imagined steps, small preset",
        ),
    ),
)
