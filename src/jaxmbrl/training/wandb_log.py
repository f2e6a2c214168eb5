"""Weights & Biases (wandb): one W&B run for each seed, in a group that W&B averages and bands.

RUN/wandb has the data of the runs, also in offline mode (WANDB_MODE=offline), and RUN/wandb/jaxmbrl.json their
identifiers, so that a resumed run continues the same W&B runs. The step is the number of environment steps.

Epochs that were logged before are not logged again.
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxmbrl.training.logs import Described, Row, epochs, scalars
from jaxmbrl.training.run_folder import write_file

FOLDER = "wandb"
PROJECT = "jaxmbrl"
"""The W&B project, unless WANDB_PROJECT names another."""
CONNECT_SECONDS = 30.0
"""Time to connect; after that the run is logged offline."""
FINISH_SECONDS = 60.0
"""Time for which the end of a run waits for the upload."""


class WandbLog:
    """Logs a run to W&B. If W&B cannot be reached, the data are kept in the folder of the run, to be uploaded later."""

    def __init__(self, run: Described, warn: Callable[[str], None]) -> None:
        self._warn, self._folder = warn, run.path / FOLDER
        self._folder.mkdir(exist_ok=True)
        self._record = self._folder / "jaxmbrl.json"
        self._saved = _read(self._record)
        self._offline = os.environ.get("WANDB_MODE") in ("offline", "dryrun")
        ids: dict[str, str] = self._saved.get("ids", {})
        self._saved["ids"] = {str(seed): ids.get(str(seed)) or uuid.uuid4().hex[:12] for seed in run.settings}
        self._save()
        self._logged: dict[int, int] = {}
        """Steps up to which each seed is logged."""
        self._runs = {seed: self._init(run, seed) for seed in run.settings}
        for rows in epochs(run.rows):
            self._log(rows)
        self._mark()

    def write(self, rows: Sequence[Row]) -> None:
        """Log the rows of one epoch. W&B uploads them in another process."""
        self._log(rows)
        self._mark()

    def close(self) -> None:
        """Finish the W&B runs. The upload is not awaited for longer than `FINISH_SECONDS`."""
        threads = [threading.Thread(target=run.finish, daemon=True, name="jaxmbrl-wandb") for run in self._runs.values()]
        end = time.monotonic() + FINISH_SECONDS
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(end - time.monotonic(), 0.0))
        if any(thread.is_alive() for thread in threads):
            self._warn(f"W&B has not received everything; 'wandb sync' uploads what is in {self._folder}")

    def _init(self, run: Described, seed: int) -> Any:
        import wandb

        given: dict[str, Any] = {
            "project": os.environ.get("WANDB_PROJECT") or PROJECT,
            "group": run.path.resolve().name,
            "name": f"{run.path.resolve().name} seed {seed}",
            "id": self._saved["ids"][str(seed)],
            "dir": str(run.path),
            "config": run.settings[seed],
            "notes": run.title,
            "resume": "allow",
            "reinit": "create_new",
        }
        settings: dict[str, Any] = {"console": "off", "silent": True, "finish_timeout": FINISH_SECONDS}
        if not self._offline:
            try:
                made = wandb.init(**given, settings=wandb.Settings(**settings, init_timeout=CONNECT_SECONDS))
            except Exception as error:
                self._offline = True
                reason = " ".join(str(error).split())[:200]
                self._warn(
                    f"W&B cannot be used online ({type(error).__name__}: {reason}); the run is logged offline, and "
                    f"'wandb sync' uploads what is in {self._folder}"
                )
                # The identifier is still in use by the attempt to connect.
                self._saved["ids"][str(seed)] = given["id"] = uuid.uuid4().hex[:12]
                self._saved.setdefault("logged", {})[str(seed)] = 0
                self._save()
            else:
                self._logged[seed] = self._before(seed) if made.offline else made.starting_step - 1
                return made
        self._logged[seed] = self._before(seed)
        return wandb.init(**given, mode="offline", settings=wandb.Settings(**settings))

    def _before(self, seed: int) -> int:
        """Steps up to which earlier sessions logged a seed."""
        return self._saved.get("logged", {}).get(str(seed), 0)

    def _log(self, rows: Sequence[Row]) -> None:
        """Log the rows that are not logged yet."""
        for row in rows:
            seed, step = row["seed"], row["env_steps"]
            if step > self._logged[seed]:
                self._runs[seed].log({"env_steps": step, **scalars(row)}, step=step)
                self._logged[seed] = step

    def _mark(self) -> None:
        """Record what is logged."""
        self._saved["logged"] = {str(seed): step for seed, step in self._logged.items()}
        self._save()

    def _save(self) -> None:
        write_file(self._record, json.dumps(self._saved).encode() + b"\n")


def _read(file: Path) -> dict[str, Any]:
    """The saved record; empty if there is none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
