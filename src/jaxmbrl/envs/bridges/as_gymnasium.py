"""Our tasks as Gymnasium's environments, for other people's learners and wrappers.

Gymnasium is an extra, `jaxmbrl[gym]`, and is imported when a task is converted.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, SupportsFloat, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped

from jaxmbrl.core.config import UserError
from jaxmbrl.core.spaces import Box, Discrete, Space
from jaxmbrl.core.types import Action, Carry, Key, Observation, Task, World
from jaxmbrl.envs.mujoco import rendering

if TYPE_CHECKING:
    import gymnasium
    from gymnasium.vector import VectorEnv

WIDTH, HEIGHT = 480, 480
"""Of a frame, in pixels, as Gymnasium's robots have it."""


def as_gymnasium(task: Task | str, render_mode: str | None = None) -> gymnasium.Env[Any, Any]:
    """`task`, or the one of that name, as a `gymnasium.Env` whose reset and step are compiled programs.

    Vectors of observations and actions are float32, elements of a discrete space int64, images of the task's own dtype. An
    action outside [-1, 1] reaches the task as it is. `terminated` and `truncated` are the task's own, so no `TimeLimit` is
    needed. The info of a step has the terms in `State.metrics`, numbers as floats.

    `reset(seed=s)` determines all that follows, later resets without a seed included. `render_mode` "rgb_array" draws
    frames of 480 x 480 pixels of a task that has a MuJoCo model (`rendering`).

    Environments of one and the same `Task` share what they compile. As an entry point in Gymnasium's registry:

        gymnasium.register("ours-v0", "jaxmbrl.envs:as_gymnasium", kwargs={"task": "pendulum"})

    Raises UserError where Gymnasium is missing, the mode of rendering is unknown, or an action is not of the space's shape;
    NoPicture, a UserError, where there is nothing to draw or no renderer; Gymnasium's ResetNeeded before the first reset.
    """
    gym, made = _import(), _task(task)
    base: Any = gym.Env
    drawn = _scene(made, render_mode)

    class TaskEnv(base):
        """A task as Gymnasium's environment."""

        def __init__(self) -> None:
            frames = {} if drawn is None else {"render_fps": max(1, round(1 / drawn.dt))}
            self.metadata = {"render_modes": ["rgb_array"] if frames else [], **frames}
            self.render_mode = render_mode
            self.observation_space = _space(gym, made.observation)
            self.action_space = _space(gym, made.action)
            self._key: Key | None = None
            self._carry: Carry = None
            self._drawer: rendering.Drawer | None = None

        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
            super().reset(seed=seed)
            if seed is not None or self._key is None:
                self._key = _keys([self.np_random])[0]
            self._key, self._carry, observation = _reset(made.world, self._key)
            return _element(made.observation, observation), {}

        def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
            if self._key is None:
                raise gym.error.ResetNeeded("reset the environment before its first step")
            given = _actions(made, action, made.action.shape)
            self._key, self._carry, result = _step(made.world, self._key, self._carry, given)
            observation, reward, terminated, truncated, terms = result
            info = {name: _number(value) for name, value in terms.items()}
            return _element(made.observation, observation), float(reward), bool(terminated), bool(truncated), info

        def render(self) -> Any:
            if render_mode is None:
                return None
            if self._key is None:
                raise gym.error.ResetNeeded("reset the environment before it is drawn")
            if self._drawer is None:
                assert drawn is not None
                self._drawer = rendering.Drawer(drawn.model, WIDTH, HEIGHT)
            return self._drawer.frame(np.asarray(rendering.positions(self._carry)))

        def close(self) -> None:
            if self._drawer is not None:
                self._drawer.close()
                self._drawer = None

    return TaskEnv()


def as_gymnasium_vector(task: Task | str, num_envs: int) -> VectorEnv[Any, Any, Any]:
    """`num_envs` environments of `task`, or of the one of that name, as a `gymnasium.vector.VectorEnv`, whose step is one
    compiled program for all.

    Each is what `as_gymnasium` would be, number i with seed s + i after `reset(seed=s)`, or with those of a list. An
    environment that has ended is reset by the next step, which does not look at its action and rewards it with 0
    (`AutoresetMode.NEXT_STEP`): the observation that ends an episode is the true successor. Infos are arrays, each beside
    a mask of the environments that it holds for. Nothing is drawn.

        gymnasium.register("ours-v0", vector_entry_point="jaxmbrl.envs:as_gymnasium_vector", kwargs={"task": "pendulum"})

    Raises UserError where Gymnasium is missing, `num_envs` is not positive, seeds, options or actions do not fit;
    Gymnasium's ResetNeeded before the first reset.
    """
    gym, made = _import(), _task(task)
    if num_envs < 1:
        raise UserError(f"num_envs must be at least 1, got {num_envs}")
    base: Any = gym.vector.VectorEnv

    class TaskVectorEnv(base):
        """A task as Gymnasium's vector of environments."""

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

        def reset(
            self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
        ) -> tuple[Any, dict[str, Any]]:
            if options and "reset_mask" in options:
                raise UserError("reset_mask is for vectors that do not reset by themselves: leave it out")
            super().reset(seed=seed if isinstance(seed, int) else None)
            self._seed(seed)
            assert self._keys is not None
            self._keys, self._carries, observations = _reset_all(made.world, self._keys)
            self._ended = np.zeros(num_envs, bool)
            return _element(made.observation, observations), {}

        def _seed(self, seed: int | Sequence[int | None] | None) -> None:
            if seed is None and self._keys is not None:
                return
            seeds = [seed + i for i in range(num_envs)] if isinstance(seed, int) else seed or [None] * num_envs
            if len(seeds) != num_envs:
                raise UserError(f"seed must be one number or {num_envs}, one an environment, got {len(seeds)}")
            drawn = _keys([self.np_random if s is None else gym.utils.seeding.np_random(s)[0] for s in seeds])
            kept = np.array([s is None for s in seeds])
            self._keys = drawn if self._keys is None else jnp.where(kept, self._keys, drawn)

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

    return envs.make(task) if isinstance(task, str) else task


def _scene(task: Task, render_mode: str | None) -> rendering.Scene | None:
    """What can be drawn, or None. Raises NoPicture where a picture is asked for and there is nothing to draw."""
    if render_mode not in (None, "rgb_array"):
        raise UserError(f"render_mode must be 'rgb_array' or None, got '{render_mode}'")
    try:
        return rendering.scene(task)
    except rendering.NoPicture:
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
    """The dtype on Gymnasium's side: float32 for floats, the space's own for integers."""
    dtype = np.dtype(spec.zeros().dtype)
    return np.dtype(np.float32) if dtype.kind == "f" else dtype


def _keys(generators: Sequence[np.random.Generator]) -> Key:
    """A key of each generator's next draw."""
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
    return actions


def _element(spec: Space, observation: Observation) -> Any:
    """A copy for the caller, in the space's dtype."""
    if isinstance(spec, Discrete):
        return np.int64(observation) if np.ndim(observation) == 0 else np.array(observation, np.int64)
    return np.array(observation, _dtype(spec))


def _number(value: Any) -> Any:
    return float(value) if np.ndim(value) == 0 else np.array(value)


def _numbers(value: Any) -> Any:
    return np.array(value, np.float64 if np.ndim(value) == 1 else None)


def _terms(carry: Carry) -> dict[str, Any]:
    """The metrics of the environment's state; none for a World that was not made by `make_task`."""
    state = carry[0] if isinstance(carry, tuple) and carry else None
    return dict(getattr(state, "metrics", None) or {})


StepResult: TypeAlias = tuple[Observation, Float[Array, "*n"], Bool[Array, "*n"], Bool[Array, "*n"], dict[str, Any]]
"""Next observation, reward, terminated, truncated and terms of a step."""


@functools.partial(jax.jit, static_argnums=0)
def _reset(world: World, key: Key) -> tuple[Key, Carry, Observation]:
    key, reset_key = jax.random.split(key)
    carry = world.reset(reset_key)
    return key, carry, world.observe(carry)


@functools.partial(jax.jit, static_argnums=0)
def _step(world: World, key: Key, carry: Carry, action: Action) -> tuple[Key, Carry, StepResult]:
    key, step_key = jax.random.split(key)
    carry, row = world.step(carry, action, step_key)
    return key, carry, (row.next_observation, row.reward, row.terminated, row.truncated, _terms(carry))


@functools.partial(jax.jit, static_argnums=0)
def _reset_all(world: World, keys: Key) -> tuple[Key, Carry, Observation]:
    return jax.vmap(functools.partial(_reset, world))(keys)


@functools.partial(jax.jit, static_argnums=0)
def _step_all(
    world: World, keys: Key, carries: Carry, actions: Action, ended: Bool[Array, "n"]
) -> tuple[Key, Carry, StepResult]:
    def one(key: Key, carry: Carry, action: Action, ended: Bool[Array, ""]) -> tuple[Key, Carry, StepResult]:
        next_key, successor, result = _step(world, key, carry, action)
        reset_key, fresh, observation = _reset(world, key)
        nothing = (observation, *jax.tree.map(jnp.zeros_like, result[1:]))
        return jax.tree.map(functools.partial(jnp.where, ended), (reset_key, fresh, nothing), (next_key, successor, result))

    return jax.vmap(one)(keys, carries, actions, ended)
