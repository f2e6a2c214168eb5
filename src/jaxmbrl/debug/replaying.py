"""Replay the call of `learn` in which a seed produced a value that is not finite.

The run is repeated from the newest checkpoint before the fault. All seeds are computed together, as in the run, so that
rounding is the same. Then `nonfinite.find` walks back from the value that was not finite in the faulty call.
"""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmbrl.core.config import UserError
from jaxmbrl.core.warning import warn_user
from jaxmbrl.debug import nonfinite
from jaxmbrl.debug.origins import ARGUMENT, Operand, Origin
from jaxmbrl.training import console, devices, experts, loop, programs, restoring
from jaxmbrl.training.hosts import newest_step
from jaxmbrl.training.loop import LoopState
from jaxmbrl.training.programs import Program
from jaxmbrl.training.run_folder import RunFolder


class Fault(NamedTuple):
    """The first value of a seed that is not finite."""

    seed: int
    what: str
    """Name of the value: a metric, a field of the collected transitions, or an optimiser's gradient."""
    env_steps: int
    """Environment steps after the faulty call of `learn`."""
    epoch: int


class Report(NamedTuple):
    """The result of a replay."""

    fault: Fault
    others: tuple[int, ...]
    """The other seeds with a value that is not finite."""
    checkpoint: int
    """Environment steps of the checkpoint from which the replay started."""
    origin: Origin | None
    """None if the replay did not reproduce the fault."""
    instead: str
    """What happened instead, if the replay did not reproduce the fault."""


def debug(run: str | Path, seed: int | None = None) -> Report | None:
    """Find the operation that produced the first value of a seed that is not finite, in the run in folder `run`. The seed
    is `seed`, or by default the one with the first fault. None if there was no fault up to the newest checkpoint.

    Nothing in the folder is changed. The replay needs a few times the memory of the run.

    Raises UserError if `run` is not a run, has no such seed or no checkpoint from before the fault, or if its task runs
    outside of the compiled program.
    """
    folder = RunFolder.open(run)
    config = programs.read(folder)
    if seed is not None and not config.seed <= seed < config.seed + config.seeds:
        last = config.seed + config.seeds - 1
        raise UserError(f"the run in {run} has seeds {config.seed} to {last}, not {seed}")
    # A replay logs nothing, so that the loggers of the run need not be installed.
    program = experts.build(dataclasses.replace(config, log=()))
    _, state, restored = restoring.restore(folder, program, repair=False)
    found = _faults(program, state)
    chosen = next((fault for fault in found if seed in (None, fault.seed)), None)
    if chosen is not None:
        if program.loop.check is None:
            raise UserError(
                f"a replay needs a task inside the compiled program: checkpoints do not contain the state of {config.env}"
            )
        if newest_step(folder, chosen.env_steps)[0] < 0:
            raise UserError(
                f"{run} has no checkpoint from before step {chosen.env_steps}, where the fault of seed {chosen.seed} is; "
                f"train again with the same settings and --steps {chosen.epoch * program.epoch_steps}, and debug that run"
            )
        _, state, restored = restoring.restore(folder, program, repair=False, before=chosen.env_steps)
    for text in restored.warnings:
        warn_user(text, console.RunWarning)
    if chosen is None:
        return None
    others = tuple(fault.seed for fault in found if fault is not chosen)
    origin, instead = _replayed(program, state, restored.extra["env_steps"], chosen)
    return Report(chosen, others, restored.extra["env_steps"], origin, instead)


def _faults(program: Program, state: LoopState) -> list[Fault]:
    found = []
    for k, (what, at) in enumerate(zip(state.fault.what.tolist(), state.fault.env_steps.tolist(), strict=True)):
        if what >= 0:
            epoch = -(-at // program.epoch_steps)
            found.append(Fault(program.config.seed + k, program.loop.checked[what], at, epoch))
    return sorted(found, key=lambda fault: (fault.env_steps, fault.seed))


def _replayed(program: Program, state: LoopState, begins: int, fault: Fault) -> tuple[Origin | None, str]:
    """The origin of the fault, or what happened instead of it."""
    made, k = program.loop, fault.seed - program.config.seed
    check = made.check
    assert check is not None
    clock = loop.clock_at(begins)
    calls = (fault.env_steps - begins) // made.steps_per_call - 1
    if calls:
        with contextlib.ExitStack() as closing:
            # The same program as in the run, so that the compilation cache may contain it.
            run = made.compiled(program.compile, closing, clock, state, devices.single_device(program.config.seeds))
            clock, state = run(clock, state, jnp.asarray(calls, jnp.int32))
    early = int(state.fault.what[k])
    if early >= 0:
        return None, f"'{made.checked[early]}' was already not finite at step {int(state.fault.env_steps[k])}"
    origin = nonfinite.find(lambda clock, state: check(clock, state)[fault.what], clock, state, element=k)
    if origin is not None:
        return origin, ""
    bad = [f"'{name}'" for name, x in jax.device_get(jax.jit(check)(clock, state)).items() if not x[k]]
    return None, f"it was finite, and {', '.join(bad)} was not" if bad else "everything was finite"


def describe(report: Report) -> list[str]:
    """The report as lines for the user."""
    fault, origin = report.fault, report.origin
    lines = [
        f"seed {fault.seed}, epoch {fault.epoch}, step {fault.env_steps}: '{fault.what}' was not finite",
        f"replayed from the checkpoint at step {report.checkpoint}",
    ]
    if origin is None:
        lines.append(f"the replay did not reproduce the fault: {report.instead}")
        lines.append("another machine, device or version than those of the run (environment.json) may round differently")
    elif origin.operation == ARGUMENT:
        where = ("the clock", "the run's state")[origin.path.startswith("1")] + ", " + origin.path[1:].removeprefix(".")
        lines.append(f"{origin.kind} was present before the call: {_element(origin)} in {where}")
    else:
        lines.append(f"'{origin.operation}' returned {origin.kind}, {_element(origin)}")
        lines.append(f"  in    {origin.path}")
        lines += [f"  {'at' if i == 0 else 'by':<6}{line}" for i, line in enumerate(origin.where)]
        lines += [f"  from  {_operand(operand)}" for operand in origin.operands]
    if report.others:
        lines.append(f"other seeds with a fault: {', '.join(map(str, report.others))}")
    return lines


def _element(origin: Origin) -> str:
    index = f"element {list(origin.element)} of " if origin.element else ""
    return f"{index}{origin.type}"


def _operand(operand: Operand) -> str:
    if operand.low is None:
        return operand.type
    at = "" if operand.at is None else f", {operand.at:.6g} there"
    more = "" if operand.finite else ", and some that are not finite"
    return f"{operand.type} between {operand.low:.6g} and {operand.high:.6g}{at}{more}"
