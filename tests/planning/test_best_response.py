"""Best responses in turn: a team's linear-quadratic problem sweep by sweep, one agent, and agents that act alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl.core.config import UserError
from jaxmbrl.core.types import Planner
from jaxmbrl.planning import CEMConfig, best_response, cem, problem_of_score, unit_box

HORIZON = 3
PUSH, PRICE = np.array([0.5, 0.3]), np.array([0.1, 0.2])


def cost(actions, feedback=False):
    """s' = .9 s + .5 u1 + .3 u2 from 1, costs (s^2 + .1 u1^2 + .2 u2^2) / 2 and s^2 / 2 at the end, after 3 steps. With
    feedback the actions are gains, u = K s."""
    s, total = 1.0, 0.0
    for t in range(HORIZON):
        u = actions[t] * s if feedback else actions[t]
        total = total + (s**2 + (PRICE * u**2).sum()) / 2
        s = 0.9 * s + (PUSH * u).sum()
    return total + s**2 / 2


def exact(space):
    """The planner that finds the maximum of a quadratic score by one Newton step."""

    def plan(problem, state, key, proposals=None):
        zeros = jnp.zeros((HORIZON, *space.shape))
        gradient = jax.grad(lambda flat: problem.score(flat.reshape(zeros.shape), key))
        return (
            -jnp.linalg.solve(jax.jacfwd(gradient)(zeros.ravel()), gradient(zeros.ravel())).reshape(zeros.shape),
            state,
            {"nonfinite": jnp.zeros((), jnp.int32)},
        )

    return Planner(lambda: (), plan, HORIZON)


def exact_gains(space):
    """The same for gains of one agent, from the last step back: later gains do not depend on earlier ones, and the score is
    quadratic in each."""

    def plan(problem, state, key, proposals=None):
        gains = jnp.zeros((HORIZON, 1))
        for t in reversed(range(HORIZON)):
            slope = jax.grad(lambda x, gains=gains, t=t: problem.score(gains.at[t, 0].set(x), key))
            first, second = jax.jvp(slope, (0.0,), (1.0,))
            gains = gains.at[t, 0].set(-first / second)
        return gains, state, {"nonfinite": jnp.zeros((), jnp.int32)}

    return Planner(lambda: (), plan, HORIZON)


def planned(sizes, sweeps, independent=False, feedback=False):
    planner = best_response.make(exact_gains if feedback else exact, sizes, HORIZON, sweeps, independent)
    problem = problem_of_score(lambda actions, key: -cost(actions, feedback), unit_box(2))
    return np.asarray(jax.jit(lambda: planner.plan(problem, planner.init(), jax.random.key(0))[0])())


def test_the_joint_optimum_of_the_team(x64):
    """One planner of both actions; its first action is the gain of the joint Riccati equation, which NumPy solves."""
    a, b, r, v = 0.9, PUSH[None], np.diag(PRICE), 1.0
    for _ in range(HORIZON):
        gain = -np.linalg.solve(r + b.T * v @ b, b.T * v * a)
        v = float(1.0 + a * v * a + (a * v * b @ gain).item())
    found = planned([2], 1)
    np.testing.assert_allclose(found[0], gain[:, 0], atol=1e-10)
    np.testing.assert_allclose(found[0], [-1.1925196, -0.3577559], atol=1e-7)
    assert cost(found) == pytest.approx(v / 2, abs=1e-10) == pytest.approx(0.6073268, abs=1e-7)


@pytest.mark.parametrize(("sweeps", "expected"), [(1, 0.6116766), (2, 0.6076383), (3, 0.6073488), (5, 0.6073269)])
def test_best_responses_in_gains(sweeps, expected, x64):
    """Each agent answers to the other's gains: after ten sweeps the cost is the optimum, .6073268."""
    assert cost(planned([1, 1], sweeps, feedback=True), True) == pytest.approx(expected, abs=1e-7)


def answered(other, agent):
    """The best actions of one agent to those of the other, by least squares in NumPy: the state is linear in them."""
    late = np.array([[0.9 ** (t - 1 - i) if i < t else 0.0 for i in range(HORIZON)] for t in range(HORIZON + 1)])
    free = 0.9 ** np.arange(HORIZON + 1) + late @ (PUSH[1 - agent] * other)
    rows = np.vstack([PUSH[agent] * late, np.sqrt(PRICE[agent]) * np.eye(HORIZON)])
    return np.linalg.lstsq(rows, -np.r_[free, np.zeros(HORIZON)])[0]


@pytest.mark.parametrize("sweeps", [1, 3])
def test_best_responses_to_the_plans_of_the_other(sweeps, x64):
    plans = np.zeros((2, HORIZON))
    for _ in range(sweeps):
        for agent in range(2):
            plans[agent] = answered(plans[1 - agent], agent)
    np.testing.assert_allclose(planned([1, 1], sweeps), plans.T, atol=1e-10)


def test_independent_agents_answer_to_actions_of_0(x64):
    found = planned([1, 1], 5, independent=True)
    np.testing.assert_allclose(found, np.stack([answered(np.zeros(HORIZON), i) for i in range(2)], axis=1), atol=1e-10)
    assert cost(found) > cost(planned([1, 1], 1))


def test_one_agent_is_its_planner_bit_for_bit():
    """Two control steps, the second from the plan of the first."""
    config = CEMConfig(horizon=4, population=20, elites=4, iterations=3)
    problem = problem_of_score(lambda actions, key: -jnp.sum((actions - 0.3) ** 2), unit_box(2))

    def run(planner):
        first, state, _ = planner.plan(problem, planner.init(), jax.random.key(0))
        second, _, statistics = planner.plan(problem, state, jax.random.key(1))
        return first, second, statistics

    alone, joint = jax.jit(
        lambda: (
            run(cem.make(config, unit_box(2))),
            run(best_response.make(lambda space: cem.make(config, space), [2], 4)),
        )
    )()
    for one, other in zip(jax.tree.leaves(alone), jax.tree.leaves(joint), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("sizes", "sweeps"), [([], 1), ([2], 0)])
def test_there_must_be_an_agent_and_a_sweep(sizes, sweeps):
    with pytest.raises(UserError, match="at least one agent and one sweep"):
        best_response.make(exact, sizes, HORIZON, sweeps)
