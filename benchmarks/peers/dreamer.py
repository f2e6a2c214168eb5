"""The worker of `benchmarks/peers.py` that measures DreamerV3 as published in 2023 (the package `dreamerv3` 1.5.0)."""

from __future__ import annotations

import importlib.metadata
import platform
import warnings
from typing import Any

import jax
import numpy as np
from conversation import Answer, converse, timed
from jax import core
from jax.interpreters import xla

# TensorFlow Probability 0.25.0 reads this table here, from where JAX 0.7 removed it.
xla.pytype_aval_mappings = core.pytype_aval_mappings

import dreamerv3  # noqa: E402
from dreamerv3 import embodied, jaxutils  # noqa: E402

PACKAGES = ("dreamerv3", "jax", "jaxlib", "tensorflow-probability", "optax", "numpy")
BATCHES = 4
"""Different batches, used in turn."""


def made(settings: dict[str, Any]) -> Any:
    """The agent: the package's settings for proprioceptive tasks, on the CPU in float32, with the sizes of `settings`."""
    coder = {"mlp_units": settings["coder_units"], "mlp_layers": settings["coder_layers"]}
    head = {"units": settings["units"], "layers": settings["head_layers"]}
    agent = {"units": settings["agent_units"], "layers": settings["agent_layers"]}
    sizes = {
        "rssm": {
            "deter": settings["deter"],
            "units": settings["hidden"],
            "stoch": settings["groups"],
            "classes": settings["classes"],
        },
        "encoder": coder,
        "decoder": coder,
        "reward_head": head | {"bins": settings["bins"]},
        "cont_head": head,
        "actor": agent,
        "critic": agent | {"bins": settings["bins"]},
    }
    config = embodied.Config(dreamerv3.configs["defaults"]).update(dreamerv3.configs["dmc_proprio"]).update(sizes)
    config = config.update(
        {
            "jax.platform": "cpu",
            "jax.precision": "float32",
            "batch_size": settings["batch_size"],
            "batch_length": settings["positions"],
            "imag_horizon": settings["horizon"],
            "horizon": round(1 / (1 - settings["discount"])),
            "model_opt.lr": settings["learning_rate"],
        }
    )
    flags = {name: embodied.Space(bool) for name in ("is_first", "is_last", "is_terminal")}
    observation = {"vector": embodied.Space(np.float32, (settings["observation"],)), "reward": embodied.Space(np.float32)}
    action = {"action": embodied.Space(np.float32, (settings["action"],), -1, 1), "reset": embodied.Space(bool)}
    return dreamerv3.Agent(observation | flags, action, embodied.Counter(), config)


def ready() -> dict[str, Any]:
    """The first message to the driver, after `made`."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    # The package counts the parameters of model, actor and critic.
    parameters = int(sum(jaxutils.Optimizer.PARAM_COUNTS.values()))
    return {"versions": {"python": platform.python_version(), **versions}, "parameters": parameters}


def rows(settings: dict[str, Any], rng: np.random.Generator, *shape: int) -> dict[str, np.ndarray]:
    """Random rows [*shape] of an episode that does not end."""
    never = np.zeros(shape, bool)
    return {
        "vector": rng.normal(size=(*shape, settings["observation"])).astype(np.float32),
        "action": rng.uniform(-1, 1, (*shape, settings["action"])).astype(np.float32),
        "reward": rng.normal(size=shape).astype(np.float32),
        **dict.fromkeys(("is_first", "is_last", "is_terminal", "reset"), never),
    }


def update(settings: dict[str, Any], answer: Answer) -> None:
    agent, rng, number = made(settings), np.random.default_rng(0), settings["updates"]
    # Its own loop moves batches to the device in other threads, before they are needed.
    batches = [
        agent._convert_inps(rows(settings, rng, settings["batch_size"], settings["positions"]), agent.train_devices)
        for _ in range(BATCHES)
    ]
    state = None

    def run() -> None:
        nonlocal state
        for i in range(number):
            _, state, _ = agent.train(batches[i % BATCHES], state)
        jax.block_until_ready(agent.varibs)

    answer(ready())
    while True:
        answer(timed(run, number, "update"))


def act(settings: dict[str, Any], answer: Answer) -> None:
    agent, number = made(settings), settings["steps"]
    seen = rows(settings, np.random.default_rng(0), number, 1)
    steps = [{name: x[i] for name, x in seen.items() if name not in ("action", "reset")} for i in range(number)]

    def run() -> None:
        state = None
        for observation in steps:
            _, state = agent.policy(observation, state, mode="train")

    answer(ready())
    while True:
        answer(timed(run, number, "environment step"))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    converse({"dreamer": update, "dreamer-act": act})
