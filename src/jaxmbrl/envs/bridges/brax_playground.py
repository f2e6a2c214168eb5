"""Environments of Brax and MuJoCo Playground as tasks. They are stepped without the packages' wrappers, that is, without
automatic resets and time limits."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jaxmbrl.core.cholesky import one_by_one
from jaxmbrl.core.config import UserError, closest
from jaxmbrl.core.types import Key, Task
from jaxmbrl.envs.base import make_task
from jaxmbrl.envs.mujoco.mjx_env import import_mjx

BRAX_LENGTH = 1000
"""Steps of an episode of Brax's environments: the default of `brax.envs.create`."""
BACKENDS = ("generalized", "mjx", "positional", "spring")


def brax_task(name: str) -> Task:
    """`brax/NAME` or `brax/NAME:BACKEND`: an environment of `brax.envs`, by default with the backend that Brax chooses.

    An episode has 1,000 steps. `Task.env` is Brax's own environment.

    Raises UserError if Brax is not installed, the name or the backend is unknown, the environment cannot be made with the
    installed packages, or its observation is not a single vector.
    """
    package = _package("brax.envs", "brax")
    named, colon, backend = name.partition(":")
    # `register_environment` adds to this dictionary; there is no public list.
    known: dict[str, Any] = package._envs
    if named not in known:
        raise UserError(f"Brax has no environment '{named}'; {closest(named, known)}")
    if colon and backend not in BACKENDS:
        raise UserError(f"unknown backend '{backend}' of 'brax/{named}'; {closest(backend, BACKENDS)}")

    def make() -> Any:
        env = package.get_environment(named, **({"backend": backend} if colon else {}))
        if colon and getattr(env, "_backend", None) != backend:
            raise UserError(f"'brax/{named}' has no backends: leave out ':{backend}'")
        return env

    return _task(f"brax/{name}", "brax", make, BRAX_LENGTH)


def playground_task(name: str) -> Task:
    """`playground/NAME`: an environment of MuJoCo Playground on MJX (`impl="jax"`), with its own episode length.

    `Task.env` is Playground's own environment. The `action_repeat` in its config is meant for Playground's trainers and is
    not applied. If the simulation diverges, Playground sets `done` and returns observations that are not finite; a run
    freezes the seed then.

    Raises UserError if Playground is not installed, the name is unknown, the environment needs robot models that have not
    been downloaded, it cannot be made with the installed packages, or its observation is not a single vector.
    """
    package = _package("mujoco_playground", "playground")
    suites = (package.dm_control_suite, package.locomotion, package.manipulation)
    suite = next((suite for suite in suites if name in suite.ALL_ENVS), None)
    if suite is None:
        names = [known for suite in suites for known in suite.ALL_ENVS]
        raise UserError(f"MuJoCo Playground has no environment '{name}'; {closest(name, names)}")
    downloads = _package("mujoco_playground._src.mjx_env", "playground").MENAGERIE_PATH
    if suite is not package.dm_control_suite and not downloads.exists():
        raise UserError(
            f"'playground/{name}' needs robot models that Playground downloads: load it once by "
            f"mujoco_playground.registry.load('{name}'), where there is a network"
        )
    config = suite.get_default_config(name)
    return _task(
        f"playground/{name}",
        "playground",
        lambda: suite.load(name, config=config, config_overrides={"impl": "jax"}),
        config.episode_length,
    )


class _Sized:
    """An environment with its sizes determined once, by `jax.eval_shape`. Brax's own property runs a reset at each
    access."""

    def __init__(self, env: Any) -> None:
        self._env = env
        self.action_size: int = env.action_size
        first = jax.eval_shape(self.reset, jax.random.key(0))
        # An environment that cannot be stepped raises here, and not later in a run.
        jax.eval_shape(self.step, first, jnp.zeros(self.action_size))
        shapes = jax.tree.map(lambda x: x.shape, first.obs)
        self.observation_size: Any = shapes[0] if isinstance(shapes, tuple) and len(shapes) == 1 else shapes

    def reset(self, rng: Key) -> Any:
        with one_by_one():
            return self._env.reset(rng)

    def step(self, state: Any, action: Any) -> Any:
        with one_by_one():
            return self._env.step(state, action)


def _task(name: str, package: str, make: Callable[[], Any], length: int) -> Task:
    """The task of the environment that `make` returns. Errors of the package become a UserError of one line."""
    try:
        with _quiet():
            env = make()
            sized = _Sized(env)
    except UserError:
        raise
    except Exception as error:
        message = (str(error).strip() or "no message").splitlines()[0]
        version = importlib.metadata.version(package)
        raise UserError(
            f"'{name}' cannot be made by {package} {version} with the packages installed: {type(error).__name__}: {message}"
        ) from error
    return make_task(name, sized, length)._replace(env=env)


def _package(module: str, extra: str) -> Any:
    """Import a module without printing anything. Raises UserError if it cannot be imported."""
    import_mjx()
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"tasks {extra}/NAME need another package ({error}): pip install 'jaxmbrl[{extra}]'") from None


NOTICES = (
    "compiler attribute 'settotalmass' is deprecated",
    "Brax System, piplines and environments are not actively being maintained",
)
"""First words of warnings that a user can do nothing about. MuJoCo would also write its warnings to a file in the working
folder."""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Turn MuJoCo's warnings into Python warnings, and ignore those in `NOTICES`."""
    mujoco, _ = import_mjx()
    before, messages = mujoco.get_mju_user_warning(), list[str]()
    mujoco.set_mju_user_warning(messages.append)
    try:
        with warnings.catch_warnings():
            for notice in NOTICES:
                warnings.filterwarnings("ignore", notice)
            yield
    finally:
        mujoco.set_mju_user_warning(before)
    for text in messages:
        if not text.startswith(NOTICES):
            warnings.warn(text, stacklevel=2)
