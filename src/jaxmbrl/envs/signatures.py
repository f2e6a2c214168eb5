"""The methods of a user's environment: whether they can be called as its interface demands, and errors that they raise."""

from __future__ import annotations

import contextlib
import inspect
import sysconfig
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jaxmbrl.core.config import UserError

FOREIGN = frozenset({"site-packages", "dist-packages"})
"""Folders of files that are not the user's."""
OURS = Path(__file__).parents[1]
LONGEST = 300
"""Letters of an error's message that are shown."""


def check_callable(
    name: str, env: Any, method: str, form: str, arguments: Sequence[Any], named: Mapping[str, Any], otherwise: str
) -> None:
    """Raise UserError if the environment of task `name` has no `method` that takes these arguments.

    `form` shows the call that is due, and `otherwise` says what to do if the signature is another one.
    """
    function = getattr(env, method, None)
    if not callable(function):
        raise UserError(f"task '{name}': the environment, a {type(env).__name__}, has no method {form}")
    if not takes(function, arguments, named):
        got = f"{method}{inspect.signature(function)}"
        raise UserError(f"task '{name}': the environment must have {form}, got {got}{otherwise}")


def takes(function: Any, arguments: Sequence[Any], named: Mapping[str, Any] = MappingProxyType({})) -> bool:
    """Whether a function can be called with these arguments. One that is not written in Python can."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return True
    try:
        signature.bind(*arguments, **named)
    except TypeError:
        return False
    return True


@contextlib.contextmanager
def calling(name: str, method: str) -> Iterator[None]:
    """Turn an error of the environment of task `name` into a UserError of one line, which names the task, the `method` that
    was called and, if it is in a file of the user's, the line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # The other lines of JAX's errors explain tracing.
        text = str(error).strip().splitlines()[: 1 if type(error).__module__.startswith("jax") else None]
        message = " ".join(" ".join(text).split())[:LONGEST] or "no message"
        raise UserError(f"task '{name}': {method} fails with {type(error).__name__}: {message}{_place(error)}") from error


def _place(error: BaseException) -> str:
    """The innermost line in a file of the user's, in brackets; empty if there is none."""
    library = sysconfig.get_path("stdlib")
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        foreign = FOREIGN.intersection(file.parts) or frame.filename.startswith(("<", library)) or OURS in file.parents
        if not foreign:
            return f" ({file.name}:{frame.lineno})"
    return ""
