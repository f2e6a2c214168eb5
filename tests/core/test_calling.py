"""How a program is called again: as the user typed it for printing, and in full for the processes of a sweep."""

import os
import shlex
import subprocess
import sys
import types

import pytest

from jaxmbrl.core import calling

TELLS = """
import sys
from jaxmbrl.core import calling
calling.with_words(sys.argv[sys.argv.index("train"):])
print(repr((calling.program(), calling.again("evaluate", "a b"))))
"""


def told(words, folder, **environment):
    """What a program that runs in `folder` tells of itself."""
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=os.environ | environment, capture_output=True, text=True, check=True
    )
    return eval(done.stdout)


@pytest.fixture
def place(tmp_path):
    """Programs that tell how they are called: a script, a module, a console script; and a folder to be in."""
    for name in ("my tasks/my task.py", "package/__init__.py", "package/sub.py", "bin/my-rl", "here/empty"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("" if name.endswith(("__init__.py", "empty")) else f"#!{sys.executable}\n{TELLS}")
    (tmp_path / "bin" / "my-rl").chmod(0o755)
    return tmp_path


def test_a_program_is_called_again_as_it_was(place):
    here, script, tool = place / "here", str(place / "my tasks" / "my task.py"), str(place / "bin" / "my-rl")
    path = f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}"
    python = shlex.quote(sys.executable)
    cases = [
        # From another folder, by a relative path with a space in it, with an option of Python and one of its own.
        (
            ["-O", "../my tasks/my task.py", "--mass", "2"],
            ("-O", f"{here}/../my tasks/my task.py", "--mass", "2"),
            f"{python} -O '../my tasks/my task.py' --mass 2",
        ),
        (["-m", "package.sub"], ("-m", "package.sub"), f"{python} -m package.sub"),
        ([tool], (tool,), "my-rl"),
        (["-c", TELLS], ("-c", TELLS), f"{python} -c {shlex.quote(TELLS)}"),
    ]
    for given, program, shown in cases:
        folder = place if "-m" in given else here
        found, again = told([*given, "train", "sac"], folder, PATH=path)
        assert (found, again) == (program, f"{shown} evaluate 'a b'")
    # What a process is started with calls the same program.
    assert told([script, "train"], here)[0] == (script,)


def pretend(monkeypatch, argv, words, orig=None, **main):
    module = types.ModuleType("__main__")
    vars(module).update(main)
    monkeypatch.setitem(sys.modules, "__main__", module)
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", orig or ["python", *argv])
    calling.with_words(words)


def test_words_of_the_programs_own_cannot_be_called_again(monkeypatch):
    """A notebook, or a program that ignores its command line: another call of it would do something else."""
    for argv in (["ipykernel_launcher.py", "-f", "kernel.json"], ["mine.py"], ["mine.py", "sweep", "other.yaml"], [""]):
        pretend(monkeypatch, argv, ["sweep", "study.yaml"])
        assert calling.program() is None and calling.again("list") == "jaxmbrl list"


def test_a_program_that_took_arguments_away_cannot_be_called_again(monkeypatch):
    """Without them it might register another task; it is still what the user has to call."""
    pretend(monkeypatch, ["mine.py", "sweep", "x"], ["sweep", "x"], orig=["python", "mine.py", "sweep", "x", "--mass", "2"])
    assert calling.program() is None and calling.again("list") == "python mine.py list"


def test_a_program_from_standard_input_cannot_be_called_again(monkeypatch):
    pretend(monkeypatch, ["-", "sweep", "x"], ["sweep", "x"])
    assert calling.program() is None and calling.again("list") == "jaxmbrl list"


def test_the_plain_command_is_called_as_a_module(monkeypatch):
    pretend(monkeypatch, ["/opt/bin/jaxmbrl", "sweep", "x"], ["sweep", "x"])
    assert calling.program() == ("-m", "jaxmbrl") and calling.again("list") == "/opt/bin/jaxmbrl list"
    main = calling.__file__.replace("core/calling.py", "__main__.py")
    spec = types.SimpleNamespace(name="jaxmbrl.__main__", origin=main)
    orig = ["python", "-m", "jaxmbrl", "sweep", "x"]
    pretend(monkeypatch, [main, "sweep", "x"], ["sweep", "x"], orig=orig, __spec__=spec)
    assert calling.program() == ("-m", "jaxmbrl") and calling.again("list") == "jaxmbrl list"


def test_a_program_that_changed_the_working_folder_is_found(monkeypatch, tmp_path):
    pretend(monkeypatch, ["mine.py", "sweep"], ["sweep"], __file__=str(tmp_path / "mine.py"))
    assert calling.program() == (str(tmp_path / "mine.py"),)


def test_what_is_printed_can_be_pasted(monkeypatch):
    pretend(monkeypatch, ["jaxmbrl", "train"], ["train"])
    words = ["evaluate", "runs/a b;c", "it's", "$HOME", "ü"]
    assert shlex.split(calling.again(*words)) == ["jaxmbrl", *words]
    assert calling.again("status", "runs/x") == "jaxmbrl status runs/x"


RECORDS = """
import json, sys
from jaxmbrl.core import calling
if "train" in sys.argv:
    calling.with_words(sys.argv[sys.argv.index("train"):])
print(repr(calling.recorded()))
"""


def test_a_run_records_the_program_that_registers_its_task(place):
    """A program with a command line by the words that call it from any folder, another one by its file."""
    file, tool = place / "my tasks" / "my task.py", place / "bin" / "my-rl"
    for program in (file, tool):
        program.write_text(f"#!{sys.executable}\n{RECORDS}")
    path = f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}"
    own = [sys.executable, "-O", f"{place}/here/../my tasks/my task.py", "--mass", "2"]
    relative = ["-O", "../my tasks/my task.py", "--mass", "2"]
    assert told([*relative, "train", "sac"], place / "here") == {"program": own}
    assert told([str(tool), "train"], place, PATH=path) == {"program": ["my-rl"]}
    assert told([str(file)], place) == {"script": str(file)}
    assert told(["-c", RECORDS], place) == {}


def test_what_another_program_registers_is_run_through_it(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    words = ["report", "runs/a b"]
    pretend(monkeypatch, ["/opt/bin/jaxmbrl", *words], words)
    assert calling.recorded() == {} and calling.elsewhere({}) is None
    for program, shown in (
        (["python", f"{tmp_path}/my task.py"], "python 'my task.py'"),
        (["python", "/elsewhere/my_task.py", "--mass", "2"], "python /elsewhere/my_task.py --mass 2"),
        (["my-rl"], "my-rl"),
    ):
        assert calling.elsewhere({"program": program}) == f"run it through: {shown} report 'runs/a b'"
    script = {"script": f"{tmp_path}/my study.py"}
    assert calling.elsewhere(script) == "register it first, as 'my study.py' does"
    # From Python there are no words to repeat.
    monkeypatch.setattr(calling, "_called", [False])
    assert calling.elsewhere({"program": ["python", "/x/mine.py"]}) == "register it first, as python /x/mine.py does"
    # A task that was given to the run: no program registers it.
    given = {**script, "registration": "envs.register('mine', make)"}
    as_there = ", with the objects of 'my study.py'"
    assert calling.elsewhere(given) == f"call envs.register('mine', make) first{as_there}"
    # The same program: its task may have another name now.
    monkeypatch.setattr(calling, "_called", [True])
    pretend(monkeypatch, ["mine.py", *words], words, __file__=str(tmp_path / "mine.py"))
    assert calling.elsewhere(calling.recorded()) is None
    by_command = "call envs.register('mine', make) first, in a program that then calls jaxmbrl.cli.main()"
    assert calling.elsewhere({"registration": "envs.register('mine', make)"}) == by_command
