"""A priority queue over a fixed set of entries, as an array of their priorities: shapes stay fixed on the device."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class PriorityQueue(NamedTuple):
    """The priority of each possible entry."""

    priority: Float[Array, "..."]
    """Above 0 for entries in the queue, 0 for all others."""


def init(shape: tuple[int, ...]) -> PriorityQueue:
    """An empty queue for entries with indices into an array of this shape."""
    return PriorityQueue(jnp.zeros(shape))


def push(queue: PriorityQueue, at: Any, priority: Float[Array, ""], threshold: Any = 0.0) -> PriorityQueue:
    """Insert the entry `at` if its priority is above `threshold`, at least 0. An entry that is already in the queue keeps
    the larger priority."""
    return PriorityQueue(queue.priority.at[at].max(jnp.where(priority > threshold, priority, 0.0)))


def push_all(queue: PriorityQueue, priority: Float[Array, "..."], threshold: Any = 0.0) -> PriorityQueue:
    """The same for all entries at once; `priority` has the shape of the queue."""
    return PriorityQueue(jnp.maximum(queue.priority, jnp.where(priority > threshold, priority, 0.0)))


def pop(queue: PriorityQueue) -> tuple[PriorityQueue, Int[Array, ""], Bool[Array, ""]]:
    """(queue without its first entry, flat index of that entry, whether there was one). Of several entries with the largest
    priority, the first is the one with the smallest index."""
    flat = queue.priority.reshape(-1)
    first = jnp.argmax(flat).astype(jnp.int32)
    return PriorityQueue(flat.at[first].set(0.0).reshape(queue.priority.shape)), first, flat[first] > 0
