"""Deep Q-learning: its formulas by hand, one update against float64 NumPy, its spaces and its identities."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl.agents import q_learning
from jaxmbrl.agents.q_learning import QLearningConfig, bootstrap_value, dueling, margin_loss, q_loss
from jaxmbrl.core.config import UserError, from_dict
from jaxmbrl.core.spaces import Box, Discrete
from jaxmbrl.core.types import Transition
from jaxmbrl.data.n_step import NStep
from jaxmbrl.models.normalizer import Normalizer

from . import sac_in_numpy as networks
from .test_sac import assert_same, layers_of

O, ACTIONS, B = 3, 4, 16  # noqa: E741
VECTOR = Box((O,))
TINY = QLearningConfig(hidden=(9, 7), double=True, discount=0.9, polyak=0.25)

LINEAR = QLearningConfig(hidden=(), optimizer="rmsprop", learning_rate=0.01, polyak=1.0)


def test_targets_by_hand():
    """q(1, 2, 3), target network (5, 4, 1), r 0.5, discount 0.9: DQN 5.0, double DQN 1.4."""
    online, target = jnp.array([1.0, 2.0, 3.0]), jnp.array([5.0, 4.0, 1.0])
    assert 0.5 + 0.9 * float(bootstrap_value(target)) == pytest.approx(5.0)
    assert 0.5 + 0.9 * float(bootstrap_value(target, online)) == pytest.approx(1.4)
    # Of equal values, the first is chosen. No gradient flows through the choice.
    assert float(bootstrap_value(target, jnp.array([2.0, 2.0, 1.0]))) == 5.0
    np.testing.assert_array_equal(jax.grad(bootstrap_value, 1)(target, online), np.zeros(3))


def test_with_the_same_networks_double_dqn_is_dqn():
    values = np.random.default_rng(0).normal(size=(50, 5)).astype(np.float32)
    double = jax.vmap(bootstrap_value)(values, values)
    np.testing.assert_array_equal(double, values.max(axis=1))


def test_the_streams_of_a_dueling_network_by_hand():
    np.testing.assert_array_equal(dueling(jnp.asarray(2.0), jnp.array([1.0, 3.0, -1.0])), [2.0, 4.0, 0.0])


def test_huber_loss_by_hand():
    """Errors 0.5, 2, -3, 1: 0.125, 1.5, 2.5, 0.5 with threshold 1, and 0.125, 2, 4, 0.5 with threshold 2."""
    values, target = jnp.array([1.5, 2.0, -3.0, 1.0]), jnp.array([1.0, 0.0, 0.0, 0.0])
    assert float(q_loss(values, target)) == pytest.approx(4.625 / 4)
    assert float(q_loss(values, target, huber=2.0)) == pytest.approx(6.625 / 4)
    assert float(q_loss(values, target, huber=None)) == pytest.approx((0.125 + 2 + 4.5 + 0.5) / 4)
    weight = jnp.array([2.0, 0.0, 1.0, 0.5])
    assert float(q_loss(values, target, weight)) == pytest.approx((0.25 + 2.5 + 0.25) / 4)
    # The slope is the error clipped at the threshold.
    np.testing.assert_allclose(jax.grad(q_loss)(values, target), np.array([0.5, 1.0, -1.0, 1.0]) / 4)
    # Weights of 1 change nothing, bit for bit.
    assert float(q_loss(values, target, jnp.ones(4))) == float(q_loss(values, target))


def test_imitation_loss_by_hand():
    """q(1, 1.5, 0.2) with the margin 0.8: 1.3 if action 0 was demonstrated, 0.3 if action 1 was; 0 without a margin."""
    values = jnp.array([1.0, 1.5, 0.2])
    found = [float(margin_loss(values, jnp.asarray(action))) for action in range(3)]
    np.testing.assert_allclose(found, [1.3, 0.3, 2.1], rtol=1e-6)
    assert float(margin_loss(values, jnp.asarray(1), margin=0.0)) == 0.0


@functools.cache
def compiled(config, observation=VECTOR, normalizer=None):
    agent = q_learning.make(config, observation, ACTIONS, normalizer)
    return agent._replace(
        init=jax.jit(agent.init), update_critic=jax.jit(agent.update_critic), update=jax.jit(agent.update)
    )


def agent_and_state(config=TINY):
    """A state with random networks; the target network differs from the network."""
    random = np.random.default_rng(0)
    state = compiled(config).init(jax.random.key(0), {})

    def filled():
        return jax.tree.map(
            lambda x: random.normal(size=x.shape).astype(x.dtype) / np.sqrt(x.shape[-1]), state.critic.params
        )

    return compiled(config), state._replace(critic=state.critic._replace(params=filled(), target=filled()))


def batch_of(seed=0):
    random = np.random.default_rng(seed)
    dtype = np.dtype(jnp.result_type(float))
    return Transition(
        observation=random.normal(size=(B, O)).astype(dtype),
        action=random.integers(0, ACTIONS, B).astype(np.int32),
        reward=3 * random.normal(size=B).astype(dtype),
        next_observation=random.normal(size=(B, O)).astype(dtype),
        terminated=random.random(B) < 0.3,
        truncated=random.random(B) < 0.3,
    )


def values_of(params, observation):
    return networks.forward(layers_of({"params": params["params"]["MLP_0"]}), observation)[0]


def expected_target(state, batch, double):
    state = jax.device_get(state)
    target = values_of(state.critic.target, batch.next_observation)
    chosen = np.argmax(values_of(state.critic.params, batch.next_observation) if double else target, axis=1)
    value = target[np.arange(B), chosen]
    return batch.reward + float(state.discount) * np.where(batch.terminated, 0.0, value)


@pytest.mark.parametrize("double", [True, False])
def test_one_update_in_numpy(x64, double):
    agent, state = agent_and_state(dataclasses.replace(TINY, double=double))
    batch = batch_of()
    y = expected_target(state, batch, double)
    assert np.abs(y - expected_target(state, batch, not double)).max() > 0.1
    layers = layers_of({"params": jax.device_get(state.critic.params)["params"]["MLP_0"]})
    output, inputs = networks.forward(layers, batch.observation)
    error = output[np.arange(B), batch.action] - y
    assert 0 < np.mean(np.abs(error) > 1) < 1
    by_output = np.zeros_like(output)
    by_output[np.arange(B), batch.action] = np.clip(error, -1, 1) / B
    gradients, _ = networks.backward(layers, inputs, by_output)

    after, metrics, absolute = agent.update(state, batch, jax.random.key(0))
    np.testing.assert_allclose(absolute, np.abs(error), rtol=1e-9)
    huber = np.where(np.abs(error) < 1, error**2 / 2, np.abs(error) - 0.5)
    assert float(metrics["agent/critic_loss"].total) == pytest.approx(huber.mean(), rel=1e-9)
    assert float(metrics["agent/q"].total) == pytest.approx(output[np.arange(B), batch.action].mean(), rel=1e-9)
    for seen, expected in zip(
        layers_of({"params": jax.device_get(after.critic.moments.mu)["params"]["MLP_0"]}), gradients, strict=True
    ):
        # Adam's first moment after one step is a tenth of the gradient.
        for a, b in zip(seen, expected, strict=True):
            np.testing.assert_allclose(10 * a, b, rtol=1e-9, atol=1e-12)
    old, new, moved = jax.device_get((state.critic.target, after.critic.params, after.critic.target))
    jax.tree.map(lambda t, p, m: np.testing.assert_allclose(m, 0.75 * t + 0.25 * p, rtol=1e-9), old, new, moved)


def test_a_given_target_and_weights(x64):
    agent, state = agent_and_state()
    batch, random = batch_of(), np.random.default_rng(1)
    y, weight = random.normal(size=B), random.choice([0.0, 0.5, 2.0], B)
    after, metrics, error = agent.update_critic(state, batch, jax.random.key(0), target=y, weight=weight)
    found = values_of(jax.device_get(state.critic.params), batch.observation)[np.arange(B), batch.action] - y
    np.testing.assert_allclose(error, np.abs(found), rtol=1e-9)
    huber = np.where(np.abs(found) < 1, found**2 / 2, np.abs(found) - 0.5)
    assert float(metrics["agent/critic_loss"].total) == pytest.approx(np.mean(weight * huber), rel=1e-9)
    assert_same(after.critic.target, state.critic.target)


def test_the_imitation_loss_is_of_demonstrations_only(x64):
    """It is added with the weight of each row: with 0 it is nothing, bit for bit. The errors are those of the targets."""
    agent, state = agent_and_state()
    batch, key = batch_of(), jax.random.key(0)
    plain, zero = agent.update_critic(state, batch, key), agent.update_critic(state, batch, key, imitation=np.zeros(B))
    assert_same(zero, plain)
    weight = np.where(np.arange(B) % 4, 0.0, 3.0)
    _, metrics, error = agent.update_critic(state, batch, key, imitation=weight)
    values = values_of(jax.device_get(state.critic.params), batch.observation)
    own = values[np.arange(B), batch.action]
    raised = values + 0.8 * (np.arange(ACTIONS) != batch.action[:, None])
    losses = raised.max(axis=1) - own
    added = float(metrics["agent/critic_loss"].total) - float(plain[1]["agent/critic_loss"].total)
    assert added == pytest.approx(np.mean(weight * losses), rel=1e-9) and added > 0.1
    np.testing.assert_array_equal(error, plain[2])


def test_weight_decay_is_the_gradient_of_the_squared_norm():
    agent = q_learning._QLearning(dataclasses.replace(TINY, weight_decay=0.25), None, VECTOR, None)
    params, gradient = {"w": jnp.array([2.0, -1.0])}, {"w": jnp.array([1.0, 1.0])}
    _, state = agent.chain.update(gradient, agent.chain.init(params), params)
    # Adam's first moment is a tenth of the gradient 1 + 2 * 0.25 * w.
    np.testing.assert_allclose(state[1].mu["w"], [0.2, 0.05], rtol=1e-6)
    assert q_learning._QLearning(TINY, None, VECTOR, None).chain is None


def test_terminated_masks_the_value_and_truncated_does_not(x64):
    agent, state = agent_and_state()
    batch, key, yes, no = batch_of(), jax.random.key(0), np.ones(B, bool), np.zeros(B, bool)
    taken = values_of(jax.device_get(state.critic.params), batch.observation)[np.arange(B), batch.action]

    def error(**fields):
        return np.asarray(agent.update_critic(state, batch._replace(**fields), key)[2])

    ended = error(terminated=yes, next_observation=np.full((B, O), np.nan))
    np.testing.assert_allclose(ended, np.abs(taken - batch.reward), rtol=1e-9)
    timed_out, going_on = error(terminated=no, truncated=yes), error(terminated=no, truncated=no)
    np.testing.assert_array_equal(timed_out, going_on)
    assert np.abs(timed_out - ended).min() > 1e-4


def test_rows_of_several_steps_have_their_own_discount(x64):
    """With the agent's own discount in each row, the update is that of one step, bit for bit."""
    agent, state = agent_and_state()
    batch, key = batch_of(), jax.random.key(0)
    rows = NStep(*batch, discount=np.full(B, float(state.discount)))
    one, several = agent.update(state, batch, key), agent.update(state, rows, key)
    assert_same(one, several)
    discount = np.random.default_rng(2).uniform(0.2, 0.8, B)
    _, _, error = agent.update(state, rows._replace(discount=discount), key)
    y = batch.reward + discount / 0.9 * (expected_target(state, batch, True) - batch.reward)
    taken = values_of(jax.device_get(state.critic.params), batch.observation)[np.arange(B), batch.action]
    np.testing.assert_allclose(error, np.abs(taken - y), rtol=1e-9)


def test_with_polyak_1_the_target_network_is_a_copy(x64):
    agent, state = agent_and_state(LINEAR)
    after, _, _ = agent.update(state, batch_of(), jax.random.key(0))
    assert_same(after.critic.target, after.critic.params)
    copied = q_learning.copy_target(state)
    assert_same(copied.critic.target, state.critic.params)
    assert_same(copied.critic.params, state.critic.params)


def test_centred_rmsprop(x64):
    """The first step: g / sqrt(0.05 g^2 - (0.05 g)^2 + epsilon), with DQN's decay 0.95."""
    agent, state = agent_and_state(LINEAR)
    after, _, _ = agent.update(state, batch_of(), jax.random.key(0))
    before, params, mean = (
        jax.device_get(x)["params"]["MLP_0"]["Dense_0"]["kernel"]
        for x in (state.critic.params, after.critic.params, after.critic.moments.mu)
    )
    g = mean / 0.05
    step = 0.01 * g / np.sqrt(0.05 * g**2 - (0.05 * g) ** 2 + 0.01 / 32**2)
    assert np.abs(g).max() > 0
    np.testing.assert_allclose(params, before - step, rtol=1e-9)


def test_policies(x64):
    agent, state = agent_and_state()
    observation = batch_of().observation

    @jax.jit
    def act(state, observation, key):
        policies = agent.policy(state, False), agent.policy(state, True), agent.policy_with_entropy(state)
        return [policy.act((), observation, key) for policy in policies]

    values = values_of(jax.device_get(state.critic.params), observation)
    (greedy, extras, memory), _, (judged, bonus, _) = act(state, observation, jax.random.key(1))
    np.testing.assert_array_equal(greedy, values.argmax(axis=1))
    assert len(np.unique(greedy)) > 1 and greedy.dtype == np.int32 and extras == memory == ()
    np.testing.assert_array_equal(judged, greedy)
    np.testing.assert_array_equal(bonus, np.zeros(B))
    # 5% of the actions are uniformly random, and one of four of those is greedy. Rows of a block are independent.
    many = np.repeat(observation[:1], 4000, axis=0)
    explored = np.asarray(act(state, many, jax.random.key(2))[1][0])
    assert np.mean(explored != greedy[0]) == pytest.approx(0.05 * 3 / 4, abs=0.012)
    (single, _, _), (one, _, _), _ = act(state, observation[3], jax.random.key(1))
    assert single == greedy[3] and single.shape == one.shape == ()


def test_the_values_that_other_methods_use(x64):
    agent, state = agent_and_state()
    batch, key = batch_of(), jax.random.key(0)

    @jax.jit
    def found(state, batch):
        value = agent.target_value(state, batch.next_observation, key)
        each = agent.target_values(state, batch.next_observation, key)
        return value, each, agent.action_value(state, batch.observation, batch.action, key)

    value, each, of_action = found(state, batch)
    expected = expected_target(state, batch._replace(terminated=np.zeros(B, bool)), True)
    np.testing.assert_allclose(value, (expected - batch.reward) / 0.9, rtol=1e-9)
    np.testing.assert_array_equal(each, value[None])
    taken = values_of(jax.device_get(state.critic.params), batch.observation)[np.arange(B), batch.action]
    np.testing.assert_allclose(of_action, taken, rtol=1e-9)


def test_a_dueling_network_in_numpy(x64):
    config = QLearningConfig(hidden=(9, 7), dueling=True)
    agent, state = agent_and_state(config)
    params = jax.device_get(state.critic.params)["params"]
    observation = batch_of().observation
    layers = [layers_of({"params": params[f"MLP_{i}"]}) for i in range(3)]
    x = np.maximum(networks.forward(layers[0], observation)[0], 0.0)
    value, advantage = networks.forward(layers[1], x)[0], networks.forward(layers[2], x)[0]
    assert [kernel.shape for layer in layers for kernel, _ in layer] == [(O, 9), (9, 7), (7, 1), (9, 7), (7, ACTIONS)]
    values = value + advantage - advantage.mean(axis=1, keepdims=True)
    action = np.arange(B, dtype=np.int32) % ACTIONS
    found = jax.jit(agent.action_value)(state, observation, action, jax.random.key(0))
    np.testing.assert_allclose(found, values[np.arange(B), action], rtol=1e-9)


def test_discrete_observations_are_encoded_and_vectors_normalised():
    table, key = compiled(QLearningConfig(hidden=()), Discrete(5)), jax.random.key(0)
    state = table.init(key, {})
    kernel, bias = layers_of({"params": jax.device_get(state.critic.params)["params"]["MLP_0"]})[0]
    assert kernel.shape == (5, ACTIONS)
    seen, action = np.array([4, 0], np.int32), np.array([1, 3], np.int32)
    found = jax.jit(table.action_value)(state, seen, action, key)
    np.testing.assert_allclose(found, kernel[seen, action] + bias[action], rtol=1e-6)
    mean, std = np.float32([1, 2, 3]), np.float32([2, 1, 4])
    shifting = Normalizer(mean, std, np.full(O, -np.inf, np.float32), np.full(O, np.inf, np.float32))
    agents = [q_learning.make(QLearningConfig(hidden=()), VECTOR, ACTIONS, of) for of in (shifting, None)]
    state, x = agents[0].init(key, {}), np.random.default_rng(0).normal(size=(2, O)).astype(np.float32)
    found, expected = (
        jax.jit(agent.action_value)(state, given, action, key)
        for agent, given in zip(agents, (x, (x - mean) / std), strict=True)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_images_are_the_input_of_convolutions():
    agent = q_learning.make(QLearningConfig(hidden=(512,), dueling=True), Box((84, 84, 4), 0, 255, "uint8"), ACTIONS)
    state = jax.eval_shape(agent.init, jax.random.key(0), {})
    params = state.critic.params["params"]
    kernels = [params["ConvTorso_0"][f"Conv_{i}"]["kernel"].shape for i in range(3)]
    assert kernels == [(8, 8, 4, 32), (4, 4, 32, 64), (3, 3, 64, 64)]
    assert params["MLP_0"]["Dense_0"]["kernel"].shape == params["MLP_1"]["Dense_0"]["kernel"].shape == (3136, 512)
    image = jax.ShapeDtypeStruct((84, 84, 4), jnp.uint8)
    action, _, _ = jax.eval_shape(lambda s, x, k: agent.policy(s, True).act((), x, k), state, image, jax.random.key(0))
    assert (action.shape, action.dtype) == ((), jnp.int32)
    with pytest.raises(UserError, match="convolutions need images of at least 36 x 36 pixels, got 10 x 12"):
        q_learning.make(QLearningConfig(), Box((10, 12, 1), 0, 255, "uint8"), ACTIONS)


def test_hyper_is_traced_and_targets_start_as_copies():
    hyper = {"learning_rate": np.float32([1e-2, 1e-3]), "discount": np.float32([0.0, 0.5])}
    state = jax.jit(jax.vmap(q_learning.make(TINY, VECTOR, ACTIONS).init, (None, 0)))(jax.random.key(0), hyper)
    np.testing.assert_array_equal(state.critic.learning_rate, hyper["learning_rate"])
    np.testing.assert_array_equal(state.discount, hyper["discount"])
    assert_same(state.critic.target, state.critic.params)
    assert state.actor is state.critic


def test_there_is_no_actor_to_train():
    agent, state = agent_and_state()
    with pytest.raises(TypeError, match="another actor loss is not possible"):
        agent.update_actor(state, batch_of(), jax.random.key(0), loss=lambda *_: 0.0)
    with pytest.raises(TypeError, match="it has no gradient"):
        agent.apply_actor_gradient(state, jnp.zeros(()), state.critic.params, jnp.zeros(()))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"huber": 0}, "huber must be .*above 0"),
        ({"polyak": 0}, "polyak must be above 0, got 0.0"),
        ({"epsilon": 1.5}, "epsilon must be at most 1, got 1.5"),
        ({"optimizer": "sgd"}, "optimizer must be 'adam' or 'rmsprop'"),
        ({"convolutions": [[32, 0, 1]]}, "at least 1, got 0"),
    ],
)
def test_settings_that_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        from_dict(QLearningConfig, given)
