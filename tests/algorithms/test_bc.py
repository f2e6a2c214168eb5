"""Behaviour cloning: each update is that of the part on rows of the file, and nothing else is used."""

import jax
import numpy as np
import pytest
from command_line import call

import jaxmbrl
from jaxmbrl import envs
from jaxmbrl.agents import behaviour_cloning
from jaxmbrl.agents.behaviour_cloning import CloningConfig
from jaxmbrl.algorithms.model_free import bc
from jaxmbrl.core.config import UserError, check
from jaxmbrl.core.types import Clock, Transition
from jaxmbrl.data import dataset, replay

ROWS = 40


def table(seed=0):
    """Actions tanh(sum of the observation) / 2."""
    rng = np.random.default_rng(seed)
    observation = rng.normal(size=(ROWS, 3)).astype(np.float32)
    none = np.zeros(ROWS, bool)
    return Transition(
        observation,
        0.5 * np.tanh(observation.sum(axis=1, keepdims=True)),
        np.zeros(ROWS, np.float32),
        observation,
        none,
        none,
    )


def test_a_call_is_updates_of_the_part_on_sampled_rows_of_the_file():
    config = bc.Config(agent=CloningConfig(hidden=(8,)), batch_size=6, updates_per_step=2)
    algorithm = bc.make(config, envs.make("pendulum"), table())
    learner = behaviour_cloning.make(config.agent, 3, 1)
    state = algorithm.init(jax.random.key(0), {})
    other = jax.tree.map(lambda leaf: leaf[:1, None], table(1))
    found, metrics = jax.jit(algorithm.learn)(Clock(np.int32(1)), state, other)

    expected, (_, key) = state.agent, jax.random.split(state.key)
    for update_key in jax.random.split(key, 2):
        sample_key, _ = jax.random.split(update_key)
        batch = replay.sample(replay.of_rows(table()), sample_key, 6)
        expected = learner.update(expected, batch, sample_key)[0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found.agent.params, expected.params)
    assert found.replay == () and set(metrics) == {"cloning/loss"}
    with pytest.raises(UserError, match="actor_delay must be 1: there are no critics"):
        check(bc.Config(actor_delay=2))


def test_a_run_from_a_file_ends_with_its_return_and_score(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dataset.save(tmp_path / "rows.npz", table(), "pendulum")
    words = (
        "--env pendulum --data rows.npz --steps 10 --epoch-steps 5 --eval-episodes 2 --agent.hidden 8 --seeds 2 --out run"
    )
    code, out, err = call("train", "bc", *words.split())
    assert code == 0, err
    (line,) = [line for line in out.splitlines() if "return of the final policy" in line]
    returns = [float(value) for value in line[line.index("(") + 1 : line.index(")")].split(",")]
    (line,) = [line for line in out.splitlines() if "normalised score" in line]
    scores = [float(value) for value in line[line.index("(") + 1 : line.index(")")].split(",")]
    assert len(returns) == 2 and "10 steps on all transitions of" in out
    from jaxmbrl.training.scores import REFERENCES

    reference = REFERENCES["pendulum"]
    for value, score in zip(returns, scores, strict=True):
        assert score == pytest.approx(100 * (value - reference.random) / (reference.expert - reference.random), abs=0.1)


def test_a_run_without_a_file_is_refused_in_a_line(tmp_path, monkeypatch):
    """Otherwise the policy would imitate its own random actions."""
    monkeypatch.chdir(tmp_path)
    message = "bc has no actions to imitate: name a file of transitions, --data FILE; 'jaxmbrl collect --env pendulum "
    with pytest.raises(UserError, match=message):
        jaxmbrl.train("bc", "pendulum", steps=1000)
    code, out, err = call("train", "bc", "--env", "pendulum", "--steps", "1000")
    assert (code, out) == (2, "") and message in err and len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())
