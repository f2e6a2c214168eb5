"""How imagined rows go through the members: each propagation against its formula and its identities."""

import dataclasses
import functools

import ensemble_in_numpy as reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hand_made import TINY, alive, blank, constant, fitted_normalisers, floats, imagine, layers_of, nothing, ready
from scipy import stats

from jaxmbrl.models import EnsembleConfig, propagation, uncertainty
from jaxmbrl.rollout import open_loop, rollout

MODES = ("ts1", "tsinf", "expectation", "distribution", "moment_matching")
POOLED = ("expectation", "distribution", "moment_matching")


def stepped(model):
    """The transition of one compiled step from a state, observations, action and key."""
    return jax.jit(lambda state, *rest: model.world(state).step(*rest)[1])


@pytest.mark.parametrize(("rows", "members", "shift"), [(6, 3, 0), (6, 3, 1), (7, 3, 2), (2, 5, 3), (1, 1, 0), (20, 5, 4)])
def test_row_n_goes_to_member_n_plus_shift(rows, members, shift):

    @jax.jit
    def there_and_back(numbers, shift):
        shared = propagation.scatter_to_members(numbers, members, shift)
        return shared, propagation.gather_rows(shared + 1000.0 * jnp.arange(members)[:, None, None], rows, shift)

    numbers = np.arange(rows, dtype=np.float32)[:, None]
    shared, said = there_and_back(numbers, np.int32(shift))
    for n, value in enumerate(np.asarray(said)[:, 0]):
        assert value == n + 1000 * ((n + shift) % members)
    assert shared.shape == (members, -(-rows // members), 1)
    together = jax.vmap(there_and_back, in_axes=(None, 0))(numbers, np.array([0, shift], np.int32))
    np.testing.assert_array_equal(together[0][1], shared)
    np.testing.assert_array_equal(together[1][1], said)


def test_uncertainty_is_parted_by_the_law_of_total_variance():
    """The moments of the mixture itself, by adding up its members' raw moments."""
    rng = np.random.default_rng(0)
    mean, variance = rng.normal(size=(5, 7, 3)), rng.uniform(0.1, 2.0, (5, 7, 3))
    with jax.enable_x64(True):
        parted = jax.jit(uncertainty)
        aleatoric, epistemic = jax.device_get(parted(mean, variance))
        first, second = sum(mean) / 5, sum(variance + mean**2) / 5
        np.testing.assert_allclose(aleatoric + epistemic, second - first**2, rtol=1e-12)
        np.testing.assert_allclose(aleatoric, sum(variance) / 5, rtol=1e-12)
        alone = parted(mean[:1], variance[:1])
        np.testing.assert_array_equal(alone[0], variance[0])
        np.testing.assert_array_equal(alone[1], 0.0)


@pytest.mark.parametrize(("mode", "deviation"), [("expectation", 0.5), ("distribution", 0.5), ("tsinf", 0.4)])
def test_rows_end_where_the_predicted_deviation_is_above_the_threshold(mode, deviation):
    """Noise of variance 0.16 and members 0.6 apart, of variance 0.09; under tsinf a row hears its own member alone."""
    models, noise = [], np.log([0.16, 0.01])
    for threshold in (0.98 * deviation, 1.02 * deviation, None):
        config = EnsembleConfig(members=2, elites=2, hidden=(3,), propagation=mode, halt_above=threshold)
        for terminated, ends in ((alive, None), (None, [-2.0, -2.0])):
            model, state = constant(config, [[0.0, 0.0], [0.6, 0.0]], None, noise, terminated=terminated, ends=ends)
            models.append((model, state._replace(targets=state.targets._replace(std=np.array([5.0, 1.0], np.float32)))))

    @jax.jit
    def steps(states, key):
        worlds = [model.world(state) for (model, _), state in zip(models, states, strict=True)]
        return [world.step(jnp.zeros((4, 2)), jnp.zeros(1), key)[1] for world in worlds]

    told = jax.device_get(steps([state for _, state in models], jax.random.key(0)))
    for known, learned, ends in zip(told[::2], told[1::2], (True, False, False), strict=True):
        np.testing.assert_array_equal(known.terminated, np.full(4, ends))
        np.testing.assert_allclose(learned.terminated, np.full(4, 1.0 if ends else 1 / (1 + np.exp(2.0))), rtol=1e-6)
        assert np.abs(known.next_observation).max() < 20


def test_only_elites_imagine_and_each_its_rows():
    config = EnsembleConfig(members=4, elites=2, hidden=(3,), propagation="tsinf")
    model, state = constant(config, [[0.0], [1.0], [2.0], [3.0]], elites=[3, 1])
    reached = jax.jit(lambda state, key: [imagine(model, state, 5, steps, key) for steps in (1, 3)])(
        state, jax.random.key(0)
    )
    for steps, found in zip((1, 3), reached, strict=True):
        np.testing.assert_allclose(found[:, 0], steps * np.array([3.0, 1.0, 3.0, 1.0, 3.0]))


@pytest.mark.parametrize("mode", ["ts1", "tsinf"])
def test_a_row_ends_by_the_elite_that_moved_it(mode):
    """Member e adds e and is certain to end, or not to: the change tells who moved a row, and so whether it ends."""
    config = EnsembleConfig(members=4, elites=3, hidden=(3,), propagation=mode)
    model, state = constant(
        config, [[0.0], [1.0], [2.0], [3.0]], [3, 0, 2], terminated=None, ends=[60.0, 60.0, -60.0, -60.0]
    )
    state = state._replace(termination_weight=np.float32(50))

    @jax.jit
    def step(state, key):
        world = model.world(state)
        return jax.vmap(lambda key: world.step(jnp.zeros((7, 1)), jnp.zeros(1), key)[1])(jax.random.split(key, 50))

    imagined = jax.device_get(step(state, jax.random.key(0)))
    movers = np.round(imagined.next_observation[..., 0]).astype(int)
    np.testing.assert_allclose(imagined.terminated, movers == 0, atol=1e-20)
    assert len({tuple(row) for row in movers.tolist()}) == (3 if mode == "ts1" else 1)
    assert set(movers.ravel().tolist()) == {0, 2, 3}


def test_ts1_moves_all_rows_on_by_the_same_uniform_shift():
    config = EnsembleConfig(members=4, elites=4, hidden=(3,), propagation="ts1")
    model, state = constant(config, [[0.0], [1.0], [2.0], [3.0]])
    keys = jax.random.split(jax.random.key(0), 2000)
    reached = np.asarray(jax.jit(jax.vmap(lambda key: imagine(model, state, 6, 1, key)))(keys))[:, :, 0]
    shifts = np.round(reached[:, 0]).astype(int)
    np.testing.assert_allclose(reached, (shifts[:, None] + np.arange(6)) % 4, atol=1e-6)
    np.testing.assert_allclose(np.bincount(shifts, minlength=4) / 2000, 0.25, atol=5 * np.sqrt(0.25 * 0.75 / 2000))


def test_particle_variance_grows_as_h_squared_under_tsinf_and_as_h_under_ts1():
    deltas, horizon = np.array([0.3, -1.0, 0.5, 2.0, -0.4]), 4
    keys = jax.random.split(jax.random.key(0), 4000)
    ratio = {}
    for mode in ("ts1", "tsinf"):
        model, state = constant(EnsembleConfig(hidden=(3,), propagation=mode), deltas[:, None])
        reached = jax.jit(jax.vmap(lambda key, m=model, s=state: imagine(m, s, 20, horizon, key)))(keys)
        ratio[mode] = np.asarray(reached)[:, :, 0].var(axis=1) / deltas.var()
    np.testing.assert_allclose(ratio["tsinf"], horizon**2, rtol=1e-4)
    error = ratio["ts1"].std() / np.sqrt(4000)
    assert error < 0.06
    assert abs(ratio["ts1"].mean() - horizon) < 4 * error


@pytest.mark.parametrize("mode", POOLED)
def test_particle_variance_grows_as_h_where_members_are_pooled_and_not_at_all_by_expectation(mode):
    deltas, horizon, rows = np.array([0.3, -1.0, 0.5, 2.0, -0.4]), 4, 20_000
    model, state = constant(EnsembleConfig(hidden=(3,), propagation=mode), deltas[:, None])
    reached = np.asarray(jax.jit(lambda key: imagine(model, state, rows, horizon, key))(jax.random.key(0)))[:, 0]
    if mode == "expectation":
        np.testing.assert_allclose(reached, horizon * deltas.mean(), rtol=1e-6)
        return
    # A variance of Gaussian draws errs by sqrt(2 / rows) of itself; each refit of moments adds such an error.
    assert abs(reached.var() / deltas.var() - horizon) < 4 * horizon * np.sqrt(2 / rows)
    assert abs(reached.mean() - horizon * deltas.mean()) < 4 * np.sqrt(2 * horizon / rows) * deltas.std()


def noisy(mode, members, alike=False):
    """A model with random weights, of that many members, all of them with the weights of the first where `alike`."""
    config = dataclasses.replace(TINY, members=members, elites=members, propagation=mode)
    model, state = ready(config, reward=nothing, terminated=alive)
    if alike:
        params = state.members.params
        same = jax.tree.map(lambda leaf: np.broadcast_to(np.asarray(leaf)[:1], leaf.shape), params.network)
        state = state._replace(members=state.members._replace(params=params._replace(network=same)))
    return model, state


@pytest.mark.parametrize("members", [1, 3])
def test_one_member_or_members_all_alike_propagate_alike_given_equal_noise(members):
    with jax.enable_x64(True):
        models = {mode: noisy(mode, members, alike=True) for mode in ("ts1", "tsinf", "distribution")}
        state = models["ts1"][1]
        results = jax.jit(
            lambda state, key: {mode: imagine(model, state, 6, 5, key) for mode, (model, _) in models.items()}
        )
        reached = jax.device_get(results(state, jax.random.key(3)))
    assert reached["ts1"].std(axis=0).min() > 0.01
    np.testing.assert_array_equal(reached["ts1"], reached["tsinf"])
    np.testing.assert_allclose(reached["ts1"], reached["distribution"], rtol=1e-10)


@pytest.mark.parametrize("members", [1, 3])
def test_moment_matching_with_members_all_alike_has_the_distribution_of_one_step(members):
    """From one start all of a step's particles are draws of one Gaussian, refitted or not."""
    rows = 20_000
    model, state = noisy("moment_matching", members, alike=True)
    drawn = np.asarray(jax.jit(lambda state: imagine(model, state, rows, 1, jax.random.key(3)))(state), float)
    origin = np.zeros((1, 2), np.float32), np.zeros((1, 1), np.float32)
    mean, variance = jax.device_get(jax.jit(model.predict)(state, *origin))
    # Twice the variance of a mean of draws: the moments that were matched were of draws, too.
    z = (drawn.mean(axis=0) - mean[0, 0]) / np.sqrt(2 * variance[0, 0] / rows)
    assert np.abs(z).max() < 4
    assert np.abs(drawn.var(axis=0) / variance[0, 0] - 1).max() < 4 * np.sqrt(4 / rows)


@pytest.mark.parametrize("mode", MODES)
def test_one_certain_member_is_a_deterministic_rollout(mode):
    config = dataclasses.replace(TINY, members=1, elites=1, propagation=mode)
    with jax.enable_x64(True):
        model, state = ready(config, reward=nothing, terminated=alive)
        certain = state.members.params._replace(low=np.full(2, -90.0), high=np.full(2, -80.0))
        state = state._replace(members=state.members._replace(params=certain))
        reached = jax.jit(lambda state: imagine(model, state, 3, 6, jax.random.key(3)))(state)
        (layers,), low, high, _ = layers_of(certain)
        x = np.zeros((1, 2))
        for _ in range(6):
            x = x + reference.forward(layers, low, high, np.concatenate([x, np.zeros((1, 1))], axis=1))[0]
        np.testing.assert_allclose(reached, x.repeat(3, axis=0), rtol=1e-12)


def kurtosis(rows):
    """And four of its standard errors for that many draws of a Gaussian."""
    return stats.kurtosis(np.asarray(rows, float), fisher=False), 4 * np.sqrt(24 / len(rows))


@pytest.mark.parametrize(("mode", "expected"), [("ts1", 1.0), ("distribution", 3.0), ("moment_matching", 3.0)])
def test_two_members_that_disagree_make_two_points_or_one_gaussian(mode, expected):
    config = EnsembleConfig(members=2, elites=2, hidden=(3,), propagation=mode)
    model, state = constant(config, [[-1.0], [1.0]])
    reached = np.asarray(jax.jit(lambda state, key: imagine(model, state, 20_000, 1, key))(state, jax.random.key(0)))[:, 0]
    found, error = kurtosis(reached)
    assert abs(found - expected) < (error if expected == 3.0 else 1e-3)
    assert abs(reached.var() - 1) < 4 * np.sqrt(4 / 20_000)


@pytest.mark.parametrize("mode", ["distribution", "moment_matching"])
def test_moment_matching_forgets_where_its_particles_stood(mode):
    """Particles at -5 and 5 stay two clouds where each row draws for itself; refitted next states are one Gaussian."""
    rows = 20_000
    config = EnsembleConfig(members=2, elites=2, hidden=(3,), propagation=mode)
    model, state = constant(config, [[-1.0], [1.0]])
    start = np.where(np.arange(rows) % 2 == 0, -5.0, 5.0).astype(np.float32)[:, None]
    imagined = stepped(model)(state, start, np.zeros(1, np.float32), jax.random.key(0))
    reached = np.asarray(imagined.next_observation, float)[:, 0]
    found, error = kurtosis(reached)
    assert abs(reached.var() / 26 - 1) < 4 * np.sqrt(4 / rows)
    with_start = np.corrcoef(reached, start[:, 0])[0, 1]
    if mode == "moment_matching":
        assert abs(found - 3.0) < error
        assert abs(with_start) < 4 / np.sqrt(rows)
    else:
        # The fourth moment of +-5 plus a standard normal number over the square of its variance.
        assert abs(found - (625 + 6 * 25 + 3) / 26**2) < 0.03
        assert abs(with_start - 5 / np.sqrt(26)) < 0.01


SLOPES, SHIFTS, SPREADS = np.array([0.2, -0.3, 0.6]), np.array([0.5, -0.4, 0.2]), np.array([0.1, 0.4, 0.2])


def linear(mode):
    """Members whose change of a one-dimensional observation s is SLOPES[e] s + SHIFTS[e] + SPREADS[e] noise."""
    config = EnsembleConfig(members=3, elites=3, hidden=(), propagation=mode)
    model, state = blank(config, (1, 1), nothing, alive)
    params = jax.tree.map(np.array, state.members.params)
    layer = params.network["params"]["Dense_0"]
    layer["kernel"][:, 0, 0] = SLOPES
    layer["bias"] = floats(np.stack([SHIFTS, 2 * np.log(SPREADS)], axis=1))
    params = params._replace(low=floats([-90.0]), high=floats([90.0]))
    return model, state._replace(members=state.members._replace(params=jax.device_put(params)))


@pytest.mark.parametrize("mode", ["distribution", "moment_matching"])
def test_linear_members_have_the_moments_of_algebra(mode):
    """Mean and variance of the belief after each step, by the law of total variance."""
    rows, mean, variance = 100_000, 0.7, 0.0
    covariance = np.mean(SLOPES * SHIFTS) - SLOPES.mean() * SHIFTS.mean()
    model, state = linear(mode)

    @jax.jit
    def run(state, start, key):
        world, policy = model.world(state), open_loop(jnp.zeros((2, 1)))
        return rollout(world, policy, (start, policy.init(jax.random.key(0))), key, 2)[1].next_observation

    steps = run(state, np.full((rows, 1), mean, np.float32), jax.random.key(1))
    for particles in np.asarray(steps, float)[..., 0]:
        expected = (1 + SLOPES.mean()) * mean + SHIFTS.mean()
        disagree = SLOPES.var() * (mean**2 + variance) + 2 * covariance * mean + SHIFTS.var()
        variance = (SPREADS**2).mean() + disagree + (1 + SLOPES.mean()) ** 2 * variance
        mean = expected
        assert abs(particles.mean() - mean) < 4 * np.sqrt(4 * variance / rows)
        assert abs(particles.var() / variance - 1) < 4 * np.sqrt(8 / rows)
    assert variance > 0.4


@functools.cache
def world_parts():
    """A state with fitted normalisers, rows to start from, and NumPy's predictions for them: mean, variance [E, N, D]."""
    config = dataclasses.replace(TINY, absolute=(1,))
    _, state = ready(config)
    state = fitted_normalisers(state)._replace(elites=np.array([2, 0], np.int32), termination_weight=np.asarray(3.0))
    state = jax.device_get(state)
    rng = np.random.default_rng(6)
    observation, action = rng.normal(size=(5, 2)), rng.uniform(-1, 1, (5, 1))
    members, low, high, ends = layers_of(state.members.params)
    x = np.asarray((np.concatenate([observation, action], axis=1) - state.inputs.mean) / state.inputs.std)
    base, std = np.stack([observation[:, 0], np.zeros(5), np.zeros(5)], axis=1), np.asarray(state.targets.std)
    said = [reference.forward(members[e], low, high, x) for e in (2, 0)]
    mean = np.stack([m * std + state.targets.mean + base for m, _ in said])
    return config, state, observation, action, mean, np.stack([np.exp(v) * std**2 for _, v in said]), ends


@jax.jit
def noises(key):
    """Of a step of five rows: the numbers that refit its next observations, and those of its draws."""
    again_key, noise_key = jax.random.split(key)
    return jax.random.normal(again_key, (5, 2)), jax.random.normal(noise_key, (5, 3))


@pytest.mark.parametrize("mode", POOLED)
def test_pooled_steps_as_transcribed(mode):
    """Given the normal numbers of a step, its next observations, rewards and chances of termination."""
    with jax.enable_x64(True):
        config, state, observation, action, mean, variance, ends = world_parts()
        model, _ = blank(dataclasses.replace(config, propagation=mode))
        key = jax.random.key(8)
        imagined = stepped(model)(state, observation, action, key)
        normal_again, normal = jax.device_get(noises(key))
        middle = (mean[0] + mean[1]) / 2
        spread = (variance[0] + variance[1]) / 2 + ((mean[0] - middle) ** 2 + (mean[1] - middle) ** 2) / 2
        if mode == "expectation":
            spread = 0 * spread
        drawn = middle + np.sqrt(spread) * normal
        following = drawn[:, :2].copy()
        if mode == "moment_matching":
            for d in range(2):
                centre = sum(drawn[:, d]) / 5
                width = np.sqrt(sum((drawn[:, d] - centre) ** 2) / 5)
                following[:, d] = centre + width * normal_again[:, d]
        np.testing.assert_allclose(imagined.next_observation, following, rtol=1e-10)
        np.testing.assert_allclose(imagined.reward, drawn[:, 2], rtol=1e-10)
        x = np.asarray((following - state.inputs.mean[:2]) / state.inputs.std[:2])
        odds = [np.exp(reference.termination_logit(ends[e], x)) / 3.0 for e in (2, 0)]
        np.testing.assert_allclose(imagined.terminated, sum(o / (1 + o) for o in odds) / 2, rtol=1e-9)
        assert not np.asarray(imagined.truncated).any()


@pytest.mark.parametrize("mode", ["distribution", "moment_matching"])
def test_pooled_draws_have_the_moments_of_their_formula(mode):
    """Over many keys: each row's own mixture; under moment matching, next observations the block's, by total variance."""
    draws = 4000
    with jax.enable_x64(True):
        config, state, observation, action, mean, variance, _ = world_parts()
        model, _ = blank(dataclasses.replace(config, propagation=mode))

        @jax.jit
        def step(state, observation, action, key):
            world = model.world(state)
            return jax.vmap(lambda key: world.step(observation, action, key)[1])(jax.random.split(key, draws))

        imagined = jax.device_get(step(state, observation, action, jax.random.key(1)))
        drawn = np.concatenate([imagined.next_observation, imagined.reward[..., None]], axis=2)
    middle, spread = mean.mean(axis=0), variance.mean(axis=0) + mean.var(axis=0)
    if mode == "moment_matching":
        block = middle[:, :2]
        middle[:, :2], spread[:, :2] = block.mean(axis=0), spread[:, :2].mean(axis=0) + block.var(axis=0)
    standard = (drawn - middle) / np.sqrt(spread)
    assert np.abs(standard.mean(axis=0)).max() < 4.5 / np.sqrt(draws)
    # Matched moments of five rows are themselves drawn, which fattens the tails: kurtosis 3 + 6/4 at most.
    assert np.abs((standard**2).mean(axis=0) - 1).max() < 4.5 * np.sqrt((2 if mode == "distribution" else 3.5) / draws)
    if mode == "distribution":
        between = np.corrcoef(standard.reshape(draws, -1).T) - np.eye(15)
        assert np.abs(between).max() < 5 / np.sqrt(draws)


@pytest.mark.parametrize("mode", ["tsinf", "moment_matching"])
def test_a_known_reward_is_that_of_the_transition_told(mode):
    config = dataclasses.replace(TINY, propagation=mode)
    model, state = ready(
        config, reward=lambda s, a, t: s[:, 0] + 10 * a[:, 0] + 100 * t[:, 1], terminated=lambda t: t[:, 0] > 0
    )
    given = np.ones((6, 2), np.float32), np.linspace(-1, 1, 6, dtype=np.float32)[:, None]
    step = jax.device_get(stepped(model)(state, *given, jax.random.key(0)))
    np.testing.assert_allclose(step.reward, 1 + 10 * step.action[:, 0] + 100 * step.next_observation[:, 1], rtol=1e-6)
    np.testing.assert_array_equal(step.terminated, step.next_observation[:, 0] > 0)


@pytest.mark.parametrize("probabilistic", [True, False])
def test_gradients_flow_through_pooled_steps(probabilistic):
    """Against central differences, and also where one deterministic member leaves no variance to take the root of."""
    members = 3 if probabilistic else 1
    config = dataclasses.replace(TINY, members=members, elites=1 if members == 1 else 2)
    config = dataclasses.replace(config, probabilistic=probabilistic, propagation="moment_matching")
    with jax.enable_x64(True):
        model, state = ready(config, reward=nothing, terminated=alive)

        def reached(actions):
            world, policy, key = model.world(state), open_loop(actions), jax.random.key(0)
            return jnp.sum(rollout(world, policy, (jnp.ones((5, 2)), policy.init(key)), key, 2)[0][0])

        actions = np.array([[0.1], [0.2]])
        nudges = 1e-5 * np.eye(2)[:, :, None]
        value, slope = jax.device_get(
            jax.jit(jax.vmap(jax.value_and_grad(reached)))(
                np.concatenate([actions + nudges, actions - nudges, actions[None]])
            )
        )
        np.testing.assert_allclose(slope[4, :, 0], (value[:2] - value[2:4]) / 2e-5, rtol=0, atol=1e-7)
        assert np.abs(slope[4]).min() > 1e-4


@pytest.mark.parametrize("part", [0, 1])
def test_what_is_not_a_number_stays_so(part):
    opinions = [np.ones((2, 3, 1), np.float32), np.ones((2, 3, 1), np.float32)]
    opinions[part][1, 2] = np.nan

    @jax.jit
    def pooled(*opinions):
        mean, std = propagation.gaussian("distribution", *opinions)
        return std, propagation.match_moments(mean + std, jax.random.key(0))

    std, matched = pooled(*opinions)
    assert np.isnan(np.asarray(std))[:, 0].tolist() == [False, False, True]
    assert np.isnan(np.asarray(matched)).all()
