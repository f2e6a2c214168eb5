"""BMPO: bidirectional model-based policy optimisation (Lai et al., arXiv 2007.01995, algorithm 1).

    Objective: that of SAC on transitions imagined forward and backward from real states of high value

        p(s', r | s, a), q(s, r | s', a)    ensembles, fitted to the same rows         (`models.backward`)
        pi~(a | s')                         the backward policy, by maximum likelihood (`agents.behaviour_cloning`) or by a
                                            conditional GAN (`agents.adversarial_cloning`)
        p(s) ~ exp(beta V(s))               Boltzmann distribution of the start states

    for each environment step:
        act: the first action of the best of `candidates` trajectories of H steps of the policy in p, with the critics'
            value at their ends (`planning.policy_shooting`); store the transition
        update pi~ on a batch of the newest `recent_steps` transitions
        every `refit_every` steps: fit p and q to all real data; sample `rollout_rows` real states, of these as many with
            replacement by the Boltzmann distribution, and from each imagine k1 steps backward under pi~ and k2 steps
            forward under the policy; store both in one buffer
        `updates_per_step` times: update the agent on a batch with a share `real_ratio` of real rows

V is the sum of the critics at an action of the policy, without its entropy bonus, as in the paper's code, and beta is at
most 10 / (max V - min V). k1 = `backward_length`, k2 = `rollout_length`, and beta change linearly in environment steps. The
policy that is evaluated is the bare one. With k1 = 0, beta = 0 and H = 0 this is MBPO bit for bit.

A backward branch of k1 steps and a forward branch of k2 steps together are a trajectory of k1 + k2 steps with the model
error of max(k1, k2) steps.

Differs from the paper: the terminal value of the planned trajectories is the mean of the critics at the mean action. The
paper's code has no GAN, so its settings are ours. The code stores a backward row that leads from a terminal state; here no
such row is stored. If the termination is learned, it is not known which predecessors are terminal, and none is dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge
from jaxtyping import Array, Float, Int

from jaxmbrl import agents
from jaxmbrl.agents import adversarial_cloning, behaviour_cloning
from jaxmbrl.agents.adversarial_cloning import AdversarialConfig
from jaxmbrl.agents.behaviour_cloning import CloningConfig
from jaxmbrl.algorithms import shared
from jaxmbrl.algorithms.registry import TINY_BRANCHES, TINY_ENSEMBLE, TINY_RUN, Goal, Method
from jaxmbrl.algorithms.shared import DynaSettings, RolloutLength
from jaxmbrl.core import metrics
from jaxmbrl.core.keys import beside
from jaxmbrl.core.schedules import LinearSchedule
from jaxmbrl.core.types import (
    Action,
    ActorCritic,
    Algorithm,
    Clock,
    DynamicsModel,
    Hyper,
    Key,
    Learner,
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
from jaxmbrl.envs.base import vector_sizes, vectors_and_actions
from jaxmbrl.models import backward, branching, disagreement
from jaxmbrl.models.branching import Imagined
from jaxmbrl.planning import planning_policy, policy_shooting
from jaxmbrl.planning.policy_shooting import PolicyShootingConfig

LARGEST_SPREAD = 10.0
"""Largest difference of two states' beta V."""
Value = Callable[[PyTree, Observation, Action, Key], Float[Array, "N"]]
"""(state of the agent, observation, action, key) -> mean of the critics."""


@dataclass(frozen=True)
class BackwardLength(RolloutLength):
    """Schedule of the backward length k1, which may be 0."""

    first: Annotated[int, Ge(0)] = 1
    """Length at the start."""
    last: Annotated[int, Ge(0)] = 1
    """Length at the end, at least `first`; 0 for no backward model."""


@dataclass(frozen=True)
class InverseTemperature(LinearSchedule):
    """Schedule of beta: `first` until `begins`, then linear, and `last` from `ends` on."""

    first: Annotated[float, Ge(0)] = 0.01
    """beta at the start; 0 samples states uniformly."""
    last: Annotated[float, Ge(0)] = 0.01
    """beta at the end."""


@dataclass(frozen=True)
class Config(DynaSettings):
    """Settings of a run of BMPO."""

    backward_length: BackwardLength = field(default_factory=BackwardLength)
    """Steps of a backward branch, k1; `rollout_length` is k2, those of a forward branch."""
    backward_policy: CloningConfig = field(default_factory=lambda: CloningConfig(sample_variance=0.01))
    """The backward policy by maximum likelihood."""
    backward_learner: Literal["likelihood", "gan"] = "likelihood"
    """How the backward policy is fitted: `backward_policy` by maximum likelihood, or `gan` by a conditional generative
    adversarial network."""
    gan: AdversarialConfig = field(default_factory=AdversarialConfig)
    """The settings of `gan`."""
    recent_steps: Annotated[int, Ge(1)] = 10_000
    """Newest real transitions from which the backward policy learns."""
    beta: InverseTemperature = field(default_factory=InverseTemperature)
    """Inverse temperature of the distribution of start states."""
    horizon: Annotated[int, Ge(0)] = 6
    """Planning horizon H, in steps; 0 to act by the policy itself."""
    candidates: Annotated[int, Ge(1)] = 1000
    """Trajectories of the policy among which the best is chosen at each step."""
    stochastic_tail: bool = False
    """Whether the planned actions after the first are sampled, too."""

    def problem(self) -> tuple[str, str] | None:
        """(field, message) of the first violated rule that involves several fields, or None."""
        if self.trust.rule != "always":
            return "trust.rule", f"must be always: the rules are for forward branches alone, got {self.trust.rule}"
        return super().problem()

    @property
    def imagined_capacity(self) -> int:
        """Capacity of the imagined buffer at the largest k1 + k2, in rows."""
        return self.rows_kept * (self.backward_length.last + self.longest)


class State(NamedTuple):
    """The whole state of a run."""

    agent: PyTree
    model: PyTree
    """`EnsembleState`, or the state of another model."""
    backward_model: PyTree
    """Likewise; `()` if k1 is always 0, as the next."""
    backward_policy: PyTree
    replay: Replay
    """Real transitions."""
    imagined: Imagined
    """Imagined transitions."""
    real_ratio: Float[Array, ""]
    key: Key


def make(config: Config, task: Task, models: tuple[DynamicsModel, DynamicsModel] | None = None) -> Algorithm:
    """BMPO on `task`; `models`, forward and backward, override the default ensembles. `hyper` may hold `real_ratio`,
    traced, and the agent's."""
    size, action = vectors_and_actions(task, "bmpo")
    agent = agents.make(config.agent, size, action)
    # The same critics, of which this is the mean.
    mean_value = agents.make(replace(config.agent, actor_value="mean"), size, action).action_value
    model, backward_model = models or (shared.ensemble_for(config, task), backward_for(config, task))
    cloning = backward_learner_for(config, task)
    rule = disagreement.make(config.trust)
    looks_back = config.backward_length.last > 0

    def init(key: Key, hyper: Hyper, data: Transition | None = None) -> State:
        shared.no_data(data, "bmpo")
        agent_key, key, model_key = jax.random.split(key, 3)
        return State(
            agent=agent.init(agent_key, hyper),
            model=model.init(model_key, {}),
            backward_model=backward_model.init(beside(model_key, 1), {}) if looks_back else (),
            backward_policy=cloning.init(beside(model_key, 2), {}) if looks_back else (),
            replay=replay.init(row_like(task), config.replay_capacity),
            imagined=branching.init(row_like(task), config.imagined_capacity, config.rounds_kept, config.trust),
            real_ratio=shared.first_real_ratio(config, hyper),
            key=key,
        )

    def policy(state: State, clock: Clock, explore: bool) -> Policy:
        if not explore:
            return agent.policy(state.agent, False)
        if config.horizon == 0:
            return shared.collector(agent.policy(state.agent, True), task, config, clock)
        planned = shooting_policy(config, task, agent, mean_value, model.world(state.model), state.agent)
        return shared.collector(planned, task, config, clock, shared.no_search)

    def learn(clock: Clock, state: State, transitions: Transition) -> tuple[State, Metrics]:
        key, update_key, refit_key = jax.random.split(state.key, 3)
        real = replay.add(state.replay, flatten(transitions))
        steps = shared.steps_after_warmup(config, clock)
        now, found = shared.current(config, clock, state.real_ratio)

        backward_policy = state.backward_policy
        if looks_back:
            batch_key, cloning_key = (beside(update_key, i) for i in (1, 2))
            batch = replay.sample_recent(real, batch_key, config.batch_size, config.recent_steps)
            batch = backward.exchanged(batch)
            backward_policy, cloned, _ = cloning.update(backward_policy, batch, cloning_key)
            found |= {f"backward/policy_{name.split('/')[1]}": value for name, value in cloned.items()}

        def fit_and_imagine(learned: tuple[PyTree, PyTree, Imagined]) -> tuple[tuple[PyTree, PyTree, Imagined], Metrics]:
            model_state, backward_state, imagined = learned
            fit_key, imagine_key = jax.random.split(refit_key)
            rows = shared.rows_to_fit(real, clock, config.replay_capacity)
            model_state, found = shared.fit_when(now.fits, lambda state: model.fit(state, rows, fit_key), model_state)
            start_key, branch_key = jax.random.split(imagine_key)
            origin = start_states(config, agent, mean_value, state.agent, real, config.beta.at(steps), start_key)
            back, forth = config.backward_length.at(steps), now.rollout_length
            imagined = imagined._replace(buffer=replay.resize(imagined.buffer, config.rows_kept * (back + forth)))
            if looks_back:
                backward_state, of_fit = shared.fit_when(
                    now.fits, lambda state: backward_model.fit(state, rows, beside(fit_key)), backward_state
                )
                world, acting = backward_model.world(backward_state), cloning.policy(backward_policy, True)
                key = beside(branch_key)
                imagined, of_rows = branching.branch(world, acting, rule, imagined, origin, key, back, backward=True)
                found |= {f"backward/{name.split('/')[1]}": value for name, value in (of_fit | of_rows).items()}
            acting = agent.policy(state.agent, True)
            imagined, of_rows = branching.branch(
                model.world(model_state), acting, rule, imagined, origin, branch_key, forth
            )
            return (model_state, backward_state, imagined), found | of_rows

        (model_state, backward_state, imagined), fitted = metrics.cond_update(
            shared.refit_due(config, clock), fit_and_imagine, (state.model, state.backward_model, state.imagined)
        )

        draw, number = shared.mixed_batches(config, now.real_ratio, real, imagined), now.updates_per_step
        agent_state, updated = shared.update_agent(
            config, agent, state.agent, clock, draw, update_key, updates_per_step=number
        )
        state = State(agent_state, model_state, backward_state, backward_policy, real, imagined, state.real_ratio, key)
        return state, found | fitted | updated

    def views(state: State) -> Views:
        return Views(
            replay=state.replay,
            model=shared.model_view(config, task, model, state.model),
            critic=shared.critic_view(agent, state.agent),
            reproducible=state.imagined.buffer,
        )

    return Algorithm(init, policy, learn, period=1, views=views, schedule=shared.schedule_of(config))


def backward_for(config: Config, task: Task) -> DynamicsModel:
    """The backward ensemble for `task`. It learns the reward if the forward one does."""
    return backward.make(
        config.ensemble,
        *vectors_and_actions(task, "a dynamics model"),
        reward=shared.known_reward(config, task),
        terminated=None if config.learn_termination else task.terminated,
        features=task.features,
    )


def backward_learner_for(config: Config, task: Task) -> Learner:
    """The learner of the backward policy for `task`."""
    sizes = vector_sizes(task, "bmpo")
    if config.backward_learner == "gan":
        return adversarial_cloning.make(config.gan, *sizes)
    return behaviour_cloning.make(config.backward_policy, *sizes)


def shooting_policy(
    config: Config, task: Task, agent: ActorCritic, mean_value: Value, world: World, state: PyTree
) -> Policy:
    """Model-predictive control in `world` by trajectories of the agent with the given state."""
    sampled, greedy = agent.policy(state, True), agent.policy(state, False)
    settings = PolicyShootingConfig(config.horizon, config.stochastic_tail)
    planner = policy_shooting.make(settings, task.action, sampled, greedy, state.discount)

    def value(observation: Observation) -> Float[Array, "N"]:
        # Neither the mean action nor, without dropout, the critics use the key.
        key = jax.random.key(0)
        return mean_value(state, observation, greedy.act((), observation, key)[0], key)

    def rows(observation: Observation) -> Observation:
        return jnp.broadcast_to(observation, (config.candidates, *observation.shape))

    return planning_policy(planner, world, rows, task.action, terminal_value=value)


def start_states(
    config: Config,
    agent: ActorCritic,
    mean_value: Value,
    state: PyTree,
    real: Replay,
    beta: Float[Array, ""],
    key: Key,
) -> Float[Array, "N O"]:
    """`rollout_rows` real states: uniform samples if `beta` is 0, as in MBPO, else of these a sample by their value to the
    agent with the given state."""
    origin = replay.sample(real, key, config.rollout_rows).observation
    act_key, critic_key, choice_key = jax.random.split(beside(key), 3)
    action = agent.policy(state, True).act((), origin, act_key)[0]
    value = config.agent.critics * mean_value(state, origin, action, critic_key)
    return origin[jnp.where(beta > 0, boltzmann(value, beta, choice_key), jnp.arange(config.rollout_rows))]


def boltzmann(value: Float[Array, "N"], beta: Float[Array, ""] | float, key: Key) -> Int[Array, "N"]:
    """N indices, sampled with replacement with the `start_probabilities`."""
    return jax.random.choice(key, value.shape[0], value.shape, p=start_probabilities(value, beta)).astype(jnp.int32)


def start_probabilities(value: Float[Array, "N"], beta: Float[Array, ""] | float) -> Float[Array, "N"]:
    """exp(beta V) / sum exp(beta V), with beta so small that no two exponents differ by more than `LARGEST_SPREAD`."""
    spread = jnp.max(value) - jnp.min(value)
    return jax.nn.softmax(value * jnp.minimum(beta, LARGEST_SPREAD / jnp.maximum(spread, 1e-6)))


METHOD = Method(
    make,
    Config,
    family="dyna",
    paper="2007.01995",
    summary="MBPO with rollouts forward and backward from states of high value, and planned actions",
    tiny={
        **TINY_RUN,
        **TINY_ENSEMBLE,
        **TINY_BRANCHES,
        "agent.hidden": (16, 16),
        "backward_policy.hidden": (16,),
        "backward_length.last": 2,
        "backward_length.begins": 0,
        "backward_length.ends": 100,
        "horizon": 2,
        "candidates": 6,
    },
    goals=(
        # One of four seeds has not learned the task by then; MBPO's all have.
        Goal("bmpo-pendulum", "pendulum", 2000, -170.0, seeds_at_goal=3, about="small preset, reward learned"),
    ),
)
