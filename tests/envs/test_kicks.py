"""Kicked tasks: the plain task with the kicked action, in the world and in the environment."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl import envs
from jaxmbrl.core.config import UserError
from jaxmbrl.exporting.exporter import actuator_range


def test_the_successor_has_two_modes_and_the_reward_is_that_of_the_chosen_action():
    """Of the pendulum a torque u adds 3 u DT to the speed: kicks of 0.4 of 2 N m are 0.12 rad/s apart from the mean."""
    plain, task = envs.make("pendulum"), envs.make("kicked/0.4,0.05/pendulum")
    assert (task.name, task.observation, task.action) == ("kicked/0.4,0.05/pendulum", plain.observation, plain.action)
    assert actuator_range(task) == {"actuator_low": [-2.0], "actuator_high": [2.0]}
    action = jnp.array([0.5])

    @jax.jit
    def stepped(keys):
        carry = task.world.reset(jax.random.key(0))
        rows = jax.vmap(lambda key: task.world.step(carry, action, key)[1])(keys)
        middle = plain.world.step(carry, 0.6 * action, jax.random.key(0))[1]
        state = task.env.reset(jax.random.key(1))
        alone = jax.lax.scan(lambda s, _: (task.env.step(s, action),) * 2, state, length=500)[1]
        return rows, middle, plain.reward(rows.observation, rows.action, rows.next_observation), state, alone

    rows, middle, reward, state, alone = jax.device_get(stepped(jax.random.split(jax.random.key(2), 4000)))
    kicks = (rows.next_observation[:, 2] - middle.next_observation[2]) / 0.3
    assert np.mean(kicks > 0) == pytest.approx(0.5, abs=0.03)
    for sign in (-1, 1):
        some = np.abs(kicks[np.sign(kicks) == sign])
        assert some.mean() == pytest.approx(0.4, abs=0.01) and some.std() == pytest.approx(0.05, rel=0.1)
    np.testing.assert_array_equal(rows.action, np.full((4000, 1), 0.5))
    np.testing.assert_array_equal(rows.reward, reward)
    # The environment draws its kicks itself, anew at each step.
    before = np.concatenate([state.obs[None], alone.obs[:-1]])
    due = plain.reward(*map(jnp.asarray, (before, rows.action[:500], alone.obs)))
    np.testing.assert_allclose(alone.reward, due, rtol=1e-6)
    angle, free = np.arctan2(before[:, 1], before[:, 0]), np.abs(alone.obs[:, 2]) < 8
    drawn = ((alone.obs[:, 2] - before[:, 2] - 0.75 * np.sin(angle)) / 0.3 - 0.3)[free]
    assert np.mean(drawn > 0) == pytest.approx(0.5, abs=0.08) and np.abs(drawn).mean() == pytest.approx(0.4, abs=0.01)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("kicked/pendulum", "a kicked task is named kicked/SIZE/TASK"),
        ("kicked/0.4", "a kicked task is named kicked/SIZE/TASK"),
        ("kicked/1/pendulum", "size must be above 0 and below 1, got 1"),
        ("kicked/0.4/CartPole-v1", "kicks need actions that are vectors"),
        ("kicked/0.4/pendulm", "unknown task 'pendulm'"),
    ],
)
def test_wrong_names_are_told(name, told):
    with pytest.raises(UserError, match=told):
        envs.make(name)


def test_a_negative_spread_is_told():
    with pytest.raises(UserError, match="spread must be at least 0, got -1"):
        envs.kicked("pendulum", 0.4, -1.0)


@pytest.mark.parametrize(("size", "spread"), [(1e-5, 0.0), (0.12345678, 1e-7), (0.4, 1.0), (0.5, 12.0)])
def test_a_kicked_task_is_made_again_by_its_name(size, spread):
    named = envs.kicked("pendulum", size, spread).name
    assert envs.make(named).name == named
    assert [float(x) for x in named.split("/")[1].split(",")] == [size, spread][: 2 if spread else 1]


def test_the_entries_of_a_kicked_tasks_observation_have_their_names():
    assert envs.make("masked/kicked/0.1/pendulum").observation == envs.make("masked/pendulum").observation
    assert envs.make("masked/kicked/0.1/repeated/2/pendulum").observation.shape == (2,)


def test_nested_kicks_are_drawn_apart():
    """Two kicks of 0.3 of the action 0 add up to 0.7 * 0.3 + 0.3 = 0.51 or differ: 0.3 - 0.21 = 0.09, each as often."""
    task = envs.make("kicked/0.3/kicked/0.3/pendulum")
    applied, inner = [], envs.make("pendulum").env

    class Seen:
        def __getattr__(self, name):
            return getattr(inner, name)

        def reset(self, rng):
            return inner.reset(rng)

        def step(self, state, action):
            return inner.step(state, action).replace(reward=action[0])

    task.env.env.env, task.env._reward, task.env.env._reward = Seen(), None, None

    @jax.jit
    def found(keys):
        return jax.vmap(lambda key: task.env.step(task.env.reset(key), jnp.zeros(1)).reward)(keys)

    applied = np.abs(found(jax.random.split(jax.random.key(0), 400)))
    assert np.unique(np.round(applied, 5)) == pytest.approx([0.09, 0.51], abs=1e-6)
    assert np.mean(applied < 0.3) == pytest.approx(0.5, abs=0.1)
