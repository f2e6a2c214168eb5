"""A run folder written by hand."""

import pytest
from run_by_hand import write


@pytest.fixture
def run(tmp_path):
    """A run of three seeds."""
    return write(tmp_path / "run")
