"""Published returns are read, ours are taken at the same steps, and both are seen: hand-computed numbers."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxmbrl.core.config import UserError
from jaxmbrl.diagnostics import published
from jaxmbrl.diagnostics.published import Point

FILE = Path(__file__).parents[2] / "benchmarks" / "published" / "returns.csv"
HEADER = ",".join(Point._fields)


def row(step, seed, value=None):
    found = {"epoch": 1, "env_steps": step, "seed": seed, "wall_time": step / 10}
    return found if value is None else found | {"eval/return": value}


def point(method, step, mean, task="Hopper"):
    return Point(task, step, method, mean, 100.0, 5, None, "gym-v4", "somewhere")


ROWS = [
    row(47_500, 0, 1.0),
    row(50_000, 0, 2.0),
    row(52_500, 0, 6.0),
    row(52_501, 0, 1000.0),
    row(50_000, 1, 5.0),
    row(47_499, 1, 1000.0),
    row(49_999, 2, 1000.0),
    row(60_000, 1),
]
"""Seed 0 is evaluated at both ends of the window of 50,000 steps and beyond it, seed 1 once in it; seed 2 has not come so
far."""


def test_the_published_returns_are_all_there():
    points = published.read(FILE)
    assert len(points) == 501
    on_gymnasium = {"Hopper", "Walker2d", "HalfCheetah", "Ant", "Humanoid"}
    assert {p.task for p in points} == on_gymnasium | {"dmc/cartpole-balance", "dmc/cartpole-swingup"}
    assert set(published.LOOKS) < {p.method for p in points}
    assert len({p[:3] for p in points}) == 501
    mbpo = [p[1:7] for p in published.of_task(points, "Hopper-v5") if p.method == "MBPO"]
    assert mbpo[0] == (50_000, "MBPO", 1728.2, 934.4, 5, 3.36)
    assert [p.wall_clock_hours for p in points if p.method == "SAC (UTD1)"] == [None] * 30


@pytest.mark.parametrize(
    ("env", "name"),
    [
        ("Hopper-v5", "Hopper"),
        ("gymnasium/Hopper-v4", "Hopper"),
        ("Ant-v5/truncated", "Ant"),
        ("Humanoid-v5/truncated", "Humanoid"),
        # Another reward.
        ("pets/HalfCheetah", None),
        ("pendulum", None),
    ],
)
def test_tasks_by_their_published_names(env, name):
    points = [point("MBPO", 1, 1.0, task) for task in ("Hopper", "Ant", "Humanoid", "HalfCheetah")]
    assert [p.task for p in published.of_task(points, env)] == ([] if name is None else [name])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("task,steps\n", "must begin with the line task,environment_steps,"),
        (f"{HEADER}\nHopper,5,MBPO,1,2,5\n", "line 2 must have 9 entries, got 6"),
        (f"{HEADER}\nHopper,5,MBPO,1,2,5,,v4,x\nHopper,5,MBPO,much,2,5,,v4,x\n", "line 3: return_mean must be a number"),
    ],
)
def test_a_file_that_is_wrong_is_told(tmp_path, text, told):
    (tmp_path / "returns.csv").write_text(text)
    with pytest.raises(UserError, match=told):
        published.read(tmp_path / "returns.csv")
    with pytest.raises(UserError, match="cannot be read"):
        published.read(tmp_path / "none.csv")


def test_a_return_at_a_step_is_the_mean_of_the_evaluations_near_it():
    assert published.at_step(ROWS, 50_000) == {0: 3.0, 1: 5.0}
    assert published.at_step([row(194_000, 0, 1.0), row(206_000, 0, 3.0), row(206_001, 0, 9.0)], 200_000) == {0: 2.0}


def test_ours_beside_theirs():
    points = [point("MBPO", 50_000, 8.0), point("DHMBPO", 50_000, 9.0), point("MBPO", 100_000, 10.0)]
    (found,) = published.compare(ROWS, points)
    assert found.environment_steps == 50_000 and found.theirs == points[:2] and found.of("MBPO") == points[0]
    ours = found.ours
    assert (ours.per_seed, ours.mean, ours.iqm, ours.interval) == ({0: 3.0, 1: 5.0}, 4.0, 4.0, (3.0, 5.0))
    assert ours.std == pytest.approx(np.sqrt(2)) and ours.wall_clock_hours == 1.389
    assert published.table([found]).splitlines()[1].split() == (
        ["50,000", "4,", "4", "[3,", "5],", "2", "seeds", "8", "±", "100", "9", "±", "100"]
    )
    assert published.compare(ROWS[:2], points)[0].ours.std is None


def test_the_share_of_the_reference_is_over_all_tasks():
    """Shares 3/8 and 5/8 of one task, 4/2 and 8/2 of the other: the middle two are 5/8 and 2."""
    one = published.compare(ROWS, [point("MBPO", 50_000, 8.0), point("DHMBPO", 52_000, 9.0)])
    other = published.compare([row(1000, 0, 4.0), row(1000, 1, 8.0)], [point("MBPO", 1000, 2.0)])
    found = published.share_of_reference([one, other, []])
    assert found["tasks"] == 2 and found["iqm"] == pytest.approx((5 / 8 + 2) / 2)
    # The least that can be drawn, and the most, come in 3 of 16 resamplings each.
    assert found["interval"] == (pytest.approx((3 / 8 + 2) / 2), pytest.approx((5 / 8 + 4) / 2))
    assert published.share_of_reference([[], published.compare(ROWS, [point("SAC", 50_000, 8.0)])]) is None


@pytest.mark.parametrize("rows", [ROWS, ROWS[:3], []])
def test_the_picture(tmp_path, rows):
    known = published.of_task(published.read(FILE), "Hopper-v5")
    for name, points in (("with", known), ("without", [])):
        published.draw(rows, points, tmp_path / f"{name}.png", "title", "ours")
    with_points, without = (np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB")) for name in ("with", "without"))
    color = np.array([0xC1, 0x44, 0x0E])
    assert (with_points == color).all(axis=2).sum() > 300 and not (without == color).all(axis=2).any()
    ours = np.array([0x0B, 0x3D, 0x91])
    assert (without == ours).all(axis=2).any()
