"""The command line: what it refuses, in one line and before any work, and what it tells."""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from begun import Began, began
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import jaxmbrl
from jaxmbrl import algorithms, cli, envs
from jaxmbrl.commands import training
from jaxmbrl.core import calling
from jaxmbrl.core.config import to_dict
from jaxmbrl.training import programs
from jaxmbrl.training.session import Session


def write_data(folder):
    """Files of transitions: good ones of two tasks and of none, and one that is none."""
    for name, size, env in (("good", 3, "pendulum"), ("cart", 4, "cartpole-continuous"), ("mine", 3, "my-own-task")):
        seen, flags = np.zeros((2000, size)), np.zeros(2000, bool)
        # An action that never varies is warned of.
        held = {
            "observation": seen,
            "action": np.linspace(-1, 1, 2000)[:, None],
            "reward": seen[:, 0],
            "next_observation": seen,
        }
        np.savez(folder / f"{name}.npz", **held, terminated=flags, env=env)
    np.savez(folder / "torques.npz", **(held | {"action": seen[:, :1] + 2}), terminated=flags)
    np.savez(folder / "one-row.npz", **{name: value[:1] for name, value in held.items()}, terminated=flags[:1])
    np.savez(folder / "part.npz", **held)
    (folder / "text.npz").write_text("observation,action")


@pytest.fixture(autouse=True)
def nothing_begins(monkeypatch):
    """A command that is not refused ends here."""
    monkeypatch.setattr(Session, "begin", began)
    monkeypatch.setattr(Session, "compile", began)


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory):
    """A folder to be in, with things that are not what a command wants."""
    folder = tmp_path_factory.mktemp("place")
    before, sac = jax.config.jax_compilation_cache_dir, algorithms.METHODS["sac"]
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    patch.chdir(folder)
    (folder / "file").write_text("a: [\n")
    (folder / "bytes.yaml").write_bytes(b"\xff\xfe\x00\x01")
    (folder / "empty").mkdir()
    (folder / "full").mkdir()
    (folder / "full" / "thesis.tex").write_text("years of work")
    write_data(folder)
    config = to_dict(programs.configure("sac", "pendulum"))
    texts = {
        "good": yaml.safe_dump(config),
        "other-task": yaml.safe_dump(config | {"env": "pendulm"}),
        "other-field": yaml.safe_dump(config | {"settings": config["settings"] | {"batch": 3}}),
        "bad-range": yaml.safe_dump(config | {"settings": config["settings"] | {"batch_size": 0}}),
        "own": "extends: pendulum",
        "own-unknown": "extends: pendulm",
        "own-field": "{extends: pendulum, settings: {agent: {hiden: [3]}}}",
        "own-range": "{a: {extends: pendulum}, b: {extends: a, settings: {batch_size: 0}}}",
        "no-steps": yaml.safe_dump({k: v for k, v in config.items() if k != "steps"}),
        "nothing": "",
        "torn": yaml.safe_dump(config)[:-40] + ": :\n - {",
        "list": "[1, 2]",
        "twice": "steps: 10\nsteps: 20\n",
        "octal": "steps: 010\n",
    }
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)
        (folder / f"run-{name}").mkdir()
        (folder / f"run-{name}" / ".lock").touch()
        (folder / f"run-{name}" / "config.yaml").write_text(text)
    yield folder
    patch.undo()
    # A file of presets adds them to its method in this process.
    algorithms.METHODS["sac"] = sac
    jax.config.update("jax_compilation_cache_dir", before)


def call(words):
    """Exit code, standard output and standard error of a command line."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(words)
    return code, out.getvalue(), err.getvalue()


def contents(folder):
    return {str(path): path.is_dir() or path.read_bytes() for path in sorted(folder.rglob("*"))}


SAC = "train sac --env pendulum "
NOT_UTF8 = os.fsdecode(b"l\xe4ufe")
PETS = "train pets --env cartpole-continuous "
COLLECT = "collect --policy random --env pendulum "
FIT = "fit --data good.npz "
REFUSED = {
    # Names.
    "trian sac": ["unknown command 'trian'", "did you mean 'train'?"],
    "--version now": ["unknown command"],
    f"train sac --env pendulum --steps {10**400}": ["steps must be below"],
    "train sac --env pendulum --steps 1e999": ["steps"],
    "evaluate run --score-reference -1.2e3 -150": ["there is no folder run"],
    "evaluate run --episodes 1e999": ["--episodes must be a whole number, got '1e999'"],
    "train sac --env pendulum --agent.learning-rate 1e39": ["agent.learning_rate must be a finite number"],
    "train": ["algorithm", "redq, reinforce, sac"],
    "train --env pendulum": ["algorithm first", "redq, reinforce, sac"],
    "train sca --env pendulum": ["unknown algorithm 'sca'", "did you mean 'sac'?"],
    "train acktr --env pendulum": ["algorithm 'acktr' is not available; 'jaxmbrl list' shows the methods"],
    "train sac": ["--env TASK is missing", "pendulum"],
    "train sac --env": ["--env needs a value"],
    "train sac pendulum": ["unexpected argument 'pendulum': the task follows an option, --env pendulum"],
    SAC + "--seeds 0 1": ["seeds must be the number of seeds, got '0 1': write --seed 0 --seeds 2, which are consecutive"],
    "train sac --env Pendulum-v1": ["unknown task 'Pendulum-v1'; did you mean 'pendulum' or 'gymnasium/Pendulum-v1'?"],
    PETS + "--ensemble.members 2": ["ensemble.elites must be at most members (2), got 5: set it to 2 too, or raise"],
    "train sac --env pendulm": ["unknown task 'pendulm'", "did you mean 'pendulum'?"],
    **{
        f"train {option}": [f"unknown option '{option.split()[1]}'; did you mean '{ours}'?"]
        for option, ours in {
            "dqn --exploration-fraction 0.1": "--epsilon-steps",
            "dqn --exploration-final-eps 0.1": "--agent.epsilon",
            "dqn --target-update-interval 9": "--copy-every",
            "dqn --train-freq 4": "--train-every",
            "sac --train-freq 4": "--updates-per-step",
            "dqn --gradient-steps 4": "--updates-per-step",
            "dqn --buffer-size 4": "--replay-capacity",
            "ppo --n-steps 9": "--collect-steps",
            "ppo --gae-lambda 0.9": "--agent.gae-lambda",
            "ppo --clip-range 0.2": "--agent.clip",
            "ppo --ent-coef 0.1": "--agent.entropy-weight",
        }.items()
    },
    "train sac --env ''": ["unknown task ''", "pendulum"],
    "train sac --envv pendulum": ["unknown option '--envv'", "did you mean '--env'?"],
    SAC + "--preset pendulm": ["unknown preset 'pendulm' of sac", "did you mean 'pendulum'?"],
    SAC + "--preset": ["--preset needs a value"],
    SAC + "--agent.learning-rte 1": ["unknown option '--agent.learning-rte'", "did you mean '--agent.learning-rate'?"],
    SAC + "--agent.learning_rte=1": ["unknown option '--agent.learning_rte=1'", "did you mean '--agent.learning-rate'?"],
    SAC + "--bogus 3": ["unknown option '--bogus'", "jaxmbrl train sac --help"],
    SAC + "-x": ["unknown option '-x'"],
    SAC + "word": ["unexpected argument 'word'"],
    SAC + "--steps 10 more words": ["unexpected argument 'more'"],
    PETS + "--learn-reward yes": ["unexpected argument 'yes'"],
    PETS + "--ensemble 3": ["unknown option '--ensemble'"],
    # Values of the wrong type.
    SAC + "--steps abc": ["--steps must be a whole number, got 'abc'"],
    SAC + "--steps 1.5": ["--steps must be a whole number, got '1.5'"],
    SAC + "--steps=": ["--steps must be a whole number, got ''"],
    SAC + "--steps": ["--steps needs a value: a whole number"],
    SAC + "--seeds two": ["--seeds must be a whole number, got 'two'"],
    SAC + "--agent.learning-rate fast": ["--agent.learning-rate must be a number, got 'fast'"],
    SAC + "--agent.learning_rate fast": ["--agent.learning-rate must be a number, got 'fast'"],
    SAC + "--agent.hidden 16 x": ["--agent.hidden must be whole numbers", "got '16 x'"],
    SAC + "--agent.target-entropy low": ["--agent.target-entropy must be a number or 'None', got 'low'"],
    PETS + "--ensemble.propagation ts2": ["--ensemble.propagation must be 'ts1' or 'tsinf' or ", "got 'ts2'"],
    # Values out of range.
    SAC + "--steps 0": ["steps must be at least 1, got 0"],
    SAC + "--steps -5": ["steps must be at least 1, got -5"],
    SAC + "--steps 2147483600": ["steps must be below 2147483648"],
    SAC + "--steps 99999999999999999999": ["steps must be below 2147483648"],
    SAC + "--seeds 0": ["seeds must be at least 1, got 0"],
    SAC + "--seed -1": ["seed must be at least 0, got -1"],
    SAC + "--seed 2147483648": ["seed must be below 2147483648"],
    SAC + "--seed 2147483647 --seeds 2": ["seeds must be at most 1 from seed 2147483647 on, got 2"],
    SAC + "--seeds 1000000": ["the state of the run takes", "lower seeds"],
    SAC + "--replay-capacity 2000000000 --seeds 100": ["the state of the run takes", "replay_capacity"],
    SAC + "--replay-capacity 999999999999": ["replay_capacity must be below 2147483648"],
    SAC + "--eval-episodes 0": ["eval_episodes must be at least 1, got 0"],
    SAC + "--checkpoint.every 0": ["checkpoint.every must be at least 1, got 0"],
    SAC + "--agent.learning-rate -1": ["agent.learning_rate must be above 0, got -1.0"],
    SAC + "--agent.learning-rate nan": ["agent.learning_rate must be a finite number, got nan"],
    SAC + "--agent.learning-rate inf": ["agent.learning_rate must be a finite number, got inf"],
    SAC + "--agent.hidden 16 0": ["agent.hidden[1] must be at least 1, got 0"],
    SAC + "--agent.critic-subset 3": ["agent.critic_subset must be at most critics (2), got 3"],
    SAC + "--num-envs 7": ["epoch_steps must be a multiple of 7", "got 1000"],
    PETS + "--ensemble.members 0": ["ensemble.members must be at least 1, got 0"],
    PETS + "--ensemble.elites 9": ["ensemble.elites must be at most members (5), got 9"],
    PETS + "--planner.cem.horizon 0": ["planner.cem.horizon must be at least 1, got 0"],
    PETS + "--planner.cem.elites 101": ["planner.cem.elites must be at most population (100), got 101"],
    PETS + "--particles 7": ["particles must be a multiple of ensemble.elites (5), got 7"],
    PETS + "--ensemble.absolute 99": ["absolute must name observation dimensions below 4, got 99"],
    # Folders.
    SAC + "--out": ["--out needs a value"],
    SAC + "--out ''": ["--out needs a value"],
    SAC + "--out file": ["file is a file", "choose another folder"],
    SAC + f"--out {NOT_UTF8}": ["cannot hold checkpoints: its name is not UTF-8; rename the folder"],
    SAC + "--out file/run": ["a parent is a file", "choose another folder"],
    SAC + "--out full": ["full is not empty (it has thesis.tex)"],
    SAC + "--out /proc/run": ["/proc/run cannot be created"],
    # Configs.
    SAC + "--config": ["--config needs a value"],
    "train sac --config nowhere.yaml": ["--config nowhere.yaml cannot be read (No such file or directory)"],
    "train sac --config full": ["--config full cannot be read (Is a directory)"],
    "train sac --config file": ["--config file is not valid YAML (line 2: "],
    "train sac --config bytes.yaml": ["--config bytes.yaml is not valid YAML"],
    "train sac --config twice.yaml": [
        "--config twice.yaml is not valid YAML (line 2: 'steps' is given twice, first in line 1)"
    ],
    "train sac --config octal.yaml": [
        "--config octal.yaml is not valid YAML (line 1: '010' could be octal: write a number"
    ],
    "train sac --config torn.yaml": ["--config torn.yaml is not valid YAML (line "],
    "train sac --config nothing.yaml": ["--config nothing.yaml: the config must be a mapping"],
    "train sac --config list.yaml": ["--config list.yaml: the config must be a mapping"],
    "train sac --config other-task.yaml": ["--config other-task.yaml: unknown task 'pendulm'", "did you mean 'pendulum'?"],
    "train sac --config other-field.yaml": [
        "--config other-field.yaml: unknown field 'settings.batch'",
        "did you mean 'settings.batch_size'?",
    ],
    "train sac --config bad-range.yaml": ["--config bad-range.yaml: settings.batch_size must be at least 1, got 0"],
    "train sac --config no-steps.yaml": ["--config no-steps.yaml: steps is missing"],
    "train sac --config own.yaml": ["--env TASK is missing"],
    SAC + "--config own.yaml --preset pendulm": ["unknown preset 'pendulm' of sac"],
    SAC + "--config own-unknown.yaml": ["own-unknown.yaml: preset 'own-unknown' extends an unknown preset 'pendulm'"],
    SAC + "--config own-field.yaml": [
        "--config own-field.yaml: preset 'own-field': unknown field 'settings.agent.hiden'",
        "did you mean 'settings.agent.hidden'?",
    ],
    SAC + "--config own-range.yaml": [
        "--config own-range.yaml: preset 'b': settings.batch_size must be at least 1, got 0",
    ],
    "train pets --config good.yaml": ["--config good.yaml is of sac, not pets"],
    "train sac --config good.yaml --preset default": ["--preset or --config"],
    "train sac --config good.yaml --env pendulm": ["unknown task 'pendulm'"],
    # Words of other libraries.
    SAC + "--gamma 0.9": ["unknown option '--gamma'; did you mean '--agent.discount'?"],
    SAC + "--total-timesteps=5": ["unknown option '--total-timesteps=5'; did you mean '--steps'?"],
    SAC + "--net_arch 9": ["unknown option '--net_arch'; did you mean '--agent.hidden'?"],
    SAC + "--device cpu": ["unknown option '--device': JAX chooses the device; see"],
    SAC + "--verbose 1": ["unknown option '--verbose': a command shows its progress without it; see"],
    SAC + "--algo sac": ["unknown option '--algo': the algorithm is the first word after train; see"],
    SAC + "--steps 2.5": ["--steps must be a whole number, got '2.5'"],
    SAC + "--steps 25e-1": ["--steps must be a whole number, got '25e-1'"],
    "evaluate run-good --n-eval-episodes 3": ["unknown option '--n-eval-episodes'; did you mean '--episodes'?"],
    "evaluate run-good --episodes 2.5": ["--episodes must be a whole number, got '2.5'"],
    "resume run-good": ["unknown command 'resume'; write 'jaxmbrl train --resume RUN'"],
    "video run-good": ["unknown command 'video'; write 'jaxmbrl evaluate RUN --video'"],
    "fit x.npz": ["the file follows an option: jaxmbrl fit --data x.npz"],
    # Hosts.
    SAC + "--hosts 2": ["give --coordinator, --hosts and --host together, or --hosts auto alone"],
    SAC + "--hosts auto --host 1": ["--hosts must be a whole number, or 'auto' alone, got 'auto'"],
    SAC + "--hosts some --host 1 --coordinator here:1": ["--hosts must be a whole number, or 'auto' alone, got 'some'"],
    SAC + "--hosts 2 --host x": ["--host must be a whole number, got 'x'"],
    SAC + "--hosts 2 --host 2 --coordinator here:1": ["--host must be at least 0 and below --hosts (2), got 2"],
    SAC + "--host 0": ["give --coordinator, --hosts and --host together"],
    # Resuming.
    "train --resume": ["--resume needs a value"],
    "train --resume nowhere": ["there is no folder nowhere"],
    "train --resume=nowhere": ["there is no folder nowhere"],
    "train --resume file": ["there is no folder file"],
    "train --resume full": ["full is not a run"],
    "train --resume run-good": ["no checkpoint in ", "run-good/checkpoints; start the run again"],
    "train --resume run-good --steps 0": ["steps must be at least 1, got 0"],
    "train --resume run-good --steps x": ["--steps must be a whole number, got 'x'"],
    "train --resume run-good --seeds 3": ["cannot continue with other settings (seeds was 1 and is 3); restore them"],
    "train --resume run-good --agent.hidden 8 9 --seed 1": ["(agent.hidden was [", "] and is [8, 9]; seed was 0 and is 1)"],
    "train --resume run-good --env cartpole-continuous": ["(env was 'pendulum' and is 'cartpole-continuous')"],
    "train --resume run-good --preset small": ["cannot continue with other settings (preset was "],
    "train --resume run-good --checkpoint.keep 0": ["checkpoint.keep must be at least 1, got 0"],
    "train --resume run-good --out elsewhere": ["--resume uses the run's own folder and config: leave --out out"],
    "train --resume run-good --config good.yaml": ["leave --config out"],
    "train --resume run-good --step 3": ["unknown option '--step'"],
    "train pets --resume run-good": ["run-good is of sac, not pets"],
    "train sac --resume run-good": ["no checkpoint in "],
    "train --resume run-torn": ["run-torn/config.yaml is not valid YAML"],
    "train --resume run-list": ["run-list/config.yaml must be a mapping of fields to values"],
    "train --resume run-other-task": ["run-other-task/config.yaml: unknown task 'pendulm'"],
    "train --resume run-bad-range": ["run-bad-range/config.yaml: settings.batch_size must be at least 1"],
    # Evaluating and listing.
    "evaluate": ["RUN is missing"],
    "evaluate nowhere": ["there is no folder nowhere"],
    "evaluate full": ["full is not a run"],
    "evaluate run-good": ["no checkpoint in ", "run-good/checkpoints"],
    "evaluate run-nothing": ["run-nothing/config.yaml must be a mapping of fields to values"],
    "evaluate run-no-steps": ["run-no-steps/config.yaml: steps is missing"],
    "evaluate run-good --episodes 0": ["--episodes must be at least 1, got 0"],
    "evaluate run-good --episodes 99999999999": ["episodes must be", "below 2147483648"],
    "evaluate run-good --episodes many": ["--episodes must be a whole number, got 'many'"],
    "evaluate run-good --json=yes": ["--json takes no value"],
    "evaluate run-good --jsn": ["unknown option '--jsn'"],
    "evaluate run-good other": ["unexpected argument 'other'"],
    "evaluate run-good --model": ["--model needs a value"],
    # Debugging.
    "debug": ["RUN is missing"],
    "debug nowhere": ["there is no folder nowhere"],
    "debug full": ["full is not a run"],
    "debug run-good": ["no checkpoint in ", "run-good/checkpoints"],
    "debug run-good --seed 1": ["the run in run-good has seeds 0 to 0, not 1"],
    "debug run-good --seed x": ["--seed must be a whole number, got 'x'"],
    "debug run-good --sed 1": ["unknown option '--sed'"],
    "debug run-bad-range": ["run-bad-range/config.yaml: settings.batch_size must be at least 1"],
    # Exporting.
    "export": ["RUN, --to is missing"],
    "export run-good": ["--to is missing"],
    "export nowhere --to numpy": ["there is no folder nowhere"],
    "export full --to numpy": ["full is not a run"],
    "export run-good --to": ["--to needs a value"],
    "export run-good --to tensorrt": ["unknown format 'tensorrt' of an exported policy"],
    "export run-good --to nunpy": ["unknown format 'nunpy' of an exported policy", "did you mean 'numpy'?"],
    "export run-good --to numpy": ["no checkpoint in ", "run-good/checkpoints"],
    "export run-good --to numpy --seed 1": ["the run in run-good has seeds 0 to 0, not 1"],
    "export run-good --to numpy --batch 0": ["batch must be a whole number of at least 1, got 0"],
    "export run-good --to numpy --batch x": ["--batch must be a whole number, got 'x'"],
    "export run-good --to numpy --seed x": ["--seed must be a whole number, got 'x'"],
    "export run-good --to numpy --out=": ["out must be the name of a new file, FILE.npz, got ''"],
    "export run-good --to numpy --out good": ["good.npz exists; choose another file"],
    "export run-good --to numpy --out file/x": ["file/x.npz cannot be written (Not a directory)"],
    "export run-good --to numpy more": ["unexpected argument 'more'"],
    # Learning from data.
    SAC + "--data": ["--data needs a value"],
    SAC + "--data=": ["--data needs a value: a file of transitions"],
    SAC + "--data nowhere.npz": ["nowhere.npz cannot be read (No such file or directory)"],
    SAC + "--data full": ["full cannot be read (Is a directory)"],
    SAC + "--data text.npz": ["text.npz: it is not an npz file of plain arrays"],
    SAC + "--data part.npz": ["part.npz: the array 'terminated' is missing; there is: action"],
    SAC + "--data torques.npz": [
        "torques.npz: 'action' must be in [-1, 1], got 2: with the actuator's bounds it is 2 * (action - low)"
    ],
    SAC + "--data cart.npz": ["cart.npz holds transitions of cartpole-continuous, not of pendulum"],
    SAC + "--data mine.npz": ["mine.npz holds transitions of my-own-task, not of pendulum"],
    SAC + "--data good.npz --steps 2001": ["steps must be between an epoch (1000) and the data's 2000 rows, got 2001"],
    SAC + "--data good.npz --epoch-steps 3000": ["the data's 2000 rows, got 3000: set epoch_steps to 2000"],
    SAC + "--data good.npz --num-envs 2": ["num_envs must be 1 with data, got 2"],
    "train sac --data good.npz": ["--env TASK is missing"],
    "train sac --config good.yaml --data nowhere.npz": ["nowhere.npz cannot be read"],
    PETS + "--data cart.npz --model true --steps 2000": ["model must be 'learned' with data"],
    PETS + "--data cart.npz --dta x": ["unknown option '--dta'"],
    # Collecting.
    "collect": ["--policy, --out is missing"],
    COLLECT: ["--out is missing"],
    COLLECT + "--out": ["--out needs a value"],
    COLLECT + "--out=": ["--out must be the name of a new file, FILE.npz, got ''"],
    COLLECT + "--out .": ["--out must be the name of a new file, FILE.npz, got '.'"],
    COLLECT + "--out ..": ["--out must be the name of a new file, FILE.npz, got '..'"],
    COLLECT + "--out /": ["--out must be the name of a new file, FILE.npz, got '/'"],
    COLLECT + "--out good.npz": ["good.npz exists; choose another file"],
    COLLECT + "--out good": ["good.npz exists; choose another file"],
    COLLECT + "--out file/x.npz": ["file/x.npz cannot be written (Not a directory)"],
    COLLECT + "--out /proc/x.npz": ["/proc/x.npz cannot be written (No such file or directory)"],
    COLLECT + "--out " + "x" * 300: ["cannot be written (File name too long)"],
    COLLECT + "--out new/x --steps 0": ["steps must be at least 1 and below 2147483648, got 0"],
    COLLECT + "--out new/x --steps 2147483647": ["the collected data takes", "lower steps"],
    COLLECT + "--out new/x --steps many": ["--steps must be a whole number, got 'many'"],
    COLLECT + "--out new/x --seed -1": ["seed must be at least 0"],
    COLLECT + "--out new/x --seed 2147483648": ["seed must be at least 0 and below 2147483648"],
    COLLECT + "--out new/x --explore=yes": ["--explore takes no value"],
    COLLECT + "--out new/x more": ["unexpected argument 'more'"],
    "collect --policy random --out new/x": ["--env TASK is missing", "pendulum"],
    "collect --policy random --env pendulm --out new/x": ["unknown task 'pendulm'", "did you mean 'pendulum'?"],
    "collect --policy nowhere --out new/x": ["there is no folder nowhere"],
    "collect --policy full --out new/x": ["full is not a run"],
    "collect --policy run-good --out new/x": ["no checkpoint in ", "run-good/checkpoints"],
    "collect --policy run-good --env reacher-2d --out new/x": ["the run in run-good is of pendulum, not of reacher-2d"],
    # Fitting.
    "fit": ["--data FILE is missing"],
    "fit --data": ["--data needs a value"],
    "fit --data=": ["--data FILE is missing"],
    "fit --data nowhere.npz": ["nowhere.npz cannot be read (No such file or directory)"],
    "fit --data text.npz": ["text.npz: it is not an npz file of plain arrays"],
    "fit --data one-row.npz": ["test_fraction 0.2 of 1 rows leaves 1 to fit and 0 to test"],
    FIT + "--env cartpole-continuous": ["good.npz holds transitions of pendulum, not of cartpole-continuous"],
    FIT + "--env pendulm": ["unknown task 'pendulm'"],
    "fit --data one-row.npz --env cartpole-continuous": ["the data's 'observation' has rows of shape (3,)"],
    FIT + "--out": ["--out needs a value"],
    FIT + "--out=": ["--out must be the name of a new file, FILE.png, got ''"],
    FIT + "--out file/x": ["file/x.png cannot be written (Not a directory)"],
    FIT + "--test-fraction 1": ["test_fraction must be below 1, got 1.0"],
    FIT + "--test-fraction some": ["--test-fraction must be a number, got 'some'"],
    FIT + "--seed -1": ["seed must be at least 0, got -1"],
    FIT + "--ensemble.members 0": ["ensemble.members must be at least 1, got 0"],
    FIT + "--ensemble.elites 9": ["ensemble.elites must be at most members (5), got 9"],
    FIT + "--ensemble.absolute 7": ["absolute must name observation dimensions below 3, got 7"],
    FIT + "--ensemble.max-epochs 99999999999": ["ensemble.max_epochs must be below 2147483648, got 99999999999"],
    FIT + "--ensemble.hidden 1000000 1000000": ["the model takes", "lower ensemble.members or ensemble.hidden"],
    FIT + "--ensemble.propagation ts2": ["--ensemble.propagation must be 'ts1' or 'tsinf' or 'expectation'"],
    FIT + "--ensemble.memebrs 3": ["unknown option '--ensemble.memebrs'", "did you mean '--ensemble.members'?"],
    FIT + "--members 3": ["unknown option '--members'"],
    FIT + "word": ["unexpected argument 'word'"],
    "doctor --json": ["unknown option '--json'"],
    "doctor now": ["unexpected argument 'now'"],
    "list --jsn": ["unknown option '--jsn'"],
    "list acktr": ["algorithm or family 'acktr' is not available; 'jaxmbrl list' shows the methods"],
    "list zzz": ["unknown algorithm or family 'zzz'", "there is: a2c, alm, alphazero, ampo, bc, bmpo, bptt, brax"],
    "list dinah": ["unknown algorithm or family 'dinah'"],
    "list dyna now": ["unexpected argument 'now'"],
}


def split(line):
    return [word.replace("''", "") for word in line.split()]


@pytest.mark.parametrize("line", REFUSED)
def test_bad_input_is_refused_in_one_line(line, place):
    before = contents(place)
    code, out, err = call(split(line))
    assert code == 2
    assert err.startswith("jaxmbrl: ") and err.endswith("\n") and err.count("\n") == 1
    for part in REFUSED[line]:
        assert part in err
    assert "training" not in out, "what is refused must not be announced"
    assert contents(place) == before


@pytest.mark.parametrize("columns", ["20", "60", "500"])
@pytest.mark.parametrize("encoding", ["utf-8", None])
def test_messages_do_not_depend_on_the_terminal(columns, encoding, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    for line in [
        SAC + "--agent.target-entropy low",
        SAC + "--agent.learning-rte 1",
        SAC + "--agent.hidden 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 x",
        PETS + "--ensemble.propagation ts2",
        SAC + "--steps",
    ]:
        out, err = io.TextIOWrapper(io.BytesIO(), encoding or "ascii"), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            assert cli.main(split(line)) == 2
        monkeypatch.delenv("COLUMNS")
        assert err.getvalue() == call(split(line))[2]
        monkeypatch.setenv("COLUMNS", columns)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(place):
    (place / "shut").mkdir(mode=0o500)
    code, _, err = call(split(SAC + "--out shut/run"))
    assert code == 2 and "cannot be created (Permission denied)" in err


@pytest.mark.parametrize(
    "line",
    [
        SAC,
        SAC + "--steps 10_000 --seeds 2 --agent.hidden",
        "train sac --config good.yaml --seed 3",
        PETS + "--learn-reward --ensemble.no-normalize-targets --planner.cem.momentum=0.5",
        PETS + "--model true",
        SAC + "--data good.npz",
        SAC + "--data=good.npz --steps 1500",
        "train sac --config good.yaml --data good.npz",
    ],
)
def test_what_is_right_begins(line, place):
    with pytest.raises(Began):
        call(split(line + f" --out began-{abs(hash(line))}"))


def test_options_reach_the_run(place):
    with pytest.raises(Began):
        call(split("train sac --config good.yaml --seed 3 --agent.hidden 8 9 --out chosen"))
    saved = yaml.safe_load((place / "chosen" / "config.yaml").read_text())
    expected = yaml.safe_load((place / "good.yaml").read_text())
    expected["seed"], expected["settings"]["agent"]["hidden"] = 3, [8, 9]
    assert saved == expected


def test_runs_get_folders_of_their_own(place):
    for number in (1, 2):
        with pytest.raises(Began):
            call(split(SAC))
        assert (place / "runs" / f"sac-pendulum-{number}" / "config.yaml").is_file()


LIKELY = (
    "--env --steps --seeds --agent.hidden --agent.learning-rate --num-envs --resume --config --preset --out --no-x "
    "--steps=3 -h -1 0 1e9 nan '' -- = - --= pendulum sac pets None True [1] good.yaml run-good"
)
words = st.one_of(
    st.sampled_from(split(LIKELY)),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8),
    st.integers().map(str),
    st.floats().map(str),
)


RESUME, EVALUATE = ["train", "--resume", "run-good"], ["evaluate", "run-good"]
DATA = [
    ["fit", "--data", "one-row.npz"],
    ["collect", "--policy", "run-good", "--out", "new"],
    split(SAC + "--data good.npz"),
]
STARTS = [split(SAC), split(PETS), ["train"], RESUME, EVALUATE, [], *DATA]


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(STARTS),
    st.lists(st.tuples(st.integers(0, 8), words), min_size=1, max_size=4),
)
@example(split(SAC), [(8, "a\nb")])
@example(split(SAC), [(8, "--out"), (9, "a\nb"), (10, "\r")])
@example(["evaluate"], [(1, "x" * 300)])
def test_no_words_end_in_a_traceback(start, inserted):
    line = list(start)
    for at, word in inserted:
        line.insert(at, word)
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.main(line)
    except Began:
        return
    assert code in (0, 2)
    assert (err.getvalue().count("\n"), len(err.getvalue().splitlines())) == ((1, 1) if code else (0, 0))
    assert "Traceback" not in err.getvalue()


def test_the_last_line_of_a_run_has_the_newest_evaluation_beside_the_returns_of_training():
    rows = [
        {"epoch": 1, "seed": 0},
        *({"epoch": 2, "seed": seed, "train/return": 10.0 * seed} for seed in (0, 1)),
        *({"epoch": 3, "seed": seed, "train/return": 20.0 + seed, "eval/return": 50.0 + seed} for seed in (0, 1)),
        {"epoch": 4, "seed": 0, "train/return": 30.0},
    ]
    training_alone = "return of the first finished episodes 5.0, of the last 20.5 (mean over seeds)"
    assert training.described_returns(rows[:1]) is None
    alone = [{name: value for name, value in row.items() if name != "eval/return"} for row in rows[:5]]
    assert training.described_returns(alone) == training_alone
    expected = (
        "return of the first finished episodes 5.0, of the last 30.0, of the newest evaluation 50.5 (mean over seeds)"
    )
    assert training.described_returns(rows) == expected


@pytest.mark.parametrize("line", ["", "-h", "--help", "help", "train --help", "train -h", "--no-compile-cache"])
def test_usage(line):
    code, out, err = call(line.split())
    assert code == 0 and not err
    commands = (
        "train ALGORITHM --env TASK",
        "train --resume RUN",
        "evaluate RUN",
        "export RUN",
        "debug RUN",
        "collect",
        "fit",
        "sweep",
        "status",
        "list",
        "doctor",
    )
    for command in commands:
        assert command in out


@pytest.mark.parametrize("name", algorithms.METHODS)
@pytest.mark.parametrize("env", [[], ["--env", "pendulum"]])
def test_help_of_an_algorithm_tells_every_field(name, env):
    code, out, err = call(["train", name, *env, "--help"])
    assert code == 0 and not err

    def options(values, prefix):
        for field, value in values.items():
            yield from options(value, f"{prefix}{field}.") if isinstance(value, dict) else [prefix + field]

    settings = to_dict(programs.configure(name, "pendulum").settings)
    listed = set(re.findall(r"--[\w.-]+", out))
    for option in options(settings, "--"):
        assert option.replace("_", "-") in listed
    assert {"--env", "--preset", "--config", "--out", "--steps", "--seeds", "--seed"} <= listed
    assert "{None}" not in out.split("options")[1]


HELPED = [
    "evaluate --help",
    "debug --help",
    "export --help",
    "list --help",
    "collect --help",
    "fit --help",
    "doctor -h",
    "sweep -h",
    "status --help",
]


@pytest.mark.parametrize("line", [*HELPED, "train --resume --help", "train --resume x -h"])
def test_help_of_the_other_commands(line):
    code, out, err = call(line.split())
    assert code == 0 and not err and out.startswith("usage: jaxmbrl " + line.split()[0])


def test_list_names_everything():
    code, out, err = call(["list"])
    assert code == 0 and not err
    for name in envs.names():
        assert f"    {name}\n" in out
    for name, method in algorithms.METHODS.items():
        assert re.search(rf"^    {name} +{re.escape(method.summary)}$", out, re.MULTILINE)
        assert f"\n  {method.family}\n" in out
    assert max(map(len, out.splitlines()[:-1])) <= 124


@pytest.mark.parametrize("name", algorithms.METHODS)
def test_list_tells_the_presets_of_a_method(name):
    code, out, err = call(["list", name])
    assert code == 0 and not err and "tasks" not in out.splitlines()
    method = algorithms.get(name)
    assert method.paper in out and method.summary in out
    for preset, entry in method.presets.items():
        assert f"{name} --preset {preset}  ({entry.steps:,} steps" in out
        assert entry.source in " ".join(out.split())


def test_list_of_a_family():
    code, out, err = call(["list", "model-free"])
    assert code == 0 and not err
    assert re.findall(r"^  ([\w-]+) ", out, re.MULTILINE) == [
        "redq",
        "droq",
        "sac",
        "recurrent-sac",
        "td3",
        "ddpg",
        "mpo",
        "drq-v2",
        "dqn",
        "qt-opt",
        "naf",
        "bc",
    ]
    classic = [name for name in envs.names() if envs.family(name) == "classic"]
    assert call(["list", "classic"])[1].split() == ["tasks", "classic", *classic]
    of_suite = [name for name in envs.names() if name.startswith("dmc/")]
    assert sorted(call(["list", "dmc"])[1].split()) == sorted(["tasks", "dmc", "mujoco", *of_suite])


def test_list_for_programs():
    code, out, err = call(["list", "--json"])
    assert code == 0 and not err
    found = json.loads(out)
    assert [entry["name"] for entry in found["algorithms"]] == list(algorithms.METHODS)
    for entry in found["algorithms"]:
        method = algorithms.get(entry["name"])
        assert (entry["family"], entry["paper"], entry["summary"]) == (method.family, method.paper, method.summary)
        presets = {of["name"]: (of["source"], of["steps"], tuple(of["tasks"])) for of in entry["presets"]}
        assert presets == {key: tuple(of[1:]) for key, of in method.presets.items()}
    families = {entry["name"]: entry["family"] for entry in found["tasks"]}
    prefixes = ("brax", "bsuite", "gymnasium", "kicked", "masked", "pixels", "playground", "repeated", "stacked")
    assert set(families) == {*envs.names(), *(f"{prefix}/NAME" for prefix in prefixes)}
    assert (families["pendulum"], families["Hopper-v5"]) == ("classic", "mujoco")
    assert [entry["name"] for entry in json.loads(call(["list", "dyna", "--json"])[1])["algorithms"]] == [
        "mbpo",
        "bmpo",
        "ampo",
        "mopo",
    ]


def test_presets_of_ones_own(place, monkeypatch):
    """A file of one preset, and one of several with names, extend those of the method."""
    monkeypatch.setitem(algorithms.METHODS, "sac", algorithms.get("sac"))
    (place / "mine.yaml").write_text("extends: pendulum\nsettings: {agent: {hidden: [8, 9]}}\n")
    (place / "many.yaml").write_text("a: {steps: 4000, tasks: [reacher-2d]}\nb: {extends: a, settings: {num_envs: 2}}\n")
    begun = {
        "--env pendulum --config mine.yaml": ("mine", 20_000, [8, 9], 1),
        "--env reacher-2d --config many.yaml": ("a", 4000, [256, 256], 1),
        "--env reacher-2d --config many.yaml --preset b --agent.hidden 7": ("b", 4000, [7], 2),
    }
    for number, (words, expected) in enumerate(begun.items()):
        with pytest.raises(Began):
            call(split(f"train sac {words} --out own-{number}"))
        saved = yaml.safe_load((place / f"own-{number}" / "config.yaml").read_text())
        settings = saved["settings"]
        assert (saved["preset"], saved["steps"], settings["agent"]["hidden"], settings["num_envs"]) == expected
        assert programs.parse(saved).preset == expected[0]


def test_version():
    assert call(["--version"]) == (0, f"{jaxmbrl.__version__}\n", "")


def test_a_reader_that_leaves_is_no_error():
    code = "import sys; from jaxmbrl.cli import main; sys.exit(main(['list']))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(60) == 141 and err == b""


def shell(line, folder, **variables):
    """Exit code, standard output and standard error of a line for a shell, where `jaxmbrl` is the command."""
    line = line.replace("jaxmbrl", f"'{sys.executable}' -m jaxmbrl")
    done = subprocess.run(
        line, shell=True, cwd=folder, env=os.environ | variables, capture_output=True, timeout=60, check=False
    )
    return done.returncode, done.stdout, done.stderr.decode(errors="surrogateescape")


def test_streams_that_are_closed_or_full_are_no_error(tmp_path):
    """Also the files of a run must not take the places of the streams."""
    assert shell("jaxmbrl --version <&- >&- 2>&-", tmp_path) == (0, b"", "")
    # Python's own standard error is None, and nothing is lost.
    assert shell("jaxmbrl nonsense 2>&-", tmp_path)[0] == 2
    assert shell("jaxmbrl --version >/dev/full", tmp_path) == (1, b"", "jaxmbrl: output: No space left on device\n")


def test_a_locale_without_umlauts_prints_what_was_given(tmp_path):
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    code, out, err = shell("jaxmbrl Läufe", tmp_path, **ascii_only)
    assert (code, out) == (2, b"") and err.startswith("jaxmbrl: unknown command 'Läufe'; there is: ")


def test_text_that_an_encoding_lacks_is_replaced():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", write_through=True)
    with contextlib.redirect_stdout(stream):
        assert cli.main(["--version"]) == 0
        # The second is how Python reads the byte E4 in the name of a file.
        print("Läufe l\udce4ufe")
    assert raw.getvalue().splitlines()[-1] == b"L?ufe l\xe4ufe"


def test_what_jax_does_not_understand_is_told_in_a_line(tmp_path):
    code, out, err = shell("jaxmbrl fit", tmp_path, JAX_ENABLE_X64="perhaps")
    assert (code, out) == (2, b"") and err.count("\n") == 1
    assert err.startswith(
        "jaxmbrl: JAX cannot be imported (invalid truth value 'perhaps' for environment 'JAX_ENABLE_X64')"
    )


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"XDG_CACHE_HOME": "~/cache"}, "home/cache/jaxmbrl/compiled"),
        ({"XDG_CACHE_HOME": "cache"}, "home/.cache/jaxmbrl/compiled"),
        ({"XDG_CACHE_HOME": ""}, "home/.cache/jaxmbrl/compiled"),
    ],
)
def test_the_folder_of_the_cache_is_found(variables, expected, tmp_path, monkeypatch):
    """The XDG specification ignores paths that are not absolute."""
    for name, value in {"HOME": str(tmp_path / "home"), **variables}.items():
        monkeypatch.setenv(name, value)
    before = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        call(["fit", "--help"])
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / expected)
        jax.config.update("jax_compilation_cache_dir", "~/own")
        assert call(["fit", "--help"])[2] == "" and jax.config.jax_compilation_cache_dir == str(tmp_path / "home" / "own")
        (tmp_path / "home" / "file").touch()
        jax.config.update("jax_compilation_cache_dir", "~/file/x")
        _, _, err = call(["fit", "--help"])
        told = f"jaxmbrl: compiled programs are not cached: {tmp_path}/home/file/x cannot be written to (Not a directory)\n"
        assert err == told and jax.config.jax_compilation_cache_dir is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_a_cache_that_cannot_be_made_is_reported_once(place):
    code, out, err = call(["debug", "--help"])
    assert not err
    environment = {**os.environ, "XDG_CACHE_HOME": str(Path(place) / "file")}
    command = [sys.executable, "-m", "jaxmbrl", "debug", "--help"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (code, out)
    assert done.stderr.startswith("jaxmbrl: compiled programs are not cached") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("called", "named"),
    [
        ("mine.py", "python mine.py"),
        ("/somewhere/mine.py", "python /somewhere/mine.py"),
        (str(Path(jaxmbrl.__file__).with_name("__main__.py")), "jaxmbrl"),
        ("/no/such/folder/jaxmbrl", "/no/such/folder/jaxmbrl"),
        ("pytest", "jaxmbrl"),
    ],
)
def test_what_to_type_next_is_what_was_typed(called, named, monkeypatch):
    """A script of one's own knows the tasks and methods that it registers, the plain command does not."""
    monkeypatch.setattr("sys.argv", [called, "train"])
    calling.with_words(["train"])
    assert calling.again() == named
