"""Tasks with finitely many states: grids, and games on a board."""
