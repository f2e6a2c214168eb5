"""The study of value expansion: returns by hand, the faults of its models, and it runs."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import linear_quadratic as lq
import numpy as np
import pytest

from jaxmbrl import envs
from jaxmbrl.core.types import Policy

SCRIPT = Path(__file__).parents[2] / "experiments" / "value_expansion.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("value_expansion", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_soft_returns_by_hand(script):
    """Without torque the pendulum stays upright, which costs nothing, or hangs, which costs pi^2 a step. The torque of
    2 N m costs 0.004 and turns the upright one by 0.015 rad, at 0.3 rad/s."""

    def act(memory, observation, key):
        return jnp.zeros(1), jnp.asarray(0.5), memory

    agent = SimpleNamespace(policy_with_entropy=lambda state: Policy(init=None, act=act))
    state = SimpleNamespace(discount=jnp.asarray(0.9))
    rows = SimpleNamespace(
        observation=jnp.array([[1.0, 0, 0], [-1, 0, 0], [1, 0, 0]]),
        action=jnp.array([[0.0], [0], [1]]),
        reward=jnp.zeros(3),
    )

    def returns(horizon):
        task, key = envs.make("pendulum"), jax.random.key(0)
        return script.soft_returns(task, agent, state, rows, key, horizon, repeats=2)

    later = 0.9 + 0.81 + 0.729
    found = jax.jit(returns, static_argnums=0)(3)
    np.testing.assert_allclose(found[:2], [0.5 * later, 0.5 * later - np.pi**2 * (1 + later)], rtol=1e-4)
    found = jax.jit(returns, static_argnums=0)(1)
    np.testing.assert_allclose(found[2], -0.004 + 0.9 * (0.5 - 0.015**2 - 0.1 * 0.3**2), rtol=1e-4)


def test_the_faults_of_a_model(script):
    rows = jnp.arange(100.0, 200.0)[:, None]
    start, action, key = jnp.arange(40.0)[:, None], jnp.ones((40, 1)), jax.random.key(0)

    def step(jumps, bias):
        world = script.faulty(lq.model(), script.Fault(jnp.asarray(jumps), jnp.array([bias])), rows, 50).world(None)
        following, row = jax.jit(world.step)(start, action, key)
        np.testing.assert_array_equal(following, row.next_observation)
        np.testing.assert_array_equal(row.reward, lq.world().step(start, action, key)[1].reward)
        return np.asarray(following[:, 0])

    right = 0.9 * np.arange(40.0) + 0.5
    np.testing.assert_allclose(step(0.0, 0.0), right, rtol=1e-6)
    np.testing.assert_allclose(step(0.0, 3.0), right + 3, rtol=1e-6)
    everywhere = step(1.0, 3.0)
    assert everywhere.min() >= 100 and 140 < everywhere.max() < 150 and len(set(everywhere)) > 20
    assert 5 <= np.sum(step(0.5, 0.0) >= 100) <= 35


def test_the_summary_is_of_the_last_errors(script):
    middle, (low, high) = script.at_end({"error": [[9.0, 1.0], [9.0, 2.0], [9.0, 4.0], [9.0, 100.0]]})
    assert middle == 3 and low == 1 and 4 < high <= 100


@pytest.mark.slow
def test_it_runs_and_draws(script, tmp_path, capsys):
    script.main(["--quick", "--out", str(tmp_path)])
    numbers = json.loads((tmp_path / "value-expansion.json").read_text())
    assert (tmp_path / "value-expansion.png").stat().st_size > 10_000
    models = numbers["models"]
    assert list(models) == ["fitted", "jumps", "biased"]
    for by_name in models.values():
        assert by_name["MVE"]["0"] == by_name["STEVE"]["0"] == models["fitted"]["MVE"]["0"]
        assert all(np.shape(case["error"]) == (2, 2) for case in by_name["MVE"].values())
        np.testing.assert_allclose(np.sum(by_name["STEVE"]["5"]["weights"], axis=1), 1.0, rtol=1e-4)
    assert models["jumps"]["MVE"]["5"]["error"] != models["fitted"]["MVE"]["5"]["error"]
    assert len([line for line in capsys.readouterr().out.splitlines() if line.startswith("  ") and "[" in line]) == 6
