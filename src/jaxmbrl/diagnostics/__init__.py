"""Diagnostics of dynamics models and critics: functions that evaluate them on recorded data, and plots of the results.

A model is a `DynamicsModel` with its state, or any prediction function, wrapped as `Predictor(predict)`. Results are
NamedTuples of arrays; each `plot_*` function takes one and returns a matplotlib `Figure`.
"""

from jaxmbrl.diagnostics.calibrating import Calibration, calibration
from jaxmbrl.diagnostics.latent import LatentPredictions, latent_predictions, prediction_strip
from jaxmbrl.diagnostics.one_step import ModelEvaluation, evaluate_model
from jaxmbrl.diagnostics.open_loop import CompoundingError, ImaginedVsReal, compounding_error, imagined_vs_real
from jaxmbrl.diagnostics.plotting import (
    plot_calibration,
    plot_compounding_error,
    plot_imagined_vs_real,
    plot_model_evaluation,
    plot_scatter,
    plot_value_bias,
)
from jaxmbrl.diagnostics.predicting import Predictor
from jaxmbrl.diagnostics.search_trees import TreeNodes, plot_search_tree, tree_nodes
from jaxmbrl.diagnostics.values import ValueBias, monte_carlo_returns, value_bias

__all__ = [
    "Calibration",
    "CompoundingError",
    "ImaginedVsReal",
    "LatentPredictions",
    "ModelEvaluation",
    "Predictor",
    "TreeNodes",
    "ValueBias",
    "calibration",
    "compounding_error",
    "evaluate_model",
    "imagined_vs_real",
    "latent_predictions",
    "monte_carlo_returns",
    "plot_calibration",
    "plot_compounding_error",
    "plot_imagined_vs_real",
    "plot_model_evaluation",
    "plot_scatter",
    "plot_search_tree",
    "plot_value_bias",
    "prediction_strip",
    "tree_nodes",
    "value_bias",
]
