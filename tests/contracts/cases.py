"""The registered methods at a tiny size, on a pendulum whose episodes end by time and before it."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from jaxmbrl import algorithms
from jaxmbrl.algorithms.registry import TINY_RUN
from jaxmbrl.envs.classic.pendulum import Pendulum
from jaxmbrl.training import programs

CAPACITY = TINY_RUN["replay_capacity"]
"""A length that nothing but a replay buffer has."""
SEEDS = 2
EPOCH = TINY_RUN["epoch_steps"]
TINY = {name: dict(method.tiny) for name, method in algorithms.METHODS.items()}
"""Changes to each method's default preset that make it small."""


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "mbpo, MACURA, known reward": (
        "mbpo",
        {"trust.rule": "macura", "learn_reward": False, "ensemble.elites": 3},
    ),
    "mbpo, M2AC, learned termination": ("mbpo", {"trust.rule": "m2ac", "learn_termination": True}),
    "bptt, through the true simulator": ("bptt", {"model": "true", "rematerialize": False}),
    "svg, noise inferred, known reward": ("svg", {"horizon": 1, "noise": "inferred", "learn_reward": False}),
    "pets, iCEM, moment matching, all learned": (
        "pets",
        {
            "planner.method": "icem",
            "planner.icem.population": 12,
            "planner.icem.elites": 4,
            "planner.icem.horizon": 4,
            "planner.icem.iterations": 2,
            "ensemble.propagation": "moment_matching",
            "learn_reward": True,
            "learn_termination": True,
        },
    ),
    "pets, MPPI, expectation of deterministic members, open loop": (
        "pets",
        {
            "planner.method": "mppi",
            "planner.mppi.population": 20,
            "planner.mppi.horizon": 4,
            "planner.mppi.iterations": 2,
            "ensemble.propagation": "expectation",
            "ensemble.probabilistic": False,
            "particles": 1,
            "open_loop": True,
        },
    ),
    "pets, random shooting, distribution that halts, fitted once, annealed": (
        "pets",
        {
            "planner.method": "random-shooting",
            "planner.random_shooting.population": 20,
            "planner.random_shooting.horizon": 4,
            "ensemble.propagation": "distribution",
            "ensemble.halt_above": 0.5,
            "ensemble.beta_nll": 0.5,
            "ensemble.annealing": True,
            "refit": False,
        },
    ),
}
"""Settings that change what is compiled, tried together; by name, the algorithm and what differs from its TINY settings."""
CASES = {name: (name, {}) for name in sorted(algorithms.METHODS)} | VARIANTS


def configured(case: str, env: str, **fields: Any) -> programs.RunConfig:
    """The config of a case at tiny size."""
    name, changes = CASES[case]
    return programs.configure(name, env, settings=TINY[name] | changes, **fields)


TASK, LIMIT, FAST = "spinning-pendulum", 60, 5.0


def too_fast(next_observation: Any) -> Any:
    return jnp.abs(next_observation[..., 2]) > FAST


class Spinning(Pendulum):
    """The pendulum, whose episodes end where it is too fast, too."""

    def step(self, state: Any, action: Any) -> Any:
        after = super().step(state, action)
        return after.replace(done=too_fast(after.obs).astype(after.done.dtype))
