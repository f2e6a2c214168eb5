"""A run's deterministic policy as one function of arrays, with its randomness and its memory made explicit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped

from jaxmbrl.core.spaces import Discrete, Space
from jaxmbrl.core.types import Algorithm, Clock, PyTree, Task
from jaxmbrl.exporting.translating import uses
from jaxmbrl.rollout import step_keys
from jaxmbrl.training.evaluation import keys_of


class Exportable(NamedTuple):
    """A policy as a function `(observation, *memory) -> (action, *memory)`."""

    act: Callable[..., tuple[Any, ...]]
    observation: jax.ShapeDtypeStruct
    action: jax.ShapeDtypeStruct
    memory: dict[str, Shaped[np.ndarray, "..."]]
    """Initial memory by name, in the order of the function's arguments."""
    random: bool
    """Whether the action depends on random numbers. The memory then ends with `key`, the key of an episode, and `step`, the
    number of the step in it."""
    batch: int | None = None
    """Number of observations [N, ...] that it takes at once, with actions and memories [N, ...]; None for one, without this
    axis."""

    @property
    def inputs(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and dtype of each argument, by name."""
        structures = {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in self.memory.items()}
        return {"observation": self.observation} | structures


def deterministic(algorithm: Algorithm, task: Task, state: PyTree, clock: Clock) -> Exportable:
    """The policy that `evaluate` evaluates, of the `state` of one seed. Its memory is that of the start of episode 0 of an
    evaluation, and so are its random numbers, if it needs any."""
    policy = algorithm.policy(state, clock, False)
    _, memory_key, rollout_key = keys_of(0)
    found, structure = jax.tree_util.tree_flatten_with_path(policy.init(memory_key))
    is_key = [jnp.issubdtype(jnp.asarray(leaf).dtype, jax.dtypes.prng_key) for _, leaf in found]
    kind = jax.random.key_impl(rollout_key)

    def plain(observation: Any, key: Any, *leaves: Any) -> tuple[Any, ...]:
        """The policy with keys as numbers."""
        memory = [jax.random.wrap_key_data(x, impl=kind) if of else x for x, of in zip(leaves, is_key, strict=True)]
        acting = policy.act(jax.tree.unflatten(structure, memory), observation, jax.random.wrap_key_data(key, impl=kind))
        return acting[0], *_plain(jax.tree.leaves(acting[2]), is_key)

    def random(observation: Any, *memory: Any) -> tuple[Any, ...]:
        """The policy with the keys of `rollout.rollout`."""
        *leaves, key, step = memory
        act_key, _ = step_keys(jax.random.wrap_key_data(key, impl=kind), step)
        return *plain(observation, jax.random.key_data(act_key), *leaves), key, step + 1

    zeros = task.observation.zeros()
    observation = jax.ShapeDtypeStruct(zeros.shape, zeros.dtype)
    leaves = _plain([leaf for _, leaf in found], is_key)
    memory = {
        f"memory{jax.tree_util.keystr(path)}": np.asarray(leaf) for (path, _), leaf in zip(found, leaves, strict=True)
    }
    key = np.asarray(jax.random.key_data(rollout_key))
    traced = jax.make_jaxpr(plain)(observation, key, *leaves)
    needs_key = uses(traced)[1]
    if needs_key:
        memory |= {"key": key, "step": np.zeros((), np.int32)}
    act = random if needs_key else lambda observation, *leaves: plain(observation, key, *leaves)
    action = traced.out_avals[0]
    return Exportable(act, observation, jax.ShapeDtypeStruct(action.shape, action.dtype), memory, needs_key)


def batched(policy: Exportable, batch: int) -> Exportable:
    """The policy for `batch` observations at once. Each has a memory of its own, initially that of `policy`."""

    def wider(of: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch, *of.shape), of.dtype)

    memory = {name: np.repeat(value[None], batch, axis=0) for name, value in policy.memory.items()}
    return policy._replace(
        act=jax.vmap(policy.act),
        observation=wider(policy.observation),
        action=wider(policy.action),
        memory=memory,
        batch=batch,
    )


def _plain(leaves: Sequence[Any], is_key: Sequence[bool]) -> list[Any]:
    """The leaves, with keys as numbers."""
    return [jax.random.key_data(leaf) if of else jnp.asarray(leaf) for leaf, of in zip(leaves, is_key, strict=True)]


def samples(space: Space, count: int) -> list[Shaped[np.ndarray, "..."]]:
    """`count` elements of a space: uniform between its bounds, or normal if they are infinite."""
    random, zeros = np.random.default_rng(0), np.asarray(space.zeros())
    drawn: np.ndarray[Any, Any]
    if isinstance(space, Discrete):
        drawn = random.integers(0, space.n, count)
    elif np.isfinite(space.high - space.low):
        drawn = random.uniform(space.low, space.high, (count, *space.shape))
    else:
        drawn = random.normal(size=(count, *space.shape))
    return [np.asarray(element, zeros.dtype) for element in drawn]


def largest_difference(exported: Callable[..., Sequence[Any]], policy: Exportable, space: Space, steps: int = 8) -> float:
    """The largest difference between actions of an exported file and of its policy, along `steps` observations. NaN if one
    of the two is not a number."""
    own: Callable[..., Sequence[Any]] = jax.jit(policy.act)
    memories: list[Sequence[Any]] = [list(policy.memory.values())] * 2
    found = 0.0
    drawn = samples(space, steps * (policy.batch or 1))
    if policy.batch is not None:
        drawn = list(np.stack(drawn).reshape(steps, policy.batch, *drawn[0].shape))
    for observation in drawn:
        actions = []
        for i, function in enumerate((own, exported)):
            action, *memories[i] = function(observation, *memories[i])
            actions.append(np.asarray(action, np.float64))
        same = (actions[0] == actions[1]) | (np.isnan(actions[0]) & np.isnan(actions[1]))
        with np.errstate(invalid="ignore"):
            found = float(np.maximum(found, np.max(np.where(same, 0.0, np.abs(actions[0] - actions[1])), initial=0.0)))
    return found
