"""TD-MPC2: its loss by a loop over windows, its discount factor, and what it does without candidates or without the prior's
sequences."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl import algorithms, envs
from jaxmbrl.agents import policy_prior
from jaxmbrl.agents.policy_prior import PriorConfig
from jaxmbrl.algorithms import latent_settings
from jaxmbrl.algorithms.latent import td_mpc2
from jaxmbrl.algorithms.latent.td_mpc2 import Config, Learned, Parameters
from jaxmbrl.core.config import UserError
from jaxmbrl.core.spaces import Box
from jaxmbrl.core.types import Average, Clock
from jaxmbrl.models.latent import CoderConfig, ConsistencyConfig, Window, consistency, continued, repeated, step_weights
from jaxmbrl.nn import networks, optimizer
from jaxmbrl.planning import MPPIConfig, mppi, planning_policy, proposals_of
from jaxmbrl.training import programs

OBSERVED, BOX, B, T = Box((3,)), Box((2,), -1.0, 1.0), 2, 3
MODEL = ConsistencyConfig(
    size=4,
    group=2,
    units=5,
    layers=1,
    coder=CoderConfig(units=5, symlog=False),
    consistency_scale=20.0,
    reward_scale=0.1,
    decoder_scale=0.0,
    bins=5,
    activation="mish",
    norm="layer",
)
PARTS = consistency.parts(MODEL, OBSERVED, BOX)
PRIOR = policy_prior.make(PriorConfig(units=5, layers=1, critics=2, bins=5, dropout=0.0), 4, 2)


def configured(**changes):
    tiny = dict(algorithms.get("td-mpc2").tiny) | changes
    return programs.configure("td-mpc2", "pendulum", settings=tiny).settings


def window():
    """Two steps of each of two windows; the first's episode terminates with its first step."""
    rng = np.random.default_rng(0)
    ends = np.zeros((B, T), bool)
    ends[0, 1] = True
    shown = rng.normal(size=(B, T, 3)), rng.uniform(-1, 1, (B, T, 2)), rng.normal(size=(B, T))
    return jax.tree.map(jnp.asarray, Window(*shown, ends, ends, ends, np.ones((B, T))))


def trainables(key):
    keys = jax.random.split(key, 4)
    # Another target than the critics, and outputs that are not 0.
    critics, targets = (jax.tree.map(lambda x: x + 0.1, PRIOR.init_critics(k)) for k in keys[:2])
    held = optimizer.init(critics, 1e-3, True)._replace(target=targets)
    params = jax.tree.map(lambda x: x + 0.05, PARTS.init(keys[2]))
    return Learned(optimizer.init(params, 1e-3), held, optimizer.init(PRIOR.init_actor(keys[3]), 1e-3), jnp.ones(()))


def test_the_loss_is_that_of_a_loop_and_stops_at_the_end_of_an_episode(x64):
    # With two Q-functions the two random ones are all, and without noise the prior's action is its mode.
    prior = PRIOR._replace(
        gaussian=lambda params, z: (PRIOR.gaussian(params, z)[0], jnp.full((*z.shape[:-1], 2), -jnp.inf))
    )
    given = window()

    @jax.jit
    def looked(key):
        learned = trainables(key)
        params = Parameters(learned.model.params, learned.critics.params)
        loss, (z, _) = td_mpc2.model_loss(MODEL, PARTS, prior, 0.9, params, learned, given, key)
        total = 0.0
        for b, steps in ((0, 1), (1, 2)):
            at = PARTS.code(params.model, given.observation[b, 0])
            for t in range(steps):
                action, reward = given.action[b, t + 1], given.reward[b, t + 1]
                after, code = PARTS.step(params.model, at, action), PARTS.code(params.model, given.observation[b, t + 1])
                best = jnp.min(prior.values(learned.critics.target, code, prior.mode(learned.actor.params, code)))
                y = reward + jnp.where(given.terminated[b, t + 1], 0.0, 0.9 * best)
                by_q = [prior.number.loss(output, y) for output in prior.outputs(params.critics, at, action, None)]
                error = 20 * jnp.mean((after - code) ** 2)
                error += 0.1 * PARTS.reward_loss(params.model, at, action, reward) + 0.1 * sum(by_q) / 2
                logit = PARTS.goes_on(params.model, after)
                total += 0.5**t * error + jnp.logaddexp(0.0, jnp.where(given.terminated[b, t + 1], logit, -logit))
                at = after
        return loss, total / 3, z[1, -1], at

    loss, due, last, at = jax.device_get(looked(jax.random.key(0)))
    np.testing.assert_allclose(loss, due, rtol=1e-9)
    np.testing.assert_allclose(last, at, rtol=1e-9)


def test_codes_of_observations_are_targets_without_a_gradient(x64):
    """With the consistency alone, the later observations of a window move no parameter of the encoder."""
    alone = dataclasses.replace(MODEL, reward_scale=1e-30, learn_continuation=False)
    parts, given = consistency.parts(alone, OBSERVED, BOX), window()

    @jax.jit
    def slopes(key):
        params = parts.init(key)

        def loss(params, later):
            shown = given.observation.at[:, 1:].set(later)
            z, codes = consistency.rolled(parts, params, given._replace(observation=shown))
            return jnp.sum(consistency.errors(parts, params, z, codes, given)["consistency"])

        return jax.grad(loss, argnums=(0, 1))(params, given.observation[:, 1:])

    of_params, of_later = jax.device_get(slopes(jax.random.key(1)))
    assert not of_later.any() and all(np.any(x) for x in jax.tree.leaves((of_params["encoder"], of_params["step"])))
    assert "decoder" not in of_params


@pytest.mark.parametrize(
    ("length", "due"), [(40, 0.95), (200, 0.975), (500, 0.99), (1000, 0.995), (5000, 0.995), (3, 0.95)]
)
def test_the_discount_factor_of_an_episode_length(length, due):
    assert td_mpc2.discount_for(length) == pytest.approx(due)


def test_the_prior_learns_at_states_up_to_the_end_of_an_episode():
    ends = np.array([[0, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 1]], bool)
    given = Window(*[None] * 3, terminated=ends, first=None, last=ends, known=None)
    found = jax.jit(
        lambda: (continued(given), continued(given._replace(terminated=ends & False)), step_weights(given, 0.5))
    )()
    terminated, limited, weights = (np.asarray(x).astype(float).tolist() for x in found)
    assert terminated == [[1, 1, 0, 0], [1] * 4, [1, 0, 0, 0]] and limited == [[1, 1, 1, 0], [1] * 4, [1, 1, 0, 0]]
    assert weights == [[1, 0.5, 0], [1, 0.5, 0.25], [1, 0, 0]]


def test_initial_weights_have_one_deviation():
    params = {"params": {"Dense_0": {"kernel": jnp.ones((100, 7)), "bias": jnp.ones(7)}}}
    found = networks.with_deviation(params, 0.02)["params"]["Dense_0"]
    np.testing.assert_allclose(found["kernel"], 0.2, rtol=1e-6)
    np.testing.assert_array_equal(found["bias"], 1.0)


@pytest.mark.parametrize(("steps", "due"), [(98, 0), (100, 7), (102, 3), (198, 3)])
def test_the_first_updates_come_at_the_end_of_the_warmup(steps, due):
    given = configured(updates=3)

    def update(state, key):
        return state + 1, {"number": Average.of(jnp.ones(()))}

    def of_one_call(clock):
        return latent_settings.updates(given, clock, update, jnp.zeros((), jnp.int32), jax.random.key(0), 7)

    state, _ = jax.jit(of_one_call)(Clock(jnp.asarray(steps, jnp.int32)))
    assert int(state) == due


def test_the_plan_without_samples_is_the_prior_and_without_the_priors_sequences_mppi():
    """Bit for bit. Without a plan the prior acts."""
    task, key, seen = envs.make("pendulum"), jax.random.key(3), jnp.array([0.5, -0.3, 1.0])
    given, clock = configured(**{"planner.iterations": 1}), Clock(jnp.asarray(100, jnp.int32))
    parts = consistency.parts(given.model, task.observation, task.action)
    model, prior = consistency.assemble(given.model, parts), policy_prior.make(given.agent, given.model.size, 1)
    alone = dataclasses.replace(given, proposals=0)
    unplanned = dataclasses.replace(given, plan=False)

    @jax.jit
    def looked(key):
        made, without, of_prior = (td_mpc2.make(config, task) for config in (given, alone, unplanned))
        state = made.init(key, {})
        learned = state.learned
        # Weights with which actions differ.
        params, critics, actor = (jax.tree.map(lambda x: 3 * x + 0.1, part.params) for part in learned[:3])
        held = (learned[i]._replace(params=part) for i, part in enumerate((params, critics, actor)))
        state = state._replace(learned=learned._replace(**dict(zip(Learned._fields, held, strict=False))))

        def act(policy):
            return policy.act(policy.init(key), seen, key)[0]

        found = [act(x.policy(state, clock, False)) for x in (made, without, of_prior)]
        noisy = [act(x.policy(state, clock, True)) for x in (made, of_prior)]
        belief, world = model.observe(params, model.initial(), seen, key), model.world(params)
        mode = prior.mode(actor, belief.stoch)
        search, at, inner = mppi.make(given.planner, task.action), partial(repeated, number=1), jax.random.split(key)[1]
        plain = planning_policy(
            search,
            world,
            at,
            task.action,
            discount=0.975,
            terminal_value=lambda belief: prior.value(actor, critics, belief.stoch),
        )
        bare = MPPIConfig(horizon=2, population=0, iterations=1, smoothing=1.0, elites=1, min_deviation=0.1, drawn=True)
        sampled = proposals_of(world, prior.policy(actor, False), at, 2)
        followed = planning_policy(mppi.make(bare, task.action), world, at, task.action, proposals=sampled)
        due = [policy.act(policy.init(key), belief, inner)[0] for policy in (plain, followed)]
        return found, noisy, mode, *due

    (planned, without, of_prior), (noisy, sampled), mode, plain, followed = jax.device_get(looked(key))
    assert without == plain and of_prior == mode == followed
    assert len({float(x[0]) for x in (planned, without, of_prior, noisy, sampled)}) == 5


def test_what_it_refuses():
    for changes, message in (
        ({"planner.elites": 11}, r"^planner.elites must be at most population \(10\), got 11$"),
        ({"model.bins": 4}, r"^model.bins must be 0, or odd and at least 3, got 4$"),
        (
            {"warmup_steps": 2},
            r"^warmup_steps must be at least 3, so that each of 1 environments has a window of 3, got 2$",
        ),
    ):
        with pytest.raises(UserError, match=message):
            configured(**changes)
    with pytest.raises(UserError, match=r"^td-mpc2 takes continuous actions, and the actions of task"):
        programs.build(programs.configure("td-mpc2", "CartPole-v1"))
    assert Config().planner.population + Config().proposals == 512
