"""Branched rollouts: short imagined trajectories from many real states, stored in a buffer (Janner et al., MBPO,
arXiv 1906.08253, algorithm 2)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxmbrl.core.types import (
    Action,
    Average,
    DynamicsModel,
    Key,
    Memory,
    Metrics,
    Observation,
    Policy,
    PyTree,
    Transition,
    World,
)
from jaxmbrl.data import replay
from jaxmbrl.data.replay import Replay
from jaxmbrl.models import disagreement as trust
from jaxmbrl.models.disagreement import Thresholds, Trust, TrustConfig
from jaxmbrl.rollout import rollout


class Imagined(NamedTuple):
    """Imagined transitions, and the state of the rule that filters them."""

    buffer: Replay
    thresholds: Thresholds
    stored: Int[Array, "rounds"]
    """Number of rows stored by each of the last calls of `branch`, the latest first."""

    def interrupted(self, num_envs: int) -> Imagined:
        """The same: imagined rows do not continue each other, so that an interruption of real episodes changes nothing."""
        return self


class _Progress(NamedTuple):
    """Accumulator of the rollout from N start rows."""

    buffer: Replay
    thresholds: Thresholds
    alive: Bool[Array, "N"]
    """Branches that have not ended."""
    steps: Float[Array, ""]
    """Steps of all branches before they ended."""
    stored: Float[Array, ""]
    """Rows stored."""
    disagreement: Float[Array, ""]
    """Sum over those steps."""
    nonfinite: Float[Array, ""]
    """Rows dropped because a number in them, or their disagreement, was not finite."""


def init(row: Transition, capacity: int, lifetime: int, config: TrustConfig) -> Imagined:
    """An empty buffer for `capacity` rows like `row`. With a rule that drops old rows, rows are dropped after `lifetime`
    calls of `branch`."""
    return Imagined(replay.init(row, capacity), trust.init(config), jnp.zeros(lifetime, jnp.int32))


@jax.named_scope("imagine")
def branch(
    world: World,
    policy: Policy,
    rule: Trust,
    imagined: Imagined,
    origin: Float[Array, "N O"],
    key: Key,
    length: int | Int[Array, ""],
    backward: bool = False,
) -> tuple[Imagined, Metrics]:
    """Roll out a learned `world` under `policy` from the rows `origin` for at most `length` steps, and store the rows that
    `rule` keeps in the buffer of `imagined`.

    A branch ends after a step that terminates (which is stored as such), when the rule ends it, or at a number that is not
    finite, the disagreement included: such a row is dropped and counted as `imagine/nonfinite`. A predicted probability of
    termination is sampled. `length` may be traced. If the rule needs the disagreement, the policy must return it as extras
    (`with_disagreement`).

    With `backward` the world is a backward model (`models.backward`), whose branches lead to predecessors. A predecessor
    that terminates is impossible: its row is dropped, and its branch ends.

    Returns (imagined, metrics).
    """
    rows = origin.shape[0]
    start_key, rollout_key, end_key = jax.random.split(key, 3)

    def fold(acc: _Progress, row: Transition, i: Int[Array, ""]) -> _Progress:
        disagreement = row.extras if rule.disagreement else jnp.zeros(rows)
        terminated = _sample_termination(row.terminated, jax.random.fold_in(end_key, i))
        decided = rule.apply(acc.thresholds, disagreement, acc.alive, i, length)
        known = jnp.isfinite(disagreement)
        finite = possible = _finite(row) & jnp.isfinite(decided.penalty) & known
        if backward:
            possible, terminated = finite & ~terminated, jnp.zeros_like(terminated)
        kept = decided.kept & possible
        stored = row._replace(reward=row.reward - decided.penalty, terminated=terminated, extras=())
        return _Progress(
            buffer=replay.add(acc.buffer, stored, kept),
            thresholds=decided.thresholds,
            alive=decided.continues & possible & ~terminated,
            steps=acc.steps + jnp.sum(acc.alive),
            stored=acc.stored + jnp.sum(kept),
            disagreement=acc.disagreement + jnp.sum(jnp.where(acc.alive & finite, disagreement, 0.0)),
            nonfinite=acc.nonfinite + jnp.sum((decided.kept & ~finite) | (acc.alive & ~known)),
        )

    zero = jnp.zeros(())
    start = _Progress(imagined.buffer, imagined.thresholds, jnp.ones(rows, bool), zero, zero, zero, zero)
    state = world.start(origin, start_key), ()
    _, done = rollout(world, policy, state, rollout_key, length, fold, start)
    metrics = {
        "imagine/rollout_length": Average.of(jnp.asarray(length)),
        "imagine/branch_length": Average.of(done.steps / rows),
        "imagine/rows": Average.of(done.stored),
        "imagine/nonfinite": Average.of(done.nonfinite),
    }
    if rule.disagreement:
        metrics["imagine/disagreement"] = Average.of(done.disagreement / done.steps)
        metrics["imagine/threshold"] = Average.of(trust.threshold(done.thresholds), done.thresholds.refits > 0)
    stored = jnp.roll(imagined.stored, 1).at[0].set(done.stored.astype(jnp.int32))
    buffer = done.buffer
    if rule.expires:
        buffer = buffer._replace(size=jnp.minimum(buffer.size, jnp.sum(stored, dtype=jnp.int32)))
    return Imagined(buffer, done.thresholds, stored), metrics


def with_disagreement(policy: Policy, rule: Trust, model: DynamicsModel, state: PyTree) -> Policy:
    """`policy`, which must have no memory, with the members' disagreement [N] about the outcome of its actions as extras.
    If the rule needs no disagreement, `policy` itself."""
    measure = rule.disagreement
    if measure is None:
        return policy

    def act(memory: Memory, observation: Observation, key: Key) -> tuple[Action, Any, Memory]:
        action, _, memory = policy.act(memory, observation, key)
        return action, measure(*model.predict(state, observation, action)), memory

    return Policy(policy.init, act)


def _sample_termination(terminated: Bool[Array, "N"] | Float[Array, "N"], key: Key) -> Bool[Array, "N"]:
    if terminated.dtype == bool:
        return terminated
    return jax.random.uniform(key, terminated.shape, terminated.dtype) < terminated


def _finite(row: Transition) -> Bool[Array, "N"]:
    rows = row.reward.shape[0]
    numbers = [row.observation, row.action.reshape(rows, -1), row.reward[:, None], row.next_observation]
    return jnp.all(jnp.isfinite(jnp.concatenate(numbers, axis=-1)), axis=-1)
