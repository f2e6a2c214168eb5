"""Each notebook is there twice, as a script and as cells, and runs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

FOLDER = Path(__file__).parents[2] / "notebooks"
WRITER = FOLDER / "cells.py"
"""Writes the cells, and is no notebook."""
SCRIPTS = sorted(set(FOLDER.glob("*.py")) - {WRITER})


def cells(script):
    """(kind, text) of each cell of a script in the percent format: prose is in comments or in a docstring."""
    found = []
    for part in re.split(r"^# %%", script.read_text(), flags=re.MULTILINE)[1:]:
        mark, _, text = part.partition("\n")
        text = text.strip("\n")
        if mark.strip() == "[markdown]":
            quoted = re.fullmatch(r'"""\n(.*)\n"""', text, re.DOTALL)
            prose = quoted[1] if quoted else "\n".join(re.sub(r"^# ?", "", line) for line in text.split("\n"))
            found.append(("markdown", prose))
        else:
            assert mark == ""
            found.append(("code", text))
    return found


def test_there_are_pairs():
    assert SCRIPTS
    assert [path.with_suffix(".ipynb") for path in SCRIPTS] == sorted(FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_script_and_notebook_have_the_same_cells(script):
    notebook = json.loads(script.with_suffix(".ipynb").read_text())
    held = [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]
    assert held == cells(script) and {kind for kind, _ in held} == {"markdown", "code"}
    assert all(not cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code")
    assert notebook["nbformat"] == 4 and len({cell["id"] for cell in notebook["cells"]}) == len(held)


def test_the_writer_writes_what_is_there(tmp_path):
    for path in (WRITER, *SCRIPTS):
        (tmp_path / path.name).write_text(path.read_text())
    subprocess.run([sys.executable, str(tmp_path / WRITER.name)], check=True, timeout=60)
    for script in SCRIPTS:
        written = json.loads((tmp_path / f"{script.stem}.ipynb").read_text())
        assert written["cells"] == json.loads(script.with_suffix(".ipynb").read_text())["cells"]


def run(name, folder, pictures):
    """What the script `name` printed; it drew those pictures, and they are not empty."""
    environment = os.environ | {"MPLBACKEND": "Agg", "PICTURES": str(folder), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(FOLDER / f"{name}.py")]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in folder.iterdir()) == pictures
    for path in folder.iterdir():
        with Image.open(path) as image:
            assert np.asarray(image.convert("L"), float).std() > 10
    return done.stdout.splitlines()


@pytest.mark.slow
def test_ensemble_and_cem_shows_what_it_says(tmp_path):
    """It takes about a minute on two cores."""
    lines = run("ensemble_and_cem", tmp_path, ["uncertainty.png", "ways.png"])
    told = {line[:33].strip(): float(line[33:]) for line in lines if not line.startswith("model/")}
    assert told["imagined return of the plan"] > told["of 300 random plans, the best"] + 10
    assert told["of 300 random plans, the best"] > told["on average"]
    assert told["planning at every step"] > told["the plan, blind"] + 5
    assert told["the plan, blind"] > told["random pushes"] + 20
    assert abs(told["the plan, blind"] - told["imagined return of the plan"]) < 5, "what it does is what was imagined"


@pytest.mark.slow
def test_mbpo_in_memory_shows_what_it_says(tmp_path):
    lines = run("mbpo_in_memory", tmp_path, ["curves.png", "episode.png"])
    told = {line[:32].strip(): float(line[32:]) for line in lines if not line.startswith(("rows", "what"))}
    assert "rows                20" in lines and "eval/return" in lines[1]
    assert told["return of the first evaluation"] < -900
    assert told["return of the last evaluation"] > -300
    assert 0 < told["model's error, last"] < 0.2
    assert told["upright in the last 2 s"] > 0.95


@pytest.mark.slow
def test_belief_shows_what_it_says(tmp_path):
    lines = run("belief", tmp_path, ["ahead.png", "dreams.png", "expected.png", "speed.png"])
    told = {line[:36].strip(): float(line[36:]) for line in lines if not line.startswith(("positions", "R2"))}
    shares = {line[21:36].strip(): float(line[36:]) for line in lines if line.startswith("R2")}
    assert told["return of the last epoch"] > told["return of the first epoch"]
    assert shares["the belief"] > 0.5 > 0.3 > shares["the observation"]
    assert told["nats of the first observation"] > told["nats of a later one"]
    assert told["error 60 steps ahead"] > 2 * told["error  1 steps ahead"]


@pytest.mark.slow
def test_learning_rate_sweep_shows_what_it_says(tmp_path):
    lines = run("learning_rate_sweep", tmp_path, ["rates.png"])
    told = {(line.split()[0], float(line.split()[1])): float(line.split()[2]) for line in lines}
    errors = [value for (what, _), value in sorted(told.items()) if what == "model"]
    assert len(errors) == 6 and min(errors) < errors[0] / 20
    assert told["sac", 1e-3] > told["sac", 1e-5] + 300
    assert told["sac", 1e-3] > told["sac", 1e-1] + 300


@pytest.mark.slow
def test_value_gradient_horizon_shows_what_it_says(tmp_path):
    lines = run("value_gradient_horizon", tmp_path, ["gradients.png"])
    told = {int(line.split()[1]): [float(x) for x in line.split()[2:]] for line in lines}
    assert list(told) == [1, 2, 5, 10, 20, 40]
    norms, poor, good = zip(*told.values(), strict=True)
    assert max(norms) > 50 * norms[2]
    assert min(good[:5]) > 0.95, "the good model's gradient points where the true one does"
    assert poor[-1] < 0.5 and poor[-1] < good[-1] - 0.2, "far out the poor one's does not"
    assert poor[0] > 0.9


@pytest.mark.slow
def test_dyna_q_shows_what_it_says(tmp_path):
    lines = run("dyna_q", tmp_path, ["curves.png", "values.png"])
    assert lines[0] == "54 cells, 4 actions; V*(start) = 0.5133 = 0.5133"
    assert lines[1] == "reward 1.0, terminated True, error 1.0, Q = 0.10"
    assert lines[2].startswith("drawn: cell 17, action 0 ->")
    told = {int(line.split()[2]): [float(x) for x in re.findall(r"\d+\.\d*", line)] for line in lines[3:6]}
    second, last = ({n: steps[i] for n, steps in told.items()} for i in (1, -1))
    assert second[0] > 2 * second[5] > 4 * second[50]
    assert all(14 <= steps < 25 for steps in last.values())
    of_start, best = (float(x) for x in re.findall(r"0\.\d{4}", lines[6]))
    assert best == 0.5133 and 0.8 * best < of_start <= best


@pytest.mark.slow
def test_lqr_to_gps_shows_what_it_says(tmp_path):
    lines = run("lqr_to_gps", tmp_path, ["trajectories.png"])
    found = {line[:34].strip(): float(line[34:43]) for line in lines}
    assert found["cost-to-go of the start"] == 6.6581 == found["cost of the trajectory"]
    assert found["largest change of a gain"] == 0
    assert found["cost of the stochastic policy"] > found["cost-to-go with noise"] > found["cost-to-go of the start"]
    assert found["KL to one with twice the R"] > 1
    assert found["cost after the last iteration"] == found["the same in one program"] == 169.6287
    assert found["upright at the end, with feedback"] > 0.99 > found["upright at the end, blind"] + 0.5
    assert found["best of 16 guesses"] == 169.6287
    assert abs(found["d speed / d angle at step 3"] - found["the true derivative there"]) < 0.1
    assert 17.34 < found["cost of the last controller"] < 17.5
    assert found["cost of the network"] < 1.1 * found["cost of the last controller"]
