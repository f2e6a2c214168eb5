"""Linear Dyna: the fixed point of its planning, its updates against NumPy, and tabular Dyna as a special case."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl import envs
from jaxmbrl.algorithms.tabular import linear_dyna
from jaxmbrl.algorithms.tabular.linear_dyna import LinearModel, Planning
from jaxmbrl.core.spaces import Box, Discrete
from jaxmbrl.core.types import Transition
from jaxmbrl.data.priority_queue import PriorityQueue
from jaxmbrl.training.loop import clock_at

from .tables_in_numpy import DISCOUNT, STATES, learned, transitions, walked

VALUES = np.array([-24.0, -16.0, -8.0, 0.0])
"""Of Boyan's chain, at its features: V(s) = -2 s at 12, 8, 4, 0."""
T, N, DECAY = 120, 3, 100.0


def feature(state):
    """Features [4] of a state of Boyan's chain."""
    return np.clip(1 - np.abs(np.array([12, 8, 4, 0]) - state) / 4, 0.0, 1.0)


def outcomes(state):
    """[(probability, reward, features after it)]."""
    if state >= 2:
        return [(0.5, -3.0, feature(state - 1)), (0.5, -3.0, feature(state - 2))]
    return [(1.0, -2.0, feature(0))] if state == 1 else [(1.0, 0.0, np.zeros(4))]


def least_squares():
    """(F, b, LSTD's solution) of the chain, all states weighted alike."""
    phi = np.array([feature(s) for s in range(13)])
    following = np.array([sum(p * f for p, _, f in outcomes(s)) for s in range(13)])
    rewards = np.array([sum(p * r for p, r, _ in outcomes(s)) for s in range(13)])
    gram = phi.T @ phi
    forward, reward = np.linalg.solve(gram, phi.T @ following).T, np.linalg.solve(gram, phi.T @ rewards)
    return forward, reward, np.linalg.solve(phi.T @ (phi - following), phi.T @ rewards)


def chain(steps):
    """A walk down the chain: (features, reward, features after it, terminated)."""
    random, rows, state = np.random.default_rng(0), [], 12
    for _ in range(steps):
        if state == 0:
            rows.append((feature(0), 0.0, feature(0), True))
            state = 12
            continue
        after = state - (int(random.integers(1, 3)) if state >= 2 else 1)
        rows.append((feature(state), -3.0 if state >= 2 else -2.0, feature(after), False))
        state = after
    return rows


def chain_task():
    """Spaces of the chain as a task; its rows are made above."""
    return envs.make("dyna-maze")._replace(observation=Box((4,)), action=Discrete(1))


@pytest.fixture(scope="module")
def made():
    """Everything in one program, in float64."""
    forward, reward, _ = least_squares()
    rows = chain(T)
    with jax.enable_x64(True):
        model = LinearModel(jnp.asarray(forward)[None], jnp.asarray(reward)[None])
        phi, earned, after, ended = (np.array(column) for column in zip(*rows, strict=True))
        zeros = np.zeros(T, np.int32)
        steps = Transition(*(jnp.asarray(x)[:, None, None] for x in (phi, zeros, earned, after, ended, ended & False)))
        on_chain = {
            sweep: linear_dyna.make(
                linear_dyna.Config(sweep=sweep, planning_updates=N, decay=DECAY, discount=1.0, model_learning_rate=0.2),
                chain_task(),
            )
            for sweep in ("random", "pwma", "mg")
        }
        # So large that step sizes do not fall.
        constant = {"decay": 1e30, "model_learning_rate": 1.0}
        config = linear_dyna.Config(sweep="random", planning_updates=N, learning_rate=0.5, **constant)
        in_maze = linear_dyna.make(config, envs.make("dyna-maze"))
        one_hot = transitions(walked(T, 6, limit=20))

        def planned(sweep):
            def plan(at, key):
                return linear_dyna.SWEEPS[sweep](at, model, 0.5, 1.0, key)

            start = Planning(jnp.zeros(4), PriorityQueue(jnp.ones(4)))
            return jax.lax.scan(plan, start, jax.random.split(jax.random.key(0), 6000))[0].theta

        def drawn(key, size):
            def call(key, _):
                key, planning_key = jax.random.split(key)
                keys = jax.random.split(jax.random.split(planning_key, 1)[0], N)
                return key, jax.vmap(lambda key: jax.random.randint(key, (), 0, size))(keys)

            return jax.lax.scan(call, key, None, T)[1]

        def run(key):
            def of_chain(algorithm):
                first = algorithm.init(key, {}, None)
                return learned(algorithm, first, steps, lambda state: (state.theta, state.updates))[1]

            return {
                "planned": {sweep: planned(sweep) for sweep in linear_dyna.SWEEPS},
                "chain": {sweep: of_chain(algorithm) for sweep, algorithm in on_chain.items()},
                "drawn": drawn(key, 4),
                "maze": learned(in_maze, in_maze.init(key, {}, None), one_hot, lambda state: state.theta)[1],
                "drawn in maze": drawn(key, STATES),
            }

        return jax.device_get(jax.jit(run)(jax.random.key(4)))


def test_the_fixed_point_of_planning_is_that_of_least_squares_td():
    forward, reward, lstd = least_squares()
    fixed = np.linalg.solve(np.eye(4) - forward.T, reward)
    np.testing.assert_allclose(fixed, lstd, atol=1e-10)
    np.testing.assert_allclose(fixed, VALUES, atol=1e-10)


@pytest.mark.parametrize("sweep", ["random", "pwma", "mg"])
def test_planning_converges_to_it(made, sweep):
    np.testing.assert_allclose(made["planned"][sweep], VALUES, atol=1e-6)


@pytest.mark.parametrize("sweep", ["random", "pwma", "mg"])
def test_updates_are_those_of_the_paper(made, sweep):
    theta, forward, reward = np.zeros(4), np.zeros((4, 4)), np.zeros(4)
    queue, updates, episode = np.zeros(4), 0, 1
    for t, (phi, r, following, ended) in enumerate(chain(T)):
        rate, model_rate = (first * (DECAY + 1) / (DECAY + episode**1.1) for first in (0.1, 0.2))
        after = np.zeros(4) if ended else following
        delta = r + theta @ after - theta @ phi
        theta = theta + rate * delta * phi
        forward = forward + model_rate * np.outer(after - forward @ phi, phi)
        reward = reward + model_rate * (r - reward @ phi) * phi
        for i in np.flatnonzero(phi):
            if sweep == "mg":
                queue[i] = max(queue[i], abs(delta * phi[i]))
            elif sweep == "pwma":
                for j in range(4):
                    queue[j] = max(queue[j], abs(forward[i, j] * delta * phi[i]))
        for p in range(N):
            if sweep == "random":
                i = made["drawn"][t][p]
                theta[i] += rate * (reward[i] + theta @ forward[:, i] - theta[i])
                updates += 1
                continue
            if queue.max() == 0:
                break
            i = int(queue.argmax())
            queue[i] = 0.0
            errors = reward + theta @ forward - theta
            if sweep == "pwma":
                theta[i] += rate * errors[i]
                updates += 1
                queue = np.maximum(queue, np.abs(forward[i] * errors[i]))
            else:
                leads = forward[i] != 0
                theta = theta + rate * np.where(leads, errors, 0.0)
                updates += int(leads.sum())
                queue = np.maximum(queue, np.where(leads, np.abs(errors), 0.0))
        episode += ended
        seen, made_so_far = made["chain"][sweep][0][t], made["chain"][sweep][1][t]
        np.testing.assert_allclose(seen, theta, atol=1e-9)
        assert made_so_far == updates
    assert episode > 10 and theta[0] < -5


def test_with_one_hot_features_it_is_tabular_dyna(made):
    values, model = np.zeros(STATES), {}
    for t, (state, action, r, following, ended, _) in enumerate(walked(T, 6, limit=20)):
        values[state] += 0.5 * (r + (0.0 if ended else DISCOUNT * values[following]) - values[state])
        model[state, action] = (r, following, ended)
        for i in made["drawn in maze"][t]:
            known = [model.get((int(i), a)) for a in range(4)]
            best = max(0.0 if x is None else x[0] + (0.0 if x[2] else DISCOUNT * values[x[1]]) for x in known)
            values[i] += 0.5 * (best - values[i])
        np.testing.assert_allclose(made["maze"][t], values, atol=1e-9)
    assert values.max() > 0.3


def test_the_greedy_action_has_the_largest_predicted_return():
    algorithm = linear_dyna.make(linear_dyna.Config(discount=0.5), envs.make("dyna-maze"))

    @jax.jit
    def act():
        state = algorithm.init(jax.random.key(0), {}, None)
        # From cell 3, action 1 leads to cell 5 of value 4, action 2 earns 1.5, action 3 earns 1 and leads to cell 6.
        forward = state.model.forward.at[1, 5, 3].set(1.0).at[3, 6, 3].set(1.0)
        reward = state.model.reward.at[2, 3].set(1.5).at[3, 3].set(1.0)
        theta = state.theta.at[5].set(4.0).at[6].set(3.0)
        state = state._replace(model=LinearModel(forward, reward), theta=theta)
        policy = algorithm.policy(state, clock_at(0), False)
        return policy.act((), jnp.int32(3), jax.random.key(1))[0], linear_dyna.returns(state.model, theta, 0.5)[:, 3]

    action, values = act()
    assert np.asarray(values).tolist() == [0.0, 2.0, 1.5, 2.5] and int(action) == 3
