"""What the README and the pages say of the results."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jaxmbrl import algorithms

ROOT = Path(__file__).parents[1]


def write(root, *arguments):
    script = root / "benchmarks" / "readme.py"
    return subprocess.run([sys.executable, str(script), *arguments], check=False, capture_output=True, text=True)


@pytest.fixture
def copy(tmp_path):
    """The pages and what writes their tables, in another place."""
    for folder in ("benchmarks", "docs"):
        (tmp_path / folder).mkdir()
    for path in (ROOT / "README.md", ROOT / "benchmarks" / "readme.py", *(ROOT / "docs").glob("*.md")):
        (tmp_path / path.relative_to(ROOT)).write_text(path.read_text())
    (tmp_path / "benchmarks" / "results").symlink_to(ROOT / "benchmarks" / "results")
    return tmp_path


def test_tables_are_those_of_the_results():
    done = write(ROOT, "--check")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("page", "figure", "other"),
    [
        ("README.md", " GFLOP/s |", " TFLOP/s |"),
        ("README.md", "| -140.5 [", "| -104.5 ["),
        ("docs/results.md", "| -140.5 |", "| -104.5 |"),
        ("docs/sac.md", "4 of 4 at -170", "3 of 4 at -170"),
    ],
)
def test_another_figure_is_noticed_and_mended(copy, page, figure, other):
    text = (copy / page).read_text()
    changed = text.replace(figure, other, 1)
    assert changed != text
    (copy / page).write_text(changed)
    assert f"{page} differs from benchmarks/results" in write(copy, "--check").stderr
    assert (copy / page).read_text() == changed
    assert write(copy).returncode == 0
    assert (copy / page).read_text() == text


@pytest.mark.parametrize("lost", ["<!-- speed: written by benchmarks/readme.py -->", "<!-- end of methods -->"])
def test_a_readme_without_their_place_is_an_error(copy, lost):
    (copy / "README.md").write_text((copy / "README.md").read_text().replace(lost, ""))
    done = write(copy)
    assert done.returncode == 1 and "needs the lines" in done.stderr


def test_every_result_is_of_a_methods_goal():
    found = [json.loads(path.read_text()) for path in (ROOT / "benchmarks" / "results").glob("*.json")]
    goals = {goal.name: (name, goal) for name, card in algorithms.cards().items() for goal in card.goals}
    measured = [case for case in found if "case" in case]
    assert len(measured) > 25
    for case in measured:
        method, goal = goals[case["case"]]
        record = (method, goal.task, goal.steps, goal.seeds, goal.episodes, goal.preset, goal.data, goal.action_repeat)
        without = {"data": 0, "action_repeat": 1}
        fields = ("algorithm", "env", "steps", "seeds", "episodes", "preset", "data", "action_repeat")
        assert record == tuple(case.get(field, without.get(field)) for field in fields), case["case"]
        assert goal.at_least in (None, case["goal"]), case["case"]
        # How many seeds must reach the goal is said once, in the record.
        assert "goal_seeds" not in case, case["case"]


def test_every_method_has_measured_returns_and_a_page():
    readme = (ROOT / "README.md").read_text()
    table = readme.partition("<!-- methods:")[2].partition("<!-- end of methods")[0]
    linked = re.findall(r"^\|[\w ,-]*\| \[`([\w-]+)`\]\((docs/\w+\.md)\)", table, re.MULTILINE)
    assert sorted(name for name, _ in linked) == sorted(algorithms.METHODS)
    assert not [name for name, page in linked if f"`{name}`" not in (ROOT / page).read_text()]
    pages = {path.name: path.read_text() for path in (ROOT / "docs").glob("*.md") if path.name != "results.md"}
    told = {name for text in pages.values() for name in re.findall(r"^\| `([\w-]+)`, ", text, re.MULTILINE)}
    assert told >= set(algorithms.METHODS)
