"""Write the cells of each notebook, without outputs, from the script of the same name: python notebooks/cells.py

A code cell begins after a line `# %%`, a text cell after `# %% [markdown]`, as comments or as one docstring.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def cells(script: str) -> list[dict[str, Any]]:
    """The cells of a script."""
    found: list[dict[str, Any]] = []
    for i, part in enumerate(re.split(r"^# %%", script, flags=re.MULTILINE)[1:]):
        mark, _, text = part.partition("\n")
        text = text.strip("\n")
        cell: dict[str, Any] = {"cell_type": "code", "execution_count": None, "outputs": []}
        if mark.strip() == "[markdown]":
            cell = {"cell_type": "markdown"}
            quoted = re.fullmatch(r'"""\n(.*)\n"""', text, re.DOTALL)
            text = quoted[1] if quoted else "\n".join(re.sub(r"^# ?", "", line) for line in text.split("\n"))
        found.append(cell | {"id": f"cell-{i:02}", "metadata": {}, "source": text.splitlines(keepends=True)})
    return found


def main() -> None:
    """Write all notebooks."""
    for script in sorted(HERE.glob("*.py")):
        if script == Path(__file__):
            continue
        at = script.with_suffix(".ipynb")
        kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
        metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
        if at.exists():
            metadata = json.loads(at.read_text())["metadata"]
        notebook = {"cells": cells(script.read_text()), "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
        at.write_text(json.dumps(notebook, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
