"""The files act as the policies, in each format, and programs that load them need no part of this package."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_policies import KINDS, episodes, made

from jaxmbrl.exporting import loaders
from jaxmbrl.exporting.formats import FORMATS
from jaxmbrl.exporting.policies import deterministic, samples
from jaxmbrl.training.loop import clock_at


@pytest.fixture(scope="module")
def played():
    return episodes()


def loaded(kind, to, folder):
    """(act, initial memory or None, metadata) of the program that loads the exported policy of a kind."""
    algorithm, task = made(kind)
    policy = deterministic(algorithm, task, (), clock_at(0))
    about = {
        "observation": {"shape": list(policy.observation.shape), "dtype": policy.observation.dtype.name},
        "action": {"dtype": policy.action.dtype.name},
        "memory": [
            {"initial": value.tolist(), "dtype": value.dtype.name, "name": name} for name, value in policy.memory.items()
        ],
    }
    written = FORMATS[to].write(policy, about, task.observation)
    assert written.difference is None or written.difference < 1e-6
    path = folder / f"a policy{FORMATS[to].suffix}"
    path.write_bytes(written.content)
    names = {}
    exec(loaders.loader(FORMATS[to].loader, path, written.about), names)
    return names["act"], names.get("memory"), names["about"]


def cases():
    """All kinds in every format; those that compile more, and are alike, are promises."""
    compiled = [pytest.param(kind, "stablehlo", marks=pytest.mark.promises) for kind in KINDS if kind != "recurrent"]
    return [("recurrent", "stablehlo"), *compiled, *((kind, to) for to in ("onnx", "numpy") for kind in KINDS)]


@pytest.mark.parametrize(("kind", "to"), cases())
def test_actions_are_those_of_the_evaluation(kind, to, played, tmp_path):
    if to == "onnx":
        pytest.importorskip("onnxruntime")
    act, memory, about = loaded(kind, to, tmp_path)
    observations, actions = played[kind]
    assert len(np.unique(actions, axis=0)) > 2, "an action that never changes shows nothing"
    assert [entry["name"] for entry in about["memory"]] == (
        ["memory['hidden']", "memory['steps']"] if kind == "recurrent" else []
    )
    for seen, due in zip(observations, actions, strict=True):
        if memory is None:
            action = act(seen)
        else:
            action, memory = act(seen, memory)
        assert action.dtype == due.dtype and action.shape == due.shape
        np.testing.assert_allclose(action, due, rtol=0, atol=1e-6)
