"""The floating-point type in which a method is tested."""

import contextlib

import jax

from jaxmbrl import algorithms


def of_method(name, settings):
    """A context of float64 if the method or its dynamics model needs it, and of float32 otherwise."""
    needed = algorithms.METHODS[name].needs_float64 or settings.get("dynamics") == "gp"
    return jax.enable_x64(True) if needed else contextlib.nullcontext()
