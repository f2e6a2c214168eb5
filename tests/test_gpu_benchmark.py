"""The benchmark for one device: its processes, time limits and files."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

import jaxmbrl
from jaxmbrl.training import programs

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import gpu  # noqa: E402


def program(*lines: str) -> list[str]:
    return [sys.executable, "-c", "\n".join(lines)]


SAYS = 'print(\'["a", {"x": 1.0}]\', flush=True)'


def test_a_case_that_hangs_or_fails_costs_no_other(monkeypatch):
    monkeypatch.setattr(gpu, "LEAST", 0.0)
    cases = {
        "hangs": (program("import time", SAYS, "time.sleep(60)"), 2.0),
        "fails": (program("import sys", "print('words of a library')", "sys.exit('no memory is left')"), 30.0),
        "ends": (program('print(\'["b", {"y": 2.0}]\')'), 30.0),
    }
    saved = []
    found = gpu.measure_all(cases, time.monotonic() + 60, lambda written: saved.append(json.dumps(written)))
    assert found["results"] == {"a": {"x": 1.0}, "b": {"y": 2.0}}
    assert found["cases"]["hangs"]["ended"] == "time limit of 2 s"
    assert found["cases"]["fails"]["ended"] == "exit code 1"
    assert found["cases"]["fails"]["error"] == "no memory is left"
    assert found["cases"]["ends"]["ended"] == "done"
    assert json.loads(saved[0]) == {"results": {"a": {"x": 1.0}}, "cases": {}}, "saved after the first figure"


def test_it_ends_by_itself_when_the_time_is_over():
    found = gpu.measure_all({"late": (program(SAYS), 30.0)}, time.monotonic() + gpu.MARGIN + 1, lambda written: None)
    assert found == {"results": {}, "cases": {"late": {"ended": "no time was left"}}}


def test_a_case_without_a_limit_gets_the_rest_of_the_time(monkeypatch):
    limits = []
    monkeypatch.setattr(gpu, "collected", lambda command, limit, keep: limits.append(limit) or {"ended": "done"})
    gpu.measure_all({"learn": ([], gpu.CASES["learn"].limit)}, time.monotonic() + 100, lambda written: None)
    assert limits[0] == pytest.approx(100 - gpu.MARGIN, abs=1)


def test_the_first_process_leaves_the_device_to_the_cases(tmp_path):
    lines = (
        "import sys",
        f"sys.path.insert(0, {str(BENCHMARKS)!r})",
        "import gpu",
        f"gpu.main(['--only', 'matmul', '--minutes', '0', '--out', {str(tmp_path / 'gpu.json')!r}])",
        "from jax._src import xla_bridge",
        "sys.exit(xla_bridge.backends_are_initialized())",
    )
    subprocess.run(program(*lines), check=True, capture_output=True)
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert written["cases"] == {"matmul": {"ended": "no time was left"}}
    assert written["environment"]["command"] == "python benchmarks/gpu.py --minutes 0 --scale 1 --only matmul"


@pytest.mark.parametrize("method", gpu.SMOKE)
def test_the_smoke_tests_can_be_begun(method):
    if method in ("muzero",):
        pytest.importorskip("mctx")
    config = programs.configure(method, gpu.SMOKE[method], None, gpu.smoke_settings(method), seeds=2, steps=gpu.SMOKE_STEPS)
    assert programs.build(config).total_steps >= gpu.SMOKE_STEPS


def test_an_error_of_the_training_is_not_lost(monkeypatch):
    def fails(*given, **more):
        raise RuntimeError("RESOURCE_EXHAUSTED")

    monkeypatch.setattr(jaxmbrl, "train", fails)
    with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED"):
        list(gpu.learn(0.001))


@pytest.mark.slow
def test_each_case_runs_on_a_cpu(tmp_path):
    out = tmp_path / "gpu.json"
    gpu.main(["--scale", "0.001", "--minutes", "30", "--out", str(out)])
    written = json.loads(out.read_text())
    assert {name: case["ended"] for name, case in written["cases"].items()} == dict.fromkeys(gpu.CASES, "done")
    smoke = {title: figures for title, figures in written["results"].items() if title.startswith("smoke")}
    assert len(smoke) == len(gpu.SMOKE)
    for figures in smoke.values():
        assert figures["frozen seeds"] == 0
        assert figures["not finite"] == 0
        assert figures["largest difference after a resume"] == 0, "on a CPU, bit for bit"
    assert written["environment"]["command"].startswith("python benchmarks/gpu.py --minutes 30 --scale 0.001")
