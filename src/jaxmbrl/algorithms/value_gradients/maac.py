"""MAAC: model-augmented actor-critic (Clavera et al., arXiv 2005.08068).

The actor climbs what it earns over n model steps and from there on by the critics, through the model's derivatives:

    J = E[sum_{t<n} discount^t m_t r_t + discount^n m_n min Q(s_n, a_n)] - alpha log pi(a_0|s_0)

with a_t ~ pi reparameterised, each s_{t+1} drawn from a member of the ensemble that changes at every step, and m_t the
probability that no step before t ended the episode. Of all actions the first alone earns its entropy, where SVG counts
every one's. The critics learn plainly on real and imagined transitions, as MBPO's do, and the actor on the states of the
same batches. n = 0 is MBPO's actor, which is SAC's.

Differs from the paper's code: imagined transitions are branches of `rollout_length` steps and not single steps, the mask of
ends is the running product of all, and the critics' minimum is taken of their values at one action of the policy's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from jaxmbrl.agents.actor_critic.value_gradients import ValueGradientConfig, with_value_gradient
from jaxmbrl.algorithms import branched
from jaxmbrl.algorithms.branched import BranchedConfig
from jaxmbrl.algorithms.model_based import learner
from jaxmbrl.algorithms.registry import TINY_ENSEMBLE, TINY_RUN, Goal, Method
from jaxmbrl.core.types import Agent, Algorithm, DynamicsModel, PyTree, Task


@dataclass(frozen=True)
class Config(BranchedConfig):
    """Settings of a run of MAAC."""

    horizon: Annotated[int, Ge(0)] = 4
    """Model steps n that the actor looks ahead."""
    rematerialize: bool = False
    """Whether the actor's backward pass computes each model step again, and so holds the n states alone."""
    updates_per_step: Annotated[int, Ge(1)] = 8
    """Updates of the agent for each environment step."""
    warmup_steps: Annotated[int, Ge(2)] = 5000
    """Environment steps of uniformly random actions, without updates, at the start."""


def make(config: Config, task: Task, model: DynamicsModel | None = None) -> Algorithm:
    """MAAC on `task`; `model` stands for the ensemble where it is given."""
    ascent = ValueGradientConfig(config.horizon, entropy_at_every_step=False, rematerialize=config.rematerialize)

    def improve(agent: Agent, model: DynamicsModel, state: PyTree) -> Agent:
        return with_value_gradient(agent, model.world(state), ascent)

    return learner(config, task, "maac", improve, model, branched.supply(config, task))


METHOD = Method(
    make,
    Config,
    family="value_gradients",
    paper="2005.08068",
    summary="soft actor-critic whose actor ascends imagined n-step returns, differentiated through an ensemble",
    tiny={
        **TINY_RUN,
        **TINY_ENSEMBLE,
        "agent.hidden": (16, 16),
        "refit_every": 50,
        "horizon": 2,
        "rollout_rows": 83,
        "retain_steps": 100,
        "updates_per_step": 2,
        "rematerialize": True,
    },
    goals=(
        Goal("maac-pendulum", "pendulum", 5000, -200.0, about="small preset"),
        Goal("maac-inverted-pendulum", "InvertedPendulum-v5", 5000, 1000.0, episodes=10),
    ),
)
