"""Dreamer: an actor-critic that learns in the imagination of a latent world model (Hafner et al., DreamerV3, arXiv
2301.04104, and Dreamer V1, arXiv 1912.01603).

    model    mean over windows of  decoder + reward + continuation + dyn max(KL(sg q||p), 1) + 0.1 max(KL(q||sg p), 1)
    actor    maximises lambda returns of imagined trajectories, with an entropy bonus
    critic   predicts them

    for each environment step:
        take the observation into the belief, act by the actor on the belief (at random for the first `warmup_steps`)
        every `train_every` steps, `updates` times:
            sample `batch_size` windows of `sequence_length` rows and compute the belief at each position
            imagine `agent.horizon` steps with the actor from these beliefs
            take one step on the sum of the losses of model, actor and critic

The model is `models.latent.rssm`, the agent `agents.imagined`; their docstrings have the losses in full. One configuration
covers both papers: the recurrent unit, the latents and the actor's gradient are settings.

Differs from DreamerV3: windows begin with an empty belief, not with stored latents; evaluation takes the policy's mode;
the continuation's head predicts 1 - terminated, and the discount factor is multiplied afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge

from jaxmbrl.agents import imagined
from jaxmbrl.agents.exploration import with_gaussian_noise
from jaxmbrl.agents.imagined import Dreams, ImaginedConfig, ImaginedState
from jaxmbrl.algorithms import latent_settings, shared
from jaxmbrl.algorithms.latent_settings import RSSMSettings
from jaxmbrl.algorithms.registry import TINY_RUN, Goal, Method
from jaxmbrl.core.types import Algorithm, Average, Clock, Hyper, Key, Metrics, Policy, PyTree, Task, Transition, Views
from jaxmbrl.data import sequences
from jaxmbrl.data.sequences import Sequences
from jaxmbrl.models.latent import LatentView, Window, believing, on_features, rssm
from jaxmbrl.nn import optimizer, rules
from jaxmbrl.nn.optimizer import Trainable


@dataclass(frozen=True)
class Config(RSSMSettings):
    """Settings of a run of Dreamer."""

    agent: ImaginedConfig = field(default_factory=ImaginedConfig)
    """Actor and critic."""
    noise: Annotated[float, Ge(0)] = 0.0
    """Standard deviation of Gaussian noise that is added to collected continuous actions, in units of the action."""


class Parameters(NamedTuple):
    """What the loss is differentiated with respect to."""

    model: PyTree
    actor: PyTree
    critic: PyTree


class Learned(NamedTuple):
    """What an update changes."""

    model: Trainable
    agent: ImaginedState


class State(NamedTuple):
    """The whole state of a run."""

    learned: Learned
    replay: Sequences
    key: Key


def make(config: Config, task: Task) -> Algorithm:
    """Dreamer on `task`. Its actions are continuous or discrete; its observations are vectors or images. `hyper` may hold
    `learning_rate` and `discount`, traced."""
    chain = rules.chain(config.optimizer)
    model = rssm.make(config.model, task.observation, task.action)
    agent = imagined.make(config.agent, model.feature_size, task.action, chain)

    def init(key: Key, hyper: Hyper, data: Transition | None = None) -> State:
        model_key, agent_key, key = jax.random.split(key, 3)
        rate = jnp.asarray(hyper.get("learning_rate", config.learning_rate), float)
        fitted = optimizer.init(model.init(model_key), rate, chain=chain)
        return State(Learned(fitted, agent.init(agent_key, hyper, rate)), shared.new_sequences(config, task, data), key)

    def policy(state: State, clock: Clock, explore: bool) -> Policy:
        acting = on_features(model, agent.policy(state.learned.agent, explore))
        if explore:
            noisy = with_gaussian_noise(acting, config.noise) if config.noise > 0 else acting
            acting = shared.collector(noisy, task, config, clock)
        return believing(model, state.learned.model.params, acting)

    def losses(params: Parameters, state: ImaginedState, window: Window, key: Key) -> tuple[Any, tuple[Dreams, Metrics]]:
        model_key, root_key, dream_key = jax.random.split(key, 3)
        loss, (beliefs, found) = model.loss(params.model, window, model_key)
        origin, weight = imagined.roots(config.agent, beliefs, window, root_key)
        world = model.world(jax.lax.stop_gradient(params.model))
        in_dreams, dreams = agent.loss(params.actor, params.critic, state, world, origin, weight, dream_key)
        loss += in_dreams
        if config.agent.replay_value > 0:
            first_return = dreams.first_return.reshape(window.reward.shape)
            on_replay = agent.replay_loss(params.critic, state, model.features(beliefs), window, first_return)
            loss += config.agent.replay_value * on_replay
        return loss, (dreams, found)

    def learn(clock: Clock, state: State, transitions: Transition) -> tuple[State, Metrics]:
        key, update_key = jax.random.split(state.key)
        buffer = sequences.add(state.replay, transitions)

        def update(learned: Learned, key: Key) -> tuple[Learned, Metrics]:
            window_key, loss_key = jax.random.split(key)
            window = latent_settings.draw(config, buffer, task.action, window_key)
            fitted, actor_critic = learned.model, learned.agent
            params = Parameters(fitted.params, actor_critic.actor.params, actor_critic.critic.params)
            gradient, (dreams, found) = jax.grad(losses, has_aux=True)(params, actor_critic, window, loss_key)
            fitted, norm = optimizer.step(fitted, gradient.model, chain=chain)
            actor_critic, improved = agent.apply(actor_critic, gradient.actor, gradient.critic, dreams)
            return Learned(fitted, actor_critic), found | improved | {"model/gradient": Average.of(norm)}

        learned, found = latent_settings.updates(config, clock, update, state.learned, update_key)
        return State(learned, buffer, key), found

    def views(state: State) -> Views:
        return Views(state.replay, latent=LatentView(model, state.learned.model.params, task.action))

    return Algorithm(init, policy, learn, period=config.train_every, views=views)


METHOD = Method(
    make,
    Config,
    family="latent",
    paper="2301.04104",
    summary="an actor-critic that learns in the imagination of a recurrent latent world model",
    takes=("continuous actions", "discrete actions", "images"),
    tiny={
        **TINY_RUN,
        "batch_size": 4,
        "sequence_length": 6,
        "train_every": 2,
        "updates": 1,
        "optimizer.warmup": 2,
        "model.deter": 8,
        "model.blocks": 2,
        "model.hidden": 8,
        "model.groups": 2,
        "model.classes": 4,
        "model.units": 8,
        "model.bins": 5,
        "model.coder.units": 8,
        "agent.horizon": 3,
        "agent.roots": 6,
        "agent.units": 8,
        "agent.layers": 1,
        "agent.bins": 5,
    },
    goals=(
        Goal("dreamer-pendulum", "pendulum", 8000, -250.0, about="small preset, through the model's steps"),
        Goal(
            "dreamer-pendulum-reinforce",
            "pendulum",
            8000,
            -250.0,
            settings={"agent.gradient": "reinforce"},
            about="small preset, by log-probabilities",
        ),
        Goal(
            "dreamer-pixels-pendulum",
            "pixels/32,grey/pendulum",
            10_000,
            -250.0,
            seeds_at_goal=3,
            about="from images of 32 x 32 pixels, small preset",
        ),
        Goal(
            "dreamer-cartpole-v1", "CartPole-v1", 8000, 400.0, seeds=2, seeds_at_goal=0, episodes=20, about="small preset"
        ),
        Goal(
            "dreamer-dmc-cartpole-swingup",
            "dmc/cartpole-swingup",
            50_000,
            450.0,
            seeds=3,
            seeds_at_goal=3,
            episodes=30,
            settings={"agent.discount": 0.99, "epoch_steps": 5_000},
            action_repeat=2,
            about="small preset with a discount factor of 0.99, action repeat 2: 100,000 frames",
        ),
        Goal(
            "dreamer-dmc-cartpole-balance",
            "dmc/cartpole-balance",
            50_000,
            810.0,
            seeds=3,
            seeds_at_goal=2,
            episodes=30,
            settings={"agent.discount": 0.99, "epoch_steps": 5_000},
            action_repeat=2,
            about="small preset with a discount factor of 0.99, action repeat 2: 100,000 frames",
        ),
        Goal("dreamer-masked-pendulum", "masked/pendulum", 8000, -300.0, seeds=2, seeds_at_goal=2, about="small preset"),
    ),
)
