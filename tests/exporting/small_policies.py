"""Policies of several kinds, each on a small task, and their episodes as the evaluation plays them."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxmbrl import envs
from jaxmbrl.core.spaces import Box, Discrete
from jaxmbrl.core.types import Algorithm, Policy
from jaxmbrl.envs.base import initial_state
from jaxmbrl.models.normalizer import measure, normalize
from jaxmbrl.nn.networks import MLP
from jaxmbrl.rollout import rollout
from jaxmbrl.training import evaluation

STEPS = 12


class Drift:
    """Three numbers that decay and are pushed by the action; `seen` maps them to the observation."""

    def __init__(self, seen: Any) -> None:
        self.seen = seen

    def reset(self, rng: Any) -> Any:
        numbers = jax.random.uniform(rng, (3,), minval=-1.0, maxval=1.0)
        return initial_state(numbers, self.seen(numbers))

    def step(self, state: Any, action: Any) -> Any:
        numbers = 0.9 * state.pipeline_state + 0.5 * jnp.sin(jnp.arange(1.0, 4.0) * (1 + jnp.sum(action)))
        return state.replace(pipeline_state=numbers, obs=self.seen(numbers))


def levels(numbers: Any) -> Any:
    """The numbers as integers from 0 to 9."""
    return jnp.clip(jnp.round(3 * numbers + 5), 0, 9).astype(jnp.int32)


def image(numbers: Any) -> Any:
    """An image [8, 9, 2] that depends on the numbers."""
    waves = jnp.sin(jnp.arange(8 * 9 * 2).reshape(8, 9, 2) * numbers[0] + numbers[1])
    return (127 + 120 * waves).astype(jnp.uint8)


class Pixels(nn.Module):
    """Two convolutions, one with strides, and a linear layer."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """One action of an image."""
        x = nn.relu(nn.Conv(4, (3, 2), strides=(2, 1))(x.astype(float) / 255))
        return jnp.tanh(nn.Dense(1)(nn.Conv(3, (3, 3), padding="VALID", kernel_dilation=(1, 2))(x).reshape(-1)))


def filled(network: Any, *inputs: Any) -> Any:
    """Parameters of a network, drawn by NumPy."""
    random = np.random.default_rng(3)
    shapes = jax.eval_shape(network.init, jax.random.key(0), *inputs)
    return jax.tree.map(lambda x: (random.normal(size=x.shape) / np.sqrt(x.shape[0])).astype(x.dtype), shapes)


def normal(*shape: int) -> Any:
    """Normal numbers."""
    return jnp.asarray(np.random.default_rng(4).normal(size=shape), jnp.float32)


@cache
def normalised() -> Policy:
    """A network with layer norm on normalised observations."""
    network = MLP((16, 16), 2, layer_norm=True)
    scale = jax.jit(measure)(normal(20, 3) * jnp.array([0.3, 2.0, 0.0]) + 0.4, jnp.ones(20, bool))
    params = filled(network, jnp.zeros(3))
    return Policy(
        lambda key: (), lambda memory, seen, key: (jnp.tanh(network.apply(params, normalize(scale, seen))), (), memory)
    )


@cache
def of_integers() -> Policy:
    """The largest entry of a sum of rows of a table; ties go to the first."""
    table = normal(3, 10, 4)
    return Policy(
        lambda key: (),
        lambda memory, seen, key: (jnp.argmax(table[jnp.arange(3), seen].sum(0)).astype(jnp.int32), (), memory),
    )


@cache
def of_images() -> Policy:
    """A convolutional network."""
    network = Pixels()
    params = filled(network, jnp.zeros((8, 9, 2), jnp.uint8))
    return Policy(lambda key: (), lambda memory, seen, key: (network.apply(params, seen), (), memory))


@cache
def recurrent() -> Policy:
    """A gated unit; the memory has a vector and a counter of steps, which decides too."""
    weights, head = normal(9, 12), normal(6, 2)

    def act(memory: Any, seen: Any, key: Any) -> Any:
        gate, new = jnp.split(jnp.concatenate([seen, memory["hidden"]]) @ weights, 2)
        hidden = memory["hidden"] + jax.nn.sigmoid(gate) * (jnp.tanh(new) - memory["hidden"])
        action = jnp.where(memory["steps"] % 3 == 2, -1.0, 1.0) * jnp.tanh(hidden @ head)
        return action, {"unused": action}, {"hidden": hidden, "steps": memory["steps"] + 1}

    return Policy(lambda key: {"hidden": jnp.full(6, 0.1), "steps": jnp.ones((), jnp.int32)}, act)


@cache
def random() -> Policy:
    """Noise is added, and kept: the memory is a key and the last noise. The first noise is drawn by `init`."""
    gain = normal(3, 2)

    def act(memory: Any, seen: Any, key: Any) -> Any:
        own, noise = memory
        noise = 0.5 * noise + jax.random.normal(key, (2,)) + jax.random.uniform(own, (2,))
        return jnp.tanh(seen @ gain + noise), (), (jax.random.fold_in(own, 1), noise)

    return Policy(lambda key: (key, jax.random.normal(key, (2,))), act)


VECTOR = Box((3,))
KINDS: dict[str, Any] = {
    "normalised": (normalised, VECTOR, Box((2,), -1.0, 1.0), lambda numbers: numbers),
    "integers": (of_integers, Box((3,), 0, 9, "int32"), Discrete(4), levels),
    "images": (of_images, Box((8, 9, 2), 0, 255, "uint8"), Box((1,), -1.0, 1.0), image),
    "recurrent": (recurrent, VECTOR, Box((2,), -1.0, 1.0), lambda numbers: numbers),
    "random": (random, VECTOR, Box((2,), -1.0, 1.0), lambda numbers: numbers),
}
"""Name -> (its policy, space of observations, space of actions, observation of the task's numbers)."""


def made(kind: str) -> tuple[Algorithm, Any]:
    """(algorithm that only acts, task) of a kind. It has no state."""
    of, observation, action, seen = KINDS[kind]
    task = envs.make_task(kind, Drift(seen), STEPS, observation=observation, action=action)
    none: Any = None
    policy = of()
    return Algorithm(none, lambda state, clock, explore: policy, none, period=1), task


def episode(algorithm: Algorithm, task: Any, state: Any, index: int, clock: Any = None, steps: int = STEPS) -> Any:
    """(observations, actions) of an episode of an evaluation."""
    world, policy, start, key = evaluation.begin(algorithm, task, state, jnp.asarray(index), clock)
    rows = rollout(world, policy, start, key, steps)[1]
    return rows.observation, rows.action


def episodes() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(observations, actions) of the first episode of every kind."""
    everything = {kind: made(kind) for kind in KINDS}
    return jax.device_get(jax.jit(lambda: {kind: episode(*of, (), 0) for kind, of in everything.items()})())
