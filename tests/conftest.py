"""What holds for all tests: which check types and shapes, how they share workers, what they compile."""

import contextlib
import gc
import itertools
import os

import jaxtyping
import pytest
from xdist.scheduler import LoadScopeScheduling

LONGEST = (
    "test_kills.py",
    "test_stops.py",
    "test_mujoco.py",
    "test_promises.py",
    "test_mujoco_bodies.py",
    "test_runner.py",
    "test_pets_tasks.py",
    "test_ensemble.py",
    "test_bridged.py",
)

OF_RUNS = {
    *("training", "faults", "report", "diagnostics", "debug", "experiments", "sweeping", "notebooks"),
    *("test_promises.py", "test_loop.py", "test_toys_public.py", "test_cli.py", "test_tutorials.py"),
    *("test_exporter.py", "test_methods.py"),
}
"""Folders and files whose tests make whole runs."""


def pytest_collection_modifyitems(items):
    """The longest files first, so that no worker is left with one of them at the end."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


class SharedPrograms(LoadScopeScheduling):
    """A file runs in one worker, because its tests share compiled programs; the compiled promises do so by method."""

    def _split_scope(self, nodeid):
        file, _, test = nodeid.partition("::")
        return f"{file} {test.partition('[')[2]}" if file.endswith("test_promises.py") else file


def pytest_xdist_make_scheduler(config, log):
    return SharedPrograms(config, log)


_hook = jaxtyping.install_import_hook("jaxmbrl", "beartype.beartype")
from small_method import registered  # noqa: E402 (after the hook)

from jaxmbrl.core import xla  # noqa: E402

# Tracing makes many objects that live long; the default threshold searches all of them for garbage again and again.
gc.set_threshold(100_000, 20, 20)

# Before any test computes: with a single thread some programs never return.
xla.prepare()


@pytest.fixture(scope="module", autouse=True)
def checked_types(request):
    """Types and shapes are checked where formulas are tested, and where every method is traced; not in tests of runs, which
    trace the same functions again."""
    place = {request.path.name, request.path.parent.name}
    jaxtyping.config.update("jaxtyping_disable", not place.isdisjoint(OF_RUNS))
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module", autouse=True)
def small_method_is_known(request):
    """The small method is registered for tests of the training loop and of faults."""
    with registered() if request.path.parent.name in ("training", "faults") else contextlib.nullcontext():
        yield


@pytest.fixture
def x64():
    """In float64."""
    import jax

    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory):
    """What a test compiles is reused by later tests of this run, in both workers: files forget what they compiled."""
    import jax

    folder = tmp_path_factory.getbasetemp()
    shared = (folder.parent if os.environ.get("PYTEST_XDIST_WORKER") else folder) / "compiled"
    jax.config.update("jax_compilation_cache_dir", str(shared))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


@pytest.fixture(scope="module")
def compile_cache(tmp_path_factory):
    """What one test of a file compiles is there for the next, also through the command line."""
    import jax

    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = [getattr(jax.config, name) for name in names]
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        jax.config.update(names[0], str(folder / "jaxmbrl" / "compiled"))
        jax.config.update(names[1], 0.0)
        yield
    for name, value in zip(names, before, strict=True):
        jax.config.update(name, value)


FILES = itertools.count(1)


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """What was compiled is let go after every few files: more would fill the memory, and fewer would compile the same
    operations again."""
    yield
    import jax

    if next(FILES) % 6 == 0:
        jax.clear_caches()
