"""Off-policy actor-critics: SAC, TD3, and value gradients through a model."""
