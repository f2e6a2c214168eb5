"""The figure and the tables of the results of `field.py`, and the page `docs/which_method.md` with them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from measure import provenance
from readme import number, table, value, written

from jaxmbrl import algorithms
from jaxmbrl.training.evaluation import (
    bootstrap_interval,
    improvement_interval,
    interquartile_mean,
    probability_of_improvement,
)
from jaxmbrl.training.run_folder import write_file

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "field"
PAGE = ROOT / "docs" / "which_method.md"
APART = "does-not-apply.json"
BASELINE = "sac"
MINUTES = (2, 10, 60)
"""Training times of the second table of recommendations."""

PANELS = {
    "model-free, off-policy": ("model_free",),
    "on-policy updates": ("on_policy",),
    "Dyna and value expansion": ("dyna", "value_expansion"),
    "value gradients": ("value_gradients",),
    "planning, latent models, search": ("shooting", "trajectory", "latent", "search"),
    "others": (),
}
"""Panel of the figure -> the families in it. `others` has all families that are not named."""
COLORS = (
    "#0b3d91",
    "#c1440e",
    "#2e7d32",
    "#8e5ea2",
    "#b8860b",
    "#008b8b",
    "#d81b60",
    "#5d4037",
    "#7cb342",
    "#1e88e5",
    "#000000",
)
MARKS = "osD^vP*Xdph"


class Stage(NamedTuple):
    """An evaluation of a case."""

    steps: int
    """The number of steps of the comparison."""
    env_steps: int
    """Those that were taken."""
    per_seed: tuple[float, ...]
    mean: float
    iqm: float
    interval: tuple[float, float]
    frozen: int
    """Seeds with a value that was not finite."""
    training: float
    """CPU seconds, of all seeds, without compilation and evaluation."""
    compilation: float


class Found(NamedTuple):
    """The results of a case."""

    method: str
    task: str
    family: str
    preset: str
    seeds: int
    steps: tuple[int, ...]
    state: str
    stages: tuple[Stage, ...]

    def at(self, steps: int) -> Stage | None:
        """The evaluation at `steps`; None if it is not measured."""
        return next((stage for stage in self.stages if stage.steps == steps), None)

    @property
    def panel(self) -> str:
        """Its panel of the figure."""
        return next((panel for panel, families in PANELS.items() if self.family in families), "others")


def name_of(method: str, task: str) -> str:
    """Name of a case."""
    return f"{method}-{task.replace('/', '+')}"


def at(env_steps: int) -> str:
    """The state of a case that is begun."""
    return f"at {env_steps:,} steps"


def summary(returns: Sequence[float]) -> dict[str, Any]:
    """Mean, interquartile mean and its 95% bootstrap interval, of the returns of all seeds."""
    interval = list(bootstrap_interval(returns))
    return {"mean": float(np.mean(returns)), "iqm": interquartile_mean(returns), "interval": interval}


def text_of(values: Mapping[str, Any]) -> str:
    """JSON with a line for each list of plain values."""
    return re.sub(r"\[[^][{}]*]", lambda row: " ".join(row[0].split()), json.dumps(values, indent=1))


def keep_apart(out: Path, apart: Mapping[str, Mapping[str, str]]) -> None:
    """Write the reasons why methods do not apply (task -> method -> reason); those of other tasks in the file are kept."""
    before = reasons(out)
    found = before | {task: dict(of) for task, of in apart.items()}
    if found != before:
        out.mkdir(parents=True, exist_ok=True)
        write_file(out / APART, (json.dumps({"reasons": found, **provenance()}, indent=1) + "\n").encode())


def reasons(out: Path) -> dict[str, dict[str, str]]:
    """Task -> method -> reason why it does not apply."""
    return json.loads((out / APART).read_text())["reasons"] if (out / APART).exists() else {}


def results(out: Path) -> list[Found]:
    """The results of all cases, in the order of the registry."""
    found = []
    for file in sorted(out.glob("*.json")):
        if file.name == APART:
            continue
        case = json.loads(file.read_text())
        stages = tuple(
            Stage(
                *(of["steps"], of["env_steps"], tuple(of["per_seed"]), of["mean"], of["iqm"], tuple(of["interval"])),
                *(len(of["frozen"]), of["cpu_seconds"]["training"], of["cpu_seconds"]["compilation"]),
            )
            for of in case["stages"]
        )
        plain = (case[key] for key in ("method", "task", "family", "preset", "seeds"))
        found.append(Found(*plain, tuple(case["steps"]), case["state"], stages))
    order = list(algorithms.METHODS)
    return sorted(found, key=lambda case: order.index(case.method) if case.method in order else len(order))


def tasks_of(found: Iterable[Found], out: Path) -> list[str]:
    """The tasks with measured cases, in the order in which they are listed."""
    measured = {case.task for case in found if case.stages}
    return [task for task in dict.fromkeys([*reasons(out), *sorted(measured)]) if task in measured]


def steps_of(found: Iterable[Found]) -> list[int]:
    """The numbers of steps of the comparison."""
    return sorted({steps for case in found for steps in case.steps})


def over(ours: Stage, theirs: Stage) -> str:
    """The probability that a seed of one case has a higher return than one of another, with its interval."""
    pair = (ours.per_seed, theirs.per_seed)
    low, high = improvement_interval(pair)
    return f"{probability_of_improvement(pair):.2f} [{low:.2f}, {high:.2f}]"


def returns(found: Sequence[Found], task: str) -> list[str]:
    """The table of a task: the best at the most steps first."""
    steps, here = steps_of(found), [case for case in found if case.task == task and case.stages]
    baseline = next((case for case in here if case.method == BASELINE), None)
    here.sort(key=lambda case: (-case.stages[-1].steps, -case.stages[-1].iqm))
    rows = []
    for case in here:
        last = case.stages[-1]
        cells = []
        for stage in map(case.at, steps):
            of = (
                "-"
                if stage is None
                else f"{value(stage.mean)}; {value(stage.iqm)} [{', '.join(map(value, stage.interval))}]"
            )
            cells.append(of + (f" at {stage.env_steps:,}" if stage is not None and stage.env_steps != stage.steps else ""))
        reference = baseline.at(last.steps) if baseline is not None and case.method != BASELINE else None
        above = (
            "-" if reference is None else over(last, reference) + (f" at {last.steps:,}" if last.steps < steps[-1] else "")
        )
        frozen = f", {last.frozen} of {case.seeds} seeds not finite" if last.frozen else ""
        rows.append(
            (f"`{case.method}`, `{case.preset}`{frozen}", *cells, above, number(last.training), number(last.compilation))
        )
    head = (
        *("method, preset", *(f"{of:,} steps" for of in steps), f"P(above `{BASELINE}`)"),
        *("training (core s)", "compilation (core s)"),
    )
    return table(head, rows)


Choose = Callable[[Found], Stage | None]


def best(found: Sequence[Found], task: str, choose: Choose) -> str:
    """The method with the highest interquartile mean among the evaluations that `choose` selects, and those that are not
    distinguishable from it: the interval of the probability that the best has the higher return has 0.5 in it."""
    here = [(case.method, stage) for case in found if case.task == task and (stage := choose(case)) is not None]
    if not here:
        return "-"
    here.sort(key=lambda entry: -entry[1].iqm)
    (first, top), others = here[0], here[1:]
    same = [name for name, stage in others if improvement_interval((top.per_seed, stage.per_seed))[0] <= 0.5]
    beside = f"; also {', '.join(f'`{name}`' for name in same)}" if same else ""
    return f"`{first}` ({value(top.iqm)}){beside}; of {len(here)}"


def within(minutes: float) -> Choose:
    """The last evaluation of a case within some minutes of training."""
    return lambda case: next((stage for stage in reversed(case.stages) if stage.training <= 60 * minutes), None)


def choices(found: Sequence[Found], tasks: Sequence[str]) -> list[str]:
    """The table of the best methods, by real steps and by training time."""
    columns: dict[str, Choose] = {f"{of:,} steps": lambda case, of=of: case.at(of) for of in steps_of(found)}
    columns |= {f"{of} core minutes": within(of) for of in MINUTES}
    rows = [(f"`{task}`", *(best(found, task, choose) for choose in columns.values())) for task in tasks]
    return table(("task", *columns), rows)


def missing(found: Sequence[Found], out: Path) -> list[str]:
    """Lines that name the cases that are not measured, or not yet to the end."""
    lines = []
    states = {(case.task, case.method): case for case in found}
    for task, apart in reasons(out).items():
        applicable = [method for method in algorithms.METHODS if method not in apart]
        of = {method: states.get((task, method)) for method in applicable}
        done = [method for method, case in of.items() if case is not None and case.state == "done"]
        partly = [f"`{name}` ({case.state})" for name, case in of.items() if case is not None and case.state != "done"]
        rest = [f"`{name}`" for name, case in of.items() if case is None]
        lines.append(f"- `{task}`: {len(done)} of {len(applicable)} methods that apply are measured.")
        lines += [f"  Begun: {', '.join(partly)}."] if partly else []
        lines += [f"  Not measured: {', '.join(rest)}."] if rest else []
    return lines


def not_applicable(out: Path) -> list[str]:
    """The table of the methods that do not apply, with the tasks and the reasons."""
    of: dict[tuple[str, str], list[str]] = {}
    for task, apart in reasons(out).items():
        for method, reason in apart.items():
            of.setdefault((method, plain_reason(reason, task)), []).append(task)
    order = list(algorithms.METHODS)
    rows = sorted(of.items(), key=lambda entry: (order.index(entry[0][0]), entry[1]))
    lines = table(
        ("method", "tasks", "reason"),
        ((f"`{method}`", ", ".join(f"`{task}`" for task in tasks), reason) for (method, reason), tasks in rows),
    )
    return [line.replace("| --- | ---: | ---: |", "| --- | --- | --- |") for line in lines]


def plain_reason(reason: str, task: str) -> str:
    """A reason without the task's name and sizes, and without the advice at the end."""
    plain_text = re.sub(r"Box\(shape=\([^)]*\)[^)]*\)", "`Box`", reason.replace(f"task '{task}'", "the task"))
    plain_text = plain_text.replace(f"'{task}'", "the task").replace(f"--env {task} ", "--env TASK ")
    return plain_text.removesuffix(": take another task").replace("|", "/")


def tables(out: Path) -> dict[str, Callable[[], list[str]]]:
    """The tables of the page, by name."""
    found = results(out)
    tasks = tasks_of(found, out)

    def by_task() -> list[str]:
        return [line for task in tasks for line in (f"### {task}", "", *returns(found, task), "")][:-1]

    return {
        "choices": lambda: choices(found, tasks),
        "not measured": lambda: missing(found, out),
        "returns by task": by_task,
        "does not apply": lambda: not_applicable(out),
    }


def page(text: str, out: Path) -> str:
    """The text of the page with the tables of the results in `out`."""
    return written(PAGE.name, text, tables(out), "benchmarks/field.py --report")


def write(out: Path) -> None:
    """Write the figure beside the results, and the tables into the page. Raises SystemExit if there are no results."""
    found = results(out)
    if not any(case.stages for case in found):
        raise SystemExit(f"{out} has no results yet")
    draw(found, tasks_of(found, out)).savefig(out / "field.png", metadata={"Software": None})
    PAGE.write_text(page(PAGE.read_text(), out))
    print("\n".join(missing(found, out)))


def draw(found: Sequence[Found], tasks: Sequence[str]) -> Figure:
    """A row for each task: the methods of each group against steps, and all methods against training time."""
    panels = [panel for panel in PANELS if any(case.panel == panel and case.stages for case in found)]
    columns = len(panels) + 1
    figure = Figure(figsize=(3.1 * columns + 1.2, 2.9 * len(tasks) + 0.3), dpi=100, layout="constrained")
    grid = figure.subplots(len(tasks), columns, squeeze=False, width_ratios=[1.0] * len(panels) + [1.6])
    for line, task in zip(grid, tasks, strict=True):
        here = [case for case in found if case.task == task and case.stages]
        for axes, panel in zip(line, panels, strict=False):
            by_steps(axes, here, panel)
            axes.sharey(line[0])
        by_time(line[-1], here, panels)
        line[-1].sharey(line[0])
        line[0].set_ylabel(f"{task}\nreturn (interquartile mean)", fontsize=8)
    # The colours are the same in all rows.
    grid[0, -1].legend(fontsize=6, frameon=False, loc="best", handlelength=1.2, labelspacing=0.3)
    for axes, title in zip(grid[0], [*panels, "all, against training time of one core"], strict=True):
        axes.set_title(title, loc="left", fontsize=9)
    return figure


def curve(case: Found) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(steps, interquartile means, distances [2, ...] to the ends of their intervals)."""
    steps, means = (np.array([getattr(stage, of) for stage in case.stages]) for of in ("env_steps", "iqm"))
    low, high = np.array([stage.interval for stage in case.stages]).T
    return steps, means, np.maximum([means - low, high - means], 0.0)


def by_steps(axes: Axes, here: Sequence[Found], panel: str) -> None:
    """The returns of one group against steps, before those of all methods and of the baseline."""
    own = [case for case in here if case.panel == panel and case.method != BASELINE]
    for case in here:
        if case.method != BASELINE and case not in own:
            axes.plot(*curve(case)[:2], color="0.88", linewidth=0.8, zorder=1)
    for case in (case for case in here if case.method == BASELINE):
        bars = curve(case)[2] if case.panel == panel else None
        look = {"color": "black", "linestyle": ":", "linewidth": 1.4, "elinewidth": 0.8, "label": BASELINE, "zorder": 2}
        axes.errorbar(*curve(case)[:2], bars, **look)
    for i, case in enumerate(own):
        look = {"color": COLORS[i % len(COLORS)], "marker": MARKS[i % len(MARKS)], "markersize": 3.5}
        axes.errorbar(*curve(case), linewidth=1.3, elinewidth=0.8, label=case.method, zorder=3, **look)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 1000:g}k"))
    plain(axes, "real steps")
    if own or any(case.method == BASELINE for case in here):
        axes.legend(fontsize=6, frameon=False, ncols=2, loc="best", handlelength=1.5, columnspacing=0.8, labelspacing=0.3)


def by_time(axes: Axes, here: Sequence[Found], panels: Sequence[str]) -> None:
    """All returns against training time, a colour for each group. Methods with no better return in less time are named."""
    points = sorted((stage.training, -stage.iqm, case.method) for case in here for stage in case.stages)
    front: dict[str, tuple[float, float]] = {}
    highest = -np.inf
    for seconds, less, method in points:
        if -less > highest:
            highest = -less
            front[method] = (seconds, highest)
    for case in here:
        color = COLORS[panels.index(case.panel)]
        xs, ys = [stage.training for stage in case.stages], [stage.iqm for stage in case.stages]
        on_front = case.method in front
        axes.plot(xs, ys, color=color, alpha=1.0 if on_front else 0.35, linewidth=0.9, marker="o", markersize=2.5)
    for i, (method, (seconds, highest)) in enumerate(front.items()):
        look = {"fontsize": 7, "textcoords": "offset points", "ha": "right", "va": "bottom" if i % 2 else "top"}
        axes.annotate(method, (seconds, highest), (-4, 3 if i % 2 else -3), **look)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    for i, panel in enumerate(panels):
        axes.plot([], [], color=COLORS[i], label=panel)
    plain(axes, "training seconds, all seeds (log scale)")


def plain(axes: Axes, label: str) -> None:
    axes.set_xlabel(label, fontsize=7)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.94", linewidth=0.6)
