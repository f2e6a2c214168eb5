"""Bias of a critic: its Q-values compared with the discounted returns of recorded episodes.

The return of row t of an episode is G_t = r_t + discount (1 - terminated_t) (b_{t+1} + G_{t+1}). For a soft agent, b is the
entropy bonus -alpha log pi(a|s); Q(s_t, a_t) includes it from the next action on. For other agents, b is 0.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Array, Bool, Float

from jaxmbrl.core.config import UserError

Numbers: TypeAlias = Float[np.ndarray, "_N"] | Float[Array, "_N"]
Flags: TypeAlias = Bool[np.ndarray, "_N"] | Bool[Array, "_N"]
"""[N]; the functions below check lengths."""
TOLERANCE = 0.05


class ValueBias(NamedTuple):
    """Differences between a critic's values and returns, over the M rows with a known return. In units of return."""

    q: Float[np.ndarray, "M"]
    returns: Float[np.ndarray, "M"]
    bias: float
    """Mean of q - return: above 0 the critic overestimates."""
    deviation: float
    """Standard deviation of q - return."""
    normalized_bias: float
    """Bias divided by |mean return| (Chen et al., REDQ, arXiv 2101.05982, section 3); NaN if that is 0."""
    normalized_deviation: float
    """Deviation divided by |mean return|; NaN if that is 0."""
    correlation: float
    """Correlation of q and the return; NaN if one of them is constant."""


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
    """The discounted return from each of N recorded rows to the end of its episode; NaN where too little of it is recorded.

    Rows are in time order, one episode after another. If an episode terminates, its returns are exact. If it is cut off
    after k more steps, by a time limit or by the end of the record, the rewards after the cut are unknown. They add at most
    discount^k max|r| / (1 - discount) to the return; if all rewards were equal, they would be the share discount^k of it.
    So the return of a row in such an episode is given only if discount^k is at most `tolerance`. With a discount factor of
    0.99 and the default tolerance of 0.05, this takes at least 299 recorded rewards. With `bootstrap`, a value [N] of each
    row's next observation, the value at the cut replaces the unknown rewards. All returns are then given, but they depend
    partly on the critic.

    `bonus` [N] is b in the docstring of this module, 0 by default. The rows must come from the policy that the critic
    evaluates. Raises UserError if lengths differ, or if discount or tolerance are not in [0, 1].
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
    """Compare the values `q` [N] of recorded states and actions with the `returns` [N] that followed them.

    Rows with an unknown return (NaN) are left out. Neighbouring rows share most of their return, so N rows of a few
    episodes contain less information than N independent samples. Raises UserError if lengths differ or no return is known.
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
