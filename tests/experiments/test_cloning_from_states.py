"""The study of cloning from states runs."""

import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "experiments" / "cloning_from_states.py"


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("cloning_from_states", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an_expert_that_was_interrupted_is_resumed(script, tmp_path, monkeypatch):
    calls = []

    def train(*args, out, **kwargs):
        calls.append("train")
        out.mkdir()

    monkeypatch.setattr(script.jaxmbrl, "train", train)
    monkeypatch.setattr(script.jaxmbrl, "resume", lambda *args, **kwargs: calls.append("resume"))
    for given in ([], [], ["--expert", str(tmp_path / "expert")]):
        script.main(["--seeds", "0", "--out", str(tmp_path), *given])
    assert calls == ["train", "resume"]


@pytest.mark.slow
def test_it_runs(script, tmp_path):
    found = script.main(["--quick", "--seeds", "2", "--out", str(tmp_path)])
    told = json.loads((tmp_path / "cloning-from-states.json").read_text())["seeds"]
    assert len(told) == len(found) == 2
    assert all(0 < of["inverse"]["error"] < 1 and of["from states"] < 0 for of in told)
