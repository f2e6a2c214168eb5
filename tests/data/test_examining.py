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


def of_episodes(starts, length, seed=0):
    """Episodes of a pushed point that begins at `starts`, with true successors and marked ends."""
    rng, rows = np.random.default_rng(seed), []
    for start in starts:
        x = np.array(start, float)
        for t in range(length):
            action = rng.uniform(-0.5, 1)
            v = 0.98 * x[1] + 0.1 * action
            after = np.array([x[0] + 0.1 * v, v])
            rows.append((x, [action], -(after[0] ** 2), after, False, t == length - 1))
            x = after
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    return Transition(*(c.astype(bool if c.dtype == bool else np.float32) for c in columns))


def without_ends(rows):
    nowhere = np.zeros(len(rows.reward), bool)
    return rows._replace(terminated=nowhere, truncated=nowhere)


STARTS = np.random.default_rng(5).uniform(-0.05, 0.05, (20, 2))


@pytest.mark.parametrize(
    ("shift", "told"),
    [
        (2, "is the observation of 2 rows later, not of the next row: shift it by a row, or if the rows of 2 envi"),
        (
            4,
            "is the observation of 4 rows later, not of the next row: shift it by 3 rows, or if the rows of 4 environments",
        ),
        (-1, "is the observation of the row before, not of the next row: shift it by two rows"),
    ],
)
def test_successors_of_another_row_are_recognised(shift, told):
    rows = recorded()
    shifted = rows._replace(next_observation=np.roll(rows.observation, -shift, axis=0))
    assert examining.shifted_successors(shifted).startswith("next_observation " + told)
    cells = np.arange(200, dtype=np.int32) % 50
    of_table = rows._replace(observation=cells, next_observation=np.roll(cells, -shift))
    assert examining.shifted_successors(of_table).startswith("next_observation " + told)
    assert examining.shifted_successors(of_table._replace(next_observation=np.roll(cells, -1))) is None


def test_rows_of_environments_that_alternate_are_recognised():
    one, other = recorded(), recorded(seed=1)
    mixed = Transition(
        *(np.stack(pair, 1).reshape(-1, *pair[0].shape[1:]) for pair in zip(one[:6], other[:6], strict=True))
    )
    assert "if the rows of 2 environments alternate, store one environment after the other" in found(mixed)


def test_ends_that_are_not_marked_are_recognised():
    rows = of_episodes(STARTS, 40)
    assert examining.examine(rows) == []
    # With the true successors.
    assert examining.examine(without_ends(rows)) == [
        "in 19 rows, the first of them row 39, next_observation is not the next row's observation, although no episode ends"
        ": if one does, mark the row as terminated or truncated"
    ]
    rows.truncated[79] = False
    assert "in 1 rows, the first of them row 79" in found(rows)
    # With the next row's observation everywhere.
    (text,) = examining.examine(without_ends(with_next_rows(rows)))
    assert text.startswith("no row ends an episode, and the observations leap in 19 rows, the first of them row 39, as at")


def test_one_long_recording_has_no_ends():
    """An angle that wraps around, goals that change, collisions, lost samples of one sensor, noise, shuffled rows."""
    rng, count = np.random.default_rng(6), 1000
    rows = without_ends(of_episodes(STARTS[:1], count))
    time = np.arange(count + 1)
    angle = (0.07 * time + 0.3 * np.sin(0.05 * time) + np.pi) % (2 * np.pi) - np.pi
    speed = 0.07 + 0.015 * np.cos(0.05 * time)
    goal = np.repeat(rng.uniform(-1, 1, (11, 3)), 100, axis=0)[: count + 1]
    hits = np.repeat(rng.normal(size=(41, 2)), 25, axis=0)[: count + 1] + 0.01 * np.sin(0.3 * time)[:, None]
    place = np.cumsum(0.1 * hits, axis=0)
    dropped = np.sin(0.02 * time) * (rng.uniform(size=count + 1) > 0.02)
    heavy = rng.standard_t(2, (count + 1, 3)) * rng.standard_t(2, (count + 1, 1))
    for columns in ((angle, speed), (angle, speed, *goal.T), (*place.T, *hits.T), (dropped, speed, angle), (*heavy.T,)):
        values = np.stack(columns, axis=1).astype(np.float32)
        long = rows._replace(observation=values[:-1], next_observation=values[1:])
        assert found(long) == ""
    order = rng.permutation(count)
    assert found(Transition(*(column[order] for column in rows[:6]))) == ""


def test_observations_that_are_their_own_successors_are_recognised():
    rows = recorded()
    # And nothing that follows from it, such as rewards that the row after explains better.
    (text,) = examining.examine(rows._replace(next_observation=rows.observation))
    assert "equals observation in all 600 rows" in text
    still = np.ones_like(rows.observation)
    assert examining.unchanged(rows._replace(observation=still, next_observation=still)) is None


def test_flags_that_are_inverted_are_recognised():
    rows = recorded(terminates=True)
    text = "600 rows terminate, and the next row continues 560 of them: if the flags are 1 - done"
    assert text in found(rows._replace(terminated=~rows.terminated))
    order = np.random.default_rng(3).permutation(COUNT)
    shuffled = Transition(*(column[order] for column in rows[:6]))._replace(terminated=np.ones(COUNT, bool))
    assert examining.inverted_ends(shuffled) is None


def test_an_action_that_never_varies_is_named():
    rows = recorded()
    pair = np.concatenate([rows.action, np.full_like(rows.action, 0.5)], axis=1)
    assert "action 1 is the same in all 600 rows" in found(rows._replace(action=pair))
    choice = rows._replace(action=np.ones(COUNT, np.int32))
    assert examining.constant_actions(choice).startswith("the action is the same in all 600 rows")
    assert examining.constant_actions(choice._replace(action=np.arange(COUNT, dtype=np.int32) % 2)) is None


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


@pytest.mark.parametrize("shift", [0, 1])
def test_rewards_of_choices_that_belong_to_another_row_are_recognised(shift):
    """A reward of the choice alone, which no linear function of its number explains."""
    rows = recorded()
    choices = np.random.default_rng(5).integers(0, 3, len(rows.reward)).astype(np.int32)
    earned = np.array([1.0, -2.0, 0.5], np.float32)[choices]
    text = examining.shifted_rewards(rows._replace(action=choices, reward=np.roll(earned, shift)))
    assert (text is None) == (shift == 0)
    many = rows._replace(action=choices + len(choices), reward=np.roll(earned, shift))
    assert examining.shifted_rewards(many) is None, "more choices than rows"


def test_columns_that_hardly_vary_are_named():
    rows = recorded()
    noise = np.random.default_rng(3).normal(size=len(rows.reward))
    for spread, told in ((4e-6, True), (1e-3, False), (0.0, False), (1e-9, False)):
        sensor = (0.5 + spread * noise).astype(np.float32)[:, None]
        text = examining.hardly_varying(with_column(rows, sensor, np.roll(sensor, -1, axis=0)))
        assert len(text) == told
        assert not told or "2 (0.5" in text[0]


def with_column(rows, observation, successor):
    observation, successor = np.reshape(observation, (-1, 1)), np.reshape(successor, (-1, 1))
    return rows._replace(
        observation=np.concatenate([rows.observation, observation], axis=1),
        next_observation=np.concatenate([rows.next_observation, successor], axis=1),
    )


COUNT = LENGTH * EPISODES
WALK = np.cumsum(np.random.default_rng(7).normal(size=COUNT + 1))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            1.7e9 + 1.0 * np.arange(COUNT + 1),
            "reaches 1.7e+09, where numbers of float32 are 1.3e+02 apart and its changes",
        ),
        (
            1e9 + 0.1 * np.sin(WALK),
            "is 1e+09 in all rows, where numbers of float32 are 64 apart and smaller changes are lost",
        ),
        (1e6 + 0.1 * WALK, "where numbers of float32 are 0.062 apart and its changes are lost by rounding: log it sooner"),
        (1e6 + 10.0 * WALK, None),
        (1e4 + 0.1 * WALK, None),
        (7e6 + np.arange(COUNT + 1), None),  # whole numbers
        (4e5 + 0.25 * np.arange(COUNT + 1), None),  # exact in float32
        (np.full(COUNT + 1, 0.1), None),
        (np.full(COUNT + 1, 1e6), None),
        (np.repeat(300.0 + 0.1 * WALK[: COUNT // 15 + 1], 15)[: COUNT + 1], None),  # seldom changes
    ],
)
def test_digits_that_are_lost_already_are_recognised_from_the_rounded_numbers(values, message):
    stored = values.astype(np.float32)
    for column in (stored, stored.astype(np.float64)):
        rows = recorded()
        rows = with_column(rows._replace(observation=rows.observation.astype(column.dtype)), column[:-1], column[1:])
        texts = examining.coarse_columns(rows, "log it sooner")
        assert len(texts) == (message is not None)
        assert not texts or (texts[0].startswith("observation 2 ") and message in texts[0])
        assert not texts or examining.hardly_varying(rows) == []
    precise = with_column(recorded(), values[:-1], values[1:])
    assert examining.coarse(precise.observation, precise.next_observation)[2] == 0 or message is None


def test_digits_that_are_lost_already_by_half_precision_and_in_rewards():
    rows = recorded()
    half = (1000 + rows.observation[:, 0]).astype(np.float16)
    assert examining.coarse(half[:-1, None], half[1:, None]).tolist() == [True]
    assert examining.coarse_reward(rows, "x") == []
    (text,) = examining.coarse_reward(rows._replace(reward=(1e7 + rows.reward).astype(np.float32)), "say less")
    assert text.startswith(
        "the reward reaches 1e+07, where numbers of float32 are 1 apart and its differences are lost by ro"
    )
    assert examining.coarse_reward(rows._replace(reward=np.zeros_like(rows.reward)), "x") == []


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


def test_digits_that_a_file_lost_are_told_with_the_file(tmp_path):
    rows = recorded()
    place = (1e9 + rows.observation).astype(np.float32)
    fields = rows._replace(observation=place, next_observation=place, extras=())._asdict()
    del fields["extras"]
    np.savez(tmp_path / "x.npz", **fields)
    for centered in (False, True):
        texts = dataset.load(tmp_path / "x.npz", centered=centered).digits
        assert [text.partition(" is")[0] for text in texts] == ["observation 0", "observation 1"]
        assert all(text.endswith("store it in float64, or subtract an offset before it is rounded") for text in texts)
    np.savez(tmp_path / "x.npz", **(fields | {"reward": 1e9 + rows.reward.astype(np.float64)}))
    assert dataset.load(tmp_path / "x.npz").digits[2].startswith("the reward reaches 1e+09, where float32 loses its diff")
    with pytest.warns(dataset.DataWarning) as heard:
        dataset.load(tmp_path / "x.npz").warn()
    assert {warning.filename for warning in heard} == {__file__}


ANALYTIC = [name for name in envs.names() if envs.family(name) != "mujoco"]


@pytest.mark.promises
@pytest.mark.parametrize("name", [*ANALYTIC, "Ant-v5", "HalfCheetah-v5", "Hopper-v5", "pets/Pusher"])
def test_no_task_of_ours_looks_like_a_mistake(name):
    # JAX reuses what it traced of MJX in float64, for a comparison with C MuJoCo, and then cannot compile it in float32.
    jax.clear_caches()
    rows, _ = collecting.collect_by(name, "random", 2000, 0, False, None)
    rows = jax.tree.map(np.asarray, jax.device_get(rows))
    assert examining.examine(rows) == []
    for first in (rows, jax.tree.map(lambda x: x[:1000], rows)):
        assert examining.coarse_columns(first, "") + examining.coarse_reward(first, "") == []
        assert examining.hardly_varying(first) == []
    twice = rows._replace(next_observation=np.roll(rows.observation, -2, axis=0))
    assert "is the observation of 2 rows later" in found(twice)
    ends = np.flatnonzero((rows.terminated | rows.truncated)[:-1])
    # In a grid, an episode may end where the next one begins.
    ends = [end for end in ends if (rows.next_observation[end] != rows.observation[end + 1]).any()]
    if ends:
        assert f"in {len(ends)} rows, the first of them row {ends[0]}, next_observation is not" in found(without_ends(rows))


@pytest.mark.parametrize("count", range(1, 10))
def test_files_of_a_few_rows_are_examined(count):
    observation = np.arange(2 * count, dtype=np.float32).reshape(count, 2)
    ends = np.zeros(count, bool)
    rows = Transition(observation, observation[:, :1], np.ones(count, np.float32), observation + 2, ends, ends)
    assert not [line for line in examining.examine(rows) if "shift" in line]
