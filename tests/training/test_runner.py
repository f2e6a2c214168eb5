"""Runs: what they write, what they return, evaluation, and seeds that go wrong."""

import contextlib
import datetime
import io
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import yaml
from command_line import call, options, untimed

import jaxmbrl
from jaxmbrl import algorithms
from jaxmbrl.commands import inspect
from jaxmbrl.core.config import UserError, to_dict
from jaxmbrl.rollout import rollout
from jaxmbrl.training import epoch_rows, evaluation, programs, runner, session
from jaxmbrl.training.console import Progress
from jaxmbrl.training.run_folder import RunFolder
from jaxmbrl.training.scores import REFERENCES, normalized
from jaxmbrl.training.session import Session

SMALL = {
    "batch_size": 16,
    "replay_capacity": 1000,
    "warmup_steps": 250,
    "epoch_steps": 200,
    "eval_every": 2,
}
PETS = {
    "ensemble.members": 2,
    "ensemble.elites": 2,
    "ensemble.hidden": (16,),
    "ensemble.max_epochs": 3,
    "planner.cem.horizon": 5,
    "planner.cem.population": 20,
    "planner.cem.elites": 4,
    "planner.cem.iterations": 1,
    "particles": 2,
    "refit_every": 50,
    "warmup_steps": 150,
    "replay_capacity": 1000,
    "epoch_steps": 100,
    "eval_every": 0,
}


def digests(run):
    """SHA-256 of every leaf of every checkpoint, by step."""
    manifests = {path.parent.name: json.loads(path.read_text()) for path in run.glob("checkpoints/*/manifest.json")}
    return {step: {x["path"]: x["sha256"] for x in found["manifest"]["leaves"]} for step, found in manifests.items()}


def same(a, b):
    """Whether two trees are equal to the bit."""

    def data(x):
        x = jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        return (x.shape, np.asarray(x).dtype, np.asarray(x).tobytes())

    return jax.tree.structure(a) == jax.tree.structure(b) and [data(x) for x in jax.tree.leaves(a)] == [
        data(x) for x in jax.tree.leaves(b)
    ]


pytestmark = pytest.mark.usefixtures("compile_cache")


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    """A run of the small method by the command line: its folder, and what the console said."""
    out = tmp_path_factory.mktemp("runs") / "linear"
    fields = ["--steps", 750, "--seeds", 2, "--seed", 3, "--eval-episodes", 2, "--checkpoint.every", 2, "--out", out]
    code, said, err = call("train", "linear", "--env", "pendulum", *options(SMALL), *fields)
    assert (code, err) == (0, "")
    return out, said


@pytest.fixture(scope="module")
def pets_run(tmp_path_factory):
    """A run of PETS by the command line, into a relative path: its folder, and what the console said."""
    patch, place = pytest.MonkeyPatch(), tmp_path_factory.mktemp("runs")
    patch.chdir(place)
    fields = ["--steps", 300, "--seeds", 2, "--checkpoint.every", 10, "--out", "pets"]
    code, said, err = call("train", "pets", "--env", "cartpole-continuous", *options(PETS), *fields)
    patch.undo()
    assert (code, err) == (0, "")
    return place / "pets", said


SAME = {"steps": 750, "seeds": 2, "seed": 3, "eval_episodes": 2}


@pytest.fixture(scope="module")
def in_memory(tmp_path_factory):
    """The run of `small_run` by the Python interface: its result, what it said, and the folder it was in."""
    patch = pytest.MonkeyPatch()
    folder = tmp_path_factory.mktemp("empty")
    patch.chdir(folder)
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        result = jaxmbrl.train("linear", "pendulum", settings=SMALL, **SAME)
    patch.undo()
    return result, said.getvalue(), folder


@pytest.fixture(scope="module")
def ten_episodes(small_run):
    """Evaluation of `small_run`."""
    return jaxmbrl.evaluate(small_run[0], 10)


@pytest.mark.parametrize("which", ["small_run", pytest.param("pets_run", marks=pytest.mark.promises)])
def test_a_run_folder_holds_what_it_should(which, request):
    run, _ = request.getfixturevalue(which)
    names = {path.name for path in run.iterdir()} - {".lock"}
    assert names == {"config.yaml", "environment.json", "metrics.jsonl", "events.jsonl", "checkpoints", "curve.png"}
    assert (run / "curve.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    environment = json.loads((run / "environment.json").read_text())
    assert environment["versions"]["jax"] == jax.__version__
    assert environment["devices"]


def test_config_yaml_holds_what_was_asked(small_run):
    config = yaml.safe_load((small_run[0] / "config.yaml").read_text())
    assert config["settings"]["batch_size"] == 16
    fields = {name: config[name] for name in ("algorithm", "env", "preset", "steps", "seeds", "seed", "checkpoint")}
    kept = {"every": 2, "keep": 3, "model_buffer": True, "grace": 10.0}
    assert list(fields.values()) == ["linear", "pendulum", "default", 750, 2, 3, kept]


ALWAYS = {"epoch", "env_steps", "seed", "wall_time", "train/episodes", "time/epoch", "time/train"}
MODEL = {"model/holdout_error", "model/holdout_likelihood", "model/fit_steps"}


@pytest.mark.parametrize(
    ("which", "epochs", "epoch_steps", "seeds"),
    [("small_run", 4, 200, [3, 4]), pytest.param("pets_run", 3, 100, [0, 1], marks=pytest.mark.promises)],
)
def test_metrics_have_a_row_for_each_epoch_and_seed(which, epochs, epoch_steps, seeds, request):
    rows = [json.loads(line) for line in (request.getfixturevalue(which)[0] / "metrics.jsonl").read_text().splitlines()]
    found = [(row["epoch"], row["env_steps"], row["seed"]) for row in rows]
    assert found == [(e, e * epoch_steps, seed) for e in range(1, epochs + 1) for seed in seeds]
    walls = [row["wall_time"] for row in rows]
    assert walls == sorted(walls) and walls[0] > 0
    for row in rows:
        assert set(row) >= ALWAYS
        assert all(math.isfinite(value) for value in row.values())
        assert ("train/return" in row) == (row["train/episodes"] > 0)
        assert ("time/compile" in row) == (row["epoch"] == 1) or which == "small_run"


def test_the_small_method_tells_what_it_knows_and_nothing_else(small_run):
    rows = RunFolder.open(small_run[0]).read_metrics()
    assert [row["train/episodes"] for row in rows] == [1] * 8, "pendulum's episodes have 200 steps, as the epochs have"
    for row in rows:
        assert -3300 < row["train/return"] <= 0
        assert ("eval/return" in row) == ("time/evaluate" in row) == (row["epoch"] % 2 == 0)
        assert row["time/train"] + row.get("time/evaluate", 0.0) <= row["time/epoch"] + 0.002, "to rounding"
        learns = row["env_steps"] >= 250
        assert any(name.startswith("agent/") for name in row) == learns
        assert {"agent/critic_loss", "agent/gradient_norm"} <= set(row) or not learns
        assert ("time/compile" in row) == (row["epoch"] in (1, 2)), "training, then evaluation"


@pytest.mark.promises
def test_pets_tells_what_it_knows_and_nothing_else(pets_run):
    for row in RunFolder.open(pets_run[0]).read_metrics():
        assert "eval/return" not in row
        assert (set(row) >= MODEL) == (row["env_steps"] >= 150)
        assert (set(row) & MODEL == set()) == (row["env_steps"] < 150)


@pytest.mark.parametrize("which", ["small_run", pytest.param("pets_run", marks=pytest.mark.promises)])
def test_events_tell_what_happened_when(which, request):
    events = RunFolder.open(request.getfixturevalue(which)[0]).read_events()
    kinds = [event["kind"] for event in events]
    assert kinds[:3] == ["start", "checkpoint", "compile"] and kinds[-1] == "end"
    assert kinds.count("compile") == (2 if which == "small_run" else 1)
    steps = [event["env_steps"] for event in events if event["kind"] == "checkpoint"]
    assert steps == ([0, 400, 800] if which == "small_run" else [0, 300])
    times = [datetime.datetime.fromisoformat(event["time"]) for event in events]
    assert times == sorted(times) and all(time.tzinfo is not None for time in times)


def test_the_console_says_what_the_rows_say(small_run):
    run, said = small_run
    assert "750 steps are rounded up to 800, whole epochs of 200" in said
    assert f"training linear (default preset) on pendulum: 800 environment steps, 2 seeds, into {run}" in said
    rows = RunFolder.open(run).read_metrics()
    for epoch in (1, 2, 3, 4):
        mean = np.mean([row["train/return"] for row in rows if row["epoch"] == epoch])
        assert f"epoch {epoch}, {200 * epoch} of 800 steps, train return {mean:.1f}" in said
    for next_command in (f"evaluate {run}", f"train --resume {run} --steps 1600", "train pets --env pendulum", "list"):
        assert f"  jaxmbrl {next_command}\n" in said


def test_a_damaged_checkpoint_is_told_to_who_looks(small_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(small_run[0], run)
    newest = sorted((run / "checkpoints").glob("0*"))[-1]
    (newest / "manifest.json").write_text("{}")
    with pytest.warns(jaxmbrl.RunWarning, match=f"{newest.name} is damaged"):
        jaxmbrl.load(run)
    newest = sorted((run / "checkpoints").glob("0*"))[-1]
    (newest / "manifest.json").write_text("{}")
    code, out, err = call("evaluate", run, "--episodes", 1)
    assert code == 0 and "mean" in out
    assert err.startswith("jaxmbrl: warning: ") and f"{newest.name} is damaged" in err and err.count("\n") == 1


@pytest.mark.parametrize("which", ["small_run", pytest.param("pets_run", marks=pytest.mark.promises)])
def test_a_saved_config_gives_the_same_run_again(which, request, tmp_path):
    run, _ = request.getfixturevalue(which)
    algorithm = "linear" if which == "small_run" else "pets"
    code, _, err = call("train", algorithm, "--config", run / "config.yaml", "--out", tmp_path / "again")
    assert (code, err) == (0, "")
    assert (tmp_path / "again" / "config.yaml").read_bytes() == (run / "config.yaml").read_bytes()
    first, again = (RunFolder.open(path).read_metrics() for path in (run, tmp_path / "again"))
    assert untimed(again) == untimed(first)
    assert digests(tmp_path / "again") == digests(run)
    assert len(digests(run)) == (3 if which == "small_run" else 2)


def test_evaluate_ends_with_json(small_run, ten_episodes, monkeypatch):
    monkeypatch.chdir(small_run[0].parent)
    code, said, err = call("evaluate", small_run[0].name, "--json")
    assert (code, err) == (0, "")
    found = json.loads(said.splitlines()[-1])
    summary = {"per_seed": ten_episodes.per_seed, "mean": ten_episodes.mean, "iqm": ten_episodes.iqm}
    by_score = {"scores": [normalized(value, REFERENCES["pendulum"]) for value in ten_episodes.per_seed]}
    assert found == summary | by_score | {"backend": "jax", "env_steps": 800, "frozen": []}
    assert "normalised score" in said
    assert "the policy after 800 of 800 environment steps\n" in said and "frozen" not in said.replace('"frozen"', "")
    assert found["mean"] == pytest.approx(sum(found["per_seed"]) / 2, rel=1e-12)
    assert f"seed 3: {found['per_seed'][0]:.2f}" in said and f"seed 4: {found['per_seed'][1]:.2f}" in said


def test_a_return_that_is_not_finite_is_null_in_json(small_run, monkeypatch):
    monkeypatch.setattr(
        runner,
        "evaluate",
        lambda run, episodes, *given, **more: runner.summarise(jnp.asarray([[1.0], [jnp.nan]]), 9, (4,)),
    )
    code, said, _ = call("evaluate", small_run[0], "--json")
    assert code == 0 and "seed 4: not finite  (frozen when a value was not finite)" in said
    found = json.loads(said.splitlines()[-1])
    assert found.pop("scores")[1] is None
    assert found == {"per_seed": [1.0, None], "mean": None, "iqm": None, "backend": "jax", "env_steps": 9, "frozen": [4]}


def test_a_long_evaluation_is_announced_by_the_times_of_the_run(small_run, tmp_path, monkeypatch):
    run, began = tmp_path / "run", "evaluating linear on pendulum: 2 seeds, 10 episodes each"
    shutil.copytree(small_run[0], run)
    monkeypatch.setattr(runner, "evaluate", lambda *given, **more: runner.summarise(jnp.asarray([[1.0], [2.0]]), 9))
    assert f"{began} ...\n" in call("evaluate", run)[1], "it takes less than a few seconds"
    last = RunFolder.open(run).read_metrics()[-1]
    RunFolder.open(run).append_metrics([last | {"time/evaluate": 30.0}])
    # The run's evaluations have 2 episodes.
    announced = f"{began}, about 2 min 30 s by the time of the run's own evaluations ...\n"
    assert announced in call("evaluate", run)[1]
    assert f"{began} ...\n" in call("evaluate", run, "--model", "learned")[1], "another model takes another time"


def test_the_time_of_a_planners_evaluation_follows_from_its_training():
    """200 steps of training, 60 s, had 200 plans of each seed; 20 episodes of 150 steps, the mean, have 3,000."""
    config = programs.configure("pets", "cartpole-continuous", seeds=2)
    assert config.settings.epoch_steps == 200
    epoch = {"epoch": 4, "time/train": 60.0}
    rows = [epoch | {"train/episode_length": length} for length in (100.0, 200.0)]
    later = [{"epoch": 5, "time/train": 1.0}, {"epoch": 5, "time/train": 1.0}]
    assert inspect._expected(rows + later, config, 20) == ", about 15 min 00 s by the time of its steps in training"
    assert inspect._expected(later, config, 20) == "", "no episode has finished"
    assert inspect._expected(rows, programs.configure("sac", "pendulum"), 20) == "", "not a planner"


def test_the_returns_of_many_seeds_are_summarised():
    """Returns 0 to 100 of seeds 7 to 107, of which one is frozen, and one that is not finite."""
    found = runner.summarise(jnp.arange(102.0)[:, None].at[101].set(jnp.nan), 9, (107,))
    assert inspect._per_seed(found, 7) == [
        "seed 107: 100.00  (frozen when a value was not finite)",
        "seed 108: not finite",
        "100 seeds: lowest 0.00, 5% 4.95, 25% 24.75, median 49.50, 75% 74.25, 95% 94.05, highest 99.00",
    ]
    lost = inspect._per_seed(runner.summarise(jnp.full((1000, 1), jnp.nan), 9), 0)
    assert len(lost) == 33 and lost[-1] == "... and 968 more"
    assert len(inspect._per_seed(runner.summarise(jnp.zeros((32, 1)), 9), 0)) == 32


def test_fewer_episodes_are_the_first_of_more(small_run, ten_episodes):
    few = jaxmbrl.evaluate(str(small_run[0]), 2)
    np.testing.assert_allclose(few.returns, ten_episodes.returns[:, :2], rtol=1e-6)
    assert len(set(np.asarray(ten_episodes.returns[0]).tolist())) == 10, "start states differ"
    means = np.asarray(ten_episodes.returns, np.float64).mean(axis=1)
    assert ten_episodes.per_seed == pytest.approx(means.tolist(), rel=1e-12)
    rows = RunFolder.open(small_run[0]).read_metrics()
    np.testing.assert_allclose(few.per_seed, [row["eval/return"] for row in rows if row["epoch"] == 4], rtol=1e-6)


def test_a_checkpoint_of_other_settings_is_refused_and_kept(small_run, tmp_path):
    shutil.copytree(small_run[0], tmp_path / "run")
    folder = RunFolder.open(tmp_path / "run")
    config = folder.read_config()
    config["settings"]["replay_capacity"] = 7
    folder.write_config(config)
    kept = sorted(path.name for path in folder.checkpoints.iterdir())
    code, _, err = call("train", "--resume", folder.path)
    assert (code, err) == (
        2,
        f"jaxmbrl: the run in {folder.path} cannot continue with other settings (replay_capacity was 1000 and is 7); "
        "restore them, or start another run\n",
    )
    code, _, err = call("evaluate", folder.path)
    assert code == 2 and err.startswith("jaxmbrl: ") and err.count("\n") == 1
    assert "replay.data.observation must be float32[2, 7, 3], got float32[2, 1000, 3]" in err
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == kept


def test_every_field_that_differs_is_listed_and_what_may_change_is_taken(small_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(small_run[0], run)
    with pytest.raises(UserError, match="cannot continue with other settings") as caught:
        jaxmbrl.resume(
            run, settings={"batch_size": 32, "replay_capacity": 8, "eval_every": 1}, seeds=3, env="cartpole-continuous"
        )
    told = str(caught.value).partition("(")[2].partition(")")[0].split("; ")
    assert sorted(told) == [
        "batch_size was 16 and is 32",
        "env was 'pendulum' and is 'cartpole-continuous'",
        "replay_capacity was 1000 and is 8",
        "seeds was 2 and is 3",
    ]
    before = RunFolder.open(run).read_config()
    new = {"eval_episodes": 1, "checkpoint": {"every": 1, "keep": 2, "grace": 3}}
    rows = jaxmbrl.resume(run, steps=1000, settings={"eval_every": 1}, **new).rows
    assert ["eval/return" in row for row in rows if row["epoch"] == 5] == [True, True]
    after = RunFolder.open(run).read_config()
    assert after["settings"].pop("eval_every") == 1 and before["settings"].pop("eval_every") == 2
    assert after["checkpoint"] == {"every": 1, "keep": 2, "model_buffer": True, "grace": 3.0}
    same_fields = set(before) - {"checkpoint", "steps", "eval_episodes"}
    assert {name: after[name] for name in same_fields} == {name: before[name] for name in same_fields}
    with pytest.raises(UserError, match="unknown field 'setings'"):
        jaxmbrl.resume(run, setings={})


@pytest.mark.slow
def test_without_imagined_transitions_checkpoints_are_small_and_a_resume_says_so(tmp_path):
    settings = {
        "agent.hidden": (8,),
        "batch_size": 8,
        "ensemble.members": 2,
        "ensemble.elites": 2,
        "ensemble.hidden": (8,),
        "ensemble.max_epochs": 2,
        "rollout_rows": 2000,
        "refit_every": 50,
        "warmup_steps": 50,
        "replay_capacity": 200,
        "epoch_steps": 50,
    }
    fields = {"steps": 150, "settings": settings, "eval_episodes": 1}
    jaxmbrl.train("mbpo", "pendulum", out=tmp_path / "whole", **fields)
    jaxmbrl.train("mbpo", "pendulum", out=tmp_path / "small", checkpoint={"model_buffer": False}, **fields)
    sizes = [
        sum(p.stat().st_size for p in (tmp_path / n).glob("checkpoints/00000150/arrays/**/*")) for n in ("whole", "small")
    ]
    assert sizes[1] < sizes[0] / 2
    a, b = (untimed(RunFolder.open(tmp_path / n).read_metrics()) for n in ("whole", "small"))
    assert a == b, "only what is kept differs"
    result = jaxmbrl.resume(tmp_path / "small", steps=250)
    assert len(result.rows) == 5 and all("agent/critic_loss" in row for row in result.rows[1:])
    told = [event["text"] for event in RunFolder.open(tmp_path / "small").read_events() if event["kind"] == "warning"]
    assert told == ["the resume may not be exact: the checkpoint has no imagined transitions (checkpoint.model_buffer)"]


def test_nested_settings_replace_their_own_fields_alone():
    nested = programs.configure("pets", "cartpole-continuous", settings={"ensemble": {"members": 6}, "particles": 20})
    dotted = programs.configure("pets", "cartpole-continuous", settings={"ensemble.members": 6, "particles": 20})
    assert nested == dotted
    assert (nested.settings.ensemble.members, nested.settings.ensemble.hidden) == (6, (64, 64, 64))


def test_a_nested_field_that_differs_is_named_by_its_path():
    started = programs.configure("sac", "pendulum", settings={"agent.hidden": (16, 16)})
    asked = programs.configure("sac", "pendulum", settings={"agent.hidden": (8,)})
    assert programs.drift(to_dict(started), to_dict(asked)) == [("agent.hidden", [16, 16], [8])]


@pytest.mark.slow
def test_another_version_is_told_on_resume(tmp_path):
    settings = {"warmup_steps": 20, "epoch_steps": 20, "replay_capacity": 50}
    jaxmbrl.train("linear", "pendulum", settings=settings, steps=20, out=tmp_path / "run")
    file = tmp_path / "run" / "environment.json"
    file.write_text(file.read_text().replace(f'"jax": "{jax.__version__}"', '"jax": "0.0.1"'))
    jaxmbrl.resume(tmp_path / "run", steps=40)
    events = RunFolder.open(tmp_path / "run").read_events()
    assert [e["text"] for e in events if e["kind"] == "warning"] == [
        "versions differ from those that the run started with: the resume may not be exact"
    ]
    assert next(e for e in events if e["kind"] == "resume")["versions"]["jax"] == jax.__version__


@pytest.mark.parametrize("n", range(1, 14))
def test_interquartile_mean_is_the_trimmed_mean(n):
    values = np.random.default_rng(n).normal(size=n).tolist()
    assert evaluation.interquartile_mean(values) == pytest.approx(scipy.stats.trim_mean(values, 0.25), rel=1e-12)
    assert runner.summarise(jnp.asarray(values)[:, None], 0).iqm == pytest.approx(
        scipy.stats.trim_mean(np.asarray(values, jnp.zeros(()).dtype), 0.25), rel=1e-5
    )


def test_a_loaded_policy_earns_what_evaluation_says(small_run, ten_episodes):
    policy, states, task = jaxmbrl.load(small_run[0])
    assert task.name == "pendulum"

    def rewards(state, episode):
        start, memory, step = jax.random.split(jax.random.fold_in(jax.random.key(evaluation._STREAM), episode), 3)
        acting = policy(state)
        carry = (task.world.reset(start), acting.init(memory))
        return rollout(task.world, acting, carry, step, task.episode_length)[1].reward

    both = jax.jit(jax.vmap(jax.vmap(rewards, in_axes=(None, 0)), in_axes=(0, None)))(states, jnp.arange(10))
    total = np.zeros((2, 10), both.dtype)
    for t in range(task.episode_length):
        total = total + np.asarray(both[..., t])
    np.testing.assert_array_equal(total, ten_episodes.returns)


def test_a_loaded_policy_explores_when_asked(small_run):
    policy, states, task = jaxmbrl.load(small_run[0])
    state = jax.tree.map(lambda x: x[0], states)

    def actions(explore):
        acting = policy(state, explore)
        return {float(acting.act((), task.observation.zeros(), jax.random.key(i))[0][0]) for i in range(3)}

    assert (len(actions(False)), len(actions(True))) == (1, 3)


def test_train_in_memory_writes_and_says_nothing(in_memory):
    result, said, folder = in_memory
    assert list(folder.rglob("*")) == [] and result.path is None
    assert said == ""
    assert result.task.name == "pendulum" and result.config.settings.batch_size == 16
    state = jax.tree.map(lambda x: x[1], result.state)
    action, _, _ = result.policy(state).act((), jnp.zeros(3), jax.random.key(0))
    assert action.shape == (1,) and abs(float(action[0])) <= 1


def test_train_in_memory_and_into_a_folder_agree(small_run, in_memory):
    assert untimed(in_memory[0].rows) == untimed(RunFolder.open(small_run[0]).read_metrics())
    assert same(in_memory[0].state, jaxmbrl.load(small_run[0]).state)


def test_a_run_traces_its_method_once(monkeypatch):
    """Building the program and compiling it need the same traces, of which each can take seconds."""
    method, traced = algorithms.get("linear"), []

    def counted(function):
        def call(*arguments):
            traced.append(function.__name__)
            return function(*arguments)

        return call

    def make(config, task):
        made = method.make(config, task)
        return made._replace(init=counted(made.init), learn=counted(made.learn))

    monkeypatch.setitem(algorithms.METHODS, "linear", method._replace(make=make))
    jaxmbrl.train("linear", "pendulum", settings=SMALL | {"eval_every": 0}, steps=200)
    assert traced == ["init", "learn"]


def test_the_size_of_a_large_state_is_said_before_it_is_made(monkeypatch):
    said, progress = [], Progress.silent()
    monkeypatch.setattr(progress, "say", said.append)

    def made(program, hyper, spread=None):
        raise InterruptedError("here it is made")

    monkeypatch.setattr(session, "initial", made)
    shapes = {"rows": jax.ShapeDtypeStruct((1_000_000, 38), bool)}
    monkeypatch.setattr(session, "initial_shapes", lambda program: shapes)
    for least, told in [(38_000_001, 0), (38_000_000, 1)]:
        monkeypatch.setattr(session, "LARGE_STATE", least)
        with pytest.raises(InterruptedError):
            jaxmbrl.train("linear", "pendulum", settings=SMALL, progress=progress)
        assert said == ["the state takes 0.04 GB of memory, and each checkpoint about as much on the disk"] * told


@pytest.mark.slow
def test_hyper_acts_on_its_seed_alone(in_memory):
    # The settings as an object, which is as good as a mapping.
    default = in_memory[0]
    hyper = {"learning_rate": [default.config.settings.learning_rate, 3e-3]}
    other = jaxmbrl.train("linear", "pendulum", settings=default.config.settings, hyper=hyper, **SAME)
    seeds = [[row for row in untimed(run.rows) if row["seed"] == seed] for run in (default, other) for seed in (3, 4)]
    assert seeds[0] == seeds[2]
    assert seeds[1] != seeds[3]
    assert other.state.learner.learning_rate.tolist() == pytest.approx([1e-3, 3e-3])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"algorithm": "sca"}, "unknown algorithm 'sca'; did you mean 'sac'"),
        ({"env": "pendulm"}, "unknown task 'pendulm'; did you mean 'pendulum'"),
        ({"preset": "pendulm"}, "unknown preset 'pendulm' of sac; did you mean 'pendulum'"),
        ({"settings": {"batch": 3}}, "unknown field 'batch'; did you mean 'batch_size'"),
        ({"settings": {"agent.hiden": 3}}, "unknown field 'agent.hiden'; did you mean 'agent.hidden'"),
        ({"settings": {"batch_size.x": 3}}, "unknown field 'batch_size.x': batch_size has no fields"),
        ({"settings": {3: 3}}, "unknown field '3'"),
        ({"settings": {"batch_size": 0}}, "batch_size must be at least 1, got 0"),
        ({"settings": {"batch_size": "big"}}, "batch_size must be a whole number, got 'big'"),
        ({"settings": {"agent.hidden": 16}}, "agent.hidden must be a list, got 16"),
        ({"settings": 3}, "settings must be the config of sac or a mapping"),
        ({"settings": algorithms.METHODS["pets"].config()}, "settings must be the config of sac or a mapping"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"steps": 2**31}, "steps must be below"),
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"eval_episods": 3}, "unknown field 'eval_episods'; did you mean 'eval_episodes'"),
        ({"hyper": {"learning_rat": 1}}, "unknown hyper 'learning_rat' of sac; did you mean 'learning_rate'"),
        ({"hyper": {"learning_rate": [1e-3] * 3}}, "hyper 'learning_rate' must be a number or one per seed (1)"),
        ({"hyper": {"learning_rate": "fast"}}, "hyper 'learning_rate' must be a number or one per seed (1), got 'fast'"),
        ({"hyper": {"learning_rate": None}}, "agent.learning_rate must be a finite number, got nan"),
        ({"hyper": {"learning_rate": -1}}, "agent.learning_rate must be above 0, got -1.0"),
        ({"hyper": {"discount": 1.5}}, "agent.discount must be at most 1, got 1.5"),
    ],
)
def test_errors_of_train(arguments, message, tmp_path, monkeypatch):
    monkeypatch.setattr(Session, "begin", None)
    given = {"algorithm": "sac", "env": "pendulum", "out": tmp_path / "out", **arguments}
    with pytest.raises(UserError) as told:
        jaxmbrl.train(given.pop("algorithm"), given.pop("env"), **given)
    assert message in str(told.value) and "\n" not in str(told.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("function", [jaxmbrl.resume, jaxmbrl.load, jaxmbrl.evaluate])
def test_what_is_not_a_run_is_a_user_error(function, tmp_path):
    for path in (tmp_path, tmp_path / "nowhere", str(tmp_path)):
        with pytest.raises(UserError, match="give the folder of a run"):
            function(path)


def test_a_bad_seed_is_named_and_leaves_the_other_alone(in_memory, tmp_path):
    said = io.StringIO()
    hyper = {"learning_rate": [in_memory[0].config.settings.learning_rate, 1e30]}
    fields = {**SAME, "steps": 400, "out": tmp_path / "run", "progress": runner.Progress(400, 2, out=said)}
    short = jaxmbrl.train("linear", "pendulum", settings=SMALL, hyper=hyper, **fields)
    folder = RunFolder.open(tmp_path / "run")
    assert folder.read_metrics() == short.rows
    warnings = [event for event in folder.read_events() if event["kind"] == "warning"]
    assert len(warnings) == 1 and (warnings[0]["seed"], warnings[0]["epoch"]) == (4, 2)
    assert 250 <= warnings[0]["env_steps"] <= 400
    assert short.env_steps == 400 and short.frozen == {4: (warnings[0]["metric"], warnings[0]["env_steps"])}
    text = warnings[0]["text"]
    assert "seed 4 is frozen" in text and f"'{warnings[0]['metric']}'" in text and "epoch 2" in text
    assert f"warning: {text}" in said.getvalue() and said.getvalue().count("warning") == 1
    assert "frozen: seed 4" in said.getvalue()

    # Resuming remembers it, and the rate given to each seed.
    run = jaxmbrl.resume(tmp_path / "run", steps=750)
    rows = folder.read_metrics()
    assert rows == run.rows
    assert [event["text"] for event in folder.read_events() if event["kind"] == "warning"] == [text]
    assert [row.get("frozen", False) for row in rows if row["seed"] == 4] == [False, True, True, True]
    assert all(row["frozen"] is True for row in rows if "frozen" in row)
    assert all(math.isfinite(value) for row in rows for value in row.values())
    healthy = [row for row in untimed(in_memory[0].rows) if row["seed"] == 3]
    assert [row for row in untimed(rows) if row["seed"] == 3] == healthy
    assert same(jax.tree.map(lambda x: x[0], run.state), jax.tree.map(lambda x: x[0], in_memory[0].state))
    frozen = jax.tree.map(lambda x: np.asarray(x[1]), run.state.learner)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(frozen)), "what is kept is from before the fault"
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["hyper"]["learning_rate"] == pytest.approx(
        hyper["learning_rate"]
    )


@pytest.mark.promises
def test_a_run_whose_seeds_are_all_bad_ends_with_a_warning(tmp_path):
    words = [*options({**SMALL, "learning_rate": 1e30}), "--steps", 2000, "--seeds", 2, "--eval-episodes", 2]
    words += ["--out", tmp_path / "run"]
    code, said, err = call("train", "linear", "--env", "pendulum", *words)
    assert code == 1
    assert err.startswith("jaxmbrl: no seed finished") and err.count("\n") == 1 and "events.jsonl" in err
    assert "warning: all seeds had a value that is not finite; the run ends at 400 of 2,000 steps" in said
    rows = RunFolder.open(tmp_path / "run").read_metrics()
    assert [row["epoch"] for row in rows] == [1, 1, 2, 2] and all(row["frozen"] for row in rows[2:])
    before = digests(tmp_path / "run")
    code, said, err = call("train", "--resume", tmp_path / "run")
    assert code == 1 and "nothing to do" in said
    assert RunFolder.open(tmp_path / "run").read_metrics() == rows and digests(tmp_path / "run") == before


def test_sums_that_overflow_are_left_out_and_told(tmp_path):
    folder, program = RunFolder.create(tmp_path / "run"), programs.build(programs.configure("linear", "pendulum"))
    folder.write_config(to_dict(program.config))
    session = Session(program, folder, runner.Progress.silent())
    row = {"epoch": 7, "agent/q": 1.0, "agent/actor_loss": math.inf, "eval/return": math.nan}
    kept, notices = epoch_rows.finite(row, 5, 7)
    assert kept == {"epoch": 7, "agent/q": 1.0}
    for notice in notices:
        session.recorder.warn(notice.text, **notice.fields)
    events = [(e["kind"], e["seed"], e["epoch"], e["metric"]) for e in folder.read_events()]
    assert events == [("warning", 5, 7, "agent/actor_loss"), ("warning", 5, 7, "eval/return")]
