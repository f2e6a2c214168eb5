"""The training loop for every algorithm, with checkpoints, metrics, evaluation and run folders."""
