"""Divide and conquer: local policies for parts of the start states, kept alike and distilled into one (Ghosh et al., arXiv
1711.09874).

The start angles of `pendulum` are divided into four quarters. Each has a policy pi_i of its own, which learns from episodes
that start there by TRPO, and is penalised for being unlike the others on their states:

    maximise  surrogate_i - alpha mean over j != i of mean over states of j of (KL(pi_i || pi_j) + KL(pi_j || pi_i)) / 2

Every R iterations one policy is fitted to the mean actions of all local policies on their own states, and they continue
from it, each with its own standard deviation and value function. The return is that of this policy, on all start states.

    trpo          one policy, all start states, nothing is distilled
    alpha 0       four policies without the penalty, which is TRPO with distillation
    alpha 0.1, 1  with it

All take the same number of environment steps. In guided policy search the local policies are linear controllers; here they
are networks, which need no model.

    python experiments/divide_and_conquer.py [--out FOLDER] [--seeds 4] [--iterations 50] [--every 10] [--quick]

Differs from the paper's code: the penalty of pi_i holds the other policies fixed within an iteration. Writes
`divide-and-conquer.png` and `divide-and-conquer.json` with command, commit, versions and machine.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxmbrl import envs
from jaxmbrl.agents import distillation, trust_region
from jaxmbrl.agents.on_policy import ActorParameters, OnPolicy, OnPolicyState
from jaxmbrl.agents.trust_region import TRPOConfig
from jaxmbrl.core.types import Algorithm, Carry, Key, PyTree, Task, Transition, World
from jaxmbrl.nn import optimizer
from jaxmbrl.rollout import auto_reset, rollout
from jaxmbrl.training import evaluation
from jaxmbrl.training.run_folder import environment, new_figure, write_figure

TASK, PARTS, STEPS = "pendulum", 4, 2000
LENGTH = 250
"""Steps of each environment in an iteration; all environments together take `STEPS`."""
AGENT = TRPOConfig(discount=0.95, gae_lambda=0.95, value_epochs=20, normalize_observations=False)
FIT_STEPS, BATCH, RATE = 1000, 256, 1e-3
EPISODES = 100
COLORS = ("0.4", "#c1440e", "#0b3d91", "#46a060")


class Case(NamedTuple):
    """Number of parts and weight of the penalty."""

    parts: int
    alpha: float


CASES = {"trpo": Case(1, 0.0), "alpha 0": Case(PARTS, 0.0), "alpha 0.1": Case(PARTS, 0.1), "alpha 1": Case(PARTS, 1.0)}


class Local(NamedTuple):
    """The state of one part."""

    agent: OnPolicyState
    carry: Carry
    """Of its environments."""
    observations: Float[Array, "B O"]
    """The states of the last iteration."""


def world_of_part(task: Task, part: Any, parts: int) -> World:
    """The task's world whose episodes start with an angle in one of `parts` equal slices of the circle."""
    env: Any = task.env

    def reset(key: Key) -> Carry:
        share, speed = jax.random.uniform(key, (2,))
        angle = -jnp.pi + 2 * jnp.pi * (part + share) / parts
        return env.state_at(jnp.stack([angle, 2 * speed - 1])), jnp.zeros((), jnp.int32)

    return task.world._replace(reset=reset)


def unlike(
    agent: OnPolicy,
    params: ActorParameters,
    others: ActorParameters,
    observations: Float[Array, "K B O"],
    part: Any,
) -> Float[Array, ""]:
    """The mean over the other parts of the symmetric KL divergence from their policies [K, ...] on their states."""

    def of_one(other: ActorParameters, seen: Float[Array, "B O"]) -> Float[Array, ""]:
        mine: Any = agent.distribution(params, seen)
        theirs: Any = agent.distribution(other, seen)
        return jnp.mean(mine.divergence(theirs) + theirs.divergence(mine)) / 2

    each = jax.vmap(of_one)(others, observations)
    return jnp.sum(jnp.where(jnp.arange(each.shape[0]) == part, 0.0, each)) / max(each.shape[0] - 1, 1)


def iterate(agent: OnPolicy, task: Task, case: Case, local: Local, key: Key) -> Local:
    """Collect in all parts [K, ...] and improve their policies."""
    number = STEPS // LENGTH // case.parts
    fixed = local.agent.actor.params

    def collect(local: Local, part: Any, key: Key) -> tuple[Carry, Transition]:
        world, policy = auto_reset(world_of_part(task, part, case.parts), agent.policy(local.agent, True))

        def one(carry: Carry, key: Key) -> tuple[Carry, Transition]:
            (carry, _), rows = rollout(world, policy, (carry, ()), key, LENGTH)
            return carry, rows

        return jax.vmap(one, out_axes=(0, 1))(local.carry, jax.random.split(key, number))

    collect_key, update_key = jax.random.split(key)
    parts = jnp.arange(case.parts)
    carry, rows = jax.vmap(collect)(local, parts, jax.random.split(collect_key, case.parts))
    observations = rows.observation.reshape(case.parts, -1, rows.observation.shape[-1])

    def improve(state: OnPolicyState, rows: Transition, part: Any, key: Key) -> OnPolicyState:
        def penalty(params: ActorParameters) -> Float[Array, ""]:
            return case.alpha * unlike(agent, params, fixed, observations, part)

        state = agent.measure_returns(state, rows)
        return trust_region.update(agent, AGENT, state, rows, key, penalty=penalty if case.alpha > 0 else None)[0]

    improved = jax.vmap(improve)(local.agent, rows, parts, jax.random.split(update_key, case.parts))
    return Local(improved, carry, observations)


def distilled(agent: OnPolicy, task: Task, local: Local, key: Key) -> tuple[Local, PyTree]:
    """(parts whose policies have the distilled mean, the network of that mean): it begins with the average of the parts'
    parameters and is fitted to their mean actions."""
    params = local.agent.actor.params
    means = jax.vmap(lambda params, seen: agent.distribution(params, seen).mode())(params, local.observations)
    seen, labels = (x.reshape(-1, x.shape[-1]) for x in (local.observations, means))

    def step(trained: Any, key: Key) -> tuple[Any, None]:
        index = jax.random.randint(key, (BATCH,), 0, seen.shape[0])

        def loss(network: PyTree) -> Float[Array, ""]:
            output = agent.actor.apply(network, seen[index])
            return jnp.mean(distillation.divergence(task.action, labels[index], output))

        return optimizer.step(trained, jax.grad(loss)(trained.params))[0], None

    first = optimizer.init(jax.tree.map(lambda x: jnp.mean(x, axis=0), params.network), RATE)
    network = jax.lax.scan(step, first, jax.random.split(key, FIT_STEPS))[0].params
    parts = local.observations.shape[0]
    again = jax.tree.map(lambda x: jnp.broadcast_to(x, (parts, *x.shape)), network)
    actor = local.agent.actor._replace(params=params._replace(network=again))
    return local._replace(agent=local.agent._replace(actor=actor)), network


def first_state(agent: OnPolicy, task: Task, case: Case, key: Key) -> Local:
    """All parts before the first iteration: their policies are the same."""
    agent_key, reset_key = jax.random.split(key)
    number = STEPS // LENGTH // case.parts
    state = agent.init(agent_key, {}, number)

    def carry(part: Any, key: Key) -> Carry:
        world, _ = auto_reset(world_of_part(task, part, case.parts), agent.policy(state, True))
        return jax.vmap(world.reset)(jax.random.split(key, number))

    same = jax.tree.map(lambda x: jnp.broadcast_to(x, (case.parts, *x.shape)), state)
    carries = jax.vmap(carry)(jnp.arange(case.parts), jax.random.split(reset_key, case.parts))
    return Local(same, carries, jnp.zeros((case.parts, number * LENGTH, task.observation.shape[0])))


def learn(task: Task, case: Case, seeds: int, rounds: int, every: int, episodes: int) -> dict[str, Any]:
    """Returns of the distilled policy after each round of `every` iterations, [rounds, seeds]."""
    agent = trust_region.make_agent(AGENT, task.observation.shape[0], task.action)
    # An algorithm without learning, for the evaluation of a network.
    shown = Algorithm(
        init=lambda key, hyper, data: (),
        policy=lambda state, clock, explore: agent.policy(state, False),
        learn=lambda clock, state, rows: (state, {}),
        period=1,
    )

    def a_round(local: Local, key: Key) -> tuple[Local, Array, Array]:
        iterate_key, fit_key = jax.random.split(key)

        def body(local: Local, key: Key) -> tuple[Local, None]:
            return iterate(agent, task, case, local, key), None

        local, _ = jax.lax.scan(body, local, jax.random.split(iterate_key, every))
        first = jax.tree.map(lambda x: x[0], local.agent)
        params = local.agent.actor.params
        apart = jnp.mean(
            jax.vmap(lambda own, part: unlike(agent, own, params, local.observations, part))(params, jnp.arange(case.parts))
        )
        if case.parts > 1:
            local, network = distilled(agent, task, local, fit_key)
            first = first._replace(actor=first.actor._replace(params=first.actor.params._replace(network=network)))
        one = jax.tree.map(lambda x: x[None], first)
        return local, evaluation.evaluate(shown, task, one, episodes)[0].mean(), apart

    keys = [jax.random.split(jax.random.key(i), seeds) for i in range(rounds + 1)]
    local = jax.jit(jax.vmap(lambda key: first_state(agent, task, case, key)))(keys[0])
    run, started = jax.jit(jax.vmap(a_round)), time.monotonic()
    returns, apart = [], []
    for key in keys[1:]:
        local, value, divergence = run(local, key)
        returns.append(np.asarray(value, float).tolist())
        apart.append(np.asarray(divergence, float).tolist())
    return {
        "steps": [every * STEPS * (i + 1) for i in range(rounds)],
        "returns": returns,
        "divergence before distillation": apart,
        "seconds": time.monotonic() - started,
    }


def draw(found: dict[str, Any], file: Path) -> None:
    """Draw the returns, and how far the local policies are apart when they are distilled."""
    figure = new_figure(9.0, 3.4)
    left, right = figure.subplots(1, 2)
    for (name, case), color in zip(found.items(), COLORS, strict=False):
        returns, steps = np.array(case["returns"]), case["steps"]
        left.plot(steps, returns.mean(axis=1), color=color, marker="o", markersize=3, label=name)
        left.fill_between(steps, returns.min(axis=1), returns.max(axis=1), color=color, alpha=0.12, linewidth=0)
        if name != "trpo":
            right.plot(
                steps, np.mean(case["divergence before distillation"], axis=1), color=color, marker="o", markersize=3
            )
    left.set_ylabel("return: mean and range of the seeds")
    left.legend(frameon=False, fontsize=8, loc="lower right")
    right.set_ylabel("divergence of the local policies (nats)")
    right.set_yscale("log")
    for axes in (left, right):
        axes.set_xlabel("environment steps")
        axes.spines[["top", "right"]].set_visible(False)
    write_figure(file, figure)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Train all cases, print their returns, and write the picture and the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, help="by default runs/divide-and-conquer, with --quick runs/divide-and-conquer-quick"
    )
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--iterations", type=int, default=50)
    parser.add_argument("--every", type=int, default=10, help="R: iterations between two distillations")
    parser.add_argument("--quick", action="store_true", help="two rounds of one iteration (smoke test)")
    args = parser.parse_args(arguments)
    args.out = args.out or Path("runs/divide-and-conquer-quick" if args.quick else "runs/divide-and-conquer")
    args.out.mkdir(parents=True, exist_ok=True)
    every, episodes = (1, 2) if args.quick else (args.every, EPISODES)
    rounds = 2 if args.quick else args.iterations // every
    task, found = envs.make(TASK), {}
    for name in args.only:
        found[name] = learn(task, CASES[name], args.seeds, rounds, every, episodes)
        last = found[name]["returns"][-1]
        print(f"{name:<12}{np.mean(last):>9.1f}   {', '.join(f'{x:.1f}' for x in last)}", flush=True)
    draw(found, args.out / "divide-and-conquer.png")
    command = f"python experiments/divide_and_conquer.py --seeds {args.seeds} --iterations {rounds * every} --every {every}"
    saved = {"cases": found, "environment": environment(command)}
    (args.out / "divide-and-conquer.json").write_text(json.dumps(saved, indent=1) + "\n")
    return found


if __name__ == "__main__":
    main()
