# %% [markdown]
"""
# Over how many steps are gradients through a model useful?

A value gradient is the derivative of the return of some imagined steps, taken through the model. A model that predicts well
need not have accurate derivatives, and errors multiply over the steps. Here the true simulator is differentiable too, so we
can compare the gradient through a fitted model with the true one for longer and longer horizons.
"""

# %%
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

from jaxmbrl import envs
from jaxmbrl.data import replay
from jaxmbrl.models import EnsembleConfig, ensemble
from jaxmbrl.rollout import open_loop, rollout

BLUE, RED = "#0b3d91", "#c1440e"
HORIZONS = (1, 2, 5, 10, 20, 40)
task = envs.make("pendulum")

# %% [markdown]
# ## Data and models
#
# The data are 3,000 single steps from states in the whole state space, under random actions. One ensemble is fitted to all
# of them, another to the first 150. The reward is known and members predict no noise, so only the learned motion differs
# from the simulator.


# %%
def one(key):
    """A step from a random state."""
    state_key, action_key, step_key = jax.random.split(key, 3)
    high = jnp.array([jnp.pi, 8.0])
    state = task.env.state_at(jax.random.uniform(state_key, (2,), minval=-high, maxval=high))
    action = jax.random.uniform(action_key, (1,), minval=-1.0, maxval=1.0)
    return task.world.step(task.world.start(state, step_key), action, step_key)[1]


rows = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 3000))._replace(extras=())
config = EnsembleConfig(
    members=5,
    elites=5,
    probabilistic=False,
    propagation="expectation",
    hidden=(64, 64),
    batch_size=64,
    learning_rate=3e-3,
    annealing=True,
    holdout_fraction=0.0,
    max_epochs=60,
)
model = ensemble.make(config, 3, 1, reward=task.reward, terminated=task.terminated)
fit = jax.jit(lambda key, count: model.fit(model.init(key, {}), replay.of_rows(rows, count), key)[0])
fitted = {count: fit(jax.random.key(1), jnp.asarray(count)) for count in (150, 3000)}

# %% [markdown]
# ## Gradients
#
# We play sequences of random actions from 50 states near the top, and differentiate the return with respect to all actions,
# through the simulator and through the model. The world is the only difference.


# %%
def slope(world, origin, actions):
    """Derivative of the return of `actions` from `origin` with respect to the actions."""

    def earned(actions):
        start = (world.start(origin, jax.random.key(0)), jnp.zeros((), jnp.int32))
        return rollout(world, open_loop(actions), start, jax.random.key(0), len(actions))[1].reward.sum()

    return jax.grad(earned)(actions)


def compare(key, state, horizon):
    """(norm of the true gradient, cosine of the angle between it and the model's)."""
    place_key, action_key = jax.random.split(key)
    at = task.env.state_at(jax.random.uniform(place_key, (2,), minval=-0.3, maxval=0.3))
    actions = jax.random.uniform(action_key, (horizon, 1), minval=-0.5, maxval=0.5)
    true = slope(task.world, at, actions).ravel()
    learned = slope(model.world(state), at.obs[None], actions).ravel()
    norms = jnp.linalg.norm(true) * jnp.linalg.norm(learned)
    return jnp.linalg.norm(true), true @ learned / norms


keys = jax.random.split(jax.random.key(2), 50)
norms, cosines = [], {count: [] for count in fitted}
for horizon in HORIZONS:
    many = jax.jit(jax.vmap(lambda key, state, horizon=horizon: compare(key, state, horizon), in_axes=(0, None)))
    for count, state in fitted.items():
        norm, cosine = many(keys, state)
        cosines[count].append(float(jnp.median(cosine)))
    norms.append(float(jnp.median(norm)))
    columns = "".join(f"{cosines[count][-1]:12.4f}" for count in fitted)
    print(f"horizon {horizon:<4}{norms[-1]:12.3f}{columns}")

# %% [markdown]
# ## Results
#
# Near the top the pendulum falls, and the effect of small pushes grows. So does the norm of the gradient, by a factor of
# two hundred from 5 steps to 20. While the pendulum falls, the gradients of both models have the same direction as the
# true one. After 40 steps it has swung through states where the speed is clipped, and where a small push decides to which
# side it goes. There the direction of the good model is half right, and that of the model fitted to 150 steps is useless.
# This is why value-gradient methods take only a few steps in the model, and use a critic for the value after them.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
left.plot(HORIZONS, norms, color="0.3", marker="o", linewidth=2)
left.set(
    xscale="log", yscale="log", xlabel="steps differentiated through", ylabel="norm of the true gradient, reward per action"
)
left.set_title("Gradients grow", loc="left", fontsize=11)
for (count, found), color in zip(cosines.items(), (RED, BLUE), strict=True):
    right.plot(HORIZONS, found, color=color, marker="o", linewidth=2, label=f"fitted to {count:,} steps")
right.axhline(1.0, color="0.8", linewidth=1, zorder=0)
right.set(
    xscale="log", xlabel="steps differentiated through", ylabel="cosine of the angle to the true one", ylim=(-0.4, 1.05)
)
right.set_title("and their direction is lost at long horizons", loc="left", fontsize=11)
right.legend(frameon=False, loc="lower left")
for axes in (left, right):
    axes.set_xticks(HORIZONS, [str(horizon) for horizon in HORIZONS])
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)

# %% [markdown]
# As a script, this file writes its picture to the folder that `PICTURES` names, if it names one.

# %%
if os.environ.get("PICTURES"):
    figure.savefig(os.path.join(os.environ["PICTURES"], "gradients.png"), dpi=110)
