"""Transitions in HDF5 files of other libraries, as arrays with the names of `data.dataset`. The package h5py reads them.

D4RL (Fu et al., arXiv 2004.07219) has one array for all episodes:

    observations [N, ...], actions [N, ...], rewards [N], terminals [N], timeouts [N] (optional), and in newer files
    next_observations [N, ...]

Without `next_observations` a row's successor is the next row's observation, except at the end of an episode, where the
file does not have it. That row is left out, with its termination, and the row before it is truncated. A successor that is
made of the next episode's first observation would be learned as dynamics.

Minari has a group for each episode of T steps:

    episode_K: observations [T + 1, ...], actions [T, ...], rewards [T], terminations [T], truncations [T]

The observation after the last step is there, so that no row is left out. The last row of an episode that does not terminate
is truncated. Actions are scaled to [-1, 1] if the file names the bounds of their space, as an attribute or in the file
`metadata.json` beside it.

All other arrays and groups are ignored. Observations or actions of several arrays, those of Dict and Tuple spaces, are
refused.
"""

from __future__ import annotations

import importlib
import io
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped

from jaxmbrl.core.config import UserError

SIGNATURE = b"\x89HDF"
"""First bytes of an HDF5 file."""
OF_D4RL = {
    "observations": "observation",
    "actions": "action",
    "rewards": "reward",
    "next_observations": "next_observation",
    "terminals": "terminated",
    "timeouts": "truncated",
}
"""Name in D4RL's files -> name here."""
OF_MINARI = {
    "observations": "observation",
    "actions": "action",
    "rewards": "reward",
    "terminations": "terminated",
    "truncations": "truncated",
}
"""Name in the groups of Minari's files -> name here."""
METADATA = "metadata.json"
"""File beside those of Minari, with the spaces."""


class Content(NamedTuple):
    """What a file has."""

    arrays: dict[str, Any]
    """With the names of `data.dataset`, in the dtypes of the file."""
    notes: tuple[str, ...]
    """Messages about rows that were left out and actions that were scaled."""
    metadata: bytes
    """The content of the file of metadata, if there is one."""


def read(path: Path, content: bytes) -> Content:
    """The arrays of the HDF5 file `path` with these bytes. Raises UserError, without the path, if h5py is missing or if the
    file has neither layout."""
    try:
        h5py = importlib.import_module("h5py")
    except ImportError:
        raise UserError("it is an HDF5 file, which needs h5py: pip install 'jaxmbrl[hdf5]'") from None
    try:
        with h5py.File(io.BytesIO(content), "r") as file:
            episodes = sorted((name for name in file if re.fullmatch(r"episode_\d+", name)), key=_number)
            if not episodes:
                return _d4rl(h5py, file)
            beside = path.with_name(METADATA)
            metadata = beside.read_bytes() if beside.is_file() else b""
            return _minari(h5py, file, episodes, metadata)
    except (UserError, MemoryError):
        raise
    except Exception as error:
        # A damaged file raises many kinds of undocumented errors.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"it is an HDF5 file that cannot be read ({reason})") from None


def _d4rl(h5py: Any, file: Any) -> Content:
    ours = {theirs: name for theirs, name in OF_D4RL.items() if theirs in file}
    if "observations" not in ours:
        there = ", ".join(sorted(file)) or "nothing"
        raise UserError(f"it has neither D4RL's 'observations' nor Minari's 'episode_0'; there is: {there}")
    arrays = {name: _array(h5py, file, theirs) for theirs, name in ours.items()}
    if "next_observation" in arrays or not {"reward", "terminated"} <= arrays.keys():
        return Content(arrays, (), b"")
    count = len(np.atleast_1d(arrays["reward"]))
    for name, array in arrays.items():
        if array.shape[:1] != (count,):
            raise UserError(f"'{_theirs(name)}' must have {count} rows, as 'rewards', got shape {array.shape}")
    terminated = arrays["terminated"].astype(bool)
    last = terminated | arrays.get("truncated", terminated).astype(bool)
    if last.ndim != 1:
        raise UserError(f"'terminals' and 'timeouts' must be [N], got shape {last.shape}")
    last[-1:] = True
    kept = ~last
    if not kept.any():
        raise UserError(
            "it has no 'next_observations', and each of its episodes has one step, whose successor is therefore not known"
        )
    arrays["next_observation"] = np.roll(arrays["observation"], -1, axis=0)
    arrays |= {"truncated": np.roll(last, -1), "terminated": np.zeros(count, bool)}
    lost = f", and with them {terminated.sum()} terminations" if terminated.any() else ""
    note = (
        f"the file has no 'next_observations': {last.sum()} rows, the last of each episode, are left out, since their "
        f"successors are not known{lost}"
    )
    return Content({name: array[kept] for name, array in arrays.items()}, (note,), b"")


def _minari(h5py: Any, file: Any, episodes: list[str], metadata: bytes) -> Content:
    parts: dict[str, list[np.ndarray]] = {name: [] for name in (*OF_MINARI.values(), "next_observation")}
    for episode in episodes:
        group = file[episode]
        if not isinstance(group, h5py.Group):
            raise UserError(f"'{episode}' is not a group of arrays")
        arrays = {name: _array(h5py, group, theirs) for theirs, name in OF_MINARI.items()}
        steps = len(np.atleast_1d(arrays["reward"]))
        for theirs, name in OF_MINARI.items():
            due = steps + (name == "observation")
            if arrays[name].shape[:1] != (due,):
                raise UserError(
                    f"'{episode}/{theirs}' must have {due} rows, for {steps} rewards, got shape {arrays[name].shape}"
                )
            if parts[name] and arrays[name].shape[1:] != parts[name][0].shape[1:]:
                raise UserError(
                    f"'{episode}/{theirs}' has rows of shape {arrays[name].shape[1:]}, those of '{episodes[0]}' have "
                    f"{parts[name][0].shape[1:]}"
                )
        if not steps:
            continue
        observation = arrays["observation"]
        arrays |= {"observation": observation[:-1], "next_observation": observation[1:]}
        for name in ("terminated", "truncated"):
            arrays[name] = arrays[name].astype(bool)
        arrays["truncated"][-1] |= ~arrays["terminated"][-1]
        for name, rows in arrays.items():
            parts[name].append(rows)
    if not parts["reward"]:
        raise UserError("its episodes have no steps")
    joined = {name: np.concatenate(rows) for name, rows in parts.items()}
    joined["action"], notes = _scaled(joined["action"], _space(file.attrs.get("action_space"), metadata))
    return Content(joined, notes, metadata)


def _array(h5py: Any, group: Any, name: str) -> Shaped[np.ndarray, "..."]:
    """A plain array of a group. Raises UserError if it is missing, or if it is none."""
    place = f"{group.name}/{name}".lstrip("/")
    link = group.get(name, getlink=True)
    if link is None:
        raise UserError(f"the array '{place}' is missing; there is: {', '.join(sorted(group))}")
    if not isinstance(link, h5py.HardLink):
        raise UserError(f"'{place}' is a link, which is not followed")
    found = group[name]
    if isinstance(found, h5py.Group):
        raise UserError(
            f"'{place}' has several arrays ({', '.join(sorted(found))}), those of a Dict or Tuple space: join them to one "
            "vector a step"
        )
    if not isinstance(found, h5py.Dataset) or found.is_virtual or found.external:
        raise UserError(f"'{place}' is not an array that this file contains")
    if found.dtype.kind == "O":
        raise UserError(f"'{place}' contains Python objects or texts; convert them to an array of numbers")
    return np.asarray(found[()])


def _space(attribute: Any, metadata: bytes) -> dict[str, Any]:
    """The description of the action space, empty if there is none."""
    try:
        text = attribute if attribute is not None else json.loads(metadata or b"{}").get("action_space")
        # Spaces are texts of JSON within the JSON.
        space = json.loads(text) if isinstance(text, str | bytes) else text
    except (ValueError, AttributeError):
        raise UserError("the description of its action space is not JSON") from None
    return space if isinstance(space, dict) else {}


def _scaled(
    action: Shaped[np.ndarray, "N ..."], space: dict[str, Any]
) -> tuple[Shaped[np.ndarray, "N ..."], tuple[str, ...]]:
    """(actions in [-1, 1] or choices from 0 on, and a message if they were not), for a bounded box or a discrete space;
    else the actions."""
    start = space.get("start", 0)
    if space.get("type") == "Discrete" and isinstance(start, int) and start:
        return action - start, (f"actions are numbered from 0 on, and the file numbers them from {start} on",)
    if space.get("type") != "Box" or action.dtype.kind != "f":
        return action, ()
    try:
        low, high = (np.asarray(space[end], np.float64) for end in ("low", "high"))
        low, high = (np.broadcast_to(end, action.shape[1:]) for end in (low, high))
    except (KeyError, TypeError, ValueError):
        raise UserError(f"the bounds of its action space are not those of actions {list(action.shape[1:])}") from None
    if not (np.isfinite(high - low).all() and (high > low).all()) or ((low == -1) & (high == 1)).all():
        return action, ()
    scaled = 2 * (action - low) / (high - low) - 1
    bounds = f"[{low.min():g}, {high.max():g}]"
    return scaled, (f"actions are scaled from the bounds that the file names, {bounds}, to [-1, 1]",)


def _theirs(name: str) -> str:
    """D4RL's name of an array."""
    return next(theirs for theirs, ours in OF_D4RL.items() if ours == name)


def _number(episode: str) -> int:
    return int(episode.removeprefix("episode_"))
