"""PILCO: its policies, the belief of a point against a plain roll, improvement in a model, and errors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl import envs
from jaxmbrl.agents import belief_policies
from jaxmbrl.agents.belief_policies import Linear, Radial
from jaxmbrl.algorithms.value_gradients import pilco
from jaxmbrl.core import metrics
from jaxmbrl.core.config import UserError, check
from jaxmbrl.models.gaussian_process import GaussianProcessConfig
from jaxmbrl.models.moments import Gaussian
from jaxmbrl.training import loop

TINY = pilco.Config(
    gp=GaussianProcessConfig(capacity=30, inducing=30, evaluations=30),
    bases=3,
    horizon=6,
    evaluations=10,
    refit_every=20,
    warmup_steps=20,
    replay_capacity=50,
    epoch_steps=20,
)
LINEAR = Linear(jnp.array([[0.3, -0.5, 0.2]], jnp.float32), jnp.array([0.1], jnp.float32))


@pytest.fixture(scope="module")
def improved():
    """(config, task, state after a call of `learn` on 20 random steps of the pendulum, state before, metrics)."""
    with jax.enable_x64(True):
        task = envs.make("pilco-pendulum")
        algorithm = pilco.make(TINY, task)
        rows = steps_of(task, 20)
        before = jax.jit(lambda key: algorithm.init(key, {}, None))(jax.random.key(0))
        learn = jax.jit(algorithm.learn)
        after, found = learn(loop.clock_at(20), before, jax.tree.map(lambda x: x[:, None], rows))
        return task, after, before, metrics.known(found), learn


def steps_of(task, count):
    """Transitions of random actions."""
    actions = np.random.default_rng(0).uniform(-1, 1, (count, 1))

    def step(carry, action):
        return task.world.step(carry, action, jax.random.key(0))

    return jax.jit(lambda start, actions: jax.lax.scan(step, start, actions)[1])(
        task.world.reset(jax.random.key(0)), actions
    )


def test_policies_act_as_their_moments_of_a_point(x64):
    """And the one of radial basis functions is the mean of a Gaussian process, in NumPy."""
    random = np.random.default_rng(1)
    radial = Radial(
        jnp.asarray(random.normal(size=(5, 3))),
        jnp.asarray(random.normal(size=(5, 2))),
        jnp.asarray(0.2 * random.normal(size=(2, 3))),
    )
    linear = Linear(jnp.asarray(random.normal(size=(2, 3))), jnp.asarray(random.normal(size=2)))
    features = random.normal(size=3)

    @jax.jit
    def found_of(params, features):
        act = belief_policies.acting(params)
        point = Gaussian(features, jnp.zeros((3, 3)))
        return act(features), jax.jacobian(act)(features), belief_policies.action_moments(params)(point)

    for params in (radial, linear):
        action, slope, found = found_of(params, features)
        # The mean of radial basis functions has a variance of 1e-6.
        np.testing.assert_allclose(found.mean, action, atol=1e-5)
        assert np.abs(found.covariance).max() < 2e-6
        np.testing.assert_allclose(found.gain.T, slope, atol=1e-5)
    value = np.zeros(2)
    for d in range(2):
        scale = np.exp(radial.lengthscale[d])

        def k(a, b, scale=scale):
            return np.exp(-0.5 * (((a[:, None] - b[None]) / scale) ** 2).sum(-1))

        centres = np.asarray(radial.centres)
        weights = np.linalg.solve(k(centres, centres) + 1e-4 * np.eye(5), np.asarray(radial.targets)[:, d])
        value[d] = k(features[None], centres)[0] @ weights
    action, *_ = found_of(radial, features)
    np.testing.assert_allclose(action, (9 * np.sin(value) + np.sin(3 * value)) / 8)


def test_the_first_policy_has_its_centres_at_the_start(x64):
    start = Gaussian(jnp.array([0.0, 0.0, 1.0]), jnp.diag(jnp.array([0.01, 0.01, 1e-4])))
    params = jax.jit(belief_policies.init_radial, static_argnums=(2, 3, 4))(jax.random.key(0), start, 1, 400, 1)
    np.testing.assert_allclose(params.centres.mean(0), start.mean, atol=0.02)
    np.testing.assert_allclose(params.centres.std(0), [0.1, 0.1, 0.01], rtol=0.15)
    np.testing.assert_allclose(params.targets.std(), 0.1, rtol=0.15)
    np.testing.assert_allclose(np.exp(params.lengthscale), [[1.0, 0.7, 0.7]])


def test_of_a_point_the_prediction_is_a_plain_roll(improved, x64):
    """A belief without variance under a linear policy, through a process whose own variance is left out."""
    task, state, *_ = improved
    certain = state.model.posterior._replace(precision=jnp.zeros_like(state.model.posterior.precision))
    hyper = certain.hyper
    params = jax.tree.map(lambda x: jnp.asarray(x, float), LINEAR)
    start = Gaussian(jnp.array([0.1, -0.2]), jnp.zeros((2, 2)))

    def rolled():
        x, found = np.array([0.1, -0.2]), []
        for _ in range(TINY.horizon):
            features = np.array([x[0], np.sin(x[1]), np.cos(x[1])])
            before = np.asarray(params.matrix) @ features + np.asarray(params.offset)
            action = (9 * np.sin(before) + np.sin(3 * before)) / 8
            inputs = np.concatenate([features, action])
            away = (inputs - np.asarray(certain.basis))[None] / np.exp(np.asarray(hyper.lengthscale))[:, None]
            k = np.exp(2 * np.asarray(hyper.signal))[:, None] * np.exp(-0.5 * (away**2).sum(-1))
            x = x + (k * np.asarray(certain.weights)).sum(-1)
            distance = np.sin(x[1]) ** 2 + (np.cos(x[1]) + 1) ** 2
            found.append([*x, np.exp(-2 * distance)])
        return np.array(found)

    # Only the variance of the function is left, signal^2: it must not move the mean of a linear policy's first step.
    predicted = jax.jit(lambda p: pilco.predict(TINY, task, p, params, start))
    first = predicted(certain)
    expected = rolled()
    np.testing.assert_allclose(first.belief.mean[0], expected[0, :2], atol=1e-10)
    # With a signal of 0 variance and the same mean function, all steps are those of the roll.
    shrunk = 1e-12
    scaled = certain._replace(
        hyper=hyper._replace(signal=jnp.full(2, 0.5 * np.log(shrunk))),
        weights=certain.weights * jnp.exp(2 * hyper.signal)[:, None] / shrunk,
    )
    whole = predicted(scaled)
    np.testing.assert_allclose(np.column_stack([whole.belief.mean, whole.reward]), expected, atol=1e-6)
    assert np.abs(whole.belief.covariance).max() < 1e-6


def test_learning_raises_the_predicted_return(improved, x64):
    task, after, before, found, _ = improved
    process = after.model.posterior
    returns = jax.jit(lambda params, start: jnp.sum(pilco.predict(TINY, task, process, params, start).reward))
    first, last = (float(returns(state.actor.params, after.start)) for state in (before, after))
    assert last > first and last == pytest.approx(found["policy/predicted_return"], rel=1e-6)
    assert found["model/rows"] == 20 and found["policy/evaluations"] <= 10
    # Of 1,000 resets with a standard deviation of 0.1.
    np.testing.assert_allclose(before.start.mean, [0, 0], atol=0.015)
    np.testing.assert_allclose(before.start.covariance, 0.01 * np.eye(2), atol=0.002)


def test_data_grow_without_compiling_again_and_the_warm_up_leaves_the_policy(improved, x64):
    task, after, before, _, learn = improved
    compiled = learn._cache_size()
    rows = jax.tree.map(lambda x: x[:, None], steps_of(task, 20))
    later, found = learn(loop.clock_at(40), after, rows)
    assert learn._cache_size() == compiled == 1
    assert metrics.known(found)["model/rows"] == 30 and int(later.model.fits) == 2
    idle, _ = learn(loop.clock_at(10), before, rows)
    jax.tree.map(np.testing.assert_array_equal, idle.actor, before.actor)


def test_a_reward_that_is_not_saturating_is_predicted(x64):
    """`pendulum` has another reward, of which the process is a third output."""
    task = envs.make("pendulum")
    algorithm = pilco.make(TINY, task)
    state = jax.eval_shape(lambda: algorithm.init(jax.random.key(0), {}, None))
    assert state.model.posterior.offset.shape == (4,) and state.actor.params.centres.shape == (3, 3)
    state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), state._replace(key=()))
    assert algorithm.views(state).model.reward is None
    of_known = pilco.make(TINY, envs.make("pilco-pendulum"))
    assert of_known.views(state).model.reward is not None
    # E r of the last output at the inputs of the step.
    process = jax.tree.map(jnp.asarray, state.model.posterior)._replace(offset=jnp.array([0.0, 0.0, 0.0, -2.5]))
    params = jax.tree.map(lambda x: jnp.asarray(x, float), LINEAR)
    start = Gaussian(jnp.zeros(3), 0.01 * jnp.eye(3))
    predicted = jax.jit(lambda: pilco.predict(TINY, task, process, params, start))()
    np.testing.assert_array_equal(predicted.reward, np.full(TINY.horizon, -2.5))


def test_errors():
    with pytest.raises(UserError, match="a Gaussian process needs float64: add --x64 to the command, or in Python"):
        pilco.make(TINY, envs.make("pilco-pendulum"))
    with pytest.raises(UserError, match="pilco takes vectors"):
        pilco.make(TINY, envs.make("CartPole-v1"))
    with pytest.raises(UserError, match=r"refit_every must be a multiple of num_envs \(3\), got 20"):
        check(dataclasses.replace(TINY, num_envs=3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"absolute": (0,)}, r"gp\.absolute must be empty, because pilco predicts the change of each entry, got \(0,\)"),
        ({"features": False}, r"gp\.features must be true"),
        ({"propagation": "expectation"}, r"gp\.propagation must be distribution, because .* moments, got expectation"),
    ],
)
def test_settings_of_the_process_that_the_moments_do_not_follow_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        check(dataclasses.replace(TINY, gp=dataclasses.replace(TINY.gp, **settings)))
