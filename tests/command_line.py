"""The command line called within the process, and what is compared of a run's rows."""

import contextlib
import io
import sys
from unittest import mock

from jaxmbrl import cli

TIMINGS = {"wall_time", "time/epoch", "time/compile", "time/train", "time/evaluate"}


def options(settings):
    """Settings as words of a command line."""
    words = []
    for name, value in settings.items():
        words.append("--" + name.replace("_", "-"))
        words += [str(x) for x in value] if isinstance(value, tuple) else [str(value)]
    return words


def call(*words):
    """Exit code, standard output and standard error of a command line."""
    out, err = io.StringIO(), io.StringIO()
    called = mock.patch.object(sys, "argv", ["jaxmbrl"])
    with called, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main([str(word) for word in words])
    return code, out.getvalue(), err.getvalue()


def untimed(rows):
    return [{name: value for name, value in row.items() if name not in TIMINGS} for row in rows]
