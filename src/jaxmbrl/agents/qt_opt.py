"""QT-Opt (Kalashnikov et al., arXiv 1806.10293): Q-learning for continuous actions, in which the cross-entropy method
maximises over actions.

Search          a*(s; Q) = CEM over a in [-1, 1]^A of Q(s, a), for each state on its own
Target          y = r + discount (1 - terminated) min_i Q'_i(s', a*(s'; Q'_1))
Loss            sum over critics of mean (Q_i(s, a) - y)^2
Policy          a*(s; Q_1)
Exploration     clip(a*(s; Q_1) + N(0, exploration_noise), -1, 1)

One search starts from N(0, 1), clips its samples to the bounds, refits mean and variance to the elites without momentum,
and returns the best sample of the last iteration (`planning.cem`). No gradient flows through the target or the search. The
target networks Q' move by Polyak averaging at each update. Without exploration the search has a fixed key, so that the
policy is a function of the observation.

Differs from the paper: its second target network is an older copy of the first one, here there are two critics, both with a
target network; its targets are computed by separate processes from older parameters, and its loss is the cross-entropy of
successes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt, Le
from jaxtyping import Array, Float

from jaxmbrl.agents.actor_critic.critics import regress
from jaxmbrl.agents.exploration import with_gaussian_noise
from jaxmbrl.agents.greedy import QState, target_of, without_actor
from jaxmbrl.core.config import Traced
from jaxmbrl.core.types import (
    Action,
    ActorCritic,
    Hyper,
    Key,
    Memory,
    Metrics,
    Observation,
    Planner,
    Policy,
    PyTree,
    Transition,
)
from jaxmbrl.data.n_step import NStep
from jaxmbrl.models.normalizer import Normalizer, normalize
from jaxmbrl.nn import optimizer
from jaxmbrl.nn.networks import MLP, Precision
from jaxmbrl.planning import cem, problem_of_score, unit_box
from jaxmbrl.planning.cem import CEMConfig


@dataclass(frozen=True)
class QTOptConfig:
    """Settings of the agent."""

    hidden: tuple[Annotated[int, Ge(1)], ...] = (256, 256)
    """Units of each hidden layer of the critics."""
    precision: Precision = "default"
    """Precision of the products between hidden layers: JAX's default, or bfloat16 for devices with matrix units for it."""
    critics: Annotated[int, Ge(1)] = 2
    """Number of critics N. Targets use their minimum, the search the first."""
    samples: Annotated[int, Ge(1)] = 64
    """Actions that an iteration of a search evaluates."""
    iterations: Annotated[int, Ge(1)] = 2
    """Iterations of a search."""
    elites: Annotated[int, Ge(1)] = 6
    """Number of best samples to which the distribution is refitted."""
    learning_rate: Annotated[float, Gt(0), Traced] = 3e-4
    """Adam learning rate of the critics."""
    discount: Annotated[float, Ge(0), Le(1), Traced] = 0.99
    """Discount factor per step."""
    polyak: Annotated[float, Gt(0), Le(1)] = 0.005
    """Polyak factor: the share by which the target critics move at each update."""
    exploration_noise: Annotated[float, Ge(0)] = 0.2
    """Standard deviation of the noise that is added to actions for exploration."""

    def problem(self) -> tuple[str, str] | None:
        """(field, message) of the first violated rule that involves several fields, or None."""
        if self.elites > self.samples:
            return "elites", f"must be at most samples ({self.samples}), got {self.elites}"
        return None

    @property
    def search(self) -> CEMConfig:
        """The settings of one search."""
        return CEMConfig(
            horizon=1,
            population=self.samples,
            elites=self.elites,
            iterations=self.iterations,
            momentum=0.0,
            min_variance=0.0,
            deviation=1.0,
            truncated=False,
            best=True,
        )


def make(config: QTOptConfig, observation_size: int, action_size: int, normalizer: Normalizer | None = None) -> ActorCritic:
    """The agent for flat observations [O] and actions [A] in [-1, 1]; its state is a `QState` whose leaves have the leading
    axis [critics]. With a `normalizer` the networks receive normalised observations; the arguments of the agent's functions
    are always in the task's units.

    `hyper` may hold `learning_rate` and `discount`, traced.
    """
    critic, action = MLP(config.hidden, 1, precision=config.precision), unit_box(action_size)
    agent = _QTOpt(config, critic, cem.make(config.search, action), observation_size, action_size, normalizer)
    return without_actor(agent, config.polyak, action)


class _QTOpt(NamedTuple):
    """The functions of the agent; each takes observations in the task's units."""

    config: QTOptConfig
    critic: MLP
    planner: Planner
    observation_size: int
    action_size: int
    normalizer: Normalizer | None

    def init(self, key: Key, hyper: Hyper) -> QState:
        config, pair = self.config, jnp.zeros(self.observation_size + self.action_size)
        params = jax.vmap(lambda k: self.critic.init(k, pair))(jax.random.split(key, config.critics))
        return QState(
            critic=optimizer.init(params, hyper.get("learning_rate", config.learning_rate), with_target=True),
            discount=jnp.asarray(hyper.get("discount", config.discount), float),
        )

    def q(self, params: PyTree, observation: Observation, action: Action) -> Float[Array, "*n"]:
        """The value by one critic."""
        if self.normalizer is not None:
            observation = normalize(self.normalizer, observation)
        return self.critic.apply(params, jnp.concatenate([observation, action], axis=-1))[..., 0]

    def every_q(self, params: PyTree, observation: Observation, action: Action) -> Float[Array, "L *n"]:
        """The value by each critic."""
        return jax.vmap(self.q, in_axes=(0, None, None))(params, observation, action)

    def maximum(self, params: PyTree, observation: Float[Array, "*n O"], key: Key | None) -> Float[Array, "*n A"]:
        """The action that maximises the first of the critics `params`, of each row by a search of its own. Without a key,
        all searches have the same fixed one."""
        first, space = jax.tree.map(lambda leaf: leaf[0], params), unit_box(self.action_size)

        def search(observation: Float[Array, "O"], key: Key) -> Float[Array, "A"]:
            problem = problem_of_score(lambda actions, _: self.q(first, observation, actions[0]), space)
            return self.planner.plan(problem, self.planner.init(), key)[0][0]

        block, fixed = observation.shape[:-1], jax.random.key(0)
        if not block:
            return search(observation, fixed if key is None else key)
        number = math.prod(block)
        keys = jnp.broadcast_to(fixed, number) if key is None else jax.random.split(key, number)
        rows = observation.reshape(number, -1)
        return jax.vmap(search)(rows, keys).reshape(*block, self.action_size)

    def policy(self, state: QState, explore: bool) -> Policy:
        def act(memory: Memory, observation: Observation, key: Key) -> tuple[Action, PyTree, Memory]:
            return self.maximum(state.critic.params, observation, key if explore else None), (), memory

        policy = Policy(init=lambda key: (), act=act)
        return with_gaussian_noise(policy, self.config.exploration_noise) if explore else policy

    def target_value(self, state: QState, observation: Observation, key: Key) -> Float[Array, "N"]:
        return self.target_values(state, observation, key).min(axis=0)

    def target_values(self, state: QState, observation: Observation, key: Key) -> Float[Array, "L N"]:
        action = self.maximum(state.critic.target, observation, key)
        return self.every_q(state.critic.target, observation, action)

    def action_value(self, state: QState, observation: Observation, action: Action, key: Key) -> Float[Array, "N"]:
        first = jax.tree.map(lambda leaf: leaf[0], state.critic.params)
        return self.q(first, observation, action)

    def update_critic(
        self,
        state: QState,
        batch: Transition | NStep,
        key: Key,
        *,
        target: Float[Array, "B"] | None = None,
        weight: Float[Array, "B"] | None = None,
    ) -> tuple[QState, Metrics, Float[Array, "B"]]:
        if target is None:
            target = target_of(self, state, batch, key)
        trained, found, error = regress(
            state.critic, lambda params: self.every_q(params, batch.observation, batch.action), target, weight
        )
        return state._replace(critic=trained), found, error
