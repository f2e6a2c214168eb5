"""QT-Opt: the accuracy of its search, its target and one update against float64 NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl.agents import qt_opt
from jaxmbrl.agents.qt_opt import QTOptConfig
from jaxmbrl.core.config import UserError, check
from jaxmbrl.planning import cem, problem_of_score, unit_box

from . import sac_in_numpy as networks
from .test_sac import A, B, O, assert_gradient, assert_same, batch_of, critics_of, member, on_device

TINY = QTOptConfig(hidden=(9, 7), critics=3, discount=0.9, polyak=0.25, samples=200, iterations=4, exploration_noise=0.5)


def searched(score, size, config, count):
    """Actions [count, size] found by as many searches."""
    box = unit_box(size)
    planner, problem = cem.make(config.search, box), problem_of_score(lambda actions, _: score(actions[0]), box)
    keys = jax.random.split(jax.random.key(0), count)
    return jax.vmap(lambda key: planner.plan(problem, planner.init(), key)[0][0])(keys)


PUBLISHED = {(1, 2): 0.0019, (2, 2): 0.039, (6, 2): 0.444, (1, 3): 0.0002, (2, 3): 0.011, (6, 3): 0.238}
"""Mean error of 400 searches in plain NumPy of 64 samples and 6 elites, by the number of actions and of iterations."""


def test_the_accuracy_of_a_search():
    """On -||a - 0.3||^2, the distance of the best sample of the last iteration, and the maxima at 0.7 and -0.7 of a
    function with two: the higher one is found by all searches but 0.2% (49 of 20,000 in plain NumPy)."""

    def two_maxima(action):
        return jnp.maximum(1 - 10 * (action[0] - 0.7) ** 2, 0.8 - 10 * (action[0] + 0.7) ** 2)

    @jax.jit
    def found():
        errors = {}
        for size, iterations in PUBLISHED:
            config = QTOptConfig(iterations=iterations)
            actions = searched(lambda action: -jnp.sum((action - 0.3) ** 2), size, config, 1000)
            errors[size, iterations] = jnp.linalg.norm(actions - 0.3, axis=1)
        return errors, searched(two_maxima, 1, QTOptConfig(), 1000)

    errors, actions = jax.device_get(found())
    for case, expected in PUBLISHED.items():
        # The published means are of 400 searches and have two or three digits.
        digits = 0.5e-4 if expected < 0.01 else 0.5e-3
        tolerance = 3 * errors[case].std() * np.sqrt(1 / 400 + 1 / 1000) + digits
        assert errors[case].mean() == pytest.approx(expected, abs=tolerance)
    wrong = actions[:, 0] < 0
    assert np.sum(wrong) <= 10 and np.abs(actions[~wrong] - 0.7).mean() < 0.012


@functools.cache
def compiled(config):
    agent = qt_opt.make(config, O, A)
    return agent._replace(
        init=jax.jit(agent.init),
        update_critic=jax.jit(agent.update_critic),
        update=jax.jit(agent.update),
        target_values=jax.jit(agent.target_values),
    )


def agent_and_state(config=TINY):
    """A state with random networks; the target networks differ from the networks."""
    random = np.random.default_rng(0)
    state = compiled(config).init(jax.random.key(0), {})

    def filled():
        return jax.tree.map(
            lambda x: random.normal(size=x.shape).astype(x.dtype) / np.sqrt(x.shape[-1]), state.critic.params
        )

    return compiled(config), state._replace(critic=state.critic._replace(params=filled(), target=filled()))


GRID = np.stack(np.meshgrid(*[np.linspace(-1, 1, 101)] * A), axis=-1).reshape(-1, A)


def maxima_of(critic, observation):
    """The largest value of each row on a grid of actions."""
    pairs = [np.concatenate([np.tile(row, (len(GRID), 1)), GRID], axis=1) for row in observation]
    return np.array([networks.forward(critic, pair)[0].max() for pair in pairs])


def test_the_target_is_the_least_value_of_the_first_target_critics_best_action(x64):
    agent, state = agent_and_state()
    observation, key = batch_of()["next_observation"], jax.random.key(3)
    each = np.asarray(agent.target_values(state, observation, key))
    critics = critics_of(state.critic.target)
    best = maxima_of(critics[0], observation)
    # In one of the rows the search ends at a maximum that is not the largest.
    assert np.median(best - each[0]) < 1e-3 and np.all(np.abs(best - each[0]) < 0.05)
    assert len(np.unique(each.argmin(axis=0))) > 1
    # The others judge the same action: some action of the grid has the values of a row by all critics.
    for row, values in zip(observation, each.T, strict=True):
        table = networks.values(critics, np.tile(row, (len(GRID), 1)), GRID)
        assert np.abs(table - values[:, None]).max(axis=0).min() < 0.05


def test_one_update_in_numpy(x64):
    agent, state = agent_and_state()
    batch, key = batch_of(), jax.random.key(3)
    critic_key, _ = jax.random.split(key)
    least = np.asarray(agent.target_values(state, batch["next_observation"], critic_key)).min(axis=0)
    y = batch["reward"] + 0.9 * np.where(batch["terminated"], 0.0, least)
    loss, gradients = networks.critic_loss(critics_of(state.critic.params), batch, y, np.ones(B))
    after, metrics, error = agent.update(state, on_device(batch), key)
    assert float(metrics["agent/critic_loss"].total) == pytest.approx(loss, rel=1e-9)
    values = networks.values(critics_of(state.critic.params), batch["observation"], batch["action"])
    np.testing.assert_allclose(error, np.abs(values - y).mean(axis=0), rtol=1e-9)
    for i, expected in enumerate(gradients):
        moments = after.critic.moments._replace(mu=member(after.critic.moments.mu, i))
        assert_gradient(after.critic._replace(moments=moments), expected)
    old, new, moved = jax.device_get((state.critic.target, after.critic.params, after.critic.target))
    jax.tree.map(lambda t, p, m: np.testing.assert_allclose(m, 0.75 * t + 0.25 * p, rtol=1e-9), old, new, moved)


def test_a_given_target_and_a_termination(x64):
    agent, state = agent_and_state()
    batch, key = batch_of(), jax.random.key(0)
    y, weight = np.random.default_rng(1).normal(size=B), np.random.default_rng(2).choice([0.0, 0.5, 2.0], B)
    after, metrics, _ = agent.update_critic(state, on_device(batch), key, target=y, weight=weight)
    loss, _ = networks.critic_loss(critics_of(state.critic.params), batch, y, weight)
    assert float(metrics["agent/critic_loss"].total) == pytest.approx(loss, rel=1e-9)
    assert_same(after.critic.target, state.critic.target)
    ended = batch | {"terminated": np.ones(B, bool), "next_observation": np.full((B, O), np.nan)}
    values = networks.values(critics_of(state.critic.params), batch["observation"], batch["action"])
    found = agent.update_critic(state, on_device(ended), key)[2]
    np.testing.assert_allclose(found, np.abs(values - batch["reward"]).mean(axis=0), rtol=1e-9)


def test_policies(x64):
    """Without exploration the policy is a function of the observation, of a block row by row. With exploration each row has
    a search of its own, and noise."""
    agent, state = agent_and_state()
    observation = batch_of()["observation"]

    @jax.jit
    def act(state, observation, key):
        policies = agent.policy(state, False), agent.policy(state, True), agent.policy_with_entropy(state)
        single = agent.policy(state, False).act((), observation[3], key)[0]
        value = agent.action_value(state, observation, policies[0].act((), observation, key)[0], key)
        return [policy.act((), observation, key)[0] for policy in policies], single, value

    (greedy, noisy, judged), single, value = act(state, observation, jax.random.key(1))
    (again, other, _), _, _ = act(state, observation, jax.random.key(2))
    np.testing.assert_array_equal(greedy, again)
    np.testing.assert_array_equal(greedy, judged)
    np.testing.assert_allclose(single, greedy[3], rtol=1e-12)
    first = critics_of(state.critic.params)[0]
    best = maxima_of(first, observation)
    np.testing.assert_allclose(value, networks.values([first], observation, np.asarray(greedy))[0], rtol=1e-9)
    assert np.median(best - value) < 1e-3 and np.all(np.abs(best - value) < 0.05)
    assert np.mean(noisy != other) > 0.8 and np.abs(noisy).max() == 1.0
    inside = np.abs(noisy) < 1
    assert np.std((noisy - greedy)[inside]) == pytest.approx(0.4, abs=0.15)


def test_settings_that_are_refused():
    with pytest.raises(UserError, match=r"elites must be at most samples \(10\), got 11"):
        check(QTOptConfig(samples=10, elites=11))
