"""Contacts as C MuJoCo has them: against C MuJoCo itself, and nearest points against scipy's minimiser."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from scipy.optimize import minimize

from jaxmbrl.envs.mujoco import contacts

PAIR = """
<mujoco>
  <option ccd_tolerance="1e-14" ccd_iterations="500"/>
  <worldbody>
    <body name="first"><freejoint/><geom type="capsule" size="{radius} {half}"/></body>
    <body name="second"><freejoint/>{second}</body>
  </worldbody>
</mujoco>
"""
CYLINDER = '<geom type="cylinder" size="0.3 0.2" margin="1"/>'
CAPSULE = '<geom type="capsule" size="0.2 0.4" margin="1"/>'
SPHERE = '<geom type="sphere" size="0.2" margin="1"/>'
PLANE = """
<mujoco>
  <worldbody>
    <geom type="plane" size="1 1 1" euler="20 30 0" margin="2"/>
    <body><freejoint/><geom type="capsule" size="0.1 0.3"/></body>
  </worldbody>
</mujoco>
"""
CAPSULE_CYLINDER = jax.jit(contacts.capsule_cylinder)
NEAREST_OF_SEGMENTS = jax.jit(contacts.nearest_of_segments)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def placed(text: str, count: int, spread: float, seed: int = 0):
    """Models with random poses, in C MuJoCo: (model, data) in turn."""
    model = mujoco.MjModel.from_xml_string(text)
    data, rng = mujoco.MjData(model), np.random.default_rng(seed)
    for _ in range(count):
        for at in range(0, model.nq, 7):
            data.qpos[at : at + 3], data.qpos[at + 3 : at + 7] = rng.normal(0, spread, 3), rng.normal(size=4)
        mujoco.mj_fwdPosition(model, data)
        yield model, data


def pose(model, data, geom):
    return data.geom_xpos[geom].copy(), data.geom_xmat[geom].reshape(3, 3).copy(), model.geom_size[geom][:2].copy()


@pytest.mark.parametrize("radius", [0.05, 0.3])
def test_a_capsule_meets_a_cylinder_where_c_finds_it(radius):
    seen, overlaps = 0, 0
    for model, data in placed(PAIR.format(radius=radius, half=0.5, second=CYLINDER), 300, 0.4):
        if data.ncon != 1:  # C tells two of a capsule along a face
            continue
        distance, place, normal = CAPSULE_CYLINDER(*pose(model, data, 0), *pose(model, data, 1))
        theirs = data.contact[0]
        if theirs.dist < -0.95 * radius:  # the axis is inside
            continue
        seen, overlaps = seen + 1, overlaps + (theirs.dist < 0)
        np.testing.assert_allclose(distance, theirs.dist, atol=1e-9)
        # C's directions are as good as the root of what its distances are.
        np.testing.assert_allclose(place, theirs.pos, atol=1e-5)
        np.testing.assert_allclose(normal, theirs.frame[:3], atol=1e-5)
    assert seen > 100 and overlaps > 5


def test_a_capsule_and_a_cylinder_by_hand():
    """Upright cylinder of radius 1 and height 2; capsules of radius 0.25 and length 1."""
    cylinder = (np.zeros(3), np.eye(3), np.array([1.0, 1.0]))
    along_x = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
    for place, turn, distance, at, normal in [
        ((2.0, 0.0, 0.3), np.eye(3), 0.75, (1.375, 0.0, None), (-1, 0, 0)),  # beside it, upright
        ((1.6, 0.0, 0.5), along_x, -0.15, (0.925, 0.0, 0.5), (-1, 0, 0)),  # end on, overlapping
        ((0.0, 0.0, 2.0), np.eye(3), 0.25, (0.0, 0.0, 1.125), (0, 0, -1)),  # on top of it
    ]:
        found = jax.device_get(CAPSULE_CYLINDER(np.array(place), turn, np.array([0.25, 0.5]), *cylinder))
        np.testing.assert_allclose(found[0], distance, atol=1e-12)
        np.testing.assert_allclose(found[2], normal, atol=1e-12)
        for mine, due in zip(found[1], at, strict=True):
            assert due is None or abs(mine - due) < 1e-12


def test_beyond_the_axis_the_deepest_point_stands_for_the_overlap():
    capsule = (np.array([0.6, 0.0, 0.0]), np.eye(3), np.array([0.25, 0.5]))
    distance, _, normal = CAPSULE_CYLINDER(*capsule, np.zeros(3), np.eye(3), np.array([1.0, 1.0]))
    np.testing.assert_allclose(distance, -0.4 - 0.25, atol=1e-12)
    np.testing.assert_allclose(normal, [-1, 0, 0], atol=1e-12)


@pytest.mark.parametrize("second", [CAPSULE, SPHERE])
def test_nearest_points_are_where_c_has_contacts(second):
    seen = 0
    on = jax.jit(contacts.nearest_on_segment)
    for model, data in placed(PAIR.format(radius=0.1, half=0.5, second=second), 200, 0.6):
        if not data.ncon:  # farther apart than the margin
            continue
        seen += 1
        ends, radii = [], []
        for geom in (0, 1):
            place, turn, size = pose(model, data, geom)
            half = turn[:, 2] * (size[1] if model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_CAPSULE else 0.0)
            ends += [place - half, place + half]
            radii.append(size[0])
        if second is SPHERE:
            first, other = on(ends[0], ends[1], ends[2]), ends[2]
        else:
            first, other = NEAREST_OF_SEGMENTS(*ends)
        apart = np.linalg.norm(other - first)
        np.testing.assert_allclose(apart - sum(radii), data.contact[0].dist, atol=1e-12)
    assert seen > 100


def test_nearest_points_of_segments_by_scipy():
    rng, inner = np.random.default_rng(1), 0
    for _ in range(200):
        a, b, c, d = rng.normal(size=(4, 3))

        def squared(shares, a=a, b=b, c=c, d=d):
            apart = a + shares[0] * (b - a) - c - shares[1] * (d - c)
            return apart @ apart, 2 * np.array([apart @ (b - a), apart @ (c - d)])

        options = {"ftol": 1e-16, "gtol": 1e-12}
        best = minimize(squared, [0.5, 0.5], jac=True, bounds=[(0, 1)] * 2, method="L-BFGS-B", options=options)
        first, second = map(np.asarray, NEAREST_OF_SEGMENTS(a, b, c, d))
        np.testing.assert_allclose(np.sum((first - second) ** 2), best.fun, atol=1e-9)
        inner += bool((np.abs(best.x - 0.5) < 0.49).all())
    assert 20 < inner < 180


def test_parallel_segments():
    first, second = map(np.asarray, NEAREST_OF_SEGMENTS(*np.array([[0.0, 0, 0], [1, 0, 0], [0.5, 2, 0], [3, 2, 0]])))
    np.testing.assert_allclose(second - first, [0, 2, 0], atol=1e-12)
    first, second = map(np.asarray, NEAREST_OF_SEGMENTS(*np.array([[0.0, 0, 0], [1, 0, 0], [4, 2, 0], [3, 2, 0]])))
    np.testing.assert_allclose(second - first, [2, 2, 0], atol=1e-12)


def test_a_capsule_turns_the_tangents_of_a_plane_as_in_c():
    upright, otherwise = 0, np.zeros((2, 3))
    find = jax.jit(contacts.plane_capsule_tangents)
    for model, data in placed(PLANE, 200, 0.3):
        normal, axis = data.geom_xmat[0].reshape(3, 3)[:, 2], data.geom_xmat[1].reshape(3, 3)[:, 2]
        tangents = find(normal, axis, otherwise)
        assert data.ncon == 2
        for contact in data.contact:
            np.testing.assert_allclose(tangents, contact.frame.reshape(3, 3)[1:], atol=1e-12)
        upright += bool(abs(normal @ axis) > np.cos(np.pi / 6))
        assert model.nq == 7
    assert upright > 10  # where MJX takes others
    kept = np.array([[0.0, 1, 0], [0, 0, 1]])
    up = np.array([1.0, 0, 0])
    np.testing.assert_array_equal(find(up, -up, kept), kept)


def test_mjx_is_as_before_afterwards():
    from mujoco.mjx._src import collision_driver, math

    before = dict(collision_driver._COLLISION_FUNC), math.closest_segment_point, math.closest_segment_to_segment_points
    with pytest.raises(ValueError, match="inside"), contacts.in_mjx():
        assert math.closest_segment_point is contacts.nearest_on_segment
        changed = {kinds for kinds, found in collision_driver._COLLISION_FUNC.items() if found is not before[0][kinds]}
        assert len(changed) == 2
        raise ValueError("inside")
    assert (dict(collision_driver._COLLISION_FUNC), math.closest_segment_point) == before[:2]
    assert math.closest_segment_to_segment_points is before[2]


@pytest.mark.parametrize("order", [1, 2])
def test_distances_have_gradients(order):
    """Of the distance to the cylinder's side: 1 away from it."""

    def distance(x):
        found = contacts.capsule_cylinder(
            jnp.stack([x, jnp.zeros(()), 0.1 * x]), jnp.eye(3), jnp.array([0.1, 0.2]), jnp.zeros(3), jnp.eye(3), jnp.ones(2)
        )
        return found[0]

    slope = jax.grad(distance)
    value = jax.jit(slope if order == 1 else jax.grad(slope))(2.0)
    np.testing.assert_allclose(value, 1.0 if order == 1 else 0.0, atol=1e-9)
