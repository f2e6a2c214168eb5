"""Collecting: the rows are the task's, in order, and the actions are the policy's that was asked for."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from begun import PETS, SMALL, Began, began
from scipy import stats

import jaxmbrl
from jaxmbrl import cli, envs, planning
from jaxmbrl.agents.exploration import uniform
from jaxmbrl.core.config import UserError
from jaxmbrl.core.spaces import Box, Discrete
from jaxmbrl.data import dataset
from jaxmbrl.envs.base import initial_state
from jaxmbrl.rollout import with_full_state
from jaxmbrl.training import collecting, memory, programs
from jaxmbrl.training.session import Session

pytestmark = pytest.mark.usefixtures("compile_cache")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs that have just begun: their checkpoint of step 0 holds what they were born with."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "train", began)
        for name, settings in (("linear", SMALL), ("pets", PETS), ("true", PETS | {"model": "true"})):
            with pytest.raises(Began):
                method = "linear" if name == "linear" else "pets"
                jaxmbrl.train(method, "pendulum", settings=settings, out=folder / name, seeds=2, seed=7)
    return folder


@pytest.fixture(scope="module")
def falls():
    """Random actions on the cart-pole, which falls long before its time is up."""
    return jax.tree.map(np.asarray, collecting.collect_by("cartpole-continuous", "random", 500, seed=3)[0])


UPDATES: list[float] = []


@pytest.fixture(scope="module")
def swings():
    """Random actions on the pendulum, which never ends but by the clock."""
    return jax.tree.map(np.asarray, collecting.collect_by("pendulum", "random", 450, seed=4, update=UPDATES.append)[0])


def test_the_progress_is_told(swings):
    assert list(range(50, 451, 50)) == UPDATES


def pendulum_after(observation, action):
    """Gymnasium's Pendulum-v1, one step in float64: (next observation, reward)."""
    cos, sin, speed = np.asarray(observation, np.float64).T
    torque = 2 * np.asarray(action, np.float64)[:, 0]
    angle = np.arctan2(sin, cos)
    reward = -(angle**2 + 0.1 * speed**2 + 0.001 * torque**2)
    after = np.clip(speed + (15 * sin + 3 * torque) * 0.05, -8, 8)
    angle = angle + after * 0.05
    return np.stack([np.cos(angle), np.sin(angle), after], axis=1), reward


def check_pendulum(rows):
    following, reward = pendulum_after(rows.observation, rows.action)
    np.testing.assert_allclose(rows.next_observation, following, atol=2e-5)
    np.testing.assert_allclose(rows.reward, reward, atol=2e-4)


def check_order(rows):
    """Within an episode a row's successor is the next row's observation; after an end another episode begins."""
    ended = rows.terminated | rows.truncated
    np.testing.assert_array_equal(rows.next_observation[:-1][~ended[:-1]], rows.observation[1:][~ended[:-1]])
    assert (rows.next_observation[:-1][ended[:-1]] != rows.observation[1:][ended[:-1]]).any(axis=1).all()
    return ended


def test_the_pendulums_rows_are_the_simulators_and_end_by_the_clock(swings):
    check_pendulum(swings)
    ended = check_order(swings)
    assert np.flatnonzero(ended).tolist() == [199, 399]
    assert swings.truncated[ended].all() and not swings.terminated.any() and swings.extras == ()
    first = swings.observation[[0, 200, 400]]
    assert (np.abs(first[:, 2]) <= 1).all() and len(np.unique(first, axis=0)) == 3


def test_the_cart_poles_rows_end_where_it_falls(falls):
    ended = check_order(falls)
    position, angle = np.abs(falls.next_observation[:, 0]), np.abs(falls.next_observation[:, 2])
    np.testing.assert_array_equal(falls.terminated, (position > 2.4) | (angle > np.deg2rad(12)))
    assert ended.sum() > 10 and not falls.truncated.any() and (falls.reward == 1).all()
    starts = np.flatnonzero(ended[:-1]) + 1
    assert (np.abs(falls.observation[starts]) <= 0.05).all()


def test_random_actions_are_uniform(swings):
    assert swings.action.shape == (450, 1)
    assert stats.kstest(swings.action[:, 0], stats.uniform(-1, 2).cdf).pvalue > 0.01
    assert abs(np.corrcoef(swings.action[:-1, 0], swings.action[1:, 0])[0, 1]) < 0.15


def act_of(run, explore=False):
    """The policy of the first seed of a run."""
    policy, states, _ = jaxmbrl.load(run)
    return policy(jax.tree.map(lambda x: x[0], states), explore)


def test_the_deterministic_policy_of_a_run_acts(runs):
    rows, task = collecting.collect_by(None, str(runs / "linear"), 30, seed=1)
    assert task.name == "pendulum"
    check_pendulum(rows)
    acting = act_of(runs / "linear")
    actions = jax.vmap(lambda seen: acting.act((), seen, jax.random.key(9))[0])(rows.observation)
    np.testing.assert_allclose(rows.action, actions, atol=1e-6)


def test_exploring_draws_about_it(runs):
    plain, _ = collecting.collect_by("pendulum", str(runs / "linear"), 30, seed=1)
    rows, _ = collecting.collect_by("pendulum", str(runs / "linear"), 30, seed=1, explore=True)
    check_pendulum(rows)
    np.testing.assert_array_equal(rows.observation[0], plain.observation[0])
    acting = act_of(runs / "linear")
    means = jax.vmap(lambda seen: acting.act((), seen, jax.random.key(9))[0])(rows.observation)
    assert (np.abs(np.asarray(rows.action - means)) > 1e-3).mean() > 0.9


@pytest.mark.parametrize("name", [pytest.param("pets", marks=pytest.mark.slow), "true"])
def test_a_planner_acts_as_it_does_on_what_it_sees(name, runs):
    """Its first action is that of planning in its own world from the first state, with the key that `rollout` gives it."""
    rows, task = collecting.collect_by(None, str(runs / name), 12, seed=6)
    check_pendulum(rows)
    world_key, _, key = jax.random.split(jax.random.key(6), 3)
    act_key = jax.random.split(jax.random.split(jax.random.fold_in(key, 0))[0])[1]
    settings = programs.configure("pets", "pendulum", settings=PETS).settings
    planner = planning.make(settings.planner, task.action)
    carry = task.world.reset(world_key)
    if name == "true":
        problem = planning.make_problem(with_full_state(task.world), carry, task.action)
    else:
        (state,) = (jax.tree.map(lambda x: x[0], jaxmbrl.load(runs / name).state.model),)
        model = jaxmbrl.models.ensemble.make(settings.ensemble, 3, 1, task.reward, task.terminated)
        particles = jnp.tile(task.world.observe(carry), (2, 1))
        problem = planning.make_problem(model.world(state), particles, task.action)
    plan = jax.jit(lambda: planner.plan(problem, planner.init(), act_key)[0])()
    np.testing.assert_allclose(rows.observation[0], task.world.observe(carry), atol=1e-6)
    np.testing.assert_allclose(rows.action[0], plan[0], atol=1e-5)


def test_a_seed_makes_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, seed in (("a", 2), ("b.npz", 2), ("v1.2", 3)):
        words = ["--policy", "random", "--env", "pendulum", "--steps", "20", "--seed", str(seed), "--out", name]
        assert cli.main(["collect", *words]) == 0
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in tmp_path.iterdir()}
    assert set(digests) == {"a.npz", "b.npz", "v1.2.npz"}
    assert digests["a.npz"] == digests["b.npz"] != digests["v1.2.npz"]
    found = dataset.load("a.npz")
    rows, _ = collecting.collect_by("pendulum", "random", 20, seed=2)
    for name in rows._fields[:-1]:
        np.testing.assert_array_equal(getattr(found.rows, name), getattr(rows, name), strict=True)
    assert found.env == "pendulum"


def test_a_run_is_collected_from_by_the_command_line(runs, tmp_path, capsys):
    out = tmp_path / "new" / "folder" / "rows.npz"
    assert cli.main(["collect", "--policy", str(runs / "linear"), "--steps", "10", "--explore", "--out", str(out)]) == 0
    said, err = capsys.readouterr()
    assert not err and f"10 transitions of pendulum in {out}, 0 finished episodes" in said
    rows = dataset.load(out).rows
    assert f"reward a step {rows.reward.mean():.3f} on average" in said
    assert f"jaxmbrl fit --data {out}\n" in said and f"train pets --env pendulum --data {out}\n" in said
    np.testing.assert_array_equal(
        rows.action, collecting.collect_by(None, str(runs / "linear"), 10, explore=True)[0].action
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": None}, "--env TASK is missing; there is: "),
        ({"task": "pendulm"}, "unknown task 'pendulm'; did you mean 'pendulum'?"),
        ({"steps": 0}, "steps must be at least 1 and below 2147483648, got 0"),
        ({"steps": 2**31}, "steps must be at least 1 and below 2147483648, got 2147483648"),
        ({"seed": -1}, "seed must be at least 0 and below 2147483648, got -1"),
        ({"seed": 2**31}, "seed must be at least 0 and below 2147483648, got 2147483648"),
        ({"policy": "nowhere"}, "there is no folder nowhere; give the folder of a run"),
    ],
)
def test_mistakes_are_told(arguments, message):
    given = {"task": "pendulum", "policy": "random", "steps": 5} | arguments
    with pytest.raises(UserError) as told:
        collecting.collect_by(**given)
    assert message in str(told.value) and "\n" not in str(told.value)


def test_a_run_of_another_task_is_told(runs):
    with pytest.raises(UserError, match=r"the run in .*linear is of pendulum, not of cartpole-continuous"):
        collecting.collect_by("cartpole-continuous", str(runs / "linear"), 5)


def test_more_than_the_machine_holds_is_told(monkeypatch, runs):
    # 5 rows of 3 + 1 + 1 + 3 numbers and two flags.
    monkeypatch.setattr(memory, "available", lambda: 5 * 34 - 1)
    with pytest.raises(UserError, match=r"the collected data takes 0.0 MB, the device has 0.0 MB; lower steps"):
        collecting.collect_by("pendulum", "random", 5)
    monkeypatch.setattr(memory, "available", lambda: 5 * 34)
    assert collecting.collect_by("pendulum", "random", 5)[0].reward.shape == (5,)


class Slider:
    """A pixel in a row of eight, that the action moves left or right; at the right end the episode is over."""

    observation_size = action_size = 1

    def reset(self, rng):
        return initial_state((), jnp.zeros((1, 8, 1), jnp.uint8).at[0, jax.random.randint(rng, (), 0, 6)].set(255))

    def step(self, state, action):
        place = jnp.clip(jnp.argmax(state.obs) + 2 * action - 1, 0, 7)
        obs = jnp.zeros((1, 8, 1), jnp.uint8).at[0, place].set(255)
        return state.replace(obs=obs, reward=jnp.ones(()), done=(place == 7).astype(float))


class Ladder(Slider):
    """The same as the number of the place."""

    def reset(self, rng):
        return initial_state((), jax.random.randint(rng, (), 0, 6, jnp.int32))

    def step(self, state, action):
        place = jnp.clip(state.obs + 2 * action - 1, 0, 7)
        return state.replace(obs=place, reward=jnp.ones(()), done=(place == 7).astype(float))


@pytest.mark.parametrize("kind", ["images", "choices"])
def test_images_and_choices_go_into_a_file_and_come_back(kind, tmp_path, monkeypatch):
    """By the command line, in the dtypes of the spaces; an image once."""
    env, space = (Slider(), Box((1, 8, 1), 0, 255, "uint8")) if kind == "images" else (Ladder(), Discrete(8))
    monkeypatch.setattr(envs, "TASKS", envs.TASKS | {"slider": lambda: envs.make_task("slider", env, 20, **spaces)})
    spaces = {"action": Discrete(2), "observation": space}
    out = tmp_path / "rows.npz"
    assert cli.main(["collect", "--policy", "random", "--env", "slider", "--steps", "100", "--out", str(out)]) == 0
    data = dataset.load(out)
    dataset.check_fits(data, envs.make("slider"))
    rows = data.rows
    expected = collecting.collect_by("slider", "random", 100)[0]
    for name in rows._fields[:-1]:
        np.testing.assert_array_equal(getattr(rows, name), getattr(expected, name), strict=True)
    place, after = (
        np.argmax(x.reshape(100, -1), 1) if kind == "images" else x for x in (rows.observation, rows.next_observation)
    )
    np.testing.assert_array_equal(after, np.clip(place + 2 * rows.action - 1, 0, 7))
    ended = rows.terminated | rows.truncated
    np.testing.assert_array_equal(rows.terminated, after == 7)
    np.testing.assert_array_equal(place[1:][~ended[:-1]], after[:-1][~ended[:-1]])
    assert ended.sum() >= 3
    if kind == "images":
        with np.load(out) as file:
            assert file["observation"].nbytes == 800 and file["last_observation"].nbytes == 8 * (ended[:-1].sum() + 1)


def test_a_task_that_no_file_stores_is_refused_before_collecting(monkeypatch):
    class Board:
        action_size = 1

        def reset(self, rng):
            return initial_state((), jnp.zeros(3, jnp.int32))

        def step(self, state, action):
            return state

    task = envs.make_task("board", Board(), 5, observation=Box((3,), 0, 9, "int32"))
    monkeypatch.setattr(envs, "TASKS", envs.TASKS | {"board": lambda: task})
    with pytest.raises(UserError, match=r"cannot store the observations of task 'board', Box\(shape=\(3,\), low=0, high=9"):
        collecting.collect_by("board", "random", 5)


@pytest.mark.promises
def test_tasks_are_collected_from_in_shapes_that_fit():
    for name in envs.names():
        if name.endswith("-v5") or name.startswith("pets/"):
            # Their simulator is long to trace.
            continue
        task = envs.make(name)
        rows = jax.eval_shape(lambda task=task: collecting.collect(task, uniform(task.action), 3))
        assert rows.observation.shape == (3, *task.observation.shape) and rows.action.shape == (3, *task.action.shape)


@pytest.mark.slow
def test_evaluation_plans_in_the_true_simulator_when_asked(runs, capsys):
    """A run that learned elsewhere then does exactly what one does that always planned there."""
    assert cli.main(["evaluate", str(runs / "pets"), "--episodes", "2", "--model", "true"]) == 0
    said, err = capsys.readouterr()
    truly = jaxmbrl.evaluate(runs / "pets", 2, "true")
    assert not err and f"seed 7: {truly.per_seed[0]:.2f}\n" in said and f"seed 8: {truly.per_seed[1]:.2f}\n" in said
    np.testing.assert_array_equal(truly.returns, jaxmbrl.evaluate(runs / "true", 2).returns)
    plainly = jaxmbrl.evaluate(runs / "pets", 2)
    assert (np.asarray(truly.returns) != np.asarray(plainly.returns)).all()


@pytest.mark.parametrize(
    ("run", "model", "message"),
    [
        ("linear", "true", "model is a setting of planners, and linear is not a planner: leave it out"),
        ("pets", "nonsense", "model must be 'learned' or 'true', got 'nonsense'"),
        ("true", "learned", "the run planned in the true simulator and did not learn a model: leave model out"),
    ],
)
def test_a_model_that_cannot_be_is_told(run, model, message, runs, capsys):
    assert cli.main(["evaluate", str(runs / run), "--model", model]) == 2
    assert capsys.readouterr().err == f"jaxmbrl: {message}\n"


@pytest.mark.slow
def test_training_in_the_true_simulator_by_the_command_line(tmp_path, capsys):
    words = [word for name, value in PETS.items() for word in (f"--{name.replace('_', '-')}", value)]
    words = [str(x) for word in words for x in (word if isinstance(word, tuple) else (word,))]
    words += ["--model", "true", "--warmup-steps", "50", "--steps", "100", "--out", str(tmp_path / "run")]
    assert cli.main(["train", "pets", "--env", "pendulum", *words]) == 0
    said, err = capsys.readouterr()
    assert not err and "training pets" in said
    assert jaxmbrl.load(tmp_path / "run").state.model.fits.tolist() == [0], "there is nothing to fit"
