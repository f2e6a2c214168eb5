"""Normalised scores of a return, as in D4RL (Fu et al., arXiv 2004.07219, section 5):

    100 (return - random) / (expert - random)

The score is 0 for uniformly random actions and 100 for an expert, and may be below 0 or above 100.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from jaxmbrl.core.config import UserError


class Reference(NamedTuple):
    """The returns that are given the scores 0 and 100."""

    random: float
    expert: float
    source: str


D4RL = "D4RL's, of Gymnasium's tasks before version 5"
MEASURED = "measured, benchmarks/results/score-references.json"
REFERENCES = {
    "Hopper-v5": Reference(-20.272305, 3234.3, D4RL),
    "HalfCheetah-v5": Reference(-280.178953, 12135.0, D4RL),
    "Walker2d-v5": Reference(1.629008, 4592.3, D4RL),
    "Ant-v5": Reference(-325.6, 3879.7, D4RL),
    "pendulum": Reference(-1222.9, -140.5, MEASURED),
    "cartpole-continuous": Reference(28.4, 200.0, MEASURED),
    "CartPole-v1": Reference(22.2, 500.0, MEASURED),
    "InvertedPendulum-v5": Reference(5.1, 1000.0, MEASURED),
}
"""By the name of the task. Where they are measured, the random return is that of 1,000 episodes, and the expert is SAC at
the end of its learning goal, or the largest possible return."""


def reference_of(task: str, given: tuple[float, float] | None = None) -> Reference | None:
    """The reference (random return, expert's return) that is `given`, or that of a task by its name; None if there is none.
    Raises UserError if the numbers are not finite or equal."""
    if given is None:
        return REFERENCES.get(task)
    random, expert = given
    if not (math.isfinite(random) and math.isfinite(expert)) or random == expert:
        raise UserError(f"--score-reference must be two different returns, RANDOM EXPERT, got {random:g} {expert:g}")
    return Reference(random, expert, "--score-reference")


def normalized(value: float, reference: Reference) -> float:
    """The score of a return.

    >>> from jaxmbrl.training.scores import Reference, normalized
    >>> round(normalized(1607.013848, Reference(-20.272305, 3234.3, "D4RL")), 6)
    50.0
    """
    return 100 * (value - reference.random) / (reference.expert - reference.random)


MOST_SEEDS = 32
"""The values of more seeds are not listed."""


def listed(values: Sequence[float]) -> str:
    """The values of the seeds in parentheses, after a space; nothing for more than `MOST_SEEDS`."""
    return f" ({', '.join(f'{value:.1f}' for value in values)})" if len(values) <= MOST_SEEDS else ""


def described(per_seed: Sequence[float], reference: Reference) -> str:
    """A line with the scores of the seeds' mean returns."""
    each = [normalized(value, reference) for value in per_seed]
    return (
        f"normalised score {sum(each) / len(each):.1f}{listed(each)}: 0 is a return of "
        f"{reference.random:.1f} (random), 100 one of {reference.expert:.1f} (expert); {reference.source}"
    )
