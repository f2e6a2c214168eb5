"""Schedules of MBPO's hyperparameters: constants are MBPO bit for bit, other tables do what they say in the same program,
and mistakes in a file are told."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

from jaxmbrl import envs
from jaxmbrl.algorithms import schedules, shared
from jaxmbrl.algorithms.dyna import mbpo
from jaxmbrl.algorithms.schedules import ScheduleConfig
from jaxmbrl.commands.training import parse_train
from jaxmbrl.core import metrics
from jaxmbrl.core.config import UserError, check
from jaxmbrl.core.types import Clock

from .test_mbpo import EVERY, TINY, WARM, assert_same, fits_held, known_model, rows

CONSTANT = ScheduleConfig(
    (0,), "previous", (TINY.real_ratio,), (EVERY,), (TINY.updates_per_step,), (TINY.rollout_length.last,)
)
"""TINY's own settings as a table, but for the length of its branches, which does not grow."""
FLAT = dataclasses.replace(TINY, rollout_length=shared.RolloutLength(3, 3), real_ratio=0.3)


@functools.cache
def program():
    """`learn` of MBPO whose branches have three steps, without or with a schedule in the clock, and the first state."""
    algorithm = mbpo.make(FLAT, envs.make("pendulum"), known_model())
    return jax.jit(algorithm.learn), jax.jit(lambda key: algorithm.init(key, {}))(jax.random.key(0))


def constant(**columns):
    return dataclasses.replace(CONSTANT, real_ratio=(FLAT.real_ratio,), **columns)


def clock(steps, table=None):
    arrays = () if table is None else schedules.arrays(table, EVERY)
    return Clock(np.asarray(steps, np.int32), arrays)


def played(table, calls=16):
    """(state, metrics) after each call of `learn`, by the steps so far."""
    (learn, state), found = program(), {}
    for steps in range(2, 2 * calls + 1, 2):
        state, told = learn(clock(steps, table), state, rows(steps))
        found[steps] = state, metrics.known(jax.device_get(told))
    return found


def test_constant_decisions_are_mbpo_bit_for_bit_and_other_tables_do_not_recompile():
    by_itself, by_table = played(None), played(constant())
    for steps, (state, _) in by_itself.items():
        one, other = (s._replace(key=jax.random.key_data(s.key)) for s in (state, by_table[steps][0]))
        assert_same(one, other)
    assert int(state.agent.critic.moments.count) > 40 and int(state.model.fits) > 4
    # Fewer fits and updates, other branches, in the same program.
    other = constant(refit_every=(0,), updates_per_step=(1,), rollout_length=(2,))
    found = played(other)
    last, told = found[32]
    assert program()[0]._cache_size() == 2, "one without a table and one for all tables"
    assert int(last.model.fits) == 1, "the model is fitted at the end of the warm-up all the same"
    assert int(last.agent.critic.moments.count) == 2 * (1 + (32 - WARM) // 2)
    assert fits_held(last.imagined.buffer) == {1: 6 * 2 * 2}, "two rounds of six branches of two steps are kept"
    assert (told["schedule/updates_per_step"], told["schedule/rollout_length"]) == (1, 2)
    np.testing.assert_allclose(told["schedule/real_ratio"], FLAT.real_ratio)
    assert sum("model/rows" in told for _, told in found.values()) == 1


def test_a_table_changes_what_it_says_when_it_says():
    table = ScheduleConfig(
        steps=(0, 2 * EVERY, 4 * EVERY),
        real_ratio=(0.0, 1.0, 0.5),
        refit_every=(EVERY, 2 * EVERY, 0),
        updates_per_step=(1, 3, 2),
        rollout_length=(1, 3, 2),
    )
    algorithm = mbpo.make(check(dataclasses.replace(FLAT, schedule=table)), envs.make("pendulum"), known_model())
    learn, state = jax.jit(algorithm.learn), program()[1]
    seen = {}
    for steps in range(2, WARM + 7 * EVERY, 2):
        before = int(state.agent.critic.moments.count)
        state, told = learn(clock(steps), state, rows(steps))
        told = metrics.known(jax.device_get(told))
        moved = (int(state.agent.critic.moments.count) - before) // TINY.num_envs
        seen[steps - WARM] = (round(told["schedule/real_ratio"], 6), moved, told.get("imagine/rollout_length"))
        assert ("model/rows" in told) == (steps - WARM in (0, EVERY, 2 * EVERY)), steps
    assert [seen[s] for s in (0, EVERY, 2 * EVERY, 2 * EVERY + 2, 3 * EVERY, 4 * EVERY, 6 * EVERY)] == [
        (0.0, 1, 1.0),
        (0.0, 1, 1.0),
        (1.0, 3, 3.0),
        (1.0, 3, None),
        (1.0, 3, 3.0),
        (0.5, 2, 2.0),
        (0.5, 2, 2.0),
    ]


def test_a_ratio_of_one_by_a_table_is_that_of_the_setting():
    learn, first = program()
    state = first._replace(real_ratio=jax.device_put(np.ones((), np.float32)))
    other = first
    table = dataclasses.replace(constant(), real_ratio=(1.0,))
    for steps in range(2, 22, 2):
        state, _ = learn(clock(steps), state, rows(steps))
        other, _ = learn(clock(steps, table), other, rows(steps))
    assert_same(state.agent, other.agent)


def due(table, every, end):
    """The steps at which the model is fitted, by simulation in plain Python."""
    fits, last = [0], 0
    for step in range(every, end, every):
        if table.interpolation == "linear":
            interval = int(np.interp(last, table.steps, table.refit_every)) // every * every
            if step - last >= interval:
                fits.append(step)
                last = step
            continue
        i = max(i for i, begin in enumerate(table.steps) if begin <= step)
        if table.refit_every[i] and (step - table.steps[i]) % table.refit_every[i] == 0:
            fits.append(step)
    return fits


@pytest.mark.parametrize(
    "table",
    [
        ScheduleConfig((0,), "previous", refit_every=(100,)),
        ScheduleConfig((0, 200, 600), "previous", refit_every=(50, 0, 150)),
        ScheduleConfig((0, 600), "linear", refit_every=(50, 400)),
        ScheduleConfig((0, 300, 600), "linear", refit_every=(200, 50, 300)),
        ScheduleConfig((0,), "linear", refit_every=(100,)),
    ],
    ids=["constant", "held", "linear", "down and up", "one row"],
)
def test_when_the_model_is_fitted(table):
    made = schedules.arrays(check(table), 50)
    found = jax.jit(jax.vmap(made.fits))(np.arange(0, 2000, 50))
    assert np.flatnonzero(found).tolist() == [step // 50 for step in due(table, 50, 2000)]


def test_two_linear_schedules_of_fits_have_the_same_shape():
    one, two = (schedules.arrays(ScheduleConfig((0, 600), "linear", refit_every=x), 50) for x in ((50, 400), (300, 100)))
    assert jax.tree.map(np.shape, one) == jax.tree.map(np.shape, two)


def test_the_buffer_has_room_for_the_longest_branches_of_the_table():
    config = dataclasses.replace(FLAT, schedule=ScheduleConfig((0, 4), rollout_length=(2, 7)))
    assert config.imagined_capacity == 7 * FLAT.rows_kept


def test_a_seeds_own_ratio_and_a_schedule_are_too_many():
    config = dataclasses.replace(FLAT, schedule=ScheduleConfig((0,), real_ratio=(0.1,)))
    algorithm = mbpo.make(config, envs.make("pendulum"), known_model())
    with pytest.raises(UserError, match=r"hyper 'real_ratio' has no effect beside schedule\.real_ratio"):
        algorithm.init(jax.random.key(0), {"real_ratio": 0.2})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": [0, 100], "real_ratio": [0.1]}, "real_ratio must have an entry for each of the 2 steps, got 1"),
        ({"steps": [0, 100], "real_ratio": [0.1, 2]}, "real_ratio[1] must be at most 1, got 2.0"),
        ({"steps": [5, 100], "real_ratio": [0.1, 0.2]}, "steps must begin with 0, got 5"),
        ({"steps": [0, 100, 100], "real_ratio": 0.1}, "steps must increase, got [0, 100, 100]"),
        ({"steps": [0], "rael_ratio": [0.1]}, "unknown field 'rael_ratio'; did you mean 'real_ratio'?"),
        ({"steps": [0], "updates_per_step": [1.5]}, "updates_per_step[0] must be a whole number, got 1.5"),
        ({"steps": [0], "rollout_length": "k"}, "rollout_length must be a list, got 'k'"),
        ({"steps": [0, 9], "interpolation": "cubic", "real_ratio": 0.1}, "interpolation must be 'previous' or 'linear'"),
        (
            {"steps": [0, 100], "interpolation": "linear", "refit_every": [100, 0]},
            "refit_every must be above 0 with linear",
        ),
        ({"steps": [0, 100]}, "steps must be empty without a column"),
        ({}, "must have at least one of the columns real_ratio, refit_every"),
        ([1], "must be an object with the fields steps, real_ratio"),
    ],
)
def test_a_mistake_in_a_file_is_one_line_with_the_file_and_the_field(values, message, tmp_path):
    file = tmp_path / "table.json"
    file.write_text(json.dumps(values))
    with pytest.raises(UserError) as error:
        schedules.load(file)
    assert str(file) in str(error.value) and message in str(error.value) and "\n" not in str(error.value)


def test_files_that_cannot_be_read_are_told(tmp_path):
    with pytest.raises(UserError, match=r"none\.json cannot be read"):
        schedules.load(tmp_path / "none.json")
    for name, kind in (("x.json", "JSON"), ("x.npz", "an npz file of arrays")):
        (tmp_path / name).write_text("{")
        with pytest.raises(UserError, match=f"must be {kind}, got: "):
            schedules.load(tmp_path / name)


def test_files_and_options_become_settings(tmp_path):
    table = ScheduleConfig((0, 100), "linear", real_ratio=(0.05, 0.5), updates_per_step=(10, 10))
    (tmp_path / "constants.json").write_text(
        '{"steps": [0, 100], "real_ratio": [0.05, 0.5], "updates_per_step": 10, "interpolation": "linear"}'
    )
    schedules.save(table, tmp_path / "saved.json")
    np.savez(
        tmp_path / "table.npz", steps=[0, 100], real_ratio=[0.05, 0.5], updates_per_step=[10, 10], interpolation="linear"
    )
    for name in ("constants.json", "saved.json", "table.npz"):
        assert schedules.load(tmp_path / name) == table
        words = ["--env", "pendulum", "--schedule", str(tmp_path / name)]
        assert parse_train("mbpo", words)[0].settings.schedule == table
    (tmp_path / "one.json").write_text('{"real_ratio": 0.2}')
    assert schedules.load(tmp_path / "one.json") == ScheduleConfig((0,), real_ratio=(0.2,))
    words = ["--env", "pendulum", "--schedule.steps", "0", "9", "--schedule.real-ratio", "0.1", "0.2"]
    assert parse_train("mbpo", words)[0].settings.schedule == ScheduleConfig((0, 9), real_ratio=(0.1, 0.2))
    with pytest.raises(UserError, match="--schedule has no effect on sac: train mbpo, bmpo or ampo with it"):
        parse_train("sac", ["--env", "pendulum", "--schedule", "x"])
    with pytest.raises(UserError, match=r"schedule\.refit_every must be multiples of refit_every \(100\) .* got 150"):
        parse_train("mbpo", ["--env", "pendulum", "--schedule.steps", "0", "--schedule.refit-every", "150"])
    with pytest.raises(UserError, match=r"schedule\.updates_per_step must be empty with an actor_delay above 1, got 2"):
        check(dataclasses.replace(TINY, actor_delay=2, schedule=ScheduleConfig((0,), updates_per_step=(2,))))
