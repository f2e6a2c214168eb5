"""MOPO: without a penalty MBPO on a full buffer, with one the rewards by hand; from a file nothing else is used."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from in_order import in_order

from jaxmbrl import envs
from jaxmbrl.agents.actor_critic.sac import SACConfig
from jaxmbrl.algorithms.dyna import mbpo, mopo
from jaxmbrl.algorithms.shared import RolloutLength
from jaxmbrl.core.config import UserError, check
from jaxmbrl.core.types import Clock, DynamicsModel, Transition, World
from jaxmbrl.data import dataset, replay
from jaxmbrl.models import EnsembleConfig
from jaxmbrl.models.disagreement import TrustConfig
from jaxmbrl.training import programs

ROWS, LAMBDA = 12, 0.25
CALLS = 4
SETTINGS: dict[str, Any] = {
    "agent": SACConfig(hidden=(8,)),
    "rollout_length": RolloutLength(2, 2),
    "rollout_rows": 6,
    "retain_steps": 2 * ROWS,
    "refit_every": 2 * ROWS,
    "batch_size": 4,
    "updates_per_step": 1,
    "warmup_steps": ROWS,
    "replay_capacity": ROWS,
    "num_envs": ROWS,
}
PENDULUM = envs.make("pendulum")


def table(seed=0):
    rng = np.random.default_rng(seed)
    return Transition(
        observation=rng.normal(size=(ROWS, 3)).astype(np.float32),
        action=rng.uniform(-1, 1, (ROWS, 1)).astype(np.float32),
        reward=rng.normal(size=ROWS).astype(np.float32),
        next_observation=rng.normal(size=(ROWS, 3)).astype(np.float32),
        terminated=rng.random(ROWS) < 0.3,
        truncated=np.zeros(ROWS, bool),
    )


class Fitted(NamedTuple):
    fits: Any
    mean: Any
    """Mean reward of the rows that it was fitted to."""


def model():
    """A model whose two members predict standard deviations |observation| and 2 |action|, for each of four numbers, and the
    means 0 and |action|."""

    def predict(state, observation, action):
        std = jnp.stack([jnp.pad(jnp.abs(observation), ((0, 0), (0, 1))), jnp.tile(2 * jnp.abs(action), (1, 4))])
        return jnp.stack([jnp.zeros((len(action), 4)), jnp.tile(jnp.abs(action), (1, 4))]), std**2

    def world(state):
        def step(observation, action, key):
            following = 0.5 * observation + action + state.mean
            none = jnp.zeros(len(observation), bool)
            return following, Transition(observation, action, jnp.sum(observation, axis=1), following, none, none)

        return World(reset=lambda key: None, start=lambda origin, key: origin, observe=lambda x: x, step=step)

    def fit(state, buffer, key):
        return Fitted(state.fits + 1, jnp.mean(buffer.data.reward)), {}

    return DynamicsModel(lambda key, hyper: Fitted(jnp.zeros(()), jnp.zeros(())), fit, predict, world)


def compiled(make):
    """(init, learn) of the algorithm that `make(rows)` makes. Its rows are an argument of the program and no constant: XLA
    might otherwise round differently."""
    init = jax.jit(lambda rows, hyper: make(rows).init(jax.random.key(0), hyper))
    return init, jax.jit(lambda rows, *given: make(rows).learn(*given)[0])


def run(program, first, transitions, replaced=None, **hyper):
    """States after each of some calls, whose clock shows `first`, `first + ROWS`, ... steps."""
    init, learn = program
    state = init(table(), hyper)
    state = state if replaced is None else state._replace(replay=replaced)
    states = []
    for call in range(CALLS):
        state = learn(table(), Clock(np.asarray(first + call * ROWS, np.int32)), state, transitions)
        states.append(state)
    return jax.device_get([s._replace(key=jax.random.key_data(s.key)) for s in states])


@functools.cache
def from_table(refit, halts):
    """The program of MOPO from the table."""
    config = mopo.Config(**SETTINGS, refit=refit, halts=halts)
    return compiled(lambda rows: mopo.make(config, PENDULUM, rows, model()))


@functools.cache
def offline(penalty, refit, halt_above=None):
    """`learn` is given other transitions than those of the table."""
    given = jax.tree.map(lambda leaf: leaf[None], table(1))
    hyper = {"penalty": penalty} | ({} if halt_above is None else {"halt_above": halt_above})
    return run(from_table(refit, halt_above is not None), 1, given, **hyper)


def imagined(state):
    size = int(state.imagined.buffer.size)
    return jax.tree.map(lambda x: np.asarray(x)[:size], in_order(state.imagined.buffer))


def test_without_a_penalty_it_is_mbpo_on_a_full_buffer_bit_for_bit():
    """MBPO's ring has the rows of the table, and each call replaces all of them by themselves."""
    given = jax.tree.map(lambda leaf: leaf[None], table())
    program = compiled(lambda rows: mbpo.make(mbpo.Config(**SETTINGS), PENDULUM, model()))
    expected = run(program, ROWS, given, replaced=replay.of_rows(table()))
    for state, other in zip(offline(0.0, refit=True), expected, strict=True):
        for name in ("agent", "model", "imagined", "key"):
            jax.tree.map(np.testing.assert_array_equal, getattr(state, name), getattr(other, name))
    assert int(expected[-1].model.fits) == 2 and int(expected[-1].agent.critic.moments.count) == CALLS * ROWS


def test_rewards_are_lowered_by_lambda_times_the_largest_norm():
    rows = imagined(offline(LAMBDA, refit=True)[0])
    assert len(rows.reward) == 12
    norms = np.stack([np.linalg.norm(rows.observation, axis=1), 4 * np.abs(rows.action[:, 0])])
    assert len(set(norms.argmax(axis=0))) == 2, "each member is the largest somewhere"
    np.testing.assert_allclose(rows.reward, rows.observation.sum(axis=1) - LAMBDA * norms.max(axis=0), rtol=1e-5, atol=1e-6)


def test_with_an_infinite_threshold_nothing_halts_bit_for_bit():
    for state, other in zip(offline(LAMBDA, True, halt_above=np.inf), offline(LAMBDA, True), strict=True):
        same = state._replace(halt_above=other.halt_above, largest=other.largest)
        jax.tree.map(np.testing.assert_array_equal, same, other)


def test_unknown_steps_halt_with_the_value_of_the_smallest_logged_reward_for_ever():
    """The members differ by sqrt(3) |action| about the observation, so that the threshold is one of |action|. It is that of
    all 12 logged rows, of which a round begins at 6."""
    states, logged = offline(LAMBDA, True, halt_above=0.5), table()
    rows, plain = imagined(states[0]), imagined(offline(LAMBDA, True)[0])
    largest = np.abs(logged.action).max()
    np.testing.assert_allclose([state.largest for state in states], [np.sqrt(3) * largest] * CALLS, rtol=1e-6)
    halted = rows.terminated
    assert 0 < halted.sum() < 6 and not plain.terminated.any()
    size = np.abs(rows.action[:, 0])
    np.testing.assert_array_equal(halted, size > 0.5 * largest)
    norms = np.maximum(np.linalg.norm(rows.observation, axis=1), 4 * size)
    added = rows.reward - (rows.observation.sum(axis=1) - LAMBDA * norms)
    np.testing.assert_allclose(added[~halted], 0, atol=1e-5)
    # With the discount .99 of SAC: .99 / .01 times the smallest reward.
    np.testing.assert_allclose(added[halted], 99 * logged.reward.min(), rtol=1e-5)
    assert len(rows.reward) == 12 - np.sum(halted[:6]), "the branch of a row of the first step that halts has no second"


def test_one_member_cannot_halt():
    one = EnsembleConfig(members=1, elites=1)
    check(mopo.Config(ensemble=one, trust=TrustConfig()))
    with pytest.raises(UserError, match=r"^halts must be False with one member"):
        check(mopo.Config(ensemble=one, trust=TrustConfig(), halts=True))


def test_the_model_is_fitted_once_and_to_the_file_alone():
    states = offline(LAMBDA, refit=False)
    assert [int(state.model.fits) for state in states] == [1] * CALLS
    np.testing.assert_allclose(states[0].model.mean, table().reward.mean(), rtol=1e-6)
    # New branches every second call all the same.
    assert [int(state.imagined.buffer.size) for state in states] == [12] * CALLS
    assert not np.array_equal(states[0].imagined.buffer.data.action, states[2].imagined.buffer.data.action)
    starts = {tuple(row) for row in table().observation}
    assert {tuple(row) for row in imagined(states[0]).observation[:6]} <= starts


def test_a_file_may_be_shorter_than_the_run_and_the_state_does_not_contain_it(tmp_path):
    dataset.save(tmp_path / "rows.npz", table(), "pendulum")
    config = programs.configure("mopo", "pendulum", data=tmp_path / "rows.npz")
    assert config.steps == 2000, "the preset's, not the file's 12 rows"
    config = dataclasses.replace(config, settings=mopo.Config(**SETTINGS | {"num_envs": 1}), steps=1000)
    built = [programs.build(config, learns=learns) for learns in (True, False)]
    learning, evaluated = map(programs.initial_shapes, built)
    assert learning.algorithm.replay == ()
    assert jax.tree.structure(learning) == jax.tree.structure(evaluated)
    assert jax.tree.leaves(learning) == jax.tree.leaves(evaluated)
