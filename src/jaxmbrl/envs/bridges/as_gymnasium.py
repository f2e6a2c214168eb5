"""Our tasks as Gymnasium environments, for learners and wrappers of other packages.

Gymnasium is an optional dependency, `jaxmbrl[gym]`, and is imported when a task is converted.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, SupportsFloat, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped

from jaxmbrl.core import tree
from jaxmbrl.core.config import UserError
from jaxmbrl.core.spaces import Box, Discrete, Space
from jaxmbrl.core.types import Action, Carry, Key, Observation, Task, World
from jaxmbrl.envs.drawing import Drawer, Drawing, NoPicture, drawing, on_host
from jaxmbrl.envs.shapes import of_spaces

if TYPE_CHECKING:
    import gymnasium
    from gymnasium.vector import VectorEnv

WIDTH, HEIGHT = 480, 480
"""Size of a rendered frame in pixels, as in Gymnasium's MuJoCo environments."""


def as_gymnasium(task: Task | str, render_mode: str | None = None) -> gymnasium.Env[Any, Any]:
    """Convert `task`, or the task of that name, to a `gymnasium.Env` with compiled reset and step functions.

    Vectors of observations and actions are float32, elements of a discrete space int64; images have the task's own dtype.
    Actions outside [-1, 1] are passed on unchanged. `terminated` and `truncated` are those of the task, so no `TimeLimit`
    wrapper is needed. The info of a step contains `State.metrics`, with numbers as floats.

    `reset(seed=s)` determines everything that follows, including later resets without a seed. With `render_mode`
    "rgb_array", `render` returns pictures of tasks that can be drawn (`envs.drawing`). Those of MuJoCo have 480 x 480
    pixels.

    Environments of the same `Task` object share compiled programs. As an entry point in Gymnasium's registry:

        gymnasium.register("ours-v0", "jaxmbrl.envs:as_gymnasium", kwargs={"task": "pendulum"})

    Raises UserError if Gymnasium is not installed, the render mode is unknown, a space is not valid, or an action has the
    wrong shape or is not one of the choices; NoPicture, a UserError, if there is nothing to draw or no renderer;
    Gymnasium's ResetNeeded before the first reset.
    """
    gym, made = _import(), _task(task)
    base: Any = gym.Env
    drawn = _drawing(made, render_mode)

    class TaskEnv(base):
        """A task as a Gymnasium environment."""

        def __init__(self) -> None:
            frames = {} if drawn is None else {"render_fps": max(1, round(1 / drawn.dt))}
            self.metadata = {"render_modes": ["rgb_array"] if frames else [], **frames}
            self.render_mode = render_mode
            self.observation_space = _space(gym, made.observation)
            self.action_space = _space(gym, made.action)
            self._key: Key | None = None
            self._carry: Carry = None
            self._action: Shaped[np.ndarray, "..."] | None = None
            self._drawer: Drawer | None = None

        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
            super().reset(seed=seed)
            if seed is not None or self._key is None:
                self._key = _keys([self.np_random])[0]
            carry = None if seed is not None else self._carry
            self._key, self._carry, observation = _reset(made.world, self._key, carry)
            self._action = None
            return _element(made.observation, observation), {}

        def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
            if self._key is None:
                raise gym.error.ResetNeeded("reset the environment before its first step")
            given = _actions(made, action, made.action.shape)
            self._action = given
            self._key, self._carry, result = _step(made.world, self._key, self._carry, given)
            observation, reward, terminated, truncated, terms = result
            info = {name: _number(value) for name, value in terms.items()}
            return _element(made.observation, observation), float(reward), bool(terminated), bool(truncated), info

        def render(self) -> Any:
            if render_mode is None:
                return None
            if self._key is None:
                raise gym.error.ResetNeeded("reset the environment before it is drawn")
            assert drawn is not None
            if self._drawer is None:
                self._drawer = drawn.drawer(WIDTH, HEIGHT)
            return self._drawer.frame(on_host(drawn.shown(self._carry)), self._action)

        def close(self) -> None:
            if self._drawer is not None:
                self._drawer.close()
                self._drawer = None

    return TaskEnv()


def as_gymnasium_vector(task: Task | str, num_envs: int) -> VectorEnv[Any, Any, Any]:
    """Convert `task`, or the task of that name, to a `gymnasium.vector.VectorEnv` of `num_envs` environments. One compiled
    program steps all of them.

    Each behaves like an environment of `as_gymnasium`. After `reset(seed=s)`, environment i has seed s + i; a list gives
    the seeds one by one, None for an environment that goes on with its own. An environment that has ended is reset by the
    next step, which ignores its action and gives it a reward of 0 (`AutoresetMode.NEXT_STEP`). So the last observation of
    an episode is the true next observation. Infos are arrays, each with a mask of the environments for which it is valid.
    Rendering is not supported.

        gymnasium.register("ours-v0", vector_entry_point="jaxmbrl.envs:as_gymnasium_vector", kwargs={"task": "pendulum"})

    Raises UserError if Gymnasium is not installed, `num_envs` is not positive, or seeds, options or actions are not valid;
    Gymnasium's ResetNeeded before the first reset.
    """
    gym, made = _import(), _task(task)
    if num_envs < 1:
        raise UserError(f"num_envs must be at least 1, got {num_envs}")
    base: Any = gym.vector.VectorEnv

    class TaskVectorEnv(base):
        """A task as a Gymnasium vector environment."""

        def __init__(self) -> None:
            self.num_envs = num_envs
            self.metadata = {"autoreset_mode": gym.vector.AutoresetMode.NEXT_STEP, "render_modes": []}
            self.single_observation_space = _space(gym, made.observation)
            self.single_action_space = _space(gym, made.action)
            batched = gym.vector.utils.batch_space
            self.observation_space = batched(self.single_observation_space, num_envs)
            self.action_space = batched(self.single_action_space, num_envs)
            self._keys: Key | None = None
            self._carries: Carry = None
            self._ended = np.zeros(num_envs, bool)

        def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
            if options and "reset_mask" in options:
                raise UserError("reset_mask is for vectors that do not reset by themselves: leave it out")
            seeds = _seeds(seed, num_envs)
            super().reset(seed=seeds[0] if np.ndim(seed) == 0 else None)  # type: ignore[arg-type]
            goes_on = np.array([s is None for s in seeds]) & (self._keys is not None)
            if not goes_on.all():
                drawn = _keys([self.np_random if s is None else gym.utils.seeding.np_random(s)[0] for s in seeds])
                self._keys = drawn if self._keys is None else jnp.where(goes_on, self._keys, drawn)
            before = self._carries if goes_on.any() else None
            assert self._keys is not None
            self._keys, self._carries, observations = _reset_all(made.world, self._keys, before, goes_on)
            self._ended = np.zeros(num_envs, bool)
            return _element(made.observation, observations), {}

        def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
            if self._keys is None:
                raise gym.error.ResetNeeded("reset the environments before their first step")
            given = _actions(made, actions, (num_envs, *made.action.shape))
            before = self._ended
            self._keys, self._carries, result = _step_all(made.world, self._keys, self._carries, given, before)
            observations, rewards, terminated, truncated, terms = result
            ended, cut = np.array(terminated), np.array(truncated)
            self._ended = ended | cut
            infos: dict[str, Any] = {}
            if not before.all():
                for name, value in terms.items():
                    infos[name], infos[f"_{name}"] = _numbers(value), ~before
            return _element(made.observation, observations), np.array(rewards, np.float64), ended, cut, infos

    return TaskVectorEnv()


def _import() -> ModuleType:
    try:
        import gymnasium
    except ImportError:
        raise UserError("Gymnasium is missing: pip install 'jaxmbrl[gym]'") from None
    return gymnasium


def _task(task: Task | str) -> Task:
    from jaxmbrl import envs

    made = envs.make(task) if isinstance(task, str) else task
    if made.host is not None:
        raise UserError(f"task '{made.name}' runs on the host already: make its environment with gymnasium.make")
    problems = of_spaces(made)
    if problems:
        raise UserError(f"task '{made.name}': {'; '.join(problems)}")
    return made


def _seeds(seed: Any, count: int) -> list[int | None]:
    """The seed of each of `count` environments; None for one that has none. Raises UserError if `seed` is not valid."""
    try:
        if seed is None:
            return [None] * count
        if np.ndim(seed) == 0:
            return [operator.index(seed) + i for i in range(count)]
        seeds = [None if one is None else operator.index(one) for one in seed]
    except TypeError:
        raise UserError(f"seed must be a whole number or one for each environment, got {seed!r:.60}") from None
    if len(seeds) != count:
        raise UserError(f"seed must be one number or {count}, one an environment, got {len(seeds)}")
    return seeds


def _drawing(task: Task, render_mode: str | None) -> Drawing | None:
    """How the task is drawn; None without a render mode if it cannot be. With one this raises NoPicture."""
    if render_mode not in (None, "rgb_array"):
        raise UserError(f"render_mode must be 'rgb_array' or None, got '{render_mode}'")
    try:
        return drawing(task)
    except NoPicture:
        if render_mode is None:
            return None
        raise


def _space(gym: ModuleType, spec: Space) -> Any:
    if isinstance(spec, Discrete):
        return gym.spaces.Discrete(spec.n)
    dtype = _dtype(spec)
    low, high = (dtype.type(bound) for bound in (spec.low, spec.high))
    return gym.spaces.Box(low, high, spec.shape, dtype.type)


def _dtype(spec: Box) -> np.dtype[Any]:
    """The dtype in Gymnasium: float32 for floats, the space's own dtype for integers."""
    dtype = np.dtype(spec.zeros().dtype)
    return np.dtype(np.float32) if dtype.kind == "f" else dtype


def _keys(generators: Sequence[np.random.Generator]) -> Key:
    """A random key from the next draw of each generator."""
    words = np.stack([generator.integers(2**32, size=2, dtype=np.uint32) for generator in generators])
    return jax.vmap(lambda pair: jax.random.fold_in(jax.random.key(pair[0]), pair[1]))(words)


def _actions(task: Task, given: Any, shape: tuple[int, ...]) -> Shaped[np.ndarray, "*n"]:
    dtype = np.dtype(task.action.zeros().dtype)
    try:
        actions = np.asarray(given, dtype)
    except (TypeError, ValueError):
        raise UserError(f"actions must be numbers of shape {shape}, got {given!r:.60}") from None
    if dtype.kind != "f" and not np.array_equal(actions, given):
        raise UserError(f"actions must be whole numbers, got {given!r:.60}")
    if actions.shape != shape:
        raise UserError(f"actions must be of shape {shape}, got {actions.shape}")
    if isinstance(task.action, Discrete) and not ((actions >= 0) & (actions < task.action.n)).all():
        raise UserError(f"actions must be in Discrete({task.action.n}), got {given!r:.60}")
    return actions


def _element(spec: Space, observation: Observation) -> Any:
    """A copy of the observation for the caller, in the dtype of the space."""
    if isinstance(spec, Discrete):
        return np.int64(observation) if np.ndim(observation) == 0 else np.array(observation, np.int64)
    return np.array(observation, _dtype(spec))


def _number(value: Any) -> Any:
    return float(value) if np.ndim(value) == 0 else np.array(value)


def _numbers(value: Any) -> Any:
    return np.array(value, np.float64 if np.ndim(value) == 1 else None)


def _terms(carry: Carry) -> dict[str, Any]:
    """The metrics in the environment's state; empty for a World that was not made by `make_task`."""
    state = carry[0] if isinstance(carry, tuple) and carry else None
    return dict(getattr(state, "metrics", None) or {})


StepResult: TypeAlias = tuple[Observation, Float[Array, "*n"], Bool[Array, "*n"], Bool[Array, "*n"], dict[str, Any]]
"""Next observation, reward, terminated, truncated and metrics of a step."""


@functools.partial(jax.jit, static_argnums=0)
def _reset(world: World, key: Key, before: Carry = None) -> tuple[Key, Carry, Observation]:
    """The start of an episode, after one that ended in `before` if it is not None."""
    key, reset_key = jax.random.split(key)
    if before is None or world.next_episode is None:
        carry = world.reset(reset_key)
    else:
        carry = world.next_episode(before, reset_key)
    return key, carry, world.observe(carry)


@functools.partial(jax.jit, static_argnums=0)
def _step(world: World, key: Key, carry: Carry, action: Action) -> tuple[Key, Carry, StepResult]:
    key, step_key = jax.random.split(key)
    carry, row = world.step(carry, action, step_key)
    return key, carry, (row.next_observation, row.reward, row.terminated, row.truncated, _terms(carry))


@functools.partial(jax.jit, static_argnums=0)
def _reset_all(world: World, keys: Key, before: Carry, goes_on: Bool[Array, "n"]) -> tuple[Key, Carry, Observation]:
    """As `_reset`; environments that do not go on begin anew."""
    fresh = jax.vmap(functools.partial(_reset, world))(keys)
    if before is None:
        return fresh
    following = jax.vmap(functools.partial(_reset, world))(keys, before)
    return jax.vmap(tree.where)(goes_on, following, fresh)


@functools.partial(jax.jit, static_argnums=0)
def _step_all(
    world: World, keys: Key, carries: Carry, actions: Action, ended: Bool[Array, "n"]
) -> tuple[Key, Carry, StepResult]:
    def one(key: Key, carry: Carry, action: Action, ended: Bool[Array, ""]) -> tuple[Key, Carry, StepResult]:
        next_key, successor, result = _step(world, key, carry, action)
        reset_key, fresh, observation = _reset(world, key, carry)
        nothing = (observation, *jax.tree.map(jnp.zeros_like, result[1:]))
        return tree.where(ended, (reset_key, fresh, nothing), (next_key, successor, result))

    return jax.vmap(one)(keys, carries, actions, ended)
