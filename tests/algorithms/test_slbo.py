"""SLBO: the entropy schedule, the settings of MB-TRPO, the noise, and what it needs of a task."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl import algorithms, envs
from jaxmbrl.agents import trust_region
from jaxmbrl.agents.exploration import with_ou_noise
from jaxmbrl.algorithms.on_policy import slbo
from jaxmbrl.core.config import UserError
from jaxmbrl.core.spaces import Box
from jaxmbrl.core.types import Policy, Transition

from .test_metrpo import PLAIN
from .test_sac import clock

TINY = slbo.Config(agent=PLAIN, collect_steps=10, iterations=1, updates=1, entropy_steps=100)


def test_the_entropy_bonus_ends_by_the_clock():
    config = dataclasses.replace(TINY, agent=dataclasses.replace(PLAIN, entropy_weight=0.5))
    assert [float(config.entropy_weight(clock(steps))) for steps in (10, 100, 110, 5000)] == [0.5, 0.5, 0.0, 0.0]


def test_the_entropy_bonus_raises_the_entropy():
    """Without advantages to follow, the step is that of the bonus: the standard deviation grows, and without a bonus
    nothing moves."""
    agent = trust_region.make_agent(PLAIN, 1, Box((1,)))
    never, zeros = jnp.zeros((4, 3), bool), jnp.zeros((4, 3))
    rows = Transition(zeros[..., None], zeros[..., None], zeros, zeros[..., None], never, never, zeros[..., None])

    @jax.jit
    def updated(key, bonus):
        state = agent.init(key, {})
        return trust_region.update(agent, PLAIN, state, rows, key, entropy_weight=bonus)[0].actor.params.log_std

    assert float(updated(jax.random.key(0), 0.1)[0]) > 0.01
    assert float(updated(jax.random.key(0), 0.0)[0]) == 0.0


def test_the_noise_is_an_ornstein_uhlenbeck_process():
    """Stationary from the first step on: standard deviation .3 / sqrt(1 - .85^2) = .5695, correlation .85 of neighbours."""
    still = Policy(lambda key: (), lambda memory, seen, key: (jnp.zeros(2), (), memory))
    noisy = with_ou_noise(still, (2,), 0.15, 0.3)

    @jax.jit
    @jax.vmap
    def noise(key):
        first = noisy.init(key)

        def step(memory, key):
            action, _, memory = noisy.act(memory, jnp.zeros(1), key)
            return memory, (action, memory[1])

        return jax.lax.scan(step, first, jax.random.split(jax.random.fold_in(key, 9), 5))[1]

    actions, values = jax.device_get(noise(jax.random.split(jax.random.key(0), 8000)))
    np.testing.assert_allclose(values.std(axis=0), 0.5695, rtol=0.04)
    assert np.corrcoef(values[:, 1, 0], values[:, 2, 0])[0, 1] == pytest.approx(0.85, abs=0.02)
    np.testing.assert_array_equal(actions, np.clip(values, -1, 1))


def test_mb_trpo_is_one_iteration_of_many_steps():
    """configs/algos/mb_trpo.yml: the same numbers of updates a stage as 20 x 100 and, of the policy, fewer."""
    presets = algorithms.get("slbo").presets
    whole, once = presets["paper"].config, presets["mb-trpo"].config
    assert (whole.iterations, whole.dynamics.fit_steps, whole.updates) == (20, 100, 40)
    assert (once.iterations, once.dynamics.fit_steps, once.updates) == (1, 2000, 200)
    rest = {"iterations": 20, "updates": 40, "dynamics": whole.dynamics}
    assert dataclasses.replace(once, **rest) == whole
    assert whole.imagined_rows * whole.imagined_steps == 4000


@pytest.mark.parametrize("lacks", ["reward", "terminated"])
def test_a_task_must_provide_reward_and_termination(lacks):
    task = envs.make("pendulum")._replace(**{lacks: None})
    with pytest.raises(UserError, match=r"slbo needs a task with a known (reward|termination), and 'pendulum' has none"):
        slbo.make(TINY, task)
