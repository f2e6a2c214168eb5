"""UCT: its score and visits by hand, playouts, and games of tic-tac-toe."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl.core.config import UserError, check
from jaxmbrl.envs.games import tic_tac_toe as game
from jaxmbrl.planning import tree_search
from jaxmbrl.planning.tree_search import SearchModel, Step, UCTConfig, in_game, no_evaluation, uct
from jaxmbrl.planning.tree_search.model import first_node, playout

GAME = in_game(game.play, game.legal, no_evaluation)


def of_root(tree):
    """For each node but the root, the action of the root that leads to it."""
    parents, actions = np.asarray(tree.parents[0]), np.asarray(tree.action_from_parent[0])
    found = np.zeros(len(parents), int)
    for node in range(1, len(parents)):
        found[node] = actions[node] if parents[node] == 0 else found[parents[node]]
    return found[1:]


def test_the_score_by_hand():
    found = uct.scores(jnp.array([2.0, 1.0, 0.0]), jnp.array([3, 2, 0]), jnp.array(5), 0.5**0.5)
    np.testing.assert_allclose(found, [2.131562, 2.294122, np.inf], rtol=1e-6)


def test_visits_of_two_arms():
    """Rewards 1 and 1/2 at the end of the episode: visits after 10, 100 and 1,000 simulations, in one tree."""
    rewards = jnp.array([1.0, 0.5])
    arms = SearchModel(lambda state, arm, key: Step(rewards[arm], jnp.zeros(()), state), no_evaluation)
    search = uct.make(UCTConfig(simulations=1000, playout=1), 2)
    found = jax.device_get(jax.jit(lambda key: search(arms, jnp.zeros(()), key, True))(jax.random.key(0)))
    first = of_root(found.tree) == 0
    assert [first[:n].sum() for n in (10, 100, 1000)] == [6, 80, 938]
    assert found.action == 0 and found.statistics.visits.tolist() == [938, 62]
    np.testing.assert_allclose(found.statistics.value, 0.969, rtol=1e-5)


def test_a_playout_has_the_sign_of_the_player_to_move():
    """One cell is free. It completes a line, or it does not; a game that is over is worth nothing."""
    boards = jnp.array([[1, 1, 0, -1, -1, 1, -1, 1, -1], [1, 0, -1, -1, -1, 1, 1, 1, -1]])

    def values(board, key):
        over = first_node(board)._replace(over=jnp.ones((), bool))
        return playout(GAME, first_node(board), key, 9, 9), playout(GAME, over, key, 9, 9)

    found, nothing = jax.jit(jax.vmap(values))(boards, jax.random.split(jax.random.key(0)))
    assert found.tolist() == [1.0, 0.0] and nothing.tolist() == [0.0, 0.0]
    # Two cells are free: the player to move wins in one of them, and the opponent after the other.
    two = jnp.broadcast_to(jnp.array([1, 1, 0, -1, -1, 0, -1, -1, 1]), (64, 9))
    found, _ = jax.jit(jax.vmap(values))(two, jax.random.split(jax.random.key(1), 64))
    assert set(found.tolist()) == {1.0, -1.0}


@pytest.mark.promises
def test_it_wins_and_prevents_a_loss():
    """The same program searches three boards: a line to complete, a line of the opponent to prevent, and the empty one."""
    boards = jnp.array([[1, 1, 0, -1, -1, 0, 0, 0, 0], [-1, -1, 0, 1, 0, 0, 0, 0, 0], [0] * 9])
    search = uct.make(UCTConfig(simulations=400, lowest=-1.0, playout=9), 9)
    run = jax.jit(jax.vmap(lambda board, key: search(GAME, board, key, False)))
    found = jax.device_get(run(boards, jax.random.split(jax.random.key(0), 3)))
    assert found.action[:2].tolist() == [2, 2]
    tree = found.tree
    assert tree.children_rewards[0, 0, 0, 2] == 1 and abs(found.statistics.value[2]) < 0.5
    assert not found.statistics.visits[np.asarray(boards) != 0].any()
    np.testing.assert_allclose(found.statistics.weights.sum(1), 1, rtol=1e-6)


def won(board):
    grid = board.reshape(3, 3)
    lines = [*grid, *grid.T, grid.diagonal(), grid[:, ::-1].diagonal()]
    return any((line == -1).all() for line in lines)


def test_the_game_and_its_values():
    """All positions from the empty board, played by the JAX functions and by NumPy."""
    positions, unseen = set(), [(0,) * 9]
    while unseen:
        board = unseen.pop()
        if board in positions:
            continue
        positions.add(board)
        cells = np.array(board)
        if not won(cells):
            for cell in np.flatnonzero(cells == 0):
                after = cells.copy()
                after[cell] = 1
                unseen.append(tuple((-after).tolist()))
    assert len(positions) == 5478 and game.minimax((0,) * 9) == 0
    known = {board for board in positions if not won(np.array(board)) and 0 in board}
    boards = np.array(sorted(known))
    after, reward, over = jax.device_get(jax.jit(jax.vmap(game.play))(boards, np.argmax(boards == 0, axis=1)))
    for board, successor, earned, ended in zip(boards, after, reward, over, strict=True):
        expected = board.copy()
        expected[np.flatnonzero(board == 0)[0]] = 1
        np.testing.assert_array_equal(successor, -expected)
        assert (earned == 1) == won(successor) and ended == (won(successor) or 0 not in successor)
        values = [-game.minimax(tuple(-np.where(np.arange(9) == cell, 1, board))) for cell in np.flatnonzero(board == 0)]
        assert game.minimax(tuple(board)) == max(values)
    assert game.best_cells((1, 1, 0, -1, -1, 0, 0, 0, 0)) == [2]


def test_the_drawing_shows_each_players_stones():
    empty, one, two = (game.draw(np.array(board)) for board in ([0] * 9, [-1] + [0] * 8, [1, -1] + [0] * 7))
    assert empty.shape == (240, 240, 3) and empty.dtype == np.uint8
    # The cross of the player who began stays where it is, and the second player's circle comes to its right.
    np.testing.assert_array_equal(one[:80, :80], two[:80, :80])
    assert (one[:80, :80] != empty[:80, :80]).any() and (two[:80, 80:160] != empty[:80, 80:160]).any()
    np.testing.assert_array_equal(two[90:], empty[90:])


def test_bounds_in_the_wrong_order_are_refused():
    with pytest.raises(UserError, match=r"highest must be above lowest \(1.0\), got 0.0"):
        check(UCTConfig(lowest=1.0, highest=0.0))


def test_a_search_by_playouts_has_no_other_evaluation():
    with pytest.raises(AssertionError, match="search it by playouts"):
        GAME.evaluate(first_node(game.start()), jax.random.key(0))
    assert tree_search.by_playouts(GAME, 9, 9).legal is game.legal


def test_equal_scores_do_not_depend_on_how_they_are_computed():
    """If the scores were compared with their maximum, none would be equal to it in this program: XLA computes it again,
    with other rounding. The first action would then be taken, which is illegal here."""
    board = jnp.array([1, -1, 0, 0, -1, 1, 0, 0, 0])
    search = uct.make(UCTConfig(simulations=60, lowest=-1.0, playout=9), 9)
    found = jax.device_get(jax.jit(lambda key: search(GAME, board, key, False))(jax.random.key(0)))
    visits = found.statistics.visits
    assert visits[np.asarray(board) != 0].sum() == 0 and visits.sum() == 60
