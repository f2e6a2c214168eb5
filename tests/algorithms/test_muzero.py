"""MuZero and AlphaZero: losses of a window by hand, the half gradient, stored searches, and what the settings refuse."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl import algorithms, envs
from jaxmbrl.algorithms import searching
from jaxmbrl.algorithms.search import alphazero, muzero
from jaxmbrl.core.config import UserError
from jaxmbrl.core.types import Clock, Transition
from jaxmbrl.data.prioritized import Prioritized
from jaxmbrl.distributions import ScalarHead
from jaxmbrl.planning.tree_search import SearchConfig, Statistics, Targets
from jaxmbrl.training import programs

PLAIN = ScalarHead()
TASK = "bsuite/Catch"


def test_the_losses_of_a_window_by_hand(x64):
    """K = 2: the first state counts fully, the others and the rewards by one half; nothing is known of the last state."""
    logits, values = np.log([[0.5, 0.5], [0.25, 0.75], [0.9, 0.1]]), np.array([[1.0], [2.0], [3.0]])
    due = Targets(
        value=np.array([0.0, 4.0, 9.0]),
        policy=np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]),
        known=np.array([1.0, 1.0, 0.0]),
        reward=np.array([1.0, -2.0]),
        reward_known=np.array([1.0, 1.0]),
    )
    found = jax.jit(muzero.window_loss, static_argnums=0)(PLAIN, logits, values, np.array([[0.0], [1.0]]), due)
    np.testing.assert_allclose(found.policy, np.log(2) - 0.5 * (0.5 * np.log(0.25) + 0.5 * np.log(0.75)))
    np.testing.assert_allclose(found.value, 1 + 0.5 * 4)
    np.testing.assert_allclose(found.reward, 0.5 * (1 + 9))
    np.testing.assert_allclose(found.error, 1)


def test_half_of_the_gradient_flows_through_each_latent(x64):
    """Linear g and f: d v_k / d z_0 is the product of k factors, halved k times; the values are not changed. The parameter
    of g is reached by v_1 fully, through f."""
    networks = muzero.Networks(
        lambda key: (),
        represent=lambda w, observation: w["h"] * observation,
        dynamics=lambda w, latent, action: (w["g"] * latent, w["g"] * latent),
        predict=lambda w, latent: (latent, w["f"] * latent),
    )
    weights = {"h": 2.0, "g": 3.0, "f": 5.0}
    actions = jnp.zeros(2, jnp.int32)

    def values(w):
        return muzero.unroll(networks, w, jnp.ones(1), actions)[1][:, 0]

    found, slopes = jax.jit(lambda w: (values(w), jax.jacrev(values)(w)))(weights)
    np.testing.assert_allclose(found, [10, 30, 90])
    np.testing.assert_allclose(slopes["h"], [5, 5 * 3 / 2, 5 * 9 / 4])
    # v_2 = f g z_1 and z_1 = g z_0: directly f z_1, and half of f g z_0.
    np.testing.assert_allclose(slopes["g"], [0, 5 * 2, 5 * 6 + 5 * 3 * 2 / 2])
    np.testing.assert_allclose(slopes["f"], [2, 6, 18])


def test_latents_are_scaled_to_the_unit_interval():
    found = np.asarray(muzero.scaled(jnp.array([[3.0, -1.0, 1.0], [2.0, 2.0, 2.0]])))
    np.testing.assert_allclose(found, [[1, 0, 0.5], [0, 0, 0]], atol=1e-5)


def rows(num_envs=2, steps=3, actions=3):
    """Transitions [steps, num_envs] of searches that are told apart by their value."""
    at = np.arange(steps * num_envs, dtype=np.float32).reshape(steps, num_envs)
    found = Statistics(
        np.ones((steps, num_envs, actions), np.float32) / actions, np.zeros((steps, num_envs, 3), np.int32), at
    )
    board = np.random.default_rng(0).normal(size=(steps, num_envs, 50)).astype(np.float32)
    ends = np.zeros((steps, num_envs), bool)
    return Transition(board, at.astype(np.int32) % 3, at, board, ends, ends, found)


@pytest.mark.parametrize("priorities", [0.0, 0.6])
def test_windows_are_of_one_environment_with_their_searches(priorities):
    config = muzero.Config(num_envs=2, replay_capacity=8, priorities=priorities, batch_size=64)
    buffer = searching.new_buffer(config, envs.make(TASK), 3)
    assert isinstance(buffer, Prioritized) == (priorities > 0)

    def drawn(buffer, transitions):
        return searching.draw(config, searching.store(buffer, transitions), jax.random.key(0), 3)

    batch = jax.device_get(jax.jit(drawn)(buffer, rows()))
    values, valid = batch.rows.extras.value, batch.valid
    assert sorted(set(values[:, 0])) == [0, 1, 2, 3, 4, 5]
    np.testing.assert_array_equal(valid, values[:, :1] + 2 * np.arange(3) <= 5)
    np.testing.assert_array_equal(values[valid], (values[:, :1] + 2 * np.arange(3))[valid])
    np.testing.assert_array_equal(batch.rows.reward[valid], values[valid])
    np.testing.assert_allclose(batch.weight, 1)


def test_an_update_learns_and_writes_the_priorities():
    config = alphazero.Config(
        num_envs=2, replay_capacity=8, priorities=1.0, batch_size=32, n_steps=1, updates=3, hidden=(8,)
    )
    task = envs.make(TASK)
    method = alphazero.make(config, task)

    def learned(key):
        state = method.init(key, {"learning_rate": jnp.asarray(1e-2)}, None)
        return state, *method.learn(Clock(jnp.int32(6)), state, jax.tree.map(jnp.asarray, rows()))

    before, after, found = jax.device_get(jax.jit(learned)(jax.random.key(0)))
    leaves = zip(jax.tree.leaves(before.network.params), jax.tree.leaves(after.network.params), strict=True)
    assert all((a != b).any() for a, b in leaves)
    number = len(after.replay.tree) // 2
    changed = after.replay.tree[number : number + 6]
    assert not np.allclose(changed, changed[0]) and int(after.replay.replay.size) == 6
    assert float(found["loss/reward"].total) == 0 < float(found["loss/value"].total)
    np.testing.assert_allclose(found["search/value"].total, 2.5)


def test_weight_decay_is_the_gradient_of_the_squared_norm(x64):
    chain = searching.decayed(muzero.Config(weight_decay=0.25))
    first = chain.update(jnp.array([1.0]), chain.init(jnp.zeros(1)), jnp.array([4.0]))[1]
    np.testing.assert_allclose(first[1].mu, [0.1 * (1 + 2 * 0.25 * 4)])
    assert searching.decayed(muzero.Config()) is None


@pytest.mark.parametrize("name", ["muzero", "alphazero", "uct"])
def test_what_it_does_not_take(name, monkeypatch):
    with pytest.raises(UserError, match=f"{name} takes discrete actions, and the actions of task 'pendulum' are Box"):
        programs.build(programs.configure(name, "pendulum"))
    if name != "uct":
        method = algorithms.get(name)
        algorithm = method.make(method.presets["catch"].config, envs.make(TASK))
        with pytest.raises(
            UserError, match=f"{name} does not accept initial transitions or demonstrations; it learns from"
        ):
            algorithm.init(jax.random.key(0), {}, rows())
        assert algorithm.on_policy, "a file has no searches"
    monkeypatch.setitem(sys.modules, "mctx", None)
    with pytest.raises(UserError, match=r"mctx, which is missing: pip install 'jaxmbrl\[search\]'$"):
        programs.build(programs.configure(name, TASK))


def test_the_search_is_a_setting():
    config = programs.configure("muzero", TASK, settings={"search.method": "puct", "search.puct.temperature": 0.5}).settings
    assert config.search.method == "puct" and config.search.puct.temperature == 0.5
    assert config.search.simulations == SearchConfig().simulations == 16
