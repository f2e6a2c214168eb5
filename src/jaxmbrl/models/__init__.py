"""Dynamics models: a fitted model is a `World`."""

from jaxmbrl.models import ensemble
from jaxmbrl.models.ensemble import EnsembleConfig, EnsembleState

__all__ = ["EnsembleConfig", "EnsembleState", "ensemble"]
