# %% [markdown]
"""
# A dynamics ensemble and CEM on their own

The parts of `jaxmbrl` can be used on their own. Here we fit a probabilistic ensemble to transitions that we generate in
plain NumPy, and plan with the cross-entropy method (CEM) in the fitted model. There is no environment class, no training
loop and no run folder.

The system is a puck on a table with a fan in the middle. The fan blows the puck outwards, more strongly at a short
distance, and makes it flutter. The task is to move the puck from one side to the other and to stay there. The straight
path leads over the fan.
"""

# %%
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from jaxmbrl import planning
from jaxmbrl.core.types import Transition
from jaxmbrl.data import replay
from jaxmbrl.models import EnsembleConfig, ensemble, uncertainty
from jaxmbrl.planning import CEMConfig, PlannerConfig

BLUE, RED, GREEN, GREY = "#0b3d91", "#c1440e", "#2e7d32", "0.55"
START, GOAL = np.array([-0.9, -0.3]), np.array([0.9, 0.3])
STEPS = 40
random = np.random.default_rng(0)

# %% [markdown]
# ## The system, in NumPy
#
# An observation is `[x, y, x velocity, y velocity]`. An action is a push in `[-1, 1]` along each axis. Near the fan the
# next velocity is uncertain. This is noise of the system itself, which no amount of data removes.

# %%
DT, DRAG, PUSH = 0.1, 0.5, 1.5
FAN, FAN_WIDTH, FLUTTER = 4.0, 0.4, 0.1


def wind(place):
    """Strength of the fan at positions [N, 2]; 1 at its centre."""
    return np.exp(-np.sum(place**2, axis=1) / (2 * FAN_WIDTH**2))


def step(observation, action):
    """The next observations [N, 4] of N pucks."""
    place, velocity = observation[:, :2], observation[:, 2:]
    strength = wind(place)[:, None]
    force = PUSH * action - DRAG * velocity + FAN * strength * place / FAN_WIDTH
    noise = FLUTTER * strength * random.normal(size=place.shape)
    velocity = velocity + DT * force + noise
    return np.concatenate([place + DT * velocity, velocity], axis=1)


# %% [markdown]
# The data are single steps of pucks at random positions with random pushes. We leave out the upper left corner, to see
# whether the ensemble is uncertain there.

# %%
ROWS = 5000
places = random.uniform(-1.2, 1.2, (3 * ROWS, 2))
seen = ~((places[:, 0] < -0.2) & (places[:, 1] > 0.2))
observation = np.concatenate([places[seen][:ROWS], random.uniform(-1, 1, (ROWS, 2))], axis=1)
action = random.uniform(-1, 1, (ROWS, 2))
following = step(observation, action)

# %% [markdown]
# ## Fit the ensemble
#
# `ensemble.make` returns four pure functions: `init`, `fit`, `predict` and `world`. The rows are one `Transition` of
# arrays, in a replay buffer. We know the reward and the termination, so we pass them as functions, and the model learns
# only the motion.

# %%


def reward(observation, action, next_observation):
    """Minus the distance from the goal, minus a small cost of pushing."""
    distance = jnp.sqrt(jnp.sum((next_observation[..., :2] - GOAL) ** 2, axis=-1) + 1e-4)
    return -distance - 0.02 * jnp.sum(action**2, axis=-1)


def terminated(next_observation):
    """The task never terminates."""
    return jnp.zeros(next_observation.shape[:-1], bool)


config = EnsembleConfig(members=5, elites=5, hidden=(64, 64), batch_size=64, learning_rate=3e-3, max_epochs=80, patience=15)
model = ensemble.make(config, observation=4, action=2, reward=reward, terminated=terminated)

never = jnp.zeros(ROWS, bool)
rows = Transition(*(jnp.asarray(x, float) for x in (observation, action, np.zeros(ROWS), following)), never, never)
first_key, fit_key, plan_key, shooting_key, imagine_key = jax.random.split(jax.random.key(0), 5)
state, metrics = jax.jit(model.fit)(model.init(first_key, {}), replay.of_rows(rows), fit_key)
for name, average in metrics.items():
    print(f"{name:<26}{float(average.total / average.weight):.4g}")

# %% [markdown]
# ## Aleatoric and epistemic uncertainty
#
# We release a puck at rest at points on the diagonal from the upper left corner to the lower right one, and predict its
# next velocity. `uncertainty` splits the members' predictions into two variances: the predicted noise (aleatoric) and the
# disagreement of the members (epistemic). The first should follow the strength of the fan. The second should grow on the
# left, where there are no data.

# %%
along = np.linspace(-1.6, 1.6, 161)
probes = np.stack([along, -along, np.zeros_like(along), np.zeros_like(along)], axis=1)
mean, variance = jax.jit(model.predict)(state, jnp.asarray(probes, float), jnp.zeros((len(along), 2)))
aleatoric, epistemic = (np.sqrt(part[:, 2]) for part in uncertainty(mean, variance))
middle = np.asarray(mean[:, :, 2].mean(axis=0))
probed = along[:, None] * np.array([1, -1])
truth = DT * FAN * wind(probed) * along / FAN_WIDTH
flutter = FLUTTER * wind(probed)

figure, (above, below) = plt.subplots(2, 1, figsize=(7, 6), sharex=True, layout="constrained", height_ratios=(3, 2))
for axes in (above, below):
    axes.axvspan(along[0], -0.2, color="0.94", zorder=0)
    axes.axvspan(1.2, along[-1], color="0.94", zorder=0)
    axes.spines[["top", "right"]].set_visible(False)
both = np.sqrt(aleatoric**2 + epistemic**2)
above.fill_between(along, middle - 2 * both, middle + 2 * both, color=RED, alpha=0.25, label="and epistemic", linewidth=0)
above.fill_between(
    along, middle - 2 * aleatoric, middle + 2 * aleatoric, color=BLUE, alpha=0.3, label="2 x aleatoric", linewidth=0
)
above.plot(along, middle, color=BLUE, linewidth=2, label="ensemble")
above.plot(along, truth, color="0.2", linestyle="--", label="truth")
above.set_ylabel("next x velocity")
above.set_title("A puck let go on the diagonal (no data where grey)", fontsize=11)
above.legend(frameon=False, loc="lower right")
below.plot(along, flutter, color="0.2", linestyle="--", label="true noise")
below.plot(along, aleatoric, color=BLUE, linewidth=2, label="aleatoric")
below.plot(along, epistemic, color=RED, linewidth=2, label="epistemic")
below.set(xlabel="x, with y = -x", ylabel="standard deviation")
below.legend(frameon=False, loc="upper right")

# %% [markdown]
# The aleatoric uncertainty matches the true noise. The disagreement is small where there are many data and the motion is
# simple. It is larger on the flanks of the fan, where the motion is curved and noisy, and it grows far from all data. But
# it is not a reliable warning: just beyond the edge of the data the members still extrapolate in the same way.

# %% [markdown]
# ## Plan
#
# A fitted model is a world: `model.world(state)` can be rolled out like a simulator. It moves a block of rows at once, the
# particles. All particles start at the state of the puck, and spread because of noise and because different members move
# them. `make_problem` turns the world into a problem for a planner. Its `score` is the mean return over the particles of
# an action sequence. CEM searches for a sequence with a high score.

# %%
PARTICLES = 10
world = model.world(state)
pushes = planning.unit_box(2)
planner = planning.make(
    PlannerConfig(cem=CEMConfig(horizon=STEPS, population=500, elites=25, iterations=40, momentum=0.5)), pushes
)


def particles(observation):
    """Copies of one start state, one for each particle."""
    return jnp.tile(jnp.asarray(observation, float), (PARTICLES, 1))


start = np.concatenate([START, np.zeros(2)])
problem = planning.make_problem(world, particles(start), pushes)
plan, _, _ = jax.jit(lambda key: planner.plan(problem, planner.init(), key))(plan_key)

many = jax.random.uniform(shooting_key, (300, STEPS, 2), minval=-1, maxval=1)
random_returns = jax.jit(jax.vmap(problem.score, in_axes=(0, None)))(many, imagine_key)
planned_return = float(jax.jit(problem.score)(plan, imagine_key))
print(f"imagined return of the plan       {planned_return:8.2f}")
print(f"of 300 random plans, the best     {float(random_returns.max()):8.2f}")
print(f"                     on average   {float(random_returns.mean()):8.2f}")

# %% [markdown]
# What happens in the model under the plan? `play` returns the steps of which the score is the sum, with the same random
# numbers.

# %%
imagined = jax.jit(lambda key: planning.play(problem, plan, key))(imagine_key)
imagined_ways = np.concatenate([np.tile(start, (1, PARTICLES, 1)), np.asarray(imagined.next_observation)])

# %% [markdown]
# ## Act in the real system
#
# First we play the plan open loop. Then we replan at every step from the real state of the puck, and take only the first
# action. This is model-predictive control (MPC); `planning_policy` makes such a policy from a planner and a world. A
# shorter horizon is enough for it, and each search starts from the rest of the last plan.

# %%
PUCKS = 6


def play(choose):
    """(states [STEPS + 1, 4], return) of a puck that is pushed by `choose(observation, i)`."""
    ways, earned = [start], 0.0
    for i in range(STEPS):
        push = np.asarray(choose(ways[-1], i), float)
        ways.append(step(ways[-1][None], push[None])[0])
        earned += float(reward(ways[-2], push, ways[-1]))
    return np.stack(ways), earned


shorter = CEMConfig(horizon=25, population=100, elites=10, iterations=5)
policy = planning.planning_policy(planning.make(PlannerConfig(cem=shorter), pushes), world, particles, pushes)
act = jax.jit(policy.act)


def controlled(puck):
    """`planning_policy` as a function for `play`. Its memory is the rest of the last plan."""
    key = jax.random.fold_in(plan_key, puck)
    memory = policy.init(key)

    def choose(observation, i):
        nonlocal memory
        chosen, _, memory = act(memory, jnp.asarray(observation, float), jax.random.fold_in(key, i))
        return chosen

    return choose


blind = [play(lambda observation, i: plan[i]) for _ in range(PUCKS)]
looking = [play(controlled(puck)) for puck in range(PUCKS)]
drifting = [play(lambda observation, i: random.uniform(-1, 1, 2)) for _ in range(PUCKS)]
means = {}
for name, played in (("random pushes", drifting), ("the plan, blind", blind), ("planning at every step", looking)):
    means[name] = np.mean([earned for _, earned in played])
    print(f"{name:<34}{means[name]:8.2f}")

# %% [markdown]
# ## Results
#
# The left picture shows the imagined trajectories, the right one the real ones. Under the open-loop plan the pucks move
# as imagined: the model predicts the positions well, and its particles spread like the real pucks. But one search for 80
# numbers ends far from the optimum. Replanning makes one search per step, each from the end of the last search and from
# the real state of the puck. It finds a path around the fan, without being given one, and stops at the goal.

# %%
picture, (left, right) = plt.subplots(1, 2, figsize=(10, 5), sharex=True, sharey=True, layout="constrained")
grid = np.linspace(-1.3, 1.9, 120)
corners = np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, 2)
for axes in (left, right):
    axes.contourf(grid, grid, wind(corners).reshape(120, 120), levels=[0.1, 0.3, 0.5, 0.7, 1.01], cmap="Greys", alpha=0.5)
    axes.plot(*START, marker="o", color="black", markersize=8)
    axes.plot(*GOAL, marker="*", color="black", markersize=14)
    axes.set(xlim=(-1.3, 1.6), ylim=(-1.0, 1.9), xlabel="x", aspect="equal")
    axes.spines[["top", "right"]].set_visible(False)
left.plot(imagined_ways[:, :, 0], imagined_ways[:, :, 1], color=BLUE, linewidth=0.8, alpha=0.7)
left.set(title=f"Imagined: {PARTICLES} particles of one plan", ylabel="y")
for played, color, name in (
    (drifting, GREY, "random"),
    (blind, RED, "the plan, blind"),
    (looking, GREEN, "planning each step"),
):
    for puck, (ways, _) in enumerate(played):
        right.plot(ways[:, 0], ways[:, 1], color=color, linewidth=1, alpha=0.8, label=None if puck else name)
right.set(title=f"Played: {PUCKS} pucks each")
right.legend(frameon=False, loc="lower right")

# %% [markdown]
# As a script, this file writes its two pictures to the folder that `PICTURES` names, if it names one.

# %%
if os.environ.get("PICTURES"):
    figure.savefig(os.path.join(os.environ["PICTURES"], "uncertainty.png"), dpi=110)
    picture.savefig(os.path.join(os.environ["PICTURES"], "ways.png"), dpi=110)
