"""MBPO as a whole: when it fits, what it imagines, what its updates see, its presets, and that it learns.

Most tests put a model of their own in the ensemble's place, of which every row is known.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from in_order import in_order

from jaxmbrl import algorithms, envs
from jaxmbrl.agents.actor_critic.sac import SACConfig
from jaxmbrl.agents.actor_critic.sac import make as make_agent
from jaxmbrl.agents.actor_critic.updates import updates
from jaxmbrl.agents.naf import NAFConfig
from jaxmbrl.algorithms.dyna import mbpo
from jaxmbrl.algorithms.model_free import naf, sac
from jaxmbrl.algorithms.shared import RolloutLength
from jaxmbrl.core import metrics
from jaxmbrl.core.config import UserError, check
from jaxmbrl.core.types import Average, Clock, DynamicsModel, Transition, World, row_like
from jaxmbrl.data import mixtures, replay
from jaxmbrl.models.disagreement import TrustConfig
from jaxmbrl.models.ensemble import EnsembleConfig
from jaxmbrl.training import loop

WARM, EVERY = 10, 4
TINY = mbpo.Config(
    agent=SACConfig(hidden=(8,)),
    rollout_length=RolloutLength(first=1, last=3, begins=4 * EVERY, ends=6 * EVERY),
    rollout_rows=6,
    retain_steps=2 * EVERY,
    refit_every=EVERY,
    batch_size=4,
    updates_per_step=3,
    warmup_steps=WARM,
    replay_capacity=60,
    num_envs=2,
)
PENDULUM = envs.make("pendulum")


def clock(steps):
    return Clock(np.asarray(steps, np.int32))


def rows(seed, count=2):
    """Transitions [1, count] that all differ."""
    rng = np.random.default_rng(seed)
    return Transition(
        observation=rng.normal(size=(1, count, 3)).astype(np.float32),
        action=rng.uniform(-1, 1, (1, count, 1)).astype(np.float32),
        reward=rng.normal(size=(1, count)).astype(np.float32),
        next_observation=rng.normal(size=(1, count, 3)).astype(np.float32),
        terminated=rng.random((1, count)) < 0.3,
        truncated=rng.random((1, count)) < 0.3,
    )


class Known(NamedTuple):
    """State of the model of which every row is known."""

    fits: Any
    """How often it was fitted."""
    table: Any
    """The rows that it was fitted to."""
    count: Any
    looks_up: Any
    """Whether it looks rows up."""


def known_model():
    """A model of which every row is known. Where its state says so, it looks up the row that was stored for an observation,
    whatever the action: the exact model, with the logged actions; a row beyond the count is never found. Otherwise it takes
    one step of 1 at a time, and its reward is the number of its fit."""

    def world(state):
        def step(observation, action, key):
            apart = jnp.sum((observation[:, None] - state.table.observation[None]) ** 2, axis=-1)
            found = jnp.argmin(jnp.where(jnp.arange(len(state.table.reward)) < state.count, apart, jnp.inf), axis=1)
            stored = jax.tree.map(lambda leaf: leaf[found], state.table)
            none = jnp.zeros(len(observation), bool)
            reward = jnp.full(len(observation), state.fits.astype(float))
            told = Transition(observation, action, reward, observation + 1, none, none)
            row = jax.tree.map(lambda a, b: jnp.where(state.looks_up, a, b), stored, told)
            return row.next_observation, row

        return World(reset=lambda key: None, start=lambda origin, key: origin, observe=lambda x: x, step=step)

    def init(key, hyper):
        none = jnp.zeros((), jnp.int32)
        return Known(none, replay.init(row_like(PENDULUM), TINY.replay_capacity).data, none, jnp.zeros((), bool))

    def fit(state, buffer, key):
        return Known(state.fits + 1, buffer.data, buffer.size, state.looks_up), {"model/rows": Average.of(buffer.size)}

    return DynamicsModel(init=init, fit=fit, predict=None, world=world)


def started(algorithm):
    return jax.jit(algorithm.learn), jax.jit(algorithm.init)(jax.random.key(0), {})


@functools.cache
def known(learner="sac"):
    """Where only the known model is fitted: (`learn`, first state, first state of the learner alone by the same key, MBPO
    and the learner alone)."""
    alone = {"sac": sac, "naf": naf}[learner]
    shared = {f.name for f in dataclasses.fields(alone.Config)} & {f.name for f in dataclasses.fields(mbpo.Config)}
    config = dataclasses.replace(TINY, learner=learner, naf=NAFConfig(hidden=(8,)))
    settings = {name: getattr(config, name) for name in shared} | ({"agent": config.naf} if learner == "naf" else {})
    plain = alone.make(alone.Config(**settings), PENDULUM)
    algorithm = mbpo.make(config, PENDULUM, known_model())
    state, plain_state = jax.jit(lambda key: (algorithm.init(key, {}), plain.init(key, {})))(jax.random.key(0))
    return jax.jit(algorithm.learn), state, plain_state, algorithm, plain


def looking_up():
    """`learn` and a first state where the model looks up rows and the agent learns on what is imagined alone."""
    learn, state, *_ = known()
    looks_up, real_ratio = jax.device_put((np.ones((), bool), np.zeros((), np.float32)))
    return learn, state._replace(model=state.model._replace(looks_up=looks_up), real_ratio=real_ratio)


@functools.cache
def history():
    """(state, metrics) after each call of `learn`, by the steps so far."""
    learn, state, *_ = known()
    found = {0: (state, {})}
    for steps in range(2, WARM + 8 * EVERY, 2):
        state, told = learn(clock(steps), state, rows(steps))
        found[steps] = state, metrics.known(jax.device_get(told))
    assert learn._cache_size() == 1
    return found


ordered = jax.jit(in_order)


def held(buffer):
    size = int(buffer.size)
    return jax.tree.map(lambda x: np.asarray(x)[:size], ordered(buffer))


def fits_held(buffer):
    """How many rows of each fit are held."""
    fits, counts = np.unique(held(buffer).reward, return_counts=True)
    return dict(zip(fits.astype(int).tolist(), counts.tolist(), strict=True))


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_the_model_is_fitted_to_all_real_rows_at_the_warmups_end_and_every_so_many_steps():
    for steps, (state, found) in history().items():
        due = steps >= WARM and (steps - WARM) % EVERY == 0
        assert found.get("model/rows") == (steps if due else None), steps
        assert int(state.model.fits) == (0 if steps < WARM else 1 + (steps - WARM) // EVERY)
        moved = 0 if steps < WARM else (1 + (steps - WARM) // 2) * 3 * 2
        assert int(state.agent.actor.moments.count) == int(state.agent.critic.moments.count) == moved


def test_branches_start_from_real_states_and_follow_the_stochastic_policy():
    """At the sixth fit, of which the branches have two steps."""
    steps = WARM + 5 * EVERY
    state, before = history()[steps][0], history()[steps - 2][0]
    real, imagined = held(state.replay), jax.tree.map(lambda x: x[-12:], held(state.imagined.buffer))
    assert len(real.reward) == steps and set(imagined.reward) == {6.0}
    first, second = (jax.tree.map(lambda x, part=part: x[part], imagined) for part in (slice(6), slice(6, 12)))
    for start in first.observation:
        assert (real.observation == start).all(axis=1).any()
    np.testing.assert_array_equal(second.observation, first.next_observation)
    # Actions as the policy of before the updates draws them, not its mean ones.
    policy = known()[3].policy(before, clock(0), explore=False)
    mean = jax.jit(policy.act)((), imagined.observation, jax.random.key(0))[0]
    assert np.all(np.abs(imagined.action - np.asarray(mean)) > 1e-4)
    assert np.all(np.abs(imagined.action) <= 1)
    assert len({float(a) for a in imagined.action[:, 0]}) == 12


def test_imagined_rows_are_kept_for_so_many_steps_and_no_longer():
    kept = [sorted(fits_held(state.imagined.buffer)) for state, _ in history().values()]
    # Fits come at 10, 14, 18, 22 and 26 steps, and two fits' rows are kept.
    assert kept[:5] == [[]] * 5
    assert kept[5:14:2] == [[1], [1, 2], [2, 3], [3, 4], [4, 5]]


def test_branches_grow_and_the_buffer_with_them_in_one_program():
    seen = []
    for state, found in history().values():
        if "imagine/rollout_length" in found:
            assert found["imagine/rows"] == 6 * found["imagine/rollout_length"]
            buffer = state.imagined.buffer
            seen.append((found["imagine/rollout_length"], int(buffer.capacity), fits_held(buffer)))
    # Six branches a fit; room for twice the present length of each, the oldest rows giving way.
    assert seen == [
        (1, 12, {1: 6}),
        (1, 12, {1: 6, 2: 6}),
        (1, 12, {2: 6, 3: 6}),
        (1, 12, {3: 6, 4: 6}),
        (1, 12, {4: 6, 5: 6}),
        (2, 24, {4: 6, 5: 6, 6: 12}),
        (3, 36, {5: 6, 6: 12, 7: 18}),
        (3, 36, {7: 18, 8: 18}),
    ]


@pytest.mark.parametrize(
    ("preset", "lengths"),
    [
        # Epochs of 1,000 steps after the warm-up: floor(k0 + (e - e0) / (e1 - e0) (k1 - k0)), clipped.
        ("paper-hopper", {0: 1, 20: 1, 29: 1, 30: 2, 85: 8, 149: 14, 150: 15, 500: 15}),
        ("paper-ant", {0: 1, 20: 1, 24: 2, 60: 13, 99: 24, 100: 25, 300: 25}),
        ("paper-humanoid", {19: 1, 32: 2, 160: 13, 300: 25}),
        ("paper-halfcheetah", {0: 1, 150: 1, 400: 1}),
        ("paper-inverted-pendulum", {0: 1, 20: 1}),
    ],
)
def test_branch_length_by_hand(preset, lengths):
    schedule = algorithms.get("mbpo").presets[preset].config.rollout_length
    assert {epoch: int(schedule.at(1000 * epoch)) for epoch in lengths} == lengths
    for epoch in range(0, 320, 7):
        share = (epoch * 1000 - schedule.begins) / (schedule.ends - schedule.begins)
        grown = schedule.first + min(max(share, 0.0), 1.0) * (schedule.last - schedule.first)
        assert int(schedule.at(epoch * 1000)) == int(np.floor(grown + 1e-9))


def test_a_batch_mixes_real_and_imagined_rows_by_the_ratio():
    def filled(values):
        return replay.add(replay.init(jnp.zeros(()), 50), values)

    @jax.jit
    def batches(key, share):
        """Of 40 positive and 30 negative rows, of positive ones alone, and samples of either by the keys split."""
        real, imagined = filled(jnp.arange(1.0, 41)), filled(-jnp.arange(1.0, 31))
        empty = replay.init(jnp.zeros(()), 50)
        both, alone = (mixtures.mixture([real, x], [share, 1 - share], key, 256) for x in (imagined, empty))
        keys = jax.random.split(key)
        return both, alone, [replay.sample(x, k, 256) for x, k in zip((real, imagined), keys, strict=True)]

    for share, count in [(0.05, 12), (0.0, 0), (1.0, 256), (0.5, 128), (0.003, 0)]:
        both, alone, (positive, negative) = jax.device_get(batches(jax.random.key(1), share))
        assert (both > 0).sum() == count and (both < 0).sum() == 256 - count
        # Nothing imagined: all rows are real, none a row of zeros.
        assert np.all(alone > 0)
        # Either part is what `sample` draws by the keys split.
        np.testing.assert_array_equal(both, [*positive[:count], *negative[count:]])
    assert batches._cache_size() == 1


@pytest.mark.parametrize("learner", ["sac", pytest.param("naf", marks=pytest.mark.promises)])
def test_with_real_rows_alone_it_is_its_learner_bit_for_bit(learner, monkeypatch):
    learn, state, plain_state, _, plain = known(learner)
    state = state._replace(real_ratio=jax.device_put(np.ones((), np.float32)))
    # The learner alone draws its batch by the key that MBPO splits in two: the same rows for both.
    slots = replay.sample_slots
    monkeypatch.setattr(replay, "sample_slots", lambda buffer, key, n: slots(buffer, jax.random.split(key)[0], n))
    plain_learn = jax.jit(plain.learn)
    assert_same(state.agent, plain_state.agent)
    for steps in range(2, 24, 2):
        with monkeypatch.context() as alone:
            alone.setattr(replay, "sample_slots", slots)
            state, _ = learn(clock(steps), state, rows(steps))
        plain_state, _ = plain_learn(clock(steps), plain_state, rows(steps))
        assert_same(state.agent, plain_state.agent)
    assert int(state.agent.critic.moments.count) == 42
    assert int(state.imagined.buffer.size) == 12, "it imagined all the same"


def test_a_table_of_logged_rows_as_the_model_makes_it_its_model_free_learner():
    """Dyna's k = 1 with an exact model and the logged actions is replay: what was imagined are the real rows of the states
    drawn, and the agent's updates on them are, bit for bit, model-free updates on those real rows."""
    learn, state = looking_up()
    agent = make_agent(TINY.agent, 3, 1)

    @jax.jit
    def model_free(agent_state, buffer, numbers, key):
        def draw(key):
            _, imagined_key = jax.random.split(key)
            drawn = jax.random.randint(imagined_key, (TINY.batch_size,), 0, numbers.shape[0])
            return jax.tree.map(lambda leaf: leaf[numbers[drawn]], buffer.data)

        _, update_key, _ = jax.random.split(key, 3)
        return updates(agent, agent_state, draw, update_key, 2 * TINY.updates_per_step)[0]

    for steps in range(2, WARM + 2, 2):
        before = state
        state, _ = learn(clock(steps), state, rows(steps))
    real, imagined = held(state.replay), held(state.imagined.buffer)
    numbers = [int(np.flatnonzero((real.observation == start).all(axis=1))[0]) for start in imagined.observation]
    assert len(numbers) == 6
    assert_same(imagined, jax.tree.map(lambda x: x[numbers], real))
    assert_same(state.agent, model_free(before.agent, state.replay, np.array(numbers), before.key))
    assert int(state.agent.critic.moments.count) == 6


def test_where_every_start_is_drawn_once_what_is_imagined_is_the_data(monkeypatch):
    """As multisets, where the start rows are the data themselves and not a sample of them."""
    config = dataclasses.replace(TINY, rollout_rows=WARM, retain_steps=EVERY)
    algorithm = mbpo.make(config, PENDULUM, known_model())
    learn, state = looking_up()
    for steps in range(2, WARM, 2):
        state, _ = learn(clock(steps), state, rows(steps))
    # Not what the agent learns on it.
    monkeypatch.setattr(replay, "sample", lambda buffer, key, n: jax.tree.map(lambda x: x[:n], buffer.data))
    last = jax.jit(lambda *arguments: algorithm.learn(*arguments)[0]._replace(agent=()))
    state = last(clock(WARM), state, rows(WARM))
    assert len(held(state.replay).reward) == WARM
    assert_same(held(state.imagined.buffer), held(state.replay))


@pytest.mark.slow
def test_without_disagreement_nothing_is_dropped_and_without_bound_neither():
    """Through the real ensemble: MACURA with an infinite threshold imagines MBPO's rows, with 0 none."""
    members = EnsembleConfig(members=3, elites=3, hidden=(8,), batch_size=4, max_epochs=2)
    config = dataclasses.replace(TINY, ensemble=members, rollout_length=RolloutLength(3, 3))
    stored = {}
    for name, rule in {
        "mbpo": TrustConfig(),
        "free": TrustConfig("macura", scale=1e30),
        "shut": TrustConfig("macura", scale=0.0),
    }.items():
        learn, state = started(mbpo.make(dataclasses.replace(config, trust=rule), PENDULUM))
        for steps in range(2, WARM + 2, 2):
            state, _ = learn(clock(steps), state, rows(steps))
        stored[name] = held(state.imagined.buffer)
    assert_same(stored["free"], stored["mbpo"])
    assert len(stored["mbpo"].reward) == 18
    assert len(stored["shut"].reward) == 0
    # The paper's learned reward, with the model's noise, and not the known one.
    seen = (jnp.asarray(x) for x in stored["mbpo"][:4] if x.ndim == 2)
    assert np.all(np.abs(stored["mbpo"].reward - PENDULUM.reward(*seen)) > 1e-3)


@pytest.mark.promises
def test_imagined_terminations_are_the_tasks_known_ones():
    task = envs.make("cartpole-continuous")
    members = EnsembleConfig(members=2, elites=2, hidden=(8,), batch_size=4, max_epochs=1)
    config = dataclasses.replace(
        TINY, ensemble=members, rollout_rows=50, rollout_length=RolloutLength(40, 40), retain_steps=EVERY, num_envs=1
    )
    program = loop.make(mbpo.make(config, task), task, config)
    state = jax.jit(program.init)(jnp.arange(1), {})
    _, state = jax.jit(program.run)(loop.clock_at(0), state, jnp.asarray(WARM, jnp.int32))
    imagined = jax.tree.map(lambda x: np.asarray(x[0]), state.algorithm.imagined.buffer)
    data = jax.tree.map(lambda x: x[: imagined.size], imagined.data)
    np.testing.assert_array_equal(data.terminated, task.terminated(jnp.asarray(data.next_observation)))
    assert 0 < data.terminated.sum() < 50 < imagined.size, "some branches end"


def test_imagined_hoppers_end_at_numbers_beyond_100_on_either_side():
    """The paper's code takes the absolute value of a comparison, and so lets numbers below -100 live."""

    def hopper(**changes):
        row = np.zeros(11, np.float32)
        row[[0, *(int(name[1:]) for name in changes)]] = [1.25, *changes.values()]
        return row

    beyond = [hopper(**{f"s{i}": x}) for i in (2, 7) for x in (99.0, -99.0, 101.0, -101.0, np.nan)]
    rows = np.stack([hopper(), *beyond, hopper(s0=0.7), hopper(s0=0.71), hopper(s1=-0.2)])
    ended = jax.jit(envs.make("Hopper-v5").terminated)(rows).tolist()
    assert ended[:11] == [False, *2 * [False, False, True, True, True]]
    assert ended[11:] == [True, False, True]


def test_what_is_wrong_is_told():
    with pytest.raises(UserError, match="refit_every must be a multiple of num_envs"):
        check(dataclasses.replace(TINY, refit_every=5))
    with pytest.raises(UserError, match="warmup_steps must be a multiple of num_envs"):
        check(dataclasses.replace(TINY, warmup_steps=9))
    with pytest.raises(UserError, match="last must be at least first"):
        check(dataclasses.replace(TINY, rollout_length=RolloutLength(3, 2)))
    with pytest.raises(UserError, match="ends must be above begins"):
        check(dataclasses.replace(TINY, rollout_length=RolloutLength(begins=5, ends=5)))
    with pytest.raises(UserError, match="moment_matching"):
        check(dataclasses.replace(TINY, ensemble=EnsembleConfig(propagation="moment_matching")))
    with pytest.raises(UserError, match=r"trust\.rule must be always"):
        check(dataclasses.replace(TINY, ensemble=EnsembleConfig(probabilistic=False), trust=TrustConfig("m2ac")))


PUBLISHED = {
    # Updates a step, target entropy, k1, F, retained epochs of 1,000 steps, units: jannerm/mbpo, examples/config.
    "paper-inverted-pendulum": (10, -0.05, 1, 250, 0.25, 200),
    "paper-hopper": (20, -1, 15, 250, 1, 200),
    "paper-halfcheetah": (40, -3, 1, 250, 1, 200),
    "paper-walker2d": (20, -3, 1, 250, 1, 200),
    "paper-ant": (20, -4, 25, 250, 1, 200),
    "paper-humanoid": (20, -2, 25, 1000, 5, 400),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings(name):
    config = algorithms.get("mbpo").presets[name].config
    members = config.ensemble
    assert PUBLISHED[name] == (
        config.updates_per_step,
        config.agent.target_entropy,
        config.rollout_length.last,
        config.refit_every,
        config.retain_steps / 1000,
        members.hidden[0],
    )
    assert (config.real_ratio, config.batch_size, config.rollout_rows) == (0.05, 256, 100_000)
    assert (members.members, members.elites, len(members.hidden), members.batch_size) == (7, 5, 4, 256)
    assert (members.learning_rate, members.patience, members.holdout_fraction, members.holdout_cap) == (1e-3, 5, 0.2, 5000)
    assert members.weight_decay == (2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4)
    assert not members.normalize_targets, "its holdout error is that of the raw targets"
    assert config.learn_reward and not config.learn_termination and config.trust.rule == "always"
    assert config.agent == SACConfig(target_entropy=config.agent.target_entropy) and not config.agent.layer_norm
    assert config.warmup_steps == (500 if "pendulum" in name else 5000)
    steady = algorithms.get("mbpo").presets[name.replace("paper", "steady")].config
    assert steady.ensemble.normalize_targets and steady.agent.layer_norm


MACURA = {
    # xi, zeta, updates, units of the agent, its step size, target entropy, batch, units of the model, retained epochs:
    # Data-Science-in-Mechanical-Engineering/macura, mbrl/examples/conf/overrides.
    "macura-hopper": (30, 90, 30, 1024, 3e-4, 0, 256, 200, 1),
    "macura-halfcheetah": (2, 95, 10, 1024, 3e-4, -4, 256, 200, 1),
    "macura-walker2d": (0.3, 95, 30, 1024, 7e-5, -1, 512, 400, 3),
    "macura-ant": (5, 95, 20, 1024, 1e-4, -1, 512, 200, 1),
    "macura-humanoid": (5, 95, 20, 2048, 1e-4, -10, 512, 400, 5),
}


@pytest.mark.parametrize("name", MACURA)
def test_macuras_published_settings(name):
    config = algorithms.get("mbpo").presets[name].config
    members, agent = config.ensemble, config.agent
    assert MACURA[name] == (
        config.trust.scale,
        config.trust.percentile,
        config.updates_per_step,
        agent.hidden[0],
        agent.learning_rate,
        agent.target_entropy,
        config.batch_size,
        members.hidden[0],
        config.retain_steps / 1000,
    )
    assert (config.trust.rule, config.trust.rounds, config.real_ratio) == ("macura", 2000, 0.05)
    assert members.members == members.elites == 7, "all members vote and are drawn"
    assert (config.rollout_length.first, config.rollout_length.last) == (10, 10)


@pytest.mark.parametrize("name", algorithms.get("mbpo").presets)
def test_presets_are_sound(name):
    preset = algorithms.get("mbpo").presets[name]
    config = check(preset.config)
    assert preset.steps > config.warmup_steps
    assert preset.source
    for task in preset.tasks:
        assert algorithms.preset("mbpo", task)[0] == name
        jax.eval_shape(mbpo.make(config, envs.make(task)).init, jax.random.key(0), {})


def test_the_imagined_buffer_holds_what_the_paper_says():
    """Rows of one fit times fits in the retained time times the longest branch: arXiv 1906.08253's code."""
    hopper, humanoid = (algorithms.get("mbpo").presets[f"paper-{name}"].config for name in ("hopper", "humanoid"))
    assert hopper.imagined_capacity == 100_000 * 4 * 15
    assert humanoid.imagined_capacity == 100_000 * 5 * 25
    assert algorithms.get("mbpo").presets["paper-inverted-pendulum"].config.imagined_capacity == 100_000


def test_naf_learns_continuous_actions_only():
    with pytest.raises(UserError, match="mbpo with the learner naf takes vectors, and the actions of"):
        mbpo.make(dataclasses.replace(TINY, learner="naf"), envs.make("CartPole-v1"))


def test_mpo_learns_continuous_actions_only():
    with pytest.raises(UserError, match="mpo needs continuous actions, got 2 choices"):
        mbpo.make(dataclasses.replace(TINY, learner="mpo"), envs.make("CartPole-v1"))


def test_dqn_learns_choices_only():
    by_dqn = dataclasses.replace(TINY, learner="dqn")
    with pytest.raises(UserError, match="mbpo with the learner dqn takes discrete actions, and the actions of"):
        mbpo.make(by_dqn, PENDULUM)
    algorithm = mbpo.make(by_dqn, envs.make("CartPole-v1"))
    with pytest.raises(UserError, match="initial_temperature has no effect with the learner dqn"):
        jax.eval_shape(lambda key: algorithm.init(key, {"initial_temperature": 0.1}), jax.random.key(0))
