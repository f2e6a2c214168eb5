"""BPTT: the gradient of the return along a trajectory is back-propagated through time, through the model and the policy,
without a critic. ("Version 1.5" of model-based reinforcement learning in Berkeley's lectures on deep reinforcement
learning; through a simulator it is the analytic policy gradient of Brax, Freeman et al., arXiv 2106.13281.)

    maximise J = mean over s_0 of sum_{t<H} discount^t m_t r(s_t, a_t),    a_t = tanh(network(s_t)), s_{t+1} = f(s_t, a_t)

    every `refit_every` environment steps after the warm-up:
        fit the ensemble to all real data
        `updates` times: follow the policy for H steps from `batch_size` stored states s_0; one Adam step along dJ
    act by the policy with Gaussian noise (uniformly at random during the warm-up)

m_t is the probability that no step before t ended the episode. The derivative of r_t with respect to the policy contains a
product of t Jacobians, so it may explode or vanish as H grows. Gradients are clipped by their norm; one that is not finite
is skipped and counted. With `model` "true", f is the simulator itself, started from new episodes whose steps do not count
as environment steps. This shows how useful such gradients are with an exact model, and where contacts make them useless
(Suh et al., Do differentiable simulators give better policy gradients?, arXiv 2202.00817).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from annotated_types import Ge, Gt, Lt
from jaxtyping import Array, Float

from jaxmbrl.agents.actor_critic.value_gradients import perturbed
from jaxmbrl.agents.exploration import with_gaussian_noise
from jaxmbrl.algorithms import shared
from jaxmbrl.algorithms.registry import TINY_ENSEMBLE, TINY_RUN, Goal, Method
from jaxmbrl.algorithms.shared import DynamicsChoice, LoopSettings, ModelChoice
from jaxmbrl.core import metrics, tree
from jaxmbrl.core.config import Traced, UserError
from jaxmbrl.core.types import (
    Action,
    Algorithm,
    Average,
    Clock,
    DynamicsModel,
    Hyper,
    Key,
    Memory,
    Metrics,
    Observation,
    Policy,
    PyTree,
    Task,
    Transition,
    Views,
    World,
    flatten,
    row_like,
)
from jaxmbrl.data import replay
from jaxmbrl.data.replay import Replay
from jaxmbrl.envs.base import vector_sizes
from jaxmbrl.models.ensemble import EnsembleConfig
from jaxmbrl.models.imagination import imagine
from jaxmbrl.nn import optimizer
from jaxmbrl.nn.networks import MLP
from jaxmbrl.nn.optimizer import Trainable


@dataclass(frozen=True)
class Config(DynamicsChoice, ModelChoice, LoopSettings):
    """Settings of a run of BPTT."""

    hidden: tuple[Annotated[int, Ge(1)], ...] = (64, 64)
    """Units of each hidden layer of the policy."""
    learning_rate: Annotated[float, Gt(0), Traced] = 1e-3
    """Adam learning rate of the policy."""
    discount: Annotated[float, Gt(0), Lt(1), Traced] = 0.99
    """Discount factor per step."""
    exploration_noise: Annotated[float, Ge(0)] = 0.2
    """Standard deviation of the Gaussian noise that is added to actions when data are collected."""
    max_gradient_norm: Annotated[float, Gt(0)] = 1.0
    """Norm to which gradients are clipped."""
    horizon: Annotated[int, Ge(1)] = 50
    """Steps H of a trajectory, through which the gradient is back-propagated."""
    rematerialize: bool = True
    """Whether the backward pass recomputes each step, so that only the H states are stored."""
    ensemble: EnsembleConfig = field(default_factory=EnsembleConfig)
    """The dynamics model."""
    learn_reward: bool = True
    """Learn the reward even if the task provides it."""
    learn_termination: bool = False
    """Learn the termination even if the task provides it."""
    batch_size: Annotated[int, Ge(1)] = 64
    """Trajectories of each update."""
    updates: Annotated[int, Ge(1)] = 50
    """Updates of the policy after each fit."""
    refit_every: Annotated[int, Ge(1)] = 200
    """Environment steps between two fits of the model."""
    replay_capacity: Annotated[int, Ge(2)] = 100_000
    """Real transitions in the replay buffer; the oldest are overwritten first."""
    warmup_steps: Annotated[int, Ge(2)] = 1000
    """Environment steps of uniformly random actions, without updates, at the start."""
    eval_every: Annotated[int, Ge(0)] = 5
    """Epochs between two evaluations; 0 for none."""

    def problem(self) -> tuple[str, str] | None:
        """(field, message) of the first violated rule that involves several fields, or None."""
        if self.refit_every % self.num_envs:
            return "refit_every", f"must be a multiple of num_envs ({self.num_envs}), got {self.refit_every}"
        return shared.no_moment_matching(self.ensemble)


class State(NamedTuple):
    """The whole state of a run."""

    actor: Trainable
    discount: Float[Array, ""]
    model: PyTree
    """`EnsembleState`, or the state of another model; () with the true simulator."""
    replay: Replay
    key: Key


def make(config: Config, task: Task, model: DynamicsModel | None = None) -> Algorithm:
    """BPTT on `task`; `model` overrides the default ensemble. Raises UserError if the true simulator is chosen and is not
    written in JAX."""
    observation_size, action_size = vector_sizes(task, "bptt")
    network, learns_model = MLP(config.hidden, action_size), not config.uses_true_model()
    if not learns_model and task.host is not None:
        raise UserError(f"model must be 'learned' on '{task.name}', whose simulator is not in JAX, got 'true'")
    model = model or shared.model_for(config, task)

    def init(key: Key, hyper: Hyper, data: Transition | None = None) -> State:
        shared.no_data(data, "bptt")
        actor_key, model_key, key = jax.random.split(key, 3)
        params = network.init(actor_key, jnp.zeros(observation_size))
        return State(
            actor=optimizer.init(params, hyper.get("learning_rate", config.learning_rate)),
            discount=jnp.asarray(hyper.get("discount", config.discount), float),
            model=model.init(model_key, {}) if learns_model else (),
            replay=replay.init(row_like(task), config.replay_capacity),
            key=key,
        )

    def deterministic(params: PyTree) -> Policy:
        """The policy with an entropy bonus of 0, for `imagine`."""

        def act(memory: Memory, observation: Observation, key: Key) -> tuple[Action, PyTree, Memory]:
            action = jnp.tanh(network.apply(params, observation))
            return action, jnp.zeros(action.shape[:-1], action.dtype), memory

        return Policy(init=lambda key: (), act=act)

    def policy(state: State, clock: Clock, explore: bool) -> Policy:
        acting = deterministic(state.actor.params)
        if not explore:
            return acting
        noisy = with_gaussian_noise(acting, config.exploration_noise)
        return shared.collector(noisy, task, config, clock, extras=lambda action: jnp.zeros((), action.dtype))

    def learn(clock: Clock, state: State, transitions: Transition) -> tuple[State, Metrics]:
        key, fit_key, update_key = jax.random.split(state.key, 3)
        real = replay.add(state.replay, flatten(transitions))

        def fit_and_update(parts: tuple[Trainable, PyTree]) -> tuple[tuple[Trainable, PyTree], Metrics]:
            actor, model_state = parts
            fitted: Metrics = {}
            if learns_model:
                rows = shared.rows_to_fit(real, clock, config.replay_capacity)
                model_state, fitted = model.fit(model_state, rows, fit_key)

            @jax.named_scope("update")
            def update(actor: Trainable, key: Key) -> tuple[Trainable, Metrics]:
                origin_key, key = jax.random.split(key)
                world, origin = start_states(model_state, real, origin_key)

                def loss(params: PyTree) -> Float[Array, ""]:
                    returns = discounted_return(config, world, deterministic(params), origin, key, state.discount)
                    return -jnp.mean(returns)

                return clipped_step(config, actor, *jax.value_and_grad(loss)(actor.params))

            actor, found = jax.lax.scan(update, actor, jax.random.split(update_key, config.updates))
            return (actor, model_state), fitted | metrics.total(found)

        (actor, model_state), found = metrics.cond_update(
            clock.env_steps >= config.warmup_steps, fit_and_update, (state.actor, state.model)
        )
        return State(actor, state.discount, model_state, real, key), found

    def start_states(model_state: PyTree, real: Replay, key: Key) -> tuple[World, PyTree]:
        """(world to differentiate through, rows to start from)."""
        if not learns_model:
            return simulated(task.world), jax.vmap(task.world.reset)(jax.random.split(key, config.batch_size))
        origin = replay.sample(real, key, config.batch_size).observation
        return perturbed(model.world(model_state), origin, jnp.zeros((config.horizon + 1, *origin.shape))), origin

    def views(state: State) -> Views:
        return Views(state.replay, shared.model_view(config, task, model, state.model) if learns_model else None)

    return Algorithm(init, policy, learn, period=config.refit_every // config.num_envs, views=views)


def discounted_return(
    config: Config, world: World, policy: Policy, origin: PyTree, key: Key, discount: Float[Array, ""]
) -> Float[Array, "B"]:
    """The discounted return of H steps from each row of `origin`."""
    trajectory = imagine(world, policy, origin, key, config.horizon, config.rematerialize)
    return trajectory.n_step_returns(jnp.zeros_like(trajectory.reward[0]), discount)[0]


def clipped_step(config: Config, actor: Trainable, loss: Float[Array, ""], gradient: PyTree) -> tuple[Trainable, Metrics]:
    """One Adam step along the `gradient` of `loss`, clipped by its norm; no step if it is not finite."""
    norm = optax.tree.norm(gradient)
    finite = jnp.isfinite(norm)
    scale = jnp.minimum(1.0, config.max_gradient_norm / norm)
    # The norm may overflow although every entry is finite: such a gradient is skipped too.
    clipped = jax.tree.map(lambda leaf: jnp.where(finite, scale * leaf, 0.0), gradient)
    stepped, _ = optimizer.step(actor, clipped)
    actor = tree.where(finite, stepped, actor)
    return actor, {
        "agent/actor_loss": Average.of(loss, finite),
        "agent/actor_gradient_norm": Average.of(norm, finite),
        "gradient/clipped": Average.of(jnp.asarray(scale < 1, float)),
        "gradient/nonfinite": Average.of(1.0 - finite),
    }


def simulated(world: World) -> World:
    """A block of a task's environments as one differentiable `World`, which starts from their carries. Environments that
    have ended return to their start states: steps after termination do not count, and might not be finite."""

    def start(carries: PyTree, key: Key) -> tuple[PyTree, PyTree]:
        return carries, carries

    def step(rows: tuple[PyTree, PyTree], action: Action, key: Key) -> tuple[Any, Transition]:
        first, carries = rows
        keys = jax.random.split(key, action.shape[0])
        next_carries, made = jax.vmap(world.step)(carries, action, keys)

        def on(began: Array, after: Array) -> Array:
            ended = made.terminated.reshape(-1, *[1] * (after.ndim - 1))
            return jnp.where(ended, began, after)

        return (first, jax.tree.map(on, first, next_carries)), made

    return World(reset=world.reset, start=start, observe=lambda rows: jax.vmap(world.observe)(rows[1]), step=step)


METHOD = Method(
    make,
    Config,
    family="value_gradients",
    paper="2106.13281",
    summary="policy by back-propagation through time in an ensemble or the true simulator, without a critic",
    tiny={**TINY_RUN, **TINY_ENSEMBLE, "hidden": (16, 16), "horizon": 6, "updates": 3, "refit_every": 50},
    goals=(
        Goal("bptt-pendulum", "pendulum", 5000, -200.0, about="small preset"),
        Goal(
            "bptt-true-pendulum",
            "pendulum",
            1000,
            -200.0,
            settings={"model": "true"},
            about="through the true simulator",
        ),
    ),
)
