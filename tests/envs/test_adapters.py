"""Brax's and Playground's environments as tasks: what is rolled out is what the package's own environment steps."""

import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmbrl
from jaxmbrl import envs
from jaxmbrl.core.config import UserError
from jaxmbrl.rollout import auto_reset, open_loop, rollout

KEY = jax.random.key(2)
SETTINGS = {
    "agent.hidden": (8,),
    "batch_size": 8,
    "replay_capacity": 200,
    "warmup_steps": 20,
    "epoch_steps": 30,
    "eval_every": 0,
}

BRAX = "brax/inverted_pendulum:spring"


@pytest.fixture(scope="module")
def brax_envs():
    return pytest.importorskip("brax.envs")


@pytest.fixture(scope="module")
def playground():
    return pytest.importorskip("mujoco_playground")


def same(a, b):
    """Whether two arrays are equal to the bit."""
    a, b = np.asarray(a), np.asarray(b)
    return (a.shape, a.dtype, a.tobytes()) == (b.shape, b.dtype, b.tobytes())


def compare(name, env, actions, key=KEY):
    """A rollout of the task against the package's own environment, scanned and never reset; returns the rollout's rows."""
    task = envs.make(name)
    policy = open_loop(jnp.asarray(actions))

    def by_hand():
        def step(state, action):
            # A copy: Brax's and Playground's environments write to their states' dictionaries.
            after = jax.tree.map(jnp.asarray, env.step(jax.tree.map(lambda x: x, state), action))
            return after, (state.obs, after.reward, after.obs, after.done)

        first = jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), env.reset(key))
        return jax.lax.scan(step, first, actions)[1]

    def rolled():
        return rollout(task.world, policy, (task.world.reset(key), policy.init(key)), key, len(actions))[1]

    rows, (observation, reward, successor, done) = jax.device_get((jax.jit(rolled)(), jax.jit(by_hand)()))
    assert same(rows.observation, observation) and same(rows.next_observation, successor)
    assert same(rows.reward, reward) and same(rows.terminated, done > 0)
    np.testing.assert_array_equal(rows.action, actions)
    return task, rows


def test_the_time_limit_of_braxs_environments_is_1000(brax_envs):
    """And what follows it is the true successor: `fast` goes on and on."""
    actions = np.random.default_rng(2).uniform(-1, 1, (1003, 1)).astype(np.float32)
    task, rows = compare("brax/fast", brax_envs.get_environment("fast"), actions)
    assert task.episode_length == 1000 and type(task.env) is type(brax_envs.get_environment("fast"))
    assert np.flatnonzero(rows.truncated).tolist() == [999, 1000, 1001, 1002] and not rows.terminated.any()
    assert rows.next_observation[999, 0] > rows.next_observation[998, 0] > 1


def test_a_collector_resets_after_the_true_successor(brax_envs):
    task = envs.make("brax/fast")
    world, policy = auto_reset(task.world, open_loop(jnp.asarray(np.ones((1002, 1), np.float32))))
    rows = jax.jit(lambda: rollout(world, policy, (world.reset(KEY), policy.init(KEY)), KEY, 1002)[1])()
    rows = jax.device_get(rows)
    assert np.flatnonzero(rows.truncated).tolist() == [999]
    # It has gained 0.02 of speed a step from rest, and begins anew at 0.
    assert float(rows.next_observation[999, 1]) == pytest.approx(20, rel=1e-4)
    assert rows.observation[1000].tolist() == [0, 0]


@pytest.mark.promises
def test_an_environment_of_braxs_terminates(brax_envs):
    """The pole falls over under a full push, and never by the clock."""
    env = brax_envs.get_environment("inverted_pendulum", backend="spring")
    task, rows = compare(BRAX, env, np.ones((40, 1), np.float32))
    assert (task.name, task.observation.shape, task.action.shape) == (BRAX, (4,), (1,))
    assert (task.reward, task.terminated) == (None, None)
    np.testing.assert_array_equal(rows.terminated, np.abs(rows.next_observation[:, 1]) > 0.2)
    first = int(rows.terminated.argmax())
    assert 0 < first < 39 and not rows.truncated.any() and rows.reward[first] == 1


def test_a_cheap_environment_of_braxs_is_sound(brax_envs):
    assert envs.check(envs.make("brax/fast")) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["brax/inverted_pendulum", "brax/inverted_pendulum:mjx", "brax/halfcheetah:positional"])
def test_environments_of_braxs_are_sound(name, brax_envs):
    assert envs.check(envs.make(name)) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["PendulumSwingup", "CartpoleSwingup"])
def test_environments_of_playgrounds_are_sound(name, playground):
    assert envs.check(envs.make(f"playground/{name}")) is None


def test_an_environment_of_playgrounds_is_the_packages_own(playground):
    """Over its time limit of 1,000 steps. The pole starts upright, where it earns, and falls."""
    env = playground.registry.load("PendulumSwingup", config_overrides={"impl": "jax"})
    actions = np.sign(np.sin(np.arange(1002) / 9))[:, None].astype(np.float32)
    task, rows = compare("playground/PendulumSwingup", env, actions, jax.random.key(0))
    assert (task.episode_length, task.observation.shape, task.action.shape) == (1000, (3,), (1,))
    assert np.flatnonzero(rows.truncated).tolist() == [999, 1000, 1001] and not rows.terminated.any()
    assert 0 < rows.reward.sum() < 1000


@pytest.mark.slow
def test_every_task_of_the_control_suite_is_made_or_told(playground, recwarn, tmp_path, monkeypatch):
    """All but those whose model the simulator's version cannot edit; and no file is left behind."""
    monkeypatch.chdir(tmp_path)
    refused = []
    for name in playground.dm_control_suite.ALL_ENVS:
        try:
            task = envs.make(f"playground/{name}")
        except UserError as error:
            refused.append(name)
            assert "cannot be made by playground" in str(error) and "\n" not in str(error)
        else:
            ranges = task.env.mj_model.actuator_ctrlrange
            assert (ranges == [-1, 1]).all() and ranges.shape[0] == task.action.shape[0]
    assert set(refused) <= {"ReacherEasy", "ReacherHard"} and not list(tmp_path.iterdir())
    assert not [warning for warning in recwarn if "settotalmass" in str(warning.message)]


@pytest.mark.promises
def test_brax_is_made_quietly(brax_envs, tmp_path, monkeypatch, capfd):
    """MuJoCo's and Brax's notices go nowhere, not to a file either."""
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        task = envs.make("brax/halfcheetah")
    assert task.observation.shape == (17,)
    assert not list(tmp_path.iterdir()) and capfd.readouterr() == ("", "")


TOLD = {
    "brax/antt": "Brax has no environment 'antt'; did you mean 'ant'?",
    "brax/": "Brax has no environment ''; there is: ant, ",
    "brax/ant:generalised": "unknown backend 'generalised' of 'brax/ant'; did you mean 'generalized'?",
    "brax/ant:": "unknown backend '' of 'brax/ant'; there is: generalized, mjx, positional, spring",
    "brax/fast:mjx": "'brax/fast' has no backends: leave out ':mjx'",
}


@pytest.mark.parametrize("name", TOLD)
def test_what_brax_has_not_is_told(name, brax_envs):
    with pytest.raises(UserError) as told:
        envs.make(name)
    assert str(told.value).startswith(TOLD[name]) and "\n" not in str(told.value)


def test_what_playground_has_not_is_told(playground, monkeypatch):
    """Or has, but for another version of the simulator."""
    with pytest.raises(UserError, match="MuJoCo Playground has no environment 'CheetahRunn'; did you mean 'CheetahRun'"):
        envs.make("playground/CheetahRunn")

    def load(*args, **settings):
        raise AttributeError("no 'find_body'")

    monkeypatch.setattr(playground.dm_control_suite, "load", load)
    with pytest.raises(
        UserError, match=r"'playground/ReacherEasy' cannot be made by playground .* AttributeError: no 'find"
    ):
        envs.make("playground/ReacherEasy")


def test_playground_downloads_nothing_for_us(playground, monkeypatch, tmp_path):
    monkeypatch.setattr(sys.modules["mujoco_playground._src.mjx_env"], "MENAGERIE_PATH", tmp_path / "none")
    for name in ("Go1JoystickFlatTerrain", "PandaPickCube"):
        with pytest.raises(UserError, match=rf"'playground/{name}' needs robot models that Playground downloads"):
            envs.make(f"playground/{name}")


@pytest.mark.parametrize("mode", ["dict_state", "dict_pixels"])
def test_environments_of_several_observations_are_told(mode, brax_envs, monkeypatch):
    plain = brax_envs._envs["fast"]
    monkeypatch.setitem(brax_envs._envs, "several", lambda: plain(obs_mode=mode))
    with pytest.raises(UserError, match=r"task 'brax/several': .* must be the length of one vector, got \{'"):
        envs.make("brax/several")


def test_an_environment_that_observes_an_image_is_told(brax_envs, monkeypatch):
    class Image(brax_envs._envs["fast"]):
        def reset(self, rng):
            return super().reset(rng).replace(obs=jnp.zeros((8, 8, 3)))

    monkeypatch.setitem(brax_envs._envs, "image", Image)
    with pytest.raises(UserError, match=r"must be the length of one vector, got \(8, 8, 3\)"):
        envs.make("brax/image")


def test_an_environment_that_cannot_be_stepped_is_told(brax_envs, monkeypatch):
    class Broken(brax_envs._envs["fast"]):
        def step(self, state, action):
            raise TypeError("a function was\nrenamed")

    monkeypatch.setitem(brax_envs._envs, "broken", Broken)
    with pytest.raises(UserError) as told:
        envs.make("brax/broken")
    assert str(told.value).startswith("'brax/broken' cannot be made by brax 0.14.")
    assert str(told.value).endswith("with the packages installed: TypeError: a function was")


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [("brax/ant", "brax", "brax"), ("playground/CheetahRun", "mujoco_playground", "playground")],
)
def test_a_missing_package_is_told(name, module, extra, monkeypatch):
    for loaded in [loaded for loaded in sys.modules if loaded.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"tasks {extra}/NAME need .*: pip install 'jaxmbrl\[{extra}\]'"):
        envs.make(name)


def test_analytic_tasks_import_neither_them_nor_mujoco():
    code = "import sys; from jaxmbrl import envs; envs.make('pendulum'); print([m for m in sys.modules if %s])"
    code %= "'brax' in m or 'mujoco' in m"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.slow
@pytest.mark.parametrize("name", [BRAX, "playground/PendulumSwingup"])
def test_an_agent_trains_and_is_resumed(name, tmp_path):
    """In a run folder: its checkpoints hold the package's states."""
    pytest.importorskip("brax.envs" if name == BRAX else "mujoco_playground")
    trained = jaxmbrl.train("sac", name, settings=SETTINGS, steps=60, action_repeat=2, out=tmp_path / "run")
    assert (trained.task.episode_length, len(trained.rows)) == (500, 2)
    assert np.isfinite(trained.rows[-1]["agent/critic_loss"])
    resumed = jaxmbrl.resume(tmp_path / "run", steps=90)
    assert [row["env_steps"] for row in resumed.rows] == [30, 60, 90]
    assert jaxmbrl.evaluate(tmp_path / "run", 1).returns.shape == (1, 1)


@pytest.mark.promises
def test_an_agent_trains_on_an_environment_of_braxs(brax_envs):
    trained = jaxmbrl.train("sac", "brax/fast", settings=SETTINGS, steps=60, seeds=2)
    rows = [row for row in trained.rows if row["env_steps"] == 60]
    assert len(rows) == 2 and all(np.isfinite(row["agent/critic_loss"]) for row in rows)
    replay = trained.state.experience.own
    moved = np.asarray(replay.data.next_observation - replay.data.observation)[:, :60]
    np.testing.assert_allclose(moved[..., 1], np.where(np.asarray(replay.data.action)[:, :60, 0] > 0, 0.02, 0), atol=1e-6)
