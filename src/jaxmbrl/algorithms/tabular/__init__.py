"""Learning in tables: Q-learning, planning with tabular models, and linear Dyna."""
