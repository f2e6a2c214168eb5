"""Sweeps: many runs from one file, on one machine or many, and their states."""
