"""Files of transitions: an npz with named arrays, one row per step, in the order in which they were collected. D4RL's and
Minari's files are read, too (`data.hdf5`).

observation       [N, O] floats; or [N] whole numbers, elements of a discrete space; or images [N, H, W, ...]
action            [N, A] in [-1, 1]; or [N] whole numbers, elements of a discrete space
reward            [N]
next_observation  like `observation`: the true successor, not the first observation of the next episode
last_observation  [M, H, W, ...], instead of `next_observation`: the successors that are not the next row's observation
terminated        [N] true where the task ended
truncated         [N] true where only the time limit was reached; optional if that never happened
env               name of the task; optional
action_repeat     number of times that each action was applied; optional if 1

`last_observation` stores each image once: the successor of a row is the next row's observation, except at the end of an
episode and of the file, whose M successors are stored there in order. `save` uses this format for images if nothing is
lost.

A row that is both terminated and truncated, which Gymnasium allows, counts as terminated only.
"""

from __future__ import annotations

import collections
import difflib
import hashlib
import io
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Shaped

from jaxmbrl.core.config import UserError
from jaxmbrl.core.places import expanded
from jaxmbrl.core.spaces import Box, Discrete
from jaxmbrl.core.types import Task, Transition
from jaxmbrl.core.warning import warn_user
from jaxmbrl.data import examining, hdf5

REQUIRED = ("observation", "action", "reward", "next_observation", "terminated")
KNOWN = frozenset((*REQUIRED, "truncated", "last_observation", "env", "action_repeat"))
SPACES = ("observation", "action", "next_observation")
OTHER_NAMES = {
    "observations": "observation",
    "obs": "observation",
    "states": "observation",
    "state": "observation",
    "s": "observation",
    "actions": "action",
    "acts": "action",
    "a": "action",
    "rewards": "reward",
    "rews": "reward",
    "rew": "reward",
    "r": "reward",
    "next_observations": "next_observation",
    "next_obs": "next_observation",
    "obs_next": "next_observation",
    "next_states": "next_observation",
    "next_state": "next_observation",
    "s2": "next_observation",
    "s_": "next_observation",
    "terminals": "terminated",
    "terminal": "terminated",
    "terminations": "terminated",
    "dones": "terminated",
    "done": "terminated",
    "d": "terminated",
    "timeouts": "truncated",
    "timeout": "truncated",
    "truncations": "truncated",
}
"""Name of an array, in small letters, in D4RL, Minari, CleanRL and others -> its name here."""
MADE = (
    "; within an episode it is the next row's observation: drop the last row of each episode and of the file, unless its "
    "true successor is known, and mark the row before it as truncated (docs/tutorials/own_data.md has the code)"
)
"""How `next_observation` is made."""
SOONER = "store it in float64, or subtract an offset before it is rounded"
"""What to do about digits that were lost before."""
OBSERVATIONS = ("observation", "next_observation", "last_observation")
TEXT = 1000
"""Letters by which a text is known."""
NEAR = 0.75
"""Likeness of two names from which one is taken for the other, misspelled."""
FLAGS = ("terminated", "truncated")
KINDS = {
    b"\x93NUMPY": ": it is one array without a name; numpy.savez writes several with their names",
    b"\x80": ": it is a pickle, which is not read; write its arrays with numpy.savez",
    b"PAR1": ": it is a Parquet file; read it with pandas and write arrays with numpy.savez",
}
"""First bytes of other files -> what they are and what to do."""
LARGEST_EXPONENT = 0.4
"""Numbers must be below the dtype's largest number to this power, so that a sum of many squares does not overflow."""


class Dataset(NamedTuple):
    """The content of a file of transitions."""

    rows: Transition
    """[N, ...], NumPy arrays: vectors and rewards in JAX's default float, elements of discrete spaces int32, integer images
    in their own dtype, flags bool."""
    env: str | None
    """Name of the task, if the file contains it."""
    digest: str
    """SHA-256 of the file."""
    action_repeat: int
    """Number of consecutive times that each action was applied."""
    offset: Float[np.ndarray, "O"] | None
    """What was subtracted from each column of vector observations; None for other observations."""
    digits: tuple[str, ...]
    """Messages about columns whose changes are lost in the conversion, or from which an offset was subtracted."""
    notes: tuple[str, ...] = ()
    """Messages about how a file of another library was read (`data.hdf5`)."""

    @property
    def warnings(self) -> list[str]:
        """`notes`, `digits`, and messages about what looks like a mistake in the rows (`data.examining`)."""
        return [*self.notes, *self.digits, *examining.hardly_varying(self.rows), *examining.examine(self.rows)]

    def warn(self) -> None:
        """Give each of `warnings` as a `DataWarning`."""
        for text in self.warnings:
            warn_user(text, DataWarning)


class DataWarning(UserWarning):
    """A warning about recorded transitions."""


def save(path: str | Path, rows: Transition, env: str, action_repeat: int = 1) -> None:
    """Write transitions [N, ...] of the task `env`, each action applied `action_repeat` times, to the new file `path`.

    Raises UserError if the file cannot be created, or if `load` would reject the transitions or change their dtypes.
    """
    path = expanded(path)
    arrays: dict[str, Any] = {name: np.asarray(getattr(rows, name)) for name in (*REQUIRED, "truncated")}
    checked = _rows(arrays)
    for name in ("observation", "action"):
        if arrays[name].ndim == 2 and arrays[name].dtype.kind != "f":
            raise UserError(f"'{name}' are vectors of {arrays[name].dtype}, which a file cannot store: convert to floats")
    if checked.observation.ndim > 2:
        last = _last_observation(checked)
        if last is not None:
            arrays = {name: array for name, array in arrays.items() if name != "next_observation"} | {
                "last_observation": last
            }
    check_writable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "xb") as file:
        np.savez(file, env=np.array(env), action_repeat=np.array(action_repeat), **arrays)


def check_storable(task: Task) -> None:
    """Raise UserError if a file cannot store the task's observations: vectors of integers, which `load` reads as floats, as
    in files that were written by hand."""
    space = task.observation
    if isinstance(space, Box) and (not space.shape or (len(space.shape) == 1 and not space.is_vector)):
        raise UserError(
            f"a file of transitions cannot store the observations of task '{task.name}', {space}: convert to floats"
        )


def check_writable(path: str | Path) -> None:
    """Raise UserError if the new file `path` cannot be created. Nothing is left on the disk: call it before long work."""
    path = expanded(path)
    try:
        taken = path.is_symlink() or path.exists()
        try_writing(path.parent)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); choose another file") from None
    if taken:
        raise UserError(f"{path} exists; choose another file")


def new_file(what: str, given: str | Path, suffix: str) -> Path:
    """The new file that `what` names, with its suffix and with `~` expanded. Raises UserError if it cannot be created."""
    path = expanded(given)
    if not path.name or path.name == "..":
        raise UserError(f"{what} must be the name of a new file, FILE{suffix}, got '{given}'")
    path = path if path.suffix == suffix else path.with_name(path.name + suffix)
    check_writable(path)
    return path


def try_writing(folder: Path) -> None:
    """Raise OSError if no file can be written to `folder`, or to its nearest existing parent."""
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    with tempfile.TemporaryFile(dir=place) as file:
        file.write(b"jaxmbrl")


def load(path: str | Path, centered: bool = False) -> Dataset:
    """Read and check a file of transitions. Raises UserError, naming the array, if one is missing or wrong.

    Files may contain numbers of higher precision than JAX's default float. With `centered`, an offset is subtracted, before
    the conversion, from each column of the observation whose changes would be lost in it, such as a clock or a position in
    world coordinates. Use it only where nothing depends on the absolute values.
    """
    place = expanded(path)
    try:
        content = place.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    arrays: dict[str, Any]
    notes: tuple[str, ...] = ()
    try:
        if content.startswith(hdf5.SIGNATURE):
            arrays, notes, metadata = hdf5.read(place, content)
            content += metadata
        else:
            arrays = _arrays(content)
        rows = _rows(arrays)
        given = rows._replace(observation=arrays["observation"], reward=arrays["reward"])
        given = given._replace(next_observation=_given_successors(arrays, rows))
        found = [*examining.coarse_columns(given, SOONER), *examining.coarse_reward(given, SOONER)]
        found += _lost_rewards(arrays["reward"])
        offset = None
        if rows.observation.ndim == 2:
            offset = np.zeros(rows.observation.shape[1])
            lost = _lost(arrays, rows)
            if centered and lost.any():
                offset = np.where(lost, _middle(arrays["observation"]), 0.0)
                arrays |= {name: arrays[name] - offset for name in OBSERVATIONS if name in arrays}
                rows, found = _rows(arrays), found + _subtracted(offset)
                lost = _lost(arrays, rows)
            found += _lost_digits(arrays["observation"], lost)
        digest = hashlib.sha256(content).hexdigest()
        return Dataset(rows, _env(arrays), digest, _action_repeat(arrays), offset, tuple(found), notes)
    except MemoryError:
        raise UserError(f"{path} does not fit into this machine's memory; split it") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _arrays(content: bytes) -> dict[str, Any]:
    """The arrays of an npz with these bytes. Raises UserError, without the path, for any other file."""
    arrays: dict[str, Any] = {}
    name = None
    try:
        file = np.load(io.BytesIO(content), allow_pickle=False)
        # A damaged directory of the zip file may lack entries, and only their number tells.
        end = content.rfind(b"PK\x05\x06")
        if len(file.files) != int.from_bytes(content[end + 10 : end + 12], "little"):
            raise ValueError
        for name in file.files:
            arrays[name] = file[name]
    except MemoryError:
        raise
    except Exception as error:
        # A damaged zip file raises many kinds of undocumented errors.
        kind = _kind(content)
        if name is not None and "Object arrays" in str(error):
            kind = f": '{name}' contains Python objects, which are not read; convert them to an array of numbers"
        raise UserError(f"it is not an npz file of plain arrays, as numpy.savez writes it{kind}") from None
    return arrays


def _kind(content: bytes) -> str:
    """What another file than an npz is, if that is known, and what to do."""
    if not content:
        return ": it is empty"
    known = next((what for start, what in KINDS.items() if content.startswith(start)), "")
    text = content[:TEXT].isascii() and "".join(content[:TEXT].decode("ascii", "replace").split()).isprintable()
    if text and not known:
        return ": it is text; read it with numpy.loadtxt or pandas and write its columns with numpy.savez"
    return known


def _lost(arrays: dict[str, Any], rows: Transition) -> Bool[np.ndarray, "O"]:
    """Columns of vector observations whose changes are lost in the conversion to JAX's default float."""
    return examining.lost_digits(arrays["observation"], _given_successors(arrays, rows), jnp.zeros(()).dtype)


def _given_successors(arrays: dict[str, Any], rows: Transition) -> Shaped[np.ndarray, "N ..."]:
    """`next_observation` in the dtype of the file."""
    if "next_observation" in arrays:
        return arrays["next_observation"]
    torn = _torn(np.asarray(rows.terminated | rows.truncated))
    return _joined(arrays["observation"], arrays["last_observation"], torn)


def _middle(values: Float[np.ndarray, "N O"]) -> Float[np.ndarray, "O"]:
    return (values.min(axis=0).astype(np.float64) + values.max(axis=0)) / 2


def _subtracted(offset: Float[np.ndarray, "O"]) -> list[str]:
    dtype = jnp.zeros(()).dtype
    return [
        f"{offset[d]:.6g} is subtracted from observation {d}: {dtype} would lose its changes otherwise"
        for d in np.flatnonzero(offset)
    ]


def _lost_rewards(reward: Shaped[np.ndarray, "N"]) -> list[str]:
    """A message if the differences of the rewards are lost in the conversion to JAX's default float."""
    dtype = jnp.zeros(()).dtype
    values = reward.astype(np.float64)[:, None]
    if not examining.lost_digits(np.broadcast_to(values.mean(axis=0), values.shape), values, dtype).any():
        return []
    return [
        f"the reward reaches {np.abs(reward).max():.6g}, where {dtype} loses its differences by rounding: subtract an "
        "offset, or set JAX_ENABLE_X64=1"
    ]


def _lost_digits(values: Shaped[np.ndarray, "N O"], lost: Bool[np.ndarray, "O"]) -> list[str]:
    dtype = jnp.zeros(()).dtype
    return [
        f"observation {d} reaches {np.abs(values[:, d]).max():.6g}, where {dtype} loses its changes by rounding: "
        "subtract an offset, or set JAX_ENABLE_X64=1"
        for d in np.flatnonzero(lost)
    ]


def check_fits(data: Dataset, task: Task) -> None:
    """Raise UserError if the rows are not elements of `task`'s spaces, or if another action repeat was used."""
    if data.action_repeat != task.action_repeat:
        raise UserError(f"action_repeat must be {data.action_repeat}, as in the data, got {task.action_repeat}")
    for name, space in (("observation", task.observation), ("action", task.action)):
        found = getattr(data.rows, name)
        shape, zeros = found.shape[1:], space.zeros()
        if shape != space.shape:
            hint = f": write {name}[:, None]" if (*shape, 1) == space.shape else ""
            hint = f": write {name}[..., 0]" if shape == (*space.shape, 1) else hint
            raise UserError(f"the data's '{name}' has rows of shape {shape}, {task.name} has {space.shape}{hint}")
        if found.dtype != zeros.dtype:
            raise UserError(f"the data's '{name}' is {found.dtype}, that of {task.name} is {zeros.dtype}")
        if isinstance(space, Discrete) and found.max() >= space.n:
            raise UserError(f"the data's '{name}' has the element {found.max()}, {task.name} has {space}")


def check_vectors(rows: Transition, method: str) -> None:
    """Raise UserError, naming `method`, if the observations of `rows` are not vectors."""
    found = rows.observation
    if found.ndim != 2:
        raise UserError(f"{method} takes vectors, and the data's 'observation' is {found.dtype} of shape {found.shape}")


def _env(arrays: dict[str, Any]) -> str | None:
    if "env" not in arrays:
        return None
    name = arrays["env"]
    if not isinstance(name, np.ndarray) or name.dtype.kind != "U" or name.size != 1 or not name.item():
        raise UserError("'env' must be the name of one task")
    return str(name.item())


def _action_repeat(arrays: dict[str, Any]) -> int:
    times = arrays.get("action_repeat", np.array(1))
    if not isinstance(times, np.ndarray) or times.dtype.kind not in "iu" or times.size != 1 or times.item() < 1:
        raise UserError("'action_repeat' must be one whole number of at least 1")
    return int(times.item())


def _rows(arrays: dict[str, Any]) -> Transition:
    """The rows of a file's arrays, checked. Raises UserError, naming the array, if one is missing or wrong."""
    for name, value in arrays.items():
        if not isinstance(value, np.ndarray):
            raise UserError(f"'{name}' is not an array")
    once = "last_observation" in arrays
    if once and "next_observation" in arrays:
        raise UserError("'last_observation' replaces 'next_observation': remove one of them")
    for name in REQUIRED:
        if name not in arrays and not (once and name == "next_observation"):
            renamed = _renamed(arrays)
            made = "" if "'next_observation'" in renamed or "next_observation" in arrays or once else _made(arrays)
            if made and name != "next_observation":
                made = f"; 'next_observation' is missing too{made}"
            raise UserError(
                f"the array '{name}' is missing; there is: {', '.join(sorted(arrays)) or 'nothing'}{renamed}{made}"
            )
    unknown = sorted(set(arrays) - KNOWN)
    if unknown:
        hint = _renamed(arrays) or ": leave it out"
        raise UserError(f"unknown array '{unknown[0]}'{hint}; known are: {', '.join(sorted(KNOWN))}")
    count = _count(arrays)
    given = {"truncated": np.zeros(count, bool)} | {name: arrays[name] for name in Transition._fields if name in arrays}
    columns: dict[str, Any] = {name: _column(name, given[name], count) for name in Transition._fields if name in given}
    if once:
        ended = columns["terminated"] | columns["truncated"]
        columns["next_observation"] = _successors(columns["observation"], arrays["last_observation"], ended)
    rows = Transition(**columns)
    observation, successor = rows.observation, rows.next_observation
    if successor.shape != observation.shape or successor.dtype != observation.dtype:
        raise UserError(
            f"'next_observation' must be like 'observation', {observation.dtype} {observation.shape}, got "
            f"{successor.dtype} {successor.shape}"
        )
    if not observation[0].size:
        raise UserError("'observation' must have at least one number per row")
    return rows._replace(truncated=rows.truncated & ~rows.terminated)


def _renamed(arrays: dict[str, Any]) -> str:
    """What to rename, if arrays have the names that other packages give them, or nearly the right ones."""
    due = [name for name in (*REQUIRED, "truncated") if name not in arrays]
    found: dict[str, str] = {}
    for theirs in arrays:
        if theirs in KNOWN:
            continue
        ours = OTHER_NAMES.get(theirs.lower()) or next(iter(difflib.get_close_matches(theirs.lower(), due, 1, NEAR)), None)
        if ours in due and ours not in found.values():
            found[theirs] = ours
    names = [f"'{theirs}' is '{ours}'" for theirs, ours in found.items()]
    return f"; {', '.join(names)} here" if names else ""


def _made(arrays: dict[str, Any]) -> str:
    """How a missing `next_observation` is made."""
    observation, reward = arrays.get("observation"), arrays.get("reward")
    if observation is None or reward is None or np.shape(observation)[:1] != tuple(n + 1 for n in reward.shape[:1]):
        return MADE
    return (
        "; 'observation' has a row more than 'reward': if they are one episode, next_observation is observation[1:] and "
        "observation is observation[:-1]"
    )


def _count(arrays: dict[str, Any]) -> int:
    """The number of rows: that of most arrays, or of the reward. Raises UserError if there is none."""
    reward = arrays["reward"]
    if reward.ndim != 1 or not len(reward):
        hint = ": join the episodes, reward.reshape(-1) and observation.reshape(-1, *observation.shape[2:])"
        hint = ": write reward[:, 0]" if reward.shape[1:] == (1,) else hint if reward.ndim == 2 else ""
        raise UserError(f"'reward' must be [N] with N at least 1, got shape {reward.shape}{hint}")
    names = [name for name in dict.fromkeys(("reward", *REQUIRED, "truncated")) if name in arrays and arrays[name].ndim]
    return collections.Counter(len(arrays[name]) for name in names).most_common(1)[0][0]


def _successors(
    observation: Shaped[np.ndarray, "N *shape"], last: Shaped[np.ndarray, "..."], ended: Bool[np.ndarray, "N"]
) -> Shaped[np.ndarray, "N *shape"]:
    """`next_observation` from the observations and from `last`, the successors that are not among them."""
    torn = _torn(ended)
    if last.shape != (torn.sum(), *observation.shape[1:]):
        due = (int(torn.sum()), *observation.shape[1:])
        raise UserError(f"'last_observation' must be {due}, a row for each end of an episode or the file, got {last.shape}")
    last = _column("last_observation", last, len(last))
    if last.dtype != observation.dtype:
        raise UserError(f"'last_observation' must be like 'observation', {observation.dtype}, got {last.dtype}")
    return _joined(observation, last, torn)


def _joined(
    observation: Shaped[np.ndarray, "N *shape"], last: Shaped[np.ndarray, "M *shape"], torn: Bool[np.ndarray, "N"]
) -> Shaped[np.ndarray, "N *shape"]:
    """The next row's observation, or the next of `last` where the rows are `torn`."""
    successor = np.roll(observation, -1, axis=0)
    successor[torn] = last
    return successor


def _last_observation(rows: Transition) -> Shaped[np.ndarray, "M *shape"] | None:
    """The array `last` from which `_successors` restores `rows.next_observation`; None if that is impossible."""
    torn = _torn(np.asarray(rows.terminated | rows.truncated))
    goes_on = np.flatnonzero(~torn)
    same = all(np.array_equal(rows.next_observation[i], rows.observation[i + 1]) for i in goes_on)
    return np.asarray(rows.next_observation[torn]) if same else None


def _torn(ended: Bool[np.ndarray, "N"]) -> Bool[np.ndarray, "N"]:
    """Rows whose successor is not the next row's observation: ends of episodes, and the last row."""
    return np.append(ended[:-1], True)


def _column(name: str, value: np.ndarray, count: int) -> np.ndarray:
    """One array, checked and converted to its dtype."""
    _check_shape(name, value, count)
    if name in FLAGS:
        if value.dtype.kind not in "biuf" or not np.isin(value, (0, 1)).all():
            raise UserError(f"'{name}' must be true or false in every row")
        return value.astype(bool)
    if value.dtype.kind not in "iuf":
        raise UserError(f"'{name}' must be numbers, got {value.dtype}")
    if name in SPACES and value.ndim == 1:
        largest = np.iinfo(np.int32).max
        if value.min() < 0 or value.max() > largest:
            raise UserError(
                f"'{name}' must be whole numbers from 0 to {largest}, got {value.min()} to {value.max()}: vectors of one "
                f"number are {name}[:, None]"
            )
        return value.astype(np.int32)
    if value.dtype.kind in "iu" and value.ndim > 2:
        return value
    with np.errstate(over="ignore"):
        value = value.astype(jnp.result_type(float))
    wrong = np.flatnonzero(~np.isfinite(value).reshape(count, -1).all(axis=1))
    if len(wrong):
        raise UserError(f"'{name}' is not finite in {len(wrong)} rows, the first of them row {wrong[0]}")
    _check_scale(name, value)
    if name == "action" and np.abs(value).max(initial=0.0) > 1:
        beyond = value.flat[np.abs(value).argmax()]
        raise UserError(
            f"'action' must be in [-1, 1], got {beyond:g}: with the actuator's bounds it is "
            "2 * (action - low) / (high - low) - 1"
        )
    return value


def _check_scale(name: str, value: Float[np.ndarray, "N ..."]) -> None:
    """Raise UserError, naming the column, if sums of squares would overflow."""
    largest = float(np.finfo(value.dtype).max) ** LARGEST_EXPONENT
    reached = np.abs(value).reshape(len(value), -1).max(axis=0)
    beyond = np.flatnonzero(reached > largest)
    if len(beyond):
        of = f" {beyond[0]}" if value.ndim > 1 else ""
        raise UserError(
            f"'{name}'{of} reaches {reached[beyond[0]]:.3g}, and sums of squares would overflow {value.dtype}: give it in "
            f"other units, below {largest:.0e}"
        )


def _check_shape(name: str, value: np.ndarray, count: int) -> None:
    """Raise UserError if an array does not have `count` rows, or if their shape is not allowed for this name."""
    if name not in (*SPACES, "last_observation"):
        shapes, right = "[N]", value.ndim == 1
    elif name == "action":
        shapes, right = "[N, size] or whole numbers [N]", value.ndim == 2
    else:
        shapes, right = "[N, size], whole numbers [N] or images [N, height, width, ...]", value.ndim >= 2
    discrete = name in SPACES and value.ndim == 1 and value.dtype.kind in "iu"
    if not (right or discrete) or len(value) != count:
        flat, column = value.shape == (count,) and shapes != "[N]", value.shape == (count, 1) and shapes == "[N]"
        hint = f": write {name}[:, None]" if flat else f": write {name}[:, 0]" if column else ""
        if value.dtype.names:
            hint = f": write numpy.lib.recfunctions.structured_to_unstructured({name})"
        elif name == "observation" and right and len(value) == count + 1:
            hint = ": write observation[:-1], if its last row is the last successor"
        raise UserError(f"'{name}' must be {shapes} with N = {count}, got shape {value.shape} of {value.dtype}{hint}")
