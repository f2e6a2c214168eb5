"""Open-loop predictions of a fitted model over several steps, compared with the recorded ones under the same actions.

From a recorded observation s_0 and the recorded actions a_0, a_1, ... a trajectory of member e continues by its own
predictions alone,

    x_0 = s_0,    x_{h+1} = m_e(x_h, a_h)         and, where it is sampled, + sqrt(v_e(x_h, a_h)) * a standard normal draw

with the member's mean m_e and variance v_e: it stays with its member for all steps (TSinf of Chua et al., PETS, arXiv
1805.12114, section 4). The trajectory of the mean continues by mean_e m_e(x_h, a_h) and is never sampled. The model sees no
recorded observation but the first, so that its errors compound.

Recorded steps are never followed across an end or a reset: a sequence ends where `terminated` or `truncated` is set, and
where the next row does not begin at this row's next observation, as between rows of several environments.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxmbrl.core.config import UserError
from jaxmbrl.core.types import Key, Transition
from jaxmbrl.diagnostics import predicting
from jaxmbrl.diagnostics.predicting import Model, Predict

MEAN = -1
"""Owner of a trajectory that continues by the mean over members."""
STARTS = 200
PARTICLES = 20
CLOSE = 1e-3
"""Largest distance of a row's observation from the previous row's next one within a sequence, in standard deviations."""


class CompoundingError(NamedTuple):
    """Errors of observations predicted h = 1 .. H steps ahead, over the same S start states at every h; entry h - 1 is for
    h steps. NumPy arrays.

    An error of dimension d is the root of the mean over starts of (x_h - s_h)^2, in the task's units. A scaled one is the
    root of the mean over dimensions of (error / scale)^2: in standard deviations, so that 1 is an error as large as the
    data's own spread. Dimensions that never vary are left out.
    """

    members: Float[np.ndarray, "E H O"]
    """Of each member's own trajectory."""
    mean: Float[np.ndarray, "H O"]
    """Of the trajectory of the mean over members."""
    persistence: Float[np.ndarray, "H O"]
    """Of the prediction that nothing changes, x_h = s_0: the baseline."""
    scaled_members: Float[np.ndarray, "E H"]
    scaled_mean: Float[np.ndarray, "H"]
    scaled_persistence: Float[np.ndarray, "H"]
    scale: Float[np.ndarray, "O"]
    """Standard deviation of each dimension over all recorded observations."""
    starts: Int[np.ndarray, "S"]
    """Numbers of the rows that trajectories start from, ascending."""


class ImaginedVsReal(NamedTuple):
    """Trajectories from one recorded state by the recorded actions. NumPy arrays in the task's units; entry 0 of the
    observations is the start, and reward h is that of the step from h to h + 1."""

    real: Float[np.ndarray, "H+1 O"]
    mean: Float[np.ndarray, "H+1 O"]
    """By the mean over members."""
    members: Float[np.ndarray, "E H+1 O"]
    """By each member's own mean."""
    particles: Float[np.ndarray, "P H+1 O"]
    """Sampled: particle p by member p mod E."""
    real_reward: Float[np.ndarray, "H"]
    mean_reward: Float[np.ndarray, "H"] | None
    """None, like the other two, where the reward is neither learned nor given."""
    members_reward: Float[np.ndarray, "E H"] | None
    particles_reward: Float[np.ndarray, "P H"] | None


def compounding_error(
    model: Model,
    state: Any,
    episodes: Transition,
    horizon: int,
    key: Key,
    *,
    starts: int = STARTS,
    sampled: bool = False,
) -> CompoundingError:
    """The error of imagined observations after 1 .. `horizon` steps.

    `model` is a `DynamicsModel` with its `state`, or anything with a `predict` (see `Predictor`). `episodes` are recorded
    rows [N, ...], in time order within each episode, to which the model should not have been fitted. A start is the first
    row of `horizon` steps of one episode; of more than `starts` such rows that many are drawn without replacement. Members
    predict by their means; if `sampled`, noise of their variances is added.

    The measure is the root mean squared error of one-step predictions that are applied to themselves, each dimension in
    units of its own spread (Lambert et al., Investigating compounding prediction errors in learned dynamics models, arXiv
    2203.09637, without the root). The cost is that of E (E + 1) predictions for each start and step, with E members.

    Raises UserError where no recorded episode is long enough, or rows and model do not fit each other.
    """
    sizes = predicting.check(model, state, episodes)
    if horizon < 1 or starts < 1:
        raise UserError(f"horizon and starts must be at least 1, got {horizon} and {starts}")
    left = steps_left(episodes)
    long_enough = np.flatnonzero(left >= horizon)
    if not len(long_enough):
        raise UserError(f"horizon must be at most {left.max()}, the longest recorded stretch, got {horizon}")
    start_key, noise_key = jax.random.split(key)
    if len(long_enough) > starts:
        drawn = jax.random.choice(start_key, len(long_enough), (starts,), replace=False)
        long_enough = long_enough[np.sort(np.asarray(drawn))]
    trajectory = long_enough[:, None] + np.arange(horizon)
    observations = np.asarray(episodes.observation, np.float64)
    owners = np.arange(-1, sizes.members)
    imagined = _imagine(
        model.predict,
        state,
        jnp.asarray(episodes.observation)[long_enough],
        jnp.swapaxes(jnp.asarray(episodes.action)[trajectory], 0, 1),
        jnp.asarray(owners),
        jnp.asarray((owners != MEAN) & sampled),
        noise_key,
    )
    real = np.asarray(episodes.next_observation, np.float64)[trajectory]
    miss = np.asarray(imagined, np.float64)[..., : sizes.observation] - np.swapaxes(real, 0, 1)[:, None]
    # [H, E + 1, S, O] -> [E + 1, H, O]
    error = np.sqrt(np.mean(miss**2, axis=2)).swapaxes(0, 1)
    persistence = np.sqrt(np.mean((observations[long_enough][:, None] - real) ** 2, axis=0))
    scale = _deviation(observations)
    return CompoundingError(
        members=error[1:],
        mean=error[0],
        persistence=persistence,
        scaled_members=_scaled(error[1:], scale),
        scaled_mean=_scaled(error[0], scale),
        scaled_persistence=_scaled(persistence, scale),
        scale=scale,
        starts=long_enough,
    )


def imagined_vs_real(
    model: Model,
    state: Any,
    episode: Transition,
    start: int,
    horizon: int,
    key: Key,
    *,
    particles: int = PARTICLES,
    reward: Callable[..., Any] | None = None,
) -> ImaginedVsReal:
    """Imagined trajectories from row `start` of the recorded rows [N, ...], and the recorded one.

    All trajectories take the recorded actions for `horizon` steps. `key` is for the noise of the `particles`. Rewards are
    the model's, or `reward(observation, action, next_observation)`, a task's known function, where it is given. Raises
    UserError where the recorded episode ends before, or rows and model do not fit each other.
    """
    sizes = predicting.check(model, state, episode)
    left = steps_left(episode)
    if not 0 <= start < len(left):
        raise UserError(f"start must be a row from 0 to {len(left) - 1}, got {start}")
    if not 1 <= horizon <= left[start]:
        raise UserError(
            f"horizon must be from 1 to {left[start]}, the steps left of the episode at row {start}, got {horizon}"
        )
    if particles < 0:
        raise UserError(f"particles must be at least 0, got {particles}")
    members = np.arange(sizes.members)
    owners = np.concatenate([[MEAN], members, np.arange(particles) % sizes.members])
    part = slice(start, start + horizon)
    action = jnp.asarray(episode.action[part])
    imagined = _imagine(
        model.predict,
        state,
        jnp.asarray(episode.observation[start : start + 1]),
        action[:, None],
        jnp.asarray(owners),
        jnp.asarray(np.arange(len(owners)) > sizes.members),
        key,
    )[:, :, 0]
    later = jnp.swapaxes(imagined[..., : sizes.observation], 0, 1)
    first = jnp.broadcast_to(jnp.asarray(episode.observation[start]), (len(owners), 1, sizes.observation))
    observation = jnp.concatenate([first, later], axis=1)
    rewards = None
    if reward is not None:
        taken = jnp.broadcast_to(action, (len(owners), *action.shape))
        rewards = np.asarray(reward(observation[:, :-1], taken, observation[:, 1:]), np.float64)
    elif sizes.learns_reward:
        rewards = np.asarray(imagined[..., -1].T, np.float64)
    trajectories = np.asarray(observation, np.float64)
    own, sampled = slice(1, 1 + sizes.members), slice(1 + sizes.members, None)
    real = np.concatenate([episode.observation[start : start + 1], episode.next_observation[part]])
    return ImaginedVsReal(
        real=np.asarray(real, np.float64),
        mean=trajectories[0],
        members=trajectories[own],
        particles=trajectories[sampled],
        real_reward=np.asarray(episode.reward[part], np.float64),
        mean_reward=None if rewards is None else rewards[0],
        members_reward=None if rewards is None else rewards[own],
        particles_reward=None if rewards is None else rewards[sampled],
    )


def steps_left(rows: Transition) -> Int[np.ndarray, "N"]:
    """Recorded steps from each of the rows [N, ...] to the end of its episode or of its record, itself included."""
    observation = np.asarray(rows.observation, np.float64)
    ended = np.asarray(rows.terminated, bool) | np.asarray(rows.truncated, bool)
    apart = np.abs(np.asarray(rows.next_observation, np.float64)[:-1] - observation[1:])
    # The same observation computed in two places of a program may differ by rounding.
    close = CLOSE * _deviation(observation) + 1e-5 * np.abs(observation).max(axis=0)
    breaks = np.flatnonzero(np.append(ended[:-1] | (apart > close).any(axis=1), True))
    numbers = np.arange(len(observation))
    return breaks[np.searchsorted(breaks, numbers)] - numbers + 1


def _deviation(values: Float[np.ndarray, "N O"]) -> Float[np.ndarray, "O"]:
    """Standard deviations, exactly 0 where nothing varies."""
    return np.std(values - values[0], axis=0)


def _scaled(error: Float[np.ndarray, "*n O"], scale: Float[np.ndarray, "O"]) -> Float[np.ndarray, "*n"]:
    varies = scale > 0
    return np.sqrt(np.mean((error[..., varies] / scale[varies]) ** 2, axis=-1)) if varies.any() else error[..., 0] * np.nan


@partial(jax.jit, static_argnums=0)
def _imagine(
    predict: Predict,
    state: Any,
    origin: Float[Array, "S O"],
    actions: Shaped[Array, "H S *A"],
    owners: Int[Array, "K"],
    sampled: Bool[Array, "K"],
    key: Key,
) -> Float[Array, "H K S D"]:
    """The prediction of each step of K trajectories from each origin, by their owners."""
    lanes, (starts, size) = owners.shape[0], origin.shape

    def step(
        observation: Float[Array, "K S O"], inputs: tuple[Shaped[Array, "S *A"], Key]
    ) -> tuple[Float[Array, "K S O"], Float[Array, "K S D"]]:
        action, key = inputs
        # Every member predicts for every trajectory: `predict` does not offer one member alone.
        predicted = predict(state, observation.reshape(-1, size), jnp.tile(action, (lanes, *(1,) * (action.ndim - 1))))
        mean, variance = (x.reshape(-1, lanes, starts, x.shape[-1]) for x in predicted)
        numbers = jnp.arange(lanes)
        own = mean[owners, numbers]
        noise = jnp.sqrt(variance[owners, numbers]) * jax.random.normal(key, own.shape, own.dtype)
        own += jnp.where(sampled[:, None, None], noise, 0.0)
        prediction = jnp.where((owners == MEAN)[:, None, None], jnp.mean(mean, axis=0), own)
        return prediction[..., :size], prediction

    first = jnp.broadcast_to(origin, (lanes, *origin.shape))
    return jax.lax.scan(step, first, (actions, jax.random.split(key, actions.shape[0])))[1]
