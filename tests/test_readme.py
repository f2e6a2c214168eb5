"""What the README says of the results."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def write(root, *arguments):
    script = root / "benchmarks" / "readme.py"
    return subprocess.run([sys.executable, str(script), *arguments], check=False, capture_output=True, text=True)


@pytest.fixture
def copy(tmp_path):
    """The README and what writes its tables, in another place."""
    (tmp_path / "benchmarks").mkdir()
    for name in ("README.md", "benchmarks/readme.py"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    (tmp_path / "benchmarks" / "results").symlink_to(ROOT / "benchmarks" / "results")
    return tmp_path


def test_tables_of_speed_are_those_of_the_results():
    done = write(ROOT, "--check")
    assert done.returncode == 0, done.stderr


def test_another_figure_is_noticed_and_mended(copy):
    text = (copy / "README.md").read_text()
    other = text.replace(" GFLOP/s |", " TFLOP/s |", 1)
    assert other != text
    (copy / "README.md").write_text(other)
    assert "run python benchmarks/readme.py" in write(copy, "--check").stderr
    assert (copy / "README.md").read_text() == other
    assert write(copy).returncode == 0
    assert (copy / "README.md").read_text() == text


@pytest.mark.parametrize("lost", ["<!-- speed: written by benchmarks/readme.py -->", "<!-- end of speed -->"])
def test_a_readme_without_their_place_is_an_error(copy, lost):
    (copy / "README.md").write_text((copy / "README.md").read_text().replace(lost, ""))
    done = write(copy)
    assert done.returncode == 1 and "needs the lines" in done.stderr
