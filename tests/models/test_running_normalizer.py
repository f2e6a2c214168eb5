"""The running normaliser against the moments of all rows in float64."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxmbrl.models.normalizer import merge, normalize, running


def test_merged_moments_are_those_of_all_rows():
    rng = np.random.default_rng(0)
    parts = [rng.normal(1000.0, 3.0, (n, 2)) + shift for n, shift in ((7, 0.0), (50, 20.0), (3, -5.0))]
    state = running(2)
    unchanged = np.asarray(parts[0], np.float32)
    np.testing.assert_array_equal(normalize(state.normalizer, jnp.asarray(unchanged)), unchanged)
    add = jax.jit(merge, static_argnums=2)
    with jax.enable_x64(True):
        state = running(2)
        for part in parts:
            state = add(state, part, 2.0)
        rows = np.concatenate(parts)
        np.testing.assert_allclose(state.normalizer.mean, rows.mean(0), rtol=1e-12)
        np.testing.assert_allclose(state.normalizer.std, rows.std(0), rtol=1e-8)
        assert float(state.rows) == 60
        expected = np.clip((rows - rows.mean(0)) / rows.std(0), -2, 2)
        assert (np.abs(expected) == 2).any()
        np.testing.assert_allclose(normalize(state.normalizer, jnp.asarray(rows)), expected, rtol=1e-7, atol=1e-9)


def test_a_constant_column_becomes_zero():
    state = running(1)
    for _ in range(3):
        state = merge(state, jnp.full((4, 1), 3.0), 10.0)
    assert normalize(state.normalizer, jnp.full((1, 1), 3.0)).item() == 0.0
    assert 0 < float(state.normalizer.std[0]) < 2e-4
