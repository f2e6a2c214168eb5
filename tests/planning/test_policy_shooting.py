"""Policy shooting: in a world of which every return is known, the best candidate by hand, and its parts against a loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl import planning
from jaxmbrl.core.types import Policy, Transition, World
from jaxmbrl.planning import policy_shooting
from jaxmbrl.planning.policy_shooting import PolicyShootingConfig

ACTION = planning.unit_box(1)
CANDIDATES, HORIZON, DISCOUNT = 7, 3, 0.5
START = 0.25


def step(observation, action, key):
    """s' = s + a, r = -s'^2; ends above 0.9, where r is better than it is."""
    following = observation + action
    ended = following[:, 0] > 0.9
    row = Transition(observation, action, -jnp.sum(following**2, axis=1), following, ended, jnp.zeros_like(ended))
    return following, row


WORLD = World(reset=lambda key: None, start=lambda origin, key: origin, observe=lambda carry: carry, step=step)


def policy(explore):
    """-s / 2, with uniform noise while exploring."""

    def act(memory, observation, key):
        noise = jax.random.uniform(key, observation.shape, minval=-0.8, maxval=0.8) if explore else 0.0
        return jnp.clip(-0.5 * observation + noise, -1, 1), (), memory

    return Policy(lambda key: (), act)


def value(observation):
    return 10 * observation[:, 0]


def plan(tail=False, terminal_value=value, key=0, count=CANDIDATES, world=WORLD):
    config = PolicyShootingConfig(HORIZON, tail)
    planner = policy_shooting.make(config, ACTION, policy(True), policy(False), DISCOUNT)
    origin = jnp.full((count, 1), START)
    problem = planning.make_problem(world, origin, ACTION, terminal_value=terminal_value)
    return jax.jit(lambda key: planner.plan(problem, planner.init(), key))(jax.random.key(key))


def by_loop(first, terminal_value):
    """(actions, return) of the trajectory with a first action, later ones without noise."""
    state, total, alive, actions = START, 0.0, 1.0, []
    for t in range(HORIZON):
        action = float(np.clip(first if t == 0 else -0.5 * state, -1, 1))
        state += action
        total += alive * DISCOUNT**t * -(state**2)
        alive *= float(state <= 0.9)
        actions.append(action)
    return actions, total + alive * DISCOUNT**HORIZON * (10 * state if terminal_value else 0.0)


@pytest.mark.parametrize("terminal_value", [value, None])
def test_it_takes_the_best_of_the_trajectories_that_the_policy_samples(terminal_value):
    actions, state, statistics = plan(terminal_value=terminal_value)
    assert actions.shape == (HORIZON, 1) and state == () and int(statistics["nonfinite"]) == 0
    # The first actions as they are sampled: each of the rollout's keys is that of its step.
    keys = jax.random.split(jax.random.fold_in(jax.random.split(jax.random.key(0))[1], 0))
    firsts = policy(True).act((), jnp.full((CANDIDATES, 1), START), keys[0])[0]
    found = [by_loop(float(first), terminal_value is not None) for first in firsts[:, 0]]
    best = max(found, key=lambda pair: pair[1])
    np.testing.assert_allclose(actions[:, 0], best[0], rtol=1e-5)
    assert len({round(total, 4) for _, total in found}) == CANDIDATES


def test_later_actions_are_sampled_if_asked():
    assert not np.allclose(plan(tail=True)[0][1:], plan()[0][1:])
    np.testing.assert_array_equal(plan(count=1)[0][0], plan(tail=True, count=1)[0][0])


def test_a_return_that_is_not_finite_is_never_chosen():
    def broken(observation, action, key):
        following, row = step(observation, action, key)
        return following, row._replace(reward=jnp.where(jnp.arange(len(action)) < 6, jnp.nan, row.reward))

    actions, _, statistics = plan(world=WORLD._replace(step=broken))
    assert int(statistics["nonfinite"]) == 6 and np.isfinite(actions).all()
    all_broken, _, statistics = plan(world=WORLD._replace(step=broken), count=6)
    assert int(statistics["nonfinite"]) == 6
    np.testing.assert_array_equal(all_broken, np.zeros((HORIZON, 1)))


def test_proposals_are_refused():
    planner = policy_shooting.make(PolicyShootingConfig(1), ACTION, policy(True), policy(False))
    problem = planning.make_problem(WORLD, jnp.zeros((2, 1)), ACTION)
    with pytest.raises(ValueError, match="takes no proposals"):
        planner.plan(problem, (), jax.random.key(0), jnp.zeros((1, 1, 1)))
