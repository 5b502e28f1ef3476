"""Orders to a client of an app whose tables `filling` has filled: reads and starts, one at a time, each timed."""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from benchmarks import filling
from benchmarks.app import order
from benchmarks.settings import ANSWER_LIMIT_S
from romancy_stream.client import BaseClient
from romancy_stream.instances import Page

PAGE: Final = 50
"""The default of the API."""
SEED: Final = 7


class Reading:
    """A part of a driver."""

    _client: BaseClient
    _dice = random.Random(SEED)
    _customers = 0

    async def newest(self, count: int) -> dict[str, Any]:
        return await _timed(count, self._first_page)

    async def next_page(self, count: int) -> dict[str, Any]:
        token = (await self._first_page()).next_page_token
        return await _timed(count, lambda: self._full(self._client.list_instances(limit=PAGE, page_token=token)))

    async def of_status(self, count: int) -> dict[str, Any]:
        return await _timed(count, lambda: self._full(self._client.list_instances(status="failed", limit=PAGE)))

    async def _first_page(self) -> Page:
        return await self._full(self._client.list_instances(limit=PAGE))

    async def _full(self, reading: Awaitable[Page]) -> Page:
        page = await reading
        assert len(page.instances) == PAGE
        return page

    async def find(self, count: int) -> dict[str, Any]:
        """All orders of a customer."""
        await self._count_customers()
        return await _timed(count, lambda: self._all_of_one("customer.id", "{}"))

    async def find_in_array(self, count: int) -> dict[str, Any]:
        await self._count_customers()
        return await _timed(count, lambda: self._all_of_one("lines.0.sku", "sku-of-{}"))

    async def find_common(self, count: int) -> dict[str, Any]:
        """A page of what is true of every order."""
        filters = {"customer.tier": "gold"}
        return await _timed(count, lambda: self._full(self._client.find_instances(filters, limit=PAGE)))

    async def _all_of_one(self, path: str, value: str) -> None:
        customer = filling.customer(filling.ORDERS_OF_A_CUSTOMER * self._dice.randrange(self._customers))
        page = await self._client.find_instances({path: value.format(customer)}, limit=PAGE)
        assert len(page.instances) == filling.ORDERS_OF_A_CUSTOMER

    async def _count_customers(self) -> None:
        """The copies were numbered without a gap; the newest is the last one."""
        if not self._customers:
            page = await self._client.list_instances(instance_id=filling.COPY, limit=1)
            newest = page.instances[0].instance_id
            self._customers = (int(newest.removeprefix(filling.COPY)) + 1) // filling.ORDERS_OF_A_CUSTOMER

    async def start(self, count: int) -> dict[str, Any]:
        """Until it is durable. The next one begins when it has completed."""
        latencies_s = []
        for _ in range(count):
            begun_s = time.perf_counter()
            handle = await self._client.start(order, filling.input_of("fulfilled", "new"))
            latencies_s.append(time.perf_counter() - begun_s)
            await handle.result(timeout=ANSWER_LIMIT_S)
        return {"latencies_s": latencies_s}

    async def start_to_result(self, count: int) -> dict[str, Any]:
        return await _timed(count, self._one_order)

    async def _one_order(self) -> None:
        handle = await self._client.start(order, filling.input_of("fulfilled", "new"))
        assert await handle.result(timeout=ANSWER_LIMIT_S) == filling.NUMBER


async def _timed(count: int, call: Callable[[], Awaitable[object]]) -> dict[str, Any]:
    latencies_s = []
    for _ in range(count):
        begun_s = time.perf_counter()
        await call()
        latencies_s.append(time.perf_counter() - begun_s)
    return {"latencies_s": latencies_s}
