"""Gymnasium's spaces as spaces of a task, and actions of the task as actions of Gymnasium's spaces.

Gymnasium is not imported: spaces are known by the names of their classes and by their attributes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from jaxmbrl.core.config import UserError
from jaxmbrl.core.spaces import Box, Discrete, Space

WRAP = "gymnasium.wrappers.TransformAction(env, function, space)"


def observation_space(name: str, env: Any) -> Space:
    """The observation space of the environment of task `name`. A `Box` of uint8 with two or more axes stays an image; any
    other `Box` becomes a vector of floats. Raises UserError if it is neither a `Box` nor `Discrete`, or if `env` is a
    vector of environments."""
    space: Any = getattr(env, "observation_space", None)
    if getattr(env, "num_envs", None) is not None:
        raise UserError(f"task '{name}': give a single environment and not a vector of them; num_envs makes more of it")
    kind = type(space).__name__
    if kind == "Discrete":
        return Discrete(int(space.n))
    if kind != "Box":
        hint = "gymnasium.wrappers.FlattenObservation makes a Box"
        if space is None:
            hint = "give the environment an observation_space"
        elif isinstance(space, type) or not hasattr(space, "sample"):
            hint = "give a space, such as gymnasium.spaces.Box(-np.inf, np.inf, (size,))"
        elif not getattr(space, "is_np_flattenable", False):
            hint = "an observation of changing size cannot be used: show a Box of numbers instead"
        raise UserError(f"task '{name}': its observations must be a Box or Discrete, got {_text(space)}; {hint}")
    shape = _shape(name, "observations", space)
    if space.dtype == np.uint8 and len(shape) > 1:
        low, high = float(np.min(space.low)), float(np.max(space.high))
        return Box(shape if len(shape) > 2 else (*shape, 1), low, high, "uint8")
    return Box((math.prod(shape),))


def action_space(name: str, env: Any) -> Space:
    """The action space of the environment of task `name`: a `Box` becomes a vector [A] in [-1, 1] (`native`). Raises
    UserError if it is neither `Discrete` nor a `Box` of real numbers, integers or booleans with finite bounds, of which at
    least one component is free."""
    space: Any = getattr(env, "action_space", None)
    kind = type(space).__name__
    if kind == "Discrete":
        return Discrete(int(space.n))
    if kind != "Box":
        raise UserError(f"task '{name}': its actions must be a Box or Discrete, got {_text(space)}{_alternative(space)}")
    shape = _shape(name, "actions", space)
    low, high = np.asarray(space.low), np.asarray(space.high)
    # Gymnasium replaces infinite bounds of integers by the numbers at the ends of their dtype.
    bounded = np.all(getattr(space, "bounded_below", True)) and np.all(getattr(space, "bounded_above", True))
    if not (bounded and np.isfinite(low).all() and np.isfinite(high).all()):
        raise UserError(
            f"task '{name}': its actions must have finite bounds, got {_text(space)}; {WRAP} with the identity and a "
            "bounded Box sets them"
        )
    if (low > high).any():
        raise UserError(f"task '{name}': the low of its actions must not be above their high, got {_text(space)}")
    if not (low < high).any():
        raise UserError(f"task '{name}': its actions leave no choice, low is high everywhere, got {_text(space)}")
    return Box((math.prod(shape),), -1.0, 1.0)


def native(action: Float[np.ndarray, "A"], space: Any) -> Shaped[np.ndarray, "..."]:
    """An action in [-1, 1] as an element of a Gymnasium `Box`; numbers beyond [-1, 1] are clipped.

    Real numbers are mapped linearly onto the bounds, and are never outside of them. Of n integers, or of false and true,
    each is reached from an equal share of [-1, 1], of length 2 / n.
    """
    low, high, at = np.ravel(space.low), np.ravel(space.high), np.clip(np.asarray(action, np.float64), -1.0, 1.0)
    if space.dtype.kind == "f":
        # The bounds are numbers of the space's dtype, so rounding to it cannot cross them.
        low, high = low.astype(np.float64), high.astype(np.float64)
        values = np.clip(rescale(at, low, high), low, high).astype(space.dtype)
    else:
        # Python's integers do not overflow.
        counts = [int(last) - int(first) + 1 for first, last in zip(low, high, strict=True)]
        steps = [min(int((x + 1) / 2 * count), count - 1) for x, count in zip(at, counts, strict=True)]
        values = np.array([int(first) + step for first, step in zip(low, steps, strict=True)], space.dtype)
    return values.reshape(space.shape)


def rescale(
    action: Float[np.ndarray, "A"], low: Float[np.ndarray, "A"], high: Float[np.ndarray, "A"]
) -> Float[np.ndarray, "A"]:
    """Map [-1, 1] linearly onto [low, high], exactly at the bounds and without clipping."""
    at = np.asarray(action, np.float64)
    return 0.5 * (1 - at) * low + 0.5 * (1 + at) * high


def _shape(name: str, what: str, space: Any) -> tuple[int, ...]:
    """The shape of a Gymnasium `Box`. Raises UserError if it has no elements, or if they are not numbers."""
    shape = tuple(map(int, space.shape))
    if space.dtype.kind not in "fiub" or not math.prod(shape):
        raise UserError(f"task '{name}': its {what} must be at least one number, got {_text(space)}")
    return shape


def _alternative(space: Any) -> str:
    """What to do about an action space that is not supported."""
    kind = type(space).__name__
    if kind == "MultiDiscrete":
        choices, count = np.ravel(space.nvec), math.prod(int(n) for n in np.ravel(space.nvec))
        return (
            f": {WRAP} makes Discrete({count}) of its combinations, with function lambda i: np.unravel_index(i, "
            f"{tuple(map(int, choices))}), or a Box of integers"
        )
    if kind == "MultiBinary":
        return f": {WRAP} with the identity makes gymnasium.spaces.Box(0, 1, {tuple(space.shape)}, np.int8)"
    if kind in ("Dict", "Tuple"):
        return (
            f": {WRAP} makes a Box of parts that are Boxes, with gymnasium.spaces.flatten_space(env.action_space) and "
            "lambda a: gymnasium.spaces.unflatten(env.action_space, a)"
        )
    return ": give the environment an action_space" if space is None else ""


def _text(space: Any) -> str:
    """A space in one line of at most 120 characters."""
    text = " ".join(str(space).split())
    return text if len(text) <= 120 else f"{text[:117]}..."
