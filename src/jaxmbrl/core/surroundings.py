"""Environment variables of other libraries: which of them keep a run from working, and imports that wrong ones must not
break."""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from jaxmbrl.core.config import UserError

MEMORY_SHARE = ("XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_CLIENT_MEM_FRACTION")


def check() -> None:
    """Raise UserError if JAX does not compile, finds no device, or cannot read the variables of its memory. This
    initialises JAX's devices."""
    # The devices last: with a wrong variable JAX cannot start the GPU, and may continue on the CPU.
    problem = compiling_problem() or memory_problem() or device_problem()
    if problem is not None:
        raise UserError(problem)


def compiling_problem() -> str | None:
    """That JAX does not compile, in one line; None if it does."""
    if jax.config.jax_disable_jit:  # type: ignore[attr-defined]
        return "JAX_DISABLE_JIT (jax_disable_jit) is set, but runs are compiled programs: unset it"
    return None


def memory_problem() -> str | None:
    """What is wrong with the share of a GPU's memory that JAX shall reserve, in one line; None if nothing is."""
    if all(os.environ.get(name) for name in MEMORY_SHARE):
        return f"{' and '.join(MEMORY_SHARE)} are both set; unset the first"
    for name in MEMORY_SHARE:
        value = os.environ.get(name)
        try:
            right = not value or 0 < float(value) < math.inf
        except ValueError:
            right = False
        if not right:
            return f"{name} must be a number above 0, a share of the GPU's memory, got '{value}'; correct it or unset it"
    return None


def device_problem() -> str | None:
    """Why JAX finds no device, in one line, with what to do; None if it finds one."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError, ValueError) as error:
        asked = jax.config.jax_platforms  # type: ignore[attr-defined]
        reason = " ".join(str(error).split()).partition(" (set JAX_PLATFORMS")[0] or "no such platform is installed"
        if asked:
            advice = "unset JAX_PLATFORMS, or install JAX for that platform (for NVIDIA GPUs: pip install 'jaxmbrl[cuda]')"
            return f"JAX has no device for JAX_PLATFORMS={asked} ({reason}); {advice}"
        return f"JAX has no device ({reason}); 'jaxmbrl doctor' checks the environment variables"
    return None


def import_despite(variable: str, instead: str | None, module: str) -> Any:
    """Import `module`. If that fails, and the environment `variable` is set, import it with the value `instead` or, for
    None, without the variable."""
    known = set(sys.modules)
    try:
        return importlib.import_module(module)
    except Exception:
        if not os.environ.get(variable):
            raise
    # Submodules that were imported meanwhile would not become attributes of the new package.
    root = module.partition(".")[0]
    for name in set(sys.modules) - known:
        if name.partition(".")[0] == root:
            del sys.modules[name]
    with environment(**{variable: instead}):
        return importlib.import_module(module)


@contextlib.contextmanager
def environment(**values: str | None) -> Iterator[None]:
    """Context manager that sets environment variables, or removes them (None)."""
    before = {name: os.environ.get(name) for name in values}
    _set(values)
    try:
        yield
    finally:
        _set(before)


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
