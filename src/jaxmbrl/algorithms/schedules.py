"""Tables of MBPO's hyperparameters over environment steps, as settings, as files and as arrays of a compiled program.

A column of a table may be constant, linear between its points, or hold each value until the next point. The arrays are
inputs of the program (`Clock.schedule`): another table of the same size does not change it.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from annotated_types import Ge, Le
from jaxtyping import Array, Bool, Float, Int

from jaxmbrl.core.config import UserError, from_dict
from jaxmbrl.core.places import expanded
from jaxmbrl.core.schedules import fits_whole, of_table, row_of

COLUMNS = ("real_ratio", "refit_every", "updates_per_step", "rollout_length")


@dataclass(frozen=True)
class ScheduleConfig:
    """Hyperparameters as columns of a table over environment steps. A column without entries stands for the setting of that
    name. `load` reads a table from a file."""

    steps: tuple[Annotated[int, Ge(0)], ...] = ()
    """Environment steps after the warm-up, increasing from 0."""
    interpolation: Literal["previous", "linear"] = "previous"
    """Between two steps: the value at the former, or linear, where whole numbers are rounded down. After the last step: the
    last value."""
    real_ratio: tuple[Annotated[float, Ge(0), Le(1)], ...] = ()
    """Share of real transitions in a batch."""
    refit_every: tuple[Annotated[int, Ge(0)], ...] = ()
    """Environment steps between two fits of the model, counted from the step of the table or from the last fit; 0 for no
    fit. Branches are imagined every `refit_every` steps of the setting, of which the steps and entries must be multiples.
    The model is always fitted at the end of the warm-up."""
    updates_per_step: tuple[Annotated[int, Ge(1)], ...] = ()
    """Agent updates for each environment step."""
    rollout_length: tuple[Annotated[int, Ge(1)], ...] = ()
    """Steps of an imagined branch. The imagined buffer has room for the largest."""

    def problem(self) -> tuple[str, str] | None:
        """(field, message) of the first violated rule that involves several fields, or None."""
        if self.steps and self.steps[0] != 0:
            return "steps", f"must begin with 0, got {self.steps[0]}"
        if any(b <= a for a, b in zip(self.steps, self.steps[1:], strict=False)):
            return "steps", f"must increase, got {list(self.steps)!r:.60}"
        for name, values in self.columns().items():
            if len(values) != len(self.steps):
                return name, f"must have an entry for each of the {len(self.steps)} steps, got {len(values)}"
        if self.steps and not self.columns():
            return "steps", f"must be empty without a column: give one of {', '.join(COLUMNS)}"
        if self.interpolation == "linear" and 0 in self.refit_every:
            return "refit_every", "must be above 0 with linear interpolation"
        whole = {name: values for name, values in self.columns().items() if name != "real_ratio"}
        if self.interpolation == "linear":
            for name, values in whole.items():
                for (a, x), (b, y) in itertools.pairwise(zip(self.steps, values, strict=True)):
                    if found := fits_whole(b - a, y - x, name):
                        return found
        return None

    def columns(self) -> dict[str, tuple[Any, ...]]:
        """The columns that have entries, by name."""
        return {name: getattr(self, name) for name in COLUMNS if getattr(self, name)}

    def misfit(self, every: int) -> tuple[str, str] | None:
        """(field, message) if fits would not be at multiples of `every` steps, or None."""
        for name in ("steps", "refit_every"):
            wrong = [value for value in getattr(self, name) if value % every]
            if self.refit_every and wrong:
                return f"schedule.{name}", f"must be multiples of refit_every ({every}) to schedule fits, got {wrong[0]}"
        return None


class Schedule(NamedTuple):
    """The same as arrays, with `()` for a column without entries."""

    steps: Int[Array, "S"]
    interpolates: Bool[Array, ""]
    real_ratio: Float[Array, "S"] | tuple[()]
    updates_per_step: Int[Array, "S"] | tuple[()]
    rollout_length: Int[Array, "S"] | tuple[()]
    fit_steps: Int[Array, "M"] | tuple[()]
    """Steps of the schedule of fits: from each of them on, the model is fitted after multiples of the interval."""
    fit_intervals: Int[Array, "M"] | tuple[()]

    def value(self, name: str, steps: Int[Array, ""]) -> Any:
        """The entry of the column `name` at `steps` environment steps after the warm-up; None without such a column."""
        column = getattr(self, name)
        if isinstance(column, tuple):
            return None
        return of_table(*map(jnp.asarray, (self.steps, column, steps, self.interpolates)))

    def fits(self, steps: Int[Array, ""]) -> Any:
        """Whether the model is fitted at `steps`, a multiple of the interval between branches; True without that column."""
        if isinstance(self.fit_steps, tuple):
            return True
        begins = jnp.asarray(self.fit_steps)
        i = row_of(begins, steps)
        every, since = jnp.asarray(self.fit_intervals)[i], steps - begins[i]
        return (steps == 0) | ((every > 0) & (since % jnp.maximum(every, 1) == 0))


def arrays(config: ScheduleConfig, every: int) -> Schedule | tuple[()]:
    """The table as arrays of the host, for branches every `every` environment steps; `()` without any column."""
    if not config.columns():
        return ()

    def column(values: Any, kind: type) -> Any:
        return () if values == () else np.asarray(values, kind)

    begins, intervals = _fits(config, every)
    return Schedule(
        steps=column(config.steps, np.int32),
        interpolates=column(config.interpolation == "linear", bool),
        real_ratio=column(config.real_ratio, np.float32),
        updates_per_step=column(config.updates_per_step, np.int32),
        rollout_length=column(config.rollout_length, np.int32),
        fit_steps=column(begins, np.int32),
        fit_intervals=column(intervals, np.int32),
    )


def _fits(config: ScheduleConfig, every: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(steps, intervals) of `Schedule`. A linear interval is that at the last fit, rounded down to a multiple of `every`;
    the number of entries then depends on the last step of the table alone."""
    if config.interpolation == "previous" or not config.refit_every:
        return (config.steps, config.refit_every) if config.refit_every else ((), ())
    begins, intervals, last = [0], [], config.steps[-1]
    while True:
        interval = int(np.interp(begins[-1], config.steps, config.refit_every)) // every * every
        intervals.append(interval)
        if begins[-1] >= last:
            break
        begins.append(begins[-1] + interval)
    room = last // every + 2 - len(begins)
    return (*begins, *room * begins[-1:]), (*intervals, *room * intervals[-1:])


def load(path: str | Path) -> ScheduleConfig:
    """The table in a JSON file, an object with the fields of `ScheduleConfig`, or in an npz file with arrays of these
    names. A number in the place of a column is a constant. Raises UserError with the file and the field of a mistake.

        {"steps": [0, 1800], "interpolation": "linear", "real_ratio": [0.05, 0.5], "updates_per_step": 10}
    """
    file = expanded(path)
    try:
        values = _of_npz(file) if file.suffix == ".npz" else json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}); name a JSON or npz file of a schedule") from None
    except (ValueError, zipfile.BadZipFile, EOFError) as error:
        kind = "an npz file of arrays" if file.suffix == ".npz" else "JSON"
        raise UserError(f"{file} must be {kind}, got: {str(error).splitlines()[0]:.80}") from None
    if not isinstance(values, Mapping):
        raise UserError(f"{file} must be an object with the fields steps, {', '.join(COLUMNS)}, got {values!r:.40}")
    values = dict(values)
    if any(name in values for name in COLUMNS):
        values.setdefault("steps", [0])
    if isinstance(values.get("steps"), list):
        for name in COLUMNS:
            if isinstance(values.get(name), int | float):
                values[name] = [values[name]] * len(values["steps"])
    try:
        config = from_dict(ScheduleConfig, values)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    if not config.columns():
        raise UserError(f"{file} must have at least one of the columns {', '.join(COLUMNS)}, with entries")
    return config


def _of_npz(file: Path) -> dict[str, Any]:
    with np.load(file, allow_pickle=False) as arrays:
        return {name: arrays[name].tolist() for name in arrays.files}


def save(config: ScheduleConfig, path: str | Path) -> None:
    """Write a table as the JSON file that `load` reads, without empty columns."""
    filled = {name: value for name, value in dataclasses.asdict(config).items() if value != ()}
    expanded(path).write_text(json.dumps(filled, indent=1) + "\n", encoding="utf-8")
