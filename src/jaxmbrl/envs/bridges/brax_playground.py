"""Brax's environments and MuJoCo Playground's as tasks, stepped without the packages' wrappers: no reset, no time limit."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jaxmbrl.core.config import UserError, closest
from jaxmbrl.core.types import Key, Task
from jaxmbrl.envs.base import make_task
from jaxmbrl.envs.mujoco.cholesky import one_by_one
from jaxmbrl.envs.mujoco.mjx_env import import_mjx

BRAX_LENGTH = 1000
"""Steps of an episode of Brax's environments, as `brax.envs.create` has them by default."""
BACKENDS = ("generalized", "mjx", "positional", "spring")


def brax_task(name: str) -> Task:
    """`brax/NAME` or `brax/NAME:BACKEND`: an environment of `brax.envs`, by default with its own backend.

    An episode has 1,000 steps. `Task.env` is Brax's own environment.

    Raises UserError where Brax is missing, the name or the backend is unknown, the environment cannot be made with the
    packages installed, or it does not observe one vector.
    """
    package = _package("brax.envs", "brax")
    named, colon, backend = name.partition(":")
    # What `register_environment` adds to; there is no public list.
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

    `Task.env` is Playground's own environment. The `action_repeat` of its config is for Playground's trainers and not
    applied. A simulation that diverges is done for Playground, and then observes what is not finite: a run freezes there.

    Raises UserError where Playground is missing, the name is unknown, the environment needs robot models that are not
    downloaded yet, cannot be made with the packages installed, or does not observe one vector.
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
    """An environment whose sizes are read without simulating: Brax's own property resets, not compiled, at each access."""

    def __init__(self, env: Any) -> None:
        self._env = env
        self.action_size: int = env.action_size
        first = jax.eval_shape(self.reset, jax.random.key(0))
        # An environment that cannot be stepped raises here and not in a run.
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
    """The task of the environment that `make` makes; what the package raises becomes a UserError of one line."""
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
    """The module, whose import prints nothing. Raises UserError where it cannot be imported."""
    import_mjx()
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"tasks {extra}/NAME need a package more ({error}): pip install 'jaxmbrl[{extra}]'") from None


NOTICES = (
    "compiler attribute 'settotalmass' is deprecated",
    "Brax System, piplines and environments are not actively being maintained",
)
"""First words of warnings about which a user can do nothing; MuJoCo would also write its own to a file in the working
folder."""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Turn MuJoCo's warnings into Python's, and drop those of `NOTICES`."""
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
