"""Building blocks of methods: groups of settings, the schedule of model fits, and the updates of an actor-critic.

Functions that depend on the number of steps take the clock, which all seeds share. A counter in the state of each seed
would be batched over seeds, and so would every `lax.cond` and loop that depends on it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt, Le, Lt
from jaxtyping import Array, Bool, Float, Int

from jaxmbrl.agents import trust_region
from jaxmbrl.agents.actor_critic.sac import SACConfig
from jaxmbrl.agents.actor_critic.updates import Drawn, updates, updates_with_errors
from jaxmbrl.agents.exploration import no_extras, uniform, with_warmup
from jaxmbrl.agents.on_policy import OnPolicy, OnPolicyState
from jaxmbrl.agents.trust_region import TRPOConfig
from jaxmbrl.algorithms import schedules
from jaxmbrl.algorithms.schedules import Schedule, ScheduleConfig
from jaxmbrl.core import metrics
from jaxmbrl.core.config import Traced, UserError, traced
from jaxmbrl.core.keys import beside
from jaxmbrl.core.schedules import GrowingLength, linear
from jaxmbrl.core.types import (
    Action,
    ActorCritic,
    Average,
    Clock,
    CriticView,
    DynamicsModel,
    Hyper,
    Key,
    Learner,
    Metrics,
    ModelView,
    Policy,
    PyTree,
    Task,
    Transition,
    World,
    flatten,
    row_like,
)
from jaxmbrl.data import experience, replay, sequences
from jaxmbrl.data.augmentation import AugmentationSettings, augmented, check_images
from jaxmbrl.data.experience import Batch, Experience, ReplayConfig
from jaxmbrl.data.mixtures import mixture
from jaxmbrl.data.n_step import NStep
from jaxmbrl.data.replay import Replay
from jaxmbrl.data.sequences import Sequences
from jaxmbrl.envs.base import vectors_and_actions
from jaxmbrl.models import branching, ensemble, gaussian_process, imagination, score_matching
from jaxmbrl.models.branching import Imagined
from jaxmbrl.models.disagreement import Trust, TrustConfig
from jaxmbrl.models.ensemble import EnsembleConfig, Layout
from jaxmbrl.models.gaussian_process import GaussianProcessConfig
from jaxmbrl.models.score_matching import ScoreConfig


@dataclass(frozen=True)
class EpochSettings:
    """Settings of every method, which the training loop reads."""

    num_envs: Annotated[int, Ge(1)] = 1
    """Environments that each seed steps in parallel."""
    epoch_steps: Annotated[int, Ge(1)] = 1000
    """Environment steps between two rows of metrics."""
    eval_every: Annotated[int, Ge(0)] = 10
    """Epochs between two evaluations; 0 for none."""


@dataclass(frozen=True)
class LoopSettings(EpochSettings):
    """Settings of methods that begin with random actions."""

    warmup_steps: Annotated[int, Ge(0)] = 5000
    """Environment steps of uniformly random actions, without updates, at the start."""


@dataclass(frozen=True)
class OffPolicySettings(LoopSettings):
    """Settings of methods that update an actor-critic on batches from a replay buffer."""

    batch_size: Annotated[int, Ge(1)] = 256
    """Transitions in each update."""
    updates_per_step: Annotated[int, Ge(1)] = 1
    """Updates for each environment step: the replay ratio, or update-to-data ratio (UTD)."""
    actor_delay: Annotated[int, Ge(1)] = 1
    """Critic updates for each actor update. SAC's temperature and the targets of TD3 and DQN are updated with the actor."""
    replay_capacity: Annotated[int, Ge(1)] = 1_000_000
    """Transitions in the replay buffer; the oldest are overwritten first."""


class Windowed:
    """Settings of a method whose updates learn from windows of `sequence_length` rows: rules for several fields."""

    if TYPE_CHECKING:
        sequence_length: int
        replay_capacity: int
        num_envs: int
        warmup_steps: int

    def problem(self) -> tuple[str, str] | None:
        """(field, message) if windows do not fit into a sequence buffer or its first rows, whenever episodes end."""
        length, capacity = self.sequence_length, self.replay_capacity // self.num_envs
        if self.warmup_steps < length * self.num_envs:
            fill = f"so that each of {self.num_envs} environments has a window of {length}"
            return "warmup_steps", f"must be at least {length * self.num_envs}, {fill}, got {self.warmup_steps}"
        columns = sequences.columns_for(length)
        if capacity < columns:
            why = f"so that windows of {length} rows are whole even if episodes are short"
            return "replay_capacity", f"must be at least {columns * self.num_envs}, {why}, got {self.replay_capacity}"
        return None

    def chains_rows(self) -> bool:
        """True: the rows of a window follow one another."""
        return True


@dataclass(frozen=True)
class ReplaySettings(OffPolicySettings, AugmentationSettings):
    """Settings of methods that learn from collected rows and demonstrations (`data.experience`)."""

    n_step: Annotated[int, Ge(1)] = 1
    """Steps of the target's return before it bootstraps. It ends earlier with the episode, and bootstraps at a time
    limit."""
    one_step_weight: Annotated[float, Ge(0)] = 0.0
    """Weight of the loss with the one-step target, which is added to that with n steps if `n_step` is above 1 (DQfD,
    DDPGfD)."""
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    """How rows are sampled: uniformly or by priority."""
    demonstration_share: Annotated[float, Ge(0), Lt(1)] = 0.5
    """Share of demonstrations in a batch, rounded down to whole rows, unless `replay.demonstrations` is priorities. It has
    no effect without `--demonstrations`."""

    def problem(self) -> tuple[str, str] | None:
        """(field, message) of the first violated rule that involves several fields, or None."""
        if self.replay.demonstrations == "priorities" and not self.replay.has_priorities:
            return "replay.demonstrations", "must be share unless replay.kind is prioritized and replay.alpha above 0"
        return None

    def chains_rows(self) -> bool:
        """Whether a target has several steps."""
        return self.n_step > 1

    @property
    def share(self) -> float | None:
        """The share of demonstrations in a batch; None for as many as their priorities ask for."""
        return None if self.replay.demonstrations == "priorities" else self.demonstration_share


@dataclass(frozen=True)
class OnPolicySettings(EpochSettings):
    """Settings of methods that learn from the trajectories of their current policy."""

    num_envs: Annotated[int, Ge(1)] = 8
    """Environments that each seed steps in parallel."""
    collect_steps: Annotated[int, Ge(1)] = 250
    """T: steps of each environment between two updates. Episodes continue across updates."""
    epoch_steps: Annotated[int, Ge(1)] = 2000
    """Environment steps between two rows of metrics."""
    eval_every: Annotated[int, Ge(0)] = 5
    """Epochs between two evaluations; 0 for none."""


@dataclass(frozen=True)
class AnnealedSettings(OnPolicySettings):
    """The same with a learning rate that may fall."""

    anneal_steps: Annotated[int, Ge(1)] | None = None
    """Environment steps within which the learning rate falls linearly to 0; None for a constant one."""

    def learning_scale(self, clock: Clock) -> Float[Array, ""] | float:
        """The factor of the learning rate in the update that `clock` has counted the steps of."""
        if self.anneal_steps is None:
            return 1.0
        return linear(1.0, 0.0, self.anneal_steps, clock.env_steps - self.num_envs * self.collect_steps)


@dataclass(frozen=True)
class ImaginedTRPOSettings(OnPolicySettings):
    """Settings of methods that improve a policy by TRPO on trajectories of a learned model."""

    agent: TRPOConfig = field(default_factory=lambda: TRPOConfig(normalize_observations=False, normalize_rewards=False))
    """Policy and value function. Nothing is normalised by statistics of real trajectories."""
    replay_capacity: Annotated[int, Ge(2)] = 1_000_000
    """Real transitions in the replay buffer; the oldest are overwritten first."""
    num_envs: Annotated[int, Ge(1)] = 1
    """Environments that each seed steps in parallel."""
    imagined_rows: Annotated[int, Ge(1)] = 50
    """Imagined trajectories of each update."""
    imagined_steps: Annotated[int, Ge(1)] = 100
    """Steps of an imagined trajectory."""

    def problem(self) -> tuple[str, str] | None:
        """(field, message) of the first violated rule that involves several fields, or None."""
        for name in ("normalize_observations", "normalize_rewards"):
            if getattr(self.agent, name):
                return f"agent.{name}", "must be false: the policy learns from imagined trajectories"
        return None


@dataclass(frozen=True)
class TabularSettings(EpochSettings):
    """Settings of methods that learn tables, or features of which each state has few."""

    learning_rate: Annotated[float, Gt(0), Le(1), Traced] = 0.1
    """Step size alpha of an update; 1 where the task is deterministic replaces the old value."""
    discount: Annotated[float, Ge(0), Le(1), Traced] = 0.95
    """Discount factor gamma."""
    epsilon: Annotated[float, Ge(0), Le(1), Traced] = 0.1
    """Probability of a uniformly random action while collecting."""
    epoch_steps: Annotated[int, Ge(1)] = 100
    """Environment steps between two rows of metrics."""
    eval_every: Annotated[int, Ge(0)] = 5
    """Epochs between two evaluations; 0 for none."""


def traced_values(config: Any, hyper: Hyper) -> dict[str, Float[Array, ""]]:
    """The numbers marked `Traced` in a config: those in `hyper`, the others from the config."""
    names = traced(type(config))
    return {name: jnp.asarray(hyper.get(name, getattr(config, name)), float) for name in names}


@dataclass(frozen=True)
class ModelChoice:
    """Settings of methods that use a learned model or, instead, the true simulator."""

    model: Literal["learned", "true"] = "learned"
    """The model: the learned ensemble, or the true simulator started from its own state, which shows what the method
    achieves with an exact model."""

    def uses_true_model(self) -> bool:
        """Whether the model is the true simulator."""
        return self.model == "true"

    def with_model(self, model: Any) -> ModelChoice:
        """The same settings with another model."""
        return replace(self, model=model)


@dataclass(frozen=True)
class DynamicsChoice:
    """Settings of methods that may use any dynamics model."""

    dynamics: Literal["ensemble", "gp", "score"] = "ensemble"
    """The learned dynamics model: the ensemble of networks, whose `kind` may make it Bayesian, Gaussian processes, which
    need `--x64`, or a network that is fitted by score matching."""
    gp: GaussianProcessConfig = field(default_factory=GaussianProcessConfig)
    """The settings of Gaussian processes."""
    score: ScoreConfig = field(default_factory=ScoreConfig)
    """The settings of the score-matching model."""


@runtime_checkable
class UnknownToTheModel(Protocol):
    """Settings that determine which parts of a task a dynamics model learns."""

    @property
    def ensemble(self) -> EnsembleConfig:
        """The dynamics model."""

    @property
    def learn_reward(self) -> bool:
        """Learn the reward even if the task provides it."""

    @property
    def learn_termination(self) -> bool:
        """Learn the termination even if the task provides it."""


@dataclass(frozen=True)
class ModelBasedSettings(OffPolicySettings):
    """Settings of methods with a dynamics model and an actor-critic."""

    ensemble: EnsembleConfig = field(default_factory=EnsembleConfig)
    """The dynamics model."""
    refit_every: Annotated[int, Ge(1)] = 250
    """Environment steps between two fits of the model."""
    learn_reward: bool = True
    """Learn the reward even if the task provides it."""
    learn_termination: bool = False
    """Learn the termination even if the task provides it."""
    replay_capacity: Annotated[int, Ge(2)] = 1_000_000
    """Real transitions in the replay buffer; the oldest are overwritten first."""
    warmup_steps: Annotated[int, Ge(2)] = 1000
    """Environment steps of uniformly random actions, without updates, at the start."""
    eval_every: Annotated[int, Ge(0)] = 5
    """Epochs between two evaluations; 0 for none."""

    def problem(self) -> tuple[str, str] | None:
        """(field, message) of the first violated rule that involves several fields, or None."""
        for name in ("refit_every", "warmup_steps"):
            if getattr(self, name) % self.num_envs:
                return name, f"must be a multiple of num_envs ({self.num_envs}), got {getattr(self, name)}"
        return no_moment_matching(self.ensemble)


@dataclass(frozen=True)
class RolloutLength(GrowingLength):
    """Schedule of the branch length k: `first` until `begins`, then linear, and `last` from `ends` on; rounded down
    (arXiv 1906.08253, appendix C).

    >>> from jaxmbrl.algorithms.shared import RolloutLength
    >>> hopper = RolloutLength(first=1, last=15, begins=20_000, ends=150_000)
    >>> [int(hopper.at(steps)) for steps in (0, 20_000, 85_000, 150_000)]
    [1, 1, 8, 15]
    """

    first: Annotated[int, Ge(1)] = 1
    """Length at the start."""
    last: Annotated[int, Ge(1)] = 1
    """Length at the end, at least `first`."""
    begins: Annotated[int, Ge(0)] = 20_000
    """Environment steps after the warm-up at which the length begins to grow."""
    ends: Annotated[int, Ge(1)] = 150_000
    """Environment steps after the warm-up at which the length reaches `last`."""


@dataclass(frozen=True)
class BranchedSettings(ModelBasedSettings):
    """Settings of methods that learn on branches: short imagined trajectories from real states (MBPO, arXiv 1906.08253)."""

    agent: SACConfig = field(default_factory=SACConfig)
    """The policy learner."""
    rollout_length: RolloutLength = field(default_factory=RolloutLength)
    """Steps of an imagined branch."""
    trust: TrustConfig = field(default_factory=TrustConfig)
    """The rule that filters imagined rows."""
    rollout_rows: Annotated[int, Ge(1)] = 100_000
    """Branches that are started from real states after each fit."""
    retain_steps: Annotated[int, Ge(1)] = 1000
    """Environment steps for which imagined rows are kept. The rows of the last fit are always kept."""
    real_ratio: Annotated[float, Ge(0), Le(1), Traced] = 0.05
    """Share of real transitions in a batch, rounded down to whole rows."""

    def problem(self) -> tuple[str, str] | None:
        """(field, message) of the first violated rule that involves several fields, or None."""
        alone = isinstance(self, DynamicsChoice) and self.dynamics != "ensemble"
        if self.trust.rule != "always" and (alone or not (self.ensemble.probabilistic and self.ensemble.members > 1)):
            return "trust.rule", f"must be always unless there are several probabilistic members, got {self.trust.rule}"
        return super().problem()

    @property
    def imagined_capacity(self) -> int:
        """Capacity of the imagined buffer at the largest k, in rows."""
        return self.rows_kept * self.longest

    @property
    def longest(self) -> int:
        """The largest k."""
        return self.rollout_length.last

    @property
    def rows_kept(self) -> int:
        """Rows that the imagined buffer stores for each step of a branch."""
        return self.rollout_rows * self.rounds_kept

    @property
    def rounds_kept(self) -> int:
        """Number of fits whose imagined rows are kept."""
        return max(1, self.retain_steps // self.refit_every)


@dataclass(frozen=True)
class DynaSettings(BranchedSettings):
    """The same with the updates and the warm-up of MBPO."""

    updates_per_step: Annotated[int, Ge(1)] = 20
    """Agent updates for each environment step: the replay ratio (UTD)."""
    warmup_steps: Annotated[int, Ge(2)] = 5000
    """Environment steps of uniformly random actions, without updates of the agent, at the start."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """Hyperparameters that change during the run; `--schedule FILE` reads them from a file."""

    def problem(self) -> tuple[str, str] | None:
        """(field, message) of the first violated rule that involves several fields, or None."""
        if self.schedule.updates_per_step and self.actor_delay > 1:
            return "schedule.updates_per_step", f"must be empty with an actor_delay above 1, got {self.actor_delay}"
        return self.schedule.misfit(self.refit_every) or super().problem()

    @property
    def longest(self) -> int:
        """The largest k."""
        return max(self.schedule.rollout_length, default=self.rollout_length.last)


class Current(NamedTuple):
    """The hyperparameters of one call of `learn`."""

    real_ratio: Float[Array, ""]
    fits: Bool[Array, ""] | bool
    """Whether the model is fitted if branches are imagined in this call."""
    updates_per_step: Int[Array, ""] | int
    rollout_length: Int[Array, ""]


def schedule_of(config: DynaSettings) -> Schedule | tuple[()]:
    """The schedule of the settings as arrays; `()` if nothing is scheduled."""
    return schedules.arrays(config.schedule, config.refit_every)


def current(config: DynaSettings, clock: Clock, real_ratio: Float[Array, ""]) -> tuple[Current, Metrics]:
    """The hyperparameters at the clock's step, and those that are scheduled as metrics. They are those of the clock's
    schedule, or else of the settings, and without a schedule the settings themselves and `real_ratio`."""
    schedule = clock.schedule if isinstance(clock.schedule, Schedule) else schedule_of(config)
    steps = steps_after_warmup(config, clock)
    plain = Current(real_ratio, True, config.updates_per_step, config.rollout_length.at(steps))
    if not isinstance(schedule, Schedule):
        return plain, {}
    values = {name: schedule.value(name, steps) for name in ("real_ratio", "updates_per_step", "rollout_length")}
    values = {name: value for name, value in values.items() if value is not None}
    found = {f"schedule/{name}": Average.of(value) for name, value in values.items()}
    return plain._replace(fits=schedule.fits(steps), **values), found


def first_real_ratio(config: DynaSettings, hyper: Hyper) -> Float[Array, ""]:
    """The `real_ratio` of a seed, from `hyper` or the settings. Raises UserError for one in `hyper` that is scheduled."""
    if config.schedule.real_ratio and "real_ratio" in hyper:
        raise UserError("hyper 'real_ratio' has no effect beside schedule.real_ratio: leave one of them out")
    return jnp.asarray(hyper.get("real_ratio", config.real_ratio), float)


def fit_when(
    fits: Bool[Array, ""] | bool, fit: Callable[[PyTree], tuple[PyTree, Metrics]], state: PyTree
) -> tuple[PyTree, Metrics]:
    """`fit(state)` if `fits`, which must not be batched over seeds, else the state."""
    return fit(state) if fits is True else metrics.cond_update(jnp.asarray(fits), fit, state)


def no_moment_matching(config: EnsembleConfig) -> tuple[str, str] | None:
    """(field, message) if the propagation is moment matching, which is wrong for a batch of different states; else None."""
    if config.propagation == "moment_matching":
        return "ensemble.propagation", "must not be moment_matching: the rows of a batch are not one belief"
    return None


def all_members(config: EnsembleConfig) -> tuple[str, str] | None:
    """(field, message) if some members are not elites, for methods that use all of them; else None."""
    if config.elites != config.members:
        message = f"must be ensemble.members ({config.members}), because all members are used, got {config.elites}"
        return "ensemble.elites", message
    return None


def collector(
    policy: Policy, task: Task, config: Any, clock: Clock, extras: Callable[[Action], PyTree] = no_extras
) -> Policy:
    """The policy that collects data: uniformly random actions with extras `extras(action)` in the first
    `config.warmup_steps`, then `policy`."""
    return with_warmup(policy, uniform(task.action, extras), clock.env_steps < config.warmup_steps)


def no_search(action: Action) -> PyTree:
    """The statistics of a plan (`planning.Planner`) for an action that was not planned."""
    return {"nonfinite": jnp.zeros((), jnp.int32)}


def new_replay(row: Transition, capacity: int, data: Transition | None = None) -> Replay:
    """A buffer for rows like `row`, filled with `data` [N, ...] if given."""
    buffer = replay.init(row, capacity)
    return buffer if data is None else replay.add(buffer, data)


def new_sequences(config: Any, task: Task, data: Transition | None) -> Sequences:
    """A sequence buffer of `config.replay_capacity` rows, filled with `data` [N, ...] if given. The buffer stores no
    successors: where that of a row is not the next row's observation, the episode ends. Raises UserError for data with
    several environments."""
    buffer = sequences.init(row_like(task), config.num_envs, config.replay_capacity // config.num_envs)
    if data is None:
        return buffer
    if config.num_envs > 1:
        raise UserError("num_envs must be 1 with initial transitions, whose rows are those of one environment")
    # The first step of the run does not continue the last row of the data.
    return sequences.add(buffer, jax.tree.map(lambda x: x[:, None], experience.with_seams(data))).interrupted(1)


def no_data(data: Transition | None, method: str, on_policy: bool = False) -> None:
    """Raise UserError if initial data are given. The clock does not count them, and these methods derive the buffer's size
    from the clock. A method that is `on_policy` has no buffer, and cannot be trained from a file either."""
    if data is not None:
        instead = (
            "it learns from transitions of its own policy" if on_policy else "--data FILE trains it from a file instead"
        )
        raise UserError(f"{method} does not accept initial transitions or demonstrations; {instead}")


def rows_to_fit(buffer: Replay, clock: Clock, capacity: int) -> Replay:
    """`buffer` of `capacity` rows with a size computed from the clock. All seeds share this size, whereas `buffer.size` is
    batched over seeds."""
    return replay.with_size(buffer, jnp.minimum(clock.env_steps, capacity))


def refit_due(config: ModelBasedSettings, clock: Clock) -> Bool[Array, ""]:
    """Whether the model is fitted in this call: every `refit_every` steps after the warm-up."""
    steps = steps_after_warmup(config, clock)
    return (steps >= 0) & (steps % config.refit_every == 0)


def passes(clock: Clock, every: int, steps_per_call: int) -> Bool[Array, ""]:
    """Whether a multiple of `every` environment steps is reached in this call of `learn`, which counts `steps_per_call`."""
    return clock.env_steps // every > (clock.env_steps - steps_per_call) // every


def steps_after_warmup(config: Any, clock: Clock) -> Int[Array, ""]:
    """Environment steps since the warm-up ended; negative during it."""
    return clock.env_steps - config.warmup_steps


def update_agent(
    config: OffPolicySettings,
    agent: ActorCritic | Learner,
    state: PyTree,
    clock: Clock,
    draw: Callable[[Key], Any],
    key: Key,
    period: int = 1,
    updates_per_step: Int[Array, ""] | int | None = None,
) -> tuple[PyTree, Metrics]:
    """The updates of one call of `learn`, on batches sampled by `draw(key)`; none during the warm-up. An actor-critic, or
    with an `actor_delay` of 1 any other learner.

    There are `updates_per_step` updates, by default those of the settings, for each environment, once in the `period` steps
    of a call. Every `actor_delay`-th of all updates also updates the actor; above 1 it needs a constant number of updates.
    """

    def update(state: PyTree, number: Int[Array, ""] | int, before: Int[Array, ""]) -> tuple[PyTree, Metrics]:
        return updates(agent, state, draw, key, number, config.actor_delay, before)

    return _when_due(config, clock, period, update, state, updates_per_step)


def _when_due(
    config: OffPolicySettings,
    clock: Clock,
    period: int,
    update: Callable[[PyTree, Any, Int[Array, ""]], tuple[PyTree, Metrics]],
    state: PyTree,
    updates_per_step: Int[Array, ""] | int | None = None,
) -> tuple[PyTree, Metrics]:
    """`update(state, number of updates, number of earlier ones modulo the actor's delay)`, unless during the warm-up."""
    of_one = config.updates_per_step if updates_per_step is None else updates_per_step
    number, steps = of_one * config.num_envs, period * config.num_envs
    # The first call of `learn` that updates is the first one at this number of environment steps or later.
    first = max(config.warmup_steps, steps)

    def due(state: PyTree) -> tuple[PyTree, Metrics]:
        calls = (clock.env_steps - first) // steps
        return update(state, number, calls % config.actor_delay * number)

    return metrics.cond_update(clock.env_steps >= config.warmup_steps, due, state)


def new_experience(config: ReplaySettings, task: Task, demonstrations: Transition | None) -> Experience:
    """Experience with demonstrations, if there are some, and room for collected rows. Raises UserError if its rows cannot
    be augmented as the settings ask."""
    check_images(config, task.observation)
    return experience.init(row_like(task), config.replay_capacity, config.replay, demonstrations, config.num_envs)


def learn_from_experience(
    config: ReplaySettings,
    agent: ActorCritic,
    state: PyTree,
    held: Experience,
    clock: Clock,
    transitions: Transition,
    key: Key,
    given: Callable[[Batch], dict[str, Array]] = lambda batch: {},
) -> tuple[PyTree, Experience, Metrics]:
    """Store the transitions [period, num_envs] of one call of `learn`, and update the agent on batches of experience as
    `update_agent` does. Images are augmented as the settings ask. Priorities are written after each update. Returns
    (agent's state, experience, metrics).

    The agent's state has the field `discount`. `given(batch)` are arguments [B] of the critics' update besides `weight`.
    """
    held, period = experience.add(held, flatten(transitions)), transitions.reward.shape[0]
    weighting = config.replay
    beta = linear(weighting.beta, weighting.beta_last, weighting.beta_steps, clock.env_steps)

    def draw(priorities: PyTree, key: Key) -> Drawn:
        source = experience.with_rows(held, priorities)
        batch = experience.sample(source, key, config.batch_size, config.share, beta)

        def rows_of(n: int) -> Any:
            return experience.rows_at(source, batch, n, state.discount, config.num_envs, config.share)

        rows, arguments = rows_of(config.n_step), given(batch)
        if batch.weight is not None:
            arguments |= {"weight": batch.weight}
        if config.n_step > 1 and config.one_step_weight > 0:
            rows, arguments = with_one_step(rows, rows_of(1), arguments, state.discount, config.one_step_weight)
        rows = augmented(config, rows, beside(key))
        found = {} if batch.weight is None else {"replay/weight": Average.of(jnp.mean(batch.weight))}
        if held.demonstrations is not None:
            found["replay/demonstrations"] = Average.of(jnp.mean(batch.is_demonstration, dtype=float))
        return Drawn(rows, arguments, batch, found)

    def settle(priorities: PyTree, batch: Batch, error: Float[Array, "B"]) -> PyTree:
        errors = error[: config.batch_size]
        return experience.without_rows(experience.settle(experience.with_rows(held, priorities), batch, errors))

    def update(loop: tuple[PyTree, PyTree], number: int, before: Int[Array, ""]) -> tuple[tuple[PyTree, PyTree], Metrics]:
        return updates_with_errors(agent, *loop, draw, settle, key, number, config.actor_delay, before)

    # The rows do not change, so they are not part of what the updates pass on.
    first = state, experience.without_rows(held)
    (state, priorities), found = _when_due(config, clock, period, update, first)
    return state, experience.with_rows(held, priorities), found


def with_one_step(
    rows: NStep, one_step: Transition, arguments: dict[str, Array], discount: Float[Array, ""], weight: float
) -> tuple[NStep, dict[str, Array]]:
    """A batch [2 B] whose mean loss is that of `rows` [B] plus `weight` times that of `one_step` [B]: (rows of both,
    further arguments of the critics' update). `arguments` [B] belong to `rows`; all but `weight` are 0 for the others."""
    ones = jnp.ones(rows.reward.shape)
    both = jax.tree.map(lambda *x: jnp.concatenate(x), rows, NStep(*one_step, discount=discount * ones))
    share = {name: weight if name == "weight" else 0.0 for name in arguments} | {"weight": weight}
    given = {"weight": ones} | arguments
    return both, {name: 2 * jnp.concatenate([x, share[name] * x]) for name, x in given.items()}


def mixed_batches(
    config: BranchedSettings, real_ratio: Float[Array, ""], real: Replay, imagined: Imagined
) -> Callable[[Key], Transition]:
    """key -> a batch with a share `real_ratio` of rows of `real`; the rest is imagined."""

    def draw(key: Key) -> Transition:
        return mixture([real, imagined.buffer], [real_ratio, 1 - real_ratio], key, config.batch_size)

    return draw


def branch_from_replay(
    config: BranchedSettings,
    rule: Trust,
    world: World,
    policy: Policy,
    real: Replay,
    imagined: Imagined,
    length: Int[Array, ""],
    key: Key,
) -> tuple[Imagined, Metrics]:
    """Imagine branches of `length` steps from `rollout_rows` states of the buffer `real`, and store the rows that `rule`
    keeps. The capacity of the imagined buffer grows with the length."""
    start_key, branch_key = jax.random.split(key)
    buffer = replay.resize(imagined.buffer, config.rows_kept * length)
    origin = replay.sample(real, start_key, config.rollout_rows).observation
    return branching.branch(world, policy, rule, imagined._replace(buffer=buffer), origin, branch_key, length)


def improve_in_model(
    config: ImaginedTRPOSettings,
    agent: OnPolicy,
    state: OnPolicyState,
    world: World,
    real: Replay,
    key: Key,
    entropy_weight: Float[Array, ""] | None = None,
) -> tuple[OnPolicyState, Metrics]:
    """TRPO's update on trajectories of a learned `world`, imagined by the stochastic policy from states of the buffer
    `real`."""
    start_key, rollout_key, update_key = jax.random.split(key, 3)
    origin = replay.sample(real, start_key, config.imagined_rows).observation
    rows, weight = imagination.collect(world, agent.policy(state, True), origin, rollout_key, config.imagined_steps)
    state, found = trust_region.update(agent, config.agent, state, rows, update_key, weight, entropy_weight)
    earned = jnp.mean(jnp.sum(jnp.where(weight > 0, rows.reward, 0.0), axis=0))
    return state, found | {"policy/imagined_return": Average.of(earned)}


def model_for(config: UnknownToTheModel, task: Task) -> DynamicsModel:
    """The dynamics model for `task` that the settings choose: an ensemble, Gaussian processes, or a score-matching model.
    It learns what `ensemble_for` says."""
    if isinstance(config, DynamicsChoice) and config.dynamics == "gp":
        return gaussian_process.make(config.gp, **_of_model(config, task))
    if isinstance(config, DynamicsChoice) and config.dynamics == "score":
        return score_matching.make(config.score, **_of_model(config, task))
    return ensemble_for(config, task)


def ensemble_for(config: UnknownToTheModel, task: Task) -> DynamicsModel:
    """The ensemble for `task`. It learns the reward and the termination that the task lacks or that the settings name."""
    return ensemble.make(config.ensemble, **_of_model(config, task))


def layout_for(config: UnknownToTheModel, task: Task) -> Layout:
    """The inputs and outputs of the networks of that ensemble."""
    return ensemble.layout_of(config.ensemble, **_of_model(config, task))


def _of_model(config: UnknownToTheModel, task: Task) -> dict[str, Any]:
    observation, action = vectors_and_actions(task, "a dynamics model")
    return {
        "observation": observation,
        "action": action,
        "reward": known_reward(config, task),
        "terminated": None if config.learn_termination else task.terminated,
        "features": task.features,
    }


def known_reward(config: UnknownToTheModel, task: Task) -> Callable[..., Any] | None:
    """The task's reward function, or None if the model learns the reward."""
    return None if config.learn_reward else task.reward


def model_view(config: UnknownToTheModel, task: Task, model: DynamicsModel, state: PyTree) -> ModelView:
    """The view of an ensemble or of a model that replaces it."""
    return ModelView(model, state, getattr(state, "fits", 1) > 0, known_reward(config, task))


def critic_view(agent: ActorCritic, state: PyTree) -> CriticView:
    """The view of an agent's critics."""
    return CriticView(
        policy=agent.policy_with_entropy(state),
        action_value=lambda observation, action, key: agent.action_value(state, observation, action, key),
        value=lambda observation, key: agent.target_value(state, observation, key),
        discount=state.discount,
    )
