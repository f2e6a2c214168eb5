"""The checker of tasks: every task passes, and every broken one is told by what is wrong with it."""

import inspect
import re
from importlib import import_module

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl import envs
from jaxmbrl.core.config import UserError
from jaxmbrl.core.spaces import Box, Discrete
from jaxmbrl.core.types import Policy
from jaxmbrl.envs.base import discrete_sizes, initial_state, number_of_actions, vector_sizes, vectors_and_actions
from jaxmbrl.envs.shapes import ON_ROWS, of_known, of_rows
from jaxmbrl.rollout import auto_reset

checker = import_module("jaxmbrl.envs.checking")
ANALYTIC = [name for name in envs.names() if envs.family(name) != "mujoco"]
SIMULATED = [name for name in envs.names() if name not in ANALYTIC]
ONE_OF_A_KIND = ("CartPole-v1", "FrozenLake", "bsuite/Catch", "cartpole-continuous", "pendulum", "reacher-2d")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ONE_OF_A_KIND else pytest.mark.promises) for name in ANALYTIC]
)
def test_analytic_tasks_pass(name):
    task = envs.make(name)
    known = {what: jax.jit(known) for what in ("reward", "terminated") if (known := getattr(task, what)) is not None}
    assert envs.check(task._replace(**known)) is None


@pytest.fixture
def own_caches():
    """Tables of MJX that another float width left behind do not compile with this one."""
    jax.clear_caches()


@pytest.mark.slow
@pytest.mark.parametrize("name", SIMULATED)
def test_simulated_tasks_pass(name, own_caches):
    assert envs.check(envs.make(name)) is None


def test_a_task_passes_in_float64():
    with jax.enable_x64(True):
        assert envs.check(POINT) is None


def drawn(key, low, high):
    """A number of [low, high) by the bits of the key, which compile sooner than a generator."""
    return low + (high - low) * (jax.random.key_data(key)[1] / 2.0**32)


class Point:
    """A point on a line that the action pushes; over at a distance of 2 from the middle, or, with `over`, elsewhere."""

    observation_size = 1
    action_size = 1

    def reset(self, rng):
        return self.state(drawn(rng, -0.5, 0.5)[None])

    def state(self, place, reward=0.0, done=0.0, count=0):
        info = {"count": jnp.asarray(count, jnp.int32)}
        return envs.State(place, place, jnp.asarray(reward, float), jnp.asarray(done, float), {}, info)

    def step(self, state, action):
        place = state.obs + 0.4 * action
        return self.state(place, self.reward(place, state), self.done(place, state), state.info["count"] + 1)

    def reward(self, place, state):
        return -jnp.abs(place[0])

    def done(self, place, state):
        return jnp.abs(place[0]) > 2


@jax.jit
def known_reward(observation, action, next_observation):
    return -jnp.abs(next_observation[..., 0])


@jax.jit
def known_end(next_observation):
    return jnp.abs(next_observation[..., 0]) > 2


def task_of(env, **known):
    return envs.make_task("point", env, 20, **known)


KEY = jax.random.key(0)
POINT = task_of(Point(), reward=known_reward, terminated=known_end)


def changed(**world):
    """The point's task with other functions in its world."""
    return POINT._replace(world=POINT.world._replace(**world))


def told(task):
    with pytest.raises(UserError) as caught:
        envs.check(task)
    text = str(caught.value)
    assert "\n" not in text and text.startswith("task 'point': ")
    return text.removeprefix("task 'point': ")


def test_a_sound_task_passes():
    assert envs.check(POINT) is None
    assert envs.check(envs.make_task("point", Point(), 1), seed=3) is None


def test_spaces():
    assert told(POINT._replace(action=Box((1,), -2.0, 2.0))).startswith("its actions must be Box(shape, -1.0, 1.0)")
    assert "its actions must be" in told(POINT._replace(action=Discrete(0)))
    assert "its observations must be Box" in told(POINT._replace(observation=Box((1,), 1.0, -1.0)))
    for length in (0, 2.5):
        problem = f"its episode_length must be a whole number of steps, got {length}"
        assert problem in told(POINT._replace(episode_length=length))
    for wrong in (Box((1,), -1.0, 1.0, "int8"), Box((0,), -1.0, 1.0)):
        assert "its actions must be Box(shape, -1.0, 1.0) or Discrete(n)" in told(POINT._replace(action=wrong))
    for wrong in (
        Box((2, 2, 1), 0, 255, "uint9"),
        Box((2, 0, 1), 0, 255, "uint8"),
        Box((2,), 0, 1, "complex64"),
        Discrete(0),
    ):
        problem = "its observations must be Box(shape, low, high, dtype) or Discrete(n), got "
        assert told(POINT._replace(observation=wrong)).startswith(problem)
    for low, high in ((0, 256), (-1, 255), (0.5, 255), (0, float("inf"))):
        problem = "the bounds of its observations must be numbers of their dtype, got Box(shape=(2, 2, 1), low="
        assert told(POINT._replace(observation=Box((2, 2, 1), low, high, "uint8"))).startswith(problem)
    several = told(POINT._replace(episode_length=0, action=Box((1,), 0.0, 1.0)))
    assert "its actions must be" in several and "; its episode_length must be" in several


def test_shapes_and_dtypes_of_transitions():
    text = told(POINT._replace(observation=Box((2,))))
    assert text == "reset must return obs as float32[2], got float32[1]; step must return obs as float32[2], got float32[1]"

    class Vector(Point):
        def reward(self, place, state):
            return -jnp.abs(place)

    class Counting(Point):
        def step(self, state, action):
            return super().step(state, action).replace(reward=jnp.ones((), jnp.int32))

    assert told(task_of(Vector())) == (
        "step must return reward as float32[], got float32[1]: compute it from action[0], or append .squeeze(-1)"
    )
    text = told(task_of(Counting()))
    assert text == "step must return reward as float32[], got int32[]: convert it with .astype(float)"
    row = changed(observe=lambda carry: carry[0].obs[0])._replace(observation=Discrete(3))
    assert "reset must return obs as int32[], got float32[1]" in told(row)


def wrapped_step(change):
    def step(carry, action, key):
        return change(*POINT.world.step(carry, action, key))

    return changed(step=step)


def test_flags_of_transitions():
    as_number = wrapped_step(lambda carry, row: (carry, row._replace(terminated=row.terminated.astype(float))))
    assert told(as_number) == "a transition's terminated must be bool[], got float32[]"
    as_number = wrapped_step(lambda carry, row: (carry, row._replace(truncated=row.truncated.astype(int))))
    assert told(as_number) == "a transition's truncated must be bool[], got int32[]"


def test_steps_that_change_the_carry_cannot_be_scanned():
    class Adds(Point):
        def step(self, state, action):
            state = super().step(state, action)
            return state.replace(info={**state.info, "extra": jnp.zeros(())})

    class Drops(Point):
        def step(self, state, action):
            return super().step(state, action).replace(info={})

    class Counts(Point):
        def step(self, state, action):
            state = super().step(state, action)
            return state.replace(info={"count": state.info["count"].astype(float)})

    assert told(task_of(Adds())) == "step adds state.info['extra']: let reset return it too"
    assert told(task_of(Drops())) == "step drops state.info['count']: keep it, a scan needs it"
    assert "step changes state.info['count'] from int32[] to float32[]" in told(task_of(Counts()))
    other = wrapped_step(lambda carry, row: (list(carry), row))
    other = other._replace(world=other.world._replace(observe=lambda carry: carry[0].obs))
    assert told(other) == "step changes the carry's containers: return the same kinds of containers as reset"

    def count(carry, action, key):
        inner, row = POINT.world.step(carry[0], action, key)
        return [inner, carry[1] + jnp.ones((), jnp.int32)], row

    number = changed(
        reset=lambda key: [POINT.world.reset(key), 0], step=count, observe=lambda carry: POINT.world.observe(carry[0])
    )
    assert (
        told(number) == "step changes carry[1] from int32[], of a Python number's type to int32[]: keep its shape and dtype"
    )


def test_steps_and_resets_that_remember():
    class Noisy(Point):
        def __init__(self):
            self.draws = np.random.default_rng(0)

        def step(self, state, action):
            state = super().step(state, action)
            return state.replace(reward=state.reward + self.draws.normal())

    class Starts(Noisy):
        step = Point.step

        def reset(self, rng):
            return self.state(super().reset(rng).obs + self.draws.normal())

    assert told(task_of(Noisy())).startswith("step depends on more than its arguments: two calls differ at [0][0].reward")
    assert told(task_of(Starts())).startswith("reset depends on more than its key: two calls differ at state.")


def test_steps_that_change_their_argument():
    def reset(key):
        return {"place": np.array([drawn(key, 0, 1)], np.float32)}

    def step(carry, action, key):
        before = jnp.array(carry["place"])
        carry["place"] += 0.4 * np.asarray(action)
        row = POINT.world.step(POINT.world.start(Point().state(before), key), action, key)[1]
        return {"place": carry["place"].copy()}, row

    task = changed(reset=reset, step=step, observe=lambda carry: jnp.array(carry["place"]))
    assert "step changes its argument at carry['place']: return a new carry" in told(task)

    def write(carry, action, key):
        carry["count"] = carry["count"] + 1
        inner, row = POINT.world.step(carry["inner"], action, key)
        return {"inner": inner, "count": carry["count"]}, row

    task = changed(
        reset=lambda key: {"inner": POINT.world.reset(key), "count": jnp.zeros((), jnp.int32)},
        step=write,
        observe=lambda carry: POINT.world.observe(carry["inner"]),
    )
    assert "step changes its argument at carry['count']" in told(task)


def test_environments_that_update_their_dictionaries_pass_as_in_brax():
    class Updates(Point):
        def step(self, state, action):
            state.info["count"] = state.info["count"] + 1
            state.metrics.update(place=state.obs[0])
            return super().step(state, action).replace(info=state.info, metrics=state.metrics)

        def reset(self, rng):
            state = super().reset(rng)
            return state.replace(metrics={"place": state.obs[0]})

    task = task_of(Updates())
    assert envs.check(task) is None
    carry = task.world.reset(jax.random.key(0))
    task.world.step(carry, jnp.ones(1), jax.random.key(1))
    assert int(carry[0].info["count"]) == 0


def test_steps_that_hold_other_things_than_their_transitions():
    text = told(changed(observe=lambda carry: carry[0].obs + 1))
    assert "a transition's observation is not what observe returns for the carry" in text
    assert "a transition's next_observation is not what observe returns for the carry" in text
    clipped = wrapped_step(lambda carry, row: (carry, row._replace(action=row.action / 2)))
    assert told(clipped) == "a transition's action is not the action given"


def test_steps_that_differ_under_jit():
    class Traced(Point):
        def reward(self, place, state):
            return jnp.asarray(float(isinstance(place, jax.core.Tracer)))

    class Reset(Point):
        def reset(self, rng):
            return self.state(super().reset(rng).obs + isinstance(rng, jax.core.Tracer))

    text = told(task_of(Traced()))
    assert "step gives another state.reward under jit, by 1.0e+00" in text
    assert "step gives another transition.reward under jit, by 1.0e+00" in text
    assert "reset gives another state.pipeline_state under jit, by 1.0e+00" in told(task_of(Reset()))


def test_steps_that_jit_refuses():
    class Branches(Point):
        def reward(self, place, state):
            return jnp.ones(()) if place[0] > 0 else jnp.zeros(())

    text = told(task_of(Branches()))
    assert re.fullmatch(r"step fails with TracerBoolConversionError: .* \(test_check.py:\d+\)", text)


def test_steps_that_raise():
    class Raises(Point):
        def step(self, state, action):
            raise KeyError("engine")

    line = inspect.getsourcelines(Raises.step)[1] + 1
    assert told(task_of(Raises())) == f"step fails with KeyError: 'engine' (test_check.py:{line})"


def test_steps_that_differ_under_vmap():
    @jax.custom_batching.custom_vmap
    def shifted(x):
        return x

    @shifted.def_vmap
    def _(axis_size, in_batched, x):
        return x + 1, True

    class Batched(Point):
        def reward(self, place, state):
            return shifted(place)[0]

    assert "a batch under vmap gives another transition.reward than one alone, by 1.0e+00" in told(task_of(Batched()))


def test_numbers_that_are_not_finite():
    class Root(Point):
        def reward(self, place, state):
            return jnp.sqrt(1.9 - place[0])  # the step that ends at the upper bound goes beyond

    class Blows(Point):
        def step(self, state, action):
            state = super().step(state, action)
            return state.replace(obs=jnp.where(state.obs > 1.5, jnp.inf, state.obs))

    text = told(task_of(Root()))
    assert text.startswith("reward is not finite at step ") and " with actions " in text
    text = told(task_of(Blows()))
    assert "observation is not finite at step " in text and "; next_observation is not finite at step " in text


def test_what_comes_after_an_end_may_be_anything():
    class Dies(Point):
        def step(self, state, action):
            after = super().step(state, action)
            return after.replace(reward=jnp.where(state.done > 0, jnp.nan, after.reward))

    assert envs.check(task_of(Dies())) is None


def test_observations_outside_of_their_space():
    text = told(POINT._replace(observation=Box((1,), -1.0, 1.0)))
    assert "next_observation is outside of Box(shape=(1,), low=-1.0, high=1.0, dtype='float') at step " in text


def test_done_between_0_and_1():
    class Half(Point):
        def done(self, place, state):
            return jnp.where(jnp.abs(place[0]) > 2, 0.5, 0.0)

    assert "done is 0.5 at step " in told(task_of(Half()))


def test_done_for_a_time_limit():
    class Limited(Point):
        def done(self, place, state):
            return state.info["count"] + 1 >= 20

    assert told(task_of(Limited())).startswith(
        "every episode terminates at step 20, whatever its actions, as for a time limit"
    )


def test_truncation_is_the_tasks():
    never = wrapped_step(lambda carry, row: (carry, row._replace(truncated=jnp.zeros((), bool))))
    assert told(never).startswith("a step is not truncated at step 20 with uniform actions: the episode_length is 20")
    soon = wrapped_step(lambda carry, row: (carry, row._replace(truncated=(carry[1] >= 9) & ~row.terminated)))
    assert told(soon) == "a step is truncated at step 9 with uniform actions, before the episode_length of 20"
    both = wrapped_step(lambda carry, row: (carry, row._replace(truncated=row.truncated | row.terminated)))
    assert told(both).startswith("a step is terminated and truncated at step ")


def test_environments_that_reset_by_themselves():
    class Restarts(Point):
        def step(self, state, action):
            state = super().step(state, action)
            place = jnp.where(state.done > 0, 0.1 * jnp.sin(1000 * state.obs), state.obs)
            return state.replace(obs=place, pipeline_state=place)

    text = told(task_of(Restarts()))
    assert text.startswith("its next_observation looks like a reset's, at step ")
    assert "must not reset by itself" in text


def test_worlds_that_reset_by_themselves():
    idle = Policy(lambda key: (), lambda memory, observation, key: (jnp.zeros(1), (), memory))
    world, _ = auto_reset(POINT.world, idle)
    text = told(POINT._replace(world=world._replace(observe=lambda episode: world.observe(episode)[0])))
    assert text.startswith("the world does not continue from the next_observation at step ")


def test_known_functions_that_differ_from_the_steps():
    text = told(task_of(Point(), reward=lambda o, a, n: known_reward(o, a, o)))
    assert text.startswith("the known reward differs from the steps': ")
    text = told(task_of(Point(), terminated=lambda n: n[..., 0] > 2))
    assert text.startswith(
        "the known terminated differs from the steps': False where a step gave True, at next_observation [-2."
    )
    both = told(task_of(Point(), reward=lambda o, a, n: 0 * n[..., 0], terminated=lambda n: n[..., 0] > 9))
    assert "the known reward differs" in both and "; the known terminated differs" in both


def test_known_functions_with_other_arguments_are_named():
    def paid(observation, action):
        return 0.0

    due = "must be a function of (observation, action, next_observation), got "
    assert told(task_of(Point(), reward=paid)) == f"its reward {due}paid(observation, action)"
    assert told(POINT._replace(reward=3.0)) == f"its reward {due}float"
    text = told(task_of(Point(), terminated=lambda o, a, n: n[..., 0] > 1))
    assert text == "its terminated must be a function of (next_observation), got <lambda>(o, a, n)"
    assert of_known(task_of(Point(), reward=lambda o, a, n, scale=1.0: 0.0, terminated=jax.jit(known_end))) == []
    assert told(POINT._replace(features=Point)) == "its features must be Features(encode=function), got type"
    one = told(task_of(Point(), reward=lambda o, a, n: jnp.ones(5) @ jnp.ones(4)))
    assert one.startswith("the known reward of rows [] fails with TypeError: ") and "(test_check.py:" in one


def test_known_functions_of_rows():
    """On the rows of a rollout, without another."""

    @jax.jit
    @jax.vmap
    def step(place):
        return POINT.world.step(POINT.world.start(Point().state(place), KEY), jnp.ones(1), KEY)[1]

    rows = jax.device_get(step(np.linspace(-2.3, 2.3, 30, dtype=np.float32)[:, None]))

    def problems(**known):
        return "; ".join(checker._known(task_of(Point(), **{what: jax.jit(known[what]) for what in known}), rows))

    assert problems(reward=known_reward, terminated=known_end) == ""
    text = problems(reward=lambda o, a, n: -jnp.abs(n))
    assert text == "the known reward of rows [] must be float32[], got float32[1]"
    text = problems(reward=lambda o, a, n: -jnp.abs(n[0]) if n.ndim > 1 else -jnp.abs(n[..., 0]))
    assert text == "the known reward of rows [N] must be float32[N], got float32[1]: " + ON_ROWS
    text = problems(reward=lambda o, a, n: -jnp.abs(n[..., 0]) if n.ndim < 3 else jnp.zeros(()))
    assert text == "the known reward of rows [1, N] must be float32[1, N], got float32[]: " + ON_ROWS
    text = problems(terminated=lambda n: (jnp.abs(n[..., 0]) > 2).astype(float))
    assert text == "the known terminated of rows [] must be bool[], got float32[]"
    text = problems(reward=lambda o, a, n: jnp.where(n[..., 0] > 2.2, jnp.nan, known_reward(o, a, n)))
    assert text.startswith("the known reward differs from the steps': nan where a step gave -2.2")


def test_discrete_actions():
    class Stairs(Point):
        def step(self, state, action):
            return super().step(state, jnp.asarray(action - 1, float)[None])

    task = envs.make_task("point", Stairs(), 20, known_reward, known_end, action=Discrete(3))
    assert envs.check(task) is None
    assert "the known terminated differs" in told(task._replace(terminated=lambda n: n[..., 0] > 1))


class Corridor:
    """Eight places in a row, of which two are starts; the action goes left or right, and the last place is the end."""

    observation_size = action_size = 1
    places = 8

    def reset(self, rng):
        return initial_state((), drawn(rng, 1, 3).astype(jnp.int32))

    def step(self, state, action):
        place = jnp.clip(state.obs + 2 * action - 1, 0, self.places - 1)
        done = place == self.places - 1
        return state.replace(obs=self.shown(place, state), reward=done.astype(float), done=done.astype(float))

    def shown(self, place, state):
        return place


def corridor(env, **spaces):
    return envs.make_task("point", env, 20, **{"action": Discrete(2), "observation": Discrete(8)} | spaces)


def test_discrete_observations():
    assert envs.check(corridor(Corridor())) is None
    text = told(corridor(Corridor(), observation=Discrete(5)))
    assert (
        text.startswith("next_observation is outside of Discrete(n=5) at step ") or "; next_observation is outside" in text
    )
    text = told(corridor(Corridor(), observation=Box((1,))))
    assert text.startswith("reset must return obs as float32[1], got int32[]; step must return obs")

    class Restarts(Corridor):
        def shown(self, place, state):
            return jnp.where(place == 7, 1, place)

    text = told(corridor(Restarts()))
    assert text.startswith("its next_observation looks like a reset's, at step ")
    world, _ = auto_reset(corridor(Corridor()).world, Policy(lambda key: (), lambda memory, seen, key: (0, (), memory)))
    automatic = corridor(Corridor())._replace(world=world._replace(observe=lambda episode: world.observe(episode)[0]))
    assert told(automatic).startswith("the world does not continue from the next_observation at step ")


class Pictures(Corridor):
    """The corridor as an image whose brightness is the place."""

    def reset(self, rng):
        place = drawn(rng, 1, 3).astype(jnp.int32)
        return initial_state(place, self.picture(place))

    def picture(self, place):
        return jnp.full((2, 8, 1), (30 * place + 10).astype(jnp.uint8))

    def step(self, state, action):
        after = super().step(state.replace(obs=state.pipeline_state), action)
        return after.replace(pipeline_state=after.obs, obs=self.picture(after.obs))


def test_images():
    image = Box((2, 8, 1), 0, 255, "uint8")
    assert envs.check(corridor(Pictures(), observation=image)) is None
    text = told(corridor(Pictures(), observation=image._replace(high=200)))
    assert "next_observation is outside of Box(shape=(2, 8, 1), low=0, high=200, dtype='uint8') at step " in text
    text = told(corridor(Pictures(), observation=Box((2, 8, 1))))
    assert "step must return obs as float32[2, 8, 1], got uint8[2, 8, 1]: convert it with .astype(float)" in text

    class Restarts(Pictures):
        def picture(self, place):
            return super().picture(jnp.where(place == 7, 1, place))

    # A step down by 30 is none of 226, as an unsigned difference would say, beside which a reset's leap of 150 is small.
    assert told(corridor(Restarts(), observation=image)).startswith("its next_observation looks like a reset's")
    world, _ = auto_reset(
        corridor(Pictures(), observation=image).world, Policy(lambda key: (), lambda m, o, key: (0, (), m))
    )
    automatic = corridor(Pictures(), observation=image)
    automatic = automatic._replace(world=world._replace(observe=lambda episode: world.observe(episode)[0]))
    assert told(automatic).startswith("the world does not continue from the next_observation at step ")


def test_methods_of_vectors_refuse_other_spaces_by_name():
    assert vector_sizes(POINT, "sac") == (1, 1)
    for changes, message in (
        ({"observation": Discrete(3)}, "sac takes vectors, and the observations of task 'point' are Discrete(n=3)"),
        ({"action": Discrete(3)}, "sac takes vectors, and the actions of task 'point' are Discrete(n=3)"),
        (
            {"observation": Box((3,), 0, 9, "int32")},
            "the observations of task 'point' are Box(shape=(3,), low=0, high=9, dty",
        ),
        (
            {"observation": Box((2, 2, 1), 0, 255, "uint8")},
            "the observations of task 'point' are images [2, 2, 1]: take another task, or a method for images, such as sac",
        ),
    ):
        with pytest.raises(UserError) as caught:
            vector_sizes(POINT._replace(**changes), "sac")
        assert message in str(caught.value)


def test_methods_of_vectors_and_either_kind_of_action_refuse_other_spaces_by_name():
    assert vectors_and_actions(POINT, "mbpo") == (1, POINT.action)
    assert vectors_and_actions(POINT._replace(action=Discrete(3)), "mbpo") == (1, Discrete(3))
    for what, space in (("observation", Discrete(5)), ("action", Box((2, 2), -1.0, 1.0))):
        takes = "mbpo takes vector observations and continuous or discrete actions"
        message = f"{takes}, and the {what}s of task 'point' are {space}"
        with pytest.raises(UserError, match=re.escape(message)):
            vectors_and_actions(POINT._replace(**{what: space}), "mbpo")


def test_methods_of_tables_refuse_other_spaces_by_name():
    table = POINT._replace(observation=Discrete(5), action=Discrete(3))
    assert discrete_sizes(table, "q-learning") == (5, 3)
    for what, space in (("observation", Box((1,))), ("action", Box((1,), -1.0, 1.0))):
        message = f"q-learning takes discrete observations and actions, and the {what}s of task 'point' are {space}"
        with pytest.raises(UserError, match=re.escape(message)):
            discrete_sizes(table._replace(**{what: space}), "q-learning")


def test_methods_of_discrete_actions_take_any_observation_and_refuse_other_actions_by_name():
    choices = POINT._replace(action=Discrete(3))
    assert number_of_actions(choices, "dqn") == 3
    message = "dqn takes discrete actions, and the actions of task 'point' are Box(shape="
    with pytest.raises(UserError, match=re.escape(message)):
        number_of_actions(POINT, "dqn")


@pytest.fixture
def tasks(monkeypatch):
    monkeypatch.setattr(envs, "TASKS", dict(envs.TASKS))


def test_a_registered_task_is_made_and_named(tasks):
    envs.register("mine", lambda: envs.make_task("mine", Point(), episode_length=20))
    assert "mine" in envs.names() and envs.names() == sorted(envs.names())
    task = envs.make("mine")
    assert (task.name, task.episode_length, task.observation) == ("mine", 20, Box((1,)))
    assert envs.check(task) is None
    with pytest.raises(UserError, match="there is a task 'pendulum' already: choose another name"):
        envs.register("pendulum", lambda: POINT)


def test_a_task_that_is_registered_again_is_replaced_with_a_warning(tasks):
    """As where a notebook's cell is run twice."""
    envs.register("mine", lambda: envs.make_task("mine", Point(), episode_length=20))
    with pytest.warns(UserWarning, match="the task 'mine' was registered before and is replaced") as heard:
        envs.register("mine", lambda: envs.make_task("mine", Point(), episode_length=30))
    assert len(heard) == 1
    assert envs.make("mine").episode_length == 30


def test_a_task_is_unregistered(tasks):
    envs.register("mine", lambda: POINT)
    with pytest.raises(UserError, match=r"no task 'min' was registered; did you mean 'mine'\?"):
        envs.unregister("min")
    envs.unregister("mine")
    with pytest.raises(UserError, match="unknown task 'mine'"):
        envs.make("mine")
    with pytest.raises(UserError, match="no task 'mine' was registered; nor was any other"):
        envs.unregister("mine")
    with pytest.raises(UserError, match="'pendulum' is a task of jaxmbrl: only tasks that were registered can be"):
        envs.unregister("pendulum")


class Own:
    """An environment as one writes it: a state of one's own with Python numbers in it, and a time limit beside it."""

    @flax.struct.dataclass
    class State:
        pipeline_state: object
        obs: jax.Array
        reward: jax.Array
        done: jax.Array
        metrics: dict
        info: dict

    observation_size = 2
    action_size = 1
    limit = 20

    def reset(self, rng):
        rng, key = jax.random.split(rng)
        place = jax.random.uniform(key, (2,))
        return Own.State(None, place, 0.0, 0.0, {"speed": 0.0}, {"rng": rng, "steps": 0, "truncation": 0.0, "name": None})

    def step(self, state, action):
        rng, key = jax.random.split(state.info["rng"])
        obs = state.obs.at[1].add(0.1 * action[0] + 0.01 * jax.random.normal(key))
        steps = state.info["steps"] + 1
        fallen, late = obs[1] > 1.2, steps >= self.limit
        state.metrics["speed"] = obs[1] - state.obs[1]
        state.info.update(rng=rng, steps=steps, truncation=jnp.where(late, 1.0 - fallen, 0.0))
        return state.replace(obs=obs, reward=obs[1], done=jnp.where(fallen | late, 1.0, 0.0))


def test_an_environment_of_ones_own_is_a_task(tasks):
    """Its mark of a truncation is no termination; Python's numbers, keys and updates in place are no problem."""
    envs.register("own", lambda: envs.make_task("own", Own(), episode_length=20))
    task = envs.make("own")
    assert envs.check(task) is None
    step = jax.jit(task.world.step)
    for push in (-1.0, 1.0):
        carry, ends = task.world.reset(jax.random.key(0)), []
        for _ in range(20):
            carry, row = step(carry, jnp.array([push]), jax.random.key(0))
            ends.append((bool(row.terminated), bool(row.truncated)))
        assert any(terminated for terminated, _ in ends) == (push > 0)
        assert ends[-1] == ((True, False) if push > 0 else (False, True))
        assert carry[0].reward.dtype == jnp.float32 and not carry[0].reward.weak_type


def test_environments_of_several_observations_are_refused():
    class Several(Point):
        observation_size = {"state": (3,)}  # noqa: RUF012

    with pytest.raises(UserError, match=r"observation_size must be the length of one vector, got {'state'"):
        task_of(Several())


def test_environments_without_sizes_need_spaces():
    class Bare:
        reset, step = Point.reset, Point.step

    with pytest.raises(UserError, match=r"observation_size must be the length of one vector, got None"):
        envs.make_task("bare", Bare(), 10)
    with pytest.raises(UserError, match=r"action_size must be the length of one vector, got None"):
        envs.make_task("bare", Bare(), 10, observation=Box((1,)))
    task = envs.make_task("bare", Bare(), 10, observation=Box((1,)), action=Box((1,), -1.0, 1.0))
    assert task.observation.shape == task.action.shape == (1,)


def test_environments_that_reset_by_themselves_in_braxs_way_are_refused():
    class First(Point):
        def reset(self, rng):
            state = super().reset(rng)
            return state.replace(info={**state.info, "first_obs": state.obs})

    assert told(task_of(First())).startswith("the environment resets by itself: give the one inside its auto-reset wrapper")


@pytest.mark.slow
@pytest.mark.parametrize("wrapped", [False, True])
def test_an_environment_of_braxs_is_a_task(tasks, wrapped):
    brax_envs = pytest.importorskip("brax.envs")

    def env():
        plain = brax_envs.get_environment("inverted_pendulum", backend="generalized")
        return brax_envs.training.EpisodeWrapper(plain, 50, 1) if wrapped else plain

    envs.register("mine", lambda: envs.make_task("mine", env(), episode_length=50))
    assert envs.check(envs.make("mine")) is None
    automatic = envs.make_task("auto", brax_envs.create("fast", episode_length=50), 50)
    with pytest.raises(UserError, match="task 'auto': the environment resets by itself"):
        envs.check(automatic)


@pytest.mark.parametrize("name", ["", "two words", "-x", "a/b", "a\n", "5x"])
def test_a_name_that_is_not_a_plain_word(tasks, name):
    with pytest.raises(UserError, match="a task's name must be a letter, then"):
        envs.register(name, lambda: POINT)
    assert name not in envs.names()


def test_a_factory_that_makes_no_task(tasks):
    envs.register("mine", Point)
    with pytest.raises(
        UserError, match=r"the factory of task 'mine' must return a Task, as envs.make_task does, got Point"
    ):
        envs.make("mine")


def test_a_known_function_that_indexes_rows_is_told_in_a_model():
    rows = np.zeros((4, 3), np.float32)
    assert of_rows("reward", lambda o, a, n: -(n[..., 0] ** 2), rows, rows, rows).shape == (4,)
    with pytest.raises(
        UserError, match=r"known reward must return \[4\] for rows \[4, ...\], got \[3\]: index the last axis"
    ):
        of_rows("reward", lambda o, a, n: -(n[0] ** 2), rows, rows, rows)
