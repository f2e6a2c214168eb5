"""Replays of the call of `learn` in which a seed met a value that is not finite."""

import contextlib
import io
import shutil
import sys
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest

import jaxmbrl
from jaxmbrl import algorithms, cli
from jaxmbrl.algorithms import Method
from jaxmbrl.algorithms.presets import Preset
from jaxmbrl.core.config import Traced, UserError
from jaxmbrl.core.types import Algorithm, Average, Policy
from jaxmbrl.debug import replaying
from jaxmbrl.debug.origins import ARGUMENT, Origin
from jaxmbrl.nn import optimizer
from jaxmbrl.training.run_folder import RunFolder

EPOCH, STEPS = 10, 40
FIRST = 3
"""The first seed of the runs; the second is the one that breaks."""


@dataclass(frozen=True)
class Config:
    """Of a toy that walks a weight down to where its loss has no value."""

    num_envs: int = 1
    warmup_steps: int = 0
    epoch_steps: int = EPOCH
    eval_every: int = 0
    learning_rate: Annotated[float, Traced] = 1e-3
    told: bool = True
    """Whether the loss is a metric."""


class State(NamedTuple):
    weight: optimizer.Trainable
    unused: Any


def loss_of(weight):
    return jnp.sum(jnp.sqrt(weight))


def make(config, task):
    def init(key, hyper, data):
        rate = hyper.get("learning_rate", config.learning_rate)
        return State(optimizer.init(jnp.ones(2), rate), jnp.full(3, -jnp.inf))

    def update(state, _):
        loss, gradient = jax.value_and_grad(loss_of)(state.weight.params)
        weight, _ = optimizer.step(state.weight, gradient)
        return state._replace(weight=weight, unused=jnp.maximum(state.unused, -jnp.inf)), loss

    def learn(clock, state, transitions):
        state, losses = jax.lax.scan(update, state, None, length=4)
        return state, {"toy/loss": Average.of(jnp.mean(losses) if config.told else jnp.zeros(()))}

    def act(memory, observation, key):
        return jnp.zeros(1), (), memory

    return Algorithm(init, lambda state, clock, explore: Policy(lambda key: (), act), learn, period=2)


@pytest.fixture(scope="module", autouse=True)
def toy():
    with pytest.MonkeyPatch.context() as patch:
        presets = {"tiny": Preset(Config(), "none", STEPS)}
        patch.setitem(algorithms.METHODS, "toy", Method(make, Config, presets, summary="a toy"))
        yield


def train(out, rate=0.02, **fields):
    given = {"steps": STEPS, "checkpoint": {"every": 1}, **fields}
    return jaxmbrl.train("toy", "pendulum", seeds=2, seed=FIRST, out=out, hyper={"learning_rate": [1e-3, rate]}, **given)


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """A run whose second seed breaks: 4 updates for 2 steps, each a little over 0.02 down from 1: about the 48th fails."""
    run = tmp_path_factory.mktemp("runs") / "broken"
    train(run)
    return run


def contents(folder):
    return {str(path): path.is_dir() or path.read_bytes() for path in sorted(folder.rglob("*"))}


def debug(*words):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(["--no-compile-cache", "debug", *map(str, words)])
    return code, out.getvalue(), err.getvalue()


@pytest.fixture
def reports(monkeypatch):
    """What `replaying.debug` returned to the command."""
    found, real = [], replaying.debug

    def recorded(*given):
        found.append(real(*given))
        return found[-1]

    monkeypatch.setattr(replaying, "debug", recorded)
    return found


def test_the_operation_the_seed_and_the_step_are_named(broken):
    before = contents(broken)
    report = replaying.debug(broken)
    assert report.fault == replaying.Fault(FIRST + 1, "toy/loss", 24, 3)
    assert (report.checkpoint, report.others, report.instead) == (20, (), "")
    origin = report.origin
    assert (origin.operation, origin.kind) == ("sqrt", "nan") and origin.element[0] == 1
    assert "test_replaying.py" in origin.where[0] and origin.where[0].endswith("in loss_of")
    assert "scan step" in origin.path and origin.operands[0].at < 0 < origin.operands[0].high
    assert contents(broken) == before


def test_the_command_line(broken, tmp_path):
    code, out, err = debug(broken, "--seed", FIRST + 1)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == f"seed {FIRST + 1}, epoch 3, step 24: 'toy/loss' was not finite"
    assert lines[1] == "replayed from the checkpoint at step 20"
    assert lines[2].startswith("'sqrt' returned nan, element [1, ") and lines[2].endswith("of float32[2, 2]")
    assert any(line.startswith("  at    ") and "test_replaying.py:" in line for line in lines)
    assert any(line.startswith("  from  float32[2, 2] between -0.0") and line.endswith(" there") for line in lines)
    assert "what to try next:" in lines

    code, out, err = debug(broken, "--seed", FIRST)
    assert (code, err) == (0, "") and out.startswith(f"seed {FIRST} has not met a value that is not finite")
    code, out, err = debug(broken, "--seed", 9)
    assert (code, err) == (2, f"jaxmbrl: the run in {broken} has seeds 3 to 4, not 9\n")

    old = tmp_path / "old"
    shutil.copytree(broken, old)
    for step in ("00000020", "00000010"):
        shutil.rmtree(old / "checkpoints" / step, ignore_errors=True)
    code, out, err = debug(old)
    assert code == 2 and err.count("\n") == 1
    assert "has no checkpoint from before step 24, where the fault of seed 4 is; train again" in err and "--steps 30" in err


def test_a_closed_optimiser_is_followed_to_its_gradient(tmp_path):
    train(tmp_path / "run", settings={"told": False})
    report = replaying.debug(tmp_path / "run")
    assert report.fault.what == "gradient of .weight" or report.fault.what == "gradient of weight"
    assert (report.origin.operation, report.origin.kind, report.origin.element[0]) == ("sqrt", "nan", 1)


def test_a_run_without_a_fault(tmp_path, reports, monkeypatch):
    """Nor are its loggers needed, of which one cannot be imported here."""
    train(tmp_path / "run", rate=1e-3, steps=EPOCH)
    folder = RunFolder.open(tmp_path / "run")
    folder.write_config(folder.read_config() | {"log": ["wandb"]})
    monkeypatch.setitem(sys.modules, "wandb", None)
    code, out, err = debug(tmp_path / "run")
    assert reports == [None]
    assert (code, err) == (0, "") and out.startswith("no seed met a value that is not finite")


def test_a_replay_that_goes_another_way_says_so(broken, monkeypatch, reports):
    """As if the machine computed otherwise: the root is taken of what is never below 0."""
    monkeypatch.setitem(globals(), "loss_of", lambda weight: jnp.sum(jnp.sqrt(1 + weight**2)))
    code, out, err = debug(broken)
    (report,) = reports
    assert report.origin is None and report.instead == "everything was finite"
    assert (code, err) == (1, "") and "the replay did not reproduce the fault: everything was finite" in out


def test_what_was_not_finite_before_the_call_is_named():
    fault = replaying.Fault(0, "toy/loss", 2, 1)
    origin = Origin(ARGUMENT, "nan", "float32[2]", (1,), (), (), "1.algorithm.weight.learning_rate")
    lines = replaying.describe(replaying.Report(fault, (), 0, origin, ""))
    assert (
        lines[2]
        == "nan was present before the call: element [1] of float32[2] in the run's state, algorithm.weight.learning_rate"
    )


def test_a_task_outside_of_the_compiled_program_cannot_be_replayed(broken, monkeypatch):
    built = replaying.experts.build

    def hosted(config):
        program = built(config)
        return program._replace(loop=program.loop._replace(check=None))

    monkeypatch.setattr(replaying.experts, "build", hosted)
    with pytest.raises(UserError, match="a replay needs a task inside the compiled program"):
        replaying.debug(broken)
