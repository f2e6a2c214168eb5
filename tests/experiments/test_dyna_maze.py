"""The study of tabular planning in mazes: what is counted, by hand, and that it runs."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "experiments" / "dyna_maze.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("dyna_maze", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cases():
    """Curves that pass all checks."""

    def maze(first):
        return {"steps": [900.0, 100.0, 17.0], "first episode of at most 20 steps": first, "steps of all episodes": 5000.0}

    def changing(last):
        return {"reward": [0.0] * 59 + [last], "deviation": [1.0] * 60}

    def sweeping(dyna, swept):
        both = {"dyna-q": dyna, "prioritized-sweeping": swept}
        return {"shortest path": 14, **{m: {"updates": [n] * 3, "steps": [n // 5] * 3} for m, n in both.items()}}

    return {
        "maze": {"0": maze(29), "5": maze(6), "50": maze(3)},
        "blocking-maze": {"dyna-q": changing(100.0), "dyna-q-plus": changing(131.0)},
        "shortcut-maze": {"dyna-q": changing(300.0), "dyna-q-plus": changing(360.0)},
        "sweeping": {"54": sweeping(2000, 1000)},
        "linear": {name: {"error": [x] * 20} for name, x in zip(("TD", "random", "PWMA", "MG"), (4, 3, 2, 1), strict=True)},
    }


def test_lengths_of_episodes(script):
    ended = np.zeros((12, 2), bool)
    ended[[2, 3, 9], 0] = ended[[0, 5, 11], 1] = True
    assert script.lengths(ended, 3).tolist() == [[3, 1, 6], [1, 5, 6]]
    assert script.lengths(ended, 2).tolist() == [[3, 1], [1, 5]]


def test_checks_pass_and_fail(script):
    assert list(script.checks(cases()).values()) == [True] * 4
    wrong = cases()
    wrong["maze"]["0"]["first episode of at most 20 steps"] = 31
    wrong["blocking-maze"]["dyna-q-plus"]["reward"][-1] = 129.0
    wrong["sweeping"]["54"]["dyna-q"]["updates"] = [1999] * 3
    wrong["linear"]["MG"]["error"][19] = 2.5
    assert list(script.checks(wrong).values()) == [False] * 4


def test_table_and_picture(script, tmp_path):
    text = script.table(cases())
    assert "Dyna maze, n = 5   episodes 1 to 3: 900.0, 100.0, 17.0; at most 20 from 6 on" in text
    assert "54 cells, dyna-q                median of     2,000 updates,       400 steps" in text
    script.draw(cases(), tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


@pytest.mark.slow
def test_it_runs(script, tmp_path):
    found = script.main(["--quick", "--out", str(tmp_path)])
    assert found["maze"]["5"]["steps"][0] > 100 > found["maze"]["5"]["steps"][2]
    updates = {method: found["sweeping"]["54"][method]["updates"] for method in ("dyna-q", "prioritized-sweeping")}
    assert np.median(updates["dyna-q"]) > 2 * np.median(updates["prioritized-sweeping"])
    errors = [found["linear"][name]["error"][19] for name in ("TD", "random", "PWMA", "MG")]
    assert errors == sorted(errors, reverse=True)
    assert json.loads((tmp_path / "dyna-maze.json").read_text())["linear"] == found["linear"]
