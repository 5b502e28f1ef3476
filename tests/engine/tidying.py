"""Fixtures for tests that make worlds: each is closed when its test ends, and no test leaves a task of workflow code
behind, which Python would tell of at some later time, in the middle of another test or at the end of them all.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator

import pytest

from tests.engine.world import close_worlds

DESTROYED = "was destroyed but it is pending"


class Destroyed(logging.Handler):
    """What the loops of instances say of tasks that nobody has ended."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if DESTROYED in record.getMessage():
            self.told.append(record.getMessage())


@pytest.fixture(autouse=True)
def worlds_are_closed() -> Iterator[None]:
    yield
    close_worlds()


@pytest.fixture(scope="module", autouse=True)
def no_task_is_left() -> Iterator[None]:
    """Of a whole file: to look for garbage takes longer than most of its tests."""
    gc.collect()  # of the files before
    handler, log = Destroyed(), logging.getLogger("romancy_stream.engine.loop")
    log.addHandler(handler)
    yield
    gc.collect()
    log.removeHandler(handler)
    assert not handler.told, "a test has left a live instance behind: close its world, or evict it"
