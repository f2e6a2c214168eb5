"""Pictures: what can be drawn, through which camera, by which renderer, and what is said where none works."""

import subprocess
import sys
import time

import gymnasium
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from slider import Slider, centre, slider

from jaxmbrl import envs
from jaxmbrl.core.config import UserError
from jaxmbrl.diagnostics import doctor
from jaxmbrl.envs.base import initial_state
from jaxmbrl.envs.drawing import NoPicture, drawing, rendering
from jaxmbrl.envs.drawing.rendering import ModelDrawer, positions
from jaxmbrl.envs.drawing.rendering_process import camera
from jaxmbrl.rollout import open_loop, rollout


@pytest.fixture(scope="module")
def working():
    """The renderer that works here."""
    found = doctor.rendering()
    if found.state != "ok":
        pytest.skip(found.message)
    return found.message.split()[-1]


def model(body, more=""):
    return mujoco.MjModel.from_xml_string(f"<mujoco><worldbody>{body}{more}</worldbody></mujoco>")


BOX = "<geom type='box' size='.1 .1 .1'/>"


def test_the_first_camera_that_follows_is_looked_through():
    cameras = "<camera mode='fixed'/><camera mode='trackcom'/><camera mode='track'/>"
    found = camera(mujoco, model(f"<body>{cameras}<freejoint/>{BOX}</body>"))
    assert (found.type, found.fixedcamid) == (mujoco.mjtCamera.mjCAMERA_FIXED, 1)


@pytest.mark.parametrize("joint", ["<freejoint/>", "<joint type='slide'/>"])
def test_what_slides_or_floats_in_the_world_is_followed(joint):
    made = model(f"<body>{BOX}</body><body>{joint}{BOX}</body>")
    found = camera(mujoco, made)
    assert (found.type, found.trackbodyid) == (mujoco.mjtCamera.mjCAMERA_TRACKING, 2)
    assert found.azimuth == 90 and found.distance == pytest.approx(1.5 * made.stat.extent)


@pytest.mark.parametrize(
    "body",
    [
        f"<body><joint/>{BOX}<body><joint type='slide'/>{BOX}</body></body>",
        f"<body>{BOX}<body><joint type='slide'/>{BOX}</body></body>",
        BOX,
    ],
    ids=["a hinge first", "inside another body", "nothing moves"],
)
def test_else_the_whole_is_looked_at(body):
    made = model(body)
    found = camera(mujoco, made)
    assert found.type == mujoco.mjtCamera.mjCAMERA_FREE
    np.testing.assert_allclose(found.lookat, made.stat.center)


def test_a_picture_shows_the_positions(working):
    """The camera follows the box, so the box stays and the post moves."""
    with ModelDrawer(Slider().mj_model, 160, 120) as drawer:
        seen = {x: drawer.frame(np.array([x])) for x in (-0.5, 0.0, 0.5)}
    for picture in seen.values():
        assert picture.shape == (120, 160, 3) and picture.dtype == np.uint8
        assert centre(picture, 0)[0] == pytest.approx(79.5, abs=2)
    posts = [centre(seen[x], 1)[0] for x in (-0.5, 0.0, 0.5)]
    # Mirror images of each other.
    assert posts[0] > posts[1] + 5 and posts[1] > posts[2] + 5
    assert posts[1] == pytest.approx(79.5, abs=2) and posts[0] + posts[2] == pytest.approx(159, abs=2)


def test_renderers_are_tried_in_turn(working, monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(rendering, "RENDERERS", ("nonsense", working))
    with ModelDrawer(Slider().mj_model, 64, 64) as drawer:
        assert drawer.frame(np.zeros(1)).any()


def test_without_a_renderer_it_is_said_what_to_do(monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(rendering, "RENDERERS", ("nonsense", "rubbish"))
    with pytest.raises(NoPicture, match="none of nonsense, rubbish works on this machine; install EGL or OSMesa"):
        ModelDrawer(Slider().mj_model, 64, 64)


def test_the_users_renderer_alone_is_tried(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    with pytest.raises(NoPicture, match="MUJOCO_GL=nonsense does not work"):
        ModelDrawer(Slider().mj_model, 64, 64)


@pytest.mark.parametrize("fault", ["import time; time.sleep(60)", "import os; os.abort()"])
def test_a_renderer_that_hangs_or_dies_is_given_up(fault, tmp_path, monkeypatch):
    (tmp_path / "draw.py").write_text(fault)
    monkeypatch.setattr(rendering.rendering_process, "__file__", str(tmp_path / "draw.py"))
    monkeypatch.setattr(rendering, "SECONDS", 0.2)
    monkeypatch.setenv("MUJOCO_GL", "any")
    started = time.monotonic()
    with pytest.raises(NoPicture, match="MUJOCO_GL=any does not work"):
        ModelDrawer(Slider().mj_model, 64, 64)
    assert time.monotonic() - started < 30


def test_a_closed_drawer_leaves_nothing_behind_and_says_so(working, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    drawer = ModelDrawer(Slider().mj_model, 64, 64)
    assert list(tmp_path.iterdir())
    drawer.close()
    drawer.close()
    assert not list(tmp_path.iterdir())
    with pytest.raises(NoPicture, match="closed"):
        drawer.frame(np.zeros(1))


def test_a_model_without_positions_is_not_drawn():
    class Mute(Slider):
        def reset(self, rng):
            return initial_state(rng, super().reset(rng).obs)

    with pytest.raises(NoPicture, match="no picture of mute: its states have no positions of the model"):
        drawing(envs.make_task("mute", Mute(), 5))


def test_the_robots_can_be_drawn():
    for name, dt in (("InvertedPendulum-v5", 0.04), ("Hopper-v5", 0.008), ("HalfCheetah-v5", 0.05)):
        assert drawing(envs.make(name)).dt == pytest.approx(dt)


def test_a_camera_of_the_model_is_chosen_by_its_index():
    cameras = "<camera mode='fixed'/><camera mode='trackcom'/><camera mode='fixed'/>"
    found = camera(mujoco, model(f"<body>{cameras}<freejoint/>{BOX}</body>"), 2)
    assert (found.type, found.fixedcamid) == (mujoco.mjtCamera.mjCAMERA_FIXED, 2)


REFERENCE = """
import sys
import numpy as np
from dm_control import suite

places = np.load(sys.argv[1])
seen = {}
for name in places.files:
    env = suite.load(*name.split("-"), task_kwargs={"random": 0})
    env.reset()
    with env.physics.reset_context():
        env.physics.data.qpos[:] = places[name]
    seen[name] = env.physics.render(32, 32, camera_id=0)
np.savez(sys.argv[2], **seen)
"""
"""Draws dm_control's tasks at positions, in a process of its own, in which no other renderer has been chosen."""


def test_tasks_of_dm_control_are_rendered_as_dm_control_renders_them(working, tmp_path, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", working)
    models = {
        n: envs.make(f"dmc/{n}").env.mj_model for n in ("walker-walk", "cheetah-run", "finger-spin", "ball_in_cup-catch")
    }
    rng = np.random.default_rng(0)
    places = {name: model.qpos0 + rng.uniform(-0.3, 0.3, model.nq) for name, model in models.items()}
    np.savez(tmp_path / "places.npz", **places)
    command = [sys.executable, "-c", REFERENCE, str(tmp_path / "places.npz"), str(tmp_path / "seen.npz")]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
    with np.load(tmp_path / "seen.npz") as expected:
        for name in models:
            with drawing(envs.make(f"dmc/{name}")).drawer(32, 32) as drawer:
                np.testing.assert_array_equal(drawer.frame(places[name]), expected[name], name)
            assert expected[name].std() > 5


class Counted(ModelDrawer):
    """Counts its frames. Without a renderer: a picture is the position."""

    frames = 0

    def __init__(self, model, width, height, camera=-1):
        self._shape = (height, width, 3)

    def frame(self, shown, action=None):
        Counted.frames += 1
        return np.full(self._shape, self.shade(shown[0]), np.uint8)

    @staticmethod
    def shade(position):
        return np.round(40 * position).astype(int) % 256

    def close(self):
        pass


def test_rendered_images_are_drawn_once_for_each_state(monkeypatch):
    """Of two environments of two seeds; rewards and carries are the plain task's."""
    monkeypatch.setattr(rendering, "ModelDrawer", Counted)
    monkeypatch.setattr(Counted, "frames", 0)
    plain = slider()
    task = envs.pixels(plain, 8, grey=True, rendered=True)
    assert task.name == "pixels/8,grey,rendered/slider" and task.observation.shape == (8, 8, 1)
    actions = jnp.linspace(0.1, 0.4, 4)[:, None]
    keys = jax.random.split(jax.random.key(0), (2, 2))

    def play(task):
        one = lambda key: rollout(task.world, open_loop(actions), (task.world.reset(key), 0), key, 4)  # noqa: E731
        return jax.device_get(jax.jit(jax.vmap(jax.vmap(one)))(keys))

    (_, rows), ((end, _), images) = play(plain), play(task)
    assert images.observation.shape == (2, 2, 4, 8, 8, 1) and images.observation.dtype == np.uint8
    np.testing.assert_array_equal(images.observation[:, :, 1:], images.next_observation[:, :, :-1])
    np.testing.assert_array_equal(images.reward, rows.reward)
    shown = Counted.shade(np.asarray(jax.vmap(jax.vmap(positions))(end)))
    np.testing.assert_array_equal(images.next_observation[:, :, -1, 0, 0], shown)
    assert Counted.frames == 2 * 2 * 5


def test_a_rendered_state_that_is_not_finite_is_black(monkeypatch):
    monkeypatch.setattr(rendering, "ModelDrawer", Counted)
    task = envs.pixels(slider(), 8, rendered=True)
    carry = jax.tree.map(lambda x: x * jnp.nan, task.world.reset(jax.random.key(0)))
    assert not np.asarray(task.world.observe(carry)).any()


def test_rendered_images_need_a_model_and_a_renderer(monkeypatch):
    with pytest.raises(UserError, match="task 'pendulum' cannot be rendered, because its environment has no MuJoCo model"):
        envs.make("pixels/rendered/pendulum")
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    with pytest.raises(NoPicture, match="MUJOCO_GL=nonsense does not work"):
        envs.pixels(slider(), rendered=True)


def test_rendered_images_show_the_model(working):
    """The post stands to the right of the box at the left end, and the drawer is closed with the task."""
    task = envs.pixels(slider(), 48, rendered=True)
    carry = task.world.reset(jax.random.key(0))
    with ModelDrawer(Slider().mj_model, 48, 48) as drawer:
        expected = drawer.frame(np.asarray(positions(carry)))
    np.testing.assert_array_equal(jax.jit(task.world.observe)(carry), expected)
    assert expected.std() > 5


@pytest.mark.promises
@pytest.mark.filterwarnings("error", "ignore:.*A Box observation space (minimum|maximum)")
def test_a_gymnasium_environment_draws_itself(working):
    env = envs.as_gymnasium(slider(), "rgb_array")
    assert env.metadata == {"render_modes": ["rgb_array"], "render_fps": 20}
    env.reset(seed=0)
    before = env.render()
    assert before.shape == (480, 480, 3)
    env.step([-1.0])
    # The box goes left, so the post goes right.
    assert centre(env.render(), 1)[0] > centre(before, 1)[0] + 20
    env.close()
    env.close()
    assert env.render().shape == (480, 480, 3), "drawn again after closing"
    env.close()
    gymnasium.register("jaxmbrl-test-drawn-v0", "jaxmbrl.envs:as_gymnasium", kwargs={"task": slider()})
    try:
        made = gymnasium.make("jaxmbrl-test-drawn-v0", render_mode="rgb_array").unwrapped
        check_env(made)
        made.close()
    finally:
        del gymnasium.registry["jaxmbrl-test-drawn-v0"]
