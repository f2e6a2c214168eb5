"""Bridges between packages: environments of other packages as tasks, and our tasks as Gymnasium environments."""
