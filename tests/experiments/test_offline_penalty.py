"""The study of MOPO's penalty runs."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "experiments" / "offline_penalty.py"


@pytest.mark.slow
def test_it_runs(tmp_path):
    spec = importlib.util.spec_from_file_location("offline_penalty", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    found = script.main(["--quick", "--out", str(tmp_path)])
    told = json.loads((tmp_path / "offline-penalty.json").read_text())
    assert told["returns"] == found["returns"] and set(told["returns"]) == {"random", "medium", "medium-replay"}
    for cases in told["returns"].values():
        assert set(cases) == {"cloning", "SAC", "lambda 0", "lambda 5"}
        assert all(len(seeds) == 2 and -2500 < np.mean(seeds) < 0 for seeds in cases.values())
