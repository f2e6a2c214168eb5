"""What REDQ and DroQ add to soft actor-critic: the actor's mean, dropout and layer norm, against float64 NumPy."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from one_step_targets import critic_target

from jaxmbrl.agents.actor_critic import sac
from jaxmbrl.agents.actor_critic.sac import SACConfig
from jaxmbrl.core.config import UserError, from_dict

from . import droq_in_numpy as droq
from . import sac_in_numpy as reference
from .test_sac import (
    MEAN,
    SMALL,
    TINY,
    A,
    B,
    agent_and_state,
    assert_gradient,
    batch_of,
    compiled,
    critics_of,
    layers_of,
    noise_of,
    on_device,
    replaced,
    split,
    state_of,
)

RATE = 0.3
DROQ = dataclasses.replace(TINY, dropout=RATE, layer_norm=True, actor_value="mean")


def droq_state():
    """With layer norms that do something, and target critics that differ from the critics."""
    return state_of(DROQ)


def droq_critics(params):
    """Each critic as `droq_in_numpy` has it."""
    found, params = [], jax.device_get(params)
    for i in range(2):
        named = jax.tree.map(lambda x, i=i: x[i], params["params"])
        hidden = [
            (
                named[f"Dense_{j}"]["kernel"],
                named[f"Dense_{j}"]["bias"],
                named[f"LayerNorm_{j}"]["scale"],
                named[f"LayerNorm_{j}"]["bias"],
            )
            for j in range(2)
        ]
        found.append([*hidden, (named["Dense_2"]["kernel"], named["Dense_2"]["bias"])])
    return found


@jax.jit
def dropped_of(key):
    """[layer] -> whether the units [critics, B, units] are dropped."""
    own = jax.random.split(key, 2)
    return [
        jax.vmap(lambda k, j=j, units=units: jax.random.bernoulli(jax.random.fold_in(k, j), RATE, (B, units)))(own)
        for j, units in enumerate(DROQ.hidden)
    ]


def masks_of(key):
    """[critic][layer] -> what the units [B, units] are multiplied by."""
    return list(zip(*(~np.asarray(dropped) / (1 - RATE) for dropped in dropped_of(key)), strict=True))


def twins_of(params):
    """Critics that are both the first."""
    return jax.tree.map(lambda x: np.stack([x[0], x[0]]), jax.device_get(params))


def pair_of(observation, action):
    return np.concatenate([observation, action], axis=1)


def expected_target(state, batch, action_key, unit_key):
    action, density = reference.sample(layers_of(state.actor.params), batch["next_observation"], noise_of(action_key))
    pair = pair_of(batch["next_observation"], action)
    critics, masks = droq_critics(state.critic.target), masks_of(unit_key)
    table = [droq.forward(critic, pair, mask)[0] for critic, mask in zip(critics, masks, strict=True)]
    return batch["reward"] + 0.9 * (1.0 - batch["terminated"]) * (np.min(table, axis=0) - 0.3 * density)


def test_the_transcriptions_gradients_are_difference_quotients():
    rng = np.random.default_rng(0)
    critic = [tuple(rng.normal(size=shape) for shape in ((3, 4), (4,), (4,), (4,))), (rng.normal(size=(4, 1)), np.ones(1))]
    pair, masks, y = rng.normal(size=(5, 3)), [(rng.random((5, 4)) < 0.7) / 0.7], rng.normal(size=5)
    gradients = droq.critic_loss([critic], [masks], pair, y)[1][0]
    for layer, of_layer in zip(critic, gradients, strict=True):
        for x, gradient in zip(layer, of_layer, strict=True):
            for at in np.ndindex(x.shape):
                x[at] += 1e-6
                above = droq.critic_loss([critic], [masks], pair, y)[0]
                x[at] -= 2e-6
                below = droq.critic_loss([critic], [masks], pair, y)[0]
                x[at] += 1e-6
                assert gradient[at] == pytest.approx((above - below) / 2e-6, rel=1e-4, abs=1e-7)


def test_each_critic_drops_units_of_its_own_and_only_with_a_key():
    q, state = jax.jit(sac.functions(DROQ, A).q), droq_state()
    twins, batch, key = twins_of(state.critic.params), batch_of(), jax.random.key(0)
    pair = batch["observation"], batch["action"]
    calm, bold = jax.device_get((q(twins, *pair), q(twins, *pair, key)))
    np.testing.assert_array_equal(calm[0], calm[1])
    assert np.all(bold[0] != bold[1])
    alike = q(twins, np.ones((B, 3)), np.ones((B, A)), key)
    assert len(np.unique(alike)) > B, "rows drop units of their own"


def test_units_are_dropped_in_the_target(x64):
    agent, state = compiled(DROQ), droq_state()
    batch, key = batch_of(), jax.random.key(3)
    action_key, _, unit_key = split(key, 3)
    expected = expected_target(state, batch, action_key, unit_key)
    np.testing.assert_allclose(critic_target(agent, state, on_device(batch), key), expected, rtol=1e-9)


def test_critic_update(x64):
    """Units are dropped in target and loss, of each by a key of its own; the loss is the sum over critics."""
    agent, state = compiled(DROQ), droq_state()
    batch, key = batch_of(), jax.random.key(3)
    action_key, _, target_key, unit_key = split(key, 4)
    y = expected_target(state, batch, action_key, target_key)
    pair = pair_of(batch["observation"], batch["action"])
    loss, gradients = droq.critic_loss(droq_critics(state.critic.params), masks_of(unit_key), pair, y)
    after, metrics, _ = agent.update_critic(state, on_device(batch), key)
    assert float(metrics["agent/critic_loss"].total) == pytest.approx(loss, rel=1e-9)
    for seen, expected in zip(droq_critics(after.critic.moments.mu), gradients, strict=True):
        for layer, of_layer in zip(seen, expected, strict=True):
            for a, b in zip(layer, of_layer, strict=True):
                np.testing.assert_allclose(10 * a, b, rtol=1e-7, atol=1e-11)


def test_units_are_dropped_in_the_actors_loss_which_takes_the_mean(x64):
    agent, state = compiled(DROQ), droq_state()
    batch, key = batch_of(), jax.random.key(4)
    action_key, unit_key = split(key)
    loss, gradient, density = reference.actor_loss(
        layers_of(state.actor.params),
        droq_critics(state.critic.params),
        0.3,
        batch["observation"],
        noise_of(action_key),
        droq.mean_value(masks_of(unit_key)),
    )
    after, metrics = agent.update_actor(state, on_device(batch), key)
    assert float(metrics["agent/actor_loss"].total) == pytest.approx(loss, rel=1e-9)
    assert float(metrics["agent/entropy"].total) == pytest.approx(-density, rel=1e-9)
    assert_gradient(after.actor, gradient, rtol=1e-7)


def test_redqs_actor_takes_the_mean_of_all_critics(x64):
    agent, state = agent_and_state(MEAN)
    batch, key = batch_of(), jax.random.key(4)

    def mean(critics, pair):
        found = [reference.forward(critic, pair) for critic in critics]
        share = np.full((len(pair), 1), 1 / 5)
        slopes = [reference.backward(c, inputs, share)[1] for c, (_, inputs) in zip(critics, found, strict=True)]
        return np.mean([output[:, 0] for output, _ in found], axis=0), np.sum(slopes, axis=0)

    critics = critics_of(state.critic.params)
    loss, gradient, _ = reference.actor_loss(
        layers_of(state.actor.params), critics, 0.3, batch["observation"], noise_of(key), mean
    )
    after, metrics = agent.update_actor(state, on_device(batch), key)
    assert float(metrics["agent/actor_loss"].total) == pytest.approx(loss, rel=1e-10)
    assert_gradient(after.actor, gradient)


def test_the_mean_of_equal_critics_is_their_minimum(x64):
    """Two critics that agree: the actor of REDQ and that of SAC move alike."""
    state = state_of(SMALL)
    state = state._replace(critic=state.critic._replace(params=twins_of(state.critic.params)))
    rows, key = on_device(batch_of()), jax.random.key(4)
    least, mean = (
        compiled(config).update_actor(state, rows, key)
        for config in (SMALL, dataclasses.replace(SMALL, actor_value="mean"))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-14), least, mean)


def test_what_drops_next_to_nothing_is_sac(x64):
    """A share of 1e-14 drops no unit: target and critic update are SAC's, with the same keys."""
    state, rows, key = state_of(SMALL), on_device(batch_of()), jax.random.key(3)
    almost = compiled(dataclasses.replace(SMALL, dropout=1e-14))
    for of in (critic_target, lambda agent, *rest: agent.update_critic(*rest)):
        plain, dropped = (of(agent, state, rows, key) for agent in (compiled(SMALL), almost))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-12), plain, dropped)


def test_the_drawn_critics_are_whole_critics():
    """The subset is drawn from the parameters: with one critic drawn of five the target is one critic's, all over."""
    config = dataclasses.replace(SMALL, critics=5, critic_subset=1)
    agent, state = agent_and_state(config)
    flat = jax.tree.map(np.zeros_like, jax.device_get(state.critic.target))
    state = state._replace(
        critic=state.critic._replace(target=replaced(flat, "Dense_1", bias=10 * np.arange(5, dtype=np.float32)[:, None])),
        log_temperature=state.log_temperature._replace(params=np.asarray(-1e3, np.float32)),
    )
    rows = on_device(batch_of() | {"terminated": np.zeros(B, bool), "reward": np.zeros(B)})
    keys = jax.random.split(jax.random.key(0), 40)
    found = np.asarray(
        jax.jit(jax.vmap(functools.partial(critic_target, agent), in_axes=(None, None, 0)))(state, rows, keys)
    )
    assert all(len(np.unique(row)) == 1 for row in found)
    np.testing.assert_allclose(np.unique(found), [0, 9, 18, 27, 36], rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"dropout": 1.0}, "dropout must be below 1"),
        ({"dropout": -0.1}, "dropout must be at least 0"),
        ({"actor_value": "max"}, "actor_value must be 'min' or 'mean', got 'max'"),
    ],
)
def test_settings_are_checked(settings, told):
    with pytest.raises(UserError, match=told):
        from_dict(SACConfig, settings)
