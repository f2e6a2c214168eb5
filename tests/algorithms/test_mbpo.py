"""MBPO as a whole: when it fits, what it imagines, what its updates see, its presets, and that it learns.

Most tests put a model of their own in the ensemble's place, of which every row is known.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from in_order import in_order

from jaxmbrl import algorithms, envs
from jaxmbrl.agents.actor_critic.sac import SACConfig
from jaxmbrl.agents.actor_critic.sac import make as make_agent
from jaxmbrl.agents.actor_critic.updates import updates
from jaxmbrl.algorithms.dyna import mbpo
from jaxmbrl.algorithms.model_free import sac
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
    rollout_rows=6,
    retain_steps=2 * EVERY,
    refit_every=EVERY,
    batch_size=4,
    updates_per_step=3,
    warmup_steps=WARM,
    replay_capacity=60,
    num_envs=2,
)
ONLY_IMAGINED = dataclasses.replace(TINY, real_ratio=0.0)
PENDULUM = envs.make("pendulum")


def clock(steps):
    return Clock(jnp.asarray(steps, jnp.int32))


def rows(seed, count=2):
    """Transitions [1, count] that all differ."""
    rng = np.random.default_rng(seed)
    return Transition(
        observation=jnp.asarray(rng.normal(size=(1, count, 3)), float),
        action=jnp.asarray(rng.uniform(-1, 1, (1, count, 1)), float),
        reward=jnp.asarray(rng.normal(size=(1, count)), float),
        next_observation=jnp.asarray(rng.normal(size=(1, count, 3)), float),
        terminated=jnp.asarray(rng.random((1, count)) < 0.3),
        truncated=jnp.asarray(rng.random((1, count)) < 0.3),
    )


def lookup():
    """A model that looks up the row that was stored for an observation, whatever the action: the exact one, with the logged
    actions. Its state is the rows it was fitted to; a row beyond the count is never found."""

    def world(state):
        table, count = state

        def step(observation, action, key):
            apart = jnp.sum((observation[:, None] - table.observation[None]) ** 2, axis=-1)
            found = jnp.argmin(jnp.where(jnp.arange(len(table.reward)) < count, apart, jnp.inf), axis=1)
            row = jax.tree.map(lambda leaf: leaf[found], table)
            return row.next_observation, row

        return World(reset=lambda key: None, start=lambda origin, key: origin, observe=lambda x: x, step=step)

    def fit(state, buffer, key):
        return (buffer.data, buffer.size), {"model/rows": Average.of(buffer.size)}

    prototype = replay.init(row_like(PENDULUM), TINY.replay_capacity).data
    return DynamicsModel(init=lambda key, hyper: (prototype, jnp.zeros((), jnp.int32)), fit=fit, predict=None, world=world)


def telling():
    """A model whose imagined reward is the number of its fit, and which takes one step of 1 at a time."""

    def world(fits):
        def step(observation, action, key):
            none = jnp.zeros(len(observation), bool)
            reward = jnp.full(len(observation), fits.astype(float))
            return observation + 1, Transition(observation, action, reward, observation + 1, none, none)

        return World(reset=lambda key: None, start=lambda origin, key: origin, observe=lambda x: x, step=step)

    return DynamicsModel(
        init=lambda key, hyper: jnp.zeros((), jnp.int32),
        fit=lambda fits, buffer, key: (fits + 1, {"model/rows": Average.of(buffer.size)}),
        predict=None,
        world=world,
    )


def started(algorithm, **hyper):
    return jax.jit(algorithm.learn), jax.jit(algorithm.init)(jax.random.key(0), hyper)


def held(buffer):
    size = int(buffer.size)
    return jax.tree.map(lambda x: np.asarray(x)[:size], in_order(buffer))


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_the_model_is_fitted_to_all_real_rows_at_the_warmups_end_and_every_so_many_steps():
    learn, state = started(mbpo.make(TINY, PENDULUM, telling()))
    for steps in range(2, 24, 2):
        state, found = learn(clock(steps), state, rows(steps))
        due = steps >= WARM and (steps - WARM) % EVERY == 0
        fitted = metrics.known(found).get("model/rows")
        assert fitted == (steps if due else None), steps
        assert int(state.model) == (0 if steps < WARM else 1 + (steps - WARM) // EVERY)
        moved = 0 if steps < WARM else (1 + (steps - WARM) // 2) * 3 * 2
        assert int(state.agent.actor.moments.count) == int(state.agent.critic.moments.count) == moved
    assert learn._cache_size() == 1


def test_branches_start_from_real_states_and_follow_the_stochastic_policy():
    algorithm = mbpo.make(dataclasses.replace(ONLY_IMAGINED, rollout_length=RolloutLength(2, 2)), PENDULUM, telling())
    learn, state = started(algorithm)
    for steps in range(2, WARM + 2, 2):
        state, _ = learn(clock(steps), state, rows(steps))
    real, imagined = held(state.replay), held(state.imagined.buffer)
    assert len(real.reward) == WARM and len(imagined.reward) == 12
    first, second = (jax.tree.map(lambda x, part=part: x[part], imagined) for part in (slice(6), slice(6, 12)))
    for start in first.observation:
        assert (real.observation == start).all(axis=1).any()
    np.testing.assert_array_equal(second.observation, first.next_observation)
    # Actions as the policy of before the updates draws them, not its mean ones.
    before = jax.jit(algorithm.init)(jax.random.key(0), {})
    mean = algorithm.policy(before, clock(0), explore=False).act((), jnp.asarray(imagined.observation), jax.random.key(0))[
        0
    ]
    assert np.all(np.abs(imagined.action - np.asarray(mean)) > 1e-4)
    assert np.all(np.abs(imagined.action) <= 1)
    assert len({float(a) for a in imagined.action[:, 0]}) == 12


def test_imagined_rows_are_kept_for_so_many_steps_and_no_longer():
    learn, state = started(mbpo.make(TINY, PENDULUM, telling()))
    kept = []
    for steps in range(2, 30, 2):
        state, _ = learn(clock(steps), state, rows(steps))
        kept.append(sorted(set(held(state.imagined.buffer).reward)))
    # Fits come at 10, 14, 18, 22 and 26 steps, and two fits' rows are kept.
    assert kept[:4] == [[]] * 4
    assert kept[4::2] == [[1.0], [1.0, 2.0], [2.0, 3.0], [3.0, 4.0], [4.0, 5.0]]


def test_branches_grow_and_the_buffer_with_them_in_one_program():
    length = RolloutLength(first=1, last=3, begins=EVERY, ends=3 * EVERY)
    learn, state = started(mbpo.make(dataclasses.replace(TINY, rollout_length=length), PENDULUM, telling()))
    seen = []
    for steps in range(2, 30, 2):
        state, found = learn(clock(steps), state, rows(steps))
        known = metrics.known(found)
        if "imagine/rollout_length" in known:
            assert known["imagine/rows"] == 6 * known["imagine/rollout_length"]
            rewards, counts = np.unique(held(state.imagined.buffer).reward, return_counts=True)
            fits = dict(zip(rewards.astype(int).tolist(), counts.tolist(), strict=True))
            seen.append((known["imagine/rollout_length"], int(state.imagined.buffer.capacity), fits))
    assert learn._cache_size() == 1
    # Six branches a fit; room for twice the present length of each, the oldest rows giving way.
    assert seen == [
        (1, 12, {1: 6}),
        (1, 12, {1: 6, 2: 6}),
        (2, 24, {1: 6, 2: 6, 3: 12}),
        (3, 36, {2: 6, 3: 12, 4: 18}),
        (3, 36, {4: 18, 5: 18}),
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
    real = replay.add(replay.init(jnp.zeros(()), 50), jnp.arange(1.0, 41))
    imagined = replay.add(replay.init(jnp.zeros(()), 50), -jnp.arange(1.0, 31))

    @functools.partial(jax.jit, static_argnames="n")
    def mixture(first, second, key, n, share):
        return mixtures.mixture([first, second], [share, 1 - share], key, n)

    for share, count in [(0.05, 12), (0.0, 0), (1.0, 256), (0.5, 128), (0.003, 0)]:
        drawn = np.asarray(mixture(real, imagined, jax.random.key(1), n=256, share=share))
        assert (drawn > 0).sum() == count and (drawn < 0).sum() == 256 - count
    assert mixture._cache_size() == 1
    # Nothing imagined: all rows are real, none a row of zeros.
    empty = replay.init(jnp.zeros(()), 50)
    assert np.all(np.asarray(mixture(real, empty, jax.random.key(1), n=256, share=0.05)) > 0)
    # Either part is what `sample` draws by the keys split.
    first, second = jax.random.split(jax.random.key(1))
    both = np.asarray(mixture(real, imagined, jax.random.key(1), n=256, share=0.5))
    np.testing.assert_array_equal(both[:128], replay.sample(real, first, 256)[:128])
    np.testing.assert_array_equal(both[128:], replay.sample(imagined, second, 256)[128:])


def test_with_real_rows_alone_it_is_sac_bit_for_bit(monkeypatch):
    config = dataclasses.replace(TINY, real_ratio=1.0)
    learn, state = started(mbpo.make(config, PENDULUM, telling()))
    plain = sac.Config(
        **{f.name: getattr(config, f.name) for f in dataclasses.fields(sac.Config) if hasattr(config, f.name)}
    )
    # SAC draws its batch by the key that MBPO splits in two: the same rows for both.
    sample = replay.sample
    monkeypatch.setattr(replay, "sample", lambda buffer, key, n: sample(buffer, jax.random.split(key)[0], n))
    sac_learn, sac_state = started(sac.make(plain, PENDULUM))
    assert_same(state.agent, sac_state.agent)
    for steps in range(2, 24, 2):
        with monkeypatch.context() as alone:
            alone.setattr(replay, "sample", sample)
            state, _ = learn(clock(steps), state, rows(steps))
        sac_state, _ = sac_learn(clock(steps), sac_state, rows(steps))
        assert_same(state.agent, sac_state.agent)
    assert int(state.agent.critic.moments.count) == 42
    assert int(state.imagined.buffer.size) == 12, "it imagined all the same"


def test_a_table_of_logged_rows_as_the_model_makes_it_its_model_free_learner():
    """Dyna's k = 1 with an exact model and the logged actions is replay: what was imagined are the real rows of the states
    drawn, and the agent's updates on them are, bit for bit, model-free updates on those real rows."""
    learn, state = started(mbpo.make(ONLY_IMAGINED, PENDULUM, lookup()))
    agent = make_agent(ONLY_IMAGINED.agent, 3, 1)

    @jax.jit
    def model_free(agent_state, buffer, numbers, key):
        def draw(key):
            _, imagined_key = jax.random.split(key)
            drawn = jax.random.randint(imagined_key, (TINY.batch_size,), 0, numbers.shape[0])
            return jax.tree.map(lambda leaf: leaf[numbers[drawn]], buffer.data)

        return updates(agent, agent_state, draw, key, 2 * TINY.updates_per_step)[0]

    for steps in range(2, WARM + 2, 2):
        before = state
        state, _ = learn(clock(steps), state, rows(steps))
    real, imagined = held(state.replay), held(state.imagined.buffer)
    numbers = [int(np.flatnonzero((real.observation == start).all(axis=1))[0]) for start in imagined.observation]
    assert len(numbers) == 6
    assert_same(imagined, jax.tree.map(lambda x: x[numbers], real))
    _, update_key, _ = jax.random.split(before.key, 3)
    assert_same(state.agent, model_free(before.agent, state.replay, jnp.array(numbers), update_key))
    assert int(state.agent.critic.moments.count) == 6


def test_where_every_start_is_drawn_once_what_is_imagined_is_the_data(monkeypatch):
    """As multisets, where the start rows are the data themselves and not a sample of them."""
    config = dataclasses.replace(ONLY_IMAGINED, rollout_rows=WARM, retain_steps=EVERY)
    monkeypatch.setattr(replay, "sample", lambda buffer, key, n: jax.tree.map(lambda x: x[:n], buffer.data))
    learn, state = started(mbpo.make(config, PENDULUM, lookup()))
    for steps in range(2, WARM + 2, 2):
        state, _ = learn(clock(steps), state, rows(steps))
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
    healthy = jnp.zeros(11).at[0].set(1.25)
    ended = envs.make("Hopper-v5").terminated
    rows = jnp.stack([healthy, *(healthy.at[i].set(x) for i in (2, 7) for x in (99.0, -99.0, 101.0, -101.0, jnp.nan))])
    assert ended(rows).tolist() == [False, *2 * [False, False, True, True, True]]
    assert ended(jnp.stack([healthy.at[0].set(0.7), healthy.at[0].set(0.71), healthy.at[1].set(-0.2)])).tolist() == [
        True,
        False,
        True,
    ]


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
