"""What a tree search needs of a model, and two sources of it: a World, and playouts instead of a value function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxmbrl.core import tree
from jaxmbrl.core.types import Action, Carry, Key, Observation, PyTree, World

Discount = Float[Array, ""] | float


class Node(NamedTuple):
    """A state in the tree."""

    state: PyTree
    """A simulator's carry, rows of a learned World, or a latent."""
    over: Bool[Array, ""]
    """Whether the episode ended before or in this state. Then nothing is earned any more."""


class Step(NamedTuple):
    """The result of an action."""

    reward: Float[Array, ""]
    """For the player who acted."""
    discount: Float[Array, ""]
    """Factor of the successor's value: the discount factor, 0 if the episode ended, negative if the opponent moves next."""
    state: PyTree


class SearchModel(NamedTuple):
    """A model for one search, as functions of one item; the search batches them."""

    step: Callable[[PyTree, Action, Key], Step]
    """(state, action, key) -> step. It is also called after the end of an episode, where its result is ignored. A search
    calls it once for an action of a node: of a random step it knows one outcome."""
    evaluate: Callable[[Node, Key], tuple[Float[Array, "A"], Float[Array, ""]]]
    """(node, key) -> (prior logits of the actions, value for the player to move). The result is ignored if it is over."""
    legal: Callable[[PyTree], Bool[Array, "A"]] | None = None
    """state -> which actions are legal there; None if all are. At least one must be, unless the episode is over."""


class Played(NamedTuple):
    """State of a search in a World."""

    carry: Carry
    weight: Shaped[Array, "*rows"]
    """Probability that the episode of each row goes on; [] for a simulator."""


def in_world(
    world: World,
    evaluate: Callable[[Node, Key], tuple[Float[Array, "A"], Float[Array, ""]]],
    discount: Discount = 1.0,
) -> SearchModel:
    """A model whose state is `Played` in `world`: a simulator with its full state, or rows of a learned World.

    Reward and discount of an action are those expected over the rows whose episodes still go on. Time limits are ignored.
    """

    def step(state: Played, action: Action, key: Key) -> Step:
        carry, transition = world.step(state.carry, action, key)
        weight = state.weight * (1.0 - transition.terminated)
        total = jnp.sum(state.weight)
        # Rows that have ended are ignored, even if they are not finite.
        earned = jnp.sum(jnp.where(state.weight > 0, state.weight * transition.reward, 0.0))
        some = jnp.where(total > 0, total, 1.0)
        return Step(earned / some, discount * jnp.sum(weight) / some, Played(carry, weight))

    return SearchModel(step, evaluate)


def begin(world: World, origin: Any, key: Key, rows: tuple[int, ...] = ()) -> Played:
    """The state of a search in `world` from `origin`, the argument of `world.start`. `rows` is the shape of the world's
    rewards."""
    return Played(world.start(origin, key), jnp.ones(rows))


def in_game(
    play: Callable[[PyTree, Action], tuple[PyTree, Float[Array, ""], Bool[Array, ""]]],
    legal: Callable[[PyTree], Bool[Array, "A"]],
    evaluate: Callable[[Node, Key], tuple[Float[Array, "A"], Float[Array, ""]]],
) -> SearchModel:
    """A model of a game of two players who take turns and whose rewards sum to 0.

    `play(state, action)` returns (the state for the other player, the reward of the player who moved, whether the game is
    over), as in `envs.games.tic_tac_toe`.
    """

    def step(state: PyTree, action: Action, key: Key) -> Step:
        successor, reward, over = play(state, action)
        return Step(reward, jnp.where(over, 0.0, -1.0), successor)

    return SearchModel(step, evaluate, legal)


def no_evaluation(node: Node, key: Key) -> tuple[Float[Array, "A"], Float[Array, ""]]:
    """In place of an evaluation, for a search that evaluates nodes by playouts."""
    raise AssertionError("this model has no evaluation: search it by playouts")


def by_playouts(model: SearchModel, actions: int, length: int) -> SearchModel:
    """`model` with uniform priors, and the return of a playout as the value of a node: uniformly random legal actions until
    the episode ends, at most `length`."""

    def evaluate(node: Node, key: Key) -> tuple[Float[Array, "A"], Float[Array, ""]]:
        return jnp.zeros(actions), playout(model, node, key, actions, length)

    return model._replace(evaluate=evaluate)


def playout(model: SearchModel, node: Node, key: Key, actions: int, length: int) -> Float[Array, ""]:
    """The discounted return from `node`, for the player to move there, of at most `length` random legal actions."""

    def goes_on(loop: tuple[Any, ...]) -> Bool[Array, ""]:
        i, _, weight, _ = loop
        return (i < length) & (weight != 0)

    def play(loop: tuple[Any, ...]) -> tuple[Any, ...]:
        i, state, weight, total = loop
        action_key, step_key = jax.random.split(jax.random.fold_in(key, i))
        action = random_action(model, state, action_key, actions)
        step = model.step(state, action, step_key)
        return i + 1, step.state, weight * step.discount, total + weight * step.reward

    start = jnp.zeros((), jnp.int32), node.state, jnp.where(node.over, 0.0, 1.0), jnp.zeros(())
    return jax.lax.while_loop(goes_on, play, start)[-1]


def random_action(model: SearchModel, state: PyTree, key: Key, actions: int) -> Int[Array, ""]:
    """A uniformly random legal action."""
    if model.legal is None:
        return jax.random.randint(key, (), 0, actions, jnp.int32)
    return jax.random.categorical(key, jnp.where(model.legal(state), 0.0, -jnp.inf)).astype(jnp.int32)


def first_node(state: PyTree) -> Node:
    """The root of a search from `state`."""
    return Node(state, jnp.zeros((), bool))


def expand(
    model: SearchModel, node: Node, action: Action, key: Key
) -> tuple[Step, Node, Float[Array, "A"], Float[Array, ""]]:
    """(step, successor, its prior logits, its value). After the end of an episode, reward, discount and value are 0 and the
    state stays as it was, even if the model returns something that is not finite."""
    step_key, value_key = jax.random.split(key)
    step = model.step(node.state, action, step_key)
    reward, discount = (jnp.where(node.over, 0.0, x) for x in (step.reward, step.discount))
    successor = Node(tree.where(node.over, node.state, step.state), node.over | (discount == 0))
    logits, value = evaluated(model, successor, value_key)
    return Step(reward, discount, successor.state), successor, logits, value


def evaluated(model: SearchModel, node: Node, key: Key) -> tuple[Float[Array, "A"], Float[Array, ""]]:
    """(prior logits, value) of a node. Illegal actions have the least finite logit; a node that is over has the value 0."""
    logits, value = model.evaluate(node, key)
    if model.legal is not None:
        logits = only_legal(logits, model.legal(node.state))
    return jnp.where(node.over, 0.0, logits), jnp.where(node.over, 0.0, value)


def only_legal(logits: Float[Array, "A"], legal: Bool[Array, "A"]) -> Float[Array, "A"]:
    """`logits` less the largest legal one, and the least finite number for illegal actions."""
    least = jnp.finfo(logits.dtype).min
    return jnp.where(legal, logits - jnp.max(jnp.where(legal, logits, least)), least)


Root = Callable[[Observation, Key], PyTree]
"""(observation, key) -> the state from which a search begins."""
