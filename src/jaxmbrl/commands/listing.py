"""The command `jaxmbrl list`: algorithms by family, tasks and presets. It imports no algorithm and no simulator."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from jaxmbrl import algorithms, envs
from jaxmbrl.algorithms import Card
from jaxmbrl.commands import options
from jaxmbrl.core.calling import again

WIDTH = 120


def list_all(words: list[str]) -> int:
    """`jaxmbrl list`; returns the exit code. Raises UserError if NAME is unknown."""
    about = "Algorithms and tasks by family; with NAME, the presets of one algorithm or of a family of them."
    parser = options.parser("list", description=about)
    parser.add_argument("name", nargs="?", metavar="NAME", help="an algorithm, or a family of algorithms or tasks")
    parser.add_argument("--json", action="store_true", help="one JSON object, for other programs")
    args = parser.parse_args(words)
    methods, tasks = algorithms.cards(), {name: envs.family(name) for name in envs.names()}
    others = {f"{prefix}/NAME": prefix for prefix in envs.FAMILIES}
    tasks |= others
    if args.name is not None:
        methods, tasks = _chosen(args.name, methods, tasks)
    if args.json:
        print(json.dumps(_plain(methods, tasks), indent=1))
        return 0
    if methods:
        print("\n".join(["algorithms", *(_details(methods) if args.name is not None else _overview(methods))]))
    if tasks:
        print("\n".join([*([""] if methods else []), "tasks", *_tasks(tasks)]))
    if args.name is None:
        print(f"\n{again('list', 'NAME')} shows the presets of an algorithm or of a family of algorithms")
    return 0


def _chosen(name: str, methods: Mapping[str, Card], tasks: Mapping[str, str]) -> tuple[dict[str, Card], dict[str, str]]:
    """The algorithms and tasks that `name`, an algorithm, a family or what names of tasks begin with, refers to. Raises
    UserError if it is none of these."""
    family = name.replace("-", "_")
    chosen = {other: card for other, card in methods.items() if other == name or (card.family == family != "")}
    begins = {task for task in tasks if task.startswith(f"{name}/") and not chosen}
    found = {task: kind for task, kind in tasks.items() if kind == family or task == name or task in begins}
    if not chosen and not found:
        names = {*methods, *(card.family for card in methods.values()), *tasks.values()}
        raise algorithms.unknown(name, "algorithm or family", names)
    return chosen, found


def _overview(methods: Mapping[str, Card]) -> Iterable[str]:
    """One line for each algorithm, grouped by family."""
    for family in dict.fromkeys(card.family for card in methods.values()):
        yield f"  {family}"
        yield from (f"    {name:<22}{card.summary}" for name, card in methods.items() if card.family == family)


def _details(methods: Mapping[str, Card]) -> Iterable[str]:
    """Each algorithm with its paper, requirements and presets."""
    indent = " " * 8
    for name, card in methods.items():
        yield f"  {name:<24}{card.summary}"
        where = f"family {card.family}" + (f", arXiv {card.paper}" if card.paper else "")
        yield f"      {where}; takes {' or '.join(card.takes)}" + "".join(f"; requires {what}" for what in card.requires)
        for preset, (source, steps, tasks) in card.presets.items():
            default = f", default on {', '.join(tasks)}" if tasks else ""
            yield f"    {name} --preset {preset}  ({steps:,} steps{default})"
            yield from textwrap.wrap(source, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def _tasks(tasks: Mapping[str, str]) -> Iterable[str]:
    """One line for each task, grouped by family."""
    for family in sorted(set(tasks.values())):
        yield f"  {family}"
        yield from (f"    {name}" for name, kind in tasks.items() if kind == family)


def _plain(methods: Mapping[str, Card], tasks: Mapping[str, str]) -> dict[str, Any]:
    """The same information as a JSON object."""
    found = []
    for name, card in methods.items():
        presets = [
            {"name": preset, "steps": of.steps, "tasks": list(of.tasks), "source": of.source}
            for preset, of in card.presets.items()
        ]
        of = {"family": card.family, "paper": card.paper, "summary": card.summary}
        found.append({"name": name, **of, "takes": list(card.takes), "requires": list(card.requires), "presets": presets})
    return {"algorithms": found, "tasks": [{"name": name, "family": family} for name, family in tasks.items()]}
