"""Latent world models: a recurrent belief about the state, the World in which it is imagined, and policies that act on it.

model = rssm.make(RSSMConfig(), task.observation, task.action)
params = model.init(key)
window = by_successor(rows, is_first, task.action)          # rows of `data.sequences.sample`
loss, (beliefs, metrics) = model.loss(params, window, key)
policy = believing(model, params, inner)                    # its memory is the belief
trajectory = imagine(model.world(params), actor, rows_of(beliefs), key, length)
"""

from __future__ import annotations

from jaxmbrl.models.latent import aligned, coders, consistency, mdn_rnn, one_step, rssm
from jaxmbrl.models.latent.coders import Coder, CoderConfig
from jaxmbrl.models.latent.consistency import ConsistencyConfig
from jaxmbrl.models.latent.interface import (
    Belief,
    LatentModel,
    LatentView,
    Window,
    believing,
    on_features,
    repeated,
    rows_of,
)
from jaxmbrl.models.latent.latents import Latent, floored
from jaxmbrl.models.latent.mdn_rnn import MDNConfig
from jaxmbrl.models.latent.one_step import OneStepConfig
from jaxmbrl.models.latent.rssm import RSSMConfig
from jaxmbrl.models.latent.windows import by_successor, continued, step_weights

__all__ = [
    "Belief",
    "Coder",
    "CoderConfig",
    "ConsistencyConfig",
    "Latent",
    "LatentModel",
    "LatentView",
    "MDNConfig",
    "OneStepConfig",
    "RSSMConfig",
    "Window",
    "aligned",
    "believing",
    "by_successor",
    "coders",
    "consistency",
    "continued",
    "floored",
    "mdn_rnn",
    "on_features",
    "one_step",
    "repeated",
    "rows_of",
    "rssm",
    "step_weights",
]
