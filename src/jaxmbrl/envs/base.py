"""Environments in the Brax interface, and their conversion to a `Task`."""

from __future__ import annotations

import numbers
import re
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxmbrl.core import hints
from jaxmbrl.core.config import UserError
from jaxmbrl.core.spaces import Box, Discrete, Space, encoded_size
from jaxmbrl.core.types import Action, Env, Features, Key, PyTree, SaturatingReward, Task, Transition, World
from jaxmbrl.envs.signatures import check_callable


class State(struct.PyTreeNode):
    """State of an environment, with the same fields as in Brax. The leaves are arrays, but tree functions may replace them
    (`jax.eval_shape`, the axes of a vmap), so no field is annotated as an array."""

    pipeline_state: PyTree
    """The simulator's state."""
    obs: PyTree
    """An element of the observation space: [O], or of the space that `make_task` was given."""
    reward: PyTree
    """[]."""
    done: PyTree
    """[]; 1.0 if the task terminated, never because of a time limit."""
    metrics: dict[str, Any]
    info: dict[str, Any]


def initial_state(pipeline_state: PyTree, obs: Shaped[Array, "..."], metrics: dict[str, Any] | None = None) -> State:
    """The first state of an episode, with reward 0 and not done."""
    return State(
        pipeline_state=pipeline_state, obs=obs, reward=jnp.zeros(()), done=jnp.zeros(()), metrics=metrics or {}, info={}
    )


@hints.checked_arguments
def make_task(
    name: str,
    env: Env,
    episode_length: int,
    reward: Callable[..., Any] | None = None,
    terminated: Callable[..., Any] | None = None,
    action: Space | None = None,
    features: Features | None = None,
    observation: Space | None = None,
    saturating: SaturatingReward | None = None,
) -> Task:
    """Make a `Task` from an environment. The carry of its World is (State, steps since the start); its origin is a `State`.
    If the environment has `next_episode(state, rng)`, so has the World.

    Give `observation` if `State.obs` is not a vector of `env.observation_size` floats: `Discrete(n)` for int32 scalars,
    `Box((H, W, C), 0, 255, "uint8")` for images. Give `action` if the action space is not the box [-1, 1] of
    `env.action_size`. Give `reward(obs, action, next_obs)` and `terminated(next_obs)` if the observation determines them.
    Give `features` if a dynamics model should encode the observation, and `saturating` if the reward has that form.
    `State.done` means terminated, except in a step with
    `truncation` in `State.info`, Brax's mark of a time limit.

    Raises UserError if a method is missing or takes other arguments, or if a required size is not a number, as for
    environments with several observations; and, at the first reset or step, if it does not return a `State`, or if the
    environment is a Brax environment that resets itself.
    """
    _check_methods(name, env)
    check_episode_length(name, episode_length)
    observation = observation or Box((_size(name, env, "observation_size"),))
    action = action or Box((_size(name, env, "action_size"),), -1.0, 1.0)

    def reset(key: Key) -> tuple[Any, Int[Array, ""]]:
        state = _state(name, "reset", env.reset(key))
        if "first_obs" in _info(state):
            raise UserError(f"task '{name}': the environment resets by itself: give the one inside its auto-reset wrapper")
        return state, jnp.zeros((), jnp.int32)

    def next_episode(carry: tuple[Any, Int[Array, ""]], key: Key) -> tuple[Any, Int[Array, ""]]:
        following: Any = env
        return _state(name, "next_episode", following.next_episode(carry[0], key)), jnp.zeros((), jnp.int32)

    def step(carry: tuple[Any, Int[Array, ""]], action: Action, key: Key) -> tuple[Any, Transition]:
        state, elapsed = carry
        # Copy the containers, because Brax's environments update `info` and `metrics` in place.
        successor = _state(name, "step", env.step(jax.tree.map(lambda leaf: leaf, state), action))
        ended = _ended(successor)
        transition = Transition(
            observation=state.obs,
            action=action,
            reward=successor.reward,
            next_observation=successor.obs,
            terminated=ended,
            truncated=(elapsed + 1 >= episode_length) & ~ended,
        )
        return (successor, elapsed + 1), transition

    world = World(
        reset=reset,
        start=lambda origin, key: (origin, jnp.zeros((), jnp.int32)),
        observe=lambda carry: carry[0].obs,
        step=step,
        next_episode=next_episode if hasattr(env, "next_episode") else None,
    )
    return Task(
        name=name,
        env=env,
        world=world,
        observation=observation,
        action=action,
        episode_length=episode_length,
        reward=reward,
        terminated=terminated,
        features=features,
        saturating=saturating,
    )


def angle_features(size: int, angles: tuple[int, ...]) -> Features:
    """Features of an observation of `size` entries of which `angles` are angles in radians: [the other entries, sines,
    cosines]."""

    def encode(observation: Float[Array, "*n O"]) -> Float[Array, "*n F"]:
        others = [observation[..., i] for i in range(size) if i not in angles]
        waves = [wave(observation[..., i]) for wave in (jnp.sin, jnp.cos) for i in angles]
        return jnp.stack([*others, *waves], axis=-1)

    return Features(encode, angles=angles)


def saturating_reward(saturating: SaturatingReward, features: Float[Array, "*n F"]) -> Float[Array, "*n"]:
    """exp(-||matrix (f - target)||^2 / 2) of `features` f."""
    matrix, target = (jnp.asarray(part, features.dtype) for part in saturating)
    scaled = (features - target) @ matrix.T
    return jnp.exp(-0.5 * jnp.sum(scaled**2, axis=-1))


def check_episode_length(name: str, length: Any) -> None:
    """Raise UserError if `length` is not a number of steps."""
    if isinstance(length, bool) or not isinstance(length, int | np.integer) or length < 1:
        raise UserError(f"task '{name}': episode_length must be a whole number of steps, at least 1, got {length!r:.60}")


METHODS = {"reset": ("rng",), "step": ("state", "action")}
"""Method of an environment in the Brax interface -> its arguments."""
OPTIONAL = {"next_episode": ("state", "rng")}
"""The same for methods that it may have."""


def _check_methods(name: str, env: Env) -> None:
    """Raise UserError if `env` cannot be called as an environment in the Brax interface."""
    if isinstance(env, type):
        raise UserError(f"task '{name}': give an environment, not its class: {env.__name__}()")
    given = {method: arguments for method, arguments in OPTIONAL.items() if hasattr(env, method)}
    for method, arguments in (METHODS | given).items():
        form = f"{method}({', '.join(arguments)})"
        otherwise = ": one with Gymnasium's interface becomes a task with envs.from_gymnasium"
        check_callable(name, env, method, form, arguments, {}, otherwise)


def _state(name: str, method: str, returned: Any) -> Any:
    """The state that an environment's `method` returned, with typed arrays as leaves. Raises UserError if it is not one."""
    missing = [field for field in ("obs", "reward", "done") if not hasattr(returned, field)]
    if missing:
        got = f"{type(returned).__name__}, which has no {' or '.join(missing)}"
        if type(returned) is tuple:
            got = f"a tuple of {len(returned)}: one with Gymnasium's interface becomes a task with envs.from_gymnasium"
        raise UserError(f"task '{name}': {method} must return a State (jaxmbrl.envs.State), got {got}")

    def leaf(path: Any, value: Any) -> Array:
        try:
            return typed(value)
        except TypeError:
            at = f"state{jax.tree_util.keystr(path)}"
            raise UserError(
                f"task '{name}': {method} must return arrays and numbers, got {type(value).__name__} at {at}"
            ) from None

    return jax.tree_util.tree_map_with_path(leaf, returned)


def never(next_observation: Float[Array, "*n O"]) -> Bool[Array, "*n"]:
    """The termination function of a task that never terminates."""
    return jnp.zeros(next_observation.shape[:-1], bool)


def vector_sizes(task: Task, method: str) -> tuple[int, int]:
    """(length of an observation, length of an action) for a method that needs vectors of floats. Raises UserError if the
    task has other spaces; `action_vector` accepts images."""
    _check_spaces(task, method, "vectors", _is_vector)
    return task.observation.shape[0], task.action.shape[0]


def action_vector(task: Task, method: str) -> int:
    """The length of an action for a method that takes vectors or images as observations, and vectors of floats as actions.
    Raises UserError if the task has other spaces."""
    _check_space(task, method, "vectors and images", "observations", lambda space: _is_vector(space) or _is_image(space))
    _check_space(task, method, "vectors", "actions", _is_vector)
    return task.action.shape[0]


def vectors_and_actions(task: Task, method: str, images: bool = False) -> tuple[int, Space]:
    """(length of an observation, space of an action) for a method that needs vectors of floats as observations, and such
    vectors or choices as actions. Raises UserError if the task has other spaces. With `images`, these are accepted as
    observations too; their length is the number of their entries."""
    takes = f"vector{' or image' if images else ''} observations and continuous or discrete actions"
    _check_space(task, method, takes, "observations", lambda space: _is_vector(space) or (images and _is_image(space)))
    _check_space(task, method, takes, "actions", lambda space: isinstance(space, Discrete) or _is_vector(space))
    return encoded_size(task.observation), task.action


def discrete_sizes(task: Task, method: str) -> tuple[int, int]:
    """(number of observations, number of actions) for a method that needs tables. Raises UserError if the task has other
    spaces."""
    _check_spaces(task, method, "discrete observations and actions", lambda space: isinstance(space, Discrete))
    observation, action = cast(Discrete, task.observation), cast(Discrete, task.action)
    return observation.n, action.n


def number_of_actions(task: Task, method: str, images: bool = False) -> int:
    """The number of choices of an action, for a method that needs discrete actions. Raises UserError if the actions are not
    discrete, and, unless the method takes `images`, if observations are images."""
    _check_space(task, method, "discrete actions", "actions", lambda space: isinstance(space, Discrete))
    if not images:
        _check_space(task, method, "vectors or numbers", "observations", lambda space: not _is_image(space))
    return cast(Discrete, task.action).n


def action_size(task: Task, method: str) -> int:
    """Length of an action for a method that needs vectors of floats as actions. Raises UserError if the task has others."""
    _check_space(task, method, "continuous actions", "actions", _is_vector)
    return task.action.shape[0]


def _is_image(space: Space) -> bool:
    return isinstance(space, Box) and space.is_image


def _is_vector(space: Space) -> bool:
    return isinstance(space, Box) and space.is_vector


def _check_spaces(task: Task, method: str, takes: str, fits: Callable[[Space], bool]) -> None:
    """Raise UserError if `fits` is false for a space of the task."""
    for what in ("observations", "actions"):
        _check_space(task, method, takes, what, fits)


def _check_space(task: Task, method: str, takes: str, what: str, fits: Callable[[Space], bool]) -> None:
    """Raise UserError if `fits` is false for the space of the task's observations or actions."""
    space = task.observation if what == "observations" else task.action
    if not fits(space):
        found = f"the {what} of task '{task.name}' are {_named(space)}"
        raise UserError(f"{method} takes {takes}, and {found}: take {_instead(task, space)}")


def _named(space: Space) -> str:
    return f"images {list(space.shape)}" if _is_image(space) else str(space)


def _instead(task: Task, space: Space) -> str:
    """What to take if the space of a task does not fit: of a task that is drawn, the plain one."""
    plain = re.search(r"(?:^|/)pixels/(?:(?:\d+|grey|\d+,grey|grey,\d+)/)?(.+)", task.name)
    if not _is_image(space):
        return "another task"
    other = f"the task '{plain[1]}'" if plain else "another task"
    return f"{other}, or a method for images, such as sac (docs/pixels.md)"


def typed(leaf: Any) -> Array:
    """`leaf` as an array without a weak type. A Python number in a state would otherwise change its type at the first
    step."""
    array = jnp.asarray(leaf)
    # Arrays of keys have no weak type.
    return jax.lax.convert_element_type(array, array.dtype) if getattr(array, "weak_type", False) else array


def _size(name: str, env: Env, what: str) -> int:
    """The environment's `observation_size` or `action_size`. Raises UserError if it is not the length of a vector."""
    size = getattr(env, what, None)
    if not isinstance(size, numbers.Integral) or size < 1:
        raise UserError(f"task '{name}': the environment's {what} must be the length of one vector, got {size!r}")
    return int(size)


def _ended(state: Any) -> Bool[Array, ""]:
    ended, info = state.done > 0, _info(state)
    return ended & ~(info["truncation"] > 0) if "truncation" in info else ended


def _info(state: Any) -> Any:
    return getattr(state, "info", None) or {}
