"""PILCO: probabilistic inference for learning control (Deisenroth and Rasmussen, ICML 2011; Deisenroth, Fox and Rasmussen,
Gaussian processes for data-efficient learning in robotics and control, arXiv 1502.02860).

    maximise  J(theta) = sum over t = 1..H of E r(x_t),    x_0 ~ N(m_0, S_0),  u_t = pi_theta(x_t)

    Gaussian belief of x_t -> sines and cosines of angles -> u_t -> change of the state by Gaussian processes -> x_{t+1}

    `warmup_steps` steps of uniformly random actions
    for each trial:
        fit a Gaussian process to each entry's change, by evidence, with all data so far
        maximise J by L-BFGS from the last parameters, with its gradient through the H steps of moments
        take a trial of `refit_every` steps by the policy, store the transitions

Each step of the belief is exact in mean and covariance (`models.moments`), so the uncertainty of the dynamics widens the
belief. The reward is saturating (`Task.saturating`), for which E r is exact, too; for a task that has none it is predicted
by one more process. Angles are those of `Task.features`. The belief has one mode: start states must be near one another.
Terminations are not predicted.

Differs from the paper: L-BFGS replaces BFGS; the moments of the start are those of 1,000 resets of the task; with more rows
than `gp.inducing` the inducing inputs of FITC and the hyperparameters are found together.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from annotated_types import Ge
from jaxtyping import Array, Float

from jaxmbrl.agents import belief_policies
from jaxmbrl.agents.belief_policies import Parameters
from jaxmbrl.algorithms import shared
from jaxmbrl.algorithms.registry import Goal, Method
from jaxmbrl.algorithms.shared import LoopSettings
from jaxmbrl.core import metrics
from jaxmbrl.core.config import UserError
from jaxmbrl.core.types import (
    Action,
    Algorithm,
    Average,
    Clock,
    Hyper,
    Key,
    Memory,
    Metrics,
    ModelView,
    Observation,
    Policy,
    PyTree,
    Task,
    Transition,
    Views,
    flatten,
    row_like,
)
from jaxmbrl.data import replay
from jaxmbrl.data.replay import Replay
from jaxmbrl.envs.base import angle_features, never, vector_sizes
from jaxmbrl.models import gaussian_process, moments
from jaxmbrl.models.gaussian_process import GaussianProcessConfig, GaussianProcessState, Posterior
from jaxmbrl.models.moments import Gaussian
from jaxmbrl.nn import optimizer
from jaxmbrl.nn.optimizer import Trainable
from jaxmbrl.nn.quasi_newton import minimize

RESETS = 1000
"""Start states whose mean and covariance are the first belief."""


@dataclass(frozen=True)
class Config(LoopSettings):
    """Settings of a run of PILCO."""

    gp: GaussianProcessConfig = field(default_factory=GaussianProcessConfig)
    """The dynamics model. Its `absolute`, `features` and `propagation` must have their defaults: a belief is continued by
    the moments of the predicted change."""
    policy: Literal["linear", "rbf"] = "rbf"
    """The policy: linear, or a network of radial basis functions. Either is squashed."""
    bases: Annotated[int, Ge(1)] = 10
    """Radial basis functions."""
    horizon: Annotated[int, Ge(1)] = 40
    """H: steps of the predicted trial."""
    evaluations: Annotated[int, Ge(1)] = 150
    """Evaluations of J and its gradient after each fit, at most."""
    rematerialize: bool = True
    """Whether the backward pass recomputes each step, so that only the beliefs are stored, and not several square matrices
    with the side `gp.inducing` for each pair of outputs and step."""
    learn_reward: bool = False
    """Predict the reward by a Gaussian process even if the task's has the saturating form."""
    refit_every: Annotated[int, Ge(1)] = 40
    """Environment steps between two fits: a trial."""
    replay_capacity: Annotated[int, Ge(2)] = 10_000
    """Transitions in the replay buffer; the oldest are overwritten first."""
    warmup_steps: Annotated[int, Ge(2)] = 40
    """Environment steps of uniformly random actions at the start."""
    epoch_steps: Annotated[int, Ge(1)] = 40
    """Environment steps between two rows of metrics."""
    eval_every: Annotated[int, Ge(0)] = 0
    """Epochs between two evaluations; 0 for none. The trials already measure the policy."""

    def problem(self) -> tuple[str, str] | None:
        """(field, message) of the first violated rule that involves several fields, or None."""
        if self.refit_every % self.num_envs:
            return "refit_every", f"must be a multiple of num_envs ({self.num_envs}), got {self.refit_every}"
        if self.gp.absolute:
            return "gp.absolute", f"must be empty, because pilco predicts the change of each entry, got {self.gp.absolute}"
        if not self.gp.features:
            return "gp.features", "must be true, because pilco's policy and model receive sines and cosines of angles"
        if self.gp.propagation != "distribution":
            return "gp.propagation", f"must be distribution, because pilco propagates moments, got {self.gp.propagation}"
        return None


class State(NamedTuple):
    """The whole state of a run."""

    model: GaussianProcessState
    actor: Trainable
    """`Parameters` of the policy."""
    start: Gaussian
    """The belief of the first observation."""
    replay: Replay
    key: Key


class Prediction(NamedTuple):
    """A predicted trial."""

    belief: Gaussian
    """Of the observations after each step, [H, ...]."""
    reward: Float[Array, "H"]
    """Mean reward of each step."""
    reward_variance: Float[Array, "H"]
    """0 for a reward that a process predicts."""


def make(config: Config, task: Task) -> Algorithm:
    """PILCO on `task`. Raises UserError without float64, and for a task whose simulator is not in JAX."""
    size, action_size = vector_sizes(task, "pilco")
    if task.host is not None:
        raise UserError(f"pilco needs the start states of a task in JAX, and '{task.name}' runs outside of it")
    angles = task.features.angles if task.features else ()
    learns_reward = config.learn_reward or task.saturating is None
    features = angle_features(size, angles)
    model = gaussian_process.make(
        config.gp, size, action_size, None if learns_reward else task.reward, task.terminated or never, features
    )

    def init(key: Key, hyper: Hyper, data: Transition | None = None) -> State:
        shared.no_data(data, "pilco")
        start_key, actor_key, model_key, key = jax.random.split(key, 4)
        resets = jax.vmap(task.world.reset)(jax.random.split(start_key, RESETS))
        first = jax.vmap(task.world.observe)(resets)
        start = Gaussian(jnp.mean(first, axis=0), jnp.atleast_2d(jnp.cov(first.T, bias=True)))
        params: Parameters
        if config.policy == "linear":
            params = belief_policies.init_linear(actor_key, size + len(angles), action_size)
        else:
            of_features = moments.with_angles(start, angles).belief
            params = belief_policies.init_radial(actor_key, of_features, action_size, config.bases, len(angles))
        return State(
            model=model.init(model_key, hyper),
            actor=optimizer.init(params, 0.0, chain=optax.identity()),
            start=start,
            replay=replay.init(row_like(task), config.replay_capacity),
            key=key,
        )

    def policy(state: State, clock: Clock, explore: bool) -> Policy:
        act_on_features = belief_policies.acting(state.actor.params)

        def act(memory: Memory, observation: Observation, key: Key) -> tuple[Action, PyTree, Memory]:
            return act_on_features(features.encode(observation)), (), memory

        acting = Policy(lambda key: (), act)
        return shared.collector(acting, task, config, clock) if explore else acting

    def learn(clock: Clock, state: State, transitions: Transition) -> tuple[State, Metrics]:
        key, fit_key = jax.random.split(state.key)
        real = replay.add(state.replay, flatten(transitions))

        def fit_and_improve(
            parts: tuple[GaussianProcessState, Trainable],
        ) -> tuple[tuple[GaussianProcessState, Trainable], Metrics]:
            model_state, actor = parts
            rows = shared.rows_to_fit(real, clock, config.replay_capacity)
            model_state, fitted = model.fit(model_state, rows, fit_key)
            process = model_state.posterior

            def cost(params: Parameters) -> Float[Array, ""]:
                return -jnp.sum(predict(config, task, process, params, state.start).reward)

            found = minimize(cost, actor.params, config.evaluations)
            fitted |= {
                "policy/predicted_return": Average.of(-found.value),
                "policy/evaluations": Average.of(found.evaluations),
            }
            return (model_state, optimizer.assign(actor, found.point, found.value)), fitted

        (model_state, actor), found = metrics.cond_update(
            clock.env_steps >= config.warmup_steps, fit_and_improve, (state.model, state.actor)
        )
        return State(model_state, actor, state.start, real, key), found

    def views(state: State) -> Views:
        known = None if learns_reward else task.reward
        return Views(state.replay, ModelView(model, state.model, state.model.fits > 0, known))

    return Algorithm(init, policy, learn, period=config.refit_every // config.num_envs, views=views)


def predict(config: Config, task: Task, process: Posterior, params: Parameters, start: Gaussian) -> Prediction:
    """The predicted trial of `config.horizon` steps under the policy with `params`, from the belief `start`."""
    angles = task.features.angles if task.features else ()
    outputs, size = process.offset.shape[0], start.mean.shape[0]
    act = belief_policies.action_moments(params)
    of_state, of_reward = part_of(process, slice(0, size)), part_of(process, slice(size, outputs))

    def step(belief: Gaussian, _: None) -> tuple[Gaussian, Prediction]:
        features = moments.with_angles(belief, angles)
        inputs = moments.joined(belief, features, act(features.belief))
        following = moments.changed(belief, inputs, moments.through_process(inputs.belief, of_state))
        if outputs > size:
            reward = moments.mean_of_process(inputs.belief, of_reward)[0]
            variance = jnp.zeros_like(reward)
        else:
            assert task.saturating is not None
            reward, variance = moments.saturating(moments.with_angles(following, angles).belief, task.saturating)
        return following, Prediction(following, reward, variance)

    if config.rematerialize:
        step = jax.checkpoint(step, prevent_cse=False)
    with jax.default_matmul_precision("highest"):
        return jax.lax.scan(step, start, None, config.horizon)[1]


def part_of(process: Posterior, outputs: slice) -> Posterior:
    """The processes of some of the outputs."""
    chosen = jax.tree.map(lambda leaf: leaf[outputs], process[1:])
    return Posterior(process.basis, *chosen)


METHOD = Method(
    make,
    Config,
    family="value_gradients",
    paper="1502.02860",
    summary="policy search in Gaussian processes, by gradients of exact moments of the predicted trial",
    requires=("float64 (`--x64`)",),
    tiny={
        "gp.capacity": 60,
        "gp.inducing": 40,
        "gp.evaluations": 5,
        "bases": 3,
        "horizon": 4,
        "evaluations": 4,
        "refit_every": 50,
        "warmup_steps": 100,
        "epoch_steps": 100,
        "replay_capacity": 997,
    },
    goals=(
        Goal("pilco-pendulum", "pilco-pendulum", 200, 17.0, seeds_at_goal=3, episodes=20, about="its preset"),
        Goal(
            "pilco-cartpole-swingup",
            "cartpole-swingup/angle",
            600,
            22.0,
            seeds_at_goal=2,
            episodes=20,
            about="its preset",
        ),
    ),
)
