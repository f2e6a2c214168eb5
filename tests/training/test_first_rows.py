"""Mistakes of an environment that a run recognises in its first transitions."""

import gymnasium
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from slider import Slider

import jaxmbrl
from jaxmbrl import envs
from jaxmbrl.data.dataset import DataWarning
from jaxmbrl.envs.base import initial_state
from jaxmbrl.training.console import Progress
from jaxmbrl.training.hosted import WATCHED, Environments
from jaxmbrl.training.run_folder import RunFolder

LIMIT = 25


class Limited(Slider):
    """A slider that calls a time limit of its own `done`; the state is (position, steps)."""

    observation_size = 2

    def reset(self, rng):
        state = super().reset(rng)
        return initial_state(state.pipeline_state, jnp.append(state.obs, 0.0))

    def step(self, state, action):
        moved = super().step(state, 0.1 * action)
        steps = state.obs[1] + 1
        return moved.replace(obs=jnp.append(moved.obs, steps), done=(steps >= LIMIT).astype(float))


class Clock(gymnasium.Env):
    """Whose observation is a time in seconds, in float64."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, start):
        self.start, self.steps = start, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._seen(), {}

    def step(self, action):
        self.steps += 1
        return self._seen(), 0.0, False, False, {}

    def _seen(self):
        return np.array([np.sin(self.steps), self.start + 0.05 * self.steps])


def test_a_time_limit_that_is_called_done_is_told_after_the_first_thousand_steps(tmp_path, monkeypatch):
    monkeypatch.setitem(envs.TASKS, "limited", lambda: envs.make_task("limited", Limited(), 200))
    settings = {"epoch_steps": 500, "eval_every": 0, "updates_per_step": 1}
    run = tmp_path / "run"
    jaxmbrl.train("linear", "limited", steps=1500, settings=settings, out=run, progress=Progress.silent())
    warnings = [event["text"] for event in RunFolder.open(run).read_events() if event["kind"] == "warning"]
    assert warnings == [
        f"task 'limited': all 40 episodes terminate after exactly {LIMIT} steps, as at a time limit: if it is one, these "
        "rows are truncated and not terminated; values would be learned as if nothing followed"
    ]


@pytest.mark.parametrize(("start", "lost"), [(1.7e9, True), (0.0, False)])
def test_a_clock_of_a_host_environment_that_float32_cannot_hold_is_told(start, lost, recwarn):
    task = envs.from_gymnasium(lambda: Clock(start), "clock", episode_length=1000)
    environments = Environments(task, 2)
    environments.begin(np.zeros(2, np.uint32))
    for _ in range(WATCHED + 5):
        environments.step(np.zeros((2, 1), np.float32), np.zeros(2, np.uint32), np.ones(2, bool))
    environments.close()
    told = [str(warning.message) for warning in recwarn if warning.category is DataWarning]
    assert len(told) == lost
    assert not lost or told[0].startswith("task 'clock': observation 1 is about 1.7e+09, where float32 loses its changes")
