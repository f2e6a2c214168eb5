"""MVE: its targets by a transcription and in closed form, where imagined rows may teach, and that it learns."""

import functools

import jax
import jax.numpy as jnp
import linear_quadratic as lq
import numpy as np
import pytest
from one_step_targets import critic_target as own_target

from jaxmbrl.agents.actor_critic import sac
from jaxmbrl.agents.actor_critic.sac import SACConfig
from jaxmbrl.algorithms.value_expansion import mve

SAC = SACConfig(hidden=(7,), polyak=0.25)


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


SOLVED = (-lq.curvature() / 2, 0.0, 0.0)
"""Coefficients of the noise-free loop's value of a state."""


def expanded(horizon, batch, value=SOLVED, bonus=0.0, wide=0.0, discount=lq.DISCOUNT):
    """What `mve.expand` makes, and who is alive, with values that are a polynomial of the state; states within `wide` of 0
    are ends."""
    return jax.device_get(expand(horizon, batch, value, bonus, wide, discount))


@functools.partial(jax.jit, static_argnums=0)
def expand(horizon, batch, value, bonus, wide, discount):
    agent = lq.agent(bonus=bonus, value=lambda s: value[0] * s**2 + value[1] * s + value[2])
    world = lq.world(ends=lambda s: jnp.abs(s[:, 0]) < wide)
    state = lq.state_of()._replace(discount=jnp.asarray(discount, float))
    trajectory, targets = mve.expand(agent, world, state, batch, jax.random.key(0), horizon)
    return trajectory, targets, trajectory.alive


def rows(**how):
    return jax.device_get(lq.rows(**how))


def transcribed(batch, horizon, bonus, value_of, ends=lambda s: False):
    """The target of every step of every row, with loops, for the noise-free loop."""
    found = np.zeros((horizon + 1, len(batch.reward)))
    for b in range(len(batch.reward)):
        rewards, over, s = [float(batch.reward[b])], [bool(batch.terminated[b])], float(batch.next_observation[b, 0])
        for _ in range(horizon):
            u = lq.GAIN * s
            rewards.append(-(s**2 + lq.COST * u**2) / 2)
            s = lq.A * s + lq.B * u
            over.append(ends(s))
        for t in range(horizon + 1):
            total, alive = 0.0, 1.0
            for j in range(t, horizon + 1):
                total += lq.DISCOUNT ** (j - t) * alive * (rewards[j] + (bonus if j > t else 0.0))
                alive *= 1.0 - over[j]
            found[t, b] = total + lq.DISCOUNT ** (horizon + 1 - t) * alive * value_of(s)
    return found


@pytest.mark.parametrize("horizon", [0, 1, 4])
def test_targets_are_the_sums_with_the_bonus_of_every_later_action(horizon):
    batch = rows(ends=True)
    found = expanded(horizon, batch, bonus=0.3, value=(0.0, 3.0, 1.0))[1]
    assert 0 < batch.terminated.sum() < len(batch.terminated)
    np.testing.assert_allclose(found, transcribed(batch, horizon, 0.3, lambda s: 3 * s + 1), rtol=1e-12)


def test_with_an_exact_model_and_the_policys_values_every_horizon_has_the_same_target():
    batch = rows()
    one_step = batch.reward + lq.DISCOUNT * lq.value(batch.next_observation[:, 0])
    for horizon in (0, 1, 4):
        np.testing.assert_allclose(expanded(horizon, batch)[1][0], one_step, rtol=1e-12)


def test_along_the_stretch_every_state_has_its_own_value():
    trajectory, targets, _ = expanded(4, rows())
    np.testing.assert_allclose(targets[1:], lq.value(trajectory.observation[1:, :, 0]), rtol=1e-12)
    np.testing.assert_array_equal(trajectory.observation[2:], trajectory.next_observation[1:-1])


def test_imagined_ends_cut_what_follows():
    batch, wide = rows(seed=3, count=40), 0.3
    _, targets, alive = expanded(3, batch, wide=wide)
    expected = transcribed(batch, 3, 0.0, lq.value, ends=lambda s: abs(s) < wide)
    np.testing.assert_allclose(targets, expected, rtol=1e-12)
    assert alive[0].all() and 0 < alive[2].sum() < 40


def test_without_discount_the_target_is_the_reward():
    batch = rows(seed=3, count=40)
    np.testing.assert_array_equal(expanded(3, batch, discount=0.0)[1][0], batch.reward)


@functools.cache
def sac_agent():
    agent = sac.make(SAC, 1, 1)
    return agent, jax.jit(agent.init)(jax.random.key(1), {})


def sac_and_rows(ends=True):
    return *sac_agent(), rows(count=6, ends=ends)


def test_with_no_model_step_it_is_the_agents_own_target():
    agent, state, batch = sac_and_rows()

    @jax.jit
    def both(state, batch, key):
        _, targets = mve.expand(agent, lq.world(), state, batch, key, 0)
        return targets[0], own_target(agent, state, batch, jax.random.split(key)[0])

    found, expected = both(state, batch, jax.random.key(4))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("td_k", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_with_no_model_step_its_update_is_the_agents_own(td_k):
    agent, state, batch = sac_and_rows()
    key = jax.random.key(5)
    found, _, _ = jax.jit(mve.with_mve_target(agent, lq.world(), 0, td_k).update)(state, batch, key)

    @jax.jit
    def own(state, batch, key):
        critic_key, actor_key = jax.random.split(key)
        target_key, fit_key = jax.random.split(critic_key)
        target = own_target(agent, state, batch, jax.random.split(target_key)[0])
        state, _, _ = agent.update_critic(state, batch, fit_key, target=target)
        return agent.update_actor(state, batch, actor_key)[0]

    expected = own(state, batch, key)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), found, expected)


@jax.jit
def updated(state, batch, key, perhaps, broken):
    """An update with two model steps, and what its critics are to learn. Where `perhaps`, imagined states are ends with a
    probability. From terminal states, as from those that are not finite, the model tells `broken`."""
    agent, _ = sac_agent()
    sane = lq.world(ends=lambda s: jnp.where(perhaps, 1 / (1 + s[:, 0] ** 2), 0.0))

    def step(observation, action, key):
        following, row = sane.step(observation, action, key)
        terminal = (observation == batch.next_observation[:, 0]) & batch.terminated
        dead = jnp.any(terminal, axis=1) | ~jnp.isfinite(observation[:, 0])
        nonsense = jnp.where(dead[:, None], broken, following)
        return nonsense, row._replace(reward=jnp.where(dead, broken, row.reward), next_observation=nonsense)

    world = sane._replace(step=step)
    critic_key, _ = jax.random.split(key)
    due = mve.expand(agent, world, state, batch, jax.random.split(critic_key)[0], 2)
    return mve.with_mve_target(agent, world, 2, True).update(state, batch, key), due


def test_the_critics_learn_on_imagined_states_by_their_reach():
    """The critic's gradient is that of the mean over all steps of all rows, each squared error times its weight."""
    _, state, batch = sac_and_rows()
    (after, metrics, _), (trajectory, targets) = jax.device_get(updated(state, batch, jax.random.key(6), True, 0.0))
    q = sac.functions(SAC, 1).q
    ended = np.asarray(trajectory.terminated, float)
    reach = np.stack([np.ones(6), 1 - ended[0], (1 - ended[0]) * (1 - ended[1])])
    assert ((reach > 0) & (reach < 1)).any() and (reach == 0).any()

    def loss(params, observation, action):
        return jnp.sum(jnp.mean(reach * (q(params, observation, action) - targets) ** 2, axis=(1, 2)))

    value, gradient = jax.jit(jax.value_and_grad(loss))(state.critic.params, trajectory.observation, trajectory.action)
    assert float(metrics["agent/critic_loss"].total) == pytest.approx(float(value), rel=1e-10)
    assert float(metrics["expand/alive"].total) == pytest.approx(reach[2].mean(), rel=1e-12)
    jax.tree.map(
        lambda m, g: np.testing.assert_allclose(10 * m, g, rtol=1e-9, atol=1e-12),
        after.critic.moments.mu,
        jax.device_get(gradient),
    )


def test_what_a_model_says_after_an_end_reaches_nothing():
    """From terminal states the model speaks nonsense: neither targets nor critics see it."""
    _, state, batch = sac_and_rows()
    calm = updated(state, batch, jax.random.key(7), False, 0.0)[0]
    for broken in (np.nan, np.inf):
        jax.tree.map(np.testing.assert_array_equal, updated(state, batch, jax.random.key(7), False, broken)[0], calm)


def test_a_living_row_that_is_not_finite_is_not_hidden():
    _, state, batch = sac_and_rows(ends=False)
    following = batch.next_observation.copy()
    following[2] = np.nan
    _, metrics, _ = updated(state, batch._replace(next_observation=following), jax.random.key(8), False, np.nan)[0]
    assert not np.isfinite(float(metrics["agent/critic_loss"].total))
