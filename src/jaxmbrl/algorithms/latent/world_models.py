"""World Models: a linear controller of a learned model's code and memory, found by CMA-ES, also in the model's own dream
(Ha and Schmidhuber, arXiv 1803.10122).

    vision      variational autoencoder,  z_t ~ q(z | o_t)
    memory      LSTM with mixtures,       h_t from z_{t-1}, a_{t-1}, h_{t-1}
    controller  a_t = tanh(W [z_t, h_t] + b);  for discrete actions the choice with the largest entry of W [z_t, h_t] + b

    collect `warmup_steps` of random actions
    for each of `rounds`, `round_steps` apart:
        fit the vision to stored observations; encode all of them
        fit the memory to windows of codes, from which z is sampled anew in each batch
        dream: CMA-ES begins anew at its last mean; `generations` times it asks for controllers, each is played in `dreams`
               dreams of `dream_steps`, and CMA-ES is told minus their mean returns
    task: instead of dreams, each episode is played by a controller drawn from the generation; every `generation_steps`
          CMA-ES is told minus their mean returns

A dream begins with the code of a stored first observation. All controllers of a generation play the same dreams: the same
starts and random numbers. Evaluation plays the mean of the search distribution. A `temperature` above 1 makes dreams less
certain, which keeps the controller from using errors of the memory.

The model is `models.latent.mdn_rnn`. Differs from the paper and its code: the search minimises minus the return alone (the
code adds -0.01 times the mean square of the weights to what is minimised, which rewards large weights); in the task,
controllers are assigned to episodes at random, and those without a complete episode count as the worst.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from annotated_types import Ge, Gt
from jaxtyping import Array, Bool, Float

from jaxmbrl.agents import episode_trials
from jaxmbrl.agents.episode_trials import Trials
from jaxmbrl.agents.exploration import no_extras, with_gaussian_noise
from jaxmbrl.algorithms import shared
from jaxmbrl.algorithms.registry import TINY_RUN, Goal, Method
from jaxmbrl.algorithms.shared import LoopSettings, Windowed
from jaxmbrl.core import metrics
from jaxmbrl.core.config import Traced
from jaxmbrl.core.spaces import Discrete, Space, encoded_size
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
    Views,
)
from jaxmbrl.data import sequences
from jaxmbrl.data.sequences import Sequences
from jaxmbrl.models.latent import Belief, LatentView, MDNConfig, believing, by_successor, mdn_rnn, on_features
from jaxmbrl.models.latent.mdn_rnn import Parts
from jaxmbrl.nn import cma_es, optimizer
from jaxmbrl.nn.cma_es import CMAConfig, CMAState
from jaxmbrl.nn.optimizer import Trainable
from jaxmbrl.rollout import Return, planned_return, rollout

ENCODED = 256
"""Observations that are encoded at once."""


@dataclass(frozen=True)
class Config(Windowed, LoopSettings):
    """Settings of a run of World Models."""

    model: MDNConfig = field(default_factory=MDNConfig)
    """Vision and memory."""
    search: CMAConfig = field(default_factory=lambda: CMAConfig(population=64))
    """CMA-ES over the controller's parameters, from 0."""
    bias: bool = True
    """Whether the controller has b."""
    controller: Literal["dream", "task"] = "dream"
    """Where controllers are played: in the memory, or in the task itself."""
    train_every: Annotated[int, Ge(1)] = 50
    """Steps of each environment between two calls of `learn`."""
    rounds: Annotated[int, Ge(1)] = 1
    """Number of times that vision and memory are fitted: once after the random actions, and after further rows."""
    round_steps: Annotated[int, Ge(1)] = 10_000
    """Environment steps between two rounds; a multiple of `train_every` times `num_envs`."""
    vision_updates: Annotated[int, Ge(1)] = 100_000
    """Updates of the vision in a round."""
    vision_batch: Annotated[int, Ge(1)] = 100
    """Observations in each."""
    vision_rate: Annotated[float, Gt(0), Traced] = 1e-4
    """Learning rate of the vision."""
    memory_updates: Annotated[int, Ge(1)] = 4000
    """Updates of the memory in a round."""
    batch_size: Annotated[int, Ge(1)] = 100
    """Windows in each."""
    sequence_length: Annotated[int, Ge(1)] = 500
    """Consecutive rows of a window."""
    memory_rate: Annotated[float, Gt(0), Traced] = 1e-3
    """Learning rate of the memory."""
    clip: Annotated[float, Gt(0)] = 1.0
    """Bound of each entry of the memory's gradient."""
    generations: Annotated[int, Ge(1)] = 100
    """Generations of a search in the dream, in each round."""
    dreams: Annotated[int, Ge(1)] = 16
    """Dreams of each controller."""
    dream_steps: Annotated[int, Ge(1)] = 1000
    """Longest dream, in steps."""
    dream_reward: Literal["predicted", "one"] = "predicted"
    """Reward of a dream's step: the predicted one, or 1 for each step."""
    temperature: Annotated[float, Gt(0), Traced] = 1.0
    """Temperature of dreams."""
    generation_steps: Annotated[int, Ge(1)] = 100_000
    """Environment steps of a generation in the task; a multiple of `train_every` times `num_envs`, and at least (2 L - 1)
    times `num_envs` for episodes of L steps."""
    noise: Annotated[float, Ge(0)] = 0.1
    """Standard deviation of Gaussian noise that is added to collected continuous actions if controllers are played in the
    dream."""
    replay_capacity: Annotated[int, Ge(1)] = 1_000_000
    """Transitions in the replay buffer; the oldest are overwritten first."""

    def problem(self) -> tuple[str, str] | None:
        """(field, message) of the first violated rule that involves several fields, or None."""
        call = self.train_every * self.num_envs
        for name in ("round_steps", "generation_steps"):
            if getattr(self, name) % call:
                return name, f"must be a multiple of train_every * num_envs ({call}), got {getattr(self, name)}"
        return super().problem()


class State(NamedTuple):
    """The whole state of a run."""

    vision: Trainable
    memory: Trainable
    search: CMAState
    trials: PyTree
    """`Trials`; `()` if controllers are played in the dream."""
    replay: Sequences
    temperature: Float[Array, ""]
    key: Key


def make(config: Config, task: Task) -> Algorithm:
    """World Models on `task`, of vectors or images. `hyper` may hold `vision_rate`, `memory_rate`, `temperature`, traced.
    Raises UserError if controllers are played in the task and an episode may be too long for a generation."""
    parts = mdn_rnn.parts(config.model, task.observation, task.action)
    model = mdn_rnn.make(config.model, parts)
    shape = encoded_size(task.action), model.feature_size + config.bias
    clipped = optax.chain(optax.clip(config.clip), optax.scale_by_adam())
    in_task = config.controller == "task"
    if in_task:
        episode_trials.check_length(task, config.num_envs, config.generation_steps)

    def control(point: Float[Array, "n"]) -> Policy:
        return controlled(task.action, point.reshape(shape))

    def init(key: Key, hyper: Hyper, data: Transition | None = None) -> State:
        vision_key, memory_key, ask_key, key = jax.random.split(key, 4)
        traced = shared.traced_values(config, hyper)
        search = cma_es.init(config.search, jnp.zeros(math.prod(shape)))
        return State(
            vision=optimizer.init(parts.init_vision(vision_key), traced["vision_rate"]),
            memory=optimizer.init(parts.init_memory(memory_key), traced["memory_rate"], chain=clipped),
            search=search,
            trials=episode_trials.init(cma_es.ask(config.search, search, ask_key), config.num_envs) if in_task else (),
            replay=shared.new_sequences(config, task, data),
            temperature=traced["temperature"],
            key=key,
        )

    def policy(state: State, clock: Clock, explore: bool) -> Policy:
        params = {"vision": state.vision.params, "memory": state.memory.params}
        acting = control(state.search.mean)
        extras = no_extras
        if explore and in_task:
            acting, extras = episode_trials.playing(state.trials, control), episode_trials.not_tried
        elif explore and config.noise > 0:
            acting = with_gaussian_noise(acting, config.noise)
        acting = on_features(model, acting)
        return believing(model, params, shared.collector(acting, task, config, clock, extras) if explore else acting)

    def learn(clock: Clock, state: State, transitions: Transition) -> tuple[State, Metrics]:
        key, round_key, ask_key = jax.random.split(state.key, 3)
        buffer = sequences.add(state.replay, transitions)
        search, trials = state.search, state.trials
        told: Metrics = {}
        if in_task:
            played = episode_trials.score(state.trials, transitions)
            (search, trials), told = search_in_task(config, clock, search, played, ask_key)

        def one_round(learned: Any) -> tuple[Any, Metrics]:
            vision, memory, search, trials = learned
            vision_key, memory_key, search_key = jax.random.split(round_key, 3)
            vision, found = fit_vision(config, parts, vision, buffer, vision_key)
            coded = encoded(parts, vision.params, buffer)
            memory, more = fit_memory(config, parts, clipped, memory, coded, memory_key)
            if in_task:
                trials = episode_trials.following(trials, cma_es.ask(config.search, search, search_key))
                return (vision, memory, search, trials), found | more
            dreamt = partial(dream_return, config, parts, control, memory.params, state.temperature)
            search, dreams = search_in_dream(config, dreamt, coded, search, search_key)
            return (vision, memory, search, trials), found | more | dreams

        before = state.vision, state.memory, search, trials
        (vision, memory, search, trials), found = metrics.cond_update(due(config, clock), one_round, before)
        return State(vision, memory, search, trials, buffer, state.temperature, key), told | found

    def views(state: State) -> Views:
        params = {"vision": state.vision.params, "memory": state.memory.params}
        return Views(state.replay, latent=LatentView(model, params, task.action))

    return Algorithm(init, policy, learn, period=config.train_every, views=views, on_policy=in_task)


def due(config: Config, clock: Clock) -> Bool[Array, ""]:
    """Whether a round begins in this call of `learn`."""
    steps = shared.steps_after_warmup(config, clock)
    begins = steps % config.round_steps < config.train_every * config.num_envs
    return (steps >= 0) & begins & (steps < config.rounds * config.round_steps)


def controlled(action: Space, weights: Float[Array, "A F"]) -> Policy:
    """The controller with these weights, of features [F] or rows of them; the last column is b if there is one more."""

    def act(memory: Memory, features: Observation, key: Key) -> tuple[Action, PyTree, Memory]:
        size = features.shape[-1]
        output = features @ weights[:, :size].T + jnp.sum(weights[:, size:], axis=1)
        if isinstance(action, Discrete):
            return jnp.argmax(output, axis=-1).astype(jnp.int32), (), memory
        return jnp.tanh(output).reshape(*output.shape[:-1], *action.shape), (), memory

    return Policy(lambda key: (), act)


def fit_vision(config: Config, parts: Parts, vision: Trainable, buffer: Sequences, key: Key) -> tuple[Trainable, Metrics]:
    """The updates of the vision in a round, on stored observations."""

    def update(vision: Trainable, key: Key) -> tuple[Trainable, Metrics]:
        draw_key, loss_key = jax.random.split(key)
        rows = sequences.take(buffer, sequences.sample_slots(buffer, draw_key, config.vision_batch))
        loss = partial(mdn_rnn.vision_loss, config.model, parts)
        gradient, found = jax.grad(loss, has_aux=True)(vision.params, rows.observation, loss_key)
        return optimizer.step(vision, gradient)[0], found

    return metrics.repeat(jnp.asarray(config.vision_updates), update, vision, key)


def encoded(parts: Parts, vision: PyTree, buffer: Sequences) -> Sequences:
    """The buffer with the code of each observation, mean and log-variance, in its place."""
    envs, room = buffer.observations.shape[:2]
    rows = buffer.observations.reshape(-1, *buffer.observations.shape[2:])
    codes = jax.lax.map(partial(parts.code, vision), rows, batch_size=min(ENCODED, envs * room))
    return buffer._replace(observations=codes.reshape(envs, room, -1))


def fit_memory(
    config: Config, parts: Parts, chain: optax.GradientTransformation, memory: Trainable, coded: Sequences, key: Key
) -> tuple[Trainable, Metrics]:
    """The updates of the memory in a round, on windows of codes."""

    def update(memory: Trainable, key: Key) -> tuple[Trainable, Metrics]:
        draw_key, loss_key = jax.random.split(key)
        rows, is_first, _ = sequences.sample(coded, draw_key, config.batch_size, config.sequence_length)
        window = by_successor(rows, is_first, parts.action)
        loss = partial(mdn_rnn.memory_loss, config.model, parts)
        gradient, (_, found) = jax.grad(loss, has_aux=True)(memory.params, window, loss_key)
        return optimizer.step(memory, gradient, chain=chain)[0], found

    return metrics.repeat(jnp.asarray(config.memory_updates), update, memory, key)


def first_codes(coded: Sequences, key: Key, number: int) -> Float[Array, "number M"]:
    """Codes of stored first observations."""
    return sequences.take(coded, sequences.sample_starts(coded, key, number)).observation


def dream_return(
    config: Config,
    parts: Parts,
    control: Callable[[Float[Array, "n"]], Policy],
    memory: PyTree,
    temperature: Float[Array, ""],
    codes: Float[Array, "D M"],
    key: Key,
    point: Float[Array, "n"],
) -> Float[Array, ""]:
    """The mean return of the controller `control(point)` in dreams from first observations with these codes."""
    observe_key, start_key, rollout_key = jax.random.split(key, 3)
    count = codes.shape[0]
    sizes = 2 * config.model.units, config.model.size, encoded_size(parts.action)
    nothing = Belief(*(jnp.zeros((count, size)) for size in sizes))
    origin = mdn_rnn.observed(parts, memory, nothing, codes, observe_key)
    world = mdn_rnn.dream(config.model, parts, memory, temperature, 1.0 if config.dream_reward == "one" else None)
    start, zero = (world.start(origin, start_key), ()), Return.zero((count,))
    return jnp.mean(rollout(world, control(point), start, rollout_key, config.dream_steps, planned_return, zero)[1].total)


def search_in_dream(
    config: Config,
    dreamt: Callable[[Float[Array, "D M"], Key, Float[Array, "n"]], Float[Array, ""]],
    coded: Sequences,
    search: CMAState,
    key: Key,
) -> tuple[CMAState, Metrics]:
    """The generations of a round, a new search from the mean of the last one: the model has changed. `dreamt(codes, key,
    point)` is a controller's mean return in dreams; all controllers of a generation are given the same codes and the same
    key. The metrics are the mean return of a generation's points, over all generations, and that of the mean controller at
    the end of the round."""
    search = cma_es.init(config.search, search.mean)
    start_key, key = jax.random.split(key)
    starts = first_codes(coded, start_key, config.dreams * config.generations)
    dreams = starts.reshape(config.generations, config.dreams, -1)
    search_key, last_key = jax.random.split(key)
    keys = jax.random.split(search_key, config.generations)

    def generation(search: CMAState, given: tuple[Array, Key]) -> tuple[CMAState, Float[Array, ""]]:
        codes, key = given
        ask_key, dream_key = jax.random.split(key)
        points = cma_es.ask(config.search, search, ask_key)
        found = jax.vmap(partial(dreamt, codes, dream_key))(points)
        return cma_es.tell(config.search, search, points, -found), jnp.mean(found)

    search, means = jax.lax.scan(generation, search, (dreams, keys))
    final = dreamt(dreams[-1], last_key, search.mean)
    return search, {"policy/dreamt": Average.of(jnp.mean(means)), "policy/dreamt_at_end": Average.of(final)}


def search_in_task(
    config: Config, clock: Clock, search: CMAState, trials: Trials, key: Key
) -> tuple[tuple[CMAState, Trials], Metrics]:
    """The end of a generation in the task, if it is due, and the next generation."""

    def generation(searched: tuple[CMAState, Trials]) -> tuple[tuple[CMAState, Trials], Metrics]:
        search, trials = searched
        mean = episode_trials.mean_returns(trials)  # NaN, which counts as the worst, without an episode.
        search = cma_es.tell(config.search, search, trials.points, -mean)
        played = trials.episodes > 0
        best = jnp.max(jnp.where(played, mean, -jnp.inf))
        found = {"policy/best_of_generation": Average.of(best, played.any())}
        return (search, episode_trials.following(trials, cma_es.ask(config.search, search, key))), found

    steps, call = shared.steps_after_warmup(config, clock), config.train_every * config.num_envs
    ends = (steps >= config.generation_steps) & (steps % config.generation_steps < call)
    return metrics.cond_update(ends, generation, (search, trials))


METHOD = Method(
    make,
    Config,
    family="latent",
    paper="1803.10122",
    summary="a linear controller of a learned code and memory, found by CMA-ES in the dream of the memory",
    takes=("continuous actions", "discrete actions", "images"),
    tiny={
        **TINY_RUN,
        "batch_size": 4,
        "sequence_length": 6,
        "train_every": 10,
        "round_steps": 50,
        "rounds": 2,
        "generation_steps": 50,
        "vision_updates": 2,
        "vision_batch": 8,
        "memory_updates": 2,
        "generations": 2,
        "dreams": 3,
        "dream_steps": 4,
        "search.population": 4,
        "model.size": 4,
        "model.units": 5,
        "model.components": 2,
        "model.coder.units": 8,
    },
    goals=(
        Goal(
            "world-models-cartpole",
            "cartpole-continuous",
            5000,
            150.0,
            seeds_at_goal=3,
            about="small preset, trained in the dream only",
        ),
        Goal(
            "world-models-pixels-cartpole",
            "pixels/32,grey/cartpole-continuous",
            8000,
            150.0,
            seeds_at_goal=0,
            settings={"rounds": 12, "model.coder.units": 128, "replay_capacity": 10_000},
            about="from images of 32 x 32 pixels, small preset with twelve rounds",
        ),
    ),
)
