"""The training loop for tasks that run on the host, with the same keys and the same `learn` as in `loop`.

At each step, one compiled call computes the actions of all seeds, and Python steps the environments; a second compiled call
learns. If the host environment wraps a `World` and uses the same seeds, both loops give the same training.
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

NEW_EPISODES = 4
"""Index, folded into a seed's key, of the random stream for episodes that begin after a resume. Splitting the key uses 0
and 1."""


class HostCarry(NamedTuple):
    """The carry of a `LoopState` for environments on the host."""

    observation: Shaped[Array, "num_envs ..."]
    is_first: Bool[Array, "num_envs"]
    """Whether that observation is the first of an episode."""
    seed: UInt32[Array, "num_envs"]
    """Seeds of the first episodes of the run."""


def make(algorithm: Algorithm, task: Task, config: LoopConfig) -> Loop:
    """The loop of `algorithm` on `task`, which runs on the host. The randomness of a seed does not depend on the other
    seeds. A frozen seed, which had a value that is not finite, is not stepped any more.

    Environments are created when the loop is compiled. Their internal state is not part of `LoopState`: a loop that is
    compiled for a clock above 0 begins new episodes.

    Raises UserError if the algorithm plans in the true simulator or repeats start states.
    """
    _check(algorithm, task)

    def collector(learner: PyTree, clock: Clock) -> Policy:
        return auto_reset(task.world, algorithm.policy(learner, clock, True))[1]

    def start(learner: PyTree, environment_keys: Key, memory_keys: Key) -> tuple[HostCarry, Memory]:
        observation = jnp.broadcast_to(task.observation.zeros(), (config.num_envs, *task.observation.shape))
        seeds = jax.vmap(host_seed)(environment_keys)
        memory = jax.vmap(collector(learner, clock_at(0)).init)(memory_keys)
        return HostCarry(observation, jnp.ones(config.num_envs, bool), seeds), memory

    def acting(
        clock: Clock,
        state: LoopState,
        memory: Memory,
        observation: Shaped[Array, "num_envs ..."],
        is_first: Bool[Array, "num_envs"],
        i: Int[Array, ""],
    ) -> Any:
        """Step `i` of a call for one seed: (action, extras, memory, seeds for resets after the step), each [num_envs]."""
        policy = collector(state.algorithm, clock)
        keys = jax.random.split(collecting_key(state), config.num_envs)
        return jax.vmap(lambda memory, seen, is_first, key: act(policy, memory, seen, is_first, key, i))(
            memory, observation, is_first, keys
        )

    def shapes(clock: Clock, state: LoopState) -> Rollout:
        """The rollout of one call, with all values zero."""
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
        # The learner's state is a separate argument, because only it is large and donated.
        return parts.call(clock, states._replace(algorithm=learner), collected)

    def compiled(
        compile: Compile, closing: contextlib.ExitStack, clock: Clock, states: LoopState, sharding: SeedSharding
    ) -> Any:
        assert sharding.mesh is None, "what lives on the host is stepped from one device"
        states = _with_new_episodes(clock, states, config.num_envs)
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
            states = states if started else _with_new_episodes(clock, states, config.num_envs)
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
            f"model 'true' plans in the true simulator, but that of task '{task.name}' runs outside of the compiled "
            "program: leave model out"
        )
    if algorithm.start_states is not None:
        raise UserError(
            f"the method repeats start states, and those of task '{task.name}' cannot be repeated, because it runs outside "
            "of the compiled program: take a task written in JAX"
        )


class _Hosts:
    """The environments of all seeds [K, num_envs], for collecting data."""

    def __init__(self, task: Task, seed: UInt32[np.ndarray, "K num_envs"]) -> None:
        self.seed = seed
        self.environments = Environments(task, seed.size)
        self.environments.begin(seed.reshape(-1))

    def seen(self) -> HostCarry:
        """The current observations."""
        now = (self.environments.observation, self.environments.is_first)
        # Copies, because the environments write into their own arrays.
        observation, is_first = (x.reshape(*self.seed.shape, *x.shape[1:]).copy() for x in now)
        seen: list[Any] = [observation, is_first, self.seed]
        return HostCarry(*seen)

    def collect(self, acts: Callable[..., Any], clock: Clock, states: LoopState, period: int) -> Rollout:
        """The rollout of all seeds for one call of `learn`. That of a frozen seed is meaningless."""
        frozen = np.repeat(np.asarray(states.fault.what) >= 0, self.seed.shape[1])
        memory, rows = states.memory, []
        for i in range(period):
            seen = self.seen()
            result = acts(clock, states, memory, seen.observation, seen.is_first, jnp.asarray(i, jnp.int32))
            (action, extras, again), memory = jax.device_get((result[0], result[1], result[3])), result[2]
            action = action.reshape(-1, *action.shape[2:])
            # An action that is not finite must not reach a simulator or a robot: the seed is frozen.
            row = self.environments.step(action, again.reshape(-1), ~frozen & finite_rows(action))
            row = jax.tree.map(lambda x: x.reshape(*self.seed.shape, *x.shape[1:]), row)
            rows.append(row._replace(extras=extras))
        return Rollout(self.seen(), memory, jax.tree.map(lambda *x: np.stack(x, axis=1), *rows))


def _with_new_episodes(clock: Clock, states: LoopState, num_envs: int) -> LoopState:
    """The states, changed to begin new episodes. At the start of a run nothing changes. Parts of the algorithm's state in
    which rows continue each other, such as buffers, have a method `interrupted`, which is called here."""
    if int(clock.env_steps) == 0:
        return states

    def depends(x: Any) -> bool:
        return hasattr(type(x), "interrupted")

    def interrupted(x: Any) -> Any:
        return jax.vmap(lambda x: x.interrupted(num_envs))(x) if depends(x) else x

    keys = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, NEW_EPISODES), num_envs))(states.key)
    return states._replace(
        algorithm=jax.tree.map(interrupted, states.algorithm, is_leaf=depends),
        carry=states.carry._replace(seed=jax.vmap(jax.vmap(host_seed))(keys)),
        running_return=jnp.zeros_like(states.running_return),
        running_length=jnp.zeros_like(states.running_length),
    )
