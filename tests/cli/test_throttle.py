"""What of the client libraries' records reaches the log of a worker."""

from __future__ import annotations

import logging

import pytest

from romancy_stream.cli import throttle
from romancy_stream.cli.throttle import PER_WINDOW, WINDOW_S, Throttle


def record(name: str, at_s: float, message: str = "no connection to %s", *args: object) -> logging.LogRecord:
    made = logging.LogRecord(name, logging.ERROR, "file.py", 1, message, args or ("node 1",), None)
    made.created = at_s
    return made


def test_a_library_that_repeats_itself_is_cut_short() -> None:
    quiet = Throttle()
    passed = [quiet.filter(record("aiokafka.client", 100 + n / 100)) for n in range(1_000)]
    assert passed == [True] * PER_WINDOW + [False] * (1_000 - PER_WINDOW)
    assert quiet.filter(record("aiokafka.client", 101, "something %s else", "entirely"))
    assert quiet.filter(record("aiokafka.consumer", 101))


def test_the_next_window_says_how_many_were_left_out() -> None:
    quiet = Throttle()
    for n in range(20):
        quiet.filter(record("aiokafka", 100 + n))
    after = record("aiokafka", 100 + WINDOW_S)
    assert quiet.filter(after)
    assert after.getMessage() == f"no connection to node 1 ({20 - PER_WINDOW} more like this were left out)"
    later = record("aiokafka", 100 + 2 * WINDOW_S)
    assert quiet.filter(later)
    assert later.getMessage() == "no connection to node 1"


def test_nobody_else_is_touched() -> None:
    quiet = Throttle()
    names = ["romancy_stream.runtime.service", "shop", "models", "root"]
    assert all(quiet.filter(record(name, 100)) for name in names for _ in range(1_000))


def test_the_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttle, "KINDS_LIMIT", 10)
    quiet = Throttle()
    assert all(quiet.filter(record("aiokafka", 100, f"number {n} of %s")) for n in range(100))
    assert len(quiet._kinds) <= 10
