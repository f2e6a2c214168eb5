"""Tasks of finitely many states: against Gymnasium's tables, and transcriptions of bsuite's rules; values of tables."""

import functools

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxmbrl import envs
from jaxmbrl.core.config import UserError
from jaxmbrl.core.spaces import Box, Discrete
from jaxmbrl.envs.tabular import deep_sea, tables
from jaxmbrl.envs.tabular.catch import Position

GRIDS = {
    "CliffWalking": ("CliffWalking-v1", {}),
    "FrozenLake": ("FrozenLake-v1", {}),
    "FrozenLake/deterministic": ("FrozenLake-v1", {"is_slippery": False}),
    "FrozenLake8x8": ("FrozenLake8x8-v1", {}),
    "FrozenLake8x8/deterministic": ("FrozenLake8x8-v1", {"is_slippery": False}),
}


@functools.cache
def made(name):
    return envs.make(name)


@functools.cache
def stepper(name):
    """(state numbers, actions, keys) -> (transitions, (known reward, known termination))."""
    task = made(name)

    def step(state, action, key):
        row = task.world.step(task.world.start(task.env.state_at(state), key), action, key)[1]
        known = task.reward(row.observation, action, row.next_observation), task.terminated(row.next_observation)
        return row, known

    return jax.jit(jax.vmap(step))


@functools.cache
def theirs(name):
    identity, options = GRIDS[name]
    return gymnasium.make(identity, **options)


@pytest.mark.parametrize("name", GRIDS)
def test_tables_are_gymnasiums(name):
    mdp, their = made(name).env.mdp, theirs(name).unwrapped
    assert (mdp.states, mdp.actions) == (their.observation_space.n, their.action_space.n)
    for state in range(mdp.states):
        for action in range(mdp.actions):
            due = [(float(p), int(s), float(r), bool(d)) for p, s, r, d in their.P[state][action]]
            at = (state, action)
            columns = (mdp.probabilities[at], mdp.successors[at], mdp.rewards[at], mdp.terminated[at])
            ours = [tuple(x.item() for x in outcome) for outcome in zip(*columns, strict=True)]
            assert [outcome for outcome in ours if outcome[0] > 0] == due
    np.testing.assert_array_equal(mdp.initial, their.initial_state_distrib)


@pytest.mark.parametrize("name", GRIDS)
def test_lengths_and_spaces(name):
    task, their = made(name), theirs(name)
    assert task.episode_length == (their.spec.max_episode_steps or 200)
    assert task.observation == Discrete(their.observation_space.n) and task.action == Discrete(their.action_space.n)
    assert task.name == name


@pytest.mark.parametrize("name", ["CliffWalking", "FrozenLake/deterministic"])
def test_an_episode_is_gymnasiums(name):
    """1,000 random steps, with resets where an episode ends."""
    task, their = made(name), theirs(name).unwrapped
    actions = np.random.default_rng(0).integers(task.action.n, size=1000).astype(np.int32)
    their.reset(seed=0)
    states, after, rewards, terminated = (np.zeros(1000) for _ in range(4))
    for i, action in enumerate(actions):
        states[i] = their.s
        after[i], rewards[i], terminated[i], *_ = their.step(int(action))
        if terminated[i]:
            their.reset()
    keys = jax.random.split(jax.random.key(0), 1000)
    row, known = jax.device_get(stepper(name)(states.astype(np.int32), actions, keys))
    for ours, due in (
        (row.observation, states),
        (row.next_observation, after),
        (row.reward, rewards),
        (row.terminated, terminated),
        (known[0], rewards),
        (known[1], terminated),
    ):
        np.testing.assert_array_equal(ours, due)
    assert row.next_observation.dtype == row.action.dtype == np.int32 and row.reward.dtype == np.float32
    # Random walkers fall off the cliff all the time, and into holes.
    assert (rewards == -100).sum() > 50 if name == "CliffWalking" else terminated.sum() > 50


def test_ways_along_the_cliff():
    """13 steps above the edge; the first step to the right falls, and goes on."""
    for actions, total, ended in (([0, *[1] * 11, 2], -13.0, True), ([1, 1, 0, 2], -202.0, False)):
        rows = walked(made("CliffWalking"), actions)
        assert rows.reward.sum() == total and bool(rows.terminated[-1]) == ended and not rows.terminated[:-1].any()
        assert rows.next_observation[-1] == (47 if ended else 36)


def walked(task, actions):
    """Transitions of the actions from a reset."""

    def play(key, actions):
        return jax.lax.scan(lambda carry, action: task.world.step(carry, action, key), task.world.reset(key), actions)[1]

    return jax.device_get(jax.jit(play)(jax.random.key(0), np.array(actions, np.int32)))


def test_ice_is_as_slippery_as_it_says():
    """Outcomes of 3,000 keys from one state, by a chi-squared test; the key of the step draws them, not the state's."""
    task = made("FrozenLake")
    state, action = 14, jnp.int32(1)  # Down, from the left of the goal: left, stay, right.

    @jax.jit
    def step(keys):
        carry = task.world.start(task.env.state_at(state), jax.random.key(0))
        return jax.vmap(lambda key: task.world.step(carry, action, key)[1])(keys)

    rows = jax.device_get(step(jax.random.split(jax.random.key(0), 3000)))
    counts = [(rows.next_observation == after).sum() for after in (13, 14, 15)]
    assert sum(counts) == 3000 and stats.chisquare(counts).pvalue > 1e-3
    np.testing.assert_array_equal(rows.reward, rows.next_observation == 15)
    np.testing.assert_array_equal(rows.terminated, rows.next_observation == 15)


def test_a_slippery_environment_goes_on_by_its_own_key():
    """In the Brax interface a state contains the key of its next step: 40 steps differ from seed to seed."""
    env = made("FrozenLake8x8").env

    @jax.jit
    @jax.vmap
    def play(key):
        step = lambda state, _: (env.step(state, jnp.int32(1)), state.pipeline_state)  # noqa: E731
        return jax.lax.scan(step, env.reset(key), None, 40)[1]

    seen = np.asarray(play(jax.random.split(jax.random.key(0), 32)))
    assert (seen[:, 0] == 0).all() and len({tuple(row) for row in seen}) > 25
    moved = np.abs(np.diff(seen, axis=1))
    assert set(np.unique(moved)) == {0, 1, 8}


def test_optimal_values_are_known_ones():
    """13 steps of -1; FrozenLake's optimum at discount 0.99 and in 100 steps; and by linear equations."""
    cliff, lake = made("CliffWalking").env.mdp, made("FrozenLake").env.mdp
    assert tables.optimal_values(cliff, 1.0)[36] == pytest.approx(-13, abs=1e-12)
    assert tables.optimal_values(lake, 0.99)[0] == pytest.approx(0.542026, abs=1e-6)
    values = np.zeros(16)
    for _ in range(100):
        values = tables.action_values(lake, values, 1.0).max(axis=1)
    assert values[0] == pytest.approx(0.744190, abs=1e-6)
    best = tables.optimal_values(lake, 0.95)
    choice = tables.action_values(lake, best, 0.95).argmax(axis=1)
    moves, gains = np.zeros((16, 16)), np.zeros(16)
    for state in range(16):
        at = (state, choice[state])
        np.add.at(moves[state], lake.successors[at], lake.probabilities[at] * ~lake.terminated[at])
        gains[state] = lake.probabilities[at] @ lake.rewards[at]
    np.testing.assert_allclose(best, np.linalg.solve(np.eye(16) - 0.95 * moves, gains), rtol=0, atol=1e-12)


def test_visited_states_are_those_before_a_step():
    cliff, lake = made("CliffWalking").env.mdp, made("FrozenLake").env.mdp
    np.testing.assert_array_equal(np.flatnonzero(~tables.visited(cliff)), np.arange(37, 48))
    np.testing.assert_array_equal(np.flatnonzero(~tables.visited(lake)), [5, 7, 11, 12, 15])


def test_values_that_grow_for_ever_are_an_error(monkeypatch):
    monkeypatch.setattr(tables, "SWEEPS", 1000)
    mdp = tables.deterministic(np.zeros((1, 1), int), np.ones((1, 1)), np.zeros((1, 1), bool), 0)
    with pytest.raises(ValueError, match="has not converged"):
        tables.optimal_values(mdp, 1.0)
    assert tables.optimal_values(mdp, 0.9)[0] == pytest.approx(10, rel=1e-12)


TWO = tables.from_outcomes(
    [
        [[(0.25, 1, 1.0, False), (0.75, 0, 0.0, False)], [(1.0, 0, 5.0, False)]],
        [[(1.0, 0, 0.0, True)], [(1.0, 1, 2.0, False)]],
    ],
    np.array([0.5, 0.5]),
)


def test_rewards_and_ends_are_functions_where_they_can_be():
    """State 0 is reached with and without an end. Of one pair, two outcomes with the same successor pay differently."""
    assert tables.terminated_of(TWO) is None
    reward = tables.reward_of(TWO)
    told = reward(*(jnp.array(x, jnp.int32) for x in ([0, 0, 0, 1, 1], [0, 0, 1, 0, 1], [1, 0, 0, 0, 1])))
    np.testing.assert_array_equal(told, [1, 0, 5, 0, 2])
    twice = tables.from_outcomes([[[(0.5, 0, 1.0, False), (0.5, 0, 2.0, False)]]], np.ones(1))
    assert tables.reward_of(twice) is None
    task = tables.tabular_task("two", TWO, 7)
    assert task.terminated is None and not hasattr(task.env, "draw")
    starts = jax.jit(jax.vmap(task.env.reset))(jax.random.split(jax.random.key(0), 400)).pipeline_state
    assert 150 < int(starts.sum()) < 250


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"successors": np.full((2, 2, 2), 2)}, "successors must be from 0 to 1"),
        ({"initial": np.array([0.5, 0.4])}, "must sum to 1"),
        ({"probabilities": np.tile([2.0, -1.0], (2, 2, 1))}, "must not be negative"),
        ({"rewards": np.zeros((2, 2))}, r"tables must be \[S, A, K\]"),
    ],
)
def test_tables_that_are_no_process(change, message):
    with pytest.raises(ValueError, match=message):
        tables.TabularEnv(TWO._replace(**change))


class TheirCatch:
    """bsuite's rules in NumPy."""

    def __init__(self, column):
        self.x, self.y, self.paddle = column, 0, 2

    def board(self):
        board = np.zeros((10, 5))
        board[self.y, self.x] = 1
        board[9, self.paddle] = 1
        return board.ravel()

    def step(self, action):
        self.paddle = min(max(self.paddle + (-1, 0, 1)[action], 0), 4)
        self.y += 1
        ended = self.y == 9
        return (1.0 if self.paddle == self.x else -1.0) if ended else 0.0, ended


def test_catch_is_bsuites():
    """111 episodes, of which a third follows the ball."""
    task = made("bsuite/Catch")
    rng = np.random.default_rng(0)
    starts = rng.integers(5, size=111)
    actions = rng.integers(3, size=(111, 9)).astype(np.int32)
    way = starts[::3, None] - 2
    actions[::3] = np.where(np.arange(9) < abs(way), 1 + np.sign(way), 1)
    observation, after = np.zeros((2, 111, 9, 50))
    reward, terminated = np.zeros((111, 9)), np.zeros((111, 9), bool)
    for i, column in enumerate(starts):
        game = TheirCatch(column)
        for t, action in enumerate(actions[i]):
            observation[i, t] = game.board()
            reward[i, t], terminated[i, t] = game.step(action)
            after[i, t] = game.board()

    def play(column, actions):
        start = task.env.state_at(Position(jnp.int32(0), column, jnp.int32(2)))
        key = jax.random.key(0)
        rows = jax.lax.scan(lambda c, action: task.world.step(c, action, key), task.world.start(start, key), actions)[1]
        return (
            rows,
            task.reward(rows.observation, rows.action, rows.next_observation),
            task.terminated(rows.next_observation),
        )

    rows, *known = jax.device_get(jax.jit(jax.vmap(play))(starts.astype(np.int32), actions))
    np.testing.assert_array_equal(rows.observation, observation)
    np.testing.assert_array_equal(rows.next_observation, after)
    for ours in (rows.reward, known[0]):
        np.testing.assert_array_equal(ours, reward)
    for ours in (rows.terminated, known[1]):
        np.testing.assert_array_equal(ours, terminated)
    assert not rows.truncated.any() and (reward[::3, -1] == 1).all() and (reward[:, -1] == -1).sum() > 20
    assert task.observation == Box((50,), 0.0, 1.0) and task.action == Discrete(3) and task.episode_length == 9


def test_catch_begins_anywhere_in_the_top_row():
    starts = jax.jit(jax.vmap(made("bsuite/Catch").env.reset))(jax.random.split(jax.random.key(0), 1000)).pipeline_state
    assert stats.chisquare(np.bincount(starts.ball_column, minlength=5)).pvalue > 1e-3
    assert not starts.ball_row.any() and (starts.paddle_column == 2).all()


def their_deep_sea(size, mapping, actions):
    """bsuite's rules in NumPy: (boards [T + 1, N * N], rewards [T])."""
    column, boards, rewards = 0, [], []
    for row, action in enumerate([*actions, None]):
        board = np.zeros((size, size))
        if row < size:
            board[row, column] = 1
        boards.append(board.ravel())
        if action is None:
            return np.array(boards), np.array(rewards)
        if action == mapping[row, column]:
            rewards.append((1.0 if column == size - 1 else 0.0) - 0.01 / size)
            column = min(column + 1, size - 1)
        else:
            rewards.append(0.0)
            column = max(column - 1, 0)


@pytest.mark.parametrize("seed", [42, None])
def test_deep_sea_is_bsuites(seed):
    """100 random episodes of 10 steps and the best one, as a board and as a table."""
    mapping = deep_sea.action_mapping(10, seed)
    actions = np.random.default_rng(0).integers(2, size=(101, 10)).astype(np.int32)
    actions[-1] = np.diag(mapping)
    due = [their_deep_sea(10, mapping, episode) for episode in actions]
    boards, rewards = (np.array(x) for x in zip(*due, strict=True))
    for make in (deep_sea.deep_sea, deep_sea.deep_sea_tabular):
        task = make(10, seed)

        @jax.jit
        @jax.vmap
        def play(actions, task=task):
            key = jax.random.key(0)
            rows = jax.lax.scan(lambda c, action: task.world.step(c, action, key), task.world.reset(key), actions)[1]
            known = task.reward(rows.observation, rows.action, rows.next_observation)
            return rows, known, task.terminated(rows.next_observation)

        rows, reward, terminated = jax.device_get(play(actions))
        seen = np.concatenate([rows.observation, rows.next_observation[:, -1:]], axis=1)
        if seen.ndim == 2:
            assert (seen[:, -1] == 100).all()
            seen = np.eye(101)[seen][..., :100]
        np.testing.assert_array_equal(seen, boards)
        for ours in (rows.reward, reward):
            np.testing.assert_allclose(ours, rewards, rtol=0, atol=1e-7)
        for ours in (rows.terminated, terminated):
            np.testing.assert_array_equal(ours, np.tile(np.arange(10) == 9, (101, 1)))
        assert rewards[-1].sum() == pytest.approx(0.99) and np.median(rewards.sum(axis=1)) < 0
        assert tables.optimal_values(task.env.mdp, 1.0)[0] == pytest.approx(0.99, abs=1e-12)
    assert deep_sea.action_mapping(10, 42).mean() == pytest.approx(0.5, abs=0.15)


def test_deep_sea_in_any_size():
    task = envs.make("bsuite/DeepSea/8")
    assert (task.name, task.episode_length, task.observation) == ("bsuite/DeepSea/8", 8, Box((64,), 0.0, 1.0))
    table = envs.make("bsuite/DeepSea/5/tabular")
    assert (table.name, table.episode_length, table.observation) == ("bsuite/DeepSea/5/tabular", 5, Discrete(26))
    assert envs.make("bsuite/DeepSea").name == "bsuite/DeepSea"
    assert envs.make("bsuite/DeepSea/tabular").observation == Discrete(101)
    for wrong in ("DeepSea/1", "DeepSea/101", "DeepSea/x", "DeepSee", "DeepSea/8/table"):
        with pytest.raises(UserError, match=f"unknown task 'bsuite/{wrong}'; there are bsuite/Catch, bsuite/DeepSea/N"):
            envs.make(f"bsuite/{wrong}")
