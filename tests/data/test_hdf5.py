"""HDF5 files in the layouts of D4RL and Minari: each successor is the one that followed, and whatever is wrong is named."""

import json

import numpy as np
import pytest

from jaxmbrl import envs
from jaxmbrl.core.config import UserError
from jaxmbrl.data import dataset

h5py = pytest.importorskip("h5py")

LENGTHS, ENDS = (4, 1, 3, 5), ("terminal", "timeout", "timeout", "cut")
"""Steps of the episodes, and how each ends."""
SIZE = 2


def episodes(dtype=np.float32, seed=0):
    """Episodes as they were stepped: (T + 1 observations, actions, rewards)."""
    rng = np.random.default_rng(seed)
    return [
        (rng.normal(size=(T + 1, SIZE)).astype(dtype), rng.uniform(-1, 1, (T, 1)).astype(dtype), rng.normal(size=T))
        for T in LENGTHS
    ]


def ends(what):
    """[N] whether a row is the last of an episode that ends in that way."""
    return np.concatenate([np.arange(T) == (T - 1 if how == what else -1) for T, how in zip(LENGTHS, ENDS, strict=True)])


def d4rl(path, changes=None, without=(), successors=True, dtype=np.float32):
    played = episodes(dtype)
    arrays = {
        "observations": np.concatenate([observation[:-1] for observation, _, _ in played]),
        "actions": np.concatenate([action for _, action, _ in played]),
        "rewards": np.concatenate([reward for _, _, reward in played]),
        "terminals": ends("terminal"),
        "timeouts": ends("timeout"),
    }
    if successors:
        arrays["next_observations"] = np.concatenate([observation[1:] for observation, _, _ in played])
    with h5py.File(path, "w") as file:
        for name, value in (arrays | (changes or {})).items():
            if name not in without:
                file[name] = value
        file["infos/action_log_probs"] = np.zeros(3)
        file["metadata/algorithm"] = "SAC"
    return path


def minari(path, changes=None, without=(), order=(2, 0, 3, 1), dtype=np.float64, attributes=None):
    """The groups are written in this order; `changes` are of the second episode."""
    played = episodes(dtype)
    with h5py.File(path, "w", track_order=True) as file:
        file.attrs.update(attributes or {})
        for k in order:
            observation, action, reward = played[k]
            last = np.arange(len(reward)) == len(reward) - 1
            arrays = {
                "observations": observation,
                "actions": action,
                "rewards": reward,
                "terminations": last & (ENDS[k] == "terminal"),
                "truncations": last & (ENDS[k] == "timeout"),
            }
            # The tenth and later episodes come after the others, not between the first and the second.
            group = file.create_group(f"episode_{9 * k}")
            for name, value in (arrays | (changes or {} if k == 1 else {})).items():
                if not (name in without and k == 1):
                    group[name] = value
            group["infos/x"] = np.zeros(2)
    return path


def expected(kept=None):
    """The rows that were stepped, [N, ...]; of them those `kept`."""
    played = episodes()
    found = {
        "observation": np.concatenate([observation[:-1] for observation, _, _ in played]),
        "action": np.concatenate([action for _, action, _ in played]),
        "reward": np.concatenate([reward for _, _, reward in played]),
        "next_observation": np.concatenate([observation[1:] for observation, _, _ in played]),
    }
    return found if kept is None else {name: column[kept] for name, column in found.items()}


def check(rows, columns, terminated, truncated):
    for name, column in columns.items():
        np.testing.assert_allclose(getattr(rows, name), column, rtol=1e-6, atol=1e-7)
        assert getattr(rows, name).dtype == np.float32
    np.testing.assert_array_equal(rows.terminated, terminated)
    np.testing.assert_array_equal(rows.truncated, truncated)


def refused(path):
    with pytest.raises(UserError) as told:
        dataset.load(path)
    assert "\n" not in str(told.value) and str(path) in str(told.value)
    return str(told.value)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_d4rl_with_successors_loses_no_row(dtype, tmp_path):
    data = dataset.load(d4rl(tmp_path / "x.hdf5", dtype=dtype))
    check(data.rows, expected(), ends("terminal"), ends("timeout"))
    assert (data.env, data.notes, data.action_repeat) == (None, (), 1)


def test_d4rl_without_successors_keeps_the_rows_whose_successor_is_known(tmp_path):
    """No successor is the first observation of another episode. The row before a lost one is truncated, not terminated."""
    data = dataset.load(d4rl(tmp_path / "x.hdf5", successors=False))
    last = np.concatenate([np.arange(T) == T - 1 for T in LENGTHS])
    before = np.concatenate([np.arange(T) == T - 2 for T in LENGTHS])
    check(data.rows, expected(~last), np.zeros((~last).sum(), bool), before[~last])
    (note,) = data.notes
    assert "4 rows, the last of each episode, are left out" in note and "with them 1 terminations" in note
    assert note in data.warnings


def test_d4rl_without_timeouts_or_with_both_flags(tmp_path):
    rows = dataset.load(d4rl(tmp_path / "none.hdf5", without=["timeouts"])).rows
    assert not rows.truncated.any() and rows.terminated.sum() == 1
    both = dataset.load(d4rl(tmp_path / "both.hdf5", {"timeouts": ends("terminal").astype(np.uint8)})).rows
    assert not both.truncated.any(), "a row that is both counts as terminated"


def test_successors_of_the_next_episode_are_noticed(tmp_path):
    """`observations` shifted by a row, of many short episodes: at time limits it is where the next one starts."""
    rng = np.random.default_rng(0)
    walks = rng.normal(size=(12, 1, SIZE)) + 0.01 * np.cumsum(rng.normal(size=(12, 30, SIZE)), axis=1)
    observations = walks.reshape(-1, SIZE)
    changes = {
        "observations": observations,
        "actions": rng.uniform(-1, 1, (360, 1)),
        "rewards": rng.normal(size=360),
        "terminals": np.zeros(360, bool),
        "timeouts": np.arange(360) % 30 == 29,
    }
    shifted = np.roll(observations, -1, axis=0)
    wrong = dataset.load(d4rl(tmp_path / "wrong.hdf5", changes | {"next_observations": shifted}))
    assert any("a model would learn resets as dynamics" in line for line in wrong.warnings)
    right = dataset.load(d4rl(tmp_path / "right.hdf5", changes, successors=False))
    assert not any("resets" in line for line in right.warnings)
    assert np.abs(right.rows.next_observation - right.rows.observation).max() < 0.1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_minari_in_the_order_of_the_numbers(dtype, tmp_path):
    data = dataset.load(minari(tmp_path / "main_data.hdf5", dtype=dtype))
    check(data.rows, expected(), ends("terminal"), ends("timeout") | ends("cut"))
    assert data.notes == ()


def test_minari_with_elements_of_discrete_spaces(tmp_path):
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        for k in range(2):
            group = file.create_group(f"episode_{k}")
            group["observations"], group["actions"] = np.array([0, 4, 2]) + k, np.array([1, 0])
            group["rewards"], group["terminations"] = np.ones(2), np.array([False, True])
            group["truncations"] = np.zeros(2, bool)
    rows = dataset.load(tmp_path / "x.hdf5").rows
    assert rows.observation.tolist() == [0, 4, 1, 5] and rows.next_observation.tolist() == [4, 2, 5, 3]
    assert rows.action.dtype == rows.observation.dtype == np.int32 and rows.terminated.tolist() == [False, True] * 2
    (tmp_path / "metadata.json").write_text(json.dumps({"action_space": '{"type": "Discrete", "start": -1, "n": 3}'}))
    shifted = dataset.load((tmp_path / "x.hdf5").rename(tmp_path / "main_data.hdf5"))
    assert shifted.rows.action.tolist() == [2, 1] * 2 and shifted.rows.action.dtype == np.int32
    assert shifted.notes == ("actions are numbered from 0 on, and the file numbers them from -1 on",)


def box(low, high):
    return json.dumps({"type": "Box", "dtype": "float32", "shape": [1], "low": low, "high": high})


@pytest.mark.parametrize("beside", [False, True])
def test_actions_are_scaled_by_the_bounds_that_the_file_names(beside, tmp_path):
    """From [-1, 3], in an attribute of older files or in the metadata of newer ones, which belong to the digest."""
    space = box([-1.0], [3.0])
    path = minari(tmp_path / "main_data.hdf5", attributes={} if beside else {"action_space": space})
    plain = dataset.load(path).digest if beside else ""
    if beside:
        (tmp_path / "metadata.json").write_text(json.dumps({"action_space": space, "total_steps": 13}))
    data = dataset.load(path)
    np.testing.assert_allclose(data.rows.action, (expected()["action"] + 1) / 2 - 1, rtol=1e-5, atol=1e-6)
    assert data.notes == ("actions are scaled from the bounds that the file names, [-1, 3], to [-1, 1]",)
    assert data.digest != plain
    same = dataset.load(minari(tmp_path / "same.hdf5", attributes={"action_space": box([-1.0], [1.0])}))
    np.testing.assert_allclose(same.rows.action, expected()["action"], rtol=1e-6)


def test_a_file_fits_a_task_or_does_not(tmp_path):
    data = dataset.load(d4rl(tmp_path / "x.hdf5"))
    with pytest.raises(UserError, match=r"the data's 'observation' has rows of shape \(2,\), pendulum has \(3,\)"):
        dataset.check_fits(data, envs.make("pendulum"))


OF_D4RL = {
    "no rewards": ({}, ["rewards"], "the array 'reward' is missing"),
    "torques": ({"actions": np.full((13, 1), 2.0)}, [], "'action' must be in [-1, 1], got 2: with the actuator's bounds"),
    "few rewards": ({"rewards": np.zeros(12)}, [], "'reward' must be [N] with N = 13, got shape (12,)"),
    "flat actions": ({"actions": np.zeros(13)}, [], "'action' must be [N, size] or whole numbers [N] with N = 13"),
    "a nan": ({"observations": np.full((13, SIZE), np.nan)}, [], "'observation' is not finite in 13 rows"),
    "huge": ({"observations": np.full((13, SIZE), 1e17)}, [], "sums of squares would overflow float32"),
    "other successors": ({"next_observations": np.zeros((13, 3))}, [], "'next_observation' must be like 'observation'"),
    "texts": ({"rewards": np.array(["a"] * 13, object)}, [], "'rewards' contains Python objects or texts"),
    "half true": ({"terminals": np.full(13, 0.5)}, [], "'terminated' must be true or false in every row"),
    "other arrays": ({}, ["observations"], "neither D4RL's 'observations' nor Minari's 'episode_0'; there is: actions"),
    "episodes of one step": (
        {"terminals": np.ones(13, bool)},
        ["next_observations"],
        "it has no 'next_observations', and each of its episodes has one step",
    ),
    "too few without successors": (
        {"actions": np.zeros((12, 1))},
        ["next_observations"],
        "'actions' must have 13 rows, as 'rewards', got shape (12, 1)",
    ),
}


@pytest.mark.parametrize("case", OF_D4RL)
def test_what_is_wrong_with_a_file_of_d4rl_is_named(case, tmp_path):
    changes, without, message = OF_D4RL[case]
    assert message in refused(d4rl(tmp_path / "x.hdf5", changes, without))


OF_MINARI = {
    "no last observation": (
        {"observations": np.zeros((1, SIZE))},
        [],
        "'episode_9/observations' must have 2 rows, for 1 rewards, got shape (1, 2)",
    ),
    "more actions": ({"actions": np.zeros((3, 1))}, [], "'episode_9/actions' must have 1 rows, for 1 rewards"),
    "other observations": (
        {"observations": np.zeros((2, 5))},
        [],
        "'episode_9/observations' has rows of shape (5,), those of 'episode_0' have (2,)",
    ),
    "a Dict space": (
        {"observations/goal": np.zeros((2, 1)), "observations/position": np.zeros((2, 1))},
        ["observations"],
        "'episode_9/observations' has several arrays (goal, position), those of a Dict or Tuple space: join them",
    ),
    "no flags": ({}, ["truncations"], "the array 'episode_9/truncations' is missing; there is: actions, infos"),
    "a link": (
        {"rewards": h5py.SoftLink("/episode_0/rewards")},
        [],
        "'episode_9/rewards' is a link, which is not followed",
    ),
    "a file outside": (
        {"rewards": h5py.ExternalLink("other.hdf5", "/x")},
        [],
        "'episode_9/rewards' is a link, which is not followed",
    ),
}


@pytest.mark.parametrize("case", OF_MINARI)
def test_what_is_wrong_with_a_file_of_minari_is_named(case, tmp_path):
    changes, without, message = OF_MINARI[case]
    assert message in refused(minari(tmp_path / "x.hdf5", changes, without, order=(0, 1, 2)))


@pytest.mark.parametrize(
    ("space", "message"),
    [("{", "action space is not JSON"), (box([-1.0, 0.0], [1.0, 2.0]), "bounds of its action space are not those of ac")],
)
def test_wrong_bounds_are_named(space, message, tmp_path):
    assert message in refused(minari(tmp_path / "x.hdf5", attributes={"action_space": space}))


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    path = d4rl(tmp_path / "x.hdf5")
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    assert refused(path) == f"{path}: it is an HDF5 file, which needs h5py: pip install 'jaxmbrl[hdf5]'"


def test_a_damaged_file_is_refused_or_whole(tmp_path):
    """Cut short or with bytes changed: an error of one line, never another one."""
    content = d4rl(tmp_path / "good.hdf5").read_bytes()
    rng, torn = np.random.default_rng(0), tmp_path / "torn.hdf5"
    for _ in range(60):
        damaged = bytearray(content[: rng.integers(8, len(content) + 1)])
        for place in rng.integers(4, len(damaged), 5):
            damaged[place] = rng.integers(256)
        torn.write_bytes(damaged)
        try:
            dataset.load(torn)
        except UserError as error:
            assert "\n" not in str(error) and str(torn) in str(error)
