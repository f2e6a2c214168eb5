"""A sweep on real Ray, with workers that die: whatever is killed, every valid run ends complete."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from jaxmbrl.training import checkpoint

pytest.importorskip("ray")

SWEEP = {
    "algorithm": "sac",
    "env": "pendulum",
    "steps": 600,
    "seeds": 2,
    "checkpoint": {"every": 1},
    "settings": {
        "agent.hidden": [16, 16],
        "batch_size": 16,
        "updates_per_step": 30,
        "replay_capacity": 1000,
        "warmup_steps": 100,
        "epoch_steps": 100,
        "eval_every": 3,
    },
    "eval_episodes": 1,
    "grid": {"seed": [0, 2, 4, 6, 8]},
    "runs": [{"settings.batch_size": 0}],
}
NAMES = [f"sac-pendulum-seed={seed}" for seed in SWEEP["grid"]["seed"]]
INVALID = "sac-pendulum-batch_size=0"
PATIENCE = 900.0


def jaxmbrl(*words, **more):
    command = [sys.executable, "-m", "jaxmbrl", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


def trainer_of(name):
    """The id of the process that trains the run called `name`, None where there is none yet."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if b"--with" in words and name.encode() in words:
                return int(folder.name)
    return None


def parent_of(process):
    return int((Path("/proc") / str(process) / "stat").read_text().rpartition(")")[2].split()[1])


def wait_for(condition, sweep):
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert sweep.poll() is None, sweep.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)
    return found


def at_work(out, name):
    """The process that trains the run, once it is between its first epoch and its last."""
    steps = checkpoint.steps(out / name / "checkpoints")
    return trainer_of(name) if steps and 100 <= steps[-1] <= 400 else None


@pytest.mark.slow
def test_a_sweep_survives_its_workers(tmp_path):
    (tmp_path / "six.yaml").write_text(yaml.safe_dump(SWEEP))
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    environment = {**os.environ, **cache}
    environment.pop("RAY_ADDRESS", None)
    out = tmp_path / "runs" / "six"
    sweep = jaxmbrl("sweep", "six.yaml", "--launcher", "ray", "--keep-going", "--jobs", 2, cwd=tmp_path, env=environment)
    # The process that trains, and the worker of Ray that waits for another one.
    first = wait_for(lambda: at_work(out, NAMES[0]), sweep)
    os.kill(first, signal.SIGKILL)
    third = wait_for(lambda: at_work(out, NAMES[2]), sweep)
    os.kill(parent_of(third), signal.SIGKILL)
    said, complained = sweep.communicate(timeout=PATIENCE)
    assert sweep.returncode == 1, said + complained
    assert complained.count("\n") == 1 and f"run {INVALID}: batch_size must be at least 1, got 0" in complained
    assert f"died      {NAMES[0]}" in said and "killed by SIGKILL" in said
    assert f"died      {NAMES[2]}" in said and "WorkerCrashedError" in said
    assert said.splitlines()[-2].startswith("6 runs: 1 invalid, 5 finished")
    for name in NAMES:
        rows = [json.loads(line) for line in (out / name / "metrics.jsonl").read_text().splitlines()]
        seed = int(name.partition("=")[2])
        assert [(row["env_steps"], row["seed"]) for row in rows] == [
            (steps, seed + k) for steps in range(100, 700, 100) for k in range(2)
        ]
    begun = [json.loads(line)["kind"] for line in (out / NAMES[0] / "events.jsonl").read_text().splitlines()]
    assert begun.count("resume") == 1 and begun.count("start") == 1
    assert not (out / INVALID).exists()
    told = jaxmbrl("status", out, "--json", cwd=tmp_path, env=environment)
    found = {run["name"]: run for run in json.loads(told.communicate(timeout=PATIENCE)[0])}
    assert [found[name]["state"] for name in [*NAMES, INVALID]] == ["finished"] * 5 + ["invalid"]
    assert "batch_size must be at least 1" in found[INVALID]["error"]
    again = jaxmbrl("sweep", "six.yaml", "--launcher", "ray", "--keep-going", cwd=tmp_path, env=environment)
    said, _ = again.communicate(timeout=PATIENCE)
    assert again.returncode == 1 and "6 runs into runs/six: 0 to do, 1 invalid, 5 finished" in said


@pytest.mark.slow
def test_a_sweep_asked_to_stop_saves_its_runs_and_goes_on(tmp_path):
    two = {**SWEEP, "steps": 3000, "grid": {"seed": [0, 2]}, "runs": []}
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(two))
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    environment.pop("RAY_ADDRESS", None)
    out = tmp_path / "runs" / "two"
    words = ("sweep", "two.yaml", "--launcher", "ray", "--jobs", 1)
    sweep = jaxmbrl(*words, cwd=tmp_path, env=environment)
    wait_for(lambda: at_work(out, NAMES[0]), sweep)
    sweep.send_signal(signal.SIGTERM)
    said, complained = sweep.communicate(timeout=PATIENCE)
    assert (sweep.returncode, complained) == (75, ""), said + complained
    assert "asked to stop: 1 running, which save and end" in said and f"stopped   {NAMES[0]}" in said
    stopped_at = checkpoint.steps(out / NAMES[0] / "checkpoints")[-1]
    assert 100 <= stopped_at < two["steps"] and not (out / NAMES[1]).exists()
    assert trainer_of(NAMES[0]) is None
    again = jaxmbrl(*words, cwd=tmp_path, env=environment)
    said, complained = again.communicate(timeout=PATIENCE)
    assert (again.returncode, complained) == (0, ""), said + complained
    assert f"starts    {NAMES[0]} at {stopped_at:,} steps" in said
    for seed, name in zip(two["grid"]["seed"], NAMES[:2], strict=False):
        rows = [json.loads(line) for line in (out / name / "metrics.jsonl").read_text().splitlines()]
        assert [(row["env_steps"], row["seed"]) for row in rows] == [
            (steps, seed + k) for steps in range(100, 3100, 100) for k in range(2)
        ]
