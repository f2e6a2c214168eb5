"""Methods that optimise whole trajectories in local or probabilistic models."""
