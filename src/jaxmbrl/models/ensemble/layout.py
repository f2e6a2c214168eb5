"""Encoding of rows for the ensemble's networks: inputs, targets, and which observation entries they contain."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from jaxmbrl.core.spaces import Box, Discrete, Space
from jaxmbrl.core.types import Features, Transition
from jaxmbrl.models.ensemble.config import EnsembleConfig
from jaxmbrl.models.normalizer import Normalizer, normalize

PLAIN = Features()
"""Features of a task that defines none: the observation itself."""


@dataclass(frozen=True)
class Layout:
    """Inputs and outputs of the networks."""

    config: EnsembleConfig
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

    @property
    def input_noise(self) -> bool:
        """Whether the networks output log-variances, within learned bounds."""
        return self.config.probabilistic and self.config.noise == "input"

    @property
    def constant_noise(self) -> bool:
        """Whether each member has log-variances that do not depend on the input."""
        return self.config.probabilistic and self.config.noise == "constant"


def inputs_of(layout: Layout, observation: Float[Array, "*n O"], action: Shaped[Array, "..."]) -> Float[Array, "*n I"]:
    """[the observation's features, action], with actions [*n, A] or int32 [*n]."""
    if isinstance(layout.action, Discrete):
        action = jax.nn.one_hot(action, layout.action.n, dtype=observation.dtype)
    return jnp.concatenate([layout.features.encode(observation), action], axis=-1)


def targets_of(layout: Layout, rows: Transition) -> Float[Array, "*n D"]:
    """[change of the observation, or its next value in absolute dimensions; the reward if it is learned]."""
    change = rows.next_observation - delta_mask(layout) * rows.observation
    return jnp.concatenate([change, rows.reward[..., None]], axis=-1) if layout.learns_reward else change


def features_of_next(layout: Layout, inputs: Normalizer, next_observation: Float[Array, "*n O"]) -> Float[Array, "*n F"]:
    """The features of next observations, normalised like the features in the inputs."""
    of_features = jax.tree.map(lambda leaf: leaf[: layout.feature_size], inputs)
    return normalize(of_features, layout.features.encode(next_observation))


def delta_mask(layout: Layout) -> Float[Array, "O"]:
    """1 for dimensions that are predicted as changes, 0 for absolute ones."""
    return jnp.ones(layout.observation_size).at[jnp.array(layout.absolute, int)].set(0.0)


def zero_constant_dims(layout: Layout, values: Float[Array, "*n D"]) -> Float[Array, "*n D"]:
    """`values` with 0 for the observation's constant dimensions."""
    if not layout.features.constant:
        return values
    return values.at[..., jnp.array(layout.features.constant, int)].set(0.0)
