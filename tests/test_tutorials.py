"""The tutorials are typed as they stand: each block of code of a page in turn, in one folder and one Python."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import jaxmbrl

FOLDER = Path(__file__).parents[1] / "docs" / "tutorials"
PAGES = sorted(path.stem for path in FOLDER.glob("*.md"))
RUN = ("bash", "python")


class Block(NamedTuple):
    kind: str
    text: str


def blocks(page):
    """The blocks of a page that are run or compared, as a reader meets them."""
    found = re.findall(r"^```(\w+)\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    return [Block(kind, text) for kind, text in found]


def file_of(block):
    """The file that a block is to be saved as: its first line names it."""
    named = re.match(r"# (\w+\.(?:py|yaml))\n", block.text)
    return named and named[1]


DRIVER = """
import contextlib, io, json, subprocess, sys
told, namespace = [], {"__name__": "__main__"}
sys.path.insert(0, "")
for kind, text in json.load(open(sys.argv[1])):
    if kind == "bash":
        done = subprocess.run(["bash", "-eu", "-o", "pipefail", "-c", text], capture_output=True, text=True)
        assert done.returncode == 0, f"{text}\\n{done.stdout}\\n{done.stderr}"
        told.append(done.stdout)
    else:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(text, "<tutorial>", "exec"), namespace)
        told.append(out.getvalue())
json.dump(told, open(sys.argv[2], "w"))
"""


def typed(page, folder):
    """Type the blocks of `page` in `folder`; what each of them printed, with what the page says that it prints."""
    shown = blocks((FOLDER / f"{page}.md").read_text())
    run, promised = [], []
    for block in shown:
        name = file_of(block)
        if name:
            (folder / name).write_text(block.text)
        elif block.kind in RUN:
            run.append(block)
            promised.append("")
        elif block.kind == "text":
            promised[-1] = block.text
    (folder / "blocks.json").write_text(json.dumps(run))
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(Path(jaxmbrl.__file__).parents[1]),
        "XDG_CACHE_HOME": str(folder.parent / "cache"),
        "MPLBACKEND": "Agg",
        "JAX_PLATFORMS": "cpu",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, "blocks.json", "told.json"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    for name in ("blocks.json", "told.json"):
        if name == "told.json":
            told = json.loads((folder / name).read_text())
        (folder / name).unlink()
    return list(zip(told, promised, run, strict=True))


def plain(text):
    return " ".join(text.split())


def evaluated(folder, run):
    """Mean returns of a run's seeds at its last evaluation."""
    rows = [json.loads(line) for line in (folder / "runs" / run / "metrics.jsonl").read_text().splitlines()]
    return list({row["seed"]: row["eval/return"] for row in rows if "eval/return" in row}.values())


def of_dyna(folder, told):
    assert min(evaluated(folder, "dyna")) > -300, "both seeds swing up"


def of_hovercraft(folder, told):
    learned, true = (returns_of(printed) for printed in told[2:4])
    assert len(learned) == len(true) == 2
    assert min(learned) > min(true) - 8 > 20


def returns_of(told):
    return [float(value.replace(",", "")) for value in re.findall(r"seed \d+: (-?[\d.,]+)", told)]


def of_data(folder, told):
    assert (folder / "calibration.png").stat().st_size > 10_000


def of_first(folder, told):
    assert {path.name for path in (folder / "runs").iterdir()} == {"first", "icem"}


def of_seeds(folder, told):
    assert len(list((folder / "runs" / "study").glob("*/curve.png"))) == 4


CHECKS = {
    "first_run": of_first,
    "own_algorithm": of_dyna,
    "own_data": of_data,
    "own_environment": of_hovercraft,
    "sweep_seeds": of_seeds,
}
"""What a page promises besides the words that it shows: (its folder, what each block printed)."""


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted(CHECKS))
def test_a_tutorial_works_as_typed(page, tmp_path):
    folder = tmp_path / page
    folder.mkdir()
    results = typed(page, folder)
    for told, promised, block in results:
        for line in promised.splitlines():
            assert plain(line) in plain(told), f"{block.text}\nprinted\n{told}"
    CHECKS[page](folder, [told for told, _, _ in results])


def test_every_page_is_checked_and_its_code_is_whole():
    assert list(CHECKS) == PAGES
    for page in PAGES:
        shown = blocks((FOLDER / f"{page}.md").read_text())
        assert {block.kind for block in shown} <= {"bash", "python", "text", "yaml"}
        assert sum(block.kind in RUN for block in shown) >= 2
        for block in shown:
            if block.kind == "python":
                compile(block.text, page, "exec")
            assert block.kind != "yaml" or file_of(block), "what is to be saved says its name"


def test_blocks_and_files_are_found():
    page = "a\n```bash\nls\n```\n```python\n# one.py\nx = 1\n```\n```text\n2\n```\n"
    found = blocks(page)
    assert found == [Block("bash", "ls\n"), Block("python", "# one.py\nx = 1\n"), Block("text", "2\n")]
    assert [file_of(block) for block in found] == [None, "one.py", None]
