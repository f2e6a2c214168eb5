"""iLQR and DDP: optimal control by repeated LQR about the current trajectory (Li and Todorov, Iterative linear quadratic
regulator design for nonlinear biological movement systems, 2004; Jacobson and Mayne, Differential Dynamic Programming,
1970), with control limits (Tassa, Mansard and Todorov, Control-limited differential dynamic programming, 2014).

    minimise  sum_{t<T} cost(x_t, u_t) + last(x_T),    x_{t+1} = f(x_t, u_t),    low <= u_t <= high

    repeat:
        expand: F_t = df,  c_t and C_t = first and second derivatives of the cost, projected to C_t >= 0
        backward, for t = T-1 .. 0, in deviations from the trajectory:
            Q = C_t + F_t' V F_t  (DDP: + v . d2f),    q = c_t + F_t' v
            k = argmin k'(Q_uu + damping) k / 2 + q_u'k  in the box  low - u_t <= k <= high - u_t
            K = -(Q_uu + damping)^-1 Q_ux in the free actions, 0 in those at a bound
            V, v <- the cost-to-go under k and K, without damping
            if Q_uu + damping is not positive definite: raise the damping and begin again
        forward, for 11 step sizes alpha from 1 to 0.001 in parallel:
            u_t <- clip(u_t + alpha k_t + K_t (x'_t - x_t)), x' <- f(x', u)
        take the alpha of least cost; if it decreases the cost, accept it and lower the damping, else raise the damping

The damping is lambda I in Q_uu ("action"), or F_u' lambda I F of a V + lambda I ("state"), which also affects Q_ux. Its
schedule and the tolerances are those of Tassa's code (iLQG, 2015).

`ilqr` minimises any differentiable `System`; `vectors` makes one from functions of vectors. The planner over a World is
`planning.ilqr_planner`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge
from jaxtyping import Array, Bool, Float, Int

from jaxmbrl.core.types import Carry
from jaxmbrl.planning.box_qp import box_qp
from jaxmbrl.planning.lqr import Value, action_value, value_under

STEP_SIZES = tuple(10 ** (-0.3 * i) for i in range(11))
RAISE = 1.6
"""Factor by which the rate of the damping changes."""
LEAST, LARGEST = 1e-6, 1e10
"""Least positive damping, and the one at which the search gives up."""
GRADIENT, CHANGE = 1e-4, 1e-7
"""A search ends when the relative change of the actions, or the decrease of the cost, is below these."""


@dataclass(frozen=True)
class DescentConfig:
    """Settings of the optimisation."""

    iterations: Annotated[int, Ge(1)] = 500
    """Largest number of iterations."""
    second_order: bool = False
    """Whether second derivatives of the dynamics are used (DDP)."""
    damped: Literal["action", "state"] = "action"
    """What the damping is added to: the second derivative of the cost-to-go by the action, or by the next state."""
    damping: Annotated[float, Ge(0)] = 1.0
    """Damping of the first iteration."""
    project: bool = True
    """Whether second derivatives of the cost are projected to the nearest positive semidefinite matrix."""


class System(NamedTuple):
    """A controlled process. Its carry may be any pytree, of which `coordinates` are the numbers to differentiate by."""

    step: Callable[[Carry, Float[Array, "m"], Int[Array, ""]], tuple[Carry, Float[Array, ""]]]
    """(carry, action, t) -> (next carry, cost)."""
    last: Callable[[Carry], Float[Array, ""]]
    """carry after the last step -> its cost."""
    coordinates: Callable[[Carry], Float[Array, "n"]] = lambda carry: carry
    moved: Callable[[Carry, Float[Array, "n"]], Carry] = lambda carry, x: x
    """(carry, x) -> the carry with the coordinates x; it is otherwise the same."""


class Trajectory(NamedTuple):
    """A trajectory with the feedback around it, and the state of its optimisation."""

    carries: Carry
    """[T + 1, ...]; of a system of vectors, the states [T + 1, n]."""
    actions: Float[Array, "T m"]
    cost: Float[Array, ""]
    K: Float[Array, "T m n"]
    """Gains of u_t = actions_t + K_t (x_t - x of the trajectory); zeros before the first iteration."""
    k: Float[Array, "T m"]
    """The change of the actions that the last backward pass proposed."""
    damping: Float[Array, ""]
    rate: Float[Array, ""]
    """Factor of the last change of the damping."""
    iterations: Int[Array, ""]
    converged: Bool[Array, ""]
    """Whether the change of the actions, or of the cost, is below its tolerance."""
    stuck: Bool[Array, ""]
    """Whether no step decreases the cost at the largest damping."""


class Expansion(NamedTuple):
    """Derivatives along a trajectory with respect to z_t = [x_t; u_t]."""

    F: Float[Array, "T n nm"]
    C: Float[Array, "T nm nm"]
    c: Float[Array, "T nm"]
    P: Float[Array, "n n"]
    p: Float[Array, "n"]


class Change(NamedTuple):
    """Result of a backward pass."""

    K: Float[Array, "T m n"]
    k: Float[Array, "T m"]
    linear: Float[Array, ""]
    """The expected change of the cost is alpha linear + alpha^2 quadratic."""
    quadratic: Float[Array, ""]


def vectors(
    dynamics: Callable[..., Float[Array, "n"]],
    cost: Callable[..., Float[Array, ""]],
    last: Callable[[Float[Array, "n"]], Float[Array, ""]],
) -> System:
    """The system x' = dynamics(x, u, t) with the costs cost(x, u, t) and last(x) at the end."""
    return System(lambda x, u, t: (dynamics(x, u, t), cost(x, u, t)), last)


def ilqr(
    system: System,
    start: Carry,
    actions: Float[Array, "T m"],
    low: float | Float[Array, "m"] = -jnp.inf,
    high: float | Float[Array, "m"] = jnp.inf,
    config: DescentConfig | None = None,
    iterations: Int[Array, ""] | None = None,
) -> Trajectory:
    """The trajectory from `start` after optimisation, beginning with `actions` clipped to the bounds. `iterations`, which
    may be traced, replaces that of `config`. Batch it with `jax.vmap` over starts or first actions; all then take as long
    as the slowest.

    >>> from jaxmbrl.planning import ilqr
    >>> pendulum = ilqr.vectors(
    ...     lambda x, u, t: jnp.stack([x[0] + 0.05 * x[1], x[1] + 0.05 * (15 * jnp.sin(x[0]) + 3 * u[0])]),
    ...     lambda x, u, t: 2 * (1 - jnp.cos(x[0])) + 0.1 * x[1] ** 2 + 0.001 * u[0] ** 2,
    ...     lambda x: 0.0,
    ... )
    >>> found = ilqr.ilqr(pendulum, jnp.array([0.3, 0.0]), jnp.zeros((40, 1)), -5.0, 5.0)
    >>> bool(found.converged), bool(jnp.abs(found.carries[-1, 0]) < 0.01)
    (True, True)
    """
    config = DescentConfig() if config is None else config
    limit = config.iterations if iterations is None else iterations
    first = begin(system, start, jnp.clip(actions, low, high), config)
    return jax.lax.while_loop(
        lambda at: ~at.converged & ~at.stuck & (at.iterations < limit),
        lambda at: improve(system, at, low, high, config),
        first,
    )


def begin(system: System, start: Carry, actions: Float[Array, "T m"], config: DescentConfig) -> Trajectory:
    """The trajectory of `actions` before the first iteration."""
    T, m = actions.shape
    n = jax.eval_shape(system.coordinates, start).shape[0]
    still, k = jnp.zeros((T, m, n), actions.dtype), jnp.zeros_like(actions)
    carries = jax.tree.map(lambda x: jnp.broadcast_to(x, (T + 1, *jnp.shape(x))), start)
    carries, actions, cost = roll(system, carries, actions, still, k, jnp.zeros(()), -jnp.inf, jnp.inf)
    cost = jnp.where(jnp.isfinite(cost), cost, jnp.inf)
    no, one = jnp.zeros((), bool), jnp.ones((), cost.dtype)
    damping, none = jnp.full_like(cost, config.damping), jnp.zeros((), jnp.int32)
    return Trajectory(carries, actions, cost, still, k, damping, one, none, no, no)


def improve(
    system: System,
    at: Trajectory,
    low: float | Float[Array, "m"],
    high: float | Float[Array, "m"],
    config: DescentConfig,
) -> Trajectory:
    """One iteration."""
    expansion = expand(system, at.carries, at.actions, config.project)

    def attempt(damping: Float[Array, ""]) -> Change:
        return backward(system, at, expansion, damping, low, high, config)

    def indefinite(loop: tuple[Change, Array, Array]) -> Bool[Array, ""]:
        change, damping, _ = loop
        return ~jnp.isfinite(change.linear) & (damping <= LARGEST)

    def raise_damping(loop: tuple[Change, Array, Array]) -> tuple[Change, Array, Array]:
        damping, rate = raised(*loop[1:])
        return attempt(damping), damping, rate

    first = (attempt(at.damping), at.damping, at.rate)
    change, damping, rate = jax.lax.while_loop(indefinite, raise_damping, first)
    definite = jnp.isfinite(change.linear)
    relative = jnp.mean(jnp.max(jnp.abs(change.k) / (jnp.abs(at.actions) + 1), axis=1))
    at_minimum = definite & (relative < GRADIENT) & (damping < 1e-5)

    alphas = jnp.asarray(STEP_SIZES, at.actions.dtype)
    rolled = jax.vmap(lambda alpha: roll(system, at.carries, at.actions, change.K, change.k, alpha, low, high))(alphas)
    costs = jnp.where(jnp.isfinite(rolled[2]), rolled[2], jnp.inf)
    best = jnp.argmin(costs)
    carries, actions, cost = jax.tree.map(lambda x: x[best], rolled)
    gain = at.cost - costs[best]
    better = definite & ~at_minimum & (gain > 0)
    # Below rounding error the cost cannot decrease.
    expected = -(change.linear + change.quadratic)
    negligible = definite & (expected <= jnp.finfo(cost.dtype).eps * jnp.abs(at.cost))

    lower = lowered(damping, rate)
    higher = raised(damping, rate)
    taken = at._replace(carries=carries, actions=actions, cost=cost)
    chosen = jax.tree.map(lambda new, old: jnp.where(better, new, old), taken, at)
    return chosen._replace(
        K=jnp.where(definite, change.K, at.K),
        k=jnp.where(definite, change.k, at.k),
        damping=jnp.where(better, lower[0], higher[0]),
        rate=jnp.where(better, lower[1], higher[1]),
        iterations=at.iterations + 1,
        converged=at_minimum | (better & (gain < CHANGE)) | (~better & negligible),
        stuck=~better & (higher[0] > LARGEST),
    )


def raised(damping: Float[Array, ""], rate: Float[Array, ""]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(damping, rate) after a failed step."""
    rate = jnp.maximum(RAISE, RAISE * rate)
    return jnp.maximum(LEAST, damping * rate), rate


def lowered(damping: Float[Array, ""], rate: Float[Array, ""]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(damping, rate) after a step that decreased the cost. A damping at its least positive value becomes 0."""
    rate = jnp.minimum(1 / RAISE, rate / RAISE)
    return jnp.where(damping > LEAST, damping * rate, 0.0), rate


def expand(system: System, carries: Carry, actions: Float[Array, "T m"], project: bool) -> Expansion:
    """The derivatives along a trajectory."""
    n = jax.eval_shape(system.coordinates, jax.tree.map(lambda x: x[0], carries)).shape[0]

    def of_step(carry: Carry, u: Float[Array, "m"], t: Int[Array, ""]) -> tuple[Array, Array, Array]:
        def both(z: Float[Array, "nm"]) -> tuple[Array, Array]:
            carried, cost = system.step(system.moved(carry, z[:n]), z[n:], t)
            return system.coordinates(carried), cost

        z = jnp.concatenate([system.coordinates(carry), u])
        F, c = jax.jacfwd(both)(z)
        return F, _convex(jax.hessian(lambda z: both(z)[1])(z), project), c

    steps, end = jax.tree.map(lambda x: x[:-1], carries), jax.tree.map(lambda x: x[-1], carries)
    F, C, c = jax.vmap(of_step)(steps, actions, jnp.arange(actions.shape[0]))

    def last(x: Float[Array, "n"]) -> Float[Array, ""]:
        return jnp.asarray(system.last(system.moved(end, x)), x.dtype)

    x = system.coordinates(end)
    return Expansion(F, C, c, _convex(jax.hessian(last)(x), project), jax.grad(last)(x))


def _convex(matrix: Float[Array, "n n"], project: bool) -> Float[Array, "n n"]:
    """The symmetric part; if `project`, the nearest positive semidefinite matrix to it."""
    matrix = (matrix + matrix.T) / 2
    if not project or not matrix.size:
        return matrix
    values, axes = jnp.linalg.eigh(matrix)
    return jnp.where(values[0] < 0, (axes * jnp.maximum(values, 0.0)) @ axes.T, matrix)


def backward(
    system: System,
    at: Trajectory,
    expansion: Expansion,
    damping: Float[Array, ""],
    low: float | Float[Array, "m"],
    high: float | Float[Array, "m"],
    config: DescentConfig,
) -> Change:
    """The backward pass. Its numbers are not finite where a damped Q_uu is not positive definite."""
    n = expansion.p.shape[0]

    def step(after: tuple[Value, Array], of: tuple[Any, ...]) -> tuple[tuple[Value, Array], tuple[Array, ...]]:
        value, later = after
        (F, C, c), carry, u, t = of
        if config.second_order:

            def towards(z: Float[Array, "nm"]) -> Float[Array, ""]:
                return value.v @ system.coordinates(system.step(system.moved(carry, z[:n]), z[n:], t)[0])

            C = C + jax.hessian(towards)(jnp.concatenate([system.coordinates(carry), u]))
        Q, q = action_value(F, jnp.zeros_like(F[:, 0]), C, c, value)
        damped = Q + damping * (F.T @ F) if config.damped == "state" else Q
        Q_uu = damped[n:, n:] + (damping * jnp.eye(u.shape[0], dtype=u.dtype) if config.damped == "action" else 0.0)
        found = box_qp(Q_uu, q[n:], low - u, high - u, later)
        k, K = found.x, -found.solve(damped[n:, :n])
        V, v, _ = value_under(Q, q, K, k)
        return (Value(V, v, value.constant), k), (K, k, k @ q[n:], (Q[n:, n:] @ k) @ k / 2)

    last = Value(expansion.P, expansion.p, jnp.zeros((), expansion.p.dtype))
    steps = jax.tree.map(lambda x: x[:-1], at.carries)
    along = ((expansion.F, expansion.C, expansion.c), steps, at.actions, jnp.arange(at.actions.shape[0]))
    _, (K, k, linear, quadratic) = jax.lax.scan(step, (last, jnp.zeros_like(at.actions[0])), along, reverse=True)
    finite = jnp.all(jnp.isfinite(K)) & jnp.all(jnp.isfinite(k))
    return Change(K, k, jnp.where(finite, jnp.sum(linear), jnp.nan), jnp.sum(quadratic))


def roll(
    system: System,
    carries: Carry,
    actions: Float[Array, "T m"],
    K: Float[Array, "T m n"],
    k: Float[Array, "T m"],
    alpha: Float[Array, ""],
    low: float | Float[Array, "m"],
    high: float | Float[Array, "m"],
) -> tuple[Carry, Float[Array, "T m"], Float[Array, ""]]:
    """(carries, actions, cost) of the feedback around a trajectory, with the share `alpha` of the change k."""

    def step(carry: Carry, of: tuple[Any, ...]) -> tuple[Carry, tuple[Carry, Array, Array]]:
        there, u, K, k, t = of
        u = jnp.clip(u + alpha * k + K @ (system.coordinates(carry) - system.coordinates(there)), low, high)
        after, cost = system.step(carry, u, t)
        return after, (carry, u, cost)

    steps, start = jax.tree.map(lambda x: x[:-1], carries), jax.tree.map(lambda x: x[0], carries)
    end, (before, taken, costs) = jax.lax.scan(step, start, (steps, actions, K, k, jnp.arange(actions.shape[0])))
    along = jax.tree.map(lambda xs, x: jnp.concatenate([xs, x[None]]), before, end)
    return along, taken, jnp.sum(costs) + system.last(end)
