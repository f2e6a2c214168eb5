"""Critic targets that look ahead through a model: MVE, STEVE."""
