"""A run's action repeat: it is the run's own wherever its task is made again, and data of another are refused."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from command_line import call, options, untimed

import jaxmbrl
from jaxmbrl import envs
from jaxmbrl.commands.training import task_words
from jaxmbrl.core.config import UserError
from jaxmbrl.data import dataset
from jaxmbrl.training import collecting, programs
from jaxmbrl.training.run_folder import RunFolder

SETTINGS = {
    "batch_size": 8,
    "replay_capacity": 200,
    "warmup_steps": 20,
    "epoch_steps": 67,
    "eval_every": 0,
}
WORDS = [*options(SETTINGS), "--steps", 134, "--checkpoint.every", 1]

pytestmark = pytest.mark.usefixtures("compile_cache")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two episodes of 67 steps, each action applied 3 times, by the command line: its folder, and what the console said."""
    out = tmp_path_factory.mktemp("runs") / "thrice"
    code, said, err = call("train", "linear", "--env", "pendulum", "--action-repeat", 3, *WORDS, "--out", out)
    assert (code, err) == (0, "")
    return out, said


def test_episodes_count_the_agents_steps(run):
    rows = RunFolder.open(run[0]).read_metrics()
    assert [(row["env_steps"], row["train/episodes"], row["train/episode_length"]) for row in rows] == [
        (67, 1, 67),
        (134, 1, 67),
    ]
    assert all(-3300 < row["train/return"] < -300 for row in rows), "the sum over all 200 steps"


def test_the_config_and_the_console_tell_it(run):
    out, said = run
    assert yaml.safe_load((out / "config.yaml").read_text())["action_repeat"] == 3
    said = " ".join(said.split())
    assert "on pendulum, each action 3 times: 134 environment steps" in said
    assert "train pets --env pendulum --action-repeat 3" in said


def test_the_interface_and_the_command_line_agree(run):
    result = jaxmbrl.train("linear", "pendulum", settings=SETTINGS, steps=134, action_repeat=3, checkpoint={"every": 1})
    assert untimed(result.rows) == untimed(RunFolder.open(run[0]).read_metrics())
    assert (result.task.action_repeat, result.task.episode_length) == (3, 67)


def test_a_resumed_run_goes_on_with_it(run, tmp_path):
    shutil.copytree(run[0], tmp_path / "run")
    shutil.rmtree(max((tmp_path / "run" / "checkpoints").iterdir(), key=lambda path: int(path.name)))
    code, said, err = call("train", "--resume", tmp_path / "run")
    assert (code, err) == (0, "") and "resuming at 67 of 134 steps" in said

    def digests(folder):
        newest = max((folder / "checkpoints").iterdir(), key=lambda path: int(path.name))
        manifest = json.loads((newest / "manifest.json").read_text())["manifest"]
        return int(newest.name), [(leaf["path"], leaf["sha256"]) for leaf in manifest["leaves"]]

    assert digests(tmp_path / "run") == digests(run[0]) and digests(run[0])[0] == 134


@pytest.mark.promises
def test_evaluation_is_of_the_repeated_task(run):
    """Against the plain environment, in which the run's policy holds each action for 3 steps."""
    returns = jaxmbrl.evaluate(run[0], 2).returns
    policy, states, task = jaxmbrl.load(run[0])
    act = policy(jax.tree.map(lambda x: x[0], states)).act
    assert task.action_repeat == 3
    base = envs.make("pendulum").env
    step = jax.jit(base.step)
    for index in range(2):
        start = jax.random.split(jax.random.fold_in(jax.random.key(0x45564131), index), 3)[0]
        state, total = base.reset(start), 0.0
        for t in range(200):
            if t % 3 == 0:
                action = act((), state.obs, jax.random.key(0))[0]
            state = step(state, action)
            total += float(state.reward)
        assert float(returns[0, index]) == pytest.approx(total, rel=1e-4)


def test_a_config_without_it_is_of_actions_applied_once(run):
    values = yaml.safe_load((run[0] / "config.yaml").read_text())
    assert programs.parse(values).action_repeat == 3
    del values["action_repeat"]
    assert programs.parse(values).action_repeat == 1
    assert programs.build(programs.parse(values)).task.episode_length == 200


def test_a_config_of_a_run_begins_one_alike(run, tmp_path):
    code, _, err = call("train", "linear", "--config", run[0] / "config.yaml", "--steps", 67, "--out", tmp_path / "again")
    assert (code, err) == (0, "")
    assert programs.read(RunFolder.open(tmp_path / "again")).action_repeat == 3


def test_collecting_by_a_run_is_with_its_own(run, tmp_path):
    rows, task = collecting.collect_by(None, str(run[0]), 70)
    assert task.action_repeat == 3 and np.flatnonzero(rows.truncated).tolist() == [66]
    code, _, err = call("collect", "--policy", run[0], "--steps", 5, "--out", tmp_path / "rows.npz")
    assert (code, err) == (0, "") and dataset.load(tmp_path / "rows.npz").action_repeat == 3
    with pytest.raises(UserError, match=r"action_repeat must be 3, that of the run in .*thrice, got 1"):
        collecting.collect_by("pendulum", str(run[0]), 5, action_repeat=1)


@pytest.mark.promises
def test_random_actions_are_collected_repeated(tmp_path):
    """And a fit to them and a run from them are of the same repeat."""
    file = tmp_path / "rows.npz"
    words = ["--policy", "random", "--env", "pendulum", "--steps", 80, "--out", file]
    code, said, err = call("collect", *words, "--action-repeat", 3)
    assert (code, err) == (0, "") and f"train pets --env pendulum --action-repeat 3 --data {file}" in said
    data = dataset.load(file)
    assert data.action_repeat == 3 and np.flatnonzero(data.rows.truncated).tolist() == [66]
    step, total = jax.jit(envs.make("pendulum").env.step), 0.0
    cos, sin, speed = data.rows.observation[0]
    state = envs.make("pendulum").env.state_at(jnp.stack([jnp.arctan2(sin, cos), speed]))
    for _ in range(3):
        state = step(state, jnp.asarray(data.rows.action[0]))
        total += float(state.reward)
    np.testing.assert_allclose(data.rows.next_observation[0], state.obs, atol=1e-5)
    assert data.rows.reward[0] == pytest.approx(total, rel=1e-5)

    code, said, err = call("train", "linear", "--env", "pendulum", "--data", file, *WORDS[:-4], "--out", tmp_path / "run")
    assert (code, said) == (2, "") and err == "jaxmbrl: action_repeat must be 3, as in the data, got 1\n"
    more = ["--action-repeat", 3, "--out", tmp_path / "run"]
    code, said, err = call("train", "linear", "--env", "pendulum", "--data", file, *WORDS[:-4], *more)
    assert (code, err) == (0, "") and f"train pets --env pendulum --action-repeat 3 --data {file}" in said
    small = ["--ensemble.members", 2, "--ensemble.elites", 2, "--ensemble.hidden", 8, "--ensemble.max-epochs", 1]
    code, said, err = call("fit", "--data", file, *small)
    assert (code, err) == (0, "") and "\nreward " in said, "the known reward is of one step, so it is learned"


@pytest.mark.parametrize("times", [0, 201])
def test_a_repeat_that_cannot_be_is_told(times, tmp_path):
    for line in (
        ["train", "linear", "--env", "pendulum", "--action-repeat", times, "--out", tmp_path / "new"],
        ["collect", "--policy", "random", "--env", "pendulum", "--action-repeat", times, "--out", tmp_path / "new"],
    ):
        code, said, err = call(*line)
        assert (code, said) == (2, "") and "action_repeat must be " in err and err.endswith(f", got {times}\n")
        assert err.count("\n") == 1 and not list(tmp_path.iterdir())


def test_a_task_with_repetitions_in_its_name_is_not_repeated_again(tmp_path):
    """The commands that are proposed for it, and the fit of a model to its file."""
    assert task_words(envs.make("repeated/2/pendulum")) == ["--env", "repeated/2/pendulum"]
    assert task_words(envs.make("repeated/2/pendulum", 3)) == ["--env", "repeated/2/pendulum", "--action-repeat", "3"]
    assert task_words(envs.make("pendulum", 3)) == ["--env", "pendulum", "--action-repeat", "3"]
    file = tmp_path / "rows.npz"
    code, said, _ = call("collect", "--env", "repeated/2/pendulum", "--policy", "random", "--steps", 200, "--out", file)
    assert code == 0 and f"train pets --env repeated/2/pendulum --data {file}" in " ".join(said.split())
    fit = ("fit", "--data", file, "--env", "repeated/2/pendulum", "--ensemble.members", 2, "--ensemble.elites", 1)
    code, said, err = call(*fit, "--ensemble.hidden", 4, "--ensemble.max-epochs", 1)
    assert code == 0, err
    assert f"train pets --env repeated/2/pendulum --data {file}" in " ".join(said.split())
