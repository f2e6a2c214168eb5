"""MBPO: model-based policy optimisation (Janner et al., When to trust your model, arXiv 1906.08253, algorithm 2).

    the policy learner's own objective (SAC's), on transitions (s, a, r, s') that a learned model imagined:
    s from the real data or a branch of at most k steps begun there, a ~ pi(.|s), (s', r) ~ a member of the ensemble

    for each step of the environment:
        act by the stochastic policy (uniformly at random for the first `warmup_steps`), store the transition
        each `refit_every` steps: fit the ensemble to all real data; from `rollout_rows` real states imagine branches of k
            steps under the policy, each step by an elite drawn anew, and store them in a buffer of their own
        `updates_per_step` times: update the agent on a batch of which a share `real_ratio` is real and the rest imagined

k grows linearly in environment steps from `first` to `last` (`RolloutLength`), and with it the imagined buffer, so that
it holds the rows of the last `retain_steps` steps. Dyna (Sutton, 1990) is the case k = 1 throughout. The reward and its
noise are the model's; the termination is the task's where it knows it. Which imagined rows are kept may depend on how far
the members agree: MACURA and M2AC are rules of `models.trust`.

Differs from the paper: k grows within an epoch too, and steps count from the warm-up's end, as epochs do in its code; the
members of one imagined step are shared out to the start rows, which are drawn at random, by one random shift
(`models.ensemble`); rows in which a number is not finite are left out and counted; while nothing is imagined, batches are
real. MACURA's pink noise and its number of updates by the buffer's fill are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from jaxmbrl.algorithms import branched
from jaxmbrl.algorithms.branched import BranchedConfig
from jaxmbrl.algorithms.model_based import learner
from jaxmbrl.algorithms.registry import TINY_ENSEMBLE, TINY_RUN, Goal, Method
from jaxmbrl.core.types import Algorithm, DynamicsModel, Task


@dataclass(frozen=True)
class Config(BranchedConfig):
    """Settings of a run of MBPO."""

    updates_per_step: Annotated[int, Ge(1)] = 20
    """Updates of the agent for each environment step."""
    warmup_steps: Annotated[int, Ge(2)] = 5000
    """Environment steps of uniformly random actions, without updates, at the start."""


def make(config: Config, task: Task, model: DynamicsModel | None = None) -> Algorithm:
    """MBPO on `task`; `model` stands for the ensemble where it is given. The agent learns as it does by itself: the model
    supplies its batches and does no more."""
    return learner(config, task, "mbpo", lambda agent, model, state: agent, model, branched.supply(config, task))


METHOD = Method(
    make,
    Config,
    family="dyna",
    paper="1906.08253",
    summary="soft actor-critic on short rollouts imagined by a probabilistic ensemble",
    tiny={
        **TINY_RUN,
        **TINY_ENSEMBLE,
        "agent.hidden": (16, 16),
        "refit_every": 50,
        "rollout_length.last": 3,
        "rollout_length.begins": 0,
        "rollout_length.ends": 100,
        "rollout_rows": 83,
        "retain_steps": 100,
        "updates_per_step": 2,
    },
    goals=(
        Goal("mbpo-pendulum", "pendulum", 2000, -170.0, about="small preset, reward learned"),
        Goal(
            "mbpo-pendulum-bfloat16",
            "pendulum",
            2000,
            -170.0,
            settings={"ensemble.precision": "bfloat16", "agent.precision": "bfloat16"},
            about="small preset, reward learned, products in bfloat16",
        ),
        Goal("mbpo-inverted-pendulum", "InvertedPendulum-v5", 4000, 1000.0, episodes=10, about="the paper's preset"),
        Goal(
            "mbpo-inverted-pendulum-bfloat16",
            "InvertedPendulum-v5",
            4000,
            1000.0,
            episodes=10,
            settings={"ensemble.precision": "bfloat16", "agent.precision": "bfloat16"},
            about="the paper's preset, products in bfloat16",
        ),
        # Within these steps neither buffer is ever full, and imagined rollouts have one step.
        Goal(
            "mbpo-hopper",
            "Hopper-v5",
            15_000,
            300.0,
            episodes=10,
            settings={"rollout_length.last": 1, "replay_capacity": 25_000},
            about="the paper's preset, a beginning",
        ),
    ),
)
