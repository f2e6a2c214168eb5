# %% [markdown]
"""
# What a belief knows

A recurrent state-space model does not see the state. It keeps a belief h, z, which each observation corrects, and which an
action carries on without one. Here Dreamer learns to swing up a pendulum of which it sees the angle, but never the speed.
Then we filter recorded episodes with its model and look into the belief: the speed that it never saw, what it expected
beside what it saw, predictions without observations, and the trajectories in which the actor learned.
"""

# %%
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxmbrl
from jaxmbrl.agents import imagined
from jaxmbrl.models.imagination import imagine
from jaxmbrl.models.latent import by_successor, repeated, rssm
from jaxmbrl.nn import rules
from jaxmbrl.rollout import rollout

BLUE, RED, GREY = "#0b3d91", "#c1440e", "#8a8a8a"

# %% [markdown]
# ## Train
#
# `masked/pendulum` has the observation (cos, sin) of the angle. The preset `small` is sized for a CPU. Without `out`, no
# files are written.

# %%
result = jaxmbrl.train("dreamer", "masked/pendulum", steps=6000, settings={"eval_every": 0})
returns = [row["train/return"] for row in result.rows if "train/return" in row]
print(f"return of the first epoch           {returns[0]:.1f}")
print(f"return of the last epoch            {returns[-1]:.1f}")

# %% [markdown]
# ## Record episodes, and filter them
#
# The policy with exploration plays 24 episodes of 200 steps. `by_successor` turns rows into positions: the position of an
# observation has the action, the reward and the end of the step that led to it. `rssm.filtered` computes the belief at each
# position, as the acting policy does, and the outputs of the posterior q(z | h, o); `prior` computes those of p(z | h),
# which has not seen the observation.

# %%
EPISODES, STEPS, DT = 24, 200, 0.05
config, task = result.config.settings, result.task
state = jax.tree.map(lambda leaf: leaf[0], result.state)
parts = rssm.networks(config.model, task.observation, task.action)
model, params = rssm.assemble(config.model, parts), state.learned.model.params
policy = result.policy(state, explore=True)


@jax.jit
def record(key):
    """Episodes as a window, its beliefs, and the outputs of posterior and prior."""

    def one(key):
        start_key, memory_key, key = jax.random.split(key, 3)
        start = (task.world.reset(start_key), policy.init(memory_key))
        return rollout(task.world, policy, start, key, STEPS)[1]

    rows = jax.vmap(one)(jax.random.split(key, EPISODES))
    is_first = jnp.zeros(rows.reward.shape, bool).at[:, 0].set(True)
    window = by_successor(rows, is_first, task.action)
    beliefs, posterior = rssm.filtered(parts, params, window, key)
    return window, beliefs, posterior, parts.prior(params, beliefs.deter)


window, beliefs, posterior, prior = record(jax.random.key(1))
print("positions, numbers of h and of z   ", *beliefs.deter.shape[1:], beliefs.stoch.shape[-1])

# %% [markdown]
# ## The speed, which was never observed
#
# A linear probe is a least-squares fit from features to the speed, on 16 episodes; its share of explained variance (R2) is
# measured on the other 8. In this task a step adds speed times 0.05 s to the angle, so that differences of angles are the
# true speed. The angle's cosine and sine at one time say nothing of it. h has not seen the last observation, and z consists
# of single choices; the belief is both.

# %%
cosine, sine = np.asarray(window.observation[..., 0]), np.asarray(window.observation[..., 1])
angle = np.arctan2(sine, cosine)
turned = np.mod(np.diff(angle, axis=1) + np.pi, 2 * np.pi) - np.pi
speed = turned / DT


def probe(features):
    """(R2, speeds [8, STEPS]) on the last 8 episodes, of a linear fit on the first 16."""
    x = np.concatenate([np.asarray(features)[:, 1:], np.ones((EPISODES, STEPS, 1))], axis=-1)
    fitted, unseen = x[:16].reshape(-1, x.shape[-1]), x[16:]
    square = fitted.T @ fitted + 1e-3 * len(fitted) * np.eye(x.shape[-1])
    found = unseen @ np.linalg.solve(square, fitted.T @ speed[:16].reshape(-1))
    return 1 - np.mean((found - speed[16:]) ** 2) / np.var(speed[16:]), found


known = {
    "the observation": window.observation,
    "h": beliefs.deter,
    "z": beliefs.stoch,
    "the belief": model.features(beliefs),
}
explained = {name: probe(features) for name, features in known.items()}
for name, (share, _) in explained.items():
    print(f"R2 of the speed from {name:15}  {share:.3f}")

time = DT * np.arange(STEPS + 1)
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained", width_ratios=(2, 3))
left.barh(list(explained)[::-1], [max(0, explained[name][0]) for name in explained][::-1], color=BLUE)
left.set(xlabel="R2 of a linear probe", title="Who knows the speed?", xlim=(0, 1))
right.plot(time[1:], speed[16], color=BLUE, linewidth=2, label="true")
right.plot(time[1:], explained["the belief"][1][0], color=RED, linewidth=1, label="probed from the belief")
right.set(xlabel="time, s", ylabel="speed, rad/s", title="An episode that the probe has not seen")
right.legend(frameon=False)

# %% [markdown]
# ## Expected and seen
#
# The divergence KL(q || p) is how many nats an observation adds to what was expected. The model is not trained to make it
# smaller than `free_nats`, 1 nat by default. Nothing was known before the first observation of an episode. The decoder
# shows the expectation in the task's units: here the angle, from h and a sample of the prior, beside what then was seen.

# %%
divergence = np.asarray(parts.latent.divergence(posterior, prior))
expected_z = parts.latent.sample(jax.random.key(2), prior)
expected = np.asarray(model.decode(params, jnp.concatenate([beliefs.deter, expected_z], axis=-1)))
print(f"nats of the first observation       {divergence[:, 0].mean():.2f}")
print(f"nats of a later one                 {divergence[:, 5:].mean():.2f}")

surprise, (above, below) = plt.subplots(2, 1, figsize=(8, 4.6), sharex=True, layout="constrained")
above.plot(time, cosine[0], color=BLUE, linewidth=2, label="seen")
above.plot(time, expected[0, :, 0], color=RED, linewidth=1, label="expected, from the prior")
above.set(ylabel="cosine of the angle", title="An episode: expected and seen", ylim=(-1.6, 1.6))
above.legend(frameon=False)
below.plot(time, divergence[0], color=GREY, linewidth=1)
below.plot(time, divergence.mean(axis=0), color=BLUE, linewidth=2, label=f"mean of {EPISODES} episodes")
below.set(xlabel="time, s", ylabel="KL(q || p), nats", ylim=(0, None))
below.legend(frameon=False)

# %% [markdown]
# ## Without observations
#
# From the belief after 20 steps the model predicts with the recorded actions only. 50 samples of the prior show how sure it
# is. An upright pendulum is unstable, so that there a small error grows.

# %%
CONTEXT, AHEAD, SAMPLES = 20, 60, 50


@jax.jit
def ahead(params, key):
    """Predicted observations [EPISODES, AHEAD, SAMPLES, 2], from the actions alone."""
    world = model.world(params)

    def one(belief, actions, key):
        def step(belief, given):
            action, key = given
            belief, made = world.step(belief, action, key)
            return belief, model.decode(params, made.next_observation)

        return jax.lax.scan(step, repeated(belief, SAMPLES), (actions, jax.random.split(key, AHEAD)))[1]

    origin = jax.tree.map(lambda leaf: leaf[:, CONTEXT], beliefs)
    actions = window.action[:, CONTEXT + 1 : CONTEXT + 1 + AHEAD]
    return jax.vmap(one)(origin, actions, jax.random.split(key, EPISODES))


predicted = np.asarray(ahead(params, jax.random.key(3)))
truth = np.asarray(window.observation[:, CONTEXT + 1 : CONTEXT + 1 + AHEAD])
error = np.sqrt(((predicted.mean(axis=2) - truth) ** 2).sum(axis=-1)).mean(axis=0)
for steps in (1, 10, 60):
    print(f"error {steps:2} steps ahead                {error[steps - 1]:.3f}")

fan, panels = plt.subplots(2, 2, figsize=(9, 4.6), sharex=True, sharey=True, layout="constrained")
for i, axes in enumerate(panels.flat):
    axes.plot(DT * np.arange(AHEAD), predicted[i, :, :, 0], color=RED, alpha=0.12, linewidth=0.8)
    axes.plot(DT * np.arange(AHEAD), truth[i, :, 0], color=BLUE, linewidth=2)
    axes.set(ylim=(-1.4, 1.4))
for axes in panels[-1]:
    axes.set(xlabel="seconds without an observation")
for axes in panels[:, 0]:
    axes.set(ylabel="cosine of the angle")
fan.suptitle("Recorded (blue) and 50 predictions from the actions alone (red)")

# %% [markdown]
# ## Where the actor learns
#
# In an update the actor acts in such trajectories itself. Here are 50 of 40 steps from one belief, in which the pendulum
# hangs. (In training they have 10 steps, and the critic's value takes the place of the rest.)

# %%
agent = imagined.make(config.agent, model.feature_size, task.action, rules.chain(config.optimizer))
episode, position = np.unravel_index(np.argmin(cosine[:, 3:20]), (EPISODES, 17))
root = jax.tree.map(lambda leaf: leaf[episode, position + 3], beliefs)


@jax.jit
def dream(params, key):
    """Rewards [40, SAMPLES] and observations that the actor imagines from the root."""
    path = imagine(model.world(params), agent.policy(state.learned.agent, True), repeated(root, SAMPLES), key, 40)
    return path.reward, model.decode(params, path.next_observation)


rewards, seen = (np.asarray(x) for x in dream(params, jax.random.key(4)))
print(f"reward of the first imagined steps  {rewards[:5].mean():.2f}")
print(f"reward of the last imagined steps   {rewards[-5:].mean():.2f}")

dreams, (above, below) = plt.subplots(2, 1, figsize=(8, 4.6), sharex=True, layout="constrained")
above.plot(DT * np.arange(1, 41), seen[..., 0], color=RED, alpha=0.15, linewidth=0.8)
above.set(ylabel="cosine of the angle", title="50 imagined trajectories from one belief", ylim=(-1.4, 1.4))
below.plot(DT * np.arange(1, 41), rewards, color=RED, alpha=0.15, linewidth=0.8)
below.plot(DT * np.arange(1, 41), rewards.mean(axis=1), color=BLUE, linewidth=2, label="mean")
below.set(xlabel="imagined time, s", ylabel="predicted reward")
below.legend(frameon=False)

# %% [markdown]
# As a script, this file writes its pictures to the folder that `PICTURES` names, if it names one.

# %%
for name, picture in {"speed": figure, "expected": surprise, "ahead": fan, "dreams": dreams}.items():
    for axes in picture.axes:
        axes.spines[["top", "right"]].set_visible(False)
    if os.environ.get("PICTURES"):
        picture.savefig(os.path.join(os.environ["PICTURES"], f"{name}.png"), dpi=110)
