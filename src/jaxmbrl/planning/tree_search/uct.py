"""UCT: Monte Carlo tree search with upper confidence bounds (Kocsis and Szepesvari, Bandit based Monte-Carlo planning,
ECML 2006).

    repeat: select the child with the largest score down to an action without visits, each of which comes first;
            add the node to which it leads;  play random actions to the end;  add the return to W and 1 to N on the path
    play the most visited action

    score = W / N + 2 C sqrt(2 log(N of the parent) / N)

W is the sum of the returns through a node. C = 1 / sqrt(2) suits returns in [0, 1], so the returns are rescaled from
`lowest`, `highest` to it. A node's own playout counts among its visits; the root has none.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from annotated_types import Ge
from jaxtyping import Array, Float, Int

from jaxmbrl.core.types import Key, PyTree
from jaxmbrl.planning.tree_search.model import SearchModel, by_playouts
from jaxmbrl.planning.tree_search.search import Found, Search, Statistics, library, recurrent, root_of


@dataclass(frozen=True)
class UCTConfig:
    """Settings of the search."""

    simulations: Annotated[int, Ge(1)] = 100
    """Playouts, and nodes that are added to the root."""
    exploration: Annotated[float, Ge(0)] = 1 / math.sqrt(2)
    """C: weight of the confidence bound."""
    lowest: float = 0.0
    """Lowest return, which the score counts as 0."""
    highest: float = 1.0
    """Highest return, which the score counts as 1."""
    playout: Annotated[int, Ge(0)] = 100
    """Largest number of random actions in a playout."""

    def problem(self) -> tuple[str, str] | None:
        """(field, message) of the first violated rule that involves several fields, or None."""
        if self.highest <= self.lowest:
            return "highest", f"must be above lowest ({self.lowest}), got {self.highest}"
        return None


def make(config: UCTConfig, actions: int) -> Search:
    """UCT over `actions` actions. It replaces the model's evaluation by playouts. Of several actions with most visits, it
    takes the one with the largest mean return; the weights are the shares of visits. The search itself explores in the
    same way with and without `explore`. Raises UserError if mctx is missing."""
    mctx = library()

    def search(model: SearchModel, state: PyTree, key: Key, explore: bool) -> Found:
        root_key, search_key = jax.random.split(key)
        played = by_playouts(model, actions, config.playout)
        # The root has no playout of its own.
        root, invalid = root_of(mctx, played._replace(evaluate=_nothing(actions)), state, root_key)
        interior = functools.partial(select, config)
        found = mctx.search(
            (),
            search_key,
            root=root,
            recurrent_fn=recurrent(mctx, played),
            root_action_selection_fn=functools.partial(interior, depth=0),
            interior_action_selection_fn=interior,
            num_simulations=config.simulations,
            invalid_actions=invalid,
        )
        visits = found.children_visits[0, 0]
        means = found.qvalues(jnp.zeros(1, jnp.int32))[0]
        action = jnp.argmax(jnp.where(visits == jnp.max(visits), means, -jnp.inf)).astype(jnp.int32)
        weights = visits.astype(float) / config.simulations
        return Found(action, Statistics(weights, visits, jnp.sum(weights * means)), found)

    return search


def select(config: UCTConfig, key: Key, tree: Any, node: Int[Array, ""], depth: Any) -> Int[Array, ""]:
    """The action selected at `node` of an unbatched `mctx.Tree`: a random one of the largest score."""
    visits, logits = tree.children_visits[node], tree.children_prior_logits[node]
    means = (tree.qvalues(node) - config.lowest) / (config.highest - config.lowest)
    # mctx counts an evaluation of the root, too.
    parent = tree.node_visits[node] - (node == tree.ROOT_INDEX)
    score = scores(visits * means, visits, parent, config.exploration)
    # Noise decides between equal scores. A comparison with their maximum would not: XLA may compute it another time.
    noise = jax.random.uniform(key, score.shape)
    score = jnp.where(visits > 0, score + TIE * noise, FIRST * (1 + noise))
    legal = logits > jnp.finfo(logits.dtype).min
    return jnp.argmax(jnp.where(legal, score, -jnp.inf)).astype(jnp.int32)


TIE, FIRST = 1e-6, 1e9
"""Scale of the noise between equal scores, and the score of an action without visits."""


def scores(
    total: Float[Array, "A"], visits: Int[Array, "A"], parent: Int[Array, ""], exploration: float
) -> Float[Array, "A"]:
    """The upper confidence bounds of children with the sums of returns `total`; infinite for those without visits.

    >>> from jaxmbrl.planning.tree_search.uct import scores
    >>> found = scores(jnp.array([2.0, 1.0]), jnp.array([3, 2]), jnp.array(5), 0.5**0.5)
    >>> [round(float(score), 5) for score in found]
    [2.13156, 2.29412]
    """
    some = jnp.maximum(visits, 1)
    bound = 2 * exploration * jnp.sqrt(2 * jnp.log(jnp.maximum(parent, 1)) / some)
    return jnp.where(visits > 0, total / some + bound, jnp.inf)


def _nothing(actions: int) -> Any:
    return lambda node, key: (jnp.zeros(actions), jnp.zeros(()))
