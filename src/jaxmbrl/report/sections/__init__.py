"""The sections of the page: learning, comparison, the model, the policy, the run."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence

from jaxmbrl.diagnostics.published import Point
from jaxmbrl.report.diagnosing import Diagnosis
from jaxmbrl.report.gathering import Gathered, Run
from jaxmbrl.report.parts import Page, Section
from jaxmbrl.report.sections.learning import comparison, learning
from jaxmbrl.report.sections.model import model
from jaxmbrl.report.sections.policy import policy
from jaxmbrl.report.sections.run import running


def page(
    gathered: Gathered,
    diagnoses: Mapping[int, Diagnosis | str],
    points: Sequence[Point],
    source: str = "",
) -> Page:
    """The whole page. `diagnoses` maps the index of a run to its diagnosis, or to the reason why there is none. `points`
    are published returns, from the file called `source`."""
    groups = gathered.groups
    algorithms = list(dict.fromkeys(group.algorithm for group in groups))
    tasks = list(dict.fromkeys(group.env for group in groups))
    several = len(groups) > 1
    named = [", ".join(algorithms[:-1]), algorithms[-1]] if 1 < len(algorithms) < 6 else [algorithms[0]]
    names = " and ".join(named) if len(algorithms) < 6 else f"{len(algorithms)} algorithms"
    title = f"{names} on {', '.join(tasks)}"
    made = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    facts = [_state(run) for run in gathered.runs[:6]]
    if len(gathered.runs) > 6:
        facts.append(f"and {len(gathered.runs) - 6} more runs")
    found = [
        Section("learning", "Learning", tuple(learning(gathered, tasks, points, source))),
        Section("comparison", "Comparison", tuple(comparison(groups, tasks))) if several else None,
        Section("model", "The model", tuple(model(gathered, diagnoses))),
        Section("policy", "The policy", tuple(policy(gathered, diagnoses))),
        Section("run", "The runs" if len(gathered.runs) > 1 else "The run", tuple(running(gathered, diagnoses))),
    ]
    sections = tuple(section for section in found if section is not None and section.parts)
    return Page(title, (*facts, f"report of {made}"), sections)


def _state(run: Run) -> str:
    status = run.status
    of = "" if status.total_steps is None else f" of {status.total_steps:,}"
    seeds = f"{len(run.seeds)} seed{'s' if len(run.seeds) > 1 else ''}"
    frozen = f" ({len(status.frozen)} frozen)" if status.frozen else ""
    preset = f" ({run.config['preset']} preset)" if run.config.get("preset") else ""
    name = f"{run.path.absolute().name}: {run.config['algorithm']}{preset} on {run.config['env']}"
    return f"{name}, {seeds}{frozen}, {status.state} at {status.env_steps:,}{of} steps"
