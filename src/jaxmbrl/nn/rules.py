"""Update rules with their settings, as optax chains for `nn.optimizer`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import jax
import optax
from annotated_types import Ge, Gt
from jaxtyping import Array, Float

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


def scaled(factors: Mapping[str, float]) -> optax.GradientTransformation:
    """Multiplies the directions of named parts of a dict of parameters, such as `{"encoder": 0.3}`: after a `chain`, these
    parts have another learning rate. The others are unchanged."""

    def scale(directions: Any, params: Any = None) -> Any:
        return {
            name: jax.tree.map(lambda x, name=name: factors[name] * x, part) if name in factors else part
            for name, part in directions.items()
        }

    return optax.stateless(scale)


def limited(gradient: Any, bound: float) -> tuple[Any, Float[Array, ""]]:
    """(the gradient with a norm of at most `bound`, its norm before); 0 for no bound. For gradients of several optimisers
    that are limited together; a `chain` limits those of one."""
    norm = optax.tree.norm(gradient)
    if bound == 0:
        return gradient, norm
    return optax.clip_by_global_norm(bound).update(gradient, optax.EmptyState())[0], norm
