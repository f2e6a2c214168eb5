"""Returns: targets of critics and actors from the rewards along a trajectory and the values of its states. All functions
are for one trajectory: batch them with `jax.vmap`.

Step j of a trajectory of T steps has the reward rewards[j], ends the episode with probability terminated[j] (0 or 1 if that
is certain), and leads to a state with the value values[j]. Steps after termination are ignored, even if they are not
finite.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Ends = Bool[Array, "T"] | Float[Array, "T"]
Discount = Float[Array, ""] | float


def alive_before(terminated: Ends) -> Float[Array, "T"]:
    """The probability that no earlier step ended the episode: m_0 = 1, m_{j+1} = m_j (1 - terminated_j)."""
    certain = terminated == 1
    over = jnp.cumsum(certain) > certain
    going_on = jnp.cumprod(jnp.where(over, 0.0, 1.0 - terminated))
    return jnp.concatenate([jnp.ones(1), going_on[:-1]])


def value_expansion_targets(
    rewards: Float[Array, "T"], terminated: Ends, values: Float[Array, "T"], discount: Discount
) -> Float[Array, "T"]:
    """The targets of the first state for all horizons i = 0 .. T - 1 (Feinberg et al., model-based value expansion, arXiv
    1803.00101, equation 3),

        T_i = sum_{j <= i} discount^j m_j r_j + discount^{i+1} m_{i+1} v_i

    T_0 is the one-step target. With an exact model and the exact values of the policy all targets are equal in expectation.

    >>> from jaxmbrl import returns
    >>> rewards, never, values = jnp.ones(3), jnp.zeros(3), jnp.array([4.0, 8.0, 16.0])
    >>> [float(target) for target in returns.value_expansion_targets(rewards, never, values, discount=0.5)]
    [3.0, 3.5, 3.75]
    """
    alive = alive_before(terminated)
    powers = jnp.asarray(discount) ** jnp.arange(rewards.shape[0])
    earned = jnp.cumsum(powers * _weighed(alive, rewards))
    return earned + powers * discount * _weighed(_weighed(alive, 1.0 - terminated), values)


def n_step_returns(
    rewards: Float[Array, "T"], terminated: Ends, last: Float[Array, ""], discount: Discount
) -> Float[Array, "T+1"]:
    """The n-step return of each state on its own remaining horizon, bootstrapped with the value `last` of the final state:
    y_t = r_t + discount (1 - terminated_t) y_{t+1} with y_T = last (the TD-k trick, arXiv 1803.00101, section 3.1).

    The first one is the last of `value_expansion_targets`, and an actor's objective along the trajectory. Without any step
    it is `last`.

    >>> from jaxmbrl import returns
    >>> ends = jnp.array([False, True, False])
    >>> [float(target) for target in returns.n_step_returns(jnp.ones(3), ends, jnp.asarray(8.0), discount=0.5)]
    [1.5, 1.0, 5.0, 8.0]
    """

    def back(next_target: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
        reward, ended = step
        target = reward + discount * _weighed(1.0 - ended, next_target)
        return target, target

    last = jnp.asarray(last, rewards.dtype)
    _, targets = jax.lax.scan(back, last, (rewards, terminated), reverse=True)
    return jnp.concatenate([targets, last[None]])


def lambda_return(
    rewards: Float[Array, "T"], terminated: Ends, values: Float[Array, "T"], discount: Discount, mix: Discount
) -> Float[Array, ""]:
    """The lambda return with lambda = `mix`: the geometrically weighted mean of the `value_expansion_targets`,
    (1 - mix) sum_{i < T-1} mix^i T_i + mix^{T-1} T_{T-1} (Sutton and Barto, Reinforcement Learning, 2nd edition, equation
    12.3). mix = 0 gives the one-step target, mix = 1 that of the longest horizon."""
    targets = value_expansion_targets(rewards, terminated, values, discount)
    powers = jnp.asarray(mix, targets.dtype) ** jnp.arange(targets.shape[0])
    weights = jnp.concatenate([(1 - mix) * powers[:-1], powers[-1:]])
    return jnp.sum(weights * targets)


def lambda_returns(
    rewards: Float[Array, "T"], terminated: Ends, values: Float[Array, "T"], discount: Discount, mix: Any
) -> Float[Array, "T"]:
    """The lambda return of every state of the trajectory on its own remaining horizon (Sutton and Barto, 2nd edition,
    equation 12.3, as a recursion),

        R_t = r_t + discount (1 - terminated_t) ((1 - mix_t) v_t + mix_t R_{t+1}),    R_T = v_{T-1}

    where v_t is the value of the state that step t leads to. `mix` is lambda, a number or [T]: 0 at a step after which the
    trajectory is cut, as by a time limit, bootstraps there. The first return is `lambda_return`.

    >>> from jaxmbrl import returns
    >>> rewards, ends, values = jnp.array([1.0, 2.0, 3.0]), jnp.array([0.0, 1.0, 0.0]), jnp.array([6.0, 7.0, 8.0])
    >>> [round(float(x), 4) for x in returns.lambda_returns(rewards, ends, values, discount=0.997, mix=0.95)]
    [3.1934, 2.0, 10.976]
    """

    def back(after: Array, step: tuple[Array, ...]) -> tuple[Array, Array]:
        reward, ended, value, share = step
        found = reward + discount * _weighed(1.0 - ended, (1 - share) * value + share * after)
        return found, found

    shares = jnp.broadcast_to(jnp.asarray(mix, values.dtype), values.shape)
    return jax.lax.scan(back, values[-1], (rewards, terminated, values, shares), reverse=True)[1]


def advantages(
    rewards: Float[Array, "T"],
    terminated: Ends,
    truncated: Bool[Array, "T"],
    values: Float[Array, "T"],
    next_values: Float[Array, "T"],
    discount: Discount,
    mix: Discount,
) -> Float[Array, "T"]:
    """Generalised advantage estimates (GAE, Schulman et al., arXiv 1506.02438, equation 16) with lambda = `mix`, along T
    successive steps that may contain ends of episodes:

        delta_t = r_t + discount (1 - terminated_t) v(s'_t) - v(s_t)
        A_t = delta_t + discount mix (1 - terminated_t) (1 - truncated_t) A_{t+1},    A_T = 0

    `next_values` are those of the true successors s'_t, also where the next step is the first of another episode. A time
    limit is bootstrapped with v(s'_t), a termination with 0. mix = 0 gives the TD errors; mix = 1 the return, bootstrapped
    at the end of the steps, minus the value. A_t + v(s_t) is the lambda return, a target of the value function.

    >>> from jaxmbrl import returns
    >>> rewards, values, successors = jnp.array([1.0, 2.0, 3.0]), jnp.full(3, 0.5), jnp.array([0.5, 0.5, 4.0])
    >>> ends, never = jnp.array([False, True, False]), jnp.zeros(3, bool)
    >>> found = returns.advantages(rewards, ends, never, values, successors, discount=0.9, mix=0.8)
    >>> [round(float(advantage), 4) for advantage in found]
    [2.03, 1.5, 6.1]
    """
    errors = rewards + discount * _weighed(1.0 - terminated, next_values) - values

    def back(after: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
        error, continues = step
        advantage = error + discount * mix * _weighed(continues, after)
        return advantage, advantage

    continues = (1.0 - terminated) * (1.0 - truncated)
    return jax.lax.scan(back, jnp.zeros((), errors.dtype), (errors, continues), reverse=True)[1]


def steve(samples: Float[Array, "S T"], epsilon: float = 1e-8) -> tuple[Float[Array, ""], Float[Array, "T"]]:
    """(STEVE's target, a weighted mean over horizons; the weights [T], which sum to 1) (Buckman et al., arXiv 1807.01675,
    equation 5).

    `samples` are the targets of each horizon by S combinations of dynamics, reward and value functions. The weight of a
    horizon is proportional to 1 / (population variance over combinations + epsilon). No gradient flows through the weights.

    >>> from jaxmbrl import returns
    >>> samples = jnp.array([[9.0, 10.0], [11.0, 14.0]])  # variances 1 and 4 around means 10 and 12
    >>> mixed, weights = returns.steve(samples)
    >>> round(float(mixed), 5), [round(float(weight), 5) for weight in weights]
    (10.4, [0.8, 0.2])
    """
    precision = 1.0 / (jnp.var(samples, axis=0) + epsilon)
    weights = jax.lax.stop_gradient(precision / jnp.sum(precision))
    return jnp.sum(weights * jnp.mean(samples, axis=0)), weights


def _weighed(weight: Any, value: Any) -> Any:
    # Steps with weight 0 are ignored, even if they are not finite.
    return weight * jnp.where(weight == 0, 0.0, value)


def discounted_so_far(
    so_far: Float[Array, "N"], reward: Float[Array, "T N"], ended: Bool[Array, "T N"], discount: Any
) -> tuple[Float[Array, "N"], Float[Array, "T N"]]:
    """(discounted returns so far after T steps of N environments, those after each step): R <- discount R + r, and 0 after
    the step that ends an episode."""

    def add(so_far: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
        reward, ended = step
        total = discount * so_far + reward
        return jnp.where(ended, 0.0, total), total

    return jax.lax.scan(add, so_far, (reward, ended))
