"""A checker for tasks: tests, before training, the properties that algorithms rely on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Shaped

from jaxmbrl.core.config import UserError
from jaxmbrl.core.spaces import Box, Discrete, Space
from jaxmbrl.core.types import Action, Carry, Key, PyTree, Task, Transition
from jaxmbrl.envs.drawing.interface import on_host
from jaxmbrl.envs.drawing.own import own_drawing
from jaxmbrl.envs.shapes import ON_ROWS, kinds, of_known, of_reset, of_spaces, of_step, path_namer
from jaxmbrl.envs.signatures import calling

ROWS = 8
LONGEST = 2000
HOLD = 7  # steps
POLICIES = (
    "uniform actions",
    "actions thrown from bound to bound",
    "actions at the upper bound",
    "actions at the lower bound",
)
GYMNASIUMS = "gymnasium.utils.env_checker.check_env tests an environment with Gymnasium's interface"


def check(task: Task, seed: int = 0) -> None:
    """Test `task`, which must be in JAX. Raises UserError with all problems found, in one line; returns None if there are
    none.

    The checks are:

    - the observation and action spaces are valid, and the known functions take the right arguments;
    - reset and step return the right shapes and dtypes, and a step keeps those of the carry, so that it can be scanned;
    - reset and step depend on their arguments alone, leave them unchanged, and give the same under jit, scan and vmap;
    - in rollouts of `episode_length + 1` steps (at most 2,000), with random actions and actions at the bounds: observations
      and rewards are finite and within their space, `done` is 0 or 1 and not set by a time limit, the task truncates at
      `episode_length`, and the environment does not reset itself;
    - the task's known `reward` and `terminated` agree with the steps, for one row and for rows [N, ...] and [M, N, ...];
    - the environment's own `draw`, if it has one, returns pictures, uint8 [H, W, 3] of one size (`envs.drawing`).

    Whether an environment resets itself, or ends because of a time limit, is inferred from the rollouts. If they do not
    show it, for example because none of them terminates, the task passes. So does one whose episodes all terminate at the
    same step, if the task has the function `terminated`: the observation then ends them, as in games of fixed length.
    """
    stages: tuple[tuple[str, Callable[[Task, Key], list[str]]], ...] = (
        ("reading its spaces", lambda task, key: of_spaces(task) + of_known(task)),
        ("a reset and a step, not compiled,", _check_a_step),
        ("a compiled reset and step", _check_compiled),
        ("rollouts, under jit, vmap and scan,", _check_rollouts),
    )
    if not isinstance(task, Task):
        raise UserError(
            f"envs.check takes a task, got {_called(task)}: envs.make makes one of a name, and envs.make_task one of an "
            f"environment in JAX; {GYMNASIUMS}"
        )
    if task.host is not None:
        raise UserError(
            f"task '{task.name}' runs on the host, and envs.check tests tasks in JAX: {GYMNASIUMS}, and every run checks "
            "what its reset and step return"
        )
    task = _with_named_errors(task)
    for (what, stage), key in zip(stages, jax.random.split(jax.random.key(seed), len(stages)), strict=True):
        with calling(task.name, what):
            problems = stage(task, key)
        if problems:
            raise UserError(f"task '{task.name}': {'; '.join(problems)}")
    _check_drawing(task, jax.random.fold_in(jax.random.key(seed), len(stages)))


def _called(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def _check_drawing(task: Task, key: Key) -> None:
    """Draw a reset and a step, if the environment has its own drawing. Raises NoPicture if it fails."""
    found = own_drawing(task)
    if found is None:
        return
    reset_key, action_key, step_key = jax.random.split(key, 3)
    carry, action = task.world.reset(reset_key), task.action.sample(action_key)
    successor, _ = task.world.step(carry, action, step_key)
    with found.drawer(0, 0) as drawer:
        drawer.frame(on_host(found.shown(carry)))
        drawer.frame(on_host(found.shown(successor)), np.asarray(action))


def _with_named_errors(task: Task) -> Task:
    """`task` with a world whose errors name the method that raised them."""
    world = task.world

    def reset(key: Key) -> Carry:
        with calling(task.name, "reset"):
            return world.reset(key)

    def step(carry: Carry, action: Action, key: Key) -> tuple[Carry, Transition]:
        with calling(task.name, "step"):
            return world.step(carry, action, key)

    return task._replace(world=world._replace(reset=reset, step=step))


def _check_a_step(task: Task, key: Key) -> list[str]:
    """Check a reset and a step without jit, which reveals state that is kept in Python."""
    reset_key, action_key, step_key = jax.random.split(key, 3)
    # An accelerator may sum in a different order each time.
    tolerance = 0.0 if jax.default_backend() == "cpu" else _tolerance()
    carry = task.world.reset(reset_key)
    problems = _differences(
        carry, task.world.reset(reset_key), tolerance, "reset depends on more than its key: two calls differ at {at}"
    )
    action = task.action.sample(action_key)
    before = jax.tree.map(_copied, carry)
    successor, row = task.world.step(carry, action, step_key)
    problems += _differences(before, carry, 0.0, "step changes its argument at {at}: return a new carry")
    again = task.world.step(jax.tree.map(jnp.asarray, before), action, step_key)
    problems += _differences(
        (successor, row), again, tolerance, "step depends on more than its arguments: two calls differ at {path}"
    )
    problems += of_reset(task, before, task.world.observe(jax.tree.map(jnp.asarray, before)))
    problems += of_step(task, before, successor, row)
    if not problems:
        for what, seen, expected in (
            ("observation", row.observation, task.world.observe(jax.tree.map(jnp.asarray, before))),
            ("next_observation", row.next_observation, task.world.observe(successor)),
            ("action", row.action, action),
        ):
            due = "the action given" if what == "action" else "what observe returns for the carry"
            problems += _differences(expected, seen, 0.0, f"a transition's {what} is not {due}")
    return problems


def _check_compiled(task: Task, key: Key) -> list[str]:
    reset_key, action_key, step_key = jax.random.split(key, 3)
    carry, action = task.world.reset(reset_key), task.action.sample(action_key)
    compiled = jax.jit(task.world.reset)(reset_key)
    problems = _differences(carry, compiled, _tolerance(), "reset gives another {at} under jit")
    stepped, row = task.world.step(carry, action, step_key)
    compiled, compiled_row = jax.jit(task.world.step)(carry, action, step_key)
    problems += _differences(stepped, compiled, _tolerance(), "step gives another {at} under jit")
    return problems + _differences(row, compiled_row, _tolerance(), "step gives another transition{path} under jit")


class _Rollouts(NamedTuple):
    """Rollouts [ROWS, T, ...]. Row r uses policy r mod 4; the second half of the rows is reset when an episode ends."""

    rows: Transition
    done: Shaped[np.ndarray, "R T"]
    """The environment's own `done` if it is accessible, else `rows.terminated`."""
    alive: Bool[np.ndarray, "R T"]
    """False for steps after an end that no reset followed."""
    elapsed: Int[np.ndarray, "R T"]
    """Steps since the start of the episode, this one included."""


def _check_rollouts(task: Task, key: Key) -> list[str]:
    action_key, play_key = jax.random.split(key)
    length = min(task.episode_length + 1, LONGEST)
    actions = _actions(task.action, length, action_key)
    resets = jnp.arange(ROWS) >= ROWS // 2
    keys = jax.random.split(play_key, (ROWS, length + 1, 2))
    played = jax.jit(jax.vmap(lambda keys, actions, resets: _play(task, keys, actions, resets)))(keys, actions, resets)
    rows, done = jax.tree.map(np.asarray, played)
    alive, elapsed = _alive(rows.terminated | rows.truncated, np.asarray(resets))
    rollouts = _Rollouts(rows, done, alive, elapsed)
    problems = _one_by_one(task, keys, actions, rows) + _sound(task, rollouts)
    problems = problems or _ends(task, rollouts) or _resets(task, rollouts)
    return problems or _known(task, jax.tree.map(lambda x: x[alive], rows))


def _play(
    task: Task, keys: Key, actions: Shaped[Array, "T ..."], resets: Bool[Array, ""]
) -> tuple[Transition, Shaped[Array, "T"]]:
    """(transitions, the environment's done) of a rollout with the given actions, with or without resets when an episode
    ends. Of the keys [T + 1, 2] the first row is for the start; each other row is for a step and for the reset after it."""

    def step(carry: Carry, turn: tuple[Any, Any]) -> tuple[Carry, tuple[Transition, Array]]:
        (step_key, again_key), action = turn
        carry, row = task.world.step(carry, action, step_key)
        done = carry[0].done if isinstance(carry, tuple) and hasattr(carry[0], "done") else row.terminated
        anew = resets & (row.terminated | row.truncated)
        fresh = task.world.reset(again_key)
        carry = jax.tree.map(lambda yes, no: jnp.where(anew, yes, no), fresh, carry)
        return carry, (row._replace(extras=()), done)

    return jax.lax.scan(step, task.world.reset(keys[0, 0]), (keys[1:], actions))[1]


def _one_by_one(task: Task, keys: Key, actions: Shaped[Array, "R T ..."], rows: Transition) -> list[str]:
    """Check the first two steps of two rows, computed without vmap, against the batch."""
    reset, step = jax.jit(task.world.reset), jax.jit(task.world.step)
    for r in range(2):
        carry = reset(keys[r, 0, 0])
        for i in range(min(2, actions.shape[1])):
            carry, row = step(carry, actions[r, i], keys[r, i + 1, 0])
            batched = jax.tree.map(lambda x, r=r, i=i: x[r, i], rows)
            problems = _differences(
                row._replace(extras=()),
                batched,
                _tolerance(),
                "a batch under vmap gives another transition{path} than one alone",
            )
            if problems or row.terminated | row.truncated:
                break
        if problems:
            return problems
    return []


def _actions(space: Space, length: int, key: Key) -> Shaped[Array, "R T ..."]:
    """Actions of the rows; row r uses policy r mod 4."""
    uniform_key, switch_key = jax.random.split(key)
    shape = (ROWS // 4, length, *space.shape)
    turns = (ROWS // 4, -(-length // HOLD), *space.shape)
    if isinstance(space, Discrete):
        low, high = jnp.zeros(shape, jnp.int32), jnp.full(shape, space.n - 1, jnp.int32)
        uniform = jax.random.randint(uniform_key, shape, 0, space.n, jnp.int32)
    else:
        low, high = -jnp.ones(shape), jnp.ones(shape)
        uniform = jax.random.uniform(uniform_key, shape, minval=-1.0, maxval=1.0)
    ups = jnp.repeat(jax.random.bernoulli(switch_key, 0.5, turns), HOLD, axis=1)[:, :length]
    by_policy = jnp.stack([uniform, jnp.where(ups, high, low), high, low], axis=1)
    return by_policy.reshape(ROWS, length, *space.shape)


def _alive(
    ended: Bool[np.ndarray, "R T"], resets: Bool[np.ndarray, "R"]
) -> tuple[Bool[np.ndarray, "R T"], Int[np.ndarray, "R T"]]:
    alive, elapsed = np.ones_like(ended), np.ones(ended.shape, int)
    for t in range(1, ended.shape[1]):
        alive[:, t] = resets | (alive[:, t - 1] & ~ended[:, t - 1])
        elapsed[:, t] = np.where(resets & ended[:, t - 1], 1, elapsed[:, t - 1] + 1)
    return alive, elapsed


def _where(rollouts: _Rollouts, wrong: Bool[np.ndarray, "R T"] | Bool[Array, "R T"]) -> str:
    r, t = np.argwhere(np.asarray(wrong))[0]
    return f"at step {rollouts.elapsed[r, t]} with {POLICIES[r % 4]}"


def _sound(task: Task, rollouts: _Rollouts) -> list[str]:
    problems = []
    for what in ("observation", "next_observation", "reward"):
        value = getattr(rollouts.rows, what)
        value = value.reshape(*rollouts.alive.shape, -1)
        wrong = rollouts.alive & ~np.isfinite(value).all(-1)
        if wrong.any():
            problems.append(f"{what} is not finite {_where(rollouts, wrong)}")
        elif what != "reward":
            space = task.observation
            low, high = (space.low, space.high) if isinstance(space, Box) else (0, space.n - 1)
            wrong = rollouts.alive & ((value < low) | (value > high)).any(-1)
            if wrong.any():
                problems.append(f"{what} is outside of {space} {_where(rollouts, wrong)}")
    wrong = rollouts.alive & ~np.isin(rollouts.done, (0, 1))
    if wrong.any():
        problems.append(f"done is {rollouts.done[wrong][0]} {_where(rollouts, wrong)}: it must be 0 or 1")
    return problems


def _ends(task: Task, rollouts: _Rollouts) -> list[str]:
    rows, alive, limit = rollouts.rows, rollouts.alive, task.episode_length
    first = np.where(rows.terminated.any(1), rows.terminated.argmax(1), -1) + 1
    # A known `terminated` shows that an observation ends the episode, and not the number of steps.
    if task.terminated is None and (first == first[0]).all() and first[0] > 1:
        return [
            f"every episode terminates at step {first[0]}, whatever its actions, as for a time limit: done must be for "
            "terminations only; give the time limit as the task's episode_length"
        ]
    truncated = rows.truncated & alive
    both = truncated & rows.terminated
    if both.any():
        return [f"a step is terminated and truncated {_where(rollouts, both)}: a terminated step must not be truncated"]
    early = truncated & (rollouts.elapsed < limit)
    if early.any():
        return [f"a step is truncated {_where(rollouts, early)}, before the episode_length of {limit}"]
    missed = alive & ~rows.truncated & ~rows.terminated & (rollouts.elapsed >= limit)
    return [f"a step is not truncated {_where(rollouts, missed)}: the episode_length is {limit}"] if missed.any() else []


def _resets(task: Task, rollouts: _Rollouts) -> list[str]:
    rows, alive = rollouts.rows, rollouts.alive
    shape = (*alive.shape, -1)
    observation, successor = rows.observation.reshape(shape), rows.next_observation.reshape(shape)
    ended = rows.terminated | rows.truncated
    kept = np.arange(ROWS)[:, None] < ROWS // 2
    torn = _apart(observation[:, 1:], successor[:, :-1]) & alive[:, :-1] & (kept | ~ended[:, :-1])
    if torn.any():
        where = _where(rollouts, np.pad(torn, ((0, 0), (0, 1))))
        return [f"the world does not continue from the next_observation {where}: it must not reset by itself"]
    terminated, going = rows.terminated & alive, alive & ~ended
    if terminated.sum() < 3 or not going.any():
        return []
    starts = observation[alive & (rollouts.elapsed == 1)]
    if isinstance(task.observation, Discrete):
        fresh = np.isin(successor, starts).all(-1)
    else:
        low, high = np.asarray(starts.min(0), np.float64), np.asarray(starts.max(0), np.float64)
        margin = (high - low) / 2
        fresh = ((successor >= low - margin) & (successor <= high + margin)).all(-1)
    # Unlike an absolute difference, this does not wrap around in unsigned integers.
    moves = np.maximum(successor, observation) - np.minimum(successor, observation)
    leaps = (moves > 3 * np.asarray(moves[going].max(0), np.float64)).any(-1)
    if not (fresh & leaps)[terminated].all():
        return []
    return [
        f"its next_observation looks like a reset's, {_where(rollouts, terminated)}, where it terminated: the environment "
        "must not reset by itself; give the one inside its auto-reset wrapper"
    ]


def _apart(a: Shaped[np.ndarray, "R T O"], b: Shaped[np.ndarray, "R T O"]) -> Bool[np.ndarray, "R T"]:
    """Where two observations differ. Floats may differ by rounding, because a compiled program may compute them twice."""
    if a.dtype.kind != "f":
        return (a != b).any(-1)
    return (np.abs(a - b) > _tolerance() * (1 + np.abs(b))).any(-1)


def _known(task: Task, rows: Transition) -> list[str]:
    """Check the task's known functions of the observation on one row, on rows [N, ...] and on rows [1, N, ...]."""
    problems = []
    for what in ("reward", "terminated"):
        known = getattr(task, what)
        if known is None:
            continue
        took = (rows.observation, rows.action, rows.next_observation) if what == "reward" else (rows.next_observation,)
        seen = getattr(rows, what)
        tolerance = _tolerance() if what == "reward" else 0.0
        for shape, index in (("", 0), ("N", slice(None)), ("1, N", None)):
            with calling(task.name, f"the known {what} of rows [{shape}]"):
                given = known(*(jnp.asarray(x[index]) for x in took))
            due = seen[index]
            kind = "bool" if what == "terminated" else str(jnp.zeros(()).dtype)
            if jnp.shape(given) != due.shape or jnp.asarray(given).dtype != kind:
                got = kinds(given).get("", type(given).__name__)
                hint = f": {ON_ROWS}" if shape and jnp.shape(given) != due.shape else ""
                problems.append(f"the known {what} of rows [{shape}] must be {kind}[{shape}], got {got}{hint}")
                break
            error = np.abs(np.asarray(given, np.float64) - due)
            wrong = ~(error <= tolerance * (1 + np.abs(due)))
            if wrong.any():
                worst = np.argmax(np.where(np.isnan(error), np.inf, error))
                row = np.asarray(took[-1][index]).reshape(due.size, -1)[worst]
                shown = np.array2string(row, precision=4, separator=", ", threshold=8, max_line_width=1000)
                problems.append(
                    f"the known {what} differs from the steps': {np.ravel(given)[worst]} where a step gave "
                    f"{np.ravel(due)[worst]}, at next_observation {shown}"
                )
                break
    return problems


def _copied(leaf: Any) -> Any:
    # Copy NumPy arrays, which can be changed in place; JAX's cannot.
    return leaf.copy() if isinstance(leaf, np.ndarray) else leaf


def _numbers(leaf: Any) -> Shaped[np.ndarray, "..."]:
    array = jnp.asarray(leaf)
    keys = jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(array) if keys else array)


def _tolerance() -> float:
    return 1e-4 if jnp.zeros(()).dtype == jnp.float32 else 1e-8


def _differences(expected: PyTree, seen: PyTree, tolerance: float, problem: str) -> list[str]:
    """`problem` with the first path at which two trees differ by more than `tolerance` times the leaf's largest number."""
    first, second = (dict(jax.tree_util.tree_leaves_with_path(tree)) for tree in (expected, seen))
    at = path_namer(expected)
    if list(first) != list(second):
        return [problem.format(path="", at=at("")) + ": their containers differ"]
    for path, leaf in first.items():
        a, b = _numbers(leaf), _numbers(second[path])
        if a.shape == b.shape and np.array_equal(a, b, equal_nan=a.dtype.kind == "f"):
            continue
        found = problem.format(path=jax.tree_util.keystr(path), at=at(jax.tree_util.keystr(path)))
        if a.shape != b.shape or a.dtype.kind not in "fiu" or not tolerance:
            return [found]
        error = np.abs(np.asarray(a, np.float64) - b).max()
        if not error <= tolerance * (1 + np.abs(a).max()):
            return [f"{found}, by {error:.1e}"]
    return []


__all__ = ["check"]
