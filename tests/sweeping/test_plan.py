"""From a sweep's file to runs: which there are, what they are called, what they train, and what is refused."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from jaxmbrl import envs
from jaxmbrl.core.config import UserError
from jaxmbrl.sweeping import file as sweep_file
from jaxmbrl.sweeping import launching, naming, plan, status
from jaxmbrl.sweeping import runs as sweep_runs
from jaxmbrl.sweeping.folder import SweepFolder
from jaxmbrl.training import experts, programs
from jaxmbrl.training.console import Progress
from jaxmbrl.training.run_folder import RunFolder
from jaxmbrl.training.session import Result

SAC = {"algorithm": "sac", "env": "pendulum"}


def names(file):
    return [run.name for run in sweep_file.expand(file)]


def test_a_grid_is_every_combination_in_order():
    runs = sweep_file.expand({**SAC, "grid": {"settings": {"batch_size": [64, 256]}, "algorithm": ["sac", "td3"]}})
    assert [(run.fields["settings.batch_size"], run.fields["algorithm"]) for run in runs] == [
        (64, "sac"),
        (64, "td3"),
        (256, "sac"),
        (256, "td3"),
    ]
    assert [run.name for run in runs] == [
        f"{algorithm}-pendulum-batch_size={size}" for size in (64, 256) for algorithm in ("sac", "td3")
    ]


def test_runs_follow_the_grid_and_override_the_common_fields():
    runs = sweep_file.expand(
        {
            **SAC,
            "settings": {"agent": {"hidden": [8, 8]}, "batch_size": 4},
            "grid": {"seed": [0, 1]},
            "runs": [{"env": "reacher-2d", "settings.agent.hidden": [9]}, {"name": "plain"}],
        }
    )
    assert [run.name for run in runs] == [
        "sac-pendulum-seed=0",
        "sac-pendulum-seed=1",
        "sac-reacher-2d-agent.hidden=9",
        "plain",
    ]
    assert runs[2].fields == {
        "algorithm": "sac",
        "env": "reacher-2d",
        "settings.agent.hidden": [9],
        "settings.batch_size": 4,
    }
    assert "seed" not in runs[3].fields


def test_settings_that_belong_together_are_swept_together():
    runs = sweep_file.expand({**SAC, "grid": {"settings": [{"batch_size": 8, "agent.hidden": [4]}, {"batch_size": 9}]}})
    assert [run.name for run in runs] == ["sac-pendulum-batch_size=8-agent.hidden=4", "sac-pendulum-batch_size=9"]


def test_a_file_without_grid_and_runs_is_one_run():
    assert names(SAC) == ["sac-pendulum"]


def test_a_name_does_not_depend_on_the_other_runs():
    one = names({**SAC, "grid": {"settings.batch_size": [64]}})
    more = names({**SAC, "grid": {"settings.batch_size": [64, 128]}, "runs": [{"env": "reacher-2d"}]})
    assert one == more[:1]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"env": "Ant-v5/truncated"}, "sac-Ant-v5-truncated"),
        ({"settings.agent.hidden": [64, 64]}, "sac-pendulum-agent.hidden=64,64"),
        ({"settings.discount": 0.5}, "sac-pendulum-discount=0.5"),
        ({"settings.agent.target_entropy": None}, "sac-pendulum-agent.target_entropy=null"),
        ({"settings.x": True}, "sac-pendulum-x=true"),
        ({"data": "../a b/c.npz"}, "sac-pendulum-data=..-a-b-c.npz"),
        ({"algorithm": "../../x"}, "x-pendulum"),
    ],
)
def test_names_are_those_of_folders(change, name):
    assert names({**SAC, "runs": [change]}) == [name]


def test_names_that_signs_or_length_make_alike_are_told_apart():
    found = names({**SAC, "grid": {"data": ["a b", "a/b"]}})
    assert len(set(found)) == 2 and all(name.startswith("sac-pendulum-data=a-b-") for name in found)
    found = names({**SAC, "grid": {"data": ["x" * 300 + "a", "x" * 300 + "b"]}})
    assert len(set(found)) == 2 and all(len(name) <= naming.LONGEST_NAME for name in found)
    assert found == names({**SAC, "grid": {"data": ["x" * 300 + "a", "x" * 300 + "b"]}}), "the same each time"


def test_the_folder_is_asked_for_or_the_files_own_or_named_after_the_file(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(SAC))
    assert str(sweep_file.read(file).folder.path) == "runs/mine"
    file.write_text(yaml.safe_dump({**SAC, "out": "elsewhere"}))
    assert str(sweep_file.read(file).folder.path) == "elsewhere"
    assert str(sweep_file.read(file, tmp_path).folder.path) == str(tmp_path)
    file.write_text(yaml.safe_dump([SAC, {**SAC, "seed": 3}]))
    assert [run.name for run in sweep_file.read(file).runs] == ["sac-pendulum", "sac-pendulum-seed=3"]


def run_of(file, folder):
    (asked,) = sweep_file.expand(file)
    return plan.checked(asked, SweepFolder(folder))


def test_traced_numbers_share_a_program_each_with_seeds_of_its_own(tmp_path):
    hyper = {"learning_rate": ["1e-3", 3e-4], "discount": 0.9}
    run = run_of({**SAC, "seeds": 2, "seed": 5, "hyper": hyper}, tmp_path)
    assert (run.config.seeds, run.config.seed) == (4, 5)
    assert run.hyper == {"learning_rate": [1e-3, 1e-3, 3e-4, 3e-4], "discount": [0.9] * 4}
    assert sweep_runs.traced_lines(run) == [
        "seed 5 to 6: learning_rate 0.001, discount 0.9",
        "seed 7 to 8: learning_rate 0.0003, discount 0.9",
    ]
    both = run_of({**SAC, "hyper": {"learning_rate": [1e-3, 3e-4], "discount": [0.9, 0.99]}}, tmp_path)
    assert list(zip(*both.hyper.values(), strict=True)) == [(1e-3, 0.9), (1e-3, 0.99), (3e-4, 0.9), (3e-4, 0.99)]
    np.testing.assert_allclose(programs.hyper_of(both.hyper, both.config)["discount"], [0.9, 0.99, 0.9, 0.99], rtol=1e-6)


def test_a_run_has_what_the_file_says(tmp_path):
    run = run_of({**SAC, "steps": "2e3", "preset": "default", "settings": {"agent.hidden": [8]}, "seed": 3}, tmp_path)
    assert run.config == programs.configure("sac", "pendulum", "default", {"agent.hidden": [8]}, 2000, seed=3)
    assert run.path == tmp_path / "sac-pendulum" and run.hyper == {}


REFUSED_FILES = {
    "a sweep must be a mapping": "just words",
    "not valid YAML (line 1": "grid: [",
    "unknown field 'gird'; did you mean 'grid'?": {**SAC, "gird": {}},
    "unknown field 'batch_size'; a field of the algorithm's config is written settings.batch_size": {"batch_size": 3},
    "unknown field 'grid.batch_size'; a field of": {"grid": {"batch_size": [3]}},
    "unknown field 'runs[1].sede'; did you mean 'seed'?": {"runs": [{}, {"sede": 3}]},
    "unknown field 'grid.hyper.discount'; the values of hyper train in one program": {"grid": {"hyper.discount": [0.9]}},
    "unknown field 'seed.first': seed has no fields": {"seed.first": 3},
    "unknown field 'total_timesteps': it is called 'steps' here": {**SAC, "total_timesteps": 3},
    "unknown field 'learning_rate'; did you mean 'settings.agent.learning_rate'?": {**SAC, "learning_rate": 3},
    "unknown field 'grid.lr'; did you mean 'settings.agent.learning_rate'?": {**SAC, "grid": {"lr": [3]}},
    "unknown field 'settings.agent.lr'; did you mean 'settings.agent.learning_rate'?": {**SAC, "settings": {"agent.lr": 3}},
    "unknown field 'settings.seeds': it is the field 'seeds' of the run: move it": {**SAC, "settings": {"seeds": 3}},
    "unknown field 'data_digest'": {"data_digest": "x"},
    "a field of grid must be text, got 3": {"grid": {3: [1]}},
    "grid must be a mapping from fields to values, got [1]": {"grid": [1]},
    "grid.seed must be a list of values, got 3": {"grid": {"seed": 3}},
    "grid.env must be a list of values, got []": {"grid": {"env": []}},
    "runs must be a list of mappings": {"runs": {"seed": 3}},
    "runs[0] must be a mapping": {"runs": [3]},
    "runs[0].name must be the name of a folder": {"runs": [{"name": "../up"}]},
    "two runs are called twin": {"runs": [{"name": "twin"}, {"name": "twin", "seed": 2}]},
    "two runs are the same: ": {**SAC, "grid": {"seed": [0, 0]}},
    "settings must be a mapping": {"settings": 3},
    "hyper must be a mapping": {"hyper": ["discount"]},
    "a sweep has at most 10,000 runs, this would have 40,000": {"grid": {f: list(range(200)) for f in ("seed", "steps")}},
    "out must be the name of a folder": {**SAC, "out": 3},
    # What becomes of a run is seen when it is checked.
    "algorithm is missing": {"env": "pendulum"},
    "env is missing": {"algorithm": "sac"},
    "algorithm must be text, got ['sac']": {**SAC, "algorithm": ["sac"]},
    "unknown algorithm 'sca'; did you mean 'sac'?": {**SAC, "algorithm": "sca"},
    "unknown task 'pendulm'; did you mean 'pendulum'?": {**SAC, "env": "pendulm"},
    "unknown preset 'big'": {**SAC, "preset": "big"},
    "unknown field 'settings.batch'; did you mean 'settings.batch_size'?": {**SAC, "settings": {"batch": 3}},
    "batch_size must be a whole number, got 'big'": {**SAC, "settings": {"batch_size": "big"}},
    "agent.hidden must be a list, got 64": {**SAC, "grid": {"settings.agent.hidden": [64, [64]]}},
    "steps must be at least 1, got 0": {**SAC, "steps": 0},
    "epoch_steps must be a multiple of 7": {**SAC, "settings": {"num_envs": 7}},
    "seeds must be a whole number, got None": {**SAC, "seeds": None, "hyper": {"discount": [0.9, 0.8]}},
    "unknown hyper 'real_ratio' of sac": {**SAC, "hyper": {"real_ratio": [0.1]}},
    "hyper.discount must be a list of numbers, got ['high']": {**SAC, "hyper": {"discount": ["high"]}},
    "hyper.discount must be a list of numbers, got []": {**SAC, "hyper": {"discount": []}},
    "hyper.discount must be a list of numbers, got [True]": {**SAC, "hyper": {"discount": [True]}},
    "hyper.discount contains the same number twice": {**SAC, "hyper": {"discount": [0.9, "9e-1"]}},
    "agent.learning_rate must be above 0, got -1.0": {**SAC, "hyper": {"learning_rate": [1, -1]}},
    "it is the same as sac-pendulum-seed=0": {**SAC, "runs": [{"seed": 0}, {"seed": 0, "seeds": 1}]},
}


@pytest.mark.parametrize("told", REFUSED_FILES)
def test_wrong_files_are_refused(told, tmp_path, monkeypatch):
    if "multiple" not in told:
        # All others are seen before parts are put together, which takes a second.
        monkeypatch.setattr(experts, "build", lambda config: None)
    file = tmp_path / "wrong.yaml"
    held = REFUSED_FILES[told]
    file.write_text(held if isinstance(held, str) else yaml.safe_dump(held))
    with pytest.raises(UserError) as refused:
        sweep = sweep_file.read(file, tmp_path / "out")
        _, wrong = plan.check_all(sweep)
        raise UserError(next(iter(wrong.values())))
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)
    assert sorted(tmp_path.iterdir()) == [file]


def test_the_examples_of_the_docs_are_right(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "sweeps.md").read_text()
    examples = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    found = []
    for i, example in enumerate(examples):
        (tmp_path / f"{i}.yaml").write_text(example)
        sweep = sweep_file.read(tmp_path / f"{i}.yaml")
        runs = [plan.checked(asked, sweep.folder) for asked in sweep.runs]
        found.append([(run.name, run.config.seeds) for run in runs])
    grid = [(f"{algorithm}-pendulum-batch_size={size}", 4) for algorithm in ("sac", "td3") for size in (64, 256)]
    assert found == [[*grid, ("sac-reacher-2d-steps=10000", 4), ("wide", 4)], [("sac-pendulum", 12)]]


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"cannot be read \(No such file"):
        sweep_file.read(tmp_path / "nowhere.yaml")
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\)"):
        sweep_file.read(tmp_path)


def test_the_valid_runs_are_known_beside_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(experts, "build", lambda config: None)
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({**SAC, "grid": {"settings.batch_size": [8, 0, 16]}}))
    runs, wrong = plan.check_all(sweep_file.read(tmp_path / "s.yaml", tmp_path / "out"))
    assert [run.config.settings.batch_size for run in runs] == [8, 16]
    assert wrong == {"sac-pendulum-batch_size=0": "batch_size must be at least 1, got 0"}


def test_what_is_alike_but_for_the_seed_is_built_once(tmp_path, monkeypatch):
    built = []
    monkeypatch.setattr(experts, "build", lambda config: built.append(config.seed))
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({**SAC, "grid": {"seed": [0, 1, 2], "settings.batch_size": [8, 9]}}))
    runs, _ = plan.check_all(sweep_file.read(tmp_path / "s.yaml", tmp_path / "out"))
    assert len(runs) == 6 and len(built) == 2


def begin(run, traced=None):
    """The folder that a run leaves after its first checkpoint."""
    (run.path / "checkpoints" / "00000000").mkdir(parents=True)
    folder = programs.RunFolder(run.path)
    folder.write_config(programs.to_dict(run.config))
    (run.path / "environment.json").write_text(json.dumps({"hyper": run.hyper if traced is None else traced}))


def test_a_run_that_was_begun_otherwise_is_refused(tmp_path):
    hyper = {"discount": [0.9, 0.99]}
    run = run_of({**SAC, "hyper": hyper}, tmp_path)
    sweep_runs.check_same(run)
    begin(run, {"discount": [float(np.float32(x)) for x in (0.9, 0.99)]})
    sweep_runs.check_same(run)
    for change, told in [
        ({"steps": 3000}, "was started with steps 20000 and the sweep asks for 3000"),
        ({"settings": {"agent.hidden": [8]}}, r"was started with settings.agent.hidden \[256, 256\]"),
        ({"hyper": {"discount": [0.9, 0.98]}}, "other values of hyper discount"),
        ({"hyper": {"learning_rate": [1e-3, 1e-2]}}, "other values of hyper discount"),
    ]:
        with pytest.raises(UserError, match=told):
            sweep_runs.check_same(run_of({**SAC, "hyper": hyper, **change}, tmp_path))
    with pytest.raises(UserError, match="and the sweep asks for"):
        sweep_runs.check_same(run_of(SAC, tmp_path))


def test_a_finished_run_is_continued_to_more_steps(tmp_path):
    run, more = (run_of({**SAC, "steps": steps}, tmp_path) for steps in (2000, 4000))
    begin(run)
    (run.path / "checkpoints" / "00002000").mkdir()
    sweep_runs.check_same(more)
    found = status.look(run.path)
    assert found.ended and [status.has_ended(found, one.config.total_steps) for one in (run, more)] == [True, False]
    assert launching.share_of(SweepFolder(tmp_path), run.path.name, 4000) == 0.5
    job = launching.Job(run.path.name, (), tmp_path / "log", 4000)
    assert launching.outcome(SweepFolder(tmp_path), job, -9, stopping=False) == (
        "died",
        "killed by SIGKILL (out of memory?)",
    )
    reached = found._replace(env_steps=1000)
    assert status.has_ended(reached, 4000), "it has reached its return, or has no healthy seed"


def test_a_folder_of_something_else_is_refused_and_kept(tmp_path):
    run = run_of(SAC, tmp_path)
    run.path.mkdir()
    (run.path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"is in use \(it has thesis.tex\)"):
        sweep_runs.check_same(run)


class Calls:
    """What `sweep_runs.work` asks of the runner."""

    def __init__(self, monkeypatch):
        self.made = []
        monkeypatch.setattr(sweep_runs.runner, "train", lambda *args, **more: self.called("train", args, more))
        monkeypatch.setattr(
            sweep_runs.runner, "resume", lambda path, steps, log, **more: self.called("resume", path, steps, *log)
        )

    def called(self, *what):
        self.made.append(what)
        config = programs.configure("sac", "pendulum")
        return Result([], None, lambda state: None, envs.make("pendulum"), config, None, 0, {})


def test_a_run_goes_on_where_it_has_a_checkpoint(tmp_path, monkeypatch):
    calls, run = Calls(monkeypatch), run_of(SAC, tmp_path)
    begin(run)
    sweep_runs.work(run, Progress.silent())
    assert calls.made == [("resume", run.path, 20_000)]


@pytest.mark.parametrize("log", ["tensorboard", ["tensorboard"]])
def test_loggers_are_a_field_that_may_change_between_sweeps(log, tmp_path, monkeypatch):
    calls = Calls(monkeypatch)
    begin(run_of(SAC, tmp_path))
    run = run_of({**SAC, "log": log}, tmp_path)
    sweep_runs.check_same(run)
    sweep_runs.work(run, Progress.silent())
    assert calls.made == [("resume", run.path, 20_000, "tensorboard")]


def test_a_run_that_died_before_its_first_checkpoint_begins_anew(tmp_path, monkeypatch):
    calls, run = Calls(monkeypatch), run_of({**SAC, "hyper": {"discount": [0.9, 0.8]}}, tmp_path)
    begin(run)
    (run.path / "checkpoints" / "00000000").rename(run.path / "checkpoints" / ".partial-1")
    (run.path / ".lock").touch()
    (run.path / ".config.yaml.partial-3").touch()
    sweep_runs.work(run, Progress.silent())
    ((what, args, more),) = calls.made
    assert (what, args, more["out"], more["hyper"]) == ("train", ("sac", "pendulum"), run.path, {"discount": [0.9, 0.8]})
    assert not run.path.exists(), "what was left is gone"


def test_a_run_that_lost_its_checkpoints_is_not_begun_anew(tmp_path, monkeypatch):
    calls, run = Calls(monkeypatch), run_of(SAC, tmp_path)
    begin(run)
    (run.path / "checkpoints" / "00000000").rmdir()
    (run.path / "metrics.jsonl").write_text('{"epoch": 1}\n')
    sweep_runs.work(run, Progress.silent())
    assert calls.made == [("resume", run.path, 20_000)], "which says that there is no checkpoint"
    assert (run.path / "metrics.jsonl").exists()


def test_a_run_waits_for_the_process_that_had_it(tmp_path, monkeypatch):
    calls, run = Calls(monkeypatch), run_of(SAC, tmp_path)
    begin(run)
    answers = [True, True, False]
    monkeypatch.setattr(RunFolder, "is_locked", lambda self: answers.pop(0))
    sweep_runs.work(run, Progress.silent())
    assert not answers and len(calls.made) == 1
