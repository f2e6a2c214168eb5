import jax
import pytest


@pytest.fixture
def x64():
    """In float64."""
    with jax.enable_x64(True):
        yield
