"""Runs on several hosts, as processes of this machine that find each other."""

import json
import signal
import socket

import numpy as np
import pytest
from command_line import TIMINGS
from processes import TINY, begin, done, finish, steps, wait

from jaxmbrl.core.config import UserError
from jaxmbrl.training import hosts, restoring
from jaxmbrl.training.hosts import Hosts
from jaxmbrl.training.run_folder import RunFolder

SEEDS, STEPS = 4, 1000
QUICK = TINY["sac"].replace("--updates-per-step 30", "--updates-per-step 3")


def together(*words):
    """Two processes that train together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{free.getsockname()[1]}"
    return [begin("train", *words, "--coordinator", place, "--hosts", 2, "--host", i) for i in range(2)]


def new(out):
    words = [*QUICK.split(), "--steps", STEPS, "--seeds", SEEDS, "--seed", 5, "--checkpoint.every", 1, "--out", out]
    return ["sac", *map(str, words)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of one process."""
    out = tmp_path_factory.mktemp("alone") / "run"
    done(begin("train", *new(out)))
    return out


def test_shares_are_equal_but_for_one():
    for count in range(1, 6):
        for seeds in range(count, 14):
            shares = [Hosts(count, i).share(seeds) for i in range(count)]
            assert [first for first, _ in shares] == list(np.cumsum([0, *(n for _, n in shares)])[:-1])
            assert sum(n for _, n in shares) == seeds and max(n for _, n in shares) - min(n for _, n in shares) <= 1
    assert hosts.ALONE.share(3) == (0, 3) and hosts.ALONE.gather({"a": 1}) == [{"a": 1}]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("here:1", 2, None), "give --coordinator, --hosts and --host together"),
        ((None, 2, 0), "give --coordinator, --hosts and --host together"),
        (("here:1", 2, 2), r"--host must be at least 0 and below --hosts \(2\), got 2"),
    ],
)
def test_who_joins_wrongly_is_told(arguments, message):
    with pytest.raises(UserError, match=message):
        hosts.join(*arguments)


@pytest.mark.slow
def test_two_hosts_train_what_one_does_and_go_on_after_a_stop(alone, tmp_path):
    run = tmp_path / "run"
    both = together(*new(run))
    assert wait(both[0], lambda: parts(run, 1)[-1:] >= [200])
    # One of them is enough: it tells the other.
    both[1].send_signal(signal.SIGTERM)
    ends = [finish(process) for process in both]
    assert [code for code, _, _ in ends] == [75, 75], ends
    assert "steps; 'jaxmbrl train --resume" in ends[0][1]
    assert parts(run, 0) == parts(run, 1), "all of them stop at the same step"
    assert 200 <= parts(run, 0)[-1] < STEPS
    # Between the two, one process can look at it.
    _, state, _ = restoring.newest(run)
    assert state.fault.what.shape == (SEEDS,)
    for process in together("--resume", run):
        code, out, err = finish(process)
        assert code == 0, err
    assert parts(run, 0)[-1] == parts(run, 1)[-1] == STEPS
    rows, expected = (RunFolder.open(path).read_metrics() for path in (run, alone))
    assert [(r["epoch"], r["seed"]) for r in rows] == [(r["epoch"], r["seed"]) for r in expected]
    assert [(r["epoch"], r["seed"]) for r in rows] == [(e, s) for e in range(1, 11) for s in range(5, 9)]
    for row, other in zip(rows, expected, strict=True):
        if row["epoch"] <= 2:
            for name in set(row) - TIMINGS:
                assert row[name] == pytest.approx(other[name], rel=1e-5, abs=1e-5), name
    # The metrics are the first one's, whose events too; the other's are beside.
    assert json.loads((run / "events.host-1.jsonl").read_text().splitlines()[0])["kind"] == "start"
    assert [event["kind"] for event in RunFolder.open(run).read_events()].count("end") == 1
    # One process goes on alone with what two have begun.
    out = done(begin("train", "--resume", run, "--steps", STEPS + 100))
    assert f"resuming at {STEPS:,} of {STEPS + 100:,} steps" in out
    assert steps(run)[-1] == STEPS + 100 and len(RunFolder.open(run).read_metrics()) == 11 * SEEDS


def parts(run, host):
    return steps_in(run / "checkpoints" / f"host-{host}-of-2")


def steps_in(folder):
    return sorted(int(path.name) for path in folder.glob("0*")) if folder.is_dir() else []
