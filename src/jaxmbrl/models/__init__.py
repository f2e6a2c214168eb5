"""Dynamics models: a fitted model is a `World`."""
