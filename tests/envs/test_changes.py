"""What was changed on a Gymnasium environment that is given in the place of a task, and would be lost."""

import types

import numpy as np
import pytest

from jaxmbrl.core.config import UserError
from jaxmbrl.envs.bridges import changes
from jaxmbrl.envs.given import resolve

gymnasium = pytest.importorskip("gymnasium")


class Room(gymnasium.Env):
    """With settings, a table, an object, random numbers, a class's own setting, and the state of an episode."""

    observation_space, action_space = gymnasium.spaces.Box(-1, 1, (2,)), gymnasium.spaces.Box(0, 2, (1,))
    outside = 8.0

    def __init__(self, loss=0.1):
        self.loss, self.table, self.token = loss, np.arange(3), np.random.default_rng().uniform()
        self.heater, self.log, self.curve = types.SimpleNamespace(watts=9, parts={"a": [1, 2]}), [], lambda x: 2 * x
        self.build()

    def build(self):
        self.walls = 4

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.start()
        return np.zeros(2, np.float32), {}

    def start(self):
        self.celsius = 20.0
        self.log.append(self.celsius)

    def step(self, action):
        self.celsius += self.loss * (self.outside - self.celsius)
        return np.zeros(2, np.float32), self.pay(), False, False, {}

    def pay(self):
        return 1.0


@pytest.fixture
def make():
    gymnasium.register("Room-v0", Room, max_episode_steps=10)
    yield lambda: gymnasium.make("Room-v0")
    del gymnasium.registry["Room-v0"]


def used(env):
    env.reset(seed=0)
    env.step(env.action_space.sample())
    return env


def change(path, value):
    def apply(env):
        *inner, name = path.split(".")
        for attribute in inner:
            env = getattr(env, attribute)
        setattr(env, name, value)

    return apply


CERTAIN = {
    "a number": (change("unwrapped.loss", 0.0), "loss = 0.0 instead of 0.1"),
    "a number that a helper of the constructor assigns": (change("unwrapped.walls", 3), "walls = 3 instead of 4"),
    "a setting of the class": (change("unwrapped.outside", -5.0), "outside = -5.0 instead of 8.0"),
    "a method": (change("unwrapped.step", lambda action: None), "step is replaced"),
    "a method that step calls": (change("unwrapped.pay", lambda: 2.0), "pay is replaced"),
    "a method of a wrapper": (change("step", lambda action: None), "TimeLimit.step is replaced"),
    "a number of an object": (change("unwrapped.heater.watts", 1), "heater.watts = 1 instead of 9"),
    "a setting that was set on a wrapper": (change("loss", 0.0), "TimeLimit.loss = 0.0 is new"),
    "the class": (change("unwrapped.__class__", type("Other", (Room,), {})), "it is a Other instead of a Room"),
}


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("what", CERTAIN)
def test_a_change_that_a_run_would_lose_is_an_error(what, begun, make):
    apply, text = CERTAIN[what]
    env = used(make()) if begun else make()
    apply(env)
    with pytest.raises(UserError) as error:
        resolve(env)
    assert str(error.value) == (
        f"the environment 'Room-v0' was changed after it was made ({text}), and a run makes its environments anew from the "
        "spec, without the changes: give a function that makes one, changes it and returns it, "
        "envs.from_gymnasium(function, name='mine')"
    )


POSSIBLE = {
    "an array that is none": (change("unwrapped.table", None), "table has other values"),
    "an array": (lambda env: env.unwrapped.table.fill(7), "table has other values"),
    "a list in an object": (lambda env: env.unwrapped.heater.parts["a"].append(3), "heater.parts has other values"),
    "a function": (change("unwrapped.curve", lambda x: 3 * x), "curve has other values"),
    "a space": (change("unwrapped.action_space", gymnasium.spaces.Box(0, 3, (1,))), "action_space has other values"),
}


@pytest.mark.parametrize("what", POSSIBLE)
def test_what_may_be_the_state_of_an_episode_is_a_warning_after_the_first_reset(what, make):
    apply, text = POSSIBLE[what]
    env = make()
    apply(env)
    with pytest.raises(UserError, match=f"was changed after it was made .{text}"):
        resolve(env)
    with pytest.warns(UserWarning) as heard:
        resolve(used(env))
    message = str(heard[0].message)
    assert message.startswith("a run makes its environments anew from the spec, and the given 'Room-v0' differs from a new")
    assert text in message
    assert heard[0].filename == __file__


def test_an_environment_that_is_as_it_was_made_or_in_an_episode_has_none(make, recwarn):
    env = make()
    assert resolve(env) == ("gymnasium/Room-v0", None)
    env.unwrapped.celsius = 3.0
    assert resolve(env) == ("gymnasium/Room-v0", None)
    # Of the state of an episode only the list that grows cannot be told from a setting.
    found = changes.changes(used(make()), make)
    assert found == changes.Changes((), ("log has other values",))
    for name in ("Pendulum-v1", "CartPole-v1", "FrozenLake-v1", "Hopper-v5"):
        assert changes.changes(used(gymnasium.make(name)), lambda name=name: gymnasium.make(name)) == ((), ())
    assert not recwarn.list


def test_a_model_of_mujoco_that_was_changed_is_named():
    env, make = gymnasium.make("InvertedPendulum-v5"), lambda: gymnasium.make("InvertedPendulum-v5")
    env.unwrapped.model.body_mass[1] *= 2
    env.unwrapped.model.opt.gravity[:] = 0
    assert changes.changes(env, make) == (("model.body_mass has other values", "model.opt.gravity has other values"), ())
    assert changes.changes(used(env), make).certain == ()
