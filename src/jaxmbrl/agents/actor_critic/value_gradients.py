"""Value gradients: the derivative of an actor's return along imagined steps, back-propagated through the model.

    J = sum_{t<n} discount^t m_t (r_t + bonus_t) + discount^n m_n (Q(s_n, a_n) + bonus_n),    m_t the probability that no
        step before t ended the episode,    a_t = pi(s_t, noise),    s_{t+1} = f(s_t, a_t, noise)

where bonus_t is the entropy bonus -alpha log pi(a_t|s_t) of a soft agent, 0 for other agents (Heess et al., Learning
continuous control policies by stochastic value gradients, arXiv 1510.09142; Clavera et al., Model-augmented actor-critic,
arXiv 2005.08068). For n = 0 it is the objective of a model-free actor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxmbrl.agents.actor_critic.updates import with_updates
from jaxmbrl.core.types import Action, ActorCritic, Average, Key, Metrics, PyTree, Transition, World
from jaxmbrl.models.imagination import Trajectory, imagine


@dataclass(frozen=True)
class ValueGradientConfig:
    """Settings of an actor's objective along imagined steps."""

    horizon: int
    """Model steps n; with 0 the agent keeps its own objective."""
    entropy_at_every_step: bool
    """Whether the entropy bonus of every action counts, or only that of the first."""
    rematerialize: bool
    """Whether the backward pass recomputes each step (`imagine`)."""


VjpFn = Callable[[Trajectory], tuple[PyTree, Float[Array, "S B O"]]]
"""Vector-Jacobian product of imagined steps: cotangents of the trajectory -> (cotangents of the actor's parameters,
cotangents of the states s_0 .. s_n), S = n + 1."""


def imagine_perturbed(
    config: ValueGradientConfig,
    agent: ActorCritic,
    world: World,
    state: PyTree,
    origin: Float[Array, "B O"],
    perturbations: Float[Array, "S B O"],
    key: Key,
) -> Trajectory:
    """n = `config.horizon` steps from s_0 = `origin` under the actor.

    `perturbations`, S = n + 1, are added to the states s_0 .. s_n. The derivative of J with respect to the perturbation of
    s_t, at 0, is that of all rewards from s_t on, without the reward of the step that leads to s_t.

    Rows that have terminated with probability 1 return to their start state: steps after termination do not count, and the
    model's prediction and its derivative might not be finite there.
    """
    policy = agent.policy_with_entropy(state)
    return imagine(perturbed(world, origin, perturbations), policy, origin, key, config.horizon, config.rematerialize)


def imagine_with_vjp(
    config: ValueGradientConfig, agent: ActorCritic, world: World, state: PyTree, origin: Float[Array, "B O"], key: Key
) -> tuple[Trajectory, VjpFn]:
    """`imagine_perturbed` with perturbations of 0, and its vector-Jacobian product."""

    def ahead(params: PyTree, perturbations: Float[Array, "S B O"]) -> Trajectory:
        return imagine_perturbed(config, agent, world, with_actor(state, params), origin, perturbations, key)

    return jax.vjp(ahead, state.actor.params, jnp.zeros((config.horizon + 1, *origin.shape)))


def actor_objective(
    config: ValueGradientConfig,
    agent: ActorCritic,
    state: PyTree,
    origin: Float[Array, "B O"],
    trajectory: Trajectory,
    keys: tuple[Key, Key],
) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
    """(J of each row along `trajectory` from `origin`, entropy bonus of its first action). The two `keys` are for the last
    action and for the critics."""
    last = jnp.concatenate([origin[None], trajectory.next_observation])[-1]
    action, bonus, _ = agent.policy_with_entropy(state).act((), last, keys[0])
    value = agent.action_value(state, last, action, keys[1])
    bonuses = jnp.concatenate([trajectory.entropy_bonus, bonus[None]])
    counted = bonuses if config.entropy_at_every_step else bonuses.at[1:].set(0.0)
    earned = trajectory._replace(entropy_bonus=counted[:-1]).n_step_returns(value + counted[-1], state.discount)
    return earned[0], bonuses[0]


def with_actor(state: PyTree, params: PyTree) -> PyTree:
    """An agent's `state` with the actor's parameters replaced by `params`."""
    return state._replace(actor=state.actor._replace(params=params))


def perturbed(world: World, origin: Float[Array, "B O"], perturbations: Float[Array, "S B O"]) -> World:
    """A learned `world` with `perturbations` added to its states, in which terminated rows return to `origin`
    (`imagine_perturbed`). Its `start` takes observations."""

    def start(rows: Float[Array, "B O"], key: Key) -> tuple[Any, Int[Array, ""]]:
        return world.start(rows + perturbations[0], key), jnp.zeros((), jnp.int32)

    def step(carry: tuple[Any, Int[Array, ""]], action: Action, key: Key) -> tuple[Any, Transition]:
        rows, i = carry
        step_key, start_key = jax.random.split(key)
        _, made = world.step(rows, action, step_key)
        ended = (made.terminated == 1)[:, None]
        next_observation = jnp.where(ended, origin, made.next_observation) + perturbations[i + 1]
        return (world.start(next_observation, start_key), i + 1), made._replace(next_observation=next_observation)

    return World(world.reset, start, lambda carry: world.observe(carry[0]), step)


def with_value_gradient(agent: ActorCritic, world: World, config: ValueGradientConfig) -> ActorCritic:
    """`agent` with an actor that maximises `actor_objective` along steps of `world` from a batch's states."""
    if config.horizon == 0:
        return agent

    def update_actor(state: PyTree, batch: Transition, key: Key) -> tuple[PyTree, Metrics]:
        imagine_key, action_key, value_key = jax.random.split(key, 3)
        trajectory, vjp = imagine_with_vjp(config, agent, world, state, batch.observation, imagine_key)
        return value_gradient_step(config, agent, state, batch, trajectory, vjp, (action_key, value_key))

    return with_updates(agent, actor=update_actor)


def value_gradient_step(
    config: ValueGradientConfig,
    agent: ActorCritic,
    state: PyTree,
    batch: Transition,
    trajectory: Trajectory,
    vjp: VjpFn,
    keys: tuple[Key, Key],
) -> tuple[PyTree, Metrics]:
    """One gradient ascent step of the actor on the mean `actor_objective` along the `trajectory` from the batch's states.
    `vjp` is the trajectory's vector-Jacobian product (`imagine_with_vjp`).

    The metrics `gradient/state_t`, t = 0 .. n, are the mean over rows of the norm of dJ/ds_t. They show whether gradients
    explode or vanish along the trajectory.
    """

    def loss(params: PyTree, trajectory: Trajectory) -> tuple[Float[Array, ""], Float[Array, ""]]:
        objective, bonus = actor_objective(config, agent, with_actor(state, params), batch.observation, trajectory, keys)
        return -jnp.mean(objective), jnp.mean(bonus)

    # The trajectory may contain integers and booleans, such as `terminated`, which have no derivative.
    gradient_of = jax.value_and_grad(loss, (0, 1), has_aux=True, allow_int=True)
    (value, bonus), (by_last_action, by_trajectory) = gradient_of(state.actor.params, trajectory)
    by_steps, by_state = vjp(by_trajectory)
    gradient = jax.tree.map(jnp.add, by_last_action, by_steps)
    state, found = agent.apply_actor_gradient(state, value, gradient, bonus)
    # Each row contributes 1 / B of the mean, so the sum over rows of these norms is the mean of the norms of dJ/ds_t.
    norms = jnp.sum(jnp.linalg.norm(by_state, axis=-1), axis=-1)
    return state, found | {f"gradient/state_{t}": Average.of(norm) for t, norm in enumerate(norms)}
