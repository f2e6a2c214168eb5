"""Open-loop predictions of a fitted model over several steps, compared with recorded trajectories under the same actions.

A trajectory of member e starts at a recorded observation s_0. It takes the recorded actions a_0, a_1, ... and follows the
member's own predictions:

    x_0 = s_0,    x_{h+1} = m_e(x_h, a_h)         and, if it is sampled, + sqrt(v_e(x_h, a_h)) * a standard normal draw

Here m_e and v_e are the mean and the variance that the member predicts. A trajectory keeps its member for all steps (TSinf
of Chua et al., PETS, arXiv 1805.12114, section 4). The trajectory of the mean follows mean_e m_e(x_h, a_h) and is never
sampled. The model sees only the first recorded observation, so its errors compound.

A recorded sequence never continues across an end or a reset. It ends where `terminated` or `truncated` is set, and where
the observation of the next row is not this row's next observation, as between the rows of several environments.
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
from jaxmbrl.data.experience import torn
from jaxmbrl.diagnostics import predicting
from jaxmbrl.diagnostics.predicting import Model, Predict

MEAN = -1
"""Member index of a trajectory that follows the mean over members."""
STARTS = 200
PARTICLES = 20


class CompoundingError(NamedTuple):
    """Errors of observations predicted h = 1 .. H steps ahead, over the same S start states at every h. Entry h - 1 is for
    h steps. NumPy arrays.

    The error of dimension d is the root mean square over starts of x_h - s_h, in the task's units. A scaled error is the
    root mean square over dimensions of error / scale. It is in standard deviations: a scaled error of 1 is as large as the
    spread of the data. Dimensions that never vary are left out.
    """

    members: Float[np.ndarray, "E H O"]
    """Error of each member's own trajectory."""
    mean: Float[np.ndarray, "H O"]
    """Error of the trajectory of the mean over members."""
    persistence: Float[np.ndarray, "H O"]
    """Error of the baseline that predicts no change, x_h = s_0."""
    scaled_members: Float[np.ndarray, "E H"]
    scaled_mean: Float[np.ndarray, "H"]
    scaled_persistence: Float[np.ndarray, "H"]
    scale: Float[np.ndarray, "O"]
    """Standard deviation of each dimension over all recorded observations."""
    starts: Int[np.ndarray, "S"]
    """Indices of the rows that trajectories start from, ascending."""


class ImaginedVsReal(NamedTuple):
    """Trajectories from one recorded state under the recorded actions. NumPy arrays in the task's units. Entry 0 of the
    observations is the start, and reward h is the reward of the step from h to h + 1."""

    real: Float[np.ndarray, "H+1 O"]
    mean: Float[np.ndarray, "H+1 O"]
    """Trajectory of the mean over members."""
    members: Float[np.ndarray, "E H+1 O"]
    """Trajectory of each member, by its own mean."""
    particles: Float[np.ndarray, "P H+1 O"]
    """Sampled trajectories; particle p uses member p mod E."""
    real_reward: Float[np.ndarray, "H"]
    mean_reward: Float[np.ndarray, "H"] | None
    """None, like the other two, if the reward is neither learned nor given."""
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

    `model` is a `DynamicsModel` with its `state`, or any object with a `predict` function (see `Predictor`). `episodes` are
    recorded rows [N, ...], in time order within each episode, which should not have been used to fit the model. A row is a
    possible start if it is the first of `horizon` steps of one episode. If there are more than `starts` of them, `starts`
    are drawn without replacement. Members predict their means; if `sampled`, noise with their variances is added.

    The measure is the root mean squared error of iterated one-step predictions, each dimension in units of its own standard
    deviation (Lambert et al., Investigating compounding prediction errors in learned dynamics models, arXiv 2203.09637,
    without the root). With E members, each start and step costs E (E + 1) predictions.

    Raises UserError if no recorded episode is long enough, or the shapes of rows and model do not match.
    """
    sizes = predicting.check(model, state, episodes)
    if horizon < 1 or starts < 1:
        raise UserError(f"horizon and starts must be at least 1, got {horizon} and {starts}")
    left = steps_left(episodes)
    long_enough = np.flatnonzero(left >= horizon)
    if not len(long_enough):
        raise UserError(f"horizon must be at most {left.max()}, the longest recorded sequence, got {horizon}")
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
        jnp.asarray(np.asarray(episodes.observation)[long_enough]),
        jnp.asarray(np.swapaxes(np.asarray(episodes.action)[trajectory], 0, 1)),
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
    """Imagined trajectories from row `start` of the recorded rows [N, ...], and the recorded trajectory.

    All trajectories take the recorded actions for `horizon` steps. `key` is for the noise of the `particles`. Rewards are
    those of `reward(observation, action, next_observation)`, a task's known function, if it is given, else the model's.
    Raises UserError if the recorded episode is shorter than `horizon`, or the shapes of rows and model do not match.
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
    action = np.asarray(episode.action[part])
    imagined = _imagine(
        model.predict,
        state,
        jnp.asarray(episode.observation[start : start + 1]),
        jnp.asarray(action[:, None]),
        jnp.asarray(owners),
        jnp.asarray(np.arange(len(owners)) > sizes.members),
        key,
    )
    imagined = np.asarray(imagined)[:, :, 0]
    later = np.swapaxes(imagined[..., : sizes.observation], 0, 1)
    first = np.broadcast_to(np.asarray(episode.observation[start], imagined.dtype), (len(owners), 1, sizes.observation))
    observation = np.concatenate([first, later], axis=1)
    rewards = None
    if reward is not None:
        taken = np.broadcast_to(action, (len(owners), *action.shape))
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
    """The number of recorded steps from each of the rows [N, ...], itself included, to the end of its episode or record."""
    ended = np.asarray(rows.terminated, bool) | np.asarray(rows.truncated, bool)
    breaks = np.flatnonzero(np.append(ended[:-1] | np.asarray(torn(rows)), True))
    numbers = np.arange(len(ended))
    return breaks[np.searchsorted(breaks, numbers)] - numbers + 1


def _deviation(values: Float[np.ndarray, "N O"]) -> Float[np.ndarray, "O"]:
    """Standard deviations, exactly 0 for a constant dimension."""
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
    """The prediction of each step of K trajectories from each of the S origins. `owners` are their member indices."""
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
