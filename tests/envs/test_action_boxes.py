"""Actions in [-1, 1] as elements of Gymnasium's boxes, against numbers by hand and Gymnasium's own `contains`."""

import gymnasium
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from jaxmbrl import envs
from jaxmbrl.agents.exploration import uniform
from jaxmbrl.core.config import UserError
from jaxmbrl.core.spaces import Box, Discrete
from jaxmbrl.envs.base import initial_state
from jaxmbrl.envs.bridges.gymnasium_spaces import action_space, native, observation_space
from jaxmbrl.training.collecting import collect


class Valve(gymnasium.Env):
    """Takes actions of any space and keeps them."""

    def __init__(self, action, observation=None):
        self.action_space, self.observation_space = action, observation or spaces.Box(-1, 1, (1,))
        self.taken = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.taken.append(action)
        return np.zeros(1, np.float32), 0.0, False, False, {}


@pytest.mark.parametrize(
    ("space", "actions", "expected"),
    [
        # Of five numbers each has two fifths of the length of [-1, 1]: the borders are at -0.6, -0.2, 0.2 and 0.6.
        (
            spaces.Box(0, 4, (1,), np.int64),
            [-1, -0.61, -0.59, -0.21, -0.19, 0.19, 0.21, 0.59, 0.61, 1],
            [0, 0, 1, 1, 2, 2, 3, 3, 4, 4],
        ),
        (spaces.Box(-2, 0, (1,), np.int8), [-1, -0.34, -0.33, 0.33, 0.34, 1], [-2, -2, -1, -1, 0, 0]),
        (spaces.Box(0, 1, (1,), np.uint8), [-1, -0.01, 0, 1], [0, 0, 1, 1]),
        (spaces.Box(0, 1, (1,), np.bool_), [-1, -0.01, 0, 1], [False, False, True, True]),
        (spaces.Box(0, 255, (1,), np.uint8), [-2, -1, 0, 1, 2], [0, 0, 128, 255, 255]),
        (spaces.Box(0, 2**64 - 1, (1,), np.uint64), [-1, 0, 1], [0, 2**63, 2**64 - 1]),
        (spaces.Box(-(2**63), 2**63 - 1, (1,), np.int64), [-1, 0, 1], [-(2**63), 0, 2**63 - 1]),
        (spaces.Box(-3.0, 5.0, (1,), np.float64), [-7, -1, 0, 0.5, 1, 7], [-3, -3, 1, 3, 5, 5]),
        (spaces.Box(-np.finfo("f").max, np.finfo("f").max, (1,)), [-1, 0, 1], [-np.finfo("f").max, 0, np.finfo("f").max]),
    ],
    ids=lambda value: str(value) if isinstance(value, spaces.Box) else "",
)
def test_actions_of_a_box(space, actions, expected):
    assert action_space("valve", Valve(space)) == Box((1,), -1.0, 1.0)
    found = [native(np.array([action], np.float32), space) for action in actions]
    assert [x.item() for x in found] == expected
    assert all(space.contains(x) and x.dtype == space.dtype for x in found)


def test_uniform_actions_reach_each_number_alike():
    """A chi-squared test at a level of one in a thousand: 18.47 for four degrees of freedom."""
    env = Valve(spaces.Box(0, 4, (1,), np.int64))
    task = envs.from_gymnasium(lambda: env, "valve", episode_length=500)
    collect(task, uniform(task.action), 500)
    counts = np.bincount(np.ravel(env.taken), minlength=5)
    assert counts.sum() == 500 and ((counts - 100) ** 2 / 100).sum() < 18.47


def test_rounding_never_leaves_the_bounds():
    """As the sum of two products does for many of these bounds before it is clipped."""
    rng = np.random.default_rng(0)
    low = rng.uniform(-3, 3, 4000).astype(np.float32)
    high = np.nextafter(low, np.float32(9), dtype=np.float32)
    for space in (
        spaces.Box(low, high),
        spaces.Box(low.astype(float), np.nextafter(low.astype(float), 9), dtype=np.float64),
    ):
        for action in (rng.uniform(-1, 1, 4000), np.full(4000, 1 - 1e-16), np.full(4000, 1 / 3)):
            assert space.contains(native(action, space))


def test_a_component_with_equal_bounds_is_constant():
    for low, high, dtype in (([0.1, -1], [0.1, 1], np.float32), ([3, 0], [3, 1], np.int32)):
        space = spaces.Box(np.array(low, dtype), np.array(high, dtype), dtype=dtype)
        assert action_space("valve", Valve(space)) == Box((2,), -1.0, 1.0)
        for x in np.linspace(-1, 1, 101):
            assert native(np.array([x, x]), space)[0] == dtype(low[0])


class Fake:
    """A box that Gymnasium would not make."""

    def __init__(self, low, high, shape=(1,), dtype=np.float32):
        self.low, self.high = (np.full(shape, x, np.float64) for x in (low, high))
        self.shape, self.dtype = shape, np.dtype(dtype)

    def __repr__(self):
        return "Box\n(own)"


Fake.__name__ = "Box"
FINITE = r"its actions must have finite bounds, got .*; gymnasium.wrappers.TransformAction\(env, function, space\) with the"


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Box(-np.inf, 1.0, (2,)), FINITE),
        (spaces.Box(0, np.inf, (2,), np.int32), FINITE),
        (Fake(np.nan, 1.0), FINITE),
        (Fake(1.0, -1.0), r"the low of its actions must not be above their high, got Box \(own\)"),
        (spaces.Box(2, 2, (2,), np.int8), "its actions leave no choice, low is high everywhere"),
        (spaces.Box(-1.0, 1.0, (0,)), "its actions must be at least one number"),
        (Fake(0, 1, dtype=np.complex64), "its actions must be at least one number"),
        (
            spaces.MultiDiscrete([2, 3]),
            r"its actions must be a Box or Discrete, got MultiDiscrete.*makes Discrete\(6\) of its",
        ),
        (
            spaces.MultiBinary(4),
            r"got MultiBinary\(4\): .* with the identity makes gymnasium.spaces.Box\(0, 1, \(4,\), np.int8",
        ),
        (
            spaces.Dict(a=spaces.Box(-1, 1)),
            r"got Dict\(.*makes a Box of parts that are Boxes, with gymnasium.spaces.flatten_",
        ),
        (spaces.Tuple([spaces.Box(-1, 1)]), r"got Tuple\(.*makes a Box of parts that are Boxes"),
        (spaces.Text(3), r"its actions must be a Box or Discrete, got Text\("),
        (None, "its actions must be a Box or Discrete, got None: give the environment an action_space"),
    ],
)
def test_actions_that_are_not_supported_are_told_in_a_line(space, message):
    with pytest.raises(UserError, match=f"^task 'valve': .*{message}") as error:
        action_space("valve", Valve(space))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        *(
            (
                space,
                "its observations must be a Box or Discrete, got .*; gymnasium.wrappers.FlattenObservation makes a Box$",
            )
            for space in (
                spaces.Dict(a=spaces.Box(-1, 1), b=spaces.Discrete(3)),
                spaces.Tuple([spaces.Box(-1, 1)]),
                spaces.MultiDiscrete([2, 3]),
                spaces.MultiBinary([2, 3]),
            )
        ),
        (
            spaces.Sequence(spaces.Box(-1, 1)),
            "an observation of changing size cannot be used: show a Box of numbers instead$",
        ),
        (spaces.Box(-1.0, 1.0, (2, 0)), "its observations must be at least one number"),
    ],
)
def test_observations_that_are_not_supported_are_told_in_a_line(space, message):
    with pytest.raises(UserError, match=f"^task 'valve': .*{message}") as error:
        observation_space("valve", Valve(spaces.Discrete(2), space))
    assert "\n" not in str(error.value)


class Several(Valve):
    """Observes an element of its space."""

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), *super().step(action)[1:]


def test_the_wrappers_that_are_named_make_a_task():
    """Each as its message says."""
    transform, flatten = gymnasium.wrappers.TransformAction, gymnasium.wrappers.FlattenObservation

    def taken(env, wrapped, action):
        host = envs.from_gymnasium(lambda: wrapped, "valve").host()
        host.reset(0)
        host.step(np.asarray(action))
        return env.taken[-1]

    env = Valve(spaces.MultiDiscrete([2, 3]))
    combined = transform(env, lambda i: np.array(np.unravel_index(i, (2, 3))), spaces.Discrete(6))
    assert taken(env, combined, np.int32(5)).tolist() == [1, 2]
    env = Valve(spaces.MultiBinary(4))
    bits = transform(env, lambda a: a, spaces.Box(0, 1, (4,), np.int8))
    assert taken(env, bits, [-1.0, 1.0, 0.5, -0.5]).tolist() == [0, 1, 1, 0]
    env = Valve(spaces.Dict(a=spaces.Box(0, 2), b=spaces.Box(-4, 4, (2,))))
    flat = transform(env, lambda a: spaces.unflatten(env.action_space, a), spaces.flatten_space(env.action_space))
    given = taken(env, flat, [0.0, 1.0, -1.0])
    assert given["a"].tolist() == [1.0] and given["b"].tolist() == [4.0, -4.0]
    env = Valve(spaces.Box(-np.inf, np.inf, (1,)))
    assert taken(env, transform(env, lambda a: a, spaces.Box(-2, 2, (1,))), [0.5]).tolist() == [1.0]
    env = Several(spaces.Discrete(2), spaces.Dict(a=spaces.Box(-1, 1), b=spaces.Discrete(3)))
    assert envs.from_gymnasium(lambda: flatten(env), "valve").observation == Box((4,))
    assert envs.from_gymnasium(lambda: flatten(env), "valve").host().reset(0).shape == (4,)


def test_choices_beyond_the_space_are_refused_by_our_environments():
    class Switch:
        observation_size = action_size = 1

        def reset(self, rng):
            return initial_state((), jnp.zeros(1))

        def step(self, state, action):
            return state

    env = envs.as_gymnasium(envs.make_task("switch", Switch(), 5, action=Discrete(3)))
    env.reset(seed=0)
    for wrong in (-1, 3):
        with pytest.raises(UserError, match=rf"actions must be in Discrete\(3\), got {wrong}"):
            env.step(wrong)
    odd = envs.make_task("switch", Switch(), 5, observation=Box((3,), dtype="int32"))
    with pytest.raises(UserError, match="the bounds of its observations must be numbers of their dtype"):
        envs.as_gymnasium(odd)
