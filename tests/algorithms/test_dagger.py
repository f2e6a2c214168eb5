"""Distillation with DAgger: with beta 1 in all rounds it is the cloning of the expert's rows, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxmbrl import envs
from jaxmbrl.agents.distillation import Expert
from jaxmbrl.algorithms.imitation import distillation
from jaxmbrl.algorithms.imitation.distillation import Config
from jaxmbrl.core.types import Policy
from jaxmbrl.rollout import auto_reset, rollout
from jaxmbrl.training.loop import clock_at

PENDULUM = envs.make("pendulum")
SETTINGS = {"hidden": (4,), "updates": 3, "batch_size": 5, "round_steps": 12, "replay_capacity": 50}


def expert(seed):
    """A linear policy, another for each seed."""

    def act(memory, observation, key):
        action = jnp.tanh(observation[..., :1] - (1.0 + seed) * observation[..., 2:])
        return action, action, memory

    return Policy(lambda key: (), act)


def played(algorithm, state, rounds):
    """(states after each round, transitions of each round)."""
    states, found = [state], []
    for i in range(rounds):
        acting = auto_reset(PENDULUM.world, algorithm.policy(states[-1], clock_at(12 * i), True))
        start = acting[0].reset(jax.random.key(i)), acting[1].init(jax.random.key(9))
        rows = rollout(*acting, start, jax.random.key(100 + i), 12)[1]
        rows = jax.tree.map(lambda x: x[:, None], rows)
        states.append(algorithm.learn(clock_at(12 * (i + 1)), states[-1], rows)[0])
        found.append(rows)
    return states, found


def numbers(state):
    """The leaves, with keys as numbers."""
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)  # noqa: E731
    return [np.asarray(jax.random.key_data(x) if is_key(x) else x) for x in jax.tree.leaves(state)]


def test_with_beta_1_it_clones_the_rows_of_the_expert_bit_for_bit():
    teacher = Expert(expert)
    hyper = {"expert_seed": jnp.asarray(1.0)}

    @jax.jit
    def run():
        always = distillation.make(Config(**SETTINGS, beta_rounds=None), PENDULUM, teacher)
        clone = distillation.make(Config(**SETTINGS), PENDULUM)
        first = always.init(jax.random.key(3), hyper)
        states, rows = played(always, first, 2)
        cloned = first
        for i, recorded in enumerate(rows):
            cloned = clone.learn(clock_at(12 * (i + 1)), cloned, recorded._replace(extras=()))[0]
        # The rows are those of the second expert alone: its actions at each of the states.
        shown = jax.vmap(lambda seen: expert(1).act((), seen, jax.random.key(0))[0])(rows[1].observation[:, 0])
        return states[-1], cloned, rows, shown

    last, cloned, rows, shown = run()
    for one, other in zip(numbers(last), numbers(cloned), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(rows[1].action[:, 0], shown, rtol=1e-5)
    assert int(last.replay.size) == 24


def test_after_the_first_round_the_states_are_the_students():
    @jax.jit
    def run():
        algorithm = distillation.make(Config(**SETTINGS), PENDULUM, Expert(expert))
        states, rows = played(algorithm, algorithm.init(jax.random.key(3), {}), 2)
        own = algorithm.policy(states[1], clock_at(12), False)
        seen = rows[1].observation[:, 0]
        return rows, *(jax.vmap(lambda o, p=p: p.act((), o, jax.random.key(0))[0])(seen) for p in (own, expert(0)))

    rows, own, labels = run()
    np.testing.assert_array_equal(rows[0].action, rows[0].extras)
    np.testing.assert_allclose(rows[1].action[:, 0], own, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(rows[1].extras[:, 0], labels, rtol=1e-5)
    assert np.abs(own - labels).max() > 0.01


def test_an_expert_in_the_true_simulator_sees_its_state_and_the_student_the_observation():
    """The expert reads the angle, which the observation has as cosine and sine."""

    def act(memory, carry, key):
        action = jnp.clip(carry[0].pipeline_state[:1], -1, 1)
        return action, action, memory

    teacher = Expert(lambda seed: Policy(lambda key: (), act), observes_full_state=True)
    algorithm = distillation.make(Config(**SETTINGS), PENDULUM, teacher)
    alone = distillation.make(Config(**SETTINGS), PENDULUM)
    assert algorithm.observes_full_state and not alone.observes_full_state

    @jax.jit
    def run():
        state, carry = algorithm.init(jax.random.key(0), {}), PENDULUM.world.reset(jax.random.key(1))
        policies = [made.policy(state, clock_at(12 * i), i == 0) for i, made in enumerate((algorithm, algorithm, alone))]
        seen = (carry, carry, PENDULUM.world.observe(carry))
        acted = [p.act(p.init(jax.random.key(2)), o, jax.random.key(3))[0] for p, o in zip(policies, seen, strict=True)]
        return carry[0].pipeline_state[0], acted

    angle, (shown, own, same) = run()
    np.testing.assert_allclose(shown[0], np.clip(angle, -1, 1), rtol=1e-6)
    np.testing.assert_array_equal(own, same)
