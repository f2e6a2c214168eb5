"""The files act as the policies, in each format, and programs that load them need no part of this package."""

import numpy as np
import pytest
from small_policies import KINDS, episodes, made

from jaxmbrl.core.spaces import Box, Discrete
from jaxmbrl.exporting import loaders
from jaxmbrl.exporting.formats import FORMATS
from jaxmbrl.exporting.policies import Exportable, batched, deterministic, largest_difference, samples
from jaxmbrl.exporting.program import Untranslated
from jaxmbrl.training.loop import clock_at

MEMORY = {"recurrent": ["memory['hidden']", "memory['steps']"], "random": ["memory[0]", "memory[1]", "key", "step"]}


@pytest.fixture(scope="module")
def played():
    return episodes()


def loaded(kind, to, folder, batch=None):
    """(act, initial memory or None, metadata) of the program that loads the exported policy of a kind."""
    algorithm, task = made(kind)
    policy = deterministic(algorithm, task, (), clock_at(0))
    policy = policy if batch is None else batched(policy, batch)
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
    fixed = [kind for kind in KINDS if kind != "random"]
    compiled = [pytest.param(kind, "stablehlo", marks=pytest.mark.promises) for kind in fixed]
    return [("random", "stablehlo"), *compiled, *((kind, to) for to in ("onnx", "numpy") for kind in fixed)]


@pytest.mark.parametrize(("kind", "to"), cases())
def test_actions_are_those_of_the_evaluation(kind, to, played, tmp_path):
    if to == "onnx":
        pytest.importorskip("onnxruntime")
    act, memory, about = loaded(kind, to, tmp_path)
    observations, actions = played[kind]
    assert len(np.unique(actions, axis=0)) > 2, "an action that never changes shows nothing"
    assert [entry["name"] for entry in about["memory"]] == MEMORY.get(kind, [])
    for seen, due in zip(observations, actions, strict=True):
        if memory is None:
            action = act(seen)
        else:
            action, memory = act(seen, memory)
        assert action.dtype == due.dtype and action.shape == due.shape
        np.testing.assert_allclose(action, due, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("kind", "to"), cases())
def test_a_batch_acts_as_its_entries_alone(kind, to, played, tmp_path):
    """Three episodes that begin at different steps, each with a memory of its own."""
    if to == "onnx":
        pytest.importorskip("onnxruntime")
    (act, memory, _), (of_batch, memories, _) = loaded(kind, to, tmp_path), loaded(kind, to, tmp_path, batch=3)
    alone, observations = [memory] * 3, played[kind][0]
    for t in range(4):
        seen = np.stack([observations[t], observations[t + 2], observations[t + 5]])
        if memory is None:
            actions, due = of_batch(seen), [act(one) for one in seen]
        else:
            actions, memories = of_batch(seen, memories)
            due, alone = zip(*(act(one, own) for one, own in zip(seen, alone, strict=True)), strict=True)
        assert actions.shape == (3, *due[0].shape) and actions.dtype == due[0].dtype
        np.testing.assert_allclose(actions, np.stack(due), rtol=0, atol=1e-6)


@pytest.mark.promises
@pytest.mark.parametrize("to", ["onnx", "numpy"])
def test_a_policy_in_float64_is_exported_in_float64(to, x64):
    if to == "onnx":
        pytest.importorskip("onnxruntime")
    algorithm, task = made("recurrent")
    policy = deterministic(algorithm, task, (), clock_at(0))
    assert policy.observation.dtype == policy.action.dtype == np.float64
    assert FORMATS[to].write(policy, {}, task.observation).difference < 1e-13


@pytest.mark.parametrize("to", ["onnx", "numpy"])
def test_random_numbers_are_refused(to):
    policy = deterministic(*made("random"), (), clock_at(0))
    with pytest.raises(Untranslated, match=r"^random numbers$"):
        FORMATS[to].write(policy, {}, made("random")[1].observation)


@pytest.mark.parametrize(
    ("space", "low", "high", "dtype"),
    [
        (Box((50, 2)), -6, 6, np.float32),
        (Box((50,), 2.0, 3.0), 2, 3, np.float32),
        (Box((4, 4, 3), 0, 255, "uint8"), 0, 255, np.uint8),
        (Discrete(5), 0, 4, np.int32),
    ],
)
def test_policies_are_compared_on_elements_of_the_space(space, low, high, dtype):
    drawn = np.stack(samples(space, 40))
    assert drawn.shape == (40, *space.shape) and drawn.dtype == dtype
    assert low <= drawn.min() < low + 0.2 * (high - low) + 3 * (low < 0)
    assert high - 0.2 * (high - low) - 3 * (low < 0) < drawn.max() <= high


def test_a_difference_is_found_where_it_appears():
    """In one of the steps, through the memory. A NaN differs from a number."""
    policy = Exportable(lambda seen, step: (2 * seen, step + 1), None, None, {"step": np.zeros((), np.int32)}, False)

    def other(by):
        return lambda seen, step: (2 * seen + (by if step == 7 else 0), step + 1)

    assert largest_difference(other(0.0), policy, Box((3,))) == 0
    assert largest_difference(other(0.25), policy, Box((3,))) == pytest.approx(0.25, abs=1e-6)
    assert np.isnan(largest_difference(other(np.nan), policy, Box((3,))))
    undefined = policy._replace(act=lambda seen, step: (seen / 0, step))
    assert largest_difference(lambda seen, step: (np.sign(seen) * np.inf, step), undefined, Box((3,))) == 0
