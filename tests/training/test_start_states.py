"""Start states that training repeats (`Algorithm.start_states`)."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl import envs
from jaxmbrl.agents.exploration import uniform
from jaxmbrl.core.config import UserError
from jaxmbrl.core.types import Algorithm
from jaxmbrl.envs.base import never
from jaxmbrl.envs.classic.pendulum import Pendulum
from jaxmbrl.training import bridged, loop

TASK = envs.make_task("short", Pendulum(), 3, terminated=never)
SETTINGS = SimpleNamespace(num_envs=5, epoch_steps=15)


def without_learning(start_states):
    """Random actions; a call of `learn` takes one episode of each environment."""
    policy = uniform(TASK.action)
    return Algorithm(
        lambda key, hyper, data: (), lambda *_: policy, lambda clock, state, _: (state, {}), 3, start_states=start_states
    )


def test_environments_return_to_the_start_states_that_they_share():
    made = loop.make(without_learning(2), TASK, SETTINGS)
    state = jax.jit(made.init)(jnp.arange(2), {})
    _, after = jax.jit(made.run)(loop.clock_at(0), state, jnp.asarray(2, jnp.int32))
    begins, ends = (x.carry.carry.carry[0].pipeline_state for x in (state, after))
    for seed in begins:
        np.testing.assert_array_equal(seed[jnp.array([0, 1, 0, 1, 0])], seed)
    assert len(np.unique(begins[..., 0])) == 4, "two start states of each of two seeds"
    np.testing.assert_array_equal(ends, begins)


def test_without_them_each_environment_begins_anew():
    made = loop.make(without_learning(None), TASK, SETTINGS)
    state = jax.jit(made.init)(jnp.arange(1), {})
    assert len(np.unique(state.carry.carry[0].pipeline_state[..., 0])) == 5


def test_a_simulator_on_the_host_cannot_repeat_its_start_states():
    with pytest.raises(UserError, match="repeats start states, and those of task 'short' cannot be repeated"):
        bridged.make(without_learning(1), TASK, SETTINGS)
