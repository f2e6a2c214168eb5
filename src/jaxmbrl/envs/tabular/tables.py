"""Markov decision processes as tables: their environments and tasks, and their optimal values.

Shape letters: S states, A actions, K outcomes of an action.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt8

from jaxmbrl.core.spaces import Discrete, Space
from jaxmbrl.core.types import Key, Observation, Task, Transition
from jaxmbrl.envs.base import State, initial_state, make_task
from jaxmbrl.envs.drawing.scene import Scene

Draw: TypeAlias = Callable[[int, int | None], UInt8[np.ndarray, "H W 3"]]
"""(state, action that led to it, or None at the start of an episode) -> picture."""
Show: TypeAlias = Callable[[Int[Array, ""]], Scene]
"""state -> what an observed image shows."""

ROUNDING = 4 * float(np.finfo(np.float64).eps)
"""Value iteration ends after a sweep that changes no value by more than this, times 1 + its size."""
SWEEPS = 100_000


class TabularMDP(NamedTuple):
    """A finite Markov decision process. An action in a state has K outcomes, some of which may have probability 0."""

    successors: Int[np.ndarray, "S A K"]
    probabilities: Float[np.ndarray, "S A K"]
    rewards: Float[np.ndarray, "S A K"]
    terminated: Bool[np.ndarray, "S A K"]
    """Whether the outcome ends the episode."""
    initial: Float[np.ndarray, "S"]
    """Probability of each state to be the first of an episode."""

    @property
    def states(self) -> int:
        """Number of states."""
        return self.successors.shape[0]

    @property
    def actions(self) -> int:
        """Number of actions."""
        return self.successors.shape[1]


def deterministic(
    successors: Int[np.ndarray, "S A"], rewards: Float[np.ndarray, "S A"], terminated: Bool[np.ndarray, "S A"], start: int
) -> TabularMDP:
    """The process in which each action has one outcome, and all episodes begin in the state `start`."""
    return TabularMDP(
        successors=np.asarray(successors, np.int32)[..., None],
        probabilities=np.ones((*successors.shape, 1)),
        rewards=np.asarray(rewards, np.float64)[..., None],
        terminated=np.asarray(terminated, bool)[..., None],
        initial=np.eye(len(successors))[start],
    )


def check_mdp(mdp: TabularMDP) -> None:
    """Raise ValueError if shapes differ, a successor is not a state, or probabilities are negative or do not sum to 1."""
    shape = mdp.successors.shape
    if any(table.shape != shape for table in mdp[1:4]) or len(shape) != 3 or mdp.initial.shape != shape[:1]:
        raise ValueError(f"tables must be [S, A, K] and [S], got {[table.shape for table in mdp]}")
    if mdp.successors.min() < 0 or mdp.successors.max() >= mdp.states:
        raise ValueError(f"successors must be from 0 to {mdp.states - 1}")
    for chances in (mdp.probabilities, mdp.initial):
        if (chances < 0).any() or not np.allclose(chances.sum(axis=-1), 1.0, rtol=0, atol=1e-12):
            raise ValueError("probabilities must not be negative and must sum to 1")


def action_values(mdp: TabularMDP, values: Float[np.ndarray, "S"], discount: float) -> Float[np.ndarray, "S A"]:
    """Q(s, a) = E[r + discount * V(s')] in float64, with V(s') = 0 where the episode ends."""
    after = np.where(mdp.terminated, 0.0, np.asarray(values, np.float64)[mdp.successors])
    return np.sum(mdp.probabilities * (mdp.rewards + discount * after), axis=-1)


def optimal_values(mdp: TabularMDP, discount: float) -> Float[np.ndarray, "S"]:
    """V* in float64, without a time limit, by value iteration to the accuracy of rounding.

    States that no episode is in before a step, such as goals, have values too: `visited` tells them apart. Raises
    ValueError if the iteration does not converge, which without discount happens where rewards go on for ever.
    """
    values = np.zeros(mdp.states)
    for _ in range(SWEEPS):
        after = action_values(mdp, values, discount).max(axis=1)
        if np.all(np.abs(after - values) <= ROUNDING * (1 + np.abs(after))):
            return after
        values = after
    raise ValueError(f"value iteration with discount {discount} has not converged after {SWEEPS:,} sweeps")


def visited(mdp: TabularMDP) -> Bool[np.ndarray, "S"]:
    """The states in which an episode can be before a step: those that can be reached and that do not end it."""
    found = mdp.initial > 0
    goes_on = (mdp.probabilities > 0) & ~mdp.terminated
    while True:
        reached = found.copy()
        reached[mdp.successors[goes_on & found[:, None, None]]] = True
        if (reached == found).all():
            return found
        found = reached


def goal_reward(mdp: TabularMDP) -> float:
    """The largest reward of a step that ends an episode; -inf if none does."""
    ends = mdp.terminated & (mdp.probabilities > 0) & visited(mdp)[:, None, None]
    return float(np.max(mdp.rewards, where=ends, initial=-np.inf))


class TabularEnv:
    """The environment of a `TabularMDP`. `State.pipeline_state` is the number of the state, int32.

    The observation is that number, or what `observe` returns for it. If actions have several outcomes, `State.info["rng"]`
    is the key of the next step.
    """

    def __init__(
        self,
        mdp: TabularMDP,
        draw: Draw | None = None,
        observe: Callable[[Int[Array, ""]], Observation] = lambda state: state,
        show: Show | None = None,
    ) -> None:
        check_mdp(mdp)
        self.mdp = mdp
        self.stochastic = mdp.successors.shape[2] > 1
        self._observe = observe
        if draw is not None:
            # A task without a drawing has no attribute `draw`.
            self.draw = lambda state, action: draw(int(state.pipeline_state), None if action is None else int(action))
        if show is not None:
            self.scene = lambda state: show(state.pipeline_state)

    def state_at(self, index: Int[Array, ""] | int, rng: Key | None = None) -> State:
        """The state with the given number. `rng` is the key of the next step, by default that of seed 0."""
        index = jnp.asarray(index, jnp.int32)
        state = initial_state(index, self._observe(index))
        if not self.stochastic:
            return state
        return state.replace(info={"rng": jax.random.key(0) if rng is None else rng})

    def reset(self, rng: Key) -> State:
        """A state drawn from the initial distribution."""
        start_key, step_key = jax.random.split(rng)
        if (self.mdp.initial == 1.0).any():
            return self.state_at(int(np.argmax(self.mdp.initial)), step_key)
        return self.state_at(_drawn(start_key, jnp.asarray(_thresholds(self.mdp.initial), float)), step_key)

    def step(self, state: State, action: Int[Array, ""]) -> State:
        """One step, with an outcome drawn by its probability."""
        at, outcome = (state.pipeline_state, action), jnp.int32(0)
        if self.stochastic:
            outcome_key, next_key = jax.random.split(state.info["rng"])
            outcome = _drawn(outcome_key, jnp.asarray(_thresholds(self.mdp.probabilities), float)[at])
            state = state.replace(info={**state.info, "rng": next_key})
        index = jnp.asarray(self.mdp.successors, jnp.int32)[(*at, outcome)]
        return state.replace(
            pipeline_state=index,
            obs=self._observe(index),
            reward=jnp.asarray(self.mdp.rewards, float)[(*at, outcome)],
            done=jnp.asarray(self.mdp.terminated, float)[(*at, outcome)],
        )


def _thresholds(probabilities: Float[np.ndarray, "*n K"]) -> Float[np.ndarray, "*n K"]:
    """Sums of the probabilities from the first on; exactly 1 from the last positive one on."""
    sums = np.cumsum(probabilities, axis=-1)
    return np.where(sums > 1 - 1e-9, 1.0, sums)


def _drawn(key: Key, thresholds: Float[Array, "K"]) -> Int[Array, ""]:
    """A random index with the probabilities of `_thresholds`."""
    return jnp.sum(jax.random.uniform(key) >= thresholds, dtype=jnp.int32)


def tabular_task(
    name: str, mdp: TabularMDP, episode_length: int, draw: Draw | None = None, show: Show | None = None
) -> Task:
    """The task of a process with discrete observations: the numbers of its states. `task.env.mdp` is `mdp`.

    `Task.reward` and `Task.terminated` are given if they are functions of their arguments. `draw` makes pictures,
    `show` scenes for observed images.
    """
    env = TabularEnv(mdp, draw, show=show)
    return table_task(name, env, episode_length, Discrete(mdp.states), reward_of(mdp), terminated_of(mdp))


def table_task(
    name: str,
    env: TabularEnv,
    episode_length: int,
    observation: Space,
    reward: Callable[..., Any] | None = None,
    terminated: Callable[..., Any] | None = None,
) -> Task:
    """The task of an environment with any observation. The World draws outcomes by the key that a step is given, so that a
    planner that steps it from one state with several keys sees several outcomes."""
    task = make_task(name, env, episode_length, reward, terminated, Discrete(env.mdp.actions), observation=observation)
    if not env.stochastic:
        return task
    inner = task.world

    def step(carry: tuple[State, Int[Array, ""]], action: Int[Array, ""], key: Key) -> tuple[Any, Transition]:
        state, elapsed = carry
        return inner.step((state.replace(info={**state.info, "rng": key}), elapsed), action, key)

    return task._replace(world=inner._replace(step=step))


def reward_of(mdp: TabularMDP) -> Callable[..., Float[Array, "*n"]] | None:
    """The reward as a function of (state, action, successor), each [*n] int32; None if these do not determine it."""
    possible = mdp.probabilities > 0
    same = mdp.successors[..., :, None] == mdp.successors[..., None, :]
    both = same & possible[..., :, None] & possible[..., None, :]
    if (both & (mdp.rewards[..., :, None] != mdp.rewards[..., None, :])).any():
        return None

    def reward(
        observation: Int[Array, "*n"], action: Int[Array, "*n"], next_observation: Int[Array, "*n"]
    ) -> Float[Array, "*n"]:
        """The reward of the outcome with this successor."""
        at = (observation, action)
        fits = (jnp.asarray(mdp.successors)[at] == next_observation[..., None]) & jnp.asarray(possible)[at]
        rewards = jnp.asarray(mdp.rewards, float)[at]
        return jnp.take_along_axis(rewards, jnp.argmax(fits, axis=-1)[..., None], axis=-1)[..., 0]

    return reward


def terminated_of(mdp: TabularMDP) -> Callable[..., Bool[Array, "*n"]] | None:
    """Termination as a function of the successor [*n] int32; None if that does not determine it."""
    ends, goes_on = np.zeros(mdp.states, bool), np.zeros(mdp.states, bool)
    possible = (mdp.probabilities > 0) & visited(mdp)[:, None, None]
    ends[mdp.successors[possible & mdp.terminated]] = True
    goes_on[mdp.successors[possible & ~mdp.terminated]] = True
    if (ends & goes_on).any():
        return None
    return lambda next_observation: jnp.asarray(ends)[next_observation]


def from_outcomes(
    outcomes: list[list[list[tuple[float, int, float, bool]]]], initial: Float[np.ndarray, "S"]
) -> TabularMDP:
    """The process with the `outcomes[state][action]`, each (probability, successor, reward, terminated). Shorter lists are
    filled up with outcomes of probability 0."""
    count = max(len(found) for by_action in outcomes for found in by_action)
    tables: Shaped[np.ndarray, "S A K 4"] = np.array(
        [[found + [(0.0, *found[0][1:])] * (count - len(found)) for found in by_action] for by_action in outcomes], float
    )
    return TabularMDP(
        successors=tables[..., 1].astype(np.int32),
        probabilities=tables[..., 0],
        rewards=tables[..., 2],
        terminated=tables[..., 3] > 0,
        initial=np.asarray(initial, np.float64),
    )
