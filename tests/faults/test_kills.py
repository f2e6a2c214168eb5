"""Runs that are killed, and go on bit for bit as if nothing had happened. Every run here is a process of its own."""

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from processes import (
    LONG,
    STEPS,
    TINY,
    assert_same,
    begin,
    done,
    finish,
    here,
    leaves,
    partial,
    rows,
    steps,
    train,
    wait,
)

import jaxmbrl
from jaxmbrl.core.config import UserError
from jaxmbrl.training.run_folder import RunFolder


def kill(process):
    process.send_signal(signal.SIGKILL)
    code, _, err = finish(process)
    assert code == -signal.SIGKILL and "Traceback" not in err


def killed_in_a_save(process, run):
    """Kill the process while it writes a checkpoint; whether it was one."""
    if not wait(process, lambda: partial(run)):
        return False
    kill(process)
    return partial(run)


def killed_in_an_epoch(process, run, delay, last):
    """Kill the process some time after a checkpoint; whether it was before the next one was begun."""
    before = steps(run)
    if not wait(process, lambda: steps(run) != before and not partial(run)):
        return False
    time.sleep(delay)
    if process.poll() is not None:
        return False
    kill(process)
    return not partial(run) and steps(run)[-1] < last


def kill_and_resume(algorithm, run, saves, epochs, chance, last=STEPS):
    """Run to the end, with this many kills of each kind on the way."""
    process = train(algorithm, run, last)
    wait(process, lambda: len(steps(run)) > 1)
    left = {"save": saves, "epoch": epochs}
    for _ in range(10 * (saves + epochs)):
        kind = max(left, key=lambda name: left[name])
        if kind == "save":
            hit = killed_in_a_save(process, run)
        else:
            hit = killed_in_an_epoch(process, run, chance.uniform(0.0, 0.3), last)
        left[kind] -= hit
        if process.poll() != -signal.SIGKILL:
            # It came to its end before a kill of this kind: once more from the start.
            done(process)
            shutil.rmtree(run)
            process = train(algorithm, run, last)
            wait(process, lambda: len(steps(run)) > 1)
            continue
        if not any(left.values()):
            return here("train", "--resume", run)
        process = begin("train", "--resume", run)
    raise AssertionError(f"not every kind of kill was seen: {left} are left")


@pytest.mark.parametrize(
    ("algorithm", "epochs"),
    [
        ("linear", 0),
        pytest.param("linear", 1, marks=pytest.mark.promises),
        *(pytest.param(name, 1, marks=pytest.mark.slow) for name in ("sac", "pets", "mbpo")),
    ],
)
def test_a_killed_run_goes_on_bit_for_bit(algorithm, epochs, straight, tmp_path):
    """Killed while it saves, and within an epoch."""
    out = kill_and_resume(algorithm, tmp_path / "run", saves=1, epochs=epochs, chance=random.Random(0))
    assert f"of {STEPS:,} steps" in out and "resuming at " in out
    assert_same(tmp_path / "run", straight(algorithm))
    kinds = [event["kind"] for event in RunFolder.open(tmp_path / "run").read_events()]
    assert kinds.count("resume") >= 1 + epochs and kinds.count("start") == 1 and kinds[-1] == "end"


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", TINY)
def test_a_run_killed_again_and_again_goes_on_bit_for_bit(algorithm, straight, tmp_path):
    kill_and_resume(algorithm, tmp_path / "run", saves=6, epochs=6, chance=random.Random(1), last=LONG)
    assert_same(tmp_path / "run", straight(algorithm, LONG), LONG)


@pytest.mark.slow
def test_a_run_killed_before_its_first_epoch_goes_on_and_alone(straight, tmp_path):
    run = tmp_path / "run"
    process = train("linear", run)
    assert wait(process, lambda: steps(run) == [0])
    kill(process)
    assert steps(run) == [0]
    process = begin("train", "--resume", run)
    assert wait(process, lambda: len(steps(run)) > 1)
    os.kill(process.pid, signal.SIGSTOP)
    try:
        code, _, err = finish(begin("train", "--resume", run))
    finally:
        os.kill(process.pid, signal.SIGCONT)
    assert code == 2
    assert err == f"jaxmbrl: another process is writing to {run}; wait for it or stop it\n"
    assert f"resuming at 0 of {STEPS:,} steps" in done(process)
    assert_same(run, straight("linear"))


@pytest.mark.slow
def test_more_steps_are_as_a_longer_run_and_no_steps_are_nothing(straight, tmp_path):
    run = tmp_path / "run"
    done(train("linear", run, steps=STEPS // 2))
    assert steps(run)[-1] == -(-(STEPS // 2) // 100) * 100 < STEPS
    here("train", "--resume", run, "--steps", STEPS)
    assert_same(run, straight("linear"))

    before = untouched(run)
    (run / "curve.png").unlink()
    out = here("train", "--resume", run)
    assert f"the run is finished, at {STEPS:,} of {STEPS:,} steps: nothing to do" in out
    assert untouched(run) == before
    assert (run / "curve.png").is_file(), "a kill may have come before the picture"
    with pytest.raises(UserError, match=f"the run in {run} is already at {STEPS} steps; steps must not be lower, got 200"):
        jaxmbrl.resume(run, steps=200)
    assert untouched(run) == before


def untouched(run):
    names = ("config.yaml", "metrics.jsonl", "environment.json")
    files = [*(Path(run) / name for name in names), *Path(run).glob("checkpoints/*/manifest.json")]
    return {file: file.read_bytes() for file in files}


@pytest.mark.slow
def test_a_damaged_checkpoint_costs_only_its_epochs(straight, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(straight("linear"), run)
    newest = run / "checkpoints" / f"{STEPS:08}" / "manifest.json"
    newest.write_bytes(newest.read_bytes()[:-100])
    out = here("train", "--resume", run)
    assert "warning: checkpoint" in out and f"set aside as damaged-{STEPS:08}" in out
    assert rows(run) == rows(straight("linear"))
    assert leaves(run, STEPS) == leaves(straight("linear"), STEPS)
    warnings = [event["text"] for event in RunFolder.open(run).read_events() if event["kind"] == "warning"]
    assert len(warnings) == 1 and "is damaged" in warnings[0]
