"""A dynamics model alone: fitted to transitions, and judged on rows that it has not seen."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge, Gt, Lt
from jaxtyping import Float

from jaxmbrl import metrics
from jaxmbrl.config import UserError, to_dict
from jaxmbrl.diagnostics import calibration
from jaxmbrl.diagnostics.calibration import Calibration
from jaxmbrl.models import EnsembleConfig, EnsembleState, ensemble, uncertainty
from jaxmbrl.training import memory, programs
from jaxmbrl.types import DynamicsModel, Task, Transition

ROWS_AT_ONCE = 4096


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
    """A fitted model, and what it is worth on the rows that it has not seen. D: [next observation, reward], the reward
    only where it is learned."""

    model: DynamicsModel
    state: EnsembleState
    found: dict[str, float]
    """Metrics of the fit, by the names of a run's."""
    error: Float[np.ndarray, "D"]
    """Root mean squared error of the mean over members, in the task's units."""
    unexplained: Float[np.ndarray, "D"]
    """That error squared, as a share of the variance of [observation change, reward]; NaN where that did not vary."""
    aleatoric: Float[np.ndarray, "D"]
    """Root mean variance that the members predict as noise."""
    epistemic: Float[np.ndarray, "D"]
    """Root mean variance between the members."""
    calibration: Calibration
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
    unseen = jax.tree.map(lambda leaf: jnp.asarray(leaf[trained:]), rows)
    mean, variance = _predict(model, state, unseen)
    aleatoric, epistemic = uncertainty(mean, variance)
    target = jnp.concatenate([unseen.next_observation, unseen.reward[:, None]], axis=1)[:, : mean.shape[2]]
    squared = np.asarray(jnp.mean((jnp.mean(mean, axis=0) - target) ** 2, axis=0))
    change = np.array(target, np.float64)
    change[:, : unseen.observation.shape[1]] -= np.asarray(unseen.observation, np.float64)
    # About one of the rows, so that what never varied has a variance of exactly 0.
    variation = np.var(change - change[0], axis=0)
    return Judged(
        model=model,
        state=state,
        found=metrics.known(found),
        error=np.sqrt(squared),
        unexplained=np.where(variation > 0, squared / np.where(variation > 0, variation, 1.0), np.nan),
        aleatoric=np.asarray(jnp.sqrt(jnp.mean(aleatoric, axis=0))),
        epistemic=np.asarray(jnp.sqrt(jnp.mean(epistemic, axis=0))),
        calibration=calibration.calibrate(mean, variance, target),
        trained_on=trained,
        tested_on=tested,
    )


def _predict(model: DynamicsModel, state: EnsembleState, rows: Transition) -> Any:
    """`model.predict` of many rows, some at a time: every member's activations for all of them need not fit."""
    predict = jax.jit(model.predict)
    count = rows.reward.shape[0]
    parts = [
        predict(state, rows.observation[at : at + ROWS_AT_ONCE], rows.action[at : at + ROWS_AT_ONCE])
        for at in range(0, count, ROWS_AT_ONCE)
    ]
    return tuple(jnp.concatenate(part, axis=1) for part in zip(*parts, strict=True))
