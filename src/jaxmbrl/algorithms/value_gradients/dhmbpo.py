"""DHMBPO: double horizon model-based policy optimisation (Kubo et al., arXiv 2512.15439; its code is 4kubo/erl_lib). Long
imagined rollouts provide the states to learn on; a short differentiable rollout from them provides the gradients of critics
and actor.

    every `iteration_steps` environment steps after the warm-up:
        fit the ensemble to all real data; normalise the agent's observations by mean and deviation of these data
        imagine long branches under the policy from real states; update only the critics, `critic_share` times as often as
            in the updates below
        `updates_per_step` updates per step, with more long branches before every `distribution_every` updates; each update
        follows the policy for n = `horizon` model steps from states x_0 of the branches:
            critics     (Q(x_0, a_0) - y)^2,
                        y = r_0 + sum_{t=1}^{n-1} discount^t m_t (r_t - alpha log pi_t) + discount^n m_n V'(x_n)
            actor       maximise sum_{t=0}^{n-1} discount^t m_t (r_t - alpha log pi_t) + discount^n m_n V(x_n),
                        through model and policy

m_t is the probability that no step before t ended the episode; V' and V are the agent's values for targets and for the
actor (`agents.actor_critic.scaled_sac`, which also defines the bounds of the return). Critics and actor use the same
imagined steps. The critics never learn on real actions.

Differs from the published code: imagined states are stored without normalisation, because the statistics may be outdated
later, and are discarded at each fit, as that code intends; members are drawn by one random shift per step
(`models.ensemble`), and are fitted with our ensemble's bootstrap and early stopping, without dropout, with the same number
of epochs at the first fit as later.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge, Le
from jaxtyping import Array, Float, Int

from jaxmbrl.agents.actor_critic import scaled_sac
from jaxmbrl.agents.actor_critic.sac import SACState
from jaxmbrl.agents.actor_critic.scaled_sac import ScaledSACConfig
from jaxmbrl.agents.actor_critic.updates import updates
from jaxmbrl.agents.actor_critic.value_gradients import (
    ValueGradientConfig,
    imagine_with_vjp,
    value_gradient_step,
    with_value_gradient,
)
from jaxmbrl.algorithms import shared
from jaxmbrl.algorithms.registry import TINY_ENSEMBLE, TINY_RUN, Goal, Method
from jaxmbrl.algorithms.shared import LoopSettings
from jaxmbrl.core import metrics
from jaxmbrl.core.schedules import rounded_down
from jaxmbrl.core.types import (
    ActorCritic,
    Algorithm,
    Average,
    Clock,
    DynamicsModel,
    Hyper,
    Key,
    Metrics,
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
from jaxmbrl.models import branching, disagreement, normalizer
from jaxmbrl.models.branching import Imagined
from jaxmbrl.models.disagreement import TrustConfig
from jaxmbrl.models.ensemble import EnsembleConfig
from jaxmbrl.models.imagination import Trajectory, imagine
from jaxmbrl.models.normalizer import Normalizer
from jaxmbrl.nn import optimizer

ALWAYS = TrustConfig()


@dataclass(frozen=True)
class Config(LoopSettings):
    """Settings of a run of DHMBPO. The defaults are the published settings for all tasks, but for the fit of the model."""

    agent: ScaledSACConfig = field(default_factory=ScaledSACConfig)
    """The policy learner."""
    ensemble: EnsembleConfig = field(
        default_factory=lambda: EnsembleConfig(
            members=8,
            elites=8,
            hidden=(256, 256, 256),
            norms=(1.0, 0.1, 0.01),
            weight_decay=(2.5e-4, 5e-4, 7.5e-4, 1e-3),
            decoupled_decay=True,
            noise_decay=0.01,
            restart_optimizer=True,
            noise="constant",
            reward_noise=False,
            batch_size=256,
            patience=20,
        )
    )
    """The dynamics model."""
    horizon: Annotated[int, Ge(1)] = 5
    """Model steps n of the short rollout, through which the actor's gradient is back-propagated."""
    rematerialize: bool = False
    """Whether the actor's backward pass recomputes each model step, so that only the n states are stored."""
    distribution_horizon: Annotated[int, Ge(0)] = 20
    """Model steps of a long rollout, which provides the states to learn on; 0 for real states."""
    distribution_rows: Annotated[int, Ge(1)] = 256
    """Long rollouts that are started from real states at once."""
    distribution_every: Annotated[int, Ge(1)] = 20
    """Updates between two long rollouts."""
    distribution_capacity: Annotated[int, Ge(1)] = 51_200
    """States of long rollouts in their buffer; the oldest are overwritten first."""
    iteration_steps: Annotated[int, Ge(1)] = 1000
    """Environment steps between two rounds; a round is a fit and the updates after it."""
    updates_per_step: Annotated[int, Ge(1)] = 1
    """Updates for each environment step."""
    first_updates: Annotated[int, Ge(1)] = 5
    """Factor by which the first round has more updates than later ones."""
    critic_share: Annotated[float, Ge(0), Le(1)] = 0.25
    """Updates of only the critics after each fit, as a share of a round's updates, rounded down."""
    learn_reward: bool = True
    """Learn the reward even if the task provides it."""
    learn_termination: bool = False
    """Learn the termination even if the task provides it."""
    batch_size: Annotated[int, Ge(1)] = 256
    """States in each update."""
    replay_capacity: Annotated[int, Ge(2)] = 1_000_000
    """Real transitions in the replay buffer; the oldest are overwritten first."""
    warmup_steps: Annotated[int, Ge(2)] = 5000
    """Environment steps of uniformly random actions, without updates, at the start."""
    eval_every: Annotated[int, Ge(0)] = 5
    """Epochs between two evaluations; 0 for none."""

    def problem(self) -> tuple[str, str] | None:
        """(field, message) of the first violated rule that involves several fields, or None."""
        if self.iteration_steps % self.num_envs:
            return "iteration_steps", f"must be a multiple of num_envs ({self.num_envs}), got {self.iteration_steps}"
        if self.warmup_steps % self.iteration_steps:
            return (
                "warmup_steps",
                f"must be a multiple of iteration_steps ({self.iteration_steps}), got {self.warmup_steps}",
            )
        if self.updates % self.distribution_every:
            return "distribution_every", f"must divide a round's updates ({self.updates}), got {self.distribution_every}"
        return shared.no_moment_matching(self.ensemble)

    @property
    def updates(self) -> int:
        """Updates of a round after the first."""
        return self.iteration_steps * self.updates_per_step


class State(NamedTuple):
    """The whole state of a run."""

    agent: SACState
    model: PyTree
    """`EnsembleState`, or the state of another model."""
    replay: Replay
    """Real transitions."""
    imagined: Imagined
    """Transitions of the long rollouts."""
    statistics: Normalizer
    """Mean and standard deviation that normalise the observations of the agent."""
    key: Key


def make(config: Config, task: Task, model: DynamicsModel | None = None) -> Algorithm:
    """DHMBPO on `task`; `model` overrides the default ensemble."""
    observation_size, action_size = vector_sizes(task, "dhmbpo")
    model = model or shared.ensemble_for(config, task)

    def agent_of(statistics: Normalizer) -> ActorCritic:
        return scaled_sac.make(config.agent, observation_size, action_size, statistics)

    def init(key: Key, hyper: Hyper, data: Transition | None = None) -> State:
        shared.no_data(data, "dhmbpo")
        agent_key, key, model_key = jax.random.split(key, 3)
        statistics = normalizer.identity(observation_size)
        return State(
            agent=agent_of(statistics).init(agent_key, hyper),
            model=model.init(model_key, {}),
            replay=replay.init(row_like(task), config.replay_capacity),
            imagined=branching.init(row_like(task), config.distribution_capacity, 1, ALWAYS),
            statistics=statistics,
            key=key,
        )

    def policy(state: State, clock: Clock, explore: bool) -> Policy:
        acting = agent_of(state.statistics).policy(state.agent, explore)
        return shared.collector(acting, task, config, clock) if explore else acting

    def learn(clock: Clock, state: State, transitions: Transition) -> tuple[State, Metrics]:
        key, round_key = jax.random.split(state.key)
        real = replay.add(state.replay, flatten(transitions))
        rounds = jnp.where(clock.env_steps == config.warmup_steps, config.first_updates, 1)
        learned, found = metrics.cond_update(
            clock.env_steps >= config.warmup_steps,
            lambda learned: fit_and_update(config, model, agent_of, learned, real, clock, rounds, round_key),
            (state.agent, state.model, state.imagined, state.statistics),
        )
        agent_state, model_state, imagined, statistics = learned
        return State(agent_state, model_state, real, imagined, statistics, key), found

    def views(state: State) -> Views:
        return Views(
            replay=state.replay,
            model=shared.model_view(config, task, model, state.model),
            critic=shared.critic_view(agent_of(state.statistics), state.agent),
            reproducible=state.imagined.buffer,
        )

    return Algorithm(init, policy, learn, period=config.iteration_steps // config.num_envs, views=views)


def fit_and_update(
    config: Config,
    model: DynamicsModel,
    agent_of: Callable[[Normalizer], ActorCritic],
    learned: tuple[SACState, PyTree, Imagined, Normalizer],
    real: Replay,
    clock: Clock,
    rounds: Int[Array, ""],
    key: Key,
) -> tuple[tuple[SACState, PyTree, Imagined, Normalizer], Metrics]:
    """One round: the fit, the first long rollouts, updates of only the critics, then `rounds` times a round's updates."""
    agent_state, model_state, imagined, _ = learned
    fit_key, first_key, critic_key, update_key = jax.random.split(key, 4)
    rows = shared.rows_to_fit(real, clock, config.replay_capacity)
    model_state, fitted = model.fit(model_state, rows, fit_key)
    observations = rows.data.observation
    known = jnp.arange(config.replay_capacity) < rows.size
    statistics = normalizer.measure(observations, known, config.ensemble.input_margin)
    agent, world = agent_of(statistics), model.world(model_state)
    agent_state = agent_state._replace(
        actor=optimizer.reset_moments(agent_state.actor), critic=optimizer.reset_moments(agent_state.critic)
    )
    imagined = imagined._replace(buffer=replay.empty(imagined.buffer))
    learner = with_short_horizon(config, agent, world)

    def imagine_long(agent_state: SACState, imagined: Imagined, key: Key) -> tuple[Imagined, Metrics]:
        start_key, branch_key = jax.random.split(key)
        origin = replay.sample(real, start_key, config.distribution_rows).observation
        acting = agent.policy(agent_state, True)
        # A state is stored as the start of a transition, so one more step also stores the last state.
        steps = config.distribution_horizon + 1
        return branching.branch(world, acting, disagreement.make(ALWAYS), imagined, origin, branch_key, steps)

    def block(state: tuple[SACState, Imagined], key: Key) -> tuple[tuple[SACState, Imagined], Metrics]:
        agent_state, imagined = state
        long_key, some_key = jax.random.split(key)
        imagined, of_branches = imagine_long(agent_state, imagined, long_key)

        def draw(key: Key) -> Transition:
            return replay.sample(imagined.buffer, key, config.batch_size)

        agent_state, updated = updates(learner, agent_state, draw, some_key, config.distribution_every)
        return (agent_state, imagined), of_branches | updated

    imagined, _ = imagine_long(agent_state, imagined, first_key)
    agent_state = critics_alone(config, learner, agent_state, imagined.buffer, critic_key)
    number = rounds * (config.updates // config.distribution_every)
    (agent_state, imagined), found = metrics.repeat(number, block, (agent_state, imagined), update_key)
    return (agent_state, model_state, imagined, statistics), fitted | found


@jax.named_scope("update")
def critics_alone(config: Config, learner: ActorCritic, state: SACState, buffer: Replay, key: Key) -> SACState:
    """Updates of only the critics: the share `config.critic_share` of a round's updates."""

    def update(state: SACState, key: Key) -> tuple[SACState, None]:
        draw_key, critic_key = jax.random.split(key)
        batch = replay.sample(buffer, draw_key, config.batch_size)
        return learner.update_critic(state, batch, critic_key)[0], None

    number = rounded_down(config.critic_share, config.updates)
    return jax.lax.scan(update, state, jax.random.split(key, number))[0]


def critic_target(agent: ActorCritic, state: PyTree, trajectory: Trajectory, key: Key) -> Float[Array, "B"]:
    """y of the module's docstring, for the first state and action of each row."""
    last = agent.target_value(state, trajectory.next_observation[-1], key)
    # The value of (s, a) does not contain the entropy bonus of a itself.
    return trajectory.n_step_returns(last, state.discount)[0] - trajectory.entropy_bonus[0]


def with_short_horizon(config: Config, agent: ActorCritic, world: World) -> ActorCritic:
    """`agent` with critics and an actor that learn on `config.horizon` model steps from a batch's states."""
    gradient = ValueGradientConfig(config.horizon, entropy_at_every_step=True, rematerialize=config.rematerialize)

    def learn_critic(state: SACState, trajectory: Trajectory, key: Key) -> tuple[SACState, Metrics, Float[Array, "B"]]:
        value_key, critic_key = jax.random.split(key)
        earned = jnp.where(trajectory.alive > 0, trajectory.reward + trajectory.entropy_bonus, jnp.nan)
        state = scaled_sac.update_bounds(config.agent, state, earned)
        target = critic_target(agent, state, trajectory, value_key)
        first = jax.tree.map(lambda leaf: leaf[0], trajectory)
        rows = Transition(
            first.observation, first.action, first.reward, first.next_observation, first.terminated, first.terminated
        )
        state, found, error = agent.update_critic(state, rows, critic_key, target=target)
        low, high = state.critic.params["bounds"][0]
        return state, found | {"agent/return_low": Average.of(low), "agent/return_high": Average.of(high)}, error

    def update_critic(state: SACState, batch: Transition, key: Key) -> tuple[SACState, Metrics, Float[Array, "B"]]:
        imagine_key, critic_key = jax.random.split(key)
        acting = agent.policy_with_entropy(state)
        return learn_critic(state, imagine(world, acting, batch.observation, imagine_key, config.horizon), critic_key)

    def update(state: SACState, batch: Transition, key: Key) -> tuple[SACState, Metrics, Float[Array, "B"]]:
        imagine_key, critic_key, action_key, value_key = jax.random.split(key, 4)
        trajectory, vjp = imagine_with_vjp(gradient, agent, world, state, batch.observation, imagine_key)
        state, of_critic, error = learn_critic(state, trajectory, critic_key)
        state, of_actor = value_gradient_step(gradient, agent, state, batch, trajectory, vjp, (action_key, value_key))
        return state, of_critic | of_actor, error

    return with_value_gradient(agent, world, gradient)._replace(update_critic=update_critic, update=update)


METHOD = Method(
    make,
    Config,
    family="value_gradients",
    paper="2512.15439",
    summary="soft actor-critic by short differentiated rollouts from the states of long imagined ones",
    tiny={
        **TINY_RUN,
        **TINY_ENSEMBLE,
        "agent.hidden": (16, 16),
        "agent.critics": 3,
        "ensemble.norms": (0.1,),
        "ensemble.weight_decay": (1e-3, 1e-3),
        "horizon": 2,
        "distribution_horizon": 3,
        "distribution_rows": 20,
        "distribution_every": 10,
        "distribution_capacity": 307,
        "iteration_steps": 50,
        "first_updates": 2,
    },
    goals=(
        Goal("dhmbpo-pendulum", "pendulum", 5000, -200.0, about="small preset"),
        Goal("dhmbpo-inverted-pendulum", "InvertedPendulum-v5", 5000, 1000.0, episodes=10),
        Goal(
            "dhmbpo-hopper",
            "Hopper-v5",
            25_000,
            1000.0,
            episodes=10,
            settings={"replay_capacity": 30_000, "ensemble.max_epochs": 40},
            about="the default preset with shorter fits",
        ),
    ),
)
