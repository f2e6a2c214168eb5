"""Forward kinematics of the arm in PETS: the position of the hand. The two tasks with seven joints share it.

From the shoulder outwards the joints turn about z (pan), y (lift), x (roll of the upper arm), y (elbow), x (roll of the
forearm), y (wrist) and x (roll of the wrist). If all angles are 0, the arm is stretched along x.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

SHOULDER = 0.1  # m, from the pan's axis to the lift's
UPPER_ARM = 0.4  # m
FOREARM = 0.321  # m


def hand(joints: Float[Array, "*n 7"], base: tuple[float, float, float], reach: float) -> Float[Array, "*n 3"]:
    """The position (m) of the point on the hand's axis that is `reach` beyond the wrist, for joint angles (rad). The pan
    axis of the arm goes through `base`. The wrist rolls about the hand's axis, which does not move the point."""
    pan, lift, upper_roll, elbow, forearm_roll, wrist, _ = jnp.moveaxis(joints, -1, 0)
    zero = jnp.zeros_like(pan)
    point = [zero + reach, zero, zero]
    for angle, axis, length in (
        (wrist, 1, FOREARM),
        (forearm_roll, 0, 0.0),
        (elbow, 1, UPPER_ARM),
        (upper_roll, 0, 0.0),
        (lift, 1, SHOULDER),
        (pan, 2, 0.0),
    ):
        point = _turned(point, angle, axis)
        point[0] = point[0] + length
    return jnp.stack(point, axis=-1) + jnp.asarray(base)


def _turned(point: list[Float[Array, "*n"]], angle: Float[Array, "*n"], axis: int) -> list[Float[Array, "*n"]]:
    """`point` rotated about a coordinate axis, by the right-hand rule."""
    first, second = (axis + 1) % 3, (axis + 2) % 3
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    turned = list(point)
    turned[first] = cos * point[first] - sin * point[second]
    turned[second] = sin * point[first] + cos * point[second]
    return turned
