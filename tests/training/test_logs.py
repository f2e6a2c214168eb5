"""Loggers, callbacks and the return at which a run ends."""

import json
import math
import shutil
import struct
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest
from command_line import TIMINGS, call, options, untimed
from event_files import fields, read

import jaxmbrl
from jaxmbrl.core.config import UserError
from jaxmbrl.sweeping import status
from jaxmbrl.training import checkpoint, curve, logs, programs, targets, wandb_log
from jaxmbrl.training.loggers import Loggers
from jaxmbrl.training.logs import Described
from jaxmbrl.training.run_folder import RunFolder
from jaxmbrl.training.tensorboard_log import TensorBoardLog
from jaxmbrl.training.wandb_log import WandbLog

SETTINGS = {"batch_size": 8, "replay_capacity": 100, "warmup_steps": 20, "epoch_steps": 20, "eval_every": 1}
GIVEN = {"seeds": 2, "seed": 3, "eval_episodes": 1, "settings": SETTINGS}
NOT_SCALARS = {"epoch", "env_steps", "seed"}
FOLDERS = ("seed-3", "seed-4", "mean")

pytestmark = pytest.mark.usefixtures("compile_cache")
needs_tensorboard = pytest.mark.skipif(sys.modules.get("tensorboardX", 0) is None, reason="needs tensorboardX")


class Own:
    """A logger of a user."""

    def __init__(self):
        self.epochs, self.closed = [], 0

    def write(self, rows):
        assert not self.closed
        self.epochs.append(rows)

    def close(self):
        self.closed += 1


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """A run of 4 epochs by the command line, with TensorBoard and a checkpoint every 2 epochs: its folder."""
    pytest.importorskip("tensorboardX")
    run = tmp_path_factory.mktemp("runs") / "run"
    fields = ["--seeds", 2, "--seed", 3, "--eval-episodes", 1, "--steps", 80, "--checkpoint.every", 2, "--out", run]
    code, _, err = call("train", "linear", "--env", "pendulum", *options(SETTINGS), *fields, "--log", "tensorboard")
    assert (code, err) == (0, "")
    return run


@pytest.fixture(scope="module", autouse=True)
def no_picture():
    """The picture of a run is not drawn, which takes as long as a run here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curve, "draw", lambda *arguments: None)
        yield


def copied(run, path):
    shutil.copytree(run, path)
    return path


def seen(run, folder):
    """What the only event file of a folder holds that is not empty."""
    (file,) = [path for path in (run / "tensorboard" / folder).iterdir() if path.stat().st_size]
    return read(file)


def expected(run):
    """The points of each folder, by the rows of metrics.jsonl: {(metric, step): value}."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found: dict[str, dict] = {folder: {} for folder in FOLDERS}
    for row in rows:
        for name in set(row) - NOT_SCALARS:
            found[f"seed-{row['seed']}"][name, row["env_steps"]] = row[name]
    for point in found["seed-3"]:
        found["mean"][point] = np.mean([found[folder][point] for folder in FOLDERS[:2]])
    return found


def assert_points_are_those_of_the_rows(run):
    for folder, points in expected(run).items():
        written = seen(run, folder).points
        assert len(written) == len(points) > 20, "each point once"
        for name, step, value, _ in written:
            assert value == pytest.approx(points[name, step], rel=1e-6), (folder, name, step)


def test_event_files_hold_the_rows_of_each_seed_and_their_mean(logged):
    assert {path.name for path in (logged / "tensorboard").iterdir()} == set(FOLDERS)
    assert_points_are_those_of_the_rows(logged)
    for folder in FOLDERS:
        found = seen(logged, folder)
        assert found.version == "brain.Event:2" and found.restarts == [0]
        times = [time for *_, time in found.points]
        assert times == sorted(times) and times[0] > 1.7e9, "seconds since 1970"


def test_event_files_hold_the_settings(logged):
    for folder, seed in (("seed-3", 3), ("seed-4", 4)):
        start = seen(logged, folder).plugins["_hparams_/session_start_info"]
        assert b"batch_size" in start and b"learning_rate" in start and b"pendulum" in start
        assert b"seed\x12\t\x11" + np.float64(seed).tobytes() in start, "the seed as a number"
        assert "_hparams_/session_end_info" in seen(logged, folder).plugins
    table = seen(logged, "mean").plugins["settings/text_summary"].decode(errors="replace")
    assert "| batch_size | 8 |" in table and "| seed | [3, 4] |" in table and "| algorithm | linear |" in table


@pytest.mark.promises
def test_a_killed_run_goes_on_without_duplicated_or_lost_points(called_back, logged):
    run = called_back[0]
    assert_points_are_those_of_the_rows(run)
    orders = [[point[:2] for point in seen(path, "seed-3").points if point[0] not in TIMINGS] for path in (run, logged)]
    assert orders[0] == orders[1]
    assert seen(run, "seed-3").restarts == [0], "a reader that still knows the earlier file forgets its points"


@pytest.mark.promises
def test_a_run_that_was_not_logged_is_logged_from_its_start_when_resumed(logged, tmp_path):
    run = copied(logged, tmp_path / "run")
    shutil.rmtree(run / "tensorboard")
    jaxmbrl.resume(run, log=())
    assert not (run / "tensorboard").exists() and RunFolder.open(run).read_config()["log"] == []
    jaxmbrl.resume(run, log="tensorboard")
    assert_points_are_those_of_the_rows(run)
    assert RunFolder.open(run).read_config()["log"] == ["tensorboard"]


class FakeRun:
    """One run of a `wandb` that is not there."""

    def __init__(self, given):
        self.given, self.points, self.finished = given, [], 0
        self.starting_step, self.offline = 0, given.get("mode") == "offline"

    def log(self, values, step):
        self.points.append((step, values))

    def finish(self):
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch):
    """A `wandb` without a network: the runs that are made, and what the next `init` does."""
    made, plan = [], {"steps": 0, "error": None}

    class Settings:
        def __init__(self, **given):
            self.given = given

    def init(**given):
        if plan["error"] is not None and given.get("mode") != "offline":
            raise plan["error"]
        made.append(FakeRun(given))
        made[-1].starting_step = plan["steps"]
        return made[-1]

    module = types.ModuleType("wandb")
    module.init, module.Settings = init, Settings
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return made, plan


def epoch_of(number):
    return [row(number, 0, x=float(number)), row(number, 1, x=-float(number))]


def steps_of(runs):
    return [[step for step, _ in run.points] for run in runs]


def test_wandb_has_a_run_for_each_seed_in_a_group(wandb, tmp_path):
    made, _ = wandb
    logger = WandbLog(described(tmp_path), pytest.fail)
    logger.write(epoch_of(1))
    logger.close()
    assert [run.points for run in made] == [[(10, {"env_steps": 10, "wall_time": 1.0, "x": x})] for x in (1.0, -1.0)]
    assert [run.finished for run in made] == [1, 1]
    for seed, run in enumerate(made):
        assert (run.given["project"], run.given["group"], run.given["dir"]) == ("jaxmbrl", tmp_path.name, str(tmp_path))
        assert run.given["config"] == {"seed": seed} and run.given["resume"] == "allow"
        assert run.given["name"] == f"{tmp_path.name} seed {seed}"
    assert len({run.given["id"] for run in made}) == 2


def test_a_resumed_run_continues_its_wandb_runs_after_their_last_point(wandb, tmp_path):
    made, plan = wandb
    WandbLog(described(tmp_path), pytest.fail).write(epoch_of(1))
    plan["steps"] = 11
    logger = WandbLog(described(tmp_path, rows=[*epoch_of(1), *epoch_of(2)]), pytest.fail)
    for number in (2, 3):
        logger.write(epoch_of(number))
    assert [run.given["id"] for run in made[2:]] == [run.given["id"] for run in made[:2]]
    assert steps_of(made) == [[10], [10], [20, 30], [20, 30]]


def test_offline_nothing_is_logged_twice(wandb, tmp_path, monkeypatch):
    made, _ = wandb
    monkeypatch.setenv("WANDB_MODE", "offline")
    logger = WandbLog(described(tmp_path), pytest.fail)
    for number in (1, 2):
        logger.write(epoch_of(number))
    # Killed, and resumed from a checkpoint after the first epoch.
    logger = WandbLog(described(tmp_path, rows=epoch_of(1)), pytest.fail)
    for number in (2, 3):
        logger.write(epoch_of(number))
    assert steps_of(made) == [[10, 20], [10, 20], [30], [30]]
    assert all(run.given["mode"] == "offline" for run in made)


def test_without_a_network_the_run_is_logged_offline_and_that_is_told_once(wandb, tmp_path):
    (made, plan), said = wandb, []
    plan["error"] = ConnectionError("no route")
    logger = WandbLog(described(tmp_path, rows=epoch_of(1)), said.append)
    logger.write(epoch_of(2))
    assert len(said) == 1 and said[0].startswith("W&B cannot be used online (ConnectionError: no route); the run is logged")
    assert [run.offline for run in made] == [True, True] and steps_of(made) == [[10, 20], [10, 20]]


def test_the_end_of_a_run_does_not_wait_long_for_an_upload(wandb, tmp_path, monkeypatch):
    said, forever = [], threading.Event()
    monkeypatch.setattr(wandb_log, "FINISH_SECONDS", 0.05)
    monkeypatch.setattr(FakeRun, "finish", lambda self: forever.wait(60))
    WandbLog(described(tmp_path), said.append).close()
    forever.set()
    assert said == [f"W&B has not received everything; 'wandb sync' uploads what is in {tmp_path / 'wandb'}"]


def described(path, seeds=(0, 1), rows=()):
    return Described(path, "title", {seed: {"seed": seed} for seed in seeds}, rows, 1.8e9)


def row(epoch, seed, **metrics):
    return {"epoch": epoch, "env_steps": 10 * epoch, "seed": seed, "wall_time": float(epoch), **metrics}


@needs_tensorboard
def test_what_a_full_disk_refuses_is_written_later(tmp_path):
    logger = TensorBoardLog(described(tmp_path))
    logger.write([row(1, 0, x=1.0), row(1, 1, x=2.0)])
    folder, aside = tmp_path / "tensorboard" / "seed-0", tmp_path / "aside"
    folder.rename(aside)
    with pytest.raises(OSError):
        logger.write([row(2, 0, x=3.0), row(2, 1, x=4.0)])
    aside.rename(folder)
    logger.write([row(3, 0, x=5.0), row(3, 1, x=6.0)])
    points = {name: [p[1:3] for p in seen(tmp_path, name).points if p[0] == "x"] for name in ("seed-0", "seed-1", "mean")}
    assert points == {
        "seed-0": [(10, 1.0), (20, 3.0), (30, 5.0)],
        "seed-1": [(10, 2.0), (20, 4.0), (30, 6.0)],
        "mean": [(10, 1.5), (20, 3.5), (30, 5.5)],
    }


@needs_tensorboard
def test_a_removed_run_folder_is_not_created_again(tmp_path):
    with pytest.raises(FileNotFoundError):
        TensorBoardLog(described(tmp_path / "gone", rows=[row(1, 0, x=1.0), row(1, 1, x=2.0)]))
    assert not (tmp_path / "gone").exists()


@needs_tensorboard
def test_a_frozen_seed_is_marked_and_left_out_of_the_mean(tmp_path):
    TensorBoardLog(described(tmp_path, rows=[row(1, 0, x=1.0), row(1, 1, frozen=True)]))
    points = {name: [p[:3] for p in seen(tmp_path, name).points] for name in ("seed-1", "mean")}
    assert points["seed-1"] == [("wall_time", 10, 1.0), ("frozen", 10, 1.0)]
    assert points["mean"] == [("wall_time", 10, 1.0), ("x", 10, 1.0)]


@needs_tensorboard
def test_one_seed_has_no_mean(tmp_path):
    TensorBoardLog(described(tmp_path, seeds=(7,), rows=[row(1, 7, x=1.0)]))
    assert [path.name for path in (tmp_path / "tensorboard").iterdir()] == ["seed-7"]
    assert "settings/text_summary" in seen(tmp_path, "seed-7").plugins


def test_settings_by_seed_have_traced_hyperparameters():
    config = programs.configure("linear", "pendulum", seeds=2, seed=5)
    found = programs.settings_by_seed(config, {"learning_rate": [0.1, 0.2]})
    assert [found[seed]["learning_rate"] for seed in (5, 6)] == [0.1, 0.2]
    assert [found[seed]["seed"] for seed in (5, 6)] == [5, 6]
    assert found[5]["checkpoint.keep"] == 3 and found[5]["algorithm"] == "linear"
    assert config.settings.learning_rate == 1e-3, "the config is not changed"


def test_a_logger_that_fails_warns_once_and_the_others_go_on():
    said, own = [], Own()

    class Full(Own):
        def write(self, rows):
            raise OSError(28, "No space left on device")

        close = write

    loggers = Loggers(said.append)
    loggers.open((), (Full(), own), lambda: None)
    for epoch in (1, 2):
        loggers.write([row(epoch, 0)])
    own.epochs[0][0]["seed"] = 9
    loggers.close()
    loggers.close()
    assert said == ["log 'Full 0' failed (OSError: [Errno 28] No space left on device); training continues"]
    assert [rows[0]["epoch"] for rows in own.epochs] == [1, 2] and own.closed == 1


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_is_told_before_anything_is_written(name, tmp_path, monkeypatch):
    package = {"tensorboard": "tensorboardX", "wandb": "wandb"}[name]
    monkeypatch.setitem(sys.modules, package, None)
    code, said, err = call("train", "linear", "--env", "pendulum", "--log", name, "--out", tmp_path / "run")
    assert (code, said) == (2, "")
    assert err == f"jaxmbrl: log '{name}': {package} is not installed: pip install 'jaxmbrl[{name}]'\n"
    assert not (tmp_path / "run").exists()


def test_a_run_is_evaluated_without_the_packages_of_its_loggers(logged, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    assert math.isfinite(jaxmbrl.evaluate(logged, 1).mean)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"log": "tensorbord"}, r"log\[0\] must be 'tensorboard' or 'wandb', got 'tensorbord'"),
        ({"log": ("wandb", "wandb")}, "log must name each logger once, got wandb wandb"),
        ({"log": (3,)}, r"log must be 'tensorboard' or 'wandb', or an object with write\(rows\) and close\(\), got 3"),
        ({"log": Own}, "or an object with write"),
        ({"log": "tensorboard"}, "log 'tensorboard' writes into the folder of a run: give out"),
        ({"callback": 3}, "callback must be a function of the rows of an epoch, got 3"),
        ({"stop_at_return": math.inf}, "stop_at_return must be a finite number, got inf"),
        ({"stop_at_return": "high"}, "stop_at_return must be a finite number, got 'high'"),
    ],
)
def test_wrong_arguments_are_told(given, message):
    if given.get("log") == "tensorboard":
        pytest.importorskip("tensorboardX")
    with pytest.raises(UserError, match=message):
        jaxmbrl.train("linear", "pendulum", **GIVEN, **given)


@pytest.fixture(scope="module")
def called_back(logged, tmp_path_factory):
    """A run like `logged` in three sessions. In the first its callback returns False after epoch 2, in the second it raises
    an error after epoch 3. The third begins as if the second was killed before its checkpoint. Returns the folder; the
    result and the state of the first; the newest checkpoint of the second; the result of the third; and of each session the
    logger and the rows that the callback received."""
    run, loggers, called = tmp_path_factory.mktemp("runs") / "run", [Own(), Own(), Own()], [[], [], []]

    def stops(rows):
        called[0].append([dict(row) for row in rows])
        rows.clear()
        return np.False_ if len(called[0]) == 1 else False

    def fails(rows):
        called[1].append(rows)
        raise ZeroDivisionError("mine")

    fields = {"out": run, "checkpoint": {"every": 10}, "steps": 80}
    log = "tensorboard"
    first = jaxmbrl.train("linear", "pendulum", **fields, callback=stops, log=(log, loggers[0]), **GIVEN)
    state = status.look(run).state
    with pytest.raises(ZeroDivisionError, match="mine"):
        jaxmbrl.resume(run, callback=fails, log=[log, loggers[1]])
    saved = checkpoint.steps(run / "checkpoints")[-1]
    shutil.rmtree(run / "checkpoints" / f"{saved:08}")
    last = jaxmbrl.resume(run, callback=called[2].append, log=(loggers[2], log))
    return run, (first, state), saved, last, loggers, called


def test_own_loggers_and_callbacks_receive_the_rows_of_every_epoch(called_back):
    _, _, _, last, loggers, called = called_back
    assert [own.epochs for own in loggers] == called and [own.closed for own in loggers] == [1, 1, 1]
    assert [row for session in called[::2] for rows in session for row in rows] == last.rows
    epochs = [[[(row["epoch"], row["seed"]) for row in rows] for rows in session] for session in called]
    assert epochs == [[[(e, 3), (e, 4)] for e in session] for session in ([1, 2], [3], [3, 4])]


def test_a_callback_that_returns_false_stops_the_run(called_back):
    run, (first, state), *_ = called_back
    assert [row["epoch"] for row in first.rows] == [1, 1, 2, 2], "only False itself stops a run"
    assert state == "stopped"
    stops = [event["env_steps"] for event in RunFolder.open(run).read_events() if event["kind"] == "stop"]
    assert stops == [40, 60]


def test_an_error_of_a_callback_is_passed_on_after_saving(called_back):
    run, _, saved, *_ = called_back
    assert saved == 60
    assert [e["error"] for e in RunFolder.open(run).read_events() if "error" in e] == ["ZeroDivisionError: mine"]


def test_a_run_stopped_by_its_callback_goes_on_as_without_it(called_back, logged):
    assert untimed(called_back[3].rows) == untimed(RunFolder.open(logged).read_metrics())


def test_a_run_ends_when_its_return_reaches_the_target(logged, tmp_path):
    rows = RunFolder.open(logged).read_metrics()
    means = [np.mean([row["eval/return"] for row in rows if row["epoch"] == epoch]) for epoch in (1, 2, 3, 4)]
    run = copied(logged, tmp_path / "run")
    # The newest return, of epoch 4, is compared when the run is resumed.
    target = float(means[3]) - 1.0
    words = ["--steps", 200, "--log", "--stop-at-return", target]
    code, said, err = call("train", "--resume", run, *words)
    assert (code, err) == (0, "")
    assert f"the run is finished, at 80 of 200 steps: eval/return reached {means[3]:.1f}" in said
    assert "--stop-at-return None" in said
    found = status.look(run)
    assert (found.state, found.ended, found.env_steps, found.total_steps) == ("finished", True, 80, 200)
    assert programs.changed(programs.read(RunFolder.open(run)), {}, {"stop_at_return": None}).stop_at_return is None


@pytest.mark.promises
def test_a_run_goes_on_with_a_higher_target(logged, tmp_path):
    run = copied(logged, tmp_path / "run")
    code, said, _ = call("train", "--resume", run, "--steps", 100, "--stop-at-return", 0.5)
    assert code == 0 and "resuming at 80 of 100 steps" in said and len(RunFolder.open(run).read_metrics()) == 10


def test_a_run_that_reaches_its_target_while_training_says_so(tmp_path):
    given = ["--seeds", 2, "--seed", 3, "--eval-episodes", 1, "--steps", 80, "--out", tmp_path / "run"]
    code, said, err = call("train", "linear", "--env", "pendulum", *options(SETTINGS), *given, "--stop-at-return", "-1e4")
    assert (code, err) == (0, "")
    assert "(mean over seeds; stop_at_return is -10000): training ends at 20 steps\n" in said
    assert checkpoint.steps(tmp_path / "run" / "checkpoints")[-1] == 20
    assert status.look(tmp_path / "run").state == "finished"


def config(**fields):
    given = {"stop_at_return": 10.0, "seeds": 2, "steps": 100, "settings": {**SETTINGS, **fields}}
    return programs.configure("linear", "pendulum", **given)


def returns(metric, *values):
    """The rows of one epoch; None for a frozen seed, NaN for one without a value."""
    made = []
    for seed, value in enumerate(values):
        known = {} if value is None or math.isnan(value) else {metric: value}
        made.append(row(1, seed, **known, **({"frozen": True} if value is None else {})))
    return made


NONE = float("nan")


@pytest.mark.parametrize(
    ("every", "epochs", "value"),
    [
        (1, [("eval/return", 4.0, 16.0)], 10.0),
        (1, [("eval/return", 4.0, 15.9)], None),
        (1, [("eval/return", None, 12.0)], 12.0),
        (1, [("eval/return", None, None)], None),
        (1, [("train/return", 40.0, 40.0)], None),
        (1, [("eval/return", 40.0, 40.0), ("eval/return", NONE, 40.0)], None),
        (1, [("eval/return", 40.0, 40.0), ("train/return", 1.0, 1.0)], None),
        (0, [("train/return", 4.0, 16.0)], 10.0),
        (0, [("train/return", 4.0, NONE), ("train/return", NONE, 16.0)], 10.0),
        (0, [("train/return", NONE, 16.0)], None),
        (9, [("train/return", 4.0, 16.0)], 10.0),
    ],
    ids=str,
)
def test_the_return_that_is_compared_with_the_target(every, epochs, value):
    rows = [row for metric, *values in epochs for row in returns(metric, *values)]
    found = targets.reached(config(eval_every=every), rows)
    assert (None if found is None else found.value) == value


def test_a_target_without_a_return_is_refused(tmp_path):
    rng, rows = np.random.default_rng(0), 60
    arrays = {"observation": (rows, 3), "action": (rows, 1), "reward": (rows,), "next_observation": (rows, 3)}
    ends = {name: np.zeros(rows, bool) for name in ("terminated", "truncated")}
    np.savez(tmp_path / "data.npz", **{name: rng.uniform(-1, 1, shape) for name, shape in arrays.items()}, **ends)
    settings = {**SETTINGS, "eval_every": 0}
    with pytest.raises(UserError, match="stop_at_return needs evaluations when learning from data: set eval_every"):
        jaxmbrl.train("linear", "pendulum", data=tmp_path / "data.npz", settings=settings, stop_at_return=1.0)


def test_names_of_loggers_are_those_of_the_extras():
    import tomllib

    extras = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name, package in logs.PACKAGES.items():
        assert any(requirement.lower().startswith(package.lower()) for requirement in extras[name])


def wandb_records(path):
    """The records of a file of W&B's offline mode: blocks of 32 KiB with records that may continue in the next block, each
    with a checksum, its length and its kind (1 whole, 2 first, 3 middle, 4 last), after a header of 7 bytes."""
    data, at, body = path.read_bytes(), 7, b""
    while at < len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        body += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield body
            body = b""


def wandb_points(path):
    """{step: {metric: value}} of such a file: a field 2 of a record is a point, with items 1 and the step 2."""
    found = {}
    for record in map(fields, wandb_records(path)):
        for point in map(fields, record.get(2, [])):
            (step,) = fields(point[2][0]).get(1, [0])
            assert step not in found, "once"
            found[step] = {(item.get(1) or item[2])[0].decode(): json.loads(item[16][0]) for item in map(fields, point[1])}
    return found


@pytest.mark.promises
def test_real_wandb_offline_holds_the_rows_once_also_after_a_kill(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = tmp_path / "run"
    jaxmbrl.train("linear", "pendulum", steps=60, out=run, log="wandb", checkpoint={"every": 2}, **GIVEN)
    shutil.rmtree(run / "checkpoints" / "00000060")
    jaxmbrl.resume(run, steps=80)
    rows = RunFolder.open(run).read_metrics()
    ids = json.loads((run / "wandb" / "jaxmbrl.json").read_text())["ids"]
    for seed in (3, 4):
        files = sorted(run.glob(f"wandb/offline-run-*/run-{ids[str(seed)]}.wandb"))
        points = [wandb_points(file) for file in files]
        assert [sorted(found) for found in points] == [[20, 40, 60], [80]]
        for row in rows:
            if row["seed"] == seed:
                logged = next(found[row["env_steps"]] for found in points if row["env_steps"] in found)
                same = {name: row[name] for name in row if name not in {*NOT_SCALARS, *TIMINGS}}
                assert {name: logged[name] for name in same} == pytest.approx(same)
                assert logged["env_steps"] == row["env_steps"]
