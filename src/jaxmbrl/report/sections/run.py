"""Settings, events, time and memory of the runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxmbrl.report.diagnosing import Diagnosis
from jaxmbrl.report.gathering import Gathered, Run, differences, run_name
from jaxmbrl.report.parts import MOST_POINTS, Chart, Facets, Heading, Part, Series, Table, Text, chosen
from jaxmbrl.training import programs


def running(gathered: Gathered, diagnoses: Mapping[int, Diagnosis | str]) -> list[Part]:
    """For each run: warnings and events, settings, time and memory, versions and machine."""
    parts: list[Part] = []
    for i, run in enumerate(gathered.runs):
        if len(gathered.runs) > 1:
            parts.append(Heading(run_name(gathered.runs, i)))
        parts += _warnings(run)
        parts += _changed(run)
        parts += _timing(run)
        found = diagnoses.get(i)
        parts += _memory(run, found if isinstance(found, Diagnosis) else None)
        parts += _asked(run)
    return parts


def _warnings(run: Run) -> list[Part]:
    rows = []
    for event in run.events:
        field = {"warning": "text", "resume": "env_steps", "stop": "env_steps", "end": "env_steps"}.get(
            str(event.get("kind"))
        )
        if field is not None:
            value = event.get(field)
            text = f"at {value:,} steps" if field == "env_steps" and isinstance(value, int) else str(value)
            rows.append([str(event.get("time", ""))[:19].replace("T", " "), str(event["kind"]), text])
    parts: list[Part] = []
    parts += [Text(row[2], warns=True) for row in rows if row[1] == "warning"][:10]
    if run.damaged:
        text = f"Checkpoints that were damaged and are set aside: {', '.join(run.damaged)}."
        parts.append(Text(text, warns=True))
    if rows:
        parts.append(Table("Events", ("time (UTC)", "event", "detail"), rows, closed=True))
    return parts


def _changed(run: Run) -> list[Part]:
    preset, differing = run.config.get("preset"), differences(run.config)
    if differing is None:
        return [Text(f"The preset '{preset}' is unknown here, so the settings cannot be compared with it.")]
    if not differing:
        return [Text(f"All settings are those of the preset '{preset}'.")]
    rows = [[name, _plain(due), _plain(own)] for name, due, own in differing]
    return [Table(f"Settings that differ from the preset '{preset}'", ("setting", "preset", "run"), rows)]


def _plain(value: Any) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _timing(run: Run) -> list[Part]:
    first = run.seeds[0]
    rows = sorted((row for row in run.rows if row["seed"] == first), key=lambda row: row["env_steps"])
    compiled = [event for event in run.events if event.get("kind") == "compile"]
    parts: list[Part] = []
    if rows:
        spent = {
            name: sum(float(row.get(f"time/{name}", 0.0)) for row in rows) for name in ("compile", "train", "evaluate")
        }
        wall = float(rows[-1]["wall_time"])
        spent["other"] = max(wall - sum(spent.values()), 0.0)
        names = {
            "compile": "compiling",
            "train": "training, the compiled program",
            "evaluate": "evaluation",
            "other": "the rest: start, metrics, checkpoints",
        }
        table = [[names[name], seconds, f"{100 * seconds / wall:.1f}%" if wall else "–"] for name, seconds in spent.items()]
        table.append(["wall clock", wall, "100%"])
        parts.append(Table("Time", ("", "seconds", "share"), table, "Of all seeds together."))
        parts.append(Facets((_throughput(rows, len(run.seeds)), _epochs(rows))))
    if compiled:
        programs_table = [
            [str(event.get("what")), event.get("seconds"), _bytes(event["memory"]) if event.get("memory") else None]
            for event in compiled
        ]
        head = ("program", "seconds to compile", "memory while it runs")
        parts.append(Table("Compiled programs", head, programs_table))
    return parts


def _throughput(rows: Sequence[dict[str, Any]], seeds: int) -> Chart:
    x, y, before = [], [], 0
    for row in rows:
        seconds = float(row.get("time/train", 0.0))
        if seconds > 0:
            x.append(row["env_steps"])
            y.append(seeds * (row["env_steps"] - before) / seconds)
        before = row["env_steps"]
    series = Series("steps a second", "steps a second", "line", x, y)
    title, unit = "Throughput", "real steps of all seeds a second"
    return Chart(title, "real environment steps per seed", unit, (series,), "While the compiled program trains.", log=True)


def _epochs(rows: Sequence[dict[str, Any]]) -> Chart:
    names = {"time/train": "training", "time/evaluate": "evaluation", "time/epoch": "whole epoch"}
    rows = [rows[i] for i in chosen(len(rows), MOST_POINTS)]
    series = []
    for i, (name, label) in enumerate(names.items()):
        points = [(row["env_steps"], row[name]) for row in rows if name in row]
        if points:
            series.append(Series(label, label, "line", [x for x, _ in points], [y for _, y in points], color=i))
    return Chart("Time of an epoch", "real environment steps per seed", "seconds", tuple(series), "Without compiling.")


def _memory(run: Run, found: Diagnosis | None) -> list[Part]:
    rows = []
    if found is not None:
        rows.append(["state of the run, all seeds", _bytes(found.state_bytes)])
        rows.append(["a step of the deterministic policy with its task", f"{1000 * found.step_seconds:.3g} ms"])
    saved = [event for event in run.events if event.get("kind") == "checkpoint"]
    seconds = [float(event.get("seconds") or 0.0) for event in saved]
    if saved:
        rows.append(["checkpoints written", f"{len(saved)}, {np.mean(seconds):.2g} s each"])
    return [Table("Memory and checkpoints", ("", ""), rows)] if rows else []


def _bytes(size: Any) -> str:
    size = float(size)
    return f"{size / 1e9:,.2f} GB" if size >= 1e8 else f"{size / 1e6:,.2f} MB"


def _asked(run: Run) -> list[Part]:
    """The whole config, and the machine and versions with which the run was started."""
    leaves = [[name, _plain(value)] for name, value in programs.leaves(run.config).items()]
    parts: list[Part] = [Table("All settings", ("setting", "value"), leaves, closed=True)]
    known = run.environment
    rows: list[list[Any]] = []
    ways: dict[str, Callable[[Any], str]] = {
        "versions": lambda value: ", ".join(f"{name} {number}" for name, number in value.items()),
        "devices": lambda value: ", ".join(str(device.get("kind")) for device in value),
        "command": lambda value: " ".join(map(str, value)),
        "hyper": lambda value: "; ".join(f"{name} {values}" for name, values in value.items()),
    }
    for name, value in known.items():
        if value not in ({}, [], None):
            try:
                rows.append([name.replace("_", " "), ways.get(name, str)(value)])
            except (AttributeError, TypeError):
                rows.append([name.replace("_", " "), str(value)])
    if rows:
        parts.append(Table("Versions and machine", ("", ""), rows, closed=True))
    return parts
