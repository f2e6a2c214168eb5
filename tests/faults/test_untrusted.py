"""Files from a stranger: whatever they hold, loading them runs nothing of it."""

import contextlib
import gc
import json
import os
import pickle
import shutil
import zipfile

import jax
import numpy as np
import pytest
from command_line import call, options

import jaxmbrl
from jaxmbrl.core.config import UserError
from jaxmbrl.training import checkpoint, manifest, programs, restoring
from jaxmbrl.training.run_folder import RunFolder

SMALL = {"batch_size": 4, "replay_capacity": 50, "warmup_steps": 20, "epoch_steps": 20, "eval_every": 0}
pytestmark = pytest.mark.usefixtures("compile_cache")


class Trap:
    """What runs a command when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = tmp_path_factory.mktemp("trained") / "run"
    jaxmbrl.train("linear", "pendulum", settings=SMALL, steps=40, out=run)
    return run


@pytest.fixture(scope="module")
def program(trained):
    return programs.build(programs.read(RunFolder.open(trained)))


@pytest.fixture
def run(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def trap(tmp_path):
    """A pickle that leaves a mark where it is loaded; at the end it has not."""
    mark = tmp_path / "mark"
    payload = pickle.dumps(Trap(mark))
    pickle.loads(payload)
    assert mark.exists(), "it does run where it is loaded"
    mark.unlink()
    yield payload
    assert not mark.exists()


def test_no_file_of_a_checkpoint_runs(run, trap, program):
    newest = run / "checkpoints" / f"{checkpoint.steps(run / 'checkpoints')[-1]:08}"
    files = [path for path in newest.rglob("*") if path.is_file()]
    assert len(files) >= 5
    for file in files:
        held = file.read_bytes()
        file.write_bytes(trap)
        _, _, found = restoring.restore(RunFolder.open(run), program, repair=False)
        assert found.step < int(newest.name) and len(found.warnings) == 1
        if file == files[0]:
            code, _, err = call("evaluate", run, "--episodes", 1)
            assert code == 0 and "Traceback" not in err and err.startswith("jaxmbrl: ")
        file.write_bytes(held)


def test_a_checkpoint_whose_digests_fit_its_hostile_files_runs_nothing(run, trap, program):
    """A stranger can write a whole manifest too; what Orbax is then given is still no code."""
    newest = run / "checkpoints" / f"{checkpoint.steps(run / 'checkpoints')[-1]:08}"
    for file in [path for path in (newest / "arrays").rglob("*") if path.is_file()]:
        held = file.read_bytes()
        file.write_bytes(trap)
        forge(newest)
        with contextlib.suppress(UserError):
            restoring.restore(RunFolder.open(run), program, repair=False)
        file.write_bytes(held)
    # Orbax leaves failed tasks behind; Python tells of each when it is collected, which must not happen in another test.
    gc.collect()


def forge(path):
    """Make the manifest true of the files."""
    document = json.loads((path / manifest.MANIFEST).read_text())
    body = document["manifest"]
    body["files"] = {name: manifest.file_entry(path / name) for name in body["files"]}
    document["sha256"] = manifest.body_digest(body)
    (path / manifest.MANIFEST).write_text(json.dumps(document))


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch {mark}']",
        "algorithm: !!python/object/apply:os.system ['touch {mark}']",
        "algorithm: sac\nsettings: !!python/object/new:os.system ['touch {mark}']",
        "algorithm: !!python/name:os.system",
        "algorithm: !!python/module:os",
        "algorithm: $(touch {mark})",
        "algorithm: sac\nenv: gymnasium/os:system",
    ],
)
def test_no_config_runs(text, run, trap, tmp_path):
    text = text.format(mark=tmp_path / "mark")
    (run / "config.yaml").write_text(text)
    (tmp_path / "config.yaml").write_text(text)
    words = [("train", "--resume", run), ("evaluate", run), ("train", "sac", "--config", tmp_path / "config.yaml")]
    for line in words:
        code, out, err = call(*line)
        assert code == 2 and err.count("\n") == 1, (out, err)


def test_no_data_runs(trap, tmp_path):
    rows = 50
    held = {"observation": np.zeros((rows, 3)), "action": np.zeros((rows, 1)), "reward": np.zeros(rows)}
    np.savez(tmp_path / "good.npz", **held, next_observation=np.zeros((rows, 3)), terminated=np.zeros(rows, bool))
    with zipfile.ZipFile(tmp_path / "good.npz") as good:
        members = {name: good.read(name) for name in good.namelist()}
    for name in members:
        with zipfile.ZipFile(tmp_path / "hostile.npz", "w") as file:
            for other, content in members.items():
                file.writestr(other, trap if other == name else content)
        code, _, err = call("fit", "--data", tmp_path / "hostile.npz")
        assert code == 2 and err.count("\n") == 1
    np.savez(tmp_path / "objects.npz", **{**held, "reward": np.array([Trap(tmp_path / "mark")] * rows, object)})
    words = [*options(SMALL), "--data", tmp_path / "objects.npz"]
    assert call("train", "linear", "--env", "pendulum", *words)[0] == 2


def test_no_metrics_and_events_run(run, trap):
    folder = RunFolder.open(run)
    for name in ("metrics.jsonl", "events.jsonl", "environment.json"):
        (run / name).write_bytes(trap)
    code, _, err = call("train", "--resume", run)
    assert code == 2 and err.count("\n") == 1 and "Traceback" not in err
    assert folder.read_environment() == {}


def test_every_changed_byte_is_noticed_or_changes_nothing(run):
    """Over all files of a real run's checkpoint: at least two hundred places, flipped and cut off."""
    folder = run / "checkpoints"
    newest = checkpoint.steps(folder)[-1]
    for step in checkpoint.steps(folder)[:-1]:
        shutil.rmtree(folder / f"{step:08}")
    like = jax.eval_shape(lambda: restoring.newest(run)[1])
    want = [entry["sha256"] for entry in read_manifest(folder / f"{newest:08}")["leaves"]]
    draw, tried, noticed = np.random.default_rng(0), 0, 0
    files = [path for path in (folder / f"{newest:08}").rglob("*") if path.is_file()]
    for file in files:
        held = file.read_bytes()
        places = {0, len(held) - 1, *draw.integers(0, max(len(held), 1), 24).tolist()} if held else set()
        for at in sorted(places):
            flipped = bytearray(held)
            flipped[at] ^= 1 << int(draw.integers(8))
            for damaged in (bytes(flipped), held[:at]):
                file.write_bytes(damaged)
                tried += 1
                try:
                    found = checkpoint.restore(folder, like, repair=False)
                except manifest.CheckpointError:
                    noticed += 1
                else:
                    taken = checkpoint.take(found.state)
                    assert [manifest.digest(x) for x in taken.arrays if x is not None] == want, (file, at)
        file.write_bytes(held)
    assert tried >= 200 and noticed >= 0.9 * tried
    assert checkpoint.restore(folder, like, repair=False).step == newest, "all is as before"


def read_manifest(path):
    return json.loads((path / manifest.MANIFEST).read_text())["manifest"]
