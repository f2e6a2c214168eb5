"""The commands `jaxmbrl sweep` and `jaxmbrl status`."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import shutil
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from jaxmbrl.commands import options
from jaxmbrl.commands.training import finish
from jaxmbrl.core.config import UserError

if TYPE_CHECKING:
    from jaxmbrl.sweeping.file import Sweep
    from jaxmbrl.sweeping.launching import Job
    from jaxmbrl.sweeping.runs import Run

LAUNCHERS = ("local", "ray")


def sweep(words: list[str], switches: list[str]) -> int:
    """`jaxmbrl sweep`; returns the exit code. `switches` are passed on to its processes.

    Raises UserError, before anything is written, for whatever is wrong with the file, its runs or their folders.
    """
    import jax

    from jaxmbrl.sweeping import file as sweep_file
    from jaxmbrl.sweeping import plan

    asked = _parser().parse_args(words)
    _check(asked)
    file = sweep_file.read(asked.file, asked.out)
    if asked.only is not None:
        return _work(plan.checked(sweep_file.find(file, asked.only), file.folder), file, asked.leash)
    # This process only checks: it must not take GPU memory from those that train.
    jax.config.update("jax_platforms", "cpu")
    if not asked.dry_run:
        print(f"checking {len(file.runs)} run{'s' if len(file.runs) > 1 else ''} of {file.file} ...", flush=True)
    runs, wrong = plan.check_all(file)
    if wrong and not asked.keep_going:
        name, problem = next(iter(wrong.items()))
        others = f"; {len(wrong) - 1} more not valid: {', '.join(list(wrong)[1:])}" if len(wrong) > 1 else ""
        raise UserError(f"{file.file}: run {name}: {problem}{others} (--keep-going does without)")
    for name, problem in wrong.items():
        options.complain(f"{file.file}: run {name}: {problem}")
    if asked.dry_run:
        command = options.own_name()
        if command == "jaxmbrl" and shutil.which(command) is None:
            command = f"{shlex.quote(sys.executable)} -m jaxmbrl"
        for run in runs:
            out = ["--out", asked.out] if asked.out else []
            print(f"{command} {shlex.join([*switches, 'sweep', asked.file, '--only', run.name, *out])}")
        return 1 if wrong else 0
    return _launch(asked, file, runs, wrong, switches)


def status(words: list[str]) -> int:
    """`jaxmbrl status`; returns the exit code. Raises UserError where there are no runs."""
    from jaxmbrl.sweeping import status as run_status

    parser = options.parser("status", description="Progress of runs: those of a sweep, or of any folder of runs.")
    parser.add_argument("folder", metavar="DIR", help="the folder of a sweep, of runs, or of one run")
    parser.add_argument("--json", action="store_true", help="a JSON list of all runs, for other programs")
    asked = parser.parse_args(words)
    found = run_status.of_folder(asked.folder)
    print(run_status.as_json(found) if asked.json else run_status.table(found))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = options.parser(
        "sweep",
        description="Train all runs that FILE asks for, each into a folder of its own. Called again, it skips what is "
        "finished and continues the others from where they stopped.",
    )
    parser.add_argument("file", metavar="FILE", help="YAML: fields of a run, and grid, runs or hyper (docs/sweeps.md)")
    parser.add_argument("--out", metavar="FOLDER", help="folder of the run folders (default: the file's, or runs/FILE)")
    parser.add_argument("--dry-run", action="store_true", help="print a command for each run and do nothing")
    parser.add_argument("--only", metavar="NAME", help="work on this run here, from its start or where it stopped")
    parser.add_argument("--keep-going", action="store_true", help="leave out the runs that are not valid")
    parser.add_argument("--launcher", default="local", metavar="WHERE", help="'local': processes here (default); 'ray'")
    most = "runs at a time (default: 1; with Ray, as many as there is room for)"
    parser.add_argument("--jobs", type=int, metavar="N", help=most)
    again = "times that a run whose process dies is started again (default: 1)"
    parser.add_argument("--retries", type=int, default=1, metavar="N", help=again)
    cluster = "Ray cluster (default: RAY_ADDRESS, or else a Ray started here)"
    parser.add_argument("--ray-address", metavar="HOST:PORT", help=cluster)
    parser.add_argument("--cpus-per-run", type=float, metavar="X", help="of a Ray task (default: 1)")
    parser.add_argument("--gpus-per-run", type=float, metavar="X", help="of a Ray task (default: 0, which hides them)")
    parser.add_argument("--with", dest="leash", type=int, help=argparse.SUPPRESS)
    return parser


def _check(asked: argparse.Namespace) -> None:
    """Raise UserError for options that do not go together, or are out of range."""
    if asked.launcher not in LAUNCHERS:
        raise UserError(f"--launcher must be {' or '.join(map(repr, LAUNCHERS))}, got '{asked.launcher}'")
    if asked.out == "" or asked.only == "":
        raise UserError(f"--{'out' if asked.out == '' else 'only'} needs a value")
    if asked.dry_run and asked.only is not None:
        raise UserError("give --dry-run or --only, not both")
    if asked.launcher != "ray":
        for name in ("ray_address", "cpus_per_run", "gpus_per_run"):
            if getattr(asked, name) is not None:
                raise UserError(f"--{name.replace('_', '-')} needs --launcher ray")
    for name, least in (("jobs", 1), ("retries", 0), ("cpus_per_run", 0), ("gpus_per_run", 0)):
        value = getattr(asked, name)
        if value is not None and not least <= value < 1e6:
            raise UserError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")


def _work(run: Run, sweep: Sweep, parent: int | None) -> int:
    """Work on one run in this process, and note how it ended for `jaxmbrl status`."""
    from jaxmbrl.sweeping import runs
    from jaxmbrl.sweeping import status as run_status
    from jaxmbrl.training import programs
    from jaxmbrl.training.console import Progress
    from jaxmbrl.training.stopping import ASKED_TO_STOP

    runs.check_same(run)
    found = run_status.look(run.path)
    if found.ended:
        print(f"{run.path} is {found.state}: nothing to do")
        return 0 if found.state == "finished" else 1
    if parent is None:
        # No other process has checked whether its parts fit; a run that is refused leaves nothing behind.
        programs.build(run.config)
    folder = sweep.folder
    folder.create()
    if not folder.read_index()[0]:
        folder.write_index([asked.name for asked in sweep.runs], {})
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True, name="jaxmbrl-leash").start()
    epoch, steps = run.config.settings.epoch_steps, run.config.steps
    total = (steps // epoch if run.config.data else -(-steps // epoch)) * epoch
    progress = Progress(total, run.config.seeds)
    folder.note(run.name, "begins")
    progress.say(f"run {run.name} of {sweep.file}: {total:,} steps, {run.config.seeds} seeds, into {run.path}")
    for line in runs.traced_lines(run):
        progress.say(line)
    try:
        code = finish(run.path, progress, lambda stopping: runs.work(run, progress, stopping))
    except Exception as error:
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        folder.note(run.name, "failed", f"{kind}{error}")
        raise
    if code == 0:
        folder.note(run.name, "finished")
    elif code == ASKED_TO_STOP:
        folder.note(run.name, "stopped")
    return code


def _end_with(parent: int) -> None:
    """Ask this process to stop when the one that started it has ended."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)


def _launch(asked: argparse.Namespace, sweep: Sweep, runs: list[Run], wrong: dict[str, str], switches: list[str]) -> int:
    """Work on all runs that are left; returns the exit code."""
    from jaxmbrl.sweeping import launching, on_ray
    from jaxmbrl.sweeping import status as run_status
    from jaxmbrl.training.stopping import ASKED_TO_STOP

    folder = sweep.folder
    states: dict[str, str] = dict.fromkeys(wrong, "invalid")
    jobs: list[Job] = []
    for run in runs:
        found = run_status.look(run.path)
        if found.ended:
            states[run.name] = found.state
        elif found.state == "running":
            states[run.name] = "running elsewhere"
        else:
            own = ("--only", run.name, "--out", str(folder.path.absolute()))
            words = (*switches, "sweep", str(sweep.file.absolute()), *own)
            jobs.append(launching.Job(run.name, words, folder.log(run.name)))
    at_once = asked.jobs or (1 if asked.launcher == "local" else max(len(jobs), 1))
    cpus, gpus = (x if x is not None else d for x, d in ((asked.cpus_per_run, 1.0), (asked.gpus_per_run, 0.0)))
    here = contextlib.nullcontext(launching.processes())
    where = here if asked.launcher == "local" or not jobs else on_ray.connected(asked.ray_address, cpus, gpus)
    # Ray installs a handler for SIGTERM; ours must be installed after it.
    with where as launcher, launching.Signals().counted() as signals:
        _begin(sweep, wrong, jobs, states)
        states |= launching.launch(jobs, folder, launcher, at_once, asked.retries, _say, signals)
    counts = {state: list(states.values()).count(state) for state in dict.fromkeys(states.values())}
    _say(
        f"{len(states)} run{'s' if len(states) > 1 else ''}: "
        + ", ".join(f"{count} {state}" for state, count in counts.items())
    )
    _say(f"jaxmbrl status {folder.path} shows each of them" + (f"; logs are in {folder.path}/.logs" if jobs else ""))
    if set(counts) & {"failed", "invalid", "running elsewhere"}:
        return 1
    if set(counts) & {"stopped", "waiting"}:
        _say("call the same command again to continue those that stopped or wait")
        return ASKED_TO_STOP
    return 0


def _begin(sweep: Sweep, wrong: dict[str, str], jobs: list[Any], states: dict[str, str]) -> None:
    """Make the sweep's folder and print what is left to do."""
    sweep.folder.create()
    sweep.folder.write_index([asked.name for asked in sweep.runs], wrong)
    before = {state: list(states.values()).count(state) for state in dict.fromkeys(states.values())}
    already = "".join(f", {count} {state}" for state, count in before.items())
    _say(f"{len(sweep.runs)} run{'s' if len(sweep.runs) > 1 else ''} into {sweep.folder.path}: {len(jobs)} to do{already}")


def _say(text: str) -> None:
    print(text, flush=True)
