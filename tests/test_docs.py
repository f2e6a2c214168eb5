"""The pages: what they link to is there, and each is in the table of contents."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
LISTED = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
PAGES = [ROOT / name for name in LISTED] or [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *ROOT.glob("benchmarks/**/*.md")]


def prose(page):
    """The lines of a page outside of code."""
    found, fence = [], ""
    for line in page.read_text().splitlines():
        mark = re.match(r"(```+)", line)
        if mark and not fence:
            fence = mark[1]
        elif mark and line.strip() == fence:
            fence = ""
        elif not fence and not line.startswith("    "):
            found.append(re.sub(r"`[^`]*`", "", line))
    return found


def anchors(page):
    """Anchors of a page's headings, as GitHub makes them."""
    heads = [line.lstrip("# ") for line in page.read_text().splitlines() if re.match(r"#{1,6} ", line)]
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def broken(page):
    """Links of a page, within this repository, to what is not there."""
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", "\n".join(prose(page))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        at = (page.parent / path).resolve() if path else page
        if not at.exists() or (anchor and anchor not in anchors(at)):
            wrong.append(target)
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_within_the_repository_lead_somewhere(page):
    assert broken(page) == []


def test_a_broken_link_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# Its head: one\n[a](page.md) [b](#its-head-one) [c](other.md) [d](page.md#two)\n```\n[e](code.md)\n```\n"
    )
    assert broken(page) == ["other.md", "page.md#two"]


def test_every_page_is_in_the_table_of_contents():
    listed = re.findall(r"^```\{toctree\}\n(.*?)^```", (DOCS / "index.md").read_text(), re.DOTALL | re.MULTILINE)
    names = [line.strip() for part in listed for line in part.splitlines() if line.strip() and not line.startswith(":")]
    pages = {page.relative_to(DOCS).with_suffix("").as_posix() for page in PAGES if DOCS in page.parents}
    assert {name for name in names if not name.startswith("api/")} == pages - {"index"}
    assert len(set(names)) == len(names)
