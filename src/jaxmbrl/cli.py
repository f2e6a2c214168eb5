"""The `jaxmbrl` command. A user's mistake is reported in one line, with exit code 2."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from jaxmbrl.commands.options import complain
from jaxmbrl.core.config import UserError, closest

USAGE = """usage: jaxmbrl COMMAND ...

  train ALGORITHM --env TASK [--steps N] [--seeds K] [--seed S] [--out FOLDER] [--preset NAME] [--config FILE]
                             [--FIELD VALUE ...]  train; any field of the algorithm's config is an option by its path
  train --resume RUN         continue a run from where it stopped
  train ALGORITHM --env TASK --data FILE                 learn from transitions in a file, without collecting
  train ... --coordinator HOST:PORT --hosts N --host I   one of N processes that train together (or --hosts auto)
  evaluate RUN [--model true] [--backend gymnasium] [--video [FILE]]
                             returns of a run's deterministic policy, and a video
  report RUN [RUN ...] [--out FILE]                      one HTML page: curves, comparison, the model, the policy, the run
  export RUN --to stablehlo|onnx|numpy [--seed S] [--out FILE]
                             the policy as a file for a robot, with the program that loads it without this package
  debug RUN [--seed S]       the operation and source lines that made a run's first non-finite value
  collect --policy random|RUN --env TASK --out FILE.npz  write transitions to a file
  fit --data FILE.npz        fit a dynamics model to transitions and evaluate it
  sweep FILE [--launcher local|ray] [--dry-run]          many runs from one file; called again, it continues unfinished ones
  status DIR                 progress of the runs in a folder, and why some failed
  list [NAME] [--json]       algorithms and tasks by family; with NAME, the presets of an algorithm or a family
  doctor                     check whether this machine is ready

`jaxmbrl train ALGORITHM --help` lists all settings of an algorithm.
`--no-compile-cache`, before or after any command, compiles again instead of reusing what earlier runs compiled."""

CACHE_SWITCH = "--no-compile-cache"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _command(words)
    except UserError as error:
        complain(str(error))
        return 2
    except SystemExit as stop:
        # Parsers exit after they print help.
        return int(stop.code or 0)
    except KeyboardInterrupt:
        complain("interrupted")
        return 130
    except BrokenPipeError:
        # The reader has closed the pipe (`| head`): the interpreter must not flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        complain(f"{error.filename or 'output'}: {error.strerror or error}")
        return 2 if error.errno == errno.ENAMETOOLONG else 1


COMMANDS = {
    "train": "training:train",
    "evaluate": "inspect:evaluate",
    "report": "reporting:report",
    "export": "exporting:export",
    "debug": "inspect:debug",
    "collect": "inspect:collect",
    "fit": "inspect:fit",
    "sweep": "sweeping:sweep",
    "status": "sweeping:status",
    "list": "listing:list_all",
    "doctor": "inspect:doctor",
}
"""Command -> its function in `jaxmbrl.commands`, imported when it is called."""

COMPILES_NOTHING = ("status", "list")


def _command(words: list[str]) -> int:
    cached = CACHE_SWITCH not in words
    words = [word for word in words if word != CACHE_SWITCH]
    if not words or words[0] in ("-h", "--help", "help") or (words[0] == "train" and words[1:2] in (["-h"], ["--help"])):
        print(USAGE)
        return 0
    if words == ["--version"]:
        from jaxmbrl import __version__

        print(__version__)
        return 0
    name, *rest = words
    if name not in COMMANDS:
        raise UserError(f"unknown command '{name}'; {closest(name, COMMANDS)}")
    if name not in COMPILES_NOTHING:
        from jaxmbrl.core import xla

        xla.ensure_threads()
        if cached:
            _cache_compilations()
    module, _, function = COMMANDS[name].partition(":")
    command: Callable[..., int] = getattr(importlib.import_module(f"jaxmbrl.commands.{module}"), function)
    return command(rest, [] if cached else [CACHE_SWITCH]) if name == "sweep" else command(rest)


def _cache_compilations() -> None:
    """Cache compiled programs in the user's cache folder, to make the next start fast."""
    import jax

    if getattr(jax.config, "jax_compilation_cache_dir", None) is not None:
        # The user has set a cache folder.
        return
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        complain("compiled programs are not cached: there is no home folder; set XDG_CACHE_HOME to a folder")
        return
    folder = base / "jaxmbrl" / "compiled"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        complain(f"compiled programs are not cached: {folder} cannot be created ({error.strerror})")
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))


if __name__ == "__main__":
    sys.exit(main())
