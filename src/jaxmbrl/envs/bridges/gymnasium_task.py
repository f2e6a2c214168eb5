"""Gymnasium environments as tasks; a user's own simulator or robot can use the same interface.

They run on the host: a compiled program cannot step them, so each step passes data from the device to Python and back.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import numbers
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, SupportsIndex

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8

from jaxmbrl.core import hints
from jaxmbrl.core.config import UserError
from jaxmbrl.core.spaces import Discrete
from jaxmbrl.core.types import Action, Carry, HostStep, Key, Task, Transition, World
from jaxmbrl.envs.base import check_episode_length
from jaxmbrl.envs.bridges.gymnasium_spaces import action_space, native, observation_space
from jaxmbrl.envs.drawing.interface import NoPicture
from jaxmbrl.envs.drawing.own import checked
from jaxmbrl.envs.drawing.rendering import ModelDrawer
from jaxmbrl.envs.mujoco.mjx_env import import_mujoco
from jaxmbrl.envs.signatures import calling, check_callable, takes

if TYPE_CHECKING:
    import gymnasium

DEFAULT_LENGTH = 1000
"""Steps of an episode if neither the caller nor the environment's spec gives a limit."""
WIDTH, HEIGHT = 320, 240
"""Size of a rendered frame of a MuJoCo environment, in pixels."""


@hints.checked_arguments
def from_gymnasium(make_env: Callable[..., gymnasium.Env], name: str, episode_length: SupportsIndex | None = None) -> Task:
    """Make a task from Gymnasium environments. `make_env()` must return a new environment at each call.

    The observation space must be a `Box` or `Discrete`. A `Box` of uint8 with two or more axes is an image and stays
    unchanged, except that [H, W] becomes [H, W, 1]; any other `Box` is flattened to floats [O]. The action space must be
    `Discrete`, or a `Box` with finite bounds, which is flattened and mapped from [-1, 1] onto the bounds: real numbers
    linearly, and of n integers, or of false and true, each from an equal share of [-1, 1]. Components with low = high are
    constant. Elements of discrete spaces are numbered from 0, whatever the `start` of the space.

    A step is terminated if the environment reports `terminated`. It is truncated if the environment reports only
    `truncated`, or after `episode_length` steps. The default of `episode_length` is the shortest of the limits of the
    environment's spec and of its `TimeLimit` wrappers, or else 1,000 steps, because an evaluation must end. Each reset is
    given a seed.

    This function makes one environment to read its spaces, and closes it. Training makes `num_envs` environments for each
    seed; each evaluation makes its own, at most 64 at a time.

    A video is made by `env.render()` of one more environment: of `make_env(render_mode="rgb_array")` if `make_env` has this
    argument, else of `make_env()` if the environment's `render_mode` is "rgb_array". Its speed is `metadata["render_fps"]`.
    Of an environment of C MuJoCo, the model is rendered as for the tasks of this package.

    Raises UserError if `make_env` is not a function, fails or does not return an environment, if `reset` does not take a
    seed or `step` an action, or if a space is not supported (`gymnasium_spaces`).
    """
    if not callable(make_env):
        kind = f"the name {make_env!r:.60}" if isinstance(make_env, str) else f"an object of type {type(make_env).__name__}"
        known = make_env if isinstance(make_env, str) else getattr(getattr(make_env, "spec", make_env), "id", "ID")
        raise UserError(
            f"task '{name}': from_gymnasium takes a function that makes an environment at each call, got {kind}: write "
            f"from_gymnasium(lambda: gymnasium.make('{known}'), '{name}')"
        )
    with calling(name, "making the environment"):
        env = make_env()
    try:
        observation, action = observation_space(name, env), action_space(name, env)
        draws = _takes_render_mode(make_env) or _draws(env)
        _check_methods(name, env)
        length = (_limit(env) or DEFAULT_LENGTH) if episode_length is None else episode_length
        linear = not isinstance(action, Discrete) and np.issubdtype(env.action_space.dtype, np.floating)
        bounds = _bounds(env.action_space) if linear else None
    finally:
        with calling(name, "close"):
            getattr(env, "close", lambda: None)()
    check_episode_length(name, length)
    steps = int(length)
    return Task(
        name=name,
        env=_Sizes(name, math.prod(observation.shape), math.prod(action.shape), bounds),
        world=_world(name),
        observation=observation,
        action=action,
        episode_length=steps,
        host=lambda: GymnasiumEnv(name, make_env(), steps),
        # The environments of a robot are not made for pictures that they do not have.
        filmed=(lambda: FilmedEnv(name, _drawn(name, make_env), steps)) if draws else None,
    )


def _limit(env: Any) -> int | None:
    """The time limit of an environment: the shortest of that in its spec and of those of its `TimeLimit` wrappers."""
    found, at = [getattr(getattr(env, "spec", None), "max_episode_steps", None)], env
    while at is not None:
        # The attribute of gymnasium.wrappers.TimeLimit; other wrappers would pass on that of an environment inside.
        found.append(vars(at).get("_max_episode_steps") if hasattr(at, "__dict__") else None)
        at = vars(at).get("env") if hasattr(at, "__dict__") else None
    return min((int(limit) for limit in found if isinstance(limit, int | np.integer) and limit > 0), default=None)


RETURNED = {"reset": ("observation", "info"), "step": ("observation", "reward", "terminated", "truncated", "info")}
"""Method of an environment in Gymnasium's interface -> what it returns."""


def _check_methods(name: str, env: Any) -> None:
    """Raise UserError if `env` has no reset that takes a seed, or no step that takes an action. Neither is called: a robot
    would move."""
    for method, form, arguments, named in (
        ("reset", "reset(seed=...)", (), {"seed": 0}),
        ("step", "step(action)", (0,), {}),
    ):
        otherwise = "; one with Brax's interface becomes a task with envs.make_task"
        if method == "reset" and takes(getattr(env, method, None), ()):
            otherwise = ": give it the arguments *, seed=None, options=None, as Gymnasium has since version 0.26"
        check_callable(name, env, method, form, arguments, named, otherwise)


def registered(name: str) -> Task:
    """The task `gymnasium/NAME`, from `gymnasium.make(NAME)`. Raises UserError if there is no such environment, or
    Gymnasium is not installed."""

    def make_env(render_mode: str | None = None) -> gymnasium.Env:
        return make_registered(name, **({} if render_mode is None else {"render_mode": render_mode}))

    return from_gymnasium(make_env, f"gymnasium/{name}")


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


class GymnasiumEnv:
    """A Gymnasium environment as a `HostEnv`."""

    def __init__(self, name: str, env: gymnasium.Env, episode_length: int) -> None:
        self._name, self._env, self._length = name, env, episode_length
        self._elapsed = 0
        self._space = observation_space(name, env)
        self._in_use = _Use(name, env)

    def reset(self, seed: int) -> Shaped[np.ndarray, "..."]:
        """Start an episode; returns its first observation. Raises UserError if it is not in the task's space, or if the
        environment does not return (observation, info)."""
        self._elapsed = 0
        return self._element(self._returned("reset", self._env.reset(seed=seed))[0])

    def step(self, action: Shaped[np.ndarray, "..."]) -> HostStep:
        """Take a step. Raises UserError if the observation is not in the task's space, or if the environment does not
        return (observation, reward, terminated, truncated, info)."""
        space: Any = self._env.action_space
        given: Any = int(action) + int(space.start) if action.ndim == 0 else native(action, space)
        observation, reward, terminated, truncated, _ = self._returned("step", self._env.step(given))
        number = np.asarray(reward)
        if number.size != 1 or number.dtype.kind not in "fiub":
            raise UserError(f"task '{self._name}': step must return a number as reward, got {_text(reward)}")
        self._elapsed += 1
        ended, cut = self._flag("terminated", terminated), self._flag("truncated", truncated)
        out_of_time = (cut or self._elapsed >= self._length) and not ended
        return HostStep(self._element(observation), float(number.item()), ended, out_of_time)

    def close(self) -> None:
        """Close the environment."""
        self._in_use.end()
        getattr(self._env, "close", lambda: None)()

    def _returned(self, method: str, values: Any) -> tuple[Any, ...]:
        """What a method returned. Raises UserError if it is not a tuple of the right length."""
        due = RETURNED[method]
        if not isinstance(values, tuple) or len(values) != len(due):
            got = f"{len(values)} values" if isinstance(values, tuple) else type(values).__name__
            if method == "step" and isinstance(values, tuple) and len(values) == 4:
                got += ", as Gym before version 0.26 does: split done into terminated and truncated"
            raise UserError(f"task '{self._name}': {method} must return ({', '.join(due)}), got {got}")
        if not isinstance(values[-1], Mapping | None):
            raise UserError(
                f"task '{self._name}': {method} must return ({', '.join(due)}) with a dict as info, got {_text(values[-1])}"
            )
        return values

    def _flag(self, name: str, value: Any) -> bool:
        """`terminated` or `truncated` as a bool. Raises UserError if it is not true or false."""
        flag = np.asarray(value)
        if flag.size != 1 or flag.dtype.kind not in "biuf" or flag.item() not in (0, 1):
            raise UserError(f"task '{self._name}': step must return {name} as True or False, got {_text(value)}")
        return bool(flag.item())

    def _element(self, observation: Any) -> Shaped[np.ndarray, "..."]:
        """An observation as an element of the task's space. Raises UserError if it is not in the space."""
        if isinstance(self._space, Discrete):
            return self._choice(observation, self._space.n)
        if self._space.is_vector:
            try:
                flat = np.asarray(observation, np.float64).reshape(-1)
            except (TypeError, ValueError):
                raise self._wrong(f"{self._space.shape[0]} numbers, as its space says, got {_text(observation)}") from None
            if observation is None or flat.shape != self._space.shape:
                got = None if observation is None else flat.size
                raise self._wrong(f"{self._space.shape[0]} numbers, as its space says, got {got}")
            return flat
        image = np.asarray(observation)
        if image.shape not in (self._space.shape, self._space.shape[:2]) or image.dtype != np.uint8:
            raise self._wrong(f"uint8 {self._space.shape}, as its space says, got {image.dtype} {image.shape}")
        return image.reshape(self._space.shape)

    def _choice(self, observation: Any, n: int) -> Int[np.ndarray, ""]:
        space: Any = self._env.observation_space
        number = np.asarray(observation)
        if number.size != 1 or number.dtype.kind not in "iu" or not 0 <= int(number.item()) - int(space.start) < n:
            raise self._wrong(f"an element of {space}, got {_text(observation)}")
        return np.asarray(int(number.item()) - int(space.start), np.int32)

    def _wrong(self, due: str) -> UserError:
        return UserError(f"task '{self._name}': an observation must be {due}")


class _Use:
    """The use of a Gymnasium environment by one `HostEnv` at a time."""

    OPEN: ClassVar[weakref.WeakValueDictionary[int, _Use]] = weakref.WeakValueDictionary()
    """Innermost environment, by its id -> its use."""

    def __init__(self, name: str, env: Any) -> None:
        """Raises UserError if the environment is in use."""
        self.env = getattr(env, "unwrapped", env)
        if id(self.env) in self.OPEN:
            raise UserError(
                f"task '{name}': the function that makes the environment returned one that is in use, and training needs "
                "several at a time: make a new one at each call (a robot takes seeds=1, num_envs=1, eval_every=0)"
            )
        self.OPEN[id(self.env)] = self

    def end(self) -> None:
        """Allow other uses."""
        if self.OPEN.get(id(self.env)) is self:
            del self.OPEN[id(self.env)]


class FilmedEnv(GymnasiumEnv):
    """A Gymnasium environment that makes pictures, as a `HostEnv`."""

    def __init__(self, name: str, env: gymnasium.Env, episode_length: int) -> None:
        super().__init__(name, env, episode_length)
        self._shape: tuple[int, ...] | None = None
        frequency: Any = (getattr(env, "metadata", None) or {}).get("render_fps")
        known = isinstance(frequency, numbers.Real) and float(frequency) > 0
        self.dt: float | None = 1 / float(frequency) if known else None
        """Seconds of a step, if the environment gives them."""
        self._drawer: ModelDrawer | None = None

    def render(self) -> UInt8[np.ndarray, "H W 3"]:
        """The picture of the environment: by its own `render`, or of its MuJoCo model. Raises NoPicture if it fails."""
        if _has_model(self._env):
            # Gymnasium renders in this process, which a broken graphics library may end.
            inner: Any = self._env.unwrapped
            if self._drawer is None:
                self._drawer = ModelDrawer(inner.model, WIDTH, HEIGHT)
            return self._drawer.frame(inner.data.qpos)
        try:
            picture: Any = self._env.render()
        except Exception as error:
            raise NoPicture(f"no picture of {self._name}: {_one_line(error)}") from error
        picture, self._shape = checked(self._name, "render", picture, self._shape)
        return picture

    def close(self) -> None:
        """Close the environment."""
        if self._drawer is not None:
            self._drawer.close()
            self._drawer = None
        super().close()


def _has_model(env: Any) -> bool:
    """Whether the environment is one of C MuJoCo, with a model and data."""
    mujoco, inner = sys.modules.get("mujoco"), getattr(env, "unwrapped", env)
    if mujoco is None:
        return False
    kinds = {"model": mujoco.MjModel, "data": mujoco.MjData}
    return all(isinstance(getattr(inner, name, None), kind) for name, kind in kinds.items())


def _takes_render_mode(make_env: Callable[..., gymnasium.Env]) -> bool:
    try:
        takes = inspect.signature(make_env).parameters
    except (TypeError, ValueError):
        return False
    return "render_mode" in takes or any(kind.kind is kind.VAR_KEYWORD for kind in takes.values())


def _draws(env: Any) -> bool:
    """Whether the environment makes pictures, or can be rendered by its model."""
    return getattr(env, "render_mode", None) == "rgb_array" or _has_model(env)


def _drawn(name: str, make_env: Callable[..., gymnasium.Env]) -> gymnasium.Env:
    """An environment that makes pictures. Raises NoPicture if there is none."""
    try:
        env = make_env(render_mode="rgb_array") if _takes_render_mode(make_env) else make_env()
    except Exception as error:
        raise NoPicture(f"no picture of {name}: {_one_line(error)}") from error
    if not _draws(env):
        env.close()
        raise NoPicture(f"no picture of {name}: its environment does not take on the render_mode 'rgb_array'")
    return env


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


@contextlib.contextmanager
def _no_log_file() -> Iterator[None]:
    """Keep MuJoCo from writing deprecation warnings about Gymnasium's model files to a log file in the working folder."""
    mujoco = import_mujoco()
    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda message: None)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)


def _text(value: Any) -> str:
    """What a method returned, in one line of at most 60 letters; of a dict its keys."""
    if isinstance(value, Mapping):
        keys = f"the keys {', '.join(map(str, value))}" if value else "no keys"
        return f"a {type(value).__name__} with {keys}"[:60]
    return " ".join(repr(value).split())[:60]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or "no message"


def float_dtype() -> np.dtype[Any]:
    """JAX's default float dtype, for arrays on the host."""
    return np.dtype(jnp.zeros(()).dtype)
