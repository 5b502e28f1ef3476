"""Fetches are packed and unpacked as aiokafka does it itself."""

from __future__ import annotations

import asyncio
import struct
import time
from collections import deque
from io import BytesIO
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.conn import AIOKafkaConnection
from aiokafka.consumer.fetcher import Fetcher
from aiokafka.consumer.subscription_state import SubscriptionState
from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol.fetch import FetchRequest, FetchRequest_v4, FetchRequest_v11, FetchResponse_v11
from aiokafka.structs import TopicPartition
from hypothesis import given
from hypothesis import strategies as st

from romancy_stream.broker.kafka import KafkaBroker, fetching
from romancy_stream.broker.kafka.consumer import Consumer
from romancy_stream.broker.kafka.fetching import QuickFetch, QuickRequest, QuickResponse, fetch_quickly
from tests.broker.kafka_kit import make_topic, produce


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


def a_fetcher() -> tuple[Fetcher, Any]:
    """aiokafka's, with a partition assigned and no broker to ask; it does nothing by itself."""
    cluster = SimpleNamespace(leader_for_partition=lambda tp: 0, broker_metadata=lambda node: object())
    loop = asyncio.get_running_loop()
    subscription = SubscriptionState(loop=loop)
    fetcher = Fetcher(SimpleNamespace(cluster=cluster, _loop=loop, _metadata_max_age_ms=1_000), subscription)
    fetcher._fetch_task.cancel()
    subscription.assign_from_user([TopicPartition("topic", 0)])
    assignment = subscription.subscription.assignment
    assignment.state_value(TopicPartition("topic", 0)).reset_to(7)
    return fetcher, assignment


async def test_our_fetchers_ask_quickly_and_others_as_before() -> None:
    quick, assignment = a_fetcher()
    fetch_quickly(quick)
    [(_, request)] = quick._get_actions_per_node(assignment)[0]
    assert type(request) is QuickFetch
    plain, assignment = a_fetcher()
    [(_, request)] = plain._get_actions_per_node(assignment)[0]
    assert type(request) is FetchRequest


async def test_an_answer_is_read_behind_its_header() -> None:
    request = QuickFetch(500, 1, 1_000_000, 0, []).prepare({1: (4, 17)})
    answer = FetchResponse_v11(0, 0, 0, [("topic", [(0, 0, 1, 1, 1, [(1, 2)], -1, b"abc")])])
    future = asyncio.get_running_loop().create_future()
    connection = SimpleNamespace(_requests=deque([(5, request, future)]), _host="broker", _port=1)
    AIOKafkaConnection._handle_frame(connection, struct.pack(">i", 5) + answer.encode())
    assert type(future.result()) is QuickResponse
    assert future.result().topics == answer.topics


def test_a_length_below_zero_is_refused() -> None:
    raw = struct.pack(">ihii", 0, 0, 0, 400_000) + struct.pack(">h", -6) + bytes(10)
    with pytest.raises(ValueError, match="without a name"):
        QuickResponse.decode(raw)


class Fetches:
    """A fetcher without a broker: what it would ask is noted."""

    _get_actions_per_node = Fetcher._get_actions_per_node

    def __init__(self) -> None:
        self.happened: list[object] = []

    async def _proc_fetch_request(self, assignment: object, node_id: int, request: object) -> bool:
        self.happened.append(request)
        return True


async def asked_behind(*turns_s: float) -> list[object]:
    """A request, and what happens in the turns of the loop after it was made, which take so long."""
    fetcher: Any = Fetches()
    fetch_quickly(fetcher)
    asking = asyncio.create_task(fetcher._proc_fetch_request(SimpleNamespace(), 0, "request"))
    for turn, turn_s in enumerate(turns_s):
        fetcher.happened.append(turn)
        until_s = time.monotonic() + turn_s
        while time.monotonic() < until_s:
            pass
        await asyncio.sleep(0)
    assert await asking is True
    return fetcher.happened


async def test_a_request_goes_out_behind_what_is_made_of_the_last_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "ASIDE_LIMIT_S", 60.0)  # however slow the machine is
    assert await asked_behind(*[0.0] * 10) == [0, 1, 2, 3, 4, "request", 5, 6, 7, 8, 9]


async def test_a_loop_that_has_much_to_do_fetches_meanwhile() -> None:
    assert await asked_behind(0.0, 0.003, 0.003) == [0, 1, "request", 2]


async def test_a_request_that_is_cancelled_before_it_goes_out_ends_as_one_under_way_does() -> None:
    """aiokafka cancels it and awaits it; from a CancelledError it would take that somebody stops its own closing."""
    fetcher: Any = Fetches()
    fetch_quickly(fetcher)
    asking = asyncio.create_task(fetcher._proc_fetch_request(SimpleNamespace(), 0, "request"))
    await asyncio.sleep(0)
    asking.cancel()
    assert await asking is False
    assert fetcher.happened == []


@pytest.mark.kafka
async def test_what_a_consumer_reads_came_quickly(
    kafka: KafkaBroker, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    decode = QuickResponse.decode
    monkeypatch.setattr(QuickResponse, "decode", lambda data: read.append(decode(data)) or read[-1])
    await make_topic(kafka, name)
    await produce(kafka, name, 3)
    consumer = Consumer(name, bootstrap_servers=kafka.bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    try:
        assert [(await consumer.getone()).offset for _ in range(3)] == [0, 1, 2]
    finally:
        await consumer.stop()
    assert any(records for each in read for _, partitions in each.topics for *_, records in partitions)


@pytest.mark.kafka
@pytest.mark.parametrize("turns", [0, 20, 100])
async def test_a_consumer_that_cannot_say_goodbye_asks_for_nothing_any_more(
    kafka: KafkaBroker, name: str, turns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`turns` after a request was made: it is aside, or on its way."""
    monkeypatch.setattr(fetching, "TURNS_ASIDE", 50)
    monkeypatch.setattr(fetching, "ASIDE_LIMIT_S", 60.0)
    await make_topic(kafka, name)
    consumer = Consumer(name, bootstrap_servers=kafka.bootstrap, fetch_max_wait_ms=10)
    await consumer.start()
    fetcher, say_goodbye = consumer._fetcher, consumer._coordinator.close
    actions = fetcher._get_actions_per_node
    made = asyncio.Event()

    def noted(assignment: Any) -> Any:
        found = actions(assignment)
        if found[0]:
            made.set()
        return found

    async def fail() -> None:
        await made.wait()
        for _ in range(turns):
            await asyncio.sleep(0)
        await say_goodbye()
        raise KafkaConnectionError("nobody answers")

    monkeypatch.setattr(consumer._coordinator, "close", fail)
    fetcher._get_actions_per_node = noted
    await consumer.stop()
    assert fetcher._fetch_task.done()
    assert all(task.done() for task in fetcher._pending_tasks)
