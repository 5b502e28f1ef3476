"""The worker as the engine sees it: tasks in, results out, offsets committed, nothing lost and nothing stuck."""

from __future__ import annotations

import asyncio

import orjson
import pytest

from romancy_stream import ActivityContext, TerminalError, activity
from romancy_stream.errors import ConfigurationError
from romancy_stream.runtime.worker import ActivityWorker
from romancy_stream.store import tables
from romancy_stream.wire import event as w
from romancy_stream.wire.record import OutRecord
from tests.runtime.worker_kit import Bench
from tests.support import eventually


@activity
async def double(n: int) -> int:
    return 2 * n


@activity
def halve(n: int) -> int:
    return n // 2


async def test_a_plain_result_goes_to_results_and_costs_no_transaction(sqlite_bench: Bench) -> None:
    bench = sqlite_bench
    worker = await bench.worker(double)
    await bench.request("double", 21, traceparent="00-1-2-01")
    seen = await bench.result()
    assert (seen.type, seen.data, seen.event.subject) == (w.ACTIVITY_COMPLETED, 42, "i1")
    extensions = dict(seen.event.extensions)
    assert int(extensions.pop(w.X_DURATION)) > 0
    assert extensions == {
        w.X_PARTITION_KEY: "i1",
        w.X_RUN: "1",
        w.X_ACTIVITY: "double",
        w.X_ACTIVITY_ID: "double:1",
        w.X_ATTEMPT: "1",
        w.X_IDEMPOTENCY_KEY: "i1/1/double:1",
        w.X_CORRELATION: "i1/1/double:1/1",
        w.X_WORKER: "w1",
        w.X_TRACEPARENT: "00-1-2-01",
    }
    assert await bench.count(tables.activity_results) == 0
    assert worker.statistics().completed == 1
