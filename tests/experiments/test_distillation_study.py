"""The study of distillation runs."""

import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "experiments" / "distillation.py"


@pytest.mark.slow
def test_it_runs(tmp_path):
    spec = importlib.util.spec_from_file_location("distillation_study", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    found = script.main(["--quick", "--seeds", "2", "--out", str(tmp_path)])
    told = json.loads((tmp_path / "distillation.json").read_text())
    assert told["cases"].keys() == found.keys() == {"pets", "sac"}
    for case in told["cases"].values():
        assert len(case["dagger"]["per_seed"]) == 2 and case["dagger"]["labels"] == [50, 100]
        # The first round is the same for both.
        assert case["dagger"]["returns"][0] == case["cloning"]["returns"][0]
        assert case["dagger"]["loss before"][0] == case["cloning"]["loss before"][0]
    assert (tmp_path / "distillation.png").exists()
