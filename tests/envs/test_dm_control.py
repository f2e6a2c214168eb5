"""The tasks of DeepMind Control that are written out, against dm_control itself, which runs C MuJoCo, in float64."""

import functools

import dm_control_steps as theirs
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxmbrl import envs
from jaxmbrl.core.config import UserError
from jaxmbrl.envs.dmc.rewards import tolerance

N = 2000
CARTPOLE = ["balance", "balance-sparse", "swingup", "swingup-sparse"]
NAMES = [
    *(f"dmc/cartpole-{task}" for task in CARTPOLE),
    *("dmc/pendulum-swingup", "dmc/reacher-easy", "dmc/reacher-hard"),
    *("dmc/acrobot-swingup", "dmc/acrobot-swingup-sparse", "dmc/point_mass-easy", "dmc/point_mass-hard"),
]
HIGHEST = {
    "cartpole": [1.9, 7.0, 3.0, 12.0],
    "pendulum": [12.0, 12.0],
    "reacher": [12.0, 2.9, 12.0, 12.0],
    "acrobot": [7.0, 7.0, 12.0, 12.0],
    "point_mass": [0.31, 0.31, 0.5, 0.5],
}
"""Of the domain: the largest position and velocity of the states, each."""


def domain(name):
    return name.removeprefix("dmc/").partition("-")[0]


@functools.cache
def cases(name):
    """(coordinates, actions): uniform, and a tenth near the goal, where the sparse rewards change."""
    rng, highest = np.random.default_rng(0), np.array(HIGHEST[domain(name)])
    states = rng.uniform(-1, 1, (N, len(highest))) * highest
    actions = rng.uniform(-1.3, 1.3, (N, envs.make(name).action.shape[0]))
    near = slice(0, N // 10)
    if domain(name) == "point_mass":
        directions = rng.normal(size=(N, 4)) if name == "dmc/point_mass-hard" else np.tile(np.eye(2).ravel(), (N, 1))
        states[near] *= 0.1
        return np.concatenate([states, directions], -1), actions
    if domain(name) != "reacher":
        states[near] *= 0.15 / highest
        return states, actions
    angle, distance = rng.uniform(0, 2 * np.pi, N), rng.uniform(0.05, 0.2, N)
    target = np.stack([np.cos(angle), np.sin(angle)], -1) * distance[:, None]
    directions = np.cumsum(states[:, :2], -1)
    finger = 0.12 * np.stack([np.cos(directions).sum(-1), np.sin(directions).sum(-1)], -1)
    states[near, 2:] *= 0.05
    target[near] = (finger + rng.uniform(-0.06, 0.06, (N, 2)))[near]
    return np.concatenate([states, target], -1), actions


@functools.cache
def reference(name):
    states, actions = cases(name)

    def prepare(physics, i):
        if domain(name) == "reacher":
            physics.named.model.geom_pos["target", ["x", "y"]] = states[i, 4:]
        if domain(name) == "point_mass":
            physics.model.wrap_prm[:] = states[i, 4:]

    return theirs.steps(name, states[:, : len(HIGHEST[domain(name)])], actions, prepare)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_is_dm_controls(x64, name):
    rows, due = theirs.ours(name, *cases(name)), reference(name)
    for what in ("observation", "next_observation", "reward"):
        np.testing.assert_allclose(getattr(rows, what), getattr(due, what), rtol=0, atol=1e-12, err_msg=what)
    assert not rows.terminated.any() and not rows.truncated.any()
    assert 0 < due.reward.mean() < 1 and due.reward.std() > 0.04
    known = jax.jit(envs.make(name).reward)(due.observation, due.action, due.next_observation)
    np.testing.assert_allclose(known, due.reward, rtol=0, atol=1e-12)


def test_limits_act_in_some_of_the_states():
    assert (np.abs(cases("dmc/cartpole-swingup")[0][:, 0]) > 1.8).sum() > 50
    assert (np.abs(cases("dmc/reacher-easy")[0][:, 1]) > np.radians(160)).sum() > 50


@pytest.mark.parametrize(
    ("name", "start", "action", "due", "tolerance"),
    [
        ("dmc/cartpole-swingup", [0, np.pi, 0, 0], [1], [4.866711e-4, 3.142299, 0.0973333, 0.1413382], 5e-7),
        ("dmc/pendulum-swingup", [np.pi / 2, 0], [1], [1.580132, 0.466798], 5e-7),
        ("dmc/reacher-easy", [0, 1, 1, -1, 0, 0], [1, 0.5], [0.0232708, 1.0129493, 1.1635422, 0.6474672, 0, 0], 5e-8),
    ],
)
def test_a_step_in_numbers(x64, name, start, action, due, tolerance):
    env = envs.make(name).env
    after = jax.jit(lambda start, action: env.step(env.state_at(start), action))(
        jnp.array(start, float), jnp.array(action, float)
    )
    np.testing.assert_allclose(after.pipeline_state, due, rtol=0, atol=tolerance)


def test_the_reward_of_the_cartpole_in_numbers(x64):
    after = np.array([1.0, np.cos(0.5), np.sin(0.5), 0.0, 2.0])
    reward = jax.jit(envs.make("dmc/cartpole-swingup").reward)(after, np.array([0.5]), after)
    assert float(reward) == pytest.approx(0.589340, abs=5e-7)


def test_tolerance_is_dm_controls(x64):
    from dm_control.utils import rewards

    x = np.linspace(-4, 4, 161)
    options = [
        ((-1.0, 2.0), 0.0, "gaussian", 0.1),
        ((0.0, 0.0), 2.0, "gaussian", 0.1),
        ((-1.0, 2.0), 0.5, "gaussian", 0.3),
        ((1.5, np.inf), 1.5, "linear", 0.0),
        ((1.5, np.inf), 0.75, "linear", 0.5),
        ((0.0, 0.0), 1.0, "quadratic", 0.0),
    ]
    found = jax.jit(lambda x: [tolerance(x, *option) for option in options])(x)
    for mine, option in zip(found, options, strict=True):
        np.testing.assert_allclose(mine, rewards.tolerance(x, *option), rtol=0, atol=1e-15)
    slopes = jax.jit(jax.vmap(jax.grad(lambda x: tolerance(x, (0.0, 1.0), 1.0))))(x)
    assert np.isfinite(slopes).all()


RESETS = 2000
STARTS = [name for name in NAMES if name != "dmc/reacher-hard" and "sparse" not in name]


@pytest.mark.parametrize("name", STARTS)
def test_resets_are_dm_controls(name):
    """Each coordinate is distributed as dm_control's (Kolmogorov-Smirnov at 0.01 over the number of comparisons in all
    tasks), and so are the parts of the observation; what does not vary there does not vary here; coordinates depend on each
    other as there."""
    due, seen = theirs.resets(name, RESETS)
    state = jax.device_get(jax.jit(jax.vmap(envs.make(name).env.reset))(jax.random.split(jax.random.key(0), RESETS)))
    mine = np.concatenate([state.pipeline_state[:, : due.shape[1]], state.obs], axis=1)
    due = np.concatenate([due, seen], axis=1)
    moving = due.std(axis=0) > 0
    np.testing.assert_array_equal(mine[:, ~moving], due[:, ~moving])
    for own, other in zip(mine[:, moving].T, due[:, moving].T, strict=True):
        assert scipy.stats.ks_2samp(own, other).pvalue > 0.01 / moving.sum() / len(STARTS)
    apart = np.corrcoef(mine[:, moving].T) - np.corrcoef(due[:, moving].T)
    assert np.abs(apart).max() < 0.15
    assert not state.reward.any() and not state.done.any()


@pytest.mark.parametrize("name", NAMES)
def test_tasks_have_dm_controls_shapes_and_limits(name):
    task, env = envs.make(name), theirs.load(name)
    assert task.name == name and task.episode_length == env._step_limit == 1000
    assert task.env.dt == pytest.approx(env.control_timestep(), rel=1e-12)
    spec = env.action_spec()
    assert task.action.shape == spec.shape and (spec.minimum == -1).all() and (spec.maximum == 1).all()
    assert task.observation.shape == theirs.flat(env.reset().observation).shape
    assert len(task.env.observation_names) == task.env.observation_size


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("cartpole_swingup", "did you mean 'dmc/cartpole-swingup' or 'cartpole-swingup'?"),
        ("CartpoleSwingupSparse", "did you mean 'dmc/cartpole-swingup-sparse'?"),
        ("dm_control/cartpole-swingup-v0", "did you mean 'dmc/cartpole-swingup'?"),
        ("dmc_acrobot_swingup", "did you mean 'dmc/acrobot-swingup'?"),
        ("reacher-hard", "did you mean 'dmc/reacher-hard'?"),
        ("dmc/reacher-eassy", "did you mean 'dmc/reacher-easy'?"),
        (
            "dmc/fish-swim",
            "DeepMind Control's fish is not among the tasks, because MJX has no contacts of ellipsoids and boxes",
        ),
        ("Pendulum-v1", "did you mean 'pendulum' or 'gymnasium/Pendulum-v1'?"),
    ],
)
def test_names_of_other_libraries_are_answered(name, answer):
    with pytest.raises(UserError) as caught:
        envs.make(name)
    assert str(caught.value).startswith(f"unknown task '{name}'; {answer}")
