"""The MuJoCo tasks against Gymnasium's own, which run C MuJoCo in float64."""

import copy
import functools
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
import scipy.stats

from jaxmbrl import envs
from jaxmbrl.rollout import Episode, auto_reset, rollout
from jaxmbrl.types import Policy

NAMES = ["InvertedPendulum-v5", "Hopper-v5", "HalfCheetah-v5"]
FALLS = ["InvertedPendulum-v5", "Hopper-v5"]
SLOW = ["InvertedPendulum-v5", *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[1:])]
NOISE = {"InvertedPendulum-v5": 0.01, "Hopper-v5": 5e-3, "HalfCheetah-v5": 0.1}
TERMS = {
    "InvertedPendulum-v5": ["reward_survive"],
    "Hopper-v5": ["reward_forward", "reward_ctrl", "reward_survive"],
    "HalfCheetah-v5": ["reward_forward", "reward_ctrl"],
}
RECORDED = {"HalfCheetah-v5": 150}
"""Steps after which a recorded episode that did not terminate is left for another."""
STEPS = 1000


class Recorded(NamedTuple):
    """Gymnasium's steps, one a row, each from the state in which the running simulation was."""

    qpos: np.ndarray
    qvel: np.ndarray
    warmstart: np.ndarray
    action: np.ndarray
    observation: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    next_qpos: np.ndarray
    next_qvel: np.ndarray
    contacts: np.ndarray
    terms: np.ndarray
    solved: np.ndarray
    """Next positions and velocities where C MuJoCo's solver runs to its end, instead of stopping at its tolerance."""


@pytest.fixture(scope="module", autouse=True)
def own_caches():
    """MJX's tables stay in JAX's caches at the float width of their first use, which another width cannot compile with."""
    jax.clear_caches()


@functools.cache
def gym(name: str) -> gymnasium.Env:
    heard = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda message: None)  # else it goes to a log file in the working folder
    try:
        return gymnasium.make(name, disable_env_checker=True)
    finally:
        mujoco.set_mju_user_warning(heard)


@functools.cache
def recorded(name: str, reach: float = 1.0) -> Recorded:
    """Steps of random policies: in turn, an episode of small noise, of uniform actions and of held extreme ones."""
    env = gym(name)
    model, data = env.unwrapped.model, env.unwrapped.data
    scale = model.actuator_ctrlrange[:, 1]
    patient, solved = copy.copy(model), mujoco.MjData(model)
    patient.opt.tolerance, patient.opt.iterations = 0.0, 20
    rng = np.random.default_rng(0)
    rows, episode, elapsed = [], 0, 0
    env.reset(seed=0)
    while len(rows) < STEPS:
        if episode % 3 == 0:
            action = rng.normal(0.0, 0.3, model.nu)
        elif episode % 3 == 1:
            action = rng.uniform(-reach, reach, model.nu)
        elif elapsed % 7 == 0:
            action = reach * rng.choice([-1.0, 1.0], model.nu)
        before = (data.qpos.copy(), data.qvel.copy(), data.qacc_warmstart.copy(), action)
        observation, reward, terminated, truncated, info = env.step(action * scale)
        after = (data.qpos.copy(), data.qvel.copy(), data.ncon, [info[term] for term in TERMS[name]])
        solved.qpos[:], solved.qvel[:], solved.qacc_warmstart[:], solved.ctrl[:] = *before[:3], action * scale
        mujoco.mj_step(patient, solved, nstep=env.unwrapped.frame_skip)
        rows.append((*before, observation, reward, terminated, *after, np.concatenate([solved.qpos, solved.qvel])))
        elapsed += 1
        if terminated or truncated or elapsed == RECORDED.get(name):
            episode, elapsed = episode + 1, 0
            env.reset(seed=episode)
    assert episode >= 3
    return Recorded(*(np.array(column) for column in zip(*rows, strict=True)))


def as_numpy(state) -> SimpleNamespace:
    fields = {name: getattr(state, name) for name in ("obs", "reward", "done", "metrics", "info")}
    fields |= {name: getattr(state.pipeline_state, name) for name in ("qpos", "qvel", "qacc_warmstart")}
    return SimpleNamespace(**jax.tree.map(np.asarray, fields))


class Case:
    """A task at one float width, with its step compiled for a batch and for one."""

    def __init__(self, name: str, x64: bool) -> None:
        self.x64 = x64
        with jax.enable_x64(x64):
            self.task = envs.make(name)
        self.env = self.task.env
        self._batch = jax.jit(jax.vmap(self._one))
        self._single = jax.jit(self._one)

    def _one(self, qpos, qvel, warmstart, action):
        state = self.env.state_at(qpos, qvel)
        simulation = state.pipeline_state.replace(qacc_warmstart=warmstart)
        state = state.replace(
            pipeline_state=simulation, info={"theirs": qpos[0]}, metrics={**state.metrics, "theirs": qvel[0]}
        )
        return self.env.step(state, action)

    def step(self, rows: Recorded, batch: bool = True):
        with jax.enable_x64(self.x64):
            origin = [jnp.asarray(x, float) for x in (rows.qpos, rows.qvel, rows.warmstart, rows.action)]
            return as_numpy((self._batch if batch else self._single)(*origin))


@functools.cache
def case(name: str, x64: bool = True) -> Case:
    return Case(name, x64)


@functools.cache
def stepped(name: str, reach: float = 1.0):
    return case(name).step(recorded(name, reach))


EARLY = {"InvertedPendulum-v5": 1e-6, "Hopper-v5": 1e-6, "HalfCheetah-v5": 2e-6}
"""How far C MuJoCo is from its own solution where its solver stopped early, at most."""


def assert_equal_steps(state, rows: Recorded, name: str) -> np.ndarray:
    """To 1e-8 the same as Gymnasium's; where C MuJoCo's solver stopped early, farther from its own solution than that, the
    same as its solution. Returns where it did not."""
    ours = np.concatenate([state.qpos, state.qvel], axis=1)
    np.testing.assert_allclose(ours, rows.solved, rtol=0, atol=1e-9)
    np.testing.assert_array_equal(state.done, rows.terminated.astype(float))
    theirs = np.concatenate([rows.next_qpos, rows.next_qvel], axis=1)
    finished = np.abs(theirs - rows.solved).max(axis=1) < 1e-9
    assert finished.mean() > 0.99
    compared = {"state": (ours, theirs), "obs": (state.obs, rows.observation), "reward": (state.reward, rows.reward)}
    compared |= {term: (state.metrics[term], rows.terms[:, i]) for i, term in enumerate(TERMS[name])}
    for what, (mine, reference) in compared.items():
        np.testing.assert_allclose(mine[finished], reference[finished], rtol=0, atol=1e-8, err_msg=what)
        np.testing.assert_allclose(mine, reference, rtol=0, atol=EARLY[name], err_msg=what)
    return finished


@pytest.mark.parametrize("name", NAMES)
def test_a_step_is_gymnasiums(name):
    rows, state = recorded(name), stepped(name)
    assert state.obs.dtype == state.reward.dtype == state.qpos.dtype == np.float64
    assert (3 if name in FALLS else 0) <= rows.terminated.sum() < (STEPS / 2 if name in FALLS else 1)
    if name != "InvertedPendulum-v5":
        assert (rows.contacts > 0).sum() > STEPS / 3
        assert np.abs(rows.next_qvel).max() > 10.5  # beyond what the observation shows
    finished = assert_equal_steps(state, rows, name)
    # C MuJoCo's solver reaches its solution on all of these states, but for one of the cheetah's.
    assert (~finished).sum() == (name == "HalfCheetah-v5")
    np.testing.assert_allclose(state.obs[finished], rows.observation[finished], rtol=0, atol=1e-8)
    np.testing.assert_allclose(state.reward[finished], rows.reward[finished], rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_without_the_running_warm_start_is_gymnasiums(name):
    rows = recorded(name)
    state = case(name).step(rows._replace(warmstart=np.zeros_like(rows.warmstart)))
    assert_equal_steps(state, rows, name)


@pytest.mark.parametrize("name", NAMES)
def test_actions_out_of_range_are_clamped_but_cost_as_they_come(name):
    rows, state = recorded(name, 3.0), stepped(name, 3.0)
    assert np.abs(rows.action).max() > 2.5
    assert_equal_steps(state, rows, name)
    clamped = case(name).step(rows._replace(action=rows.action.clip(-1, 1)))
    np.testing.assert_array_equal(clamped.obs, state.obs)
    if name != "InvertedPendulum-v5":
        outside = (np.abs(rows.action) > 1).any(axis=1)
        assert (clamped.reward[outside] > state.reward[outside]).all()


@pytest.mark.parametrize("name", NAMES)
def test_known_functions_agree_with_the_steps(name):
    task, rows, state = case(name).task, recorded(name), stepped(name)
    with jax.enable_x64(True):
        np.testing.assert_array_equal(task.terminated(jnp.asarray(state.obs)), rows.terminated)
        if task.reward is not None:
            known = task.reward(jnp.asarray(rows.observation), jnp.asarray(rows.action), jnp.asarray(state.obs))
            np.testing.assert_array_equal(known, rows.reward)
    assert (task.reward is None) == (name != "InvertedPendulum-v5")


def test_termination_at_the_bounds():
    pendulum, hopper = case("InvertedPendulum-v5").task.terminated, case("Hopper-v5").task.terminated
    upright = jnp.zeros(4)
    assert [bool(pendulum(upright.at[1].set(angle))) for angle in (0.19, -0.19, 0.21, -0.21)] == [False, False, True, True]
    assert bool(pendulum(upright.at[0].set(jnp.inf))) and bool(pendulum(upright.at[1].set(jnp.nan)))
    standing = jnp.zeros(11).at[0].set(1.25)
    changes = [(0, 1.25), (0, 0.71), (1, 0.19), (1, -0.19), (4, 99.0), (10, -99.0)]
    assert not any(bool(hopper(standing.at[i].set(value))) for i, value in changes)
    changes = [(0, 0.7), (0, jnp.inf), (1, 0.21), (1, -0.21), (4, 101.0), (10, -101.0), (0, jnp.nan), (7, jnp.nan)]
    assert all(bool(hopper(standing.at[i].set(value))) for i, value in changes)


@pytest.mark.parametrize("name", NAMES)
def test_steps_are_pure_and_keep_what_others_store(name):
    rows, state = recorded(name), stepped(name)
    again = case(name).step(rows)
    jax.tree.map(np.testing.assert_array_equal, vars(again), vars(state))
    np.testing.assert_array_equal(state.info["theirs"], rows.qpos[:, 0])
    np.testing.assert_array_equal(state.metrics["theirs"], rows.qvel[:, 0])


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_a_batch_is_its_members_one_by_one(name):
    rows, state = recorded(name), stepped(name)
    for i in range(0, STEPS, 100):
        one = case(name).step(Recorded(*(column[i] for column in rows)), batch=False)
        member = jax.tree.map(lambda x, i=i: x[i], vars(state))
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-11), vars(one), member)


@pytest.mark.parametrize("name", NAMES)
def test_resets_are_gymnasiums(name):
    task, env, noise = case(name).task, gym(name), NOISE[name]
    model = env.unwrapped.model
    with jax.enable_x64(True):
        state = as_numpy(jax.vmap(task.env.reset)(jax.random.split(jax.random.key(0), 2000)))
    offset = np.concatenate([state.qpos - model.qpos0, state.qvel], axis=1)
    assert offset.shape == (2000, model.nq + model.nv)
    uniform, normal = scipy.stats.uniform(-noise, 2 * noise), scipy.stats.norm(0.0, noise)
    for i, coordinate in enumerate(offset.T):
        law = normal if name == "HalfCheetah-v5" and i >= model.nq else uniform
        assert scipy.stats.kstest(coordinate, law.cdf).pvalue > 1e-4
        assert np.abs(coordinate).max() <= noise or law is normal
    assert np.abs(np.corrcoef(offset.T) - np.eye(offset.shape[1])).max() < 0.1
    assert not state.qacc_warmstart.any() and not state.reward.any() and not state.done.any()
    assert set(state.metrics) == set(TERMS[name])
    env.reset(seed=0)
    assert not env.unwrapped.data.qacc_warmstart.any()
    for i in range(5):
        env.unwrapped.set_state(state.qpos[i], state.qvel[i])
        np.testing.assert_array_equal(state.obs[i], env.unwrapped._get_obs())


@pytest.mark.parametrize("name", NAMES)
def test_state_at_given_coordinates(name):
    env = case(name).env
    nq, nv = env.mj_model.nq, env.mj_model.nv
    with jax.enable_x64(True):
        qpos, qvel = jnp.linspace(0.1, 0.9, nq), jnp.linspace(-20.0, 20.0, nv)
        state = env.state_at(qpos, qvel)
        np.testing.assert_array_equal(state.pipeline_state.qpos, qpos)
        np.testing.assert_array_equal(state.pipeline_state.qvel, qvel)
        assert state.obs.shape == (env.observation_size,)
        with pytest.raises(AssertionError):
            env.state_at(qpos[:-1], qvel)
        with pytest.raises(AssertionError):
            env.step(state, jnp.zeros(env.action_size + 1))


@pytest.mark.parametrize("name", NAMES)
def test_task_has_gymnasiums_shapes_and_limits(name):
    task, env = case(name).task, gym(name)
    assert task.episode_length == env.spec.max_episode_steps == 1000
    assert task.observation.shape == env.observation_space.shape
    assert task.action.shape == env.action_space.shape
    assert (task.action.low, task.action.high) == (-1.0, 1.0)
    assert task.env.dt == pytest.approx(env.unwrapped.dt, rel=1e-12)


def run_python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_analytic_tasks_do_not_import_mujoco():
    code = "import sys; from jaxmbrl import envs; envs.make('pendulum'); print([m for m in sys.modules if 'mujoco' in m])"
    assert run_python(code).strip() == "['jaxmbrl.envs.mujoco']"


def test_import_is_silent_but_for_what_others_print(tmp_path):
    make = "from jaxmbrl.envs.mujoco import import_mjx; import_mjx(); print('end')"
    assert run_python(make) == "end\n"
    (tmp_path / "warp.py").write_text("print('their words')\nraise ImportError('broken')\n")
    heard = run_python(make, PYTHONPATH=str(tmp_path)).splitlines()
    assert heard[0] == "their words" and "Failed to import warp: broken" in heard and heard[-1] == "end"


@pytest.fixture(scope="module")
def float32():
    """The tests above compile in float64; those below come last, so that caches are cleared between the two but once."""
    jax.clear_caches()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_float32_stays_near(name, float32):
    rows = recorded(name)
    state = case(name, x64=False).step(rows)
    assert state.obs.dtype == state.qacc_warmstart.dtype == np.float32
    error = np.abs(state.obs - rows.observation).max()
    print(f"{name}: one step in float32 differs by at most {error:.1e}")
    assert 0 < error < {"InvertedPendulum-v5": 2e-6, "Hopper-v5": 1e-4, "HalfCheetah-v5": 1e-2}[name]
    near_threshold = np.abs(np.abs(rows.next_qpos[:, [2 if name == "Hopper-v5" else 1]]) - 0.2).min(axis=1) < 1e-5
    agree = (state.done > 0) == rows.terminated
    assert agree[~near_threshold].all()


@pytest.mark.slow
@pytest.mark.parametrize("name", FALLS)
def test_time_limit_and_falls_end_episodes(name, float32):
    """Two steps before its time limit an upright start runs out of time; a falling one terminates at once."""
    task = case(name, x64=False).task
    idle = Policy(lambda key: (), lambda memory, observation, key: (jnp.zeros(task.env.action_size), (), memory))
    world, policy = auto_reset(task.world, idle)
    lean = 2 if name == "Hopper-v5" else 1
    qpos = jnp.stack([jnp.asarray(task.env.mj_model.qpos0, float)] * 2).at[1, lean].set(0.21)
    nv = task.env.mj_model.nv
    carry = jax.vmap(
        lambda q: Episode((task.env.state_at(q, jnp.zeros(nv)), jnp.asarray(998, jnp.int32)), jnp.ones((), bool))
    )(qpos)
    run = jax.jit(jax.vmap(lambda carry, key: rollout(world, policy, (carry, ()), key, 4)))
    (last, _), seen = run(carry, jax.random.split(jax.random.key(1), 2))
    np.testing.assert_array_equal(seen.truncated, [[False, True, False, False], [False] * 4])
    np.testing.assert_array_equal(seen.terminated, [[False] * 4, [True, False, False, False]])
    np.testing.assert_array_equal(last.carry[1], [2, 3])
    continued = np.abs(np.asarray(seen.observation[:, 1:] - seen.next_observation[:, :-1])).max(axis=-1) == 0
    np.testing.assert_array_equal(continued, [[True, False, True], [False, True, True]])
    start = task.env.state_at(qpos[0], jnp.zeros(nv)).obs
    for fresh in (seen.observation[0, 2], seen.observation[1, 1]):
        assert 0 < np.abs(np.asarray(fresh - start)).max() <= NOISE[name] + 1e-6
