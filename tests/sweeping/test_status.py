"""What is told of runs by what their folders hold."""

import json
import re
import time

import pytest
import yaml

from jaxmbrl.core.config import UserError, to_dict
from jaxmbrl.sweeping import status
from jaxmbrl.sweeping.folder import SweepFolder
from jaxmbrl.training import programs
from jaxmbrl.training.run_folder import RunFolder, event_of


def test_a_run_that_reached_its_target_is_finished_until_the_target_is_raised(tmp_path):
    folder = make(tmp_path / "run", epochs=3, total=10, checkpoints=(0, 3))
    folder.append_events([event_of("end", env_steps=3000, metric="eval/return", reached=-150.0)])
    for target, state in ((-200.0, "finished"), (-150.0, "finished"), (-100.0, "stopped"), (None, "stopped")):
        folder.write_config(folder.read_config() | {"stop_at_return": target})
        found = status.look(folder.path)
        assert (found.state, found.ended) == (state, state == "finished")


def make(path, epochs=3, total=10, checkpoints=(0, 2), ended=False, frozen=(), **metrics):
    """A run folder of 2 seeds, as one leaves it after `epochs` epochs of 1,000 steps."""
    path.mkdir(parents=True)
    folder = RunFolder(path)
    folder.write_config(to_dict(programs.configure("sac", "pendulum", steps=1000 * total - 7, seeds=2, seed=3)))
    for epoch in checkpoints:
        (folder.checkpoints / f"{1000 * epoch:08}").mkdir(parents=True)
    folder.append_events([event_of("start")])
    for epoch in range(1, epochs + 1):
        found = {name: values[epoch] for name, values in metrics.items() if epoch in values}
        rows = []
        for k in range(2):
            told = {"frozen": True} if 3 + k in frozen else {name: value + k for name, value in found.items()}
            rows.append({"epoch": epoch, "env_steps": 1000 * epoch, "seed": 3 + k, **told})
        folder.append_metrics(rows)
    if frozen:
        text = "seed 4 is frozen: 'critic/loss' was not finite in epoch 1, at step 40"
        folder.append_events([event_of("warning", text=text)])
    if ended:
        folder.append_events([event_of("end", env_steps=1000 * epochs)])
    return folder


def contents(folder):
    return {path: path.is_dir() or (path.read_bytes(), path.stat().st_mtime) for path in sorted(folder.rglob("*"))}


def test_states(tmp_path):
    sweep = SweepFolder(tmp_path)
    sweep.create()
    names = ["fresh", "failed-at-once", "going", "stopped", "died", "went-on", "done", "lost", "ended", "bad", "wrong"]
    sweep.write_index(names, {"wrong": "batch_size must be at least 1, got 0"})
    sweep.note("failed-at-once", "begins")
    sweep.note("failed-at-once", "failed", "the state of the run takes 90 GB")
    going = make(tmp_path / "going")
    make(tmp_path / "stopped")
    make(tmp_path / "died")
    sweep.note("died", "begins")
    sweep.note("died", "failed", "killed by SIGKILL")
    make(tmp_path / "went-on")
    sweep.note("went-on", "failed", "killed by SIGKILL")
    sweep.note("went-on", "begins")
    make(tmp_path / "done", epochs=10, checkpoints=(10,))
    make(tmp_path / "lost", epochs=10, checkpoints=(), ended=True)
    make(tmp_path / "ended", epochs=4, frozen=(3, 4), ended=True)
    make(tmp_path / "bad").write_config({"algorithm": "sac"})
    make(tmp_path / "another", epochs=9, checkpoints=(9,), frozen=(4,))
    before = contents(tmp_path)
    with going.lock():
        found = {run.name: run for run in status.of_folder(tmp_path)}
    assert contents(tmp_path) == before | {going.path / ".lock": (b"", (going.path / ".lock").stat().st_mtime)}
    assert {name: run.state for name, run in found.items()} == {
        "fresh": "waiting",
        "failed-at-once": "failed",
        "going": "running",
        "stopped": "stopped",
        "died": "failed",
        "went-on": "stopped",
        "done": "finished",
        "lost": "finished",
        "ended": "failed",
        "bad": "invalid",
        "wrong": "invalid",
        "another": "stopped",
    }
    assert list(found) == [*names, "another"]
    assert found["failed-at-once"].error == "the state of the run takes 90 GB"
    assert found["died"].error == "killed by SIGKILL"
    assert found["ended"].error == "seed 4 is frozen: 'critic/loss' was not finite in epoch 1, at step 40"
    assert found["bad"].error.endswith("it lacks steps, seeds or settings.epoch_steps")
    assert found["wrong"].error == "batch_size must be at least 1, got 0"
    assert found["another"].frozen == (4,) and found["ended"].frozen == (3, 4)
    assert {name for name, run in found.items() if run.ended} == {"done", "lost", "ended"}
    assert (found["going"].env_steps, found["going"].total_steps, found["going"].seeds) == (3000, 10000, 2)


def test_the_lock_is_not_kept(tmp_path):
    folder = make(tmp_path / "run")
    assert not folder.is_locked() and not (tmp_path / "run" / ".lock").exists()
    with folder.lock():
        assert folder.is_locked() and folder.is_locked()
    assert not folder.is_locked()
    with folder.lock():
        pass
    assert not RunFolder(tmp_path / "nowhere").is_locked()


def test_the_return_is_the_last_of_the_best_measure(tmp_path):
    make(tmp_path / "a", **{"train/return": {1: 5.0, 3: 7.0}, "eval/return": {2: 10.0}})
    make(tmp_path / "b", **{"train/return": {1: 5.0, 2: 7.0}})
    make(tmp_path / "c")
    a, b, c = status.of_folder(tmp_path)
    assert (a.metric, a.value) == ("eval/return", 10.5)
    assert (b.metric, b.value) == ("train/return", 7.5)
    assert (c.metric, c.value) == (None, None)


def test_what_is_torn_or_damaged_does_not_stop_it(tmp_path):
    folder = make(tmp_path / "a")
    with (folder.path / "metrics.jsonl").open("ab") as file:
        file.write(b'[1]\n{"env_steps": "x"}\n\xff\xfe\n{"epoch": 4, "env_st')
    (folder.path / "events.jsonl").write_bytes(b"\x00\n")
    make(tmp_path / "b")
    (tmp_path / "b" / "config.yaml").write_text("a: [")
    (tmp_path / ".sweep.json").write_text("[]")
    a, b = status.of_folder(tmp_path)
    assert (a.state, a.env_steps) == ("stopped", 3000)
    assert b.state == "invalid" and "not valid YAML" in b.error
    assert json.loads(status.as_json([a, b]))[0]["name"] == "a"


def test_the_table(tmp_path):
    make(tmp_path / "a", **{"eval/return": {3: 10.0}})
    make(tmp_path / "b", frozen=(3, 4), ended=True)
    now = time.time() + 7200
    lines = status.table(status.of_folder(tmp_path), now).splitlines()
    assert [re.sub(r" +", " ", line) for line in lines[:3]] == [
        "run state steps seeds return last active",
        "a stopped 3,000 of 10,000 30% 2 10.5 (eval) 2 h ago",
        "b failed 3,000 of 10,000 30% 2 (2 frozen) - 2 h ago",
    ]
    assert lines[3] == "    seed 4 is frozen: 'critic/loss' was not finite in epoch 1, at step 40"
    assert lines[-1] == "2 runs: 1 stopped, 1 failed"


def test_the_folder_of_one_run_is_told_too(tmp_path):
    make(tmp_path / "alone")
    (found,) = status.of_folder(tmp_path / "alone")
    assert (found.name, found.state) == ("alone", "stopped")


def test_the_sweeps_inside_of_a_folder_are_told_too(tmp_path):
    make(tmp_path / "alone")
    make(tmp_path / "study" / "lr-1")
    SweepFolder(tmp_path / "study").write_index(["lr-1", "lr-2"], {})
    assert [run.name for run in status.of_folder(tmp_path)] == ["alone", "study/lr-1", "study/lr-2"]
    with pytest.raises(UserError, match=r"study is not a run: it has no config.yaml; its runs are lr-1: give one, "):
        RunFolder.open(tmp_path / "study")


def test_a_run_of_another_version_counts(tmp_path):
    folder = make(tmp_path / "old", epochs=10, checkpoints=(10,))
    config = folder.read_config()
    config["settings"] = {"epoch_steps": 1000, "an_old_field": 3}
    (folder.path / "config.yaml").write_text(yaml.safe_dump(config | {"env": "my-own"}))
    assert [run.state for run in status.of_folder(tmp_path)] == ["finished"]


def test_where_there_are_no_runs(tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        status.of_folder(tmp_path / "nowhere")
    with pytest.raises(UserError, match="has no runs"):
        status.of_folder(tmp_path)


def test_notes(tmp_path):
    sweep = SweepFolder(tmp_path)
    assert sweep.last_note("a") == ("", "")
    sweep.note("a", "begins")
    with sweep.log("a").open("a") as log:
        log.write("training ...\n[sweep of words] died: no\nunfinished")
    assert sweep.last_note("a") == ("begins", "")
    sweep.note("a", "failed", "two\nlines")
    assert sweep.last_note("a") == ("failed", "two lines")
    with pytest.raises(ValueError, match="got 'slept'"):
        sweep.note("a", "slept")


def test_the_index_of_another_file_is_not_overwritten(tmp_path):
    """Two files of one name have the same folder by default."""
    first, second = tmp_path / "a" / "study.yaml", tmp_path / "b" / "study.yaml"
    for file in (first, second):
        file.parent.mkdir()
        file.write_text("")
    sweep = SweepFolder(tmp_path / "study")
    sweep.create()
    sweep.write_index(["sac"], {}, first)
    with pytest.raises(
        UserError, match=r"has the runs of .*a/study\.yaml; choose another folder for those of .*b/study\.yaml"
    ):
        sweep.write_index(["td3"], {}, second)
    assert sweep.read_index() == (["sac"], {})
    sweep.write_index(["sac", "sac-2"], {}, first)
    first.rename(tmp_path / "a" / "moved.yaml")
    sweep.write_index(["td3"], {}, second)
    assert sweep.read_index() == (["td3"], {})
