"""The study of planning for several agents runs."""

import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "experiments" / "joint_policy.py"


@pytest.mark.slow
def test_it_runs(tmp_path):
    spec = importlib.util.spec_from_file_location("joint_policy", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    found = script.main(["--quick", "--out", str(tmp_path)])
    told = json.loads((tmp_path / "joint-policy.json").read_text())["cases"]
    assert told.keys() == found.keys() >= {"joint", "in turn, 3", "independent", "simulator", "random"}
    assert all(len(case["returns"][0]) == 2 for case in told.values())
    assert (tmp_path / "joint-policy.png").exists()
