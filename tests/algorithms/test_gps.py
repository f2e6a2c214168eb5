"""GPS: the step size, what an S-step learns, and what is refused."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl import envs
from jaxmbrl.agents.regression import Regression
from jaxmbrl.algorithms.trajectory import gps
from jaxmbrl.core.config import UserError, check
from jaxmbrl.core.types import Clock, Transition
from jaxmbrl.models import local_linear
from jaxmbrl.models.local_linear import LocalLinearConfig
from jaxmbrl.planning import lqr
from jaxmbrl.planning.lqr import LinearPolicy
from jaxmbrl.planning.trust_region_lqr import CStep

PLAIN = gps.Config()


@pytest.fixture(scope="module", autouse=True)
def double():
    """In float64."""
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize(
    ("predicted", "actual", "factor"),
    [(10.0, 5.0, 1.0), (10.0, 8.0, 2.5), (10.0, 0.0, 0.5), (10.0, 10.0, 3.0), (10.0, 12.0, 3.0), (10.0, -90.0, 0.5)],
)
def test_the_step_size(predicted, actual, factor):
    """Twice the shortfall is the prediction: the same step again. It grows at most to 3 and falls at most to 0.5."""
    found = gps.adjusted_step_size(PLAIN, jnp.ones(()), jnp.asarray(predicted), jnp.asarray(actual))
    assert float(found) == pytest.approx(factor)


def test_one_step_size_changes_at_most_fivefold():
    wide = dataclasses.replace(PLAIN, least_step=1e-3, largest_step=1e3)
    grown, fallen = (
        float(gps.adjusted_step_size(wide, jnp.asarray(2.0), jnp.asarray(10.0), jnp.asarray(x))) for x in (10.0, -1e6)
    )
    assert (grown, fallen) == pytest.approx((10.0, 0.2))


def test_an_s_step_learns_the_controllers_commands():
    """At the sampled states, by numbers computed by hand: K_t x + k_t, and C_t^-1."""
    x = jnp.arange(1.0, 9.0).reshape(2, 2, 2, 1)
    local = LinearPolicy(
        jnp.array([[[[1.0]], [[2.0]]], [[[3.0]], [[4.0]]]]),
        jnp.array([[[0.1], [0.2]], [[0.3], [0.4]]]),
        jnp.array([[[[1.0]], [[2.0]]], [[[4.0]], [[5.0]]]]),
    )
    states, target, precision = gps.supervision(x, local)
    np.testing.assert_array_equal(states[:, 0], np.arange(1.0, 9.0))
    np.testing.assert_allclose(target[:, 0], [1.1, 4.2, 3.1, 8.2, 15.3, 24.4, 21.3, 32.4])
    np.testing.assert_allclose(precision[:, 0, 0], [1, 0.5, 1, 0.5, 0.25, 0.2, 0.25, 0.2])


def test_the_mixture_sees_the_last_trajectories_of_each_start_state(monkeypatch):
    """Six environments and two start states, so three trajectories of each in a call, and room for two calls: against
    lists. The rest of an iteration is replaced."""
    length, envs_number, starts, room = 4, 6, 2, 6
    config = gps.Config(
        start_states=starts, num_envs=envs_number, model=LocalLinearConfig(trajectories=8, rows_per_cluster=5, clusters=4)
    )
    valid, number, zero = [], [], jnp.zeros(())

    def fit(model, steps, kept, clusters, inputs):
        return jnp.zeros((length, 3, 4)), jnp.zeros((length, 3)), jnp.zeros((length, 3, 3))

    def keep(steps, given):
        valid.append(given.tolist())
        return local_linear.keep(steps, given)

    def clusters_for(self, rows):
        number.append(int(rows))
        return rows

    def c_step(models, bound, multiplier, *rest):
        return CStep(models.reference, zero, multiplier, zero, zero, zero)

    def linearised(config, agent, policy, x, kept, clusters):
        return lqr.repeated(LinearPolicy(jnp.zeros((1, 3)), jnp.zeros(1), jnp.eye(1)), length)

    monkeypatch.setattr(gps, "local_linear", SimpleNamespace(fit=fit, keep=keep))
    monkeypatch.setattr(LocalLinearConfig, "clusters_for", clusters_for)
    monkeypatch.setattr(gps, "expansion", SimpleNamespace(expand=lambda *given: (zero, zero)))
    monkeypatch.setattr(gps, "expected_cost", lambda models, policy: zero)
    monkeypatch.setattr(gps, "c_step", c_step)
    monkeypatch.setattr(gps, "linearised", linearised)
    monkeypatch.setattr(gps, "imagined", lambda models, local, noise: noise)
    agent = Regression(lambda key, hyper: (), lambda *given: zero, lambda *given: (), lambda policy, *given: (policy, {}))
    monkeypatch.setattr(gps, "regression", SimpleNamespace(make=lambda *given: agent))
    algorithm = gps.make(config, envs.make("pendulum")._replace(episode_length=length))
    state, rng = algorithm.init(jax.random.key(0), {}), np.random.default_rng(0)
    lists = [[] for _ in range(starts)]
    for call in range(1, 4):
        x, u, successor = (rng.normal(size=(length, envs_number, size)) for size in (3, 1, 3))
        none, ended = np.zeros((length, envs_number)), np.zeros((length, envs_number), bool)
        rows = Transition(
            *map(jnp.asarray, (x, np.clip(u, -1, 1), none, successor, ended, ended)), {"command": jnp.asarray(u)}
        )
        state, _ = algorithm.learn(Clock(jnp.asarray(call * length * envs_number, jnp.int32)), state, rows)
        for i in range(envs_number):
            lists[i % starts].append(np.concatenate([x[:, i], u[:, i], successor[:, i]], axis=1))
        have = min(3 * call, room)
        kept = np.asarray(state.kept)
        assert kept.shape == (starts, room, length, 7)
        np.testing.assert_array_equal(kept[:, room - have :], np.array(lists)[:, -have:])
        assert not kept[:, : room - have].any()
        assert valid[-1] == [False] * (room - have) + [True] * have and number[-1] == have * length


def test_what_is_refused():
    for task, problem in (
        (envs.make("cartpole-continuous"), "may terminate"),
        (envs.make("pendulum", action_repeat=2), "has no reward function"),
        (envs.make("CliffWalking"), "gps takes vectors"),
    ):
        with pytest.raises(UserError, match=problem):
            gps.make(gps.Config(), task)
    for changes, problem in (
        ({"start_states": 2, "num_envs": 5}, "num_envs must be a multiple, at least 2, of start_states"),
        ({"start_states": 4, "num_envs": 4}, "num_envs must be a multiple, at least 2, of start_states"),
        ({"policy": "local", "start_states": 2, "num_envs": 4}, "start_states must be 1 with policy local"),
        ({"least_step": 4.0}, "largest_step must be at least least_step"),
    ):
        with pytest.raises(UserError, match=problem):
            check(dataclasses.replace(gps.Config(), **changes))
