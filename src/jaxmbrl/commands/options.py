"""Command-line parsers, with argparse and with tyro. A mistake in a command line raises a `UserError` of one line."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import math
import re
import sys
import types
import typing
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from jaxmbrl.core.config import UserError


def complain(text: str) -> None:
    """Print `text` to standard error, joined into one line."""
    print("jaxmbrl: " + " ".join(text.splitlines()), file=sys.stderr)


@contextlib.contextmanager
def warnings_in_a_line(show: Callable[[str], None] | None = None) -> Iterator[None]:
    """Show each warning about a run or about data in one line by calling `show`, by default in the form of our errors."""
    from jaxmbrl.data.dataset import DataWarning
    from jaxmbrl.training.console import RunWarning

    def shown(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if not issubclass(category, (RunWarning, DataWarning)):
            others(message, category, *place, **more)
        elif show is not None:
            show(str(message))
        else:
            complain(f"warning: {message}")

    with warnings.catch_warnings():
        for kind in (RunWarning, DataWarning):
            warnings.simplefilter("always", kind)
        others, warnings.showwarning = warnings.showwarning, shown
        yield


class _Parser(argparse.ArgumentParser):
    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        # With an exponent, too, a negative number is a value and not an option.
        self._negative_number_matcher = re.compile(r"-(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$")

    def error(self, message: str) -> NoReturn:
        for pattern, plain in _PLAIN:
            message = re.sub(pattern, plain, message)
        unknown = re.fullmatch(r"unknown option '(.*)'", message)
        if unknown is not None:
            from jaxmbrl.core import hints  # here, so that commands start faster

            known = [option for option in self._option_string_actions if option.startswith("--")]
            message = hints.unknown_option(unknown[1], known)
        raise UserError(f"{message}; see '{self.prog} --help'" if "did you mean" not in message else message)


_PLAIN = (
    (r"^argument (\S+): expected one argument$", r"\1 needs a value"),
    (r"^argument (\S+): invalid (?:int|whole) value: (.*)$", r"\1 must be a whole number, got \2"),
    (r"^argument (\S+): invalid float value: (.*)$", r"\1 must be a number, got \2"),
    (r"^argument (\S+): ignored explicit argument (.*)$", r"\1 takes no value, got \2"),
    (r"^the following arguments are required: (.*)$", r"\1 is missing"),
    (r"^unrecognized arguments: (-\S*).*$", r"unknown option '\1'"),
    (r"^unrecognized arguments: (.*)$", r"unexpected argument '\1'"),
)
"""(pattern of a message of argparse, our message that replaces it)."""


def parser(command: str, **more: Any) -> _Parser:
    """An argparse parser for a command. Options cannot be abbreviated."""
    return _Parser(prog=f"jaxmbrl {command}", allow_abbrev=False, **more)


def parse(kind: type, default: Any, words: list[str], command: str, description: str) -> Any:
    """Parse a command line into a dataclass, with tyro. tyro's framed errors become a `UserError` of one line."""
    import tyro  # here, so that commands without tyro start faster

    printed, prog = io.StringIO(), f"jaxmbrl {command}"
    options = _options(kind)
    words = _with_whole_numbers(words, options)
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(_Help(sys.stdout)):
            return tyro.cli(kind, default=default, args=words, prog=prog, description=description)
    except SystemExit as stop:
        if not stop.code:
            raise
    message = _reworded(_message(printed.getvalue()), options, words)
    raise UserError(f"{message}; see '{prog} --help'" if "did you mean" not in message else message)


class _Help:
    """Standard output, in which tyro's help writes `None | INT` in the place of `{None}|INT`, with the same length."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(text.replace("{None}|", "None | "))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def whole(text: str) -> int:
    """A whole number, also one written as `1e6`; the type of an option of an argparse parser. Raises ValueError for any
    other text.

    >>> from jaxmbrl.commands.options import whole
    >>> whole("1e3")
    1000
    """
    if re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)[eE]\+?\d{1,3}|[-+]?\d+\.0*", text):
        number = float(text)
        if math.isfinite(number) and number == round(number):
            return round(number)
    return int(text)


def _with_whole_numbers(words: list[str], options: dict[str, str]) -> list[str]:
    """The words, in which options that take whole numbers have them in digits."""
    found, takes = [], False
    for word in words:
        name, equals, value = word.partition("=")
        if word.startswith("--"):
            takes = "whole number" in options.get(name.replace("_", "-"), "")
            found.append(f"{name}={_in_digits(value)}" if equals and takes else word)
        else:
            found.append(_in_digits(word) if takes else word)
    return found


def _in_digits(text: str) -> str:
    try:
        return str(whole(text))
    except ValueError:
        return text


def _message(box: str) -> str:
    """The message below the title of tyro's framed error, with its lines joined."""
    sections: list[list[str]] = [[]]
    for line in box.splitlines()[1:]:
        text = line.strip(" │|")
        if re.fullmatch(r"[-─╰╯]{5,}", text):
            sections.append([])
        elif text:
            sections[-1].append(text)
    return next((" ".join(section) for section in sections if section), "bad options")


def _reworded(message: str, options: dict[str, str], words: list[str]) -> str:
    """Rewrite tyro's message in our form: the option, the values it accepts, and the given value. `options` maps each
    option to a description of the values it accepts."""
    several = values("--seeds", words)
    if len(several) > 1 and all(word.isdecimal() for word in several):
        from jaxmbrl.core import hints

        return hints.several_seeds(several, "--seed {} --seeds {}")
    if message.startswith("Unrecognized options:"):
        first = _first_unknown(message, words)
        if not first.startswith("-"):
            return f"unexpected argument '{first}'"
        from jaxmbrl.core import hints

        return hints.unknown_option(first, options)
    named = re.search(r"(?:Error parsing|argument) '?(--[\w.-]+)", message)
    if named is None or named[1] not in options:
        return message[:1].lower() + message[1:].rstrip(".")
    option, takes = named[1], options[named[1]]
    got = values(option, words)
    if message.startswith("Missing value"):
        return f"{option} needs a value: {takes}"
    return f"{option} must be {takes}, got {' '.join(got)!r}"


def _first_unknown(message: str, words: list[str]) -> str:
    """The first of `words` that the message lists."""
    listed = message.removeprefix("Unrecognized options:").replace(" ", "")
    return min(
        (word for word in words if word and word.replace(" ", "") in listed), key=lambda w: _place(w, listed), default=""
    )


def _place(word: str, listed: str) -> int:
    return listed.index(word.replace(" ", ""))


def values(option: str, words: list[str]) -> list[str]:
    """The words that follow the last occurrence of `option` in `words`."""
    got: list[str] = []
    taken = False
    for word in words:
        name, equals, value = word.partition("=")
        if word.startswith("--"):
            taken = name.replace("_", "-") == option
            got = ([value] if equals else []) if taken else got
        elif taken:
            got.append(word)
    return got


def _options(kind: Any, prefix: str = "--") -> dict[str, str]:
    """Each option of a config, with a description of the values it accepts."""
    found: dict[str, str] = {}
    for name, hint in typing.get_type_hints(kind).items():
        option = prefix + name.replace("_", "-")
        if dataclasses.is_dataclass(hint):
            found |= _options(hint, "--" if name == "settings" else f"{option}.")
            continue
        found[option] = _taken(hint)
        if hint is bool:
            found[f"{prefix}no-{name.replace('_', '-')}"] = _taken(hint)
    return found


def _taken(hint: Any) -> str:
    """A description of the values that an option accepts."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return " or ".join(f"'{choice}'" for choice in args)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_taken(kind) for kind in args)
    if origin is tuple:
        words = {int: "whole numbers", float: "numbers"}.get(args[0], "values")
        words = _taken(args[0]) if typing.get_origin(args[0]) is typing.Literal else words
        return f"{words}, each a word of its own"
    plain = {int: "a whole number", float: "a number", bool: "given without a value", str: "text", type(None): "'None'"}
    return plain.get(hint, "a value")
