"""The types of model-based reinforcement learning and the interfaces of all parts.

An interface is a NamedTuple of pure functions, closed over a frozen config, as in optax. All state is a pytree that the
caller holds. Functions are written for one item (one environment, one seed); callers batch them with `jax.vmap`. The one
exception is a learned `World`, whose item is a block of rows (see `World`).

Shape letters: O observation size, A action size, D model output size, E ensemble members, N rows, B batch, H horizon.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxmbrl.core.spaces import Space

PyTree: TypeAlias = Any
Key: TypeAlias = jax.Array
"""A typed pseudo-random key, as `jax.random.key` makes it. Each function consumes the key that it is given."""
Observation: TypeAlias = PyTree
Action: TypeAlias = Array
Carry: TypeAlias = PyTree
Memory: TypeAlias = PyTree
Hyper: TypeAlias = dict[str, Any]
"""Traced numbers that may differ from seed to seed (learning rates, discount, ...), by the name of their config field."""


class Transition(NamedTuple):
    """One step of a process, real or imagined. Leading axes, where there are any, are the same on every leaf."""

    observation: Observation
    action: Action
    """[A] in [-1, 1], or int32 for a discrete space."""
    reward: Float[Array, "*batch"]
    next_observation: Observation
    """The true successor, recorded before any reset."""
    terminated: Bool[Array, "*batch"] | Float[Array, "*batch"]
    """The task ended: do not bootstrap. A model that learns it tells its probability: draw before storing."""
    truncated: Bool[Array, "*batch"]
    """Only the clock ran out: bootstrap."""
    extras: PyTree = ()
    """What the policy returned with the action: a log-probability, plan statistics, a belief."""


class Clock(NamedTuple):
    """How far a run is. It is shared by all seeds and never batched: a counter inside seed-vmapped state would turn every
    `lax.cond` on it into a `select` that runs both branches."""

    env_steps: Int[Array, ""]
    """Environment steps taken so far by each seed, over all its environments."""


class Average(NamedTuple):
    """A running mean: totals and weights add up across steps; there is no mean while the weight is zero."""

    total: Float[Array, "*batch"]
    weight: Float[Array, "*batch"]

    @classmethod
    def of(cls, value: Shaped[Array, "*batch"], weight: Any = 1.0) -> Average:
        """The average of one `value`, counted `weight` times. Where the weight is 0 the value does not matter."""
        known = jnp.broadcast_to(jnp.asarray(weight, float), jnp.shape(value))
        return cls(jnp.where(known == 0, 0.0, jnp.asarray(value, float) * known), known)

    @classmethod
    def empty(cls) -> Average:
        """An average of nothing."""
        return cls(jnp.zeros(()), jnp.zeros(()))


Metrics: TypeAlias = dict[str, Average]


class World(NamedTuple):
    """A process, real or learned. It never resets by itself: `rollout.auto_reset` is the collector's wrapper.

    A task's World has one environment as its item. A learned World's item is a block of N rows [N, O], shared out over the
    ensemble's members, and its transitions lead with [N]; an action [A] without that axis is applied to all rows.
    """

    reset: Callable[[Key], Carry]
    start: Callable[[Any, Key], Carry]
    """(origin, key) -> carry: from observation rows, a belief or a simulator state, without resetting."""
    observe: Callable[[Carry], Observation]
    step: Callable[[Carry, Action, Key], tuple[Carry, Transition]]


class Policy(NamedTuple):
    """Maps memory and observation to an action. Its memory is a plan state, a recurrent belief, or `()`."""

    init: Callable[[Key], Memory]
    act: Callable[[Memory, Observation, Key], tuple[Action, PyTree, Memory]]
    """(memory, observation, key) -> (action, extras, memory)."""


class Gated(Protocol):
    """State that keeps itself unchanged while a seed is frozen. The training loop calls `gate` on every type that has it,
    and selects the old leaves of all other state: what is large must have a `gate` that does not copy it (`core.tree`).

    A type may also have a field `active`, true while its own updates were finite: the loop checks it at each call, under
    the name in its property `checks`, by default "gradient".
    """

    def gate(self, healthy: Bool[Array, ""], old: Any) -> Any:
        """This state where `healthy` is true, else one that behaves as `old`."""


class DynamicsModel(NamedTuple):
    """A model of the task that is fitted to transitions; a fitted model is a `World`."""

    init: Callable[[Key, Hyper], Any]
    fit: Callable[[Any, Any, Key], tuple[Any, Metrics]]
    """(state, replay buffer, key) -> (state, metrics). The model chooses rows or sequences of the buffer. Its size is
    traced, so a growing buffer never recompiles; where it is batched over seeds, so are the loops of the fit: give a buffer
    whose size all seeds share (`data.replay.with_size`)."""
    predict: Callable[[Any, Float[Array, "N O"], Float[Array, "N A"]], tuple[Float[Array, "E N D"], Float[Array, "E N D"]]]
    """(state, observation, action) -> (mean, variance) of every member's prediction, in the task's units."""
    world: Callable[[Any], World]


Objective: TypeAlias = Callable[[Shaped[Array, "H ..."], Key], Float[Array, ""]]
"""(actions, key) -> expected return of the action sequence; -inf where it is not finite."""


class Problem(NamedTuple):
    """What a planner is asked to solve. Sampling planners call `score`; planners that use derivatives step `world`."""

    world: World
    origin: Any
    """What `world.start` takes: rows of a learned World, a belief, or a simulator's state."""
    score: Objective
    action: Space
    """The space of one action."""
    terminal_value: Callable[[Carry], Float[Array, "N"]] | None = None
    """Value of the carry after the last step, which `score` has added already; None for 0."""


class Planner(NamedTuple):
    """An optimiser of action sequences; over a World it makes a `Policy` (`planning.planning_policy`)."""

    init: Callable[[], Any]
    plan: Callable[..., tuple[Shaped[Array, "H ..."], Any, PyTree]]
    """(problem, plan state, key, proposals=None) -> (actions, next plan state, statistics of the search). `proposals`
    [P, H, ...] are action sequences from elsewhere, such as a policy, which compete with the planner's own."""


class Learner(NamedTuple):
    """Anything that improves on batches."""

    init: Callable[[Key, Hyper], Any]
    policy: Callable[[Any, bool], Policy]
    """(state, explore) -> policy; without exploration the action is deterministic."""
    update: Callable[..., tuple[Any, Metrics, Float[Array, "B"]]]
    """(state, batch, key, weight=None) -> (state, metrics, absolute error of each row, for prioritised replay)."""


class ActorCritic(NamedTuple):
    """A `Learner` with an actor and critics that other methods build on: MVE and STEVE give `update_critic` another target,
    SVG and MAAC give `update_actor` another loss.

    Its state is a NamedTuple with at least the fields `actor` and `critic` (`nn.optimizer.Trainable`) and `discount`.
    Observations are normalised inside, by the statistics that were given when it was made.
    """

    init: Callable[[Key, Hyper], Any]
    policy: Callable[[Any, bool], Policy]
    """(state, explore) -> policy; without exploration the action is deterministic."""
    policy_with_entropy: Callable[[Any], Policy]
    """state -> the policy that the critics evaluate, differentiable in the actor's parameters. Its extras [N] are what an
    action earns besides its reward: the entropy bonus -alpha log pi(a|s) of a soft agent, 0 of another."""
    target_value: Callable[[Any, Observation, Key], Float[Array, "N"]]
    """(state, observation [N, O], key) -> the target critics' value of an observation, as targets bootstrap from it."""
    target_values: Callable[[Any, Observation, Key], Float[Array, "L N"]]
    """The same by each of the L target critics alone, of one action a row: `target_value` is made of these."""
    action_value: Callable[[Any, Observation, Action, Key], Float[Array, "N"]]
    """(state, observation [N, O], action [N, A], key) -> the value that the actor maximises, without the action's own
    entropy bonus, differentiable in observation and action."""
    update_critic: Callable[..., tuple[Any, Metrics, Float[Array, "B"]]]
    """(state, batch, key, *, target=None, weight=None) -> (state, metrics, absolute error of each row). `target` and
    `weight` are [B]; without a target the critics learn their own one-step target. Weighted errors are averaged over B."""
    update_actor: Callable[..., tuple[Any, Metrics]]
    """(state, batch, key, *, loss=None) -> (state, metrics). `loss(actor parameters, state, batch, key)` -> (what the actor
    minimises, mean entropy bonus of the actions that it drew, from which a soft agent learns its temperature)."""
    apply_actor_gradient: Callable[[Any, Float[Array, ""], PyTree, Float[Array, ""]], tuple[Any, Metrics]]
    """(state, loss, its gradient by the actor's parameters, mean entropy bonus) -> (state, metrics): the second half of
    `update_actor`, for a gradient that was computed elsewhere."""
    update: Callable[..., tuple[Any, Metrics, Float[Array, "B"]]]
    """(state, batch, key, weight=None) -> (state, metrics, error): the critics, then the actor, on the same batch."""


class ModelView(NamedTuple):
    """A fitted dynamics model."""

    model: DynamicsModel
    state: PyTree
    fitted: Bool[Array, ""] | bool
    """Whether it has been fitted at least once."""
    reward: Callable[..., Any] | None = None
    """The task's known reward, where the model does not predict it."""


class CriticView(NamedTuple):
    """A critic and the policy that it evaluates."""

    policy: Policy
    """Its extras [N] are the entropy bonus of each action."""
    action_value: Callable[[Observation, Action, Key], Float[Array, "N"]]
    value: Callable[[Observation, Key], Float[Array, "N"]]
    """Value of an observation under the policy."""
    discount: Float[Array, ""]


class Views(NamedTuple):
    """What reports, checkpoints and diagnostics look at in a method's state; None where there is none."""

    replay: Any = None
    """The buffer of real transitions."""
    model: ModelView | None = None
    critic: CriticView | None = None
    reproducible: PyTree = ()
    """Parts of the state that can be made again, such as imagined transitions: a checkpoint may leave them out."""


def no_probes(state: PyTree) -> Metrics:
    """No metrics."""
    return {}


def no_views(state: PyTree) -> Views:
    """Nothing to look at."""
    return Views()


class Algorithm(NamedTuple):
    """A published method: no loop, only what is different about it. `training.loop` runs it."""

    init: Callable[[Key, Hyper, Transition | None], Any]
    """(key, hyper, data) -> state. `data` are rows [N, ...] to begin with, such as demonstrations, or None."""
    policy: Callable[[Any, Clock, bool], Policy]
    """(state, clock, explore) -> the policy that collects, or without exploration the one that is evaluated. Warm-up and
    exploration schedules are the method's (`agents.exploration`)."""
    learn: Callable[[Clock, Any, Transition], tuple[Any, Metrics]]
    """(clock, state, transitions [period, num_envs]) -> (state, metrics). The clock counts these transitions too. Their
    extras are what the policy returned."""
    period: int
    """Steps of each environment between two calls of `learn`."""
    probes: Callable[[Any], Metrics] = no_probes
    """state -> metrics that are computed at each evaluation: the value of a table, steps to the goal, calibration."""
    views: Callable[[Any], Views] = no_views
    """state -> what reports, checkpoints and diagnostics look at."""
    observes_full_state: bool = False
    """Whether the policy observes the world's whole carry instead of the observation: it plans in the true simulator."""
    compiler_options: Mapping[str, str] = MappingProxyType({})
    """XLA's, for the programs of a run."""


@runtime_checkable
class Env(Protocol):
    """The Brax environment interface, which tasks are written in. `State` has the fields `pipeline_state`, `obs`, `reward`,
    `done` (1.0 on termination only, never for a time limit), `metrics` and `info`."""

    @property
    def observation_size(self) -> int:
        """Length of `State.obs`."""

    @property
    def action_size(self) -> int:
        """Length of the action, each entry in [-1, 1]."""

    def reset(self, rng: Key) -> Any:
        """A first state."""

    def step(self, state: Any, action: Action) -> Any:
        """The state one control step later."""


def unchanged(observation: Float[Array, "*n O"]) -> Float[Array, "*n O"]:
    """The observation itself."""
    return observation


class Features(NamedTuple):
    """How a task's observation is best shown to a dynamics model, and what the model predicts of it."""

    encode: Callable[[Float[Array, "*n O"]], Float[Array, "*n F"]] = unchanged
    """What stands for the observation in the model's input: sine and cosine of an angle, say. It may leave entries out."""
    absolute: tuple[int, ...] = ()
    """Entries of the observation that are predicted themselves and not as changes."""
    constant: tuple[int, ...] = ()
    """Entries that no step changes, as an episode's goal: they are not predicted, and stay."""


class HostStep(NamedTuple):
    """Result of one step of a `HostEnv`."""

    observation: PyTree
    """The true successor; of a plain environment [O]."""
    reward: float
    terminated: bool
    truncated: bool
    """Only the clock ran out; False where the step terminated."""


@runtime_checkable
class HostEnv(Protocol):
    """One environment that lives outside of any compiled program: another's simulator, or a robot. It never resets by
    itself, and after an end it is not stepped before the next reset."""

    def reset(self, seed: int) -> PyTree:
        """Begin an episode and return its first observation; all its randomness follows from `seed` in [0, 2**31)."""

    def step(self, action: Shaped[np.ndarray, "..."]) -> HostStep:
        """Take a step, with an action [A] in [-1, 1] or an int32."""

    def close(self) -> None:
        """Release its resources."""


class Task(NamedTuple):
    """What our code sees of an environment."""

    name: str
    env: Env
    world: World
    observation: Space
    action: Space
    episode_length: int
    """Steps until a transition is truncated."""
    reward: Callable[[Float[Array, "*n O"], Float[Array, "*n A"], Float[Array, "*n O"]], Float[Array, "*n"]] | None = None
    """(observation, action, next observation) -> reward, where the observation determines it."""
    terminated: Callable[[Float[Array, "*n O"]], Bool[Array, "*n"]] | None = None
    """next observation -> terminated, where the observation determines it."""
    features: Features | None = None
    """How a dynamics model shall see the observation, where not as it is."""
    action_repeat: int = 1
    """Times that the environment applies each action; a step here is all of them."""
    host: Callable[[], HostEnv] | None = None
    """Makes one more environment, where the task lives outside of any compiled program. Of its `world` only `observe` can
    then be called, which hands through an observation; `env` tells its sizes alone."""


def row_like(task: Task) -> Transition:
    """One transition of `task`, all zeros and without extras: the prototype of a replay buffer's row."""
    none = jnp.zeros((), bool)
    return Transition(task.observation.zeros(), task.action.zeros(), jnp.zeros(()), task.observation.zeros(), none, none)


def flatten(transitions: Transition) -> Transition:
    """Rows [period * num_envs, ...] of transitions [period, num_envs, ...], in time order and without extras."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), transitions._replace(extras=()))
