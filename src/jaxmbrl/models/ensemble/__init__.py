"""The probabilistic ensemble: E networks that each predict a diagonal Gaussian over the next observation and reward.

With y the normalised target [next observation - observation, reward] of size D, member e gives a mean m and a log-variance
l from (observation, action), and the fit minimises by Adam

    sum_e mean_{batch, dims} [(m - y)^2 exp(-l) + l] + 0.01 (sum_d high_d - sum_d low_d) + sum_layers decay/2 ||kernel||^2

where l is clamped softly between the learned bounds low and high, shared by the members. Each member has its own bootstrap
of the data. Source: Chua et al., PETS, arXiv 1805.12114; early stopping, elites and the holdout: Janner et al., MBPO, arXiv
1906.08253, and its code. Differences: holdout errors are compared in the space of the fitted targets, where MBPO's code
compares un-normalised ones, so that no dimension dominates because of its units; targets are normalised too by default; and
the mean over the last, smaller minibatch of an epoch is over its actual rows.

- `beta_nll`: under this likelihood a few rows that are hard to predict, such as those of a rare contact, may get a large
  variance early and then too little weight to be learned. With `beta_nll` = b each row and dimension is weighted by
  exp(b l), through which no gradient flows (beta-NLL, Seitzer et al., arXiv 2203.09168, who advise 0.5).
- `noise = "constant"`: l is a learned number for each member and dimension that does not depend on the input, as in
  DHMBPO, so that no region can be explained as noise. It has a smallest value instead of bounds.
- `probabilistic = False` (PETS's DE): there are no log-variances; the fit minimises sum_e mean_{batch, dims} (m - y)^2 and
  the last sum.
- `head = "mixture"` (mixture density networks, Bishop 1994): a member predicts K diagonal Gaussians N(m_k, v_k) of the
  whole vector with weights w_k = softmax(0, z_2, ..., z_K), for noise with several modes. In place of the mean over
  dimensions of (m - y)^2 exp(-l) + l the loss has -2/D log sum_k w_k exp(-1/2 sum_d [(m_kd - y_d)^2 exp(-l_kd) + l_kd]),
  which for K = 1 is the same. The bounds are shared by the components. Early stopping and elites use the likelihood of the
  holdout: the squared error of the mean does not tell modes apart. Under `ts1` and `tsinf` an imagined row is sampled from
  a component that is drawn by its weight; all else that uses a mean and a variance is given those of the mixture.
  Derivatives of imagined rows are those of the drawn component, without a term for the weights.
- `decoupled_decay`: the decay is no part of the loss; each step multiplies kernels and biases by 1 - learning rate x decay
  (AdamW), as in DHMBPO, whose members also start each fit with new moments of Adam (`restart_optimizer`).
- `halt_above`: imagined rows terminate when the model is too uncertain, so that plans avoid such states (after the
  pessimistic MDP of Kidambi et al., MOReL, arXiv 2005.05951). Differences: the measure is the standard deviation of noise
  and disagreement together, and there is no penalty besides the lost rewards. It is meant for tasks that reward survival:
  if rewards are negative, an early termination is an advantage.
- `Task.features`: the networks receive features of the observation instead of the observation, and some entries are
  predicted as absolute values, as PETS uses sine and cosine of an angle and predicts a velocity instead of its change.
- Discrete actions are one-hot encoded.
- `kind`: instead of being fitted independently, the members may be draws from a distribution over the weights of one
  network (`models.bayesian`), which is fitted to all rows without a bootstrap by the loss 2 / (N D) (KL(q || p) - E log
  p(data | w)) and the terms of the bounds and of the termination. Members are drawn anew after each fit. Early stopping
  evaluates the centre of the distribution; all members are elites. The termination has one network, without a
  distribution.

`models.propagation` describes how imagined rows are propagated through the members.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from jaxmbrl.core.spaces import Space
from jaxmbrl.core.types import DynamicsModel, Features
from jaxmbrl.models import layout as layouts
from jaxmbrl.models.ensemble.config import EnsembleConfig
from jaxmbrl.models.ensemble.fit import fit_members
from jaxmbrl.models.ensemble.layout import Layout
from jaxmbrl.models.ensemble.network import EnsembleState, Parameters, init_state, of_member
from jaxmbrl.models.ensemble.world import learned_world, mixtures, predict

__all__ = ["EnsembleConfig", "EnsembleState", "Layout", "Parameters", "layout_of", "make", "of_member"]


def make(
    config: EnsembleConfig,
    observation: Space | int,
    action: Space | int,
    reward: Callable[..., Any] | None = None,
    terminated: Callable[..., Any] | None = None,
    features: Features | None = None,
    on_epoch: Callable[..., None] | None = None,
) -> DynamicsModel:
    """A probabilistic ensemble as a `DynamicsModel` whose state is an `EnsembleState`.

    `observation` and `action` are the task's spaces; a number n means vectors of n real numbers. Actions of a `Discrete`
    space are int32 without an axis of their own, one-hot encoded for the networks.

    `reward(observation, action, next_observation)` and `terminated(next_observation)` are the task's known functions, on
    rows; without them the ensemble learns a reward (last of the D targets, so D = O + 1) and a probability of termination
    given the next observation, with a separate small network for each member, which does not affect the holdout error.
    `features` are the task's. Unless the config disables them, all networks receive the encoded observation, absolute
    entries are predicted as such, and constant entries are copied, with a variance of 0.

    - init(key, hyper): `hyper["learning_rate"]` may be traced; the config's is the default.
    - fit(state, replay, key): fits the first `replay.size` of the buffer's rows [C, ...]. In a ring that was never resized
      these are all valid rows; `data.replay.of_rows` builds a buffer from plain rows. The size may be traced. Weights,
      bounds and, unless `restart_optimizer`, Adam's moments continue from the last fit; each member ends with its best
      weights, but bounds and moments are those of the last epoch. Metrics are computed on the holdout, in the space of the
      fitted targets: means over the elites (the likelihood in nats per dimension); over all members, the predicted noise
      variance (`model/aleatoric`) and the variance between members (`model/epistemic`). A fit too small to have a holdout
      has no metrics, runs all its epochs and does not change the elites.
      `on_epoch(epochs so far)` is called on the host after each epoch, for showing progress.
    - predict(state, observation, action): mean and variance [E, N, D] of [next observation, reward] in the task's units;
      `models.uncertainty` splits them into noise and disagreement. The variance of deterministic members is 0.
    - mixtures(state, observation, action): the mixtures [E, N, K, D] of [next observation, reward] in the task's units, if
      the head is a mixture.
    - world(state): steps a block of N rows with the elites and the rule `config.propagation`. Row n belongs to elite
      n mod E under `tsinf`; under `ts1` all rows are shifted by the same random number of elites at every step, so that
      each step has the same share of rows for each elite. The mean over particles of one block is unbiased. A variance over
      particles is unbiased over keys, but varies more between keys than if rows changed elites independently.
      `expectation`, `distribution` and `moment_matching` evaluate every elite on every row: E times the cost. Nothing is
      ever truncated; `reset` raises NotImplementedError.
      - Moment matching treats the whole block as one belief: its N rows must be the particles of one start and one action
        sequence, never several candidates or a batch of states. A learned reward is the one sampled with its row before the
        refit; a known reward is that of the row's observation and its new next observation. Rows are then no trajectories:
        a row that has terminated is refitted with the others.
      - A learned termination is returned as a probability and not sampled: that of the row's elite under `ts1` and
        `tsinf`, else the mean over all elites.

    Raises UserError if the config is inconsistent, if the observation is not a vector of real numbers, if the action is
    neither such a vector nor discrete, if `absolute` names a dimension that is missing or constant, or if the features name
    a missing dimension or do not return vectors.
    """
    layout = layout_of(config, observation, action, reward, terminated, features)
    return DynamicsModel(
        init=partial(init_state, layout),
        fit=partial(fit_members, layout, on_epoch),
        predict=partial(predict, layout),
        world=partial(learned_world, layout, reward, terminated),
        mixtures=None if layout.components is None else partial(mixtures, layout),
    )


def layout_of(
    config: EnsembleConfig,
    observation: Space | int,
    action: Space | int,
    reward: Callable[..., Any] | None = None,
    terminated: Callable[..., Any] | None = None,
    features: Features | None = None,
) -> Layout:
    """The inputs and outputs of the networks of `make` with the same arguments. Raises UserError as `make` does."""
    return layouts.layout_of(Layout, "an ensemble", config, observation, action, reward, terminated, features)
