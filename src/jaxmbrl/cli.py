"""The `jaxmbrl` command. A user's mistake ends with exit code 2 and one line."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from jaxmbrl.commands import inspect as looking
from jaxmbrl.commands import reporting, sweeping, training
from jaxmbrl.commands.options import complain
from jaxmbrl.core import xla
from jaxmbrl.core.config import UserError, closest

USAGE = """usage: jaxmbrl COMMAND ...

  train ALGORITHM --env TASK [--steps N] [--seeds K] [--seed S] [--out FOLDER] [--preset NAME] [--config FILE]
                             [--FIELD VALUE ...]  train; any field of the algorithm's config is an option by its path
  train --resume RUN         go on with a run where it stopped
  train ALGORITHM --env TASK --data FILE                 learn from transitions in a file, without collecting
  train ... --coordinator HOST:PORT --hosts N --host I   one of N processes that train together (or --hosts auto)
  evaluate RUN [--model true] [--backend gymnasium] [--video [FILE]]
                             returns of a run's deterministic policy, and a video
  report RUN [RUN ...] [--out FILE]                      one HTML page: curves, comparison, the model, the policy, the run
  debug RUN [--seed S]       the operation and source lines of a run's first value that was not finite
  collect --policy random|RUN --env TASK --out FILE.npz  write transitions to a file
  fit --data FILE.npz        fit a dynamics model to transitions and judge it
  sweep FILE [--launcher local|ray] [--dry-run]          many runs from one file; again, it goes on with what is not done
  status DIR                 how far the runs in a folder are, and why some failed
  list                       algorithms, tasks and presets
  doctor                     whether this machine is ready

`jaxmbrl train ALGORITHM --help` tells all fields of an algorithm.
`--no-compile-cache` before or after any of these compiles afresh instead of reusing what earlier runs compiled."""

CACHE_SWITCH = "--no-compile-cache"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _command(words)
    except UserError as error:
        complain(str(error))
        return 2
    except SystemExit as stop:
        # How the parsers end after help.
        return int(stop.code or 0)
    except KeyboardInterrupt:
        complain("interrupted")
        return 130
    except BrokenPipeError:
        # The reader has gone (`| head`); give the interpreter nothing to flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        complain(f"{error.filename or 'output'}: {error.strerror or error}")
        return 2 if error.errno == errno.ENAMETOOLONG else 1


def _command(words: list[str]) -> int:
    cached = CACHE_SWITCH not in words
    words = [word for word in words if word != CACHE_SWITCH]
    commands = {
        "train": training.train,
        "evaluate": looking.evaluate,
        "report": reporting.report,
        "debug": looking.debug,
        "collect": looking.collect,
        "fit": looking.fit,
        "sweep": lambda words: sweeping.sweep(words, [] if cached else [CACHE_SWITCH]),
        "status": sweeping.status,
        "list": looking.list_all,
        "doctor": looking.doctor,
    }
    if not words or words[0] in ("-h", "--help", "help") or (words[0] == "train" and words[1:2] in (["-h"], ["--help"])):
        print(USAGE)
        return 0
    if words == ["--version"]:
        from jaxmbrl import __version__

        print(__version__)
        return 0
    if words[0] not in commands:
        raise UserError(f"unknown command '{words[0]}'; {closest(words[0], commands)}")
    xla.ensure_threads()
    if cached:
        _cache_compilations()
    return commands[words[0]](words[1:])


def _cache_compilations() -> None:
    """Keep compiled programs in the user's cache folder, so that the next start is fast."""
    import jax

    if getattr(jax.config, "jax_compilation_cache_dir", None) is not None:
        # The user has chosen a folder.
        return
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        complain("compiled programs are not kept: there is no home folder; name one in XDG_CACHE_HOME")
        return
    folder = base / "jaxmbrl" / "compiled"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        complain(f"compiled programs are not kept: {folder} cannot be made ({error.strerror})")
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))


if __name__ == "__main__":
    sys.exit(main())
