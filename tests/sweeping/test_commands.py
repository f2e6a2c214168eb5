"""`jaxmbrl sweep` and `jaxmbrl status` as they are called."""

import contextlib
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import yaml

import jaxmbrl
from jaxmbrl import cli, envs
from jaxmbrl.core.config import UserError, to_dict
from jaxmbrl.sweeping import file as sweep_file
from jaxmbrl.sweeping import launching, on_ray, plan
from jaxmbrl.sweeping import runs as sweep_runs
from jaxmbrl.sweeping.folder import SweepFolder
from jaxmbrl.training import checkpoint
from jaxmbrl.training.run_folder import RunFolder
from jaxmbrl.training.session import Session
from jaxmbrl.training.stopping import Stopped

SAC = {"algorithm": "sac", "env": "pendulum", "steps": 2000}
GRID = {**SAC, "grid": {"settings.batch_size": [8, 16]}}
PARTLY = {**SAC, "grid": {"settings.batch_size": [8, 0, 16, -1]}}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A folder to be in, with files of sweeps; JAX's settings stay as they are."""
    monkeypatch.chdir(tmp_path)
    # Which takes a second each time; test_plan has what it refuses.
    monkeypatch.setattr(plan, "_problem", lambda config: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path.parent / "cache"))
    (tmp_path / "good.yaml").write_text(yaml.safe_dump(GRID))
    (tmp_path / "partly.yaml").write_text(yaml.safe_dump(PARTLY))
    (tmp_path / "nowhere-to-go.yaml").write_text(yaml.safe_dump({**GRID, "out": "good.yaml/x"}))
    (tmp_path / "of-a-run.yaml").write_text(yaml.safe_dump({**GRID, "out": "run"}))
    (tmp_path / "empty").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    names = ("jax_compilation_cache_dir", "jax_platforms")
    before = [getattr(jax.config, name) for name in names]
    yield tmp_path
    for name, value in zip(names, before, strict=True):
        jax.config.update(name, value)


def call(line):
    """Exit code, standard output and standard error of a command line."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(shlex.split(line))
    return code, out.getvalue(), err.getvalue()


def contents(folder):
    return {str(path): path.is_dir() or path.read_bytes() for path in sorted(folder.rglob("*"))}


REFUSED = {
    "sweep": "FILE is missing",
    "sweep nowhere.yaml": "nowhere.yaml cannot be read (No such file or directory)",
    "sweep empty": "empty cannot be read (Is a directory)",
    "sweep good.yaml more": "unexpected argument 'more'",
    "sweep good.yaml --dry": "unknown option '--dry'",
    "sweep good.yaml --jobs 0": "--jobs must be at least 1, got 0",
    "sweep good.yaml --jobs many": "--jobs must be a whole number, got 'many'",
    "sweep good.yaml --retries -1": "--retries must be at least 0, got -1",
    "sweep good.yaml --launcher slurm": "--launcher must be 'local' or 'ray', got 'slurm'",
    "sweep good.yaml --launcher": "--launcher needs a value",
    "sweep good.yaml --cpus-per-run 2": "--cpus-per-run needs --launcher ray",
    "sweep good.yaml --ray-address x": "--ray-address needs --launcher ray",
    "sweep good.yaml --launcher ray --gpus-per-run -1": "--gpus-per-run must be at least 0, got -1.0",
    "sweep good.yaml --launcher ray --cpus-per-run some": "--cpus-per-run must be a number, got 'some'",
    "sweep good.yaml --launcher ray --cpus-per-run nan": "--cpus-per-run must be at least 0, got nan",
    "sweep good.yaml --dry-run --only x": "--dry-run or --only, not both",
    "sweep good.yaml --only": "--only needs a value",
    "sweep good.yaml --only ''": "--only needs a value",
    "sweep good.yaml --only sac-pendulum-batch_size=9": "has no run 'sac-pendulum-batch_size=9'; did you mean",
    "sweep partly.yaml --only sac-pendulum-batch_size=0": "batch_size must be at least 1, got 0",
    "sweep good.yaml --out=": "--out needs a value",
    "sweep good.yaml --out run": "run is the folder of a run; choose another folder for the sweep",
    "sweep of-a-run.yaml": "run is the folder of a run",
    "sweep nowhere-to-go.yaml": "good.yaml/x cannot be created (Not a directory)",
    "sweep partly.yaml": "run sac-pendulum-batch_size=0: batch_size must be at least 1, got 0; "
    "1 more not valid: sac-pendulum-batch_size=-1 (--keep-going leaves out such runs)",
    "sweep partly.yaml --dry-run": "run sac-pendulum-batch_size=0: batch_size must be at least 1",
    "status": "DIR is missing",
    "status nowhere": "there is no folder nowhere",
    "status good.yaml": "there is no folder good.yaml",
    "status empty": "empty has no runs",
    "status empty --jsn": "unknown option '--jsn'",
}


@pytest.mark.parametrize("line", REFUSED)
def test_what_is_wrong_is_refused_in_one_line(line, place, monkeypatch):
    monkeypatch.setattr(sweep_runs, "work", None)
    monkeypatch.setattr(launching, "begin", None)
    before = contents(place)
    code, _, err = call(line)
    assert code == 2
    assert err.startswith("jaxmbrl: ") and err.count("\n") == 1
    assert REFUSED[line] in err
    assert contents(place) == before


def test_ray_that_is_missing_is_told(place, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    before = contents(place)
    code, _, err = call("sweep good.yaml --launcher ray")
    assert (code, err) == (2, "jaxmbrl: Ray is not installed: pip install 'jaxmbrl[ray]'\n")
    assert contents(place) == before


def test_a_dry_run_prints_a_command_for_each_run_and_writes_nothing(place, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/env"])
    (place / "two words.yaml").write_text(yaml.safe_dump(GRID))
    before = contents(place)
    code, out, err = call("sweep 'two words.yaml' --dry-run --out 'a b'")
    assert (code, err) == (0, "") and contents(place) == before
    lines = [shlex.split(line) for line in out.splitlines()]
    names = [f"sac-pendulum-batch_size={size}" for size in (8, 16)]
    tails = [["sweep", "two words.yaml", "--only", name, "--out", "a b"] for name in names]
    assert [line[-6:] for line in lines] == tails
    assert all(line[:-6] in (["jaxmbrl"], [sys.executable, "-m", "jaxmbrl"]) for line in lines)
    monkeypatch.setattr(sys, "argv", ["/opt/bin/jaxmbrl"])
    assert call("sweep good.yaml --dry-run")[1].splitlines()[0] == f"/opt/bin/jaxmbrl sweep good.yaml --only {names[0]}"


def test_a_dry_run_that_keeps_going_leaves_out_what_is_not_valid(place):
    before = contents(place)
    code, out, err = call("sweep partly.yaml --dry-run --keep-going --no-compile-cache")
    assert code == 1 and contents(place) == before
    words = "--no-compile-cache sweep partly.yaml --only"
    assert [line.partition(words)[2] for line in out.splitlines()] == [f" sac-pendulum-batch_size={n}" for n in (8, 16)]
    assert [line.partition(": run ")[2].partition(":")[0] for line in err.splitlines()] == [
        f"sac-pendulum-batch_size={n}" for n in (0, -1)
    ]


def stand_in(monkeypatch, code, finishes=True):
    """Processes that end at once, having finished their run or not; returns the words that they got."""
    words = []

    class Done:
        def poll(self):
            return code

    def begin(given, log):
        words.append(given)
        if finishes:
            run = log.parents[1] / log.stem
            (run / "checkpoints" / "00002000").mkdir(parents=True)
            asked = next(a for a in sweep_file.read(given[given.index("sweep") + 1]).runs if a.name == log.stem)
            config = plan.checked(asked, SweepFolder(log.parents[1])).config
            RunFolder(run).write_config(to_dict(config))
        return Done()

    monkeypatch.setattr(launching, "begin", begin)
    return words


def test_a_sweep_works_on_what_is_left(place, monkeypatch):
    words = stand_in(monkeypatch, 0)
    code, out, err = call("sweep good.yaml")
    assert (code, err) == (0, "")
    names = [f"sac-pendulum-batch_size={size}" for size in (8, 16)]
    own = [("--only", name, "--out", str(place / "runs" / "good")) for name in names]
    assert words == [("-m", "jaxmbrl", "sweep", str(place / "good.yaml"), *only) for only in own]
    assert "2 runs into runs/good: 2 to do" in out and "2 runs: 2 finished" in out
    assert sorted(os.listdir("runs/good")) == [".logs", ".sweep.json", *sorted(names)]
    code, out, err = call("sweep good.yaml")
    assert code == 0 and len(words) == 2 and "0 to do, 2 finished" in out
    (place / "good.yaml").write_text(yaml.safe_dump({**GRID, "grid": {"settings.batch_size": [8, 16, 32]}}))
    code, out, err = call("sweep good.yaml")
    assert code == 0 and len(words) == 3 and "1 to do, 2 finished" in out
    (place / "good.yaml").write_text(yaml.safe_dump({**GRID, "steps": 1000}))
    before = contents(place)
    code, out, err = call("sweep good.yaml")
    assert code == 2 and "was started with steps 2000 and the sweep asks for 1000" in err and contents(place) == before


def mine():
    raise AssertionError("it is not made here")


def test_the_users_own_program_is_what_a_sweep_starts_and_prints(place, monkeypatch):
    words = stand_in(monkeypatch, 0)
    (place / "own.yaml").write_text(yaml.safe_dump({**SAC, "env": "cart"}))
    (place / "my task.py").touch()
    monkeypatch.setitem(envs.TASKS, "cart", mine)
    for line in ("sweep own.yaml --dry-run", "sweep own.yaml"):
        monkeypatch.setattr(sys, "argv", ["my task.py", "--mass", "2", *line.split()])
        monkeypatch.setattr(sys, "orig_argv", ["python3", *sys.argv])
        code, out, err = call(line)
        assert (code, err) == (0, "")
        start = "python3 'my task.py' --mass 2 "
        assert (f"{start}sweep own.yaml --only sac-cart" in out) == ("--dry-run" in line)
        assert (f"{start}status runs/own shows" in out) == ("--dry-run" not in line)
    last = ("sweep", str(place / "own.yaml"), "--only", "sac-cart", "--out", str(place / "runs" / "own"))
    assert words == [(str(place / "my task.py"), "--mass", "2", *last)]


def test_a_task_that_only_this_process_knows_is_refused(place, monkeypatch):
    """As of a notebook: the processes of the runs would not know it."""
    (place / "own.yaml").write_text(yaml.safe_dump({**SAC, "env": "cart"}))
    monkeypatch.setitem(envs.TASKS, "cart", mine)
    before = contents(place)
    for line in ("sweep own.yaml", "sweep own.yaml --dry-run"):
        code, _, err = call(line)
        assert code == 2 and err.count("\n") == 1 and contents(place) == before
        assert err.startswith("jaxmbrl: own.yaml: run sac-cart: only this process knows 'cart', and each run is a process")


def test_a_sweep_leaves_a_run_alone_that_another_process_has(place, monkeypatch):
    words = stand_in(monkeypatch, 0)
    call("sweep good.yaml")
    run = RunFolder(place / "runs" / "good" / "sac-pendulum-batch_size=8")
    (run.checkpoints / "00002000").rename(run.checkpoints / "00000000")
    with run.lock():
        code, out, _ = call("sweep good.yaml")
    assert code == 1 and len(words) == 2 and "0 to do, 1 running elsewhere, 1 finished" in out


def test_valid_runs_are_worked_on_beside_those_that_are_not(place, monkeypatch):
    words = stand_in(monkeypatch, 0)
    code, out, err = call("sweep partly.yaml --keep-going")
    assert code == 1 and len(words) == 2 and err.count("\n") == 2
    assert "4 runs: 2 invalid, 2 finished" in out
    _, out, _ = call("status runs/partly --json")
    states = {run["name"].partition("=")[2]: (run["state"], run["error"]) for run in json.loads(out)}
    assert states == {
        "8": ("finished", None),
        "0": ("invalid", "batch_size must be at least 1, got 0"),
        "16": ("finished", None),
        "-1": ("invalid", "batch_size must be at least 1, got -1"),
    }
    _, out, _ = call("status runs/partly")
    assert "    batch_size must be at least 1, got 0\n" in out and out.endswith("4 runs: 2 finished, 2 invalid\n")


@pytest.mark.parametrize(("code", "expected"), [(1, 1), (2, 1), (75, 75), (-9, 1)])
def test_the_exit_code_tells_what_became_of_the_runs(code, expected, monkeypatch):
    words = stand_in(monkeypatch, code, finishes=False)
    ended, out, _ = call("sweep good.yaml --retries 2")
    assert ended == expected
    assert len(words) == (6 if code in (1, -9) else 2)
    assert ("to resume the runs that stopped or wait" in out) == (code == 75)


def test_a_run_alone_notes_how_it_ends(place, monkeypatch):
    def fails(run, progress, stopping):
        raise MemoryError("out of\nmemory")

    monkeypatch.setattr(sweep_runs, "work", fails)
    with pytest.raises(MemoryError):
        call("sweep good.yaml --only sac-pendulum-batch_size=8")
    _, out, _ = call("status runs/good --json")
    first, second = json.loads(out)
    assert (first["state"], first["error"]) == ("failed", "MemoryError: out of memory")
    assert second["state"] == "waiting"


def test_a_run_alone_whose_parts_do_not_fit_leaves_nothing(place, monkeypatch):
    def refuses(config):
        raise UserError("epoch_steps must be a multiple of 7")

    monkeypatch.setattr(plan.experts, "build", refuses)
    before = contents(place)
    code, _, err = call("sweep good.yaml --only sac-pendulum-batch_size=8")
    assert (code, err) == (2, "jaxmbrl: epoch_steps must be a multiple of 7\n") and contents(place) == before


TINY = {
    "algorithm": "td3",
    "env": "pendulum",
    "steps": 200,
    "checkpoint": {"every": 1},
    "settings": {
        "agent": {"hidden": [4]},
        "batch_size": 4,
        "replay_capacity": 200,
        "warmup_steps": 100,
        "epoch_steps": 100,
        "eval_every": 0,
    },
    "hyper": {"discount": [0.5, 0.9]},
}


@pytest.mark.slow
def test_a_sweep_that_is_stopped_and_killed_goes_on(place, monkeypatch):
    """Real processes: the parent is asked to stop, then its worker is killed, then all is finished."""
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    (place / "tiny.yaml").write_text(yaml.safe_dump({**TINY, "seeds": 2, "steps": 8000}))
    run = place / "runs" / "tiny" / "td3-pendulum"
    command = [sys.executable, "-m", "jaxmbrl", "sweep", "tiny.yaml"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    end = time.monotonic() + 900
    while not checkpoint.steps(run / "checkpoints")[1:]:
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 75 and "asked to stop: 1 running" in out and "1 stopped" in out
    assert not RunFolder(run).is_locked()
    (told,) = json.loads(call("status runs/tiny --json")[1])
    assert told["state"] == "stopped" and 0 < told["env_steps"] < 8000
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while not RunFolder(run).is_locked():
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    # The worker ends with its parent.
    while RunFolder(run).is_locked():
        assert time.monotonic() < end
        time.sleep(0.02)
    before = checkpoint.steps(run / "checkpoints")[-1]
    process = subprocess.run([*command, "--jobs", "3"], capture_output=True, text=True, timeout=900, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    array = f"{shlex.join(command)} --dry-run > all; ID=1; sed -n ${{ID}}p all | bash"
    assert subprocess.check_output(array, shell=True, text=True).endswith("is finished: nothing to do\n")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 320 and rows[-1]["env_steps"] == 8000 and before >= 100
    np.testing.assert_allclose(jaxmbrl.load(run).state.agent.discount, [0.5, 0.5, 0.9, 0.9], rtol=1e-6)


def test_values_are_traced_in_one_program_and_can_be_read_back(place, monkeypatch):
    begun = {}

    def begin(session, hyper):
        begun.update(hyper, seeds=session.config.seeds)
        raise Stopped

    monkeypatch.setattr(Session, "begin", begin)
    (place / "tiny.yaml").write_text(yaml.safe_dump({**TINY, "seeds": 2}))
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert cli.main(["sweep", "tiny.yaml", "--only", "td3-pendulum"]) == 75
    assert "seed 0 to 1: discount 0.5\nseed 2 to 3: discount 0.9\n" in out.getvalue()
    run = place / "runs" / "tiny" / "td3-pendulum"
    np.testing.assert_allclose(begun["discount"], [0.5, 0.5, 0.9, 0.9], rtol=1e-6)
    kept = json.loads((run / "environment.json").read_text())["hyper"]["discount"]
    assert kept == pytest.approx([0.5, 0.5, 0.9, 0.9])
    assert begun["seeds"] == yaml.safe_load((run / "config.yaml").read_text())["seeds"] == 4
    (told,) = json.loads(call("status runs/tiny --json")[1])
    assert (told["state"], told["error"]) == ("stopped", None)


@pytest.mark.parametrize("wanted", ["--cpus-per-run 9999", "--gpus-per-run 99"])
def test_a_run_that_is_too_large_for_this_machine_is_refused(wanted, place, monkeypatch):
    class Ray:
        def init(self, *words, **options):
            assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0" and options["include_dashboard"] is False

        def cluster_resources(self):
            return {"CPU": 2.0}

        def shutdown(self):
            self.ended = True

    ray = Ray()
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    monkeypatch.setitem(sys.modules, "ray", ray)
    before = contents(place)
    code, _, err = call(f"sweep good.yaml --launcher ray {wanted}")
    assert code == 2 and "and this machine has" in err and ray.ended
    assert contents(place) == before and "RAY_USAGE_STATS_ENABLED" not in os.environ


def test_a_task_waits_until_its_process_has_saved(tmp_path, monkeypatch):
    class Slow:
        returncode, polls, asked = None, 0, 0

        def poll(self):
            self.polls += 1
            self.returncode = 75 if self.polls > 5 else None
            return self.returncode

        def terminate(self):
            self.asked += 1

    slow, naps = Slow(), []

    def nap(seconds):
        naps.append(seconds)
        if len(naps) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(on_ray, "begin", lambda words, log: slow)
    monkeypatch.setattr(on_ray.time, "sleep", nap)
    assert on_ray.attend(("sweep",), str(tmp_path / "log"), str(tmp_path)) == 75
    assert slow.asked == 1


OWN_TASK = """
import jax.numpy as jnp
from jaxmbrl import cli, envs
from jaxmbrl.envs import State
from small_method import registered

class Cart:
    observation_size, action_size = 2, 1
    def reset(self, rng):
        zero = jnp.zeros(())
        return State(pipeline_state=jnp.ones(2), obs=jnp.ones(2), reward=zero, done=zero, metrics={}, info={})
    def step(self, state, action):
        x = state.pipeline_state + 0.1 * action[0]
        return state.replace(pipeline_state=x, obs=x, reward=-jnp.abs(x[0]), done=jnp.zeros(()))

envs.register("cart", lambda: envs.make_task("cart", Cart(), episode_length=20))
if __name__ == "__main__":
    with registered():
        raise SystemExit(cli.main())
"""
OWN_SWEEP = {
    "algorithm": "linear",
    "env": "cart",
    "steps": 100,
    "settings": {"warmup_steps": 20, "epoch_steps": 50, "replay_capacity": 100, "eval_every": 0},
    "out": "~/läufe",
}


@pytest.mark.promises
def test_a_sweep_trains_the_users_own_task_and_method(place, monkeypatch):
    """Real processes, of a script and of a module, in a folder with a space and an umlaut in its name."""
    folder = place / "my täsks"
    (folder / "package").mkdir(parents=True)
    (folder / "package" / "__init__.py").touch()
    (folder / "package" / "my task.py").write_text(OWN_TASK)
    (folder / "package" / "task.py").write_text(OWN_TASK)
    (folder / "study.yaml").write_text(yaml.safe_dump(OWN_SWEEP))
    here = os.path.dirname(__file__)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.path.dirname(here), os.environ.get("PYTHONPATH", "")]))
    for home, start in (("a", ["package/my task.py"]), ("b", ["-m", "package.task"])):
        monkeypatch.setenv("HOME", str(place / home))
        command = [sys.executable, *start, "sweep", "study.yaml", "--retries", "0"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
        assert (done.returncode, done.stderr) == (0, "") and "1 run: 1 finished" in done.stdout, done.stdout
        run = RunFolder.open(place / home / "läufe" / "linear-cart")
        assert run.read_metrics()[-1]["env_steps"] == 100
