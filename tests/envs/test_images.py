"""Tasks observed as images: pictures against areas and a rasteriser in float64, and the plain task's steps."""

import functools
import importlib
import math
import sys
from importlib import resources
from typing import ClassVar

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl import envs
from jaxmbrl.core.config import UserError
from jaxmbrl.core.spaces import Box
from jaxmbrl.envs.base import initial_state, number_of_actions, vector_sizes, vectors_and_actions
from jaxmbrl.envs.drawing.canvas import BACKGROUND, BODY, FORCE, GOAL, INK, ROD
from jaxmbrl.envs.drawing.scene import Dots, Ground, Rods, Scene, Tiles, disc, path, render, rod
from jaxmbrl.envs.mujoco.scenes import Camera, model_scene, oblique
from jaxmbrl.rollout import open_loop, rollout

KEY = jax.random.key(5)
SAMPLES = 16
"""Points of a pixel along each axis, of the rasteriser below."""


def sampled(shapes, width, size, centre=(0.0, 0.0), background=BACKGROUND):
    """The picture of `shapes`, each (function of x and y -> inside, colour), as the mean colour of SAMPLES x SAMPLES points
    of each pixel, in float64: [size, size, 3]."""
    at = (np.arange(size * SAMPLES) + 0.5) / SAMPLES * width / size - width / 2
    x, y = np.meshgrid(centre[0] + at, centre[1] - at)
    image = np.full((*x.shape, 3), background, float)
    for inside, color in shapes:
        image[inside(x, y)] = color
    return image.reshape(size, SAMPLES, size, SAMPLES, 3).mean(axis=(1, 3))


def bar(start, end, radius):
    """Inside of a bar: within `radius` of one of 2,000 points of the segment, or for a disc of its centre."""
    (ax, ay), (bx, by) = start, end
    length = math.hypot(bx - ax, by - ay)

    def inside(x, y):
        if length == 0:
            return (x - ax) ** 2 + (y - ay) ** 2 <= radius**2
        along = ((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / length
        aside = np.abs((x - ax) * (by - ay) - (y - ay) * (bx - ax)) / length
        ends = np.minimum((x - ax) ** 2 + (y - ay) ** 2, (x - bx) ** 2 + (y - by) ** 2) <= radius**2
        return ((along >= 0) & (along <= length) & (aside <= radius)) | ends

    return inside


def assert_close(image, expected):
    """To within a tenth of the range of colours at a pixel of an edge, and to half a level in the mean."""
    assert image.dtype == np.uint8
    difference = np.abs(np.asarray(image, float) - expected)
    assert difference.max() < 0.1 * 255 and difference.mean() < 0.5, (difference.max(), difference.mean())


@functools.cache
def covered():
    """Sum over pixels of the coverage by a bar, in pixels, of a picture of 32 x 32 with a width of 32."""

    def area(start, end, width):
        scene = Scene((rod(start, end, width, (0, 0, 0)),), 32.0, background=(200, 200, 200))
        return jnp.sum(1 - render(scene, 32).astype(float) / 200, axis=(0, 1))[0]

    return jax.jit(jax.vmap(area))


def test_areas_of_discs_and_bars_are_those_of_geometry():
    """Radius 5 at any place: pi r^2 + 2 r L. The integral of the coverage over a round end is larger by pi / 12 pixels."""
    random = np.random.default_rng(0)
    start = random.uniform(-8, 8, (32, 2)).astype(np.float32)
    ends = np.where(np.arange(32)[:, None] < 16, start, random.uniform(-8, 8, (32, 2))).astype(np.float32)
    length = np.linalg.norm(ends - start, axis=1)
    expected = math.pi * 25 + 10 * length + math.pi / 12
    np.testing.assert_allclose(covered()(start, ends, np.full(32, 10.0, np.float32)), expected, rtol=4e-3)
    assert (length[:16] == 0).all() and (length[16:] > 0.5).all()


def test_a_straight_edge_covers_the_exact_share_of_a_pixel():
    """A bar from -2.75 to 0.25 in y, between pixel rows at -3, -2, ..., 1; a grid; and a ground up to 0.25."""
    grey = (100, 100, 100)
    bar_across = Scene((rod((-99.0, -1.25), (99.0, -1.25), 3.0, (0, 0, 0)),), 8.0, background=grey)
    # Pixels with sides of 1 from x = -1.75 and y = 3: the grid covers a quarter of the second column.
    tiles = Scene((Tiles(np.full((2, 2, 3), 20)),), 4.0, centre=(0.25, 1.0), background=grey)
    ground = Scene((Ground(lambda x: 0.0 * x + 0.25, (0, 0, 0)),), 4.0, background=grey)
    images = jax.jit(lambda: (render(bar_across, 8), render(tiles, 4), render(ground, 4)))()
    assert images[0][:, 3, 0].tolist() == [100, 100, 100, 75, 0, 0, 25, 100]
    assert images[1][..., 0].tolist() == [[100] * 4, [100, 80, 20, 40], [100, 80, 20, 40], [100] * 4]
    assert images[2][:, 0, 0].tolist() == [100, 75, 0, 0]


@functools.cache
def drawn(name, size=48, grey=False):
    task = envs.pixels(name, size, grey)
    return jax.jit(lambda coordinates: render(task.env.env.scene(task.env.env.state_at(coordinates)), size, grey))


@pytest.mark.parametrize("angle", [0.0, 0.4, 2.5, -1.7])
def test_the_pendulum_is_that_of_a_rasteriser(angle):
    image = drawn("pendulum")(jnp.array([angle, 3.0]))
    tip = (-math.sin(angle), math.cos(angle))
    shapes = [(bar((0, 0), tip, 0.1), BODY), (bar((0, 0), (0, 0), 0.07), INK)]
    assert_close(image, sampled(shapes, 2.4, 48))
    # The mirrored pendulum is the mirrored picture, exactly; the speed is not seen.
    np.testing.assert_array_equal(drawn("pendulum")(jnp.array([-angle, -3.0])), image[:, ::-1])
    grey = drawn("pendulum", 48, True)(jnp.array([angle, 0.0]))
    luminance = np.asarray(image, float) @ [0.299, 0.587, 0.114]
    assert grey.shape == (48, 48, 1) and np.abs(np.asarray(grey, float)[..., 0] - luminance).max() <= 1.0


def test_arm_and_cart_are_those_of_a_rasteriser():
    shoulder, elbow, target = 0.7, -1.9, (-0.4, 0.5)
    image = drawn("reacher-2d", 64)(jnp.array([shoulder, elbow, 0.0, 0.0, *target]))
    joint = (0.5 * math.cos(shoulder), 0.5 * math.sin(shoulder))
    tip = (joint[0] + 0.5 * math.cos(shoulder + elbow), joint[1] + 0.5 * math.sin(shoulder + elbow))
    arm = [(bar((0, 0), joint, 0.06), BODY), (bar(joint, tip, 0.05), ROD), (bar(tip, tip, 0.03), INK)]
    assert_close(image, sampled([(bar(target, target, 0.08), GOAL), *arm], 2.2, 64))
    # The cart is in the middle of a track of 4.8 m, and its pole of 1 m leans by 0.2 to the right, or to the left.
    right, left = (drawn("CartPole-v1", 64)(jnp.array([side * 0.5, 0.0, side * 0.2, 0.0])) for side in (1, -1))
    np.testing.assert_array_equal(right, left[:, ::-1])
    foot, top = (0.5, 0.0), (0.5 + math.sin(0.2), math.cos(0.2))
    shapes = [(bar((end, -0.4), (end, 0.3), 0.05), GOAL) for end in (-2.4, 2.4)]
    shapes += [(bar((-99, -0.18), (99, -0.18), 0.03), (176, 180, 188)), (bar((0.32, 0), (0.68, 0), 0.12), BODY)]
    assert_close(right, sampled([*shapes, (bar(foot, top, 0.075), ROD)], 5.2, 64, (0.0, 0.4)))


def test_dots_are_discs_at_all_multiples_of_the_steps():
    row, grid = ((0.5, 0.0),), ((1.0, 0.2), (-0.3, 0.9))
    scenes = [Scene((Dots((0.1, -0.2), steps, 0.15, INK),), 4.0, (7.3, 0.5)) for steps in (row, grid)]
    images = jax.jit(lambda: [render(scene, 48) for scene in scenes])()
    for image, steps in zip(images, (row, grid), strict=True):
        first, second = np.array(steps[0]), np.array(steps[1] if len(steps) > 1 else (0.0, 0.0))
        at = [(0.1, -0.2) + i * first + j * second for i in range(-5, 25) for j in range(-9, 10 * len(steps) - 10)]
        near = [bar(point, point, 0.15) for point in at if np.abs(point - (7.3, 0.5)).max() < 2.2]
        assert_close(image, sampled([(inside, INK) for inside in near], 4.0, 48, (7.3, 0.5)))


def test_mazes_show_the_walls_and_the_agent():
    """The blocking maze from its file of cells, before and after its walls change."""
    task = envs.make("blocking-maze")
    draw = jax.jit(lambda cell, elapsed: render(task.env.scene(task.env.state_at(cell, elapsed)), 45))
    for elapsed, row in ((0, "########."), (1000, ".########")):
        cells = ["........G", *["........."] * 2, row, *["........."] * 2]
        colors = {".": BACKGROUND, "#": INK, "G": (150, 200, 165)}

        def inside(kind, cells=cells):
            grid = np.array([list(line) for line in cells]) == kind
            return lambda x, y: (y < 6) & (y > 0) & grid[np.clip((6 - y).astype(int), 0, 5), x.astype(int)]

        shapes = [(inside(kind), color) for kind, color in colors.items()]
        expected = sampled([*shapes, (bar((3.5, 0.5), (3.5, 0.5), 0.36), BODY)], 9.0, 45, (4.5, 3.0), INK)
        assert_close(draw(5 * 9 + 3, elapsed), expected)


def test_the_same_under_jit_vmap_and_without():
    """Of 64 states of two tasks, with discs, bars, tiles and a ground, and one shape of several points."""
    states = jax.random.uniform(KEY, (64, 3), minval=-1.0)

    def image(state):
        x, y, z = state
        line = path(((x, y), (y, z), (0.0, x)), 0.1, BODY)
        shapes = (Tiles(jnp.full((2, 1, 3), 60.0)), Ground(lambda at: x * at, GOAL), line, disc((z, x), 0.3, FORCE))
        return render(Scene(shapes, 3.0, (y, 0.0)), 24)

    together = np.asarray(jax.jit(jax.vmap(image))(states))
    alone = np.stack([jax.jit(image)(state) for state in states[:8]])
    np.testing.assert_array_equal(together[:8], alone)
    np.testing.assert_array_equal(image(states[0]), alone[0])
    assert together.dtype == np.uint8 and together.min() < 90 and together.max() == 250
    # A motion of a tenth of a pixel is seen.
    assert (np.asarray(jax.jit(image)(states[0] + jnp.array([0, 0, 0.0125]))) != alone[0]).any()


ANALYTIC = [name for name in envs.names() if not name.startswith(("pets/", "bsuite/DeepSea/")) and "-v5" not in name]


@pytest.mark.parametrize("name", ANALYTIC)
def test_every_analytic_task_can_be_drawn(name):
    task = envs.pixels(name)
    assert (task.name, task.observation) == (f"pixels/{name}", Box((64, 64, 3), 0, 255, "uint8"))
    assert task.reward is None and task.terminated is None and task.features is None
    image = jax.eval_shape(lambda key: task.world.observe(task.world.reset(key)), KEY)
    assert image.shape == (64, 64, 3) and image.dtype == np.uint8


def test_steps_are_those_of_the_plain_task():
    """Rewards, ends and carries, bit for bit, also with repeated actions and a stack."""
    plain = envs.repeat(envs.make("CartPole-v1"), 2)
    task, stack = envs.pixels(plain, 16), envs.stacked(envs.pixels(plain, 16), 2)
    actions = jnp.ones(12, jnp.int32)

    @jax.jit
    def play():
        return [rollout(t.world, open_loop(actions), (t.world.reset(KEY), 0), KEY, 12) for t in (plain, task, stack)]

    (end, rows), (drawn_end, images), (_, stacked_images) = jax.device_get(play())
    jax.tree.map(np.testing.assert_array_equal, drawn_end[0].carry, end[0])
    for found in (images, stacked_images):
        for name in ("action", "reward", "terminated", "truncated"):
            np.testing.assert_array_equal(getattr(found, name), getattr(rows, name))
    assert rows.terminated.any()
    np.testing.assert_array_equal(images.observation[1:], images.next_observation[:-1])
    np.testing.assert_array_equal(stacked_images.next_observation[1:, ..., :3], images.next_observation[:-1])
    np.testing.assert_array_equal(stacked_images.next_observation[..., 3:], images.next_observation)
    assert (images.observation[0] != images.observation[5]).any()
    # The environment in the Brax interface, and an origin of the world, which is its state.
    state = task.env.reset(KEY)
    after = task.env.step(state, actions[0])
    assert after.obs.shape == (16, 16, 3) and float(after.reward) == 2.0
    np.testing.assert_array_equal(task.world.observe(task.world.start(after, KEY)), after.obs)


def test_the_checker_passes_an_image_task():
    envs.check(envs.pixels("double-integrator", 8))


def test_names():
    for name, shape in (
        ("pixels/pendulum", (64, 64, 3)),
        ("pixels/32/pendulum", (32, 32, 3)),
        ("pixels/grey/pendulum", (64, 64, 1)),
        ("pixels/32,grey/pendulum", (32, 32, 1)),
        ("stacked/3/pixels/16/bsuite/DeepSea/5", (16, 16, 9)),
    ):
        task = envs.make(name)
        assert (task.name, task.observation.shape) == (name, shape)
    for name, message in (
        (
            "pixels/32",
            "is named pixels/TASK, pixels/32/TASK, pixels/grey/TASK, pixels/32,grey/TASK or pixels/rendered/TASK, got",
        ),
        ("pixels/4/pendulum", "size must be a whole number of pixels from 8 to 512, got 4"),
        ("pixels/pendulm", "unknown task 'pendulm'; did you mean 'pendulum'?"),
        ("pixels/stacked/3/pendulum", "pixels needs a task with its own observation, and that of 'stacked/3/pendulum'"),
        ("pixels/masked/pendulum", "draw first, as in stacked/3/pixels/pendulum"),
    ):
        with pytest.raises(UserError) as refused:
            envs.make(name)
        assert message in str(refused.value) and "\n" not in str(refused.value)


def test_an_environment_without_a_scene_is_refused_by_name():
    class Plain:
        observation_size = action_size = 1

        def reset(self, rng):
            return initial_state(jnp.zeros(1), jnp.zeros(1))

        def step(self, state, action):
            return state

    with pytest.raises(
        UserError, match="task 'mine' cannot be observed as images, because its environment has no method sc"
    ):
        envs.pixels(envs.make_task("mine", Plain(), 10))


def test_a_mujoco_model_is_projected():
    """A camera that looks down by 90 degrees has x to the right and y up; nearer geoms come last and cover others."""
    for elevation, up in ((90.0, (0.0, 1.0, 0.0)), (0.0, (0.0, 0.0, 1.0))):
        seen = oblique(1.0, (0.0, 0.0, 0.0), 90.0, elevation)
        assert seen.right == pytest.approx((1.0, 0.0, 0.0), abs=1e-12) and seen.up == pytest.approx(up, abs=1e-12)

    class Model:
        """A sphere, a capsule along x, a cylinder and a plane."""

        geom_type = np.array([2, 3, 5, 0])
        geom_size = np.array([[0.2, 0, 0], [0.1, 0.5, 0], [0.1, 0.3, 0], [9, 9, 9]])
        geom_bodyid = np.array([0, 1, 2, 0])

    turned = np.array([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])
    turns = np.stack([np.eye(3), turned, turned, np.eye(3)])
    places = np.array([[5.0, 1.0, 0.3], [5.0, 0.0, 0.3], [4.5, 3.0, 0.0], [0, 0, 0]])
    camera = Camera(width=2.0, centre=(0.0, 0.0, 0.0), follows=(0,))

    @jax.jit
    def seen(places, turns):
        scene = model_scene(Model(), camera, jnp.array([5.0, 7.0]), places, turns)
        return scene.centre, [shape for shape in scene.shapes if isinstance(shape, Rods)][-3:], render(scene, 40)

    centre, (cylinder, sphere, capsule), image = jax.device_get(seen(places, turns))
    np.testing.assert_allclose(centre, [5.0, 0.0], atol=1e-6)
    np.testing.assert_allclose([*capsule.start, *capsule.end, capsule.radius], [4.5, 0.3, 5.5, 0.3, 0.1], atol=1e-6)
    np.testing.assert_allclose([*sphere.start, *sphere.end, sphere.radius], [5.0, 0.3, 5.0, 0.3, 0.2], atol=1e-6)
    np.testing.assert_allclose([*cylinder.start, *cylinder.end], [4.3, 0.0, 4.7, 0.0], atol=1e-6)
    assert image[13, 20].tolist() == list(ROD) and image[11, 20].tolist() == list(BODY)


@pytest.mark.parametrize(
    ("refuses", "name", "message"),
    [
        (vector_sizes, "pixels/pendulum", "x takes vectors, and the observations of task 'pixels/pendulum' are images"),
        (
            vectors_and_actions,
            "stacked/3/pixels/32,grey/CartPole-v1",
            "32, 3]: take the task 'CartPole-v1', or a method for",
        ),
        (number_of_actions, "pixels/16/bsuite/Catch", "take the task 'bsuite/Catch', or a method for images, such as sac"),
    ],
)
def test_methods_for_vectors_name_the_task_with_vectors(refuses, name, message):
    with pytest.raises(UserError) as refused:
        refuses(envs.make(name), "x")
    assert message in str(refused.value) and "\n" not in str(refused.value)
    assert number_of_actions(envs.make("pixels/CartPole-v1"), "dqn", images=True) == 2


class Gauge(gymnasium.Env):
    """A bar that grows by 10 pixels of 40 with each step, 40 x 80 pixels; an image of its own where asked for."""

    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, image=False, render_mode="rgb_array"):
        self.render_mode, self.image, self.count = render_mode, image, 0
        self.action_space = gymnasium.spaces.Discrete(2)
        shape = {"low": 0, "high": 255, "shape": (40, 80, 3), "dtype": np.uint8}
        self.observation_space = gymnasium.spaces.Box(**shape) if image else gymnasium.spaces.Box(-1, 1, (1,))

    def render(self):
        picture = np.zeros((40, 80, 3), np.uint8)
        picture[:, : 10 * self.count] = (200, 100, 50)
        return picture

    def seen(self):
        return self.render() if self.image else np.zeros(1, np.float32)

    def reset(self, *, seed=None, options=None):
        self.count = 0
        return self.seen(), {}

    def step(self, action):
        self.count += 1
        return self.seen(), 1.0, self.count == 3, False, {}


@pytest.mark.parametrize("image", [False, True], ids=["rendered", "observed"])
def test_host_pictures_are_reduced_by_area(image):
    """Pixels of 5 x 10: the bar covers one column of eight after each step."""
    plain = envs.from_gymnasium(lambda render_mode=None: Gauge(image), "gauge", 5)
    for grey, color in ((False, [200, 100, 50]), (True, [124])):
        task = envs.pixels(plain, 8, grey)
        assert task.name == f"pixels/{'8,grey' if grey else '8'}/gauge" and task.observation.shape == (8, 8, len(color))
        assert task.reward is None
        host = task.host()
        assert not host.reset(0).any()
        for step in (1, 2, 3):
            result = host.step(np.array(1, np.int32))
            expected = np.where(np.arange(8)[:, None] < step, color, 0)
            np.testing.assert_array_equal(result.observation, np.broadcast_to(expected, (8, 8, len(color))))
            assert result.observation.dtype == np.uint8 and result.terminated == (step == 3)
        host.close()
    stack = envs.stacked(envs.repeat(envs.pixels(plain, 8), 2), 2).host()
    assert stack.reset(0).shape == (8, 8, 6)
    assert stack.step(np.array(0, np.int32)).observation[0, :, 3].tolist() == [200, 200, *[0] * 6]
    stack.close()


def test_a_host_without_pictures_and_missing_packages_are_named(monkeypatch):
    env = Gauge()
    env.render_mode = None
    with pytest.raises(UserError, match=r"make no pictures: give envs\.from_gymnasium a function"):
        envs.pixels(envs.from_gymnasium(lambda: env, "gauge", 5))
    monkeypatch.setitem(sys.modules, "Box2D", None)
    with pytest.raises(UserError, match="Gymnasium cannot make 'CarRacing-v3': Box2D is not installed") as refused:
        envs.make("gymnasium/CarRacing-v3")
    assert "\n" not in str(refused.value)


@pytest.mark.filterwarnings("ignore:compiler attribute 'settotalmass' is deprecated")
@pytest.mark.parametrize(
    ("domain", "name"),
    [
        ("ball_in_cup", "BallInCup"),
        ("cheetah", "Cheetah"),
        ("finger", "Finger"),
        ("hopper", "Hopper"),
        ("humanoid", "Humanoid"),
        ("walker", "Walker"),
    ],
)
def test_cameras_of_dm_control_follow_the_root(domain, name):
    """A position that moves the picture is one that moves the root along that axis: walker's height is before its x."""
    import mujoco

    env = getattr(importlib.import_module(f"jaxmbrl.envs.mujoco.dmc_{domain}"), name)
    folder = resources.files("jaxmbrl.envs") / "assets"
    included = {f"./{file}": (folder / "dmc" / file).read_bytes() for file in env.included}
    model = mujoco.MjSpec.from_string((folder / env.xml).read_text(), include=included).compile()
    runs = domain in ("cheetah", "hopper", "humanoid", "walker")
    assert len(env.camera.follows) == (2 if domain == "humanoid" else int(runs))
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    before = data.geom_xpos[1:].copy()
    for axis, position in enumerate(env.camera.follows):
        data.qpos[:] = model.qpos0
        data.qpos[position] += 2.0
        mujoco.mj_kinematics(model, data)
        np.testing.assert_allclose(data.geom_xpos[1:] - before, np.tile(2.0 * np.eye(3)[axis], (len(before), 1)), atol=1e-9)
