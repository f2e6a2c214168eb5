"""A method that the engine has never seen: its probes in the metrics, its views in checkpoints and reports."""

import io
import json
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from annotated_types import Gt

import jaxmbrl
from jaxmbrl import algorithms, envs
from jaxmbrl.algorithms import Method
from jaxmbrl.algorithms.presets import Preset
from jaxmbrl.core.config import Traced, UserError
from jaxmbrl.core.types import Algorithm, Average, CriticView, Policy, Views, flatten, row_like
from jaxmbrl.data import dataset, replay
from jaxmbrl.report import build, diagnosing
from jaxmbrl.training import checkpointing, devices, loop, probing, programs, runner
from jaxmbrl.training.console import Progress

EPOCH, STEPS, SEED = 10, 40, 3
RATES = (1.0, 3.0)


@dataclass(frozen=True)
class Config:
    """Of a toy that counts."""

    num_envs: int = 1
    warmup_steps: int = 0
    epoch_steps: int = EPOCH
    eval_every: int = 2
    rate: Annotated[float, Gt(0), Traced] = 1.0
    model: Literal["learned", "true"] = "learned"
    probe: str = "steps_to_goal"

    def uses_true_model(self) -> bool:
        """Whether it uses the true simulator."""
        return self.model == "true"

    def with_model(self, model: str) -> Any:
        """The same with another model."""
        return replace(self, model=model)


class State(NamedTuple):
    rate: jax.Array
    count: jax.Array
    buffer: replay.Replay
    dreams: dict


def make(config, task):
    """Counts calls of `learn` times a traced rate; acts with 0.5, or with 0.25 where it uses the true simulator."""
    act_with = 0.25 if config.model == "true" else 0.5

    def init(key, hyper, data):
        rate = jnp.asarray(hyper.get("rate", config.rate), float)
        dreams = {"many": jnp.arange(5.0) * rate, "few": jnp.zeros(2)}
        return State(rate, jnp.zeros(()), replay.init(row_like(task), 100), dreams)

    def policy(state, clock, explore):
        return Policy(lambda key: (), lambda memory, observation, key: (jnp.full(1, act_with), (), memory))

    def learn(clock, state, transitions):
        buffer = replay.add(state.buffer, flatten(transitions))
        dreams = state.dreams | {"many": state.dreams["many"] + 1}
        return State(state.rate, state.count + state.rate, buffer, dreams), {"toy/count": Average.of(state.count)}

    def probes(state):
        known = state.count > 20
        return {config.probe: Average.of(100 - state.count), "toy/late": Average.of(state.count, known)}

    def views(state):
        def value(observation):
            return jnp.sum(observation, axis=-1)

        def act(memory, observation, key):
            return jnp.full(1, 0.5), 2.0 * jnp.ones(observation.shape[:-1]), memory

        critic = CriticView(
            policy=Policy(lambda key: (), act),
            action_value=lambda observation, action, key: value(observation) + action[..., 0],
            value=lambda observation, key: 10.0 * value(observation),
            discount=0.5 + 0.0 * state.rate,
        )
        return Views(replay=state.buffer, critic=critic, reproducible=state.dreams["many"])

    return Algorithm(init, policy, learn, 2, probes, views)


@pytest.fixture(scope="module", autouse=True)
def toy():
    with pytest.MonkeyPatch.context() as patch:
        presets = {"tiny": Preset(Config(), "none", STEPS)}
        patch.setitem(algorithms.METHODS, "toy", Method(make, Config, presets, summary="a toy"))
        yield


def train(out, **fields):
    given = {"checkpoint": {"every": 1, "model_buffer": False}, "eval_episodes": 1, **fields}
    return jaxmbrl.train("toy", "pendulum", seeds=2, seed=SEED, out=out, hyper={"rate": RATES}, **given)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(folder, rows, what the console said) of a run with an evaluation every second epoch."""
    run, said = tmp_path_factory.mktemp("runs") / "toy", io.StringIO()
    return run, train(run, progress=Progress(STEPS, 2, out=said)).rows, said.getvalue()


def test_probes_are_metrics_of_the_epochs_with_an_evaluation(trained):
    """`learn` is called every 2 steps: after 20 steps the count is 10 times the rate, after 40 steps 20 times."""
    _, rows, _ = trained
    found = {(row["env_steps"], row["seed"]): row.get("steps_to_goal") for row in rows}
    assert found == {
        **{(steps, seed): None for steps in (10, 30) for seed in (3, 4)},
        **{(20, 3): 90.0, (20, 4): 70.0, (40, 3): 80.0, (40, 4): 40.0},
    }
    late = {(row["env_steps"], row["seed"]): row["toy/late"] for row in rows if "toy/late" in row}
    assert late == {(20, 4): 30.0, (40, 4): 60.0}, "a probe without weight is unknown"
    assert all(("eval/return" in row) == ("steps_to_goal" in row) for row in rows)


def test_the_console_and_the_report_show_probes(trained):
    run, _, said = trained
    lines = [line for line in said.splitlines() if line.startswith("epoch")]
    assert ["steps_to_goal 80" in line for line in lines] == [False, True, False, False]
    assert "steps_to_goal 60, toy/late 60" in lines[3]
    assert any(line.startswith("compiled probes in ") for line in said.splitlines())
    page = build.make([run], rollouts=False).decode()
    assert '"title":"steps_to_goal"' in page and '"title":"toy/late"' in page and '"title":"toy/count"' in page
    assert '"title":"env_steps"' not in page and '"title":"frozen"' not in page


@pytest.mark.parametrize("name", ["eval/return", "env_steps", "time/probe", "toy/count", "train/return"])
def test_a_probe_does_not_replace_another_value(name, tmp_path):
    with pytest.raises(UserError, match=f"a probe must not be called '{name}'"):
        train(tmp_path / "run", settings={"probe": name})
    assert not (tmp_path / "run").exists()


def test_without_probes_nothing_is_compiled():
    def refuse(*_):
        raise AssertionError("compiled")

    algorithm = make(Config(), envs.make("pendulum"))._replace(probes=lambda state: {})
    state = jax.eval_shape(jax.vmap(lambda seed: algorithm.init(jax.random.key(seed), {}, None)), jnp.arange(2))
    assert probing.prober(algorithm, refuse, state, devices.single_device(2))(state) == {}


def test_a_checkpoint_leaves_out_what_views_call_reproducible(trained):
    run, rows, _ = trained
    manifest = json.loads((run / "checkpoints" / "00000040" / "manifest.json").read_text())["manifest"]
    left_out = [leaf["path"] for leaf in manifest["leaves"] if leaf.get("left_out")]
    assert left_out == [".algorithm.dreams['many']"]
    again = jaxmbrl.resume(run, steps=60)
    np.testing.assert_array_equal(again.state.count, [30.0, 90.0])
    # Of the start, at the rate that is not traced, and 10 calls since the checkpoint.
    np.testing.assert_array_equal(again.state.dreams["many"], np.tile(np.arange(5.0), (2, 1)) + 10)
    assert again.rows[: len(rows)] == rows


def test_leaves_are_known_by_their_identity():
    x, y = jnp.ones(3), jnp.ones(3)
    state = {"a": x, "b": {"c": y, "d": jnp.ones(3)}, "key": jax.random.key(0)}
    assert checkpointing.paths_of((), state) == set()
    assert checkpointing.paths_of(state["b"], state) == {"['b']['c']", "['b']['d']"}
    assert checkpointing.paths_of((y, state["key"]), state) == {"['b']['c']", "['key']"}
    assert checkpointing.paths_of(x, {"a": x, "b": x}) == set(), "the same array is also another part"
    assert checkpointing.paths_of((x, x), {"a": x, "b": x}) == {"['a']", "['b']"}
    with pytest.raises(ValueError, match="leaves of the state itself"):
        checkpointing.paths_of(x + 0, state)


def test_views_are_diagnosed(trained):
    """The critic's values beside returns at a discount of 0.5, with a bonus of 2 for each later action."""
    run, _, _ = trained
    found = diagnosing.diagnose(run)
    assert found.model is None and found.errors is None and found.imagined is None and found.notes == ()
    np.testing.assert_array_equal(found.stored, np.full((len(found.stored), 1), 0.5))
    assert len(found.stored) in (20, 40, 60) and found.critic.soft and found.critic.discount == 0.5
    assert not found.critic.ends_by_critic
    rows, bias = found.rows, found.critic.bias
    # The critic's policy acts as the deterministic one does, so that its episodes are the same; 5 % of a return are unknown
    # with fewer than 5 steps left of the 200.
    known = np.arange(1000) % 200 < 196
    np.testing.assert_allclose(bias.q, rows.observation.sum(axis=1)[known] + 0.5, rtol=1e-5)
    reward = rows.reward[:200].astype(float)
    powers = 0.5 ** np.arange(100)
    due = np.sum(powers * reward[:100]) + np.sum(2.0 * powers[1:])
    assert bias.returns[0] == pytest.approx(due, rel=1e-5)


def test_a_policy_that_is_evaluated_has_the_clock_of_its_checkpoint(monkeypatch, tmp_path):
    def made(config, task):
        algorithm = make(config, task)

        def policy(state, clock, explore):
            action = jnp.asarray(clock.env_steps, float)[None] / 100
            return Policy(lambda key: (), lambda memory, observation, key: (action, (), memory))

        return algorithm._replace(policy=policy)

    monkeypatch.setitem(algorithms.METHODS, "toy", algorithms.METHODS["toy"]._replace(make=made))
    result = train(tmp_path / "run", steps=20)
    for policy, state in ((result.policy, result.state), jaxmbrl.load(tmp_path / "run")[:2]):
        action, _, _ = policy(jax.tree.map(lambda x: x[0], state)).act((), jnp.zeros(3), jax.random.key(0))
        assert action == pytest.approx(0.2)
    rows = diagnosing.diagnose(tmp_path / "run").rows
    np.testing.assert_allclose(rows.action, 0.2, rtol=1e-6)


def test_a_method_that_can_use_the_true_simulator(trained, tmp_path):
    run, _, _ = trained
    for model, action in ((None, 0.5), ("learned", 0.5), ("true", 0.25)):
        program, states, *_ = runner.trained(run, model)
        policy = program.algorithm.policy(jax.tree.map(lambda x: x[0], states), loop.clock_at(0), False)
        assert policy.act((), jnp.zeros(3), jax.random.key(0))[0] == pytest.approx(action)
    with pytest.raises(UserError, match="model must be 'learned' or 'true', got 'false'"):
        runner.trained(run, "false")
    train(tmp_path / "true", steps=10, settings={"model": "true"})
    with pytest.raises(UserError, match="planned in the true simulator and did not learn a model: leave model out"):
        runner.trained(tmp_path / "true", "learned")
    task = envs.make("pendulum")
    rows = jax.tree.map(lambda leaf: jnp.zeros((20, *leaf.shape), leaf.dtype), row_like(task))
    dataset.save(tmp_path / "rows.npz", rows, "pendulum")
    with pytest.raises(UserError, match="model must be 'learned' with data"):
        programs.build(programs.configure("toy", "pendulum", settings={"model": "true"}, data=tmp_path / "rows.npz"))
