"""PETS as a whole: when it refits and plans, what its model learns, its presets, and that it learns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl import algorithms, envs, planning
from jaxmbrl.algorithms.shooting import pets
from jaxmbrl.core import metrics
from jaxmbrl.core.config import UserError, check
from jaxmbrl.models import EnsembleConfig, ensemble
from jaxmbrl.planning import PlannerConfig
from jaxmbrl.planning.cem import CEMConfig
from jaxmbrl.training import evaluation, loop, programs

TINY = pets.Config(
    ensemble=EnsembleConfig(members=2, elites=2, hidden=(8,), batch_size=16, max_epochs=2, holdout_fraction=0.0),
    planner=PlannerConfig(cem=CEMConfig(horizon=3, population=10, elites=3, iterations=2)),
    particles=4,
    refit_every=10,
    replay_capacity=100,
    warmup_steps=20,
    epoch_steps=1000,
    num_envs=2,
)


def first_seed(tree):
    return jax.tree.map(lambda x: x[0], jax.device_get(tree))


def test_refits_and_plans_with_two_environments():
    """Each call of `learn` is one refit once the warm-up of 20 steps is over; then actions are planned."""
    task = envs.make("cartpole-continuous")
    algorithm = pets.make(TINY, task)
    assert algorithm.period == 5
    program = loop.make(algorithm, task, TINY)
    assert program.steps_per_call == 10
    run, time = jax.jit(program.run), loop.clock_at(0)
    state = jax.jit(program.init)(np.arange(1, dtype=np.int32), {"learning_rate": np.array([0.01], np.float32)})
    assert float(state.algorithm.model.members.learning_rate[0]) == pytest.approx(0.01)
    untouched, gradient_steps = state.algorithm.model, 0
    for call in range(1, 13):
        before = metrics.known(first_seed(state.metrics))
        time, state = run(time, state, np.asarray(1, np.int32))
        model, buffer = first_seed((state.algorithm.model, state.algorithm.replay))
        count = min(10 * call, 100)
        assert int(time.env_steps) == 10 * call
        assert int(buffer.size) == count
        assert int(model.fits) == max(0, call - 1)
        # Two epochs of all rows in minibatches of 16.
        gradient_steps += 2 * -(-count // 16) if call > 1 else 0
        assert int(model.steps) == int(model.members.moments.count) == gradient_steps
        assert float(state.metrics["model/fit_steps"].weight[0]) == max(0, call - 1)
        if call == 1:
            jax.tree.map(np.testing.assert_array_equal, state.algorithm.model, untouched)
        # A plan is left behind from the third call on, once 20 random steps are over.
        assert np.any(np.asarray(state.memory.mean)) == (call > 2)
        assert "model/fit_steps" not in before or call > 2
    assert run._cache_size() == 1
    assert not np.any(np.asarray(state.fault.what) >= 0)
    assert float(state.metrics["plan/nonfinite"].weight[0]) == 10


@pytest.mark.parametrize("learn_reward", [False, True])
@pytest.mark.parametrize("learn_termination", [False, True])
def test_what_is_learned(learn_reward, learn_termination):
    config = dataclasses.replace(TINY, learn_reward=learn_reward, learn_termination=learn_termination)
    algorithm = pets.make(config, envs.make("cartpole-continuous"))
    model = jax.eval_shape(algorithm.init, jax.random.key(0), {}).model
    size = 4 + learn_reward
    assert model.members.params.low.shape == model.targets.mean.shape == (size,)
    # Means and log-variances; a logit of termination has a network of its own.
    assert model.members.params.network["params"]["Dense_1"]["kernel"].shape[-1] == 2 * size
    assert bool(model.members.params.termination) == learn_termination


def test_a_task_whose_reward_is_not_known_is_learned():
    task = envs.make("pendulum")._replace(reward=None, terminated=None)
    model = jax.eval_shape(pets.make(TINY, task).init, jax.random.key(0), {}).model
    assert model.members.params.low.shape == (4,)
    assert model.members.params.network["params"]["Dense_1"]["kernel"].shape[-1] == 8
    assert model.members.params.termination["params"]["Dense_0"]["kernel"].shape[1:] == (3, 64)


def trained(calls, task="cartpole-continuous", **settings):
    """(algorithm, state of the loop) after some calls of `learn` with TINY settings, one environment."""
    config = dataclasses.replace(TINY, num_envs=1, **settings)
    algorithm = pets.make(config, envs.make(task))
    program = loop.make(algorithm, envs.make(task), config)
    state = jax.jit(program.init)(jnp.arange(1), {})
    _, state = jax.jit(program.run)(loop.clock_at(0), state, jnp.asarray(calls, jnp.int32))
    assert not np.any(np.asarray(state.fault.what) >= 0)
    return algorithm, state


@pytest.mark.slow
def test_a_model_is_fitted_once_where_it_is_not_refitted():
    _, state = trained(6, refit=False)
    assert int(state.algorithm.model.fits[0]) == 1


@pytest.mark.slow
def test_cem_over_choices_balances_the_true_pole():
    """With the preset's search, 16 episodes of at most 500; with its samples in three iterations of 32 it was 331."""
    program = programs.build(programs.configure("pets", "CartPole-v1", settings={"model": "true"}))
    state = jax.tree.map(lambda leaf: leaf[None], program.algorithm.init(jax.random.key(0), {}, None))
    returns = jax.jit(lambda state: evaluation.evaluate(program.algorithm, program.task, state, 16))(state)
    assert np.mean(returns) >= 480


@pytest.mark.promises
def test_the_true_simulator_is_planned_in_and_nothing_fitted():
    """The plan's value is the true one: the action is that of the planner over the task's own World, from its state."""
    task, search = envs.make("cartpole-continuous"), PlannerConfig(cem=CEMConfig(horizon=8, population=30, elites=4))
    config = dataclasses.replace(TINY, model="true", planner=search)
    algorithm = pets.make(config, task)
    assert algorithm.observes_full_state and not pets.make(TINY, task).observes_full_state
    carry, key = task.world.reset(jax.random.key(0)), jax.random.key(1)
    policy = algorithm.policy(algorithm.init(jax.random.key(2), {}), loop.clock_at(0), False)
    action, _, _ = jax.jit(policy.act)(policy.init(key), carry, key)
    planner = planning.make(search, task.action)
    problem = planning.make_problem(task.world, carry[0], task.action)
    expected = jax.jit(lambda: planner.plan(problem, planner.init(), key)[0][0])()
    np.testing.assert_allclose(action, expected, rtol=1e-6)
    _, state = trained(4, model="true")
    assert int(state.algorithm.model.fits[0]) == 0
    assert float(state.metrics["model/fit_steps"].weight[0]) == 0
    assert np.any(np.asarray(state.memory.mean))


def test_the_true_simulator_balances_the_pole_at_once():
    task = envs.make("cartpole-continuous")
    search = PlannerConfig(cem=CEMConfig(horizon=20, population=50, elites=5, iterations=3))
    algorithm = pets.make(dataclasses.replace(TINY, model="true", planner=search), task)

    @jax.jit
    def evaluated(key):
        states = jax.tree.map(lambda x: x[None], algorithm.init(key, {}))
        return evaluation.evaluate(algorithm, task, states, 3)

    returns = evaluated(jax.random.key(0))
    np.testing.assert_array_equal(returns, [[200.0, 200.0, 200.0]])


def test_an_open_loop_plan_is_played_to_its_end_and_then_made_anew():
    """The actions of three steps are those of one plan from the observation at its start; the statistics come with it."""
    task = envs.make("pendulum")
    algorithm = pets.make(dataclasses.replace(TINY, open_loop=True), task)
    model, search = (
        ensemble.make(TINY.ensemble, 3, 1, task.reward, task.terminated),
        planning.make(TINY.planner, task.action),
    )

    def policy(learned):
        return algorithm.policy(learned, loop.clock_at(0), False)

    @jax.jit
    def start(key):
        learned = algorithm.init(key, {})
        return learned, policy(learned).init(key)

    @jax.jit
    def act(learned, memory, observation, key):
        """The policy's action, and a plan made at the same time."""
        problem = planning.make_problem(model.world(learned.model), jnp.tile(observation, (4, 1)), task.action)
        return policy(learned).act(memory, observation, key), search.plan(problem, search.init(), key)[0]

    learned, fresh = start(jax.random.key(5))
    memory = fresh
    for step in range(7):
        observation = np.array([np.cos(step), np.sin(step), 0.1 * step], np.float32)
        (action, statistics, memory), plan = act(learned, memory, observation, jax.random.key(10 + step))
        if step % 3 == 0:
            expected = np.asarray(plan)
        np.testing.assert_allclose(action, expected[step % 3], rtol=1e-6)
        assert int(statistics["nonfinite"]) == 0
    # An episode's end forgets the plan.
    assert int(fresh.played) == 3


def test_rules_between_fields():
    with pytest.raises(UserError, match=r"refit_every must be a multiple of num_envs \(3\), got 10"):
        check(dataclasses.replace(TINY, num_envs=3))
    with pytest.raises(UserError, match=r"particles must be a multiple of ensemble.elites \(2\), got 5"):
        check(dataclasses.replace(TINY, particles=5))
    pooled = {p: dataclasses.replace(TINY.ensemble, propagation=p) for p in ("distribution", "expectation")}
    check(dataclasses.replace(TINY, particles=5, ensemble=pooled["distribution"]))
    check(dataclasses.replace(TINY, particles=1, ensemble=pooled["expectation"]))
    with pytest.raises(UserError, match="particles must be 1 with propagation 'expectation'"):
        check(dataclasses.replace(TINY, ensemble=pooled["expectation"]))
    rounded = dataclasses.replace(TINY.ensemble, precision="bfloat16")
    with pytest.raises(UserError, match=r"ensemble\.precision must be float32 for planner\.method ilqr"):
        check(dataclasses.replace(TINY, ensemble=rounded, planner=PlannerConfig(method="ilqr")))


PUBLISHED = {
    # hidden, weight decay of each layer, steps of a trial, trials, horizon, population, elites
    "paper-cartpole": ((500,) * 3, (1e-4, 2.5e-4, 2.5e-4, 5e-4), 200, 50, 25, 400, 40),
    "paper-halfcheetah": ((200,) * 4, (2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4), 1000, 300, 30, 500, 50),
    "paper-reacher3d": ((200,) * 4, (2.5e-4, 5e-4, 5e-4, 5e-4, 7.5e-4), 150, 100, 25, 400, 40),
    "paper-pusher": ((200,) * 3, (2.5e-4, 5e-4, 5e-4, 7.5e-4), 150, 100, 25, 500, 50),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings(name):
    """Chua et al., arXiv 1805.12114, and its code: dmbrl/config/*.py, dmbrl/modeling/models/BNN.py."""
    hidden, decay, trial, trials, horizon, population, elites = PUBLISHED[name]
    preset = algorithms.get("pets").presets[name]
    config = preset.config
    assert config.planner.cem == CEMConfig(horizon, population, elites, iterations=5, momentum=0.1, min_variance=1e-3)
    assert (config.ensemble.members, config.ensemble.hidden, config.ensemble.weight_decay) == (5, hidden, decay)
    assert config.ensemble.learning_rate == (7.5e-4 if name == "paper-reacher3d" else 1e-3)
    assert (config.ensemble.batch_size, config.ensemble.max_epochs) == (32, 5)
    assert (config.ensemble.holdout_fraction, config.ensemble.bounds_weight) == (0.0, 0.01)
    assert (config.ensemble.normalize_targets, config.ensemble.propagation) == (False, "tsinf")
    assert (config.particles, config.refit_every, config.warmup_steps) == (20, trial, trial)
    assert (config.num_envs, preset.steps) == (1, trial * trials)
    # The model is fitted to all data so far.
    assert config.replay_capacity >= preset.steps


@pytest.mark.parametrize("name", algorithms.get("pets").presets)
def test_presets_are_sound(name):
    preset = algorithms.get("pets").presets[name]
    config = check(preset.config)
    assert preset.steps > config.warmup_steps
    assert preset.source
    for task in {"cartpole-continuous", *preset.tasks} & set(envs.names()):
        assert task not in preset.tasks or algorithms.preset("pets", task)[0] == name
        with jax.enable_x64(config.dynamics == "gp"):
            jax.eval_shape(pets.make(config, envs.make(task)).init, jax.random.key(0), {})


def test_paper_presets_are_the_defaults_of_the_papers_tasks_with_its_inputs():
    """MODEL_IN of dmbrl/config: 24 = 18 + 6 for the cheetah, whose speed gives way to a second number of its angle."""
    for task, name, inputs in (
        ("pets/HalfCheetah", "paper-halfcheetah", 24),
        ("pets/Reacher3D", "paper-reacher3d", 24),
        ("pets/Pusher", "paper-pusher", 27),
    ):
        found, config = algorithms.preset("pets", task)
        state = jax.eval_shape(pets.make(config, envs.make(task)).init, jax.random.key(0), {})
        kernel = state.model.members.params.network["params"]["Dense_0"]["kernel"]
        assert (found, kernel.shape) == (name, (5, inputs, config.ensemble.hidden[0]))
