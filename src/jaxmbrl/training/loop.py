"""The loop, written once for every algorithm: warm-up, collecting with auto-reset, learning, counting, all seeds at once.

`Loop.run` is one compiled program that takes a traced number of steps, so how a run is cut into calls changes no bit of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxmbrl.core import metrics
from jaxmbrl.core.types import (
    Action,
    Algorithm,
    Average,
    Carry,
    Clock,
    Hyper,
    Key,
    Memory,
    Metrics,
    Observation,
    Policy,
    PyTree,
    Task,
    Transition,
)
from jaxmbrl.data.replay import Replay
from jaxmbrl.nn.optimizer import Trainable
from jaxmbrl.rollout import auto_reset, playback, rollout, world_of
from jaxmbrl.training.devices import OF_ALL, OF_SEEDS, Spread

ENVIRONMENT, LEARNER, MEMORY, COLLECT = range(4)
"""Independent streams of randomness below a seed's key."""


@runtime_checkable
class LoopConfig(Protocol):
    """The fields of an algorithm's config that the loop reads."""

    @property
    def num_envs(self) -> int:
        """Environments of each seed."""

    @property
    def warmup_steps(self) -> int:
        """Environment steps of random actions at the start."""

    @property
    def epoch_steps(self) -> int:
        """Environment steps of an epoch, whose metrics are averaged."""


class Fault(NamedTuple):
    """The first value of a seed that was not finite."""

    what: Int[Array, ""]
    """Index into `Loop.checked`; -1 while all is well."""
    env_steps: Int[Array, ""]
    """When it was seen."""


class LoopState(NamedTuple):
    """Everything that one seed holds. `Loop` carries it with a leading axis of seeds."""

    algorithm: PyTree
    carry: Carry
    """Of the environments, [num_envs]."""
    memory: Memory
    """Of the policy, [num_envs]."""
    key: Key
    running_return: Float[Array, "num_envs"]
    """Return so far of the episodes in progress."""
    running_length: Int[Array, "num_envs"]
    metrics: Metrics
    """Of the epoch in progress."""
    fault: Fault


@runtime_checkable
class Compile(Protocol):
    """Compiles a jitted function for its arguments, ahead of time; `what` is its name to the user."""

    def __call__(self, what: str, function: Any, *arguments: Any) -> Callable[..., Any]:
        """What takes the same arguments."""


class Loop(NamedTuple):
    """An algorithm on a task, for all seeds."""

    init: Any
    """(seeds [K], hyper of arrays [K]) -> LoopState [K]."""
    run: Any
    """(clock, LoopState [K], calls of `learn`) -> (clock, LoopState [K]); None for a task that lives on the host."""
    steps_per_call: int
    """Environment steps of each seed in one call of `learn`."""
    checked: tuple[str, ...]
    """Names of what is checked to be finite at each call."""
    compiled: Callable[[Compile, contextlib.ExitStack, Clock, LoopState, Spread], Any]
    """(compile, closing, clock, LoopState [K], spread) -> what `run` does, compiled for states that lie as `spread` says;
    it may use up the states it is given. What it holds open is closed with `closing`."""
    attempt: Callable[[Clock, LoopState], dict[str, Bool[Array, "K"]]] | None
    """(clock, LoopState [K]) -> what of the next call of `learn` is finite, by the names in `checked`, kept or not;
    None for a task that lives on the host."""


class Rollout(NamedTuple):
    """What a seed collected for one call of `learn`, and where that left it."""

    carry: Carry
    """Of the environments, [num_envs]."""
    memory: Memory
    """Of the policy, [num_envs]."""
    transitions: Transition
    """[period, num_envs]."""


class Learning(NamedTuple):
    """What is the same however transitions are collected."""

    init: Callable[[Int[Array, ""], Hyper], LoopState]
    """(seed, hyper) -> LoopState of one seed."""
    call: Callable[[Clock, LoopState, Rollout], tuple[Clock, LoopState]]
    """(clock before the call, LoopState [K], Collected [K]) -> (clock, LoopState [K]): one call of `learn`, counted."""
    attempt: Callable[[Clock, LoopState, Rollout], dict[str, Bool[Array, "K"]]]
    """Of the same, what is finite of what the call computes, by name, kept or not."""
    steps_per_call: int
    checked: tuple[str, ...]


def collecting_key(state: LoopState) -> Key:
    """The key of what a seed collects for its next call of `learn`."""
    return jax.random.split(state.key)[1]


def learning(
    algorithm: Algorithm,
    config: LoopConfig,
    start: Callable[[PyTree, Key, Key], tuple[Carry, Memory]],
    collect: Callable[[Clock, LoopState], Rollout],
    of_data: bool = False,
) -> Learning:
    """The part of a loop that both kinds share. `start(learner, environment keys [num_envs], memory keys [num_envs])` gives
    a seed's first carry and memory. Of `collect(clock, state)`, which collects for one call, the shapes alone matter here.
    """
    steps_per_call = algorithm.period * config.num_envs

    def init(seed: Int[Array, ""], hyper: Hyper) -> LoopState:
        key = jax.random.key(seed)
        learner = algorithm.init(jax.random.fold_in(key, LEARNER), hyper)
        environment_keys, memory_keys = (
            jax.random.split(jax.random.fold_in(key, stream), config.num_envs) for stream in (ENVIRONMENT, MEMORY)
        )
        carry, memory = start(learner, environment_keys, memory_keys)
        return LoopState(
            algorithm=learner,
            carry=carry,
            memory=memory,
            key=jax.random.fold_in(key, COLLECT),
            running_return=jnp.zeros(config.num_envs),
            running_length=jnp.zeros(config.num_envs, jnp.int32),
            metrics=unknown,
            fault=Fault(jnp.full((), -1, jnp.int32), jnp.zeros((), jnp.int32)),
        )

    def attempt(
        clock: Clock, state: LoopState, collected: Rollout
    ) -> tuple[LoopState, Metrics, dict[str, Bool[Array, ""]]]:
        """One call of `learn`, whatever comes of it: (state, the call's metrics, what of it is finite, by name)."""
        transitions = collected.transitions
        learner, found = algorithm.learn(clock, state.algorithm, transitions)
        (running_return, running_length), finished = _episodes((state.running_return, state.running_length), transitions)
        found = _of_data(found, finished) if of_data else found | finished
        moved = LoopState(
            algorithm=learner,
            carry=collected.carry,
            memory=collected.memory,
            key=jax.random.split(state.key)[0],
            running_return=running_return,
            running_length=running_length,
            metrics=state.metrics,
            fault=state.fault,
        )
        return moved, found, _finite(found, transitions, learner)

    def advance(clock: Clock, state: LoopState, collected: Rollout) -> tuple[LoopState, Metrics]:
        """One call of `learn`, kept where it is healthy; `clock` already counts its steps. Metrics are of this call."""
        moved, found, finite = attempt(clock, state, collected)
        healthy = jnp.all(jnp.stack(list(finite.values()))) & (state.fault.what < 0)
        first = jnp.argmin(jnp.stack(list(finite.values()))).astype(jnp.int32)
        moved = _gate(healthy, moved, state)
        new_fault = ~healthy & (state.fault.what < 0)
        fault = Fault(
            jnp.where(new_fault, first, state.fault.what), jnp.where(new_fault, clock.env_steps, state.fault.env_steps)
        )
        found = jax.tree.map(lambda x: jnp.where(healthy, x, 0.0), found)
        return moved._replace(fault=fault), found

    def call(clock: Clock, states: LoopState, collected: Rollout) -> tuple[Clock, LoopState]:
        fresh = clock.env_steps % config.epoch_steps == 0
        so_far = jax.tree.map(lambda x: jnp.where(fresh, 0.0, x), states.metrics)
        clock = Clock(clock.env_steps + steps_per_call)
        states, found = jax.vmap(advance, in_axes=(None, 0, 0))(clock, states, collected)
        return clock, states._replace(metrics=metrics.add(so_far, found))

    def attempts(clock: Clock, states: LoopState, collected: Rollout) -> dict[str, Bool[Array, "K"]]:
        clock = Clock(clock.env_steps + steps_per_call)
        return jax.vmap(lambda state, collected: attempt(clock, state, collected)[2])(states, collected)

    checked: list[str] = []

    def metrics_and_names() -> Metrics:
        """The metrics of a call; `checked` learns the names on the way, in the order in which `advance` looks at them."""
        state = init(jnp.zeros((), jnp.int32), {})
        _, found, finite = attempt(clock_at(steps_per_call), state, collect(clock_at(0), state))
        checked.extend(finite)
        return found

    unknown: Metrics = {}
    shapes = jax.eval_shape(metrics_and_names)
    unknown = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    return Learning(init, call, attempts, steps_per_call, tuple(checked))


def make(algorithm: Algorithm, task: Task, config: LoopConfig, data: Transition | None = None) -> Loop:
    """The loop of `algorithm` on `task`, in one program. Seed k has the same randomness whatever the other seeds are.

    With `data` [N, ...] nothing is collected: its rows are what each seed's single environment seems to yield, in turn, and
    what their episodes earned goes by the names `data/...` where the metrics of collecting are `train/...`. Nothing is
    planned, so metrics `plan/...` are left out.
    """
    shown = world_of(task, algorithm)

    def collectors(learner: PyTree, clock: Clock) -> tuple[Any, Policy]:
        if data is not None:
            return playback(data, algorithm.policy(learner, True))
        return auto_reset(shown, exploring(algorithm, task, config, learner, clock))

    def start(learner: PyTree, environment_keys: Key, memory_keys: Key) -> tuple[Carry, Memory]:
        world, policy = collectors(learner, clock_at(0))
        return jax.vmap(world.reset)(environment_keys), jax.vmap(policy.init)(memory_keys)

    @jax.named_scope("collect")
    def collect(clock: Clock, state: LoopState) -> Rollout:
        world, policy = collectors(state.algorithm, clock)

        def one(carry: Carry, memory: Memory, key: Key) -> Any:
            return rollout(world, policy, (carry, memory), key, algorithm.period)

        keys = jax.random.split(collecting_key(state), config.num_envs)
        (carry, memory), transitions = jax.vmap(one, out_axes=(0, 1))(state.carry, state.memory, keys)
        return Rollout(carry, memory, transitions)

    parts = learning(algorithm, config, start, collect, of_data=data is not None)
    collect_all = jax.vmap(collect, in_axes=(None, 0))

    def run(clock: Clock, states: LoopState, calls: Int[Array, ""]) -> tuple[Clock, LoopState]:
        def body(i: Int[Array, ""], loop: tuple[Clock, LoopState]) -> tuple[Clock, LoopState]:
            clock, states = loop
            return parts.call(clock, states, collect_all(clock, states))

        return jax.lax.fori_loop(0, calls, body, (clock, states))

    def attempt(clock: Clock, states: LoopState) -> dict[str, Bool[Array, "K"]]:
        return parts.attempt(clock, states, collect_all(clock, states))

    def compiled(compile: Compile, closing: contextlib.ExitStack, clock: Clock, states: LoopState, spread: Spread) -> Any:
        everywhere = spread.over(run, OF_ALL, OF_SEEDS, OF_ALL, result=(OF_ALL, OF_SEEDS))
        return compile("training", jax.jit(everywhere, donate_argnums=1), clock, states, jnp.ones((), jnp.int32))

    return Loop(jax.vmap(parts.init), run, parts.steps_per_call, parts.checked, compiled, attempt)


def exploring(algorithm: Algorithm, task: Task, config: LoopConfig, learner: PyTree, clock: Clock) -> Policy:
    """The policy that collects: of the learner's state, but random in the first `warmup_steps`, which all seeds share."""
    return _with_warmup(algorithm.policy(learner, True), task, clock.env_steps < config.warmup_steps)


def _of_data(found: Metrics, finished: Metrics) -> Metrics:
    """The metrics of a call that did not collect: nothing was planned, and the episodes are the data's."""
    learned = {name: x for name, x in found.items() if not name.startswith("plan/")}
    return learned | {name.replace("train/", "data/"): x for name, x in finished.items()}


def clock_at(env_steps: int) -> Clock:
    """The clock after `env_steps` steps of each seed's environments."""
    return Clock(jnp.asarray(env_steps, jnp.int32))


def _with_warmup(policy: Policy, task: Task, warm: Bool[Array, ""]) -> Policy:
    """`policy`, but actions drawn uniformly while `warm`, which all seeds share."""

    def act(memory: Memory, observation: Observation, key: Key) -> tuple[Action, PyTree, Memory]:
        def explore(memory: Memory) -> tuple[Action, PyTree, Memory]:
            _, extras, _ = jax.eval_shape(policy.act, memory, observation, key)
            return task.action.sample(key), jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), extras), memory

        return jax.lax.cond(warm, explore, lambda memory: policy.act(memory, observation, key), memory)

    return Policy(policy.init, act)


def _episodes(running: tuple[Array, Array], transitions: Transition) -> tuple[tuple[Array, Array], Metrics]:
    """Count the episodes that finished in `transitions` [period, num_envs]."""

    def count(running: tuple[Array, Array], step: Transition) -> tuple[tuple[Array, Array], Metrics]:
        total, length = running[0] + step.reward, running[1] + 1
        ended = step.terminated | step.truncated
        finished = jnp.sum(ended).astype(total.dtype)
        found = {
            "train/return": Average(jnp.sum(jnp.where(ended, total, 0.0)), finished),
            "train/episode_length": Average(jnp.sum(jnp.where(ended, length, 0)).astype(total.dtype), finished),
        }
        return (jnp.where(ended, 0.0, total), jnp.where(ended, 0, length)), found

    running, found = jax.lax.scan(count, running, transitions._replace(extras=()))
    return running, metrics.total(found)


def _finite(found: Metrics, transitions: Transition, learner: PyTree) -> dict[str, Bool[Array, ""]]:
    """What is finite, by name: the data collected, the metrics, and whether each optimiser is still open."""
    data = {name: getattr(transitions, name) for name in ("observation", "action", "reward", "next_observation")}
    leaves = jax.tree_util.tree_leaves_with_path(learner, is_leaf=lambda x: isinstance(x, Trainable))
    return (
        {f"transition/{name}": _all_finite(value) for name, value in data.items()}
        | {name: jnp.isfinite(x.total) for name, x in found.items()}
        | {f"gradient of {jax.tree_util.keystr(p)[1:]}": x.active for p, x in leaves if isinstance(x, Trainable)}
    )


def _all_finite(tree: PyTree) -> Bool[Array, ""]:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def _gate(healthy: Bool[Array, ""], new: PyTree, old: PyTree) -> PyTree:
    """`new` for a healthy seed, else `old`, without reading and writing what is large once more.

    A `Replay` keeps its size and position, so rows written meanwhile do not count (of a full ring, the oldest rows of one
    call are lost); a `Trainable` is closed.
    """

    def choose(new: Any, old: Any) -> Any:
        if isinstance(new, Replay):
            return new._replace(
                position=jnp.where(healthy, new.position, old.position), size=jnp.where(healthy, new.size, old.size)
            )
        if isinstance(new, Trainable):
            return new._replace(active=new.active & healthy)
        return jnp.where(healthy, new, old)

    return jax.tree.map(choose, new, old, is_leaf=lambda x: isinstance(x, Replay | Trainable))
