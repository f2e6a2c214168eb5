"""Derivatives through MJX's constraint solver, against differences of C MuJoCo."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from mujoco import mjx

from jaxmbrl.envs.mujoco import constraints

SLIDING = """
<mujoco>
  <option timestep="0.01" iterations="50" ls_iterations="50" tolerance="0"/>
  <worldbody>
    <geom type="plane" size="5 5 1"/>
    <body pos="0 0 0.1">
      <joint name="x" type="slide" axis="1 0 0"/><joint name="z" type="slide" axis="0 0 1"/>
      <geom type="sphere" size="0.1" mass="1"/>
    </body>
  </worldbody>
  <actuator><motor joint="x"/><motor joint="z"/></actuator>
</mujoco>
"""
TOUCHING, ABOVE = -0.002, 0.05
STEPS = 3


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def in_c(model, x):
    """Positions and velocities some steps after those of `x` = (positions, velocities, controls)."""
    data = mujoco.MjData(model)
    data.qpos[:], data.qvel[:], data.ctrl[:] = np.split(np.asarray(x), 3)
    mujoco.mj_step(model, data, STEPS)
    return np.concatenate([data.qpos, data.qvel])


def in_mjx(model):
    put = mjx.put_model(model, impl="jax")
    blank = mjx.make_data(model, impl="jax")

    def steps(x):
        qpos, qvel, ctrl = jnp.split(x, 3)
        data = blank.replace(qpos=qpos, qvel=qvel, ctrl=ctrl)
        data = jax.lax.fori_loop(0, STEPS, lambda i, data: _alike(mjx.step(put, data), data), data)
        return jnp.concatenate([data.qpos, data.qvel])

    return steps


def _alike(new, old):
    return jax.tree.map(lambda a, b: a.astype(b.dtype), new, old)


def test_derivatives_in_and_out_of_contact_are_those_of_c():
    model = mujoco.MjModel.from_xml_string(SLIDING)
    with constraints.differentiable():
        slope = jax.jit(jax.jacrev(in_mjx(model)))
        resting, flying = (np.array([0.3, z, 0.4, -0.1, 0.8, 0.2]) for z in (TOUCHING, ABOVE))
        found = {name: slope(x) for name, x in (("resting", resting), ("flying", flying))}
    for name, x in (("resting", resting), ("flying", flying)):
        moved = 1e-6 * np.eye(x.size)
        expected = np.stack([(in_c(model, x + d) - in_c(model, x - d)) / 2e-6 for d in moved], axis=1)
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-6)
    # The ground resists the one and not the other.
    assert abs(found["resting"][3, 5]) < 0.5 * abs(found["flying"][3, 5])


@pytest.mark.promises
def test_no_number_changes():
    model = mujoco.MjModel.from_xml_string(SLIDING)
    x = jnp.array([0.3, TOUCHING, 0.4, -0.1, 0.8, 0.2])
    theirs = jax.jit(in_mjx(model))(x)
    with constraints.differentiable():
        ours = jax.jit(in_mjx(model))(x)
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_allclose(ours, in_c(model, x), atol=1e-9)


def test_mjx_is_as_it_was_afterwards():
    from mujoco.mjx._src import solver

    before = solver.solve
    with pytest.raises(RuntimeError, match="outside"), constraints.differentiable():
        assert solver.solve is not before
        raise RuntimeError("outside")
    assert solver.solve is before
    model = mujoco.MjModel.from_xml_string(SLIDING)
    put, blank = mjx.put_model(model, impl="jax"), mjx.make_data(model, impl="jax")

    def solved(warmstart):
        return solver.solve(put, blank.replace(qacc_warmstart=warmstart)).qacc

    with pytest.raises(ValueError, match="Reverse-mode differentiation does not work"):
        jax.eval_shape(jax.jacrev(solved), np.zeros(2))
