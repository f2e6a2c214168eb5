"""Soft actor-critic against its transcription in float64 NumPy, and its identities."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from one_step_targets import critic_target

from jaxmbrl.agents.actor_critic import sac
from jaxmbrl.agents.actor_critic.sac import SACConfig
from jaxmbrl.core.config import UserError, check
from jaxmbrl.core.types import Transition
from jaxmbrl.distributions import gaussian_log_density
from jaxmbrl.nn import optimizer

from . import sac_in_numpy as reference

O, A, B = 3, 2, 16  # noqa: E741
TINY = SACConfig(hidden=(9, 7), polyak=0.25, discount=0.9, initial_temperature=0.3)
SMALL = dataclasses.replace(TINY, hidden=(9,))
"""Where two ways to one number are compared."""
MANY, MEAN = dataclasses.replace(TINY, critics=5), dataclasses.replace(SMALL, critics=5, actor_value="mean")


def batch_of(seed=0, rows=B):
    rng = np.random.default_rng(seed)
    return {
        "observation": rng.normal(size=(rows, O)),
        "action": rng.uniform(-1, 1, (rows, A)),
        "reward": rng.normal(size=rows),
        "next_observation": rng.normal(size=(rows, O)),
        "terminated": rng.random(rows) < 0.3,
        "truncated": rng.random(rows) < 0.3,
    }


def two_states():
    """Rows in which state 0 leads to 1 and 1 to 0, with rewards 1 and 3."""
    return {
        "observation": np.eye(2),
        "action": np.zeros((2, 1)),
        "reward": np.array([1.0, 3.0]),
        "next_observation": np.eye(2)[::-1],
        "terminated": np.zeros(2, bool),
        "truncated": np.ones(2, bool),
    }


def on_device(batch):
    default = jnp.result_type(float)
    return jax.device_put(Transition(**{name: x if x.dtype == bool else x.astype(default) for name, x in batch.items()}))


def layers_of(params):
    dense = params["params"]
    return [(np.asarray(dense[n]["kernel"]), np.asarray(dense[n]["bias"])) for n in sorted(dense)]


def critics_of(params):
    params = jax.device_get(params)
    return [layers_of(member(params, i)) for i in range(len(jax.tree.leaves(params)[0]))]


def member(tree, i):
    """The entry of one critic, on the host."""
    return jax.tree.map(lambda x: x[i] if x.ndim else x, jax.device_get(tree))


def replaced(params, layer, **arrays):
    """A network with other arrays in one layer."""
    return {"params": params["params"] | {layer: params["params"][layer] | arrays}}


@functools.partial(jax.jit, static_argnums=1)
def split(key, number=2):
    return tuple(jax.random.split(key, number))


@functools.cache
def compiled(config, observation_size=O, action_size=A):
    """The agent with its functions compiled."""
    agent = sac.make(config, observation_size, action_size)
    return agent._replace(
        init=jax.jit(agent.init),
        update_critic=jax.jit(agent.update_critic),
        update_actor=jax.jit(agent.update_actor, static_argnames="loss"),
        update=jax.jit(agent.update),
    )


@jax.jit
def with_optimizers(actor, critic, target, learning_rate, temperature, discount):
    return sac.SACState(
        actor=optimizer.init(actor, learning_rate),
        critic=optimizer.init(critic, learning_rate, with_target=True)._replace(target=target),
        log_temperature=optimizer.init(jnp.log(jnp.asarray(temperature, float)), learning_rate),
        discount=jnp.asarray(discount, float),
    )


def state_of(config, seed=0, observation_size=O, action_size=A):
    """A state with random networks, whose target critics differ from its critics."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(compiled(config, observation_size, action_size).init, jax.random.key(0), {})

    def filled(params):
        return jax.tree.map(lambda x: rng.normal(size=x.shape) / np.sqrt(x.shape[-1]), params)

    critic, actor, target = map(filled, (shapes.critic.params, shapes.actor.params, shapes.critic.params))
    return with_optimizers(actor, critic, target, config.learning_rate, config.initial_temperature, config.discount)


def agent_and_state(config=TINY):
    return compiled(config), state_of(config)


@functools.partial(jax.jit, static_argnums=0)
def targets_of(agent, state, batch, key):
    """The one-step target of each row, the value of its next observation, and that by each critic."""
    seen = state, batch.next_observation, key
    return critic_target(agent, state, batch, key), agent.target_value(*seen), agent.target_values(*seen)


def target_of(*given):
    return targets_of(*given)[0]


def noise_of(key, rows=B):
    return np.asarray(jax.random.normal(key, (rows, A)))


def assert_gradient(trainable, gradients, rtol=1e-9):
    """Adam's first moment after one step is a tenth of the gradient that it saw."""
    for seen, expected in zip(layers_of(trainable.moments.mu), gradients, strict=True):
        for a, b in zip(seen, expected, strict=True):
            np.testing.assert_allclose(10 * a, b, rtol=rtol, atol=1e-12)


def assert_close(a, b, rtol=1e-9):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-12), a, b)


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_density_number_by_hand():
    density = reference.log_density(np.array([[0.5]]), np.zeros((1, 1)), np.zeros((1, 1)))
    assert density[0] == pytest.approx(-0.8037095, abs=1e-7)


def test_sample_and_its_density(x64):
    functions = sac.functions(TINY, A)
    _, state = agent_and_state()
    observation, key = on_device(batch_of()).observation, jax.random.key(5)
    action, density = jax.jit(functions.actor.sample)(state.actor.params, observation, key)
    expected = reference.sample(layers_of(state.actor.params), np.asarray(observation), noise_of(key))
    np.testing.assert_allclose(action, expected[0], rtol=1e-10)
    np.testing.assert_allclose(density, expected[1], rtol=1e-9)


def test_q_is_each_critics_value(x64):
    functions, batch = sac.functions(MANY, A), batch_of()
    _, state = agent_and_state(MANY)
    found = jax.jit(functions.q)(state.critic.params, batch["observation"], batch["action"])
    expected = reference.values(critics_of(state.critic.params), batch["observation"], batch["action"])
    assert found.shape == (5, B)
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    assert len({round(float(v), 9) for v in np.asarray(found)[:, 0]}) == 5


def expected_target(state, batch, key, subset, alpha=0.3, discount=0.9):
    action_key, _ = split(key)
    return reference.critic_target(
        layers_of(state.actor.params), critics_of(state.critic.target), alpha, discount, batch, noise_of(action_key), subset
    )


def test_critic_target(x64):
    agent, state = agent_and_state()
    batch, key = batch_of(), jax.random.key(3)
    assert 0 < batch["terminated"].sum() < B
    found = target_of(agent, state, on_device(batch), key)
    np.testing.assert_allclose(found, expected_target(state, batch, key, (0, 1)), rtol=1e-10)


def test_terminated_masks_value_and_entropy_and_truncated_does_not(x64):
    agent, state = agent_and_state()
    batch, key = batch_of(), jax.random.key(3)
    yes, no = np.ones(B, bool), np.zeros(B, bool)
    # What lies beyond the end of an episode must not matter, not even where it is not a number.
    ended = batch | {"terminated": yes, "next_observation": np.full((B, O), np.nan)}
    np.testing.assert_array_equal(target_of(agent, state, on_device(ended), key), batch["reward"])
    timed_out = target_of(agent, state, on_device(batch | {"terminated": no, "truncated": yes}), key)
    going_on = target_of(agent, state, on_device(batch | {"terminated": no, "truncated": no}), key)
    np.testing.assert_array_equal(timed_out, going_on)
    assert np.all(np.abs(np.asarray(going_on) - batch["reward"]) > 1e-4)


def test_two_critics_of_five_are_drawn_for_the_whole_batch(x64):
    agent, state = agent_and_state(MANY)
    batch = batch_of() | {"terminated": np.zeros(B, bool)}
    # Every critic's values around the same level, so that each pair has a minimum of its own.
    table = reference.values(critics_of(state.critic.target), batch["next_observation"], np.zeros((B, A)))
    bias = np.asarray(state.critic.target["params"]["Dense_2"]["bias"]) - table.mean(axis=1, keepdims=True)
    target = replaced(state.critic.target, "Dense_2", bias=bias)
    state = state._replace(critic=state.critic._replace(target=target))
    pairs, keys = list(itertools.combinations(range(5), 2)), jax.random.split(jax.random.key(9), 300)
    found = np.asarray(
        jax.jit(jax.vmap(functools.partial(critic_target, agent), in_axes=(None, None, 0)))(state, on_device(batch), keys)
    )
    counts = dict.fromkeys(pairs, 0)
    actor, critics = layers_of(state.actor.params), critics_of(state.critic.target)
    noises = np.asarray(jax.jit(jax.vmap(lambda key: jax.random.normal(jax.random.split(key)[0], (B, A))))(keys))
    for noise, target in zip(noises, found, strict=True):
        action, density = reference.sample(actor, batch["next_observation"], noise)
        table = reference.values(critics, batch["next_observation"], action) - 0.3 * density
        soft = (target - batch["reward"]) / 0.9
        matching = [p for p in pairs if np.allclose(table[list(p)].min(axis=0), soft, rtol=1e-8)]
        assert len(matching) == 1
        counts[matching[0]] += 1
    # Ten equally likely pairs: chi squared with 9 degrees of freedom is below 27.9 with probability 0.999.
    assert sum((n - 30) ** 2 / 30 for n in counts.values()) < 27.9


def test_a_subset_of_all_critics_is_the_minimum_over_all(x64):
    agent, state = agent_and_state(dataclasses.replace(MANY, critic_subset=5))
    batch, key = batch_of(), jax.random.key(3)
    found = target_of(agent, state, on_device(batch), key)
    np.testing.assert_allclose(found, expected_target(state, batch, key, range(5)), rtol=1e-10)


def test_without_entropy_and_noise_it_is_ddpgs_target_with_the_minimum_of_two(x64):
    agent, state = agent_and_state()
    kernel, bias = (np.array(state.actor.params["params"]["Dense_2"][name]) for name in ("kernel", "bias"))
    kernel[:, A:], bias[A:] = 0.0, -1e3
    actor = state.actor._replace(params=replaced(state.actor.params, "Dense_2", kernel=kernel, bias=bias))
    cold = state.log_temperature._replace(params=np.asarray(-1e3))
    state, batch = state._replace(actor=actor, log_temperature=cold), batch_of()
    found = target_of(agent, state, on_device(batch), jax.random.key(3))
    mean = reference.gaussian(layers_of(actor.params), batch["next_observation"])[0]
    least = reference.values(critics_of(state.critic.target), batch["next_observation"], np.tanh(mean)).min(axis=0)
    np.testing.assert_allclose(found, batch["reward"] + 0.9 * np.where(batch["terminated"], 0.0, least), rtol=1e-7)


def test_critic_update(x64):
    agent, state = agent_and_state()
    batch, key = batch_of(), jax.random.key(3)
    after, metrics, _ = jax.device_get(agent.update_critic(state, on_device(batch), key))
    y = expected_target(state, batch, key, (0, 1))
    critics = critics_of(state.critic.params)
    loss, gradients = reference.critic_loss(critics, batch, y, np.ones(B))
    assert float(metrics["agent/critic_loss"].total) == pytest.approx(loss, rel=1e-10)
    mean = reference.values(critics, batch["observation"], batch["action"]).mean()
    assert float(metrics["agent/q"].total) == pytest.approx(mean, rel=1e-10)
    norm = np.sqrt(sum(np.sum(x**2) for critic in gradients for layer in critic for x in layer))
    assert float(metrics["agent/critic_gradient_norm"].total) == pytest.approx(norm, rel=1e-10)
    for i, expected in enumerate(gradients):
        own = member(after.critic, i)
        assert_gradient(own, expected)
        for (kernel, bias), (old_kernel, old_bias), (g_kernel, g_bias) in zip(
            layers_of(own.params), critics[i], expected, strict=True
        ):
            # Adam's first step.
            np.testing.assert_allclose(kernel, old_kernel - 3e-4 * g_kernel / (np.abs(g_kernel) + 1e-8), rtol=1e-7)
            np.testing.assert_allclose(bias, old_bias - 3e-4 * g_bias / (np.abs(g_bias) + 1e-8), rtol=1e-7, atol=1e-12)
    # The target critics follow the critics just updated.
    old_target = jax.device_get(state.critic.target)
    expected_targets = jax.tree.map(lambda t, p: 0.75 * t + 0.25 * p, old_target, after.critic.params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15), after.critic.target, expected_targets
    )
    assert_same(after._replace(critic=()), state._replace(critic=()))


def test_given_target_and_weight(x64):
    agent, state = agent_and_state()
    batch, key = batch_of(), jax.random.key(3)
    rows = on_device(batch)
    plain = agent.update_critic(state, rows, key)
    own = agent.update_critic(state, rows, key, target=target_of(agent, state, rows, key), weight=np.ones(B))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15), plain, own)

    rng = np.random.default_rng(1)
    y, weight = rng.normal(size=B), rng.choice([0.0, 0.5, 2.0], B)
    after, metrics, _ = agent.update_critic(state, rows, key, target=y, weight=weight)
    loss, gradients = reference.critic_loss(critics_of(state.critic.params), batch, y, weight)
    assert float(metrics["agent/critic_loss"].total) == pytest.approx(loss, rel=1e-10)
    for i, expected in enumerate(gradients):
        assert_gradient(member(after.critic, i), expected)

    still, metrics, _ = agent.update_critic(state, rows, key, weight=np.zeros(B))
    assert float(metrics["agent/critic_loss"].total) == 0.0
    assert_same(still.critic.params, state.critic.params)


def test_actor_and_temperature_update(x64):
    agent, state = agent_and_state(MANY)
    batch, key = batch_of(), jax.random.key(4)
    after, metrics = agent.update_actor(state, on_device(batch), key)
    actor = layers_of(state.actor.params)
    loss, gradient, density = reference.actor_loss(
        actor, critics_of(state.critic.params), 0.3, batch["observation"], noise_of(key)
    )
    assert float(metrics["agent/actor_loss"].total) == pytest.approx(loss, rel=1e-10)
    assert float(metrics["agent/entropy"].total) == pytest.approx(-density, rel=1e-10)
    assert_gradient(after.actor, gradient)
    # The temperature's loss, -log(alpha) (log pi + target entropy), by a difference quotient.
    log_alpha, target_entropy, step = np.log(0.3), -float(A), 1e-4
    by_log_alpha = (-(log_alpha + step) + (log_alpha - step)) * (density + target_entropy) / (2 * step)
    assert float(after.log_temperature.moments.mu) == pytest.approx(0.1 * by_log_alpha, rel=1e-8)
    assert float(after.log_temperature.params) == pytest.approx(log_alpha - 3e-4 * np.sign(by_log_alpha), rel=1e-6)
    assert float(metrics["agent/temperature"].total) == pytest.approx(np.exp(float(after.log_temperature.params)))
    assert_same(after.critic, state.critic)
    assert float(after.discount) == float(state.discount)


@pytest.mark.parametrize("config", [TINY, MANY, dataclasses.replace(TINY, dropout=0.1)])
def test_the_one_step_target_is_put_together_from_the_target_value(x64, config):
    agent, state = agent_and_state(config)
    batch = batch_of()
    found, value, _ = jax.device_get(targets_of(agent, state, on_device(batch), jax.random.key(3)))
    np.testing.assert_allclose(found, batch["reward"] + 0.9 * np.where(batch["terminated"], 0.0, value), rtol=1e-12)


@pytest.mark.parametrize("config", [TINY, dataclasses.replace(TINY, dropout=0.1)])
def test_the_target_value_is_the_least_of_the_target_critics_own(x64, config):
    agent, state = agent_and_state(config)
    _, value, each = jax.device_get(targets_of(agent, state, on_device(batch_of()), jax.random.key(3)))
    assert each.shape == (2, B) and len(set(each.argmin(axis=0))) == 2
    np.testing.assert_allclose(each.min(axis=0), value, rtol=1e-13)


def test_every_target_critic_tells_a_value_of_its_own_and_none_is_left_out(x64):
    agent, state = agent_and_state(MANY)
    batch, key = batch_of(), jax.random.key(3)
    _, _, found = targets_of(agent, state, on_device(batch), key)
    noise = noise_of(split(key, 3)[0])
    action, density = reference.sample(layers_of(state.actor.params), batch["next_observation"], noise)
    each = reference.values(critics_of(state.critic.target), batch["next_observation"], action)
    np.testing.assert_allclose(found, each - 0.3 * density, rtol=1e-9)


@pytest.mark.parametrize(
    "config", [SMALL, pytest.param(MEAN, marks=pytest.mark.promises), dataclasses.replace(SMALL, dropout=0.1)]
)
def test_the_actor_descends_the_value_and_the_bonus_that_the_agent_tells(x64, config):
    agent, state = agent_and_state(config)
    batch, key = batch_of(), jax.random.key(4)
    act_key, value_key = split(key) if config.dropout else (key, key)

    def loss(params, state, batch, key):
        actor = agent.policy_with_entropy(state._replace(actor=state.actor._replace(params=params)))
        action, bonus, _ = actor.act((), batch.observation, act_key)
        return -jnp.mean(agent.action_value(state, batch.observation, action, value_key) + bonus), jnp.mean(bonus)

    @jax.jit
    def both(*given):
        return agent.update_actor(*given), agent.update_actor(*given, loss=loss)

    own, told = both(state, on_device(batch), key)
    assert_close((told[0].actor.moments, told[0].log_temperature), (own[0].actor.moments, own[0].log_temperature))
    assert_close(told[1], own[1])


def test_the_actors_bonus_is_its_entropy_and_its_action_is_the_exploring_policys(x64):
    agent, state = agent_and_state()
    observation, key = batch_of()["observation"], jax.random.key(5)

    @jax.jit
    def acted(state, observation):
        policies = agent.policy_with_entropy(state), agent.policy(state, True)
        return [policy.act((), observation, key) for policy in policies]

    (action, bonus, _), (explored, _, _) = acted(state, observation)
    np.testing.assert_array_equal(action, explored)
    _, density = reference.sample(layers_of(state.actor.params), observation, noise_of(key))
    np.testing.assert_allclose(bonus, -0.3 * density, rtol=1e-8)  # the reference takes log(1 - tanh^2) plainly


def test_the_clipped_log_deviation_has_no_gradient(x64):
    agent, state = agent_and_state()
    bias = np.array(state.actor.params["params"]["Dense_2"]["bias"])
    bias[A:] = 9.0, -90.0
    state = state._replace(actor=state.actor._replace(params=replaced(state.actor.params, "Dense_2", bias=bias)))
    batch, key = batch_of(), jax.random.key(4)
    _, log_std = jax.jit(sac.functions(TINY, A).actor.distribution)(state.actor.params, batch["observation"])
    np.testing.assert_array_equal(log_std, np.tile([2.0, -20.0], (B, 1)))
    after, _ = agent.update_actor(state, on_device(batch), key)
    seen = layers_of(after.actor.moments.mu)
    assert not np.any(seen[-1][1][A:])
    assert np.any(seen[-1][1][:A])


def test_update_is_critic_then_actor(x64):
    agent, state = agent_and_state()
    rows, key = on_device(batch_of()), jax.random.key(8)
    critic_key, actor_key = split(key)
    middle, critic_metrics, _ = agent.update_critic(state, rows, critic_key)
    last, actor_metrics = agent.update_actor(middle, rows, actor_key)
    found, metrics, _ = agent.update(state, rows, key)
    assert_same(found, last)
    assert_same(metrics, critic_metrics | actor_metrics)


def test_another_actor_loss_finds_the_optimum_without_squashing():
    """With Q = -(a - c)^2 / (2 beta) and no squashing the best policy is the Gaussian N(c, alpha beta)."""
    alpha, beta, c = 0.3, 0.5, 0.4
    config = SACConfig(hidden=(8,), learning_rate=0.01)
    agent, functions = compiled(config, O, 1), sac.functions(config, 1)
    rows = on_device(batch_of(rows=64) | {"action": np.zeros((64, 1))})

    def loss(params, state, batch, key):
        mean, log_std = functions.actor.distribution(params, batch.observation)
        action = mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)
        density = gaussian_log_density(action, mean, log_std)
        return jnp.mean(alpha * density + jnp.sum((action - c) ** 2, -1) / (2 * beta)), -alpha * jnp.mean(density)

    def step(state, key):
        return agent.update_actor(state, rows, key, loss=loss)[0], None

    state = state_of(config, 0, O, 1)
    state, _ = jax.jit(lambda s: jax.lax.scan(step, s, jax.random.split(jax.random.key(1), 1500)))(state)
    mean, log_std, _ = reference.gaussian(layers_of(state.actor.params), np.asarray(rows.observation))
    np.testing.assert_allclose(mean, c, atol=0.1)
    np.testing.assert_allclose(np.exp(2 * log_std), alpha * beta, rtol=0.25)
    np.testing.assert_allclose(np.mean(np.exp(2 * log_std)), alpha * beta, rtol=0.1)


def test_without_discount_the_critic_regresses_on_the_reward():
    config = SACConfig(hidden=(32, 32), learning_rate=3e-3)
    agent = compiled(config)
    state, batch = state_of(dataclasses.replace(config, discount=0.0)), batch_of(rows=6) | {"terminated": np.zeros(6, bool)}
    rows = on_device(batch)

    def step(state, key):
        return agent.update_critic(state, rows, key)[0], None

    state, _ = jax.jit(lambda s: jax.lax.scan(step, s, jax.random.split(jax.random.key(1), 1500)))(state)
    found = reference.values(critics_of(state.critic.params), batch["observation"], batch["action"])
    np.testing.assert_allclose(found, np.tile(batch["reward"], (2, 1)), atol=0.02)


def test_two_states_and_one_action_learn_the_solution_of_the_linear_system():
    """State 0 leads to 1 and 1 to 0, rewards 1 and 3, discount 0.5, no entropy: Q = r + discount P Q."""
    config = SACConfig(hidden=(16,), learning_rate=3e-3, discount=0.5, polyak=0.05, initial_temperature=1e-12)
    agent, state = compiled(config, 2, 1), state_of(config, 0, 2, 1)
    # Kernels that do not look at the action: its value is the state's.
    blind = np.array(state.critic.params["params"]["Dense_0"]["kernel"])
    blind[:, 2] = 0.0
    params = replaced(state.critic.params, "Dense_0", kernel=blind)
    state = state._replace(critic=state.critic._replace(params=params, target=params))
    rows = on_device(two_states())

    def step(state, key):
        return agent.update_critic(state, rows, key)[0], None

    state, _ = jax.jit(lambda s: jax.lax.scan(step, s, jax.random.split(jax.random.key(1), 3000)))(state)
    expected = np.linalg.solve(np.array([[1.0, -0.5], [-0.5, 1.0]]), np.array([1.0, 3.0]))
    found = reference.values(critics_of(state.critic.params), np.eye(2), np.zeros((2, 1)))
    np.testing.assert_allclose(found, np.tile(expected, (2, 1)), atol=0.03)


@pytest.mark.parametrize(
    ("target_entropy", "rises"), [pytest.param(20.0, True, marks=pytest.mark.promises), (-20.0, False)]
)
def test_temperature_rises_where_entropy_is_below_its_target(target_entropy, rises):
    agent, state = agent_and_state(dataclasses.replace(SMALL, target_entropy=target_entropy))
    before = state.log_temperature.params
    for i in range(3):
        state, _ = agent.update_actor(state, on_device(batch_of(i)), jax.random.key(i))
        assert (float(state.log_temperature.params) > float(before)) == rises
        before = state.log_temperature.params


def test_policy(x64):
    agent, state = agent_and_state()
    observation, key = np.array([0.3, -1.0, 2.0]), jax.random.key(2)

    @functools.partial(jax.jit, static_argnums=0)
    def act(explore, state, observation, key):
        policy = agent.policy(state, explore)
        return policy.act(policy.init(key), observation, key)

    action, extras, memory = act(False, state, observation, key)
    mean = reference.gaussian(layers_of(state.actor.params), observation[None])[0][0]
    np.testing.assert_allclose(action, np.tanh(mean), rtol=1e-10)
    assert_same(act(False, state, observation, jax.random.key(99))[0], action)
    assert extras == memory == ()
    found, _, _ = act(True, state, observation, key)
    expected, _ = reference.sample(layers_of(state.actor.params), observation[None], noise_of(key, 1))
    np.testing.assert_allclose(found, expected[0], rtol=1e-10)


HYPER = {
    "learning_rate": np.array([1e-2, 1e-3], np.float32),
    "discount": np.array([0.0, 0.5], np.float32),
    "initial_temperature": np.array([2.0, 0.1], np.float32),
}


@jax.jit
def begun(hyper):
    """The initial state by the configuration alone; and of seeds with hyperparameters of their own the initial state, its
    targets, and the state after an update."""
    agent, key = sac.make(SMALL, O, A), jax.random.key(0)

    def once(hyper):
        state, rows = agent.init(key, hyper), on_device(batch_of())
        return state, critic_target(agent, state, rows, jax.random.key(3)), agent.update(state, rows, jax.random.key(3))[0]

    return agent.init(key, {}), jax.vmap(once)(hyper)


def test_hyper_is_traced_and_each_seeds_own():
    rows, key, hyper = on_device(batch_of()), jax.random.key(3), HYPER
    state, target, after = jax.device_get(begun(hyper)[1])
    again = np.asarray(begun(jax.tree.map(lambda x: x / 2, hyper))[1][1])
    assert begun._cache_size() == 1
    np.testing.assert_allclose(np.exp(state.log_temperature.params), [2.0, 0.1], rtol=1e-6)
    # The same networks: target - reward is discount (value - temperature log-density).
    np.testing.assert_allclose(target[0], rows.reward, rtol=1e-6)
    batch = batch_of()
    for found, discount, alpha in ((target[1], 0.5, 0.1), (again[1], 0.25, 0.05)):
        np.testing.assert_allclose(
            found, expected_target(member(state, 1), batch, key, (0, 1), alpha, discount), rtol=1e-4, atol=1e-5
        )
    for part in ("actor", "critic", "log_temperature"):
        old, new = (jax.tree.leaves(getattr(x, part).params) for x in (state, after))
        for i in range(2):
            moved = max(np.abs(b[i] - a[i]).max() for a, b in zip(old, new, strict=True))
            # Adam's first step moves a parameter that has a gradient by the learning rate.
            assert moved == pytest.approx(float(hyper["learning_rate"][i]), rel=1e-2)


def test_init():
    """Defaults come from the config; critics differ from each other; target critics start as copies."""
    state = jax.device_get(begun(HYPER)[0])
    assert float(state.discount) == pytest.approx(0.9)
    assert float(state.log_temperature.params) == pytest.approx(np.log(0.3), rel=1e-6)
    for part in (state.actor, state.critic, state.log_temperature):
        assert float(part.learning_rate) == pytest.approx(3e-4)
    assert_same(state.critic.target, state.critic.params)
    assert state.actor.target == ()
    kernels = state.critic.params["params"]["Dense_0"]["kernel"]
    assert kernels.shape == (2, O + A, 9)
    assert np.abs(kernels[0] - kernels[1]).min() > 0


@pytest.mark.parametrize("double", [False, True])
def test_dtypes_stay(double):
    with jax.enable_x64(double):
        agent, state = agent_and_state(MANY)
        after, metrics, _ = jax.eval_shape(agent.update, state, on_device(batch_of()), jax.random.key(0))
        expected = jnp.float64 if double else jnp.float32
        for before, leaf in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
            assert before.dtype == leaf.dtype
            assert before.weak_type == leaf.weak_type
            assert leaf.dtype in (expected, jnp.bool, jnp.int32)
        assert {leaf.dtype for leaf in jax.tree.leaves(metrics)} == {jnp.dtype(expected)}


def test_a_fault_stops_the_part_that_saw_it(x64):
    agent, state = agent_and_state()
    bad = batch_of()
    bad["reward"][3] = np.nan
    after, metrics, _ = agent.update(state, on_device(bad), jax.random.key(0))
    assert not bool(after.critic.active)
    assert not np.isfinite(float(metrics["agent/critic_loss"].total))
    assert_same((after.critic.params, after.critic.target), (state.critic.params, state.critic.target))
    assert_same(after.critic.moments, state.critic.moments)
    assert bool(after.actor.active)


def test_the_subset_is_at_most_all_critics():
    with pytest.raises(UserError, match=r"critic_subset must be at most critics \(2\), got 3"):
        check(SACConfig(critic_subset=3))
