"""The client of Restate: calls over its HTTP ingress, each of which is answered when its invocation has completed.
Registers the service first. Obeys orders."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from typing import Any, Final

import aiohttp

from benchmarks.driving import obey
from benchmarks.loops import loop_factory
from benchmarks.settings import ANSWER_LIMIT_S

HOST: Final = "http://127.0.0.1"
INGRESS: Final = f"{HOST}:{os.environ['RIVAL_INGRESS_PORT']}"
ADMIN: Final = f"{HOST}:{os.environ['RIVAL_ADMIN_PORT']}"
SERVICE: Final = f"{HOST}:{os.environ['RIVAL_SERVICE_PORT']}"
WAITING: Final = "SELECT count(*) AS n FROM sys_promise WHERE NOT completed"


class RestateDriver:
    def __init__(self, http: aiohttp.ClientSession) -> None:
        self._http = http

    async def register(self) -> None:
        """As soon as server and service answer."""
        async with asyncio.timeout(ANSWER_LIMIT_S):
            while True:
                try:
                    async with self._http.post(f"{ADMIN}/deployments", json={"uri": SERVICE}) as answer:
                        if answer.ok:
                            break
                except aiohttp.ClientConnectionError:
                    pass  # not up yet
                await asyncio.sleep(0.2)
            while not await self._called():  # noqa: ASYNC110 - another process brings it about
                await asyncio.sleep(0.2)

    async def _called(self) -> bool:
        """Whether the ingress has heard of the service."""
        try:
            return await self._call("Bench/three_steps", 7) == 7
        except aiohttp.ClientError:
            return False

    async def _call(self, path: str, value: Any) -> Any:
        async with self._http.post(f"{INGRESS}/{path}", json=value) as answer:
            answer.raise_for_status()
            return await answer.json()

    async def one(self) -> None:
        assert await self._call("Bench/three_steps", 7) == 7

    async def burst(self, count: int) -> None:
        results = await asyncio.gather(*(self._call("Bench/three_steps", number) for number in range(count)))
        assert results == list(range(count))

    async def parallel(self, count: int) -> dict[str, float]:
        return await self._timed("Bench/parallel_steps", count, count * (count - 1) // 2)

    async def sequential(self, count: int) -> dict[str, float]:
        return await self._timed("Bench/sequential_steps", count, count)

    async def _timed(self, path: str, count: int, result: int) -> dict[str, float]:
        begun_s = time.perf_counter()
        assert await self._call(path, count) == result
        return {"wall_s": time.perf_counter() - begun_s}

    async def events(self, count: int) -> dict[str, float]:
        keys = [uuid.uuid4().hex for _ in range(count)]
        runs = [asyncio.create_task(self._call(f"Gate/{key}/run", 0)) for key in keys]
        async with asyncio.timeout(ANSWER_LIMIT_S):
            while await self._waiting() < count:  # noqa: ASYNC110 - another process brings it about
                await asyncio.sleep(0.05)
        begun_s = time.perf_counter()
        await asyncio.gather(*(self._resolve(key) for key in keys))
        assert await asyncio.gather(*runs) == keys
        return {"wall_s": time.perf_counter() - begun_s}

    async def _resolve(self, key: str) -> None:
        async with self._http.post(f"{INGRESS}/Gate/{key}/go", json=key) as answer:
            answer.raise_for_status()

    async def _waiting(self) -> int:
        asked = {"query": WAITING}
        async with self._http.post(f"{ADMIN}/query", json=asked, headers={"accept": "application/json"}) as answer:
            answer.raise_for_status()
            return int((await answer.json())["rows"][0]["n"])


async def _run() -> None:
    connector = aiohttp.TCPConnector(limit=0)  # a call under way is a connection: all of a burst are to be
    timeout = aiohttp.ClientTimeout(total=ANSWER_LIMIT_S)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:
        driver = RestateDriver(http)
        await driver.register()
        await obey(driver)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_run())
