"""The rows of a replay buffer in the order in which they were added."""

import jax
import jax.numpy as jnp


def in_order(buffer):
    """All C rows, the valid ones first, oldest to newest."""
    count = jax.tree.leaves(buffer.data)[0].shape[0]
    slots = (buffer.position - buffer.size + jnp.arange(count)) % count
    return jax.tree.map(lambda leaf: leaf[slots], buffer.data)
