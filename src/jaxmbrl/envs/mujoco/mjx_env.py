"""Gymnasium's MuJoCo tasks on MJX: what they share. A task is a subclass with a model file, an observation and an outcome.

A step is C MuJoCo's: from the same positions, velocities and warm start it differs by rounding, in float64 by less than
1e-8, but where C's constraint solver stops early at its tolerance. Each file has its task's figures, float32's too.
"""

from __future__ import annotations

import contextlib
import io
import sys
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

from jaxmbrl.core.types import Key, PyTree
from jaxmbrl.envs.base import State, initial_state
from jaxmbrl.envs.mujoco import cholesky, constraints, contacts

Data: TypeAlias = Any
"""`mujoco.mjx.Data`."""

NO_WARP = (
    "Failed to import warp: No module named 'warp'",
    "Failed to import mujoco_warp: No module named 'warp'",
)


class Simulation(struct.PyTreeNode):
    """What the next step needs of `mjx.Data`, under its names; the simulator computes all the rest anew from it.

    It is a carry of 72 bytes for the hopper in float32, where the whole of `mjx.Data` has 6,596.
    Leaves are arrays, or what stands for them in tree functions.
    """

    qpos: PyTree
    """[nq] joint positions (m, rad)."""
    qvel: PyTree
    """[nv] joint velocities (m/s, rad/s)."""
    qacc_warmstart: PyTree
    """[nv] joint accelerations, where the constraint solver starts; zero after a reset, as in C MuJoCo."""
    mark: PyTree = ()
    """What the outcome of the next step compares with the same after it (see `MujocoEnv.mark`)."""


class MujocoEnv:
    """A task of Gymnasium's on MJX, in the Brax interface; the simulator's state is a `Simulation`.

    Actions are in [-1, 1] and become actuator units by one linear map onto the actuator's range. Beyond [-1, 1] MuJoCo
    clamps the control, while a control cost sees the action as it came, as in Gymnasium.

    The model takes JAX's default float at construction: make the task where `jax.enable_x64` is as in its use. A process
    that uses both widths needs `jax.clear_caches()` in between.
    """

    gymnasium_id: str = ""
    """Name of the task that this one equals, for `gymnasium.make`; empty where there is none."""
    gymnasium_options: Mapping[str, Any] = MappingProxyType({})
    """Options of `gymnasium.make` with which it does."""
    xml: str
    """Name of the model file in `assets`."""
    frame_skip: int
    """Simulator steps in a control step."""
    reset_noise: float
    """Half-width of the uniform noise on each initial position and velocity."""
    normal_velocities: bool = False
    """Whether the noise on velocities is normal instead, with standard deviation `reset_noise`."""
    iterations: int
    """Newton iterations of the constraint solver, at most."""
    line_search_iterations: int
    """Line-search iterations in each of them; batched environments always run them all."""
    reward_terms: tuple[str, ...]
    """Names of the terms that the reward sums, in `State.metrics`."""

    def __init__(self) -> None:
        mujoco, self._mjx = import_mjx()
        text = (resources.files("jaxmbrl.envs") / "assets" / self.xml).read_text(encoding="utf-8")
        with warnings.catch_warnings():
            # The model files are Gymnasium's; compiled directly, the warning would go to a log file in the working folder.
            warnings.filterwarnings("ignore", "compiler attribute 'settotalmass' is deprecated")
            self.mj_model = mujoco.MjSpec.from_string(text).compile()
        # MJX has no PGS, for which the humanoids' model files ask.
        self.mj_model.opt.solver = mujoco.mjtSolver.mjSOL_NEWTON
        self.mj_model.opt.iterations = self.iterations
        self.mj_model.opt.ls_iterations = self.line_search_iterations
        self._put_model()
        low, high = self.mj_model.actuator_ctrlrange.T
        self._centre = jnp.asarray((low + high) / 2, float)
        self._half_range = jnp.asarray((high - low) / 2, float)
        self.observation_size: int = jax.eval_shape(self.observe, self._data).shape[0]
        self.action_size: int = self.mj_model.nu
        self.dt: float = self.mj_model.opt.timestep * self.frame_skip

    def _put_model(self) -> None:
        with as_ours():
            self._model = self._mjx.put_model(self.mj_model, impl="jax")
            self._data = self._mjx.make_data(self.mj_model, impl="jax")

    def observe(self, data: Data) -> Float[Array, "O"]:
        """The observation. After a step all of the data is known, as C MuJoCo leaves it: what is computed from positions is
        of the last evaluation of the dynamics within the step. After a reset `qpos`, `qvel` and what `settle` adds are."""
        raise NotImplementedError

    def settle(self, data: Data) -> Data:
        """`data` after a reset, with what `observe` and `mark` read besides `qpos` and `qvel`."""
        return data

    def finish(self, data: Data) -> Data:
        """`data` after a step, with what `observe`, `outcome` and `mark` read and a simulator step does not compute."""
        return data

    def mark(self, data: Data) -> PyTree:
        """What `outcome` compares with the same of the step before, where `qpos` and `qvel` do not tell it."""
        return ()

    def outcome(
        self, before: Simulation, control: Float[Array, "A"], after: Data
    ) -> tuple[dict[str, Float[Array, ""]], Bool[Array, ""]]:
        """(terms that the reward sums, terminated) of a step with `control` in actuator units."""
        raise NotImplementedError

    def state_at(self, qpos: Float[Array, "nq"], qvel: Float[Array, "nv"]) -> State:
        """An episode's first state with these positions (m, rad) and velocities (m/s, rad/s)."""
        chex.assert_shape(qpos, (self.mj_model.nq,))
        chex.assert_shape(qvel, (self.mj_model.nv,))
        qpos, qvel = jnp.asarray(qpos, float), jnp.asarray(qvel, float)
        with jax.default_matmul_precision("highest"), as_ours():
            data = self.settle(self._data.replace(qpos=qpos, qvel=qvel))
        # MJX has made the quaternions of unit length on the way; C MuJoCo shows them as they were set.
        data = data.replace(qpos=qpos)
        simulation = Simulation(qpos, qvel, jnp.zeros(self.mj_model.nv), self.mark(data))
        return initial_state(simulation, self.observe(data), {term: jnp.zeros(()) for term in self.reward_terms})

    def initial(self, rng: Key) -> tuple[Float[Array, "nq"], Float[Array, "nv"]]:
        """(positions, velocities) of a reset: the model's, with noise on each (see `reset_noise`)."""
        position_key, velocity_key = jax.random.split(rng)
        low, high = -self.reset_noise, self.reset_noise
        qpos = self._data.qpos + jax.random.uniform(position_key, (self.mj_model.nq,), minval=low, maxval=high)
        if self.normal_velocities:
            return qpos, self.reset_noise * jax.random.normal(velocity_key, (self.mj_model.nv,))
        return qpos, jax.random.uniform(velocity_key, (self.mj_model.nv,), minval=low, maxval=high)

    def reset(self, rng: Key) -> State:
        """The state at `initial` positions and velocities."""
        return self.state_at(*self.initial(rng))

    def _simulate(self, data: Data) -> Data:
        """One simulator step, which keeps the types of all that the data hold (MJX widens its tables in float64)."""
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
    """What MJX makes and traces meanwhile has C MuJoCo's contacts, can be differentiated, compiles fast, and comes to an
    end on a CPU of few cores."""
    with contacts.in_mjx(), constraints.differentiable(), levels_apart(), cholesky.one_by_one():
        yield


@contextlib.contextmanager
def levels_apart() -> Iterator[None]:
    """While MJX is traced inside, its passes over the tree of bodies have a barrier after each level.

    XLA fuses the levels otherwise, and computes each body's pose anew from the root for each of its uses: on a CPU one
    evaluation of the dynamics of an arm of seven joints takes 4.2 ms in a batch of 64 then, and 0.011 with the barriers.
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


def import_mjx() -> tuple[Any, Any]:
    """The modules `mujoco` and `mujoco.mjx`; the import's notice that warp is missing, which we don't use, is dropped."""
    heard = io.StringIO()
    try:
        with contextlib.redirect_stdout(heard):
            import mujoco
            from mujoco import mjx
    finally:
        lines = heard.getvalue().splitlines(keepends=True)
        sys.stdout.write("".join(line for line in lines if line.strip() not in NO_WARP))
    return mujoco, mjx
