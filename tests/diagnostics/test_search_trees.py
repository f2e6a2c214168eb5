"""The picture of a search tree: every node is drawn once, below its parent, with its numbers."""

from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure

from jaxmbrl.core.config import UserError
from jaxmbrl.diagnostics import plot_search_tree, tree_nodes
from jaxmbrl.diagnostics.search_trees import _layout

NONE = -1
PARENTS, ACTIONS = [NONE, 0, 0, 2, 2, 4], [NONE, 0, 1, 0, 1, 1]
VISITS, VALUES = [6, 1, 4, 1, 2, 1], [0.5, -1.0, 0.25, 1.0, 0.125, 0.0]
LOGITS = np.log([[0.25, 0.75]] * 6)


def tree(batch=2):
    """A batch of trees, of which the last is the one above, with room for another node."""

    def padded(values, fill):
        return np.stack([np.full(7, fill)] * (batch - 1) + [np.array([*values, fill])])

    logits = np.zeros((batch, 7, 2), np.float32)
    logits[-1, :6] = LOGITS
    visits = padded(VISITS, 0)
    visits[:-1, 0] = 1
    return SimpleNamespace(
        node_visits=visits,
        node_values=padded(VALUES, 0.0),
        parents=padded(PARENTS, NONE),
        action_from_parent=padded(ACTIONS, NONE),
        children_prior_logits=logits,
        children_discounts=np.ones((batch, 7, 2), np.float32),
        children_index=np.full((batch, 7, 2), NONE),
    )


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def test_the_nodes_of_a_tree():
    nodes = tree_nodes(tree(), item=1)
    assert nodes.parent.tolist() == PARENTS and nodes.action.tolist() == ACTIONS
    assert nodes.visits.tolist() == VISITS and nodes.value.tolist() == VALUES
    np.testing.assert_allclose(nodes.prior, [1, 0.25, 0.75, 0.25, 0.75, 0.75], rtol=1e-6)


def test_nodes_after_the_end_of_an_episode_are_left_out():
    """The step to node 2 ends the episode. Its visits stay, and the nodes below it go."""
    ended = tree()
    ended.children_discounts[1, 0, 1] = 0
    nodes = tree_nodes(ended, item=1)
    assert nodes.parent.tolist() == [-1, 0, 0] and nodes.visits.tolist() == [6, 1, 4]
    ended.children_discounts[1] = 1
    ended.children_discounts[1, 0, 0] = 0
    ended.parents[1, 2] = 0
    assert len(tree_nodes(ended, item=1).visits) == 6, "the end at node 1 has no nodes below it"
    ended.children_discounts[1, 2, 0] = 0
    ended.parents[1, 4] = 3
    nodes = tree_nodes(ended, item=1)
    assert nodes.parent.tolist() == [-1, 0, 0, 2] and nodes.visits.tolist() == [6, 1, 4, 1]


def test_every_node_is_drawn_with_its_numbers():
    figure = plot_search_tree(tree(), item=1, actions=("left", "right"))
    assert isinstance(figure, Figure)
    axes = figure.axes[0]
    found = texts(figure)
    assert found.count("left") == 2 and found.count("right") == 3 and len(axes.lines) == 5
    assert sorted(int(text) for text in found if text.isdigit()) == sorted(VISITS)
    for value, prior in zip(VALUES[1:], (0.25, 0.75, 0.25, 0.75, 0.75), strict=True):
        assert f"v {value:.2g}\np {prior:.2g}" in found
    assert "v 0.5" in found, "the root has no prior"
    assert sorted(axes.collections[0].get_array()) == sorted(VALUES)
    assert axes.get_title(loc="left").startswith("6 nodes: ")


def test_parents_are_above_and_between_their_children():
    depth, across = _layout(tree_nodes(tree(), item=1), np.arange(6))
    assert [depth[node] for node in range(6)] == [0, 1, 1, 2, 2, 3]
    assert [across[node] for node in range(6)] == [0.75, 0.0, 1.5, 1.0, 2.0, 2.0]


def test_the_most_visited_nodes_are_shown_and_the_others_counted():
    figure = plot_search_tree(tree(), item=1, largest=3)
    assert sorted(int(text) for text in texts(figure) if text.isdigit() and text not in "01") == [2, 4, 6]
    assert figure.axes[0].get_title(loc="left").startswith("6 nodes, of which 3 are not shown: ")
    assert len(plot_search_tree(tree(), item=1, least_visits=5).axes[0].lines) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"item": 2}, "item must be from 0 to 1"),
        ({"actions": ("left",)}, "actions must be 2 names"),
        ({"largest": 0}, "largest must be at least 1"),
    ],
)
def test_wrong_arguments_are_told(changes, message):
    with pytest.raises(UserError, match=message):
        plot_search_tree(tree(), **changes)


def test_a_tree_without_a_batch_is_told():
    one = SimpleNamespace(node_visits=np.ones(3))
    with pytest.raises(UserError, match=r"node visits \[B, N\], got \[3\]"):
        plot_search_tree(one)
