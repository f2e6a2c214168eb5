"""TD-MPC2: model-predictive control in a latent space without a decoder, with a policy prior and a terminal value (Hansen
et al., arXiv 2310.16828).

    model    z_0 = g(o_0),  z_{t+1} = f(z_t, a_t):  codes of softmax groups (SimNorm)
             sum_t decay^t ( 20 mse(z_{t+1}, sg g(o_{t+1})) + 0.1 CE(R(z_t, a_t), r_t) + 0.1 CE(Q(z_t, a_t), y_t) ) / H
             + cross-entropy of the termination at z_{t+1}
    target   y_t = r_t + gamma (1 - terminated_t) min over two of Q'(g(o_{t+1}), a),  a ~ prior
    prior    maximises Q(z_t, a) / S + eta H at the codes z_t of the model
    plan     argmax by MPPI of  sum_{t<H} gamma^t R(z_t, a_t) + gamma^H Q(z_H, prior(z_H))  from g(o), among samples and
             the prior's own sequences

    for each environment step:
        encode the observation, plan, take the first action with the noise of the plan (at random for the first
        `warmup_steps`, then `first_updates` updates at once)
        every `train_every` steps, `updates` times:
            sample `batch_size` windows of `sequence_length` rows; compute the targets
            take one step on the loss of model and Q-functions, with its gradient's norm limited
            take one step on the prior's loss, from the codes of before and the new Q-functions
            move the target Q-functions

The model is `models.latent.consistency`, prior and Q-functions are `agents.policy_prior`, the planner is `planning.mppi`;
their docstrings have the formulas in full.

Differs from the paper and its code: the terminal value is the mean of all Q-functions at the prior's action without noise,
in place of two random ones at a sample; steps after the end of an episode within a window have no weight; the number of
updates that follow the warm-up is a setting; the encoder of images has no random shifts; there is one task for each agent;
plans have as many iterations with 20 actions and more, where the code has two more (`planner.iterations`); the
termination is learned on all tasks.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import optax
from annotated_types import Ge, Gt, Le
from jaxtyping import Array, Float

from jaxmbrl.agents import policy_prior
from jaxmbrl.agents.exploration import no_extras, with_gaussian_noise
from jaxmbrl.agents.policy_prior import PolicyPrior, PriorConfig
from jaxmbrl.algorithms import latent_settings, shared
from jaxmbrl.algorithms.latent_settings import WindowSettings
from jaxmbrl.algorithms.registry import TINY_RUN, Goal, Method
from jaxmbrl.core.config import Traced
from jaxmbrl.core.types import (
    Action,
    Algorithm,
    Average,
    Clock,
    CriticView,
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
)
from jaxmbrl.data import sequences
from jaxmbrl.data.sequences import Sequences
from jaxmbrl.envs.base import action_size
from jaxmbrl.models.latent import (
    CoderConfig,
    ConsistencyConfig,
    LatentView,
    Window,
    believing,
    consistency,
    continued,
    on_features,
    repeated,
    step_weights,
)
from jaxmbrl.models.latent.consistency import Parts
from jaxmbrl.nn import networks, optimizer, rules
from jaxmbrl.nn.optimizer import Trainable
from jaxmbrl.nn.rules import RuleConfig
from jaxmbrl.planning import MPPIConfig, mppi, planning_policy, proposals_of

INITIAL_DEVIATION = 0.02
"""Standard deviation of all initial weights but those that are 0."""
ACTOR_EPSILON = 1e-5
"""Adam's epsilon for the prior."""
sg = jax.lax.stop_gradient


@dataclass(frozen=True)
class Config(WindowSettings):
    """Settings of a run of TD-MPC2."""

    model: ConsistencyConfig = field(
        default_factory=lambda: ConsistencyConfig(
            size=512,
            units=512,
            coder=CoderConfig(units=256, layers=1, symlog=False),
            consistency_scale=20.0,
            reward_scale=0.1,
            decoder_scale=0.0,
            bins=101,
            activation="mish",
            norm="layer",
        )
    )
    """The world model. `consistency_scale` is the weight of the mean squared error over a code's entries."""
    agent: PriorConfig = field(default_factory=PriorConfig)
    """Policy prior and Q-functions."""
    planner: MPPIConfig = field(
        default_factory=lambda: MPPIConfig(
            horizon=3,
            population=488,
            iterations=6,
            temperature=2.0,
            deviation=2.0,
            elites=64,
            min_deviation=0.05,
            drawn=True,
            smoothing=1.0,
        )
    )
    """The search."""
    proposals: Annotated[int, Ge(0)] = 24
    """Action sequences of the prior among the candidates of each iteration."""
    plan: bool = True
    """Whether actions are planned; otherwise the prior acts."""
    discount: Annotated[float, Ge(0), Le(1)] | None = None
    """Discount factor gamma; None for `discount_for` the task's episode length."""
    learning_rate: Annotated[float, Gt(0), Traced] = 3e-4
    """Learning rate."""
    encoder_rate: Annotated[float, Gt(0)] = 0.3
    """Learning rate of the encoder, as a multiple of the others'."""
    optimizer: RuleConfig = field(
        default_factory=lambda: RuleConfig("adam", epsilon=1e-8, parameter_clip=0.0, norm_clip=20.0, warmup=0)
    )
    """The rule of all updates."""
    batch_size: Annotated[int, Ge(1)] = 256
    """Windows in each update."""
    sequence_length: Annotated[int, Ge(1)] = 3
    """H: rows of a window, over which the model is unrolled."""
    first_updates: Annotated[int, Ge(1)] = 5000
    """Updates at the end of the warm-up; the paper makes as many as there are steps in it."""


class Parameters(NamedTuple):
    """What the loss of model and Q-functions is differentiated with respect to."""

    model: PyTree
    critics: PyTree


class Learned(NamedTuple):
    """What an update changes."""

    model: Trainable
    critics: Trainable
    """Leaves have the leading axis [critics]. Its `target` are the target Q-functions."""
    actor: Trainable
    """The policy prior."""
    scale: Float[Array, ""]
    """S, the scale of the values in the prior's loss."""


class State(NamedTuple):
    """The whole state of a run."""

    learned: Learned
    replay: Sequences
    key: Key


def discount_for(episode_length: int) -> float:
    """The discount factor for episodes of this length L: (L/5 - 1) / (L/5), at least 0.95 and at most 0.995.

    >>> from jaxmbrl.algorithms.latent.td_mpc2 import discount_for
    >>> [round(discount_for(length), 3) for length in (40, 200, 500, 1000)]
    [0.95, 0.975, 0.99, 0.995]
    """
    return min(max(1 - 5 / episode_length, 0.95), 0.995)


def make(config: Config, task: Task) -> Algorithm:
    """TD-MPC2 on `task`. Its actions are continuous, its observations vectors or images. `hyper` may hold `learning_rate`,
    traced."""
    discount = discount_for(task.episode_length) if config.discount is None else config.discount
    parts = consistency.parts(config.model, task.observation, task.action)
    model, planner = consistency.assemble(config.model, parts), mppi.make(config.planner, task.action)
    prior = policy_prior.make(config.agent, config.model.size, action_size(task, "td-mpc2"))
    # The gradients of model and Q-functions are limited together.
    limit, critic_chain = config.optimizer.norm_clip, rules.chain(replace(config.optimizer, norm_clip=0.0))
    model_chain = optax.chain(critic_chain, rules.scaled(dict.fromkeys(("encoder", "code"), config.encoder_rate)))
    actor_chain = rules.chain(replace(config.optimizer, epsilon=ACTOR_EPSILON))
    of_model = partial(model_loss, config.model, parts, prior, discount)
    of_actor = partial(policy_prior.actor_loss, prior, config.model.decay)

    def init(key: Key, hyper: Hyper, data: Transition | None = None) -> State:
        *keys, key = jax.random.split(key, 4)
        rate = jnp.asarray(hyper.get("learning_rate", config.learning_rate), float)
        drawn = (draw(key) for draw, key in zip((model.init, prior.init_critics, prior.init_actor), keys, strict=True))
        params, critics, actor = (networks.with_deviation(part, INITIAL_DEVIATION) for part in drawn)
        learned = Learned(
            optimizer.init(params, rate, chain=model_chain),
            optimizer.init(critics, rate, True, critic_chain),
            optimizer.init(actor, rate, chain=actor_chain),
            scale=jnp.ones(()),
        )
        return State(learned, shared.new_sequences(config, task, data), key)

    def policy(state: State, clock: Clock, explore: bool) -> Policy:
        params, critics, actor = (part.params for part in state.learned[:3])
        world, no_search = model.world(params), shared.no_search
        if config.plan:
            sampled = proposals_of(
                world, prior.policy(actor, True), partial(repeated, number=config.proposals), config.planner.horizon
            )
            acting = planning_policy(
                planner,
                world,
                partial(repeated, number=1),
                task.action,
                discount=discount,
                terminal_value=lambda belief: prior.value(actor, critics, belief.stoch),
                proposals=sampled if config.proposals > 0 else None,
            )
            noisy = with_gaussian_noise(acting, lambda plan: plan.deviation)
        else:
            acting = noisy = on_features(model, prior.policy(actor, explore))
            no_search = no_extras
        return believing(model, params, shared.collector(noisy, task, config, clock, no_search) if explore else acting)

    def learn(clock: Clock, state: State, transitions: Transition) -> tuple[State, Metrics]:
        key, update_key = jax.random.split(state.key)
        buffer = sequences.add(state.replay, transitions)

        def update(learned: Learned, key: Key) -> tuple[Learned, Metrics]:
            window_key, loss_key, actor_key = jax.random.split(key, 3)
            window = latent_settings.draw(config, buffer, task.action, window_key)
            params = Parameters(learned.model.params, learned.critics.params)
            gradient, (z, found) = jax.grad(of_model, has_aux=True)(params, learned, window, loss_key)
            gradient, norm = rules.limited(gradient, limit)
            fitted, _ = optimizer.step(learned.model, gradient.model, chain=model_chain)
            critics, _ = optimizer.step(learned.critics, gradient.critics, chain=critic_chain)
            gradient, (scale, improved) = jax.grad(of_actor, has_aux=True)(
                learned.actor.params, critics.params, learned.scale, sg(z), continued(window), actor_key
            )
            actor, _ = optimizer.step(learned.actor, gradient, chain=actor_chain)
            critics = optimizer.move_target(critics, config.agent.target_rate)
            found = found | improved | {"model/gradient": Average.of(norm)}
            return Learned(fitted, critics, actor, scale), found

        learned, found = latent_settings.updates(config, clock, update, state.learned, update_key, config.first_updates)
        return State(learned, buffer, key), found

    def views(state: State) -> Views:
        learned = state.learned
        latent = LatentView(model, learned.model.params, task.action) if config.model.decoder_scale > 0 else None
        return Views(state.replay, critic=critic_view(parts, prior, discount, learned), latent=latent)

    return Algorithm(init, policy, learn, period=config.train_every, views=views)


def model_loss(
    config: ConsistencyConfig,
    parts: Parts,
    prior: PolicyPrior,
    discount: float,
    params: Parameters,
    learned: Learned,
    window: Window,
    key: Key,
) -> tuple[Float[Array, ""], tuple[Float[Array, "B T Z"], Metrics]]:
    """(the loss of model and Q-functions, (the codes z_t of the model, metrics)). The targets are those of the encoder of
    `params`, and of the prior and the target Q-functions of `learned`."""
    target_key, value_key = jax.random.split(key)
    z, codes = consistency.rolled(parts, params.model, window)
    actor, target_critics = learned.actor.params, learned.critics.target
    reward, terminated, after = window.reward[:, 1:], window.terminated[:, 1:], sg(codes[:, 1:])
    y = policy_prior.target(prior, actor, target_critics, discount, reward, terminated, after, target_key)
    errors = consistency.errors(parts, params.model, z, codes, window)
    errors["consistency"] /= config.size
    errors["value"] = policy_prior.value_loss(prior, params.critics, z[:, :-1], window.action[:, 1:], y, value_key)
    scales = consistency.scales(config) | {"value": prior.config.value_scale}
    valid, decaying = (step_weights(window, decay) for decay in (1.0, config.decay))
    weight = dict.fromkeys(errors, decaying) | {"continuation": valid}
    losses = {name: scales[name] * jnp.sum(weight[name] * error) / jnp.sum(valid) for name, error in errors.items()}
    return sum(losses.values(), start=jnp.zeros(())), (z, {f"model/{name}": Average.of(x) for name, x in losses.items()})


def critic_view(parts: Parts, prior: PolicyPrior, discount: float, learned: Learned) -> CriticView:
    """The prior, sampled, and the mean of the Q-functions, as functions of observations."""
    params, critics, actor = (part.params for part in learned[:3])

    def act(memory: Memory, observation: Observation, key: Key) -> tuple[Action, PyTree, Memory]:
        action, _ = prior.sample(actor, parts.code(params, observation), key)
        return action, jnp.zeros(action.shape[:-1]), memory

    def action_value(observation: Observation, action: Action, key: Key) -> Float[Array, "N"]:
        return jnp.mean(prior.values(critics, parts.code(params, observation), action), axis=0)

    def value(observation: Observation, key: Key) -> Float[Array, "N"]:
        return action_value(observation, act((), observation, key)[0], key)

    return CriticView(Policy(lambda key: (), act), action_value, value, jnp.asarray(discount, float))


METHOD = Method(
    make,
    Config,
    family="latent",
    paper="2310.16828",
    summary="model-predictive control in a latent space, with a policy prior and a terminal value",
    takes=("continuous actions", "images"),
    tiny={
        **TINY_RUN,
        "batch_size": 8,
        "train_every": 2,
        "first_updates": 3,
        "model.size": 8,
        "model.group": 4,
        "model.units": 8,
        "model.bins": 5,
        "model.coder.units": 8,
        "agent.units": 8,
        "agent.bins": 5,
        "proposals": 2,
        "planner.population": 10,
        "planner.elites": 4,
        "planner.iterations": 2,
    },
    goals=(
        Goal("td-mpc2-pendulum", "pendulum", 5000, -200.0, episodes=30, about="small preset"),
        Goal(
            "td-mpc2-dmc-cartpole-swingup",
            "dmc/cartpole-swingup",
            25_000,
            600.0,
            seeds=3,
            seeds_at_goal=2,
            episodes=30,
            settings={"warmup_steps": 1000, "first_updates": 1000, "epoch_steps": 2500},
            action_repeat=2,
            about="small preset, action repeat 2: 50,000 frames",
        ),
    ),
)
