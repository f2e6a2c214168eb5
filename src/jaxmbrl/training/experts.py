"""Runs as experts: the deterministic policy of a run, which labels observations for `agents.distillation`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxmbrl.agents.distillation import Expert, label_of_action, privileged
from jaxmbrl.agents.exploration import remembered, with_key
from jaxmbrl.core.config import UserError
from jaxmbrl.core.spaces import Discrete
from jaxmbrl.core.types import Action, Algorithm, Clock, Key, Memory, Observation, Policy, PyTree, Task, Views
from jaxmbrl.envs.observed import beneath
from jaxmbrl.rollout import world_of
from jaxmbrl.training import programs, restoring
from jaxmbrl.training.loop import clock_at
from jaxmbrl.training.programs import Program, RunConfig

LEAST_SHARE = 1e-8
"""Share of visits of an action that a search has not visited, so that its logarithm is finite."""


def build(config: RunConfig, task: Task | None = None) -> Program:
    """The parts of a run that learns, as `programs.build`, with its expert if it has one. Raises UserError for a method
    that only imitates if it has nothing to imitate."""
    programs.check_taught(config)
    expert = None if config.expert is None else load(config, task)
    return programs.build(config, task=task, expert=expert)


def load(config: RunConfig, task: Task | None = None) -> Expert:
    """The expert of a run, with a policy for each of its seeds. `task` is the run's own, if not that with the name
    `config.env`; if the expert's has another observation, the expert is `privileged`. Raises UserError if it has been
    trained further since the run began, or if its actions are repeated another number of times."""
    assert config.expert is not None
    program, state, restored = restoring.newest(config.expert)
    steps = restored.extra["env_steps"]
    if steps != config.expert_steps:
        raise UserError(
            f"the expert in {config.expert} has been trained for {steps} steps, and the student imitates its policy after "
            f"{config.expert_steps}: start another student"
        )
    if program.config.action_repeat != config.action_repeat:
        raise UserError(
            f"action_repeat must be {program.config.action_repeat}, that of the expert in {config.expert}, got "
            f"{config.action_repeat}"
        )
    expert = expert_of(program.algorithm, program.task, state.algorithm, clock_at(steps))
    if program.config.env == config.env:
        return expert
    students = programs.checked_task(config.env if task is None else task, config.action_repeat)
    return privileged(expert, beneath(students, program.task), program.task.world.observe)


def expert_of(algorithm: Algorithm, task: Task, states: PyTree, clock: Clock) -> Expert:
    """The deterministic policies of `states` [K, ...], those of K seeds, as an expert. For discrete actions the labels are
    preferences: the policy's logits, action values by the critic, or the logarithms of a search's visits, whichever the
    method has, else those of the action alone (`label_of_action`)."""
    choices = task.action.n if isinstance(task.action, Discrete) else None

    def labelled(own: PyTree) -> Policy:
        acting = algorithm.policy(own, clock, False)

        def act(memory: Memory, seen: Observation, key: Key) -> tuple[Action, PyTree, Memory]:
            act_key, value_key = jax.random.split(key)
            action, extras, memory = acting.act(memory, seen, act_key)
            if choices is None:
                return action, label_of_action(task.action, action), memory
            return action, _preferences(algorithm.views(own), choices, seen, action, extras, value_key), memory

        return Policy(acting.init, act, remember=with_key(acting, lambda key: jax.random.split(key)[0]))

    kept = _used_by(labelled, world_of(task, algorithm).observe, task, states)

    def policy(seed: Int[Array, ""]) -> Policy:
        return labelled(jax.tree.map(lambda leaf: leaf[seed], kept))

    return Expert(policy, algorithm.observes_full_state)


def _preferences(
    views: Views, choices: int, seen: Observation, action: Action, extras: PyTree, key: Key
) -> Float[Array, "n"]:
    """The preferences of an expert with discrete actions at one observation."""
    if views.logits is not None:
        return views.logits(seen)
    if views.critic is not None:
        rows = jnp.broadcast_to(seen, (choices, *jnp.shape(seen)))
        return views.critic.action_value(rows, jnp.arange(choices, dtype=jnp.int32), key)
    visits = getattr(extras, "visits", None)
    if visits is not None:
        return jnp.log(jnp.maximum(visits / jnp.sum(visits), LEAST_SHARE))
    return label_of_action(Discrete(choices), action)


def _used_by(labelled: Any, observe: Any, task: Task, states: PyTree) -> PyTree:
    """`states` without the leaves that the policy does not read, such as replay buffers: these become zeros that take no
    memory."""
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), states)

    def act(own: PyTree, key: Key) -> Any:
        policy = labelled(own)
        seen = task.observation.zeros() if task.host is not None else observe(task.world.reset(key))
        memory = policy.init(key)
        action, extras, after = policy.act(memory, seen, key)
        return action, extras, remembered(policy, memory, seen, action, key, after)

    traced = jax.make_jaxpr(act)(shapes, jax.random.key(0)).jaxpr
    used = {id(var) for equation in traced.eqns for var in equation.invars} | {id(var) for var in traced.outvars}
    leaves, structure = jax.tree.flatten(states)
    kept = [leaf if id(var) in used else _Blank(leaf) for leaf, var in zip(leaves, traced.invars, strict=False)]
    return jax.tree.unflatten(structure, kept)


class _Blank:
    """Zeros in place of an array of several seeds that is not read."""

    def __init__(self, leaf: Any) -> None:
        self._shape, self._dtype = leaf.shape[1:], leaf.dtype

    def __getitem__(self, seed: Any) -> Array:
        return jnp.zeros(self._shape, self._dtype)
