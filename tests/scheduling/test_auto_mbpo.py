"""AutoMBPO on MBPO with a model of which every row is known: constant decisions are MBPO, what it finds is a table that
MBPO follows, a search continues where it was, and its numbers are those of the paper."""

import copy
import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from algorithms.test_mbpo import TINY, known_model

from jaxmbrl.algorithms import schedules, shared
from jaxmbrl.core.config import UserError
from jaxmbrl.scheduling import auto_mbpo
from jaxmbrl.scheduling.auto_mbpo import SearchConfig, Values, changed
from jaxmbrl.training import programs

SETTINGS = {
    "agent.hidden": [8],
    "rollout_length": {"first": 2, "last": 2},
    "rollout_rows": 6,
    "retain_steps": 8,
    "refit_every": 4,
    "batch_size": 4,
    "updates_per_step": 2,
    "warmup_steps": 12,
    "replay_capacity": TINY.replay_capacity,
    "epoch_steps": 8,
    "real_ratio": 0.5,
}
STEPS = 28
"""Two epochs of two decisions after the warm-up, after rounding up."""
ALL = ("refit_every", "real_ratio", "updates_per_step", "rollout_length")
SMALL = SearchConfig(decides=ALL, stages=2, runs=2, baseline_runs=1, eval_episodes=2, most_updates=4, longest=2)


@pytest.fixture(autouse=True)
def _known_model(monkeypatch):
    monkeypatch.setattr(shared, "ensemble_for", lambda config, task: known_model())


@functools.cache
def searching():
    return auto_mbpo.make("pendulum", SMALL, preset="small", settings=SETTINGS, steps=STEPS)


def returns_of(program, run, clock, seed):
    """Returns one step before the end of each epoch, of a run of `program` without a search."""
    judge = searching()._evaluate
    states, found = jax.jit(program.loop.init)(jnp.arange(1) + seed, {}), []
    for calls in (19, 8):
        clock, states = run(clock, states, jnp.asarray(calls, jnp.int32))
        # Of the policy alone, which does not depend on the clock.
        found.append(float(np.mean(judge(searching().program.clock_at(0), states.algorithm))))
    return found


def decided(*choices):
    """The decisions `choices` [T, H] for `play`."""
    return lambda state, t: (choices[t], np.zeros(len(choices[t])))


def test_constant_decisions_are_mbpo_bit_for_bit():
    run = searching().play(decided(*[(0, 1, 1, 1)] * 4), seed=3)
    program = programs.build(programs.configure("mbpo", "pendulum", "small", SETTINGS, STEPS))
    assert run.returns.tolist() == returns_of(program, jax.jit(program.loop.run), program.clock_at(0), 3)
    assert run.table.tolist() == [[0.5, 4, 2, 2]] * 4


@pytest.mark.promises
def test_what_is_found_is_a_table_that_mbpo_follows_bit_for_bit():
    choices = [(1, 2, 2, 0), (1, 2, 0, 2), (0, 0, 2, 2), (1, 0, 2, 0)]
    search = searching()
    run = search.play(decided(*choices), seed=5)
    # Only the first decision of an epoch changes the length; the first fit is made whatever is decided.
    np.testing.assert_allclose(run.table, [[0.6, 0, 3, 1], [0.72, 0, 2, 1], [0.6, 4, 3, 2], [0.5, 0, 4, 2]])
    assert run.decisions.weight.tolist() == [[0, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 0]]
    table = search.table_of(run)
    assert table.steps == (0, 4, 8, 12, 16)
    clock = search.program.clock_at(0)._replace(schedule=schedules.arrays(table, 4))
    assert returns_of(search.program, search._run, clock, 5) == run.returns.tolist()
    fit = [0.05, 0.05, -0.05, 0.05]
    earned = (run.returns - search.baseline) / 300
    np.testing.assert_allclose(run.decisions.reward, [fit[0], fit[1] + earned[0], fit[2], fit[3] + earned[1]], rtol=1e-5)


@pytest.mark.parametrize(
    ("intervals", "fits"),
    [((0, 4, 4, 0), [0, 4, 8, 16, 20, 24]), ((0, 0, 0, 0), [0, 16, 20, 24]), ((4, 0, 0, 4), [0, 12, 16, 20, 24])],
)
def test_a_run_that_is_longer_than_the_table_fits_the_model_again(intervals, fits):
    """A decision not to fit is about one time; the other columns keep their last value."""
    table = np.array([[0.5 + 0.1 * t, interval, 1 + t, 1] for t, interval in enumerate(intervals)])
    found = searching().table_of(auto_mbpo.Run((), table, np.zeros(2)))
    made = schedules.arrays(found, 4)
    assert (4 * np.flatnonzero(jax.vmap(made.fits)(jnp.arange(0, 28, 4)))).tolist() == fits
    for name, last in (("real_ratio", 0.8), ("updates_per_step", 4), ("rollout_length", 1)):
        np.testing.assert_allclose([made.value(name, jnp.asarray(step)) for step in (12, 16, 40)], last, rtol=1e-6)


def test_the_state_is_scaled_and_clipped():
    run = searching().play(decided(*[(0, 1, 1, 1)] * 4), seed=3)
    state = np.asarray(run.decisions.state)
    assert state.shape == (4, 8)
    np.testing.assert_allclose(state[:, 0], [0, 0.25, 0.5, 0.75])
    assert np.all(state[:, 1] == 0), "this model reports no holdout error"
    assert state[0, 2] == 0 and np.all(state[1:, 2] > 0), "no update before the first decision"
    assert np.all(state[:2, 3] == 0) and np.all(state[2:, 3] > 0), "the policy moves in the first epoch"
    np.testing.assert_allclose(state[2, 4], max(run.returns[0] / 3000, -1), rtol=1e-6)
    np.testing.assert_allclose(state[:, 5:], [[0.5, 2 / 4, 2 / 2]] * 4)


def test_changes_by_hand():
    config, now = SearchConfig(), Values(0.05, 20, 1, True)
    for _ in range(13):
        now = changed(config, now, {"real_ratio": 2, "refit_every": 1, "updates_per_step": 2, "rollout_length": 0}, True)
    assert round(now.real_ratio, 6) == 0.534966
    assert now[1:] == (20, 1, False), "at most 20 updates, at least one step"
    for _ in range(4):
        now = changed(config, now, {"real_ratio": 2, "rollout_length": 2}, False)
    assert now == (1.0, 20, 1, True), "at most 1; the length changes at the start of an epoch only"
    lowered = changed(config, now, {"real_ratio": 0, "updates_per_step": 0, "rollout_length": 2}, True)
    assert (round(lowered.real_ratio, 6), *lowered[1:]) == (0.833333, 19, 2, True)


def test_a_search_continues_where_it_was_and_gives_the_same(tmp_path):
    search = searching()
    whole = search.search(tmp_path / "whole")
    # With the same compiled functions.
    short = copy.copy(search)
    short.config = dataclasses.replace(SMALL, stages=1)
    short.search(tmp_path / "parts")
    shutil.copytree(tmp_path / "parts", tmp_path / "again")
    (tmp_path / "again" / "stage-000-run-01.npz").unlink()
    found = search.search(tmp_path / "again")
    jax.tree.map(np.testing.assert_array_equal, found.stages, whole.stages)
    assert found.schedule == whole.schedule == schedules.load(tmp_path / "again" / "schedule.json")
    assert found.best == whole.best and len(list((tmp_path / "again").glob("*run*.npz"))) == 4
    with np.load(tmp_path / "again" / "controller.npz") as one, np.load(tmp_path / "whole" / "controller.npz") as other:
        assert one.files == other.files
        for name in one.files:
            np.testing.assert_array_equal(one[name], other[name])
    text = json.loads((tmp_path / "again" / "search.json").read_text())
    del text["run"]["settings"]["ensemble"]["head"], text["search"]["fit_price"]
    (tmp_path / "again" / "search.json").write_text(json.dumps(text))
    assert search.search(tmp_path / "again").best == whole.best, "a search of a version without these settings"
    text["search"]["runs"] = 3
    (tmp_path / "again" / "search.json").write_text(json.dumps(text))
    with pytest.raises(UserError, match=r"has a search with another search\.runs \(3, not 2\)"):
        search.search(tmp_path / "again")


@pytest.mark.parametrize(
    ("settings", "config", "message"),
    [
        ({"epoch_steps": 10}, {}, r"epoch_steps must be a multiple of refit_every \(4\), got 10"),
        ({"rollout_length": {"first": 1, "last": 2}}, {}, r"rollout_length\.last must be rollout_length\.first"),
        ({"schedule": {"steps": [0], "real_ratio": [0.1]}}, {}, "schedule must be empty"),
        ({"warmup_steps": 30}, {}, "steps must be at least warmup_steps and an epoch"),
        ({}, {"decides": ("real_ratio", "real_ratio")}, "decides must name each hyperparameter once"),
        ({}, {"decides": ()}, "decides must be a list of at least 1 entries"),
    ],
)
def test_mistakes_are_told(settings, config, message):
    with pytest.raises(UserError, match=message):
        auto_mbpo.make("pendulum", SearchConfig(**config), preset="small", settings={**SETTINGS, **settings}, steps=STEPS)
