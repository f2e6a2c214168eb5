"""SVG: re-created steps on the linear-quadratic problem and against the backward recursion, weights, and that it learns."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import linear_quadratic as lq
import numpy as np
import pytest

from jaxmbrl import algorithms, envs
from jaxmbrl.agents.actor_critic import sac, value_gradients
from jaxmbrl.agents.actor_critic.sac import SACConfig
from jaxmbrl.agents.actor_critic.value_gradients import ValueGradientConfig
from jaxmbrl.algorithms.value_gradients import svg
from jaxmbrl.core.config import UserError, check
from jaxmbrl.core.types import Transition
from jaxmbrl.data import replay
from jaxmbrl.models.imagination import imagine
from jaxmbrl.training import loop

SAC = SACConfig(hidden=(7,), initial_temperature=0.3)
TINY = svg.Config(
    agent=SACConfig(hidden=(8,)),
    batch_size=4,
    warmup_steps=6,
    refit_every=50,
    replay_capacity=60,
    horizon=1,
    noise="inferred",
)


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def rows_of(s, u, reward, following, terminated=None, extras=()):
    """Transitions [T, B] of arrays [T, B]."""
    none = np.zeros(s.shape, bool)
    numbers = (s[..., None], u[..., None], reward, following[..., None])
    return Transition(*map(jnp.asarray, numbers), none if terminated is None else terminated, none, extras)


def played(start, action_noise, state_noise):
    """Trajectories of the task by noise [T, B], in NumPy."""
    s, found = np.array(start), []
    for eta, xi in zip(action_noise, state_noise, strict=True):
        u = lq.GAIN * s + lq.ACTION_NOISE * eta
        following = lq.A * s + lq.B * u + lq.STATE_NOISE * xi
        found.append((s, u, -(s**2 + lq.COST * u**2) / 2, following))
        s = following
    return rows_of(*(np.stack(x) for x in zip(*found, strict=True)))


def again(gain, std, observation, row):
    """`svg.NoiseConditionedPolicy` of the linear policy."""
    return svg.reparameterize_given(row.action, gain * observation, std * jnp.ones_like(observation)), jnp.zeros(
        len(observation)
    )


@jax.jit
@functools.partial(jax.value_and_grad, has_aux=True)
def whole(gain, rows, noise):
    """SVG(infinity)'s objective, the mean over rows of the rewards of re-created trajectories, with nothing after them."""
    predict = functools.partial(lq.model(noise=noise).predict, ())
    trajectory = svg.reconstruct_rollout(functools.partial(again, gain, lq.ACTION_NOISE), predict, None, rows)
    earned = trajectory.n_step_returns(jnp.zeros(rows.reward.shape[1]), jnp.asarray(lq.DISCOUNT))[0]
    return jnp.mean(earned), trajectory


@pytest.mark.parametrize(("steps", "expected"), [(10, -1.100617), (60, -1.107633)])
def test_without_noise_svg_infinity_is_the_closed_forms_gradient(steps, expected):
    none = np.zeros((steps, 5))
    _, slope = whole(lq.GAIN, played(np.ones(5), none, none), lq.STATE_NOISE)
    assert float(slope) == pytest.approx(expected, abs=1e-6)


def test_with_noise_svg_infinity_is_on_average_the_closed_forms_gradient():
    """What is earned is quadratic in the noise, so the mean over the points +-sqrt(2T) along each axis of the noise is the
    expectation itself."""
    steps = 330
    axes = np.eye(2 * steps) * np.sqrt(2 * steps)
    noise = np.concatenate([axes, -axes]).T.reshape(2, steps, -1)
    (earned, _), slope = whole(lq.GAIN, played(np.ones(noise.shape[2]), *noise), lq.STATE_NOISE)
    assert float(earned) == pytest.approx(-1.351581, abs=1e-6)
    assert float(slope) == pytest.approx(-1.528534, abs=1e-6)


def test_what_is_recreated_is_what_was():
    """Also by another policy and a model that is wrong."""
    rng = np.random.default_rng(0)
    rows = played(rng.normal(size=5), *rng.normal(size=(2, 10, 5)))
    for noise in (0.7, 0.0):
        (_, trajectory), _ = whole(0.9, rows, noise)
        for found, real in zip(trajectory, (*rows[:3], None, rows.terminated, rows.next_observation), strict=True):
            if real is not None:
                np.testing.assert_allclose(found, real, rtol=1e-12, atol=1e-14)


def test_svg_infinity_is_the_backward_recursion():
    """v_s and v_theta from the end to the beginning (arXiv 1510.09142, equations 9 and 10), where policy and model have
    deviations that depend on the state, for theta = (gain, log deviation)."""
    rng = np.random.default_rng(1)
    steps, theta, discount = 7, np.array([-0.4, -1.0]), lq.DISCOUNT
    s, u, following = (rng.normal(size=(steps, 1)) for _ in range(3))
    s[1:] = following[:-1]
    rows = rows_of(s, u, rng.normal(size=s.shape), following)

    def model_std(s, u):
        return 0.3 * np.exp(0.2 * s - 0.3 * u)

    def policy_std(s, log_std):
        return np.exp(log_std + 0.1 * s)

    v_s, v_theta = 0.0, np.zeros(2)
    for t in reversed(range(steps)):
        s_t, u_t = s[t, 0], u[t, 0]
        by_eta, by_xi = policy_std(s_t, theta[1]), model_std(s_t, u_t)
        eta = (u_t - theta[0] * s_t) / by_eta
        xi = (following[t, 0] - lq.A * s_t - lq.B * u_t) / by_xi
        pi_s, pi_theta = theta[0] + 0.1 * by_eta * eta, np.array([s_t, by_eta * eta])
        f_s, f_u = lq.A + 0.2 * by_xi * xi, lq.B - 0.3 * by_xi * xi
        r_s, r_u = -s_t, -lq.COST * u_t
        v_theta = r_u * pi_theta + discount * (v_s * f_u * pi_theta + v_theta)
        v_s = r_s + r_u * pi_s + discount * v_s * (f_s + f_u * pi_s)

    def act(theta, observation, row):
        std = jnp.exp(theta[1] + 0.1 * observation)
        return svg.reparameterize_given(row.action, theta[0] * observation, std), jnp.zeros(1)

    def predict(observation, action):
        mean, variance = lq.model().predict((), observation, action)
        return mean, variance.at[0, :, 0].set((0.3 * jnp.exp(0.2 * observation - 0.3 * action))[:, 0] ** 2)

    def earned(theta):
        trajectory = svg.reconstruct_rollout(functools.partial(act, theta), predict, None, rows)
        return trajectory.n_step_returns(jnp.zeros(1), jnp.asarray(discount))[0, 0]

    value, slope = jax.jit(jax.value_and_grad(earned))(theta)
    assert float(value) == pytest.approx(float(np.sum(discount ** np.arange(steps) * rows.reward[:, 0])), rel=1e-12)
    np.testing.assert_allclose(slope, v_theta, rtol=1e-10)


def test_in_the_true_simulator_it_is_backpropagation_through_time():
    rng = np.random.default_rng(2)
    start, (eta, xi) = rng.normal(size=5), rng.normal(size=(2, 10, 5))

    def earned(gain):
        s, total = start, 0.0
        for t in range(10):
            u = gain * s + lq.ACTION_NOISE * eta[t]
            total += lq.DISCOUNT**t * -(s**2 + lq.COST * u**2) / 2
            s = lq.A * s + lq.B * u + lq.STATE_NOISE * xi[t]
        return jnp.mean(total)

    _, slope = whole(lq.GAIN, played(start, eta, xi), lq.STATE_NOISE)
    assert float(slope) == pytest.approx(float(jax.jit(jax.grad(earned))(lq.GAIN)), rel=1e-12)


def test_a_known_reward_keeps_its_real_value_and_its_own_slope():
    rows = lq.rows(count=4)
    steps = jax.tree.map(lambda x: np.asarray(x)[None], rows)

    def predict(observation, action):
        mean, variance = lq.model(noise=0.1).predict((), observation, action)
        return mean[..., :1], variance[..., :1]

    def known(observation, action, following):
        return 3 * action[:, 0] + following[:, 0] + 100

    def earned(gain):
        return svg.reconstruct_rollout(functools.partial(again, gain, 0.2), predict, known, steps).reward[0]

    value, slope = jax.jit(lambda gain: (earned(gain), jax.jacobian(earned)(gain)))(0.3)
    np.testing.assert_allclose(value, rows.reward, rtol=1e-12)
    # The action moves by s, and the next state by B times that.
    np.testing.assert_allclose(slope, (3 + lq.B) * np.asarray(rows.observation[:, 0]), rtol=1e-12)


@functools.cache
def sac_agent():
    agent = sac.make(SAC, 1, 1)
    return agent, sac.functions(SAC, 1), jax.jit(agent.init)(jax.random.key(1), {})


@functools.cache
def drawn(seed=0):
    """Six real steps of SAC's own policy on the noisy task, with how they were drawn."""
    origin = np.random.default_rng(seed).normal(size=(6, 1))
    return jax.device_get(stepped(sac_agent()[2], origin, jax.random.key(seed), jax.random.key(seed + 1)))


@jax.jit
def stepped(state, origin, action_key, key):
    action, extras, _ = svg.explorer(sac_agent()[1], state).act((), origin, action_key)
    _, made = lq.world(lq.STATE_NOISE).step(origin, action, key)
    return made._replace(extras=extras)


def drawn_when(times, seed=0):
    """The same, of which the density was so many times smaller than that of now."""
    rows = drawn(seed)
    return rows._replace(extras=rows.extras._replace(log_density=rows.extras.log_density - np.log(times)))


def alone(rows):
    """Windows of one step."""
    count = len(rows.reward)
    return svg.Windows(jax.tree.map(lambda x: np.asarray(x)[None], rows), np.ones((1, count)), np.ones(count))


@jax.jit
def replayed_update(state, batch, key):
    """(updated state, metrics, importance weights) where the noise of the steps is inferred."""
    agent, parts, _ = sac_agent()
    predict = functools.partial(lq.model(noise=lq.STATE_NOISE).predict, ())
    learner = svg.with_inferred_noise(agent, parts, predict, None, 5.0)
    return *learner.update_actor(state, batch, key), svg.importance(parts, state, batch, 5.0)


def test_on_its_own_actions_every_weight_is_1_and_replayed_steps_are_imagined_ones():
    """Where the noise is inferred from a step that the model made, SVG(1) is one imagined step."""
    agent, _, state = sac_agent()
    key, how = jax.random.key(2), ValueGradientConfig(1, entropy_at_every_step=True, rematerialize=False)
    real, world = lq.rows(count=6), lq.world(lq.STATE_NOISE)

    @jax.jit
    def by_imagining(state, key):
        around = value_gradients.perturbed(world, real.observation, jnp.zeros((2, 6, 1)))
        steps = imagine(around, agent.policy_with_entropy(state), real.observation, jax.random.split(key, 3)[0], 1)
        step = jax.tree.map(lambda x: x[0], steps)
        made = real._replace(
            action=step.action,
            reward=step.reward,
            next_observation=step.next_observation,
            terminated=step.terminated,
            extras=svg.BehaviorAction(jnp.arctanh(step.action), -step.entropy_bonus / 0.3),
        )
        return made, *value_gradients.with_value_gradient(agent, world, how).update_actor(state, made, key)

    made, imagined, told = by_imagining(state, key)
    replayed, found, weight = replayed_update(state, alone(made), key)
    np.testing.assert_allclose(weight, 1.0, rtol=1e-9)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-7, atol=1e-12)
    jax.tree.map(close, replayed.actor.moments, imagined.actor.moments)
    close(found["agent/actor_loss"].total, told["agent/actor_loss"].total)
    close(found["svg/weight"].total, 1.0)


def test_weights_are_the_ratio_of_densities_up_to_their_cap():
    rows = drawn_when([1.0, 2.0, 10.0, 0.5, 1 / 40, 4.0])
    _, _, weight = replayed_update(sac_agent()[2], alone(rows), jax.random.key(0))
    np.testing.assert_allclose(weight, [1.0, 2.0, 5.0, 0.5, 1 / 40, 4.0], rtol=1e-9)


def test_the_update_descends_the_weighed_mean_and_the_weight_is_a_constant():
    state, key = sac_agent()[2], jax.random.key(3)
    ratio = np.array([0.25, 1.0, 2.0, 0.5, 4.0, 6.0])
    weight = np.minimum(ratio, 5.0)
    # After an end the fresh action, which differs from row to row, does not count.
    rows, past = (x._replace(terminated=np.ones(6, bool)) for x in (drawn(), drawn_when(ratio)))

    def slope(rows):
        return jax.device_get(replayed_update(state, alone(rows), key)[0].actor.moments.mu)

    each = [slope(jax.tree.map(lambda x, i=i: np.repeat(x[i : i + 1], 6, axis=0), rows)) for i in range(6)]
    expected = jax.tree.map(lambda *g: sum(w * x for w, x in zip(weight, g, strict=True)) / 6, *each)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-7, atol=1e-12)
    jax.tree.map(close, slope(past), expected)
    _, found, _ = replayed_update(state, alone(past), key)
    close(found["svg/weight"].total, weight.mean())
    close(found["svg/weights_capped"].total, 1 / 6)


def test_windows_end_with_the_episode_and_do_not_count_where_the_clock_cut_them():
    """Two environments side by side: of the first the fourth step ends the episode, of the second the clock does."""
    steps = np.repeat(np.arange(8), 2)
    second = np.tile([False, True], 8)
    terminated, truncated = (steps == 3) & ~second, (steps == 3) & second
    s = (steps + 100.0 * second)[:, None]
    extras = svg.BehaviorAction(s, s[:, 0])
    config = dataclasses.replace(TINY, horizon=3, num_envs=2, batch_size=200)

    @jax.jit
    def windows(rows, key):
        buffer = replay.add(replay.init(jax.tree.map(lambda x: x[0], rows), 40), rows)
        return svg.windows(config, buffer, key)

    rows = Transition(s, s, s[:, 0], s + 1, terminated, truncated, extras)
    found = jax.device_get(windows(rows, jax.random.key(0)))
    first = found.rows.observation[0, :, 0]
    begun, other = first % 100, first >= 100
    assert set(begun) == set(range(6)) and 0 < other.sum() < 200
    np.testing.assert_array_equal(found.rows.observation[:, :, 0], first + np.arange(3)[:, None])
    # Windows from 4 on do not meet the end at 3, and those from 1 meet it in their last row.
    np.testing.assert_array_equal(found.whole, np.where(other & np.isin(begun, [2, 3]), 0.0, 1.0))
    counts = np.ones((3, 200))
    counts[2, ~other & (begun == 2)] = 0.0
    counts[1:, ~other & (begun == 3)] = 0.0
    np.testing.assert_array_equal(found.counts, counts)


def test_a_windows_weight_is_the_product_and_what_does_not_count_moves_nothing():
    state, key = sac_agent()[2], jax.random.key(5)
    times = np.array([[2.0, 0.5], [3.0, 0.25], [0.5, 7.0]])
    rows = jax.tree.map(lambda x: x.reshape(3, 2, *x.shape[1:]), drawn_when(times.flatten()))
    rows = rows._replace(terminated=np.array([[False, False], [False, True], [False, False]]))
    batch = svg.Windows(rows, np.array([[1.0, 1.0], [1.0, 1.0], [1.0, 0.0]]), np.array([0.0, 1.0]))

    def changed(x, y):
        x = x.copy()
        x[:, 0], x[2, 1] = y[:3], y[5]
        return x

    others = batch._replace(rows=jax.tree.map(changed, rows, drawn(9)))
    (a, _, weight), (b, _, _) = (replayed_update(state, x, key) for x in (batch, others))
    np.testing.assert_allclose(weight, [3.0, 0.125], rtol=1e-9)
    a, b = jax.device_get((a.actor.moments.mu, b.actor.moments.mu))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-14), a, b)
    assert max(float(np.abs(x).max()) for x in jax.tree.leaves(a)) > 1e-4


def test_how_actions_were_drawn_is_stored_and_actions_from_a_file_count_as_uniform():
    rows = jax.tree.map(lambda x: x.reshape(3, 2, *x.shape[1:]), drawn())
    stored = jax.jit(svg.with_behavior)(rows)
    np.testing.assert_array_equal(stored.extras.pre_tanh, drawn().extras.pre_tanh)
    np.testing.assert_array_equal(stored.extras.log_density, drawn().extras.log_density)
    np.testing.assert_array_equal(stored.action, drawn().action)
    uniform = np.linspace(-1.0, 1.0, 6).reshape(3, 2, 1)
    stored = jax.jit(svg.with_behavior)(rows._replace(action=uniform, extras=()))
    np.testing.assert_allclose(np.tanh(stored.extras.pre_tanh), uniform.reshape(6, 1), atol=2e-6)
    np.testing.assert_allclose(stored.extras.log_density, np.log(0.5), rtol=1e-12)
    assert np.all(np.isfinite(stored.extras.pre_tanh))


def test_the_explorer_acts_as_sac_does():
    agent, parts, state = sac_agent()

    @jax.jit
    def acted(state, key):
        policies = svg.explorer(parts, state), agent.policy_with_entropy(state)
        return [policy.act((), lq.rows().observation, key)[:2] for policy in policies]

    (action, extras), (judged, bonus) = jax.device_get(acted(state, jax.random.key(4)))
    np.testing.assert_allclose(action, judged, rtol=1e-12)
    np.testing.assert_allclose(-0.3 * extras.log_density, bonus, rtol=1e-12)


def test_what_is_stored_tells_how_it_was_drawn():
    """Through the loop, first at random and then by the policy."""
    with jax.enable_x64(False):
        task = envs.make("pendulum")
        config = dataclasses.replace(TINY, agent=SACConfig(hidden=()), warmup_steps=12)
        fixed = lq.model()._replace(
            init=lambda key, hyper: jnp.zeros(()),
            fit=lambda state, buffer, key: (state, {}),
            predict=lambda state, observation, action: 2 * [jnp.ones((1, len(action), 4))],
        )
        algorithm = svg.make(config, task, fixed)
        program = loop.make(algorithm, task, config)
        steps = jnp.asarray(20, jnp.int32)
        _, state = jax.jit(lambda seeds: program.run(loop.clock_at(0), program.init(seeds, {}), steps))(np.arange(1))
        rows = jax.tree.map(lambda x: np.asarray(x)[0, :20], state.algorithm.replay.data)
        np.testing.assert_allclose(np.tanh(rows.extras.pre_tanh), rows.action, atol=1e-5)
        uniform = np.isclose(rows.extras.log_density, -np.log(2), atol=1e-6)
        assert uniform[:12].all() and not uniform[12:].any()
        assert int(state.algorithm.agent.actor.moments.count[0]) == 9
        assert int(state.fault.what[0]) == -1


def test_what_is_wrong_is_told():
    with pytest.raises(UserError, match="horizon must be at least 1 if noise is inferred"):
        check(dataclasses.replace(TINY, horizon=0))
    with pytest.raises(UserError, match="refit_every must be a multiple of num_envs"):
        check(dataclasses.replace(TINY, num_envs=3))


def test_presets_are_sound():
    for name, preset in algorithms.get("svg").presets.items():
        check(preset.config)
        for task in preset.tasks:
            assert algorithms.preset("svg", task)[0] == name
