"""Learning off policy from a replay buffer, as every model-free method here does it, whatever its agent.

for each environment step:
    store the transition; then, once `warmup_steps` are over, `updates_per_step` times:
        update the critics on a batch drawn from the buffer;
        at every `actor_delay`-th of all updates then the actor, on the same batch
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax
from annotated_types import Ge

from jaxmbrl.agents.actor_critic.updates import updates
from jaxmbrl.core import metrics
from jaxmbrl.core.types import (
    Agent,
    Algorithm,
    Clock,
    Hyper,
    Key,
    Metrics,
    Policy,
    PyTree,
    Task,
    Transition,
    flatten,
    row_like,
)
from jaxmbrl.data import replay
from jaxmbrl.data.replay import Replay


@dataclass(frozen=True)
class OffPolicyConfig:
    """Settings of a run; each method says what its agent's are."""

    agent: Any
    """The policy learner."""
    batch_size: Annotated[int, Ge(1)] = 256
    """Transitions in each update."""
    updates_per_step: Annotated[int, Ge(1)] = 1
    """Updates for each environment step."""
    actor_delay: Annotated[int, Ge(1)] = 1
    """Updates of the critics for each of the actor, and of what goes with it: SAC's temperature, TD3's targets."""
    replay_capacity: Annotated[int, Ge(1)] = 1_000_000
    """Transitions kept, the oldest giving way."""
    warmup_steps: Annotated[int, Ge(0)] = 5000
    """Environment steps of uniformly random actions, without updates, at the start."""
    num_envs: Annotated[int, Ge(1)] = 1
    """Environments that each seed steps side by side."""
    epoch_steps: Annotated[int, Ge(1)] = 1000
    """Environment steps between two rows of metrics."""
    eval_every: Annotated[int, Ge(0)] = 10
    """Epochs between two evaluations; 0 for none."""


class State(NamedTuple):
    """Everything that a run holds."""

    agent: PyTree
    replay: Replay
    key: Key


def learner(config: OffPolicyConfig, agent: Agent, task: Task) -> Algorithm:
    """What learns by `agent` on `task`."""

    def init(key: Key, hyper: Hyper) -> State:
        agent_key, key = jax.random.split(key)
        return State(agent.init(agent_key, hyper), replay.init(row_like(task), config.replay_capacity), key)

    def policy(state: State, explore: bool) -> Policy:
        return agent.policy(state.agent, explore)

    def learn(clock: Clock, state: State, transitions: Transition) -> tuple[State, Metrics]:
        key, update_key = jax.random.split(state.key)
        buffer = replay.add(state.replay, flatten(transitions))
        agent_state, found = improve(config, agent, clock, state.agent, draw_from(buffer), update_key)
        return State(agent_state, buffer, key), found

    def draw_from(buffer: Replay) -> Callable[[Key], Transition]:
        return lambda key: replay.sample(buffer, key, config.batch_size)

    return Algorithm(init, policy, learn, period=1)


def improve(
    config: OffPolicyConfig, agent: Agent, clock: Clock, state: PyTree, draw: Callable[[Key], Any], key: Key
) -> tuple[PyTree, Metrics]:
    """The updates of one call of `learn`, on batches that `draw(key)` makes; none before the warm-up is over."""
    number = config.updates_per_step * config.num_envs
    # Environment steps when updates begin; the call that reaches them is the first to update.
    first = max(config.warmup_steps, config.num_envs)

    def update(state: PyTree) -> tuple[PyTree, Metrics]:
        # By the clock, which all seeds share: a count of the agent's own would be batched over them.
        calls = (clock.env_steps - first) // config.num_envs
        before = calls % config.actor_delay * number
        return updates(agent, state, draw, key, number, config.actor_delay, before)

    return metrics.cond_update(clock.env_steps >= config.warmup_steps, update, state)
