"""The worker of `benchmarks/peers.py` that measures Brax's own SAC."""

from __future__ import annotations

import importlib.metadata
import warnings
from typing import Any

import jax
import jax.numpy as jnp
from conversation import Answer, converse

from jaxmbrl.envs.bridges.brax_playground import brax_task


def sac(settings: dict[str, Any], answer: Answer) -> None:
    from brax.training.agents.sac import networks, train

    if not hasattr(jax, "device_put_replicated"):
        # Brax 0.14.2 calls this function, which JAX 0.10 removed.
        jax.device_put_replicated = lambda tree, devices: jax.tree.map(lambda x: jnp.stack([x] * len(devices)), tree)
    env = brax_task(f"{settings['task']}:{settings['backend']}").env
    chunk = settings["calls"] * settings["num_envs"]
    versions = {name: importlib.metadata.version(name) for name in ("brax", "jax", "flax", "optax")}

    def progress(steps: int, metrics: dict[str, Any]) -> None:
        if "training/sps" not in metrics:
            answer({"versions": versions})
            return
        rate = float(metrics["training/sps"])
        answer(
            {
                "seconds": chunk / rate,
                "updates a second": rate * settings["updates_per_step"],
                "environment steps a second": rate,
            }
        )

    def make_networks(*sizes: Any, **named: Any) -> networks.SACNetworks:
        return networks.make_sac_networks(*sizes, hidden_layer_sizes=(settings["units"],) * 2, **named)

    calls = settings["most_calls"]
    train.train(
        environment=env,
        num_timesteps=settings["warmup"] + calls * chunk,
        episode_length=1000,
        num_envs=settings["num_envs"],
        num_eval_envs=1,
        num_evals=calls + 1,
        learning_rate=settings["learning_rate"],
        discounting=0.99,
        batch_size=settings["batch_size"],
        min_replay_size=settings["warmup"],
        max_replay_size=settings["capacity"],
        grad_updates_per_step=settings["num_envs"] * settings["updates_per_step"],
        network_factory=make_networks,
        progress_fn=progress,
    )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    converse({"brax-sac": sac})
