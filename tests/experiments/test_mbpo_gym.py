"""The study of MBPO on Gymnasium's tasks: runs are begun, gone on with and drawn, from one call to the next."""

import contextlib
import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_method import registered

from jaxmbrl.diagnostics.published import Point
from jaxmbrl.training.run_folder import RunFolder

SCRIPT = Path(__file__).parents[2] / "experiments" / "mbpo_gym.py"
TINY = ["--eval-every", "1", "--batch-size", "4", "--eval-episodes", "1", "--checkpoint.every", "2"]
STUDY = ["--method", "linear", "--tasks", "pendulum", "--seeds", "2"]


@pytest.fixture(scope="module", autouse=True)
def small_method():
    with registered():
        yield


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("mbpo_gym", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def begun(script, tmp_path_factory, compile_cache):
    """A study of 300 steps."""
    out = tmp_path_factory.mktemp("study")
    assert script.main([*STUDY, "--steps", "300", "--out", str(out), "--", *TINY]) == 0
    return out


@pytest.fixture
def copy(begun, tmp_path):
    return Path(shutil.copytree(begun, tmp_path / "copy"))


def numbers(out):
    return json.loads((out / "mbpo_gym.json").read_text())


def rows(out):
    return RunFolder.open(out / "pendulum-linear").read_metrics()


def places(out):
    return [(row["env_steps"], row["seed"]) for row in rows(out)]


@pytest.mark.promises
def test_a_study_leaves_runs_a_picture_and_numbers(begun):
    assert sorted(path.name for path in begun.iterdir()) == ["mbpo_gym.json", "pendulum-linear", "pendulum-linear.png"]
    with Image.open(begun / "pendulum-linear.png") as image:
        assert np.asarray(image.convert("L"), float).std() > 10
    found = numbers(begun)
    told = found["tasks"]["pendulum"]
    assert told["config"]["seeds"] == 2 and told["config"]["settings"]["batch_size"] == 4
    assert {seed: [step for step, _ in curve] for seed, curve in told["curves"].items()} == {
        "0": [100, 200, 300],
        "1": [100, 200, 300],
    }
    assert told["curves"]["1"][2][1] == next(
        r["eval/return"] for r in rows(begun) if (r["env_steps"], r["seed"]) == (300, 1)
    )
    assert told["table"] == [] and found["share of MBPO"] is None
    assert found["command"].startswith("python experiments/mbpo_gym.py")
    assert {"versions", "processor"} <= set(told["environment"]) and {"versions", "processor"} <= set(found["drawn"])


@pytest.mark.promises
def test_the_table_holds_what_is_published_at_steps_that_were_reached(script, copy, monkeypatch, capsys):
    def read(path):
        assert path.is_file()
        return [Point("pendulum", step, "MBPO", -500.0, 10.0, 5, None, "v4", "x") for step in (200, 10_000)]

    monkeypatch.setattr(script.published, "read", read)
    monkeypatch.setattr(script.published, "of_task", lambda points, env: points)
    before = (copy / "pendulum-linear.png").read_bytes()
    assert script.main([*STUDY, "--draw-only", "--out", str(copy)]) == 0
    (line,) = numbers(copy)["tasks"]["pendulum"]["table"]
    # All evaluations lie within 2,500 steps of step 200.
    means = [np.mean([r["eval/return"] for r in rows(copy) if r["seed"] == seed]) for seed in (0, 1)]
    assert line["environment_steps"] == 200 and line["theirs"][0]["return_mean"] == -500.0
    assert list(line["ours"]["per_seed"].values()) == pytest.approx(means)
    assert line["ours"]["mean"] == pytest.approx(np.mean(means))
    assert numbers(copy)["share of MBPO"]["iqm"] == pytest.approx(np.mean(means) / -500.0)
    assert (copy / "pendulum-linear.png").read_bytes() != before
    assert "-500 ± 10" in capsys.readouterr().out


@pytest.mark.promises
def test_drawing_trains_nothing_and_needs_a_run(script, copy, tmp_path, capsys):
    before = places(copy)
    (copy / "pendulum-linear.png").unlink()
    words = ["--method", "linear", "--tasks", "pendulum", "Hopper-v5", "--draw-only", "--steps", "900", "--out", str(copy)]
    assert script.main(words) == 0
    assert places(copy) == before and (copy / "pendulum-linear.png").exists()
    assert list(numbers(copy)["tasks"]) == ["pendulum"]
    assert script.main([*STUDY, "--draw-only", "--out", str(tmp_path / "none")]) == 2
    assert "there is no run of linear on pendulum below" in capsys.readouterr().err


@pytest.mark.promises
def test_a_run_goes_on_once_and_no_row_comes_twice(script, copy, capsys):
    words = [*STUDY, "--out", str(copy), "--steps"]
    before = rows(copy)
    assert script.main([*words, "300", "--", *TINY]) == 0
    assert "at 300 steps already" in capsys.readouterr().out and rows(copy) == before
    # A run that was cut after a checkpoint: its last rows come again.
    shutil.rmtree(copy / "pendulum-linear" / "checkpoints" / "00000300")
    assert script.main([*words, "500", "--", *TINY]) == 0
    assert places(copy) == [(step, seed) for step in (100, 200, 300, 400, 500) for seed in (0, 1)]
    assert [row["eval/return"] for row in rows(copy)[:6]] == [row["eval/return"] for row in before]
    told = numbers(copy)["tasks"]["pendulum"]
    assert told["environment_steps"] == 500 and [event["env_steps"] for event in told["resumed"]] == [200]
    assert script.main([*words, "300", "--", *TINY]) == 0
    assert len(rows(copy)) == 10


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["--seeds", "3", "--", *TINY], "was begun with seeds 2, not 3: ask for the same, or another --out"),
        (["--", *TINY, "--batch-size", "8"], "was begun with batch_size 4, not 8"),
        (["--tasks", "pendulum", "Hoper-v5", "--", *TINY], "unknown task 'Hoper-v5'"),
        (["--preset", "nosuch"], "unknown preset 'nosuch'"),
        (["--", "--batch-sise", "4"], "--batch-sise"),
    ],
)
def test_another_run_than_the_one_that_is_there_is_refused(script, begun, capsys, changes, told):
    before = rows(begun)
    assert script.main([*STUDY, "--steps", "900", "--out", str(begun), *changes]) == 2
    assert told in capsys.readouterr().err
    assert rows(begun) == before


def test_what_the_study_decides_holds_against_what_is_behind_the_dashes(script):
    asked, extra = script.parse(["--tasks", "Ant-v5/truncated", "--seeds", "3", "--", "--seeds", "9", "--out", "x"])
    config, out = script.training.parse_train("mbpo", script.words_of(asked, "Ant-v5/truncated", extra))
    assert (config.seeds, config.env, config.preset) == (3, "Ant-v5/truncated", "paper-ant")
    assert out == Path("runs/mbpo_gym/Ant-v5-truncated-mbpo")


def test_without_options_it_is_mbpo_on_the_published_tasks(script):
    asked, extra = script.parse([])
    points = script.published.read(script.PUBLISHED)
    configs = [script.training.parse_train(asked.method, script.words_of(asked, task, extra))[0] for task in asked.tasks]
    assert [script.published.of_task(points, task) != [] for task in asked.tasks] == [True] * 5
    assert all((c.algorithm, c.seeds) == ("mbpo", 4) and c.settings.eval_every > 0 for c in configs)


@pytest.mark.slow
def test_the_quick_study_runs(script, tmp_path, compile_cache):
    with contextlib.chdir(tmp_path):
        assert script.main(["--quick"]) == 0
    assert list(numbers(tmp_path / "runs" / "mbpo_gym")["tasks"]["pendulum"]["curves"]) == ["0", "1"]
