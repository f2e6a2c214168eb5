"""A small task with a MuJoCo model, whose steps are a sum: a red box slides along x, past a green post at 0."""

import flax.struct
import jax
import jax.numpy as jnp
import mujoco

from jaxmbrl import envs
from jaxmbrl.envs.base import initial_state

XML = """
<mujoco>
  <worldbody>
    <body><joint type="slide" axis="1 0 0"/><geom type="box" size=".1 .1 .1" rgba="1 0 0 1"/></body>
    <geom type="box" pos="0 1 0" size=".1 .1 .6" rgba="0 1 0 1"/>
  </worldbody>
</mujoco>
"""


class Position(flax.struct.PyTreeNode):
    qpos: jax.Array


class Slider:
    """Observation and reward: where the box is; it moves by half the action and is lost beyond 2."""

    observation_size = 1
    action_size = 1
    dt = 0.05

    def __init__(self):
        self.mj_model = mujoco.MjModel.from_xml_string(XML)

    def reset(self, rng):
        start = jax.random.uniform(rng, (1,), minval=-1.0, maxval=1.0)
        return initial_state(Position(start), start)

    def step(self, state, action):
        qpos = state.pipeline_state.qpos + 0.5 * action
        done = (jnp.abs(qpos[0]) > 2).astype(float)
        return state.replace(pipeline_state=Position(qpos), obs=qpos, reward=qpos[0], done=done)


def slider(length=20):
    return envs.make_task("slider", Slider(), length)


def centre(picture, colour):
    """Mean (column, row) of the pixels in which a colour (0 red, 1 green) is by far the strongest."""
    strong = picture[..., colour].astype(int) > 60 + picture[..., 1 - colour]
    assert strong.any(), "nothing of that colour"
    rows, columns = strong.nonzero()
    return columns.mean(), rows.mean()
