"""`jaxmbrl export`: the file of a run, with the program that loads it, acts as the run's evaluation does."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import gymnasium
import jax
import numpy as np
import pytest
from begun import PETS, SMALL, Began, began
from small_method import registered
from small_policies import episode, made

import jaxmbrl
from jaxmbrl import cli, envs
from jaxmbrl.core.config import UserError
from jaxmbrl.exporting import exporter, loaders
from jaxmbrl.exporting.formats import FORMATS, Written
from jaxmbrl.exporting.policies import Exportable
from jaxmbrl.training import programs, restoring, runner
from jaxmbrl.training.session import Session

SEED, STEPS = 7, 8


@pytest.fixture(scope="module", autouse=True)
def small_method():
    with registered():
        yield


def begin(method, out, settings, **fields):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Began):
        patch.setattr(Session, "train", began)
        jaxmbrl.train(method, "pendulum", settings=settings, out=out, seeds=2, seed=SEED, **fields)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs that have just begun: their checkpoint of step 0 holds what they were born with."""
    folder = tmp_path_factory.mktemp("runs")
    begin("linear", folder / "linear", SMALL, action_repeat=4)
    return folder


@pytest.fixture(scope="module")
def planners(tmp_path_factory):
    """The same for planners."""
    folder = tmp_path_factory.mktemp("planners")
    begin("pets", folder / "pets", PETS)
    begin("pets", folder / "true", PETS | {"model": "true"})
    return folder


def played(run, seed):
    """(observations, actions) of the first steps of the evaluation's first episode of a seed."""
    program, states, _ = restoring.newest(run)
    state = jax.tree.map(lambda leaf: leaf[seed - SEED], states.algorithm)
    return jax.device_get(jax.jit(lambda state: episode(program.algorithm, program.task, state, 0, steps=STEPS))(state))


OUTSIDE = """
import sys
sys.modules.update(dict.fromkeys({hidden}))
{loader}
import numpy
observations = numpy.load({observations!r})
actions = []
for observation in observations:
    actions.append(act(observation))
numpy.save({actions!r}, actions)
"""


def acted(loader, hidden, observations, folder):
    """The actions of a program that loads a policy, in a process without the packages `hidden`."""
    seen, actions = str(folder / "observations.npy"), str(folder / "actions.npy")
    np.save(seen, observations)
    code = OUTSIDE.format(hidden=hidden, loader=loader, observations=seen, actions=actions)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return np.load(actions)


@pytest.mark.parametrize(
    ("to", "hidden"),
    [
        ("numpy", ("jaxmbrl", "jax", "onnxruntime")),
        ("onnx", ("jaxmbrl", "jax", "onnx")),
        pytest.param("stablehlo", ("jaxmbrl", "flax", "mujoco"), marks=pytest.mark.promises),
    ],
)
def test_the_printed_program_acts_as_the_policy_without_this_package(to, hidden, runs, tmp_path, capsys):
    if to == "onnx":
        pytest.importorskip("onnxruntime")
    out = tmp_path / "robot"
    assert cli.main(["export", str(runs / "linear"), "--to", to, "--seed", "8", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    loader = printed.partition("without jaxmbrl:\n\n")[2]
    assert len([line for line in loader.splitlines() if line]) <= 13 and f"robot{FORMATS[to].suffix}" in loader
    observations = np.random.default_rng(2).normal(size=(STEPS, 3)).astype(np.float32)
    gain = np.asarray(jaxmbrl.load(runs / "linear").state.learner.params["gain"], np.float64)[1]
    actions = np.tanh(observations @ gain)
    np.testing.assert_allclose(acted(loader, hidden, observations, tmp_path), actions, rtol=0, atol=1e-6)
    for part in (
        "linear on pendulum, seed 8, after 0 steps",
        "observation float32 [3]",
        "action float32 [1] in [-1, 1]",
        "actuator low [-2], high [2]",
        "low + (high - low) (action + 1) / 2",
        "Each action is applied 4 times",
        f"{(tmp_path / f'robot{FORMATS[to].suffix}').stat().st_size:,} bytes",
    ):
        assert part in printed


def test_a_format_that_the_policy_can_have_is_proposed(runs, tmp_path):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Began):
        patch.setattr(Session, "train", began)
        jaxmbrl.train("q-learning", "CliffWalking", out=tmp_path / "table")
    assert exporter.format_of(runner.trained(runs / "linear")) == "numpy"
    table = runner.trained(tmp_path / "table")
    assert exporter.format_of(table) == "stablehlo"
    with pytest.raises(UserError, match="uses random numbers to choose among equally good actions, which"):
        jaxmbrl.export(tmp_path / "table", "numpy")


@pytest.mark.promises
def test_a_planner_plans_as_in_the_evaluation(planners):
    """Its random numbers and its last plan are in the memory."""
    written = jaxmbrl.export(planners / "pets", "stablehlo")
    assert written.path == planners / "pets" / "policy.stablehlo" and written.about["random"]
    names = {}
    exec(written.loader, names)
    assert [entry["name"] for entry in written.about["memory"]] == ["memory.mean", "key", "step"]
    observations, actions = played(planners / "pets", SEED)
    memory = names["memory"]
    for step, (observation, due) in enumerate(zip(observations, actions, strict=True)):
        assert int(memory[2]) == step
        action, memory = names["act"](observation, memory)
        np.testing.assert_allclose(action, due, rtol=0, atol=1e-6)
    other = names["act"](observations[0], [names["memory"][0], np.array([1, 2], np.uint32), names["memory"][2]])[0]
    assert np.abs(other - actions[0]).max() > 1e-3, "another key gives another plan"
    for run, to, named in (
        (
            "pets",
            "numpy",
            "uses random numbers for its plans, which cannot be exported to numpy: export it with --to sta",
        ),
        ("true", "stablehlo", "plans in the true simulator"),
    ):
        with pytest.raises(UserError, match=named):
            jaxmbrl.export(planners / run, to)


@pytest.mark.parametrize(
    ("run", "to", "more", "named"),
    [
        ("linear", "tflite", {}, "unknown format 'tflite'"),
        ("linear", "onxn", {}, "did you mean 'onnx'?"),
        ("nowhere", "numpy", {}, "there is no folder"),
        ("linear", "numpy", {"seed": 9}, "has seeds 7 to 8, not 9"),
        ("linear", "numpy", {"seed": 6}, "has seeds 7 to 8, not 6"),
        ("linear", "numpy", {"out": ""}, "out must be the name of a new file, FILE.npz, got ''"),
        ("linear", "numpy", {"out": "/proc/x"}, "/proc/x.npz cannot be written"),
    ],
)
def test_what_cannot_be_exported_is_refused_in_one_line(run, to, more, named, runs):
    before = sorted(runs.rglob("*"))
    with pytest.raises(UserError) as refused:
        jaxmbrl.export(runs / run, to, **more)
    assert named in str(refused.value) and "\n" not in str(refused.value)
    assert sorted(runs.rglob("*")) == before


def test_a_run_is_exported_for_a_batch(runs, tmp_path, capsys):
    words = ["export", str(runs / "linear"), "--to", "numpy", "--batch", "5", "--out", str(tmp_path / "five")]
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    assert "observation float32 [5, 3]" in printed and "action float32 [5, 1] in [-1, 1]" in printed
    assert "The first axis of observation and action is a batch of 5" in printed
    names = {}
    exec(printed.partition("without jaxmbrl:\n\n")[2], names)
    observations = np.random.default_rng(2).normal(size=(5, 3)).astype(np.float32)
    gain = np.asarray(jaxmbrl.load(runs / "linear").state.learner.params["gain"], np.float64)[0]
    np.testing.assert_allclose(names["act"](observations), np.tanh(observations @ gain), rtol=0, atol=1e-6)
    assert names["about"]["batch"] == 5


def test_a_named_file_is_not_overwritten(runs, tmp_path):
    (tmp_path / "mine.npz").write_text("precious")
    with pytest.raises(UserError, match=r"mine\.npz exists; choose another file"):
        jaxmbrl.export(runs / "linear", "numpy", out=tmp_path / "mine")
    assert (tmp_path / "mine.npz").read_text() == "precious"


def test_a_frozen_seed_is_refused_and_a_healthy_one_named(runs, monkeypatch):
    """By default it is the first."""
    found = restoring.newest(runs / "linear")
    frozen = (*found[:2], found[2]._replace(extra=found[2].extra | {"frozen": [SEED]}))
    monkeypatch.setattr(restoring, "newest", lambda run: frozen)
    with pytest.raises(
        UserError, match=r"seed 7 of .* was frozen when a value was not finite; export another with --seed 8"
    ):
        jaxmbrl.export(runs / "linear", "numpy")


def test_a_missing_package_is_named_before_anything_is_read(runs, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.setattr(programs, "read", began)
    with pytest.raises(UserError, match=r"^onnx is missing: pip install 'jaxmbrl\[onnx\]'$"):
        jaxmbrl.export(runs / "linear", "onnx")


@pytest.mark.parametrize("difference", [0.01, np.nan])
def test_a_translation_that_acts_otherwise_is_not_written(difference, runs, monkeypatch, tmp_path):
    wrong = FORMATS["numpy"]._replace(write=lambda policy, about, space: Written(b"", about, difference))
    monkeypatch.setitem(exporter.FORMATS, "wrong", wrong)
    with pytest.raises(UserError, match="differ by"):
        jaxmbrl.export(runs / "linear", "wrong", out=tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_the_program_of_the_page_is_the_one_that_is_printed():
    page = (Path(__file__).parents[2] / "docs" / "own_simulator.md").read_text()
    about = {"observation": {"shape": [1], "dtype": "float32"}, "action": {"dtype": "float32"}, "memory": []}
    about["functions"] = ["add", "matmul", "maximum", "take", "tanh"]
    text = loaders.loader(loaders.NUMPY, Path("heater.npz"), about)
    assert textwrap.indent(text, "    ") in page


def test_xla_gets_its_threads_before_anything_is_computed(monkeypatch):
    monkeypatch.setattr(exporter.xla, "ensure_threads", lambda: began(None))
    with pytest.raises(Began):
        jaxmbrl.export("nowhere", "numpy")


class Room(gymnasium.Env):
    """A space of two by one, or an image, or a choice."""

    action_space = gymnasium.spaces.Box(np.array([[-1.0], [0.0]], "f"), np.array([[3.0], [0.5]], "f"))

    def __init__(self, observation_space, action_space=action_space):
        self.observation_space, self.action_space = observation_space, action_space


def described(task):
    """(range of the actuators, notes) of a task's policy without memory."""
    none = np.zeros(())
    policy = Exportable(lambda seen: (seen,), none, none, {}, False)
    return exporter.actuator_range(task), " ".join(exporter.notes(task, policy))


@pytest.mark.parametrize(
    ("name", "high"),
    [
        ("pendulum", [2.0]),
        ("cartpole-continuous", [10.0]),
        ("cartpole-swingup", [10.0]),
        ("mountain-car-continuous", [1.0]),
        ("reacher-2d", [2.0, 1.0]),
        pytest.param("InvertedPendulum-v5", [3.0], marks=pytest.mark.promises),
        pytest.param("Pusher-v5", [2.0] * 7, marks=pytest.mark.promises),
    ],
)
def test_the_range_of_the_actuators_is_told(name, high):
    task = envs.make(name, action_repeat=2)
    low = [-number for number in high]
    assert described(task)[0] == {"actuator_low": low, "actuator_high": high}
    assert "low + (high - low) (action + 1) / 2" in described(task)[1] and "applied 2 times" in described(task)[1]


@pytest.mark.parametrize(
    ("room", "range", "parts"),
    [
        (
            Room(gymnasium.spaces.Box(-1, 1, (2, 3))),
            {"actuator_low": [-1.0, 0.0], "actuator_high": [3.0, 0.5]},
            ["flattened in the order of numpy.ravel", "with actuator_low and actuator_high"],
        ),
        (
            Room(gymnasium.spaces.Box(0, 255, (8, 8), np.uint8), gymnasium.spaces.Discrete(3, start=-1)),
            {},
            ["has the shape [H, W, 1]", "a choice from 0 to 2, to which the environment adds the start of its space"],
        ),
        (Room(gymnasium.spaces.Discrete(4, start=2)), None, ["Observations are numbered from 0"]),
    ],
)
def test_what_the_bridge_changes_is_told(room, range, parts):
    found, notes = described(envs.from_gymnasium(lambda: room, "room"))
    assert range is None or found == range
    for part in parts:
        assert part in notes


def test_a_task_that_does_not_name_its_actuators_leaves_them_to_the_caller():
    found, notes = described(made("normalised")[1])
    assert found == {} and "map it onto the range of the actuators as the task does" in notes


def test_the_metadata_tells_where_the_policy_is_from(runs, tmp_path):
    written = jaxmbrl.export(runs / "linear", "numpy", out=tmp_path / "p")
    inside = json.loads(str(np.load(tmp_path / "p.npz")["about"]))
    assert inside == json.loads(json.dumps(written.about))
    assert inside.items() >= {"task": "pendulum", "algorithm": "linear", "seed": SEED, "env_steps": 0}.items()
    assert inside["action_repeat"] == 4 and inside["versions"]["jax"] == jax.__version__ and inside["format"] == "numpy"
    assert inside["observation"] == {"shape": [3], "dtype": "float32", "low": None, "high": None}
    assert written.size == (tmp_path / "p.npz").stat().st_size and written.difference < 1e-6
