"""Pictures: what can be drawn, through which camera, by which renderer, and what is said where none works."""

import time

import gymnasium
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from slider import Slider, centre, slider

from jaxmbrl import envs
from jaxmbrl.diagnostics import doctor
from jaxmbrl.envs.base import initial_state
from jaxmbrl.envs.drawing import NoPicture, drawing, rendering
from jaxmbrl.envs.drawing.rendering import ModelDrawer
from jaxmbrl.envs.drawing.rendering_process import camera


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
