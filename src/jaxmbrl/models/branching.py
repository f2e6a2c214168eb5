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
    """What branches have left."""

    buffer: Replay
    thresholds: Thresholds
    stored: Int[Array, "rounds"]
    """Rows that each of the last rounds of branches stored, the latest first."""


class Branches(NamedTuple):
    """Branches under way, from N start rows."""

    buffer: Replay
    thresholds: Thresholds
    alive: Bool[Array, "N"]
    lived: Float[Array, ""]
    """Steps of all branches that counted."""
    kept: Float[Array, ""]
    """Rows stored."""
    doubt: Float[Array, ""]
    """Sum of the disagreement over the steps lived."""
    broken: Float[Array, ""]
    """Rows left out because a number in them was not finite."""


def init(row: Transition, capacity: int, lifetime: int, config: TrustConfig) -> Imagined:
    """Nothing imagined yet, and room for `capacity` rows like `row`; where rows expire, it is after `lifetime` rounds."""
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
) -> tuple[Imagined, Metrics]:
    """Step a learned `world` under `policy` from rows `origin`, at most `length` steps, and store what `rule` keeps.

    A branch ends after the step that terminates, which is stored as such, or where the rule ends it, or where a number
    is not finite: that row is left out and counted as `imagine/broken`. A probability of termination is drawn. The length
    may be traced. Where the rule asks for disagreement, the policy leaves it (`with_disagreement`).
    """
    rows = origin.shape[0]
    start_key, rollout_key, end_key = jax.random.split(key, 3)

    def fold(acc: Branches, row: Transition, i: Int[Array, ""]) -> Branches:
        doubt = row.extras if rule.disagreement else jnp.zeros(rows)
        ended = _drawn(row.terminated, jax.random.fold_in(end_key, i))
        verdict = rule.judge(acc.thresholds, doubt, acc.alive, i, length)
        finite = _finite(row)
        kept = verdict.kept & finite
        stored = row._replace(reward=row.reward - verdict.penalty, terminated=ended, extras=())
        return Branches(
            buffer=replay.add(acc.buffer, stored, kept),
            thresholds=verdict.thresholds,
            alive=verdict.going_on & finite & ~ended,
            lived=acc.lived + jnp.sum(acc.alive),
            kept=acc.kept + jnp.sum(kept),
            doubt=acc.doubt + jnp.sum(jnp.where(acc.alive & finite, doubt, 0.0)),
            broken=acc.broken + jnp.sum(verdict.kept & ~finite),
        )

    zero = jnp.zeros(())
    begun = Branches(imagined.buffer, imagined.thresholds, jnp.ones(rows, bool), zero, zero, zero, zero)
    state = world.start(origin, start_key), ()
    _, made = rollout(world, policy, state, rollout_key, length, fold, begun)
    metrics = {
        "imagine/rollout_length": Average.of(jnp.asarray(length)),
        "imagine/branch_length": Average.of(made.lived / rows),
        "imagine/rows": Average.of(made.kept),
        "imagine/broken": Average.of(made.broken),
    }
    if rule.disagreement:
        metrics["imagine/disagreement"] = Average.of(made.doubt / made.lived)
        metrics["imagine/threshold"] = Average.of(trust.threshold(made.thresholds), made.thresholds.refits > 0)
    stored = jnp.roll(imagined.stored, 1).at[0].set(made.kept.astype(jnp.int32))
    buffer = made.buffer
    if rule.expires:
        buffer = buffer._replace(size=jnp.minimum(buffer.size, jnp.sum(stored)))
    return Imagined(buffer, made.thresholds, stored), metrics


def with_disagreement(policy: Policy, rule: Trust, model: DynamicsModel, state: PyTree) -> Policy:
    """`policy`, which has no memory, leaving as its extras [N] how much the members of `model` disagree on what its actions
    lead to; unchanged where the rule does not ask."""
    measure = rule.disagreement
    if measure is None:
        return policy

    def act(memory: Memory, observation: Observation, key: Key) -> tuple[Action, Any, Memory]:
        action, _, memory = policy.act(memory, observation, key)
        return action, measure(*model.predict(state, observation, action)), memory

    return Policy(policy.init, act)


def _drawn(terminated: Bool[Array, "N"] | Float[Array, "N"], key: Key) -> Bool[Array, "N"]:
    if terminated.dtype == bool:
        return terminated
    return jax.random.uniform(key, terminated.shape, terminated.dtype) < terminated


def _finite(row: Transition) -> Bool[Array, "N"]:
    numbers = [row.observation, row.action, row.reward[:, None], row.next_observation]
    return jnp.all(jnp.isfinite(jnp.concatenate(numbers, axis=-1)), axis=-1)
