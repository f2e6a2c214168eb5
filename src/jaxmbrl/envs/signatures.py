"""Whether the methods of a user's environment can be called as its interface demands, without calling them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from jaxmbrl.core.config import UserError


def check_callable(
    name: str, env: Any, method: str, form: str, arguments: Sequence[Any], named: Mapping[str, Any], otherwise: str
) -> None:
    """Raise UserError if the environment of task `name` has no `method` that takes these arguments.

    `form` shows the call that is due, and `otherwise` says what to do if the signature is another one.
    """
    function = getattr(env, method, None)
    if not callable(function):
        raise UserError(f"task '{name}': the environment, a {type(env).__name__}, has no method {form}")
    try:
        signature = inspect.signature(function)
    except ValueError:
        # A function that is not written in Python.
        return
    try:
        signature.bind(*arguments, **named)
    except TypeError:
        raise UserError(f"task '{name}': the environment must have {form}, got {method}{signature}{otherwise}") from None
