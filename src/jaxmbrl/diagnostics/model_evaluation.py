"""Fit a dynamics model to transitions, without an agent, and evaluate it on held-out rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
from annotated_types import Ge, Gt, Lt

from jaxmbrl.algorithms.shared import DynamicsChoice
from jaxmbrl.core import metrics, surroundings
from jaxmbrl.core.config import UserError, to_dict
from jaxmbrl.core.spaces import Box, Discrete, Space
from jaxmbrl.core.types import DynamicsModel, PyTree, Task, Transition
from jaxmbrl.core.warning import warn_user
from jaxmbrl.data import dataset, examining, replay
from jaxmbrl.diagnostics.one_step import ModelEvaluation, evaluate_model
from jaxmbrl.models import EnsembleConfig, ensemble, gaussian_process, score_matching
from jaxmbrl.training import memory, programs


@dataclass(frozen=True)
class FitConfig(DynamicsChoice):
    """How a model is fitted and evaluated."""

    ensemble: EnsembleConfig = field(default_factory=EnsembleConfig)
    """The ensemble."""
    learn_reward: bool = False
    """Learn the reward even if the task's reward function is known."""
    learn_termination: bool = False
    """Learn the termination even if the task's termination function is known."""
    test_fraction: Annotated[float, Gt(0), Lt(1)] = 0.2
    """Share of the rows that are not used for the fit but for the evaluation: the last ones."""
    seed: Annotated[int, Ge(0), Lt(2**31)] = 0
    """Random seed of the initial weights and of the fit."""


FEW = 50
"""Rows below which an evaluation says little."""


class FitEvaluation(NamedTuple):
    """A fitted model and its evaluation on the test rows."""

    model: DynamicsModel
    state: PyTree
    found: dict[str, float]
    """Metrics of the fit, under the same names as in a run."""
    evaluation: ModelEvaluation
    trained_on: int
    tested_on: int


def fit_and_evaluate(
    config: FitConfig, rows: Transition, task: Task | None = None, update: Callable[[int], None] | None = None
) -> FitEvaluation:
    """Fit a model to the first `rows` [N, ...] and evaluate it on the last ones. `update` receives the number of epochs of
    an ensemble's fit so far.

    With a `task`, its known reward and termination functions are used, unless the config asks to learn them. Without one,
    integer actions [N] are taken to be from the smallest discrete space that contains them. Raises UserError if there are
    too few rows to split, the model is too large for the machine's memory, or it cannot model the spaces. Gives a
    `DataWarning` for fewer than `FEW` rows, and for each column that is far outside of the fitted rows' range in the test
    rows.
    """
    surroundings.check()
    programs.check_whole(to_dict(config))
    count = rows.reward.shape[0]
    tested = round(config.test_fraction * count)
    trained = count - tested
    if tested < 1 or trained < 2:
        raise UserError(
            f"test_fraction {config.test_fraction:g} of {count} rows leaves {trained} to fit and {tested} to test"
        )
    if count < FEW:
        warn_user(
            f"there are only {count} rows, {trained} to fit and {tested} to test, so that the errors are largely chance: "
            "record some hundreds",
            dataset.DataWarning,
        )
    known: dict[str, Any] = {
        "observation": _space(rows.observation, None if task is None else task.observation),
        "action": _space(rows.action, None if task is None else task.action),
        "reward": None if task is None or config.learn_reward else task.reward,
        "terminated": None if task is None or config.learn_termination else task.terminated,
        "features": None if task is None else task.features,
    }
    if config.dynamics == "gp":
        model = gaussian_process.make(config.gp, **known)
    elif config.dynamics == "score":
        model = score_matching.make(config.score, **known)
    else:
        on_epoch = None if update is None else lambda epochs: update(int(epochs))
        model = ensemble.make(config.ensemble, **known, on_epoch=on_epoch)
    init_key, fit_key = jax.random.split(jax.random.key(config.seed))
    shapes = jax.eval_shape(lambda: model.init(init_key, {}))
    memory.check(shapes, "the model", "lower ensemble.members or ensemble.hidden")
    fitted = jax.tree.map(lambda leaf: leaf[:trained], rows)
    unseen = jax.tree.map(lambda leaf: leaf[trained:], rows)
    for text in examining.out_of_range(fitted, unseen):
        warn_user(text, dataset.DataWarning)
    state, found = jax.jit(model.fit)(jax.jit(model.init)(init_key, {}), replay.of_rows(fitted), fit_key)
    if update is not None:
        jax.block_until_ready(state)
        jax.effects_barrier()
    return FitEvaluation(
        model=model,
        state=state,
        found=metrics.known(found),
        evaluation=evaluate_model(model, state, unseen),
        trained_on=trained,
        tested_on=tested,
    )


def _space(values: Any, known: Space | None) -> Space | int:
    """The space of one row of `values` [N, ...], or its length if it is a vector. `known` is the task's space."""
    if values.ndim == 2:
        return values.shape[1]
    if known is None and values.ndim == 1 and np.issubdtype(values.dtype, np.integer):
        return Discrete(int(np.max(values)) + 1)
    return Box(values.shape[1:], dtype=str(values.dtype)) if known is None else known
