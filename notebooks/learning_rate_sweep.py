# %% [markdown]
"""
# A sweep of learning rates in one program

A traced hyperparameter need not have the same value for all seeds. Here we fit a dynamics model with six learning rates at
once, with `jax.vmap` around one function. Then we train Soft Actor-Critic with three learning rates as seeds of one run.
"""

# %%
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxmbrl
from jaxmbrl import envs
from jaxmbrl.data import replay
from jaxmbrl.models import EnsembleConfig, ensemble
from jaxmbrl.rollout import open_loop, rollout

BLUE, RED = "#0b3d91", "#c1440e"

# %% [markdown]
# ## One part: the fit of an ensemble
#
# The data are 20 episodes of the pendulum with 100 random actions each. `rollout` is written for one episode, and `vmap`
# runs it for all 20 at once.

# %%
task = envs.make("pendulum")


def episode(key):
    """100 steps of random actions."""
    reset_key, action_key, rollout_key = jax.random.split(key, 3)
    actions = jax.random.uniform(action_key, (100, 1), minval=-1.0, maxval=1.0)
    start = (task.world.reset(reset_key), jnp.zeros((), jnp.int32))
    return rollout(task.world, open_loop(actions), start, rollout_key, 100)[1]


steps = jax.jit(jax.vmap(episode))(jax.random.split(jax.random.key(0), 20))
rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), steps._replace(extras=()))

# %% [markdown]
# `model.init` takes traced hyperparameters by name, so the learning rate can be an argument of a function under `vmap`.

# %%
config = EnsembleConfig(members=3, elites=3, hidden=(64, 64), batch_size=128, max_epochs=20, patience=20)
model = ensemble.make(config, 3, 1, reward=task.reward, terminated=task.terminated)
rates = jnp.array([1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2])


def error_with(rate):
    """Holdout error after a fit with this learning rate, in units of the fitted targets."""
    init_key, fit_key = jax.random.split(jax.random.key(1))
    _, found = model.fit(model.init(init_key, {"learning_rate": rate}), replay.of_rows(rows), fit_key)
    return found["model/holdout_error"].total / found["model/holdout_error"].weight


errors = np.asarray(jax.jit(jax.vmap(error_with))(rates))
for rate, error in zip(rates, errors, strict=True):
    print(f"model {float(rate):<8.0e}{error:12.5f}")

# %% [markdown]
# ## A whole run: Soft Actor-Critic
#
# `hyper` gives a value for each seed. Three learning rates with two seeds each are six seeds of one program.

# %%
wanted = [1e-5, 1e-5, 1e-3, 1e-3, 1e-1, 1e-1]
settings = {
    "agent.hidden": (64, 64),
    "batch_size": 128,
    "updates_per_step": 4,
    "replay_capacity": 10_000,
    "warmup_steps": 500,
    "epoch_steps": 500,
    "eval_every": 1,
}
result = jaxmbrl.train("sac", "pendulum", steps=3000, seeds=6, settings=settings, hyper={"learning_rate": wanted})
curves = {rate: {} for rate in wanted}
for row in result.rows:
    if "eval/return" in row:
        curves[wanted[row["seed"]]].setdefault(row["env_steps"], []).append(row["eval/return"])
for rate, curve in curves.items():
    print(f"sac {rate:<10.0e}{np.mean(curve[3000]):12.1f}")

# %% [markdown]
# ## Results
#
# In 20 epochs a small learning rate has hardly begun to fit, and even 1e-2 is not too large for the ensemble. For Soft
# Actor-Critic the middle value is best: with 1e-1 it learns nothing that lasts, with 1e-5 nothing at all. Six values cost
# as much as six seeds with one value, and the program was compiled once.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
left.plot(rates, errors, color=BLUE, marker="o", linewidth=2)
left.set(xscale="log", yscale="log", xlabel="learning rate of the ensemble", ylabel="error on unseen rows (fitted units)")
left.set_title("Six fits, one vmap", loc="left", fontsize=11)
for (rate, curve), color in zip(curves.items(), (BLUE, RED, "0.5"), strict=True):
    at = sorted(curve)
    right.plot(at, [np.mean(curve[step]) for step in at], color=color, linewidth=2.2, label=f"{rate:g}")
right.set(xlabel="real environment steps", ylabel="return per episode")
right.set_title("Three rates of SAC, two seeds each, one program", loc="left", fontsize=11)
right.legend(frameon=False, title="learning rate")
for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)

# %% [markdown]
# As a script, this file writes its picture to the folder that `PICTURES` names, if it names one.

# %%
if os.environ.get("PICTURES"):
    figure.savefig(os.path.join(os.environ["PICTURES"], "rates.png"), dpi=110)
