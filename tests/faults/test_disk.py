"""Disks that refuse: training goes on for a while, tries again, and then says what happened; nothing is half written."""

import contextlib
import errno
import io
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from command_line import call, options, untimed

import jaxmbrl
from jaxmbrl.training import checkpoint, curve, durable, run_folder
from jaxmbrl.training import checkpointing as keeping
from jaxmbrl.training.checkpointing import Keeper, Lost
from jaxmbrl.training.console import Progress
from jaxmbrl.training.programs import CheckpointConfig
from jaxmbrl.training.run_folder import RunFolder

SMALL = {
    "batch_size": 4,
    "replay_capacity": 300,
    "warmup_steps": 20,
    "epoch_steps": 20,
    "eval_every": 0,
}
pytestmark = pytest.mark.usefixtures("compile_cache")


def train(out, said=None, **checkpoint):
    progress = Progress(200, 1, out=said or io.StringIO())
    fields = {"steps": 200, "out": out, "progress": progress, "checkpoint": {"every": 1, **checkpoint}}
    return jaxmbrl.train("linear", "pendulum", settings=SMALL, **fields)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Rows of the run when the disk takes everything."""
    return untimed(train(tmp_path_factory.mktemp("undisturbed") / "run").rows)


def full(path):
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def wait_for(condition):
    """Poll for a minute until `condition()`; whether it came true."""
    end = time.monotonic() + 60
    while not condition() and time.monotonic() < end:
        time.sleep(0.001)
    return condition()


def warnings(run):
    return [event["text"] for event in RunFolder.open(run).read_events() if event["kind"] == "warning"]


@pytest.mark.parametrize("what", [pytest.param("lines", marks=pytest.mark.promises), "checkpoints"])
def test_a_disk_that_is_full_for_a_while_costs_nothing(what, undisturbed, tmp_path, monkeypatch):
    run, left, said = tmp_path / "run", [6], io.StringIO()
    monkeypatch.setattr(keeping, "RETRY_SECONDS", 0.0)
    place, name = (run_folder, "_append") if what == "lines" else (durable, "sync_tree")
    real = getattr(place, name)

    def refuse(path, *more):
        # Begin after the first checkpoint, and end after some attempts.
        if left[0] and (run / "checkpoints" / "00000020").is_dir():
            left[0] -= 1
            raise full(path)
        return real(path, *more)

    monkeypatch.setattr(place, name, refuse)
    result = train(run, said)
    assert left == [0], "the disk did refuse"
    assert untimed(result.rows) == undisturbed
    assert untimed(RunFolder.open(run).read_metrics()) == undisturbed
    assert checkpoint.steps(run / "checkpoints")[-1] == 200 and not list((run / "checkpoints").glob(".*"))
    told = f"{run} cannot be written to (No space left on device): training continues and tries again, for 10 minutes"
    assert warnings(run) == [told], "once"
    assert said.getvalue().count(f"warning: {told}") == 1
    assert said.getvalue().count(f"{run} can be written to again; nothing was lost") == 1
    assert untimed(jaxmbrl.resume(run).rows) == undisturbed


def test_after_the_grace_it_ends_with_what_it_has(tmp_path, monkeypatch):
    run = tmp_path / "run"
    real = durable.sync_tree

    def refuse(path):
        if (run / "checkpoints" / "00000040").is_dir():
            raise full(path)
        return real(path)

    monkeypatch.setattr(durable, "sync_tree", refuse)
    monkeypatch.setattr(keeping, "RETRY_SECONDS", 0.0)
    words = [*options(SMALL), "--steps", 4000, "--checkpoint.every", 1, "--checkpoint.grace", 0.01, "--out", run]
    code, said, err = call("train", "linear", "--env", "pendulum", *words)
    assert code == 1
    assert err == (
        f"jaxmbrl: {run} could not be written to for 0.01 minutes (No space left on device) and training has stopped; the "
        "last checkpoint is that of step 40: check the disk and resume\n"
    )
    assert "tries again, for 0.01 minutes" in said
    assert checkpoint.steps(run / "checkpoints")[-1] == 40 and not list((run / "checkpoints").glob(".*"))
    monkeypatch.undo()
    before = RunFolder.open(run).read_metrics()[:2]
    assert jaxmbrl.resume(run, steps=100).rows[:2] == before


def test_a_folder_that_has_gone_is_not_made_again(tmp_path, monkeypatch):
    run, moved, said = tmp_path / "run", tmp_path / "moved", io.StringIO()
    monkeypatch.setattr(keeping, "RETRY_SECONDS", 0.0)
    real = run_folder.RunFolder.append_metrics
    seen = []

    def append(self, rows):
        real(self, rows)
        seen.append(rows[0]["epoch"])
        if seen == [1, 2, 3]:
            self.path.rename(moved)

    def say(self, text):
        # While it is gone for longer, it comes back. A thread may have been writing, which takes away what it made.
        if "cannot be written to" in text and moved.exists():
            assert wait_for(lambda: not run.exists())
            seen.append("gone")
            moved.rename(run)

    monkeypatch.setattr(run_folder.RunFolder, "append_metrics", append)
    monkeypatch.setattr(Progress, "warn", say)
    result = train(run, said)
    assert "gone" in seen and untimed(RunFolder.open(run).read_metrics()) == untimed(result.rows)
    assert checkpoint.steps(run / "checkpoints")[-1] == 200


def test_a_picture_that_cannot_be_drawn_is_told_once(undisturbed, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("no fonts")

    monkeypatch.setattr(curve, "draw", fail)
    assert untimed(train(tmp_path / "run").rows) == undisturbed
    assert warnings(tmp_path / "run") == [
        f"{tmp_path / 'run' / 'curve.png'} could not be drawn (RuntimeError: no fonts); training continues without it"
    ]


def test_rows_that_fit_only_in_part_are_not_written(tmp_path):
    code = """
        import resource, signal, sys
        from pathlib import Path
        from jaxmbrl.training.run_folder import RunFolder

        folder = RunFolder.create(Path(sys.argv[1]))
        row = {"epoch": 1, "note": "x" * 1000}
        folder.append_metrics([row])
        before = folder.metrics_offset()
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        try:
            folder.append_metrics([row] * 6)
        except OSError as error:
            print(type(error).__name__, folder.metrics_offset() == before)
        folder.append_metrics([row] * 2)
        print(len(folder.read_metrics()))
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split("\n")[0] in ("OSError True",) and done.stdout.split("\n")[1] == "3"


def keeper(folder, **fields):
    said = []
    return Keeper(folder, CheckpointConfig(**fields), said.append, said.append), said


@pytest.fixture
def folder(tmp_path):
    made = RunFolder.create(tmp_path / "run")
    made.write_config({"algorithm": "sac"})
    return made


def test_checkpoints_are_due_as_often_as_is_cheap(folder, monkeypatch):
    kept, _ = keeper(folder)
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    kept._last, kept._blocking, kept._whole = 1000.0, 0.5, 4.0
    # 4 s each 80 s are a twentieth; what is due within an epoch is what would lose more than ten minutes.
    assert [(t, kept.due(3)) for t in (0, 79, 80) if now.__setitem__(0, 1000.0 + t) is None] == [
        (0, False),
        (79, False),
        (80, True),
    ]
    assert not kept.due(None)
    now[0] = 1600.0
    assert kept.due(None)
    # A checkpoint that holds training up for 40 s may come each 800 s, whatever is lost.
    kept._blocking, kept._whole = 40.0, 60.0
    assert not kept.due(3)
    now[0] = 1800.0
    assert kept.due(3)
    # One that is written aside for 60 s comes at least each ten minutes.
    kept._blocking = 0.1
    now[0] = 1599.0
    assert not kept.due(3)
    now[0] = 1600.0
    assert kept.due(3)


def test_a_number_of_epochs_is_kept_to(folder):
    kept, _ = keeper(folder, every=3)
    assert [epoch for epoch in range(1, 10) if kept.due(epoch)] == [3, 6, 9] and not kept.due(None)


def test_the_newest_the_best_and_the_last_sound_one_are_kept(folder):
    kept, _ = keeper(folder, every=1, keep=2)
    scores = {1: 5.0, 2: 9.0, 3: None, 4: 9.0, 5: 1.0, 6: None, 7: 2.0, 8: 3.0}
    for step, score in scores.items():
        frozen = [0] if step >= 6 else []
        kept.save(step, {"x": np.ones(3)}, {"score": score, "frozen": frozen}, wait=True)
    # 4 is the later of the best, 5 the last before a seed was frozen.
    assert checkpoint.steps(folder.checkpoints) == [4, 5, 7, 8]
    again, _ = keeper(folder, every=1, keep=1)
    again.save(9, {"x": np.ones(3)}, {"score": 20.0, "frozen": [0, 1]}, wait=True)
    assert checkpoint.steps(folder.checkpoints) == [4, 5, 9], "what was best when it was saved"
    again.save(10, {"x": np.ones(3)}, {"score": None, "frozen": [0, 1]}, wait=True)
    assert checkpoint.steps(folder.checkpoints) == [5, 9, 10]


def test_a_checkpoint_that_was_set_aside_is_not_the_best_one(folder):
    state = {"x": np.ones(3)}
    kept, _ = keeper(folder, every=1)
    for step, score in ((1, 5.0), (2, 3.0), (3, 9.0)):
        kept.save(step, state, {"score": score, "frozen": []}, wait=True)
    again, _ = keeper(folder, every=1, keep=1)
    for file in (folder.checkpoints / "00000003" / "arrays").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:-1])
    restored = checkpoint.restore(folder.checkpoints, state)
    assert restored.step == 2 and "is damaged" in restored.warnings[0]
    again.continue_from(2)
    again.save(3, state, {"score": 1.0, "frozen": []}, wait=True)
    assert checkpoint.steps(folder.checkpoints) == [1, 3]


def test_what_is_saved_is_the_state_as_it_was(folder, monkeypatch):
    kept, _ = keeper(folder)
    real = checkpoint.save

    def slow(*arguments):
        time.sleep(0.2)
        return real(*arguments)

    monkeypatch.setattr(checkpoint, "save", slow)
    state = {"x": np.arange(5.0)}
    kept.save(1, state, {"frozen": []})
    state["x"][:] = -1.0
    assert not kept.due(1), "one at a time"
    kept.wait()
    np.testing.assert_array_equal(checkpoint.restore(folder.checkpoints, state).state["x"], np.arange(5.0))
    events = folder.read_events()
    assert events[0]["env_steps"] == 1 and events[0]["seconds"] >= 0.2 > events[0]["waited"]


@pytest.mark.parametrize("fails", [False, True])
def test_what_writing_made_where_the_folder_had_gone_is_taken_away(fails, folder, monkeypatch):
    """It goes between the look whether it is there and the writing, which makes folders as it needs them."""
    kept, said = keeper(folder)
    kept.save(1, {"x": np.ones(3)}, {"frozen": []}, wait=True)
    moved, real = folder.path.with_name("moved"), checkpoint.save

    def save(*arguments):
        folder.path.rename(moved)
        real(*arguments)
        if fails:
            raise full(folder.path)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", save)
        kept.save(2, {"x": np.ones(3)}, {"frozen": []}, wait=True)
    assert not folder.path.exists() and not kept.has_saved(2)
    assert len(said) == 1 and ("No space left" if fails else "the folder is gone") in said[0]
    moved.rename(folder.path)
    kept.save(2, {"x": np.ones(3)}, {"frozen": []}, wait=True)
    assert checkpoint.steps(folder.checkpoints) == [1, 2] and kept.has_saved(2)


def test_rows_wait_for_the_disk_and_a_checkpoint_for_its_rows(folder, monkeypatch):
    kept, said = keeper(folder, grace=1.0)
    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "_append", lambda file, rows: (_ for _ in ()).throw(full(file)))
        kept.rows([{"epoch": 1}])
        kept.save(20, {"x": np.ones(3)}, {"frozen": []}, wait=True)
        assert checkpoint.steps(folder.checkpoints) == [] and not kept.has_saved(20)
        assert len(said) == 1 and "No space left" in said[0]
        with pytest.raises(Lost, match="there is no checkpoint: check the disk"), contextlib.ExitStack() as clock:
            later = time.monotonic() + 61.0
            clock.enter_context(patch.context()).setattr(time, "monotonic", lambda: later)
            kept.flush(now=True)
    kept.save(20, {"x": np.ones(3)}, {"frozen": []}, wait=True)
    assert kept.has_saved(20) and folder.read_metrics() == [{"epoch": 1}]
    assert said[-1].endswith("can be written to again; nothing was lost")


@pytest.mark.slow
def test_a_file_size_limit_in_a_real_run(undisturbed, tmp_path):
    """A limit on the size of files, as quotas are felt, put on and taken off from outside."""
    import resource

    run = tmp_path / "run"
    settings = SMALL | {"agent.hidden": (4,), "replay_capacity": 60_000}
    words = [*options(settings), "--steps", 2000, "--checkpoint.every", 1, "--out", run]
    command = [sys.executable, "-c", "import signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "]
    command[-1] += "from jaxmbrl.cli import main; sys.exit(main())"
    process = subprocess.Popen([*command, "train", "sac", "--env", "pendulum", *map(str, words)], stdout=subprocess.PIPE)
    while len(checkpoint.steps(run / "checkpoints")) < 2:
        time.sleep(0.05)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    while not any("cannot be written to (File too large)" in text for text in _warned(run)):
        assert process.poll() is None
        time.sleep(0.05)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 0 and b"can be written to again; nothing was lost" in out
    assert [row["epoch"] for row in RunFolder.open(run).read_metrics()] == list(range(1, 101))
    assert process.returncode != -signal.SIGXFSZ


def _warned(run):
    return warnings(run) if (run / "events.jsonl").is_file() else []
