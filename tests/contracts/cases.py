"""The registered methods at a tiny size, on a pendulum whose episodes end by time and, for most methods, before it, or on a
corridor."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxmbrl import algorithms, envs
from jaxmbrl.algorithms.registry import TINY_RUN
from jaxmbrl.core.spaces import Discrete
from jaxmbrl.envs.base import initial_state, never
from jaxmbrl.envs.classic.pendulum import Pendulum, reward
from jaxmbrl.training import programs

CAPACITY = TINY_RUN["replay_capacity"]
"""A length that nothing but a replay buffer has."""
SEEDS = 2
EPOCH = TINY_RUN["epoch_steps"]
TINY = {name: dict(method.tiny) for name, method in algorithms.METHODS.items()}
"""Changes to each method's default preset that make it small."""


CHOICES = "discrete actions"
VARIANTS: dict[str, tuple[str, dict[str, Any]] | tuple[str, dict[str, Any], str]] = {
    "mbpo, MACURA, known reward": (
        "mbpo",
        {"trust.rule": "macura", "learn_reward": False, "ensemble.elites": 3},
    ),
    "mbpo, M2AC, learned termination": ("mbpo", {"trust.rule": "m2ac", "learn_termination": True}),
    "bmpo, backward policy by a GAN": ("bmpo", {"backward_learner": "gan", "gan.hidden": (16,)}),
    "mbpo, scheduled": (
        "mbpo",
        {
            "schedule": {
                "steps": [0, 100],
                "interpolation": "linear",
                "real_ratio": [0.1, 0.5],
                "refit_every": [50, 100],
                "updates_per_step": [1, 3],
                "rollout_length": [1, 3],
            }
        },
    ),
    "dreamer, V1: Gaussian latents, tanh, squared errors": (
        "dreamer",
        {
            "model.core": "gru",
            "model.latent": "gaussian",
            "model.floor": "mean",
            "model.bins": 0,
            "model.rms_norm": False,
            "model.learn_continuation": False,
            "agent.gradient": "pathwise",
            "agent.policy": "tanh-normal",
            "agent.entropy": 0.0,
            "agent.normalize_returns": False,
            "agent.target": "none",
            "agent.bins": 0,
            "optimizer.rule": "adam",
            "noise": 0.3,
        },
    ),
    "dreamer, V2: truncated normal, copied target": (
        "dreamer",
        {
            "model.floor": "mean",
            "agent.gradient": "pathwise",
            "agent.policy": "truncated-normal",
            "agent.normalize_returns": False,
            "agent.target": "bootstrap",
            "agent.target_rate": 1.0,
            "agent.target_every": 3,
            "optimizer.rule": "adam",
        },
    ),
    "dreamer, discrete actions, replay value": (
        "dreamer",
        {"agent.roots": None, "agent.replay_value": 0.3, "agent.gradient": "reinforce"},
        CHOICES,
    ),
    "planet, discrete actions": ("planet", {}, CHOICES),
    "world-models, controllers in the task": (
        "world-models",
        {"controller": "task", "generation_steps": 120, "model.cell": True, "bias": False},
    ),
    "bptt, through the true simulator": ("bptt", {"model": "true", "rematerialize": False}),
    "svg, noise inferred, known reward": ("svg", {"horizon": 1, "noise": "inferred", "learn_reward": False}),
    "muzero, PUCT, priorities, plain numbers, weight decay": (
        "muzero",
        {"search.method": "puct", "priorities": 0.6, "value_support": 0, "weight_decay": 1e-4},
    ),
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
    "pets, Gaussian processes, reward learned": (
        "pets",
        {
            "dynamics": "gp",
            "gp.capacity": 60,
            "gp.inducing": 40,
            "gp.evaluations": 5,
            "gp.propagation": "expectation",
            "particles": 1,
            "learn_reward": True,
        },
    ),
    "pets, Bayes by backprop, TSinf": ("pets", {"ensemble.kind": "bayes-by-backprop", "ensemble.propagation": "tsinf"}),
    "mbpo, concrete dropout, M2AC, learned termination": (
        "mbpo",
        {
            "ensemble.kind": "concrete-dropout",
            "ensemble.elites": 3,
            "trust.rule": "m2ac",
            "learn_termination": True,
        },
    ),
    "pets, mixtures, TSinf that halts, all learned": (
        "pets",
        {
            "ensemble.head": "mixture",
            "ensemble.components": 2,
            "ensemble.propagation": "tsinf",
            "ensemble.halt_above": 0.5,
            "learn_reward": True,
            "learn_termination": True,
        },
    ),
    "mbpo, mixtures of constant noise, MACURA": (
        "mbpo",
        {"ensemble.head": "mixture", "ensemble.components": 2, "ensemble.noise": "constant", "trust.rule": "macura"},
    ),
    "mbpo, score matching": (
        "mbpo",
        {"dynamics": "score", "score.hidden": (16,), "score.fit_steps": 5, "score.batch_size": 16, "score.draws": 4},
    ),
    "mbpo, Gaussian processes": ("mbpo", {"dynamics": "gp", "gp.capacity": 60, "gp.evaluations": 5}),
    "sac, normalised": ("sac", {"normalize_observations": True, "normalize_rewards": True}),
    "td3, normalised observations": ("td3", {"normalize_observations": True}),
    "dqn, normalised": ("dqn", {"normalize_observations": True, "normalize_rewards": True}, CHOICES),
    "sac, discrete actions": ("sac", {}, CHOICES),
    "bc, discrete actions": ("bc", {}, CHOICES),
    "mopo, halts": ("mopo", {"halts": True}),
    "redq, discrete actions, dropout": ("redq", {"agent.dropout": 0.1}, CHOICES),
    "mbpo, discrete actions, M2AC": ("mbpo", {"trust.rule": "m2ac"}, CHOICES),
    "mbpo, learner MPO": ("mbpo", {"learner": "mpo", "mpo.hidden": (16, 16), "mpo.samples": 5}),
    "mbpo, learner DQN": ("mbpo", {"learner": "dqn", "q_learning.hidden": (16, 16)}, CHOICES),
    "mbpo, learner NAF, bonus for disagreement": (
        "mbpo",
        {"learner": "naf", "naf.hidden": (16, 16), "trust.rule": "explore"},
    ),
    "dqn, images stored once": ("dqn", {"agent.convolutions": ((4, 4, 4),)}, "images"),
    "sac, images shifted, discrete actions": (
        "sac",
        {"encoder.convolutions": ((4, 4, 4),), "encoder.units": 6, "augment": "shift"},
        "images",
    ),
    "drq-v2, images shifted, 3-step targets": (
        "drq-v2",
        {"agent.convolutions": ((4, 4, 4),), "augment": "shift"},
        "images, continuous actions",
    ),
    "dqn, count bonus of vectors": ("dqn", {"count_bonus.weight": 1.0}, CHOICES),
    "pets, discrete actions, reward learned": ("pets", {"learn_reward": True}, CHOICES),
    "pets, discrete actions, MPPI, open loop": (
        "pets",
        {
            "planner.method": "mppi",
            "planner.mppi.population": 20,
            "planner.mppi.horizon": 4,
            "planner.mppi.iterations": 2,
            "open_loop": True,
        },
        CHOICES,
    ),
}
"""Settings that change what is compiled, tried together; by name, the algorithm, what differs from its TINY settings, and
the kind of task if it is not the first that the method takes."""
CASES: dict[str, tuple[str, dict[str, Any], str]] = {
    case: (name, changes, *(kind or algorithms.METHODS[name].takes[:1]))
    for case, (name, changes, *kind) in ({name: (name, {}) for name in sorted(algorithms.METHODS)} | VARIANTS).items()
}
"""All cases: the algorithm, what differs from its TINY settings, and the kind of task."""


TASKS = {
    "continuous actions": "spinning-pendulum",
    "discrete actions": "spinning-pendulum-discrete",
    "tables": "corridor",
    "continuous actions in episodes of one length": "swinging-pendulum",
    "images": "stacked/2/pixels/16,grey/spinning-pendulum-discrete",
    "images, continuous actions": "stacked/2/pixels/16,grey/spinning-pendulum",
}
"""The task on which a method is tested, by the kind of task."""
FAST, CELLS = 5.0, 6
LIMITS = {"spinning-pendulum": 60, "spinning-pendulum-discrete": 60, "corridor": 20, "swinging-pendulum": 5}
"""Time limits of the tasks."""


def task_of(case: str) -> str:
    """Name of the task of a case."""
    return TASKS[CASES[case][2]]


def takes_tables(program: programs.Program) -> bool:
    """Whether a method learns tables, without networks or replay buffers."""
    return algorithms.METHODS[program.config.algorithm].takes[0] == "tables"


def has_replay(program: programs.Program) -> bool:
    """Whether a method has a replay buffer, which those of tables and the on-policy ones lack."""
    return hasattr(program.config.settings, "replay_capacity")


def configured(case: str, **fields: Any) -> programs.RunConfig:
    """The config of a case at tiny size."""
    name, changes, _ = CASES[case]
    return programs.configure(name, task_of(case), settings=TINY[name] | changes, **fields)


def too_fast(next_observation: Any) -> Any:
    return jnp.abs(next_observation[..., 2]) > FAST


class Spinning(Pendulum):
    """The pendulum, whose episodes end where it is too fast, too."""

    def step(self, state: Any, action: Any) -> Any:
        after = super().step(state, action)
        return after.replace(done=too_fast(after.obs).astype(after.done.dtype))


class SpinningDiscrete(Spinning):
    """The same with a choice of three torques."""

    def step(self, state: Any, action: Any) -> Any:
        return super().step(state, action[None].astype(state.obs.dtype) - 1.0)


class Corridor:
    """Cells in a row. Right leads to the last cell, whose entry earns 1 and ends the episode; left leads back. Observations
    are the numbers of cells. The state is (cell, reward of every step, which is 0)."""

    def reset(self, rng: Any) -> Any:
        cell = jax.random.randint(rng, (), 0, 2, jnp.int32)
        return initial_state((cell, jnp.zeros(())), cell)

    def step(self, state: Any, action: Any) -> Any:
        cell, wage = state.pipeline_state
        cell = jnp.clip(cell + 2 * action - 1, 0, CELLS - 1)
        reached = (cell == CELLS - 1).astype(state.reward.dtype)
        return state.replace(pipeline_state=(cell, wage), obs=cell, reward=reached + wage, done=reached)


def register_tasks() -> None:
    """Register `TASKS`. The images are those of other tasks."""
    continuous, discrete, tables, steady, *_ = TASKS.values()
    length = LIMITS.__getitem__
    envs.register(continuous, lambda: envs.make_task(continuous, Spinning(), length(continuous), reward, too_fast))
    envs.register(
        discrete,
        lambda: envs.make_task(discrete, SpinningDiscrete(), length(discrete), terminated=too_fast, action=Discrete(3)),
    )
    envs.register(
        tables,
        lambda: envs.make_task(tables, Corridor(), length(tables), observation=Discrete(CELLS), action=Discrete(2)),
    )
    envs.register(steady, lambda: envs.make_task(steady, Pendulum(), length(steady), reward, never))
