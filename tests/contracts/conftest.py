"""What the promises' tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from jaxmbrl import envs

from .cases import TASKS, register_tasks


@pytest.fixture(scope="module")
def spinning() -> Iterator[None]:
    """The tasks are registered."""
    register_tasks()
    yield
    for name in TASKS.values():
        envs.TASKS.pop(name, None)
