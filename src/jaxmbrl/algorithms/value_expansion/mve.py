"""MVE: model-based value expansion (Feinberg et al., arXiv 1803.00101).

The critics' target contains n imagined steps before it bootstraps from the target critics. From a real transition
(s_0, a_0, r_0, s_1), s_2 .. s_{n+1} are imagined under the policy, and

    T = r_0 + sum_{t=1}^{n} discount^t m_t (r_t + bonus_t) + discount^{n+1} m_{n+1} V'(s_{n+1})

where m_t is the probability that no step before t ended the episode, V' the agent's target value, and bonus the entropy
bonus of a soft agent, 0 for other agents. n = 0 is the agent's own one-step target.

The TD-k trick (section 3.1): targets evaluate the critics at imagined states, so the critics also learn there. Each
imagined (s_t, a_t) has the target of its own remaining horizon and the weight m_t. Targets are recomputed for each update,
with the latest model.

Differs from the paper: the model is a probabilistic ensemble; each row of a batch is imagined with one sample of the model
and the actions; a soft agent expands its soft value.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge
from jaxtyping import Array, Float

from jaxmbrl import agents
from jaxmbrl.agents import AgentConfig
from jaxmbrl.agents.actor_critic.updates import with_updates
from jaxmbrl.algorithms import shared
from jaxmbrl.algorithms.registry import TINY_ENSEMBLE, TINY_RUN, Goal, Method
from jaxmbrl.algorithms.shared import DynamicsChoice, ModelBasedSettings
from jaxmbrl.core import metrics
from jaxmbrl.core.types import (
    ActorCritic,
    Algorithm,
    Average,
    Clock,
    DynamicsModel,
    Hyper,
    Key,
    Metrics,
    Policy,
    PyTree,
    Task,
    Transition,
    Views,
    World,
    flatten,
    row_like,
)
from jaxmbrl.data import replay
from jaxmbrl.data.replay import Replay
from jaxmbrl.envs.base import vector_sizes
from jaxmbrl.models.imagination import Trajectory, after, imagine


@dataclass(frozen=True)
class Config(DynamicsChoice, ModelBasedSettings):
    """Settings of a run of MVE."""

    agent: AgentConfig = field(default_factory=AgentConfig)
    """The policy learner."""
    horizon: Annotated[int, Ge(0)] = 3
    """Model steps n after the real step."""
    td_k: bool = True
    """Whether the critics also learn on the imagined states."""


class State(NamedTuple):
    """The whole state of a run."""

    agent: PyTree
    model: PyTree
    """`EnsembleState`, or the state of another model."""
    replay: Replay
    """Real transitions."""
    key: Key


def make(config: Config, task: Task, model: DynamicsModel | None = None) -> Algorithm:
    """MVE on `task`; `model` overrides the default ensemble."""
    agent = agents.make(config.agent, *vector_sizes(task, "mve"))
    model = model or shared.model_for(config, task)

    def init(key: Key, hyper: Hyper, data: Transition | None = None) -> State:
        shared.no_data(data, "mve")
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

        expanding = with_mve_target(agent, model.world(model_state), config.horizon, config.td_k)
        agent_state, updated = shared.update_agent(config, expanding, state.agent, clock, draw, update_key)
        return State(agent_state, model_state, real, key), fitted | updated

    def views(state: State) -> Views:
        return Views(
            replay=state.replay,
            model=shared.model_view(config, task, model, state.model),
            critic=shared.critic_view(agent, state.agent),
        )

    return Algorithm(init, policy, learn, period=1, views=views)


def with_mve_target(agent: ActorCritic, world: World, horizon: int, td_k: bool) -> ActorCritic:
    """`agent` with critics that learn the targets of `expand`."""

    def update_critic(state: PyTree, batch: Transition, key: Key) -> tuple[PyTree, Metrics, Float[Array, "B"]]:
        target_key, critic_key = jax.random.split(key)
        trajectory, targets = expand(agent, world, state, batch, target_key, horizon)
        if not td_k:
            return agent.update_critic(state, batch, critic_key, target=targets[0])
        rows, target, weight = td_k_batch(batch, trajectory, targets)
        state, found, error = agent.update_critic(state, rows, critic_key, target=target, weight=weight)
        # The first rows are the real transitions of the batch.
        own = error[: batch.reward.shape[0]]
        return state, found | {"expand/alive": Average.of(jnp.mean(trajectory.alive[-1]))}, own

    return with_updates(agent, critic=update_critic)


def expand(
    agent: ActorCritic, world: World, state: PyTree, batch: Transition, key: Key, horizon: int
) -> tuple[Trajectory, Float[Array, "T B"]]:
    """(the real and the imagined steps of each row, T = horizon + 1 in total; the target of each step on its own remaining
    horizon). The first target is T in the module's docstring."""
    value_key, imagine_key = jax.random.split(key)
    trajectory = after(
        batch, imagine(world, agent.policy_with_entropy(state), batch.next_observation, imagine_key, horizon)
    )
    last = agent.target_value(state, trajectory.next_observation[-1], value_key)
    # The value of (s, a) does not contain the entropy bonus of a itself.
    return trajectory, trajectory.n_step_returns(last, state.discount)[:-1] - trajectory.entropy_bonus


def td_k_batch(
    batch: Transition, trajectory: Trajectory, targets: Float[Array, "T B"]
) -> tuple[Transition, Float[Array, "R"], Float[Array, "R"]]:
    """(all steps as R = T B rows of one batch, their targets, the probability that each step is reached). Steps after
    termination may not be finite, so they are replaced by the real row with weight 0."""
    alive = trajectory.alive
    reached = alive > 0
    observation = jnp.where(reached[..., None], trajectory.observation, batch.observation)
    action = jnp.where(reached[..., None], trajectory.action, batch.action)
    steps = alive.shape[0]
    rows = jax.tree.map(lambda x: jnp.tile(x, (steps, *[1] * (x.ndim - 1))), batch)
    rows = rows._replace(
        observation=observation.reshape(-1, observation.shape[-1]), action=action.reshape(-1, action.shape[-1])
    )
    return rows, jnp.where(reached, targets, 0.0).reshape(-1), alive.reshape(-1)


METHOD = Method(
    make,
    Config,
    family="value_expansion",
    paper="1803.00101",
    summary="soft actor-critic or TD3 with critic targets expanded some steps through a probabilistic ensemble",
    tiny={
        **TINY_RUN,
        **TINY_ENSEMBLE,
        "agent.sac.hidden": (16, 16),
        "refit_every": 50,
        "horizon": 2,
        "learn_termination": True,
    },
    goals=(Goal("mve-pendulum", "pendulum", 5000, -200.0, about="small preset"),),
)
