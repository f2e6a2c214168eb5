"""Speed and accuracy compared with other packages: mbrl-lib (PyTorch) and dreamerv3 (DreamerV3 of 2023), each in its own
virtual environment, the trainers of Brax, and TD-MPC2's own code (PyTorch), if a checkout of it is given.

    make bench-peers [PEERS="--full --out benchmarks/results/peers-cpu.json"]
    python benchmarks/peers.py [--cases plan-cartpole ...] [--full] [--tiny] [--python .venv-peers/bin/python]
                               [--dreamer-python .venv-peers-dreamer/bin/python] [--tdmpc2 CHECKOUT] [--out results.json]

Ours and theirs run in two processes on the CPU. Each is set up once; then they measure alternately, so that a noisy machine
affects both equally. While one measures, the other waits, so that each has all cores. The first call of each, in which ours
compiles, is reported separately. Results are medians, and the speedup is the median over the pairs of measurements.

PyTorch uses as many threads as there are cores, or OMP_NUM_THREADS. They synchronise at every operation, so if other work
occupies a core, PyTorch becomes far too slow. On a busy machine, give both sides a single core (`taskset -c 0`).
By default this takes ten minutes on two idle cores. `--full` runs more cases and calls, and PETS until its goal, and takes
about an hour. `--tiny` only checks that everything runs; its results are meaningless.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from measure import keep, provenance

from jaxmbrl import envs
from jaxmbrl.agents.exploration import uniform
from jaxmbrl.training.collecting import collect

HERE = Path(__file__).parent / "peers"
WORKERS = {
    "mbrl-lib": ("theirs.py", "python"),
    "dreamerv3": ("dreamer.py", "dreamer_python"),
    "tdmpc2": ("td_mpc2.py", "python"),
    "brax": ("brax_trainers.py", ""),
}
"""Package -> (its worker, the option that names its Python, or nothing for ours)."""
PAUSE = 0.5
"""Pause in seconds between two measurements, in which the threads of the first one become idle."""

BUSY = 0.5
"""Load average above which other work disturbs the measurements."""

Figures = dict[str, Any]


class Case(NamedTuple):
    """One measurement, done on both sides."""

    about: str
    kind: str
    """Its name in the workers."""
    settings: dict[str, Any]
    tiny: dict[str, Any]
    """Settings that differ with `--tiny`."""
    calls: int
    full_calls: int
    differs: tuple[str, ...] = ()
    """Differences between the two sides."""
    peer: str = "mbrl-lib"
    figure: str = "seconds"
    """The result that is compared in each pair."""
    first_apart: bool = True
    """Whether the first call is a warm-up. If not, `calls` are the stages of one run."""
    only_full: bool = False
    course: str = ""
    """A result that is also printed for each pair, beside the seconds of training so far."""


NETWORK = {"members": 7, "elites": 5, "layers": 4, "units": 200, "precision": "default"}
PLAN_DIFFERS = (
    "members: mbrl-lib permutes all rows over the elites at each step and back, ours shifts them cyclically",
    "a candidate that is not finite: mbrl-lib gives it a return of nearly 0, ours ranks it last",
    "noise: mbrl-lib draws it for each candidate, ours once for all candidates of an iteration",
)
FIT_DIFFERS = (
    "bounds of the log-variance: mbrl-lib's are fixed at -10 and 0.5 (its preset), ours start there and are learned with "
    "weight 0.01; so mbrl-lib cannot predict a deviation above 1.3, and fits targets that vary more by their squares",
    "weight decay: mbrl-lib applies it to biases too, ours to kernels only",
    "inputs are normalised on both sides, by mbrl-lib in float64; the buffer's rows are float64 there, float32 here",
    "mbrl-lib without its evaluation on all training data after each epoch, which is part of its presets",
)
FIT = NETWORK | {
    "rows": 10_000,
    "test_rows": 2_000,
    "batch_size": 256,
    "epochs": 25,
    "learning_rate": 2.8e-4,
    "weight_decay": 1e-4,
    "normalize_targets": False,
}
TINY_FIT = {"units": 16, "rows": 1_000, "test_rows": 200, "epochs": 2}
MBPO = NETWORK | {
    "warmup": 5_000,
    "refit_every": 250,
    "capacity": 20_000,
    "learning_rate": 1e-3,
    "weight_decay": 1e-5,
    "batch_size": 256,
    "holdout": 0.2,
    "patience": 5,
    "epochs": None,
    "rollouts_per_step": 400,
    "updates_per_step": 10,
    "agent_units": 256,
    "agent_learning_rate": 3e-4,
    "agent_batch_size": 256,
    "target_entropy": -1.0,
}
TINY_MBPO = {"warmup": 500, "units": 16, "agent_units": 16, "updates_per_step": 1, "rollouts_per_step": 10}
MBPO_DIFFERS = (
    "bounds of the log-variance and weight decay as in fit",
    "physics: mbrl-lib's is C MuJoCo, ours MJX in the compiled program",
    "mbrl-lib acts with the mean of its policy, ours samples from it",
    "mbrl-lib without its evaluation after each round, but with saving model and data after each fit",
    "mbrl-lib keeps the weights of all members from the best epoch of any, ours those from each member's own best epoch",
    "random initial steps; mbrl-lib's preset takes them with an untrained policy",
)
DREAMER = {
    "task": "HalfCheetah-v5",
    "observation": 17,
    "action": 6,
    "deter": 512,
    "hidden": 512,
    "groups": 32,
    "classes": 32,
    "units": 512,
    "head_layers": 2,
    "coder_units": 512,
    "coder_layers": 2,
    "agent_units": 512,
    "agent_layers": 2,
    "bins": 255,
    "batch_size": 16,
    "positions": 64,
    "horizon": 15,
    "discount": 0.997,
    "learning_rate": 1e-4,
    "updates": 1,
    "rows": 5_000,
    "steps": 200,
}
DREAMER_1M = DREAMER | {
    "hidden": 64,
    "classes": 4,
    "units": 64,
    "head_layers": 1,
    "coder_units": 64,
    "coder_layers": 3,
    "agent_units": 64,
    "agent_layers": 3,
    "updates": 4,
}
DREAMER_SMALL = DREAMER | {
    "task": "pendulum",
    "observation": 3,
    "action": 1,
    "deter": 64,
    "hidden": 32,
    "groups": 8,
    "classes": 16,
    "units": 64,
    "head_layers": 1,
    "coder_units": 64,
    "coder_layers": 1,
    "agent_units": 64,
    "bins": 63,
    "batch_size": 8,
    "positions": 16,
    "horizon": 10,
    "discount": 0.98,
    "learning_rate": 1e-3,
    "updates": 20,
}
TINY_DREAMER = {
    "deter": 8,
    "hidden": 8,
    "groups": 2,
    "classes": 4,
    "units": 8,
    "coder_units": 8,
    "agent_units": 8,
    "bins": 5,
    "batch_size": 2,
    "positions": 4,
    "horizon": 2,
    "updates": 2,
    "rows": 50,
    "steps": 3,
}
DREAMER_NORMS = (
    "norms: dreamerv3 has layer norms, also in its recurrent unit, ours norms of the root mean square and a recurrent unit "
    "without norm; biases differ accordingly",
    "an empty belief: dreamerv3 learns its recurrent part, ours is zeros",
)
DREAMER_DIFFERS = (
    *DREAMER_NORMS,
    "dreamerv3 takes a step on the model, then imagines with the new model and takes a step on the actor, then on the "
    "critic, with three gradients; ours takes one gradient of all losses",
    "dreamerv3 computes the prior in the loop over a window, and a sample of it, ours for all positions afterwards",
    "dreamerv3 computes statistics of distributions, losses and gradients in each update, with samples of 1,024 of their "
    "values; ours computes means of losses and norms of gradients",
    "dreamerv3 is called once an update with a batch that is on the device, and copies all parameters; ours is one "
    "compiled loop over the updates of a measurement, which samples windows from the buffer and updates in place",
    "rewards and values: dreamerv3 takes the mean of the bins' logarithms, ours of the bins",
)
TD_MPC2 = {
    "task": "HalfCheetah-v5",
    "observation": 17,
    "action": 6,
    "episode_length": 1000,
    "size": 512,
    "units": 512,
    "coder_units": 256,
    "critics": 5,
    "bins": 101,
    "population": 488,
    "proposals": 24,
    "best": 64,
    "iterations": 6,
    "horizon": 3,
    "batch_size": 256,
    "rows": 5_000,
    "updates": 2,
    "plans": 2,
}
TD_MPC2_SMALL = TD_MPC2 | {
    "task": "pendulum",
    "observation": 3,
    "action": 1,
    "episode_length": 200,
    "size": 64,
    "units": 64,
    "coder_units": 64,
    "critics": 2,
    "population": 120,
    "proposals": 8,
    "best": 16,
    "iterations": 3,
    "batch_size": 128,
    "updates": 20,
    "plans": 20,
}
TINY_TD_MPC2 = {
    "size": 8,
    "units": 8,
    "coder_units": 8,
    "bins": 5,
    "population": 8,
    "proposals": 2,
    "best": 4,
    "iterations": 2,
    "batch_size": 2,
    "rows": 20,
    "updates": 2,
    "plans": 2,
}
TD_MPC2_DIFFERS = (
    "tdmpc2 without torch.compile, which is written for CUDA graphs there",
    "dropout: tdmpc2's is in the first hidden layer of a Q-function, ours in both",
    "tdmpc2 is called once an update, with a batch that is given; ours is one compiled loop over the updates of a "
    "measurement, which samples windows from the buffer",
    "steps after the end of an episode: ours gives them no weight, which costs a product",
)
TD_MPC2_PLANS = ("terminal value: tdmpc2's is the mean of two Q-functions, of which it computes all, ours of all",)
DREAMER_ACTS = "dreamerv3 also computes the prior and moves the belief to the host and back at each step"
CASES = {
    "plan-cartpole": Case(
        "one plan at mbrl-lib's preset of cartpole: 350 candidates x 20 particles x 15 steps x 5 iterations, "
        "5 of 7 members, 4 x 200, reward and termination known",
        "plan",
        NETWORK
        | {
            "task": "cartpole-continuous",
            "preset": "pets_cartpole",
            "observation": 4,
            "action": 1,
            "reward": "cartpole",
            "termination": "cartpole",
            "population": 350,
            "particles": 20,
            "horizon": 15,
            "iterations": 5,
            "best": 35,
            "momentum": 0.1,
        },
        {"population": 50, "best": 5, "units": 16},
        calls=9,
        full_calls=25,
        differs=PLAN_DIFFERS,
    ),
    "plan-halfcheetah": Case(
        "one plan at mbrl-lib's preset of PETS's half-cheetah: 400 x 20 x 30 x 5, 5 of 7 members, 4 x 200, reward known",
        "plan",
        NETWORK
        | {
            "task": "pets/HalfCheetah",
            "preset": "pets_halfcheetah",
            "observation": 18,
            "action": 6,
            "reward": "halfcheetah",
            "termination": "no_termination",
            "population": 400,
            "particles": 20,
            "horizon": 30,
            "iterations": 5,
            "best": 64,
            "momentum": 0.12,
        },
        {"population": 50, "best": 8, "units": 16},
        calls=7,
        full_calls=15,
        differs=PLAN_DIFFERS,
    ),
    "fit": Case(
        "a fit of 7 members, 4 x 200, batch 256, to 10,000 rows of HalfCheetah-v5 under random actions, 25 epochs, "
        "evaluated on 2,000 rows in the targets' own units; targets are not normalised on either side",
        "fit",
        FIT,
        TINY_FIT,
        calls=3,
        full_calls=5,
        differs=FIT_DIFFERS,
    ),
    "fit-normalised": Case(
        "the same with our default, which normalises targets too",
        "fit",
        FIT | {"normalize_targets": True},
        TINY_FIT,
        calls=1,
        full_calls=5,
        differs=(*FIT_DIFFERS, "targets: mbrl-lib does not normalise them, ours does"),
        only_full=True,
    ),
    "sac": Case(
        "500 updates of SAC: 17 observations, 6 actions, 2 x 256, batch 256 from 100,000 rows",
        "sac",
        {
            "observation": 17,
            "action": 6,
            "units": 256,
            "batch_size": 256,
            "precision": "default",
            "rows": 100_000,
            "updates": 500,
            "learning_rate": 3e-4,
        },
        {"units": 16, "rows": 1_000, "updates": 20},
        calls=7,
        full_calls=15,
        differs=("ours is one compiled scan over the updates, sampling included; mbrl-lib samples with NumPy",),
    ),
    "mbpo": Case(
        "MBPO on InvertedPendulum at mbrl-lib's preset, by rounds of a fit, 100,000 imagined rows and 250 steps with 10 "
        "updates each, after 5,000 random steps",
        "mbpo",
        MBPO,
        TINY_MBPO,
        calls=3,
        full_calls=20,
        differs=("each fit ends by its own holdout error: see the updates of the model, and mbpo-fixed", *MBPO_DIFFERS),
        first_apart=False,
    ),
    "mbpo-fixed": Case(
        "the same with 20 epochs in each fit on both sides, so that the work is equal",
        "mbpo",
        MBPO | {"epochs": 20},
        TINY_MBPO | {"epochs": 2},
        calls=3,
        full_calls=10,
        differs=MBPO_DIFFERS,
        first_apart=False,
        only_full=True,
    ),
    "brax-sac": Case(
        "the training loop of Brax's SAC and of ours on Brax's inverted_pendulum (spring), 16 environments, an update a "
        "step, 2 x 256, batch 256",
        "brax-sac",
        {
            "task": "inverted_pendulum",
            "backend": "spring",
            "num_envs": 16,
            "updates_per_step": 1,
            "units": 256,
            "batch_size": 256,
            "learning_rate": 3e-4,
            "warmup": 1_600,
            "capacity": 100_000,
            "calls": 50,
        },
        {"units": 16, "warmup": 160, "calls": 2},
        calls=5,
        full_calls=15,
        differs=(
            "Brax draws the batches of all updates of a step at once, ours one after another",
            "Brax's actor and temperature are updated from the critics before their update, ours from those after it",
            "Brax resets to states drawn at the start, ours to new ones; ours also counts episodes and checks for what is "
            "not finite, Brax's keeps the observations' moments; its evaluation is not counted",
        ),
        peer="brax",
    ),
    "brax-ppo": Case(
        "the training loop of Brax's PPO and of ours on Brax's inverted_pendulum (spring), 64 environments x 32 steps, "
        "4 epochs of 4 minibatches, 2 x 64; after each call, the mean return of 16 episodes of the mean actions",
        "brax-ppo",
        {
            "task": "inverted_pendulum",
            "backend": "spring",
            "num_envs": 64,
            "collect_steps": 32,
            "epochs": 4,
            "minibatches": 4,
            "units": 64,
            "learning_rate": 3e-4,
            "discount": 0.95,
            "episodes": 16,
            "calls": 50,
        },
        {"num_envs": 8, "collect_steps": 8, "episodes": 2, "calls": 2},
        calls=10,
        full_calls=20,
        differs=(
            "Brax shuffles whole trajectories and computes advantages anew in each minibatch, ours shuffles rows and "
            "computes them once",
            "Brax updates the statistics of observations before the update, ours after it; Adam's epsilon is 1e-8 there, "
            "1e-5 here; the first weights of the value function's last layer have a gain of sqrt(2) there, 1 here",
            "Brax resets to states drawn at the start, ours to new ones; ours also counts episodes and checks for what is "
            "not finite; evaluations are not counted on either side",
        ),
        peer="brax",
        course="return",
    ),
    "dreamer-small": Case(
        "20 updates of Dreamer at the widths of our preset `small`: 3 observations, 1 action, 64 recurrent numbers, 8 "
        "latents of 16 classes, 8 windows of 16 positions, 10 steps from each position",
        "dreamer",
        DREAMER_SMALL,
        TINY_DREAMER,
        calls=9,
        full_calls=25,
        differs=DREAMER_DIFFERS,
        peer="dreamerv3",
        figure="CPU seconds",
    ),
    "dreamer-1m": Case(
        "4 updates of Dreamer at the widths of `size1m`: 17 observations, 6 actions, 512 recurrent numbers, 32 latents of "
        "4 classes, layers of 64, 16 windows of 64 positions, 15 steps from each position",
        "dreamer",
        DREAMER_1M,
        TINY_DREAMER,
        calls=5,
        full_calls=15,
        differs=DREAMER_DIFFERS,
        peer="dreamerv3",
        figure="CPU seconds",
    ),
    "dreamer": Case(
        "an update of Dreamer at dreamerv3's preset for proprioceptive tasks: 17 observations, 6 actions, 512 recurrent "
        "numbers, 32 latents of 32 classes, layers of 512, 16 windows of 64 positions, 15 steps from each position",
        "dreamer",
        DREAMER,
        TINY_DREAMER,
        calls=5,
        full_calls=9,
        differs=DREAMER_DIFFERS,
        peer="dreamerv3",
        figure="CPU seconds",
    ),
    "dreamer-act-small": Case(
        "200 actions of Dreamer with its belief in one environment, which runs in Python, at the sizes of dreamer-small",
        "dreamer-act",
        DREAMER_SMALL,
        TINY_DREAMER,
        calls=9,
        full_calls=25,
        differs=(*DREAMER_NORMS, DREAMER_ACTS),
        peer="dreamerv3",
        figure="CPU seconds",
    ),
    "dreamer-act": Case(
        "the same at the sizes of dreamer",
        "dreamer-act",
        DREAMER,
        TINY_DREAMER,
        calls=9,
        full_calls=25,
        differs=(*DREAMER_NORMS, DREAMER_ACTS),
        peer="dreamerv3",
        figure="CPU seconds",
    ),
    "td-mpc2-small": Case(
        "20 updates of TD-MPC2 at our preset `small`: 3 observations, 1 action, codes of 64, layers of 64, 2 Q-functions, "
        "128 windows of 3 rows",
        "td-mpc2",
        TD_MPC2_SMALL,
        TINY_TD_MPC2,
        calls=9,
        full_calls=25,
        differs=TD_MPC2_DIFFERS,
        peer="tdmpc2",
        figure="CPU seconds",
    ),
    "td-mpc2": Case(
        "2 updates of TD-MPC2 at its published size: 17 observations, 6 actions, codes of 512, layers of 512, 5 "
        "Q-functions, 256 windows of 3 rows",
        "td-mpc2",
        TD_MPC2,
        TINY_TD_MPC2,
        calls=9,
        full_calls=25,
        differs=TD_MPC2_DIFFERS,
        peer="tdmpc2",
        figure="CPU seconds",
    ),
    "td-mpc2-plan-small": Case(
        "20 plans of TD-MPC2 at the sizes of td-mpc2-small: 128 candidates, 8 of them of the prior, 3 steps, 3 iterations",
        "td-mpc2-plan",
        TD_MPC2_SMALL,
        TINY_TD_MPC2,
        calls=9,
        full_calls=25,
        differs=TD_MPC2_PLANS,
        peer="tdmpc2",
        figure="CPU seconds",
    ),
    "td-mpc2-plan": Case(
        "2 plans of TD-MPC2 at the sizes of td-mpc2: 512 candidates, 24 of them of the prior, 3 steps, 6 iterations",
        "td-mpc2-plan",
        TD_MPC2,
        TINY_TD_MPC2,
        calls=9,
        full_calls=25,
        differs=TD_MPC2_PLANS,
        peer="tdmpc2",
        figure="CPU seconds",
    ),
    "pets": Case(
        "PETS on cartpole-continuous from nothing to the first training trial that returns 195, each at its own preset: "
        "mbrl-lib's with one seed, ours `small` with several in one program",
        "pets",
        NETWORK | {"goal": 195.0, "steps": 5_000, "seeds": 5, "seed": 0},
        {
            "goal": 10.0,
            "steps": 400,
            "seeds": 2,
            "units": 16,
            "ours": {"planner.cem.population": 20, "planner.cem.elites": 5, "ensemble.max_epochs": 2},
            "theirs": {"cem_population_size": 50, "num_epochs_train_model": 2},
        },
        calls=1,
        full_calls=1,
        differs=(
            "the presets: mbrl-lib's plans 350 x 20 x 15 x 5 with 5 of 7 members of 4 x 200, ours 100 x 10 x 20 x 4 with 5 "
            "members of 3 x 64",
            "seconds a seed are ours of all seeds, until the slowest is there, over their number",
        ),
        figure="seconds a seed",
        first_apart=False,
        only_full=True,
    ),
}


def in_bfloat16(case: Case) -> Case:
    """The case with our matrix products between hidden layers in bfloat16, and mbrl-lib's in float32."""
    return case._replace(
        about=f"{case.about}; ours with products between hidden layers in bfloat16",
        settings=case.settings | {"precision": "bfloat16"},
        differs=(*case.differs, "products between hidden layers: mbrl-lib's in float32, ours with factors in bfloat16"),
        only_full=True,
    )


CASES |= {f"{name}-bfloat16": in_bfloat16(CASES[name]) for name in ("plan-cartpole", "fit", "sac", "mbpo-fixed")}


class Worker:
    """One side of a case, in its own process."""

    def __init__(self, who: str, command: list[str], errors: Path) -> None:
        self.who, self.errors = who, errors
        paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(paths)}
        if WORKERS.get(who, ("", ""))[1]:
            del environment["PYTHONPATH"]
        try:
            with open(errors, "w") as file:
                self.process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True, env=environment
                )
        except OSError as error:
            raise SystemExit(f"{command[0]} cannot be run ({error.strerror}); make bench-peers makes it") from None
        self.begun = self._answer()

    def ask(self) -> Figures:
        """Request one more call and return its results."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            self._fail()
        return self._answer()

    def _answer(self) -> Figures:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self._fail()
        return json.loads(line)

    def _fail(self) -> None:
        code = self.process.wait()
        output = self.errors.read_text()[-4000:].strip()
        raise SystemExit(f"{self.who} ended with {code} and without an answer; it wrote:\n{output}")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for file in (self.process.stdin, self.process.stdout):
            if file is not None:
                file.close()


def make_data(settings: dict[str, Any], folder: Path) -> Path:
    """The data for a fit: shuffled rows of HalfCheetah-v5 under random actions, split into training and test rows."""
    task = envs.make("gymnasium/HalfCheetah-v5")
    rows, test_rows = settings["rows"], settings["test_rows"]
    found = collect(task, uniform(task.action), rows + test_rows)
    order = np.random.default_rng(0).permutation(rows + test_rows)
    arrays = {}
    for name in ("observation", "action", "reward", "next_observation"):
        values = np.asarray(getattr(found, name))[order]
        arrays |= {name: values[:rows], f"test_{name}": values[rows:]}
    path = folder / "data.npz"
    np.savez(path, **arrays)
    return path


def judge(predictions: Path, data: Path) -> Figures:
    """Evaluate the members' Gaussians [E, N, D] of change and reward on the test rows, in the targets' own units.

    Likelihoods are in nats per dimension. The unexplained variance is the mean over dimensions of the squared error divided
    by the variance of the target.
    """
    rows, predicted = np.load(data), np.load(predictions)
    change = rows["test_next_observation"] - rows["test_observation"]
    target = np.concatenate([change, rows["test_reward"][:, None]], axis=1).astype(np.float64)
    mean, log_variance = predicted["mean"], predicted["log_variance"]
    if mean.shape[1:] != target.shape:
        raise SystemExit(f"predictions of {mean.shape[1:]} for targets of {target.shape}")
    error = (mean.mean(axis=0) - target) ** 2
    log_density = -0.5 * ((mean - target) ** 2 * np.exp(-log_variance) + log_variance + np.log(2 * np.pi))
    of_rows = log_density.sum(axis=2)
    mixture = np.logaddexp.reduce(of_rows, axis=0) - np.log(len(mean))
    return {
        "RMSE of the mean": float(np.sqrt(error.mean())),
        "variance unexplained": float(np.mean(error.mean(axis=0) / target.var(axis=0))),
        "NLL of a member": float(-log_density.mean()),
        "NLL of the mixture": float(-mixture.mean() / target.shape[1]),
    }


def compare(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    """All results of a case."""
    settings = case.settings | (case.tiny if args.tiny else {})
    calls = (2 if case.calls > 1 else 1) if args.tiny else case.full_calls if args.full else case.calls
    script, option = WORKERS[case.peer]
    python = str(getattr(args, option)) if option else sys.executable
    workers: list[Worker] = []
    with tempfile.TemporaryDirectory() as name:
        predictions = Path(name) / "predictions.npz"
        if case.kind == "fit":
            data = make_data(settings, Path(name))
            files = {"data": str(data), "predictions": str(predictions)}

        def figures(worker: Worker) -> Figures:
            time.sleep(0 if args.tiny else PAUSE)
            found = worker.ask()
            return found | judge(predictions, data) if case.kind == "fit" else found

        given = {"source": str(args.tdmpc2)} if case.peer == "tdmpc2" else {}
        arguments = json.dumps(settings | {"most_calls": calls + 1} | (files if case.kind == "fit" else given))
        commands = {
            "jaxmbrl": [sys.executable, str(HERE / "ours.py"), case.kind, arguments],
            case.peer: [python, str(HERE / script), case.kind, arguments],
        }
        try:
            for who, command in commands.items():
                workers.append(Worker(who, command, Path(name) / f"{who}.txt"))
            first = [figures(worker) for worker in workers] if case.first_apart else []
            pairs = [[figures(worker) for worker in workers] for _ in range(calls)]
        finally:
            for worker in workers:
                worker.close()
    ratios = [theirs[case.figure] / ours[case.figure] for ours, theirs in pairs]
    ours, theirs = (worker.begun | medians(pair[i] for pair in pairs) for i, worker in enumerate(workers))
    return {
        "about": case.about,
        "peer": {"name": case.peer, **{name: theirs.pop(name) for name in ("versions", "threads") if name in theirs}},
        "settings": settings,
        "differs": case.differs,
        "jaxmbrl": ours | ({"seconds of the first call": first[0]["seconds"]} if first else {}),
        case.peer: theirs | ({"seconds of the first call": first[1]["seconds"]} if first else {}),
        "times as fast": {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)},
        "pairs": pairs,
    }


def medians(found: Iterable[Figures]) -> Figures:
    """The median of each result."""
    rows = list(found)
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def show(name: str, found: dict[str, Any], case: Case) -> None:
    """Print the results of a case."""
    ours, theirs = found["jaxmbrl"], found[case.peer]
    print(f"\n{name}: {case.about}\n  {'':<34}{'jaxmbrl':>14}{case.peer:>14}")
    for figure in [*ours, *(figure for figure in theirs if figure not in ours)]:
        cells = (f"{side[figure]:>14,.3f}" if figure in side else f"{'-':>14}" for side in (ours, theirs))
        print(f"  {figure:<34}{''.join(cells)}")
    ratio, number = found["times as fast"], len(found["pairs"])
    print(
        f"  times as fast, by {case.figure}: {ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['most']:.2f}, {number})"
    )
    if not case.first_apart and number > 1:
        print(f"  {case.figure}, stage by stage:")
        for i in (0, 1):
            stages = " ".join(f"{pair[i][case.figure]:.2f}" for pair in found["pairs"])
            print(f"    {(case.peer if i else 'jaxmbrl'):<10} {stages}")
    if case.course:
        print(f"  {case.course} after the seconds of training, call by call:")
        for i in (0, 1):
            calls = ", ".join(f"{pair[i][case.course]:,.0f} at {pair[i]['seconds so far']:.1f}" for pair in found["pairs"])
            print(f"    {(case.peer if i else 'jaxmbrl'):<10} {calls}")
    for difference in case.differs:
        print(f"  * {difference}")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=[*CASES], metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument(
        "--python", type=Path, default=Path(".venv-peers/bin/python"), help="Python with mbrl-lib and tdmpc2's packages"
    )
    parser.add_argument(
        "--dreamer-python", type=Path, default=Path(".venv-peers-dreamer/bin/python"), help="Python with dreamerv3"
    )
    parser.add_argument("--tdmpc2", type=Path, help="root of a checkout of github.com/nicklashansen/tdmpc2, for its cases")
    parser.add_argument("--out", type=Path, help="write the results here, as JSON; other cases in the file are kept")
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    load = os.getloadavg()[0]
    if load > BUSY:
        print(f"the machine is busy (load {load:.1f}): with several threads mbrl-lib's figures will be far too slow")
    possible = {name: case for name, case in CASES.items() if args.tdmpc2 is not None or case.peer != "tdmpc2"}
    names = args.cases or [name for name, case in possible.items() if args.full or args.tiny or not case.only_full]
    if missing := [name for name in names if name not in possible]:
        parser.error(f"{', '.join(missing)} needs --tdmpc2 with a checkout of github.com/nicklashansen/tdmpc2")
    sizes = [f"--{size}" for size in ("full", "tiny") if getattr(args, size)]
    for name in names:
        print(f"measuring {name} ...", flush=True)
        found = compare(CASES[name], args)
        show(name, found, CASES[name])
        if args.out is not None:
            keep(args.out, {name: found | {"load before": load, **provenance("--cases", name, *sizes)}})


if __name__ == "__main__":
    main()
