"""Which runs are at work when, and what becomes of those whose process dies. Most processes here are made up."""

import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

from jaxmbrl.core.config import to_dict
from jaxmbrl.sweeping import launching
from jaxmbrl.sweeping.folder import SweepFolder
from jaxmbrl.sweeping.launching import Job, Launcher, Signals, launch
from jaxmbrl.training import programs


class Made:
    """A launcher whose processes end as they are told: `ends[name]` lists how each attempt at a run does."""

    def __init__(self, folder, ends, signals=None):
        self.folder, self.ends, self.signals = folder, {name: list(each) for name, each in ends.items()}, signals
        self.begun, self.stopped, self.at_once, self.most = [], [], 0, 0

    def start(self, job):
        self.begun.append(job.name)
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        return job.name

    def ended(self, handle):
        code = self.ends[handle].pop(0)
        if code is None:
            return None
        self.at_once -= 1
        if code == "finishes":
            finish(self.folder.run(handle))
            return 0
        if code == "refuses":
            self.folder.note(handle, "failed", "the state of the run takes 90 GB")
            return 2
        if code == "hears":
            self.at_once += 1
            self.signals.received += 1
            return None
        return code

    def stop(self, handle):
        self.stopped.append(handle)


def finish(path, steps=1000):
    path.mkdir(exist_ok=True)
    (path / "config.yaml").write_text(yaml.safe_dump(to_dict(programs.configure("sac", "pendulum", steps=1000))))
    (path / "checkpoints" / f"{steps:08}").mkdir(parents=True, exist_ok=True)


def play(tmp_path, ends, at_once=1, retries=1):
    """(states, launcher, what was said) of a sweep whose processes end as told."""
    folder, signals, said = SweepFolder(tmp_path), Signals(), []
    launcher = Made(folder, ends, signals)
    made = Launcher(launcher.start, launcher.ended, launcher.stop)
    jobs = [Job(name, ("sweep",), folder.log(name)) for name in ends]
    return launch(jobs, folder, made, at_once, retries, said.append, signals, poll=0.0), launcher, said


def test_runs_are_worked_on_in_order_and_so_many_at_once(tmp_path):
    ends = {name: [None, None, "finishes"] for name in "abcde"}
    states, launcher, _ = play(tmp_path, ends, at_once=2)
    assert set(states.values()) == {"finished"}
    assert launcher.begun == list("abcde") and launcher.most == 2


def test_the_progress_of_a_sweep_counts_runs_by_their_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(launching, "LOOK_SECONDS", 0.0)
    seen = []

    class Seen:
        def update(self, done, total):
            seen.append((done, total))

    folder = SweepFolder(tmp_path)
    # The first run is at a quarter of its steps, and stays there until it ends.
    finish(folder.run("a"), steps=250)
    launcher = Made(folder, {"a": [None, "finishes"], "b": [None, "refuses"], "c": ["finishes"]})
    made = Launcher(launcher.start, launcher.ended, launcher.stop)
    jobs = [Job(name, ("sweep",), folder.log(name)) for name in "abc"]
    launch(jobs, folder, made, 1, 0, lambda text: None, Signals(), 0.0, Seen())
    assert seen == [(0.25, 3), (1.0, 3), (1.0, 3), (2.0, 3), (3.0, 3)]


def test_a_run_whose_process_dies_begins_again_and_the_others_go_on(tmp_path):
    states, launcher, said = play(tmp_path, {"a": [-9, None, "finishes"], "b": ["finishes"]})
    assert states == {"a": "finished", "b": "finished"} and launcher.begun == ["a", "a", "b"]
    assert any(line.startswith("died      a") and "killed by SIGKILL (out of memory?)" in line for line in said)


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_a_run_that_dies_too_often_has_failed(tmp_path, retries):
    states, launcher, said = play(tmp_path, {"a": [-11] * 9, "b": ["finishes"]}, retries=retries)
    assert states == {"a": "failed", "b": "finished"}
    assert launcher.begun.count("a") == retries + 1
    assert SweepFolder(tmp_path).last_note("a") == ("failed", "killed by SIGSEGV")
    assert any(line.startswith("failed    a") for line in said)


def test_what_is_refused_is_not_tried_again(tmp_path):
    states, launcher, said = play(tmp_path, {"a": ["refuses"], "b": ["finishes"]})
    assert states == {"a": "failed", "b": "finished"} and launcher.begun == ["a", "b"]
    assert any(line.startswith("failed    a") and line.endswith("the state of the run takes 90 GB") for line in said)


@pytest.mark.parametrize(
    ("code", "why"),
    [(0, "it ended before all steps were done"), (1, "exit code 1"), ("NodeDiedError: gone", "NodeDiedError: gone")],
)
def test_other_ends_are_told(tmp_path, code, why):
    states, _, said = play(tmp_path, {"a": [code]}, retries=0)
    assert states == {"a": "failed"} and said[-1].endswith(f": {why}")


class Writes(Made):
    """A launcher whose processes print `text` to their log before they end."""

    text = ""

    def start(self, job):
        job.log.parent.mkdir(exist_ok=True)
        with job.log.open("a") as log:
            log.write(self.text)
        return super().start(job)


REFUSAL = "jaxmbrl: unknown task 'cart'; did you mean 'cartpole-swingup'?\n"
TRACEBACK = "Traceback (most recent call last):\n  File ...\nModuleNotFoundError: No module named 'mine'\n"


@pytest.mark.parametrize(
    ("code", "text", "why"),
    [
        (
            2,
            f"training ...\n{REFUSAL}bye from a script of one's own\n",
            "unknown task 'cart'; did you mean 'cartpole-swingup'?",
        ),
        (2, "", "its options are not valid"),
        (0, REFUSAL, "it ended before all steps were done: unknown task 'cart'; did you mean 'cartpole-swingup'?"),
        (1, f"jaxmbrl: warning\n{TRACEBACK}\n", "exit code 1: ModuleNotFoundError: No module named 'mine'"),
        (-6, "F0000 Unknown flag in XLA_FLAGS\n", "killed by SIGABRT: F0000 Unknown flag in XLA_FLAGS"),
        (-11, "compiling training ...\n", "killed by SIGSEGV"),
    ],
)
def test_the_reason_of_a_failure_is_the_last_line_of_its_process(code, text, why, tmp_path, monkeypatch):
    folder = SweepFolder(tmp_path)
    folder.note("a", "failed", "of an earlier process")
    monkeypatch.setattr(Writes, "text", text)
    monkeypatch.setitem(globals(), "Made", Writes)
    states, _, said = play(tmp_path, {"a": [code]}, retries=0)
    assert states == {"a": "failed"} and said[-1].endswith(f" s: {why}")
    assert folder.last_note("a") == ("failed", why)


def test_a_process_that_was_asked_to_stop_is_no_failure(tmp_path):
    states, launcher, _ = play(tmp_path, {"a": [75], "b": ["finishes"]})
    assert states == {"a": "stopped", "b": "finished"} and launcher.begun == ["a", "b"]


def test_a_signal_stops_what_is_at_work_and_begins_nothing(tmp_path):
    ends = {"a": [None, "hears", None, None, 75], "b": [None] * 4 + [-15], "c": []}
    states, launcher, said = play(tmp_path, ends, at_once=2)
    assert states == {"a": "stopped", "b": "stopped", "c": "waiting"}
    assert launcher.begun == ["a", "b"] and launcher.stopped == ["a", "b"]
    assert any(line.startswith("asked to stop: 2 running") for line in said)


def test_a_second_signal_is_passed_on_too(tmp_path):
    _, launcher, _ = play(tmp_path, {"a": ["hears", None, "hears", None, -15]})
    assert launcher.stopped == ["a", "a"]


def test_signals_are_counted_inside_alone():
    before = signal.getsignal(signal.SIGTERM)
    with Signals().counted() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == 2
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.fixture
def stand_in():
    """Processes that run a script of Python's, given as its text."""
    launcher = launching.processes()
    return launcher._replace(start=lambda job: launcher.start(job._replace(words=("-c", *job.words))))


def ended(launcher, process, seconds=20.0):
    end = time.monotonic() + seconds
    while (code := launcher.ended(process)) is None:
        assert time.monotonic() < end
        time.sleep(0.01)
    return code


def test_processes_log_what_they_print_and_tell_how_they_end(stand_in, tmp_path):
    log = tmp_path / "logs" / "a.log"
    script = "import sys, os; print('out'); print('err', file=sys.stderr); print(sys.argv[1:], os.getsid(0) == os.getpid())"
    process = stand_in.start(Job("a", (f"{script}; sys.exit(3)",), log))
    assert ended(stand_in, process) == 3
    assert sorted(log.read_text().splitlines()) == [f"['--with', '{os.getpid()}'] True", "err", "out"]
    process = stand_in.start(Job("a", ("import time; print('again', flush=True); time.sleep(60)",), log))
    while "again" not in log.read_text():
        time.sleep(0.01)
    stand_in.stop(process)
    assert ended(stand_in, process) == -signal.SIGTERM
    stand_in.stop(process)


def test_a_process_ends_with_the_one_that_began_it():
    code = (
        "import subprocess, sys\n"
        "child = 'import os, threading; from jaxmbrl.commands.sweeping import _end_with; print(os.getpid(), flush=True); '"
        "'_end_with(int(__import__(\"sys\").argv[1]))'\n"
        "subprocess.Popen([sys.executable, '-c', child, str(__import__('os').getpid())])\n"
        "__import__('time').sleep(300)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    os.kill(child, 0)
    parent.kill()
    parent.wait()
    end = time.monotonic() + 60
    while alive(child):
        assert time.monotonic() < end
        time.sleep(0.05)


def alive(process):
    try:
        with open(f"/proc/{process}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
