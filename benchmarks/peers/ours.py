"""The worker of `benchmarks/peers.py` that measures jaxmbrl."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from conversation import Answer, converse, timed
from ensemble import flops_per_row
from measure import Training, peak, seconds

from jaxmbrl.agents.actor_critic import sac as sac_agent
from jaxmbrl.agents.actor_critic.sac import SACConfig
from jaxmbrl.agents.actor_critic.updates import updates
from jaxmbrl.algorithms.latent import dreamer as dreamer_algorithm
from jaxmbrl.algorithms.latent import td_mpc2 as td_mpc2_algorithm
from jaxmbrl.algorithms.shooting import pets as pets_algorithm
from jaxmbrl.core import xla
from jaxmbrl.core.types import Algorithm, Task, Transition, row_like
from jaxmbrl.data import replay
from jaxmbrl.envs import make
from jaxmbrl.models import EnsembleConfig
from jaxmbrl.models import ensemble as dynamics
from jaxmbrl.planning import PlannerConfig
from jaxmbrl.planning.cem import CEMConfig
from jaxmbrl.training import evaluation, programs
from jaxmbrl.training.loop import clock_at


def beside_the_peak(run: Callable[[], Any], work: int) -> Callable[[], dict[str, float]]:
    """A function that times `run`, which has `work` floating-point operations, between two measurements of the peak."""
    reading = peak()

    def measured() -> dict[str, float]:
        before, duration, after = reading(), seconds(run), reading()
        highest = (before + after) / 2
        return {"seconds": duration, "peak GFLOP/s": highest / 1e9, "share of peak": work / duration / highest}

    return measured


def plan(settings: dict[str, Any], answer: Answer) -> None:
    hidden = (settings["units"],) * settings["layers"]
    config = pets_algorithm.Config(
        ensemble=EnsembleConfig(
            members=settings["members"], elites=settings["elites"], hidden=hidden, precision=settings["precision"]
        ),
        planner=PlannerConfig(
            cem=CEMConfig(
                horizon=settings["horizon"],
                population=settings["population"],
                elites=settings["best"],
                iterations=settings["iterations"],
                momentum=settings["momentum"],
                # Never reached, so every plan runs all iterations.
                min_variance=0.0,
            )
        ),
        particles=settings["particles"],
        replay_capacity=1000,
    )
    algorithm = pets_algorithm.make(config, make(settings["task"]))
    state = jax.jit(lambda key: algorithm.init(key, {}))(jax.random.key(0))
    size = settings["observation"]
    observation = jnp.zeros(size)

    @partial(jax.jit, compiler_options=dict(algorithm.compiler_options))
    def act(state: pets_algorithm.State, key: jax.Array) -> jax.Array:
        policy = algorithm.policy(state, clock_at(config.warmup_steps), True)
        return policy.act(policy.init(key), observation, key)[0]

    key = jax.random.key(2)
    evaluations = settings["population"] * settings["particles"] * settings["horizon"] * settings["iterations"]
    measured = beside_the_peak(
        lambda: act(state, key), evaluations * flops_per_row(hidden, size + settings["action"], 2 * size)
    )
    answer({})
    while True:
        figures = measured()
        answer(figures | {"model evaluations a second": evaluations / figures["seconds"]})


def fit(settings: dict[str, Any], answer: Answer) -> None:
    layers = settings["layers"]
    config = EnsembleConfig(
        members=settings["members"],
        elites=settings["members"],
        hidden=(settings["units"],) * layers,
        precision=settings["precision"],
        weight_decay=(settings["weight_decay"],) * (layers + 1),
        learning_rate=settings["learning_rate"],
        batch_size=settings["batch_size"],
        max_epochs=settings["epochs"],
        holdout_fraction=0.0,
        normalize_targets=settings["normalize_targets"],
    )
    data = np.load(settings["data"])
    rows = len(data["reward"])
    size, action_size = data["observation"].shape[1], data["action"].shape[1]
    never = np.zeros(rows, bool)
    train = replay.of_rows(
        Transition(
            **{name: data[name] for name in ("observation", "action", "reward", "next_observation")},
            terminated=never,
            truncated=never,
        )
    )
    model = dynamics.make(config, size, action_size, None, lambda n: jnp.zeros(n.shape[:-1], bool))
    init, predict = jax.jit(lambda key: model.init(key, {})), jax.jit(model.predict)
    run = jax.jit(model.fit, compiler_options=dict(xla.for_ensembles(config.precision)))
    steps = config.max_epochs * -(-rows // config.batch_size)
    forward = flops_per_row(config.hidden, size + action_size, 2 * (size + 1))
    number, fitted = 0, None

    def once() -> Any:
        nonlocal fitted
        fitted = run(state, train, jax.random.key(number))[0]
        return fitted

    state = init(jax.random.key(0))
    measured = beside_the_peak(once, 3 * forward * config.members * config.batch_size * steps)
    answer({})
    while True:
        number += 1
        state = jax.block_until_ready(init(jax.random.key(number)))
        figures = measured()
        mean, variance = predict(fitted, data["test_observation"], data["test_action"])
        change = np.asarray(mean, np.float64)
        change[..., :size] -= data["test_observation"]
        np.savez(settings["predictions"], mean=change, log_variance=np.log(np.asarray(variance, np.float64)))
        answer(figures | {"updates a second": steps / figures["seconds"]})


def random_rows(key: jax.Array, rows: int, size: int, action_size: int) -> Transition:
    """Random transitions [rows, ...] without ends of episodes."""
    keys = jax.random.split(key, 4)
    return Transition(
        observation=jax.random.normal(keys[0], (rows, size)),
        action=jax.random.uniform(keys[1], (rows, action_size), minval=-1.0, maxval=1.0),
        reward=jax.random.normal(keys[2], (rows,)),
        next_observation=jax.random.normal(keys[3], (rows, size)),
        terminated=jnp.zeros(rows, bool),
        truncated=jnp.zeros(rows, bool),
    )


def sac(settings: dict[str, Any], answer: Answer) -> None:
    size, action_size, rows = settings["observation"], settings["action"], settings["rows"]
    config = SACConfig(
        hidden=(settings["units"],) * 2, precision=settings["precision"], learning_rate=settings["learning_rate"]
    )
    agent = sac_agent.make(config, size, action_size)
    keys = jax.random.split(jax.random.key(0))
    data = random_rows(keys[0], rows, size, action_size)
    buffer = replay.add(replay.init(jax.tree.map(lambda leaf: leaf[0], data), rows), data)
    number = settings["updates"]

    @jax.jit
    def run(state: Any, buffer: replay.Replay, key: jax.Array) -> Any:
        return updates(agent, state, lambda key: replay.sample(buffer, key, settings["batch_size"]), key, number)

    state, i = agent.init(keys[1], {}), 0
    answer({})
    while True:
        key, i = jax.random.key(i), i + 1
        begun = time.perf_counter()
        state, _ = jax.block_until_ready(run(state, buffer, key))
        duration = time.perf_counter() - begun
        answer({"seconds": duration, "updates a second": number / duration})


def mbpo(settings: dict[str, Any], answer: Answer) -> None:
    every = settings["refit_every"]
    layers = settings["layers"]
    changes = {
        "agent.hidden": [settings["agent_units"]] * 2,
        "agent.precision": settings["precision"],
        "agent.learning_rate": settings["agent_learning_rate"],
        "agent.target_entropy": settings["target_entropy"],
        "ensemble.members": settings["members"],
        "ensemble.elites": settings["elites"],
        "ensemble.hidden": [settings["units"]] * layers,
        "ensemble.precision": settings["precision"],
        "ensemble.weight_decay": [settings["weight_decay"]] * (layers + 1),
        "ensemble.learning_rate": settings["learning_rate"],
        "ensemble.batch_size": settings["batch_size"],
        "ensemble.holdout_fraction": settings["holdout"],
        # Ours stops one epoch after `patience` epochs without improvement, theirs at the last of them.
        "ensemble.patience": settings["epochs"] or settings["patience"] - 1,
        "ensemble.max_epochs": settings["epochs"] or 1000,
        "rollout_length": {"first": 1, "last": 1},
        "rollout_rows": settings["rollouts_per_step"] * every,
        "retain_steps": every,
        "real_ratio": 0.0,
        "refit_every": every,
        "updates_per_step": settings["updates_per_step"],
        "batch_size": settings["agent_batch_size"],
        "warmup_steps": settings["warmup"],
        "replay_capacity": settings["capacity"],
        "epoch_steps": every,
        "eval_every": 0,
    }
    program = programs.build(programs.configure("mbpo", "InvertedPendulum-v5", "paper-inverted-pendulum", settings=changes))
    running = Training(program)
    running.advance(settings["warmup"] - 1)
    answer({"seconds to compile": running.compile_seconds})
    steps = settings["warmup"] - 1
    fitted = 0
    while True:
        duration = running.advance(every)
        steps += every
        so_far = int(running.state.algorithm.model.steps[0])
        answer(
            {
                "seconds": duration,
                "environment steps a second": every / duration,
                "updates of the model": so_far - fitted,
                "environment steps so far": steps,
            }
        )
        fitted = so_far


def pets(settings: dict[str, Any], answer: Answer) -> None:
    seeds, chunk = settings["seeds"], 50
    program = programs.build(
        programs.configure(
            "pets",
            "cartpole-continuous",
            "small",
            settings={"epoch_steps": chunk, **settings.get("ours", {})},
            seeds=seeds,
        )
    )
    running = Training(program)
    answer({"seconds to compile": running.compile_seconds})
    taken, reached, duration = 0, np.zeros(seeds, int), 0.0
    while taken < settings["steps"] and not reached.all():
        duration += running.advance(chunk)
        taken += chunk
        found = running.state.metrics["train/return"]
        # The mean over the trials that ended in these steps; if there were two, a good one may be missed.
        good = np.asarray(found.total) >= settings["goal"] * np.maximum(np.asarray(found.weight), 1)
        trained = taken > program.config.settings.warmup_steps
        reached = np.where(good & (reached == 0) & trained, taken, reached)
    answer(
        {
            "seconds a seed": duration / seeds,
            "seconds a seed, compiling too": (duration + running.compile_seconds) / seeds,
            "seconds, all seeds": duration,
            "seconds to compile": running.compile_seconds,
            "seeds": seeds,
            "seeds at the goal": int((reached > 0).sum()),
            "environment steps, median seed": float(np.median(reached[reached > 0])) if reached.any() else 0.0,
            "environment steps, slowest seed": float(reached.max()),
        }
    )


def brax_sac(settings: dict[str, Any], answer: Answer) -> None:
    chunk = settings["calls"] * settings["num_envs"]
    changes = {
        "agent.hidden": [settings["units"]] * 2,
        "agent.learning_rate": settings["learning_rate"],
        "batch_size": settings["batch_size"],
        "num_envs": settings["num_envs"],
        "updates_per_step": settings["updates_per_step"],
        "warmup_steps": settings["warmup"],
        "replay_capacity": settings["capacity"],
        "epoch_steps": chunk,
        "eval_every": 0,
    }
    name = f"brax/{settings['task']}:{settings['backend']}"
    running = Training(programs.build(programs.configure("sac", name, "default", settings=changes)))
    running.advance(settings["warmup"])
    answer({"seconds to compile": running.compile_seconds})
    while True:
        duration = running.advance(chunk)
        made = chunk * settings["updates_per_step"]
        answer(
            {
                "seconds": duration,
                "updates a second": made / duration,
                "environment steps a second": chunk / duration,
            }
        )


def brax_ppo(settings: dict[str, Any], answer: Answer) -> None:
    chunk = settings["calls"] * settings["num_envs"] * settings["collect_steps"]
    changes = {
        "agent.hidden": [settings["units"]] * 2,
        "agent.learning_rate": settings["learning_rate"],
        "agent.epochs": settings["epochs"],
        "agent.minibatches": settings["minibatches"],
        "agent.discount": settings["discount"],
        "agent.normalize_rewards": False,
        "num_envs": settings["num_envs"],
        "collect_steps": settings["collect_steps"],
        "epoch_steps": chunk,
        "eval_every": 0,
    }
    name = f"brax/{settings['task']}:{settings['backend']}"
    program = programs.build(programs.configure("ppo", name, "small", settings=changes))

    @jax.jit
    def judge(state: Any) -> Any:
        return jnp.mean(evaluation.evaluate(program.algorithm, program.task, state, settings["episodes"]))

    running = Training(program)
    # Brax compiles in each of its first two calls, and answers from the second on.
    running.advance(chunk)
    steps, so_far = chunk, 0.0
    judge(running.state.algorithm)
    answer({"seconds to compile": running.compile_seconds})
    while True:
        duration = running.advance(chunk)
        steps, so_far = steps + chunk, so_far + duration
        answer(
            {
                "seconds": duration,
                "environment steps a second": chunk / duration,
                "return": float(judge(running.state.algorithm)),
                "seconds so far": so_far,
                "environment steps so far": steps,
            }
        )


TRAINED = 1_000_000
"""Environment steps long after the warm-up."""


def dreamer_config(settings: dict[str, Any]) -> dreamer_algorithm.Config:
    """The preset `v3-2023` with the sizes of `settings`."""
    changes = {
        "model.deter": settings["deter"],
        "model.hidden": settings["hidden"],
        "model.groups": settings["groups"],
        "model.classes": settings["classes"],
        "model.units": settings["units"],
        "model.head_layers": settings["head_layers"],
        "model.bins": settings["bins"],
        "model.coder.units": settings["coder_units"],
        "model.coder.layers": settings["coder_layers"],
        "agent.horizon": settings["horizon"],
        "agent.discount": settings["discount"],
        "agent.units": settings["agent_units"],
        "agent.layers": settings["agent_layers"],
        "agent.bins": settings["bins"],
        "learning_rate": settings["learning_rate"],
        "batch_size": settings["batch_size"],
        # A window of rows has one position more, that of the last successor.
        "sequence_length": settings["positions"] - 1,
        "num_envs": 1,
        "train_every": 1,
        "updates": settings["updates"],
        "replay_capacity": settings["rows"],
    }
    return programs.configure("dreamer", settings["task"], "v3-2023", settings=changes).settings


def dreamer_of(settings: dict[str, Any]) -> tuple[Algorithm, Task, Any, int]:
    """(Dreamer with the sizes of `settings`, its task, its state with random rows, its number of parameters)."""
    algorithm, task, state = on_random_rows(dreamer_algorithm.make, dreamer_config(settings), settings)
    learned = state.learned
    trained = learned.model.params, learned.agent.actor.params, learned.agent.critic.params
    return algorithm, task, state, size_of(trained)


def on_random_rows(
    make_algorithm: Callable[[Any, Task], Algorithm], config: Any, settings: dict[str, Any]
) -> tuple[Algorithm, Task, Any]:
    """(a method with latent models, the task of `settings`, its state with random rows)."""
    task = make(settings["task"])
    algorithm = make_algorithm(config, task)
    data = random_rows(jax.random.key(0), settings["rows"], task.observation.shape[0], task.action.shape[0])
    return algorithm, task, jax.jit(lambda key: algorithm.init(key, {}, data))(jax.random.key(1))


def size_of(params: Any) -> int:
    """The number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def updates_of(
    algorithm: Algorithm, task: Task, state: Any, parameters: int, settings: dict[str, Any], answer: Answer
) -> None:
    """Measure calls of `learn` that add a row and make `updates` updates."""
    row = jax.tree.map(lambda leaf: leaf[None, None], row_like(task))
    learn = jax.jit(lambda state: algorithm.learn(clock_at(TRAINED), state, row), donate_argnums=0)

    def run() -> None:
        nonlocal state
        state, _ = jax.block_until_ready(learn(state))

    answer({"parameters": parameters})
    while True:
        answer(timed(run, settings["updates"], "update"))


def dreamer(settings: dict[str, Any], answer: Answer) -> None:
    updates_of(*dreamer_of(settings), settings, answer)


def actions_of(
    algorithm: Algorithm, task: Task, state: Any, parameters: int, number: int, unit: str, answer: Answer
) -> None:
    """Measure `number` actions, each of which is a `unit`: one by one from Python, and in a compiled loop."""
    observations = np.random.default_rng(0).normal(size=(number, *task.observation.shape)).astype(np.float32)

    def act(state: Any, memory: Any, observation: jax.Array, key: jax.Array) -> tuple[Any, jax.Array, jax.Array]:
        step_key, key = jax.random.split(key)
        action, _, memory = algorithm.policy(state, clock_at(TRAINED), True).act(memory, observation, step_key)
        return memory, action, key

    step = jax.jit(act)

    @jax.jit
    def steps(state: Any, memory: Any, observations: jax.Array, key: jax.Array) -> Any:
        def one(carry: Any, observation: jax.Array) -> Any:
            memory, action, key = act(state, carry[0], observation, carry[1])
            return (memory, key), action

        return jax.lax.scan(one, (memory, key), observations)

    key = jax.random.key(2)
    start = algorithm.policy(state, clock_at(TRAINED), True).init(key)

    def in_python() -> None:
        memory, next_key = start, key
        for observation in observations:
            memory, action, next_key = step(state, memory, observation, next_key)
            np.asarray(action)

    def in_a_loop() -> None:
        jax.block_until_ready(steps(state, start, observations, key))

    in_a_loop()
    answer({"parameters": parameters})
    while True:
        inside = timed(in_a_loop, number, unit)[f"CPU ms for each {unit}"]
        answer(timed(in_python, number, unit) | {"CPU ms in a compiled loop": inside})


def dreamer_act(settings: dict[str, Any], answer: Answer) -> None:
    actions_of(*dreamer_of(settings), settings["steps"], "environment step", answer)


def td_mpc2_config(settings: dict[str, Any]) -> td_mpc2_algorithm.Config:
    """The preset `size5m` with the sizes of `settings`, for a task whose episodes do not terminate."""
    changes = {
        "model.size": settings["size"],
        "model.units": settings["units"],
        "model.bins": settings["bins"],
        "model.coder.units": settings["coder_units"],
        "model.learn_continuation": False,
        "agent.units": settings["units"],
        "agent.critics": settings["critics"],
        "agent.bins": settings["bins"],
        "planner.population": settings["population"],
        "planner.elites": settings["best"],
        "planner.iterations": settings["iterations"],
        "planner.horizon": settings["horizon"],
        "proposals": settings["proposals"],
        "batch_size": settings["batch_size"],
        "sequence_length": settings["horizon"],
        "train_every": 1,
        "updates": settings["updates"],
        "replay_capacity": settings["rows"],
    }
    return programs.configure("td-mpc2", settings["task"], "size5m", settings=changes).settings


def td_mpc2_of(settings: dict[str, Any]) -> tuple[Algorithm, Task, Any, int]:
    """(TD-MPC2 with the sizes of `settings`, its task, its state with random rows, its number of parameters)."""
    algorithm, task, state = on_random_rows(td_mpc2_algorithm.make, td_mpc2_config(settings), settings)
    learned = state.learned
    return algorithm, task, state, size_of((learned.model.params, learned.critics.params, learned.actor.params))


def td_mpc2(settings: dict[str, Any], answer: Answer) -> None:
    updates_of(*td_mpc2_of(settings), settings, answer)


def td_mpc2_plan(settings: dict[str, Any], answer: Answer) -> None:
    actions_of(*td_mpc2_of(settings), settings["plans"], "plan", answer)


if __name__ == "__main__":
    cases = {"plan": plan, "fit": fit, "sac": sac, "mbpo": mbpo, "pets": pets, "brax-sac": brax_sac, "brax-ppo": brax_ppo}
    latent = {"dreamer": dreamer, "dreamer-act": dreamer_act, "td-mpc2": td_mpc2, "td-mpc2-plan": td_mpc2_plan}
    converse(cases | latent)
