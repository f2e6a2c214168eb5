"""The Gaussian process: evidence and predictions of scikit-learn, FITC in plain NumPy, padding, fits, and its World."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

from jaxmbrl import envs
from jaxmbrl.core import metrics
from jaxmbrl.core.config import UserError
from jaxmbrl.core.types import Features, Transition
from jaxmbrl.data import replay
from jaxmbrl.envs.base import never
from jaxmbrl.models import gaussian_process
from jaxmbrl.models.gaussian_process import GaussianProcessConfig, Hyperparameters, Posterior, fit, regression

SMALL = GaussianProcessConfig(capacity=12, inducing=12, evaluations=60)


@pytest.fixture(autouse=True)
def in_float64(x64):
    pass


def data(n=30, noise=0.05):
    random = np.random.default_rng(0)
    inputs = random.uniform(-2, 2, (n, 3)) * [1.0, 3.0, 0.5]
    return inputs, np.sin(inputs[:, 0]) + 0.3 * inputs[:, 1] * inputs[:, 2] + noise * random.normal(size=n)


def hyper_of(scale, signal, noise):
    return Hyperparameters(*(jnp.log(jnp.asarray(x, float)) for x in (scale, signal, noise)))


def process_of(hyper, inputs, target, mask):
    weights, precision = jax.jit(regression.exact)(hyper, inputs, target, mask)
    outputs = jax.tree.map(lambda leaf: leaf[None], hyper)
    return Posterior(inputs, outputs, weights[None], precision[None], jnp.zeros(1))


def predicted(process, rows):
    return jax.jit(regression.predict)(process, jnp.asarray(rows))


HYPER = ([0.9, 2.5, 0.7], 1.3, 0.2)


@pytest.fixture(scope="module")
def theirs():
    """scikit-learn's regressor with fixed parameters, and its gradient of the evidence by the logarithms of them."""
    scale, signal, noise = HYPER
    kernel = ConstantKernel(signal**2) * RBF(scale) + WhiteKernel(noise**2)
    return GaussianProcessRegressor(kernel, alpha=0.0, optimizer=None).fit(*data())


@pytest.mark.parametrize("padding", [0, 7])
def test_evidence_and_its_gradient_are_scikit_learns(theirs, padding):
    inputs, target = data()
    inputs = jnp.asarray(np.concatenate([inputs, np.full((padding, 3), 9.0)]))
    target = jnp.asarray(np.concatenate([target, np.full(padding, 5.0)]))
    mask = jnp.arange(30 + padding) < 30
    value, slope = jax.jit(jax.value_and_grad(regression.negative_evidence))(hyper_of(*HYPER), inputs, target, mask)
    due, gradient = theirs.log_marginal_likelihood(theirs.kernel_.theta, eval_gradient=True)
    assert -float(value) == pytest.approx(due, rel=1e-9)
    # Theirs are by the logarithms of signal^2, lengthscales, noise^2.
    ours = np.array([slope.signal / 2, *slope.lengthscale, slope.noise / 2])
    np.testing.assert_allclose(-ours, gradient, rtol=1e-7)


@pytest.mark.parametrize("padding", [0, 7])
def test_predictions_are_scikit_learns(theirs, padding):
    inputs, target = data()
    given = (
        jnp.asarray(np.concatenate([inputs, np.full((padding, 3), 9.0)])),
        jnp.asarray(np.concatenate([target, np.full(padding, 5.0)])),
        jnp.arange(30 + padding) < 30,
    )
    process = process_of(hyper_of(*HYPER), *given)
    rows = np.random.default_rng(1).uniform(-4, 4, (20, 3))
    mean, deviation = theirs.predict(rows, return_std=True)
    found, variance = predicted(process, rows)
    np.testing.assert_allclose(found[:, 0], mean, rtol=0, atol=1e-9)
    # Theirs is of a noisy observation.
    np.testing.assert_allclose(variance[:, 0] + regression.noise_variance(process), deviation**2, rtol=0, atol=1e-9)
    np.testing.assert_array_equal(jax.jit(regression.predict_mean)(process, jnp.asarray(rows)), found)


def test_the_numbers_of_three_rows():
    inputs = jnp.array([[0.0, 0.0], [1.0, 0.5], [-0.5, 1.0]])
    hyper = Hyperparameters(jnp.log(jnp.array([1.0, 1.5])), jnp.zeros(()), 0.5 * jnp.log(jnp.array(0.01)))
    value = jax.jit(regression.negative_evidence)(hyper, inputs, jnp.array([0.0, 0.8, -0.4]), jnp.ones(3, bool))
    assert float(value) == pytest.approx(2.7792301, abs=1e-7)


def test_the_penalty_is_1_at_a_ratio_of_1000_and_at_a_hundredth_of_the_spread():
    spread = jnp.array([2.0, 0.5])
    near = hyper_of([2.0, 0.5], 1.0, 0.1)
    assert float(regression.penalty(near, spread)) < 1e-9
    assert float(regression.penalty(hyper_of([2.0, 0.5], 1.0, 1e-3), spread)) == pytest.approx(1)
    assert float(regression.penalty(hyper_of([2.0, 0.005], 1.0, 1.0), spread)) == pytest.approx(1)
    assert float(regression.penalty(hyper_of([200.0, 0.5], 1.0, 1.0), spread)) == pytest.approx(1)


@functools.partial(jax.jit, static_argnums=0)
def fit_of(kind, targets, offset, before, fits):
    """A fit to the inputs of `data` and these targets [30, D]."""
    given = fit.Rows(jnp.asarray(data()[0]), targets, jnp.ones(30, bool)), offset, before, fits
    return fit.fit_exact(40, *given) if kind == "exact" else fit.fit_sparse(40, 8, *given, jax.random.key(0))


@pytest.mark.parametrize("kind", ["exact", "sparse"])
def test_a_fit_begins_at_the_first_guess_if_the_last_one_explains_less(kind):
    """Hyperparameters with a noise of 100 times the data and lengths of a thousandth, and those of the last fit."""
    bad = jax.tree.map(lambda leaf: leaf[None], hyper_of([1e-3, 1e-3, 1e-3], 1.0, 100.0))
    fitted = functools.partial(fit_of, kind, jnp.asarray(data()[1])[:, None], jnp.zeros(1))
    (first, cost), (again, same) = fitted(bad, jnp.int32(0)), fitted(bad, jnp.int32(1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    _, continued = fitted(first.hyper, jnp.int32(1))
    assert float(same[0]) == float(cost[0]) and float(continued[0]) < float(cost[0]) + 1e-6


@pytest.mark.parametrize("kind", ["exact", "sparse"])
def test_an_output_without_signal_is_not_learned_and_changes_no_other(kind):
    """Its evidence has no maximum, and its share in the inducing inputs of FITC would ruin the other output: the fit is
    that of the other output alone, also when fits continue."""
    inputs, target = data()
    both, offset = jnp.stack([jnp.asarray(target), jnp.full(30, 1e-14)], axis=1), jnp.array([0.0, 3.0])
    hyper = Hyperparameters(jnp.zeros((2, 3)), jnp.zeros(2), jnp.zeros(2))
    for fits in map(jnp.int32, range(3)):
        of_one = jax.tree.map(lambda leaf: leaf[:1], hyper)
        alone, due = fit_of(kind, both[:, :1], offset[:1], of_one, fits)
        process, cost = fit_of(kind, both, offset, hyper, fits)
        hyper = process.hyper
        np.testing.assert_allclose(cost, [due[0], 0], rtol=1e-6)
        np.testing.assert_allclose(process.basis, alone.basis, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(process.weights[0], alone.weights[0], rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(hyper.lengthscale, [alone.hyper.lengthscale[0], np.log(inputs.std(0))], rtol=1e-5)
        np.testing.assert_allclose([hyper.signal[1], hyper.noise[1]], np.log([1e-8, 1e-9]), rtol=1e-12)


def test_fitc_is_the_density_of_its_matrix():
    """Evidence and predictions by the dense matrices of Snelson and Ghahramani, in NumPy."""
    inputs, target = data()
    inducing, rows = inputs[::5] + 0.1, np.random.default_rng(1).uniform(-2, 2, (9, 3))
    scale, signal, noise = np.array(HYPER[0]), HYPER[1], HYPER[2]

    def k(a, b):
        return signal**2 * np.exp(-0.5 * (((a[:, None] - b[None]) / scale) ** 2).sum(-1))

    mm = k(inducing, inducing) + regression.JITTER * signal**2 * np.eye(len(inducing))
    nm = k(inputs, inducing)
    low_rank = nm @ np.linalg.solve(mm, nm.T)
    matrix = low_rank + np.diag(signal**2 - np.diag(low_rank)) + noise**2 * np.eye(30)
    density = -0.5 * (target @ np.linalg.solve(matrix, target) + np.linalg.slogdet(matrix)[1] + 30 * np.log(2 * np.pi))
    cross = k(rows, inducing) @ np.linalg.solve(mm, nm.T)
    mean = cross @ np.linalg.solve(matrix, target)
    variance = signal**2 - np.einsum("ij,ji->i", cross, np.linalg.solve(matrix, cross.T))

    mask = jnp.arange(33) < 30
    padded = jnp.asarray(np.pad(inputs, ((0, 3), (0, 0)), constant_values=8.0)), jnp.asarray(np.pad(target, (0, 3)))
    given = (hyper_of(*HYPER), jnp.asarray(inducing), *padded, mask)
    assert -float(jax.jit(regression.negative_sparse_evidence)(*given)) == pytest.approx(density, rel=1e-9)
    weights, precision = jax.jit(regression.sparse)(*given)
    outputs = jax.tree.map(lambda leaf: leaf[None], given[0])
    found = predicted(Posterior(given[1], outputs, weights[None], precision[None], jnp.zeros(1)), rows)
    np.testing.assert_allclose(found[0][:, 0], mean, atol=1e-8)
    np.testing.assert_allclose(found[1][:, 0], variance, atol=1e-8)


def test_fitc_with_the_data_as_inducing_inputs_is_the_process():
    inputs, target = (jnp.asarray(x) for x in data(12))
    mask, hyper, rows = jnp.ones(12, bool), hyper_of(*HYPER), np.random.default_rng(1).uniform(-2, 2, (9, 3))
    exact = process_of(hyper, inputs, target, mask)
    weights, precision = jax.jit(regression.sparse)(hyper, inputs, inputs, target, mask)
    sparse = exact._replace(weights=weights[None], precision=precision[None])
    for a, b in zip(predicted(exact, rows), predicted(sparse, rows), strict=True):
        np.testing.assert_allclose(a, b, atol=5e-6)
    evidence = jax.jit(regression.negative_evidence)(hyper, inputs, target, mask)
    of_sparse = jax.jit(regression.negative_sparse_evidence)(hyper, inputs, inputs, target, mask)
    assert float(of_sparse) == pytest.approx(float(evidence), abs=2e-5)


def rows_of(n, seed=0):
    """Rows of observations [n, 2] and actions [n, 1] with a smooth change and reward."""
    random = np.random.default_rng(seed)
    observation, action = random.normal(size=(n, 2)), random.uniform(-1, 1, (n, 1))
    change = np.stack([np.sin(observation[:, 1]), 0.5 * np.sin(3 * action[:, 0])], -1) + 0.05 * random.normal(size=(n, 2))
    reward = 5.0 - observation[:, 0] ** 2 + 0.05 * random.normal(size=n)
    none = np.zeros(n, bool)
    return jax.tree.map(jnp.asarray, Transition(observation, action, reward, observation + change, none, none))


def padded(rows, capacity):
    return jax.tree.map(lambda x: jnp.concatenate([x, jnp.full((capacity - len(x), *x.shape[1:]), 77, x.dtype)]), rows)


@pytest.fixture(scope="module")
def fitted():
    """(model, jitted fit, traces of it) of a small process that learns the reward, too."""
    with jax.enable_x64(True):
        model = gaussian_process.make(SMALL, 2, 1, None, never)
        traces = []

        def fit(state, buffer):
            traces.append(1)
            return model.fit(state, buffer, jax.random.key(0))

        return model, jax.jit(fit), traces


def test_a_growing_buffer_does_not_compile_again_and_padding_changes_nothing(fitted):
    model, fit, traces = fitted
    state, all_rows = model.init(jax.random.key(0), {}), rows_of(12)
    for size in (3, 8, 12):
        state, found = fit(state, replay.of_rows(all_rows, size))
        assert metrics.known(found)["model/rows"] == size
    assert len(traces) == 1 and int(state.fits) == 3
    # The same rows in a buffer filled with other numbers.
    few = jax.tree.map(lambda x: x[:8], all_rows)
    ours, found = fit(model.init(jax.random.key(0), {}), replay.of_rows(padded(few, 12), 8))
    exact = gaussian_process.make(dataclasses.replace(SMALL, capacity=8), 2, 1, None, never)
    alone, of_alone = jax.jit(exact.fit)(exact.init(jax.random.key(0), {}), replay.of_rows(few), jax.random.key(0))
    assert metrics.known(found)["model/evidence"] == pytest.approx(metrics.known(of_alone)["model/evidence"], rel=1e-6)
    seen, acted = jnp.array([[0.3, -0.2], [1.5, 0.1]]), jnp.array([[0.1], [-0.7]])
    for a, b in zip(model.predict(ours, seen, acted), exact.predict(alone, seen, acted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore:The optimal value found")
def test_the_fit_is_not_behind_scikit_learns_optimiser(fitted):
    """Theirs has bounds in the place of our penalties: with the penalties its optimum has no better evidence. Its noise and
    the lengthscale that matters are about ours."""
    model, fit, _ = fitted
    rows = rows_of(12)
    state, found = fit(model.init(jax.random.key(0), {}), replay.of_rows(rows))
    inputs = np.concatenate([rows.observation, rows.action], axis=1)
    targets = np.column_stack([rows.next_observation - rows.observation, rows.reward - rows.reward.mean()])

    @jax.jit
    def cost(hyper, target):
        evidence = regression.negative_evidence(hyper, jnp.asarray(inputs), target, jnp.ones(12, bool))
        return evidence, regression.penalty(hyper, jnp.asarray(inputs.std(0)))

    ours = jax.vmap(cost, in_axes=(0, 1))(state.posterior.hyper, targets)
    assert -float(ours[0].mean()) == pytest.approx(metrics.known(found)["model/evidence"] * 12, rel=1e-9)
    for i, matters in enumerate((1, 2)):
        kernel = ConstantKernel(1.0, (1e-4, 1e4)) * RBF([1.0] * 3, (1e-2, 1e2)) + WhiteKernel(1e-2, (1e-6, 1e2))
        theirs = GaussianProcessRegressor(kernel, alpha=0.0).fit(inputs, targets[:, i]).kernel_.theta
        hyper = Hyperparameters(jnp.asarray(theirs[1:4]), *(jnp.asarray(x / 2) for x in (theirs[0], theirs[4])))
        assert float(ours[0][i] + ours[1][i]) <= float(sum(cost(hyper, targets[:, i]))) + 1e-6
        mine = jax.tree.map(lambda leaf, i=i: leaf[i], state.posterior.hyper)
        assert float(mine.noise) == pytest.approx(float(hyper.noise), abs=0.1)
        assert float(mine.lengthscale[matters]) == pytest.approx(float(hyper.lengthscale[matters]), abs=0.1)


def test_predictions_are_in_the_tasks_units(fitted):
    """Changes are added to the observation; the reward has the mean of the data far from them."""
    model, fit, _ = fitted
    rows = rows_of(12)
    state, _ = fit(model.init(jax.random.key(0), {}), replay.of_rows(rows))
    mean, variance = model.predict(state, rows.observation, rows.action)
    assert mean.shape == variance.shape == (1, 12, 3) and (variance > 0).all()
    np.testing.assert_allclose(mean[0, :, :2], rows.next_observation, atol=0.2)
    np.testing.assert_allclose(mean[0, :, 2], rows.reward, atol=0.5)
    far = jnp.full((1, 2), 1e3)
    mean, _ = model.predict(state, far, jnp.zeros((1, 1)))
    np.testing.assert_allclose(mean[0, 0], [1e3, 1e3, rows.reward.mean()], atol=1e-6)


def test_the_world_draws_from_the_prediction():
    for propagation in ("expectation", "distribution"):
        config = dataclasses.replace(SMALL, propagation=propagation)
        model = gaussian_process.make(config, 2, 1, None, never)
        state = model.init(jax.random.key(0), {})
        state = state._replace(posterior=state.posterior._replace(offset=jnp.array([0.5, 0.0, -1.0])))
        origin = jnp.tile(jnp.array([[1.0, 2.0]]), (4000, 1))

        @jax.jit
        def moved(state, origin, model=model):
            world = model.world(state)
            return world.step(world.start(origin, jax.random.key(1)), jnp.zeros(1), jax.random.key(2))[1]

        # The state is an argument, as in a run: products with a constant matrix of zeros may be wrong (`core.xla`).
        made = moved(state, origin)
        drawn = np.column_stack([made.next_observation, made.reward])
        # The prior: a function of variance 1, and noise of variance 1.
        spread = 0.0 if propagation == "expectation" else np.sqrt(2)
        np.testing.assert_allclose(drawn.mean(0), [1.5, 2.0, -1.0], atol=0.1)
        np.testing.assert_allclose(drawn.std(0), spread, atol=0.1)
        assert not made.terminated.any() and not made.truncated.any()


def test_a_fit_with_inducing_inputs():
    """20 rows, 8 inducing inputs; up to 8 rows the process is exact. More rows than the capacity are taken at equal
    distances."""
    config = GaussianProcessConfig(capacity=16, inducing=8, evaluations=40)
    model = gaussian_process.make(config, 2, 1, None, never)
    exact = gaussian_process.make(GaussianProcessConfig(capacity=8, inducing=8, evaluations=40), 2, 1, None, never)
    rows, key = rows_of(40), jax.random.key(3)
    refit = jax.jit(model.fit)
    few = refit(model.init(key, {}), replay.of_rows(rows, 8), key)[0]
    alone = jax.jit(exact.fit)(exact.init(key, {}), replay.of_rows(jax.tree.map(lambda x: x[:8], rows)), key)[0]
    np.testing.assert_allclose(few.posterior.basis, alone.posterior.basis)
    unseen = rows_of(30, seed=5)
    np.testing.assert_allclose(
        model.predict(few, unseen.observation, unseen.action)[0],
        exact.predict(alone, unseen.observation, unseen.action)[0],
        atol=1e-4,
    )
    state, found = refit(few, replay.of_rows(rows), key)
    assert metrics.known(found)["model/rows"] == 16
    mean, _ = model.predict(state, unseen.observation, unseen.action)
    error = np.abs(mean[0, :, :2] - unseen.next_observation).mean()
    assert error < np.abs(unseen.next_observation - unseen.observation).mean() / 2
    kept, _ = fit.rows_of(model.fit.args[0], replay.of_rows(rows))
    np.testing.assert_array_equal(kept.inputs[:, :2], rows.observation[np.floor(np.arange(16) * 2.5).astype(int)])


def test_columns_that_do_not_vary_are_learned_as_they_are(fitted):
    model, fit, _ = fitted
    rows = rows_of(12)
    rows = rows._replace(action=0 * rows.action, next_observation=rows.observation, reward=0 * rows.reward + 2)
    state = model.init(jax.random.key(0), {})
    for _ in range(3):
        state, found = fit(state, replay.of_rows(rows))
    assert bool(state.active) and metrics.known(found)["model/evidence"] == 0
    mean, variance = model.predict(state, rows.observation, rows.action)
    np.testing.assert_allclose(mean[0], np.column_stack([rows.observation, rows.reward]), atol=1e-6)
    assert (variance > 0).all() and (variance < 1e-15).all()


def test_a_fit_that_is_not_finite_changes_nothing(fitted):
    model, fit, _ = fitted
    first, _ = fit(model.init(jax.random.key(0), {}), replay.of_rows(rows_of(12)))
    broken = rows_of(12)._replace(reward=jnp.full(12, jnp.nan))
    after, found = fit(first, replay.of_rows(broken))
    assert not bool(after.active) and int(after.fits) == 1 and "model/evidence" not in metrics.known(found)
    jax.tree.map(np.testing.assert_array_equal, after.posterior, first.posterior)
    again, _ = fit(after, replay.of_rows(rows_of(12)))
    assert not bool(again.active), "a closed process stays closed"
    assert not bool(first.gate(jnp.array(False), first).active) and bool(first.gate(jnp.array(True), first).active)


def test_a_step_has_derivatives_where_an_entry_is_constant():
    """The constant entry is copied, with the variance 0; at the prior, the other is the observation plus noise."""
    model = gaussian_process.make(SMALL, 2, 1, lambda o, a, n: n[:, 0], never, Features(constant=(1,)))
    state = model.init(jax.random.key(0), {})

    def moved(row):
        return model.world(state).step(row[None], jnp.zeros(1), jax.random.key(2))[0][0]

    np.testing.assert_allclose(jax.jit(jax.jacfwd(moved))(jnp.array([1.0, 2.0])), np.eye(2), atol=1e-14)


def test_errors():
    with jax.enable_x64(False), pytest.raises(UserError, match="a Gaussian process needs float64: add --x64"):
        gaussian_process.make(SMALL, 2, 1, None, never)
    with pytest.raises(UserError, match="a Gaussian process does not predict terminations"):
        gaussian_process.make(SMALL, 2, 1)
    with pytest.raises(UserError, match="a Gaussian process cannot predict a discrete observation"):
        gaussian_process.make(SMALL, envs.make("FrozenLake").observation, 1, None, never)
    with pytest.raises(UserError, match="angles must name observation dimensions below 2, got 2"):
        gaussian_process.make(SMALL, 2, 1, None, never, Features(angles=(2,)))
