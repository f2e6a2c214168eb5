"""Runs on tasks of discrete actions, from training to the report: a linear Q-learner with a replay buffer."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxmbrl import algorithms, cli, envs
from jaxmbrl.algorithms import Method, Preset
from jaxmbrl.algorithms.shared import LoopSettings
from jaxmbrl.core.spaces import encode, encoded_size
from jaxmbrl.core.types import Algorithm, Average, Policy, Views, flatten, row_like
from jaxmbrl.data import dataset, replay

KINDS = {"FrozenLake": (), "CartPole-v1": pytest.mark.promises}


@dataclass(frozen=True)
class Config(LoopSettings):
    """Of linear Q-learning."""

    epoch_steps: int = 100
    eval_every: int = 1


class State(NamedTuple):
    weights: jax.Array
    replay: replay.Replay


def make(config, task):
    """Q(s, a) = w_a s of the encoded observation, by one step of gradient descent for each transition."""

    def values(weights, observation):
        return encode(task.observation, observation) @ weights

    def policy(state, clock, explore):
        def act(memory, observation, key):
            greedy = jnp.argmax(values(state.weights, observation)).astype(jnp.int32)
            explores = jax.random.bernoulli(key, 0.3 if explore else 0.0)
            return jnp.where(explores, task.action.sample(jax.random.fold_in(key, 1)), greedy), (), memory

        return Policy(lambda key: (), act)

    def init(key, hyper, data=None):
        shape = (encoded_size(task.observation), task.action.n)
        return State(0.01 * jax.random.normal(key, shape), replay.init(row_like(task), 1000))

    def learn(clock, state, transitions):
        rows = flatten(transitions)
        following = jnp.where(rows.terminated, 0.0, values(state.weights, rows.next_observation).max(axis=-1))

        def loss(weights):
            chosen = jnp.take_along_axis(values(weights, rows.observation), rows.action[:, None], axis=-1)[:, 0]
            return jnp.mean((rows.reward + 0.9 * following - chosen) ** 2)

        error, gradient = jax.value_and_grad(loss)(state.weights)
        return State(state.weights - 0.01 * gradient, replay.add(state.replay, rows)), {"error": Average.of(error)}

    return Algorithm(init, policy, learn, period=1, views=lambda state: Views(replay=state.replay))


METHOD = Method(
    make, Config, {"default": Preset(Config(), "none", 300)}, summary="linear Q-learning", takes=("discrete actions",)
)


@pytest.fixture
def known(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    algorithms.register("linear-q", METHOD)
    yield
    algorithms.unregister("linear-q")


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks) for name, marks in KINDS.items()])
def test_a_run_is_evaluated_filmed_reported_and_collected_from(known, name, capsys, tmp_path):
    commands = (
        f"train linear-q --env {name} --seeds 2 --steps 300 --out run",
        "evaluate run --episodes 3 --video film.gif",
        "report run --out page.html",
        "collect --policy run --explore --out rows.npz --steps 200",
        "train --resume run --steps 400",
    )
    for words in commands:
        assert cli.main(words.split()) == 0, capsys.readouterr()
    task = envs.make(name)
    with Image.open(tmp_path / "film.gif") as film:
        assert film.n_frames > 3
    assert name in (tmp_path / "page.html").read_text(encoding="utf-8")
    found = dataset.load(tmp_path / "rows.npz")
    dataset.check_fits(found, task)
    assert found.rows.action.dtype == np.int32 and found.rows.action.shape == (200,)
    assert set(found.rows.action) == set(range(task.action.n))
