"""The YAML that configs, presets and sweeps are written in.

PyYAML implements YAML 1.1, which reads `no` as false, `1:30` as ninety, `010` as eight and `2026-01-01` as a date, and
keeps the last of two equal keys. Here words, times and dates are text, `010` and equal keys are errors. Whatever
`yaml.safe_dump` writes is read as the same values, except for text such as `-.5`, which is a number here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from jaxmbrl.core.config import UserError
from jaxmbrl.core.places import expanded

_TAG = "tag:yaml.org,2002:"
_MERGE = f"{_TAG}merge"
_PLAIN = (
    ("merge", r"<<", "<"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0b[01_]+|0x[0-9a-fA-F_]+|0[0-7_]*|[1-9][0-9_]*)", "-+0123456789"),
    ("float", r"[-+]?[0-9][0-9_]*\.[0-9_]*([eE][-+][0-9]+)?|[-+]?\.[0-9][0-9_]*([eE][-+][0-9]+)?", "-+0123456789."),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
)
"""(kind, pattern, first characters) of plain scalars that are not text. A number such as 1e-3 is text here; it becomes a
number where a config has a field for numbers (`config.from_dict`)."""


class Loader(yaml.SafeLoader):
    """Reads YAML into plain values. Errors are `yaml.YAMLError` with a line."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's)

    def compose_mapping_node(self, anchor: Any) -> MappingNode:
        """A mapping; an error if it has a key twice."""
        node = super().compose_mapping_node(anchor)
        seen: dict[tuple[str, str], Node] = {}
        for key, _ in node.value:
            if isinstance(key, ScalarNode) and key.tag != _MERGE:
                first = seen.setdefault((key.tag, key.value), key)
                if first is not key:
                    where = first.start_mark.line + 1
                    raise ConstructorError(
                        None, None, f"'{key.value}' is given twice, first in line {where}", key.start_mark
                    )
        return node

    def construct_document(self, node: Node) -> Any:
        """The document's value; an error if a value contains itself."""
        _check_finite(node, [], set())
        return super().construct_document(node)

    def construct_yaml_int(self, node: ScalarNode) -> int:
        """A whole number; an error if it is octal in YAML 1.1, or too long."""
        text = node.value.replace("_", "").lstrip("+-")
        if re.fullmatch(r"0[0-9]+", text):
            told = f"'{node.value}' could be octal: write a number without the leading zero, or text in quotes"
            raise ConstructorError(None, None, told, node.start_mark)
        try:
            return int(super().construct_yaml_int(node))
        except ValueError:
            raise ConstructorError(None, None, f"'{node.value:.20}...' is no number", node.start_mark) from None


for _kind, _pattern, _first in _PLAIN:
    Loader.add_implicit_resolver(_TAG + _kind, re.compile(f"(?:{_pattern})$"), list(_first))
Loader.add_constructor(f"{_TAG}int", Loader.construct_yaml_int)


def read_yaml(file: str | Path, called: str | None = None) -> Any:
    """The plain values in a YAML file. Raises UserError, which names the file `called` and the line, if it
    cannot be read or parsed."""
    called = str(file) if called is None else called
    try:
        return yaml.load(expanded(file).read_text(encoding="utf-8"), Loader)
    except OSError as error:
        raise UserError(f"{called} cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = _problem_of(error) if isinstance(error, yaml.YAMLError) else str(error)
        raise UserError(f"{called} is not valid YAML ({reason})") from None
    except RecursionError:
        raise UserError(f"{called} is not valid YAML (its values are nested too deeply)") from None


def _problem_of(error: yaml.YAMLError) -> str:
    """The reason of an error, in one line, with the number of the line in the file."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or not problem:
        return " ".join(str(error).split())
    if "'\\t'" in problem:
        problem = "a tab, where YAML allows spaces only"
    elif "another document" in problem:
        problem = "a second document begins"
    return f"line {mark.line + 1}: {problem}"


def _check_finite(node: Node, above: list[Node], done: set[int]) -> None:
    """Raise an error if a node contains itself."""
    if any(node is other for other in above):
        raise ConstructorError(None, None, "the value contains itself", node.start_mark)
    if id(node) in done or not isinstance(node, MappingNode | SequenceNode):
        return
    above.append(node)
    for entry in node.value:
        for inner in entry if isinstance(entry, tuple) else (entry,):
            _check_finite(inner, above, done)
    above.pop()
    done.add(id(node))
