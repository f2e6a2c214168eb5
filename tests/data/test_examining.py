"""Mistakes in recorded transitions that are recognised from the numbers, and good rows in which none is."""

import jax
import numpy as np
import pytest

from jaxmbrl import envs
from jaxmbrl.core.types import Transition
from jaxmbrl.data import dataset, examining
from jaxmbrl.training import collecting

LENGTH, EPISODES = 15, 40


def recorded(seed=0, terminates=False):
    """Episodes of a point with a velocity, whose costs are the squares of its next position and its action."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(EPISODES):
        x = np.array([rng.uniform(-3, 3), rng.uniform(-1, 1)])
        for t in range(LENGTH):
            action = rng.uniform(-1, 1)
            v = 0.9 * x[1] + 0.2 * action
            after = np.array([x[0] + 0.1 * v, v])
            last = t == LENGTH - 1
            rows.append(
                (x, [action], -(after[0] ** 2) - 2 * action**2, after, last and terminates, last and not terminates)
            )
            x = after
    observation, action, reward, successor, terminated, truncated = map(np.array, zip(*rows, strict=True))
    return Transition(
        observation=observation.astype(np.float32),
        action=action.astype(np.float32),
        reward=reward.astype(np.float32),
        next_observation=successor.astype(np.float32),
        terminated=terminated,
        truncated=truncated,
    )


def with_next_rows(rows):
    """The rows, with `next_observation` made by shifting the observations by one row."""
    return rows._replace(next_observation=np.concatenate([rows.observation[1:], rows.observation[-1:]]))


def found(rows):
    return " ".join(examining.examine(rows))


def test_good_rows_have_no_message():
    assert examining.examine(recorded()) == []


def test_a_next_observation_that_is_the_next_episodes_first_is_recognised():
    assert f"in {EPISODES - 1} of {EPISODES - 1} episodes" in found(with_next_rows(recorded()))


def test_observations_that_are_their_own_successors_are_recognised():
    rows = recorded()
    assert "equals observation in all 600 rows" in found(rows._replace(next_observation=rows.observation))
    still = np.ones_like(rows.observation)
    assert examining.unchanged(rows._replace(observation=still, next_observation=still)) is None


def test_an_environment_that_resets_itself_is_recognised():
    rows = recorded(terminates=True)
    other = recorded(seed=1)
    successor = rows.next_observation.copy()
    successor[LENGTH - 1 :: LENGTH] = other.observation[::LENGTH]
    assert "belongs to the next episode" in found(rows._replace(next_observation=successor))
    assert examining.resets_as_transitions(rows) is None


def test_one_recording_that_was_cut_into_pieces_has_no_resets():
    rows = recorded()
    for i in range(len(rows.reward) - 1):
        rows.observation[i + 1] = rows.next_observation[i] = 0.99 * rows.observation[i] + 0.1 * rows.action[i]
    assert examining.resets_as_transitions(rows) is None


def test_resets_of_images_and_of_discrete_observations_are_recognised():
    rows = recorded()
    bright = np.random.default_rng(2).integers(0, 256, EPISODES)
    images = np.repeat(bright, LENGTH)[:, None, None].astype(np.uint8) + np.zeros((1, 4, 4), np.uint8)
    good = rows._replace(observation=images, next_observation=images)
    assert examining.resets_as_transitions(good) is None
    changes = np.count_nonzero(np.diff(bright))
    assert f"in {changes} of {EPISODES - 1}" in examining.resets_as_transitions(with_next_rows(good))
    cells = np.tile(np.arange(LENGTH), EPISODES).astype(np.int32)
    good = rows._replace(observation=cells, next_observation=cells + 1)
    assert examining.resets_as_transitions(good) is None
    assert "in 39 of 39" in examining.resets_as_transitions(with_next_rows(good))
    # Of two cells, half of the successors are the start; of five ends all may be so by chance, of 39 hardly.
    coins = np.random.default_rng(4).integers(2, size=(EPISODES, LENGTH)).astype(np.int32)
    coins[:, 0] = 0
    successor = np.concatenate([coins[:, 1:], coins[:, :1]], axis=1).ravel()
    often = rows._replace(observation=coins.ravel(), next_observation=successor)
    assert "in 39 of 39" in examining.resets_as_transitions(often)
    assert examining.resets_as_transitions(jax.tree.map(lambda x: x[: 6 * LENGTH], often)) is None
    successor[LENGTH - 1] = 1
    assert examining.resets_as_transitions(often) is None


def test_terminations_after_always_the_same_number_of_steps_are_a_time_limit():
    rows = recorded(terminates=True)
    assert f"after exactly {LENGTH} steps" in examining.time_limit(rows)
    rows.terminated[7] = True
    assert examining.time_limit(rows) is None
    assert examining.time_limit(recorded()) is None
    # The row of a falling ball shows the end; a coin, or what never repeats, does not.
    fallen = np.tile(np.arange(LENGTH, dtype=np.int32), EPISODES)
    rows = recorded(terminates=True)
    assert examining.time_limit(rows._replace(observation=fallen, next_observation=fallen + 1)) is None
    coins = np.random.default_rng(4).integers(2, size=len(fallen)).astype(np.int32)
    for other in (coins, np.arange(len(fallen), dtype=np.int32)):
        assert "after exactly" in examining.time_limit(rows._replace(observation=other, next_observation=other))


@pytest.mark.parametrize(("shift", "place"), [(1, "next"), (-1, "previous")])
def test_rewards_that_belong_to_another_row_are_recognised(shift, place):
    rows = recorded()
    moved = rows._replace(reward=np.roll(rows.reward, shift))
    # A reward that was moved to the next row belongs to the row before it.
    owner = {"next": "before", "previous": "after"}[place]
    assert f"belong to the row {owner}" in found(moved)


def test_columns_that_hardly_vary_are_named():
    rows = recorded()
    noise = np.random.default_rng(3).normal(size=len(rows.reward))
    for spread, told in ((1e-6, True), (1e-3, False), (0.0, False), (1e-9, False)):
        sensor = (0.5 + spread * noise).astype(np.float32)[:, None]
        text = examining.hardly_varying(rows._replace(observation=np.concatenate([rows.observation, sensor], axis=1)))
        assert len(text) == told
        assert not told or "2 (0.5" in text[0]


def test_columns_whose_changes_are_lost_in_single_precision_are_found():
    time = 1.7e9 + 0.05 * np.arange(101)
    place = 5.2e6 + 0.01 * np.arange(101)
    slow = 1000.0 + 1.0 * np.arange(101)
    values = np.stack([time, place, slow, np.full(101, 0.1)], axis=1)
    assert examining.lost_digits(values[:-1], values[1:], np.dtype(np.float32)).tolist() == [True, True, False, False]
    assert not examining.lost_digits(values[:-1], values[1:], np.dtype(np.float64)).any()


def test_values_far_outside_of_the_fitted_rows_are_named():
    rows = recorded()
    later = rows._replace(observation=rows.observation * np.array([1.0, 9.0], np.float32))
    assert examining.out_of_range(rows, rows) == []
    (text,) = examining.out_of_range(rows, later)
    assert text.startswith("observation 1 is between")


def test_a_clock_in_a_file_is_centered_where_nothing_depends_on_it(tmp_path):
    rows = recorded()
    clock = 1.7e9 + 0.05 * np.arange(len(rows.reward) + 1)
    observation = np.concatenate([rows.observation, clock[:-1, None]], axis=1)
    successor = np.concatenate([rows.next_observation, clock[1:, None]], axis=1)
    fields = rows._replace(observation=observation, next_observation=successor, extras=())._asdict()
    np.savez(tmp_path / "x.npz", **{name: value for name, value in fields.items() if name != "extras"})
    plain, centered = dataset.load(tmp_path / "x.npz"), dataset.load(tmp_path / "x.npz", centered=True)
    assert "observation 2 reaches 1.7e+09, where float32 loses its changes" in plain.warnings[0]
    assert plain.offset.tolist() == [0.0, 0.0, 0.0]
    middle = (clock[0] + clock[-2]) / 2
    assert centered.offset.tolist() == [0.0, 0.0, middle]
    assert centered.warnings[0].startswith("1.7e+09 is subtracted from observation 2")
    assert len(centered.warnings) == 1
    np.testing.assert_array_equal(centered.rows.observation[:, :2], rows.observation)
    np.testing.assert_allclose(centered.rows.observation[:, 2], clock[:-1] - middle, atol=1e-6)
    change = centered.rows.next_observation[:, 2] - centered.rows.observation[:, 2]
    np.testing.assert_allclose(change, 0.05, rtol=1e-3)
    with pytest.warns(dataset.DataWarning, match="is subtracted from observation 2"):
        centered.warn()


ANALYTIC = [name for name in envs.names() if envs.family(name) != "mujoco"]


@pytest.mark.promises
@pytest.mark.parametrize("name", [*ANALYTIC, "Ant-v5", "HalfCheetah-v5", "Hopper-v5", "pets/Pusher"])
def test_no_task_of_ours_looks_like_a_mistake(name):
    # JAX reuses what it traced of MJX in float64, for a comparison with C MuJoCo, and then cannot compile it in float32.
    jax.clear_caches()
    rows, _ = collecting.collect_by(name, "random", 1000, 0, False, None)
    assert examining.examine(jax.device_get(rows)) == []
