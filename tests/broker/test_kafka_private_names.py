"""One test per private name of Faust, mode and aiokafka that romancy_stream/broker/kafka uses: it exists, with the
shape that we rely on. When an upgrade breaks one, read what the new version does there before changing anything.
"""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
from pathlib import Path
from typing import Any

import pytest
from aiokafka.client import AIOKafkaClient
from aiokafka.consumer import AIOKafkaConsumer
from aiokafka.consumer.fetcher import Fetcher as AioFetcher
from aiokafka.consumer.fetcher import PartitionRecords
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.producer.message_accumulator import MessageAccumulator, MessageBatch
from aiokafka.producer.producer import AIOKafkaProducer
from aiokafka.protocol.fetch import FetchRequest, FetchRequest_v11
from aiokafka.record.default_records import _DefaultRecordBatchPy
from aiokafka.record.memory_records import MemoryRecords
from faust.app.base import App, BootStrategy
from faust.tables.manager import TableManager
from faust.transport.consumer import Consumer, ThreadDelegateConsumer
from faust.transport.drivers import aiokafka as driver
from faust.types import TP as FaustTP
from mode import Service
from mode.threads import ServiceThread

import romancy_stream.broker.kafka as package
from romancy_stream.broker.kafka.source import FaustBatchSource
from tests.broker.kafka_kit import FAST, Handler

# (owner, name, parameters without self, is it a coroutine function)
METHODS = [
    (driver.AIOKafkaConsumerThread, "_create_worker_consumer", ["transport"], False),
    (driver.AIOKafkaConsumerThread, "_ensure_consumer", [], False),
    (driver.AIOKafkaConsumerThread, "call_thread", ["fun", "args", "kwargs"], True),
    (driver.AIOKafkaConsumerThread, "on_partitions_assigned", ["assigned", "generation_id"], True),
    (driver.AIOKafkaConsumerThread, "on_partitions_revoked", ["revoked"], True),
    (driver.AIOKafkaConsumerThread, "on_thread_stop", [], True),
    (ServiceThread, "crash", ["exc"], True),
    (Service, "_default_stop_futures", [], True),
    (Service, "crash", ["reason"], True),
    (Service, "wait_until_stopped", [], True),
    (driver.Consumer, "_new_consumer_thread", [], False),
    (driver.Consumer, "verify_event_path", ["now", "tp"], False),
    (ThreadDelegateConsumer, "close", [], False),
    (Consumer, "_wait_next_records", ["timeout"], True),
    (Consumer, "_get_active_partitions", [], False),
    (Consumer, "perform_seek", [], True),
    (Consumer, "pause_partitions", ["tps"], False),
    (Consumer, "resume_partitions", ["tps"], False),
    (Consumer, "resume_flow", [], False),
    (Consumer, "stop_flow", [], False),
    (Consumer, "on_partitions_assigned", ["assigned", "generation_id"], True),
    (Consumer, "on_partitions_revoked", ["revoked"], True),
    (TableManager, "_update_channels", [], True),
    (TableManager, "on_start", [], True),
    (App, "_on_partitions_assigned", ["assigned", "generation_id"], True),
    (App, "_on_rebalance_when_stopped", [], False),
    (GroupCoordinator, "check_errors", [], False),
    (GroupCoordinator, "_push_error_to_user", ["exc"], False),
    (GroupCoordinator, "_send_req", ["request"], True),
    (GroupCoordinator, "ensure_coordinator_known", [], True),
    (GroupCoordinator, "coordinator_dead", [], False),
    (AioFetcher, "_notify", ["future"], False),
    (AioFetcher, "_proc_fetch_request", ["assignment", "node_id", "request"], True),
    (AioFetcher, "_get_actions_per_node", ["assignment"], False),
    (PartitionRecords, "_unpack_records", [], False),
    (_DefaultRecordBatchPy, "_maybe_uncompress", [], False),
    (AIOKafkaClient, "force_metadata_update", [], False),
    (MessageAccumulator, "fail_all", ["exception"], False),
    (MessageAccumulator, "flush", [], True),
]


@pytest.mark.parametrize(("owner", "name", "parameters", "is_async"), METHODS)
def test_method(owner: type, name: str, parameters: list[str], is_async: bool) -> None:
    method = getattr(owner, name)
    assert list(inspect.signature(method).parameters)[1:] == parameters
    assert inspect.iscoroutinefunction(inspect.unwrap(method)) == is_async


# (class, attribute that its __init__ or a method of it assigns)
ATTRIBUTES: list[tuple[type, str]] = [
    (driver.AIOKafkaConsumerThread, "_consumer"),
    (ServiceThread, "_thread_started"),
    (Service, "_started"),
    (Service, "_stopped"),
    (ThreadDelegateConsumer, "_thread"),
    (AIOKafkaConsumer, "_client"),
    (AIOKafkaConsumer, "_coordinator"),
    (AIOKafkaConsumer, "_fetcher"),
    (AioFetcher, "_fetch_task"),
    (AioFetcher, "_fetch_waiters"),
    (AioFetcher, "_pending_tasks"),
    (PartitionRecords, "_tp"),
    (PartitionRecords, "_records"),
    (PartitionRecords, "_records_iterator"),
    (_DefaultRecordBatchPy, "_buffer"),
    (_DefaultRecordBatchPy, "_pos"),
    (_DefaultRecordBatchPy, "_num_records"),
    (GroupCoordinator, "generation"),
    (GroupCoordinator, "member_id"),
    (GroupCoordinator, "group_id"),
    (AIOKafkaProducer, "_message_accumulator"),
    (MessageAccumulator, "_batches"),
    (MessageAccumulator, "_pending_batches"),
    (MessageBatch, "_drain_waiter"),
]


@pytest.mark.parametrize(("owner", "name"), ATTRIBUTES)
def test_attribute(owner: type, name: str) -> None:
    assert f"self.{name}" in inspect.getsource(owner) or hasattr(owner, name)


def test_faust_is_the_version_that_the_seam_was_written_for() -> None:
    assert importlib.metadata.version("faust-streaming") == "0.15.3"


def test_aiokafka_is_the_version_that_the_reader_was_written_for() -> None:
    assert importlib.metadata.version("aiokafka").startswith("0.14.")


def test_aiokafka_makes_in_one_method_what_the_reader_makes_differently() -> None:
    method = AioFetcher._proc_fetch_request
    assert {"MemoryRecords", "PartitionRecords"} <= set(method.__code__.co_names)
    assert method.__code__.co_freevars == ()
    assert (method.__defaults__, method.__kwdefaults__) == (None, None)
    assert "records = self._records" in inspect.getsource(PartitionRecords._unpack_records)
    assert (
        "self._records" not in inspect.getsource(PartitionRecords._unpack_records).split("records = self._records")[1]
    )
    assert type("Subclass", (MemoryRecords,), {})(b"").size_in_bytes() == 0  # it is written in C, and open


def test_aiokafka_makes_its_requests_in_one_method() -> None:
    method = AioFetcher._get_actions_per_node
    assert "FetchRequest" in method.__code__.co_names
    assert method.__code__.co_freevars == ()
    assert (method.__defaults__, method.__kwdefaults__) == (None, None)
    assert FetchRequest._CLASSES[-1] is FetchRequest_v11  # no newer one, which we would leave to aiokafka


async def test_faust_passes_active_partitions_as_the_live_set(tmp_path: Path) -> None:
    """`release` wakes a fetch under way, which must then see the released partition."""
    assert "active_partitions = self._get_active_partitions()" in inspect.getsource(Consumer._wait_next_records)
    source = FaustBatchSource(["t"], "g", Handler(), bootstrap="127.0.0.1:1", client_id="c", settings=FAST)
    consumer: Any = source._build(tmp_path).consumer
    live = consumer._get_active_partitions()
    consumer.resume_partitions({FaustTP("t", 1)})
    assert live == {FaustTP("t", 1)}


def test_the_boot_strategy_can_leave_out_the_producer() -> None:
    assert BootStrategy.enable_kafka_producer is None
    assert list(inspect.signature(BootStrategy.kafka_producer).parameters) == ["self"]


def test_no_private_name_is_used_that_is_not_listed_here() -> None:
    """Names with an underscore on anything but `self` and our own objects."""
    listed = {name for _, name, *_ in METHODS} | {name for _, name in ATTRIBUTES}
    ours = {"_source", "_on_rebalance", "_next", "_started", "_stopped"}
    found: dict[str, str] = {}
    for path in sorted(Path(package.__path__[0]).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
                on_self = isinstance(node.value, ast.Name) and node.value.id == "self"
                if not on_self:
                    found[node.attr] = path.name
    assert set(found) - ours <= listed, found
