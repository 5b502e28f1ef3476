"""Offsets that the broker does not take at once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

import pytest

from romancy_stream.broker.port import TP
from romancy_stream.runtime import hints
from romancy_stream.runtime.hints import Hints
from tests.support import eventually

AWAY = ConnectionError("nobody is there")


class Lag:
    """What is told, of a broker that refuses the first few times."""

    def __init__(self, refusals: int) -> None:
        self.refusals = refusals
        self.told: dict[TP, int] = {}
        self.news = 0
        self.refused = asyncio.Event()

    async def tell(self, offsets: Mapping[TP, int]) -> None:
        if self.refusals:
            self.refusals -= 1
            self.refused.set()
            raise AWAY
        self.told |= offsets

    def heard(self) -> None:
        self.news += 1


async def test_what_was_refused_is_told_again_without_anything_new(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hints, "HINT_EVERY_S", 0.01)
    lag = Lag(refusals=3)
    untold = Hints(lag.tell, lag.heard)

    def looked() -> bool:
        untold.tell_if_due()
        return bool(lag.told) and untold.due_in_s is None

    with caplog.at_level(logging.WARNING, hints.__name__):
        untold.add([("commands", 1, 5), ("commands", 2, 7)])
        await eventually(looked)
    assert lag.told == {TP("commands", 1): 5, TP("commands", 2): 7}
    assert [record.message for record in caplog.records] == [
        f"offsets were not told to the broker, and lag tools see too much until they are: {AWAY!r}"
    ]


async def test_what_came_since_stands_above_what_was_refused() -> None:
    lag = Lag(refusals=1)
    untold = Hints(lag.tell, lag.heard)
    untold.add([("commands", 1, 5), ("commands", 2, 7)])
    untold.tell_if_due()
    untold.add([("commands", 1, 6)])
    await lag.refused.wait()
    await untold.tell_last()
    assert lag.told == {TP("commands", 1): 6, TP("commands", 2): 7}


async def test_who_leaves_tries_again() -> None:
    lag = Lag(refusals=2)
    untold = Hints(lag.tell, lag.heard)
    untold.add([("commands", 1, 5)])
    await untold.tell_last()
    assert lag.told == {TP("commands", 1): 5}


async def test_who_leaves_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hints, "LAST_LIMIT_S", 0.2)
    lag = Lag(refusals=1_000_000)
    untold = Hints(lag.tell, lag.heard)
    untold.add([("commands", 1, 5)])
    await untold.tell_last()
    assert lag.refused.is_set()
    assert not lag.told


async def test_the_first_news_is_told_of_and_no_other_until_it_is_told() -> None:
    lag = Lag(refusals=0)
    untold = Hints(lag.tell, lag.heard)
    untold.add([])
    assert lag.news == 0
    untold.add([("commands", 1, 5)])
    untold.add([("commands", 1, 6)])
    assert lag.news == 1
    await untold.tell_last()
    untold.add([("commands", 1, 7)])
    assert lag.news == 2
