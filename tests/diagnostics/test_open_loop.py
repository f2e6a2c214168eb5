"""Imagined steps in a row against closed forms, against a loop in NumPy, and across the ends of episodes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl import envs
from jaxmbrl.agents.exploration import uniform
from jaxmbrl.core.config import UserError
from jaxmbrl.core.types import Transition
from jaxmbrl.data import replay
from jaxmbrl.diagnostics import Predictor, compounding_error, evaluate_model, imagined_vs_real
from jaxmbrl.diagnostics.open_loop import steps_left
from jaxmbrl.models import EnsembleConfig, ensemble
from jaxmbrl.training import collecting

KEY = jax.random.key(0)


def play(step, first, actions, ended="terminated"):
    """One recorded episode of `step(observation, action)` from `first`, its last row ended; rewards count up."""
    seen = [np.asarray(first, float)]
    for action in actions:
        seen.append(np.asarray(step(seen[-1], action), float))
    count = len(actions)
    last = np.arange(count) == count - 1
    flags = {name: last & (name == ended) for name in ("terminated", "truncated")}
    return Transition(np.array(seen[:-1]), np.array(actions), np.arange(count) + 0.5, np.array(seen[1:]), **flags)


def joined(*episodes):
    return jax.tree.map(lambda *parts: np.concatenate(parts), *episodes)


def members(state, observation, action):
    """x' = factor x + action by a member for each factor, all with the same noise."""
    factors, noise = state
    mean = factors[:, None, None] * observation + action
    return mean, jnp.full_like(mean, noise**2)


LINEAR = Predictor(members)


def linear(*factors, noise=0.0):
    """State of `LINEAR`."""
    return np.array(factors), np.array(noise)


def still(episodes=2, steps=12, factor=0.9):
    """Episodes of x' = factor x without action."""
    return joined(*(play(lambda x, a: factor * x, [1.0 + 2 * i], np.zeros((steps, 1))) for i in range(episodes)))


def test_errors_of_a_linear_model_in_closed_form():
    """x' = 0.9 x by members 0.9 + e: after h steps |(0.9 + e)^h - 0.9^h| |x_0|, the mean over members having the mean e."""
    horizon, wrong = 5, (0.05, -0.02, 0.0)
    rows = still(4, 8)
    with jax.enable_x64(True):
        found = compounding_error(LINEAR, linear(*(0.9 + e for e in wrong)), rows, horizon, KEY)
    starts = [8 * i + j for i in range(4) for j in range(4)]
    assert found.starts.tolist() == starts
    first = rows.observation[starts, 0]
    size = np.sqrt(np.mean(first**2))
    steps = np.arange(1, horizon + 1)
    for e, error in zip(wrong, found.members[:, :, 0], strict=True):
        np.testing.assert_allclose(error, abs((0.9 + e) ** steps - 0.9**steps) * size, rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(found.mean[:, 0], abs(0.91**steps - 0.9**steps) * size, rtol=1e-9)
    np.testing.assert_allclose(found.persistence[:, 0], (1 - 0.9**steps) * size, rtol=1e-9)
    spread = rows.observation.std()
    np.testing.assert_allclose(found.scale, [spread], rtol=1e-12)
    for name in ("members", "mean", "persistence"):
        np.testing.assert_allclose(getattr(found, f"scaled_{name}"), getattr(found, name)[..., 0] / spread, rtol=1e-12)


def test_a_perfect_model_errs_by_exactly_nothing_also_beside_resets():
    """Halves and whole numbers, without rounding. Starts that crossed an end would meet another episode's states."""
    rng = np.random.default_rng(0)
    episodes = []
    for i, ended in enumerate(["terminated", "truncated", "truncated", "terminated"]):
        actions = rng.integers(-2, 3, ((7, 8, 8, 9)[i], 1)) / 2
        episodes.append(play(lambda x, a: x / 2 + a, [8.0 * (i + 1)], actions, ended))
    with jax.enable_x64(True):
        found = compounding_error(LINEAR, linear(0.5, 0.5, 0.5), joined(*episodes), 5, KEY)
    assert found.starts.tolist() == [0, 1, 2, 7, 8, 9, 10, 15, 16, 17, 18, 23, 24, 25, 26, 27]
    for error in (found.members, found.mean, found.scaled_members, found.scaled_mean):
        np.testing.assert_array_equal(error, 0.0)
    assert (found.persistence > 0).all()


def test_discrete_actions_are_taken_as_numbers():
    rows = play(lambda x, a: x / 2 + a, [8.0], np.array([0, 2, 1, 1, 0, 2], np.int32))
    assert rows.action.shape == (6,)

    def predict(state, observation, action):
        assert action.dtype == jnp.int32
        mean = jnp.stack([observation / 2 + action[:, None]] * 2)
        return mean, jnp.zeros_like(mean)

    np.testing.assert_array_equal(compounding_error(Predictor(predict), (), rows, 3, KEY).members, 0.0)
    found = imagined_vs_real(Predictor(predict), (), rows, 1, 4, KEY, particles=2)
    for trajectory in (found.mean, *found.members, *found.particles):
        np.testing.assert_array_equal(trajectory, found.real)


def test_stretches_end_where_an_episode_does():
    rows = joined(still(1, 3), still(1, 2), still(1, 1))
    assert steps_left(rows).tolist() == [3, 2, 1, 2, 1, 1]
    cut = rows._replace(terminated=np.zeros(6, bool), truncated=np.array([0, 0, 1, 0, 0, 0], bool))
    assert steps_left(cut).tolist() == [3, 2, 1, 2, 1, 1]


def test_stretches_end_where_rows_do_not_follow_on_each_other():
    """Without a flag, as between two environments; rounding is no break, and interleaved rows are all alone."""
    one, other = (rows._replace(terminated=np.zeros(12, bool)) for rows in (still(1, 12), still(1, 12, 0.7)))
    assert steps_left(joined(one, other)).tolist() == [*range(12, 0, -1)] * 2
    mixed = jax.tree.map(
        lambda a, b: np.stack([a, b], axis=1).reshape(24, *a.shape[1:]),
        one,
        other._replace(observation=other.observation + 5, next_observation=other.next_observation + 5),
    )
    assert steps_left(mixed).tolist() == [1] * 24
    rounded = one._replace(observation=(one.observation * (1 + 1e-7)).astype(np.float32))
    assert steps_left(rounded).tolist() == [*range(12, 0, -1)]


def turning(x, a, strength=1.0):
    return np.array([x[0] + 0.1 * x[1], x[1] - 0.1 * strength * np.sin(x[0]) + 0.2 * a[0]])


STRENGTHS = (1.0, 1.3, 0.6)


def pendulums(state, observation, action):
    """Three pendulums of other strengths, with a reward -x_0 and variances that differ by member and dimension."""

    def one(strength):
        swing = observation[:, 1] - 0.1 * strength * jnp.sin(observation[:, 0]) + 0.2 * action[:, 0]
        following = jnp.stack([observation[:, 0] + 0.1 * observation[:, 1], swing], axis=1)
        return jnp.concatenate([following, -observation[:, :1] * strength], axis=1)

    mean = jnp.stack([one(strength) for strength in STRENGTHS])
    return mean, state * jnp.ones_like(mean) * jnp.arange(1.0, 4.0)[:, None, None] * jnp.arange(1.0, 4.0)


def swings(steps=20, episodes=3):
    rng = np.random.default_rng(1)
    return joined(
        *(play(turning, rng.normal(size=2), rng.uniform(-1, 1, (steps, 1)), "truncated") for _ in range(episodes))
    )


def by_hand(rows, start, horizon):
    """Trajectories [1 + E, H + 1, O] and rewards [1 + E, H]: of the mean over members, and of each alone."""
    trajectories, rewards = [], []
    for owner in (None, 0, 1, 2):
        x, path, earned = rows.observation[start], [rows.observation[start]], []
        for h in range(horizon):
            mine = STRENGTHS if owner is None else [STRENGTHS[owner]]
            earned.append(np.mean([-strength * x[0] for strength in mine]))
            x = np.mean([turning(x, rows.action[start + h], strength) for strength in mine], axis=0)
            path.append(x)
        trajectories.append(path)
        rewards.append(earned)
    return np.array(trajectories), np.array(rewards)


@pytest.fixture(scope="module")
def compounded():
    """The errors of the pendulums after 6 steps."""
    with jax.enable_x64(True):
        return compounding_error(Predictor(pendulums), 0.5, swings(), 6, KEY)


def test_compounding_as_looped_in_numpy(compounded):
    rows, horizon, found = swings(), 6, compounded
    starts = [20 * i + j for i in range(3) for j in range(15)]
    assert found.starts.tolist() == starts
    miss = []
    for start in starts:
        truth = rows.next_observation[start : start + horizon]
        still = truth - rows.observation[start]
        miss.append([*(by_hand(rows, start, horizon)[0][:, 1:] - truth), still])
    error = np.sqrt(np.mean(np.square(miss), axis=0))
    np.testing.assert_allclose(found.mean, error[0], rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(found.members, error[1:4], rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(found.persistence, error[4], rtol=1e-9)
    spread = rows.observation.std(axis=0)
    np.testing.assert_allclose(found.scaled_members, np.sqrt(((error[1:4] / spread) ** 2).mean(axis=2)), atol=1e-12)
    np.testing.assert_allclose(found.scaled_mean, np.sqrt(((error[0] / spread) ** 2).mean(axis=1)), rtol=1e-9)


def test_the_first_step_is_the_one_step_error(compounded):
    with jax.enable_x64(True):
        one = evaluate_model(Predictor(pendulums), 0.5, jax.tree.map(lambda x: x[compounded.starts], swings()))
    np.testing.assert_allclose(compounded.mean[0], one.error[:2], rtol=1e-9)


def test_sampled_noise_adds_up_as_a_random_walk():
    """Nothing moves and members step with deviation 0.3: after h steps 0.3 sqrt(h). The mean over members stays."""
    rows = joined(*(play(lambda x, a: x, [float(i)], np.zeros((8, 1))) for i in range(2)))
    many = joined(*[rows] * 150)
    model = LINEAR, linear(1.0, 1.0, noise=0.3)
    found = compounding_error(*model, many, 8, KEY, starts=300, sampled=True)
    expected = 0.3 * np.sqrt(np.arange(1, 9))
    for error in found.members[:, :, 0]:
        np.testing.assert_allclose(error, expected, rtol=4 / np.sqrt(2 * 300))
    np.testing.assert_array_equal(found.mean, 0.0)
    assert (found.members[0] != found.members[1]).all()
    certain = compounding_error(*model, many, 8, KEY, starts=300)
    np.testing.assert_array_equal(certain.members, 0.0)


def test_starts_are_drawn_without_repetition():
    rows = still(4, 30)
    found = [compounding_error(LINEAR, linear(0.8), rows, 3, jax.random.key(seed), starts=10).starts for seed in (0, 0, 1)]
    assert all(len(set(starts.tolist())) == 10 and (np.diff(starts) > 0).all() for starts in found)
    np.testing.assert_array_equal(found[0], found[1])
    assert (found[0] != found[2]).any()
    assert all((starts % 30 <= 27).all() for starts in found)


def test_what_never_varies_is_not_in_the_scaled_error():
    rows = still()
    rows = rows._replace(
        **{
            name: np.pad(getattr(rows, name), ((0, 0), (0, 1)), constant_values=0.1)
            for name in ("observation", "next_observation")
        }
    )

    def predict(state, observation, action):
        return (observation * jnp.array([0.8, 1.0]))[None], jnp.zeros((1, *observation.shape))

    found = compounding_error(Predictor(predict), (), rows, 1, KEY)
    # Every row is the first of one step.
    assert found.starts.tolist() == list(range(24))
    assert found.scale[1] == 0
    np.testing.assert_allclose(found.scaled_mean, found.mean[:, 0] / found.scale[0], rtol=1e-12)
    alike = np.full_like(rows.observation, 0.1)
    frozen = rows._replace(observation=alike, next_observation=alike)
    assert np.isnan(compounding_error(Predictor(predict), (), frozen, 1, KEY).scaled_mean).all()


def test_imagined_trajectories_as_looped_in_numpy():
    rows, start, horizon = swings(), 23, 10
    with jax.enable_x64(True):
        found = imagined_vs_real(Predictor(pendulums), 0.0, rows, start, horizon, KEY, particles=5)
    trajectories, rewards = by_hand(rows, start, horizon)
    np.testing.assert_allclose(found.mean, trajectories[0], rtol=1e-9)
    np.testing.assert_allclose(found.members, trajectories[1:], rtol=1e-9)
    # Without variance, particle p is member p mod 3.
    np.testing.assert_allclose(found.particles, trajectories[[1, 2, 3, 1, 2]], rtol=1e-9)
    np.testing.assert_allclose(found.mean_reward, rewards[0], rtol=1e-9)
    np.testing.assert_allclose(found.members_reward, rewards[1:], rtol=1e-9)
    np.testing.assert_allclose(found.particles_reward, rewards[[1, 2, 3, 1, 2]], rtol=1e-9)
    np.testing.assert_array_equal(found.real, rows.observation[23:34])
    np.testing.assert_array_equal(found.real_reward, rows.reward[23:33])
    # The first member is the truth.
    np.testing.assert_allclose(found.members[0], found.real, rtol=1e-9)


def test_to_the_very_end_of_an_episode():
    rows = swings()
    found = imagined_vs_real(Predictor(pendulums), 0.0, rows, 30, 10, KEY, particles=0)
    np.testing.assert_array_equal(found.real, [*rows.observation[30:40], rows.next_observation[39]])
    assert found.particles.shape == (0, 11, 2) and found.particles_reward.shape == (0, 10)


def test_particles_have_their_members_noise():
    """After one step, the variances of the model; the trajectories of means have none."""
    found = imagined_vs_real(Predictor(pendulums), 0.01, swings(), 3, 2, KEY, particles=3 * 2000)
    own = found.particles[:, 1].reshape(2000, 3, 2)
    np.testing.assert_allclose(own.mean(axis=0), found.members[:, 1], atol=4 * 0.3 / np.sqrt(2000))
    variance = 0.01 * np.arange(1, 4)[:, None] * np.arange(1, 3)
    np.testing.assert_allclose(own.var(axis=0), variance, rtol=4 * np.sqrt(2 / 2000))
    earned = found.particles_reward[:, 0].reshape(2000, 3)
    np.testing.assert_allclose(earned.var(axis=0), 0.03 * np.arange(1, 4), rtol=4 * np.sqrt(2 / 2000))


def test_a_known_reward_is_told_of_what_is_imagined():
    rows = swings()

    def reward(seen, action, following):
        return seen[..., 0] + 10 * action[..., 0] + 100 * following[..., 1]

    model = LINEAR, linear(0.9, 0.5)
    found = imagined_vs_real(*model, rows, 5, 4, KEY, reward=reward)
    taken = rows.action[5:9, 0]
    for path, earned in ((found.mean, found.mean_reward), (found.members[1], found.members_reward[1])):
        np.testing.assert_allclose(earned, path[:-1, 0] + 10 * taken + 100 * path[1:, 1], rtol=1e-5)
    unknown = imagined_vs_real(*model, rows, 5, 4, KEY)
    assert (unknown.mean_reward, unknown.members_reward, unknown.particles_reward) == (None, None, None)
    assert unknown.particles.shape == (20, 5, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m, r: compounding_error(*m, r, 13, KEY),
            "horizon must be at most 12, the longest .* got 13",
        ),
        (lambda m, r: compounding_error(*m, r, 0, KEY), "horizon and starts must be at least 1, got 0 and 200"),
        (lambda m, r: compounding_error(*m, r, 3, KEY, starts=0), "horizon and starts must be at least 1, got 3 and 0"),
        (lambda m, r: imagined_vs_real(*m, r, 24, 1, KEY), "start must be a row from 0 to 23, got 24"),
        (lambda m, r: imagined_vs_real(*m, r, -1, 1, KEY), "start must be a row from 0 to 23, got -1"),
        (
            lambda m, r: imagined_vs_real(*m, r, 9, 4, KEY),
            "horizon must be from 1 to 3, .* at row 9, got 4",
        ),
        (lambda m, r: imagined_vs_real(*m, r, 9, 0, KEY), "horizon must be from 1 to 3"),
        (lambda m, r: imagined_vs_real(*m, r, 0, 3, KEY, particles=-1), "particles must be at least 0, got -1"),
    ],
)
def test_what_cannot_be_is_told(call, message):
    with pytest.raises(UserError, match=message):
        call((LINEAR, linear(0.9)), still())


@pytest.mark.promises
def test_errors_of_a_fitted_model_grow_with_the_horizon_and_shrink_with_data():
    """A pendulum pushed at random: a tenth of the data fits worse at every horizon, and both are soon off."""
    task = envs.make("pendulum")
    rows = collecting.collect(task, uniform(task.action), 2000)
    new = collecting.collect(task, uniform(task.action), 1000, seed=1)
    assert steps_left(new).tolist() == [*range(200, 0, -1)] * 5
    config = EnsembleConfig(members=2, elites=2, hidden=(32, 32), batch_size=64, max_epochs=25, learning_rate=3e-3)
    model = ensemble.make(config, 3, 1, task.reward, task.terminated)
    fit, first = jax.jit(model.fit), model.init(jax.random.key(1), {})
    few, many = (
        compounding_error(model, fit(first, replay.of_rows(rows, count), KEY)[0], new, 20, KEY) for count in (200, 2000)
    )
    for found in (few, many):
        error = found.scaled_mean
        assert error[0] < error[4] < error[19] and error[19] > 4 * error[0]
        assert (found.starts % 200 <= 180).all()
    assert (many.scaled_mean < 0.5 * few.scaled_mean).all()
    assert (many.scaled_members.max(axis=0) < few.scaled_members.min(axis=0)).all()
    # It beats the prediction that nothing changes, at every horizon.
    assert (many.scaled_mean < 0.5 * many.scaled_persistence).all()
