"""TD3 and DDPG against their transcription in float64 NumPy, and their identities."""

import dataclasses
import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl import agents
from jaxmbrl.agents import AgentConfig
from jaxmbrl.agents.actor_critic import td3
from jaxmbrl.agents.actor_critic.sac import SACConfig
from jaxmbrl.agents.actor_critic.td3 import DDPG, TD3Config
from jaxmbrl.core.config import UserError, from_dict
from jaxmbrl.nn import optimizer

from . import sac_in_numpy as networks
from . import td3_in_numpy as reference
from .test_sac import (
    A,
    B,
    O,
    assert_gradient,
    assert_same,
    batch_of,
    critics_of,
    layers_of,
    member,
    noise_of,
    on_device,
    replaced,
    split,
    target_of,
    targets_of,
    two_states,
)

TINY = TD3Config(hidden=(9, 7), critics=3, polyak=0.25, discount=0.9, target_noise=0.6, target_noise_clip=0.4)


@functools.cache
def compiled(config, observation_size=O, action_size=A):
    """The agent with its functions compiled."""
    agent = td3.make(config, observation_size, action_size)
    return agent._replace(
        init=jax.jit(agent.init),
        update_critic=jax.jit(agent.update_critic),
        update_actor=jax.jit(agent.update_actor, static_argnames="loss"),
        update=jax.jit(agent.update),
    )


@jax.jit
def with_optimizers(parts, targets, learning_rate, discount):
    actor, critic = (
        optimizer.init(params, learning_rate, with_target=True)._replace(target=target)
        for params, target in zip(parts, targets, strict=True)
    )
    return td3.TD3State(actor, critic, jnp.asarray(discount, float))


def state_of(config, observation_size=O, action_size=A):
    """A state with random networks, whose targets differ from them."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(compiled(config, observation_size, action_size).init, jax.random.key(0), {})

    def filled(params):
        return jax.tree.map(lambda x: rng.normal(size=x.shape) / np.sqrt(x.shape[-1]), params)

    drawn = [(filled(part.params), filled(part.params)) for part in (shapes.actor, shapes.critic)]
    return with_optimizers(*zip(*drawn, strict=True), config.learning_rate, config.discount)


def agent_and_state(config=TINY):
    return compiled(config), state_of(config)


def expected_target(state, batch, noise, limit=0.4, discount=0.9):
    actor, critics = layers_of(state.actor.target), critics_of(state.critic.target)
    return reference.critic_target(actor, critics, discount, batch, noise, limit)


def assert_close(a, b):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14), *jax.device_get((a, b)))


def assert_moved(after, before, share=0.25):
    """The target copy moved by `share` towards the parameters as they are now."""
    target, params = jax.device_get((before.target, after.params))
    expected = jax.tree.map(lambda t, p: (1 - share) * t + share * p, target, params)
    assert_close(after.target, expected)


def test_critic_target_with_clipped_noise_and_clipped_actions(x64):
    agent, state = agent_and_state()
    batch, key = batch_of(), jax.random.key(3)
    noise = 0.6 * noise_of(key)
    smoothed = reference.action_of(layers_of(state.actor.target), batch["next_observation"]) + np.clip(noise, -0.4, 0.4)
    assert 0 < np.mean(np.abs(noise) > 0.4) < 1 and 0 < np.mean(np.abs(smoothed) > 1) < 1
    found, value, _ = jax.device_get(targets_of(agent, state, on_device(batch), key))
    np.testing.assert_allclose(found, expected_target(state, batch, noise), rtol=1e-10)
    expected = batch["reward"] + 0.9 * np.where(batch["terminated"], 0.0, value)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_however_wide_the_noise_it_moves_the_action_by_no_more_than_its_clip(x64):
    _, state = agent_and_state()
    batch, key = batch_of(), jax.random.key(3)
    wide = compiled(dataclasses.replace(TINY, target_noise=1e9))
    at_the_ends = 0.4 * np.sign(noise_of(key))
    found = target_of(wide, state, on_device(batch), key)
    np.testing.assert_allclose(found, expected_target(state, batch, at_the_ends, np.inf), rtol=1e-10)


@pytest.mark.parametrize("changes", [{"target_noise": 0.0}, {"target_noise_clip": 0.0}])
def test_without_noise_the_target_is_ddpgs_with_the_minimum_over_critics(x64, changes):
    agent, state = agent_and_state(dataclasses.replace(TINY, **changes))
    batch = batch_of()
    found = target_of(agent, state, on_device(batch), jax.random.key(3))
    np.testing.assert_array_equal(found, target_of(agent, state, on_device(batch), jax.random.key(4)))
    action = reference.action_of(layers_of(state.actor.target), batch["next_observation"])
    least = networks.values(critics_of(state.critic.target), batch["next_observation"], action).min(axis=0)
    np.testing.assert_allclose(found, batch["reward"] + 0.9 * np.where(batch["terminated"], 0.0, least), rtol=1e-10)


def test_terminated_masks_the_value_and_truncated_does_not(x64):
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


def test_critic_update_moves_the_critics_and_no_target(x64):
    agent, state = agent_and_state()
    batch, key = batch_of(), jax.random.key(3)
    after, metrics, _ = agent.update_critic(state, on_device(batch), key)
    critics, y = critics_of(state.critic.params), expected_target(state, batch, 0.6 * noise_of(key))
    loss, gradients = networks.critic_loss(critics, batch, y, np.ones(B))
    assert float(metrics["agent/critic_loss"].total) == pytest.approx(loss, rel=1e-10)
    mean = networks.values(critics, batch["observation"], batch["action"]).mean()
    assert float(metrics["agent/q"].total) == pytest.approx(mean, rel=1e-10)
    norm = np.sqrt(sum(np.sum(x**2) for critic in gradients for layer in critic for x in layer))
    assert float(metrics["agent/critic_gradient_norm"].total) == pytest.approx(norm, rel=1e-10)
    for i, expected in enumerate(gradients):
        assert_gradient(member(after.critic, i), expected)
    assert_same(after.critic.target, state.critic.target)
    assert_same(after._replace(critic=()), state._replace(critic=()))


def test_given_target_and_weight(x64):
    agent, state = agent_and_state()
    batch, rng = batch_of(), np.random.default_rng(1)
    y, weight = rng.normal(size=B), rng.choice([0.0, 0.5, 2.0], B)
    after, metrics, _ = agent.update_critic(state, on_device(batch), jax.random.key(3), target=y, weight=weight)
    loss, gradients = networks.critic_loss(critics_of(state.critic.params), batch, y, weight)
    assert float(metrics["agent/critic_loss"].total) == pytest.approx(loss, rel=1e-10)
    for i, expected in enumerate(gradients):
        assert_gradient(member(after.critic, i), expected)


def test_actor_update_climbs_the_first_critic_and_moves_both_targets(x64):
    agent, state = agent_and_state()
    batch, key = batch_of(), jax.random.key(4)
    after, metrics = agent.update_actor(state, on_device(batch), key)
    first = critics_of(state.critic.params)[0]
    loss, gradient = reference.actor_loss(layers_of(state.actor.params), first, batch["observation"])
    assert float(metrics["agent/actor_loss"].total) == pytest.approx(loss, rel=1e-10)
    assert_gradient(after.actor, gradient)
    norm = np.sqrt(sum(np.sum(x**2) for layer in gradient for x in layer))
    assert float(metrics["agent/actor_gradient_norm"].total) == pytest.approx(norm, rel=1e-10)
    for (kernel, _), (old, _), (slope, _) in zip(
        layers_of(after.actor.params), layers_of(state.actor.params), gradient, strict=True
    ):
        # Adam's first step.
        np.testing.assert_allclose(kernel, old - 3e-4 * slope / (np.abs(slope) + 1e-8), rtol=1e-7)
    assert_moved(after.actor, state.actor)
    assert_moved(after.critic, state.critic)
    assert_same(after.critic._replace(target=()), state.critic._replace(target=()))
    # What the actor maximises is what the agent calls its value.

    @jax.jit
    def told(state, observation):
        action, bonus, _ = agent.policy_with_entropy(state).act((), observation, key)
        return agent.action_value(state, observation, action, key), bonus

    value, bonus = told(state, batch["observation"])
    assert not np.any(bonus)
    assert np.mean(value) == pytest.approx(-loss, rel=1e-10)


def test_another_actor_loss(x64):
    """One half of the squared distance to an action c: the gradient by the output u is (tanh(u) - c)(1 - tanh(u)^2)."""
    agent, state = agent_and_state()
    batch, c = batch_of(), 0.4

    def loss(params, state, batch, key):
        action = agent.policy_with_entropy(state._replace(actor=state.actor._replace(params=params))).act(
            (), batch.observation, key
        )[0]
        return jnp.mean(jnp.sum((action - c) ** 2, axis=-1)) / 2, jnp.zeros(())

    after, metrics = agent.update_actor(state, on_device(batch), jax.random.key(4), loss=loss)
    output, inputs = networks.forward(layers_of(state.actor.params), batch["observation"])
    action = np.tanh(output)
    assert float(metrics["agent/actor_loss"].total) == pytest.approx(np.mean(np.sum((action - c) ** 2, axis=1)) / 2)
    by_output = (action - c) * (1 - action**2) / B
    assert_gradient(after.actor, networks.backward(layers_of(state.actor.params), inputs, by_output)[0])


def test_update_is_critic_then_actor(x64):
    agent, state = agent_and_state()
    rows, key = on_device(batch_of()), jax.random.key(8)
    critic_key, actor_key = split(key)
    middle, critic_metrics, _ = agent.update_critic(state, rows, critic_key)
    last, actor_metrics = agent.update_actor(middle, rows, actor_key)
    found, metrics, _ = agent.update(state, rows, key)
    assert_close(found, last)
    assert metrics.keys() == critic_metrics.keys() | actor_metrics.keys()


def test_tied_critics_without_noise_and_delay_are_ddpg(x64):
    """But for rounding, since XLA sums a matrix product of two critics in another order than of one."""
    single = dataclasses.replace(TINY, hidden=(8,), critics=1, target_noise=0.0)
    (twins, _), (ddpg, plain) = agent_and_state(dataclasses.replace(single, critics=2)), agent_and_state(single)
    twice = jax.tree.map(lambda x: np.concatenate([x, x]) if x.ndim else x, jax.device_get(plain.critic))
    tied = plain._replace(critic=twice)
    for i in range(4):
        rows, key = on_device(batch_of(i)), jax.random.key(i)
        tied, plain = twins.update(tied, rows, key)[0], ddpg.update(plain, rows, key)[0]
    assert_close(tied.actor, plain.actor)
    for i in range(2):
        assert_close(member(tied.critic, i), member(plain.critic, 0))


def test_ddpg_is_td3_with_one_critic_and_no_noise_in_its_target():
    assert dataclasses.replace(DDPG, critics=2, target_noise=0.2) == TD3Config()


def after_updates(config, state, rows, number, sizes):
    agent = compiled(config, *sizes)

    def step(state, key):
        return agent.update(state, rows, key)[0], None

    return jax.jit(lambda s: jax.lax.scan(step, s, jax.random.split(jax.random.key(1), number))[0])(state)


def test_without_discount_the_critics_regress_on_the_reward():
    config = TD3Config(hidden=(64,), learning_rate=3e-3, discount=0.0)
    batch = batch_of(rows=6) | {"terminated": np.zeros(6, bool)}
    state = after_updates(config, state_of(config), on_device(batch), 1500, (O, A))
    found = networks.values(critics_of(state.critic.params), batch["observation"], batch["action"])
    np.testing.assert_allclose(found, np.tile(batch["reward"], (2, 1)), atol=0.02)


def test_two_states_and_one_action_learn_the_solution_of_the_linear_system():
    """State 0 leads to 1 and 1 to 0, rewards 1 and 3, discount 0.5: Q = r + discount P Q."""
    config = TD3Config(hidden=(16,), learning_rate=3e-3, discount=0.5, polyak=0.05)
    state = state_of(config, 2, 1)
    # Kernels that do not look at the action: its value is the state's.
    blind = np.array(state.critic.params["params"]["Dense_0"]["kernel"])
    blind[:, 2] = 0.0
    params = replaced(state.critic.params, "Dense_0", kernel=blind)
    state = state._replace(critic=state.critic._replace(params=params, target=params))
    rows = on_device(two_states())
    state = after_updates(config, state, rows, 3000, (2, 1))
    expected = np.linalg.solve(np.array([[1.0, -0.5], [-0.5, 1.0]]), np.array([1.0, 3.0]))
    found = networks.values(critics_of(state.critic.params), np.eye(2), np.zeros((2, 1)))
    np.testing.assert_allclose(found, np.tile(expected, (2, 1)), atol=0.03)


def test_policy(x64):
    agent, state = agent_and_state(dataclasses.replace(TINY, exploration_noise=0.5))
    observation = batch_of()["observation"]

    @jax.jit
    def act(state, observation, key):
        policies = agent.policy(state, False), agent.policy(state, True), agent.policy_with_entropy(state)
        return [policy.act((), observation, key) for policy in policies]

    mean = reference.action_of(layers_of(state.actor.params), observation)
    (action, extras, memory), (found, _, _), (judged, bonus, _) = act(state, observation, jax.random.key(2))
    np.testing.assert_allclose(action, mean, rtol=1e-10)
    assert_same(act(state, observation, jax.random.key(99))[0][0], action)
    assert extras == memory == ()
    noisy = mean + 0.5 * noise_of(jax.random.key(2))
    assert 0 < np.mean(np.abs(noisy) > 1) < 1
    np.testing.assert_allclose(found, np.clip(noisy, -1, 1), rtol=1e-10)
    assert np.abs(found).max() == 1.0
    # The policy that the critics judge adds nothing and earns nothing besides.
    np.testing.assert_allclose(judged, mean, rtol=1e-10)
    assert bonus.shape == (B,) and not np.any(bonus)


HYPER = {"learning_rate": np.array([1e-2, 1e-3], np.float32), "discount": np.array([0.0, 0.5], np.float32)}


@functools.cache
def initial_states():
    """By the configuration alone, and of two seeds with hyperparameters of their own."""

    @jax.jit
    def initial(key, hyper):
        init = td3.make(TINY, O, A).init
        return init(key, {}), jax.vmap(init, in_axes=(None, 0))(key, hyper)

    return jax.device_get(initial(jax.random.key(0), HYPER))


def test_hyper_is_traced_and_each_seeds_own():
    _, state = initial_states()
    for part in (state.actor, state.critic):
        np.testing.assert_array_equal(part.learning_rate, HYPER["learning_rate"])
    np.testing.assert_array_equal(state.discount, HYPER["discount"])


def test_the_discount_is_the_states(x64):
    agent, state = agent_and_state()
    batch, key = batch_of(), jax.random.key(3)
    found = target_of(agent, state._replace(discount=np.asarray(0.5)), on_device(batch), key)
    np.testing.assert_allclose(found, expected_target(state, batch, 0.6 * noise_of(key), discount=0.5), rtol=1e-10)


def test_init():
    """Defaults come from the config; critics differ from each other; targets start as copies."""
    state, _ = initial_states()
    assert float(state.discount) == pytest.approx(0.9)
    for part in (state.actor, state.critic):
        assert float(part.learning_rate) == pytest.approx(3e-4)
        assert_same(part.target, part.params)
    kernels = state.critic.params["params"]["Dense_0"]["kernel"]
    assert kernels.shape == (3, O + A, 9)
    assert np.abs(kernels[0] - kernels[1]).min() > 0


@pytest.mark.parametrize("double", [False, True])
def test_dtypes_stay(double):
    with jax.enable_x64(double):
        agent, state = agent_and_state()
        after, metrics, _ = jax.eval_shape(agent.update, state, on_device(batch_of()), jax.random.key(0))
        expected = jnp.float64 if double else jnp.float32
        for before, leaf in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
            assert before.dtype == leaf.dtype
            assert before.weak_type == leaf.weak_type
            assert leaf.dtype in (expected, jnp.bool, jnp.int32)
        assert {leaf.dtype for leaf in jax.tree.leaves(metrics)} == {jnp.dtype(expected)}


def test_a_fault_stops_the_part_that_saw_it_and_its_target(x64):
    agent, state = agent_and_state()
    bad = batch_of()
    bad["reward"][3] = np.nan
    after, metrics, _ = agent.update(state, on_device(bad), jax.random.key(0))
    assert not bool(after.critic.active)
    assert not np.isfinite(float(metrics["agent/critic_loss"].total))
    assert_same(after.critic._replace(active=()), state.critic._replace(active=()))
    assert bool(after.actor.active)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"critics": 0}, "critics must be at least 1, got 0"),
        ({"polyak": 0}, "polyak must be above 0, got 0.0"),
        ({"exploration_noise": -0.1}, "exploration_noise must be at least 0, got -0.1"),
        ({"target_noise": -0.1}, "target_noise must be at least 0, got -0.1"),
        ({"target_noise_clip": -0.1}, "target_noise_clip must be at least 0, got -0.1"),
        ({"discount": 1.1}, "discount must be at most 1, got 1.1"),
        ({"critic_subset": 1}, "unknown field 'critic_subset'"),
    ],
)
def test_settings_that_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        from_dict(TD3Config, given)


def test_an_agent_is_chosen_by_name():
    choices = typing.get_args(typing.get_type_hints(AgentConfig)["method"])
    own = {"sac": SACConfig(hidden=(4,)), "td3": TD3Config(hidden=(5,))}
    assert set(own) | {"mpo"} == set(choices)
    for method, settings in own.items():
        config = AgentConfig(method, **own)
        assert config.chosen is settings
        state = jax.eval_shape(agents.make(config, O, A).init, jax.random.key(0), {})
        assert state.critic.params["params"]["Dense_0"]["kernel"].shape == (2, O + A, *settings.hidden)
    with pytest.raises(UserError, match="method must be 'sac' or 'td3' or 'mpo', got 'ddpg'"):
        from_dict(AgentConfig, {"method": "ddpg"})
