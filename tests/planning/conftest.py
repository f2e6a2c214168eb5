"""What the planners' tests share."""

import jax
import numpy as np
import pytest


@pytest.fixture(scope="session")
def watched():
    """`watched(function, seen)`: an objective that NumPy computes from a whole population, which `seen` then records."""

    def watched(function, seen):
        def on_host(population):
            seen.append(np.array(population))
            return np.asarray(function(seen[-1]), population.dtype)

        def objective(actions, key):
            value = jax.ShapeDtypeStruct((), actions.dtype)
            return jax.pure_callback(on_host, value, actions, vmap_method="broadcast_all")

        return objective

    return watched
