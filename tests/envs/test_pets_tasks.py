"""PETS's own tasks against C MuJoCo in float64, with observation and reward written out once more in NumPy."""

import copy
import functools
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
import scipy.stats

from jaxmbrl import envs
from jaxmbrl.envs.mujoco import mjx_env as mujoco_envs
from jaxmbrl.envs.mujoco.pets_arm import hand
from jaxmbrl.envs.mujoco.pets_pusher import BASE as PUSHERS_BASE
from jaxmbrl.envs.mujoco.pets_pusher import REACH as PUSHERS_REACH
from jaxmbrl.envs.mujoco.pets_reacher_3d import BASE, REACH

NAMES = ["pets/HalfCheetah", "pets/Pusher", "pets/Reacher3D"]
COMPILED = [pytest.param(name, marks=pytest.mark.slow if name != "pets/Pusher" else pytest.mark.promises) for name in NAMES]
"""HalfCheetah steps as HalfCheetah-v5 does, and the arm in free space as the one that pushes."""
STEPS = 1000
TORQUE = {"pets/HalfCheetah": 1.0, "pets/Pusher": 2.0, "pets/Reacher3D": 20.0}
SKIP = {"pets/HalfCheetah": 5, "pets/Pusher": 4, "pets/Reacher3D": 2}


class Recorded(NamedTuple):
    """C MuJoCo's steps, one a row, each from the state in which the running simulation was."""

    qpos: np.ndarray
    qvel: np.ndarray
    warmstart: np.ndarray
    action: np.ndarray
    after: np.ndarray
    """Next positions and velocities."""
    solved: np.ndarray
    """The same where solver and search for contacts run to their ends, instead of stopping at their tolerances."""
    contacts: np.ndarray
    """Whether anything touched."""
    rolled: np.ndarray
    """Whether a capsule touched the cylinder, which C MuJoCo seeks to a tolerance of its own."""
    deep: np.ndarray
    """Whether it overlapped by more than the capsule's radius, or lay along a face, where C tells two contacts."""


@pytest.fixture(scope="module", autouse=True)
def own_caches():
    """MJX's tables stay in JAX's caches at the float width of their first use, which another width cannot compile with."""
    jax.clear_caches()


def as_numpy(state) -> SimpleNamespace:
    fields = {name: getattr(state, name) for name in ("obs", "reward", "done", "metrics")}
    fields |= {name: getattr(state.pipeline_state, name) for name in ("qpos", "qvel", "qacc_warmstart")}
    return SimpleNamespace(**jax.tree.map(np.asarray, fields))


class Case:
    """A task in float64, with its step compiled for a batch."""

    def __init__(self, name: str) -> None:
        with jax.enable_x64(True):
            self.task = envs.make(name)
        self.env = self.task.env
        self._batch = jax.jit(jax.vmap(self._one))

    def _one(self, qpos, qvel, warmstart, action):
        state = self.env.state_at(qpos, qvel)
        simulation = state.pipeline_state.replace(qacc_warmstart=warmstart)
        return self.env.step(state.replace(pipeline_state=simulation), action)

    def step(self, rows: Recorded):
        with jax.enable_x64(True):
            return as_numpy(self._batch(*(jnp.asarray(x) for x in rows[:4])))


@functools.cache
def case(name: str) -> Case:
    return Case(name)


@functools.cache
def model(name: str) -> mujoco.MjModel:
    """The task's model with the solver's limits of MuJoCo."""
    found = copy.copy(case(name).env.mj_model)
    found.opt.iterations, found.opt.ls_iterations = 100, 50
    return found


def start(name: str, episode: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    qpos, qvel = model(name).qpos0.copy(), np.zeros(model(name).nv)
    if name == "pets/HalfCheetah":
        return qpos + rng.normal(0, 1e-3, 9), rng.normal(0, 1e-3, 9)
    if name == "pets/Reacher3D":
        return np.concatenate([np.zeros(7), rng.normal([0, 0.25, 0], 0.1)]), qvel
    qpos[7:9] = rng.normal([-0.25, 0.15], 0.025)
    if episode % 2:  # the hand low, and the cylinder between its prongs
        qpos[:2] = rng.uniform(-0.5, 0.5), rng.uniform(0.27, 0.31)
        data = mujoco.MjData(model(name))
        data.qpos[:] = qpos
        mujoco.mj_fwdPosition(model(name), data)
        x, y, _ = data.body("tips_arm").subtree_com + rng.uniform(-0.02, 0.02, 3)
        qpos[7:9] = y + 0.05, x - 0.45
    return qpos, qvel


def touching(model: mujoco.MjModel, data: mujoco.MjData) -> tuple[bool, bool, bool]:
    """(anything, a capsule and the cylinder, these deep or along a face)."""
    if not data.ncon:
        return False, False, False
    kinds = sorted([int(mujoco.mjtGeom.mjGEOM_CAPSULE), int(mujoco.mjtGeom.mjGEOM_CYLINDER)])
    rolled = (np.sort(model.geom_type[data.contact.geom], axis=1) == kinds).all(axis=1)
    pairs, depths = data.contact.geom[rolled], -data.contact.dist[rolled]
    twice = len(set(map(tuple, pairs))) < len(pairs)
    return True, bool(rolled.any()), twice or bool((depths > model.geom_size[pairs.min(axis=1), 0]).any())


@functools.cache
def recorded(name: str) -> Recorded:
    """Steps of random policies: in turn, an episode of small noise, of uniform actions and of held extreme ones."""
    usual, patient = model(name), copy.copy(model(name))
    patient.opt.tolerance, patient.opt.iterations = 0.0, 20
    patient.opt.ccd_tolerance, patient.opt.ccd_iterations = 1e-14, 500
    data, solved = mujoco.MjData(usual), mujoco.MjData(usual)
    rng = np.random.default_rng(0)
    rows, length = [], 50 if name == "pets/Pusher" else 150
    for t in range(STEPS):
        episode, elapsed = divmod(t, length)
        if elapsed == 0:
            mujoco.mj_resetData(usual, data)
            data.qpos[:], data.qvel[:] = start(name, episode, rng)
        if episode % 3 == 0:
            action = rng.normal(0.0, 0.3, usual.nu)
        elif episode % 3 == 1:
            action = rng.uniform(-1, 1, usual.nu)
        elif elapsed % 7 == 0:
            action = rng.choice([-1.0, 1.0], usual.nu)
        before = (data.qpos.copy(), data.qvel.copy(), data.qacc_warmstart.copy(), action)
        for simulation, by in ((solved, patient), (data, usual)):
            simulation.qpos[:], simulation.qvel[:], simulation.qacc_warmstart[:] = before[:3]
            simulation.ctrl[:] = TORQUE[name] * action
            touched = False, False, False
            for _ in range(SKIP[name]):
                mujoco.mj_step(by, simulation)
                touched = tuple(np.logical_or(touched, touching(by, simulation)))
        after = [np.concatenate([simulation.qpos, simulation.qvel]) for simulation in (data, solved)]
        rows.append((*before, *after, *touched))
    return Recorded(*(np.array(column) for column in zip(*rows, strict=True)))


@functools.cache
def stepped(name: str):
    return case(name).step(recorded(name))


def transcribed(name: str, rows: Recorded, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(observations, rewards) of steps that end in the states `after`."""
    nq = rows.qpos.shape[1]
    qpos, qvel = after[:, :nq], after[:, nq:]
    torque = TORQUE[name] * rows.action
    if name == "pets/HalfCheetah":
        speed = (qpos[:, 0] - rows.qpos[:, 0]) / 0.05
        return np.concatenate([speed[:, None], qpos[:, 1:], qvel], axis=1), speed - 0.1 * (torque**2).sum(1)
    data = mujoco.MjData(model(name))
    observations, rewards = [], []
    for at, velocity, u in zip(qpos, qvel, torque, strict=True):
        data.qpos[:] = at
        mujoco.mj_fwdPosition(model(name), data)
        if name == "pets/Reacher3D":
            gap = data.site("grip").xpos - data.body("goal").xpos
            observations.append(np.concatenate([at, velocity[:7]]))
            rewards.append(-(gap**2).sum() - 0.01 * (u**2).sum())
        else:
            tip, cylinder = data.body("tips_arm").subtree_com, data.body("object").xpos
            near, far = np.abs(tip - cylinder).sum(), np.abs(cylinder - data.body("goal").xpos).sum()
            observations.append(np.concatenate([at[:7], velocity[:7], tip, cylinder]))
            rewards.append(-0.5 * near - 1.25 * far - 0.1 * (u**2).sum())
    return np.array(observations), np.array(rewards)


@pytest.mark.parametrize("name", COMPILED)
def test_a_step_is_c_mujocos(name):
    rows, state = recorded(name), stepped(name)
    ours = np.concatenate([state.qpos, state.qvel], axis=1)
    assert state.obs.dtype == state.reward.dtype == np.float64
    assert rows.contacts.sum() > STEPS / 3 or name == "pets/Reacher3D"
    assert not state.done.any()
    assert rows.rolled.sum() > 50 if name == "pets/Pusher" else not rows.rolled.any()
    np.testing.assert_allclose(ours[~rows.deep], rows.solved[~rows.deep], rtol=0, atol=1e-9)
    np.testing.assert_allclose(ours, rows.solved, rtol=0, atol=1e-4)
    assert (rows.rolled & ~rows.deep).sum() > 30 or name != "pets/Pusher"
    finished = ~rows.deep & (np.abs(rows.after - rows.solved).max(axis=1) < 1e-9)
    assert finished[~rows.rolled].mean() > 0.99
    observation, reward = transcribed(name, rows, rows.after)
    np.testing.assert_allclose(state.obs[finished], observation[finished], rtol=0, atol=1e-8)
    np.testing.assert_allclose(state.reward[finished], reward[finished], rtol=0, atol=1e-8)
    observation, reward = transcribed(name, rows, ours)
    np.testing.assert_allclose(state.obs, observation, rtol=0, atol=1e-11)
    np.testing.assert_allclose(state.reward, reward, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", NAMES)
def test_known_rewards_as_transcribed(name):
    task, rows = case(name).task, recorded(name)
    observation, reward = transcribed(name, rows, rows.after)
    with jax.enable_x64(True):
        known = jax.jit(task.reward)(np.zeros_like(observation), rows.action, observation)
    np.testing.assert_allclose(known, reward, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", COMPILED)
def test_known_functions_agree_with_the_steps(name):
    task, rows, state = case(name).task, recorded(name), stepped(name)
    with jax.enable_x64(True):
        action, following = jnp.asarray(rows.action), jnp.asarray(state.obs)
        known = task.reward(jnp.zeros_like(following), action, following)
        np.testing.assert_allclose(known, state.reward, rtol=0, atol=1e-12)
        blocks = task.reward(
            jnp.zeros((2, 5, following.shape[1])), action[:10].reshape(2, 5, -1), following[:10].reshape(2, 5, -1)
        )
        np.testing.assert_allclose(blocks.ravel(), state.reward[:10], rtol=0, atol=1e-12)
        assert not task.terminated(following).any() and task.terminated(following).shape == (STEPS,)
    terms = sum(state.metrics[term] for term in case(name).env.reward_terms)
    np.testing.assert_allclose(terms, state.reward, rtol=0, atol=1e-12)


@pytest.mark.slow
def test_the_goal_never_moves_and_is_called_constant():
    task, rows, state = case("pets/Reacher3D").task, recorded("pets/Reacher3D"), stepped("pets/Reacher3D")
    np.testing.assert_array_equal(state.obs[:, 7:10], rows.qpos[:, 7:])
    assert task.features.constant == (7, 8, 9) and task.features.absolute == ()
    assert case("pets/HalfCheetah").task.features.absolute == (0,)
    assert case("pets/Pusher").task.features is None


def laws(name: str) -> dict[int, scipy.stats.rv_continuous]:
    """The law of each coordinate of [qpos, qvel] that is drawn at a reset, by its number; the others are the model's."""
    if name == "pets/HalfCheetah":
        return {i: scipy.stats.norm(model(name).qpos0[i] if i < 9 else 0.0, 1e-3) for i in range(18)}
    if name == "pets/Reacher3D":
        return {7: scipy.stats.norm(0, 0.1), 8: scipy.stats.norm(0.25, 0.1), 9: scipy.stats.norm(0, 0.1)}
    speeds = {11 + i: scipy.stats.uniform(-5e-3, 1e-2) for i in range(7)}
    return {7: scipy.stats.norm(-0.25, 0.025), 8: scipy.stats.norm(0.15, 0.025), **speeds}


@pytest.mark.parametrize("name", NAMES)
def test_resets_are_petss(name):
    env = case(name).env
    with jax.enable_x64(True):
        state = as_numpy(jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), 20_000)))
    drawn = np.concatenate([state.qpos, state.qvel], axis=1)
    default, law = np.concatenate([model(name).qpos0, np.zeros(env.mj_model.nv)]), laws(name)
    for i, coordinate in enumerate(drawn.T):
        if i in law:
            assert scipy.stats.kstest(coordinate, law[i].cdf).pvalue > 1e-4
        else:
            np.testing.assert_array_equal(coordinate, default[i])
    free = drawn[:, list(law)]
    assert np.abs(np.corrcoef(free.T) - np.eye(len(law))).max() < 0.05
    assert not state.reward.any() and not state.done.any() and not state.qacc_warmstart.any()
    # As if nothing had moved in a step that ends there.
    still = Recorded(*[state.qpos[:200]] * 3, np.zeros((200, env.action_size)), *[drawn[:200]] * 5)
    np.testing.assert_allclose(state.obs[:200], transcribed(name, still, drawn[:200])[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "observation", "action", "steps"),
    [("pets/HalfCheetah", 18, 6, 1000), ("pets/Pusher", 20, 7, 150), ("pets/Reacher3D", 17, 7, 150)],
)
def test_shapes_and_limits(name, observation, action, steps):
    task = case(name).task
    assert (task.observation.shape, task.action.shape, task.episode_length) == ((observation,), (action,), steps)
    assert (task.action.low, task.action.high) == (-1.0, 1.0)
    assert task.env.dt == pytest.approx({"pets/HalfCheetah": 0.05, "pets/Pusher": 0.04, "pets/Reacher3D": 0.02}[name])
    np.testing.assert_array_equal(np.abs(task.env.mj_model.actuator_ctrlrange), TORQUE[name])


@pytest.mark.parametrize("name", ["pets/Pusher", "pets/Reacher3D"])
def test_the_hand_is_where_mujoco_has_it(name):
    """Also beyond the joints' limits, where a limit's softness lets them."""
    base, reach = (PUSHERS_BASE, PUSHERS_REACH) if name == "pets/Pusher" else (BASE, REACH)
    joints = np.random.default_rng(0).uniform(-np.pi, np.pi, (4, 50, 7))
    joints[0, 0] = 0.0
    with jax.enable_x64(True):
        seen = np.asarray(jax.jit(lambda at: hand(at, base, reach))(joints))
    data = mujoco.MjData(model(name))
    for at, mine in zip(joints.reshape(-1, 7), seen.reshape(-1, 3), strict=True):
        data.qpos[:7] = at
        mujoco.mj_fwdPosition(model(name), data)
        theirs = data.site("grip").xpos if name == "pets/Reacher3D" else data.body("tips_arm").subtree_com
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-13)
    stretched = {"pets/Pusher": [0.921, -0.6, 0.0], "pets/Reacher3D": [0.98928, -0.188, 0.0]}[name]
    np.testing.assert_allclose(seen[0, 0], stretched, rtol=0, atol=1e-14)


def test_petss_numbers_in_the_model_files():
    """Those in which the arms differ from each other: masses by hand, of capsules and spheres at 1,000 and 300 kg/m^3."""

    def capsule(radius: float, length: float) -> float:
        return np.pi * radius**2 * length + 4 / 3 * np.pi * radius**3

    reacher, pusher = model("pets/Reacher3D"), model("pets/Pusher")
    forearm = 1000 * (capsule(0.02, 0.2) + capsule(0.05, 0.321))
    finger = capsule(0.01, np.hypot(0.09137, 0.00495)) + capsule(0.01, 0.09137)
    palm = 1000 * (capsule(0.01, 0.04) + capsule(0.05, 0.04) + 2 * finger)
    assert reacher.body("forearm").mass == pytest.approx(forearm, rel=1e-12)
    assert reacher.body("hand").mass == pytest.approx(palm, rel=1e-12)
    assert pusher.body("r_forearm_link").mass == pytest.approx(300 * capsule(0.05, 0.291), rel=1e-12)
    limits = [(-2.2854, 1.714602), (-0.5236, 1.3963), (-3.9, 0.8), (-2.3213, 0), None, (-2.094, 0), None]
    damping = [10, 10, 0.1, 1, 0.1, 0.1, 0.1]
    for i, limit in enumerate(limits):
        assert reacher.jnt_limited[i] == (limit is not None)
        assert limit is None or tuple(reacher.jnt_range[i]) == limit
    np.testing.assert_array_equal(reacher.dof_damping, [*damping, 0, 0, 0])
    np.testing.assert_array_equal(reacher.dof_armature, [*[0.04] * 7, 0, 0, 0])
    limits = [(-2.2854, 2.0), (-0.5236, 1.3963), (-1.5, 1.7), (-2.3213, 0), (-1.5, 1.5), (-1.094, 0), (-1.5, 1.5)]
    np.testing.assert_array_equal(pusher.jnt_range[:7], limits)
    np.testing.assert_array_equal(pusher.dof_damping, [1, 1, *[0.1] * 5, *[0.5] * 4])
    for arm, integrator in ((reacher, mujoco.mjtIntegrator.mjINT_RK4), (pusher, mujoco.mjtIntegrator.mjINT_EULER)):
        assert (arm.opt.timestep, arm.opt.integrator) == (0.01, integrator)
        assert not arm.opt.gravity.any()


def test_levels_are_apart_only_inside(monkeypatch):
    """Also in a step, of which kinematics is the part that is traced here."""
    from mujoco import mjx
    from mujoco.mjx._src import scan

    before = scan.body_tree
    with pytest.raises(ValueError, match="inside"), mujoco_envs.levels_apart():
        assert scan.body_tree is not before
        raise ValueError("inside")
    assert scan.body_tree is before
    env = case("pets/Reacher3D").env
    monkeypatch.setattr(env, "_mjx", SimpleNamespace(step=mjx.kinematics))
    with jax.enable_x64(True):
        state = jax.eval_shape(env.reset, jax.random.key(0))
        traced = jax.make_jaxpr(env.step)(state, np.zeros(7))
    assert str(traced).count("optimization_barrier") >= 7
