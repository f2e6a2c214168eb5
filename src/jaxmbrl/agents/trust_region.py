"""Trust region policy optimisation (TRPO, Schulman et al., arXiv 1502.05477): a natural-gradient step whose KL divergence
is bounded.

    maximise  L(theta) = mean w rho A + c_H mean w H    subject to  mean w KL(pi_old || pi) <= radius

    g = grad L,  F = the Hessian of the mean KL divergence at theta_old
    x = (F + damping I)^-1 g by conjugate gradient from 0
    theta = theta_old + 2^-j sqrt(2 radius / (x . (F + damping I) x)) x   for the smallest j < 10 with
            L(theta) > L(theta_old) and mean KL <= radius; theta_old if there is none

Products F v are the derivative of the KL divergence's gradient along v. The damping is part of the conjugate gradient and
of the step's length. All ten candidates are evaluated: a search that ends at the first would take as long as that of the
slowest seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from annotated_types import Ge, Gt, Le
from jax.flatten_util import ravel_pytree
from jax.scipy.sparse.linalg import cg
from jaxtyping import Array, Float

from jaxmbrl.agents.on_policy import (
    ActorParameters,
    OnPolicy,
    OnPolicyConfig,
    OnPolicyState,
    adam,
    explained,
    make,
    spread,
    standardized,
    weighted_mean,
)
from jaxmbrl.core.config import Traced
from jaxmbrl.core.spaces import Space
from jaxmbrl.core.types import Average, Key, Metrics, Transition
from jaxmbrl.nn import optimizer

SHRINKAGES = 10
"""Candidates of the line search."""
P = TypeVar("P")


@dataclass(frozen=True)
class TRPOConfig(OnPolicyConfig):
    """Settings of trust region policy optimisation. `learning_rate` is that of the value function, by Adam."""

    learning_rate: Annotated[float, Gt(0), Traced] = 1e-3
    """Adam learning rate of the value function."""
    gae_lambda: Annotated[float, Ge(0), Le(1)] = 0.98
    """Lambda of the advantages: 0 for TD errors, 1 for returns minus values."""
    radius: Annotated[float, Gt(0)] = 0.01
    """Largest mean KL divergence of a step, in nats."""
    damping: Annotated[float, Ge(0)] = 0.1
    """Added to the diagonal of the Fisher matrix."""
    cg_iterations: Annotated[int, Ge(1)] = 10
    """Iterations of conjugate gradient."""
    value_epochs: Annotated[int, Ge(1)] = 5
    """Passes over the rows in which the value function is fitted after each step."""
    value_batch_size: Annotated[int, Ge(1)] = 64
    """Rows of a minibatch of the value function."""


class Step(NamedTuple):
    """Statistics of a step."""

    gradient_norm: Float[Array, ""]
    shrinkage: Float[Array, ""]
    """Share 2^-j of the full step that was taken; 0 for none."""
    divergence: Float[Array, ""]
    """KL divergence of the new parameters from the old ones."""
    gain: Float[Array, ""]
    """Increase of the objective."""


def conjugate_gradient(
    product: Callable[[Float[Array, "P"]], Float[Array, "P"]], gradient: Float[Array, "P"], iterations: int
) -> Float[Array, "P"]:
    """The solution x of product(x) = gradient from x = 0. It ends early where the residual is as small as rounding."""
    return cg(product, gradient, tol=float(jnp.finfo(gradient.dtype).eps), maxiter=iterations)[0]


def natural_step(
    objective: Callable[[P], Float[Array, ""]],
    divergence: Callable[[P], Float[Array, ""]],
    params: P,
    radius: float,
    damping: float,
    iterations: int,
    bounded: Callable[[P], P] = lambda params: params,
) -> tuple[P, Step]:
    """(parameters after the step, statistics). `divergence(params)` is the mean KL divergence from the old parameters,
    which are `params`. Candidates are passed through `bounded`."""
    flat, unravel = ravel_pytree(params)
    value, gradient = jax.value_and_grad(lambda flat: objective(unravel(flat)))(flat)

    def product(vector: Float[Array, "P"]) -> Float[Array, "P"]:
        slope = jax.grad(lambda flat: divergence(unravel(flat)))
        return jax.jvp(slope, (flat,), (vector,))[1] + damping * vector

    with jax.default_matmul_precision("highest"):
        direction = conjugate_gradient(product, gradient, iterations)
        length = direction @ product(direction)
    # Without a gradient the direction is 0, and so is the step.
    full = jnp.sqrt(2 * radius / jnp.where(length > 0, length, 1.0)) * direction
    shrinkages = 0.5 ** jnp.arange(SHRINKAGES, dtype=flat.dtype)

    def judge(shrinkage: Float[Array, ""]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        candidate = bounded(unravel(flat + shrinkage * full))
        return objective(candidate) - value, divergence(candidate)

    gains, divergences = jax.lax.map(judge, shrinkages)
    accepted = (gains > 0) & (divergences <= radius)
    first, found = jnp.argmax(accepted), jnp.any(accepted)
    chosen = bounded(unravel(flat + shrinkages[first] * full))
    chosen = jax.tree.map(lambda new, old: jnp.where(found, new, old), chosen, params)
    taken = jax.tree.map(lambda x: jnp.where(found, x[first], 0.0), (shrinkages, divergences, gains))
    return chosen, Step(jnp.linalg.norm(gradient), *taken)


def make_agent(config: TRPOConfig, observation_size: int, action: Space) -> OnPolicy:
    """The agent whose value function learns by Adam; its actor has no optimiser."""
    return make(config, observation_size, action, optax.identity(), adam())


def update(
    agent: OnPolicy,
    config: TRPOConfig,
    state: OnPolicyState,
    trajectory: Transition,
    key: Key,
    weight: Float[Array, "T N"] | None = None,
    entropy_weight: Any = None,
    penalty: Callable[[ActorParameters], Float[Array, ""]] | None = None,
) -> tuple[OnPolicyState, Metrics]:
    """TRPO's update on a real or an imagined `trajectory` [T, N]: one step of the policy on standardised advantages, then
    the fit of the value function. `entropy_weight`, which may be traced, replaces the setting. `penalty`, a function of the
    policy's parameters, is subtracted from the objective."""
    rows = agent.estimate(state, trajectory, weight)
    advantage = standardized(rows.advantage, rows.weight)
    before = agent.distribution(state.actor.params, rows.inputs)
    bonus = config.entropy_weight if entropy_weight is None else entropy_weight

    def objective(params: ActorParameters) -> Float[Array, ""]:
        distribution = agent.distribution(params, rows.inputs)
        ratio = jnp.exp(distribution.log_probability(rows.raw) - rows.log_probability)
        improved = weighted_mean(ratio * advantage + bonus * distribution.entropy(), rows.weight)
        return improved if penalty is None else improved - penalty(params)

    def divergence(params: ActorParameters) -> Float[Array, ""]:
        after: Any = agent.distribution(params, rows.inputs)
        return weighted_mean(before.divergence(after), rows.weight)

    params, step = natural_step(
        objective,
        divergence,
        state.actor.params,
        config.radius,
        config.damping,
        config.cg_iterations,
        agent.bounded,
    )
    critic, found = agent.fit_critic(state.critic, rows, key, config.value_epochs, config.value_batch_size)
    state = state._replace(actor=optimizer.assign(state.actor, params, step.gradient_norm), critic=critic)
    found |= {
        "agent/actor_gradient_norm": Average.of(step.gradient_norm),
        "agent/step": Average.of(step.shrinkage),
        "agent/divergence": Average.of(step.divergence),
        "agent/gain": Average.of(step.gain),
        "agent/entropy": Average.of(weighted_mean(before.entropy(), rows.weight)),
    }
    return state, found | explained(rows) | spread(state)
