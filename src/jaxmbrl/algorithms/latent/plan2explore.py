"""Plan2Explore: exploration by planning for the disagreement of a world model (Sekar et al., arXiv 2005.05960), on the
model and the agent of DreamerV3.

    bonus       r_e(f, a) = mean over entries of the standard deviation over K predictions of the next latent
    explorer    an actor-critic that maximises lambda returns of intrinsic r_e + extrinsic r in imagination; it collects
    task agent  an actor-critic that maximises those of the predicted reward in imagination; it is evaluated

    for each environment step:
        take the observation into the belief, act by the explorer (at random for the first `warmup_steps`)
        every `train_every` steps, `updates` times:
            sample windows, compute the beliefs, take one step on the losses of the model and of the K networks
            imagine from the beliefs with each actor, take one step on the losses of both agents

The task agent never acts while data are collected. It is zero-shot if the reward's head does not train the belief, either:
with `model.reward_gradient` false, as in the preset. With intrinsic 0 and extrinsic 1 model, explorer and collected data
are those of Dreamer, with the same random numbers.

Differs from the paper, whose model and agent are those of Dreamer V1: the networks predict the next latent from features
and the action taken there, and returns of both agents are divided by their scale.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge

from jaxmbrl.agents import imagined
from jaxmbrl.agents.imagined import Dreams, ImaginedConfig, ImaginedState
from jaxmbrl.algorithms import latent_settings, shared
from jaxmbrl.algorithms.latent_settings import RSSMSettings
from jaxmbrl.algorithms.registry import TINY_RUN, Goal, Method
from jaxmbrl.core.keys import beside
from jaxmbrl.core.types import Algorithm, Average, Clock, Hyper, Key, Metrics, Policy, PyTree, Task, Transition, Views
from jaxmbrl.data import sequences
from jaxmbrl.data.sequences import Sequences
from jaxmbrl.models.latent import LatentView, OneStepConfig, Window, believing, on_features, one_step, rssm
from jaxmbrl.nn import optimizer, rules
from jaxmbrl.nn.optimizer import Trainable


@dataclass(frozen=True)
class Config(RSSMSettings):
    """Settings of a run of Plan2Explore."""

    agent: ImaginedConfig = field(default_factory=lambda: ImaginedConfig(replay_value=0.0))
    """Actor and critic, of both agents."""
    one_step: OneStepConfig = field(default_factory=OneStepConfig)
    """The networks whose disagreement is the bonus."""
    intrinsic: Annotated[float, Ge(0)] = 1.0
    """Weight of the bonus in the explorer's reward."""
    extrinsic: Annotated[float, Ge(0)] = 0.0
    """Weight of the task's reward in the explorer's reward."""

    def problem(self) -> tuple[str, str] | None:
        """(field, message) of the first violated rule that involves several fields, or None."""
        if self.agent.replay_value > 0:
            return (
                "agent.replay_value",
                f"must be 0: the bonus of real steps is not computed, got {self.agent.replay_value}",
            )
        return super().problem()


class Parameters(NamedTuple):
    """What the loss is differentiated with respect to. Each agent's are (actor's, critic's)."""

    model: PyTree
    one_step: PyTree
    explorer: tuple[PyTree, PyTree]
    agent: tuple[PyTree, PyTree]


class Learned(NamedTuple):
    """What an update changes."""

    model: Trainable
    one_step: Trainable
    explorer: ImaginedState
    agent: ImaginedState


class State(NamedTuple):
    """The whole state of a run."""

    learned: Learned
    replay: Sequences
    key: Key


def make(config: Config, task: Task) -> Algorithm:
    """Plan2Explore on `task`. Its actions are continuous or discrete; its observations are vectors or images. `hyper` may
    hold `learning_rate` and `discount`, traced."""
    chain = rules.chain(config.optimizer)
    model = rssm.make(config.model, task.observation, task.action)
    networks = one_step.make(config.one_step, model, task.action)
    agent = imagined.make(config.agent, model.feature_size, task.action, chain)

    def init(key: Key, hyper: Hyper, data: Transition | None = None) -> State:
        model_key, explorer_key, key = jax.random.split(key, 3)
        one_key, agent_key = (beside(explorer_key, i) for i in (1, 2))
        rate = jnp.asarray(hyper.get("learning_rate", config.learning_rate), float)
        learned = Learned(
            optimizer.init(model.init(model_key), rate, chain=chain),
            optimizer.init(networks.init(one_key), rate, chain=chain),
            agent.init(explorer_key, hyper, rate),
            agent.init(agent_key, hyper, rate),
        )
        return State(learned, shared.new_sequences(config, task, data), key)

    def policy(state: State, clock: Clock, explore: bool) -> Policy:
        learned = state.learned
        acting = on_features(model, agent.policy(learned.explorer if explore else learned.agent, explore))
        if explore:
            acting = shared.collector(acting, task, config, clock)
        return believing(model, learned.model.params, acting)

    def losses(
        params: Parameters, learned: Learned, window: Window, key: Key
    ) -> tuple[Any, tuple[Dreams, Dreams, Metrics]]:
        model_key, root_key, explore_key = jax.random.split(key, 3)
        dream_key = beside(explore_key)
        loss, (beliefs, found) = model.loss(params.model, window, model_key)
        prediction = networks.loss(params.one_step, beliefs, window)
        origin, weight = imagined.roots(config.agent, beliefs, window, root_key)
        world, members = model.world(jax.lax.stop_gradient(params.model)), jax.lax.stop_gradient(params.one_step)
        curious = one_step.curious(world, networks, members, task.action, config.intrinsic, config.extrinsic)
        of_explorer, tried = agent.loss(*params.explorer, learned.explorer, curious, origin, weight, explore_key)
        of_agent, dreams = agent.loss(*params.agent, learned.agent, world, origin, weight, dream_key)
        return loss + prediction + of_explorer + of_agent, (
            tried,
            dreams,
            found | {"model/one_step": Average.of(prediction)},
        )

    def learn(clock: Clock, state: State, transitions: Transition) -> tuple[State, Metrics]:
        key, update_key = jax.random.split(state.key)
        buffer = sequences.add(state.replay, transitions)

        def update(learned: Learned, key: Key) -> tuple[Learned, Metrics]:
            window_key, loss_key = jax.random.split(key)
            window = latent_settings.draw(config, buffer, task.action, window_key)
            fitted, members, explorer, performer = learned
            pairs = ((who.actor.params, who.critic.params) for who in (explorer, performer))
            params = Parameters(fitted.params, members.params, *pairs)
            gradient, (tried, dreams, found) = jax.grad(losses, has_aux=True)(params, learned, window, loss_key)
            fitted, norm = optimizer.step(fitted, gradient.model, chain=chain)
            members, _ = optimizer.step(members, gradient.one_step, chain=chain)
            explorer, explored = agent.apply(explorer, gradient.explorer[0], gradient.explorer[1], tried)
            performer, improved = agent.apply(performer, gradient.agent[0], gradient.agent[1], dreams)
            explored = {name.replace("agent/", "explorer/"): value for name, value in explored.items()}
            found = found | explored | improved | {"model/gradient": Average.of(norm)}
            return Learned(fitted, members, explorer, performer), found

        learned, found = latent_settings.updates(config, clock, update, state.learned, update_key)
        return State(learned, buffer, key), found

    def views(state: State) -> Views:
        return Views(state.replay, latent=LatentView(model, state.learned.model.params, task.action))

    return Algorithm(init, policy, learn, period=config.train_every, views=views)


METHOD = Method(
    make,
    Config,
    family="latent",
    paper="2005.05960",
    summary="exploration of a latent world model by planning for its disagreement, with a zero-shot task policy",
    takes=("continuous actions", "discrete actions", "images"),
    tiny={
        **TINY_RUN,
        "batch_size": 4,
        "sequence_length": 6,
        "train_every": 2,
        "optimizer.warmup": 2,
        "updates": 1,
        "model.deter": 8,
        "model.blocks": 2,
        "model.hidden": 8,
        "model.groups": 2,
        "model.classes": 4,
        "model.units": 8,
        "model.bins": 5,
        "model.coder.units": 8,
        "one_step.heads": 2,
        "one_step.units": 4,
        "agent.horizon": 3,
        "agent.roots": 6,
        "agent.units": 8,
        "agent.layers": 1,
        "agent.bins": 5,
    },
    goals=(
        Goal(
            "plan2explore-pendulum",
            "pendulum",
            4000,
            -300.0,
            seeds=2,
            seeds_at_goal=0,
            about="small preset, explored without a reward",
        ),
    ),
)
