"""GPS: guided policy search by approximate mirror descent, MDGPS (Montgomery and Levine, arXiv 1607.04614), with the local
models of Levine and Abbeel (Learning neural network policies with guided policy search under unknown dynamics, NIPS 2014).

    minimise  E sum_t c(x_t, u_t)  over policies pi(u|x) = N(mu(x), S)

    for each iteration:
        from each of M start states, sample N trajectories of T steps by pi
        for each start state:
            fit  x_{t+1} ~ N(F_t [x_t; u_t] + f_t, W_t),  and linearise pi as  pibar_t = N(Kbar_t x + kbar_t, Sbar_t)
            expand c to second order around the samples
        s <- s clip(predicted / (2 (predicted - actual)), 0.1, 5),    both of the last iteration's improvement
        C-step, for each start state:
            p = argmin over N(K_t x + k_t, C_t) of  E_p sum_t c   subject to   sum_t KL(p_t || pibar_t) <= epsilon s T
        S-step:
            mu = argmin sum over samples of (mu(x) - K_t x - k_t)' C_t^-1 (mu(x) - K_t x - k_t),    S^-1 = mean diag C_t^-1

The C-step is a maximum-entropy LQR with the cost c / eta - log pibar, for the multiplier eta of the constraint, which is
found by bisection. All samples are of pi itself (on-policy), and c is minus the task's known reward.

Differs from the paper and the authors' code: p's standard deviations have a lower bound, because C, which is in units of 1
/ cost, else shrinks until the models are fitted to noise; second derivatives of the cost are projected to positive
semidefinite matrices, so that Q_uu needs no correction; the S-step also uses states that p is expected to visit, drawn from
the local models, because a network that was only regressed at states of the last policy can fail where p goes; the first
policy is N(0, initial_std^2). Samples, models and
controllers are those of commands, before they are clipped to [-1, 1] for the task: the cost of a clipped action is flat
beyond the bound, where `bound_weight` adds a penalty.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt
from jaxtyping import Array, Float, Int

from jaxmbrl.agents import regression
from jaxmbrl.agents.regression import RegressedPolicy, Regression, RegressionConfig
from jaxmbrl.algorithms import shared
from jaxmbrl.algorithms.registry import Goal, Method
from jaxmbrl.algorithms.shared import EpochSettings
from jaxmbrl.core.cholesky import cholesky
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
    Observation,
    Policy,
    PyTree,
    Task,
    Transition,
)
from jaxmbrl.envs.base import never, vector_sizes
from jaxmbrl.models import local_linear
from jaxmbrl.models.local_linear import Kept, LocalLinearConfig
from jaxmbrl.planning import expansion, lqr
from jaxmbrl.planning.lqr import LinearDynamics, LinearPolicy
from jaxmbrl.planning.trust_region_lqr import Models, c_step, expected_cost, inverse


@dataclass(frozen=True)
class Config(EpochSettings):
    """Settings of a run of GPS."""

    policy: Literal["network", "local"] = "network"
    """The policy that acts: a network, or the controllers p themselves, which are optimised from one start state without
    an S-step."""
    agent: RegressionConfig = field(default_factory=RegressionConfig)
    """The network and its S-step."""
    model: LocalLinearConfig = field(default_factory=LocalLinearConfig)
    """Regressions for the dynamics and the linearised policy."""
    start_states: Annotated[int, Ge(1)] = 1
    """Number M of start states, sampled at the beginning of a run."""
    num_envs: Annotated[int, Ge(2)] = 5
    """Trajectories of each iteration, N for each of the M start states."""
    imagined: Annotated[int, Ge(0)] = 5
    """Trajectories of the controllers in the local models, from each start state, whose states the S-step adds to the
    sampled ones."""
    least_std: Annotated[float, Ge(0)] = 0.1
    """Lower bound of the controllers' standard deviations, in units of the action."""
    kl_bound: Annotated[float, Gt(0)] = 1.0
    """Bound epsilon of the divergence of a controller from the policy, in nats for each step."""
    least_step: Annotated[float, Gt(0)] = 0.5
    """Lower bound of the factor s of this bound, which begins at 1."""
    largest_step: Annotated[float, Gt(0)] = 3.0
    """Upper bound of s."""
    entropy_weight: Annotated[float, Ge(0)] = 0.0
    """Weight of the controllers' entropy in the C-step, in units of the cost."""
    bound_weight: Annotated[float, Ge(0)] = 1.0
    """Cost of the squared distance of a command from [-1, 1]."""
    eval_every: Annotated[int, Ge(0)] = 1
    """Epochs between two evaluations; 0 for none."""

    def problem(self) -> tuple[str, str] | None:
        """(field, message) of the first violated rule that involves several fields, or None."""
        if self.num_envs % self.start_states or self.num_envs < 2 * self.start_states:
            return "num_envs", f"must be a multiple, at least 2, of start_states ({self.start_states}), got {self.num_envs}"
        if self.largest_step < self.least_step:
            return "largest_step", f"must be at least least_step ({self.least_step}), got {self.largest_step}"
        if self.policy == "local" and self.start_states > 1:
            return "start_states", f"must be 1 with policy local, got {self.start_states}"
        return None


class State(NamedTuple):
    """The whole state of a run."""

    policy: Any
    """`RegressedPolicy`; () with policy `local`."""
    local: LinearPolicy
    """The controllers p, [M, T, ...]."""
    multiplier: Float[Array, "M"]
    """eta."""
    step_size: Float[Array, ""]
    """s."""
    cost: Float[Array, ""]
    """Expected cost of pi in the last models, mean over start states."""
    local_cost: Float[Array, ""]
    """The same of p."""
    kept: Float[Array, "M K T nmn"]
    """[x; u; x'] of the last K trajectories from each start state, oldest first; zeros before there are so many."""
    key: Key


def make(config: Config, task: Task) -> Algorithm:
    """GPS on `task`. `hyper` may hold `learning_rate`, traced. Raises UserError if the task has no known reward, or if its
    episodes may terminate."""
    n, m = vector_sizes(task, "gps")
    reward, length = task.reward, task.episode_length
    if task.terminated is not never:
        raise UserError(f"gps takes tasks that never terminate, and '{task.name}' may terminate: take another task")
    if reward is None:
        raise UserError(f"gps needs a known reward, and '{task.name}' has no reward function: take another task")
    number = config.num_envs // config.start_states
    number_kept = number * max(1, config.model.trajectories // number)
    agent, acts_by_network = regression.make(config.agent, n, m), config.policy == "network"

    def init(key: Key, hyper: Hyper, data: Transition | None = None) -> State:
        shared.no_data(data, "gps")
        agent_key, key = jax.random.split(key)
        first = LinearPolicy(jnp.zeros((m, n)), jnp.zeros(m), config.agent.initial_std**2 * jnp.eye(m))
        return State(
            policy=agent.init(agent_key, hyper) if acts_by_network else (),
            local=lqr.repeated(lqr.repeated(first, length), config.start_states),
            multiplier=jnp.ones(config.start_states),
            step_size=jnp.ones(()),
            cost=jnp.zeros(()),
            local_cost=jnp.zeros(()),
            kept=jnp.zeros((config.start_states, number_kept, length, n + m + n)),
            key=key,
        )

    def policy(state: State, clock: Clock, explore: bool) -> Policy:
        return agent.policy(state.policy, explore) if acts_by_network else local_policy(state.local, explore)

    def cost(step: Float[Array, "nmn"]) -> Float[Array, ""]:
        x, u, successor = jnp.split(step, [n, n + m])
        excess = u - jnp.clip(u, -1.0, 1.0)
        return config.bound_weight * jnp.sum(excess**2) - reward(x, u, successor)

    def models_of(
        policy: Any, local: LinearPolicy, steps: Float[Array, "N T nmn"], kept: Kept, clusters: Int[Array, ""]
    ) -> Models:
        """The models around the trajectories `steps` from one start state."""
        dynamics = LinearDynamics(*local_linear.fit(config.model, steps, kept, clusters, n + m))
        reference = linearised(config, agent, policy, steps[..., :n], kept, clusters) if acts_by_network else local
        x_0 = steps[:, 0, :n]
        moments = jnp.mean(x_0, axis=0), jnp.cov(x_0, rowvar=False, bias=True).reshape(n, n)
        return Models(dynamics, *expansion.expand(cost, steps, dynamics), *moments, reference)

    def learn(clock: Clock, state: State, transitions: Transition) -> tuple[State, Metrics]:
        key, agent_key = jax.random.split(state.key)
        iteration = clock.env_steps // (length * config.num_envs)
        steps = by_start_state(config, transitions)
        kept = jnp.concatenate([state.kept[:, number:], steps], axis=1)
        valid = jnp.arange(number_kept) >= number_kept - number * iteration
        rows = jax.vmap(local_linear.keep, in_axes=(0, None))(kept, valid)
        clusters = config.model.clusters_for(jnp.sum(valid) * length)

        with jax.default_matmul_precision("highest"):
            models = jax.vmap(models_of, in_axes=(None, 0, 0, 0, None))(state.policy, state.local, steps, rows, clusters)
            cost = jnp.mean(jax.vmap(expected_cost)(models, models.reference))
            adjusted = adjusted_step_size(config, state.step_size, state.cost - state.local_cost, state.cost - cost)
            step_size = jnp.where(iteration == 1, state.step_size, adjusted)
            bound = config.kl_bound * step_size * length
            found = jax.vmap(c_step, in_axes=(0, None, 0, None, None))(
                models, bound, state.multiplier, config.entropy_weight, config.least_std
            )
            local_cost = jnp.mean(jax.vmap(expected_cost)(models, found.local))

        policy: Any = state.policy
        fitted: Metrics = {}
        if acts_by_network:
            imagined_key, agent_key = jax.random.split(agent_key)
            noise = jax.random.normal(imagined_key, (config.start_states, config.imagined, length, n))
            x = jnp.concatenate([steps[..., :n], jax.vmap(imagined)(models, found.local, noise)], axis=1)
            policy, fitted = agent.fit(policy, *supervision(x, found.local), agent_key)
        state = State(policy, found.local, found.multiplier, step_size, cost, local_cost, kept, key)
        return state, measured(state, found.divergence / length) | fitted

    return Algorithm(init, policy, learn, period=length, start_states=config.start_states, on_policy=True)


def measured(state: State, divergence: Float[Array, "M"]) -> Metrics:
    """The metrics of an iteration; `divergence` is that of a step."""
    std = jnp.sqrt(jnp.diagonal(state.local.covariance, axis1=-2, axis2=-1))
    values = {
        "gps/cost": state.cost,
        "gps/local_cost": state.local_cost,
        "gps/divergence": jnp.mean(divergence),
        "gps/log10_multiplier": jnp.mean(jnp.log10(state.multiplier)),
        "gps/step_size": state.step_size,
        "gps/std": jnp.mean(std),
        "gps/smallest_std": jnp.min(std),
    }
    return {name: Average.of(value) for name, value in values.items()}


def local_policy(local: LinearPolicy, explore: bool) -> Policy:
    """The controller of the first start state as a policy; its memory is t."""

    def act(t: Memory, x: Observation, key: Key) -> tuple[Action, PyTree, Memory]:
        K, k, covariance = (part[0, jnp.minimum(t, part.shape[1] - 1)] for part in local)
        command = K @ x + k
        if explore:
            command = command + cholesky(covariance) @ jax.random.normal(key, command.shape, command.dtype)
        return jnp.clip(command, -1.0, 1.0), {"command": command}, t + 1

    return Policy(lambda key: jnp.zeros((), jnp.int32), act)


def linearised(
    config: Config, agent: Regression, policy: RegressedPolicy, x: Float[Array, "N T n"], kept: Kept, clusters: Any
) -> LinearPolicy:
    """pibar around the states `x`, with a mixture of all kept states and their mean actions as prior."""

    def rows(x: Float[Array, "*k n"]) -> Float[Array, "*k nm"]:
        return jnp.concatenate([x, agent.mean(policy, x)], axis=-1)

    n = x.shape[-1]
    prior = kept._replace(rows=rows(kept.rows[:, :n]))
    K, k, residual = local_linear.fit(config.model, rows(x), prior, clusters, n)
    return LinearPolicy(K, k, residual + jnp.diag(policy.std**2))


def by_start_state(config: Config, transitions: Transition) -> Float[Array, "M N T nmn"]:
    """[x; u; x'] of the transitions [T, num_envs]; environment i begins in start state i mod M."""
    row = transitions.observation, transitions.extras["command"], transitions.next_observation
    rows = jnp.concatenate(row, axis=-1)
    return rows.reshape(rows.shape[0], -1, config.start_states, rows.shape[-1]).transpose(2, 1, 0, 3)


def adjusted_step_size(
    config: Config, step_size: Float[Array, ""], predicted: Float[Array, ""], actual: Float[Array, ""]
) -> Float[Array, ""]:
    """The factor s of the next bound, from the predicted and the actual improvement under the last one. If the improvement
    is a quadratic function of the divergence with these two values and the predicted slope at 0, s leads to its maximum."""
    factor = predicted / (2 * jnp.maximum(1e-4, predicted - actual))
    return jnp.clip(step_size * jnp.clip(factor, 0.1, 5.0), config.least_step, config.largest_step)


def supervision(x: Float[Array, "M N T n"], local: LinearPolicy) -> tuple[Array, Array, Array]:
    """(x [R, n], K_t x + k_t [R, m], C_t^-1 [R, m, m]) of the sampled states, for the controllers `local` [M, T, ...]."""
    target = jnp.einsum("stij,sntj->snti", local.K, x) + local.k[:, None]
    precision = jax.vmap(jax.vmap(inverse))(local.covariance)[:, None]
    precision = jnp.broadcast_to(precision, (*target.shape, target.shape[-1]))
    rows = x.shape[0] * x.shape[1] * x.shape[2]
    return x.reshape(rows, -1), target.reshape(rows, -1), precision.reshape(rows, *precision.shape[-2:])


def imagined(models: Models, local: LinearPolicy, noise: Float[Array, "J T n"]) -> Float[Array, "J T n"]:
    """States of each step under the controllers `local` in the models, for standard normal `noise`."""
    moments = lqr.propagate(models.dynamics, local, models.mean, models.covariance)
    values, vectors = jnp.linalg.eigh(moments.covariance[:-1])
    return moments.mean[:-1] + jnp.einsum("tij,tj,ktj->kti", vectors, jnp.sqrt(jnp.maximum(values, 0.0)), noise)


METHOD = Method(
    make,
    Config,
    family="trajectory",
    paper="1607.04614",
    summary="guided policy search: a network is regressed onto optimal controllers of local linear models",
    takes=("continuous actions in episodes of one length",),
    requires=("a known reward",),
    tiny={
        "agent.hidden": (16, 16),
        "agent.updates": 5,
        "agent.batch_size": 10,
        "start_states": 2,
        "num_envs": 4,
        "model.clusters": 3,
        "model.iterations": 3,
        "model.trajectories": 4,
        "epoch_steps": 100,
    },
    # Costs of an episode: the least one is 17.34 for `pendulum-reach`, and 2.76 on average for `double-integrator`.
    goals=(
        Goal("gps-reach", "pendulum-reach", 800, -19.1, about="its preset"),
        Goal(
            "gps-reach-local",
            "pendulum-reach",
            600,
            -18.0,
            settings={"policy": "local"},
            about="the controllers without a network",
        ),
        Goal("gps-double-integrator", "double-integrator", 3000, -2.9, about="a linear policy, 4 start states"),
    ),
)
