"""One seed of four that meets values that are not finite, in whole runs: the other three do not notice."""

import re

import jax
import numpy as np
import pytest
from command_line import untimed

import jaxmbrl
from jaxmbrl.debug import replaying
from jaxmbrl.training.run_folder import RunFolder

AGENT = {"agent.hidden": [16, 16], "batch_size": 16, "warmup_steps": 100, "replay_capacity": 1000, "epoch_steps": 100}
MODEL = {"ensemble.members": 3, "ensemble.elites": 2, "ensemble.hidden": [16], "ensemble.max_epochs": 3, "refit_every": 50}
SETTINGS = {
    "linear": {"eval_every": 2},
    "sac": {**AGENT, "updates_per_step": 2, "eval_every": 2},
    "mbpo": {**AGENT, **MODEL, "updates_per_step": 2, "rollout_rows": 200, "retain_steps": 200, "eval_every": 2},
    "pets": {
        **MODEL,
        "planner.cem.horizon": 5,
        "planner.cem.population": 100,
        "planner.cem.elites": 4,
        "planner.cem.iterations": 1,
        "particles": 2,
        "warmup_steps": 100,
        "replay_capacity": 1000,
        "epoch_steps": 100,
    },
}
TASKS = {"linear": "pendulum", "sac": "pendulum", "mbpo": "pendulum", "pets": "cartpole-continuous"}
FIRST, BAD = 3, 2
"""The first seed, and the place of the one that breaks."""


def train(algorithm, out, rates):
    return jaxmbrl.train(
        algorithm,
        TASKS[algorithm],
        settings=SETTINGS[algorithm],
        steps=400,
        seeds=4,
        seed=FIRST,
        eval_episodes=2,
        hyper={"learning_rate": rates},
        checkpoint={"every": 1},
        out=out,
    )


def raw(leaf):
    return np.asarray(jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)


@pytest.mark.parametrize(
    "algorithm", ["linear", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sac", "pets", "mbpo"))]
)
def test_three_of_four_seeds_end_as_without_the_fault(algorithm, compile_cache, tmp_path):
    rate = 1e-3
    whole = train(algorithm, tmp_path / "whole", [rate] * 4)
    broken = train(algorithm, tmp_path / "broken", [1e30 if k == BAD else rate for k in range(4)])
    (warning,) = (event for event in RunFolder.open(tmp_path / "broken").read_events() if event["kind"] == "warning")
    assert f"seed {FIRST + BAD} is frozen" in warning["text"]
    assert warning["seed"] == FIRST + BAD and warning["metric"] in warning["text"]
    assert re.search(rf"epoch {warning['epoch']}\b", warning["text"])

    others = [k for k in range(4) if k != BAD]
    jax.tree_util.tree_map_with_path(
        lambda path, a, b: np.testing.assert_array_equal(
            raw(a)[others], raw(b)[others], err_msg=jax.tree_util.keystr(path)
        ),
        whole.state,
        broken.state,
    )
    rows = [[row for row in untimed(run.rows) if row["seed"] != FIRST + BAD] for run in (whole, broken)]
    assert rows[0] == rows[1] and len(rows[0]) == 3 * 4
    frozen = [row.get("frozen", False) for row in broken.rows if row["seed"] == FIRST + BAD]
    assert frozen[-1] and frozen == sorted(frozen)

    if algorithm == "linear":
        # Replays of quick methods have tests of their own.
        return
    report = replaying.debug(tmp_path / "broken")
    assert report is not None and (report.fault.seed, report.fault.what) == (FIRST + BAD, warning["metric"])
    assert report.origin is not None, report.instead
    print("\n".join(replaying.describe(report)))
