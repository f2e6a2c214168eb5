"""Inputs and outputs of the ensemble's networks (`models.layout`), and which distribution they predict."""

from __future__ import annotations

import jax
from jaxtyping import Array, Float

from jaxmbrl.models import bayesian, layout
from jaxmbrl.models.bayesian import WeightPosterior
from jaxmbrl.models.layout import PLAIN, base_of, delta_mask, inputs_of, targets_of, zero_constant_dims
from jaxmbrl.models.normalizer import Normalizer, normalize

__all__ = ["PLAIN", "Layout", "base_of", "delta_mask", "features_of_next", "inputs_of", "targets_of", "zero_constant_dims"]


class Layout(layout.Layout):
    """Inputs and outputs of the networks. The config is an `EnsembleConfig`."""

    @property
    def input_noise(self) -> bool:
        """Whether the networks output log-variances, within learned bounds."""
        return self.config.probabilistic and self.config.noise == "input"

    @property
    def constant_noise(self) -> bool:
        """Whether each member has log-variances that do not depend on the input."""
        return self.config.probabilistic and self.config.noise == "constant"

    @property
    def components(self) -> int | None:
        """K: the Gaussians of the mixture that each member predicts; None if it predicts one Gaussian."""
        return self.config.components if self.config.head == "mixture" else None

    @property
    def moment_size(self) -> int:
        """The means that a member predicts, D or K D; it has as many log-variances."""
        return (self.components or 1) * self.target_size

    @property
    def posterior(self) -> WeightPosterior | None:
        """The distribution over weights of which the members are draws; None if they are fitted independently."""
        return bayesian.make(self.config.kind, self.config.bayesian)

    @property
    def fitted_networks(self) -> int:
        """M: the networks that are fitted, all members or the one whose weights have a distribution."""
        return self.config.members if self.posterior is None else 1


def features_of_next(layout: Layout, inputs: Normalizer, next_observation: Float[Array, "*n O"]) -> Float[Array, "*n F"]:
    """The features of next observations, normalised like the features in the inputs."""
    of_features = jax.tree.map(lambda leaf: leaf[: layout.feature_size], inputs)
    return normalize(of_features, layout.features.encode(next_observation))
