"""Fetches are packed and unpacked as aiokafka does it itself."""

from __future__ import annotations

import asyncio
import struct
from io import BytesIO
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.consumer.fetcher import Fetcher
from aiokafka.protocol.fetch import FetchRequest_v4, FetchRequest_v11, FetchResponse_v11
from hypothesis import given
from hypothesis import strategies as st

from romancy_stream.broker.kafka.fetching import QuickFetch, QuickRequest, QuickResponse, fetch_quickly


def whole(bits: int) -> st.SearchStrategy[int]:
    return st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


INT16, INT32, INT64 = whole(16), whole(32), whole(64)
NAME = st.text(max_size=20)
ABORTED = st.none() | st.lists(st.tuples(INT64, INT64), max_size=3)
RECORDS = st.none() | st.binary(max_size=30)
PARTITION = st.tuples(INT32, INT16, INT64, INT64, INT64, ABORTED, INT32, RECORDS)
TOPICS = st.lists(st.tuples(NAME, st.lists(PARTITION, max_size=4)), max_size=3)
ASKED = st.lists(
    st.tuples(NAME, st.lists(st.tuples(INT32, INT32, INT64, INT64, INT32), max_size=4)),
    max_size=3,
)


@given(st.tuples(INT32, INT16, INT32, TOPICS))
def test_an_answer_is_what_aiokafka_reads_in_it(fields: tuple[Any, ...]) -> None:
    raw = FetchResponse_v11(*fields).encode()
    assert QuickResponse.decode(BytesIO(raw)) == FetchResponse_v11.decode(BytesIO(raw))
    assert QuickResponse.decode(raw) == FetchResponse_v11(*fields)


@given(st.tuples(INT32, INT16, INT32, TOPICS), st.integers(0, 10_000))
def test_an_answer_that_ends_too_early_is_refused(fields: tuple[Any, ...], at: int) -> None:
    raw = FetchResponse_v11(*fields).encode()
    with pytest.raises((ValueError, struct.error)):
        QuickResponse.decode(raw[: at % len(raw)])


@given(st.tuples(INT32, INT32, INT32, INT32, whole(8), INT32, INT32, ASKED, st.just([]), NAME))
def test_a_request_has_the_bytes_that_aiokafka_gives_it(fields: tuple[Any, ...]) -> None:
    assert QuickRequest(*fields).encode() == FetchRequest_v11(*fields).encode()


def test_a_broker_that_understands_older_versions_only_is_asked_by_aiokafka() -> None:
    fetch = QuickFetch(500, 1, 1_000_000, 0, [("topic", [(0, 17, 1_000)])])
    assert type(fetch.prepare({1: (0, 4)})) is FetchRequest_v4
    newest = fetch.prepare({1: (4, 17)})
    assert type(newest) is QuickRequest
    assert newest.encode() == FetchRequest_v11(**vars(newest)).encode()


class Fetches:
    """A fetcher without a broker: what it would ask is noted."""

    _get_actions_per_node = Fetcher._get_actions_per_node

    def __init__(self) -> None:
        self.happened: list[object] = []

    async def _proc_fetch_request(self, assignment: object, node_id: int, request: object) -> bool:
        self.happened.append(request)
        return True


async def test_a_request_goes_out_behind_what_is_made_of_the_last_answer() -> None:
    fetcher: Any = Fetches()
    fetch_quickly(fetcher)
    asking = asyncio.create_task(fetcher._proc_fetch_request(SimpleNamespace(), 0, "request"))

    async def use(what_came: str) -> None:
        fetcher.happened.append(what_came)

    await asyncio.create_task(use("decided"))
    await asyncio.create_task(use("sent"))
    assert await asking is True
    assert fetcher.happened == ["decided", "sent", "request"]


async def test_a_request_that_is_cancelled_before_it_goes_out_ends_as_one_under_way_does() -> None:
    """aiokafka cancels it and awaits it; from a CancelledError it would take that somebody stops its own closing."""
    fetcher: Any = Fetches()
    fetch_quickly(fetcher)
    asking = asyncio.create_task(fetcher._proc_fetch_request(SimpleNamespace(), 0, "request"))
    await asyncio.sleep(0)
    asking.cancel()
    assert await asking is False
    assert fetcher.happened == []
