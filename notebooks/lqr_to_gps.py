# %% [markdown]
"""
# From LQR to iLQR to guided policy search

Trajectory optimisation with derivatives, from the case with an exact solution to a pendulum that must swing up, and to a
neural network that is trained without knowing the dynamics. All functions are pure functions of arrays: sections 1 to 5
need no environment, and none of the sections a training loop or a run folder.

1. LQR: linear dynamics and quadratic costs. The optimal policy is linear and known in closed form.
2. Noise and entropy: moments of the states, stochastic policies, and the KL divergence of two of them.
3. iLQR: nonlinear dynamics, by LQR about the current trajectory, again and again.
4. Feedback: the gains that iLQR finds along the way.
5. Many starts at once, by `jax.vmap`.
6. Unknown dynamics: local linear models of a few sampled trajectories.
7. LQR in these models, within a bound on the KL divergence: the C-step of guided policy search (GPS).
8. One network for all steps: the S-step.
"""

# %%
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from jaxmbrl import envs
from jaxmbrl.agents import regression
from jaxmbrl.models import local_linear
from jaxmbrl.planning import expansion, ilqr, lqr
from jaxmbrl.planning.trust_region_lqr import Models, c_step, inverse

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
# ## 6. Unknown dynamics: local models
#
# iLQR differentiates the dynamics. If they can only be sampled, a linear regression at each step takes the place of the
# derivatives. The task `pendulum-reach` raises a rod to horizontal and holds it there, for 40 steps of 0.1 s. Five
# episodes of a random controller are rows [state, action, next state] for each step, far fewer than a regression of its
# own needs. The prior is a mixture of Gaussians that is fitted to the rows of all steps.

# %%
task = envs.make("pendulum-reach")
EPISODES, LENGTH = 5, task.episode_length
MODEL = local_linear.LocalLinearConfig(clusters=4)


def sampled(act, key):
    """The rows of five episodes, in which `act(state, t, key)` is the command, limited to [-1, 1] when it is applied."""

    def episode(key):
        def step(state, at):
            t, key = at
            command = act(state.obs, t, key)
            after = task.env.step(state, jnp.clip(command, -1.0, 1.0))
            return after, (jnp.concatenate([state.obs, command, after.obs]), after.reward)

        keys = jax.random.split(key, LENGTH)
        return jax.lax.scan(step, task.env.reset(key), (jnp.arange(LENGTH), keys))[1]

    rows, rewards = jax.vmap(episode)(jax.random.split(key, EPISODES))
    return rows, -jnp.mean(jnp.sum(rewards, axis=1))


def by(policy):
    """Commands of a linear-Gaussian controller with one row for each step."""

    def act(x, t, key):
        noise = jnp.linalg.cholesky(policy.covariance[t]) @ jax.random.normal(key, (1,))
        return policy.K[t] @ x + policy.k[t] + noise

    return act


random_controller = lqr.LinearPolicy(jnp.zeros((LENGTH, 1, 2)), jnp.zeros((LENGTH, 1)), jnp.ones((LENGTH, 1, 1)))
rows, cost_of_random = jax.jit(lambda key: sampled(by(random_controller), key))(jax.random.key(1))
local = local_linear.fit(MODEL, rows, local_linear.keep(rows), MODEL.clusters_for(rows.shape[0] * LENGTH), inputs=3)
print(f"cost of random torques            {cost_of_random:9.4f}")
print(f"d speed / d command at step 20    {local.gain[20, 1, 2]:9.4f}")


def true_gain(row):
    """The derivatives of the next state by state and action."""
    return jax.jacobian(lambda y: task.env.step(task.env.state_at(y[:2]), y[2:]).obs)(row[:3])


print(f"the true derivative               {true_gain(rows[0, 20])[1, 2]:9.4f}")

# %% [markdown]
# ## 7. The C-step
#
# In these models, LQR would find the optimum in one step, and be wrong: it leaves the region of the samples. Therefore the
# new controller may only differ from the last one by a given KL divergence, here 1 nat a step. The multiplier of this
# constraint is found by bisection, and the rest is an LQR with entropy, as in section 2. Then five new episodes are sampled
# by the new controller, and so on. The episodes become alike, and the regressions better derivatives.


# %%
def command_cost(row):
    """Minus the reward of a row, and a penalty for commands beyond the limits, where the reward has no slope."""
    x, u, successor = jnp.split(row, [2, 3])
    return jnp.sum((u - jnp.clip(u, -1.0, 1.0)) ** 2) - task.reward(x, u, successor)


@jax.jit
def iteration(policy, multiplier, key):
    """(rows, their cost, the next controller, its multiplier)."""
    rows, cost = sampled(by(policy), key)
    count = MODEL.clusters_for(rows.shape[0] * LENGTH)
    dynamics = lqr.LinearDynamics(*local_linear.fit(MODEL, rows, local_linear.keep(rows), count, inputs=3))
    first = rows[:, 0, :2]
    models = Models(
        dynamics, *expansion.expand(command_cost, rows, dynamics), first.mean(axis=0), jnp.cov(first.T, bias=True), policy
    )
    found = c_step(models, jnp.array(1.0 * LENGTH), multiplier, least_std=0.1)
    return rows, cost, found.local, found.multiplier


controller, multiplier, sampled_costs = random_controller, jnp.array(1.0), []
for i in range(8):
    rows, sampled_cost, controller, multiplier = iteration(controller, multiplier, jax.random.key(10 + i))
    sampled_costs.append(float(sampled_cost))
local = local_linear.fit(MODEL, rows, local_linear.keep(rows), MODEL.clusters_for(rows.shape[0] * LENGTH), inputs=3)
print(f"d speed / d angle at step 3       {local.gain[3, 1, 0]:9.4f}")
print(f"the true derivative there         {true_gain(rows[:, 3].mean(axis=0))[1, 0]:9.4f}")
without_noise = jax.jit(lambda: sampled(lambda x, t, key: controller.K[t] @ x + controller.k[t], jax.random.key(0)))
reaching, cost_of_controller = without_noise()
print(f"cost of the last controller       {cost_of_controller:9.4f}")

# %% [markdown]
# The least cost of the task is 17.34. The controller is a table with gains for each step of one motion.
#
# ## 8. The S-step
#
# A network that maps states to actions can serve all steps, and all starts if there are several. It is regressed onto the
# controllers' actions, weighted by their precisions: where a controller has little variance, its action matters. In
# `jaxmbrl train gps` the network samples the next episodes, and the controllers are kept near the network.

# %%
agent = regression.make(regression.RegressionConfig(updates=3000), 2, 1)
states = jnp.concatenate([sampled(by(controller), jax.random.key(30 + i))[0] for i in range(4)])[..., :2]
targets = jnp.einsum("tij,ntj->nti", controller.K, states) + controller.k
precisions = jnp.broadcast_to(jax.vmap(inverse)(controller.covariance), (*targets.shape, 1))
pupil, _ = jax.jit(agent.fit)(
    agent.init(jax.random.key(0), {}),
    *(x.reshape(-1, *x.shape[2:]) for x in (states, targets, precisions)),
    jax.random.key(1),
)
acted, cost_of_network = jax.jit(lambda: sampled(lambda x, t, key: agent.mean(pupil, x), jax.random.key(0)))()
print(f"cost of the network               {cost_of_network:9.4f}")

# %% [markdown]
# ## Pictures

# %%
figure, ((left, middle, right), (below, between, last)) = plt.subplots(2, 3, figsize=(13, 7.4), layout="constrained")
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
below.plot(sampled_costs, color=BLUE, marker="o")
below.axhline(17.34, color="0.2", linestyle="--", label="least possible cost")
below.set(xlabel="iteration", ylabel="cost of its episodes", yscale="log", title="GPS: controllers in local models")
below.legend(frameon=False)
reach_time = 0.1 * np.arange(LENGTH)
between.plot(reach_time, np.asarray(rows[:, :, 0]).T, color=BLUE, alpha=0.4)
between.axhline(np.pi / 2, color="0.2", linestyle="--", label="horizontal")
between.set(xlabel="time in s", ylabel="angle in rad", title="The last five sampled episodes")
between.legend(frameon=False)
last.plot(reach_time, reaching[0, :, 2], color=BLUE, label="the controllers, a table of 40 steps")
last.plot(reach_time, acted[0, :, 2], color=RED, linestyle="--", label="the network, a function of the state")
last.set(xlabel="time in s", ylabel="command", title="From controllers to a network")
last.legend(frameon=False)
for axes in (left, middle, right, below, between, last):
    axes.spines[["top", "right"]].set_visible(False)

# %% [markdown]
# As a script, this file writes its picture to the folder that `PICTURES` names, if it names one.

# %%
if os.environ.get("PICTURES"):
    figure.savefig(os.path.join(os.environ["PICTURES"], "trajectories.png"), dpi=110)
