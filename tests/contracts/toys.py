"""Three methods that the package does not have, each on a task of its own: a table on integers, a recurrent policy that
learns on-policy, and a network on images that learns on sequences. They are registered as a user registers a method.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from annotated_types import Ge, Gt
from flax import linen as nn

from jaxmbrl import algorithms, envs
from jaxmbrl.agents.exploration import with_epsilon
from jaxmbrl.algorithms import Method, Preset
from jaxmbrl.algorithms.shared import no_data
from jaxmbrl.core import metrics
from jaxmbrl.core.config import Traced
from jaxmbrl.core.schedules import linear
from jaxmbrl.core.spaces import Box, Discrete
from jaxmbrl.core.types import Algorithm, Average, Clock, CriticView, Key, Policy, Transition, Views, flatten, row_like
from jaxmbrl.data import sequences
from jaxmbrl.data.sequences import Sequences
from jaxmbrl.envs.base import discrete_sizes, initial_state
from jaxmbrl.nn import optimizer
from jaxmbrl.nn.optimizer import Trainable

DISCOUNT = 0.9
MIX = 0.8
"""Lambda of the lambda-returns."""


# A table: Q-learning on a corridor.

CELLS = 6
LEFT, RIGHT = 0, 1


class Corridor:
    """Cells in a row. An episode starts in one of the first two; a step into the last one earns 1 and ends it."""

    def reset(self, rng: Key) -> Any:
        cell = jax.random.randint(rng, (), 0, 2, jnp.int32)
        return initial_state(cell, cell)

    def step(self, state: Any, action: Any) -> Any:
        cell = jnp.clip(state.pipeline_state + 2 * action - 1, 0, CELLS - 1)
        reached = (cell == CELLS - 1).astype(state.reward.dtype)
        return state.replace(pipeline_state=cell, obs=cell, reward=reached, done=reached)


def corridor_in_numpy(first: Any, actions: Any) -> tuple[Any, Any, Any]:
    """(next observations, rewards, terminated) of an episode from the observation `first` on."""
    cells = [int(first)]
    for action in actions:
        cells.append(min(max(cells[-1] + (1 if action == RIGHT else -1), 0), CELLS - 1))
    reached = np.array(cells[1:]) == CELLS - 1
    return np.array(cells[1:]), reached.astype(float), reached


def optimal_values() -> np.ndarray:
    """V* of each cell, by value iteration in float64; 0 for the last cell, where episodes end."""
    values = np.zeros(CELLS)
    for _ in range(CELLS + 1):
        for cell in range(CELLS - 1):
            steps = [corridor_in_numpy(cell, [action]) for action in (LEFT, RIGHT)]
            values[cell] = max(reward[0] + DISCOUNT * values[at[0]] for at, reward, _ in steps)
    return values


@dataclass(frozen=True)
class TableConfig:
    """Of Q-learning."""

    num_envs: Annotated[int, Ge(1)] = 2
    epoch_steps: Annotated[int, Ge(1)] = 96
    eval_every: Annotated[int, Ge(0)] = 1
    learning_rate: Annotated[float, Gt(0), Traced] = 0.5
    explore_steps: Annotated[int, Ge(1)] = 400
    """Environment steps in which epsilon falls from 1 to 0.1."""


class Table(NamedTuple):
    q: Any
    """[CELLS, 2]."""
    learning_rate: Any


def make_table(config: TableConfig, task: Any) -> Algorithm:
    """Watkins's Q-learning, epsilon-greedy."""
    sizes = discrete_sizes(task, "toy-table")
    optimum = jnp.asarray(optimal_values(), float)

    def init(key: Key, hyper: Any, data: Any) -> Table:
        no_data(data, "toy-table")
        q = jnp.zeros(sizes)
        return Table(q, jnp.asarray(hyper.get("learning_rate", config.learning_rate), float))

    def policy(state: Table, clock: Clock, explore: bool) -> Policy:
        def act(memory: Any, cell: Any, key: Key) -> Any:
            # Ties are drawn, or the first action would be the only one before anything has been learned.
            tied = state.q[cell] == jnp.max(state.q[cell])
            return jax.random.categorical(key, jnp.where(tied, 0.0, -jnp.inf)).astype(jnp.int32), (), memory

        greedy = Policy(lambda key: (), act)
        epsilon = linear(1.0, 0.1, config.explore_steps, clock.env_steps)
        return with_epsilon(greedy, task.action, epsilon) if explore else greedy

    def learn(clock: Clock, state: Table, transitions: Transition) -> Any:
        def step(q: Any, row: Transition) -> Any:
            value = jnp.where(row.terminated, 0.0, jnp.max(q[row.next_observation]))
            error = row.reward + DISCOUNT * value - q[row.observation, row.action]
            return q.at[row.observation, row.action].add(state.learning_rate * error), Average.of(jnp.abs(error))

        q, errors = jax.lax.scan(step, state.q, flatten(transitions))
        return state._replace(q=q), metrics.total({"table/error": errors}) | {"table/value": Average.of(jnp.mean(q))}

    def probes(state: Table) -> Any:
        def step(i: Any, at: Any) -> Any:
            cell, steps = at
            there = cell == CELLS - 1
            ahead = jnp.clip(cell + 2 * jnp.argmax(state.q[cell]) - 1, 0, CELLS - 1)
            return jnp.where(there, cell, ahead), steps + jnp.where(there, 0, 1)

        cell, steps = jax.lax.fori_loop(0, 2 * CELLS, step, (jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)))
        return {
            "table/steps_to_goal": Average.of(steps, cell == CELLS - 1),
            "table/value_error": Average.of(jnp.max(jnp.abs(jnp.max(state.q, axis=1) - optimum))),
        }

    return Algorithm(init, policy, learn, period=4, probes=probes)


# A recurrent policy, on-policy: proximal policy optimisation on a task of recall.

DELAY = 3
WAIT, FIRST, SECOND = range(3)


class Recall:
    """A cue of -1 or 1 is seen at the first step alone. From step DELAY on the second observation is 1, and an answer ends
    the episode: it earns 1 where it is the cue's, else -1. Earlier answers and waiting do nothing."""

    def reset(self, rng: Key) -> Any:
        cue = jnp.where(jax.random.bernoulli(rng), 1.0, -1.0)
        return initial_state(jnp.stack([cue, jnp.zeros(())]), jnp.stack([cue, jnp.zeros(())]))

    def step(self, state: Any, action: Any) -> Any:
        cue, elapsed = state.pipeline_state
        answers = (elapsed >= DELAY) & (action != WAIT)
        right = (action == SECOND) == (cue > 0)
        return state.replace(
            pipeline_state=jnp.stack([cue, elapsed + 1]),
            obs=jnp.stack([jnp.zeros(()), (elapsed + 1 >= DELAY).astype(float)]),
            reward=jnp.where(answers, jnp.where(right, 1.0, -1.0), 0.0),
            done=answers.astype(state.done.dtype),
        )


def recall_in_numpy(first: Any, actions: Any) -> tuple[Any, Any, Any]:
    """(next observations, rewards, terminated) of an episode from the observation `first` on."""
    steps = np.arange(len(actions))
    answers = (steps >= DELAY) & (actions != WAIT)
    rewards = answers * np.where((actions == SECOND) == (first[0] > 0), 1.0, -1.0)
    return np.stack([np.zeros(len(actions)), steps + 1 >= DELAY], axis=1), rewards, answers


@dataclass(frozen=True)
class RecurrentConfig:
    """Of the recurrent policy."""

    num_envs: Annotated[int, Ge(1)] = 4
    epoch_steps: Annotated[int, Ge(1)] = 512
    eval_every: Annotated[int, Ge(0)] = 1
    learning_rate: Annotated[float, Gt(0), Traced] = 0.02
    updates: Annotated[int, Ge(1)] = 4
    """Updates in each call of `learn`, all on the same rows."""
    clip: float = 0.2
    entropy_bonus: float = 0.01
    units: int = 12


class Recurrent(nn.Module):
    """A unit with one gate, and a policy and a value above it."""

    units: int
    actions: int

    @nn.compact
    def __call__(self, memory: Any, observation: Any) -> Any:
        """(memory after the observation, logits, value)."""
        gate, new = jnp.split(nn.Dense(2 * self.units)(jnp.concatenate([observation, memory], axis=-1)), 2, axis=-1)
        memory = memory + nn.sigmoid(gate) * (nn.tanh(new) - memory)
        heads = nn.Dense(self.actions + 1)(memory)
        return memory, heads[..., :-1], heads[..., -1]


class Acted(NamedTuple):
    """What the policy leaves with each action."""

    log_probability: Any
    memory: Any
    """Before the observation; fresh at an episode's first."""


class OnPolicy(NamedTuple):
    network: Trainable


def make_recurrent(config: RecurrentConfig, task: Any) -> Algorithm:
    """Proximal policy optimisation (Schulman et al., arXiv 1707.06347) of a recurrent policy, on all rows at once."""
    network = Recurrent(config.units, task.action.n)
    chain = optax.chain(optax.clip_by_global_norm(0.5), optax.scale_by_adam())
    fresh = jnp.zeros(config.units)

    def init(key: Key, hyper: Any, data: Any) -> OnPolicy:
        no_data(data, "toy-recurrent")
        params = network.init(key, fresh, task.observation.zeros())
        return OnPolicy(optimizer.init(params, hyper.get("learning_rate", config.learning_rate), chain=chain))

    def policy(state: OnPolicy, clock: Clock, explore: bool) -> Policy:
        def act(memory: Any, observation: Any, key: Key) -> Any:
            after, logits, _ = network.apply(state.network.params, memory, observation)
            action = (jax.random.categorical(key, logits) if explore else jnp.argmax(logits)).astype(jnp.int32)
            return action, Acted(jax.nn.log_softmax(logits)[action], memory), after

        return Policy(lambda key: fresh, act)

    def unroll(params: Any, rows: Transition) -> Any:
        """(log-probabilities [T, N, actions], values, values of the successors) along `rows` [T, N]."""
        ended = rows.terminated | rows.truncated
        # The memory that the policy left with the first row is fresh already where that row is an episode's first.
        is_first = jnp.concatenate([jnp.zeros_like(ended[:1]), ended[:-1]])

        def step(memory: Any, row: Any) -> Any:
            observation, successor, first = row
            memory, logits, value = network.apply(params, jnp.where(first[:, None], fresh, memory), observation)
            return memory, (jax.nn.log_softmax(logits), value, network.apply(params, memory, successor)[2])

        return jax.lax.scan(step, rows.extras.memory[0], (rows.observation, rows.next_observation, is_first))[1]

    def log_probability(logits: Any, rows: Transition) -> Any:
        return jnp.take_along_axis(logits, rows.action[..., None], axis=-1)[..., 0]

    def loss(params: Any, rows: Transition, advantage: Any, due: Any) -> Any:
        logits, value, _ = unroll(params, rows)
        ratio = jnp.exp(log_probability(logits, rows) - rows.extras.log_probability)
        clipped = jnp.clip(ratio, 1 - config.clip, 1 + config.clip)
        gain = jnp.minimum(ratio * advantage, clipped * advantage)
        entropy = -jnp.sum(jnp.exp(logits) * logits, axis=-1)
        return jnp.mean(-gain - config.entropy_bonus * entropy + 0.5 * (value - due) ** 2)

    def learn(clock: Clock, state: OnPolicy, transitions: Transition) -> Any:
        logits, value, successor = unroll(state.network.params, transitions)
        differs = jnp.abs(log_probability(logits, transitions) - transitions.extras.log_probability)
        due = lambda_returns(transitions, successor, (transitions.terminated | transitions.truncated).at[-1].set(True))
        advantage = due - value

        def update(network: Trainable, key: Any) -> Any:
            of, gradient = jax.value_and_grad(loss)(network.params, transitions, advantage, due)
            network, norm = optimizer.step(network, gradient, chain=chain)
            return network, {"recurrent/loss": Average.of(of), "recurrent/gradient_norm": Average.of(norm)}

        trained, found = metrics.repeat(jnp.asarray(config.updates), update, state.network, jax.random.key(0))
        return OnPolicy(trained), found | {"recurrent/recomputed": Average.of(jnp.max(differs))}

    return Algorithm(init, policy, learn, period=64, on_policy=True)


def lambda_returns(rows: Transition, successor: Any, seam: Any) -> Any:
    """Lambda-returns [T, N] along `rows` [T, N] with the values `successor` of what follows each: a termination is followed
    by nothing, and a row that the next one does not continue (`seam`) by the value alone."""

    def back(after: Any, row: Any) -> Any:
        reward, terminated, seam, value = row
        follows = jnp.where(seam, value, (1 - MIX) * value + MIX * after)
        target = reward + DISCOUNT * jnp.where(terminated, 0.0, follows)
        return target, target

    return jax.lax.scan(back, jnp.zeros(seam.shape[1]), (rows.reward, rows.terminated, seam, successor), reverse=True)[1]


# Images: Q-learning on sequences from a buffer.

BOARD, PIXELS = 8, 4
START, GOAL = 4, (4, 4)


def drawn(place: Any) -> Any:
    """The image [32, 32, 1] of a square at `place` (row, column) of the board."""
    lit = (jnp.arange(BOARD)[:, None] == place[0]) & (jnp.arange(BOARD) == place[1])
    return jnp.repeat(jnp.repeat(jnp.where(lit, 255, 0).astype(jnp.uint8), PIXELS, 0), PIXELS, 1)[..., None]


class Square:
    """A square on a board of 8 x 8 places, seen as an image. It moves up, down, left or right, and starts in one of the
    first 4 x 4 places; a step to the goal earns 1 and ends the episode."""

    def reset(self, rng: Key) -> Any:
        place = jax.random.randint(rng, (2,), 0, START, jnp.int32)
        return initial_state(place, drawn(place))

    def step(self, state: Any, action: Any) -> Any:
        place = jnp.clip(state.pipeline_state + jnp.array([(-1, 0), (1, 0), (0, -1), (0, 1)])[action], 0, BOARD - 1)
        reached = jnp.all(place == jnp.array(GOAL)).astype(state.reward.dtype)
        return state.replace(pipeline_state=place, obs=drawn(place), reward=reached, done=reached)


def place_in_numpy(image: Any) -> tuple[int, int]:
    """(row, column) of the square in an image; it is the only one, and whole."""
    lit = np.argwhere(np.asarray(image)[..., 0] == 255)
    assert image.shape == (32, 32, 1) and image.dtype == np.uint8 and len(lit) == PIXELS**2
    return tuple(int(x) for x in lit[0] // PIXELS)


def square_in_numpy(first: Any, actions: Any) -> tuple[Any, Any, Any]:
    """(next observations, rewards, terminated) of an episode from the observation `first` on."""
    place, images, reached = place_in_numpy(first), [], []
    for action in actions:
        move = ((-1, 0), (1, 0), (0, -1), (0, 1))[action]
        place = tuple(min(max(x + by, 0), BOARD - 1) for x, by in zip(place, move, strict=True))
        image = np.zeros((32, 32, 1), np.uint8)
        image[PIXELS * place[0] : PIXELS * (place[0] + 1), PIXELS * place[1] : PIXELS * (place[1] + 1)] = 255
        images.append(image)
        reached.append(place == GOAL)
    return np.stack(images), np.array(reached, float), np.array(reached)


@dataclass(frozen=True)
class ImageConfig:
    """Of Q-learning on images."""

    num_envs: Annotated[int, Ge(1)] = 2
    epoch_steps: Annotated[int, Ge(1)] = 96
    eval_every: Annotated[int, Ge(0)] = 1
    learning_rate: Annotated[float, Gt(0), Traced] = 3e-3
    replay_capacity: Annotated[int, Ge(32)] = 4000
    """Transitions in the buffer, of all environments."""
    batch_size: int = 16
    sequence_length: int = 8
    updates: int = 4
    """Updates in each call of `learn`."""
    explore_steps: Annotated[int, Ge(1)] = 1000
    """Environment steps in which epsilon falls from 1 to 0.1."""


class Seen(NamedTuple):
    network: Trainable
    sequences: Sequences
    key: Any


def make_image(config: ImageConfig, task: Any) -> Algorithm:
    """Q-learning with lambda-returns along sequences, by a linear layer on the pixels and its slowly moving copy."""
    network = nn.Dense(task.action.n, kernel_init=nn.initializers.zeros)
    columns = config.replay_capacity // config.num_envs

    def values(params: Any, image: Any) -> Any:
        """Q [..., actions] of images [..., H, W, C]."""
        return network.apply(params, image.reshape(*image.shape[:-3], -1).astype(float) / 255)

    def init(key: Key, hyper: Any, data: Any) -> Seen:
        no_data(data, "toy-image")
        key, network_key = jax.random.split(key)
        params = network.init(network_key, jnp.zeros(task.observation.zeros().size))
        rate = hyper.get("learning_rate", config.learning_rate)
        buffer = sequences.init(row_like(task), config.num_envs, columns, ends=columns // 16)
        return Seen(optimizer.init(params, rate, with_target=True), buffer, key)

    def greedy(params: Any, extras: Any = ()) -> Policy:
        def act(memory: Any, image: Any, key: Key) -> Any:
            q = values(params, image)
            tied = q == jnp.max(q)
            return jax.random.categorical(key, jnp.where(tied, 0.0, -jnp.inf)).astype(jnp.int32), extras, memory

        return Policy(lambda key: (), act)

    def policy(state: Seen, clock: Clock, explore: bool) -> Policy:
        acting = greedy(state.network.params)
        epsilon = linear(1.0, 0.1, config.explore_steps, clock.env_steps)
        return with_epsilon(acting, task.action, epsilon) if explore else acting

    def loss(params: Any, target: Any, rows: Transition, is_first: Any, valid: Any) -> Any:
        by_time, broken = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), (rows, is_first | ~valid))
        seam = jnp.concatenate([broken[1:], jnp.ones_like(broken[:1])])
        due = lambda_returns(by_time, jnp.max(values(target, by_time.next_observation), axis=-1), seam)
        q = jnp.take_along_axis(values(params, by_time.observation), by_time.action[..., None], axis=-1)[..., 0]
        return jnp.sum(0.5 * (due - q) ** 2 * valid.T) / jnp.sum(valid)

    def learn(clock: Clock, state: Seen, transitions: Transition) -> Any:
        key, update_key = jax.random.split(state.key)
        buffer = sequences.add(state.sequences, transitions)

        def update(network: Trainable, key: Key) -> Any:
            drawn = sequences.sample(buffer, key, config.batch_size, config.sequence_length)
            of, gradient = jax.value_and_grad(loss)(network.params, network.target, *drawn)
            network, _ = optimizer.step(network, gradient)
            return optimizer.move_target(network, 0.05), {"image/loss": Average.of(of)}

        trained, found = metrics.repeat(jnp.asarray(config.updates), update, state.network, update_key)
        return Seen(trained, buffer, key), found

    def views(state: Seen) -> Views:
        params = state.network.params
        critic = CriticView(
            policy=greedy(params, jnp.zeros(())),
            action_value=lambda image, action, key: jnp.take_along_axis(values(params, image), action[:, None], 1)[:, 0],
            value=lambda image, key: jnp.max(values(params, image), axis=-1),
            discount=jnp.asarray(DISCOUNT),
        )
        return Views(replay=state.sequences, critic=critic)

    return Algorithm(init, policy, learn, period=8, views=views)


class Toy(NamedTuple):
    """A method with its task."""

    method: Method
    task: Callable[[], Any]
    played: Callable[[Any, Any], tuple[Any, Any, Any]]
    """(first observation, actions) -> (next observations, rewards, terminated) of an episode, in NumPy."""
    is_start: Callable[[Any], bool]
    """Whether an observation can be an episode's first."""


def task(name: str, env: Any, steps: int, actions: int, observation: Any) -> Callable[[], Any]:
    """The factory of a task with that many actions."""
    return lambda: envs.make_task(name, env, steps, action=Discrete(actions), observation=observation)


TOYS = {
    "toy-table": Toy(
        Method(make_table, TableConfig, {"default": Preset(TableConfig(), "none", 960)}, summary="a table"),
        task("toy-table", Corridor(), 20, 2, Discrete(CELLS)),
        corridor_in_numpy,
        lambda cell: cell in (0, 1),
    ),
    "toy-recurrent": Toy(
        Method(make_recurrent, RecurrentConfig, {"default": Preset(RecurrentConfig(), "none", 10_240)}, summary="a memory"),
        task("toy-recurrent", Recall(), DELAY + 2, 3, Box((2,), -1.0, 1.0)),
        recall_in_numpy,
        lambda observation: abs(observation[0]) == 1 and observation[1] == 0,
    ),
    "toy-image": Toy(
        Method(make_image, ImageConfig, {"default": Preset(ImageConfig(), "none", 1920)}, summary="pixels"),
        task("toy-image", Square(), 24, 4, Box((BOARD * PIXELS, BOARD * PIXELS, 1), 0, 255, "uint8")),
        square_in_numpy,
        lambda image: max(place_in_numpy(image)) < START,
    ),
}
"""By the name of both the method and its task."""


@contextlib.contextmanager
def registered() -> Iterator[None]:
    """All toys, known as a user's methods and tasks are."""
    for name, toy in TOYS.items():
        envs.register(name, toy.task)
        algorithms.register(name, toy.method)
    try:
        yield
    finally:
        for name in TOYS:
            del algorithms.METHODS[name], envs.TASKS[name]
