"""Gymnasium environments as tasks; a user's own simulator or robot can use the same interface.

They run on the host: a compiled program cannot step them, so each step passes data from the device to Python and back.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Shaped

from jaxmbrl.core.config import UserError
from jaxmbrl.core.spaces import Box, Discrete, Space
from jaxmbrl.core.types import Action, Carry, HostStep, Key, Task, Transition, World

if TYPE_CHECKING:
    import gymnasium

DEFAULT_LENGTH = 1000
"""Steps of an episode if neither the caller nor the environment's spec gives a limit."""


def from_gymnasium(make_env: Callable[[], gymnasium.Env], name: str, episode_length: int | None = None) -> Task:
    """Make a task from Gymnasium environments. `make_env()` must return a new environment at each call.

    The observation space must be a `Box` or `Discrete`. A `Box` of uint8 with two or more axes is an image and stays
    unchanged, except that [H, W] becomes [H, W, 1]; any other `Box` is flattened to floats [O]. The action space must be
    `Discrete`, or a `Box` with finite bounds, which is flattened and mapped from [-1, 1] onto the bounds. Elements of
    discrete spaces are numbered from 0, whatever the `start` of the space.

    A step is terminated if the environment reports `terminated`. It is truncated if the environment reports only
    `truncated`, or after `episode_length` steps. The default of `episode_length` is the `max_episode_steps` of the
    environment's spec, or else 1,000 steps, because an evaluation must end. Each reset is given a seed.

    This function makes one environment to read its spaces, and closes it. Training makes `num_envs` environments for each
    seed; each evaluation makes its own, at most 64 at a time.

    Raises UserError if `make_env` fails or does not return an environment, or if a space is not supported.
    """
    with named_errors(name, "being made"):
        env = make_env()
    try:
        observation, action = _observation(name, env), _action(name, env)
        limit = getattr(getattr(env, "spec", None), "max_episode_steps", None) or DEFAULT_LENGTH
        length = limit if episode_length is None else episode_length
        bounds = None if isinstance(action, Discrete) else _bounds(env.action_space)
    finally:
        with named_errors(name, "close"):
            getattr(env, "close", lambda: None)()
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
        raise UserError(f"task '{name}': episode_length must be a whole number of steps, got {length!r}")
    return Task(
        name=name,
        env=_Sizes(name, math.prod(observation.shape), math.prod(action.shape), bounds),
        world=_world(name),
        observation=observation,
        action=action,
        episode_length=length,
        host=lambda: GymnasiumEnv(name, make_env(), length),
    )


def registered(name: str) -> Task:
    """The task `gymnasium/NAME`, from `gymnasium.make(NAME)`. Raises UserError if there is no such environment, or
    Gymnasium is not installed."""
    return from_gymnasium(lambda: make_registered(name), f"gymnasium/{name}")


def make_registered(name: str, **options: Any) -> gymnasium.Env:
    """`gymnasium.make(name, **options)`. Raises UserError if Gymnasium is not installed or cannot make it."""
    gymnasium = import_gymnasium()
    try:
        with _no_log_file():
            return gymnasium.make(name, disable_env_checker=True, **options)
    except (gymnasium.error.Error, ImportError) as error:
        raise UserError(f"Gymnasium cannot make '{name}': {_one_line(error)}") from error


def import_gymnasium() -> Any:
    """The module `gymnasium`. Raises UserError if it is not installed."""
    try:
        import gymnasium
    except ImportError:
        raise UserError("Gymnasium is missing: pip install 'jaxmbrl[gym]'") from None
    return gymnasium


@contextlib.contextmanager
def named_errors(name: str, doing: str) -> Iterator[None]:
    """Turn errors of the environment of task `name` into a UserError of one line that names the task and the call."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        message = f"task '{name}': its environment fails in {doing} with {type(error).__name__}: {_one_line(error)}"
        raise UserError(message) from error


class GymnasiumEnv:
    """A Gymnasium environment as a `HostEnv`."""

    def __init__(self, name: str, env: gymnasium.Env, episode_length: int) -> None:
        self._name, self._env, self._length = name, env, episode_length
        self._elapsed = 0
        self._space = _observation(name, env)

    def reset(self, seed: int) -> Shaped[np.ndarray, "..."]:
        """Start an episode; returns its first observation."""
        self._elapsed = 0
        return self._element(self._env.reset(seed=seed)[0])

    def step(self, action: Shaped[np.ndarray, "..."]) -> HostStep:
        """Take a step."""
        space: Any = self._env.action_space
        native: Any = int(action) + int(space.start) if action.ndim == 0 else self._rescaled(action, space)
        observation, reward, terminated, truncated, _ = self._env.step(native)
        self._elapsed += 1
        ended = bool(terminated)
        out_of_time = (bool(truncated) or self._elapsed >= self._length) and not ended
        return HostStep(self._element(observation), float(reward), ended, out_of_time)

    def close(self) -> None:
        """Close the environment."""
        self._env.close()

    def _element(self, observation: Any) -> Shaped[np.ndarray, "..."]:
        """An observation as an element of the task's space. Raises UserError if it is not in the space."""
        if isinstance(self._space, Discrete):
            return self._choice(observation, self._space.n)
        if self._space.is_vector:
            flat = np.asarray(observation, np.float64).reshape(-1)
            if flat.shape != self._space.shape:
                size = self._space.shape[0]
                raise self._wrong(f"{size} numbers, as its space says, got {flat.size}")
            return flat
        image = np.asarray(observation)
        if image.shape not in (self._space.shape, self._space.shape[:2]) or image.dtype != np.uint8:
            raise self._wrong(f"uint8 {self._space.shape}, as its space says, got {image.dtype} {image.shape}")
        return image.reshape(self._space.shape)

    def _choice(self, observation: Any, n: int) -> Int[np.ndarray, ""]:
        space: Any = self._env.observation_space
        number = np.asarray(observation)
        if number.size != 1 or number.dtype.kind not in "iu" or not 0 <= int(number.item()) - int(space.start) < n:
            raise self._wrong(f"an element of {space}, got {observation!r:.60}")
        return np.asarray(int(number.item()) - int(space.start), np.int32)

    def _wrong(self, due: str) -> UserError:
        return UserError(f"task '{self._name}': an observation must be {due}")

    def _rescaled(self, action: Float[np.ndarray, "A"], space: Any) -> Shaped[np.ndarray, "..."]:
        scaled = rescale(action, np.ravel(space.low), np.ravel(space.high))
        return scaled.reshape(space.shape).astype(space.dtype)


def rescale(
    action: Float[np.ndarray, "A"], low: Float[np.ndarray, "A"], high: Float[np.ndarray, "A"]
) -> Float[np.ndarray, "A"]:
    """Map [-1, 1] linearly onto [low, high], exactly at the bounds and without clipping."""
    at = np.asarray(action, np.float64)
    return 0.5 * (1 - at) * low + 0.5 * (1 + at) * high


class _Sizes:
    """Placeholder for the environment in `Task.env`: it has sizes and the bounds of the actions, and raises UserError for
    everything else."""

    def __init__(self, name: str, observation_size: int, action_size: int, actuator_range: Any) -> None:
        self._name, self.observation_size, self.action_size = name, observation_size, action_size
        self.actuator_range = actuator_range

    def reset(self, rng: Key) -> Any:
        """Raises UserError."""
        raise _outside(self._name, "reset")

    def step(self, state: Any, action: Action) -> Any:
        """Raises UserError."""
        raise _outside(self._name, "stepped")


def _world(name: str) -> World:
    def reset(key: Key) -> Carry:
        raise _outside(name, "reset")

    def start(origin: Any, key: Key) -> Carry:
        raise _outside(name, "started")

    def step(carry: Carry, action: Action, key: Key) -> tuple[Carry, Transition]:
        raise _outside(name, "stepped")

    return World(reset, start, lambda observation: observation, step)


def _outside(name: str, what: str) -> UserError:
    return UserError(
        f"task '{name}' runs on the host and cannot be {what} inside a compiled program: planning in the true simulator "
        "takes a task in JAX ('jaxmbrl list' names them)"
    )


def _bounds(space: Any) -> tuple[Float[np.ndarray, "A"], Float[np.ndarray, "A"]]:
    """(low, high) of a flattened space of actions."""
    return np.ravel(space.low).astype(np.float64), np.ravel(space.high).astype(np.float64)


def _observation(name: str, env: Any) -> Space:
    space: Any = getattr(env, "observation_space", None)
    if getattr(env, "num_envs", None) is not None:
        raise UserError(f"task '{name}': give a single environment and not a vector of them; num_envs makes more of it")
    kind = type(space).__name__
    if kind == "Discrete":
        return Discrete(int(space.n))
    if kind != "Box":
        raise UserError(
            f"task '{name}': its observations must be a Box or Discrete, got {space}; "
            "gymnasium.wrappers.FlattenObservation makes a Box"
        )
    if space.dtype == np.uint8 and len(space.shape) > 1:
        shape = tuple(map(int, space.shape))
        low, high = float(np.min(space.low)), float(np.max(space.high))
        return Box(shape if len(shape) > 2 else (*shape, 1), low, high, "uint8")
    return Box((math.prod(map(int, space.shape)),))


def _action(name: str, env: Any) -> Space:
    space: Any = getattr(env, "action_space", None)
    kind = type(space).__name__
    if kind == "Discrete":
        return Discrete(int(space.n))
    if kind != "Box":
        raise UserError(f"task '{name}': its actions must be a Box or Discrete, got {space}")
    low, high = np.asarray(space.low, np.float64), np.asarray(space.high, np.float64)
    if not np.isfinite(low).all() or not np.isfinite(high).all() or not (low < high).all():
        raise UserError(
            f"task '{name}': its actions must have finite bounds, got {space}; gymnasium.wrappers.RescaleAction sets them"
        )
    return Box((math.prod(map(int, space.shape)),), -1.0, 1.0)


@contextlib.contextmanager
def _no_log_file() -> Iterator[None]:
    """Keep MuJoCo from writing deprecation warnings about Gymnasium's model files to a log file in the working folder."""
    import mujoco

    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda message: None)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or "no message"


def float_dtype() -> np.dtype[Any]:
    """JAX's default float dtype, for arrays on the host."""
    return np.dtype(jnp.zeros(()).dtype)
