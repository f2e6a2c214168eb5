"""The study of dreams' temperature: the numbers of a run, the table, and that it runs."""

import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "experiments" / "dream_temperature.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("dream_temperature", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(seeds=2):
    """An epoch of random actions, that of the search, and one of the controller."""
    for seed in range(seeds):
        yield {"seed": seed, "env_steps": 100}
    for seed in range(seeds):
        yield {"seed": seed, "env_steps": 200, "policy/dreamt": 50.0 + seed, "policy/dreamt_at_end": 100.0 + 2 * seed}
    for seed in range(seeds):
        yield {"seed": seed, "env_steps": 300, "train/return": 3.0}


def test_the_numbers_of_a_run(script):
    found = script.of_run(list(rows()), [7.0, 9.0])
    assert found == {"generations": [50.0, 51.0], "dream": [100.0, 102.0], "task": [7.0, 9.0]}
    with pytest.raises(AssertionError, match="one search"):
        script.of_run([*rows(), *rows()], [7.0, 9.0])


def test_table_and_picture(script, tmp_path):
    case = script.of_run(list(rows()), [7.0, 9.0])
    found = {"0.1": case, "1.0": case | {"task": [150.0, 150.0]}}
    lines = script.table(found).splitlines()
    assert lines[2] == "| 0.1 | 50.5 | 101.0 | 8.0 | 8.0 [7.0, 9.0] | 7.0, 9.0 |"
    assert lines[3] == "| 1.0 | 50.5 | 101.0 | 150.0 | 150.0 [150.0, 150.0] | 150.0, 150.0 |"
    script.draw(found, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


@pytest.mark.slow
def test_it_runs_and_does_not_run_twice(script, tmp_path):
    first = script.main(["--quick", "--out", str(tmp_path)])
    made = {path: path.stat().st_mtime for path in tmp_path.glob("*/metrics.jsonl")}
    assert len(made) == 2
    again = script.main(["--quick", "--out", str(tmp_path)])
    assert made == {path: path.stat().st_mtime for path in made}
    assert again["by_temperature"] == first["by_temperature"]
    written = json.loads((tmp_path / "dream-temperature.json").read_text())["by_temperature"]
    # The same vision and memory dream at both temperatures; only the dreams differ.
    assert written["0.1"]["generations"] != written["1.0"]["generations"] and len(written["0.1"]["task"]) == 2
