"""The study of the two uncertainties runs, and shows what it says it does."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "experiments" / "two_uncertainties.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("two_uncertainties", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_quick_study_prints_its_numbers_and_leaves_a_picture(script, tmp_path, capsys):
    out = tmp_path / "some" / "folder"
    found = script.main(["--quick", "--out", str(out)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"picture: {out / 'two-uncertainties.png'}"
    with Image.open(out / "two-uncertainties.png") as image:
        assert np.asarray(image.convert("L"), float).std() > 10
    numbers = {line[:16].strip(): [float(x) for x in line[16:].split()] for line in lines[2:5]}
    assert list(numbers) == ["where data are", "in the gap", "beyond the data"]
    # Root mean squares of 0.05 + 0.35 sigmoid(x) over each region, by SciPy's quad.
    np.testing.assert_allclose([row[0] for row in numbers.values()], [0.2665, 0.2301, 0.3973], rtol=0.02)
    seen, beyond = numbers["where data are"], numbers["beyond the data"]
    assert abs(seen[1] / seen[0] - 1) < 0.35
    assert seen[2] < beyond[2]
    assert seen[4] < 0.1 < beyond[4] <= 0.5
    x = np.asarray(found.data.observation)[:, 0]
    assert len(x) == 1000 and -4 <= x.min() < -3.9 and 3.9 < x.max() <= 4
    assert not ((x > -1) & (x < 1)).any()


def test_a_folder_that_cannot_be_is_told(script, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as end:
        script.main(["--quick", "--out", str(tmp_path / "file" / "folder")])
    assert end.value.code == 2
    assert "choose another folder" in capsys.readouterr().err
