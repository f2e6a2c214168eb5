"""The worker of `benchmarks/peers.py` that measures TD-MPC2's own code (github.com/nicklashansen/tdmpc2).

That code is written for a GPU. It is imported from a copy in which the device is the CPU and Adam is not "capturable",
which concerns CUDA graphs only. It runs without `torch.compile`.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import yaml
from conversation import Answer, converse, timed

PACKAGES = ("torch", "tensordict", "numpy")
THREADS = int(os.environ.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0))))
CHANGES = {"cuda:0": "cpu", "capturable=True": "capturable=False"}


def made(settings: dict[str, Any]) -> Any:
    """The agent: its settings for one task with the sizes of `settings`."""
    source = Path(settings["source"]) / "tdmpc2"
    if not (source / "tdmpc2.py").is_file():
        raise SystemExit(f"{source} has no file tdmpc2.py: give the root of a checkout of nicklashansen/tdmpc2")
    folder = Path(tempfile.mkdtemp())
    shutil.copytree(source, folder, dirs_exist_ok=True)
    for path in folder.rglob("*.py"):
        text = path.read_text()
        for old, new in CHANGES.items():
            text = text.replace(old, new)
        path.write_text(text)
    sys.path.insert(0, str(folder))
    from tdmpc2 import TDMPC2

    values = yaml.safe_load((source / "config.yaml").read_text())
    values |= {
        # YAML 1.1 reads these numbers as text.
        **{name: float(values[name]) for name in ("lr", "entropy_coef")},
        "obs_shape": {"state": (settings["observation"],)},
        "action_dim": settings["action"],
        "episode_length": settings["episode_length"],
        "multitask": False,
        "task_dim": 0,
        "compile": False,
        "bin_size": (values["vmax"] - values["vmin"]) / (settings["bins"] - 1),
        "num_bins": settings["bins"],
        "enc_dim": settings["coder_units"],
        "mlp_dim": settings["units"],
        "latent_dim": settings["size"],
        "num_q": settings["critics"],
        "num_samples": settings["population"] + settings["proposals"],
        "num_pi_trajs": settings["proposals"],
        "num_elites": settings["best"],
        "iterations": settings["iterations"],
        "horizon": settings["horizon"],
        "batch_size": settings["batch_size"],
    }
    torch.manual_seed(0)
    return TDMPC2(SimpleNamespace(**values))


def ready(agent: Any) -> dict[str, Any]:
    """The first message to the driver."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "versions": {"python": platform.python_version(), **versions},
        "threads": torch.get_num_threads(),
        "parameters": agent.model.total_params,
    }


def update(settings: dict[str, Any], answer: Answer) -> None:
    agent = made(settings)
    horizon, batch = settings["horizon"], settings["batch_size"]
    observation = torch.randn(horizon + 1, batch, settings["observation"])
    action = torch.rand(horizon, batch, settings["action"]) * 2 - 1
    reward, terminated = torch.randn(horizon, batch, 1), torch.zeros(horizon, batch, 1)

    def run() -> None:
        for _ in range(settings["updates"]):
            agent._update(observation, action, reward, terminated)

    answer(ready(agent))
    while True:
        answer(timed(run, settings["updates"], "update"))


def plan(settings: dict[str, Any], answer: Answer) -> None:
    agent = made(settings)
    observations = torch.randn(settings["plans"], settings["observation"])

    def run() -> None:
        for observation in observations:
            agent.act(observation).numpy()

    answer(ready(agent))
    while True:
        answer(timed(run, settings["plans"], "plan"))


if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    converse({"td-mpc2": update, "td-mpc2-plan": plan})
