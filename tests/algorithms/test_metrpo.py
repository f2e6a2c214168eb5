"""ME-TRPO: what is accepted and restored, one member as plain TRPO in a model, the reset of the standard deviation, and
imagined trajectories that end."""

import dataclasses

import jax
import jax.numpy as jnp
import linear_quadratic as lq
import numpy as np
import pytest

from jaxmbrl import envs
from jaxmbrl.agents import trust_region
from jaxmbrl.agents.trust_region import TRPOConfig
from jaxmbrl.algorithms import shared
from jaxmbrl.algorithms.on_policy import metrpo
from jaxmbrl.core.config import UserError, check
from jaxmbrl.core.spaces import Box
from jaxmbrl.core.types import Policy
from jaxmbrl.data import replay
from jaxmbrl.models import imagination
from jaxmbrl.models.ensemble import EnsembleConfig
from jaxmbrl.rollout import rollout

from .test_sac import clock

PLAIN = TRPOConfig(hidden=(8,), normalize_observations=False, normalize_rewards=False, value_epochs=1, cg_iterations=3)
TINY = metrpo.Config(
    agent=PLAIN,
    ensemble=EnsembleConfig(members=3, elites=3, probabilistic=False, hidden=(8,), max_epochs=2),
    replay_capacity=100,
    collect_steps=20,
    imagined_rows=6,
    imagined_steps=4,
    judged_rows=4,
    updates=4,
    check_every=2,
    patience=2,
)


def test_one_worse_member_of_five_is_accepted_and_one_of_three_is_not():
    before = jnp.arange(5.0)
    assert bool(metrpo.accepts(before, before, 0.3)), "equal returns are no worse"
    assert bool(metrpo.accepts(before.at[0].add(-1), before, 0.3))
    assert not bool(metrpo.accepts(before.at[:2].add(-1), before, 0.3))
    assert not bool(metrpo.accepts(before.at[:2].set(jnp.nan), before, 0.3))
    assert not bool(metrpo.accepts(before[:3].at[0].add(-1), before[:3], 0.3))
    assert bool(metrpo.accepts(before - 1, before, 1.0))


def test_a_share_of_members_is_exact():
    """At the share k / E, k of E members may be worse and k + 1 may not."""
    for members in (3, 10, 15):
        returns = jnp.where(jnp.arange(members) < jnp.arange(members + 1)[:, None], -1.0, 1.0)
        for k in range(members):
            accepted = jax.vmap(lambda now, share=k / members: metrpo.accepts(now, jnp.zeros(len(now)), share))(returns)
            np.testing.assert_array_equal(accepted, np.arange(members + 1) <= k)


def learned(config, plainly=None):
    """(state before, state after a round, metrics), from a policy with the log standard deviation -3, and `plainly(state
    before, state after)`."""
    task = envs.make("pendulum")
    algorithm = metrpo.make(config, task)

    @jax.jit
    def once(key):
        state = algorithm.init(key, {})
        actor = state.agent.actor
        actor = actor._replace(params=actor.params._replace(log_std=jnp.full(1, -3.0)))
        state = state._replace(agent=state.agent._replace(actor=actor))
        world, acting = task.world, algorithm.policy(state, clock(0), True)
        _, found = rollout(world, acting, (world.reset(key), ()), key, 20)
        after, metrics = algorithm.learn(clock(20), state, jax.tree.map(lambda x: x[:, None], found))
        return state, after, metrics, plainly and plainly(state, after)

    return jax.device_get(once(jax.random.key(0)))


def of_actor(state):
    return state.agent.actor.params


def test_one_member_that_accepts_every_policy_is_trpo_in_a_model():
    """After the fit, a round is the first standard deviation and all updates of TRPO on imagined rows, bit for bit. They
    move the logarithm of the standard deviation by less than 0.4."""
    one = dataclasses.replace(TINY.ensemble, members=1, elites=1)
    config, task = dataclasses.replace(TINY, ensemble=one, worse_share=1.0), envs.make("pendulum")
    agent, model = trust_region.make_agent(PLAIN, 3, task.action), shared.ensemble_for(config, task)

    def plainly(state, after):
        key = jax.random.split(jax.random.split(state.key, 3)[2], 3)[2]
        keys = [jax.random.split(jax.random.fold_in(key, first), 2) for first in (0, 2)]

        def update(learner, key):
            return shared.improve_in_model(config, agent, learner, model.world(after.model), after.replay, key)

        return jax.lax.scan(update, agent.with_first_log_std(state.agent), jnp.concatenate(keys))[0]

    before, after, found, plain = learned(config, plainly)
    assert float(found["policy/accepted"].total) == 2 and float(found["policy/updates"].total) == 4
    jax.tree.map(np.testing.assert_array_equal, after.agent, plain)
    assert all((a != b).any() for a, b in zip(*map(jax.tree.leaves, (of_actor(before), of_actor(after))), strict=True))
    assert of_actor(before).log_std[0] == -3.0 and abs(of_actor(after).log_std[0]) < 0.4


def test_without_an_acceptance_the_last_accepted_policy_is_restored_and_the_round_ends():
    """Without a reset, that is the policy from before the round, bit for bit, while the value function learned."""
    before, after, found, _ = learned(dataclasses.replace(TINY, worse_share=0.0, reset_log_std=False))
    assert float(found["policy/accepted"].total) == 0 and float(found["policy/updates"].total) == 2 < TINY.updates
    jax.tree.map(np.testing.assert_array_equal, of_actor(before), of_actor(after))
    assert any(
        (a != b).any() for a, b in zip(*map(jax.tree.leaves, (before.agent.critic, after.agent.critic)), strict=True)
    )


def test_an_exact_model_gives_the_update_of_trpo(x64):
    """The rows imagined in a model that is the task are those that the task gives with the same keys, bit for bit, and the
    update is TRPO's on them. Programs of both differ, so parameters may differ by rounding."""
    agent = trust_region.make_agent(PLAIN, 1, Box((1,)))
    world, buffer = lq.world(0.1), replay.of_rows(lq.rows(count=9))

    @jax.jit
    def both(key):
        state = agent.init(key, {})
        start_key, rollout_key, update_key = jax.random.split(key, 3)
        origin = replay.sample(buffer, start_key, TINY.imagined_rows).observation
        begin_key, steps_key, _ = jax.random.split(rollout_key, 3)
        start = (world.start(origin, begin_key), ())
        _, rows = rollout(world, agent.policy(state, True), start, steps_key, TINY.imagined_steps)
        by_trpo, _ = trust_region.update(agent, PLAIN, state, rows, update_key)
        imagined, weight = imagination.collect(world, agent.policy(state, True), origin, rollout_key, TINY.imagined_steps)
        in_model, _ = shared.improve_in_model(TINY, agent, state, world, buffer, key)
        return in_model, by_trpo, state, rows, imagined, weight

    in_model, by_trpo, before, rows, imagined, weight = both(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, rows, imagined)
    assert (weight == 1).all()
    for part in ("actor", "critic"):
        one, other = (getattr(x, part).params for x in (in_model, by_trpo))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-14), one, other)
    assert (in_model.actor.params.log_std != before.actor.params.log_std).all()


def test_imagined_terminations_are_sampled_and_end_the_weight():
    """A model that ends with probability 1/4: rows count up to and including the step that ends them."""
    world = lq.world(ends=lambda following: jnp.full(following.shape[0], 0.25))
    world = world._replace(step=lambda at, action, key: with_probability(lq.world().step(at, action, key)))
    policy = Policy(lambda key: (), lambda memory, seen, key: (jnp.zeros_like(seen), seen, memory))
    rows, weight = jax.jit(lambda key: imagination.collect(world, policy, jnp.ones((4000, 1)), key, 5))(jax.random.key(0))
    assert rows.terminated.dtype == bool
    ended = np.cumsum(rows.terminated, axis=0) - np.asarray(rows.terminated, int)
    np.testing.assert_array_equal(weight, (ended == 0).astype(np.float32))
    np.testing.assert_allclose(weight.mean(1), 0.75 ** np.arange(5), atol=0.03)


def with_probability(stepped):
    at, rows = stepped
    return at, rows._replace(terminated=jnp.full(rows.reward.shape, 0.25))


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match=r"updates must be a multiple of check_every \(2\), got 5"):
        check(dataclasses.replace(TINY, updates=5))
    fewer = dataclasses.replace(TINY.ensemble, elites=2)
    with pytest.raises(UserError, match=r"^ensemble.elites must be ensemble.members \(3\), .*, got 2$"):
        check(dataclasses.replace(TINY, ensemble=fewer))
    with pytest.raises(UserError, match=r"agent.normalize_rewards must be false"):
        check(dataclasses.replace(TINY, agent=dataclasses.replace(PLAIN, normalize_rewards=True)))
