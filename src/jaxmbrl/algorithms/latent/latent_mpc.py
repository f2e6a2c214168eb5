"""Model-predictive control in a deterministic latent space: encode the observation, plan by CEM in the latent model, take
the first action.

    model    sum_t decay^t ( ||f(z_t, a_t) - sg g(o_{t+1})||^2 + (h(z_t, a_t) - r_t)^2 + ||D(z_t) - o_t||^2 ),  z_0 = g(o_0)
             and a cross-entropy of the continuation at z_{t+1}
    action   argmax by CEM of the sum of predicted rewards h over `planner.cem.horizon` steps, from g(o), each times the
             predicted probability that the episode has not ended before

    for each environment step:
        encode the observation, plan from its code, take the first action with noise (at random at first)
        every `train_every` steps, `updates` times: take one step on the model's loss on windows of rows

The model is `models.latent.consistency`, whose docstring says why codes are bounded. It has no recurrence: PlaNet is the
method for observations that are not states. With the identity as g and D and a known reward it is PETS with a single
deterministic member.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import jax

from jaxmbrl.algorithms import latent_settings, shared
from jaxmbrl.algorithms.latent_settings import PlannedSettings
from jaxmbrl.algorithms.registry import TINY_RUN, Goal, Method
from jaxmbrl.core.types import Algorithm, Clock, Hyper, Key, Metrics, Policy, Task, Transition, Views
from jaxmbrl.data import sequences
from jaxmbrl.data.sequences import Sequences
from jaxmbrl.models.latent import ConsistencyConfig, LatentModel, LatentView, consistency
from jaxmbrl.nn import optimizer, rules
from jaxmbrl.nn.optimizer import Trainable


@dataclass(frozen=True)
class Config(PlannedSettings):
    """Settings of a run of latent MPC."""

    model: ConsistencyConfig = field(default_factory=ConsistencyConfig)
    """The world model."""


class State(NamedTuple):
    """The whole state of a run."""

    model: Trainable
    replay: Sequences
    key: Key


def make(config: Config, task: Task, model: LatentModel | None = None) -> Algorithm:
    """Latent MPC on `task`; `model` overrides the model of the settings. Its observations are vectors or images. `hyper`
    may hold `learning_rate`, traced."""
    chain, planner = rules.chain(config.optimizer), latent_settings.planner_of(config, task.action)
    model = model or consistency.make(config.model, task.observation, task.action)

    def init(key: Key, hyper: Hyper, data: Transition | None = None) -> State:
        model_key, key = jax.random.split(key)
        rate = hyper.get("learning_rate", config.learning_rate)
        fitted = optimizer.init(model.init(model_key), rate, chain=chain)
        return State(fitted, shared.new_sequences(config, task, data), key)

    def policy(state: State, clock: Clock, explore: bool) -> Policy:
        return latent_settings.planned(config, planner, model, state.model.params, task, clock, explore)

    def learn(clock: Clock, state: State, transitions: Transition) -> tuple[State, Metrics]:
        key, fit_key = jax.random.split(state.key)
        buffer = sequences.add(state.replay, transitions)
        fitted, found = latent_settings.fit(config, model, chain, state.model, buffer, task, clock, fit_key)
        return State(fitted, buffer, key), found

    def views(state: State) -> Views:
        return Views(state.replay, latent=LatentView(model, state.model.params, task.action))

    return Algorithm(init, policy, learn, period=config.train_every, views=views)


METHOD = Method(
    make,
    Config,
    family="latent",
    paper="",
    summary="model-predictive control in a deterministic latent space",
    takes=("continuous actions", "discrete actions", "images"),
    tiny={
        **TINY_RUN,
        "batch_size": 8,
        "sequence_length": 3,
        "train_every": 10,
        "updates": 2,
        "model.size": 8,
        "model.group": 4,
        "model.units": 8,
        "model.coder.units": 8,
        "planner.cem.population": 10,
        "planner.cem.elites": 3,
        "planner.cem.horizon": 3,
        "planner.cem.iterations": 2,
    },
    goals=(Goal("latent-mpc-pendulum", "pendulum", 4000, -250.0, seeds_at_goal=3, episodes=10, about="small preset"),),
)
