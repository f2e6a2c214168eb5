"""The probabilistic ensemble: E networks that each predict a diagonal Gaussian over the next observation and reward.

With y the normalised target [next observation - observation, reward] of size D, member e gives a mean m and a log-variance
l from (observation, action), and the fit minimises by Adam

    sum_e mean_{batch, dims} [(m - y)^2 exp(-l) + l] + 0.01 (sum_d high_d - sum_d low_d) + sum_layers decay/2 ||kernel||^2

where l is clamped softly between the learned bounds low and high, shared by the members. Each member has its own bootstrap
of the data. Source: Chua et al., PETS, arXiv 1805.12114; early stopping, elites and the holdout: Janner et al., MBPO, arXiv
1906.08253, and its code. Differences: holdout errors are compared in the space of the fitted targets, where MBPO's code
compares un-normalised ones, so that no dimension dominates by its unit; targets are normalised too by default; and the mean
over a minibatch is over the rows that it has, where an epoch's last one is smaller.

- `beta_nll`: under this likelihood a few rows that are hard to predict, such as those of a rare contact, may get a large
  variance early and then weigh too little to be learned. With `beta_nll` = b each row and dimension is weighted by
  exp(b l), through which no gradient flows (beta-NLL, Seitzer et al., arXiv 2203.09168, who advise 0.5).
- `noise = "constant"`: l is a learned number for each member and dimension that does not depend on the input, as in
  DHMBPO, so that no region can be explained as noise. It has a smallest value instead of bounds.
- `probabilistic = False` (PETS's DE): there are no log-variances; the fit minimises sum_e mean_{batch, dims} (m - y)^2 and
  the last sum.
- `halt_above`: imagined rows terminate where the model is too uncertain, so that plans avoid such states (after the
  pessimistic MDP of Kidambi et al., MOReL, arXiv 2005.05951). Differences: the measure is the standard deviation of noise
  and disagreement together, and there is no penalty besides the lost rewards. It suits a reward for staying alive: where
  rewards are negative, an early termination is a gain.
- `Task.features`: the networks see the observation's features in place of the observation, and some entries are predicted
  themselves, as PETS feeds sine and cosine of an angle and predicts a velocity and not its change.
- A discrete action is fed to the networks one-hot.

How imagined rows move through the members is described in `models.propagation`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxmbrl.core.config import UserError, check
from jaxmbrl.core.spaces import Box, Discrete, Space
from jaxmbrl.core.types import DynamicsModel, Features
from jaxmbrl.models.ensemble.config import EnsembleConfig
from jaxmbrl.models.ensemble.fit import fit_members
from jaxmbrl.models.ensemble.layout import PLAIN, Layout
from jaxmbrl.models.ensemble.network import EnsembleState, Parameters, init_state
from jaxmbrl.models.ensemble.world import learned_world, predict

__all__ = ["EnsembleConfig", "EnsembleState", "Layout", "Parameters", "make"]


def make(
    config: EnsembleConfig,
    observation: Space | int,
    action: Space | int,
    reward: Callable[..., Any] | None = None,
    terminated: Callable[..., Any] | None = None,
    features: Features | None = None,
) -> DynamicsModel:
    """A probabilistic ensemble as a `DynamicsModel` whose state is an `EnsembleState`.

    `observation` and `action` are the task's spaces; a number n stands for vectors of n real numbers. An action may be
    `Discrete`: it is an int32 without an axis of its own, and the networks see it one-hot.

    `reward(observation, action, next_observation)` and `terminated(next_observation)` are the task's known functions, on
    rows; without them the ensemble learns a reward (last of the D targets, so D = O + 1) and a probability of termination
    given the next observation, by a small network of its own for each member, which does not enter the holdout error.
    `features` are the task's, and used unless the config disables them: all networks then see the observation encoded, its
    absolute entries are predicted themselves, and its constant ones stay as they are, with a variance of 0.

    - init(key, hyper): `hyper["learning_rate"]` may be traced; the config's is the default.
    - fit(state, replay, key): to the first `replay.size` of the buffer's rows [C, ...], which are all valid ones of a ring
      that was never resized; `data.replay.of_rows` makes a buffer of plain rows. The number may be traced. Weights, bounds
      and Adam continue from the last fit; each member ends with its best weights, while bounds and Adam are the last
      epoch's. Metrics are means over the elites on the holdout, in the space of the fitted targets (the likelihood in nats
      a dimension), and over all members there the variance that they predict as noise (`model/aleatoric`) and that between
      them (`model/epistemic`). They are unknown in a fit too small to have a holdout, which runs all its epochs and keeps
      the elites as they were.
    - predict(state, observation, action): mean and variance [E, N, D] of [next observation, reward] in the task's units;
      `models.uncertainty` splits them into noise and disagreement. The variance of deterministic members is 0.
    - world(state): the item is a block of N rows, which the elites move as `config.propagation` says. Row n belongs to
      elite n mod E under `tsinf`; under `ts1` all rows are shifted by the same random number of elites at every step, so
      that each step has the same share of rows for each elite. The mean over particles of one block is unbiased, and a
      variance over particles is unbiased over keys, but varies more from key to key than if rows changed elites
      independently. `expectation`, `distribution` and `moment_matching` run every elite on every row: E times the cost.
      Nothing is ever truncated; `reset` raises NotImplementedError.
      - Moment matching takes the whole block for one belief: its N rows must be the particles of one start and one action
        sequence, never several candidates or a batch of states. A learned reward is the one sampled with its row before the
        refit, a known one is that of the row's observation and its new next observation. Rows are no trajectories then: a
        row that has terminated is refitted with the others.
      - A learned termination is returned as a probability and not sampled: that of the row's elite under `ts1` and `tsinf`,
        else the mean of all elites'.

    Raises UserError where the config is inconsistent, the observation is no vector of real numbers, the action neither one
    nor discrete, `absolute` names a dimension that the observation lacks or that is constant, or the features name such a
    dimension or are no vector.
    """
    config = check(config)
    observation, action = _space("observation", observation), _space("action", action)
    if isinstance(observation, Discrete):
        raise UserError(f"an ensemble of Gaussians cannot predict a discrete observation, got {observation}")
    size = observation.shape[0]
    features = (features if config.features else None) or PLAIN
    for name, dimensions in (("absolute", config.absolute), *features._asdict().items()):
        if name != "encode":
            _check_dimensions(name, dimensions, size)
    layout = Layout(config, observation, action, reward is None, terminated is None, features)
    both = sorted(set(layout.absolute) & set(features.constant))
    if both:
        raise UserError(f"absolute must name no dimension that the task's features call constant, got {both[0]}")
    shape = jax.eval_shape(lambda: features.encode(jnp.zeros((3, size)))).shape
    if len(shape) != 2 or shape[0] != 3:
        raise UserError(f"features: encode must make [N, F] of observations [N, O], got {shape} of (3, {size})")
    return DynamicsModel(
        init=partial(init_state, layout),
        fit=partial(fit_members, layout),
        predict=partial(predict, layout),
        world=partial(learned_world, layout, reward, terminated),
    )


def _space(name: str, given: Space | int) -> Space:
    """The space `given`, or that of vectors of so many real numbers; raises UserError where it is no vector."""
    space = Box((given,)) if isinstance(given, int) else given
    if isinstance(space, Box) and not space.is_vector:
        raise UserError(f"an ensemble's {name} must be a vector of real numbers, got {space}")
    return space


def _check_dimensions(name: str, dimensions: tuple[int, ...], size: int) -> None:
    beyond = [i for i in dimensions if not 0 <= i < size]
    if beyond:
        raise UserError(f"{name} must name observation dimensions below {size}, got {beyond[0]}")
