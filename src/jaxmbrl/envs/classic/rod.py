"""The pendulum of PILCO's toolbox, version 0.9 (folder scenarios/pendulum): a uniform rod of 1 kg and 1 m with friction of
0.01 N m s, gravity 9.82 m/s^2, control at 10 Hz with zero-order hold. Two tasks have it: its equation and its drawing."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from jaxmbrl.envs.drawing.canvas import BODY, GOAL, INK, ROD, Canvas
from jaxmbrl.envs.drawing.scene import Scene, disc, rod

GRAVITY = 9.82  # m / s^2
MASS = 1.0  # kg
LENGTH = 1.0  # m
FRICTION = 0.01  # N m s / rad
DT = 0.1  # s


def acceleration(angle: Float[Array, ""], speed: Float[Array, ""], torque: Float[Array, ""]) -> Float[Array, ""]:
    """Angular acceleration in rad/s^2 at an angle in rad, 0 hanging down, under a torque in N m."""
    moment = torque - FRICTION * speed - MASS * GRAVITY * LENGTH / 2 * jnp.sin(angle)
    return moment / (MASS * LENGTH**2 / 3)


def picture(angle: float, goal: tuple[float, float], action: Float[np.ndarray, "1"] | None) -> UInt8[np.ndarray, "H W 3"]:
    """The rod, a ring around the goal of its tip, in m, and the torque as an arrow."""
    canvas = Canvas(width=2.8, size=(360, 360))
    canvas.ring(goal, 0.16, GOAL, 3.0)
    canvas.rod((0.0, 0.0), (LENGTH * math.sin(angle), -LENGTH * math.cos(angle)), 0.14, ROD)
    canvas.disc((0.0, 0.0), 0.05, INK)
    if action is not None:
        canvas.turn((0.0, 0.0), 0.4, angle - math.pi / 2, 1.6 * float(np.clip(action[0], -1, 1)))
    return canvas.picture()


def scene(angle: Float[Array, ""], goal: tuple[float, float]) -> Scene:
    """The rod, and the goal of its tip, in m."""
    tip = (LENGTH * jnp.sin(angle), -LENGTH * jnp.cos(angle))
    return Scene((disc(goal, 0.16, GOAL), rod((0.0, 0.0), tip, 0.2, BODY), disc((0.0, 0.0), 0.07, INK)), width=2.4)
