"""Efficiency: floating-point operations compared with the machine's matmul peak, and bytes compared with its bandwidth.

    python benchmarks/limits.py [--repeats 9] [--out results.json]

Operations are those of the layers' matrix products, forward and backward. Activations, noise, Adam and sorting take time
but do not count as work. For SAC, XLA's own count for one update is reported as well. Each call is timed between two
measurements of the limit: a 2048 x 2048 matrix product, or an update of 256 MB in place. Bytes are the least that must be
read and written.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ensemble import ACTION, OBSERVATION, fitting, flops_per_row, rows_of
from measure import bandwidth, measure, onward, report
from plan import planning

from jaxmbrl.agents.actor_critic import sac as soft
from jaxmbrl.agents.actor_critic.updates import updates
from jaxmbrl.agents.actor_critic.value_gradients import ValueGradientConfig, with_value_gradient
from jaxmbrl.core.types import Transition
from jaxmbrl.data import replay
from jaxmbrl.models import EnsembleConfig, ensemble
from jaxmbrl.nn import optimizer

BATCH = 256
UPDATES = 100
HORIZON = 10
ROWS = 1_000_000


def agent_flops(hidden: tuple[int, ...]) -> tuple[int, int]:
    """(operations of a forward pass of one row through the actor, the same through one critic)."""
    return flops_per_row(hidden, OBSERVATION, 2 * ACTION), flops_per_row(hidden, OBSERVATION + ACTION, 1)


def policy_update(repeats: int) -> dict[str, float]:
    """Updates of SAC, all with the same batch."""
    config = soft.SACConfig()
    agent, batch = soft.make(config, OBSERVATION, ACTION), rows_of(BATCH)
    state = agent.init(jax.random.key(1), {})
    run = jax.jit(lambda state, key: updates(agent, state, lambda _: batch, key, UPDATES)[0])
    actor, critic = agent_flops(config.hidden)
    # Each critic: target; loss, both gradients; the actor's loss, its input's gradient. The actor: next action; loss,
    # both gradients.
    flops = BATCH * (config.critics * (1 + 3 + 2) * critic + (1 + 3) * actor)
    found = measure(lambda: run(state, jax.random.key(2)), flops * UPDATES, repeats)
    counted = jax.jit(agent.update).lower(state, batch, jax.random.key(2)).cost_analysis()["flops"]
    return found | {"updates a second": UPDATES / found["seconds"], "XLA's count over ours": counted / flops}


def value_gradient(repeats: int) -> dict[str, float]:
    """Updates of SAC's actor by gradients through imagined steps of an ensemble: the rewards plus the critics' final
    value."""
    settings, config = soft.SACConfig(), EnsembleConfig(members=7, elites=5)
    agent = soft.make(settings, OBSERVATION, ACTION)
    model = ensemble.make(config, OBSERVATION, ACTION, None, lambda rows: jnp.zeros(rows.shape[:-1], bool))
    batch, fitted = rows_of(BATCH), model.init(jax.random.key(1), {})
    state, number = agent.init(jax.random.key(2), {}), UPDATES // 10

    @jax.jit
    def run(state: Any, key: jax.Array) -> Any:
        through = with_value_gradient(
            agent, model.world(fitted), ValueGradientConfig(HORIZON, entropy_at_every_step=True, rematerialize=False)
        )
        return jax.lax.scan(
            lambda state, key: (through.update_actor(state, batch, key)[0], ()), state, jax.random.split(key, number)
        )[0]

    actor, critic = agent_flops(settings.hidden)
    member = flops_per_row(config.hidden, OBSERVATION + ACTION, 2 * (OBSERVATION + 1))
    # Forward, and backward to the inputs only: the weights of the model and the critics get no gradient.
    flops = BATCH * (HORIZON * (2 * member + 3 * actor) + 3 * actor + 2 * settings.critics * critic)
    found = measure(lambda: run(state, jax.random.key(3)), flops * number, repeats)
    return found | {"updates a second": number / found["seconds"]}


def sampling(repeats: int) -> dict[str, float]:
    """Sample batches from a buffer that is much larger than the CPU caches."""
    buffer = jax.block_until_ready(replay.add(replay.init(jax.tree.map(lambda x: x[0], rows_of(1)), ROWS), rows_of(ROWS)))

    @jax.jit
    def run(buffer: replay.Replay, key: jax.Array) -> Transition:
        return jax.vmap(lambda key: replay.sample(buffer, key, BATCH))(jax.random.split(key, UPDATES))

    moved = 2 * UPDATES * BATCH * sum(leaf.nbytes for leaf in jax.tree.leaves(rows_of(1)))
    found = bandwidth(lambda: run(buffer, jax.random.key(0)), moved, repeats)
    return found | {"batches a second": UPDATES / found["seconds"]}


def adding(repeats: int) -> dict[str, float]:
    """Add one row to the same buffer, as in each environment step, with a program to which the buffer is donated."""
    buffer = replay.init(jax.tree.map(lambda x: x[0], rows_of(1)), ROWS)
    row, number = rows_of(1), 1000
    run = jax.jit(
        lambda buffer: jax.lax.fori_loop(0, number, lambda i, buffer: replay.add(buffer, row), buffer), donate_argnums=0
    )
    found = bandwidth(onward(run, buffer), 2 * number * sum(leaf.nbytes for leaf in jax.tree.leaves(row)), repeats)
    return found | {"rows a second": number / found["seconds"]}


def stepping(repeats: int) -> dict[str, float]:
    """Adam and the target network update of ten million parameters: all five arrays except the gradient are read and
    written."""
    params = {"kernel": jnp.zeros((10, 1000, 1000))}
    trained, gradient = optimizer.init(params, 1e-3, with_target=True), {"kernel": jnp.full((10, 1000, 1000), 1e-3)}
    run = jax.jit(lambda trained: optimizer.move_target(optimizer.step(trained, gradient)[0], 0.005), donate_argnums=0)
    return bandwidth(onward(run, trained), 9 * params["kernel"].nbytes, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, help="write the results here, as JSON")
    args = parser.parse_args()
    run_plan, flops, evaluations = planning()
    plan = measure(run_plan, flops, args.repeats)
    run_fit, work, steps = fitting(10_000, epochs=2)
    fit = measure(run_fit, work, args.repeats)
    cases: dict[str, Callable[[int], dict[str, float]]] = {
        f"SAC update, 2 x 256, batch {BATCH}": policy_update,
        f"value gradient, {HORIZON} steps of a 4 x 200 model, batch {BATCH}": value_gradient,
        f"replay: batches of {BATCH} from {ROWS:,} rows": sampling,
        "replay: a row added": adding,
        "Adam and target of 10 million parameters": stepping,
    }
    tables = {
        "plan, 350 x 20 x 15 x 5, 5 of 7 members, 4 x 200": plan
        | {"model evaluations a second": evaluations / plan["seconds"]},
        "fit, 7 x 4 x 200, batch 256": fit | {"updates a second": steps / fit["seconds"]},
        **{title: case(args.repeats) for title, case in cases.items()},
    }
    report(tables, args.out)


if __name__ == "__main__":
    main()
