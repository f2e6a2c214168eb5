"""STEVE: stochastic ensemble value expansion (Buckman et al., arXiv 1807.01675).

From a real transition (s_0, a_0, r_0, s_1), each of M dynamics members imagines its own s_2 .. s_{n+1} under the policy.
R reward functions evaluate each imagined step, and L target critics the last state of each horizon i = 0 .. n. Each of the
M R L combinations gives

    T_i = r_0 + sum_{t=1}^{i} discount^t m_t (r_t + bonus_t) + discount^{i+1} m_{i+1} V'(s_{i+1})

where m_t is the probability that no step before t ended the episode in the member's own rollout, V' the target value of one
critic, and bonus the entropy bonus of a soft agent, 0 for other agents. The critics' target is (equation 5)

    y = sum_i w_i mean T_i,    w_i proportional to 1 / (var T_i + 1e-8),    sum_i w_i = 1

with mean and variance over the combinations. Long horizons thus count only in rows for which all combinations agree. T_0
does not depend on the model; its variance is that of the critics. An error that all combinations share has no variance, and
is not down-weighted.

Differs from the paper: the agent is SAC unless the settings choose TD3 or DDPG, so values are soft; the actions of a row
have the same noise in all its rollouts, because the sampling of actions is not disagreement. A member predicts reward and
state change jointly, so R = M; if the task provides its reward, R = 1. The paper's code differs further: each row trains
one critic chosen at random (here all critics learn from it), critics are copied to their targets every 500 updates, the
actor's pre-tanh action is penalised, and reward functions also receive the next state. Its settings are M = R = L = 4,
n = 3, 8 layers of 512 units in the dynamics and 4 of 128 elsewhere, batches of 512, 4 updates per frame, and 10,000 random
frames and as many model updates before training starts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge
from jaxtyping import Array, Float

from jaxmbrl import agents, returns
from jaxmbrl.agents import AgentConfig
from jaxmbrl.agents.actor_critic.sac import SACConfig
from jaxmbrl.agents.actor_critic.updates import with_updates
from jaxmbrl.algorithms import shared
from jaxmbrl.algorithms.registry import TINY_ENSEMBLE, TINY_RUN, Goal, Method
from jaxmbrl.algorithms.shared import ModelBasedSettings
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
from jaxmbrl.envs.base import vector_sizes
from jaxmbrl.models.ensemble import EnsembleConfig
from jaxmbrl.models.imagination import Trajectory, after, imagine


@dataclass(frozen=True)
class Config(ModelBasedSettings):
    """Settings of a run of STEVE."""

    agent: AgentConfig = field(default_factory=lambda: AgentConfig(sac=SACConfig(critics=4, actor_value="mean")))
    """The policy learner. How it combines its target critics has no effect, because STEVE uses the value of each."""
    ensemble: EnsembleConfig = field(
        default_factory=lambda: EnsembleConfig(members=4, elites=4, probabilistic=False, propagation="tsinf")
    )
    """The dynamics model. Members are deterministic by default, because sampled noise would count as disagreement."""
    horizon: Annotated[int, Ge(0)] = 3
    """Largest number n of model steps after the real step."""

    def problem(self) -> tuple[str, str] | None:
        """(field, message) of the first violated rule that involves several fields, or None."""
        propagation = self.ensemble.propagation
        if propagation != "tsinf":
            return "ensemble.propagation", f"must be tsinf, because each member has its own rollout, got {propagation}"
        return shared.all_members(self.ensemble) or super().problem()


class State(NamedTuple):
    """The whole state of a run."""

    agent: PyTree
    model: PyTree
    """`EnsembleState`, or the state of another model."""
    replay: Replay
    """Real transitions."""
    key: Key


def make(config: Config, task: Task, model: DynamicsModel | None = None) -> Algorithm:
    """STEVE on `task`; `model` overrides the default ensemble. Its world must assign row n to member n mod M."""
    agent = agents.make(config.agent, *vector_sizes(task, "steve"))
    model = model or shared.ensemble_for(config, task)

    def init(key: Key, hyper: Hyper, data: Transition | None = None) -> State:
        shared.no_data(data, "steve")
        agent_key, key, model_key = jax.random.split(key, 3)
        return State(
            agent=agent.init(agent_key, hyper),
            model=model.init(model_key, {}),
            replay=replay.init(row_like(task), config.replay_capacity),
            key=key,
        )

    def policy(state: State, clock: Clock, explore: bool) -> Policy:
        acting = agent.policy(state.agent, explore)
        return shared.collector(acting, task, config, clock) if explore else acting

    def learn(clock: Clock, state: State, transitions: Transition) -> tuple[State, Metrics]:
        key, update_key, refit_key = jax.random.split(state.key, 3)
        real = replay.add(state.replay, flatten(transitions))

        def fit(model_state: PyTree) -> tuple[PyTree, Metrics]:
            fit_key, _ = jax.random.split(refit_key)  # the second key is for methods that also imagine here
            return model.fit(model_state, shared.rows_to_fit(real, clock, config.replay_capacity), fit_key)

        model_state, fitted = metrics.cond_update(shared.refit_due(config, clock), fit, state.model)

        def draw(key: Key) -> Transition:
            return replay.sample(real, key, config.batch_size)

        expanding = with_steve_target(agent, model, model_state, config.horizon, config.ensemble.members)
        agent_state, updated = shared.update_agent(config, expanding, state.agent, clock, draw, update_key)
        return State(agent_state, model_state, real, key), fitted | updated

    def views(state: State) -> Views:
        return Views(
            replay=state.replay,
            model=shared.model_view(config, task, model, state.model),
            critic=shared.critic_view(agent, state.agent),
        )

    return Algorithm(init, policy, learn, period=1, views=views)


def with_steve_target(agent: ActorCritic, model: DynamicsModel, fitted: PyTree, horizon: int, members: int) -> ActorCritic:
    """`agent` with critics that learn the weighted mean over horizons. `fitted` is the state of `model`."""

    def update_critic(state: PyTree, batch: Transition, key: Key) -> tuple[PyTree, Metrics, Float[Array, "B"]]:
        target_key, critic_key = jax.random.split(key)
        samples = expand(agent, model, fitted, state, batch, target_key, horizon, members)
        target, weights = jax.vmap(returns.steve)(samples)
        state, found, error = agent.update_critic(state, batch, critic_key, target=target)
        by_horizon = {f"steve/weight_{i}": Average.of(weight) for i, weight in enumerate(jnp.mean(weights, axis=0))}
        return state, found | by_horizon, error

    return with_updates(agent, critic=update_critic)


def expand(
    agent: ActorCritic,
    model: DynamicsModel,
    fitted: PyTree,
    state: PyTree,
    batch: Transition,
    key: Key,
    horizon: int,
    members: int,
) -> Float[Array, "B S T"]:
    """The targets T_i of each row by all S = M R L combinations; T = horizon + 1."""
    value_key, imagine_key = jax.random.split(key)
    # Each real row is repeated M times: row n of the block belongs to member n mod M.
    rows = jax.tree.map(lambda x: jnp.repeat(x, members, axis=0), batch)
    policy = shared_action_noise(agent.policy_with_entropy(state), members)
    imagined = imagine(model.world(fitted), policy, rows.next_observation, imagine_key, horizon)
    trajectory = after(rows, imagined)
    rewards = rewards_of(model, fitted, imagined)
    real = jnp.broadcast_to(rows.reward, (rewards.shape[0], 1, *rows.reward.shape))
    rewards = jnp.concatenate([real, rewards], axis=1) + trajectory.entropy_bonus
    values = values_of(agent, state, trajectory.next_observation, value_key, members)
    # rewards [R, T, N], terminated [T, N], values [L, T, N] -> targets [N, R, L, T], where N = B M
    by_value = jax.vmap(returns.value_expansion_targets, (None, None, 0, None))
    by_reward = jax.vmap(by_value, (0, None, None, None))
    by_row = jax.vmap(by_reward, (2, 1, 2, None))
    samples = by_row(rewards, trajectory.terminated, values, state.discount)
    # The M repetitions of a real row become M R L samples of its targets.
    return samples.reshape(batch.reward.shape[0], -1, horizon + 1)


def shared_action_noise(policy: Policy, members: int) -> Policy:
    """`policy` on rows [B M, O], with the same action noise in each group of M consecutive rows."""

    def act(memory: Memory, observation: Observation, key: Key) -> tuple[Action, PyTree, Memory]:
        by_member = observation.reshape(-1, members, observation.shape[-1])
        action, bonus = jax.vmap(lambda rows: policy.act(memory, rows, key)[:2], 1, 1)(by_member)
        return action.reshape(-1, action.shape[-1]), bonus.reshape(-1), memory

    return Policy(policy.init, act)


def rewards_of(model: DynamicsModel, fitted: PyTree, imagined: Trajectory) -> Float[Array, "R n N"]:
    """The rewards of imagined steps by each member of `model`, or the known rewards if it does not predict them (R = 1)."""
    steps, rows, size = imagined.observation.shape
    pairs = (x.reshape(-1, x.shape[-1]) for x in (imagined.observation, imagined.action))
    mean, _ = model.predict(fitted, *pairs)
    if mean.shape[-1] == size:
        return imagined.reward[None]
    return mean[..., -1].reshape(mean.shape[0], steps, rows)


def values_of(
    agent: ActorCritic, state: PyTree, next_observation: Float[Array, "T N O"], key: Key, members: int
) -> Float[Array, "L T N"]:
    """The value of each state by each target critic, with the same action noise for all members."""
    steps, rows, size = next_observation.shape
    by_member = jax.vmap(agent.target_values, (None, 1, None), 2)
    by_step = jax.vmap(by_member, (None, 0, 0), 1)
    values = by_step(state, next_observation.reshape(steps, -1, members, size), jax.random.split(key, steps))
    return values.reshape(-1, steps, rows)


METHOD = Method(
    make,
    Config,
    family="value_expansion",
    paper="1807.01675",
    summary="soft actor-critic or TD3 with critic targets expanded as far as the members of an ensemble agree",
    tiny={
        **TINY_RUN,
        **TINY_ENSEMBLE,
        "ensemble.elites": 3,
        "agent.sac.hidden": (16, 16),
        "agent.sac.critics": 3,
        "refit_every": 50,
        "horizon": 2,
        "learn_termination": True,
    },
    goals=(Goal("steve-pendulum", "pendulum", 5000, -200.0, about="small preset"),),
)
