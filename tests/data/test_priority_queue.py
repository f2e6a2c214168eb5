"""The priority queue against a sorted list."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxmbrl.data import priority_queue


def test_entries_come_out_by_priority_and_keep_the_larger_one():
    def run():
        queue = priority_queue.init((3, 2))
        queue = priority_queue.push(queue, (1, 0), jnp.float32(2.0), 0.5)
        queue = priority_queue.push(queue, (1, 0), jnp.float32(1.0), 0.5)  # lower: the entry keeps 2
        queue = priority_queue.push(queue, (0, 1), jnp.float32(0.5), 0.5)  # not above the threshold
        queue = priority_queue.push_all(queue, jnp.array([[0.0, 0.25], [0.75, 1.5], [3.0, 0.0]]), 0.5)

        def pop(queue, _):
            queue, first, present = priority_queue.pop(queue)
            return queue, (first, present)

        return jax.lax.scan(pop, queue, None, 5)

    queue, (first, present) = jax.jit(run)()
    assert np.asarray(present).tolist() == [True, True, True, False, False]
    assert np.asarray(first)[:3].tolist() == [4, 2, 3], "flat indices of (2, 0), (1, 0), (1, 1)"
    assert not np.asarray(queue.priority).any()
