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
SCRIPTS = sorted(FOLDER.glob("*.py"))


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


@pytest.mark.slow
def test_ensemble_and_cem_shows_what_it_says(tmp_path):
    """It takes about a minute on two cores."""
    environment = os.environ | {"MPLBACKEND": "Agg", "PICTURES": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(FOLDER / "ensemble_and_cem.py")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    told = {line[:33].strip(): float(line[33:]) for line in done.stdout.splitlines() if not line.startswith("model/")}
    assert told["imagined return of the plan"] > told["of 300 random plans, the best"] + 10
    assert told["of 300 random plans, the best"] > told["on average"]
    assert told["planning at every step"] > told["the plan, blind"] + 5
    assert told["the plan, blind"] > told["random pushes"] + 20
    assert abs(told["the plan, blind"] - told["imagined return of the plan"]) < 5, "what it does is what was imagined"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["uncertainty.png", "ways.png"]
    for path in tmp_path.iterdir():
        with Image.open(path) as image:
            assert np.asarray(image.convert("L"), float).std() > 10
