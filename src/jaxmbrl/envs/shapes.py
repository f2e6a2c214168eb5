"""The shapes and dtypes of a task, checked without compiling or running anything. Every run checks them before it compiles.

`envs.check` uses the same rules on the values of real steps.
"""

from __future__ import annotations

import inspect
import numbers
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmbrl.core.config import UserError
from jaxmbrl.core.spaces import Box, Discrete, Space
from jaxmbrl.core.types import Carry, Features, Observation, PyTree, Task, Transition
from jaxmbrl.envs.signatures import calling, takes

WEAK = ", of a Python number's type"
KNOWN = {"reward": ("observation", "action", "next_observation"), "terminated": ("next_observation",)}
"""Known function of a task -> its arguments."""
FIELDS = ("obs", "reward", "done")
"""Fields of an environment's state whose dtypes are prescribed."""


def check_shapes(task: Task) -> None:
    """Check what training relies on, by tracing (`jax.eval_shape`) the task's reset and step once each:

    - the observation and action spaces and the length of an episode are valid, and the known functions of the observation
      take the right arguments;
    - observations, rewards and `done` of reset and step have the shapes and dtypes of the spaces;
    - a step keeps the shapes, dtypes, keys and containers of the state, so that it can be scanned.

    Of a task on the host, reset and step are not checked. Raises UserError with all problems found, in one line that names
    the method and the field, or the error that a method raised.
    """
    problems = of_spaces(task) + of_known(task)
    if not problems and task.host is None:
        problems = _of_functions(task)
    if problems:
        raise UserError(f"task '{task.name}': {'; '.join(problems)}")


def of_spaces(task: Task) -> list[str]:
    """Problems of the task's spaces and of its episode length."""
    problems = []
    action, observation = task.action, task.observation
    bounds = (action.low, action.high) if isinstance(action, Box) and _is_box(action) else None
    if not (bounds == (-1.0, 1.0) and _dtype(action).kind == "f") and not _is_discrete(action):
        problems.append(f"its actions must be Box(shape, -1.0, 1.0) or Discrete(n), got {action}: rescale them in step")
    if not _is_box(observation) and not _is_discrete(observation):
        problems.append(f"its observations must be Box(shape, low, high, dtype) or Discrete(n), got {observation}")
    elif isinstance(observation, Box) and _dtype(observation).kind != "f" and not _fits(observation):
        problems.append(f"the bounds of its observations must be numbers of their dtype, got {observation}")
    if not isinstance(task.episode_length, numbers.Integral) or task.episode_length < 1:
        problems.append(f"its episode_length must be a whole number of steps, got {task.episode_length!r}")
    return problems


def of_known(task: Task) -> list[str]:
    """Problems of the task's known functions of the observation: what they are and which arguments they take."""
    problems = []
    for what, arguments in KNOWN.items():
        function = getattr(task, what)
        if function is None:
            continue
        form = f"a function of ({', '.join(arguments)})"
        if not callable(function):
            problems.append(f"its {what} must be {form}, got {type(function).__name__}")
        elif not takes(function, arguments):
            called = getattr(function, "__name__", type(function).__name__)
            problems.append(f"its {what} must be {form}, got {called}{inspect.signature(function)}")
    if not isinstance(task.features, Features | None):
        problems.append(f"its features must be Features(encode=function), got {type(task.features).__name__}")
    return problems


ON_ROWS = (
    "index the last axis, as next_observation[..., 0] is the first entry of each row and next_observation[0] the first row"
)
"""What is wrong with most known functions that fail on rows."""


def of_rows(what: str, function: Callable[..., Any], *rows: Any) -> Any:
    """What a known `function`, the task's `reward` or `terminated`, returns for `rows` [N, ...]. Raises UserError if it is
    not [N]."""
    found, number = function(*rows), np.shape(rows[-1])[0]
    if np.shape(found) != (number,):
        due, got = f"[{number}] for rows [{number}, ...]", list(np.shape(found))
        raise UserError(f"the task's known {what} must return {due}, got {got}: {ON_ROWS}")
    return found


def _is_discrete(space: Any) -> bool:
    return isinstance(space, Discrete) and space.n >= 1


def _is_box(space: Any) -> bool:
    """Whether `space` is a Box of floats or integers with sizes of at least 1 and ordered bounds."""
    if not isinstance(space, Box) or not all(size >= 1 for size in space.shape) or not space.low < space.high:
        return False
    try:
        return _dtype(space).kind in "fiu"
    except TypeError:
        return False


def _dtype(space: Space) -> np.dtype[Any]:
    return np.dtype(_zeros(space).dtype)


def _zeros(space: Space) -> jax.ShapeDtypeStruct:
    return jax.eval_shape(space.zeros)


def _fits(space: Box) -> bool:
    """Whether the bounds are whole numbers within the range of the box's integer dtype."""
    limits = np.iinfo(_dtype(space))
    return all(limits.min <= bound <= limits.max and float(bound).is_integer() for bound in (space.low, space.high))


def _of_functions(task: Task) -> list[str]:
    """Problems of the shapes and dtypes that reset, observe and step return."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    with calling(task.name, "reset"):
        carry = jax.eval_shape(task.world.reset, key)
    with calling(task.name, "observe"):
        observation = jax.eval_shape(task.world.observe, carry)
    problems = of_reset(task, carry, observation)
    try:
        with calling(task.name, f"step, with an action {_kind(_zeros(task.action))},"):
            stepped = jax.eval_shape(task.world.step, carry, _zeros(task.action), key)
    except UserError:
        # A step may fail because of what reset returned.
        if problems:
            return problems
        raise
    if not (isinstance(stepped, tuple) and len(stepped) == 2 and isinstance(stepped[1], Transition)):
        return [*problems, f"step must return (carry, Transition), got {_named(stepped)}"]
    successor, row = stepped
    return problems + of_step(task, carry, successor, row, weak=False)


def of_reset(task: Task, carry: Carry, observation: Observation) -> list[str]:
    """Problems of the carry of a reset and of its observation, which may be their shapes."""
    state = _state_of(carry)
    if state is not None:
        return list(_of_state(task, "reset", state).values())
    seen, due = kinds(observation), _kind(_zeros(task.observation))
    wrong = {path: _strong(kind) for path, kind in seen.items()} != {"": due}
    hint = _reshaped(_strong(seen.get("", "")), due, acts=False)
    return [f"what is observed after reset must be {due}, got {_shown(seen)}{hint}"] if wrong else []


def of_step(task: Task, carry: Carry, successor: Carry, row: Transition, weak: bool = True) -> list[str]:
    """Problems of a step from `carry` to `successor` with the transition `row`, all of which may be their shapes. With
    `weak`, a change of a Python number's type is one."""
    states = {"reset": _state_of(carry), "step": _state_of(successor)}
    fields = {method: _of_state(task, method, state) for method, state in states.items() if state is not None}
    # Of a field with a problem in one of them, the change is not told as well.
    told = frozenset(field for problems in fields.values() for field in problems)
    problems = list(fields.get("step", {}).values()) + _changed_kinds(task, carry, successor, told, weak)
    return problems if told else problems + _row_kinds(task, row)


def _state_of(carry: Carry) -> Any:
    """The environment's state in a carry of `make_task`, with or without `envs.repeat`; None in other carries."""
    state = carry
    while type(state) is tuple and state:
        state = state[0]
    return state if all(hasattr(state, name) for name in FIELDS) else None


def _of_state(task: Task, method: str, state: Any) -> dict[str, str]:
    """Problems of the state that an environment's `method` returned, by field."""
    number = _kind(jnp.zeros(()))
    problems = {}
    for field, due in zip(FIELDS, (_kind(_zeros(task.observation)), number, number), strict=True):
        seen = {path: _strong(kind) for path, kind in kinds(getattr(state, field)).items()}
        plain = seen.get("", "")
        if seen == {"": due} or (field == "done" and re.fullmatch(r"(bool|u?int\d+|float\d+)\[\]", plain)):
            continue
        hint = _reshaped(plain, due, _acts(task) and method == "step")
        if not hint and _sizes(plain) == _sizes(due) and due.startswith("float"):
            hint = ": convert it with .astype(float)"
        problems[field] = f"{method} must return {field} as {due}, got {_shown(seen)}{hint}"
    return problems


def _acts(task: Task) -> bool:
    """Whether an action is a vector of one number, which is often taken for a number."""
    return task.action.shape == (1,)


def _sizes(kind: str) -> list[str] | None:
    """The sizes in a kind such as `float32[2, 3]`; None if it is not of one array."""
    found = re.fullmatch(r"\w+\[([\d, ]*)\]", kind)
    return [size for size in found[1].split(", ") if size] if found else None


def _reshaped(seen: str, due: str, acts: bool) -> str:
    """How an array of the kind `seen` gets the shape of `due`, if one has an axis of size 1 more than the other; else
    empty. With `acts`, an action [1] may be the cause."""
    found, wanted = _sizes(seen), _sizes(due)
    if found is None or wanted is None or (wanted and seen.partition("[")[0] != due.partition("[")[0]):
        return ""
    if found == [*wanted, "1"]:
        return ": compute it from action[0], or append .squeeze(-1)" if acts and not wanted else ": append .squeeze(-1)"
    if found == ["1", *wanted]:
        return ": append .squeeze(0)"
    if wanted == ["1", *found]:
        return ": append [None]"
    return ": append [..., None]" if wanted == [*found, "1"] else ""


def _changed_kinds(task: Task, carry: Carry, successor: Carry, told: frozenset[str], weak: bool) -> list[str]:
    """Changes of the carry that `jax.lax.scan` does not allow, except of the fields `told` of an environment's state."""
    before, after = kinds(carry), kinds(successor)
    if not weak:
        before, after = ({path: _strong(kind) for path, kind in of.items()} for of in (before, after))
    at = path_namer(carry)
    paths = [path for path in dict.fromkeys([*before, *after]) if _field(at(path)) not in told]
    problems = [f"step drops {at(path)}: keep it, a scan needs it" for path in paths if path not in after]
    problems += [f"step adds {at(path)}: let reset return it too" for path in paths if path not in before]
    problems += [
        f"step changes {at(path)} from {before[path]} to {after[path]}: keep its shape and dtype"
        + _reshaped(_strong(after[path]), _strong(before[path]), _acts(task)).replace(": ", ", ", 1)
        for path in paths
        if path in before and path in after and before[path] != after[path]
    ]
    structures: list[Any] = [jax.tree.structure(tree) for tree in (carry, successor)]
    if not problems and not told and structures[0] != structures[1]:
        problems.append("step changes the carry's containers: return the same kinds of containers as reset")
    return problems


def path_namer(carry: Carry) -> Callable[[str], str]:
    """A function that names a path in `carry`: `state.info['x']` in an environment's state, else `carry[0]['x']`."""
    of_env = _state_of(carry) is not None

    def name(path: str) -> str:
        found = re.sub(r"^(\[0\])+(?=\.)", "state", path) if of_env else path
        return found if found.startswith("state") else f"carry{path}"

    return name


def _field(name: str) -> str:
    """The field of an environment's state in which a path lies."""
    found = re.match(r"state\.(\w+)", name)
    return found[1] if found else ""


def _row_kinds(task: Task, row: Transition) -> list[str]:
    """Problems of the shapes and dtypes of one transition."""
    observation, action = (_kind(_zeros(space)) for space in (task.observation, task.action))
    number, flag = _kind(jnp.zeros(())), "bool[]"
    problems = []
    for what, due in (
        ("observation", observation),
        ("action", action),
        ("reward", number),
        ("next_observation", observation),
        ("terminated", flag),
        ("truncated", flag),
    ):
        seen = kinds(getattr(row, what))
        if {path: _strong(kind) for path, kind in seen.items()} != {"": due}:
            hint = _reshaped(_strong(seen.get("", "")), due, _acts(task))
            problems.append(f"a transition's {what} must be {due}, got {_shown(seen)}{hint}")
    return problems


def kinds(tree: PyTree) -> dict[str, str]:
    """Shape and dtype of each leaf, by its path."""
    return {jax.tree_util.keystr(path): _kind(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _kind(leaf: Any) -> str:
    array = leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jnp.asarray(leaf)
    return f"{array.dtype}[{', '.join(map(str, array.shape))}]" + WEAK * bool(getattr(array, "weak_type", False))


def _strong(kind: str) -> str:
    return kind.removesuffix(WEAK)


def _shown(found: dict[str, str]) -> str:
    """Kinds in words, with their paths if there are several."""
    return ", ".join(f"{path}: {kind}" if path else kind for path, kind in found.items()) or "nothing"


def _named(returned: Any) -> str:
    """What a function returned, in words."""
    return f"a tuple of {len(returned)}" if type(returned) is tuple else type(returned).__name__
