"""The rollout on a world whose every number is known by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl import envs
from jaxmbrl.core.types import Policy, Transition, World
from jaxmbrl.rollout import (
    Return,
    auto_reset,
    episode_return,
    from_same_start,
    open_loop,
    planned_return,
    playback,
    rollout,
)

LIMIT = 4


def counter(fall=3.0, noisy=False):
    """A number that the action adds to: it terminates at `fall` and is truncated after 4 steps.

    A reset starts at 0; the carry is (number, steps). The reward is ten times the number before plus the action.
    """

    def step(carry, action, key):
        number, elapsed = carry
        after = number + action[0] + (jax.random.normal(key) if noisy else 0.0)
        terminated = after >= fall
        transition = Transition(
            observation=number[None],
            action=action,
            reward=10 * number + action[0],
            next_observation=after[None],
            terminated=terminated,
            truncated=(elapsed + 1 >= LIMIT) & ~terminated,
        )
        return (after, elapsed + 1), transition

    return World(
        reset=lambda key: (jnp.zeros(()), jnp.zeros((), jnp.int32)),
        start=lambda origin, key: (origin, jnp.zeros((), jnp.int32)),
        observe=lambda carry: carry[0][None],
        step=step,
    )


def remembering(action=1.0, noisy=False):
    """A policy of one action that counts its own steps since it last forgot, from 100; extras hold the count."""

    def act(memory, observation, key):
        noise = jax.random.normal(key) if noisy else 0.0
        return jnp.full(1, action) + noise, {"count": memory, "seen": observation}, memory + 1

    return Policy(init=lambda key: jnp.asarray(100, jnp.int32), act=act)


def begin(world, policy, key=None):
    key = jax.random.key(7) if key is None else key
    return world.reset(key), policy.init(key)


def played(world, policy, length, key=0):
    """A rollout from the beginning, compiled."""

    @jax.jit
    def play():
        return rollout(world, policy, begin(world, policy), jax.random.key(key), length)

    return jax.device_get(play())


@partial(jax.jit, static_argnums=0)
def noisy(length, key):
    world, policy = counter(noisy=True), remembering(noisy=True)
    return rollout(world, policy, begin(world, policy), jax.random.key(key), length)


def test_stacked_transitions_by_hand():
    (carry, memory), rows = played(counter(fall=99.0), remembering(2.0), 3)
    np.testing.assert_array_equal(rows.observation, [[0], [2], [4]])
    np.testing.assert_array_equal(rows.next_observation, [[2], [4], [6]])
    np.testing.assert_array_equal(rows.action, [[2], [2], [2]])
    np.testing.assert_array_equal(rows.reward, [2, 22, 42])
    np.testing.assert_array_equal(rows.extras["count"], [100, 101, 102])
    np.testing.assert_array_equal(rows.extras["seen"], rows.observation)
    assert (float(carry[0]), int(carry[1]), int(memory)) == (6.0, 3, 103)


def test_nothing_is_reset_without_the_wrapper():
    _, rows = played(counter(), remembering(), 6)
    np.testing.assert_array_equal(rows.observation[:, 0], range(6))
    np.testing.assert_array_equal(rows.terminated, [False, False, True, True, True, True])
    np.testing.assert_array_equal(rows.extras["count"], range(100, 106))


def test_a_prefix_does_not_depend_on_the_length():
    short, long = (jax.device_get(noisy(length, 0)[1]) for length in (5, 500))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[:5]), short, long)
    assert len(np.unique(long.action[:9])) == 9


def test_world_and_policy_draw_different_noise_at_every_step():
    rows, other = (jax.device_get(noisy(500, key)[1]) for key in (0, 1))
    acted = (rows.action[:, 0] - 1).astype(np.float64)
    moved = (rows.next_observation - rows.observation - rows.action).astype(np.float64)[:, 0]
    assert abs(np.corrcoef(acted, moved)[0, 1]) < 0.2
    assert abs(np.corrcoef(acted[1:], acted[:-1])[0, 1]) < 0.2
    assert not np.isin(other.action, rows.action).any()


def stack_into(acc, transition, i):
    return jax.tree.map(lambda buffer, x: buffer.at[i].set(x), acc, transition)


@pytest.mark.parametrize("traced", [False, True])
def test_a_fold_sees_what_is_stacked(traced):
    end, rows = jax.device_get(noisy(5, 0))

    def fold(length):
        world, policy = counter(noisy=True), remembering(noisy=True)
        empty = jax.tree.map(jnp.zeros_like, rows)
        return rollout(world, policy, begin(world, policy), jax.random.key(0), length, stack_into, empty)

    folded = jax.jit(fold, static_argnums=() if traced else 0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), jax.device_get(folded(5)), (end, rows))
    if traced:
        _, three = jax.device_get(folded(3))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a[:3], b[:3], rtol=1e-6), three, rows)
        assert not three.action[3:].any()
        (carry, _), _ = folded(0)
        assert int(carry[1]) == 0


@partial(jax.jit, static_argnums=1)
def resetting(fall, length, start=None):
    """The counter under `auto_reset`, from `start` or from the beginning."""
    world, policy = auto_reset(counter(fall), remembering())
    state = begin(world, policy) if start is None else start
    return rollout(world, policy, state, jax.random.key(0), length)


def test_auto_reset_at_a_termination():
    (episode, memory), rows = jax.device_get(resetting(3.0, 8))
    np.testing.assert_array_equal(rows.observation[:, 0], [0, 1, 2, 0, 1, 2, 0, 1])
    np.testing.assert_array_equal(rows.next_observation[:, 0], [1, 2, 3, 1, 2, 3, 1, 2])
    np.testing.assert_array_equal(rows.terminated, [0, 0, 1, 0, 0, 1, 0, 0])
    assert not rows.truncated.any()
    np.testing.assert_array_equal(rows.extras["count"], [100, 101, 102, 100, 101, 102, 100, 101])
    assert (float(episode.carry[0]), int(memory), bool(episode.is_first)) == (2.0, 102, False)


def test_auto_reset_at_a_truncation():
    (episode, _), rows = jax.device_get(resetting(99.0, 8))
    np.testing.assert_array_equal(rows.observation[:, 0], [0, 1, 2, 3, 0, 1, 2, 3])
    np.testing.assert_array_equal(rows.next_observation[:, 0], [1, 2, 3, 4, 1, 2, 3, 4])
    np.testing.assert_array_equal(rows.truncated, [0, 0, 0, 1, 0, 0, 0, 1])
    assert not rows.terminated.any()
    np.testing.assert_array_equal(rows.extras["count"], [100, 101, 102, 103, 100, 101, 102, 103])
    # the last step ended an episode: the next one has begun, and is marked so
    assert (float(episode.carry[0]), int(episode.carry[1]), bool(episode.is_first)) == (0.0, 0, True)


def test_auto_reset_when_every_step_ends_an_episode():
    _, rows = jax.device_get(resetting(1.0, 8))
    np.testing.assert_array_equal(rows.observation[:, 0], np.zeros(8))
    np.testing.assert_array_equal(rows.next_observation[:, 0], np.ones(8))
    np.testing.assert_array_equal(rows.terminated, np.ones(8))
    np.testing.assert_array_equal(rows.extras["count"], np.full(8, 100))


def test_what_is_computed_for_all_steps_at_once_is_what_each_step_would_compute():
    base = counter(fall=3.0, noisy=True)
    base = base._replace(reset=lambda key: (jax.random.uniform(key), jnp.zeros((), jnp.int32)))
    inner = remembering(noisy=True)._replace(init=lambda key: jax.random.randint(key, (), 0, 100, jnp.int32))
    world, policy = auto_reset(base, inner)
    assert world.prepare is not None and policy.prepare is not None
    _, together = played(world, policy, 30)
    _, alone = played(world._replace(prepare=None), policy._replace(prepare=None), 30)
    jax.tree.map(np.testing.assert_array_equal, together, alone)
    assert together.terminated.sum() > 3


def test_auto_reset_goes_on_across_two_rollouts():
    state, _ = resetting(3.0, 3)
    assert bool(state[0].is_first)
    _, second = jax.device_get(resetting(3.0, 5, state))
    np.testing.assert_array_equal(second.observation[:, 0], [0, 1, 2, 0, 1])
    np.testing.assert_array_equal(second.extras["count"], [100, 101, 102, 100, 101])


def test_a_start_from_a_state_is_a_fresh_episode():
    world, _ = auto_reset(counter(fall=99.0), remembering())
    stale = jnp.asarray(5, jnp.int32)
    episode = jax.jit(world.start)(np.float32(2.0), jax.random.key(0))
    assert bool(episode.is_first)
    _, rows = jax.device_get(resetting(99.0, 5, (episode, stale)))
    np.testing.assert_array_equal(rows.observation[:, 0], [2, 3, 4, 5, 0])
    np.testing.assert_array_equal(rows.extras["count"], [100, 101, 102, 103, 100])


def test_each_reset_of_world_and_policy_is_a_new_draw():
    base = counter(fall=99.0)
    world = base._replace(reset=lambda key: (jax.random.uniform(key), jnp.zeros((), jnp.int32)))
    policy = remembering()._replace(init=lambda key: jax.random.randint(key, (), 0, 2**30, jnp.int32))
    _, rows = played(*auto_reset(world, policy), 40)
    first = rows.observation[::LIMIT, 0]
    counts = rows.extras["count"]
    assert len(np.unique(first)) == 10 and (first >= 0).all() and (first < 1).all()
    assert len(np.unique(counts[::LIMIT])) == 10
    np.testing.assert_array_equal(counts.reshape(10, LIMIT) - counts[::LIMIT, None], np.tile(range(LIMIT), (10, 1)))


def test_a_world_that_returns_to_its_start():
    """The memory of the policy begins anew, as at any reset."""
    base = counter(fall=99.0)
    world = base._replace(reset=lambda key: (jax.random.uniform(key), jnp.zeros((), jnp.int32)))
    policy = remembering()._replace(init=lambda key: jax.random.randint(key, (), 0, 2**30, jnp.int32))
    _, rows = played(*auto_reset(from_same_start(world), policy), 40)
    begin = rows.observation[0, 0]
    np.testing.assert_allclose(rows.observation[:, 0], begin + np.tile(range(LIMIT), 10), rtol=1e-6)
    assert 0 < begin < 1 and len(np.unique(rows.extras["count"][::LIMIT])) == 10


def test_memory_may_hold_a_key():
    def act(memory, observation, key):
        return jax.random.normal(memory, (1,)), jax.random.key_data(memory), memory

    policy = Policy(init=lambda key: key, act=act)
    _, rows = played(*auto_reset(counter(fall=99.0), policy), 8)
    data = rows.extras
    assert (data[:4] == data[0]).all() and (data[4:] == data[4]).all() and (data[0] != data[4]).any()


def test_no_reset_leaks_into_a_transition_of_a_real_task():
    task = envs.make("cartpole-continuous")
    policy = Policy(lambda key: (), lambda memory, observation, key: (task.action.sample(key), (), memory))
    _, rows = played(*auto_reset(task.world, policy), 300)
    ended = rows.terminated | rows.truncated
    assert ended.sum() > 3
    observation, after = rows.observation, rows.next_observation
    np.testing.assert_array_equal(observation[1:][~ended[:-1]], after[:-1][~ended[:-1]])
    assert (np.abs(observation[1:][ended[:-1]]) <= 0.05).all()
    # position and angle move by the velocities held before the step: true of the last step of an episode too
    np.testing.assert_allclose(after[:, [0, 2]], observation[:, [0, 2]] + 0.02 * observation[:, [1, 3]], atol=1e-6)


def test_open_loop_plays_the_actions_in_turn():
    actions = jnp.array([[1.0], [-2.0], [0.5]])
    (carry, memory), rows = played(counter(fall=99.0), open_loop(actions), 3)
    np.testing.assert_array_equal(rows.action, actions)
    np.testing.assert_array_equal(rows.next_observation[:, 0], [1, -1, -0.5])
    assert (rows.extras, int(memory), float(carry[0])) == ((), 3, -0.5)


FOLDS = {fold: jax.jit(fold) for fold in (episode_return, planned_return)}


def summed(fold, rewards, terminated, truncated, kind=bool):
    """The fold over hand-made steps, [T] or [T, N]."""
    shape = np.shape(rewards)[1:]
    acc, blank = Return(np.zeros(shape, np.float32), np.ones(shape, np.float32)), np.zeros((*shape, 1), np.float32)
    for i, (reward, end, cut) in enumerate(zip(rewards, terminated, truncated, strict=True)):
        numbers = np.asarray(reward, np.float32), np.asarray(end, kind), np.asarray(cut, bool)
        acc = FOLDS[fold](acc, Transition(blank, blank, numbers[0], blank, *numbers[1:]), i)
    return acc


@pytest.mark.parametrize(
    ("terminated", "truncated", "episode", "planned"),
    [
        ([0, 0, 0, 0], [0, 0, 0, 0], 1111.0, 1111.0),
        ([0, 1, 0, 0], [0, 0, 0, 0], 11.0, 11.0),
        ([0, 0, 0, 0], [0, 1, 0, 0], 11.0, 1111.0),
        ([0, 0, 1, 0], [0, 1, 0, 0], 11.0, 111.0),
        ([1, 0, 0, 1], [0, 0, 0, 0], 1.0, 1.0),
    ],
)
def test_returns_by_hand(terminated, truncated, episode, planned):
    rewards = [1.0, 10.0, 100.0, 1000.0]
    assert float(summed(episode_return, rewards, terminated, truncated).total) == episode
    assert float(summed(planned_return, rewards, terminated, truncated).total) == planned
    assert bool(summed(planned_return, rewards, terminated, truncated).alive) == (not any(terminated))


def test_returns_of_a_block_of_rows():
    acc = summed(planned_return, [[1.0, 2.0], [10.0, 20.0]], [[1, 0], [0, 0]], [[0, 0], [0, 0]])
    np.testing.assert_array_equal(acc.total, [1, 22])
    np.testing.assert_array_equal(acc.alive, [False, True])


def test_a_fault_after_the_end_does_not_count():
    acc = summed(episode_return, [1.0, np.nan], [1, 0], [0, 0])
    assert float(acc.total) == 1.0
    assert np.isnan(summed(episode_return, [1.0, np.nan], [0, 0], [0, 0]).total)


def probable(rewards, chances):
    """`planned_return` over hand-made steps whose terminations are probabilities."""
    return summed(planned_return, rewards, chances, np.zeros(len(rewards)), float)


def test_a_probability_of_termination_weighs_what_follows():
    # 1 + .75 * 10 + .75 * .5 * 100, and nothing after a certain end
    acc = probable([1.0, 10.0, 100.0, 1000.0], [0.25, 0.5, 1.0, 0.0])
    assert (float(acc.total), float(acc.alive)) == (1 + 7.5 + 37.5, 0.0)


def test_probabilities_of_0_and_1_are_terminations():
    rewards, ends = [1.0, 10.0, 100.0, 1000.0], [0, 0, 1, 0]
    drawn = summed(planned_return, rewards, ends, np.zeros(4))
    jax.tree.map(np.testing.assert_array_equal, probable(rewards, ends), drawn)


def test_probabilities_give_the_mean_over_drawn_terminations():
    rewards, chances, draws = [1.0, -2.0, 3.0], np.array([0.3, 0.1, 0.7]), 20_000
    ends = np.random.default_rng(0).uniform(size=(draws, 3)) < chances
    drawn = np.array(summed(planned_return, np.tile(np.array(rewards)[:, None], draws), ends.T, np.zeros((3, draws))).total)
    error = drawn.std() / np.sqrt(draws)
    assert abs(drawn.mean() - float(probable(rewards, chances).total)) < 4 * error < 0.1


def test_a_probability_that_is_not_a_number_is_not_lost():
    assert np.isnan(probable([1.0, 1.0], [np.nan, 0.0]).total)
    assert float(probable([1.0, 1.0, 1.0], [1.0, np.nan, np.nan]).total) == 1.0


def test_return_of_a_rollout():
    world, policy = counter(), remembering()

    @jax.jit
    def play():
        return rollout(world, policy, begin(world, policy), jax.random.key(0), 6, episode_return, Return.zero())[1]

    assert float(play().total) == 1 + 11 + 21


def test_reverse_mode_through_a_static_fold():
    # J = sum_t 10 s_t + a_t with s_t = sum of the earlier actions, so dJ/da_t = 1 + 10 (H - 1 - t)
    world = counter(fall=jnp.inf)

    def objective(actions):
        policy = open_loop(actions)
        state = begin(world, policy)
        return rollout(world, policy, state, jax.random.key(0), 3, planned_return, Return.zero())[1].total

    gradient = jax.jit(jax.grad(objective))(np.array([[0.3], [-0.2], [0.1]], np.float32))
    np.testing.assert_allclose(gradient, [[21], [11], [1]], rtol=1e-6)


def test_vmap_over_environments_equals_each_alone():
    world, policy = auto_reset(counter(noisy=True), remembering(noisy=True))

    def one(seed):
        reset_key, run_key = jax.random.split(jax.random.key(seed))
        return rollout(world, policy, begin(world, policy, reset_key), run_key, 12)[1]

    together = jax.device_get(jax.jit(jax.vmap(one))(np.arange(4)))
    assert len(np.unique(together.action)) == 48
    assert len({tuple(row) for row in together.terminated}) > 1
    alone = jax.jit(one)
    for i in range(4):
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-6), together, alone(i))


def test_float64_stays_float64():
    with jax.enable_x64(True):
        world, policy = auto_reset(counter(), remembering())

        @jax.jit
        def play():
            state = begin(world, policy)
            acc = rollout(world, policy, state, jax.random.key(0), 5, episode_return, Return.zero())[1]
            return state, rollout(world, policy, state, jax.random.key(0), 5), acc

        state, (end, rows), acc = play()
        assert rows.reward.dtype == rows.next_observation.dtype == jnp.float64
        assert jax.tree.map(lambda x: x.dtype, end) == jax.tree.map(lambda x: x.dtype, state)
        assert acc.total.dtype == jnp.float64


def recorded(rows=3):
    """Transitions that tell their own number, and could come from no world."""
    number = np.arange(rows, dtype=np.float32)
    data = Transition(
        observation=np.stack([number, number + 0.5], axis=1),
        action=-number[:, None] / rows,
        reward=100 * number,
        next_observation=np.stack([number + 0.25, number], axis=1),
        terminated=np.arange(rows) == 1,
        truncated=np.arange(rows) == 2,
    )
    return jax.tree.map(jnp.asarray, data)


@pytest.mark.parametrize(("rows", "steps"), [(3, 8), (1, 2), (5, 3)])
def test_recorded_rows_come_in_turn_without_extras(rows, steps):
    data = recorded(rows)

    (place, memory), found = played(*playback(data), steps, 3)
    expected = np.arange(steps) % rows
    for name in Transition._fields[:-1]:
        np.testing.assert_array_equal(getattr(found, name), np.asarray(getattr(data, name))[expected], strict=True)
    assert (int(place), memory, found.extras) == (steps % rows, (), ())


def test_a_playback_goes_on_where_it_stood():
    data = recorded(5)
    world, policy = playback(data)

    @jax.jit
    def play():
        halfway, first = rollout(world, policy, begin(world, policy), jax.random.key(0), 3)
        return first, rollout(world, policy, halfway, jax.random.key(1), 4)[1]

    first, second = play()
    assert [*first.reward.tolist(), *second.reward.tolist()] == [0, 100, 200, 300, 400, 0, 100]
