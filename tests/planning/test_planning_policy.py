"""Planning through a World: the objective's rules, the plan's memory, and planning in the true simulator."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl import envs
from jaxmbrl import planning as planners
from jaxmbrl.core.types import Planner, Transition, World
from jaxmbrl.planning import PlannerConfig, cem, icem, make_problem, planning_policy, unit_box
from jaxmbrl.planning.cem import CEMConfig
from jaxmbrl.planning.icem import ICEMConfig
from jaxmbrl.planning.mppi import MPPIConfig
from jaxmbrl.planning.random_shooting import RandomShootingConfig
from jaxmbrl.rollout import Return, auto_reset, episode_return, open_loop, rollout

ONE = unit_box(1)
SEARCH = CEMConfig(horizon=25, population=40, elites=8, iterations=3)


def rows_world(step):
    """A World of rows that count up: `step(observation [N, 1], action [1]) -> (reward [N], terminated [N])`."""

    def advance(observation, action, key):
        reward, ended = step(observation, action)
        following = observation + 1.0
        return following, Transition(observation, action, reward, following, ended, jnp.ones(ended.shape, bool))

    return World(reset=None, start=lambda origin, key: origin, observe=lambda carry: carry, step=advance)


def value(world, origin, actions):
    return make_problem(world, origin, ONE).score(jnp.asarray(actions, float)[:, None], jax.random.key(0))


def test_the_return_is_the_mean_over_rows_of_what_each_earned_alive():
    """Row n starts at n, earns observation + action at each step, and dies where it arrives at 4, not at a time limit."""
    world = rows_world(lambda x, a: (x[:, 0] + a[0], x[:, 0] + 1 >= 4))
    # Rows 0, 1, 2 and 3 live for 3, 3, 2 and 1 steps.
    earned = [(0 + 1 + 2) + 1.25, (1 + 2 + 3) + 1.25, (2 + 3) + 0.25, 3 + 0.5]
    found = jax.jit(lambda: value(world, np.arange(4, dtype=np.float32)[:, None], [0.5, -0.25, 1.0]))()
    assert float(found) == pytest.approx(np.mean(earned), rel=1e-6)


@jax.jit
def value_with_a_bad_row(bad, action):
    """Row 3 earns `bad` for an action above 0."""
    world = rows_world(lambda x, a: (jnp.where((x[:, 0] == 3) & (a[0] > 0), bad, x[:, 0]), jnp.zeros(x.shape[0], bool)))
    return value(world, jnp.arange(4.0)[:, None], action)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_row_that_is_not_finite_rules_out_the_candidate(bad):
    assert float(value_with_a_bad_row(bad, np.ones(1))) == -np.inf
    assert float(value_with_a_bad_row(bad, -np.ones(1))) == pytest.approx(1.5)


@jax.jit
def value_with_a_bad_observation(bad, action_from, actions):
    """A row at 2 goes to `bad` for an action above `action_from`."""

    def step(observation, action, key):
        following = jnp.where((observation == 2) & (action[0] > action_from), bad, observation + 1)
        ones = jnp.ones(following.shape[0])
        return following, Transition(observation, action, ones, following, following[:, 0] == 3, ones > 1)

    world = World(reset=None, start=lambda origin, key: origin, observe=lambda carry: carry, step=step)
    return value(world, jnp.arange(3.0)[:, None], actions)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_observation_that_is_not_finite_rules_out_the_candidate_whatever_its_reward(bad):
    """A known reward may not look at it: 1 a step, and NaN is beyond no bound."""
    assert float(value_with_a_bad_observation(bad, 0.0, np.array([1.0, 0.0, 0.0]))) == -np.inf
    assert float(value_with_a_bad_observation(bad, 0.0, np.array([-1.0, -1.0, -1.0]))) == pytest.approx((3 + 2 + 1) / 3)
    # A row that has ended may go wherever it likes.
    assert float(value_with_a_bad_observation(bad, 2.0, np.array([1.0, 1.0, 1.0]))) == pytest.approx((3 + 2 + 1) / 3)


def test_candidates_that_are_not_finite_are_counted():
    planner = cem.make(CEMConfig(horizon=1, population=50, elites=5, iterations=2, min_variance=0.0), ONE)

    def step(observation, action, key):
        following = jnp.where(action[0] > 0, jnp.nan, observation)
        return following, Transition(observation, action, jnp.ones(1), following, jnp.zeros(1, bool), jnp.zeros(1, bool))

    world = World(reset=None, start=lambda origin, key: origin, observe=lambda carry: carry, step=step)
    policy = planning_policy(planner, world, lambda observation: observation[None], ONE)
    action, extras, _ = jax.jit(lambda: policy.act(planner.init(), jnp.zeros(1), jax.random.key(0)))()
    assert 0 < int(extras["nonfinite"]) < 100
    assert float(action[0]) < 0, "what is not finite is not among the elites"


def test_a_dead_row_does_no_harm():
    """What a row would earn after its end does not count, not even where it is not a number."""
    world = rows_world(lambda x, a: (jnp.where(x[:, 0] > 0, jnp.nan, 1.0), jnp.ones(x.shape[0], bool)))
    assert float(jax.jit(lambda: value(world, jnp.zeros((2, 1)), [0.0, 0.0, 0.0]))()) == 1.0


def test_the_return_in_a_task_is_that_of_the_rollout():
    task = envs.make("cartpole-continuous")

    @jax.jit
    def both():
        state = task.env.reset(jax.random.key(3))
        actions = jax.random.uniform(jax.random.key(4), (40, 1), minval=-1.0)
        start = (task.world.start(state, jax.random.key(0)), jnp.zeros((), jnp.int32))
        _, steps = rollout(task.world, open_loop(actions), start, jax.random.key(5), 40)
        return steps.terminated, make_problem(task.world, state, ONE).score(actions, jax.random.key(6))

    ended, score = (np.asarray(x) for x in both())
    assert ended.any()
    assert score == np.argmax(ended) + 1


def test_the_first_action_is_played_and_the_memory_goes_on():
    task = envs.make("pendulum")
    planner = cem.make(CEMConfig(horizon=5, population=30, elites=4, iterations=3), ONE)
    policy = planning_policy(planner, task.world, lambda observation: observation, ONE)

    @jax.jit
    def first():
        return task.env.reset(jax.random.key(0)), planner.init(), policy.init(jax.random.key(9))

    @jax.jit
    def both(memory, state, seed):
        """What the policy does, what the planner finds, and the state that follows."""
        key = jax.random.key(seed)
        action, extras, after = policy.act(memory, state, key)
        expected, _, _ = planner.plan(make_problem(task.world, state, ONE), memory, key)
        return action, extras["nonfinite"], after, expected, task.env.step(state, action)

    state, memory, fresh = first()
    np.testing.assert_array_equal(fresh.mean, memory.mean)
    for seed in range(2):
        action, nonfinite, memory, expected, state = both(memory, state, seed)
        expected = np.asarray(expected)
        np.testing.assert_allclose(action, expected[0], rtol=1e-5)
        np.testing.assert_allclose(memory.mean, np.concatenate([expected[1:], np.zeros((1, 1))]), rtol=1e-5, atol=1e-7)
        assert int(nonfinite) == 0


def test_the_plan_is_forgotten_where_an_episode_ends():
    """A planner that counts its plans, in a world whose episodes last three steps."""

    def step(carry, action, key):
        ended = carry + 1 >= 3
        row = Transition(carry[None], action, jnp.zeros(()), carry[None] + 1, ended & (action[0] < 0), ended)
        return carry + 1.0, row

    world = World(
        reset=lambda key: jnp.zeros(()), start=lambda origin, key: origin[0], observe=lambda c: c[None], step=step
    )
    counter = Planner(
        init=lambda: jnp.zeros((), jnp.int32),
        plan=lambda problem, plans, key, proposals: (jnp.ones((2, 1)), plans + 1, plans),
        horizon=2,
    )
    collector, policy = auto_reset(world, planning_policy(counter, world, lambda observation: observation, ONE))

    @jax.jit
    def played():
        start = (collector.reset(jax.random.key(0)), policy.init(jax.random.key(1)))
        return rollout(collector, policy, start, jax.random.key(2), 8)[1]

    steps = played()
    assert steps.extras.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]


def planned_episodes(task, planner, imagined, count, seed=2):
    """Returns of `count` episodes in the true task, planned through `imagined` from the simulator's own state."""
    world = task.world._replace(observe=lambda carry: carry[0])
    policy = planning_policy(planner, imagined, lambda state: state, task.action)

    def episode(start_key, key):
        start = (world.start(task.env.reset(start_key), key), planner.init())
        return rollout(world, policy, start, key, task.episode_length, episode_return, Return.zero())[1].total

    @jax.jit
    def episodes():
        return jax.vmap(episode)(*(jax.random.split(jax.random.key(n), count) for n in (1, seed)))

    return np.asarray(episodes())


def resetting_by_itself(task):
    """The task's World as a collector that resets inside and shows no end: dead candidates start over and go on earning."""

    def step(carry, action, key):
        after, row = task.world.step(carry, action, key)
        ended = row.terminated
        fresh = jax.tree.map(lambda new, old: jnp.where(ended, new, old), task.world.reset(key), after)
        return fresh, row._replace(terminated=jnp.zeros_like(ended))

    return task.world._replace(step=step)


@pytest.mark.promises
def test_planning_in_the_true_cart_and_pole_balances_it():
    task, planner = envs.make("cartpole-continuous"), cem.make(SEARCH, ONE)
    found = planned_episodes(task, planner, task.world, 2)
    np.testing.assert_array_equal(found, np.full(2, 200.0))
    # The marks of termination keep the objective right where the collector's wrapper resets inside.
    wrapped = auto_reset(task.world, open_loop(jnp.asarray(np.zeros((1, 1)))))[0]
    found = planned_episodes(task, planner, wrapped, 2)
    np.testing.assert_array_equal(found, np.full(2, 200.0))


@pytest.mark.parametrize(
    "config",
    [
        PlannerConfig("icem", icem=ICEMConfig(horizon=25, iterations=2)),
        pytest.param(
            PlannerConfig("mppi", mppi=MPPIConfig(horizon=25, population=100, iterations=2)), marks=pytest.mark.promises
        ),
        pytest.param(
            PlannerConfig("random-shooting", random_shooting=RandomShootingConfig(horizon=50, population=2000)),
            marks=pytest.mark.promises,
        ),
    ],
    ids=lambda config: config.method,
)
def test_the_other_planners_balance_it_too(config):
    task = envs.make("cartpole-continuous")
    found = planned_episodes(task, planners.make(config, ONE), task.world, 2)
    np.testing.assert_array_equal(found, np.full(2, 200.0))


@pytest.mark.promises
def test_a_simulator_that_resets_by_itself_misleads_the_planner():
    task, planner = envs.make("cartpole-continuous"), cem.make(SEARCH, ONE)
    found = planned_episodes(task, planner, resetting_by_itself(task), 4)
    assert found.max() < 100


@pytest.mark.slow
def test_planning_in_the_true_pendulum_swings_it_up():
    task, planner = envs.make("pendulum"), cem.make(CEMConfig(horizon=25, population=200, elites=20), ONE)
    found = planned_episodes(task, planner, task.world, 20)
    print("mean return", found.mean(), "deviation over start states", found.std())
    # -147 is expected; over start states returns deviate by some 126, so a mean over 20 does by 28.
    assert abs(found.mean() + 147) < 30


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cartpole-continuous", "pendulum"])
def test_icem_reaches_the_return_of_cem_with_a_third_of_its_candidates(name):
    task = envs.make(name)
    many = CEMConfig(horizon=20, population=100, elites=10, iterations=4)
    few = ICEMConfig(horizon=20, population=60, elites=20, iterations=2, deviation=0.7)
    assert sum(few.populations) + few.kept_elites <= many.population * many.iterations / 3
    by_many = planned_episodes(task, cem.make(many, ONE), task.world, 20, 101)
    by_few = planned_episodes(task, icem.make(few, ONE), task.world, 20, 101)
    print("CEM", by_many.mean(), "iCEM", by_few.mean())
    assert by_few.mean() >= by_many.mean()
    if name == "cartpole-continuous":
        np.testing.assert_array_equal(by_few, np.full(20, 200.0))
