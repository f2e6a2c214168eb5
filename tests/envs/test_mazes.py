"""Mazes: their cells, their shortest paths, and walls that change across episodes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl import envs
from jaxmbrl.core.config import UserError
from jaxmbrl.core.types import Policy
from jaxmbrl.envs.base import initial_state
from jaxmbrl.envs.tabular import mazes
from jaxmbrl.rollout import auto_reset, rollout

WALLS = {(1, 2), (2, 2), (3, 2), (0, 7), (1, 7), (2, 7), (4, 5)}
UP, DOWN, LEFT, RIGHT = range(4)


def shortest(mdp):
    """Steps of the shortest path, by breadth-first search over the process."""
    reached, steps = {int(np.argmax(mdp.initial))}, 0
    while True:
        steps += 1
        pairs = [(s, a) for s in reached for a in range(4)]
        if any(mdp.terminated[s, a, 0] for s, a in pairs):
            return steps
        reached |= {int(mdp.successors[s, a, 0]) for s, a in pairs}


def test_the_dyna_maze_is_that_of_the_book():
    task = envs.make("dyna-maze")
    mdp = task.env.mdp
    assert (task.observation.n, task.action.n, int(np.argmax(mdp.initial))) == (54, 4, 18)
    for r in range(6):
        for c in range(9):
            for action, (down, right) in enumerate(((-1, 0), (1, 0), (0, -1), (0, 1))):
                at = (r + down, c + right)
                if not (0 <= at[0] < 6 and 0 <= at[1] < 9) or at in WALLS:
                    at = (r, c)
                if (r, c) not in WALLS and (r, c) != (0, 8):
                    goal = at == (0, 8)
                    found = [table[9 * r + c, action, 0] for table in (mdp.successors, mdp.rewards, mdp.terminated)]
                    assert found == [9 * at[0] + at[1], float(goal), goal]
    assert shortest(mdp) == 14


@pytest.mark.parametrize(("name", "cells", "steps"), [("dyna-maze-216", 216, 27), ("dyna-maze-486", 486, 40)])
def test_larger_mazes(name, cells, steps):
    mdp = envs.make(name).env.mdp
    assert mdp.states == cells and shortest(mdp) == steps and mdp.initial.sum() == 1


@pytest.mark.parametrize(("name", "steps"), [("blocking-maze", [10, 16]), ("shortcut-maze", [16, 10])])
def test_paths_before_and_after_the_change(name, steps):
    assert [shortest(mdp) for mdp in envs.make(name).env.mdps] == steps


def test_walls_change_at_a_step_counted_across_episodes():
    """To the goal of the blocking maze along its right side, again and again, until the gap is a wall: 100 episodes of 10
    steps, then none."""
    task = envs.make("blocking-maze")
    path = jnp.array([RIGHT] * 5 + [UP] * 5)

    def act(memory, cell, key):
        # A policy with a memory: the number of steps in this episode.
        return path[jnp.minimum(memory, 9)], (), memory + 1

    world, policy = auto_reset(task.world, Policy(lambda key: jnp.zeros((), jnp.int32), act))

    def run(key):
        return rollout(world, policy, (world.reset(key), policy.init(key)), key, 1040)

    (episode, _), rows = jax.jit(run)(jax.random.key(0))
    ended = np.asarray(rows.terminated)
    assert np.flatnonzero(ended).tolist() == list(range(9, 1000, 10))
    assert np.asarray(rows.reward).sum() == 100
    cells = np.asarray(rows.next_observation)
    assert cells[999] == 8 and cells[1039] == 9 * 4 + 8, "below the new wall"
    walker = episode.carry[0].pipeline_state
    assert (int(walker.elapsed), int(walker.cell)) == (1040, 44)


def test_a_step_is_one_of_the_maze_at_that_time_and_its_picture_shows_it():
    env = envs.make("shortcut-maze").env
    step = jax.jit(lambda elapsed: env.step(env.state_at(jnp.int32(9 * 4 + 8), elapsed), jnp.int32(UP)))
    before, after = step(jnp.int32(2999)), step(jnp.int32(3000))
    assert int(before.obs) == 44 and int(after.obs) == 35
    pictures = [env.draw(jax.device_get(state), UP) for state in (before, after)]
    assert (pictures[0] != pictures[1]).any()


def test_a_repeated_action_keeps_the_count():
    task = envs.make("blocking-maze", action_repeat=2)

    def act(memory, cell, key):
        return jnp.int32(RIGHT), (), memory

    def run(key):
        carry = task.world.reset(key)
        carry, _ = task.world.step(carry, jnp.int32(RIGHT), key)
        return task.world.next_episode(carry, key)

    (inner, elapsed) = jax.jit(run)(jax.random.key(0))
    assert int(inner[0].pipeline_state.elapsed) == 2 and int(elapsed) == int(inner[1]) == 0
    assert int(inner[0].obs) == 9 * 5 + 3


def test_enlarged_cells():
    assert mazes.enlarged(("S#", ".G"), 2) == ["S.##", "..##", "..GG", "..GG"]


def test_a_wrong_next_episode_is_named():
    class Wrong:
        observation_size = action_size = 1

        def reset(self, rng):
            return initial_state(jnp.zeros(1), jnp.zeros(1))

        def step(self, state, action):
            return state

        def next_episode(self, state):
            return state

    with pytest.raises(UserError, match="next_episode"):
        envs.make_task("wrong", Wrong(), 5)
