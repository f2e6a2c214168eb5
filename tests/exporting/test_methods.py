"""Every method can be exported."""

import float_types
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_policies import episode

from jaxmbrl import algorithms
from jaxmbrl.agents.regression import RegressedPolicy
from jaxmbrl.core.spaces import Discrete
from jaxmbrl.exporting import loaders
from jaxmbrl.exporting.formats import FORMATS
from jaxmbrl.exporting.policies import deterministic
from jaxmbrl.training import programs
from jaxmbrl.training.loop import clock_at

STEPS = 5


def filled(algorithm, least=-0.5):
    """A state with numbers that no method begins with, so that normalisers do something."""
    random = np.random.default_rng(5)

    def leaf(of):
        if jnp.issubdtype(of.dtype, jax.dtypes.prng_key):
            return jax.random.key(1)
        if not jnp.issubdtype(of.dtype, jnp.floating):
            return jnp.zeros(of.shape, of.dtype)
        fan_in = of.shape[-2] if len(of.shape) > 1 else 1
        return jnp.asarray(random.uniform(least, 0.8, of.shape) / np.sqrt(fan_in), of.dtype)

    state = jax.tree.map(leaf, jax.eval_shape(lambda: algorithm.init(jax.random.key(5), {}, None)))
    if isinstance(getattr(state, "policy", None), RegressedPolicy):
        # Observations beyond random limits would all be clipped to the same numbers.
        observed = state.policy.observations
        wide = observed.normalizer._replace(low=jnp.full(3, -9.0), high=jnp.full(3, 9.0))
        state = state._replace(policy=state.policy._replace(observations=observed._replace(normalizer=wide)))
    return state


MPPI = {"planner.method": "mppi", "planner.mppi.population": 20, "planner.mppi.horizon": 4, "planner.mppi.iterations": 2}
VARIANTS = {
    "pets, MPPI, open loop": ("pets", MPPI | {"open_loop": True}),
    "ppo": ("ppo", {"agent.normalize_observations": False}),
    "trpo": ("trpo", {"agent.normalize_observations": False}),
    "sac, bfloat16": ("sac", {"agent.precision": "bfloat16"}),
    "sac, discrete actions": ("sac", {}, "discrete actions"),
    "gps": ("gps", {"epoch_steps": 800}),
    "gps, local controllers": ("gps", {"policy": "local", "start_states": 1, "num_envs": 2, "epoch_steps": 400}),
}
"""By name, the method, changes to its small settings, and the kind of its task if it is not the first that it takes."""
CASES = {
    case: (name, changes, *(kind or algorithms.METHODS[name].takes[:1]))
    for case, (name, changes, *kind) in ({name: (name, {}) for name in algorithms.METHODS} | VARIANTS).items()
    # Methods of trees search at each step, some of them in the simulator.
    if algorithms.METHODS[name].family != "search"
}
KNOWN_REWARD = ("slbo", "gps")
"""Methods that need a known reward, which repeated actions have not."""
PLANS = ("pets", "qt-opt", "planet", "td-mpc2", "latent-mpc")
"""Methods that search for each action. The random numbers of QT-Opt's search are fixed."""
SAMPLES = ("pets", "planet", "td-mpc2", "alm", "latent-mpc", "dreamer", "plan2explore", "world-models")
"""Methods whose deterministic policy has random numbers: of a search, or of a belief."""
TASKS = {
    "continuous actions": "pendulum",
    "discrete actions": "CartPole-v1",
    "tables": "FrozenLake",
    "continuous actions in episodes of one length": "pendulum",
}
"""The task of a case, by its kind."""


def played(program, state, clock):
    """(observations, actions) of an episode. The choices of a policy that is not trained seldom change within one, so those
    of a discrete space are of random observations."""
    if not isinstance(program.task.action, Discrete):
        return episode(program.algorithm, program.task, state, 0, clock, STEPS)
    policy, key, space = program.algorithm.policy(state, clock, False), jax.random.key(0), program.task.observation
    if isinstance(space, Discrete):
        observations = jnp.arange(space.n)
    else:
        observations = 100 * jax.random.normal(key, (4 * STEPS, *space.shape))
    return observations, jax.vmap(lambda seen: policy.act(policy.init(key), seen, key)[0])(observations)


@pytest.mark.parametrize(
    "case", [case if case == "sac" else pytest.param(case, marks=pytest.mark.promises) for case in CASES]
)
def test_the_policy_of_every_method_can_be_exported(case, tmp_path):
    """To StableHLO; to NumPy as well, unless it plans or breaks ties at random, as tables do."""
    with float_types.of_method(*CASES[case][:2]):
        export_and_compare(case, tmp_path)


def export_and_compare(case, tmp_path):
    name, changes, kind = CASES[case]
    settings, task = dict(algorithms.METHODS[name].tiny) | changes, TASKS[kind]
    config = programs.configure(name, task, settings=settings, action_repeat=1 if name in KNOWN_REWARD else 2)
    program, clock = programs.build(config), clock_at(300)
    # With weights that are positive on average, a choice would hardly depend on the observation.
    state = filled(program.algorithm, -0.8 if isinstance(program.task.action, Discrete) else -0.5)
    observations, actions = jax.device_get(jax.jit(lambda: played(program, state, clock))())
    assert len(np.unique(actions)) > 1, "an action that never changes shows nothing"
    policy = deterministic(program.algorithm, program.task, state, clock)
    about = {
        "observation": {"shape": list(observations.shape[1:]), "dtype": observations.dtype.name},
        "action": {"shape": list(actions.shape[1:]), "dtype": actions.dtype.name},
        "memory": [{"initial": value.tolist(), "dtype": value.dtype.name} for value in policy.memory.values()],
    }
    assert policy.random == (name in SAMPLES or kind == "tables")
    for to in ("stablehlo", "numpy")[: 1 if name in PLANS or policy.random else 2]:
        path = tmp_path / f"policy{FORMATS[to].suffix}"
        written = FORMATS[to].write(policy, about, program.task.observation)
        path.write_bytes(written.content)
        names = {}
        exec(loaders.loader(FORMATS[to].loader, path, written.about), names)
        memory = names.get("memory")
        for observation, due in zip(observations, actions, strict=True):
            found = names["act"](observation, *([memory] if policy.memory else []))
            action, memory = found if policy.memory else (found, None)
            # A hidden unit between two numbers of bfloat16 may be rounded to the other one.
            np.testing.assert_allclose(action, due, rtol=0, atol=1e-2 if "bfloat16" in case and to == "numpy" else 1e-6)
