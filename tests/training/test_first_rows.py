"""Mistakes of an environment that a run recognises in its first transitions."""

from types import SimpleNamespace

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from slider import Slider

import jaxmbrl
from jaxmbrl import envs
from jaxmbrl.core.types import Transition
from jaxmbrl.data import replay, sequences
from jaxmbrl.data.dataset import DataWarning
from jaxmbrl.envs.base import initial_state
from jaxmbrl.training import first_rows, programs
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

    def __init__(self, start, dtype):
        self.start, self.steps, self.seen = start, 0, np.zeros(2, dtype)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._seen(), {}

    def step(self, action):
        self.steps += 1
        return self._seen(), 0.0, False, False, {}

    def _seen(self):
        # One array, which is changed in place.
        self.seen[:] = np.sin(self.steps), self.start + 0.05 * self.steps
        return self.seen


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


def rows_of(reward, count=200):
    """Steps of which `reward(observation, action, successor)` is the reward, and the last of which terminates."""
    random = np.random.default_rng(0)
    observation, action = random.normal(size=(count, 2)), random.uniform(-1, 1, (count, 1))
    successor = (observation + 0.1 * action).astype(np.float32)
    observation, action = observation.astype(np.float32), action.astype(np.float32)
    ended = np.arange(count) == count - 1
    paid = reward(observation, action, successor).astype(np.float32)
    return Transition(observation, action, paid, successor, ended, np.zeros(count, bool))


def right(observation, action, successor):
    return 1 - successor[..., 0] ** 2 - 0.05 * action[..., 0] ** 2


@pytest.mark.parametrize(
    "reward",
    [
        lambda o, a, s: -right(o, a, s),
        lambda o, a, s: right(o, 0 * a, s),
        lambda o, a, s: right(o, a, o),
        lambda o, a, s: right(o, a, s) + 2.0 * (o[..., 0] > 2),
        lambda o, a, s: right(o, a, s) + jnp.where(o[..., 0] > 2, jnp.nan, 0),
    ],
    ids=["another sign", "no action", "the observation before", "a rare bonus", "not a number"],
)
def test_a_reward_function_that_differs_from_the_steps_is_told(reward):
    task, rows = envs.make("pendulum")._replace(terminated=None), rows_of(right)
    (text,) = first_rows.known_functions(task._replace(reward=reward), rows)
    error = np.abs(np.nan_to_num(np.asarray(reward(*rows[:2], rows.next_observation)) - rows.reward, nan=np.inf))
    error = error / (1 + np.abs(rows.reward))
    assert text.startswith(
        f"its reward function differs from its steps in {(error > 1e-3).sum()} of 200 rows, most in row "
    )
    assert (
        f"row {error.argmax()}: " in text and f"instead of {rows.reward[error.argmax()]:.6g}; correct the function" in text
    )


def test_right_functions_of_the_observation_are_not_told_of():
    rows = rows_of(right)
    near = rows._replace(reward=rows.reward + np.float32(2e-4) * np.sin(np.arange(200, dtype=np.float32)))
    rare = near._replace(reward=near.reward + np.float32(5e-3) * (np.arange(200) == 7))
    task = envs.make("pendulum")._replace(reward=right, terminated=None)
    for given in (rows, near, rare):
        assert first_rows.known_functions(task, given) == []
    assert first_rows.known_functions(task._replace(reward=None), rows) == []


def test_other_mistakes_in_known_functions_are_told():
    task, rows = envs.make("pendulum")._replace(reward=None), rows_of(right)
    for terminated, message in (
        (
            lambda s: s[..., 0] > 1e9,
            "its terminated function differs from its steps in 1 of 200 rows, most in row 199: 0 inst",
        ),
        (
            lambda s: s > 1e9,
            "its terminated function must return [N] for rows [N], got [200, 2] for N = 200: index the last axis, as next_",
        ),
        (
            lambda s: s[..., 0] if s[0, 0] > 0 else s[..., 1],
            "its terminated function fails on rows [N] with TracerBool",
        ),
    ):
        (text,) = first_rows.known_functions(task._replace(terminated=terminated), rows)
        assert text.startswith(message) and "\n" not in text


def test_a_wrong_reward_function_is_told_after_the_first_thousand_steps(tmp_path, monkeypatch):
    """A slider whose reward is its position, and a function of the observation that is another one."""

    def other(observation, action, next_observation):
        return -next_observation[..., 0]

    monkeypatch.setitem(envs.TASKS, "other", lambda: envs.make_task("other", Slider(), 200, reward=other))
    settings = {"epoch_steps": 500, "eval_every": 0, "updates_per_step": 1}
    with pytest.warns(jaxmbrl.RunWarning) as heard:
        jaxmbrl.train("linear", "other", steps=1000, settings=settings)
    (text,) = [str(warning.message) for warning in heard]
    assert text.startswith("task 'other': its reward function differs from its steps in ")


@pytest.mark.parametrize(
    ("start", "dtype", "lost"),
    [
        (1.7e9, np.float64, "float32 loses its changes by rounding: subtract an offset in the environment, or set JAX_"),
        (1.7e9, np.float32, "float32, which the environment returns, loses its changes by rounding: subtract an offset"),
        (0.0, np.float64, ""),
        (0.0, np.float32, ""),
    ],
)
def test_a_clock_of_a_host_environment_that_float32_cannot_hold_is_told(start, dtype, lost, recwarn):
    task = envs.from_gymnasium(lambda: Clock(start, dtype), "clock", episode_length=1000)
    environments = Environments(task, 2)
    environments.begin(np.zeros(2, np.uint32))
    for _ in range(WATCHED + 5):
        environments.step(np.zeros((2, 1), np.float32), np.zeros(2, np.uint32), np.ones(2, bool))
    environments.close()
    told = [warning for warning in recwarn if warning.category is DataWarning]
    assert [warning.filename for warning in told] == [__file__] * bool(lost)
    assert not lost or str(told[0].message).startswith(f"task 'clock': observation 1 is about 1.7e+09, where {lost}")


def examined(buffer, **task):
    """What is said of a buffer of 1,000 rows of one environment."""
    program = programs.Program(
        config=SimpleNamespace(data=None, settings=SimpleNamespace(num_envs=1, epoch_steps=1000)),
        task=envs.make("pendulum")._replace(**{"reward": None, "terminated": None, **task}),
        algorithm=SimpleNamespace(views=lambda state: SimpleNamespace(replay=state)),
        loop=None,
    )
    return first_rows.examine(program, jax.tree.map(lambda x: jnp.asarray(x)[None], buffer), 1000)


def test_images_that_are_stored_once_are_examined():
    images = np.random.default_rng(0).integers(0, 256, (1001, 4, 4, 1)).astype(np.uint8)
    rows = rows_of(right, 1000)._replace(observation=images[:-1], next_observation=images[1:])
    rows = rows._replace(terminated=np.arange(1, 1001) % LIMIT == 0, reward=np.zeros(1000, np.float32))
    buffer = sequences.init(jax.tree.map(lambda x: x[0], rows), 1, 1000, ends=40)
    buffer = sequences.add(buffer, jax.tree.map(lambda x: jnp.asarray(x)[:, None], rows))
    assert [text.partition(", as at")[0] for text in examined(buffer)] == [
        "task 'pendulum': all 40 episodes terminate after exactly 25 steps"
    ]


def test_digits_that_an_environment_in_jax_has_lost_are_told():
    """From the buffer of the first seed, after the first thousand steps."""
    rows = rows_of(right, 1000)
    far = rows._replace(observation=rows.observation + np.float32(1e9), next_observation=rows.observation + np.float32(1e9))

    def told(rows, **task):
        return examined(replay.of_rows(rows), **task)

    assert told(rows) == []
    texts = told(far)
    assert [text.partition(", where")[0] for text in texts] == [
        f"task 'pendulum': observation {d} is 1e+09 in all rows" for d in range(2)
    ]
    assert texts[0].endswith("smaller changes are lost: subtract an offset in the environment")
    assert told(far, host=lambda: None) == [], "those are examined before their conversion"


@pytest.mark.parametrize("kind", ["replay", "sequences"])
def test_rows_that_a_buffer_had_before_are_not_examined(kind):
    """300 demonstrations whose rewards have another sign than the task's reward function, then 1,000 steps of the task."""
    wrong, rows = rows_of(lambda o, a, s: -right(o, a, s), 300), rows_of(right, 1000)

    def filled(first, then, capacity):
        if kind == "replay":
            buffer = replay.init(jax.tree.map(lambda x: x[0], rows), capacity)
            return replay.add(replay.add(buffer, first), then)
        buffer = sequences.init(jax.tree.map(lambda x: x[0], rows), 1, capacity, ends=capacity)
        # No row continues the one before it: each has a successor of its own.
        first, then = (part._replace(truncated=~part.terminated) for part in (first, then))
        first, then = (jax.tree.map(lambda x: jnp.asarray(x)[:, None], part) for part in (first, then))
        return sequences.add(sequences.add(buffer, first), then)

    assert examined(filled(wrong, rows, 1400), reward=right) == []
    assert (
        "its reward function differs"
        in examined(filled(rows_of(right, 300), rows_of(lambda o, a, s: -right(o, a, s), 1000), 1400), reward=right)[0]
    )
    assert examined(filled(rows, wrong, 1200), reward=right) == [], "the oldest rows are overwritten"
