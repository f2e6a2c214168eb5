"""The floating-point type of all computations: JAX's float32, or float64 if it is turned on."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxmbrl.core.calling import FLOAT64
from jaxmbrl.core.config import UserError


def is_float64() -> bool:
    """Whether new arrays of floats have 64 bits."""
    return jax.dtypes.canonicalize_dtype(np.float64) == jnp.float64


def use_float64() -> None:
    """Turn float64 on for this process."""
    jax.config.update("jax_enable_x64", True)


def require_float64(what: str) -> None:
    """Raise UserError unless float64 is on. `what` names what needs it."""
    if not is_float64():
        raise UserError(
            f"{what} needs float64: add {FLOAT64} to the command, or in Python call "
            "jax.config.update('jax_enable_x64', True) before anything else"
        )


def check_same(run: str, was_float64: bool) -> None:
    """Raise UserError if a run was made in another floating-point type than this process computes in."""
    if was_float64 and not is_float64():
        require_float64(f"the run in {run}")
    if is_float64() and not was_float64:
        raise UserError(f"the run in {run} was made in float32, and float64 is on: leave {FLOAT64} out")
