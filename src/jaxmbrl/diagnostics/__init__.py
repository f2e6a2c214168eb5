"""Diagnostics: what a fitted model is good for."""

from jaxmbrl.diagnostics import calibration
from jaxmbrl.diagnostics.calibration import Calibration

__all__ = ["Calibration", "calibration"]
