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

from dataclasses import dataclass, replace
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge
from jaxtyping import Array, Float

from jaxmbrl.agents.actor_critic import sac
from jaxmbrl.agents.actor_critic.sac import SACConfig
from jaxmbrl.algorithms import shared
from jaxmbrl.algorithms.presets import Preset
from jaxmbrl.algorithms.shared import BranchedSettings, RolloutLength
from jaxmbrl.core import metrics
from jaxmbrl.core.types import (
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
    Views,
    flatten,
    row_like,
)
from jaxmbrl.data import replay
from jaxmbrl.data.replay import Replay
from jaxmbrl.envs.base import vector_sizes
from jaxmbrl.models import branching, disagreement
from jaxmbrl.models.branching import Imagined
from jaxmbrl.models.disagreement import TrustConfig
from jaxmbrl.models.ensemble import EnsembleConfig


@dataclass(frozen=True)
class Config(BranchedSettings):
    """Settings of a run of MBPO."""

    updates_per_step: Annotated[int, Ge(1)] = 20
    """Updates of the agent for each environment step: the replay ratio (UTD)."""
    warmup_steps: Annotated[int, Ge(2)] = 5000
    """Environment steps of uniformly random actions, without updates, at the start."""


class State(NamedTuple):
    """The whole state of a run."""

    agent: PyTree
    model: PyTree
    """The `EnsembleState`, or another model's state."""
    replay: Replay
    """Real transitions."""
    imagined: Imagined
    """Imagined transitions."""
    real_ratio: Float[Array, ""]
    key: Key


def make(config: Config, task: Task, model: DynamicsModel | None = None) -> Algorithm:
    """MBPO on `task`; `model` overrides the default ensemble. `hyper` may hold `real_ratio`, traced, and SAC's."""
    agent = sac.make(config.agent, *vector_sizes(task, "mbpo"))
    model = model or shared.ensemble_for(config, task)
    rule = disagreement.make(config.trust)

    def init(key: Key, hyper: Hyper, data: Transition | None = None) -> State:
        shared.no_data(data, "mbpo")
        agent_key, key, model_key = jax.random.split(key, 3)
        return State(
            agent=agent.init(agent_key, hyper),
            model=model.init(model_key, {}),
            replay=replay.init(row_like(task), config.replay_capacity),
            imagined=branching.init(row_like(task), config.imagined_capacity, config.rounds_kept, config.trust),
            real_ratio=jnp.asarray(hyper.get("real_ratio", config.real_ratio), float),
            key=key,
        )

    def policy(state: State, clock: Clock, explore: bool) -> Policy:
        acting = agent.policy(state.agent, explore)
        return shared.collector(acting, task, config, clock) if explore else acting

    def learn(clock: Clock, state: State, transitions: Transition) -> tuple[State, Metrics]:
        key, update_key, refit_key = jax.random.split(state.key, 3)
        real = replay.add(state.replay, flatten(transitions))

        def fit_and_imagine(learned: tuple[PyTree, Imagined]) -> tuple[tuple[PyTree, Imagined], Metrics]:
            model_state, imagined = learned
            fit_key, imagine_key = jax.random.split(refit_key)
            rows = shared.rows_to_fit(real, clock, config.replay_capacity)
            model_state, fitted = model.fit(model_state, rows, fit_key)
            acting = branching.with_disagreement(agent.policy(state.agent, True), rule, model, model_state)
            steps = shared.steps_after_warmup(config, clock)
            imagined, found = shared.branch_from_replay(
                config, rule, model.world(model_state), acting, real, imagined, steps, imagine_key
            )
            return (model_state, imagined), fitted | found

        (model_state, imagined), fitted = metrics.cond_update(
            shared.refit_due(config, clock), fit_and_imagine, (state.model, state.imagined)
        )

        def draw(key: Key) -> Transition:
            return replay.mixture(real, imagined.buffer, key, config.batch_size, state.real_ratio)

        agent_state, updated = shared.update_agent(config, agent, state.agent, clock, draw, update_key)
        return State(agent_state, model_state, real, imagined, state.real_ratio, key), fitted | updated

    def views(state: State) -> Views:
        return Views(
            replay=state.replay,
            model=shared.model_view(config, task, model, state.model),
            critic=shared.critic_view(agent, state.agent),
            reproducible=state.imagined.buffer,
        )

    return Algorithm(init, policy, learn, period=1, views=views)


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
