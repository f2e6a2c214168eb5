"""Learned schedules of hyperparameters: a controller that decides during whole runs of a method (AutoMBPO)."""
