"""Value gradients: what an actor earns along imagined steps, differentiated through the model.

    J = sum_{t<n} discount^t m_t (r_t + bonus_t) + discount^n m_n (Q(s_n, a_n) + bonus_n),    m_t the probability that no
        step before t ended the episode,    a_t = pi(s_t, noise),    s_{t+1} = f(s_t, a_t, noise)

(Heess et al., Learning continuous control policies by stochastic value gradients, arXiv 1510.09142; Clavera et al.,
Model-augmented actor-critic, arXiv 2005.08068.) Of n = 0 steps it is what a model-free actor maximises.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxmbrl.agents.actor_critic.updates import with_updates
from jaxmbrl.core.types import Action, Agent, Average, Key, Metrics, PyTree, Transition, World
from jaxmbrl.models.imagination import Trajectory, imagine


@dataclass(frozen=True)
class ValueGradientConfig:
    """How an actor climbs what it earns through the model."""

    horizon: int
    """Model steps n; of none the objective is the agent's own."""
    entropy_at_every_step: bool
    """Whether the actions after the first earn their bonus too."""
    rematerialize: bool
    """Whether the backward pass computes each step again (`imagine`)."""


Back = Callable[[Trajectory], tuple[PyTree, Float[Array, "S B O"]]]
"""What a change of imagined steps means for the actor's parameters, and for the states s_0 .. s_n, S = n + 1: cotangents of
the steps -> those of both."""


def follow(
    ascent: ValueGradientConfig,
    agent: Agent,
    world: World,
    state: PyTree,
    origin: Float[Array, "B O"],
    perturbations: Float[Array, "S B O"],
    key: Key,
) -> Trajectory:
    """n = `ascent.horizon` steps from s_0 = `origin` under the actor.

    `perturbations`, S = n + 1, are added to the states s_0 .. s_n. Where they are 0, the derivative of J by them is how much all
    that is earned from each state on changes with it, what the step to it earns left out.

    Rows that a step has surely ended go on from where they started: no one counts what they meet, and what a model makes of
    the dead may not be finite, nor its derivative.
    """
    policy = agent.actor(state)
    return imagine(perturbed(world, origin, perturbations), policy, origin, key, ascent.horizon, ascent.rematerialize)


def differentiable(
    ascent: ValueGradientConfig, agent: Agent, world: World, state: PyTree, origin: Float[Array, "B O"], key: Key
) -> tuple[Trajectory, Back]:
    """`follow`, and the way back through it."""

    def ahead(params: PyTree, perturbations: Float[Array, "S B O"]) -> Trajectory:
        return follow(ascent, agent, world, with_actor(state, params), origin, perturbations, key)

    return jax.vjp(ahead, state.actor.params, jnp.zeros((ascent.horizon + 1, *origin.shape)))


def actor_objective(
    ascent: ValueGradientConfig, agent: Agent, state: PyTree, origin: Float[Array, "B O"], trajectory: Trajectory, keys: Key
) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
    """J of the module's first lines along the steps of `trajectory` from `origin`, and the first actions' bonus. Two `keys`:
    the last action's and the critics'."""
    last = jnp.concatenate([origin[None], trajectory.next_observation])[-1]
    action, bonus, _ = agent.actor(state).act((), last, keys[0])
    value = agent.action_value(state, last, action, keys[1])
    bonuses = jnp.concatenate([trajectory.bonus, bonus[None]])
    counted = bonuses if ascent.entropy_at_every_step else bonuses.at[1:].set(0.0)
    earned = trajectory._replace(bonus=counted[:-1]).n_step_returns(value + counted[-1], state.discount)
    return earned[0], bonuses[0]


def with_actor(state: PyTree, params: PyTree) -> PyTree:
    """An agent's `state` with other parameters of the actor."""
    return state._replace(actor=state.actor._replace(params=params))


def perturbed(world: World, origin: Float[Array, "B O"], perturbations: Float[Array, "S B O"]) -> World:
    """A learned `world`, whose carry `start` makes of observations, for `follow`: with `perturbations`, and without the dead."""

    def start(rows: Float[Array, "B O"], key: Key) -> tuple[Any, Int[Array, ""]]:
        return world.start(rows + perturbations[0], key), jnp.zeros((), jnp.int32)

    def step(carry: tuple[Any, Int[Array, ""]], action: Action, key: Key) -> tuple[Any, Transition]:
        rows, i = carry
        step_key, start_key = jax.random.split(key)
        _, made = world.step(rows, action, step_key)
        dead = (made.terminated == 1)[:, None]
        next_observation = jnp.where(dead, origin, made.next_observation) + perturbations[i + 1]
        return (world.start(next_observation, start_key), i + 1), made._replace(next_observation=next_observation)

    return World(world.reset, start, lambda carry: world.observe(carry[0]), step)


def with_value_gradient(agent: Agent, world: World, ascent: ValueGradientConfig) -> Agent:
    """`agent` whose actor climbs the `actor_objective` through `world` from the batch's states."""
    if ascent.horizon == 0:
        return agent

    def update_actor(state: PyTree, batch: Transition, key: Key) -> tuple[PyTree, Metrics]:
        follow_key, *keys = jax.random.split(key, 3)
        trajectory, back = differentiable(ascent, agent, world, state, batch.observation, follow_key)
        return value_gradient_step(ascent, agent, state, batch, trajectory, back, jnp.stack(keys))

    return with_updates(agent, actor=update_actor)


def value_gradient_step(
    ascent: ValueGradientConfig,
    agent: Agent,
    state: PyTree,
    batch: Transition,
    trajectory: Trajectory,
    back: Back,
    keys: Key,
) -> tuple[PyTree, Metrics]:
    """One update of the actor up the mean `actor_objective` along the `trajectory` (`differentiable`) from the batch's states. The
    metrics `gradient/state_t`, t = 0 .. n, are the mean over rows of the norm of dJ/ds_t: whether gradients explode along
    the way, or die."""

    def cost(params: PyTree, trajectory: Trajectory) -> tuple[Float[Array, ""], Float[Array, ""]]:
        earned, bonus = actor_objective(ascent, agent, with_actor(state, params), batch.observation, trajectory, keys)
        return -jnp.mean(earned), jnp.mean(bonus)

    # Integers allowed: whether a step ended the episode has no derivative.
    slopes = jax.value_and_grad(cost, (0, 1), has_aux=True, allow_int=True)
    (value, bonus), (direct, by_step) = slopes(state.actor.params, trajectory)
    through, by_state = back(by_step)
    slope = jax.tree.map(jnp.add, direct, through)
    state, found = agent.update_actor(state, batch, keys[0], loss=surrogate_loss(value, slope, bonus))
    # A row's share of the mean is 1 / B of it, so the sum over rows of norms is the mean of the rows' own.
    norms = jnp.sum(jnp.linalg.norm(by_state, axis=-1), axis=-1)
    return state, found | {f"gradient/state_{t}": Average.of(norm) for t, norm in enumerate(norms)}


def surrogate_loss(value: Float[Array, ""], slope: PyTree, bonus: Float[Array, ""]) -> Callable[..., Any]:
    """An actor's loss (`Agent.update_actor`) of that `value` and that `slope`, known already: a plane."""

    def loss(params: PyTree, *_: Any) -> tuple[Float[Array, ""], Float[Array, ""]]:
        rises = jax.tree.map(lambda g, p: jnp.sum(g * (p - jax.lax.stop_gradient(p))), slope, params)
        return value + sum(jax.tree.leaves(rises)), bonus

    return loss
