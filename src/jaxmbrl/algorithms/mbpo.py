"""MBPO: model-based policy optimisation (Janner et al., When to trust your model, arXiv 1906.08253, algorithm 2).

    the policy learner's own objective (SAC's), on transitions (s, a, r, s') that a learned model imagined:
    s from the real data or a branch of at most k steps begun there, a ~ pi(.|s), (s', r) ~ a member of the ensemble

    for each step of the environment:
        act by the stochastic policy (uniformly at random for the first `warmup_steps`), store the transition
        each `refit_every` steps: fit the ensemble to all real data; from `rollout_rows` real states imagine branches of k
            steps under the policy, each step by an elite drawn anew, and store them in a buffer of their own
        `updates_per_step` times: update the agent on a batch of which a share `real_ratio` is real and the rest imagined

k grows linearly in environment steps from `first` to `last` (`RolloutLength`), and with it the imagined buffer, so that
it holds the rows of the last `retain_steps` steps. Dyna (Sutton, 1990) is the case k = 1 throughout. The reward and its
noise are the model's; the termination is the task's where it knows it. Which imagined rows are kept may depend on how far
the members agree: MACURA and M2AC are rules of `models.trust`.

Differs from the paper: k grows within an epoch too, and steps count from the warm-up's end, as epochs do in its code; the
members of one imagined step are shared out to the start rows, which are drawn at random, by one random shift
(`models.ensemble`); rows in which a number is not finite are left out and counted; while nothing is imagined, batches are
real. MACURA's pink noise and its number of updates by the buffer's fill are left out.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge, Le
from jaxtyping import Array, Float, Int

from jaxmbrl import metrics, replay
from jaxmbrl.agents import sac
from jaxmbrl.agents.sac import SACConfig, SACState
from jaxmbrl.agents.updates import updates
from jaxmbrl.envs.base import vector_sizes
from jaxmbrl.models import branching, ensemble, trust
from jaxmbrl.models.branching import Imagined
from jaxmbrl.models.ensemble import EnsembleConfig
from jaxmbrl.models.trust import TrustConfig
from jaxmbrl.presets import Preset
from jaxmbrl.replay import Replay
from jaxmbrl.types import (
    Algorithm,
    Clock,
    DynamicsModel,
    Hyper,
    Key,
    Metrics,
    Policy,
    PyTree,
    Task,
    Transition,
    flatten,
    row_like,
)


@dataclass(frozen=True)
class RolloutLength:
    """Steps k of a branch: `first`, then growing linearly between two environment steps, then `last`; rounded down."""

    first: Annotated[int, Ge(1)] = 1
    """Length at the start."""
    last: Annotated[int, Ge(1)] = 1
    """Length at the end, at least `first`."""
    begins: Annotated[int, Ge(0)] = 20_000
    """Environment steps after the warm-up at which it begins to grow."""
    ends: Annotated[int, Ge(1)] = 150_000
    """Environment steps after the warm-up at which it is `last`."""

    def problem(self) -> tuple[str, str] | None:
        """A rule between fields that is broken."""
        if self.last < self.first:
            return "last", f"must be at least first ({self.first}), got {self.last}"
        if self.ends <= self.begins:
            return "ends", f"must be above begins ({self.begins}), got {self.ends}"
        return None

    def at(self, steps: Int[Array, ""] | int) -> Int[Array, ""]:
        """k after `steps` environment steps, the warm-up not counted (arXiv 1906.08253, appendix C)."""
        grown = jnp.clip(steps - self.begins, 0, self.ends - self.begins)
        return self.first + (grown * (self.last - self.first)) // (self.ends - self.begins)


@dataclass(frozen=True)
class Config:
    """Settings of a run of MBPO."""

    agent: SACConfig = field(default_factory=SACConfig)
    """The policy learner."""
    ensemble: EnsembleConfig = field(default_factory=EnsembleConfig)
    """The dynamics model."""
    rollout_length: RolloutLength = field(default_factory=RolloutLength)
    """Steps of an imagined branch."""
    trust: TrustConfig = field(default_factory=TrustConfig)
    """Which imagined rows are kept."""
    rollout_rows: Annotated[int, Ge(1)] = 100_000
    """Real states from which branches begin after each fit."""
    retain_steps: Annotated[int, Ge(1)] = 1000
    """Environment steps for which imagined rows are kept, at least those of the last fit."""
    refit_every: Annotated[int, Ge(1)] = 250
    """Environment steps between two fits of the model."""
    real_ratio: Annotated[float, Ge(0), Le(1)] = 0.05
    """Share of real transitions in a batch, rounded down to whole rows."""
    learn_reward: bool = True
    """Learn the reward even where the task's is known, as the paper does."""
    learn_termination: bool = False
    """Learn the termination even where the task's is known."""
    batch_size: Annotated[int, Ge(1)] = 256
    """Transitions in each update."""
    updates_per_step: Annotated[int, Ge(1)] = 20
    """Updates of the agent for each environment step."""
    replay_capacity: Annotated[int, Ge(2)] = 1_000_000
    """Real transitions kept, the oldest giving way."""
    warmup_steps: Annotated[int, Ge(2)] = 5000
    """Environment steps of uniformly random actions, without updates, at the start."""
    num_envs: Annotated[int, Ge(1)] = 1
    """Environments that each seed steps side by side."""
    epoch_steps: Annotated[int, Ge(1)] = 1000
    """Environment steps between two rows of metrics."""
    eval_every: Annotated[int, Ge(0)] = 5
    """Epochs between two evaluations; 0 for none."""

    def problem(self) -> tuple[str, str] | None:
        """A rule between fields that is broken."""
        for name in ("refit_every", "warmup_steps"):
            if getattr(self, name) % self.num_envs:
                return name, f"must be a multiple of num_envs ({self.num_envs}), got {getattr(self, name)}"
        if self.ensemble.propagation == "moment_matching":
            return "ensemble.propagation", "must not be moment_matching: start rows are not one belief"
        if self.trust.rule != "always" and not (self.ensemble.probabilistic and self.ensemble.members > 1):
            return "trust.rule", f"must be always unless several probabilistic members disagree, got {self.trust.rule}"
        return None

    @property
    def imagined_capacity(self) -> int:
        """Rows that the imagined buffer can hold when k is at its largest."""
        return self.rows_kept * self.rollout_length.last

    @property
    def rows_kept(self) -> int:
        """Rows that the imagined buffer holds for each step of a branch."""
        return self.rollout_rows * self.rounds_kept

    @property
    def rounds_kept(self) -> int:
        """Fits whose imagined rows are kept."""
        return max(1, self.retain_steps // self.refit_every)


class State(NamedTuple):
    """Everything that a run of MBPO holds."""

    agent: SACState
    model: PyTree
    """The `EnsembleState`, or another model's state."""
    replay: Replay
    """Real transitions."""
    imagined: Imagined
    """Imagined ones, and what the rule of trust remembers."""
    real_ratio: Float[Array, ""]
    key: Key


def make(config: Config, task: Task, model: DynamicsModel | None = None) -> Algorithm:
    """MBPO on `task`; `model` stands for the ensemble where it is given."""
    observation_size, action_size = vector_sizes(task, "mbpo")
    agent = sac.make(config.agent, observation_size, action_size)
    rule = trust.make(config.trust)
    if model is None:
        model = ensemble.make(
            config.ensemble,
            observation_size,
            action_size,
            reward=None if config.learn_reward else task.reward,
            terminated=None if config.learn_termination else task.terminated,
            features=task.features,
        )

    def init(key: Key, hyper: Hyper) -> State:
        agent_key, key, model_key = jax.random.split(key, 3)
        row = row_like(task)
        return State(
            agent=agent.init(agent_key, hyper),
            model=model.init(model_key, {}),
            replay=replay.init(row, config.replay_capacity),
            imagined=branching.init(row, config.imagined_capacity, config.rounds_kept, config.trust),
            real_ratio=jnp.asarray(hyper.get("real_ratio", config.real_ratio), float),
            key=key,
        )

    def policy(state: State, explore: bool) -> Policy:
        return agent.policy(state.agent, explore)

    def learn(clock: Clock, state: State, transitions: Transition) -> tuple[State, Metrics]:
        key, update_key, refit_key = jax.random.split(state.key, 3)
        real = replay.add(state.replay, flatten(transitions))
        # By the clock and not by `real.size`: a count that is batched over seeds would batch the loops of the fit.
        count = jnp.minimum(clock.env_steps, config.replay_capacity)
        steps = clock.env_steps - config.warmup_steps
        ready = steps >= 0

        def refit(learned: tuple[PyTree, Imagined]) -> tuple[tuple[PyTree, Imagined], Metrics]:
            model_state, imagined = learned
            fit_key, start_key, branch_key = jax.random.split(refit_key, 3)
            model_state, fitted = model.fit(model_state, real.data, count, fit_key)
            length = config.rollout_length.at(steps)
            imagined, branched = branching.branch(
                model.world(model_state),
                branching.doubting(policy(state, explore=True), rule, model, model_state),
                rule,
                imagined._replace(buffer=replay.resize(imagined.buffer, config.rows_kept * length)),
                replay.sample(real, start_key, config.rollout_rows).observation,
                branch_key,
                length,
            )
            return (model_state, imagined), fitted | branched

        (model_state, imagined), found = metrics.when(
            ready & (steps % config.refit_every == 0), refit, (state.model, state.imagined)
        )

        def draw(key: Key) -> Transition:
            return replay.mixture(real, imagined.buffer, key, config.batch_size, state.real_ratio)

        agent_state, updated = metrics.when(
            ready,
            lambda agent_state: updates(agent, agent_state, draw, update_key, config.updates_per_step * config.num_envs),
            state.agent,
        )
        return State(agent_state, model_state, real, imagined, state.real_ratio, key), found | updated

    return Algorithm(init, policy, learn, period=1)


_PAPER = "jannerm/mbpo: examples/config, mbpo/models/constructor.py, mbpo/algorithms/mbpo.py; arXiv 1906.08253, table 1"
_ENSEMBLE = EnsembleConfig(
    members=7,
    elites=5,
    hidden=(200, 200, 200, 200),
    weight_decay=(2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4),
    learning_rate=1e-3,
    batch_size=256,
    max_epochs=1000,
    normalize_targets=False,
)


def _paper(updates: int, entropy: float, length: RolloutLength, **fields: Any) -> Config:
    """The paper's settings where tasks differ; the rest is the same for all."""
    config = Config(
        agent=SACConfig(target_entropy=entropy), ensemble=_ENSEMBLE, rollout_length=length, updates_per_step=updates
    )
    return replace(config, **fields)


def _length(begins: int, ends: int, last: int) -> RolloutLength:
    return RolloutLength(first=1, last=last, begins=begins * 1000, ends=ends * 1000)


PAPER = {
    "inverted-pendulum": Preset(
        _paper(
            10,
            -0.05,
            RolloutLength(last=1),
            retain_steps=250,
            warmup_steps=500,
            epoch_steps=250,
            eval_every=4,
            replay_capacity=100_000,
        ),
        _PAPER,
        steps=20_000,
        tasks=("InvertedPendulum-v5",),
    ),
    "hopper": Preset(_paper(20, -1.0, _length(20, 150, 15)), _PAPER, steps=125_000, tasks=("Hopper-v5",)),
    "halfcheetah": Preset(_paper(40, -3.0, _length(20, 150, 1)), _PAPER, steps=400_000, tasks=("HalfCheetah-v5",)),
    "walker2d": Preset(_paper(20, -3.0, _length(20, 150, 1)), _PAPER, steps=300_000, tasks=("Walker2d-v5",)),
    "ant": Preset(_paper(20, -4.0, _length(20, 100, 25)), _PAPER, steps=300_000, tasks=("Ant-v5/truncated",)),
    "humanoid": Preset(
        _paper(
            20,
            -2.0,
            _length(20, 300, 25),
            ensemble=replace(_ENSEMBLE, hidden=(400, 400, 400, 400)),
            refit_every=1000,
            retain_steps=5000,
        ),
        _PAPER,
        steps=300_000,
        tasks=("Humanoid-v5/truncated",),
    ),
}
"""The paper's settings by task."""


def _steady(preset: Preset) -> Preset:
    config = preset.config
    return Preset(
        replace(
            config,
            ensemble=replace(config.ensemble, normalize_targets=True),
            agent=replace(config.agent, layer_norm=True),
        ),
        f"{preset.source}; but targets normalised and critics with layer norm, after arXiv 2510.01457, which lays MBPO's "
        "failures on other tasks to the targets' unequal scales",
        preset.steps,
    )


def _macura(
    name: str, scale: float, percentile: float, updates: int, entropy: float, retain: int = 1, **agent: Any
) -> tuple[str, Preset]:
    """MACURA's settings for a task, `agent`'s where they differ from Hopper's; all seven members judge and imagine."""
    width = 400 if name in ("walker2d", "humanoid") else 200
    config = Config(
        agent=replace(SACConfig(hidden=(1024, 1024), target_entropy=entropy), **agent),
        ensemble=replace(
            _ENSEMBLE, elites=7, hidden=(width,) * 4, weight_decay=(5e-5,) * 5, learning_rate=3e-4, bounds_weight=0.0
        ),
        rollout_length=RolloutLength(10, 10),
        trust=TrustConfig("macura", scale, percentile),
        rollout_rows=50_000 if name == "halfcheetah" else 100_000,
        retain_steps=1000 * retain,
        batch_size=512 if name in ("walker2d", "ant", "humanoid") else 256,
        updates_per_step=updates,
    )
    source = (
        "Data-Science-in-Mechanical-Engineering/macura: mbrl/examples/conf/overrides; but white noise, bounds of the "
        "log-variance that learn, target critics that move at every update, and always the same number of updates"
    )
    return f"macura-{name}", Preset(config, source, PAPER[name].steps)


PRESETS = {
    "small": Preset(
        Config(
            agent=SACConfig(hidden=(128, 128), learning_rate=1e-3),
            ensemble=EnsembleConfig(members=5, elites=3, hidden=(64, 64), batch_size=128, max_epochs=100),
            rollout_length=RolloutLength(last=1),
            rollout_rows=2000,
            retain_steps=1000,
            refit_every=100,
            batch_size=128,
            updates_per_step=10,
            replay_capacity=50_000,
            warmup_steps=200,
            epoch_steps=200,
        ),
        "our own, sized for a CPU: 2 x 64 networks in the model, 10 updates a step",
        steps=2000,
        tasks=("pendulum", "cartpole-continuous"),
    ),
    **{f"paper-{name}": preset for name, preset in PAPER.items()},
    **{f"steady-{name}": _steady(preset) for name, preset in PAPER.items()},
    **dict(
        [
            _macura("hopper", 30.0, 90.0, updates=30, entropy=0.0),
            _macura("halfcheetah", 2.0, 95.0, updates=10, entropy=-4.0),
            _macura("walker2d", 0.3, 95.0, updates=30, entropy=-1.0, retain=3, learning_rate=7e-5),
            _macura("ant", 5.0, 95.0, updates=20, entropy=-1.0, learning_rate=1e-4),
            _macura("humanoid", 5.0, 95.0, 20, -10.0, retain=5, learning_rate=1e-4, hidden=(2048, 2048)),
        ]
    ),
}
