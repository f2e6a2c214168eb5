"""The study of cloning from states runs."""

import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "experiments" / "cloning_from_states.py"


@pytest.mark.slow
def test_it_runs(tmp_path):
    spec = importlib.util.spec_from_file_location("cloning_from_states", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    found = script.main(["--quick", "--seeds", "2", "--out", str(tmp_path)])
    told = json.loads((tmp_path / "cloning-from-states.json").read_text())["seeds"]
    assert len(told) == len(found) == 2
    assert all(0 < of["inverse"]["error"] < 1 and of["from states"] < 0 for of in told)
