"""Learning from a file of transitions: its rows and nothing else, in their order; mistakes are told before compiling."""

import functools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from begun import Began, began
from command_line import call, options, untimed

import jaxmbrl
from jaxmbrl import algorithms, envs
from jaxmbrl.core.config import UserError
from jaxmbrl.core.types import Clock, Transition
from jaxmbrl.data import dataset
from jaxmbrl.training import loop, programs
from jaxmbrl.training.run_folder import RunFolder
from jaxmbrl.training.session import Session

ROWS = 130
STEPS = 120
SETTINGS = {
    "linear": {
        "batch_size": 8,
        "replay_capacity": 1000,
        "warmup_steps": 50,
        "epoch_steps": 40,
        "eval_every": 0,
    },
    "pets": {
        "ensemble.members": 2,
        "ensemble.elites": 2,
        "ensemble.hidden": (8,),
        "ensemble.max_epochs": 2,
        "planner.cem.horizon": 3,
        "planner.cem.population": 10,
        "planner.cem.elites": 4,
        "planner.cem.iterations": 1,
        "particles": 2,
        "refit_every": 20,
        "warmup_steps": 60,
        "replay_capacity": 1000,
        "epoch_steps": 40,
        "eval_every": 0,
    },
}
METHODS = ["linear", pytest.param("pets", marks=pytest.mark.promises)]
NUMBERS = ("observation", "action", "reward", "next_observation")


def same(a, b):
    """Whether two trees are equal to the bit."""

    def data(x):
        x = jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        return (x.shape, np.asarray(x).dtype, np.asarray(x).tobytes())

    return [data(x) for x in jax.tree.leaves(a)] == [data(x) for x in jax.tree.leaves(b)]


def made_up(rows=ROWS, observation=3, seed=0):
    """Rows that no pendulum could yield."""
    rng = np.random.default_rng(seed)
    ended = rng.integers(0, 30, rows)
    return Transition(
        observation=rng.normal(size=(rows, observation)).astype(np.float32),
        action=rng.uniform(-1, 1, (rows, 1)).astype(np.float32),
        reward=rng.normal(size=rows).astype(np.float32),
        next_observation=rng.normal(size=(rows, observation)).astype(np.float32),
        terminated=ended == 0,
        truncated=ended == 1,
    )


def write(path, rows, **more):
    np.savez(path, **{name: getattr(rows, name) for name in (*NUMBERS, "terminated", "truncated")}, **more)
    return path


pytestmark = pytest.mark.usefixtures("compile_cache")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "rows.npz", made_up(), env="pendulum")


@pytest.fixture(scope="module")
def runs(file, tmp_path_factory):
    """Runs by the command line, two seeds from 5 on, by method: the folder, and what the console said."""

    @functools.cache
    def run(name):
        out = tmp_path_factory.mktemp("runs") / name
        words = [*options(SETTINGS[name]), "--seeds", 2, "--seed", 5, "--checkpoint.every", 1, "--out", out]
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(file.parent)
            code, said, err = call("train", name, "--env", "pendulum", "--data", "rows.npz", *words)
        assert (code, err) == (0, "")
        return out, said

    return run


@pytest.mark.parametrize("name", METHODS)
def test_the_buffer_holds_the_files_rows_in_order(name, runs):
    """And so nothing was collected: no pendulum yields these rows."""
    replay = jaxmbrl.load(runs(name)[0]).state.replay
    assert replay.size.tolist() == [STEPS, STEPS]
    rows = made_up()
    for field in Transition._fields[:-1]:
        held = np.asarray(getattr(replay.data, field))
        for seed in range(2):
            np.testing.assert_array_equal(held[seed, :STEPS], getattr(rows, field)[:STEPS], strict=True)
        assert not held[:, STEPS:].any()


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_run_is_learn_called_by_hand(name, runs):
    """To the bit: the loop gives `learn` the same arrays with the same seeds side by side, which is all that it depends on.

    The extras of a policy that did not act are zeros.
    """
    task = envs.make("pendulum")
    config = programs.configure(name, "pendulum", settings=SETTINGS[name]).settings
    algorithm = algorithms.get(name).make(config, task)
    rows = made_up()
    keys = [jax.random.fold_in(jax.random.key(seed), loop.LEARNER) for seed in (5, 6)]
    state = jax.jit(jax.vmap(lambda key: algorithm.init(key, {})))(jnp.stack(keys))
    learn = jax.jit(jax.vmap(algorithm.learn, in_axes=(None, 0, 0)))
    for start in range(0, STEPS, algorithm.period):
        part = jax.tree.map(lambda x, at=start: jnp.asarray(x[at : at + algorithm.period])[:, None], rows)
        nothing = jnp.zeros((algorithm.period, 1), jnp.int32)
        part = part._replace(extras={"nonfinite": nothing} if name == "pets" else {})
        both = jax.tree.map(lambda x: jnp.stack([x, x]), part)
        state, _ = learn(Clock(jnp.asarray(start + algorithm.period, jnp.int32)), state, both)
    assert same(state, jaxmbrl.load(runs(name)[0]).state)


@pytest.mark.parametrize("name", METHODS)
def test_metrics_tell_of_the_data_and_not_of_training(name, runs):
    rows = RunFolder.open(runs(name)[0]).read_metrics()
    assert [(row["epoch"], row["env_steps"], row["seed"]) for row in rows] == [
        (epoch, 40 * epoch, seed) for epoch in (1, 2, 3) for seed in (5, 6)
    ]
    data = made_up()
    returns, running, lengths = [], 0.0, 0
    for t in range(STEPS):
        running, lengths = running + float(data.reward[t]), lengths + 1
        if data.terminated[t] or data.truncated[t]:
            returns.append((t // 40, running, lengths))
            running, lengths = 0.0, 0
    for row in rows:
        assert not [metric for metric in row if metric.startswith("train/")]
        here = [(total, length) for epoch, total, length in returns if epoch == row["epoch"] - 1]
        assert len(here) >= 1
        assert row["data/return"] == pytest.approx(np.mean([total for total, _ in here]), rel=1e-5)
        assert row["data/episode_length"] == pytest.approx(np.mean([length for _, length in here]), rel=1e-6)
        learns = "agent/critic_loss" if name == "linear" else "model/fit_steps"
        assert (learns in row) == (row["epoch"] > 1)


@pytest.mark.parametrize("name", METHODS)
def test_what_the_console_and_the_folder_say(name, runs, file):
    run, said = runs(name)
    assert f"{ROWS} steps are rounded down to {STEPS}, whole epochs of 40" in said
    assert f"on pendulum: {STEPS} transitions of {file}, 2 seeds, into {run}" in " ".join(said.split())
    assert "environment steps" not in said and "train --resume" not in said
    assert f"jaxmbrl evaluate {run}" in said
    other = "pets" if name != "pets" else "sac"
    assert f"train {other} --env pendulum --data {file}" in said
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["data"], config["data_digest"], config["steps"]) == (str(file), dataset.load(file).digest, ROWS)


def test_the_interface_and_the_command_line_agree(runs, file):
    """And the steps are all rows unless told otherwise."""
    result = jaxmbrl.train("linear", "pendulum", settings=SETTINGS["linear"], data=file, seeds=2, seed=5)
    assert result.config.steps == ROWS
    assert untimed(result.rows) == untimed(RunFolder.open(runs("linear")[0]).read_metrics())
    assert same(result.state, jaxmbrl.load(runs("linear")[0]).state)


@pytest.mark.parametrize("name", METHODS)
def test_a_resumed_run_goes_on_bit_for_bit(name, runs, tmp_path, monkeypatch):
    """From another folder than it was started in."""
    shutil.copytree(runs(name)[0], tmp_path / "run")
    folder = RunFolder.open(tmp_path / "run")
    for later in sorted(folder.checkpoints.iterdir(), key=lambda path: int(path.name))[-2:]:
        assert int(later.name) in (80, 120)
        shutil.rmtree(later)
    monkeypatch.chdir(tmp_path)
    code, said, err = call("train", "--resume", "run")
    assert (code, err) == (0, "") and f"resuming at 40 of {STEPS} steps" in said
    assert untimed(folder.read_metrics()) == untimed(RunFolder.open(runs(name)[0]).read_metrics())

    def leaves(run):
        (last,) = (path for path in (run / "checkpoints").iterdir() if int(path.name) == STEPS)
        manifest = json.loads((last / "manifest.json").read_text())["manifest"]
        return {leaf["path"]: leaf["sha256"] for leaf in manifest["leaves"]}

    assert leaves(tmp_path / "run") == leaves(runs(name)[0])


def test_no_further_than_the_rows(runs, tmp_path):
    shutil.copytree(runs("linear")[0], tmp_path / "run")
    code, said, err = call("train", "--resume", tmp_path / "run", "--steps", ROWS + 1)
    assert (code, said) == (2, "") and f"the data's {ROWS} rows, got {ROWS + 1}" in err and err.count("\n") == 1
    code, said, err = call("train", "--resume", tmp_path / "run")
    assert (code, err) == (0, "") and f"the run is finished, at {STEPS} of {STEPS} steps: nothing to do" in said


def test_a_file_that_is_another_is_not_learned_from(runs, file, tmp_path):
    """Not by a resume, nor by a config; what was learned is there without the file."""
    shutil.copytree(runs("linear")[0], tmp_path / "run")
    folder = RunFolder.open(tmp_path / "run")
    config = folder.read_config() | {"data": str(tmp_path / "rows.npz")}
    folder.write_config(config)
    config_file = tmp_path / "run" / "config.yaml"
    before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    lines = [("train", "--resume", folder.path), ("train", "linear", "--config", config_file, "--out", tmp_path / "new")]
    for line in lines:
        code, _, err = call(*line)
        assert code == 2 and f"{tmp_path / 'rows.npz'} cannot be read" in err and err.count("\n") == 1
    write(tmp_path / "rows.npz", made_up(seed=1), env="pendulum")
    for line in lines:
        code, _, err = call(*line)
        assert code == 2 and "is not the file that the run started with; restore that file" in err
        assert err.startswith("jaxmbrl: ") and err.count("\n") == 1
    assert {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()} == before
    assert not (tmp_path / "new").exists()
    assert same(jaxmbrl.load(folder.path).state, jaxmbrl.load(runs("linear")[0]).state)
    returns = jaxmbrl.evaluate(folder.path, 1).per_seed
    assert returns == jaxmbrl.evaluate(runs("linear")[0], 1).per_seed
    shutil.copy(file, tmp_path / "rows.npz")
    code, said, err = call("train", "--resume", folder.path)
    assert (code, err) == (0, "") and "nothing to do" in said


@pytest.fixture
def nothing_begins(monkeypatch):
    monkeypatch.setattr(Session, "begin", began)


def test_a_config_of_a_run_from_data_begins_the_same_run(runs, file, tmp_path, nothing_begins):
    config = runs("linear")[0] / "config.yaml"
    with pytest.raises(Began):
        call("train", "linear", "--config", config, "--out", tmp_path / "again")
    assert (tmp_path / "again" / "config.yaml").read_text() == config.read_text()
    other = write(tmp_path / "other.npz", made_up(90, seed=2), env="pendulum")
    with pytest.raises(Began):
        call("train", "linear", "--config", config, "--data", other, "--steps", 40, "--out", tmp_path / "other")
    moved = shutil.copy(file, tmp_path / "moved.npz")
    fewer = tmp_path / "fewer.yaml"
    fewer.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | {"steps": 40}))
    with pytest.raises(Began):
        call("train", "linear", "--config", fewer, "--data", moved, "--out", tmp_path / "moved")
    kept = yaml.safe_load((tmp_path / "moved" / "config.yaml").read_text())
    assert (kept["data"], kept["steps"]) == (str(moved), 40)
    given = yaml.safe_load((tmp_path / "other" / "config.yaml").read_text())
    expected = {"data": str(other), "data_digest": dataset.load(other).digest, "steps": 40}
    assert given == yaml.safe_load(config.read_text()) | expected


REFUSED = {
    "more steps": ({"steps": ROWS + 1}, "steps must be between an epoch (40) and the data's 130 rows, got 131"),
    "less than an epoch": ({"steps": 39}, "steps must be between an epoch (40) and the data's 130 rows, got 39"),
    "no step": ({"steps": 0}, "steps must be at least 1, got 0"),
    "an epoch beyond": ({"settings": {"epoch_steps": 200}}, "epoch_steps must be at most the data's 130 rows, got 200"),
    "environments": ({"settings": {"num_envs": 2}}, "num_envs must be 1 with data, got 2"),
    "the truth": ({"algorithm": "pets", "settings": {"model": "true"}}, "model must be 'learned' with data"),
    "another task": ({"env": "cartpole-continuous"}, "holds transitions of pendulum, not of cartpole-continuous"),
    "nothing": ({"data": "nowhere.npz"}, "nowhere.npz cannot be read (No such file or directory)"),
    "a folder": ({"data": "."}, "cannot be read (Is a directory)"),
    "text": ({"data": "text.npz"}, "text.npz: it is not an npz file of plain arrays"),
    "sizes": ({"data": "wide.npz"}, "the data's 'observation' has rows of shape (4,), pendulum has (3,)"),
    "actions": ({"data": "torques.npz"}, "torques.npz: 'action' must be in [-1, 1], got 2"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_mistakes_are_told_before_anything_begins(case, file, tmp_path, monkeypatch, nothing_begins):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.npz").write_text("observation, action")
    write(tmp_path / "wide.npz", made_up(observation=4))
    write(tmp_path / "torques.npz", made_up()._replace(action=np.full((ROWS, 1), 2.0)))
    changes, message = REFUSED[case]
    given = {"algorithm": "linear", "env": "pendulum", "data": file, "out": "out", **changes}
    name = given.pop("algorithm")
    settings = SETTINGS[name] | given.pop("settings", {})
    words = ["train", name, *options(settings), *(word for k, v in given.items() for word in (f"--{k}", v))]
    with pytest.raises(UserError) as told:
        jaxmbrl.train(name, given.pop("env"), settings=settings, **given)
    assert message in str(told.value) and "\n" not in str(told.value)
    code, said, err = call(*words)
    assert (code, said) == (2, "") and message in err and err.startswith("jaxmbrl: ") and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_file_that_tells_no_task_is_taken_for_any_that_it_fits(tmp_path):
    path = write(tmp_path / "rows.npz", made_up())
    config = programs.configure("linear", "pendulum", settings=SETTINGS["linear"], data=path)
    assert programs.build(config).total_steps == STEPS


def test_a_moved_file_is_found_from_every_folder(tmp_path, monkeypatch):
    path = write(tmp_path / "rows.npz", made_up())
    config = programs.configure("linear", "pendulum", settings=SETTINGS["linear"], data=path)
    monkeypatch.chdir(tmp_path)
    for name in (path.rename(tmp_path / "moved.npz").name, Path("moved.npz")):
        assert programs.changed(config, {}, {"data": name}).data == str(tmp_path / "moved.npz")


@pytest.mark.parametrize(
    ("name", "settings", "chains"),
    [
        ("sac", {}, False),
        ("sac", {"n_step": 3}, True),
        ("dreamer", {}, True),
        ("recurrent-sac", {}, True),
        ("world-models", {}, True),
    ],
)
def test_rows_that_do_not_continue_one_another_are_truncated_where_updates_chain_them(file, name, settings, chains):
    """Of the made-up rows none continues the one before."""
    program = programs.configure(name, "pendulum", settings={"epoch_steps": 40, **settings}, data=file)
    rows, held = made_up(), programs._data(replace(program, steps=STEPS), envs.make("pendulum"))
    marked = rows.truncated | (~rows.terminated & (np.arange(ROWS) < ROWS - 1)) if chains else rows.truncated
    np.testing.assert_array_equal(held.truncated, marked)


@pytest.mark.parametrize("name", SETTINGS)
def test_data_fit_a_run_in_float64(name, file):
    with jax.enable_x64(True):
        program = programs.build(programs.configure(name, "pendulum", settings=SETTINGS[name], data=file))
        states = programs.initial_shapes(program)
        _, after = jax.eval_shape(program.loop.run, loop.clock_at(0), states, jnp.ones((), jnp.int32))
        assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), states)
        assert after.algorithm.replay.data.reward.dtype == jnp.float64


@pytest.mark.slow
def test_a_pendulum_is_swung_up_by_what_random_actions_showed(tmp_path, monkeypatch):
    """PETS fitted twice to 2,000 random transitions, without a step of its own; random actions earn about -1,200."""
    monkeypatch.chdir(tmp_path)
    code, said, err = call("collect", "--policy", "random", "--env", "pendulum", "--steps", 2000, "--out", "random")
    assert (code, err) == (0, "") and "2,000 transitions of pendulum in random.npz, 10 finished episodes" in said
    words = ["--refit-every", 1000, "--warmup-steps", 1000, "--epoch-steps", 1000, "--out", "run"]
    code, said, err = call("train", "pets", "--env", "pendulum", "--data", "random.npz", *words)
    assert (code, err) == (0, "")
    returns = np.asarray(jaxmbrl.evaluate("run", 5).returns)
    assert returns.shape == (1, 5) and returns.mean() > -250
