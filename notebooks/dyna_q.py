# %% [markdown]
"""
# Dyna-Q, cell by cell

Dyna-Q is the smallest complete method of model-based reinforcement learning. It learns from each real step, remembers the
outcome in a model, and then learns from outcomes that it recalls from the model. Here we write it from the parts of
`jaxmbrl`, see what each part does in a small maze, and compare it with Q-learning. The same method is
`jaxmbrl train dyna-q`.
"""

# %%
import os
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from jaxmbrl import envs
from jaxmbrl.agents import tables
from jaxmbrl.envs.tabular.tables import optimal_values
from jaxmbrl.models import tabular
from jaxmbrl.rollout import auto_reset, rollout

BLUE, RED, GREEN = "#0b3d91", "#c1440e", "#2e7d32"

# %% [markdown]
# ## The maze
#
# A state is the number of a cell. The actions are up, down, left and right. A step into the goal (green) earns 1 and ends
# the episode; all other rewards are 0. With a discount of 0.95 the value of the start is `0.95 ** 13`: the shortest path
# has 14 steps.

# %%
task = envs.make("dyna-maze")
start = task.env.reset(jax.random.key(0))
DISCOUNT = 0.95
best = optimal_values(task.env.mdp, DISCOUNT)
print(f"{task.observation.n} cells, {task.action.n} actions; V*(start) = {best[int(start.obs)]:.4f} = {0.95**13:.4f}")
plt.imshow(task.env.draw(jax.device_get(start), None))
plt.axis("off")
plt.show()

# %% [markdown]
# ## One update
#
# Q-learning moves `Q(s, a)` towards the reward plus the discounted value of the next state. From the cell below the goal,
# a step up earns 1: the first update moves its value from 0 to `alpha`.

# %%
ALPHA = 0.1
q = jnp.zeros((task.observation.n, task.action.n))
carry, row = task.world.step((task.env.state_at(17), jnp.int32(0)), jnp.int32(0), jax.random.key(0))
error = tables.td_error(q, DISCOUNT, row.observation, row.action, row)
q = tables.moved(q, ALPHA, row.observation, row.action, error)
print(f"reward {float(row.reward)}, terminated {bool(row.terminated)}, error {float(error)}, Q = {float(q[17, 0]):.2f}")

# %% [markdown]
# ## The model
#
# The model remembers the last outcome of each pair of a state and an action. `draw_pair` draws a visited state, then an
# action that was tried in it. The model contains whether the task terminated; otherwise planning would look for a value
# behind the goal.

# %%
model = tabular.init(task.observation.n, task.action.n)
model = tabular.remember(model, row, jnp.int32(1))
state, action = tabular.draw_pair(model, jnp.array([0.3, 0.8]))
print(f"drawn: cell {int(state)}, action {int(action)} ->", jax.tree.map(np.asarray, tabular.last(model, state, action)))

# %% [markdown]
# ## Dyna-Q
#
# One step of the method: act, update, remember, and `n` updates with the model. `auto_reset` begins a new episode after
# each end. Everything is a function of arrays, so that thirty seeds run at once under `jax.vmap`.


# %%
class Learned(NamedTuple):
    """What a seed has learned."""

    q: jax.Array
    model: tabular.TabularModel


def dyna_q(key, n, steps, epsilon=0.1):
    """(Q at the end, whether an episode ended at each step) of `steps` environment steps with `n` planning updates each."""

    def update(q, state, action, outcome):
        return tables.moved(q, ALPHA, state, action, tables.td_error(q, DISCOUNT, state, action, outcome))

    def step(loop, time):
        at, learned, key = loop
        key, act_key, plan_key = jax.random.split(key, 3)
        # Act.
        world, policy = auto_reset(task.world, tables.epsilon_greedy(learned.q, task, epsilon, explore=True))
        at, rows = rollout(world, policy, at, act_key, 1)
        row = jax.tree.map(lambda x: x[0], rows)
        # Learn from the step, and remember it.
        q = update(learned.q, row.observation, row.action, row)
        model = tabular.remember(learned.model, row, time)

        # Learn from what is remembered.
        def plan(q, numbers):
            state, action = tabular.draw_pair(model, numbers)
            return update(q, state, action, tabular.last(model, state, action)), None

        q, _ = jax.lax.scan(plan, q, jax.random.uniform(plan_key, (n, 2)))
        return (at, Learned(q, model), key), row.terminated

    world, _ = auto_reset(task.world, tables.greedy(q))
    reset_key, key = jax.random.split(key)
    sizes = task.observation.n, task.action.n
    first = Learned(jnp.zeros(sizes), tabular.init(*sizes))
    loop = ((world.reset(reset_key), ()), first, key)
    (_, learned, _), ended = jax.lax.scan(step, loop, jnp.arange(steps, dtype=jnp.int32))
    return learned.q, ended


SEEDS = 30
keys = jax.random.split(jax.random.key(1), SEEDS)
results = {n: jax.jit(jax.vmap(lambda key, n=n: dyna_q(key, n, 12_000 if n == 0 else 5000)))(keys) for n in (0, 5, 50)}

# %% [markdown]
# ## What planning saves
#
# The first episode is a random walk in all cases: there is nothing to plan with before the first reward. Then fifty
# planning updates spread the reward of one episode over nearly the whole maze, and a step of Q-learning over one cell.

# %%
EPISODES = 30
steps_of = {}
curves, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
for (n, (_, ended)), color in zip(results.items(), (RED, BLUE, GREEN), strict=True):
    ends = [np.flatnonzero(of_seed)[:EPISODES] for of_seed in np.asarray(ended)]
    assert min(map(len, ends)) == EPISODES
    steps_of[n] = np.mean([np.diff(end, prepend=-1) for end in ends], axis=0)
    axes.plot(np.arange(1, EPISODES + 1), steps_of[n], color=color, linewidth=2, label=f"n = {n}")
    print(f"n = {n:<3} episodes 1 to 4: {np.round(steps_of[n][:4], 1)}, the last 5: {steps_of[n][-5:].mean():.1f}")
axes.set(yscale="log", xlabel="episode", ylabel="steps, mean of 30 seeds")
axes.legend()
plt.show()

# %% [markdown]
# ## The values
#
# The table after 5,000 steps with fifty planning updates, beside the optimal values. Cells that a good path does not
# visit keep low values: the model knows only what was tried.

# %%
free = best.reshape(6, 9) > 0
figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
learned = np.asarray(results[50][0]).max(axis=2)
for ax, values, title in ((axes[0], learned[0], "learned, seed 0"), (axes[1], best, "optimal")):
    image = ax.imshow(np.where(free, values.reshape(6, 9), np.nan), vmin=0, vmax=1)
    ax.set_title(title)
    ax.axis("off")
figure.colorbar(image, ax=axes)
plt.show()
of_start = learned[:, int(start.obs)]
if os.environ.get("PICTURES"):
    curves.savefig(os.path.join(os.environ["PICTURES"], "curves.png"), dpi=110)
    figure.savefig(os.path.join(os.environ["PICTURES"], "values.png"), dpi=110)
print(f"value of the start: {of_start.mean():.4f} learned (mean of 30 seeds), {best[int(start.obs)]:.4f} optimal")

# %% [markdown]
# ## Next
#
# - `jaxmbrl train dyna-q --env dyna-maze --seeds 30 --planning-updates 50` trains the same method with checkpoints,
#   evaluation and a report.
# - `prioritized-sweeping` chooses the pairs of planning by the size of their update; `dyna-q-plus` explores what was not
#   tried for long; `q-planning` samples stochastic models; `linear-dyna` plans with features.
