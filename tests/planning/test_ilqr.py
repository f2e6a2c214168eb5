"""iLQR and DDP against LQR, numbers computed elsewhere, and quadratic programs by SciPy; iLQR as a planner."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from jaxmbrl import envs, planning
from jaxmbrl.core.config import UserError
from jaxmbrl.core.types import Transition, World
from jaxmbrl.planning import RiskConfig, ilqr, ilqr_planner, lqr, make_problem, problem_of_score
from jaxmbrl.planning.box_qp import box_qp
from jaxmbrl.planning.ilqr import DescentConfig
from jaxmbrl.planning.ilqr_planner import ILQRConfig
from jaxmbrl.planning.sensitivity import leaves_used

PLAIN = DescentConfig(iterations=1, damping=0.0)


def linear(dynamics, cost):
    """The system of an LQ problem."""

    def step(x, u, t):
        z = jnp.concatenate([x, u])
        return dynamics.F[t] @ z + dynamics.f[t], z @ cost.C[t] @ z / 2 + cost.c[t] @ z

    return ilqr.System(step, lambda x: x @ cost.P @ x / 2 + cost.p @ x)


def drawn(horizon=6, n=3, m=2):
    rng = np.random.default_rng(0)

    def definite(*shape):
        x = rng.normal(size=shape)
        return x @ x.swapaxes(-1, -2) + np.eye(shape[-1])

    F, f = rng.normal(size=(horizon, n, n + m)) / 2, rng.normal(size=(horizon, n))
    C, c = definite(horizon, n + m, n + m), rng.normal(size=(horizon, n + m))
    dynamics = lqr.LinearDynamics(jnp.asarray(F), jnp.asarray(f), jnp.zeros((horizon, n, n)))
    return dynamics, lqr.QuadraticCost(*map(jnp.asarray, (C, c, definite(n, n), rng.normal(size=n))))


def pendulum(limit=None):
    """Gymnasium's pendulum without the limit of its speed; u is the torque in N m, at most `limit`."""

    def dynamics(x, u, t):
        torque = u[0] if limit is None else limit * jnp.tanh(u[0] / limit)
        speed = x[1] + 0.05 * (15 * jnp.sin(x[0]) + 3 * torque)
        return jnp.stack([x[0] + 0.05 * speed, speed])

    def cost(x, u, t):
        return 2 * (1 - jnp.cos(x[0])) + 0.1 * x[1] ** 2 + 0.001 * u[0] ** 2

    return ilqr.vectors(dynamics, cost, lambda x: 0.0)


def test_one_iteration_solves_an_lq_problem(x64):
    dynamics, cost = drawn()
    x, first = jnp.array([1.0, -1.0, 0.5]), jnp.asarray(np.random.default_rng(1).normal(size=(6, 2)))
    solve = functools.partial(ilqr.ilqr, linear(dynamics, cost), x, first)
    found, ddp, by_state = jax.jit(
        lambda: [
            solve(config=config)
            for config in (
                PLAIN,
                DescentConfig(iterations=1, damping=0.0, second_order=True),
                DescentConfig(iterations=1, damping=0.0, damped="state", project=False),
            )
        ]
    )()
    exact = lqr.lqr(dynamics, cost)
    trajectory = lqr.propagate(dynamics, exact.policy, x, jnp.zeros((3, 3)))
    np.testing.assert_allclose(found.carries, trajectory.mean, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.K, exact.policy.K, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.cost, exact.value.at(x)[0], rtol=1e-12)
    # Linear dynamics have no second derivatives.
    jax.tree.map(np.testing.assert_array_equal, found, ddp)
    np.testing.assert_allclose(by_state.actions, found.actions, rtol=0, atol=1e-12)


def test_a_damped_backward_pass_by_hand_and_by_a_loop(x64):
    """With damping of the action Q_uu alone is larger, with that of the next state Q_ux too; the cost-to-go is that of the
    gains without damping."""
    dynamics, cost = drawn(horizon=3, n=2, m=2)
    random = np.random.default_rng(2)
    x, u, damping = random.normal(size=2), random.normal(size=(3, 2)), 0.7
    # x' = 2 x + u from 1, with (x^2 + u^2) / 2 at each of two steps and x^2 / 2 at the end.
    line = ilqr.System(lambda x, u, t: (2 * x + u, (x @ x + u @ u) / 2), lambda x: x @ x / 2)

    @functools.partial(jax.jit, static_argnames=("system", "damped"))
    def change(system, start, actions, damping, damped):
        config = DescentConfig(damped=damped)
        at = ilqr.begin(system, start, actions, config)
        expansion = ilqr.expand(system, at.carries, at.actions, True)
        return ilqr.backward(system, at, expansion, damping, -jnp.inf, jnp.inf, config)

    by_hand = {
        # t = 1: Q = ((5, 2), (2, 2)), q = (10, 4), V = 29/9, v = 58/9; then damped Q_uu = 47/9, Q_ux = 58/9, q_u = 58/9.
        "action": ([-58 / 47, -2 / 3], [-58 / 47, -4 / 3]),
        # t = 1: damped Q_uu = 3 and Q_ux = 4, V = 29/9, v = 50/9; then damped Q_uu = 47/9, Q_ux = 58/9 + 2, q_u = 50/9.
        "state": ([-76 / 47, -4 / 3], [-50 / 47, -4 / 3]),
    }
    system = linear(dynamics, cost)
    for damped, (gain, open_loop) in by_hand.items():
        found = change(line, jnp.ones(1), jnp.zeros((2, 1)), jnp.asarray(1.0), damped)
        np.testing.assert_allclose(found.K[:, 0, 0], gain, rtol=1e-12)
        np.testing.assert_allclose(found.k[:, 0], open_loop, rtol=1e-12)

        states = [x]
        for t in range(3):
            states.append(np.asarray(dynamics.F[t] @ np.concatenate([states[t], u[t]]) + dynamics.f[t]))
        V, v = np.asarray(cost.P), np.asarray(cost.P @ states[3] + cost.p)
        gains, linearly, quadratically = [], 0.0, 0.0
        for t in (2, 1, 0):
            F, C = np.asarray(dynamics.F[t]), np.asarray(cost.C[t])
            Q, q = C + F.T @ V @ F, C @ np.concatenate([states[t], u[t]]) + cost.c[t] + F.T @ v
            if damped == "action":
                Q_uu, Q_ux = Q[2:, 2:] + damping * np.eye(2), Q[2:, :2]
            else:
                Q_uu, Q_ux = (Q + damping * F.T @ F)[2:, 2:], (Q + damping * F.T @ F)[2:, :2]
            K, k = -np.linalg.solve(Q_uu, Q_ux), -np.linalg.solve(Q_uu, q[2:])
            closed = np.concatenate([np.eye(2), K])
            V, v = closed.T @ Q @ closed, closed.T @ (q + Q[:, 2:] @ k)
            gains.append((K, k))
            linearly, quadratically = linearly + k @ q[2:], quadratically + k @ Q[2:, 2:] @ k / 2
        found = change(system, jnp.asarray(x), jnp.asarray(u), jnp.asarray(damping), damped)
        for name, due in zip(("K", "k"), zip(*gains, strict=True), strict=True):
            np.testing.assert_allclose(getattr(found, name), due[::-1], rtol=1e-9)
        np.testing.assert_allclose([found.linear, found.quadratic], [linearly, quadratically], rtol=1e-9)


def test_an_lq_problem_with_bounds(x64):
    one = jnp.eye(1)
    dynamics = lqr.linear_dynamics(0.9 * one, 0.5 * one, 3)
    system = linear(dynamics, lqr.quadratic_cost(one, 0.1 * one, one, 3))
    found = jax.jit(lambda: ilqr.ilqr(system, jnp.ones(1), jnp.zeros((3, 1)), -0.5, 0.5, DescentConfig(damping=0.0)))()
    np.testing.assert_allclose(found.actions[:, 0], [-0.5, -0.5, -0.4307143], atol=5e-8)
    np.testing.assert_allclose(found.cost, 0.8053485, atol=5e-8)
    # Actions at a bound do not react; the free one does by its gain of LQR.
    np.testing.assert_allclose(found.K[:, 0, 0], [0.0, 0.0, -1.2857143], atol=5e-8)
    assert bool(found.converged)


def test_a_quadratic_program_in_a_box(x64):
    minimum = jax.jit(box_qp)(
        jnp.array([[2.0, 1.0], [1.0, 2.0]]), jnp.array([-4.0, -1.0]), -jnp.ones(2), jnp.ones(2), jnp.zeros(2)
    )
    np.testing.assert_allclose(minimum.x, [1.0, 0.0], atol=1e-12)
    assert minimum.free.tolist() == [False, True]
    # y with H y = (1, 2) in the free entry alone: 2 y = 2.
    np.testing.assert_allclose(minimum.solve(jnp.array([[1.0], [2.0]])), [[0.0], [1.0]], atol=1e-12)


def test_quadratic_programs_against_scipy(x64):
    """The second half is badly conditioned."""
    rng = np.random.default_rng(2)
    root, g = rng.normal(size=(200, 4, 4)), 3 * rng.normal(size=(200, 4))
    root[100:] *= 10 ** rng.uniform(-2, 2, (100, 4, 1))
    H = root.swapaxes(-1, -2) @ root + 1e-3 * np.eye(4)
    low, high = -rng.uniform(0.1, 1, (200, 4)), rng.uniform(0.1, 1, (200, 4))
    found = jax.jit(jax.vmap(box_qp))(H, g, low, high, rng.normal(size=(200, 4)))
    for i in range(200):
        # x'Hx / 2 + g'x = |root' x + b|^2 / 2 + a constant, for a square root of H.
        factor = np.linalg.cholesky(H[i]).T
        given = factor, -np.linalg.solve(factor.T, g[i]), (low[i], high[i])
        np.testing.assert_allclose(found.x[i], scipy.optimize.lsq_linear(*given, "bvls", tol=1e-14).x, atol=1e-6)
    assert np.all((found.x >= low) & (found.x <= high))
    assert 0.2 < np.mean(found.free) < 0.8


def test_a_box_without_walls_and_a_form_without_minimum(x64):
    H, wide = jnp.array([[2.0, 1.0], [1.0, 2.0]]), jnp.full(2, jnp.inf)
    solve = jax.jit(box_qp)
    found = solve(H, jnp.array([-4.0, -1.0]), -wide, wide, jnp.zeros(2))
    np.testing.assert_allclose(found.x, np.linalg.solve(H, [4.0, 1.0]), rtol=1e-12)
    assert not np.all(np.isfinite(solve(-H, jnp.ones(2), -wide, wide, jnp.zeros(2)).x))


def test_the_expansion_against_differences(x64):
    system, rng = pendulum(2.0), np.random.default_rng(3)
    x, u = jnp.asarray(rng.normal(size=(2, 2))), jnp.asarray(rng.normal(size=(1, 1)))
    found = jax.jit(lambda: ilqr.expand(system, x, u, project=False))()

    def both(z):
        after, cost = system.step(jnp.asarray(z[:2]), jnp.asarray(z[2:]), 0)
        return np.append(after, cost)

    z, h = np.append(x[0], u[0]), 1e-5
    axes = h * np.eye(3)
    slopes = np.array([(both(z + d) - both(z - d)) / (2 * h) for d in axes])
    np.testing.assert_allclose(found.F[0], slopes[:, :2].T, atol=1e-9)
    np.testing.assert_allclose(found.c[0], slopes[:, 2], atol=1e-9)
    bend = [[(both(z + d + e) - both(z + d) - both(z + e) + both(z))[2] / h**2 for d in axes] for e in axes]
    np.testing.assert_allclose(found.C[0], bend, atol=1e-4)
    # The cost of the angle is concave near the lowest point.
    there = jnp.array([[jnp.pi, 0.0], [0.0, 0.0]])
    projected = jax.jit(lambda: ilqr.expand(system, there, u, project=True).C[0])()
    np.testing.assert_allclose(np.linalg.eigvalsh(projected), [0.0, 0.002, 0.2], atol=1e-12)


def test_second_derivatives_make_ddp_converge_quadratically(x64):
    """Near a minimum without bounds DDP is Newton's method; iLQR leaves out the second derivatives of the dynamics."""
    system, x = pendulum(), jnp.array([1.0, 0.0])

    def iterates(first, second_order, count):
        config = DescentConfig(damping=0.0, second_order=second_order, project=False)

        def iterate(at, _):
            at = ilqr.improve(system, at, -jnp.inf, jnp.inf, config)
            return at, at.actions

        return jax.lax.scan(iterate, ilqr.begin(system, x, first, config), None, count)[1]

    @jax.jit
    def errors():
        best = iterates(jnp.zeros((30, 1)), True, 20)[-1]
        return [jnp.max(jnp.abs(iterates(best + 0.1, ddp, 4) - best), axis=(1, 2)) for ddp in (True, False)]

    ddp, plain = map(np.asarray, errors())
    assert ddp[1] < 1e-2 and ddp[2] < ddp[1] ** 2
    assert plain[1] < 1e-2 and plain[2] > 20 * ddp[2]


def test_swinging_up_from_hanging(x64):
    """From 32 random sequences in parallel. Rounding errors decide how many iterations one needs, most often 60 to 90."""
    guesses = jax.random.uniform(jax.random.key(0), (32, 100, 1), minval=-2.0, maxval=2.0)
    config = DescentConfig(iterations=60, damping=0.0)
    hanging = jnp.array([jnp.pi, 0.0])
    found = jax.jit(jax.vmap(lambda guess: ilqr.ilqr(pendulum(), hanging, guess, -2.0, 2.0, config)))(guesses)
    best = int(np.argmin(found.cost))
    np.testing.assert_allclose(found.cost[best], 169.6287, atol=1e-3)
    assert np.all(np.abs(found.actions) <= 2)
    assert np.cos(found.carries[best, -1, 0]) > 0.99999


def test_the_steps_of_a_problem_add_up_to_its_score():
    """With discount, a terminal value and rows that end: by a fall, or with a probability."""
    task = envs.make("cartpole-continuous")
    actions = jnp.ones((30, 1))

    def likely(carry, action, key):
        carry, made = task.world.step(carry, action, key)
        return carry, made._replace(terminated=0.01 * made.next_observation[1] ** 2)

    def both(world, terminal_value):
        origin = task.env.reset(jax.random.key(0))
        problem = make_problem(world, origin, task.action, discount=0.9, terminal_value=terminal_value)
        stages = problem.stages(jax.random.key(1))
        step = lambda carry, of: stages.step(carry, *of)  # noqa: E731
        end, rewards = jax.lax.scan(step, stages.start, (actions, jnp.arange(30)))
        return problem.score(actions, jax.random.key(1)), jnp.sum(rewards) + stages.last(end, 30)

    value = lambda carry: carry[0].obs[0]  # noqa: E731
    worlds = (task.world, task.world._replace(step=likely))
    for score, total in jax.jit(lambda: [both(world, of) for world in worlds for of in (None, value)])():
        np.testing.assert_allclose(score, total, rtol=1e-6)


def test_only_numbers_that_matter_are_coordinates():
    """Of a carry with a counter, a number that is only shown, one that a later step reads, and a loop."""

    def step(carry, action):
        x, shown, kept, count = carry
        moved = jax.lax.fori_loop(0, 3, lambda i, y: y + action, x)
        return (moved + jnp.sin(kept), 2 * shown, kept, count + 1), jnp.sum(x)

    carry = (jnp.ones(2), jnp.ones(1), jnp.ones(2), jnp.zeros((), jnp.int32))
    assert leaves_used(step, carry, jnp.ones(2)) == [True, False, True, False]


PENDULUM = envs.make("pendulum")


def plan_of(config, actions=None, **settings):
    """(problem, what the planner of `config` returns) for Gymnasium's pendulum near its upright position."""
    problem = make_problem(PENDULUM.world, PENDULUM.env.state_at(jnp.array([0.5, 0.0])), PENDULUM.action, **settings)
    planner = planning.make(planning.PlannerConfig("ilqr", ilqr=config), PENDULUM.action)
    proposals = None if actions is None else actions[None]
    return problem, planner.plan(problem, planner.init(), jax.random.key(0), proposals)


def test_plans_of_the_pendulum():
    """In the true simulator, whose actions are clipped: better than the best of 4,000 random sequences, and no worse from
    more starts. The last action is repeated in the next plan, which has fewer iterations."""
    config = ILQRConfig(horizon=15, first_iterations=30, samples=0)

    @jax.jit
    def found():
        problem, (alone, after, statistics) = plan_of(config)
        _, (many, _, more) = plan_of(ILQRConfig(horizon=15, first_iterations=30, samples=3), jnp.full((15, 1), jnp.nan))
        random = jax.random.uniform(jax.random.key(2), (4000, 15, 1), minval=-1.0)
        scores = jax.vmap(lambda actions: problem.score(actions, jax.random.key(0)))
        return alone, after, statistics, more, scores(jnp.stack([alone, many])), jnp.max(scores(random))

    alone, after, statistics, more, (one, best), random = jax.device_get(found())
    assert one > random and best > one - 1e-3
    assert np.all(np.abs(alone) <= 1)
    np.testing.assert_array_equal(after.actions, np.concatenate([alone[1:], alone[-1:]]))
    assert int(after.iterations) == 5
    assert statistics == more == {"nonfinite": 0}


def test_what_the_planner_needs():
    space = planning.unit_box(1)
    planner = planning.make(planning.PlannerConfig("ilqr"), space)
    unscored = problem_of_score(lambda actions, key: jnp.zeros(()), space)
    with pytest.raises(UserError, match="ilqr needs the steps of a World: make the problem with make_problem"):
        planner.plan(unscored, planner.init(), jax.random.key(0))
    with pytest.raises(UserError, match="risk must be the default, the mean"):
        plan_of(ILQRConfig(horizon=2), risk=RiskConfig(deviations=1.0))
    with pytest.raises(UserError, match="ilqr needs continuous actions, got 2 choices"):
        planning.make(planning.PlannerConfig("ilqr"), envs.make("CartPole-v1").action)


def test_a_plan_without_a_finite_result_is_the_last_one():
    def broken(carry, action, key):
        carry, made = PENDULUM.world.step(carry, action, key)
        return carry, made._replace(reward=jnp.nan * made.reward)

    problem = make_problem(PENDULUM.world._replace(step=broken), PENDULUM.env.reset(jax.random.key(0)), PENDULUM.action)
    planner = ilqr_planner.make(ILQRConfig(horizon=3, first_iterations=2, samples=0), PENDULUM.action)
    actions, _, statistics = jax.jit(lambda: planner.plan(problem, planner.init(), jax.random.key(0)))()
    np.testing.assert_array_equal(actions, planner.init().actions)
    assert int(statistics["nonfinite"]) == 1


def test_a_terminal_value_of_the_observation(x64):
    """In a simulator whose steps read the coordinates alone: its reward is 0, and the value is the cosine of the angle. The
    least angle is that of full torque, by a roll in NumPy."""

    def unpaid(carry, action, key):
        carry, made = PENDULUM.world.step(carry, action, key)
        return carry, made._replace(reward=0.0 * made.reward)

    start = PENDULUM.env.state_at(jnp.array([1.0, 0.0]))
    value = lambda carry: PENDULUM.world.observe(carry)[0]  # noqa: E731
    problem = make_problem(PENDULUM.world._replace(step=unpaid), start, PENDULUM.action, terminal_value=value)
    planner = ilqr_planner.make(ILQRConfig(horizon=3, first_iterations=30, samples=0), PENDULUM.action)

    @jax.jit
    def found():
        actions = planner.plan(problem, planner.init(), jax.random.key(0))[0]
        return actions, problem.score(actions, jax.random.key(0))

    actions, score = found()
    angle, speed = 1.0, 0.0
    for _ in range(3):
        speed = speed + 0.05 * (15 * np.sin(angle) - 3 * 2.0)
        angle = angle + 0.05 * speed
    np.testing.assert_allclose(score, np.cos(angle), rtol=1e-6)
    np.testing.assert_allclose(actions, -np.ones((3, 1)), atol=1e-5)


def rows_problem(step):
    """The problem of a learned World of one row [1, 1] that starts at 1. `step(row, action)` is (next row, reward)."""

    def stepped(rows, action, key):
        following, reward = step(rows, jnp.broadcast_to(action, (1, 1)))
        none = jnp.zeros(1, bool)
        return following, Transition(rows, action, reward, following, none, none)

    world = World(reset=None, start=lambda origin, key: origin, observe=lambda rows: rows, step=stepped)
    return make_problem(world, jnp.ones((1, 1)), planning.unit_box(1))


def test_a_plan_has_a_finite_score_and_need_not_depend_on_the_state():
    """The first World rewards the actions 0.9 and, half as much, -0.5. Beyond 1/2 its rows overflow, which the rewards do
    not show. The second one's reward is of the action alone."""

    def overflowing(rows, u):
        paid = 2 * jnp.exp(-50 * (u - 0.9) ** 2) + jnp.exp(-50 * (u + 0.5) ** 2)
        return rows * jnp.exp(200 * jnp.maximum(u - 0.5, 0)), (paid + 1e-6 * jnp.tanh(rows))[:, 0]

    def unmoved(rows, u):
        return rows, -((u - 0.3) ** 2)[:, 0]

    planner = ilqr_planner.make(ILQRConfig(horizon=2, samples=0), planning.unit_box(1))
    proposals = jnp.stack([jnp.full((2, 1), 0.85), jnp.full((2, 1), -0.45)])
    first, second = rows_problem(overflowing), rows_problem(unmoved)

    @jax.jit
    def found():
        actions, _, statistics = planner.plan(first, planner.init(), jax.random.key(0), proposals)
        return actions, statistics, planner.plan(second, planner.init(), jax.random.key(0))[0]

    actions, statistics, best = found()
    np.testing.assert_allclose(actions, np.full((2, 1), -0.5), atol=1e-3)
    assert int(statistics["nonfinite"]) == 1
    np.testing.assert_allclose(best, np.full((2, 1), 0.3), atol=1e-5)


@pytest.mark.slow
def test_parking_a_car(x64):
    """The example of the paper on control-limited DDP, from its start and with actions 0 at first, through the World."""
    task = envs.make("car-parking")
    problem = make_problem(task.world, task.env.reset(jax.random.key(0)), task.action)
    system, start = ilqr_planner.system_of(problem.stages(jax.random.key(0)), 500, task.action)
    found = jax.jit(lambda: ilqr.ilqr(system, start, jnp.zeros((500, 2)), -1.0, 1.0))()
    np.testing.assert_allclose(found.cost, 1.905169, atol=2e-5)
    assert bool(found.converged) and int(found.iterations) < 400
    x, y, heading, speed, _ = found.carries[0][0].pipeline_state[-1]
    np.testing.assert_allclose([x, y, heading], 0.0, atol=0.02)
    # Below 1 m/s the cost of the final speed is quadratic, 7e-5 at the optimum, which is -0.0212 from every start tried.
    np.testing.assert_allclose(speed, 0.0, atol=0.03)
