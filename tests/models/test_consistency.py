"""The deterministic latent model against a loop over its parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl import envs
from jaxmbrl.algorithms import shared
from jaxmbrl.algorithms.latent import latent_mpc
from jaxmbrl.algorithms.shooting import pets
from jaxmbrl.core.spaces import Box
from jaxmbrl.models import EnsembleConfig
from jaxmbrl.models.latent import Belief, Coder, CoderConfig, ConsistencyConfig, Window, consistency, repeated
from jaxmbrl.planning import PlannerConfig
from jaxmbrl.planning.cem import CEMConfig
from jaxmbrl.training.loop import clock_at

OBSERVED, BOX, B, T = Box((3,)), Box((2,), -1.0, 1.0), 2, 4
TINY = ConsistencyConfig(size=4, group=2, units=5, layers=1, coder=CoderConfig(units=5, symlog=False), decay=0.5)


def window():
    """Three steps of each of two windows; the first's episode ends with its second step."""
    rng = np.random.default_rng(0)
    ends = np.zeros((B, T), bool)
    ends[0, 2] = True
    first = np.zeros((B, T), bool)
    first[:, 0] = first[0, 3] = True
    shown = rng.normal(size=(B, T, 3)), rng.uniform(-1, 1, (B, T, 2)), rng.normal(size=(B, T))
    return jax.tree.map(jnp.asarray, Window(*shown, ends, first, ends, np.ones((B, T))))


def test_the_loss_is_that_of_a_loop_and_stops_at_the_end_of_an_episode(x64):
    model, parts = consistency.make(TINY, OBSERVED, BOX), consistency.parts(TINY, OBSERVED, BOX)
    given = window()

    @jax.jit
    def looked(key):
        params = model.init(key)
        loss, (beliefs, found) = model.loss(params, given, key)
        errors = []
        for b in range(B):
            z = parts.code(params, given.observation[b, 0])
            for t in range(T - 1):
                action, at = given.action[b, t + 1], given.observation[b, t]
                after, target = parts.step(params, z, action), parts.code(params, given.observation[b, t + 1])
                logit = parts.goes_on(params, after)
                errors.append(
                    (
                        jnp.sum((after - target) ** 2),
                        (parts.reward(params, z, action) - given.reward[b, t + 1]) ** 2,
                        jnp.sum((parts.coder.decode(params["decoder"], z) - at) ** 2),
                        jnp.logaddexp(0.0, jnp.where(given.terminated[b, t + 1], logit, -logit)),
                    )
                )
                z = after
        return loss, beliefs, found, jnp.array(errors).reshape(B, T - 1, 4)

    loss, beliefs, found, errors = jax.device_get(looked(jax.random.key(0)))
    weights = np.array([[1, 0.5, 0], [1, 0.5, 0.25]])
    due = (weights[..., None] * errors).sum((0, 1)) / weights.sum()
    names = ("consistency", "reward", "decoder", "continuation")
    np.testing.assert_allclose([found[f"model/{name}"].total for name in names], due, rtol=1e-9)
    np.testing.assert_allclose(loss, due.sum(), rtol=1e-9)
    # Each group of a code sums to 1, so it cannot shrink.
    np.testing.assert_allclose(beliefs.stoch.reshape(B, T, 2, 2).sum(-1), 1, rtol=1e-12)
    assert beliefs.deter.shape == (B, T, 0)


def test_the_world_takes_the_same_steps(x64):
    model, parts = consistency.make(TINY, OBSERVED, BOX), consistency.parts(TINY, OBSERVED, BOX)
    observation, action = jnp.ones(3), jnp.array([0.3, -0.6])

    @jax.jit
    def looked(key):
        params = model.init(key)
        world = model.world(params)
        belief = model.observe(params, model.initial(), observation, key)
        carry, made = world.step(world.start(repeated(belief, 3), key), action, key)
        z = parts.code(params, observation)
        after = parts.step(params, z, action)
        return made, carry, z, after, parts.reward(params, z, action), jax.nn.sigmoid(-parts.goes_on(params, after))

    made, carry, z, after, reward, ended = jax.device_get(looked(jax.random.key(1)))
    for found, due in (
        (made.observation, z),
        (made.next_observation, after),
        (made.reward, reward),
        (made.terminated, ended),
    ):
        np.testing.assert_allclose(found, np.stack([due] * 3), rtol=1e-9)
    np.testing.assert_array_equal(carry.action, [[0.3, -0.6]] * 3)


@pytest.mark.parametrize(("x", "expected"), [((1.0, *[0.0] * 7), (0.279708, *[0.102899] * 7))])
def test_simnorm_by_hand(x, expected):
    np.testing.assert_allclose(consistency.simnorm(jnp.array(x), 8), expected, atol=5e-7)


def test_with_identity_coders_and_a_known_reward_it_is_deterministic_pets():
    """Imagined steps and plans of the two methods are the same, bit for bit; the loss is the member's squared error."""
    task, planner = envs.make("pendulum"), PlannerConfig(cem=CEMConfig(horizon=3, population=8, elites=3, iterations=2))
    one = EnsembleConfig(
        members=1, elites=1, hidden=(6,), probabilistic=False, propagation="expectation", holdout_fraction=0.0
    )
    of_pets = pets.Config(ensemble=one, planner=planner, particles=1, replay_capacity=50)
    dynamics, method = shared.ensemble_for(of_pets, task), pets.make(of_pets, task)
    config = ConsistencyConfig(size=3, group=3, learn_continuation=False)
    rng = np.random.default_rng(4)
    shown, taken, moved = (jnp.asarray(rng.uniform(-1, 1, (5, size)).astype(np.float32)) for size in (3, 1, 3))
    after = shown + moved

    @jax.jit
    def both(key):
        state = method.init(key, {})
        fitted = state.model

        def step(params, z, action):
            members = fitted.members._replace(params=params["dynamics"])
            rows = z.reshape(-1, 3), action.reshape(-1, 1)
            return dynamics.predict(fitted._replace(members=members), *rows)[0][0].reshape(z.shape)

        nothing = lambda *given: {}  # noqa: E731
        coder = Coder(
            size=3,
            init_encoder=nothing,
            encode=lambda params, observation: observation,
            init_decoder=nothing,
            loss=lambda params, z, observation: jnp.sum((z - observation) ** 2, axis=-1),
            decode=lambda params, z: z,
        )
        parts = consistency.Parts(
            init=lambda key: {"dynamics": fitted.members.params, "decoder": {}},
            code=lambda params, observation: observation,
            step=step,
            reward=lambda params, z, action: task.reward(z, action, step(params, z, action)),
            reward_loss=lambda params, z, action, reward: jnp.zeros_like(reward),
            goes_on=None,
            coder=coder,
            has_decoder=True,
            action=task.action,
        )
        model = consistency.assemble(config, parts)
        latent = latent_mpc.make(latent_mpc.Config(planner=planner, replay_capacity=50), task, model)
        own = latent.init(key, {})
        params = own.model.params
        origin = Belief(jnp.zeros((5, 0)), shown, jnp.zeros((5, 1)))
        _, made = model.world(params).step(origin, taken, key)
        _, due = dynamics.world(fitted).step(shown, taken, key)
        plans = []
        policies = [algorithm.policy(s, clock_at(0), False) for algorithm, s in ((latent, own), (method, state))]
        memories = [policy.init(key) for policy in policies]
        for i in range(2):
            acting_key = jax.random.fold_in(key, i)
            keys = acting_key, jax.random.split(acting_key)[1]
            found = [p.act(m, shown[i], k) for p, m, k in zip(policies, memories, keys, strict=True)]
            memories = [memory for _, _, memory in found]
            plans.append((found[0][:2], found[1][:2], memories[0].inner, memories[1]))
        observed, known = jnp.stack([shown, after], axis=1), jnp.array([[0.0, 1.0]] * 5)
        reward = known * task.reward(shown, taken, after)[:, None]
        ends = jnp.zeros((5, 2), bool)
        window = Window(observed, jnp.stack([0 * taken, taken], axis=1), reward, ends, known < 1, ends, known)
        return made, due, plans, model.loss(params, window, key)[0], dynamics.predict(fitted, shown, taken)[0][0]

    made, due, plans, loss, predicted = jax.device_get(both(jax.random.key(3)))
    for name in ("observation", "action", "reward", "next_observation", "terminated"):
        np.testing.assert_array_equal(getattr(made, name), getattr(due, name))
    assert np.abs(made.next_observation - shown).min() > 1e-4
    for action, expected, memory, plan in plans:
        jax.tree.map(np.testing.assert_array_equal, (action, memory), (expected, plan))
    assert (plans[0][0][0] != plans[1][0][0]).all()
    error = np.square(np.asarray(predicted, float) - after).sum(axis=1)
    np.testing.assert_allclose(loss, error.mean(), rtol=1e-5)
