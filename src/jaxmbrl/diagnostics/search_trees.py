"""A picture of a search tree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxmbrl.core.config import UserError
from jaxmbrl.training.run_folder import new_figure

INK, FAINT = "#20242c", "#9aa1ad"
WIDTH, HEIGHT = 0.66, 0.95
"""Inches of a leaf, and between two depths."""


class TreeNodes(NamedTuple):
    """The nodes of one search, in the order in which they were added; the first is the root."""

    parent: Int[np.ndarray, "N"]
    action: Int[np.ndarray, "N"]
    """The action that leads to each node; -1 for the root."""
    visits: Int[np.ndarray, "N"]
    """Number of simulations through each node, its own evaluation included."""
    value: Float[np.ndarray, "N"]
    """Mean value of each node, for the player to move there."""
    prior: Float[np.ndarray, "N"]
    """Prior probability of the action that leads to each node; 1 for the root."""


def tree_nodes(tree: Any, item: int = 0) -> TreeNodes:
    """The nodes of the search number `item` of the batch in a `mctx.Tree`, such as `Found.tree`. Nodes that repeated visits
    added after the end of an episode are left out. Raises UserError if there is no such search."""
    visits = np.asarray(tree.node_visits)
    if visits.ndim != 2:
        raise UserError(f"give the tree of one search or of a batch, with node visits [B, N], got {list(visits.shape)}")
    if not 0 <= item < len(visits):
        raise UserError(f"item must be from 0 to {len(visits) - 1}, the searches of the batch, got {item}")
    parents, actions = np.asarray(tree.parents)[item], np.asarray(tree.action_from_parent)[item]
    ends = np.asarray(tree.children_discounts)[item, parents, actions] == 0
    kept = visits[item] > 0
    for node in range(1, len(kept)):
        # Parents come before their children.
        kept[node] &= kept[parents[node]] and (parents[node] == 0 or not ends[parents[node]])
    used = np.flatnonzero(kept)
    renumbered = np.cumsum(kept) - 1
    parent, action = np.where(used > 0, renumbered[parents[used]], -1), actions[used]
    logits = np.asarray(tree.children_prior_logits, np.float64)[item]
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    prior = np.where(used > 0, shares[parents[used], action], 1.0)
    return TreeNodes(parent, action, visits[item][used], np.asarray(tree.node_values)[item][used], prior)


def plot_search_tree(
    tree: Any, item: int = 0, actions: Sequence[str] | None = None, largest: int = 60, least_visits: int = 1
) -> Any:
    """Plot the tree of a search: a disc for each node, with its number of visits, and beside it its value v and the prior p
    of its action. Discs and lines grow with the visits, and their colour is the value. The lines have the names of the
    actions, `actions`, or their numbers.

    `tree` is a `mctx.Tree`, such as `Found.tree`, and `item` the number of the search in its batch. At most the `largest`
    most visited nodes are shown, with at least `least_visits` visits each; the title says how many are left out. Raises
    UserError as `tree_nodes` does, if `actions` does not name each action, and if `largest` is below 1.
    """
    nodes, number = tree_nodes(tree, item), int(tree.children_index.shape[-1])
    if actions is not None and len(actions) != number:
        raise UserError(f"actions must be {number} names, one for each action, got {len(actions)}")
    if largest < 1:
        raise UserError(f"largest must be at least 1, got {largest}")
    shown = _most_visited(nodes, largest, least_visits)
    depth, across = _layout(nodes, shown)
    leaves, levels = max(across.values()) + 1, max(depth.values()) + 1
    figure = new_figure(max(4.5, WIDTH * leaves + 1.4), HEIGHT * levels + 0.9)
    axes = figure.add_subplot()
    low, high = float(nodes.value[shown].min()), float(nodes.value[shown].max())
    colors = _colors()
    share = nodes.visits / nodes.visits[0]
    for node in shown[1:]:
        parent = int(nodes.parent[node])
        ends = [across[parent], across[node]], [-depth[parent], -depth[node]]
        axes.plot(*ends, color=FAINT, linewidth=0.6 + 4 * share[node], zorder=1, solid_capstyle="round")
        named = str(nodes.action[node]) if actions is None else actions[nodes.action[node]]
        place = [0.42 * start + 0.58 * end for start, end in ends]
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
        axes.text(*place, named, fontsize=6.5, color=INK, ha="center", va="center", bbox=box, zorder=2)
    places = np.array([(across[node], -depth[node]) for node in shown])
    size = 150 + 260 * np.sqrt(share[shown])
    dots = axes.scatter(*places.T, s=size, c=nodes.value[shown], cmap=colors, edgecolors=INK, linewidths=0.7, zorder=3)
    dots.set_clim(*((low, high) if high > low else (low - 0.5, high + 0.5)))
    for node, (x, y) in zip(shown, places, strict=True):
        axes.text(x, y, f"{nodes.visits[node]}", fontsize=6.5, color=INK, ha="center", va="center", zorder=4)
        told = f"v {_short(nodes.value[node])}" + (f"\np {_short(nodes.prior[node])}" if node else "")
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0.3, "alpha": 0.85}
        axes.annotate(
            told, (x, y), (0, -11), textcoords="offset points", fontsize=6, color=INK, ha="center", va="top", bbox=box
        )
    left_out = len(nodes.visits) - len(shown)
    title = f"{len(nodes.visits)} nodes" + (f", of which {left_out} are not shown" if left_out else "")
    axes.set_title(f"{title}: visits in the discs, value v, prior p", fontsize=9, loc="left")
    axes.set(xlim=(-0.7, leaves - 0.3), ylim=(-levels + 0.35, 0.45))
    axes.set_axis_off()
    figure.colorbar(dots, ax=axes, label="value for the player to move", shrink=0.8, aspect=25)
    return figure


def _short(value: float) -> str:
    """Two digits; what is below a thousandth is 0."""
    return f"{round(float(value), 3) + 0.0:.2g}"


def _most_visited(nodes: TreeNodes, largest: int, least_visits: int) -> Int[np.ndarray, "M"]:
    """The most visited nodes, of equal ones the oldest, in their order. A node is never left in without its parent, which
    was visited at least as often and added before."""
    ranked = np.argsort(-nodes.visits, kind="stable")
    ranked = ranked[(nodes.visits[ranked] >= least_visits) | (ranked == 0)]
    return np.sort(ranked[:largest])


def _layout(nodes: TreeNodes, shown: Int[np.ndarray, "M"]) -> tuple[dict[int, int], dict[int, float]]:
    """(depth, place across) of each node: leaves side by side, in the order of the actions, and parents in the middle of
    their children."""
    children: dict[int, list[int]] = {int(node): [] for node in shown}
    for node in shown[1:]:
        children[int(nodes.parent[node])].append(int(node))
    depth, across, leaves = {0: 0}, dict[int, float](), 0
    unseen = [(0, False)]
    while unseen:
        node, ready = unseen.pop()
        below = sorted(children[node], key=lambda child: nodes.action[child])
        if not below:
            across[node], leaves = float(leaves), leaves + 1
        elif ready:
            across[node] = (across[below[0]] + across[below[-1]]) / 2
        else:
            depth |= dict.fromkeys(below, depth[node] + 1)
            unseen += [(node, True), *((child, False) for child in reversed(below))]
    return depth, across


def _colors() -> Any:
    """From orange for the least value over white to blue for the largest, light enough for dark text."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("value", ["#e8a07c", "#ffffff", "#8fb0e6"])
