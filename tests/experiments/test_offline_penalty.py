"""The study of MOPO's penalty runs."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "experiments" / "offline_penalty.py"


@pytest.mark.slow
def test_it_runs(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("offline_penalty", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    words = ["--quick", "--tasks", "pendulum", "--out", str(tmp_path)]
    found = script.main(words)["tasks"]["pendulum"]
    told = json.loads((tmp_path / "offline-penalty.json").read_text())["tasks"]["pendulum"]
    assert told == found and set(told["returns"]) == {"random", "medium", "medium-replay"}
    for quality, cases in told["returns"].items():
        assert set(cases) == set(told["scores"][quality]) == {"cloning", "SAC", "lambda 0", "lambda 5", "MOReL"}
        assert all(len(seeds) == 2 and -2500 < np.mean(seeds) < 0 for seeds in cases.values())
    assert (tmp_path / "offline-penalty.png").stat().st_size > 10_000
    assert script.main(words)["tasks"]["pendulum"]["returns"] == told["returns"], "nothing is measured again"
