"""MAAC as a whole: without model steps it is MBPO, its actor climbs through the fitted model, and that it learns."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import linear_quadratic as lq
import numpy as np

from jaxmbrl import algorithms, envs
from jaxmbrl.agents.actor_critic.sac import SACConfig
from jaxmbrl.algorithms.dyna import mbpo
from jaxmbrl.algorithms.value_gradients import maac
from jaxmbrl.core import metrics
from jaxmbrl.core.config import check
from jaxmbrl.core.types import Clock, Transition, World
from jaxmbrl.models.ensemble import EnsembleConfig

TINY = maac.Config(
    agent=SACConfig(hidden=(8,)),
    ensemble=EnsembleConfig(members=3, elites=2, hidden=(8,), batch_size=4, max_epochs=2),
    horizon=2,
    rollout_rows=6,
    retain_steps=8,
    refit_every=4,
    batch_size=4,
    updates_per_step=1,
    warmup_steps=10,
    replay_capacity=60,
)
PENDULUM = envs.make("pendulum")


def rows(seed, count=2):
    """Transitions [1, count] that all differ."""
    rng = np.random.default_rng(seed)
    shapes = [(1, count, 3), (1, count, 1), (1, count), (1, count, 3)]
    none = np.zeros((1, count), bool)
    return Transition(*(rng.uniform(-1, 1, shape).astype(np.float32) for shape in shapes), none, none)


def learned(algorithm, state):
    """Agent, model and metrics after each of eight calls of `learn`, the last four of which make one update each."""
    learn, found = jax.jit(algorithm.learn), []
    for call in range(8):
        state, told = learn(Clock(np.asarray(2 * call + 2, np.int32)), state, rows(call))
        agent, model, told = jax.device_get((state.agent, state.model, told))
        found.append((agent, model, metrics.known(told)))
    return found


@functools.cache
def learned_by_mbpo():
    # Only MBPO can learn by deep Q-learning; those settings keep their defaults.
    fields = {f.name: getattr(TINY, f.name) for f in dataclasses.fields(mbpo.Config) if hasattr(TINY, f.name)}
    algorithm = mbpo.make(mbpo.Config(**fields), PENDULUM, drifting())
    return learned(algorithm, jax.jit(algorithm.init)(jax.random.key(0), {}))


@functools.cache
def start():
    return jax.jit(maac.make(TINY, PENDULUM, drifting()).init)(jax.random.key(0), {})


def learned_by_maac(horizon):
    return learned(maac.make(dataclasses.replace(TINY, horizon=horizon), PENDULUM, drifting()), start())


def drifting():
    """A model of which every step adds the number of its fit, and pays by the action."""

    def world(fits):
        def step(observation, action, key):
            following = observation + fits + 0 * action
            none = jnp.zeros(len(observation), bool)
            return following, Transition(observation, action, fits * action[:, 0], following, none, none)

        return World(reset=None, start=lambda origin, key: origin, observe=lambda x: x, step=step)

    return lq.model()._replace(
        init=lambda key, hyper: jnp.zeros(()), fit=lambda fits, buffer, key: (fits + 1, {}), world=world
    )


def test_without_model_steps_it_is_mbpo_bit_for_bit():
    for (agent, model, found), (its_agent, its_model, told) in zip(learned_by_maac(0), learned_by_mbpo(), strict=True):
        jax.tree.map(np.testing.assert_array_equal, agent, its_agent)
        assert found == told and model == its_model
    assert int(agent.actor.moments.count) == 4


def test_its_critics_are_mbpos_and_its_actor_climbs_through_the_newest_fit():
    """One update: the critics see the same rows by the same keys, and the actor the model of the fit just made."""
    (ours, model, found), (theirs, _, _) = learned_by_maac(2)[4], learned_by_mbpo()[4]
    jax.tree.map(np.testing.assert_array_equal, ours.critic, theirs.critic)
    leaves = zip(*(jax.tree.leaves(agent.actor.moments.mu) for agent in (ours, theirs)), strict=True)
    assert min(float(np.abs(a - b).max()) for a, b in leaves) > 0
    assert int(model) == 1 and {f"gradient/state_{t}" for t in range(3)} <= found.keys()


def test_presets_are_sound():
    for name, preset in algorithms.get("maac").presets.items():
        check(preset.config)
        for task in preset.tasks:
            assert algorithms.preset("maac", task)[0] == name
