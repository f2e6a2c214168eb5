"""Value gradients on the linear-quadratic problem, whose gradients are known; against loops; and where rows have ended.

`GRADIENT` are numbers of the closed form: with V frozen after n steps dJ/dk = g_1 (1 - q^n) / (1 - q), q = discount A_c^2.
"""

import functools

import jax
import jax.numpy as jnp
import linear_quadratic as lq
import numpy as np
import pytest

from jaxmbrl.agents.actor_critic import sac, value_gradients
from jaxmbrl.agents.actor_critic.sac import SACConfig
from jaxmbrl.agents.actor_critic.value_gradients import ValueGradientConfig
from jaxmbrl.rollout import step_keys

from . import sac_in_numpy as reference
from .test_sac import critics_of

GRADIENT = {1: -0.592030, 2: -0.867620, 3: -0.995907, 5: -1.083423, 40: -1.107633}
SAC = SACConfig(hidden=(7,), initial_temperature=0.3)


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def ascent(horizon, entropy_at_every_step=True, rematerialize=False):
    return ValueGradientConfig(horizon, entropy_at_every_step, rematerialize)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def actor_objective(how, agent, world, state, origin, key=0):
    origin = jnp.asarray(origin, float)
    perturbations = jnp.zeros((how.horizon + 1, *origin.shape))
    follow_key, *keys = jax.random.split(jax.random.key(key), 3)
    trajectory = value_gradients.imagine_perturbed(how, agent, world, state, origin, perturbations, follow_key)
    return value_gradients.actor_objective(how, agent, state, origin, trajectory, tuple(keys))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def slope(how, agent, world, origin, weight):
    """Derivative by the gain of the weighed sum over rows, and what each row earns."""

    def weighed(gain):
        earned, _ = actor_objective(how, agent, world, lq.state_of(gain), origin)
        return jnp.sum(weight * earned), earned

    return jax.grad(weighed, has_aux=True)(lq.GAIN)


WORLD = lq.world()
STATES = lq.agent(by_action=lambda s, u: lq.value(s))
"""Its critic tells the value of the state alone."""
ACTIONS = lq.agent()
VISITED = 0.7 ** np.arange(60.0)[:, None]
"""The states of the noise-free loop from 1 on."""
FIRST = np.eye(60)[0]


def further(horizon):
    return pytest.param(horizon, marks=pytest.mark.promises)


@pytest.mark.parametrize("horizon", [1, further(2), further(3), 5, 40])
def test_with_the_exact_value_of_states_the_gradient_is_the_closed_forms(horizon):
    found, _ = slope(ascent(horizon), STATES, WORLD, VISITED, FIRST)
    assert float(found) == pytest.approx(GRADIENT[horizon], abs=1e-6)


@pytest.mark.parametrize("horizon", [0, 1, further(2), 4])
def test_with_the_exact_value_of_actions_it_is_that_of_one_step_more(horizon):
    found, _ = slope(ascent(horizon), ACTIONS, WORLD, VISITED, FIRST)
    assert float(found) == pytest.approx(GRADIENT[horizon + 1], abs=1e-6)


def test_every_horizon_earns_the_value_itself():
    origin = np.random.default_rng(0).normal(size=(60, 1))
    for agent, horizons in ((STATES, (0, 1, 5)), (ACTIONS, (0, 1, 4))):
        for horizon in horizons:
            _, earned = slope(ascent(horizon), agent, WORLD, origin, FIRST)
            np.testing.assert_allclose(earned, lq.value(origin[:, 0]), rtol=1e-12)


@pytest.mark.parametrize(("horizon", "agent"), [(0, ACTIONS), (1, STATES)])
def test_local_gradients_over_the_discounted_visits_add_up_to_the_whole_gradient(horizon, agent):
    """SVG(0)'s and SVG(1)'s, at the states of the noise-free loop: -0.592030 / (1 - 0.95 0.7^2) = -1.107633."""
    found, _ = slope(ascent(horizon), agent, WORLD, VISITED, lq.DISCOUNT ** np.arange(60))
    assert float(found) == pytest.approx(GRADIENT[40], abs=1e-6)


def test_of_no_step_it_is_the_reparameterised_policy_gradient():
    """Q = -(a - c)^2: the derivative by the mean is -2 (m - c), and by the deviation -2 s on average over the noise."""
    mean, std, c = 0.7, 0.3, 0.2
    base = lq.agent(by_action=lambda s, u: -((u - c) ** 2))

    def actor(state):
        def act(memory, observation, key):
            noise = observation  # antithetic, so that the average is exact
            return state.actor.params[0] + state.actor.params[1] * noise, jnp.zeros(len(noise)), memory

        return base.policy_with_entropy(state)._replace(act=act)

    agent = base._replace(policy_with_entropy=actor)

    def earned(params):
        return jnp.mean(actor_objective(ascent(0), agent, WORLD, lq.state_of(params), [[-1.0], [1.0]])[0])

    found = jax.jit(jax.grad(earned))(np.array([mean, std]))
    np.testing.assert_allclose(found, [-2 * (mean - c), -2 * std], rtol=1e-12)


@functools.cache
def sac_agent():
    agent = sac.make(SAC, 1, 1)
    return agent, jax.jit(agent.init)(jax.random.key(1), {})


def chance(following):
    """A probability of termination that depends on the state."""
    return 1 / (1 + following[:, 0] ** 2)


NOISY = lq.world(0.1, chance)
SAMPLE = jax.jit(sac.functions(SAC, 1).actor.sample)


@functools.partial(jax.jit, static_argnums=1)
def drawn(key, steps):
    """The keys of the actions, the noise of the dynamics, and the key of the last action."""
    imagine_key, act_key, _ = jax.random.split(key, 3)
    rollout_key = jax.random.split(imagine_key)[1]
    keys, world_keys = jax.vmap(lambda t: step_keys(rollout_key, t))(jnp.arange(steps))
    noise = jax.vmap(lambda key: jax.random.normal(jax.random.split(key)[0], (3, 1)))(world_keys)
    return list(keys), noise, act_key


@pytest.mark.parametrize("entropy_at_every_step", [True, False])
def test_it_is_the_sum_of_what_each_step_earns(entropy_at_every_step):
    """Against loops, for SAC's networks on noisy dynamics with probable ends."""
    (agent, state), horizon = sac_agent(), 3
    origin = np.array([[0.3], [-1.2], [2.0]])
    earned, first = actor_objective(ascent(horizon, entropy_at_every_step), agent, NOISY, state, origin)
    keys, noise, act_key = drawn(jax.random.key(0), horizon)
    s, total, alive = origin, np.zeros(3), np.ones(3)
    for t in range(horizon):
        action, density = jax.device_get(SAMPLE(state.actor.params, s, keys[t]))
        if t == 0:
            np.testing.assert_allclose(first, -0.3 * density, rtol=1e-9)
        counted = -0.3 * density if entropy_at_every_step or t == 0 else 0.0
        reward = -(s[:, 0] ** 2 + lq.COST * action[:, 0] ** 2) / 2
        total += 0.99**t * alive * (reward + counted)
        s = lq.A * s + lq.B * action + 0.1 * np.asarray(noise[t])
        alive = alive * (1 - chance(s))
    action, density = jax.device_get(SAMPLE(state.actor.params, s, act_key))
    value = reference.values(critics_of(state.critic.params), s, action).min(axis=0)
    total += 0.99**horizon * alive * (value - (0.3 * density if entropy_at_every_step else 0.0))
    np.testing.assert_allclose(earned, total, rtol=1e-9)


def test_of_no_step_it_is_sacs_actor_loss():
    agent, state = sac_agent()
    batch, key = lq.rows(count=6), jax.random.key(3)

    def loss(params, state, batch, key):
        moved = state._replace(actor=state.actor._replace(params=params))
        earned, bonus = actor_objective(ascent(0, False), agent, lq.world(), moved, batch.observation, 3)
        return -jnp.mean(earned), jnp.mean(bonus)

    @jax.jit
    def both(state):
        own = agent.update_actor(state, batch, jax.random.split(key, 3)[1])
        return own, agent.update_actor(state, batch, key, loss=loss)

    (own, found), (told, seen) = both(state)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12)
    jax.tree.map(close, (told.actor, told.log_temperature, seen), (own.actor, own.log_temperature, found))
    assert value_gradients.with_value_gradient(agent, lq.world(), ascent(0)) is agent


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def climbed(agent, world, how, batch, state):
    return value_gradients.with_value_gradient(agent, world, how).update_actor(state, batch, jax.random.key(0))


RATIO = lq.DISCOUNT * 0.7**2
GRADIENT_AT_4 = -0.5920299 * (1 - RATIO**4) / (1 - RATIO)


def test_the_update_descends_the_outlook_and_tells_the_derivatives_along_the_way():
    """In the noise-free loop dJ/ds_t = discount^t dV/ds(s_t) = -discount^t P s_t at each state s_t = 0.7^t s_0."""
    batch = lq.rows()
    _, found = climbed(ACTIONS, WORLD, ascent(3), batch, lq.state_of())
    s = np.asarray(batch.observation[:, 0])
    assert float(found["agent/actor_loss"].total) == pytest.approx(-np.mean(lq.value(s)), rel=1e-12)
    expected = -np.mean([GRADIENT_AT_4 * x**2 for x in s])
    assert float(found["agent/slope"].total) == pytest.approx(expected, rel=1e-6)
    assert float(found["agent/bonus"].total) == 0.0
    for t in range(4):
        norm = lq.DISCOUNT**t * lq.curvature() * np.mean(np.abs(0.7**t * s))
        assert float(found[f"gradient/state_{t}"].total) == pytest.approx(norm, rel=1e-12)
    assert "gradient/state_4" not in found


def test_exploding_gradients_are_seen():
    """Of an unstable loop s' = 3 s that earns s_n alone: discount^n 3^(n-t) at step t."""

    def step(rows, action, key):
        following, made = WORLD.step(rows, action, key)
        following = 3 * rows + 0 * following
        return following, made._replace(next_observation=following, reward=jnp.zeros(len(rows)))

    agent = lq.agent(by_action=lambda s, u: s)
    _, found = climbed(agent, WORLD._replace(step=step), ascent(6), lq.rows(), lq.state_of())
    first, last = (float(found[f"gradient/state_{t}"].total) for t in (0, 6))
    assert last == pytest.approx(lq.DISCOUNT**6, rel=1e-12) and first == pytest.approx((3 * lq.DISCOUNT) ** 6, rel=1e-12)


def test_sac_is_updated_by_the_slope_and_the_temperature_by_the_first_actions():
    agent, state = sac_agent()
    batch, how, world = lq.rows(count=6), ascent(2), lq.world(0.1)
    after, found = climbed(agent, world, how, batch, state)

    def loss(params):
        moved = state._replace(actor=state.actor._replace(params=params))
        earned, bonus = actor_objective(how, agent, world, moved, batch.observation)
        return -jnp.mean(earned), jnp.mean(bonus)

    (value, bonus), gradient = jax.device_get(jax.jit(jax.value_and_grad(loss, has_aux=True))(state.actor.params))
    after, found = jax.device_get((after, found))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12)
    jax.tree.map(lambda m, g: close(10 * m, g), after.actor.moments.mu, gradient)
    close(found["agent/actor_loss"].total, value)
    density = -bonus / 0.3
    close(found["agent/entropy"].total, -density)
    close(10 * after.log_temperature.moments.mu, -(density - 1.0))
    jax.tree.map(np.testing.assert_array_equal, after.critic, state.critic)


def test_what_a_model_makes_of_the_dead_reaches_no_gradient():
    """Where the episode is over the model has neither a value nor a derivative."""
    agent, state = sac_agent()
    wide = 0.5
    batch = lq.rows(seed=3, count=40)
    seen = np.asarray(batch.observation)
    seen = np.sign(seen) * (wide + np.abs(seen))
    sane = lq.world(ends=lambda s: jnp.abs(s[:, 0]) < wide)

    def step(broken, rows, action, key):
        _, made = sane.step(rows, action, key)
        apart = rows**2 - wide**2
        root = jnp.sqrt(jnp.where((apart < 0) & ~broken, 1.0, apart))
        following = made.next_observation + 0.1 * root
        ended = jnp.abs(following[:, 0]) < wide
        return following, made._replace(next_observation=following, reward=made.reward + root[:, 0], terminated=ended)

    @jax.jit
    def updated(broken, batch):
        world = sane._replace(step=functools.partial(step, broken))
        first = agent.policy_with_entropy(state).act((), batch.observation, jax.random.key(0))[0]
        return climbed(agent, world, ascent(3), batch, state), first

    batch = batch._replace(observation=seen)
    (after, found), first = updated(True, batch)
    norms = [float(found[f"gradient/state_{t}"].total) for t in range(4)]
    assert np.all(np.isfinite(norms)) and bool(after.actor.active)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-12), (after, found), updated(False, batch)[0])
    following = lq.A * seen + lq.B * np.asarray(first) + 0.1 * np.sqrt(seen**2 - wide**2)
    ended = np.abs(following) < wide
    assert 0 < ended.sum() < 40, "some rows end"


def test_a_living_row_that_is_not_finite_is_not_hidden():
    batch = lq.rows()
    broken = np.array(batch.observation)
    broken[2] = np.nan
    _, found = climbed(ACTIONS, WORLD, ascent(3), batch._replace(observation=broken), lq.state_of())
    assert all(not np.isfinite(float(found[f"agent/{name}"].total)) for name in ("actor_loss", "slope"))


@pytest.mark.promises
def test_computing_steps_again_gives_the_same_gradient_in_less_memory():
    agent, state = sac_agent()
    origin, held, seen = np.ones((2000, 1)), {}, {}
    for again in (True, False):
        how, world = ascent(30, rematerialize=again), lq.world(0.1)

        def earned(params, how=how, world=world):
            moved = state._replace(actor=state.actor._replace(params=params))
            return jnp.mean(actor_objective(how, agent, world, moved, origin)[0])

        compiled = jax.jit(jax.grad(earned)).lower(state.actor.params).compile()
        held[again] = compiled.memory_analysis().temp_size_in_bytes
        seen[again] = compiled(state.actor.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), seen[True], seen[False])
    assert held[True] < held[False] / 2, held
