"""The study of bidirectional trajectories: both errors by hand, and that the study runs."""

import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl.core.types import DynamicsModel, Transition, World

SCRIPT = Path(__file__).parents[2] / "experiments" / "bidirectional.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("bidirectional", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def erring(by, sign):
    """A model of a state that grows by its action, with an error of `by` in each step; backward with the sign -1."""

    def step(carry, action, key):
        following = carry + sign * action + by
        row = (carry, following) if sign > 0 else (following, carry)
        none = jnp.zeros(len(carry), bool)
        return following, Transition(row[0], action, jnp.zeros(len(carry)), row[1], none, none)

    world = World(lambda key: None, lambda origin, key: origin, lambda carry: carry, step)
    return DynamicsModel(None, None, None, lambda state: world)


@pytest.mark.parametrize(("h", "forward", "both"), [(1, 2.5, 1.0), (2, 7.5, 2.5), (5, 38.5, 11.0)])
def test_a_constant_error_of_each_step(script, h, forward, both):
    """e = 0.1, in units of a scale of 2: e^2 / 4 times the numbers of the sums of squares 1 .. 2h and twice 1 .. h."""
    action = jnp.asarray(np.random.default_rng(0).normal(size=(2 * h, 3, 1)), jnp.float32)
    state = jnp.concatenate([jnp.zeros((1, 3, 1)), jnp.cumsum(action, axis=0)])
    none = jnp.zeros((2 * h, 3), bool)
    real = Transition(state[:-1], action, jnp.zeros((2 * h, 3)), state[1:], none, none)
    models, scale, key = (erring(0.1, 1), erring(0.1, -1)), jnp.full(1, 2.0), jax.random.key(0)
    found = script.forward_error(models[0], (), real, h, scale, key)
    np.testing.assert_allclose(found, np.full(3, forward * 0.01 / 4), rtol=1e-4)
    found = script.bidirectional_error(models, ((), ()), real, h, scale, key)
    np.testing.assert_allclose(found, np.full(3, both * 0.01 / 4), rtol=1e-4)


def test_windows_are_within_an_episode(script):
    ended = np.zeros(10, bool)
    ended[4] = True
    numbers = np.arange(10.0)
    rows = Transition(numbers, numbers, numbers, numbers, ended, np.zeros(10, bool))
    found = script.windows_of(rows, 3)
    np.testing.assert_array_equal(found.reward.T, [[0, 1, 2], [6, 7, 8]])
    np.testing.assert_array_equal(script.windows_of(rows, 5).reward.T, [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]])


@pytest.mark.slow
def test_it_runs(script, tmp_path):
    script.main(["--quick", "--seeds", "2", "--steps", "400", "--out", str(tmp_path)])
    told = json.loads((tmp_path / "bidirectional.json").read_text())
    assert set(told["learning"]) == {"mbpo", "bmpo"} and told["learning"]["bmpo"]["steps"] == [200, 400]
    assert told["compared"]["400"]["mbpo"]["improvement"] == 0.5
    assert (tmp_path / "bidirectional.png").stat().st_size > 10_000
