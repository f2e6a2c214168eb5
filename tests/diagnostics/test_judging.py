"""A model fitted and judged alone: its numbers written out once more in NumPy, and what the command says."""

import contextlib
import io
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxmbrl import cli, envs
from jaxmbrl.core.config import UserError
from jaxmbrl.core.spaces import Box, Discrete
from jaxmbrl.core.types import Transition
from jaxmbrl.data import dataset
from jaxmbrl.diagnostics import evaluate_model, predicting
from jaxmbrl.diagnostics import model_evaluation as judging
from jaxmbrl.diagnostics.model_evaluation import FitConfig, fit_and_evaluate
from jaxmbrl.models import EnsembleConfig
from jaxmbrl.models.gaussian_process import GaussianProcessConfig
from jaxmbrl.training import memory

TINY = EnsembleConfig(members=3, elites=2, hidden=(8,), max_epochs=3, batch_size=16)
ROWS = 50


def made_up(rows=ROWS, seed=0, constant=False):
    """A linear system with noise, two observations and one action; `constant` keeps its reward at 0.1."""
    rng = np.random.default_rng(seed)
    seen, action = rng.normal(size=(rows, 2)), rng.uniform(-1, 1, (rows, 1))
    noise = rng.normal(size=(rows, 2)) * [0.1, 0.3]
    following = seen + np.stack([seen[:, 1] + action[:, 0], -seen[:, 0] + 0.5 * action[:, 0]], axis=1) + noise
    reward = np.full(rows, 0.1) if constant else seen[:, 0] - action[:, 0]
    numbers = (x.astype(np.float32) for x in (seen, action, reward, following))
    return Transition(*numbers, np.zeros(rows, bool), np.zeros(rows, bool))


CONFIG = FitConfig(ensemble=TINY, test_fraction=0.3)


pytestmark = pytest.mark.usefixtures("compile_cache")


@pytest.fixture(scope="module")
def judged():
    return fit_and_evaluate(CONFIG, made_up())


@pytest.fixture(scope="module")
def of_a_constant():
    """Judged on rows whose reward never varies."""
    return fit_and_evaluate(CONFIG, made_up(constant=True))


def softplus(x):
    return np.logaddexp(0, x)


def predictions(state, rows):
    """Mean and variance [E, N, D] of every member, by the weights in `state`."""
    params, inputs, targets = (
        jax.tree.map(lambda x: np.asarray(x, np.float64), part)
        for part in (state.members.params, state.inputs, state.targets)
    )
    x = (np.concatenate([rows.observation, rows.action], axis=1) - inputs.mean) / inputs.std
    means, variances = [], []
    for e in range(3):
        layers = [params.network["params"][f"Dense_{i}"] for i in range(2)]
        hidden = x @ layers[0]["kernel"][e] + layers[0]["bias"][e]
        hidden = hidden / (1 + np.exp(-hidden))
        out = hidden @ layers[1]["kernel"][e] + layers[1]["bias"][e]
        size = len(params.low)
        below = params.high - softplus(params.high - out[:, size:])
        log_variance = params.low + softplus(below - params.low)
        mean = out[:, :size] * targets.std + targets.mean
        mean[:, :2] += rows.observation
        means.append(mean)
        variances.append(np.exp(log_variance) * targets.std**2)
    return np.stack(means), np.stack(variances)


def test_the_numbers_as_transcribed(judged):
    """Of all three members, whose two best would not do; on the last 15 rows, which are 30 % of 50."""
    assert (judged.trained_on, judged.tested_on) == (35, 15)
    unseen = jax.tree.map(lambda x: x[35:].astype(np.float64), made_up())
    mean, variance = predictions(judged.state, unseen)
    target = np.column_stack([unseen.next_observation, unseen.reward])
    change = target - np.column_stack([unseen.observation, np.zeros(15)])
    squared = ((mean.mean(axis=0) - target) ** 2).mean(axis=0)
    np.testing.assert_allclose(judged.evaluation.error, np.sqrt(squared), rtol=1e-4)
    np.testing.assert_allclose(judged.evaluation.unexplained, squared / change.var(axis=0), rtol=2e-4)
    np.testing.assert_allclose(judged.evaluation.aleatoric, np.sqrt(variance.mean(axis=(0, 1))), rtol=1e-4)
    spread = ((mean - mean.mean(axis=0)) ** 2).mean(axis=0)
    np.testing.assert_allclose(judged.evaluation.epistemic, np.sqrt(spread.mean(axis=0)), rtol=1e-3)
    assert judged.evaluation.calibration.shares.shape == (19, 3)
    assert set(judged.found) >= {"model/holdout_error", "model/holdout_likelihood", "model/fit_epochs"}


def test_the_rows_that_judge_are_never_fitted_to(judged):
    rows = made_up()
    other = rows._replace(next_observation=np.concatenate([rows.next_observation[:35], 9 + rows.next_observation[35:]]))
    again = fit_and_evaluate(CONFIG, other)
    for a, b in zip(jax.tree.leaves(again.state), jax.tree.leaves(judged.state), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (again.evaluation.error[:2] > 5).all()


def test_a_gaussian_process_is_judged_in_float64(x64):
    """After 35 rows of the linear system its errors are about the noise that was added and as large as it predicts."""
    config = FitConfig(dynamics="gp", gp=GaussianProcessConfig(capacity=35), test_fraction=0.3)
    found = fit_and_evaluate(config, made_up(), envs.make("pendulum")._replace(reward=None, features=None))
    assert (found.evaluation.error[:2] < [0.25, 0.5]).all()
    np.testing.assert_allclose(found.evaluation.aleatoric[:2] / found.evaluation.error[:2], 1.0, atol=0.5)
    assert not found.evaluation.epistemic.any() and found.evaluation.error[2] < 0.05
    assert found.found["model/rows"] == 35 and found.state.posterior.weights.dtype == np.float64


def test_many_rows_are_judged_some_at_a_time(judged, monkeypatch):
    monkeypatch.setattr(predicting, "ROWS_AT_ONCE", 4)
    unseen = jax.tree.map(lambda x: x[35:], made_up())
    again = evaluate_model(judged.model, judged.state, unseen)
    for name in ("error", "unexplained", "aleatoric", "epistemic"):
        np.testing.assert_allclose(getattr(again, name), getattr(judged.evaluation, name), rtol=1e-5)
    np.testing.assert_allclose(again.calibration.shares, judged.evaluation.calibration.shares, atol=1e-5)


def test_what_never_varied_has_nothing_to_explain(of_a_constant):
    """0.1 is no binary number: a mean over rows would leave a variance of rounding errors."""
    found = of_a_constant.evaluation
    assert np.isfinite(found.unexplained[:2]).all() and np.isnan(found.unexplained[2])
    assert found.error[2] < 1e-6


class Made(BaseException):
    """A model is to be made."""


@pytest.mark.parametrize(
    ("fields", "knows"),
    [
        ({}, (True, True)),
        ({"learn_reward": True}, (False, True)),
        ({"learn_termination": True}, (True, False)),
        ({"task": None}, (False, False)),
    ],
)
def test_what_the_task_knows_is_not_learned(fields, knows, monkeypatch):
    pendulum = envs.make("pendulum")

    def make(config, observation, action, reward, terminated, features, on_epoch):
        assert (config, observation, action, features) == (TINY, 2, 1, pendulum.features)
        given = (reward is pendulum.reward, terminated is pendulum.terminated)
        assert given == (reward is not None, terminated is not None) == knows
        raise Made

    monkeypatch.setattr(judging.ensemble, "make", make)
    given = dict(fields)
    task = given.pop("task", pendulum)
    with pytest.raises(Made):
        fit_and_evaluate(FitConfig(ensemble=TINY, **given), made_up(), task)


@pytest.mark.parametrize(
    ("name", "values", "space"),
    [
        ("action", np.array([0, 2] * 25, np.int32), Discrete(3)),
        ("observation", np.zeros((50, 4, 4, 3), np.uint8), Box((4, 4, 3), dtype="uint8")),
    ],
)
def test_the_spaces_of_other_rows(name, values, space, monkeypatch):
    def make(config, observation, action, **known):
        assert {"observation": observation, "action": action}[name] == space
        raise Made

    monkeypatch.setattr(judging.ensemble, "make", make)
    with pytest.raises(Made):
        fit_and_evaluate(CONFIG, made_up()._replace(**{name: values}))


@pytest.mark.parametrize(
    ("rows", "fraction", "told"),
    [
        (1, 0.5, "test_fraction 0.5 of 1 rows leaves 1 to fit and 0 to test"),
        (3, 0.6, "test_fraction 0.6 of 3 rows leaves 1 to fit and 2 to test"),
        (10, 0.01, "test_fraction 0.01 of 10 rows leaves 10 to fit and 0 to test"),
    ],
)
def test_too_few_rows_are_told(rows, fraction, told):
    with pytest.raises(UserError) as error:
        fit_and_evaluate(FitConfig(ensemble=TINY, test_fraction=fraction), made_up(rows))
    assert str(error.value) == told


def test_few_rows_are_warned_of(monkeypatch):
    def make(*args, **more):
        raise Made

    monkeypatch.setattr(judging.ensemble, "make", make)
    with pytest.warns(dataset.DataWarning, match="there are only 20 rows, 14 to fit and 6 to test"), pytest.raises(Made):
        fit_and_evaluate(CONFIG, made_up(20))


@pytest.mark.slow
def test_three_rows_will_do():
    with pytest.warns(
        dataset.DataWarning, match="there are only 3 rows, 2 to fit and 1 to test, so that the errors are largely ch"
    ):
        found = fit_and_evaluate(FitConfig(ensemble=TINY), made_up(3))
    assert (found.trained_on, found.tested_on) == (2, 1)
    assert np.isfinite(found.evaluation.error).all() and np.isnan(found.evaluation.unexplained).all()


def test_a_model_too_large_is_told(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 1000)
    with pytest.raises(
        UserError, match=r"the model takes .* MB, the device has .* MB; lower ensemble.members or ensemble.h"
    ):
        fit_and_evaluate(FitConfig(ensemble=TINY), made_up())


@pytest.mark.slow
def test_noise_is_told_from_ignorance():
    """The error is the noise and what the mean misses of the truth; the members predict the noise as theirs."""
    config = EnsembleConfig(
        members=3, elites=3, hidden=(32,), batch_size=64, max_epochs=60, learning_rate=3e-3, holdout_fraction=0.0
    )
    rows = made_up(3000)
    # An exact reward would draw the fit to itself.
    noise = 0.2 * np.random.default_rng(1).normal(size=3000)
    found = fit_and_evaluate(FitConfig(ensemble=config), rows._replace(reward=rows.reward + noise.astype(np.float32)))
    seen, push = rows.observation[2400:], rows.action[2400:, 0]
    truth = np.stack([seen[:, 0] + seen[:, 1] + push, seen[:, 1] - seen[:, 0] + 0.5 * push, seen[:, 0] - push], axis=1)
    mean, _ = found.model.predict(found.state, jnp.asarray(seen), jnp.asarray(rows.action[2400:]))
    missed = ((np.asarray(mean).mean(axis=0) - truth) ** 2).mean(axis=0)
    deviation = np.array([0.1, 0.3, 0.2])
    assert (missed < 0.3 * deviation**2).all()
    # The root mean square of 600 rows has an error of 3 %.
    np.testing.assert_allclose(found.evaluation.error, np.sqrt(deviation**2 + missed), rtol=0.1)
    np.testing.assert_allclose(found.evaluation.aleatoric, deviation, rtol=0.2)
    assert (found.evaluation.epistemic < 0.5 * deviation).all() and (
        np.asarray(found.evaluation.calibration.error) < 0.05
    ).all()
    # The changes' own variances are 1 + 1/3, 1 + 1/12 and 1 + 1/3, each with its noise.
    own = np.array([4 / 3, 13 / 12, 4 / 3])
    np.testing.assert_allclose(found.evaluation.unexplained, (deviation**2 + missed) / (own + deviation**2), rtol=0.25)


def call(*words):
    """Exit code, standard output and standard error of a command line."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main([str(word) for word in words])
    return code, out.getvalue(), err.getvalue()


SMALL = "--ensemble.members 3 --ensemble.elites 2 --ensemble.hidden 8 --ensemble.max-epochs 3 --ensemble.batch-size 16"


def test_the_command_tells_the_same_and_draws(judged, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dataset.save("rows.npz", made_up(), "my-own-task")
    code, said, err = call("fit", "--data", "rows.npz", *SMALL.split(), "--test-fraction", 0.3, "--out", "new/picture.v2")
    assert (code, err) == (0, "")
    assert "fitting to rows.npz: 50 transitions of my-own-task ..." in said
    assert "fitted to 35 rows, tested on the last 15, in " in said
    table = re.findall(r"^(observation \d|reward) +(\S+) +(\S+) +(\S+) +(\S+) +(\S+)$", said, re.MULTILINE)
    assert [row[0] for row in table] == ["observation 0", "observation 1", "reward"]
    shown = np.array([[float(x) for x in row[1:]] for row in table])
    found = judged.evaluation
    columns = (found.error, found.unexplained, found.aleatoric, found.epistemic, np.asarray(found.calibration.error))
    expected = np.stack(columns, axis=1)
    np.testing.assert_allclose(shown, expected, rtol=1e-3, atol=6e-4)
    assert re.search(r"^model/holdout_error +\S+$", said, re.MULTILINE)
    assert "picture  new/picture.v2.png" in said
    with Image.open("new/picture.v2.png") as image:
        assert min(image.size) > 400 and np.asarray(image.convert("L"), float).std() > 10
    code, said, err = call("fit", "--data", "rows.npz", "--out", "new/picture.v2.png")
    assert (code, said, err) == (2, "", "jaxmbrl: new/picture.v2.png exists; choose another file\n")


@pytest.mark.slow
def test_the_command_knows_the_files_task(tmp_path):
    path = tmp_path / "rows.npz"
    rng = np.random.default_rng(1)
    numbers = (rng.uniform(-1, 1, shape).astype(np.float32) for shape in ((40, 3), (40, 1), 40, (40, 3)))
    dataset.save(path, Transition(*numbers, np.zeros(40, bool), np.zeros(40, bool)), "pendulum")
    code, said, _ = call("fit", "--data", path, *SMALL.split())
    assert code == 0 and "40 transitions of pendulum ..." in said and "observation 2" in said and "\nreward" not in said


def test_a_constant_is_called_one(of_a_constant, tmp_path, monkeypatch):
    def fitted(config, rows, task, update):
        assert config == CONFIG and np.all(rows.reward == np.float32(0.1)) and task is None
        return of_a_constant

    monkeypatch.setattr(judging, "fit_and_evaluate", fitted)
    dataset.save(tmp_path / "rows.npz", made_up(constant=True), "mine")
    code, said, _ = call("fit", "--data", tmp_path / "rows.npz", *SMALL.split(), "--test-fraction", 0.3)
    assert code == 0 and re.search(r"^reward +\S+ +constant ", said, re.MULTILINE)
    assert said.count(" constant ") == 1


@pytest.mark.slow
def test_numbers_are_in_the_default_float():
    with jax.enable_x64(True):
        rows = jax.tree.map(lambda x: x.astype(np.float64) if x.dtype == np.float32 else x, made_up())
        found = fit_and_evaluate(FitConfig(ensemble=TINY), rows)
        assert found.evaluation.calibration.shares.dtype == jax.tree.leaves(found.state.members)[0].dtype == jnp.float64
        assert np.isfinite(found.evaluation.error).all()
