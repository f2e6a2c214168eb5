"""DeepMind Control's tasks on MJX against dm_control itself, which runs C MuJoCo, in float64."""

import functools
from importlib import resources
from pathlib import Path

import dm_control_steps as theirs
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from dm_control_steps import suite

from jaxmbrl import envs

NAMES = [name for name in envs.names() if name.startswith("dmc/") and envs.family(name) == "mujoco"]
ONE_OF_A_MODEL = [
    "dmc/ball_in_cup-catch",
    "dmc/cheetah-run",
    "dmc/finger-spin",
    "dmc/hopper-hop",
    "dmc/humanoid-run",
    "dmc/walker-run",
]
SOUGHT = ["dmc/ball_in_cup-catch", "dmc/finger-spin"]
"""Those that sample starts until nothing touches, which takes seconds to compile."""
RESETS = 1000


@pytest.fixture(scope="module", autouse=True)
def own_caches():
    """MJX's tables stay in JAX's caches at the float width of their first use, which another width cannot compile with."""
    jax.clear_caches()


@functools.cache
def made(name):
    with jax.enable_x64(True):
        return envs.make(name)


@functools.cache
def recorded(name):
    return theirs.recorded(name)


@functools.cache
def stepped(name):
    with jax.enable_x64(True):
        return theirs.simulated(name, recorded(name))


def test_model_files_are_dm_controls():
    ours, folder = resources.files("jaxmbrl.envs") / "assets" / "dmc", Path(suite.__file__).parent
    files = list(Path(str(ours)).rglob("*.xml"))
    assert len(files) == 9
    for path in files:
        assert path.read_bytes() == (folder / path.relative_to(str(ours))).read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_tasks_have_dm_controls_shapes_and_limits(name):
    task, env = made(name), theirs.load(name)
    assert task.name == name and task.episode_length == env._step_limit == 1000
    assert task.env.dt == pytest.approx(env.control_timestep(), rel=1e-12)
    spec = env.action_spec()
    assert task.action.shape == spec.shape and (spec.minimum == -1).all() and (spec.maximum == 1).all()
    assert task.observation.shape == theirs.flat(env.reset().observation).shape
    env.reset()
    np.testing.assert_array_equal(task.env.mj_model.dof_damping, env.physics.model.dof_damping)


def test_the_known_reward_is_dm_controls(x64):
    """On dm_control's observations of states near the goal: upright and fast, in the cup, spinning. Its rewards use the
    height and the speed of the centre of mass that its simulator has."""
    rng = np.random.default_rng(0)
    for name, qpos, spread, speeds in (
        ("dmc/walker-stand", [0.0] * 9, 0.2, 1.0),
        ("dmc/walker-walk", [0.0] * 9, 0.2, 2.0),
        ("dmc/walker-run", [0.0] * 9, 0.2, 8.0),
        ("dmc/hopper-stand", [0.0, 0.0, 0.0, 0.0, -0.3, 0.5, 0.0], 0.4, 2.0),
        ("dmc/hopper-hop", [0.0, 0.0, 0.0, 0.0, -0.3, 0.5, 0.0], 0.4, 3.0),
        ("dmc/cheetah-run", [0.0] * 9, 0.5, 8.0),
        ("dmc/ball_in_cup-catch", [0.0, 0.0, 0.0, 0.35], 0.05, 1.0),
        ("dmc/humanoid-stand", [0.0, 0.0, 1.5, 1.0, *[0.0] * 24], 0.1, 0.5),
        ("dmc/humanoid-walk", [0.0, 0.0, 1.5, 1.0, *[0.0] * 24], 0.1, 1.0),
        ("dmc/humanoid-run", [0.0, 0.0, 1.5, 1.0, *[0.0] * 24], 0.1, 6.0),
        ("dmc/finger-spin", [0.0] * 3, 1.0, 30.0),
        ("dmc/finger-turn-easy", [0.0] * 3, 3.0, 1.0),
        ("dmc/finger-turn-hard", [0.0] * 3, 3.0, 1.0),
    ):
        env, rows = theirs.load(name), []
        env.reset()
        for _ in range(200):
            place, velocity = rng.normal(qpos, spread), rng.normal(0.0, speeds, env.physics.model.nv)
            observation = theirs.place(env, place, velocity)
            action = rng.uniform(-1.3, 1.3, env.physics.model.nu)
            env.physics.set_control(action)
            rows.append((observation, action, env.task.get_reward(env.physics)))
        observation, action, due = (np.array(column) for column in zip(*rows, strict=True))
        assert due.std() > 0.05, name
        known = jax.jit(made(name).reward)(observation, action, observation)
        np.testing.assert_allclose(known, due, rtol=0, atol=1e-12, err_msg=name)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.promises if name in SOUGHT else ()) for name in ONE_OF_A_MODEL]
)
def test_starts_are_dm_controls(x64, name):
    """Each coordinate is distributed as dm_control's (Kolmogorov-Smirnov at 0.01 over the number of comparisons in all
    tasks), and coordinates depend on each other as there."""
    due, _ = theirs.resets(name, RESETS)
    env = made(name).env
    initial = jax.jit(jax.vmap(env.initial))(jax.random.split(jax.random.key(0), RESETS))
    mine = np.concatenate(initial, axis=1)
    moving = due.std(axis=0) > 1e-12
    np.testing.assert_array_equal(mine[:, ~moving], due[:, ~moving])
    if hasattr(env, "_starts"):
        # Starts repeat, so that the test is of what they are sampled from.
        kept = np.zeros((len(env._starts), due.shape[1]))
        kept[:, : env._starts.shape[1]] = env._starts
        assert {row.tobytes() for row in mine} <= {row.tobytes() for row in kept}
        assert len({row.tobytes() for row in mine}) > 0.8 * len(kept)
        mine = kept
    for own, other in zip(mine[:, moving].T, due[:, moving].T, strict=True):
        assert scipy.stats.ks_2samp(own, other).pvalue > 0.01 / moving.sum() / len(ONE_OF_A_MODEL)
    apart = np.corrcoef(mine[:, moving].T) - np.corrcoef(due[:, moving].T)
    assert np.abs(apart).max() < 0.25


def test_the_cheetahs_starts_are_dm_controls_to_the_last_digits():
    from jaxmbrl.envs.mujoco.dmc_cheetah import fallen

    env, model = theirs.load("dmc/cheetah-run", seed=5), made("dmc/cheetah-run").env.mj_model
    joints = np.random.RandomState(5).uniform(*model.jnt_range[model.jnt_limited == 1].T, (3, 6))
    for row in fallen(model, joints):
        env.reset()
        np.testing.assert_allclose(row, np.concatenate([env.physics.data.qpos, env.physics.data.qvel]), atol=1e-12)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.promises if name == "dmc/ball_in_cup-catch" else pytest.mark.slow)
        for name in ONE_OF_A_MODEL
    ],
)
def test_a_step_is_dm_controls(name):
    """To 1e-8 the same as C MuJoCo with its solver run to its end, and as dm_control wherever that is. The finger to
    1e-6, because of states in which both joints rest at their limits under full torques."""
    rows, found = recorded(name), stepped(name)
    finished = np.abs(rows.theirs.qvel - rows.solved.qvel).max(axis=1) < 1e-9
    assert finished.mean() > 0.9 and (rows.contacts > 0).mean() > 0.05
    near = 1e-6 if name == "dmc/finger-spin" else 1e-8
    for what, mine, due, plainly in zip(found._fields, found, rows.solved, rows.theirs, strict=True):
        np.testing.assert_allclose(mine, due, rtol=near, atol=near, err_msg=what)
        np.testing.assert_allclose(mine[finished], plainly[finished], rtol=near, atol=near, err_msg=what)
    with jax.enable_x64(True):
        known = jax.jit(made(name).reward)(rows.theirs.observation, rows.action, rows.theirs.observation)
    np.testing.assert_allclose(known, rows.theirs.reward, rtol=0, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dmc/finger-turn-easy", "dmc/hopper-stand"])
def test_observations_after_a_reset_are_dm_controls(x64, name):
    """Of both the target and the touch sensors, which are not functions of positions."""
    task, env = made(name), theirs.load(name)
    state = jax.jit(jax.vmap(task.env.reset))(jax.random.split(jax.random.key(0), 50))
    turns = "finger" in name
    for i in range(50):
        env.reset()
        if turns:
            angle = float(state.info["target"][i])
            env.physics.named.model.site_pos["target", ["x", "z"]] = 0.2 + 0.13 * np.sin(angle), 0.4 + 0.13 * np.cos(angle)
        due = theirs.place(env, state.pipeline_state.qpos[i], state.pipeline_state.qvel[i])
        np.testing.assert_allclose(state.obs[i], due, rtol=1e-8, atol=1e-8)
    assert not state.reward.any() and not state.done.any()
    if turns:
        assert (
            scipy.stats.kstest(np.asarray(state.info["target"]), scipy.stats.uniform(-np.pi, 2 * np.pi).cdf).pvalue > 0.01
        )


@pytest.mark.promises
def test_the_state_of_a_target_has_the_fields_of_the_interface(x64):
    task = made("dmc/finger-turn-hard")
    state = jax.eval_shape(task.env.reset, jax.random.key(0))
    after = jax.eval_shape(task.env.step, state, task.action.zeros())
    kinds = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)  # noqa: E731
    assert kinds(state) == kinds(after) and state.obs.shape == task.observation.shape
    assert state.obs.dtype == state.info["target"].dtype == jnp.float64
