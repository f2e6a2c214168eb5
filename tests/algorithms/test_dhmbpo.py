"""DHMBPO: its target and objective in closed form, what it learns on, its rounds, and that it learns."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import linear_quadratic as lq
import numpy as np
import pytest
from layers_in_numpy import transcribed
from one_step_targets import critic_target as own_target

from jaxmbrl import algorithms, envs
from jaxmbrl.agents.actor_critic import scaled_sac
from jaxmbrl.agents.actor_critic.scaled_sac import ScaledSACConfig
from jaxmbrl.algorithms.value_gradients import dhmbpo
from jaxmbrl.core.config import UserError, check
from jaxmbrl.core.types import Average, Clock, DynamicsModel, Transition, World
from jaxmbrl.models.normalizer import Normalizer
from jaxmbrl.rollout import step_keys
from jaxmbrl.training import loop

STEPS = 8
TINY = dhmbpo.Config(
    agent=ScaledSACConfig(hidden=(6,), critics=2, dropout=0.0),
    horizon=2,
    distribution_horizon=3,
    distribution_rows=5,
    distribution_every=4,
    distribution_capacity=100,
    iteration_steps=STEPS,
    first_updates=3,
    batch_size=7,
    replay_capacity=60,
    warmup_steps=2 * STEPS,
)
PENDULUM = envs.make("pendulum")


def telling():
    """A model that says how often it was fitted, and whose world adds 1 to the first entry at each step."""

    def world(fits):
        def step(observation, action, key):
            following = observation + jnp.array([1.0, 0.0, 0.0])
            none = jnp.zeros(observation.shape[0], bool)
            return following, Transition(observation, action, jnp.ones(none.shape), following, none, none)

        return World(reset=None, start=lambda origin, key: origin, observe=lambda rows: rows, step=step)

    def fit(fits, buffer, key):
        return fits + 1, {"model/rows": Average.of(buffer.size)}

    return DynamicsModel(init=lambda key, hyper: jnp.zeros((), jnp.int32), fit=fit, predict=None, world=world)


@functools.cache
def learning():
    algorithm = dhmbpo.make(TINY, PENDULUM, telling())
    return jax.jit(algorithm.init), jax.jit(algorithm.learn), algorithm


def collected(seed):
    """Transitions [STEPS, 1] whose first entry is a multiple of 1000, so that imagined states tell their origin."""
    rng = np.random.default_rng(seed)
    observation = rng.normal(size=(STEPS, 1, 3)).astype(np.float32)
    observation[..., 0] = 1000.0 * (seed + 1)
    none = np.zeros((STEPS, 1), bool)
    action = rng.uniform(-1, 1, (STEPS, 1, 1)).astype(np.float32)
    return Transition(observation, action, np.zeros((STEPS, 1), np.float32), observation, none, none)


def after(rounds):
    init, learn, algorithm = learning()
    assert algorithm.period == STEPS
    state, found = init(jax.random.key(0), {}), []
    for i in range(rounds):
        state, told = learn(Clock(np.asarray((i + 1) * STEPS, np.int32)), state, collected(i))
        found.append(told)
    return jax.device_get((state, found))


def test_nothing_is_learned_before_the_warm_up_is_over():
    state, found = after(1)
    assert int(state.model) == 0 and int(state.imagined.buffer.size) == 0 and int(state.replay.size) == STEPS
    assert all(float(x.weight) == 0 for x in found[0].values())
    np.testing.assert_array_equal(state.statistics.std, np.ones(3))


def test_the_first_round_has_more_updates_and_each_fits_once():
    state, found = after(3)
    assert int(state.model) == 2
    assert [float(told["agent/critic_loss"].weight) for told in found] == [0, 3 * STEPS, STEPS]
    assert [float(told["imagine/rows"].weight) for told in found] == [0, 3 * STEPS / 4, STEPS / 4]
    assert float(found[2]["model/rows"].total) == 3 * STEPS


def test_states_of_long_rollouts_are_stored_from_the_first_to_the_last_and_forgotten_at_each_fit():
    state, _ = after(3)
    buffer = state.imagined.buffer
    # One rollout for the critics alone and one before every fourth of the updates: of 5 rows, over 3 steps, 4 states each.
    assert int(buffer.size) == (1 + STEPS // 4) * 5 * 4
    first = np.asarray(buffer.data.observation)[: int(buffer.size), 0]
    np.testing.assert_array_equal(np.unique(first % 1000), [0, 1, 2, 3])
    assert set(np.unique(first // 1000)) <= {1, 2, 3}


def test_the_agent_sees_what_the_real_data_say():
    state, _ = after(3)
    seen = np.concatenate([collected(i).observation[:, 0] for i in range(3)])
    np.testing.assert_allclose(state.statistics.mean, seen.mean(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state.statistics.std, seen.std(axis=0), rtol=1e-5)
    algorithm, bare = learning()[2], scaled_sac.make(TINY.agent, 3, 1)

    @jax.jit
    def actions(state, observation, normalized, key):
        of_raw = algorithm.policy(state, loop.clock_at(0), False).act((), observation, key)[0]
        return of_raw, bare.policy(state.agent, False).act((), normalized, key)[0]

    observation = np.array([[1500.0, 0.3, -0.2]], np.float32)
    normalized = (observation - state.statistics.mean) / state.statistics.std
    np.testing.assert_array_equal(*actions(state, observation, normalized, jax.random.key(1)))


def test_adam_forgets_what_it_knew_of_actor_and_critics_at_each_fit():
    state, _ = after(3)
    alone = STEPS // 4
    assert int(state.agent.actor.moments.count) == STEPS
    assert int(state.agent.critic.moments.count) == STEPS + alone
    assert int(state.agent.log_temperature.moments.count) == 4 * STEPS


def lq_agent(**more):
    """An agent that takes what its critics and its actor are given for what they learn."""

    def update_critic(state, batch, key, *, target=None):
        return state, {"target": target, "rows": batch}, jnp.zeros(batch.reward.shape)

    return lq.agent(**more)._replace(update_critic=update_critic)


@functools.partial(jax.jit, static_argnums=0)
def target_of(horizon, observation, bonus):
    agent, state = lq_agent(bonus=bonus), lq.state_of()
    trajectory = dhmbpo.imagine(lq.world(), agent.policy_with_entropy(state), observation, jax.random.key(0), horizon)
    return dhmbpo.critic_target(agent, state, trajectory, jax.random.key(1))


@pytest.mark.parametrize("horizon", [1, 2, 5])
def test_with_an_exact_model_the_target_is_the_policys_value_at_every_horizon(x64, horizon):
    s = np.asarray(lq.rows().observation)
    found = target_of(horizon, s, 0.0)
    np.testing.assert_allclose(found, lq.action_value(s, lq.GAIN * s)[:, 0], rtol=1e-12)


def test_the_first_actions_bonus_is_in_the_actors_objective_and_not_in_the_target(x64):
    s = np.asarray(lq.rows().observation)
    later = 0.7 * sum(lq.DISCOUNT**t for t in range(1, 5))
    found = target_of(5, s, 0.7)
    np.testing.assert_allclose(found, lq.action_value(s, lq.GAIN * s)[:, 0] + later, rtol=1e-12)


@functools.cache
def scaled_agent():
    """An agent for one number, and a state whose bounds have moved."""
    agent = scaled_sac.make(TINY.agent, 1, 1)

    @jax.jit
    def init(key):
        return scaled_sac.update_bounds(TINY.agent, agent.init(key, {}), jnp.linspace(-3.0, 3.0, 50))

    return agent, init(jax.random.key(0))


def test_of_one_step_it_is_sacs_target_on_the_policys_actions(x64):
    agent, state = scaled_agent()
    ends = lq.world(ends=lambda s: s[:, 0] > 0.2)

    @jax.jit
    def targets(state, observation, key):
        trajectory = dhmbpo.imagine(ends, agent.policy_with_entropy(state), observation, jax.random.key(3), 1)
        step = jax.tree.map(lambda x: x[0], trajectory)
        rows = Transition(
            step.observation, step.action, step.reward, step.next_observation, step.terminated, step.terminated
        )
        found = dhmbpo.critic_target(agent, state, trajectory, key)
        return found, own_target(agent, state, rows, key), jnp.sum(step.terminated)

    found, due, ended = targets(state, lq.rows(count=20).observation, jax.random.key(4))
    assert 0 < ended < 20
    np.testing.assert_allclose(found, due, rtol=1e-12)


@pytest.mark.parametrize(("horizon", "slope"), [(1, -0.867620), (2, -0.995907)])
def test_its_actor_climbs_what_the_short_rollout_earns(x64, horizon, slope):
    """The closed form's gradient; with the exact value of actions n steps are those of n + 1 with that of states."""
    config, state, batch = dataclasses.replace(TINY, horizon=horizon), lq.state_of(), lq.rows()
    ones = batch._replace(observation=np.ones_like(batch.observation))
    learner = dhmbpo.with_short_horizon(config, lq_agent(), lq.world())
    _, found = jax.jit(learner.update_actor)(state, ones, jax.random.key(0))
    assert float(-found["agent/slope"].total) == pytest.approx(slope, abs=1e-6)


def ends(s):
    return s[:, 0] > 0.2


@functools.cache
def joint_update():
    """Two imagined steps of a task with an end; the bounds of the return follow fast, and the learning rate is large, so
    that the order of what an update changes shows. Returns (update, state)."""
    config = dataclasses.replace(TINY, agent=dataclasses.replace(TINY.agent, bounds_rate=0.5), horizon=2)
    agent, (_, state) = scaled_sac.make(config.agent, 1, 1), scaled_agent()
    rng = np.random.default_rng(5)

    def trained(part):
        # At first the last layer of the critics is 0, and no gradient reaches the others.
        params = jax.tree.map(lambda x: np.asarray(x) + 0.4 * rng.normal(size=x.shape), part.params)
        target = jax.tree.map(lambda x: 0.9 * x, params) if part.target else ()
        return part._replace(params=params, target=target, learning_rate=np.asarray(0.05))

    critic = trained(state.critic._replace(params={"network": state.critic.params["network"]}))
    bounds = np.tile([-30.0, 10.0], (2, 1))
    critic = critic._replace(params=critic.params | {"bounds": bounds}, target=critic.target | {"bounds": bounds})
    state = state._replace(actor=trained(state.actor), critic=critic, discount=np.asarray(0.9))
    return jax.jit(dhmbpo.with_short_horizon(config, agent, lq.world(ends=ends)).update), state


def test_no_real_action_teaches_the_critics(x64):
    """What they regress on are the batch's states with the policy's own actions."""
    update, state = joint_update()
    batch = jax.device_get(lq.rows(count=9))
    other = batch._replace(action=-batch.action, reward=batch.reward + 9, next_observation=batch.next_observation + 1)
    jax.tree.map(np.testing.assert_array_equal, *(update(state, b, jax.random.key(1))[0] for b in (batch, other)))


def sampled(actor, s, noise):
    """Actions and their log-density."""
    mean, raw = np.split(transcribed(actor, s, False), 2, axis=1)
    std = np.log1p(np.exp(raw)) + 1e-5
    a = np.tanh(mean + std * noise)
    return a, (-0.5 * noise**2 - np.log(std) - 0.5 * np.log(2 * np.pi) - np.log(1 - a**2))[:, 0]


def valued(network, bounds, s, a):
    """The values of both critics."""
    low, high = bounds
    each = [jax.tree.map(lambda x, i=i: x[i], network) for i in range(2)]
    raw = np.stack([transcribed(critic, np.concatenate([s, a], axis=1), True)[:, 0] for critic in each])
    return (high - low) / 2 * raw + (high + low) / 2


def walked(actor, temperature, s, noise):
    """Two steps: states, actions, rewards plus bonus, log-densities and who is alive, of each; then the last states."""
    steps, alive = [], np.ones(len(s), bool)
    for t in range(2):
        a, density = sampled(actor, s, noise[t])
        earned = -(s[:, 0] ** 2 + lq.COST * a[:, 0] ** 2) / 2 - temperature * density
        steps.append((s, a, earned, density, alive))
        s = lq.A * s + lq.B * a
        alive = alive & ~ends(s)
    return steps, s, alive


def slopes(function, params):
    """The gradient of `function` by differences."""
    leaves, form = jax.tree.flatten(params)
    found = [np.zeros(leaf.shape) for leaf in leaves]
    for i, leaf in enumerate(leaves):
        for place in np.ndindex(leaf.shape):
            sides = [np.array(leaf), np.array(leaf)]
            sides[0][place] += 1e-6
            sides[1][place] -= 1e-6
            up, down = (function(form.unflatten([*leaves[:i], side, *leaves[i + 1 :]])) for side in sides)
            found[i][place] = (up - down) / 2e-6
    return form.unflatten(found)


@jax.jit
def drawn(key):
    """The noise of both actions, of the action in the target, and of the last one of the actor."""
    imagine_key, critic_key, action_key, _ = jax.random.split(key, 4)
    acting = [step_keys(jax.random.split(imagine_key)[1], t)[0] for t in range(2)]
    value_key = jax.random.split(jax.random.split(critic_key)[0], 3)[0]
    return [jax.random.normal(key, (9, 1)) for key in (*acting, value_key, action_key)]


def test_critics_then_actor_learn_on_the_same_imagined_steps(x64):
    """The bounds follow what the living rows earn before the target is computed, the critics take their step, and the
    actor's gradient goes through the critics after it. Gradients are by differences."""
    (update, state), batch, key = joint_update(), jax.device_get(lq.rows(count=9)), jax.random.key(1)
    after, _, error = jax.device_get(update(state, batch, key))
    state, noise = jax.device_get((state, drawn(key)))
    actor, network, gamma = state.actor.params, state.critic.params["network"], state.discount
    temperature, close = np.exp(state.log_temperature.params), functools.partial(np.testing.assert_allclose, rtol=1e-5)

    steps, last, alive = walked(actor, temperature, batch.observation, noise)
    earned = np.concatenate([step[2][step[4]] for step in steps])
    assert 9 < earned.size < 18, "some rows end after their first step"
    bounds = np.array([-30.0, 10.0]) / 2 + np.quantile(earned, [0.01, 0.99]) / (1 - gamma) / 2
    for part in (after.critic.params, after.critic.target):
        close(part["bounds"], np.tile(bounds, (2, 1)))

    (s, a, first, density, _), (_, _, second, _, going_on) = steps
    then, of_then = sampled(actor, last, noise[2])
    least = valued(state.critic.target["network"], bounds, last, then).min(axis=0)
    value = np.clip(least, *bounds) - temperature * of_then
    # The bonus of the first action is not part of the target.
    target = first + temperature * density + gamma * going_on * second + gamma**2 * alive * value
    close(error, np.abs(valued(network, bounds, s, a) - target).mean(axis=0))

    by_network = slopes(lambda x: np.mean((valued(x, bounds, s, a) - target) ** 2, axis=1).sum(), network)
    same = functools.partial(jax.tree.map, functools.partial(close, atol=1e-6))
    same(jax.tree.map(lambda m: 10 * m, after.critic.moments.mu["network"]), by_network)
    # The first step of Adam.
    moved = jax.tree.map(lambda p, g: p - 0.05 * g / (np.abs(g) + 1e-8), network, by_network)
    same(after.critic.params["network"], moved)
    slow = jax.tree.map(lambda old, new: old + 0.005 * (new - old), state.critic.target["network"], moved)
    same(after.critic.target["network"], slow)

    def actors_loss(params):
        steps, last, alive = walked(params, temperature, batch.observation, noise)
        a, density = sampled(params, last, noise[3])
        value = valued(moved, bounds, last, a).mean(axis=0) - temperature * density
        return -np.mean(steps[0][2] + gamma * steps[1][4] * steps[1][2] + gamma**2 * alive * value)

    same(jax.tree.map(lambda m: 10 * m, after.actor.moments.mu), slopes(actors_loss, actor))
    # The target entropy is -1.
    close(10 * after.log_temperature.moments.mu, 1.0 - density.mean())


def test_seen_through_a_normaliser_an_agent_acts_and_learns_as_on_normalised_rows(x64):
    state, batch, key = scaled_agent()[1], jax.device_get(lq.rows()), jax.random.key(2)
    plain = batch._replace(
        observation=(batch.observation - 0.4) / 2.5, next_observation=(batch.next_observation - 0.4) / 2.5
    )

    @jax.jit
    def through(by, rows):
        agent = scaled_sac.make(TINY.agent, 1, 1, normalizer=by)
        values = (name(state, rows.next_observation, key) for name in (agent.target_value, agent.target_values))
        action = agent.policy_with_entropy(state).act((), rows.observation, key)[0]
        value = agent.action_value(state, rows.observation, rows.action, key)
        return agent.update(state, rows, key), *values, value, action

    some, none = (Normalizer(*np.array([[mean], [std], [-1e9], [1e9]])) for mean, std in ((0.4, 2.5), (0.0, 1.0)))
    found, due = jax.device_get((through(some, batch), through(none, plain)))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-12), found, due)
    assert not np.allclose(through(none, batch)[-1], due[-1])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_envs": 3}, "iteration_steps must be a multiple of num_envs"),
        ({"warmup_steps": 12}, "warmup_steps must be a multiple of iteration_steps"),
        ({"distribution_every": 3}, "distribution_every must divide a round's updates"),
    ],
)
def test_settings_are_checked(changes, told):
    with pytest.raises(UserError, match=told):
        check(dataclasses.replace(TINY, **changes))


def test_every_preset_is_sound():
    for preset in algorithms.get("dhmbpo").presets.values():
        assert check(preset.config) == preset.config
