"""The types of model-based reinforcement learning and the interfaces between parts.

An interface is a NamedTuple of pure functions, closed over a frozen config, as in optax. All state is a pytree that the
caller passes in and receives back. Functions are written for one item (one environment, one seed); callers batch them with
`jax.vmap`. The one exception is a learned `World`, which works on a block of rows (see `World`).

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
"""A typed pseudo-random key, as returned by `jax.random.key`. A function consumes the key that it receives."""
Observation: TypeAlias = PyTree
Action: TypeAlias = Array
Carry: TypeAlias = PyTree
Memory: TypeAlias = PyTree
Hyper: TypeAlias = dict[str, Any]
"""Traced numbers that may differ between seeds (learning rates, discount, ...), by the name of their config field."""


class Transition(NamedTuple):
    """One step of a process, real or imagined. Leading axes, if any, are the same on every leaf."""

    observation: Observation
    action: Action
    """[A] in [-1, 1], or int32 for a discrete space."""
    reward: Float[Array, "*batch"]
    next_observation: Observation
    """The true successor, recorded before any reset."""
    terminated: Bool[Array, "*batch"] | Float[Array, "*batch"]
    """Whether the task ended: do not bootstrap. A model that learns termination returns its probability; sample from it
    before storing."""
    truncated: Bool[Array, "*batch"]
    """Whether a time limit was reached without termination: bootstrap."""
    extras: PyTree = ()
    """What the policy returned with the action: a log-probability, plan statistics, a belief."""


class Clock(NamedTuple):
    """The progress of a run. All seeds share it, and it is never batched: with a counter in the state of each seed,
    `jax.vmap` would turn every `lax.cond` that depends on it into a `select`, which runs both branches."""

    env_steps: Int[Array, ""]
    """Environment steps of each seed so far, summed over its environments."""
    schedule: PyTree = ()
    """Hyperparameters that change during a run, as inputs of the compiled program: `Algorithm.schedule`, or what a program
    that decides on them during the run puts in its place. `()` stands for those of the settings."""


class Average(NamedTuple):
    """A running mean: totals and weights are summed across steps. There is no mean while the weight is zero."""

    total: Float[Array, "*batch"]
    weight: Float[Array, "*batch"]

    @classmethod
    def of(cls, value: Shaped[Array, "*batch"], weight: Any = 1.0) -> Average:
        """The average of one `value`, counted `weight` times. With weight 0 the value is ignored."""
        known = jnp.broadcast_to(jnp.asarray(weight, float), jnp.shape(value))
        return cls(jnp.where(known == 0, 0.0, jnp.asarray(value, float) * known), known)

    @classmethod
    def empty(cls) -> Average:
        """An average of nothing."""
        return cls(jnp.zeros(()), jnp.zeros(()))


Metrics: TypeAlias = dict[str, Average]


class World(NamedTuple):
    """A process, real or learned. It never resets by itself: `rollout.auto_reset` adds resets for collecting data.

    A task's World steps one environment. A learned World steps a block of N rows [N, O], which are distributed over the
    members of the ensemble; its transitions have the leading axis [N], and an action [A] without that axis is applied to
    all rows.
    """

    reset: Callable[[Key], Carry]
    start: Callable[[Any, Key], Carry]
    """(origin, key) -> carry. The origin is rows of observations, a belief or a simulator state; nothing is reset."""
    observe: Callable[[Carry], Observation]
    step: Callable[[Carry, Action, Key], tuple[Carry, Transition]]
    next_episode: Callable[[Carry, Key], Carry] | None = None
    """(carry at the end of an episode, key) -> carry at the start of the next, for a task of which a part continues across
    episodes; None for `reset(key)`."""
    prepare: Callable[[Key], Any] | None = None
    """What a step computes from its key alone. If it is given, `rollout` computes it for all steps at once and passes it to
    `step` in place of the key: one large operation takes less time than many small ones."""


class Policy(NamedTuple):
    """Maps memory and observation to an action. Its memory is a plan state, a recurrent belief, or `()`."""

    init: Callable[[Key], Memory]
    act: Callable[[Memory, Observation, Key], tuple[Action, PyTree, Memory]]
    """(memory, observation, key) -> (action, extras, memory)."""
    prepare: Callable[[Key], Any] | None = None
    """What `act` computes from its key alone; see `World.prepare`."""
    remember: Callable[[Memory, Observation, Action, Key], Memory] | None = None
    """(memory, observation, action, key of `act`) -> the memory after this action, which the policy need not have chosen.
    None if the memory does not depend on what others do."""


class Gated(Protocol):
    """State that can stay unchanged while a seed is frozen. The training loop calls `gate` on every type that has it, and
    selects the old leaves of all other state (`core.tree.gate`). Large state must have a `gate` that does not copy it.

    A type may also have a field `active`, true while its own updates were finite: the loop checks it at each call, under
    the name in its property `checks`, by default "gradient".
    """

    def gate(self, healthy: Bool[Array, ""], old: Any) -> Any:
        """This state if `healthy` is true, else one that behaves as `old`."""


class DynamicsModel(NamedTuple):
    """A dynamics model that is fitted to transitions. `world` turns its state into a `World`."""

    init: Callable[[Key, Hyper], Any]
    fit: Callable[[Any, Any, Key], tuple[Any, Metrics]]
    """(state, replay buffer, key) -> (state, metrics). The model samples rows or sequences from the buffer. The buffer's
    size is traced, so a growing buffer does not recompile. If the size is batched over seeds, so are the loops of the fit:
    pass a buffer with a size that all seeds share (`data.replay.with_size`)."""
    predict: Callable[[Any, Float[Array, "N O"], Float[Array, "N A"]], tuple[Float[Array, "E N D"], Float[Array, "E N D"]]]
    """(state, observation, action) -> (mean, variance) of every member's prediction, in the task's units."""
    world: Callable[[Any], World]
    mixtures: Callable[..., Any] | None = None
    """(state, observation, action) -> every member's prediction, a `distributions.GaussianMixture` [E, N, K, D] in the
    task's units, if it is not the Gaussian with the mean and the variance of `predict`."""


Objective: TypeAlias = Callable[[Shaped[Array, "H ..."], Key], Float[Array, ""]]
"""(actions, key) -> expected return of the action sequence; -inf if it is not finite."""


class Stages(NamedTuple):
    """The score of an action sequence as a sum over its steps, each a deterministic function that can be differentiated."""

    start: Carry
    step: Callable[[Carry, Action, Int[Array, ""]], tuple[Carry, Float[Array, ""]]]
    """(carry, action, number of the step) -> (carry, what the step adds to the score)."""
    last: Callable[[Carry, int], Float[Array, ""]]
    """(carry, number of all steps) -> what the last carry adds to the score."""


class Problem(NamedTuple):
    """A planning problem. Sampling planners, and those that differentiate with respect to actions, call `score`; planners
    that use derivatives with respect to states call `stages`."""

    world: World
    origin: Any
    """The argument of `world.start`: rows of a learned World, a belief, or a simulator's state."""
    score: Objective
    action: Space
    """The space of one action."""
    terminal_value: Callable[[Carry], Float[Array, "N"]] | None = None
    """Value of the carry after the last step, already included in `score`; None for 0."""
    stages: Callable[[Key], Stages] | None = None
    """key -> the steps of `score` with that key; None if the problem has no World."""


class Planner(NamedTuple):
    """An optimiser of action sequences. `planning.planning_policy` turns it and a World into a `Policy`."""

    init: Callable[[], Any]
    plan: Callable[..., tuple[Shaped[Array, "H ..."], Any, PyTree]]
    """(problem, plan state, key, proposals=None) -> (actions, next plan state, statistics of the search). `proposals`
    [P, H, ...] are further candidate sequences, for example from a policy, which are scored with the planner's own."""
    horizon: int
    """H: the number of actions in a plan."""


class Learner(NamedTuple):
    """A learner that is updated on batches."""

    init: Callable[[Key, Hyper], Any]
    policy: Callable[[Any, bool], Policy]
    """(state, explore) -> policy; without exploration the action is deterministic."""
    update: Callable[..., tuple[Any, Metrics, Float[Array, "B"]]]
    """(state, batch, key, weight=None) -> (state, metrics, absolute error of each row, for prioritised replay)."""


class ActorCritic(NamedTuple):
    """A `Learner` with an actor and critics that other methods extend: MVE and STEVE pass `update_critic` another target,
    SVG and MAAC replace the actor's loss.

    Its state is a NamedTuple with at least the fields `actor` and `critic` (`nn.optimizer.Trainable`) and `discount`.
    Observations are normalised internally, with the statistics that were passed to its constructor.
    """

    init: Callable[[Key, Hyper], Any]
    policy: Callable[[Any, bool], Policy]
    """(state, explore) -> policy; without exploration the action is deterministic."""
    policy_with_entropy: Callable[[Any], Policy]
    """state -> the policy that the critics evaluate, differentiable in the actor's parameters. Its extras [N] are added to
    the reward of an action: the entropy bonus -alpha log pi(a|s) of a soft agent, 0 for other agents."""
    target_value: Callable[[Any, Observation, Key], Float[Array, "N"]]
    """(state, observation [N, O], key) -> the value by the target critics, from which TD targets bootstrap."""
    target_values: Callable[[Any, Observation, Key], Float[Array, "L N"]]
    """The same by each of the L target critics, at one sampled action per row; `target_value` combines these."""
    action_value: Callable[[Any, Observation, Action, Key], Float[Array, "N"]]
    """(state, observation [N, O], action [N, A], key) -> the action value that the actor maximises, differentiable in
    observation and action. The entropy bonus of the action itself is not included."""
    update_critic: Callable[..., tuple[Any, Metrics, Float[Array, "B"]]]
    """(state, batch, key, *, target=None, weight=None) -> (state, metrics, absolute error of each row). `target` and
    `weight` are [B]. Without a target the critics learn the agent's one-step TD target. Weighted errors are averaged over
    B."""
    update_actor: Callable[..., tuple[Any, Metrics]]
    """(state, batch, key, *, loss=None) -> (state, metrics). `loss(actor parameters, state, batch, key)` -> (loss, mean
    entropy bonus of the sampled actions); a soft agent learns its temperature from the bonus."""
    apply_actor_gradient: Callable[[Any, Float[Array, ""], PyTree, Float[Array, ""]], tuple[Any, Metrics]]
    """(state, loss, its gradient with respect to the actor's parameters, mean entropy bonus) -> (state, metrics): the
    second half of `update_actor`, for a gradient that was computed elsewhere."""
    update: Callable[..., tuple[Any, Metrics, Float[Array, "B"]]]
    """(state, batch, key, weight=None) -> (state, metrics, error): updates the critics, then the actor, on one batch."""


class ModelView(NamedTuple):
    """A fitted dynamics model."""

    model: DynamicsModel
    state: PyTree
    fitted: Bool[Array, ""] | bool
    """Whether it has been fitted at least once."""
    reward: Callable[..., Any] | None = None
    """The task's known reward, if the model does not predict it."""


class CriticView(NamedTuple):
    """A critic and the policy that it evaluates."""

    policy: Policy
    """Its extras [N] are the entropy bonus of each action."""
    action_value: Callable[[Observation, Action, Key], Float[Array, "N"]]
    value: Callable[[Observation, Key], Float[Array, "N"]]
    """Value of an observation under the policy."""
    discount: Float[Array, ""]


class Views(NamedTuple):
    """The parts of a method's state that reports, checkpoints and diagnostics read; None if the method has no such part."""

    replay: Any = None
    """The buffer of real transitions."""
    model: ModelView | None = None
    critic: CriticView | None = None
    latent: Any = None
    """A latent world model, a `models.latent.LatentView`."""
    reproducible: PyTree = ()
    """Parts of the state that can be recomputed, such as imagined transitions: a checkpoint may omit them."""
    logits: Callable[[Observation], Float[Array, "n"]] | None = None
    """Observation -> unnormalised log-probabilities of n choices, of a stochastic policy for discrete actions."""


def no_probes(state: PyTree) -> Metrics:
    """No metrics."""
    return {}


def no_views(state: PyTree) -> Views:
    """Views with all fields empty."""
    return Views()


class Algorithm(NamedTuple):
    """A method without its training loop, which is `training.loop`."""

    init: Callable[[Key, Hyper, Transition | None], Any]
    """(key, hyper, data) -> state. `data` are initial rows [N, ...], such as demonstrations, or None."""
    policy: Callable[[Any, Clock, bool], Policy]
    """(state, clock, explore) -> the policy that collects data, or without exploration the one that is evaluated. The
    method itself defines warm-up and exploration schedules (`agents.exploration`)."""
    learn: Callable[[Clock, Any, Transition], tuple[Any, Metrics]]
    """(clock, state, transitions [period, num_envs]) -> (state, metrics). The clock already counts these transitions. Their
    extras are those that the policy returned."""
    period: int
    """Steps of each environment between two calls of `learn`."""
    probes: Callable[[Any], Metrics] = no_probes
    """state -> metrics to compute at each evaluation: the value of a table, steps to the goal, calibration."""
    views: Callable[[Any], Views] = no_views
    """state -> the parts that reports, checkpoints and diagnostics read."""
    observes_full_state: bool = False
    """Whether the policy receives the world's full carry instead of the observation, to plan in the true simulator."""
    compiler_options: Mapping[str, str] = MappingProxyType({})
    """XLA compiler options for the programs of a run."""
    schedule: PyTree = ()
    """Hyperparameters that change during a run and that all seeds share: the `schedule` of the run's clock."""
    start_states: int | None = None
    """Number M of start states that training repeats, for a method that compares episodes from one state: all episodes of
    the environments i, i + M, i + 2 M, ... begin in the same state. None: each episode begins in a new one."""
    on_policy: bool = False
    """Whether `learn` needs transitions that the current policy collected. Such a method cannot be trained from a file."""


@runtime_checkable
class Env(Protocol):
    """The Brax environment interface, used by all tasks. `State` has the fields `pipeline_state`, `obs`, `reward`, `done`
    (1.0 on termination only, never for a time limit), `metrics` and `info`.

    An environment of vectors also has `observation_size`, the length of `State.obs`, and `action_size`, the length of the
    action, whose entries are in [-1, 1]. For other spaces `make_task` is given the spaces instead.

    It may have `next_episode(state, rng)`, the state at the beginning of an episode after one that ended in `state`:
    `rollout.auto_reset` calls it instead of `reset`. A part of the state can so continue across episodes.

    It may have `observation_names`, a name for each entry of `State.obs`, for `envs.masked`.

    It may have `draw(state, action)` for videos (`envs.drawing`), and `scene(state)` for images that are observed
    (`envs.pixels`).

    It may have `actuator_range`: (low, high), each a number or [A], in the units of the actuators, onto which it maps
    actions linearly. Exported policies contain it."""

    def reset(self, rng: Key) -> Any:
        """The state at the beginning of an episode."""

    def step(self, state: Any, action: Action) -> Any:
        """The state one control step later."""


def unchanged(observation: Float[Array, "*n O"]) -> Float[Array, "*n O"]:
    """The observation itself."""
    return observation


class Features(NamedTuple):
    """How a dynamics model encodes a task's observation, and how it predicts each entry."""

    encode: Callable[[Float[Array, "*n O"]], Float[Array, "*n F"]] = unchanged
    """Observation -> features in the model's input, such as sine and cosine of an angle. It may omit entries."""
    absolute: tuple[int, ...] = ()
    """Entries of the observation that are predicted as absolute values, not as changes."""
    constant: tuple[int, ...] = ()
    """Entries that are constant within an episode, such as its goal: they are copied, not predicted."""
    angles: tuple[int, ...] = ()
    """Entries that are angles in radians. If there are some, `encode` returns the other entries, then the sines and then
    the cosines of the angles (`envs.base.angle_features`)."""


class SaturatingReward(NamedTuple):
    """A reward of the next observation's features f [F], exp(-||matrix (f - target)||^2 / 2): 1 at the target, 0 far away.
    PILCO's cost is 1 minus it. With this form its mean under a Gaussian of f is exact."""

    matrix: Float[np.ndarray, "K F"]
    target: Float[np.ndarray, "F"]


class HostStep(NamedTuple):
    """Result of one step of a `HostEnv`."""

    observation: PyTree
    """The true successor; [O] for one environment."""
    reward: float
    terminated: bool
    truncated: bool
    """Whether a time limit was reached; False if the step terminated."""


@runtime_checkable
class HostEnv(Protocol):
    """One environment outside of any compiled program: an external simulator or a robot. It never resets by itself, and
    after an episode's end it must be reset before the next step."""

    def reset(self, seed: int) -> PyTree:
        """Begin an episode and return its first observation. `seed`, in [0, 2**31), determines all its randomness."""

    def step(self, action: Shaped[np.ndarray, "..."]) -> HostStep:
        """Take a step with an action, [A] in [-1, 1] or an int32."""

    def close(self) -> None:
        """Release its resources."""


class Task(NamedTuple):
    """An environment and its metadata."""

    name: str
    env: Env
    world: World
    observation: Space
    action: Space
    episode_length: int
    """Steps until a transition is truncated."""
    reward: Callable[[Float[Array, "*n O"], Float[Array, "*n A"], Float[Array, "*n O"]], Float[Array, "*n"]] | None = None
    """(observation, action, next observation) -> reward, if these determine it."""
    terminated: Callable[[Float[Array, "*n O"]], Bool[Array, "*n"]] | None = None
    """next observation -> terminated, if the observation determines it."""
    features: Features | None = None
    """How a dynamics model encodes the observation; None for the observation itself."""
    saturating: SaturatingReward | None = None
    """The reward in this form, if it has it. It must agree with `reward`."""
    action_repeat: int = 1
    """Number of times that the environment applies each action; together they count as one step."""
    host: Callable[[], HostEnv] | None = None
    """Creates one more environment, for a task outside of any compiled program. Of such a task's `world` only `observe` may
    be called, which returns the observation unchanged; `env` gives its sizes only."""
    filmed: Callable[[], HostEnv] | None = None
    """Creates an environment like those of `host` for a video. It also has `render() -> uint8 [H, W, 3]`, the picture of
    its state, and `dt`, the seconds of a step or None."""


def row_like(task: Task, extras: PyTree = ()) -> Transition:
    """One transition of `task`, all zeros but for `extras`: the prototype of a replay buffer's row. Give the extras of one
    action if the buffer stores them."""
    none = jnp.zeros((), bool)
    row = Transition(task.observation.zeros(), task.action.zeros(), jnp.zeros(()), task.observation.zeros(), none, none)
    return row._replace(extras=extras)


def flatten(transitions: Transition, with_extras: bool = False) -> Transition:
    """Rows [period * num_envs, ...] of transitions [period, num_envs, ...], in time order. Without `with_extras` the extras
    are dropped."""
    kept = transitions if with_extras else transitions._replace(extras=())
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), kept)
