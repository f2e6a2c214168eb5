"""Settings and parts of methods that learn a latent world model from windows of rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax
from annotated_types import Ge, Gt

from jaxmbrl import planning
from jaxmbrl.agents.exploration import with_gaussian_noise
from jaxmbrl.algorithms import shared
from jaxmbrl.algorithms.shared import LoopSettings, Windowed
from jaxmbrl.core import metrics
from jaxmbrl.core.config import Traced
from jaxmbrl.core.spaces import Space
from jaxmbrl.core.types import Average, Clock, Key, Metrics, Planner, Policy, Problem, PyTree, Task
from jaxmbrl.data import sequences
from jaxmbrl.data.sequences import Sequences
from jaxmbrl.models.latent import LatentModel, RSSMConfig, Window, believing, by_successor, repeated
from jaxmbrl.nn import optimizer
from jaxmbrl.nn.optimizer import Trainable
from jaxmbrl.nn.rules import RuleConfig
from jaxmbrl.planning import PlannerConfig, planning_policy


@dataclass(frozen=True)
class WindowSettings(Windowed, LoopSettings):
    """Settings of methods that learn a latent model from windows."""

    learning_rate: Annotated[float, Gt(0), Traced] = 4e-5
    """Learning rate of the model."""
    optimizer: RuleConfig = field(default_factory=RuleConfig)
    """The rule of all updates."""
    batch_size: Annotated[int, Ge(1)] = 16
    """Windows in each update."""
    sequence_length: Annotated[int, Ge(1)] = 64
    """Consecutive rows of a window."""
    train_every: Annotated[int, Ge(1)] = 1
    """Steps of each environment between updates."""
    updates: Annotated[int, Ge(1)] = 1
    """Updates then. The replay ratio of the papers is updates * batch_size * sequence_length / (train_every * num_envs)."""
    replay_capacity: Annotated[int, Ge(1)] = 1_000_000
    """Transitions in the replay buffer; the oldest are overwritten first."""


@dataclass(frozen=True)
class RSSMSettings(WindowSettings):
    """The same for methods whose model is the recurrent state-space model."""

    model: RSSMConfig = field(default_factory=RSSMConfig)
    """The world model."""


@dataclass(frozen=True)
class PlannedSettings(WindowSettings):
    """Settings of methods that plan in the model at every step."""

    planner: PlannerConfig = field(default_factory=PlannerConfig)
    """The optimiser of action sequences."""
    warm_start: bool = True
    """Whether each search begins with the rest of the last plan."""
    noise: Annotated[float, Ge(0)] = 0.3
    """Standard deviation of Gaussian noise that is added to collected continuous actions, in units of the action."""


def draw(config: WindowSettings, buffer: Sequences, action: Space, key: Key) -> Window:
    """A batch of windows from the buffer, as positions."""
    rows, is_first, _ = sequences.sample(buffer, key, config.batch_size, config.sequence_length)
    return by_successor(rows, is_first, action)


def fit(
    config: WindowSettings,
    model: LatentModel,
    chain: optax.GradientTransformation,
    fitted: Trainable,
    buffer: Sequences,
    task: Task,
    clock: Clock,
    key: Key,
) -> tuple[Trainable, Metrics]:
    """The updates of a model alone in one call of `learn`."""

    def update(fitted: Trainable, key: Key) -> tuple[Trainable, Metrics]:
        window_key, loss_key = jax.random.split(key)
        window = draw(config, buffer, task.action, window_key)
        gradient, (_, found) = jax.grad(model.loss, has_aux=True)(fitted.params, window, loss_key)
        fitted, norm = optimizer.step(fitted, gradient, chain=chain)
        return fitted, found | {"model/gradient": Average.of(norm)}

    return updates(config, clock, update, fitted, key)


def updates(
    config: WindowSettings,
    clock: Clock,
    update: Callable[[Any, Key], tuple[Any, Metrics]],
    state: Any,
    key: Key,
    first: int | None = None,
) -> tuple[Any, Metrics]:
    """`update(state, key)` as often as one call of `learn` does, each with its own key; not at all during the warm-up. In
    the first call after it there are `first` updates if that is given."""
    number = jnp.asarray(config.updates)
    if first is not None:
        before = clock.env_steps - config.train_every * config.num_envs
        number = jnp.where(before < config.warmup_steps, first, number)

    def all_updates(state: Any) -> tuple[Any, Metrics]:
        return metrics.repeat(number, update, state, key)

    return metrics.cond_update(clock.env_steps >= config.warmup_steps, all_updates, state)


def planner_of(config: PlannedSettings, action: Space) -> Planner:
    """The planner that the settings choose. Without `warm_start` each search begins as the first one of an episode."""
    planner = planning.make(config.planner, action)

    def anew(problem: Problem, state: Any, key: Key, proposals: Any = None) -> Any:
        return planner.plan(problem, planner.init(), key, proposals)

    return planner if config.warm_start else planner._replace(plan=anew)


def planned(
    config: PlannedSettings, planner: Planner, model: LatentModel, params: PyTree, task: Task, clock: Clock, explore: bool
) -> Policy:
    """The policy that plans from its belief. If it explores, its actions have noise, and are random during the warm-up. All
    candidates of a plan start from the same sample of the belief."""
    acting = planning_policy(planner, model.world(params), partial(repeated, number=1), task.action)
    if explore:
        noisy = with_gaussian_noise(acting, config.noise) if config.noise > 0 else acting
        acting = shared.collector(noisy, task, config, clock, shared.no_search)
    return believing(model, params, acting)
