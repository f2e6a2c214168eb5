"""Model-based reinforcement learning in JAX, end to end."""

__version__ = "0.1.0"
