"""Back-propagation through time: the gradient on the linear-quadratic problem, against differences through the true
simulator, with ends and overflows, and that it learns."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import linear_quadratic as lq
import numpy as np
import pytest

from jaxmbrl import algorithms, envs
from jaxmbrl.algorithms.value_gradients import bptt
from jaxmbrl.core import metrics
from jaxmbrl.core.config import UserError, check
from jaxmbrl.core.types import Clock, Policy, Transition
from jaxmbrl.models.ensemble import EnsembleConfig
from jaxmbrl.nn import optimizer
from jaxmbrl.training import loop

TINY = bptt.Config(
    hidden=(8,),
    ensemble=EnsembleConfig(members=3, elites=2, hidden=(8,), batch_size=4, max_epochs=2),
    horizon=5,
    batch_size=6,
    updates=2,
    refit_every=4,
    warmup_steps=8,
    replay_capacity=60,
    num_envs=2,
    epoch_steps=8,
)
PENDULUM = envs.make("pendulum")


def of_steps(horizon, **more):
    return dataclasses.replace(TINY, horizon=horizon, **more)


def linear(gain):
    """u = gain s."""
    return Policy(lambda key: (), lambda memory, s, key: (gain * s, jnp.zeros(s.shape[0], s.dtype), memory))


@pytest.mark.parametrize("rematerialize", [False, True])
def test_ten_steps_of_the_linear_quadratic_problem(x64, rematerialize):
    """-1.100617 = -P-less sum of ten steps, differentiated by hand: tests/linear_quadratic.py has the problem."""
    config = of_steps(10, rematerialize=rematerialize)

    def objective(gain):
        discount = jnp.asarray(lq.DISCOUNT, float)
        return bptt.discounted_return(config, lq.world(), linear(gain), jnp.ones((1, 1)), jax.random.key(0), discount)[0]

    s, alive, by_hand = 1.0, 1.0, 0.0
    for _ in range(10):
        by_hand -= alive * (s**2 + lq.COST * (lq.GAIN * s) ** 2) / 2
        s, alive = (lq.A + lq.B * lq.GAIN) * s, lq.DISCOUNT * alive
    value, slope = jax.jit(jax.value_and_grad(objective))(lq.GAIN)
    assert float(value) == pytest.approx(by_hand, rel=1e-12)
    assert float(slope) == pytest.approx(-1.100617, abs=1e-6)


def test_through_the_true_simulator_it_is_what_plain_steps_earn_and_its_differences(x64):
    task, config = envs.make("pendulum"), of_steps(7)
    origins = jax.jit(lambda key: jax.vmap(task.world.reset)(jax.random.split(key, 3)))(jax.random.key(1))
    row = np.array([0.4, -0.7, 0.2])

    def acting(row):
        return Policy(
            lambda key: (), lambda memory, s, key: (jnp.tanh(s @ row)[..., None], jnp.zeros(s.shape[:-1]), memory)
        )

    @jax.jit
    @functools.partial(jax.value_and_grad)
    def objective(row):
        world, discount = bptt.simulated(task.world), jnp.asarray(0.9, float)
        return jnp.mean(bptt.discounted_return(config, world, acting(row), origins, jax.random.key(2), discount))

    observe, step = jax.jit(jax.vmap(task.world.observe)), jax.jit(jax.vmap(task.world.step, (0, 0, None)))

    def stepped(row):
        total, carry = 0.0, origins
        for t in range(7):
            action = np.tanh(np.asarray(observe(carry)) @ row)[:, None]
            carry, made = step(carry, action, jax.random.key(0))
            total += 0.9**t * float(np.mean(np.asarray(made.reward)))
        return total

    value, slope = objective(row)
    assert float(value) == pytest.approx(stepped(row), rel=1e-10)
    differences = [(stepped(row + d) - stepped(row - d)) / 2e-5 for d in 1e-5 * np.eye(3)]
    np.testing.assert_allclose(slope, differences, rtol=1e-6)


def exploding(carry_ends):
    """A task's world of one number, which pays it, ends beyond 1, and of which what follows an end is not finite."""
    world = PENDULUM.world

    def step(carry, action, key):
        following = jnp.where(carry > 1, jnp.nan, carry + action[0])
        ended = following > 1 if carry_ends else jnp.zeros((), bool)
        observation = carry[None]
        return following, Transition(observation, action, carry, following[None], ended, jnp.zeros((), bool))

    return world._replace(observe=lambda carry: carry[None], step=step)


def test_the_ended_go_back_and_leave_the_gradient_finite(x64):
    origins = jnp.array([0.0, 0.9])

    def objective(gain, ends=True):
        world = bptt.simulated(exploding(ends))
        policy = Policy(lambda key: (), lambda m, s, key: (jnp.full_like(s, gain), jnp.zeros(s.shape[0]), m))
        return bptt.discounted_return(of_steps(4), world, policy, origins, jax.random.key(0), jnp.asarray(1.0))

    @jax.jit
    def results(gain):
        total = jax.grad(lambda gain: jnp.sum(objective(gain)))(gain)
        return objective(gain), jax.jacfwd(objective)(gain), total, objective(gain, False)

    earned, slopes, total, endless = results(0.2)
    # 0 + 0.2 + 0.4 + 0.6, and 0.9 alone: the step to 1.1 ended it.
    np.testing.assert_allclose(earned, [1.2, 0.9], rtol=1e-12)
    np.testing.assert_allclose(slopes, [1 + 2 + 3, 0], rtol=1e-12)
    assert float(total) == pytest.approx(6)
    assert np.isnan(np.asarray(endless)[1]), "what follows an end is not finite"


def test_clipped_and_left_out_gradients():
    config = dataclasses.replace(TINY, max_gradient_norm=0.5)
    actor = optimizer.init({"a": jnp.array([1.0, 2.0])}, 0.1)
    step = jax.jit(functools.partial(bptt.clipped_step, config))
    steep, found = step(actor, jnp.asarray(7.0), {"a": jnp.array([3.0, -4.0])})
    # Adam's first moment is a tenth of the gradient, which is (3, -4) / 5 of norm 0.5.
    np.testing.assert_allclose(steep.moments.mu["a"], [0.03, -0.04], rtol=1e-5)
    expected = {"agent/actor_loss": 7, "agent/actor_gradient_norm": 5, "gradient/clipped": 1, "gradient/nonfinite": 0}
    assert metrics.known(found) == pytest.approx(expected)
    flat, found = step(actor, jnp.asarray(7.0), {"a": jnp.array([0.3, 0.0])})
    np.testing.assert_allclose(flat.moments.mu["a"], [0.03, 0.0], rtol=1e-5)
    assert metrics.known(found)["gradient/clipped"] == 0
    level, _ = step(actor, jnp.asarray(7.0), {"a": jnp.zeros(2)})
    np.testing.assert_array_equal(level.params["a"], actor.params["a"])
    for wrong in (jnp.inf, jnp.nan):
        kept, found = step(steep, jnp.asarray(wrong), {"a": jnp.array([wrong, 1.0])})
        jax.tree.map(np.testing.assert_array_equal, kept, steep)
        assert metrics.known(found)["gradient/nonfinite"] == 1
        assert "agent/actor_loss" not in metrics.known(found)
    assert bool(kept.active)


def rows(seed, count=4):
    rng = np.random.default_rng(seed)
    shapes = [(2, 2, 3), (2, 2, 1), (2, 2), (2, 2, 3)]
    none = np.zeros((2, 2), bool)
    return Transition(*(rng.uniform(-1, 1, shape).astype(np.float32) for shape in shapes), none, none)


@pytest.mark.parametrize("model", ["learned", "true"])
def test_it_learns_from_the_warm_ups_end_on_and_fits_a_model_where_it_is_asked(model):
    algorithm = bptt.make(dataclasses.replace(TINY, model=model), PENDULUM)
    assert algorithm.period == 2
    learn, state = jax.jit(algorithm.learn), jax.jit(algorithm.init)(jax.random.key(0), {})
    states, found = [jax.device_get(state)], []
    for call in range(3):
        state, told = learn(Clock(np.asarray(4 * call + 4, np.int32)), state, rows(call))
        states, found = [*states, jax.device_get(state)], [*found, metrics.known(jax.device_get(told))]
    assert found[0] == {} and int(states[3].replay.size) == 12
    jax.tree.map(np.testing.assert_array_equal, states[1].actor, states[0].actor)
    jax.tree.map(np.testing.assert_array_equal, states[1].model, states[0].model)
    assert [int(s.actor.moments.count) for s in states] == [0, 0, 2, 4]
    fitted = [
        any((x != y).any() for x, y in zip(flat(a.model), flat(b.model), strict=True))
        for a, b in itertools.pairwise(states)
    ]
    assert fitted == [False, *[model == "learned"] * 2]
    assert ("model/fit_steps" in found[1]) == (model == "learned")


def flat(tree):
    return [np.asarray(x) for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]


def test_it_explores_with_noise_and_acts_without():
    algorithm = bptt.make(dataclasses.replace(TINY, exploration_noise=0.1), PENDULUM)

    @jax.jit
    def actions(key):
        state, observation = algorithm.init(key, {}), jnp.array([0.3, -0.2, 0.5])
        keys = jax.random.split(jax.random.key(1), 2000)

        def of(explore):
            policy = algorithm.policy(state, loop.clock_at(10_000), explore)
            return jax.vmap(lambda key: policy.act((), observation, key)[0])(keys)

        return of(False), of(True)

    plain, noisy = jax.device_get(actions(jax.random.key(0)))
    assert np.ptp(plain) == 0 and abs(float(np.std(noisy)) - 0.1) < 0.01 and abs(float(np.mean(noisy - plain))) < 0.01
    assert float(np.max(np.abs(noisy))) <= 1


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_envs": 3}, "refit_every must be a multiple of num_envs"),
        ({"ensemble": EnsembleConfig(propagation="moment_matching")}, "ensemble.propagation must not be moment_matching"),
    ],
)
def test_settings_are_checked(changes, told):
    with pytest.raises(UserError, match=told):
        check(dataclasses.replace(TINY, **changes))


def test_a_simulator_outside_of_jax_is_not_differentiated():
    outside = PENDULUM._replace(name="robot", host=lambda: None)
    with pytest.raises(UserError, match="model must be 'learned' on 'robot', whose simulator is not in JAX"):
        bptt.make(dataclasses.replace(TINY, model="true"), outside)
    bptt.make(TINY, outside)


def test_every_preset_is_sound():
    for preset in algorithms.get("bptt").presets.values():
        assert check(preset.config) == preset.config


@pytest.mark.slow
def test_through_mjx_its_gradient_is_the_differences_of_c():
    """The inverted pendulum, on which no contact and, so near to its start, no limit acts."""
    import mujoco

    with jax.enable_x64(True):
        jax.clear_caches()
        task = envs.make("InvertedPendulum-v5")
        model, frame_skip = task.env.mj_model, task.env.frame_skip
        state = jax.jit(task.env.state_at)(jnp.array([0.01, 0.03]), jnp.array([0.02, -0.04]))
        origin = jax.tree.map(lambda leaf: leaf[None], jax.jit(task.world.start)(state, jax.random.key(0)))

        def last(gain):
            world = bptt.simulated(task.world)
            policy = Policy(lambda key: (), lambda m, s, key: ((s @ gain)[:, None], jnp.zeros(s.shape[0]), m))
            trajectory = bptt.imagine(world, policy, origin, jax.random.key(0), 10)
            return trajectory.next_observation[-1, 0]

        gain = np.array([0.3, 0.5, 0.2, 0.1])
        slope = jax.jit(jax.jacrev(last))(jnp.asarray(gain))

        def in_c(gain):
            data = mujoco.MjData(model)
            data.qpos[:], data.qvel[:] = [0.01, 0.03], [0.02, -0.04]
            for _ in range(10):
                data.ctrl[:] = 3 * np.concatenate([data.qpos, data.qvel]) @ gain
                mujoco.mj_step(model, data, frame_skip)
            return np.concatenate([data.qpos, data.qvel])

        differences = np.stack([(in_c(gain + d) - in_c(gain - d)) / 2e-6 for d in 1e-6 * np.eye(4)], axis=1)
        np.testing.assert_allclose(slope, differences, rtol=1e-5, atol=1e-8)
