"""Policies of several kinds, each on a small task, and their episodes as the evaluation plays them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxmbrl import envs
from jaxmbrl.core.spaces import Box, Discrete
from jaxmbrl.core.types import Algorithm, Policy
from jaxmbrl.envs.base import initial_state
from jaxmbrl.models.normalizer import Normalizer, normalize
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


def normalised(key: Any) -> Policy:
    """A network with layer norm on normalised observations."""
    network = MLP((16, 16), 2, layer_norm=True)
    scale = Normalizer(jnp.array([0.5, -0.2, 0.1]), jnp.array([0.3, 2.0, 1e-14]))
    params = network.init(key, jnp.zeros(3))
    return Policy(
        lambda key: (), lambda memory, seen, key: (jnp.tanh(network.apply(params, normalize(scale, seen))), (), memory)
    )


def of_integers(key: Any) -> Policy:
    """The largest entry of a sum of rows of a table; ties go to the first."""
    table = jax.random.normal(key, (3, 10, 4))
    return Policy(
        lambda key: (),
        lambda memory, seen, key: (jnp.argmax(table[jnp.arange(3), seen].sum(0)).astype(jnp.int32), (), memory),
    )


def of_images(key: Any) -> Policy:
    """A convolutional network."""
    network = Pixels()
    params = network.init(key, jnp.zeros((8, 9, 2), jnp.uint8))
    return Policy(lambda key: (), lambda memory, seen, key: (network.apply(params, seen), (), memory))


def recurrent(key: Any) -> Policy:
    """A gated unit; the memory has a vector and a counter of steps, which decides too."""
    cell, head = nn.GRUCell(6), jax.random.normal(key, (6, 2))
    params = cell.init(key, jnp.zeros(6), jnp.zeros(3))

    def act(memory: Any, seen: Any, key: Any) -> Any:
        hidden, output = cell.apply(params, memory["hidden"], seen)
        action = jnp.where(memory["steps"] % 3 == 2, -1.0, 1.0) * jnp.tanh(output @ head)
        return action, {"unused": action}, {"hidden": hidden, "steps": memory["steps"] + 1}

    return Policy(lambda key: {"hidden": jnp.full(6, 0.1), "steps": jnp.ones((), jnp.int32)}, act)


VECTOR = Box((3,))
KINDS: dict[str, Any] = {
    "normalised": (normalised, VECTOR, Box((2,), -1.0, 1.0), lambda numbers: numbers),
    "integers": (of_integers, Box((3,), 0, 9, "int32"), Discrete(4), levels),
    "images": (of_images, Box((8, 9, 2), 0, 255, "uint8"), Box((1,), -1.0, 1.0), image),
    "recurrent": (recurrent, VECTOR, Box((2,), -1.0, 1.0), lambda numbers: numbers),
}
"""Name -> (policy of a key, space of observations, space of actions, observation of the task's numbers)."""


def made(kind: str) -> tuple[Algorithm, Any]:
    """(algorithm that only acts, task) of a kind. Its state is a key."""
    of, observation, action, seen = KINDS[kind]
    task = envs.make_task(kind, Drift(seen), STEPS, observation=observation, action=action)
    none: Any = None
    return Algorithm(none, lambda state, clock, explore: of(jax.random.key(3)), none, period=1), task


def episode(algorithm: Algorithm, task: Any, state: Any, index: int, clock: Any = None, steps: int = STEPS) -> Any:
    """(observations, actions) of an episode of an evaluation."""
    world, policy, start, key = evaluation.begin(algorithm, task, state, jnp.asarray(index), clock)
    rows = rollout(world, policy, start, key, steps)[1]
    return rows.observation, rows.action


def episodes() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(observations, actions) of the first episode of every kind."""
    everything = {kind: made(kind) for kind in KINDS}
    return jax.device_get(jax.jit(lambda: {kind: episode(*of, (), 0) for kind, of in everything.items()})())
