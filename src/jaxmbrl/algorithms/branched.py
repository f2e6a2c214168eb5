"""Batches that are partly imagined, as MBPO's (Janner et al., arXiv 1906.08253, algorithm 2): after each fit branches of k
steps begin at `rollout_rows` real states, under the policy, and are stored in a buffer of their own; a share `real_ratio`
of a batch is real and the rest imagined. While nothing is imagined, batches are real.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge, Le
from jaxtyping import Array, Float, Int

from jaxmbrl.agents.actor_critic.sac import SACConfig
from jaxmbrl.algorithms.model_based import ModelBasedConfig, Supply
from jaxmbrl.core.config import Traced
from jaxmbrl.core.types import DynamicsModel, Hyper, Key, Metrics, Policy, PyTree, Task, Transition, row_like
from jaxmbrl.data import replay
from jaxmbrl.data.replay import Replay
from jaxmbrl.models import branching
from jaxmbrl.models import disagreement as trust
from jaxmbrl.models.branching import Imagined
from jaxmbrl.models.disagreement import TrustConfig


@dataclass(frozen=True)
class RolloutLength:
    """Steps k of a branch: `first`, then growing linearly between two environment steps, then `last`; rounded down.

    >>> from jaxmbrl.algorithms.branched import RolloutLength
    >>> hopper = RolloutLength(first=1, last=15, begins=20_000, ends=150_000)
    >>> [int(hopper.at(steps)) for steps in (0, 20_000, 85_000, 150_000)]
    [1, 1, 8, 15]
    """

    first: Annotated[int, Ge(1)] = 1
    """Length at the start."""
    last: Annotated[int, Ge(1)] = 1
    """Length at the end, at least `first`."""
    begins: Annotated[int, Ge(0)] = 20_000
    """Environment steps after the warm-up at which it begins to grow."""
    ends: Annotated[int, Ge(1)] = 150_000
    """Environment steps after the warm-up at which it is `last`."""

    def problem(self) -> tuple[str, str] | None:
        """A rule between fields that is broken."""
        if self.last < self.first:
            return "last", f"must be at least first ({self.first}), got {self.last}"
        if self.ends <= self.begins:
            return "ends", f"must be above begins ({self.begins}), got {self.ends}"
        return None

    def at(self, steps: Int[Array, ""] | int) -> Int[Array, ""]:
        """k after `steps` environment steps, the warm-up not counted (arXiv 1906.08253, appendix C)."""
        grown = jnp.clip(steps - self.begins, 0, self.ends - self.begins)
        return self.first + (grown * (self.last - self.first)) // (self.ends - self.begins)


@dataclass(frozen=True)
class BranchedConfig(ModelBasedConfig):
    """Settings of methods whose batches are partly imagined, by branches from real states."""

    agent: SACConfig = field(default_factory=SACConfig)
    """The policy learner."""
    rollout_length: RolloutLength = field(default_factory=RolloutLength)
    """Steps of an imagined branch."""
    trust: TrustConfig = field(default_factory=TrustConfig)
    """Which imagined rows are kept."""
    rollout_rows: Annotated[int, Ge(1)] = 100_000
    """Real states from which branches begin after each fit."""
    retain_steps: Annotated[int, Ge(1)] = 1000
    """Environment steps for which imagined rows are kept, at least those of the last fit."""
    real_ratio: Annotated[float, Ge(0), Le(1), Traced] = 0.05
    """Share of real transitions in a batch, rounded down to whole rows."""

    def problem(self) -> tuple[str, str] | None:
        """A rule between fields that is broken."""
        if self.trust.rule != "always" and not (self.ensemble.probabilistic and self.ensemble.members > 1):
            return "trust.rule", f"must be always unless several probabilistic members disagree, got {self.trust.rule}"
        return super().problem()

    @property
    def imagined_capacity(self) -> int:
        """Rows that the imagined buffer can hold when k is at its largest."""
        return self.rows_kept * self.rollout_length.last

    @property
    def rows_kept(self) -> int:
        """Rows that the imagined buffer holds for each step of a branch."""
        return self.rollout_rows * self.rounds_kept

    @property
    def rounds_kept(self) -> int:
        """Fits whose imagined rows are kept."""
        return max(1, self.retain_steps // self.refit_every)


class Branches(NamedTuple):
    """What a run holds of its branches."""

    imagined: Imagined
    """Their rows, and what the rule of trust remembers."""
    real_ratio: Float[Array, ""]


def supply(config: BranchedConfig, task: Task) -> Supply:
    """Batches of real and imagined transitions; what is held is `Branches`. `hyper` may hold `real_ratio`, traced."""
    rule = trust.make(config.trust)

    def init(hyper: Hyper) -> Branches:
        imagined = branching.init(row_like(task), config.imagined_capacity, config.rounds_kept, config.trust)
        return Branches(imagined, jnp.asarray(hyper.get("real_ratio", config.real_ratio), float))

    def refresh(
        held: Branches,
        model: DynamicsModel,
        model_state: PyTree,
        policy: Policy,
        real: Replay,
        steps: Int[Array, ""],
        key: Key,
    ) -> tuple[Branches, Metrics]:
        start_key, branch_key = jax.random.split(key)
        length = config.rollout_length.at(steps)
        imagined, found = branching.branch(
            model.world(model_state),
            branching.with_disagreement(policy, rule, model, model_state),
            rule,
            held.imagined._replace(buffer=replay.resize(held.imagined.buffer, config.rows_kept * length)),
            replay.sample(real, start_key, config.rollout_rows).observation,
            branch_key,
            length,
        )
        return held._replace(imagined=imagined), found

    def draw(held: Branches, real: Replay, key: Key) -> Transition:
        return replay.mixture(real, held.imagined.buffer, key, config.batch_size, held.real_ratio)

    return Supply(init, refresh, draw)
