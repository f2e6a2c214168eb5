"""What an off-policy learner samples its batches from: the rows that it collected and, kept apart, demonstrations.

Both are sampled uniformly, or by priority (`data.prioritized`), as rows of one step or of n (`data.n_step`).

Demonstrations are rows of any origin and quality, of the same task. They are never overwritten. A batch has a fixed share
of them (RLPD: Ball et al., arXiv 2302.02948), or as many as their priorities ask for, which can have a bonus (DQfD: Hester
et al., arXiv 1704.03732).

    batch = sample(experience, key, B)      slots, importance weights, which rows are demonstrations
    rows = rows_at(experience, batch)       these rows, or those of n steps that begin with them
    experience = settle(experience, batch, errors)      after an update: the new priorities

In a scan body, add before you sample. Without priorities, weights are None and `settle` changes nothing.

Images that are sampled uniformly are stored once, in a buffer of sequences (`data.sequences`); the rows of a batch are the
same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt, Le
from jaxtyping import Array, Bool, Float, Int

from jaxmbrl.core.schedules import rounded_down
from jaxmbrl.core.types import Key, PyTree, Transition
from jaxmbrl.data import n_step, prioritized, replay, sequences
from jaxmbrl.data.n_step import NStep
from jaxmbrl.data.prioritized import Prioritized
from jaxmbrl.data.replay import Replay
from jaxmbrl.data.sequences import Sequences

CLOSE, ROUNDING = 1e-3, 8.0
"""Two vectors are the same if they differ in no column by more than this share of a usual change in a step and this many
units in the last place of its largest value."""


@dataclass(frozen=True)
class ReplayConfig:
    """How rows are sampled from the replay buffer. Settings of priorities have no effect with `uniform`."""

    kind: Literal["uniform", "prioritized"] = "uniform"
    """Uniform sampling, or prioritised experience replay by absolute TD error."""
    alpha: Annotated[float, Ge(0), Le(1)] = 0.6
    """Exponent of the priorities; with 0, sampling is uniform."""
    beta: Annotated[float, Ge(0), Le(1)] = 0.4
    """Exponent of the importance weights at the start; 1 corrects fully for the priorities."""
    beta_last: Annotated[float, Ge(0), Le(1)] = 1.0
    """The same from `beta_steps` on."""
    beta_steps: Annotated[int, Ge(1)] = 100_000
    """Environment steps in which it changes from `beta` to `beta_last`, linearly."""
    epsilon: Annotated[float, Gt(0)] = 1e-6
    """Added to each absolute error, so that every row can be sampled."""
    demonstrations: Literal["share", "priorities"] = "share"
    """Whether a batch has a fixed share of demonstrations, or as many as their priorities ask for (DQfD)."""
    demonstration_bonus: Annotated[float, Ge(0)] = 0.0
    """Added to it as well for demonstrations."""

    @property
    def has_priorities(self) -> bool:
        """Whether sampling depends on priorities."""
        return self.kind == "prioritized" and self.alpha > 0


class Experience(NamedTuple):
    """Collected rows and demonstrations."""

    own: Replay | Prioritized | Sequences
    """Rows that the learner collected; the oldest are overwritten first."""
    demonstrations: Replay | Prioritized | None
    """Rows like these, in the order in which they were recorded; None if there are none."""

    def interrupted(self, num_envs: int) -> Experience:
        """The same where the rows added next do not continue the newest ones. Demonstrations are complete as they are."""
        return self._replace(own=self.own.interrupted(num_envs))


class Batch(NamedTuple):
    """Which rows were sampled."""

    slots: Int[Array, "B"]
    weight: Float[Array, "B"] | None
    """Importance weights in (0, 1]; None with uniform sampling."""
    is_demonstration: Bool[Array, "B"]
    """False for a slot of `Experience.own`, true for one of `Experience.demonstrations`."""


def init(
    row: Transition,
    capacity: int,
    config: ReplayConfig | None = None,
    demonstrations: Transition | None = None,
    num_envs: int = 1,
) -> Experience:
    """Experience without collected rows, which are like `row`, with a buffer for `capacity` of them. `demonstrations` are
    rows [N, ...] in the order in which they were recorded. Rows of `num_envs` environments are added in turn.

    If the successor of a demonstration is not the next row's observation, no row of n steps continues there, whether or not
    it is marked as the end of an episode.
    """
    config = ReplayConfig() if config is None else config
    if demonstrations is not None:
        demonstrations = with_seams(jax.tree.map(jnp.asarray, demonstrations._replace(extras=())))
        cut_off = demonstrations.truncated.at[-1].set(~demonstrations.terminated[-1])
        demonstrations = demonstrations._replace(truncated=cut_off)
    if not config.has_priorities:
        given = None if demonstrations is None else replay.of_rows(demonstrations)
        if row.observation.ndim == 3 and jnp.issubdtype(row.observation.dtype, jnp.integer):
            return Experience(sequences.init(row, num_envs, max(capacity // num_envs, 1)), given)
        return Experience(replay.init(row, capacity), given)
    own = prioritized.init(row, capacity, config.alpha, config.epsilon)
    if demonstrations is None:
        return Experience(own, None)
    count = demonstrations.reward.shape[0]
    bonus = config.demonstration_bonus
    buffer = prioritized.init(row, count, config.alpha, config.epsilon + bonus)
    # The priority of rows without an error is 1, so that of demonstrations has the bonus, too.
    return Experience(own, prioritized.add(buffer._replace(largest=buffer.largest + bonus), demonstrations))


def torn(rows: Transition) -> Bool[Array, "M"]:
    """[N-1], whether the successor of each of `rows` [N, ...] but the last is not the next row's observation. Vectors of
    floats count as equal if they differ by rounding, as where a compiled program computed an observation twice."""

    def differs(successor: Array, observation: Array) -> Bool[Array, "M"]:
        apart = successor[:-1] != observation[1:]
        if successor.ndim == 2 and jnp.issubdtype(successor.dtype, jnp.floating):
            close = CLOSE * jnp.nanstd(successor - observation, axis=0)
            close += ROUNDING * jnp.finfo(successor.dtype).eps * jnp.nanmax(jnp.abs(observation), axis=0)
            apart &= ~(jnp.abs(successor[:-1] - observation[1:]) <= close)
        return jnp.any(apart, axis=tuple(range(1, successor.ndim)))

    return jnp.stack(jax.tree.leaves(jax.tree.map(differs, rows.next_observation, rows.observation))).any(axis=0)


def with_seams(rows: Transition) -> Transition:
    """`rows` [N, ...] with those truncated that the next row does not continue. The last row stays as it is."""
    return rows._replace(truncated=rows.truncated | (jnp.append(torn(rows), False) & ~rows.terminated))


def add(experience: Experience, rows: Transition) -> Experience:
    """Append collected `rows` [n, ...], with the largest priority so far. Images must continue those added before."""
    own = experience.own
    if isinstance(own, Sequences):
        by_step = jax.tree.map(lambda x: x.reshape(-1, own.number.shape[0], *x.shape[1:]), rows)
        return experience._replace(own=sequences.add(own, by_step))
    added = prioritized.add(own, rows) if isinstance(own, Prioritized) else replay.add(own, rows)
    return experience._replace(own=added)


def sample(
    experience: Experience,
    key: Key,
    batch: int,
    share: float | None = 0.5,
    beta: Float[Array, ""] | float = 1.0,
) -> Batch:
    """A batch of rows, sampled with replacement. Add to an empty buffer first.

    A `share` of them, rounded down, are demonstrations, which come last; with None they are sampled together with the
    collected rows, in proportion to the priorities of both, which must exist. Without demonstrations, or with the share 0,
    the rows are those of `replay.sample` or `prioritized.sample` with the same key. `beta` is the exponent of the
    importance weights, and may be traced. With a fixed share they correct for the priorities within collected rows and
    within demonstrations, not for the share.
    """
    own, demonstrations = experience
    if demonstrations is not None and share is None:
        if not (isinstance(own, Prioritized) and isinstance(demonstrations, Prioritized)):
            raise ValueError("without a share, demonstrations need priorities")
        of_demonstrations, slots, weight = prioritized.sample_jointly(own, demonstrations, key, batch, beta)
        return Batch(slots, weight, of_demonstrations)
    count = _count(experience, batch, share)
    is_demonstration = jnp.arange(batch) >= batch - count
    if count == 0:
        return Batch(*_slots(own, key, batch, beta), is_demonstration)
    own_key, key = jax.random.split(key)
    parts = _slots(own, own_key, batch - count, beta), _slots(demonstrations, key, count, beta)
    slots, weight = jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
    return Batch(slots, weight, is_demonstration)


def rows_at(
    experience: Experience,
    batch: Batch,
    n: int = 1,
    discount: Float[Array, ""] | float = 1.0,
    stride: int = 1,
    share: float | None = 0.5,
) -> Transition | NStep:
    """The rows of `batch`, which was sampled with the same `share`; with n above 1 the rows of up to n steps that begin
    with them (`n_step.begun_at`). `stride` is the number of environments whose steps were added in turn; demonstrations are
    those of one."""
    own, demonstrations = experience

    def at(buffer: Any, slots: Int[Array, "n"], stride: int) -> Any:
        rows = _rows(buffer)
        if n > 1:
            return n_step.begun_at(rows, slots, n, discount, stride)
        return sequences.take(rows, slots) if isinstance(rows, Sequences) else replay.take(rows, slots)

    if demonstrations is not None and share is None:
        rows = at(own, batch.slots, stride), at(demonstrations, batch.slots, 1)
        return jax.tree.map(lambda a, b: _where(batch.is_demonstration, b, a), *rows)
    count = _count(experience, batch.slots.shape[0], share)
    if count == 0:
        return at(own, batch.slots, stride)
    parts = at(own, batch.slots[:-count], stride), at(demonstrations, batch.slots[-count:], 1)
    return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)


def settle(experience: Experience, batch: Batch, error: Float[Array, "B"]) -> Experience:
    """The experience with the priorities of the rows of `batch` set from their errors, if there are priorities. No rows may
    have been added since they were sampled."""
    own, demonstrations = experience
    if isinstance(own, Prioritized):
        own = prioritized.update(own, batch.slots, error, ~batch.is_demonstration)
    if isinstance(demonstrations, Prioritized):
        demonstrations = prioritized.update(demonstrations, batch.slots, error, batch.is_demonstration)
    return Experience(own, demonstrations)


def without_rows(experience: Experience) -> PyTree:
    """The priorities alone: what changes with the updates. Rows need not be passed on in a loop of updates."""
    return tuple(prioritized.without_rows(buffer) for buffer in experience)


def with_rows(experience: Experience, priorities: PyTree) -> Experience:
    """The experience with the priorities that `without_rows` returned."""
    return Experience(*(prioritized.with_rows(*pair) for pair in zip(experience, priorities, strict=True)))


def _count(experience: Experience, batch: int, share: float | None) -> int:
    """The number of demonstrations in a batch with a fixed share of them."""
    return 0 if experience.demonstrations is None or share is None else rounded_down(share, batch)


def _rows(buffer: Any) -> Replay | Sequences:
    return buffer.replay if isinstance(buffer, Prioritized) else buffer


def _slots(buffer: Any, key: Key, n: int, beta: Any) -> tuple[Int[Array, "n"], Float[Array, "n"] | None]:
    if isinstance(buffer, Prioritized):
        return prioritized.sample_slots(buffer, key, n, beta)
    slots = sequences.sample_slots if isinstance(buffer, Sequences) else replay.sample_slots
    return slots(buffer, key, n), None


def _where(condition: Bool[Array, "B"], a: Array, b: Array) -> Array:
    return jnp.where(condition.reshape(-1, *[1] * (a.ndim - 1)), a, b)
