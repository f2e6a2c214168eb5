"""Runs that are asked to stop, at whatever moment: all is saved, the exit code says so, and they go on bit for bit."""

import os
import queue
import random
import re
import shlex
import signal
import sys
import threading
import time

import pytest
import small_method
from processes import LONG, STEPS, TINY, assert_same_end, begin, done, finish, here, rows, steps, train, wait

from jaxmbrl.training import stopping as stopping_module
from jaxmbrl.training.run_folder import RunFolder
from jaxmbrl.training.stopping import ASKED_TO_STOP, Stopped, Stopping


def ask(process, number=signal.SIGTERM):
    process.send_signal(number)
    return finish(process)


def stopped_at(out, run):
    """The step at which a run says that it stopped, after checking that it is saved there."""
    command = shlex.join([sys.executable, small_method.__file__, "train", "--resume", str(run)])
    found = re.search(rf"stopped at ([\d,]+) of [\d,]+ steps; to continue: {re.escape(command)}\n", out)
    assert found, out
    at = int(found[1].replace(",", ""))
    assert steps(run)[-1] == at
    events = RunFolder.open(run).read_events()
    assert [event["env_steps"] for event in events if event["kind"] == "stop"][-1] == at
    return at


def seen(run, kind):
    """Whether an event of this kind has happened."""
    return (run / "events.jsonl").is_file() and f'"{kind}"' in (run / "events.jsonl").read_text()


@pytest.mark.parametrize(
    ("algorithm", "times"),
    [("linear", 1), pytest.param("sac", 2, marks=pytest.mark.slow), pytest.param("mbpo", 2, marks=pytest.mark.slow)],
)
def test_a_run_asked_to_stop_saves_and_goes_on_bit_for_bit(algorithm, times, straight, tmp_path):
    run, chance, stops = tmp_path / "run", random.Random(2), []
    process = train(algorithm, run)
    # Within an epoch, or at its end: wherever a chunk ends.
    while wait(process, lambda: len(steps(run)) > 1 and steps(run)[-1] > (stops or [0])[-1]):
        time.sleep(chance.uniform(0.0, 0.3))
        code, out, err = ask(process, (signal.SIGINT, signal.SIGTERM)[len(stops) % 2])
        if code == 0:
            break
        assert (code, err) == (ASKED_TO_STOP, "")
        stops.append(stopped_at(out, run))
        if len(stops) == times:
            here("train", "--resume", run)
            break
        process = begin("train", "--resume", run)
    assert stops == sorted(stops) and len(stops) >= 1
    assert_same_end(run, straight(algorithm))


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", TINY)
def test_twenty_random_moments(algorithm, straight, tmp_path):
    run, chance, asked, early = tmp_path / "run", random.Random(3), 0, 0
    process = train(algorithm, run, LONG)
    while asked < 7:
        wait(process, (run / "checkpoints" / "00000000").is_dir)
        # From before anything is compiled to many epochs later.
        time.sleep(chance.choice([0.0, 1.0, 3.0, 6.0]) * chance.random())
        code, out, err = ask(process)
        if code == 0:
            assert steps(run)[-1] == LONG
            break
        if code == -signal.SIGTERM:
            # Python itself had not begun to listen: as a kill, and nothing is lost.
            early += 1
        else:
            assert (code, err) == (ASKED_TO_STOP, "")
            stopped_at(out, run)
            asked += 1
        process = begin("train", "--resume", run)
    done(process) if process.poll() is None else None
    assert asked >= 5 or steps(run)[-1] == LONG
    assert_same_end(run, straight(algorithm, LONG), LONG)


@pytest.mark.parametrize("moment", [pytest.param("compiling training", marks=pytest.mark.promises), "compiling evaluation"])
def test_asked_while_compiling_it_stops_at_once_and_loses_nothing(moment, straight, tmp_path, monkeypatch):
    run = tmp_path / "run"
    # Nothing of it may come out of a cache, so that compiling lasts.
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    process = train("linear", run)
    said = []
    for line in process.stdout:
        said.append(line)
        if line.startswith(moment):
            break
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=240)
    assert (process.returncode, err) == (ASKED_TO_STOP, ""), "".join(said) + out
    at = stopped_at(out, run)
    assert at == (0 if moment == "compiling training" else 500)
    monkeypatch.undo()
    # The epoch that was being evaluated has no row yet; the resume evaluates first.
    assert len(rows(run)) == (0 if at == 0 else 2 * 4)
    here("train", "--resume", run)
    assert_same_end(run, straight("linear"))


def test_asked_twice_it_ends_at_once(tmp_path, monkeypatch):
    run = tmp_path / "run"
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    process = train("linear", run)
    wait(process, lambda: seen(run, "checkpoint"))
    process.send_signal(signal.SIGSTOP)
    # Both wait for it when it goes on.
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    code, _, _ = finish(process)
    assert code in (128 + signal.SIGTERM, 128 + signal.SIGINT)
    assert steps(run)[0] == 0


def test_asked_again_it_does_not_wait_for_what_it_saves(monkeypatch):
    codes, saving, saved = queue.Queue(), threading.Event(), threading.Event()
    monkeypatch.setattr(os, "_exit", codes.put)

    def last_will():
        saving.set()
        assert saved.wait(60)
        raise Stopped("stopped here")

    with Stopping(lambda said: None) as stopping, stopping.meanwhile(last_will):
        signal.raise_signal(signal.SIGTERM)
        assert saving.wait(60)
        signal.raise_signal(signal.SIGINT)
        assert codes.get(timeout=60) == 128 + signal.SIGINT
        saved.set()
        assert codes.get(timeout=60) == 75


def test_while_the_main_thread_waits_another_one_answers():
    said, done_there = [], []

    def last_will():
        done_there.append(threading.current_thread().name)
        raise Stopped("stopped here")

    stopping = Stopping(said.append)
    with stopping.meanwhile(last_will):
        assert stopping._waiting.finish is last_will
        with stopping.meanwhile(print):
            assert stopping._waiting.finish is print
        assert stopping._waiting.finish is last_will, "what was true outside is true again"
    assert stopping._waiting is None
    stopping.asked = True
    with pytest.raises(Stopped, match="stopped here"), stopping.meanwhile(last_will):
        raise AssertionError("what was asked before is answered before")
    assert done_there == [threading.main_thread().name] and said == []


def test_one_of_several_hosts_has_patience(monkeypatch):
    codes, said = [], []
    monkeypatch.setattr(stopping_module.os, "_exit", codes.append)

    def last_will():
        raise Stopped("stopped here")

    stopping = Stopping(said.append)
    with stopping.meanwhile(last_will, patience=60.0):
        waiting = stopping._waiting
        stopping._hear(signal.SIGTERM)
        assert codes == []
    stopping._give_up(waiting)
    assert codes == [] and len(said) == 1, "it came out of its waiting, and the main thread sees to it"
    # What was asked before does not end it at once either: the others are to be told.
    with stopping.meanwhile(last_will, patience=60.0):
        assert codes == []
    with stopping.meanwhile(last_will, patience=0.01):
        end = time.monotonic() + 60
        while not codes and time.monotonic() < end:
            time.sleep(0.01)
    assert codes == [ASKED_TO_STOP] and said[1:] == ["stopped here"]


def test_without_a_folder_or_a_command_line_signals_are_left_alone():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with Stopping(print):
        assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] != before
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_all_saved_is_what_the_exit_code_says(straight):
    assert ASKED_TO_STOP == 75
    assert steps(straight("linear"))[-1] == STEPS
