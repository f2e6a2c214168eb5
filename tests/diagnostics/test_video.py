"""Videos: the episode is the one that is evaluated; frames are as many, as large and as fast as they should be."""

import dataclasses
import io
import json
from typing import ClassVar

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from slider import centre, slider
from small_method import registered

from jaxmbrl import cli, envs
from jaxmbrl.core.config import to_dict
from jaxmbrl.core.types import Algorithm, Policy
from jaxmbrl.diagnostics import doctor, video
from jaxmbrl.envs.base import initial_state
from jaxmbrl.envs.classic.pendulum import Pendulum
from jaxmbrl.envs.drawing import NoPicture
from jaxmbrl.training import evaluation, hosted, programs, runner
from jaxmbrl.training.console import Progress
from jaxmbrl.training.loop import clock_at
from jaxmbrl.training.run_folder import RunFolder
from jaxmbrl.training.session import Result, Session


def acting(act, observes_full_state=False):
    """`act(state, observed)` gives the action."""

    def policy(state, clock, explore):
        assert explore is False
        return Policy(lambda key: (), lambda memory, observed, key: (act(state, observed), (), memory))

    return Algorithm(init=None, policy=policy, learn=None, period=1, observes_full_state=observes_full_state)


to_the_right = acting(lambda state, observation: state * jnp.ones(1))
by_the_state = acting(lambda state, carry: -state * jnp.sign(carry[0].pipeline_state.qpos), observes_full_state=True)


ALGORITHMS = {"observing": to_the_right, "privileged": by_the_state}


@pytest.mark.parametrize(
    ("algorithm", "index", "length"),
    [
        *(("observing", 2, 3), ("observing", 0, 50), ("privileged", 0, 3), ("privileged", 2, 50)),
        *(
            pytest.param(*case, marks=pytest.mark.promises)
            for case in (("observing", 0, 3), ("observing", 2, 50), ("privileged", 2, 3), ("privileged", 0, 50))
        ),
    ],
)
def test_the_episode_is_the_one_that_is_evaluated(algorithm, index, length):
    task, algorithm = slider(length), ALGORITHMS[algorithm]
    due = np.asarray(evaluation.evaluate(algorithm, task, jnp.asarray([0.7]), 3))[0, index]
    found = video.record(algorithm, task, jnp.asarray(0.7), index)
    assert found.total == pytest.approx(float(due), rel=1e-6)
    # The reward is the position after each step.
    assert found.total == pytest.approx(float(found.shown[1:].sum()), rel=1e-5)


def test_a_recording_ends_with_the_episode():
    long, short = (video.record(to_the_right, slider(length), jnp.asarray(1.0)) for length in (50, 3))
    moved = long.shown[:, 0]
    np.testing.assert_allclose(np.diff(moved), 0.5, rtol=1e-5)
    assert moved[-2] <= 2 < moved[-1] and -1 <= moved[0] <= 1
    np.testing.assert_array_equal(short.shown, long.shown[:4])
    np.testing.assert_array_equal(short.actions, np.ones((3, 1)))


@pytest.mark.parametrize(
    ("length", "dt", "chosen", "durations"),
    [
        (5, 0.04, [0, 1, 2, 3, 4], [40] * 5),
        (1001, 0.008, np.arange(0, 1001, 5), [40] * 201),
        (5, 0.05, [0, 1, 2, 3, 4], [50] * 5),
        # 45 ms as hundredths: 0.045, 0.09, 0.135, 0.18 s are 4 (to even), 9, 14 (13.5 to even) and 18.
        (4, 0.045, [0, 1, 2, 3], [40, 50, 50, 40]),
        (1, 0.008, [0], [40]),
        (1001, 0.05, np.arange(300), [50] * 300),
    ],
)
def test_frames_run_as_fast_as_the_task(length, dt, chosen, durations):
    found = video.frames(np.ones(length, bool), dt)
    np.testing.assert_array_equal(found[0], chosen)
    np.testing.assert_array_equal(found[1], durations)
    assert len(chosen) <= 300


def test_frames_end_before_what_is_not_finite():
    np.testing.assert_array_equal(video.frames(np.arange(9) != 6, 0.04)[0], np.arange(6))
    assert len(video.frames(np.zeros(3, bool), 0.04)[0]) == 0


def read(data):
    """Frames and their durations in ms."""
    image = Image.open(io.BytesIO(data))
    frames, durations = [], []
    for i in range(image.n_frames):
        image.seek(i)
        frames.append(np.asarray(image.convert("RGB")))
        durations.append(image.info["duration"])
    assert image.info["loop"] == 0
    return np.stack(frames), durations


def test_a_gif_holds_its_pictures():
    """A white bar on blue that moves by three pixels a frame."""
    pictures = np.zeros((6, 20, 30, 3), np.uint8)
    pictures[..., 2] = 200
    for i in range(6):
        pictures[i, :, 3 * i : 3 * i + 4] = 255
    frames, durations = read(video.gif(list(pictures), [40, 50, 40, 50, 40, 50]))
    np.testing.assert_allclose(frames.astype(int), pictures, atol=4)
    assert durations == [40, 50, 40, 50, 40, 50]


@pytest.fixture(scope="module", autouse=True)
def small_method():
    with registered():
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run with two seeds on the slider that has just begun."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(envs.TASKS, "slider", slider)
        yield begun("slider", tmp_path_factory.mktemp("run") / "run")


def begun(task, path):
    config = programs.configure("linear", task, seeds=2, seed=3)
    folder = RunFolder.create(path)
    folder.write_config(to_dict(config))
    session = Session(programs.build(config), folder, Progress.silent())
    session.state = programs.initial(session.program, {})
    session.save(wait=True)
    return path


@pytest.fixture(scope="module")
def renderer():
    found = doctor.rendering()
    if found.state != "ok":
        pytest.skip(found.message)


def call(capsys, *words):
    code = cli.main([str(word) for word in ("evaluate", *words, "--episodes", "2", "--no-compile-cache")])
    told = capsys.readouterr()
    return code, told.out.splitlines(), told.err


@pytest.mark.promises
@pytest.mark.usefixtures("renderer")
def test_the_command_films_the_first_episode(run, capsys):
    code, lines, err = call(capsys, run, "--video", "--json")
    assert (code, err) == (0, "")
    (line,) = (line for line in lines if line.startswith("video "))
    episode = video.record(*_parts(run))
    assert line == (
        f"video    {run / 'video.gif'}: all {0.05 * (len(episode.shown) - 1):.1f} s of the first episode of seed 3, "
        f"return {episode.total:.2f}"
    )
    assert "per_seed" in json.loads(lines[-1])
    returns = runner.evaluate(run, 2).returns
    assert episode.total == pytest.approx(float(returns[0, 0]), rel=1e-5)
    frames, durations = read((run / "video.gif").read_bytes())
    assert frames.shape == (len(episode.shown), 240, 320, 3) and durations == [50] * len(frames)
    posts = [centre(frame, 1)[0] for frame in frames]
    # The camera follows the box, so the post goes the other way.
    assert len(frames) > 5 and np.corrcoef(posts, episode.shown[:, 0])[0, 1] < -0.99
    # Again, to the same file and to another one.
    assert call(capsys, run, "--video")[0] == 0
    code, lines, _ = call(capsys, run, "--video", run / "film")
    assert code == 0 and f"video    {run / 'film.gif'}: " in "\n".join(lines)
    assert (run / "film.gif").read_bytes() == (run / "video.gif").read_bytes()
    code, _, err = call(capsys, run, "--video", run / "film.gif")
    assert code == 2 and "film.gif exists; choose another file" in err


def _parts(run):
    program, states, *_ = runner.trained(run)
    return program.algorithm, program.task, jax.tree.map(lambda leaf: leaf[0], states)


def test_a_dream_that_cannot_be_filmed_is_refused_before_any_episode(run, capsys):
    for words, told in (
        (("--dream",), "a dream is filmed of images of one or three channels"),
        (("--dream", run / "config.yaml" / "x"), "config.yaml"),
    ):
        code, lines, err = call(capsys, run, *words)
        assert code == 2 and told in err and err.count("\n") == 1
        assert not any(line.startswith("mean ") for line in lines)


def test_without_a_renderer_the_returns_are_told_all_the_same(run, capsys, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    code, lines, err = call(capsys, run, "--video", run / "none.gif")
    assert code == 1 and any(line.startswith("mean ") for line in lines)
    assert err.count("\n") == 1 and err.startswith("jaxmbrl: no picture: MUJOCO_GL=nonsense does not work on this machine")
    assert not (run / "none.gif").exists()


class Counting:
    """Its state counts steps; the drawing shows the count and the action's sign as the colour of all pixels."""

    observation_size = action_size = 1
    dt = 0.04

    def reset(self, rng):
        return initial_state(jnp.zeros(()), jnp.zeros(1))

    def step(self, state, action):
        count = state.pipeline_state + 1
        lost = jnp.where(count > 4, jnp.nan * action[0], 0.0)
        return state.replace(pipeline_state=count, obs=count[None] + lost, reward=count, done=(count == 9).astype(float))

    def draw(self, state, action):
        sign = 0 if action is None else 128 + int(np.sign(action[0]))
        return np.full((6, 8, 3), [10 * int(state.pipeline_state), sign, 0], np.uint8)


def counting(length=20, repeat=1, env=None):
    return envs.repeat(envs.make_task("counting", env or Counting(), length), repeat)


def colors(film):
    return [tuple(picture[0, 0, :2]) for picture in film.pictures]


def test_an_episode_is_drawn_from_its_start_to_its_end():
    """Step i has the reward i, and the episode terminates at 9, or is cut before."""
    for length, steps in ((20, 9), (3, 3)):
        film = video.film_compiled(acting(lambda state, observation: -jnp.ones(1)), counting(length), (), clock_at(0))
        # An observation that is not finite ends the film, not the episode: NaN times the action after step 4.
        shown = min(steps, 4)
        assert colors(film) == [(0, 0), *((10 * i, 127) for i in range(1, shown + 1))]
        np.testing.assert_array_equal(film.durations, [40] * (shown + 1))
        assert film.total == steps * (steps + 1) / 2 and film.seconds == pytest.approx(0.04 * steps)


def test_repeated_actions_are_one_step_of_a_film():
    film = video.film_compiled(acting(lambda state, observation: jnp.ones(1)), counting(9, 2), (), clock_at(0))
    assert colors(film) == [(0, 0), (20, 129), (40, 129)]
    np.testing.assert_array_equal(film.durations, [80] * 3)
    assert film.total == 45 and film.seconds == pytest.approx(5 * 0.08)


def test_a_first_state_that_is_not_finite_is_told():
    class Lost(Counting):
        def reset(self, rng):
            return initial_state(jnp.zeros(()), jnp.full(1, jnp.nan))

    with pytest.raises(NoPicture, match="no picture of counting: the first state of the episode is not finite"):
        video.film_compiled(acting(lambda state, observation: jnp.ones(1)), counting(env=Lost()), (), clock_at(0))


class Outside(gymnasium.Env):
    """As `Counting`, on the host; it terminates at 9."""

    observation_space = action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,))
    metadata: ClassVar = {"render_fps": 25}
    closed: ClassVar = []

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        self.count, self.seed = 0, seed
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.count += 1
        return np.zeros(1, np.float32), float(self.count), self.count == 9, False, {}

    def render(self):
        return np.full((6, 8, 3), [10 * self.count, self.seed % 250, 0], np.uint8)

    def close(self):
        self.closed.append(self.render_mode)


still = acting(lambda state, observation: jnp.zeros(1))


def outside(make_env=Outside, length=20, repeat=1):
    return envs.repeat(envs.from_gymnasium(make_env, "outside", length), repeat)


@pytest.mark.parametrize(("length", "repeat", "steps"), [(20, 1, range(10)), (3, 1, range(4)), (20, 2, (0, 2, 4, 6, 8, 9))])
def test_an_environment_on_the_host_is_filmed_by_its_own_pictures(length, repeat, steps):
    Outside.closed.clear()
    film = video.film_on_host(still, outside(length=length, repeat=repeat), jnp.zeros(1), clock_at(0))
    seed = int(hosted.host_seed(evaluation.keys_of(0)[0])) % 250
    assert colors(film) == [(10 * i, seed) for i in steps]
    np.testing.assert_array_equal(film.durations, [40 * repeat] * len(steps))
    assert film.total == sum(range(1, steps[-1] + 1))
    assert Outside.closed == [None, "rgb_array"], "the one that was asked for its spaces, and the one that was filmed"


def test_long_episodes_on_the_host_are_cut_and_thinned_as_others(monkeypatch):
    monkeypatch.setattr(video, "MOST_FRAMES", 3)
    monkeypatch.setitem(Outside.metadata, "render_fps", 50)
    film = video.film_on_host(still, outside(), jnp.zeros(1), clock_at(0))
    assert [color[0] for color in colors(film)] == [0, 20, 40] and film.seconds == pytest.approx(9 / 50)


def test_an_action_that_is_not_finite_ends_the_film_on_the_host():
    lost = acting(lambda state, observation: jnp.full(1, jnp.nan))
    film = video.film_on_host(lost, outside(), jnp.zeros(1), clock_at(0))
    assert len(film.pictures) == 1 and np.isnan(film.total)


class Broken(Outside):
    def render(self):
        raise gymnasium.error.DependencyNotInstalled("pygame is not installed")


class Silent(Outside):
    def render(self):
        return None


WITHOUT_PICTURES = {
    "no mode": (lambda: Outside(None), "its environment does not render; give from_gymnasium a function"),
    "ignored mode": (lambda render_mode=None: Outside(None), "its environment does not take on the render_mode"),
    "no dependency": (Broken, "no picture of outside: pygame is not installed"),
    "no array": (Silent, "render of its environment must return uint8"),
    "no such argument": (lambda **more: Outside(**({"other": 1} if more else {})), "no picture of outside: .*other"),
}


@pytest.mark.parametrize(("make_env", "told"), WITHOUT_PICTURES.values(), ids=WITHOUT_PICTURES)
def test_why_there_are_no_pictures_of_an_environment_on_the_host(make_env, told):
    with pytest.raises(NoPicture, match=told):
        video.film_on_host(still, outside(make_env), jnp.zeros(1), clock_at(0))


def test_an_environment_that_does_not_render_is_not_made_once_more():
    made = []

    def make_env():
        made.append(Outside())
        return made[-1]

    with pytest.raises(NoPicture, match="its environment does not render"):
        video.film_on_host(still, outside(make_env), jnp.zeros(1), clock_at(0))
    assert len(made) == 1, "the one that was asked for its spaces"


def test_the_command_draws_an_analytic_task(tmp_path, capsys):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(envs.TASKS, "swing", lambda: envs.make_task("swing", Pendulum(), 15))
        folder = begun("swing", tmp_path / "run")
        code, lines, err = call(capsys, folder, "--video")
    assert (code, err) == (0, "")
    (line,) = (line for line in lines if line.startswith("video "))
    assert line.startswith(f"video    {folder / 'video.gif'}: all 0.8 s of the first episode of seed 3, return -")
    frames, durations = read((folder / "video.gif").read_bytes())
    # A start and 15 steps of 0.05 s.
    assert frames.shape == (16, 360, 360, 3) and durations == [50] * 16
    assert all((a != b).any() for a, b in zip(frames[1:], frames[:-1], strict=True))


def test_a_result_in_memory_is_filmed_as_its_run(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(envs.TASKS, "counting", counting)
        folder = begun("counting", tmp_path / "run")
        program, states, *_ = runner.trained(folder)
        result = Result([], states, None, program.task, program.config, None, 0, {})
        told = [video.film(what, tmp_path / f"{name}.gif") for what, name in ((folder, "a"), (result, "b"))]
    # The task of a result need not be registered, and repeats its actions already.
    told.append(video.film(result, tmp_path / "c.gif"))
    assert told[0] == told[1] == told[2] and "of the first episode of seed 3, return 45.00" in told[0]
    assert (tmp_path / "a.gif").read_bytes() == (tmp_path / "b.gif").read_bytes() == (tmp_path / "c.gif").read_bytes()
    config = dataclasses.replace(program.config, action_repeat=2)
    twice = result._replace(task=programs.checked_task(counting(4), 2), config=config)
    assert "return 10.00" in video.film(twice, tmp_path / "d.gif")
    assert len(read((tmp_path / "d.gif").read_bytes())[0]) == 3


def test_what_cannot_be_drawn_is_told_after_the_returns(tmp_path, capsys):
    class Bare(Counting):
        draw = None

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(envs.TASKS, "counting", lambda: counting(env=Bare()))
        code, lines, err = call(capsys, begun("counting", tmp_path / "run"), "--video", "--json")
    assert code == 1 and any(line.startswith("mean ") for line in lines) and "per_seed" in json.loads(lines[-1])
    assert err == (
        "jaxmbrl: no picture of counting: its environment has neither a method draw(state, action) nor a MuJoCo model\n"
    )
    assert not list((tmp_path / "run").glob("*.gif"))


@pytest.mark.promises
@pytest.mark.usefixtures("renderer")
def test_a_film_in_gymnasium_is_of_gymnasiums_episode(tmp_path):
    task = envs.make("InvertedPendulum-v5")._replace(episode_length=6)
    algorithm, states = acting(lambda state, observation: state * jnp.ones(1)), jnp.asarray([0.05])
    film = video.film_on_host(algorithm, task, states, clock_at(0))
    stage = evaluation.stage(algorithm, task, 1)
    evaluator = hosted.Evaluator(algorithm, task, stage, evaluation.keys_of, 1, lambda name, function, *of: function)
    assert film.total == float(evaluator(clock_at(0), states)[0, 0])
    evaluator.close()
    assert [picture.shape for picture in film.pictures] == [(240, 320, 3)] * 7
    assert (film.pictures[0] != film.pictures[-1]).any()


@pytest.mark.slow
@pytest.mark.usefixtures("renderer")
def test_a_robots_episode_cut_short():
    task = envs.make("InvertedPendulum-v5")._replace(episode_length=12)
    found = video.record(to_the_right, task, jnp.asarray(0.2))
    assert found.total == float(evaluation.evaluate(to_the_right, task, jnp.full(1, 0.2), 1)[0, 0])
    drawn = video.drawing(task)
    chosen, durations = video.frames(found.finite, drawn.dt)
    with drawn.drawer(video.WIDTH, video.HEIGHT) as drawer:
        pictures = [drawer.frame(found.shown[i]) for i in chosen]
    frames, _ = read(video.gif(pictures, durations.tolist()))
    assert frames.shape == (len(found.shown), 240, 320, 3) and len(frames) > 4
    assert all((a != b).any() for a, b in zip(frames[1:], frames[:-1], strict=True))


@pytest.mark.promises
@pytest.mark.usefixtures("renderer")
def test_gymnasiums_robots_are_rendered_as_ours():
    task = envs.make("gymnasium/InvertedPendulum-v5")._replace(episode_length=4)
    film = video.film_on_host(still, task, jnp.zeros(1), clock_at(0))
    assert [picture.shape for picture in film.pictures] == [(240, 320, 3)] * 5 and film.seconds == pytest.approx(0.16)
