"""How the command was called: command lines that call it again, for the user to paste and for the processes of a sweep.

A user's own program registers tasks and methods and then calls `jaxmbrl.cli.main`. Only that program knows them, so
commands that are printed, and processes that are started, call it and not `jaxmbrl`. A run records it (`recorded`), because
another program does not know the run's task.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

JAXMBRL = "jaxmbrl"
FLOAT64 = "--x64"
"""Option of every command that turns float64 on. A command that is printed has it if this one has."""
PLAIN = ("-m", JAXMBRL)
"""Arguments of Python that run the plain command."""
_words: list[str] = []
"""Arguments of the last call of `cli.main`."""
_called = [False]
"""Whether `cli.main` was called."""


def with_words(words: Sequence[str]) -> None:
    """Record the arguments of `cli.main`, those of the command line or others."""
    _words[:], _called[:] = words, [True]


def program() -> tuple[str, ...] | None:
    """Arguments of Python that run this program again, to be followed by the words of a `jaxmbrl` command.

    They include options of Python and the program's own arguments before the command: for `python -O mine.py --mass 2 train
    ...` they are `-O`, the absolute path of mine.py, `--mass`, `2`. None if the command line of this process does not end
    with the words of the command: in a notebook, or if a program calls `cli.main` with words of its own.
    """
    own = _own_arguments()
    if own is None:
        return None
    if Path(sys.argv[0]).name == JAXMBRL or _module() == JAXMBRL:
        return PLAIN
    start = _start()
    if not start:
        return None
    return (*start, *own) if _module() is not None or sys.argv[0] == "-c" else (*start[:-1], _file(), *own)


def shown() -> tuple[str, ...]:
    """The words with which the user calls this program, before those of the command: `jaxmbrl`, its path if it is not on
    PATH, or the user's own program."""
    called, found, own = sys.argv[0], program(), _own_arguments()
    script = called.endswith(".py") and Path(__file__).parents[1] not in Path(called).absolute().parents
    if found == PLAIN or own is None or (found is None and not script):
        elsewhere = Path(called).name == JAXMBRL and shutil.which(JAXMBRL) != os.path.abspath(called)
        return (called if elsewhere else JAXMBRL,)
    if found is None:
        return ("python", called, *own)
    if _is_console_script():
        return (Path(called).name, *own)
    return (sys.orig_argv[0], *_start(), *own)


def recorded() -> dict[str, Any]:
    """What a run records of the program that registered its task or method: `program`, the words that call it from any
    folder, before those of a command, or `script`, a file that does not pass its command line to `cli.main`. Empty for the
    plain command, for a notebook and for code without a file."""
    found = program() if _called[0] else None
    if found is not None and sys.argv[0] != "-c":
        if found == PLAIN:
            return {}
        if _is_console_script():
            return {"program": [Path(sys.argv[0]).name, *(_own_arguments() or [])]}
        python = sys.executable if os.sep in sys.orig_argv[0] else sys.orig_argv[0]
        return {"program": [python, *found]}
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    if file is None or Path(file).name == JAXMBRL or Path(__file__).parents[1] in Path(file).absolute().parents:
        return {}
    return {"script": os.path.abspath(file)}


def elsewhere(known: Mapping[str, Any]) -> str | None:
    """How to go on with a run whose environment is `known`. Its `registration` is the Python call that registers its task,
    which no program does: the task was given to the run. Otherwise the program that was `recorded` registers it; None if
    that is this program, or if nothing is known."""
    if known.get("registration"):
        script = f", with the objects of {shlex.quote(_near(str(known['script'])))}" if known.get("script") else ""
        call, where = known["registration"], "in a program that then calls jaxmbrl.cli.main()"
        return f"call {call} first" + (f", {where}" if _called[0] else "") + script
    own, name = recorded(), "program" if "program" in known else "script"
    found = known.get(name)
    if not found or own.get(name) == found:
        return None
    if name == "script":
        return f"register it first, as {shlex.quote(_near(str(found)))} does"
    words = shlex.join(map(_near, map(str, found)))
    return f"run it through: {words} {shlex.join(_words)}" if _called[0] else f"register it first, as {words} does"


def _near(word: str) -> str:
    """A path in the working folder relative to it; other words unchanged."""
    path, here = Path(word), Path.cwd()
    return str(path.relative_to(here)) if path.is_absolute() and here in path.parents else word


def _is_console_script() -> bool:
    """Whether the program is a console script of the user's package, which is on PATH."""
    called = sys.argv[0]
    return not called.endswith(".py") and shutil.which(Path(called).name) == _file()


def again(*words: str | Path) -> str:
    """A command line of this program with the command `words`, quoted for a shell."""
    return shlex.join([*shown(), *map(str, words), *([FLOAT64] if FLOAT64 in _words else [])])


def _own_arguments() -> list[str] | None:
    """Arguments of the process before the words of the command; None if its arguments do not end with these words."""
    given = sys.argv[1:]
    count = len(given) - len(_words)
    return given[:count] if count >= 0 and given[count:] == _words else None


def _start() -> list[str]:
    """Arguments of Python up to the name of the program, as the process was started; [] if `sys.argv` was changed since."""
    count = len(sys.orig_argv) - len(sys.argv) + 1
    start = sys.orig_argv[1:count]
    if not start or sys.orig_argv[count:] != sys.argv[1:] or sys.argv[0] == "-":
        return []
    return start if start[-1] == sys.argv[0] or _module() is not None or sys.argv[0] == "-c" else []


def _module() -> str | None:
    """The module that runs as the program, as in `python -m MODULE`; None if it is a file."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if spec is None or spec.origin is None or spec.origin != sys.argv[0]:
        return None
    return str(spec.name).removesuffix(".__main__")


def _file() -> str:
    """The absolute path of the program; Python keeps it for a file, also if the working folder has changed."""
    called, kept = sys.argv[0], getattr(sys.modules.get("__main__"), "__file__", None) or ""
    return kept if Path(kept).name == Path(called).name else os.path.abspath(called)
