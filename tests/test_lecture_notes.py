"""The pages beside lecture notes: every command can be given, every name of the code exists, and the minutes add up."""

import ast
import re
import shlex
from typing import NamedTuple

import pytest
from test_docs import DOCS, ROOT, assert_exist, names_in

from jaxmbrl import cli
from jaxmbrl.commands import training
from jaxmbrl.core.config import UserError
from jaxmbrl.training import programs

START = DOCS / "lecture_notes.md"
PAGES = sorted((DOCS / "lecture_notes").glob("*.md"))

TIME = r"(about )?(\d+) min|not timed"
COMMAND = re.compile(r"`((?:jaxmbrl|python) [^`]+)`(?: \((" + TIME + r")\))?")

OTHERS = r"(?:; (\d+) more takes? about (\d+) minutes)?(?:; (\d+) (?:is|are) not timed)?\."
"""Each part is left out where there are no such commands."""

FILES = ("--data", "--demonstrations", "--expert", "--schedule")
"""Options whose value is a file or a run that another command has made."""


class Time(NamedTuple):
    """How long a command takes."""

    minutes: int | None = None
    """None where the command is not timed, and where it stands without a time."""
    estimated: bool = False
    """Whether they are estimated from a part of the run."""


def commands(text):
    """Each command of a page, and its `Time`."""
    found = {}
    for command, time, about, minutes in COMMAND.findall(text):
        if time or command not in found:
            found[command] = Time(int(minutes), bool(about)) if minutes else Time()
    return found


def totals(found):
    """Of commands: number and minutes of the timed ones, number and minutes of the estimated ones, number of the others."""
    timed = [time.minutes for time in found.values() if time.minutes is not None and not time.estimated]
    estimated = [time.minutes for time in found.values() if time.estimated]
    return [len(timed), sum(timed), len(estimated), sum(estimated), len(found) - len(timed) - len(estimated)]


ALL = sorted({command for page in (START, *PAGES) for command in commands(page.read_text())})


def numbers_in(sentence, text):
    """The numbers of the first sentence of a text with this pattern; 0 for those of a part that is left out."""
    return [int(number or 0) for number in re.search(sentence, " ".join(text.split())).groups()]


def without_files(words):
    """The words of a command line without the options that name files."""
    kept = [i for i, word in enumerate(words) if word not in FILES and (i == 0 or words[i - 1] not in FILES)]
    return [words[i] for i in kept]


def known_options(script):
    """Options of a script, by the calls of `add_argument` in its source."""
    calls = [node for node in ast.walk(ast.parse(script.read_text())) if isinstance(node, ast.Call)]
    texts = [arg.value for call in calls for arg in call.args if isinstance(arg, ast.Constant)]
    return {text for text in texts if isinstance(text, str) and text.startswith("--")}


def check(command, capsys):
    """Raises an error if `command` cannot be given."""
    words = [word for word in shlex.split(command) if word != "--x64"]
    options = {word for word in words if word.startswith("--")}
    if words[0] == "python":
        script = ROOT / words[1]
        assert script.exists(), f"{words[1]} does not exist"
        assert options <= known_options(script), f"{words[1]} has no {sorted(options - known_options(script))}"
    elif words[1] == "train" and options <= {"--env", "--preset", "--seeds", "--steps"}:
        given = dict(zip(words[3::2], words[4::2], strict=True))
        numbers = {name: int(given[f"--{name}"]) for name in ("seeds", "steps") if f"--{name}" in given}
        programs.configure(words[2], given["--env"], given.get("--preset"), **numbers)
    elif words[1] == "train":
        training.parse_train(words[2], without_files(words[3:]))
    else:
        assert cli.main([words[1], "--help"]) == 0
        assert options <= set(re.findall(r"--[\w.-]+", capsys.readouterr().out)), command


@pytest.mark.parametrize("command", ALL)
def test_the_command_can_be_given(command, capsys):
    check(command, capsys)


@pytest.mark.parametrize(
    "wrong",
    [
        "jaxmbrl train mbpo --env pendulum --rollout 3",
        "jaxmbrl train mbpo --env pendulum --preset huge",
        "jaxmbrl train mbpo --env pendulums",
        "jaxmbrl fit --rows pendulum.npz",
        "python experiments/dyna_maze.py --seeds 3",
        "python experiments/maze.py",
    ],
)
def test_a_wrong_command_is_found(wrong, capsys):
    with pytest.raises((UserError, AssertionError)):
        check(wrong, capsys)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_page_has_rows_with_names_that_exist_and_minutes_that_add_up(page):
    text = page.read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| in the notes")]
    assert len(rows) > 25 and {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {6}
    # What is done with a row of the notes is said: a command, a place to look, or why there is none.
    assert all(row.split(" | ")[1].strip(" |") for row in rows)
    assert_exist(names_in(text))
    for row in rows:
        cell = re.split(r"(?<!\\)\|", row)[3]
        links = re.findall(r"\[`([\w.]+)`\]\(([^)]+)\)", cell)
        assert {name for name, _ in links} >= set(names_in(cell)), f"a name of code without a link: {cell}"
        for name, file in links:
            source, last = page.parent / file, name.split(".")[-1]
            defined = re.search(rf"^(?:def|class) {last}\b|^{last}\b[^(]* = ", source.read_text(), re.MULTILINE)
            assert last in (source.stem, source.parent.name) or defined, f"{name} is not in {file}"
    found = commands(text)
    stated = r"(\d+) timed commands of this page take (\d+) minutes in all" + OTHERS
    assert numbers_in(stated, text) == totals(found)


def test_the_first_page_has_all_pages_and_the_minutes_of_all():
    text = " ".join(START.read_text().split())
    assert len(PAGES) == 5
    every = {}
    for page in PAGES:
        rows = [line for line in page.read_text().splitlines() if line.startswith("| ") and line[2:14] != "in the notes"]
        minutes = totals(commands(page.read_text()))[1]
        assert re.search(rf"\(lecture_notes/{page.name}\)[^|]*\|[^|]*\| {len(rows)} \| {minutes} \|", text), page.name
        for command, time in commands(page.read_text()).items():
            known = every.get(command, time)
            assert None in (known.minutes, time.minutes) or known == time, f"{command} has two times"
            every[command] = known if time.minutes is None else time
    stated = r"(\d+) timed commands of the five pages take (\d+) minutes, each command once" + OTHERS
    assert numbers_in(stated, text) == totals(every)
    short = {command: time for command, time in every.items() if (time.minutes or 0) <= 10}
    assert numbers_in(r"Those of at most 10 minutes take (\d+) minutes", text) == totals(short)[1:2]


def test_the_selection_is_of_commands_of_the_pages_and_its_minutes_add_up():
    text = START.read_text()
    selected = re.findall(r"^    (\S.*\S) +# (\d+) min$", text, re.MULTILINE)
    every = {key: time for page in PAGES for key, time in commands(page.read_text()).items() if time.minutes is not None}
    assert len(selected) > 20 and all(every.get(command) == Time(int(minutes)) for command, minutes in selected)
    assert f"They take {sum(int(minutes) for _, minutes in selected)} minutes" in text
