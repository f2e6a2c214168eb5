"""A dynamics model's predictions of recorded transitions, in chunks of rows. The diagnostics of models are built on this.

A model needs only a function `predict(state, observation [N, O], action [N, A]) -> mean, variance`, written in JAX. Mean
and variance are [E, N, D], in the task's units. D is O for the next observation alone, or O + 1 with the reward last.
Actions of a discrete space are int32 [N]. A `DynamicsModel` has such a function. For your own model, use any object with a
`predict` field, such as `Predictor`; `state` is then the first argument of its `predict`.

The prediction of a member is the Gaussian with this mean and variance, unless the model has a function `mixtures` (see
`core.types.DynamicsModel`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from jaxmbrl.core.config import UserError
from jaxmbrl.core.types import PyTree, Transition

ROWS_AT_ONCE = 4096
Predict: TypeAlias = Callable[[Any, Float[Array, "N O"], Shaped[Array, "N *A"]], tuple[Array, Array]]


@runtime_checkable
class Model(Protocol):
    """Any object with a `predict` function: a `DynamicsModel`, or your own `Predictor`."""

    @property
    def predict(self) -> Predict:
        """(state, observation [N, O], action [N, A] or int32 [N]) -> mean and variance [E, N, D], in the task's units."""


class Predictor(NamedTuple):
    """Your own model for the diagnostics: `Predictor(predict)`."""

    predict: Predict


class Sizes(NamedTuple):
    """Sizes of a model and of the rows that it is evaluated on."""

    members: int
    observation: int
    targets: int
    """D: the size of the observation, plus 1 if the reward is learned."""

    @property
    def learns_reward(self) -> bool:
        """Whether the last of the D targets is the reward."""
        return self.targets > self.observation


def check(model: Model, state: Any, rows: Transition) -> Sizes:
    """The sizes of `model` and `rows` [N, ...]. Raises UserError if they do not match."""
    shapes = {name: np.shape(getattr(rows, name)) for name in ("observation", "action", "next_observation")}
    count = np.shape(rows.reward)[0] if np.ndim(rows.reward) == 1 else 0
    if count < 1:
        raise UserError(f"rows must be [N, ...] with N at least 1, got a reward of shape {np.shape(rows.reward)}")
    discrete = jnp.issubdtype(jnp.result_type(rows.action), jnp.integer)
    for name, shape in shapes.items():
        dimensions = 1 if discrete and name == "action" else 2
        if dimensions == 1 and shape != (count,):
            raise UserError(f"rows: action must be [N] of integers with N = {count}, got shape {shape}")
        if dimensions == 2 and (len(shape) != 2 or shape[0] != count):
            raise UserError(f"rows: {name} must be [N, size] with N = {count}, got shape {shape}")
    size = shapes["observation"][1]
    if shapes["next_observation"][1] != size:
        raise UserError(
            f"rows: next_observation must have {size} numbers, as observation, got {shapes['next_observation'][1]}"
        )
    observation = jax.ShapeDtypeStruct(shapes["observation"], jnp.result_type(float))
    action = jax.ShapeDtypeStruct(shapes["action"], jnp.int32 if discrete else jnp.result_type(float))
    got = [np.shape(part) for part in jax.eval_shape(model.predict, state, observation, action)]
    fits = len(got) == 2 and got[0] == got[1] and len(got[0]) == 3 and got[0][1] == count
    if not (fits and got[0][2] in (size, size + 1)):
        wanted = f"[members, {count}, {size} or {size + 1}]"
        raise UserError(f"predict must give mean and variance, each {wanted}, got {', '.join(map(str, got))}")
    return Sizes(got[0][0], size, got[0][2])


class Prediction(NamedTuple):
    """The predictions of E members, each a mixture of K Gaussians, for N rows."""

    mean: Float[Array, "E N D"]
    variance: Float[Array, "E N D"]
    weights: Float[Array, "E K #N #D"]
    """Of the components; they sum to 1 over K."""
    means: Float[Array, "E K N D"]
    variances: Float[Array, "E K N D"]


def of_gaussians(mean: Float[Array, "E N D"], variance: Float[Array, "E N D"]) -> Prediction:
    """The prediction of E members that each predict one Gaussian."""
    weights = jnp.ones((mean.shape[0], 1, 1, 1), mean.dtype)
    return Prediction(mean, variance, weights, mean[:, None], variance[:, None])


def summarize(
    summary: Callable[[Prediction, Array], tuple[PyTree, PyTree]], model: Model, state: Any, rows: Transition
) -> tuple[PyTree, PyTree]:
    """`summary(prediction, target [n, D])` of all rows [N, ...], `ROWS_AT_ONCE` at a time.

    `summary` returns (arrays with a leading axis of rows, sums over the rows). Returns (the arrays [N, ...], means over the
    N rows in float64). The members' activations for all rows need not fit in memory at once. `summary` should be a
    module-level function, because each new function object is compiled again.
    """
    target = targets(rows, check(model, state, rows))
    count, mixtures = target.shape[0], getattr(model, "mixtures", None)
    kept, total = [], None
    for at in range(0, count, ROWS_AT_ONCE):
        part = slice(at, at + ROWS_AT_ONCE)
        given = (jnp.asarray(x) for x in (rows.observation[part], rows.action[part], target[part]))
        by_row, sums = jax.device_get(_summarized(summary, model.predict, mixtures, state, *given))
        kept.append(by_row)
        sums = jax.tree.map(lambda x: np.asarray(x, np.float64), sums)
        total = sums if total is None else jax.tree.map(np.add, total, sums)
    return jax.tree.map(lambda *parts: np.concatenate(parts), *kept), jax.tree.map(lambda x: x / count, total)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _summarized(
    summary: Callable[..., Any], predict: Predict, mixtures: Callable[..., Any] | None, state: Any, *given: Array
) -> tuple[PyTree, PyTree]:
    observation, action, target = given
    prediction = of_gaussians(*predict(state, observation, action))
    if mixtures is not None:
        found = mixtures(state, observation, action)
        weights, means, stds = (jnp.swapaxes(part, 1, 2) for part in (found.log_weight(), found.mean, found.log_std))
        prediction = Prediction(*prediction[:2], jnp.exp(weights), means, jnp.exp(2 * stds))
    return summary(prediction, target)


def targets(rows: Transition, sizes: Sizes) -> Shaped[np.ndarray, "N D"]:
    """The recorded [next observation, reward], with the reward only if it is learned."""
    next_observation = np.asarray(rows.next_observation)
    if not sizes.learns_reward:
        return next_observation
    return np.concatenate([next_observation, np.asarray(rows.reward)[:, None]], axis=1)
