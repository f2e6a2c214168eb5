"""The worker of `benchmarks/peers.py` that measures mbrl-lib, with its own code and presets.

Its wheel lacks two things. The settings of its CEM are given here. The model of PETS's half-cheetah is replaced by an
environment with the same spaces, because planning in a learned model needs nothing else from an environment.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import mbrl
import mbrl.algorithms.mbpo
import mbrl.algorithms.pets
import mbrl.env.reward_fns
import mbrl.env.termination_fns
import mbrl.models
import mbrl.planning
import mbrl.types
import mbrl.util.common
import mbrl.util.env
import numpy as np
import omegaconf
import torch
from conversation import Answer, converse
from mbrl.third_party.pytorch_sac_pranz24 import SAC
from mbrl.util import ReplayBuffer

PACKAGES = ("mbrl", "torch", "numpy", "gymnasium", "mujoco", "hydra-core")
THREADS = int(os.environ.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0))))
CEM = {
    "_target_": "mbrl.planning.CEMOptimizer",
    "num_iterations": "${overrides.cem_num_iters}",
    "elite_ratio": "${overrides.cem_elite_ratio}",
    "population_size": "${overrides.cem_population_size}",
    "alpha": "${overrides.cem_alpha}",
    "lower_bound": "???",
    "upper_bound": "???",
    "return_mean_elites": True,
    "device": "${device}",
    "clipped_normal": "${overrides.cem_clipped_normal}",
}


def ready() -> dict[str, Any]:
    """The first message to the driver."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"versions": {"python": platform.python_version(), **versions}, "threads": torch.get_num_threads()}


def box(low: Any, high: Any, shape: Any) -> gymnasium.spaces.Box:
    """The action space with which Hydra makes the agent; mbrl-lib's settings name a class that does not exist."""
    return gymnasium.spaces.Box(np.array(low, np.float32), np.array(high, np.float32), tuple(shape))


def preset(name: str, algorithm: str, settings: dict[str, Any], changes: dict[str, Any]) -> omegaconf.DictConfig:
    """mbrl-lib's settings for `name`, on the CPU, with `changes` by dotted names and the ensemble's size."""
    folder = Path(mbrl.__file__).parent / "examples" / "conf"
    read = omegaconf.OmegaConf.load
    config = omegaconf.OmegaConf.create(
        {
            "seed": settings.get("seed", 0),
            "device": "cpu",
            "log_frequency_agent": 1000,
            "save_video": False,
            "debug_mode": False,
            "algorithm": read(folder / "algorithm" / f"{algorithm}.yaml"),
            "dynamics_model": read(folder / "dynamics_model" / "gaussian_mlp_ensemble.yaml"),
            "overrides": read(folder / "overrides" / f"{name}.yaml"),
            "action_optimizer": CEM,
        }
    )
    size = {
        "dynamics_model.ensemble_size": settings["members"],
        "dynamics_model.hid_size": settings["units"],
        "dynamics_model.num_layers": settings["layers"],
        # Ensemble and planner make their parts themselves; current versions of Hydra would make them earlier.
        "dynamics_model._recursive_": False,
    }
    if algorithm == "pets":
        size["algorithm.agent._recursive_"] = False
    for field, value in (size | changes).items():
        omegaconf.OmegaConf.update(config, field, value)
    return config


def plan(settings: dict[str, Any], answer: Answer) -> None:
    config = preset(
        settings["preset"],
        "pets",
        settings,
        {
            "overrides.planning_horizon": settings["horizon"],
            "overrides.cem_num_iters": settings["iterations"],
            "overrides.cem_population_size": settings["population"],
            "overrides.cem_elite_ratio": settings["best"] / settings["population"],
            "overrides.cem_alpha": settings["momentum"],
            "overrides.num_elites": settings["elites"],
        },
    )
    size, action_size = settings["observation"], settings["action"]
    env = SimpleNamespace(
        observation_space=gymnasium.spaces.Box(-np.inf, np.inf, (size,)),
        action_space=gymnasium.spaces.Box(-1.0, 1.0, (action_size,)),
    )
    model = mbrl.util.common.create_one_dim_tr_model(config, (size,), (action_size,))
    # A fit would choose the elites.
    model.set_elite(list(range(settings["elites"])))
    imagined = mbrl.models.ModelEnv(
        env,
        model,
        getattr(mbrl.env.termination_fns, settings["termination"]),
        getattr(mbrl.env.reward_fns, settings["reward"]),
        generator=torch.Generator().manual_seed(0),
    )
    agent = mbrl.planning.create_trajectory_optim_agent_for_model(
        imagined, config.algorithm.agent, num_particles=settings["particles"]
    )
    assert agent.optimizer.optimizer.elite_num == settings["best"]
    observation = np.zeros(size)
    evaluations = settings["population"] * settings["particles"] * settings["horizon"] * settings["iterations"]
    answer(ready())
    while True:
        agent.reset()
        begun = time.perf_counter()
        agent.act(observation)
        duration = time.perf_counter() - begun
        answer({"seconds": duration, "model evaluations a second": evaluations / duration})


def fit(settings: dict[str, Any], answer: Answer) -> None:
    config = preset("pets_halfcheetah", "pets", settings, {"algorithm.learned_rewards": True})
    # The data are from another task, which has no special handling of observations.
    del config.overrides.obs_process_fn, config.overrides.no_delta_list
    data = np.load(settings["data"])
    rows, size = data["observation"].shape
    action_size, batch = data["action"].shape[1], settings["batch_size"]
    test = mbrl.types.TransitionBatch(
        data["test_observation"], data["test_action"], data["test_next_observation"], data["test_reward"], None, None
    )
    steps, number = settings["epochs"] * -(-rows // batch), 0
    answer(ready())
    while True:
        number += 1
        torch.manual_seed(number)
        double = {"obs_type": np.double, "action_type": np.double, "reward_type": np.double}
        buffer = ReplayBuffer(rows, (size,), (action_size,), rng=np.random.default_rng(number), **double)
        never = np.zeros(rows, bool)
        buffer.add_batch(data["observation"], data["action"], data["next_observation"], data["reward"], never, never)
        model = mbrl.util.common.create_one_dim_tr_model(config, (size,), (action_size,))
        trainer = mbrl.models.ModelTrainer(model, optim_lr=settings["learning_rate"], weight_decay=settings["weight_decay"])
        begun = time.perf_counter()
        batches, _ = mbrl.util.common.get_basic_buffer_iterators(buffer, batch, 0, ensemble_size=settings["members"])
        model.update_normalizer(buffer.get_all())
        trainer.train(batches, num_epochs=settings["epochs"], evaluate=False, silent=True)
        duration = time.perf_counter() - begun
        model.set_propagation_method(None)
        (mean, log_variance), _ = model.get_output_and_targets(test)
        np.savez(settings["predictions"], mean=mean.double().numpy(), log_variance=log_variance.double().numpy())
        answer({"seconds": duration, "updates a second": steps / duration})


def sac(settings: dict[str, Any], answer: Answer) -> None:
    size, action_size, rows = settings["observation"], settings["action"], settings["rows"]
    arguments = SimpleNamespace(
        gamma=0.99,
        tau=0.005,
        alpha=0.2,
        policy="Gaussian",
        target_update_interval=1,
        automatic_entropy_tuning=True,
        target_entropy=None,
        hidden_size=settings["units"],
        device=torch.device("cpu"),
        lr=settings["learning_rate"],
    )
    agent = SAC(size, gymnasium.spaces.Box(-1.0, 1.0, (action_size,)), arguments)
    rng = np.random.default_rng(0)
    buffer = ReplayBuffer(rows, (size,), (action_size,), rng=rng)
    never = np.zeros(rows, bool)
    buffer.add_batch(
        rng.normal(size=(rows, size)),
        rng.uniform(-1, 1, (rows, action_size)),
        rng.normal(size=(rows, size)),
        rng.normal(size=rows),
        never,
        never,
    )
    number, made = settings["updates"], 0
    answer(ready())
    while True:
        begun = time.perf_counter()
        for _ in range(number):
            agent.update_parameters(buffer, settings["batch_size"], made, reverse_mask=True)
            made += 1
        duration = time.perf_counter() - begun
        answer({"seconds": duration, "updates a second": number / duration})


class Rounds(gymnasium.Wrapper):
    """Sends results every `every` steps, first after `first` steps, when the timing starts."""

    def __init__(self, env: gymnasium.Env, first: int, every: int, answer: Answer) -> None:
        super().__init__(env)
        self.first, self.every, self.answer = first, every, answer
        self.taken, self.begun = 0, 0.0

    def step(self, action: Any) -> Any:
        if self.taken >= self.first and (self.taken - self.first) % self.every == 0:
            duration = time.perf_counter() - self.begun
            rate = {"seconds": duration, "environment steps a second": self.every / duration}
            updates = {"updates of the model": Counted.made, "environment steps so far": self.taken}
            self.answer(ready() if self.taken == self.first else rate | updates)
            Counted.made = 0
            self.begun = time.perf_counter()
        self.taken += 1
        return self.env.step(action)


class Counted(mbrl.models.GaussianMLP):
    """mbrl-lib's ensemble with a counter of its updates."""

    made = 0

    def update(self, *arguments: Any, **named: Any) -> Any:
        Counted.made += 1
        return super().update(*arguments, **named)


class Over(gymnasium.Env):
    """An evaluation environment with episodes of one step, because evaluation is not measured."""

    def __init__(self, env: gymnasium.Env) -> None:
        self.observation_space, self.action_space = env.observation_space, env.action_space

    def reset(self, **named: Any) -> Any:
        return np.zeros(self.observation_space.shape), {}

    def step(self, action: Any) -> Any:
        return np.zeros(self.observation_space.shape), 0.0, True, False, {}


def mbpo(settings: dict[str, Any], answer: Answer) -> None:
    every = settings["refit_every"]
    config = preset(
        "mbpo_inv_pendulum",
        "mbpo",
        settings,
        {
            "dynamics_model._target_": "__main__.Counted",
            "algorithm.agent.action_space._target_": "__main__.box",
            # The first fit is `every` steps later.
            "algorithm.initial_exploration_steps": settings["warmup"] - every,
            "algorithm.random_initial_explore": True,
            "overrides.num_elites": settings["elites"],
            "overrides.model_lr": settings["learning_rate"],
            "overrides.model_wd": settings["weight_decay"],
            "overrides.model_batch_size": settings["batch_size"],
            "overrides.validation_ratio": settings["holdout"],
            "overrides.patience": settings["epochs"] or settings["patience"],
            "overrides.num_epochs_train_model": settings["epochs"],
            "overrides.freq_train_model": every,
            "overrides.epoch_length": every,
            "overrides.effective_model_rollouts_per_step": settings["rollouts_per_step"],
            "overrides.num_sac_updates_per_step": settings["updates_per_step"],
            "overrides.sac_hidden_size": settings["agent_units"],
            "overrides.sac_lr": settings["agent_learning_rate"],
            "overrides.sac_batch_size": settings["agent_batch_size"],
            "overrides.sac_target_entropy": settings["target_entropy"],
            "overrides.num_steps": settings["capacity"],
        },
    )
    env, terminated, _ = mbrl.util.env.EnvHandler.make_env(config)
    torch.manual_seed(0)
    # One step before the first fit, so that each round begins with a fit.
    rounds = Rounds(env, settings["warmup"] - 1, every, answer)
    with tempfile.TemporaryDirectory() as folder:
        mbrl.algorithms.mbpo.train(rounds, Over(env), terminated, config, silent=True, work_dir=folder)


class Trials(gymnasium.Wrapper):
    """Stores the return of the last trial, and stops at the first trial after `warmup` steps with a return of `goal`."""

    def __init__(self, env: gymnasium.Env, warmup: int, goal: float, stop: Any) -> None:
        super().__init__(env)
        self.warmup, self.goal, self.stop = warmup, goal, stop
        self.taken, self.total = 0, 0.0

    def reset(self, **named: Any) -> Any:
        self.total = 0.0
        return self.env.reset(**named)

    def step(self, action: Any) -> Any:
        found = self.env.step(action)
        self.taken += 1
        self.total += float(found[1])
        if (found[2] or found[3]) and self.taken > self.warmup and self.total >= self.goal:
            self.stop(self.taken, 1)
        return found


def pets(settings: dict[str, Any], answer: Answer) -> None:
    changes = {f"overrides.{name}": value for name, value in settings.get("theirs", {}).items()}
    config = preset("pets_cartpole", "pets", settings, {"overrides.num_steps": settings["steps"], **changes})
    env, terminated, reward = mbrl.util.env.EnvHandler.make_env(config)
    torch.manual_seed(config.seed)
    answer(ready())
    begun = time.perf_counter()

    def stop(taken: int, reached: int) -> None:
        duration = time.perf_counter() - begun
        steps = float(taken) if reached else 0.0
        answer(
            {
                "seconds a seed": duration,
                "seconds a seed, compiling too": duration,
                "seconds, all seeds": duration,
                "seeds": 1,
                "seeds at the goal": reached,
                "environment steps, median seed": steps,
                "environment steps, slowest seed": steps,
            }
        )

    trials = Trials(env, config.overrides.trial_length, settings["goal"], stop)
    with tempfile.TemporaryDirectory() as folder:
        mbrl.algorithms.pets.train(trials, terminated, reward, config, silent=True, work_dir=folder)
    stop(trials.taken, 0)


if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    converse({"plan": plan, "fit": fit, "sac": sac, "mbpo": mbpo, "pets": pets})
