"""What holds for all tests: types and shapes in annotations are checked, and the longest files come first."""

import jaxtyping
import pytest

LONGEST = ("test_resume.py", "test_promises.py", "test_mujoco.py", "test_ensemble.py", "test_runner.py")


def pytest_collection_modifyitems(items):
    """The longest files first, so that no worker is left with one of them at the end."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


_hook = jaxtyping.install_import_hook("jaxmbrl", "beartype.beartype")


@pytest.fixture(scope="module")
def compile_cache(tmp_path_factory):
    """What one test of a file compiles is there for the next."""
    import jax

    before = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("cache")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    yield
    jax.config.update("jax_compilation_cache_dir", before[0])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before[1])
