"""Seeds spread over the devices of this process: each device works through its own seeds, and none waits for another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxmbrl.core.types import PyTree

SEEDS = "seeds"
"""Name of the axis."""
OF_SEEDS, OF_ALL = PartitionSpec(SEEDS), PartitionSpec()
"""How arrays [K, ...] lie, and those that all seeds share."""


class Spread(NamedTuple):
    """How K seeds lie on devices."""

    seeds: int
    rows: int
    """K, and the copies of the last seed that make every share equal."""
    mesh: Mesh | None
    """None for a single device."""

    @property
    def devices(self) -> int:
        """Devices that work."""
        return 1 if self.mesh is None else self.mesh.size

    def over(self, function: Callable[..., Any], *arguments: PartitionSpec, result: Any) -> Callable[..., Any]:
        """`function` of arrays that lie as told, on each device by itself: on several it sees a share of the seeds."""
        if self.mesh is None:
            return function
        return jax.shard_map(function, mesh=self.mesh, in_specs=arguments, out_specs=result, check_vma=False)

    def place(self, arrays: PyTree) -> PyTree:
        """Arrays [K, ...] as arrays [rows, ...] on the devices."""
        if self.mesh is None:
            return arrays
        rows = np.minimum(np.arange(self.rows), self.seeds - 1)
        return jax.device_put(
            jax.tree.map(lambda x: x if self.rows == self.seeds else x[rows], arrays), NamedSharding(self.mesh, OF_SEEDS)
        )

    def of_seeds(self, arrays: PyTree) -> PyTree:
        """Arrays [rows, ...] without the copies: [K, ...]."""
        return arrays if self.rows == self.seeds else jax.tree.map(lambda x: x[: self.seeds], arrays)

    def told(self) -> str:
        """How the seeds lie, in words."""
        share = self.rows // self.devices
        short = f", {self.rows - self.seeds} fewer on the last" if self.rows > self.seeds else ""
        return f"{self.seeds} seeds on {self.devices} devices, {share} on each{short}"


def alone(seeds: int) -> Spread:
    """All seeds on one device."""
    return Spread(seeds, seeds, None)


def spread(seeds: int, devices: Sequence[Any]) -> Spread:
    """`seeds` over all `devices`, or over as few as need no more time: 5 on 4 devices lie on 3."""
    share = -(-seeds // len(devices))
    used = -(-seeds // share)
    if used == 1:
        return alone(seeds)
    return Spread(seeds, share * used, Mesh(np.array(devices[:used]), (SEEDS,)))


def rows_of(spread: Spread, first: int) -> jax.Array:
    """The numbers of the seeds, [rows]."""
    return first + jnp.minimum(jnp.arange(spread.rows), spread.seeds - 1)
