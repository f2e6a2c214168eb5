"""A dynamics model alone: fitted to transitions, and judged on rows that it has not seen."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt, Lt

from jaxmbrl.core import metrics
from jaxmbrl.core.config import UserError, to_dict
from jaxmbrl.core.types import DynamicsModel, Task, Transition
from jaxmbrl.diagnostics.one_step import ModelEvaluation, evaluate_model
from jaxmbrl.models import EnsembleConfig, EnsembleState, ensemble
from jaxmbrl.training import memory, programs


@dataclass(frozen=True)
class FitConfig:
    """How a model is fitted and judged."""

    ensemble: EnsembleConfig = field(default_factory=EnsembleConfig)
    """The dynamics model."""
    learn_reward: bool = False
    """Learn the reward even where the task's is known."""
    learn_termination: bool = False
    """Learn the termination even where the task's is known."""
    test_fraction: Annotated[float, Gt(0), Lt(1)] = 0.2
    """Share of the rows, the last of them, that the model is judged on and never sees."""
    seed: Annotated[int, Ge(0), Lt(2**31)] = 0
    """Of the first weights and of the fit."""


class Judged(NamedTuple):
    """A fitted model, and what it is worth on the rows that it has not seen."""

    model: DynamicsModel
    state: EnsembleState
    found: dict[str, float]
    """Metrics of the fit, by the names of a run's."""
    evaluation: ModelEvaluation
    trained_on: int
    tested_on: int


def fit_and_judge(config: FitConfig, rows: Transition, task: Task | None = None) -> Judged:
    """Fit an ensemble to the first of `rows` [N, ...] and judge it on the others.

    With a `task` its known reward and termination are used and not learned, unless the config says so. Raises UserError
    where the rows are too few to part, or the model is too large for the machine.
    """
    programs.check_whole(to_dict(config))
    count = rows.reward.shape[0]
    tested = round(config.test_fraction * count)
    trained = count - tested
    if tested < 1 or trained < 2:
        raise UserError(
            f"test_fraction {config.test_fraction:g} of {count} rows leaves {trained} to fit and {tested} to test"
        )
    model = ensemble.make(
        config.ensemble,
        rows.observation.shape[1],
        rows.action.shape[1],
        reward=None if task is None or config.learn_reward else task.reward,
        terminated=None if task is None or config.learn_termination else task.terminated,
        features=None if task is None else task.features,
    )
    init_key, fit_key = jax.random.split(jax.random.key(config.seed))
    shapes = jax.eval_shape(lambda: model.init(init_key, {}))
    memory.check(shapes, "the model", "lower ensemble.members or ensemble.hidden")
    known = jax.tree.map(lambda leaf: jnp.asarray(leaf[:trained]), rows)
    state, found = jax.jit(model.fit)(model.init(init_key, {}), known, jnp.asarray(trained), fit_key)
    unseen = jax.tree.map(lambda leaf: leaf[trained:], rows)
    return Judged(
        model=model,
        state=state,
        found=metrics.known(found),
        evaluation=evaluate_model(model, state, unseen),
        trained_on=trained,
        tested_on=tested,
    )
