"""The page on diagnostics does what it says, typed as it is written."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from jaxmbrl import agents, envs
from jaxmbrl.agents import TD3Config
from jaxmbrl.agents.exploration import uniform
from jaxmbrl.training import collecting

PAGE = Path(__file__).parents[2] / "docs" / "diagnostics.md"


@pytest.mark.slow
def test_the_code_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task = envs.make("pendulum")
    agent = agents.make(TD3Config(), 3, 1)
    names = {
        "agent": agent,
        "agent_state": agent.init(jax.random.key(0), {}),
        "rows": collecting.collect(task, uniform(task.action), 1000, seed=2),
        "discount": 0.95,
    }
    code = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(code) == 4
    for block in code:
        exec(block, names)
    drawn = {path.name for path in tmp_path.iterdir()}
    pictures = ("compounding", "imagined", "scatter", "evaluation", "calibration", "bias")
    assert drawn == {f"{name}.png" for name in pictures}
    for name in drawn:
        with Image.open(name) as image:
            assert np.asarray(image.convert("L"), float).std() > 10
    # 58 steps before the time limit of 200 weigh 0.95^59 < 0.05 of the return.
    assert len(names["bias"].q) == 5 * (200 - 58)
    errors = names["errors"]
    assert (errors.scaled_mean[:10] < 0.2 * errors.scaled_persistence[:10]).all()
