"""Common mistakes in recorded transitions, recognised from the numbers alone.

None of them makes a file invalid, but each one makes a model wrong without an error. The functions return messages for the
user.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Shaped

from jaxmbrl.core.types import Transition

FEWEST_EPISODES = 5
"""Episodes that are needed to recognise a time limit or resets."""
FEWEST_ROWS = 200
MOST_ROWS = 4000
"""Rows, the first ones, from which a shift by a row is recognised."""
FEWEST_ROWS_PER_FEATURE = 5
LEAST_UNEXPLAINED = 0.01
MUCH_BETTER = 0.2
"""The rewards are explained much better by another row if it leaves at most this share of the unexplained variance, and
their own row leaves at least `LEAST_UNEXPLAINED`."""
LEAP = 3.0
"""A change is a leap if it is this many times larger than the median change."""
UNLIKELY = 1e-3
"""Probability below which something is not taken to be chance."""
LOST = 0.01
"""Largest error of the changes, relative to their standard deviation, that is accepted."""
OUTSIDE = 0.01
GRID = 8
"""Numbers that are multiples of this many distances between neighbouring numbers of a type were not rounded to the type."""
ROUNDING = 4.0
"""A column whose standard deviation is below its largest magnitude times this many units of rounding (the epsilon of the
dtype) varies by rounding only."""
SHIFTS = (-1, 2, 3, 4, 5, 6, 7, 8)
"""Rows by which `next_observation` may be shifted, or the number of environments whose rows alternate."""
FEWEST_COMPARED = 20
ALIKE = 0.95
MOSTLY = 0.75
"""Share of the rows that terminate, and of these that are continued, if the flags are inverted."""
CONTINUES = 0.75
"""Share of the rows whose `next_observation` is the next row's observation, if the rows are in order."""
USUAL = 0.9
"""Quantile of a column's changes against which a leap is measured."""
NARROW, NARROWER = 0.8, 0.5
"""Spread of the observations after leaps, relative to that of all, if they are starts of episodes: at most `NARROW` if more
than half of the columns leap, and at most `NARROWER` if half of them do."""
HARDLY_VARIES = 1e-5
"""A column hardly varies if its standard deviation is a smaller share of its largest magnitude."""


def examine(rows: Transition) -> list[str]:
    """Messages about the transitions [N, ...], in the order in which they were collected.

    Wrong successors cause most of the other findings, which are therefore left out.
    """
    wrong = unchanged(rows) or shifted_successors(rows)
    if wrong is not None:
        return [wrong]
    found = (
        inverted_ends(rows),
        unmarked_ends(rows),
        resets_as_transitions(rows),
        unmarked_resets(rows),
        time_limit(rows),
        shifted_rewards(rows),
        constant_actions(rows),
    )
    return [message for message in found if message is not None]


def unchanged(rows: Transition) -> str | None:
    """Whether nothing ever changes, as where an environment returns one array that it changes in place."""
    count = len(rows.reward)
    if count < FEWEST_EPISODES or rows.observation.ndim == 1 or not np.array_equal(rows.observation, rows.next_observation):
        return None
    if (rows.observation == rows.observation[0]).all():
        return None
    return (
        f"next_observation equals observation in all {count} rows: a model would learn that nothing changes; if an "
        "environment changes its array in place, store a copy"
    )


def shifted_successors(rows: Transition) -> str | None:
    """Whether `next_observation` is the observation of another row than the next one, exactly and in nearly all rows
    that do not end an episode."""
    observation, successor = (_flat(values[:MOST_ROWS]) for values in (rows.observation, rows.next_observation))
    goes_on = ~(rows.terminated | rows.truncated)[:MOST_ROWS]

    def share(shift: int) -> float:
        first, last = max(-shift, 0), len(observation) - max(shift, 0)
        if last - first < FEWEST_COMPARED:
            return 0.0
        same = (successor[first:last] == observation[first + shift : last + shift]).all(axis=1)[goes_on[first:last]]
        return float(same.mean()) if len(same) >= FEWEST_COMPARED else 0.0

    if share(1) > 0.5 or share(0) > 0.5:
        return None
    found = next((shift for shift in SHIFTS if share(shift) >= ALIKE), None)
    if found is None:
        return None
    if found < 0:
        return "next_observation is the observation of the row before, not of the next row: shift it by two rows"
    return (
        f"next_observation is the observation of {found} rows later, not of the next row: shift it by "
        f"{'a row' if found == 2 else f'{found - 1} rows'}, or if the rows of {found} environments alternate, store one "
        "environment after the other"
    )


def inverted_ends(rows: Transition) -> str | None:
    """Whether nearly all rows terminate and are continued by the next row, as where a file has `1 - done`."""
    observation, successor = _flat(rows.observation), _flat(rows.next_observation)
    ended = rows.terminated[:-1]
    if ended.sum() < FEWEST_COMPARED or ended.mean() < MOSTLY or not (np.ptp(observation, axis=0) > 0).any():
        return None
    continued = (successor[:-1] == observation[1:]).all(axis=1)[ended].sum()
    if continued < MOSTLY * ended.sum():
        return None
    return (
        f"{ended.sum()} of {len(observation)} rows terminate, and the next row continues {continued} of them: if the flags "
        "are 1 - done, as masks are, store 1 - terminated"
    )


def constant_actions(rows: Transition) -> str | None:
    """Whether a component of the action is the same in all of many rows."""
    action = np.asarray(rows.action).reshape(len(rows.reward), -1)
    same = np.flatnonzero(np.ptp(action, axis=0) == 0)
    if len(action) < FEWEST_ROWS or not len(same):
        return None
    which = "the action is" if rows.action.ndim == 1 else f"action {', '.join(map(str, same))} is"
    return f"{which} the same in all {len(action)} rows: a model cannot learn what another value of it does"


def unmarked_ends(rows: Transition) -> str | None:
    """Whether some rows are not continued by the next row, although their episode goes on. Most rows must be continued."""
    observation, successor = _flat(rows.observation), _flat(rows.next_observation)
    goes_on = ~(rows.terminated | rows.truncated)[:-1]
    if goes_on.sum() < FEWEST_COMPARED:
        return None
    continued = (successor[:-1] == observation[1:]).all(axis=1)
    if continued[goes_on].mean() < CONTINUES:
        return None
    if rows.observation.ndim == 2:
        # Rounding may differ where an observation is computed twice.
        scale = LOST * (successor.astype(np.float64) - observation).std(axis=0)
        continued |= (np.abs(successor[:-1].astype(np.float64) - observation[1:]) <= scale).all(axis=1)
    torn = np.flatnonzero(goes_on & ~continued)
    if not len(torn):
        return None
    return (
        f"in {len(torn)} rows, the first of them row {torn[0]}, next_observation is not the next row's observation, "
        "although no episode ends: if one does, mark the row as terminated or truncated"
    )


def unmarked_resets(rows: Transition) -> str | None:
    """Whether no row ends an episode although the observations leap as at resets: in at least half of the columns that
    change at all steps, and to values that vary less than the others, as starts of episodes do."""
    if rows.observation.ndim != 2 or (rows.terminated | rows.truncated)[:-1].any():
        return None
    observation, successor = (values.astype(np.float64) for values in (rows.observation, rows.next_observation))
    change = np.abs(successor - observation)
    usual, rounding = np.quantile(change, USUAL, axis=0), ROUNDING * float(np.finfo(rows.observation.dtype).eps)
    moving = usual > 2 * rounding * np.abs(observation).max(axis=0)
    if moving.sum() < 2:
        return None
    share = (change > LEAP * usual)[:, moving].mean(axis=1)
    for leaps, narrow in ((share > 0.5, NARROW), (share >= 0.5, NARROWER)):
        if leaps.sum() < FEWEST_EPISODES:
            continue
        spread = successor[leaps][:, moving].std(axis=0, ddof=1) / observation[:, moving].std(axis=0)
        if spread.mean() <= narrow:
            return (
                f"no row ends an episode, and the observations leap in {leaps.sum()} rows, the first of them row "
                f"{np.flatnonzero(leaps)[0]}, as at resets: mark the last row of each episode as terminated or truncated, "
                "and give the observation from before the reset as its next_observation"
            )
    return None


def resets_as_transitions(rows: Transition) -> str | None:
    """Whether `next_observation` of an episode's last row belongs to the next episode.

    It does if it equals the next row's observation, or, where an episode terminated, if it is where episodes begin. Where
    episodes only end because a long recording was cut, the next row does continue the last one. Therefore the changes at
    the ends must also be leaps, if the observations have a distance. Elements of a discrete space must be equal at all
    ends, and it must be unlikely that they are by chance, as where episodes often come back to their start.
    """
    ended = rows.terminated | rows.truncated
    ends = np.flatnonzero(ended[:-1])
    if len(ends) < FEWEST_EPISODES:
        return None
    observation, successor = _flat(rows.observation), _flat(rows.next_observation)
    last, first = successor[ends], observation[ends + 1]
    again = (last == first).all(axis=1)
    if rows.observation.ndim > 1:
        again |= rows.terminated[ends] & _within(last, first)
        # Unlike a difference, this does not wrap around in unsigned integers.
        change = (np.maximum(successor, observation) - np.minimum(successor, observation)).astype(np.float64)
        change = (change / np.maximum(change.std(axis=0), np.finfo(np.float64).tiny)).max(axis=1)
        if not again.any() or ended.all() or np.median(change[ends][again]) <= LEAP * np.median(change[~ended]):
            return None
    elif not again.all() or (not ended.all() and np.isin(successor[~ended], first).mean() ** len(ends) > UNLIKELY):
        return None
    if again.mean() <= 0.5:
        return None
    return (
        f"the next_observation of the last row belongs to the next episode in {again.sum()} of {len(ends)} episodes: "
        "a model would learn resets as dynamics; give the observation from before the reset"
    )


def _within(values: np.ndarray, starts: np.ndarray) -> Bool[np.ndarray, "N"]:
    """Which rows are in the range of `starts`, widened by half of its width."""
    low, high = starts.min(axis=0).astype(np.float64), starts.max(axis=0).astype(np.float64)
    margin = (high - low) / 2
    return ((values >= low - margin) & (values <= high + margin)).all(axis=1)


def time_limit(rows: Transition) -> str | None:
    """Whether all episodes terminate after the same number of steps, as at a time limit.

    They do not if the observations show the end, as in games of fixed length: observations repeat, and the last one of an
    episode never appears before its end.
    """
    ends = np.flatnonzero(rows.terminated | rows.truncated)
    if len(ends) < FEWEST_EPISODES or rows.truncated.any():
        return None
    lengths = np.diff(ends, prepend=-1)
    if lengths[0] <= 1 or (lengths != lengths[0]).any() or _shows_ends(rows):
        return None
    return (
        f"all {len(ends)} episodes terminate after exactly {lengths[0]} steps, as at a time limit: if it is one, these "
        "rows are truncated and not terminated; values would be learned as if nothing followed"
    )


def _shows_ends(rows: Transition) -> bool:
    """Whether observations repeat, and those that follow a termination follow nothing else."""
    distinct, numbers = np.unique(_flat(rows.next_observation), axis=0, return_inverse=True)
    last = np.isin(numbers, numbers[rows.terminated])
    return len(distinct) <= len(numbers) / 2 and bool((last == rows.terminated).all())


def hardly_varying(rows: Transition) -> list[str]:
    """A message about the columns of the observation that vary by more than rounding and by less than `HARDLY_VARIES` of
    their size. Columns whose digits are lost (`coarse`) are left out."""
    if rows.observation.ndim != 2:
        return []
    values = rows.observation.astype(np.float64)
    size, spread = np.abs(values).max(axis=0), np.std(values - values[0], axis=0)
    rounding = ROUNDING * float(np.finfo(rows.observation.dtype).eps) * size
    found = [
        f"{d} ({values[0, d]:.6g} with a standard deviation of {spread[d]:.2g})"
        for d in np.flatnonzero(
            (spread > rounding) & (spread < HARDLY_VARIES * size) & ~coarse(rows.observation, rows.next_observation)
        )
    ]
    what = "these observations hardly vary, and a model knows nothing about other values of them"
    return [f"{what}: {', '.join(found)}"] if found else []


def out_of_range(known: Transition, unseen: Transition) -> list[str]:
    """Columns of the observation that leave the range of the `known` rows by more than its width in more than `OUTSIDE` of
    the `unseen` rows."""
    if known.observation.ndim != 2:
        return []
    low, high = known.observation.min(axis=0), known.observation.max(axis=0)
    width = high - low
    outside = ((unseen.observation < low - width) | (unseen.observation > high + width)).mean(axis=0)
    return [
        f"observation {d} is between {low[d]:.6g} and {high[d]:.6g} in the rows that the model is fitted to, and far "
        f"outside of it in {outside[d]:.0%} of the test rows: a model knows nothing about these values"
        for d in np.flatnonzero(outside > OUTSIDE)
    ]


def lost_digits(
    observation: Shaped[np.ndarray, "N O"], successor: Shaped[np.ndarray, "N O"], dtype: np.dtype
) -> Bool[np.ndarray, "O"]:
    """Columns whose changes are not the same after a conversion to `dtype`, by more than `LOST`."""
    change = successor.astype(np.float64) - observation.astype(np.float64)
    rounded = successor.astype(dtype).astype(np.float64) - observation.astype(dtype).astype(np.float64)
    error = np.sqrt(np.mean((rounded - change) ** 2, axis=0))
    return error > LOST * np.sqrt(np.mean(change**2, axis=0))


def coarse(observation: Shaped[np.ndarray, "N O"], successor: Shaped[np.ndarray, "N O"]) -> Bool[np.ndarray, "O"]:
    """Columns whose changes were lost before (`rounded_away`)."""
    change = np.sqrt(np.mean((successor.astype(np.float64) - observation.astype(np.float64)) ** 2, axis=0))
    return rounded_away(np.concatenate([observation, successor]), change)


def rounded_away(values: Shaped[np.ndarray, "M O"], differences: Float[np.ndarray, "O"]) -> Bool[np.ndarray, "O"]:
    """Columns that were rounded to their own dtype, or to float32 if all of their numbers are of that type, so that the
    difference of two numbers has an error of more than `LOST` of the usual `differences`.

    Each of two rounded numbers has an error with a variance of 1/12 of the squared distance to the next number of the type.
    Whole numbers where the type has halves, too, and multiples of `GRID` such distances were not rounded. A constant column
    counts if the type does not contain all whole numbers of its size.
    """
    found = np.zeros(values.shape[1], bool)
    if values.dtype.kind != "f" or not len(values):
        return found
    size, still = np.abs(values).max(axis=0), (values == values[0]).all(axis=0)
    for dtype in {values.dtype, np.dtype(np.float32)} if values.dtype.itemsize > 4 else {values.dtype}:
        with np.errstate(over="ignore"):
            rounded = values.astype(dtype)
        step, halves = np.abs(np.spacing(rounded)).astype(np.float64), 1 / float(np.finfo(dtype).eps)
        exact = (np.round(values) == values).all(axis=0) & (size < halves)
        exact |= (np.fmod(values, GRID * step.max(axis=0)) == 0).all(axis=0)
        error = np.sqrt(np.mean(step**2, axis=0) / 6)
        lost = np.where(still, size >= 2 * halves, (differences > 0) & (error > LOST * differences) & ~exact)
        found |= lost & (rounded == values).all(axis=0)
    return found


def coarse_columns(rows: Transition, instead: str) -> list[str]:
    """A message about each column of vector observations whose digits were lost before (`rounded_away`). `instead` is what
    to do about it."""
    if rows.observation.ndim != 2:
        return []
    lost = np.flatnonzero(coarse(rows.observation, rows.next_observation))
    return _rounded({f"observation {d}": np.asarray(rows.observation[:, d]) for d in lost}, "changes", instead)


def coarse_reward(rows: Transition, instead: str) -> list[str]:
    """A message if the digits in which the rewards differ were lost before (`rounded_away`)."""
    reward = np.asarray(rows.reward)
    lost = rounded_away(reward[:, None], np.std(reward, dtype=np.float64, keepdims=True)).any()
    return _rounded({"the reward": reward} if lost else {}, "differences", instead)


def _rounded(columns: dict[str, Shaped[np.ndarray, "N"]], what: str, instead: str) -> list[str]:
    texts = []
    for name, values in columns.items():
        kind = values.dtype if values.dtype.itemsize <= 4 else np.dtype(np.float32)
        size, still = np.abs(values).max(), bool((values == values[0]).all())
        reached = f"is {size:.6g} in all rows" if still else f"reaches {size:.6g}"
        lost = f"smaller {what} are lost" if still else f"its {what} are lost by rounding"
        texts.append(
            f"{name} {reached}, where numbers of {kind} are {np.spacing(kind.type(size)):.2g} apart and {lost}: {instead}"
        )
    return texts


def shifted_rewards(rows: Transition) -> str | None:
    """Whether the rewards are explained much better by the row before or after.

    The reward is regressed on observation, action, next observation and their squares.
    """
    count = min(len(rows.reward), MOST_ROWS)
    if rows.observation.ndim != 2:
        return None
    action = rows.action[:count]
    if action.ndim == 1:
        # Choices are one-hot encoded, unless there are too many of them for the rows.
        choices = int(np.max(action)) + 1
        if choices > count:
            return None
        action = np.eye(choices)[action]
    columns = [rows.observation, action, rows.next_observation]
    features = _quadratic(np.concatenate([column[:count].astype(np.float64) for column in columns], axis=1))
    if count < max(FEWEST_ROWS, FEWEST_ROWS_PER_FEATURE * features.shape[1]):
        return None
    reward = np.asarray(rows.reward[:count], np.float64)
    goes_on = np.flatnonzero(~(rows.terminated | rows.truncated)[:count])
    # Rows that have a row before and after them in the same episode.
    inner = np.intersect1d(goes_on, goes_on + 1)
    inner = inner[(inner > 0) & (inner < count - 1)]
    if len(inner) < count / 2 or np.ptp(reward[inner]) == 0:
        return None
    own, before, after = (_unexplained(features[inner + shift], reward[inner]) for shift in (0, -1, 1))
    if own < LEAST_UNEXPLAINED or min(before, after) > MUCH_BETTER * own:
        return None
    place, due = ("before", "previous") if before < after else ("after", "next")
    return (
        f"the rewards seem to belong to the row {place}, which leaves {min(before, after):.2g} of their variance "
        f"unexplained and their own row {own:.2g}: if so, store each reward with the {due} row"
    )


def _unexplained(features: Float[np.ndarray, "n F"], target: Float[np.ndarray, "n"]) -> float:
    """Share of the target's variance that a linear function of the features does not explain."""
    weights = np.linalg.lstsq(features, target, rcond=None)[0]
    return float(np.var(target - features @ weights) / np.var(target))


def _quadratic(values: Float[np.ndarray, "N d"]) -> Float[np.ndarray, "N F"]:
    """A constant, the standardised columns and their squares."""
    centered = values - values.mean(axis=0)
    spread = centered.std(axis=0)
    scaled = centered / np.where(spread > 0, spread, 1.0)
    return np.concatenate([np.ones((len(values), 1)), scaled, scaled**2], axis=1)


def _flat(values: np.ndarray) -> np.ndarray:
    return values.reshape(len(values), -1)
