"""The MuJoCo tasks that compile in seconds against Gymnasium's own, which run C MuJoCo in float64; and the tasks' base."""

import os
import subprocess
import sys

import gymnasium_steps as gs
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium_steps import case, recorded, stepped

from jaxmbrl import envs
from jaxmbrl.core.types import Policy
from jaxmbrl.rollout import Episode, auto_reset, rollout

NAMES = [
    "InvertedPendulum-v5",
    *(pytest.param(name, marks=pytest.mark.promises) for name in ("Hopper-v5", "HalfCheetah-v5")),
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("InvertedDoublePendulum-v5", "Reacher-v5", "Swimmer-v5")),
]
FALLS = ["InvertedPendulum-v5", "Hopper-v5"]


@pytest.fixture(scope="module", autouse=True)
def own_caches():
    """MJX's tables stay in JAX's caches at the float width of their first use, which another width cannot compile with."""
    jax.clear_caches()


@pytest.mark.parametrize("name", NAMES)
def test_a_step_is_gymnasiums(name):
    gs.check_step(name)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_without_the_running_warm_start_is_gymnasiums(name):
    gs.check_step_without_warm_start(name)


@pytest.mark.parametrize("name", NAMES)
def test_actions_out_of_range_are_clamped_but_cost_as_they_come(name):
    gs.check_actions_out_of_range(name)


@pytest.mark.parametrize("name", NAMES)
def test_known_functions_agree_with_the_steps(name):
    gs.check_known_functions(name)


@pytest.mark.parametrize("name", NAMES)
def test_resets_are_gymnasiums(name):
    gs.check_resets(name)


@pytest.mark.parametrize("name", NAMES)
def test_state_at_given_coordinates(name):
    gs.check_state_at(name)


@pytest.mark.parametrize("name", NAMES)
def test_task_has_gymnasiums_shapes_and_limits(name):
    gs.check_task(name)


def test_termination_at_the_bounds():
    def found(name, size, height, changes):
        """Of states with one number changed each, whether they are terminated; the first number is `height`."""
        states = np.zeros((len(changes), size), np.float32)
        states[:, 0] = height
        for state, (i, value) in zip(states, changes, strict=True):
            state[i] = value
        return np.asarray(jax.jit(envs.make(name).terminated)(states)).tolist()

    def check(name, size, height, going, ended):
        assert found(name, size, height, going + ended) == [False] * len(going) + [True] * len(ended)

    inf, nan = np.inf, np.nan
    going = [(1, 0.19), (1, -0.19)]
    check("InvertedPendulum-v5", 4, 0.0, going, [(1, 0.21), (1, -0.21), (0, inf), (1, nan)])
    going = [(0, 1.25), (0, 0.71), (1, 0.19), (1, -0.19), (4, 99.0), (10, -99.0)]
    ended = [(0, 0.7), (0, inf), (1, 0.21), (1, -0.21), (4, 101.0), (10, -101.0), (0, nan), (7, nan)]
    check("Hopper-v5", 11, 1.25, going, ended)
    going = [(0, 0.81), (0, 1.99), (1, 0.99), (1, -0.99), (9, 1e9)]
    check("Walker2d-v5", 17, 1.25, going, [(0, 0.8), (0, 2.0), (1, 1.0), (1, -1.0), (0, nan), (1, nan)])
    going = [(0, 0.2), (0, 1.0), (5, 1e9)]
    check("Ant-v5/truncated", 27, 0.75, going, [(0, 0.19), (0, 1.01), (26, inf), (0, nan)])
    check("Humanoid-v5/truncated", 45, 1.4, [(0, 1.01), (0, 1.99)], [(0, 1.0), (0, 2.0), (0, nan)])


@pytest.mark.parametrize("name", NAMES)
def test_steps_are_pure_and_keep_what_others_store(name):
    rows, state = recorded(name), stepped(name)
    again = case(name).step(rows)
    jax.tree.map(np.testing.assert_array_equal, vars(again), vars(state))
    np.testing.assert_array_equal(state.info["theirs"], rows.qpos[:, 0])
    np.testing.assert_array_equal(state.metrics["theirs"], rows.qvel[:, 0])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_batch_is_its_members_one_by_one(name):
    gs.check_batch_of_one(name)


def run_python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.promises
def test_import_is_silent_but_for_what_others_print(tmp_path):
    make = "from jaxmbrl.envs.mujoco.mjx_env import import_mjx; import_mjx(); print('end')"
    assert run_python(make) == "end\n"
    (tmp_path / "warp.py").write_text("print('their words')\nraise ImportError('broken')\n")
    heard = run_python(make, PYTHONPATH=str(tmp_path)).splitlines()
    assert heard[0] == "their words" and "Failed to import warp: broken" in heard and heard[-1] == "end"


@pytest.fixture(scope="module")
def float32():
    """The tests above compile in float64; those below come last, so that caches are cleared between the two but once."""
    jax.clear_caches()


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
        assert 0 < np.abs(np.asarray(fresh - start)).max() <= task.env.reset_noise + 1e-6
