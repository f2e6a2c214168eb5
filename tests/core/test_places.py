"""Paths as users write them."""

import os
from pathlib import Path

import numpy as np
import pytest

from jaxmbrl.core import places
from jaxmbrl.core.config import UserError
from jaxmbrl.core.places import check_utf8, expanded
from jaxmbrl.core.plain_yaml import read_yaml
from jaxmbrl.data import dataset
from jaxmbrl.report import build, gathering
from jaxmbrl.sweeping import file as sweep_file
from jaxmbrl.sweeping import status
from jaxmbrl.training import checkpoint, run_folder
from jaxmbrl.training.run_folder import RunFolder


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield tmp_path / "home"
    assert list((tmp_path / "here").iterdir()) == [], "nothing is written to a folder called ~"


def test_a_tilde_is_the_home_folder(home):
    assert expanded("~") == home and expanded("~/runs/x") == home / "runs" / "x"
    for path in ("runs/~x", "./~", "~no-such-user-here/x", "x", "."):
        assert expanded(path) == Path(path)


def test_a_path_that_cannot_be_is_refused(monkeypatch):
    with pytest.raises(UserError, match="it has a null character"):
        expanded("a\0b")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(UserError, match=r"^~/x: there is no home folder to replace '~'; set HOME"):
        expanded("~/x")


def test_whoever_takes_a_path_takes_a_tilde(home):
    run = RunFolder.create("~/runs/a")
    run.write_config({"algorithm": "sac", "env": "pendulum", "settings": {"epoch_steps": 10}, "steps": 10})
    assert run.path == home / "runs" / "a" and RunFolder.open("~/runs/a") == run
    assert [found.name for found in status.of_folder("~/runs")] == ["a"]
    assert [found.path for found in gathering.gather(["~/runs"]).runs] == [home / "runs" / "a"]
    assert build.default_file(["~/runs"]) == home / "runs" / "report.html"
    run_folder.write_file(Path("~/page"), b"x")
    assert (home / "page").read_bytes() == b"x"
    (home / "a.yaml").write_text("{algorithm: sac, env: pendulum, out: ~/sweep}")
    assert read_yaml("~/a.yaml")["out"] == "~/sweep"
    assert sweep_file.read("~/a.yaml").folder.path == home / "sweep"
    assert sweep_file.read("~/a.yaml", "~/other").folder.path == home / "other"
    flags = np.zeros(2, bool)
    arrays = {"observation": np.zeros((2, 3)), "action": np.zeros((2, 1)), "next_observation": np.ones((2, 3))}
    np.savez(home / "rows.npz", **arrays, reward=np.zeros(2), terminated=flags)
    loaded = dataset.load("~/rows.npz")
    dataset.check_writable("~/new.npz")
    dataset.save("~/new.npz", loaded.rows, "pendulum")
    with pytest.raises(UserError, match=r"home/new\.npz exists"):
        dataset.check_writable("~/new.npz")


def test_checkpoints_are_kept_in_folders_of_any_utf8_name(tmp_path):
    folder, state = tmp_path / "Läufe für π" / "a b;c'\"$x", {"weights": np.arange(6.0)}
    checkpoint.save(folder, 3, state, {})
    assert np.array_equal(checkpoint.restore(folder, state).state["weights"], np.arange(6.0))


def test_a_folder_whose_name_is_not_utf8_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    """Orbax would only say so after everything is compiled."""
    odd = tmp_path / os.fsdecode(b"l\xe4ufe")
    for function in (RunFolder.create, check_utf8, lambda path: checkpoint.restore(path, {})):
        with pytest.raises(UserError, match=r"cannot hold checkpoints: its name is not UTF-8; rename the folder$"):
            function(odd)
    assert list(tmp_path.iterdir()) == []
    # In a locale whose encoding is another, an umlaut has other bytes, or none.
    monkeypatch.setattr(places.sys, "getfilesystemencoding", lambda: "iso8859-1")
    monkeypatch.setattr(places.os, "fsencode", lambda path: str(path).encode("latin-1"))
    with pytest.raises(
        UserError, match="this process reads names as iso8859-1, and Orbax writes them as UTF-8; set PYTHON"
    ):
        check_utf8("ü")
    check_utf8("u")
