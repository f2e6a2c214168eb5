"""Values beside what truly followed: a critic's Q against the discounted returns of recorded episodes.

The return of row t of an episode is G_t = r_t + discount (1 - terminated_t) (b_{t+1} + G_{t+1}), where b is what a soft
agent's actions earn besides, the entropy bonus -alpha log pi(a|s), which its Q(s_t, a_t) counts from the next action on.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Array, Bool, Float

from jaxmbrl.core.config import UserError

Numbers: TypeAlias = Float[np.ndarray, "_N"] | Float[Array, "_N"]
Flags: TypeAlias = Bool[np.ndarray, "_N"] | Bool[Array, "_N"]
"""[N]; lengths are checked by those who take them."""
TOLERANCE = 0.05


class ValueBias(NamedTuple):
    """How a critic's values differ from returns, over the M rows whose return is known. In units of return."""

    q: Float[np.ndarray, "M"]
    returns: Float[np.ndarray, "M"]
    bias: float
    """Mean of q - return: above 0 the critic overestimates."""
    deviation: float
    """Standard deviation of q - return."""
    normalized_bias: float
    """Bias as a share of |mean return| (Chen et al., REDQ, arXiv 2101.05982, section 3); NaN where that is 0."""
    normalized_deviation: float
    """Deviation as such a share."""
    correlation: float
    """Of q with the return; NaN where one of them does not vary."""


def monte_carlo_returns(
    reward: Numbers,
    terminated: Flags,
    truncated: Flags,
    discount: float,
    *,
    bootstrap: Numbers | None = None,
    bonus: Numbers | None = None,
    tolerance: float = TOLERANCE,
) -> Float[np.ndarray, "N"]:
    """The discounted return from each of N recorded rows to the end of its episode; NaN where too little of it is known.

    Rows are in time order, one episode after another. After a termination nothing follows, and the return is exact. A time
    limit, or the end of the record, hides what would have followed k steps on, which is at most
    discount^k max|r| / (1 - discount); were all rewards alike, it would be the share discount^k of the return. So where an
    episode was cut off, a return is known only as long as that share is at most `tolerance`: at a discount of 0.99 and the
    default of 0.05 for rows that 299 rewards and more are recorded from. With `bootstrap`, a value [N] of each row's next
    observation, a cut return goes on by it and all are known, at the price of being partly the critic's own.

    `bonus` is b of the module's first lines, 0 if not given. The rows must come from the policy whose Q they are to judge,
    or the returns are another's. Raises UserError where lengths differ or discount or tolerance are no shares.
    """
    count = np.shape(reward)[0]
    given = {"terminated": terminated, "truncated": truncated, "bootstrap": bootstrap, "bonus": bonus}
    for name, value in given.items():
        if value is not None and np.shape(value) != (count,):
            raise UserError(f"{name} must have the {count} rows of reward, got shape {np.shape(value)}")
    for name, share in (("discount", discount), ("tolerance", tolerance)):
        if not 0 <= share <= 1:
            raise UserError(f"{name} must be from 0 to 1, got {share}")
    rewards = np.asarray(reward, np.float64)
    extra = np.zeros(count) if bonus is None else np.asarray(bonus, np.float64)
    over, cut = np.array(terminated, bool), np.array(truncated, bool)
    cut[count - 1 :] = True
    known = np.zeros(count) if bootstrap is None else np.asarray(bootstrap, np.float64)
    found, hidden = np.zeros(count), np.zeros(count)
    for t in reversed(range(count)):
        if over[t]:
            following, unknown = 0.0, 0.0
        elif cut[t]:
            following, unknown = known[t], float(bootstrap is None)
        else:
            following, unknown = extra[t + 1] + found[t + 1], hidden[t + 1]
        found[t] = rewards[t] + discount * following
        hidden[t] = discount * unknown
    return np.where(hidden <= tolerance, found, np.nan)


def value_bias(q: Numbers, returns: Numbers) -> ValueBias:
    """How values `q` [N] of recorded states and actions (`Agent.action_value`) differ from the `returns` [N] that followed.

    Rows whose return is NaN, unknown, are left out. Neighbouring rows share most of their return, so that N rows of few
    episodes tell less than N draws would. Raises UserError where lengths differ or no return is known.
    """
    if np.ndim(q) != 1 or np.shape(q) != np.shape(returns):
        raise UserError(f"q and returns must both be [N], got shapes {np.shape(q)} and {np.shape(returns)}")
    known = ~np.isnan(np.asarray(returns))
    if not known.any():
        raise UserError("no return is known: record longer episodes, raise the tolerance, or give a bootstrap")
    values, followed = (np.asarray(x, np.float64)[known] for x in (q, returns))
    miss = values - followed
    bias, deviation = float(np.mean(miss)), float(np.std(miss))
    size = abs(float(np.mean(followed)))
    varies = np.ptp(values) > 0 and np.ptp(followed) > 0
    return ValueBias(
        q=values,
        returns=followed,
        bias=bias,
        deviation=deviation,
        normalized_bias=bias / size if size else float("nan"),
        normalized_deviation=deviation / size if size else float("nan"),
        correlation=float(np.corrcoef(values, followed)[0, 1]) if varies else float("nan"),
    )
