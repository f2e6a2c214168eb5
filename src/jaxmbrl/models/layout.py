"""Encoding of rows for a dynamics model: its inputs, its targets, and which observation entries they contain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from jaxmbrl.core.config import UserError, check
from jaxmbrl.core.spaces import Box, Discrete, Space
from jaxmbrl.core.types import Features, Transition

PLAIN = Features()
"""Features of a task that defines none: the observation itself."""


@runtime_checkable
class Encoded(Protocol):
    """Settings of a dynamics model that determine its inputs and outputs."""

    @property
    def absolute(self) -> tuple[int, ...]:
        """Observation dimensions that are predicted as absolute values, besides those that the task names."""

    @property
    def features(self) -> bool:
        """Whether the model receives the task's features of the observation."""


@dataclass(frozen=True)
class Layout:
    """Inputs and outputs of a dynamics model."""

    config: Any
    """`Encoded`."""
    observation: Box
    """A vector [O]."""
    action: Space
    """A vector [A], or discrete; discrete actions are one-hot encoded."""
    learns_reward: bool
    learns_termination: bool
    features: Features = PLAIN

    @property
    def observation_size(self) -> int:
        """O."""
        return self.observation.shape[0]

    @property
    def feature_size(self) -> int:
        """F, the size of the observation's features."""
        return jax.eval_shape(lambda: self.features.encode(jnp.zeros(self.observation_size))).shape[0]

    @property
    def input_size(self) -> int:
        """I, the size of the observation's features and the action."""
        return self.feature_size + (self.action.n if isinstance(self.action, Discrete) else self.action.shape[0])

    @property
    def absolute(self) -> tuple[int, ...]:
        """Observation dimensions that are predicted as absolute values."""
        return self.config.absolute + self.features.absolute

    @property
    def target_size(self) -> int:
        """D, the size of the observation plus 1 if the reward is learned."""
        return self.observation_size + self.learns_reward


def layout_of(
    kind: type[Layout],
    what: str,
    config: Encoded,
    observation: Space | int,
    action: Space | int,
    reward: Callable[..., Any] | None = None,
    terminated: Callable[..., Any] | None = None,
    features: Features | None = None,
) -> Any:
    """The layout, of the class `kind`, of a model with these settings, spaces and known functions, called `what` in errors.

    Raises UserError if the config is inconsistent, if the observation is not a vector of real numbers, if the action is
    neither such a vector nor discrete, if `absolute` names a dimension that is missing or constant, or if the features name
    a missing dimension or do not return vectors.
    """
    config = check(config)
    observation, action = _space(what, "observation", observation), _space(what, "action", action)
    if isinstance(observation, Discrete):
        raise UserError(f"{what} cannot predict a discrete observation, got {observation}")
    size = observation.shape[0]
    features = (features if config.features else None) or PLAIN
    for name, dimensions in (("absolute", config.absolute), *features._asdict().items()):
        if name != "encode":
            _check_dimensions(name, dimensions, size)
    layout = kind(config, observation, action, reward is None, terminated is None, features)
    both = sorted(set(layout.absolute) & set(features.constant))
    if both:
        raise UserError(f"absolute must not name a dimension that is constant in the task's features, got {both[0]}")
    shape = jax.eval_shape(lambda: features.encode(jnp.zeros((3, size)))).shape
    if len(shape) != 2 or shape[0] != 3:
        raise UserError(f"features: encode must map observations [N, O] to [N, F], got {shape} from (3, {size})")
    return layout


def known_termination(what: str, terminated: Callable[..., Any] | None) -> Callable[..., Any]:
    """`terminated`, of a model that cannot predict it. Raises UserError, which begins with `what`, if there is none."""
    if terminated is None:
        raise UserError(f"{what} does not predict terminations: take a task that gives them, and learn_termination false")
    return terminated


def _space(what: str, name: str, given: Space | int) -> Space:
    """The space `given`; a number means vectors of that size. Raises UserError if the space is not one of real vectors."""
    space = Box((given,)) if isinstance(given, int) else given
    if isinstance(space, Box) and not space.is_vector:
        raise UserError(f"{what}'s {name} must be a vector of real numbers, got {space}")
    return space


def _check_dimensions(name: str, dimensions: tuple[int, ...], size: int) -> None:
    beyond = [i for i in dimensions if not 0 <= i < size]
    if beyond:
        raise UserError(f"{name} must name observation dimensions below {size}, got {beyond[0]}")


def inputs_of(layout: Layout, observation: Float[Array, "*n O"], action: Shaped[Array, "..."]) -> Float[Array, "*n I"]:
    """[the observation's features, action], with actions [*n, A] or int32 [*n]."""
    if isinstance(layout.action, Discrete):
        action = jax.nn.one_hot(action, layout.action.n, dtype=observation.dtype)
    return jnp.concatenate([layout.features.encode(observation), action], axis=-1)


def targets_of(layout: Layout, rows: Transition) -> Float[Array, "*n D"]:
    """[change of the observation, or its next value in absolute dimensions; the reward if it is learned]."""
    change = rows.next_observation - delta_mask(layout) * rows.observation
    return jnp.concatenate([change, rows.reward[..., None]], axis=-1) if layout.learns_reward else change


def base_of(layout: Layout, observation: Float[Array, "*n O"]) -> Float[Array, "*n D"]:
    """What a predicted target is added to, to give [next observation, reward]: the observation, or 0 in absolute
    dimensions and for the reward."""
    base = delta_mask(layout) * observation
    return jnp.pad(base, [(0, 0)] * (base.ndim - 1) + [(0, int(layout.learns_reward))])


def delta_mask(layout: Layout) -> Float[Array, "O"]:
    """1 for dimensions that are predicted as changes, 0 for absolute ones."""
    return jnp.ones(layout.observation_size).at[jnp.array(layout.absolute, int)].set(0.0)


def zero_constant_dims(layout: Layout, values: Float[Array, "*n D"]) -> Float[Array, "*n D"]:
    """`values` with 0 for the observation's constant dimensions."""
    if not layout.features.constant:
        return values
    return values.at[..., jnp.array(layout.features.constant, int)].set(0.0)
