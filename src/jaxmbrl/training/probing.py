"""The probes of an algorithm: metrics of its state that are computed at each evaluation (`types.Algorithm.probes`)."""

from __future__ import annotations

from collections.abc import Callable

import jax

from jaxmbrl.core.config import UserError
from jaxmbrl.core.types import Algorithm, Metrics, PyTree
from jaxmbrl.training.devices import OF_SEEDS, SeedSharding
from jaxmbrl.training.loop import Compile, LoopState

TAKEN = ("epoch", "env_steps", "seed", "wall_time", "frozen", "train/episodes", "eval/return")
"""Names in a row that are not metrics of the algorithm; nor are `time/...`."""


def check(algorithm: Algorithm, state: LoopState) -> None:
    """Raise UserError if the name of a probe is already used in a row of metrics. `state` [K] may be its shapes."""
    for name in names(algorithm, state.algorithm):
        if name in TAKEN or name.startswith("time/") or name in state.metrics:
            raise UserError(f"a probe must not be called '{name}': the rows of metrics have a value of that name")


def names(algorithm: Algorithm, states: PyTree) -> tuple[str, ...]:
    """The names of the probes; `states` [K, ...] may be shapes."""
    of_seed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), states)
    return tuple(jax.eval_shape(algorithm.probes, of_seed))


def prober(algorithm: Algorithm, compile: Compile, states: PyTree, sharding: SeedSharding) -> Callable[[PyTree], Metrics]:
    """A compiled function that returns the probes, each [K], of states like `states` [K, ...]. Without probes, nothing is
    compiled."""
    if not names(algorithm, states):
        return lambda states: {}
    everywhere = sharding.over(jax.vmap(algorithm.probes), OF_SEEDS, result=OF_SEEDS)
    return compile("probes", jax.jit(everywhere), states)
