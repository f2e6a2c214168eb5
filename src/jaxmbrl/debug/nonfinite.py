"""Where a value that is not finite comes from: the operation that made it, what it was given, and its source lines.

`find` traces a function and walks backwards from one element that is not finite: to an element of an operand that makes it
so by itself, from there to the operation that made that one, and so on, until an operation makes it out of finite numbers.
What an element does not depend on is never looked at. So a NaN that a `where` leaves out, another seed's fault and an
infinity that is meant (a mask of -inf, the worst return so far) are not accused. On the way functions that are called are
part of their caller; of a `scan` or `while` the steps run compiled, and the walk goes on in the last step in which the
element ceased to be finite.

Everything is computed again, in other pieces than the whole function: a value at the verge of overflow may round to the
other side, and the walk then ends early, at the operation that it could last see.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from jaxmbrl.core.types import PyTree

ARGUMENT = "argument"
"""The operation of what was not finite to begin with."""

FRAMES = 8
"""Source lines that are kept of an operation."""

_CALLS = frozenset(["jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint"]) | frozenset(
    ["custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"]
)
"""Primitives that do what the function does that they hold."""

_SOUND = 0.5
"""Stands for what is not finite while its part in a result is tried: few operations mind it."""


class Operand(NamedTuple):
    """What an operation was given."""

    type: str
    """Dtype and shape."""
    low: float | None
    """Least of its finite values; None where it has none, or no numbers."""
    high: float | None
    at: float | None
    """Its value in the place of the result's element; None where its shape is another."""
    finite: bool


class Origin(NamedTuple):
    """The operation that made a value that is not finite."""

    operation: str
    """Its name in JAX; `ARGUMENT` for an argument that was not finite to begin with."""
    kind: str
    """'nan' or 'inf'; 'false' for a truth value that was followed to where it is no longer about finite numbers."""
    type: str
    """Dtype and shape of the result."""
    element: tuple[int, ...]
    """Index into the result of the element that was followed."""
    operands: tuple[Operand, ...]
    where: tuple[str, ...]
    """Source lines `FILE:LINE in FUNCTION`, innermost first. Of a gradient, those of what was differentiated."""
    path: str
    """Which step of which loop, in which function: 'scan step 7 / jit loss / log'; of an argument its name."""


class _Constant(NamedTuple):
    """An operand that does not depend on the arguments."""

    value: Any


class _Step(NamedTuple):
    """One equation. Operands and results are numbers of values in its level."""

    equation: Any
    operands: tuple[int | _Constant, ...]
    results: tuple[int, ...]
    path: tuple[str, ...]


class _Level(NamedTuple):
    """The equations of a function, those of functions that it calls among them. Its inputs are the first values."""

    steps: tuple[_Step, ...]
    inputs: int
    outputs: tuple[int | _Constant, ...]


class _Place(NamedTuple):
    """One element of one of several arrays, counted along the flat array."""

    position: int
    element: int


class _Loop(NamedTuple):
    """A `scan` or `while`, as steps of (constants, carry, row) -> (carry, row)."""

    body: Any
    constants: tuple[int, ...]
    """Positions among the equation's operands."""
    carry: tuple[int, ...]
    rows: tuple[int, ...]
    length: int | None
    """None for a `while`, which ends where `goes_on` of the carry is false."""
    reverse: bool
    goes_on: Callable[[list[Any]], Any]
    """Under `vmap` there may be a truth value for each row: the loop ends with the last of them, and a row as it says."""

    def row(self, step: int) -> int:
        """Where in its rows a step reads and writes."""
        return self.length - 1 - step if self.reverse and self.length is not None else step


def find(function: Callable[..., PyTree], *arguments: PyTree, element: int | None = None) -> Origin | None:
    """Where the first element of `function(*arguments)` comes from that is NaN, infinite, or a truth value that is false;
    or, of a function that returns one array, the `element` of the flat array. None where it is finite (or true).

    A result that is false is followed to the number that is not finite through `isfinite` and `all`. The function is traced
    and compiled in parts, and the intermediate values behind the element are held in memory at once.
    """
    named = jax.tree_util.tree_flatten_with_path(arguments)[0]
    walk = _Walk()
    level = walk.level(jax.make_jaxpr(function)(*arguments))
    given = [jnp.asarray(leaf) for _, leaf in named]
    if element is None:
        marks = [np.flatnonzero(_bad(x)) for x in walk.values(level, given, level.outputs)]
        places = [_Place(i, int(mark[0])) for i, mark in enumerate(marks) if mark.size]
    else:
        places = [_Place(0, element)]
    for place in places[:1]:
        found = walk.search(level, given, place, ())
        if not isinstance(found, _Place):
            return found
        if _kind(given[found.position], found.element):
            return walk.turned or _argument(named[found.position][0], given[found.position], found.element)
    return None


class _Walk:
    """One walk, and what it has compiled."""

    def __init__(self) -> None:
        self.turned: Origin | None = None
        """The operation that made the NaN out of the infinity that is being followed."""
        self._levels: dict[int, tuple[Any, _Level]] = {}
        self._compiled: dict[Any, Any] = {}

    def level(self, closed: Any) -> _Level:
        """The level of a jaxpr."""
        if id(closed) not in self._levels:
            # The jaxpr is kept, so that no other takes its id.
            self._levels[id(closed)] = closed, _flattened(closed)
        return self._levels[id(closed)][1]

    def values(self, level: _Level, given: Sequence[Any], wanted: Sequence[int | _Constant]) -> list[Any]:
        """The values of a level that are wanted, for what it is given."""
        key = "values", id(level), tuple(x for x in wanted if isinstance(x, int))
        if key not in self._compiled:
            self._compiled[key] = jax.jit(lambda given: [_computed(level, given)[x] for x in key[2]])
        computed = dict(zip(key[2], self._compiled[key](list(given)), strict=True))
        return [x.value if isinstance(x, _Constant) else computed[x] for x in wanted]

    def behind(self, level: _Level, given: Sequence[Any], output: int) -> dict[int, Any]:
        """Of the values that an output depends on those that are bad, and the operands of the equations that made them.

        Each equation is compiled by itself: to compile them as one that returns all of this takes XLA minutes.
        """
        needed = {output}
        for step in reversed(level.steps):
            if needed.intersection(step.results):
                needed.update(x for x in step.operands if isinstance(x, int))
        steps = [step for step in level.steps if needed.intersection(step.results)]
        uses = Counter(x for step in steps for x in step.operands if isinstance(x, int))
        known = {x: given[x] for x in needed if x < level.inputs}
        kept = {output}
        for step in steps:
            results = _bound(step, [x.value if isinstance(x, _Constant) else known[x] for x in step.operands])
            bad = [x for x, value in zip(step.results, results, strict=True) if _any_bad(value)]
            kept.update(bad)
            known |= {x: value for x, value in zip(step.results, results, strict=True) if x in needed}
            for x in (x for x in step.operands if isinstance(x, int)):
                uses[x] -= 1
                if bad:
                    kept.add(x)
                elif uses[x] == 0 and x not in kept:
                    known.pop(x, None)
        return known

    def search(self, level: _Level, given: Sequence[Any], place: _Place, path: tuple[str, ...]) -> Origin | _Place | None:
        """Walk from an output of the level: to an `Origin` or a place in its inputs. None for an output that is not bad."""
        at, element = level.outputs[place.position], place.element
        if isinstance(at, _Constant):
            return None
        if at < level.inputs:
            return place._replace(position=at)
        made_by = {x: step for step in level.steps for x in step.results}
        known = self.behind(level, given, at)
        if not _bad(known[at]).flat[element]:
            return None
        while True:
            step = made_by[at]
            operands = [x.value if isinstance(x, _Constant) else known[x] for x in step.operands]
            here = _Place(step.results.index(at), element)
            found = self.inside(step, operands, here, path) if _has_parts(step) else _cause(step, operands, here)
            if isinstance(found, Origin):
                return found
            origin = _origin(step, operands, known[at], element, path)
            if found is None:
                return origin
            follows = _kind(operands[found.position], found.element)
            if follows == "inf" and origin.kind == "nan" and not _has_parts(step):
                self.turned = self.turned or origin
            elif follows == "nan":
                self.turned = None
            next_one, element = step.operands[found.position], found.element
            if isinstance(next_one, _Constant):
                return self.turned or origin
            if next_one < level.inputs:
                return _Place(next_one, element)
            at = next_one

    def inside(self, step: _Step, operands: list[Any], place: _Place, path: tuple[str, ...]) -> Origin | _Place | None:
        """Walk from a result of a loop or a branch: to an `Origin`, or to a place in its operands."""
        name, path = step.equation.primitive.name, (*path, *step.path)
        if name == "cond":
            branch = int(np.clip(operands[0], 0, len(step.equation.params["branches"]) - 1))
            level = self.level(step.equation.params["branches"][branch])
            found = self.search(level, operands[1:], place, (*path, f"cond branch {branch}"))
            return _Place(found.position + 1, found.element) if isinstance(found, _Place) else found
        return self.steps(self.loop(step, operands), operands, place, (*path, name))

    def loop(self, step: _Step, operands: list[Any]) -> _Loop:
        """What a `scan` or a `while` does in a step."""
        equation, count = step.equation, len(operands)
        if equation.primitive.name == "while":
            of_test, of_body = equation.params["cond_nconsts"], equation.params["body_nconsts"]
            test = self.level(equation.params["cond_jaxpr"])
            carry = tuple(range(of_test + of_body, count))

            def goes_on(held: list[Any]) -> Any:
                return self.values(test, [*operands[:of_test], *held], test.outputs)[0]

            constants = tuple(range(of_test, of_test + of_body))
            return _Loop(equation.params["body_jaxpr"], constants, carry, (), None, False, goes_on)
        body = equation.params["jaxpr"]
        jaxpr = getattr(body, "jaxpr", body)
        # Told from the ranks, which every version of JAX has: rows have one axis more outside of the body.
        pairs = list(zip(equation.invars, jaxpr.invars, strict=True))
        rows = sum(len(outer.aval.shape) > len(inner.aval.shape) for outer, inner in pairs)
        both = zip(equation.outvars, jaxpr.outvars, strict=True)
        carried = sum(len(outer.aval.shape) == len(inner.aval.shape) for outer, inner in both)
        first = count - rows - carried
        return _Loop(
            body,
            tuple(range(first)),
            tuple(range(first, count - rows)),
            tuple(range(count - rows, count)),
            equation.params["length"],
            equation.params["reverse"],
            lambda held: np.True_,
        )

    def steps(self, loop: _Loop, operands: list[Any], place: _Place, path: tuple[str, ...]) -> Origin | _Place | None:
        """Walk back through the steps of a loop from one of its results."""
        level, last = self.level(loop.body), loop.length
        while True:
            if place.position < len(loop.carry):
                found = self.faulty_step(loop, level, operands, place, last)
                if found is None:
                    bad = _bad(operands[loop.carry[place.position]]).flat[place.element]
                    return _Place(loop.carry[place.position], place.element) if bad else None
                number, carry = found
            else:
                size = math.prod(getattr(loop.body, "jaxpr", loop.body).outvars[place.position].aval.shape)
                number = loop.row(place.element // size)
                *_, (_, carry) = self.run(loop, level, operands, number + 1)
                place = _Place(place.position, place.element % size)
            given = self.given(loop, operands, carry, number)
            step = (*path[:-1], f"{path[-1]} step {number}")
            inner = self.search(level, given, place, step)
            if not isinstance(inner, _Place):
                return inner
            if inner.position < len(loop.constants):
                return _Place(loop.constants[inner.position], inner.element)
            position = inner.position - len(loop.constants)
            if position >= len(loop.carry):
                row = operands[loop.rows[position - len(loop.carry)]]
                first = loop.row(number) * math.prod(row.shape[1:])
                return _Place(loop.rows[position - len(loop.carry)], first + inner.element)
            place, last = _Place(position, inner.element), number

    def faulty_step(
        self, loop: _Loop, level: _Level, operands: list[Any], place: _Place, last: int | None
    ) -> tuple[int, list[Any]] | None:
        """The last step, of those before `last`, in which an element of the carry ceased to be finite: its number and the
        carry before it."""
        found, before = None, None
        for number, carry in self.run(loop, level, operands, last, and_end=True):
            bad = bool(_element_is_bad(carry[place.position], place.element))
            if before is not None and bad and not before[0]:
                found = number - 1, before[1]
            before = bad, carry
        return found

    def run(
        self, loop: _Loop, level: _Level, operands: list[Any], last: int | None, and_end: bool = False
    ) -> Iterator[tuple[int, list[Any]]]:
        """(number, carry) before each step that is below `last`, and after them all."""
        carry, number = [operands[x] for x in loop.carry], 0
        while np.any(on := loop.goes_on(carry)) and (last is None or number < last):
            yield number, carry
            if and_end or last is None or number + 1 < last:
                given = self.given(loop, operands, carry, number)
                after = self.values(level, given, level.outputs[: len(loop.carry)])
                carry = [_where(on, new, old) for new, old in zip(after, carry, strict=True)] if np.ndim(on) else after
            number += 1
        if and_end:
            yield number, carry

    def given(self, loop: _Loop, operands: list[Any], carry: list[Any], number: int) -> list[Any]:
        """What a step of a loop is given."""
        rows = [_row(operands[x], loop.row(number)) for x in loop.rows]
        return [*(operands[x] for x in loop.constants), *carry, *rows]


def _where(on: Any, new: Any, old: Any) -> Any:
    """A step of a loop that goes on in some rows alone: what `vmap` makes of a loop whose rows end apart."""
    return jnp.where(on.reshape(on.shape + (1,) * (np.ndim(new) - on.ndim)), new, old)


def _flattened(closed: Any) -> _Level:
    steps: list[_Step] = []
    count = len(getattr(closed, "jaxpr", closed).invars)
    numbers = iter(range(count, 2**62))

    def add(closed: Any, atoms: Sequence[int | _Constant], path: tuple[str, ...]) -> list[int | _Constant]:
        jaxpr = getattr(closed, "jaxpr", closed)
        held: dict[Any, int | _Constant] = dict(zip(jaxpr.invars, atoms, strict=True))
        constants = getattr(closed, "consts", ())
        held |= {variable: _Constant(value) for variable, value in zip(jaxpr.constvars, constants, strict=True)}

        def read(atom: Any) -> int | _Constant:
            if isinstance(atom, Literal):
                aval: Any = atom.aval
                return _Constant(np.asarray(atom.val, aval.dtype))
            return held[atom]

        for equation in jaxpr.eqns:
            operands = tuple(read(atom) for atom in equation.invars)
            if equation.primitive.name in _CALLS:
                params = equation.params
                called = next(params[name] for name in ("jaxpr", "call_jaxpr", "fun_jaxpr") if name in params)
                name = params.get("name")
                label = " ".join([equation.primitive.name, *([name] if isinstance(name, str) else [])])
                results: Sequence[int | _Constant] = add(called, operands, (*path, label))
            else:
                own = tuple(next(numbers) for _ in equation.outvars)
                steps.append(_Step(equation, operands, own, path))
                results = own
            held |= dict(zip(equation.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    outputs = add(closed, range(count), ())
    return _Level(tuple(steps), count, tuple(outputs))


def _computed(level: _Level, given: Sequence[Any]) -> dict[int, Any]:
    """All values of a level."""
    known = dict(enumerate(given))
    for step in level.steps:
        operands = [x.value if isinstance(x, _Constant) else known[x] for x in step.operands]
        known |= dict(zip(step.results, _bound(step, operands), strict=True))
    return known


def _bound(step: _Step, operands: Sequence[Any]) -> Sequence[Any]:
    """The results of one equation."""
    primitive = step.equation.primitive
    with step.equation.ctx.manager:
        found = primitive.bind(*operands, **primitive.get_bind_params(step.equation.params))
    return found if primitive.multiple_results else [found]


def _has_parts(step: _Step) -> bool:
    return step.equation.primitive.name in ("cond", "scan", "while")


def _cause(step: _Step, operands: list[Any], place: _Place) -> _Place | None:
    """An element of an operand that by itself makes an element of a result bad; None where finite operands do."""
    marks = _marks(step, operands, place)

    def outcome(kept: dict[int, Any]) -> str:
        """What the element becomes where of the operands' bad elements only those that are kept stay as they are."""
        tried = [
            x if i not in marks else jnp.where(jnp.asarray(marks[i] & ~kept.get(i, np.False_)), _sound(x), x)
            for i, x in enumerate(operands)
        ]
        return _kind(_bound(step, tried)[place.position], place.element)

    if not marks or outcome({}) != "":
        return None
    full = outcome(marks)
    for accepted in ({full}, {"nan", "inf", "false"}):
        for i, mark in marks.items():

            def accepts(kept: Any, of: int = i, accepted: set[str] = accepted) -> bool:
                return outcome({of: kept}) in accepted

            if accepts(mark):
                return _Place(i, _narrowed(accepts, mark, place.element))
    first = next(iter(marks))
    return _Place(first, int(np.flatnonzero(marks[first])[0]))


def _marks(step: _Step, operands: list[Any], place: _Place) -> dict[int, Any]:
    """Where the operands that an element may come from are bad, by position: those that hold a NaN first."""
    of_truth = step.equation.outvars[place.position].aval.dtype == bool
    # What a choice goes by is not what it gives.
    first = 1 if step.equation.primitive.name == "select_n" else 0
    marks = {}
    for i, x in list(enumerate(operands))[first:]:
        if of_truth or x.dtype != bool:
            mark = _bad(x)
            if mark.any():
                marks[i] = mark
    return dict(sorted(marks.items(), key=lambda item: not _has_nan(operands[item[0]])))


def _narrowed(accepts: Callable[[Any], bool], mark: Any, guess: int) -> int:
    """One of the marked elements that is accepted alone, or of a few that are only together."""

    def only(elements: Any) -> Any:
        kept = np.zeros(mark.size, bool)
        kept[elements] = True
        return kept.reshape(mark.shape)

    left = np.flatnonzero(mark)
    if guess in left and accepts(only([guess])):
        return guess
    while len(left) > 1:
        half = len(left) // 2
        left = next((part for part in (left[:half], left[half:]) if accepts(only(part))), left[:1])
    return int(left[0])


def _is_inexact(x: Any) -> bool:
    return bool(jnp.issubdtype(x.dtype, jnp.inexact))


def _bad(x: Any) -> Any:
    """Where an array is not finite, or not true: NumPy's, of its shape. Whole numbers and keys are never bad."""
    if _is_inexact(x):
        return ~np.isfinite(np.asarray(x))
    return ~np.asarray(x) if x.dtype == bool else np.zeros(x.shape, bool)


def _bad_traced(x: Any) -> Any:
    if _is_inexact(x):
        return ~jnp.isfinite(x)
    return ~x if x.dtype == bool else jnp.zeros(x.shape, bool)


def _any_bad(x: Any) -> bool:
    if not _is_inexact(x) and x.dtype != bool:
        return False
    # A large array stays where it is; for each small one there is nothing to compile.
    return bool(_holds_bad(x)) if x.size >= _LARGE else bool(_bad(x).any())


_LARGE = 1_000_000
"""Elements."""

_holds_bad = jax.jit(lambda x: jnp.any(_bad_traced(x)))
_element_is_bad = jax.jit(lambda x, element: _bad_traced(jnp.ravel(x)[element]))
_row = jax.jit(lambda x, row: x[row])


def _sound(x: Any) -> Any:
    """A value of the dtype of `x` that is not bad."""
    return jnp.asarray(True if x.dtype == bool else _SOUND, x.dtype)


def _has_nan(x: Any) -> bool:
    return _is_inexact(x) and bool(np.isnan(np.asarray(x)).any())


def _kind(x: Any, element: int) -> str:
    """'nan', 'inf', 'false', or '' for an element that is not bad."""
    if not _bad(x).flat[element]:
        return ""
    if x.dtype == bool:
        return "false"
    return "nan" if np.isnan(np.asarray(x).flat[element]) else "inf"


def _type(x: Any) -> str:
    return f"{x.dtype}[{', '.join(map(str, x.shape))}]"


def _origin(step: _Step, operands: list[Any], result: Any, element: int, path: tuple[str, ...]) -> Origin:
    """The operation of a step, as told to the user."""
    name = step.equation.primitive.name
    index = tuple(int(x) for x in np.unravel_index(element, result.shape))
    told = tuple(_operand(x, result, element) for x in operands)
    where = _source(step.equation.source_info)
    return Origin(name, _kind(result, element), _type(result), index, told, where, " / ".join((*path, *step.path, name)))


def _operand(x: Any, result: Any, element: int) -> Operand:
    numbers = jnp.issubdtype(x.dtype, jnp.floating) or jnp.issubdtype(x.dtype, jnp.integer)
    if not numbers or not x.size:
        return Operand(_type(x), None, None, None, True)
    values = np.asarray(x).astype(float)
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (None, None)
    at = float(values.flat[element]) if values.shape == result.shape else None
    return Operand(_type(x), low, high, at, finite.size == values.size)


def _argument(path: tuple[Any, ...], value: Any, element: int) -> Origin:
    name = f"{path[0].idx}{jax.tree_util.keystr(path[1:])}"
    index = tuple(int(x) for x in np.unravel_index(element, value.shape))
    return Origin(ARGUMENT, _kind(value, element), _type(value), index, (), (), name)


def _source(info: Any) -> tuple[str, ...]:
    """The lines that asked for an operation, innermost first, without those of JAX and those around `find`."""
    traceback = getattr(info, "traceback", None)
    lines: list[str] = []
    for frame in traceback.frames if traceback is not None else ():
        file = Path(frame.file_name)
        if file == Path(__file__):
            break
        if file.is_absolute() and not _FOREIGN.intersection(file.parts):
            line = f"{_short(file)}:{frame.line_num} in {frame.function_name}"
            lines += [] if lines[-1:] == [line] else [line]
    return tuple(lines[:FRAMES])


_FOREIGN = frozenset(["jax", "jaxlib", "flax", "optax", "jaxtyping", "beartype"])
"""Packages whose lines say nothing of what was asked for."""


def _short(file: Path) -> str:
    """The path below the folder of the package that a file belongs to, or below the current folder."""
    for base in (*Path(__file__).parents[2:3], *(x for x in file.parents if x.name == "site-packages"), Path.cwd()):
        if file.is_relative_to(base):
            return str(file.relative_to(base))
    return str(file)
