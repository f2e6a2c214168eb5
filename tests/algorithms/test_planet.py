"""PlaNet: where the search of each step begins."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl import algorithms, envs, planning
from jaxmbrl.agents.exploration import uniform
from jaxmbrl.algorithms import latent_settings
from jaxmbrl.algorithms.latent import planet
from jaxmbrl.core.types import Clock

POPULATION, ELITES, HORIZON = 12, 3, 4
AIM = np.linspace(-0.4, 0.6, HORIZON)


def planner_of(preset, **changes):
    """The planner of PlaNet's policy on the pendulum, by the settings of a preset, with one small population."""
    settings = algorithms.get("planet").presets[preset].config
    small = {"population": POPULATION, "elites": ELITES, "horizon": HORIZON, "iterations": 1}
    cem = dataclasses.replace(settings.planner.cem, **small)
    settings = dataclasses.replace(settings, planner=dataclasses.replace(settings.planner, cem=cem), **changes)
    found, task = [], envs.make("pendulum")

    def kept(config, planner, *rest):
        found.append(planner)
        return uniform(task.action)

    def acting(key):
        algorithm = planet.make(settings, task)
        algorithm.policy(algorithm.init(key, {}), Clock(jnp.zeros((), jnp.int32)), False)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latent_settings, "planned", kept)
        jax.eval_shape(acting, jax.random.key(0))
    return found[0], task.action


def planned(planner, action):
    """plan state -> (plan [H], next plan state); the return is minus the squared distance from `AIM`."""
    problem = planning.problem_of_score(lambda actions, key: -jnp.sum((actions[:, 0] - AIM) ** 2), action)

    @jax.jit
    def plan(state, key):
        actions, after, _ = planner.plan(problem, state, key)
        return actions[:, 0], after

    return plan


def in_numpy(key, mean):
    """The mean of the best of a population with this mean and deviation 1, clipped to [-1, 1]."""
    population_key, _ = jax.random.split(jax.random.split(key, 1)[0])
    noise = np.asarray(jax.random.normal(population_key, (POPULATION, HORIZON, 1)))[:, :, 0]
    population = np.clip(mean + noise, -1, 1)
    best = np.argsort(np.sum((population - AIM) ** 2, axis=1))[:ELITES]
    return population[best].mean(axis=0)


@pytest.mark.parametrize("preset", ["small", "paper"])
@pytest.mark.parametrize("warm", [False, True])
def test_each_search_begins_anew_or_if_asked_with_the_rest_of_the_last_plan(x64, preset, warm):
    planner, action = planner_of(preset, **({"warm_start": True} if warm else {}))
    plan, mean, state = planned(planner, action), np.zeros(HORIZON), planner.init()
    for i in range(3):
        key = jax.random.key(i)
        found, state = plan(state, key)
        np.testing.assert_allclose(found, in_numpy(key, mean), rtol=1e-12)
        assert np.abs(found).max() > 0.2
        mean = np.append(np.asarray(found)[1:], 0.0) if warm else np.zeros(HORIZON)
