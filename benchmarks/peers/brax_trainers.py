"""The worker of `benchmarks/peers.py` that measures Brax's own trainers."""

from __future__ import annotations

import importlib.metadata
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from conversation import Answer, converse

from jaxmbrl.envs.bridges.brax_playground import brax_task


def prepare() -> None:
    """Restore what Brax needs of JAX."""
    if not hasattr(jax, "device_put_replicated"):
        # Brax 0.14.2 calls this function, which JAX 0.10 removed.
        jax.device_put_replicated = lambda tree, devices: jax.tree.map(lambda x: jnp.stack([x] * len(devices)), tree)


def reporting(
    answer: Answer, chunk: int, updates_per_step: float | None = None, skipped: int = 0, returns: bool = False
) -> Callable[[int, dict[str, Any]], None]:
    """Brax's function of progress, which answers with the results of each chunk of environment steps but the first
    `skipped` ones, with `returns` also with those of its evaluation after the chunk."""
    so_far = 0.0
    versions = {name: importlib.metadata.version(name) for name in ("brax", "jax", "flax", "optax")}

    def progress(steps: int, metrics: dict[str, Any]) -> None:
        nonlocal so_far
        if "training/sps" not in metrics:
            answer({"versions": versions})
            return
        if steps <= skipped * chunk:
            return
        rate = float(metrics["training/sps"])
        updates = {} if updates_per_step is None else {"updates a second": rate * updates_per_step}
        so_far += chunk / rate
        judged = (
            {
                "return": float(metrics["eval/episode_reward"]),
                "seconds so far": so_far,
                "environment steps so far": int(steps),
            }
            if returns
            else {}
        )
        answer({"seconds": chunk / rate, **updates, "environment steps a second": rate, **judged})

    return progress


def sac(settings: dict[str, Any], answer: Answer) -> None:
    from brax.training.agents.sac import networks, train

    prepare()
    env = brax_task(f"{settings['task']}:{settings['backend']}").env
    chunk = settings["calls"] * settings["num_envs"]

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
        progress_fn=reporting(answer, chunk, settings["updates_per_step"]),
    )


def ppo(settings: dict[str, Any], answer: Answer) -> None:
    from brax.training.agents.ppo import networks, train

    prepare()
    env = brax_task(f"{settings['task']}:{settings['backend']}").env
    chunk = settings["calls"] * settings["num_envs"] * settings["collect_steps"]
    units, orthogonal = (settings["units"],) * 2, jax.nn.initializers.orthogonal

    def make_networks(*sizes: Any, **named: Any) -> networks.PPONetworks:
        return networks.make_ppo_networks(
            *sizes,
            policy_hidden_layer_sizes=units,
            value_hidden_layer_sizes=units,
            activation=jnp.tanh,
            distribution_type="normal",
            noise_std_type="log",
            policy_network_kernel_init_fn=orthogonal,
            policy_network_kernel_init_kwargs={"scale": 2**0.5},
            mean_kernel_init_fn=orthogonal,
            mean_kernel_init_kwargs={"scale": 0.01},
            value_network_kernel_init_fn=orthogonal,
            value_network_kernel_init_kwargs={"scale": 2**0.5},
            **named,
        )

    # Brax compiles in each of its first two calls.
    calls = settings["most_calls"] + 1
    train.train(
        environment=env,
        num_timesteps=calls * chunk,
        episode_length=1000,
        num_envs=settings["num_envs"],
        num_eval_envs=settings["episodes"],
        deterministic_eval=True,
        num_evals=calls + 1,
        learning_rate=settings["learning_rate"],
        discounting=settings["discount"],
        gae_lambda=0.95,
        entropy_cost=0.0,
        unroll_length=settings["collect_steps"],
        batch_size=settings["num_envs"] // settings["minibatches"],
        num_minibatches=settings["minibatches"],
        num_updates_per_batch=settings["epochs"],
        clipping_epsilon=0.2,
        max_grad_norm=0.5,
        normalize_observations=True,
        network_factory=make_networks,
        progress_fn=reporting(answer, chunk, skipped=1, returns=True),
    )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    converse({"brax-sac": sac, "brax-ppo": ppo})
