"""Collecting transitions without training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmbrl import envs
from jaxmbrl.agents.exploration import uniform
from jaxmbrl.core import surroundings
from jaxmbrl.core.config import UserError
from jaxmbrl.core.types import Policy, Task, Transition, World, row_like
from jaxmbrl.data import dataset
from jaxmbrl.rollout import auto_reset, rollout, world_of
from jaxmbrl.training import hosted, memory, programs, restoring
from jaxmbrl.training.loop import clock_at
from jaxmbrl.training.run_folder import RunFolder

PART = 50
"""Largest number of steps in a call of the compiled program."""


def collect(
    task: Task,
    policy: Policy,
    steps: int,
    seed: int = 0,
    world: World | None = None,
    update: Callable[[float], None] = lambda done: None,
) -> Transition:
    """`steps` transitions [steps, ...] of `policy` on `task`, episode after episode, without the policy's extras.

    `world` is the task's own unless given (`rollout.world_of`, for a policy that plans in the true simulator).
    `update` receives the number of steps so far, at the first time when the program is compiled.
    """
    if task.host is not None:
        return hosted.collect(task, policy, steps, seed, update)
    world, policy = auto_reset(task.world if world is None else world, policy)
    world_key, memory_key, key = jax.random.split(jax.random.key(seed), 3)

    def start() -> Any:
        return world.reset(world_key), policy.init(memory_key)

    def part(at: Any, first: Any, length: int) -> Any:
        at, rows = rollout(world, policy, at, key, length, first=first)
        return at, rows._replace(extras=())

    if steps <= PART:
        return jax.jit(lambda: part(start(), 0, steps)[1])()
    parts = -(-steps // PART)
    length = -(-steps // parts)
    step = jax.jit(part, static_argnums=2)
    at, found = jax.jit(start)(), []
    for i in range(parts):
        at, rows = step(at, jnp.asarray(i * length, jnp.int32), length)
        found.append(jax.device_get(rows))
        update(min((i + 1) * length, steps))
    return jax.tree.map(lambda *leaves: jnp.asarray(np.concatenate(leaves)[:steps]), *found)


def collect_by(
    task: str | None,
    policy: str,
    steps: int,
    seed: int = 0,
    explore: bool = False,
    action_repeat: int | None = None,
    update: Callable[[float], None] = lambda done: None,
) -> tuple[Transition, Task]:
    """(transitions, task) of `collect` with the policy `policy`: `random`, or the folder of a run, whose first seed acts.
    The task and the action repeat are those of the run; for `random`, the action repeat is 1 by default.
    `update` is that of `collect`.

    Raises UserError if the task is missing, if the task or the action repeat differs from the run's, if a number is out of
    range, or if a file of transitions cannot store the task's observations or actions.
    """
    if not 1 <= steps < programs.WHOLE:
        raise UserError(f"steps must be at least 1 and below {programs.WHOLE}, got {steps}")
    if not 0 <= seed < programs.WHOLE:
        raise UserError(f"seed must be at least 0 and below {programs.WHOLE}, got {seed}")
    surroundings.check()
    if policy == "random":
        if task is None:
            raise UserError(f"--env TASK is missing; there is: {', '.join(envs.names())}")
        made = programs.checked_task(task, 1 if action_repeat is None else action_repeat)
        dataset.check_storable(made)
        _check_room(made, steps)
        return collect(made, uniform(made.action), steps, seed, update=update), made
    of = programs.read(RunFolder.open(policy))
    if task not in (None, of.env):
        raise UserError(f"the run in {policy} is of {of.env}, not of {task}")
    if action_repeat not in (None, of.action_repeat):
        raise UserError(f"action_repeat must be {of.action_repeat}, that of the run in {policy}, got {action_repeat}")
    program, state, restored = restoring.newest(policy)
    clock = clock_at(restored.extra["env_steps"])
    dataset.check_storable(program.task)
    _check_room(program.task, steps)
    acting = program.algorithm.policy(jax.tree.map(lambda leaf: leaf[0], state.algorithm), clock, explore)
    world = world_of(program.task, program.algorithm)
    return collect(program.task, acting, steps, seed, world, update), program.task


def _check_room(task: Task, steps: int) -> None:
    rows = jax.eval_shape(lambda: jax.tree.map(lambda leaf: jnp.zeros((steps, *leaf.shape), leaf.dtype), row_like(task)))
    memory.check(rows, "the collected data", "lower steps")
