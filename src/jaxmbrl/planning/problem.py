"""The problem that a planner solves: to maximise the return of an action sequence in a World, with a measure of risk.

    R_n   = sum_{t<H} discount^t m_nt r_nt  +  discount^H m_nH V(s_nH)
    score = mean of R,  or a quantile of R,  or  mean of R - k standard deviations of R      over the rows n

r_nt is the reward of row n at step t, m_nt the probability that it has not terminated before (0 or 1 if terminations are
certain), and V the terminal value, if any. The rows of a learned World are the particles of Chua et al. (PETS, arXiv
1805.12114), who use the mean; a simulator is a single row. The terminal value is that of Lowrey et al.
(POLO, arXiv 1811.01848) and Hansen et al. (TD-MPC, arXiv 2203.04955).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from annotated_types import Ge, Le
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxmbrl.core.config import UserError, check
from jaxmbrl.core.roots import root
from jaxmbrl.core.spaces import Box, Space
from jaxmbrl.core.types import Action, Carry, Key, Objective, Problem, Stages, Transition, World
from jaxmbrl.rollout import Return, open_loop, planned_return, rollout, step_keys

Discount = float | Float[Array, ""]
TerminalValue = Callable[[Carry], Float[Array, "*n"]]


@dataclass(frozen=True)
class RiskConfig:
    """How the score of an action sequence is computed from the returns of its rows. The default is the mean."""

    quantile: Annotated[float, Ge(0), Le(1)] | None = None
    """Quantile of the rows' returns to maximise, linearly interpolated: 0 is the worst row, 0.5 the median."""
    deviations: float = 0.0
    """Number of (population) standard deviations subtracted from the mean return; negative numbers favour risk."""

    def problem(self) -> tuple[str, str] | None:
        """(field, message) of the first violated rule that involves several fields, or None."""
        if self.quantile is not None and self.deviations != 0:
            return "deviations", f"must be 0 if quantile is given, got {self.deviations}"
        return None


def at_risk(returns: Float[Array, "*n"], risk: RiskConfig) -> Float[Array, ""]:
    """The score of an action sequence from the returns of its rows."""
    if risk.quantile is not None:
        return jnp.quantile(returns, risk.quantile)
    if risk.deviations != 0:
        # Equal returns, such as those of one row, have a deviation of exactly 0, whose derivative is taken as 0.
        return jnp.mean(returns) - risk.deviations * root(jnp.var(returns - returns.ravel()[0]))
    return jnp.mean(returns)


def make_problem(
    world: World,
    origin: Any,
    action: Space,
    *,
    risk: RiskConfig | None = None,
    discount: Discount = 1.0,
    terminal_value: TerminalValue | None = None,
) -> Problem:
    """The problem to maximise the return of an action sequence, executed open loop in `world` from `origin`.

    `origin` is the argument of `world.start`. `terminal_value(carry)` has the shape of the world's rewards: [N], or [] for
    a simulator. It is evaluated after the last step and weighted by the probability of no termination before. Rewards after
    termination do not count; time limits are ignored. `discount` may be traced.

    If the return of one row, or its observation before termination, is not finite, the score is -inf for any risk.
    Otherwise a candidate could be chosen because of an average over the other rows, or because a known reward ignores the
    observation.

    Raises UserError if the fields of `risk` are inconsistent.

    >>> from jaxmbrl import envs, planning
    >>> task = envs.make("cartpole-continuous")
    >>> start = task.env.reset(jax.random.key(0))
    >>> problem = planning.make_problem(task.world, start, task.action)
    >>> float(problem.score(jnp.zeros((5, 1)), jax.random.key(1)))
    5.0
    >>> planning.play(problem, jnp.zeros((5, 1)), jax.random.key(1)).reward.shape
    (5,)
    """
    risk = check(RiskConfig() if risk is None else risk)

    def score(actions: Shaped[Array, "H ..."], key: Key) -> Float[Array, ""]:
        (carry, first), rollout_key = _begin(world, origin, key)
        step = jax.eval_shape(world.step, carry, actions[0], rollout_key)[1]
        rows, horizon = step.reward.shape, actions.shape[0]
        start = Outcome(Return.zero(rows), jnp.ones(rows, bool))
        fold = _accumulate(discount)
        (carry, _), end = rollout(world, open_loop(actions), (carry, first), rollout_key, horizon, fold, start)
        total, alive = end.earned
        if terminal_value is not None:
            value = terminal_value(carry)
            chex.assert_shape(value, rows)
            total = total + jnp.where(alive != 0, alive * _discounted(value, discount, horizon), 0.0)
        healthy = jnp.all(end.finite & jnp.isfinite(total))
        return jnp.where(healthy, at_risk(total, risk), -jnp.inf)

    def stages(key: Key) -> Stages:
        if risk != RiskConfig():
            raise UserError(
                "risk must be the default, the mean, for planners that need derivatives with respect to states (ilqr); "
                "use gradient, cem, icem, mppi or random-shooting"
            )
        return _stages(world, origin, action, discount, terminal_value, key)

    return Problem(world, origin, score, action, terminal_value, stages)


def play(problem: Problem, actions: Shaped[Array, "H ..."], key: Key) -> Transition:
    """The transitions of executing `actions` open loop: [H, N, ...], or [H, ...] in a simulator. They are those from which
    `problem.score` computes the return with the same key."""
    start, rollout_key = _begin(problem.world, problem.origin, key)
    return rollout(problem.world, open_loop(actions), start, rollout_key, actions.shape[0])[1]


def problem_of_score(score: Objective, action: Space) -> Problem:
    """A problem with a score but without a World, for planners that only call `score`.

    >>> from jaxmbrl import planning
    >>> planner = planning.make(planning.PlannerConfig(), planning.unit_box(2))
    >>> problem = planning.problem_of_score(lambda actions, key: -jnp.sum((actions - 0.5) ** 2), planning.unit_box(2))
    >>> actions, _, _ = planner.plan(problem, planner.init(), jax.random.key(0))
    >>> bool(jnp.mean((actions - 0.5) ** 2) < 0.1)
    True
    """

    def missing(*inputs: Any) -> Any:
        raise ValueError("this problem has a score but no world")

    return Problem(World(missing, missing, missing, missing), (), score, action)


def unit_box(size: int) -> Box:
    """The actions of every continuous task: vectors [size] in [-1, 1]."""
    return Box((size,), -1.0, 1.0)


class Outcome(NamedTuple):
    """Accumulator of an action sequence's return, for each row."""

    earned: Return
    finite: Bool[Array, "*n"]
    """Whether all observations before termination were finite."""


def _accumulate(discount: Discount) -> Callable[[Outcome, Transition, Int[Array, ""]], Outcome]:
    def fold(outcome: Outcome, transition: Transition, i: Int[Array, ""]) -> Outcome:
        rows = transition.reward.ndim
        leaves = jax.tree.leaves(transition.next_observation)
        finite = [jnp.all(jnp.isfinite(leaf), axis=tuple(range(rows, leaf.ndim))) for leaf in leaves]
        alive = outcome.earned.alive
        valued = transition._replace(reward=_discounted(transition.reward, discount, i))
        return Outcome(
            planned_return(outcome.earned, valued, i),
            outcome.finite & ((alive == 0) | jnp.all(jnp.stack(finite), axis=0)),
        )

    return fold


def _stages(
    world: World, origin: Any, action: Space, discount: Discount, terminal_value: TerminalValue | None, key: Key
) -> Stages:
    """The steps of a problem's mean return. The carry is (the World's, whether each row is alive): a bool, or the
    probability of being alive if the World returns probabilities of termination."""
    (start, _), rollout_key = _begin(world, origin, key)
    like = jax.eval_shape(world.step, start, action.zeros(), rollout_key)[1]
    alive = jnp.ones(like.reward.shape, like.terminated.dtype)

    def earned(alive: Array, value: Float[Array, "*n"]) -> Float[Array, ""]:
        return jnp.mean(jnp.where(alive != 0, alive * value, 0.0))

    def step(at: tuple[Carry, Array], action: Action, i: Int[Array, ""]) -> tuple[tuple[Carry, Array], Float[Array, ""]]:
        carry, alive = at
        carry, made = world.step(carry, action, step_keys(rollout_key, i)[1])
        still = alive & ~made.terminated if alive.dtype == bool else alive * (1 - made.terminated)
        return (carry, still), earned(alive, _discounted(made.reward, discount, i))

    def last(at: tuple[Carry, Array], horizon: int) -> Float[Array, ""]:
        carry, alive = at
        if terminal_value is None:
            return jnp.zeros((), like.reward.dtype)
        return earned(alive, _discounted(terminal_value(carry), discount, horizon))

    return Stages((start, alive), step, last)


def _discounted(value: Float[Array, "*n"], discount: Discount, steps: int | Int[Array, ""]) -> Float[Array, "*n"]:
    if isinstance(discount, float) and discount == 1:
        return value
    return jnp.asarray(discount, value.dtype) ** steps * value


def _begin(world: World, origin: Any, key: Key) -> tuple[tuple[Carry, Int[Array, ""]], Key]:
    """(initial state of the rollout of an action sequence, key of the rollout)."""
    start_key, rollout_key = jax.random.split(key)
    return (world.start(origin, start_key), jnp.zeros((), jnp.int32)), rollout_key
