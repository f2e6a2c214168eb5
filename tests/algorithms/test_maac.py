"""MAAC as a whole: without model steps it is MBPO, its actor climbs through the fitted model, and that it learns."""

import dataclasses

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
    updates_per_step=3,
    warmup_steps=10,
    replay_capacity=60,
    num_envs=2,
)
PENDULUM = envs.make("pendulum")


def rows(seed, count=2):
    """Transitions [1, count] that all differ."""
    rng = np.random.default_rng(seed)
    shapes = [(1, count, 3), (1, count, 1), (1, count), (1, count, 3)]
    none = jnp.zeros((1, count), bool)
    return Transition(*(jnp.asarray(rng.uniform(-1, 1, shape), float) for shape in shapes), none, none)


def learned(algorithm, calls=8):
    """State and metrics after so many calls of `learn`, on the same rows."""
    learn, state = jax.jit(algorithm.learn), jax.jit(algorithm.init)(jax.random.key(0), {})
    for call in range(calls):
        state, found = learn(Clock(jnp.asarray(2 * call + 2, jnp.int32)), state, rows(call))
    return state, metrics.known(found)


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
    fields = {f.name: getattr(TINY, f.name) for f in dataclasses.fields(mbpo.Config)}
    ours, found = learned(maac.make(dataclasses.replace(TINY, horizon=0), PENDULUM, drifting()))
    theirs, told = learned(mbpo.make(mbpo.Config(**fields), PENDULUM, drifting()))
    jax.tree.map(np.testing.assert_array_equal, ours.agent, theirs.agent)
    assert found == told
    assert int(ours.agent.actor.moments.count) == 4 * 2 * 3


def test_its_critics_are_mbpos_and_its_actor_climbs_through_the_newest_fit():
    """One update: the critics see the same rows by the same keys, and the actor the model of the fit just made."""
    once = dataclasses.replace(TINY, updates_per_step=1, num_envs=1)
    fields = {f.name: getattr(once, f.name) for f in dataclasses.fields(mbpo.Config)}
    ours, found = learned(maac.make(once, PENDULUM, drifting()), 5)
    theirs, _ = learned(mbpo.make(mbpo.Config(**fields), PENDULUM, drifting()), 5)
    jax.tree.map(np.testing.assert_array_equal, ours.agent.critic, theirs.agent.critic)
    moved = [
        float(jnp.abs(a - b).max())
        for a, b in zip(*(jax.tree.leaves(x.agent.actor.moments.mu) for x in (ours, theirs)), strict=True)
    ]
    assert min(moved) > 0
    assert int(ours.model) == 1 and {f"gradient/state_{t}" for t in range(3)} <= found.keys()


def test_presets_are_sound():
    for name, preset in algorithms.get("maac").presets.items():
        check(preset.config)
        for task in preset.tasks:
            assert algorithms.preset("maac", task)[0] == name
