# %% [markdown]
"""
# MBPO in memory

`jaxmbrl.train` without `out` writes no files; it returns the whole run. Here MBPO learns to swing up a pendulum, with two
seeds in one compiled program. We plot the returns and the error of the model, and then play an episode with the trained
policy.
"""

# %%
import os

import jax
import matplotlib.pyplot as plt
import numpy as np

import jaxmbrl
from jaxmbrl.rollout import rollout

BLUE, RED = "#0b3d91", "#c1440e"

# %% [markdown]
# ## Train
#
# The preset `small` is sized for a CPU. Any field of the config can be set by its path. Here we ask for an evaluation
# after each epoch of 200 steps.

# %%
result = jaxmbrl.train("mbpo", "pendulum", steps=2000, seeds=2, preset="small", settings={"eval_every": 1})
print(f"rows                {len(result.rows)}")
print("what a row holds    " + ", ".join(sorted(result.rows[-1])))

# %% [markdown]
# ## Learning curves
#
# A row is one epoch of one seed. `eval/return` is the return of the deterministic policy on fixed start states. A random
# policy gets about -1,200; the best possible return is near -140. The error of the model need not fall, because each epoch
# adds rows from new states, and the model is evaluated on them too.


# %%
def curves(name):
    """(steps, values [seeds, epochs]) of a metric, over the epochs in which every seed has it."""
    found = {}
    for row in result.rows:
        if name in row:
            found.setdefault(row["env_steps"], []).append(row[name])
    steps = [step for step in sorted(found) if len(found[step]) == 2]
    return np.array(steps), np.array([found[step] for step in steps]).T


figure, (above, below) = plt.subplots(2, 1, figsize=(7, 6), sharex=True, layout="constrained", height_ratios=(3, 2))
steps, returns = curves("eval/return")
above.plot(steps, returns.T, color=BLUE, alpha=0.4, linewidth=1)
above.plot(steps, returns.mean(axis=0), color=BLUE, linewidth=2.2)
above.set(ylabel="return per episode", title="MBPO on the pendulum: two seeds and their mean")
steps, errors = curves("model/holdout_error")
below.plot(steps, errors.T, color=RED, alpha=0.4, linewidth=1)
below.plot(steps, errors.mean(axis=0), color=RED, linewidth=2.2)
below.set(xlabel="real environment steps", ylabel="model error (fitted units)", yscale="log")
for axes in (above, below):
    axes.spines[["top", "right"]].set_visible(False)
print(f"return of the first evaluation  {returns[:, 0].mean():.1f}")
print(f"return of the last evaluation   {returns[:, -1].mean():.1f}")
print(f"model's error, first            {errors[:, 0].mean():.4f}")
print(f"model's error, last             {errors[:, -1].mean():.4f}")

# %% [markdown]
# ## Play an episode
#
# `result.policy` makes a policy from the state of one seed, and `result.task.world` is the pendulum. `rollout`, which also
# collects the training data, returns the steps of an episode as stacked arrays.

# %%
policy = result.policy(jax.tree.map(lambda leaf: leaf[0], result.state))
reset_key, memory_key, rollout_key = jax.random.split(jax.random.key(7), 3)
start = (result.task.world.reset(reset_key), policy.init(memory_key))
_, played = jax.jit(lambda start, key: rollout(result.task.world, policy, start, key, 200))(start, rollout_key)
upright = np.asarray(played.next_observation[:, 0])
picture, axes = plt.subplots(figsize=(7, 2.6), layout="constrained")
axes.plot(np.arange(1, 201) * 0.05, upright, color=BLUE, linewidth=2)
axes.set(xlabel="time, s", ylabel="cosine of the angle", title="An episode: 1 is upright", ylim=(-1.1, 1.1))
axes.spines[["top", "right"]].set_visible(False)
print(f"upright in the last 2 s         {upright[-40:].mean():.3f}")

# %% [markdown]
# As a script, this file writes its two pictures to the folder that `PICTURES` names, if it names one.

# %%
if os.environ.get("PICTURES"):
    figure.savefig(os.path.join(os.environ["PICTURES"], "curves.png"), dpi=110)
    picture.savefig(os.path.join(os.environ["PICTURES"], "episode.png"), dpi=110)
