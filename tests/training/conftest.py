"""The small method is known to all tests of the training loop."""

import pytest
from small_method import registered


@pytest.fixture(scope="module", autouse=True)
def small_method_is_known():
    with registered():
        yield
