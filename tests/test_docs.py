"""The pages: internal links resolve, each page is in the table of contents, and the terms of the field are found."""

import ast
import dataclasses
import importlib
import re
import subprocess
from pathlib import Path

import pytest

import jaxmbrl
from jaxmbrl import algorithms
from jaxmbrl.core import types
from jaxmbrl.training.programs import RunConfig
from jaxmbrl.training.session import Result

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PACKAGE = Path(jaxmbrl.__file__).parent
LISTED = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
PAGES = [ROOT / name for name in LISTED] or [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *ROOT.glob("benchmarks/**/*.md")]
GLOSSARY = DOCS / "glossary.md"

SEARCHED = (
    "target network",
    "MPC",
    "world model",
    "advantage",
    "UTD",
    "replay ratio",
    "log-prob",
    "hyperparameter",
    "learning-rate schedule",
    "gradient clipping",
    "n-step",
    "value function",
    "behaviour policy",
    "discount factor",
    "random seed",
    "vectorized",
    "wandb",
    "TensorBoard",
    "deployment",
    "export",
)
"""Terms that readers search for: each is in the glossary and in another page of `docs`."""

DEFINED = (
    *SEARCHED,
    "model-predictive control",
    "Weights & Biases",
    "Polyak averaging",
    "replay buffer",
    "warm-up",
    "entropy temperature",
    "ensemble",
    "aleatoric",
    "epistemic",
    "elites",
    "TS1",
    "TSinf",
    "common random numbers",
    "holdout",
    "early stopping",
    "termination",
    "truncation",
    "bootstrapping",
    "value expansion",
    "reparameterization",
    "model exploitation",
    "model bias",
    "rollout length",
    "real ratio",
    "particle",
    "risk",
)
"""Terms that the glossary defines."""


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
    """Links of a page, within this repository, with a target that does not exist."""
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", "\n".join(prose(page))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        at = (page.parent / path).resolve() if path else page
        if not at.exists() or (anchor and anchor not in anchors(at)):
            wrong.append(target)
    return wrong


def option_names(config, prefix=""):
    """Options of a config class, by their paths: `agent.learning-rate`; of a bool also `no-...`."""
    found = set()
    for field in dataclasses.fields(config):
        name = field.name.replace("_", "-")
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if dataclasses.is_dataclass(default):
            found |= option_names(type(default), f"{prefix}{name}.")
        else:
            found |= {f"{prefix}{name}", f"{prefix}no-{name}"}
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_internal_links_resolve(page):
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


@pytest.mark.parametrize("term", SEARCHED)
def test_terms_of_the_field_are_found(term):
    pages = [page for page in PAGES if DOCS in page.parents and page != GLOSSARY]
    assert any(term.lower() in " ".join(page.read_text().lower().split()) for page in pages)


@pytest.mark.parametrize("term", DEFINED)
def test_the_glossary_defines_terms(term):
    rows = [line.split("|")[1] for line in GLOSSARY.read_text().splitlines() if line.startswith("|")]
    assert any(term.lower() in row.lower() for row in rows)


def names_in(text):
    """Names of the code in backticks, below `jaxmbrl`."""
    names = re.findall(r"`([a-z]+(?:\.\w+)+)`", text)
    return [
        name for name in names if (PACKAGE / name.split(".")[0]).exists() or (PACKAGE / f"{name.split('.')[0]}.py").exists()
    ]


def assert_exist(names):
    for name in names:
        parts = name.split(".")
        at = next(i for i in range(len(parts), 0, -1) if _is_module(parts[:i]))
        found = importlib.import_module(".".join(["jaxmbrl", *parts[:at]]))
        for part in parts[at:]:
            fields = getattr(found, "_fields", ()) or [
                field.name for field in getattr(found, "__dataclass_fields__", {}).values()
            ]
            assert hasattr(found, part) or part in fields, f"{name} does not exist"
            found = getattr(found, part, None)


def test_names_in_the_glossary_exist():
    names = names_in(GLOSSARY.read_text())
    assert len(names) > 40
    assert_exist(names)


def _is_module(parts):
    path = PACKAGE.joinpath(*parts)
    return path.is_dir() or path.with_suffix(".py").exists()


def test_options_in_the_glossary_exist():
    of_run = {"seed", "seeds", "preset", "action-repeat", "demonstrations", "schedule", "log", "stop-at-return", "x64"}
    known = of_run.union(*(option_names(algorithms.METHODS[name].config) for name in algorithms.METHODS))
    named = re.findall(r"`--([a-z][\w.-]*)", GLOSSARY.read_text())
    assert len(named) > 40
    assert set(named) <= known


COMING = (DOCS / "coming_from.md").read_text()

OF_OTHER_COMMANDS = {"video"}


@pytest.mark.parametrize(
    ("package", "methods"),
    [
        ("Stable-Baselines3", ("sac", "td3", "dqn", "ppo")),
        ("mbrl-lib", ("pets", "mbpo")),
        ("Brax", ("sac",)),
        ("dreamerv3", tuple(algorithms.METHODS)),
        ("CleanRL and rejax", ("sac",)),
    ],
)
def test_options_beside_those_of_other_packages_exist(package, methods):
    section = re.split(r"^## ", COMING.partition(f"\n## {package}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    known = {"env", "out", "resume", "config", *OF_OTHER_COMMANDS, *option_names(RunConfig)}
    known = known.union(*(option_names(algorithms.METHODS[name].config) for name in methods))
    named = re.findall(r"--([a-z][\w.-]*\w)", section)
    assert len(named) > 3
    assert set(named) <= known


def test_names_beside_those_of_other_packages_exist():
    names = names_in(COMING)
    assert {"envs.make_task", "planning.cem", "data.replay.Replay"} <= set(names)
    assert_exist(names)
    assert set(re.findall(r"jaxmbrl\.(\w+)", COMING)) <= set(jaxmbrl.__all__)
    own = {**vars(types), "Result": Result}
    fields = [(kind, field) for kind, field in re.findall(r"`([A-Z]\w+)\.(\w+)", COMING) if kind in own]
    assert len(fields) > 8 and all(hasattr(own[kind], field) for kind, field in fields)


def test_the_reference_covers_the_package():
    tree = ast.parse((DOCS / "conf.py").read_text())
    assigned = {getattr(node.targets[0], "id", None): node.value for node in tree.body if isinstance(node, ast.Assign)}
    names = {name for _, listed in ast.literal_eval(assigned["API"]).values() for name in listed.split()}
    assert [name for name in names if not _is_module(name.split("."))] == []
    subjects = {path.stem for path in PACKAGE.iterdir() if path.suffix in ("", ".py")} - {
        "__init__",
        "__main__",
        "__pycache__",
    }
    assert subjects - {name.split(".")[0] for name in names} == {"cli", "commands", "report"}
