"""Is this machine ready? What is installed, what it computes on, how exactly, and where it may write."""

from __future__ import annotations

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

from jaxmbrl.data.dataset import try_writing
from jaxmbrl.envs.mujoco.rendering import RENDERERS
from jaxmbrl.training.run_folder import versions

RENDER_SECONDS = 60
EXACT = 1e-5
"""Relative error of a float32 product that physics and planning can live with."""
_RENDER = """
import mujoco
renderer = mujoco.Renderer(mujoco.MjModel.from_xml_string("<mujoco><worldbody><geom size='1'/></worldbody></mujoco>"), 8, 8)
renderer.render()
"""


class Finding(NamedTuple):
    """One thing that was looked at."""

    what: str
    state: str
    """`ok`; `note` where something is lacking that training does without; `bad` where it does not."""
    told: str


def examine(folder: Path, cache: str | None) -> Iterator[Finding]:
    """Findings about this process's machine, one by one: `folder` is where runs shall go, `cache` the compile cache."""
    installed = versions()
    yield Finding("python", "ok", f"{sys.version.split()[0]} on {sys.platform}")
    packages = (f"{name} {version}" for name, version in installed.items() if name != "python")
    yield Finding("versions", "ok", ", ".join(packages))
    yield paired(installed)
    found = devices()
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


def devices() -> Finding:
    """What JAX computes on."""
    try:
        found = jax.devices()
    except RuntimeError as error:
        return Finding("devices", "bad", " ".join(str(error).split()))
    told = ", ".join(f"{device.device_kind} ({device.platform} {device.id})" for device in found)
    if found[0].platform == "cpu" and shutil.which("nvidia-smi") and not os.environ.get("JAX_PLATFORMS"):
        return Finding("devices", "note", f"{told}; for the NVIDIA GPU install 'jaxmbrl[cuda]'")
    return Finding("devices", "ok", told)


def paired(versions: dict[str, str]) -> Finding:
    """MuJoCo and MJX of different versions differ in their models' fields."""
    simulators = [versions.get(name, "missing") for name in ("mujoco", "mujoco-mjx")]
    same = simulators[0] == simulators[1] != "missing"
    told = f"mujoco {simulators[0]} and mujoco-mjx {simulators[1]}"
    return Finding("simulator", "ok" if same else "bad", told if same else f"{told} must be of the same version")


def precision() -> Finding:
    """The error of a float32 matrix product against float64, at JAX's default precision and at the highest."""
    a, b = np.random.default_rng(0).normal(size=(2, 256, 256))
    exact, scale = a @ b, np.abs(a) @ np.abs(b)
    errors = []
    for chosen in ("default", "highest"):
        found = jnp.matmul(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32), precision=chosen)
        errors.append(float(np.max(np.abs(np.asarray(found, np.float64) - exact) / scale)))
    width = "float64" if jax.config.jax_enable_x64 else "float32"  # type: ignore[attr-defined]
    told = f"{width}; products err by {errors[0]:.0e} by default, {errors[1]:.0e} at the highest precision"
    return Finding("precision", "ok" if errors[1] < EXACT else "bad", told)


def rendering() -> Finding:
    """Which of MuJoCo's renderers works, each tried in a process of its own: a broken one may end it."""
    asked = os.environ.get("MUJOCO_GL")
    for name in (asked,) if asked else RENDERERS:
        environment = os.environ | {"MUJOCO_GL": name}
        try:
            tried = subprocess.run(
                [sys.executable, "-c", _RENDER], env=environment, capture_output=True, timeout=RENDER_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            continue
        if tried.returncode == 0:
            return Finding("rendering", "ok", f"by {name}")
    told = f"MUJOCO_GL={asked} does not work" if asked else f"none of {', '.join(RENDERERS)} works"
    return Finding("rendering", "note", f"{told}: training goes on, videos will not; install EGL or OSMesa")


def writing(what: str, folder: Path) -> Finding:
    """Whether a file can be written to `folder`, or to the nearest folder above it that exists."""
    try:
        try_writing(folder)
    except OSError as error:
        return Finding(what, "bad", f"{folder} cannot be written to ({error.strerror})")
    return Finding(what, "ok", f"{folder} can be written to")
