"""Runs as processes of their own, tiny ones, and what is compared of two runs."""

import json
import subprocess
import sys
import time
from pathlib import Path

import small_method
from command_line import call, untimed

from jaxmbrl.training import checkpoint
from jaxmbrl.training.run_folder import RunFolder

TINY = {
    "linear": "--env pendulum --updates-per-step 20 --batch-size 64 --replay-capacity 20000 --eval-episodes 1",
    "sac": "--env pendulum --agent.hidden 16 16 --batch-size 16 --updates-per-step 30 --replay-capacity 1000 "
    "--warmup-steps 100 --epoch-steps 100 --eval-every 5 --eval-episodes 1",
    "pets": "--env cartpole-continuous --ensemble.members 2 --ensemble.elites 2 --ensemble.hidden 16 "
    "--ensemble.max-epochs 2 --planner.cem.horizon 5 --planner.cem.population 100 --planner.cem.elites 4 "
    "--planner.cem.iterations 1 --particles 2 --refit-every 50 --warmup-steps 100 --replay-capacity 1000 --epoch-steps 100",
    "mbpo": "--env pendulum --agent.hidden 16 16 --batch-size 16 --updates-per-step 10 --ensemble.members 3 "
    "--ensemble.elites 2 --ensemble.hidden 16 --ensemble.max-epochs 3 --rollout-length.last 3 --rollout-length.begins 0 "
    "--rollout-length.ends 600 --rollout-rows 200 --retain-steps 200 --refit-every 50 --warmup-steps 100 "
    "--replay-capacity 1000 --epoch-steps 100 --eval-every 5 --eval-episodes 1",
}
STEPS = 800
LONG = 1500
"""Steps of a run that is killed many times."""
PATIENCE = 240.0
"""Seconds that a process may take."""


def begin(*words):
    """A process at work on a command line of `jaxmbrl`, which knows the small method too."""
    command = [sys.executable, small_method.__file__, *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    """Exit code, standard output and standard error."""
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


def words_of(algorithm, out, steps=STEPS):
    """The command line of a run."""
    words = ["--steps", steps, "--seeds", 2, "--checkpoint.every", 1, "--out", out]
    return ["train", algorithm, *TINY[algorithm].split(), *words]


def train(algorithm, out, steps=STEPS):
    return begin(*words_of(algorithm, out, steps))


def here(*words):
    """The output of a command line that is run to its end in this process, which takes less time than one of its own."""
    code, out, err = call(*words)
    assert (code, err) == (0, "")
    return out


def done(process):
    code, out, err = finish(process)
    assert (code, err) == (0, "")
    return out


def rows(run):
    return untimed(RunFolder.open(run).read_metrics())


def steps(run):
    return checkpoint.steps(Path(run) / "checkpoints")


def leaves(run, step):
    """What a checkpoint's manifest says of every leaf, its SHA-256 above all."""
    return json.loads((Path(run) / "checkpoints" / f"{step:08}" / "manifest.json").read_text())["manifest"]["leaves"]


def assert_same(run, other, last=STEPS):
    """Whether two runs are the same to the bit, in every checkpoint that is kept."""
    assert steps(run) == steps(other)
    for step in steps(run):
        assert leaves(run, step) == leaves(other, step)
    assert_same_end(run, other, last)


def assert_same_end(run, other, last=STEPS):
    """Whether two runs came to the same end, to the bit, and tell the same."""
    assert rows(run) == rows(other)
    assert steps(run)[-1] == steps(other)[-1] == last
    assert leaves(run, last) == leaves(other, last)
    # The digests are those of the bytes: what is in the manifest restores.
    digests = {entry["sha256"] for entry in leaves(run, last)}
    assert len(digests) > 10, "leaves differ from each other"
    config = (Path(run) / "config.yaml").read_text()
    assert config == (Path(other) / "config.yaml").read_text()


def wait(process, condition):
    """Poll until `condition()`; whether the process is still running then."""
    limit = time.monotonic() + PATIENCE
    while not condition():
        if process.poll() is not None:
            return False
        assert time.monotonic() < limit
        time.sleep(0.001)
    return process.poll() is None


def partial(run):
    return any((Path(run) / "checkpoints").glob(".partial-0*"))
