"""A run's policy, model and critic looked at: what is played, from what, and that the folder stays as it is."""

import io
import shutil

import jax
import jax.numpy as jnp
import linear_model
import numpy as np
import pytest
from command_line import call
from PIL import Image, ImageSequence
from run_by_hand import data_of
from slider import slider

import jaxmbrl
from jaxmbrl import algorithms, envs
from jaxmbrl.core.config import UserError, to_dict
from jaxmbrl.core.types import Algorithm, Policy, Transition, flatten, row_like
from jaxmbrl.data import prioritized, replay, sequences
from jaxmbrl.diagnostics import doctor
from jaxmbrl.report import build as making
from jaxmbrl.report import diagnosing
from jaxmbrl.training import evaluation, loop, programs
from jaxmbrl.training.console import Progress
from jaxmbrl.training.programs import Program
from jaxmbrl.training.run_folder import RunFolder
from jaxmbrl.training.session import Session

TINY = {
    "batch_size": 16,
    "replay_capacity": 500,
    "warmup_steps": 50,
    "epoch_steps": 100,
    "eval_every": 1,
    "updates_per_step": 1,
}
OF_MBPO = {
    "agent.hidden": (8,),
    "ensemble.members": 3,
    "ensemble.elites": 2,
    "ensemble.hidden": (8,),
    "ensemble.max_epochs": 3,
    "refit_every": 50,
    "rollout_rows": 20,
}
SETTINGS = {linear_model.NAME: ("default", TINY | {"discount": 0.99}), "mbpo": ("small", TINY | OF_MBPO)}


@pytest.fixture(scope="module", params=[linear_model.NAME, pytest.param("mbpo", marks=pytest.mark.promises)])
def run(request, tmp_path_factory, compile_cache):
    """A run with two seeds, trained for 200 steps of the pendulum, of a method with a model and a critic."""
    path = tmp_path_factory.mktemp("runs") / "run"
    preset, settings = SETTINGS[request.param]
    with linear_model.registered():
        jaxmbrl.train(request.param, "pendulum", preset=preset, steps=200, seeds=2, seed=5, settings=settings, out=path)
        yield path


@pytest.fixture(scope="module")
def found(run):
    before = contents(run)
    shares = []
    made = diagnosing.diagnose(run, shares.append)
    assert shares == sorted(shares) and len(shares) > 4 and shares[0] == 0.0 < shares[1] < 0.5 <= shares[-1] <= 1
    assert contents(run) == before, "the folder is as it was"
    return made


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_policy_plays_whole_episodes(found):
    assert (found.seed, found.env_steps) == (5, 200)
    assert found.rows.reward.shape == (1000,) and found.rows.extras == ()
    np.testing.assert_array_equal(np.flatnonzero(found.rows.truncated), [199, 399, 599, 799, 999])
    rewards = found.rows.reward.astype(float).reshape(5, 200).sum(axis=1)
    np.testing.assert_allclose(found.returns, rewards, rtol=1e-6)
    assert np.abs(found.rows.action).max() <= 1 and found.step_seconds > 0


def test_it_is_the_policy_that_is_evaluated(run, found):
    policy, state, _ = jaxmbrl.load(run)
    first = policy(jax.tree.map(lambda leaf: leaf[0], state))
    for i in (0, 500, 999):
        action = first.act(first.init(jax.random.key(0)), jnp.asarray(found.rows.observation[i]), jax.random.key(1))[0]
        np.testing.assert_allclose(found.rows.action[i], action, atol=1e-5)


def test_the_model_is_judged_on_what_was_played(found):
    assert found.model.error.shape == (4,) and found.model.learns_reward
    np.testing.assert_allclose(found.model.observed[:, 3], found.rows.reward, rtol=1e-6)
    assert found.errors.members.shape == (3, 50, 3) and found.imagined.members.shape == (3, 51, 3)
    np.testing.assert_allclose(found.imagined.real[0], found.rows.observation[0], rtol=1e-6)


def test_the_critic_is_judged_where_enough_of_the_return_is_known(found):
    """At a discount of 0.99 no return is known to 5% within 200 steps; half of it is, of rows with 69 steps left."""
    critic = found.critic
    assert critic.soft and critic.ends_by_critic and critic.discount == pytest.approx(0.99)
    assert 0.99**69 < 0.5 < 0.99**68
    assert len(critic.bias.q) == 5 * (200 - 68)


def test_actions_in_training_are_those_of_the_replay(found):
    assert found.stored.shape == (200, 1) and np.abs(found.stored).max() <= 1
    assert found.film[:6] == b"GIF89a" and "of the first episode of seed" in found.film_note
    assert found.notes == () and found.state_bytes > 2 * 500 * 9 * 4, "at least the two replay buffers"


def test_the_page_shows_it(run, tmp_path):
    code, out, err = call("report", run, "--out", tmp_path / "page", "--no-compile-cache")
    assert (code, err) == (0, "") and f"evaluating the newest policy of {run} ..." in out
    made = (tmp_path / "page.html").read_bytes()
    titles = [chart["title"] for chart in data_of(made)]
    for title in (
        *("Return in evaluation over real steps", "Return in evaluation over the wall clock", "Holdout error of the model"),
        *("Aleatoric variance", "Epistemic variance", "Calibration", "Compounding error", "One step: reward"),
        *("Imagined and real: observation 2", "Actions, dimension 0", "Q and the return that followed", "Rollout length"),
        *("First episode: reward", "Throughput", "Time of an epoch"),
    ):
        assert title in titles
    text = made.decode()
    assert "of the first episode of seed" in text and "The critic&#x27;s bias" in text and "memory while it runs" in text


@pytest.mark.promises
def test_damaged_checkpoints_are_told_and_stay_where_they_are(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    newest = sorted((copy / "checkpoints").glob("0*"))[-1]
    (newest / "manifest.json").write_text("{")
    before = contents(copy)
    found = diagnosing.diagnose(copy)
    assert contents(copy) == before and found.env_steps < 200 and len(found.notes) == 1 and newest.name in found.notes[0]
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(UserError, match="checkpoint"):
        diagnosing.diagnose(copy)


@pytest.mark.promises
def test_a_run_that_has_not_learned_yet_is_only_played(tmp_path, monkeypatch):
    monkeypatch.setitem(envs.TASKS, "slider", slider)
    config = programs.configure("sac", "slider", settings={"agent.hidden": (4,), "replay_capacity": 1000}, seeds=2, seed=3)
    folder = RunFolder.create(tmp_path / "run")
    folder.write_config(to_dict(config))
    session = Session(programs.build(config), folder, Progress.silent())
    session.state = programs.initial(session.program, {})
    session.save(wait=True)
    found = diagnosing.diagnose(folder.path)
    assert (found.env_steps, found.seed) == (0, 3) and found.model is found.critic is found.stored is None
    assert len(found.returns) > 0
    if doctor.rendering().state == "ok":
        assert found.film[:6] == b"GIF89a" and "of the first episode of seed 3" in found.film_note


def still(state, clock, explore):
    """The policy that does nothing."""
    return Policy(lambda key: (), lambda memory, observation, key: (jnp.zeros(1), (), memory))


def test_playing_ends_when_the_time_is_up():
    """A chunk is played before the clock is looked at, and no part of one."""
    algorithm = Algorithm(init=None, policy=still, learn=None, period=1)
    rows, _ = diagnosing.play(envs.make("pendulum"), algorithm, (), loop.clock_at(0), 1000, seconds=0.0)
    assert 50 <= len(rows.reward) <= 100
    shares = []
    rows, _ = diagnosing.play(envs.make("pendulum"), algorithm, (), loop.clock_at(0), 120, update=shares.append)
    assert len(rows.reward) == 150
    assert (shares[0], shares[-1]) == (0.0, 1.0), "the first chunk, which compiles, is no measured work"


def test_episodes_begin_as_evaluations_do():
    task = envs.make("pendulum")
    algorithm = Algorithm(init=None, policy=still, learn=None, period=1)
    rows, _ = diagnosing.play(task, algorithm, (), loop.clock_at(0), 50)
    start = task.world.observe(task.world.reset(evaluation.keys_of(0)[0]))
    np.testing.assert_allclose(rows.observation[0], start, rtol=1e-6)


def test_returns_are_of_whole_episodes():
    flags = np.zeros(6, bool)
    ends, cut = flags.copy(), flags.copy()
    ends[1], cut[4] = True, True
    reward = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0], np.float32)
    rows = Transition(np.zeros((6, 1)), np.zeros((6, 1)), reward, np.zeros((6, 1)), ends, cut, ())
    assert diagnosing.returns_of(rows) == (3.0, 28.0)
    assert diagnosing.returns_of(jax.tree.map(lambda leaf: leaf[:1], rows)) == ()


@pytest.mark.parametrize("kind", ["rows", "prioritized", "sequences"])
def test_stored_actions_of_every_kind_of_buffer(kind):
    """Four steps of two environments, in a buffer with room for three of each."""
    row = row_like(envs.make("pendulum"))
    steps = jax.tree.map(lambda leaf: np.zeros((4, 2, *leaf.shape), leaf.dtype), row)
    steps = steps._replace(action=np.arange(8.0, dtype=np.float32).reshape(4, 2, 1))

    @jax.jit
    def fill(steps):
        if kind == "sequences":
            empty = sequences.init(row, 2, 3)
            first, second = (jax.tree.map(lambda x, part=part: x[part], steps) for part in (slice(2), slice(2, 4)))
            return empty, sequences.add(sequences.add(empty, first), second)
        made = replay if kind == "rows" else prioritized
        empty = made.init(row, 6)
        return empty, made.add(empty, flatten(steps))

    empty, buffer = jax.device_get(fill(steps))
    assert diagnosing._stored(empty) is None and diagnosing._stored(None) is None
    found = diagnosing._stored(buffer)
    assert found.shape == (6, 1) and sorted(found[:, 0]) == [2, 3, 4, 5, 6, 7]


def test_stored_actions_may_be_choices():
    row = row_like(envs.make("pendulum"))._replace(action=np.zeros((), np.int32))
    rows = jax.tree.map(lambda leaf: np.zeros((3, *leaf.shape), leaf.dtype), row)
    rows = rows._replace(action=np.array([2, 0, 1], np.int32))
    buffer = jax.device_get(jax.jit(lambda rows: replay.add(replay.init(row, 6), rows))(rows))
    np.testing.assert_array_equal(diagnosing._stored(buffer), [2, 0, 1])


def test_a_film_of_images_that_were_observed():
    """An image of 2 x 3 pixels fills the height of a frame of 240 x 320 in blocks of 106, and stands in its middle."""
    flags, ends = np.zeros(5, bool), np.arange(5) == 2
    images = np.zeros((5, 2, 3, 1), np.uint8)
    images[1, 0, 2] = 255
    rows = Transition(images, np.zeros(5, int), np.zeros(5), images, flags, ends, ())
    film, shown = diagnosing._observed(rows)
    assert shown == "what the policy observed in the first 3 steps"
    with Image.open(io.BytesIO(film)) as gif:
        frames = [np.asarray(frame.convert("L")) for frame in ImageSequence.Iterator(gif)]
    assert [frame.shape for frame in frames] == 3 * [(240, 320)]
    expected = np.full((240, 320), 128)
    expected[14:226, 1:319] = 0
    np.testing.assert_array_equal(frames[0], expected)
    expected[14:120, 213:319] = 255
    np.testing.assert_array_equal(frames[1], expected)
    # A large image is thinned out.
    assert diagnosing._framed(np.zeros((1000, 500, 3), np.uint8)).shape == (240, 320, 3)
    assert diagnosing._observed(rows._replace(observation=np.zeros((5, 2, 3, 1), np.float32))) is None
    assert diagnosing._observed(rows._replace(observation=np.zeros((5, 3), np.uint8))) is None


def test_what_cannot_be_played_is_told(run, monkeypatch):
    played = []

    def diagnose(path, update):
        update(0.5)
        played.append(path.name)
        raise UserError("not now")

    monkeypatch.setattr(making.diagnosing, "diagnose", diagnose)
    made = making.make([run])
    assert played == ["run"] and "could not be evaluated: not now" in made.decode()


@pytest.mark.parametrize(
    ("algorithm", "model", "critic"),
    [
        pytest.param("mbpo", True, True, marks=pytest.mark.promises),
        pytest.param("td3", False, True, marks=pytest.mark.promises),
        pytest.param("dhmbpo", True, True, marks=pytest.mark.slow),
        pytest.param("steve", True, True, marks=pytest.mark.promises),
        pytest.param("pets", True, False, marks=pytest.mark.promises),
        pytest.param("bptt", True, False, marks=pytest.mark.slow),
    ],
)
def test_every_kind_of_algorithm_is_looked_at(algorithm, model, critic):
    """Models and critics as they begin, taken for trained ones."""
    settings = {"replay_capacity": 1000} | ({"ensemble.hidden": (8,)} if model else {})
    config = programs.configure(algorithm, "pendulum", settings=settings)
    task = envs.make("pendulum")
    made = algorithms.get(algorithm).make(config.settings, task)
    program = Program(config, task, made, loop=None)
    state = jax.jit(lambda: made.init(jax.random.key(0), {}, None))()
    views, clock = program.algorithm.views(state), loop.clock_at(0)
    rows, _ = diagnosing.play(program.task, Algorithm(None, still, None, 1), (), clock, 200)
    if model:
        assert not views.model.fitted and diagnosing._model(views.model, rows) == {}
        views = program.algorithm.views(state._replace(model=state.model._replace(fits=np.int32(1))))
    found = diagnosing._model(views.model, rows) | diagnosing._critic(program, state, clock)
    assert set(found) == ({"model", "errors", "imagined"} if model else set()) | ({"critic"} if critic else set())
    if model:
        assert np.isfinite(found["model"].error).all() and np.isfinite(found["errors"].scaled_mean).all()
    if critic:
        assert found["critic"].soft == (algorithm != "td3") and np.isfinite(found["critic"].bias.bias)
