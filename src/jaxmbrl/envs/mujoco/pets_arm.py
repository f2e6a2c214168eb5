"""Where the hand of PETS's arm is: the forward kinematics that its two tasks of seven joints share.

From the shoulder outwards the joints turn about z (pan), y (lift), x (upper arm's roll), y (elbow), x (forearm's roll),
y (wrist) and x (wrist's roll); at angles 0 the arm is stretched along x.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

SHOULDER = 0.1  # m, from the pan's axis to the lift's
UPPER_ARM = 0.4  # m
FOREARM = 0.321  # m


def hand(joints: Float[Array, "*n 7"], base: tuple[float, float, float], reach: float) -> Float[Array, "*n 3"]:
    """The place (m) of the point `reach` beyond the wrist, on the hand's axis, for joint angles (rad) of an arm whose pan's
    axis goes through `base`. The wrist's roll turns about that axis and does not move it."""
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
    """`point` turned about a coordinate axis, by the right hand."""
    first, second = (axis + 1) % 3, (axis + 2) % 3
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    turned = list(point)
    turned[first] = cos * point[first] - sin * point[second]
    turned[second] = sin * point[first] + cos * point[second]
    return turned
