"""AutoMBPO's controller: advantages and losses by hand, and that it learns to schedule a ratio of a toy problem."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl.scheduling.controller import Controller, ControllerConfig, Decisions, advantages, rewards_to_go

T, RUNS, STAGES = 24, 10, 20
FIRST, AIM, STEP = np.log(0.05), np.log(0.5), np.log(1.2)


def test_rewards_to_go_by_hand():
    """Seven decisions without a fit at a price of 0.1, the first with one, and a return above the baseline at the end."""
    rewards = np.array([-0.05, *[0.05] * 6, 1.05], np.float32)
    found = rewards_to_go(jnp.asarray(rewards))
    np.testing.assert_allclose(found, [1.3, 1.35, 1.3, 1.25, 1.2, 1.15, 1.1, 1.05], rtol=1e-6)
    np.testing.assert_array_equal(advantages(jnp.asarray(rewards)[None])[0], found)


def test_the_mean_of_each_decision_number_is_subtracted():
    rewards = np.random.default_rng(0).normal(size=(5, 7))
    to_go = np.array([[row[t:].sum() for t in range(7)] for row in rewards])
    np.testing.assert_allclose(advantages(jnp.asarray(rewards, jnp.float32)), to_go - to_go.mean(axis=0), atol=1e-5)


@pytest.mark.parametrize("runs", [2, 3])
def test_the_expected_gradient_is_less_by_the_share_of_the_own_trajectory(runs):
    """One decision of two choices with rewards 1 and 3: the sum over all outcomes of their probabilities."""
    probability, reward = np.array([0.3, 0.7]), np.array([1.0, 3.0])
    score = 1 - probability[1], -probability[1]
    plain = sum(p * r * s for p, r, s in zip(probability, reward, score[::-1], strict=True))
    found = 0.0
    for outcome in itertools.product((0, 1), repeat=runs):
        chosen = np.array(outcome)
        advantage = np.asarray(advantages(jnp.asarray(reward[chosen], jnp.float32)[:, None]))[:, 0]
        found += np.prod(probability[chosen]) * np.mean(advantage * np.where(chosen == 1, score[0], score[1]))
    np.testing.assert_allclose(plain, 0.3 * 0.7 * 2)
    np.testing.assert_allclose(found, plain * (runs - 1) / runs, rtol=1e-5)


def constants(choice, log_probability, weight):
    """One row, of two heads."""
    shape = (1, 2)
    return Decisions(
        jnp.zeros((1, 3)),
        jnp.full(shape, choice),
        jnp.asarray(log_probability, jnp.float32).reshape(shape),
        jnp.asarray(weight, jnp.float32).reshape(shape),
        jnp.zeros(1),
    )


@pytest.mark.parametrize(
    ("ratios", "weight", "advantage", "loss"),
    [
        ((1.5, 1.0), (1, 1), 1.0, -(1.2 + 1.0)),
        ((1.5, 1.0), (1, 1), -1.0, 1.5 + 1.0),
        ((0.5, 0.9), (1, 1), 1.0, -(0.5 + 0.9)),
        ((0.5, 1.1), (1, 1), -1.0, 0.8 + 1.1),
        ((1.5, 0.5), (0, 1), 1.0, -0.5),
    ],
)
def test_each_head_is_clipped_on_its_own(ratios, weight, advantage, loss):
    """Heads of two and three equally probable choices."""
    controller = Controller(ControllerConfig(hidden=4), (2, 3), 3)
    params = jax.tree.map(jnp.zeros_like, controller.init(jax.random.key(0)).params)
    old = np.log([1 / 2, 1 / 3]) - np.log(ratios)
    found = controller.loss(params, constants(1, old, weight), jnp.full(1, advantage))
    np.testing.assert_allclose(found, loss, rtol=1e-6)


def test_the_first_gradient_is_the_policy_gradient_of_the_sum_of_log_probabilities():
    controller = Controller(ControllerConfig(hidden=4), (2, 3), 3)
    params = controller.init(jax.random.key(1)).params
    state, key = jax.random.normal(jax.random.key(2), (6, 3)), jax.random.key(3)
    choice, old = jax.vmap(lambda s, k: controller.decide(params, s, k))(state, jax.random.split(key, 6))
    advantage = jnp.arange(6.0) - 2
    rows = Decisions(state, choice, old, jnp.ones((6, 2)), jnp.zeros(6))

    def plain(params):
        heads = controller.distributions(params, state)
        return -sum(jnp.mean(advantage * head.log_probability(choice[:, i])) for i, head in enumerate(heads))

    found, wanted = jax.grad(controller.loss)(params, rows, advantage), jax.grad(plain)(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, wanted)


def test_greedy_choices_are_the_most_probable_ones():
    controller = Controller(ControllerConfig(hidden=4), (3,), 2)
    params, state = controller.init(jax.random.key(0)).params, jnp.ones(2)
    choice, log_probability = controller.decide(params, state, jax.random.key(1), greedy=True)
    probability = jax.nn.softmax(controller.distributions(params, state)[0].logits)
    assert int(choice[0]) == int(np.argmax(probability))
    np.testing.assert_allclose(log_probability[0], np.log(np.max(probability)), rtol=1e-5)


def steps_of(x, up):
    return min(0.0, x + STEP * up)


def best():
    """The optimum of the toy problem, by dynamic programming over all reachable ratios."""

    @functools.cache
    def value(x, t):
        after = [steps_of(x, up) for up in (-1, 0, 1)]
        return 0.0 if t == T else max(-((y - AIM) ** 2) + value(round(y, 9), t + 1) for y in after)

    return value(round(FIRST, 9), 0)


def at_random():
    random, total = np.random.default_rng(0), 0.0
    for _ in range(2000):
        x = FIRST
        for _ in range(T):
            x = steps_of(x, random.integers(-1, 2))
            total -= (x - AIM) ** 2
    return total / 2000


def test_the_toy_problem_is_that_of_its_numbers():
    assert round(0.05 * 1.2**13, 6) == 0.534966
    assert round(best(), 1) == -19.8
    assert abs(at_random() + 132) < 3


def test_it_learns_to_raise_a_ratio():
    """24 decisions on x = log of a ratio from log 0.05, by -log 1.2, 0 or log 1.2, at most 0; the reward is
    -(x - log 0.5)^2, and the state (t / 24, (x - log 0.5) / 2)."""
    controller = Controller(ControllerConfig(), (3,), 2)

    def episode(params, key):
        def step(x, inputs):
            t, key = inputs
            state = jnp.stack([t / T, (x - AIM) / 2])
            choice, log_probability = controller.decide(params, state, key)
            x = jnp.minimum(0.0, x + STEP * (choice[0] - 1))
            return x, Decisions(state, choice, log_probability, jnp.ones(1), -((x - AIM) ** 2))

        return jax.lax.scan(step, jnp.asarray(FIRST), (jnp.arange(float(T)), jax.random.split(key, T)))[1]

    @jax.jit
    def stage(trainable, key):
        played = jax.vmap(lambda k: episode(trainable.params, k))(jax.random.split(key, RUNS))
        return controller.update(trainable, played, key), jnp.mean(jnp.sum(played.reward, axis=1))

    trainable = controller.init(jax.random.key(0))
    returns = []
    for i in range(STAGES + 1):
        trainable, found = stage(trainable, jax.random.fold_in(jax.random.key(1), i))
        returns.append(float(found))
    assert returns[-1] >= -25, returns
