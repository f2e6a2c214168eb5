"""Ensembles whose weights are set by hand, and data for them."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxmbrl.core.types import Transition
from jaxmbrl.models import EnsembleConfig, ensemble
from jaxmbrl.rollout import open_loop, rollout

TINY = EnsembleConfig(
    members=3,
    elites=2,
    hidden=(6, 5),
    weight_decay=(0.1, 0.2, 0.3),
    batch_size=8,
    max_epochs=3,
    termination_hidden=(5, 4),
)


def alive(next_observation):
    return jnp.zeros(next_observation.shape[:-1], bool)


def nothing(observation, action, next_observation):
    return jnp.zeros(observation.shape[:-1])


def layers_of(parameters):
    """The parameters as the transcription holds them: (members, low, high, ends)."""

    def networks(variables):
        if variables == ():
            return []
        dense = jax.device_get(variables["params"])
        names = sorted(dense)
        count = dense[names[0]]["kernel"].shape[0]
        return [[(dense[n]["kernel"][e], dense[n]["bias"][e]) for n in names] for e in range(count)]

    low, high = np.asarray(parameters.low), np.asarray(parameters.high)
    return networks(parameters.network), low, high, networks(parameters.termination)


def floats(value):
    """In NumPy, of the type that JAX gives to floats now."""
    return np.asarray(value, jax.dtypes.canonicalize_dtype(float))


def table(rng, rows, observation=2, action=1):
    before = rng.normal(1.0, 2.0, (rows, observation))
    act = rng.uniform(-1, 1, (rows, action))
    after = before + np.tanh(before[:, ::-1]) * 0.3 + 0.2 * act + 0.05 * rng.normal(size=before.shape)
    return Transition(
        observation=floats(before),
        action=floats(act),
        reward=floats(10 * before[:, 0] * act[:, 0]),
        next_observation=floats(after),
        terminated=after[:, 1] > 2.5,
        truncated=np.zeros(rows, bool),
    )


SCALED = ("inputs", "targets")


def unlimited(normalizer):
    """The normaliser without clipping."""
    widest = np.full_like(normalizer.low, np.finfo(normalizer.low.dtype).max)
    return normalizer._replace(low=-widest, high=widest)


def blank(config, size=(2, 1), reward=None, terminated=None):
    """A model and a state whose weights are all 0: `init` without its random numbers, which take long to compile."""
    model = ensemble.make(config, *size, reward, terminated)
    shapes = jax.eval_shape(model.init, jax.random.key(0), {})
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    members = state.members._replace(learning_rate=floats(config.learning_rate), active=np.ones((), bool))
    one = {name: unlimited(getattr(state, name))._replace(std=np.ones_like(getattr(state, name).std)) for name in SCALED}
    first = {"elites": np.arange(config.elites, dtype=np.int32), "termination_weight": floats(1.0)}
    return model, jax.device_put(state._replace(members=members, **first, **one))


def ready(config, reward=None, terminated=None, seed=0, size=(2, 1)):
    """A model and a state in which every weight, bias and bound is random, so that none of them is special."""
    model, state = blank(config, size, reward, terminated)
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.4, leaf.shape).astype(leaf.dtype), state.members.params)
    if config.probabilistic and config.noise != "constant":
        params = params._replace(low=params.low - 10, high=params.high + 0.5)
    return model, state._replace(members=state.members._replace(params=jax.device_put(params)))


def constant(config, deltas, elites=None, log_variance=None, reward=nothing, terminated=alive, ends=None):
    """A model whose member e predicts the change deltas[e] everywhere, without noise or with the log-variance given.

    Where `terminated` is None, `ends` has every member's logit of termination.
    """
    deltas = floats(deltas)
    members, size = deltas.shape
    model, state = blank(config, (size, 1), reward, terminated)
    params = state.members.params
    raw = np.broadcast_to(floats(0.0 if log_variance is None else log_variance), (members, size))
    last = f"Dense_{len(config.hidden)}"
    params.network["params"][last]["bias"] = np.concatenate([deltas, raw], axis=1)
    if ends is not None:
        params.termination["params"][f"Dense_{len(config.termination_hidden)}"]["bias"] = floats(ends)[:, None]
    high = -80.0 if log_variance is None else 90.0
    params = params._replace(low=floats(np.full(size, -90.0)), high=floats(np.full(size, high)))
    state = state._replace(members=state.members._replace(params=jax.device_put(params)))
    return model, state if elites is None else state._replace(elites=np.asarray(elites, np.int32))


def imagine(model, state, particles, horizon, key):
    """Observations [particles, O] after `horizon` steps from zeros, without action."""
    world = model.world(state)
    size = state.targets.mean.shape[0]
    policy = open_loop(jnp.zeros((horizon, 1)))
    start = world.start(jnp.zeros((particles, size)), key), policy.init(key)
    return rollout(world, policy, start, key, horizon)[0][0]


def fitted_normalisers(state):
    rng = np.random.default_rng(5)
    return state._replace(
        inputs=state.inputs._replace(mean=floats(rng.normal(size=3)), std=floats(rng.uniform(0.5, 2, 3))),
        targets=state.targets._replace(mean=floats(rng.normal(size=3)), std=floats(rng.uniform(0.5, 2, 3))),
    )
