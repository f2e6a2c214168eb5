"""What is read of run folders, and how their seeds are put into groups."""

import json
import subprocess
import sys
import time

import pytest
from run_by_hand import row, write

from jaxmbrl.core.config import UserError
from jaxmbrl.report import curves, gathering
from jaxmbrl.sweeping.folder import SweepFolder
from jaxmbrl.training.run_folder import RunFolder, event_of


def test_a_run_is_read_as_it_is(run):
    found = gathering.gather([run])
    (held,), (group,) = found.runs, found.groups
    assert held.config == RunFolder.open(run).read_config() and held.rows == RunFolder.open(run).read_metrics()
    assert (group.label, group.algorithm, group.env, group.runs) == ("sac", "sac", "pendulum", (0,))
    assert [(seed.seed, seed.name, len(seed.rows)) for seed in group.seeds] == [(0, "0", 6), (1, "1", 6), (2, "2", 6)]
    assert found.absent == []


def test_seeds_of_the_same_settings_are_one_group(tmp_path):
    write(tmp_path / "a", seeds=2)
    write(tmp_path / "b", seeds=2, seed=2, steps=800)
    write(tmp_path / "c", seeds=2, batch_size=32)
    found = gathering.gather([tmp_path / name for name in "cab"])
    assert [(group.label, group.runs) for group in found.groups] == [
        ("sac, batch_size 32", (0,)),
        ("sac, batch_size 256", (1, 2)),
    ]
    assert [seed.seed for seed in found.groups[1].seeds] == [0, 1, 2, 3]


def test_the_same_seed_of_two_runs_has_two_names(tmp_path):
    for name in "ab":
        write(tmp_path / name, seeds=1)
    (group,) = gathering.gather([tmp_path / "a", tmp_path / "b"]).groups
    assert [seed.name for seed in group.seeds] == ["0 of a", "0 of b"]


def test_folders_of_one_name_are_told_apart(tmp_path):
    """Their seeds, all of which count, and groups that differ in more settings than a label holds."""
    old, new = (write(tmp_path / name / "run", seeds=2) for name in ("old", "new"))
    (group,) = gathering.gather([old, new]).groups
    assert [seed.name for seed in group.seeds] == [f"{seed} of {path}" for path in (old, new) for seed in (0, 1)]
    values = [100.0, 101.0, 300.0, 301.0]
    rows = [[row | {"eval/return": value} for row in seed.rows] for seed, value in zip(group.seeds, values, strict=True)]
    group = group._replace(seeds=tuple(seed._replace(rows=own) for seed, own in zip(group.seeds, rows, strict=True)))
    assert curves.last_values(group, "eval/return") == values
    many = {"batch_size": 32, "replay_capacity": 500, "warmup_steps": 20, "updates_per_step": 2}
    other = write(tmp_path / "third" / "run", seeds=2, **many)
    labels = [group.label for group in gathering.gather([old, other]).groups]
    assert labels == [f"sac ({old})", f"sac ({other})"]
    close = [
        write(tmp_path / name, **{"agent.learning_rate": rate}) for name, rate in (("a", 0.0012345678), ("b", 0.0012345679))
    ]
    labels = [group.label for group in gathering.gather(close).groups]
    assert labels == [f"sac, agent.learning_rate 0.00123457 ({k})" for k in (1, 2)]


def test_the_step_that_all_seeds_have_reached(tmp_path):
    """Of a group of a long and a short run, that of the short one; a seed without any value does not count."""
    long, short = write(tmp_path / "long", seeds=2), write(tmp_path / "short", seeds=1, seed=2)
    (group,) = gathering.gather([long, short]).groups
    cut = group.seeds[2]._replace(rows=group.seeds[2].rows[:2])
    none = group.seeds[1]._replace(
        rows=[{k: v for k, v in row.items() if k != "train/return"} for row in group.seeds[1].rows]
    )
    group = group._replace(seeds=(group.seeds[0], none, cut))
    assert curves.reached(group, "train/return") == cut.rows[-1]["env_steps"] < group.seeds[0].rows[-1]["env_steps"]
    assert curves.reached(group, "eval/nothing") == 0


def test_a_run_that_is_named_twice_counts_once(run):
    assert len(gathering.gather([run, run.parent / "." / run.name, run.parent]).runs) == 1


def test_traced_numbers_part_the_seeds_of_a_run(tmp_path):
    run = write(tmp_path / "run", seeds=4, hyper={"learning_rate": [1e-3, 1e-3, 3e-4, 3e-4]})
    groups = gathering.gather([run]).groups
    assert [group.label for group in groups] == ["sac, learning_rate 0.001", "sac, learning_rate 0.0003"]
    assert [[seed.seed for seed in group.seeds] for group in groups] == [[0, 1], [2, 3]]


def test_algorithms_are_called_by_their_names(tmp_path):
    paths = [write(tmp_path / name, name) for name in ("sac", "td3", "mbpo")]
    assert [group.label for group in gathering.gather(paths).groups] == ["sac", "td3", "mbpo"]


def test_a_sweeps_folder_holds_its_runs(tmp_path):
    sweep = SweepFolder(tmp_path / "sweep")
    sweep.create()
    sweep.write_index(["second", "first", "third", "wrong"], {"wrong": "batch_size must be at least 1"})
    write(sweep.run("first"), batch_size=16)
    write(sweep.run("second"), batch_size=32)
    found = gathering.gather([sweep.path])
    assert [run.path.name for run in found.runs] == ["second", "first"]
    assert [group.label for group in found.groups] == ["sac, batch_size 32", "sac, batch_size 16"]
    assert [(told.name, told.state) for told in found.absent] == [("third", "waiting"), ("wrong", "invalid")]


def test_a_run_that_has_just_begun_has_no_rows(tmp_path):
    found = gathering.gather([write(tmp_path / "run", rows=[])])
    assert found.runs[0].rows == [] and [seed.rows for seed in found.groups[0].seeds] == [[], [], []]


def test_a_torn_last_line_is_left_out(run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 7, "env_st')
    before = (run / "metrics.jsonl").read_bytes()
    assert len(gathering.gather([run]).runs[0].rows) == 18
    assert (run / "metrics.jsonl").read_bytes() == before


APPEND = """
import json, sys, time
file = open(sys.argv[1], "a", buffering=1)
for step in range(1400, 10**9, 200):
    for seed in range(3):
        line = json.dumps({"epoch": step // 200, "env_steps": step, "seed": seed, "wall_time": 1.0}) + "\\n"
        file.write(line[:20]); file.flush()
        file.write(line[20:]); file.flush()
"""


@pytest.mark.promises
def test_rows_are_read_while_another_process_writes_them(run):
    writer = subprocess.Popen([sys.executable, "-c", APPEND, str(run / "metrics.jsonl")])
    try:
        counts, until = [], time.monotonic() + 20
        while len(set(counts)) < 5 and time.monotonic() < until:
            counts.append(len(gathering.gather([run]).runs[0].rows))
    finally:
        writer.kill()
        writer.wait()
    assert counts == sorted(counts) and len(set(counts)) >= 5


def test_what_is_no_run_is_refused(tmp_path, run):
    (tmp_path / "empty").mkdir()
    for path, told in [("nowhere", "there is no folder"), ("empty", "has no runs")]:
        with pytest.raises(UserError, match=told):
            gathering.gather([tmp_path / path])
    config = (run / "config.yaml").read_text()
    for text, told in [("a: [", "not valid YAML"), ("a: 1\n", "lacks algorithm"), ("[]", "must be a mapping of fields")]:
        (run / "config.yaml").write_text(text)
        with pytest.raises(UserError, match=told) as error:
            gathering.gather([run])
        assert "\n" not in str(error.value)
    (run / "config.yaml").write_text(config.replace("seeds: 3", "seeds: many"))
    with pytest.raises(UserError, match="seeds must be a whole number"):
        gathering.gather([run])
    (run / "config.yaml").write_text(config)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"epoch": 1}) + "\n")
    with pytest.raises(UserError, match="without env_steps"):
        gathering.gather([run])


def test_nothing_is_written(run):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    gathering.gather([run])
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_events_of_all_hosts_come_in_the_order_of_time(run):
    folder = RunFolder.open(run)
    folder.append_events([event_of("warning", text="of the second host")], host=1)
    folder.append_events([event_of("end", env_steps=1200)])
    assert [event["kind"] for event in gathering.gather([run]).runs[0].events] == ["start", "compile", "warning", "end"]


def test_checkpoints_that_were_set_aside_are_told(run):
    (run / "checkpoints" / "damaged-00000200").mkdir(parents=True)
    assert gathering.gather([run]).runs[0].damaged == ("checkpoints/damaged-00000200",)


def test_what_differs_from_the_preset(tmp_path):
    config = gathering.gather([write(tmp_path / "run", "mbpo", real_ratio=0.5, epoch_steps=400)]).runs[0].config
    found = {name: (due, own) for name, due, own in gathering.differences(config)}
    assert found["real_ratio"] == (0.05, 0.5) and found["epoch_steps"] == (200, 400) and found["steps"][1] == 1200
    assert set(found) == {"real_ratio", "epoch_steps", "steps"}
    assert gathering.differences(config | {"preset": "gone"}) is None
    assert gathering.differences(config | {"algorithm": "gone"}) is None


def test_a_row_of_a_frozen_seed_has_no_metrics(tmp_path):
    rows = [row(0, 200), {"epoch": 1, "env_steps": 200, "seed": 1, "wall_time": 14.0, "frozen": True}]
    found = gathering.gather([write(tmp_path / "run", seeds=2, rows=rows)])
    assert found.runs[0].status.frozen == (1,)
