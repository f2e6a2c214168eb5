"""Drawings: shapes are where their coordinates say, every analytic task shows its state, and a user's own is checked."""

import math

import flax.struct
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from slider import Slider

from jaxmbrl import envs
from jaxmbrl.core.config import UserError
from jaxmbrl.envs.base import initial_state
from jaxmbrl.envs.drawing import BODY, FORCE, GOAL, INK, ROD, Canvas, NoPicture, drawing, on_host

ANALYTIC = [name for name in envs.names() if envs.family(name) != "mujoco"]
DT = {
    "cartpole-swingup": 0.1,
    "cartpole-swingup/angle": 0.1,
    "pilco-pendulum": 0.1,
    "cartpole-continuous": 0.02,
    "CartPole-v1": 0.02,
    "car-parking": 0.03,
    "double-integrator": 0.1,
    "mountain-car-continuous": 1 / 30,
    "MountainCar-v0": 1 / 30,
    "Acrobot-v1": 0.2,
    **dict.fromkeys((name for name in ANALYTIC if name.startswith(("dmc/cartpole", "dmc/acrobot"))), 0.01),
    **dict.fromkeys(
        (name for name in ANALYTIC if name.startswith(("dmc/pendulum", "dmc/reacher", "dmc/point_mass"))), 0.02
    ),
    "pendulum": 0.05,
    "pendulum-reach": 0.1,
    "reacher-2d": 0.05,
}
"""Seconds of a step of the tasks that have a unit of time; others are shown for 0.1 s."""


def where(picture, color):
    """Mean (column, row) of the pixels of a colour."""
    rows, columns = np.nonzero((picture == np.asarray(color, np.uint8)).all(-1))
    assert len(rows), "nothing of that colour"
    return np.array([columns.mean(), rows.mean()])


def has(picture, color):
    return bool((picture == np.asarray(color, np.uint8)).all(-1).any())


def test_shapes_are_where_their_coordinates_say():
    """A canvas of 100 x 50 pixels that shows 10 units around (1, 2): 10 pixels a unit, y up."""
    canvas = Canvas(10.0, (1.0, 2.0), (100, 50))
    canvas.box((3.0, 3.0), (1.0, 0.5), BODY)
    canvas.disc((-2.0, 1.0), 0.5, GOAL)
    picture = canvas.picture()
    assert picture.shape == (50, 100, 3) and picture.dtype == np.uint8
    # Pixel centres are half a pixel from their edges.
    np.testing.assert_allclose(where(picture, BODY), [50 + 20 - 0.5, 25 - 10 - 0.5], atol=0.5)
    np.testing.assert_allclose(where(picture, GOAL), [50 - 30 - 0.5, 25 + 10 - 0.5], atol=0.5)
    # 10 x 5 pixels, and pi 5^2.
    assert (picture == BODY).all(-1).sum() == pytest.approx(50, abs=16)
    assert (picture == GOAL).all(-1).sum() == pytest.approx(78, abs=25)


def test_a_turned_box_and_a_rod_lie_along_their_angle():
    canvas = Canvas(10.0, size=(200, 200))
    canvas.box((0.0, 0.0), (6.0, 0.4), BODY, math.pi / 6)
    canvas.rod((0.0, 0.0), (-2.0, 3.0), 0.3, ROD)
    picture = canvas.picture()
    for color, angle in ((BODY, math.pi / 6), (ROD, math.atan2(3.0, -2.0))):
        rows, columns = np.nonzero((picture == color).all(-1))
        slope = np.linalg.svd(np.stack([columns - columns.mean(), rows.mean() - rows]), full_matrices=False)[0][:, 0]
        assert abs(slope @ [math.cos(angle), math.sin(angle)]) > 0.999


def test_arrows_point_where_they_should_and_short_ones_are_left_out():
    def seen(draw):
        canvas = Canvas(10.0, size=(200, 200))
        draw(canvas)
        return canvas.picture()

    right = seen(lambda canvas: canvas.arrow((0.0, 0.0), (3.0, 0.0)))
    columns = np.nonzero((right == FORCE).all(-1))[1]
    assert columns.min() == pytest.approx(100, abs=4) and columns.max() == pytest.approx(160, abs=3)
    # The head, at the end, is the widest part.
    heights = (right == FORCE).all(-1).sum(axis=0)
    assert heights[146:154].max() > 2 * heights[110:130].max()
    # A quarter of a circle, anticlockwise from the right, is in the upper right.
    quarter = seen(lambda canvas: canvas.turn((0.0, 0.0), 3.0, 0.0, math.pi / 2))
    column, row = where(quarter, FORCE)
    assert column > 120 and row < 80
    column, row = where(seen(lambda canvas: canvas.turn((0.0, 0.0), 3.0, 0.0, -math.pi / 2)), FORCE)
    assert column > 120 and row > 120
    assert not has(seen(lambda canvas: canvas.arrow((0.0, 0.0), (0.01, 0.0))), FORCE)
    assert not has(seen(lambda canvas: canvas.turn((0.0, 0.0), 3.0, 0.0, 0.0)), FORCE)


def test_what_is_far_away_is_cut_off():
    canvas = Canvas(1.0, size=(20, 20))
    canvas.line([(-1e30, 0.0), (1e30, 0.0)], BODY, 4.0)
    canvas.disc((1e30, 1e30), 1.0, GOAL)
    picture = canvas.picture()
    assert (picture[10] == BODY).all() and not has(picture, GOAL)


def drawn(name, coordinates, action=None):
    """The picture of a task with the given coordinates of its state."""
    env = envs.make(name).env
    action = None if action is None else np.array(action, np.int32 if isinstance(action, int) else np.float32)
    return env.draw(on_host(initial_state(jnp.array(coordinates), jnp.zeros(env.observation_size))), action)


def test_the_pendulum():
    """360 pixels show 2.8 m around the pivot; the middle of the rod is 0.5 m from it. Positive is anticlockwise."""
    for angle in (0.0, 1.0, -2.5):
        rod = where(drawn("pendulum", [angle, 3.0]), ROD)
        due = [180 - 360 / 2.8 * 0.5 * math.sin(angle), 180 - 360 / 2.8 * 0.5 * math.cos(angle)]
        np.testing.assert_allclose(rod, due, atol=6)
    # The rod is upright, so a torque to the left shows an arrow to its left.
    assert where(drawn("pendulum", [0.0, 0.0], [1.0]), FORCE)[0] < 165
    assert where(drawn("pendulum", [0.0, 0.0], [-1.0]), FORCE)[0] > 195
    assert not has(drawn("pendulum", [0.0, 0.0], [0.0]), FORCE) and not has(drawn("pendulum", [0.0, 0.0]), FORCE)


def test_the_raised_pendulum():
    """From hanging; positive is anticlockwise, and the goal is level, to the right."""
    for angle in (0.0, 1.0, math.pi / 2):
        rod = where(drawn("pendulum-reach", [angle, 3.0]), ROD)
        due = [180 + 360 / 2.8 * 0.5 * math.sin(angle), 180 + 360 / 2.8 * 0.5 * math.cos(angle)]
        np.testing.assert_allclose(rod, due, atol=6)
    column, row = where(drawn("pendulum-reach", [0.0, 0.0]), GOAL)
    assert column > 280 and row == pytest.approx(180, abs=3)


def test_the_cart_pole():
    """480 pixels show 6 m. The pole of 1 m leans to the right at positive angles."""
    for position, angle in ((0.0, 0.0), (1.5, 0.2), (-2.0, -0.3)):
        picture = drawn("cartpole-continuous", [position, 1.0, angle, 1.0])
        assert where(picture, BODY)[0] == pytest.approx(240 + 480 / 6.0 * position, abs=4)
        pole = where(picture, ROD)[0] - where(picture, BODY)[0]
        assert pole == pytest.approx(480 / 6.0 * 0.5 * math.sin(angle), abs=4)
    pushed = drawn("cartpole-continuous", [0.0] * 4, [0.7])
    assert where(pushed, FORCE)[0] > where(pushed, BODY)[0] + 10
    pushed = drawn("cartpole-continuous", [0.0] * 4, [-0.7])
    assert where(pushed, FORCE)[0] < where(pushed, BODY)[0] - 10


def test_the_swing_up():
    """480 pixels show 3 m. The pendulum of 0.5 m hangs at angle 0; the goal is 0.5 m above the middle."""
    for angle in (0.0, 0.8, math.pi, -2.0):
        picture = drawn("cartpole-swingup", [0.2, 0.0, 0.0, angle])
        cart, pole = where(picture, BODY), where(picture, ROD)
        assert cart[0] == pytest.approx(240 + 160 * 0.2, abs=3)
        np.testing.assert_allclose(pole - cart, [40 * math.sin(angle), 40 * math.cos(angle)], atol=8)
    goal = where(drawn("cartpole-swingup", [0.9, 0.0, 0.0, 0.0]), GOAL)
    np.testing.assert_allclose(goal, [240, 120 - 160 * (0.5 - 0.05)], atol=3)
    # A cart far away is followed.
    far = drawn("cartpole-swingup", [40.0, 0.0, 0.0, 0.0])
    assert where(far, BODY)[0] == pytest.approx(240 + 160 * 0.9, abs=3) and not has(far, GOAL)


def test_the_tasks_of_deepmind_control():
    """Upright at angle 0, and positive to the right. 480 pixels show 4.8 m of the cart's rail, 360 show 1.4 m around the
    pendulum, 0.62 m around the reacher, 0.66 m around the ball and 4.6 m around the acrobot."""
    for position, angle in ((0.0, 0.3), (1.5, math.pi), (-1.8, -2.0)):
        picture = drawn("dmc/cartpole-swingup", [position, angle, 0.0, 0.0])
        cart, pole = where(picture, BODY), where(picture, ROD)
        assert cart[0] == pytest.approx(240 + 100 * position, abs=4)
        np.testing.assert_allclose(pole - cart, [50 * math.sin(angle), -50 * math.cos(angle)], atol=14)
        ball = where(drawn("dmc/pendulum-swingup", [angle, 0.0]), BODY)
        length = 360 / 1.4 * 0.5
        np.testing.assert_allclose(ball, [180 + length * math.sin(angle), 180 - length * math.cos(angle)], atol=2)
    right, left = (drawn("dmc/cartpole-balance", [0.0] * 4, [force]) for force in (1.0, -1.0))
    assert where(right, FORCE)[0] > 240 + 20 and where(left, FORCE)[0] < 240 - 20
    right, left = (drawn("dmc/pendulum-swingup", [0.0, 0.0], [torque]) for torque in (1.0, -1.0))
    assert where(right, FORCE)[0] > 195 > 165 > where(left, FORCE)[0]

    scale, target = 360 / 0.62, (-0.08, 0.12)
    sizes = []
    for name in ("dmc/reacher-easy", "dmc/reacher-hard"):
        picture = drawn(name, [0.4, 1.1, 0.0, 0.0, *target])
        np.testing.assert_allclose(where(picture, GOAL), [180 + scale * target[0], 180 - scale * target[1]], atol=6)
        sizes.append((picture == np.asarray(GOAL, np.uint8)).all(-1).sum())
    assert sizes[0] > 4 * sizes[1]
    first = (0.06 * math.cos(0.4), 0.06 * math.sin(0.4))
    second = (2 * first[0] + 0.06 * math.cos(1.5), 2 * first[1] + 0.06 * math.sin(1.5))
    for color, (x, y) in ((BODY, first), (ROD, second)):
        np.testing.assert_allclose(where(picture, color), [180 + scale * x, 180 - scale * y], atol=5)

    scale = 360 / 4.6
    picture = drawn("dmc/acrobot-swingup", [0.7, 1.2, 0.0, 0.0])
    first = 0.5 * np.array([math.sin(0.7), -math.cos(0.7)])
    second = 2 * first + 0.5 * np.array([math.sin(1.9), -math.cos(1.9)])
    np.testing.assert_allclose(where(picture, BODY), 180 + scale * first, atol=5)
    np.testing.assert_allclose(where(picture, ROD), 180 + scale * second, atol=6)
    assert where(picture, GOAL)[1] == pytest.approx(180 - 2 * scale, abs=2)
    clockwise, back = (drawn("dmc/acrobot-swingup", [0.0] * 4, [torque]) for torque in (1.0, -1.0))
    assert where(clockwise, FORCE)[0] > 190 > 170 > where(back, FORCE)[0]

    state = [0.1, -0.2, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0]
    np.testing.assert_allclose(
        where(drawn("dmc/point_mass-hard", state), BODY), 180 + 360 / 0.66 * np.array([0.1, 0.2]), atol=2
    )
    up = where(drawn("dmc/point_mass-hard", state, [1.0, 0.0]), FORCE)
    assert up[1] < 180 + 360 / 0.66 * 0.2 - 10


def test_the_mountain_car():
    """480 pixels show 2 units around -0.3, and 300 pixels 1.25 around 0.58. The hill is 0.45 sin(3 x) + 0.55."""
    for position in (-1.2, -math.pi / 6, 0.3):
        at = where(drawn("mountain-car-continuous", [position, 0.05]), BODY)
        height = 0.45 * math.sin(3 * position) + 0.55
        np.testing.assert_allclose(at, [240 + 240 * (position + 0.3), 150 - 240 * (height - 0.58)], atol=14)
    flag = where(drawn("mountain-car-continuous", [-0.5, 0.0]), GOAL)
    assert flag[0] == pytest.approx(240 + 240 * (0.45 + 0.03 + 0.3), abs=3)
    forward, back = (drawn("mountain-car-continuous", [-math.pi / 6, 0.0], [power]) for power in (1.0, -1.0))
    assert where(forward, FORCE)[0] > where(forward, BODY)[0] + 20 and where(back, FORCE)[0] < where(back, BODY)[0] - 20


def test_the_reacher():
    """360 pixels show 2.3 m around the shoulder. Links of 0.5 m, the elbow's angle is from the first link."""
    scale = 360 / 2.3
    shoulder, elbow, target = 0.4, 1.1, (-0.3, 0.6)
    picture = drawn("reacher-2d", [shoulder, elbow, 0.0, 0.0, *target])
    np.testing.assert_allclose(where(picture, GOAL), [180 + scale * target[0], 180 - scale * target[1]], atol=2)
    np.testing.assert_allclose(
        where(picture, BODY), [180 + scale * 0.25 * math.cos(0.4), 180 - scale * 0.25 * math.sin(0.4)], atol=4
    )
    second = (0.5 * math.cos(0.4) + 0.25 * math.cos(1.5), 0.5 * math.sin(0.4) + 0.25 * math.sin(1.5))
    np.testing.assert_allclose(where(picture, ROD), [180 + scale * second[0], 180 - scale * second[1]], atol=4)
    assert has(drawn("reacher-2d", [0.0] * 6, [0.5, 0.0]), FORCE)


def test_cars_and_carts_of_few_actions_are_drawn_with_their_full_force():
    for name, coordinates in (("CartPole-v1", [0.5, 0.0, 0.1, 0.0]), ("MountainCar-v0", [-math.pi / 6, 0.0])):
        last = envs.make(name).action.n - 1
        there, back = (drawn(name, coordinates, action) for action in (last, 0))
        assert where(there, FORCE)[0] > where(there, BODY)[0] + 10 and where(back, FORCE)[0] < where(back, BODY)[0] - 10
        assert not has(drawn(name, coordinates), FORCE)
    assert not has(drawn("MountainCar-v0", [-0.5, 0.0], 1), FORCE)
    # The flag is further to the right than that of the continuous task.
    assert where(drawn("MountainCar-v0", [-0.5, 0.0]), GOAL)[0] == pytest.approx(240 + 240 * (0.5 + 0.03 + 0.3), abs=3)


def test_the_car_and_the_mass():
    """The middle of the car is 1 m ahead of its rear axle; 360 pixels show 8 m. The mass is on a line of 4 m."""
    heading = 0.5 * math.pi
    picture = drawn("car-parking", [1.0, -2.0, heading, 0.0, 0.0])
    np.testing.assert_allclose(where(picture, GOAL), [180, 180], atol=1)
    columns = np.nonzero((picture == np.asarray(BODY, np.uint8)).all(-1))
    middle = [(side.min() + side.max()) / 2 for side in columns[::-1]]
    np.testing.assert_allclose(middle, [180 + 45 * 1.0, 180 - 45 * (-2.0 + 1.0)], atol=2)
    assert not np.array_equal(picture, drawn("car-parking", [1.0, -2.0, heading, 0.0, 0.0], [1.0, 0.0]))
    picture = drawn("double-integrator", [-0.8, 0.0])
    np.testing.assert_allclose(where(picture, BODY), [240 - 120 * 0.8, 80], atol=2)
    right, left = (drawn("double-integrator", [0.0, 1.0], [force]) for force in (1.0, -1.0))
    assert where(right, FORCE)[0] > 240 + 20 and where(left, FORCE)[0] < 240 - 20


def test_the_acrobot():
    """360 pixels show 4.6 m around the first joint. Both links hang at angle 0; the second angle is from the first link."""
    scale = 360 / 4.6
    for angle, bend in ((0.0, 0.0), (0.7, 1.2), (-2.5, 0.4)):
        picture = drawn("Acrobot-v1", [angle, bend, 0.0, 0.0])
        first = np.array([0.5 * math.sin(angle), 0.5 * math.cos(angle)])
        second = 2 * first + 0.5 * np.array([math.sin(angle + bend), math.cos(angle + bend)])
        np.testing.assert_allclose(where(picture, BODY), 180 + scale * first, atol=5)
        np.testing.assert_allclose(where(picture, ROD), 180 + scale * second, atol=6)
    assert where(picture, GOAL)[1] == pytest.approx(180 - scale, abs=2)
    # Anticlockwise around the joint between hanging links, which is 1 m below the first: to the right of it.
    assert (
        where(drawn("Acrobot-v1", [0.0] * 4, 2), FORCE)[0] > 190 > 170 > where(drawn("Acrobot-v1", [0.0] * 4, 0), FORCE)[0]
    )
    assert not has(drawn("Acrobot-v1", [0.0] * 4, 1), FORCE)


def at(position):
    """A state of a task of finitely many states, of which a drawing needs the position alone."""
    return initial_state(position, jnp.zeros(()))


def test_catch():
    """40 pixels a cell. The paddle is in the bottom row; a ball that has arrived is green or red."""
    draw = envs.make("bsuite/Catch").env.draw

    def seen(*position, action=None):
        return draw(at(tuple(map(np.int32, position))), None if action is None else np.array(action, np.int32))

    picture = seen(3, 1, 4)
    np.testing.assert_allclose(where(picture, INK) - where(picture, BODY), [-3 * 40, -6 * 40 - 16], atol=2)
    assert not has(picture, GOAL) and not has(picture, FORCE)
    assert has(seen(9, 4, 4), GOAL) and has(seen(9, 1, 4), FORCE) and not has(seen(9, 4, 4), FORCE)
    assert has(seen(3, 1, 4, action=2), FORCE) and not has(seen(3, 1, 4, action=1), FORCE)


def test_grids():
    """The agent in its cell, and an arrow along its move: 12.5 x 4.5 cells of the cliff, 4.5 x 4.5 of the lake."""
    cliff, lake = (envs.make(name).env.draw for name in ("CliffWalking", "FrozenLake"))
    for row, column in ((0, 0), (2, 7), (3, 0)):
        seen = where(cliff(at(np.int32(12 * row + column)), None), BODY)
        np.testing.assert_allclose(seen, 480 / 12.5 * np.array([column + 0.75, row + 0.75]), atol=2)
    state = at(np.int32(10))
    for action, way in enumerate(((-1, 0), (0, 1), (1, 0), (0, -1))):
        picture = lake(state, np.array(action, np.int32))
        assert (where(picture, FORCE) - where(lake(state, None), BODY)) @ way > 15
    board = envs.make("bsuite/DeepSea/5").env.draw
    np.testing.assert_allclose(where(board(at(np.int32(11)), None), BODY), 480 / 5.5 * np.array([1.75, 2.75]), atol=2)
    assert not has(board(at(np.int32(25)), np.int32(1)), BODY)


@pytest.mark.parametrize("name", ANALYTIC)
def test_every_analytic_task_has_a_drawing_as_fast_as_its_steps(name):
    task, dt = envs.make(name), DT.get(name, 0.1)
    assert drawing(task).dt == pytest.approx(dt)
    assert drawing(envs.make(name, action_repeat=4)).dt == pytest.approx(4 * dt)


class Board:
    """Counts its steps, which a user's own drawing shows as rows of pixels. Its state has a random key."""

    observation_size = action_size = 1

    def __init__(self, draw=None):
        if draw is not None:
            self.draw = draw

    def reset(self, rng):
        return initial_state((jnp.zeros((), jnp.int32), rng), jnp.zeros(1))

    def step(self, state, action):
        count, key = state.pipeline_state
        return state.replace(pipeline_state=(count + 1, key), obs=state.obs + 1)


def rows_of_pixels(state, action):
    picture = np.zeros((8, 6, 3), np.uint8)
    picture[: int(state.pipeline_state[0])] = 255
    return picture


def board(draw=rows_of_pixels, **fields):
    env = Board(draw)
    for name, value in fields.items():
        setattr(env, name, value)
    return envs.make_task("board", env, 5)


def test_an_environment_draws_its_own_state_and_is_told_the_action():
    given = []

    def draw(state, action):
        given.append(action)
        return rows_of_pixels(state, action)

    task = envs.repeat(board(draw), 2)
    found = drawing(task)
    assert found.dt == pytest.approx(0.2), "0.1 s a step where the environment does not say, times the action repeat"
    carry = task.world.reset(jax.random.key(0))
    after, _ = task.world.step(carry, jnp.array([0.5]), jax.random.key(1))
    with found.drawer(64, 64) as drawer:
        before = drawer.frame(on_host(found.shown(carry)))
        later = drawer.frame(on_host(found.shown(after)), np.array([0.5], np.float32))
    assert before.max() == 0 and (later[:, 0, 0] == [255, 255, 0, 0, 0, 0, 0, 0]).all()
    assert given[0] is None and given[1] == [0.5]


WRONG = {
    "another dtype": (lambda state, action: np.zeros((4, 4, 3)), r"draw of its environment must return uint8 \[height"),
    "grey": (lambda state, action: np.zeros((4, 4), np.uint8), r"got uint8 \[4, 4\]"),
    "nothing": (lambda state, action: None, "draw of its environment must return uint8"),
    "an error": (lambda state, action: 1 / 0, "no picture of board: its draw fails with ZeroDivisionError: division"),
    "other arguments": (lambda state: rows_of_pixels(state, None), "its draw fails with TypeError"),
    "another size": (
        lambda state, action: np.zeros((4 + int(state.pipeline_state[0]), 4, 3), np.uint8),
        r"must return pictures of one size, got \[5, 4, 3\] after \[4, 4, 3\]",
    ),
}


@pytest.mark.parametrize(("draw", "told"), WRONG.values(), ids=WRONG)
def test_a_drawing_that_is_wrong_is_told(draw, told):
    task = board(draw)
    start = initial_state((np.zeros((), np.int32), jax.random.key(0)), jnp.zeros(1))
    after = start.replace(pipeline_state=(np.ones((), np.int32), jax.random.key(0)))
    with pytest.raises(NoPicture, match=told) as caught, drawing(task).drawer(8, 8) as drawer:
        drawer.frame(start)
        drawer.frame(after, np.zeros(1))
    assert "\n" not in str(caught.value)


def test_the_check_of_a_task_draws_it():
    with pytest.raises(NoPicture, match="its draw fails with ZeroDivisionError"):
        envs.check(board(WRONG["an error"][0]))


@pytest.mark.parametrize("dt", [0.0, -1.0, "fast", float("nan")])
def test_seconds_of_a_step_that_are_wrong_are_told(dt):
    with pytest.raises(NoPicture, match="dt of its environment must be the seconds of a step, got"):
        drawing(board(dt=dt))


def test_what_cannot_be_drawn_says_what_is_missing():
    with pytest.raises(NoPicture, match=r"board: its environment has neither a method draw\(state, action\) nor a MuJoCo"):
        drawing(board(None))


class Brax(Slider):
    """As environments of Brax: the model is that of `sys`, the positions are `q`."""

    def __init__(self):
        super().__init__()
        self.sys = type("System", (), {"mj_model": self.__dict__.pop("mj_model")})()

    def reset(self, rng):
        state = super().reset(rng)
        return state.replace(pipeline_state=Coordinates(state.pipeline_state.qpos))


class Coordinates(flax.struct.PyTreeNode):
    q: jax.Array


class Playground(Slider):
    """As environments of Playground: the simulator's state is `State.data`."""

    def reset(self, rng):
        state = super().reset(rng)
        return PlaygroundState(state.pipeline_state, state.obs, state.reward, state.done, {}, {})


class PlaygroundState(flax.struct.PyTreeNode):
    data: jax.Array
    obs: jax.Array
    reward: jax.Array
    done: jax.Array
    metrics: dict
    info: dict


@pytest.mark.parametrize("env", [Slider, Brax, Playground])
def test_models_and_positions_are_found_where_packages_have_them(env):
    task = envs.make_task("sliding", env(), 5)
    carry = task.world.reset(jax.random.key(0))
    found = drawing(task)
    assert found.dt == 0.05
    np.testing.assert_array_equal(found.shown(carry), carry[0].obs)
    assert found.finite(jnp.zeros(1)) and not found.finite(jnp.array([np.inf]))


def test_an_environment_with_both_draws_itself():
    class Both(Slider):
        def draw(self, state, action):
            return np.full((4, 4, 3), 7, np.uint8)

    found = drawing(envs.make_task("both", Both(), 5))
    with found.drawer(8, 8) as drawer:
        assert drawer.frame(None).shape == (4, 4, 3)


@pytest.mark.filterwarnings("error", "ignore:.*A Box observation space (minimum|maximum)")
def test_a_gymnasium_environment_of_an_analytic_task_draws_itself():
    gymnasium.register("jaxmbrl-test-drawn-v1", "jaxmbrl.envs:as_gymnasium", kwargs={"task": "pendulum"})
    try:
        env = gymnasium.make("jaxmbrl-test-drawn-v1", render_mode="rgb_array").unwrapped
        check_env(env)
    finally:
        del gymnasium.registry["jaxmbrl-test-drawn-v1"]
    assert env.metadata == {"render_modes": ["rgb_array"], "render_fps": 20}
    env.reset(seed=0)
    before = env.render()
    assert before.shape == (360, 360, 3) and not has(before, FORCE)
    env.step([1.0])
    assert has(env.render(), FORCE) and (env.render() != before).any()
    env.reset()
    assert not has(env.render(), FORCE), "no action led to the first state"
    env.close()
    assert isinstance(NoPicture("x"), UserError)
