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

from dataclasses import dataclass, replace
from typing import Annotated

from annotated_types import Ge

from jaxmbrl.agents.actor_critic.sac import SACConfig
from jaxmbrl.agents.actor_critic.value_gradients import ValueGradientConfig, with_value_gradient
from jaxmbrl.algorithms import branched
from jaxmbrl.algorithms.branched import BranchedConfig
from jaxmbrl.algorithms.model_based import learner
from jaxmbrl.algorithms.presets import Preset
from jaxmbrl.core.types import Agent, Algorithm, DynamicsModel, PyTree, Task
from jaxmbrl.models.ensemble import EnsembleConfig


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


_SMALL = Config(
    agent=SACConfig(hidden=(128, 128), learning_rate=1e-3),
    ensemble=EnsembleConfig(members=5, elites=3, hidden=(64, 64), batch_size=128, max_epochs=100),
    horizon=3,
    rollout_rows=2000,
    refit_every=100,
    batch_size=128,
    updates_per_step=5,
    replay_capacity=50_000,
    warmup_steps=200,
    epoch_steps=200,
)

PRESETS = {
    "small": Preset(
        _SMALL,
        "our own, sized for a CPU: 2 x 64 networks in the model, 3 model steps, 5 updates a step",
        steps=5000,
        tasks=("pendulum", "cartpole-continuous"),
    ),
    "small-fast-targets": Preset(
        replace(_SMALL, agent=replace(_SMALL.agent, polyak=0.02)),
        "our own: small, with target critics that follow four times as fast, for returns of many steps",
        steps=5000,
        tasks=("InvertedPendulum-v5",),
    ),
}
