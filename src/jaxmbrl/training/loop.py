"""The training loop of every algorithm: collect with auto-reset, learn, count the steps, for all seeds at once.

`Loop.run` is one compiled program with a traced number of steps. The result is the same, bit for bit, for any division of a
run into calls.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxmbrl.core import metrics, tree
from jaxmbrl.core.types import (
    Algorithm,
    Average,
    Carry,
    Clock,
    Hyper,
    Key,
    Memory,
    Metrics,
    Policy,
    PyTree,
    Task,
    Transition,
)
from jaxmbrl.rollout import auto_reset, from_same_start, playback, rollout, world_of
from jaxmbrl.training.devices import OF_ALL, OF_SEEDS, SeedSharding

ENVIRONMENT, LEARNER, MEMORY, COLLECT = range(4)
"""Indices, folded into a seed's key, of independent random streams."""


@runtime_checkable
class LoopConfig(Protocol):
    """The fields of an algorithm's config that the loop reads."""

    @property
    def num_envs(self) -> int:
        """Number of environments of each seed."""

    @property
    def epoch_steps(self) -> int:
        """Environment steps of an epoch, over which metrics are averaged."""


class Fault(NamedTuple):
    """The first value of a seed that was not finite."""

    what: Int[Array, ""]
    """Index into `Loop.checked`; -1 if there is none."""
    env_steps: Int[Array, ""]
    """Environment steps at which it occurred."""


class LoopState(NamedTuple):
    """The whole state of one seed. In `Loop` it has a leading axis of seeds."""

    algorithm: PyTree
    carry: Carry
    """Of the environments, [num_envs]."""
    memory: Memory
    """Of the policy, [num_envs]."""
    key: Key
    running_return: Float[Array, "num_envs"]
    """Return so far of each episode in progress."""
    running_length: Int[Array, "num_envs"]
    metrics: Metrics
    """Metrics of the epoch in progress."""
    fault: Fault


@runtime_checkable
class Compile(Protocol):
    """Compiles a jitted function for its arguments, ahead of time; `what` is its name in messages."""

    def __call__(self, what: str, function: Any, *arguments: Any) -> Callable[..., Any]:
        """The compiled function, which takes the same arguments."""


class Loop(NamedTuple):
    """An algorithm on a task, for all seeds."""

    init: Any
    """(seeds [K], hyper of arrays [K]) -> LoopState [K]."""
    run: Any
    """(clock, LoopState [K], number of calls of `learn`) -> (clock, LoopState [K]); None for a task on the host."""
    steps_per_call: int
    """Environment steps of each seed in one call of `learn`."""
    checked: tuple[str, ...]
    """Names of values that are checked to be finite at each call."""
    compiled: Callable[[Compile, contextlib.ExitStack, Clock, LoopState, SeedSharding], Any]
    """(compile, closing, clock, LoopState [K], sharding) -> a compiled `run` for states placed according to `sharding`. It
    may donate the states that it receives. Resources that it opens are released with `closing`."""
    check: Callable[[Clock, LoopState], dict[str, Bool[Array, "K"]]] | None
    """(clock, LoopState [K]) -> for each name in `checked`, whether the value is finite in the next call of `learn`, also
    for a frozen seed; None for a task on the host."""


class Rollout(NamedTuple):
    """The transitions that a seed collects for one call of `learn`, and the state after them."""

    carry: Carry
    """Of the environments, [num_envs]."""
    memory: Memory
    """Of the policy, [num_envs]."""
    transitions: Transition
    """[period, num_envs]."""


class Learning(NamedTuple):
    """The part of a training loop that does not depend on how transitions are collected."""

    init: Callable[[Int[Array, ""], Hyper], LoopState]
    """(seed, hyper) -> LoopState of one seed."""
    call: Callable[[Clock, LoopState, Rollout], tuple[Clock, LoopState]]
    """(clock before the call, LoopState [K], Rollout [K]) -> (clock, LoopState [K]): one call of `learn`, counted."""
    check: Callable[[Clock, LoopState, Rollout], dict[str, Bool[Array, "K"]]]
    """The same arguments -> for each name, whether the value is finite in that call."""
    steps_per_call: int
    checked: tuple[str, ...]


def collecting_key(state: LoopState) -> Key:
    """The key with which a seed collects for its next call of `learn`."""
    return jax.random.split(state.key)[1]


def learning(
    algorithm: Algorithm,
    config: LoopConfig,
    start: Callable[[PyTree, Key, Key], tuple[Carry, Memory]],
    collect: Callable[[Clock, LoopState], Rollout],
    of_data: bool = False,
) -> Learning:
    """The part of a loop that both kinds share.

    `start(state, environment_keys, memory_keys)`, with keys [num_envs], returns a seed's first carry and memory from the
    algorithm's state. Of `collect(clock, state)`, which collects for one call, only the shapes matter here.
    """
    steps_per_call = algorithm.period * config.num_envs

    def first(seed: Int[Array, ""], hyper: Hyper) -> LoopState:
        """The initial state of one seed, without metrics."""
        return _first_state(algorithm, config.num_envs, start, seed, hyper)

    def gated_update(clock: Clock, state: LoopState, collected: Rollout) -> tuple[LoopState, Metrics]:
        """(state, metrics) after one call of `learn`, undone if a value is not finite. `clock` already counts its steps."""
        updated, found, finite = _update(algorithm, clock, state, collected, of_data)
        # Without the barrier XLA repeats all checks in the kernel of each array of the state.
        ok = jax.lax.optimization_barrier(jnp.stack(list(finite.values())))
        healthy = jnp.all(ok) & (state.fault.what < 0)
        new_fault = ~healthy & (state.fault.what < 0)
        fault = Fault(
            jnp.where(new_fault, jnp.argmin(ok).astype(jnp.int32), state.fault.what),
            jnp.where(new_fault, clock.env_steps, state.fault.env_steps),
        )
        found = jax.tree.map(lambda x: jnp.where(healthy, x, 0.0), found)
        return tree.gate(healthy, updated, state)._replace(fault=fault), found

    def call(clock: Clock, states: LoopState, collected: Rollout) -> tuple[Clock, LoopState]:
        epoch_begins = clock.env_steps % config.epoch_steps == 0
        so_far = jax.tree.map(lambda x: jnp.where(epoch_begins, 0.0, x), states.metrics)
        clock = clock._replace(env_steps=clock.env_steps + steps_per_call)
        states, found = jax.vmap(gated_update, in_axes=(None, 0, 0))(clock, states, collected)
        return clock, states._replace(metrics=metrics.add(so_far, found))

    def check(clock: Clock, states: LoopState, collected: Rollout) -> dict[str, Bool[Array, "K"]]:
        clock = clock._replace(env_steps=clock.env_steps + steps_per_call)
        return jax.vmap(lambda s, c: _update(algorithm, clock, s, c, of_data)[2])(states, collected)

    def one_call() -> tuple[LoopState, Metrics]:
        state = first(jnp.zeros((), jnp.int32), {})
        return _update(algorithm, clock_at(steps_per_call), state, collect(clock_at(0), state), of_data)[:2]

    shapes = jax.eval_shape(one_call)
    none = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes[1])
    return Learning(
        init=lambda seed, hyper: first(seed, hyper)._replace(metrics=none),
        call=call,
        check=check,
        steps_per_call=steps_per_call,
        checked=_checked(shapes[1], shapes[0].algorithm),
    )


def _first_state(
    algorithm: Algorithm,
    num_envs: int,
    start: Callable[[PyTree, Key, Key], tuple[Carry, Memory]],
    seed: Int[Array, ""],
    hyper: Hyper,
) -> LoopState:
    key = jax.random.key(seed)
    state = algorithm.init(jax.random.fold_in(key, LEARNER), hyper, None)
    environment_keys, memory_keys = (
        jax.random.split(jax.random.fold_in(key, stream), num_envs) for stream in (ENVIRONMENT, MEMORY)
    )
    carry, memory = start(state, environment_keys, memory_keys)
    return LoopState(
        algorithm=state,
        carry=carry,
        memory=memory,
        key=jax.random.fold_in(key, COLLECT),
        running_return=jnp.zeros(num_envs),
        running_length=jnp.zeros(num_envs, jnp.int32),
        metrics={},
        fault=Fault(jnp.full((), -1, jnp.int32), jnp.zeros((), jnp.int32)),
    )


def _update(
    algorithm: Algorithm, clock: Clock, state: LoopState, collected: Rollout, of_data: bool
) -> tuple[LoopState, Metrics, dict[str, Bool[Array, ""]]]:
    """One call of `learn`: (state, metrics of the call, whether each checked value is finite, by name)."""
    transitions = collected.transitions
    learned, found = algorithm.learn(clock, state.algorithm, transitions)
    (running_return, running_length), finished = _episodes((state.running_return, state.running_length), transitions)
    if of_data:
        finished = {name.replace("train/", "data/"): x for name, x in finished.items()}
    found = found | finished
    updated = LoopState(
        algorithm=learned,
        carry=collected.carry,
        memory=collected.memory,
        key=jax.random.split(state.key)[0],
        running_return=running_return,
        running_length=running_length,
        metrics=state.metrics,
        fault=state.fault,
    )
    return updated, found, _finite(found, transitions, learned)


def make(algorithm: Algorithm, task: Task, config: LoopConfig, data: Transition | None = None) -> Loop:
    """The loop of `algorithm` on `task`, in one program. The randomness of a seed does not depend on the other seeds.

    With `data` [N, ...] nothing is collected: `learn` receives its rows in order, as those of a single environment and with
    extras `()`. The returns of their episodes are the metrics `data/...` instead of `train/...`.
    """
    shown, repeated = world_of(task, algorithm), algorithm.start_states
    if repeated is not None:
        shown = from_same_start(shown)

    def collectors(learner: PyTree, clock: Clock) -> tuple[Any, Policy]:
        if data is not None:
            return playback(data)
        return auto_reset(shown, algorithm.policy(learner, clock, True))

    def start(learner: PyTree, environment_keys: Key, memory_keys: Key) -> tuple[Carry, Memory]:
        world, policy = collectors(learner, clock_at(0))
        if repeated is not None:
            environment_keys = environment_keys[jnp.arange(config.num_envs) % repeated]
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

    def check(clock: Clock, states: LoopState) -> dict[str, Bool[Array, "K"]]:
        return parts.check(clock, states, collect_all(clock, states))

    def compiled(
        compile: Compile, closing: contextlib.ExitStack, clock: Clock, states: LoopState, sharding: SeedSharding
    ) -> Any:
        everywhere = sharding.over(run, OF_ALL, OF_SEEDS, OF_ALL, result=(OF_ALL, OF_SEEDS))
        return compile("training", jax.jit(everywhere, donate_argnums=1), clock, states, jnp.ones((), jnp.int32))

    return Loop(jax.vmap(parts.init), run, parts.steps_per_call, parts.checked, compiled, check)


def clock_at(env_steps: int) -> Clock:
    """The clock after `env_steps` steps of each seed's environments."""
    return Clock(jnp.asarray(env_steps, jnp.int32))


def _episodes(running: tuple[Array, Array], transitions: Transition) -> tuple[tuple[Array, Array], Metrics]:
    """Metrics of the episodes that finished in `transitions` [period, num_envs]."""

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


def _finite(found: Metrics, transitions: Transition, learned: PyTree) -> dict[str, Bool[Array, ""]]:
    """Whether values are finite, by the names of `_checked`: data, metrics, and whether each optimiser is still active."""
    values = [_all_finite(getattr(transitions, name)) for name in DATA]
    values += [jnp.isfinite(found[name].total) for name in sorted(found)]
    values += [part.active for _, part in _with_active(learned)]
    return dict(zip(_checked(found, learned), values, strict=True))


DATA = ("observation", "action", "reward", "next_observation")
"""Fields of a transition that are checked."""


def _checked(found: Metrics, learned: PyTree) -> tuple[str, ...]:
    """Names of what is checked, in the order in which a fault is looked for."""
    gradients = (
        f"{getattr(part, 'checks', 'gradient')} of {jax.tree_util.keystr(path)[1:]}" for path, part in _with_active(learned)
    )
    return (*(f"transition/{name}" for name in DATA), *sorted(found), *gradients)


def _with_active(learned: PyTree) -> list[tuple[Any, Any]]:
    """(path, part) of the parts of a state that check their own updates (`core.types.Gated`)."""
    leaves = jax.tree_util.tree_leaves_with_path(learned, is_leaf=tree.is_gated)
    return [(path, part) for path, part in leaves if tree.is_gated(part) and hasattr(part, "active")]


def _all_finite(values: PyTree) -> Bool[Array, ""]:
    numbers = [leaf for leaf in jax.tree.leaves(values) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in numbers])) if numbers else jnp.ones((), bool)
