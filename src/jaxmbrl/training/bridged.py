"""The loop for tasks that live on the host: the same keys and the same `learn` as in `loop`, with Python in between.

Each step of the environments, the policy acts for all seeds in one compiled call, and Python steps the environments; a
second compiled call learns. Where a host environment is a `World` that is seeded alike, both loops train alike.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Shaped, UInt32

from jaxmbrl.core.config import UserError
from jaxmbrl.core.types import Algorithm, Clock, Key, Memory, Policy, PyTree, Task, Transition
from jaxmbrl.rollout import auto_reset
from jaxmbrl.training.devices import SeedSharding
from jaxmbrl.training.hosted import Environments, act, finite_rows, host_seed
from jaxmbrl.training.loop import (
    Compile,
    Loop,
    LoopConfig,
    LoopState,
    Rollout,
    clock_at,
    collecting_key,
    learning,
)

ANEW = 4
"""Stream of randomness, below a seed's running key, of episodes that begin after a resume; that key's own split takes 0
and 1."""


class Outside(NamedTuple):
    """What a `LoopState` carries of environments that it cannot hold."""

    observation: Shaped[Array, "num_envs ..."]
    is_first: Bool[Array, "num_envs"]
    """Whether that observation is an episode's first."""
    seed: UInt32[Array, "num_envs"]
    """With which the very first episodes begin."""


def make(algorithm: Algorithm, task: Task, config: LoopConfig) -> Loop:
    """The loop of `algorithm` on `task`, which lives on the host. Seed k has the same randomness whatever the other seeds
    are; a seed that met a value that is not finite is stepped no more.

    Environments are made when the loop is compiled. What is inside of them is in no `LoopState`: compiled for a clock
    beyond 0, the loop begins new episodes.

    Raises UserError where the algorithm plans in the true simulator.
    """
    _check(algorithm, task)

    def collector(learner: PyTree, clock: Clock) -> Policy:
        return auto_reset(task.world, algorithm.policy(learner, clock, True))[1]

    def start(learner: PyTree, environment_keys: Key, memory_keys: Key) -> tuple[Outside, Memory]:
        observation = jnp.broadcast_to(task.observation.zeros(), (config.num_envs, *task.observation.shape))
        seeds = jax.vmap(host_seed)(environment_keys)
        memory = jax.vmap(collector(learner, clock_at(0)).init)(memory_keys)
        return Outside(observation, jnp.ones(config.num_envs, bool), seeds), memory

    def acting(
        clock: Clock,
        state: LoopState,
        memory: Memory,
        observation: Shaped[Array, "num_envs ..."],
        is_first: Bool[Array, "num_envs"],
        i: Int[Array, ""],
    ) -> Any:
        """Step `i` of a call, of one seed: (action, extras, memory, seeds of resets after the step), each [num_envs]."""
        policy = collector(state.algorithm, clock)
        keys = jax.random.split(collecting_key(state), config.num_envs)
        return jax.vmap(lambda memory, seen, is_first, key: act(policy, memory, seen, is_first, key, i))(
            memory, observation, is_first, keys
        )

    def shapes(clock: Clock, state: LoopState) -> Rollout:
        """What a call collects, all zeros."""
        seen, steps = state.carry, (algorithm.period, config.num_envs)
        action, extras, memory, _ = acting(
            clock, state, state.memory, seen.observation, seen.is_first, jnp.zeros((), jnp.int32)
        )
        action, extras, observation = jax.tree.map(
            lambda x: jnp.zeros((algorithm.period, *x.shape), x.dtype), (action, extras, seen.observation)
        )
        none = jnp.zeros(steps, bool)
        rows = Transition(observation, action, jnp.zeros(steps), observation, none, none, extras)
        return Rollout(seen, memory, rows)

    parts = learning(algorithm, config, start, shapes)

    def learn(clock: Clock, learner: PyTree, states: LoopState, collected: Rollout) -> tuple[Clock, LoopState]:
        # The learner's state apart, as it alone is large and given up: a memory may be in both of the others.
        return parts.call(clock, states._replace(algorithm=learner), collected)

    def compiled(
        compile: Compile, closing: contextlib.ExitStack, clock: Clock, states: LoopState, sharding: SeedSharding
    ) -> Any:
        assert sharding.mesh is None, "what lives on the host is stepped from one device"
        states = _anew(clock, states, config.num_envs)
        hosts = _Hosts(task, np.asarray(states.carry.seed))
        closing.callback(hosts.environments.close)
        seen, zero = hosts.seen(), jnp.zeros((), jnp.int32)
        over_seeds = jax.jit(jax.vmap(acting, in_axes=(None, 0, 0, 0, 0, None)))
        acts = compile("acting", over_seeds, clock, states, states.memory, seen.observation, seen.is_first, zero)
        rows = jax.eval_shape(jax.vmap(shapes, in_axes=(None, 0)), clock, states).transitions
        collected = Rollout(seen, states.memory, rows)
        donated = jax.jit(learn, donate_argnums=1)
        learns = compile("learning", donated, clock, states.algorithm, states._replace(algorithm=()), collected)
        started = False

        def run(clock: Clock, states: LoopState, calls: Int[Array, ""]) -> tuple[Clock, LoopState]:
            nonlocal started
            states = states if started else _anew(clock, states, config.num_envs)
            started = True
            for _ in range(int(calls)):
                collected = hosts.collect(acts, clock, states, algorithm.period)
                clock, states = learns(clock, states.algorithm, states._replace(algorithm=()), collected)
            return clock, states

        return run

    return Loop(jax.vmap(parts.init), None, parts.steps_per_call, parts.checked, compiled, None)


def _check(algorithm: Algorithm, task: Task) -> None:
    if algorithm.observes_full_state:
        raise UserError(
            f"model 'true' plans in the true simulator, and that of task '{task.name}' lives outside of the compiled "
            "program: leave model out"
        )


class _Hosts:
    """The environments of all seeds [K, num_envs], and collecting in them."""

    def __init__(self, task: Task, seed: UInt32[np.ndarray, "K num_envs"]) -> None:
        self.seed = seed
        self.environments = Environments(task, seed.size)
        self.environments.begin(seed.reshape(-1))

    def seen(self) -> Outside:
        """What they show now."""
        now = (self.environments.observation, self.environments.is_first)
        # Copies, as the environments write into theirs.
        observation, is_first = (x.reshape(*self.seed.shape, *x.shape[1:]).copy() for x in now)
        seen: list[Any] = [observation, is_first, self.seed]
        return Outside(*seen)

    def collect(self, acts: Callable[..., Any], clock: Clock, states: LoopState, period: int) -> Rollout:
        """What all seeds collect for one call of `learn`; that of a frozen seed means nothing."""
        frozen = np.repeat(np.asarray(states.fault.what) >= 0, self.seed.shape[1])
        memory, rows = states.memory, []
        for i in range(period):
            seen = self.seen()
            told = acts(clock, states, memory, seen.observation, seen.is_first, jnp.asarray(i, jnp.int32))
            (action, extras, again), memory = jax.device_get((told[0], told[1], told[3])), told[2]
            action = action.reshape(-1, *action.shape[2:])
            # What is not finite must not reach a simulator, still less a robot: the seed is frozen for it.
            row = self.environments.step(action, again.reshape(-1), ~frozen & finite_rows(action))
            row = jax.tree.map(lambda x: x.reshape(*self.seed.shape, *x.shape[1:]), row)
            rows.append(row._replace(extras=extras))
        return Rollout(self.seen(), memory, jax.tree.map(lambda *x: np.stack(x, axis=1), *rows))


def _anew(clock: Clock, states: LoopState, num_envs: int) -> LoopState:
    """The states about to begin new episodes; at the start they are already. Parts of the algorithm's state that depend on
    rows without a gap, such as buffers of sequences, have a method `interrupted` that says so to them."""
    if int(clock.env_steps) == 0:
        return states

    def depends(x: Any) -> bool:
        return hasattr(type(x), "interrupted")

    def interrupted(x: Any) -> Any:
        return jax.vmap(lambda x: x.interrupted())(x) if depends(x) else x

    keys = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, ANEW), num_envs))(states.key)
    return states._replace(
        algorithm=jax.tree.map(interrupted, states.algorithm, is_leaf=depends),
        carry=states.carry._replace(seed=jax.vmap(jax.vmap(host_seed))(keys)),
        running_return=jnp.zeros_like(states.running_return),
        running_length=jnp.zeros_like(states.running_length),
    )
