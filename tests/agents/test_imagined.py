"""The actor-critic of imagined trajectories: losses by hand in a world without noise, and what is exactly 0 at first."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmbrl.agents import imagined
from jaxmbrl.agents.imagined import Functions, Head, ImaginedConfig, ImaginedState
from jaxmbrl.core.config import UserError, check
from jaxmbrl.core.spaces import Box, Discrete
from jaxmbrl.core.types import Transition, World
from jaxmbrl.distributions import ScalarHead
from jaxmbrl.models.latent import Window
from jaxmbrl.nn import optimizer

BOX, SIZE = Box((2,), -1.0, 1.0), 3
PLAIN = ImaginedConfig(
    horizon=2, discount=0.9, mix=0.5, entropy=0.0, bins=0, target="none", replay_value=0.0, normalize_returns=False
)
OFFSET, VALUE, THETA, SLOW = 0.3, 0.7, 0.4, -0.2
START = np.array([0.5, -1.0])


def line(ends=0.0):
    """x' = x + a, reward -x'^2 at the arrival; ends with a fixed probability. The carry is x [N]."""

    def step(x, action, key):
        after = x + action
        ended = jnp.full(x.shape, ends)
        return after, Transition(x[:, None], action, -(after**2), after[:, None], ended, jnp.zeros(x.shape, bool))

    return World(reset=lambda key: None, start=lambda x, key: x, observe=lambda x: x[:, None], step=step)


def by_hand(config):
    """An actor with output theta for every state, whose sample is always theta + .3, and a critic with a constant value."""
    head = Head(
        1,
        sample=lambda output, key: output + OFFSET,
        mode=lambda output: output,
        log_probability=lambda output, action: -0.5 * (action - output) ** 2,
        entropy=lambda output: 2.0 * output,
    )

    def constant(params, features):
        return params * jnp.ones(features.shape[:-1])

    return Functions(
        config,
        config.pathwise(BOX),
        head,
        constant,
        lambda params, features: constant(params, features)[..., None],
        ScalarHead(),
    )


def state(low=0.0, high=0.0, discount=0.9):
    empty = optimizer.init(jnp.zeros(()), 0.0)
    slow = empty._replace(target=jnp.asarray(SLOW, float))
    return ImaginedState(empty, slow, *(jnp.asarray(x, float) for x in (low, high, discount)), jnp.zeros((), jnp.int32))


def returns_of(theta, ends=0.0, discount=0.9, mix=0.5, value=VALUE):
    """(R_0, R_1, weights) of both starts: rewards -x_1^2 and -x_2^2, and one value for all states."""
    first, second = -((START + theta + OFFSET) ** 2), -((START + 2 * (theta + OFFSET)) ** 2)
    goes_on = discount * (1 - ends)
    last = second + goes_on * value
    return first + goes_on * ((1 - mix) * value + mix * last), last, np.array([1.0, goes_on])


def losses(config, weight=(1.0, 1.0), ends=0.0, given=None):
    """(loss, gradients with respect to actor and critic, found) of the toy."""
    functions = by_hand(config)

    @jax.jit
    def found(actor, critic):
        def loss(actor, critic):
            start = given or state()
            arguments = line(ends), jnp.asarray(START), jnp.asarray(weight, float), jax.random.key(0)
            return imagined.dream_loss(functions, actor, critic, start, *arguments)

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(actor, critic)

    (value, dreams), slopes = jax.device_get(found(jnp.asarray(THETA), jnp.asarray(VALUE)))
    return value, slopes, dreams


@pytest.mark.parametrize("ends", [0.0, 0.25])
def test_the_gradient_by_log_probabilities_by_hand(x64, ends):
    """d log pi / d theta = .3. The advantage and the weight are those of the state that is acted from."""
    _, (actor, critic), dreams = losses(PLAIN, ends=ends)
    first, last, w = returns_of(THETA, ends)
    due = np.mean([w[0] * OFFSET * (first - VALUE), w[1] * OFFSET * (last - VALUE)])
    np.testing.assert_allclose(actor, -due, rtol=1e-12)
    np.testing.assert_allclose(critic, np.mean([2 * w[0] * (VALUE - first), 2 * w[1] * (VALUE - last)]), rtol=1e-12)
    np.testing.assert_allclose(dreams.first_return, first, rtol=1e-12)


def test_the_gradient_through_the_model_is_that_of_the_returns(x64):
    config = dataclasses.replace(PLAIN, gradient="pathwise")
    _, (actor, critic), _ = losses(config, ends=0.25)
    step = 1e-6

    def objective(theta):
        first, last, w = returns_of(theta, 0.25)
        return np.mean([w[0] * first, w[1] * last])

    np.testing.assert_allclose(actor, -(objective(THETA + step) - objective(THETA - step)) / (2 * step), rtol=1e-7)
    np.testing.assert_allclose(critic, losses(PLAIN, ends=0.25)[1][1], rtol=1e-12)


def test_the_gradient_through_the_model_of_advantages_subtracts_that_of_the_values(x64):
    """Values v(x) = .7 x. By finite differences of mean w_t (R_t - v(x_t))."""
    config = dataclasses.replace(PLAIN, gradient="pathwise", baseline=True)
    functions = by_hand(config)._replace(critic=lambda params, features: params * features)

    def loss(actor):
        arguments = line(0.25), jnp.asarray(START), jnp.ones(2), jax.random.key(0)
        return imagined.dream_loss(functions, actor, jnp.asarray(VALUE), state(), *arguments)[0]

    def objective(theta, baseline):
        goes_on = 0.9 * 0.75
        states = [START + t * (theta + OFFSET) for t in range(3)]
        last = -(states[2] ** 2) + goes_on * VALUE * states[2]
        first = -(states[1] ** 2) + goes_on * (0.5 * VALUE * states[1] + 0.5 * last)
        advantages = first - baseline * VALUE * states[0], last - baseline * VALUE * states[1]
        return np.mean([advantages[0], goes_on * advantages[1]])

    def slope(baseline):
        return (objective(THETA + 1e-6, baseline) - objective(THETA - 1e-6, baseline)) / 2e-6

    np.testing.assert_allclose(jax.jit(jax.grad(loss))(jnp.asarray(THETA)), -slope(1.0), rtol=1e-7)
    assert abs(slope(1.0) - slope(0.0)) > 0.1


def test_a_terminal_root_has_no_weight_and_entropy_is_rewarded(x64):
    _, (actor, _), _ = losses(dataclasses.replace(PLAIN, entropy=0.5), weight=(1.0, 0.0))
    first, last, w = returns_of(THETA)
    due = [w[0] * (OFFSET * (first - VALUE)[0] + 0.5 * 2.0), w[1] * (OFFSET * (last - VALUE)[0] + 0.5 * 2.0)]
    np.testing.assert_allclose(actor, -np.sum(due) / 4, rtol=1e-12)


def test_the_slow_critic_is_a_second_target_or_what_returns_bootstrap_from(x64):
    first, last, w = returns_of(THETA)
    _, (_, critic), _ = losses(dataclasses.replace(PLAIN, target="regularizer"))
    due = [w[0] * (2 * VALUE - first - SLOW), w[1] * (2 * VALUE - last - SLOW)]
    np.testing.assert_allclose(critic, 2 * np.mean(due), rtol=1e-12)
    first, last, w = returns_of(THETA, value=SLOW)
    _, (actor, critic), dreams = losses(dataclasses.replace(PLAIN, target="bootstrap"))
    np.testing.assert_allclose(dreams.first_return, first, rtol=1e-12)
    np.testing.assert_allclose(critic, 2 * np.mean([w[0] * (VALUE - first), w[1] * (VALUE - last)]), rtol=1e-12)
    due = np.mean([w[0] * OFFSET * (first - SLOW), w[1] * OFFSET * (last - SLOW)])
    np.testing.assert_allclose(actor, -due, rtol=1e-12)


def test_the_slow_critic_may_be_a_copy_of_every_third_update():
    config = dataclasses.replace(SMALL, target="bootstrap", target_rate=1.0, target_every=3)
    agent = imagined.make(config, 1, BOX, optax.scale_by_adam())

    @jax.jit
    def updated(key):
        now, nothing = (
            agent.init(key, {}, jnp.asarray(1e-2)),
            imagined.Dreams(jnp.zeros(()), jnp.ones(()), jnp.zeros(1), {}),
        )
        found = [now.critic]
        for _ in range(3):
            now, _ = agent.apply(now, *(jax.tree.map(jnp.ones_like, of.params) for of in (now.actor, now.critic)), nothing)
            found.append(now.critic)
        return found

    states = jax.device_get(updated(jax.random.key(0)))
    for i, due in enumerate((0, 0, 0, 3)):
        jax.tree.map(np.testing.assert_array_equal, states[i].target, states[due].params)


def test_without_mixing_the_return_is_the_discounted_sum_with_a_bootstrap(x64):
    _, _, dreams = losses(dataclasses.replace(PLAIN, mix=1.0))
    rewards = -((START + THETA + OFFSET) ** 2), -((START + 2 * (THETA + OFFSET)) ** 2)
    np.testing.assert_allclose(dreams.first_return, rewards[0] + 0.9 * rewards[1] + 0.81 * VALUE, rtol=1e-12)


def test_the_scale_of_returns(x64):
    """Returns 0 .. 100: the range between the percentiles is 90; the averages start at 0, so S is 1, 1.791, 2.673."""
    low = high = jnp.zeros(())
    spread, found = jnp.arange(101.0)[None], []
    move = jax.jit(lambda low, high: (imagined.moved(low, spread, 0.05), imagined.moved(high, spread, 0.95)))
    for _ in range(3):
        low, high = move(low, high)
        found.append(max(1.0, float(high - low)))
    np.testing.assert_allclose(found, [1, 1.791, 2.67309], atol=5e-7)


def test_returns_are_divided_by_their_scale(x64):
    config = dataclasses.replace(PLAIN, normalize_returns=True)
    _, (plain, _), _ = losses(PLAIN)
    _, (divided, _), dreams = losses(config, given=state(low=-4.0, high=6.0))
    np.testing.assert_allclose(divided, plain / (dreams.high - dreams.low), rtol=1e-12)
    first, last, _ = returns_of(THETA)
    np.testing.assert_allclose(dreams.low, 0.99 * -4 + 0.01 * np.quantile([*first, *last], 0.05), rtol=1e-12)


def test_the_normal_policy_is_bounded(x64):
    """Standard deviation .892717 at output 0; entropies between -.883647 and 1.418939 an action."""
    outputs = np.array([[0.0, 0.0], [50.0, -50.0], [-50.0, 50.0]])
    mean, log_std, entropy = jax.jit(lambda x: (*imagined.normal(x), imagined.normal(x).entropy()))(outputs)
    np.testing.assert_allclose(mean[:, 0], [0, 1, -1], atol=1e-12)
    np.testing.assert_allclose(np.exp(log_std[:, 0]), [0.892717, 0.1, 1.0], atol=5e-7)
    np.testing.assert_allclose(entropy[1:], [-0.883647, 1.418939], atol=5e-7)


def window(rewards, terminated, last):
    shape = rewards.shape
    none = np.zeros(shape)
    return jax.tree.map(jnp.asarray, Window(none, none, rewards, terminated, none > 0, last, none))


def test_returns_of_the_real_window_by_hand(x64):
    """An end by termination at position 2, a time limit at position 3: nothing follows a last position."""
    rewards = np.array([[0.0, 1.0, 2.0, 3.0, 4.0]] * 2)
    terminated = np.array([[False, False, True, False, False], [False] * 5])
    last = np.array([[False, False, True, False, False], [False, False, False, True, False]])
    boot = np.array([[5.0, 6.0, 7.0, 8.0, 9.0]] * 2)
    found = jax.jit(imagined.replay_returns, static_argnums=(2, 3))(
        window(rewards, terminated, last), jnp.asarray(boot), 0.9, 0.5
    )
    end = 4 + 0.9 * 9
    second = 3 + 0.9 * (0.5 * 8 + 0.5 * end)
    due = [1 + 0.9 * (0.5 * 6 + 0.5 * 2), 2, second, end]
    np.testing.assert_allclose(found[0], due, rtol=1e-12)
    limit = 3 + 0.9 * 8
    middle = 2 + 0.9 * (0.5 * 7 + 0.5 * limit)
    np.testing.assert_allclose(found[1], [1 + 0.9 * (0.5 * 6 + 0.5 * middle), middle, limit, end], rtol=1e-12)


def test_the_loss_on_the_real_window_trains_the_features_but_not_at_last_positions(x64):
    """A critic with value theta f and squared error. Position 1 is the last of its episode."""
    functions = by_hand(PLAIN)._replace(critic=lambda params, features: params * features)
    rewards, ends = np.array([[0.0, 1.0, 2.0, 3.0]]), np.array([[False, True, False, False]])
    boot, features = np.array([[5.0, 6.0, 7.0, 8.0]]), np.array([[[1.0], [2.0], [3.0], [4.0]]])

    @jax.jit
    def looked(params, features):
        def loss(params, features):
            return imagined.replay_loss(
                functions, params, state(), features, window(rewards, ends, ends), jnp.asarray(boot)
            )

        return jax.value_and_grad(loss, argnums=(0, 1))(params, features)

    value, (of_critic, of_features) = jax.device_get(looked(jnp.asarray(0.5), jnp.asarray(features)))
    due = np.array([1.0, 2 + 0.9 * (0.5 * 7 + 0.5 * (3 + 0.9 * 8)), 3 + 0.9 * 8])
    error = (0.5 * np.array([1.0, 2, 3]) - due) * [1, 0, 1]
    np.testing.assert_allclose(value, np.sum(error**2) / 3, rtol=1e-12)
    np.testing.assert_allclose(of_critic, np.sum(2 * error * [1, 2, 3]) / 3, rtol=1e-12)
    np.testing.assert_allclose(of_features[0, :, 0], [*(2 * error * 0.5 / 3), 0], rtol=1e-12)


SMALL = ImaginedConfig(horizon=3, units=5, layers=1, bins=5, roots=3, replay_value=0.0)


def test_at_first_values_and_returns_are_exactly_zero_and_updates_move_everything():
    """With zeros in the critic's last layer, and no reward."""
    agent = imagined.make(SMALL, 1, Box((1,), -1.0, 1.0), optax.scale_by_adam())
    still = line()

    def step(x, action, key):
        after, made = still.step(x, action[:, 0], key)
        return after, made._replace(action=action, reward=jnp.zeros_like(x))

    @jax.jit
    def updated(key):
        first = agent.init(key, {}, jnp.asarray(1e-2))

        def loss(actor, critic):
            return agent.loss(actor, critic, first, still._replace(step=step), jnp.asarray(START, float), jnp.ones(2), key)

        (value, dreams), slopes = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(
            first.actor.params, first.critic.params
        )
        return first, value, dreams, *agent.apply(first, *slopes, dreams)

    before, value, dreams, after, found = jax.device_get(updated(jax.random.key(0)))
    assert not dreams.first_return.any() and dreams.low == dreams.high == 0
    # Both targets of the critic are 0, all logits are equal: 2 log(5), weighted by 1, .997 and .997^2.
    weights = (1 + 0.997 + 0.997**2) / 3
    np.testing.assert_allclose(found["agent/critic"].total, 2 * np.log(5) * weights, rtol=1e-6)
    assert found["agent/scale"].total == 1 and np.isfinite(value)
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), before.actor.params, after.actor.params)
    # Only the entropy bonus acts on the actor, because every advantage is 0.
    assert any(jax.tree.leaves(changed))
    moved = jax.tree.leaves(jax.tree.map(lambda t, p: np.abs(t - p).max(), after.critic.target, before.critic.params))
    whole = jax.tree.leaves(jax.tree.map(lambda t, p: np.abs(t - p).max(), after.critic.params, before.critic.params))
    np.testing.assert_allclose(moved, 0.02 * np.array(whole), rtol=1e-3, atol=1e-9)


def test_roots_are_different_positions_and_all_of_them_by_default():
    given = window(np.zeros((2, 5)), np.arange(10).reshape(2, 5) == 7, np.zeros((2, 5), bool))
    beliefs = jnp.arange(10.0).reshape(2, 5)
    some, weight = jax.jit(lambda key: imagined.roots(SMALL, beliefs, given, key))(jax.random.key(1))
    assert len(set(np.asarray(some).tolist())) == 3
    np.testing.assert_array_equal(weight, np.asarray(some) != 7)
    every, weight = imagined.roots(dataclasses.replace(SMALL, roots=None), beliefs, given, jax.random.key(1))
    np.testing.assert_array_equal(every, np.arange(10))
    np.testing.assert_array_equal(weight, np.arange(10) != 7)


def test_what_it_refuses():
    pathwise, auto = (dataclasses.replace(SMALL, gradient=gradient) for gradient in ("pathwise", "auto"))
    assert auto.pathwise(BOX) and not auto.pathwise(Discrete(2)) and not SMALL.pathwise(BOX)
    with pytest.raises(UserError, match=r"^agent.gradient must be reinforce or auto for discrete actions, got pathwise$"):
        imagined.make(pathwise, 3, Discrete(2), optax.identity())
    for changes, message in (
        ({"replay_value": 0.3}, r"^replay_value must be 0 with a number of roots \(3\), got 0.3$"),
        ({"bins": 4}, "^bins must be 0, or odd and at least 3, got 4$"),
        ({"policy": "tanh-normal"}, "^policy must be normal unless gradient is pathwise and entropy 0$"),
    ):
        with pytest.raises(UserError, match=message):
            check(dataclasses.replace(SMALL, **changes))
