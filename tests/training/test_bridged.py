"""The bridged loop: against the fused one where the randomness is the same, and what only a host environment can do."""

import contextlib
import json
import shutil
from typing import ClassVar

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_method
from command_line import call, options, untimed

import jaxmbrl
from jaxmbrl import envs
from jaxmbrl.agents import episode_trials
from jaxmbrl.agents.normalization import NormalizedState
from jaxmbrl.agents.on_policy import OnPolicyState
from jaxmbrl.algorithms.model_free import sac
from jaxmbrl.algorithms.shooting import pets
from jaxmbrl.core.config import from_dict
from jaxmbrl.core.types import Algorithm, HostStep, Policy, row_like
from jaxmbrl.data import experience, replay, sequences
from jaxmbrl.envs.bridges import gymnasium_task
from jaxmbrl.training import bridged, devices, loop, runner
from jaxmbrl.training.hosted import host_seed

SMALL = {"batch_size": 8, "replay_capacity": 200, "warmup_steps": 40, "num_envs": 2, "epoch_steps": 40}
SAC = {
    "agent": {"hidden": (8, 8)},
    "batch_size": 8,
    "replay_capacity": 200,
    "warmup_steps": 40,
    "num_envs": 2,
    "epoch_steps": 40,
}
PETS = {
    "ensemble": {"members": 2, "elites": 2, "hidden": (8,), "max_epochs": 2, "batch_size": 16},
    "planner": {"cem": {"horizon": 4, "population": 10, "elites": 3, "iterations": 2, "momentum": 0.1}},
    "particles": 2,
    "refit_every": 20,
    "warmup_steps": 20,
    "replay_capacity": 200,
    "epoch_steps": 40,
}
TRAINED = {
    "batch_size": 8,
    "replay_capacity": 400,
    "warmup_steps": 50,
    "epoch_steps": 100,
    "eval_every": 2,
}

pytestmark = pytest.mark.usefixtures("compile_cache")


def plain(what, function, *arguments):
    return function


def by_seeds(task):
    """`task` whose resets follow from the seed that a host environment would be given."""
    reset = task.world.reset
    return task._replace(world=task.world._replace(reset=lambda key: reset(jax.random.key(host_seed(key)))))


def exported(task):
    """The same task as one that lives on the host: its own compiled World behind the host's interface."""
    reset, step = jax.jit(task.world.reset), jax.jit(task.world.step)

    class Host:
        def reset(self, seed):
            self.carry = reset(jax.random.key(seed))
            return np.asarray(task.world.observe(self.carry))

        def step(self, action):
            self.carry, row = step(self.carry, jnp.asarray(action), jax.random.key(0))
            told = (row.next_observation, float(row.reward), bool(row.terminated), bool(row.truncated))
            return HostStep(np.asarray(told[0]), *told[1:])

        def close(self):
            pass

    outside = gymnasium_task._world(task.name)
    return task._replace(world=outside, host=Host)


@pytest.mark.parametrize(
    ("method", "settings", "calls"),
    [
        (small_method, SMALL, 80),
        pytest.param(sac, SAC, 45, marks=pytest.mark.promises),
        pytest.param(pets, PETS, 4, marks=pytest.mark.slow),
    ],
)
def test_both_loops_train_alike(method, settings, calls):
    """Terminations, resets, warm-up and learning included."""
    task, config = envs.make("cartpole-continuous"), from_dict(method.Config, settings)
    fused = loop.make(method.make(config, task), by_seeds(task), config)
    hosts = bridged.make(method.make(config, exported(task)), exported(task), config)
    assert fused.checked == hosts.checked
    assert fused.steps_per_call == hosts.steps_per_call
    seeds, finished = jnp.array([3, 8]), 0.0
    states, theirs = jax.jit(fused.init)(seeds, {}), jax.jit(hosts.init)(seeds, {})
    clock, run = loop.clock_at(0), jax.jit(fused.run)
    with contextlib.ExitStack() as closing:
        run_hosts = hosts.compiled(plain, closing, clock, theirs, devices.single_device(2))
        their_clock = clock
        for _ in range(2):
            half = jnp.asarray(calls // 2, jnp.int32)
            (clock, states), (their_clock, theirs) = run(clock, states, half), run_hosts(their_clock, theirs, half)
            finished += float(states.metrics["train/return"].weight.sum())
            mine, others = (s._replace(carry=(), key=jax.random.key_data(s.key)) for s in (states, theirs))
            others_by_path = dict(jax.tree_util.tree_leaves_with_path(others))
            for path, leaf in jax.tree_util.tree_leaves_with_path(mine):
                a, b = (
                    jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
                    for x in (leaf, others_by_path[path])
                )
                np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5, err_msg=jax.tree_util.keystr(path))
    assert int(clock.env_steps) == int(their_clock.env_steps) == 2 * (calls // 2) * fused.steps_per_call
    assert finished >= 2


class Mass(gymnasium.Env):
    """A mass on a line (m, m/s), pushed; gone beyond 2 m. Each notes with which seeds it began, and its steps.

    Those in `broken` answer with NaN from their 60th step on; those in `failing` raise there.
    """

    made: ClassVar[list] = []
    broken: ClassVar[set] = set()
    failing: ClassVar[set] = set()

    def __init__(self):
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,))
        self.action_space = gymnasium.spaces.Box(-3.0, 3.0, (1,))
        self.number, self.seeds, self.steps, self.closed = len(Mass.made), [], 0, False
        Mass.made.append(self)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.at = self.np_random.uniform(-1.0, 1.0, 2)
        return self.at.astype(np.float32), {}

    def step(self, action):
        self.steps += 1
        self.at = self.at + 0.1 * np.array([self.at[1], action[0]])
        if self.steps >= 60 and self.number in Mass.failing:
            raise RuntimeError("the cable is\nloose")
        seen = np.full(2, np.nan) if self.steps >= 60 and self.number in Mass.broken else self.at
        return seen.astype(np.float32), -float(self.at[0] ** 2), bool(abs(self.at[0]) > 2), False, {}

    def close(self):
        self.closed = True


@pytest.fixture
def mass(monkeypatch):
    """The mass as the task `mass`, of 30 steps; what is broken is set by number, and 0 is made to read the spaces."""
    monkeypatch.setattr(Mass, "made", [])
    monkeypatch.setattr(Mass, "broken", set())
    monkeypatch.setattr(Mass, "failing", set())
    monkeypatch.setitem(envs.TASKS, "mass", lambda: envs.from_gymnasium(Mass, "mass", episode_length=30))
    return Mass


def train(**changes):
    given = {"steps": 200, "seeds": 2, "seed": 5, "eval_episodes": 2, "settings": TRAINED} | changes
    return jaxmbrl.train("linear", "mass", **given)


@pytest.mark.promises
def test_the_same_run_twice_gives_the_same_rows_and_other_seeds_others(mass):
    first, again = train(), train()
    assert untimed(first.rows) == untimed(again.rows)
    assert [row["epoch"] for row in first.rows] == [1, 1, 2, 2]
    assert first.rows[0]["train/return"] != first.rows[1]["train/return"]
    assert first.rows[0]["train/episodes"] > 2
    assert "eval/return" in first.rows[2]
    assert all(env.closed for env in mass.made)
    # One to read the spaces, one of each seed, then those of the evaluation: twice the same.
    assert [env.seeds for env in mass.made[:7]] == [env.seeds for env in mass.made[7:]]
    assert mass.made[0].seeds == []
    began = [seed for env in mass.made[1:3] for seed in env.seeds]
    assert len(set(began)) == len(began) > 8
    # An evaluation begins alike for every seed, and each of its episodes elsewhere.
    assert mass.made[3].seeds == mass.made[5].seeds != mass.made[4].seeds == mass.made[6].seeds


def drawing(task):
    """An algorithm that learns nothing, and draws its actions."""

    def act(memory, observation, key):
        return task.action.sample(key), (), memory

    policy = Policy(lambda key: (), act)
    return Algorithm(
        lambda key, hyper, data: jnp.zeros(()), lambda state, clock, explore: policy, lambda c, s, rows: (s, {}), 5
    )


def begun(mass, seeds, calls=20):
    """The seeds of all episodes of each environment, two of each seed."""
    task, config = envs.make("mass"), from_dict(small_method.Config, SMALL)
    mass.made.clear()
    made = bridged.make(drawing(task), task, config)
    state = jax.jit(made.init)(jnp.asarray(seeds), {})
    with contextlib.ExitStack() as closing:
        run = made.compiled(plain, closing, loop.clock_at(0), state, devices.single_device(2))
        run(loop.clock_at(0), state, jnp.asarray(calls, jnp.int32))
    assert all(env.steps == 5 * calls for env in mass.made)
    return [env.seeds for env in mass.made]


def test_a_seed_has_the_same_episodes_whatever_the_other_seeds(mass):
    both = begun(mass, [5, 6])
    assert begun(mass, [6]) == both[2:]
    every = [seed for seeds in both for seed in seeds]
    assert len(set(every)) == len(every) > 12


def test_a_seed_whose_environment_breaks_is_frozen_and_the_others_go_on_as_without_it(mass):
    sound = train()
    mass.made.clear()
    mass.broken = {1}
    with_fault = train()
    assert [row.get("frozen", False) for row in with_fault.rows] == [True, False, True, False]
    assert untimed(with_fault.rows)[1::2] == untimed(sound.rows)[1::2]
    for a, b in zip(*(jax.tree.leaves(r.state.learner) for r in (sound, with_fault)), strict=True):
        np.testing.assert_array_equal(a[1], b[1])
    # The policy saw NaN once; nothing that it then said was played.
    assert mass.made[1].steps == 60
    assert mass.made[2].steps == 200


def test_an_environment_that_raises_is_named_and_the_run_can_go_on(mass, tmp_path):
    out = tmp_path / "run"
    small = {**TRAINED, "eval_every": 0}
    train(out=out, settings=small, steps=100, checkpoint={"every": 1})
    mass.made.clear()
    mass.failing = {1}
    code, _, err = call("train", "--resume", out, "--steps", 200)
    assert code == 2
    assert "task 'mass': step fails with RuntimeError: the cable is loose" in err
    assert len([line for line in err.splitlines() if "cable" in line]) == 1
    assert all(env.closed for env in mass.made)
    mass.made.clear()
    mass.failing = set()
    assert runner.resume(out, steps=200).rows[-1]["env_steps"] == 200


def test_a_resume_begins_new_episodes_says_so_and_neither_doubles_nor_skips_a_row(mass, tmp_path):
    out, copy = tmp_path / "run", tmp_path / "copy"
    train(out=out)
    begun = {seed for env in mass.made for seed in env.seeds}
    shutil.copytree(out, copy)
    mass.made.clear()
    code, _, err = call("train", "--resume", out, "--steps", 400)
    assert (code, err) == (0, "")
    # After the one that the spaces are read from, those of the two seeds.
    assert not begun & {seed for env in mass.made[1:3] for seed in env.seeds}
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [(row["epoch"], row["seed"]) for row in rows] == [(e, s) for e in (1, 2, 3, 4) for s in (5, 6)]
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    warned = [event["text"] for event in events if event["kind"] == "warning"]
    assert warned == ["the resume is not exact: checkpoints do not contain the state of mass, so new episodes begin"]
    assert untimed(runner.resume(copy, steps=400).rows) == untimed(rows)
    # Nothing is left to do: no episode begins, and nothing need be said.
    assert untimed(runner.resume(copy).rows) == untimed(rows)
    assert sum("not exact" in line for line in (copy / "events.jsonl").read_text().splitlines()) == 1


def test_a_resume_tells_buffers_of_sequences_that_new_episodes_begin(mass):
    task, config = envs.make("mass"), from_dict(small_method.Config, SMALL)
    buffer = sequences.init(row_like(task), config.num_envs, 8)
    made = bridged.make(drawing(task)._replace(init=lambda key, hyper, data: {"rows": buffer, "key": key}), task, config)
    states = jax.jit(made.init)(jnp.arange(2), {})
    rows = jax.tree.map(lambda x: np.zeros((3, config.num_envs, *x.shape), x.dtype), row_like(task))
    filled = jax.jit(jax.vmap(lambda buffer: sequences.add(buffer, rows)))(states.algorithm["rows"])
    states = states._replace(algorithm=states.algorithm | {"rows": filled})
    assert bridged._with_new_episodes(loop.clock_at(0), states, config.num_envs) is states
    found = bridged._with_new_episodes(loop.clock_at(3), states, config.num_envs).algorithm
    due = jax.vmap(lambda buffer: buffer.interrupted(config.num_envs))(filled)
    jax.tree.map(np.testing.assert_array_equal, found["rows"], due)
    assert found["key"] is states.algorithm["key"] and due.rows.truncated.sum() == 2 * config.num_envs


@pytest.mark.parametrize("part", ["normalized", "on-policy", "trials", "experience"])
def test_a_resume_tells_all_parts_with_sums_of_an_episode(part, mass):
    """What was earned before the interruption is not of the episodes that begin, and demonstrations have no part in it."""
    ones, rows = (
        jnp.ones((2, 3)),
        jax.tree.map(lambda x: jnp.zeros((2, 8, *jnp.shape(x)), jnp.asarray(x).dtype), row_like(envs.make("mass"))),
    )
    own = jax.vmap(replay.of_rows)(rows)
    state, sums = {
        "normalized": (NormalizedState(*[ones] * 4), "running_return"),
        "on-policy": (OnPolicyState(*[ones] * 6), "running_return"),
        "trials": (episode_trials.Trials(*[ones] * 4, ones), "running"),
        "experience": (experience.Experience(own, own), None),
    }[part]
    task, config = envs.make("mass"), from_dict(small_method.Config, SMALL)
    states = bridged.make(drawing(task), task, config).init(jnp.arange(2), {})._replace(algorithm={"part": state})
    found = bridged._with_new_episodes(loop.clock_at(3), states, 3).algorithm["part"]
    if sums is None:
        jax.tree.map(np.testing.assert_array_equal, found.demonstrations, own)
        assert found.own.data.truncated.sum() == 2 * 3
    else:
        assert not np.any(getattr(found, sums))
        jax.tree.map(np.testing.assert_array_equal, found._replace(**{sums: ones}), state)


def test_what_is_not_finite_never_reaches_an_environment(mass):
    task = envs.make("mass")
    hosts = bridged._Hosts(task, np.arange(4, dtype=np.uint32).reshape(2, 2))
    action = np.array([[[0.5], [np.nan]], [[0.25], [-1.0]]], np.float32)
    seeds = np.zeros((2, 2), np.uint32)
    states = bridged.make(drawing(task), task, from_dict(small_method.Config, SMALL)).init(jnp.arange(2), {})
    # Seed 1 met a fault before.
    states = states._replace(fault=states.fault._replace(what=jnp.array([-1, 0], jnp.int32)))
    before = hosts.seen().observation
    got = hosts.collect(lambda *given: (action, (), (), seeds), loop.clock_at(0), states, 3)
    assert [env.steps for env in mass.made[1:]] == [3, 0, 0, 0]
    rows = got.transitions
    assert rows.observation.shape == (2, 3, 2, 2)
    np.testing.assert_array_equal(rows.next_observation[1], np.broadcast_to(before[1], (3, 2, 2)))
    assert not rows.reward[1].any()
    # 0.5 of the bound of 3 m/s2, for 0.1 s, three times.
    np.testing.assert_allclose(rows.next_observation[0, :, 0, 1] - before[0, 0, 1], [0.15, 0.3, 0.45], rtol=1e-5)


def test_the_command_line_says_that_it_is_slower_and_planning_in_it_is_refused(tmp_path, monkeypatch):
    settings = {**TRAINED, "eval_every": 0, "num_envs": 2}
    monkeypatch.chdir(tmp_path)
    code, out, err = call("train", "linear", "--env", "gymnasium/Pendulum-v1", *options(settings), "--steps", 100)
    assert (code, err) == (0, "")
    run = tmp_path / "runs" / "linear-gymnasium-Pendulum-v1-1"
    assert "gymnasium/Pendulum-v1 runs outside of the compiled program" in out
    assert "episodes have at most 200 steps" in out
    code, out, err = call("evaluate", run, "--episodes", 2, "--json")
    assert (code, err) == (0, "")
    assert "played in Gymnasium 1." in out and "MuJoCo" not in out
    assert json.loads(out.splitlines()[-1])["backend"] == "gymnasium"
    code, out, err = call("evaluate", run, "--backend", "jax")
    assert code == 2 and "leave the backend out" in err
    code, _, err = call("train", "pets", "--env", "gymnasium/Pendulum-v1", "--model", "true")
    assert code == 2 and "model 'true' plans in the true simulator" in err and err.count("\n") == 1
    for method in ("td3", "svg"):
        code, _, err = call("train", method, "--env", "gymnasium/CartPole-v1")
        assert (code, err.count("\n")) == (2, 1)
        assert f"{method} takes vectors, and the actions of task 'gymnasium/CartPole-v1' are Discrete(n=2)" in err
