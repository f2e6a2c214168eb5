"""Three methods that the package does not have, through the doors that are open to a user's method: register, train,
resume, evaluate, report, list."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import jaxmbrl
from jaxmbrl import algorithms, cli
from jaxmbrl.commands import training
from jaxmbrl.core.config import UserError
from jaxmbrl.data import dataset
from jaxmbrl.training import collecting
from jaxmbrl.training.console import Progress

from .toys import CELLS, TOYS, optimal_values, registered

EPOCHS = {"toy-table": (4, 6), "toy-recurrent": (4, 6), "toy-image": (8, 10)}
"""Trained first, and in all."""
SEEDS, EPISODES = 2, 16


class Trained(NamedTuple):
    name: str
    folder: Path
    first: Any
    """Result of the first epochs."""
    whole: Any
    """Result of all."""
    console: str
    """Lines of the first epochs."""

    def last(self, metric: str) -> list[float]:
        """The metric of each seed in the last epoch."""
        return [row[metric] for row in self.whole.rows[-SEEDS:]]


@pytest.fixture(scope="module", params=list(TOYS))
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, compile_cache: None) -> Any:
    name, console = request.param, io.StringIO()
    folder = tmp_path_factory.mktemp("runs") / name
    with registered():
        epoch = TOYS[name].method.config().epoch_steps
        first, whole = (epochs * epoch for epochs in EPOCHS[name])
        fields: dict[str, Any] = {"seeds": SEEDS, "settings": {"eval_every": 2}, "eval_episodes": EPISODES}
        begun = jaxmbrl.train(name, name, steps=first, out=folder, progress=Progress(first, SEEDS, out=console), **fields)
        yield Trained(name, folder, begun, jaxmbrl.resume(folder, steps=whole), console.getvalue())


def test_it_is_trained_and_goes_on(trained: Trained) -> None:
    first, whole = EPOCHS[trained.name]
    assert [row["epoch"] for row in trained.whole.rows] == [1 + i // SEEDS for i in range(SEEDS * whole)]
    assert trained.whole.rows[: SEEDS * first] == trained.first.rows
    assert all(np.isfinite(value) for row in trained.whole.rows for value in row.values())
    assert all(("eval/return" in row) == (row["epoch"] % 2 == 0) for row in trained.whole.rows)


def test_it_learns(trained: Trained) -> None:
    returns = trained.last("eval/return")
    if trained.name == "toy-table":
        assert trained.last("table/steps_to_goal") == [CELLS - 1] * SEEDS
        assert max(trained.last("table/value_error")) < 0.05 < optimal_values()[0]
    elif trained.name == "toy-recurrent":
        # Without a memory of the cue no policy's mean is above 0.
        assert min(returns) > 0.9
    else:
        # In the first epoch nearly all actions are random.
        random = np.mean([row["train/return"] for row in trained.whole.rows if row["epoch"] == 1])
        assert np.mean(returns) > random + 0.3


def test_an_evaluation_gives_the_same_returns(trained: Trained) -> None:
    found = jaxmbrl.evaluate(trained.folder, episodes=EPISODES)
    assert found.returns.shape == (SEEDS, EPISODES) and found.frozen == ()
    np.testing.assert_allclose(found.per_seed, trained.last("eval/return"), rtol=1e-6)


def test_probes_are_in_rows_and_on_the_console(trained: Trained) -> None:
    probes = {"toy-table": {"table/steps_to_goal", "table/value_error"}}.get(trained.name, set())
    evaluated = [row for row in trained.whole.rows if "eval/return" in row]
    others = [row for row in trained.whole.rows if "eval/return" not in row]
    assert all(probes <= row.keys() for row in evaluated) and not any(probes & row.keys() for row in others)
    lines = [line for line in trained.console.splitlines() if line.startswith("epoch")]
    assert [all(probe in line for probe in probes) for line in lines] == [
        not probes or i % 2 == 1 for i in range(len(lines))
    ]


CHARTS = {
    "toy-table": {"First episode: observation", "table/steps_to_goal", "table/value_error", "table/error"},
    "toy-recurrent": {"First episode: observation", "recurrent/recomputed", "recurrent/loss"},
    "toy-image": {"Q and the return that followed", "image/loss"},
}
ALL = {"Return in evaluation over real steps", "First episode: action", "First episode: reward", "Actions", "Throughput"}
NONE = {"Error of the model", "Rollout length", "Critic's loss"}


def test_its_report_has_the_sections_that_apply(trained: Trained) -> None:
    assert cli.main(["report", str(trained.folder)]) == 0
    page = (trained.folder / "report.html").read_text()
    titles = set(re.findall(r'"title":"([^"]*)"', page))
    other = set().union(*CHARTS.values()) - CHARTS[trained.name]
    assert ALL | CHARTS[trained.name] <= titles and not (NONE | other) & titles
    assert "could not be evaluated" not in page and ">The model<" not in page and ">The policy<" in page
    assert "action (number of the choice)" in page and "-1 to 1" not in page
    assert ("what the policy observed in the first" in page) == ("data:image/gif" in page) == (trained.name == "toy-image")


def test_the_command_proposes_no_method_that_refuses_the_task(trained: Trained) -> None:
    out = io.StringIO()
    training._report(trained.whole, Progress(1, SEEDS, out=out))
    assert f" evaluate {trained.folder}\n" in out.getvalue()
    proposed = re.findall(r" train (\w[\w-]*) ", out.getvalue())
    # It has vectors as observations; PETS takes its discrete actions.
    assert proposed == (["pets"] if trained.name == "toy-recurrent" else [])
    for name in proposed:
        algorithms.get(name).make(algorithms.preset(name, trained.name)[1], trained.whole.task)


@pytest.mark.parametrize("trained", ["toy-recurrent"], indirect=True)
def test_a_method_that_needs_its_own_transitions_refuses_a_file(trained: Trained, tmp_path: Path) -> None:
    file = tmp_path / "rows.npz"
    rows, _ = collecting.collect_by(trained.name, "random", 600)
    dataset.save(file, rows, trained.name)
    with pytest.raises(
        UserError, match="toy-recurrent learns from transitions of its own policy: it cannot be trained from"
    ):
        jaxmbrl.train(trained.name, trained.name, data=file)


def test_the_command_lists_it(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list"]) == 0
    printed = capsys.readouterr().out
    assert re.search(rf"^    {trained.name} +{TOYS[trained.name].method.summary}$", printed, re.M)
    assert cli.main(["list", trained.name, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [method["name"] for method in found["algorithms"]] == [trained.name]
    assert {"name": trained.name, "family": "user"} in found["tasks"]
