"""The floating-point type in which a method is tested."""

import contextlib

import jax

from jaxmbrl import algorithms


def of_method(name):
    """A context of float64 if the method needs it, and of float32 otherwise."""
    return jax.enable_x64(True) if algorithms.METHODS[name].needs_float64 else contextlib.nullcontext()
