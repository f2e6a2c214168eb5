"""A Gaussian policy network that is regressed onto given commands by weighted least squares: the S-step of guided policy
search.

    pi(u|x) = N(mu(x), diag std^2)
    minimise  mean over rows of  (mu(x) - u)' P (mu(x) - u) / 2,    then  1 / std^2 = mean diag P

The weights P are precisions, and are divided by their mean diagonal, so that Adam's steps do not depend on their unit. The
learning rate falls linearly to 0 within each fit, because a constant one would leave the noise of minibatches. mu has
normalised observations and no bound: a command is clipped to [-1, 1] when it becomes an action.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt
from jaxtyping import Array, Float, Int

from jaxmbrl.agents.normalization import LIMIT
from jaxmbrl.core import metrics
from jaxmbrl.core.config import Traced
from jaxmbrl.core.types import Action, Average, Hyper, Key, Memory, Metrics, Observation, Policy, PyTree
from jaxmbrl.models import normalizer
from jaxmbrl.models.normalizer import RunningNormalizer
from jaxmbrl.nn import optimizer
from jaxmbrl.nn.networks import MLP
from jaxmbrl.nn.optimizer import Trainable


@dataclass(frozen=True)
class RegressionConfig:
    """Settings of the policy."""

    hidden: tuple[Annotated[int, Ge(1)], ...] = (64, 64)
    """Units of each hidden layer (tanh); empty for a linear policy."""
    learning_rate: Annotated[float, Gt(0), Traced] = 1e-3
    """Adam learning rate at the beginning of each fit."""
    updates: Annotated[int, Ge(1)] = 1000
    """Adam steps of each fit."""
    batch_size: Annotated[int, Ge(1)] = 100
    """Rows in each step, sampled with replacement."""
    initial_std: Annotated[float, Gt(0)] = 1.0
    """Standard deviation before the first fit, in units of the action. The mean is then 0."""


class RegressedPolicy(NamedTuple):
    """State of the policy."""

    network: Trainable
    observations: RunningNormalizer
    std: Float[Array, "m"]


class Regression(NamedTuple):
    """The policy."""

    init: Callable[[Key, Hyper], RegressedPolicy]
    mean: Callable[[RegressedPolicy, Float[Array, "*k n"]], Float[Array, "*k m"]]
    """(state, x) -> mu(x)."""
    policy: Callable[[RegressedPolicy, bool], Policy]
    """(state, explore) -> policy. Its extras have the `command` before clipping."""
    fit: Callable[..., tuple[RegressedPolicy, Metrics]]
    """(state, x [R, n], target u [R, m], precision P [R, m, m], key) -> (state, metrics)."""


def make(config: RegressionConfig, observation_size: int, action_size: int) -> Regression:
    """The policy for observations [n] and commands [m]. `hyper` may hold `learning_rate`, traced."""
    network = MLP(config.hidden, action_size, jnp.tanh, last_init=jax.nn.initializers.zeros)

    def init(key: Key, hyper: Hyper) -> RegressedPolicy:
        params = network.init(key, jnp.zeros(observation_size))
        trainable = optimizer.init(params, hyper.get("learning_rate", config.learning_rate))
        return RegressedPolicy(
            trainable, normalizer.running(observation_size), jnp.full(action_size, config.initial_std, float)
        )

    def mean(state: RegressedPolicy, x: Float[Array, "*k n"]) -> Float[Array, "*k m"]:
        return network.apply(state.network.params, normalizer.normalize(state.observations.normalizer, x))

    def policy(state: RegressedPolicy, explore: bool) -> Policy:
        def act(memory: Memory, observation: Observation, key: Key) -> tuple[Action, PyTree, Memory]:
            command = mean(state, observation)
            if explore:
                command = command + state.std * jax.random.normal(key, command.shape, command.dtype)
            return jnp.clip(command, -1.0, 1.0), {"command": command}, memory

        return Policy(lambda key: (), act)

    def fit(
        state: RegressedPolicy,
        x: Float[Array, "R n"],
        target: Float[Array, "R m"],
        precision: Float[Array, "R m m"],
        key: Key,
    ) -> tuple[RegressedPolicy, Metrics]:
        diagonal = jnp.mean(jnp.diagonal(precision, axis1=-2, axis2=-1), axis=0)
        weight = precision / jnp.mean(diagonal)
        observations = normalizer.merge(state.observations, x, LIMIT)
        state = state._replace(observations=observations, std=1 / jnp.sqrt(diagonal))

        def update(network: Trainable, at: tuple[Int[Array, ""], Key]) -> tuple[Trainable, Metrics]:
            i, key = at
            rows = jax.random.randint(key, (config.batch_size,), 0, x.shape[0])

            def loss(params: PyTree) -> Float[Array, ""]:
                found = mean(state._replace(network=network._replace(params=params)), x[rows])
                return regression_loss(found, target[rows], weight[rows])

            value, gradient = jax.value_and_grad(loss)(network.params)
            stepped, _ = optimizer.step(network, gradient, 1 - i / config.updates)
            return stepped, {"policy/regression_loss": Average.of(value)}

        keys = jax.random.split(key, config.updates)
        network, found = jax.lax.scan(update, state.network, (jnp.arange(config.updates), keys))
        return state._replace(network=network), metrics.total(found)

    return Regression(init, mean, policy, fit)


def regression_loss(
    mean: Float[Array, "B m"], target: Float[Array, "B m"], weight: Float[Array, "B m m"]
) -> Float[Array, ""]:
    """Half the mean squared distance of `mean` from `target`, weighted by matrices."""
    distance = mean - target
    return jnp.mean(jnp.einsum("bi,bij,bj->b", distance, weight, distance)) / 2
