"""Tasks of our own equations of motion (cartpole-swingup, reacher-2d) against C MuJoCo, SciPy and conserved energy, and
mountain-car-continuous against Gymnasium, in float64."""

from importlib import import_module
from types import SimpleNamespace

import gymnasium
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from gymnasium.envs.classic_control import continuous_mountain_car
from scipy import integrate, stats

from jaxmbrl import envs
from jaxmbrl.envs.classic.integration import runge_kutta

N = 200
ORDER = {"cartpole-swingup": [0, 3, 1, 2], "reacher-2d": [0, 1, 2, 3]}
"""Where the coordinates have MuJoCo's: positions, then velocities."""
TOLERANCE = {"cartpole-swingup": 3e-5, "reacher-2d": 3e-5}

CARTPOLE = """
<mujoco><compiler angle="radian"/><option gravity="0 0 -9.82" timestep="1e-3" integrator="RK4"/>
<worldbody><body><inertial pos="0 0 0" mass="0.5" diaginertia="1 1 1"/>
  <joint name="slide" type="slide" axis="1 0 0" damping="0.1"/>
  <body><inertial pos="0 0 -0.25" mass="0.5" diaginertia="0.010416666666666666 0.010416666666666666 1e-9"/>
    <joint type="hinge" axis="0 -1 0"/><site name="tip" pos="0 0 -0.5"/></body>
</body></worldbody>
<actuator><motor joint="slide" gear="10"/></actuator></mujoco>"""

ARM = """
<mujoco><compiler angle="radian"/><option gravity="0 0 0" timestep="1e-3" integrator="RK4"/>
<worldbody><body><inertial pos="0.25 0 0" mass="1" diaginertia="1e-9 0.020833333333333332 0.020833333333333332"/>
  <joint name="shoulder" axis="0 0 1" damping="0.2"/>
  <body pos="0.5 0 0"><inertial pos="0.25 0 0" mass="1" diaginertia="1e-9 0.020833333333333332 0.020833333333333332"/>
    <joint name="elbow" axis="0 0 1" damping="0.2"/><site name="tip" pos="0.5 0 0"/></body>
</body></worldbody>
<actuator><motor joint="shoulder" gear="2"/><motor joint="elbow" gear="1"/></actuator></mujoco>"""


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def stepper(task):
    """(coordinates, actions) -> next states, and transitions, of one step from each of the states."""

    def step(coordinates, action):
        carry = task.world.start(task.env.state_at(coordinates), jax.random.key(0))
        return task.world.step(carry, action, jax.random.key(1))

    compiled = jax.jit(jax.vmap(step))

    def steps(coordinates, actions):
        (state, _), rows = jax.device_get(compiled(coordinates, actions))
        return state.pipeline_state, rows

    return steps


def cartpole_cases(n=N):
    rng = np.random.default_rng(0)
    states = rng.uniform(-1, 1, (n, 4)) * [2, 5, 15, 2 * np.pi]
    return states, rng.uniform(-1.5, 1.5, (n, 1))


def arm_cases(n=N):
    rng = np.random.default_rng(1)
    states = rng.uniform(-1, 1, (n, 6)) * [2 * np.pi, 2 * np.pi, 10, 10, 0.9, 0.9]
    return states, rng.uniform(-1.5, 1.5, (n, 2))


def cartpole_derivative(y, action):
    """Of [x, velocity, spin, angle], by the mass matrix of Lagrange's equations: a rod of 0.5 kg and 0.5 m on a cart."""
    _, v, w, angle = y
    inertia = np.array([[1.0, 0.125 * np.cos(angle)], [0.125 * np.cos(angle), 0.5 * 0.5**2 / 3]])
    forces = [10 * np.clip(action[0], -1, 1) - 0.1 * v + 0.125 * np.sin(angle) * w**2, -0.125 * 9.82 * np.sin(angle)]
    a, alpha = np.linalg.solve(inertia, forces)
    return [v, a, alpha, w]


def arm_derivative(y, action):
    """Of [shoulder, elbow, their speeds], from the rods' kinetic energy: d/dt (M(q) q') = 1/2 q' dM/dq q' + torques."""
    elbow, speed = y[1], np.asarray(y[2:4])
    cos, sin = np.cos(elbow), np.sin(elbow)
    m22, m12 = 0.25 / 3, 0.25 / 3 + 0.125 * cos
    inertia = np.array([[0.25 / 3 + 0.25 + 0.25 / 3 + 0.25 * cos, m12], [m12, m22]])
    change = -sin * np.array([[0.25, 0.125], [0.125, 0.0]])  # by the elbow's angle
    torque = np.array([2.0, 1.0]) * np.clip(action, -1, 1) - 0.2 * speed
    gain = np.array([0.0, 0.5 * speed @ change @ speed])
    return [*speed, *np.linalg.solve(inertia, torque + gain - speed[1] * change @ speed)]


def rod_derivative(y, action):
    """Of [angle, speed]: a rod of 1 kg and 1 m about its end, with gravity 9.82 and friction."""
    return [y[1], 3 * (20 * np.clip(action[0], -1, 1) - 0.01 * y[1] - 4.91 * np.sin(y[0]))]


def test_a_step_of_the_raised_pendulum():
    """Against the exact solution; the cost is that of the state before, by hand."""
    rng = np.random.default_rng(5)
    states, actions = rng.uniform(-1, 1, (N, 2)) * [2 * np.pi, 15], rng.uniform(-1.5, 1.5, (N, 1))
    ours, rows = stepper(envs.make("pendulum-reach"))(states, actions)
    exact = [
        integrate.solve_ivp(lambda t, y, u=u: rod_derivative(y, u), (0, 0.1), x, "DOP853", rtol=1e-10, atol=1e-12).y[:, -1]
        for x, u in zip(states, actions, strict=True)
    ]
    error = np.abs(ours - np.array(exact)).max()
    print(f"pendulum-reach: one step differs from the exact solution by at most {error:.1e}")
    assert error < 1e-7
    np.testing.assert_array_equal(rows.next_observation, ours)
    torque = 20 * actions[:, 0].clip(-1, 1)
    cost = (states[:, 0] - np.pi / 2) ** 2 + 0.05 * states[:, 1] ** 2 + 0.01 * torque**2
    np.testing.assert_allclose(rows.reward, -cost, rtol=1e-12)


CASES = {
    "cartpole-swingup": (cartpole_cases, cartpole_derivative, CARTPOLE, 0.1),
    "reacher-2d": (arm_cases, arm_derivative, ARM, 0.05),
}


@pytest.mark.parametrize("name", CASES)
def test_a_step_is_the_exact_solution(name):
    """With N = 2,000 it gives the docstrings' figures."""
    cases, derivative, _, dt = CASES[name]
    states, actions = cases()
    ours, _ = stepper(envs.make(name))(states, actions)
    exact = states.copy()
    for i in range(N):
        solved = integrate.solve_ivp(
            lambda t, y, i=i: derivative(y, actions[i]), (0, dt), states[i, :4], "DOP853", rtol=1e-10, atol=1e-12
        )
        exact[i, :4] = solved.y[:, -1]
    error = np.abs(ours - exact).max()
    print(f"{name}: one step differs from the exact solution by at most {error:.1e}")
    assert error < TOLERANCE[name]


@pytest.mark.parametrize("name", CASES)
def test_a_trajectory_is_mujocos(name):
    """The rods of the XML turn and fall as ours, and their tip is where the observation says."""
    cases, _, xml, dt = CASES[name]
    model = mujoco.MjModel.from_xml_string(xml)
    data, order = mujoco.MjData(model), ORDER[name]
    states, actions = cases(20)
    step = stepper(envs.make(name))
    for _ in range(5):
        theirs = np.zeros((20, 4))
        tips = np.zeros((20, 3))
        for i in range(20):
            data.qpos[:], data.qvel[:] = np.split(states[i, order], 2)
            data.ctrl[:] = actions[i].clip(-1, 1)
            mujoco.mj_step(model, data, nstep=round(dt / 1e-3))
            mujoco.mj_forward(model, data)
            theirs[i], tips[i] = np.concatenate([data.qpos, data.qvel]), data.site("tip").xpos
        states, rows = step(states, actions)
        np.testing.assert_allclose(states[:, order], theirs, rtol=0, atol=TOLERANCE[name])
        observation = np.asarray(rows.next_observation)
        if name == "cartpole-swingup":
            distance = np.hypot(tips[:, 0], tips[:, 2] - 0.5)
            expected = np.exp(-(distance**2) / (2 * 0.25**2))
        else:
            away = states[:, 4:] - tips[:, :2]
            np.testing.assert_allclose(observation[:, 6:], away, rtol=0, atol=TOLERANCE[name])
            expected = -np.hypot(*away.T) - 0.01 * (actions.clip(-1, 1) ** 2).sum(-1)
        np.testing.assert_allclose(rows.reward, expected, rtol=0, atol=TOLERANCE[name])


def cartpole_energy(y):
    _, v, w, angle = y
    return 0.5 * v**2 + 0.125 * v * w * jnp.cos(angle) + 0.25 * (0.25 / 3) * w**2 - 0.125 * 9.82 * jnp.cos(angle)


def arm_energy(y):
    """From the speeds of each rod's points, summed by Gauss's quadrature, which is exact for their squares."""
    shoulder, elbow, w1, w2 = y
    nodes, weights = np.polynomial.legendre.leggauss(3)
    along = jnp.asarray((nodes + 1) / 2 * 0.5)
    knee = 0.5 * w1 * jnp.stack([-jnp.sin(shoulder), jnp.cos(shoulder)])
    fore = jnp.stack([-jnp.sin(shoulder + elbow), jnp.cos(shoulder + elbow)]) * (w1 + w2)
    second = knee[:, None] + fore[:, None] * along
    return 0.5 * jnp.asarray(weights / 2) @ ((along * w1) ** 2 + jnp.sum(second**2, 0))


ENERGY = {"cartpole-swingup": cartpole_energy, "reacher-2d": arm_energy}
MODULE = {name: import_module("jaxmbrl.envs.classic." + name.replace("-", "_")) for name in ENERGY}


def power(name, y, action):
    """Of the motors and of friction."""
    if name == "cartpole-swingup":
        return 10 * action[0] * y[1] - 0.1 * y[1] ** 2
    return 2 * action[0] * y[2] + action[1] * y[3] - 0.2 * (y[2] ** 2 + y[3] ** 2)


@pytest.mark.parametrize("name", CASES)
def test_energy_changes_by_the_work_done(name):
    module, energy = MODULE[name], ENERGY[name]
    states, actions = CASES[name][0]()

    def change(y, action):
        force = 10 * action[0] if name == "cartpole-swingup" else jnp.array([2.0, 1.0]) * action
        return jax.grad(energy)(y) @ module._derivative(y, force), power(name, y, action)

    changes, work = jax.jit(jax.vmap(change))(states[:, :4], actions.clip(-1, 1))
    np.testing.assert_allclose(changes, work, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", CASES)
def test_energy_is_conserved_without_friction_and_force(name, monkeypatch):
    module, energy = MODULE[name], ENERGY[name]
    monkeypatch.setattr(module, "FRICTION", 0.0)
    energies = jax.jit(jax.vmap(energy))
    states, actions = CASES[name][0](50)
    before, step = energies(states[:, :4]), stepper(envs.make(name))
    for _ in range(10):
        states, _ = step(states, 0 * actions)
    after = np.asarray(energies(states[:, :4]))
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(module, "FRICTION", 0.1)
    braked, _ = stepper(envs.make(name))(states, 0 * actions)
    assert (np.asarray(energies(braked[:, :4])) < after).all()


def test_runge_kutta_is_of_order_four():
    exact = np.array([np.cos(2.0), -np.sin(2.0)])
    errors = []
    for substeps in (10, 20, 40):
        solve = jax.jit(lambda y, n=substeps: runge_kutta(lambda y: jnp.stack([y[1], -y[0]]), y, 2.0, n))
        ours = np.asarray(solve(np.array([1.0, 0.0])))
        errors.append(np.abs(ours - exact).max())
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    np.testing.assert_allclose(orders, 4.0, atol=0.1)


def test_swingup_rewards_of_hand_made_states():
    reward = envs.make("cartpole-swingup").reward
    states = np.array([[0, 3, 2, 0, -1], [0, 0, 0, 0, 1], [0.5, 0, 0, -1, 0], [0.25, 0, 0, 0, -1]], float)
    got = jax.jit(reward)(states, np.zeros((4, 1)), states)
    expected = [1.0, np.exp(-8.0), np.exp(-2.0), np.exp(-0.5)]  # tip at the goal, hanging, level beneath it, 0.25 m aside
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_the_swing_up_with_its_angle_is_the_same_task():
    task, other = envs.make("cartpole-swingup/angle"), envs.make("cartpole-swingup")
    coordinates, action = np.array([0.3, -1.0, 4.0, 9.0]), np.array([0.7])

    @jax.jit
    def step(coordinates, action):
        return [task.env.step(task.env.state_at(coordinates), action) for task in (task, other)]

    state, of_other = step(coordinates, action)
    np.testing.assert_array_equal(state.pipeline_state, of_other.pipeline_state)
    np.testing.assert_array_equal(state.obs, state.pipeline_state)
    np.testing.assert_array_equal(jax.jit(task.features.encode)(state.obs), of_other.obs)
    np.testing.assert_array_equal(state.reward, of_other.reward)


def test_a_step_of_pilcos_pendulum_is_the_exact_solution():
    """Its equation of motion written down again, and its reward at hand-made states."""
    task, random = envs.make("pilco-pendulum"), np.random.default_rng(0)
    states, actions = random.uniform(-1, 1, (40, 2)) * [12.0, 7.0], random.uniform(-1.4, 1.4, (40, 1))
    step = jax.jit(jax.vmap(lambda y, action: task.env.step(task.env.state_at(y), action).obs))
    exact = states.copy()
    for i, torque in enumerate(2.5 * actions[:, 0].clip(-1, 1)):

        def derivative(t, y, torque=torque):
            return [3 * (torque - 0.01 * y[0] - 4.91 * np.sin(y[1])), y[0]]

        exact[i] = integrate.solve_ivp(derivative, (0, 0.1), states[i], "DOP853", rtol=1e-10, atol=1e-12).y[:, -1]
    np.testing.assert_allclose(step(states, actions), exact, rtol=0, atol=1e-6)
    after = np.array([[5.0, np.pi], [0.0, 0.0], [0.0, np.pi / 2]])
    reward = jax.jit(task.reward)(after, np.zeros((3, 1)), after)
    np.testing.assert_allclose(reward, [1.0, np.exp(-8.0), np.exp(-4.0)], rtol=1e-12)


def test_reacher_rewards_of_hand_made_states():
    """An arm bent upwards at the elbow has its tip at (0.5, 0.5); a torque moves it by little in one step."""
    task = envs.make("reacher-2d")

    @jax.jit
    def found(coordinates, torques):
        state = task.env.state_at(coordinates)
        return state.obs, task.env.step(state, 0 * torques).reward, task.reward(state.obs, torques, state.obs)

    observation, still, moved = found(np.array([0.0, np.pi / 2, 0.0, 0.0, 0.5, 0.2]), np.array([3.0, -0.5]))
    np.testing.assert_allclose(observation, [1, 0, 0, 1, 0, 0, 0, -0.3], atol=1e-12)
    assert float(still) == pytest.approx(-0.3, abs=1e-12)
    assert float(moved) == pytest.approx(-0.3 - 0.0125, abs=1e-12)


def resets(name, n=4000):
    return np.asarray(jax.jit(jax.vmap(envs.make(name).env.reset))(jax.random.split(jax.random.key(0), n)).pipeline_state)


def test_resets_are_distributed_as_told():
    coordinates = resets("cartpole-swingup")
    for column in (*coordinates.T, *resets("pilco-pendulum").T):
        assert stats.kstest(column, stats.norm(0, 0.1).cdf).pvalue > 1e-3
    assert np.abs(np.corrcoef(coordinates.T) - np.eye(4)).max() < 0.07
    coordinates = resets("reacher-2d")
    np.testing.assert_array_equal(coordinates[:, 2:4], 0.0)
    x, y = coordinates[:, 4:].T
    uniform = [
        coordinates[:, 0] / np.pi,
        coordinates[:, 1] / np.pi,
        np.arctan2(y, x) / np.pi,
        2 * np.hypot(x, y) ** 2 / 0.95**2 - 1,
    ]
    for column in uniform:
        assert stats.kstest(column, stats.uniform(-1, 2).cdf).pvalue > 1e-3
    assert np.abs(np.corrcoef(np.array(uniform)) - np.eye(4)).max() < 0.07
    position, velocity = resets("mountain-car-continuous").T
    assert stats.kstest(position, stats.uniform(-0.6, 0.2).cdf).pvalue > 1e-3
    assert not velocity.any()


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("cartpole-swingup", 40),
        ("cartpole-swingup/angle", 40),
        ("pilco-pendulum", 40),
        ("pendulum-reach", 40),
        ("reacher-2d", 100),
        ("mountain-car-continuous", 999),
    ],
)
def test_time_limits_truncate(name, steps):
    task = envs.make(name)
    assert task.episode_length == steps
    idle = lambda carry, _: task.world.step(carry, task.action.zeros(), jax.random.key(0))  # noqa: E731
    rows = jax.jit(lambda key: jax.lax.scan(idle, task.world.reset(key), None, steps)[1])(jax.random.key(0))
    np.testing.assert_array_equal(rows.truncated, [False] * (steps - 1) + [True])
    assert not np.asarray(rows.terminated).any()


def car_cases():
    rng = np.random.default_rng(2)
    states = rng.uniform([-1.2, -0.07], [0.6, 0.07], (3000, 2))
    by_hand = [[-1.2, -0.05], [-1.2, 0.0], [-1.19, -0.07], [-1.13, -0.07], [0.6, 0.07], [0.59, 0.05], [0.6, -0.02]]
    by_hand += [[0.44, 0.02], [0.4499, 0.0], [0.46, -0.001], [0.46, 0.0011], [0.5, -0.0002], [0.38, 0.07], [-0.5, 0.07]]
    states = np.concatenate([np.repeat(by_hand, 3, axis=0), states])
    actions = np.concatenate([np.tile([-1.0, 0.0, 1.0], len(by_hand)), rng.uniform(-1.6, 1.6, 3000)])
    return states, actions[:, None]


def test_a_car_step_is_gymnasiums(monkeypatch):
    states, actions = car_cases()
    task = envs.make("mountain-car-continuous")
    after, rows = stepper(task)(states, actions)
    theirs = gymnasium.make("MountainCarContinuous-v0").unwrapped
    theirs.reset(seed=0)
    # Gymnasium rounds the state to float32 in the end; here it keeps the float64 that it computed.
    keep = SimpleNamespace(array=lambda x, dtype: np.array(x), float32=np.float32)
    monkeypatch.setattr(continuous_mountain_car, "np", keep)
    expected, rewards, ends = np.zeros_like(states), np.zeros(len(states)), np.zeros(len(states), bool)
    for i, (state, action) in enumerate(zip(states, actions, strict=True)):
        theirs.state = state
        expected[i], rewards[i], ends[i], truncated, _ = theirs.step(action)
        assert not truncated
    assert 0.02 < ends.mean() < 0.5
    for wall in (-1.2, 0.6):
        assert (expected[:, 0] == wall).sum() > 3
    assert ((expected[:, 0] >= 0.45) & ~ends).sum() > 20, "no case rolls back over the goal"
    np.testing.assert_allclose(rows.next_observation, expected, rtol=0, atol=1e-15)
    np.testing.assert_array_equal(after, rows.next_observation)
    np.testing.assert_allclose(rows.reward, rewards, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(rows.terminated, ends)
    np.testing.assert_allclose(
        jax.jit(task.reward)(rows.observation, rows.action, rows.next_observation), rewards, rtol=0, atol=1e-12
    )
    np.testing.assert_array_equal(jax.jit(task.terminated)(rows.next_observation), ends)


def test_a_car_swings_up_as_gymnasiums_and_terminates():
    task, theirs = envs.make("mountain-car-continuous"), gymnasium.make("MountainCarContinuous-v0")
    theirs.reset(seed=1)
    key = jax.random.key(0)
    carry = jax.jit(lambda start: task.world.start(task.env.state_at(start), key))(np.asarray(theirs.unwrapped.state))
    step = jax.jit(task.world.step)
    for _ in range(300):
        action = np.array([1.0 if theirs.unwrapped.state[1] >= 0 else -1.0])
        carry, row = step(carry, action, key)
        observation, reward, terminated, truncated, _ = theirs.step(action)
        np.testing.assert_allclose(row.next_observation, observation, atol=1e-4)
        assert float(row.reward) == pytest.approx(reward)
        assert bool(row.terminated) == terminated and not row.truncated and not truncated
        if terminated:
            break
    assert terminated and float(row.reward) == pytest.approx(99.9)
