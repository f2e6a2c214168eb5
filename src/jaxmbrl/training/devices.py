"""Sharding of seeds over the devices of this process: each device trains its own seeds without waiting for others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxmbrl.core.types import PyTree

SEEDS = "seeds"
"""Name of the mesh axis."""
OF_SEEDS, OF_ALL = PartitionSpec(SEEDS), PartitionSpec()
"""Partitioning of arrays [K, ...], and of arrays that all seeds share."""


class SeedSharding(NamedTuple):
    """How K seeds are distributed over devices."""

    seeds: int
    rows: int
    """K plus the copies of the last seed that make the shares of all devices equal."""
    mesh: Mesh | None
    """None for a single device."""

    @property
    def devices(self) -> int:
        """Number of devices in use."""
        return 1 if self.mesh is None else self.mesh.size

    def over(self, function: Callable[..., Any], *arguments: PartitionSpec, result: Any) -> Callable[..., Any]:
        """`function` of arrays with these partitionings, run separately on each device with the device's share of the
        seeds."""
        if self.mesh is None:
            return function
        return jax.shard_map(function, mesh=self.mesh, in_specs=arguments, out_specs=result, check_vma=False)

    def place(self, arrays: PyTree) -> PyTree:
        """Arrays [K, ...] placed on the devices as arrays [rows, ...]."""
        if self.mesh is None:
            return arrays
        rows = np.minimum(np.arange(self.rows), self.seeds - 1)
        return jax.device_put(
            jax.tree.map(lambda x: x if self.rows == self.seeds else x[rows], arrays), NamedSharding(self.mesh, OF_SEEDS)
        )

    def of_seeds(self, arrays: PyTree) -> PyTree:
        """Arrays [rows, ...] without the copies: [K, ...]."""
        return arrays if self.rows == self.seeds else jax.tree.map(lambda x: x[: self.seeds], arrays)

    def describe(self) -> str:
        """The distribution in words."""
        share = self.rows // self.devices
        short = f", {self.rows - self.seeds} fewer on the last" if self.rows > self.seeds else ""
        return f"{self.seeds} seeds on {self.devices} devices, {share} on each{short}"


def single_device(seeds: int) -> SeedSharding:
    """All seeds on one device."""
    return SeedSharding(seeds, seeds, None)


def shard_seeds(seeds: int, devices: Sequence[Any]) -> SeedSharding:
    """`seeds` over all `devices`, or over fewer if that takes no longer: 5 seeds on 4 devices use 3 of them."""
    share = -(-seeds // len(devices))
    used = -(-seeds // share)
    if used == 1:
        return single_device(seeds)
    return SeedSharding(seeds, share * used, Mesh(np.array(devices[:used]), (SEEDS,)))


def rows_of(sharding: SeedSharding, first: int) -> jax.Array:
    """The seed of each row, [rows]."""
    return first + jnp.minimum(jnp.arange(sharding.rows), sharding.seeds - 1)
