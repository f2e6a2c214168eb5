"""What is stepped on the host from outside: the page on own simulators, collecting, and evaluation by the command line."""

import json
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from begun import Began, began
from command_line import call

import jaxmbrl
from jaxmbrl import envs
from jaxmbrl.core.config import UserError
from jaxmbrl.core.types import Policy
from jaxmbrl.data import dataset
from jaxmbrl.training import collecting
from jaxmbrl.training.session import Session

PAGE = Path(__file__).parents[2] / "docs" / "own_simulator.md"
SETTINGS = {"replay_capacity": 100, "epoch_steps": 100}

pytestmark = pytest.mark.usefixtures("compile_cache")


@pytest.mark.promises
def test_the_example_of_the_page_runs(monkeypatch, capsys):
    monkeypatch.setattr(envs, "TASKS", dict(envs.TASKS))
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    names = {"__name__": "example"}
    exec(compile(code, str(PAGE), "exec"), names)
    assert float(capsys.readouterr().out) == names["result"].rows[-1]["eval/return"]
    rows = names["result"].rows
    assert [row["env_steps"] for row in rows] == [200, 200, 400, 400]
    assert all(-50 * 15 < row["train/return"] < 0 and row["train/episode_length"] == 50 for row in rows)


def test_collecting_by_the_command_line(tmp_path):
    words = ["--policy", "random", "--env", "gymnasium/Pendulum-v1", "--steps", 250, "--seed", 2]
    for name in ("a", "b"):
        code, out, err = call("collect", *words, "--out", tmp_path / name)
        assert (code, err) == (0, "")
        assert "250 transitions of gymnasium/Pendulum-v1" in out and "1 finished episodes" in out
    a, b = (dict(np.load(tmp_path / f"{name}.npz")) for name in ("a", "b"))
    for name, array in a.items():
        np.testing.assert_array_equal(array, b[name])
    assert np.flatnonzero(a["truncated"]).tolist() == [199] and not a["terminated"].any()
    np.testing.assert_array_equal(a["observation"][200:], np.r_[a["observation"][200:201], a["next_observation"][200:-1]])
    assert np.abs(a["observation"][200] - a["next_observation"][199]).max() > 1e-3


def test_discrete_actions_are_collected_and_a_model_is_fitted_to_them(tmp_path):
    out = tmp_path / "c.npz"
    code, said, err = call("collect", "--policy", "random", "--env", "gymnasium/CartPole-v1", "--steps", 20, "--out", out)
    assert (code, err) == (0, "") and "20 transitions of gymnasium/CartPole-v1" in said
    assert "jaxmbrl train pets --env gymnasium/CartPole-v1 --data" in said
    rows = dataset.load(out).rows
    assert rows.action.dtype == np.int32 and rows.action.shape == (20,) and set(rows.action) == {0, 1}
    code, said, err = call("fit", "--data", out, "--ensemble.hidden", 4, "--ensemble.max-epochs", 1)
    assert code == 0 and "fitted to 16 rows, tested on the last 4" in said


def test_collecting_stops_at_an_action_that_is_not_finite():
    task = envs.make("gymnasium/Pendulum-v1")
    lost = Policy(lambda key: 0, lambda i, seen, key: (jnp.where(i < 3, 0.0, jnp.nan)[None], (), i + 1))
    with pytest.raises(UserError, match="the policy's action is not finite at step 4"):
        collecting.collect(task, lost, 10)


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """Runs stopped before their first step, with the checkpoint of step 0."""
    folder = tmp_path_factory.mktemp("runs")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "train", began)
        for env in ("InvertedPendulum-v5", "pendulum"):
            with pytest.raises(Began):
                jaxmbrl.train("linear", env, settings=SETTINGS, seeds=2, out=folder / env)
    return folder


@pytest.mark.promises
def test_evaluation_in_gymnasium_by_the_command_line(begun, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["evaluate", begun / "InvertedPendulum-v5", "--backend", "gymnasium", "--episodes", 3, "--json"]
    (code, out, err), again = call(*words), call(*words)
    assert (code, err) == (0, "")
    assert "played in Gymnasium 1." in out and "(C MuJoCo 3.17." in out
    told = json.loads(out.splitlines()[-1])
    assert told["backend"] == "gymnasium" and told == json.loads(again[1].splitlines()[-1])
    assert len(told["per_seed"]) == 2 and all(1 <= value < 1000 for value in told["per_seed"])
    assert list(tmp_path.iterdir()) == []
    code, _, err = call("evaluate", begun / "pendulum", "--backend", "gymnasium")
    assert (code, err.count("\n")) == (2, 1) and "task 'pendulum' has no twin in Gymnasium" in err
    code, _, err = call("evaluate", begun / "InvertedPendulum-v5", "--backend", "isaac")
    assert (code, err) == (2, "jaxmbrl: backend must be 'jax' or 'gymnasium', got 'isaac'\n")
