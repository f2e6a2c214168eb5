"""The shape of the package: which way imports point, what an import does, what the code may not contain."""

import ast
import io
import json
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

import jaxmbrl

PACKAGE = Path(jaxmbrl.__file__).parent
FILES = sorted(path for path in PACKAGE.rglob("*.py"))
NAMES = [path.relative_to(PACKAGE).as_posix() for path in FILES]

LAYERS = [
    {"core"},
    {"data", "distributions", "nn", "returns", "rollout"},
    {"envs"},
    {"models"},
    {"planning"},
    {"agents"},
    {"algorithms"},
    {"training"},
    {"debug", "diagnostics", "exporting", "scheduling", "sweeping"},
    {"report"},
    {"commands"},
    {"cli"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def module_of(path, package=PACKAGE):
    """Dotted name of a file's module inside the package: `envs.base`; a package is named by its folder."""
    parts = path.relative_to(package).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path) for path in FILES} - {""}


def imports(source, module, is_package, modules):
    """Dotted names, inside the package, of the modules that `source` imports, also within functions."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            here = ["jaxmbrl", *module.split(".")] if module else ["jaxmbrl"]
            here = here if is_package else here[:-1]
            base = ".".join(here[: len(here) - node.level + 1]) if node.level else ""
            base = ".".join(part for part in (base, node.module) if part)
            found |= {f"{base}.{alias.name}" for alias in node.names} | {base}
    inside = {name.removeprefix("jaxmbrl.") for name in found if name.startswith("jaxmbrl.")}
    return {name for name in inside if name in modules}


def wrong_imports(source, module, is_package, modules):
    """Imports of `module` that point up or sideways."""
    top = module.split(".")[0]
    wrong = []
    for name in sorted(imports(source, module, is_package, modules)):
        other = name.split(".")[0]
        own = other == top and (top != "algorithms" or is_package or is_shared(name) or name == module)
        mates = LEVEL[other] == LEVEL[top] == LEVEL["diagnostics"]
        if not (own or mates or LEVEL[other] < LEVEL[top]):
            wrong.append(name)
    return wrong


def is_shared(name):
    """Whether a module of `algorithms` is no method: the parts that all share, and the packages of families."""
    return len(name.split(".")) < 3


def test_every_module_has_a_layer():
    assert {name.split(".")[0] for name in MODULES} <= set(LEVEL)


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_imports_point_one_way(path):
    module = module_of(path)
    if module:
        assert wrong_imports(path.read_text(), module, path.name == "__init__.py", MODULES) == []


@pytest.mark.parametrize(
    ("module", "is_package", "source", "expected"),
    [
        ("data.replay", False, "from jaxmbrl.core.types import Key", []),
        ("core.types", False, "from jaxmbrl.data.replay import Replay", ["data.replay"]),
        ("core.types", False, "from ..data.replay import Replay", ["data.replay"]),
        ("data.replay", False, "def f():\n    import jaxmbrl.envs", ["envs"]),
        ("envs.base", False, "from jaxmbrl import models, nn", ["models"]),
        ("algorithms.dyna.mbpo", False, "from jaxmbrl.algorithms.model_free import sac", ["algorithms.model_free.sac"]),
        ("algorithms.dyna.mbpo", False, "from ..model_free import sac", ["algorithms.model_free.sac"]),
        (
            "algorithms.dyna.mbpo",
            False,
            "from jaxmbrl.algorithms.model_free.sac import make",
            ["algorithms.model_free.sac"],
        ),
        ("algorithms.dyna.mbpo", False, "from jaxmbrl.algorithms import registry, shared", []),
        ("algorithms.dyna.mbpo", False, "from jaxmbrl.agents import sac", []),
        ("algorithms", True, "from jaxmbrl.algorithms.dyna import mbpo", []),
        ("algorithms.dyna.mbpo", False, "from jaxmbrl.training import loop", ["training", "training.loop"]),
        ("envs.mujoco.hopper", False, "from jaxmbrl.envs.base import State", []),
    ],
)
def test_the_check_of_imports_finds_what_it_should(module, is_package, source, expected):
    modules = {name for names in LAYERS for name in names}
    modules |= {"core.types", "data.replay", "envs.base", "envs.mujoco.hopper", "training.loop", "agents.sac"}
    modules |= {"algorithms.registry", "algorithms.shared"}
    modules |= {"algorithms.dyna", "algorithms.dyna.mbpo", "algorithms.model_free", "algorithms.model_free.sac"}
    assert wrong_imports(source, module, is_package, modules) == expected


def test_no_import_cycle_between_modules():
    graph = {
        module_of(path): imports(path.read_text(), module_of(path), path.name == "__init__.py", MODULES)
        for path in FILES
        if path.name != "__init__.py"
    }
    done = set()

    def visit(module, trail):
        assert module not in trail, " -> ".join([*trail, module])
        if module not in done:
            for other in sorted(graph.get(module, set()) - {module}):
                visit(other, [*trail, module])
            done.add(module)

    for module in graph:
        visit(module, [])


IMPORT_ALL = """
import contextlib, io, json, logging, os, sys
OPTIONAL = ("brax", "gymnasium", "mujoco_playground", "onnx", "onnxruntime", "ray", "mctx")
sys.modules.update(dict.fromkeys(OPTIONAL))  # an import of them fails
import jax
names = json.loads(sys.argv[1])
def now():
    loggers = [logging.getLogger()] + [logging.getLogger(n) for n in logging.root.manager.loggerDict if "jaxmbrl" in n]
    handlers = [str(h) for logger in loggers for h in logger.handlers]
    return [dict(os.environ), dict(jax.config.values), handlers, logging.getLogger().level]
before = now()
for name in names:
    __import__(name)
after = now()
assert before == after, [(b, a) for b, a in zip(before, after) if b != a]
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized()
assert not os.listdir(".")
"""


def test_imports_have_no_side_effect(tmp_path):
    names = ["jaxmbrl", *(f"jaxmbrl.{name}" for name in sorted(MODULES) if name != "__main__")]
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, json.dumps(names)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == ("", "")


def public_without_docstring(source):
    tree = ast.parse(source)
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    named = [node for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]
    return [node.name for node in named if not ast.get_docstring(node)] + (
        [] if ast.get_docstring(tree) else ["the module"]
    )


def forbidden(source):
    """What the code may not contain, as (line, what)."""
    found = []
    for node in ast.walk(ast.parse(source)):
        name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
        owner = getattr(getattr(node, "value", None), "id", "")
        if name in ("nan_to_num", "empty_like") or (name == "empty" and owner in ("jnp", "jax", "")):
            found.append((node.lineno, name))
        # Batches of them deadlock: `core.cholesky` decomposes one at a time.
        linalg = name in ("cholesky", "cho_factor") and isinstance(node, ast.Attribute) and ast.unparse(node.value)
        if linalg in ("jnp.linalg", "jax.numpy.linalg", "jax.scipy.linalg"):
            found.append((node.lineno, name))
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name.split(".")[0] for alias in node.names} | {(getattr(node, "module", "") or "").split(".")[0]}
            found += [(node.lineno, bad) for bad in sorted(names & {"pickle", "cloudpickle", "dill", "shelve", "marshal"})]
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and getattr(node.value, "value", True):
            found.append((node.value.lineno, "allow_pickle"))
        if isinstance(node, ast.ExceptHandler):
            broad = node.type is None or (
                isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")
            )
            if broad and all(isinstance(line, ast.Pass) for line in node.body):
                found.append((node.lineno, "a swallowed exception"))
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NAME and not token.string.isascii():
            found.append((token.start[0], token.string))
    return found


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_public_names_have_docstrings(path):
    assert public_without_docstring(path.read_text()) == []


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_nothing_forbidden(path):
    assert forbidden(path.read_text()) == []


def test_the_checks_find_what_they_should():
    assert public_without_docstring("def f(): pass\ndef _g(): pass") == ["f", "the module"]
    for source in (
        "jnp.empty(3)",
        "jnp.empty_like(x)",
        "from jax.numpy import empty\nempty(3)",
        "jnp.nan_to_num(x)",
        "jnp.linalg.cholesky(x)",
        "jax.scipy.linalg.cho_factor(x)",
        "import pickle",
        "from pickle import load",
        "np.load(f, allow_pickle=True)",
        "try:\n    f()\nexcept Exception:\n    pass",
        "try:\n    f()\nexcept:\n    pass",
        "\u03b1 = 1",
    ):
        assert len(forbidden(source)) == 1, source
    assert forbidden("x.empty\ntry:\n    f()\nexcept OSError:\n    pass\ns = '\u03b1'") == []


def test_short_runs_of_experiments_have_a_folder_of_their_own():
    """So that their results are not taken for those of whole runs, nor written over them."""
    scripts = [
        file for file in sorted((Path(__file__).parents[1] / "experiments").glob("*.py")) if '"--quick"' in file.read_text()
    ]
    assert len(scripts) > 20
    for file in scripts:
        (folder,) = set(re.findall(r'Path\("(runs/[\w-]+)-quick" if \w+\.quick else "\1"\)', file.read_text()))
        assert f"by default {folder}, with --quick {folder}-quick" in file.read_text(), file.name
