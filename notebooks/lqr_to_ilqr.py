# %% [markdown]
"""
# From LQR to iLQR

Trajectory optimisation with derivatives, from the case with an exact solution to a pendulum that must swing up. All
functions are pure functions of arrays: `jaxmbrl.planning.lqr` and `jaxmbrl.planning.ilqr` need no environment, no
training loop and no run folder.

1. LQR: linear dynamics and quadratic costs. The optimal policy is linear and known in closed form.
2. Noise and entropy: moments of the states, stochastic policies, and the KL divergence of two of them.
3. iLQR: nonlinear dynamics, by LQR about the current trajectory, again and again.
4. Feedback: the gains that iLQR finds along the way.
5. Many starts at once, by `jax.vmap`.
"""

# %%
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from jaxmbrl.planning import ilqr, lqr

jax.config.update("jax_enable_x64", True)
BLUE, RED, GREEN = "#0b3d91", "#c1440e", "#2e7d32"

# %% [markdown]
# ## 1. LQR
#
# A mass on a line, with position and velocity as state x, is pushed by a force u for 5 s:
#
#     minimise  sum over t of (x_t'Q x_t + u_t'R u_t) / 2 + x_T'P x_T / 2,    x_{t+1} = A x_t + B u_t
#
# `lqr` goes backward through the steps. At each step it returns the gains K and k of the optimal action `K x + k`, and the
# cost-to-go.

# %%
STEPS, DT = 50, 0.1
A, B = jnp.array([[1.0, DT], [0.0, 1.0]]), jnp.array([[DT**2 / 2], [DT]])
Q, R = jnp.eye(2), 0.1 * jnp.eye(1)
dynamics = lqr.linear_dynamics(A, B, STEPS)
cost = lqr.quadratic_cost(Q, R, Q, STEPS)
solution = lqr.lqr(dynamics, cost)
start = jnp.array([1.0, 0.0])
print(f"first gain of 50 steps            {solution.policy.K[0, 0, 0]:9.4f}{solution.policy.K[0, 0, 1]:9.4f}")
print(f"cost-to-go of the start           {solution.value.at(start)[0]:9.4f}")

# %% [markdown]
# With more and more steps left, the gain converges to that of an infinite horizon.

# %%
forever = lqr.infinite_horizon(jnp.concatenate([A, B], axis=1), jnp.zeros(2), cost.C[0], cost.c[0])
print(f"gain of infinitely many steps     {forever.K[0, 0]:9.4f}{forever.K[0, 1]:9.4f}")

# %% [markdown]
# Without noise, the means that `propagate` returns are the trajectory under the policy. Its cost is the cost-to-go.

# %%
still = lqr.propagate(dynamics, solution.policy, start, jnp.zeros((2, 2)))
print(f"cost of the trajectory            {jnp.sum(lqr.expected_cost(cost, solution.policy, still)):9.4f}")

# %% [markdown]
# ## 2. Noise and entropy
#
# If the mass is also pushed at random, the gains stay the same (certainty equivalence), but the cost grows. With a
# temperature, the policy is stochastic: it minimises the expected cost minus the temperature times its entropy, and its
# covariance is the temperature times the inverse of the cost's second derivative by the action.

# %%
noisy = dynamics._replace(W=jnp.tile(1e-3 * jnp.eye(2), (STEPS, 1, 1)))
with_noise, soft = lqr.lqr(noisy, cost), lqr.lqr(noisy, cost, temperature=0.05)
moments = lqr.propagate(noisy, soft.policy, start, jnp.zeros((2, 2)))
spread = np.sqrt(moments.covariance[:, 0, 0])
print(f"largest change of a gain          {jnp.max(jnp.abs(with_noise.policy.K - solution.policy.K)):9.1e}")
print(f"cost-to-go with noise             {with_noise.value.at(start)[0]:9.4f}")
print(f"cost of the stochastic policy     {jnp.sum(lqr.expected_cost(cost, soft.policy, moments)):9.4f}")

# %% [markdown]
# How far apart are two stochastic policies? `kl_divergence` is the KL divergence of their actions, averaged over the states
# that the first of them visits. Methods that improve a policy by small steps, such as guided policy search, bound it.

# %%
dearer = lqr.lqr(noisy, lqr.quadratic_cost(Q, 2 * R, Q, STEPS), temperature=0.05).policy
print(f"KL to one with twice the R        {jnp.sum(lqr.kl_divergence(soft.policy, dearer, moments)):9.4f}")

# %% [markdown]
# ## 3. iLQR
#
# A pendulum hangs down. Its motor is too weak to lift it in one move. The dynamics are not linear and the cost is not
# quadratic, but near a trajectory they almost are. An iteration expands both around the current trajectory, solves the LQR
# problem of the deviations with bounded actions, and takes the best of several step sizes.

# %%
HORIZON, LIMIT = 100, 2.0


def swing(x, u, t):
    """The next angle (0 upright) and speed."""
    speed = x[1] + 0.05 * (15 * jnp.sin(x[0]) + 3 * u[0])
    return jnp.stack([x[0] + 0.05 * speed, speed])


def effort(x, u, t):
    """2 at the bottom and 0 at the top, and a little for speed and torque."""
    return 2 * (1 - jnp.cos(x[0])) + 0.1 * x[1] ** 2 + 0.001 * u[0] ** 2


pendulum = ilqr.vectors(swing, effort, lambda x: 0.0)
config = ilqr.DescentConfig(damping=0.0)
hanging, nudge = jnp.array([jnp.pi, 0.0]), jnp.full((HORIZON, 1), 1e-3)
iterate = jax.jit(lambda at: ilqr.improve(pendulum, at, -LIMIT, LIMIT, config))
trajectory = jax.jit(lambda: ilqr.begin(pendulum, hanging, nudge, config))()
costs, angles = [float(trajectory.cost)], [np.asarray(trajectory.carries[:, 0])]
while not trajectory.converged and len(costs) <= 200:
    trajectory = iterate(trajectory)
    costs.append(float(trajectory.cost))
    angles.append(np.asarray(trajectory.carries[:, 0]))
print(f"cost of hanging                   {costs[0]:9.4f}")
print(f"cost after the last iteration     {costs[-1]:9.4f}")
print(f"upright at the end                {np.cos(angles[-1][-1]):9.4f}")

# %% [markdown]
# The first actions are 0.001 and not 0. Exactly at the bottom, all derivatives by the actions are 0, and nothing would
# change. `ilqr` makes all iterations in one loop, which can be compiled:

# %%
solved = jax.jit(lambda: ilqr.ilqr(pendulum, hanging, nudge, -LIMIT, LIMIT, config))()
print(f"the same in one program           {solved.cost:9.4f}")

# %% [markdown]
# ## 4. Feedback
#
# The last iteration leaves gains K around the trajectory. If the pendulum starts elsewhere, the actions of the trajectory
# alone miss the top. With feedback, `u_t + K_t (x_t - x of the trajectory)`, the pendulum returns to it. Where the torque
# is at its limit the gains are 0.

# %%
pushed = hanging + jnp.array([0.1, 0.1])


def played(gains):
    """Angles from the pushed start, with feedback by `gains`."""

    def step(x, of):
        u, K, reference = of
        return swing(x, jnp.clip(u + K @ (x - reference), -LIMIT, LIMIT), 0), x

    last, before = jax.lax.scan(step, pushed, (solved.actions, gains, solved.carries[:-1]))
    return np.append(before[:, 0], last[0])


blind, fed_back = played(jnp.zeros_like(solved.K)), played(solved.K)
print(f"upright at the end, blind         {np.cos(blind[-1]):9.4f}")
print(f"upright at the end, with feedback {np.cos(fed_back[-1]):9.4f}")

# %% [markdown]
# ## 5. Many starts at once
#
# `ilqr` is a function of arrays, so `jax.vmap` runs it for many starts, or for many first guesses from one start. Each
# finds a local minimum.

# %%
first_guesses = jax.random.uniform(jax.random.key(0), (16, HORIZON, 1), minval=-LIMIT, maxval=LIMIT)
many = jax.jit(jax.vmap(lambda guess: ilqr.ilqr(pendulum, hanging, guess, -LIMIT, LIMIT, config)))(first_guesses)
print(f"best of 16 guesses                {many.cost.min():9.4f}")
print(f"worst of 16 guesses               {many.cost.max():9.4f}")

# %% [markdown]
# ## Pictures

# %%
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
time = DT * np.arange(STEPS + 1)
left.fill_between(
    time, moments.mean[:, 0] - 2 * spread, moments.mean[:, 0] + 2 * spread, color=BLUE, alpha=0.25, linewidth=0
)
left.plot(time, moments.mean[:, 0], color=BLUE, label="position, 2 standard deviations")
left.plot(time, still.mean[:, 0], color="0.2", linestyle="--", label="without noise")
left.set(xlabel="time in s", title="LQR: a mass on a line")
left.legend(frameon=False)
middle.plot(costs, color=BLUE)
middle.set(xlabel="iteration", ylabel="cost", title="iLQR: swinging up")
swinging = 0.05 * np.arange(HORIZON + 1)
right.plot(swinging, angles[-1], color="0.2", linestyle="--", label="planned")
right.plot(swinging, blind, color=RED, label="from elsewhere, blind")
right.plot(swinging, fed_back, color=GREEN, label="with feedback")
right.set(xlabel="time in s", ylabel="angle in rad", title="Feedback")
right.legend(frameon=False)
for axes in (left, middle, right):
    axes.spines[["top", "right"]].set_visible(False)

# %% [markdown]
# As a script, this file writes its picture to the folder that `PICTURES` names, if it names one.

# %%
if os.environ.get("PICTURES"):
    figure.savefig(os.path.join(os.environ["PICTURES"], "trajectories.png"), dpi=110)
