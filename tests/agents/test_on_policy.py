"""On-policy learning: losses by hand, the policy gradient against closed forms, weights, statistics, bounds."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import linear_quadratic as lq
import numpy as np
import optax
import pytest

from jaxmbrl import returns
from jaxmbrl.agents import on_policy
from jaxmbrl.agents.on_policy import (
    LEAST_LOG_STD,
    Batch,
    PPOConfig,
    clipped_loss,
    descent_loss,
    in_minibatches,
    policy_gradient_loss,
    standardized,
    value_loss,
)
from jaxmbrl.core.spaces import Box, Discrete
from jaxmbrl.core.types import Average, Transition
from jaxmbrl.distributions import Categorical, Gaussian

ONES = jnp.ones(1)
NO_ROWS = Batch(jnp.zeros((1, 2)), ONES, ONES, ONES, ONES, ONES)


@pytest.mark.parametrize(
    ("ratio", "advantage", "objective", "slope"),
    [(1.5, 1.0, 1.2, 0.0), (1.5, -1.0, -1.5, -1.0), (0.5, 1.0, 0.5, 1.0), (0.5, -1.0, -0.8, 0.0)],
)
def test_the_clipped_objective_by_hand(ratio, advantage, objective, slope):
    loss, found = jax.value_and_grad(clipped_loss)(ratio * ONES, advantage * ONES, ONES, 0.2)
    assert float(-loss) == pytest.approx(objective)
    assert float(-found[0]) == slope


def test_rows_without_weight_do_not_count():
    weight = jnp.array([1.0, 0.0, 1.0])
    x = jnp.array([1.0, 50.0, 3.0])
    assert float(value_loss(x, jnp.zeros(3), weight)) == 2.5
    np.testing.assert_allclose(standardized(x, weight)[jnp.array([0, 2])], [-1.0, 1.0], rtol=1e-6)
    np.testing.assert_array_equal(standardized(jnp.full(3, 2.0), weight), np.zeros(3))
    assert float(policy_gradient_loss(x, jnp.ones(3), jnp.zeros(3))) == 0.0


def test_the_gradient_of_a_softmax_bandit():
    """Rewards 1 and 0 of two equally likely choices: gradient (.25, -.25); the variance of one sample is .0625 without a
    baseline and 0 with the baseline .5."""
    choices, rewards = jnp.arange(2), jnp.array([1.0, 0.0])

    def of_sample(logits, choice, advantage):
        log_probability = Categorical(logits[None]).log_probability(choice[None])
        return -policy_gradient_loss(log_probability, advantage[None], ONES)

    for baseline, variance in ((0.0, 0.0625), (0.5, 0.0)):
        samples = jax.vmap(jax.grad(of_sample), (None, 0, 0))(jnp.zeros(2), choices, rewards - baseline)
        np.testing.assert_allclose(jnp.mean(samples, axis=0), [0.25, -0.25], rtol=1e-6)
        np.testing.assert_allclose(jnp.var(samples, axis=0), [variance] * 2, atol=1e-7)


def test_the_variance_of_the_score_function_by_quadrature(x64):
    """Q = -(a - 1)^2, a ~ N(.3, .2^2): gradient 1.4; variance of a sample 13.5, with the baseline E Q 4.3, pathwise .16."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    weights /= weights.sum()
    actions = 0.3 + 0.2 * nodes
    values = -((actions - 1) ** 2)

    def of_sample(mean, action, advantage):
        gaussian = Gaussian(mean[None, None], jnp.log(0.2)[None])
        return -policy_gradient_loss(gaussian.log_probability(action[None, None]), advantage[None], jnp.ones(1))

    score = jax.jit(jax.vmap(jax.grad(of_sample), (None, 0, 0)))
    for baseline, variance in ((0.0, 13.5), (weights @ values, 4.3)):
        samples = np.asarray(score(jnp.asarray(0.3), actions, values - baseline))
        assert weights @ samples == pytest.approx(1.4, rel=1e-9)
        assert weights @ (samples - 1.4) ** 2 == pytest.approx(variance, abs=0.05)
    assert weights @ (-2 * (actions - 1) - 1.4) ** 2 == pytest.approx(0.16, rel=1e-9)


def test_the_policy_gradient_of_the_linear_quadratic_task():
    """dJ/dk from s_0 = 1 is -1.5285 (the derivative of the value's closed form with noise); the standard error of 50,000
    episodes is about 0.01."""
    rng, number, steps = np.random.default_rng(0), 50_000, 80
    state = np.ones(number, np.float32)
    states, actions, rewards = np.zeros((3, steps, number), np.float32)
    for t in range(steps):
        states[t] = state
        actions[t] = lq.GAIN * state + lq.ACTION_NOISE * rng.standard_normal(number, np.float32)
        rewards[t] = -(state**2 + lq.COST * actions[t] ** 2) / 2
        state = lq.A * state + lq.B * actions[t] + lq.STATE_NOISE * rng.standard_normal(number, np.float32)

    # An argument, because a large sum of what is broadcast in a program may be wrong (`core.xla`).
    weight = np.repeat(np.float32(lq.DISCOUNT) ** np.arange(steps, dtype=np.float32)[:, None], number, axis=1)

    @jax.jit
    def slope(states, actions, rewards, weight):
        never = jnp.zeros(rewards.shape, bool)
        along = jax.vmap(returns.advantages, (1, 1, 1, 1, 1, None, None), 1)
        baseline = jnp.broadcast_to(
            jnp.mean(along(rewards, never, never, 0 * rewards, 0 * rewards, lq.DISCOUNT, 1.0), axis=1)[:, None],
            rewards.shape,
        )
        following = jnp.concatenate([baseline[1:], 0 * baseline[:1]])
        advantage = along(rewards, never, never, baseline, following, lq.DISCOUNT, 1.0)

        def loss(gain):
            policy = Gaussian((gain * states).reshape(-1, 1), jnp.log(jnp.full(1, lq.ACTION_NOISE)))
            log_probability = policy.log_probability(actions.reshape(-1, 1))
            return policy_gradient_loss(log_probability, advantage.reshape(-1), weight.reshape(-1))

        return -jax.grad(loss)(lq.GAIN) * jnp.sum(weight) / number

    assert float(slope(states, actions, rewards, weight)) == pytest.approx(-1.5285, abs=0.035)


CONFIG = PPOConfig(
    hidden=(5,),
    epochs=1,
    minibatches=1,
    normalize_advantages=False,
    max_gradient_norm=1e6,
    learning_rate=0.1,
    gae_lambda=0.9,
)
T, N, O = 6, 3, 2  # noqa: E741


def trajectory(agent, state, seed=0):
    rng = np.random.default_rng(seed)
    observation, following = rng.normal(3.0, 2.0, (2, T, N, O)).astype(np.float32)
    keys = jax.random.split(jax.random.key(seed), T * N).reshape(T, N)
    action, raw, _ = jax.vmap(jax.vmap(lambda x, key: agent.policy(state, True).act((), x, key)))(observation, keys)
    reward = rng.normal(size=(T, N)).astype(np.float32)
    ends = rng.random((2, T, N)) < 0.2
    return Transition(*map(jnp.asarray, (observation, action, reward, following, *ends, raw)))


@pytest.mark.parametrize("action", [Box((2,)), Discrete(3)], ids=["vectors", "choices"])
def test_one_epoch_of_one_minibatch_has_the_gradient_of_a2c(action):
    """By plain gradient descent, so that steps are gradients; on a trajectory with ends of both kinds."""
    agent = on_policy.make(CONFIG, O, action, optax.identity())

    @jax.jit
    def both(key):
        state = agent.init(key, {}, N)
        rows = trajectory(agent, state)
        by_ppo, found = on_policy.update(agent, CONFIG, state, rows, key)

        def policy_loss(distribution, rows):
            return policy_gradient_loss(distribution.log_probability(rows.raw), rows.advantage, rows.weight), {}

        loss = descent_loss(agent, CONFIG, policy_loss)
        by_a2c, _ = agent.descend(state, agent.estimate(state, rows), loss, CONFIG.max_gradient_norm)
        return state, by_ppo, by_a2c, found

    state, by_ppo, by_a2c, found = both(jax.random.key(0))
    assert float(found["agent/clip_fraction"].total) == float(found["agent/divergence"].total) == 0.0
    for part in ("actor", "critic"):
        one, other, first = (jax.tree.leaves(getattr(x, part).params) for x in (by_ppo, by_a2c, state))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one, other)
        assert all((a != b).any() for a, b in zip(one, first, strict=True))


def test_probabilities_are_those_of_actions_before_clipping(x64):
    """Two epochs of PPO by plain gradient descent, against a linear Gaussian policy written out in NumPy, on rows of which
    the task received many actions at a bound, and each of which ends its episode: A = r - V(s)."""
    config = dataclasses.replace(
        CONFIG, hidden=(), epochs=2, clip=0.05, normalize_observations=False, normalize_rewards=False, value_weight=0.0
    )
    agent = on_policy.make(config, O, Box((2,)), optax.identity())
    rng = np.random.default_rng(3)
    seen, raw, reward = rng.normal(size=(T, N, O)), 1.5 * rng.normal(size=(T, N, 2)), rng.normal(size=(T, N))
    received, ended = np.clip(raw, -1, 1), np.ones((T, N), bool)
    assert 10 < np.sum(raw != received) < 30
    rows = Transition(seen, received, reward, seen, ended, ~ended, raw)

    @jax.jit
    def updated(key, rows):
        state = agent.init(key, {}, N)
        after, found = on_policy.update(agent, config, state, rows, key)
        return state, agent.estimate(state, rows), after, found

    before, estimate, after, found = jax.device_get(updated(jax.random.key(0), rows))
    kernel, bias = (before.actor.params.network["params"]["Dense_0"][name] for name in ("kernel", "bias"))
    value = before.critic.params["params"]["Dense_0"]
    log_std, s, u = before.actor.params.log_std, seen.reshape(-1, O), raw.reshape(-1, 2)
    advantage = reward.ravel() - (s @ value["kernel"] + value["bias"])[:, 0]

    def scores():
        z = (u - s @ kernel - bias) / np.exp(log_std)
        return z, np.sum(-0.5 * z**2 - log_std - 0.5 * np.log(2 * np.pi), axis=1)

    _, old = scores()
    np.testing.assert_allclose(estimate.log_probability, old, rtol=1e-9)
    np.testing.assert_array_equal(estimate.raw, u)
    beyond = 0
    for _ in range(2):
        z, new = scores()
        ratio = np.exp(new - old)
        kept = ratio * advantage <= np.clip(ratio, 0.95, 1.05) * advantage
        beyond += np.mean(np.abs(ratio - 1) > 0.05)
        pull = (kept * ratio * advantage)[:, None] / len(u)
        by_mean = pull * z / np.exp(log_std)
        kernel, bias = kernel + 0.1 * s.T @ by_mean, bias + 0.1 * by_mean.sum(axis=0)
        log_std = log_std + 0.1 * np.sum(pull * (z**2 - 1), axis=0)
    np.testing.assert_allclose(found["agent/clip_fraction"].total, beyond, rtol=1e-9)
    assert beyond > 0.2
    close = functools.partial(np.testing.assert_allclose, rtol=1e-8)
    close(after.actor.params.network["params"]["Dense_0"]["kernel"], kernel)
    close(after.actor.params.network["params"]["Dense_0"]["bias"], bias)
    close(after.actor.params.log_std, log_std)


def test_what_follows_an_imagined_termination_is_ignored():
    """Rows of weight 0 that are not finite: the update is that of other numbers there, bit for bit."""
    agent = on_policy.make(CONFIG, O, Box((2,)), on_policy.adam())
    weight = jnp.ones((T, N)).at[4:, 1].set(0.0)

    @jax.jit
    def update(key, junk):
        state = agent.init(key, {}, N)
        rows = trajectory(agent, state)
        rows = rows._replace(terminated=rows.terminated.at[3, 1].set(True))
        dead = rows._replace(
            observation=rows.observation.at[4:, 1].set(junk),
            next_observation=rows.next_observation.at[3:, 1].set(junk),
            reward=rows.reward.at[4:, 1].set(junk),
        )
        return on_policy.update(agent, CONFIG, state, dead, key, weight)

    some, nan = (update(jax.random.key(0), junk) for junk in (3.0, np.nan))
    jax.tree.map(np.testing.assert_array_equal, (some[0].actor.params, some[1]), (nan[0].actor.params, nan[1]))
    assert bool(nan[0].actor.active) and np.isfinite(jax.tree.leaves(nan[0].actor.params)[0]).all()


def test_the_log_standard_deviation_has_a_lower_bound():
    agent = on_policy.make(dataclasses.replace(CONFIG, first_log_std=-4.9), O, Box((2,)), optax.identity())

    def loss(actor, critic, rows):
        return 10 * jnp.sum(actor.log_std) + 0 * jnp.sum(jax.tree.leaves(critic)[0]), {}

    state, _ = jax.jit(lambda key: agent.descend(agent.init(key, {}), NO_ROWS, loss, 1e6))(jax.random.key(0))
    np.testing.assert_array_equal(state.actor.params.log_std, np.full(2, LEAST_LOG_STD, np.float32))


def test_a_gradient_is_clipped_by_the_norm_of_both_networks_and_refused_if_it_is_not_finite():
    agent = on_policy.make(dataclasses.replace(CONFIG, learning_rate=1.0, hidden=()), O, Box((1,)), optax.identity())

    def loss(factor):
        return lambda actor, critic, rows: (
            factor * (3 * jnp.sum(actor.log_std) + 4 * critic["params"]["Dense_0"]["bias"][0]),
            {},
        )

    @jax.jit
    def steps(key):
        state = agent.init(key, {})
        return state, agent.descend(state, NO_ROWS, loss(1.0), 0.5), agent.descend(state, NO_ROWS, loss(jnp.nan), 0.5)

    first, (state, found), (refused, _) = steps(jax.random.key(0))
    assert float(found["agent/gradient_norm"].total) == pytest.approx(5.0)
    np.testing.assert_allclose(state.actor.params.log_std, [-0.3], rtol=1e-6)
    np.testing.assert_allclose(state.critic.params["params"]["Dense_0"]["bias"], [-0.4], rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, refused.actor.params, first.actor.params)
    assert not bool(refused.actor.active) and not bool(refused.critic.active)


def test_returns_are_measured_by_environment_across_updates(x64):
    agent = on_policy.make(dataclasses.replace(CONFIG, discount=0.9), O, Box((1,)), optax.identity())

    @jax.jit
    def measured(key):
        state = agent.init(key, {}, N)
        parts = [trajectory(agent, state, seed) for seed in (0, 1)]
        state = agent.measure_returns(agent.measure_returns(state, parts[0]), parts[1])
        return parts, agent.measure_observations(state, parts[1])

    parts, state = measured(jax.random.key(0))
    totals, total = [], np.zeros(N)
    for part in parts:
        for reward, ended in zip(part.reward, part.terminated | part.truncated, strict=True):
            total = 0.9 * total + np.asarray(reward, np.float64)
            totals.append(total)
            total = np.where(ended, 0.0, total)
    np.testing.assert_allclose(state.running_return, total, rtol=1e-5)
    np.testing.assert_allclose(state.returns.normalizer.std, np.std(totals), rtol=1e-5)
    np.testing.assert_allclose(state.observations.normalizer.mean, parts[1].observation.mean((0, 1)), rtol=1e-5)


@pytest.mark.parametrize("rows", [20, 100])
def test_minibatches_that_do_not_divide_the_rows_are_refused(rows):
    config = PPOConfig(hidden=(4,), minibatches=32)
    agent = on_policy.make(config, 2, Box((1,)), on_policy.adam())
    zero = jax.ShapeDtypeStruct((rows, 1), float)
    seen, never = jax.ShapeDtypeStruct((rows, 1, 2), float), jax.ShapeDtypeStruct((rows, 1), bool)
    action = jax.ShapeDtypeStruct((rows, 1, 1), float)
    trajectory = Transition(seen, action, zero, seen, never, never, action)
    state = jax.eval_shape(lambda key: agent.init(key, {}), jax.random.key(0))
    with pytest.raises(ValueError, match=rf"^minibatches \(32\) must divide the rows of an update \({rows}\)$"):
        on_policy.update(agent, config, state, trajectory, jax.random.key(0))


def test_minibatches_cover_each_pass_once():
    def step(counts, rows):
        return counts.at[rows].add(1), {"sum": Average.of(jnp.sum(rows))}

    counts, found = jax.jit(lambda key: in_minibatches(step, jnp.zeros(12, int), jnp.arange(12), key, 3, 4))(
        jax.random.key(0)
    )
    np.testing.assert_array_equal(counts, np.full(12, 3))
    assert (float(found["sum"].total), float(found["sum"].weight)) == (3 * 66, 9)
    # Two rows of each pass are left out.
    counts, _ = jax.jit(lambda key: in_minibatches(step, jnp.zeros(12, int), jnp.arange(12), key, 3, 5))(jax.random.key(0))
    assert int(counts.sum()) == 30 and int(counts.max()) <= 3


def test_the_logits_of_choices_are_those_of_the_policy():
    """Their softmax has the frequencies of sampled choices; a policy of vectors has none."""
    agent = on_policy.make(PPOConfig(hidden=(4,)), 2, Discrete(3), on_policy.adam())

    @jax.jit
    def run():
        state = agent.init(jax.random.key(0), {})
        # The last layer begins near 0.
        params = jax.tree.map(lambda x: 3 * x + 0.3, state.actor.params)
        state = state._replace(actor=state.actor._replace(params=params))
        seen, keys = jnp.array([0.5, -2.0]), jax.random.split(jax.random.key(1), 4000)
        chosen = jax.vmap(lambda key: agent.policy(state, True).act((), seen, key)[0])(keys)
        return jax.nn.softmax(agent.views(state).logits(seen)), jnp.bincount(chosen, length=3) / 4000

    probability, share = run()
    np.testing.assert_allclose(share, probability, atol=0.03)
    vectors = on_policy.make(PPOConfig(hidden=(4,)), 2, Box((1,), -1.0, 1.0), on_policy.adam())
    assert vectors.views(vectors.init(jax.random.key(0), {})).logits is None
