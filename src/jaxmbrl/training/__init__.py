"""The loop that every algorithm runs in, and what surrounds it: checkpoints, metrics, evaluation, runs."""
