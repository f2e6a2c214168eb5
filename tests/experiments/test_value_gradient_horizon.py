"""The study of value gradients' horizons: what is told of a run, by hand, and that it runs."""

import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "experiments" / "value_gradient_horizon.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("value_gradient_horizon", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows():
    """Two seeds, ten epochs of 100 steps; the last two are the run's last fifth."""
    for epoch in range(1, 11):
        for seed in range(2):
            row = {"env_steps": 100 * epoch, "seed": seed, "agent/actor_gradient_norm": 10.0 * epoch + seed}
            if epoch % 2 == 0:
                row["train/return"] = -epoch
            yield row | {f"gradient/state_{t}": float(epoch * (t + 1)) for t in range(11)}


def test_what_is_told_of_a_run(script):
    told = script.of_run(list(rows()), [3.0, 5.0])
    assert told["norms"] == [95.0, 96.0]
    assert told["state_norms"] == [[9.5 * (t + 1)] * 2 for t in range(11)], "in the order of steps, of which 10 is the last"
    assert told["curve"][:2] == [[200, 0, -2], [200, 1, -2]] and len(told["curve"]) == 10
    assert (told["returns"], told["iqm"]) == ([3.0, 5.0], 4.0)


def test_table_and_picture(script, tmp_path):
    with_states, without = script.of_run(list(rows()), [3.0, 5.0]), {"returns": [1.0], "norms": [2.0], "state_norms": []}
    cases = {"svg": {"0": with_states | {"state_norms": []}, "10": with_states}}
    cases["bptt"] = {"5": without | {"iqm": 1.0, "interval": (1.0, 1.0), "curve": []}}
    lines = script.table(cases).splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["svg,", "0"], ["svg,", "10"], ["bptt,", "5"]]
    assert "9.5" in lines[2] and "104" in lines[2]
    script.draw(cases, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


@pytest.mark.slow
def test_it_runs_and_does_not_run_twice(script, tmp_path):
    first = script.main(["--quick", "--out", str(tmp_path)])
    made = {path: path.stat().st_mtime for path in tmp_path.glob("*/metrics.jsonl")}
    assert len(made) == 3
    again = script.main(["--quick", "--out", str(tmp_path)])
    assert made == {path: path.stat().st_mtime for path in made}
    assert {k: again[k] for k in ("svg", "bptt")} == {k: first[k] for k in ("svg", "bptt")}
    assert json.loads((tmp_path / "value-gradient-horizon.json").read_text())["svg"]["2"]["norms"]
