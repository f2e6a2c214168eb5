"""The task of several agents: one step by hand in both orders, contacts and rewards against NumPy, features."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl import envs
from jaxmbrl.agents.exploration import uniform
from jaxmbrl.envs.classic import spread
from jaxmbrl.envs.classic.spread import Spread
from jaxmbrl.rollout import rollout

POSITIONS, VELOCITIES, FORCES = [[0.0, 0.0], [0.25, 0.0]], [[0.1, 0.0], [0.0, 0.2]], [[1.0, 0.0], [-1.0, 0.5]]


def stepped(env, coordinates, action):
    return jax.jit(jax.vmap(lambda c, a: env.step(env.state_at(c), a)))(coordinates, action)


@pytest.mark.parametrize(
    ("new_velocity", "positions"),
    [(False, [[0.01, 0.0], [0.25, 0.02]]), (True, [[0.0075, 0.0], [0.25, 0.04]])],
)
def test_a_step_by_hand(new_velocity, positions, x64):
    """Both agents are pushed with 5 N, against forces of their own: in JaxMARL's order of the updates, and the original."""
    coordinates = jnp.array([[*np.ravel(POSITIONS), *np.ravel(VELOCITIES), 0.0, 0.0, 1.0, 0.0]])
    after = stepped(Spread(new_velocity=new_velocity), coordinates, jnp.array([np.ravel(FORCES)]))
    moved, faster, places = spread.parts(after.obs[0])
    np.testing.assert_allclose(moved, positions, atol=1e-12)
    np.testing.assert_allclose(faster, [[0.075, 0.0], [0.0, 0.4]], atol=1e-12)
    np.testing.assert_array_equal(places, [[0.0, 0.0], [1.0, 0.0]])


def in_numpy(coordinates, action, agents):
    """(coordinates, reward) after a step, agent by agent."""
    p, v, places = coordinates.reshape(3, agents, 2)
    force = 5.0 * np.clip(action.reshape(agents, 2), -1, 1)
    for i in range(agents):
        for j in range(agents):
            if i != j:
                apart = p[i] - p[j]
                distance = np.sqrt((apart**2).sum())
                force[i] += 100.0 * 1e-3 * np.logaddexp(0.0, (0.3 - distance) / 1e-3) * apart / distance
    moved, faster = p + 0.1 * v, 0.75 * v + 0.1 * force
    reward = -sum(min(np.hypot(*(q - place)) for q in moved) for place in places)
    for i in range(agents):
        reward -= sum(np.hypot(*(moved[i] - moved[j])) < 0.3 for j in range(i))
    return np.concatenate([moved.ravel(), faster.ravel(), places.ravel()]), reward


@pytest.mark.parametrize("agents", [1, 2, 3])
def test_steps_are_those_of_numpy(agents, x64):
    rng = np.random.default_rng(agents)
    coordinates, action = rng.uniform(-0.4, 0.4, (200, 6 * agents)), rng.uniform(-1.5, 1.5, (200, 2 * agents))
    after = stepped(Spread(agents), coordinates, action)
    expected = [in_numpy(c, a, agents) for c, a in zip(coordinates, action, strict=True)]
    np.testing.assert_allclose(after.obs, [x for x, _ in expected], atol=1e-12)
    np.testing.assert_allclose(after.reward, [x for _, x in expected], atol=1e-12)
    if agents > 1:
        assert min(x for _, x in expected) < -1.0


def test_its_reward_is_that_of_the_observation_and_episodes_end_by_time():
    task = envs.make("spread-2")
    assert (task.episode_length, task.observation.shape, task.action.shape) == (25, (12,), (4,))

    @jax.jit
    def run(key):
        return rollout(task.world, uniform(task.action), (task.world.reset(key), ()), key, 25)[1]

    rows = run(jax.random.key(1))
    np.testing.assert_allclose(task.reward(rows.observation, rows.action, rows.next_observation), rows.reward, atol=1e-6)
    assert rows.truncated.tolist() == [False] * 24 + [True] and not rows.terminated.any()
    np.testing.assert_array_equal(rows.next_observation[:, 8:], jnp.tile(rows.observation[0, 8:], (25, 1)))
    # The features do not change with a translation of everything.
    moved = rows.observation + jnp.array([0.3, -0.2] * 2 + [0.0] * 4 + [0.3, -0.2] * 2)
    np.testing.assert_allclose(task.features.encode(moved), task.features.encode(rows.observation), atol=1e-6)


def test_a_step_and_its_reward_have_derivatives_by_the_state():
    """Against central differences in float64, for agents that touch, that are apart, and one that is on a landmark."""
    task = envs.make("spread-2")
    with jax.enable_x64(True):
        touching = jnp.array([0.0, 0.0, 0.25, 0.1, 0.1, -0.2, 0.3, 0.0, 0.5, 0.5, -0.5, 0.4])
        for state in (touching, touching.at[2].set(0.9), touching.at[8:10].set(0.0)):
            action = jnp.array([0.3, -0.2, 0.1, 0.6])

            @jax.jit
            def after(state, action):
                found = task.env.step(task.env.state_at(state), action)
                return jnp.append(found.obs, found.reward)

            slopes = jax.jit(jax.jacobian(after, argnums=(0, 1)))(state, action)
            assert all(np.isfinite(slope).all() for slope in slopes)
            for slope, at, of in zip(slopes, (state, action), (0, 1), strict=True):
                for i in range(at.size):
                    step = 1e-6 * jnp.eye(at.size)[i]
                    ends = [
                        after(*(x + sign * step if k == of else x for k, x in enumerate((state, action))))
                        for sign in (1, -1)
                    ]
                    kink = bool(jnp.all(state[8:10] == 0)) and of == 0 and i in (0, 1, 8, 9)
                    # Where a distance is 0 its derivative is taken as 0.
                    rows = slice(0, -1) if kink else slice(None)
                    np.testing.assert_allclose(slope[rows, i], ((ends[0] - ends[1]) / 2e-6)[rows], rtol=1e-4, atol=1e-6)
