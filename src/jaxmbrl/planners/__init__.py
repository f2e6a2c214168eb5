"""Planners: an optimiser of action sequences over a World is a Policy."""
