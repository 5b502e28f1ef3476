"""The client of the engine, or with `--alone` the whole app in one process: a process under orders (see `driving`)."""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from typing import Final

from benchmarks import filling
from benchmarks.app import (
    app,
    book_many,
    carry_thrice,
    compute_beside,
    count_books,
    open_books,
    order,
    parallel_steps,
    sequential_steps,
    sleep_until_due,
    three_steps,
    wait_for_go,
)
from benchmarks.driving import obey
from benchmarks.loops import loop_factory
from benchmarks.reading import Reading
from benchmarks.settings import ANSWER_LIMIT_S, STARTS_AT_ONCE
from romancy_stream.cli.interpreter import set_up_interpreter
from romancy_stream.client import BaseClient
from romancy_stream.handle import Handle

STEP_ENDED: Final = "activity.completed"
BOOKINGS_EACH: Final = 10
"""Activities of an instance that all run at once."""


class EngineDriver(Reading):
    """Through the public API, as an application would."""

    def __init__(self, client: BaseClient) -> None:
        self._client = client
        self._asleep: list[Handle[str]] = []
        self._sent: list[tuple[Handle[str], str]] = []  # and the id of its event

    async def one(self) -> None:
        handle = await self._client.start(three_steps, 7)
        assert await handle.result(timeout=ANSWER_LIMIT_S) == 7

    async def burst(self, count: int) -> None:
        handles = await self._client.start_many(three_steps, range(count))
        async with asyncio.timeout(ANSWER_LIMIT_S):
            results = await asyncio.gather(*(handle.result() for handle in handles))
        assert results == list(range(count))

    # -- shapes of work: each returns what it took, in seconds ---------------------------------------------------
    async def parallel(self, count: int) -> dict[str, float]:
        begun_s = time.perf_counter()
        handle = await self._client.start(parallel_steps, count)
        assert await handle.result(timeout=ANSWER_LIMIT_S) == count * (count - 1) // 2
        return {"wall_s": time.perf_counter() - begun_s}

    async def sequential(self, count: int) -> dict[str, float]:
        """Also what a step takes around the 100th, and at the end."""
        begun_s = time.perf_counter()
        handle = await self._client.start(sequential_steps, count)
        assert await handle.result(timeout=ANSWER_LIMIT_S) == count
        wall_s = time.perf_counter() - begun_s
        ends = [e.at.timestamp() for e in await self._client.history(handle.instance_id) if e.kind == STEP_ENDED]
        early, late = ends[50:150], ends[-100:]
        return {
            "wall_s": wall_s,
            "early_step_s": (early[-1] - early[0]) / (len(early) - 1),
            "late_step_s": (late[-1] - late[0]) / (len(late) - 1),
        }

    async def events(self, count: int) -> dict[str, float]:
        """As many instances wait, each is sent one event; from the first event to the last result."""
        handles = await asyncio.gather(*(self._client.start(wait_for_go) for _ in range(count)))
        await self._until(count, "waiting_for_event")
        begun_s = time.perf_counter()
        sent = [self._client.send_event(type="bench.go", subject=handle.instance_id) for handle in handles]
        ids = await asyncio.gather(*sent)
        results = await asyncio.gather(*(handle.result(timeout=ANSWER_LIMIT_S) for handle in handles))
        assert results == ids
        return {"wall_s": time.perf_counter() - begun_s}

    async def timers(self, count: int) -> dict[str, float]:
        """As many instances sleep until one moment; from that moment to the last result."""
        due_s = time.time() + 5 + count / 500
        handles = []
        for first in range(0, count, STARTS_AT_ONCE):
            number = min(STARTS_AT_ONCE, count - first)
            handles += await asyncio.gather(*(self._client.start(sleep_until_due, due_s) for _ in range(number)))
        await self._until(count, "waiting_for_timer")
        assert time.time() < due_s, "the instances were not asleep in time"
        await asyncio.gather(*(handle.result(timeout=ANSWER_LIMIT_S) for handle in handles))
        return {"wall_s": time.time() - due_s}

    async def computing(self, seconds: int) -> dict[str, float]:
        """One workflow of three steps, in the median of all that end one after another while a `def` activity computes
        for so long."""
        beside = await self._client.start(compute_beside, float(seconds))
        ended = asyncio.create_task(beside.result(timeout=ANSWER_LIMIT_S))
        latencies_s = []
        while not ended.done():
            begun_s = time.perf_counter()
            await self.one()
            latencies_s.append(time.perf_counter() - begun_s)
        await ended
        return {"wall_s": statistics.median(latencies_s)}

    async def payload(self, size_bytes: int) -> dict[str, float]:
        """One workflow of three steps, all of which take and return so much JSON, in the median of ten."""
        line = {"number": 10_000_000, "name": "a name, in New York", "price": 10.25, "at": "2026-11-23T10:00:00Z"}
        lines = [line] * (size_bytes // len(json.dumps(line)))
        latencies_s = []
        for _ in range(10):
            begun_s = time.perf_counter()
            handle = await self._client.start(carry_thrice, lines)
            assert await handle.result(timeout=ANSWER_LIMIT_S) == len(lines)
            latencies_s.append(time.perf_counter() - begun_s)
        return {"wall_s": statistics.median(latencies_s)}

    async def chains(self, count: int, steps: int) -> dict[str, float]:
        """As many workflows at once, of as many steps one after another."""
        begun_s = time.perf_counter()
        handles: list[Handle[int]] = []
        for first in range(0, count, STARTS_AT_ONCE):
            number = min(STARTS_AT_ONCE, count - first)
            handles += await asyncio.gather(*(self._client.start(sequential_steps, steps) for _ in range(number)))
        results = await asyncio.gather(*(handle.result(timeout=ANSWER_LIMIT_S) for handle in handles))
        assert results == [steps] * count
        return {"wall_s": time.perf_counter() - begun_s}

    async def single_chains(self, count: int, steps: int) -> dict[str, float]:
        """The same, one workflow at a time."""
        begun_s = time.perf_counter()
        for _ in range(count):
            handle = await self._client.start(sequential_steps, steps)
            assert await handle.result(timeout=ANSWER_LIMIT_S) == steps
        return {"wall_s": time.perf_counter() - begun_s}

    # -- activities with a transaction -------------------------------------------------------------------------------
    async def open_books(self) -> dict[str, float]:
        await (await self._client.start(open_books)).result(timeout=ANSWER_LIMIT_S)
        return {}

    async def bookings(self, count: int) -> dict[str, float]:
        """As many activities, in instances of some; then looks whether each has written one row."""
        before = await self._booked()
        begun_s = time.perf_counter()
        numbers = [min(BOOKINGS_EACH, count - first) for first in range(0, count, BOOKINGS_EACH)]
        handles = await asyncio.gather(*(self._client.start(book_many, number) for number in numbers))
        await asyncio.gather(*(handle.result(timeout=ANSWER_LIMIT_S) for handle in handles))
        wall_s = time.perf_counter() - begun_s
        assert await self._booked() == before + count
        return {"wall_s": wall_s}

    async def _booked(self) -> int:
        return await (await self._client.start(count_books)).result(timeout=ANSWER_LIMIT_S)

    # -- tables with many instances --------------------------------------------------------------------------------
    async def models(self, _: int) -> dict[str, float]:
        """One instance of each fate, for `filling` to copy."""
        for fate, status in filling.FATES.items():
            placed = filling.input_of(fate, filling.CUSTOMER)
            await self._client.start(order, placed, instance_id=filling.model_id(fate))
            await self._until(1, status)
        return {}

    # -- instances that wait -----------------------------------------------------------------------------------------
    async def asleep(self, count: int) -> dict[str, float]:
        for first in range(0, count, STARTS_AT_ONCE):
            number = min(STARTS_AT_ONCE, count - first)
            self._asleep += await asyncio.gather(*(self._client.start(wait_for_go) for _ in range(number)))
        await self._until(len(self._asleep), "waiting_for_event")
        return {}

    async def wake(self, count: int) -> dict[str, float]:
        """Returns when their events are durable."""
        woken = [self._asleep.pop() for _ in range(count)]
        sent = [self._client.send_event(type="bench.go", subject=handle.instance_id) for handle in woken]
        self._sent = list(zip(woken, await asyncio.gather(*sent), strict=True))
        return {}

    async def woken(self, _: int) -> dict[str, float]:
        """When all that were woken last have completed."""
        for handle, event_id in self._sent:
            assert await handle.result(timeout=ANSWER_LIMIT_S) == event_id
        return {}

    async def _until(self, count: int, status: str) -> None:
        """As many instances have this status."""
        async with asyncio.timeout(ANSWER_LIMIT_S):
            while await self._count(status) < count:  # noqa: ASYNC110 - another process brings it about
                await asyncio.sleep(0.05)

    async def _count(self, status: str) -> int:
        count, token = 0, None
        while True:
            page = await self._client.list_instances(status=status, limit=500, page_token=token)
            count, token = count + len(page.instances), page.next_page_token
            if token is None:
                return count


async def _run(alone: bool) -> None:
    async with app if alone else app.client() as client:
        await obey(EngineDriver(client))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--alone", action="store_true", help="engine and worker in this process too")
    options = parser.parse_args()
    if options.alone:
        set_up_interpreter()
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_run(options.alone))


if __name__ == "__main__":
    main()
