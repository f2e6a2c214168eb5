"""When to trust the model: the measures by hand and in exact cases, the bounds by hand, and the study runs."""

import functools
import importlib.util
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl import envs
from jaxmbrl.core.types import Policy, Transition, World
from jaxmbrl.distributions import gaussian_log_density
from jaxmbrl.rollout import rollout

SCRIPT = Path(__file__).parents[2] / "experiments" / "when_to_trust_the_model.py"
TASK = envs.make("pendulum")
STARTS = np.array([[1.0, 0.0, 0.5], [-1.0, 0.0, -2.0], [0.6, 0.8, 3.0]], np.float32)
SWING = Policy(lambda key: (), lambda memory, seen, key: (0.1 * seen[..., 2:], (), memory))


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("when_to_trust_the_model", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def exact(script, off=0.0):
    """The true simulator as a model: rows [N, O]; what it tells is `off` by so much, what it goes on from is not."""

    def step(seen, action, key):
        following = script.truth(TASK, seen, action[None])[0]
        never = jnp.zeros(len(seen), bool)
        return following, Transition(seen, action, TASK.reward(seen, action, following), following + off, never, never)

    return World(lambda key: STARTS, lambda origin, key: origin, lambda seen: seen, step)


def test_a_perfect_model_errs_nowhere_along_a_branch(script):
    scale = jnp.array([0.5, 0.5, 2.0])

    @jax.jit
    def compounding(starts, off):
        return script.compounding(TASK, exact(script, off), SWING, starts, scale, jax.random.key(0), 20)

    found = compounding(STARTS, np.zeros(3, np.float32))
    assert found.shape == (20, 3)
    np.testing.assert_allclose(found, 0.0, atol=1e-3)
    # Off by 0.5, 0.5 and 1: by 1, 1 and 0.5 deviations.
    found = compounding(STARTS, np.array([0.5, 0.5, 1.0], np.float32))
    np.testing.assert_allclose(found, math.sqrt((1 + 1 + 0.25) / 3), rtol=1e-3)


def test_the_truth_is_the_simulator_stepped(script):
    actions = np.array([[0.5], [-1.0], [0.25]], np.float32)

    @jax.jit
    def first(actions):
        carry = (TASK.env.state_at(jnp.array([0.3, -1.0])), jnp.zeros((), jnp.int32))
        return carry, script.truth(TASK, TASK.world.observe(carry)[None], actions[:, None])

    carry, seen = first(actions)
    step = jax.jit(TASK.world.step)
    for action, found in zip(actions, np.asarray(seen), strict=True):
        carry, row = step(carry, action, jax.random.key(0))
        np.testing.assert_allclose(found[0], row.next_observation, atol=1e-5)


@functools.cache
def variation(script):
    def of_gaussians(mean, std, other):
        log_density = lambda x: gaussian_log_density(x, other, jnp.log(std))  # noqa: E731
        return script.total_variation(mean, std, log_density, jax.random.key(0))

    return jax.jit(of_gaussians)


@pytest.mark.parametrize("distance", [0.0, 0.5, 2.0, 20.0])
def test_the_total_variation_of_two_gaussians(script, distance):
    rows = 2000
    mean, std = np.zeros((rows, 2), np.float32), np.tile(np.array([[0.5, 2.0]], np.float32), (rows, 1))
    # Apart by `distance` deviations in all, 0.6 and 0.8 of it along the axes.
    other = mean + np.float32(distance) * np.array([0.6, -0.8], np.float32) * std
    found = np.asarray(variation(script)(mean, std, other))
    assert found.shape == (rows,) and float(found.min()) >= 0 and float(found.max()) <= 1
    np.testing.assert_allclose(found.mean(), math.erf(distance / 2 / math.sqrt(2)), atol=5e-3)


def test_the_models_error_is_0_where_it_is_exact_and_a_half_where_one_of_two_members_is_far_off(script):
    mean, blur = np.stack([STARTS, STARTS]), np.array([0.1, 0.1, 0.3], np.float32)
    error = jax.jit(lambda mean: script.model_error(mean, jnp.zeros_like(mean), STARTS, blur, jax.random.key(0)))
    np.testing.assert_allclose(error(mean), 0.0, atol=1e-5)
    mean[1] += 100.0
    np.testing.assert_allclose(error(mean), 0.5, atol=1e-5)


def test_policies_differ_by_what_their_gaussians_do(script):
    def gaussian(mean, seen):
        return jnp.full((len(seen), 1), mean), jnp.full((len(seen), 1), math.log(0.5))

    seen = np.zeros((2000, 3), np.float32)
    shift = jax.jit(lambda old, new: script.policy_shift(gaussian, old, new, seen, jax.random.key(0)))
    np.testing.assert_allclose(np.asarray(shift(0.0, 1.0)).mean(), math.erf(1 / math.sqrt(2)), atol=5e-3)
    np.testing.assert_array_equal(shift(1.0, 1.0), 0.0)


def test_branched_returns_by_hand(script):
    # rewards[h, j]: after h imagined steps from true state j.
    rewards = np.array([[1, 2, 4, 8], [10, 20, 40, 80], [100, 200, 400, 800]], float)[..., None]
    found = script.branched_returns(rewards, 0.5)
    # k = 0: 1 + 2/2 + 4/4 + 8/8. k = 1: 1 + 10/2 + 20/4 + 40/8. k = 2: 1 + 10/2 + 100/4 + 200/8.
    np.testing.assert_allclose(found[:, 0], [4, 16, 56])


def test_with_a_perfect_model_and_the_old_policy_every_branch_has_the_true_return(script):
    world, steps, longest = exact(script), 12, 4

    @jax.jit
    def played(starts):
        _, true = rollout(world, SWING, (starts, ()), jax.random.key(0), steps)
        _, imagined = rollout(world, SWING, (true.observation.reshape(-1, 3), ()), jax.random.key(1), longest + 1)
        return true, imagined

    true, imagined = played(STARTS)
    found = script.branched_returns(np.asarray(imagined.reward).reshape(longest + 1, steps, 3), 0.9)
    wanted = np.einsum("t,tn->n", 0.9 ** np.arange(steps), np.asarray(true.reward))
    np.testing.assert_allclose(found, np.broadcast_to(wanted, found.shape), rtol=1e-4)


def test_the_bounds_by_hand(script):
    assert script.rollout_bound(0.1, 0.2, 0.5, 1.0) == pytest.approx(2.4)
    np.testing.assert_allclose(script.old_policy_bound(0.1, 0.2, np.array([0, 1]), 0.5, 1.0), [1.6, 2.8])
    np.testing.assert_allclose(script.branch_bound(0.1, 0.2, np.array([0, 1]), 0.5, 1.0), [0.8, 1.2])
    assert pytest.approx(9.869604401 + 6.4 + 0.004) == script.R_MAX


def test_the_best_length_is_above_0_exactly_where_the_model_errs_less_than_the_policies_differ(script):
    # 3.2 / 2^k + 0.22 k: 3.2, 1.82, 1.24, 1.06, 1.08, ...
    assert script.best_length(0.8, 0.11, 0.5) == 3
    assert script.best_length(0.3, 0.301, 0.99) == 0 < script.best_length(0.3, 0.29, 0.99)
    every = np.arange(2000)
    assert np.all(np.diff(script.old_policy_bound(0.9, 0.0, every, 0.99)) > 0)


@pytest.mark.slow
def test_the_quick_study_leaves_numbers_and_a_picture(script, tmp_path, capsys):
    script.main(["--quick", "--out", str(tmp_path)])
    assert (tmp_path / "when-to-trust.png").stat().st_size > 10_000
    found = json.loads((tmp_path / "when-to-trust.json").read_text())
    assert len(capsys.readouterr().out.splitlines()) == 5 + len(found["under_later_policies"])
    assert list(found["along_branches"]) == ["400", "800", "1000"]
    first, *later = found["under_later_policies"]
    # The first of the later policies is the old one.
    assert first["policy_shift"] == {"max": 0.0, "mean": 0.0}
    assert all(0 < one["policy_shift"]["mean"] <= one["policy_shift"]["max"] <= 1 for one in later)
    for one in later:
        assert len(one["returns"]["gap_of_branches"]) == 6
        # With a model that is always wrong nothing is best: 2 r_max epsilon_pi / (1 - gamma)^2.
        proper = one["bounds"]["proper"]
        assert proper["best_length"] == 0
        assert proper["theorem_4_3"] == pytest.approx(2e4 * script.R_MAX * one["policy_shift"]["max"])


def test_too_few_steps_are_told(script, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        script.main(["--steps", "800", "--out", str(tmp_path)])
    assert end.value.code == 2 and "at least 1000" in capsys.readouterr().err
