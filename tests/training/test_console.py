import io
import os
import pty
import re
import subprocess
import sys
import textwrap

import pytest

from jaxmbrl.training import console
from jaxmbrl.training.console import Progress, Speed, Work, duration, summary


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def rows(epoch: int, seeds: int = 2, **values: float) -> list[dict]:
    made = [{"epoch": epoch, "env_steps": 200 * epoch, "seed": seed, "time/epoch": 2.0} for seed in range(seeds)]
    return [{**row, **{name.replace("_", "/", 1): value + row["seed"] for name, value in values.items()}} for row in made]


def test_plain_lines():
    out = io.StringIO()
    with Progress(1000, 2, out) as progress:
        progress.say("pets on cartpole")
        progress.compiling("training")
        progress.compiled("training", 12.34)
        progress.update(0)
        progress.update(200, "collecting")
        progress.epoch(rows(1))
        progress.epoch(rows(2, train_return=57.0, model_holdout_error=0.01234))
        progress.epoch(rows(5, train_return=-3.0, eval_return=100.0))
        progress.warn("seed 1 is frozen")
        progress.epoch([])
    assert out.getvalue().splitlines() == [
        "pets on cartpole",
        "compiling training ...",
        "compiled training in 12.3 s",
        "epoch 1, 200 of 1,000 steps, 2.0 s",
        "epoch 2, 400 of 1,000 steps, train return 57.5, model error 0.512, 2.0 s",
        "epoch 5, 1,000 of 1,000 steps, train return -2.5, eval return 100.5, 2.0 s",
        "warning: seed 1 is frozen",
    ]


def test_means_are_over_the_seeds_that_know():
    found = summary(
        [
            {"epoch": 3, "env_steps": 12_000, "seed": 4, "train/return": 1.0, "time/epoch": 3.0},
            {"epoch": 3, "env_steps": 12_000, "seed": 5, "eval/return": 7.0, "time/epoch": 3.0},
            {"epoch": 3, "env_steps": 12_000, "seed": 6, "train/return": 100.0, "frozen": True, "time/epoch": 3.0},
            {"epoch": 3, "env_steps": 12_000, "seed": 7, "train/return": 2.0, "frozen": False, "time/epoch": 3.0},
        ]
    )
    assert found == {
        "epoch": "3",
        "env steps": "12,000",
        "train return": "1.5",
        "eval return": "7.0",
        "seconds": "3.0",
        "frozen": "seed 6",
    }


@pytest.mark.parametrize(
    ("value", "text"), [(48_000.0, "48,000"), (9_999.0, "9999"), (14.466, "14.47"), (-12_345.6, "-12,346"), (3e8, "3e+08")]
)
def test_counts_are_whole_numbers(value, text):
    found = summary([{"epoch": 1, "env_steps": 1, "seed": 0, "updates": value}], [("updates", "updates", ".4g")])
    assert found["updates"] == text


def test_frozen_seeds_are_marked():
    out = io.StringIO()
    frozen = [{**row, "frozen": row["seed"] > 0} for row in rows(1, 3, train_return=5.0)]
    Progress(1000, 3, out).epoch(frozen)
    assert out.getvalue() == "epoch 1, 200 of 1,000 steps, train return 5.0, 2.0 s, frozen: seeds 1, 2\n"
    terminal = Terminal()
    run_on_terminal(terminal, lambda progress: progress.epoch(frozen))
    assert "seeds 1, 2" in terminal.getvalue()


def test_silence(capsys):
    with Progress.silent() as progress:
        progress.say("x")
        progress.warn("x")
        progress.compiling("x")
        progress.compiled("x", 1.0)
        progress.update(5, "x")
        progress.epoch(rows(1))
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err == ""


def test_text_that_the_stream_cannot_hold_is_replaced():
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    Progress(10, 1, out).say("return \u2524\u28ff")
    assert raw.getvalue() == b"return ??\n"


class Broken(io.StringIO):
    """A stream that fails after its first line: a pipe whose reader has ended, a full disk, a closed stream."""

    def __init__(self, error, terminal=False):
        super().__init__()
        self.error, self.terminal = error, terminal

    def isatty(self):
        return self.terminal

    def write(self, text):
        if "\n" in self.getvalue():
            raise self.error
        return super().write(text)


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (BrokenPipeError(32, "Broken pipe"), "Broken pipe"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (ValueError("I/O operation on closed file."), "I/O operation on closed file."),
    ],
)
def test_a_run_goes_on_without_an_output_that_fails(error, reason, terminal, capsys, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    out = Broken(error, terminal)
    progress = Progress(1000, 1, out)
    progress.say("shown")
    progress.say("lost")
    with progress:
        progress.update(100)
        progress.epoch(rows(1, 1))
        progress.warn("lost")
    assert "shown" in out.getvalue() and "lost" not in out.getvalue()
    told = f"jaxmbrl: warning: the output cannot be written to ({reason}): continuing without it\n"
    assert capsys.readouterr() == ("", told), "it is told once"


def test_a_process_without_standard_output_has_a_console(monkeypatch, capsys):
    for missing in (None, closed()):
        monkeypatch.setattr(sys, "stdout", missing)
        with Progress(10, 1) as progress:
            progress.say("x")
            progress.epoch(rows(1))
    assert capsys.readouterr().out == ""


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


def test_a_command_on_a_narrow_terminal_stays_one_line(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    Progress(10, 1, out).say("  jaxmbrl train --resume 'runs/a long name of a folder' --steps 100000")
    assert out.getvalue() == "  jaxmbrl train --resume 'runs/a long name of a folder' --steps 100000\n"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (200.0, "3 min 20 s"),
        (7500.0, "2 h 05 min"),
        (90_000.0, "25 h 00 min"),
    ],
)
def test_durations(seconds, words):
    assert duration(seconds) == words


def test_speed_is_measured_over_the_last_minute_and_without_compilations():
    speed = Speed()
    assert speed.value() is None
    speed.add(0.0, 400)
    assert speed.value() is None
    speed.add(10.0, 500)
    assert speed.value() == 10.0
    speed.pause(30.0)
    speed.add(50.0, 600)
    assert speed.value() == pytest.approx(200 / 20)
    for i in range(1, 13):
        speed.add(50.0 + 10 * i, 600 + 1000 * i)
    assert speed.value() == pytest.approx(100.0)
    speed.add(1000.0, 20_000)
    assert speed.value() == pytest.approx((20_000 - 12_600) / (1000.0 - 170.0))
    speed.add(1010.0, 100)
    assert speed.value() is None


def run_on_terminal(terminal: Terminal, act, total_steps: int = 1000, seeds: int = 3) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TERM", "xterm-256color")
        patch.setenv("COLUMNS", "110")
        with Progress(total_steps, seeds, terminal) as progress:
            act(progress)


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


def test_time_left_comes_from_the_measured_speed(monkeypatch):
    clock, terminal = Clock(), Terminal()
    monkeypatch.setattr(console, "time", clock)

    def act(progress: Progress) -> None:
        progress.update(100)
        clock.now += 10
        progress.compiled("training", 8.0)
        progress.update(140)
        assert "20 steps/s" in plain(terminal.getvalue()) and "43 s left" in plain(terminal.getvalue())
        clock.now += 30
        progress._refresh()
        assert "13 s left" in plain(terminal.getvalue())
        clock.now += 100
        progress._refresh()
        assert "0 s left" in plain(terminal.getvalue())
        progress.update(1000, "evaluating")
        assert "100%" in plain(terminal.getvalue()) and "evaluating" in plain(terminal.getvalue())

    run_on_terminal(terminal, act)
    assert " left" not in plain(terminal.getvalue()).splitlines()[-1]


def test_the_table_keeps_the_last_epochs_and_only_known_columns():
    terminal = Terminal()

    def act(progress: Progress) -> None:
        for epoch in range(1, 15):
            progress.epoch(rows(epoch, 3, train_return=float(epoch)))

    run_on_terminal(terminal, act)
    last = plain(terminal.getvalue())
    last = last[last.rindex("epoch   env steps") :].splitlines()
    assert last[0].split() == ["epoch", "env", "steps", "train", "return", "seconds"]
    shown = [line.split() for line in last[2:12]]
    assert shown == [[str(e), f"{200 * e:,}", f"{e + 1:.1f}", "2.0"] for e in range(5, 15)]
    assert any("mean over 3 seeds" in line for line in last)


def test_on_a_real_terminal(tmp_path):
    """A child process whose output is a pseudo-terminal: live table, bar, and the cursor given back."""
    code = """
        import time
        from jaxmbrl.training.console import Progress
        with Progress(400, 1) as progress:
            progress.compiling("training")
            time.sleep(0.3)
            progress.compiled("training", 0.3)
            progress.update(0)
            for epoch in (1, 2):
                time.sleep(0.1)
                progress.update(200 * epoch)
                progress.epoch([{"epoch": epoch, "env_steps": 200 * epoch, "seed": 0, "train/return": 57.1}])
            print("a stray line")
            progress.warn("something")
    """
    handle, terminal = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "40"},
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    text = b""
    while True:
        try:
            data = os.read(handle, 65536)
        except OSError:
            break
        if not data:
            break
        text += data
    os.close(handle)
    assert child.wait(60) == 0
    shown = text.decode()
    assert "compiling training" in shown and "compiled training in 0.3 s" in shown
    assert "train return" in shown and "57.1" in shown and "400 of 400 steps" in plain(shown)
    assert "a stray line" in shown and "warning: something" in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1
    assert shown.index("\x1b[?25h") > shown.index("a stray line")


def test_a_dumb_terminal_gets_plain_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    terminal = Terminal()
    with Progress(1000, 1, terminal) as progress:
        assert progress.width == 80
        progress.update(200)
        progress.epoch(rows(1, 1))
    assert terminal.getvalue() == "epoch 1, 200 of 1,000 steps, 2.0 s\n"


def test_work_tells_the_time_left_in_lines_now_and_then(monkeypatch):
    clock, out = Clock(), io.StringIO()
    monkeypatch.setattr(console, "time", clock)
    with Work("evaluating", 200, "steps", out) as work:
        clock.now += 40.0  # compiling, which does not count
        work.update(0)
        for done in range(1, 101):
            clock.now += 0.7
            work.update(done)
    # Lines at least 30 s apart: after 1, 44 (30.8 s at 0.7 s a step) and 87 steps.
    assert out.getvalue().splitlines() == [
        "evaluating: 1 of 200 steps (0%), about 2 min 19 s left",
        "evaluating: 44 of 200 steps (22%), about 1 min 49 s left",
        "evaluating: 87 of 200 steps (44%), about 1 min 19 s left",
    ]


def test_nothing_is_told_of_work_that_takes_a_few_seconds(monkeypatch):
    for out in (io.StringIO(), Terminal()):
        monkeypatch.setenv("TERM", "xterm")
        clock = Clock()
        monkeypatch.setattr(console, "time", clock)
        with Work("fitting", 10, "epochs", out) as work:
            for done in range(10):
                work.update(done)
                clock.now += 0.4
        assert out.getvalue() == ""


def test_work_on_a_terminal_is_a_bar_that_goes_away(monkeypatch):
    clock, terminal = Clock(), Terminal()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "110")
    monkeypatch.setattr(console, "time", clock)
    with Work("sweep", 4, "runs", terminal, first=60.0) as work:
        work.update(1.0)
        clock.now += 90.0
        work.update(2.5)
        assert "sweep: 2 of 4 runs (62%), about 1 min 30 s left" in plain(terminal.getvalue())
        assert "\u2501" in terminal.getvalue()
    assert terminal.getvalue().endswith("\x1b[2K"), "the line is erased"
    assert terminal.getvalue().count("\x1b[?25l") == terminal.getvalue().count("\x1b[?25h") == 1
