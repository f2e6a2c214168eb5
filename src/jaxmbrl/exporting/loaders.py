"""The programs that load exported files, as text. They need no part of this package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

STABLEHLO = """\
# pip install jax flatbuffers
import json, zipfile
import jax, numpy as np
from jax import export
{x64}
with zipfile.ZipFile({path}) as file:
    about = json.loads(file.read("about.json"))
    policy = jax.jit(export.deserialize(bytearray(file.read("policy"))).call)
{initial}
{head}
    found = policy(observation, *memory)
    {result}
"""

ONNX = """\
# pip install onnxruntime
import json
import numpy as np, onnxruntime

session = onnxruntime.InferenceSession({path})
about = json.loads(session.get_modelmeta().custom_metadata_map["jaxmbrl"])
names = [value.name for value in session.get_inputs()]
{initial}
{head}
    found = session.run(None, dict(zip(names, [observation, *memory])))
    {result}
"""

NUMPY = """\
# pip install numpy
import json
import numpy as np

file = dict(np.load({path}))
about = json.loads(str(file.pop("about")))
functions = {{name: getattr(np, name) for name in {functions}.split()}}
{initial}
{head}
    values = file | dict(zip(about["inputs"], [observation, *memory]))
    for result, function, operands, extras in about["calls"]:
        values[result] = functions[function](*[values[name] for name in operands], *extras)
    found = [values[name] for name in about["outputs"]]
    {result}
"""

INITIAL = """\
memory = [np.array(m["initial"], m["dtype"]) for m in about["memory"]]  # at the start of each episode
"""

HEAD = """\
def act(observation{memory}):
    observation = np.asarray(observation, "{dtype}").reshape({shape})"""


def loader(template: str, path: Path, about: dict[str, Any]) -> str:
    """The program that loads the file at `path` and defines `act`: `act(observation) -> action`, or, if the policy has a
    memory, `act(observation, memory) -> (action, memory)` and the initial `memory`."""
    given, remembers = about["observation"], bool(about["memory"])
    head = HEAD.format(memory=", memory" if remembers else "", dtype=given["dtype"], shape=tuple(given["shape"]))
    dtypes = [given["dtype"], about["action"]["dtype"], *(entry["dtype"] for entry in about["memory"])]
    text = template.format(
        path=json.dumps(str(path)),
        initial=INITIAL if remembers else "",
        head=head,
        functions=json.dumps(" ".join(about.get("functions", ()))),
        result="return np.asarray(found[0]), list(found[1:])" if remembers else "return np.asarray(found[0])",
        x64='jax.config.update("jax_enable_x64", True)\n' if any(np.dtype(name).itemsize == 8 for name in dtypes) else "",
    )
    return text if remembers else text.replace(", *memory", "")
