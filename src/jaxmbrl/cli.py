"""The `jaxmbrl` command. A user's mistake is reported in one line, with exit code 2."""

from __future__ import annotations

import codecs
import contextlib
import errno
import gc
import importlib
import io
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from jaxmbrl.commands.options import complain
from jaxmbrl.core import calling
from jaxmbrl.core.config import UserError, closest
from jaxmbrl.core.places import expanded

USAGE = """usage: jaxmbrl COMMAND ...

  train ALGORITHM --env TASK [--steps N] [--seeds K] [--seed S] [--out FOLDER] [--preset NAME] [--config FILE]
                             [--FIELD VALUE ...]  train; any field of the algorithm's config is an option by its path
  train --resume RUN         continue a run from where it stopped
  train ... --log tensorboard wandb                      send the metrics to TensorBoard, to Weights & Biases, or to both
  train ... --stop-at-return R                           end when the mean return over seeds reaches R
  train ALGORITHM --env TASK --data FILE                 learn from transitions in a file, without collecting
  train ... --coordinator HOST:PORT --hosts N --host I   one of N processes that train together (or --hosts auto)
  evaluate RUN [--model true] [--backend gymnasium] [--video [FILE]] [--dream [FILE]]
                             returns of a run's deterministic policy, and a video of it or of its dream
  report RUN [RUN ...] [--out FILE]                      one HTML page: curves, comparison, the model, the policy, the run
  export RUN --to stablehlo|onnx|numpy [--seed S] [--batch N] [--out FILE]
                             the policy as a file for a robot, with the program that loads it without this package
  distill RUN [--hidden N ...] [--FIELD VALUE ...]       a small network that imitates a run's policy, planners included
  debug RUN [--seed S]       the operation and source lines that made a run's first non-finite value
  collect --policy random|RUN --env TASK --out FILE.npz  write transitions to a file
  fit --data FILE.npz        fit a dynamics model to transitions and evaluate it
  sweep FILE [--launcher local|ray] [--dry-run]          many runs from one file; called again, it continues unfinished ones
  status DIR                 progress of the runs in a folder, and why some failed
  list [NAME] [--json]       algorithms and tasks by family; with NAME, the presets of an algorithm or a family
  doctor                     check whether this machine is ready

`jaxmbrl train ALGORITHM --help` lists all settings of an algorithm.
Before or after any command:
  --x64                      compute in float64, as Gaussian processes and PILCO need; give it again to continue such a run
  --no-compile-cache         compile again instead of reusing what earlier runs compiled"""

CACHE_SWITCH = "--no-compile-cache"
SWITCHES = (CACHE_SWITCH, calling.FLOAT64)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    calling.with_words(words)
    _prepare_streams()
    try:
        code = _command(words)
        if not getattr(sys.stdout, "closed", True):
            sys.stdout.flush()
        return code
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
        _discard_output()
        return 141
    except OSError as error:
        if error.filename is None:
            _discard_output()
        complain(f"{error.filename or 'output'}: {error.strerror or error}")
        return 2 if error.errno == errno.ENAMETOOLONG else 1


COMMANDS = {
    "train": "training:train",
    "evaluate": "inspect:evaluate",
    "report": "reporting:report",
    "export": "exporting:export",
    "distill": "training:distill",
    "debug": "inspect:debug",
    "collect": "inspect:collect",
    "fit": "inspect:fit",
    "sweep": "sweeping:sweep",
    "status": "sweeping:status",
    "list": "listing:list_all",
    "doctor": "inspect:doctor",
}
"""Command -> its function in `jaxmbrl.commands`, imported when it is called."""

ELSEWHERE = {
    "train --resume RUN": ("resume", "continue", "restart"),
    "evaluate RUN --video": ("video", "film", "render", "record", "play", "enjoy", "watch"),
    "evaluate RUN --dream": ("dream", "imagine"),
    "evaluate RUN": ("eval", "test", "score"),
    "list": ("ls", "algorithms", "tasks", "envs", "presets", "methods"),
    "distill RUN": ("imitate", "compress", "clone", "dagger"),
    "report RUN": ("plot", "compare", "curves"),
    "--version": ("version",),
}
"""What to write -> commands that users look for in its place."""

COMPILES_NOTHING = ("status", "list")


def _command(words: list[str]) -> int:
    switches = [switch for switch in SWITCHES if switch in words]
    words = [word for word in words if word not in SWITCHES]
    if not words or words[0] in ("-h", "--help", "help") or (words[0] == "train" and words[1:2] in (["-h"], ["--help"])):
        print(USAGE)
        return 0
    if words == ["--version"]:
        from jaxmbrl import __version__

        print(__version__)
        return 0
    name, *rest = words
    if name not in COMMANDS:
        instead = next((form for form, called in ELSEWHERE.items() if name in called), None)
        hint = closest(name, COMMANDS) if instead is None else f"write '{calling.again()} {instead}'"
        raise UserError(f"unknown command '{name}'; {hint}")
    if name not in COMPILES_NOTHING:
        # Tracing makes many objects that live long; the default threshold searches all of them for garbage again and again.
        gc.set_threshold(100_000, 20, 20)
        try:
            from jaxmbrl.core import xla
        except ValueError as error:
            # JAX reads its environment variables when it is imported.
            raise UserError(f"JAX cannot be imported ({error}); correct that environment variable or unset it") from None
        xla.prepare()
        if calling.FLOAT64 in switches:
            from jaxmbrl.core import precision

            precision.use_float64()
        if CACHE_SWITCH not in switches:
            _cache_compilations(check=name != "doctor")
    module, _, function = COMMANDS[name].partition(":")
    command: Callable[..., int] = getattr(importlib.import_module(f"jaxmbrl.commands.{module}"), function)
    return command(rest, switches) if name == "sweep" else command(rest)


def _discard_output() -> None:
    from jaxmbrl.training import console

    console.discard(sys.stdout)


def _prepare_streams() -> None:
    """Open closed standard streams, so that no file of a run takes their place, and let the others print any text."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with contextlib.suppress(OSError):
                os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    codecs.register_error("jaxmbrl", _replaced)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not stream.closed:
            stream.reconfigure(errors="jaxmbrl")


def _replaced(error: UnicodeError) -> tuple[bytes | str, int]:
    """Encodes what an encoding lacks: the bytes of a file's name as they are, and anything else as `?`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    return b"".join(bytes([ord(x) - 0xDC00]) if "\udc80" <= x <= "\udcff" else b"?" for x in letters), error.end


def _cache_compilations(check: bool) -> None:
    """Cache compiled programs in the folder that the user has set, or else in the user's cache folder, to make the next
    start fast. With `check`, a folder that cannot be written to is not used; JAX would warn of every program."""
    import jax

    given = getattr(jax.config, "jax_compilation_cache_dir", None)
    folder = _own_cache() if given is None else expanded(given)
    if folder is None or "://" in (given or ""):
        return
    try:
        if check or given is None:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(b"jaxmbrl")
    except OSError as error:
        complain(f"compiled programs are not cached: {folder} cannot be written to ({error.strerror})")
        jax.config.update("jax_compilation_cache_dir", None)
    else:
        jax.config.update("jax_compilation_cache_dir", str(folder))


def _own_cache() -> Path | None:
    """The cache folder of jaxmbrl; None, with a message, if there is no home folder."""
    try:
        chosen = expanded(os.environ.get("XDG_CACHE_HOME", ""))
        # The XDG specification ignores paths that are not absolute.
        base = chosen if chosen.is_absolute() else expanded("~/.cache")
    except UserError:
        complain("compiled programs are not cached: there is no home folder; set XDG_CACHE_HOME to a folder")
        return None
    return base / "jaxmbrl" / "compiled"


if __name__ == "__main__":
    sys.exit(main())
