"""Building blocks of methods that learn from their own tree searches: settings, the buffer of searched steps, the losses of
a policy and a value, and the updates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from annotated_types import Ge, Gt, Le
from jaxtyping import Array, Bool, Float, Int

from jaxmbrl.algorithms.shared import LoopSettings
from jaxmbrl.core import metrics
from jaxmbrl.core.config import Traced
from jaxmbrl.core.types import Average, Clock, Key, Metrics, PyTree, Task, Transition, flatten, row_like
from jaxmbrl.data import prioritized, replay
from jaxmbrl.data.prioritized import Prioritized
from jaxmbrl.data.replay import Replay
from jaxmbrl.distributions import ScalarHead
from jaxmbrl.nn import optimizer
from jaxmbrl.nn.optimizer import Trainable
from jaxmbrl.planning.tree_search import SearchConfig, Statistics, Targets, targets


@dataclass(frozen=True)
class SearchedSettings(LoopSettings):
    """Settings of methods that learn from their own searches."""

    search: SearchConfig = field(default_factory=SearchConfig)
    """The search at each step."""
    discount: Annotated[float, Ge(0), Le(1), Traced] = 0.997
    """Discount factor."""
    n_steps: Annotated[int, Ge(1)] = 50
    """Rewards in a value target before it bootstraps from the value that a search found. With as many as an episode has
    steps, it is the Monte Carlo return."""
    hidden: tuple[Annotated[int, Ge(1)], ...] = (64,)
    """Units of the hidden layers of each network."""
    value_support: Annotated[int, Ge(0)] = 0
    """S: values and rewards are distributions over the integers from -S to S, which represent numbers after MuZero's value
    transform; 0 for plain numbers with the squared error as loss."""
    value_weight: Annotated[float, Ge(0)] = 1.0
    """Weight of the value's loss."""
    learning_rate: Annotated[float, Gt(0), Traced] = 1e-3
    """Learning rate of Adam."""
    weight_decay: Annotated[float, Ge(0)] = 0.0
    """c: coefficient of the squared norm of the parameters in the loss."""
    collect_steps: Annotated[int, Ge(1)] = 9
    """Steps of each environment between two calls of the updates."""
    updates: Annotated[int, Ge(1)] = 10
    """Updates in each of these calls."""
    batch_size: Annotated[int, Ge(1)] = 64
    """Windows of rows in each update."""
    priorities: Annotated[float, Ge(0), Le(1)] = 0.0
    """Exponent of the priorities with which windows are sampled, by the error of the value; 0 for uniform sampling."""
    priority_correction: Annotated[float, Ge(0), Le(1)] = 1.0
    """Exponent of the importance weights that correct for the priorities; 1 corrects fully."""
    replay_capacity: Annotated[int, Ge(1)] = 100_000
    """Steps in the replay buffer; the oldest are overwritten first."""
    num_envs: Annotated[int, Ge(1)] = 32
    """Environments that each seed steps in parallel."""
    warmup_steps: Annotated[int, Ge(0)] = 0
    """Environment steps without updates at the start. Actions are searched from the first step on."""


Buffer = Replay | Prioritized


class Batch(NamedTuple):
    """Windows of rows [B, W, ...]."""

    rows: Transition
    valid: Bool[Array, "B W"]
    slots: Int[Array, "B"]
    """Slots of their first rows."""
    weight: Float[Array, "B"]
    """Importance weights."""


class Losses(NamedTuple):
    """The losses of one window, each a sum over its states."""

    policy: Float[Array, ""]
    value: Float[Array, ""]
    reward: Float[Array, ""]
    error: Float[Array, ""]
    """Absolute error of the value of the first state."""


def new_buffer(config: SearchedSettings, task: Task, actions: int) -> Buffer:
    """An empty buffer of steps with the statistics of their searches."""
    statistics = Statistics(jnp.zeros(actions), jnp.zeros(actions, jnp.int32), jnp.zeros(()))
    row = row_like(task, statistics)
    if config.priorities > 0:
        return prioritized.init(row, config.replay_capacity, config.priorities)
    return replay.init(row, config.replay_capacity)


def store(buffer: Buffer, transitions: Transition) -> Buffer:
    """The buffer with the rows of one call of `learn`."""
    rows = flatten(transitions, with_extras=True)
    return prioritized.add(buffer, rows) if isinstance(buffer, Prioritized) else replay.add(buffer, rows)


def draw(config: SearchedSettings, buffer: Buffer, key: Key, length: int) -> Batch:
    """A batch of windows of `length` rows."""
    if isinstance(buffer, Prioritized):
        _, slots, weight = prioritized.sample(buffer, key, config.batch_size, config.priority_correction)
        kept = buffer.replay
    else:
        slots, weight, kept = replay.sample_slots(buffer, key, config.batch_size), jnp.ones(config.batch_size), buffer
    return Batch(*replay.windows(kept, slots, length, config.num_envs), slots, weight)


def decayed(config: SearchedSettings) -> optax.GradientTransformation | None:
    """The chain of an optimiser with the gradient of c ||parameters||^2; None, for plain Adam, if c is 0."""
    if config.weight_decay == 0:
        return None
    return optax.chain(optax.add_decayed_weights(2 * config.weight_decay), optax.scale_by_adam())


Loss = Callable[[PyTree, Transition, Targets], Losses]
"""(parameters, rows [W] of a window, its targets) -> losses."""


def update(
    config: SearchedSettings,
    loss: Loss,
    unroll: int,
    networks: Trainable,
    buffer: Buffer,
    discount: Float[Array, ""],
    clock: Clock,
    key: Key,
) -> tuple[tuple[Trainable, Buffer], Metrics]:
    """The updates of one call of `learn`, each on a batch of windows; none during the warm-up. The priorities are written
    after each update."""
    length, chain = unroll + config.n_steps + 1, decayed(config)

    def batch_loss(params: PyTree, batch: Batch) -> tuple[Float[Array, ""], Losses]:
        def of_window(rows: Transition, valid: Bool[Array, "W"]) -> Losses:
            return loss(params, rows, targets(rows, valid, unroll, config.n_steps, discount))

        found = jax.vmap(of_window)(batch.rows, batch.valid)
        total = found.policy + config.value_weight * found.value + found.reward
        return jnp.mean(batch.weight * total), found

    def once(state: tuple[Trainable, PyTree], key: Key) -> tuple[tuple[Trainable, PyTree], Metrics]:
        networks, tree = state
        batch = draw(config, prioritized.with_rows(buffer, tree), key, length)
        (total, found), gradient = jax.value_and_grad(batch_loss, has_aux=True)(networks.params, batch)
        networks, norm = optimizer.step(networks, gradient, chain=chain)
        if isinstance(buffer, Prioritized):
            changed = prioritized.update(prioritized.with_rows(buffer, tree), batch.slots, found.error)
            tree = prioritized.without_rows(changed)
        means = {name: jnp.mean(getattr(found, name)) for name in Losses._fields}
        named = {f"loss/{name}": Average.of(value) for name, value in means.items() if name != "error"}
        named |= {"loss/total": Average.of(total), "value/error": Average.of(means["error"])}
        return (networks, tree), named | {"gradient/norm": Average.of(norm)}

    def all_updates(state: tuple[Trainable, PyTree]) -> tuple[tuple[Trainable, PyTree], Metrics]:
        return metrics.repeat(jnp.asarray(config.updates), once, state, key)

    due = clock.env_steps >= config.warmup_steps
    # The rows do not change, so they are not part of what the updates pass on.
    (networks, priorities), found = metrics.cond_update(due, all_updates, (networks, prioritized.without_rows(buffer)))
    return (networks, prioritized.with_rows(buffer, priorities)), found


def prediction_loss(
    head: ScalarHead,
    logits: Float[Array, "T A"],
    values: Float[Array, "T S"],
    due: Targets,
) -> tuple[Float[Array, "T"], Float[Array, "T"]]:
    """(cross-entropy of the policy, loss of the value) of each state, 0 where nothing is known."""
    policy = -jnp.sum(due.policy * jax.nn.log_softmax(logits), axis=-1)
    return due.known * policy, due.known * head.loss(values, due.value)


def searched(transitions: Transition) -> Metrics:
    """Metrics of the searches of one call of `learn`."""
    found: Any = transitions.extras
    weights = found.weights
    entropy = -jnp.sum(weights * jnp.log(jnp.maximum(weights, jnp.finfo(weights.dtype).tiny)), axis=-1)
    return {"search/value": Average.of(jnp.mean(found.value)), "search/entropy": Average.of(jnp.mean(entropy))}
