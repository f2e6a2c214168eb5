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
from jaxmbrl.core import calling
from jaxmbrl.core.config import UserError

if TYPE_CHECKING:
    from jaxmbrl.sweeping.file import Sweep
    from jaxmbrl.sweeping.launching import Job
    from jaxmbrl.sweeping.runs import Run

LAUNCHERS = ("local", "ray")


def sweep(words: list[str], switches: list[str]) -> int:
    """`jaxmbrl sweep`; returns the exit code. `switches` are passed on to its processes.

    Raises UserError, before anything is written, if there is a mistake in the file, its runs or their folders.
    """
    import jax

    from jaxmbrl.sweeping import file as sweep_file
    from jaxmbrl.sweeping import plan
    from jaxmbrl.training import programs

    args = _parser().parse_args(words)
    _check(args)
    file = sweep_file.read(args.file, args.out)
    if args.only is not None:
        return _work(plan.checked(sweep_file.find(file, args.only), file.folder), file, args.leash)
    # This process only checks the runs, so it must not take GPU memory from the processes that train.
    jax.config.update("jax_platforms", "cpu")
    if not args.dry_run:
        print(f"checking {len(file.runs)} run{'s' if len(file.runs) > 1 else ''} of {file.file} ...", flush=True)
    runs, wrong = plan.check_all(file)
    if wrong and not args.keep_going:
        name, problem = next(iter(wrong.items()))
        others = f"; {len(wrong) - 1} more not valid: {', '.join(list(wrong)[1:])}" if len(wrong) > 1 else ""
        raise UserError(f"{file.file}: run {name}: {problem}{others} (--keep-going leaves out such runs)")
    for name, problem in wrong.items():
        options.complain(f"{file.file}: run {name}: {problem}")
    _check_known(file, runs)
    if args.dry_run:
        start = calling.shown()
        if start == (calling.JAXMBRL,) and shutil.which(calling.JAXMBRL) is None:
            start = (sys.executable, *calling.PLAIN)
        for run in runs:
            out = ["--out", args.out] if args.out else []
            print(shlex.join([*start, *switches, "sweep", args.file, "--only", run.name, *out]))
        return 1 if wrong else 0
    for run in runs:
        idle = programs.unlearned(run.config, run.config.total_steps)
        if idle is not None:
            print(f"warning: run {run.name}: {idle}", flush=True)
    return _launch(args, file, runs, wrong, switches)


def status(words: list[str]) -> int:
    """`jaxmbrl status`; returns the exit code. Raises UserError if there are no runs."""
    from jaxmbrl.sweeping import status as run_status

    parser = options.parser("status", description="Progress of runs: those of a sweep, or of any folder of runs.")
    parser.add_argument("folder", metavar="DIR", help="the folder of a sweep, of runs, or of one run")
    parser.add_argument("--json", action="store_true", help="a JSON list of all runs, for other programs")
    args = parser.parse_args(words)
    found = run_status.of_folder(args.folder)
    print(run_status.as_json(found) if args.json else run_status.table(found))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = options.parser(
        "sweep",
        description="Train all runs that FILE describes, each into its own folder. Called again, it skips finished runs "
        "and resumes the others.",
    )
    parser.add_argument("file", metavar="FILE", help="YAML: fields of a run, and grid, runs or hyper (docs/sweeps.md)")
    parser.add_argument("--out", metavar="FOLDER", help="folder of the run folders (default: the file's, or runs/FILE)")
    parser.add_argument("--dry-run", action="store_true", help="print a command for each run and do nothing")
    parser.add_argument("--only", metavar="NAME", help="start or resume only this run, in this process")
    parser.add_argument("--keep-going", action="store_true", help="leave out the runs that are not valid")
    parser.add_argument("--launcher", default="local", metavar="WHERE", help="'local': processes here (default); 'ray'")
    most = "runs at a time (default: 1; with Ray, as many as the cluster has resources for)"
    parser.add_argument("--jobs", type=options.whole, metavar="N", help=most)
    again = "how many times a run is restarted if its process dies (default: 1)"
    parser.add_argument("--retries", type=options.whole, default=1, metavar="N", help=again)
    cluster = "Ray cluster (default: RAY_ADDRESS, or else a Ray started here)"
    parser.add_argument("--ray-address", metavar="HOST:PORT", help=cluster)
    parser.add_argument("--cpus-per-run", type=float, metavar="X", help="of a Ray task (default: 1)")
    parser.add_argument("--gpus-per-run", type=float, metavar="X", help="of a Ray task (default: 0, which hides them)")
    parser.add_argument("--with", dest="leash", type=options.whole, help=argparse.SUPPRESS)
    return parser


def _check(args: argparse.Namespace) -> None:
    """Raise UserError for options that contradict each other or are out of range."""
    if args.launcher not in LAUNCHERS:
        raise UserError(f"--launcher must be {' or '.join(map(repr, LAUNCHERS))}, got '{args.launcher}'")
    if args.out == "" or args.only == "":
        raise UserError(f"--{'out' if args.out == '' else 'only'} needs a value")
    if args.dry_run and args.only is not None:
        raise UserError("give --dry-run or --only, not both")
    if args.launcher != "ray":
        for name in ("ray_address", "cpus_per_run", "gpus_per_run"):
            if getattr(args, name) is not None:
                raise UserError(f"--{name.replace('_', '-')} needs --launcher ray")
    for name, least in (("jobs", 1), ("retries", 0), ("cpus_per_run", 0), ("gpus_per_run", 0)):
        value = getattr(args, name)
        if value is not None and not least <= value < 1e6:
            raise UserError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")


def _check_known(sweep: Sweep, runs: list[Run]) -> None:
    """Raise UserError if the processes of the runs would not know a task or a method, because only this process does."""
    from jaxmbrl import envs
    from jaxmbrl.algorithms import registry

    if calling.program() not in (None, calling.PLAIN):
        return
    own = (envs.TASKS.keys() - envs.PUBLISHED) | (registry.METHODS.keys() - registry.MODULES.keys())
    for run in runs:
        for name in {run.config.env, run.config.algorithm} & own:
            raise UserError(
                f"{sweep.file}: run {run.name}: only this process knows '{name}', and each run is a process of its own: "
                f"register it in a script that calls cli.main() without arguments, and call 'python SCRIPT sweep FILE'"
            )


def _work(run: Run, sweep: Sweep, parent: int | None) -> int:
    """Start or resume one run in this process, and record how it ended for `jaxmbrl status`."""
    from jaxmbrl.sweeping import runs
    from jaxmbrl.sweeping import status as run_status
    from jaxmbrl.training import experts
    from jaxmbrl.training.console import Progress
    from jaxmbrl.training.stopping import ASKED_TO_STOP

    runs.check_same(run)
    found = run_status.look(run.path)
    if run_status.has_ended(found, run.config.total_steps):
        print(f"{run.path} is {found.state}: nothing to do")
        return 0 if found.state == "finished" else 1
    if parent is None:
        # No other process has checked that the parts of the run fit together; if they do not, no files are written.
        experts.build(run.config)
    folder = sweep.folder
    folder.create()
    if not folder.read_index()[0]:
        folder.write_index([run.name for run in sweep.runs], {}, sweep.file)
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
    """Ask this process to stop as soon as its parent process has ended."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)


def _launch(args: argparse.Namespace, sweep: Sweep, runs: list[Run], wrong: dict[str, str], switches: list[str]) -> int:
    """Start or resume all unfinished runs; returns the exit code."""
    from jaxmbrl.sweeping import launching, on_ray
    from jaxmbrl.sweeping import status as run_status
    from jaxmbrl.training.console import Progress, Work
    from jaxmbrl.training.stopping import ASKED_TO_STOP

    say = Progress(0, 0).say
    folder, start = sweep.folder, calling.program() or calling.PLAIN
    states: dict[str, str] = dict.fromkeys(wrong, "invalid")
    jobs: list[Job] = []
    for run in runs:
        found = run_status.look(run.path)
        if run_status.has_ended(found, run.config.total_steps):
            states[run.name] = found.state
        elif found.state == "running":
            states[run.name] = "running elsewhere"
        else:
            own = ("--only", run.name, "--out", str(folder.path.absolute()))
            words = (*start, *switches, "sweep", str(sweep.file.absolute()), *own)
            jobs.append(launching.Job(run.name, words, folder.log(run.name), run.config.total_steps))
    at_once = args.jobs or (1 if args.launcher == "local" else max(len(jobs), 1))
    cpus, gpus = (x if x is not None else d for x, d in ((args.cpus_per_run, 1.0), (args.gpus_per_run, 0.0)))
    here = contextlib.nullcontext(launching.processes())
    where = here if args.launcher == "local" or not jobs else on_ray.connected(args.ray_address, cpus, gpus)
    # Ray installs a handler for SIGTERM; ours must be installed after it.
    with where as launcher, launching.Signals().counted() as signals:
        say(_begin(sweep, wrong, jobs, states))
        # Lines of progress are part of the output: a sweep takes hours, and its output is a log.
        with Work("sweep", len(jobs), "runs", sys.stdout, first=60.0, every=600.0) as work:
            launched = launching.launch(jobs, folder, launcher, at_once, args.retries, say, signals, work=work)
        states |= launched
    counts = {state: list(states.values()).count(state) for state in dict.fromkeys(states.values())}
    say(
        f"{len(states)} run{'s' if len(states) > 1 else ''}: "
        + ", ".join(f"{count} {state}" for state, count in counts.items())
    )
    say(
        f"{calling.again('status', folder.path)} shows each of them"
        + (f"; logs are in {folder.path}/.logs" if jobs else "")
    )
    if set(counts) & {"failed", "invalid", "running elsewhere"}:
        return 1
    if set(counts) & {"stopped", "waiting"}:
        say("call the same command again to resume the runs that stopped or wait")
        return ASKED_TO_STOP
    return 0


def _begin(sweep: Sweep, wrong: dict[str, str], jobs: list[Any], states: dict[str, str]) -> str:
    """Create the sweep's folder. Returns the line that says how many runs are left."""
    sweep.folder.create()
    sweep.folder.write_index([run.name for run in sweep.runs], wrong, sweep.file)
    before = {state: list(states.values()).count(state) for state in dict.fromkeys(states.values())}
    already = "".join(f", {count} {state}" for state, count in before.items())
    return f"{len(sweep.runs)} run{'s' if len(sweep.runs) > 1 else ''} into {sweep.folder.path}: {len(jobs)} to do{already}"
