"""What the promises' tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from jaxmbrl import envs
from jaxmbrl.envs.classic.pendulum import reward

from .cases import LIMIT, TASK, Spinning, too_fast


@pytest.fixture(scope="module")
def spinning() -> Iterator[None]:
    """The task is registered."""
    envs.register(TASK, lambda: envs.make_task(TASK, Spinning(), LIMIT, reward, too_fast))
    yield
    del envs.TASKS[TASK]
