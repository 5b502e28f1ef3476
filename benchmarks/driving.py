"""A client process under orders: lines of words come in, lines of JSON go out. It is what is timed, on either side of a
comparison; the one who gives the orders reads the CPU time of all processes before and after."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any, Protocol


class Driver(Protocol):
    async def burst(self, count: int) -> None:
        """Starts `count` workflows and returns when all have completed."""
        ...

    async def one(self) -> None:
        """Starts a workflow and returns when it has completed."""
        ...


async def obey(driver: Driver) -> None:
    """Until the input ends. "burst N" -> {"wall_s"}; "singles N" -> {"latencies_s", "wall_s"}; other orders are
    methods of the driver that take numbers and return an answer."""
    lines = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    try:
        _say({"ready": True})
        while line := await lines.readline():
            order, *words = line.decode().split()
            numbers = map(int, words)
            if order in _ORDERS:
                _say(await _ORDERS[order](driver, *numbers))
            else:
                _say(await getattr(driver, order)(*numbers))
    finally:
        transport.close()


def _say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


async def _burst(driver: Driver, count: int) -> dict[str, Any]:
    begun_s = time.perf_counter()
    await driver.burst(count)
    return {"wall_s": time.perf_counter() - begun_s}


async def _singles(driver: Driver, count: int) -> dict[str, Any]:
    latencies_s = []
    for _ in range(count):
        begun_s = time.perf_counter()
        await driver.one()
        latencies_s.append(time.perf_counter() - begun_s)
    return {"latencies_s": latencies_s, "wall_s": sum(latencies_s)}


_ORDERS = {"burst": _burst, "singles": _singles}
