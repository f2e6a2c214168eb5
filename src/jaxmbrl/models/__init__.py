"""Dynamics models. A fitted model is used as a `World`."""

from jaxmbrl.models import ensemble
from jaxmbrl.models.ensemble import EnsembleConfig, EnsembleState
from jaxmbrl.models.propagation import uncertainty

__all__ = ["EnsembleConfig", "EnsembleState", "ensemble", "uncertainty"]
