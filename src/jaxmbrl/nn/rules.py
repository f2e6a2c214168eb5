"""Update rules with their settings, as optax chains for `nn.optimizer`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import optax
from annotated_types import Ge, Gt

from jaxmbrl.nn.optimizer import clip_by_parameter_norm, scale_by_laprop


@dataclass(frozen=True)
class RuleConfig:
    """Settings of an update rule. The defaults are those of DreamerV3."""

    rule: Literal["laprop", "adam"] = "laprop"
    """How a direction is computed from the gradients."""
    epsilon: Annotated[float, Gt(0)] = 1e-20
    """Added to the root mean square of the gradients."""
    parameter_clip: Annotated[float, Ge(0)] = 0.3
    """Largest norm of each tensor's gradient, as a multiple of the tensor's norm; 0 for none."""
    norm_clip: Annotated[float, Ge(0)] = 0.0
    """Largest norm of the whole gradient; 0 for none."""
    warmup: Annotated[int, Ge(0)] = 1000
    """Updates within which the learning rate rises linearly from 0; the first one changes nothing."""


def chain(config: RuleConfig) -> optax.GradientTransformation:
    """The rule as a chain of optax, without the learning rate: clipping, then directions, then the rise of the rate."""
    parts = []
    if config.norm_clip > 0:
        parts.append(optax.clip_by_global_norm(config.norm_clip))
    if config.parameter_clip > 0:
        parts.append(clip_by_parameter_norm(config.parameter_clip))
    scale = scale_by_laprop if config.rule == "laprop" else optax.scale_by_adam
    parts.append(scale(0.9, 0.999, config.epsilon))
    if config.warmup > 0:
        parts.append(optax.scale_by_schedule(optax.linear_schedule(0.0, 1.0, config.warmup)))
    return optax.chain(*parts)
