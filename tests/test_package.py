"""What the package contains when it is installed, and what importing it does to the process."""

import os
import subprocess
import sys
import tarfile
import tomllib
import venv
from pathlib import Path

import pytest

import jaxmbrl

ROOT = Path(__file__).parents[1]


def python(code, **more):
    environment = {name: value for name, value in os.environ.items() if name != "PJRT_NPROC"} | more
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout.strip()


LIGHT = """
import contextlib, io, json, os, sys
before = dict(os.environ)
import jaxmbrl, jaxmbrl.algorithms, jaxmbrl.envs
from jaxmbrl import cli
with contextlib.redirect_stdout(io.StringIO()) as out:
    assert cli.main(["list", "--json"]) == 0 and cli.main(["train", "--help"]) == 0
methods = {f"jaxmbrl.algorithms.{place.partition(':')[0]}" for place in jaxmbrl.algorithms.registry.MODULES.values()}
heavy = {"jax", "numpy", "mujoco", "flax", "optax", "matplotlib", "orbax", "tyro", "rich", "jaxmbrl.training"}
print(sorted((methods | heavy) & set(sys.modules)), "mbpo" in out.getvalue())
"""


def test_importing_the_package_and_listing_import_no_method_and_no_jax():
    assert python(LIGHT) == "[] True"


ON_ONE_CORE = """
import os
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
before = dict(os.environ)
import jaxmbrl, jaxmbrl.training.runner
assert dict(os.environ) == before
from jax._src import xla_bridge
from jaxmbrl.core.config import UserError
for function in (jaxmbrl.load, jaxmbrl.evaluate, jaxmbrl.resume, lambda run: jaxmbrl.train(run, "pendulum")):
    os.environ.pop("PJRT_NPROC", None)
    os.environ.update(before)
    assert not xla_bridge.backends_are_initialized()
    try:
        function("nowhere")
    except UserError:
        print(os.environ.get("PJRT_NPROC"), end=" ")
"""


def test_only_the_functions_that_compute_give_xla_its_threads():
    assert python(ON_ONE_CORE) == "2 2 2 2"
    assert python(ON_ONE_CORE, PJRT_NPROC="3") == "3 3 3 3", "a number that the user has chosen is kept"


def test_there_is_one_version():
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == jaxmbrl.__version__
    done = subprocess.run(
        [sys.executable, "-m", "jaxmbrl", "--version"], capture_output=True, text=True, timeout=60, check=True
    )
    assert (done.stdout, done.stderr) == (f"{jaxmbrl.__version__}\n", "")


def package_files():
    """The files of the package in the repository, below `src`."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "src"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    if not listed:
        pytest.skip("this is no clone of the repository")
    return {name.removeprefix("src/") for name in listed if (ROOT / name).exists()}


def test_the_wheel_has_every_file_of_the_package():
    wheel = pytest.importorskip("hatchling.builders.wheel")
    found = {file.distribution_path for file in wheel.WheelBuilder(str(ROOT)).recurse_included_files()}
    assert found == package_files()
    kinds = {Path(name).suffix for name in found}
    assert {".py", ".xml", ".yaml", ".html", ".css", ".js", ".typed"} <= kinds and "jaxmbrl/py.typed" in found


TYPED = """
import jaxmbrl
from jaxmbrl.core.types import Task
from jaxmbrl.envs import make

task: Task = make("pendulum")
reveal_type(jaxmbrl.train)
wrong: int = make("pendulum")
"""


def run(*words, folder, **more):
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(
        [str(word) for word in words],
        cwd=folder,
        env=environment | {"MPLBACKEND": "Agg"} | more,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A virtual environment with the wheel that was built from the sdist, and with the dependencies of this one."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("package")
    build = [sys.executable, "-m", "hatchling", "build", "--directory"]
    assert run(*build, folder / "dist", "--target", "sdist", folder=ROOT)[0] == 0
    (sdist,) = (folder / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    code, _, told = run(*build, folder / "dist", "--target", "wheel", folder=folder / sdist.name.removesuffix(".tar.gz"))
    assert code == 0, told
    (wheel,) = (folder / "dist").glob("*.whl")
    venv.create(folder / "env", with_pip=False)
    python = folder / "env" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    code, _, told = run(*pip, folder=folder)
    assert code == 0, told
    # Dependencies are found after the environment's own packages; an editable jaxmbrl among them is not.
    own = run(python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])", folder=folder)[1].strip()
    shared = {str(Path(pytest.__file__).parents[1])} | {str(Path(path)) for path in sys.path if "site-packages" in path}
    (Path(own) / "dependencies.pth").write_text("\n".join(sorted(shared)) + "\n")
    return folder, python, Path(own)


DEMO = (
    "train pets --env cartpole-continuous --preset small --seeds 2 --steps 400 --out runs/demo "
    "--ensemble.hidden 8 --ensemble.max-epochs 1 --planner.cem.population 20 --planner.cem.horizon 2"
)
"""The demo of `make demo`, small."""


@pytest.mark.slow
def test_the_installed_wheel_trains_renders_and_is_typed(installed):
    folder, python, own = installed
    command = python.parent / "jaxmbrl"
    place = run(python, "-c", "import jaxmbrl; print(jaxmbrl.__file__)", folder=folder)[1].strip()
    assert Path(place) == own / "jaxmbrl" / "__init__.py"
    for words in ((command, "--version"), (python, "-m", "jaxmbrl", "--version")):
        assert run(*words, folder=folder)[:2] == (0, f"{jaxmbrl.__version__}\n")
    # Presets, a drawing, the report's assets.
    for words in (DEMO.split(), ["evaluate", "runs/demo", "--episodes", "1", "--video"], ["report", "runs/demo"]):
        code, _, told = run(command, *words, folder=folder, XDG_CACHE_HOME=str(folder / "cache"))
        assert code == 0, told
    made = {path.name for path in (folder / "runs" / "demo").iterdir()}
    assert {"config.yaml", "curve.png", "video.gif", "report.html"} <= made
    # Every model file of MuJoCo and every preset.
    code = (
        "from jaxmbrl import algorithms, envs\n"
        "for name in envs.names(): envs.make(name)\n"
        "print(sum(len(algorithms.get(name).presets) for name in algorithms.METHODS))"
    )
    code, out, told = run(python, "-c", code, folder=folder)
    assert code == 0 and int(out) > 20, told


@pytest.mark.slow
def test_mypy_finds_the_types_of_the_installed_wheel(installed):
    pytest.importorskip("mypy")
    folder, python, _ = installed
    (folder / "typed.py").write_text(TYPED)
    command = [sys.executable, "-m", "mypy", "--python-executable", python, "--follow-imports", "silent", "typed.py"]
    code, out, _ = run(*command, folder=folder)
    assert code == 1 and "Found 1 error in 1 file" in out, out
    assert (
        'typed.py:8: error: Incompatible types in assignment (expression has type "Task", variable has type "int")' in out
    )
    assert 'typed.py:7: note: Revealed type is "def (algorithm: str, env: Any, *, steps: int | None =' in out


def test_functions_that_are_imported_on_first_use_are_listed():
    assert set(jaxmbrl.__all__) <= set(dir(jaxmbrl))


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("report", ": it is a command, 'jaxmbrl report ...', in Python cli.main(['report', ...]) after 'from jaxm"),
        ("envs", ": it is a part of it, 'from jaxmbrl import envs'"),
        ("unknown", ""),
    ],
)
def test_commands_and_parts_that_are_no_attributes_are_named(name, hint):
    with pytest.raises(AttributeError) as error:
        jaxmbrl.__getattr__(name)
    assert str(error.value).startswith(f"module 'jaxmbrl' has no attribute '{name}'{hint}")
