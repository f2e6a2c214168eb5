"""Tree search over discrete actions, with mctx (the extra `search`).

    search = tree_search.make(SearchConfig(method="puct", simulations=50))
    found = search(model, state, key, explore)          # action, statistics, tree
    policy = searching_policy(search, model, root, explore)

A `SearchModel` is a step and an evaluation: MuZero's networks, or a World (`in_world`) with a network or with playouts. The
search keeps to legal actions, to the sign of the values of two players (a negative discount), and ends at the end of an
episode: what the model returns after it is ignored.

mctx is imported when a search is made, and not with this package. A search compiles in about ten seconds.
"""

from jaxmbrl.planning.tree_search import uct
from jaxmbrl.planning.tree_search.model import (
    Node,
    Played,
    SearchModel,
    Step,
    begin,
    by_playouts,
    in_game,
    in_world,
    no_evaluation,
)
from jaxmbrl.planning.tree_search.search import (
    Found,
    GumbelConfig,
    PUCTConfig,
    Search,
    SearchConfig,
    Statistics,
    make,
    searching_policy,
)
from jaxmbrl.planning.tree_search.targets import Targets, targets
from jaxmbrl.planning.tree_search.uct import UCTConfig

__all__ = [
    "Found",
    "GumbelConfig",
    "Node",
    "PUCTConfig",
    "Played",
    "Search",
    "SearchConfig",
    "SearchModel",
    "Statistics",
    "Step",
    "Targets",
    "UCTConfig",
    "begin",
    "by_playouts",
    "in_game",
    "in_world",
    "make",
    "no_evaluation",
    "searching_policy",
    "targets",
    "uct",
]
