"""ALM, the aligned latent model: representation, latent model and policy learn from one lower bound of the return (Ghugare
et al., arXiv 2209.08466).

    representation   min  sum_{t<K} ( KL(m(.|z_t, a_t) || e'(.|s_{t+1})) - r(z_t, a_t) ) - Q(z_K, pi(z_K)),
                     z_0 ~ e(s_0),  z_{t+1} ~ m(.|z_t, a_t),  over encoder e and model m
    heads            min  (r(z, a) - reward)^2  +  cross-entropy of the classifier between z' ~ e'(s') and z' ~ m(.|z, a)
    critic           min  (Q_i(z, a) - y)^2,  y = reward + gamma (1 - terminated) min_i Q'_i(z', pi(z') + noise)
    actor            max  mean over t of gamma^t R_t,  the lambda returns of imagined trajectories in m, of r plus
                     `bonus` times the classifier's logit, with min_i Q_i

    for each environment step:
        sample a code of the observation, act with noise that falls over time (at random for the first `warmup_steps`)
        every `train_every` steps, `updates` times:
            update encoder and model on windows of K rows
            update heads, critics and actor on rows, whose codes are sampled from the slow encoder e'
            move slow encoder e' and target critics Q'

There is no decoder. The rewards and values in the first line let the representation prefer states with a large return; its
divergence keeps codes predictable. Heads and critics are constant there, and so is the action pi(z_K). The actor's actions
receive no gradient through Q itself, but through the codes that they lead to. The parts are `models.latent.aligned`.

Differs from the code of the paper: steps of a window after the end of an episode have no weight (there windows cross time
limits); the losses of one update share the sampled codes; the noise begins to fall after the warm-up.
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

from jaxmbrl.agents import noisy_actor
from jaxmbrl.agents.actor_critic.critics import critic_loss, regress, td_target
from jaxmbrl.agents.noisy_actor import NoisyActor
from jaxmbrl.algorithms import latent_settings, shared
from jaxmbrl.algorithms.latent_settings import WindowSettings
from jaxmbrl.algorithms.registry import TINY_RUN, Goal, Method
from jaxmbrl.core.config import Traced
from jaxmbrl.core.schedules import LinearSchedule
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
from jaxmbrl.models.latent import Window, aligned, continued, step_weights
from jaxmbrl.models.latent.aligned import AlignedConfig, Parts
from jaxmbrl.nn import optimizer, rules
from jaxmbrl.nn.optimizer import Trainable
from jaxmbrl.nn.rules import RuleConfig

sg = jax.lax.stop_gradient


@dataclass(frozen=True)
class Config(WindowSettings):
    """Settings of a run of ALM."""

    model: AlignedConfig = field(default_factory=AlignedConfig)
    """Encoder, model and heads."""
    hidden: tuple[Annotated[int, Ge(1)], ...] = (512, 512)
    """Units of each hidden layer of actor and critics. The critics' first layer has layer norm and tanh."""
    critics: Annotated[int, Ge(1)] = 2
    """Number of critics, of which the minimum is used."""
    bonus: Annotated[float, Ge(0)] = 0.1
    """Weight of the classifier's logit in the imagined reward."""
    horizon: Annotated[int, Ge(1)] = 3
    """Steps of an imagined trajectory."""
    mix: Annotated[float, Ge(0), Le(1)] = 0.95
    """lambda of the returns."""
    discount: Annotated[float, Ge(0), Le(1), Traced] = 0.99
    """Discount factor gamma."""
    target_rate: Annotated[float, Gt(0), Le(1)] = 0.005
    """Share by which slow encoder and target critics move in each update."""
    noise: LinearSchedule = field(default_factory=lambda: LinearSchedule(first=1.0, last=0.1, ends=100_000))
    """Standard deviation of the actions' noise over environment steps, in collecting and in losses."""
    noise_clip: Annotated[float, Gt(0)] = 0.3
    """Bound of the noise in losses."""
    learning_rate: Annotated[float, Gt(0), Traced] = 1e-4
    """Learning rate."""
    optimizer: RuleConfig = field(
        default_factory=lambda: RuleConfig("adam", epsilon=1e-8, parameter_clip=0.0, norm_clip=100.0, warmup=0)
    )
    """The rule of all updates. The gradients of encoder and model are limited together."""
    batch_size: Annotated[int, Ge(2)] = 512
    """Windows, and rows, in each update. The classifier is shown the predicted code of half of the rows."""
    sequence_length: Annotated[int, Ge(1)] = 3
    """K: rows of a window."""
    replay_capacity: Annotated[int, Ge(1)] = 100_000
    """Transitions in the replay buffer; the oldest are overwritten first."""


class Learned(NamedTuple):
    """What an update changes."""

    encoder: Trainable
    """e. Its `target` is the slow encoder e'."""
    model: Trainable
    """m."""
    heads: Trainable
    """Reward and classifier."""
    critics: Trainable
    """Leaves have the leading axis [critics]. Its `target` are the target critics."""
    actor: Trainable
    discount: Float[Array, ""]


class State(NamedTuple):
    """The whole state of a run."""

    learned: Learned
    replay: Sequences
    key: Key


def make(config: Config, task: Task) -> Algorithm:
    """ALM on `task`. Its actions are continuous, its observations vectors or images. `hyper` may hold `learning_rate` and
    `discount`, traced."""
    actions = action_size(task, "alm")
    parts = aligned.make(config.model, task.observation, actions)
    agent = noisy_actor.make(config.hidden, actions, config.noise_clip)
    chain, unclipped = rules.chain(config.optimizer), rules.chain(replace(config.optimizer, norm_clip=0.0))
    limit = config.optimizer.norm_clip

    def init(key: Key, hyper: Hyper, data: Transition | None = None) -> State:
        *keys, actor_key, key = jax.random.split(key, 6)
        encoder_key, model_key, heads_key, critic_key = keys
        rate, z = jnp.asarray(hyper.get("learning_rate", config.learning_rate), float), jnp.zeros(config.model.size)
        pair = jnp.zeros(config.model.size + actions)
        critics = jax.vmap(lambda key: agent.critic.init(key, pair))(jax.random.split(critic_key, config.critics))
        learned = Learned(
            encoder=optimizer.init(parts.init_encoder(encoder_key), rate, True, unclipped),
            model=optimizer.init(parts.init_model(model_key), rate, chain=unclipped),
            heads=optimizer.init(parts.init_heads(heads_key), rate, chain=chain),
            critics=optimizer.init(critics, rate, True, chain),
            actor=optimizer.init(agent.actor.init(actor_key, z), rate, chain=chain),
            discount=jnp.asarray(hyper.get("discount", config.discount), float),
        )
        return State(learned, shared.new_sequences(config, task, data), key)

    def noise_at(clock: Clock) -> Float[Array, ""]:
        return config.noise.at(shared.steps_after_warmup(config, clock))

    def policy(state: State, clock: Clock, explore: bool) -> Policy:
        encoder, actor = state.learned.encoder.params, state.learned.actor.params

        def act(memory: Memory, observation: Observation, key: Key) -> tuple[Action, PyTree, Memory]:
            code_key, noise_key = jax.random.split(key)
            action = agent.mean(actor, parts.encode(encoder, observation).sample(code_key))
            if explore:
                action += noise_at(clock) * jax.random.normal(noise_key, action.shape, action.dtype)
            return jnp.clip(action, -1.0, 1.0), (), memory

        acting = Policy(lambda key: (), act)
        return shared.collector(acting, task, config, clock) if explore else acting

    def learn(clock: Clock, state: State, transitions: Transition) -> tuple[State, Metrics]:
        key, update_key = jax.random.split(state.key)
        buffer, std = sequences.add(state.replay, transitions), noise_at(clock)

        def update_representation(learned: Learned, key: Key) -> tuple[Learned, Metrics]:
            window_key, loss_key = jax.random.split(key)
            window = latent_settings.draw(config, buffer, task.action, window_key)
            params = learned.encoder.params, learned.model.params
            loss = partial(representation_loss, parts, agent)
            gradient, found = jax.grad(loss, has_aux=True)(params, learned, window, std, loss_key)
            (of_encoder, of_model), norm = rules.limited(gradient, limit)
            encoder, _ = optimizer.step(learned.encoder, of_encoder, chain=unclipped)
            model, _ = optimizer.step(learned.model, of_model, chain=unclipped)
            return learned._replace(encoder=encoder, model=model), found | {"model/gradient": Average.of(norm)}

        def update(learned: Learned, key: Key) -> tuple[Learned, Metrics]:
            first_key, rest_key = jax.random.split(key)
            learned, found = update_representation(learned, first_key)
            slot_key, rest_key = jax.random.split(rest_key)
            rows = sequences.take(buffer, sequences.sample_slots(buffer, slot_key, config.batch_size))
            learned, more = improved(config, parts, agent, chain, learned, rows, std, rest_key)
            encoder, critics = (
                optimizer.move_target(part, config.target_rate) for part in (learned.encoder, learned.critics)
            )
            return learned._replace(encoder=encoder, critics=critics), found | more

        learned, found = latent_settings.updates(config, clock, update, state.learned, update_key)
        return State(learned, buffer, key), found

    def views(state: State) -> Views:
        return Views(state.replay, critic=critic_view(parts, agent, state.learned))

    return Algorithm(init, policy, learn, period=config.train_every, views=views)


def improved(
    config: Config,
    parts: Parts,
    agent: NoisyActor,
    chain: optax.GradientTransformation,
    learned: Learned,
    rows: Transition,
    std: Float[Array, ""],
    key: Key,
) -> tuple[Learned, Metrics]:
    """One update of heads, critics and actor on `rows` [B], whose codes are sampled from the slow encoder."""
    code_key, after_key, predict_key, head_key, noise_key, actor_key = jax.random.split(key, 6)
    slow, actor = learned.encoder.target, learned.actor.params
    z = parts.encode(slow, rows.observation).sample(code_key)
    after = parts.encode(slow, rows.next_observation).sample(after_key)
    predicted = parts.predict(learned.model.params, z, rows.action).sample(predict_key)

    of_heads = jax.grad(partial(heads_loss, parts), has_aux=True)
    gradient, found = of_heads(learned.heads.params, z, rows.action, rows.reward, after, predicted, head_key)
    heads, _ = optimizer.step(learned.heads, gradient, chain=chain)

    value = agent.value(learned.critics.target, after, agent.sample(actor, after, std, noise_key))
    critics, of_critic, _ = regress(
        learned.critics,
        lambda params: agent.values(params, z, rows.action),
        td_target(rows.reward, learned.discount, rows.terminated, value),
        loss=lambda *given: critic_loss(*given) / config.critics,
        chain=chain,
    )

    dream = aligned.world(parts, learned.model.params, heads.params, config.bonus)
    of_actor = jax.grad(partial(noisy_actor.actor_loss, agent, config.horizon, config.mix), has_aux=True)
    gradient, more = of_actor(actor, critics.params, dream, z, std, learned.discount, actor_key)
    after_step, _ = optimizer.step(learned.actor, gradient, chain=chain)
    return learned._replace(heads=heads, critics=critics, actor=after_step), found | of_critic | more


def representation_loss(
    parts: Parts,
    agent: NoisyActor,
    params: tuple[PyTree, PyTree],
    learned: Learned,
    window: Window,
    std: Float[Array, ""],
    key: Key,
) -> tuple[Float[Array, ""], Metrics]:
    """(the loss of `params`, those of encoder and model, on a window; metrics). The rest of `learned` is constant."""
    encoder, model = params
    code_key, step_key, act_key = jax.random.split(key, 3)
    z = parts.encode(encoder, window.observation[:, 0]).sample(code_key)
    by_time = (jnp.swapaxes(x[:, 1:], 0, 1) for x in (window.action, window.observation))
    steps = window.reward.shape[1] - 1

    def step(z: Array, given: tuple[Array, ...]) -> tuple[Array, tuple[Array, Array]]:
        action, seen, key = given
        predicted = parts.predict(model, z, action)
        divergence = predicted.divergence(parts.encode(learned.encoder.target, seen))
        return predicted.sample(key), (divergence, parts.reward(learned.heads.params, z, action))

    z, (divergence, reward) = jax.lax.scan(step, z, (*by_time, jax.random.split(step_key, steps)))
    action = sg(agent.sample(learned.actor.params, z, std, act_key))
    value = agent.value(learned.critics.params, z, action)
    weight, last = step_weights(window), continued(window)[:, -1]
    loss = jnp.mean(jnp.sum(weight * (divergence - reward).T, axis=1) - last * value)
    found = {"divergence": jnp.sum(weight * divergence.T) / jnp.sum(weight), "loss": loss}
    return loss, {f"model/{name}": Average.of(x) for name, x in found.items()}


def heads_loss(
    parts: Parts,
    heads: PyTree,
    z: Float[Array, "B Z"],
    action: Float[Array, "B A"],
    reward: Float[Array, "B"],
    after: Float[Array, "B Z"],
    predicted: Float[Array, "B Z"],
    key: Key,
) -> tuple[Float[Array, ""], Metrics]:
    """(the loss of reward and classifier, metrics). A random half of the rows shows the classifier the code that was
    `predicted`, the others that of the real successor. Of an odd number the larger half weighs no more than the other: a
    classifier that sees no difference has logit 0. There must be at least two rows."""
    batch, shown = reward.shape[0], reward.shape[0] // 2
    fake = jax.random.permutation(key, jnp.arange(batch) < shown)
    logit = parts.realness(heads, z, action, jnp.where(fake[:, None], predicted, after))
    weight = batch / 2 / jnp.where(fake, shown, batch - shown)
    classifier = jnp.mean(weight * jax.nn.softplus(jnp.where(fake, logit, -logit)))
    of_reward = jnp.mean((parts.reward(heads, z, action) - reward) ** 2)
    return of_reward + classifier, {"model/reward": Average.of(of_reward), "model/classifier": Average.of(classifier)}


def critic_view(parts: Parts, agent: NoisyActor, learned: Learned) -> CriticView:
    """The policy without noise and the least value, as functions of observations."""

    def act(memory: Memory, observation: Observation, key: Key) -> tuple[Action, PyTree, Memory]:
        action = agent.mean(learned.actor.params, parts.encode(learned.encoder.params, observation).sample(key))
        return action, jnp.zeros(action.shape[:-1]), memory

    def action_value(observation: Observation, action: Action, key: Key) -> Float[Array, "N"]:
        return agent.value(learned.critics.params, parts.encode(learned.encoder.target, observation).sample(key), action)

    def value(observation: Observation, key: Key) -> Float[Array, "N"]:
        act_key, value_key = jax.random.split(key)
        return action_value(observation, act((), observation, act_key)[0], value_key)

    return CriticView(Policy(lambda key: (), act), action_value, value, learned.discount)


METHOD = Method(
    make,
    Config,
    family="latent",
    paper="2209.08466",
    summary="representation, latent model and policy from one lower bound of the return, without a decoder",
    takes=("continuous actions", "images"),
    tiny={
        **TINY_RUN,
        "batch_size": 8,
        "train_every": 2,
        "hidden": (8, 8),
        "model.size": 4,
        "model.coder.units": 8,
        "model.model_units": 8,
        "model.head_units": 8,
    },
    goals=(
        Goal("alm-pendulum", "pendulum", 10_000, -250.0, seeds_at_goal=3, about="small preset"),
        Goal(
            "alm-half-cheetah",
            "HalfCheetah-v5",
            20_000,
            0.0,
            seeds=2,
            seeds_at_goal=0,
            episodes=10,
            preset="paper",
            settings={
                "model.coder.units": 256,
                "model.model_units": 256,
                "model.head_units": 256,
                "hidden": (256, 256),
                "batch_size": 128,
                "replay_capacity": 20_000,
                "epoch_steps": 2000,
                "eval_every": 0,
            },
            about="paper preset with 256 units and batches of 128",
        ),
    ),
)
