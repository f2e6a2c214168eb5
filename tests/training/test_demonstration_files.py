"""Demonstrations from a file: they are in the first state of each seed, and what does not fit is refused in one line."""

import jax
import numpy as np
import pytest
from command_line import call

from jaxmbrl import envs
from jaxmbrl.agents.exploration import uniform
from jaxmbrl.core.config import UserError
from jaxmbrl.data import dataset
from jaxmbrl.training import programs
from jaxmbrl.training.collecting import collect

TASK = "pendulum"
SETTINGS = {"agent.hidden": [4], "batch_size": 4, "warmup_steps": 10, "replay_capacity": 50, "epoch_steps": 20}


@pytest.fixture(scope="module")
def recorded():
    task = envs.make(TASK)
    return jax.device_get(collect(task, uniform(task.action), 40))


@pytest.fixture
def file(recorded, tmp_path):
    path = tmp_path / "rows.npz"
    dataset.save(path, recorded, TASK)
    return path


def configured(file, algorithm="sac", env=TASK, **settings):
    return programs.configure(algorithm, env, settings=SETTINGS | settings, steps=20, seeds=2, demonstrations=file)


def test_each_seed_has_them_and_a_checkpoint_needs_no_file(recorded, file):
    config = configured(file)
    assert (config.demonstrations, config.demonstrations_rows) == (str(file), 40)
    learning = programs.build(config)
    first = programs.initial(learning, programs.hyper_of({}, config))
    own, held = first.algorithm.experience
    assert held.size.tolist() == [40, 40] and own.size.tolist() == [0, 0]
    for seed in range(2):
        for name in ("observation", "action", "reward", "next_observation", "terminated"):
            np.testing.assert_array_equal(getattr(held.data, name)[seed], getattr(recorded, name))
    file.unlink()
    restored = programs.build(config, learns=False)
    shapes = programs.initial_shapes(restored)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), shapes) == jax.tree.map(lambda x: (x.shape, x.dtype), first)
    with pytest.raises(UserError, match=r"rows\.npz cannot be read"):
        programs.build(config)
    dataset.save(file, jax.tree.map(lambda x: x[:30], recorded), TASK)
    with pytest.raises(UserError, match="is not the file that the run started with; restore that file"):
        programs.build(config)


WRONG = {
    "scaled rewards": (
        lambda rows: {"reward": 10 * rows.reward},
        "'reward' differs from that of pendulum in 40 of 40",
    ),
    "sizes": (
        lambda rows: {name: np.zeros((40, 4), np.float32) for name in ("observation", "next_observation")},
        "the data's 'observation' has rows of shape (4,), pendulum has (3,)",
    ),
    "torques": (lambda rows: {"action": 2 + rows.action}, "'action' must be in [-1, 1]"),
}


@pytest.mark.parametrize("case", WRONG)
def test_rows_that_do_not_fit_are_refused(case, recorded, tmp_path):
    change, message = WRONG[case]
    rows = recorded._replace(**change(recorded))
    path = tmp_path / "wrong.npz"
    np.savez(path, **{name: value for name, value in rows._asdict().items() if name != "extras"})
    with pytest.raises(UserError) as told:
        programs.build(configured(path))
    assert message in str(told.value) and "\n" not in str(told.value)


def test_settings_and_methods_that_do_not_fit(file):
    with pytest.raises(UserError, match=r"replay\.demonstrations must be share unless replay\.kind is prioritized"):
        configured(file, **{"replay.demonstrations": "priorities"})
    with pytest.raises(UserError, match="q-learning does not accept initial transitions or demonstrations"):
        programs.build(programs.configure("q-learning", "dyna-maze")).algorithm.init(jax.random.key(0), {}, ())
    with pytest.raises(UserError, match="holds transitions of pendulum, not of cartpole-continuous"):
        programs.build(configured(file, env="cartpole-continuous"))
    code, _, err = call("train", "sac", "--env", TASK, "--demonstrations", "")
    assert code == 2 and "--demonstrations needs a value: a file of transitions" in err and err.count("\n") == 1
    code, _, err = call("train", "sac", "--env", TASK, "--demonstrations", "nowhere.npz")
    assert code == 2 and "nowhere.npz cannot be read" in err and err.count("\n") == 1
