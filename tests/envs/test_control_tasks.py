"""The car that parks and the mass on a line: their motion by geometry, their costs by hand, and the optimum of LQR."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl import envs
from jaxmbrl.planning import lqr


@pytest.fixture(autouse=True)
def double(x64):
    """In float64."""


def stepped(task, states, actions):
    return jax.jit(jax.vmap(lambda s, a: task.env.step(task.env.state_at(s), a)))(states, actions)


def test_a_car_rolls_on_its_wheels():
    """The front axle moves by the rolled distance in the direction of its wheels, the rear axle only along the heading, and
    their distance stays 2."""
    task, rng = envs.make("car-parking"), np.random.default_rng(0)
    states = np.column_stack([rng.uniform(-3, 3, (500, 3)), rng.uniform(-9, 9, 500), rng.integers(0, 499, 500)])
    actions = rng.uniform(-1.3, 1.3, (500, 2))
    after = np.asarray(stepped(task, states, actions).pipeline_state)
    steering, acceleration = np.clip(actions, -1, 1).T * [[0.5], [2.0]]
    direction = lambda angle: np.exp(1j * angle)  # noqa: E731
    rear, heading, rolled = states[:, 0] + 1j * states[:, 1], states[:, 2], 0.03 * states[:, 3]
    front = rear + 2 * direction(heading) + rolled * direction(heading + steering)
    rear_after = after[:, 0] + 1j * after[:, 1]
    np.testing.assert_allclose(front, rear_after + 2 * direction(after[:, 2]), atol=1e-12)
    np.testing.assert_allclose(((rear_after - rear) / direction(heading)).imag, 0, atol=1e-12)
    np.testing.assert_allclose(after[:, 3], states[:, 3] + 0.03 * acceleration, atol=1e-12)
    np.testing.assert_array_equal(after[:, 4], states[:, 4] + 1)


def test_costs_of_a_car():
    """Of a step from (3, 4) with full steering and half acceleration: 0.01 / 4 + 0.0001 + 0.001 (l(3) + l(4)), and at the
    end those of where it is."""
    task = envs.make("car-parking")
    length = lambda z, p: np.sqrt(z**2 + p**2) - p  # noqa: E731
    states = np.array([[3.0, 4.0, 0.3, 0.0, 7.0], [3.0, 4.0, 0.3, 0.0, 499.0]])
    found = stepped(task, states, np.array([[1.0, 0.5], [1.0, 0.5]]))
    running = 0.0025 + 0.0001 + 0.001 * (length(3.0, 0.1) + length(4.0, 0.1))
    end = 0.1 * (length(3.0, 0.01) + length(4.0, 0.01)) + length(0.3, 0.01) + 0.3 * length(0.03, 1.0)
    np.testing.assert_allclose(found.reward, [-running, -running - end], rtol=1e-12)
    np.testing.assert_allclose(found.obs[:, 4], [8 / 500, 1.0], rtol=1e-12)
    assert task.episode_length == 500
    start = jax.jit(task.env.reset)(jax.random.key(0)).pipeline_state
    np.testing.assert_allclose(start, [1.0, 1.0, 1.5 * np.pi, 0.0, 0.0])


def test_the_optimum_of_the_double_integrator():
    """By the gains of LQR, whose forces are within the bounds from every start. From (1, 0) the cost is 6.6581332, of which
    1/2 is that of the first state, which no reward contains."""
    task = envs.make("double-integrator")
    A, B = jnp.array([[1.0, 0.1], [0.0, 1.0]]), jnp.array([[0.005], [0.1]])
    one = jnp.eye(1)
    cost = lqr.quadratic_cost(jnp.eye(2), 0.1 * one, jnp.eye(2), 50)
    found = jax.jit(lqr.lqr)(lqr.linear_dynamics(A, B, 50), cost)

    @jax.jit
    @jax.vmap
    def play(start):
        def step(carry, K):
            action = K @ task.world.observe(carry) / 10.0
            carry, row = task.world.step(carry, action, jax.random.key(0))
            return carry, (row.reward, jnp.abs(action), row.truncated)

        carry = task.world.start(task.env.state_at(start), jax.random.key(0))
        return jax.lax.scan(step, carry, found.policy.K)[1]

    starts = np.array([[1.0, 0.0], [1.0, 1.0], [-1.0, 1.0]])
    rewards, actions, truncated = play(starts)
    np.testing.assert_allclose(-rewards[0].sum(), 6.6581332 - 0.5, atol=1e-7)
    V = np.asarray(found.value.V[0])
    np.testing.assert_allclose(-rewards.sum(axis=1), [x @ (V - np.eye(2)) @ x / 2 for x in starts], rtol=1e-12)
    assert 0.6 < actions.max() < 0.61
    assert truncated[0].tolist() == [False] * 49 + [True]
    resets = jax.jit(jax.vmap(task.env.reset))(jax.random.split(jax.random.key(0), 2000)).pipeline_state
    np.testing.assert_allclose([resets.min(), resets.max()], [-1, 1], atol=0.01)
