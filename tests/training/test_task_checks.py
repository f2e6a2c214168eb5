"""Every run checks its task before it compiles: a mistake in an environment is told with its method and field."""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import call

import jaxmbrl
from jaxmbrl import envs
from jaxmbrl.core.config import UserError
from jaxmbrl.core.spaces import Box, Discrete
from jaxmbrl.core.types import Task, World
from jaxmbrl.envs import State
from jaxmbrl.envs.shapes import check_shapes
from jaxmbrl.training import programs

SETTINGS = {"warmup_steps": 20, "replay_capacity": 100, "epoch_steps": 20, "batch_size": 8, "eval_every": 1}


@pytest.fixture(autouse=True)
def tasks(monkeypatch):
    monkeypatch.setattr(envs, "TASKS", dict(envs.TASKS))


class Cart:
    """Two numbers that the action pushes. `after(state)` changes what step returns, `first(state)` what reset returns."""

    observation_size, action_size = 2, 1

    def __init__(self, after=lambda state: state, first=lambda state: state):
        self.after, self.first = after, first

    def reset(self, rng):
        x, zero = jax.random.uniform(rng, (2,)), jnp.zeros(())
        info = {"count": jnp.zeros((), jnp.int32)}
        return self.first(State(pipeline_state=x, obs=x, reward=zero, done=zero, metrics={}, info=info))

    def step(self, state, action):
        x = state.pipeline_state + 0.1 * action[0]
        return self.after(state.replace(pipeline_state=x, obs=x, reward=-jnp.abs(x[0]), done=jnp.zeros(())))


def told(env, **more):
    """What training on the environment says, without the name of the task."""
    envs.TASKS.pop("cart", None)
    envs.register("cart", lambda: envs.make_task("cart", env, episode_length=20, **more))
    with pytest.raises(UserError) as error:
        jaxmbrl.train("linear", "cart", steps=20, settings=SETTINGS)
    text = str(error.value)
    assert "\n" not in text and text.startswith("task 'cart': ")
    return text.removeprefix("task 'cart': ")


def both(change):
    return Cart(change, change)


MISTAKES = {
    "integer reward": (
        both(lambda s: s.replace(reward=jnp.zeros((), jnp.int32))),
        "reset must return reward as float32[], got int32[]: convert it with .astype(float); step must return reward as "
        "float32[], got int32[]: convert it with .astype(float)",
    ),
    "reward of shape [1]": (
        both(lambda s: s.replace(reward=s.reward[None])),
        "reset must return reward as float32[], got float32[1]: append .squeeze(-1); step must return reward as "
        "float32[], got float32[1]: compute it from action[0], or append .squeeze(-1)",
    ),
    "integer observation in step": (
        Cart(lambda s: s.replace(obs=s.obs.astype(int))),
        "step must return obs as float32[2], got int32[2]: convert it with .astype(float)",
    ),
    "a row of one observation": (
        both(lambda s: s.replace(obs=s.obs[None])),
        "reset must return obs as float32[2], got float32[1, 2]: append .squeeze(0); step must return obs as "
        "float32[2], got float32[1, 2]: append .squeeze(0)",
    ),
    "a column of observations": (
        Cart(lambda s: s.replace(obs=s.obs[:, None])),
        "step must return obs as float32[2], got float32[2, 1]: append .squeeze(-1)",
    ),
    "a number that the action makes a vector": (
        Cart(lambda s: s.replace(info={"count": s.info["count"][None]})),
        "step changes state.info['count'] from int32[] to int32[1]: keep its shape and dtype, compute it from action[0], "
        "or append .squeeze(-1)",
    ),
    "a vector of one number that becomes a number": (
        Cart(lambda s: s.replace(info={"count": s.info["count"][0]}), lambda s: s.replace(info={"count": jnp.zeros(1)})),
        "step changes state.info['count'] from float32[1] to float32[]: keep its shape and dtype, append [None]",
    ),
    "longer observation": (
        both(lambda s: s.replace(obs=jnp.zeros(3))),
        "reset must return obs as float32[2], got float32[3]; step must return obs as float32[2], got float32[3]",
    ),
    "several observations": (
        Cart(first=lambda s: s.replace(obs={"a": s.obs, "b": s.reward})),
        "reset must return obs as float32[2], got ['a']: float32[2], ['b']: float32[]",
    ),
    "no reward": (
        both(lambda s: s.replace(reward=None)),
        "reset must return reward as float32[], got nothing; step must return reward as float32[], got nothing",
    ),
    "boolean done in step": (
        Cart(lambda s: s.replace(done=s.done > 0)),
        "step changes state.done from float32[] to bool[]: keep its shape and dtype",
    ),
    "integer done in step": (
        Cart(lambda s: s.replace(done=jnp.where(s.done > 0, 1, 0))),
        "step changes state.done from float32[] to int32[]: keep its shape and dtype",
    ),
    "done of shape [1]": (
        both(lambda s: s.replace(done=s.done[None])),
        "reset must return done as float32[], got float32[1]: append .squeeze(-1); step must return done as float32[], got "
        "float32[1]: compute it from action[0], or append .squeeze(-1)",
    ),
    "a key more in info": (
        Cart(lambda s: s.replace(info={**s.info, "speed": s.reward})),
        "step adds state.info['speed']: let reset return it too",
    ),
    "a key less in info": (
        Cart(lambda s: s.replace(info={})),
        "step drops state.info['count']: keep it, a scan needs it",
    ),
    "a key more in metrics": (
        Cart(lambda s: s.replace(metrics={"speed": s.reward})),
        "step adds state.metrics['speed']: let reset return it too",
    ),
    "another dtype in info": (
        Cart(lambda s: s.replace(info={"count": s.info["count"] + 0.5})),
        "step changes state.info['count'] from int32[] to float32[]: keep its shape and dtype",
    ),
    "text in info": (
        both(lambda s: s.replace(info={"name": "cart"})),
        "reset must return arrays and numbers, got str at state.info['name']",
    ),
    "Gymnasium's reset": (
        Cart(first=lambda s: (s.obs, {})),
        "reset must return a State (jaxmbrl.envs.State), got a tuple of 2: one with Gymnasium's interface becomes a task "
        "with envs.from_gymnasium",
    ),
    "Gymnasium's step": (
        Cart(lambda s: (s.obs, s.reward, s.done, s.done, {})),
        "step must return a State (jaxmbrl.envs.State), got a tuple of 5: one with Gymnasium's interface becomes a task "
        "with envs.from_gymnasium",
    ),
    "observation alone": (
        Cart(first=lambda s: {"obs": s.obs}),
        "reset must return a State (jaxmbrl.envs.State), got dict, which has no obs or reward or done",
    ),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_in_an_environment_is_told_before_compiling(what, monkeypatch):
    monkeypatch.setattr(programs.Program, "compile", lambda *_: pytest.fail("something was compiled"))
    env, expected = MISTAKES[what]
    assert told(env) == expected


def test_what_to_write_for_one_number_fits_the_spaces():
    """A number in the place of a vector of one number, and a reward of shape [1] where the action has two numbers."""

    class Wide(Cart):
        action_size = 2

    class Narrow(Cart):
        observation_size = 1

    number = Narrow(lambda s: s.replace(obs=s.obs[0]), lambda s: s.replace(obs=s.obs[0]))
    assert told(number) == (
        "reset must return obs as float32[1], got float32[]: append [None]; step must return obs as float32[1], got "
        "float32[]: append [None]"
    )
    wide = Wide(lambda s: s.replace(reward=s.reward[None]))
    assert told(wide) == "step must return reward as float32[], got float32[1]: append .squeeze(-1)"


def test_the_hint_for_a_reward_of_one_number_is_right():
    """The environment that follows it passes."""

    class Squares(Cart):
        def __init__(self, reward):
            super().__init__()
            self.reward = reward

        def step(self, state, action):
            return super().step(state, action).replace(reward=self.reward(action))

    def problem(reward):
        try:
            check_shapes(envs.make_task("cart", Squares(reward), episode_length=20))
        except UserError as error:
            return str(error)
        return None

    wrong = "task 'cart': step must return reward as float32[], got float32[1]: compute it from action[0], or append "
    assert problem(lambda action: -(action**2)) == wrong + ".squeeze(-1)"
    assert problem(lambda action: -(action[0] ** 2)) is None
    assert problem(lambda action: (-(action**2)).squeeze(-1)) is None


def test_an_error_in_a_method_names_the_method_and_the_line():
    class Raises(Cart):
        def step(self, state, action):
            if state.obs[0] > 0:
                return state
            return state

    line = inspect.getsourcelines(Raises.step)[1] + 1
    text = told(Raises())
    assert text.startswith("step, with an action float32[1], fails with TracerBoolConversionError: Attempted boolean")
    assert text.endswith(f" (test_task_checks.py:{line})")

    class Starts(Cart):
        def reset(self, rng):
            raise OSError("no model\nhere")

    line = inspect.getsourcelines(Starts.reset)[1] + 1
    assert told(Starts()) == f"reset fails with OSError: no model here (test_task_checks.py:{line})"


def test_an_action_of_the_wrong_size_is_named():
    class Two(Cart):
        action_size = 2

        def step(self, state, action):
            return super().step(state, jnp.ones(3) * action)

    text = told(Two())
    assert text.startswith("step, with an action float32[2], fails with TypeError: ")
    assert "(3,)" in text and "(2,)" in text


def test_methods_that_are_missing_or_take_other_arguments_are_named():
    class NoKey(Cart):
        def reset(self):
            return super().reset(jax.random.key(0))

    class Gym(Cart):
        def reset(self, *, seed=None, options=None):
            return super().reset(jax.random.key(0))

    class Stateless(Cart):
        def step(self, action):
            return None

    class NoStep:
        observation_size, action_size, reset = 2, 1, Cart.reset

    assert told(NoKey()).startswith("the environment must have reset(rng), got reset(): one with Gymnasium's interface")
    assert told(Gym()).startswith("the environment must have reset(rng), got reset(*, seed=None, options=None): ")
    assert told(Stateless()).startswith("the environment must have step(state, action), got step(action): ")
    assert told(NoStep()) == "the environment, a NoStep, has no method step(state, action)"
    assert told(Cart) == "give an environment, not its class: Cart()"


def test_a_run_traces_an_environment_once_and_allows_what_a_scan_promotes():
    """Python's numbers in a state, and a done that is boolean everywhere; evaluation included."""
    counts = {"reset": 0, "step": 0}

    class Counted(Cart):
        def reset(self, rng):
            counts["reset"] += 1
            return self.loose(super().reset(rng))

        def step(self, state, action):
            counts["step"] += 1
            return self.loose(super().step(state, action))

        def loose(self, state):
            return state.replace(done=jnp.abs(state.obs[0]) > 9, reward=1.0, info={"count": 3})

    envs.register("cart", lambda: envs.make_task("cart", Counted(), episode_length=20))
    result = jaxmbrl.train("linear", "cart", steps=20, settings=SETTINGS, eval_episodes=1)
    # A reward of 1 at each of 20 steps.
    assert result.rows[0]["eval/return"] == 20.0
    assert counts == {"reset": 1, "step": 1}


@pytest.mark.parametrize("words", [["train", "linear"], ["collect", "--policy", "random"]], ids=lambda words: words[0])
def test_commands_tell_it_in_a_line(words, tmp_path):
    env = MISTAKES["boolean done in step"][0]
    envs.register("cart", lambda: envs.make_task("cart", env, episode_length=20))
    name = "run" if words[0] == "train" else "rows.npz"
    code, out, err = call(*words, "--env", "cart", "--steps", 100, "--out", tmp_path / name)
    assert (code, out) == (2, "")
    assert err == f"jaxmbrl: task 'cart': {MISTAKES['boolean done in step'][1]}\n"
    assert not (tmp_path / name).exists()


def test_a_mistake_is_told_although_each_action_is_repeated():
    config = programs.configure("linear", "pendulum", settings=SETTINGS, action_repeat=3)
    task = envs.make_task("cart", MISTAKES["a key more in info"][0], episode_length=20)
    with pytest.raises(UserError, match=re.escape("step adds state.info['speed']: let reset return it too")):
        programs.build(config, task=task)


def test_a_world_of_ones_own_is_told_by_its_carry():
    def world(step, observe=lambda carry: carry["x"]):
        return World(lambda key: {"x": jnp.zeros(2)}, lambda origin, key: origin, observe, step)

    made = envs.make_task("cart", Cart(), 20)
    right = made.world.step(made.world.reset(jax.random.key(0)), jnp.zeros(1), jax.random.key(0))[1]

    def problem(task: Task):
        with pytest.raises(UserError) as error:
            check_shapes(task)
        return str(error.value)

    pair = made._replace(world=world(lambda carry, action, key: right))
    assert problem(pair) == "task 'cart': step must return (carry, Transition), got Transition"
    wider = world(lambda carry, action, key: ({"x": jnp.zeros(3)}, right._replace(reward=0)))
    text = problem(made._replace(world=wider))
    assert text == (
        "task 'cart': step changes carry['x'] from float32[2] to float32[3]: keep its shape and dtype; a transition's "
        "reward must be float32[], got int32[], of a Python number's type"
    )
    text = problem(made._replace(world=world(lambda carry, action, key: (carry, right), lambda carry: carry["x"][0])))
    assert text == "task 'cart': what is observed after reset must be float32[2], got float32[]"
    spaces = made._replace(action=Box((1,), 0.0, 1.0), observation=Discrete(0))
    assert "its actions must be Box(shape, -1.0, 1.0)" in problem(spaces)


def test_an_environment_on_the_host_is_told_before_it_moves():
    class Robot:
        observation_space, action_space = None, None
        moved = False

        def reset(self, seed):
            self.moved = True

        def step(self, action):
            self.moved = True

    gymnasium = pytest.importorskip("gymnasium")
    robot = Robot()
    robot.observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    robot.action_space = gymnasium.spaces.Box(-1, 1, (1,))
    assert envs.from_gymnasium(lambda: robot, "robot").action == Box((1,), -1.0, 1.0)
    for method, wrong, expected in (
        ("reset", lambda: None, r"the environment must have reset\(seed=...\), got reset\(\): give it the arguments"),
        (
            "reset",
            lambda rng: None,
            r"the environment must have reset\(seed=...\), got reset\(rng\); one with Brax's interface",
        ),
        ("step", lambda state, action: None, r"the environment must have step\(action\), got step\(state, action\); one"),
        ("step", None, r"the environment, a Robot, has no method step\(action\)"),
    ):
        kept = getattr(robot, method)
        setattr(robot, method, wrong)
        with pytest.raises(UserError, match=f"^task 'robot': {expected}"):
            envs.from_gymnasium(lambda: robot, "robot")
        setattr(robot, method, kept)
    assert not robot.moved


STEP = ("observation", "reward", "terminated", "truncated", "info")


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (
            (np.zeros(2), 0.0, False, {}),
            "step must return (observation, reward, terminated, truncated, info), got 4 values, as Gym before version 0.26 "
            "does: split done into terminated and truncated",
        ),
        (np.zeros(2), "step must return (observation, reward, terminated, truncated, info), got ndarray"),
        ((np.zeros(2), np.zeros(2), False, False, {}), "step must return a number as reward, got array([0., 0.])"),
        ((np.zeros(2), None, False, False, {}), "step must return a number as reward, got None"),
        ((np.zeros(2), 0.0, False, {}, False), f"step must return ({', '.join(STEP)}) with a dict as info, got False"),
        ((np.zeros(2), 0.0, "False", False, {}), "step must return terminated as True or False, got 'False'"),
        ((np.zeros(2), 0.0, False, np.zeros(2), {}), "step must return truncated as True or False, got array([0., 0.])"),
        ((np.zeros(2), 0.0, None, False, {}), "step must return terminated as True or False, got None"),
        (
            ({"x": 0.0}, 0.0, False, False, {}),
            "an observation must be 2 numbers, as its space says, got a dict with the keys x",
        ),
        ((None, 0.0, False, False, {}), "an observation must be 2 numbers, as its space says, got None"),
        (([[1.0], 1.0], 0.0, False, False, {}), "an observation must be 2 numbers, as its space says, got [[1.0], 1.0]"),
    ],
)
def test_what_an_environment_on_the_host_returns_is_told(returned, message):
    gymnasium = pytest.importorskip("gymnasium")

    class Robot(gymnasium.Env):
        observation_space, action_space = gymnasium.spaces.Box(-1, 1, (2,)), gymnasium.spaces.Box(-1, 1, (1,))

        def reset(self, *, seed=None, options=None):
            return np.zeros(2)

        def step(self, action):
            return returned

    host = envs.from_gymnasium(Robot, "robot").host()
    with pytest.raises(UserError, match=re.escape("task 'robot': reset must return (observation, info), got ndarray")):
        host.reset(0)
    with pytest.raises(UserError, match=f"^task 'robot': {re.escape(message)}$"):
        host.step(np.zeros(1))
