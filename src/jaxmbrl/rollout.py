"""The rollout of a policy in a world, a fold over steps. Collecting, imagining, planning and evaluating all use it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxmbrl.core import tree
from jaxmbrl.core.types import Action, Algorithm, Carry, Key, Memory, Observation, Policy, PyTree, Task, Transition, World


def rollout(
    world: World,
    policy: Policy,
    state: tuple[Carry, Memory],
    key: Key,
    length: int | Int[Array, ""],
    fold: Callable[[Any, Transition, Int[Array, ""]], Any] | None = None,
    acc: Any = None,
    first: int | Int[Array, ""] = 0,
) -> tuple[tuple[Carry, Memory], Any]:
    """Step `world` under `policy` for `length` steps from `state = (carry, memory)`.

    `fold(acc, transition, i) -> acc` receives each transition in turn, for example to store it or to sum its reward.
    Without a fold the transitions are stacked on a leading axis [length, ...]. Nothing is reset here.

    Step i uses the key `fold_in(key, i)`, so the prefix of a rollout does not depend on its length. The steps are
    numbered from `first`, with which a rollout continues another one. With a fold, `length` may be traced; the rollout then
    has no reverse-mode derivative.

    Returns ((carry, memory), acc or stacked transitions).

    >>> from jaxmbrl import envs
    >>> from jaxmbrl.rollout import open_loop, rollout
    >>> task = envs.make("cartpole-continuous")
    >>> reset_key, rollout_key = jax.random.split(jax.random.key(0))
    >>> start = (task.world.reset(reset_key), jnp.zeros((), jnp.int32))  # an open loop's memory is the step's number
    >>> _, steps = rollout(task.world, open_loop(jnp.zeros((5, 1))), start, rollout_key, 5)
    >>> steps.observation.shape, float(steps.reward.sum()), bool(steps.terminated.any())
    ((5, 4), 5.0, False)
    >>> earn = lambda total, step, i: total + step.reward
    >>> _, total = rollout(task.world, open_loop(jnp.zeros((5, 1))), start, rollout_key, 5, earn, 0.0)
    >>> float(total)
    5.0
    """

    def prepare(i: Int[Array, ""]) -> tuple[Any, Any]:
        act_key, step_key = step_keys(key, i)
        return _prepared(policy.prepare, act_key), _prepared(world.prepare, step_key)

    def step(state: tuple[Carry, Memory], drawn: tuple[Any, Any]) -> tuple[tuple[Carry, Memory], Transition]:
        carry, memory = state
        action, extras, memory = policy.act(memory, world.observe(carry), drawn[0])
        carry, transition = world.step(carry, action, drawn[1])
        return (carry, memory), transition._replace(extras=extras)

    def step_and_fold(loop: tuple[Any, Any], i: Int[Array, ""], drawn: tuple[Any, Any]) -> tuple[Any, Any]:
        state, acc = loop
        state, transition = step(state, drawn)
        return state, transition if fold is None else fold(acc, transition, i)

    continues = not isinstance(first, int) or first != 0
    if not isinstance(length, int):

        def body(i: Int[Array, ""], loop: tuple[Any, Any]) -> tuple[Any, Any]:
            i = first + i if continues else i
            return step_and_fold(loop, i, prepare(i))

        return jax.lax.fori_loop(0, length, body, (state, acc))
    steps = first + jnp.arange(length) if continues else jnp.arange(length)
    drawn = jax.vmap(prepare)(steps)
    if fold is None:
        return jax.lax.scan(step, state, drawn)
    return jax.lax.scan(lambda loop, x: (step_and_fold(loop, *x), None), (state, acc), (steps, drawn))[0]


def _prepared(prepare: Callable[[Key], Any] | None, key: Key) -> Any:
    return key if prepare is None else prepare(key)


def step_keys(key: Key, i: int | Int[Array, ""]) -> tuple[Key, Key]:
    """(key of the action, key of the world's step) at step `i` of a rollout with `key`."""
    act_key, step_key = jax.random.split(jax.random.fold_in(key, i))
    return act_key, step_key


def with_full_state(world: World) -> World:
    """`world` whose observation is its full carry, and which starts from a carry: for planning in the true simulator."""
    return world._replace(observe=lambda carry: carry, start=lambda carry, key: carry)


def playback(rows: Transition) -> tuple[World, Policy]:
    """A world that replays the rows [N, ...] in order, and a policy for it: with them the training loop passes stored data
    to `learn` without collecting. After the last row the world continues with the first. The policy has no memory and no
    extras.
    """

    def step(place: Int[Array, ""], action: Action, key: Key) -> tuple[Int[Array, ""], Transition]:
        return (place + 1) % rows.reward.shape[0], jax.tree.map(lambda leaf: jnp.asarray(leaf)[place], rows)

    def act(memory: Memory, place: Observation, key: Key) -> tuple[Action, PyTree, Memory]:
        # The world ignores the action: it replays the recorded one.
        return rows.action[0], (), memory

    first = jnp.zeros((), jnp.int32)
    world = World(reset=lambda key: first, start=lambda place, key: place, observe=lambda place: place, step=step)
    return world, Policy(lambda key: (), act)


def world_of(task: Task, algorithm: Algorithm) -> World:
    """The World of `task` with the observation that the policies of `algorithm` need."""
    return with_full_state(task.world) if algorithm.observes_full_state else task.world


class Episode(NamedTuple):
    """Carry of an auto-resetting world: the inner carry, and whether it is the first of an episode."""

    carry: Carry
    is_first: Bool[Array, ""]


class Drawn(NamedTuple):
    """What an auto-resetting world or policy computes from the key of a step."""

    key: Key
    """Of the step or the action itself."""
    new: Any
    """The carry or the memory at the beginning of an episode; for a world with `next_episode`, the key of it."""


def auto_reset(world: World, policy: Policy) -> tuple[World, Policy]:
    """`world` and `policy` for collecting data: when an episode ends, the world is reset, and so is the policy's memory.

    A world with `next_episode` continues by it instead of `reset`.

    The transition that ended the episode still contains the true successor. Use the two together: the wrapped world's
    observation is (observation, is_first), which the wrapped policy expects.
    """

    def reset(key: Key) -> Episode:
        return Episode(world.reset(key), jnp.ones((), bool))

    def prepare_step(key: Key) -> Drawn:
        step_key, again_key = reset_keys(key)
        return Drawn(step_key, world.reset(again_key) if world.next_episode is None else again_key)

    def step(episode: Episode, action: Action, drawn: Key | Drawn) -> tuple[Episode, Transition]:
        key, new = drawn if isinstance(drawn, Drawn) else prepare_step(drawn)
        carry, transition = world.step(episode.carry, action, key)
        done = transition.terminated | transition.truncated
        again = new if world.next_episode is None else world.next_episode(carry, new)
        return Episode(tree.where(done, again, carry), done), transition

    def prepare_act(key: Key) -> Drawn:
        reset_key, act_key = jax.random.split(key)
        return Drawn(act_key, policy.init(reset_key))

    def act(memory: Memory, observed: tuple[PyTree, Bool[Array, ""]], drawn: Key | Drawn) -> tuple[Action, PyTree, Memory]:
        observation, is_first = observed
        key, new = drawn if isinstance(drawn, Drawn) else prepare_act(drawn)
        return policy.act(tree.where(is_first, new, memory), observation, key)

    return (
        World(
            reset=reset,
            start=lambda origin, key: Episode(world.start(origin, key), jnp.ones((), bool)),
            observe=lambda episode: (world.observe(episode.carry), episode.is_first),
            step=step,
            prepare=prepare_step,
        ),
        Policy(policy.init, act, prepare_act),
    )


class Restarted(NamedTuple):
    """Carry of a world that returns to its start: the inner carry, and that of the start."""

    carry: Carry
    start: Carry


def from_same_start(world: World) -> World:
    """`world` whose episodes under `auto_reset` all begin in the state of its first reset. If the world's randomness is
    part of its carry, it repeats, too."""

    def begin(carry: Carry) -> Restarted:
        return Restarted(carry, carry)

    def step(state: Restarted, action: Action, key: Key) -> tuple[Restarted, Transition]:
        carry, transition = world.step(state.carry, action, key)
        return Restarted(carry, state.start), transition

    return World(
        reset=lambda key: begin(world.reset(key)),
        start=lambda origin, key: begin(world.start(origin, key)),
        observe=lambda state: world.observe(state.carry),
        step=step,
        next_episode=lambda state, key: begin(state.start),
    )


def reset_keys(key: Key) -> tuple[Key, Key]:
    """(key of the step, key of a reset after it) for one step of an auto-resetting world."""
    step_key, again_key = jax.random.split(key)
    return step_key, again_key


def open_loop(actions: Shaped[Array, "H ..."]) -> Policy:
    """The policy that takes `actions` in order; its memory is the index of the next action."""
    return Policy(init=lambda key: jnp.zeros((), jnp.int32), act=lambda i, observation, key: (actions[i], (), i + 1))


class Return(NamedTuple):
    """Accumulator of an undiscounted return: rewards are weighted by `alive`."""

    total: Float[Array, "*n"]
    alive: Float[Array, "*n"]
    """1 until the episode ends and 0 afterwards; if termination is a probability, the probability of no termination yet."""

    @classmethod
    def zero(cls, shape: tuple[int, ...] = ()) -> Return:
        """Return 0, with no episode ended."""
        return cls(jnp.zeros(shape), jnp.ones(shape))


def episode_return(acc: Return, transition: Transition, i: Int[Array, ""]) -> Return:
    """Fold of an evaluation: rewards up to and including the step that ends the episode count."""
    return _earn(acc, transition.reward, transition.terminated | transition.truncated)


def planned_return(acc: Return, transition: Transition, i: Int[Array, ""]) -> Return:
    """Fold of a planner's objective: as `episode_return`, but ignoring time limits, which a model does not know.

    If the world returns a probability of termination, a reward is weighted by the probability that the episode has not
    terminated before. This is the expectation over sampled terminations, without their noise.
    """
    return _earn(acc, transition.reward, transition.terminated)


def _earn(acc: Return, reward: Float[Array, "*n"], ended: Bool[Array, "*n"] | Float[Array, "*n"]) -> Return:
    # Rewards after termination are ignored, even if they are not finite. A probability that is NaN stays NaN.
    alive = acc.alive != 0
    total = acc.total + jnp.where(alive, acc.alive * reward, 0.0)
    return Return(total, jnp.where(alive, acc.alive * (1 - ended), 0.0))
