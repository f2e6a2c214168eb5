"""CEM and MPPI over discrete actions: replays in NumPy, identities with simpler searches, the floor, ties."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl.core.spaces import Discrete
from jaxmbrl.core.types import Transition, World
from jaxmbrl.planning import categorical, cem, mppi, open_loop_policy, problem_of_score, random_shooting
from jaxmbrl.planning.cem import CEMConfig
from jaxmbrl.planning.mppi import MPPIConfig
from jaxmbrl.planning.random_shooting import RandomShootingConfig

H, N = 3, 4
SPACE = Discrete(N)
refit = jax.jit(cem.refit_choices, static_argnums=(3, 4, 5))


def draw(seed, population=12):
    rng = np.random.default_rng(seed)
    probability = rng.dirichlet(np.ones(N), H).astype(np.float32)
    return probability, rng.integers(0, N, (population, H)).astype(np.int32), rng.normal(size=population).astype(np.float32)


def mixed(probability, sequences, weight, momentum, floor):
    """The next probabilities, in NumPy."""
    frequency = np.asarray(probability, np.float64)
    if weight.sum() > 0:
        frequency = sum(w * np.eye(N)[x] for w, x in zip(weight / weight.sum(), sequences, strict=True))
    fitted = momentum * probability + (1 - momentum) * frequency
    return (1 - floor) * fitted + floor / N


def refit_in_numpy(probability, population, returns, elites, momentum, floor):
    """Also those with the return of the last elite are elites."""
    finite = np.sort(returns[np.isfinite(returns)])[::-1]
    chosen = population[np.isfinite(returns) & (returns >= finite[:elites][-1])] if len(finite) else population[:0]
    return mixed(probability, chosen, np.ones(len(chosen)), momentum, floor)


def scored(score, seen):
    """An objective that NumPy computes from a whole population [P, H], which `seen` then records."""

    def on_host(population):
        seen.append(np.array(population))
        return np.asarray(score(seen[-1]), np.float32)

    def objective(actions, key):
        return jax.pure_callback(on_host, jax.ShapeDtypeStruct((), jnp.float32), actions, vmap_method="broadcast_all")

    return objective


def test_two_elites_of_four_by_hand():
    """Momentum .1, floor .04 of two choices: .1 p + .9 of the elites' frequencies 1 and .5, then 96% of it and 2%."""
    probability = np.full((2, 2), 0.5, np.float32)
    population = np.array([[1, 0], [0, 0], [1, 1], [0, 1]], np.int32)
    found = refit(probability, population, np.array([3.0, 1.0, 2.0, 0.0], np.float32), 2, 0.1, 0.04)
    np.testing.assert_allclose(found, [[0.068, 0.932], [0.5, 0.5]], rtol=1e-6)


@pytest.mark.parametrize("broken", [0, 5, 10, 12])
def test_refit_is_numpys(broken):
    """Fewer candidates than elites may be finite, and none."""
    probability, population, returns = draw(broken)
    returns[:broken] = np.resize([np.nan, np.inf, -np.inf], broken)
    found = refit(probability, population, returns, 4, 0.2, 0.1)
    np.testing.assert_allclose(found, refit_in_numpy(probability, population, returns, 4, 0.2, 0.1), rtol=2e-6)
    np.testing.assert_allclose(np.sum(found, axis=1), 1, rtol=1e-6)


def test_full_momentum_changes_nothing_but_for_the_floor():
    probability, population, returns = draw(0)
    np.testing.assert_array_equal(refit(probability, population, returns, 4, 1.0, 0.0), probability)
    found = refit(probability, population, returns, 4, 1.0, 0.2)
    np.testing.assert_allclose(found, 0.8 * probability + 0.05, rtol=1e-6)


GOAL = np.array([2, 0, 3])


def near(population):
    return -np.abs(population - GOAL).sum(axis=-1)


def test_a_whole_search_of_cem_replayed_in_numpy():
    """Two successive plans: each population has the probabilities of the last refit, and the best of the last is the
    plan."""
    config = CEMConfig(horizon=H, population=3000, elites=900, iterations=3, momentum=0.2, floor=0.1)
    planner, seen = cem.make(config, SPACE), []
    run = jax.jit(lambda state, key: planner.plan(problem_of_score(scored(near, seen), SPACE), state, key))
    state, probability = planner.init(), np.full((H, N), 1 / N)
    for i in range(2):
        seen.clear()
        actions, state, statistics = jax.device_get(jax.block_until_ready(run(state, jax.random.key(i))))
        assert len(seen) == 3 and int(statistics["nonfinite"]) == 0
        for population in seen:
            assert population.shape == (3000, H) and population.dtype == np.int32
            frequency = np.stack([np.bincount(population[:, t], minlength=N) for t in range(H)]) / 3000
            assert np.abs(frequency - probability).max() < 4.5 * np.sqrt(0.25 / 3000)
            probability = refit_in_numpy(probability, population, near(population), 900, 0.2, 0.1)
        assert actions.dtype == np.int32 and actions.tolist() == seen[-1][np.argmax(near(seen[-1]))].tolist()
        probability = np.concatenate([probability[1:], np.full((1, N), 1 / N)])
        np.testing.assert_allclose(state.probability, probability, rtol=1e-5)


def test_a_whole_search_of_mppi_replayed_in_numpy():
    config = MPPIConfig(horizon=H, population=3000, iterations=3, temperature=0.5, floor=0.1)
    planner, seen = mppi.make(config, SPACE), []
    run = jax.jit(lambda state, key: planner.plan(problem_of_score(scored(near, seen), SPACE), state, key))
    actions, state, _ = jax.device_get(jax.block_until_ready(run(planner.init(), jax.random.key(0))))
    probability = np.full((H, N), 1 / N)
    for population in seen:
        frequency = np.stack([np.bincount(population[:, t], minlength=N) for t in range(H)]) / 3000
        assert np.abs(frequency - probability).max() < 4.5 * np.sqrt(0.25 / 3000)
        probability = mixed(probability, population, np.exp(near(population) / 0.5), 0.0, 0.1)
    assert len(seen) == 3 and actions.dtype == np.int32
    assert actions.tolist() == probability.argmax(axis=1).tolist() == GOAL.tolist()
    shifted = np.concatenate([probability[1:], np.full((1, N), 1 / N)])
    np.testing.assert_allclose(state.probability, shifted, rtol=1e-4)


def test_one_iteration_of_cem_on_the_population_of_random_shooting_is_random_shooting(monkeypatch):
    """The uniform start has the population's law (`test_a_whole_search`); here the candidates are the same ones, too."""
    monkeypatch.setattr(categorical, "sample", lambda key, p, count: random_shooting.sample(key, count, len(p), SPACE))
    score = lambda actions, key: jnp.sum(jnp.cos(3.0 * actions) * jnp.arange(1, H + 1))  # noqa: E731
    problem, key = problem_of_score(score, SPACE), jax.random.key(3)
    once = cem.make(CEMConfig(horizon=H, population=20, elites=5, iterations=1), SPACE)
    shooting = random_shooting.make(RandomShootingConfig(horizon=H, population=20), SPACE)

    @jax.jit
    def plans():
        return once.plan(problem, once.init(), key)[0], shooting.plan(problem, (), jax.random.fold_in(key, 0))[0]

    np.testing.assert_array_equal(*plans())


def lane(place, action):
    """A deterministic walk on 7 cells: left, stay, right, jump by 3. (next cell, reward)."""
    moved = np.clip(place + np.array([-1, 0, 1, 3])[action], 0, 6)
    reward = np.array([0.0, 0.31, 0.17, -2.03, 1.53, -3.01, 2.47])[moved]
    return moved, reward - np.array([0.05, 0.02, 0.03, 0.2])[action]


def return_from(start, sequences):
    total, place = np.zeros(len(sequences)), np.full(len(sequences), start)
    for actions in np.asarray(sequences).T:
        place, reward = lane(place, actions)
        total += reward
    return total


@pytest.mark.parametrize("method", ["cem", "mppi"])
def test_among_all_sequences_the_plan_is_the_open_loop_optimum(method):
    """All n^H of them are proposals; MPPI's temperature is small."""
    every = np.array(list(itertools.product(range(N), repeat=H)), np.int32)
    if method == "cem":
        planner = cem.make(CEMConfig(horizon=H, population=5, elites=1, iterations=2), SPACE)
    else:
        planner = mppi.make(MPPIConfig(horizon=H, population=5, iterations=2, temperature=1e-3), SPACE)
    place = [0]
    problem = problem_of_score(scored(lambda x: return_from(place[0], x), []), SPACE)
    plan = jax.jit(lambda: planner.plan(problem, planner.init(), jax.random.key(0), jnp.asarray(every))[0])
    found = []
    for place[0] in range(7):
        found.append(np.asarray(jax.block_until_ready(plan())).tolist())
        values = return_from(place[0], every)
        assert return_from(place[0], [found[-1]])[0] == values.max()
        assert np.isclose(values, values.max()).sum() == 1, "the optimum is unique"
    assert len(set(map(tuple, found))) > 2


def test_of_equal_candidates_the_first_wins_and_all_are_elites():
    """A constant reward: at first all samples are equally probable, and the probabilities become those of all samples."""
    planner, seen = (
        cem.make(CEMConfig(horizon=H, population=30, elites=4, iterations=1, momentum=0.0, floor=0.0), SPACE),
        [],
    )
    problem = problem_of_score(scored(lambda x: np.ones(len(x)), seen), SPACE)
    plan = jax.jit(lambda: planner.plan(problem, planner.init(), jax.random.key(5)))
    actions, state, _ = jax.device_get(jax.block_until_ready(plan()))
    assert actions.tolist() == seen[0][0].tolist()
    expected = np.stack([np.bincount(seen[0][:, t], minlength=N) for t in range(H)]) / 30
    np.testing.assert_allclose(state.probability[:-1], expected[1:], rtol=1e-6)


def test_of_equal_candidates_the_most_probable_wins():
    """Probabilities .5 .5 | .2 .8: of the three best ones, 01 and 11 are the most probable, and 01 is the first of them."""
    probability = np.array([[0.5, 0.5], [0.2, 0.8]], np.float32)
    population = np.array([[0, 1], [0, 0], [0, 1], [1, 1]], np.int32)
    best = jax.jit(cem.best_choices)
    assert best(probability, population[1:], np.ones(3, np.float32)).tolist() == [0, 1]
    assert best(probability, population[::-1], np.ones(4, np.float32)).tolist() == [1, 1]
    assert best(probability, population, np.array([0, 2, 2, 1], np.float32)).tolist() == [0, 1]
    assert best(probability, population, np.array([np.nan, 2, 1, np.inf], np.float32)).tolist() == [0, 0]
    # A proposal may have probability 0.
    never = np.array([[1.0, 0.0], [1.0, 0.0]], np.float32)
    assert best(never, population, np.array([0, 0, 0, 3], np.float32)).tolist() == [1, 1]


@pytest.mark.parametrize("method", ["cem", "mppi"])
@pytest.mark.parametrize("floor", [0.0, 0.2])
def test_the_floor_keeps_a_choice_alive(method, floor):
    """Choice 0 is the best for two plans, then choice 3: without a floor no candidate has it any more."""
    if method == "cem":
        config = CEMConfig(horizon=2, population=60, elites=3, iterations=4, momentum=0.0, floor=floor)
        planner = cem.make(config, SPACE)
    else:
        config = MPPIConfig(horizon=2, population=60, iterations=4, temperature=1e-3, floor=floor)
        planner = mppi.make(config, SPACE)
    best, seen = [0], []
    problem = problem_of_score(scored(lambda x: (x == best[0]).sum(axis=1), seen), SPACE)
    plan = jax.jit(lambda state, key: planner.plan(problem, state, key))
    # The plan's last step is always uniform again, so the first step of the shifted plan is the one to look at.
    _, state, _ = jax.block_until_ready(plan(planner.init(), jax.random.key(0)))
    assert np.min(state.probability[0]) == pytest.approx(floor / N, abs=1e-6)
    best[0] = 3
    seen.clear()
    actions, _, _ = jax.block_until_ready(plan(state, jax.random.key(1)))
    assert (int(actions[0]) == 3) == (floor > 0)
    assert np.any(np.concatenate(seen)[:, 0] == 3) == (floor > 0)


@pytest.mark.parametrize(
    "planner", [cem.make(CEMConfig(horizon=2), Discrete(3)), mppi.make(MPPIConfig(horizon=2), Discrete(3))]
)
def test_where_nothing_is_finite_the_most_probable_choices_are_the_plan(planner):
    problem = problem_of_score(lambda actions, key: jnp.nan * jnp.sum(actions), Discrete(3))
    state = categorical.PlanState(jnp.array([[0.2, 0.1, 0.7], [0.1, 0.6, 0.3]]))
    actions, after, statistics = jax.jit(lambda: planner.plan(problem, state, jax.random.key(0)))()
    assert actions.tolist() == [2, 1] and int(statistics["nonfinite"]) > 0
    assert np.isfinite(after.probability).all()


@pytest.mark.parametrize("method", ["cem", "mppi"])
def test_an_open_loop_policy_plays_choices(method):
    """A walk on the integers that is paid for being near 2, from -1: the plan of 3 is right, right, right."""

    def step(carry, action, key):
        after = carry + action.astype(float) - 1
        no = jnp.zeros((), bool)
        return after, Transition(carry, action, -jnp.abs(after[0] - 2), after, no, no)

    world = World(reset=None, start=lambda origin, key: origin, observe=lambda carry: carry, step=step)
    if method == "cem":
        planner = cem.make(CEMConfig(horizon=H, population=100, elites=5, iterations=2), Discrete(3))
    else:
        planner = mppi.make(MPPIConfig(horizon=H, population=100, iterations=2, temperature=0.1), Discrete(3))
    policy = open_loop_policy(planner, world, lambda observation: observation, Discrete(3))
    memory, act, played = policy.init(jax.random.key(0)), jax.jit(policy.act), []
    for i in range(H):
        # Feedback is not used: the observation is that of the start.
        action, _, memory = act(memory, np.array([-1.0], np.float32), jax.random.key(i))
        assert action.dtype == jnp.int32 and action.shape == ()
        played.append(int(action))
    assert played == [2, 2, 2] and int(memory.played) == H
