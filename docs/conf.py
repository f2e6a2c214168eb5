"""Sphinx configuration. `make docs` builds the pages and runs their doctests; `make linkcheck` checks external links.

Docstrings are written to be read in the code: backticks are code, and indented blocks are literal. `as_written` converts
them for Sphinx, and `readable` shortens annotations.
"""

from __future__ import annotations

import re
import sys
import typing
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "src"))

from docutils import nodes
from sphinx import addnodes

import jaxmbrl
from jaxmbrl.core import types

project = "jaxmbrl"
version = release = jaxmbrl.__version__
project_copyright = "the authors of jaxmbrl"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.doctest"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"jaxmbrl {version}"
html_copy_source = html_show_sourcelink = html_show_sphinx = False
html_static_path = ["_static"]
html_css_files = ["tables.css"]
pygments_style, pygments_dark_style = "friendly", "monokai"

# Headings get GitHub's anchors: a link to one works in both places.
myst_heading_anchors = 3
myst_enable_extensions = ["dollarmath"]

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True}
# Type aliases of `jaxmbrl.core.types` are shown by name.
autodoc_type_aliases = {name: name for name, kind in typing.get_type_hints(types).items() if kind is typing.TypeAlias}
add_module_names = False
toc_object_entries_show_parents = "hide"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100

# A name in an annotation that several modules define, such as `type`, is not a link.
suppress_warnings = ["ref.python"]

doctest_global_setup = "import jax; import jax.numpy as jnp; import numpy as np"
doctest_test_doctest_blocks = "default"

linkcheck_timeout = 20
linkcheck_workers = 4
# GitHub creates anchors with scripts, which the link check cannot see.
linkcheck_anchors = False


def as_written(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Convert a docstring of the project to reStructuredText: `x` is code, an indented block is literal."""
    if lines and lines[0].startswith("Alias for field number"):
        # The default docstring of a NamedTuple field.
        lines[:] = []
    found: list[str] = []
    block, example, mark = False, False, ""
    for line in lines:
        example = line.startswith(">>>") or (example and bool(line.strip()))
        if line.startswith(" ") and not example and (block or not _item(found)):
            if not block:
                found += ["", ".. code-block:: none", ""]
            block = True
            found.append("    " + line)
            continue
        if line.strip():
            if block:
                found.append("")
            block = False
        item = re.match(r" *- ", line)
        if item and not example and item[0] != mark:
            # A nested list needs a blank line before and after it.
            found.append("")
            mark = item[0]
        found.append(line if example or block else _inline(line))
    lines[:] = found


def _item(lines: list[str]) -> bool:
    """Whether the last line belongs to a list; its continuation lines are indented."""
    for line in reversed(lines):
        if re.match(r"\s*([-*]|\d+\.) ", line):
            return True
        if not line.startswith(" "):
            return False
    return False


def _inline(line: str) -> str:
    """Double the backticks of code, and escape characters that are markup for docutils only."""
    parts = re.split(r"(`+[^`]+`+)", line)
    code = [f"``{part.strip('`')}``" if i % 2 else re.sub(r"(\*|\||_\b)", r"\\\1", part) for i, part in enumerate(parts)]
    return "".join(code)


MODULES = re.compile(r"\b(?:(?:jaxtyping|typing|types|collections|jax|jaxlib|numpy|pathlib|jaxmbrl)(?:\.\w+)*\.)(?=\w)")
"""The module before a name in an annotation, which is removed."""

ALIAS = re.compile(r"TypeAliasForwardRef\('(\w+)'\)")
"""How Sphinx prints a type alias that is an argument of another type."""


def readable(
    app: Any, what: str, name: str, obj: Any, options: Any, signature: str | None, returned: str | None
) -> tuple[str | None, str | None] | None:
    """Omit the second list of a class's fields, and print aliases of `jaxmbrl.core.types` by name within other types."""
    if signature is None:
        return None
    if what == "class":
        return "", None
    return ALIAS.sub(r"\1", signature), returned and ALIAS.sub(r"\1", returned)


API = {
    "interfaces": ("Interfaces", "core.types core.spaces"),
    "running": (
        "Running from Python",
        "training.runner exporting.exporter training.session training.evaluation data.dataset",
    ),
    "envs": ("Tasks", "envs"),
    "parts": ("Shared parts", "rollout returns distributions data nn core"),
    "models": ("World models and imagined rollouts", "models"),
    "planners": ("Planners", "planning"),
    "agents": ("Agents", "agents"),
    "algorithms": ("Algorithms", "algorithms"),
    "diagnostics": ("Diagnostics", "diagnostics debug"),
    "training": ("Training", "training exporting scheduling sweeping"),
}
"""Page of the reference -> (title, its modules and packages). A module is on the first page that names it."""


def write_reference(app: Any) -> None:
    """Write a page for each group of modules."""
    package, written = Path(jaxmbrl.__file__).parent, set()
    (HERE / "api").mkdir(exist_ok=True)
    for page, (title, names) in API.items():
        found: list[str] = []
        for name in names.split():
            path = package / name.replace(".", "/")
            files = sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
            dotted = [".".join(file.relative_to(package).with_suffix("").parts) for file in files]
            found += [one.removesuffix(".__init__") for one in dotted]
        fresh = [name for name in found if name not in written]
        written |= set(fresh)
        lines = [title, "=" * len(title), ""]
        for name in fresh:
            lines += [
                f"jaxmbrl.{name}",
                "-" * (len(name) + 8),
                "",
                f".. automodule:: jaxmbrl.{name}",
                "   :ignore-module-all:",
                "",
            ]
        text, at = "\n".join(lines), HERE / "api" / f"{page}.rst"
        if not at.exists() or at.read_text() != text:
            at.write_text(text)


def shortened(app: Any, doctree: nodes.document) -> None:
    """Remove module names from annotations."""
    for shown in doctree.findall(addnodes.desc_signature):
        for annotation in shown.findall(
            lambda node: isinstance(node, addnodes.desc_annotation | addnodes.desc_parameterlist | addnodes.desc_returns)
        ):
            for text in list(annotation.findall(nodes.Text)):
                text.parent.replace(text, nodes.Text(ALIAS.sub(r"\1", MODULES.sub("", text.astext()))))


def outside(app: Any, page: str, source: list[str]) -> None:
    """Link Markdown files outside of `docs`, such as the README, as files."""

    def to_file(link: re.Match[str]) -> str:
        target = (HERE / page).parent / link[1]
        return f"](path:{link[1]})" if HERE not in target.resolve().parents and target.exists() else link[0]

    source[0] = re.sub(r"\]\((\.\./[^)#:\s]+\.md)\)", to_file, source[0])


def setup(app: Any) -> None:
    app.connect("source-read", outside)
    app.connect("builder-inited", write_reference)
    app.connect("autodoc-process-docstring", as_written)
    app.connect("autodoc-process-signature", readable)
    app.connect("doctree-read", shortened)
