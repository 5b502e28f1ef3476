"""What is driven without an engine ends with its test."""

from collections.abc import Iterator

import pytest

from tests.api.driving import evict_driven
from tests.engine.tidying import no_task_is_left

__all__ = ["no_task_is_left"]


@pytest.fixture(autouse=True)
def driven_are_evicted() -> Iterator[None]:
    yield
    evict_driven()
