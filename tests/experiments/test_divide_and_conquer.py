"""The study of divide and conquer: its penalty by hand, its start states, and that it runs."""

import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl import envs
from jaxmbrl.agents import trust_region
from jaxmbrl.agents.on_policy import ActorParameters

SCRIPT = Path(__file__).parents[2] / "experiments" / "divide_and_conquer.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("divide_and_conquer", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_penalty_by_hand(script):
    """Three linear policies with means k s + b: the mean over the others of the symmetric divergence on their states."""
    task = envs.make("pendulum")
    agent = trust_region.make_agent(trust_region.TRPOConfig(hidden=()), 1, task.action)
    gains, biases, deviations = np.array([0.5, -1.0, 2.0]), np.array([0.0, 0.1, -0.2]), np.array([0.3, 0.5, 1.0])

    def policy(i):
        dense = {"kernel": jnp.full((1, 1), gains[i]), "bias": jnp.full(1, biases[i])}
        return ActorParameters({"params": {"Dense_0": dense}}, jnp.full(1, np.log(deviations[i])))

    states = np.random.default_rng(0).normal(size=(3, 5, 1))
    others = jax.tree.map(lambda *x: jnp.stack(x), *map(policy, range(3)))
    expected = []
    for j in (1, 2):
        distance = (gains[0] - gains[j]) * states[j, :, 0] + biases[0] - biases[j]
        kl = lambda a, b, d=distance: np.log(b / a) + (a**2 + d**2) / (2 * b**2) - 0.5  # noqa: E731
        expected.append(np.mean(kl(deviations[0], deviations[j]) + kl(deviations[j], deviations[0])) / 2)
    found = script.unlike(agent, policy(0), others, jnp.asarray(states), 0)
    assert float(found) == pytest.approx(np.mean(expected), rel=1e-5)


def test_parts_start_in_their_quarter(script):
    task = envs.make("pendulum")
    reset = lambda part, key: script.world_of_part(task, part, 4).reset(key)[0].pipeline_state  # noqa: E731
    keys = jax.random.split(jax.random.key(0), 100)
    angles = jax.jit(jax.vmap(jax.vmap(reset, (None, 0)), (0, None)))(jnp.arange(4), keys)[..., 0]
    for part, of_part in enumerate(np.asarray(angles)):
        low = -np.pi + part * np.pi / 2
        assert low <= of_part.min() < low + 0.2 and low + np.pi / 2 - 0.2 < of_part.max() <= low + np.pi / 2


@pytest.mark.slow
def test_it_runs(script, tmp_path):
    found = script.main(["--quick", "--seeds", "2", "--only", "trpo", "alpha 1", "--out", str(tmp_path)])
    told = json.loads((tmp_path / "divide-and-conquer.json").read_text())["cases"]
    assert told.keys() == found.keys() == {"trpo", "alpha 1"}
    assert all(np.shape(case["returns"]) == (2, 2) for case in told.values())
    assert (tmp_path / "divide-and-conquer.png").exists()
