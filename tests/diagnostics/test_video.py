"""Videos: the episode is the one that is evaluated; frames are as many, as large and as fast as they should be."""

import io
import json

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
from jaxmbrl.training import evaluation, programs, runner
from jaxmbrl.training.console import Progress
from jaxmbrl.training.run_folder import RunFolder
from jaxmbrl.training.session import Session


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
    assert found.total == pytest.approx(float(found.positions[1:].sum()), rel=1e-5)


def test_a_recording_ends_with_the_episode():
    long, short = (video.record(to_the_right, slider(length), jnp.asarray(1.0)) for length in (50, 3))
    moved = long.positions[:, 0]
    np.testing.assert_allclose(np.diff(moved), 0.5, rtol=1e-5)
    assert moved[-2] <= 2 < moved[-1] and -1 <= moved[0] <= 1
    np.testing.assert_array_equal(short.positions, long.positions[:4])


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
    found = video.frames(np.zeros((length, 2)), dt)
    np.testing.assert_array_equal(found[0], chosen)
    np.testing.assert_array_equal(found[1], durations)
    assert len(chosen) <= 300


def test_frames_end_before_what_is_not_finite():
    positions = np.zeros((9, 2))
    positions[6, 1] = np.nan
    np.testing.assert_array_equal(video.frames(positions, 0.04)[0], np.arange(6))


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
        f"video    {run / 'video.gif'}: all {0.05 * (len(episode.positions) - 1):.1f} s of the first episode of seed 3, "
        f"return {episode.total:.2f}"
    )
    assert "per_seed" in json.loads(lines[-1])
    returns = runner.evaluate(run, 2).returns
    assert episode.total == pytest.approx(float(returns[0, 0]), rel=1e-5)
    frames, durations = read((run / "video.gif").read_bytes())
    assert frames.shape == (len(episode.positions), 240, 320, 3) and durations == [50] * len(frames)
    posts = [centre(frame, 1)[0] for frame in frames]
    # The camera follows the box, so the post goes the other way.
    assert len(frames) > 5 and np.corrcoef(posts, episode.positions[:, 0])[0, 1] < -0.99
    # Again, to the same file and to another one.
    assert call(capsys, run, "--video")[0] == 0
    code, lines, _ = call(capsys, run, "--video", run / "film")
    assert code == 0 and f"video    {run / 'film.gif'}: " in "\n".join(lines)
    assert (run / "film.gif").read_bytes() == (run / "video.gif").read_bytes()
    code, _, err = call(capsys, run, "--video", run / "film.gif")
    assert code == 2 and "film.gif exists; choose another file" in err


def _parts(run):
    program, state, _ = runner.trained(run)
    return program.algorithm, program.task, jax.tree.map(lambda leaf: leaf[0], state.algorithm)


def test_without_a_renderer_the_returns_are_told_all_the_same(run, capsys, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    code, lines, err = call(capsys, run, "--video", run / "none.gif")
    assert code == 0 and any(line.startswith("mean ") for line in lines)
    assert err.count("\n") == 1 and err.startswith("jaxmbrl: no picture: MUJOCO_GL=nonsense does not work on this machine")
    assert not (run / "none.gif").exists()


def test_a_task_without_a_model_is_not_drawn(tmp_path, capsys):
    code, lines, err = call(capsys, begun("pendulum", tmp_path / "run"), "--video")
    assert code == 0 and any(line.startswith("mean ") for line in lines)
    assert err == "jaxmbrl: no picture of pendulum: it has no MuJoCo model\n"
    assert not list((tmp_path / "run").glob("*.gif"))


@pytest.mark.slow
@pytest.mark.usefixtures("renderer")
def test_a_robots_episode_cut_short():
    task = envs.make("InvertedPendulum-v5")._replace(episode_length=12)
    found = video.record(to_the_right, task, jnp.asarray(0.2))
    assert found.total == float(evaluation.evaluate(to_the_right, task, jnp.full(1, 0.2), 1)[0, 0])
    scene = video.rendering.scene(task)
    chosen, durations = video.frames(found.positions, scene.dt)
    with video.rendering.Drawer(scene.model, video.WIDTH, video.HEIGHT) as drawer:
        pictures = [drawer.frame(found.positions[i]) for i in chosen]
    frames, _ = read(video.gif(pictures, durations.tolist()))
    assert frames.shape == (len(found.positions), 240, 320, 3) and len(frames) > 4
    assert all((a != b).any() for a, b in zip(frames[1:], frames[:-1], strict=True))
