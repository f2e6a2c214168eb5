"""Exploration: what acts when, what it returns with an action, and what it costs."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxmbrl.agents import exploration
from jaxmbrl.core.schedules import linear
from jaxmbrl.core.spaces import Box, Discrete
from jaxmbrl.core.types import Policy

SPACE = Box((2,), -1.0, 1.0)
SEEN = np.zeros(3, np.float32)


def fixed(value):
    """Plays `value`; its memory counts, its extras are a log-density."""
    return Policy(lambda key: jnp.zeros(()), lambda memory, seen, key: (value, {"log_density": jnp.zeros(())}, memory + 1))


def test_the_warm_up_is_uniform_says_so_and_keeps_the_memory():
    extras = {"log_density": -2 * np.log(np.float32(2))}

    @jax.jit
    def acted(warm, keys):
        random = exploration.uniform(SPACE, lambda action: jax.tree.map(jnp.asarray, extras))
        policy = exploration.with_warmup(fixed(jnp.full(2, 0.7)), random, warm)
        return jax.vmap(lambda key: policy.act(jnp.asarray(5.0), SEEN, key))(keys)

    keys = jax.random.split(jax.random.key(0), 4000)
    action, found, memory = jax.device_get(acted(True, keys))
    np.testing.assert_allclose(np.mean(action, axis=0), 0.0, atol=0.05)
    np.testing.assert_allclose(np.var(action, axis=0), 1 / 3, atol=0.02)
    np.testing.assert_allclose(found["log_density"], -2 * np.log(2))
    assert np.all(memory == 5) and np.abs(action).max() <= 1
    action, found, memory = jax.device_get(acted(False, keys))
    np.testing.assert_allclose(action, 0.7)
    assert np.all(found["log_density"] == 0) and np.all(memory == 6)


def test_a_policy_remembers_the_actions_that_were_taken():
    """And the key that it acts with, whatever is around it."""

    def act(memory, seen, key):
        return jnp.full(2, 0.7), (), (jnp.full(2, 0.7), jax.random.uniform(key))

    def remember(memory, seen, action, key):
        return action, jax.random.uniform(key)

    recurrent = Policy(lambda key: (jnp.zeros(2), jnp.zeros(())), act, remember=remember)
    forgetful = recurrent._replace(remember=None)
    kinds = (
        lambda policy: exploration.with_gaussian_noise(policy, 0.1),
        lambda policy: exploration.with_epsilon(policy, SPACE, 1.0),
        lambda policy: exploration.with_ou_noise(policy, (2,), 0.1, 0.1),
    )

    @jax.jit
    def acted(key):
        found = []
        for noise in kinds:
            for warm in (False, True):
                policy, other = (
                    exploration.with_warmup(noise(of), exploration.uniform(SPACE), jnp.asarray(warm))
                    for of in (recurrent, forgetful)
                )
                action, _, memory = policy.act(policy.init(key), SEEN, key)
                own = memory[0] if isinstance(memory[0], tuple) else memory
                remembered = policy.remember(policy.init(key), SEEN, action, key)
                found.append((action, own, memory, remembered, other.act(other.init(key), SEEN, key)[0]))
        return found

    for action, (previous, drawn), memory, remembered, same in jax.device_get(acted(jax.random.key(2))):
        np.testing.assert_array_equal(previous, action)
        np.testing.assert_array_equal(action, same)
        assert np.all(action != 0.7) and drawn > 0
        # Its noise moves on only where it is added.
        assert remembered[0][1] == drawn if len(memory[0]) == 2 and isinstance(memory[0], tuple) else remembered[1] == drawn


def test_only_one_of_them_runs_for_all_seeds():
    def act(warm, key):
        random = exploration.uniform(SPACE, lambda action: {"log_density": jnp.zeros(())})
        policy = exploration.with_warmup(fixed(jnp.full(2, 0.7)), random, warm)
        return policy.act(jnp.zeros(()), SEEN, key)[0]

    keys = jax.random.split(jax.random.key(0), 3)
    shared = str(jax.make_jaxpr(jax.vmap(act, (None, 0)))(jnp.asarray(True), keys))
    assert shared.count("cond[") == 1


def test_gaussian_noise_is_clipped_to_the_actions():
    @jax.jit
    def acted(keys):
        inner, of_memory = fixed(jnp.array([0.0, 0.95])), lambda memory: 0.05 * memory
        noisy, still, same = (exploration.with_gaussian_noise(inner, most) for most in (0.1, 0.0, of_memory))
        action = jax.vmap(lambda key: noisy.act(jnp.zeros(()), SEEN, key)[0])(keys)
        by_memory = jax.vmap(lambda key: same.act(jnp.ones(()), SEEN, key)[0])(keys)
        return action, still.act(jnp.zeros(()), SEEN, keys[0])[0], by_memory

    action, of_still, by_memory = jax.device_get(acted(jax.random.split(jax.random.key(1), 4000)))
    # The memory after the action, which counts to 2.
    np.testing.assert_array_equal(by_memory, action)
    np.testing.assert_allclose([np.mean(action[:, 0]), np.std(action[:, 0])], [0.0, 0.1], atol=0.01)
    assert float(action.max()) == 1.0
    np.testing.assert_allclose(of_still, [0.0, 0.95])


def test_epsilon_greedy_takes_a_uniform_choice_with_that_probability():
    @jax.jit
    def acted(epsilon, keys):
        policy = exploration.with_epsilon(fixed(jnp.asarray(2, jnp.int32)), Discrete(3), epsilon)
        return jax.vmap(lambda key: policy.act(jnp.zeros(()), SEEN, key)[0])(keys)

    keys = jax.random.split(jax.random.key(2), 6000)
    for epsilon, expected in ((0.0, [0, 0, 1]), (0.3, [0.1, 0.1, 0.8]), (1.0, [1 / 3] * 3)):
        np.testing.assert_allclose(np.bincount(acted(epsilon, keys), minlength=3) / 6000, expected, atol=0.03)


def test_a_linear_schedule_ends():
    schedule = jax.jit(lambda step: linear(1.0, 0.1, 100, step))
    found = [float(schedule(step)) for step in (0, 50, 100, 1000)]
    np.testing.assert_allclose(found, [1.0, 0.55, 0.1, 0.1], rtol=1e-6)


def test_gaussian_noise_leaves_discrete_actions_as_they_are():
    inner = exploration.uniform(Discrete(5))
    noisy, key = exploration.with_gaussian_noise(inner, 0.3), jax.random.key(4)
    action, _, after = noisy.act(noisy.init(key), jnp.zeros(2), key)
    assert action == inner.act(inner.init(key), jnp.zeros(2), jax.random.fold_in(key, 0))[0]
    assert jnp.issubdtype(action.dtype, jnp.integer) and after == noisy.init(key)
