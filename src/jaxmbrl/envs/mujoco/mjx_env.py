"""Base class of Gymnasium's MuJoCo tasks on MJX. A task is a subclass with a model file, an observation and an outcome.

A step agrees with C MuJoCo. From the same positions, velocities and warm start it differs only by rounding, in float64 by
less than 1e-8, except where C's constraint solver stops early at its tolerance. The module of each task gives its numbers,
also for float32.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib import resources
from types import MappingProxyType
from typing import Any, TypeAlias

import chex
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from jaxmbrl.core import cholesky
from jaxmbrl.core.surroundings import import_despite
from jaxmbrl.core.types import Key, PyTree
from jaxmbrl.envs.base import State, initial_state
from jaxmbrl.envs.drawing.scene import Scene
from jaxmbrl.envs.mujoco import constraints, contacts
from jaxmbrl.envs.mujoco.scenes import Camera, model_scene

Data: TypeAlias = Any
"""`mujoco.mjx.Data`."""

NO_WARP = (
    "Failed to import warp: No module named 'warp'",
    "Failed to import mujoco_warp: No module named 'warp'",
)


class Simulation(struct.PyTreeNode):
    """The fields of `mjx.Data` that the next step needs, under the same names. The simulator recomputes all others.

    For the hopper in float32 this carry has 72 bytes; the whole `mjx.Data` has 6,596. The leaves are arrays, but tree
    functions may replace them.
    """

    qpos: PyTree
    """[nq] joint positions (m, rad)."""
    qvel: PyTree
    """[nv] joint velocities (m/s, rad/s)."""
    qacc_warmstart: PyTree
    """[nv] joint accelerations from which the constraint solver starts; zero after a reset, as in C MuJoCo."""
    mark: PyTree = ()
    """A quantity before the step, which the outcome compares with the same quantity after it (see `MujocoEnv.mark`)."""


class MujocoEnv:
    """A Gymnasium task on MJX, in the Brax interface. The simulator state is a `Simulation`.

    Actions are in [-1, 1]; a linear map turns them into actuator units over the actuator's range. Beyond [-1, 1] MuJoCo
    clamps the control, while a control cost uses the action before clamping, as in Gymnasium.

    The model uses JAX's default float type at construction, so make the task with the same `jax.enable_x64` with which it
    is used. A process that uses both float widths must call `jax.clear_caches()` in between.
    """

    gymnasium_id: str = ""
    """Name of the equivalent environment for `gymnasium.make`; empty if there is none."""
    gymnasium_options: Mapping[str, Any] = MappingProxyType({})
    """Options for `gymnasium.make` that make it equivalent."""
    xml: str
    """Name of the model file in `assets`."""
    included: tuple[str, ...] = ()
    """Names of the files in `assets/dmc` that the model file includes."""
    frame_skip: int
    """Simulator steps per control step."""
    reset_noise: float
    """Half-width of the uniform noise on each initial position and velocity."""
    normal_velocities: bool = False
    """Whether the noise on velocities is normal instead, with standard deviation `reset_noise`."""
    iterations: int
    """Maximum number of Newton iterations of the constraint solver."""
    line_search_iterations: int
    """Maximum number of line-search iterations per Newton iteration; batched environments always run all of them."""
    camera: Camera = Camera(width=2.6, centre=(0.0, 0.0, 0.8), follows=(0,))
    """The view of `scene`."""
    reward_terms: tuple[str, ...]
    """Names of the terms of the reward, in `State.metrics`. The reward is their sum."""

    def __init__(self) -> None:
        mujoco, self._mjx = import_mjx()
        folder = resources.files("jaxmbrl.envs") / "assets"
        included = {f"./{name}": (folder / "dmc" / name).read_bytes() for name in self.included}
        with warnings.catch_warnings():
            # The model files are others'. If compiled directly, MuJoCo writes a warning to a log in the working folder.
            warnings.filterwarnings("ignore", "compiler attribute 'settotalmass' is deprecated")
            text = (folder / self.xml).read_text(encoding="utf-8")
            self.mj_model = mujoco.MjSpec.from_string(text, include=included).compile()
        self.adjust(self.mj_model)
        # The humanoids' model files ask for PGS, which MJX does not have.
        self.mj_model.opt.solver = mujoco.mjtSolver.mjSOL_NEWTON
        self.mj_model.opt.iterations = self.iterations
        self.mj_model.opt.ls_iterations = self.line_search_iterations
        self._put_model()
        low, high = self.mj_model.actuator_ctrlrange.T
        self.actuator_range = (low, high)
        self._centre = jnp.asarray((low + high) / 2, float)
        self._half_range = jnp.asarray((high - low) / 2, float)
        self.observation_size: int = jax.eval_shape(self.observe, self._data).shape[0]
        self.action_size: int = self.mj_model.nu
        self.dt: float = self.mj_model.opt.timestep * self.frame_skip

    def _put_model(self) -> None:
        with as_ours():
            self._model = self._mjx.put_model(self.mj_model, impl="jax")
            self._data = self._mjx.make_data(self.mj_model, impl="jax")

    def adjust(self, model: Any) -> None:
        """Change the compiled `model` where the task differs from its file."""

    def observe(self, data: Data) -> Float[Array, "O"]:
        """The observation. After a step, all fields of `data` are valid, as in C MuJoCo: fields computed from positions are
        from the last evaluation of the dynamics within the step. After a reset, only `qpos`, `qvel` and the fields that
        `settle` adds are valid."""
        raise NotImplementedError

    def settle(self, data: Data) -> Data:
        """Add to `data`, after a reset, the fields that `observe` and `mark` read besides `qpos` and `qvel`."""
        return data

    def finish(self, data: Data) -> Data:
        """Add to `data`, after a step, the fields that `observe`, `outcome` and `mark` read and a simulator step does not
        compute."""
        return data

    def mark(self, data: Data) -> PyTree:
        """A quantity that `outcome` compares with its value before the step, if `qpos` and `qvel` do not determine it."""
        return ()

    def outcome(
        self, before: Simulation, control: Float[Array, "A"], after: Data
    ) -> tuple[dict[str, Float[Array, ""]], Bool[Array, ""]]:
        """(terms of the reward, terminated) of a step with `control` in actuator units."""
        raise NotImplementedError

    def state_at(self, qpos: Float[Array, "nq"], qvel: Float[Array, "nv"]) -> State:
        """The first state of an episode with the given positions (m, rad) and velocities (m/s, rad/s)."""
        chex.assert_shape(qpos, (self.mj_model.nq,))
        chex.assert_shape(qvel, (self.mj_model.nv,))
        qpos, qvel = jnp.asarray(qpos, float), jnp.asarray(qvel, float)
        with jax.default_matmul_precision("highest"), as_ours():
            data = self.settle(self._data.replace(qpos=qpos, qvel=qvel))
        # MJX has normalised the quaternions; C MuJoCo shows them as they were set.
        data = data.replace(qpos=qpos)
        simulation = Simulation(qpos, qvel, jnp.zeros(self.mj_model.nv), self.mark(data))
        return initial_state(simulation, self.observe(data), {term: jnp.zeros(()) for term in self.reward_terms})

    def initial(self, rng: Key) -> tuple[Float[Array, "nq"], Float[Array, "nv"]]:
        """(positions, velocities) of a reset: those of the model, with noise on each (see `reset_noise`)."""
        position_key, velocity_key = jax.random.split(rng)
        low, high = -self.reset_noise, self.reset_noise
        qpos = self._data.qpos + jax.random.uniform(position_key, (self.mj_model.nq,), minval=low, maxval=high)
        if self.normal_velocities:
            return qpos, self.reset_noise * jax.random.normal(velocity_key, (self.mj_model.nv,))
        return qpos, jax.random.uniform(velocity_key, (self.mj_model.nv,), minval=low, maxval=high)

    def reset(self, rng: Key) -> State:
        """The state at `initial` positions and velocities."""
        return self.state_at(*self.initial(rng))

    def scene(self, state: State) -> Scene:
        """The model, seen from the side, from above or obliquely (`camera`)."""
        qpos = state.pipeline_state.qpos
        with jax.default_matmul_precision("highest"), as_ours():
            data = self._mjx.kinematics(self._model, self._data.replace(qpos=qpos))
        return model_scene(self.mj_model, self.camera, qpos, data.geom_xpos, data.geom_xmat)

    def _simulate(self, data: Data) -> Data:
        """One simulator step that keeps the dtypes of all fields of `data` (in float64, MJX widens its tables)."""
        return jax.tree.map(lambda new, old: new.astype(old.dtype), self._mjx.step(self._model, data), data)

    def step(self, state: State, action: Float[Array, "A"]) -> State:
        """One control step of `dt` seconds, with the same control in each of `frame_skip` simulator steps."""
        chex.assert_shape(action, (self.action_size,))
        before = state.pipeline_state
        control = self._centre + self._half_range * action
        data = self._data.replace(qpos=before.qpos, qvel=before.qvel, qacc_warmstart=before.qacc_warmstart, ctrl=control)
        with jax.default_matmul_precision("highest"), as_ours():
            data = jax.lax.fori_loop(0, self.frame_skip, lambda i, data: self._simulate(data), data)
            data = self.finish(data)
        terms, ended = self.outcome(before, control, data)
        return state.replace(
            pipeline_state=Simulation(data.qpos, data.qvel, data.qacc_warmstart, self.mark(data)),
            obs=self.observe(data),
            reward=jnp.sum(jnp.stack([terms[term] for term in self.reward_terms])),
            done=ended.astype(float),
            metrics={**state.metrics, **terms},
        )


@contextlib.contextmanager
def as_ours() -> Iterator[None]:
    """Context manager: models that MJX makes and steps that it traces inside have C MuJoCo's contacts, can be
    differentiated, compile fast, and do not deadlock on a CPU with few cores."""
    with contacts.in_mjx(), constraints.differentiable(), levels_apart(), cholesky.one_by_one():
        yield


@contextlib.contextmanager
def levels_apart() -> Iterator[None]:
    """Context manager: MJX code traced inside has an optimization barrier after each level of the tree of bodies.

    Without barriers, XLA fuses the levels and recomputes the pose of each body from the root for each use. On a CPU, one
    evaluation of the dynamics of an arm with seven joints then takes 4.2 ms in a batch of 64, and 0.011 ms with barriers.
    """
    from mujoco.mjx._src import scan

    theirs = scan.body_tree

    def body_tree(model: Any, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        return theirs(model, lambda *x: jax.lax.optimization_barrier(function(*x)), *args, **options)

    scan.body_tree = body_tree
    try:
        yield
    finally:
        scan.body_tree = theirs


def import_mujoco() -> Any:
    """The module `mujoco`. Its import fails if MUJOCO_GL names no library for rendering that works; physics needs none."""
    return import_despite("MUJOCO_GL", "disable", "mujoco")


def import_mjx() -> tuple[Any, Any]:
    """The modules `mujoco` and `mujoco.mjx`. The notice that warp, which we do not use, is missing is not printed."""
    heard = io.StringIO()
    try:
        with contextlib.redirect_stdout(heard):
            mujoco, mjx = import_mujoco(), importlib.import_module("mujoco.mjx")
    finally:
        lines = heard.getvalue().splitlines(keepends=True)
        print("".join(line for line in lines if line.strip() not in NO_WARP), end="")
    return mujoco, mjx
