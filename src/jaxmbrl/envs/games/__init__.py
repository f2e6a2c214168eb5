"""Games of two players, for tree search. They are no tasks: their players take turns."""
