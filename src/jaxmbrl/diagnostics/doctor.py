"""Checks of this machine: package versions, devices, numerical precision, rendering, and folders that can be written."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmbrl.core import surroundings
from jaxmbrl.data.dataset import try_writing
from jaxmbrl.envs.drawing.rendering import RENDERERS
from jaxmbrl.training.run_folder import versions

RENDER_SECONDS = 60
EXACT = 1e-5
"""Largest acceptable relative error of a float32 matrix product, for physics and planning."""
_RENDER = """
import mujoco
renderer = mujoco.Renderer(mujoco.MjModel.from_xml_string("<mujoco><worldbody><geom size='1'/></worldbody></mujoco>"), 8, 8)
renderer.render()
"""


class Finding(NamedTuple):
    """The result of one check."""

    what: str
    state: str
    """`ok`; `note` if something is missing that training does not need; `bad` if training needs it."""
    message: str


def examine(folder: Path, cache: str | None) -> Iterator[Finding]:
    """Check the machine of this process and yield the findings one by one. `folder` is the folder for runs, `cache` the
    folder of the compilation cache."""
    installed = versions()
    yield Finding("python", "ok", f"{sys.version.split()[0]} on {sys.platform}")
    packages = (f"{name} {version}" for name, version in installed.items() if name != "python")
    yield Finding("versions", "ok", ", ".join(packages))
    yield paired(installed)
    settings = list(environment())
    yield from settings or [Finding("environment", "ok", "no variable of JAX or XLA is wrong")]
    flags = compiler_flags()
    found = flags or devices()
    yield found
    if found.state != "bad":
        yield precision()
    yield rendering()
    yield writing("runs", folder)
    if cache is None:
        yield Finding("compile cache", "note", "off: every start compiles afresh")
    elif "://" in cache:
        yield Finding("compile cache", "note", f"{cache} is not on this machine and was not looked at")
    else:
        yield writing("compile cache", Path(cache))


def environment() -> Iterator[Finding]:
    """The environment variables of JAX and XLA that a run cannot work with, and those that change how it works."""
    problem = surroundings.compiling_problem()
    if problem is not None:
        yield Finding("environment", "bad", problem)
    if jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        text = "JAX_ENABLE_X64 is set: runs are in float64, slower and larger; those in float32 cannot be resumed"
        yield Finding("environment", "note", text)
    if jax.config.jax_debug_nans or jax.config.jax_debug_infs:  # type: ignore[attr-defined]
        text = "JAX_DEBUG_NANS is set: not needed, runs check all values, and 'jaxmbrl debug' finds the operation"
        yield Finding("environment", "note", text)
    problem = surroundings.memory_problem()
    if problem is not None:
        yield Finding("environment", "bad", problem)
    value = os.environ.get("XLA_PYTHON_CLIENT_PREALLOCATE", "true")
    if value.lower() not in ("true", "false", "1", "0"):
        text = f"XLA_PYTHON_CLIENT_PREALLOCATE={value} counts as true: set it to true or false"
        yield Finding("environment", "note", text)
    try:
        importlib.import_module("matplotlib")
    except ValueError:
        text = f"MPLBACKEND={os.environ.get('MPLBACKEND')} is unknown to matplotlib; pictures are drawn without it"
        yield Finding("environment", "note", text)


def compiler_flags() -> Finding | None:
    """A finding if XLA ends the process because of XLA_FLAGS; tried in another process."""
    if not os.environ.get("XLA_FLAGS"):
        return None
    variables = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    try:
        tried = subprocess.run(
            [sys.executable, "-c", "import jax; jax.devices()"],
            env=variables,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=RENDER_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None
    told = [line for line in tried.stderr.splitlines() if "XLA_FLAGS" in line]
    if tried.returncode == 0 or not told:
        return None
    reason = told[-1].rpartition("] ")[2]
    return Finding("devices", "bad", f"XLA ends every process ({reason}): remove what this version does not know")


def devices() -> Finding:
    """The devices that JAX uses."""
    problem = surroundings.device_problem()
    if problem is not None:
        return Finding("devices", "bad", problem)
    found = jax.devices()
    message = ", ".join(f"{device.device_kind} ({device.platform} {device.id})" for device in found)
    if found[0].platform == "cpu" and shutil.which("nvidia-smi") and not os.environ.get("JAX_PLATFORMS"):
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        if hidden in ("", "-1", "NoDevFiles"):
            return Finding(
                "devices", "note", f"{message}; CUDA_VISIBLE_DEVICES='{hidden}' hides the GPUs: unset it to use them"
            )
        return Finding("devices", "note", f"{message}; for the NVIDIA GPU install 'jaxmbrl[cuda]'")
    return Finding("devices", "ok", message)


def paired(versions: dict[str, str]) -> Finding:
    """Whether MuJoCo and MJX have the same version; models of different versions have different fields."""
    simulators = [versions.get(name, "missing") for name in ("mujoco", "mujoco-mjx")]
    same = simulators[0] == simulators[1] != "missing"
    message = f"mujoco {simulators[0]} and mujoco-mjx {simulators[1]}"
    return Finding("simulator", "ok" if same else "bad", message if same else f"{message} must be of the same version")


def precision() -> Finding:
    """The error of a float32 matrix product against float64, at JAX's default precision and at the highest."""
    a, b = np.random.default_rng(0).normal(size=(2, 256, 256))
    exact, scale = a @ b, np.abs(a) @ np.abs(b)
    errors = []
    for chosen in ("default", "highest"):
        found = jnp.matmul(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32), precision=chosen)
        errors.append(float(np.max(np.abs(np.asarray(found, np.float64) - exact) / scale)))
    width = "float64" if jax.config.jax_enable_x64 else "float32"  # type: ignore[attr-defined]
    message = f"{width}; products err by {errors[0]:.0e} by default, {errors[1]:.0e} at the highest precision"
    return Finding("precision", "ok" if errors[1] < EXACT else "bad", message)


def rendering() -> Finding:
    """The first of MuJoCo's renderers that works. Each is tried in its own process, because a broken one may crash it."""
    chosen = os.environ.get("MUJOCO_GL")
    for name in (chosen,) if chosen else RENDERERS:
        environment = os.environ | {"MUJOCO_GL": name}
        try:
            tried = subprocess.run(
                [sys.executable, "-c", _RENDER], env=environment, capture_output=True, timeout=RENDER_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            continue
        if tried.returncode == 0:
            return Finding("rendering", "ok", f"by {name}")
    message = f"MUJOCO_GL={chosen} does not work" if chosen else f"none of {', '.join(RENDERERS)} works"
    return Finding(
        "rendering", "note", f"{message}: training goes on, videos of MuJoCo tasks will not; install EGL or OSMesa"
    )


def writing(what: str, folder: Path) -> Finding:
    """Whether a file can be written to `folder`, or to the nearest folder above it that exists."""
    try:
        try_writing(folder)
    except OSError as error:
        return Finding(what, "bad", f"{folder} cannot be written to ({error.strerror})")
    return Finding(what, "ok", f"{folder} can be written to")
