"""Trials of a generation of policies in the task, for a search by returns alone, such as CMA-ES (`nn.cma_es`).

Each episode is played by one point of the generation, which is drawn when the episode begins and is stored in the extras of
its rows. The value of a point is the mean return of its complete episodes. Episodes that began in an earlier generation do
not count.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxmbrl.core.config import UserError
from jaxmbrl.core.types import Action, Key, Memory, Observation, Policy, PyTree, Task, Transition


class Tried(NamedTuple):
    """Which point plays an episode."""

    point: Int[Array, "*n"]
    """Its number in the generation."""
    generation: Int[Array, "*n"]


class Trials(NamedTuple):
    """A generation and the returns of its episodes."""

    points: Float[Array, "population n"]
    """The parameters of its policies."""
    number: Int[Array, ""]
    """Of the generation; generation 0 never counts."""
    total: Float[Array, "population"]
    """Sum of the returns of complete episodes."""
    episodes: Float[Array, "population"]
    """Number of complete episodes."""
    running: Float[Array, "N"]
    """Rewards so far in the current episode of each environment."""

    def interrupted(self, num_envs: int) -> Trials:
        """The same where the rows that come next do not continue the newest ones."""
        return self._replace(running=jnp.zeros_like(self.running))


def check_length(task: Task, num_envs: int, generation_steps: int) -> None:
    """Raise UserError unless every environment completes an episode that counts in each generation of `generation_steps`
    steps. An episode may be in its second step when a generation begins, and is then followed by one as long as the time
    limit."""
    least = (2 * task.episode_length - 1) * num_envs
    if generation_steps < least:
        raise UserError(
            f"generation_steps must be at least {least}, so that each of {num_envs} environments completes an episode of "
            f"{task.name}, at most {task.episode_length} steps, in a generation, got {generation_steps}: raise it or lower "
            "num_envs"
        )


def init(points: Float[Array, "population n"], num_envs: int) -> Trials:
    """Generation 0, which never counts."""
    none = jnp.zeros(points.shape[0])
    return Trials(points, jnp.zeros((), jnp.int32), none, none, jnp.zeros(num_envs))


def following(trials: Trials, points: Float[Array, "population n"]) -> Trials:
    """The next generation, of these points. Episodes that have begun will not count."""
    none = jnp.zeros_like(trials.total)
    return Trials(points, trials.number + 1, none, none, trials.running)


def playing(trials: Trials, of_point: Callable[[Float[Array, "n"]], Policy]) -> Policy:
    """The policy that draws a point of the generation for each episode and acts as `of_point(point)`, which has no
    memory. Its memory and its extras are `Tried`."""

    def init(key: Key) -> Tried:
        return Tried(jax.random.randint(key, (), 0, trials.points.shape[0], jnp.int32), trials.number)

    def act(tried: Tried, observation: Observation, key: Key) -> tuple[Action, PyTree, Memory]:
        action, _, _ = of_point(trials.points[tried.point]).act((), observation, key)
        return action, tried, tried

    return Policy(init, act)


def not_tried(action: Action) -> Tried:
    """The extras of an action that no point chose: those of generation 0."""
    zero = jnp.zeros((), jnp.int32)
    return Tried(zero, zero)


def score(trials: Trials, transitions: Transition) -> Trials:
    """The trials with the episodes that ended in `transitions` [period, N], whose extras are `Tried`."""

    def step(trials: Trials, row: Transition) -> tuple[Trials, None]:
        running = trials.running + row.reward
        ended = row.terminated | row.truncated
        counts = (ended & (row.extras.generation == trials.number) & (trials.number > 0)).astype(running.dtype)
        total = trials.total.at[row.extras.point].add(counts * running)
        episodes = trials.episodes.at[row.extras.point].add(counts)
        return trials._replace(total=total, episodes=episodes, running=jnp.where(ended, 0.0, running)), None

    return jax.lax.scan(step, trials, transitions._replace(observation=(), next_observation=()))[0]


def mean_returns(trials: Trials) -> Float[Array, "population"]:
    """The value of each point; NaN without a complete episode."""
    return trials.total / trials.episodes
