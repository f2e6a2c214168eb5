"""Tic-tac-toe: games of UCT against a perfect player and against a random one, for several numbers of simulations.

    python benchmarks/tic_tac_toe.py [--games 100] [--exploration C ...] [--simulations N ...] [--out benchmarks/results]

UCT begins in half of the games. The perfect player takes a random one of the moves with the best minimax value. No player
can beat it, so UCT is judged by its losses. Returns from -1 to 1 are rescaled to [0, 1] in the score, for which C = 0.71
is the constant of the theory; C = 0.35 is the same without rescaling. Rows of other settings in the file are kept.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from measure import provenance

from jaxmbrl.envs.games import tic_tac_toe as game
from jaxmbrl.planning import tree_search
from jaxmbrl.planning.tree_search import UCTConfig, in_game, no_evaluation

SIMULATIONS, EXPLORATION = (25, 100, 400, 1000, 2000), (0.35, 0.71)
Move = Callable[[np.ndarray, np.random.Generator], int]


def perfect(board: np.ndarray, rng: np.random.Generator) -> int:
    return int(rng.choice(game.best_cells(tuple(map(int, board)))))


def random(board: np.ndarray, rng: np.random.Generator) -> int:
    return int(rng.choice(np.flatnonzero(board == 0)))


def searcher(simulations: int, exploration: float) -> Callable[[np.ndarray, int], np.ndarray]:
    """(boards [G, 9], seed) -> the cells [G] that UCT takes."""
    config = UCTConfig(simulations=simulations, exploration=exploration, lowest=-1.0, highest=1.0, playout=game.CELLS)
    search = tree_search.uct.make(config, game.CELLS)
    model = in_game(game.play, game.legal, no_evaluation)
    # One by one: in a batch, each step of a descent would copy the trees of all boards.
    choose = jax.jit(lambda boards, keys: jax.lax.map(lambda of: search(model, *of, False).action, (boards, keys)))
    return lambda boards, seed: np.asarray(choose(boards, jax.random.split(jax.random.key(seed), len(boards))))


def outcomes(search: Callable[[np.ndarray, int], np.ndarray], opponent: Move, begins: bool, games: int) -> np.ndarray:
    """Results [G] of games for UCT: 1 a win, 0 a draw, -1 a loss."""
    rng = np.random.default_rng(games + begins)
    play = jax.jit(jax.vmap(game.play))
    boards, result, going = np.zeros((games, game.CELLS), np.int32), np.zeros(games), np.ones(games, bool)
    for turn in range(game.CELLS):
        own = (turn % 2 == 0) == begins
        if own:
            cells = search(boards, 100 * turn + begins)
        else:
            cells = np.array([opponent(board, rng) if on else 0 for board, on in zip(boards, going, strict=True)])
        after, reward, over = map(np.asarray, play(boards, cells))
        result = np.where(going, reward if own else -reward, result)
        boards, going = np.where(going[:, None], after, boards), going & ~over
    return result


def measured(simulations: int, exploration: float, games: int) -> dict[str, Any]:
    """Numbers of won, drawn and lost games against both opponents."""
    search, begun = searcher(simulations, exploration), time.perf_counter()
    found: dict[str, Any] = {"simulations": simulations, "exploration": exploration}
    for name, opponent in (("perfect", perfect), ("random", random)):
        results = np.concatenate([outcomes(search, opponent, begins, games // 2) for begins in (True, False)])
        found[name] = {what: int(np.sum(results == value)) for what, value in (("won", 1), ("drawn", 0), ("lost", -1))}
    return found | {"seconds": time.perf_counter() - begun}


def line(row: dict[str, Any]) -> str:
    """A row as text."""
    text = f"C = {row['exploration']:g}, {row['simulations']} simulations"
    for name in ("perfect", "random"):
        text += f"; {name} player: " + ", ".join(f"{number} {what}" for what, number in row[name].items())
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--games", type=int, default=100)
    parser.add_argument("--exploration", type=float, nargs="+", default=EXPLORATION, metavar="C")
    parser.add_argument("--simulations", type=int, nargs="+", default=SIMULATIONS, metavar="N")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "tic-tac-toe.json"
    for exploration in args.exploration:
        for simulations in args.simulations:
            row = measured(simulations, exploration, args.games)
            print(line(row), flush=True)
            kept = json.loads(file.read_text())["results"]["rows"] if file.exists() else []
            others = [of for of in kept if (of["exploration"], of["simulations"]) != (exploration, simulations)]
            rows = sorted([*others, row], key=lambda of: (of["exploration"], of["simulations"]))
            found = {"results": {"games": args.games, "rows": rows}, **provenance()}
            file.write_text(json.dumps(found, indent=1) + "\n")
    print(f"numbers  {file}")


if __name__ == "__main__":
    main()
