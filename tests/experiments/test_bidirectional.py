"""The study of bidirectional trajectories: both errors, the bound and the model errors by hand, and that the study runs."""

import importlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl.core.types import DynamicsModel, Transition, World

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXPERIMENTS)
        yield importlib.import_module("bidirectional")


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


def test_the_bounds_by_hand(script):
    """k1 = k2 = 2, gamma = .5, epsilon_pi = .1, epsilon_m = .3, r_max = 2."""
    behind = 0.5**5 * 0.1 / 0.25 + 0.5**4 * 0.1 / 0.5
    for n in (2, 4):
        assert script.bound((2, 2), n, 0.1, 0.3, 2.0, discount=0.5) == pytest.approx(4 * (behind + n * 0.3 / 0.5))


def test_model_errors_are_those_of_the_successor_and_of_the_predecessor(script):
    """Two equal members without variance that miss by d, in units of the resolution: 2 Phi(d / 2) - 1, .3829 for d = 1."""
    observation = jnp.asarray(np.random.default_rng(0).normal(size=(4000, 1)), jnp.float32)
    action, none = jnp.ones((4000, 1)), jnp.zeros(4000, bool)
    rows = Transition(observation, action, jnp.zeros(4000), observation + action, none, none)

    def missing(sign, by):
        def predict(state, seen, acted):
            mean = jnp.broadcast_to(seen + sign * acted + by, (2, *seen.shape))
            # A second column, the reward, is left out.
            return jnp.concatenate([mean, mean], axis=-1), jnp.zeros((2, len(seen), 2))

        return DynamicsModel(None, None, predict, None)

    blur = jnp.full(1, 0.1)
    found = script.model_errors((missing(1, 0.1), missing(-1, 0.0)), ((), ()), rows, blur, jax.random.key(0))
    np.testing.assert_allclose(found, [0.3829, 0.0], atol=0.01)


@pytest.mark.slow
def test_it_runs(script, tmp_path):
    script.main(["--quick", "--seeds", "2", "--steps", "400", "--out", str(tmp_path)])
    script.main(["--quick", "--errors", "Hopper-v5", "--cases", "--out", str(tmp_path)])
    told = json.loads((tmp_path / "bidirectional.json").read_text())
    assert set(told["error"]) == {"pendulum", "Hopper-v5"}
    assert all(of["bound, forward"] > of["bound, bidirectional"] for of in told["error"].values())
    learned = told["learning"]["pendulum"]
    assert set(learned) == {"mbpo", "bmpo"} and learned["bmpo"]["steps"] == [200, 400]
    assert told["compared"]["pendulum"]["400"]["mbpo"]["improvement"] == 0.5
    assert (tmp_path / "bidirectional.png").stat().st_size > 10_000
