"""LQR, the linear-quadratic regulator: optimal feedback for linear dynamics and quadratic costs, in closed form.

    minimise  E sum_{t<T} discount^t (z_t' C_t z_t / 2 + c_t' z_t)  +  discount^T (x_T' P x_T / 2 + p' x_T)
    where     z_t = [x_t; u_t],    x_{t+1} = F_t z_t + f_t + w_t,    w_t ~ N(0, W_t)

    V <- P,  v <- p
    for t = T-1 .. 0:
        Q = C_t + discount F_t' V F_t,    q = c_t + discount F_t' (V f_t + v)
        K_t = -Q_uu^-1 Q_ux,    k_t = -Q_uu^-1 q_u
        V <- Q_xx + K_t' Q_uu K_t + K_t' Q_ux + Q_xu K_t,    v <- q_x + K_t' Q_uu k_t + K_t' q_u + Q_xu k_t

The optimal action is u_t = K_t x_t + k_t, and the cost-to-go of x is x'V_t x / 2 + v_t'x + a constant (Bertsekas, Dynamic
Programming and Optimal Control, section 3.1). The noise adds discount tr(V W_t) / 2 per step to the constant and does not
change the gains (LQG with an observed state).

With a temperature alpha > 0 the objective is E sum (cost - alpha entropy of u_t given x_t), and the optimal policy is
N(K_t x + k_t, alpha Q_uu^-1) with the same gains (maximum-entropy LQR; Levine and Abbeel, Learning neural network policies
with guided policy search under unknown dynamics, 2014, section 3.1, where alpha = 1). The covariance has the unit of 1 /
cost: scaling the cost scales the exploration.

Nothing is batched: use `jax.vmap`. Shapes: T steps, n the size of a state x, m that of an action u.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxmbrl.core.cholesky import cholesky
from jaxmbrl.core.types import PyTree

PATIENCE = 10
"""Iterations without a smaller change after which a Riccati recursion has converged."""


class LinearDynamics(NamedTuple):
    """x_{t+1} = F_t [x_t; u_t] + f_t + w_t, with w_t ~ N(0, W_t)."""

    F: Float[Array, "T n nm"]
    f: Float[Array, "T n"]
    W: Float[Array, "T n n"]


class QuadraticCost(NamedTuple):
    """z'C_t z / 2 + c_t'z of z = [x_t; u_t] at step t, and x'Px / 2 + p'x of the last state."""

    C: Float[Array, "T nm nm"]
    c: Float[Array, "T nm"]
    P: Float[Array, "n n"]
    p: Float[Array, "n"]


class LinearPolicy(NamedTuple):
    """u_t ~ N(K_t x_t + k_t, covariance_t)."""

    K: Float[Array, "T m n"]
    k: Float[Array, "T m"]
    covariance: Float[Array, "T m m"]
    """Zeros for a deterministic policy."""


class Value(NamedTuple):
    """A cost-to-go x'Vx / 2 + v'x + constant."""

    V: Float[Array, "*T n n"]
    v: Float[Array, "*T n"]
    constant: Float[Array, "*T"]

    def at(self, x: Float[Array, "n"]) -> Float[Array, "*T"]:
        """The cost-to-go of the state `x`, at each step."""
        return (self.V @ x) @ x / 2 + self.v @ x + self.constant


class Solution(NamedTuple):
    """What `lqr` returns."""

    policy: LinearPolicy
    value: Value
    """The cost-to-go before each step, and of the last state: [T + 1, ...]."""
    Q_uu: Float[Array, "T m m"]
    """Second derivative of the cost-to-go with respect to the action."""
    convex: Bool[Array, ""]
    """Whether every Q_uu is positive definite. Otherwise there is no minimum, and gains and values are not finite."""


class Moments(NamedTuple):
    """Means and covariances of the states x_0 .. x_T."""

    mean: Float[Array, "T+1 n"]
    covariance: Float[Array, "T+1 n n"]


def linear_dynamics(
    A: Float[Array, "n n"],
    B: Float[Array, "n m"],
    horizon: int,
    offset: Float[Array, "n"] | None = None,
    noise: Float[Array, "n n"] | None = None,
) -> LinearDynamics:
    """The dynamics x' = A x + B u + offset + w, w ~ N(0, noise), at each of `horizon` steps."""
    f = jnp.zeros_like(A[0]) if offset is None else offset
    W = jnp.zeros_like(A) if noise is None else noise
    return repeated(LinearDynamics(jnp.concatenate([A, B], axis=1), f, W), horizon)


def quadratic_cost(Q: Float[Array, "n n"], R: Float[Array, "m m"], P: Float[Array, "n n"], horizon: int) -> QuadraticCost:
    """The cost x'Qx / 2 + u'Ru / 2 at each of `horizon` steps, and x'Px / 2 of the last state."""
    C = jax.scipy.linalg.block_diag(Q, R)
    steps, linear = repeated((C, jnp.zeros_like(C[0])), horizon)
    return QuadraticCost(steps, linear, P, jnp.zeros_like(P[0]))


def repeated(constants: PyTree, horizon: int) -> PyTree:
    """Each array of `constants` at each of `horizon` steps, on a new leading axis."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (horizon, *x.shape)), constants)


def lqr(
    dynamics: LinearDynamics,
    cost: QuadraticCost,
    discount: float | Float[Array, ""] = 1.0,
    temperature: float | Float[Array, ""] = 0.0,
) -> Solution:
    """The optimal policy of T steps and its cost-to-go. With a temperature of 0 the policy is deterministic.

    >>> from jaxmbrl.planning import lqr
    >>> dynamics = lqr.linear_dynamics(jnp.array([[0.9]]), jnp.array([[0.5]]), 3)
    >>> cost = lqr.quadratic_cost(jnp.array([[1.0]]), jnp.array([[0.1]]), jnp.array([[1.0]]), 3)
    >>> found = lqr.lqr(dynamics, cost)
    >>> [round(float(gain), 4) for gain in found.policy.K[:, 0, 0]]
    [-1.3622, -1.3587, -1.2857]
    >>> round(float(found.value.at(jnp.array([1.0]))[0]), 4)
    0.6226
    """

    def backward(after: Value, step: tuple[Array, ...]) -> tuple[Value, tuple[LinearPolicy, Value, Array, Array]]:
        F, f, W, C, c = step
        Q, q = action_value(F, f, C, c, after, discount)
        n = after.v.shape[0]
        K, k, factor = gains(Q, q, n)
        V, v, lowest = value_under(Q, q, K, k)
        covariance = temperature * _inverse(factor)
        moved = (after.V @ f) @ f / 2 + after.v @ f + jnp.sum(after.V * W) / 2 + after.constant
        value = Value(V, v, lowest + discount * moved - _entropy_bonus(factor, temperature))
        return value, (LinearPolicy(K, k, covariance), value, Q[n:, n:], jnp.all(jnp.isfinite(factor)))

    last = Value(cost.P, cost.p, jnp.zeros_like(cost.p[0]))
    _, (policy, values, Q_uu, convex) = jax.lax.scan(backward, last, (*dynamics, cost.C, cost.c), reverse=True)
    values = jax.tree.map(lambda x, end: jnp.concatenate([x, end[None]]), values, last)
    return Solution(policy, values, Q_uu, jnp.all(convex))


class Stationary(NamedTuple):
    """What `infinite_horizon` returns."""

    K: Float[Array, "m n"]
    k: Float[Array, "m"]
    V: Float[Array, "n n"]
    v: Float[Array, "n"]
    iterations: Int[Array, ""]
    """Steps of the Riccati recursion; the largest number if it did not converge, as where no policy has a finite cost."""


def infinite_horizon(
    F: Float[Array, "n nm"],
    f: Float[Array, "n"],
    C: Float[Array, "nm nm"],
    c: Float[Array, "nm"],
    discount: float | Float[Array, ""] = 1.0,
    max_iterations: int = 10_000,
) -> Stationary:
    """The optimal policy u = K x + k for infinitely many steps with the same dynamics and cost, and its cost-to-go
    x'Vx / 2 + v'x up to a constant.

    Value iteration from V = 0: the Riccati recursion is repeated until V changes by no more than its rounding error, that
    is, until the change has not become smaller for 10 iterations. It converges at the rate of the closed loop.
    """
    n = f.shape[0]
    zero = Value(jnp.zeros_like(C[:n, :n]), jnp.zeros_like(f), jnp.zeros_like(f[0]))

    def iteration(at: Any) -> Any:
        V, least, stalled, i = at
        Q, q = action_value(F, f, C, c, zero._replace(V=V), discount)
        after = value_under(Q, q, *gains(Q, q, n)[:2])[0]
        change = jnp.max(jnp.abs(after - V))
        settled = change <= jnp.sqrt(jnp.finfo(V.dtype).eps) * jnp.max(jnp.abs(after))
        stalled = jnp.where(change == 0, PATIENCE, jnp.where(settled & (change >= least), stalled + 1, 0))
        return after, jnp.minimum(change, least), stalled, i + 1

    def unfinished(at: Any) -> Bool[Array, ""]:
        return (at[2] < PATIENCE) & (at[3] < max_iterations)

    none = jnp.zeros((), jnp.int32)
    V, _, _, iterations = jax.lax.while_loop(unfinished, iteration, (zero.V, jnp.full_like(f[0], jnp.inf), none, none))
    Q, q = action_value(F, f, C, c, zero._replace(V=V), discount)
    K, k, factor = gains(Q, q, n)
    # v = offset + discount (A + B K)' v, and k is linear in v.
    closed = discount * (F[:, :n] + F[:, n:] @ K).T
    v = jnp.linalg.solve(jnp.eye(n, dtype=V.dtype) - closed, value_under(Q, q, K, k)[1])
    k = k - discount * jax.scipy.linalg.cho_solve((factor, True), F[:, n:].T @ v)
    return Stationary(K, k, V, v, iterations)


def action_value(
    F: Float[Array, "n nm"],
    f: Float[Array, "n"],
    C: Float[Array, "nm nm"],
    c: Float[Array, "nm"],
    after: Value,
    discount: float | Float[Array, ""] = 1.0,
) -> tuple[Float[Array, "nm nm"], Float[Array, "nm"]]:
    """(Q, q): the cost of a step and the cost-to-go `after` it are z'Qz / 2 + q'z + a constant, for z = [x; u]."""
    Q = C + discount * F.T @ after.V @ F
    return (Q + Q.T) / 2, c + discount * F.T @ (after.V @ f + after.v)


def gains(
    Q: Float[Array, "nm nm"], q: Float[Array, "nm"], n: int
) -> tuple[Float[Array, "m n"], Float[Array, "m"], Float[Array, "m m"]]:
    """(K, k, Cholesky factor of Q_uu), where u = K x + k minimises z'Qz / 2 + q'z. They are not finite if Q_uu is not
    positive definite."""
    factor = cholesky(Q[n:, n:])
    both = -jax.scipy.linalg.cho_solve((factor, True), jnp.concatenate([Q[n:, :n], q[n:, None]], axis=1))
    return both[:, :n], both[:, n], factor


def value_under(
    Q: Float[Array, "nm nm"], q: Float[Array, "nm"], K: Float[Array, "m n"], k: Float[Array, "m"]
) -> tuple[Float[Array, "n n"], Float[Array, "n"], Float[Array, ""]]:
    """(V, v, constant) of z'Qz / 2 + q'z at u = K x + k, for any gains."""
    n = K.shape[1]
    Q_ux, Q_uu = Q[n:, :n], Q[n:, n:]
    V = Q[:n, :n] + K.T @ Q_uu @ K + K.T @ Q_ux + Q_ux.T @ K
    v = q[:n] + K.T @ (Q_uu @ k + q[n:]) + Q_ux.T @ k
    return (V + V.T) / 2, v, (Q_uu @ k) @ k / 2 + q[n:] @ k


def propagate(
    dynamics: LinearDynamics, policy: LinearPolicy, mean: Float[Array, "n"], covariance: Float[Array, "n n"]
) -> Moments:
    """The moments of the states under `policy`, from a start with the given moments. With zero covariances everywhere the
    means are the trajectory."""

    def step(at: tuple[Array, Array], of: tuple[Any, ...]) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        (F, f, W), (K, k, noise) = of
        z, spread = _joint(K, k, noise, *at)
        after = F @ spread @ F.T + W
        at = F @ z + f, (after + after.T) / 2
        return at, at

    _, later = jax.lax.scan(step, (mean, covariance), (tuple(dynamics), tuple(policy)), length=policy.k.shape[0])
    return Moments(*(jnp.concatenate([x[None], xs]) for x, xs in zip((mean, covariance), later, strict=True)))


def joint(policy: LinearPolicy, moments: Moments) -> Moments:
    """The moments of z_t = [x_t; u_t] at each step: means [T, n + m] and covariances."""
    return Moments(*jax.vmap(_joint)(*policy, moments.mean[:-1], moments.covariance[:-1]))


def expected_cost(
    cost: QuadraticCost, policy: LinearPolicy, moments: Moments, discount: float | Float[Array, ""] = 1.0
) -> Float[Array, "last"]:
    """The expected cost of each of the T steps and of the last state, discounted: [T + 1]. Their sum is the policy's."""
    z, last = joint(policy, moments), jax.tree.map(lambda x: x[-1], moments)
    steps = jax.vmap(_expected)(cost.C, cost.c, *z)
    costs = jnp.concatenate([steps, _expected(cost.P, cost.p, *last)[None]])
    return costs * discount ** jnp.arange(len(costs))


def kl_divergence(policy: LinearPolicy, reference: LinearPolicy, moments: Moments) -> Float[Array, "T"]:
    """KL(policy || reference) of the actions at each step, averaged over states with `moments`, those under `policy`. The
    covariances of both policies must be positive definite.

        ( ln|S'|/|S| - m + tr S'^-1 S + d'S'^-1 d + tr dK'S'^-1 dK Sigma ) / 2,   dK = K' - K,  d = k' - k + dK mean

    for the covariances S of `policy`, S' of `reference` and Sigma of the states.
    """

    def divergence(policy: LinearPolicy, reference: LinearPolicy, mean: Array, covariance: Array) -> Float[Array, ""]:
        factor = cholesky(reference.covariance)
        dK = reference.K - policy.K
        d = reference.k - policy.k + dK @ mean
        spread = policy.covariance + jnp.outer(d, d) + dK @ covariance @ dK.T
        trace = jnp.trace(jax.scipy.linalg.cho_solve((factor, True), spread))
        return (_log_det(factor) - _log_det(cholesky(policy.covariance)) - d.shape[0] + trace) / 2

    return jax.vmap(divergence)(policy, reference, moments.mean[:-1], moments.covariance[:-1])


def _joint(
    K: Float[Array, "m n"],
    k: Float[Array, "m"],
    noise: Float[Array, "m m"],
    mean: Float[Array, "n"],
    covariance: Float[Array, "n n"],
) -> tuple[Float[Array, "nm"], Float[Array, "nm nm"]]:
    across = K @ covariance
    spread = jnp.block([[covariance, across.T], [across, across @ K.T + noise]])
    return jnp.concatenate([mean, K @ mean + k]), spread


def _expected(
    C: Float[Array, "n n"], c: Float[Array, "n"], mean: Float[Array, "n"], covariance: Float[Array, "n n"]
) -> Float[Array, ""]:
    return ((C @ mean) @ mean + jnp.sum(C * covariance)) / 2 + c @ mean


def _inverse(factor: Float[Array, "m m"]) -> Float[Array, "m m"]:
    """The inverse of the matrix with this Cholesky factor."""
    half = jax.scipy.linalg.solve_triangular(factor, jnp.eye(factor.shape[0], dtype=factor.dtype), lower=True)
    return half.T @ half


def _log_det(factor: Float[Array, "m m"]) -> Float[Array, ""]:
    """The logarithm of the determinant of the matrix with this Cholesky factor."""
    return 2 * jnp.sum(jnp.log(jnp.diag(factor)))


def _entropy_bonus(factor: Float[Array, "m m"], temperature: float | Float[Array, ""]) -> Float[Array, ""]:
    """By how much the soft cost-to-go is below the cost-to-go: alpha / 2 log det(2 pi alpha Q_uu^-1)."""
    positive = jnp.where(jnp.asarray(temperature) > 0, temperature, 1.0)
    bonus = positive / 2 * (factor.shape[0] * jnp.log(2 * jnp.pi * positive) - _log_det(factor))
    return jnp.where(jnp.asarray(temperature) > 0, bonus, 0.0).astype(factor.dtype)
