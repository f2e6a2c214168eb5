"""Files of transitions: what goes in comes out, and whatever is wrong with one is named."""

import hashlib
import os
import pickle
import re
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from jaxmbrl import envs
from jaxmbrl.core.config import UserError
from jaxmbrl.core.spaces import Box, Discrete
from jaxmbrl.core.types import Transition
from jaxmbrl.data import dataset


def arrays(rows=4, observation=3, action=1, seed=0):
    """A good file's arrays."""
    rng = np.random.default_rng(seed)
    ended = rng.integers(0, 3, rows)
    return {
        "observation": rng.normal(size=(rows, observation)).astype(np.float32),
        "action": rng.uniform(-1, 1, (rows, action)).astype(np.float32),
        "reward": rng.normal(size=rows).astype(np.float32),
        "next_observation": rng.normal(size=(rows, observation)).astype(np.float32),
        "terminated": ended == 1,
        "truncated": ended == 2,
    }


def write(folder, changes=None, without=(), name="data.npz"):
    held = {key: value for key, value in (arrays() | (changes or {})).items() if key not in without}
    np.savez(folder / name, **held)
    return folder / name


def refused(path):
    with pytest.raises(UserError) as told:
        dataset.load(path)
    assert "\n" not in str(told.value) and str(path) in str(told.value)
    return str(told.value)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(1, 30), st.integers(1, 5), st.integers(0, 3), st.integers(0, 99))
def test_what_is_saved_is_loaded(tmp_path_factory, rows, observation, action, seed):
    path = tmp_path_factory.mktemp("new") / "some" / "folder" / "x.npz"
    given = arrays(rows, observation, action, seed)
    dataset.save(path, Transition(**given), "pendulum")
    found = dataset.load(path)
    for name, value in given.items():
        np.testing.assert_array_equal(getattr(found.rows, name), value, strict=True)
    assert (found.env, found.rows.extras) == ("pendulum", ())
    assert found.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    with np.load(path) as file:
        assert set(file.files) == {*given, "env", "action_repeat"} and str(file["env"]) == "pendulum"


def test_how_often_each_action_was_applied_is_kept(tmp_path):
    """A file that does not tell it is of actions applied once."""
    dataset.save(tmp_path / "thrice.npz", Transition(**arrays()), "pendulum", 3)
    assert dataset.load(tmp_path / "thrice.npz").action_repeat == 3
    dataset.save(tmp_path / "once.npz", Transition(**arrays()), "pendulum")
    assert dataset.load(tmp_path / "once.npz").action_repeat == 1
    assert dataset.load(write(tmp_path)).action_repeat == 1


def test_rows_of_another_repeat_do_not_fit(tmp_path):
    data = dataset.load(write(tmp_path, {"action_repeat": np.array(3)}))
    dataset.check_fits(data, envs.make("pendulum", 3))
    with pytest.raises(UserError, match="action_repeat must be 3, as in the data, got 1"):
        dataset.check_fits(data, envs.make("pendulum"))


@pytest.mark.parametrize("way", [np.savez, np.savez_compressed])
def test_a_file_written_by_hand_is_taken(way, tmp_path):
    """Other dtypes, no truncations, no name of the task."""
    ints = np.array([[3, -2], [5, 7]])
    way(
        tmp_path / "x.npz",
        observation=ints,
        action=np.array([[0.1], [-1.0]]),
        reward=np.array([1, 2], np.uint8),
        next_observation=ints.astype(np.float16),
        terminated=np.array([0, 1]),
    )
    found = dataset.load(tmp_path / "x.npz")
    np.testing.assert_array_equal(found.rows.observation, ints.astype(np.float32), strict=True)
    np.testing.assert_array_equal(found.rows.next_observation, ints.astype(np.float32), strict=True)
    np.testing.assert_array_equal(found.rows.action, np.float32([[0.1], [-1.0]]), strict=True)
    np.testing.assert_array_equal(found.rows.reward, np.float32([1, 2]), strict=True)
    np.testing.assert_array_equal(found.rows.terminated, [False, True], strict=True)
    np.testing.assert_array_equal(found.rows.truncated, [False, False], strict=True)
    assert found.env is None


def test_numbers_are_in_the_default_float(tmp_path):
    path = write(tmp_path, {"reward": np.full(4, 0.1)})
    assert dataset.load(path).rows.reward.tolist() == [float(np.float32(0.1))] * 4
    with jax.enable_x64(True):
        rows = dataset.load(path).rows
    assert rows.reward.tolist() == [0.1] * 4 and rows.observation.dtype == np.float64


def test_a_termination_is_no_time_limit(tmp_path):
    """A file in Gymnasium's manner, where a last step may be both."""
    ended = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], bool)
    rows = dataset.load(write(tmp_path, {"terminated": ended[:, 0], "truncated": ended[:, 1]})).rows
    assert rows.terminated.tolist() == [False, False, True, True]
    assert rows.truncated.tolist() == [False, True, False, False]


WRONG = {
    "an array of its own": (
        {"extra": np.zeros(4)},
        "unknown array 'extra': leave it out; known are: action, action_repeat, env, last_observation",
    ),
    "no rows": ({"reward": np.zeros(0)}, "'reward' must be [N] with N at least 1, got shape (0,)"),
    "a column of rewards": (
        {"reward": np.zeros((4, 1))},
        "'reward' must be [N] with N at least 1, got shape (4, 1): write reward[:, 0]",
    ),
    "a lone reward": ({"reward": np.float64(3)}, "'reward' must be [N] with N at least 1, got shape ()"),
    "fewer rewards": ({"reward": np.zeros(3)}, "'reward' must be [N] with N = 4, got shape (3,) of float64"),
    "episodes": (
        {name: np.zeros((2, 2), int) for name in ("reward", "terminated")},
        "'reward' must be [N] with N at least 1, got shape (2, 2): join the episodes, reward.reshape(-1) and obs",
    ),
    "an observation more": (
        {"observation": np.zeros((5, 3))},
        "with N = 4, got shape (5, 3) of float64: write observation[:-1], if its last row is the last successor",
    ),
    "another package's flags": ({"timeouts": np.zeros(4)}, "unknown array 'timeouts': leave it out; known are"),
    "fields": (
        {"observation": np.zeros(4, [("x", "f4"), ("v", "f4")])},
        ": write numpy.lib.recfunctions.structured_to_unstructured(observation)",
    ),
    "flat observations": (
        {"observation": np.zeros(4)},
        "'observation' must be [N, size], whole numbers [N] or images [N, height, width, ...] with N = 4, "
        "got shape (4,) of float64: write observation[:, None]",
    ),
    "images that change": (
        {"observation": np.zeros((4, 2, 2)), "next_observation": np.zeros((4, 2, 3))},
        "'next_observation' must be like 'observation', float32 (4, 2, 2), got float32 (4, 2, 3)",
    ),
    "images of two dtypes": (
        {"observation": np.zeros((4, 2, 2), "u1"), "next_observation": np.zeros((4, 2, 2), "i4")},
        "'next_observation' must be like 'observation', uint8 (4, 2, 2), got int32 (4, 2, 2)",
    ),
    "choices below 0": (
        {"action": np.array([0, 1, -1, 2])},
        "'action' must be whole numbers from 0 to 2147483647, got -1 to 2: vectors of one number are action[:, None]",
    ),
    "choices beyond int32": (
        {"action": np.array([0, 1, 2**31, 2])},
        "'action' must be whole numbers from 0 to 2147483647, got 0 to 2147483648",
    ),
    "two kinds of successors": (
        {"last_observation": np.zeros((1, 3))},
        "'last_observation' replaces 'next_observation': remove one of them",
    ),
    "flat actions": (
        {"action": np.zeros(4)},
        "'action' must be [N, size] or whole numbers [N] with N = 4, got shape (4,) of float64: write action[:, None]",
    ),
    "more actions": (
        {"action": np.zeros((5, 1))},
        "'action' must be [N, size] or whole numbers [N] with N = 4, got shape (5, 1)",
    ),
    "no observation": (
        {"observation": np.zeros((4, 0)), "next_observation": np.zeros((4, 0))},
        "'observation' must have at least one number per row",
    ),
    "another successor": (
        {"next_observation": np.zeros((4, 2))},
        "'next_observation' must be like 'observation', float32 (4, 3), got float32 (4, 2)",
    ),
    "flags in columns": (
        {"terminated": np.zeros((4, 1), bool)},
        "'terminated' must be [N] with N = 4, got shape (4, 1) of bool: write terminated[:, 0]",
    ),
    "few flags": ({"truncated": np.zeros(3, bool)}, "'truncated' must be [N] with N = 4, got shape (3,)"),
    "half true": ({"terminated": np.array([0, 1, 0.5, 0])}, "'terminated' must be true or false in every row"),
    "not known": ({"truncated": np.array([0, 1, np.nan, 0])}, "'truncated' must be true or false in every row"),
    "in words": ({"terminated": np.array(["0", "1", "0", "0"])}, "'terminated' must be true or false in every row"),
    "a word": ({"reward": np.array(["one", "two", "three", "four"])}, "'reward' must be numbers, got <U5"),
    "complex": ({"reward": np.zeros(4, complex)}, "'reward' must be numbers, got complex128"),
    "durations": ({"reward": np.zeros(4, "m8[s]")}, "'reward' must be numbers, got timedelta64[s]"),
    "truths": ({"reward": np.zeros(4, bool)}, "'reward' must be numbers, got bool"),
    "records": ({"reward": np.zeros(4, [("x", float)])}, "'reward' must be numbers, got [('x', '<f8')]"),
    "a nan": ({"reward": np.array([0, np.nan, 0, np.inf])}, "'reward' is not finite in 2 rows, the first of them row 1"),
    "an infinity": (
        {"observation": np.where(np.arange(12).reshape(4, 3) == 7, -np.inf, 0)},
        "'observation' is not finite in 1 rows, the first of them row 2",
    ),
    "beyond float32": ({"next_observation": np.full((4, 3), 1e39)}, "'next_observation' is not finite in 4 rows"),
    "torques": (
        {"action": np.array([[0.5], [-2.0], [1.5], [0]])},
        "must be in [-1, 1], got -2: with the actuator's bounds",
    ),
    "no name": ({"env": np.array("")}, "'env' must be the name of one task"),
    "two names": ({"env": np.array(["a", "b"])}, "'env' must be the name of one task"),
    "a number": ({"env": np.array(3)}, "'env' must be the name of one task"),
    "no repeat": ({"action_repeat": np.array(0)}, "'action_repeat' must be one whole number of at least 1"),
    "half a repeat": ({"action_repeat": np.array(1.5)}, "'action_repeat' must be one whole number of at least 1"),
    "two repeats": ({"action_repeat": np.array([2, 2])}, "'action_repeat' must be one whole number of at least 1"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(case, tmp_path):
    changes, message = WRONG[case]
    assert message in refused(write(tmp_path, changes))


@pytest.mark.parametrize("name", ["observation", "action", "reward", "next_observation", "terminated"])
def test_what_is_missing_is_named(name, tmp_path):
    told = refused(write(tmp_path, without=[name]))
    assert f"the array '{name}' is missing; there is: " in told
    assert all(other in told for other in arrays())


def test_truncations_may_be_missing(tmp_path):
    assert not dataset.load(write(tmp_path, without=["truncated"])).rows.truncated.any()


def test_the_edge_of_the_action_space_is_in_it(tmp_path):
    edge = np.array([[-1.0], [1.0], [1 + 1e-9], [-1 - 1e-9]])
    assert dataset.load(write(tmp_path, {"action": edge})).rows.action.tolist() == [[-1], [1], [1], [-1]]


class Trap:
    """What runs a command when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("trapped",)


def test_nothing_is_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("in-an-array.npz", **(arrays() | {"reward": np.array([Trap()] * 4, object)}))
    (tmp_path / "plain.npz").write_bytes(pickle.dumps(Trap()))
    with zipfile.ZipFile("in-a-zip.npz", "w") as file:
        file.writestr("reward.npy", pickle.dumps(Trap()))
    for name in ("in-an-array.npz", "plain.npz"):
        assert "is not an npz file of plain arrays" in refused(tmp_path / name)
    assert "'reward' contains Python objects, which are not read" in refused(tmp_path / "in-an-array.npz")
    assert "'reward' is not an array" in refused(tmp_path / "in-a-zip.npz")
    assert not (tmp_path / "trapped").exists()


def test_what_is_no_npz_is_told(tmp_path):
    plain = tmp_path / "plain.npz"
    for content, kind in (
        (b"", ": it is empty"),
        (b"PK\x03\x04", "as numpy.savez writes it"),
        (bytes(90), "as numpy.savez writes it"),
        (b"reward,action\r\n1,2\r\n", ": it is text; read it with numpy.loadtxt or pandas and write its columns with"),
        (b"PAR1" + bytes(90), ": it is a Parquet file; read it with pandas"),
        (pickle.dumps([1]), ": it is a pickle, which is not read; write its arrays with numpy.savez"),
    ):
        plain.write_bytes(content)
        text = refused(plain)
        assert "is not an npz file of plain arrays" in text and kind in text
    for shape in [(), (3,), (3, 2)]:
        np.save(tmp_path / "array.npy", np.zeros(shape))
        assert "is not an npz file of plain arrays" in refused(tmp_path / "array.npy")
    with zipfile.ZipFile(tmp_path / "text.npz", "w") as file:
        file.writestr("reward", "1, 2")
    assert "'reward' is not an array" in refused(tmp_path / "text.npz")
    np.savez(tmp_path / "nothing.npz")
    assert "the array 'observation' is missing; there is: nothing" in refused(tmp_path / "nothing.npz")


def test_what_cannot_be_read_is_told(tmp_path):
    assert "cannot be read (No such file or directory)" in refused(tmp_path / "nowhere.npz")
    assert "cannot be read (Is a directory)" in refused(tmp_path)
    assert "cannot be read (Not a directory)" in refused(write(tmp_path) / "x.npz")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A good compressed file's bytes, and a place to write to."""
    folder = tmp_path_factory.mktemp("good")
    np.savez_compressed(folder / "good.npz", **arrays(), env="pendulum")
    return (folder / "good.npz").read_bytes(), folder / "torn.npz"


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_torn_file_is_refused_or_whole(good, data):
    """Cut short or with bytes changed: an error of one line, never another one, and never other numbers."""
    content, path = good
    torn = bytearray(content[: data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))])
    for _ in range(data.draw(st.integers(0, 3))):
        if torn:
            torn[data.draw(st.integers(0, len(torn) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(torn)
    try:
        found = dataset.load(path)
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return
    for name, value in arrays().items():
        np.testing.assert_array_equal(getattr(found.rows, name), value)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.dictionaries(
        st.sampled_from([*arrays(), "last_observation", "env", "action_repeat", "other"]),
        st.one_of(
            st.sampled_from(["f8", "i4", "u1", "?", "U3", "S2", "c8", "M8[s]", "f2"]).flatmap(
                lambda kind: st.sampled_from([(), (4,), (4, 1), (4, 3), (0,), (2, 4, 3)]).map(
                    lambda shape: np.zeros(shape, kind)
                )
            ),
            st.floats(width=64).map(lambda x: np.full((4, 3), x)),
            st.floats(width=32).map(lambda x: np.full(4, x)),
        ),
        max_size=3,
    )
)
@example({"env": np.array(["pendulum"])})
@example({"action": np.array([0, 3, 1, 1], "u1")})
@example({"observation": np.zeros((4, 2, 2), "u1"), "next_observation": np.zeros((4, 2, 2), "u1")})
def test_whatever_the_arrays_are_rows_are_good_or_refused(tmp_path_factory, changes):
    path = write(tmp_path_factory.mktemp("any"), changes)
    try:
        rows, env, _, times, *_ = dataset.load(path)
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return
    count = len(rows.reward)
    assert rows.observation.shape == rows.next_observation.shape and rows.action.ndim in (1, 2)
    for name in ("observation", "action", "reward", "next_observation"):
        value = getattr(rows, name)
        assert len(value) == count and np.isfinite(value).all()
        if value.ndim == 1 and name != "reward":
            assert value.dtype == np.int32 and value.min() >= 0
        elif value.dtype != np.float32:
            assert value.ndim > 2 and name != "action" and value.dtype.kind in "iu"
    assert rows.action.ndim == 1 or (np.abs(rows.action) <= 1).all()
    assert rows.terminated.shape == rows.truncated.shape == (count,)
    assert rows.terminated.dtype == rows.truncated.dtype == bool and not (rows.terminated & rows.truncated).any()
    assert env is None or env == "pendulum"
    assert times >= 1


def images(rows=60, shape=(4, 4, 1), seed=0, goes_on=True):
    """Transitions of images whose successors are the next row's, but where an episode ends."""
    rng = np.random.default_rng(seed)
    ended = rng.random(rows) < 0.1
    frames = rng.integers(0, 256, (rows + 1, *shape)).astype(np.uint8)
    successor = frames[1:].copy()
    torn = ended if goes_on else np.ones(rows, bool)
    successor[torn] = rng.integers(0, 256, (torn.sum(), *shape))
    truncated = ended & (np.arange(rows) % 2 == 0)
    action = rng.integers(0, 3, rows).astype(np.int32)
    reward = rng.normal(size=rows).astype(np.float32)
    return Transition(frames[:-1], action, reward, successor, ended & ~truncated, truncated)


@pytest.mark.parametrize("goes_on", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 60])
def test_images_are_stored_once_and_come_back_in_their_dtype(rows, goes_on, tmp_path):
    """Where the rows are in another order than they came in, twice."""
    given = images(rows, goes_on=goes_on)
    dataset.save(tmp_path / "x.npz", given, "frames")
    found = dataset.load(tmp_path / "x.npz").rows
    for name in Transition._fields[:-1]:
        np.testing.assert_array_equal(getattr(found, name), getattr(given, name), strict=True)
    with np.load(tmp_path / "x.npz") as file:
        ends = int((given.terminated | given.truncated)[:-1].sum()) + 1
        stored = sum(file[name].nbytes for name in file.files if file[name].dtype == np.uint8)
        once = goes_on or rows == 1
        assert ("last_observation" in file.files, "next_observation" in file.files) == (once, not once)
        assert stored == 16 * (rows + ends if once else 2 * rows)


def test_names_of_other_packages_are_told(tmp_path):
    np.savez(tmp_path / "d4rl.npz", observations=np.zeros((3, 2)), actions=np.zeros((3, 1)), timeouts=np.zeros(3))
    text = refused(tmp_path / "d4rl.npz")
    assert "; 'observations' is 'observation', 'actions' is 'action', 'timeouts' is 'truncated' here" in text
    assert "; 'next_observation' is missing too; within an episode it is the next row's observation" in text
    wrong = {"Observation": "observation", "acton": "action", "rews": "reward", "s2": "next_observation"}
    wrong |= {"done": "terminated", "Timeouts": "truncated"}
    held = {theirs: arrays()[ours] for theirs, ours in wrong.items()}
    text = refused(write(tmp_path, held, without=list(wrong.values())))
    assert text.endswith("; " + ", ".join(f"'{theirs}' is '{ours}'" for theirs, ours in wrong.items()) + " here")
    held = {"timeouts": np.zeros(4)}
    assert "unknown array 'timeouts'; 'timeouts' is 'truncated' here" in refused(write(tmp_path, held, ["truncated"]))


def test_the_last_observations_of_vectors_by_hand(tmp_path):
    """Two episodes of two steps, then one that the file leaves unfinished."""
    seen = np.array([[0.0], [1], [10], [11], [20]])
    changes = {
        "observation": seen, "last_observation": np.array([[2], [12], [21]]), "action": np.zeros((5, 1)),
        "reward": np.zeros(5), "terminated": np.array([0, 1, 0, 0, 0]), "truncated": np.array([0, 0, 0, 1, 0]),
    }  # fmt: skip
    rows = dataset.load(write(tmp_path, changes, without=["next_observation"])).rows
    np.testing.assert_array_equal(rows.next_observation, np.float32([[1], [2], [11], [12], [21]]), strict=True)
    few = write(tmp_path, changes | {"last_observation": np.zeros((2, 1))}, without=["next_observation"])
    assert "'last_observation' must be (3, 1), a row for each end of an episode or the file, got (2, 1)" in refused(few)
    other = changes | {"observation": np.zeros((5, 2, 2), "u1"), "last_observation": np.zeros((3, 2, 2))}
    other = write(tmp_path, other, without=["next_observation"])
    assert "'last_observation' must be like 'observation', uint8, got float32" in refused(other)


def test_elements_of_discrete_spaces_are_int32(tmp_path):
    given = arrays() | {
        "observation": np.arange(4),
        "next_observation": np.arange(1, 5),
        "action": np.array([2, 0, 1, 1], "u1"),
    }
    rows = dataset.load(write(tmp_path, given)).rows
    np.testing.assert_array_equal(rows.observation, np.arange(4, dtype=np.int32), strict=True)
    np.testing.assert_array_equal(rows.action, np.int32([2, 0, 1, 1]), strict=True)
    dataset.save(tmp_path / "again.npz", rows, "walk")
    again = dataset.load(tmp_path / "again.npz").rows
    np.testing.assert_array_equal(again.next_observation, np.arange(1, 5, dtype=np.int32), strict=True)


def test_vectors_of_integers_are_not_written(tmp_path):
    vectors = {"observation": np.zeros((4, 2), np.int32), "next_observation": np.zeros((4, 2), np.int32)}
    with pytest.raises(UserError, match="'observation' are vectors of int32, which a file cannot store: convert to floats"):
        dataset.save(tmp_path / "x.npz", Transition(**(arrays() | vectors)), "board")
    task = envs.make("pendulum")
    dataset.check_storable(task)
    with pytest.raises(UserError, match=r"cannot store the observations of task 'pendulum', Box\(shape=\(2,\), low=0"):
        dataset.check_storable(task._replace(observation=Box((2,), 0, 5, "int32")))


def test_rows_of_another_space_do_not_fit(tmp_path):
    task = envs.make("pendulum")._replace(observation=Box((4, 4, 1), 0, 255, "uint8"), action=Discrete(3))
    dataset.save(tmp_path / "x.npz", images(), "frames")
    data = dataset.load(tmp_path / "x.npz")
    dataset.check_fits(data, task)
    for other, message in (
        (task._replace(action=Discrete(2)), "the data's 'action' has the element 2, pendulum has Discrete(n=2)"),
        (task._replace(observation=Box((4, 4, 1))), "the data's 'observation' is uint8, that of pendulum is float32"),
        (
            task._replace(action=Box((1,), -1.0, 1.0)),
            "the data's 'action' has rows of shape (), pendulum has (1,): write action[:, None]",
        ),
    ):
        with pytest.raises(UserError) as told:
            dataset.check_fits(data, other)
        assert str(told.value) == message
    with pytest.raises(
        UserError, match=r"fit takes vectors, and the data's 'observation' is uint8 of shape \(60, 4, 4, 1\)"
    ):
        dataset.check_vectors(data.rows, "fit")
    dataset.check_vectors(dataset.load(write(tmp_path)).rows, "fit")


def test_what_would_be_refused_is_not_written(tmp_path):
    bad = Transition(**(arrays() | {"reward": np.full(4, np.nan, np.float32)}))
    with pytest.raises(UserError, match="'reward' is not finite in 4 rows"):
        dataset.save(tmp_path / "bad.npz", bad, "pendulum")
    assert list(tmp_path.iterdir()) == []


def test_no_file_is_overwritten(tmp_path):
    path = write(tmp_path)
    before = path.read_bytes()
    (tmp_path / "link.npz").symlink_to(tmp_path / "nowhere")
    for taken in (path, tmp_path, tmp_path / "link.npz"):
        for refusing in (dataset.check_writable, lambda p: dataset.save(p, Transition(**arrays()), "pendulum")):
            with pytest.raises(UserError, match="exists; choose another file"):
                refusing(taken)
    assert path.read_bytes() == before


def test_looking_whether_a_file_can_be_leaves_nothing(tmp_path):
    dataset.check_writable(tmp_path / "new" / "folder" / "x.npz")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    for path, reason in (
        (tmp_path / "file" / "x.npz", "Not a directory"),
        (tmp_path / "file" / "deep" / "x.npz", "Not a directory"),
        (tmp_path / ("x" * 300) / "x.npz", "File name too long"),
        ("/proc/x.npz", "No such file or directory"),
    ):
        with pytest.raises(UserError, match=rf"cannot be written \({reason}\); choose another file"):
            dataset.check_writable(path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(tmp_path):
    (tmp_path / "shut").mkdir(mode=0o500)
    for place in ("x.npz", "deep/x.npz"):
        with pytest.raises(UserError, match=r"cannot be written \(Permission denied\)"):
            dataset.check_writable(tmp_path / "shut" / place)


def test_rows_of_another_size_do_not_fit(tmp_path):
    task = envs.make("pendulum")
    dataset.check_fits(dataset.load(write(tmp_path)), task)
    wide = {"observation": np.zeros((4, 4)), "next_observation": np.zeros((4, 4))}
    for changes, message in (
        (wide, "the data's 'observation' has rows of shape (4,), pendulum has (3,)"),
        ({"action": np.zeros((4, 2))}, "the data's 'action' has rows of shape (2,), pendulum has (1,)"),
        (
            {"action": np.array([0, 1, 1, 0])},
            "the data's 'action' has rows of shape (), pendulum has (1,): write action[:, None]",
        ),
    ):
        with pytest.raises(UserError) as told:
            dataset.check_fits(dataset.load(write(tmp_path, changes)), task)
        assert str(told.value) == message


def test_a_file_without_successors_says_how_to_make_them(tmp_path):
    told = refused(write(tmp_path, without=["next_observation"]))
    assert told.endswith(
        "truncated; within an episode it is the next row's observation: drop the last row of each episode and of the file, "
        "unless its true successor is known, and mark the row before it as truncated "
        "(docs/tutorials/own_data.md has the code)"
    )
    longer = write(tmp_path, {"observation": np.zeros((5, 3))}, ["next_observation"])
    assert refused(longer).endswith("next_observation is observation[1:] and observation is observation[:-1]")
    # Where it has another name, that is all there is to say.
    renamed = {"next_obs": np.zeros((4, 3), np.float32)}
    assert refused(write(tmp_path, renamed, ["next_observation"])).endswith("; 'next_obs' is 'next_observation' here")


def test_the_code_of_the_page_makes_the_successors(tmp_path, monkeypatch):
    """Of a log of whole episodes, each row but the last of an episode, with its true successor."""
    page = (Path(__file__).parents[2] / "docs" / "tutorials" / "own_data.md").read_text()
    (code,) = re.findall(r"^```python\n(last = .*?)^```$", page, re.DOTALL | re.MULTILINE)
    rng, lengths = np.random.default_rng(0), (7, 30, 2, 12)
    walk = np.cumsum(rng.normal(size=(sum(lengths) + 4, 2)), axis=0).astype(np.float32)
    starts = np.cumsum([0, *(length + 1 for length in lengths[:-1])])
    at = np.concatenate([start + np.arange(length) for start, length in zip(starts, lengths, strict=True)])
    ends = np.cumsum(lengths) - 1
    terminated, truncated = np.zeros(len(at), bool), np.zeros(len(at), bool)
    terminated[ends[:2]] = truncated[ends[2]] = True
    log = {"observation": walk[at], "action": rng.uniform(-1, 1, (len(at), 1)), "reward": rng.normal(size=len(at))}
    monkeypatch.chdir(tmp_path)
    exec(code, {"np": np, **log, "terminated": terminated, "truncated": truncated})
    rows = dataset.load("logged.npz").rows
    kept = np.setdiff1d(np.arange(len(at)), ends)
    np.testing.assert_array_equal(rows.observation, walk[at[kept]])
    np.testing.assert_array_equal(rows.next_observation, walk[at[kept] + 1])
    np.testing.assert_array_equal(rows.action, log["action"][kept].astype(np.float32))
    np.testing.assert_array_equal(np.flatnonzero(rows.truncated), np.cumsum([length - 1 for length in lengths]) - 1)
    assert not rows.terminated.any() and dataset.load("logged.npz").warnings == []
