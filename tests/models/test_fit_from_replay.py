"""An ensemble is fitted to the valid rows of a replay buffer, whose number all seeds share."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hand_made import TINY, ready, table
from in_order import in_order
from jax.extend.core import jaxprs_in_params

from jaxmbrl.data import replay
from jaxmbrl.models import ensemble

SMALL = dataclasses.replace(TINY, members=2, hidden=(4,), weight_decay=(), max_epochs=2)
MODEL = ensemble.make(SMALL, 2, 1)
FIT, ADD, IN_ORDER = jax.jit(MODEL.fit), jax.jit(replay.add), jax.jit(in_order)


def test_of_rows_is_a_buffer_of_the_rows_as_they_are():
    rows = {"a": np.arange(5.0), "b": np.arange(10).reshape(5, 2)}
    buffer = replay.of_rows(rows)
    assert [int(x) for x in (buffer.position, buffer.size, buffer.capacity)] == [0, 5, 5]
    jax.tree.map(np.testing.assert_array_equal, IN_ORDER(buffer), rows)
    # Of fewer valid rows, the next one is written after them.
    some = jax.jit(replay.of_rows)(rows, np.int32(3))
    np.testing.assert_array_equal(np.asarray(IN_ORDER(some)["a"])[:3], [0, 1, 2])
    more = ADD(some, {"a": np.array([9.0]), "b": np.array([[9, 9]])})
    np.testing.assert_array_equal(np.asarray(IN_ORDER(more)["a"])[: int(more.size)], [0, 1, 2, 9])
    with pytest.raises(AssertionError):
        replay.of_rows({"a": np.arange(5.0), "b": np.arange(4.0)})


def test_with_size_changes_the_size_alone():
    buffer = replay.of_rows(jax.device_put(np.arange(5.0)), 3)
    changed = replay.with_size(buffer, jax.device_put(np.int32(4)))
    assert int(changed.size) == 4 and changed.size.dtype == jnp.int32
    assert changed._replace(size=buffer.size) == buffer


@pytest.mark.parametrize("added", [5, 12, 20])
def test_the_fit_of_a_ring_is_that_of_its_rows_where_they_lie(added):
    """A ring of 12 rows, partly filled, full, and full for long."""
    rows = table(np.random.default_rng(0), 20)
    ring = jax.jit(lambda: replay.init(jax.tree.map(lambda x: x[0], rows), 12))()
    for i in range(added):
        ring = ADD(ring, jax.tree.map(lambda x, i=i: x[i : i + 1], rows))
    (_, state), key = ready(SMALL), jax.random.key(1)
    last = {i % 12: i for i in range(added)}
    lying = jax.tree.map(lambda x: x[[last.get(slot, 19) for slot in range(12)]], rows)
    jax.tree.map(
        np.testing.assert_array_equal, FIT(state, ring, key), FIT(state, replay.of_rows(lying, min(added, 12)), key)
    )


def loops_of(jaxpr):
    """(loops whose condition is batched, all loops)."""
    batched = loops = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "while":
            loops += 1
            batched += equation.params["cond_jaxpr"].out_avals[0].shape != ()
        for inner in jaxprs_in_params(equation.params):
            found = loops_of(inner)
            batched, loops = batched + found[0], loops + found[1]
    return batched, loops


def test_a_size_that_all_seeds_share_leaves_the_loops_over_rows_unbatched():
    rows = jax.tree.map(lambda x: np.stack([x, x]), table(np.random.default_rng(0), 12))
    keys = jax.random.split(jax.random.key(0), 2)
    buffers, states = jax.eval_shape(
        lambda rows, keys: (jax.vmap(replay.of_rows)(rows), jax.vmap(lambda key: MODEL.init(key, {}))(keys)), rows, keys
    )

    def loops(fit):
        return loops_of(jax.make_jaxpr(jax.vmap(fit))(states, buffers, keys).jaxpr)

    size = jnp.asarray(12)
    shared = loops(lambda state, buffer, key: MODEL.fit(state, replay.with_size(buffer, size), key))
    own = loops(MODEL.fit)
    assert shared[1] == own[1] > 3
    # Early stopping and the walk of a shuffle end by what a seed found; the loops over minibatches and over the holdout's
    # chunks (twice: every epoch, and at the end) do not.
    assert (shared[0], own[0]) == (2, 5)
