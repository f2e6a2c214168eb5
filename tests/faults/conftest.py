"""Runs that nobody disturbed, to compare with those that were."""

import functools

import jax
import pytest
from processes import STEPS, here, words_of


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Compiled programs are shared by the processes of this file and by this one."""
    patch = pytest.MonkeyPatch()
    folder = tmp_path_factory.mktemp("cache")
    patch.setenv("XDG_CACHE_HOME", str(folder))
    patch.setenv("JAX_COMPILATION_CACHE_DIR", str(jax.config.jax_compilation_cache_dir or folder))
    patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    yield
    patch.undo()


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Runs that nobody disturbed, by algorithm and steps."""

    @functools.cache
    def run(algorithm, steps=STEPS):
        out = tmp_path_factory.mktemp("straight") / algorithm
        here(*words_of(algorithm, out, steps))
        return out

    return run
