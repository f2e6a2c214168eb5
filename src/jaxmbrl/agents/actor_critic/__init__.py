"""Off-policy actor-critics: SAC, TD3, MPO, and value gradients through a model."""
