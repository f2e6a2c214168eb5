"""MOReL's pessimistic decision process: distances as in SciPy, and the value of a halt from the absorbing state itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import pdist

from jaxmbrl.agents.actor_critic.critics import td_target
from jaxmbrl.core.types import DynamicsModel, Transition, World
from jaxmbrl.data import replay
from jaxmbrl.models import pessimistic
from jaxmbrl.models.disagreement import largest_difference


def test_the_largest_distance_of_two_members():
    mean = np.random.default_rng(0).normal(size=(4, 5, 3))
    expected = [pdist(mean[:, n]).max() for n in range(5)]
    np.testing.assert_allclose(largest_difference(jnp.asarray(mean, jnp.float32)), expected, rtol=1e-5)
    assert np.asarray(largest_difference(jnp.ones((3, 2, 2)))).tolist() == [0.0, 0.0]


def test_the_largest_discrepancy_and_the_smallest_reward_of_a_buffer_are_those_of_all_its_rows():
    """Five members with means of their own, and 11 rows in a ring that holds the last 7, of which 3 are predicted at a
    time: whichever of the 7 is the extreme one is found, and a more extreme one that was overwritten is not."""
    slopes = np.random.default_rng(0).normal(size=(5, 2))

    def predict(state, observation, action):
        mean = jnp.asarray(slopes)[:, None] * action
        return mean, jnp.ones_like(mean)

    model = DynamicsModel(lambda *_: None, lambda *_: None, predict, lambda state: None)
    actions = np.tile(np.linspace(0.1, 0.7, 11), (7, 1))
    actions[:, 1] = 9.0
    actions[np.arange(7), 4 + np.arange(7)] = 2.0
    none = jnp.zeros(11, bool)

    @jax.jit
    @jax.vmap
    def found(action):
        rows = Transition(jnp.zeros((11, 2)), action[:, None], 10 - action, jnp.zeros((11, 2)), none, none)
        half = replay.add(replay.init(jax.tree.map(lambda x: x[0], rows), 7), jax.tree.map(lambda x: x[:5], rows))
        full = replay.add(half, jax.tree.map(lambda x: x[5:], rows))
        largest = [pessimistic.largest_discrepancy(model, (), buffer, block=3) for buffer in (half, full)]
        return largest, [pessimistic.smallest_reward(buffer) for buffer in (half, full)]

    largest, smallest = found(actions.astype(np.float32))
    apart = pdist(slopes).max()
    np.testing.assert_allclose(largest, [[9 * apart] * 7, [2 * apart] * 7], rtol=1e-6)
    np.testing.assert_array_equal(smallest, [[1.0] * 7, [8.0] * 7])


def test_a_step_that_halts_has_the_action_value_of_the_absorbing_state():
    """States 0, 1, HALT: 0 -> 1 -> 0, and 1 -> HALT by an unknown action. All values by a linear system, in float64."""
    discount, kappa, reward = 0.9, 3.0, 0.5
    # Rows: 0 -> 1, 1 -> HALT, HALT -> HALT.
    step = np.array([[0, 1, 0], [0, 0, 1], [0, 0, 1]], float)
    values = np.linalg.solve(np.eye(3) - discount * step, [reward, reward, -kappa])
    halted = pessimistic.halt_value(-kappa, discount)
    assert float(halted) == pytest.approx(-27.0)
    target = td_target(reward + halted, jnp.asarray(discount), jnp.asarray(True), jnp.asarray(1e6))
    assert float(target) == pytest.approx(values[1], rel=1e-6)
    assert float(pessimistic.halt_value(0.0, 1.0)) == 0.0


@pytest.mark.parametrize("probability", [False, True])
def test_only_unknown_rows_halt_and_a_learned_reward_does_not_count(probability):
    """Two members that differ by (3, 4) x action about the observation and by 100 about the reward."""

    def predict(state, observation, action):
        apart = jnp.concatenate([action * jnp.array([3.0, 4.0]), jnp.full((len(action), 1), 100.0)], axis=1)
        return jnp.stack([jnp.zeros_like(apart), apart]), jnp.ones((2, *apart.shape))

    def step(observation, action, key):
        ended = jnp.array([0.25, 0.5, 1.0]) if probability else jnp.array([False, False, True])
        none = jnp.zeros(3, bool)
        return observation + 1, Transition(observation, action, jnp.ones(3), observation + 1, ended, none)

    model = DynamicsModel(lambda *_: None, lambda *_: None, predict, lambda state: None)
    world = World(reset=lambda key: None, start=lambda origin, key: origin, observe=lambda x: x, step=step)
    action = jnp.array([[0.1], [0.5], [0.2]])
    following, row = pessimistic.pessimistic(world, model, (), 1.5, -7.0).step(jnp.zeros((3, 2)), action, jax.random.key(0))
    # Distances .5, 2.5, 1.
    assert row.reward.tolist() == [1.0, -6.0, 1.0] and np.asarray(following).min() == 1
    assert row.terminated.tolist() == ([0.25, 1.0, 1.0] if probability else [False, True, True])
