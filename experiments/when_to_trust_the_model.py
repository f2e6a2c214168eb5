"""When to trust the model: its error along a branch, its error under later policies, and the theoretical bound of MBPO.

One run of MBPO on the pendulum (preset `small`) is saved every 200 steps. Three things are then measured:

(a) Error along a branch. The model imagines branches from states of the run's data, under the policy of the same time. The
    true simulator plays the same actions from the same states, which the observation determines. The error after h steps is
    the root mean square over dimensions of the difference of the two observations, in standard deviations of the data. Two
    unrelated states of the data are about 1.4 apart. Drawn are the median and the 5 % to 95 % range over the start states.

(b) Error under later policies. A policy pi_D of the run collects new data, and a model is fitted to them alone. Its error
    epsilon_m' is measured on states and actions of each later policy pi, and compared with the shift epsilon_pi between
    pi_D and pi.

(c) The bound. For pi_D, pi and that model there are three returns, discounted by gamma, from the same first states: eta of
    pi in the true simulator, eta-hat of pi in the model, and eta-branch(k), in which the state at time t comes from t - k
    true steps of pi_D and k imagined steps of pi. MBPO's paper (Janner et al., arXiv 1906.08253) gives these lower bounds
    of eta:

    4.1  |eta - eta-hat| <= 2 gamma r_max (epsilon_m + 2 epsilon_pi) / (1 - gamma)^2 + 4 r_max epsilon_pi / (1 - gamma)
    4.2  |eta - eta-branch(k)| <= 2 r_max [gamma^(k+1) epsilon_pi / (1 - gamma)^2 + (gamma^k + 2) epsilon_pi / (1 - gamma)
                                           + k (epsilon_m + 2 epsilon_pi) / (1 - gamma)]
    4.3  |eta - eta-branch(k)| <= 2 r_max [gamma^(k+1) epsilon_pi / (1 - gamma)^2 + gamma^k epsilon_pi / (1 - gamma)
                                           + k epsilon_m' / (1 - gamma)]

    Drawn are 4.3 and the gap itself. The right side of 4.2 always has its minimum at k = 0, that of 4.3 at k > 0 if
    epsilon_m' is below epsilon_pi.

    epsilon_pi   max over the states that pi_D visited of the total variation between pi and pi_D, computed from their
                 Gaussians, because tanh is one-to-one
    epsilon_m    max over t of the mean over states and actions at time t, under pi_D, of the total variation between the
                 distributions of the next state in the true simulator and in the model; epsilon_m' is the same under pi.
                 The reward is known.

The simulator is deterministic and the model has densities, so the exact total variation is always 1. Here, epsilon_m is the
total variation after Gaussian noise is added to both, with a twentieth of the standard deviation of the data. It measures
how well model and truth can be distinguished by one step at that resolution. Noise only lowers a total variation, so the
theorems do not hold for it, and the bound is optimistic. Even more optimistic is a version with means instead of the
theorems' maxima. In any case, two returns differ by at most r_max / (1 - gamma).

Results, for one seed:

(a) Under a trained policy, the error of a branch is a hundredth of a standard deviation after one step and a sixth after
    15 steps. After 30 steps half of the branches are as far away as unrelated states, because the upright pendulum is
    unstable.
(b) A model fitted to 1,000 rows has little more error under later policies than under its own, although their shift is one
    half and more, as in the paper. But 5,000 rows do not improve it, while the paper's models improved.
(c) The bound is about two hundred times the difference that is possible in any case, a hundred times with means instead of
    maxima, and a thousand times the gap; 4.1 is more than twice as large again. Yet both of its terms are visible. The
    policy after 1,600 steps has a much higher return than pi_D; its gap falls from 240 at k = 0, and from k = 15 on it
    cannot be distinguished from 0. The policy after 1,000 steps has no higher return than pi_D; its gap is visible only
    from k = 20 on, and grows.

    python experiments/when_to_trust_the_model.py [--out FOLDER] [--steps 1600] [--seed 0] [--quick]

Writes `when-to-trust.png` and `when-to-trust.json`, with command, commit, versions and machine. It takes about three
minutes of one CPU core, half of them for compiling; `--quick` checks in one minute that it runs.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxmbrl.agents.actor_critic import sac
from jaxmbrl.algorithms.dyna import mbpo
from jaxmbrl.algorithms.dyna.mbpo import State
from jaxmbrl.core.types import ActorCritic, DynamicsModel, Key, Policy, PyTree, Task, Transition, World
from jaxmbrl.data import replay
from jaxmbrl.distributions import gaussian_log_density
from jaxmbrl.envs.classic.pendulum import MAX_SPEED, MAX_TORQUE
from jaxmbrl.models import EnsembleState, ensemble
from jaxmbrl.rollout import rollout
from jaxmbrl.training import loop, programs
from jaxmbrl.training.run_folder import environment

TASK = "pendulum"
R_MAX = math.pi**2 + 0.1 * MAX_SPEED**2 + 0.001 * MAX_TORQUE**2
"""The largest absolute reward."""
BLUR = 0.05
"""Standard deviation of the noise under which model and truth are compared, in standard deviations of the data."""
SAMPLES = 64
"""Number of samples for each total variation."""
EVERY = 200
"""Environment steps between two saved states of the run."""
BLUE, RED, GREEN, GREY = "#0b3d91", "#c1440e", "#2e7d32", "0.45"


class Sizes(NamedTuple):
    """Sizes of the measurements."""

    starts: int = 500
    """Number of branches in (a)."""
    branch: int = 50
    """Length of these branches."""
    rows: tuple[int, ...] = (200, 1000, 5000)
    """Numbers of rows to which the models of (b) are fitted; (c) uses the model in the middle."""
    episodes: int = 48
    """Number of episodes for each mean in (b) and (c)."""
    horizon: int = 500
    """Steps of a return; rewards after them are neglected."""
    longest: int = 60
    """Length of the longest branch in (c)."""


SMALL = Sizes(starts=20, branch=5, rows=(100, 200), episodes=4, horizon=30, longest=5)
QUICK = {"agent.hidden": [8, 8], "ensemble.hidden": [8, 8], "ensemble.max_epochs": 2, "updates_per_step": 1}


class Kept(NamedTuple):
    """A saved state of the run."""

    steps: int
    state: State


# --- measures ---


def truth(task: Task, origin: Float[Array, "N O"], actions: Float[Array, "H N A"]) -> Float[Array, "H N O"]:
    """Observations after each of the actions in the true simulator, starting from the states that `origin` determines."""

    def state_of(observation: Float[Array, "O"]) -> Any:
        angle = jnp.arctan2(observation[1], observation[0])
        return task.env.state_at(jnp.stack([angle, observation[2]]))  # type: ignore[attr-defined]

    def step(states: Any, action: Float[Array, "N A"]) -> tuple[Any, Float[Array, "N O"]]:
        states = jax.vmap(task.env.step)(states, action)
        return states, states.obs

    return jax.lax.scan(step, jax.vmap(state_of)(origin), actions)[1]


def compounding(
    task: Task, world: World, policy: Policy, origin: Float[Array, "N O"], scale: Float[Array, "O"], key: Key, length: int
) -> Float[Array, "length N"]:
    """Error of branches of `world` under `policy` after 1, 2, ... steps, in units of `scale`: the root mean square over
    dimensions of the difference from the true simulator under the same actions."""
    start_key, key = jax.random.split(key)
    _, imagined = rollout(world, policy, (world.start(origin, start_key), ()), key, length)
    difference = imagined.next_observation - truth(task, origin, imagined.action)
    return jnp.sqrt(jnp.mean((difference / scale) ** 2, axis=-1))


def total_variation(
    mean: Float[Array, "N d"], std: Float[Array, "N d"], log_density: Callable[[Float[Array, "N d"]], Any], key: Key
) -> Float[Array, "N"]:
    """Total variation between the Gaussians p = N(mean, std^2) and other densities q: the mean of max(0, 1 - q/p) over
    samples of p. `log_density` returns log q [N]."""

    def draw(key: Key) -> Float[Array, "N"]:
        x = mean + std * jax.random.normal(key, mean.shape, mean.dtype)
        return jnp.maximum(0.0, 1 - jnp.exp(log_density(x) - gaussian_log_density(x, mean, jnp.log(std))))

    return jnp.mean(jax.vmap(draw)(jax.random.split(key, SAMPLES)), axis=0)


def model_error(
    mean: Float[Array, "E N O"],
    variance: Float[Array, "E N O"],
    following: Float[Array, "N O"],
    blur: Float[Array, "O"],
    key: Key,
) -> Float[Array, "N"]:
    """Total variation between the true next observation `following` and the equally weighted mixture of the members'
    Gaussians, both after adding Gaussian noise with standard deviation `blur`."""
    log_std = 0.5 * jnp.log(variance + blur**2)

    def mixture(x: Float[Array, "N O"]) -> Float[Array, "N"]:
        of_members = jax.vmap(lambda m, s: gaussian_log_density(x, m, s))(mean, log_std)
        return jax.nn.logsumexp(of_members, axis=0) - math.log(mean.shape[0])

    return total_variation(following, jnp.broadcast_to(blur, following.shape), mixture, key)


def policy_shift(
    gaussian: Callable[..., Any], old: PyTree, new: PyTree, observation: Float[Array, "N O"], key: Key
) -> Float[Array, "N"]:
    """Total variation between the policies with actor parameters `old` and `new` at each observation."""
    mean, log_std = gaussian(old, observation)
    return total_variation(mean, jnp.exp(log_std), lambda x: gaussian_log_density(x, *gaussian(new, observation)), key)


def branched_returns(rewards: Float[np.ndarray, "K1 T N"], discount: float) -> Float[np.ndarray, "K1 N"]:
    """eta-branch(k) for k = 0..K and each episode. `rewards[h, j]` is the reward after h imagined steps from true state j.
    At time t, the state is min(t, k) imagined steps after a true state."""
    longest, steps = len(rewards), np.arange(rewards.shape[1])
    depth = np.minimum(steps, np.arange(longest)[:, None])
    return np.einsum("t,ktn->kn", discount**steps, rewards[depth, steps - depth])


def rollout_bound(shift: float, error: float, discount: float, r_max: float = R_MAX) -> float:
    """The right side of theorem 4.1."""
    left = 1 - discount
    return 2 * discount * r_max * (error + 2 * shift) / left**2 + 4 * r_max * shift / left


def old_policy_bound(shift: float, error: float, k: Any, discount: float, r_max: float = R_MAX) -> Any:
    """The right side of theorem 4.2; `error` is epsilon_m."""
    left = 1 - discount
    behind = discount ** (k + 1) * shift / left**2 + (discount**k + 2) * shift / left
    return 2 * r_max * (behind + k * (error + 2 * shift) / left)


def branch_bound(shift: float, error: float, k: Any, discount: float, r_max: float = R_MAX) -> Any:
    """The right side of theorem 4.3; `error` is epsilon_m'."""
    left = 1 - discount
    return 2 * r_max * (discount ** (k + 1) * shift / left**2 + discount**k * shift / left + k * error / left)


def best_length(shift: float, error: float, discount: float) -> int:
    """The k up to 10,000 at which the bound of theorem 4.3 is tightest."""
    return int(np.argmin(branch_bound(shift, error, np.arange(10_001), discount)))


# --- the study ---


def learn(steps: int, seed: int, changes: dict[str, Any]) -> tuple[programs.Program, list[Kept]]:
    """A run of MBPO, with its states saved every `EVERY` steps, without the first one."""
    settings = {"learn_reward": False, "replay_capacity": steps, **changes}
    program = programs.build(programs.configure("mbpo", TASK, "small", settings, steps))
    run = jax.jit(program.loop.run)
    clock, states = loop.clock_at(0), jax.jit(program.loop.init)(jnp.array([seed]), {})
    kept = []
    for done in range(EVERY, steps + 1, EVERY):
        clock, states = run(clock, states, jnp.asarray(EVERY // program.loop.steps_per_call, jnp.int32))
        kept.append(Kept(done, jax.tree.map(lambda leaf: leaf[0], states.algorithm)))
    return program, kept[1:]


class Study:
    """Measurements of one run. Compiled functions take the states as arguments, so each compiles only once."""

    def __init__(self, program: programs.Program, kept: list[Kept], sizes: Sizes, seed: int) -> None:
        self.task, self.kept, self.sizes = program.task, kept, sizes
        self.config: mbpo.Config = program.config.settings
        self.agent = sac.make(self.config.agent, 3, 1)
        self.discount = self.config.agent.discount
        self.keys = iter(jax.random.split(jax.random.key(seed), 1000))
        self.start_key = next(self.keys)
        known = self.task.reward, self.task.terminated
        self.model = ensemble.make(self.config.ensemble, 3, 1, *known)
        observations = kept[-1].state.replay.data.observation[: int(kept[-1].state.replay.size)]
        self.scale = jnp.std(observations, axis=0)
        self.gaussian = sac.functions(self.config.agent, 1).actor.distribution
        self.fit = jax.jit(self.model.fit)
        self.error = jax.jit(partial(_errors, self.model, BLUR * self.scale))
        self.shift = jax.jit(partial(policy_shift, self.gaussian))
        self.play = jax.jit(partial(_play, self.task, self.agent), static_argnums=(3, 4))
        self.branch = jax.jit(partial(_branch, self.task, self.agent, self.model), static_argnums=4)

    def along_branches(self) -> dict[int, Float[np.ndarray, "3 H"]]:
        """(a): the 5 %, 50 % and 95 % quantiles of the error over start states, for the first, middle and last saved
        state."""
        task, scale, length = self.task, self.scale, self.sizes.branch

        @jax.jit
        def errors(state: State, key: Key) -> Float[Array, "H N"]:
            start_key, key = jax.random.split(key)
            origin = replay.sample(state.replay, start_key, self.sizes.starts).observation
            world, policy = self.model.world(state.model), self.agent.policy(state.agent, True)
            return compounding(task, world, policy, origin, scale, key, length)

        chosen = {self.kept[i].steps: self.kept[i].state for i in (0, len(self.kept) // 2, -1)}
        return {
            steps: np.quantile(errors(state, next(self.keys)), (0.05, 0.5, 0.95), axis=1) for steps, state in chosen.items()
        }

    def fitted(self, old: State, rows: int) -> EnsembleState:
        """A new model, fitted to `rows` rows that the policy `old` collects in episodes of the task's length."""
        length = self.task.episode_length
        episodes = -(-max(self.sizes.rows) // length)
        data = self.play(old, next(self.keys), next(self.keys), episodes, length)
        # Order rows by episode, so that fewer rows mean fewer episodes.
        data = jax.tree.map(lambda leaf: leaf.swapaxes(0, 1).reshape(-1, *leaf.shape[2:]), data)
        return self.fit(self.model.init(next(self.keys), {}), replay.of_rows(data, rows), next(self.keys))[0]

    def between(self, old: State, new: State, visited: Transition) -> dict[str, float]:
        """epsilon_pi: the largest and the mean total variation between two policies at states visited by the old one."""
        states = visited.observation.reshape(-1, 3)
        found = self.shift(old.agent.actor.params, new.agent.actor.params, states, next(self.keys))
        return {"max": float(found.max()), "mean": float(found.mean())}

    def judged(self, model: EnsembleState, rows: Transition) -> dict[str, float]:
        """epsilon_m on rows [T, N]: the maximum over time of the mean over episodes, and the mean over everything."""
        found = self.error(model, rows, next(self.keys)).mean(axis=1)
        return {"max": float(found.max()), "mean": float(found.mean())}

    def run(self) -> dict[str, Any]:
        """All numbers."""
        sizes, middle = self.sizes, len(self.sizes.rows) // 2
        # After a third of the saved states the policy is about to improve, and there are later ones.
        at = len(self.kept) // 3
        old, later = self.kept[at].state, self.kept[at:]
        models = [self.fitted(old, rows) for rows in sizes.rows]
        visited = self.play(old, self.start_key, next(self.keys), sizes.episodes, sizes.horizon)
        under_later = []
        for steps, new in later:
            rows = self.play(new, self.start_key, next(self.keys), sizes.episodes, sizes.horizon)
            under_later.append({
                "steps": steps,
                "policy_shift": self.between(old, new, visited),
                "model_error": {str(n): self.judged(model, rows) for n, model in zip(sizes.rows, models, strict=True)},
                "returns": self.returns(new, models[middle], visited, rows),
            })  # fmt: skip
        on_old = self.judged(models[middle], visited)
        for found in under_later:
            found["bounds"] = self.bounds(found, on_old, str(sizes.rows[middle]))
        return {
            "discount": self.discount,
            "r_max": R_MAX,
            "at_most_in_any_case": R_MAX / (1 - self.discount),
            "old_policy_steps": self.kept[at].steps,
            "rows_of_the_bound": sizes.rows[middle],
            "along_branches": {str(steps): found.tolist() for steps, found in self.along_branches().items()},
            "model_error_under_old_policy": on_old,
            "under_later_policies": under_later,
        }

    def returns(self, new: State, model: EnsembleState, visited: Transition, rows: Transition) -> dict[str, Any]:
        """eta, eta-hat and eta-branch(k), and their differences from eta: means over episodes, with the half width of the
        95 % interval of the mean. All start from the same states. `visited` are rows of the old policy, `rows` of the new
        one."""
        discounts = self.discount ** np.arange(self.sizes.horizon)
        true = np.einsum("t,tn->n", discounts, np.asarray(rows.reward, np.float64))
        shape = visited.reward.shape
        imagined = self.branch(new, model, visited.observation.reshape(-1, 3), next(self.keys), self.sizes.longest + 1)
        branched = branched_returns(np.asarray(imagined, np.float64).reshape(-1, *shape), self.discount)
        whole = self.branch(new, model, visited.observation[0], next(self.keys), self.sizes.horizon)
        in_model = np.einsum("t,tn->n", discounts, np.asarray(whole, np.float64))
        return {
            "true": _mean(true),
            "model": _mean(in_model),
            "gap_of_model": _mean(in_model - true),
            "gap_of_branches": [_mean(of_k - true) for of_k in branched],
        }

    def bounds(self, found: dict[str, Any], on_old: dict[str, float], rows: str) -> dict[str, Any]:
        """The terms of the theorems and the minima of their right sides: as stated (max), with means (mean), and with the
        exact total variation of 1 between model and truth (proper)."""
        shift, error = found["policy_shift"], found["model_error"][rows]
        readings = {name: (shift[name], on_old[name], error[name]) for name in ("max", "mean")}
        readings["proper"] = (shift["max"], 1.0, 1.0)
        terms = {}
        for name, (s, e, later) in readings.items():
            best = best_length(s, later, self.discount)
            terms[name] = {
                "epsilon_pi": s,
                "epsilon_m": e,
                "epsilon_m_later": later,
                "theorem_4_1": rollout_bound(s, e, self.discount),
                "theorem_4_2": old_policy_bound(s, e, 0, self.discount),
                "theorem_4_3": branch_bound(s, later, best, self.discount),
                "best_length": best,
            }
        return terms


def _play(task: Task, agent: ActorCritic, state: State, start_key: Key, key: Key, episodes: int, length: int) -> Transition:
    """Rows [length, episodes] of the true simulator under the stochastic policy, without a time limit."""
    carry = jax.vmap(task.world.reset)(jax.random.split(start_key, episodes))
    policy = agent.policy(state.agent, True)
    play = jax.vmap(lambda carry, key: rollout(task.world, policy, (carry, ()), key, length)[1], out_axes=1)
    return play(carry, jax.random.split(key, episodes))


def _branch(
    task: Task, agent: ActorCritic, model: DynamicsModel, new: State, fitted: EnsembleState,
    origin: Float[Array, "N O"], key: Key, length: int,
) -> Float[Array, "length N"]:  # fmt: skip
    """Rewards of the model's branches from `origin` under the stochastic policy of `new`."""
    world = model.world(fitted)
    return rollout(world, agent.policy(new.agent, True), (origin, ()), key, length)[1].reward


def _errors(
    model: DynamicsModel, blur: Float[Array, "O"], fitted: EnsembleState, rows: Transition, key: Key
) -> Float[Array, "T N"]:
    """`model_error` of each of the rows [T, N], with the elite members."""

    def at(rows: Transition, key: Key) -> Float[Array, "N"]:
        mean, variance = (x[fitted.elites] for x in model.predict(fitted, rows.observation, rows.action))
        return model_error(mean, variance, rows.next_observation, blur, key)

    rows = rows._replace(extras=())
    return jax.lax.map(lambda both: at(*both), (rows, jax.random.split(key, rows.reward.shape[0])))


def _mean(values: Float[np.ndarray, "N"]) -> list[float]:
    """[mean, half width of its 95 % interval]."""
    return [float(values.mean()), float(1.96 * values.std(ddof=1) / math.sqrt(len(values)))]


def draw(found: dict[str, Any], path: Path) -> None:
    """Write the picture: (a), (b) and (c) side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 5), dpi=110, layout="constrained")
    branches, later, bound = figure.subplots(1, 3)
    _draw_branches(branches, found)
    _draw_later(later, found)
    _draw_bound(bound, found)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.92", linewidth=0.6)
        axes.title.set_fontsize(11)
    figure.savefig(path)


def _draw_branches(axes: Any, found: dict[str, Any]) -> None:
    for (steps, (low, median, high)), color in zip(found["along_branches"].items(), (GREY, RED, BLUE), strict=True):
        at = np.arange(1, len(median) + 1)
        axes.fill_between(at, low, high, color=color, alpha=0.15, linewidth=0)
        axes.plot(at, median, color=color, linewidth=2.2, label=f"after {int(steps):,} steps")
    axes.axhline(math.sqrt(2), color="black", linestyle="--", linewidth=1, label="unrelated states")
    axes.set(yscale="log", xlabel="steps of the branch", ylabel="error, in standard deviations of the data")
    axes.set_title("(a) error along a branch: median, 5 % to 95 %", loc="left")
    axes.legend(frameon=False, fontsize=9, loc="lower right")


def _draw_later(axes: Any, found: dict[str, Any]) -> None:
    later = found["under_later_policies"]
    shifts = [one["policy_shift"]["mean"] for one in later]
    for rows, color in zip(later[0]["model_error"], (GREY, RED, BLUE), strict=False):
        errors = [one["model_error"][rows]["mean"] for one in later]
        axes.plot(shifts, errors, "o-", color=color, linewidth=1.6, label=f"fitted to {int(rows):,} rows")
    for shift, one in zip(shifts, later, strict=True):
        text = f"{one['steps']:,} steps"
        axes.annotate(text, (shift, 0), (0, 4), textcoords="offset points", ha="center", fontsize=8, rotation=90)
    axes.set(xlabel="shift from the policy that collected the data", ylabel="error of one step under the later policy")
    axes.set(xlim=(-0.04, 1), ylim=(0, 1))
    axes.set_title("(b) error under later policies: mean total variations", loc="left")
    axes.legend(frameon=False, fontsize=9, loc="upper left")


def _draw_bound(axes: Any, found: dict[str, Any]) -> None:
    _, following, *_, last = found["under_later_policies"]
    names = {"proper": ("4.3, error 1", GREY), "max": ("4.3, blurred error", RED), "mean": ("4.3, blurred, means", GREEN)}
    for name, (label, color) in names.items():
        terms = last["bounds"][name]
        k, best = np.arange(len(last["returns"]["gap_of_branches"])), terms["best_length"]
        bounds = branch_bound(terms["epsilon_pi"], terms["epsilon_m_later"], k, found["discount"])
        axes.plot(k, bounds, color=color, linewidth=2, label=f"{label}: least at k = {best:,}")
        if best < len(bounds):
            axes.plot(best, bounds[best], "o", color=color)
    axes.axhline(found["at_most_in_any_case"], color="black", linestyle="--", linewidth=1, label="true in any case")
    for one, color in ((following, "#e09f3e"), (last, BLUE)):
        gap, half = np.array(one["returns"]["gap_of_branches"]).T
        # The axis starts at 1.
        low = np.maximum(np.abs(gap) - half, 1)
        axes.fill_between(np.arange(len(gap)), low, np.abs(gap) + half, color=color, alpha=0.2, linewidth=0)
        axes.plot(np.abs(gap), color=color, linewidth=2.2, label=f"gap of the policy after {one['steps']:,} steps")
    axes.set(yscale="log", ylim=(1, 1e6), xlabel="steps k of a branch", ylabel="|eta - eta-branch(k)|")
    axes.set_title(f"(c) the return's gap and bound, data of {found['old_policy_steps']:,} steps", loc="left")
    axes.legend(frameon=False, fontsize=9, loc="upper right", bbox_to_anchor=(1, 0.86))


def table(found: dict[str, Any]) -> str:
    """The terms of the bound and the gaps as text, with a line for each later policy."""
    rows, later = str(found["rows_of_the_bound"]), found["under_later_policies"]
    longest = len(later[0]["returns"]["gap_of_branches"]) - 1
    shown = (0, longest // 4, longest // 2, longest)
    head = ["steps", "shift max", "mean", "error max", "mean", "eta", "eta-hat", *(f"gap k={k}" for k in shown)]
    lines = ["".join(f"{name:>11}" for name in [*head, "least 4.3", "at k"])]
    for one in later:
        terms = [one["policy_shift"], one["model_error"][rows]]
        gaps = [one["returns"]["gap_of_branches"][k] for k in shown]
        lines.append(
            f"{one['steps']:>11,}"
            + "".join(f"{x[name]:>11.3f}" for x in terms for name in ("max", "mean"))
            + "".join(f"{one['returns'][name][0]:>11.1f}" for name in ("true", "model"))
            + "".join(f"{f'{gap:.0f} +- {half:.0f}':>11}" for gap, half in gaps)
            + f"{one['bounds']['max']['theorem_4_3']:>11,.0f}{one['bounds']['max']['best_length']:>11,}"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Train, measure, print the table, and write the picture and the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, help="by default runs/when_to_trust_the_model, with --quick runs/when_to_trust_the_model-quick"
    )
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="tiny networks, 1000 steps and few episodes (smoke test)")
    args = parser.parse_args(arguments)
    args.out = args.out or Path("runs/when_to_trust_the_model-quick" if args.quick else "runs/when_to_trust_the_model")
    if not args.quick and args.steps < 5 * EVERY:
        parser.error(f"--steps must be at least {5 * EVERY}, so that there are later policies")
    args.out.mkdir(parents=True, exist_ok=True)
    steps, sizes, changes = (1000, SMALL, QUICK) if args.quick else (args.steps, Sizes(), {})
    program, kept = learn(steps, args.seed, changes)
    found = Study(program, kept, sizes, args.seed).run()
    print(f"model fitted to {found['rows_of_the_bound']} rows of the policy after {found['old_policy_steps']} steps; total")
    print(f"variations, discounted returns; in any case a gap is below {found['at_most_in_any_case']:,.0f}")
    print(table(found))
    picture, numbers = args.out / "when-to-trust.png", args.out / "when-to-trust.json"
    draw(found, picture)
    command = f"python experiments/when_to_trust_the_model.py --steps {steps} --seed {args.seed}"
    where = {"environment": environment(command)}
    written = {"task": TASK, "steps": steps, "seed": args.seed, "blur": BLUR, **found, **where}
    numbers.write_text(json.dumps(written, indent=1) + "\n")
    print(f"picture  {picture}\nnumbers  {numbers}")
    return found


if __name__ == "__main__":
    main()
