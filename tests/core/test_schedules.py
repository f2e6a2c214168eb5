"""Schedules: tables beside NumPy's interpolation in float64 and beside whole-number arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl.core.config import UserError, check
from jaxmbrl.core.schedules import GrowingLength, LinearSchedule, linear, of_table

STEPS, VALUES = [0, 7, 20, 21], [0.05, 0.9, 0.1, 0.4]


@pytest.mark.parametrize("interpolates", [False, True])
def test_a_table_beside_numpy(interpolates):
    now = np.arange(-3, 30)
    found = jax.jit(jax.vmap(lambda now: of_table(jnp.array(STEPS), jnp.array(VALUES), now, interpolates)))(now)
    rows = np.clip(np.searchsorted(STEPS, now, side="right") - 1, 0, None)
    wanted = np.interp(now, STEPS, VALUES) if interpolates else np.array(VALUES)[rows]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_whole_numbers_are_rounded_down_exactly():
    steps, values, now = [0, 130_000, 130_010], [1, 15, 2], np.arange(0, 130_020, 13)
    found = jax.jit(jax.vmap(lambda now: of_table(jnp.array(steps), jnp.array(values), now, True)))(now)

    def exact(at):
        if at >= steps[-1]:
            return values[-1]
        i = max(i for i, step in enumerate(steps) if step <= at)
        return values[i] + (at - steps[i]) * (values[i + 1] - values[i]) // (steps[i + 1] - steps[i])

    assert found.tolist() == [exact(int(at)) for at in now]


def test_a_linear_schedule_is_a_table_of_two_rows():
    """To the bit, for numbers and for lengths."""
    now = np.arange(0, 200, 3)

    @jax.jit
    def both(now):
        schedule, length = LinearSchedule(0.05, 0.5, 20, 120), GrowingLength(1, 15, 20, 120)
        table = jnp.array([20, 120])
        return (
            (schedule.at(now), linear(0.05, 0.5, 100, now - 20), of_table(table, jnp.array([0.05, 0.5]), now, True)),
            (length.at(now), of_table(table, jnp.array([1, 15]), now, True)),
        )

    numbers, lengths = jax.vmap(both)(now)
    for found in numbers[1:]:
        np.testing.assert_allclose(found, numbers[0], rtol=1e-6)
    np.testing.assert_array_equal(*lengths)
    assert lengths[0].dtype == jnp.int32


def test_a_schedule_must_end_after_it_begins():
    with pytest.raises(UserError, match=r"ends must be above begins \(5\), got 5"):
        check(LinearSchedule(0.1, 0.2, 5, 5))
    with pytest.raises(UserError, match=r"last must be at least first \(3\), got 2"):
        check(GrowingLength(3, 2))


def test_a_growth_beyond_the_range_of_whole_numbers_is_told():
    """2^31 = 2,147,483,648. The largest product that is accepted is computed exactly."""
    with pytest.raises(UserError, match=r"last changes by 24 over 100,000,000 steps: their product must be below 2\^31"):
        check(GrowingLength(1, 25, 0, 100_000_000))
    assert check(GrowingLength(1, 2, 5, 2**31 - 1 + 4)).problem() is None
    most = check(GrowingLength(1, 25, 0, 89_478_485))
    lengths = [int(most.at(steps)) for steps in (0, 44_739_243, 89_478_484, 89_478_485, 100_000_000)]
    assert lengths == [1, 13, 24, 25, 25]
