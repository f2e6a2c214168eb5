"""Normalised scores: D4RL's formula by hand, and the references that were measured."""

import json
from pathlib import Path

import pytest

from jaxmbrl.core.config import UserError
from jaxmbrl.training import scores
from jaxmbrl.training.scores import Reference

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def test_scores_by_hand():
    reference = Reference(-200.0, 300.0, "by hand")
    assert [scores.normalized(value, reference) for value in (-200.0, 300.0, 50.0, -300.0)] == [0.0, 100.0, 50.0, -20.0]
    # D4RL's Hopper: (2000 + 20.272305) / (3234.3 + 20.272305).
    assert scores.normalized(2000.0, scores.REFERENCES["Hopper-v5"]) == pytest.approx(62.074894)
    told = scores.described([50.0, 300.0], reference)
    assert told.startswith(
        "normalised score 75.0 (50.0, 100.0): 0 is a return of -200.0 (random), 100 one of 300.0 (expert)"
    )


def test_references_are_those_that_were_measured():
    measured = json.loads((RESULTS / "score-references.json").read_text())["results"]
    ours = {name: of for name, of in scores.REFERENCES.items() if of.source == scores.MEASURED}
    assert ours.keys() == measured.keys()
    for name, of in measured.items():
        assert ours[name][:2] == pytest.approx((of["random"], of["expert"]), abs=0.051)


def test_a_given_reference_replaces_the_tasks():
    assert scores.reference_of("no task") is None
    assert scores.reference_of("pendulum", (-1.0, 2.0))[:2] == (-1.0, 2.0)
    for wrong in ((1.0, 1.0), (float("nan"), 1.0)):
        with pytest.raises(UserError, match="--score-reference must be two different returns, RANDOM EXPERT, got"):
            scores.reference_of("pendulum", wrong)
