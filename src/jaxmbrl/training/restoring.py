"""Restoring the state of a run from its checkpoints, which may have been saved by several hosts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxmbrl.core.warning import warn_user
from jaxmbrl.training import checkpoint
from jaxmbrl.training.checkpoint import Restored
from jaxmbrl.training.console import RunWarning
from jaxmbrl.training.hosts import Hosts, newest_step
from jaxmbrl.training.loop import LoopState
from jaxmbrl.training.manifest import CheckpointError
from jaxmbrl.training.programs import Program, build, hyper_of, initial, initial_shapes, read
from jaxmbrl.training.run_folder import ENVIRONMENT, METRICS, RunFolder


def restore(
    folder: RunFolder, program: Program | None = None, repair: bool = True, before: int | None = None
) -> tuple[Program, LoopState, Restored]:
    """The parts and the newest intact state of the run in `folder`, with `before` only of lower steps. With `repair`,
    damaged checkpoints are renamed. Raises CheckpointError if no checkpoint is intact."""
    if can_begin(folder):
        raise CheckpointError(
            f"the run in {folder.path} has no checkpoint yet: it is still starting, or was stopped before its first one; "
            "to resume it starts it from the beginning"
        )
    if program is None:
        folder.check_precision()
        program = build(read(folder), learns=False)
    warnings: list[str] = []
    while True:
        step, hosts = newest_step(folder, before)
        parts = [_restore_part(folder, program, host, repair, step + 1 if len(hosts) > 1 else before) for host in hosts]
        warnings += [warning for part in parts for warning in part.warnings]
        if len(hosts) == 1 or all(part.step == step for part in parts):
            break
        before = step
    state = parts[0].state if len(parts) == 1 else jax.tree.map(lambda *x: jnp.concatenate(x), *(p.state for p in parts))
    extra = parts[0].extra | {"frozen": sorted(seed for part in parts for seed in part.extra["frozen"])}
    left_out = any(part.left_out for part in parts)
    return program, state, parts[0]._replace(state=state, extra=extra, warnings=tuple(warnings), left_out=left_out)


def can_begin(folder: RunFolder) -> bool:
    """Whether nothing of the run in `folder` was saved, so that it can start from the beginning: it was stopped, or killed,
    before its first checkpoint."""
    found = [folder.path / METRICS, *folder.checkpoints.glob("[!.]*")]
    return (folder.path / ENVIRONMENT).exists() and not any(path.exists() for path in found)


def newest(run: str | Path) -> tuple[Program, LoopState, Restored]:
    """The parts and the newest intact state of the run in folder `run`, which is not changed. A damaged checkpoint gives a
    `RunWarning`. Raises UserError if `run` is not a run or has no intact checkpoint."""
    program, state, restored = restore(RunFolder.open(run), repair=False)
    for text in restored.warnings:
        warn_user(text, RunWarning)
    return program, state, restored


def share_of(program: Program, hosts: Hosts) -> Program:
    """The program restricted to this host's seeds."""
    first, number = hosts.share(program.config.seeds)
    return program._replace(config=dataclasses.replace(program.config, seed=program.config.seed + first, seeds=number))


def _restore_part(folder: RunFolder, program: Program, hosts: Hosts, repair: bool, before: int | None) -> Restored:
    """The state that one host saved."""
    own = share_of(program, hosts)

    def fresh() -> LoopState:
        return initial(own, hyper_of({}, own.config))

    like = initial_shapes(own)
    # A student that is not trained further has no expert, whose memory is a part of the checkpoint.
    alone = program.config.expert is not None and not jax.tree.leaves(like.memory)
    return checkpoint.restore(hosts.checkpoints(folder), like, repair, before, fresh, ".memory" if alone else None)
