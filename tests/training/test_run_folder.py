import datetime
import fcntl
import json
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import jaxmbrl
from jaxmbrl.core import calling
from jaxmbrl.core.config import UserError, to_dict
from jaxmbrl.training import programs, run_folder
from jaxmbrl.training.run_folder import RunFolder, environment, event_of, write_file

ROW = {"epoch": 1, "env_steps": 200, "seed": 0, "train/return": 57.1}


@pytest.fixture
def run(tmp_path) -> RunFolder:
    return RunFolder.create(tmp_path / "run")


def one_line(caught) -> str:
    message = str(caught.value)
    assert "\n" not in message and message
    return message


def test_create_makes_the_parents_and_leaves_nothing_behind(tmp_path):
    made = RunFolder.create(str(tmp_path / "a" / "b" / "run"))
    assert made.path == tmp_path / "a" / "b" / "run" and made.checkpoints == made.path / "checkpoints"
    assert list(made.path.iterdir()) == []
    assert RunFolder.create(made.path) == made


def test_create_refuses_what_is_taken(tmp_path):
    (tmp_path / "file").write_text("mine")
    for path, words in ((tmp_path / "file", "is a file"), (tmp_path / "file" / "run", "a parent is a file")):
        with pytest.raises(UserError, match=words) as caught:
            RunFolder.create(path)
        assert str(path) in one_line(caught)
    with pytest.raises(UserError, match=r"is not empty \(it has file\)") as caught:
        RunFolder.create(tmp_path)
    one_line(caught)
    assert (tmp_path / "file").read_text() == "mine"


def test_create_refuses_a_folder_that_cannot_be_written(tmp_path):
    with pytest.raises(UserError, match="cannot be created") as caught:
        RunFolder.create("/proc/run")
    one_line(caught)
    with pytest.raises(UserError, match="cannot be created") as caught:
        RunFolder.create(tmp_path / ("x" * 300))
    one_line(caught)


def test_create_tries_to_write(tmp_path, monkeypatch):
    def refuse(path, data):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(UserError, match=r"cannot be written to .Read-only file system.") as caught:
        RunFolder.create(tmp_path / "run")
    one_line(caught)


def test_open_names_what_is_missing(tmp_path, run):
    with pytest.raises(UserError, match="there is no folder"):
        RunFolder.open(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"is not a run: it has no config\.yaml"):
        RunFolder.open(run.path)
    run.write_config({"algorithm": "pets"})
    assert RunFolder.open(str(run.path)) == run


CONFIGS = st.dictionaries(
    st.text(min_size=1, max_size=8),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False)
        | st.text(st.characters(codec="utf-8"), max_size=8),
        lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=5), values, max_size=3),
        max_leaves=6,
    ),
    max_size=4,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=CONFIGS)
def test_a_config_comes_back(run, config):
    run.write_config(config)
    assert run.read_config() == config


def test_a_config_keeps_its_order_and_is_plain_yaml(run):
    run.write_config({"env": "cartpole", "algorithm": "pets", "settings": {"rate": 1e-4, "hidden": [64, 64]}})
    text = (run.path / "config.yaml").read_text()
    assert text.startswith("env: cartpole\nalgorithm: pets\n")
    assert yaml.safe_load(text)["settings"] == {"rate": 1e-4, "hidden": [64, 64]}


@pytest.mark.parametrize(
    "text", ["a: [1", "- 1\n- 2\n", "", "just words", "a: !!python/object:os.system x", b"\xff\xfe\xff"]
)
def test_a_config_that_is_not_valid_is_named(run, text):
    (run.path / "config.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=r"config\.yaml") as caught:
        run.read_config()
    one_line(caught)


def test_metrics_are_lines_of_json(run):
    assert run.metrics_offset() == 0 and run.read_metrics() == []
    rows = [{**ROW, "seed": seed, "model/holdout_error": np.float32(0.5), "frozen": True} for seed in range(3)]
    run.append_metrics(rows)
    offset = run.metrics_offset()
    run.append_metrics([ROW])
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [*rows, ROW] == run.read_metrics()
    assert offset == sum(len(line) + 1 for line in lines[:3])
    run.truncate_metrics(offset)
    assert run.read_metrics() == rows and run.metrics_offset() == offset
    run.truncate_metrics(offset)
    with pytest.raises(UserError, match=rf"has {offset} bytes, but had {offset + 1} at its checkpoint"):
        run.truncate_metrics(offset + 1)
    assert run.read_metrics() == rows
    run.truncate_metrics(0)
    assert run.read_metrics() == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32("nan"), -np.inf])
def test_a_value_that_is_not_finite_is_refused_before_anything_is_written(run, value):
    run.append_metrics([ROW])
    with pytest.raises(ValueError, match=r"metric agent/critic_loss is .* in epoch 1, seed 0"):
        run.append_metrics([ROW, {**ROW, "agent/critic_loss": value}])
    assert run.read_metrics() == [ROW]


def test_lines_are_written_in_one_write_and_synced(run, monkeypatch):
    calls = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: calls.append((run.path / "metrics.jsonl").read_bytes()) or real(handle))
    run.append_metrics([ROW, ROW])
    line = json.dumps(ROW).encode() + b"\n"
    assert calls == [line + line]


def test_a_torn_last_line_is_left_out_and_then_dropped(run):
    run.append_metrics([ROW, {**ROW, "seed": 1}])
    file = run.path / "metrics.jsonl"
    whole = file.read_bytes()
    for cut in range(1, len(whole)):
        file.write_bytes(whole[:cut])
        complete = whole[:cut].count(b"\n")
        assert run.read_metrics() == [ROW][:complete]
        run.append_metrics([{**ROW, "seed": 2}])
        assert run.read_metrics() == [*[ROW][:complete], {**ROW, "seed": 2}]
    file.write_bytes(whole + b"\0" * 20 + b"\n")
    assert len(run.read_metrics()) == 2


def test_any_other_bad_line_is_named(run):
    file = run.path / "metrics.jsonl"
    for text in ('{"a": 1}\n{"a": \n{"a": 2}\n', '{"a": 1}\n[1]\n{"a": 2}\n', '{"a": 1}\n\n{"a"'):
        file.write_text(text)
        with pytest.raises(UserError, match=r"metrics\.jsonl, line 2 is not a JSON object") as caught:
            run.read_metrics()
        one_line(caught)


def test_events_carry_their_time(run):
    before = datetime.datetime.now(datetime.UTC)
    for kind in ("start", "compile", "checkpoint", "resume", "warning", "end"):
        run.append_events([event_of(kind, seconds=1.5)])
    with pytest.raises(ValueError, match="kind is one of start, compile"):
        event_of("pause")
    events = run.read_events()
    assert [event["kind"] for event in events] == ["start", "compile", "checkpoint", "resume", "warning", "end"]
    for event in events:
        time = datetime.datetime.fromisoformat(event["time"])
        assert time.utcoffset() == datetime.timedelta(0) and event["seconds"] == 1.5
        assert abs((time - before).total_seconds()) < 60


def test_the_environment_says_where_it_ran(run, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["jaxmbrl", "train", "pets"])
    run.write_environment({"hyper": {"rate": [1.0]}})
    found = json.loads((run.path / "environment.json").read_text())
    assert found["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["versions"]["numpy"] == np.__version__
    assert set(run_folder.PACKAGES) <= set(found["versions"])
    assert found["devices"][0]["platform"] == found["backend"] and found["cpu_count"] == os.cpu_count()
    assert found["processor"]
    assert found["command"] == ["jaxmbrl", "train", "pets"] and found["hyper"] == {"rate": [1.0]}


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def test_the_source_commit_and_its_changes(tmp_path, monkeypatch):
    package = tmp_path / "src" / "package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    assert run_folder._source(package) == {}
    git(tmp_path, "init", "-q")
    assert run_folder._source(package) == {}
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "results.txt").write_text("outside of the package")
    assert run_folder._source(package) == {"commit": commit, "dirty": False}
    (package / "new.py").write_text("")
    assert run_folder._source(package) == {"commit": commit, "dirty": True}
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "second")
    (package / "new.py").write_text("changed = 1")
    assert run_folder._source(package) == {"commit": git(tmp_path, "rev-parse", "HEAD"), "dirty": True}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run_folder._source(package) == {}
    assert "versions" in environment() and "commit" not in environment()


def test_files_are_replaced_in_one_step(tmp_path):
    """A reader that looks all the while sees one of the versions, never a part of one."""
    file, done, seen = tmp_path / "file", threading.Event(), set()
    write_file(file, b"0" * 200_000)

    def read() -> None:
        while not done.is_set():
            data = file.read_bytes()
            seen.add((data[:1], data == data[:1] * 200_000))

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(50):
        write_file(file, str(i % 10).encode() * 200_000)
    done.set()
    reader.join()
    assert len(seen) > 1 and all(whole for _, whole in seen)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_file(tmp_path / "file", b"old")

    def fail(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write_file(tmp_path / "file", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"old")]


def test_one_process_holds_a_run(run):
    code = """
        import sys
        from jaxmbrl.core.config import UserError
        from jaxmbrl.training.run_folder import RunFolder
        from pathlib import Path
        try:
            with RunFolder(Path(sys.argv[1])).lock():
                print("held")
        except UserError as error:
            print(error)
    """

    def other() -> str:
        command = [sys.executable, "-c", textwrap.dedent(code), str(run.path)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    with run.lock():
        with pytest.raises(UserError, match="another process is writing to"), run.lock():
            pass
        assert other() == f"another process is writing to {run.path}; wait for it or stop it"
    assert other() == "held"


def test_the_package_that_is_looked_at_is_this_one():
    assert Path(run_folder.__file__).parents[1] == Path(jaxmbrl.__file__).parent


def test_a_task_or_algorithm_of_another_program_is_told_with_that_program(run, monkeypatch):
    config = to_dict(programs.configure("sac", "pendulum"))
    program = ["python", "/tasks/my task.py"]
    monkeypatch.setattr(calling, "_words", ["report", str(run.path)])
    monkeypatch.setattr(calling, "_called", [True])
    for field, what in (("env", "task"), ("algorithm", "algorithm")):
        run.write_config(config | {field: "hovercraft"})
        unknown = f"{run.path}/config.yaml: unknown {what} 'hovercraft'; "
        assert one_line_of(run).startswith(unknown)
        run.write_environment({"program": program})
        assert one_line_of(run) == (
            f"{run.path} is a run of the {what} 'hovercraft', which is not registered in this program: run it through: "
            f"python '/tasks/my task.py' report {run.path}"
        )
        run.write_environment(calling.recorded())
        assert one_line_of(run).startswith(unknown)
    # Another mistake in the file is told as one.
    run.write_environment({"program": program})
    run.write_config(config | {"seeds": 0})
    assert one_line_of(run) == f"{run.path}/config.yaml: seeds must be at least 1, got 0"


def one_line_of(run):
    with pytest.raises(UserError) as caught:
        programs.read(run)
    return one_line(caught)


def test_a_look_at_a_run_does_not_keep_another_process_from_writing(run, monkeypatch):
    """`is_locked` has a shared lock for a moment."""
    with run.lock():
        pass
    with open(run.path / ".lock", "rb") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        waits = []

        def sleep(seconds):
            waits.append(seconds)
            if len(waits) == 3:
                fcntl.flock(looking, fcntl.LOCK_UN)

        monkeypatch.setattr(run_folder.time, "sleep", sleep)
        with run.lock():
            assert run.is_locked()
    assert len(waits) == 3 and sum(waits) < run_folder.LOOKING_SECONDS
