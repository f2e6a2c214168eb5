"""The formats of exported policies: what is written, and what is measured of it."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import export as jax_export

from jaxmbrl.core.config import UserError
from jaxmbrl.core.spaces import Space
from jaxmbrl.exporting import loaders, onnx_graph, program
from jaxmbrl.exporting.policies import Exportable, largest_difference
from jaxmbrl.exporting.program import Untranslated
from jaxmbrl.exporting.translating import translate

PLATFORMS = ("cpu", "cuda", "tpu")
"""Platforms on which an exported StableHLO function runs."""


RANDOM = "random numbers"
"""Why a policy that depends on random numbers cannot be translated."""


class Written(NamedTuple):
    """A policy in a format."""

    content: bytes
    about: dict[str, Any]
    """The metadata inside."""
    difference: float | None
    """Largest difference to the policy's actions on random observations; None if it was not measured."""


class Format(NamedTuple):
    """A format of exported policies."""

    suffix: str
    loader: str
    """Template of the program that loads it (`loaders`)."""
    write: Callable[[Exportable, dict[str, Any], Space], Written]
    """(policy, metadata, space of observations) -> the file. Raises Untranslated if the format cannot represent it."""


def _stablehlo(policy: Exportable, about: dict[str, Any], space: Space) -> Written:
    check_flatbuffers()
    exported = jax_export.export(jax.jit(policy.act), platforms=PLATFORMS)(*policy.inputs.values())
    about = about | {
        "format": "stablehlo",
        "platforms": list(exported.platforms),
        "calling_convention_version": exported.calling_convention_version,
    }
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("about.json", json.dumps(about))
        file.writestr("policy", bytes(exported.serialize()))
    return Written(content.getvalue(), about, None)


def check_flatbuffers() -> None:
    """Raise UserError if `flatbuffers` is missing, with which JAX writes and reads exported functions."""
    if importlib.util.find_spec("flatbuffers") is None:
        raise UserError("flatbuffers is missing: pip install flatbuffers")


def _numpy(policy: Exportable, about: dict[str, Any], space: Space) -> Written:
    translated = translated_calls(policy, onnx=False)
    about = about | {
        "format": "numpy",
        "inputs": translated.inputs,
        "outputs": translated.outputs,
        "functions": translated.functions,
        "calls": translated.calls,
    }
    content = io.BytesIO()
    arrays: dict[str, Any] = {"about": np.array(json.dumps(about)), **translated.constants}
    np.savez(content, **arrays)
    difference = largest_difference(lambda *inputs: program.run(translated, inputs), policy, space)
    return Written(content.getvalue(), about, difference)


def _onnx(policy: Exportable, about: dict[str, Any], space: Space) -> Written:
    translated = translated_calls(policy, onnx=True)
    about = about | {"format": "onnx", "opset": onnx_graph.OPSET, "ir_version": onnx_graph.IR_VERSION}
    shapes = {name: given.shape for name, given in policy.inputs.items()}
    outputs = ["action", *(f"next_{name}" for name in policy.memory)]
    shapes |= dict(zip(outputs, (policy.action.shape, *_shapes(policy)), strict=True))
    content = onnx_graph.model(translated, shapes, outputs, json.dumps(about))
    with contextlib.suppress(ImportError):
        import onnxruntime

        return Written(content, about, _difference_in_onnxruntime(onnxruntime, content, policy, space))
    return Written(content, about, None)


def _difference_in_onnxruntime(onnxruntime: Any, content: bytes, policy: Exportable, space: Space) -> float:
    """The largest difference in ONNX Runtime. Raises UserError if it cannot run the file."""
    try:
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_inputs()]
        return largest_difference(
            lambda *inputs: session.run(None, dict(zip(names, map(np.asarray, inputs), strict=True))), policy, space
        )
    except Exception as error:
        message = " ".join(str(error).split())
        raise UserError(f"ONNX Runtime cannot run this policy ({message:.200}); export it with --to stablehlo") from error


def translated_calls(policy: Exportable, onnx: bool) -> program.Program:
    """The policy as calls of functions of NumPy, or of ONNX. Raises Untranslated if it is not possible."""
    if policy.random:
        raise Untranslated(RANDOM)
    return translate(policy.act, policy.inputs, onnx)


def _shapes(policy: Exportable) -> list[tuple[int, ...]]:
    return [value.shape for value in policy.memory.values()]


FORMATS = {
    "stablehlo": Format(".stablehlo", loaders.STABLEHLO, _stablehlo),
    "onnx": Format(".onnx", loaders.ONNX, _onnx),
    "numpy": Format(".npz", loaders.NUMPY, _numpy),
}
"""By name."""
