"""PlaNet: planning in the belief of a recurrent state-space model (Hafner et al., arXiv 1811.04551).

    model    mean over windows of  1/2 ||o - o_hat||^2 + 10 1/2 (r - r_hat)^2 + max(KL(q || p), 3)
    action   argmax by CEM of the sum of predicted rewards over `planner.cem.horizon` steps, from the belief

    for each environment step:
        take the observation into the belief, plan from it, take the first action with noise (at random for the first
        `warmup_steps`)
        every `train_every` steps, `updates` times: take one step on the model's loss on windows of rows

The model is `models.latent.rssm`. Each search begins anew, from mean 0 and standard deviation
`planner.cem.deviation`, which is 1 in the paper and in the presets.

Differs from the paper: the loss has max(KL, 3) in place of max(0, KL - 3), which has the same gradient, and counts the
divergence twice, once for each side; a predicted end of the episode ends the sum of rewards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax

from jaxmbrl.algorithms import latent_settings, shared
from jaxmbrl.algorithms.latent_settings import PlannedSettings, RSSMSettings
from jaxmbrl.algorithms.registry import TINY_RUN, Goal, Method
from jaxmbrl.core.types import Algorithm, Clock, Hyper, Key, Metrics, Policy, Task, Transition, Views
from jaxmbrl.data import sequences
from jaxmbrl.data.sequences import Sequences
from jaxmbrl.models.latent import LatentView, rssm
from jaxmbrl.nn import optimizer, rules
from jaxmbrl.nn.optimizer import Trainable


@dataclass(frozen=True)
class Config(PlannedSettings, RSSMSettings):
    """Settings of a run of PlaNet."""

    warm_start: bool = False
    """Whether each search begins with the rest of the last plan."""


class State(NamedTuple):
    """The whole state of a run."""

    model: Trainable
    replay: Sequences
    key: Key


def make(config: Config, task: Task) -> Algorithm:
    """PlaNet on `task`. Its observations are vectors or images. `hyper` may hold `learning_rate`, traced."""
    chain, planner = rules.chain(config.optimizer), latent_settings.planner_of(config, task.action)
    model = rssm.make(config.model, task.observation, task.action)

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
    paper="1811.04551",
    summary="model-predictive control in the belief of a recurrent latent world model",
    takes=("continuous actions", "discrete actions", "images"),
    tiny={
        **TINY_RUN,
        "batch_size": 4,
        "sequence_length": 6,
        "train_every": 10,
        "updates": 2,
        "model.deter": 8,
        "model.hidden": 8,
        "model.groups": 4,
        "model.units": 8,
        "model.coder.units": 8,
        "planner.cem.population": 10,
        "planner.cem.elites": 3,
        "planner.cem.horizon": 3,
        "planner.cem.iterations": 2,
    },
    goals=(
        Goal("planet-pendulum", "pendulum", 6000, -250.0, seeds=2, seeds_at_goal=2, episodes=10, about="small preset"),
        Goal("planet-pendulum-4000", "pendulum", 4000, -250.0, seeds_at_goal=0, episodes=10, about="small preset"),
    ),
)
