"""`--x64`: a run is made, saved, resumed and evaluated in float64, and in no other type than it was made in."""

import json

import jax
import numpy as np
import pytest
from command_line import call

from jaxmbrl import cli
from jaxmbrl.core import calling, precision
from jaxmbrl.data import dataset
from jaxmbrl.training import restoring
from jaxmbrl.training.collecting import collect_by

TRAIN = ("train", "linear", "--env", "pendulum", "--eval-every", 1, "--eval-episodes", 2)


@pytest.fixture(autouse=True)
def switched_back():
    """The switch holds for a process, and no other test may see it."""
    yield
    jax.config.update("jax_enable_x64", False)


def switched(*words):
    """The result of a command, after which float32 is on again, as in the next process."""
    found = call(*words)
    jax.config.update("jax_enable_x64", False)
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run in float64 and one in float32, of 200 steps and one seed."""
    folder = tmp_path_factory.mktemp("runs")
    for name, words in (("double", ["--x64"]), ("single", [])):
        code, _, err = switched(*words, *TRAIN, "--steps", 200, "--out", folder / name)
        assert code == 0, err
    return folder


def floats(run):
    """Dtypes of the floats in the newest state of a run."""
    _, state, _ = restoring.newest(run)
    leaves = [leaf.dtype for leaf in jax.tree.leaves(state)]
    return {np.dtype(kind) for kind in leaves if jax.numpy.issubdtype(kind, np.floating)}


def test_a_whole_run_is_in_float64(runs):
    for name, kind in (("double", np.float64), ("single", np.float32)):
        assert json.loads((runs / name / "environment.json").read_text())["float64"] == (kind == np.float64)
        with jax.enable_x64(kind == np.float64):
            assert floats(runs / name) == {np.dtype(kind)}


def test_a_run_continues_in_its_own_type_alone(runs):
    code, out, err = switched("train", "--resume", runs / "double", "--steps", 300, "--x64")
    assert code == 0 and "resuming at 200" in out + err, err
    with jax.enable_x64(True):
        assert floats(runs / "double") == {np.dtype(np.float64)}
    for command in (["train", "--resume"], ["evaluate"]):
        code, _, err = switched(*command, runs / "double")
        assert code == 2 and f"the run in {runs / 'double'} needs float64: add --x64 to the command" in err
        code, _, err = switched(*command, runs / "single", "--x64")
        assert code == 2 and "was made in float32, and float64 is on: leave --x64 out" in err
    code, out, err = switched("evaluate", runs / "double", "--episodes", 1, "--x64")
    assert code == 0 and "mean" in out, err


def test_rows_of_a_file_are_learned_from_in_float64(tmp_path):
    """The file has float32, and only the rows are rounded."""
    rows = collect_by("pendulum", "random", 100)[0]
    assert rows.reward.dtype == np.float32
    dataset.save(tmp_path / "rows.npz", rows, "pendulum")
    words = ("--data", tmp_path / "rows.npz", "--steps", 100, "--warmup-steps", 50, "--eval-every", 0)
    code, _, err = switched(*TRAIN[:4], *words, "--out", tmp_path / "run", "--x64")
    assert code == 0, err
    with jax.enable_x64(True):
        assert floats(tmp_path / "run") == {np.dtype(np.float64)}


def test_commands_that_are_printed_have_the_switch(monkeypatch):
    monkeypatch.setattr(calling, "_words", ["train", "pilco", "--x64"])
    assert calling.again("evaluate", "runs/x") == "jaxmbrl evaluate runs/x --x64"
    monkeypatch.setattr(calling, "_words", ["train", "sac"])
    assert calling.again("evaluate", "runs/x") == "jaxmbrl evaluate runs/x"


def test_the_error_of_a_method_that_needs_it_says_how(tmp_path):
    words = ("train", "pilco", "--env", "pilco-pendulum", "--out", tmp_path / "run")
    code, _, err = switched(*words)
    assert code == 2 and err.count("\n") == 1
    assert "a Gaussian process needs float64: add --x64 to the command, or in Python call jax.config.update(" in err
    assert not (tmp_path / "run").exists()


def test_the_switch_is_for_the_process(capsys):
    assert not precision.is_float64()
    assert cli.main(["doctor", "--help", "--x64"]) == 0
    assert precision.is_float64()
