"""MPO: losses against numbers computed by hand, an update against finite differences in NumPy, and identities."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from jaxmbrl import agents
from jaxmbrl.agents import AgentConfig
from jaxmbrl.agents.actor_critic import mpo
from jaxmbrl.agents.actor_critic.mpo import Duals, MPOConfig
from jaxmbrl.agents.actor_critic.value_gradients import ValueGradientConfig, with_value_gradient
from jaxmbrl.core.config import UserError
from jaxmbrl.core.spaces import Discrete
from jaxmbrl.core.types import World
from jaxmbrl.data.n_step import NStep

from .test_sac import A, B, O, assert_same, batch_of, critics_of, layers_of, on_device, split

M = 6
TINY = MPOConfig(
    hidden=(),
    layer_norm=False,
    critics=2,
    samples=M,
    learning_rate=1e-2,
    gradient_norm=None,
    discount=0.9,
    copy_every=0,
    polyak=0.25,
    initial_std=0.9,
    epsilon_penalty=0.02,
    initial_temperature=2.0,
    initial_alpha_mean=3.0,
    initial_alpha_std=5.0,
)


@functools.cache
def compiled(config=TINY):
    agent = mpo.make(config, O, A)
    return agent._replace(
        update_critic=jax.jit(agent.update_critic), update_actor=jax.jit(agent.update_actor, static_argnames="loss")
    )


@functools.partial(jax.jit, static_argnums=0)
def initial(config):
    return mpo.make(config, O, A).init(jax.random.key(0), {})


def state_of(config=TINY):
    """A state with random networks, whose targets differ from them."""
    random = np.random.default_rng(0)

    def filled(part):
        drawn = [jax.tree.map(lambda x: (0.7 * random.normal(size=x.shape)).astype(x.dtype), part.params) for _ in range(2)]
        return part._replace(params=drawn[0], target=drawn[1])

    state = jax.device_get(initial(config))
    return state._replace(actor=filled(state.actor), critic=filled(state.critic))


def softplus(x):
    return np.log1p(np.exp(x))


def gaussian_of(params, observation, initial_std=0.9):
    """Mean and standard deviation of a linear actor."""
    ((kernel, bias),) = layers_of(params)
    output = observation @ kernel + bias
    return output[..., :A], softplus(output[..., A:]) * initial_std / np.log(2) + 1e-6


def values_of(params, observation, actions):
    """The value of actions [M, B, A] by each linear critic."""
    clipped = np.minimum(np.maximum(actions, -1), 1)
    pair = np.concatenate([np.broadcast_to(observation, (*actions.shape[:-1], O)), clipped], axis=-1)
    return np.stack([(pair @ kernel + bias)[..., 0] for ((kernel, bias),) in critics_of(params)])


def samples_of(state, observation, key):
    """The M actions of the target policy that the agent samples with `key`."""
    mean, std = gaussian_of(state.actor.target, observation)
    return mean + std * np.asarray(jax.random.normal(key, (M, *mean.shape))), (mean, std)


def normal_log_density(x, mean, std):
    return norm.logpdf(x, mean, std).sum(axis=-1)


# The E-step.


weights_of, kl_of = jax.jit(mpo.sample_weights), jax.jit(mpo.weights_kl)
dual_of = jax.jit(jax.value_and_grad(mpo.temperature_loss, 1), static_argnums=2)


def test_weights_and_temperature_of_three_samples():
    values = jnp.array([1.0, 2.0, 4.0])
    np.testing.assert_allclose(weights_of(values, 2.0), [0.140244, 0.231224, 0.628532], atol=1e-6)
    loss, slope = dual_of(values, 2.0, 0.1)
    assert float(loss) == pytest.approx(2.931513, abs=1e-6)
    assert float(slope) == pytest.approx(-0.092653, abs=1e-6)
    # The slope is epsilon - KL(weights | uniform).
    assert float(kl_of(weights_of(values, 2.0))) == pytest.approx(0.1 + 0.092653, abs=1e-6)
    # Over two states, a mean; their weights are those of each alone.
    other = jnp.array([2.0, 1.0, -1.0])
    both = jnp.stack([values, other], axis=1)
    np.testing.assert_allclose(weights_of(both, 2.0)[:, 0], weights_of(values, 2.0), rtol=1e-6)
    halves = [float(dual_of(x, 2.0, 0.1)[0]) for x in (values, other)]
    assert float(dual_of(both, 2.0, 0.1)[0]) == pytest.approx(sum(halves) / 2, rel=1e-6)


def test_a_quadratic_value_gives_a_gaussian():
    """pi = N(0, 0.5^2) in 20,001 equally probable points, Q = -(a - 1)^2 / (2 0.25): weights of a Gaussian with precision
    4 + 4 / eta."""
    actions = norm.ppf((np.arange(20_001) + 0.5) / 20_001, 0.0, 0.5)
    values = jnp.asarray(-((actions - 1) ** 2) / (2 * 0.25))
    weights = np.asarray(weights_of(values, 1.0), float)
    mean = np.sum(weights * actions)
    assert mean == pytest.approx(0.5, abs=1e-4)
    assert np.sqrt(np.sum(weights * (actions - mean) ** 2)) == pytest.approx(0.353553, abs=1e-4)
    assert float(kl_of(jnp.asarray(weights))) == pytest.approx(0.596574, abs=1e-3)
    # At eta = 3.786834 the KL divergence is 0.1, and the dual is at its minimum.
    below, at, above = (float(dual_of(values, eta, 0.1)[1]) for eta in (3.6, 3.786834, 4.0))
    assert at == pytest.approx(0.0, abs=1e-5)
    assert below < -1e-3 and above > 1e-3


def test_an_infinite_temperature_changes_nothing():
    """Uniform weights on samples with the policy's own mean and variance: no gradient."""
    values, spread = jnp.array([[3.0, -50.0, 7.0, 1e4]]).T, np.sqrt(2)
    weights = weights_of(values, 1e12)
    np.testing.assert_allclose(weights, 0.25, rtol=1e-5)
    mean, std = jnp.array([[0.3]]), jnp.array([[0.5]])
    actions = mean + std * jnp.array([spread, -spread, 0.0, 0.0]).reshape(4, 1, 1)

    slope_of = jax.jit(jax.grad(mpo.likelihood_loss, 2))
    for slope in slope_of(weights, actions, (mean, std), (mean, std)):
        np.testing.assert_allclose(slope, 0.0, atol=1e-4)


def test_the_distance_from_the_bounds():
    found = mpo.bounds_value(jnp.array([[0.5, -1.0], [1.5, 0.0], [4.0, -5.0]]))
    np.testing.assert_allclose(found, [0.0, -0.5, -5.0])


# The M-step.


def test_decoupled_kl():
    new, old = ((jnp.array([mean]), jnp.array([std])) for mean, std in ((0.3, 2.0), (0.0, 1.0)))
    (of_mean,), (of_std,) = mpo.decoupled_kl(new, old)
    assert float(of_mean) == pytest.approx(0.045) and float(of_std) == pytest.approx(0.318147, abs=1e-6)
    assert [float(x[0]) for x in mpo.decoupled_kl(new, new)] == [0.0, 0.0]
    # Each is the KL divergence of two Gaussians of which only the mean or the standard deviation differs.
    x = np.linspace(-12, 12, 100_001)
    for other, expected in (((0.3, 1.0), 0.045), ((0.0, 2.0), 0.318147), ((0.3, 2.0), 0.329397)):
        density = norm.pdf(x)
        assert np.trapezoid(density * (norm.logpdf(x) - norm.logpdf(x, *other)), x) == pytest.approx(expected, abs=1e-6)


def test_a_multiplier_rises_while_its_bound_is_violated():
    slope_of = jax.grad(mpo.multiplier_loss, (0, 1))
    slopes, constant = slope_of(jnp.array([2.0, 2.0]), jnp.array([0.03, 0.001]), 0.01)
    np.testing.assert_allclose(slopes, [-0.02, 0.009], rtol=1e-5)
    np.testing.assert_array_equal(constant, 0.0)


@pytest.mark.parametrize("penalty", [True, False])
def test_an_update_of_actor_and_duals_is_the_gradient_of_the_losses(penalty, x64):
    """Central differences of the losses as written in NumPy, with weights, multipliers and KL divergences as constants."""
    config = dataclasses.replace(TINY, penalty=penalty)
    agent, state, batch, key = compiled(config), state_of(), batch_of(), jax.random.key(5)
    observation = batch["observation"]
    actions, old = samples_of(state, observation, key)
    assert 0.1 < np.mean(np.abs(actions) > 1) < 0.9
    values = values_of(state.critic.target, observation, actions).min(axis=0)
    outside = -np.sqrt(np.sum((actions - np.clip(actions, -1, 1)) ** 2, axis=-1))

    def weights(table, eta):
        powers = np.exp(table / eta)
        return powers / powers.sum(axis=0)

    def dual(table, eta, epsilon):
        return eta * (epsilon + np.mean(np.log(np.mean(np.exp(table / eta), axis=0))))

    def kls(mean, std):
        of_mean = (mean - old[0]) ** 2 / (2 * old[1] ** 2)
        return of_mean.mean(axis=0), (np.log(std / old[1]) + old[1] ** 2 / (2 * std**2) - 0.5).mean(axis=0)

    duals = [softplus(np.asarray(x)) + 1e-8 for x in state.duals.params]
    total = weights(values, duals[0]) + (weights(outside, duals[1]) if penalty else 0)

    def actor_loss(params):
        mean, std = gaussian_of(params, observation)
        densities = normal_log_density(actions, mean, old[1]) + normal_log_density(actions, old[0], std)
        of_mean, of_std = kls(mean, std)
        return -np.mean(np.sum(total * densities, axis=0)) + np.sum(duals[2] * of_mean) + np.sum(duals[3] * of_std)

    constant = kls(*gaussian_of(state.actor.params, observation))

    def dual_loss(parameters):
        eta, eta_penalty, alpha_mean, alpha_std = (softplus(x) + 1e-8 for x in parameters)
        loss = dual(values, eta, config.epsilon)
        loss += np.sum(alpha_mean * (config.epsilon_mean - constant[0]))
        loss += np.sum(alpha_std * (config.epsilon_std - constant[1]))
        return loss + (dual(outside, eta_penalty, config.epsilon_penalty) if penalty else 0)

    after, metrics = agent.update_actor(state, on_device(batch), key)
    for part, loss, params in (("actor", actor_loss, state.actor.params), ("duals", dual_loss, state.duals.params)):
        flat, tree = jax.tree.flatten(params)
        slopes = [np.zeros(np.shape(x)) for x in flat]
        for i, leaf in enumerate(flat):
            for index in np.ndindex(np.shape(leaf)):
                around = []
                for change in (1e-6, -1e-6):
                    moved = np.array(leaf, float)
                    moved[index] += change
                    around.append(loss(jax.tree.unflatten(tree, [*flat[:i], moved, *flat[i + 1 :]])))
                slopes[i][index] = (around[0] - around[1]) / 2e-6
        # Adam's first moment after one step is a tenth of the gradient.
        seen = jax.tree.leaves(getattr(after, part).moments.mu)
        for a, b in zip(seen, slopes, strict=True):
            np.testing.assert_allclose(10 * np.asarray(a), b, rtol=1e-5, atol=1e-7)
    assert float(metrics["agent/actor_loss"].total) == pytest.approx(actor_loss(state.actor.params), rel=1e-9)
    assert float(metrics["agent/dual_loss"].total) == pytest.approx(dual_loss(state.duals.params), rel=1e-9)
    share = jax.tree.map(lambda t, p: 0.75 * t + 0.25 * np.asarray(p), state.actor.target, after.actor.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), after.actor.target, share)
    assert_same(after.critic, state.critic)


# The critics.


def test_the_target_is_the_mean_over_samples_of_the_least_critic(x64):
    agent, state, batch, key = compiled(), state_of(), batch_of(), jax.random.key(3)
    following = batch["next_observation"]
    values = values_of(state.critic.target, following, samples_of(state, following, key)[0])
    least, each = jax.jit(lambda *given: (agent.target_value(*given), agent.target_values(*given)))(state, following, key)
    np.testing.assert_allclose(least, values.min(axis=0).mean(axis=0), rtol=1e-10)
    np.testing.assert_allclose(each, values.mean(axis=1), rtol=1e-10)
    # What lies beyond a termination has no effect, not even where it is not a number. A row may have its own discount.
    ended = batch["terminated"]
    assert 0 < ended.sum() < B
    given = np.where(ended[:, None], np.nan, following)
    power = np.random.default_rng(0).uniform(0.3, 0.9, B)
    row = NStep(**(batch | {"next_observation": given}), extras=(), discount=power)
    y = batch["reward"] + power * np.where(ended, 0.0, values.min(axis=0).mean(axis=0))
    own = values_of(state.critic.params, batch["observation"], batch["action"][None])[:, 0]
    after, metrics, error = agent.update_critic(state, row, key)
    assert float(metrics["agent/critic_loss"].total) == pytest.approx(np.sum(np.mean((own - y) ** 2, axis=1)), rel=1e-9)
    np.testing.assert_allclose(error, np.abs(own - y).mean(axis=0), rtol=1e-9)
    assert_same(after._replace(critic=()), state._replace(critic=()))


def test_targets_are_copied_at_every_third_update_of_each_network():
    agent, rows = compiled(dataclasses.replace(TINY, copy_every=3)), on_device(batch_of())
    state = state_of()
    for update in range(1, 8):
        before = jax.device_get(state)
        state = agent.update_critic(state, rows, jax.random.key(update))[0]
        state = agent.update_actor(state, rows, jax.random.key(update))[0]
        for part, old in ((state.actor, before.actor), (state.critic, before.critic)):
            assert_same(part.target, part.params if update % 3 == 0 else old.target)


def test_a_copy_at_every_update_is_polyak_averaging_with_the_whole_share():
    rows, found = on_device(batch_of()), []
    for changes in ({"copy_every": 1}, {"copy_every": 0, "polyak": 1.0}):
        agent, state = compiled(dataclasses.replace(TINY, **changes)), state_of()
        for i in range(3):
            state = agent.update_critic(state, rows, jax.random.key(i))[0]
            state = agent.update_actor(state, rows, jax.random.key(i))[0]
        found.append(state)
    assert_same(*found)


def test_gradients_are_clipped_by_their_norm(x64):
    agent, free = (compiled(dataclasses.replace(TINY, gradient_norm=bound)) for bound in (0.1, 1e9))
    state = initial(dataclasses.replace(TINY, gradient_norm=1e9))
    rows, key = on_device(batch_of()), jax.random.key(3)
    for update in ("update_critic", "update_actor"):
        part = update.removeprefix("update_")
        clipped, whole = (getattr(getattr(a, update)(state, rows, key)[0], part).moments[1].mu for a in (agent, free))
        length = np.sqrt(sum(np.sum(np.asarray(10 * x) ** 2) for x in jax.tree.leaves(whole)))
        assert length > 0.1
        for a, b in zip(jax.tree.leaves(clipped), jax.tree.leaves(whole), strict=True):
            np.testing.assert_allclose(a, b * 0.1 / length, rtol=1e-9, atol=1e-15)


# The agent.


def test_it_acts_by_the_target_policy(x64):
    agent, state, observation = compiled(), state_of(), 3 * batch_of()["observation"]

    @jax.jit
    def act(observation, key):
        policies = agent.policy(state, False), agent.policy(state, True), agent.policy_with_entropy(state)
        return [policy.act((), observation, key)[:2] for policy in policies]

    (found, extras), (explored, _), (evaluated, bonus) = act(observation, jax.random.key(2))
    mean, std = gaussian_of(state.actor.target, observation)
    np.testing.assert_allclose(found, np.clip(mean, -1, 1), rtol=1e-10)
    assert extras == () and 0 < np.mean(np.abs(mean) > 1) < 1
    noisy = np.clip(mean + std * np.asarray(jax.random.normal(jax.random.key(2), mean.shape)), -1, 1)
    np.testing.assert_allclose(explored, noisy, rtol=1e-10)
    np.testing.assert_array_equal(evaluated, explored)
    np.testing.assert_array_equal(bonus, np.zeros(B))


def test_init():
    config = MPOConfig(hidden=(8,), critic_hidden=(5, 4))
    state = jax.jit(mpo.make(config, O, A).init)(jax.random.key(0), {"learning_rate": 0.5, "discount": 0.25})
    assert float(state.actor.learning_rate) == float(state.critic.learning_rate) == 0.5
    assert float(state.duals.learning_rate) == pytest.approx(1e-2) and float(state.discount) == 0.25
    found = mpo.duals_of(state.duals.params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
        found,
        Duals(np.float32(10), np.float32(10), np.full(A, 10, np.float32), np.full(A, 1000, np.float32)),
    )
    assert_same(state.actor.target, state.actor.params)
    # The first layer has layer norm; the policy begins with the mean 0 and standard deviation 0.7.
    layers = state.critic.params["params"]
    assert set(layers) == {"Dense_0", "Dense_1", "Dense_2", "LayerNorm_0"}
    assert layers["Dense_1"]["kernel"].shape == (1, 5, 4)
    observation = jnp.asarray(100 * batch_of(rows=50)["observation"], jnp.float32)
    act = jax.jit(mpo.make(config, O, A).policy(state, True).act)
    actions = act((), observation, jax.random.key(1))[0]
    assert abs(float(actions.mean())) < 0.2 and 0.4 < float(actions.std()) < 0.8


def test_a_duals_parameter_stays_above_its_bound():
    state = state_of()
    lowest = jax.tree.map(lambda x: np.full_like(x, -17.999), state.duals.params)
    state = state._replace(duals=state.duals._replace(params=lowest, learning_rate=np.float32(1.0)))
    after = compiled().update_actor(state, on_device(batch_of()), jax.random.key(0))[0]
    assert min(float(jnp.min(x)) for x in jax.tree.leaves(after.duals.params)) >= -18.0
    assert bool(after.actor.active) and bool(after.duals.active)


def test_other_losses_of_the_actor_are_refused():
    agent, state, rows, key = mpo.make(TINY, O, A), state_of(), on_device(batch_of()), jax.random.key(0)
    with pytest.raises(UserError, match="has no other actor loss"):
        agent.update_actor(state, rows, key, loss=lambda *_: None)
    with pytest.raises(UserError, match="has no other actor loss"):
        agent.apply_actor_gradient(state, jnp.zeros(()), state.actor.params, jnp.zeros(()))

    def step(carry, action, key):
        return carry, rows._replace(action=action)

    world = World(reset=lambda key: None, start=lambda origin, key: origin, observe=lambda carry: carry, step=step)
    through = with_value_gradient(agent, world, ValueGradientConfig(1, True, False))
    with pytest.raises(UserError, match="choose sac or td3"):
        jax.eval_shape(through.update_actor, state, rows, key)


def test_it_is_an_agent_that_methods_can_choose():
    config = AgentConfig("mpo", mpo=TINY)
    assert config.chosen is TINY
    state = jax.eval_shape(agents.make(config, O, A).init, jax.random.key(0), {})
    assert isinstance(state, mpo.MPOState)
    with pytest.raises(UserError, match="mpo needs continuous actions"):
        agents.make(TINY, O, Discrete(2))


def test_update_is_critic_then_actor():
    agent, state, rows, key = compiled(), state_of(), on_device(batch_of()), jax.random.key(8)
    critic_key, actor_key = split(key)
    middle, of_critic, _ = agent.update_critic(state, rows, critic_key)
    last, of_actor = agent.update_actor(middle, rows, actor_key)
    found, metrics, _ = jax.jit(mpo.make(TINY, O, A).update)(state, rows, key)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6), *jax.device_get((found, last)))
    assert metrics.keys() == of_critic.keys() | of_actor.keys()
